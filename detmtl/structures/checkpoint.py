"""The file of a model and of all that its training needs to go on.

A checkpoint is one file that `torch.load(weights_only=True)` reads: {"format": 1, "settings": the
run's resolved settings, "classes": names, "searched": task -> the classes that somebody looked for in
some picture of its training, or of the training of the model that it started from, "step", "model",
"ema", "optimizer", "scaler", "balancer", "random" of each rank, "best", "unscored"}. `best.pt` and
other files to deploy from have no more than "format", "settings", "classes", "searched", "step" and
"model" (the weights to use).
"""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from detmtl.structures.errors import InputError, first_few
from detmtl.structures.exported import refuse_exported
from detmtl.structures.whole import whole

FORMAT = 1


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes a file that appears whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as part, open(part, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # that the archive cannot be closed hides why
            raise error.__context__ or error from None
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Returns the content of a checkpoint, on the CPU, without running any code from it.

    Raises:
        InputError: the file is missing, damaged, or no checkpoint of ours.
    """
    refuse_exported(
        Path(path),
        "no checkpoint; give best.pt of its run; the verb predict takes exported files as well, and what it "
        "writes evaluate --detections scores",
    )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a checkpoint (best.pt or last.pt)") from None
    except IsADirectoryError:
        raise InputError(
            f"{path}: a folder; give a checkpoint in it (best.pt or last.pt)"
        ) from None
    except pickle.UnpicklingError:  # torch's own words advise to load it unsafely
        raise InputError(
            f"{path}: not a checkpoint of detmtl or damaged (it holds more than tensors and plain values, or "
            "none of them); give best.pt or last.pt of a run"
        ) from None
    except Exception as error:  # torch raises many kinds for a damaged file
        first = str(error).strip().split("\n")[0]
        raise InputError(f"{path}: not a checkpoint of detmtl or damaged ({first})") from error
    if not isinstance(content, dict) or "format" not in content or "model" not in content:
        raise InputError(f"{path}: not a checkpoint of detmtl; give best.pt or last.pt of a run")
    if content["format"] != FORMAT:
        raise InputError(
            f"{path}: checkpoint format {content['format']}; this version reads {FORMAT}"
        )
    return content


def read_model(path: Path | str) -> dict[str, Any]:
    """Returns the content of a checkpoint that tells what its weights are of; see `read_checkpoint`.

    Raises:
        InputError: it does not tell, either.
    """
    content = read_checkpoint(path)
    missing = [key for key in ("settings", "classes") if key not in content]
    if missing:
        raise InputError(
            [f"{path}: {key} is missing; give best.pt or last.pt of a run" for key in missing]
        )
    return content


def weights_of(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the weights to deploy: the averaged ones where there are any."""
    return checkpoint.get("ema") or checkpoint["model"]


def load_weights(model: nn.Module, weights: dict[str, Tensor], where: str) -> None:
    """Loads weights that must fit exactly.

    Raises:
        InputError: names what is missing, left over or of another shape.
    """
    mine = model.state_dict()
    other_shape = [
        f"{k} is {tuple(weights[k].shape)}, the model has {tuple(v.shape)}"
        for k, v in mine.items()
        if k in weights and weights[k].shape != v.shape
    ]
    problems = [
        f"{where}: {what}: {first_few(names)}"
        for what, names in (
            ("weights that the model needs are missing", sorted(mine.keys() - weights.keys())),
            ("weights that the model does not have", sorted(weights.keys() - mine.keys())),
            ("weights of another shape", other_shape),
        )
        if names
    ]
    if problems:
        raise InputError(problems)
    model.load_state_dict(weights)
