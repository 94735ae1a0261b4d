"""Silver that is made while a model learns: its own average labels what comes next.

The teacher is the model whose weights are the moving average of the student's (`State.averaged`). It
looks at weak views, pictures at the network's size and nothing else changed; what is chosen of its
boxes goes with the picture through the augmentation, and the student learns from that strong view.
Choosing is the selection's: thresholds, ignore band, soft targets and weights mean what they mean
for silver that was written beforehand.

What it costs: one forward pass of the pictures that wait, and their augmentation in this process
rather than in a worker, since boxes that do not exist yet cannot be moved beforehand.

Source: Liu et al. 2021 (Unbiased Teacher), arXiv 2102.09480: burn-in, averaged teacher, weak and
strong views; Xu et al. 2021 (Soft Teacher), arXiv 2106.09018: end to end in one run. Unlike there,
the weak view is not flipped, the student goes on from its own weights at the end of the burn-in, the
teacher's recall weights the background, and no box has to be sure or wrong: between lies the band.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from pydantic import Field

from detmtl.data.augment import Augment
from detmtl.data.loader import Draft
from detmtl.data.source import Source
from detmtl.engine.evaluator import predict
from detmtl.engine.online_choice import Choice, boxes_of
from detmtl.engine.precision import Precision
from detmtl.engine.state import State
from detmtl.silver.overlay import OverlaySettings, overlay_boxes
from detmtl.silver.selection import SelectionSettings
from detmtl.structures.labels import BoxLabels, Labels
from detmtl.structures.sample import Batch, Sample
from detmtl.structures.settings import Settings


class OnlineSettings(Settings):
    """How mode online of the mix labels pictures. From when on is `mix.burn_in`; how slowly the teacher
    follows the student is `train.ema`.

    Attributes:
        pools: names of the sources whose pictures are labelled as they come. Gold labels that they have
            stay: the teacher fills in the classes of boxes that people did not look for; maps, tags and
            depths are people's alone. None: `silver.pools`, or without a silver section the sources of
            kind folder.
        select: which of the teacher's boxes become labels; None: as `silver.select`. What counts over all
            pictures of a pool (`ignore_budget`, `max_empty`) is refused.
        overlay: what becomes of them beside a pool's gold labels; None: as `silver.overlay`.
        audit: the gold pictures by which the teacher is audited, for calibration, for thresholds that
            are given as precision or probability, and for coverage: `val` or a source that is not
            trained on. None: as `silver.audit`, without a silver section `val`.
        audit_every: steps between two audits; None: never. The teacher changes all the time.
        audit_pictures: the most gold pictures of one audit: it takes as long as they take the teacher.
            Where they cannot tell what scores are worth, the last choice that an audit made stays, until
            the first one nothing is labelled; `online/weak_audits` is recorded, see `Choices`.
    """

    pools: list[str] | None = None
    select: SelectionSettings | None = None
    overlay: OverlaySettings | None = None
    audit: str | None = None
    audit_every: int | None = Field(default=200, ge=1)
    audit_pictures: int = Field(default=64, ge=1)


Choices = Callable[[int], Choice | None]
"""Number of a batch -> the choice in force for it, None where nothing is labelled yet; asked on every
rank for every batch, in order."""


def online_batches(
    drafts: Iterator[Draft],
    first: int,
    state: State,
    sources: Sequence[Source],
    augment: Augment,
    choices: Choices,
    overlay: OverlaySettings,
    precision: Precision = "auto",
) -> Iterator[Batch]:
    """Yields drafts as batches, their waiting pictures labelled and augmented.

    A batch is made when it is asked for, by the weights of that moment: what comes out depends on
    state and number alone, and a run that goes on from a checkpoint makes the same.

    Args:
        drafts: of batches number `first`, `first` + 1, ...
        first: the first one's number.
        state: whose averaged model is the teacher; not changed.
        sources: of the mix.
        augment: makes the strong view.
        choices: see there.
        overlay: what becomes of the teacher's boxes beside those that a picture has.
        precision: of the teacher's network.
    """
    for number, draft in enumerate(drafts, first):
        choice = choices(number)
        samples = list(draft.samples)
        weak = [samples[i] for i in draft.waiting]
        found = [None] * len(weak)
        if choice is not None and weak:
            found = [choice(boxes) for boxes in _boxes(state, weak, precision)]
        for sample, boxes, (i, (place, seed)) in zip(
            weak, found, draft.waiting.items(), strict=True
        ):
            labels = _with(sample.labels, boxes, overlay)
            pixels = sample.image.permute(1, 2, 0).contiguous().numpy()
            image, moved = augment(pixels, labels, seed)
            moved = sources[sample.group].derived(place, moved)
            samples[i] = replace(sample, image=image, labels=moved)
        yield Batch.of(samples)


def _boxes(state: State, weak: list[Sample], precision: Precision) -> list[BoxLabels]:
    """Returns what the teacher finds in weak views."""
    views = Batch.of([replace(sample, labels={}) for sample in weak])
    return boxes_of(predict(state.averaged, views, state.device, precision))


def _with(
    known: Mapping[str, Labels], found: BoxLabels | None, overlay: OverlaySettings
) -> dict[str, Labels]:
    """Returns what is known of a picture with the teacher's boxes laid under its own; None: it has none."""
    if found is None:
        return dict(known)
    own = known.get("boxes")
    return {
        **known,
        "boxes": overlay_boxes(own, found, overlay) if isinstance(own, BoxLabels) else found,
    }
