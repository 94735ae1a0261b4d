"""An audit of boxes for the terminal: tables, and what else there is to say, in words.

Letters: C classes.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from detmtl.silver.audit_gates import LEAST
from detmtl.silver.audit_measures import SIZES, Measures
from detmtl.silver.comparison import Fault
from detmtl.silver.share_table import MOST, left_out, limit_words, share_table, unsearched_words

BIASED = 6
"""Of so many classes at most, those with the most gold boxes, it is said that their boxes are too large or
too small."""


def shown(
    measures: Measures, ignore_from: float | Mapping[str, float] | None
) -> Iterator[Table | Text]:
    """Yields the table of classes, of many the largest, and where there is something to say that of sizes
    and a line each of the ignore band and of boxes that are too large or too small.

    Args:
        measures: the audit at thresholds.
        ignore_from: where the band below the thresholds begins; None: there is none.
    """
    yield class_table(measures)
    yield from left_out(len(measures.classes()), "classes with fewer gold boxes")
    if words := unsearched_words(measures.audit.classes, measures.audit.known):
        yield Text(words)
    sizes = [measures.row(name, size=i) for i, (name, _, _) in enumerate(SIZES)]
    if sum(row.precision.count + row.recall.count > 0 for row in sizes) > 1:
        table = Table("by size", box=None)
        for row, (_, _, end) in zip(sizes, SIZES, strict=True):
            bound = f" (to {end**0.5:.0f} x {end**0.5:.0f})" if np.isfinite(end) else ""
            table.add_column(f"{row.name}{bound}", justify="right")
        table.add_row("precision", *(str(row.precision) for row in sizes))
        table.add_row("recall", *(str(row.recall) for row in sizes))
        yield table
    if ignore_from is not None and (band := measures.band(ignore_from)).boxes:
        yield Text(
            f"Ignore band: of {band.missed} objects without a label {band.rescued} are not taught as "
            f"background; {band.background} of its {band.boxes} boxes lie on background."
        )
    if words := bias_words(measures):
        yield Text(words)


def class_table(measures: Measures) -> Table:
    """Returns precision, recall and calibration error per class, and boxes per picture that somebody
    searched for their class, see `Measures.densities`."""
    audit = measures.audit
    missing = f", {audit.missing} more are not labelled" if audit.missing else ""
    columns = ("class", "score\nfrom", "precision", "recall", "calibration\nerror")
    table = share_table(
        f"Silver against gold: {audit.pictures} pictures{missing}",
        (*columns, "gold/\npicture", "silver/\npicture"),
    )
    largest = sorted(measures.classes(), key=lambda c: -audit.gold_boxes[c])[:MOST]
    for c in [*sorted(largest), None]:
        name = "all" if c is None else audit.classes[c]
        row = measures.row(name, c)
        error = measures.reliability(c).error()
        gold, silver = measures.density if c is None else measures.densities[:, c]
        table.add_row(
            escape(name),
            "" if c is None else limit_words(float(measures.limits[c])),
            str(row.precision),
            str(row.recall),
            f"{error:.3f}" if error == error else "-",
            f"{gold:.2f}",
            f"{silver:.2f}",
        )
    return table


def bias_words(measures: Measures) -> str:
    """Returns in words of which classes the boxes are too large or too small; empty of none."""
    order = sorted(measures.classes(), key=lambda c: -measures.audit.gold_boxes[c])
    said = [words for c in order if (words := _bias(measures, c))]
    return "; ".join(said[:BIASED]) + "." if said else ""


def _bias(measures: Measures, c: int) -> str:
    """Returns in words how the boxes of a class are too large or too small, if they are: the mean is
    off by more than a tenth and by more than three standard errors."""
    found, misplaced = (measures.localization(c, fault) for fault in (Fault.NONE, Fault.PLACE))
    if misplaced["boxes"] > found["boxes"]:  # so far off that gold confirms few
        found = misplaced
    words = []
    for key, what in (("log_width", "wide"), ("log_height", "high")):
        mean, sd = found[key]
        if found["boxes"] >= LEAST and abs(mean) > max(0.1, 3 * sd / np.sqrt(found["boxes"])):
            words.append(f"{np.exp(mean):.2f} times as {what}")
    name = measures.audit.classes[c]
    return f"Boxes of '{name}' are {' and '.join(words)} as gold's" if words else ""
