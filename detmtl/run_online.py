"""Mode online of a run: what its teacher writes, by whom it is audited, and the batches that come of it."""

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import numpy as np

from detmtl.config import RunSettings
from detmtl.data.augment import Augment
from detmtl.data.joined import searched_classes
from detmtl.data.loader import drafts
from detmtl.data.mixture import Mixture
from detmtl.data.source import Source
from detmtl.engine import distributed
from detmtl.engine.online import online_batches
from detmtl.engine.online_audit import Audits, Choices, Gold, audit_pictures
from detmtl.engine.online_boxes import OnlineBoxes
from detmtl.engine.online_kind import Kind
from detmtl.engine.online_maps import OnlineMaps
from detmtl.engine.online_tags import OnlineTags
from detmtl.engine.state import State
from detmtl.run_folder import OpenRun, RunFolder
from detmtl.structures.checkpoint import read_checkpoint
from detmtl.structures.sample import Batch


def online_kinds(
    settings: RunSettings, known: Mapping[str, Collection[str]] | None = None
) -> list[Kind]:
    """Returns the kinds of labels that the teacher of mode online writes; [] in other modes.

    Args:
        known: see `known_classes`; a kind that it does not have: all. None: all of all kinds.
    """
    online = settings.when_online()
    if online is None:
        return []
    tasks, names, known = online.finders, settings.data.names(), known or {}
    makers: dict[str, Callable[[str], Kind]] = {
        "boxes": lambda task: OnlineBoxes(
            task,
            settings.data.label_space(),
            online.floor,
            online.select,
            online.overlay,
            known.get("boxes"),
        ),
        "maps": lambda task: OnlineMaps(task, names["maps"], online.select_maps, known.get("maps")),
        "tags": lambda task: OnlineTags(task, names["tags"], online.select_tags, known.get("tags")),
    }
    return [make(tasks[kind]) for kind, make in makers.items() if kind in settings.online.labels]


def known_classes(
    settings: RunSettings,
    mixture: Mixture,
    folder: RunFolder,
    brought: Mapping[str, Collection[str]],
) -> dict[str, set[str]]:
    """Returns "boxes", "maps" and "tags" -> the classes of which the teacher of mode online knows something
    when it begins to label: somebody looked for them in what it learned from until then, or in what its start
    did. Without an entry where that is not known.

    Args:
        settings: of the run, in mode online.
        mixture: of its sources.
        folder: of the run, where its teacher of kind gold lies.
        brought: see `MultiTask`.
    """
    online, teacher = settings.when_online(), settings.own_teacher()
    if online is None:
        return {}
    found = searched_classes(mixture.people, settings.data.names())
    known = {
        kind: settings.model.known(online.finders.get(kind, ""), names, brought)
        for kind, names in found.items()
    }
    if teacher is not None and teacher.burn_in:
        told = read_checkpoint(folder.teacher.best).get("searched", {})
        by_kind = {kind: told.get(online.finders.get(kind, "")) for kind in known}
        known = {k: names | set(by_kind[k]) for k, names in known.items() if by_kind[k] is not None}
    return known


def _tell_unknown(kinds: list[Kind], audited: bool) -> None:
    for kind in kinds:
        names = ", ".join(np.array(kind.classes)[~kind.known])
        if names and distributed.rank() == 0:
            until = "until an audit confirms that it finds some" if audited else "for good"
            more = (
                "" if audited else "; set online.audit_every, with gold of these, to have it tried"
            )
            warnings.warn(
                f"online: nobody looked for {names} in what the teacher learns from before it labels, and "
                f"it abstains from their {kind.written} {until}{more}",
                stacklevel=3,
            )


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
    run: OpenRun,
    mixture: Mixture,
    augment: Augment,
    state: State,
    gold: Gold | None,
    common: Mapping[str, Any],
) -> tuple[Iterator[Batch], Callable[[], Mapping[str, float]]]:
    """Returns what this process still has to train on, labelled as it comes, and what returns values to be
    recorded beside the losses.

    Args:
        run: in mode online; its folder gets the audits.
        mixture: of its sources.
        augment: makes the strong views.
        state: whose averaged model is the teacher.
        gold: see `online_gold`.
        common: arguments of `drafts` that all modes have.
    """
    settings = run.settings
    kinds = online_kinds(settings, known_classes(settings, mixture, run.folder, state.brought))
    start = mixture.first_step_of_last_phase()
    _tell_unknown(kinds, gold is not None and settings.online.audit_every is not None)
    online = settings.when_online()
    pools = online.pools if online else []
    precision, audits = settings.train.precision, None
    if gold is not None and settings.online.audit_every is not None:
        audits = Audits(
            state,
            gold,
            kinds,
            run.folder.path / "online",
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
