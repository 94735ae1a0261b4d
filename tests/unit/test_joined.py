"""Sources joined: boxes, maps and tags of each picture are those that it has in its own source."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from map_stand_ins import halves
from PIL import Image
from silver_stand_ins import gold, pictures

from detmtl.data.joined import joined, searched_classes, told_tags, with_boxes
from detmtl.data.maps import FilledMaps, MapClasses, MapFolder
from detmtl.data.tags import BoxTags, TagClasses, Tags
from detmtl.structures.labels import Grade

MAPS = MapClasses(classes=["person", "car"])
TAGS = TagClasses(classes=["person", "car"])


def _maps(tmp_path, source, maps, categories):
    folder = tmp_path / f"maps of {source.name}"
    folder.mkdir()
    for i, values in maps.items():
        Image.fromarray(values).save(folder / f"{i:03d}.png")
    settings = MapFolder(folder=folder.name, categories=categories, missing="absent")
    return settings.load(source.files, tmp_path, MAPS, source.name)


def _tags(targets, present, grade):
    targets = np.array(targets, np.float32)
    return Tags(targets, np.ones_like(targets), np.array(present, bool), np.array(grade, np.uint8))


@pytest.fixture
def sources(tmp_path):
    """One with maps whose ids say what the other's do not, and with tags; one with boxes, maps of
    its own and tags that follow from boxes; one with nothing but tags."""
    a, b, c = (pictures(tmp_path / n, k, n, 40 * k) for n, k in (("a", 2), ("b", 3), ("c", 1)))
    a = replace(
        a,
        maps=_maps(tmp_path, a, {1: halves(7, 9)}, {7: "person", 9: "car"}),
        tags=_tags([[1, 0], [0, 1]], [True, False], [0, 0]),
    )
    b = gold(b, [(0, [0, 0, 9, 9], 0, 0), (2, [3, 3, 9, 9], 1, 0)], coverage=((1.0, 0.0),))
    own = _maps(tmp_path, b, {0: halves(7, 7), 2: halves(1, 7)}, {7: "car", 1: "person"})
    b = replace(b, maps=own, tags=BoxTags.of(b.classes, TAGS))
    return [a, b, replace(c, tags=_tags([[0, 1]], [True], [Grade.SILVER]))]


def _same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, labels in theirs.items():
        for name, value in vars(labels).items():
            same = getattr(ours[key], name)
            if isinstance(value, torch.Tensor):
                assert torch.equal(same, value), (key, name)
            else:
                assert same == value, (key, name)


def test_each_picture_keeps_its_boxes_maps_and_tags(sources):
    both = joined("all", sources)
    position = 0
    for source in sources:
        for i in range(len(source)):
            ours, theirs = both.labels(position), source.labels(i)
            if source.annotations is None:
                empty = ours.pop("boxes")
                assert len(empty) == 0 and empty.coverage.tolist() == [0, 0]
            _same(ours, theirs)
            position += 1
    assert both.maps.present().tolist() == [False, True, True, False, True, False]
    assert len(both.maps.paths()) == 3 and position == len(both)
    assert both.grade is Grade.GOLD
    assert joined("x", [sources[0], replace(sources[1], grade=Grade.SILVER)]).grade is Grade.SILVER


def test_a_part_and_a_pickled_copy_have_the_same_labels(sources):
    both = joined("all", sources)
    order = np.array([5, 4, 1])
    for part in (both.subset(order), pickle.loads(pickle.dumps(both.subset(order)))):
        for k, i in enumerate(order):
            _same(part.labels(k), both.labels(i))
    assert both.subset(order).tags.labels(0, None).grade == Grade.SILVER
    assert both.subset(order).maps.paths() == [sources[0].maps.paths()[0], both.maps.paths()[2]]


def test_what_nobody_has_stays_absent(tmp_path):
    a, b = pictures(tmp_path / "a", 2), gold(pictures(tmp_path / "b", 1), [])
    assert joined("x", [a, a]).annotations is None
    both = joined("x", [b, a])
    assert both.maps is None and both.tags is None
    assert both.coverage.tolist() == [[1, 1], [0, 0], [0, 0]]
    judged = with_boxes(both)
    assert len(judged) == 1 and judged.path(0) == b.path(0) and with_boxes(judged) is judged


def test_tags_that_follow_from_boxes_still_do(tmp_path):
    parts = [gold(pictures(tmp_path / n, 1), [(0, [0, 0, 9, 9], 1, 0)]) for n in "ab"]
    parts = [replace(p, tags=BoxTags.of(p.classes, TAGS)) for p in parts]
    both = joined("x", parts)
    labels = both.labels(0)
    assert labels["tags"].targets.tolist() == [0, 1]
    cropped = labels | {"boxes": labels["boxes"][torch.zeros(0, dtype=torch.long)]}
    assert both.derived(0, cropped)["tags"].targets.tolist() == [0, 0]


def test_tags_from_a_model_s_pictures_without_boxes_are_a_model_s(tmp_path):
    sources = [gold(pictures(tmp_path / n, 1), []) for n in "ab"]
    grades = (Grade.SILVER, Grade.GOLD)
    follow = [
        replace(s, tags=BoxTags.of(s.classes, TAGS, grade))
        for s, grade in zip(sources, grades, strict=True)
    ]
    assert [told_tags(source).by_people().tolist() for source in follow] == [[False], [True]]
    assert joined("x", follow).tags.by_people().tolist() == [False, True]
    by_maps = replace(follow[1], grade=Grade.SILVER)  # as a pool that got a model's maps
    assert by_maps.labels(0)["tags"].grade == Grade.GOLD


def test_filled_maps_can_be_joined(sources):
    a = sources[0]
    filled = replace(a, maps=FilledMaps(a.maps, a.maps))
    assert joined("x", [filled, sources[1]]).maps.present().tolist() == [
        *[False, True],
        *[True, False, True],
    ]


NAMES = {"boxes": ("person", "car"), "maps": ("person", "car"), "tags": ("person", "car")}


def test_which_classes_somebody_looked_for(sources):
    a, b, c = sources
    assert searched_classes([b], NAMES) == {
        "boxes": ["person"],  # coverage 1, 0
        "maps": ["person", "car"],
        "tags": ["person"],  # they follow from boxes
    }
    assert searched_classes([c], NAMES) == {"boxes": [], "maps": [], "tags": ["person", "car"]}
    everything = {kind: ["person", "car"] for kind in NAMES}
    assert searched_classes(sources, NAMES) == everything | {"boxes": ["person"]}
    of_people = replace(
        a, maps=FilledMaps(replace(a.maps, coverage=np.zeros(2, np.float32)), b.maps)
    )
    assert of_people.searched()["maps"].tolist() == [True, True]
    assert joined("x", [a, b, c]).searched()["maps"].tolist() == [True, True]
    nobody = _tags([[0, 1]], [False], [0])
    assert searched_classes([replace(c, tags=nobody)], NAMES)["tags"] == []
    assert set(searched_classes([a], {"boxes": NAMES["boxes"]})) == {"boxes"}
