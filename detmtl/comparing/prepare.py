"""From settings to a plan: data is read and checked, arms are checked for fairness, runs get their keys."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from detmtl.comparing.keys import (
    canonical,
    digest,
    makes_silver,
    run_key,
    store_name,
    teacher_key,
    teachers_of,
)
from detmtl.comparing.ledger import refuse_unnoted
from detmtl.comparing.plan import Plan, Planner, Run, cells_of, effort, is_teacher, places
from detmtl.comparing.scores import final_source
from detmtl.comparing.start import start_digest
from detmtl.config import RunSettings
from detmtl.config_parts import GoldTeacher
from detmtl.data.source import Source
from detmtl.data.subset import Subset
from detmtl.engine.distributed import Process
from detmtl.inputs import input_hashes, named_files, own_code
from detmtl.run_sources import load_sources, render, sources_read, to_be_labelled
from detmtl.run_teachers import gold_sources, teacher_settings, written_by_gold
from detmtl.structures.errors import InputError


@dataclass(frozen=True)
class Prepared:
    """A plan and what its runs are scored on.

    Attributes:
        plan: the runs.
        scored: cell's position -> the pictures, and `test` or `val`.
        cautions: what a reader of the result must know, a sentence each.
    """

    plan: Plan
    scored: dict[int, tuple[Source, str]] = field(default_factory=dict)
    cautions: list[str] = field(default_factory=list)


class Preparation:
    """Makes a plan; see `prepare`."""

    def __init__(self, planner: Planner, out: Path, process: Process, console: Console):
        self.planner, self.settings = planner, planner.settings
        self.out, self.process, self.console = out, process, console
        self.prepared = Prepared(Plan(cells_of(planner.settings)))
        self._scenes: dict[str, str] = {}
        self._hashes: dict[str, str] = {}
        self._of_pictures: dict[str, str] = {}
        self._final: dict[str, Source] = {}
        self._starts: dict[str, str] = {}

    def add(self, cell: int, arm: str, seed: int) -> RunSettings:
        """Adds the run of one place to the plan, and returns its settings."""
        plan = self.prepared.plan
        settings = self.planner.of_arm(plan.cells[cell], arm, seed)
        self._render(settings)
        scored = self._scored(settings)
        if self.prepared.scored.setdefault(cell, scored) != scored:
            raise InputError(
                f"{self.planner.path}: arms.{arm}, seed {seed}: it is scored on other pictures or classes "
                f"than the arms before it; give all arms and seeds one data.{scored[1]} and one data.classes"
            )
        key = self._teacher(settings, arm) if is_teacher(self.settings, arm) else None
        plan.at[cell, arm, seed] = key or self._train(settings)
        return settings

    def _train(self, settings: RunSettings) -> str:
        """Adds a training, and that of its teacher before it, and returns its key."""
        settings = canonical(settings)
        teacher = None
        if makes_silver(settings):
            assert settings.silver is not None
            if isinstance(settings.silver.teacher, GoldTeacher):
                _refuse_moved_parts(settings)
                teacher = self._train(teacher_settings(settings))
            if settings.silver.store is None:
                root, cache = Path(settings.data.root), self.out / "cache"
                told, files = teachers_of(settings), None
                if teacher is None:
                    files = named_files(told, root, cache) | own_code(told, cache)
                store = self.out / "stores" / store_name(settings, teacher, files)
                silver = settings.silver.model_copy(update={"store": store})
                settings = settings.model_copy(update={"silver": silver})
        key = run_key(settings, self._fingerprint(settings))
        if key not in self.prepared.plan.runs:
            run = Run(key, "train", settings, settings.train.steps, teacher)
            self.prepared.plan.runs[key] = run
        return key

    def _teacher(self, settings: RunSettings, arm: str) -> str:
        """Adds the scoring of a teacher, or the training of one that learns from gold."""
        if settings.silver is None:
            raise InputError(
                f"{self.planner.path}: arms.{arm}: there is no teacher; the base config has no silver"
            )
        if isinstance(settings.silver.teacher, GoldTeacher):
            return self._train(teacher_settings(settings))
        settings = settings.model_copy(update={"seed": 0})  # nothing in it is left to chance
        key = teacher_key(settings, self._fingerprint(settings))
        self.prepared.plan.runs[key] = Run(key, "teacher", settings, 0)
        return key

    def check_data(self, settings: RunSettings) -> None:
        """Reads everything that a run reads, before any run starts.

        Raises:
            InputError: faults in the data, a test picture among those that train, or see
                `_refuse_cut_parts`.
        """
        settings = canonical(settings)
        sources, _, _ = load_sources(settings, self.out / "cache", self.process)
        silver = settings.silver if makes_silver(settings) else None
        if silver and isinstance(silver.teacher, GoldTeacher) and _by_share(silver.audit):
            to_be = to_be_labelled(settings, sources, written_by_gold(settings))
            _refuse_cut_parts(settings, sources, to_be)

    def check_fair(self, cell: int, arms: dict[str, RunSettings]) -> None:
        """Refuses arms of one cell and seed that differ in effort or in their start.

        Raises:
            InputError: names the arms.
        """
        where, name = self.planner.path, self.prepared.plan.cells[cell].name
        where = f"{where}: {name}" if name else str(where)
        efforts = {arm: effort(settings) for arm, settings in arms.items()}
        problems = []
        if self.settings.equal_steps and len(set(efforts.values())) > 1:
            told = "; ".join(f"{a} {s} steps of {n} pictures" for a, (s, n) in efforts.items())
            problems.append(
                f"{where}: the arms do not make equal efforts ({told}; a teacher that a student starts "
                "from counts); give them equal train.steps, or set equal_steps: false"
            )
        asked = arms if self.settings.same_start else {}
        starts = {arm: self._start(settings) for arm, settings in asked.items()}
        if len(set(starts.values())) > 1:
            told = "; ".join(f"{a} {s[:8]}" for a, s in starts.items())
            problems.append(
                f"{where}: the arms' networks do not start from the same weights (hashes: {told}); "
                "give them one model, or set same_start: false"
            )
        if problems:
            raise InputError(problems)

    def _start(self, settings: RunSettings) -> str:
        """Returns the hash of the first weights, built only once for equal networks."""
        key = json.dumps(settings.model_dump(mode="json", include={"seed", "model", "tasks"}))
        key += settings.data.label_space().digest()
        if key not in self._starts:
            self._starts[key] = start_digest(settings)
        return self._starts[key]

    def _render(self, settings: RunSettings) -> None:
        if settings.data.scenes is None:
            return
        key = str(settings.data.root)
        wanted = settings.data.scenes.digest()
        if self._scenes.get(key, wanted) != wanted:
            raise InputError(
                f"{self.planner.path}: arms or cells ask for different data.scenes in {key}; give each its "
                "own data.root"
            )
        if key not in self._scenes:
            render(settings, self.process, self.console)
            self._scenes[key] = wanted

    def _scored(self, settings: RunSettings) -> tuple[Source, str]:
        """Returns the pictures that a run's final scores are of; equal for equal settings of theirs."""
        data = settings.data
        name = "val" if data.test is None else "test"
        facts = data.model_dump(
            mode="json", include={"root", "classes", "unmapped", "maps", "tags", "details", name}
        )
        key = digest(facts)
        if key not in self._final:
            refuse_unnoted(self.out)
            self._final[key] = final_source(settings, self.out / "cache")
        return self._final[key], name

    def _fingerprint(self, settings: RunSettings) -> dict[str, str]:
        """Returns hashes of all files that decide a run's result, code from elsewhere among them: other
        files, another run."""
        cache = self.out / "cache"
        found = input_hashes(settings, cache, known=self._hashes)
        return found | own_code(settings.resolved(), cache) | self._pictures(settings)

    def _pictures(self, settings: RunSettings) -> dict[str, str]:
        """Returns a hash of the bytes of all pictures of each source that a run reads: label files only name
        them, and under another data.root other pictures may have these names. What cannot be read has
        none: `check_data` tells it, with all else that is wrong."""
        data, space, found = settings.data, settings.data.label_space(), {}
        read = {n: data.sources[n] for n in sources_read(settings)}
        for name, source in {**read, "val": data.val, "test": data.test}.items():
            if source is None:
                continue
            # a subset chooses by the pictures' hashes: those of all decide which ones it has
            bare = dict.fromkeys(("subset", "maps", "tags", "depth"))
            whole = source.model_copy(update={**bare, "weight": 1.0})
            key = json.dumps([str(data.root), whole.model_dump(mode="json"), space.digest()])
            if key not in self._of_pictures:
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # they come when a run's data are checked
                        loaded = whole.load(
                            name, data.root, space, self.out / "cache", details=data.details
                        )
                    self._of_pictures[key] = digest(loaded.hashes())
                except InputError:
                    continue
            found[f"pictures of {name}"] = self._of_pictures[key]
        return found


