"""Maps of a source: folders of PNG files with the names of their ids."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from detmtl.data.folder import FolderSource
from detmtl.data.map_files import read_values, write_values
from detmtl.data.map_legend import Legend
from detmtl.data.maps import FilledMaps, MapClasses, MapFolder
from detmtl.data.tags import TagClasses, TagFile
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, UNKNOWN, Grade

CLASSES = MapClasses(classes={"person": ["person"], "vehicle": ["car", "bus"], "sky": []})


@pytest.fixture
def root(tmp_path):
    """Three pictures, of which a.jpg and sub/b.jpg have maps, c.jpg none."""
    for name in ("a.jpg", "sub/b.jpg", "c.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), len(name) * 20).save(path)
    values = np.zeros((4, 6), np.uint8)
    values[:, 2:4], values[:, 4], values[0, 5] = 3, 6, 1
    for name in ("a.png", "sub/b.png"):
        path = tmp_path / "maps" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
    return tmp_path


NAMES = {1: "person", 3: "car", 6: "bus"}


def _load(root, classes=CLASSES, listed=None, **settings):
    values = {"folder": "maps", "categories": NAMES, "missing": "absent"} | settings
    source = FolderSource(images="images", listed=listed, maps=MapFolder(**values))
    return source.load("s", root, LabelSpace.of(["x"]), root / "cache", classes)


def test_ids_become_classes_many_to_one(root):
    source = _load(root)
    labels = source.labels(0)["maps"]
    expected = np.full((4, 6), UNKNOWN)
    expected[:, 2:5], expected[0, 5] = 1, 0
    assert labels.classes.numpy().tolist() == expected.tolist()
    assert labels.coverage.tolist() == [1, 1, 0], "nobody named a category of the sky"
    assert labels.weights is None and labels.grade == Grade.GOLD


def test_a_picture_without_a_map_was_not_looked_at(root):
    source = _load(root)
    assert [("maps" in source.labels(i)) for i in range(3)] == [True, False, True]
    assert source.maps.present().tolist() == [True, False, True]
    part = source.subset([1, 2])
    assert ["maps" in part.labels(i) for i in range(2)] == [False, True]


def test_maps_whose_names_match_no_picture_are_told(root):
    for name in ("c.PNG", "b_mask.png", "notes.txt"):
        (root / "maps" / name).write_bytes(b"")
    with pytest.warns(UserWarning) as told:
        _load(root)
    (warning,) = told
    assert "1 of its 3 pictures have no map" in str(warning.message)
    assert "where 2 files are the map of none of them, such as b_mask.png" in str(warning.message)
    assert str(warning.message).endswith("that of c.jpg would be c.png")


def test_maps_of_pictures_that_another_source_has_are_no_mistake(root):
    Image.new("RGB", (6, 4)).save(root / "images/d.jpg")
    (root / "maps/d.png").write_bytes(b"")
    (root / "part.json").write_text(
        json.dumps({"images": [{"file_name": "a.jpg"}, {"file_name": "c.jpg"}]})
    )
    assert _load(root, listed="part.json").maps.present().tolist() == [True, False]


def test_pictures_without_a_map_may_be_left_out(root):
    source = _load(root, missing="drop")
    assert [source.files.name(i) for i in range(len(source))] == ["a.jpg", "sub/b.jpg"]
    assert all("maps" in source.labels(i) for i in range(2))


def test_a_required_map_that_is_missing_is_refused(root):
    with pytest.raises(InputError, match=r"c\.jpg has no map.*missing: absent"):
        _load(root, missing="error")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"folder": "nowhere"}, "does not exist"),
        ({"folder": "images/sub"}, "none of its 3 pictures has a map"),
        ({"categories": "none.json"}, "cannot be read"),
        ({"categories": {1: "person", 3: "kar"}}, "'kar' belongs to no class.*data.maps"),
        ({"covers": ["persn"]}, r"covers names 'persn', which is no class \(nearest: 'person'\)"),
        ({"other": [3]}, "keep one meaning"),
    ],
)
def test_mistakes_are_told(root, settings, message):
    with pytest.raises(InputError, match=message):
        _load(root, **settings)


def test_a_value_without_a_name_is_told_when_the_map_is_read(root):
    source = _load(root, categories={1: "person", 3: "car"})
    with pytest.raises(InputError, match=r"a\.png: has pixels of 6, which are no ids"):
        source.labels(0)


def test_of_the_values_of_a_map_those_alone_are_told_that_are_no_ids(root):
    values = np.full((4, 6), 1, np.uint16)
    values[0, 0], values[1, 1] = 300, 3
    Image.fromarray(values).save(root / "maps" / "a.png")
    with pytest.raises(InputError, match=r"a\.png: has pixels of 300, which are no ids"):
        _load(root).labels(0)


def test_a_map_of_another_size_is_refused(root):
    Image.new("L", (5, 4)).save(root / "maps" / "a.png")
    with pytest.raises(InputError, match=r"5 x 4 pixels.*picture 6 x 4"):
        _load(root).labels(0)


def test_a_color_picture_is_no_map(root):
    Image.new("RGB", (6, 4)).save(root / "maps" / "a.png")
    with pytest.raises(InputError, match="a map has one, gray or palette"):
        _load(root).labels(0)


def test_a_torn_file_is_told(root):
    path = root / "maps" / "a.png"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="cannot be read as a map"):
        _load(root).labels(0)


def test_unmapped_categories_may_be_unknown_or_a_class(root):
    some = {"person": ["person"], "rest": []}
    unknown = _load(root, MapClasses(classes=some, unmapped="unknown")).labels(0)["maps"]
    assert set(unknown.classes.unique().tolist()) == {0, UNKNOWN}
    rest = _load(root, MapClasses(classes=some, unmapped="rest")).labels(0)["maps"]
    assert (rest.classes[:, 2:5] == 1).all()
    assert rest.coverage.tolist() == [1, 0], "there is always more of the rest"
    with pytest.raises(ValueError, match="nearest: rest"):
        MapClasses(classes=some, unmapped="rst")


def test_other_ids_are_none_of_the_covered_classes(root):
    labels = _load(root, other=[0], covers=["person"]).labels(0)["maps"]
    assert (labels.classes[:, :2] == OTHER).all()
    assert labels.coverage.tolist() == [1, 0, 0]


def test_ids_of_16_bits(root):
    values = np.full((4, 6), 3000, np.uint16)
    Image.fromarray(values).save(root / "maps" / "a.png")
    labels = _load(root, categories={3000: "person", 1: "car", 3: "bus", 6: "sky"}).labels(0)[
        "maps"
    ]
    assert (labels.classes == 0).all()


def test_a_legend_of_silver(root):
    legend = Legend(
        {0: "person", 1: "car", 2: "bus"}, (254,), {0: 0.9, 1: 0.8, 2: 0.5}, {0: 0.7}, Grade.SILVER
    )
    (root / "legend.json").write_text(json.dumps(legend.json()))
    assert Legend.read(root / "legend.json") == legend
    write_values(
        root / "maps" / "a.png", np.repeat([[0, 1, 2, 254, 255, 0]], 4, 0).astype(np.uint8)
    )
    labels = _load(root, categories="legend.json").labels(0)["maps"]
    assert labels.classes[0].tolist() == [0, 1, 1, OTHER, UNKNOWN, 0]
    assert labels.weights[0].tolist() == pytest.approx([0.9, 0.5, 0.5, 1, 1, 0.9])
    assert labels.coverage.tolist() == pytest.approx([0.7, 1, 0]) and labels.grade == Grade.SILVER


@pytest.mark.parametrize(
    ("said", "of_source", "expected"),
    [
        (None, "gold", Grade.GOLD),
        (None, "silver", Grade.SILVER),
        ("gold", "silver", Grade.GOLD),
        ("silver", "gold", Grade.SILVER),
    ],
)
def test_a_source_says_who_wrote_its_maps_and_tags_where_their_files_do_not(
    root, said, of_source, expected
):
    own = {} if said is None else {"grade": said}
    rows = [{"id": i, "name": n} for i, n in NAMES.items()]
    (root / "legend.json").write_text(json.dumps({"categories": rows} | own))
    seen = [{"file_name": "a.jpg", "tags": []}]
    (root / "tags.json").write_text(json.dumps({"tags": ["rain"], "images": seen} | own))
    source = FolderSource(
        images="images",
        grade=of_source,
        maps=MapFolder(folder="maps", categories="legend.json", missing="absent"),
        tags=TagFile(file="tags.json", missing="absent"),
    ).load("s", root, LabelSpace.of(["x"]), root / "cache", CLASSES, TagClasses(classes=["rain"]))
    labels = source.labels(0)
    assert labels["maps"].grade == labels["tags"].grade == expected
    assert source.maps.by_people()[0] == source.tags.by_people()[0] == (expected == Grade.GOLD)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("{}", "no lists of categories"),
        ('[{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]', "1 is listed twice"),
        ('{"categories": [{"id": 1, "name": "a", "weight": -1}]}', "weight is -1"),
        ('{"categories": [{"id": 1, "name": "a"}], "other": 3}', "needs a list of ids"),
        ('{"categories": [{"id": 1, "name": "a"}], "other": [-1]}', r"\[-1\].* from 0 to 65535"),
        ('[{"id": -1, "name": "a"}]', "from 0 to 65535"),
        ('{"categories": [{"id": 1, "name": "a"}], "grade": "lead"}', "gold or silver"),
    ],
)
def test_a_wrong_legend_is_told(tmp_path, content, message):
    (tmp_path / "l.json").write_text(content)
    with pytest.raises(InputError, match=message):
        Legend.read(tmp_path / "l.json")


@pytest.mark.parametrize(
    "ids", [{"categories": {-1: "plate"}}, {"categories": {65536: "plate"}}, {"other": [-1]}]
)
def test_ids_are_values_that_a_pixel_may_have(ids):
    with pytest.raises(ValidationError, match=r"no value of a pixel.* 0 and 65535"):
        MapFolder(**{"folder": "maps", "categories": {1: "road"}} | ids)


def test_cocos_own_list_of_categories_is_found(tmp_path):
    (tmp_path / "l.json").write_text(
        '{"stuff_and_things": [{"id": 7, "name": "train", "isthing": 1}]}'
    )
    assert Legend.read(tmp_path / "l.json").categories == {7: "train"}


def test_values_survive_the_palette(tmp_path):
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_values(tmp_path / "m.png", values)
    assert (read_values(tmp_path / "m.png") == values).all()


def test_own_maps_come_before_others(root):
    gold = _load(root)
    values = np.full((4, 6), 1, np.uint8)
    for name in ("a", "c"):
        (root / "more").mkdir(exist_ok=True)
        Image.fromarray(values).save(root / "more" / f"{name}.png")
    more = _load(root, folder="more").maps
    both = FilledMaps(gold.maps, more)
    assert both.present().all()
    assert torch.equal(both.labels(0, 4, 6).classes, gold.labels(0)["maps"].classes)
    assert (both.labels(1, 4, 6).classes == 0).all()
    assert [p.rsplit("/", 2)[1:] for p in both.paths()] == [
        ["maps", "a.png"],
        ["sub", "b.png"],
        ["more", "c.png"],
    ]
    assert both.take(np.array([1])).present().tolist() == [True]
