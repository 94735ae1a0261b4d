"""What a comparison checks before its runs, and what makes a run another run."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from detmtl import compare
from detmtl.comparing import bootstrap, worker
from detmtl.comparing.bootstrap import resampled
from detmtl.comparing.jobs import Job, _why
from detmtl.comparing.ledger import FILE
from detmtl.comparing.plan import Planner
from detmtl.comparing.prepare import Preparation, prepare
from detmtl.comparing.settings import CompareSettings, read_compare
from detmtl.comparing.transfer_plan import prepare_transfer
from detmtl.comparing.transfer_settings import TransferSettings, read_transfer
from detmtl.engine import distributed
from detmtl.metrics.coco import boxes_of
from detmtl.metrics.matches import match
from detmtl.structures.errors import InputError

BASE = """\
device: cpu
data:
  root: {root}
  classes: [cat, dog]
  maps: {{classes: {{cat: [cat], dog: [dog]}}}}
  sources:
    gold:
      kind: coco
      images: images
      annotations: gold.json
      covers_file: covers.csv
      maps: {{folder: maps, categories: categories.json}}
    pool: {{kind: folder, images: pool}}
  val: {{kind: coco, images: val, annotations: val.json, covers: [cat, dog]}}
  batch_size: 2
input: {{short: 32, long: 32}}
model: {{backbone: {{name: resnet18, weights: weights.pth}}, fpn: {{channels: 8}}}}
tasks:
  boxes: {{kind: detection, head: {{depth: 1}}}}
silver: {{teacher: {{kind: results, path: {root}/teacher.json}}, pools: [pool]}}
mix: {{mode: concat}}
train: {{steps: 2}}
"""
COMPARE = "base: base.yaml\narms: {gold: {mix.mode: gold}, electrum: {}}\nbaseline: gold\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data set of two gold pictures with maps, two of a pool and two to validate on, and its config."""
    rng = np.random.default_rng(0)
    for name in ("images", "pool", "val", "maps"):
        (tmp_path / name).mkdir()
        for i in range(2):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            if name == "maps":
                pixels = np.full((32, 32), 1 + i, np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    for name in ("gold", "val"):
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.png", "height": 32, "width": 32} for i in range(2)
            ],
            "annotations": [
                {"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 2, 9, 9], "area": 81}
            ],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "covers.csv").write_text("file_name,class\n0.png,cat\n1.png,cat\n1.png,dog\n")
    (tmp_path / "categories.json").write_text(json.dumps({"categories": content["categories"]}))
    (tmp_path / "teacher.json").write_text("[]")
    (tmp_path / "weights.pth").write_bytes(b"first")
    (tmp_path / "base.yaml").write_text(BASE.format(root=tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def keys(folder, text=COMPARE, overrides=("model.backbone.weights=null",), checked=False):
    """Returns (arm, seed) -> key of its run and, for those with silver, its store."""
    path = folder / "compare.yaml"
    path.write_text(text)
    settings = read_compare(path)
    planner, process = Planner(settings, path, overrides), distributed.start("cpu")
    out, console = folder / "out", Console(quiet=True)
    if checked:
        return prepare(planner, list(settings.arms), [0, 1], out, process, console)
    made = Preparation(planner, out, process, console)
    for arm in settings.arms:
        made.add(0, arm, 0)
    plan = made.prepared.plan
    return {
        arm: (key, getattr(plan.runs[key].settings.silver, "store", None))
        for (_, arm, _), key in plan.at.items()
    }


def change(path):
    """Gives a file other bytes, and a time of change that is seen."""
    path.write_bytes(path.read_bytes() + b"\n")
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))


@pytest.mark.parametrize("name", ["gold.json", "covers.csv", "categories.json", "maps/0.png"])
def test_another_file_of_gold_is_another_run(folder, name):
    before = keys(folder)
    assert keys(folder) == before
    change(folder / name)
    after = keys(folder)
    assert after["gold"] != before["gold"] and after["electrum"][0] != before["electrum"][0]
    assert after["electrum"][1] == before["electrum"][1], "the teacher writes the same labels"


