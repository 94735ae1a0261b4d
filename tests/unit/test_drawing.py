from dataclasses import dataclass, replace

import pytest
import torch

from detmtl.data.outlines import decoded, pasted
from detmtl.engine.drawing import GOLD, SILVER, class_color, draw, side_by_side
from detmtl.engine.writing import named
from detmtl.structures.details import Details
from detmtl.structures.labels import BoxLabels, Grade, Ignore
from detmtl.structures.tensors import Tensors

NAMES = ["cat", "dog"]
BOX = [20.0, 40.0, 90.0, 80.0]


def labels(box=BOX, grade=Grade.GOLD, ignore=Ignore.NO, score=1.0, c=0):
    return BoxLabels.of(
        torch.tensor([box]),
        torch.tensor([c]),
        2,
        scores=torch.tensor([score]),
        ignore=torch.tensor([int(ignore)]),
        grade=grade,
    )


@dataclass(frozen=True, eq=False)
class Count(Tensors):
    objects: torch.Tensor


def test_labels_of_ones_own_kind_are_not_drawn(image):
    assert torch.equal(draw(image, Count(torch.tensor(3)), NAMES), image)


@pytest.fixture
def image():
    return torch.full((3, 120, 160), 50, dtype=torch.uint8)


def color_at(picture, x, y):
    return tuple(picture[:, y, x].tolist())


@pytest.mark.parametrize(("grade", "color"), [(Grade.GOLD, GOLD), (Grade.SILVER, SILVER)])
def test_grade_decides_the_color(image, grade, color):
    drawn = draw(image, labels(grade=grade), NAMES)
    assert drawn.shape == image.shape and drawn.dtype == torch.uint8
    for x, y in ((20, 60), (90, 60), (55, 80)):
        assert color_at(drawn, x, y) == color
    assert color_at(drawn, 55, 60) == (50, 50, 50)
    assert (image == 50).all()  # a copy


def test_classes_have_their_own_colors(image):
    colors = {color_at(draw(image, labels(c=c), NAMES, "class"), 20, 60) for c in (0, 1)}
    assert colors == {class_color(0), class_color(1)} and len(colors) == 2
    assert len({class_color(c) for c in range(80)}) > 60


@pytest.mark.parametrize("ignore", [Ignore.CLASS, Ignore.REGION])
def test_ignored_boxes_are_hatched(image, ignore):
    inside = draw(image, labels(ignore=ignore), NAMES)[:, 45:75, 25:85]
    hatched = (inside != 50).any(0).float().mean()
    assert 0.05 < hatched < 0.5


def test_score_and_name_are_written(image):
    plain = draw(image, labels(), NAMES)
    assert not torch.equal(plain, draw(image, labels(score=0.5), NAMES))
    assert not torch.equal(plain, draw(image, labels(), ["cow", "dog"]))


def test_what_is_written_stays_in_the_picture(image):
    """At the right edge, and of a long name, the score was outside."""
    left, right = (
        draw(image, labels(box=[x, 60.0, x + 18, 80.0], score=0.5), NAMES)[:, :58]
        for x in (20.0, 140.0)
    )
    assert 0 < (left != 50).sum() == (right != 50).sum()
    long = ["a class of which the name is longer than the picture is wide", "dog"]
    some, others = (draw(image, labels(score=score), long) for score in (0.52, 0.87))
    assert not torch.equal(some, others)


def test_names_that_no_font_can_write_are_told_apart_by_their_numbers(image):
    strange = ["\U0010fff0", "\U0010fff1"]
    assert [named(name, c) for c, name in enumerate(strange)] == ["#0", "#1"]
    assert named("caf\u00e9 9", 4) == "caf\u00e9 9"
    first, second = (draw(image, labels(c=c), strange) for c in (0, 1))
    assert not torch.equal(first, second)


def test_what_a_model_hardly_believes_can_be_left_out(image):
    assert torch.equal(draw(image, labels(score=0.29), NAMES, least=0.3), image)
    assert not torch.equal(draw(image, labels(score=0.31), NAMES, least=0.3), image)


@pytest.mark.parametrize(
    "box",
    [[-10, -10, 500, 500], [159.6, 119.6, 160, 120], [10, 10, 10, 10], [300, 300, 310, 310]],
)
@pytest.mark.parametrize("ignore", [Ignore.NO, Ignore.REGION])
def test_any_box_can_be_drawn(image, box, ignore):
    assert draw(image, labels(box=box, ignore=ignore), NAMES).shape == image.shape


def test_no_boxes(image):
    assert torch.equal(draw(image, BoxLabels.empty(2), NAMES), image)


def test_side_by_side(image):
    assert side_by_side(image, image + 1).shape == (3, 120, 324)


def test_a_mask_covers_the_pixels_that_its_encoding_has(image):
    g = torch.Generator().manual_seed(0)
    masks, names = torch.rand(3, 7, 7, generator=g), ["cat", "dog"]
    boxes = torch.tensor([[20.0, 40, 90, 80], [0, 0, 160, 120], [150.3, 100.2, 160, 120]])
    known = BoxLabels.of(boxes, torch.tensor([0, 1, 0]), 2)
    drawn = draw(image, replace(known, details=Details(masks=masks)), names)
    expected = image.permute(1, 2, 0).numpy().astype(int)
    for i, shape in enumerate(pasted(masks, boxes, 120, 160)):
        inside = decoded(shape)
        assert inside.any()
        expected[inside] = (expected[inside] + class_color(i)) // 2
    covered = torch.from_numpy(expected).permute(2, 0, 1).to(torch.uint8)
    assert torch.equal(draw(covered, known, names), drawn)
