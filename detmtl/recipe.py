"""The stages of a run in order; each is kept in the run folder and not repeated.

pictures -> teacher -> silver -> training -> scores -> file to deploy -> table. The same command on
the same folder goes on where the last one stopped, wherever that was.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from detmtl.config import RunSettings
from detmtl.data.fit import fit_size
from detmtl.data.source import Source
from detmtl.engine import distributed
from detmtl.engine.memory import keep_freed_memory
from detmtl.engine.scores import check_best
from detmtl.inference.export import export_torchscript
from detmtl.inference.exported import exported
from detmtl.inputs import input_hashes
from detmtl.losses.normalizer import Density
from detmtl.pools import label_pools
from detmtl.report.run_summary import Summary
from detmtl.report.told import told_files
from detmtl.run_folder import OpenRun, RunFolder
from detmtl.run_online import online_gold
from detmtl.run_sources import drawn_sources, load_sources, render, to_be_labelled
from detmtl.run_teachers import learned_sources, teacher_settings, written_offline
from detmtl.run_training import (
    build,
    fit_model,
    mixture_of,
    refuse_without_trunk,
    score,
    tell_unlabelled,
)
from detmtl.structures.checkpoint import load_weights, read_checkpoint, weights_of
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade
from detmtl.structures.sample import DIVISOR
from detmtl.structures.whole import write_json
from detmtl.tasks.multitask import MultiTask
from detmtl.tasks.task import promises_broken
from detmtl.teachers.teacher import Teacher

TRIAL = (96, 160)
"""Height and width of a picture: odd multiples of 32, which show whether features are padded."""


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
        folder.claim(settings, teacher_settings(settings) if settings.own_teacher() else None)
        with ExitStack() as held:
            distributed.on_first(lambda: held.enter_context(folder.alone()))
            summary = _run(OpenRun(settings, folder, process, console), frozen)
    except BaseException:
        distributed.leave()
        raise
    distributed.stop()
    for table in summary.tables():
        console.print(table)
    if (told := summary.unscored()) is not None:
        console.print(told, markup=False, soft_wrap=True)
    console.print(told_files(summary.files), soft_wrap=True)
    return summary


def _run(run: OpenRun, frozen: Frozen | None) -> Summary:
    settings = run.settings
    render(settings, run.process, run.console)
    sources, val, test = _claimed_sources(run)
    scored_on, final = ("val", val) if test is None else ("test", test)
    sources, known = _to_be_labelled(run, sources)
    _check(run, sources, [val, final])
    gold = online_gold(settings, sources, val)
    by_teacher = _gold_teacher(run, sources, val, final)
    sources, store = _with_silver(run, sources, val, known)
    del known  # its memory is the student's now
    trained = [sources[n] for n in settings.mix_sources()]
    model = _student(run, frozen)
    fit_model(run, model, trained, val, gold)
    metrics = {**score(run, model, final), **by_teacher}
    if run.process.rank == 0:
        write_json(run.folder.metrics, metrics)
        _deploy(run, val)
    distributed.barrier()
    grades = {grade.name.lower() for source in trained for grade in source.grades()}
    trained_on = grades.pop() if len(grades) == 1 else "electrum"
    return Summary(metrics, _files(run, store), scored_on, trained_on)


def _claimed_sources(run: OpenRun) -> tuple[dict[str, Source], Source, Source | None]:
    """Returns the sources, the validation and the test source, once the folder's run is known to be one on
    these very files.

    Raises:
        InputError: faults in the data, or the folder holds a training on other files.
    """
    settings, folder = run.settings, run.folder
    sources, val, test = load_sources(settings, folder.cache, run.process)
    problems: list[str] = []
    if run.process.rank == 0:
        problems = folder.claim_inputs(input_hashes(settings, folder.cache, sources))
        if not problems:
            folder.settle(settings)
    if problems := distributed.from_first(problems):
        raise InputError(problems)
    return sources, val, test


def _to_be_labelled(
    run: OpenRun, sources: Mapping[str, Source]
) -> tuple[dict[str, Source], Teacher | None]:
    """Returns the sources as they are before a model has labelled any; and the teacher that labels
    beforehand, where it is the only one and loaded already."""
    offline, known = written_offline(run) if run.settings.offline_pools() else ("boxes", None)
    return {**sources, **to_be_labelled(run.settings, sources, offline)}, known


def _check(run: OpenRun, sources: Mapping[str, Source], held_out: Sequence[Source]) -> None:
    """Tells mistakes in the settings of mix, network and training before the work, and which tasks will have
    no score.

    Raises:
        InputError: see `_check_parts` and `_check_sizes`, or a source that the mix cannot have.
    """
    settings, pools = run.settings, run.settings.offline_pools()
    bare = {n: replace(sources[n], grade=Grade.SILVER, annotations=None) for n in pools}
    mixture_of(settings, [bare.get(n, sources[n]) for n in settings.mix_sources()])
    if not run.folder.metrics.exists():
        settings.train.check(run.process.device)
        model = _check_parts(settings)
        drawn = drawn_sources(settings, sources).values()
        _check_sizes(settings, model, drawn, [*sources.values(), *held_out])
        for source in dict.fromkeys(held_out):
            tell_unlabelled(run, source.name, [source], "it has no score")


def _check_sizes(
    settings: RunSettings,
    model: MultiTask,
    sources: Iterable[Source],
    plain: Iterable[Source],
) -> None:
    """Tries the backbone on a picture of a size that is nobody's own: many networks of timm take one size
    alone, or pad their features. Such a one is fit for pictures that all come in a size that it takes.

    Args:
        settings: of the run.
        model: its network.
        sources: whose pictures come augmented, and as they are where a teacher labels them.
        plain: whose pictures come as they are.

    Raises:
        InputError: it does not fit, or there is to be a file for pictures of any size.
    """
    wrong = model.backbone.misfit(*TRIAL)
    if wrong is None:
        return
    drawn = _fitted(settings, sources)
    found = _padded(drawn | _fitted(settings, plain))
    if len(found) == 1:  # few sizes, since they pad to one, and each is tried
        augment = settings.augment.build(settings.input)
        found |= _padded(size for own in drawn for size in augment.tried(*own))
    if len(found) == 1 and model.backbone.misfit(*found.pop()) is None:
        if settings.export.format is None:
            return
        raise InputError(
            f"export.format: a {settings.export.format} file takes pictures of any size, and "
            f"{settings.model.backbone.name} does not ({TRIAL[0]} x {TRIAL[1]} pixels: {wrong}); set "
            "export.format: null, and make a file for the one size by export --format pt2"
        )
    raise InputError(
        f"model.backbone: {settings.model.backbone.name} does not take pictures of any size (of one of "
        f"{TRIAL[0]} x {TRIAL[1]} pixels: {wrong}), and those of this run, as they are and after "
        "augment.steps, are not all of one that it takes; ResNet, RegNet, MobileNet, EfficientNet and "
        "ConvNeXt take any, and Swin does with backbone.args: {strict_img_size: false}"
    )


def _fitted(settings: RunSettings, sources: Iterable[Source]) -> set[tuple[int, int]]:
    """Returns heights and widths at which the network sees pictures of the sources."""
    return {
        fit_size(height, width, settings.input.short, settings.input.long)
        for source in sources
        for height, width in np.unique(source.sizes, axis=0).tolist()
    }


def _padded(sizes: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    """Returns heights and widths of the batches of pictures of one of these sizes."""
    return {(-(-h // DIVISOR) * DIVISOR, -(-w // DIVISOR) * DIVISOR) for h, w in sizes}


def _check_parts(settings: RunSettings) -> MultiTask:
    """Builds what the settings name and returns the network, with which nobody trains: what is wrong is
    told before a teacher has learned or labelled anything.

    Raises:
        InputError: a part cannot be had, or cannot be exported.
    """
    model = build(settings)
    tasks: dict[str, Any] = dict(model.tasks.items())
    if broken := [told for name, task in tasks.items() for told in promises_broken(name, task)]:
        raise InputError(broken)
    if settings.train.best is not None:
        check_best(settings.train.best, tasks)
    if settings.export.format:
        try:
            exported(model, Path("model.torchscript"))
        except InputError as error:
            raise InputError([f"{x}; or set export.format: null" for x in error.problems]) from None
    known = {name: task.terms for name, task in tasks.items() if task.terms is not None}
    if problems := settings.balancing.misnamed(settings.tasks, known):
        raise InputError(problems)
    balancer = settings.balancing.build(list(settings.tasks))
    refuse_without_trunk(settings, model, balancer)
    balancer.attach(model.shared_parameters(), model.own_parameters())
    settings.optim.build(model, balancer)
    return model


def _gold_teacher(
    run: OpenRun, sources: Mapping[str, Source], val: Source, final: Source
) -> dict[str, float]:
    """Trains a teacher on gold alone, in a run folder of its own, where the run is to; returns its scores
    as `teacher/task/metric`."""
    if run.settings.own_teacher() is None:
        return {}
    alone, learned = teacher_settings(run.settings), learned_sources(run.settings, sources)
    _check_parts(alone)
    own = replace(run, settings=alone, folder=run.folder.teacher)
    own.folder.claim(alone)
    distributed.barrier()
    if own.process.rank == 0:
        own.folder.settle(alone)
    own.console.rule("Teacher: gold alone")
    model = _started(own)
    fit_model(own, model, learned, val)
    metrics = score(own, model, final)
    if own.process.rank == 0 and not own.folder.metrics.exists():  # several students may share it
        write_json(own.folder.metrics, metrics)
    distributed.barrier()
    own.console.rule("Student")
    return {f"teacher/{name}": value for name, value in metrics.items()}


def _with_silver(
    run: OpenRun, sources: Mapping[str, Source], val: Source, known: Teacher | None
) -> tuple[dict[str, Source], Path | None]:
    """Returns the sources with the silver labels that are written before the training, and the store that
    these come from; None: nobody writes any."""
    settings = run.settings
    if settings.offline_pools():
        labelled, store = label_pools(run, sources, val, known)
        return {**sources, **labelled}, store
    if settings.silver is not None and settings.mix.mode == "online":
        run.console.print(
            "silver.teacher labels nothing: mode online labels all of silver.pools itself; to have both, "
            "name in online.pools those that it shall label",
            soft_wrap=True,
        )
    return dict(sources), None


def _started(run: OpenRun) -> MultiTask:
    """Returns the network of a run as it starts, and tells whose weights it starts with."""
    model = build(run.settings)
    if model.started:
        run.console.print(model.started, markup=False, highlight=False, soft_wrap=True)
    return model


def _student(run: OpenRun, frozen: Frozen | None) -> MultiTask:
    """Returns the network that is to be trained, with its teacher's weights where these are its start."""
    model, teacher = _started(run), run.settings.own_teacher()
    if teacher is not None and teacher.burn_in:
        start = run.folder.teacher.best
        load_weights(model, weights_of(read_checkpoint(start)), str(start))
        learned, trained = teacher_settings(run.settings).mix_sources(), run.settings.mix_sources()
        for part in model.modules():
            if isinstance(part, Density):
                part.renumber(learned, trained)
    if frozen is not None:
        frozen.apply(model)
    return model


