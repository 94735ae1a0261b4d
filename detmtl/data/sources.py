"""The union of all kinds of sources; a new kind is one file and one name here."""

from typing import Annotated

from pydantic import Discriminator

from detmtl.data.coco import CocoSource
from detmtl.data.folder import FolderSource
from detmtl.data.source_settings import SourceSettings
from detmtl.data.voc import VocSource
from detmtl.data.yolo import YoloSource
from detmtl.structures.outside import OrElsewhere

AnySource = Annotated[
    CocoSource | VocSource | YoloSource | FolderSource,
    Discriminator("kind"),
    OrElsewhere(SourceSettings),
]
"""The settings of a source, told apart by `kind`: a name of ours, or `package.module:Config`."""
