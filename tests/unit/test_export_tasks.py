"""A file with several tasks does for each what the model does."""

import copy
from dataclasses import replace

import pytest
import torch
from deploy_page import printed, programs
from PIL import Image
from torch import nn

from detmtl.inference.export import ExportError, export_graph, export_model
from detmtl.inference.exported import RawOutputs, exported
from detmtl.inference.parity import BFLOAT16, FLOAT32, compare_details, compare_maps_and_tags
from detmtl.inference.predictor import LoadedModel, Predictor, ScriptPredictor, load_predictor
from detmtl.inference.torchscript import load_torchscript
from detmtl.inference.views import ViewSettings
from detmtl.inference.views_predictor import ViewsPredictor
from detmtl.models.backbone import BackboneSettings
from detmtl.models.decoding import least_logit
from detmtl.models.fpn import FPNSettings
from detmtl.structures.details import Details
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, MapLabels, TagLabels
from detmtl.tasks.attributes import AttributesConfig
from detmtl.tasks.depth import DepthConfig
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.keypoints import KeypointsConfig
from detmtl.tasks.masks import MasksConfig
from detmtl.tasks.multitask import ModelSettings, build_model
from detmtl.tasks.semantic import SemanticConfig
from detmtl.tasks.tags import TagsConfig
from detmtl.tasks.task import Exporter

BOXES, MAPS, TAGS = ["cat", "dog"], ["grass", "sky", "road"], ["night", "rain"]
SIZES = [(75, 100), (33, 47), (200, 90)]


def _loaded(**tasks) -> LoadedModel:
    torch.manual_seed(0)
    model = build_model(
        ModelSettings(
            backbone=BackboneSettings(name="test_efficientnet"), fpn=FPNSettings(channels=16)
        ),
        tasks,
        BOXES,
        other_names={"maps": MAPS, "tags": TAGS, "attributes": VALUES, "keypoints": POINTS},
    ).eval()
    for task in model.tasks.values():  # outputs that differ from place to place
        for parameter in task.parameters():
            if parameter.dim() == 4:
                nn.init.kaiming_normal_(parameter.data)
    return LoadedModel(model, tuple(BOXES), 75, 100, {})


ALL = {"boxes": DetectionConfig(), "map": SemanticConfig(), "tags": TagsConfig()}
ABOUT = {"about": AttributesConfig(), "masks": MasksConfig(), "points": KeypointsConfig()}
VALUES = ["color/red", "color/blue", "size/big", "size/small"]
POINTS = ["cat/nose", "cat/tail", "dog/nose"]


@pytest.fixture(scope="module")
def all_tasks(tmp_path_factory):
    loaded, path = _loaded(**ALL), tmp_path_factory.mktemp("all") / "m.torchscript"
    return loaded, path, export_model(loaded, path)


def _images():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *s), dtype=torch.uint8, generator=generator) for s in SIZES]


def test_every_task_is_in_the_file(all_tasks):
    loaded, path, report = all_tasks
    assert not report.difference.problems
    module, about = load_torchscript(path)
    assert about["task"] == "boxes" and about["tasks"]["map"]["classes"] == MAPS
    for found, expected, size in zip(
        module(_images()), Predictor(loaded).predict(_images()), SIZES, strict=True
    ):
        assert {*found} == {"boxes", "labels", "scores", "map", "map.confidence", "tags"}
        torch.testing.assert_close(found["boxes"], expected["boxes"].boxes, atol=1e-2, rtol=0)
        assert found["map"].shape == size and found["map"].dtype == torch.uint8
        assert (found["map"] == expected["map"].classes).float().mean() > 0.999
        torch.testing.assert_close(found["tags"], expected["tags"].targets, atol=1e-4, rtol=0)
        sure = found["map.confidence"]
        torch.testing.assert_close(sure, expected["map"].weights, atol=1e-4, rtol=0)
        assert found["map"].unique().numel() > 1 and sure.std() > 0.01


