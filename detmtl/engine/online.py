"""Silver that is made while a model learns: its own average labels what comes next.

The teacher is the model whose weights are the moving average of the student's (`State.averaged`). It
looks at weak views, pictures at the network's size and nothing else changed; what is chosen of its
boxes, maps and tags goes with the picture through the augmentation, and the student learns from that
strong view. Choosing is the selection's: thresholds, ignore band, soft targets and weights mean what
they mean for silver that was written beforehand.

What it costs: one forward pass of the pictures that wait, and their augmentation in this process
rather than in a worker, since labels that do not exist yet cannot be moved beforehand.

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
from detmtl.engine.online_kind import Choice, Kind
from detmtl.engine.precision import Precision
from detmtl.engine.state import State
from detmtl.silver.card import Written
from detmtl.silver.map_policy import MapSelection
from detmtl.silver.overlay import OverlaySettings
from detmtl.silver.selection import SelectionSettings
from detmtl.silver.tag_policy import TagSelection
from detmtl.structures.labels import Labels
from detmtl.structures.sample import Batch
from detmtl.structures.settings import Settings


class OnlineSettings(Settings):
    """How mode online of the mix labels pictures. From when on is `mix.burn_in`; how slowly the teacher
    follows the student is `train.ema`.

    Attributes:
        pools: names of the sources whose pictures are labelled as they come. Gold labels that they have
            stay: the teacher fills in the classes of boxes that people did not look for, and maps and
            tags where they gave none. None: `silver.pools`, or without a silver section the sources of
            kind folder.
        labels: what the teacher writes: boxes, maps, tags, or several of them, found by the first task of
            kind detection, semantic and tags. Whatever else a task learns from is people's alone.
            The teacher abstains from classes for which nobody looked in what it learns from until it
            labels, and their absence is no background, until an audit confirms in several pictures that
            it finds some.
        select: which of the teacher's boxes become labels; None: as `silver.select`. What counts over all
            pictures of a pool (`ignore_budget`, `max_empty`) is refused.
        overlay: what becomes of them beside a pool's gold labels; None: as `silver.overlay`.
        select_maps, select_tags: which pixels and which tags do; None: as in `silver`.
        audit: the gold pictures by which the teacher is audited, for calibration, for thresholds that
            are given as precision or probability, for weights and for coverage: `val` or a source that is
            not trained on, with gold of each kind in `labels`. None: as `silver.audit`, without a silver
            section `val`.
        audit_every: steps between two audits; None: never. The teacher changes all the time.
        audit_pictures: the most gold pictures of one audit of a kind of labels: it takes as long as they
            take the teacher, and leaves what was found in the run folder (of a map about .2 MB). Where
            they cannot tell what scores are worth, the last choice that an audit made stays, until the
            first one nothing of that kind is labelled; `online/weak_audits_of_boxes` and so on are
            recorded, see `detmtl.engine.online_audit.Choices`.
    """

    pools: list[str] | None = None
    labels: list[Written] = Field(default=["boxes"], min_length=1)
    select: SelectionSettings | None = None
    overlay: OverlaySettings | None = None
    select_maps: MapSelection | None = None
    select_tags: TagSelection | None = None
    audit: str | None = None
    audit_every: int | None = Field(default=200, ge=1)
    audit_pictures: int = Field(default=64, ge=1)


Choices = Callable[[int], Mapping[str, Choice]]
"""Number of a batch -> the choice in force for it of each kind of labels, but for those of which nothing is
labelled yet; asked on every rank for every batch, in order."""


def online_batches(
    drafts: Iterator[Draft],
    first: int,
    state: State,
    sources: Sequence[Source],
    augment: Augment,
    choices: Choices,
    kinds: Sequence[Kind],
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
        choices: what the teacher's labels of a batch become; see `Choices`.
        kinds: of labels that the teacher writes.
        precision: of the teacher's network.
    """
    for number, draft in enumerate(drafts, first):
        chosen = choices(number)
        samples = list(draft.samples)
        weak = [samples[i] for i in draft.waiting]
        found: dict[str, list[Labels]] = {}
        if chosen and weak:
            views = Batch.of([replace(sample, labels={}) for sample in weak])
            tasks = {kind.task for kind in kinds}
            found = predict(state.averaged, views, state.device, precision, tasks)
        for k, (sample, (i, (place, seed))) in enumerate(
            zip(weak, draft.waiting.items(), strict=True)
        ):
            labels = dict(sample.labels)
            for kind in kinds:
                if kind.written in chosen:
                    made = chosen[kind.written](found[kind.task][k], sample.info)
                    if made is not None:
                        labels[kind.written] = kind.onto(labels.get(kind.written), made)
            pixels = sample.image.permute(1, 2, 0).contiguous().numpy()
            image, moved = augment(pixels, labels, seed)
            moved = sources[sample.group].derived(place, moved)
            samples[i] = replace(sample, image=image, labels=moved)
        yield Batch.of(samples)
