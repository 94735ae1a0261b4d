import json
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from detmtl.cli import main
from detmtl.data.depth import DepthFolder
from detmtl.data.flat import FileNames
from detmtl.inference.frozen import _replayed
from detmtl.inference.predictor import (
    Predictor,
    load_checkpoint,
    load_predictor,
)
from detmtl.inference.results import predict_to_files
from detmtl.inference.written import find_sources, settled
from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.structures.depth import DepthLabels
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, MapLabels, TagLabels
from detmtl.structures.tensors import Tensors
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.multitask import ModelSettings, build_model
from detmtl.tasks.tasks import TaskConfig

CLASSES = ["cat", "dog"]


@pytest.fixture(scope="module")
def content():
    """A checkpoint of a random model that finds many boxes."""
    model = ModelSettings(
        backbone=BackboneSettings(name="test_efficientnet"), fpn=FPNSettings(channels=8)
    )
    settings = {
        "model": model.model_dump(mode="json"),
        "tasks": {"boxes": DetectionConfig().model_dump(mode="json")},
        "input": {"short": 64, "long": 96},
        "train": {"a part that": "prediction does not read"},
    }
    torch.manual_seed(0)
    network = build_model(model, {"boxes": DetectionConfig()}, CLASSES)
    with torch.no_grad():
        network.tasks["boxes"].head.class_logits.bias.fill_(0.5)
    weights = network.state_dict()
    return {"format": 1, "settings": settings, "classes": CLASSES, "step": 1, "model": weights}


@pytest.fixture
def checkpoint(content, tmp_path):
    torch.save(content, tmp_path / "best.pt")
    return tmp_path / "best.pt"


def test_averaged_weights_are_used_where_there_are_some(content, checkpoint, tmp_path):
    averaged = {k: v + 1 if v.is_floating_point() else v for k, v in content["model"].items()}
    torch.save(content | {"ema": averaged}, tmp_path / "last.pt")
    torch.save(content | {"ema": None}, tmp_path / "none.pt")
    name = "tasks.boxes.head.class_logits.bias"
    bias = {
        f: load_checkpoint(tmp_path / f).model.state_dict()[name][0].item()
        for f in ("best.pt", "last.pt", "none.pt")
    }
    assert bias == {"best.pt": 0.5, "last.pt": 1.5, "none.pt": 0.5}


def test_nothing_is_downloaded_or_read_beside_the_checkpoint(content, tmp_path):
    backbone = content["settings"]["model"]["backbone"] | {"weights": "no/such/file.pth"}
    model = content["settings"]["model"] | {"backbone": backbone}
    torch.save(content | {"settings": content["settings"] | {"model": model}}, tmp_path / "a.pt")
    loaded = load_checkpoint(tmp_path / "a.pt")
    assert loaded.class_names == ("cat", "dog")
    assert (loaded.short, loaded.long) == (64, 96)
    assert not loaded.model.training


def test_unusable_checkpoints_are_explained(content, tmp_path):
    def message(change) -> str:
        torch.save(change, tmp_path / "x.pt")
        with pytest.raises(InputError) as error:
            load_checkpoint(tmp_path / "x.pt")
        return str(error.value)

    settings = content["settings"]
    assert "settings is missing" in message({k: v for k, v in content.items() if k != "settings"})
    assert "settings.input.short" in message(
        content | {"settings": settings | {"input": {"short": "wide", "long": 96}}}
    )
    assert "settings.tasks" in message(
        content | {"settings": settings | {"tasks": {"boxes": {"kind": "juggling"}}}}
    )
    fewer = {k: v for k, v in content["model"].items() if "class_logits" not in k}
    assert "class_logits" in message(content | {"model": fewer})
    with pytest.raises(InputError, match=r"none\.pt"):
        load_predictor(tmp_path / "none.pt")


def test_boxes_are_in_pixels_of_the_picture_as_given(checkpoint):
    """A plain picture looks the same to the network in any size; its boxes come out in its own."""
    predictor = Predictor(load_checkpoint(checkpoint))
    plain = [torch.full((3, 64 * n, 96 * n), 77, dtype=torch.uint8) for n in (1, 2, 5)]
    one, two, five = (predictor.predict([picture])[0]["boxes"] for picture in plain)
    assert len(one) == 100
    assert (one.boxes[:, 2].max(), one.boxes[:, 3].max()) == (96, 64)
    torch.testing.assert_close(two.boxes, one.boxes * 2)
    torch.testing.assert_close(five.boxes, one.boxes * 5)


