"""A teacher that looks at several views of each picture."""

from itertools import pairwise
from math import ceil

import pytest
import torch

from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, UNKNOWN, BoxLabels, MapLabels
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.from_torchscript import TorchScriptTeacherSettings
from detmtl.teachers.teacher import Teacher, TeacherCard
from detmtl.teachers.tta import TtaSettings, TtaTeacher, View, views

CARD = TeacherCard(name="w", weights_sha256="0" * 64, classes=("spot", "half"), preprocessing="p")


class SpotTeacher(Teacher):
    """Sees the white rectangle of a picture, if there is one; counts its pictures."""

    def __init__(self):
        self.card, self.sizes, self.batches = CARD, [], []

    def annotate(self, images, infos, floor=0.05):
        found = []
        self.batches.append(len(images))
        for image, info in zip(images, infos, strict=True):
            assert image.shape[1:] == (info.height, info.width)
            self.sizes.append((info.height, info.width))
            y, x = torch.where(image[0] == 255)
            boxes, scores = torch.zeros(0, 4), torch.zeros(0)
            if len(x):
                corners = [[x.min(), y.min(), x.max() + 1, y.max() + 1]]
                boxes, scores = torch.tensor(corners, dtype=torch.float32), torch.tensor([0.7])
            found.append(BoxLabels.of(boxes, torch.zeros(len(boxes), dtype=torch.long), 2, scores))
        return found


class HalfTeacher(Teacher):
    """Calls the left half of whatever it sees the first class, the right half none of them."""

    def __init__(self, confidence=None):
        self.card = CARD.model_copy(update={"task": "maps"})
        self._confidence = confidence

    def annotate(self, images, infos, floor=0.05):
        found = []
        for image in images:
            classes = torch.full(image.shape[1:], OTHER, dtype=torch.uint8)
            classes[:, : image.shape[2] // 2] = 0
            weights = None
            if self._confidence is not None:
                weights = torch.full(image.shape[1:], self._confidence)
            found.append(MapLabels(classes, weights, torch.ones(2), 1))
        return found


def spot(box, height=40, width=60):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, box[1] : box[3], box[0] : box[2]] = 255
    return image, ImageInfo(0, "p.jpg", height, width, "s")


@pytest.mark.parametrize("box", [(3, 5, 12, 9), (0, 0, 60, 40), (50, 30, 60, 40), (28, 18, 33, 23)])
@pytest.mark.parametrize("scales", [(1.0,), (0.5,), (1.0, 0.5, 1.5), (1.0, 2.0)])
def test_all_views_agree_on_where_a_box_is(box, scales):
    image, info = spot(box)
    teacher = TtaTeacher(SpotTeacher(), TtaSettings(scales=scales))
    labels = teacher.annotate([image], [info])[0]
    assert labels.boxes.tolist() == [list(box)] and labels.scores.tolist() == pytest.approx([0.7])


def test_a_box_that_a_tile_cuts_is_left_to_the_other_views():
    image, info = spot((10, 5, 50, 35))
    both = TtaTeacher(SpotTeacher(), TtaSettings(scales=(1.0, 2.0)))
    assert both.annotate([image], [info])[0].boxes.tolist() == [[10, 5, 50, 35]]


def test_boxes_need_a_view_that_shows_the_whole_picture():
    tiles = TtaSettings(scales=(2.0, 1.5))
    with pytest.raises(InputError, match=r"tta.scales: 2, 1.5: all views are tiles.* name 1"):
        TtaTeacher(SpotTeacher(), tiles)
    # a map is put together piece by piece
    image, info = spot((0, 0, 1, 1), 2, 4)
    found = TtaTeacher(HalfTeacher(), tiles).annotate([image], [info])[0]
    assert (found.classes != UNKNOWN).all()


def test_tiles_cover_the_picture_and_share_a_quarter_with_their_neighbors():
    for scale, count in ((1.0, 1), (0.5, 1), (1.5, 4), (2.0, 9), (4.0, 25)):
        seen = views(400, 600, TtaSettings(flip=False, scales=(scale,)))
        assert len(seen) == count
        shown = torch.zeros(400, 600)
        for view in seen:
            left, top, right, bottom = view.inside(400, 600)
            shown[top:bottom, left:right] += 1
            assert (view.bottom - view.top, view.right - view.left) == (
                ceil(400 / scale),
                ceil(600 / scale),
            )
        assert shown.min() >= 1
        columns = sorted({(view.left, view.right) for view in seen})
        for (_, end), (first, _) in pairwise(columns):
            assert end - first >= 0.24 * 600 / scale


