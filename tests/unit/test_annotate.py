import os

import numpy as np
import pytest
import torch
from silver_stand_ins import HEIGHT, WIDTH, ColorTeacher, pictures

from detmtl.silver.map_record import MapRecord
from detmtl.silver.store import Store
from detmtl.silver.tag_record import TagRecord
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, UNKNOWN, BoxLabels, MapLabels, TagLabels
from detmtl.teachers.annotate import annotate


def canonical(store: Store) -> list[bytes]:
    return list(store.canonical())


def test_every_picture_has_a_record_with_its_hash_size_and_boxes(tmp_path):
    source = pictures(tmp_path / "a", 7)
    store = annotate(ColorTeacher(), [source], tmp_path / "s", root=tmp_path)
    found = {r.content_hash: r for r in store.records()}
    assert set(found) == set(source.hashes())
    third = found[source.hashes()[3]]
    assert third.file == os.path.join("a", "003.png") and (third.height, third.width) == (24, 32)
    assert third.boxes.round(2).tolist() == [[1, 2, pytest.approx(10.09, abs=1e-4), 20]]
    assert third.classes.tolist() == [1] and third.scores[0] == pytest.approx(0.13)


def test_it_skips_what_is_there_and_copies_of_the_same_picture(tmp_path):
    source, copies = pictures(tmp_path / "a", 5), pictures(tmp_path / "b", 8)
    teacher = ColorTeacher()
    annotate(teacher, [source], tmp_path / "s")
    assert teacher.seen == 5
    store = annotate(teacher, [source, copies, copies], tmp_path / "s")
    assert teacher.seen == 8 and len(store) == 8


