"""Tables of shares for the terminal."""

from collections.abc import Sequence

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table


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


def limit_words(limit: float) -> str:
    """Returns a threshold for a table; a dash where no score is enough."""
    return f"{limit:.2f}" if np.isfinite(limit) else "-"
