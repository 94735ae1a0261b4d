"""Silver maps: audited against gold, chosen, and read again like any maps.

The teacher knows no sky, and a class more than ours.
"""

import json
from dataclasses import replace

import numpy as np
import pytest
from map_stand_ins import halves, store_of_maps
from PIL import Image
from silver_stand_ins import HEIGHT, WIDTH, pictures

from detmtl.data.flat import FileNames
from detmtl.data.joined import joined
from detmtl.data.maps import FilledMaps, MapClasses, MapFolder
from detmtl.silver.calibration import cross_fitted
from detmtl.silver.held_out import given_dense
from detmtl.silver.map_audit import MOST, MapAudit, observations
from detmtl.silver.map_measures import MapMeasures
from detmtl.silver.map_policy import MapSelection, Meaning
from detmtl.silver.maps import ChosenMaps, audit_maps
from detmtl.silver.thresholds import AtPrecision, AtProbability
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, UNKNOWN, Grade

CLASSES = MapClasses(
    classes={"person": ["person"], "vehicle": ["car", "bus"], "sky": ["sky"], "rest": []},
    unmapped="rest",
)
PERSON, VEHICLE, SKY, REST = range(4)
PLAIN = MapSelection()


def _gold(tmp_path, source, maps):
    """Gold maps: 0 unknown, 1 person, 2 car, 3 sky, 4 chair."""
    folder = tmp_path / "gold"
    folder.mkdir(exist_ok=True)
    for i, values in enumerate(maps):
        Image.fromarray(values).save(folder / f"{i:03d}.png")
    names = {1: "person", 2: "car", 3: "sky", 4: "chair"}
    settings = MapFolder(folder="gold", categories=names, missing="absent")
    return replace(source, maps=settings.load(source.files, tmp_path, CLASSES, "gold"))


def _selected(store, source, settings, audit=None):
    chosen = ChosenMaps(store, CLASSES, settings)
    return chosen.read(source, chosen.select(source, audit))


def _select(tmp_path, source, maps, settings=PLAIN, audit=None, **kwargs):
    store = store_of_maps(tmp_path / "store", source, maps, **kwargs)
    return _selected(store, source, settings, audit)


def test_background_is_none_of_what_the_teacher_knows(tmp_path):
    source = pictures(tmp_path / "p", 2)
    silver = _select(tmp_path, source, [halves(0, 2)])
    labels = silver.labels(0)["maps"]
    assert (labels.classes[:, :16] == OTHER).all() and (labels.classes[:, 16:] == VEHICLE).all()
    assert labels.coverage.tolist() == [1, 1, 0, 0], "it knows no sky, and of the rest just sofas"
    assert labels.grade == silver.grade == Grade.SILVER
    assert "maps" not in silver.labels(1), "it was never shown that picture"


def test_unmapped_classes_go_where_the_classes_say(tmp_path):
    source = pictures(tmp_path / "p", 1)
    assert (_select(tmp_path, source, [halves(3, 3)]).labels(0)["maps"].classes == REST).all()
    with pytest.raises(InputError, match="'sofa' belongs to no class"):
        strict = MapClasses(classes={"person": ["person"], "vehicle": ["car"]})
        store = store_of_maps(tmp_path / "s", source, [halves(1, 1)])
        ChosenMaps(store, strict, MapSelection()).select(source)


def test_a_class_that_nobody_looked_for_in_the_teacher_s_training_is_unknown(tmp_path):
    source = pictures(tmp_path / "p", 1)
    store = store_of_maps(tmp_path / "store", source, [halves(1, 2)])
    untaught = store.card.model_copy(update={"unsearched": ("car",)})
    meaning = Meaning.of(untaught, CLASSES, PLAIN)
    assert Meaning.of(store.card, CLASSES, PLAIN).known.tolist() == [True, True, False, False]
    assert meaning.known.tolist() == [True, False, False, False]
    (record,) = store.records()
    classes = meaning(record)
    assert (classes[:, :16] == PERSON).all() and (classes[:, 16:] == UNKNOWN).all()


