"""A predictor that looks at several views of each picture.

Letters: H and W pixels.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detmtl.inference.predictor import AnyPredictor
from detmtl.inference.views import View, ViewSettings, mean_depth, merged, views, vote
from detmtl.structures.depth import DepthLabels
from detmtl.structures.labels import BoxLabels, Labels, MapLabels, TagLabels
from detmtl.tasks.detection import TestSettings


class ViewsPredictor:
    """Another predictor, asked for several views of each picture; see `ViewSettings`.

    Boxes of all views go through one suppression, as those of one view do: with the `nms` and
    `class_agnostic` of the task's `test`. As many stay as `detections` says, for each tile where there are
    tiles: a large picture is cut because it has more objects than one view shows. A map is a vote of the
    views, weighted by their confidence. A tag's probability is the mean over the views that show the whole
    picture, since a tile need not show what the picture does. A depth is the mean over all views. Tasks
    that say something of each box (masks, keypoints, attributes) are left out, with a warning: boxes of
    several views become one, what is said of them does not. Of labels of a kind of a task's own, those of
    the picture seen alone count.

    Attributes:
        left_out: names of these tasks.

    Args:
        predictor: the one that is asked: of a checkpoint or of an exported file.
        settings: which views.
        batch_size: views that are asked for at once.
    """

    def __init__(
        self,
        predictor: AnyPredictor,
        settings: ViewSettings,
        batch_size: int = 1,
    ):
        self.class_names, self.left_out = predictor.class_names, predictor.describing
        self.names = {n: of for n, of in predictor.names.items() if n not in self.left_out}
        self.kinds = {n: kind for n, kind in predictor.kinds.items() if n not in self.left_out}
        self.describing: tuple[str, ...] = ()
        self.farthest = predictor.farthest
        if self.left_out:
            warnings.warn(
                f"{', '.join(self.left_out)}: left out, since what is said of each box does not become one "
                "where several views of a picture are seen; without mirroring, scales and tiles it is told",
                stacklevel=2,
            )
        self._predictor, self._settings, self._batch_size = predictor, settings, batch_size

    def predict(self, images: Sequence[Tensor]) -> list[dict[str, Labels]]:
        """Returns per picture (3, H, W) uint8 RGB: task name -> labels in its own pixels, on the CPU, without
        the tasks `left_out`."""
        return [self._predict(image) for image in images]

    def decoders(self) -> dict[str, Any]:
        """Returns the other predictor's."""
        return self._predictor.decoders()

    def _predict(self, image: Tensor) -> dict[str, Labels]:
        size = (int(image.shape[1]), int(image.shape[2]))
        seen = views(*size, self._settings)
        found: list[Mapping[str, Labels]] = []
        for first in range(0, len(seen), self._batch_size):
            chunk = seen[first : first + self._batch_size]
            found += self._predictor.predict([view.of(image) for view in chunk])
        alone: Mapping[str, Labels] = {}
        if own := [name for name, labels in found[0].items() if not isinstance(labels, Labels)]:
            plain = View(0, 0, size[1], size[0], False)
            seen_alone = plain in seen
            alone = found[seen.index(plain)] if seen_alone else self._predictor.predict([image])[0]
        return {
            name: alone[name].to("cpu")
            if name in own
            else self._merged(name, [of_view[name].to("cpu") for of_view in found], seen, size)
            for name in found[0]
            if name not in self.left_out
        }

    def _merged(
        self, name: str, labels: Sequence[Labels], seen: Sequence[View], size: tuple[int, int]
    ) -> Labels:
        if isinstance(labels[0], MapLabels):
            maps = [one for one in labels if isinstance(one, MapLabels)]
            return vote(maps, seen, size, 0.0)
        if isinstance(labels[0], TagLabels):
            tags = [one for one in labels if isinstance(one, TagLabels)]
            whole = [
                one.targets for one, view in zip(tags, seen, strict=True) if view.shows_all(*size)
            ] or [one.targets for one in tags]
            return replace(tags[0], targets=torch.stack(whole).mean(0))
        if isinstance(labels[0], DepthLabels):
            return mean_depth([one for one in labels if isinstance(one, DepthLabels)], seen, size)
        boxes = [one for one in labels if isinstance(one, BoxLabels)]
        decoder = self.decoders().get(name)
        if decoder is None:  # a task of one's own, whose rules are not known
            return merged(boxes, seen, size, TestSettings().nms, True)
        tiles = {view.window for view in seen if not view.shows_all(*size)}
        most = decoder.detections * max(1, len(tiles))
        return merged(boxes, seen, size, decoder.nms, True, decoder.class_agnostic, most)
