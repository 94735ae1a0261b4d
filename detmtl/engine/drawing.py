"""Pictures with labels on them."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from detmtl.data.outlines import decoded, encoded, pasted_parts
from detmtl.engine.writing import INK, named, text_size, write
from detmtl.structures.depth import DepthLabels
from detmtl.structures.details import NO_MASK, value_groups
from detmtl.structures.labels import (
    OTHER,
    UNKNOWN,
    BoxLabels,
    Grade,
    Ignore,
    Labels,
    MapLabels,
    TagLabels,
)

GOLD, SILVER = (255, 200, 0), (200, 205, 215)


def draw(
    image: Tensor,
    labels: Labels,
    class_names: Sequence[str],
    colors: Literal["grade", "class"] = "grade",
    least: float = 0.0,
    letters: int | None = None,
) -> Tensor:
    """Returns a copy of a picture (3, H, W) uint8 RGB with its labels.

    Boxes with class names and scores: ignored ones are hatched, a score is written unless it is 1.
    Maps as a film of the classes' colors, with the names of the largest. Tags as a list. Depth as a film of
    grays, near is bright. Of boxes also what is known of them: shapes as a film, keypoints as dots,
    attributes behind the class name. Labels of a kind of a task's own are not drawn.

    Args:
        colors: of boxes: "grade": gold ones in gold, silver ones in silver; "class": a color for each
            class.
        least: boxes of lower scores are not drawn.
        letters: how high those at boxes are, pixels; None: as suits the picture's size.
    """
    names = tuple(class_names)
    if isinstance(labels, MapLabels):
        return _draw_map(image, labels, names)
    if isinstance(labels, TagLabels):
        return _draw_tags(image, labels, names)
    if isinstance(labels, DepthLabels):
        return _draw_depth(image, labels)
    if not isinstance(labels, BoxLabels):
        return image.clone()
    labels = labels[labels.scores >= least]
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().contiguous().numpy())
    if labels.details is not None:
        picture = _with_shapes(picture, labels)
    pen = ImageDraw.Draw(picture)
    size = letters or text_size(picture.size)
    line = max(1, size // 8)
    # the best last, so that it lies on top
    for i in torch.argsort(labels.scores.cpu(), stable=True).tolist():
        c, score = int(labels.classes[i]), float(labels.scores[i])
        grade = GOLD if int(labels.grade[i]) == Grade.GOLD else SILVER
        color = grade if colors == "grade" else class_color(c)
        box = _inside(labels.boxes[i].tolist(), picture.size)
        if int(labels.ignore[i]) != Ignore.NO:
            _hatch(picture, box, color, step=2 * size // 3)
        pen.rectangle(box, outline=color, width=line)
        end = "" if score == 1 else f" {score:.2f}"
        _dots(pen, labels, i, 2 * line)
        write(pen, named(names[c], c) + _values(labels, i), end, box, color, picture.size, size)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _with_shapes(picture: Image.Image, labels: BoxLabels) -> Image.Image:
    """Returns the picture with each shape half covered by a color of its own."""
    pixels = np.array(picture).astype(np.uint16)
    for i, rows, columns, inside in _shapes(labels, *pixels.shape[:2]):
        part = pixels[rows, columns]
        part[inside] = (part[inside] + np.array(class_color(i), np.uint16)) // 2
    return Image.fromarray(pixels.astype(np.uint8))


def _shapes(
    labels: BoxLabels, height: int, width: int
) -> Iterator[tuple[int, slice, slice, np.ndarray]]:
    """Yields of each shape its number, rows and columns of a picture, and which pixels there are inside.

    Of masks these are the rows and columns of the box: where the picture is large, the box seldom is.
    """
    assert labels.details is not None
    if labels.details.outlines is not None:
        for i, shape in enumerate(encoded(labels.details.outlines, height, width)):
            if shape is not None:
                yield i, slice(None), slice(None), decoded(shape)
    elif labels.details.masks is not None:
        known = labels.details.masks[:, 0, 0] != NO_MASK
        masks, boxes = labels.details.masks[known], labels.boxes[known]
        for i, part in enumerate(pasted_parts(masks, boxes, height, width)):
            yield i, *part


def _values(labels: BoxLabels, i: int) -> str:
    """Returns the attributes of box i as text."""
    details = labels.details
    if details is None or details.attributes is None or not details.attribute_names:
        return ""
    groups = value_groups(details.attribute_names).values()
    pairs = zip(groups, details.attributes[i].tolist(), strict=True)
    return "".join(f" {named(values[v], v)}" for values, v in pairs if v >= 0)


def _dots(pen: ImageDraw.ImageDraw, labels: BoxLabels, i: int, radius: int) -> None:
    """Draws the keypoints of box i that are known, or believed with at least .1."""
    if labels.details is None or labels.details.keypoints is None:
        return
    for k, (x, y, sure) in enumerate(labels.details.keypoints[i].tolist()):
        if sure >= 0.1:
            around = (x - radius, y - radius, x + radius, y + radius)
            pen.ellipse(around, fill=class_color(k), outline=INK)


def _draw_map(image: Tensor, labels: MapLabels, class_names: tuple[str, ...]) -> Tensor:
    """Returns the picture half covered by the classes' colors; gray is other, unknown stays bare."""
    palette = np.zeros((256, 3), np.uint8)
    for c in range(len(class_names)):
        palette[c] = class_color(c)
    palette[OTHER] = 128
    classes = labels.classes.numpy()
    pixels = image.permute(1, 2, 0).cpu().numpy()
    mixed = (pixels.astype(np.uint16) + palette[classes]) // 2
    picture = Image.fromarray(np.where((classes == UNKNOWN)[..., None], pixels, mixed).astype("u1"))
    counts = np.bincount(classes.ravel(), minlength=256)[: len(class_names)]
    order: list[int] = np.argsort(-counts, kind="stable")[:6].tolist()
    largest = [c for c in order if counts[c]]
    return _listed(picture, [(named(class_names[c], c), "", class_color(c)) for c in largest])


