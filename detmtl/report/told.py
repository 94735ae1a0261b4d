"""Numbers, tables and warnings as reports write them.

An estimate is everywhere what report.json holds: mean, low and high, None where they are not known.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.text import Text

SEEDS_ALONE = " (seeds alone)"
"""Stands after a verdict that says nothing of other test pictures."""


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the lines of a table in Markdown; a bar in a name stays in its cell."""
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in (columns, *rows)]
    head, *body = [f"| {line} |" for line in lines]
    return [head, "|" + "---|" * len(columns), *body]


def told_files(files: Mapping[str, Path]) -> Text:
    """Returns where everything is, a line each: printed softly wrapped, paths can be copied."""
    width = max((len(what) for what in files), default=0)
    lines = [f"  {what:{width}}  {path}" for what, path in files.items()]
    return Text("\n".join(["Files", *lines]))


def warnings(found: Mapping[str, Any]) -> list[str]:
    """Returns what a reader of a report of many runs must mind, from all that it holds."""
    told = list(found["cautions"])
    if found["finished"] < found["planned"]:
        told.append(
            f"{found['finished']} of {found['planned']} runs are finished; the report is over these."
        )
    return told + [f"{f['name']} failed: {f['why']} (see {f['log']})" for f in found["failures"]]


def short(metric: str) -> str:
    """Returns a metric's name without its task."""
    return metric.split("/", 1)[1]


def told_mean(e: Mapping[str, Any] | None) -> str:
    """Returns an estimate's mean ± half of its interval."""
    if e is None or e["mean"] is None:
        return "-"
    half = "" if e["low"] is None else f" ± {(e['high'] - e['low']) / 2:.3f}"
    return f"{e['mean']:.3f}{half}"


def bounds(e: Mapping[str, Any]) -> str:
    """Returns an estimate's interval."""
    return "-" if e["low"] is None else f"[{e['low']:+.3f}, {e['high']:+.3f}]"


def told_p(p: float | None) -> str:
    """Returns a probability as people write it; None or NaN: not known."""
    if p is None or math.isnan(p):
        return "-"
    return f"{p:.3f}".removeprefix("0") if p >= 0.001 else "< .001"
