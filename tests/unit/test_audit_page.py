import os
import re
from dataclasses import replace

import numpy as np
import pytest
from audit_stand_ins import CLASSES, Scenes, scenes, stored
from PIL import Image
from rich.console import Console
from silver_stand_ins import card

from detmtl.cli import main
from detmtl.data.flat import FileNames
from detmtl.engine.drawing import draw
from detmtl.report import audit_pictures, audit_plots
from detmtl.report import page as skeleton
from detmtl.report.audit_boxes import boxes_page
from detmtl.report.audit_page import audit_page, write_audit_page
from detmtl.report.page import Section
from detmtl.silver import audit_table, share_table
from detmtl.silver.audit import audit
from detmtl.silver.audit_table import bias_words, shown
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


def test_boxes_per_picture_are_the_same_in_table_summary_page_and_gate(tmp_path):
    gold = with_pictures(scenes(count=12), tmp_path)
    coverage = np.ones((12, len(CLASSES)), np.float32)
    coverage[4:, 1:3], coverage[:, 5] = 0, 0
    partly = Scenes(**{**gold.__dict__, "coverage": coverage})
    store = stored(tmp_path / "store", gold, extra=40)
    result = audit(store, partly, SPACE)
    assert result.searched.tolist() == [12, 4, 4, 12, 12, 0]
    labels = np.bincount(result.boxes["class"][result.boxes["score"] >= 0.05], minlength=6)
    silver, known = (np.sum(n[:5] / result.searched[:5]) for n in (labels, result.gold_boxes))
    assert silver > 1.2 * labels.sum() / 12, "a class counts where somebody looked for it"
    words = f"{silver:.2f}", f"{known:.2f}"
    table = result.table(0.05)
    assert [list(column.cells)[-1] for column in table.columns][-2:] == [words[1], words[0]]
    found = result.measures(0.05).summary()
    assert found["silver_per_picture"] == pytest.approx(silver, abs=1e-5)
    assert found["gold_per_picture"] == pytest.approx(known, abs=1e-5)
    (problem,) = result.problems(0.05)
    told = "audit: too many boxes: at score 0.05 the teacher has {} boxes a picture, gold {}"
    assert problem.startswith(told.format(*words))
    html = boxes_page(result, partly, "t", 0.05)
    assert f"<b>{silver:.1f} / {known:.1f}</b>" in html
    assert "Silver has {} boxes a picture and gold {}".format(*words) in html


def test_what_is_written_in_pictures_of_disagreements_is_not_made_smaller(audited, monkeypatch):
    """It was written on the whole part of the picture, which the page then showed at a half of its size."""
    sizes = []

    def noted(image, *args, letters):
        sizes.append((*image.shape[1:], letters))
        return draw(image, *args, letters=letters)

    monkeypatch.setattr(audit_pictures, "draw", noted)
    _, gold, result = audited
    html = boxes_page(result, gold, "t")
    assert sizes and all(max(size[:2]) <= audit_pictures.LONG for size in sizes)
    shown = re.findall(r'width="(\d+)" height="(\d+)"', html)
    assert {(int(h), int(w)) for w, h in shown} == {size[:2] for size in sizes}
    assert {size[2] for size in sizes} == {audit_pictures.LETTERS}


def test_recall_is_of_the_same_objects_in_table_plot_and_on_top(audited, monkeypatch):
    _, gold, result = audited
    one = result.limited_to(np.arange(len(CLASSES)) == 0)
    found = one.measures(0.0).row("all").recall
    assert 0 < found.count < len(one.gold)
    monkeypatch.setattr(audit_plots, "figure", lambda drawn: drawn)
    _, recall, *_ = audit_plots.threshold_plot(one.measures(0.5)).axes[0].lines
    assert recall.get_ydata()[0] == pytest.approx(found.value)
    monkeypatch.undo()
    assert f"<b>{found.count}</b><span>gold boxes" in boxes_page(one, gold, "t")


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
    assert "0.55" in text and "calibration" in text
    assert f"{row.recall.count / result.pictures:.2f}" in text
    assert np.isfinite(result.measures(0.5).reliability(0).error())


@pytest.mark.parametrize("name", ["person", "somebody_who_rides_a_bicycle"])
def test_a_narrow_terminal_shows_whole_intervals(audited, name):
    *_, result = audited
    result = replace(result, classes=(name, *CLASSES[1:]))
    with open(os.devnull, "w") as nowhere:
        console = Console(width=80, record=True, file=nowhere)
        console.print(result.table(0.5))
        text = console.export_text()
    measures = result.measures(0.5)
    for c in measures.classes():
        row = measures.row("", c)
        for share in (row.precision, row.recall):
            assert str(share).split()[-1] in text
    assert "…" not in text and max(map(len, text.splitlines())) <= 80


def lines_of(measures, ignore_from):
    with open(os.devnull, "w") as nowhere:
        console = Console(width=120, record=True, file=nowhere)
        for part in shown(measures, ignore_from):
            console.print(part)
        return console.export_text().splitlines()


def test_the_terminal_says_what_there_is_to_say_of_sizes_band_and_bias(audited, tmp_path):
    _, gold, result = audited
    measures = result.measures(0.6)
    lines = lines_of(measures, 0.3)
    start = next(i for i, line in enumerate(lines) if "by size" in line)
    assert "small (to 32 x 32)" in lines[start] and "large" in lines[start]
    rows = [measures.row("", size=i) for i in range(3)]
    for k, name in enumerate(("precision", "recall"), start + 1):
        assert re.sub(" +", " ", f"{name} {' '.join(str(getattr(r, name)) for r in rows)}") == (
            re.sub(" +", " ", lines[k].strip())
        )
    band = measures.band(0.3)
    text = " ".join(" ".join(lines[start + 3 :]).split())
    assert f"of {band.missed} objects without a label {band.rescued} are not taught" in text
    assert f"{band.background} of its {band.boxes} boxes lie on background." in text
    assert bias_words(measures) in text and "times as wide" in text
    assert len(lines) <= len(CLASSES) + 5 + 3 + 2 + 5, "table, sizes, band, biases"
    perfect = audit(stored(tmp_path, gold), gold, SPACE, nms=None).measures(0.5)
    for ignore_from in (None, 0.3):
        rest = lines_of(perfect, ignore_from)[len(CLASSES) + 5 :]
        assert [line.split()[0] for line in rest] == ["by", "precision", "recall"]


def test_of_many_classes_the_terminal_shows_the_largest_and_says_where_the_others_are(
    audited, monkeypatch
):
    for module in (audit_table, share_table):
        monkeypatch.setattr(module, "MOST", 2)
    result = audited[2]
    counts = dict(zip(CLASSES, result.gold_boxes.tolist(), strict=True))
    table, told, *_ = shown(result.measures(0.5), None)
    names = list(table.columns[0].cells)
    assert (
        set(names[:-1]) == set(sorted(counts, key=counts.__getitem__)[-2:]) and names[-1] == "all"
    )
    assert str(told).startswith("4 classes with fewer gold boxes are in summary.json")


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
