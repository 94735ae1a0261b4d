"""From finished runs to what a transfer report says, as plain values for JSON.

Everything that is called an effect, a gain or a difference is positive where it is better, whatever the
metric.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from detmtl.comparing.contrast import Difference, Runs, common_seeds, contrast, relative, share
from detmtl.comparing.plan import effort
from detmtl.comparing.results import plain
from detmtl.comparing.statistics import (
    Estimate,
    Verdict,
    level_left,
    over_seeds,
    seeds_alone,
    verdicts,
)
from detmtl.comparing.transfer_plan import WIDE, Arm, Transfer, alone, probe, together, with_noise
from detmtl.comparing.transfer_settings import TransferSettings
from detmtl.comparing.transfer_words import Evidence, named, seeds_needed, solved
from detmtl.engine.diagnosis import FILE, TRUNK, means, read_records

Question = tuple[str, tuple[str, ...]]
"""A task, and the others that it is trained with."""


@dataclass(frozen=True)
class Judged:
    """A difference and what may be said of it.

    Attributes:
        difference: positive is better.
        verdict: after correction for all of its kind in one variant.
        level: what its probability must reach for a word, see `level_left`.
    """

    difference: Difference
    verdict: Verdict
    level: float

    def told(self) -> dict[str, Any]:
        """Returns plain values."""
        return {
            "values": {str(s): v for s, v in self.difference.values.items()},
            "seeds": asdict(self.difference.seeds),
            "pictures": asdict(self.difference.pictures),
            **asdict(self.verdict),
        }


def transfer_result(
    settings: TransferSettings, transfer: Transfer, scores: Mapping[int, Runs], folder: Path
) -> dict[str, Any]:
    """Returns all that is found; numbers that are not known are None.

    Args:
        settings: of the report.
        transfer: its plan.
        scores: variant's position -> finished runs.
        folder: of the runs, whose diagnosis.jsonl are read.
    """
    variants = [
        _variant(settings, transfer, i, scores.get(i, {}), folder)
        for i in range(len(transfer.prepared.plan.cells))
    ]
    cautions = list(transfer.prepared.cautions)
    cautions += seeds_alone(effect for variant in variants for effect in variant["effects"])
    return plain(
        {
            "tasks": {n: {"metric": t.metric, "sign": t.sign} for n, t in settings.tasks.items()},
            "target": settings.target,
            "wide": settings.wide,
            "duplicate": settings.duplicate,
            "resamples": settings.resamples,
            "cautions": cautions,
            "variants": variants,
        }
    )


def _variant(
    settings: TransferSettings, transfer: Transfer, position: int, runs: Runs, folder: Path
) -> dict[str, Any]:
    pictures, scored_on = transfer.prepared.scored[position]
    gradients = {
        together(g): gradients_of([folder / s.key for s in runs[together(g)].values()])
        for g in settings.groups()
        if together(g) in runs
    }
    asked = [q for q in settings.questions() if _known(settings, runs, q)]
    found, overlaps = _Answers.of(settings, runs, asked), _overlaps(settings, runs)
    return {
        "name": transfer.prepared.plan.cells[position].name,
        "pictures": len(pictures),
        "scored_on": scored_on,
        "arms": {
            arm.name: _arm(settings, transfer, position, arm, runs[arm.name])
            for arm in transfer.arms
            if runs.get(arm.name)
        },
        "effects": [
            _effect(
                settings, runs, q, found, overlaps.get(q), gradients[together(group(settings, q))]
            )
            for q in asked
        ],
        "overlaps": [
            {
                "task": task,
                "other": other,
                "overlap": asdict(overlap),
                "solved": solved(overlap, settings.duplicate),
            }
            for (task, (other,)), overlap in overlaps.items()
        ],
        "delta_m": {
            together(g): asdict(delta_m(settings, runs, g))
            for g in settings.groups()
            if together(g) in runs
        },
        "gradients": gradients,
    }


@dataclass(frozen=True)
class _Answers:
    """Question -> what is judged of it; each kind is corrected for the number of its questions."""

    effect: Mapping[Question, Judged]
    noise: Mapping[Question, Judged]
    beyond_noise: Mapping[Question, Judged]
    wide: Mapping[Question, Judged]
    widened: Mapping[Question, Judged]
    width: Mapping[Question, Judged]

    @classmethod
    def of(cls, settings: TransferSettings, runs: Runs, asked: Sequence[Question]) -> "_Answers":
        def each(parts: Mapping[Question, Mapping[str, float]]) -> dict[Question, Judged]:
            return judged(settings, runs, {q: p for q, p in parts.items() if {*p} <= {*runs}})

        pair = {q: together(group(settings, q)) for q in asked}
        noise = {q: with_noise(q[0], q[1][0]) for q in asked if len(q[1]) == 1}
        return cls(
            effect=each({q: {pair[q]: 1, alone(q[0]): -1} for q in asked}),
            noise=each({q: {arm: 1, alone(q[0]): -1} for q, arm in noise.items()}),
            beyond_noise=each({q: {pair[q]: 1, arm: -1} for q, arm in noise.items()}),
            wide=each({q: {pair[q] + WIDE: 1, alone(q[0]) + WIDE: -1} for q in asked}),
            widened=each(
                {
                    q: {pair[q] + WIDE: 1, alone(q[0]) + WIDE: -1, pair[q]: -1, alone(q[0]): 1}
                    for q in asked
                }
            ),
            width=each({q: {pair[q] + WIDE: 1, pair[q]: -1} for q in asked}),
        )


def judged(
    settings: TransferSettings, runs: Runs, parts: Mapping[Question, Mapping[str, float]]
) -> dict[Question, Judged]:
    """Returns what may be said of contrasts of the questions' tasks, judged together."""
    differences = {}
    for question, of in parts.items():
        task = settings.tasks[question[0]]
        signed = {arm: factor * task.sign for arm, factor in of.items()}
        differences[question] = contrast(runs, signed, task.metric)
    said = verdicts([(d.seeds, d.pictures) for d in differences.values()])
    level = level_left([v.corrected for v in said])
    return {q: Judged(d, v, level) for (q, d), v in zip(differences.items(), said, strict=True)}


