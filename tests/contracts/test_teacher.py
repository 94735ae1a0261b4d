"""What every teacher promises, whatever its kind."""

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from pydantic import TypeAdapter
from torch import Tensor, nn
from torchvision.models import get_model

from detmtl.data.images import content_hash
from detmtl.inference.export import export_torchscript
from detmtl.inference.torchscript import EXTRA_FILE, deprecation_expected, save_torchscript
from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, UNKNOWN, BoxLabels, Grade, MapLabels, TagLabels
from detmtl.structures.sample import ImageInfo
from detmtl.tasks.multitask import ModelSettings, build_model
from detmtl.tasks.semantic import SemanticConfig
from detmtl.tasks.tags import TagsConfig
from detmtl.teachers.from_checkpoint import PredictorTeacher
from detmtl.teachers.from_results import ResultsTeacher
from detmtl.teachers.teacher import Teacher, TeacherCard
from detmtl.teachers.teachers import AnyTeacher
from detmtl.teachers.tta import TtaSettings, TtaTeacher

CLASSES = ("cat", "dog")
SIZES = ((24, 40), (50, 30), (8, 8), (1, 1), (1, 90))
"""Of the pictures that every kind is shown; the third is black, and only the first two need have
anything in them."""
LARGE = 2


class Finder(nn.Module):
    """Finds two boxes in each picture, one beyond its edge; in no order, as strangers may."""

    def __init__(self, first: int):
        super().__init__()
        self.first = first

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found: list[dict[str, Tensor]] = []
        for image in images:
            height, width = float(image.shape[1]), float(image.shape[2])
            found.append(
                {
                    "boxes": torch.tensor([[1.0, 2.0, 9.0, 9.0], [5.0, 5.0, width + 9, height]]),
                    "labels": torch.tensor([0, 1]) + self.first,
                    "scores": torch.tensor([0.1, 0.9]),
                }
            )
        return found


