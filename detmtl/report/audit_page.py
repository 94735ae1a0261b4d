"""The page of an audit: how far silver labels can be trusted, for somebody who wants to see it.

`audit_page` is the frame for any kind of labels; `detmtl.report.audit_boxes`, `audit_maps` and `audit_tags`
fill it. Another task's audit gives its own sections and its own problems.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from detmtl.report.page import Section, note, numbers, page, write_page
from detmtl.silver.audit import audit_folder

if TYPE_CHECKING:
    from markupsafe import Markup


def audit_page(
    title: str,
    problems: Sequence[str],
    facts: Sequence[tuple[str, str]],
    remarks: "Sequence[str | Markup]",
    sections: Sequence[Section],
    footer: str = "",
) -> str:
    """Returns the page.

    Args:
        title: says whose labels are judged by what.
        problems: what the gates found; none: they let the labels pass.
        facts: a few large numbers, each (value, what it is).
        remarks: what a reader should know first.
        sections: the details.
        footer: where the page comes from.
    """
    if problems:
        verdict = [note(problem.removeprefix("audit: "), "bad") for problem in problems]
    else:
        verdict = [note("No gate found a reason against these labels.", "good")]
    return page(title, [Section("", [*verdict, numbers(facts), *remarks]), *sections], footer)


def write_audit_page(store: Path, gold_hash: str, html: str) -> Path:
    """Writes the page beside the audit that it is about, and returns where."""
    path = audit_folder(store, gold_hash) / "report.html"
    write_page(path, html)
    return path


def percent(share: float) -> str:
    """Returns a share in percent; a dash of nothing."""
    return f"{100 * share:.0f} %" if share == share else "\N{EN DASH}"


def listed(names: Sequence[str]) -> str:
    """Returns the first names, and how many more there are."""
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + more
