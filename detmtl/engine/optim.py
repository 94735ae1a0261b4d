"""The optimizer, and the learning rate over time."""

import math
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from detmtl.structures.settings import Settings

Fraction = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]

PLACES = ("attention_biases", "pos_embed", "position", "rel_pos_", "_token")
"""Parts of the names of what networks of timm add for a place, a pair of places or a token. Their method
`no_weight_decay` tells them too, but is lost where timm takes features alone."""


class OptimSettings(Settings):
    """How weights follow gradients.

    Attributes:
        name: AdamW, or SGD with momentum.
        lr: highest learning rate, of everything but the backbone.
        weight_decay: never applied to norms, biases and other vectors, nor to tables of positions. Of AdamW
            it shrinks weights by lr times itself at each step, of SGD it is a part of the gradient, and
            much larger for the same effect. Not given: 0.02 of AdamW, 0.0001 of SGD.
        momentum: of SGD.
        betas: of AdamW.
        backbone_lr_scale: the backbone's learning rate is lr times this.
        clip: largest norm of the gradient over all weights; None: no limit.
        warmup: steps over which the learning rate rises linearly from (almost) 0.
        schedule: after the warm-up: cosine, which would reach `lr_end` times lr a step after the last; steps:
            times `gamma` at each milestone; constant.
        milestones: for "steps", as fractions of all steps.
        gamma: for "steps".
        lr_end: for "cosine".
    """

    name: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    momentum: Decay = 0.9
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    backbone_lr_scale: Annotated[float, Field(ge=0)] = 0.3
    clip: Annotated[float, Field(gt=0)] | None = 5.0
    warmup: Annotated[int, Field(ge=0)] = 50
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    milestones: list[Fraction] = [0.67, 0.92]
    gamma: Fraction = 0.1
    lr_end: Fraction = 0.0

    @model_validator(mode="before")
    @classmethod
    def _decay_of_sgd(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("name") == "sgd":
            return {"weight_decay": 1e-4} | given
        return given

    def build(self, model: nn.Module, *others: nn.Module) -> torch.optim.Optimizer:
        """Builds the optimizer over all weights of `model` and `others` that are not frozen.

        Args:
            model: its weights under `backbone.` have their own learning rate.
            others: modules with weights of their own, as a balancer; never decayed.
        """
        groups = parameter_groups(model, self.lr, self.weight_decay, self.backbone_lr_scale)
        extra = [p for other in others for p in other.parameters() if p.requires_grad]
        if extra:
            groups.append({"name": "other", "params": extra, "lr": self.lr, "weight_decay": 0.0})
        for group in groups:
            group["initial_lr"] = group["lr"]
        # the fused kernels skip an update on the device's own word that a gradient is not finite
        if self.name == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, fused=True)
        optimizer = torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, fused=True)
        if self.momentum:
            # a first update that is skipped would leave torch's own buffers uninitialized
            for group in optimizer.param_groups:
                for p in group["params"]:
                    optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
        return optimizer

    def factor(self, step: int, steps: int) -> float:
        """Returns what the learning rate is multiplied by at `step` (0..steps-1) of `steps`."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "steps":
            return self.gamma ** sum(step >= round(m * steps) for m in self.milestones)
        done = min(1.0, (step - self.warmup) / max(1, steps - self.warmup))
        return self.lr_end + (1 - self.lr_end) * 0.5 * (1 + math.cos(math.pi * done))

    def notes(self, steps: int) -> list[str]:
        """Returns what comes to nothing in a run of `steps` steps, a sentence each."""
        if self.warmup < steps:
            return []
        return [
            f"optim.warmup takes {self.warmup} steps of {steps}: the learning rate never reaches optim.lr, "
            "and optim.schedule changes nothing; shorten it, or train longer"
        ]


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, backbone_lr_scale: float
) -> list[dict]:
    """Returns up to four groups: backbone or rest, decayed or not; frozen weights are in none."""
    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, p in model.named_parameters():
        if p.requires_grad:
            part = "backbone" if name.split(".")[0] == "backbone" else "rest"
            members.setdefault((part, _decayed(name, p)), []).append(p)
    return [
        {
            "name": part + ("" if decayed else "_no_decay"),
            "params": params,
            "lr": lr * (backbone_lr_scale if part == "backbone" else 1.0),
            "weight_decay": weight_decay if decayed else 0.0,
        }
        for (part, decayed), params in sorted(members.items())
    ]


def _decayed(name: str, p: nn.Parameter) -> bool:
    """Returns whether a weight is a matrix or a kernel: no vector, whatever its shape (a norm's gain may be
    (C, 1, 1, 1)), and nothing of a place."""
    own = name.rpartition(".")[2]
    return p.shape[1:].numel() > 1 and not any(part in own for part in PLACES)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Sets each group's learning rate to `factor` times its highest."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
