"""The pictures of a run: rendered where they are built in, loaded, and checked against each other."""

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console

from detmtl.config import RunSettings
from detmtl.config_parts import GoldTeacher
from detmtl.data import mixture
from detmtl.data.details import nowhere_known
from detmtl.data.faults import same_pictures
from detmtl.data.scenes import render_scenes
from detmtl.data.source import Source
from detmtl.data.tags import Tags
from detmtl.engine import distributed
from detmtl.engine.distributed import Process
from detmtl.pools import tags_of
from detmtl.report.progress import bar
from detmtl.run_teachers import (
    audit_source,
    audited_on_its_own,
    gold_by_models,
    gold_sources,
    learned_sources,
    without_audit,
    written_by_gold,
)
from detmtl.silver.card import Written
from detmtl.silver.held_out import (
    given_dense,
    given_gold,
    refuse_overlap,
    refuse_seen,
    told_beside_boxes,
    unlabelled,
    unlabelled_apart,
    without_doubles,
)
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade
from detmtl.teachers.teacher import WRITTEN


def render(settings: RunSettings, process: Process, console: Console) -> None:
    """Draws the built-in pictures where the settings ask for them and they are not there yet."""
    if settings.data.scenes is not None and process.rank == 0:
        with bar(console) as progress:
            task = progress.add_task("Rendering scenes", total=None)
            render_scenes(
                settings.data.root,
                settings.data.scenes,
                lambda done, total: progress.update(task, completed=done, total=total),
            )
    distributed.barrier()


def load_sources(
    settings: RunSettings, cache: Path, process: Process
) -> tuple[dict[str, Source], Source, Source | None]:
    """Returns the training sources by name, the validation and the test source.

    Raises:
        InputError: faults in the data, or a picture to measure on is among those to train on.
    """
    data, space = settings.data, settings.data.label_space()
    problems: list[str] = []
    loaded: dict[str, Source] = {}
    chosen = {n: data.sources[n] for n in sources_read(settings)}
    for name, source in [*chosen.items(), ("val", data.val), ("test", data.test)]:
        if source is None:
            continue
        try:
            loaded[name] = source.load(
                name, data.root, space, cache, data.maps, data.tags, data.details
            )
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    loaded |= pools_apart(loaded)
    if process.rank == 0:
        problems = faults_between(settings, loaded)
    if problems := distributed.from_first(problems):
        raise InputError(problems)
    if process.rank == 0:
        for sentence in audited_on_its_own(settings, loaded, loaded["val"], cache):
            warnings.warn(sentence, stacklevel=2)
    return {n: loaded[n] for n in chosen}, loaded["val"], loaded.get("test")


def pools_apart(loaded: Mapping[str, Source]) -> dict[str, Source]:
    """Returns the training sources, of which those that nobody labelled lose what measures the result and
    what they have twice: whose pool is all of his pictures need not sort out the labelled ones. Called by
    all processes of a run together.

    Args:
        loaded: all that a run reads, "val" and perhaps "test" among them.

    Raises:
        InputError: nothing is left of one, or a picture cannot be read.
    """
    held_out = [loaded[name] for name in ("val", "test") if name in loaded]
    training = {name: s for name, s in loaded.items() if name not in ("val", "test")}
    # Rank 0 alone reads what has no hash yet, every byte of a pool the first time, and warns.
    kept = distributed.on_first(
        lambda: {name: unlabelled_apart(source, held_out) for name, source in training.items()}
    )
    return {
        name: source if (at := kept[name]) is None else source.subset(at)
        for name, source in training.items()
    }


def sources_read(settings: RunSettings) -> list[str]:
    """Returns the names of `data.sources` that a run reads: those it trains on, and those that its teacher
    or an audit needs.

    Raises:
        InputError: the teacher has no gold source to learn from.
    """
    wanted = set(settings.mix_sources())
    online = settings.when_online()
    if online is not None and online.audit is not None:
        wanted.add(online.audit)
    if settings.silver:
        audit = settings.silver.audit
        if isinstance(audit, str):
            wanted.add(audit)
        # a part is one of all gold sources, whatever the mix is
        if not isinstance(audit, str) or isinstance(settings.silver.teacher, GoldTeacher):
            wanted |= set(gold_sources(settings))
    return [n for n in settings.data.sources if n in wanted]


