"""Which runs a transfer report consists of.

    tasks alone, together, in pairs; the same with random labels, on a wider trunk; heads on frozen trunks

Each is an arm of a comparison: paired seeds, equal steps, runs kept and shared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from detmtl.comparing.keys import digest
from detmtl.comparing.plan import Cell, Plan, Planner, Run
from detmtl.comparing.prepare import Prepared, prepare
from detmtl.comparing.settings import Changes, CompareSettings
from detmtl.comparing.statistics import resamples_for
from detmtl.comparing.transfer_settings import TransferSettings
from detmtl.config import RunSettings
from detmtl.engine.distributed import Process
from detmtl.structures.errors import InputError
from detmtl.tasks.noise import KIND as NOISE

WIDE = ", wide"


def alone(task: str) -> str:
    """Returns the name of a task's own run, the baseline of all that is said of it."""
    return f"{task} alone"


def together(group: Sequence[str]) -> str:
    """Returns the name of the run of some tasks on one trunk."""
    return " + ".join(group)


def with_noise(task: str, other: str) -> str:
    """Returns the name of a task's run beside the other one with random labels."""
    return f"{task} + noise like {other}"


def probe(task: str, trunk: str | None) -> str:
    """Returns the name of a head's run on the frozen trunk of another task; None: on the first weights."""
    return (
        f"{task} on a trunk that never learned"
        if trunk is None
        else f"{task} on the trunk of {trunk}"
    )


@dataclass(frozen=True)
class Arm:
    """One kind of run.

    Attributes:
        name: see the functions above.
        tasks: those that it trains.
        noise: of these the one whose labels are random.
        wide: whether its trunk is the wide one.
        frozen: whether its trunk does not learn.
        trunk: name of the arm whose trunk it has then; None: that of the first weights.
    """

    name: str
    tasks: tuple[str, ...]
    noise: str | None = None
    wide: bool = False
    frozen: bool = False
    trunk: str | None = None


def arms_of(settings: TransferSettings) -> list[Arm]:
    """Returns the arms of each variant, those first that an early report needs most."""
    groups = settings.groups()
    # of the others the target's report needs nothing alone, unless a frozen trunk is measured by it
    asked = settings.target is None or settings.overlap
    tasks = [t for t in settings.tasks if asked or t == settings.target]
    found = [Arm(alone(t), (t,)) for t in tasks] + [Arm(together(g), g) for g in groups]
    if settings.wide:
        measured = {t for t, _ in settings.questions()}
        found += [Arm(alone(t) + WIDE, (t,), wide=True) for t in tasks if t in measured]
        found += [Arm(together(g) + WIDE, g, wide=True) for g in groups]
    if settings.noise:
        pairs = [(t, o[0]) for t, o in settings.questions() if len(o) == 1]
        found += [Arm(with_noise(t, o), (t, o), noise=o) for t, o in pairs]
    overlaps = settings.overlaps()
    found += [Arm(probe(o, None), (o,), frozen=True) for o in dict.fromkeys(o for _, o in overlaps)]
    found += [Arm(probe(o, t), (o,), frozen=True, trunk=alone(t)) for t, o in overlaps]
    return found


