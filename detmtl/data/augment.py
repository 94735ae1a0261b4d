"""Random changes of pictures and labels: what albumentations is told of them, and what it gives back.

Letters: H, W pixels of the file, h, w pixels of the network's picture, N boxes.
"""

import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from detmtl.data.augment_steps import Step, albumentations, copying, flat, transforms
from detmtl.data.box_table import clipped, labels_of, rows_of
from detmtl.data.fit import InputSettings, fit_size, resize
from detmtl.data.outlines import with_masks
from detmtl.data.points import shares_of, with_shares
from detmtl.data.source import Source
from detmtl.structures.depth import DepthLabels
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Labels, MapLabels
from detmtl.structures.settings import Settings

CODES, WEIGHTS = "mask", "map_weights"
"""Targets of albumentations under which a map travels. Its classes do so plus 1, so that 0, with which
every transform fills what comes in from outside, is `UNKNOWN`; outside weighs nothing, too."""

_TRIES = 8
"""Seeds with which `Augment.tried` tries the steps on a picture."""

DEPTH = "depth"
"""Target of albumentations under which depths travel; outside is 0, which is unknown there, too."""

L = TypeVar("L", bound=Labels)


class Picture(NamedTuple):
    """What `Augment` takes of one picture; see its call.

    Attributes:
        image, labels, seed, size: the call's arguments.
        room: (h, w, 3) uint8 of the network's size, where pixels of that size are put, `image` perhaps
            among them already; None: somewhere new.
    """

    image: np.ndarray
    labels: Mapping[str, Labels]
    seed: int
    size: tuple[int, int]
    room: np.ndarray | None = None


class AugmentSettings(Settings):
    """What is done to a training picture, in order, and which boxes outlive it."""

    steps: list[Step] = [{"HorizontalFlip": {"p": 0.5}}]
    """Each a transform of albumentations and its arguments: `- HorizontalFlip: {p: 0.5}`. Nested:
    `- OneOf: {p: 0.5, transforms: [{Blur: {}}, {GaussNoise: {}}]}`."""
    min_visibility: float = Field(default=0.1, ge=0, le=1)
    """A box of which less than this share is left becomes a region without class loss."""
    min_side: float = Field(default=1.0, ge=0)
    """A box narrower or lower than this, in pixels of the network's picture, is removed."""
    reduced: bool = True
    """Whether training pictures that are JPEGs of at least twice the network's size are decoded straight
    at a half, a quarter or an eighth: several times faster, and pixels differ by about a level
    (benchmarks/loader.py measures both). Pictures that are scored are always decoded in full."""

    def build(self, size: InputSettings) -> "Augment":
        """Returns the augmentation for pictures of `size`.

        Raises:
            InputError: an unknown step, or arguments that albumentations refuses.
        """
        return Augment(
            self.steps, size.short, size.long, self.min_visibility, self.min_side, self.reduced
        )