def test_views_of_a_file_change_its_map_as_the_model_s(all_tasks):
    picture = _images()[:1]
    plain = load_predictor(all_tasks[1]).predict(picture)[0]["map"]
    found, expected = (
        ViewsPredictor(predictor, ViewSettings(flip=True)).predict(picture)[0]["map"]
        for predictor in (load_predictor(all_tasks[1]), Predictor(all_tasks[0]))
    )
    assert (found.classes == expected.classes).float().mean() > 0.999
    assert (found.classes != plain.classes).float().mean() > 0.01
    torch.testing.assert_close(found.weights, expected.weights, atol=1e-3, rtol=0)


def test_the_file_predicts_labels_of_each_task(all_tasks):
    predictor = load_predictor(all_tasks[1])
    assert predictor.kinds == {"boxes": "boxes", "map": "maps", "tags": "tags"}
    assert predictor.kinds == Predictor(all_tasks[0]).kinds
    assert predictor.names == {"boxes": tuple(BOXES), "map": tuple(MAPS), "tags": tuple(TAGS)}
    found = predictor.predict(_images())[0]
    assert isinstance(found["map"], MapLabels) and isinstance(found["tags"], TagLabels)


@pytest.fixture(scope="module")
def about_boxes(tmp_path_factory):
    # one of them stands before its detection task
    loaded = _loaded(points=ABOUT["points"], **ALL, about=ABOUT["about"], masks=ABOUT["masks"])
    path = tmp_path_factory.mktemp("about") / "m.torchscript"
    return loaded, path, export_model(loaded, path)


def _every_score(decoder):
    decoder.score_threshold, decoder.least_logit = 0.0, -float("inf")


def test_what_is_said_of_boxes_is_boxes(about_boxes):
    loaded, path, _ = about_boxes
    for predictor in (load_predictor(path), Predictor(loaded)):
        boxes = {*ABOUT, "boxes"}
        assert {n for n, kind in predictor.kinds.items() if kind == "boxes"} == boxes


def test_what_is_said_of_boxes_is_in_the_file(about_boxes):
    loaded, path, report = about_boxes
    assert not report.difference.problems
    file, model = ScriptPredictor(path), Predictor(loaded)
    _every_score(file.module.decoder)
    _every_score(loaded.model.tasks["boxes"].decoder)
    raw = file.module(_images())
    for one, found, expected, (height, width) in zip(
        raw, file.predict(_images()), model.predict(_images()), SIZES, strict=True
    ):
        boxes = expected["boxes"]
        assert len(boxes) == 100 and one["masks"].shape == (100, 28, 28)
        assert one["about"].shape == (100, 4) and one["points"].shape == (100, 3, 3)
        a, b = found["about"].details, expected["about"].details
        torch.testing.assert_close(a.attribute_scores, b.attribute_scores, atol=1e-4, rtol=0)
        assert a.attribute_names == b.attribute_names == tuple(VALUES)
        masks = found["masks"].details.masks - expected["masks"].details.masks
        assert masks.abs().mean() < 1e-4 and expected["masks"].details.masks.std() > 0.01
        points, wanted = found["points"].details.keypoints, expected["points"].details.keypoints
        assert ((points - wanted)[..., :2].abs().amax(-1) < 0.05).float().mean() > 0.98
        assert ((wanted[..., 2] > 0) == torch.tensor([[1, 1, 0], [0, 0, 1]])[boxes.classes]).all()
        low, high = boxes.boxes[:, None, :2] - 1e-3, boxes.boxes[:, None, 2:] + 1e-3
        assert ((wanted[..., :2] >= low) & (wanted[..., :2] <= high)).all()
        assert wanted[..., 0].max() > 0.5 * width and wanted[..., 1].max() > 0.5 * height
        assert torch.equal(found["about"].boxes, found["boxes"].boxes)


