"""Tables of shares for the terminal."""

from collections.abc import Iterator, Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from detmtl.structures.errors import first_few

MOST = 100
"""More classes than that would push all else off the terminal: those with the most gold are in its tables."""


def share_table(title: str, columns: Sequence[str]) -> Table:
    """Returns a table without rows, the first column of names.

    It is for terminals of 80 columns, where intervals of shares may need lines of their own: headings of
    several words have line breaks, and nothing is between columns but two spaces.
    """
    table = Table(
        title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )
    names, *numbers = columns
    table.add_column(names, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", overflow="fold")
    return table


def left_out(classes: int, what: str) -> Iterator[Text]:
    """Yields where the classes of an audit are that are more than its table has, in words, if there are any.

    Args:
        classes: how many there are.
        what: what those are called that are not in the table.
    """
    if classes > MOST:
        yield Text(f"{classes - MOST} {what} are in summary.json, and on the page.")


def unsearched_words(classes: Sequence[str], known: np.ndarray) -> str:
    """Returns in words which of the classes (C,) nobody looks for in silver, by `known` (C,) bool; empty of
    none."""
    lost = [name for name, own in zip(classes, known.tolist(), strict=True) if not own]
    return f"Classes that no teacher looks for: {first_few(lost)}." if lost else ""


def limit_words(limit: float) -> str:
    """Returns a threshold for a table; a dash where no score is enough."""
    return f"{limit:.2f}" if np.isfinite(limit) else "-"
