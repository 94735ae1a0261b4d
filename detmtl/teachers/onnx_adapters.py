"""How a user declares an ONNX network: what goes in, what comes out, and how boxes are chosen.

Letters: B pictures, N candidate boxes, S places for classes (see slots.py), H and W pixels of the
network's input.
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, model_validator

from detmtl.structures.errors import InputError
from detmtl.teachers.onnx_declared import BoxCode, BoxReader, Detr, Unit, Yolo, scores_and_boxes
from detmtl.teachers.onnx_input import PictureSettings, Pixels, Resize
from detmtl.teachers.onnx_maps import MapFormat
from detmtl.teachers.onnx_outputs import FastestDet, Format, Shape, Yolox, the_first


class BoxAdapter(PictureSettings):
    """The base of the detectors; a family adds `kind`, and builds its `Format`."""

    nms: float | None = Field(default=0.6, gt=0, le=1)
    """Of two boxes of one class that overlap more than this (IoU), the better stays; null: all."""
    best_class: bool = True
    """Whether a candidate box has only its best class, or every class that reaches the floor."""
    max_boxes: PositiveInt = 300
    """The most boxes of a picture."""

    usual: ClassVar[Pixels]
    """The family's pixel values."""

    @abstractmethod
    def build(self, shapes: Mapping[str, Shape], size: tuple[int, int], num_slots: int) -> Format:
        """Returns the format of a network with outputs of these shapes, input size H, W and S places."""


class YoloxAdapter(BoxAdapter):
    """YOLOX without its decoding in the graph."""

    kind: Literal["yolox"] = "yolox"
    resize: Resize = "corner"
    color: Literal["rgb", "bgr"] = "bgr"
    strides: tuple[PositiveInt, ...] = (8, 16, 32)
    usual: ClassVar[Pixels] = "raw"

    def build(self, shapes: Mapping[str, Shape], size: tuple[int, int], num_slots: int) -> Format:
        _require_multiple(size, max(self.strides), "yolox")
        return Yolox((next(iter(shapes)),), size, self.strides, num_slots)


class FastestDetAdapter(BoxAdapter):
    """FastestDet."""

    kind: Literal["fastestdet"] = "fastestdet"
    resize: Resize = "stretch"
    color: Literal["rgb", "bgr"] = "bgr"
    nms: float | None = Field(default=0.45, gt=0, le=1)
    stride: PositiveInt = 16
    usual: ClassVar[Pixels] = "unit"

    def build(self, shapes: Mapping[str, Shape], size: tuple[int, int], num_slots: int) -> Format:
        _require_multiple(size, self.stride, "fastestdet")
        return FastestDet((next(iter(shapes)),), size, self.stride, num_slots)


