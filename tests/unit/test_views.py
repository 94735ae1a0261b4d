"""Prediction from several views: mirrored, at other scales, in tiles whose cut boxes are joined."""

from dataclasses import dataclass, replace
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from coco_files import NAMES, coco_data, save_coco
from test_predictor import content  # noqa: F401 (a fixture: a checkpoint of a random model)

from detmtl.data.coco import CocoSource
from detmtl.inference import views as looking
from detmtl.inference.predictor import Predictor, change_test, load_checkpoint
from detmtl.inference.results import predict_to_files
from detmtl.inference.scoring import evaluate_predictor
from detmtl.inference.views import View, ViewSettings, joined, mean_depth, merged, views
from detmtl.inference.views_predictor import ViewsPredictor
from detmtl.structures.boxes import iou
from detmtl.structures.classes import LabelSpace
from detmtl.structures.depth import DepthLabels
from detmtl.structures.details import Details
from detmtl.structures.errors import InputError
from detmtl.structures.labels import UNKNOWN, BoxLabels, MapLabels, TagLabels
from detmtl.structures.tensors import Tensors
from detmtl.tasks.detection import DetectionConfig


class Bright:
    """Finds the bright rectangle of whatever it sees, and says how bright the left half is."""

    class_names = ("spot", "other")
    names = {"boxes": ("spot", "other"), "map": ("bright",), "tags": ("left",)}
    kinds = {"boxes": "boxes", "map": "maps", "tags": "tags"}
    farthest = {}
    describing = ()
    class_agnostic, nms, detections = False, 0.6, 100
    seen: list

    def __init__(self):
        self.seen = []

    def decoders(self):
        return {"boxes": self}

    def predict(self, images):
        found = []
        for image in images:
            self.seen.append(tuple(image.shape[1:]))
            boxes, scores, classes = [], [], []
            for c, level in enumerate((200, 220)):
                y, x = torch.where(image[0] == level)
                if len(x):
                    boxes.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
                    scores.append(0.5 + 0.2 * c)
                    classes.append(c)
            labels = BoxLabels.of(
                torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                torch.tensor(classes).long(),
                2,
                torch.tensor(scores),
            )
            left = image[0, :, : max(1, image.shape[2] // 2)].float().mean() / 255
            found.append(
                {
                    "boxes": labels,
                    "map": MapLabels((image[0] < 128).to(torch.uint8), None, torch.ones(1)),
                    "tags": TagLabels(left[None], torch.ones(1)),
                }
            )
        return found


def picture(box, height=120, width=200, level=200):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, box[1] : box[3], box[0] : box[2]] = level
    return image


def found_in(image, predictor=None, **settings):
    return ViewsPredictor(predictor or Bright(), ViewSettings(**settings)).predict([image])[0]


@pytest.mark.parametrize("overlap", [0.05, 0.2, 0.5])
@pytest.mark.parametrize("size", [(120, 200), (64, 64), (40, 65), (30, 500), (1000, 1003)])
def test_tiles_cover_the_picture_and_overlap_as_asked(size, overlap):
    settings = ViewSettings(tile=64, tile_overlap=overlap)
    seen = views(*size, settings)
    assert seen[0].window == (0, 0, size[1], size[0])  # the whole picture comes first
    tiles = seen[1:] or seen
    shown = np.zeros(size, dtype=int)
    for view in tiles:
        shown[view.top : view.bottom, view.left : view.right] += 1
        assert view.bottom - view.top == min(64, size[0])
        assert view.right - view.left == min(64, size[1])
    assert shown.min() >= 1
    for first, second in (("left", "right"), ("top", "bottom")):
        spans = sorted({(getattr(v, first), getattr(v, second)) for v in tiles})
        # to half a pixel each, to which tiles are rounded
        assert all(end - start >= overlap * 64 - 1 for (_, end), (start, _) in pairwise(spans))
    assert len(seen) < 20 or (size == (1000, 1003) and len(seen) <= 1 + 31**2)


@pytest.mark.parametrize(
    "box",
    [
        (3, 5, 12, 9),  # in one tile
        (58, 10, 80, 20),  # over an edge, more than the tiles share
        (50, 40, 150, 50),  # over three tiles
        (40, 30, 120, 100),  # over a corner where four meet
        (0, 0, 200, 120),
    ],
)
@pytest.mark.parametrize("flip", [False, True])
def test_tiles_alone_find_every_box_whole(box, flip, monkeypatch):
    """Without the view of the whole picture, by joining what the tiles cut."""
    image = picture(box)
    alone = views(120, 200, ViewSettings(tile=64, flip=flip))[1 + flip :]
    labels = [one["boxes"] for one in Bright().predict([view.of(image) for view in alone])]
    found = merged(labels, alone, (120, 200), 0.6, join=True)
    assert found.boxes.tolist() == [list(box)]
    assert found_in(image, tile=64, flip=flip)["boxes"].boxes.tolist() == [list(box)]
    monkeypatch.setattr(looking, "PAIRS", 3)
    assert merged(labels, alone, (120, 200), 0.6, join=True).boxes.tolist() == [list(box)]


def _parts(*boxes, classes=None):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    classes = torch.zeros(len(boxes)) if classes is None else torch.tensor(classes)
    return BoxLabels.of(boxes, classes.long(), 2, torch.linspace(0.5, 0.6, len(boxes)))


def test_parts_are_joined_only_where_tiles_agree_and_the_ends_were_seen():
    left, right = View(0, 0, 64, 64, False), View(44, 0, 108, 64, False)
    cut_right, cut_left = torch.tensor([[0, 0, 1, 0]]).bool(), torch.tensor([[1, 0, 0, 0]]).bool()

    def join(a, b, cuts=(cut_right, cut_left)):
        return joined([a, b], cuts, [left, right]).boxes.tolist()

    a, b = _parts([20, 10, 64, 30]), _parts([44, 11, 90, 30])
    assert join(a, b) == [[20, 10, 90, 30]]
    assert (
        join(a, _parts([44, 24, 90, 44])) == []
    )  # another object: in the shared strip they differ
    assert join(a, _parts([44, 11, 90, 30], classes=[1])) == []
    assert join(a, _parts()[:0], (cut_right, cut_left[:0])) == []
    open_end = torch.tensor([[1, 0, 1, 0]]).bool()  # reaches on into a tile that saw nothing
    assert join(a, _parts([44, 11, 108, 30]), (cut_right, open_end)) == []
    mirrored = View(0, 0, 64, 64, True)
    assert joined([a, a], [cut_right] * 2, [left, mirrored]).boxes.tolist() == []


@pytest.mark.parametrize("right_end", [635.9, 636.3, 636.7])
def test_an_object_that_ends_beside_a_tiles_edge_is_kept(right_end):
    """One tile says that its edge may cut it, the other one sees where it ends, a little before or after."""
    a, b = View(0, 0, 640, 640, False), View(512, 0, 1152, 640, False)
    first, cut_a = a.placed(_parts([400, 100, 636.3, 200]), 640, 1152)
    second, cut_b = b.placed(_parts([0, 100, right_end - 512, 200]), 640, 1152)
    assert cut_a.tolist() == [[False, False, True, False]]
    assert cut_b.tolist() == [[True, False, False, False]]
    (found,) = joined([first, second], [cut_a, cut_b], [a, b]).boxes.tolist()
    assert found == pytest.approx([400, 100, max(636.3, right_end), 200])


def test_large_objects_come_from_the_whole_picture_and_small_ones_from_tiles():
    inner = Bright()
    found_in(picture((0, 0, 1, 1)), inner, tile=64, tile_overlap=0.2)
    assert inner.seen[0] == (120, 200) and set(inner.seen[1:]) == {(64, 64)}


def test_scales_and_flip_as_the_teachers():
    inner = Bright()
    found = found_in(picture((30, 20, 60, 50)), inner, flip=True, scales=(1.0, 0.5))
    assert sorted(set(inner.seen)) == [(120, 200), (240, 400)] and len(inner.seen) == 4
    assert found["boxes"].boxes.tolist() == [[30, 20, 60, 50]]


def test_class_agnostic_suppression_across_views():
    image = picture((10, 10, 50, 50))
    image[:, 12:48, 12:49] = 220  # a second class almost in the same place
    assert found_in(image, flip=True)["boxes"].classes.tolist() == [1, 0]
    inner = Bright()
    inner.class_agnostic = True
    assert found_in(image, inner, flip=True)["boxes"].classes.tolist() == [1]


def test_the_decoders_settings_hold_for_all_views_together():
    image = picture((10, 10, 50, 50))
    image[:, 10:38, 10:50] = 220  # the other class has the upper 28 of 40 rows: IoU .7
    image[:, 10, 10] = 200
    inner = Bright()
    inner.class_agnostic = True

    def count(nms, detections, **settings):
        inner.nms, inner.detections = nms, detections
        return len(found_in(image, inner, **settings)["boxes"])

    assert [count(nms, 100, flip=True) for nms in (0.65, 0.75)] == [1, 2]
    assert count(0.75, 1, flip=True, scales=(1.0, 0.5)) == 1
    assert count(0.75, 1, tile=64) > 1  # of each tile


def test_a_task_of_ones_own_has_the_usual_suppression():
    class Own(Bright):
        def decoders(self):
            return {}

    assert len(found_in(picture((10, 10, 50, 50)), Own(), flip=True)["boxes"]) == 1


@dataclass(frozen=True, eq=False)
class Count(Tensors):
    """Labels of a kind of a task's own: how many pixels are bright."""

    pixels: torch.Tensor


@pytest.mark.parametrize("settings", [{"flip": True, "tile": 64}, {"scales": (1.5,)}])
def test_of_labels_of_ones_own_kind_those_of_the_picture_alone_count(settings):
    class Counts(Bright):
        def predict(self, images):
            counted = [Count((image[0] > 128).sum()) for image in images]
            return [x | {"count": c} for x, c in zip(super().predict(images), counted, strict=True)]

    assert found_in(picture((3, 5, 13, 17)), Counts(), **settings)["count"].pixels == 120


def test_maps_vote_and_tags_are_the_mean_of_whole_views():
    image = picture((0, 0, 100, 120), level=255)  # the left half
    found = found_in(image, flip=True, tile=64)
    assert torch.equal(found["map"].classes, (image[0] < 128).to(torch.uint8))
    torch.testing.assert_close(found["tags"].targets, torch.tensor([0.5]))  # 1 and, mirrored, 0


@pytest.mark.parametrize(
    "settings", [{"tile": 32, "flip": True}, {"scales": (0.5, 1.0, 1.5), "flip": True}]
)
@pytest.mark.parametrize("floor", [0.0, 0.4])
def test_a_vote_counts_each_pixels_views_in_their_order(settings, floor):
    """Against the definition, every view laid out over the whole picture: bit for bit, ties too."""
    g = torch.Generator().manual_seed(3)
    size = (60, 90)
    seen = views(*size, ViewSettings(**settings))
    maps = []
    for i, view in enumerate(seen):
        shape = (view.bottom - view.top, view.right - view.left)
        classes = torch.randint(0, 4, shape, generator=g).to(torch.uint8)
        weights = None if i % 3 == 0 else torch.rand(shape, generator=g)
        maps.append(MapLabels(classes.where(classes < 3, UNKNOWN), weights, torch.ones(3)))
    classes, weights = torch.full((len(seen), *size), UNKNOWN), torch.zeros(len(seen), *size)
    shown = torch.zeros(size)
    for i, (one, view) in enumerate(zip(maps, seen, strict=True)):
        x, y = torch.arange(size[1]) - view.left, torch.arange(size[0]) - view.top
        wide, high = view.right - view.left, view.bottom - view.top
        there = ((y >= 0) & (y < high))[:, None] & (x >= 0) & (x < wide)
        x = wide - 1 - x if view.flip else x
        at = y.clamp(0, high - 1)[:, None], x.clamp(0, wide - 1)
        shown += there
        classes[i] = one.classes[at].long().where(there, UNKNOWN)
        weight = torch.ones(size) if one.weights is None else one.weights[at]
        weights[i] = weight.where(there & (classes[i] != UNKNOWN), 0.0)
    votes = torch.zeros_like(weights)
    for other, weight in zip(classes, weights, strict=True):
        votes += weight.where(classes == other, 0.0)
    best = votes.amax(0)
    first = (votes == best).to(torch.uint8).argmax(0)  # of equal ones the first view's
    share = (best / shown).clamp(max=1)
    winner = classes.gather(0, first[None])[0].where((best > 0) & (share >= floor), UNKNOWN)
    found = looking.vote(maps, seen, size, floor)
    assert torch.equal(found.weights, share) and torch.equal(found.classes.long(), winner)
    assert {0, 1, 2} <= set(found.classes.unique().tolist())


def test_a_vote_compares_only_views_that_show_the_same_place():
    seen = views(1000, 1500, ViewSettings(tile=160))
    times, work = torch.zeros(1000, 1500, dtype=torch.int64), 0
    for (left, top, right, bottom), there in looking._pieces(seen, (1000, 1500)):
        times[top:bottom, left:right] += 1
        work += (bottom - top) * (right - left) * len(there) ** 2
        for i, view in enumerate(seen):
            inside = view.left <= left < right <= view.right
            assert (i in there) == (inside and view.top <= top < bottom <= view.bottom)
    assert len(seen) > 90 and (times == 1).all()
    assert work < 12 * 1000 * 1500  # not 90 ** 2


def test_depths_are_the_mean_of_the_views_that_know_them():
    class Far:
        """Says 2 m of what it sees first, then 8 m, and nothing of the left half."""

        class_names, names, describing = (), {"depth": ()}, ()
        kinds, farthest = {"depth": "depth"}, {"depth": 9.0}

        def __init__(self, blind=False):
            self.blind, self.meters = blind, [2.0, 8.0]

        def decoders(self):
            return {}

        def predict(self, images):
            found = []
            for image in images:
                depth = torch.full(image.shape[1:], self.meters.pop(0))
                depth[:, : depth.shape[1] // 2] *= not self.blind
                found.append({"depth": DepthLabels(depth)})
            return found

    def depth(predictor):
        return found_in(picture((0, 0, 1, 1)), predictor, flip=True)["depth"].depth

    torch.testing.assert_close(depth(Far()), torch.full((120, 200), 4.0))
    halves = torch.tensor([8.0, 2.0]).repeat_interleave(100).expand(120, -1)  # one is mirrored
    torch.testing.assert_close(depth(Far(blind=True)), halves)
    both_blind = Far(blind=True)
    both_blind.meters = [3.0]
    alone = mean_depth(
        [both_blind.predict([picture((0, 0, 1, 1))])[0]["depth"]],
        [View(0, 0, 200, 120, False)],
        (120, 200),
    )
    assert alone.depth[0, [0, -1]].tolist() == pytest.approx([0, 3])


class Keypoints(Bright):
    names = Bright.names | {"pose": ("spot", "other")}
    kinds = Bright.kinds | {"pose": "boxes"}
    describing = ("pose",)

    def predict(self, images):
        return [
            one | {"pose": replace(one["boxes"], details=Details(masks=torch.zeros(0, 9, 9)))}
            for one in super().predict(images)
        ]


def test_what_is_said_of_boxes_is_left_out_with_a_word():
    image = picture((3, 5, 12, 9))
    with pytest.warns(
        UserWarning, match=r"^pose: left out, .* without mirroring, scales and tiles"
    ):
        several = ViewsPredictor(Keypoints(), ViewSettings(tile=64))
    found = several.predict([image])[0]
    assert [*found] == ["boxes", "map", "tags"] == [*several.names] == [*several.kinds]
    assert found["boxes"].boxes.tolist() == [[3, 5, 12, 9]]
    assert several.left_out == ("pose",) and several.describing == ()


@pytest.mark.parametrize(
    "wrong",
    [{"tile": 8}, {"tile_overlap": 0.9}, {"tile_overlap": 0.0}, {"scales": ()}, {"scales": (9,)}],
)
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError):
        ViewSettings(**wrong)


@pytest.fixture
def predictor(content, tmp_path):  # noqa: F811
    torch.save(content, tmp_path / "best.pt")
    return Predictor(load_checkpoint(tmp_path / "best.pt"))


def test_a_real_model_through_views_writes_files(predictor, tmp_path):
    cv2.imwrite(str(tmp_path / "a.png"), np.full((300, 400, 3), 90, np.uint8))
    several = ViewsPredictor(predictor, ViewSettings(tile=128, flip=True), batch_size=4)
    one = ViewsPredictor(predictor, ViewSettings(tile=128, flip=True))
    path = predict_to_files(several, [tmp_path / "a.png"], tmp_path / "out")
    assert path.is_file()
    image = [
        torch.randint(0, 256, (3, 150, 200), generator=torch.Generator().manual_seed(0)).byte()
    ]
    a, b = several.predict(image)[0]["boxes"], one.predict(image)[0]["boxes"]
    assert len(a) == len(b) > 0
    torch.testing.assert_close(a.boxes, b.boxes, atol=1e-2, rtol=0)


def test_settings_of_the_decoder_change_what_comes_out(predictor):
    image = [torch.randint(0, 256, (3, 64, 96), generator=torch.Generator().manual_seed(0)).byte()]
    before = predictor.predict(image)[0]["boxes"]
    change_test(predictor, {"score_threshold": float(before.scores[5])}, "--set")
    assert len(predictor.predict(image)[0]["boxes"]) <= 5 < len(before)
    change_test(predictor, {"score_threshold": 0.0, "detections": 10_000, "nms": 0.1}, "--set")
    found = {}
    for agnostic in (False, True):
        change_test(predictor, {"class_agnostic": agnostic}, "--set")
        found[agnostic] = predictor.predict(image)[0]["boxes"].boxes.double()
    assert len(found[True]) < len(found[False])
    worst = {k: float(iou(x, x).fill_diagonal_(0).max()) for k, x in found.items()}
    assert worst[True] <= 0.1 + 1e-3 < worst[False]
    for wrong, message in (({"nms": 7}, "--set: nms"), ({"nmz": 0.5}, "nmz")):
        with pytest.raises(InputError, match=message):
            change_test(predictor, wrong, "--set")


def test_scoring_a_predictor(tmp_path):
    """Truth is scored as what is found: the bright spots themselves."""
    data = coco_data()
    for one in data["annotations"]:
        one["category_id"] = data["categories"][0]["id"]
    save_coco(tmp_path, data, 3)
    source = CocoSource(images="images", annotations="coco.json").load(
        "here", tmp_path, LabelSpace.of(NAMES), tmp_path / "cache"
    )

    class Truth:
        class_names, names, describing, at = NAMES, {"boxes": NAMES}, (), 0

        def decoders(self):
            return {}

        def predict(self, images):
            self.at += 1
            return [{"boxes": source.boxes(self.at - 1)}]

    task = DetectionConfig().build("boxes", [8] * 3, [8, 16, 32], len(NAMES), NAMES)
    done = []
    values = evaluate_predictor(Truth(), {"boxes": task}, source, progress=done.append)
    assert values["boxes/AP"] == pytest.approx(1) and done == [1, 1, 1]