def _draw_depth(image: Tensor, labels: DepthLabels) -> Tensor:
    """Returns the picture half covered by grays, from 1 m (white) to 100 m (black); unknown stays bare."""
    share = 1 - labels.depth.clamp(min=1, max=100).log10() / 2
    gray = (255 * share).to(torch.uint8).to(image.device)
    mixed = (image.to(torch.int16) + gray) // 2
    return torch.where((labels.depth > 0).to(image.device), mixed.to(torch.uint8), image)


def _draw_tags(image: Tensor, labels: TagLabels, class_names: tuple[str, ...]) -> Tensor:
    """Returns the picture with the tags that it shows, by probability, of those that are known."""
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().contiguous().numpy())
    grade = GOLD if labels.grade == Grade.GOLD else SILVER
    order: list[int] = torch.argsort(labels.targets, descending=True, stable=True).tolist()
    shown = [t for t in order if labels.targets[t] >= 0.5 and labels.weights[t] > 0]
    scores = labels.targets.tolist()
    ends = ["" if scores[t] == 1 else f" {scores[t]:.2f}" for t in shown]
    texts = [named(class_names[t], t) for t in shown]
    return _listed(picture, [(text, end, grade) for text, end in zip(texts, ends, strict=True)])


def _listed(picture: Image.Image, lines: Sequence[tuple[str, str, tuple]]) -> Tensor:
    pen = ImageDraw.Draw(picture)
    size = text_size(picture.size)
    for k, (text, end, color) in enumerate(lines):
        write(pen, text, end, (0, (k + 1) * (size + 6)), color, picture.size, size)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def side_by_side(left: Tensor, right: Tensor) -> Tensor:
    """Returns two pictures (3, H, W) of one size with a dark line of 4 pixels between them."""
    gap = left.new_zeros(3, left.shape[1], 4)
    return torch.cat([left, gap, right], dim=2)


def class_color(c: int) -> tuple[int, int, int]:
    """Returns an RGB color for class `c`; neighbors differ by the golden angle of hue."""
    hue = int(c * 0.618034 * 255) % 256
    red, green, blue = Image.new("HSV", (1, 1), (hue, 190, 255)).convert("RGB").tobytes()
    return red, green, blue


def _inside(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns whole pixels within a picture of size (width, height), corners in order."""
    x1, x2 = (min(max(round(x), 0), size[0] - 1) for x in (box[0], box[2]))
    y1, y2 = (min(max(round(y), 0), size[1] - 1) for y in (box[1], box[3]))
    return x1, y1, max(x1, x2), max(y1, y2)


def _hatch(picture: Image.Image, box: Sequence[int], color: tuple, step: int) -> None:
    """Fills the box with diagonal lines."""
    x1, y1, x2, y2 = box
    width, height = x2 - x1 + 1, y2 - y1 + 1
    mask = Image.new("1", (width, height))
    pen = ImageDraw.Draw(mask)
    for start in range(0, width + height, step):
        pen.line([(start, 0), (start - height, height)], fill=1)
    picture.paste(Image.new("RGB", (width, height), color), (x1, y1), mask)
