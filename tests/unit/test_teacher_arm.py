"""An arm `teacher` of a comparison: boxes of several teachers, maps and tags."""

import json

import numpy as np
import pytest
from PIL import Image
from silver_stand_ins import HEIGHT, WIDTH, ColorTeacher, pictures
from test_annotate_processes import OtherTeacher

from detmtl.comparing import teacher_scores
from detmtl.comparing.keys import teacher_key
from detmtl.comparing.worker import _score_teacher
from detmtl.config import read_settings
from detmtl.metrics.per_picture import as_they_are
from detmtl.metrics.picture_file import read_pictures
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER

TEXT = """\
device: cpu
data:
  root: {root}
  classes: [person, car]
  maps: {{classes: {{person: [person], car: [car], rest: [rest]}}, unmapped: rest}}
  tags: {{classes: [person, car]}}
  sources:
    gold: {{kind: coco, images: gold, annotations: gold.json}}
    pool: {{kind: folder, images: pool}}
  val: {{kind: coco, images: val, annotations: val.json}}
  test:
    kind: coco
    images: test
    annotations: test.json
    maps: {{folder: maps, categories: {{1: person, 2: car, 3: rest}}}}
    tags: {{file: tags.json}}
  batch_size: 2
model:
  backbone: {{name: resnet18}}
tasks:
  boxes: {{kind: detection}}
  map: {{kind: semantic, subsets: {{own: [person, car]}}}}
  tag: {{kind: tags}}
silver:
  teachers:
    - {{kind: results, path: t.json, name: t}}
    - {{kind: results, path: u.json, name: u}}
  pools: [pool]
mix: {{mode: concat}}
train: {{steps: 3}}
"""


class Doubtful(ColorTeacher):
    """Sees the same boxes, and calls every second pair of pictures wrong."""

    def __init__(self):
        super().__init__()
        self.card = self.card.model_copy(update={"name": "u"})

    def annotate(self, images, infos, floor=0.05):
        labels = super().annotate(images, infos, floor)
        for image, found in zip(images, labels, strict=True):
            if int(image[2, 0, 0]) % 4 > 1:
                found.classes[0] = 1 - found.classes[0]
        return labels