def test_bfloat16_keeps_what_is_said_of_boxes(tmp_path):
    loaded = _loaded(boxes=DetectionConfig(), **ABOUT)
    report = export_model(loaded, tmp_path / "m.torchscript", "bfloat16", _images())
    assert not report.difference.problems


def test_a_file_that_says_other_things_of_boxes_is_not_written(tmp_path, monkeypatch):
    from detmtl.inference import export as exporting

    original = exporting.ScriptPredictor.predict

    def turned(self, images):
        out = original(self, images)
        for one in out:
            details = one["masks"].details
            other = replace(details, masks=details.masks.flip(2))
            one["masks"] = replace(one["masks"], details=other)
        return out

    monkeypatch.setattr(exporting.ScriptPredictor, "predict", turned)
    with pytest.raises(ExportError, match=r"masks: says the same of .*% of the boxes"):
        export_model(
            _loaded(boxes=DetectionConfig(), masks=MasksConfig()), tmp_path / "m.torchscript"
        )


def _masks(order, turned=False):
    """Returns 20 boxes in this order, the mask of each full or, `turned`, empty."""
    boxes = torch.arange(20.0)[:, None] * 50 + torch.tensor([0.0, 0.0, 30.0, 30.0])
    boxes = BoxLabels.of(boxes, torch.zeros(20), 1, torch.full((20,), 0.5), grade=Grade.SILVER)
    masks = torch.zeros(20, 4, 4) if turned else torch.ones(20, 4, 4)
    return {"m": replace(boxes, details=Details(masks=masks))[torch.tensor([*order])]}


@pytest.mark.parametrize("tolerance", [FLOAT32, BFLOAT16])
def test_what_is_said_of_boxes_is_compared_whatever_their_ranks(tolerance):
    image = [torch.zeros(3, 8, 8, dtype=torch.uint8)]

    def compare(found):
        return compare_details(lambda _: [_masks(range(20))], lambda _: [found], [image], tolerance)

    shifted = [*range(1, 20), 0]
    assert compare(_masks(shifted)) == []
    (problem,) = compare(_masks(shifted, turned=True))
    assert "m: says the same of 0.0% of the boxes" in problem
    (problem,) = compare(_masks(range(15)))
    assert "m: 15 of the model's 20 boxes are in the file" in problem


def test_a_bfloat16_file_is_compared_though_its_model_is_sure_of_nothing(tmp_path, monkeypatch):
    from detmtl.inference import export as exporting

    loaded = _loaded(boxes=DetectionConfig(), masks=MasksConfig())
    loaded.model.tasks["boxes"].decoder.score_threshold = 0.999
    loaded.model.tasks["boxes"].decoder.least_logit = least_logit(0.999)
    report = export_model(loaded, tmp_path / "m.torchscript", "bfloat16")
    assert report.difference.detections > 100 and report.difference.matching == 1
    assert not Predictor(loaded).predict(_images())[0]["boxes"].boxes.numel()
    original = exporting.ScriptPredictor.predict

    def moved(self, images):
        return [
            {n: x.with_boxes(x.boxes + 1) for n, x in one.items()} for one in original(self, images)
        ]

    monkeypatch.setattr(exporting.ScriptPredictor, "predict", moved)
    with pytest.raises(ExportError, match="no match for"):
        export_model(loaded, tmp_path / "other.torchscript", "bfloat16")


@pytest.mark.parametrize("task", [AttributesConfig(of="map"), MasksConfig(of="nobody")])
def test_a_task_about_the_boxes_of_nobody_is_refused(task):
    with pytest.raises(InputError, match=r"tasks.about.of: '\w+' is no detection task"):
        _loaded(about=task, **ALL)


