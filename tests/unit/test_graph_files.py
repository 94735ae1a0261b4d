"""ONNX and pt2 files: what the model finds, and a refusal of what cannot be."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from deploy_page import printed, programs
from PIL import Image
from test_export import CLASSES, LONG, SHORT, tiny_model, tiny_settings

from detmtl.cli import main
from detmtl.data.fit import scale_boxes
from detmtl.data.images import read_image
from detmtl.inference import graph_files, graph_predictor
from detmtl.inference.canvas import canvas_size, on_canvas
from detmtl.inference.export import ExportError, export
from detmtl.inference.exported import RawOutputs
from detmtl.inference.exported import exported as tasks_of
from detmtl.inference.frozen import in_dtype
from detmtl.inference.graph_predictor import load_graph
from detmtl.inference.predictor import change_test, load_checkpoint, load_predictor
from detmtl.inference.torchscript import EXTRA_FILE
from detmtl.inference.views import ViewSettings
from detmtl.inference.views_predictor import ViewsPredictor
from detmtl.structures.errors import InputError

SIZES = [(75, 100), (91, 130), (150, 200)]  # which come to a canvas of 96 x 128 in the model, too


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    settings = tiny_settings()
    path = tmp_path_factory.mktemp("run") / "best.pt"
    weights = tiny_model(settings).state_dict()
    content = {"format": 1, "settings": settings, "classes": CLASSES, "step": 7, "model": weights}
    torch.save(content, path)
    return path


@pytest.fixture(scope="module", params=["onnx", "pt2"])
def exported(request, checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / f"model.{request.param}"
    return request.param, path, export(checkpoint, path, request.param)


def _decoded(checkpoint: Path, canvas: torch.Tensor, size: torch.Tensor) -> list[torch.Tensor]:
    """Returns all boxes, scores and classes that the model's own decoder finds on a canvas."""
    loaded = load_checkpoint(checkpoint)
    decoder = loaded.model.tasks["boxes"].decoder
    decoder.detections = 10_000
    with torch.inference_mode():
        return list(decoder(loaded.model(canvas)["boxes"], size[None])[0])


def _with_area(found: list[torch.Tensor]) -> list[torch.Tensor]:
    """Returns what is found, without the boxes that lie in the padding alone."""
    there = (found[0][:, 2:] > found[0][:, :2]).all(1)
    return [x[there] for x in found]


def test_the_file_agrees_with_the_model_and_says_so(exported, checkpoint):
    format, path, report = exported
    assert report.method == "exported" and report.difference.detections > 100
    assert report.difference.matching > 0.97
    assert report.difference.outputs is None and "norm" not in str(report)  # not compared
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # one file, nothing unfinished
    graph, about = load_graph(path, format)
    assert about["classes"] == CLASSES and about["test"]["score_threshold"] == 0.05
    assert about["input"] == {"short": SHORT, "long": LONG, "height": 96, "width": 128}
    g = torch.Generator().manual_seed(5)
    picture = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8, generator=g)
    canvas, size = on_canvas(picture, SHORT, LONG)
    boxes, scores, labels = (torch.as_tensor(x) for x in graph(canvas, size, torch.tensor([0.05])))
    expected = [x[:100] for x in _with_area(_decoded(checkpoint, canvas, size))]
    n = len(expected[1])
    assert 3 < n <= 100 and boxes.shape == (100, 4)
    torch.testing.assert_close(scores[:n], expected[1], atol=1e-4, rtol=0)
    torch.testing.assert_close(boxes[:n], expected[0], atol=2e-2, rtol=0)
    assert torch.equal(labels[:n], expected[2])
    assert (labels[n:] == -1).all() and (scores[n:] == 0).all()


def test_an_exported_file_is_no_checkpoint(exported):
    format, path, _ = exported
    kind = {"onnx": "ONNX", "pt2": "pt2"}[format]
    told = rf"exported file \({kind}\).* best\.pt of its run; the verb predict takes exported files"
    with pytest.raises(InputError, match=told):
        load_checkpoint(path)


