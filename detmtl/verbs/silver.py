"""The verbs that make, judge and choose silver labels: annotate, audit, select, import."""

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from detmtl.data.coco import read_labels
from detmtl.data.folder import FolderSource, pictures_named
from detmtl.data.joined import with_boxes
from detmtl.data.map_legend import Legend
from detmtl.data.maps import MapClasses
from detmtl.data.source import Source
from detmtl.data.tags import TagClasses
from detmtl.data.voc import write_voc
from detmtl.data.yolo import write_yolo
from detmtl.engine import distributed
from detmtl.pools import (
    fused_labels,
    fused_others,
    judge_each,
    judge_each_other,
    show_audit,
    show_others,
)
from detmtl.report.page import require
from detmtl.run_teachers import of_one_task
from detmtl.silver.chosen import Chosen, chosen_of
from detmtl.silver.corrections import left_behind, take_back, write_rest, write_verified
from detmtl.silver.held_out import refuse_seen, unlabelled_apart
from detmtl.silver.map_policy import MapSelection
from detmtl.silver.selection import SelectionSettings, select
from detmtl.silver.store import Store
from detmtl.silver.tag_policy import TagSelection
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.exported import exported_format
from detmtl.teachers.annotate import annotate
from detmtl.teachers.teachers import AnyTeacher
from detmtl.verbs.options import (
    cache_of,
    coco_source,
    copy_file,
    gold_maps,
    gold_tags,
    label_space,
    refuse_given,
    writable,
    writable_file,
    yaml_value,
)
from detmtl.verbs.own_run import OwnRun, policy_of
from detmtl.yaml_settings import checked


def annotate_verb(args: argparse.Namespace) -> None:
    """Writes or continues a store of silver labels."""
    process = distributed.start(args.device)
    teacher = teacher_settings(args.teacher, args.trust).load(Path.cwd(), str(process.device))
    cache = cache_of(args.out)
    pool = FolderSource(images=str(args.images.absolute()), faults=args.faults).load(
        "images", Path("/"), LabelSpace.of(["object"]), cache
    )
    store = annotate(
        teacher,
        [pool],
        args.out,
        floor=args.floor,
        batch_size=args.batch_size,
        rank=process.rank,
        world=process.world,
        root=args.images,
        console=Console(),
    )
    distributed.barrier()
    if process.rank == 0:
        Console(soft_wrap=True).print(
            f"{args.out}: {len(Store.open(store.path, store.card.name))} pictures labelled",
            markup=False,
        )


def audit_verb(args: argparse.Namespace) -> None:
    """Measures a store against gold."""
    if args.html:
        require()
    stores, own = _stores(args), OwnRun.of(args.store)
    task = of_one_task(stores)
    _refuse_idle(args, task)
    if own is not None:
        _tell_own(own, "policy" if args.classes else "policy and classes")
    if task != "boxes":
        alone, gold, _ = _others(args, stores, own)
        _refuse_seen(args, gold, LabelSpace.of(["object"]))
        _stop_at_gates(args.store, judge_each_other(alone, gold, Console(), args.html))
        others = fused_others(alone, gold)
        measures = show_others(others, others.audit(gold), gold, Console(), args.html)
        _stop_at_gates(args.store, measures.problems())
        return
    if args.annotations is None:
        raise InputError("--annotations is needed: gold, a COCO file")
    space = _space(args, own, args.annotations)
    gold = coco_source(args, space, cache_of(args.store))
    _refuse_seen(args, gold, space)
    policy = policy_of(SelectionSettings, own and own.silver.select, args.set)
    _stop_at_gates(args.store, judge_each(stores, gold, space, policy, Console()))
    labels, judged = fused_labels(stores, gold, space, policy)
    files, problems = show_audit(labels, judged, gold, space, policy, Console(), args.html)
    for path in files:
        Console(soft_wrap=True).print(str(path), markup=False)
    _stop_at_gates(args.store, problems)


_OF_OTHERS = {
    "boxes": ("maps", "categories", "tags"),
    "maps": ("annotations", "tags", "format", "pool", "without"),
    "tags": ("annotations", "maps", "categories", "format", "pool", "without"),
}
"""What a store holds -> options of `audit` and `select` that are of other labels."""


def _refuse_idle(args: argparse.Namespace, task: str) -> None:
    """Refuses options that would do nothing to a store of a task's labels."""
    names = [name for name in _OF_OTHERS[task] if hasattr(args, name)]
    refuse_given(
        args, names, f"would change nothing, since {args.store} holds {task}; leave it out"
    )
    if not args.classes:
        why = "is of --classes, which is not given; give it, too, or leave it out"
        refuse_given(args, ["drop_unmapped"], why)


def _tell_own(own: OwnRun, what: str) -> None:
    told = f"{what} of the run {own.folder.path}, where options do not say otherwise"
    Console(soft_wrap=True).print(told, markup=False)


