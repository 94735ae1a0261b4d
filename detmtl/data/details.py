"""Attributes, masks and keypoints of boxes as flat arrays, and which of them are read.

Letters: N boxes of all pictures, A attributes, T values of all attributes, K keypoints, P points of
outlines, R rings.
"""

import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches

import numpy as np
import torch
from pydantic import model_validator

from detmtl.data.flat import Flat, gather
from detmtl.structures.classes import LabelSpace
from detmtl.structures.details import Details, Outlines, value_groups
from detmtl.structures.errors import InputError
from detmtl.structures.settings import Settings


class _Values(LabelSpace):
    """The values of an attribute. There is no setting by which unknown ones are dropped."""

    def class_of(self, source_names: Iterable[str], where: str) -> list[int]:
        """Returns for each name its value, see `LabelSpace.class_of`.

        Raises:
            InputError: a name is no value.
        """
        names, known = list(source_names), self._index()
        problems = []
        for name in names:
            if name not in known:
                close = get_close_matches(name, known, n=1)
                hint = (
                    f"nearest: '{close[0]}'" if close else f"they are {', '.join(self.names[:8])}"
                )
                problems.append(
                    f"{where}: '{name}' is none of its values ({hint}); add it to {self.setting}, as a value "
                    "or among the names of one"
                )
        if problems:
            raise InputError(problems)
        return [known[name] for name in names]


class DetailClasses(Settings):
    """What is read of each box beyond place and class. Whatever a file does not say is unknown.

    Attributes:
        attributes: attribute -> its values in order, or value -> names by which sources call it.
        keypoints: class of boxes -> names of its keypoints in order. Names that differ in `left` and
            `right` alone are pairs that a mirrored picture swaps.
        masks: whether the shapes of boxes are read.
    """

    attributes: dict[str, list[str] | dict[str, list[str]]] = {}
    keypoints: dict[str, list[str]] = {}
    masks: bool = False

    @model_validator(mode="after")
    def _consistent(self) -> "DetailClasses":
        named = [("attributes", n, values) for n, values in self.attributes.items()]
        named += [("keypoints", n, points) for n, points in self.keypoints.items()]
        for kind, name, members in named:
            if not members:
                raise ValueError(f"{kind}.{name}: lists nothing; name at least one")
            if slashed := [x for x in (name, *members) if not x or "/" in x]:
                raise ValueError(
                    f"{kind}.{name}: '{slashed[0]}' may be neither empty nor have a slash"
                )
            if len(set(members)) < len(members):
                raise ValueError(f"{kind}.{name}: lists a name twice; keep one")
        for name, points in self.keypoints.items():
            for point, partner in zip(points, map(_mirrored, points), strict=True):
                if _SIDED.search(point) and partner not in points:
                    warnings.warn(
                        f"data.details.keypoints.{name}: lists '{point}' without '{partner}': a mirrored "
                        "picture keeps its name; list both, or mirror no pictures",
                        stacklevel=2,
                    )
        if not (self.attributes or self.keypoints or self.masks):
            raise ValueError("names no attributes, no keypoints and no masks; leave it out")
        return self

    def spaces(self) -> dict[str, LabelSpace]:
        """Returns attribute -> its values with their members."""
        return {
            name: _Values.of(values, setting=f"data.details.attributes.{name}")
            for name, values in self.attributes.items()
        }

    def attribute_names(self) -> tuple[str, ...]:
        """Returns the T values as `attribute/value`."""
        return tuple(f"{name}/{v}" for name, values in self.attributes.items() for v in values)

    def keypoint_names(self) -> tuple[str, ...]:
        """Returns the K keypoints as `class/keypoint`."""
        return tuple(
            f"{name}/{point}" for name, points in self.keypoints.items() for point in points
        )

    def names(self) -> dict[str, tuple[str, ...]]:
        """Returns kind -> names, of the kinds that have some."""
        names = {"attributes": self.attribute_names(), "keypoints": self.keypoint_names()}
        return {kind: of for kind, of in names.items() if of}


