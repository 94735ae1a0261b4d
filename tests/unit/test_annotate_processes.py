"""Maps and tags labelled by two processes into one store equal those of one process."""

import json
import time

import pytest
import torch
from silver_stand_ins import HEIGHT, WIDTH, ColorTeacher, pictures
from torch import distributed as dist
from torch import multiprocessing

from detmtl.data.maps import MapClasses
from detmtl.data.tags import TagClasses
from detmtl.silver.map_policy import MapSelection
from detmtl.silver.maps import ChosenMaps
from detmtl.silver.store import Store
from detmtl.silver.tag_policy import TagSelection
from detmtl.silver.tags import ChosenTags
from detmtl.structures.errors import InputError
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


class SlowTeacher(ColorTeacher):
    """Takes its time."""

    def annotate(self, images, infos, floor=0.05):
        time.sleep(0.5)
        return super().annotate(images, infos, floor)


def _of_group(rank, folder, source):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    teacher = SlowTeacher() if rank else ColorTeacher()
    with pytest.raises(InputError, match=r"000\.png"):
        annotate(teacher, [source], folder / "s", batch_size=1, rank=rank, world=2)
    (folder / f"{rank}.txt").write_text(str(len(Store.open(folder / "s"))))
    dist.destroy_process_group()


@pytest.mark.distributed
def test_no_process_fails_for_an_unreadable_picture_before_the_others_are_done(tmp_path):
    source = pictures(tmp_path / "a", 6)
    (tmp_path / "a" / "000.png").write_bytes(b"no picture")
    words = (tmp_path, source)
    multiprocessing.start_processes(_of_group, words, nprocs=2, start_method="fork")
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["5", "5"]
