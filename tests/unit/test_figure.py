"""The picture of what silver brought shows what the files of results say."""

import re
import sys
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from figure import GROUPS, PICTURE, VERDICTS, Found, Wanted, found, save

ROWS = [row for rows in GROUPS.values() for row in rows]


def told(picture: str) -> list[str]:
    """Texts and line colors of a picture, in the order in which they are drawn."""
    return re.findall(r"(?<=>)[^<>\n]+(?=</text>)|stroke: #[0-9a-f]{6}", picture)


def test_the_picture_is_what_the_files_say(tmp_path):
    new = tmp_path / "new.svg"
    save(new)
    drawn = told(new.read_text())
    assert drawn == told(PICTURE.read_text()), "run benchmarks/figure.py"
    for row in ROWS:
        assert escape(str(found(row))) in drawn and escape(row.label) in drawn


def test_a_line_is_read_by_cell_arm_and_baseline(tmp_path):
    (tmp_path / "some_epyc_202611.md").write_text(
        "| arm | AP |\n|---|---|\n| b | 1 |\n\n## Differences\n\n"
        "| cell | arm | baseline | metric | difference | over seeds | over pictures | verdict |\n"
        "|---|---|---|---|---|---|---|---|\n"
        "| x | b | gold | AP | +0.100 | [+0.050, +0.150] | - | better |\n"
        "| y | b | gold | AP | -0.100 | [-0.150, -0.050] | [-0.200, +0.010] | cannot tell |\n"
        "| y | b | gold | AP50 | -0.300 | [-0.4, -0.2] | - | worse (seeds alone) |\n"
    )
    line = found(Wanted("", "some", "b", "gold", "y"), tmp_path)
    assert line == Found(-0.1, (-0.15, -0.05), (-0.2, 0.01), "cannot tell")
    assert found(Wanted("", "some", "b", "gold", "x"), tmp_path).pictures is None
    alone = found(Wanted("", "some", "b", "gold", "y", "AP50"), tmp_path)
    assert alone.color == VERDICTS["worse"] and str(alone).endswith(
        "[-0.400, -0.200] (seeds alone)"
    )
    with pytest.raises(SystemExit, match=r"some_epyc_202611\.md: b - silver in 'y': no such line"):
        found(Wanted("", "some", "b", "silver", "y"), tmp_path)
    with pytest.raises(SystemExit, match="no such file"):
        found(Wanted("", "other"), tmp_path)


def test_every_verdict_of_the_rows_has_a_color():
    assert {found(row).color for row in ROWS} <= set(VERDICTS.values())
