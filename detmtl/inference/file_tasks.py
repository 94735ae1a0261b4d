"""The tasks of an exported file, as its JSON tells them, and its outputs as their labels."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detmtl.inference.detector import CONFIDENCE
from detmtl.structures.depth import DepthLabels
from detmtl.structures.details import KINDS, details_of
from detmtl.structures.labels import BoxLabels, Grade, Labels, MapLabels, TagLabels


class FileTasks:
    """What a file of any format holds.

    Args:
        about: its JSON, see `detmtl.inference.exported.Exported.about`.

    Attributes:
        task: name of the detection task; None: there is none.
        class_names, names, kinds, describing, farthest: see `detmtl.inference.predictor.AnyPredictor`.
    """

    def __init__(self, about: Mapping[str, Any]):
        self.class_names = tuple(about["classes"])
        self.task: str | None = about["task"]
        others = about.get("tasks", {})
        self.names: dict[str, tuple[str, ...]] = {
            name: tuple(of["classes"]) for name, of in others.items()
        }
        if self.task is not None:
            self.names[self.task] = self.class_names
        self._kinds = {name: of["kind"] for name, of in others.items()}
        self._own = {n: self.names[n] for n, kind in self._kinds.items() if kind in KINDS}
        self.names |= dict.fromkeys(self._own, self.class_names)  # what they describe are boxes
        alone = {name: kind for name, kind in self._kinds.items() if name not in self._own}
        self.kinds = dict.fromkeys(self.names, "boxes") | alone
        self.describing = tuple(self._own)
        self.farthest = farthest(about["settings"], self.kinds)

    def labels(self, found: Mapping[str, Tensor]) -> dict[str, Labels]:
        """Returns task -> labels of one picture, given what `detmtl.inference.detector.Detector` gives."""
        labels: dict[str, Labels] = {}
        if self.task is not None:
            labels[self.task] = BoxLabels.of(
                found["boxes"],
                found["labels"],
                len(self.class_names),
                scores=found["scores"],
                grade=Grade.SILVER,
            )
        for name, kind in self._kinds.items():
            value = found[name]
            if name in self._own:
                assert self.task is not None
                boxes = labels[self.task]
                assert isinstance(boxes, BoxLabels)
                labels[name] = replace(boxes, details=details_of(kind, value, self._own[name]))
            elif kind == "maps":
                coverage = torch.ones(len(self.names[name]), device=value.device)
                confidence = found.get(name + CONFIDENCE)  # not in files of earlier versions
                labels[name] = MapLabels(value, confidence, coverage, Grade.SILVER)
            elif kind == "depth":
                labels[name] = DepthLabels(value, Grade.SILVER)
            else:
                labels[name] = TagLabels(value, torch.ones_like(value), Grade.SILVER)
        return labels


def farthest(settings: Mapping[str, Any], kinds: Mapping[str, str]) -> dict[str, float]:
    """Returns `AnyPredictor.farthest` by the settings of the run."""
    of_tasks = {n: settings["tasks"][n] for n, kind in kinds.items() if kind == "depth"}
    return {name: of["farthest"] for name, of in of_tasks.items() if "farthest" in of}