def group(settings: TransferSettings, question: Question) -> tuple[str, ...]:
    """Returns the tasks of a question in the order of the settings."""
    return tuple(t for t in settings.tasks if t == question[0] or t in question[1])


def _known(settings: TransferSettings, runs: Runs, question: Question) -> bool:
    """Returns whether a seed is finished both together and alone: our own baseline, or no number."""
    arms = [together(group(settings, question)), alone(question[0])]
    return bool(common_seeds(runs, arms, settings.tasks[question[0]].metric))


def _overlaps(settings: TransferSettings, runs: Runs) -> dict[Question, Estimate]:
    """Returns (task, the other) -> the share of what the other's own training gives that a head on the task's
    frozen trunk has, where the heads are finished."""
    found: dict[Question, Estimate] = {}
    for task, other in settings.overlaps():
        way = (probe(other, task), probe(other, None), alone(other))
        if {*way[:2]} <= {*runs}:
            found[task, (other,)] = share(runs, way, settings.tasks[other].metric)
    return found


def delta_m(settings: TransferSettings, runs: Runs, tasks: Sequence[str]) -> Estimate:
    """Returns the mean over tasks of what each gains together, as a share of what it has alone, over seeds;
    unknown unless every task has its own baseline.

    Source: Maninis et al. 2019, arXiv 1904.08918, eq. 4; the baseline is here the mean over seeds, lest
    a seed that fails alone decide everything.
    """
    arm, per_task = together(tasks), []
    for name in tasks:
        task = settings.tasks[name]
        values = contrast(runs, {arm: task.sign, alone(name): -task.sign}, task.metric).values
        whole = [runs[alone(name)][s].metrics[task.metric] for s in values]
        mean = abs(float(np.mean(whole))) if whole else 0.0
        per_task.append({s: v / mean for s, v in values.items()} if mean > 0 else {})
    seeds = sorted(set.intersection(*(set(of) for of in per_task)))
    return over_seeds([float(np.mean([of[s] for of in per_task])) for s in seeds])


