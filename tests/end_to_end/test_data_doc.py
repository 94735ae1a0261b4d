"""docs/data.md: what it shows is what the settings take."""

import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from detmtl.config import settings_from

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text()
REST = {
    "model": {"backbone": {"name": "resnet18"}},
    "tasks": {"boxes": {"kind": "detection"}},
    "mix": {"mode": "gold"},
    "train": {"steps": 1},
}
VAL = {"kind": "coco", "images": "val", "annotations": "val.json"}


def blocks() -> list[str]:
    return re.findall(r"```yaml\n(.*?)\n```", PAGE, re.S)


@pytest.mark.parametrize("text", blocks())
def test_snippets_load(text):
    """Classes, sources and whole `data` sections: each is completed to a run's settings and read."""
    shown = YAML(typ="safe", pure=True).load(text)
    data = shown.get("data", {} if "data" in shown else {"sources": shown})
    sources = data.get("sources", {"gold": VAL})
    known = {"classes": ["person", "vehicle"], "root": "here", "val": VAL, "batch_size": 2}
    settings = settings_from({"data": {**known, **data, "sources": sources}, **REST})
    told = settings.resolved()["data"]
    for name, source in sources.items():
        assert {k: told["sources"][name][k] for k in source if not isinstance(source[k], dict)} == {
            k: v for k, v in source.items() if not isinstance(v, dict)
        }
    assert settings.data.label_space().names[:2] == ("person", "vehicle")


def test_every_setting_of_a_source_that_is_named_exists():
    from detmtl.data.source_settings import SourceSettings

    table = re.findall(r"^\| `(\w+):", PAGE, re.M)
    assert table and set(table) <= set(SourceSettings.model_fields)
