"""No test is skipped unseen, for want of a package that nobody installs."""

import re
import tomllib
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
BY_HAND = {
    "datumaro": "it wants older releases of opencv and pillow, and brings pyarrow",
    "lvis": "it brings opencv-python, which writes over opencv-python-headless",
}
"""Packages that tests skip without and that the extra `test` does not install, and why."""
NAMED_OTHERWISE = {"scikit_learn": "sklearn"}


def installed_for_tests() -> set[str]:
    """Returns the modules that the extra `test` installs, by the names that they are imported by."""
    text = (TESTS.parent / "pyproject.toml").read_text()
    extras = tomllib.loads(text)["project"]["optional-dependencies"]

    def modules(extra):
        for requirement in extras[extra]:
            name, chosen = re.match(r"([\w-]+)(?:\[([\w,-]+)\])?", requirement).groups()
            if name == "detmtl":
                for inner in chosen.split(","):
                    yield from modules(inner)
            else:
                module = name.replace("-", "_")
                yield NAMED_OTHERWISE.get(module, module)

    return set(modules("test"))


def test_packages_that_tests_skip_without_are_installed_for_tests():
    asked = {
        name
        for path in TESTS.rglob("test_*.py")
        for name in re.findall(r'\b(?:importorskip|tool)\(\s*"(\w+)', path.read_text())
    }
    assert {"numba", "sklearn", "transformers", "supervision"} <= asked
    assert asked - installed_for_tests() == BY_HAND.keys()
