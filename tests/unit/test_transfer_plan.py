"""From the settings of a transfer report to its runs."""

from pathlib import Path

import pytest

from detmtl.comparing.plan import Cell, Planner, effort
from detmtl.comparing.settings import CompareSettings
from detmtl.comparing.transfer_plan import _check, _planner, arms_of, changes_of
from detmtl.comparing.transfer_settings import TransferSettings, read_transfer
from detmtl.config import RunSettings
from detmtl.structures.errors import InputError
from detmtl.tasks.noise import NoiseConfig

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("transfer_*.yaml"))
ONE = Cell("", {}, None, {})


def settings(**changes):
    tasks = {"boxes": "boxes/AP", "map": "map/mIoU", "depth": "depth/RMSE"}
    return TransferSettings.model_validate({"base": "x.yaml", "tasks": tasks} | changes)


def names(**changes):
    return [arm.name for arm in arms_of(settings(**changes))]


def test_each_alone_all_together_and_in_pairs():
    assert names() == [
        "boxes alone",
        "map alone",
        "depth alone",
        "boxes + map + depth",
        "boxes + map",
        "boxes + depth",
        "map + depth",
    ]
    assert names(pairs=False)[3:] == ["boxes + map + depth"]


def test_two_tasks_are_one_pair_and_one_group():
    two = {"boxes": "boxes/AP", "map": "map/mIoU"}
    assert names(tasks=two) == ["boxes alone", "map alone", "boxes + map"]
    assert settings(tasks=two).questions() == [("boxes", ("map",)), ("map", ("boxes",))]
    assert settings(tasks=two, target="map").questions() == [("map", ("boxes",))]


def test_controls_and_probes():
    found = names(target="boxes", noise=True, overlap=True, wide={"model.fpn.channels": 64})
    assert "map + depth" not in found, "a pair without the target"
    assert {"boxes alone, wide", "boxes + map, wide", "boxes + map + depth, wide"} <= {*found}
    assert {"boxes + noise like map", "boxes + noise like depth"} <= {*found}
    assert {"map on a trunk that never learned", "map on the trunk of boxes"} <= {*found}
    assert "boxes on the trunk of map" not in found and len(found) == len({*found})


def test_frozen_trunks_are_asked_about_without_pairs_too():
    pairs, alone = (names(overlap=True, pairs=p) for p in (True, False))
    assert [n for n in pairs if "trunk" in n] == [n for n in alone if "trunk" in n]
    assert sum("on the trunk of" in n for n in alone) == 6
    of_target = names(overlap=True, pairs=False, target="map")
    assert of_target[-2:] == ["boxes on the trunk of map", "depth on the trunk of map"]


def test_a_target_needs_no_other_task_alone_unless_its_trunk_is_measured():
    assert "map alone" not in names(target="boxes")
    assert "map alone" in names(target="boxes", overlap=True)


def test_less_is_better_for_an_error():
    signs = {name: task.sign for name, task in settings().tasks.items()}
    assert signs == {"boxes": 1, "map": 1, "depth": -1}
    other = {"metric": "map/mIoU", "better": "lower"}
    assert settings(tasks={"boxes": "boxes/AP", "map": other}).tasks["map"].sign == -1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"target": "tags"}, "target: 'tags' is no task; tasks has boxes, map, depth"),
        ({"tasks": {"boxes": "boxes/AP", "map": "boxes/AP"}}, "it begins with map/"),
        ({"tasks": {"boxes": "boxes/AP"}}, "at least 2"),
        (
            {"pairs": False, "noise": True},
            "noise: random labels are compared with pairs.*noise: false",
        ),
        ({"seeds": [1, 1]}, "none of them negative or twice"),
    ],
)
def test_mistakes(changes, words):
    with pytest.raises(ValueError, match=words):
        settings(**changes)


def run_settings(**changes):
    maps = {"folder": "maps", "categories": "names.json"}
    coco = {"kind": "coco", "images": "i", "annotations": "a.json"}
    data = {
        "root": ".",
        "classes": ["cat"],
        "maps": {"classes": ["cat", "sky"]},
        "sources": {
            "few": coco | {"maps": maps},
            "many": {"kind": "folder", "images": "j", "maps": maps},
            "raw": {"kind": "folder", "images": "k"},
        },
        "val": coco | {"maps": maps},
        "batch_size": 4,
    }
    given = {
        "data": data,
        "model": {"backbone": {"name": "resnet18"}},
        "tasks": {"boxes": {"kind": "detection"}, "map": {"kind": "semantic"}},
        "silver": {"teacher": {"kind": "gold", "task": "map"}, "pools": ["raw"]},
        "mix": {"mode": "batch", "shares": {"few": 2, "many": 1, "raw": 1}},
        "balancing": {"weights": {"boxes/box": 2, "map": 3}},
        "train": {"steps": 200},
    }
    return RunSettings.model_validate(given | changes)


