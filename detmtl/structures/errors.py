"""The one exception for what a user gave and can put right."""

from collections.abc import Iterable, Sequence
from typing import Any


class InputError(ValueError):
    """Something that the user gave is wrong: a setting, a file, a label, a path.

    Each problem is one sentence that says where, what was found, what is allowed and, where it
    is not obvious, what to do. The command line prints them without a traceback and exits with 2.
    """

    SHOWN = 20

    def __init__(self, problems: str | Iterable[str]):
        self.problems: list[str] = [problems] if isinstance(problems, str) else list(problems)
        lines = self.problems[: self.SHOWN]
        if len(self.problems) > self.SHOWN:
            lines.append(f"... and {len(self.problems) - self.SHOWN} more problems")
        super().__init__("\n".join(lines))


def missing_package(package: str, extra: str, purpose: str) -> InputError:
    """Returns the error for an optional package that is not installed."""
    return InputError(f"{purpose} needs the package {package}: pip install 'detmtl[{extra}]'")


def first_few(values: Sequence[Any], shown: int = 8) -> str:
    """Returns the first of some values and how many more there are, in words."""
    more = f" and {len(values) - shown} more" if len(values) > shown else ""
    return ", ".join(map(str, values[:shown])) + more
