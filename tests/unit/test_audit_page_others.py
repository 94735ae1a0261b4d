"""The pages of audits of maps and of tags."""

import json
import os
import re

import numpy as np
import pytest
from map_stand_ins import halves, store_of_maps
from rich.console import Console
from silver_stand_ins import HEIGHT, WIDTH, pictures
from test_silver_maps import CLASSES as MAPS
from test_silver_maps import _gold as gold_maps
from test_silver_tags import CLASSES as TAGS
from test_silver_tags import _gold as gold_tags
from test_silver_tags import _store as store_of_tags

from detmtl.pools import show_others
from detmtl.report import audit_maps, audit_tags
from detmtl.report import page as skeleton
from detmtl.report.audit_maps import SIDE, maps_page
from detmtl.report.audit_others import others_page
from detmtl.silver.calibration import cross_fitted
from detmtl.silver.map_policy import MapSelection
from detmtl.silver.maps import ChosenMaps
from detmtl.silver.tag_policy import TagSelection
from detmtl.silver.tags import ChosenTags
from detmtl.structures.errors import InputError

pytest.importorskip("jinja2", reason="Jinja2 is not installed: detmtl[report]")
pytest.importorskip("sklearn", reason="scikit-learn is not installed: detmtl[calibration]")


def rows_of(html: str, heading: str) -> dict[str, list[str]]:
    """Returns the cells by first cell of the table that has that heading."""
    table = next(t for t in re.findall(r"<table>.*?</table>", html, re.S) if f">{heading}<" in t)
    lines = re.findall(r"<tr.*?>(.*?)</tr>", table, re.S)[1:]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", line, re.S) for line in lines]
    return {row[0]: row[1:] for row in cells}


def _maps(tmp_path, count=8, graded=True, **settings):
    """Vehicles beside persons; the teacher takes persons for vehicles in every second picture."""
    source = gold_maps(tmp_path, pictures(tmp_path / "p", count), [halves(2, 1)] * count)
    sure = np.full((HEIGHT, WIDTH), 200, np.uint8) if graded else None
    found = [halves(2, 2 if i % 2 else 1) for i in range(count)]
    store = store_of_maps(tmp_path / "store", source, found, confidence=sure)
    others = ChosenMaps(store, MAPS, MapSelection(**settings))
    return others, others.audit(source), source


def _tags(tmp_path, count=30):
    """Night and rain by turns; the teacher calls everything rain."""
    targets = [[k % 2, 1 - k % 2, 0] for k in range(count)]
    source = gold_tags(pictures(tmp_path / "p", count), targets)
    scores = [[0.9 * (k % 2), 0.1, 0.5 + 0.4 * k / count] for k in range(count)]
    store = store_of_tags(tmp_path, source, scores)
    others = ChosenTags(store, TAGS, TagSelection(shown_from=0.5, absent_below=0.3))
    return others, others.audit(source), source


def test_the_page_of_maps_has_everything_and_loads_nothing(tmp_path):
    others, checked, gold = _maps(tmp_path)
    fitted = cross_fitted(checked.evidence)
    html = others_page(others, checked, gold, fitted)
    for title in ("Classes", "Confidence", "Confusion", "Worst disagreements"):
        assert f">{title}</h2>" in html
    assert "http" not in html and "No gate found a reason" in html and "After calibration" in html
    measures = others.measures(checked)
    found = rows_of(html, "coverage")
    row = measures.row("vehicle", 1)
    assert found["vehicle"][:2] == ["50.00%", "75.00%"]
    assert found["vehicle"][3:6] == [str(row.precision), str(row.recall), "0.67"]
    assert found["person"][5] == "0.50" and list(found)[-1] == "all"
    assert rows_of(html, "background")["person"][:2] == ["50%", "50%"]
    assert html.count("data:image/jpeg;base64") == 4, "of the pictures with a wrong half"
    assert "50% of the judged pixels: person called vehicle 50% · 001.png" in html
    assert html == others_page(others, checked, gold, fitted)


def test_picture_gold_and_silver_stand_side_by_side(tmp_path):
    others, checked, gold = _maps(tmp_path)
    silver = others.labels(gold, [1], checked)
    assert list(silver) == [1] and (silver[1].classes == 1).all()
    drawn = audit_maps._drawn(gold, 1, silver[1], checked.classes)
    assert drawn.shape == (HEIGHT, 3 * WIDTH + 8, 3)
    picture, truth, said = drawn[:, :WIDTH], drawn[:, WIDTH + 4 : -WIDTH - 4], drawn[:, -WIDTH:]
    assert (picture == gold.read(1)).all()
    right = slice(WIDTH - 8, None)  # beside the names that are written at the left
    assert (truth[:, right] != said[:, right]).any(-1).all()
    assert (said[20, right] != picture[20, right]).any(-1).all()
    big = audit_maps._drawn(_Big(gold), 1, silver[1], checked.classes)
    assert big.shape[1] <= 3 * SIDE + 8


class _Big:
    """A source whose picture and map are large."""

    def __init__(self, gold):
        self._gold, self.maps = gold, self

    def read(self, i):
        return np.kron(self._gold.read(i), np.ones((40, 40, 1), np.uint8))

    def labels(self, i, height, width):
        small = self._gold.maps.labels(i, HEIGHT, WIDTH)
        return small.resized((HEIGHT, WIDTH), (height, width))