def test_what_takes_the_unmapped_counts_as_learned_and_what_is_not_covered_does_not(tmp_path):
    source = pictures(tmp_path / "p", 1)
    maps = _gold(tmp_path, source, [halves(1, 4)]).maps
    assert maps.coverage[REST] == 0 and maps.searched().tolist() == [True] * 4
    settings = MapFolder(
        folder="gold",
        categories={0: "person", 1: "person", 3: "sky", 4: "chair"},
        covers=["person"],
    )
    narrow = settings.load(source.files, tmp_path, CLASSES, "x")
    assert narrow.searched().tolist() == [True, False, False, True]
    silver = _select(tmp_path, source, [halves(1, 2)])
    assert silver.maps.searched().tolist() == [True, True, False, False], "it knows no sky"
    assert not replace(maps, files=FileNames.of(tmp_path, [""])).searched().any()


def test_unsure_pixels_and_edges_are_unknown(tmp_path):
    source = pictures(tmp_path / "p", 1)
    sure = np.full((HEIGHT, WIDTH), 255, np.uint8)
    sure[:4] = 100
    unsure = MapSelection(confidence=0.5)
    labels = _select(tmp_path, source, [halves(1, 2)], unsure, confidence=sure).labels(0)["maps"]
    assert (labels.classes[:4] == UNKNOWN).all() and (labels.classes[4:, :16] == PERSON).all()
    edges = MapSelection(border=2)
    labels = _select(tmp_path, source, [halves(1, 2)], edges).labels(0)["maps"]
    assert (labels.classes == UNKNOWN)[0].nonzero().flatten().tolist() == [14, 15, 16, 17]
    both = MapSelection(confidence=0.5, border=1)
    labels = _select(tmp_path, source, [halves(1, 2)], both, confidence=sure).labels(0)["maps"]
    assert (labels.classes[4] == PERSON).sum() == 15, "what is unknown has no edge"
    with pytest.raises(InputError, match="hard maps, without confidence"):
        _select(tmp_path, source, [halves(1, 2)], unsure)


def test_the_choice_is_written_once_and_can_be_looked_at(tmp_path):
    source = pictures(tmp_path / "p", 1)
    store = store_of_maps(tmp_path / "store", source, [halves(0, 2)])
    first = _selected(store, source, MapSelection())
    reads = store.reads
    again = _selected(store, source, MapSelection())
    assert store.reads == reads and first.maps.paths() == again.maps.paths()
    other = _selected(store, source, MapSelection(border=1))
    assert other.maps.paths() != first.maps.paths()
    folder = next((tmp_path / "store" / "select").glob("*"))
    stats = json.loads((folder / "stats.json").read_text())
    assert stats["pictures"] == 1
    with Image.open(first.maps.paths()[0]) as picture:
        assert picture.mode == "P" and len(picture.convert("RGB").getcolors()) == 2
    assert folder.stat().st_mode == folder.parent.stat().st_mode, (
        "whoever may read the store may read it"
    )


def test_people_s_maps_stay(tmp_path):
    source = _gold(tmp_path, pictures(tmp_path / "p", 2), [halves(3, 3)])
    silver = _select(tmp_path, source, [halves(1, 1), halves(2, 2)])
    first, second = silver.labels(0)["maps"], silver.labels(1)["maps"]
    assert (first.classes == SKY).all() and first.grade == Grade.GOLD
    assert (second.classes == VEHICLE).all() and second.grade == Grade.SILVER


def test_maps_that_another_model_wrote_give_way(tmp_path):
    source = _gold(tmp_path, pictures(tmp_path / "p", 2), [halves(3, 3), halves(3, 3)])
    source = replace(source, maps=replace(source.maps, grade=int(Grade.SILVER)))
    silver = _select(tmp_path, source, [halves(1, 1)])  # of the first picture alone
    first, second = silver.labels(0)["maps"], silver.labels(1)["maps"]
    assert (first.classes == PERSON).all() and (second.classes == SKY).all()
    assert not silver.maps.by_people().any() and len(silver.maps.paths()) == 2