def test_predicting_with_the_file(exported, checkpoint):
    """In pixels of pictures of any size, and of those beyond a score alone."""
    _, path, _ = exported
    file, model = load_predictor(path), load_predictor(checkpoint)
    assert file.names == model.names and file.kinds == model.kinds
    g = torch.Generator().manual_seed(2)
    for size in SIZES:
        picture = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=g)]
        change_test(model, {"score_threshold": 0.05}, "--set")
        expected = model.predict(picture)[0]["boxes"][:20]
        change_test(file, {"score_threshold": float(expected.scores[-1])}, "--set")
        found = file.predict(picture)[0]["boxes"]
        assert 15 <= len(found) <= 25 and found.scores.min() > expected.scores[-1]
        gap = (found.boxes[:, None] - expected.boxes).abs().amax(-1)
        gap += 100 * (found.classes[:, None] != expected.classes)
        assert (gap.amin(1) < 0.1).float().mean() > 0.9
    with pytest.raises(InputError, match="--set: nms: this exported file has no such setting"):
        change_test(file, {"nms": 0.3}, "--set")
    for where, told in (({"compile": True}, "is not compiled"), ({"device": "cuda"}, "on a CPU")):
        with pytest.raises(InputError, match=told):
            load_predictor(path, **where)


@pytest.mark.parametrize("view", [{"flip": True}, {"scales": (1.0, 1.5)}, {"tile": 96}], ids=str)
def test_several_views_of_a_file_are_joined_as_the_model_s(exported, checkpoint, view):
    _, path, _ = exported
    g = torch.Generator().manual_seed(2)
    picture = torch.randint(0, 256, (3, 75, 100), dtype=torch.uint8, generator=g)
    file, model = (
        ViewsPredictor(load_predictor(x), ViewSettings(**view)) for x in (path, checkpoint)
    )
    found, expected = (x.predict([picture])[0]["boxes"] for x in (file, model))
    assert len(expected) > 50 and len(found) == pytest.approx(len(expected), rel=0.1)
    if "tile" not in view:  # tiles have another padding in the model
        gap = (found.boxes[:, None] - expected.boxes).abs().amax(-1)
        gap += 100 * (found.classes[:, None] != expected.classes)
        assert (gap.amin(1) < 0.1).float().mean() > 0.9
    for name, value in (("nms", 0.3), ("detections", 5), ("class_agnostic", True)):
        with pytest.raises(InputError, match=rf"{name}: .*can be changed; .*best\.pt"):
            change_test(file, {name: value}, "--set")


@pytest.mark.parametrize("exported", ["pt2"], indirect=True)
def test_a_file_of_another_name_is_read_without_a_complaint(exported, tmp_path):
    _, path, _ = exported
    shutil.copy(path, tmp_path / "model.pt")
    code = "import sys; from detmtl.inference.predictor import load_predictor as load; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code}print(load(sys.argv[1]).names)", tmp_path / "model.pt"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "boxes" in done.stdout and "pt2" not in done.stderr


def test_the_verb_predict_takes_the_file(exported, tmp_path, capsys):
    _, path, _ = exported
    g = torch.Generator().manual_seed(2)
    picture = torch.randint(0, 256, (75, 100, 3), dtype=torch.uint8, generator=g)
    Image.fromarray(picture.numpy()).save(tmp_path / "a.png")
    words = ["predict", "--model", path, "--source", tmp_path / "a.png", "--out", tmp_path / "out"]
    assert main([*map(str, words), "--set", "score_threshold=0.1"]) == 0
    rows = json.loads((tmp_path / "out" / "results.json").read_text())["annotations"]
    (own,) = load_predictor(path).predict([picture.permute(2, 0, 1)])
    kept = own["boxes"].scores > 0.1
    assert len(rows) == int(kept.sum()) > 3
    assert [x["score"] for x in rows] == pytest.approx(own["boxes"].scores[kept].tolist(), abs=1e-3)
    assert main([*map(str, words), "--precision", "bf16"]) == 2
    assert f"--precision: {path} is an exported file" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_files_that_are_no_graphs_of_ours(tmp_path, format):
    path = tmp_path / f"m.{format}"
    path.write_bytes(b"something")
    with pytest.raises(InputError, match=f"no readable {format} file"):
        load_graph(path, format)
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [x], [y])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "other.onnx")
    with pytest.raises(InputError, match=r"holds no detmtl\.json.*teacher of the kind onnx"):
        load_predictor(tmp_path / "other.onnx")
    model = onnx.load(tmp_path / "other.onnx")
    onnx.helper.set_model_props(model, {EXTRA_FILE: "{}"})
    onnx.save(model, tmp_path / "other.onnx")
    with pytest.raises(
        InputError, match=r"detmtl\.json has no classes, input, settings, task; export"
    ):
        load_predictor(tmp_path / "other.onnx")


