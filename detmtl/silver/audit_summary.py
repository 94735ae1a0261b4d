"""What an audit says at the thresholds of a selection, as plain values for JSON: what its page shows.

It stands beside the raw audit, which knows no threshold and serves every selection.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from detmtl.silver.audit import Audit, audit_folder
from detmtl.silver.audit_estimates import Reliability
from detmtl.silver.audit_measures import Calibrate, Row
from detmtl.silver.map_measures import MapMeasures
from detmtl.silver.parts import atomic_write
from detmtl.silver.policy import Policy
from detmtl.silver.tag_measures import TagMeasures


def write_summary(store: Path, gold_hash: str, summary: dict[str, Any]) -> Path:
    """Writes summary.json beside the audit that it is about, and returns where."""
    path = audit_folder(store, gold_hash) / "summary.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(summary, indent=1, allow_nan=False, ensure_ascii=False)
    atomic_write(path, text.encode())
    return path


def box_summary(audit: Audit, policy: Policy, calibrate: Calibrate | None) -> dict[str, Any]:
    """Returns what there is to say of boxes.

    Args:
        audit: of the labels that the policy chooses from.
        policy: gives thresholds, ignore band and coverage.
        calibrate: as for the page: honest probabilities of the audited boxes; None: there are none.
    """
    limits, lower = (
        dict(zip(audit.classes, x.tolist(), strict=True)) for x in (policy.limits, policy.lower)
    )
    measures = audit.measures(limits)
    sure = None if calibrate is None else measures.probabilities(calibrate)
    found = measures.summary()
    for name, own in [("", found["all"]), *found["per_class"].items()]:
        c = audit.classes.index(name) if name else None
        after = None if sure is None else _number(measures.reliability(c, sure).error())
        own["calibration_error_after"] = after
        own["ignore_band"] = None
        if policy.settings.ignore_from is not None:
            own["ignore_band"] = asdict(measures.band(lower, c))
            if c is not None:
                own["ignored_from"] = _number(lower[name])
    gold, silver = measures.per_picture()
    return {
        **_head(audit, audit.problems(limits), policy.settings.model_dump(mode="json")),
        **found,
        "pictures_with_more_silver": int((silver > gold).sum()),
        "pictures_with_less_silver": int((silver < gold).sum()),
        "coverage": dict(policy.coverage),
        "coverage_is": coverage_words(policy),
        "by_score": [{"scores": row.name, **_shares(row)} for row in measures.by_score()],
        "reliability": _bins(measures.reliability()),
        "reliability_after": None if sure is None else _bins(measures.reliability(None, sure)),
    }


def coverage_words(policy: Policy | None) -> str:
    """Returns what the coverage of an audit's page and summary is; None: of no policy."""
    if policy is not None and policy.settings.coverage is not None:
        return "Coverage is what the selection's `coverage` says, whatever recall is."
    words = (
        "Coverage is the recall that training uses: with the boxes of the ignore band, and leaning on the "
        "recall of all classes, which counts as ten boxes of the class's own."
    )
    if policy is not None and policy.settings.ignore_budget is not None:
        words += (
            " Where `ignore_budget` lets the band of a selection begin at a higher score, training uses "
            "less: the selection's stats.json says how much."
        )
    return words


def map_summary(
    measures: MapMeasures,
    settings: dict[str, Any],
    calibrated: Sequence[np.ndarray] | None,
) -> dict[str, Any]:
    """Returns what there is to say of maps.

    Args:
        measures: the audit at thresholds.
        settings: of the selection, as plain values.
        calibrated: as for the page; None: there are none.
    """
    audit, iou, found = measures.audit, measures.iou(), measures.found()
    true, given = measures.pixels.sum(1), measures.pixels.sum(0)
    stated = settings["coverage"]
    every = max(1, int(measures.pixels.sum()))
    classes = {
        audit.classes[c]: {
            "known": bool(audit.known[c]),
            "threshold": _number(measures.limits[c]),
            **_shares(measures.row("", c)),
            **_errors(measures, c, calibrated),
            "iou": _number(iou[c]),
            "coverage": _number(stated if audit.known[c] and stated is not None else found[c]),
            "gold_share": _number(true[c] / every),
            "silver_share": _number(given[c] / every),
        }
        for c in measures.classes()
    }
    return {
        **_head(audit, measures.problems(), settings),
        "all": {**_shares(measures.row("")), **_errors(measures, None, calibrated)},
        "per_class": classes,
        "pixels": measures.pixels.tolist(),
        "pixels_are": [*audit.classes, "none of the classes"],
        **_reliabilities(measures, calibrated),
    }


def tag_summary(
    measures: TagMeasures,
    settings: dict[str, Any],
    calibrated: Sequence[np.ndarray] | None,
) -> dict[str, Any]:
    """Returns what there is to say of tags; arguments as of `map_summary`."""

    def about(t: int | None) -> dict[str, Any]:
        return {
            **_shares(measures.row("", t)),
            **_errors(measures, t, calibrated),
            "absent": measures.absent(t).plain(),
            "unknown": _number(measures.doubtful(t)),
        }

    audit, policy = measures.audit, measures.policy
    limits = {"absent_below": policy.low, "shown_from": policy.high}
    return {
        **_head(audit, measures.problems(), settings),
        "all": about(None),
        "per_tag": {
            audit.tags[t]: {n: _number(x[t]) for n, x in limits.items()} | about(t)
            for t in measures.classes()
        },
        **_reliabilities(measures, calibrated),
    }


def _head(audit: Any, problems: list[str], settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "pictures": audit.pictures,
        "missing": audit.missing,
        "gold_hash": audit.gold_hash,
        "store_digest": audit.store_digest,
        "problems": problems,
        "settings": settings,
    }


def _shares(row: Row) -> dict[str, Any]:
    return {"precision": row.precision.plain(), "recall": row.recall.plain()}


def _errors(
    measures: MapMeasures | TagMeasures, c: int | None, calibrated: Sequence[np.ndarray] | None
) -> dict[str, float | None]:
    after = None if calibrated is None else measures.reliability(c, calibrated).error()
    return {
        "calibration_error": _number(measures.reliability(c).error()),
        "calibration_error_after": _number(after),
    }


def _reliabilities(
    measures: MapMeasures | TagMeasures, calibrated: Sequence[np.ndarray] | None
) -> dict[str, Any]:
    after = None if calibrated is None else _bins(measures.reliability(None, calibrated))
    return {"reliability": _bins(measures.reliability()), "reliability_after": after}


def _bins(found: Reliability) -> list[dict[str, float | None]]:
    columns = (found.counts, found.score, found.share, found.observations)
    return [
        dict(zip(("labels", "score", "share", "observations"), map(_number, row), strict=True))
        for row in zip(*columns, strict=True)
    ]


def _number(value: Any) -> float | None:
    return None if value is None or not np.isfinite(value) else round(float(value), 5)
