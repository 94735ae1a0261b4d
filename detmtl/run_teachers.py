"""The teachers of a run: which they are, what they write, and which gold pictures they learn from."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from detmtl.config import RunSettings, settings_from
from detmtl.config_parts import GoldTeacher
from detmtl.data.joined import joined
from detmtl.data.maps import MapClasses
from detmtl.data.mixture import SHARED
from detmtl.data.source import Source
from detmtl.data.source_settings import SourceSettings
from detmtl.data.sources import AnySource
from detmtl.data.subset import Subset
from detmtl.data.tags import TagClasses, Tags
from detmtl.run_folder import OpenRun
from detmtl.silver.card import TeacherCard, Written
from detmtl.silver.held_out import each_once
from detmtl.silver.store import Store
from detmtl.structures.checkpoint import read_checkpoint
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError, first_few
from detmtl.structures.labels import Grade
from detmtl.structures.outside import is_elsewhere
from detmtl.teachers.from_checkpoint import CheckpointTeacherSettings
from detmtl.teachers.teacher import Teacher, the_one


def written_offline(run: OpenRun) -> tuple[Written, Teacher | None]:
    """Returns what the run's teachers write before the training, asked of each beforehand: what is wrong
    with the last one is told before the first has labelled anything. And the teacher, where it is the only
    one: of several each is loaded again when it labels, so that one at a time is in memory.

    Raises:
        InputError: two teachers have one name or write different things, or one cannot be had.
    """
    assert run.settings.silver is not None
    if isinstance(run.settings.silver.teacher, GoldTeacher):  # it has yet to learn
        return written_by_gold(run.settings), None
    loaded, cards = None, []
    for loaded in load_teachers(run):
        cards.append(loaded.card)
    written = _one_task(cards)
    for sentence in unsearched(run.settings, cards):
        run.console.print(sentence, markup=False, soft_wrap=True)
    return written, loaded if len(cards) == 1 else None


def unsearched(settings: RunSettings, cards: Sequence[TeacherCard]) -> list[str]:
    """Returns a sentence if there are classes that none of a run's teachers looks for, as those that were
    renamed since one has learned them: under `unmapped: drop` its boxes of them are dropped.

    Args:
        settings: of the run.
        cards: of its teachers, at least one, which write labels of one kind.
    """
    data, kind = settings.data, cards[0].task
    of_kind = {"boxes": data, "maps": data.maps, "tags": data.tags}[kind]
    if of_kind is None:  # which is told when the labels are chosen
        return []
    space, names = of_kind.label_space(), {n: None for card in cards for n in card.searched}
    known = space.known(names)
    # of maps a class may be what all other names are
    rest = {of_kind.unmapped} if kind == "maps" else set()
    lost = [n for n, own in zip(space.names, known, strict=True) if not own and n not in rest]
    if not lost:
        return []
    told = (
        f"silver: of {space.setting}.classes no teacher looks for {first_few(lost)}, and in the pools these "
        "stay as people left them"
    )
    if strange := [n for n in names if not any(space.known([n]))]:
        told += (
            f"; the names {first_few(strange)} of theirs belong to no class: if one of them is such a class, "
            f"list it there, as {{{lost[0]}: [{lost[0]}, {strange[0]}]}}"
        )
    return [told]


def written_by_gold(settings: RunSettings) -> Written:
    """Returns what a teacher that the run trains itself writes."""
    assert settings.silver is not None and isinstance(settings.silver.teacher, GoldTeacher)
    kinds = settings.silver_tasks()
    return kinds[settings.silver.teacher.task or the_one(kinds) or ""]


def load_teachers(run: OpenRun) -> Iterator[Teacher]:
    """Yields the teachers of a run, one after the other.

    Raises:
        InputError: two have the same name, which is that of their store too.
    """
    silver = run.settings.silver
    assert silver is not None
    one = silver.teacher
    if isinstance(one, GoldTeacher):
        path = str(run.folder.teacher.best.absolute())
        task = one.task or the_one(run.settings.silver_tasks())
        one = CheckpointTeacherSettings(path=path, name="teacher", task=task, trust=True)
    names: list[str] = []
    for teacher in silver.teachers if one is None else [one]:
        loaded = teacher.load(Path.cwd(), str(run.process.device))
        if loaded.card.name in names:
            raise InputError(
                f"silver.teachers: '{loaded.card.name}' names two of them; give one another `name`"
            )
        names.append(loaded.card.name)
        yield loaded


def of_one_task(stores: Sequence[Store]) -> Written:
    """Returns what the teachers of stores write: boxes, maps or tags.

    Raises:
        InputError: they write different things.
    """
    return _one_task([store.card for store in stores])


def _one_task(cards: Sequence[TeacherCard]) -> Written:
    tasks: set[Written] = {card.task for card in cards}
    if len(tasks) > 1:
        told = ", ".join(f"{card.name} {card.task}" for card in cards)
        raise InputError(
            f"silver.teachers: they write different labels ({told}); teachers of one run write the same kind"
        )
    return tasks.pop()


def gold_sources(settings: RunSettings) -> list[str]:
    """Returns the names of the sources that a teacher of the run is trained on."""
    assert settings.silver is not None
    # A teacher is not measured on what it was trained on.
    gold = [n for n in settings.gold_sources() if n != settings.silver.audit]
    if not gold:
        raise InputError(
            "silver.teacher: kind gold has no gold source to learn from; data.sources has "
            f"{', '.join(settings.data.sources)}, of which the audit keeps '{settings.silver.audit}'"
        )
    return gold


def gold_by_models(settings: RunSettings, sources: Mapping[str, Source]) -> list[str]:
    """Returns a sentence for each of `gold_sources` that the run's teacher learns from, or is audited on a
    part of, though its file says that a model wrote its labels, or some of them.

    Which the gold sources are, settings alone decide, so that whoever trains the teacher takes the same;
    what a file says of itself, as those that `select` writes do, is known once it is read.

    Args:
        settings: of the run.
        sources: as they were read.
    """
    silver = settings.silver
    if silver is None:
        return []
    uses = ["trains the teacher"] if isinstance(silver.teacher, GoldTeacher) else []
    uses += [] if isinstance(silver.audit, str) else ["audits it" if uses else "audits the teacher"]
    return [
        f"data.sources.{name}: its file says that a model wrote its labels, and as a gold source it "
        f"{' and '.join(uses)}; set data.sources.{name}.grade: silver, or give people's labels alone, in a "
        "file of their own or, of one that `import --reviewed` wrote, by "
        f"data.sources.{name}.keep: the classes that people reviewed"
        for name in (gold_sources(settings) if uses else [])
        if _by_a_model(sources[name])
    ]


def without_audit(settings: RunSettings, sources: Mapping[str, Source]) -> list[str]:
    """Returns a sentence if nobody said anything, of what the run's own teacher writes, of the pictures on
    which it is audited: it would be told after the teacher has learned and labelled.

    Args:
        settings: of the run.
        sources: as they were read, "val" among them.
    """
    if settings.silver is None or settings.own_teacher() is None:
        return []
    audit, written = settings.silver.audit, written_by_gold(settings)
    names = [audit] if isinstance(audit, str) else gold_sources(settings)
    labels = "annotations" if written == "boxes" else written
    if any(getattr(sources[name], labels) is not None for name in names):
        return []
    return [
        f"silver.audit: {', '.join(names)} has no {written}, by which the teacher is audited; give it some, "
        "or name a source that has"
    ]


def _by_a_model(source: Source) -> bool:
    """Returns whether a model wrote the boxes of a source, some of them, or all else that is known of it."""
    if source.grade is Grade.SILVER:
        return True
    if source.annotations is not None or source.depth is not None:
        return False
    maps, tags = source.maps, source.tags
    told = [] if maps is None else [(maps.present(), maps.by_people())]
    told += [(tags.present, tags.by_people())] if isinstance(tags, Tags) else []
    return any(p.any() for p, _ in told) and not any(own.any() for _, own in told)


def audited_on_its_own(
    settings: RunSettings, sources: Mapping[str, Source], val: Source, cache: Path
) -> list[str]:
    """Returns a sentence for each checkpoint among a run's teachers that learned from pictures on which it is
    audited, as its own settings tell: they are looked for in the folders that the audit's pictures are in.

    Args:
        settings: of the run.
        sources, val: as they were read.
        cache: folder for parsed arrays and content hashes.
    """
    silver, data = settings.silver, settings.data
    if silver is None or not {*silver.pools} & {*settings.mix_sources()}:
        return []
    teachers = silver.teachers if silver.teacher is None else [silver.teacher]
    ours = [t for t in teachers if isinstance(t, CheckpointTeacherSettings)]
    if not ours:
        return []
    gold, told = audit_source(settings, sources, val), []
    folders = {(data.root / source.images).resolve() for source in _audited(settings).values()}
    for teacher in ours:
        path = teacher.path
        seen: set[str] = set()
        for root, source in _learned_from(Path(path), teacher.trust):
            if (root / source.images).resolve() in folders:
                try:
                    own = source.load("learned", root, data.label_space(), cache)
                except InputError:  # its files have changed: nobody can tell any more
                    continue
                seen |= {*own.hashes()}
        both = [i for i, content_hash in enumerate(gold.hashes()) if content_hash in seen]
        if both:
            told.append(
                f"silver.teacher: {path} learned from {len(both)} of the {len(gold)} pictures on which it is "
                f"audited, such as {gold.path(both[0])}; it is better there than elsewhere, and what follows "
                "from the audit (thresholds, calibration, weights, coverage) promises too much: audit on "
                "pictures that it has not seen"
            )
    return told


def _learned_from(checkpoint: Path, trust: bool) -> Iterator[tuple[Path, SourceSettings]]:
    """Yields the sources that a checkpoint's training drew from, each with the folder that its paths start
    from; none where the file does not tell, and without `trust` none that code outside of detmtl reads."""
    try:
        tree: Any = read_checkpoint(checkpoint).get("settings")
        data, mix = tree["data"], tree["mix"]
        pools = (tree["silver"] or {}).get("pools", ())
        for name, own in data["sources"].items():
            if is_elsewhere(own["kind"]) and not trust:
                continue
            source: SourceSettings = TypeAdapter(AnySource).validate_python(own)
            by_people = source.has_labels() and source.grade == "gold"
            shares = mix["shares"] if mix["mode"] in SHARED else None
            drawn = {"gold": by_people, "silver": not by_people or name in pools}
            if drawn.get(mix["mode"], not shares or name in shares):
                yield Path(data["root"]), source
    except (InputError, KeyError, TypeError, AttributeError, ValidationError):
        return  # what is wrong with the file is told when it is loaded


def teacher_settings(settings: RunSettings) -> RunSettings:
    """Returns the settings by which a run trains its own teacher: gold alone, without the pictures by
    which it is audited."""
    assert settings.silver is not None and isinstance(settings.silver.teacher, GoldTeacher)
    tree = settings.resolved()
    tree["mix"] = settings.silver.teacher.mix
    tree["train"] |= settings.silver.teacher.train
    tree["silver"] = None
    gold = gold_sources(settings)
    tree["data"]["sources"] = {n: tree["data"]["sources"][n] for n in gold}
    rest = _rest(settings.silver.audit)
    if rest is not None:  # the same parts as `learned_sources`, in words
        for own in tree["data"]["sources"].values():
            own["subset"] = {**rest.model_dump(mode="json", exclude_none=True), "of": own["subset"]}
    return settings_from(tree, where="silver.teacher.train")


def audit_source(settings: RunSettings, sources: Mapping[str, Source], val: Source) -> Source:
    """Returns the gold pictures on which the run's teacher is audited, each once."""
    assert settings.silver is not None
    audit = settings.silver.audit
    if isinstance(audit, str):
        gold = val if audit == "val" else sources[audit]
    else:
        parts = [part_of(sources[n], audit) for n in gold_sources(settings)]
        gold = joined("held-out gold", parts) if len(parts) > 1 else parts[0]
    # A pool of mode online has grade SILVER from the start; that its labels are people's was checked before.
    return each_once(replace(gold, grade=Grade.GOLD))