MOVED = ("images", "pool", "val", "maps", "gold.json", "val.json", "covers.csv", "categories.json")
PLAIN = "model.backbone.weights=null"
TEST = "{kind: coco, images: test, annotations: val.json, covers: [cat, dog]}"


def copied(folder, name):
    """Copies the data set into a folder below its own."""
    (folder / name).mkdir()
    for one in MOVED:
        copy = shutil.copytree if (folder / one).is_dir() else shutil.copy
        copy(folder / one, folder / name / one)
    return folder / name


def test_data_that_moved_are_the_same(folder):
    before = keys(folder)
    copied(folder, "copy")
    for name in MOVED:
        (folder / "moved").mkdir(exist_ok=True)
        (folder / name).rename(folder / "moved" / name)
    assert keys(folder, overrides=[PLAIN, f"data.root={folder}/moved"]) == before
    cells = ", ".join(f"{name}: {{data.root: {folder}/{name}}}" for name in ("moved", "copy"))
    at = keys(folder, COMPARE + f"grid: {{place: {{{cells}}}}}\n", checked=True).plan.at
    assert at[0, "gold", 0] == at[1, "gold", 0]


@pytest.mark.parametrize(
    ("name", "arms"),
    [("images", {"gold", "electrum"}), ("pool", {"electrum"}), ("val", {"gold", "electrum"})],
)
def test_other_pictures_of_the_same_names_are_other_runs(folder, name, arms):
    def at(place):
        return keys(folder, overrides=[PLAIN, f"data.root={place}"])

    before, other = at(copied(folder, "same")), copied(folder, "other")
    assert at(other) == before
    picture = other / name / "0.png"
    content = bytearray(picture.read_bytes())
    content[len(content) // 2] ^= 1  # of its size still
    picture.write_bytes(content)
    after = at(other)
    assert {arm for arm in before if after[arm][0] != before[arm][0]} == arms
    assert after["electrum"][1] == before["electrum"][1], "a store knows its pictures itself"


def test_faults_of_several_sources_are_told_together(folder):
    shutil.copytree(folder / "val", folder / "test")
    for name in ("images", "val"):
        (folder / name / "0.png").unlink()
    with pytest.raises(InputError) as refused:
        keys(folder, COMPARE + f"set: {{data.test: {TEST}}}\n", checked=True)
    told = "\n".join(refused.value.problems)
    assert "images/0.png: no such picture" in told and "val/0.png: no such picture" in told


def test_another_file_of_the_teacher_is_another_store(folder):
    before = keys(folder)
    change(folder / "teacher.json")
    after = keys(folder)
    assert after["gold"] == before["gold"], "gold alone has no teacher"
    assert after["electrum"][0] != before["electrum"][0]
    assert after["electrum"][1] != before["electrum"][1]


def test_other_weights_of_the_backbone_are_another_run(folder):
    before = keys(folder, overrides=())
    change(folder / "weights.pth")
    after = keys(folder, overrides=())
    assert after["gold"][0] != before["gold"][0]


@pytest.mark.parametrize(
    "text",
    [
        COMPARE.replace("electrum: {}", "electrum: {data.val.subset.count: 1}"),
        COMPARE + "seeded: [data.val.subset.seed]\nset: {data.val.subset.count: 1}\n",
    ],
)
def test_arms_scored_on_different_pictures_are_refused(folder, text):
    with pytest.raises(InputError, match=r"scored on other pictures or classes.*one data\.val"):
        keys(folder, text, checked=True)


def test_a_teacher_that_arms_share_may_not_learn_from_another_share_than_its_audit_leaves(folder):
    plain = ["model.backbone.weights=null", "silver.teacher={kind: gold}"]
    drop = [*plain, "data.sources.gold.maps.missing=drop"]
    assert keys(folder, overrides=[*plain, "silver.audit={share: 0.5}"])
    assert keys(folder, overrides=[*drop, "silver.audit={part: [0.5, 1]}"])
    assert keys(folder, overrides=[*drop, "silver.audit=val"])
    for size in ("share: 0.5", "part: [0, 0.9], count: 1"):
        with pytest.raises(InputError, match=r"of 'gold' cannot be kept .* maps\.missing: drop"):
            keys(folder, overrides=[*drop, f"silver.audit={{{size}}}"])


def test_a_teacher_that_arms_share_may_not_learn_from_a_pool_that_loses_pictures(folder):
    (folder / "more.csv").write_text("file_name,class\n0.png,cat\n0.png,dog\n1.png,dog\n")
    more = "{kind: coco, images: images, annotations: gold.json, covers_file: more.csv}"
    given = ["model.backbone.weights=null", "silver.teacher={kind: gold}"]
    given += [
        f"data.sources.more={more}",
        "silver.pools=[pool, gold]",
        "data.sources.gold.maps=null",
    ]
    text = COMPARE.replace("gold: {mix.mode: gold}", "silver: {mix.mode: silver}")
    text = text.replace("baseline: gold", "baseline: silver\nequal_steps: false")
    assert keys(folder, text, [*given, "silver.audit=val"], checked=True)
    with (
        pytest.warns(UserWarning, match="1 of 2 pictures are left out"),
        pytest.raises(InputError, match=r"of 'gold' cannot be kept .* loses 1 that another source"),
    ):
        keys(folder, text, [*given, "silver.audit={share: 0.5}"], checked=True)


def test_a_use_of_pictures_that_cannot_be_noted_is_told_before_they_are_read(folder):
    (folder / FILE).mkdir()
    with pytest.raises(InputError, match=rf"{FILE}, which notes .* cannot be written"):
        keys(folder)
    test = "set: {data.test: {kind: coco, images: nowhere, annotations: nowhere.json}}\n"
    with pytest.raises(InputError, match=rf"{FILE}, which notes .* cannot be written"):
        keys(folder, COMPARE + test)


def test_validation_pictures_that_decide_are_used_up_too(folder):
    def told(experiment):
        prepared = keys(folder, checked=True)
        jobs = compare.jobs_of(prepared.plan, folder / "out", set())
        request = compare.Request(folder / "compare.yaml", folder / "out")
        compare.execute(request, prepared, jobs, experiment, Console(quiet=True))
        return [c for c in prepared.cautions if "were scored before with other settings" in c]

    assert not told("first") and not told("first")
    (caution,) = told("second")
    assert caution.startswith("The pictures of data.val ")


def test_a_metric_of_no_task_is_told_before_the_runs(folder):
    made = keys(folder, checked=True)
    settings = read_compare(folder / "compare.yaml").model_copy(
        update={"metrics": ["boxes/AP", "box/AP"]}
    )
    with pytest.raises(InputError, match=r"'box/AP' is of no task.*the tasks are boxes"):
        compare._check_tasks(settings, made.plan)


def test_too_few_resamples_are_refused():
    arms = {f"arm{i}": {} for i in range(4)}
    facts = {"base": "base.yaml", "arms": arms, "baseline": "arm0"}
    assert CompareSettings(**facts, resamples=120).resamples == 120
    with pytest.raises(ValueError, match=r"119 are too few to find any of 3 differences.*120"):
        CompareSettings(**facts, resamples=119)
    tasks = {f"task{i}": f"task{i}/AP" for i in range(3)}
    with pytest.raises(ValueError, match="take at least 360"):
        TransferSettings(base="base.yaml", tasks=tasks, resamples=300)


def test_a_probe_shares_the_labels_and_not_the_teacher_of_its_task_alone(folder):
    base = (folder / "base.yaml").read_text()
    own = "teacher: {kind: gold, task: boxes}, audit: {share: 0.5}"
    base = base.replace(f"teacher: {{kind: results, path: {folder}/teacher.json}}", own)
    base = base.replace("tasks:\n", "tasks:\n  map: {kind: semantic}\n")
    (folder / "base.yaml").write_text(base)
    path = folder / "transfer.yaml"
    path.write_text(
        "base: base.yaml\noverlap: true\nseeds: 1\nset: {model.backbone.weights: null}\n"
        "tasks: {boxes: {metric: boxes/AP, without: {silver: null}}, map: map/mIoU}\n"
    )
    out, console = folder / "out", Console(quiet=True)
    process = distributed.start("cpu")
    made = prepare_transfer(read_transfer(path), path, [], [0], out, process, console)
    plan = made.prepared.plan
    jobs = compare.jobs_of(plan, out, {arm.name for arm in made.arms})
    by_key = {job.folder.name: job for job in jobs}
    probes = [run for run in plan.runs.values() if run.kind == "probe"]
    with_silver = [run for run in probes if run.settings.offline_pools()]
    assert with_silver
    for run in with_silver:
        alone = next(r for r in plan.runs.values() if r.settings == run.settings and r is not run)
        assert run.teacher == alone.teacher is not None
        assert run.settings.silver.store == alone.settings.silver.store
        needed = by_key[run.key].after
        assert by_key[run.teacher] in needed
        assert [job.content["kind"] for job in needed].count("label") == 1
    done: set[str] = set()
    waiting = list(jobs)
    while waiting:  # every job's turn comes
        ready = [j for j in waiting if all(b.folder.name in done for b in j.after)]
        assert ready, "jobs wait for each other"
        done |= {j.folder.name for j in ready}
        waiting = [j for j in waiting if j not in ready]


def test_data_of_every_seed_is_checked_where_seeds_decide_what_it_is(folder, monkeypatch):
    def refused(settings, *_):
        if settings.data.sources["gold"].subset.seed == 1:
            raise InputError("data.sources.gold: nothing in it")

    monkeypatch.setattr(Preparation, "check_data", lambda self, settings: refused(settings))
    text = COMPARE + "set: {data.sources.gold.subset.share: 0.5}\n"
    assert keys(folder, text, checked=True)
    with pytest.raises(InputError, match=r"^seed 1: data\.sources\.gold: nothing in it"):
        keys(folder, text + "seeded: [data.sources.gold.subset.seed]\n", checked=True)


def test_a_run_whose_data_is_wrong_leaves_its_store_to_the_others(folder, monkeypatch):
    """The label job does what it can for each of the runs that share a store."""
    plan, out = keys(folder, checked=True).plan, folder / "out"
    jobs = compare.jobs_of(plan, out, {"electrum"})
    for job in jobs:
        job.write()
    (label,) = (job for job in jobs if job.content["kind"] == "label")
    runs = label.content["runs"]
    labelled = []

    def load(settings, *_):
        if settings.seed == 0:
            raise InputError("data.sources.gold: nothing in it")
        return {}, None, None

    monkeypatch.setattr(worker, "load_sources", load)
    monkeypatch.setattr(worker, "written_offline", lambda *_: ("boxes", None))
    monkeypatch.setattr(worker, "to_be_labelled", lambda *_: {})
    monkeypatch.setattr(worker, "label_pools", lambda run, *_: labelled.append(run.settings.seed))
    assert len(runs) == 2 and worker._label(label.folder, label.content) == {}
    assert labelled == [1]


def test_seeds_that_failed_are_told_by_a_report_alone(folder):
    prepared, out = keys(folder, checked=True), folder / "out"
    jobs = compare.jobs_of(prepared.plan, out, {"gold", "electrum"})
    by_key = {job.folder.name: job for job in jobs}
    good, bad = (by_key[prepared.plan.at[0, "gold", seed]] for seed in (0, 1))
    for job in (good, bad):
        job.folder.mkdir(parents=True)
    (good.folder / "done.json").write_text('{"origins": []}')
    bad.fail("training diverged at step 3")
    request = compare.Request(folder / "compare.yaml", out, report_only=True)
    again = compare.jobs_of(prepared.plan, out, {"gold", "electrum"})
    compare.execute(request, prepared, again, "experiment", Console(quiet=True))
    assert [c for c in prepared.cautions if c.startswith("gold has no result in seed 1: ")]
    about = compare.about("", "", request, prepared, again)
    assert about["scored"] == "Scored on data.val: 2 pictures."
    (told,) = about["failures"]
    assert told["name"] == bad.name and told["why"] == "training diverged at step 3"


def test_other_pictures_to_score_on_are_told_apart_though_they_are_as_many(folder):
    def told(*places):
        cells = ", ".join(f"{place}: {{data.val.images: {place}}}" for place in places)
        prepared = keys(folder, COMPARE + f"grid: {{place: {{{cells}}}}}\n", checked=True)
        return compare.about("", "", compare.Request(folder, folder), prepared, [])["scored"]

    shutil.copytree(folder / "val", folder / "copy")
    shutil.copytree(folder / "val", folder / "other")
    change(folder / "other" / "0.png")
    assert told("val", "copy") == "Scored on data.val: 2 pictures."
    assert told("val", "copy", "other") == (
        "Scored on data.val: 2 pictures (val, copy); data.val: 2 pictures (other)."
    )


def test_auditing_a_teacher_that_is_the_model_itself_on_the_scored_pictures_is_told(folder):
    text = (
        "base: base.yaml\nbaseline: gold\narms:\n  gold: {mix.mode: gold}\n"
        "  online: {mix.mode: online, online.audit_every: EVERY}\n"
    )

    def told(every):
        cautions = keys(folder, text.replace("EVERY", every), checked=True).cautions
        return [c for c in cautions if "silver was audited too (online)" in c]

    assert told("1") and not told("null")


def test_a_job_tells_the_error_of_its_last_attempt(tmp_path):
    job = Job(tmp_path, "run", {})
    log = tmp_path / "log.txt"
    log.write_text("error: train.steps: bad\n")
    assert _why(job, 2) == "train.steps: bad"
    job.log_from = log.stat().st_size
    assert _why(job, -9) == "killed by signal 9"


def test_resampling_is_kept_under_any_name_of_a_class(tmp_path):
    rows = [np.array([[0, 1.0, 2, 9, 9, 1, 0], [1, 11, 12, 9, 9, 1, 0]])] * 3
    matches = match(boxes_of(rows), boxes_of(rows), 3, ("a|b", "c/d"))
    matches.save(tmp_path / "matches.npz")
    first = resampled(tmp_path, ("boxes", matches), 120)
    again = resampled(tmp_path, ("boxes", matches), 120)
    assert {"boxes/AP/a|b", "boxes/AP/c/d"} <= set(first) == set(again)
    assert all(np.array_equal(first[name], again[name], equal_nan=True) for name in first)


def test_resampling_by_other_code_is_done_anew(tmp_path, monkeypatch):
    rows = [np.array([[0, 1.0, 2, 9, 9, 1, 0]])] * 3
    matches = match(boxes_of(rows), boxes_of(rows), 3, ("cat",))
    matches.save(tmp_path / "matches.npz")
    with monkeypatch.context() as before:
        before.setattr(bootstrap, "VERSION", bootstrap.VERSION - 1)
        before.setattr(bootstrap, "of_boxes", lambda *_: {"AP": np.zeros(120)})
        assert {*resampled(tmp_path, ("boxes", matches), 120)} == {"boxes/AP"}
    assert "boxes/ECE" in resampled(tmp_path, ("boxes", matches), 120)