@pytest.mark.parametrize("names", [("map",), ("tags",), ("tags", "map")])
def test_files_without_detection(tmp_path, names):
    loaded = replace(_loaded(**{n: ALL[n] for n in names}), class_names=())
    report = export_model(loaded, tmp_path / "m.torchscript")
    assert "9 pictures compared; raw outputs within" in str(report) and "match" not in str(report)
    predictor = ScriptPredictor(tmp_path / "m.torchscript")
    assert predictor.task is None
    assert {*predictor.predict(_images())[1]} == {*names}


def test_how_far_depths_reach_is_known(tmp_path):
    tasks = {"far": DepthConfig(farthest=30.0), "tags": TagsConfig()}
    settings = {"tasks": {name: task.model_dump(mode="json") for name, task in tasks.items()}}
    loaded = replace(_loaded(**tasks), settings=settings)
    export_model(loaded, tmp_path / "m.torchscript")
    for predictor in (Predictor(loaded), ScriptPredictor(tmp_path / "m.torchscript")):
        assert predictor.farthest == {"far": 30.0}
        assert predictor.predict(_images()[:1])[0]["far"].depth.max() <= 30.001


def test_bfloat16_keeps_maps_and_tags(tmp_path):
    report = export_model(_loaded(**ALL), tmp_path / "m.torchscript", "bfloat16", _images())
    assert not report.difference.problems


def test_names_that_would_hide_others_are_refused(tmp_path):
    loaded = _loaded(boxes=DetectionConfig(), scores=SemanticConfig())
    with pytest.raises(InputError, match="scores would hide what detection gives"):
        export_model(loaded, tmp_path / "m.torchscript")


def test_two_detections_are_refused(tmp_path):
    with pytest.raises(InputError, match="at most one detection task"):
        export_model(_loaded(a=DetectionConfig(), b=DetectionConfig()), tmp_path / "m.torchscript")


@pytest.mark.parametrize("task", [SemanticConfig(), DepthConfig()], ids=lambda x: x.kind)
def test_decoders_of_files_read_sizes_once(task, reads):
    decoder = _loaded(task=task).model.tasks["task"].exporter().decoder
    sizes, originals = torch.tensor([[30, 20]] * 3), torch.tensor([[60, 40], [30, 20], [7, 9]])
    reads.clear()  # by the building
    found = decoder([torch.rand(3, 3 if task.kind == "semantic" else 1, 8, 8)], sizes, originals)
    assert [x.shape for x in found[:3]] == [(60, 40), (30, 20), (7, 9)]
    assert reads == ["tolist", "tolist"]


FAR = {"far": DepthConfig(farthest=30.0)}
OF_FAR = {"tasks": {"far": FAR["far"].model_dump(mode="json")}}


@pytest.fixture(scope="module", params=["onnx", "pt2"])
def graph(request, tmp_path_factory):
    # one of the tasks about boxes stands before its detection task
    tasks = {"points": ABOUT["points"]} | ALL | FAR | {n: ABOUT[n] for n in ("about", "masks")}
    loaded = replace(_loaded(**tasks), settings=OF_FAR)
    path = tmp_path_factory.mktemp("graph") / f"m.{request.param}"
    return loaded, path, export_graph(loaded, path, request.param)


