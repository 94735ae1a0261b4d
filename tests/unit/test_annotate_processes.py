"""Maps and tags labelled by two processes into one store equal those of one process."""

import json

import pytest
import torch
from silver_stand_ins import HEIGHT, WIDTH, ColorTeacher, pictures
from torch import multiprocessing

from detmtl.data.maps import MapClasses
from detmtl.data.tags import TagClasses
from detmtl.silver.map_policy import MapSelection
from detmtl.silver.maps import ChosenMaps
from detmtl.silver.store import Store
from detmtl.silver.tag_policy import TagSelection
from detmtl.silver.tags import ChosenTags
from detmtl.structures.labels import OTHER, MapLabels, TagLabels
from detmtl.teachers.annotate import annotate

NAMES = ["person", "car"]


class OtherTeacher(ColorTeacher):
    """Writes maps or tags that follow from the picture's color."""

    def __init__(self, task: str):
        super().__init__()
        self.card = self.card.model_copy(update={"task": task})

    def annotate(self, images, infos, floor=0.05):
        return [self._labels(int(image[2, 0, 0])) for image in images]

    def _labels(self, red: int):
        if self.card.task == "tags":
            return TagLabels(torch.tensor([red / 255, 1 - red / 255]), torch.ones(2))
        classes = torch.full((HEIGHT, WIDTH), OTHER, dtype=torch.uint8)
        classes[: 1 + red % HEIGHT] = red % 2
        weights = torch.full((HEIGHT, WIDTH), red / 255)
        return MapLabels(classes, weights, torch.ones(2))


def _of_rank(rank, task, sources, path, shared):
    """Labels this rank's pictures; or, `shared`, all of them beside the other."""
    own, world = (0, 1) if shared else (rank, 2)
    annotate(
        OtherTeacher(task),
        sources,
        path,
        batch_size=2,
        rank=own,
        world=world,
        part_pictures=3,
    )


def _choice(task, store, pool):
    if task == "maps":
        folder = ChosenMaps(store, MapClasses(classes=NAMES), MapSelection(confidence=0.1)).select(
            pool
        )
    else:
        folder = ChosenTags(store, TagClasses(classes=NAMES), TagSelection()).select(pool)
    files = sorted(f for f in folder.rglob("*") if f.is_file())
    return {str(f.relative_to(folder)): f.read_bytes() for f in files}


@pytest.mark.parametrize("shared", [False, True], ids=["sharded", "all twice"])
@pytest.mark.parametrize("task", ["maps", "tags"])
def test_two_processes_equal_one(tmp_path, task, shared):
    sources = [pictures(tmp_path / "a", 9, first=10), pictures(tmp_path / "b", 4, first=60)]
    one = annotate(OtherTeacher(task), sources, tmp_path / "one")
    words = (task, sources, tmp_path / "two", shared)
    multiprocessing.start_processes(_of_rank, words, nprocs=2, start_method="fork")
    two = Store.open(tmp_path / "two")
    assert len(two) == 13 and two.digest() == one.digest()
    assert list(two.canonical()) == list(one.canonical())
    written = [
        json.loads(ok.read_text())["pictures"] for ok in (tmp_path / "two/raw/t").glob("part-*.ok")
    ]
    # two writers of one picture may both have labelled it: it counts once
    assert sum(written) == 13 if not shared else 13 <= sum(written) <= 26
    assert len(written) >= 4 and max(written) == 3
    assert _choice(task, two, sources[0]) == _choice(task, one, sources[0])
