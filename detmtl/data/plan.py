"""What a run draws from each of its sources, for reading before it starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from detmtl.structures.labels import Grade

if TYPE_CHECKING:
    from detmtl.data.source import Source

MANY_PASSES = 20
"""A source drawn more often than this gets a warning: a network learns such pictures by heart."""


@dataclass(frozen=True)
class PlanRow:
    """What a run does with one source.

    Attributes:
        source, grade, pictures: its name, grade and size.
        drawn: pictures drawn from it in the whole run.
        per_step: the same divided by the steps.
        passes: the same divided by its pictures.
        share: of all pictures drawn, in [0, 1].
        weight: of its loss.
        loss_share: of the loss weight, in [0, 1]: mean over the steps of the weight of its pictures
            in the batch divided by that of all pictures in the batch.
        warning: a sentence, or "".
    """

    source: str
    grade: Grade
    pictures: int
    drawn: int
    per_step: float
    passes: float
    share: float
    weight: float
    loss_share: float
    warning: str = ""

    @classmethod
    def of(
        cls,
        source: "Source",
        drawn: int,
        steps: int,
        batch_size: int,
        weight: float,
        loss_share: float,
    ) -> "PlanRow":
        """Builds the row of a source of which `drawn` pictures are drawn in `steps` steps."""
        passes = drawn / max(len(source), 1)
        warning = ""
        if passes > MANY_PASSES:
            warning = (
                f"source '{source.name}' is repeated {passes:.1f} times (more than {MANY_PASSES}): its "
                "pictures may be learned by heart; lower its share or take fewer steps"
            )
        return cls(
            source=source.name,
            grade=source.grade,
            pictures=len(source),
            drawn=drawn,
            per_step=drawn / steps,
            passes=passes,
            share=drawn / (steps * batch_size),
            weight=weight,
            loss_share=loss_share,
            warning=warning,
        )


def plan_table(title: str, rows: Sequence[PlanRow], notes: Sequence[str]) -> Table:
    """Returns the plan for printing, the rows' warnings and the notes below it."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("source")
    table.add_column("grade")
    for name in ("pictures", "per step", "passes", "of pictures", "weight", "of the loss"):
        table.add_column(name, justify="right")
    for r in rows:
        table.add_row(
            r.source,
            r.grade.name.lower(),
            str(r.pictures),
            f"{r.per_step:.2f}",
            f"{r.passes:.2f}",
            f"{r.share:.1%}",
            f"{r.weight:g}",
            f"{r.loss_share:.1%}",
        )
    table.caption = "\n".join([r.warning for r in rows if r.warning] + list(notes)) or None
    return table
