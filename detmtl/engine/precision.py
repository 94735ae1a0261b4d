"""In which number format the network computes, and how."""

import platform
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from detmtl.models.winograd import Winograd
from detmtl.structures.errors import InputError

Precision = Literal["auto", "fp32", "winograd", "bf16", "fp16"]
"""winograd: float32, for CPUs, with 3 x 3 convolutions by Winograd's algorithm, see `detmtl.models.winograd`.
auto: bfloat16 where the hardware multiplies matrices in it, else winograd on x86 processors, else fp32."""

_DTYPES = {
    "fp32": torch.float32,
    "winograd": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


def dtype_of(precision: Precision, device: torch.device) -> torch.dtype:
    """Returns the number format that `precision` means on `device`."""
    return _DTYPES[_resolved(precision, device)]


class Computing:
    """Called, it gives the context in which the network runs; parameters stay float32.

    Args:
        precision: see `Precision`.
        device: where the network is.
        fixed: nothing trains the weights, so that what is computed of them alone is kept from call to call.
        compiled: the network is, so that torch chooses how it computes; `auto` is then no winograd.

    Raises:
        InputError: `device` does not know `precision`, or it is winograd and the network is compiled.
    """

    def __init__(
        self,
        precision: Precision,
        device: torch.device,
        fixed: bool = False,
        compiled: bool = False,
    ):
        if precision == "winograd":
            check_winograd(device)
            if compiled:
                raise InputError(
                    "precision: winograd is for networks that are not compiled; take fp32, or do not compile"
                )
        chosen = _resolved(precision, device)
        self._device, self._dtype = device, _DTYPES[chosen]
        self._winograd = Winograd(fixed) if chosen == "winograd" and not compiled else None

    def __call__(self) -> AbstractContextManager[object]:
        """Returns the context, to be entered once."""
        # autocast keeps in itself what was before: one that is entered twice at a time never ends
        return self._winograd or autocast(self._device, self._dtype)


def check_winograd(device: torch.device, where: str = "precision") -> None:
    """Raises InputError if `device` is no CPU; `where`: the setting that asks for Winograd's algorithm."""
    if device.type != "cpu":
        raise InputError(
            f"{where}: winograd is for CPUs, the device is {device}, whose libraries choose the "
            "algorithm of each convolution themselves; set fp32 or bf16"
        )


def _resolved(precision: Precision, device: torch.device) -> Precision:
    if precision != "auto":
        return precision
    if fast_bfloat16(device):
        return "bf16"
    measured = device.type == "cpu" and platform.machine().lower() in ("x86_64", "amd64")
    return "winograd" if measured else "fp32"


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

    Elsewhere than on Linux nothing is known, and no bfloat16 is used.
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
