"""What the page of an audit of boxes shows, section by section."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from detmtl.data.source import Source
from detmtl.report.audit_pictures import missed_pictures, refuted_pictures
from detmtl.report.audit_plots import (
    band_plot,
    density_plot,
    reliability_plot,
    shares_plot,
    size_plot,
    threshold_plot,
)
from detmtl.report.page import Shaded, gallery, table
from detmtl.silver.audit_estimates import Reliability
from detmtl.silver.audit_measures import SIZES, Calibrate, Measures, Share
from detmtl.silver.audit_summary import coverage_words
from detmtl.silver.comparison import Fault
from detmtl.silver.policy import Policy

if TYPE_CHECKING:
    from markupsafe import Markup

PICTURES = 12
"""So many disagreements of each kind are shown."""
CLASSES = 30
"""So many classes, those with the most gold boxes, are in plots and in the confusion matrix."""


def named(measures: Measures) -> list[tuple[str, int | None]]:
    """Returns (name, class) of the classes, those with the most gold boxes first, and of all together."""
    counts = measures.audit.gold_boxes
    order = sorted(measures.classes(), key=lambda c: -counts[c])
    return [*((measures.audit.classes[c], c) for c in order), ("all", None)]


def classes(
    measures: Measures,
    ignore_from: float | Mapping[str, float] | None,
    policy: Policy | None,
) -> "Iterator[str | Markup]":
    """Yields precision, recall and coverage of each class."""
    audit, every = measures.audit, named(measures)
    if policy is None:
        lower = np.inf if ignore_from is None else audit.limits(ignore_from)
        lowest = np.minimum(measures.limits, lower).tolist()
        coverage = audit.recall_at(dict(zip(audit.classes, lowest, strict=True)))
    else:
        coverage = policy.coverage
    rows = []
    for name, c in every:
        row = measures.row(name, c)
        error = measures.reliability(c).error()
        limit = None if c is None else limit_cell(measures.limits[c])
        cover = None if c is None else f"{coverage[name]:.2f}"
        shares = shaded(row.precision), shaded(row.recall)
        wrong = f"{error:.3f}" if error == error else None
        rows.append([name, row.recall.count, row.precision.count, limit, *shares, cover, wrong])
    shown = [*every[: CLASSES - 1], every[-1]] if len(every) > CLASSES else every
    yield shares_plot([measures.row(name, c) for name, c in shown])
    yield table(
        rows,
        [
            "class",
            "gold",
            "silver",
            "from score",
            "precision",
            "recall",
            "coverage",
            "calibration error",
        ],
        total=True,
    )
    yield (
        f"{coverage_words(policy)} The calibration error is over all of the teacher's boxes, also those "
        "below the threshold."
    )


def sizes(measures: Measures) -> "Iterator[str | Markup]":
    """Yields precision and recall by size."""
    yield size_plot(measures)
    rows = []
    for name, c in named(measures)[-1:] + named(measures)[:CLASSES][:-1]:
        cells = [measures.row(size, c, i) for i, (size, _, _) in enumerate(SIZES)]
        rows.append(
            [name, *(shaded(r.precision) for r in cells), *(shaded(r.recall) for r in cells)]
        )
    sizes = [size for size, _, _ in SIZES]
    yield table(
        rows, ["class", *(f"precision {s}" for s in sizes), *(f"recall {s}" for s in sizes)]
    )
    yield (
        "Small: up to 32 x 32 pixels, medium: up to 96 x 96. A label counts by its own size, an object by "
        "gold's."
    )


def scores(measures: Measures, calibrate: Calibrate | None) -> "Iterator[str | Markup]":
    """Yields what the scores are worth."""
    before = measures.reliability()
    probabilities = None if calibrate is None else measures.probabilities(calibrate)
    after = None if calibrate is None else measures.reliability(probabilities=probabilities)
    yield from reliability(before, after, "boxes")
    yield threshold_plot(measures)
    rows = [[row.name, row.precision.count, shaded(row.precision), shaded(row.recall)]
            for row in measures.by_score() if row.precision.count]  # fmt: skip
    yield table(rows, ["score", "boxes", "precision in this range", "recall from its lower end on"])


def reliability(
    before: Reliability, after: Reliability | None, what: str
) -> "Iterator[str | Markup]":
    """Yields the diagram of reliability and the expected calibration errors, before and after calibration."""
    yield reliability_plot(before, after, what)
    words = (
        f"Expected calibration error {before.error():.3f}; perfectly calibrated scores of as many {what} "
        f"would have about {before.noise():.3f}."
    )
    if after is not None:
        words += f" After calibration {after.error():.3f}."
    yield words


def density(measures: Measures) -> "Iterator[str | Markup]":
    """Yields how many boxes pictures have, in gold and in silver."""
    gold, silver = measures.per_picture()
    yield density_plot(gold, silver)
    in_gold, in_silver = measures.density
    more, fewer = int((silver > gold).sum()), int((silver < gold).sum())
    yield (
        f"Silver has {in_silver:.2f} boxes a picture and gold {in_gold:.2f}, each class in the pictures that "
        f"somebody searched for it; silver has more in {more} of {len(gold)} pictures, fewer in {fewer}."
    )


def places(measures: Measures) -> "Iterator[str | Markup]":
    """Yields whether right boxes are shifted, too large or too small."""
    rows = []
    for name, c in named(measures):
        found = measures.localization(c)
        if not found["boxes"]:
            continue
        cells = [f"{mean:+.3f} ± {sd:.3f}" for mean, sd in (found["right"], found["down"])]
        cells += [
            f"{np.exp(mean):.2f} (x/÷ {np.exp(sd):.2f})" if sd == sd else f"{np.exp(mean):.2f}"
            for mean, sd in (found["log_width"], found["log_height"])
        ]
        rows.append([name, found["boxes"], *cells])
    yield table(
        rows, ["class", "right labels", "to the right", "down", "width", "height"], total=True
    )
    wrong = measures.localization(fault=Fault.PLACE)
    yield (
        "Mean and standard deviation over right labels: of the center as a share of gold's width and height, "
        "and of the size as a multiple of gold's. Boxes that are off by more are no right labels and show "
        f"here: {wrong['boxes']} labels overlap an object of their class by an IoU of 0.1 to 0.5"
        + (
            f"; they are {np.exp(wrong['log_width'][0]):.2f} times as wide and "
            f"{np.exp(wrong['log_height'][0]):.2f} times as high as gold's."
            if wrong["boxes"]
            else "."
        )
    )


def band(
    measures: Measures, ignore_from: float | Mapping[str, float] | None
) -> "Iterator[str | Markup]":
    """Yields what the ignore band rescues and costs."""
    yield (
        "Boxes of an ignore band, below the threshold, are neither objects nor background: an object that no "
        "label finds is not taught as background (rescued), and background that the teacher doubts teaches "
        "nothing (the cost). Each box silences about as many anchors as a label of its size makes positive."
    )
    lower = None if ignore_from is None else measures.audit.limits(ignore_from)
    yield band_plot(measures, lower)
    if ignore_from is None:
        yield "This selection has no band."
        return
    rows = []
    for name, c in named(measures):
        band = measures.band(ignore_from, c)
        if band.missed or band.boxes:
            rows.append([name, band.missed, band.rescued, band.boxes, band.background, band.other])
    columns = [
        "class",
        "objects without a label",
        "rescued",
        "boxes in the band",
        "background",
        "other",
    ]
    yield table(rows, columns, total=True)


def faults(measures: Measures) -> "Iterator[str | Markup]":
    """Yields what is wrong with the labels that gold refutes."""
    words = {"twice": "object found twice", "class": "another class", "place": "badly placed"}
    words["nothing"] = "background"
    rows = []
    for name, c in named(measures):
        faults, labels = measures.faults(c), measures.row(name, c).precision
        cells = [Shaded(str(k), k / max(1, labels.count)) if k else None for k in faults.values()]
        rows.append([name, labels.count, labels.hits, *cells])
    columns = [words[fault.name.lower()] for fault in Fault if fault]
    yield table(rows, ["class", "labels", "right", *columns], total=True)
    yield (
        "What the teacher calls gold's boxes (rows: gold's class; columns: the class of its surest box on "
        "them, however unsure):"
    )
    yield _confusion(measures)


def _confusion(measures: Measures) -> "Markup":
    audit = measures.audit
    order = np.argsort(-audit.gold_boxes, kind="stable")
    rows_of = [c for c in order[:CLASSES] if audit.gold_boxes[c]]
    used = audit.confusion[rows_of].sum(axis=0)
    columns = [c for c in order if used[c] or c in rows_of][:CLASSES]
    rows = []
    for c in rows_of:
        gold, row = int(audit.gold_boxes[c]), audit.confusion[c]
        cells = [Shaded(str(row[k]), float(row[k] / gold)) if row[k] else "" for k in columns]
        other, missed = int(row.sum() - row[columns].sum()), gold - int(row.sum())
        cells.append(Shaded(str(missed), missed / gold) if missed else "")
        if len(columns) < np.count_nonzero(used):
            cells.append(str(other) if other else "")
        rows.append([audit.classes[c], *cells])
    names = [audit.classes[k] for k in columns]
    return table(rows, ["gold", *names, "nothing", "others"][: len(rows[0]) if rows else 1])


def pictures(measures: Measures, gold: Source) -> "Iterator[str | Markup]":
    """Yields the worst disagreements."""
    refuted = refuted_pictures(measures, gold, PICTURES)
    yield (
        "The surest labels that gold refutes. Silver boxes are the teacher's, golden ones people's. Some of "
        "these are gold's mistakes."
        if refuted
        else "Gold refutes no label."
    )
    if refuted:
        yield gallery(refuted)
    missed = missed_pictures(measures, gold, PICTURES)
    yield "The largest objects without a label." if missed else "Every object has a label."
    if missed:
        yield gallery(missed)


def shaded(share: Share) -> Shaded | None:
    """Returns a share as a cell of a table; None of nothing."""
    return Shaded(str(share), share.value) if share.count else None


def limit_cell(limit: float) -> str | None:
    """Returns a threshold as a cell of a table; None where no score is enough."""
    return f"{limit:.2f}" if np.isfinite(limit) else None
