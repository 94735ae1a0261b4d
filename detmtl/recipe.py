"""The stages of a run in order; each is kept in the run folder and not repeated.

pictures -> teacher -> silver -> training -> scores -> file to deploy -> table. The same command on
the same folder goes on where the last one stopped, wherever that was.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from detmtl.config import RunSettings
from detmtl.config_parts import GoldTeacher
from detmtl.data.joined import searched_classes
from detmtl.data.loader import batches, evaluation_batches
from detmtl.data.mixture import Mixture
from detmtl.data.source import Source
from detmtl.engine import distributed
from detmtl.engine.diagnosis import Diagnosis
from detmtl.engine.evaluator import collect, evaluate
from detmtl.engine.memory import keep_freed_memory
from detmtl.engine.online_audit import Gold
from detmtl.engine.recorder import Recorder
from detmtl.engine.scores import check_best
from detmtl.engine.state import State, load_weights, read_checkpoint, seed_everything, weights_of
from detmtl.engine.trainer import train
from detmtl.inference.export import export_torchscript
from detmtl.inference.predictor import kind_of
from detmtl.inference.script_file import exported
from detmtl.inputs import input_hashes
from detmtl.losses.normalizer import Density
from detmtl.pools import label_pools
from detmtl.report.progress import bar
from detmtl.report.run_summary import Summary
from detmtl.run_folder import OpenRun, RunFolder
from detmtl.run_online import online_gold, online_stream
from detmtl.run_sources import idle_weights, load_sources, render, to_be_labelled
from detmtl.run_teachers import learned_sources, teacher_settings, written_offline
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade, Ignore
from detmtl.structures.sample import Batch
from detmtl.tasks.multitask import MultiTask, build_model
from detmtl.tasks.task import Metric


@dataclass(frozen=True)
class Frozen:
    """Backbone and pyramid do not learn: heads are tried on the features as they are.

    Attributes:
        checkpoint: of the run whose trunk it is; None: the weights that a run begins with.
    """

    checkpoint: Path | None = None

    def apply(self, model: MultiTask) -> None:
        """Gives the model the trunk's weights and freezes them, batch norms included.

        Raises:
            InputError: the checkpoint is of another trunk.
        """
        if self.checkpoint is not None:
            weights = weights_of(read_checkpoint(self.checkpoint))
            for part in ("backbone", "fpn"):
                own = {k: v for k, v in weights.items() if k.startswith(f"{part}.")}
                own = {k.removeprefix(f"{part}."): v for k, v in own.items()}
                load_weights(getattr(model, part), own, f"{self.checkpoint}: {part}")
        model.backbone.freeze()
        model.fpn.requires_grad_(False)


def run(
    settings: RunSettings,
    out: Path,
    console: Console | None = None,
    frozen: Frozen | None = None,
) -> Summary:
    """Runs every stage that `out` does not hold yet, and prints the table at the end.

    Args:
        frozen: the trunk, where it is not to learn; None: it learns.

    Raises:
        InputError: something that the user gave is wrong.
        TrainingDiverged: a loss was not finite.
    """
    keep_freed_memory()
    process = distributed.start(settings.device)
    console = (console or Console()) if process.rank == 0 else Console(quiet=True)
    folder = RunFolder(Path(out))
    try:
        folder.claim(settings, _own_teacher(settings))
        distributed.barrier()
        summary = _run(OpenRun(settings, folder, process, console), frozen)
    except BaseException:
        distributed.leave()
        raise
    distributed.stop()
    for table in summary.tables():
        console.print(table)
    if (told := summary.unscored()) is not None:
        console.print(told, markup=False, soft_wrap=True)
    return summary


def _own_teacher(settings: RunSettings) -> RunSettings | None:
    """Returns the settings of a teacher that the run trains itself; None: there is none."""
    teacher = settings.silver.teacher if settings.silver and settings.offline_pools() else None
    return teacher_settings(settings) if isinstance(teacher, GoldTeacher) else None


def _run(run: OpenRun, frozen: Frozen | None) -> Summary:
    settings, folder, process, console = run.settings, run.folder, run.process, run.console
    render(settings, process, console)
    sources, val, test = load_sources(settings, folder.cache, process)
    problems: list[str] = []
    if process.rank == 0:
        problems = folder.claim_inputs(input_hashes(settings, folder.cache, sources))
        if not problems:
            folder.settle(settings)
    if problems := distributed.from_first(problems):
        raise InputError(problems)
    scored_on, final = ("val", val) if test is None else ("test", test)
    metrics: dict[str, float] = {}
    files: dict[str, Path] = {}

    wanted = settings.mix_sources()
    pools = settings.offline_pools()
    offline, known = written_offline(run) if pools else ("boxes", None)
    sources |= to_be_labelled(settings, sources, offline)
    to_be = sources | {n: replace(sources[n], grade=Grade.SILVER, annotations=None) for n in pools}
    mixture_of(settings, [to_be[n] for n in wanted])  # its mistakes are told before the work
    if not folder.metrics.exists():
        settings.train.check(process.device)
        _check_parts(settings)
    gold = online_gold(settings, sources, val)
    if settings.silver is not None and settings.mix.mode == "online" and not pools:
        console.print(
            "silver.teacher labels nothing: mode online labels all of silver.pools itself; to have both, "
            "name in online.pools those that it shall label",
            soft_wrap=True,
        )
    if pools:
        assert settings.silver is not None
        if isinstance(settings.silver.teacher, GoldTeacher):
            _check_parts(teacher_settings(settings))
            scores = _gold_teacher(run, sources, val, final)
            metrics |= {f"teacher/{name}": value for name, value in scores.items()}
            files["teacher checkpoint"] = folder.teacher.best
        labelled, store = label_pools(run, sources, val, known)
        sources |= labelled
        files["silver store"] = store

    model = build(settings)
    _tell_start(model, console)
    teacher = settings.silver.teacher if settings.silver and pools else None
    if isinstance(teacher, GoldTeacher) and teacher.burn_in:
        start = folder.teacher.best
        load_weights(model, weights_of(read_checkpoint(start)), str(start))
        for part in model.modules():
            if isinstance(part, Density):
                part.renumber(teacher_settings(settings).mix_sources(), wanted)
    if frozen is not None:
        frozen.apply(model)
    fit_model(run, model, [sources[n] for n in wanted], val, gold)
    metrics = {**score(run, model, final), **metrics}
    if process.rank == 0:
        write_json(folder.metrics, metrics)
        if settings.export.format and not folder.torchscript.exists():
            with console.status("Exporting and checking that the file agrees"):
                export_torchscript(
                    folder.best,
                    folder.torchscript,
                    settings.export.dtype,
                    _some_pictures(val),
                    trust=True,
                )
    distributed.barrier()
    files = {
        "checkpoint": folder.best,
        **({"TorchScript file": folder.torchscript} if settings.export.format else {}),
        **files,
        "TensorBoard folder": folder.tensorboard,
        "scores": folder.metrics,
        "detections": folder.detections,
        "settings": folder.settings,
    }
    grades = {grade.name.lower() for n in wanted for grade in sources[n].grades()}
    return Summary(metrics, files, scored_on, grades.pop() if len(grades) == 1 else "electrum")


def build(settings: RunSettings) -> MultiTask:
    """Returns the network of a run, its weights decided by the seed alone."""
    seed_everything(settings.seed)
    names = settings.data.names()
    return build_model(settings.model, settings.tasks, names["boxes"], other_names=names)


def _check_parts(settings: RunSettings) -> None:
    """Builds what the settings name and forgets it: what is wrong with it is told before a teacher has
    learned or labelled anything.

    Raises:
        InputError: a part cannot be had, or cannot be exported.
    """
    model = build(settings)
    if settings.train.best is not None:
        check_best(settings.train.best, dict(model.tasks.items()))
    if settings.export.format:
        exported(model, Path("model.torchscript"))
    balancer = settings.balancing.build(list(settings.tasks))
    balancer.attach(model.shared_parameters(), model.own_parameters())
    settings.optim.build(model, balancer)


def _tell_start(model: MultiTask, console: Console) -> None:
    if model.started:
        console.print(model.started, markup=False, highlight=False, soft_wrap=True)


def mixture_of(settings: RunSettings, sources: list[Source]) -> Mixture:
    """Returns the mix of a run's sources."""
    mix = settings.mix_for([source.name for source in sources])
    steps = settings.train.steps * settings.train.accumulate
    found = Mixture(sources, mix, settings.data.batch_size, settings.seed, steps)
    found.notes += idle_weights(settings, sources, labelled=True)
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
    """
    settings, folder, process, console = run.settings, run.folder, run.process, run.console
    optim, steps = settings.optim, settings.train.steps
    if folder.best.exists() and folder.metrics.exists():
        load_weights(model, weights_of(read_checkpoint(folder.best)), str(folder.best))
        model.to(process.device).eval()
        return
    mixture = mixture_of(settings, sources)
    console.print(mixture.plan_table())
    balancer = settings.balancing.build(list(settings.tasks))
    balancer.attach(model.shared_parameters(), model.own_parameters())
    of_labels = settings.data.names()
    # what a model brings along from elsewhere is not known
    searched = _searched(settings, model, sources) if settings.model.start is None else {}
    measured = _searched(settings, model, [val])
    _tell_unsearched(searched, measured, model, sources, of_labels, console)
    state = settings.train.prepare(
        model,
        balancer,
        optim,
        process,
        settings.resolved(),
        list(of_labels["boxes"]),
        searched,
    )
    if folder.last.exists():
        state.load(folder.last)
        console.print(f"Continuing from step {state.step} of {folder.last}", markup=False)
    stream, also = training_batches(run, mixture, state, gold)

    def validate(averaged: torch.nn.Module) -> dict[str, Metric]:
        return collect(
            averaged,
            validation_batches(run, val),
            process.device,
            settings.train.precision,
            truth=truth_of(val),
        )

    diagnosis = None
    if settings.diagnosis.every is not None:
        diagnosis = Diagnosis(settings.diagnosis, model.stages())
    labels = {name: task.labels for name, task in state.tasks.items()}
    shown = process.rank == 0
    names = {
        name: getattr(task, "class_names", of_labels.get(task.labels, ()))
        for name, task in state.tasks.items()
    }
    with Recorder(
        folder.path, steps, names, state.step, shown, labels, state.unscored, of_labels
    ) as recorder:
        train(
            state,
            stream,
            settings.train,
            optim,
            validate,
            recorder,
            folder.path,
            [source.name for source in sources],
            diagnosis,
            also,
        )
    load_weights(model, weights_of(read_checkpoint(folder.best)), str(folder.best))
    model.eval()


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


def _gold_teacher(
    run: OpenRun, sources: Mapping[str, Source], val: Source, final: Source
) -> dict[str, float]:
    """Trains and scores the teacher on gold alone, in a run folder of its own."""
    alone, learned = teacher_settings(run.settings), learned_sources(run.settings, sources)
    own = replace(run, settings=alone, folder=run.folder.teacher)
    own.folder.claim(alone)
    distributed.barrier()
    if own.process.rank == 0:
        own.folder.settle(alone)
    own.console.rule("Teacher: gold alone")
    model = build(alone)
    _tell_start(model, own.console)
    fit_model(own, model, learned, val)
    metrics = score(own, model, final)
    if own.process.rank == 0 and not own.folder.metrics.exists():  # several students may share it
        write_json(own.folder.metrics, metrics)
    distributed.barrier()
    own.console.rule("Student")
    return metrics


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


def _some_pictures(source: Source, count: int = 8) -> list[Tensor]:
    """Returns up to `count` pictures (3, H, W) uint8, evenly spread over the source."""
    step = max(1, len(source) // count)
    chosen = range(0, len(source), step)[:count]
    return [torch.from_numpy(source.read(i)).permute(2, 0, 1).contiguous() for i in chosen]


def truth_of(source: Source) -> Any:
    """Returns the look-up of a source's labels in pixels of the files."""
    position = {int(id): i for i, id in enumerate(source.ids)}
    return lambda info: source.labels(position[info.id])


def write_json(path: Path, values: Mapping[str, float]) -> None:
    """Writes values at once or not at all; numbers that are not finite become null."""
    finite = {k: (v if math.isfinite(v) else None) for k, v in values.items()}
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(finite, indent=2) + "\n")
    partial.replace(path)