def changes_of(arm: Arm, settings: TransferSettings, whole: RunSettings, where: str) -> Changes:
    """Returns what an arm changes in the settings of the run of all tasks.

    It has the sources that label one of its tasks, with these labels alone: a run whose batches are in
    part silent would be no fair baseline.

    Raises:
        InputError: no source is left.
    """
    tree = whole.resolved()
    left_out = [t for name, t in settings.tasks.items() if name not in arm.tasks]
    without = {k: v for task in left_out for k, v in task.without.items()}
    tasks = {name: tree["tasks"][name] for name in arm.tasks}
    if arm.noise is not None:
        tasks[arm.noise] = {"kind": NOISE, "of": tasks[arm.noise]}
    sources = sources_for(arm.tasks, whole, pools=without.get("silver", 0) is not None)
    if not sources:
        raise InputError(
            f"{where}: {arm.name}: no source labels {' or '.join(arm.tasks)}; data.sources has "
            f"{', '.join(whole.data.sources)}"
        )
    mix = whole.mix_for(list(sources)).model_dump(mode="json")
    changes: Changes = {"tasks": tasks, "data.sources": sources, "mix": mix}
    changes |= {"export.format": None, "train.pictures_every": None}
    shared, start = {"backbone", "fpn"}, tree["model"]["start"]
    changes["model.frozen"] = [n for n in tree["model"]["frozen"] if n in shared | tasks.keys()]
    if start and start.get("tasks") is not None:
        changes["model.start.tasks"] = [n for n in start["tasks"] if n in tasks]
    weights = {
        k: v for k, v in tree["balancing"]["weights"].items() if k.split("/")[0] in arm.tasks
    }
    if len(arm.tasks) == 1:  # there is nothing to balance
        changes["balancing"] = {"kind": "fixed", "weights": weights}
    else:
        changes["balancing.weights"] = weights
    if settings.diagnose_every is not None and len(arm.tasks) > 1:
        changes["diagnosis.every"] = max(1, min(settings.diagnose_every, whole.train.steps // 5))
    return changes | (settings.wide if arm.wide else {}) | without


def sources_for(tasks: Sequence[str], whole: RunSettings, pools: bool) -> dict[str, Any]:
    """Returns, as plain values, the sources that label one of these tasks, without labels of others.

    Args:
        tasks: names.
        whole: settings of the run of all tasks.
        pools: whether a teacher still labels its pools.
    """
    wanted = {getattr(whole.tasks[t], "labels", "boxes") for t in tasks}
    known = {getattr(t, "labels", "boxes") for t in whole.tasks.values()} | {"maps", "tags"}
    labelled = {*whole.silver.pools} if whole.silver and pools else set()
    found: dict[str, Any] = {}
    for name, source in whole.data.sources.items():
        own = {key for key in known if getattr(source, key, None) is not None}
        if source.kind != "folder":
            own.add("boxes")
            derived = whole.data.tags is not None and whole.data.tags.from_boxes
            own |= {"tags"} if derived else set()
        if own & wanted or name in labelled:
            unread = {key: None for key in (own & known) - wanted if hasattr(source, key)}
            found[name] = source.model_dump(mode="json") | unread
    return found


@dataclass(frozen=True)
class Transfer:
    """A plan whose cells are the variants, with its arms."""

    prepared: Prepared
    arms: list[Arm]
    digest: str


def prepare_transfer(
    settings: TransferSettings,
    path: Path,
    overrides: Sequence[str],
    seeds: list[int],
    out: Path,
    process: Process,
    console: Console,
) -> Transfer:
    """Returns the plan of a transfer report, after checking everything that can be checked before a run.

    Raises:
        InputError: settings or data are wrong.
    """
    arms = arms_of(settings)
    cells = [Cell(name, {}, None, changes) for name, changes in settings.all_variants.items()]
    whole, digests = Prepared(Plan(cells)), []
    for i, cell in enumerate(cells):
        planner = _planner(settings, path, overrides, cell, seeds[0], arms)
        made = prepare(planner, list(planner.settings.arms), seeds, out, process, console)
        digests.append(planner.digest())
        whole.plan.runs.update(made.plan.runs)
        whole.plan.at.update({(i, arm, seed): key for (_, arm, seed), key in made.plan.at.items()})
        whole.scored[i] = made.scored[0]
        whole.cautions.extend(c for c in made.cautions if c not in whole.cautions)
        for arm in arms:
            if arm.frozen:
                _add_probes(whole.plan, i, arm, seeds)
    return Transfer(whole, arms, digest([digests, [a.name for a in arms]]))


def _planner(
    settings: TransferSettings,
    path: Path,
    overrides: Sequence[str],
    cell: Cell,
    seed: int,
    arms: Sequence[Arm],
) -> Planner:
    """Returns the planner of one variant, whose arms are all that learn on a trunk of their own."""

    def planner(made: Mapping[str, Changes]) -> Planner:
        compared = CompareSettings(
            base=settings.base,
            set=settings.set | cell.changes,
            seeds=settings.seeds,
            seeded=settings.seeded,
            arms={**made},
            baseline=next(iter(made)),
            # judged are the questions, which TransferSettings has counted, and not each arm here
            resamples=max(settings.resamples, resamples_for(len(made))),
            same_start=False,  # heads differ; the trunks do not
        )
        return Planner(compared, path, overrides)

    first = planner({"all": {}})
    whole = first.of_arm(Cell("", {}, None, {}), "all", seed)
    _check(settings, whole, arms, path, cell.name)
    where = f"{path}: {cell.name}" if cell.name else str(path)
    return planner(
        {arm.name: changes_of(arm, settings, whole, where) for arm in arms if not arm.frozen}
    )


def _check(
    settings: TransferSettings, whole: RunSettings, arms: Sequence[Arm], path: Path, variant: str
) -> None:
    where = f"{path}: {variant}" if variant else str(path)
    problems = [
        f"{where}: tasks.{name}: is no task of the base config, which has {', '.join(whole.tasks)}"
        for name in settings.tasks
        if name not in whole.tasks
    ]
    if whole.train.best is not None:
        problems.append(
            f"{where}: train.best: chooses the checkpoint by {whole.train.best}, which the runs without that "
            "task do not have; set train.best: null, so that each run is scored after its last step"
        )
    if whole.model.start and settings.wide and not any("model.start" in k for k in settings.wide):
        problems.append(
            f"{where}: wide: the weights of model.start fit the network of their own width alone; leave wide "
            "out, or name in it another model.start, such as {model.start: null}"
        )
    still = {name for arm in arms if arm.frozen for name in arm.tasks} & {*whole.model.frozen}
    problems += [
        f"{where}: overlap: trains the head of {name} on a trunk that does not learn, and model.frozen keeps "
        f"it from learning; leave {name} out of model.frozen, or set overlap: false"
        for name in sorted(still)
    ]
    if problems := problems or _homeless(settings, whole, arms, where):
        raise InputError(problems)


def _homeless(
    settings: TransferSettings, whole: RunSettings, arms: Sequence[Arm], where: str
) -> list[str]:
    """Returns a sentence for each task about boxes that would be trained without its detection task, or
    on a random one: alone it is nothing, so there is no baseline of its own."""
    of = {name: getattr(whole.tasks[name], "of", None) for name in settings.tasks}
    of = {name: owner for name, owner in of.items() if isinstance(owner, str)}
    found: dict[str, str] = {}
    for arm in arms:
        for name in arm.tasks:
            if name in of and (of[name] not in arm.tasks or of[name] == arm.noise):
                found.setdefault(name, arm.name)
    problems = []
    for name, arm in found.items():
        owner = of[name]
        todo = (
            f"ask what it does to {owner}: target: {owner}, overlap: false"
            if owner in settings.tasks
            else f"name {owner} in tasks too, with target: {owner}, or leave {name} out"
        )
        problems.append(
            f"{where}: tasks.{name}: describes the boxes of '{owner}' (of: {owner}), so it has no training "
            f"without that task, which '{arm}' would need; {todo}"
        )
    return problems


def _add_probes(plan: Plan, cell: int, arm: Arm, seeds: Sequence[int]) -> None:
    """Adds the runs of an arm with a frozen trunk, each after the run whose trunk it is."""
    (task,) = arm.tasks
    for seed in seeds:
        own = plan.runs[plan.at[cell, alone(task), seed]]
        trunk = None if arm.trunk is None else plan.at[cell, arm.trunk, seed]
        key = digest(["probe", trunk, own.key])
        steps = own.settings.train.steps
        plan.runs[key] = Run(key, "probe", own.settings, steps, own.teacher, trunk)
        plan.at[cell, arm.name, seed] = key