class Augment:
    """Fits a picture to the network's size, changes it at random and keeps its labels right.

    The steps run on the fitted, hence small picture; if they made it larger, it is fitted again.

    Boxes are clipped at the picture's edges after each step, and the visible share of each is kept
    account of through all of them: scaling takes nothing away, cropping does. An ordinary box of
    which less than `min_visibility` is left becomes `Ignore.REGION`, so that the fragment is trained
    neither as an object nor as background. Gone are only boxes wholly outside the picture, boxes
    with a side below `min_side`, and boxes that a dropout step covered up to less than
    `min_visibility`.

    Maps and depths move with the picture; what comes in from outside is unknown. A depth's values stay,
    whatever the zoom, see `DepthLabels`. Tags stay. Keypoints and outlines of boxes move as points; at
    the end outlines become masks within the boxes that are left. A step that mirrors the picture into
    its margin (border_mode 2 or 4) copies boxes, each with its class; outlines and keypoints it cannot
    copy, and pictures that have some are refused.

    Args:
        steps: transforms of albumentations with their arguments, see `AugmentSettings`.
        short, long: see `InputSettings`.
        min_visibility: share in [0, 1].
        min_side: pixels.
        reduced: see `AugmentSettings`; for whoever reads the pictures.

    Raises:
        InputError: an unknown step, or arguments that albumentations refuses; all of them at once.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        short: int,
        long: int,
        min_visibility: float = 0.1,
        min_side: float = 1.0,
        reduced: bool = False,
    ):
        self.short, self.long, self.reduced = short, long, reduced
        self.min_visibility, self.min_side = min_visibility, min_side
        problems: list[str] = []
        self._steps = transforms(steps, "augment.steps", problems)
        if problems:
            raise InputError(problems)
        self._copying = copying(self._steps)
        # No label_fields: the label encoder behind them remembers the first picture it saw. The rows'
        # numbers travel as a column of the boxes instead.
        params = albumentations.BboxParams("albumentations", min_visibility=min_visibility)
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "Got processor for (bboxes|keypoints)"
            )  # only pixels change: fine
            self._compose = albumentations.Compose(
                list(self._steps),
                bbox_params=params,
                keypoint_params=albumentations.KeypointParams("xy", remove_invisible=False),
                additional_targets={WEIGHTS: "mask", DEPTH: "mask"},
                is_check_shapes=False,  # maps and depths are brought to the picture's size here
            )
        # in place, because every step and nested composition holds this very object
        cast(Any, self._compose.processors["bboxes"]).filter = clipped
        # Boxes go in and come out as they are: a part of a composition clips them after each step and
        # leaves out the ways to and from other formats. Only points need those, see `_changed`.
        self._compose.main_compose = False

    def __call__(
        self,
        image: np.ndarray,
        labels: Mapping[str, Labels],
        seed: int,
        size: tuple[int, int] | None = None,
    ) -> tuple[Tensor, dict[str, Labels]]:
        """Returns image (3, h, w) uint8 and labels in its pixels, from image (H, W, 3) uint8 RGB.

        A pure function of its arguments: no global random state, nothing of earlier calls.

        Args:
            image: the picture, or a reduced copy of it.
            labels: in pixels of the picture.
            seed: of all that is random.
            size: height and width of the picture; None: those of `image`.

        Raises:
            InputError: a step cannot work on this picture (say a crop larger than it), or on its labels.
        """
        return self.several([Picture(image, labels, seed, size or _size(image))])[0]

    def several(self, pictures: Iterable[Picture]) -> list[tuple[Tensor, dict[str, Labels]]]:
        """Returns what a call returns, of each of some pictures.

        All pictures go through a stage before the next one begins: a decoder throws all other code out
        of the processor's caches, and what follows it alone takes several times as long.

        Args:
            pictures: each is at the network's size before the next is asked for.

        Raises:
            InputError: a step cannot work on one of them.
        """
        fitted = [p._replace(image=self._pixels(p.image, p.size, p.room)) for p in pictures]
        if not fitted:
            return []
        boxes = [_of(p.labels, BoxLabels) for p in fitted]
        rows = rows_of(boxes, [p.size for p in fitted])
        views = [_View.of(p, x, known) for p, x, known in zip(fitted, rows, boxes, strict=True)]
        if self._steps:
            views = [self._changed(v, p.seed, p.room) for v, p in zip(views, fitted, strict=True)]
        return self._results(views, fitted, boxes)

    def misfits(self, source: Source, to_be_mapped: bool = False) -> list[str]:
        """Returns a sentence for the lowest and the narrowest picture of a source, at the network's size, and
        for one without a map, if a step cannot work on it, as a crop cannot that is larger, or that looks for
        a map: it would end the run that draws it.

        A step that does not always fire, or that draws its size, may be missed.

        Args:
            source: whose pictures are drawn.
            to_be_mapped: whether a teacher has yet to write maps of them.
        """
        mapped = np.full(len(source), to_be_mapped)
        if source.maps is not None:
            mapped |= source.maps.present()
        kinds, where = np.unique(np.column_stack([source.sizes, mapped]), axis=0, return_index=True)
        fitted = np.array(
            [(*fit_size(h, w, self.short, self.long), m) for h, w, m in kinds.tolist()]
        )
        problems = []
        for at in dict.fromkeys(fitted.argmin(axis=0).tolist()):
            h, w, has_map = fitted[at].tolist()
            try:
                self.tried(h, w, bool(has_map))
            except InputError as problem:
                problems += [
                    f"{source.path(int(where[at]))}: {text}; leave out the picture, or change the step (a "
                    "crop takes `pad_if_needed: true`)"
                    for text in problem.problems
                ]
        return problems

    def tried(self, height: int, width: int, has_map: bool = True) -> set[tuple[int, int]]:
        """Returns heights and widths that the steps give a picture of that size, which is the network's, as
        far as some seeds show them.

        Raises:
            InputError: a step cannot work on it.
        """
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        somewhere = MapLabels(torch.zeros(height, width, dtype=torch.uint8), None, torch.ones(1))
        labels = {"maps": somewhere} if has_map else {}
        made = [self(image, labels, seed)[0] for seed in range(_TRIES)]
        return {(x.shape[1], x.shape[2]) for x in made}

    def fitted(self, image: np.ndarray, size: tuple[int, int] | None = None) -> Tensor:
        """Returns the picture (H, W, 3) at the network's size (3, h, w), nothing else changed.

        Given such a picture, this augmentation makes of it what it would make of the original.

        Args:
            image: the picture, or a reduced copy of it.
            size: height and width of the picture; None: those of `image`.
        """
        pixels = self._pixels(image, size or _size(image))
        return torch.from_numpy(pixels).permute(2, 0, 1)

    def _pixels(
        self, image: np.ndarray, size: tuple[int, int], room: np.ndarray | None = None
    ) -> np.ndarray:
        height, width = fit_size(*size, self.short, self.long)
        if _size(image) != (height, width):
            small = resize(torch.from_numpy(image).permute(2, 0, 1), height, width)
            image = small.permute(1, 2, 0).contiguous().numpy()
        if room is None or np.may_share_memory(image, room):
            return image
        room[:] = image
        return room

    def _changed(self, view: "_View", seed: int, room: np.ndarray | None) -> "_View":
        # One generator for all steps. Compose.set_random_seed would start each step's own generator
        # from the same seed: on every picture all steps with p: 0.5 would fire together or not at all.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        pixels, rows, masks, points = view.pixels, view.rows, view.masks, view.points
        if points is not None and self._copying:
            # Which of the copied points belong to which of the copied boxes, nothing tells.
            raise InputError(
                f"augment.steps: {' and '.join(dict.fromkeys(self._copying))} would mirror the picture into "
                "its margin (border_mode 2 or 4), and outlines and keypoints of boxes cannot follow; set "
                "border_mode: 0 there, or leave out masks and keypoints of data.details"
            )
        try:
            targets: dict[str, Any] = {
                "image": np.ascontiguousarray(pixels),
                "bboxes": rows,
                **masks,
            }
            if points is not None:  # of albumentations' points whole numbers are pixels' middles
                targets["keypoints"] = points * (pixels.shape[1], pixels.shape[0]) - 0.5
                self._compose.processors["keypoints"].preprocess(targets)
            out = self._compose(**targets)
            if points is not None:
                self._compose.processors["keypoints"].postprocess(out)
        except Exception as error:
            height, width = pixels.shape[:2]
            raise InputError(
                f"augment.steps: {self._failed(error)} failed on a picture of {height} x {width} pixels "
                f"(height x width) with {len(rows)} boxes: {error}"
            ) from error
        changed = out["image"]
        if changed.dtype != np.uint8 or changed.ndim != 3 or changed.shape[2] != 3:
            raise InputError(
                f"augment.steps: they turned the picture into {changed.dtype} of shape {changed.shape}; "
                "the network takes uint8 (H, W, 3)"
            )
        if points is not None:
            moved = out["keypoints"][:, :2]
            if len(moved) != len(points):
                raise InputError(
                    f"augment.steps: they lost {len(points) - len(moved)} of {len(points)} points of "
                    "outlines and keypoints; find the step by leaving out one after the other"
                )
            points = (moved + 0.5) / (changed.shape[1], changed.shape[0])
        if room is not None and changed.shape == room.shape:
            if changed is not room:
                room[:] = changed  # at once, while it is in the processor's caches
            changed = room
        masks = {name: out[name] for name in masks}
        return _View(changed, out["bboxes"], masks, points)

    def _results(
        self,
        views: Sequence["_View"],
        pictures: Sequence[Picture],
        boxes: Sequence[Mapping[str, BoxLabels]],
    ) -> list[tuple[Tensor, dict[str, Labels]]]:
        images = [self._image(v.pixels) for v in views]
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        moved = [
            with_shares(known, v.points, *size)
            for known, v, size in zip(boxes, views, sizes, strict=True)
        ]
        rows = [v.rows for v in views]
        left = labels_of(rows, moved, sizes, self.min_visibility, self.min_side)
        return [
            (image, {**p.labels, **_finished(known), **_unmasked(p.labels, v.masks, size)})
            for image, p, known, v, size in zip(images, pictures, left, views, sizes, strict=True)
        ]

    def _image(self, pixels: np.ndarray) -> Tensor:
        if min(pixels.shape[:2]) > self.short or max(pixels.shape[:2]) > self.long:
            return self.fitted(pixels)
        return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)

    def _failed(self, error: Exception) -> str:
        names = {id(step): type(step).__name__ for step in flat(self._steps)}
        trace, found = error.__traceback__, "a step"
        while trace is not None:
            found = names.get(id(trace.tb_frame.f_locals.get("self")), found)
            trace = trace.tb_next
        return found


@dataclass(frozen=True)
class _View:
    """A picture with its labels as albumentations takes and gives them.

    Attributes:
        pixels: (h, w, 3) uint8 RGB.
        rows: (N, 6) of all labels' boxes, see `detmtl.data.box_table`.
        masks: target -> (h, w), the map and the depth.
        points: (P, 2), see `detmtl.data.points`; None: there are none.
    """

    pixels: np.ndarray
    rows: np.ndarray
    masks: dict[str, np.ndarray]
    points: np.ndarray | None

    @classmethod
    def of(cls, picture: Picture, rows: np.ndarray, boxes: Mapping[str, BoxLabels]) -> "_View":
        """Takes a picture whose image is at the network's size already."""
        pixels, labels, size = picture.image, picture.labels, picture.size
        maps, depths = _of(labels, MapLabels), _of(labels, DepthLabels)
        assert len(maps) <= 1 and len(depths) <= 1, "albumentations is told of one map"
        masks: dict[str, np.ndarray] = {}
        for known in maps.values():
            masks = _masks(known.resized(size, _size(pixels)))
        for known in depths.values():
            masks[DEPTH] = known.resized(size, _size(pixels)).depth.numpy()
        return cls(pixels, rows, masks, shares_of(boxes, *size))


