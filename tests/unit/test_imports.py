"""Imports run one way: a module may import its own layer's and lower layers' modules only."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "detmtl"
LAYERS = [
    {"structures"},
    {"data", "models", "losses", "balancing"},
    {"silver", "metrics"},
    {"tasks"},
    {"engine"},
    {"inference"},
    {"teachers"},
    {"report"},
    {"yaml_settings"},
    {"config_parts"},
    {"config_online"},
    {"config"},
    {"run_folder", "inputs"},
    {"run_teachers"},
    {"pools"},
    {"run_sources", "run_online"},
    {"run_training"},
    {"recipe"},
    {"comparing"},
    {"compare"},
    {"transfer"},
    {"verbs"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: i for i, layer in enumerate(LAYERS) for part in layer}


def imported_parts(tree: ast.AST) -> set[str]:
    """Returns the parts of detmtl that a module imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("detmtl."):
            names.add(node.module)
        elif isinstance(node, ast.ImportFrom) and node.module == "detmtl":
            names.update(f"detmtl.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(a.name for a in node.names if a.name.startswith("detmtl."))
        assert not (isinstance(node, ast.ImportFrom) and node.level), "imports are absolute"
    return {name.split(".")[1] for name in names} - {"__version__"}


def violations(part: str, source: str) -> list[str]:
    """Returns the parts that a module of `part` imports though they stand above or beside it."""
    allowed = {p for p in LEVEL if LEVEL[p] < LEVEL[part]} | {part}
    return sorted(imported_parts(ast.parse(source)) - allowed)


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert part in LEVEL, f"{part} has no layer; give it one in LAYERS"
    assert violations(part, path.read_text()) == []


def test_the_check_finds_a_violation():
    assert violations("data", "from detmtl.engine.trainer import train") == ["engine"]
    assert violations("data", "import detmtl.models.fpn") == ["models"]
    assert violations("engine", "from detmtl.tasks.task import Task") == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_the_pages_tell_the_very_layers(page):
    text = (PACKAGE.parent / page).read_text()
    told = [
        {*layer.split(" | ")}
        for layer in re.findall(r"`(structures -> .*?)`", text)[0].split(" -> ")
    ]
    assert told == [*LAYERS[:-1], {"tools"}]


def test_the_guide_names_files_that_there_are_and_the_unions_where_they_are():
    text = (PACKAGE.parent / "CONTRIBUTING.md").read_text()
    unions = re.findall(r"the union in `([^`]+)`", text)
    assert len({*unions}) == 4
    for path in unions:
        assert re.search(r"^\w+ = Annotated\[", (PACKAGE.parent / path).read_text(), re.M), path
    for path in re.findall(r"`((?:detmtl|tests)/[\w/.]+)`", text):
        assert (PACKAGE.parent / path).exists(), path