def test_people_s_maps_of_other_sources_come_first_and_another_model_s_last(tmp_path):
    source = pictures(tmp_path / "p", 4)
    for name in ("old", "elsewhere", "own"):
        (tmp_path / name).mkdir()
    maps = _gold(tmp_path / "old", source, [halves(3, 3)] * 4).maps
    old = replace(_without(maps, 2), grade=int(Grade.SILVER))
    people = _gold(tmp_path / "elsewhere", source, [halves(4, 4)] * 4)
    one, two = (replace(people, maps=_without(people.maps, *w)) for w in ((0, 2, 3), (0, 3)))
    given = given_dense(replace(source, maps=old), [one, two], ["maps"])
    assert given.maps.by_people().tolist() == [False, True, True, False]
    assert given.maps.present().all() and len(given.maps.paths()) == 4
    silver = _select(tmp_path, given, [halves(2, 2)] * 3)
    found = [silver.labels(i)["maps"] for i in range(4)]
    assert [labels.classes.unique().tolist() for labels in found] == [
        [VEHICLE], [REST], [REST], [SKY],
    ]  # fmt: skip
    assert [int(labels.grade) for labels in found] == [1, 0, 0, 1]
    own = _without(_gold(tmp_path / "own", source, [halves(1, 1)] * 4).maps, 0, 2)
    given = given_dense(replace(source, maps=own), [two], ["maps"])
    again = _select(tmp_path, given, [halves(2, 2)] * 3)
    shown = [again.labels(i)["maps"].classes.unique().tolist() for i in range(4)]
    assert shown == [[VEHICLE], [PERSON], [REST], [PERSON]]


def _without(maps, *which):
    names = ["" if i in which else maps.files[i] for i in range(len(maps.files))]
    return replace(maps, files=FileNames.of("/", names))


@pytest.mark.parametrize("seen", [1, 2])
def test_pictures_that_would_share_a_map_are_refused(tmp_path, seen):
    source = pictures(tmp_path / "p", 2)
    Image.open(tmp_path / "p" / "001.png").save(tmp_path / "p" / "000.jpg")
    names = ["000.png", "000.jpg"]
    source = replace(source, files=FileNames.of(tmp_path / "p", names))
    with pytest.raises(InputError, match=r"000\.png and 000\.jpg differ in their ending alone"):
        _select(tmp_path, source, [halves(1, 1), halves(2, 2)][:seen])
    outside = replace(source, files=FileNames.of(tmp_path / "p", ["../p/000.png", "001.png"]))
    with pytest.raises(InputError, match="outside of the source's folder"):
        _select(tmp_path, outside, [halves(1, 1)])


def test_a_store_without_the_pictures_is_told(tmp_path):
    source = pictures(tmp_path / "p", 1)
    with pytest.raises(InputError, match="none of the pictures of the pool"):
        _select(tmp_path, source, [])


def _audited(tmp_path, truth, found, settings=PLAIN, **kwargs):
    source = _gold(tmp_path, pictures(tmp_path / "p", len(truth)), truth)
    store = store_of_maps(tmp_path / "store", source, found, **kwargs)
    checked = audit_maps(store, source, CLASSES, settings)
    return checked, ChosenMaps(store, CLASSES, settings).measures(checked)


def test_an_audit_asks_people_alone(tmp_path):
    source = pictures(tmp_path / "p", 2)
    gold = _gold(tmp_path, source, [halves(1, 2), halves(1, 2)])
    store = store_of_maps(tmp_path / "store", source, [halves(1, 2)] * 2)
    assert audit_maps(store, gold, CLASSES, PLAIN).pictures == 2
    by_model = replace(gold, maps=replace(gold.maps, grade=Grade.SILVER))
    with pytest.raises(InputError, match="has no maps by people"):
        audit_maps(store, by_model, CLASSES, PLAIN)


