"""The page of an audit of boxes.

Letters: C classes, D boxes of the teacher, G gold boxes.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from detmtl.data.source import Source
from detmtl.report import audit_sections as parts
from detmtl.report.audit_page import audit_page, listed, percent
from detmtl.report.page import Section, note, require
from detmtl.silver.audit import Audit
from detmtl.silver.audit_gates import LEAST
from detmtl.silver.audit_measures import Calibrate, Measures
from detmtl.silver.audit_table import bias_words
from detmtl.silver.policy import Policy

if TYPE_CHECKING:
    from markupsafe import Markup


def boxes_page(
    audit: Audit,
    gold: Source,
    teacher: str,
    thresholds: float | Mapping[str, float] = 0.5,
    ignore_from: float | Mapping[str, float] | None = None,
    calibrate: Calibrate | None = None,
    policy: Policy | None = None,
) -> str:
    """Returns the page.

    Args:
        audit: of silver boxes against `gold`.
        gold: what the audit was made with; its pictures are read for the worst disagreements.
        teacher: its name.
        thresholds: scores from which boxes are labels.
        ignore_from: where the band below the thresholds begins; None: there is none.
        calibrate: scores (D,) and classes (D,) -> probabilities (D,), to be compared with the scores. It
            is asked once, for `audit.boxes` in their order: where it was fitted to the same boxes, only
            probabilities fitted without each box's part are honest.
        policy: whose coverage is shown; None: the recall from `ignore_from` on.

    Raises:
        InputError: Jinja2 or matplotlib is not installed, or a picture cannot be read.
    """
    require()
    measures = Measures(audit, thresholds)
    all_of = measures.row("all")
    in_gold, in_silver = measures.density
    error = measures.reliability().error()
    facts = [
        (str(audit.pictures), "gold pictures"),
        (str(all_of.recall.count), "gold boxes"),
        (percent(all_of.precision.value), "of the labels are right"),
        (percent(all_of.recall.value), "of the objects are found"),
        (f"{in_silver:.1f} / {in_gold:.1f}", "boxes a picture, silver / gold"),
        (f"{error:.3f}" if error == error else "–", "calibration error of the scores"),
    ]
    sections = [
        Section("Classes", list(parts.classes(measures, ignore_from, policy))),
        Section("Sizes", list(parts.sizes(measures))),
        Section("Scores", list(parts.scores(measures, calibrate))),
        Section("Boxes per picture", list(parts.density(measures))),
        Section("Places", list(parts.places(measures))),
        Section("Ignore band", list(parts.band(measures, ignore_from))),
        Section("Faults", list(parts.faults(measures))),
        Section("Worst disagreements", list(parts.pictures(measures, gold))),
    ]
    return audit_page(
        f"Silver of '{teacher}' against gold of '{gold.name}'",
        audit.problems(thresholds),
        facts,
        list(_remarks(measures)),
        sections,
        f"Labels {audit.store_digest}, gold {audit.gold_hash}, audit {audit.digest()}.",
    )


def _remarks(measures: Measures) -> "Iterator[str | Markup]":
    audit = measures.audit
    yield (
        "A label is right where a gold box of its class overlaps it by an IoU of at least 0.5; each gold box "
        "confirms one label. In brackets: 95 % intervals (Wilson), which treat boxes as independent."
    )
    if audit.missing:
        yield note(f"{audit.missing} more gold pictures are not in the store.", "warn")
    few = [n for n, k in zip(audit.classes, audit.gold_boxes, strict=True) if 0 < k < LEAST]
    if few:
        yield note(
            f"Fewer than {LEAST} gold boxes: {listed(few)}. Their own numbers say little; thresholds and "
            "coverage lean on all classes together.",
            "warn",
        )
    unknown = [n for n, known in zip(audit.classes, audit.known, strict=True) if not known]
    if unknown:
        yield note(f"The teacher does not look for: {listed(unknown)}.", "warn")
    if bias := bias_words(measures):
        yield note(bias, "warn")
