"""From raw labels to labels: a pure function of store, policy and label space."""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from detmtl.data.source import Source
from detmtl.silver.audit import Audit
from detmtl.silver.store import Store
from detmtl.structures.classes import LabelSpace
from detmtl.structures.settings import Settings


class AtPrecision(Settings):
    """A threshold that the audit finds: the lowest score at which gold confirms this share."""

    precision: float = Field(ge=0, le=1)


class SelectionSettings(Settings):
    """Which of a teacher's boxes become labels, and how much they count."""

    threshold: float | AtPrecision = 0.5
    """Boxes of at least this score are labels."""
    per_class: dict[str, float | AtPrecision] = {}
    """Class name -> its own threshold."""
    ignore_from: float | None = Field(0.3, ge=0, le=1)
    """Boxes from this score up to the threshold have no loss of their class; None: no such band."""
    soft_targets: bool = False
    """Whether a label's score is its target in the class loss; otherwise the target is 1."""
    class_weight: float = Field(1.0, ge=0)
    box_weight: float = Field(1.0, ge=0)
    nms: float | None = Field(0.6, gt=0, le=1)
    """Of two boxes of one class that overlap more than this (IoU), the better stays."""
    max_boxes: int = Field(300, ge=1)
    """The most boxes of one picture, the best of them, ignored ones included."""
    coverage: float | None = Field(None, ge=0, le=1)
    """Of the classes that the teacher knows; None: their audited recall, 1 without an audit."""


def select(
    store: Store,
    sources: Sequence[Source] | None,
    classes: LabelSpace,
    settings: SelectionSettings,
    audit: Audit | None = None,
    root: Path | None = None,
) -> Path:
    """Returns the COCO file (`select/<policy hash>/instances.json` in the store) of chosen labels.

    The file's categories are the names of `classes`: read it with `LabelSpace.of(classes.names)`.

    Args:
        store: raw labels.
        sources: the pictures that are wanted, with their ids and files; None: all of the store.
        classes: what the teacher's classes mean.
        settings: the policy.
        audit: resolves thresholds given as precision, and gives the coverage.
        root: file names are written relative to it; None: absolute (as the store has them where
            `sources` is None).

    Raises:
        InputError: a class of the teacher is unmapped, a threshold needs an audit, no picture of
            the sources is in the store.
    """
    raise NotImplementedError
