"""What a run draws from each of its sources, for reading before it starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.markup import escape
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
        passes: the same divided by its pictures.
        most: how often its most repeated picture is drawn.
        share: of all pictures drawn, in [0, 1].
        weights: of its loss at the first and at the last step.
        loss_share: of the loss weight, in [0, 1]: mean over the steps of the weight of its pictures
            in the batch divided by that of all pictures in the batch.
        warning: a sentence, or "".
    """

    source: str
    grade: Grade
    pictures: int
    drawn: int
    passes: float
    most: int
    share: float
    weights: tuple[float, float]
    loss_share: float
    warning: str = ""

    @classmethod
    def of(
        cls,
        source: "Source",
        drawn: int,
        most: int,
        steps: int,
        batch_size: int,
        weights: tuple[float, float],
        loss_share: float,
        wanted: bool = True,
    ) -> "PlanRow":
        """Builds the row of a source of which `drawn` pictures are drawn in `steps` steps; `wanted`: whether
        the mode draws from it at all."""
        passes = drawn / max(len(source), 1)
        warning = ""
        if wanted and not drawn:
            warning = (
                f"source '{source.name}' is never drawn in {steps} steps; take more steps, or change its "
                "share"
            )
        if most > MANY_PASSES:
            warning = (
                f"source '{source.name}' is repeated {passes:.1f} times, one of its pictures {most} times "
                f"(more than {MANY_PASSES}): they may be learned by heart; lower its share or take fewer "
                "steps"
            )
        return cls(
            source=source.name,
            grade=source.grade,
            pictures=len(source),
            drawn=drawn,
            passes=passes,
            most=most,
            share=drawn / (steps * batch_size),
            weights=weights,
            loss_share=loss_share,
            warning=warning,
        )


def plan_table(title: str, rows: Sequence[PlanRow], notes: Sequence[str]) -> Table:
    """Returns the plan for printing, the rows' warnings and the notes below it.

    Columns: see `PlanRow`; "share" is that of all pictures drawn, "loss" that of the loss weight.
    """
    # nine columns in the 80 of a terminal
    table = Table(title=escape(title), title_justify="left", caption_justify="left", pad_edge=False)
    table.add_column("source", overflow="fold")
    table.add_column("grade", overflow="fold")
    for name in ("pictures", "drawn", "passes", "most", "share", "weight", "loss"):
        table.add_column(name, justify="right", overflow="fold")
    for r in rows:
        table.add_row(
            escape(r.source),
            r.grade.name.lower(),
            str(r.pictures),
            str(r.drawn),
            f"{r.passes:.2f}",
            str(r.most),
            f"{r.share:.1%}",
            " to ".join(f"{w:g}" for w in dict.fromkeys(r.weights)),
            f"{r.loss_share:.1%}",
        )
    told = [r.warning for r in rows if r.warning] + list(notes)
    table.caption = escape("\n".join(told)) or None
    return table
