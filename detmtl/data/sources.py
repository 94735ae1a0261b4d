"""The union of all kinds of sources; a new kind is one file and one name here."""

from typing import Annotated

from pydantic import Field

from detmtl.data.coco import CocoSource
from detmtl.data.folder import FolderSource
from detmtl.data.voc import VocSource
from detmtl.data.yolo import YoloSource

AnySource = Annotated[
    CocoSource | VocSource | YoloSource | FolderSource, Field(discriminator="kind")
]
"""The settings of a source, told apart by `kind`."""