def changes(name, whole=None, **asked):
    tasks = {"boxes": "boxes/AP", "map": {"metric": "map/mIoU", "without": {"silver": None}}}
    chosen = settings(tasks=tasks, **asked)
    (arm,) = [a for a in arms_of(chosen) if a.name == name]
    return changes_of(arm, chosen, whole or run_settings(), "t.yaml")


def test_a_start_and_what_is_frozen_are_of_a_run_s_own_tasks():
    start = {"kind": "checkpoint", "path": "best.pt", "tasks": ["boxes"]}
    network = {"backbone": {"name": "resnet18"}, "start": start, "frozen": ["backbone", "boxes"]}
    boxes, maps = (changes(f"{n} alone", run_settings(model=network)) for n in ("boxes", "map"))
    assert boxes["model.frozen"] == ["backbone", "boxes"] and maps["model.frozen"] == ["backbone"]
    assert boxes["model.start.tasks"] == ["boxes"] and maps["model.start.tasks"] == []
    network["start"] = {"kind": "checkpoint", "path": "best.pt"}
    assert "model.start.tasks" not in changes("map alone", run_settings(model=network))


def test_weights_of_a_start_fit_no_wider_trunk():
    start = {"kind": "checkpoint", "path": "best.pt"}
    whole = run_settings(model={"backbone": {"name": "resnet18"}, "start": start})
    tasks = {"boxes": "boxes/AP", "map": "map/mIoU"}
    wider = {"model.fpn.channels": 64}
    with pytest.raises(InputError, match=r"t.yaml: wide: the weights of model.start fit"):
        _check(settings(tasks=tasks, wide=wider), whole, [], Path("t.yaml"), "")
    other = settings(tasks=tasks, wide=wider | {"model.start": None})
    _check(other, whole, [], Path("t.yaml"), "")
    _check(settings(tasks=tasks, wide=wider), run_settings(), [], Path("t.yaml"), "")


def test_a_head_that_is_frozen_is_tried_on_no_trunk():
    tasks = {"boxes": "boxes/AP", "map": "map/mIoU"}
    whole = run_settings(model={"backbone": {"name": "resnet18"}, "frozen": ["boxes"]})
    asked = settings(tasks=tasks, overlap=True)
    with pytest.raises(InputError, match=r"overlap: trains the head of boxes .*out of model.froz"):
        _check(asked, whole, arms_of(asked), Path("t.yaml"), "")
    asked = settings(tasks=tasks)
    _check(asked, whole, arms_of(asked), Path("t.yaml"), "")


def test_a_run_has_the_sources_that_label_its_tasks_with_these_labels_alone():
    boxes = changes("boxes alone")
    assert list(boxes["data.sources"]) == ["few"] and boxes["mix"]["shares"] == {"few": 2}
    assert boxes["data.sources"]["few"]["maps"] is None
    assert boxes["silver"] is None, "what the map's `without` says"
    assert boxes["balancing"] == {"kind": "fixed", "weights": {"boxes/box": 2}}
    maps = changes("map alone")
    assert list(maps["data.sources"]) == ["few", "many", "raw"], "pools may be of any task"
    assert maps["data.sources"]["few"]["maps"] and maps["balancing"]["weights"] == {"map": 3}
    assert changes("boxes + map")["balancing.weights"] == {"boxes/box": 2, "map": 3}
    assert "diagnosis.every" not in maps and changes("boxes + map")["diagnosis.every"] == 40


def test_noise_wraps_the_task_as_it_is():
    noisy = changes("boxes + noise like map", noise=True)
    config = NoiseConfig.model_validate(noisy["tasks"]["map"])
    assert config.of == run_settings().tasks["map"] and config.labels == "maps"
    assert noisy["tasks"]["boxes"]["kind"] == "detection"


def test_the_wide_trunk_is_everything_else_alike():
    narrow, wide = (
        changes(n, wide={"model.fpn.channels": 64}) for n in ("boxes + map", "boxes + map, wide")
    )
    assert wide == narrow | {"model.fpn.channels": 64}


