"""What every teacher promises, whatever its kind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from pydantic import TypeAdapter
from torch import Tensor, nn

from detmtl.inference.torchscript import EXTRA_FILE, deprecation_expected, save_torchscript
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.from_checkpoint import PredictorTeacher
from detmtl.teachers.teacher import Teacher, TeacherCard
from detmtl.teachers.teachers import AnyTeacher

CLASSES = ("cat", "dog")
SIZES = ((24, 40), (50, 30))


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
        for i in range(2)
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

    card = TeacherCard(name="c", weights_sha256="0" * 64, classes=CLASSES, preprocessing="none")
    return PredictorTeacher(Stub(), "boxes", card)


KINDS: dict[str, Callable[[Path], Teacher]] = {
    "torchscript": torchscript,
    "results": results,
    "onnx": onnx_network,
    "checkpoint": checkpoint,
}


@pytest.fixture(params=sorted(KINDS))
def teacher(request, tmp_path) -> Teacher:
    return KINDS[request.param](tmp_path)


def ask(teacher: Teacher, floor: float) -> list[BoxLabels]:
    generator = torch.Generator().manual_seed(0)
    images = [
        torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8) for h, w in SIZES
    ]
    infos = [ImageInfo(i, f"/p/{i}.jpg", h, w, "s") for i, (h, w) in enumerate(SIZES)]
    return teacher.annotate(images, infos, floor)


def test_every_kind_of_the_union_is_tested():
    union = get_args(get_args(AnyTeacher)[0])
    assert {kind.model_fields["kind"].default for kind in union} == set(KINDS)


def test_the_card_is_complete(teacher):
    card = teacher.card
    assert card.classes == CLASSES and card.name and len(card.weights_sha256) == 64
    assert TeacherCard.model_validate_json(card.model_dump_json()) == card


def test_labels_are_silver_inside_the_picture_and_by_falling_score(teacher):
    found = ask(teacher, 0.05)
    assert len(found) == len(SIZES)
    for labels, (height, width) in zip(found, SIZES, strict=True):
        assert len(labels) > 0
        assert labels.boxes.dtype == torch.float32 and labels.classes.dtype == torch.int64
        assert (labels.boxes >= 0).all()
        assert (labels.boxes <= torch.tensor([width, height] * 2)).all()
        assert (labels.boxes[:, 2:] > labels.boxes[:, :2]).all()
        assert ((labels.classes >= 0) & (labels.classes < len(CLASSES))).all()
        assert (labels.scores[1:] <= labels.scores[:-1]).all()
        assert (labels.grade == int(Grade.SILVER)).all()


def test_the_floor_is_kept(teacher):
    low, high = ask(teacher, 0.05), ask(teacher, 0.5)
    for all_of_them, sure in zip(low, high, strict=True):
        assert (sure.scores >= 0.5).all()
        kept = all_of_them.scores >= 0.5
        torch.testing.assert_close(sure.boxes, all_of_them.boxes[kept])
        assert len(sure) > 0


def test_the_same_pictures_have_the_same_labels(teacher):
    for a, b in zip(ask(teacher, 0.05), ask(teacher, 0.05), strict=True):
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=0)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=0)


def test_torchscript_of_others_needs_class_names_and_the_first_label(tmp_path):
    with deprecation_expected():
        torch.jit.script(Finder(1)).save(str(tmp_path / "o.pt"), _extra_files={EXTRA_FILE: ""})
    settings = {"kind": "torchscript", "path": "o.pt"}
    build = TypeAdapter(AnyTeacher).validate_python
    with pytest.raises(InputError, match="no class names"):
        build(settings).load(tmp_path)
    with pytest.raises(InputError, match="label 2"):
        ask(build({**settings, "classes": list(CLASSES)}).load(tmp_path), 0.05)
    named = build({**settings, "classes": list(CLASSES), "first_label": 1, "scale": 1 / 255})
    assert ask(named.load(tmp_path), 0.05)[0].classes.tolist() == [1, 0]
