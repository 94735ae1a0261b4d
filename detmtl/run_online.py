"""Mode online of a run: what its teacher writes, by whom it is audited, and the batches that come of it."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from detmtl.config import RunSettings
from detmtl.data.augment import Augment
from detmtl.data.loader import drafts
from detmtl.data.mixture import Mixture
from detmtl.data.source import Source
from detmtl.engine.online import online_batches
from detmtl.engine.online_audit import Audits, Choices, Gold, audit_pictures
from detmtl.engine.online_boxes import OnlineBoxes
from detmtl.engine.online_kind import Kind
from detmtl.engine.online_maps import OnlineMaps
from detmtl.engine.online_tags import OnlineTags
from detmtl.engine.state import State
from detmtl.run_folder import RunFolder
from detmtl.structures.sample import Batch


def online_kinds(settings: RunSettings) -> list[Kind]:
    """Returns the kinds of labels that the teacher of mode online writes; [] in other modes."""
    online = settings.when_online()
    if online is None:
        return []
    tasks, names = online.finders, settings.data.names()
    makers: dict[str, Callable[[str], Kind]] = {
        "boxes": lambda task: OnlineBoxes(
            task,
            settings.data.label_space(),
            online.floor,
            online.select,
            online.overlay,
        ),
        "maps": lambda task: OnlineMaps(task, names["maps"], online.select_maps),
        "tags": lambda task: OnlineTags(task, names["tags"], online.select_tags),
    }
    return [make(tasks[kind]) for kind, make in makers.items() if kind in settings.online.labels]


def online_gold(settings: RunSettings, sources: Mapping[str, Source], val: Source) -> Gold | None:
    """Returns the pictures by which the teacher of mode online is audited; None: it is not.

    Raises:
        InputError: as `audit_pictures`.
    """
    online = settings.when_online()
    if online is None or online.audit is None:
        return None
    gold = val if online.audit == "val" else sources[online.audit]
    return audit_pictures(gold, settings.online.audit_pictures, online_kinds(settings))


def online_stream(
    settings: RunSettings,
    mixture: Mixture,
    augment: Augment,
    state: State,
    gold: Gold | None,
    folder: RunFolder,
    common: Mapping[str, Any],
) -> tuple[Iterator[Batch], Callable[[], Mapping[str, float]]]:
    """Returns what this process still has to train on, labelled as it comes, and what returns values to be
    recorded beside the losses.

    Args:
        settings: of the run, in mode online.
        mixture: of its sources.
        augment: makes the strong views.
        state: whose averaged model is the teacher.
        gold: see `online_gold`.
        folder: gets the audits.
        common: arguments of `drafts` that all modes have.
    """
    kinds, start = online_kinds(settings), mixture.first_step_of_last_phase()
    online = settings.when_online()
    pools = online.pools if online else []
    precision, audits = settings.train.precision, None
    if gold is not None and settings.online.audit_every is not None:
        audits = Audits(
            state,
            gold,
            kinds,
            folder.path / "online",
            start,
            settings.online.audit_every * settings.train.accumulate,
            settings.input,
            precision,
        )
    choices = Choices(kinds, start, audits)
    waiting = drafts(mixture, augment, pools, **common)
    labelled = online_batches(
        waiting, common["start_step"], state, mixture.sources, augment, choices, kinds, precision
    )
    return labelled, choices.told