def test_an_audit_counts_pixels(tmp_path):
    # of cars half are seen as cars and half as background; sky is taken for background, or a person
    truth = [halves(2, 3)] * 6
    found = [halves(2, 0)] * 3 + [halves(0, 1)] * 3
    checked, measures = _audited(tmp_path, truth, found)
    half = HEIGHT * WIDTH // 2
    assert checked.pictures == 6 and checked.missing == 0 and not checked.graded
    assert measures.pixels[VEHICLE].tolist() == [0, 3 * half, 0, 0, 3 * half]
    assert measures.pixels[SKY].tolist() == [3 * half, 0, 0, 0, 3 * half]
    assert measures.found()[VEHICLE] == pytest.approx(0.5)
    # given to 3 pictures only: judged by all classes together
    assert measures.precision()[VEHICLE] == pytest.approx(0.5)
    assert measures.precision()[SKY] == 0 and not checked.known[SKY]
    assert measures.iou()[[VEHICLE, SKY]].tolist() == [0.5, 0]
    assert "vehicle" in str(measures.table().columns[0]._cells)


def test_a_teacher_misses_nothing_of_classes_that_it_does_not_know(tmp_path):
    _, measures = _audited(tmp_path, [halves(2, 3)] * 6, [halves(2, 0)] * 6)
    row = measures.row("all")
    assert row.recall.value == row.precision.value == measures.mean_iou() == 1
    assert measures.row("sky", SKY).recall.value == measures.iou()[SKY] == 0


def test_precision_weighs_and_what_was_missed_is_left_open(tmp_path):
    truth = [halves(2, 3)] * 8
    found = [halves(2, 2)] * 4 + [halves(2, 0)] * 2 + [halves(0, 0)] * 2
    checked, _ = _audited(tmp_path, truth, found)
    pool = pictures(tmp_path / "pool", 1, first=50)
    silver = _select(tmp_path, pool, [halves(0, 2)], audit=checked)
    labels = silver.labels(0)["maps"]
    assert labels.weights[0, -1] == pytest.approx(6 / 10, abs=1e-4)
    assert labels.weights[0, 0] == 1, "background"
    assert labels.coverage[VEHICLE] == pytest.approx(6 / 8)
    plain = MapSelection(weight="one", coverage=1)
    labels = _select(tmp_path, pool, [halves(0, 2)], plain, checked).labels(0)["maps"]
    assert labels.weights.min() == 1 and labels.coverage.tolist() == [1, 1, 0, 0]


def test_what_is_unmapped_weighs_as_little_as_gold_confirms(tmp_path):
    truth = [halves(2, 4)] * 8  # the other half is a chair, which is of the rest
    checked, measures = _audited(tmp_path, truth, [halves(3, 2)] * 6 + [halves(2, 3)] * 2)
    assert not checked.known[REST] and measures.precision()[REST] == pytest.approx(2 / 8)
    pool = pictures(tmp_path / "pool", 1, first=50)
    labels = _select(tmp_path, pool, [halves(3, 0)], audit=checked).labels(0)["maps"]
    assert labels.weights[0, 0] == pytest.approx(0.25) and labels.coverage[REST] == 0


def test_classes_of_low_precision_give_no_labels_but_still_deny(tmp_path):
    truth = [halves(2, 3)] * 6
    checked, _ = _audited(tmp_path, truth, [halves(2, 2)] * 6)
    pool = pictures(tmp_path / "pool", 1, first=50)
    strict = MapSelection(least_precision=0.9)
    labels = _select(tmp_path, pool, [halves(0, 2)], strict, checked).labels(0)["maps"]
    assert (labels.classes[:, 16:] == UNKNOWN).all() and (labels.classes[:, :16] == OTHER).all()
    assert labels.coverage[VEHICLE] == 1
    with pytest.raises(InputError, match="needs an audit"):
        _select(tmp_path, pool, [halves(0, 2)], strict)


