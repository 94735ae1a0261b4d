"""Maps and tags of several teachers as those of one."""

import json
from io import StringIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from map_stand_ins import halves
from rich.console import Console
from silver_stand_ins import HEIGHT, WIDTH, ColorTeacher, pictures
from test_silver_maps import _gold as gold_maps
from test_silver_tags import _gold as gold_tags
from test_teacher_arm import ONE, OtherTeacher, run  # noqa: F401

from detmtl import pools, run_teachers
from detmtl.cli import main
from detmtl.config import read_settings
from detmtl.data.map_files import read_values
from detmtl.data.maps import MapClasses
from detmtl.data.tags import TagClasses
from detmtl.engine import distributed
from detmtl.run_folder import OpenRun, RunFolder
from detmtl.run_sources import load_sources, to_be_labelled
from detmtl.silver.chosen import stack
from detmtl.silver.map_policy import MapSelection
from detmtl.silver.map_stack import stacked
from detmtl.silver.maps import ChosenMaps
from detmtl.silver.some_store import together
from detmtl.silver.store import Store
from detmtl.silver.tag_policy import TagSelection
from detmtl.silver.tags import ChosenTags
from detmtl.structures.errors import InputError
from detmtl.structures.labels import OTHER, UNKNOWN, MapLabels, TagLabels
from detmtl.teachers.annotate import annotate

PERSON, VEHICLE, SKY, REST = range(4)
MAPS = MapClasses(
    classes={"person": ["person"], "vehicle": ["car"], "sky": ["sky"], "rest": []}, unmapped="rest"
)
TAGS = TagClasses(classes={"night": ["night", "dusk"], "rain": ["rain"], "snow": ["snow"]})


class Says(ColorTeacher):
    """Says of the i-th picture what it was given."""

    def __init__(self, name, classes, said, task="maps"):
        super().__init__()
        card = {"name": name, "classes": classes, "task": task}
        self.card, self._said = self.card.model_copy(update=card), list(said)

    def annotate(self, images, infos, floor=0.05):
        return [self._labels(self._said[info.id - 100]) for info in infos]

    def _labels(self, said):
        if self.card.task == "tags":
            said = torch.tensor(said, dtype=torch.float32)
            return TagLabels(said.nan_to_num(), (~said.isnan()).float())
        return MapLabels(torch.from_numpy(said), None, torch.ones(len(self.card.classes)))


def _store(path, teacher, source, **how):
    return annotate(teacher, [source], path, part_pictures=2, **how)


def test_the_most_trusted_class_counts_unless_it_was_denied():
    first = np.array([[0, OTHER, OTHER, UNKNOWN, UNKNOWN, OTHER, UNKNOWN, OTHER]], np.uint8)
    second = np.array([[1, 2, 0, 1, OTHER, OTHER, UNKNOWN, UNKNOWN]], np.uint8)
    known = np.array([[True, False, False], [True, True, True]])
    assert stacked([first, second], known).tolist() == [
        [0, 2, UNKNOWN, 1, UNKNOWN, OTHER, UNKNOWN, UNKNOWN]
    ]
    third = np.full_like(first, 2)
    assert stacked([first, second, third], known[[0, 1, 1]]).tolist() == [
        [0, 2, UNKNOWN, 1, UNKNOWN, UNKNOWN, 2, 2]
    ], "the second knows that class, and takes the fifth and sixth for background"
    assert (stacked([first], known[:1]) == first).all()


def test_records_are_matched_by_picture_whatever_the_order(tmp_path):
    source = pictures(tmp_path / "p", 7)
    maps = [np.full((HEIGHT, WIDTH), i % 2, np.uint8) for i in range(7)]
    one = _store(tmp_path / "s", Says("a", ("person", "car"), maps), source)
    back = source.subset(np.arange(6)[::-1])  # in another order, and one less
    two = _store(tmp_path / "s", Says("b", ("person", "car"), maps), back)
    wanted = source.hashes()[1:]
    found = list(together([one, two], wanted))
    assert {a.content_hash for a, _ in found} == set(source.hashes()[1:6])
    for a, b in found:
        i = source.hashes().index(a.content_hash)
        assert b.content_hash == a.content_hash and (b.classes == i % 2).all()


def test_records_that_wait_lie_in_the_store(tmp_path, monkeypatch):
    source = pictures(tmp_path / "p", 2)
    maps = [np.zeros((HEIGHT, WIDTH), np.uint8)] * 2
    stores = [_store(tmp_path / "s", Says(name, ("person",), maps), source) for name in "ab"]
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))  # it may be memory
    before = sorted((tmp_path / "s").rglob("*"))
    assert len(list(together(stores, source.hashes()))) == 2
    assert sorted((tmp_path / "s").rglob("*")) == before


