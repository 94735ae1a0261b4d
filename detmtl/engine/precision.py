"""In which number format the network computes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["auto", "fp32", "bf16", "fp16"]
"""auto: bfloat16 where the hardware multiplies matrices in it, else float32."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """Returns the number format that `precision` means on `device`."""
    if precision == "auto":
        precision = "bf16" if fast_bfloat16(device) else "fp32"
    return _DTYPES[precision]


def fast_bfloat16(device: torch.device) -> bool:
    """Returns whether `device` has instructions for products of bfloat16 matrices.

    Without them bfloat16 is emulated and several times slower than float32.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = _cpu_flags()
    return bool(flags & {"amx_bf16", "avx512_bf16", "bf16"})


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Returns the context in which the network runs in `dtype`; parameters stay float32."""
    if dtype == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, dtype)


def _cpu_flags() -> set[str]:
    """Returns the instruction sets of this machine's first processor, as Linux names them.

    Elsewhere than on Linux nothing is known and float32 is used.
    """
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                key, _, value = line.partition(":")
                if key.strip() in ("flags", "Features"):
                    return set(value.split())
    except OSError:
        pass
    return set()