def _space(args: argparse.Namespace, own: OwnRun | None, *wanted: Any) -> LabelSpace:
    """Returns the classes of --classes, else those of the run, else `label_space` of what is `wanted`."""
    if own is not None and not args.classes:
        return own.settings.data.label_space()
    return label_space(args, *wanted)


def _stores(args: argparse.Namespace) -> list[Store]:
    """Returns the labels of the teachers that --teacher names, or of the only one that there is."""
    return [Store.open(args.store, name) for name in args.teacher or [None]]


def _refuse_seen(args: argparse.Namespace, gold: Source, space: LabelSpace) -> None:
    for folder in args.learned_from:
        seen = FolderSource(images=str(folder.absolute()), faults=args.faults)
        refuse_seen([seen.load(str(folder), Path("/"), space, cache_of(args.store))], gold)


def _stop_at_gates(store: Path, problems: Sequence[str]) -> None:
    if problems:
        raise InputError([f"{store}: {problem}" for problem in problems])


def _others(
    args: argparse.Namespace, stores: Sequence[Store], own: OwnRun | None
) -> tuple[list[Chosen], Source, Source | None]:
    """Returns what stores of maps or tags mean; their pictures, with the gold that the options name; and the
    gold that there is, these or those of the run whose own store it is."""
    task = stores[0].card.task
    if args.images is None:
        raise InputError(f"--images is needed: the folder of the pictures whose {task} are wanted")
    maps, tags, map_gold, tag_gold = None, None, None, None
    data = None if own is None or args.classes else own.settings.data
    if task == "maps":
        names = _names(stores)
        map_gold = gold_maps(args)
        if map_gold:
            names = list(Legend.read(args.categories).categories.values())
        maps = data.maps if data else None
        if maps is None:
            maps = checked(MapClasses, _classes(args, names, "unknown"), where="--classes")
    else:
        tag_gold = gold_tags(args)
        tags = data.tags if data else None
        if tags is None:
            tags = checked(TagClasses, _classes(args, _names(stores), "drop"), where="--classes")
    source = FolderSource(
        images=str(args.images.absolute()), maps=map_gold, tags=tag_gold, faults=args.faults
    )
    space = LabelSpace.of(["object"])
    loaded = source.load(args.images.name, Path("/"), space, cache_of(args.store), maps, tags)
    silver = own.silver if own else None
    map_policy = policy_of(
        MapSelection, silver and silver.select_maps, args.set if task == "maps" else []
    )
    tag_policy = policy_of(
        TagSelection, silver and silver.select_tags, args.set if task == "tags" else []
    )
    alone = [chosen_of(store, maps, tags, map_policy, tag_policy) for store in stores]
    if map_gold or tag_gold:
        return alone, loaded, loaded
    return alone, loaded, own.gold(own.settings.data.label_space(), maps, tags) if own else None


def _classes(args: argparse.Namespace, names: Sequence[str], dropped: str) -> dict[str, Any]:
    """Returns the classes of maps or tags that --classes names, or one of each name; `dropped` is what they
    say of names that are to be dropped."""
    classes = yaml_value(args.classes, "--classes") if args.classes else list(names)
    unmapped = dropped if args.drop_unmapped or not args.classes else "error"
    return {"classes": classes, "unmapped": unmapped}


def _names(stores: Sequence[Store]) -> list[str]:
    """Returns the classes that any of the teachers has."""
    return list(dict.fromkeys(name for store in stores for name in store.card.classes))


def select_verb(args: argparse.Namespace) -> None:
    """Turns a store into labels that other tools read."""
    stores, own = _stores(args), OwnRun.of(args.store)
    task = of_one_task(stores)
    _refuse_idle(args, task)
    if own is not None:
        _tell_own(own, f"policy{'' if args.classes else ', classes'} and gold")
    if task != "boxes":
        if args.out.exists():
            raise InputError(f"--out {args.out}: exists; give a new folder")
        writable(args.out.parent, f"--out {args.out}")
        alone, pool, gold = _others(args, stores, own)
        if len(stores) > 1 and gold is None:
            raise InputError(
                f"--{task} is needed: {task} of several teachers are fused by what gold says of each"
            )
        others = fused_others(alone, pool if gold is None else gold)
        chosen = others.select(pool, None if gold is None else others.audit(gold))
        try:
            shutil.copytree(chosen, args.out)
        except OSError as error:
            raise InputError(f"--out {args.out}: cannot be written ({error})") from None
        Console(soft_wrap=True).print(f"labels: {args.out}", markup=False)
        return
    space = _space(args, own, None, _names(stores))
    policy = policy_of(SelectionSettings, own and own.silver.select, args.set)
    if args.format == "coco":
        writable_file(args.out, f"--out {args.out}")
    else:
        writable(args.out, f"--out {args.out}")
    labels, judged = stores, None
    if args.annotations is None:
        why = "is of --annotations, which is not given; give it, too, or leave it out"
        refuse_given(args, ["images"] if args.pool else ["images", "faults"], why)
        gold = own.gold(space) if own else None
        gold = None if gold is None else with_boxes(gold)
    else:
        gold = coco_source(args, space, cache_of(args.store))
    if gold is not None:
        labels, judged = fused_labels(stores, gold, space, policy)
    chosen = select(labels, _pool(args, space), space, policy, judged, args.pool)
    _write_labels(args.out, args.format, chosen, space)
    counts = json.loads((chosen.parent / "stats.json").read_text())
    Console().print_json(data=counts)
    Console(soft_wrap=True).print(f"labels: {args.out}", markup=False)