class Padder(nn.Module):
    """Finds a box in each picture, and is as sure of it as the picture fills the largest that it is given."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        largest = max([image.numel() for image in images])
        found: list[dict[str, Tensor]] = []
        for image in images:
            found.append(
                {
                    "boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
                    "labels": torch.tensor([0]),
                    "scores": torch.tensor([image.numel() / largest]),
                }
            )
        return found


def torchscript(root: Path) -> Teacher:
    with deprecation_expected():
        module = torch.jit.script(Finder(0))
    save_torchscript(module, root / "t.pt", {"classes": list(CLASSES)})
    return (
        TypeAdapter(AnyTeacher).validate_python({"kind": "torchscript", "path": "t.pt"}).load(root)
    )


def results(root: Path) -> Teacher:
    images = [
        {"id": i, "file_name": f"{i}.jpg", "height": h, "width": w}
        for i, (h, w) in enumerate(SIZES)
    ]
    categories = [{"id": 4 + c, "name": name} for c, name in enumerate(CLASSES)]
    (root / "a.json").write_text(json.dumps({"images": images, "categories": categories}))
    rows = [
        {"image_id": i, "category_id": 4 + c, "bbox": [2, 2, 90 * c + 5, 8], "score": 0.1 + 0.8 * c}
        for i in range(LARGE)
        for c in range(2)
    ]
    (root / "r.json").write_text(json.dumps(rows))
    settings = {"kind": "results", "path": "r.json", "annotations": "a.json"}
    return TypeAdapter(AnyTeacher).validate_python(settings).load(root)


def onnx_network(root: Path) -> Teacher:
    answer = np.zeros((1, 7, 2, 2), np.float32)
    answer[0, 0], answer[0, 5] = 0.9, 0.8
    answer[0, 0, 0, 0] = 0.02
    nodes = [
        helper.make_node("ReduceMax", ["image"], ["peak"], keepdims=0),
        helper.make_node("Mul", ["peak", "zero"], ["nothing"]),
        helper.make_node("Add", ["answer", "nothing"], ["output"]),
    ]
    zero = np.zeros((), np.float32)
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 32, 32])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, answer.shape)],
        [numpy_helper.from_array(zero, "zero"), numpy_helper.from_array(answer, "answer")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(root / "n.onnx"))
    settings = {"kind": "onnx", "path": "n.onnx", "classes": list(CLASSES), "threads": 1}
    settings["adapter"] = {"kind": "fastestdet"}
    return TypeAdapter(AnyTeacher).validate_python(settings).load(root)


def checkpoint(root: Path) -> Teacher:
    class Stub:
        class_names = CLASSES

        def decoders(self):
            return {}

        def predict(self, images):
            found = Finder(0)(list(images))
            limits = [torch.tensor([i.shape[2], i.shape[1]] * 2) for i in images]
            return [
                {
                    "boxes": BoxLabels.of(
                        torch.minimum(one["boxes"], limit), one["labels"], 2, one["scores"]
                    )
                }
                for one, limit in zip(found, limits, strict=True)
            ]

    card = TeacherCard(
        name="c",
        weights_sha256="0" * 64,
        classes=CLASSES,
        preprocessing="none",
        versions={"torch": torch.__version__},
    )
    return PredictorTeacher(Stub(), "boxes", card)


@cache
def dense_files() -> dict[str, bytes]:
    """Returns a checkpoint of ours that gives maps and tags, and the file that is exported of it."""
    model = ModelSettings(
        backbone=BackboneSettings(name="test_efficientnet"), fpn=FPNSettings(channels=8)
    )
    tasks = {"map": SemanticConfig(), "tags": TagsConfig()}
    names = {"maps": CLASSES, "tags": CLASSES}
    torch.manual_seed(0)
    network = build_model(model, tasks, [], other_names=names)
    for parameter in network.tasks.parameters():  # outputs that differ from place to place
        if parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter.data)
    settings = {
        "model": model.model_dump(mode="json"),
        "tasks": {name: task.model_dump(mode="json") for name, task in tasks.items()},
        "input": {"short": 48, "long": 64},
        "data": {key: {"classes": list(CLASSES)} for key in names},
    }
    content = {"format": 1, "settings": settings, "classes": [], "model": network.state_dict()}
    with TemporaryDirectory() as folder:
        files = {end: Path(folder) / f"dense.{end}" for end in ("pt", "torchscript")}
        torch.save(content | {"step": 1}, files["pt"])
        export_torchscript(files["pt"], files["torchscript"])
        return {end: path.read_bytes() for end, path in files.items()}


def dense(kind: str, task: str) -> Callable[[Path], Teacher]:
    """Returns what builds a teacher of maps or tags of a model of ours."""
    end = "pt" if kind == "checkpoint" else kind

    def make(root: Path) -> Teacher:
        (root / f"dense.{end}").write_bytes(dense_files()[end])
        return build(root, kind=kind, path=f"dense.{end}", task=task)

    return make


def build(root: Path, **settings) -> Teacher:
    return TypeAdapter(AnyTeacher).validate_python(settings).load(root)


def onnx_map(root: Path) -> Teacher:
    """A network whose scores of three places are the mean colors of the picture."""
    graph = helper.make_graph(
        [
            helper.make_node(
                "AveragePool", ["image"], ["small"], kernel_shape=[4, 4], strides=[4, 4]
            ),
            helper.make_node("Mul", ["small", "four"], ["scores"]),
        ],
        "colors",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 32, 32])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [numpy_helper.from_array(np.float32(4), "four")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, str(root / "m.onnx"))
    names = ["background", *CLASSES]
    return build(
        root, kind="onnx", path="m.onnx", classes=names, adapter={"kind": "map"}, threads=1
    )


def torchvision_detector(root: Path) -> Teacher:
    torch.manual_seed(0)
    network = get_model(
        "ssdlite320_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=3
    )
    for name, parameter in network.named_parameters():
        if re.fullmatch(r"head\.classification_head\.module_list\.\d\.1\.bias", name):
            parameter.data = torch.tensor([-1.0, 0, 1]).repeat(len(parameter) // 3)
    torch.save(network.state_dict(), root / "d.pth")
    return build(
        root,
        kind="torchvision",
        model="ssdlite320_mobilenet_v3_large",
        path="d.pth",
        classes=list(CLASSES),
        options={"detections_per_img": 5},
    )


def torchvision_segmenter(root: Path) -> Teacher:
    torch.manual_seed(0)
    model = "lraspp_mobilenet_v3_large"
    network = get_model(model, weights=None, weights_backbone=None, num_classes=3)
    torch.save(network.state_dict(), root / "s.pth")
    settings = {"kind": "torchvision", "model": model, "path": "s.pth", "side": 40}
    return build(root, **settings, classes=list(CLASSES))


def transformers_detector(root: Path) -> Teacher:
    transformers = pytest.importorskip(
        "transformers", reason="the extra 'transformers' is not there"
    )
    torch.manual_seed(0)
    config = transformers.YolosConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=[32, 32],
        patch_size=16,
        num_detection_tokens=5,
        id2label=dict(enumerate(CLASSES)),
    )
    network = transformers.YolosForObjectDetection(config)
    network.class_labels_classifier.layers[-1].bias.data = torch.tensor([0.0, 2, -2])
    network.save_pretrained(root / "yolos")
    size = {"shortest_edge": 32, "longest_edge": 512}
    transformers.YolosImageProcessor(size=size).save_pretrained(root / "yolos")
    return build(root, kind="transformers", model="yolos")


def simulated(root: Path) -> Teacher:
    images = [
        {"id": i, "file_name": f"{i}.png", "height": h, "width": w}
        for i, (h, w) in enumerate(SIZES)
    ]
    boxes = [
        {"id": 100 * i + k, "image_id": i, "category_id": 1 + k % 2, "bbox": [k % 9, 2, 9, 9]}
        for i in range(LARGE)
        for k in range(20)
    ]
    for box in boxes:
        box |= {"area": 81, "iscrowd": 0}
    categories = [{"id": 1 + c, "name": name} for c, name in enumerate(CLASSES)]
    gold = {"images": images, "categories": categories, "annotations": boxes}
    (root / "gold.json").write_text(json.dumps(gold))
    faults = {"misses": 0.3, "jitter": {"position": 0.2}, "false_positives": {"per_picture": 2}}
    return build(root, kind="simulated", annotations="gold.json", images=".", **faults)


def with_views(teacher: Teacher) -> Teacher:
    return TtaTeacher(teacher, TtaSettings(scales=(0.5, 1, 1.5)))


KINDS: dict[str, Callable[[Path], Teacher]] = {
    "torchscript": torchscript,
    "torchscript, more views": lambda root: with_views(torchscript(root)),
    "torchscript, map": dense("torchscript", "map"),
    "torchscript, tags": dense("torchscript", "tags"),
    "results": results,
    "onnx": onnx_network,
    "onnx, map": onnx_map,
    "onnx, map, more views": lambda root: with_views(onnx_map(root)),
    "checkpoint": checkpoint,
    "checkpoint, map": dense("checkpoint", "map"),
    "checkpoint, map, more views": lambda root: with_views(dense("checkpoint", "map")(root)),
    "checkpoint, tags": dense("checkpoint", "tags"),
    "torchvision": torchvision_detector,
    "torchvision, map": torchvision_segmenter,
    "transformers": transformers_detector,
    "simulated": simulated,
}


@pytest.fixture(params=sorted(KINDS))
def teacher(request, tmp_path) -> Teacher:
    for i, image in enumerate(pictures()):
        cv2.imwrite(str(tmp_path / f"{i}.png"), image.permute(1, 2, 0).numpy()[..., ::-1])
    made = KINDS[request.param](tmp_path)
    made.shown = [  # type: ignore[attr-defined]
        ImageInfo(i, str(tmp_path / f"{i}.jpg"), h, w, "s", content_hash(tmp_path / f"{i}.png"))
        for i, (h, w) in enumerate(SIZES)
    ]
    return made


def pictures() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8) for h, w in SIZES
    ]
    images[2][:] = 0
    return images


def ask(teacher: Teacher, floor: float, which: Sequence[int] = range(len(SIZES))) -> list[Any]:
    images = pictures()
    return list(
        teacher.annotate([images[i] for i in which], [teacher.shown[i] for i in which], floor)
    )


def test_every_kind_of_the_union_is_tested():
    union = get_args(get_args(AnyTeacher)[0])
    tested = {name.split(",")[0] for name in KINDS}
    assert {kind.model_fields["kind"].default for kind in union} == tested


def test_the_card_is_complete(teacher):
    card = teacher.card
    assert card.classes == CLASSES and card.name and len(card.weights_sha256) == 64
    assert card.preprocessing and re.fullmatch(r"[A-Za-z0-9._-]+", card.name)
    assert TeacherCard.model_validate_json(card.model_dump_json()) == card
    if isinstance(teacher, ResultsTeacher):  # of another system, whose versions no file tells
        return
    assert card.versions
    for package, version in card.versions.items():
        assert import_module(package).__version__ == version


def test_labels_are_silver_inside_the_picture_and_by_falling_score(teacher):
    found = ask(teacher, 0.05)
    assert len(found) == len(SIZES)
    for i, (labels, (height, width)) in enumerate(zip(found, SIZES, strict=True)):
        if teacher.card.task == "maps":
            check_map(labels, height, width)
            continue
        if teacher.card.task == "tags":
            check_tags(labels)
            continue
        assert len(labels) > 0 or i >= LARGE
        assert labels.boxes.dtype == torch.float32 and labels.classes.dtype == torch.int64
        assert (labels.boxes >= 0).all()
        assert (labels.boxes <= torch.tensor([width, height] * 2)).all()
        assert (labels.boxes[:, 2:] > labels.boxes[:, :2]).all()
        assert ((labels.classes >= 0) & (labels.classes < len(CLASSES))).all()
        assert (labels.scores[1:] <= labels.scores[:-1]).all()
        assert (labels.grade == int(Grade.SILVER)).all()
        assert labels.coverage.tolist() == [1, 1]


def check_map(labels: MapLabels, height: int, width: int) -> None:
    assert labels.classes.shape == (height, width) and labels.classes.dtype == torch.uint8
    known = labels.classes < len(CLASSES)
    assert (known | (labels.classes == OTHER) | (labels.classes == UNKNOWN)).all()
    assert (labels.classes != UNKNOWN).any()
    assert labels.weights is not None, "every kind can tell how sure it is"
    assert labels.weights.shape == (height, width) and labels.weights.dtype == torch.float32
    assert ((labels.weights >= 0) & (labels.weights <= 1)).all()
    assert labels.grade == Grade.SILVER and labels.coverage.tolist() == [1, 1]


def check_tags(labels: TagLabels) -> None:
    assert labels.targets.shape == (len(CLASSES),) and labels.targets.dtype == torch.float32
    assert ((labels.targets >= 0) & (labels.targets <= 1)).all()
    assert labels.weights.tolist() == [1, 1] and labels.grade == Grade.SILVER


def test_the_floor_is_kept(teacher):
    low, high = ask(teacher, 0.05), ask(teacher, 0.5)
    for i, (all_of_them, sure) in enumerate(zip(low, high, strict=True)):
        if teacher.card.task == "maps":
            below = all_of_them.weights < 0.5
            assert torch.equal(sure.classes, torch.where(below, UNKNOWN, all_of_them.classes))
            continue
        if teacher.card.task == "tags":
            assert torch.equal(sure.targets, all_of_them.targets)
            continue
        assert (sure.scores >= 0.5).all()
        kept = all_of_them.scores >= 0.5
        torch.testing.assert_close(sure.boxes, all_of_them.boxes[kept])
        assert len(sure) > 0 or i >= LARGE


def test_the_same_pictures_have_the_same_labels_in_any_company(teacher):
    together = ask(teacher, 0.05)
    alone = [ask(teacher, 0.05, [i])[0] for i in reversed(range(len(SIZES)))][::-1]
    for a, b in zip(together, alone, strict=True):
        if teacher.card.task == "maps":
            torch.testing.assert_close(a.weights, b.weights)
            assert (a.classes == b.classes).float().mean() > 0.99
        elif teacher.card.task == "tags":
            torch.testing.assert_close(a.targets, b.targets)
        else:
            torch.testing.assert_close(a.boxes, b.boxes)
            torch.testing.assert_close(a.scores, b.scores)
            assert torch.equal(a.classes, b.classes)
    assert ask(teacher, 0.05, []) == []


def test_torchscript_of_others_needs_class_names_and_the_first_label(tmp_path):
    with deprecation_expected():
        torch.jit.script(Finder(1)).save(str(tmp_path / "o.pt"), _extra_files={EXTRA_FILE: ""})
    settings = {"kind": "torchscript", "path": "o.pt"}
    with pytest.raises(InputError, match="no class names"):
        build(tmp_path, **settings)
    image = torch.zeros(3, 20, 20, dtype=torch.uint8)
    info = ImageInfo(0, "0.jpg", 20, 20, "s")
    with pytest.raises(InputError, match="label 2"):
        build(tmp_path, **settings, classes=list(CLASSES)).annotate([image], [info])
    named = build(tmp_path, **settings, classes=list(CLASSES), first_label=1, scale=1 / 255)
    assert named.annotate([image], [info])[0].classes.tolist() == [1, 0]
    gaps = build(tmp_path, **settings, classes=["N/A", "cat", "N/A"])
    assert gaps.card.classes == ("cat",)
    assert gaps.annotate([image], [info])[0].scores.tolist() == pytest.approx([0.1])


def test_torchscript_of_others_sees_each_picture_in_company_of_its_shape_alone(tmp_path):
    with deprecation_expected():
        module = torch.jit.script(Padder())
    images = [torch.zeros(3, *size, dtype=torch.uint8) for size in ((8, 8), (90, 4), (8, 8))]
    infos = [ImageInfo(i, f"{i}.jpg", *x.shape[1:], "s") for i, x in enumerate(images)]
    ours = {"detmtl": "1", "format": 1}  # exported: pads to a size that no other picture decides
    for about, scores in (({}, [1, 1, 1]), (ours, [64 / 360, 1, 64 / 360])):
        save_torchscript(module, tmp_path / "t.pt", {"classes": list(CLASSES)} | about)
        found = build(tmp_path, kind="torchscript", path="t.pt").annotate(images, infos)
        assert [float(labels.scores) for labels in found] == pytest.approx(scores)