def _effect(
    settings: TransferSettings,
    runs: Runs,
    question: Question,
    found: _Answers,
    overlap: Estimate | None,
    gradients: Mapping[str, Any],
) -> dict[str, Any]:
    """Returns the numbers, the word and the advice on one question."""
    name, others = question
    task, effect = settings.tasks[name], found.effect[question]
    pictures = effect.difference.pictures
    pair = {together(group(settings, question)): task.sign, alone(name): -task.sign}
    evidence = Evidence(
        name,
        others,
        effect.verdict.word,
        seeds_needed([*effect.difference.values.values()], effect.level),
        pictures.known and pictures.p > effect.level,
        noise=_word(found.noise, question),
        beyond_noise=_word(found.beyond_noise, question),
        wide=_word(found.wide, question),
        widened=_word(found.widened, question),
        width=_word(found.width, question),
        overlap=overlap,
        cosine=_cosine(gradients, name, others),
        loudness=_loudness(gradients, name, others),
    )
    said = named(evidence, settings.duplicate)
    return {
        "task": name,
        "others": list(others),
        "metric": task.metric,
        "relative": asdict(relative(runs, pair, task.metric, alone(name))),
        **effect.told(),
        **{
            kind: None if question not in of else of[question].told()
            for kind, of in (
                ("noise", found.noise),
                ("beyond_noise", found.beyond_noise),
                ("wide", found.wide),
                ("widened", found.widened),
                ("width", found.width),
            )
        },
        "overlap": None if overlap is None else asdict(overlap),
        "solved": solved(overlap, settings.duplicate),
        "cosine": evidence.cosine,
        "loudness": evidence.loudness,
        "name": said.word,
        "because": said.because,
        "advice": said.advice,
    }


def _word(of: Mapping[Question, Judged], question: Question) -> Any:
    return of[question].verdict.word if question in of else None


def gradients_of(folders: Sequence[Path]) -> dict[str, Any]:
    """Returns what the runs of one arm saw of their tasks' gradients: `cosine` and `norm`, stage -> name ->
    estimate over runs of each run's mean."""
    found: dict[str, Any] = {"runs": 0}
    records = [r for r in (read_records(folder / FILE) for folder in folders) if r]
    found["runs"] = len(records)
    for kind in ("cosine", "norm"):
        per_run = [means(of, kind) for of in records]
        found[kind] = {
            stage: {
                name: asdict(
                    over_seeds([run[stage][name][0] for run in per_run if name in run[stage]])
                )
                for name in dict.fromkeys(n for run in per_run for n in run[stage])
            }
            for stage in (per_run[0] if per_run else ())
        }
    return found


def _cosine(gradients: Mapping[str, Any], task: str, others: Sequence[str]) -> float:
    """Returns the lowest cosine on the trunk of the task with one of the others."""
    on_trunk = gradients["cosine"].get(TRUNK, {})
    of = [on_trunk.get(f"{task}/{o}") or on_trunk.get(f"{o}/{task}") for o in others]
    return min((e["mean"] for e in of if e), default=math.nan)


def _loudness(gradients: Mapping[str, Any], task: str, others: Sequence[str]) -> float:
    norms = {name: e["mean"] for name, e in gradients["norm"].get(TRUNK, {}).items()}
    if not norms.get(task):
        return math.nan
    return max((norms[o] / norms[task] for o in others if o in norms), default=math.nan)


def _arm(
    settings: TransferSettings, transfer: Transfer, position: int, arm: Arm, runs: Mapping[int, Any]
) -> dict[str, Any]:
    plan = transfer.prepared.plan
    run = plan.runs[plan.at[position, arm.name, next(iter(runs))]]
    steps, pictures = effort(run.settings)
    metrics = [settings.tasks[t].metric for t in arm.tasks if t != arm.noise]
    return {
        "tasks": list(arm.tasks),
        "noise": arm.noise,
        "wide": arm.wide,
        "frozen": arm.frozen,
        "sources": run.settings.mix_sources(),
        "steps": steps,
        "pictures_per_step": pictures,
        "runs": {str(seed): s.key for seed, s in runs.items()},
        "metrics": {
            m: {
                "estimate": asdict(over_seeds([s.metrics.get(m, math.nan) for s in runs.values()])),
                "values": {str(seed): s.metrics.get(m) for seed, s in runs.items()},
            }
            for m in metrics
        },
        "seconds_per_step": _median([s.seconds_per_step for s in runs.values()]),
        "peak_bytes": _median([s.peak_bytes for s in runs.values()]),
    }


def _median(values: Sequence[float]) -> float | None:
    known = [v for v in values if not math.isnan(v)]
    return float(np.median(known)) if known else None