def _of(labels: Mapping[str, Labels], kind: type[L]) -> dict[str, L]:
    return {name: known for name, known in labels.items() if isinstance(known, kind)}


def _masks(labels: MapLabels) -> dict[str, np.ndarray]:
    masks = {CODES: labels.classes.numpy() + np.uint8(1)}  # 255 becomes 0
    return masks if labels.weights is None else masks | {WEIGHTS: labels.weights.numpy()}


def _unmasked(
    labels: Mapping[str, Labels], masks: Mapping[str, np.ndarray], size: tuple[int, int]
) -> dict[str, Labels]:
    """Returns the maps and depths among labels as they are in masks, fitted to height and width."""
    out: dict[str, Labels] = {}
    for name, known in _of(labels, MapLabels).items():
        classes = torch.from_numpy(np.ascontiguousarray(masks[CODES]) - np.uint8(1))
        weights = masks.get(WEIGHTS)
        if weights is not None:
            weights = torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float32))
        moved = replace(known, classes=classes, weights=weights)
        out[name] = moved.resized(_size(classes), size)
    for name, known in _of(labels, DepthLabels).items():
        depth = torch.from_numpy(np.ascontiguousarray(masks[DEPTH], dtype=np.float32))
        out[name] = replace(known, depth=depth).resized(_size(depth), size)
    return out


def _finished(labels: Mapping[str, BoxLabels]) -> dict[str, BoxLabels]:
    return {name: with_masks(known) for name, known in labels.items()}


def _size(image: np.ndarray | Tensor) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
