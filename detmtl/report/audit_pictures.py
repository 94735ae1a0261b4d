"""Pictures of the worst disagreements between a teacher and gold."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision.transforms.v2.functional import resize

from detmtl.data.source import Source
from detmtl.engine.drawing import draw
from detmtl.report.page import picture
from detmtl.silver.audit_measures import Measures
from detmtl.silver.comparison import Fault
from detmtl.structures.boxes import intersection, iou
from detmtl.structures.labels import BoxLabels, Grade, Ignore

if TYPE_CHECKING:
    from markupsafe import Markup

SHORT, LONG = 320, 480
"""Sides of a picture are at least SHORT pixels, so that the writing in it is not too large for it, where they
are at most LONG then: so the page has it, and writing that is made smaller with it cannot be read."""
LETTERS = 15
"""How high letters are, pixels: a page shows pictures at about two thirds of LONG."""


def refuted_pictures(measures: Measures, gold: Source, most: int) -> "list[Markup]":
    """Returns the surest of the boxes that gold refutes (silver), with gold's boxes that they touch."""
    pictures = []
    for row in measures.refuted(most):
        i, name = int(row["picture"]), measures.audit.classes[row["class"]]
        truth = _real(gold, i)
        own = _silver(row["box"], int(row["class"]), float(row["score"]), len(gold.classes))
        touched = truth[intersection(own.boxes, truth.boxes)[0] > 0]
        because = _because(Fault(int(row["fault"])), own, truth, gold.classes)
        caption = f"{name} {row['score']:.2f}: {because} · {file_name(gold, i)}"
        pictures.append(picture(_drawn(gold, i, row["box"], touched, own), caption, LONG))
    return pictures


def missed_pictures(measures: Measures, gold: Source, most: int) -> "list[Markup]":
    """Returns the largest gold boxes that no label finds, with the teacher's boxes on them."""
    pictures = []
    for row in measures.missed(most):
        i, c = int(row["picture"]), int(row["class"])
        truth = BoxLabels.of(torch.tensor(row["box"][None]), torch.tensor([c]), len(gold.classes))
        boxes = measures.audit.boxes
        near = boxes[(boxes["picture"] == i) & (boxes["score"] >= 0.1)]
        near = near[iou(truth.boxes, torch.from_numpy(near["box"].copy()))[0].numpy() >= 0.3]
        near = near[np.argsort(-near["score"], kind="stable")[:2]]
        said = [
            _silver(r["box"], int(r["class"]), float(r["score"]), len(gold.classes)) for r in near
        ]
        what = ", ".join(f"{gold.classes[r['class']]} {r['score']:.2f}" for r in near)
        caption = f"{gold.classes[c]}: {f'only {what}' if what else 'nothing there'} · {file_name(gold, i)}"
        pictures.append(picture(_drawn(gold, i, row["box"], truth, *said), caption, LONG))
    return pictures


def _because(fault: Fault, own: BoxLabels, truth: BoxLabels, names: tuple[str, ...]) -> str:
    if fault == Fault.NOTHING or not len(truth):
        return "gold has nothing there"
    overlap = iou(own.boxes, truth.boxes)[0]
    same = truth.classes == own.classes[0]
    if fault == Fault.CLASS:
        best = int(torch.where(same, torch.zeros_like(overlap), overlap).argmax())
        return f"gold says {names[int(truth.classes[best])]}"
    return f"overlaps gold's by {float(torch.where(same, overlap, torch.zeros_like(overlap)).max()):.2f}"


def _drawn(gold: Source, i: int, box: np.ndarray, *labels: BoxLabels) -> np.ndarray:
    """Returns the part of a picture around a box (H, W, 3), with labels drawn."""
    image = torch.from_numpy(gold.read(i)).permute(2, 0, 1)
    height, width = image.shape[1:]
    side = np.maximum(0.75 * (box[2:] - box[:2]), 40)
    x1, y1 = np.clip(np.floor(box[:2] - side), 0, [width - 1, height - 1]).astype(int).tolist()
    x2, y2 = (
        np.clip(np.ceil(box[2:] + side), [x1 + 1, y1 + 1], [width, height]).astype(int).tolist()
    )
    part = image[:, y1:y2, x1:x2]
    scale = min(max(1.0, SHORT / min(part.shape[1:])), LONG / max(part.shape[1:]))
    size = [max(1, round(n * scale)) for n in part.shape[1:]]
    part = resize(part, size, antialias=True)
    for each in labels:
        offset = torch.tensor([x1, y1, x1, y1])
        moved = each.with_boxes((each.boxes - offset) * scale)
        part = draw(part, moved, gold.classes, letters=LETTERS)
    return part.permute(1, 2, 0).numpy()


def _real(gold: Source, i: int) -> BoxLabels:
    labels = gold.labels(i)["boxes"]
    assert isinstance(labels, BoxLabels)
    return labels[labels.ignore == Ignore.NO]


def _silver(box: np.ndarray, c: int, score: float, num_classes: int) -> BoxLabels:
    return BoxLabels.of(
        torch.tensor(box[None]),
        torch.tensor([c]),
        num_classes,
        scores=torch.tensor([min(score, 0.9999)]),  # 1 would be drawn without a score
        grade=Grade.SILVER,
    )


def file_name(gold: Source, i: int) -> str:
    """Returns the name of a picture's file, without its folder."""
    return gold.path(i).replace("\\", "/").rsplit("/", 1)[-1]
