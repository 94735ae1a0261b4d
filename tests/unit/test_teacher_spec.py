"""Every kind of teacher can be given on the command line and as a YAML file."""

import re

import pytest
import torch

from detmtl.inference.torchscript import deprecation_expected, save_torchscript
from detmtl.structures.errors import InputError
from detmtl.teachers.slots import read_names
from detmtl.teachers.tta import TtaSettings
from detmtl.verbs.silver import teacher_settings

SPECS = {
    "checkpoint": "{kind: checkpoint, path: best.pt, tta: {scales: [1, 1.5]}}",
    "torchscript": "{kind: torchscript, path: m.ts, classes: names.txt, first_label: 1}",
    "torchvision": "{kind: torchvision, model: fcos_resnet50_fpn, weights: DEFAULT}",
    "onnx": "{kind: onnx, path: y.onnx, classes: n.txt, adapter: {kind: yolo, objectness: true}}",
    "transformers": "{kind: transformers, model: a/b, zero_shot: true, classes: {dog: [dog, puppy]}}",
    "results": "{kind: results, path: r.json, classes: {1: person, 18: dog}}",
    "simulated": "{kind: simulated, annotations: g.json, images: g, misses: {small: 0.5}}",
}


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("as_file", [False, True])
def test_settings_are_read_inline_and_from_a_file(tmp_path, kind, as_file):
    spec = SPECS[kind]
    if as_file:
        (tmp_path / "t.yaml").write_text(spec)
        spec = str(tmp_path / "t.yaml")
    assert teacher_settings(spec).kind == kind


def test_what_was_given_arrives():
    assert teacher_settings(SPECS["checkpoint"]).tta == TtaSettings(scales=(1, 1.5))
    assert teacher_settings(SPECS["results"]).classes == {1: "person", 18: "dog"}
    assert teacher_settings(SPECS["transformers"]).classes == {"dog": ["dog", "puppy"]}
    assert teacher_settings(SPECS["onnx"]).adapter.objectness is True
    assert teacher_settings(SPECS["simulated"]).misses.small == 0.5


def test_a_file_of_weights_is_told_by_its_content(tmp_path):
    class Same(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    with deprecation_expected():
        save_torchscript(torch.jit.script(Same()), tmp_path / "a.pt", {})
    torch.save({"a": torch.zeros(1)}, tmp_path / "b.pt")
    assert teacher_settings(str(tmp_path / "a.pt")).kind == "torchscript"
    assert teacher_settings(str(tmp_path / "b.pt")).kind == "checkpoint"
    assert teacher_settings("not_there.pt").kind == "checkpoint"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("y.onnx", "an ONNX file needs settings"),
        ("none.yaml", "no such file"),
        ("{kind: magic}", "--teacher: there is no kind 'magic'; there are checkpoint, onnx"),
        ("{kind: onnxx}", "did you mean 'onnx'?"),
        ("{kind: onnx, pth: a}", "onnx.pth: unknown setting; did you mean 'path'?"),
        ("{kind: onnx, path: a, classes: [x], adapter: {kind: yolo, typo: 1}}", "typo"),
        ("{kind: results, path: a, name: 'a b'}", "name"),
    ],
)
def test_what_does_not_fit_is_said(spec, message):
    with pytest.raises(InputError, match=re.escape(message)):
        teacher_settings(spec)


def test_a_teachers_names_begin_after_the_byte_order_mark_of_their_file(tmp_path):
    (tmp_path / "names.txt").write_text("\ufeffcat\ndog\n", encoding="utf-8")
    assert read_names(tmp_path, "names.txt")[0] == ["cat", "dog"]