def test_precision_of_the_network_and_of_the_scores(checkpoint):
    loaded = load_checkpoint(checkpoint)
    picture = torch.randint(0, 256, (3, 64, 96), generator=torch.Generator().manual_seed(0)).byte()
    exact, rough = (
        Predictor(loaded, precision=p).predict([picture])[0]["boxes"] for p in ("fp32", "bf16")
    )
    assert rough.scores.dtype == rough.boxes.dtype == torch.float32
    assert not torch.equal(exact.scores, rough.scores)
    torch.testing.assert_close(exact.scores[:5], rough.scores[:5], atol=0.05, rtol=0)


def test_a_compiled_network_is_the_whole_one_in_its_own_precision(checkpoint, monkeypatch):
    asked = []

    def compile(network, **options):  # torch's own takes minutes
        asked.append((network, options))
        return network

    monkeypatch.setattr(torch, "compile", compile)
    loaded = load_checkpoint(checkpoint)
    picture = torch.randint(0, 256, (3, 64, 96), generator=torch.Generator().manual_seed(0)).byte()
    plain = Predictor(loaded).predict([picture])[0]["boxes"]
    for precision, tolerance in (("fp32", 1e-5), ("bf16", 0.05)):
        found = Predictor(loaded, precision=precision, compile=True).predict([picture])[0]["boxes"]
        assert found.scores.dtype == found.boxes.dtype == torch.float32
        torch.testing.assert_close(found.scores[:5], plain.scores[:5], atol=tolerance, rtol=0)
    (_, options), (half, _) = asked
    assert options == {"dynamic": False, "options": {"freezing": True}}
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_graph_gets_few_numbers_of_pictures_and_its_outputs_are_copied(count):
    seen, memory = [], torch.zeros(8, 3, 4, 4)

    def graph(images):
        seen.append(len(images))
        return {"boxes": [memory[: len(images)].copy_(images)]}

    images = torch.randint(1, 256, (count, 3, 4, 4), dtype=torch.uint8)
    found = _replayed(graph, images)["boxes"][0]
    memory.zero_()  # as the next call would
    assert seen == [{1: 1, 2: 2, 5: 8}[count]]
    assert torch.equal(found, images.float())


def test_an_exported_file_is_not_compiled(tmp_path, monkeypatch):
    path = tmp_path / "m.torchscript"
    path.write_bytes(b"")
    monkeypatch.setattr("detmtl.inference.predictor.exported_format", lambda path: "torchscript")
    with pytest.raises(InputError, match=r"give the checkpoint \(best\.pt\)"):
        load_predictor(path, compile=True)


def test_pictures_of_a_size_that_the_backbone_does_not_take_are_told(checkpoint):
    predictor = Predictor(load_checkpoint(checkpoint))
    network = predictor.model.backbone.network
    usual = network.forward

    def one_size(images):
        if images.shape[-1] != 64:
            raise RuntimeError("made for 64")
        return usual(images)

    network.forward = one_size
    assert predictor.predict([torch.zeros(3, 64, 64, dtype=torch.uint8)])
    with pytest.raises(InputError, match=r"no pictures that come to 64 x 96 pixels.*made for 64"):
        predictor.predict([torch.zeros(3, 64, 96, dtype=torch.uint8)])


def test_wrong_pictures_are_refused(checkpoint):
    predictor = load_predictor(checkpoint)
    assert predictor.predict([]) == []
    with pytest.raises(ValueError, match="not uint8"):
        predictor.predict([torch.zeros(3, 9, 9)])
    with pytest.raises(ValueError, match="RGB"):
        predictor.predict([torch.zeros(9, 9, 3, dtype=torch.uint8)])


class Everywhere:
    """A stand-in that finds one box: the middle of the picture."""

    class_names = ("cat", "dog")
    names = {"boxes": ("cat", "dog")}
    kinds = {"boxes": "boxes"}
    farthest = {}

    def predict(self, images):
        found = []
        for image in images:
            height, width = image.shape[1:]
            box = torch.tensor([[width / 4, height / 4, width / 2, height / 2]])
            labels = BoxLabels.of(box, torch.tensor([1]), 2, scores=torch.tensor([0.75]))
            found.append({"boxes": labels})
        return found


def write_picture(path, height=40, width=60):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 90, np.uint8))


