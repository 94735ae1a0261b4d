"""Pictures that people labelled in part, and that are in a pool too: gold where people looked, silver for
the rest, in every copy."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from map_stand_ins import halves
from rich.console import Console
from silver_stand_ins import HEIGHT, WIDTH, ColorTeacher, gold, pictures, store_of
from test_teacher_arm import ONE, _coco, run  # noqa: F401

from detmtl import pools
from detmtl.config import read_settings
from detmtl.data import images
from detmtl.data.depth import Depths
from detmtl.data.details import FlatDetails
from detmtl.data.flat import FileNames
from detmtl.data.joined import joined
from detmtl.data.map_files import write_values
from detmtl.data.maps import MapClasses, MapFolder
from detmtl.data.tags import Tags
from detmtl.engine import distributed
from detmtl.run_folder import OpenRun, RunFolder
from detmtl.run_sources import load_sources, pools_apart, to_be_labelled
from detmtl.silver.audit import audit
from detmtl.silver.held_out import each_once, given_gold, unlabelled_apart, without_doubles
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade

A, B = [1, 1, 11, 11], [12, 2, 22, 20]
PERSONS, CARS = [[1.0, 0.0]], [[0.0, 1.0]]


def test_a_pool_is_given_what_people_know_of_its_pictures(tmp_path):
    pool = pictures(tmp_path / "pool", 4, name="pool")
    persons = gold(pictures(tmp_path / "a", 2, name="a", first=2), [(0, A, 0, 0)], PERSONS)
    cars = gold(pictures(tmp_path / "b", 2, name="b", first=3), [(0, A, 1, 0), (0, B, 1, 0)], CARS)
    given, told = given_gold(pool, [persons, cars])
    assert [sentence.split(";")[0] for sentence in told] == [
        "source 'pool': people labelled 2 of its 4 pictures in source 'a'",
        "source 'pool': people labelled 1 of its 4 pictures in source 'b'",
    ]
    assert list(given.files.paths()) == list(pool.files.paths())
    assert given.coverage.tolist() == [[0, 0], [0, 0], [1, 0], [1, 1]]
    assert [given.boxes(i).classes.tolist() for i in range(4)] == [[], [], [0], [1, 1]]
    assert (given.annotations.ignore == 0).all(), "people do not contradict each other"
    assert given.boxes(3).boxes.tolist() == [A, B] and given.grades() == {Grade.GOLD}
    silver = replace(persons, grade=Grade.SILVER)
    assert given_gold(pool, [silver, pictures(tmp_path / "c", 4, name="c")]) == (pool, [])


def test_a_pool_keeps_its_own_gold(tmp_path):
    pool = gold(pictures(tmp_path / "pool", 2, name="pool"), [(0, A, 0, 0), (1, A, 0, 0)], PERSONS)
    twin = gold(pictures(tmp_path / "twin", 2, name="twin"), [(0, A, 0, 0), (0, B, 1, 0)], CARS)
    given, _ = given_gold(pool, [twin])
    assert given.coverage.tolist() == [[1, 1], [1, 1]]
    assert given.boxes(0).classes.tolist() == [0, 1] and given.boxes(1).classes.tolist() == [0]


def test_a_picture_of_two_gold_sources_is_once_with_what_is_known_of_it_in_either(tmp_path):
    persons = gold(pictures(tmp_path / "a", 3, name="a"), [(0, A, 0, 0), (1, A, 0, 0)], PERSONS)
    cars = gold(pictures(tmp_path / "b", 3, name="b", first=1), [(0, B, 1, 0), (2, B, 1, 0)], CARS)
    classes = MapClasses(classes=["person", "car"])
    (tmp_path / "maps").mkdir()
    write_values(tmp_path / "maps/001.png", halves(0, 1))
    folder = MapFolder(folder="maps", categories={0: "person", 1: "car"}, missing="absent")
    cars = replace(cars, maps=folder.load(cars.files, tmp_path, classes, "b"))
    told = [(persons, [[1, 0]] * 3), (cars, [[0, 1]] * 3)]
    persons, cars = (
        replace(
            source,
            tags=Tags(
                np.ones((3, 2), np.float32),
                np.array(looked, np.float32),
                np.array([True, True, False]),
                np.zeros(3, np.uint8),
            ),
        )
        for source, looked in told
    )
    once = each_once(joined("both", [persons, cars]))
    assert list(once.files.paths()) == [persons.path(i) for i in range(3)] + [cars.path(2)]
    assert once.coverage.tolist() == [[1, 0], [1, 1], [1, 1], [0, 1]]
    assert [once.boxes(i).classes.tolist() for i in range(4)] == [[0], [0, 1], [], [1]]
    assert once.maps.by_people().tolist() == [False, False, True, False]
    assert once.maps.labels(2, HEIGHT, WIDTH).classes.tolist() == halves(0, 1).tolist()
    assert once.tags.weights.tolist() == [[1, 0], [1, 1], [0, 1], [0, 0]]
    assert once.tags.present.tolist() == [True, True, True, False]
    assert each_once(persons) is persons

    store = store_of(tmp_path / "s", ("person", "car"), once, [[(A, 0, 0.9), (B, 1, 0.8)]] * 4)
    result = audit(store, once, LabelSpace.of(("person", "car")))
    assert result.searched.tolist() == [3, 3] and result.gold_boxes.tolist() == [2, 2]
    assert (result.pictures, result.missing) == (4, 0)


def test_pictures_of_which_a_pool_alone_has_a_map_or_tags_stay(tmp_path):
    people = gold(pictures(tmp_path / "a", 3, name="a"), [(0, A, 0, 0)])
    pool = pictures(tmp_path / "pool", 4, name="pool")
    (tmp_path / "maps").mkdir()
    for i in (0, 1, 3):
        write_values(tmp_path / f"maps/{i:03d}.png", halves(0, 1))
    folder = MapFolder(folder="maps", categories={0: "person", 1: "car"}, missing="absent")
    classes = MapClasses(classes=["person", "car"])
    maps = folder.load(pool.files, tmp_path, classes, "pool")
    with pytest.warns(UserWarning, match="1 of 4 pictures are left out, because people labelled"):
        _, kept = without_doubles([people, replace(pool, maps=maps)], ["pool"])
    assert kept.ids.tolist() == [100, 101, 103] and kept.maps.present().all()
    here = replace(people, maps=maps.take(np.array([2, 1, 0])))
    with pytest.warns(UserWarning, match="2 of 4 pictures are left out"):
        _, kept = without_doubles([here, replace(pool, maps=maps)], ["pool"])
    assert kept.ids.tolist() == [100, 103], "people gave the map of the second elsewhere too"
    present = np.array([False, False, True, False])
    tags = Tags(np.ones((4, 2)), np.ones((4, 2)), present, np.zeros(4, np.uint8))
    with pytest.warns(UserWarning, match="2 of 4 pictures are left out"):
        _, kept = without_doubles([people, replace(pool, tags=tags)], ["pool"])
    assert kept.ids.tolist() == [102, 103]


def test_pictures_of_which_a_pool_alone_knows_a_kind_of_details_stay(tmp_path):
    rows = [(i, A, 0, 0) for i in range(3)]
    people = gold(pictures(tmp_path / "a", 3, name="a"), rows)
    pool = gold(pictures(tmp_path / "pool", 3, name="pool"), rows)

    def told(source, masks=(), seen=(), sizes=(), colors=()):
        """The source with an outline, a keypoint and two attributes of its pictures at these places."""
        attributes, keypoints = np.full((3, 2), -1, np.int16), np.zeros((3, 2, 3), np.float32)
        attributes[list(sizes), 0], attributes[list(colors), 1] = 0, 1
        keypoints[list(seen), 1, 2] = 1
        details = FlatDetails(
            attributes=attributes,
            keypoints=keypoints,
            points=np.tile(np.float32([[1, 1], [11, 1], [11, 11]]), (len(masks), 1)),
            rings=np.arange(len(masks) + 1) * 3,
            shapes=np.cumsum([0, *(i in masks for i in range(3))]),
            attribute_names=("size/s", "color/red", "color/blue"),
            keypoint_names=("person/nose", "person/ear"),
        )
        return replace(source, annotations=replace(source.annotations, details=details))

    def kept(people, pool):
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "source 'pool': . of 3 pictures are left out, because"
            )
            return (without_doubles([people, pool], ["pool"])[1].ids - 100).tolist()

    nothing = told(people)
    for kind in ("masks", "seen", "sizes", "colors"):
        assert kept(nothing, told(pool, **{kind: [1, 2]})) == [1, 2]
        assert kept(told(people, **{kind: [2]}), told(pool, **{kind: [1, 2]})) == [1]
    assert kept(told(people, colors=range(3)), told(pool, masks=[0], sizes=[1])) == [0, 1]
    for without in (nothing, people):
        assert kept(without, told(pool)) == [], "a pool that knows nothing has nothing to keep"


def test_what_people_said_of_a_picture_without_boxes_counts_too(tmp_path):
    """Of depths too: of one source the boxes, of another the depths, and a pool that has both kinds."""
    people = gold(pictures(tmp_path / "a", 3, name="a"), [(0, A, 0, 0)])
    pool = pictures(tmp_path / "pool", 3, name="pool")
    depths = Depths(FileNames.of("/", ["a.png", "b.png", ""]), 0.001, (0,), Grade.GOLD)
    with pytest.warns(UserWarning, match="1 of 3 pictures are left out"):
        _, kept = without_doubles([people, replace(pool, depth=depths)], ["pool"])
    assert kept.ids.tolist() == [100, 101]
    third = pictures(tmp_path / "b", 3, name="b")
    for grade, left in ((Grade.GOLD, [101]), (Grade.SILVER, [100, 101])):
        alone = replace(third, depth=replace(depths.take(np.array([0, 2, 2])), grade=grade))
        with pytest.warns(UserWarning, match=f"{3 - len(left)} of 3 pictures are left out"):
            *_, kept = without_doubles([people, alone, replace(pool, depth=depths)], ["pool"])
        assert kept.ids.tolist() == left


def test_a_pool_of_all_pictures_loses_those_that_measure_and_has_each_once(tmp_path):
    val = pictures(tmp_path / "val", 2, name="val", first=1)
    pool = pictures(tmp_path / "pool", 5, name="pool")
    (tmp_path / "pool/004.png").write_bytes((tmp_path / "pool/003.png").read_bytes())
    with pytest.warns(UserWarning) as told:
        kept = unlabelled_apart(pool, [val])
    assert kept.tolist() == [0, 3]
    held, again = (str(w.message) for w in told)
    assert "'pool': 2 of 5 pictures are left out, because they measure the result" in held
    assert held.endswith(f"{tmp_path}/pool/001.png is {tmp_path}/val/000.png")
    assert "'pool': 1 of 5 pictures are left out, because the pool has them already" in again
    assert again.endswith(f"{tmp_path}/pool/004.png is {tmp_path}/pool/003.png")
    assert unlabelled_apart(pool.subset(kept), [val]) is None
    labelled = gold(pool, [(0, A, 0, 0)])
    assert unlabelled_apart(labelled, [val]) is None, "somebody has to say what they are for"
    with pytest.raises(InputError, match="all of its pictures are held out"), pytest.warns():
        unlabelled_apart(pictures(tmp_path / "other", 2, first=1), [val])


def _apart(rank, folder):
    """Sets pools apart as one of two processes, each with files of its own, whose names decide what is the
    same; writes down how many it read, what it kept and what it told."""
    address = f"file://{folder}/meet"
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    read, told = [], []
    images.content_hash = lambda path: read.append(path) or Path(path).name.zfill(64)
    val = pictures(folder / f"val{rank}", 2, name="val", first=1)
    pool = pictures(folder / f"pool{rank}", 4, name="pool")
    with warnings.catch_warnings(record=True) as caught:
        apart = pools_apart({"pool": pool, "val": val})
    try:
        pools_apart({"pool": val, "val": val})
    except InputError as error:
        told = error.problems
    row = {"read": len(read), "warned": len(caught), "problems": told}
    row["kept"] = [apart["pool"].files.name(i) for i in range(len(apart["pool"]))]
    (folder / f"{rank}.json").write_text(json.dumps(row))
    torch.distributed.destroy_process_group()


@pytest.mark.distributed
def test_rank_0_alone_reads_the_pools_that_are_set_apart(tmp_path):
    torch.multiprocessing.spawn(_apart, (tmp_path,), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["read"] and first["warned"] == 1
    assert second["read"] == second["warned"] == 0
    assert first["kept"] == second["kept"] == ["002.png", "003.png"]
    assert first["problems"] == second["problems"]
    assert "all of its pictures are held out" in first["problems"][0]


def test_pictures_of_two_pools_are_told(tmp_path):
    some = pictures(tmp_path / "some", 3, name="some")
    more = pictures(tmp_path / "more", 5, name="more", first=2)
    with pytest.warns(
        UserWarning, match=r"'some' and 'more': 1 pictures are in both .*002.png, wh"
    ):
        kept = without_doubles([some, more], ["some", "more"])
    assert kept == [some, more]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without_doubles([some, more.subset([1, 2])], ["some", "more"])
        without_doubles([some, more], ["some"])


@pytest.fixture
def label(run, tmp_path, monkeypatch):  # noqa: F811
    """Returns what labels the pool of a run: of its 4 pictures two are gold for persons too."""
    pictures(tmp_path / "pool", 4, first=80)
    both = pictures(tmp_path / "gold", 2, first=82)
    _coco(tmp_path / "gold.json", both)
    monkeypatch.setattr(pools, "load_teachers", lambda *_: iter([ColorTeacher()]))
    monkeypatch.setattr(pools, "available", lambda: False)

    def labels(*overrides):
        fixed = [*ONE, "data.sources.gold.keep=[car]", *overrides]
        settings = read_settings(tmp_path / "run.yaml", fixed)
        process, console = distributed.start("cpu"), Console(quiet=True)
        sources, val, _ = load_sources(settings, tmp_path / "cache", process)
        sources |= to_be_labelled(settings, sources)
        run = OpenRun(settings, RunFolder(tmp_path / "folder"), process, console)
        return pools.label_pools(run, sources, val)[0]

    return labels


def test_a_run_lays_silver_under_what_people_said_of_a_picture_elsewhere(label):
    words = ["silver.select.ignore_from=null", "silver.select.coverage=0.75"]
    pool = label("silver.select.threshold=0.1", *words)["pool"]
    assert [path[-7:] for path in pool.files.paths()] == [f"00{i}.png" for i in range(4)]
    coverage = np.broadcast_to(pool.coverage, (4, 2))
    assert coverage.tolist() == [[0.75, 0.75], [0.75, 0.75], [0.75, 1], [0.75, 1]]
    cars = [(80 + i) * 3 % 256 % 2 for i in range(4)]
    assert cars == [0, 1, 0, 1] and [len(pool.boxes(i)) for i in range(4)] == [1] * 4
    assert [pool.boxes(i).classes[0].item() for i in range(4)] == cars
    grades = [pool.boxes(i).grade[0].item() for i in range(4)]
    assert grades == [Grade.SILVER, Grade.SILVER, Grade.SILVER, Grade.GOLD]
    # What the selection leaves out does not come back as a picture at which nobody looked.
    words += ["silver.select.max_empty=0", "silver.gates=warn"]
    with pytest.warns(UserWarning, match="too few boxes"):
        fewer = label("silver.select.threshold=0.905", *words)["pool"]
    assert [path[-7:] for path in fewer.files.paths()] == ["001.png", "002.png", "003.png"]


def test_a_picture_that_a_labelled_source_has_twice_is_refused(label, tmp_path):
    (tmp_path / "gold/001.png").write_bytes((tmp_path / "gold/000.png").read_bytes())
    with pytest.raises(InputError) as caught:
        label()
    told = [s for s in caught.value.problems if "byte for byte" in s]
    assert len(told) == 1 and "gold/001.png: is the same picture, byte for byte, as" in told[0]


def test_mode_online_fills_in_beside_what_people_said_elsewhere(label, tmp_path):
    words = ["data.sources.gold.keep=[car]", "mix={mode: online, shares: {gold: 1, pool: 1}}"]
    settings = read_settings(tmp_path / "run.yaml", [*words, "tasks={boxes: {kind: detection}}"])
    process = distributed.start("cpu")
    sources, _, _ = load_sources(settings, tmp_path / "cache", process)
    pool = to_be_labelled(settings, sources)["pool"]
    assert pool.grade == Grade.SILVER and pool.coverage.tolist() == [[0, 0]] * 2 + [[0, 1]] * 2
    assert [pool.boxes(i).classes.tolist() for i in range(4)] == [[], [], [], [1]]
    # Boxes that a model wrote before are no labels by people: they are written anew.
    written = gold(sources["pool"], [(0, A, 0, 0), (1, A, 1, 0)], [[1.0, 1.0]])
    of_model = replace(written.annotations, grade=np.full(2, Grade.SILVER, np.uint8))
    by_model = replace(written, grade=Grade.SILVER, annotations=of_model)
    again = to_be_labelled(settings, sources | {"pool": by_model})["pool"]
    assert again.coverage.tolist() == pool.coverage.tolist()
    assert [again.boxes(i).classes.tolist() for i in range(4)] == [[], [], [], [1]]
    with pytest.raises(InputError, match=r"people have given all boxes of 'pool'"):
        to_be_labelled(settings, sources | {"pool": written})
