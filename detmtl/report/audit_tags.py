"""The page of an audit of tags.

Letters: T tags.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from detmtl.data.source import Source
from detmtl.report.audit_page import audit_page, listed, percent
from detmtl.report.audit_pictures import file_name
from detmtl.report.audit_plots import shares_plot
from detmtl.report.audit_sections import CLASSES, PICTURES, limit_cell, reliability, shaded
from detmtl.report.page import Section, gallery, note, picture, require, table
from detmtl.silver.tag_measures import LEAST, TagMeasures, WrongTags

if TYPE_CHECKING:
    from markupsafe import Markup


def tags_page(
    measures: TagMeasures,
    gold: Source,
    teacher: str,
    calibrated: Sequence[np.ndarray] | None = None,
) -> str:
    """Returns the page.

    Args:
        measures: the audit against `gold` at the thresholds of the selection.
        gold: what the audit was made with; its pictures are read for the worst disagreements.
        teacher: its name.
        calibrated: the probabilities of the labels in the audit's evidence, each fitted without its own
            part; None: none could be fitted.

    Raises:
        InputError: Jinja2 or matplotlib is not installed, or a picture cannot be read.
    """
    require()
    audit, every = measures.audit, measures.row("all")
    before = measures.reliability()
    error = before.error()
    after = None if calibrated is None else measures.reliability(probabilities=calibrated)
    facts = [
        (str(audit.pictures), "gold pictures"),
        (percent(every.precision.value), "of the tags called shown are right"),
        (percent(every.recall.value), "of the tags that gold shows are found"),
        (percent(measures.absent().value), "of the tags called absent are right"),
        (percent(measures.doubtful()), "of the tags stay unknown"),
        (f"{error:.3f}" if error == error else percent(error), "calibration error of the scores"),
    ]
    sections = [
        Section("Tags", list(_tags(measures))),
        Section("Scores", list(reliability(before, after, "tags"))),
        Section("Worst disagreements", list(_pictures(measures, gold))),
    ]
    return audit_page(
        f"Silver tags of '{teacher}' against gold of '{gold.name}'",
        measures.problems(),
        facts,
        list(_remarks(measures)),
        sections,
        f"Labels {audit.store_digest}, gold {audit.gold_hash}, audit {audit.digest()}.",
    )


def _remarks(measures: TagMeasures) -> "Iterator[str | Markup]":
    audit = measures.audit
    yield (
        "A tag of a picture is shown, absent, or unknown where the teacher is not sure. In brackets: 95 % "
        "intervals (Wilson)."
    )
    if audit.missing:
        yield note(f"{audit.missing} more gold pictures are not in the store.", "warn")
    shown = measures.counts[:, :, 1].sum(1)
    if few := [name for name, k in zip(audit.tags, shown, strict=True) if 0 < k < LEAST]:
        yield note(
            f"Shown in fewer than {LEAST} gold pictures: {listed(few)}. Their own numbers say little.",
            "warn",
        )
    if unknown := [n for n, known in zip(audit.tags, audit.known, strict=True) if not known]:
        yield note(f"The teacher does not look for: {listed(unknown)}.", "warn")


def _tags(measures: TagMeasures) -> "Iterator[str | Markup]":
    order = measures.classes()
    tags = [*((measures.audit.tags[t], t) for t in order), ("all", None)]
    rows = []
    for name, t in tags:
        row, error = measures.row(name, t), measures.reliability(t).error()
        limits = [None, None]
        if t is not None:
            limits = [limit_cell(float(x[t])) for x in (measures.policy.low, measures.policy.high)]
        cells = [shaded(s) for s in (row.precision, row.recall, measures.absent(t))]
        doubtful = percent(measures.doubtful(t))
        wrong = f"{error:.3f}" if error == error else None
        rows.append([name, row.recall.count, *limits, *cells, doubtful, wrong])
    yield shares_plot([measures.row(name, t) for name, t in [*tags[: CLASSES - 1], *tags[-1:]]])
    columns = ["tag", "gold", "absent below", "shown from", "precision", "recall"]
    yield table(rows, [*columns, "absent and right", "unknown", "calibration error"], total=True)
    yield (
        "Gold: pictures that show the tag. Precision is of the tags called shown. The calibration error is "
        "over all of the teacher's scores, also those between the thresholds."
    )


def _pictures(measures: TagMeasures, gold: Source) -> "Iterator[str | Markup]":
    worst = measures.worst(PICTURES)
    if not worst:
        yield "Gold refutes no tag."
        return
    yield (
        "The pictures of which the teacher is surest to say what gold refutes; below each the wrong tags "
        "with their scores. Some of these are gold's mistakes."
    )
    yield gallery([picture(gold.read(one.picture), _caption(measures, gold, one)) for one in worst])


def _caption(measures: TagMeasures, gold: Source, one: WrongTags) -> str:
    names = measures.audit.tags
    told = [
        f"{word}: {listed([f'{names[t]} {score:.2f}' for t, score in tags])}"
        for word, tags in (("not shown", one.invented), ("overlooked", one.overlooked))
        if tags
    ]
    return f"{'; '.join(told)} · {file_name(gold, one.picture)}"