def drawn_sources(settings: RunSettings, sources: Mapping[str, Source]) -> dict[str, Source]:
    """Returns the sources whose pictures are augmented, by name: those that the mix trains on, and what else
    the run's own teacher learns from.

    Args:
        settings: of the run.
        sources: all that it reads, see `sources_read`.
    """
    drawn = {n: sources[n] for n in settings.mix_sources()}
    if settings.own_teacher() is None:
        return drawn
    learned = zip(gold_sources(settings), learned_sources(settings, sources), strict=True)
    return {**drawn, **{n: source for n, source in learned if n not in drawn}}


def faults_between(settings: RunSettings, loaded: Mapping[str, Source]) -> list[str]:
    """Returns a sentence for everything for which a run refuses sources that are sound each by itself: a
    picture to measure on is among those to train on, or stands twice in a labelled source, labels to measure
    on were written by a model, or those that the run's own teacher is audited by, or that the checkpoint is
    chosen by, are not there, none of the sources says anything of some details, or an augmentation cannot
    work on a picture.

    Args:
        settings: of the run.
        loaded: all that it reads, see `sources_read`, and "val" and perhaps "test".
    """
    data, problems = settings.data, []
    chosen = sources_read(settings)
    if data.details is not None:
        known = [loaded[n].annotations for n in chosen]
        details = [None if a is None else a.details for a in known]
        problems += nowhere_known(data.details, details, "none of data.sources")
    held_out = [loaded[name] for name in ("val", "test") if name in loaded]
    problems += _not_by_people(settings, loaded, held_out)
    problems += _chosen_by_nothing(settings, loaded["val"])

    def audited_apart() -> None:
        if settings.silver and isinstance(settings.silver.teacher, GoldTeacher):
            learned = learned_sources(settings, loaded)
            refuse_seen(learned, audit_source(settings, loaded, loaded["val"]))

    def audited_apart_online() -> None:
        online = settings.when_online()
        if online is not None and online.audit not in (None, "val"):  # val is compared anyway
            drawn = [loaded[n] for n in settings.mix_sources()]
            refuse_overlap(drawn, [loaded[online.audit]])

    def each_once() -> None:
        read = [*(loaded[name] for name in chosen), *held_out]
        if twice := [sentence for source in read for sentence in same_pictures(source)]:
            raise InputError(twice)

    def augmented() -> None:
        augment = settings.augment.build(settings.input)
        mapped = _to_be_mapped(settings)
        if misfits := [
            sentence
            for name, source in drawn_sources(settings, loaded).items()
            for sentence in augment.misfits(source, name in mapped)
        ]:
            raise InputError(misfits)

    for refuse in (
        each_once,
        augmented,
        lambda: refuse_overlap([loaded[name] for name in chosen], held_out),
        lambda: refuse_overlap(held_out[:1], held_out[1:]),
        audited_apart,
        audited_apart_online,
    ):
        try:
            refuse()
        except InputError as error:
            problems += error.problems
    return [*dict.fromkeys(problems)]


def _not_by_people(
    settings: RunSettings, loaded: Mapping[str, Source], held_out: Sequence[Source]
) -> list[str]:
    """Returns a sentence for each source that is to measure something without labels by people."""
    problems: list[str] = []
    audited = settings.silver.audit if settings.silver else None
    if isinstance(audited, str) and audited != "val":
        problems += [
            f"silver.audit: {what} of source '{audited}' were written by a model; a teacher is judged by "
            "people's"
            for what in _by_models(loaded[audited])
        ]
    problems += gold_by_models(settings, loaded) + without_audit(settings, loaded)
    return problems + [
        f"data.{source.name}: its {what} were written by a model; measure on people's"
        for source in held_out
        for what in _by_models(source)
    ]