def test_maps_of_two_teachers_are_audited_and_chosen_as_one(tmp_path):
    count = 6
    source = gold_maps(tmp_path, pictures(tmp_path / "p", count), [halves(1, 3)] * count)
    # one knows persons and finds them, one knows sky and finds it, and takes persons for cars
    a = _store(tmp_path / "s", Says("a", ("person",), [halves(0, OTHER)] * count), source)
    b = _store(tmp_path / "s", Says("b", ("car", "sky"), [halves(0, 1)] * count), source)
    policy = MapSelection(background=[])
    alone = [ChosenMaps(store, MAPS, policy) for store in (a, b)]
    audits = [others.audit(source) for others in alone]
    fused = stack(alone, audits)
    checked = fused.audit(source)
    measures = fused.measures(checked)
    assert checked.known.tolist() == [True, True, True, False] and checked.pictures == count
    assert measures.iou()[[PERSON, SKY]].tolist() == [1, 1]
    assert [
        others.measures(one).iou()[PERSON] for others, one in zip(alone, audits, strict=True)
    ] == [
        1,
        0,
    ]
    pool = pictures(tmp_path / "pool", 1, first=50)
    for name, said, classes in (
        ("a", halves(0, OTHER), ("person",)),
        ("b", halves(0, 1), ("car", "sky")),
    ):
        _store(tmp_path / "s", Says(name, classes, [said]), pool)
    stores = [Store.open(tmp_path / "s", name) for name in "ab"]
    alone = [ChosenMaps(store, MAPS, policy) for store in stores]
    fused = stack(alone, [others.audit(source) for others in alone])
    labels = fused.read(pool, fused.select(pool, fused.audit(source))).labels(0)["maps"]
    assert (labels.classes[:, :16] == PERSON).all() and (labels.classes[:, 16:] == SKY).all()
    assert labels.coverage.tolist() == [1, 1, 1, 0], "vehicles, which gold lacks, as all together"
    back = stack(alone[::-1], [others.audit(source) for others in alone[::-1]])
    assert back.store.digest() != fused.store.digest()
    assert (next(back.store.records_of(pool.hashes())).classes[:, :16] == VEHICLE).all()


def test_tags_of_two_teachers_are_the_mean_of_what_they_say(tmp_path):
    count = 40
    truth = [[k % 2, k % 4 > 1, 0] for k in range(count)]
    source = gold_tags(pictures(tmp_path / "p", count), truth)
    nan = float("nan")
    # the first boasts of nights; the second knows rain and half of the nights
    said = [[0.9 if k % 2 else 0.6, 0.1] for k in range(count)]
    own = [[nan if k % 3 else 0.8 * (k % 2) + 0.1, 0.7 * (k % 4 > 1) + 0.1] for k in range(count)]
    a = _store(tmp_path / "s", Says("a", ("night", "dusk"), said, "tags"), source)
    b = _store(tmp_path / "s", Says("b", ("night", "rain"), own, "tags"), source)
    plain = TagSelection(calibration="none")
    alone = [ChosenTags(store, TAGS, plain) for store in (a, b)]
    audits = [others.audit(source) for others in alone]
    fused = stack(alone, audits)
    assert fused.store.card.classes == ("night", "rain")
    scores = {r.content_hash: r.scores for r in fused.store.records_of(source.hashes())}
    hashes = source.hashes()
    assert scores[hashes[1]].tolist() == pytest.approx([0.9, 0.1]), "who says nothing has no part"
    assert scores[hashes[3]].tolist() == pytest.approx([0.9, 0.8])
    pytest.importorskip("sklearn")
    alone = [ChosenTags(store, TAGS, TagSelection()) for store in (a, b)]
    fused = stack(alone, audits)
    measures = fused.measures(fused.audit(source))
    row = measures.row("night", 0)
    assert (row.precision.value, row.recall.value) == (1, 1), "of the first alone .5: it boasts"
    assert alone[0].measures(audits[0]).row("night", 0).precision.value == 0.5
    assert measures.row("rain", 1).recall.value == 1


