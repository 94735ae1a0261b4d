import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from detmtl.inference import export as exporting
from detmtl.inference import script_file
from detmtl.inference.detector import pad_images, to_original
from detmtl.inference.export import ExportError, export, export_model, export_torchscript
from detmtl.inference.exported import exported as exported_tasks
from detmtl.inference.parity import (
    BFLOAT16,
    FLOAT32,
    compare_detections,
    compare_outputs,
    trial_pictures,
)
from detmtl.inference.predictor import LoadedModel, Predictor, ScriptPredictor, load_checkpoint
from detmtl.inference.script_file import write_script
from detmtl.inference.torchscript import EXTRA_FILE, load_torchscript
from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.multitask import ModelSettings, build_model

CLASSES = ["cat", "dog", "bird"]
SHORT, LONG = 75, 100


def tiny_settings(**backbone):
    model = ModelSettings(
        backbone=BackboneSettings(name="test_efficientnet", **backbone),
        fpn=FPNSettings(channels=16),
    )
    return {
        "model": model.model_dump(mode="json"),
        "tasks": {"boxes": DetectionConfig().model_dump(mode="json")},
        "input": {"short": SHORT, "long": LONG},
    }


def tiny_model(settings):
    """A random detector whose scores differ and pass the threshold here and there."""
    torch.manual_seed(0)
    model = build_model(
        ModelSettings.model_validate(settings["model"]), {"boxes": DetectionConfig()}, CLASSES
    ).eval()
    features = model.fpn(model.backbone(model.normalize(torch.randint(0, 256, (2, 3, 96, 96)))))
    for parameter in model.tasks["boxes"].parameters():
        if parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter.data)
    logits = torch.cat([x.flatten() for x in model.tasks["boxes"](features)[: len(features)]])
    last = [m for m in model.tasks["boxes"].modules() if isinstance(m, nn.Conv2d)]
    out = next(m for m in last if m.out_channels == len(CLASSES) * 9)
    with torch.no_grad():
        out.weight *= 1.5 / logits.std()
        out.bias.fill_(-4)
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    settings = tiny_settings()
    path = tmp_path_factory.mktemp("run") / "best.pt"
    weights = tiny_model(settings).state_dict()
    content = {"format": 1, "settings": settings, "classes": CLASSES, "step": 7, "model": weights}
    torch.save(content, path)
    return path


@pytest.fixture(scope="module")
def loaded(checkpoint) -> LoadedModel:
    return load_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "deep" / "model.torchscript"
    return path, export_torchscript(checkpoint, path)


def test_the_file_agrees_and_says_so(exported):
    path, report = exported
    assert path.is_file()
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing unfinished is left
    assert report.method == "traced"
    assert report.difference.pictures == 9
    assert report.difference.detections > 100
    assert report.difference.matching > 0.99
    assert report.difference.pixels < 1e-2
    assert report.difference.scores < 1e-4
    assert 0 <= report.difference.outputs < 1e-4 and "of their norm" in str(report)


def test_it_is_no_checkpoint(exported):
    told = r"exported file \(TorchScript\), .* give best\.pt of its run; .* evaluate --detections"
    with pytest.raises(InputError, match=told):
        load_checkpoint(exported[0])


@pytest.mark.parametrize("sizes", [[(75, 100)], [(33, 47), (200, 90), (401, 400)], [(1, 1)], []])
def test_same_detections_as_eager_in_pixels_of_the_picture(loaded, exported, sizes):
    generator = torch.Generator().manual_seed(1)
    images = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes
    ]
    module, _ = load_torchscript(exported[0])
    found = module(images)
    expected = Predictor(loaded).predict(images)
    assert len(found) == len(expected) == len(images)
    for one, labels, (height, width) in zip(found, expected, sizes, strict=True):
        boxes = labels["boxes"]
        torch.testing.assert_close(one["boxes"], boxes.boxes, atol=1e-2, rtol=0)
        torch.testing.assert_close(one["scores"], boxes.scores, atol=1e-4, rtol=0)
        assert torch.equal(one["labels"], boxes.classes)
        assert one["labels"].dtype == torch.int64
        assert one["boxes"].dtype == one["scores"].dtype == torch.float32
        assert one["scores"].diff().le(0).all()
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"][:, 0::2] <= width).all()
        assert (one["boxes"][:, 1::2] <= height).all()