@pytest.mark.parametrize("make", [_maps, _tags])
def test_a_narrow_terminal_shows_whole_intervals(tmp_path, make):
    others, checked, _ = make(tmp_path)
    with open(os.devnull, "w") as nowhere:
        console = Console(width=80, record=True, file=nowhere)
        console.print(others.measures(checked).table())
        text = console.export_text()
    assert re.search(r"\(\d\.\d\d-\d\.\d\d\)", text) and "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_hard_maps_have_no_diagram(tmp_path):
    others, checked, gold = _maps(tmp_path, graded=False)
    html = others_page(others, checked, gold, None)
    assert "does not say how sure it is" in html and "After calibration" not in html


def test_gates_and_pictures_that_are_missing_stand_on_the_page(tmp_path):
    others, _, gold = _maps(tmp_path, count=6)
    for record in others.store.rows:
        record.classes = 3 - record.classes  # persons and cars in another order
    del others.store.rows[-1]
    html = others_page(others, others.audit(gold), gold, None)
    assert "in another order" in html and "No gate found" not in html
    assert "1 more gold pictures are not in the store" in html
    assert "The teacher does not look for: sky, rest" in html


def test_a_class_that_means_more_than_ours_stands_on_the_page_and_in_the_terminal(tmp_path):
    truth, found = [halves(2, 3)] * 4, [halves(2, 2)] * 2 + [halves(2, 0)] * 2
    gold = gold_maps(tmp_path, pictures(tmp_path / "p", 4), truth)
    others = ChosenMaps(store_of_maps(tmp_path / "store", gold, found), MAPS, MapSelection())
    console = Console(record=True, width=1000)
    show_others(others, others.audit(gold), gold, console, page=False)
    html = others_page(others, others.audit(gold), gold, None)
    assert "not look for 'sky', calls 50% of its pixels 'vehicle'" in console.export_text()
    assert "not look for &#39;sky&#39;, calls 50% of its pixels &#39;vehicle&#39;" in html


def test_nothing_wrong_is_said(tmp_path):
    source = gold_maps(tmp_path, pictures(tmp_path / "p", 3), [halves(2, 1)] * 3)
    store = store_of_maps(tmp_path / "store", source, [halves(2, 1)] * 3)
    others = ChosenMaps(store, MAPS, MapSelection())
    assert "Gold refutes no pixel." in others_page(others, others.audit(source), source, None)


def test_the_page_of_tags_lists_what_is_wrong_under_each_picture(tmp_path):
    others, checked, gold = _tags(tmp_path)
    fitted = cross_fitted(checked.evidence)
    html = others_page(others, checked, gold, fitted)
    for title in ("Tags", "Scores", "Worst disagreements"):
        assert f">{title}</h2>" in html
    assert "http" not in html and "After calibration" in html
    found, measures = rows_of(html, "absent below"), others.measures(checked)
    rain = measures.row("rain", 1)
    assert found["rain"][0] == "15" and found["rain"][1:3] == ["0.30", "0.50"]
    assert (
        found["rain"][3:5] == [str(rain.precision), str(rain.recall)]
        and rain.precision.value == 0.5
    )
    assert found["night"][3] == "1.00 (0.80-1.00)" and set(found) == {"rain", "night", "all"}
    assert "The teacher does not look for: snow" in html
    assert html.count("data:image/jpeg;base64") == audit_tags.PICTURES
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", html)
    assert captions[0] == "not shown: rain 0.89 · 029.png", "the surest of the mistakes first"


def test_a_run_prints_the_table_and_writes_the_page(tmp_path):
    for name, make in (("maps", _maps), ("tags", _tags)):
        others, checked, gold = make(tmp_path / name)
        with open(os.devnull, "w") as nowhere:
            console = Console(width=200, record=True, file=nowhere)
            shown = show_others(others, checked, gold, console, page=True)
        (page,) = (others.store.path / "audit" / checked.gold_hash).glob("report.html")
        told = console.export_text()
        assert (
            shown.problems() == [] and f"Silver {name} against gold" in told and str(page) in told
        )
        assert f"Silver {name} of" in page.read_text()
        found = json.loads(page.with_name("summary.json").read_text())
        measures = others.measures(checked)
        own = found["per_class" if name == "maps" else "per_tag"]
        names = checked.classes if name == "maps" else checked.tags
        assert list(own) == [names[c] for c in measures.classes()] and len(own) > 1
        for c in measures.classes():
            row, told = measures.row("", c), own[names[c]]
            assert told["precision"] == row.precision.plain()
            assert told["recall"] == row.recall.plain()
            error = measures.reliability(c).error()
            assert told["calibration_error"] == pytest.approx(error, abs=1e-5)
        counts = measures.reliability().counts.sum()
        assert sum(row["labels"] for row in found["reliability"]) == counts > 0
        honest = cross_fitted(checked.evidence, others.policy.calibration)
        after = measures.reliability(probabilities=honest)
        assert found["all"]["calibration_error_after"] == pytest.approx(after.error(), abs=1e-5)


def test_without_its_packages_it_says_what_to_install(tmp_path, monkeypatch):
    others, checked, gold = _maps(tmp_path)
    monkeypatch.setattr(skeleton, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"detmtl\[report\]"):
        maps_page(others.measures(checked), gold, {}, "t")
