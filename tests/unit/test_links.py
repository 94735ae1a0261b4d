"""What pages and settings refer to is there."""

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results"
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
NAMING = [*PAGES, *sorted(RESULTS.glob("*.md")), *sorted((REPOSITORY / "configs").glob("*.yaml"))]


def named(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    local = [link for link in links if not link.startswith(("http:", "https:"))]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("file", NAMING, ids=named)
def test_results_that_are_named_are_there(file):
    names = set(re.findall(r"\b[a-z0-9_]+_20\d{4}\.md\b", file.read_text()))
    assert {name for name in names if not (RESULTS / name).is_file()} == set()


def test_scores_of_the_table_are_in_their_files():
    """A row that says `same` means the file of the row above."""
    table = PAGES[0].read_text().partition("| what | AP | AP50 |")[2].partition("\n\n")[0]
    checked, text = 0, ""
    for row in table.splitlines()[2:]:
        what, *scores, _, source = (x.strip() for x in row.strip("|").split("|"))
        if link := re.search(r"\]\(([^)]+)\)", source):
            text = (REPOSITORY / link[1]).read_text()
        for number in re.findall(r"\.\d{3}\b", " ".join(scores)):
            assert re.search(rf"(?<!\d)0?\{number}\b", text), f"{what}: {number} is not in the file"
            checked += 1
    assert checked > 40
