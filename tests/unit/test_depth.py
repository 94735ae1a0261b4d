"""Depth: from files to labels, through augmentation and loss, to numbers and files again."""

import json
import math

import cv2
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from detmtl.data.augment import Augment
from detmtl.data.coco import CocoSource
from detmtl.data.depth import DepthFolder, unit_told
from detmtl.data.flat import FileNames
from detmtl.losses.depth import depth_errors
from detmtl.metrics.depth import DepthMetric
from detmtl.structures.classes import LabelSpace
from detmtl.structures.depth import DepthLabels
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade, pad
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.tasks.depth import DepthConfig, DepthDecoder


def files(folder, **values):
    (folder / "depth").mkdir(exist_ok=True)
    for name, array in values.items():
        cv2.imwrite(str(folder / "depth" / f"{name}.png"), np.asarray(array, np.uint16))
    names = [f"{name}.jpg" for name in (*values, *(["none"] if "missing" in folder.name else []))]
    return FileNames.of(folder / "images", names)


def test_files_are_read_in_meters(tmp_path):
    pictures = files(tmp_path, a=[[0, 1500], [65535, 65534]])
    depths = DepthFolder(folder="depth").load(pictures, tmp_path, "source 's'", Grade.GOLD)
    torch.testing.assert_close(depths.labels(0, 2, 2).depth, torch.tensor([[0, 1.5], [0, 65.534]]))
    kitti = DepthFolder(folder="depth", unit=1 / 256, unknown=[0])
    found = kitti.load(pictures, tmp_path, "", Grade.SILVER).labels(0, 2, 2)
    assert found.depth[1, 0] == pytest.approx(65535 / 256) and found.grade == Grade.SILVER


@pytest.mark.parametrize("unit", ["mm", "0.01", [1], True, 0, -0.001, math.nan, math.inf])
def test_a_unit_that_is_no_number_above_0_is_told(tmp_path, unit):
    (tmp_path / "legend.json").write_text(json.dumps({"unit": unit}))
    with pytest.raises(InputError, match=r"legend\.json: unit: is .* a number above 0"):
        unit_told(tmp_path)


@pytest.mark.parametrize("content", [{"unit": 1}, {"unit": None}, {}, [1]])
def test_the_unit_of_a_folder_is_the_one_that_it_tells(tmp_path, content):
    (tmp_path / "legend.json").write_text(json.dumps(content))
    assert unit_told(tmp_path) == (1 if content == {"unit": 1} else None)


def test_a_depth_of_another_size_is_told(tmp_path):
    pictures = files(tmp_path, a=[[1, 2]])
    depths = DepthFolder(folder="depth").load(pictures, tmp_path, "", Grade.GOLD)
    with pytest.raises(InputError, match=r"a.png: the depth is 2 x 1 pixels.*picture 3 x 1"):
        depths.labels(0, 1, 3)


def test_missing_depths(tmp_path):
    folder = tmp_path / "missing"
    folder.mkdir()
    pictures = files(folder, a=[[1, 2]])
    with pytest.raises(InputError, match=r"source 's': none\.jpg has no depth"):
        DepthFolder(folder="depth").load(pictures, folder, "source 's'", Grade.GOLD)
    depths = DepthFolder(folder="depth", missing="absent").load(pictures, folder, "", Grade.GOLD)
    assert depths.present().tolist() == [True, False] and depths.labels(1, 9, 9) is None
    assert depths.take(np.array([1, 0])).labels(1, 1, 2).depth.shape == (1, 2)
    with pytest.raises(InputError, match="nowhere does not exist"):
        DepthFolder(folder="nowhere").load(pictures, folder, "", Grade.GOLD)


