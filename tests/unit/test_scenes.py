import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pydantic import ValidationError

from detmtl.data.scene_layout import Domain
from detmtl.data.scene_mesh import Camera, Mesh, Posed
from detmtl.data.scene_objects import SCENE_KEYPOINTS, person
from detmtl.data.scene_picture import draw_scene
from detmtl.data.scenes import COLORS, SCENE_CLASSES, TAGS, ScenesSettings, render_scenes
from detmtl.structures.errors import InputError

# pycocotools hands numpy 2 an __array__ without the copy keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SETTINGS = ScenesSettings(gold=30, pool=30, val=4, test=3, size=(128, 160), seed=7)
SPLITS = ("gold", "pool", "val", "test")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    render_scenes(root, SETTINGS, processes=1)
    return root


def _read(root: Path, split: str) -> dict:
    return json.loads((root / "annotations" / f"{split}.json").read_text())


def _map(path: Path) -> np.ndarray:
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert values is not None
    return values


def _files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()
    }


def test_every_split_has_its_pictures_of_the_asked_size(scenes):
    for split in SPLITS:
        count = getattr(SETTINGS, split)
        names = [f"{i + 1:06d}" for i in range(count)]
        for folder, suffix in (("images", "jpg"), ("semantic", "png"), ("depth", "png")):
            files = sorted((scenes / folder / split).iterdir())
            assert [f.name for f in files] == [f"{n}.{suffix}" for n in names]
        images = _read(scenes, split)["images"]
        assert [(i["id"], i["height"], i["width"]) for i in images] == [
            (k + 1, 128, 160) for k in range(count)
        ]
        picture = cv2.imread(str(scenes / "images" / split / "000001.jpg"))
        assert picture is not None and picture.shape == (128, 160, 3) and picture.std() > 5


@pytest.mark.parametrize("split", SPLITS)
def test_pycocotools_reads_it_and_boxes_are_the_masks_tight_boxes(scenes, split, capsys):
    coco = COCO(str(scenes / "annotations" / f"{split}.json"))
    assert len(set(coco.anns)) == len(coco.dataset["annotations"])
    for annotation in coco.dataset["annotations"]:
        mask = coco.annToMask(annotation)
        assert mask.shape == (128, 160)
        ys, xs = np.nonzero(mask)
        tight = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert annotation["bbox"] == tight
        assert annotation["area"] == mask.sum() == coco_mask.area(annotation["segmentation"])
        assert annotation["category_id"] in coco.cats
        if not annotation["iscrowd"]:
            assert annotation["attributes"]["color"] in COLORS
            assert annotation["attributes"]["visible"] >= 0.15


def test_masks_do_not_overlap_and_agree_with_the_semantic_map(scenes):
    data = _read(scenes, "gold")
    for image in data["images"]:
        name = image["file_name"].replace("jpg", "png")
        path = scenes / "semantic" / "gold" / name
        semantic = _map(path)
        count = np.zeros(semantic.shape, int)
        for annotation in data["annotations"]:
            if annotation["image_id"] == image["id"]:
                mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
                assert (semantic[mask] == annotation["category_id"]).all()
                count += mask
        assert count.max(initial=0) <= 1