def test_pictures_of_a_folder_to_files(tmp_path):
    for name in ("in/a.jpg", "in/b/c.png", "in/b/d.tif"):
        write_picture(tmp_path / name)
    calls = []
    path = predict_to_files(
        Everywhere(), [tmp_path / "in"], tmp_path / "out", 2, lambda *done: calls.append(done)
    )
    results = json.loads(path.read_text())
    assert [i["file_name"] for i in results["images"]] == ["a.jpg", "b/c.png", "b/d.tif"]
    assert results["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    first = results["annotations"][0]
    assert first["bbox"] == [15, 10, 15, 10]
    assert (first["category_id"], first["score"], first["image_id"]) == (2, 0.75, 1)
    for name in ("a.jpg", "b/c.png", "b/d.tif.jpg"):
        drawn = cv2.imread(str(tmp_path / "out/drawn" / name))
        assert drawn.shape == (40, 60, 3)
        assert np.abs(drawn.astype(int) - 90).max() > 20  # something was drawn
    assert calls == [(2, 3), (3, 3)]


def test_boxes_that_are_hardly_believed_are_in_the_results_alone(tmp_path):
    """A detector gives a hundred boxes a picture, which hid the picture."""
    write_picture(tmp_path / "a.png")
    for least, boxes in ((0.8, False), (0.7, True)):
        path = predict_to_files(
            Everywhere(), [tmp_path / "a.png"], tmp_path / "out", draw_from=least
        )
        assert len(json.loads(path.read_text())["annotations"]) == 1
        drawn = cv2.imread(str(tmp_path / "out/drawn/a.png"))
        assert (np.abs(drawn.astype(int) - 90).max() > 20) == boxes


def test_a_picture_too_large_to_be_drawn_is_among_the_results(tmp_path):
    write_picture(tmp_path / "in/a.tif", 40, 65_501)
    write_picture(tmp_path / "in/b.tif")
    with pytest.warns(UserWarning, match=r"a\.tif\.jpg: not written, since no side of a JPEG"):
        path = predict_to_files(Everywhere(), [tmp_path / "in"], tmp_path / "out")
    results = json.loads(path.read_text())
    assert [i["file_name"] for i in results["images"]] == ["a.tif", "b.tif"]
    assert {a["image_id"] for a in results["annotations"]} == {1, 2}
    assert [p.name for p in (tmp_path / "out/drawn").iterdir()] == ["b.tif.jpg"]


def test_sources_above_the_working_directory_are_written_below_the_output(tmp_path, monkeypatch):
    for name in ("pool/1.jpg", "work/here/data/2.jpg"):
        write_picture(tmp_path / name)
    before = (tmp_path / "pool/1.jpg").read_bytes()
    monkeypatch.chdir(tmp_path / "work/here")
    path = predict_to_files(Everywhere(), ["../../pool", "data"], "out")
    names = ["pool/1.jpg", "work/here/data/2.jpg"]
    assert [i["file_name"] for i in json.loads(path.read_text())["images"]] == names
    drawn = tmp_path / "work/here/out/drawn"
    assert [p.relative_to(drawn).as_posix() for p in sorted(drawn.rglob("*.jpg"))] == names
    assert (tmp_path / "pool/1.jpg").read_bytes() == before
    # above a link is the folder that it leads to
    (tmp_path / "link").symlink_to(tmp_path / "work/here")
    root, files = find_sources([tmp_path / "link/../here/data"])
    assert (root, files) == (tmp_path / "work/here/data", [tmp_path / "work/here/data/2.jpg"])


def test_no_source_is_overwritten_by_the_drawing_of_another(tmp_path):
    for name in ("a.jpg", "out/drawn/a.jpg"):
        write_picture(tmp_path / name)
    before = (tmp_path / "out/drawn/a.jpg").read_bytes()
    told = r"out/drawn/a\.jpg: is one of the sources.* found in .*/a\.jpg; choose another --out"
    with pytest.raises(InputError, match=told):
        predict_to_files(Everywhere(), [tmp_path], tmp_path / "out")
    assert (tmp_path / "out/drawn/a.jpg").read_bytes() == before


class Maps(Everywhere):
    """A stand-in that sees sky everywhere."""

    names = {"map": ("sky",)}
    kinds = {"map": "maps"}

    def predict(self, images):
        return [
            {"map": MapLabels(torch.zeros(i.shape[1:], dtype=torch.uint8), None, torch.ones(1))}
            for i in images
        ]


@pytest.mark.parametrize(
    ("predictor", "names", "shared"),
    [
        (Maps(), ("a.jpg", "a.png"), r"out/map/a\.png"),
        (Everywhere(), ("a.tif", "a.tif.jpg"), r"out/drawn/a\.tif\.jpg"),
    ],
)
def test_sources_of_one_file_are_refused_before_any_is_predicted(
    tmp_path, predictor, names, shared
):
    for name in ("0.jpg", *names):
        write_picture(tmp_path / "in" / name)
    with pytest.raises(InputError, match=rf"in/{names[0]} and in .* one file, .*{shared}; rename"):
        predict_to_files(predictor, [tmp_path / "in"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_map_is_not_written_over_a_drawing(tmp_path):
    write_picture(tmp_path / "a.png")
    settled([tmp_path / "a.png"], tmp_path / "out", {"map": "maps", "drawn": "tags"})
    with pytest.raises(InputError, match=r"the drawing of .*a\.png and its map would be one file"):
        settled([tmp_path / "a.png"], tmp_path / "out", {"drawn": "maps"})


def test_no_source_is_overwritten_by_a_map(tmp_path):
    write_picture(tmp_path / "map/a.png")
    with pytest.raises(InputError, match=r"map/a\.png: is one of the sources"):
        predict_to_files(Maps(), [tmp_path / "map"], tmp_path)


def test_maps_that_nobody_knew_of_have_whole_names_where_they_clash(tmp_path):
    class Unknown(Maps):
        kinds = {"map": "boxes"}  # of a task of one's own without an exporter

    for name in ("a.jpg", "a.png"):
        write_picture(tmp_path / "in" / name)
    path = predict_to_files(Unknown(), [tmp_path / "in"], tmp_path / "out")
    assert len(json.loads(path.read_text())["images"]) == 2
    assert sorted(p.name for p in tmp_path.glob("out/map/*.png")) == ["a.png", "a.png.png"]


def test_boxes_of_several_tasks_have_files_of_their_own(tmp_path):
    """In one list, `evaluate --detections` would count the second task's as duplicates."""

    class Two(Everywhere):
        names = dict.fromkeys(("near", "far"), ("cat", "dog"))
        kinds = dict.fromkeys(names, "boxes")

        def predict(self, images):
            found = [one["boxes"] for one in super().predict(images)]
            return [{"near": x, "far": x.with_boxes(x.boxes + 1)} for x in found]

    for name in ("a.jpg", "b.jpg"):
        write_picture(tmp_path / "in" / name)
    told = r"results\.json has the boxes of near; the other tasks' are in results_far\.json"
    with pytest.warns(UserWarning, match=told):
        path = predict_to_files(Two(), [tmp_path / "in"], tmp_path / "out")
    assert path == tmp_path / "out/results.json"
    contents = [json.loads(p.read_text()) for p in (path, tmp_path / "out/results_far.json")]
    boxes = [[a.pop("bbox") for a in content["annotations"]] for content in contents]
    assert boxes == [[[15, 10, 15, 10]] * 2, [[16, 11, 15, 10]] * 2]
    assert contents[0] == contents[1] and [a["id"] for a in contents[0]["annotations"]] == [1, 2]


def test_labels_of_ones_own_kind_are_left_out_with_a_word(tmp_path):
    write_picture(tmp_path / "a.png")

    @dataclass(frozen=True, eq=False)
    class Count(Tensors):
        objects: torch.Tensor

    class Counts(Everywhere):
        names = Everywhere.names | {"count": ()}
        kinds = Everywhere.kinds | {"count": "boxes"}  # that it learns from

        def predict(self, images):
            return [{"count": Count(torch.tensor(3))} | found for found in super().predict(images)]

    with pytest.warns(UserWarning, match=r"^count: labels of a kind of their own, .* no file"):
        path = predict_to_files(Counts(), [tmp_path / "a.png"], tmp_path / "out")
    assert len(json.loads(path.read_text())["annotations"]) == 1
    assert (tmp_path / "out" / "drawn" / "a.png").is_file()


def test_tags_of_several_tasks_stand_together(tmp_path):
    class Tags(Everywhere):
        names = {"time": ("day", "night", "other"), "place": ("road", "other")}
        kinds = {"time": "tags", "place": "tags"}

        def predict(self, images):
            told = {"time": [0.75, 0.25, 0.5], "place": [0.125, 0.625]}
            return [
                {n: TagLabels(torch.tensor(p), torch.ones(len(p))) for n, p in told.items()}
                for _ in images
            ]

    write_picture(tmp_path / "a.jpg")
    content = json.loads(
        predict_to_files(Tags(), [tmp_path / "a.jpg"], tmp_path / "out").read_text()
    )
    (image,) = content["images"]
    scores = {"day": 0.75, "night": 0.25, "time/other": 0.5, "road": 0.125, "place/other": 0.625}
    assert image["scores"] == scores and content["tags"] == [*scores]
    assert image["tags"] == ["day", "time/other", "place/other"]


@pytest.mark.parametrize(
    ("farthest", "unit"), [(None, 0.001), (65.534, 0.001), (200, 1 / 256), (1000, 1000 / 65534)]
)
def test_depths_are_written_in_a_unit_that_holds_them(tmp_path, farthest, unit):
    meters = [0.5, 50.0, 65.0 if farthest is None else float(farthest)]

    class Far(Everywhere):
        names, kinds = {"far": ()}, {"far": "depth"}

        def predict(self, images):
            return [{"far": DepthLabels(torch.tensor([meters]))} for _ in images]

    far = Far()
    far.farthest = {} if farthest is None else {"far": farthest}
    write_picture(tmp_path / "a.jpg", 1, 3)
    predict_to_files(far, [tmp_path / "a.jpg"], tmp_path / "out")
    folder = tmp_path / "out/far"
    assert json.loads((folder / "legend.json").read_text()) == {"unit": unit}
    pictures = FileNames.of(tmp_path, ["a.jpg"])
    right = DepthFolder(folder="far", unit=unit)
    read = right.load(pictures, tmp_path / "out", "", Grade.SILVER).labels(0, 1, 3)
    assert read.depth[0].tolist() == pytest.approx(meters, abs=0.51 * unit)
    with pytest.raises(
        InputError, match=rf"legend\.json says .* 1 means {unit} m.*set unit: {unit}"
    ):
        DepthFolder(folder="far", unit=0.25).load(pictures, tmp_path / "out", "", Grade.SILVER)


def test_a_folder_has_maps_of_one_list_of_classes_alone(tmp_path):
    class Mapped(Everywhere):
        kinds = {"map": "maps"}

        def predict(self, images):
            return [
                {"map": MapLabels(torch.ones(1, 1, dtype=torch.uint8), None, torch.ones(2))}
                for _ in images
            ]

    def predicted(picture, *names):
        write_picture(tmp_path / picture, 1, 1)
        model = Mapped()
        model.names = {"map": names}
        predict_to_files(model, [tmp_path / picture], out)

    out = tmp_path / "out"
    predicted("a.jpg", "sky", "sea")
    legend = (out / "map/legend.json").read_text()
    with pytest.raises(InputError, match=r"out/map: has maps in which .* other classes .* --out"):
        predicted("b.jpg", "sea", "sky")
    assert (out / "map/legend.json").read_text() == legend
    predicted("b.jpg", "sky", "sea")
    assert sorted(p.name for p in (out / "map").iterdir()) == ["a.png", "b.png", "legend.json"]


def test_a_folder_has_depths_of_one_unit_alone(tmp_path):
    class Far(Everywhere):
        names, kinds, farthest = {"far": ()}, {"far": "depth"}, {}

        def predict(self, images):
            return [{"far": DepthLabels(torch.tensor([[20.0]]))} for _ in images]

    def predicted(picture, **farthest):
        write_picture(tmp_path / picture, 1, 1)
        far = Far()
        far.farthest = farthest
        predict_to_files(far, [tmp_path / picture], out)

    out = tmp_path / "out"
    predicted("a.jpg", far=200)
    legend = out / "far/legend.json"
    with pytest.raises(InputError, match=r"out/far: has depths .* 0\.00390625 m.* --out"):
        predicted("b.jpg", far=30)
    assert sorted(p.name for p in legend.parent.iterdir()) == ["a.png", "legend.json"]
    assert json.loads(legend.read_text()) == {"unit": 1 / 256}
    predicted("b.jpg", far=150)
    legend.unlink()  # as versions did that wrote millimeters alone
    with pytest.raises(InputError, match=r"means 0\.001 m"):
        predicted("c.jpg", far=200)
    predicted("c.jpg", far=30)
    assert json.loads(legend.read_text()) == {"unit": 0.001}


def test_video_to_files(tmp_path):
    codec = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(tmp_path / "v.mp4"), codec, 10, (64, 48))
    for level in range(5):
        writer.write(np.full((48, 64, 3), 40 * level, np.uint8))
    writer.release()
    results = json.loads(
        predict_to_files(Everywhere(), [tmp_path / "v.mp4"], tmp_path / "out", 2).read_text()
    )
    assert [(i["file_name"], i["frame"]) for i in results["images"]] == [
        ("v.mp4", i) for i in range(5)
    ]
    assert len(results["annotations"]) == 5
    drawn = cv2.VideoCapture(str(tmp_path / "out/drawn/v.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 5
    assert drawn.get(cv2.CAP_PROP_FPS) == 10
    drawn.release()


@pytest.mark.parametrize(
    ("words", "together"),
    [([], [1, 1, 1]), (["--batch-size", "2"], [2, 1]), (["--batch-size", "2", "--flip"], [2] * 3)],
)
def test_so_many_pictures_or_views_are_predicted_at_once_as_the_verb_is_told(
    checkpoint, tmp_path, monkeypatch, words, together
):
    for name in "abc":
        write_picture(tmp_path / f"in/{name}.png")
    seen, original = [], Predictor.predict

    def predict(self, images):
        seen.append(len(images))
        return original(self, images)

    monkeypatch.setattr(Predictor, "predict", predict)
    verb = ["predict", "--model", checkpoint, "--device", "cpu", *words]
    files = ["--source", tmp_path / "in", "--out", tmp_path / "out"]
    assert main([str(word) for word in [*verb, *files]]) == 0
    assert seen == together
    assert len(json.loads((tmp_path / "out/results.json").read_text())["images"]) == 3


def test_a_video_of_a_folder_is_predicted_and_one_that_is_cut_short_told(tmp_path):
    write_picture(tmp_path / "in/a.png")
    file = tmp_path / "in/b/v.avi"
    file.parent.mkdir()
    codec = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(file), codec, 10, (64, 48))
    for level in range(20):
        writer.write(np.full((48, 64, 3), 10 * level, np.uint8))
    writer.release()

    def frames():
        path = predict_to_files(Everywhere(), [tmp_path / "in"], tmp_path / "out")
        images = json.loads(path.read_text())["images"]
        assert images[0]["file_name"] == "a.png"
        assert {image["file_name"] for image in images[1:]} == {"b/v.avi"}
        return len(images) - 1

    assert frames() == 20
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 3 // 4])
    told = r"b/v\.avi: \d+ frames can be decoded, its header tells of 20; is it cut short\?"
    with pytest.warns(UserWarning, match=told):
        assert 5 < frames() < 20


def test_unreadable_files_are_named_and_the_others_done(tmp_path):
    write_picture(tmp_path / "in/good.jpg")
    (tmp_path / "in/bad.jpg").write_bytes(b"nothing")
    (tmp_path / "in/bad.mp4").write_bytes(b"nothing")
    with pytest.raises(InputError) as error:
        predict_to_files(Everywhere(), [tmp_path / "in"], tmp_path / "out", 4)
    assert all(str(tmp_path / "in" / name) in str(error.value) for name in ("bad.jpg", "bad.mp4"))
    assert len(error.value.problems) == 2
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [i["file_name"] for i in results["images"]] == ["good.jpg"]


def test_pictures_that_are_not_read_are_told(tmp_path):
    write_picture(tmp_path / "in/good.jpg")
    (tmp_path / "in/IMG_1.HEIC").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"in: 1 pictures are passed over, as \.heic are not read"):
        assert len(find_sources([tmp_path / "in"])[1]) == 1


def test_wrong_sources_are_all_named(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError) as error:
        find_sources([tmp_path / "empty", tmp_path / "notes.txt", tmp_path / "none.jpg"])
    assert len(error.value.problems) == 3
    write_picture(tmp_path / "out/drawn/a.jpg")
    with pytest.raises(InputError, match="overwritten"):
        predict_to_files(Everywhere(), [tmp_path / "out/drawn"], tmp_path / "out")


def test_tasks_are_told_apart_by_kind_and_may_live_elsewhere():
    adapter = TypeAdapter(TaskConfig)
    assert isinstance(adapter.validate_python({"kind": "detection"}), DetectionConfig)
    elsewhere = adapter.validate_python({"kind": f"{__name__}:OtherConfig", "depth": 3})
    assert isinstance(elsewhere, OtherConfig)
    dumped = adapter.dump_python(elsewhere, mode="json")
    assert dumped["depth"] == 3
    assert adapter.validate_python(dumped) == elsewhere
    for wrong in ("json:loads", "no.such.module:Config", "juggling"):
        with pytest.raises(ValidationError):
            adapter.validate_python({"kind": wrong})


class OtherConfig(DetectionConfig):
    kind: str = ""
    depth: int = 1
