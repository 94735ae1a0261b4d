"""What tells two teachers of one file apart: which output they take for which class, and which task."""

from types import SimpleNamespace

import torch

from detmtl.inference.torchscript import deprecation_expected
from detmtl.teachers import from_checkpoint
from detmtl.teachers.from_checkpoint import CheckpointTeacherSettings
from detmtl.teachers.from_torchscript import TorchScriptTeacherSettings


class Nothing(torch.nn.Module):
    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return []


def test_a_torchscript_file_with_its_classes_at_other_labels(tmp_path):
    with deprecation_expected():
        torch.jit.save(torch.jit.script(Nothing()), tmp_path / "t.pt")
    one, other = (
        TorchScriptTeacherSettings(path="t.pt", classes=classes).load(tmp_path).card
        for classes in (["a", "N/A", "b"], ["a", "b", "N/A"])
    )
    assert one.classes == other.classes and one.identity() != other.identity()


def test_a_checkpoint_with_another_of_its_tasks(tmp_path, monkeypatch):
    task = SimpleNamespace(labels="boxes", of=None)
    model = SimpleNamespace(tasks={"near": task, "far": task})
    loaded = SimpleNamespace(model=model, class_names=("a",), short=64, long=96)
    monkeypatch.setattr(from_checkpoint, "load_checkpoint", lambda file, trust: loaded)
    monkeypatch.setattr(from_checkpoint, "Predictor", lambda loaded, device: None)
    (tmp_path / "last.pt").write_bytes(b"weights")
    one, other = (
        CheckpointTeacherSettings(path="last.pt", task=task).load(tmp_path).card
        for task in ("near", "far")
    )
    assert one.identity() != other.identity()