class YoloAdapter(BoxAdapter):
    """One tensor of boxes and scores; as it stands it is what YOLOv8 and v11 export.

    YOLOv5, v7: `objectness: true`. YOLOv10, and exports with suppression inside: `suppressed: true`.
    """

    kind: Literal["yolo"] = "yolo"
    output: str | None = None
    """Its name; None: the first output."""
    layout: Literal["rows", "columns"] | None = None
    """Whether a candidate is a row, (B, N, F), or a column, (B, F, N); None: told by the shape."""
    boxes: BoxCode | None = None
    """None: cxcywh, or xyxy where they are suppressed already."""
    unit: Unit = "pixels"
    """Of the network's input, or fractions of its sides."""
    objectness: bool = False
    """Whether the fifth number of a candidate is its objectness."""
    sigmoid: bool = False
    """Whether scores (and objectness) are logits."""
    suppressed: bool = False
    """Whether a candidate is box, score and class, chosen already; `nms` is null then."""
    usual: ClassVar[Pixels] = "unit"

    @model_validator(mode="before")
    @classmethod
    def _not_twice(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("suppressed") is True:
            if given.get("nms") is not None:
                raise ValueError("suppressed boxes are not suppressed again; leave nms out")
            return {**given, "nms": None}
        return given

    def build(self, shapes: Mapping[str, Shape], size: tuple[int, int], num_slots: int) -> Format:
        if self.suppressed and (self.objectness or self.sigmoid):
            raise InputError(
                "teacher.adapter: suppressed boxes have a score and a class each; leave objectness and "
                "sigmoid out"
            )
        return Yolo(
            the_first(shapes, self.output, "teacher.adapter.output"),
            BoxReader(self.boxes or ("xyxy" if self.suppressed else "cxcywh"), self.unit, size),
            num_slots,
            self.objectness,
            self.sigmoid,
            self.suppressed,
            None if self.layout is None else self.layout == "columns",
        )


class DetrAdapter(BoxAdapter):
    """Two tensors, scores and boxes; as it stands it is DETR.

    Deformable DETR, RT-DETR, D-FINE: `scores: sigmoid`. Detectors that give decoded boxes and scores
    apart from each other: `scores: none, boxes: xyxy, unit: pixels, nms: 0.6`.
    """

    kind: Literal["detr"] = "detr"
    resize: Resize = "stretch"
    antialias: bool = True
    nms: float | None = Field(default=None, gt=0, le=1)
    scores_output: str | None = None
    """Its name; None: told by the shapes."""
    boxes_output: str | None = None
    """Its name; None: told by the shapes."""
    scores: Literal["softmax", "sigmoid", "none"] = "softmax"
    """What makes scores of the first tensor."""
    background: Literal["first", "last", "none"] | None = None
    """Where a place that means no object stands beside the classes; None: last after a softmax, else
    none."""
    boxes: BoxCode = "cxcywh"
    unit: Unit = "fractions"
    usual: ClassVar[Pixels] = "imagenet"

    def build(self, shapes: Mapping[str, Shape], size: tuple[int, int], num_slots: int) -> Format:
        background = self.background or ("last" if self.scores == "softmax" else "none")
        width = num_slots + (background != "none")
        outputs = scores_and_boxes(shapes, self.scores_output, self.boxes_output, width)
        boxes = BoxReader(self.boxes, self.unit, size)
        return Detr(outputs, boxes, num_slots, self.scores, background)


class MapAdapter(PictureSettings):
    """A class for each pixel: class ids (B, H, W), or scores (B, S, h, w) or (B, h, w, S).

    Of several classes, floats that are whole throughout are ids as integers are. Where `teacher.classes`
    names a single place, only integers are ids.
    """

    kind: Literal["map"] = "map"
    resize: Resize = "stretch"
    antialias: bool = True
    output: str | None = None
    """Its name; None: the first output."""
    scores: Literal["softmax", "sigmoid", "none"] = "softmax"
    """What makes probabilities of scores; class ids have none. After a sigmoid, which knows no
    background, a pixel of no class is one of which no class says more than a half. A single class needs
    sigmoid or none, and then what it is not is the background."""
    channels: Literal["first", "last"] | None = None
    """Where S stands in the shape of scores; None: told by the shape."""
    background: list[str] = ["background", "__background__"]
    """The class names that mean none of the others."""
    usual: ClassVar[Pixels] = "imagenet"

    def build(self, shapes: Mapping[str, Shape], num_slots: int, has_rest: bool) -> MapFormat:
        """Returns the format of a network with outputs of these shapes and S places, of which one
        is the background or none is."""
        outputs = the_first(shapes, self.output, "teacher.adapter.output")
        last = None if self.channels is None else self.channels == "last"
        by_itself = self.scores == "sigmoid" or (self.scores == "none" and num_slots == 1)
        return MapFormat(outputs[0], num_slots, self.scores, last, by_itself and not has_rest)


AnyAdapter = Annotated[
    YoloxAdapter | FastestDetAdapter | YoloAdapter | DetrAdapter | MapAdapter,
    Field(discriminator="kind"),
]


def _require_multiple(size: tuple[int, int], stride: int, kind: str) -> None:
    if size[0] % stride or size[1] % stride:
        raise InputError(
            f"teacher.adapter: {kind} needs an input whose sides are multiples of the stride {stride}, "
            f"the network's is {size[0]} x {size[1]}"
        )