def test_intervals_are_over_pictures_not_pixels(tmp_path):
    rng = np.random.default_rng(0)
    truth = [halves(2, 3)] * 40
    found = [halves(2, 2 * int(rng.random() < 0.5)) for _ in range(40)]
    _, measures = _audited(tmp_path, truth, found)
    ratios = []
    extra = np.array([(f == 2).mean() for f in found])
    for _ in range(2000):  # the bootstrap says how much the ratio varies with the pictures
        drawn = extra[rng.integers(0, 40, 40)]
        ratios.append(0.5 * 40 / drawn.sum())
    low, high = measures.row("vehicle", VEHICLE).precision.interval
    assert (high - low) / 2 == pytest.approx(1.96 * np.std(ratios), rel=0.15)
    assert measures.row("person", PERSON).precision.count == 0


def test_an_audit_is_kept_and_renewed(tmp_path):
    truth = [halves(2, 3)] * 2
    source = _gold(tmp_path, pictures(tmp_path / "p", 2), truth)
    store = store_of_maps(tmp_path / "store", source, truth)
    first = audit_maps(store, source, CLASSES, MapSelection())
    reads = store.reads
    again = audit_maps(store, source, CLASSES, MapSelection())
    assert store.reads == reads and again.digest() == first.digest()
    changed = _gold(tmp_path, source, [halves(3, 3)] * 2)
    assert audit_maps(store, changed, CLASSES, MapSelection()).digest() != first.digest()


@pytest.mark.parametrize("how", ["alone", "filled", "joined"])
def test_an_audit_is_renewed_where_gold_s_files_mean_something_else(tmp_path, how):
    """A user who corrects a legend, as an audit asks for, gets another audit."""
    names = ["person", "car", "sky"]
    truth = [halves(1, 2)] * 2
    bare = pictures(tmp_path / "p", 2)
    _gold(tmp_path, bare, truth)
    store = store_of_maps(tmp_path / "store", bare, truth)

    def audited(ids):
        categories = dict(zip(ids, names, strict=True))
        folder = MapFolder(folder="gold", categories=categories)
        source = replace(bare, maps=folder.load(bare.files, tmp_path, CLASSES, "gold"))
        if how == "filled":
            files = replace(source.maps, files=FileNames.of(tmp_path / "gold", ["", ""]))
            source = replace(source, maps=FilledMaps(files, source.maps))
        elif how == "joined":
            source = joined("both", [source])
        return audit_maps(store, source, CLASSES, MapSelection())

    right, swapped = audited([1, 2, 3]), audited([2, 1, 3])
    assert right.digest() != swapped.digest()
    assert audited([1, 2, 3]).digest() == right.digest()


def test_an_audit_is_renewed_where_gold_looked_for_fewer_classes(tmp_path):
    truth = [halves(1, 2)] * 2
    source = _gold(tmp_path, pictures(tmp_path / "p", 2), truth)
    store = store_of_maps(tmp_path / "store", source, truth)
    maps = replace(source.maps, coverage=np.eye(1, len(source.maps.coverage), dtype=np.float32)[0])
    one = audit_maps(store, source, CLASSES, MapSelection())
    other = audit_maps(store, replace(source, maps=maps), CLASSES, MapSelection())
    assert one.gold_hash != other.gold_hash


def test_permuted_classes_are_noticed(tmp_path):
    truth = [halves(1, 2)] * 6
    assert _audited(tmp_path, truth, [halves(1, 2)] * 6)[1].problems() == []
    swapped = ("background", "car", "person", "sofa")
    problems = _audited(tmp_path, truth, [halves(1, 2)] * 6, classes=swapped)[1].problems()
    assert len(problems) == 2 and "in another order" in problems[0]


def test_empty_maps_are_noticed(tmp_path):
    _, measures = _audited(tmp_path, [halves(1, 2)] * 6, [halves(0, 0)] * 6)
    assert any("all background" in p for p in measures.problems())


def test_a_class_of_the_teacher_that_means_more_than_ours_is_noticed(tmp_path):
    # half of the sky, which it does not look for, is called a car, as cars are
    truth, found = [halves(2, 3)] * 4, [halves(2, 2)] * 2 + [halves(2, 0)] * 2
    _, measures = _audited(tmp_path, truth, found)
    (told,) = measures.remarks()
    assert (
        "does not look for 'sky', calls 50% of its pixels 'vehicle', and these are 33% of" in told
    )
    assert "select_maps.background" in told and measures.problems() == []
    wider = MapSelection(background=["background", "car"])
    _, measures = _audited(tmp_path / "wider", truth, found, wider)
    assert measures.remarks() == []


