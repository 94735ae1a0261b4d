"""Sources: pictures of one origin with what is known of each.

A source is read once from its files (COCO, VOC, YOLO, a plain folder), checked, and kept as flat
arrays in the run's cache folder; from then on the arrays are mapped, and no file is parsed again.
Letters: I pictures, N boxes of all pictures, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from detmtl.data.depth import Depths
from detmtl.data.flat import Annotations, FileNames, Flat
from detmtl.data.images import (
    Progress,
    content_hashes,
    decoded,
    read_image,
    read_reduced,
    reduction,
    wrong_size,
)
from detmtl.data.maps import SomeMaps
from detmtl.data.tags import BoxTags, Tags
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Labels
from detmtl.structures.sample import ImageInfo


@dataclass(frozen=True, eq=False)
class Source(Flat):
    """Pictures of one origin with what is known of each.

    Attributes:
        name: of the source in the settings.
        classes: the C names of the label space.
        files: of the pictures; `files[i]` is an absolute path.
        ids: (I,) int64, the annotation file's image ids, or positions where there are none.
        sizes: (I, 2) int32, height and width as a person sees the picture (EXIF applied).
        annotations: the boxes; None: nobody looked for boxes in these pictures.
        coverage: (I, C) float32 in [0, 1], or (1, C) shared by all pictures; see `BoxLabels`.
        weight: of its loss.
        grade: SILVER if a model wrote its labels, or some of them.
        cache: folder in which content hashes are kept; None: they are computed at each call.
        maps: the semantic maps; None: nobody looked at any pixel.
        tags: the image tags; None: nobody looked for any.
        depth: the pixels' depths; None: nobody measured any.
        notes: sentences on what its files leave open, for who reads the plan of a run.
    """

    name: str
    classes: tuple[str, ...]
    files: FileNames
    ids: np.ndarray
    sizes: np.ndarray
    annotations: Annotations | None
    coverage: np.ndarray
    weight: float = 1.0
    grade: Grade = Grade.GOLD
    cache: str | None = None
    maps: SomeMaps | None = None
    tags: Tags | BoxTags | None = None
    depth: Depths | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Returns the number of pictures I."""
        return len(self.ids)

    def path(self, i: int) -> str:
        """Returns the absolute path of picture i."""
        return self.files[i]

    def info(self, i: int) -> ImageInfo:
        """Returns where picture i comes from (without its content hash: see `hashes`)."""
        height, width = self.sizes[i].tolist()
        return ImageInfo(int(self.ids[i]), self.files[i], height, width, self.name)

    def read(self, i: int, data: bytes | None = None, room: np.ndarray | None = None) -> np.ndarray:
        """Returns picture i as (H, W, 3) uint8 RGB.

        Args:
            i: which.
            data: the file's bytes, where they are known already.
            room: of the picture's size, where it may be put; None: somewhere new.

        Raises:
            InputError: the file is missing or broken, or its size is not what the annotations say.
        """
        image = None if data is None else decoded(data, room)
        if image is None:
            image = read_image(self.files[i], data)
        self._check_size(i, (image.shape[0], image.shape[1]))
        return image

    def read_reduced(self, i: int, short: int, long: int, data: bytes | None = None) -> np.ndarray:
        """Returns picture i as (h, w, 3) uint8 RGB, perhaps already smaller than its file's; see
        `detmtl.data.images.read_reduced`.

        Raises:
            InputError: as `read`.
        """
        height, width = self.sizes[i].tolist()
        if reduction(height, width, short, long) == 1:
            return self.read(i, data)
        image, size = read_reduced(self.files[i], short, long, data)
        self._check_size(i, size)
        return image

    def _check_size(self, i: int, found: tuple[int, int]) -> None:
        height, width = self.sizes[i].tolist()
        if found != (height, width):
            who = f"source '{self.name}'"
            raise InputError(wrong_size(self.files[i], found, (height, width), who))

    def labels(self, i: int) -> dict[str, Labels]:
        """Returns what is known of picture i: "boxes", "maps", "tags" and "depth", without an entry where
        nobody looked.

        Raises:
            InputError: the file of the map or of the depth is broken or does not fit.
        """
        out: dict[str, Labels] = {}
        boxes = self.boxes(i)
        if boxes is not None:
            out["boxes"] = boxes
        if self.maps is not None:
            found = self.maps.labels(i, int(self.sizes[i, 0]), int(self.sizes[i, 1]))
            if found is not None:
                out["maps"] = found
        if self.tags is not None:
            tags = self.tags.labels(i, boxes)
            if tags is not None:
                out["tags"] = tags
        if self.depth is not None:
            depth = self.depth.labels(i, int(self.sizes[i, 0]), int(self.sizes[i, 1]))
            if depth is not None:
                out["depth"] = depth
        return out

    def labelled(self) -> bool:
        """Whether somebody, a person or a model, said anything of the pictures."""
        said = (self.annotations, self.maps, self.depth)
        return any(x is not None for x in said) or isinstance(self.tags, Tags)

    def boxes(self, i: int) -> BoxLabels | None:
        """Returns the boxes of picture i, with coverage 0 of every class if nobody looked in this one; None
        if nobody looked for boxes in any."""
        if self.annotations is None:
            return None
        a, rows = self.annotations, self.annotations.rows(i)
        coverage = self.coverage[i if len(self.coverage) > 1 else 0]
        return BoxLabels(
            boxes=_tensor(a.boxes[rows]),
            classes=torch.from_numpy(a.classes[rows].astype(np.int64)),
            scores=_tensor(a.scores[rows]),
            weights=_tensor(a.weights[rows]),
            ignore=_tensor(a.ignore[rows]),
            grade=_tensor(a.grade[rows]),
            coverage=_tensor(coverage),
            details=None if a.details is None else a.details.labels(rows),
        )

    def derived(self, i: int, labels: dict[str, Labels]) -> dict[str, Labels]:
        """Returns the labels of picture i with those that follow from others brought up to date: what was
        cropped away is not shown any more."""
        boxes = labels.get("boxes")
        if isinstance(self.tags, BoxTags) and isinstance(boxes, BoxLabels):
            tags = self.tags.labels(i, boxes)
            assert tags is not None
            return labels | {"tags": tags}
        return labels

    def grades(self) -> set[Grade]:
        """Returns who wrote its labels: on one picture both may have."""
        own = () if self.annotations is None else np.unique(self.annotations.grade).tolist()
        return {self.grade, *map(Grade, own)}

    def searched(self) -> dict[str, np.ndarray]:
        """Returns for "boxes" (C,), "maps" and "tags" bool, of which classes some picture tells where they
        are and where not; without an entry where nobody looked."""
        out = {}
        if self.annotations is not None:
            out["boxes"] = (self.coverage > 0).any(axis=0)
        if self.maps is not None:
            out["maps"] = self.maps.searched()
        if self.tags is not None:
            out["tags"] = self.tags.searched(out.get("boxes"))
        return out

    def boxes_by_people(self) -> "Source":
        """Returns the source with the boxes of people alone. Where a model wrote the source, what was looked
        for is the model's word, and nobody else's."""
        a = self.annotations
        if a is None or self.grade is not Grade.SILVER:
            return self
        own = a.grade == Grade.GOLD
        nothing = np.zeros((1, len(self.classes)), dtype=np.float32)
        return replace(self, annotations=a.where(own) if own.any() else None, coverage=nothing)

    def subset(self, indices: Sequence[int] | np.ndarray) -> "Source":
        """Returns a source of the pictures at `indices`, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            files=self.files.take(indices),
            ids=self.ids[indices],
            sizes=self.sizes[indices],
            annotations=None if self.annotations is None else self.annotations.take(indices),
            coverage=self.coverage if len(self.coverage) == 1 else self.coverage[indices],
            maps=None if self.maps is None else self.maps.take(indices),
            tags=None if self.tags is None else self.tags.take(indices),
            depth=None if self.depth is None else self.depth.take(indices),
        )

    def hashes(self, progress: Progress | None = None) -> list[str]:
        """Returns the sha256 of each picture's bytes; files that did not change since the last call
        are not read again.

        Args:
            progress: called with (pictures done, pictures in all).
        """
        return content_hashes(
            list(self.files.paths()), None if self.cache is None else Path(self.cache), progress
        )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))  # a copy: mapped arrays are read-only
