"""A picture with what is known of it, and batches of them.

Letters: B pictures, H and W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from detmtl.structures.labels import Grade, Labels, Padded, pad

DIVISOR = 32
"""Sides of a batch are multiples of it: the stride of the backbone's last level."""


@dataclass(frozen=True)
class ImageInfo:
    """Where a picture comes from.

    Attributes:
        id: the id in the annotation file (COCO's image id), or the position where there is none.
        path: the file.
        height, width: pixels of the file as a person sees it (EXIF rotation applied).
        source: name of the source in the settings.
        content_hash: sha256 of the file's bytes, or "" where it was not needed.
    """

    id: int
    path: str
    height: int
    width: int
    source: str
    content_hash: str = ""


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture as the network will see it.

    Attributes:
        image: (3, H, W) uint8 RGB.
        labels: task name -> labels; no entry: nobody looked; empty labels: looked, nothing there.
        info: of the file, before any resizing.
        group: index of the source in the mix.
        weight: weight of the source's loss.
        grade: of the source.
        seed: of its augmentation, in [0, 2**64); 0 where nothing is drawn, as in evaluation.
    """

    image: Tensor
    labels: Mapping[str, Labels]
    info: ImageInfo
    group: int = 0
    weight: float = 1.0
    grade: Grade = Grade.GOLD
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """Pictures padded at the right and the bottom to one size, with their labels.

    Attributes:
        images: (B, 3, H, W) uint8 RGB; H and W are multiples of `divisor`; padding is 0.
        sizes: (B, 2) int64, true height and width of each picture inside `images`.
        labels: task name -> padded labels; a task that no picture has labels for is absent.
        infos: of each picture.
        groups: (B,) int64, index of each picture's source in the mix.
        weights: (B,) float32, weight of each picture's source.
        grades: (B,) uint8, `Grade` of each picture's source.
        seeds: (B,) int64, the bits of each picture's seed, for what a task draws at random; None: all 0.
    """

    images: Tensor
    sizes: Tensor
    labels: Mapping[str, Padded]
    infos: tuple[ImageInfo, ...]
    groups: Tensor
    weights: Tensor
    grades: Tensor
    seeds: Tensor | None = None

    @classmethod
    def of(
        cls, samples: Sequence[Sample], divisor: int = DIVISOR, canvas: np.ndarray | None = None
    ) -> "Batch":
        """Pads and stacks samples (at least one).

        Args:
            samples: the pictures.
            divisor: see `images`.
            canvas: what `canvas_of` returned; if it has the right size it becomes the batch, and
                images that lie in it at their place are not copied.
        """
        sizes = np.array([s.image.shape[-2:] for s in samples])
        images = canvas_of(sizes, divisor, canvas)
        height, width = images.shape[1:3]
        for image, s, (h, w) in zip(images, samples, sizes, strict=True):
            pixels = s.image.permute(1, 2, 0).numpy()
            if not _same_place(image[:h, :w], pixels):
                image[:h, :w] = pixels
            image[:h, w:] = 0
            image[h:] = 0
        tasks = sorted({name for s in samples for name in s.labels})
        return cls(
            images=torch.from_numpy(images).permute(0, 3, 1, 2),
            sizes=torch.from_numpy(sizes),
            labels={
                name: pad([s.labels.get(name) for s in samples], height, width) for name in tasks
            },
            infos=tuple(s.info for s in samples),
            groups=torch.from_numpy(np.array([s.group for s in samples])),
            weights=torch.from_numpy(np.array([s.weight for s in samples], np.float32)),
            grades=torch.from_numpy(np.array([s.grade for s in samples], np.uint8)),
            seeds=torch.from_numpy(np.array([s.seed for s in samples], np.uint64).view(np.int64)),
        )

    def __len__(self) -> int:
        return len(self.infos)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> "Batch":
        """Returns a copy on `device`; from pinned memory the copy overlaps with the device's work."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=non_blocking),
            sizes=self.sizes.to(device, non_blocking=non_blocking),
            labels={k: v.to(device, non_blocking) for k, v in self.labels.items()},
            groups=self.groups.to(device, non_blocking=non_blocking),
            weights=self.weights.to(device, non_blocking=non_blocking),
            grades=self.grades.to(device, non_blocking=non_blocking),
            seeds=None if self.seeds is None else self.seeds.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Batch":
        """Returns a copy in page-locked memory (called by torch's DataLoader)."""
        return replace(
            self,
            images=self.images.pin_memory(),
            sizes=self.sizes.pin_memory(),
            labels={k: v.pin_memory() for k, v in self.labels.items()},
            groups=self.groups.pin_memory(),
            weights=self.weights.pin_memory(),
            grades=self.grades.pin_memory(),
            seeds=None if self.seeds is None else self.seeds.pin_memory(),
        )


def _same_place(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two arrays are the same elements of the same memory; a crop is a view of its picture, so
    that memory in common says little."""
    return a.ctypes.data == b.ctypes.data and a.strides == b.strides and a.shape == b.shape


def canvas_of(
    sizes: np.ndarray, divisor: int = DIVISOR, canvas: np.ndarray | None = None
) -> np.ndarray:
    """Returns (B, H, W, 3) uint8 of whatever was in memory, with room for pictures of `sizes` (B, 2) at
    the top left: channels last, as pictures come from the decoder and as the network wants them.

    Args:
        sizes: height and width of each.
        divisor: of H and W.
        canvas: is returned if it is of that size.
    """
    height, width = (-(-int(side) // divisor) * divisor for side in sizes.max(axis=0))
    shape = (len(sizes), height, width, 3)
    return canvas if canvas is not None and canvas.shape == shape else np.empty(shape, np.uint8)
