"""What one finished run says: its scores, its matches to truth, its time.

Letters: B resamples of the pictures.
"""

import json
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from detmtl.comparing.bootstrap import MATCHES, resampled
from detmtl.comparing.plan import Plan
from detmtl.config import RunSettings
from detmtl.data.source import Source
from detmtl.engine.recorder import read_metrics
from detmtl.metrics.coco import boxes_of, truth_rows
from detmtl.metrics.matches import Matches, match, reliability
from detmtl.structures.labels import BoxLabels

F1 = "/F1@.5"


@dataclass(frozen=True, eq=False)
class RunScores:
    """A finished run.

    Attributes:
        key: of the run.
        metrics: `task/metric` -> value; `task/ECE`, the calibration error, among them.
        resampled: `task/metric` -> (B,) values on resampled pictures, for those that have them.
        reliability: per bin (mean score, share that is right, detections).
        seconds: of the whole run; NaN where it was continued after a kill.
        seconds_per_step: median; NaN where nothing was trained.
        start: hash of its first weights, or "".
        peak_bytes: the most memory that its process had (on a GPU: of the device); NaN where not known.
    """

    key: str
    metrics: Mapping[str, float]
    resampled: Mapping[str, np.ndarray]
    reliability: list[tuple[float, float, int]]
    seconds: float
    seconds_per_step: float
    start: str
    peak_bytes: float = math.nan


def is_done(folder: Path) -> bool:
    """Returns whether the job of a folder is done."""
    return (folder / "done.json").is_file()


def read_scores(folder: Path, resamples: int) -> RunScores:
    """Returns what a finished run says; resampling is kept in its folder.

    Args:
        folder: of the run.
        resamples: B.
    """
    facts = json.loads((folder / "done.json").read_text())
    metrics = {
        name: float("nan") if value is None else float(value)
        for name, value in json.loads((folder / "metrics.json").read_text()).items()
    }
    boxes = None
    table: list[tuple[float, float, int]] = []
    # the first task of boxes: its results are the run's detections.json
    scored = [n.removesuffix(F1) for n in metrics if n.endswith(F1) and n.count("/") == 1]
    task = next((name for name in scored if f"{name}/AP50" in metrics), None)  # tags have F1 too
    if task is not None and (folder / MATCHES).is_file():
        matches = Matches.load(folder / MATCHES)
        metrics[f"{task}/ECE"], table = reliability(matches)
        boxes = task, matches
    return RunScores(
        key=folder.name,
        metrics=metrics,
        resampled=resampled(folder, boxes, resamples),
        reliability=table,
        seconds=float("nan") if facts["continued"] else facts["seconds"],
        seconds_per_step=_seconds_per_step(folder / "metrics.jsonl"),
        start=facts.get("start", ""),
        peak_bytes=facts.get("peak_bytes") or math.nan,
    )


def read_finished(plan: Plan, out: Path, resamples: int) -> dict[tuple[int, str, int], RunScores]:
    """Returns (cell's position, arm, seed) -> what its run says, where that is finished; one run's is one
    object, however many places have it.

    Args:
        plan: of a comparison.
        out: its folder.
        resamples: B.
    """
    done = [key for key in dict.fromkeys(plan.at.values()) if is_done(out / "runs" / key)]
    found = {key: read_scores(out / "runs" / key, resamples) for key in done}
    return {place: found[key] for place, key in plan.at.items() if key in found}


def write_matches(settings: RunSettings, folder: Path) -> None:
    """Matches a run's detections to the truth that it was scored against, and keeps that."""
    if not (folder / "detections.json").is_file():
        return
    source = final_source(settings, folder / "cache")
    if source.annotations is not None:
        match_file(source, folder / "detections.json").save(folder / MATCHES)


def final_source(settings: RunSettings, cache: Path) -> Source:
    """Returns the pictures that a run's final scores are of, as the run itself reads them."""
    data = settings.data
    name, source = ("val", data.val) if data.test is None else ("test", data.test)
    return source.load(
        name, data.root, data.label_space(), cache, data.maps, data.tags, data.details
    )


def match_file(source: Source, detections: Path) -> Matches:
    """Returns the matches of a run's results file, as `CocoMetric` would have them: pictures whose boxes
    nobody looked for do not count."""
    truths: dict[int, BoxLabels] = {}
    for i in np.argsort(source.ids, kind="stable"):
        labels = source.labels(int(i)).get("boxes")
        if isinstance(labels, BoxLabels):
            truths[int(source.ids[i])] = labels
    found: dict[int, list[list[float]]] = {i: [] for i in truths}
    for row in json.loads(detections.read_text()):
        if row["image_id"] in found:
            box = [row["category_id"] - 1, *row["bbox"], row["score"], 0]
            found[row["image_id"]].append(box)
    rows = [np.reshape(np.array(found[i], dtype=float), (-1, 7)) for i in truths]
    true = [truth_rows(t, r[:, 0]) for t, r in zip(truths.values(), rows, strict=True)]
    return match(boxes_of(true), boxes_of(rows), len(rows), source.classes)


def _seconds_per_step(path: Path) -> float:
    """Returns the median over the recorded stretches of a training."""
    seconds, last = [], 0
    for record in read_metrics(path):
        spent = [v for k, v in record.items() if k.startswith("time/") and v is not None]
        if spent and record["step"] > last:
            seconds.append(sum(spent) / (record["step"] - last))
            last = record["step"]
    return statistics.median(seconds) if seconds else math.nan


def same_start(scores: Mapping[str, RunScores]) -> bool:
    """Returns whether the networks of one seed were built with the same weights; a student that goes on from
    its teacher's (`burn_in`) counts as it was built."""
    return len({s.start for s in scores.values() if s.start}) <= 1
