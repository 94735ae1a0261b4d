import re
from html.parser import HTMLParser

import numpy as np
import pytest

from detmtl.report import page as made
from detmtl.report.page import (
    COLORS,
    Section,
    Shaded,
    axes,
    curve,
    figure,
    gallery,
    note,
    numbers,
    picture,
    short_name,
    table,
    verdict_dot,
)
from detmtl.report.told import markdown_table, told_p
from detmtl.structures.errors import InputError


class Balanced(HTMLParser):
    """Fails on a tag that closes another than the open one."""

    VOID = {"meta", "img", "br", "path", "use", "rect", "circle", "line"}

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


def plot():
    drawn, (left, right) = axes(columns=2)
    left.plot([0, 1], [0, 1], label="a < b")
    left.legend()
    right.bar([0, 1], [2, 3], color="black")
    return drawn


def whole() -> str:
    photo = np.full((30, 900, 3), 90, np.uint8)
    sections = [
        Section("", ["plain & simple", note("bad luck", "bad"), numbers([("3.4", "boxes")])]),
        Section("Plots", [figure(plot(), "one"), figure(plot(), "the same once more")]),
        Section("Table", [table([["<x>", Shaded("5", 0.25)], ["y", None]], ["name", "n"])]),
        Section("Pictures", [gallery([picture(photo, "wide")])]),
    ]
    return made.page("Title <script>", sections, footer="made by a test")


def test_a_page_is_whole_and_loads_nothing():
    html = whole()
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert "http" not in html and "//" not in re.sub(r"base64,[\w+/=]+|<!--.*?-->", "", html)
    links = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    assert links <= set(parser.ids) and "pictures" in links


def test_what_is_written_is_escaped():
    html = whole()
    assert "Title &lt;script&gt;" in html and "<script" not in html
    assert '<td class="left">&lt;x&gt;</td>' in html
    assert "<p>plain &amp; simple</p>" in html


def test_cells():
    html = table([["a", 1, float("nan")], ["all", 2, Shaded("9", 1)]], ["k", "n", "v"], total=True)
    assert '<td class="left">a</td><td>1</td><td>–</td>' in html
    assert '<tr class="total"><td class="left">all</td>' in html
    assert '<td class="shaded" style="--share:1.000">9</td>' in html


def test_sentences_in_cells_have_several_lines():
    """In one line they made tables many screens wide, which print cuts off."""
    told = "keep the task, if its time per step is worth it " * 3
    html = table([["a", told, told]], ["name", "what to do", "number"], left=("what to do",))
    assert f'<td class="left">a</td><td class="left long">{told}</td><td>{told}</td>' in html


def test_plots_follow_the_mode_of_the_page_and_repeat():
    html = figure(plot())
    assert "#000000" not in html and "#ffffff" not in html
    assert "currentColor" in html and "<text" in html
    assert html == figure(plot())


def test_names_with_dollars_are_shown_as_they_are():
    name = "a$_$b"  # as a formula it is wrong
    drawn, (left, right) = axes(columns=2)
    left.plot([0, 1], [0, 1], label=name)
    left.set_title(name)
    left.set_yticks([0, 1], [name, "$x$"])
    left.text(0, 0, name)
    left.legend()
    right.set(xlim=(0, 1), ylim=(1, 1e6), yscale="log", xlabel=name)
    html = figure(drawn)
    assert html.count(">a$_$b<") == 5 and ">$x$<" in html
    shown = re.sub(r"<!--.*?-->", "", html)
    assert "mathdefault" not in shown, "powers of ten are no names"


def test_names_in_any_writing_are_kept_for_the_reader_s_fonts_without_a_word():
    drawn, (ax,) = axes()
    ax.set_yticks([0, 1], ["\u8f66\u8f86", "\U0001f697"])
    assert "\u8f66\u8f86" in figure(drawn)  # warnings are errors


def test_long_names_are_short_in_plots():
    assert short_name("x" * 32) == "x" * 32
    cut = short_name("a class of a name that begins and ends as others, number 17")
    assert len(cut) <= 32 and cut.startswith("a class of") and cut.endswith("number 17")
    assert short_name("\u8f66" * 16) == "\u8f66" * 16
    assert len(short_name("\u8f66" * 17)) <= 16  # each as wide as two Latin letters


def test_more_curves_than_colors_are_told_apart():
    assert len({curve(i) for i in range(18)}) == 18
    assert curve(0) == ("o-", COLORS[0])


def test_where_one_cannot_tell_a_point_is_hollow():
    for sure, inside in ((True, COLORS[2]), (False, "var(--page)")):
        drawn, (ax,) = axes()
        verdict_dot(ax, 0, 0, COLORS[2], sure)
        assert f"fill: {inside}; stroke: {COLORS[2]}" in figure(drawn)


def test_pictures_are_made_small():
    html = picture(np.zeros((100, 2000, 3), np.uint8), "p", longest=200)
    assert 'width="200" height="10"' in html


def test_without_the_packages_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(made, "find_spec", lambda name: None)
    assert not made.available()
    for call in (lambda: made.page("t", []), lambda: figure(None), lambda: table([], ["a"])):  # type: ignore[arg-type]
        with pytest.raises(InputError, match=r"pip install 'detmtl\[report\]'"):
            call()


def test_a_page_is_written_whole(tmp_path):
    made.write_page(tmp_path / "a" / "report.html", "<p>é</p>")
    assert (tmp_path / "a" / "report.html").read_text(encoding="utf-8") == "<p>é</p>"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["report.html"]


def test_a_bar_in_a_name_stays_in_its_cell():
    lines = markdown_table(["arm", "AP a|b"], [["x|y", "1"]])
    assert lines == ["| arm | AP a\\|b |", "|---|---|", "| x\\|y | 1 |"]


def test_probabilities_as_words():
    told = [told_p(p) for p in (0.0421, 0.0002, 1.0, float("nan"), None)]
    assert told == [".042", "< .001", "1.000", "-", "-"]