@pytest.mark.parametrize("said", [{}, {"info": {"grade": "silver"}}, {"of_source": "silver"}])
def test_depth_beside_boxes_of_a_model_is_a_model_s(tmp_path, said):
    """No file of depth says who wrote it; `predict` writes it beside a COCO file that does."""
    files(tmp_path, a=[[1, 2]])
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "a.jpg"), np.zeros((1, 2, 3), np.uint8))
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 1, "width": 2}],
        "annotations": [],
    }
    content |= {"categories": [{"id": 1, "name": "x"}]} | {
        k: v for k, v in said.items() if k == "info"
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    source = CocoSource(
        images="images",
        annotations="a.json",
        covers=["x"],
        grade=said.get("of_source", "gold"),
        depth=DepthFolder(folder="depth"),
    ).load("s", tmp_path, LabelSpace.of(["x"]), tmp_path / "cache")
    assert source.labels(0)["depth"].grade == (Grade.SILVER if said else Grade.GOLD)


def augmented(depth, *steps, size=(64, 96)):
    image = np.zeros((*depth.shape, 3), np.uint8)
    labels = {"depth": DepthLabels(torch.from_numpy(depth))}
    image, out = Augment(list(steps), *size)(image, labels, 0)
    assert out["depth"].depth.shape == image.shape[1:]
    return out["depth"].depth.numpy()


def test_depth_moves_with_the_picture():
    depth = np.random.default_rng(0).uniform(1, 9, (64, 96)).astype(np.float32)
    flipped = augmented(depth, {"HorizontalFlip": {"p": 1}})
    np.testing.assert_array_equal(flipped, depth[:, ::-1])


def test_zoom_keeps_values_and_outside_is_unknown():
    depth = np.full((64, 96), 7.5, np.float32)
    depth[:, 48:] = 2.25
    for scale in (0.5, 2.0):
        zoomed = augmented(depth, {"Affine": {"scale": (scale, scale), "p": 1}})
        assert set(np.unique(zoomed)) <= {0, np.float32(7.5), np.float32(2.25)}
        assert (zoomed == 0).any() == (scale < 1)
        assert (zoomed == 7.5).any() and (zoomed == 2.25).any()


def test_depth_is_fitted_without_mixing():
    depth = np.full((128, 192), 1.0, np.float32)
    depth[:, 96:] = 50
    assert set(np.unique(augmented(depth))) == {1, 50}


def test_padding_is_unknown():
    labels = [DepthLabels(torch.ones(3, 5), Grade.SILVER), None]
    padded = pad(labels, 32, 32)
    assert padded.depth.sum() == 15 and padded.present.tolist() == [True, False]
    first, second = padded.unpadded([[3, 5], [32, 32]])
    assert second is None and first.depth.shape == (3, 5) and first.grade == Grade.SILVER


def test_losses_by_hand():
    d = torch.tensor([[[0.3, -0.1, 9.0]], [[5.0, 5.0, 5.0]]])
    known = torch.tensor([[[True, True, False]], [[False, False, False]]])
    mean, square = 0.1, (0.09 + 0.01) / 2
    assert depth_errors(d, known, "silog", 0.5).tolist() == pytest.approx(
        [square - 0.5 * mean**2, 0]
    )
    assert depth_errors(d, known, "l1").tolist() == pytest.approx([0.2, 0])
    c = 0.2 * 0.3
    expected = [((0.09 + c * c) / (2 * c) + (0.01 + c * c) / (2 * c)) / 2, 0]
    assert depth_errors(d, known, "berhu").tolist() == pytest.approx(expected)
    shifted = depth_errors(d + 3, known, "silog", 1.0)  # a common factor is not seen at all
    torch.testing.assert_close(shifted, depth_errors(d, known, "silog", 1.0))


def sample(depth, number=0):
    labels = {} if depth is None else {"depth": DepthLabels(depth)}
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    return Sample(image, labels, ImageInfo(number, "", 64, 64, "s"))


@pytest.mark.parametrize("kind", ["silog", "l1", "berhu"])
def test_the_task_learns_a_slope(kind):
    torch.manual_seed(0)
    task = DepthConfig(at="p3", loss={"kind": kind}).build("depth", [8], [8], 0, [])
    rows = torch.linspace(0, 1, 8)
    feature = rows[:, None].expand(8, 8).expand(1, 8, 8, 8).clone()
    depth = 4 * torch.exp(torch.linspace(0, 1.5, 64))[:, None].expand(64, 64).clone()
    depth[:, :20] = 0
    batch = Batch.of([sample(depth)])
    optimizer = torch.optim.Adam(task.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        loss = task.loss(task([feature]), batch)["depth"]
        loss.backward()
        optimizer.step()
    metric = task.metric()
    with torch.no_grad():
        found = task.decode(task([feature]), batch.sizes)
    metric.update(found, batch.labels["depth"].unpadded([[64, 64]]), batch.infos)
    assert metric.compute()["delta1"] > 0.9


def test_unknown_pixels_count_for_nothing():
    torch.manual_seed(0)
    task = DepthConfig(at="p3").build("depth", [8], [8], 0, [])
    features = [torch.randn(2, 8, 8, 8)]
    half = torch.full((64, 64), 3.0)
    half[32:] = 0
    outputs = [x.detach().requires_grad_() for x in task(features)]
    task.loss(outputs, Batch.of([sample(half), sample(half * 0, 1)]))["depth"].backward()
    gradient = outputs[0].grad[:, 0]
    assert gradient[0, :4].any() and not gradient[0, 5:].any()  # one row reaches over by bilinear
    assert not gradient[1].any()


def test_a_picture_of_unknown_depth_beside_another_does_not_dilute_it():
    task = DepthConfig(at="p3").build("depth", [8], [8], 0, [])
    outputs = [torch.randn(1, 1, 8, 8)]
    known, unknown = sample(torch.full((64, 64), 3.0)), sample(torch.zeros(64, 64), 1)
    alone = task.loss(outputs, Batch.of([known]))["depth"]
    for others in ([unknown], [sample(None, 1)]):
        both = task.loss([outputs[0].expand(2, 1, 8, 8)], Batch.of([known, *others]))["depth"]
        torch.testing.assert_close(both, alone)


def test_prior_and_limits():
    task = DepthConfig(at="p3", prior=20.0, farthest=30.0).build("depth", [8], [8], 0, [])
    with torch.no_grad():
        found = task.decode(task([torch.zeros(1, 8, 4, 4)]), torch.tensor([[30, 20]]))
    assert found[0].depth.shape == (30, 20)
    assert found[0].depth.mean() == pytest.approx(20, rel=0.05)
    wild = DepthDecoder(8, 0.1, 30.0)(
        [torch.tensor([[[[-99.0, 99.0]]]])], *[torch.tensor([[8, 16]])] * 2
    )
    assert wild[0].min() == pytest.approx(0.1) and wild[0].max() == pytest.approx(30)
    with pytest.raises(ValidationError, match="each must be less than the next"):
        DepthConfig(prior=300.0)


def test_metric_by_hand():
    truth = DepthLabels(torch.tensor([[0.0, 2, 4, 10]]))
    found = DepthLabels(torch.tensor([[9.0, 2, 5.2, 25]]))
    metric, other = DepthMetric(), DepthMetric()
    infos = [ImageInfo(1, "", 1, 4, "s"), ImageInfo(2, "", 1, 4, "s")]
    metric.update([found, found], [truth, None], infos)
    other.merge([metric.state(), metric.state()])
    values = other.compute()
    assert values == pytest.approx(
        {
            "delta1": 1 / 3,  # factors 1, 1.3, 2.5
            "delta2": 2 / 3,
            "delta3": 2 / 3,
            "abs_rel": (0 + 0.3 + 1.5) / 3,
            "RMSE": math.sqrt((1.2**2 + 15**2) / 3),
            "RMSE_log": math.sqrt((math.log(1.3) ** 2 + math.log(2.5) ** 2) / 3),
        },
        rel=1e-6,
    )
    assert all(math.isnan(v) for v in DepthMetric().compute().values())


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_the_decoder_compiles():
    decoder = DepthDecoder(8, 0.1, 100.0)
    outputs, sizes = [torch.randn(2, 1, 4, 6)], torch.tensor([[30, 40], [32, 48]])
    originals = torch.tensor([[60, 80], [32, 48]])
    for a, b in zip(
        decoder(outputs, sizes, originals),
        torch.jit.script(decoder)(outputs, sizes, originals),
        strict=True,
    ):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_the_last_layer_is_float32_under_autocast_and_in_a_file_of_bfloat16():
    task = DepthConfig(at="p3").build("d", [8], [8], 0, ())
    features = [torch.rand(1, 8, 6, 7, generator=torch.Generator().manual_seed(0))]
    plain = task(features)[0]
    assert torch.equal(plain, task.head.logits(task.head.branches[0](features[0])))
    with torch.autocast("cpu", torch.bfloat16):
        (logs,) = task(features)
    torch.testing.assert_close(logs, plain, atol=2**-8, rtol=0)
    assert logs.dtype == torch.float32
    assert logs.bfloat16().unique().numel() < logs.unique().numel() / 2
    task.head.bfloat16().logits.float()  # as a file of bfloat16 has it
    halves = [x.bfloat16() for x in features]
    scripted = torch.jit.script(task.head)(halves)
    assert scripted.dtype == torch.float32 and torch.equal(scripted, task.head(halves))