def _deploy(run: OpenRun, val: Source) -> None:
    """Writes the file to deploy, where one is wanted and not there yet."""
    folder, export = run.folder, run.settings.export
    if export.format and not folder.torchscript.exists():
        with run.console.status("Exporting and checking that the file agrees"):
            pictures = _some_pictures(val)
            export_torchscript(folder.best, folder.torchscript, export.dtype, pictures, trust=True)


def _some_pictures(source: Source, count: int = 8) -> list[Tensor]:
    """Returns up to `count` pictures (3, H, W) uint8, evenly spread over the source."""
    step = max(1, len(source) // count)
    chosen = range(0, len(source), step)[:count]
    return [torch.from_numpy(source.read(i)).permute(2, 0, 1).contiguous() for i in chosen]


def _files(run: OpenRun, store: Path | None) -> dict[str, Path]:
    """Returns what a run leaves -> where."""
    folder = run.folder
    return {
        "checkpoint": folder.best,
        **({"TorchScript file": folder.torchscript} if run.settings.export.format else {}),
        **({"teacher checkpoint": folder.teacher.best} if run.settings.own_teacher() else {}),
        **({} if store is None else {"silver store": store}),
        "TensorBoard folder": folder.tensorboard,
        "scores": folder.metrics,
        "detections": folder.detections,
        "settings": folder.settings,
    }