def audit_gold(
    settings: RunSettings,
    cache: Path,
    space: LabelSpace,
    maps: MapClasses | None,
    tags: TagClasses | None,
) -> Source:
    """Returns what `audit_source` does, read from its files, and nothing else of the run.

    Args:
        settings: of the run.
        cache: folder for parsed arrays and content hashes.
        space, maps, tags: the classes that are wanted.
    """
    data = settings.data
    read = {
        name: source.load(name, data.root, space, cache, maps, tags)
        for name, source in _audited(settings).items()
    }
    first, *_ = read.values()  # val, where it is val that counts
    return audit_source(settings, read, first)


def _audited(settings: RunSettings) -> dict[str, SourceSettings]:
    """Returns the sources that the pictures are of on which the run's teacher is audited, by name."""
    assert settings.silver is not None
    audit, data = settings.silver.audit, settings.data
    names = [audit] if isinstance(audit, str) else gold_sources(settings)
    return {name: data.val if name == "val" else data.sources[name] for name in names}


def learned_sources(settings: RunSettings, sources: Mapping[str, Source]) -> list[Source]:
    """Returns what a teacher of the run is trained on: gold without what its audit keeps."""
    assert settings.silver is not None
    rest = _rest(settings.silver.audit)
    learned = [sources[n] for n in gold_sources(settings)]
    return learned if rest is None else [part_of(source, rest) for source in learned]


def _rest(audit: str | Subset) -> Subset | None:
    """Returns the part of the gold sources that an audit leaves; None where it takes none of it."""
    return None if isinstance(audit, str) else Subset(without=audit)


def part_of(source: Source, part: Subset) -> Source:
    """Returns a part of a source."""
    return source.subset(part.pick(source.hashes(), f"silver.audit, source '{source.name}'"))