def _coco(folder, source):
    """Writes what `ColorTeacher` sees as gold."""
    images, annotations = [], []
    for i in range(len(source)):
        red = int(source.read(i)[0, 0, 2])
        images.append({"id": i, "file_name": f"{i:03d}.png", "height": HEIGHT, "width": WIDTH})
        annotations.append(
            {
                "id": i + 1,
                "image_id": i,
                "category_id": 1 + red % 2,
                "bbox": [1, 2, round(9 + red / 100, 2), 18],
                "area": 162,
                "iscrowd": 0,
            }
        )
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "car"}]
    data = {"images": images, "annotations": annotations, "categories": categories}
    folder.write_text(json.dumps(data))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Returns what scores teachers in the place of those that the settings name."""
    for name, count, first in (("gold", 2, 0), ("val", 24, 5), ("test", 8, 40), ("pool", 1, 80)):
        source = pictures(tmp_path / name, count, first=first)
        _coco(tmp_path / f"{name}.json", source)
    test = pictures(tmp_path / "test", 8, first=40)
    (tmp_path / "maps").mkdir()
    rows = []
    for i in range(len(test)):
        red = int(test.read(i)[0, 0, 2])
        classes = OtherTeacher("maps")._labels(red).classes.numpy()
        values = np.where(classes == OTHER, 3, classes + 1).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / f"maps/{i:03d}.png")
        shown = [name for name, p in (("person", red), ("car", 255 - red)) if p > 127]
        rows.append({"file_name": f"{i:03d}.png", "tags": shown})
    (tmp_path / "tags.json").write_text(json.dumps({"tags": ["person", "car"], "images": rows}))
    (tmp_path / "run.yaml").write_text(TEXT.format(root=tmp_path))

    def scored(name, *teachers, overrides=()):
        settings = read_settings(tmp_path / "run.yaml", overrides)
        monkeypatch.setattr(teacher_scores, "load_teachers", lambda *_: iter(teachers))
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        _score_teacher(folder, {"settings": settings.resolved()})
        return json.loads((folder / "metrics.json").read_text())

    return scored


ONE = ["silver.teachers=[]", "silver.teacher={kind: results, path: t.json}"]


def test_several_teachers_are_scored_as_their_fused_labels(run, tmp_path):
    pytest.importorskip("numba")
    pytest.importorskip("sklearn")
    alone = run("u", Doubtful(), overrides=ONE)
    fused = run("both", ColorTeacher(), Doubtful())
    assert alone["boxes/AP50"] < 0.8 and fused["boxes/AP50"] == pytest.approx(1)
    found = json.loads((tmp_path / "runs/both/detections.json").read_text())
    assert {row["image_id"] for row in found} == set(range(8)), "of the test pictures alone"
    right = [
        row["score"] for row in found if row["category_id"] == 1 + (row["image_id"] + 40) * 3 % 2
    ]
    raw = [0.1 + (i + 40) * 3 % 256 / 300 for i in range(8)]
    assert len(right) == 8 and not np.allclose(sorted(right), sorted(raw), atol=0.02), "calibrated"
    assert (tmp_path / "runs/both/matches.npz").is_file()


def test_a_teacher_of_maps_is_scored_as_a_semantic_task(run, tmp_path):
    scores = run("maps", OtherTeacher("maps"), overrides=ONE)
    kept = read_pictures(tmp_path / "runs/maps/pictures.npz")["map"]
    assert len(kept) == 8 and as_they_are(kept)["mIoU/own"] == 1
    assert scores["map/mIoU"] == 1 and scores["map/mIoU/own"] == 1 and scores["map/IoU/rest"] == 1
    assert not any(name.startswith("boxes/") for name in scores)
    teacher = OtherTeacher("maps")
    teacher.card = teacher.card.model_copy(update={"classes": ("car", "person")})
    swapped = run("swapped", teacher, overrides=ONE)
    assert swapped["map/mIoU/own"] == 0 and swapped["map/IoU/rest"] == 1
    assert not (tmp_path / "runs/maps/detections.json").exists()


def test_a_teacher_of_tags_is_scored_as_a_task_of_tags(run, tmp_path):
    assert run("tags", OtherTeacher("tags"), overrides=ONE)["tag/mAP"] == 1
    assert len(read_pictures(tmp_path / "runs/tags/pictures.npz")["tag"]) == 8
    teacher = OtherTeacher("tags")
    teacher.card = teacher.card.model_copy(update={"classes": ("car", "person")})
    assert run("swapped", teacher, overrides=ONE)["tag/mAP"] < 0.8


def test_boxes_are_scored_as_boxes_and_not_as_what_describes_them(run):
    tasks = "tasks={colors: {kind: attributes}, boxes: {kind: detection}}"
    more = ["data.details={attributes: {color: [red]}}", "data.maps=null", "data.tags=null"]
    more += ["data.test.maps=null", "data.test.tags=null"]
    scores = run("boxes", ColorTeacher(), overrides=[*ONE, tasks, *more])
    assert scores["boxes/AP50"] == pytest.approx(1)
    assert not any(name.startswith("colors/") for name in scores)


def test_teachers_that_no_task_learns_from_are_refused(run):
    only = [*ONE, "tasks={boxes: {kind: detection}}"]
    with pytest.raises(InputError, match="writes maps, and no task learns from maps"):
        run("maps", OtherTeacher("maps"), overrides=only)
    other = OtherTeacher("tags")
    other.card = other.card.model_copy(update={"name": "u"})
    with pytest.raises(InputError, match="t boxes, u tags"):
        run("mixed", ColorTeacher(), other)


def test_the_key_of_an_arm_has_what_its_score_depends_on(run, tmp_path):
    run("u", OtherTeacher("tags"), overrides=ONE)  # writes the files

    def key(*overrides):
        return teacher_key(read_settings(tmp_path / "run.yaml", overrides), {})

    assert key() == key("silver.select.threshold=0.7") == key("train.steps=9")
    for changed in (
        "silver.select.fusion={method: nms}",
        "silver.select.calibration=platt",
        "silver.audit=gold",
        "data.maps.classes={person: [person], rest: [car]}",
        "tasks.map.subsets={own: [car]}",
    ):
        assert key(changed) != key(), changed