def _pool(args: argparse.Namespace, space: LabelSpace) -> list[Source] | None:
    """Returns the pictures of --pool, each once, but for those of --without; None: all of the store."""
    if args.pool is None:
        why = "is of --pool, which is not given; give it, too, or leave it out"
        refuse_given(args, ["without"], why)
        return None
    folder = FolderSource(images=str(args.pool.absolute()), faults=args.faults)
    pool = folder.load(str(args.pool), Path("/"), space, cache_of(args.store))
    names = [pool.files.name(i) for i in range(len(pool))]
    done: set[str] = set()
    for file in args.without:
        own = pictures_named(file, str(file), args.pool)
        if own.isdisjoint(names):
            raise InputError(
                f"--without {file}: names none of the pictures below {args.pool}; its first is "
                f"'{min(own, default='')}', and there '{names[0]}'"
            )
        done |= own
    left = [i for i, name in enumerate(names) if name not in done]
    if not left:
        raise InputError(f"--without: leaves no picture of {args.pool}")
    pool = pool.subset(left)
    kept = unlabelled_apart(pool, [])
    pool = pool if kept is None else pool.subset(kept)
    return [replace(pool, ids=np.arange(1, len(pool) + 1))]  # from 1, as of a whole store


def _write_labels(out: Path, format: str, chosen: Path, space: LabelSpace) -> None:
    """Writes a selection as a COCO file, or as a folder of label files."""
    if format == "coco":
        copy_file(chosen, out)
        return
    labels = read_labels(chosen, space.names)
    {"yolo": write_yolo, "voc": write_voc}[format](out, labels)


def import_verb(args: argparse.Namespace) -> None:
    """Takes people's corrections of silver back as gold."""
    reviewed = None if args.reviewed is None else yaml_value(args.reviewed, "--reviewed")
    if reviewed is not None and not isinstance(reviewed, list):
        raise InputError(f"--reviewed {args.reviewed}: must be a list in YAML")
    writable_file(args.out, f"--out {args.out}")
    if args.rest:
        writable_file(args.rest, f"--rest {args.rest}")
    corrections = take_back(args.sent, args.back, reviewed, args.finished)
    write_verified(corrections, args.sent, args.out)
    console = Console(soft_wrap=True)
    console.print(corrections.table(), soft_wrap=False)
    console.print(f"verified: {args.out}", markup=False)
    if more := left_behind(args.back):
        console.print(
            f"{more} annotations of {args.back} have a shape or keypoints: only their boxes, classes and "
            "crowds were taken",
            markup=False,
        )
    if args.rest:
        count = write_rest(corrections, args.sent, args.rest)
        console.print(f"not finished: {count}: {args.rest}", markup=False)


def teacher_settings(spec: str, trust: bool = False) -> Any:
    """Returns a teacher's settings from the path of a model, of a YAML file, or from YAML.

    Args:
        spec: one of these.
        trust: of a checkpoint, see `load_checkpoint`.
    """
    path = Path(spec)
    if path.suffix in (".pt", ".pth"):
        scripted = exported_format(path) == "torchscript"
        tree: Any = {"kind": "torchscript" if scripted else "checkpoint", "path": spec}
    elif path.suffix in (".torchscript", ".ts"):
        tree = {"kind": "torchscript", "path": spec}
    else:
        is_file = path.suffix in (".yaml", ".yml")
        if is_file and not path.is_file():
            raise InputError(f"--teacher {spec}: no such file")
        tree = yaml_value(path.read_text() if is_file else spec, "--teacher")
        if not isinstance(tree, dict):
            raise InputError(
                f"--teacher {spec}: is neither a checkpoint (.pt) nor a TorchScript file nor settings; "
                "an ONNX file needs settings such as '{kind: onnx, path: F, classes: NAMES.txt, "
                "adapter: {kind: yolox}}', torchvision's models '{kind: torchvision, model: "
                "retinanet_resnet50_fpn_v2, weights: DEFAULT}', results of another system '{kind: "
                "results, path: F, annotations: COCO_FILE}'"
            )
    if trust and tree.get("kind") == "checkpoint":
        tree = tree | {"trust": True}
    return checked(AnyTeacher, tree, where="--teacher")
