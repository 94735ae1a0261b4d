"""Classes, and the names by which sources and teachers call them."""

import pytest

from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError

SPACE = LabelSpace.of({"vehicle": ["car", "bus"], "person": ["person"]}, drop_unmapped=True)


def test_many_names_mean_one_class():
    assert SPACE.class_of(["bus", "person", "car", "tree"], "f") == [0, 1, 0, -1]


def test_a_model_of_the_same_classes_calls_them_by_their_own_names():
    assert SPACE.class_of(["person", "vehicle"], "teacher") == [1, 0]
    assert SPACE.known(["vehicle"]) == [True, False]


def test_a_member_goes_before_a_class_of_the_same_name():
    space = LabelSpace.of({"car": ["taxi"], "other": ["car"]})
    assert space.class_of(["car", "taxi"], "f") == [1, 0]


def test_a_class_is_known_by_any_of_its_names():
    assert SPACE.known(["bus", "tree"]) == [True, False]
    assert SPACE.known([]) == [False, False]


def test_classes_known_by_some_of_their_names_are_told():
    assert SPACE.partly(["bus", "person", "tree"]) == {"vehicle": (["bus"], ["car"])}
    for names in (["bus", "car"], ["bus", "vehicle"], ["person"]):
        assert SPACE.partly(names) == {}
    other = LabelSpace.of({"car": ["taxi", "cab"], "rest": ["car"]})
    assert other.partly(["taxi", "car"]) == {"car": (["taxi"], ["cab"])}  # "car" means the rest


def test_unmapped_names_are_refused_with_the_nearest():
    space = LabelSpace.of(["person", "car"])
    with pytest.raises(InputError, match=r"file: the category 'persons' .*nearest: 'person'"):
        space.class_of(["persons", "car"], "file")


def test_nothing_in_common_is_refused():
    with pytest.raises(InputError, match="none of its categories"):
        SPACE.class_of(["tree", "lamp"], "file")


@pytest.mark.parametrize("classes", [[], ["a", "a"], {"a": ["x"], "b": ["x"]}])
def test_impossible_spaces_are_refused(classes):
    with pytest.raises(InputError):
        LabelSpace.of(classes)


def test_digest_tells_spaces_apart():
    digests = {
        LabelSpace.of(["a", "b"]).digest(),
        LabelSpace.of(["b", "a"]).digest(),
        LabelSpace.of(["a", "b"], drop_unmapped=True).digest(),
        LabelSpace.of({"a": ["c"], "b": ["b"]}).digest(),
    }
    assert len(digests) == 4