def _labelled(tmp_path, gold, task, select, **teachers):
    """Labels a pool of one picture as a run does that stops at gates; returns its labels, and what is told.

    Args:
        gold: what teachers are audited on.
        task: of the teachers.
        select: the policy.
        teachers: name -> classes, what each says of gold's pictures, and of the pool's.
    """
    pool = pictures(tmp_path / "pool", 1, name="pool", first=60)
    for name, (classes, said, of_pool) in teachers.items():
        _store(tmp_path / "s", Says(name, classes, said, task), gold)
        _store(tmp_path / "s", Says(name, classes, [of_pool], task), pool)
    silver = {"select_maps": MapSelection(), "select_tags": TagSelection(), "gates": "stop"}
    settings = SimpleNamespace(
        data=SimpleNamespace(maps=MAPS, tags=TAGS),
        silver=SimpleNamespace(**(silver | {f"select_{task}": select})),
    )
    stores = [Store.open(tmp_path / "s", name) for name in teachers]
    console = Console(file=StringIO(), width=200)
    own = OpenRun(settings, None, SimpleNamespace(rank=0), console)
    found = pools._label_others(own, [pool], gold, stores)
    return found["pool"].labels(0)[task], console.file.getvalue()


def test_a_teacher_of_maps_that_gold_cannot_judge_abstains(tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "available", lambda: False)
    count = 6
    gold = gold_maps(tmp_path, pictures(tmp_path / "p", count), [halves(1, 4)] * count)
    own, skies = halves(0, OTHER), halves(OTHER, 0)
    a, b = (("person",), [own] * count, own), (("sky",), [skies] * count, skies)
    policy = MapSelection(background=[], border=1)
    with pytest.warns(UserWarning, match=r"teacher 'b' abstains: .* \(sky\) in 0 pictures") as told:
        labels, table = _labelled(tmp_path / "1", gold, "maps", policy, a=a, b=b)
    assert {"abstains" in str(w.message) for w in told} == {True}
    assert "Teacher a:" in table and "Teacher b:" not in table
    assert (labels.classes[:, :15] == PERSON).all() and (labels.classes[:, 17:] != SKY).all()
    assert labels.coverage.tolist() == [1, 0, 0, 0], "nobody looked for skies"
    for name in (
        "audit/*/summary",
        "select/*/policy",
    ):  # and not what is left to do once they are stacked
        (file,) = (tmp_path / "1/s/fused").glob(f"*/{name}.json")
        assert json.loads(file.read_text())["settings"] == policy.model_dump(mode="json")
    plain = MapSelection(background=[], calibration="none")
    labels, _ = _labelled(tmp_path / "2", gold, "maps", plain, a=a, b=b)
    assert (labels.classes[:, 16:] == SKY).all() and labels.coverage[SKY] == 1
    with pytest.raises(InputError, match="teacher 'b' abstains"):
        _labelled(tmp_path / "3", gold, "maps", policy, b=b, c=b)
    swapped = (("car", "person"), [own] * count, own)
    with pytest.raises(InputError, match=r"teacher 'c': audit: 100% of the pixels of 'person'"):
        _labelled(tmp_path / "4", gold, "maps", policy, a=a, c=swapped)


def test_a_teacher_of_tags_that_gold_cannot_judge_abstains(tmp_path, monkeypatch):
    monkeypatch.setattr(pools, "available", lambda: False)
    count = 30
    gold = gold_tags(pictures(tmp_path / "p", count), [[k % 2, 0, 0] for k in range(count)])
    a = (("night", "dusk"), [[0.8 * (k % 2) + 0.1, 0.1] for k in range(count)], [0.9, 0.1])
    b = (("snow",), [[0.9]] * count, [0.9])
    fitted = TagSelection(calibration="platt")
    with pytest.warns(UserWarning, match=r"teacher 'b' abstains: .* 0 times .* \(snow\)") as told:
        labels, table = _labelled(tmp_path / "1", gold, "tags", fitted, a=a, b=b)
    assert {"abstains" in str(w.message) for w in told} == {True}
    assert "Teacher a:" in table and "Teacher b:" not in table
    assert labels.targets.tolist() == [1, 0, 0] and labels.weights.tolist() == [1, 0, 0]
    plain = TagSelection(calibration="none")
    labels, _ = _labelled(tmp_path / "2", gold, "tags", plain, a=a, b=b)
    assert labels.targets.tolist() == [1, 0, 1], "as boxes are taken as they are"
    with pytest.raises(InputError, match="teacher 'b' abstains"):
        _labelled(tmp_path / "3", gold, "tags", fitted, b=b, c=b)
    wrong = (("night", "dusk"), [[0.9 - 0.8 * (k % 2), 0.1] for k in range(count)], [0.9, 0.1])
    with pytest.raises(InputError, match=r"teacher 'c': audit: of the tags that the teacher calls"):
        _labelled(tmp_path / "4", gold, "tags", fitted, a=a, c=wrong)


