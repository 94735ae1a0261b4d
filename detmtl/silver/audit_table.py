"""The table of an audit for the terminal."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from rich.markup import escape
from rich.table import Table

from detmtl.silver.audit_measures import Measures

if TYPE_CHECKING:
    from detmtl.silver.audit import Audit


def class_table(audit: "Audit", thresholds: float | Mapping[str, float]) -> Table:
    """Returns precision, recall and calibration error per class, and boxes per picture that somebody
    searched for their class."""
    measures = Measures(audit, thresholds)
    kept = np.bincount(audit.boxes["class"][measures.kept], minlength=len(audit.classes))
    gold, silver = (counts / np.maximum(1, audit.searched) for counts in (audit.gold_boxes, kept))
    left_out = f", {audit.missing} more are not labelled" if audit.missing else ""
    table = Table(title=f"Silver against gold: {audit.pictures} pictures{left_out}")
    columns = ("class", "score from", "precision", "recall", "calibration error", "gold", "silver")
    for column in columns:
        heading = f"{column}/picture" if column in ("gold", "silver") else column
        table.add_column(heading, justify="left" if column == "class" else "right")
    for c in [*measures.classes(), None]:
        name = "all" if c is None else audit.classes[c]
        row = measures.row(name, c)
        error = measures.reliability(c).error()
        table.add_row(
            escape(name),
            "" if c is None else f"{measures.limits[c]:.2f}",
            str(row.precision),
            str(row.recall),
            f"{error:.3f}" if error == error else "-",
            f"{gold.sum() if c is None else gold[c]:.2f}",
            f"{silver.sum() if c is None else silver[c]:.2f}",
        )
    return table