def test_runs_with_torch_and_torchvision_alone(exported, tmp_path):
    program = f"""
import json, sys, warnings
warnings.simplefilter("ignore")
import torch, torchvision
extra = {{"{EXTRA_FILE}": ""}}
model = torch.jit.load({str(exported[0])!r}, _extra_files=extra)
found = model([torch.full((3, 80, 60), 128, dtype=torch.uint8), torch.zeros(3, 31, 99, dtype=torch.uint8)])
about = json.loads(extra["{EXTRA_FILE}"])
assert not [m for m in sys.modules if m.split(".")[0] in ("detmtl", "timm", "pydantic")]
print(json.dumps([model.class_names(), about["classes"], about["input"], about["task"], len(found)]))
print(sorted(found[0]))
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert json.loads(first) == [CLASSES, CLASSES, {"short": SHORT, "long": LONG}, "boxes", 2]
    assert second == "['boxes', 'labels', 'scores']"


def test_wrong_pictures_are_refused_by_the_file(exported):
    module, _ = load_torchscript(exported[0])
    for wrong, message in (
        (torch.zeros(3, 8, 8), "uint8"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), "RGB"),
        (torch.zeros(3, 0, 8, dtype=torch.uint8), "no pixels"),
    ):
        with pytest.raises(torch.jit.Error, match=message):
            module([wrong])


def test_score_threshold_can_be_set_in_the_file(exported):
    module, _ = load_torchscript(exported[0])
    picture = [trial_pictures(SHORT, LONG)[0][0]]
    before = len(module(picture)[0]["scores"])
    module.decoder.score_threshold = float(module(picture)[0]["scores"][3])
    assert before > 4 >= len(module(picture)[0]["scores"])


class _Constant(nn.Module):
    """A network whose trace holds the height, or the count, of the pictures it was traced with."""

    def __init__(self, model, crop):
        super().__init__()
        self.model = model
        self.crop = crop

    @property
    def tasks(self):
        return self.model.tasks

    def forward(self, images):
        if not torch.jit.is_tracing():
            return self.model(images)
        return self.model(images[:, :, : int(images.shape[2])] if self.crop else images[0:2])


@pytest.mark.parametrize(
    ("crop", "message"),
    [(True, r"128 x 96 .*batch of 1: raw output"), (False, r"traced: .*batch of 3: raw output")],
)
def test_refuses_what_disagrees_and_writes_nothing(loaded, tmp_path, crop, message):
    path = tmp_path / "model.torchscript"
    path.write_text("an older file")
    with pytest.raises(ExportError, match=message) as error:
        export_model(replace(loaded, model=_Constant(loaded.model, crop)), path)
    assert "scripted" in str(error.value)  # the other way was tried too
    assert path.read_text() == "an older file"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_next_method_is_tried(loaded, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "METHODS", ("unknown", "traced"))
    original = script_file._captured

    def captured(network, method, side):
        if method == "unknown":
            raise ZeroDivisionError("no")
        return original(network, method, side)

    monkeypatch.setattr(script_file, "_captured", captured)
    assert export_model(loaded, tmp_path / "m.ts").method == "traced"


def test_bfloat16_file_has_small_weights_and_float32_results(loaded, tmp_path, exported):
    # A random network has no sure detections to count; the arithmetic is what is looked at here.
    path = tmp_path / "bf16.ts"
    tasks = exported_tasks(loaded.model, path)
    write_script(loaded, tasks, path, "traced", "bfloat16")
    assert path.stat().st_size < 0.75 * exported[0].stat().st_size
    predictor = ScriptPredictor(path)
    picture = torch.zeros(1, 3, 96, 128, dtype=torch.uint8)
    assert {x.dtype for x in predictor.module.network(picture)} == {torch.bfloat16}
    labels = predictor.predict([trial_pictures(SHORT, LONG)[0][0]])[0]["boxes"]
    assert labels.boxes.dtype == labels.scores.dtype == torch.float32
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    with torch.inference_mode():
        batch = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
        worst, problems = compare_outputs(
            lambda x: loaded.model(x)["boxes"], predictor.module.network, [batch], BFLOAT16
        )
    assert 1e-4 < worst < 0.1
    assert not problems


def test_unavailable_format_names_those_available(checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"'openvino'.*torchscript"):
        export(checkpoint, tmp_path / "m.xml", "openvino")


def test_a_full_disk_is_told():
    """Where torch opens the file itself, it ends the process."""
    code = (
        "import warnings; warnings.simplefilter('ignore')\n"
        "import errno, torch\n"
        "from pathlib import Path\n"
        "from detmtl.inference.torchscript import save_torchscript\n"
        "module = torch.jit.script(torch.nn.Linear(100, 100))\n"
        "try: save_torchscript(module, Path('/dev/full'), {})\n"
        "except OSError as error: print(error.errno == errno.ENOSPC)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_padding_and_the_way_back():
    images = [torch.full((3, 40, 70), 9, dtype=torch.uint8), torch.full((3, 64, 20), 7).byte()]
    batch, sizes = pad_images(images, 32)
    assert batch.shape == (2, 3, 64, 96)
    assert sizes.tolist() == [[40, 70], [64, 20]]
    assert batch[0, :, :40, :70].eq(9).all()
    assert batch[0].sum() == 9 * 3 * 40 * 70
    boxes = to_original(torch.tensor([[10.0, 10.0, 70.0, 41.0]]), (40, 70), (20, 140))
    assert boxes.tolist() == [[20.0, 5.0, 140.0, 20.0]]


def _labels(boxes, scores):
    boxes = torch.tensor(boxes)
    return BoxLabels.of(boxes, torch.zeros(len(boxes)), 1, scores=torch.tensor(scores))


@pytest.mark.parametrize(
    ("boxes", "scores", "agrees"),
    [
        ([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 9.0, 9.0]], [0.9, 0.5], True),
        ([[5.0, 5.0, 9.0, 9.0], [0.0, 0.0, 10.0, 10.0]], [0.5, 0.9], True),  # another order
        ([[0.0, 0.0, 10.0, 10.02], [5.0, 5.0, 9.0, 9.0]], [0.9, 0.5], False),
        ([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 9.0, 9.0]], [0.9, 0.5002], False),
        ([[0.0, 0.0, 10.0, 10.0]], [0.9], False),
    ],
)
def test_detections_are_compared_one_by_one(boxes, scores, agrees):
    model = _labels([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 9.0, 9.0]], [0.9, 0.5])
    picture = [torch.zeros(3, 8, 9, dtype=torch.uint8)]
    for a, b in ((model, _labels(boxes, scores)), (_labels(boxes, scores), model)):
        found = compare_detections(lambda _, a=a: [a], lambda _, b=b: [b], [picture], FLOAT32)
        assert (not found.problems) == agrees
        assert agrees == (found.matching == 1)
        assert agrees or "8 x 9" in found.problems[0]


def test_nothing_found_by_one_of_two_is_a_difference():
    picture = [torch.zeros(3, 8, 9, dtype=torch.uint8)]
    one = _labels([[0.0, 0.0, 10.0, 10.0]], [0.9])
    found = compare_detections(lambda _: [BoxLabels.empty(1)], lambda _: [one], [picture], BFLOAT16)
    assert found.problems
    assert found.matching == 0


def test_torchscript_file_of_others_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no such file"):
        load_torchscript(tmp_path / "none.ts")
    (tmp_path / "broken.ts").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="no readable TorchScript"):
        load_torchscript(tmp_path / "broken.ts")
