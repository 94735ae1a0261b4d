"""The real maps of coco128, read as the config reads them."""

from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from detmtl.data.folder import FolderSource
from detmtl.data.maps import MapClasses
from detmtl.structures.classes import LabelSpace
from detmtl.structures.labels import UNKNOWN

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "coco128_semantic.yaml"


def _load(name, settings, classes, root, cache):
    source = FolderSource.model_validate(settings)
    return source.load(name, root / "data", LabelSpace((), ()), cache, classes)


@pytest.mark.real
def test_the_maps_of_the_config(real_data, tmp_path):
    data = YAML(typ="safe", pure=True).load(CONFIG.read_text())["data"]
    classes = MapClasses.model_validate(data["maps"])
    gold, rest = (
        _load(name, data["sources"][name], classes, real_data, tmp_path)
        for name in ("gold", "rest")
    )
    val = _load("val", data["val"], classes, real_data, tmp_path)
    assert (len(gold), len(rest), len(val)) == (20, 106, 100)
    assert not set(gold.hashes()) & set(rest.hashes())
    pixels, shown = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for i in range(len(val)):
        labels = val.labels(i)["maps"]
        counts = np.bincount(labels.classes.numpy().ravel(), minlength=256)
        pixels += counts
        shown += counts > 0
    names = classes.label_space().names
    assert (shown[: len(names)] >= 3).all(), "each class has pictures to be scored on"
    assert pixels[len(names) : UNKNOWN].sum() == 0
    assert 0.05 < pixels[UNKNOWN] / pixels.sum() < 0.15, "what SOURCE.md calls unlabelled"