@dataclass(frozen=True, eq=False)
class FlatDetails(Flat):
    """Details of the N boxes of a source; a kind that nobody looked for is None.

    Attributes:
        attributes: (N, A) int16, -1 unknown.
        keypoints: (N, K, 3) float32; areas: (N,) float32; see `Details`.
        points, rings, shapes: (P, 2) float32, (R+1,) int64, (N+1,) int64; see `Outlines`.
        attribute_names, keypoint_names: see `Details`.
    """

    attributes: np.ndarray | None = None
    keypoints: np.ndarray | None = None
    areas: np.ndarray | None = None
    points: np.ndarray | None = None
    rings: np.ndarray | None = None
    shapes: np.ndarray | None = None
    attribute_names: tuple[str, ...] = ()
    keypoint_names: tuple[str, ...] = ()

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the arrays that there are, by name."""
        every = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: x for name, x in every.items() if isinstance(x, np.ndarray)}

    def take(self, rows: np.ndarray) -> "FlatDetails":
        """Returns the details of the boxes at `rows`."""
        picked = {
            name: x[rows]
            for name, x in self.arrays().items()
            if name in ("attributes", "keypoints", "areas")
        }
        if self.shapes is not None:
            assert self.rings is not None and self.points is not None
            mine, shapes = gather(self.shapes, rows)
            points, rings = gather(self.rings, mine)
            picked |= {"points": self.points[points], "rings": rings, "shapes": shapes}
        return replace(self, **picked)

    def known(self) -> dict[str, np.ndarray]:
        """Returns `attributes.NAME`, `keypoints.CLASS` and `masks`, those that were looked for -> (N,) bool:
        of which boxes something is known of it."""
        known: dict[str, np.ndarray] = {}
        if self.attributes is not None:
            for a, name in enumerate(value_groups(self.attribute_names)):
                known[f"attributes.{name}"] = self.attributes[:, a] >= 0
        if self.keypoints is not None:
            columns = np.array([name.partition("/")[0] for name in self.keypoint_names])
            for name in dict.fromkeys(columns.tolist()):
                seen = self.keypoints[:, columns == name, 2] > 0
                known[f"keypoints.{name}"] = np.asarray(seen.any(axis=1))
        if self.shapes is not None:
            known["masks"] = np.diff(self.shapes) > 0
        return known

    def labels(self, rows: slice) -> Details:
        """Returns the details of some boxes that follow each other."""
        outlines = None
        if self.shapes is not None:
            assert self.rings is not None and self.points is not None
            shapes = self.shapes[rows.start : rows.stop + 1]
            rings = self.rings[int(shapes[0]) : int(shapes[-1]) + 1]
            points = self.points[int(rings[0]) : int(rings[-1])]
            outlines = Outlines(
                _tensor(points), _tensor(rings - rings[0]), _tensor(shapes - shapes[0])
            )
        attributes = None if self.attributes is None else _tensor(self.attributes[rows]).long()
        return Details(
            attributes=attributes,
            keypoints=None if self.keypoints is None else _tensor(self.keypoints[rows]),
            areas=None if self.areas is None else _tensor(self.areas[rows]),
            outlines=outlines,
            attribute_names=self.attribute_names,
            keypoint_names=self.keypoint_names,
        )


def nowhere_known(
    wanted: DetailClasses, found: Sequence[FlatDetails | None], where: str
) -> list[str]:
    """Returns a sentence for each attribute, keypoints of a class, or masks that none of the sources has:
    a name is misspelt, and nothing would be learned."""
    kinds = {f"attributes.{name}": False for name in wanted.attributes}
    kinds |= {f"keypoints.{name}": False for name in wanted.keypoints}
    kinds |= {"masks": False} if wanted.masks else {}
    for one in found:
        for kind, known in ({} if one is None else one.known()).items():
            kinds[kind] |= bool(known.any())
    return [
        f"data.details.{kind}: {where} says anything of it; correct the name, or leave it out"
        for kind, known in kinds.items()
        if not known
    ]


def mirror_partners(names: Sequence[str]) -> list[int]:
    """Returns for each of K keypoints `class/keypoint` the place of the one that a mirrored picture shows
    there: points of a class whose names differ in left and right alone change places, the others stay."""
    place = {name: k for k, name in enumerate(names)}
    partners = []
    for k, name in enumerate(names):
        owner, _, point = name.rpartition("/")
        partners.append(place.get(f"{owner}/{_mirrored(point)}", k))
    return partners


_OPPOSITE = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"} | {
    "LEFT": "RIGHT",
    "RIGHT": "LEFT",
}
_SIDED = re.compile(r"(?<![A-Za-z])(left|right|LEFT|RIGHT)|Left|Right")
"""Names that surely tell a side: `eye_left`, `leftEye` or `eyeLeft`, but not `bright`."""


def _mirrored(point: str) -> str:
    return re.sub("|".join(_OPPOSITE), lambda side: _OPPOSITE[side[0]], point)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array))  # a copy: mapped arrays are read-only
