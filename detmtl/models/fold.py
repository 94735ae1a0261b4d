"""Frozen batch norm, folded into the convolution before it.

A batch norm with fixed statistics is an affine function per channel; the convolution before it can
carry it. The activation stays. What cannot be folded (a norm that follows no plain convolution) gets
fixed statistics and weights instead.
"""

import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm_act import freeze_batch_norm_2d
from torch import Tensor, nn

PLAIN_CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
"""Exact types: subclasses that standardize or mix their weights don't commute with a scale."""


def has_batch_norm(network: nn.Module) -> bool:
    """Returns whether any module of the network is a 2-d batch norm."""
    return any(isinstance(m, nn.BatchNorm2d) for m in network.modules())


def fold_batch_norms(network: nn.Module, example: Tensor, only: set[str] | None = None) -> None:
    """Folds batch norms, with their running statistics, into convolutions; in place.

    Which convolution feeds which norm is observed, not guessed from names: a norm is folded where
    its input is the very tensor that a plain convolution returned. The outputs before and after are
    compared.

    Args:
        network: called with `example`, returns a list of tensors; float32.
        example: (B, 3, H, W).
        only: names of the batch norms to freeze; None: all.
    """
    was_training = network.training
    network.eval()
    with torch.no_grad():
        before = [x.clone() for x in network(example)]
        for conv, norm_name in _pairs(network, example):
            if only is None or norm_name in only:
                norm = network.get_submodule(norm_name)
                assert isinstance(norm, nn.BatchNorm2d)
                _fold(conv, norm)
                _replace(network, norm_name, _after(norm))
        _freeze_the_rest(network, only)
        for x, y in zip(before, network(example), strict=True):
            error = (x - y).abs().max() / x.abs().max().clamp(min=1e-6)
            assert error < 1e-3, f"folding batch norms changed the features by {float(error):.1e}"
    network.train(was_training)


def _pairs(network: nn.Module, example: Tensor) -> list[tuple[nn.Conv2d, str]]:
    """Returns each convolution, called once, whose output goes into the batch norm of that name."""
    made: dict[int, tuple[Tensor, nn.Conv2d]] = {}
    calls: dict[nn.Module, int] = {}
    pairs: list[tuple[nn.Conv2d, str]] = []

    def after_conv(module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        calls[module] = calls.get(module, 0) + 1
        made[id(output)] = (output, module)  # holding the tensor keeps its id from being reused

    def before_norm(name: str):
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls[module] = calls.get(module, 0) + 1
            if id(inputs[0]) in made:
                pairs.append((made[id(inputs[0])][1], name))

        return hook

    handles = []
    for name, module in network.named_modules():
        if type(module) in PLAIN_CONVOLUTIONS:
            handles.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d):
            handles.append(module.register_forward_pre_hook(before_norm(name)))
    network(example)
    for handle in handles:
        handle.remove()
    return [
        (conv, name)
        for conv, name in pairs
        if calls[conv] == 1 and calls[network.get_submodule(name)] == 1
    ]


def _fold(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> None:
    """Gives the convolution the norm's scale and shift, computed in float64."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    weight = conv.weight.double() * scale[:, None, None, None]
    trainable = conv.weight.requires_grad
    conv.weight = nn.Parameter(weight.to(conv.weight.dtype), requires_grad=trainable)
    conv.bias = nn.Parameter(shift.to(conv.weight.dtype), requires_grad=trainable)


def _after(norm: nn.BatchNorm2d) -> nn.Module:
    """Returns what a norm layer does besides normalizing: timm's carry dropout and activation."""
    rest = [getattr(norm, part, None) for part in ("drop", "act")]
    modules = [m for m in rest if isinstance(m, nn.Module) and not isinstance(m, nn.Identity)]
    if not modules:
        return nn.Identity()
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def _freeze_the_rest(network: nn.Module, only: set[str] | None) -> None:
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and (only is None or name in only):
            _replace(network, name, freeze_batch_norm_2d(module))


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
