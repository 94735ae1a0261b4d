"""What a network can start from: the weights of a whole model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from detmtl.models.backbone import Backbone, BackboneWeights
from detmtl.models.fpn import FPN
from detmtl.structures.errors import first_few
from detmtl.tasks.task import Task


class Start(ABC):
    """Weights that were read, to be filled into a network.

    A new kind of start is one file, with settings that have a `kind` and a `read` that gives one of these;
    `detmtl.tasks.starts` lists them.
    """

    where: str
    """The file."""

    @property
    @abstractmethod
    def backbone(self) -> BackboneWeights | None:
        """What the backbone starts from before its batch norms are folded; None: `fill` loads it."""

    @abstractmethod
    def fill(
        self,
        backbone: Backbone,
        fpn: FPN,
        tasks: Mapping[str, Task],
        names: Mapping[str, Sequence[str]],
    ) -> tuple[str, dict[str, list[str]]]:
        """Loads the parts in place.

        Args:
            backbone: already filled unless `backbone` is None.
            fpn: the pyramid.
            tasks: by name.
            names: key of labels, such as `boxes` -> names of its classes.

        Returns:
            a sentence that says what was taken; task, of those that start from it -> those of its classes of
            which the weights may know something.

        Raises:
            InputError: the weights don't fit; all misfits are listed.
        """


def misfits(
    module: nn.Module, tensors: Mapping[str, Tensor], part: str, where: str, hint: str
) -> list[str]:
    """Loads tensors that fit exactly; else returns a sentence of what doesn't.

    Args:
        module: that they are loaded into.
        tensors: by the names of its state.
        part: of the settings, which made it.
        where: their file.
        hint: what would fit.
    """
    wanted = module.state_dict()
    lacking = sorted(wanted.keys() - tensors.keys())
    left = sorted(tensors.keys() - wanted.keys())
    other = [
        f"{k} {tuple(tensors[k].shape)} for {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in tensors and tensors[k].shape != v.shape
    ]
    found = [
        f"{what} {first_few(names, 3)}"
        for what, names in (("lacks", lacking), ("also has", left), ("has", other))
        if names
    ]
    bad = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad:
        found.append(f"is not finite in {first_few(bad, 3)}")
    if found:
        return [f"{part}: {where} {' and '.join(found)}; {hint}"]
    module.load_state_dict(tensors)
    return []


def told_rows(ours: Sequence[str], rows: Sequence[int]) -> str:
    """Returns which classes start from rows of a class layer and which do not.

    Args:
        ours: names of all classes.
        rows: of each class, -1 of those that start afresh.
    """
    taken = [name for name, row in zip(ours, rows, strict=True) if row >= 0]
    new = [name for name, row in zip(ours, rows, strict=True) if row < 0]
    if not taken:
        return f"class layer fresh: none of {first_few(ours)} is among its classes"
    return f"class rows of {first_few(taken)}" + (f"; fresh: {first_few(new)}" if new else "")