def test_a_view_beyond_the_picture_is_gray_there():
    image = torch.full((3, 2, 3), 9, dtype=torch.uint8)
    seen = View(-1, -2, 5, 4, False).of(image)
    assert seen.shape == (3, 6, 6)
    assert (seen[:, 2:4, 1:4] == 9).all() and (seen == 9).sum() == 18 and (seen == 114).sum() == 90


def test_the_batch_stays_as_large_as_it_was():
    images, infos = zip(*[spot((3, 5, 12, 9)), spot((1, 1, 4, 4), 30, 30)], strict=True)
    inner = SpotTeacher()
    teacher = TtaTeacher(inner, TtaSettings(scales=(1.0, 0.5)))
    found = teacher.annotate(list(images), list(infos))
    assert [one.boxes.tolist() for one in found] == [[[3, 5, 12, 9]], [[1, 1, 4, 4]]]
    assert inner.batches == [2] * 4
    assert sorted(inner.sizes) == sorted(
        [(40, 60)] * 2 + [(80, 120)] * 2 + [(30, 30)] * 2 + [(60, 60)] * 2
    )


def test_maps_vote_and_a_tie_is_half_sure():
    image, info = spot((0, 0, 1, 1), 2, 4)
    teacher = TtaTeacher(HalfTeacher(), TtaSettings())
    labels = teacher.annotate([image], [info])[0]
    # Mirrored it calls the other half the class: the first view wins, with half of the votes.
    assert labels.classes.tolist() == [[0, 0, OTHER, OTHER]] * 2
    assert labels.weights.tolist() == [[0.5] * 4] * 2
    assert (teacher.annotate([image], [info], 0.6)[0].classes == UNKNOWN).all()


def test_confidence_weighs_votes():
    image, info = spot((0, 0, 1, 1), 2, 4)
    labels = TtaTeacher(HalfTeacher(0.8), TtaSettings(flip=False, scales=(1.0, 0.5))).annotate(
        [image], [info]
    )[0]
    # Twice as large around the same middle, its halves are the picture's.
    assert labels.classes.tolist() == [[0, 0, OTHER, OTHER]] * 2
    torch.testing.assert_close(labels.weights, torch.full((2, 4), 0.8))


def test_the_card_names_the_teacher_and_the_views(tmp_path):
    teacher = TtaTeacher(SpotTeacher(), TtaSettings(scales=(1.0, 0.5)))
    assert teacher.card.name == "w-tta" and "views of 'w'" in teacher.card.preprocessing
    assert "0.5" in teacher.card.preprocessing and teacher.card.classes == CARD.classes
    assert teacher.card.identity() != CARD.identity()
    assert TtaTeacher(SpotTeacher(), TtaSettings(), "mine").card.name == "mine"
    with pytest.raises(InputError, match="tags"):
        tags = SpotTeacher()
        tags.card = CARD.model_copy(update={"task": "tags"})
        TtaTeacher(tags, TtaSettings())


def test_every_kind_takes_the_setting(tmp_path):
    class Whole(torch.nn.Module):
        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            found: list[dict[str, torch.Tensor]] = []
            for image in images:
                side = float(image.shape[2])
                found.append(
                    {
                        "boxes": torch.tensor([[0.0, 0.0, side, 2.0]]),
                        "labels": torch.tensor([0]),
                        "scores": torch.tensor([0.5]),
                    }
                )
            return found

    from detmtl.inference.torchscript import deprecation_expected, save_torchscript

    with deprecation_expected():
        save_torchscript(torch.jit.script(Whole()), tmp_path / "t.pt", {"classes": ["a"]})
    settings = TorchScriptTeacherSettings(path="t.pt", tta={"flip": True})
    teacher = settings.load(tmp_path)
    assert isinstance(teacher, TtaTeacher) and teacher.card.name == "t-tta"
    image, info = spot((0, 0, 1, 1))
    assert teacher.annotate([image], [info])[0].boxes.tolist() == [[0, 0, 60, 2]]


@pytest.mark.parametrize("scales", [[], [1, 1], [0.1], [8]])
def test_scales_are_few_sensible_numbers(scales):
    with pytest.raises(ValueError, match=r"\[0.25, 4\]"):
        TtaSettings(scales=scales)
