"""What each verb of the command line does, and how what goes wrong is told."""

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from detmtl.compare import Request, compare
from detmtl.comparing.settings import parse_seeds
from detmtl.config import find_config, read_settings, settings_schema
from detmtl.engine import distributed
from detmtl.engine.trainer import TrainingDiverged
from detmtl.inference.export import ExportError
from detmtl.recipe import run
from detmtl.structures.errors import InputError
from detmtl.transfer import transfer
from detmtl.verbs.check import check_verb
from detmtl.verbs.model import evaluate_verb, export_verb, predict_verb
from detmtl.verbs.options import write_text
from detmtl.verbs.silver import annotate_verb, audit_verb, import_verb, select_verb

Verb = Callable[[argparse.Namespace], int | None]


def perform(args: argparse.Namespace) -> int:
    """Runs the verb of what `detmtl.verbs.parser` has parsed, and returns the exit status, see
    `detmtl.cli`."""
    warnings.showwarning = _one_line  # type: ignore[assignment]
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        _refuse_several(args)
        status = _VERBS[args.verb](args) or 0
        distributed.stop()
        return status
    except InputError as error:
        for line in str(error).splitlines():
            errors.print(f"error: {line}", markup=False)
        return 2
    except (TrainingDiverged, ExportError) as error:
        errors.print(f"failed: {error}", markup=False)
        return 1
    except OSError as error:
        if error.errno not in _FULL:
            raise
        where = "" if error.filename is None else f" ({error.filename})"
        errors.print(f"failed: {error.strerror}{where}: make room{_going_on(args)}", markup=False)
        return 1
    except KeyboardInterrupt:
        errors.print(f"stopped{_going_on(args)}")
        return 130
    finally:
        distributed.leave()


def _refuse_several(args: argparse.Namespace) -> None:
    """Refuses processes of torchrun that would share nothing but the files that they write."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and args.verb in _OF_ONE_PROCESS:
        raise InputError(
            f"WORLD_SIZE: is {world}, as torchrun sets it; train, annotate and evaluate share their work "
            "among processes, this verb does not: each would do all of it and write the same files; start "
            "it without torchrun"
        )


def _going_on(args: argparse.Namespace) -> str:
    return "; the same command goes on from what is saved" if args.verb in _GO_ON else ""


def _train(args: argparse.Namespace) -> None:
    kept = None if args.resume is None else args.resume / "settings.yaml"
    if kept is not None and not kept.is_file():
        raise InputError(f"--resume {args.resume}: holds no run (no settings.yaml in it)")
    if args.config is not None:
        path = find_config(args.config)
    elif kept is not None:
        path = kept
    else:
        raise InputError(
            "train needs --config, a path or a name in configs/, or --resume, the folder of a run to go on "
            "with"
        )
    run(read_settings(path, args.set), args.resume or args.out or Path("runs") / path.stem)


def _compare(args: argparse.Namespace) -> int:
    return _many_runs(args, compare)


def _transfer(args: argparse.Namespace) -> int:
    return _many_runs(args, transfer)


def _many_runs(args: argparse.Namespace, function: Callable[[Request], int]) -> int:
    path = find_config(args.config)
    request = Request(
        config=path,
        out=args.out or Path("runs") / path.stem,
        overrides=args.set,
        seeds=parse_seeds(args.seeds) if args.seeds else None,
        only=args.only,
        parallel=args.jobs,
        threads=args.threads,
        report_only=args.report_only,
    )
    try:
        return function(request)
    except KeyboardInterrupt:
        Console(stderr=True).print("--report-only reports what is finished")
        raise


def _schema(args: argparse.Namespace) -> None:
    if args.out:
        write_text(args.out, settings_schema())
    else:
        sys.stdout.write(settings_schema())


_VERBS: dict[str, Verb] = {
    "train": _train,
    "compare": _compare,
    "transfer": _transfer,
    "annotate": annotate_verb,
    "audit": audit_verb,
    "select": select_verb,
    "import": import_verb,
    "evaluate": evaluate_verb,
    "predict": predict_verb,
    "export": export_verb,
    "check": check_verb,
    "schema": _schema,
}

_GO_ON = ("train", "compare", "transfer", "annotate")
"""The others begin anew."""
_OF_ONE_PROCESS = ("predict", "export", "audit", "select", "import")
_FULL = (errno.ENOSPC, errno.EDQUOT)
"""What the system says of a disk, or a quota, that can hold no more."""


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    sys.stderr.write(f"warning: {message}\n")
