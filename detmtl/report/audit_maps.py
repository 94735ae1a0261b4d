"""The page of an audit of maps.

Letters: C classes, H and W pixels.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision.transforms.v2.functional import resize

from detmtl.data.source import Source
from detmtl.engine.drawing import draw, side_by_side
from detmtl.report.audit_page import audit_page, listed, percent
from detmtl.report.audit_pictures import file_name
from detmtl.report.audit_plots import shares_plot
from detmtl.report.audit_sections import CLASSES, PICTURES, limit_cell, reliability, shaded
from detmtl.report.page import Section, Shaded, gallery, note, picture, require, table
from detmtl.silver.map_audit import LEAST_MAPS
from detmtl.silver.map_measures import Disagreement, MapMeasures
from detmtl.structures.labels import MapLabels

if TYPE_CHECKING:
    from markupsafe import Markup

SIDE = 360
"""The longer side of each of three pictures that stand side by side, in pixels."""


def maps_page(
    measures: MapMeasures,
    gold: Source,
    silver: Mapping[int, MapLabels],
    teacher: str,
    calibrated: Sequence[np.ndarray] | None = None,
) -> str:
    """Returns the page.

    Args:
        measures: the audit against `gold` at the thresholds of the selection.
        gold: what the audit was made with; its pictures and maps are read for the worst disagreements.
        silver: the labels of the pictures in `measures.worst(PICTURES)`, by their positions in gold.
        teacher: its name.
        calibrated: the probabilities of the labels in the audit's evidence, each fitted without its own
            part; None: none could be fitted.

    Raises:
        InputError: Jinja2 or matplotlib is not installed, or a picture cannot be read.
    """
    require()
    audit, every = measures.audit, measures.row("all")
    before = measures.reliability()
    error = before.error()
    iou = measures.mean_iou()
    facts = [
        (str(audit.pictures), "gold pictures"),
        (f"{iou:.2f}" if iou == iou else percent(iou), "mean IoU"),
        (percent(every.precision.value), "of the silver pixels are right"),
        (percent(every.recall.value), "of gold's pixels of the teacher's classes are found"),
        (
            f"{error:.3f}" if audit.graded else percent(np.nan),
            "calibration error of the confidence",
        ),
    ]
    after = None if calibrated is None else measures.reliability(probabilities=calibrated)
    confidence = list(reliability(before, after, "pixels"))
    if not audit.graded:
        confidence = ["The teacher gives hard maps: it does not say how sure it is."]
    sections = [
        Section("Classes", list(_classes(measures))),
        Section("Confidence", confidence),
        Section("Confusion", list(_confusion(measures))),
        Section("Worst disagreements", list(_pictures(measures, gold, silver))),
    ]
    return audit_page(
        f"Silver maps of '{teacher}' against gold of '{gold.name}'",
        measures.problems(),
        facts,
        list(_remarks(measures)),
        sections,
        f"Labels {audit.store_digest}, gold {audit.gold_hash}, audit {audit.digest()}.",
    )


def _remarks(measures: MapMeasures) -> "Iterator[str | Markup]":
    audit = measures.audit
    yield (
        "A pixel is right where gold gives it the same class. In brackets: 95 % intervals (Wilson), of as "
        "many observations as the pixels are worth: those of one picture resemble each other, so that it "
        "is the pictures that tell."
    )
    if audit.missing:
        yield note(f"{audit.missing} more gold pictures are not in the store.", "warn")
    counts = zip(audit.classes, measures.shown, strict=True)
    if few := [name for name, shown in counts if 0 < shown < LEAST_MAPS]:
        yield note(
            f"Shown in fewer than {LEAST_MAPS} gold pictures: {listed(few)}. Their own numbers say "
            "little; weights and coverage are those of all classes together.",
            "warn",
        )
    if unknown := [n for n, known in zip(audit.classes, audit.known, strict=True) if not known]:
        yield note(f"The teacher does not look for: {listed(unknown)}.", "warn")
    for sentence in measures.remarks():
        yield note(sentence, "warn")


def _classes(measures: MapMeasures) -> "Iterator[str | Markup]":
    audit, order = measures.audit, measures.classes()
    true, given = measures.pixels.sum(1), measures.pixels.sum(0)
    total = max(1, measures.pixels.sum())
    iou, found = measures.iou(), measures.found()
    rows = []
    for c in order:
        row, error = measures.row(audit.classes[c], c), measures.reliability(c).error()
        rows.append(
            [
                row.name,
                f"{true[c] / total:.2%}",
                f"{given[c] / total:.2%}",
                limit_cell(measures.limits[c]),
                shaded(row.precision),
                shaded(row.recall),
                Shaded(f"{iou[c]:.2f}", iou[c]) if iou[c] == iou[c] else None,
                f"{found[c]:.2f}" if audit.known[c] else None,
                f"{error:.3f}" if audit.graded and error == error else None,
            ]
        )
    every = measures.row("all")
    rows.append(["all", None, None, None, shaded(every.precision), shaded(every.recall)])
    rows[-1] += [None] * 3
    yield shares_plot([*(measures.row(audit.classes[c], c) for c in order[: CLASSES - 1]), every])
    columns = ["class", "gold px", "silver px", "from confidence", "precision", "recall", "IoU"]
    yield table(rows, [*columns, "coverage", "calibration error"], total=True)
    yield (
        "Coverage is what training uses: the share of gold's pixels that the teacher does not take for "
        "background. Pixels that the selection leaves unknown count nowhere but in the calibration error, "
        "which is over all pixels that the teacher gives the class."
    )


def _confusion(measures: MapMeasures) -> "Iterator[str | Markup]":
    order = measures.classes()[:CLASSES]
    names = [measures.audit.classes[c] for c in order]
    rest = len(measures.audit.classes)
    rows = []
    for c in [*order, rest]:
        pixels = measures.pixels[c]
        if total := pixels.sum():
            shares = [*(pixels[order] / total), pixels[rest] / total]
            shares.append(1 - sum(shares))
            cells = [Shaded(f"{s:.0%}", float(s)) if s >= 0.005 else "" for s in shares]
            rows.append(["none of these" if c == rest else measures.audit.classes[c], *cells])
    yield "What the teacher calls gold's pixels, in shares of each class of gold's (rows):"
    yield table(rows, ["gold", *names, "background", "others"])


def _pictures(
    measures: MapMeasures, gold: Source, silver: Mapping[int, MapLabels]
) -> "Iterator[str | Markup]":
    worst = measures.worst(PICTURES)
    if not worst:
        yield "Gold refutes no pixel."
        return
    yield (
        "The pictures in which gold refutes most pixels, weighed by the teacher's confidence: the picture, "
        "gold and silver. Gray: none of the classes; bare: unknown. Some of these are gold's mistakes."
    )
    yield gallery(
        [
            picture(
                _drawn(gold, one.picture, silver[one.picture], measures.audit.classes),
                _caption(measures, gold, one),
                3 * SIDE,
            )
            for one in worst
        ],
        wide=True,
    )


def _caption(measures: MapMeasures, gold: Source, one: Disagreement) -> str:
    names = [*measures.audit.classes, "background"]
    largest = [pair for i, pair in enumerate(one.pairs[:3]) if not i or pair[2] >= 0.01]
    pairs = [f"{names[t]} called {names[g]} {share:.0%}" for t, g, share in largest]
    return (
        f"{one.share:.0%} of the judged pixels: {', '.join(pairs)} · {file_name(gold, one.picture)}"
    )


def _drawn(gold: Source, i: int, silver: MapLabels, names: Sequence[str]) -> np.ndarray:
    """Returns picture, gold and silver side by side, (H, W, 3)."""
    image = torch.from_numpy(gold.read(i)).permute(2, 0, 1)
    assert gold.maps is not None
    truth = gold.maps.labels(i, *image.shape[1:])
    assert truth is not None
    scale = min(1.0, SIDE / max(image.shape[1:]))
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[2] * scale)))
    small, before = resize(image, list(size), antialias=True), (image.shape[1], image.shape[2])
    left, right = (draw(small, one.resized(before, size), names) for one in (truth, silver))
    return side_by_side(side_by_side(small, left), right).permute(1, 2, 0).numpy()
