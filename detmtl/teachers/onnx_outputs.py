"""How pictures go into a network of a known family, and what its outputs mean."""

from typing import Annotated, Literal

from pydantic import Field

from detmtl.structures.settings import Settings


class Adapter(Settings):
    """The base of the families."""

    nms: float = Field(0.6, gt=0, le=1)
    """Of two boxes of one class that overlap more than this (IoU), the better stays."""
    max_boxes: int = Field(300, ge=1)
    """The most boxes of a picture."""


class YoloxAdapter(Adapter):
    """YOLOX without its decoding in the graph."""

    kind: Literal["yolox"] = "yolox"


class FastestDetAdapter(Adapter):
    """FastestDet."""

    kind: Literal["fastestdet"] = "fastestdet"


AnyAdapter = Annotated[YoloxAdapter | FastestDetAdapter, Field(discriminator="kind")]