def _by_share(audit: str | Subset) -> bool:
    """Whether it hangs on the other pictures which ones an audit keeps."""
    return not isinstance(audit, str) and (audit.count is not None or audit.share is not None)


def _refuse_cut_parts(
    settings: RunSettings, sources: Mapping[str, Source], to_be: Mapping[str, Source]
) -> None:
    """The same where a gold source is a pool, which loses what people have labelled whole elsewhere.

    Args:
        sources: as they are read.
        to_be: as the students train on them.

    Raises:
        InputError: names the source.
    """
    for name in gold_sources(settings):
        lost = len(sources[name]) - len(to_be.get(name, sources[name]))
        if lost:
            raise InputError(
                f"silver.audit: a share or a number of the pictures of '{name}' cannot be kept from a "
                f"teacher that arms share, since this pool loses {lost} that another source has labelled "
                "whole; give a part, as {part: [0.75, 1]}, or take them out of one of the two"
            )


def _refuse_moved_parts(settings: RunSettings) -> None:
    """Refuses to share a teacher whose part of the gold pictures is another share than its audit leaves: the
    teacher takes its own before, the audit after pictures without a map are left out.

    Raises:
        InputError: names the source.
    """
    assert settings.silver is not None
    if not _by_share(settings.silver.audit):
        return
    for name in gold_sources(settings):
        source = settings.data.sources[name]
        for what in ("maps", "tags", "depth"):
            if getattr(getattr(source, what), "missing", None) == "drop":
                raise InputError(
                    f"silver.audit: a share or a number of the pictures of '{name}' cannot be kept from a "
                    f"teacher that arms share, since {what}.missing: drop leaves some out; give a part, as "
                    "{part: [0.75, 1]}, or list the pictures in a file of their own"
                )


