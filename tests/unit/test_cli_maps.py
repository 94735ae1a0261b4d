"""The verbs, for a store of maps."""

import json

import numpy as np
import pytest
from map_stand_ins import halves, store_of_maps
from PIL import Image
from silver_stand_ins import pictures

from detmtl.cli import main
from detmtl.data.map_files import read_values
from detmtl.silver.maps import ChosenMaps
from detmtl.silver.store import Store


@pytest.fixture
def words(tmp_path, monkeypatch):
    """A store whose teacher is right about six cars beside the sky, and the options of its gold."""
    source = pictures(tmp_path / "p", 6)
    store = store_of_maps(tmp_path / "store", source, [halves(2, 0)] * 6)
    (tmp_path / "store").mkdir()
    monkeypatch.setattr(Store, "open", lambda *_, **__: store)
    (tmp_path / "gold").mkdir()
    for i in range(6):
        Image.fromarray(halves(7, 9)).save(tmp_path / "gold" / f"{i:03d}.png")
    legend = [{"id": 7, "name": "car"}, {"id": 9, "name": "sky"}, {"id": 1, "name": "person"}]
    (tmp_path / "legend.json").write_text(json.dumps(legend))
    pool = ["--store", tmp_path / "store", "--images", tmp_path / "p"]
    return pool, ["--maps", tmp_path / "gold", "--categories", tmp_path / "legend.json"], store


def _run(*words):
    return main([str(word) for word in words])


def test_audit(words, capsys):
    pool, gold, _ = words
    assert _run("audit", *pool, *gold) == 0
    told = capsys.readouterr().out
    assert "Silver maps against gold: 6 pictures" in told and "car" in told


def test_the_page_of_an_audit(words, capsys, tmp_path):
    pytest.importorskip("jinja2")
    pool, gold, _ = words
    assert _run("audit", *pool, *gold, "--html") == 0
    (page,) = (tmp_path / "store" / "audit").glob("*/report.html")
    assert str(page) in capsys.readouterr().out
    assert "Silver maps of" in page.read_text()


def test_an_audit_that_finds_reasons_ends_with_2(words, capsys):
    pool, gold, store = words
    for record in store.rows:
        record.classes = np.full_like(record.classes, 0)
    assert _run("audit", *pool, *gold) == 2
    assert "all background" in capsys.readouterr().err


def test_select_copies_what_can_be_looked_at(words, tmp_path, capsys, monkeypatch):
    pool, _, _ = words
    out = tmp_path / "out"
    classes = "{car: [car], person: [person], rest: []}"
    assert _run("select", *pool, "--out", out, "--classes", classes, "--drop-unmapped") == 0
    assert set(np.unique(read_values(out / "maps" / "000.png"))) == {0, 254}
    assert json.loads((out / "legend.json").read_text())["grade"] == "silver"
    monkeypatch.setattr(ChosenMaps, "select", None)  # refused before the work
    for place, told in ((out, "exists; give a new folder"), (out / "legend.json/o", "cannot be")):
        assert _run("select", *pool, "--out", place) == 2
        assert told in capsys.readouterr().err


def test_mistakes(words, tmp_path, capsys):
    pool, gold, _ = words
    assert _run("audit", *pool, *gold[:2]) == 2
    assert "--categories is needed" in capsys.readouterr().err
    assert _run("select", *pool[:2], "--out", tmp_path / "o") == 2
    assert "--images is needed" in capsys.readouterr().err
    assert _run("select", *pool, "--out", tmp_path / "o", "--set", "confidense=1") == 2
    assert "confidense" in capsys.readouterr().err


def test_options_that_would_change_nothing_are_refused(words, tmp_path, capsys):
    pool, _, _ = words
    select, audit = ("select", *pool, "--out", tmp_path / "o"), ("audit", *pool)
    for option in (
        (*select, "--format", "voc"),
        (*select, "--annotations", "gold.json"),
        (*audit, "--annotations", "gold.json"),
        (*audit, "--tags", "gold.json"),
    ):
        assert _run(*option) == 2
        told = capsys.readouterr().err
        assert f"{option[-2]}: would change nothing, since" in told and "holds maps" in told
    assert _run(*select, "--drop-unmapped") == 2
    assert "--drop-unmapped: is of --classes" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