@pytest.mark.parametrize(
    ("size", "orientation"), [((100, 75), 1), ((160, 120), 6), ((90, 40), 1), ((169, 132), 6)]
)
@pytest.mark.parametrize("exported", ["onnx"], indirect=True)
def test_the_program_of_the_page_finds_the_same(exported, tmp_path, size, orientation):
    """In a process without torch, in pixels of the picture as people see it."""
    format, path, _ = exported
    g = torch.Generator().manual_seed(1)
    coarse = torch.rand(1, 3, 4, 5, generator=g) * 255
    smooth = F.interpolate(coarse, size=size[::-1], mode="bicubic")[0].clamp(0, 255).byte()
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(smooth.permute(1, 2, 0).numpy())
    picture.save(tmp_path / "picture.jpg", exif=exif, quality=100, subsampling=0)
    found = [line.split() for line in printed(programs()[0], path, tmp_path)]
    seen = torch.from_numpy(read_image(tmp_path / "picture.jpg")).permute(2, 0, 1)
    assert (seen.shape[1] > seen.shape[2]) == (orientation == 6)
    canvas, inside = on_canvas(seen, SHORT, LONG)
    file = graph_predictor.GraphPredictor(*load_graph(path, format))
    own = file.on_canvas(canvas, inside)["boxes"]
    after = (seen.shape[1], seen.shape[2])
    boxes = scale_boxes(own.boxes, tuple(inside.tolist()), after).tolist()
    expected = [
        (CLASSES[c], s, *b) for c, s, b in zip(own.classes, own.scores.tolist(), boxes, strict=True)
    ]
    assert len(found) > 3 and abs(len(found) - len(expected)) <= 0.2 * len(expected)
    near = [
        any(
            name == its_name
            and float(score) == pytest.approx(its_score, abs=0.02)
            and [float(x) for x in box] == pytest.approx(its_box, abs=0.5)
            for its_name, its_score, *its_box in expected
        )
        for name, score, *box in found
    ]
    assert sum(near) >= 0.9 * len(near)


def test_what_lies_in_the_padding_takes_no_place(exported, checkpoint):
    format, path, _ = exported
    graph, _ = load_graph(path, format)
    g = torch.Generator().manual_seed(5)
    picture = torch.randint(0, 256, (3, 20, 300), dtype=torch.uint8, generator=g)
    canvas, size = on_canvas(picture, SHORT, LONG)
    boxes, scores, labels = (torch.as_tensor(x) for x in graph(canvas, size, torch.tensor([0.05])))
    found = _decoded(checkpoint, canvas, size)
    assert len(_with_area([x[:100] for x in found])[1]) < 80
    expected, n = _with_area(found)[1][:100], int((labels >= 0).sum())
    assert (boxes[:n, 2:] > boxes[:n, :2]).all() and n == len(expected) > 20
    torch.testing.assert_close(scores[:n], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("few", [0, 1, 2])
def test_a_picture_with_next_to_nothing_on_it(exported, few):
    format, path, _ = exported
    graph, _ = load_graph(path, format)
    g = torch.Generator().manual_seed(5)
    picture = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8, generator=g)
    canvas, size = on_canvas(picture, SHORT, LONG)
    _, all_scores, _ = (torch.as_tensor(x) for x in graph(canvas, size, torch.tensor([0.0])))
    boxes, scores, labels = (
        torch.as_tensor(x) for x in graph(canvas, size, all_scores[few : few + 1])
    )
    assert (labels >= 0).sum() == few and boxes.shape == (100, 4)
    assert torch.equal(scores[:few], all_scores[:few]) and (scores[few:] == 0).all()