def _chosen_by_nothing(settings: RunSettings, val: Source) -> list[str]:
    """Returns a sentence where the checkpoint would be chosen by a task for which val has no label."""
    best, learned = settings.train.best or "", settings.learned()
    return [
        f"train.best: chooses the checkpoint by {best}, but no picture of data.val has {learned[task]}; give "
        "it some, choose by another task, or set null"
        for task in unlabelled([val], learned)
        if task == best.split("/")[0]
    ]


def _by_models(source: Source) -> list[str]:
    """Returns which labels of a source a model wrote, all or some of them."""
    found = [] if source.grade is Grade.GOLD else ["labels"]
    maps, tags = source.maps, source.tags
    if maps is not None and (maps.present() & ~maps.by_people()).any():
        found.append("maps")
    if isinstance(tags, Tags) and (tags.present & ~tags.by_people()).any():
        found.append("tags")
    return found


def idle_weights(settings: RunSettings, sources: Sequence[Source], labelled: bool) -> list[str]:
    """Returns a sentence for each weight of a source that changes nothing for a task; see
    `detmtl.data.mixture.idle_weights`.

    Args:
        sources: what the mix draws from.
        labelled: whether pools have the labels that a teacher writes before the training.
    """
    learned = {
        name: getattr(task, "labels", "boxes")
        for name, task in settings.tasks.items()
        if getattr(task, "learns", None) is None  # who tells details of boxes is not asked
    }
    to_come = _to_come(settings, labelled)
    if settings.data.tags is not None and settings.data.tags.from_boxes:
        to_come = {
            n: [*kinds, "tags"] if "boxes" in kinds else kinds for n, kinds in to_come.items()
        }
    mix = settings.mix_for([source.name for source in sources])
    return mixture.idle_weights(sources, mix, learned, to_come)


def labelled_already(settings: RunSettings, sources: Mapping[str, Source]) -> list[Source]:
    """Returns what a run trains on, in its pools with the boxes of people alone: a model's give way to those
    that are written yet."""
    pools = _to_come(settings, labelled=False)
    return [
        sources[n].boxes_by_people() if "boxes" in pools.get(n, ()) else sources[n]
        for n in settings.mix_sources()
    ]


def _to_come(settings: RunSettings, labelled: bool) -> dict[str, list[Written]]:
    """Returns pool -> what a teacher has yet to write of it; where pools are not `labelled`, all that one can
    write whose task is not known yet."""
    online = settings.when_online()
    to_come = {n: list(settings.online.labels) for n in online.pools} if online else {}
    if not labelled:
        known = settings.own_teacher() is not None
        offline: list[Written] = [written_by_gold(settings)] if known else list(WRITTEN)
        to_come |= dict.fromkeys(settings.offline_pools(), offline)
    return to_come


def _to_be_mapped(settings: RunSettings) -> set[str]:
    """Returns the pools of which no picture is drawn before a teacher has written its map, as far as settings
    tell: audits of mode online may leave pictures without one."""
    online = settings.when_online()
    if settings.data.maps is None:
        return set()
    audited = online.pools if online is not None and online.audit is not None else ()
    to_come = _to_come(settings, labelled=False)
    return {n for n, kinds in to_come.items() if "maps" in kinds and n not in audited}