def test_a_graph_finds_what_the_model_finds_in_every_task(graph):
    loaded, path, report = graph
    assert not report.difference.problems and report.difference.detections > 100
    own = copy.deepcopy(loaded.model)
    file, model = load_predictor(path), Predictor(replace(loaded, model=own))
    assert file.kinds == model.kinds and file.names == model.names
    assert file.farthest == {"far": 30.0} and {*file.describing} == {*ABOUT}
    _every_score(file.decoders()["boxes"])
    _every_score(own.tasks["boxes"].decoder)
    generator = torch.Generator().manual_seed(3)
    # pictures that come to a multiple of 32 pixels have the same canvas in both
    pictures = [
        torch.randint(0, 256, (3, *s), dtype=torch.uint8, generator=generator)
        for s in [(75, 100), (150, 200)]
    ]
    for found, expected, picture in zip(
        file.predict(pictures), model.predict(pictures), pictures, strict=True
    ):
        size = picture.shape[1:]
        assert found["map"].classes.shape == size and found["map"].classes.unique().numel() > 1
        assert (found["map"].classes == expected["map"].classes).float().mean() > 0.999
        torch.testing.assert_close(found["map"].weights, expected["map"].weights, atol=1e-4, rtol=0)
        torch.testing.assert_close(found["tags"].targets, expected["tags"].targets)
        torch.testing.assert_close(found["far"].depth, expected["far"].depth, rtol=1e-3, atol=0)
        assert found["far"].depth.shape == size and found["far"].depth.std() > 0.01
    details = {n: found[n].details for n in ABOUT}
    assert len(found["boxes"]) == 100 and details["masks"].masks.shape == (100, 28, 28)
    assert details["points"].keypoints.shape == (100, 3, 3)
    assert details["about"].attribute_scores.shape == (100, 4)
    own.tasks["boxes"].decoder.detections = 1000  # some of its 100 lie in the padding alone
    assert compare_details(file.predict, model.predict, [[x] for x in pictures], FLOAT32) == []
    assert details["points"].keypoints[..., :2].amax() > 100  # in pixels of the picture


@pytest.mark.parametrize("graph", ["onnx"], indirect=True)
def test_the_programs_of_the_page_tell_of_every_task(graph, tmp_path):
    """In a process without torch."""
    _, path, _ = graph
    Image.fromarray(_images()[0].permute(1, 2, 0).numpy()).save(tmp_path / "picture.jpg")
    code = "\n".join(programs())
    assert code.count('about["test"]["score_threshold"]') == 1
    code = code.replace('about["test"]["score_threshold"]', "0.0")  # the model is sure of nothing
    lines = printed(code, path, tmp_path)
    told, number = dict(line.split(" ", 1) for line in lines[-6:]), len(lines) - 6
    assert number > 3 and told["map"] == f"(75, 100) {MAPS}" and told["far"] == "(75, 100) []"
    assert told["about"] == f"({number}, 4) {VALUES}"
    assert told["points"] == f"({number}, 3, 3) {POINTS}"
    assert told["masks"] == f"({number}, 28, 28) []" and "night" in told["tags"]


@pytest.mark.parametrize("names", [("map",), ("tags",), ("tags", "map")])
def test_graphs_without_detection(tmp_path, names):
    loaded = replace(_loaded(**{n: ALL[n] for n in names}), class_names=())
    report = export_graph(loaded, tmp_path / "m.onnx", "onnx")
    assert "9 pictures compared" in str(report) and "match" not in str(report)
    file = load_predictor(tmp_path / "m.onnx")
    assert file.decoders() == {} and {*file.predict(_images()[:1])[0]} == {*names}


def test_a_graph_in_bfloat16_holds_every_task(tmp_path):
    loaded = _loaded(**ALL, **ABOUT)
    report = export_graph(loaded, tmp_path / "m.pt2", "pt2", "bfloat16")
    assert report.difference.matching == 1 and 1e-4 < report.difference.outputs < 0.1


@pytest.mark.parametrize("graph", ["onnx"], indirect=True)
@pytest.mark.parametrize("changed", ["map", "map.confidence", "tags", "far", "masks"])
def test_a_graph_that_says_something_else_is_told(graph, monkeypatch, changed):
    from detmtl.inference import graph_files

    loaded, path, _ = graph
    computes, about = graph_files.load_graph(path, "onnx")
    at = about["outputs"].index(changed)

    def turned(*given):
        found = [torch.as_tensor(x) for x in computes(*given)]
        found[at] = (found[at] + 1) % 3 if changed == "map" else 1 - found[at]
        return found

    monkeypatch.setattr(graph_files, "load_graph", lambda *_: (turned, about))
    monkeypatch.setattr(graph_files, "trial_pictures", lambda *_: [_images()[:1]])
    tasks = exported(loaded.model, path)
    own = graph_files.graph_of(RawOutputs(loaded.model, tasks.names), tasks, loaded)
    problems = graph_files.check_graph(loaded, tasks, own, path, "onnx").problems
    assert problems and all(f"{changed.split('.')[0]}: " in problem for problem in problems)