def prepare(
    planner: Planner,
    arms: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    process: Process,
    console: Console,
) -> Prepared:
    """Returns the plan of a comparison after checking everything that can be checked before a run.

    Raises:
        InputError: settings or data are wrong, or arms are not comparable.
    """
    made = Preparation(planner, out, process, console)
    cells = made.prepared.plan.cells
    fair: dict[int, dict[str, RunSettings]] = {}
    for cell, arm, seed in places(planner.settings, cells, list(arms), list(seeds)):
        settings = made.add(cell, arm, seed)
        if is_teacher(planner.settings, arm):
            continue
        if seed == seeds[0]:
            made.check_data(settings)
            fair.setdefault(cell, {})[arm] = settings
        elif planner.settings.seeded:  # another seed, other pictures
            try:
                made.check_data(settings)
            except InputError as error:
                raise InputError([f"seed {seed}: {p}" for p in error.problems]) from None
    for cell, of_arms in fair.items():
        made.check_fair(cell, of_arms)
    made.prepared.cautions.extend(_cautions(fair, made.prepared))
    return made.prepared


def _cautions(fair: dict[int, dict[str, RunSettings]], prepared: Prepared) -> list[str]:
    """Returns what weakens the result, as far as the settings tell."""
    found = []
    for cell, arms in fair.items():
        if prepared.scored[cell][1] == "test":
            continue
        if any(s.train.best for s in arms.values()):
            found.append(
                "There are no test pictures: the scores are of the validation pictures, which also chose "
                "the best checkpoint. Give data.test or split."
            )
        audited = [a for a, s in arms.items() if _audits_on_val(s)]
        if audited:
            found.append(
                f"There are no test pictures: the scores are of the validation pictures, on which silver "
                f"was audited too ({', '.join(audited)}). Give data.test, split, or another silver.audit."
            )
    return list(dict.fromkeys(found))


def _audits_on_val(settings: RunSettings) -> bool:
    """Returns whether a run audits its teacher, beforehand or while training, on the pictures to validate."""
    silver, online = settings.silver, settings.when_online()
    if silver is not None and makes_silver(settings) and silver.audit == "val":
        return True
    return online is not None and online.audit == "val"
