import os
import re

import numpy as np
import pytest
from audit_stand_ins import CLASSES, Scenes, scenes, stored
from PIL import Image
from rich.console import Console
from silver_stand_ins import card

from detmtl.cli import main
from detmtl.data.source import FileNames
from detmtl.report import page as skeleton
from detmtl.report.audit_boxes import boxes_page
from detmtl.report.audit_page import audit_page, write_audit_page
from detmtl.report.page import Section
from detmtl.silver.audit import audit
from detmtl.silver.store import Store
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError

SPACE = LabelSpace.of(CLASSES)
SECTIONS = ["Classes", "Sizes", "Scores", "Boxes per picture", "Places", "Ignore band", "Faults"]


def with_pictures(gold: Scenes, folder) -> Scenes:
    """Gold whose pictures can be read, and which knows their hashes all the same."""
    names = [f"{i}.jpg" for i in range(len(gold))]
    for name, (height, width) in zip(names, gold.sizes.tolist(), strict=True):
        Image.new("RGB", (width, height), (40, 90, 60)).save(folder / name)
    return Scenes(**{**gold.__dict__, "files": FileNames.of(folder, names)})


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audited")
    gold = with_pictures(scenes(count=12), folder)
    store = stored(folder / "store", gold, miss=0.3, jitter=0.1, confuse=0.2, extra=4, larger=1.25)
    return store, gold, audit(store, gold, SPACE)


def rows_of(html: str, heading: str) -> list[list[str]]:
    """Returns the cells of the first table whose first column has that heading."""
    table = next(t for t in re.findall(r"<table>.*?</table>", html, re.S) if f">{heading}<" in t)
    lines = re.findall(r"<tr.*?>(.*?)</tr>", table, re.S)[1:]
    return [re.findall(r"<td[^>]*>(.*?)</td>", line, re.S) for line in lines]


def test_the_page_has_everything_and_loads_nothing(audited):
    _, gold, result = audited
    html = boxes_page(result, gold, "t <1>", 0.5, 0.3, lambda scores, classes: scores**2)
    for title in [*SECTIONS, "Worst disagreements"]:
        assert f">{title}</h2>" in html
    assert "t &lt;1&gt;" in html and "http" not in html
    assert "No gate found a reason" in html
    assert "After calibration" in html
    assert html.count("data:image/jpeg;base64") > 12 and "gold has nothing there" in html
    measures = result.measures(0.5)
    found = {row[0]: row for row in rows_of(html, "coverage")}
    assert list(found)[-1] == "all" and set(found) == {*CLASSES, "all"}
    car = measures.row("car", 1)
    assert found["car"][1:3] == [str(car.recall.count), str(car.precision.count)]
    assert found["car"][4:6] == [str(car.precision), str(car.recall)]
    assert found["car"][6] == f"{result.recall_at(0.3)['car']:.2f}"
    band = rows_of(html, "rescued")[-1]
    assert band[1:3] == [str(measures.band(0.3).missed), str(measures.band(0.3).rescued)]
    assert html == boxes_page(result, gold, "t <1>", 0.5, 0.3, lambda scores, classes: scores**2)


def test_a_bias_is_said_in_words(audited):
    _, gold, result = audited
    html = boxes_page(result, gold, "t")
    assert re.search(r"Boxes of &#39;\w+&#39; are 1\.[123]\d times as wide", html)
    assert "This selection has no band." in html


def test_what_gates_found_stands_on_top(audited):
    _, gold, result = audited
    html = boxes_page(result, gold, "t", 0.9999)
    assert html.index("too few boxes: at score 1.00") < html.index("gold pictures")
    assert "No gate found" not in html


def test_nothing_found_and_nothing_there(tmp_path):
    gold = with_pictures(scenes(count=12), tmp_path)
    silent = audit(stored(tmp_path / "a", gold, miss=1.0), gold, SPACE)
    html = boxes_page(silent, gold, "t", float("inf"))
    assert "Gold refutes no label." in html and "0 %" in html
    perfect = audit(stored(tmp_path / "b", gold), gold, SPACE, nms=None)
    assert "Every object has a label." in boxes_page(perfect, gold, "t", 0.5, 0.1)


def test_another_task_gives_its_own_sections(tmp_path):
    problems = ["audit: classes permuted: sky is grass"]
    html = audit_page("Maps", problems, [("0.41", "mIoU")], ["Hello."], [Section("Pixels", ["x"])])
    assert "classes permuted: sky is grass" in html and "audit: classes" not in html
    assert "<b>0.41</b>" in html and ">Pixels</h2>" in html


def test_it_is_written_beside_the_audit(audited):
    store, _, result = audited
    path = write_audit_page(store.path, result.gold_hash, "<p>x</p>")
    assert path == store.path / "audit" / result.gold_hash / "report.html"
    assert (path.parent / "audit.json").is_file() and path.read_text() == "<p>x</p>"


def test_without_its_packages_it_says_what_to_install(audited, monkeypatch):
    _, gold, result = audited
    monkeypatch.setattr(skeleton, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"detmtl\[report\]"):
        boxes_page(result, gold, "t")


def test_the_table_for_the_terminal(audited):
    *_, result = audited
    with open(os.devnull, "w") as nowhere:
        console = Console(width=160, record=True, file=nowhere)
        console.print(result.table({name: 0.5 + 0.01 * i for i, name in enumerate(CLASSES)}))
        text = console.export_text()
    row = result.measures(0.5).row("person", 0)
    assert str(row.precision) in text and str(row.recall) in text
    assert "0.55" in text and "calibration error" in text
    assert f"{row.recall.count / result.pictures:.2f}" in text
    assert np.isfinite(result.measures(0.5).reliability(0).error())


def test_the_verb_says_whose_labels_and_what_gold_is_missing(tmp_path, capsys):
    gold = with_pictures(scenes(count=3), tmp_path)
    path = stored(tmp_path / "store", gold).path
    maps = card("sky").model_copy(update={"name": "m", "task": "maps"})
    Store.create(path, maps, 0.0)
    words = ["audit", "--store", str(path), "--images", str(tmp_path), "--html"]
    assert main(words) == 2
    assert "holds labels of m, t; say whose are meant" in capsys.readouterr().err
    assert main([*words, "--teacher", "m"]) == 2
    assert "source" in (told := capsys.readouterr().err) and "no maps to audit against" in told
    assert main([*words, "--teacher", "t"]) == 2
    assert "--annotations is needed" in capsys.readouterr().err
