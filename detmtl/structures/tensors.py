"""What all labels have in common: they are frozen dataclasses whose tensors travel together."""

from dataclasses import fields, replace
from typing import Any, Self

import torch
from torch import Tensor


class Tensors:
    """A frozen dataclass of tensors, some of which may be None, of such dataclasses, and of plain values."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """Returns a copy on `device`."""
        return self._each(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Returns a copy in page-locked memory, for copies to a GPU that overlap with its work."""
        return self._each(lambda x: x.pin_memory())

    def _each(self, change: Any) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        changed = {
            name: change(x) if isinstance(x, Tensor) else x._each(change)
            for name, x in values.items()
            if isinstance(x, Tensor | Tensors)
        }
        return replace(self, **changed)  # type: ignore[type-var]
