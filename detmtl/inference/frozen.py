"""A trained network made ready to run fast: another number format, compiled with its weights."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import config as dynamo_config
from torch.nn import functional as F

from detmtl.engine.compiled import GRAPHS
from detmtl.models.fold import fold_batch_norms, has_batch_norm
from detmtl.models.semantic_head import SemanticHead
from detmtl.tasks.multitask import MultiTask

Network = Callable[[Tensor], dict[str, list[Tensor]]]


def in_dtype(model: MultiTask, dtype: torch.dtype) -> MultiTask:
    """Returns the model with weights and features in `dtype`: a copy, unless it is float32.

    The pictures' normalization, the decoder and the last layer of an exact head compute in float32 in either
    case.
    """
    if dtype == torch.float32:
        return model
    model = copy.deepcopy(model)
    network = model.backbone.network
    if has_batch_norm(network):  # in bfloat16 its statistics would lose their digits
        device = next(network.parameters()).device
        fold_batch_norms(network, torch.randn(1, 3, 64, 64, device=device))
    model.to(dtype)
    for module in model.modules():
        if isinstance(module, SemanticHead) and module.exact:
            module.logits.float()
    return model


def compiled(model: MultiTask, dtype: torch.dtype) -> Network:
    """Returns the network in `dtype`, compiled by torch with its weights as constants.

    Each size of picture, and each number of pictures at once, is compiled when it first comes, in some
    seconds to minutes; worth it for many pictures of few sizes. Needs a C++ compiler on a CPU. On a GPU each
    is a CUDA graph with memory of its own, and numbers are filled up with empty pictures to powers of 2,
    so that there are few: nine pictures cost what sixteen do. To be called without gradients.

    Args:
        model: in evaluation mode; not changed.
        dtype: of weights and features.
    """
    network = in_dtype(model, dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    on_gpu = next(network.parameters()).is_cuda
    options: dict[str, Any] = {"freezing": True} | ({"triton.cudagraphs": True} if on_gpu else {})
    fast = torch.compile(network, dynamic=False, options=options)

    def call(images: Tensor) -> dict[str, list[Tensor]]:
        with dynamo_config.patch(recompile_limit=GRAPHS):
            return _replayed(fast, images) if on_gpu else fast(images)

    return call


def _replayed(network: Network, images: Tensor) -> dict[str, list[Tensor]]:
    """Returns what a CUDA graph gives, in memory that it does not write to again."""
    count = len(images)
    missing = (1 << (count - 1).bit_length()) - count
    if missing:
        images = F.pad(images, (0, 0, 0, 0, 0, 0, 0, missing))
    torch.compiler.cudagraph_mark_step_begin()
    return {n: [x[:count].clone() for x in maps] for n, maps in network(images).items()}