def test_depth_is_nearer_towards_the_bottom(scenes):
    for path in sorted((scenes / "depth" / "gold").iterdir()):
        depth = _map(path)
        assert depth.dtype == np.uint16 and depth.min() > 500
        assert np.median(depth[-1]) < np.median(depth[len(depth) // 2])


def test_all_classes_crowds_empty_pictures_and_both_domains_occur(scenes):
    records = [_read(scenes, split) for split in ("gold", "pool")]
    annotations = [a for r in records for a in r["annotations"]]
    images = [i for r in records for i in r["images"]]
    assert {SCENE_CLASSES[a["category_id"] - 1] for a in annotations} == set(SCENE_CLASSES)
    assert any(a["iscrowd"] for a in annotations)
    tags = Counter(t for i in images for t in i["tags"])
    assert set(tags) <= set(TAGS) and tags["empty"] and tags["crowd"]
    filled = [{a["image_id"] for a in r["annotations"]} for r in records]
    for record, ids in zip(records, filled, strict=True):
        for image in record["images"]:
            assert ("empty" in image["tags"]) == (image["id"] not in ids)
    assert {i["domain"] for i in records[0]["images"]} == {"home"}
    assert {i["domain"] for i in records[1]["images"]} == {"away"}
    domains = [i["domain"] for i in _read(scenes, "val")["images"]]
    assert domains == ["home", "away", "home", "away"]


def test_files_do_not_depend_on_the_number_of_processes(scenes, tmp_path):
    calls: list[tuple[int, int]] = []
    some = SETTINGS.model_copy(update={"gold": 20, "pool": 4, "val": 0, "test": 0})
    render_scenes(tmp_path, some, lambda done, total: calls.append((done, total)), processes=2)
    one, two = _files(scenes), _files(tmp_path)
    drawn = [name for name in two if name.endswith(("jpg", "png"))]
    assert len(drawn) == 3 * 24
    assert all(one[name] == two[name] for name in drawn)
    whole, part = _read(scenes, "gold")["annotations"], _read(tmp_path, "gold")["annotations"]
    assert part == [a for a in whole if a["image_id"] <= 20]
    assert calls == [(i + 1, 24) for i in range(24)]


def test_first_pictures_stay_when_a_split_grows_and_change_with_the_seed(scenes, tmp_path):
    few = SETTINGS.model_copy(update={"gold": 2, "pool": 0, "val": 0, "test": 0})
    render_scenes(tmp_path / "few", few)
    other = few.model_copy(update={"seed": 8})
    render_scenes(tmp_path / "other", other)
    name = "images/gold/000002.jpg"
    assert (tmp_path / "few" / name).read_bytes() == (scenes / name).read_bytes()
    assert (tmp_path / "other" / name).read_bytes() != (scenes / name).read_bytes()
    assert _read(tmp_path / "few", "pool")["images"] == []


def test_renders_again_only_when_settings_change(tmp_path):
    tiny = ScenesSettings(gold=3, pool=1, val=0, test=0, size=(64, 80))
    render_scenes(tmp_path, tiny)
    before = (tmp_path / "images" / "gold" / "000001.jpg").stat().st_mtime_ns
    calls: list[int] = []
    render_scenes(tmp_path, tiny, lambda done, total: calls.append(done))
    assert not calls
    assert (tmp_path / "images" / "gold" / "000001.jpg").stat().st_mtime_ns == before
    render_scenes(tmp_path, tiny.model_copy(update={"gold": 2}), lambda d, t: calls.append(d))
    assert calls == [1, 2, 3]
    assert len(list((tmp_path / "images" / "gold").iterdir())) == 2
    (tmp_path / ".complete").write_text("torn")
    render_scenes(tmp_path, tiny, lambda d, t: calls.append(d))
    assert len(calls) == 7


def test_an_interrupted_run_leaves_nothing_that_looks_whole(tmp_path):
    tiny = ScenesSettings(gold=3, pool=0, val=0, test=0, size=(64, 80))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_scenes(tmp_path, tiny, stop)
    assert [p.name for p in tmp_path.iterdir()] == [".rendering.lock"]
    render_scenes(tmp_path, tiny)
    assert len(_read(tmp_path, "gold")["images"]) == 3


def test_of_two_first_runs_at_once_one_draws_and_the_other_waits(tmp_path):
    tiny = ScenesSettings(gold=3, pool=0, val=0, test=0, size=(64, 80))
    drawn = []

    def slowly(done: int, total: int) -> None:
        drawn.append(done)
        time.sleep(0.05)

    with ThreadPoolExecutor(2) as pool:
        for run in [pool.submit(render_scenes, tmp_path, tiny, slowly, 1) for _ in range(2)]:
            run.result()
    assert drawn == [1, 2, 3]
    assert len(_read(tmp_path, "gold")["images"]) == 3


def test_what_the_user_gives_is_checked(tmp_path):
    tiny = ScenesSettings(gold=1, pool=0, val=0, test=0, size=(64, 64))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        render_scenes(tmp_path / "file", tiny)
    with pytest.raises(InputError, match="cannot be written"):
        render_scenes(tmp_path / "file" / "below", tiny)
    (tmp_path / "mine" / "images").mkdir(parents=True)
    (tmp_path / "mine" / "images" / "holiday.jpg").write_text("")
    with pytest.raises(InputError, match="another folder"):
        render_scenes(tmp_path / "mine", tiny)
    assert (tmp_path / "mine" / "images" / "holiday.jpg").exists()
    with pytest.raises(InputError, match=r"64\.\.2048"):
        render_scenes(tmp_path / "small", tiny.model_copy(update={"size": (32, 64)}))
    with pytest.raises(ValidationError):
        ScenesSettings(gold=-1)


def test_unwritable_folder_is_an_input_error(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write anywhere, so chmod proves nothing
    with pytest.raises(InputError, match="Permission denied"):
        render_scenes(tmp_path / "locked", ScenesSettings(gold=1, pool=0, val=0, test=0))


def test_things_differ_between_pictures_and_any_size_is_drawn():
    sizes = [(64, 64), (100, 333), (600, 200)]
    for k, (height, width) in enumerate(sizes):
        scene = draw_scene(Domain.AWAY, height, width, np.random.default_rng([3, k]))
        assert scene.image.shape == (height, width, 3) and scene.image.dtype == np.uint8
        assert scene.instances.shape == scene.depth.shape == (height, width)


def test_a_box_is_drawn_where_the_camera_sees_it():
    mesh = Mesh()
    mesh.box(-1, 1, 0, 2, -0.5, 0.5, (200, 200, 200))
    camera = Camera(focal=100, center=50, horizon=40, height=1)
    x0, y0, x1, y1 = Posed(mesh, 0, 10.5, 0.0).extent(camera)
    assert (x0, y0, x1, y1) == pytest.approx((40, 30, 60, 50))  # its front face is 10 m away


def test_keypoints_lie_on_what_they_name(scenes):
    data = _read(scenes, "gold")
    names = {c["id"]: c.get("keypoints", []) for c in data["categories"]}
    assert {SCENE_CLASSES[i - 1]: tuple(n) for i, n in names.items() if n} == SCENE_KEYPOINTS
    seen, count = 0, 0
    for annotation in data["annotations"]:
        points = names[annotation["category_id"]]
        if not points or annotation["iscrowd"]:
            assert "keypoints" not in annotation
            continue
        values = np.array(annotation["keypoints"]).reshape(len(points), 3)
        assert annotation["num_keypoints"] == (values[:, 2] > 0).sum()
        mask = coco_mask.decode(annotation["segmentation"])
        for x, y, visible in values:
            assert visible in (0, 1, 2) and (visible or x == y == 0)
            if visible:
                assert mask[int(y), int(x)] == (visible == 2)
                seen, count = seen + (visible == 2), count + 1
        left = [k for k, n in enumerate(points) if n.startswith("left_")]
        assert all(points[k + 1] == points[k].replace("left", "right") for k in left)
    assert count > 200 and seen > 0.5 * count


def test_keypoints_of_a_person_stand_as_people_do():
    rng = np.random.default_rng(0)
    camera = Camera(200.0, 80.0, 40.0, 1.6)
    # seen from its right side, heading right: what is to its right is nearer
    marks = Posed(person(rng, (200, 40, 40)), 0.0, 5.0, 0.0).marks(camera)
    assert tuple(marks) != () and set(marks) == set(SCENE_KEYPOINTS["person"])
    assert marks["head"][1] < marks["left_hand"][1] < marks["left_foot"][1]
    assert marks["right_foot"][1] > marks["left_foot"][1]  # nearer to the camera: lower
