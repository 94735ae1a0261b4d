"""The training of one network of a run, and its scores."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console

from detmtl.balancing.balancer import Balancer
from detmtl.balancing.on_gradients import OnGradients
from detmtl.config import RunSettings
from detmtl.data.joined import searched_classes
from detmtl.data.loader import batches, evaluation_batches
from detmtl.data.mixture import Mixture
from detmtl.data.source import Source
from detmtl.engine.diagnosis import Diagnosis
from detmtl.engine.evaluator import collect, evaluate
from detmtl.engine.online_audit import Gold
from detmtl.engine.recorder import Recorder
from detmtl.engine.state import State, seed_everything
from detmtl.engine.trainer import TrainingDiverged, train
from detmtl.inference.predictor import kind_of
from detmtl.report.progress import bar
from detmtl.run_folder import OpenRun
from detmtl.run_online import online_stream
from detmtl.run_sources import idle_weights
from detmtl.silver.contradictions import contradictions
from detmtl.silver.held_out import unlabelled
from detmtl.structures.checkpoint import load_weights, read_checkpoint, weights_of
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Ignore
from detmtl.structures.sample import Batch
from detmtl.tasks.multitask import MultiTask, build_model
from detmtl.tasks.task import Metric

WITHOUT_TRUNK = "nothing that the tasks share trains (model.frozen, model.backbone.frozen_stages)"


def build(settings: RunSettings) -> MultiTask:
    """Returns the network of a run, its weights decided by the seed alone."""
    seed_everything(settings.seed)
    names = settings.data.names()
    return build_model(settings.model, settings.tasks, names["boxes"], other_names=names)


def mixture_of(settings: RunSettings, sources: list[Source]) -> Mixture:
    """Returns the mix of a run's sources; its notes tell too which settings change nothing in this run."""
    mix = settings.mix_for([source.name for source in sources])
    steps = settings.train.steps * settings.train.accumulate
    found = Mixture(sources, mix, settings.data.batch_size, settings.seed, steps)
    found.notes += idle_weights(settings, sources, labelled=True)
    found.notes += settings.optim.notes(settings.train.steps)
    return found


def fit_model(
    run: OpenRun,
    model: MultiTask,
    sources: list[Source],
    val: Source,
    gold: Gold | None = None,
) -> None:
    """Trains `model`, or what is left of its training, and leaves its best weights in it.

    Args:
        gold: by which the teacher of mode online is audited; None: it is not.

    Raises:
        TrainingDiverged: a loss was not finite.
    """
    settings, folder = run.settings, run.folder
    if folder.best.exists() and folder.metrics.exists():
        load_weights(model, weights_of(read_checkpoint(folder.best)), str(folder.best))
        model.to(run.process.device).eval()
        return
    mixture = mixture_of(settings, sources)
    if run.process.rank == 0:  # who prints them
        mixture.notes += contradictions(sources)
    run.console.print(mixture.plan_table())
    state = _started_state(run, model, sources, val)
    stream, more_scalars = training_batches(run, mixture, state, gold)

    def validate(averaged: torch.nn.Module) -> dict[str, Metric]:
        return collect(
            averaged,
            validation_batches(run, val),
            run.process.device,
            settings.train.precision,
            truth=truth_of(val),
        )

    diagnosis = None
    if settings.diagnosis.every is not None:
        diagnosis = Diagnosis(settings.diagnosis, model.stages())
    with _recorder(run, state) as recorder:
        try:
            train(
                state,
                stream,
                settings.train,
                settings.optim,
                validate,
                recorder,
                folder.path,
                [source.name for source in sources],
                diagnosis,
                more_scalars,
            )
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{error}{with_others(run)}") from error
    load_weights(model, weights_of(read_checkpoint(folder.best)), str(folder.best))
    model.eval()


def with_others(run: OpenRun) -> str:
    """Returns a line on where a training that failed is done with other settings; "" if in its folder."""
    taught = run.settings.own_teacher() is not None  # its settings are of the student's
    if not (run.folder.began() or taught):
        return ""
    keep = f", and silver.store: {run.store} to keep the labels in it"
    return (
        f"\n{run.folder.path} goes on with its own settings and files alone: for others give another --out"
        f"{keep if run.settings.offline_pools() and not taught else ''}."
    )


