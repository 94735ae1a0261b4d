"""Tiny data, a tiny recipe and one finished run of it, and ways to run verbs, for all tests here."""

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detmtl.cli import main

REPOSITORY = Path(__file__).resolve().parents[2]
COLORS = {"red": (230, 40, 40), "blue": (40, 60, 230)}
SIZES = ((80, 64), (64, 96))
SPLITS = {"gold": 8, "pool": 6, "val": 6, "test": 4}

RECIPE = """\
data:
  root: {root}
  classes: [red, blue]
  sources:
    gold: {{kind: coco, images: images/gold, annotations: gold.json}}
    pool: {{kind: folder, images: images/pool}}
  val: {{kind: coco, images: images/val, annotations: val.json}}
  test: {{kind: coco, images: images/test, annotations: test.json}}
  batch_size: 4
input: {{short: 64, long: 96}}
augment:
  steps:
    - HorizontalFlip: {{p: 0.5}}
    - RandomBrightnessContrast: {{p: 0.5}}
model:
  backbone: {{name: resnet10t, norm: train}}
  fpn: {{channels: 16, levels: 3}}
tasks:
  boxes:
    kind: detection
    head: {{depth: 1, prior: 0.2}}
    anchors: {{base_scale: 3}}
    test: {{score_threshold: 0.02, candidates: 300}}
silver:
  teacher: {{kind: gold, train: {{steps: 8}}}}
  pools: [pool]
  floor: 0.02
  gates: warn
  select: {{threshold: 0.1, ignore_from: null}}
mix: {{mode: batch, shares: {{gold: 1, pool: 1}}}}
train: {{steps: 30, ema: 0.5, precision: fp32, log_every: 1, save_every: 10, pictures_every: null}}
optim: {{lr: 3.0e-3, warmup: 0}}
"""


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The sentences of stderr that begin with `error: `, without it."""
        return [line.removeprefix("error: ") for line in self.err.splitlines() if "error: " in line]


def draw_pictures(
    folder: Path, count: int, seed: int, kind: str = "jpg", sizes: Sequence[tuple[int, int]] = SIZES
) -> list[list[dict]]:
    """Saves pictures of colored rectangles on noise, of the given sizes (height, width) in turn, and
    returns the boxes of each."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    everything = []
    for i in range(count):
        height, width = sizes[i % len(sizes)]
        picture = random.integers(90, 170, (height, width, 3), dtype=np.uint8)
        boxes = []
        for k, color in enumerate(COLORS.values()):
            w, h = random.integers(16, 30, 2).tolist()
            x, y = int(random.integers(0, width - w)), int(random.integers(0, height - h))
            picture[y : y + h, x : x + w] = color
            boxes.append({"category_id": k + 1, "bbox": [x, y, w, h], "iscrowd": 0, "area": w * h})
        Image.fromarray(picture).save(folder / f"{i:03d}.{kind}")
        everything.append(boxes)
    return everything


def coco_file(folder: Path, everything: list[list[dict]], kind: str = "jpg") -> dict[str, Any]:
    """Returns the COCO annotations of pictures that `draw_pictures` saved."""
    images, annotations = [], []
    for i, boxes in enumerate(everything):
        with Image.open(folder / f"{i:03d}.{kind}") as picture:
            width, height = picture.size
        images.append(
            {"id": i + 1, "file_name": f"{i:03d}.{kind}", "height": height, "width": width}
        )
        for box in boxes:
            annotations.append({"id": len(annotations) + 1, "image_id": i + 1, **box})
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(COLORS)]
    return {"images": images, "annotations": annotations, "categories": categories}


def make_data(root: Path, sizes: Sequence[tuple[int, int]] = SIZES) -> Path:
    """Draws all splits below `root`, writes their annotations and the recipe, and returns `root`."""
    for seed, (split, count) in enumerate(SPLITS.items()):
        # pictures of one size need no padding, and score the same whatever the batch
        own = sizes[:1] if split == "test" else sizes
        boxes = draw_pictures(root / "images" / split, count, seed, sizes=own)
        if split != "pool":
            coco = coco_file(root / "images" / split, boxes)
            (root / f"{split}.json").write_text(json.dumps(coco))
    (root / "recipe.yaml").write_text(RECIPE.format(root=root))
    return root


def run_verb(*words: object, folder: Path) -> Done:
    """Runs `detmtl WORDS` in this process, from `folder`; warnings are told as a user sees them."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("default", category=UserWarning)
        try:
            status = main([str(word) for word in words])
        except SystemExit as stop:  # argparse
            status = int(stop.code or 0)
    return Done(status, out.getvalue(), err.getvalue())


def environment() -> dict[str, str]:
    """Returns the environment of a process: one thread, wide tables, no ranks."""
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_ALBUMENTATIONS_UPDATE": "1"}


def script(verb: str) -> str:
    """Returns the path of a verb's script."""
    return str(REPOSITORY / "tools" / f"{verb}.py")


def start_verb(verb: str, *words: object, folder: Path) -> subprocess.Popen[str]:
    """Starts `python tools/VERB.py WORDS` from `folder`."""
    return subprocess.Popen(
        [sys.executable, script(verb), *map(str, words)],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def settings_words(**values: object) -> list[str]:
    """Returns `--set A.B=VALUE` for each `A__B=VALUE`."""
    return [
        word
        for name, value in values.items()
        for word in ("--set", f"{name.replace('__', '.')}={value}")
    ]


GOLD_ALONE = settings_words(silver="null", mix="{mode: gold}")
"""Turns the recipe into a training on gold, without a teacher."""


def same_weights(a: Path, b: Path) -> bool:
    """Returns whether two checkpoints hold the same weights, bit for bit."""
    contents = [torch.load(path, weights_only=True) for path in (a, b)]
    for key in ("model", "ema", "optimizer", "balancer"):
        left, right = (_flat(content.get(key)) for content in contents)
        if left.keys() != right.keys():
            return False
        for name, value in left.items():
            other = right[name]
            if isinstance(value, torch.Tensor):
                if not torch.equal(value, other):
                    return False
            elif value != other:
                return False
    return contents[0]["step"] == contents[1]["step"]


def _flat(value: Any, at: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            k: v for key, inner in value.items() for k, v in _flat(inner, f"{at}/{key}").items()
        }
    if isinstance(value, list | tuple):
        return _flat(dict(enumerate(value)), at)
    return {at: value}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data: images/SPLIT, SPLIT.json, recipe.yaml. Not to be changed; see `own_data`."""
    os.environ["COLUMNS"] = "200"  # of rich's tables: paths on one line
    return make_data(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def own_data(tmp_path: Path) -> Path:
    """The same data for one test alone, which may spoil it."""
    return make_data(tmp_path / "data")


@pytest.fixture
def detmtl(tmp_path: Path) -> Callable[..., Done]:
    """Runs a verb in this process, from the test's own folder."""
    os.environ["COLUMNS"] = "200"
    return lambda *words: run_verb(*words, folder=tmp_path)


@pytest.fixture(scope="session")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the whole tiny recipe; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    done = run_verb(
        "train", "--config", data / "recipe.yaml", "--out", folder / "run", folder=folder
    )
    assert done.status == 0, done.out + done.err
    (folder / "run" / "told.txt").write_text(done.out)
    return folder / "run"