def to_be_labelled(
    settings: RunSettings, sources: Mapping[str, Source], offline: Written = "boxes"
) -> dict[str, Source]:
    """Returns what a run trains on as it is before a model has labelled its pools: those of mode online
    with what people said of them, in other sources too, and none with pictures that people have labelled
    whole.

    Args:
        sources: as they were read.
        offline: what the teachers write before the training, see `detmtl.run_teachers.written_offline`.

    Raises:
        InputError: people have left nothing for mode online to label.
    """
    wanted = settings.mix_sources()
    online = settings.when_online()
    pools = [n for n in online.pools if n in wanted] if online else []
    where = "online.pools" if settings.online.pools is not None else "silver.pools"
    written = settings.online.labels
    problems = [
        f"{where}: people have given all {' and '.join(written)} of '{n}', and nothing is left for mode "
        "online to label; take it out, or leave these labels unread: boxes by kind folder (`listed` takes "
        "the pictures that a COCO file names), maps and tags by leaving them out of the source"
        for n in pools
        if all(_whole(sources[n], kind) for kind in written)
    ]
    if problems:
        raise InputError(problems)
    found = {n: _pool(settings, sources[n]) if n in pools else sources[n] for n in wanted}
    drawn = pools if "boxes" in written else []
    beforehand = settings.offline_pools()
    boxed = drawn + (beforehand if offline == "boxes" else [])
    kept = {s.name: s for s in without_doubles(list(found.values()), boxed)}
    for n in beforehand if offline != "boxes" else []:
        kept[n] = _with_dense(kept[n], [o for o in kept.values() if o.name != n], (offline,))
    for n in pools:
        others = [other for other in kept.values() if other.name != n]
        if n in drawn:
            kept[n] = given_gold(kept[n], others)[0]
        if set(written) != {"boxes"}:
            kept[n] = _with_dense(kept[n], others, written)
    return kept


def _with_dense(pool: Source, others: Sequence[Source], written: Collection[Written]) -> Source:
    """Returns a pool with the maps and tags that people gave its pictures in other sources. Where nothing is
    left to label then, no boxes are written, and the pool itself tells nothing, pictures are left out."""
    given = given_dense(pool, others, written)
    if "boxes" in written:
        return given
    before, after = (
        np.all([_by_people(s, kind) for kind in written], axis=0) for s in (pool, given)
    )
    doubles = after & ~before & ~_tells(pool)
    if not doubles.any():
        return given
    first = int(np.flatnonzero(doubles)[0])
    warnings.warn(
        f"source '{pool.name}': {doubles.sum()} of {len(pool)} pictures are left out, because people gave "
        f"their {' and '.join(written)} in other sources; the first is {pool.path(first)}",
        stacklevel=2,
    )
    return given.subset(np.flatnonzero(~doubles))


def _tells(pool: Source) -> np.ndarray:
    """Returns (I,) bool: of which pictures a pool has labels, of whatever kind."""
    told = np.zeros(len(pool), dtype=bool)
    if pool.annotations is not None:
        told |= np.diff(pool.annotations.offsets) > 0
        told |= np.broadcast_to(pool.coverage.max(axis=1) > 0, len(pool))
    return np.any([told, *told_beside_boxes(pool).values()], axis=0)


def _by_people(source: Source, kind: Written) -> np.ndarray:
    """Returns (I,) bool: which pictures have all labels of a kind by people."""
    if kind == "maps" and source.maps is not None:
        return source.maps.by_people()
    if kind == "tags" and isinstance(source.tags, Tags):
        return source.tags.by_people()
    if kind == "boxes" and source.annotations is not None and source.grade is Grade.GOLD:
        return np.broadcast_to(source.coverage.min(axis=1) >= 1, len(source))
    return np.zeros(len(source), dtype=bool)


def _whole(source: Source, kind: Written) -> bool:
    """Returns whether people have given all labels of a kind that there are to give."""
    return bool(_by_people(source, kind).all())


def _pool(settings: RunSettings, source: Source) -> Source:
    """Returns a pool of mode online with the labels of people; those of a model, of the kinds that are
    written, give way to the new ones."""
    written = settings.online.labels
    if "boxes" in written:
        source = source.boxes_by_people()
    if "maps" in written and not _by_people(source, "maps").any():
        source = replace(source, maps=None)
    if "tags" in written and isinstance(source.tags, Tags):
        own = _by_people(source, "tags")
        source = replace(source, tags=replace(source.tags, present=own) if own.any() else None)
    tags = tags_of(source, settings.data.tags) if "boxes" in written else source.tags
    return replace(source, grade=Grade.SILVER, tags=tags)