def test_interrupted_it_continues_to_the_same_labels(tmp_path):
    source = pictures(tmp_path / "a", 11)
    whole = annotate(ColorTeacher(), [source], tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        annotate(ColorTeacher(4), [source], tmp_path / "s", batch_size=2)
    assert len(Store.open(tmp_path / "s")) == 4
    teacher = ColorTeacher()
    again = annotate(teacher, [source], tmp_path / "s", batch_size=3)
    assert teacher.seen == 7
    assert canonical(again) == canonical(whole) and again.digest() == whole.digest()


def test_ranks_share_the_pictures_and_together_equal_one(tmp_path):
    sources = [pictures(tmp_path / "a", 5), pictures(tmp_path / "b", 6, first=20)]
    whole = annotate(ColorTeacher(), sources, tmp_path / "whole")
    seen = []
    for rank in range(3):
        teacher = ColorTeacher()
        store = annotate(teacher, sources, tmp_path / "s", rank=rank, world=3)
        seen.append(teacher.seen)
    assert seen == [4, 4, 3]
    assert store.digest() == whole.digest()


def test_an_unreadable_picture_is_named_after_all_others_are_labelled(tmp_path):
    source = pictures(tmp_path / "a", 4)
    (tmp_path / "a" / "001.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"001\.png"):
        annotate(ColorTeacher(), [source], tmp_path / "s")
    assert len(Store.open(tmp_path / "s")) == 3


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [("scores", 1.5, "score"), ("boxes", float("nan"), "not finite"), ("classes", 7, "class 7")],
)
def test_nonsense_from_a_teacher_is_refused(tmp_path, attribute, value, message):
    class Wrong(ColorTeacher):
        def annotate(self, images, infos, floor=0.05):
            labels = super().annotate(images, infos, floor)
            getattr(labels[0], attribute)[0] = value
            return labels

    with pytest.raises(InputError, match=message):
        annotate(Wrong(), [pictures(tmp_path / "a", 2)], tmp_path / "s")


def test_labels_of_fewer_pictures_are_refused_before_any_is_stored(tmp_path):
    class Thrifty(ColorTeacher):
        def annotate(self, images, infos, floor=0.05):
            return super().annotate(images, infos, floor)[1:]  # nothing for the first

    with pytest.raises(InputError, match="gave 1 labels for 2 pictures"):
        annotate(Thrifty(), [pictures(tmp_path / "a", 2)], tmp_path / "s")
    assert len(Store.create(tmp_path / "s", ColorTeacher().card, 0.05)) == 0


def test_the_bar_counts_to_the_end(tmp_path):
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    source = pictures(tmp_path / "a", 3)
    annotate(ColorTeacher(), [source], tmp_path / "s", console=Console(file=out, width=120))
    assert "3/3" in out.getvalue()


class TaskTeacher(ColorTeacher):
    """Gives the labels that a test names, for every picture, as a teacher of that task and name."""

    def __init__(self, task: str, labels, name: str = "t"):
        super().__init__()
        self.card = self.card.model_copy(update={"task": task, "name": name})
        self._labels = labels

    def annotate(self, images, infos, floor=0.05):
        return [self._labels for _ in images]


def a_map(weights=None, **changed) -> MapLabels:
    classes = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    classes[3:9, 4:20], classes[0], classes[-1] = 1, OTHER, UNKNOWN
    return MapLabels(
        **{"classes": classes, "coverage": torch.ones(2), "weights": weights} | changed
    )


def test_a_teacher_of_maps_writes_maps(tmp_path):
    source = pictures(tmp_path / "a", 2)
    weights = torch.linspace(0, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    for name, labels in {"sure": a_map(weights), "silent": a_map()}.items():
        store = annotate(TaskTeacher("maps", labels, name), [source], tmp_path / "s")
        found = list(store.records(MapRecord))
        assert {r.content_hash for r in found} == set(source.hashes())
        for record in found:
            np.testing.assert_array_equal(record.classes, labels.classes.numpy())
            if name == "silent":
                assert record.confidence is None
            else:
                assert record.confidence is not None
                np.testing.assert_allclose(record.confidence / 255, weights, atol=0.5 / 255 + 1e-6)
    assert Store.teachers(tmp_path / "s") == ["silent", "sure"]


def test_a_teacher_of_tags_writes_tags_and_abstains_where_it_gives_no_weight(tmp_path):
    labels = TagLabels(torch.tensor([0.25, 0.9]), torch.tensor([1.0, 0.0]))
    source = pictures(tmp_path / "a", 2)
    store = annotate(TaskTeacher("tags", labels), [source], tmp_path / "s")
    for record in store.records(TagRecord):
        np.testing.assert_array_equal(record.scores, [0.25, np.nan])


@pytest.mark.parametrize(
    ("task", "labels", "message"),
    [
        ("maps", BoxLabels.empty(2), "gave BoxLabels, but its card says that it writes maps"),
        ("boxes", a_map(), "gave MapLabels, but its card says that it writes boxes"),
        ("maps", a_map(classes=torch.zeros(4, 4, dtype=torch.uint8)), r"gave a map \(4, 4\)"),
        ("maps", a_map(classes=torch.zeros(HEIGHT, WIDTH).long()), "of int64; .* uint8"),
        ("maps", a_map(classes=torch.full((HEIGHT, WIDTH), 2, dtype=torch.uint8)), "class 2"),
        ("maps", a_map(torch.full((HEIGHT, WIDTH), 1.5)), r"score 1\.5"),
        ("maps", a_map(torch.ones(2, 2)), r"confidences \(2, 2\)"),
        ("tags", TagLabels(torch.ones(3), torch.ones(3)), "3 scores .* has 2 classes"),
        ("tags", TagLabels(torch.tensor([0.5, -1]), torch.ones(2)), r"score -1\.0"),
        ("tags", TagLabels(torch.tensor([0.5, torch.nan]), torch.ones(2)), "not finite"),
    ],
)
def test_labels_that_cannot_be_are_refused(tmp_path, task, labels, message):
    with pytest.raises(InputError, match=message):
        annotate(TaskTeacher(task, labels), [pictures(tmp_path / "a", 1)], tmp_path / "s")


def test_a_second_teacher_of_the_same_store_labels_all_and_leaves_the_first_alone(tmp_path):
    source = pictures(tmp_path / "a", 4)
    first = annotate(ColorTeacher(), [source], tmp_path / "s")
    second = ColorTeacher()
    second.card = second.card.model_copy(update={"name": "second"})
    store = annotate(second, [source], tmp_path / "s", floor=0.2)
    assert second.seen == 4 and store.card.name == "second" and store.floor == 0.2
    assert canonical(Store.open(tmp_path / "s", "t")) == canonical(first) != canonical(store)