def test_a_graph_needs_to_know_what_a_task_gives_of_a_whole_canvas(tmp_path, monkeypatch):
    loaded = _loaded(**ALL)
    task = loaded.model.tasks["map"]
    told = replace(task.exporter(), whole=None)
    monkeypatch.setattr(task, "exporter", lambda: told)
    with pytest.raises(InputError, match=r"exporter of map does not say .*whole.*torchscript"):
        export_graph(loaded, tmp_path / "m.onnx", "onnx")


def test_a_decoder_that_reads_values_cannot_be_in_a_graph(tmp_path, monkeypatch):
    class Reading(nn.Module):
        def forward(self, outputs, sizes, originals):
            return [outputs[0].flatten()[: 2 if sizes.tolist()[0][0] > 40 else 1]]

    loaded = _loaded(tags=TagsConfig())
    monkeypatch.setattr(loaded.model.tasks["tags"], "exporter", lambda: Exporter("tags", Reading()))
    with pytest.raises(
        ExportError, match=r"decoder of a task cannot be captured .*torchscript may"
    ):
        export_graph(loaded, tmp_path / "m.pt2", "pt2")
    assert not [*tmp_path.iterdir()]


def test_two_detections_are_refused_in_a_graph(tmp_path):
    loaded = _loaded(a=DetectionConfig(), b=DetectionConfig())
    with pytest.raises(InputError, match=r"m\.onnx: an exported file holds at most one detection"):
        export_graph(loaded, tmp_path / "m.onnx", "onnx")


def test_a_file_whose_map_differs_is_not_written(tmp_path, monkeypatch):
    from detmtl.inference import export as exporting

    loaded = _loaded(map=SemanticConfig())
    original = exporting.ScriptPredictor.predict

    def shifted(self, images):
        return [
            {n: replace(x, classes=(x.classes + 1) % 3) for n, x in one.items()}
            for one in original(self, images)
        ]

    monkeypatch.setattr(exporting.ScriptPredictor, "predict", shifted)
    with pytest.raises(ExportError, match=r"map: .*of the pixels have the same class"):
        export_model(loaded, tmp_path / "m.torchscript")
    assert not (tmp_path / "m.torchscript").exists()


def test_comparing_tells_what_is_missing():
    ones = torch.ones(2)
    tags = [{"t": TagLabels(ones, ones)}]
    image = [torch.zeros(3, 8, 8, dtype=torch.uint8)]

    def compare(found):
        return compare_maps_and_tags(lambda _: tags, lambda _: found, [image], FLOAT32)

    assert compare(tags) == []
    assert "gives nothing for t" in compare([{}])[0]
    assert "off by 0.5" in compare([{"t": TagLabels(ones / 2, ones)}])[0]
    assert "t: 3 tags instead of 2" in compare([{"t": TagLabels(torch.ones(3), torch.ones(3))}])[0]


def test_comparing_tells_of_another_confidence():
    image = [torch.zeros(3, 8, 8, dtype=torch.uint8)]
    sure = MapLabels(torch.zeros(8, 8, dtype=torch.uint8), torch.ones(8, 8), torch.ones(3))

    def compare(found):
        return compare_maps_and_tags(lambda _: [{"m": sure}], lambda _: [found], [image], FLOAT32)

    assert compare({"m": sure}) == compare({"m": replace(sure, weights=None)}) == []
    (problem,) = compare({"m": replace(sure, weights=torch.full((8, 8), 0.75))})
    assert "m: confidences are off by 0.25" in problem