def test_no_source_for_a_task_is_told():
    coco = {"kind": "coco", "images": "i", "annotations": "a.json"}
    whole = run_settings()
    data = whole.data.model_copy(
        update={"sources": {"few": type(whole.data.sources["few"])(**coco)}}
    )
    with pytest.raises(
        InputError, match=r"t\.yaml: map alone: no source labels map; data.sources has few"
    ):
        changes("map alone", whole.model_copy(update={"data": data, "silver": None}))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_configs_are_right_in_every_arm_and_make_equal_efforts(path):
    text = path.read_text()
    assert f"--config {path.name}" in text and "Machine:" in text and "result" in text
    chosen = read_transfer(path)
    for variant in chosen.all_variants.values():
        compared = CompareSettings(
            base=chosen.base, set=chosen.set | variant, arms={"all": {}}, baseline="all"
        )
        whole = Planner(compared, path, []).of_arm(ONE, "all", 0)
        assert {*chosen.tasks} <= {*whole.tasks} and whole.train.best is None
        arms = {a.name: changes_of(a, chosen, whole, "") for a in arms_of(chosen)}
        planner = Planner(compared.model_copy(update={"arms": arms}), path, [])
        runs = {name: planner.of_arm(ONE, name, 0) for name in arms}
        assert len({effort(run) for run in runs.values()}) == 1
        for run in runs.values():
            run.balancing.build(list(run.tasks))
            assert run.mix_sources()


def test_seeds_of_a_source_are_for_the_runs_that_have_it(tmp_path):
    path = next(p for p in CONFIGS if p.stem == "transfer_imbalanced")
    names = [f"data.sources.{s}.subset.seed" for s in ("few", "many")]
    asked = read_transfer(path).model_copy(update={"seeded": names})
    cell = Cell("", {}, None, asked.all_variants[next(iter(asked.all_variants))])
    made = _planner(asked, path, [], cell, 0, arms_of(asked))
    found = {arm: made.of_arm(ONE, arm, 3).data.sources for arm in made.settings.arms}
    assert {frozenset(of) for of in found.values()} > {frozenset({"few", "many"})}
    assert {s.subset.seed for of in found.values() for s in of.values()} == {3}


CHESS = {"boxes": "boxes/AP", "attributes": "attributes/accuracy"}


def described(**tasks):
    """Returns the settings of a run whose boxes have attributes."""
    chess = {"boxes": {"kind": "detection"}, "attributes": {"kind": "attributes"}}
    details = {"details": {"attributes": {"color": ["w", "b"]}}}
    return run_settings(
        tasks=chess | tasks,
        data=run_settings().data.model_dump() | details,
        silver={"teacher": {"kind": "gold", "task": "boxes"}, "pools": ["raw"]},
    )


def told(**asked):
    """Returns what is told of a report on these tasks before any run."""
    chosen = settings(**({"tasks": CHESS} | asked))
    try:
        _check(chosen, described(map={"kind": "semantic"}), arms_of(chosen), Path("t.yaml"), "")
    except InputError as error:
        return error.problems
    return []


def test_a_task_about_boxes_has_no_training_of_its_own():
    todo = "ask what it does to boxes: target: boxes, overlap: false"
    for asked in ({}, {"target": "boxes", "overlap": True}, {"target": "attributes"}):
        (problem,) = told(**asked)
        assert problem.startswith("t.yaml: tasks.attributes: describes the boxes of 'boxes'")
        assert "'attributes alone' would need" in problem and problem.endswith(todo)
    assert told(target="boxes") == [] == told(target="boxes", noise=True)
    (problem,) = told(tasks={**CHESS, "map": "map/mIoU"}, target="map")
    assert "'attributes + map' would need" in problem
    (problem,) = told(tasks={"attributes": CHESS["attributes"], "map": "map/mIoU"}, target="map")
    assert "name boxes in tasks too, with target: boxes" in problem


def test_many_arms_are_planned_by_the_questions_that_are_judged():
    (path,) = [p for p in CONFIGS if p.stem == "transfer_scenes"]
    asked = {"pairs": True, "noise": True, "wide": {"model.fpn.channels": 64}}
    chosen = TransferSettings.model_validate(read_transfer(path).model_dump() | asked)
    arms = arms_of(chosen)
    made = _planner(chosen, path, [], ONE, 0, arms).settings
    assert [*made.arms] == [arm.name for arm in arms] and len(arms) == 34