def _label(settings, tmp_path):
    process, console = distributed.start("cpu"), Console(quiet=True)
    sources, val, _ = load_sources(settings, tmp_path / "cache", process)
    sources |= to_be_labelled(settings, sources)
    own = OpenRun(settings, RunFolder(tmp_path / "folder"), process, console)
    return pools.label_pools(own, sources, val)


def test_a_run_with_several_teachers_of_maps_labels_its_pool(run, tmp_path, monkeypatch):  # noqa: F811
    with pytest.raises(InputError):  # writes the files
        run("x", OtherTeacher("maps"), overrides=[*ONE, "tasks={boxes: {kind: detection}}"])
    teachers = [OtherTeacher("maps"), OtherTeacher("maps")]
    teachers[1].card = teachers[1].card.model_copy(update={"name": "u"})
    monkeypatch.setattr(pools, "load_teachers", lambda *_: iter(teachers))
    settings = read_settings(tmp_path / "run.yaml")
    data = settings.data.model_copy(update={"val": settings.data.test, "test": None})
    settings = settings.model_copy(update={"data": data})
    labelled, store = _label(settings, tmp_path)
    labels = labelled["pool"].labels(0)["maps"]
    record = next(Store.open(store, "t").records_of(labelled["pool"].hashes()))
    assert (labels.classes.numpy() == record.classes).all()
    assert labels.coverage[:2].tolist() == [1, 1]
    assert len(list((store / "fused").glob("*/select/*/legend.json"))) == 1
    mixed = [ColorTeacher(), replace_name(OtherTeacher("maps"), "u")]
    monkeypatch.setattr(pools, "load_teachers", lambda *_: iter(mixed))
    with pytest.raises(InputError, match="t boxes, u maps"):
        _label(settings, tmp_path / "mixed")
    monkeypatch.setattr(run_teachers, "load_teachers", lambda *_: iter(mixed))
    folder, process = RunFolder(tmp_path / "asked"), distributed.start("cpu")
    asked = OpenRun(settings, folder, process, Console(quiet=True))
    with pytest.raises(InputError, match="t boxes, u maps"):
        run_teachers.written_offline(asked)
    assert not folder.path.exists(), "nothing was labelled before it was told"
    for kind in ("maps", "tags"):
        one = OtherTeacher(kind)
        monkeypatch.setattr(run_teachers, "load_teachers", lambda *_, one=one: iter([one]))
        assert run_teachers.written_offline(asked) == (kind, one)


def test_an_arm_scores_several_teachers_of_maps_as_one(run):  # noqa: F811
    plain = ["data.val=" + TEST, "data.test=null"]
    teachers = [OtherTeacher("maps"), replace_name(OtherTeacher("maps"), "u")]
    assert run("maps", *teachers, overrides=plain)["map/mIoU"] == 1


TEST = (
    "{kind: coco, images: test, annotations: test.json, maps: {folder: maps, categories: "
    "{1: person, 2: car, 3: rest}}}"
)


def replace_name(teacher, name):
    teacher.card = teacher.card.model_copy(update={"name": name})
    return teacher


def test_verbs_stack_the_maps_of_the_teachers_that_are_named(tmp_path, capsys):
    source = pictures(tmp_path / "p", 6)
    gold_maps(tmp_path, source, [halves(1, 3)] * 6)
    _store(tmp_path / "s", Says("a", ("person",), [halves(0, OTHER)] * 6), source)
    _store(tmp_path / "s", Says("b", ("car", "sky"), [halves(0, 1)] * 6), source)
    legend = [{"id": i + 1, "name": name} for i, name in enumerate(("person", "car", "sky"))]
    (tmp_path / "legend.json").write_text(json.dumps(legend))
    store = ["--store", tmp_path / "s", "--images", tmp_path / "p", "--teacher", "a", "b"]
    gold = ["--maps", tmp_path / "gold", "--categories", tmp_path / "legend.json"]

    def verb(*words):
        return main([str(word) for word in words])

    assert verb("audit", *store, *gold) == 0
    told = [line.split() for line in capsys.readouterr().out.splitlines() if "person" in line]
    assert told and any("1.00" in word for word in told[0])
    assert verb("select", *store, *gold, "--out", tmp_path / "out") == 0
    values = read_values(tmp_path / "out" / "maps" / "000.png")
    names = {
        row["id"]: row["name"]
        for row in json.loads((tmp_path / "out" / "legend.json").read_text())["categories"]
    }
    assert {names[v] for v in np.unique(values[:, :16])} == {"person"}
    assert {names[v] for v in np.unique(values[:, 16:])} == {"sky"}
    assert verb("select", *store, "--out", tmp_path / "none") == 2
    assert "--maps is needed" in capsys.readouterr().err
