"""A teacher that looks at several views of each picture: mirrored, smaller and in tiles."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from detmtl.inference.views import TtaSettings, View, merged, views, vote
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Labels, MapLabels
from detmtl.structures.sample import ImageInfo
from detmtl.teachers.teacher import Teacher, as_silver


class TtaTeacher(Teacher):
    """Another teacher, asked for several views of each picture.

    The views' boxes go through one suppression per class; a map is a vote of the views, weighted by
    their confidence, and its confidence is the winner's share of what the votes could be.

    Args:
        teacher: the one that is asked.
        settings: which views.
        name: of this teacher; None: the other's with `-tta`.

    Raises:
        InputError: the teacher writes tags, or boxes and all views are tiles.
    """

    def __init__(self, teacher: Teacher, settings: TtaSettings, name: str | None = None):
        if teacher.card.task == "tags":
            raise InputError("teacher.tta: serves boxes and maps, and this teacher writes tags")
        if teacher.card.task == "boxes" and min(settings.scales) > 1:
            raise InputError(
                f"teacher.tta.scales: {', '.join(f'{scale:g}' for scale in settings.scales)}: all views are "
                "tiles, and no box would be left of an object that their edges cut; name 1 among them"
            )
        inner = teacher.card
        self._teacher, self._settings = teacher, settings
        self.card = inner.model_copy(
            update={
                "name": name or f"{inner.name}-tta",
                "preprocessing": f"{inner.preprocessing}; views of '{inner.name}': "
                f"{settings.model_dump(mode='json')}",
            }
        )

    def annotate(
        self, images: Sequence[Tensor], infos: Sequence[ImageInfo], floor: float = 0.05
    ) -> Sequence[Labels]:
        """Returns the labels of each picture, see `Teacher.annotate`."""
        sizes = [(int(image.shape[1]), int(image.shape[2])) for image in images]
        seen = [views(*size, self._settings) for size in sizes]
        todo = [(i, view) for i, of_one in enumerate(seen) for view in of_one]
        found: list[list[Labels]] = [[] for _ in images]
        for first in range(0, len(todo), max(1, len(images))):
            chunk = todo[first : first + len(images)]
            answers = self._teacher.annotate(
                [view.of(images[i]) for i, view in chunk],
                [
                    replace(infos[i], height=view.bottom - view.top, width=view.right - view.left)
                    for i, view in chunk
                ],
                floor if self.card.task == "boxes" else 0,
            )
            for (i, _), labels in zip(chunk, answers, strict=True):
                found[i].append(labels)
        return [
            self._merged(labels, of_one, size, floor)
            for labels, of_one, size in zip(found, seen, sizes, strict=True)
        ]

    def _merged(
        self, labels: Sequence[Labels], seen: Sequence[View], size: tuple[int, int], floor: float
    ) -> Labels:
        if self.card.task == "maps":
            maps = [one for one in labels if isinstance(one, MapLabels)]
            return vote(maps, seen, size, floor)
        boxes = [one for one in labels if isinstance(one, BoxLabels)]
        return as_silver(merged(boxes, seen, size, self._settings.overlap), floor)