def _started_state(run: OpenRun, model: MultiTask, sources: Sequence[Source], val: Source) -> State:
    """Returns the state from which a training goes on, its start or what the run folder has of it; and
    tells for which classes nobody looked."""
    settings = run.settings
    balancer = settings.balancing.build(list(settings.tasks))
    balancer.attach(model.shared_parameters(), model.own_parameters())
    if settings.diagnosis.every is not None and not model.shared_parameters():
        told = f"diagnosis.every changes nothing: {WITHOUT_TRUNK}"
        run.console.print(told, markup=False, soft_wrap=True)
    names = settings.data.names()
    searched, measured = (_searched(settings, model, of) for of in (sources, [val]))
    learned = {task: own for task, own in searched.items() if task not in settings.model.frozen}
    _tell_unsearched(learned, measured, model, sources, names, run.console)
    known = {
        task: settings.model.known(task, classes, model.brought)
        for task, classes in searched.items()
    }
    _tell_still(settings, model, known, run.console)
    tell_unlabelled(run, "what is trained on", sources, "nothing is learned of it")
    state = settings.train.prepare(
        model,
        balancer,
        settings.optim,
        run.process,
        settings.resolved(),
        list(names["boxes"]),
        {
            task: [n for n in names[str(model.tasks[task].labels)] if n in classes]
            for task, classes in known.items()
        },
    )
    last = run.folder.last
    if last.exists():
        state.load(last)
        run.console.print(f"Continuing from step {state.step} of {last}", markup=False)
    return state


def refuse_without_trunk(settings: RunSettings, model: MultiTask, balancer: Balancer) -> None:
    """Does nothing unless tasks shall be balanced by gradients that there are not.

    Raises:
        InputError: they shall.
    """
    if isinstance(balancer, OnGradients) and not model.shared_parameters():
        raise InputError(
            f"balancing.kind: {settings.balancing.kind} compares the tasks' gradients on what they share; "
            f"{WITHOUT_TRUNK}: leave balancing out"
        )


def _tell_still(
    settings: RunSettings,
    model: MultiTask,
    known: Mapping[str, Collection[str]],
    console: Console,
) -> None:
    """Prints what of the parts that do not train was never trained, either: a mistake, mostly.

    Args:
        known: task -> the classes of which it can know something, where that is told.
    """
    backbone, names = settings.model.backbone, settings.data.names()
    shared = settings.model.start or backbone.pretrained or backbone.weights
    given = {*model.brought, *(("backbone",) if shared else ())}
    given |= {"fpn"} if settings.model.start else set()
    tasks: dict[str, Any] = dict(model.tasks.items())
    for part in dict.fromkeys(settings.model.frozen):
        lost: list[str] = []
        if part in known:
            lost = [name for name in names[tasks[part].labels] if name not in known[part]]
        if part not in given:
            told = "starts afresh and does not train: it stays as chance made it"
        elif lost:
            told = f"does not train, and what it starts from knows nothing of {', '.join(lost)}"
        else:
            continue
        console.print(f"model.frozen: {part} {told}", markup=False, soft_wrap=True)


def _recorder(run: OpenRun, state: State) -> Recorder:
    """Returns what records a training, from the step on at which it stands."""
    names = run.settings.data.names()
    labels = {name: task.labels for name, task in state.tasks.items()}
    found = {
        name: getattr(task, "class_names", names.get(task.labels, ()))
        for name, task in state.tasks.items()
    }
    return Recorder(
        run.folder.path,
        run.settings.train.steps,
        class_names=found,
        start_step=state.step,
        progress=run.process.rank == 0,
        labels=labels,
        unscored=state.unscored,
        label_names=names,
    )


def _searched(
    settings: RunSettings, model: MultiTask, sources: Sequence[Source]
) -> dict[str, list[str]]:
    """Returns task -> the classes that somebody looked for in some picture, of tasks whose classes are those
    of the labels; of the others it is not known."""
    names = settings.data.names()
    found = searched_classes(sources, names)
    tasks: dict[str, Any] = dict(model.tasks.items())
    return {
        name: found[task.labels]
        for name, task in tasks.items()
        if task.labels in found
        and kind_of(task) == task.labels
        and tuple(getattr(task, "class_names", ())) == tuple(names[task.labels])
    }


