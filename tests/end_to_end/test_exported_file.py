"""The exported file in a process that has torch and torchvision alone finds what the model finds."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import environment
from PIL import Image

from detmtl.inference.predictor import Predictor, load_checkpoint

PIXELS, SCORES = 1e-2, 1e-4
"""Largest difference of a corner and of a score: the same numbers up to the order of summation."""

STRANGER = """\
import sys

class Only:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("detmtl", "timm", "albumentations", "cv2", "pydantic"):
            raise ImportError(f"{name} is not to be had here")

sys.meta_path.insert(0, Only())
import torch, torchvision
torch.set_num_threads(1)
model = torch.jit.load(sys.argv[1])
batches = torch.load(sys.argv[2], weights_only=True)
torch.save({"names": model.class_names(), "found": [model(b) for b in batches]}, sys.argv[3])
assert "detmtl" not in sys.modules
"""


@pytest.fixture(scope="module")
def batches(data):
    """Batches by name: two sizes of pictures, one and three of them, one far larger, and black."""

    def read(split, number):
        picture = Image.open(data / f"images/{split}/{number:03d}.jpg")
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()

    large = torch.nn.functional.interpolate(read("val", 0)[None].float(), size=(300, 215))
    return {
        "80x64, batch 1": [read("val", 0)],
        "64x96, batch 1": [read("val", 1)],
        "80x64, batch 3": [read("val", i) for i in (0, 2, 4)],
        "both sizes, batch 3": [read("val", i) for i in (1, 2, 3)],
        "larger than the network's": [large[0].to(torch.uint8)],
        "black": [torch.zeros(3, 64, 96, dtype=torch.uint8)],
        "black among others": [read("val", 0), torch.zeros(3, 80, 64, dtype=torch.uint8)],
    }


@pytest.fixture(scope="module")
def stranger(finished, batches, tmp_path_factory):
    """What the file finds in a process without this package."""
    folder = tmp_path_factory.mktemp("stranger")
    torch.save(list(batches.values()), folder / "batches.pt")
    words = [finished / "model.torchscript", folder / "batches.pt", folder / "found.pt"]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STRANGER, *map(str, words)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    told = torch.load(folder / "found.pt", weights_only=True)
    assert told["names"] == ["red", "blue"]
    return dict(zip(batches, told["found"], strict=True))


def unmatched(a, b):
    """Returns how many detections of `a` have no equal in `b`."""
    same = a["labels"][:, None] == b["labels"]
    same &= (a["scores"][:, None] - b["scores"]).abs() <= SCORES
    same &= (a["boxes"][:, None] - b["boxes"]).abs().amax(2) <= PIXELS
    return int((~same.any(1)).sum())


@pytest.mark.parametrize(
    "name",
    [
        "80x64, batch 1",
        "64x96, batch 1",
        "80x64, batch 3",
        "both sizes, batch 3",
        "larger than the network's",
        "black",
        "black among others",
    ],
)
def test_the_file_alone_finds_what_the_model_finds(name, finished, batches, stranger):
    eager = Predictor(load_checkpoint(finished / "best.pt")).predict(batches[name])
    assert len(eager) == len(stranger[name]) == len(batches[name])
    for labels, found, picture in zip(eager, stranger[name], batches[name], strict=True):
        boxes = labels["boxes"]
        expected = {"boxes": boxes.boxes, "labels": boxes.classes, "scores": boxes.scores}
        assert len(boxes) > 0 and len(found["scores"]) == len(boxes)
        assert found["boxes"].dtype == torch.float32 and found["labels"].dtype == torch.int64
        assert (found["scores"].diff() <= 0).all()
        height, width = picture.shape[1:]
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height] * 2)).all()
        # all, but where scores tie, as everywhere in a black picture: a tie may fall either way
        allowed = len(boxes) // 20 if picture.any() else len(boxes) // 4
        assert unmatched(expected, found) <= allowed
        assert unmatched(found, expected) <= allowed
        torch.testing.assert_close(found["scores"], boxes.scores, atol=SCORES, rtol=0)