@pytest.mark.parametrize(
    "found",
    [
        [halves(2, 2)] + [halves(2, 0)] * 3,  # a quarter of the sky
        [halves(1, 1)] * 4,  # what it knows is for the gates, see below
    ],
)
def test_what_is_rare_or_known_is_no_class_that_means_more(tmp_path, found):
    truth = [halves(2, 3)] * 4 if (found[0] == 2).any() else [halves(2, 1)] * 4
    _, measures = _audited(tmp_path, truth, found)
    assert measures.remarks() == []


def test_one_picture_tells_of_no_class_that_means_more(tmp_path):
    _, measures = _audited(tmp_path, [halves(2, 3)] + [halves(2, 2)] * 3, [halves(2, 2)] * 4)
    assert measures.remarks() == [] and measures.shown[SKY] == 1


def test_gold_without_the_teacher_s_classes_cannot_judge(tmp_path):
    _, measures = _audited(tmp_path, [halves(3, 3)] * 6, [halves(0, 0)] * 6)
    assert "cannot be judged" in measures.problems()[0]


def test_gold_without_maps_is_refused(tmp_path):
    source = pictures(tmp_path / "p", 1)
    store = store_of_maps(tmp_path / "store", source, [halves(1, 1)])
    with pytest.raises(InputError, match="no maps to audit against"):
        audit_maps(store, source, CLASSES, MapSelection())


def _graded(count, seed=0):
    """Returns gold and maps of a teacher of vehicles (left) and persons (right) whose lower half is sure
    and right, and whose upper half is half sure and right of vehicles, wrong of persons."""
    truth = [halves(2, 1) for _ in range(count)]
    for values in truth:
        values[:12, 16:] = 2
    sure = np.full((HEIGHT, WIDTH), 250, np.uint8)
    sure[:12] = 100
    return truth, [halves(2, 1)] * count, sure


def test_a_wanted_precision_finds_each_class_s_confidence(tmp_path):
    truth, found, sure = _graded(30)
    policy = MapSelection(confidence=AtPrecision(precision=0.9))
    checked, measures = _audited(tmp_path, truth, found, policy, confidence=sure)
    assert checked.graded
    assert measures.limits.tolist() == pytest.approx([250 / 255, 100 / 255, *[250 / 255] * 2, 0])
    assert measures.precision()[[PERSON, VEHICLE]].tolist() == [1, 1]
    assert MapMeasures(checked, np.zeros(5)).precision()[PERSON] == 0.5
    pool = pictures(tmp_path / "pool", 1, first=50)
    silver = _select(tmp_path, pool, found[:1], policy, checked, confidence=sure)
    labels = silver.labels(0)["maps"]
    assert (labels.classes[:12, 16:] == UNKNOWN).all()
    assert (labels.classes[12:, 16:] == PERSON).all() and (labels.classes[:, :16] == VEHICLE).all()
    assert labels.weights[-1, -1] == 1, "the weight is the precision of what became a label"
    own = MapSelection(confidence=0.1, per_class={"vehicle": AtPrecision(precision=1.0)})
    limits = ChosenMaps(store_of_maps(tmp_path, pool, []), CLASSES, own).measures(checked).limits
    assert limits[PERSON] == pytest.approx(0.1) and limits[VEHICLE] > 0.1


def test_a_wanted_probability_goes_through_calibration(tmp_path):
    pytest.importorskip("sklearn")
    truth, found, sure = _graded(60)
    isotonic = {"method": "isotonic", "shrink": 0}
    policy = MapSelection(confidence=AtProbability(probability=0.7), calibration=isotonic)
    checked, measures = _audited(tmp_path, truth, found, policy, confidence=sure)
    assert measures.limits[PERSON] > 100 / 255 >= measures.limits[VEHICLE]
    before = measures.reliability()
    fitted = cross_fitted(checked.evidence, policy.calibration)
    after = measures.reliability(probabilities=fitted)
    assert before.counts.sum() == 60 * HEIGHT * WIDTH, "the diagram is of pixels"
    # right are .98 * .5 + .39 * .25 of all pixels, and the person's uncertain ones never
    assert before.error() == pytest.approx(
        0.5 * (1 - 250 / 255) + 0.5 * (0.5 - 100 / 255), abs=1e-3
    )
    assert after.error() < 0.03


