"""The backbone: a timm classifier without its classifier, giving features of strides 8, 16 and 32.

Letters: B pictures, C channels, H and W pixels.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from pydantic import Field
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from detmtl.models.fold import fold_batch_norms, has_batch_norm
from detmtl.models.pretrained import load_weights, read_weights, renamed_by_order, weights_path
from detmtl.structures.errors import InputError
from detmtl.structures.outside import imported
from detmtl.structures.settings import Settings

STRIDES = [8, 16, 32]
"""Of the features that a pyramid is built on: C3, C4 and C5."""
FAILURES = (RuntimeError, ValueError, AttributeError, AssertionError, TypeError, IndexError)
"""What networks raise on a picture of a size that they do not take."""


@dataclass(frozen=True, eq=False)
class BackboneWeights:
    """Weights that a backbone starts from.

    Attributes:
        tensors: by the names of timm's feature extractor.
        where: their origin, for errors.
        norm_epsilon: what the batch norms add to the variance; None: what they add by default.
    """

    tensors: Mapping[str, Tensor]
    where: str
    norm_epsilon: float | None = None


class BackboneSettings(Settings):
    """Which network, with which weights, and how much of it trains.

    Attributes:
        name: a model of timm, or `package.module:function` of a function that takes timm's
            `features_only` (such as `timm.models.efficientnet:_gen_mobilenet_v1`).
        args: keyword arguments for it, such as {pad_type: same}, or {strict_img_size: false}, with which a
            Swin transformer takes pictures of any size; {img_size: [320, 416]} makes those of one size for
            that size, height and width.
        pretrained: whether timm downloads its weights.
        weights: a local file of weights instead, .pth or .safetensors, of the whole classifier or of
            its features; half precision is cast. `package.module:function` is called for the path of
            a file that an installed package brings along.
        weights_match: how tensors of that file find their place: by timm's "names", or, for files of
            another code base, by the "order" of the whole classifier's tensors, shape by shape.
        frozen_stages: the layers up to and including the features of stride 2 ** frozen_stages don't
            train: 1 a ResNet's stem, 2 its first stage too (as torchvision and detectron2 do), 5
            everything, 0 nothing.
        norm: batch norm is "frozen": constants, folded into the convolutions; or trained: "train".
            Frozen stages have it frozen in either case.
        mean, std: of red, green and blue in 0..1, that the network expects; None: as timm says.
    """

    name: str
    args: dict[str, Any] = {}
    pretrained: bool = False
    weights: str | None = None
    weights_match: Literal["names", "order"] = "names"
    frozen_stages: int = Field(default=0, ge=0, le=5)
    norm: Literal["frozen", "train"] = "frozen"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def build(
        self,
        root: Path | None = None,
        start: "BackboneWeights | None" = None,
        strides: Sequence[int] = STRIDES,
    ) -> "Backbone":
        """Makes the network: weights loaded, batch norm folded, stages frozen.

        Args:
            root: folder that `weights` is relative to; None: the working directory.
            start: weights in place of those that the settings name.
            strides: of the features that are wanted, rising.

        Raises:
            InputError: unknown name, arguments that don't fit, weights that don't fit, or a network
                without features of these strides.
        """
        if self.pretrained and self.weights:
            raise InputError(
                f"backbone: pretrained is true and weights is {self.weights}; give one of them"
            )
        network = _features(self.name, self.args, self.pretrained)
        if start is not None:
            load_weights(network, start.tensors, set(), start.where)
            if start.norm_epsilon is not None:
                for module in network.modules():
                    if isinstance(module, nn.BatchNorm2d):
                        module.eps = start.norm_epsilon
        elif self.weights:
            path = (root or Path()) / weights_path(self.weights)
            classifier = _create(self.name, self.args).state_dict()
            weights = read_weights(path)
            if self.weights_match == "order":
                weights = renamed_by_order(weights, classifier, str(path))
            load_weights(network, weights, set(classifier), str(path))
        config = getattr(network, "default_cfg", {})
        return Backbone(
            network,
            mean=self.mean or config.get("mean", IMAGENET_DEFAULT_MEAN),
            std=self.std or config.get("std", IMAGENET_DEFAULT_STD),
            frozen_stages=self.frozen_stages,
            fold=self.norm == "frozen",
            example_size=_example_size(self.args, config),
            strides=strides,
        )


class Backbone(nn.Module):
    """Features of strides 8, 16 and 32, or of others that are asked for.

    Parameters of frozen stages have `requires_grad` False; as nothing before them needs a gradient
    either, no graph is recorded for those layers.

    Attributes:
        channels: of C3, C4 and C5, or of the stages that were asked for.
        strides: pixels of the picture per position: [8, 16, 32], or what was asked for.
        mean, std: of red, green and blue in 0..1, that the network expects.
    """

    def __init__(
        self,
        network: nn.Module,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        frozen_stages: int = 0,
        fold: bool = True,
        example_size: tuple[int, int] = (64, 64),
        strides: Sequence[int] = STRIDES,
    ):
        """Prepares timm's feature extractor; it is changed in place.

        Args:
            network: (B, 3, H, W) -> list of features, with timm's `feature_info`.
            mean, std: kept for whoever normalizes the pictures.
            frozen_stages: see `BackboneSettings`.
            fold: whether all batch norms are frozen; if not, those of frozen stages.
            example_size: height and width in pixels of the picture that the network is tried with.
            strides: of the features that `forward` gives, rising.

        Raises:
            InputError: the network has no features of these strides, or fails.
        """
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)
        self.strides = list(strides)
        self.network = network
        self._channels_first = str(_output_format(network)) != "NHWC"
        self._example_size = example_size
        example = torch.randn(2, 3, *example_size, generator=torch.Generator().manual_seed(0))
        network.eval()  # the trial must not move the statistics of trained batch norms
        with torch.enable_grad():
            try:
                features = self._all_features(example)
            except FAILURES as error:
                raise InputError(
                    f"backbone: the network is tried on a picture of {example_size[0]} x {example_size[1]} "
                    f"pixels, and fails: {type(error).__name__}: {error}"
                ) from error
            reductions = [round(example_size[1] / f.shape[-1]) for f in features]
            self._indices = _levels(reductions, self.strides)
            self.channels = [features[i].shape[1] for i in self._indices]
            frozen = self._freeze(features, reductions, frozen_stages)
        if has_batch_norm(network) and (fold or frozen):
            norms = {name.rpartition(".")[0] for name in frozen}
            fold_batch_norms(network, example, only=None if fold else norms)
        network.train()
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns the features of `strides`, as C3, C4 and C5, each (B, C, H / stride, W / stride).

        Args:
            images: (B, 3, H, W), normalized; H and W multiples of 32.
        """
        features = self._all_features(images)
        return [features[i] for i in self._indices]

    def misfit(self, height: int, width: int) -> str | None:
        """Returns why the network has no features of `strides` of such a picture; None: it has.

        Args:
            height, width: multiples of 32.
        """
        first, training = next(self.parameters()), self.training
        self.eval()
        try:
            picture = torch.zeros(1, 3, height, width, dtype=first.dtype, device=first.device)
            with torch.no_grad():
                features = self(picture)
        except FAILURES as error:
            return f"{type(error).__name__}: {error}"
        finally:
            self.train(training)
        for feature, stride in zip(features, self.strides, strict=True):
            got, wanted = tuple(feature.shape[-2:]), (height // stride, width // stride)
            if got != wanted:
                return f"features of stride {stride} are {got}, not {wanted}"
        return None

    def freeze(self) -> None:
        """Makes all weights constants, batch norms with their running statistics included."""
        if has_batch_norm(self.network):
            first = next(self.parameters())
            generator = torch.Generator().manual_seed(0)
            example = torch.randn(2, 3, *self._example_size, generator=generator).to(first)
            fold_batch_norms(self.network, example)
        self.requires_grad_(False)

    def stages(self) -> dict[str, list[nn.Parameter]]:
        """Returns the parameters that train, each once, by the finest features that depend on them: c1
        (stride 2), c2 and so on, in order.

        Tries the network once; neither statistics nor random generators move.
        """
        first = next(self.parameters())
        size, training = self._example_size, self.training
        self.eval()
        try:
            with torch.enable_grad():
                example = torch.zeros(1, 3, *size, dtype=first.dtype, device=first.device)
                features = self._all_features(example)
        finally:
            self.train(training)
        left = {id(p): p for p in self.parameters() if p.requires_grad}
        found: dict[str, list[nn.Parameter]] = {}
        for feature in features:
            if not (feature.requires_grad and left):
                continue
            used = torch.autograd.grad(
                feature.sum(), list(left.values()), retain_graph=True, allow_unused=True
            )
            name = f"c{round(size[1] / feature.shape[-1]).bit_length() - 1}"
            for p, gradient in zip(list(left.values()), used, strict=True):
                if gradient is not None:
                    found.setdefault(name, []).append(left.pop(id(p)))
        return found

    def _all_features(self, images: Tensor) -> list[Tensor]:
        features = self.network(images)
        # Channels-last networks give (B, H, W, C): permuted, it is channels_last memory already.
        return features if self._channels_first else [f.permute(0, 3, 1, 2) for f in features]

    def _freeze(self, features: list[Tensor], reductions: list[int], stages: int) -> set[str]:
        """Freezes the parameters that features of stride up to 2 ** stages depend on.

        Returns:
            their names.
        """
        if stages == 0:
            return set()
        early = [f for f, r in zip(features, reductions, strict=True) if r <= 2**stages]
        if not early:
            raise InputError(
                f"backbone.frozen_stages: {stages} freezes the layers up to stride {2**stages}, but "
                f"the first features have stride {reductions[0]}; give 0 or at least "
                f"{reductions[0].bit_length() - 1}"
            )
        named = {n: p for n, p in self.network.named_parameters() if p.requires_grad}
        total = torch.stack([f.sum() for f in early]).sum()
        used = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        frozen = {n for n, g in zip(named, used, strict=True) if g is not None}
        for name in frozen:
            named[name].requires_grad_(False)
        return frozen


def _levels(reductions: list[int], strides: list[int]) -> list[int]:
    """Returns the positions of the last features of these strides."""
    if not set(strides) <= set(reductions):
        wanted = f"{', '.join(map(str, strides[:-1]))} and {strides[-1]}"
        raise InputError(
            f"backbone.name: the network's features have the strides {reductions}; strides {wanted} "
            "are needed (ResNet, RegNet, MobileNet, EfficientNet, ConvNeXt, Swin ...)"
        )
    return [len(reductions) - 1 - reductions[::-1].index(s) for s in strides]


def _example_size(args: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, int]:
    """Returns height and width of a picture that a network of timm's takes: what it was made for, by its
    arguments or, where it takes one size alone, by its `default_cfg`."""
    made_for = args.get("img_size")
    if made_for is None:
        made_for = config["input_size"][-2:] if config.get("fixed_input_size") else 64
    return (made_for, made_for) if isinstance(made_for, int) else tuple(made_for)


def _output_format(network: nn.Module) -> str:
    value = getattr(network, "output_fmt", "NCHW")
    return getattr(value, "value", value)


def _features(name: str, args: dict[str, Any], pretrained: bool) -> nn.Module:
    network = _create(name, args, features_only=True, pretrained=pretrained)
    if not hasattr(network, "feature_info"):
        raise InputError(f"backbone.name: {name} gave no feature extractor for features_only=True")
    return network


def _create(name: str, args: dict[str, Any], **also: Any) -> nn.Module:
    """Calls timm's factory or the function of that name.

    Raises:
        InputError: there is none, or it doesn't take the arguments.
    """
    clash = sorted(set(args) & {"features_only", "pretrained", "out_indices"})
    if clash:
        raise InputError(f"backbone.args: {', '.join(clash)} is set by the program; leave it out")
    factory = _factory(name)
    try:
        return factory(**args, **also)
    except TypeError as error:
        raise InputError(f"backbone.args: {name} does not take {args}: {error}") from error
    except (RuntimeError, ValueError, AttributeError, AssertionError, OSError) as error:
        weights = " with pretrained weights" if also.get("pretrained") else ""
        raise InputError(
            f"backbone: {name} cannot be made{weights} from the arguments {args}: "
            f"{type(error).__name__}: {error}"
        ) from error


def is_of_timm(name: str, args: Mapping[str, Any]) -> bool:
    """Returns whether `BackboneSettings` of these values run timm's own models and nothing else."""
    if "checkpoint_path" in args:  # which timm unpickles
        return False
    if ":" not in name:
        return True
    if not name.startswith("timm."):
        return False
    function = _factory(name)  # not what timm's modules import, nor what loads and downloads
    return inspect.isfunction(function) and bool(_OF_MODELS.match(function.__module__))


_OF_MODELS = re.compile(r"timm\.models\.[a-z]\w*$")


def _factory(name: str) -> Callable[..., Any]:
    if ":" not in name:
        base = name.split(".")[0]
        if not timm.is_model(base):
            near = difflib.get_close_matches(base, timm.list_models(), n=3)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise InputError(
                f"backbone.name: timm {timm.__version__} has no model '{name}'{hint}; "
                "`timm.list_models()` lists them"
            )
        return lambda **args: timm.create_model(name, **args)
    module_name, _, function_name = name.partition(":")
    try:
        module = imported(module_name)
    except ImportError as error:
        raise InputError(f"backbone.name: cannot import {module_name}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"backbone.name: {module_name} has no function '{function_name}'")
    return function