def _tell_unsearched(
    learned: Mapping[str, Sequence[str]],
    measured: Mapping[str, Sequence[str]],
    model: MultiTask,
    sources: Sequence[Source],
    names: Mapping[str, Sequence[str]],
    console: Console,
) -> None:
    """Prints for which classes of a task nobody looked, be it for a typing error or for want of labels.

    Args:
        learned, measured: task -> the classes that somebody looked for, in what is trained on and in val.
        names: of the classes, by kind of labels.
    """
    drawn = [
        s.annotations.classes[s.annotations.ignore == Ignore.NO] for s in sources if s.annotations
    ]
    there = {names["boxes"][c] for classes in drawn for c in np.unique(classes).tolist()}
    tasks: dict[str, Any] = dict(model.tasks.items())

    def tell(task: str, where: str, classes: list[str], so: str) -> None:
        if classes:
            told = f"{task}: in {where} nobody looked for {', '.join(classes)}: {so}"
            console.print(told, markup=False, soft_wrap=True)

    def lost(task: str, searched: Sequence[str]) -> list[str]:
        return [name for name in names[tasks[task].labels] if name not in searched]

    for task, searched in learned.items():
        half = [n for n in lost(task, searched) if n in there and tasks[task].labels == "boxes"]
        so = "it learns where one is, never where none is; say in `covers` who did"
        tell(task, "what is trained on", half, so)
        never = [n for n in lost(task, searched) if n not in half]
        tell(task, "what is trained on", never, "nothing is learned of it")
    for task, searched in measured.items():
        tell(task, "val", lost(task, searched), "it is not in the scores")


def tell_unlabelled(run: OpenRun, where: str, sources: Sequence[Source], so: str) -> None:
    """Prints for which tasks no picture of some sources has a label, of those that learn no classes:
    `_tell_unsearched` tells of the others."""
    learned = run.settings.learned().items()
    others = {task: kind for task, kind in learned if kind not in ("boxes", "maps", "tags")}
    for task in unlabelled(sources, others):
        told = f"{task}: no picture of {where} has {others[task]}: {so}"
        run.console.print(told, markup=False, soft_wrap=True)


def training_batches(
    run: OpenRun, mixture: Mixture, state: State, gold: Gold | None
) -> tuple[Iterator[Batch], Callable[[], Mapping[str, float]]]:
    """Returns what this process still has to train on, in mode online labelled as it comes; and what
    returns values to be recorded beside the losses.

    Args:
        gold: by which the teacher of mode online is audited; None: it is not.
    """
    settings, process = run.settings, run.process
    accumulate, augment = settings.train.accumulate, settings.augment.build(settings.input)
    first = state.step * accumulate
    common = {
        "start_step": first,
        "steps": settings.train.steps * accumulate,
        "workers": settings.data.workers,
        "rank": process.rank,
        "world": process.world,
        "seed": settings.seed,
    }
    if settings.mix.mode != "online":
        return batches(mixture, augment, **common, pin=process.device.type == "cuda"), dict
    return online_stream(run, mixture, augment, state, gold, common)


def score(run: OpenRun, model: MultiTask, source: Source) -> dict[str, float]:
    """Returns the final scores of a trained model; computed once and kept in the run folder."""
    folder, process = run.folder, run.process
    if folder.metrics.exists():
        kept = json.loads(folder.metrics.read_text())
        return {name: float("nan") if value is None else value for name, value in kept.items()}
    with bar(run.console) as progress:
        task = progress.add_task("Scoring", total=len(source))
        return evaluate(
            model,
            validation_batches(run, source),
            process.device,
            run.settings.train.precision,
            truth=truth_of(source),
            detections=folder.detections,
            pictures=folder.pictures,
            on_batch=lambda batch, _: progress.advance(task, len(batch) * process.world),
        )


def validation_batches(run: OpenRun, source: Source) -> Any:
    """Yields this rank's part of a source, unchanged but for its size."""
    settings, process = run.settings, run.process
    return evaluation_batches(
        source,
        settings.input.short,
        settings.input.long,
        max(1, settings.data.batch_size // process.world),  # as many together as in training
        settings.data.workers,
        process.rank,
        process.world,
    )


def truth_of(source: Source) -> Any:
    """Returns the look-up of a source's labels in pixels of the files."""
    position = {int(id): i for i, id in enumerate(source.ids)}
    return lambda info: source.labels(position[info.id])