def test_without_an_audit_scores_may_stand_for_probabilities(tmp_path):
    source = pictures(tmp_path / "p", 1)
    _, found, sure = _graded(1)
    for wanted in (AtPrecision(precision=0.9), AtProbability(probability=0.9)):
        with pytest.raises(InputError, match=r"need an audit|only an audit"):
            _select(tmp_path, source, found, MapSelection(confidence=wanted), confidence=sure)
    policy = MapSelection(confidence=AtProbability(probability=0.9), calibration="none")
    labels = _select(tmp_path, source, found, policy, confidence=sure).labels(0)["maps"]
    assert (labels.classes[:12] == UNKNOWN).all() and (labels.classes[12:] != UNKNOWN).all()
    with pytest.raises(InputError, match=r"'vehicl' is no class \(nearest: 'vehicle'\)"):
        _select(tmp_path, source, found, MapSelection(per_class={"vehicl": 0.5}))
    with pytest.raises(ValueError, match=r"vehicle: 1\.5 is no score"):
        MapSelection(per_class={"vehicle": 1.5})


def test_hard_maps_reach_a_precision_by_class_or_not_at_all(tmp_path):
    truth = [halves(2, 3)] * 30
    found = [halves(2, 1)] * 30
    policy = MapSelection(confidence=AtPrecision(precision=0.8))
    _, measures = _audited(tmp_path, truth, found, policy)
    assert measures.limits[PERSON] == np.inf and measures.limits[VEHICLE] == 1


def test_one_audit_serves_all_thresholds_and_is_read_as_it_was_written(tmp_path):
    truth, found, sure = _graded(3)
    checked, measures = _audited(tmp_path, truth, found, confidence=sure)
    again, strict = _audited(tmp_path, truth, found, MapSelection(confidence=0.5), confidence=sure)
    assert again.digest() == checked.digest() and strict.pixels.sum() == measures.pixels.sum() / 2
    (path,) = (tmp_path / "store" / "audit").glob("*/maps.json")
    read = MapAudit.load(path)
    assert (read.rows == checked.rows).all() and read.digest() == checked.digest()
    path.write_text("{}")
    with pytest.raises(InputError, match="audit again"):
        MapAudit.load(path)


def test_the_worst_pictures_are_those_of_which_the_teacher_is_surely_wrong(tmp_path):
    truth = [halves(1, 2), halves(1, 1), halves(1, 2)]
    found = [halves(1, 2), halves(1, 2), halves(2, 1)]
    _, measures = _audited(tmp_path, truth, found)
    worst = measures.worst(5)
    assert [one.picture for one in worst] == [2, 1]
    assert worst[0].share == 1 and worst[1].pairs == ((PERSON, VEHICLE, 0.5),)
    assert measures.worst(1) == worst[:1]


def test_pixels_are_worth_as_many_observations_as_pictures_vary():
    rng = np.random.default_rng(0)
    wholes = np.full((400, 1), 1000.0)
    own = rng.binomial(1000, 0.7, (400, 1)).astype(float)  # pixels that are independent
    assert observations(own, wholes)[0] == MOST * 400
    alike = 1000.0 * (rng.random((400, 1)) < 0.7)  # pictures that are right or wrong as a whole
    assert observations(alike, wholes)[0] == pytest.approx(400, rel=0.02)
    assert observations(wholes, wholes)[0] == 400, "all right: as if each picture were one"
    uneven = np.array([[1000.0], [1.0], [1.0]])
    assert observations(uneven, uneven)[0] == pytest.approx(1, abs=0.01)
    assert observations(np.zeros((2, 1)), np.zeros((2, 1)))[0] == 0
