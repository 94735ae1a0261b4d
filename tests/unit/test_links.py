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
