"""Which pictures make up the batch of a step, and the exact plan of a whole run."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from rich.table import Table

from detmtl.structures.labels import Grade
from detmtl.structures.settings import Settings

if TYPE_CHECKING:
    from detmtl.data.source import Source

Mode = Literal["gold", "silver", "concat", "batch", "alternate", "weighted"]


class MixSettings(Settings):
    """How the sources share the batches and the loss."""

    mode: Mode = "concat"
    shares: dict[str, float] = {}
    """Source name -> share of every batch (mode batch) or of the steps (mode alternate)."""
    weights: dict[str, float] = {}
    """Source name -> weight of its loss, times the source's own weight."""


class Pick(NamedTuple):
    """One picture of a batch: `source` and `index` in it, `draw`: passes already made over it."""

    source: int
    index: int
    draw: int


@dataclass(frozen=True)
class PlanRow:
    """What a run of a given number of steps does with one source."""

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


class Mixture:
    """Draws the pictures of each step: a pure function of (seed, step)."""

    sources: "list[Source]"
    weights: list[float]
    batch_size: int

    def __init__(
        self, sources: "Sequence[Source]", settings: MixSettings, batch_size: int, seed: int = 0
    ):
        raise NotImplementedError

    def picks(self, step: int) -> list[Pick]:
        """Returns the batch_size pictures of the batch of step (0, 1, ...)."""
        raise NotImplementedError

    def plan(self, steps: int) -> list[PlanRow]:
        """Returns what a run of `steps` steps draws, exactly, a row for each source."""
        raise NotImplementedError

    def plan_table(self, steps: int) -> Table:
        """Returns the plan for printing, warnings below it."""
        raise NotImplementedError