def test_onnx_file_runs_without_torch(checkpoint, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "m.onnx"
    export(checkpoint, path, "onnx")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert {i.name: i.shape for i in session.get_inputs()} == {
        "image": [1, 3, 96, 128],
        "size": [2],
        "threshold": [1],
    }
    about = json.loads(session.get_modelmeta().custom_metadata_map[EXTRA_FILE])
    assert about["task"] == "boxes"
    feed = {
        "image": np.zeros((1, 3, 96, 128), np.uint8),
        "size": np.array([75, 100]),
        "threshold": np.array([0.0], np.float32),
    }
    boxes, scores, labels = session.run(["boxes", "scores", "labels"], feed)
    assert (np.diff(scores) <= 0).all() and set(labels) <= {-1, 0, 1, 2}
    assert boxes[labels >= 0].min() >= 0 and (boxes[labels >= 0][:, 2:] <= (100, 75)).all()


def test_a_file_that_disagrees_is_not_written(checkpoint, tmp_path, monkeypatch):
    path = tmp_path / "m.pt2"
    path.write_text("an older file")
    real = graph_files.load_graph

    def wrong(path, format):
        graph, about = real(path, format)
        return lambda *given: [x * 0.9 for x in graph(*given)], about

    monkeypatch.setattr(graph_files, "load_graph", wrong)
    with pytest.raises(ExportError, match=r"disagrees[\s\S]*no match for"):
        export(checkpoint, path, "pt2")
    assert path.read_text() == "an older file"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_file_of_bfloat16_is_its_network_s(checkpoint, tmp_path, monkeypatch):
    report = export(checkpoint, tmp_path / "m.pt2", "pt2", "bfloat16")
    assert report.difference.matching == 1 and report.difference.detections > 100
    assert 1e-4 < report.difference.outputs < 0.1
    network = RawOutputs(in_dtype(load_checkpoint(checkpoint).model, torch.bfloat16), ["boxes"])
    with torch.no_grad():
        for parameter in network.model.backbone.parameters():
            parameter *= 1.5
    loaded = load_checkpoint(checkpoint)
    tasks = tasks_of(loaded.model, tmp_path)
    graph = graph_files.graph_of(network, tasks, loaded)
    found = graph_files.check_graph(loaded, tasks, graph, tmp_path / "m.pt2", "pt2")
    assert "off by" in found.problems[0] and "no match for" in found.problems[-1]


@pytest.mark.parametrize("exported", ["pt2"], indirect=True)
def test_a_model_that_finds_nothing_at_all_is_not_checked(exported, checkpoint, monkeypatch):
    loaded, (format, path, _) = load_checkpoint(checkpoint), exported
    with torch.no_grad():
        for parameter in loaded.model.tasks["boxes"].parameters():
            parameter.fill_(torch.nan)
    nothing = [torch.zeros(100, 4), torch.zeros(100), torch.full((100,), -1)]
    about = load_graph(path, format)[1]
    monkeypatch.setattr(graph_files, "load_graph", lambda *_: (lambda *given: nothing, about))
    tasks = tasks_of(loaded.model, path)
    graph = graph_files.graph_of(RawOutputs(loaded.model, ["boxes"]), tasks, loaded)
    found = graph_files.check_graph(loaded, tasks, graph, path, format)
    assert found.problems == ("boxes: nothing was found to compare, at any score",)


def test_what_cannot_be_is_refused(checkpoint, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"end in \.onnx"):
        export(checkpoint, tmp_path / "m.torchscript", "onnx")
    with pytest.raises(InputError, match="bfloat16"):
        export(checkpoint, tmp_path / "m.onnx", "onnx", "bfloat16")
    monkeypatch.setattr(graph_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'detmtl\[onnx\]'"):
        export(checkpoint, tmp_path / "m.onnx", "onnx")


def test_portrait_pictures_are_scaled_to_the_height():
    canvas, size = on_canvas(torch.full((3, 200, 100), 7, dtype=torch.uint8), 75, 100)
    assert canvas_size(75, 100) == (96, 128) and canvas.shape == (1, 3, 96, 128)
    assert size.tolist()[0] <= 96 and canvas[0, 0, : size[0], : size[1]].eq(7).all()
    assert int(canvas.sum()) == 7 * 3 * int(size[0] * size[1])
