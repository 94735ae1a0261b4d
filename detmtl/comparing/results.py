"""From finished runs to a result: means, paired differences, verdicts, as plain values for JSON.

Letters: B resamples of the pictures.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from detmtl.comparing.contrast import Difference, Runs, contrast, share
from detmtl.comparing.plan import Cell, effort, is_teacher, short_setting
from detmtl.comparing.prepare import Prepared
from detmtl.comparing.scores import RunScores, same_start
from detmtl.comparing.settings import CompareSettings
from detmtl.comparing.statistics import (
    Verdict,
    Word,
    over_seeds,
    seeds_alone,
    verdicts,
)
from detmtl.metrics.direction import lower_is_better

SIZES = ("AP_small", "AP_medium", "AP_large")

Scores = Mapping[tuple[int, str, int], RunScores]
"""(Cell's position, arm, seed) -> a finished run."""


def result(settings: CompareSettings, prepared: Prepared, scores: Scores) -> dict[str, Any]:
    """Returns all that is found, as plain values; numbers that are not known are None."""
    cells = []
    for i, cell in enumerate(prepared.plan.cells):
        arms = {
            arm: {seed: s for (c, a, seed), s in sorted(scores.items()) if (c, a) == (i, arm)}
            for arm in settings.arms
        }
        cells.append(_cell(settings, prepared, i, cell, arms))
    same = _same(settings, prepared, cells)
    cautions = [*prepared.cautions, *_cautions(prepared, scores), *same]
    cautions += seeds_alone(c for cell in cells for c in cell["comparisons"])
    return plain(
        {
            "metrics": settings.metrics,
            "baselines": settings.baselines,
            "ceiling": settings.ceiling,
            "curve": short_setting(next(iter(settings.curve), "")),
            "resamples": settings.resamples,
            "verdict": list(sentences(settings, cells)),
            "cautions": cautions,
            "cells": cells,
        }
    )


def _cell(
    settings: CompareSettings,
    prepared: Prepared,
    position: int,
    cell: Cell,
    arms: Runs,
) -> dict[str, Any]:
    pictures, scored_on = prepared.scored[position]
    both = [(a, b) for a, b in _pairs(settings) if arms[a].keys() & arms[b].keys()]
    same = [(a, b) for a, b in both if _same_runs(arms[a], arms[b])]
    pairs = [pair for pair in both if pair not in same]
    comparisons = []
    for metric in settings.metrics:
        for baseline in settings.baselines:
            mine = [(a, b) for a, b in pairs if b == baseline]
            found = [contrast(arms, {a: 1, b: -1}, metric) for a, b in mine]
            said = [
                _turned(v) if lower_is_better(metric) else v
                for v in verdicts([(d.seeds, d.pictures) for d in found])
            ]
            comparisons += [
                _told(a, b, metric, d, v) for (a, b), d, v in zip(mine, found, said, strict=True)
            ]
    details = [
        _told(a, b, metric, contrast(arms, {a: 1, b: -1}, metric), None)
        for metric in detail_metrics(settings, arms)
        for a, b in pairs
    ]
    return {
        "name": cell.name,
        "axes": dict(cell.axes),
        "x": cell.x,
        "pictures": len(pictures),
        "scored_on": scored_on,
        "classes": list(pictures.classes),
        "arms": {
            arm: _arm(settings, prepared, position, arm, runs) for arm, runs in arms.items() if runs
        },
        "same_runs": same,
        "comparisons": comparisons,
        "details": details,
        "gap": _gaps(settings, arms),
    }


def _arm(
    settings: CompareSettings,
    prepared: Prepared,
    position: int,
    arm: str,
    runs: Mapping[int, RunScores],
) -> dict[str, Any]:
    first = next(iter(runs))
    run = prepared.plan.runs[prepared.plan.at[position, arm, first]]
    teacher = is_teacher(settings, arm)
    names = [*settings.metrics, *detail_metrics(settings, {arm: runs})]
    once = len({s.key for s in runs.values()}) == 1 and len(runs) > 1
    listed = dict(list(runs.items())[:1]) if once else runs  # one model, whatever the seed
    seconds = [s.seconds for s in listed.values() if not math.isnan(s.seconds)]
    steps = [s.seconds_per_step for s in listed.values() if not math.isnan(s.seconds_per_step)]
    changes = settings.arms[arm]
    return {
        "changes": changes if isinstance(changes, dict) else {},
        "is_teacher": teacher,
        "runs": {str(seed): s.key for seed, s in runs.items()},
        "models": len(listed),
        "steps": 0 if run.kind == "teacher" else effort(run.settings)[0],
        "metrics": {
            name: {
                "estimate": asdict(
                    over_seeds([s.metrics.get(name, math.nan) for s in listed.values()])
                ),
                "values": {str(seed): s.metrics.get(name) for seed, s in listed.items()},
            }
            for name in dict.fromkeys(names)
        },
        "seconds": float(np.mean(seconds)) if seconds else None,
        "seconds_per_step": float(np.median(steps)) if steps else None,
        "reliability": _pooled([s.reliability for s in listed.values()]),
    }


def _gaps(settings: CompareSettings, arms: Runs) -> list[dict[str, Any]]:
    """Returns how much of the way from each baseline to the ceiling each arm goes.

    No share is told where the ceiling itself is not surely better than the baseline.
    """
    ceiling, told = settings.ceiling, []
    if ceiling is None or not arms[ceiling]:
        return []
    for metric in settings.metrics:
        for arm, baseline in _pairs(settings):
            if arm == ceiling or baseline == ceiling or not (arms[arm] and arms[baseline]):
                continue
            found = share(arms, (arm, baseline, ceiling), metric)
            told.append(
                {"arm": arm, "baseline": baseline, "metric": metric, "share": found.mean}
                | {"low": found.low, "high": found.high}
            )
    return told


def detail_metrics(settings: CompareSettings, arms: Runs) -> list[str]:
    """Returns the metrics of the first metric's task by class and by size, and its calibration error."""
    task = settings.metrics[0].split("/")[0]
    known = {name: None for runs in arms.values() for s in runs.values() for name in s.metrics}
    sizes = [f"{task}/{size}" for size in SIZES]
    per_class = [n for n in known if n.startswith((f"{task}/AP/", f"{task}/IoU/"))]
    wanted = [*per_class, *(n for n in sizes if n in known), f"{task}/ECE"]
    return [n for n in wanted if n in known and n not in settings.metrics]


def sentences(
    settings: CompareSettings, cells: Sequence[dict[str, Any]]
) -> Iterator[dict[str, str]]:
    """Yields the answer in words: how each arm does against each baseline in the first metric, as a
    `word` and a `text`."""
    for arm, baseline in _pairs(settings):
        found = [
            (cell, c)
            for cell in cells
            for c in cell["comparisons"]
            if (c["arm"], c["baseline"], c["metric"]) == (arm, baseline, settings.metrics[0])
        ]
        if not found:
            continue
        if len(cells) == 1:
            yield {"word": found[0][1]["word"], "text": _sentence(*found[0])}
            continue
        parts = []
        for word in ("better", "worse", "cannot tell"):
            names = [cell["name"] for cell, c in found if c["word"] == word]
            where = f" ({'; '.join(names)})" if names and len(names) < len(found) else ""
            parts.append(f"{word} in {len(names)}{where}")
        words = [c["word"] for _, c in found]
        word = words[0] if len(set(words)) == 1 else "worse" if "worse" in words else "cannot tell"
        text = f"{arm} against {baseline}, {len(found)} cells: {', '.join(parts)}."
        yield {"word": word, "text": text}


def _sentence(cell: Mapping[str, Any], c: Mapping[str, Any]) -> str:
    said = {
        "better": f"{c['arm']} is better than {c['baseline']}",
        "worse": f"{c['arm']} is worse than {c['baseline']}",
        "cannot tell": f"Whether {c['arm']} is better than {c['baseline']} cannot be told",
    }[c["word"]]
    metric = c["metric"].split("/", 1)[1]
    intervals = [
        f"[{c[over]['low']:+.3f}, {c[over]['high']:+.3f}] over {c[over]['count']} {over}"
        if over == "seeds"
        else f"[{c[over]['low']:+.3f}, {c[over]['high']:+.3f}] over {cell['pictures']} pictures"
        for over in ("seeds", "pictures")
        if c[over]["low"] is not None and not math.isnan(c[over]["low"])
    ]
    mean = c["seeds"]["mean"]
    number = "" if math.isnan(mean) else f" {metric} {mean:+.3f}"
    return f"{said}:{number} {', '.join(intervals)} ({c['reason']}).".replace("  ", " ")


def _pairs(settings: CompareSettings) -> Iterator[tuple[str, str]]:
    """Yields (arm, baseline), each pair once."""
    for i, baseline in enumerate(settings.baselines):
        for arm in settings.arms:
            if arm != baseline and arm not in settings.baselines[:i]:
                yield arm, baseline


def _turned(verdict: Verdict) -> Verdict:
    """Returns the verdict on a metric of which less is better."""
    word: Word = {"better": "worse", "worse": "better"}.get(verdict.word, verdict.word)  # type: ignore[assignment]
    return replace(verdict, word=word)


def _same_runs(arm: Mapping[int, RunScores], baseline: Mapping[int, RunScores]) -> bool:
    """Returns whether there is nothing to compare: one and the same run in each seed."""
    return all(arm[s].key == baseline[s].key for s in arm if s in baseline)


def _told(
    arm: str, baseline: str, metric: str, found: Difference, said: Verdict | None
) -> dict[str, Any]:
    return {
        "arm": arm,
        "baseline": baseline,
        "metric": metric,
        "values": {str(seed): value for seed, value in found.values.items()},
        "seeds": asdict(found.seeds),
        "pictures": asdict(found.pictures),
        **(asdict(said) if said else {}),
    }


def _pooled(
    tables: Sequence[Sequence[tuple[float, float, int]]], bins: int = 15
) -> list[tuple[float, float, int]]:
    """Returns one reliability table of several runs'."""
    rows = np.array([row for table in tables for row in table], dtype=float).reshape(-1, 3)
    at = np.minimum((rows[:, 0] * bins).astype(int), bins - 1)
    pooled = []
    for b in np.unique(at):
        score, share, count = rows[at == b].T
        weights = count / count.sum()
        pooled.append((float(score @ weights), float(share @ weights), int(count.sum())))
    return pooled


def _same(
    settings: CompareSettings, prepared: Prepared, cells: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """Yields a sentence for each two arms that are not compared, since they are the same runs."""
    for pair in _pairs(settings):
        found = [i for i, cell in enumerate(cells) if pair in cell["same_runs"]]
        names = ", ".join(prepared.plan.cells[i].name for i in found)
        where = f" ({names})" if names and len(found) < len(cells) else ""
        if found:
            yield (
                f"{pair[0]} and {pair[1]} are the same runs{where}: what tells their settings apart has no "
                "effect on a run, and there is nothing to compare."
            )


def _cautions(prepared: Prepared, scores: Scores) -> list[str]:
    found = []
    places = {(cell, seed) for cell, _, seed in scores}
    for cell, seed in sorted(places):
        runs = {a: s for (c, a, x), s in scores.items() if (c, x) == (cell, seed)}
        if not same_start(runs):
            found.append(
                f"Seed {seed}{_where(prepared, cell)}: the arms did not start from the same weights."
            )
    return found


def _where(prepared: Prepared, cell: int) -> str:
    name = prepared.plan.cells[cell].name
    return f" ({name})" if name else ""


def plain(value: Any) -> Any:
    """Returns a value for JSON: numbers that are not finite become None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
