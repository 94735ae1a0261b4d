"""The picture of what silver brought shows what the files of results say."""

import sys
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from figure import GROUPS, PICTURE, VERDICTS, Found, Wanted, found

ROWS = [row for rows in GROUPS.values() for row in rows]


@pytest.mark.parametrize("wanted", ROWS, ids=lambda row: f"{row.file}, {row.label}")
def test_each_row_is_in_the_picture_as_its_file_has_it(wanted):
    line, drawn = found(wanted), PICTURE.read_text()
    assert f">{escape(str(line))}<" in drawn, "run benchmarks/figure.py"
    assert f">{escape(wanted.label)}<" in drawn


def test_a_line_is_read_by_cell_arm_and_baseline(tmp_path):
    (tmp_path / "some_epyc_202611.md").write_text(
        "| arm | AP |\n|---|---|\n| b | 1 |\n\n## Differences\n\n"
        "| cell | arm | baseline | metric | difference | over seeds | over pictures | verdict |\n"
        "|---|---|---|---|---|---|---|---|\n"
        "| x | b | gold | AP | +0.100 | [+0.050, +0.150] | - | better |\n"
        "| y | b | gold | AP | -0.100 | [-0.150, -0.050] | [-0.200, +0.010] | cannot tell |\n"
        "| y | b | gold | AP50 | -0.300 | [-0.4, -0.2] | - | worse |\n"
    )
    line = found(Wanted("", "some", "b", "gold", "y"), tmp_path)
    assert line == Found(-0.1, (-0.15, -0.05), (-0.2, 0.01), "cannot tell")
    assert found(Wanted("", "some", "b", "gold", "x"), tmp_path).pictures is None
    with pytest.raises(SystemExit, match=r"some_epyc_202611\.md: b - silver in 'y': no such line"):
        found(Wanted("", "some", "b", "silver", "y"), tmp_path)
    with pytest.raises(SystemExit, match="no such file"):
        found(Wanted("", "other"), tmp_path)


def test_every_verdict_of_the_rows_has_a_color():
    assert {found(row).verdict for row in ROWS} <= set(VERDICTS)
