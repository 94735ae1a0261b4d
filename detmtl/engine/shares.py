"""Which source gave how much of the loss.

Letters: S sources, B pictures.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from detmtl.losses.terms import LossTerms
from detmtl.structures.processes import summed


class LossShares:
    """Adds up each source's loss on the device between two looks at it.

    The loss is that of the tasks that tell it by picture (`LossTerms`), before the balancer weights
    it. Beside it stands the plan's share, which follows from numbers of pictures and weights alone: a
    source whose pictures are learned worse, or hold more boxes, gives more of the loss than planned.
    """

    def __init__(self, sources: Sequence[str], device: torch.device):
        """Starts empty.

        Args:
            sources: names of the S sources of the mix, as `Batch.groups` counts them.
            device: of the loss.
        """
        self._names = list(sources)
        self._sums = torch.zeros(len(self._names), device=device)

    def add(self, terms: Mapping[str, Mapping[str, Tensor]], groups: Tensor) -> None:
        """Adds one batch, without waiting for the device.

        Args:
            terms: of each task.
            groups: (B,) int64, the source of each picture.
        """
        if self._names:
            for of_task in terms.values():
                if isinstance(of_task, LossTerms):
                    self._sums.index_add_(0, groups, of_task.by_picture.float())

    def read(self) -> dict[str, float]:
        """Returns `loss_share/<source>` in [0, 1] over all ranks since the last call, and starts anew;
        {} where no task tells its loss by picture.

        Waits for the device; every rank has to call it.
        """
        if not self._names:
            return {}
        sums = summed(self._sums).tolist()
        self._sums = torch.zeros_like(self._sums)
        total = sum(sums)
        if total <= 0:
            return {}
        return {f"loss_share/{n}": s / total for n, s in zip(self._names, sums, strict=True)}
