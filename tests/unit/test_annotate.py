import os

import pytest
from silver_stand_ins import ColorTeacher, pictures

from detmtl.silver.record import encode
from detmtl.silver.store import Store
from detmtl.structures.errors import InputError
from detmtl.teachers.annotate import annotate


def canonical(store: Store) -> list[bytes]:
    return sorted(encode(r) for r in store.records())


def test_every_picture_has_a_record_with_its_hash_size_and_boxes(tmp_path):
    source = pictures(tmp_path / "a", 7)
    store = annotate(ColorTeacher(), [source], tmp_path / "s", progress=False, root=tmp_path)
    found = {r.content_hash: r for r in store.records()}
    assert set(found) == set(source.hashes())
    third = found[source.hashes()[3]]
    assert third.file == os.path.join("a", "003.png") and (third.height, third.width) == (24, 32)
    assert third.boxes.round(2).tolist() == [[1, 2, pytest.approx(10.09, abs=1e-4), 20]]
    assert third.classes.tolist() == [1] and third.scores[0] == pytest.approx(0.13)


def test_it_skips_what_is_there_and_copies_of_the_same_picture(tmp_path):
    source, copies = pictures(tmp_path / "a", 5), pictures(tmp_path / "b", 8)
    teacher = ColorTeacher()
    annotate(teacher, [source], tmp_path / "s", progress=False)
    assert teacher.seen == 5
    store = annotate(teacher, [source, copies, copies], tmp_path / "s", progress=False)
    assert teacher.seen == 8 and len(store) == 8


def test_interrupted_it_continues_to_the_same_labels(tmp_path):
    source = pictures(tmp_path / "a", 11)
    whole = annotate(ColorTeacher(), [source], tmp_path / "whole", progress=False)
    with pytest.raises(KeyboardInterrupt):
        annotate(ColorTeacher(4), [source], tmp_path / "s", batch_size=2, progress=False)
    assert len(Store.open(tmp_path / "s")) == 4
    teacher = ColorTeacher()
    again = annotate(teacher, [source], tmp_path / "s", batch_size=3, progress=False)
    assert teacher.seen == 7
    assert canonical(again) == canonical(whole) and again.digest() == whole.digest()


def test_ranks_share_the_pictures_and_together_equal_one(tmp_path):
    sources = [pictures(tmp_path / "a", 5), pictures(tmp_path / "b", 6, first=20)]
    whole = annotate(ColorTeacher(), sources, tmp_path / "whole", progress=False)
    seen = []
    for rank in range(3):
        teacher = ColorTeacher()
        store = annotate(teacher, sources, tmp_path / "s", rank=rank, world=3, progress=False)
        seen.append(teacher.seen)
    assert seen == [4, 4, 3]
    assert store.digest() == whole.digest()


def test_an_unreadable_picture_is_named_after_all_others_are_labelled(tmp_path):
    source = pictures(tmp_path / "a", 4)
    (tmp_path / "a" / "001.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"001\.png"):
        annotate(ColorTeacher(), [source], tmp_path / "s", progress=False)
    assert len(Store.open(tmp_path / "s")) == 3
    with pytest.warns(UserWarning, match=r"1 pictures could not be read.*001\.png"):
        annotate(ColorTeacher(), [source], tmp_path / "s", progress=False, faults="skip")


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
        annotate(Wrong(), [pictures(tmp_path / "a", 2)], tmp_path / "s", progress=False)


def test_the_bar_counts_to_the_end(tmp_path):
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    source = pictures(tmp_path / "a", 3)
    annotate(ColorTeacher(), [source], tmp_path / "s", console=Console(file=out, width=120))
    assert "3/3" in out.getvalue()
