"""Parts of the recipe: whose folder a run's is, and what a teacher is trained on."""

import json
import os
import re
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from audit_stand_ins import CLASSES, scenes, stored
from detail_files import CLASSES as THINGS
from detail_files import HEIGHT, WANTED, WIDTH, annotations, load, write
from PIL import Image
from rich.console import Console
from silver_stand_ins import card, gold, pictures

from detmtl import recipe
from detmtl.config import read_settings
from detmtl.data.depth import DepthFolder
from detmtl.data.maps import MapClasses, MapFolder
from detmtl.data.subset import Subset
from detmtl.data.tags import BoxTags, TagClasses
from detmtl.pools import (
    read_selection,
    show_audit,
)
from detmtl.run_folder import OpenRun, RunFolder
from detmtl.run_sources import faults_between
from detmtl.run_teachers import (
    audit_source,
    audited_on_its_own,
    gold_by_models,
    gold_sources,
    learned_sources,
    load_teachers,
    teacher_settings,
)
from detmtl.run_training import with_others
from detmtl.silver import policy
from detmtl.silver.audit import audit
from detmtl.silver.overlay import OverlaySettings, with_gold
from detmtl.silver.record import Record
from detmtl.silver.selection import SelectionSettings, select
from detmtl.silver.store import Store
from detmtl.structures.checkpoint import write_checkpoint
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import Grade
from detmtl.teachers.from_checkpoint import CheckpointTeacherSettings

TEXT = """\
data:
  root: here
  classes: [cat, dog]
  sources:
    gold: {kind: coco, images: images, annotations: gold.json}
    checked: {kind: coco, images: images, annotations: checked.json}
    written: {kind: coco, images: images, annotations: silver.json, grade: silver}
    pool: {kind: folder, images: pool}
    other: {kind: folder, images: other}
  val: {kind: coco, images: images, annotations: val.json}
  batch_size: 2
model:
  backbone: {name: resnet18}
tasks:
  boxes: {kind: detection}
silver: {teacher: {kind: gold}, pools: [pool], audit: checked}
mix: {mode: batch, shares: {gold: 1, pool: 1}}
train: {steps: 3}
"""


@pytest.fixture
def settings(tmp_path):
    (tmp_path / "run.yaml").write_text(TEXT)
    return lambda *overrides: read_settings(tmp_path / "run.yaml", overrides)


def test_a_checkpoint_that_learned_from_pictures_of_its_audit_is_told(settings, tmp_path):
    there = pictures(tmp_path / "images", 6)
    row = {"id": 1, "image_id": 100, "category_id": 1, "bbox": [2, 2, 8, 8], "iscrowd": 0}
    file = {
        "images": [
            {"id": int(i), "file_name": there.files.name(k), "height": h, "width": w}
            for k, (i, (h, w)) in enumerate(zip(there.ids, there.sizes.tolist(), strict=True))
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [row],
    }
    (tmp_path / "gold.json").write_text(json.dumps(file))
    root, cache = f"data.root={tmp_path}", tmp_path / "cache"
    four = settings(root, "data.sources.gold.subset={count: 4}", "silver=null", "mix={mode: gold}")
    saved = {"format": 1, "model": {}, "settings": four.resolved()}
    write_checkpoint(tmp_path / "teacher.pt", saved)

    def told(subset, *words):
        own = [root, f"silver.teacher={{kind: checkpoint, path: {tmp_path}/teacher.pt}}", *words]
        own += ["data.sources.checked.annotations=gold.json"]
        run = settings(*own, f"data.sources.checked.subset={subset}")
        gold = run.data.sources["checked"].load("checked", tmp_path, run.data.label_space(), cache)
        return audited_on_its_own(run, {"checked": gold}, gold, cache)

    (sentence,) = told("{count: 5}")
    assert "teacher.pt learned from 4 of the 5 pictures on which it is audited" in sentence
    assert told("{count: 4, rest: true}") == [], "others of the same folder"
    assert told("{count: 5}", "mix={mode: gold}") == [], "no teacher is asked"
    for mode, count in (("silver", 0), ("concat", 1)):  # what it was not trained on says nothing
        saved["settings"]["mix"]["mode"] = mode
        saved["settings"]["mix"]["shares"] = {}
        write_checkpoint(tmp_path / "teacher.pt", saved)
        assert len(told("{count: 5}")) == count
    write_checkpoint(tmp_path / "teacher.pt", {"format": 1, "model": {}})
    assert told("{count: 5}") == [], "a file that does not tell"


def test_a_teacher_that_the_run_trains_writes_the_task_that_is_named(
    settings, tmp_path, monkeypatch
):
    tags = "tasks.night={kind: tags}", "data.tags={classes: [night]}"
    about = "tasks.colors={kind: attributes}", "data.details={attributes: {color: [red]}}"
    assert settings(*tags, *about).silver.teacher.task is None, "the only one of boxes is meant"
    second = "tasks.more={kind: detection}"
    told = r"silver\.teacher\.task: is None, .*: boxes, more, night; name one"
    with pytest.raises(InputError, match=told):
        settings(*tags, second, "export={format: null}")
    assert settings(*tags, "mix={mode: gold}").silver.teacher.task is None, (
        "nobody asks the teacher"
    )
    with pytest.raises(InputError, match=r"is 'colors', .*: boxes; name one"):
        settings(*about, "silver.teacher.task=colors")
    asked = []
    monkeypatch.setattr(
        CheckpointTeacherSettings, "load", lambda self, *_: asked.append(self.task) or self
    )
    monkeypatch.setattr(CheckpointTeacherSettings, "card", card("a"), raising=False)
    process = SimpleNamespace(device="cpu")
    for more in ((*tags, "silver.teacher.task=night"), about):
        list(load_teachers(OpenRun(settings(*more), RunFolder(tmp_path), process, None)))
    assert asked == ["night", "boxes"]


def test_a_teacher_learns_from_gold_alone_and_not_from_its_audit(settings):
    assert gold_sources(settings()) == ["gold"]
    assert gold_sources(settings("silver.audit=val")) == ["gold", "checked"]

    with pytest.raises(InputError, match="no gold source"):
        gold_sources(settings("data.sources.gold.grade=silver"))


@pytest.mark.parametrize(
    "audit",
    [
        Subset(share=0.2),
        Subset(part=(0.0, 0.5), share=0.4),
        Subset(part=(0.6, 1.0)),
        Subset(share=0.5, of=Subset(share=0.4)),
    ],
)
def test_a_teacher_learns_from_all_gold_that_its_audit_leaves(settings, tmp_path, audit):
    whole = gold(pictures(tmp_path / "p", 20), [])
    asked = settings(f"silver.audit={audit.model_dump(mode='json', exclude_none=True)}")
    sources = {"gold": whole, "checked": whole.subset(range(10))}
    (learned, half), audited = learned_sources(asked, sources), audit_source(asked, sources, None)
    seen, kept = set(learned.hashes()), set(audited.hashes())
    assert not (seen | set(half.hashes())) & kept - set(audit_of(audit, whole.subset(range(10))))
    assert seen | set(audit_of(audit, whole)) == set(whole.hashes())
    assert len(learned) + len(audit_of(audit, whole)) == 20
    own = teacher_settings(asked).data.sources["gold"].subset
    assert {whole.hashes()[i] for i in own.pick(whole.hashes(), "gold")} == seen


def audit_of(audit, source):
    return [source.hashes()[i] for i in audit.pick(source.hashes(), "source")]


def test_a_teacher_is_not_judged_by_a_models_labels(settings):
    with pytest.raises(InputError, match=r"silver\.audit: 'written' was labelled by a model"):
        settings("silver.audit=written")


def test_a_file_that_a_model_wrote_is_no_gold_though_no_setting_says_so(settings, tmp_path):
    """As `select` writes them: `info.grade` and `attributes.grade` say it, and `grade` is left out."""
    people = gold(pictures(tmp_path / "p", 10), [(0, [1, 2, 9, 9], 0, 0)])
    old = replace(
        gold(pictures(tmp_path / "q", 20, first=20), [(0, [1, 2, 9, 9], 0, 0)]), grade=Grade.SILVER
    )
    val = gold(pictures(tmp_path / "v", 2, first=60), [])
    unlabelled = pictures(tmp_path / "u", 2, first=70)
    read = {"gold": people, "checked": old, "pool": unlabelled, "val": val}
    more = gold(pictures(tmp_path / "m", 8, first=45), [])
    share = "silver.audit={share: 0.5}"
    offline = "silver.teacher={kind: torchscript, path: t.pt}"
    told = "data.sources.checked: its file says that a model wrote its labels"
    for given, why in (
        ([share], "trains the teacher and audits it"),
        (["silver.audit=val"], "trains the teacher;"),
        ([share, offline], "audits the teacher;"),
    ):
        (problem,) = faults_between(settings(*given), read)
        assert told in problem and why in problem
        assert "set data.sources.checked.grade: silver" in problem
        assert faults_between(settings(*given), read | {"checked": more}) == []
    for given in ([offline, "silver.audit=val"], [share, "data.sources.checked.grade=silver"]):
        assert faults_between(settings(*given), read) == []


def test_an_audit_without_what_the_teacher_writes_is_told_before_it_learns(settings, tmp_path):
    people = gold(pictures(tmp_path / "p", 4), [(0, [1, 2, 9, 9], 0, 0)])
    val = gold(pictures(tmp_path / "v", 2, first=60), [])
    read = {"gold": people, "checked": people, "pool": pictures(tmp_path / "u", 2, first=70)}
    read |= {"val": val}
    tags = "tasks.night={kind: tags}", "data.tags={classes: [night]}", "silver.audit=val"
    assert faults_between(settings(*tags), read) == []
    (problem,) = faults_between(settings(*tags, "silver.teacher.task=night"), read)
    assert problem.startswith("silver.audit: val has no tags, by which the teacher is audited")


def test_steps_are_tried_with_the_maps_that_a_teacher_has_yet_to_write(settings, tmp_path):
    read = {
        "written": replace(gold(pictures(tmp_path / "w", 2), []), grade=Grade.SILVER),
        "pool": pictures(tmp_path / "u", 2, first=70),
        "val": gold(pictures(tmp_path / "v", 2, first=60), []),
    }
    crop = "augment.steps=[{CropNonEmptyMaskIfExists: {height: 8, width: 8}}]"
    given = [
        "mix.mode=silver",
        "silver.audit=val",
        "silver.teacher={kind: torchscript, path: t.pt}",
        crop,
    ]
    mapped = "data.maps={classes: [road]}"
    for more, refused in (([], ["w/000.png", "u/000.png"]), ([mapped], ["w/000.png"])):
        problems = faults_between(settings(*given, *more), read)
        assert [text.split(": ")[0] for text in problems] == [str(tmp_path / x) for x in refused]


def test_steps_are_tried_without_the_maps_that_a_teacher_may_not_write(settings, tmp_path):
    """A teacher of boxes writes none, and mode online none before an audit tells enough."""
    read = {
        "gold": gold(pictures(tmp_path / "g", 2, first=20), []),
        "written": replace(gold(pictures(tmp_path / "w", 2), []), grade=Grade.SILVER),
        "pool": pictures(tmp_path / "u", 2, first=70),
        "val": gold(pictures(tmp_path / "v", 2, first=60), []),
    }
    given = [
        "data.maps={classes: [road]}",
        "data.sources.checked.grade=silver",
        "silver.audit=val",
        "tasks.road={kind: semantic}",
        "augment.steps=[{CropNonEmptyMaskIfExists: {height: 8, width: 8}}]",
    ]
    own = ["mix={mode: batch, shares: {written: 1, pool: 1}}", "silver.teacher.task="]
    online = ["mix={mode: online, shares: {written: 1, pool: 1}}", "silver.teacher.task=boxes"]
    online += ["online.labels=[maps]", "online.audit_every="]
    for (*more, last), value, refused in (
        (own, "boxes", True),
        (own, "road", False),
        (online, "200", True),
        (online, "null", False),
    ):
        problems = faults_between(settings(*given, *more, last + value), read)
        assert any(text.startswith(str(tmp_path / "u")) for text in problems) is refused


def test_steps_are_tried_on_what_is_drawn_and_what_the_own_teacher_learns_from(
    settings, tmp_path, monkeypatch
):
    """A picture too low for the crop, or of another size than the backbone takes after it, is refused in
    these sources alone: in that of the audit it comes as it is."""
    low = np.array([[38, 64]] * 2)
    read = {
        name: pictures(tmp_path / name, 2, name, first)
        for name, first in (("gold", 0), ("checked", 9), ("written", 20), ("pool", 40), ("val", 60))
    }
    read = {n: replace(s, sizes=np.array([[64, 64]] * 2)) for n, s in read.items()}
    read |= {n: gold(read[n], []) for n in ("gold", "checked", "written", "val")}
    read["written"] = replace(read["written"], grade=Grade.SILVER)
    asked = settings(
        "mix={mode: silver}",
        "input={short: 64, long: 64}",
        "augment.steps=[{RandomCrop: {height: 40, width: 40}}]",
        "export.format=null",
    )
    backbone = SimpleNamespace(misfit=lambda *size: None if size == (64, 64) else "no such size")
    monkeypatch.setattr(recipe, "_check_parts", lambda _: SimpleNamespace(backbone=backbone))
    run = OpenRun(asked, RunFolder(tmp_path), SimpleNamespace(device="cpu"), None)
    for name, refused in (("gold", True), ("pool", True), ("checked", False)):
        given = read | {name: replace(read[name], sizes=low)}
        problems = faults_between(asked, given)
        assert any("RandomCrop failed" in text for text in problems) is refused
        with pytest.raises(InputError, match="RandomCrop") if refused else nullcontext():
            recipe._check(run, {n: s for n, s in given.items() if n != "val"}, [given["val"]])


def test_a_best_checkpoint_by_labels_that_val_does_not_have_is_refused(settings, tmp_path):
    people = gold(pictures(tmp_path / "p", 4), [(0, [1, 2, 9, 9], 0, 0)])
    read = {n: replace(people, name=n) for n in ("gold", "checked", "written")}
    asked = settings("train.best=boxes/AP", "mix={mode: gold}", "silver=null")
    for val, refused in (
        (pictures(tmp_path / "v", 2, first=60), True),  # nobody looked
        (gold(pictures(tmp_path / "v", 2, first=60), []), False),  # and found nothing
    ):
        problems = faults_between(asked, read | {"val": val})
        assert any("no picture of data.val has boxes" in text for text in problems) is refused


def test_gold_of_two_sources_is_audited_by_both_where_they_share_pictures(settings, tmp_path):
    cats = gold(
        pictures(tmp_path / "p", 20), [(i, [1, 2, 9, 9], 0, 0) for i in range(20)], [[1, 0]]
    )
    dogs = replace(gold(cats, [], [[0, 1]]), name="checked")
    audited = audit_source(
        settings("silver.audit={share: 0.5}"), {"gold": cats, "checked": dogs}, None
    )
    assert len(audited) == 10 == len(audited.annotations) and (audited.coverage == 1).all()


def test_gold_of_a_pool_of_mode_online_is_gold_for_the_audit(settings, tmp_path):
    """Such a pool is called silver from the start."""
    own = replace(gold(pictures(tmp_path / "p", 4), []), grade=Grade.SILVER)
    audited = audit_source(
        settings("silver.audit={share: 0.5}"), {"gold": own, "checked": own}, own
    )
    assert audited.grade is Grade.GOLD


def test_maps_alone_by_a_model_are_no_gold_either(settings, tmp_path, pool):
    by_model = replace(pool.maps, grade=int(Grade.SILVER))
    bare = replace(pool, annotations=None, tags=None, depth=None, coverage=np.zeros((1, 2)))
    asked = settings("silver.audit=val", "data.sources.checked.grade=silver")
    assert gold_by_models(asked, {"gold": replace(bare, maps=pool.maps)}) == []
    assert len(gold_by_models(asked, {"gold": replace(bare, maps=by_model)})) == 1
    assert gold_by_models(asked, {"gold": replace(pool, maps=by_model)}) == []


def test_more_sources_than_can_be_weighed_are_refused(settings):
    more = {f"s{i}": {"kind": "coco", "images": "i", "annotations": "a.json"} for i in range(257)}
    with pytest.raises(InputError, match=r"the mix has 257 of them; at most 256"):
        settings(f"data.sources={more}", "silver=null", "mix={mode: gold}")


def test_a_corrected_command_may_use_the_same_folder(settings, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim(settings("data.root=wrong"))
    folder.claim(settings())
    assert "root: wrong" in folder.settings.read_text(), "nothing has spoken for the new ones yet"
    folder.settle(settings())
    assert "root: here" in folder.settings.read_text()


@pytest.mark.parametrize("work", ["last.pt", "best.pt", "metrics.json"])
def test_a_folder_with_work_in_it_belongs_to_its_settings(settings, tmp_path, work):
    folder = RunFolder(tmp_path / "run")
    folder.claim(settings())
    (folder.path / work).touch()
    folder.claim(settings())
    with pytest.raises(InputError, match=r"train\.steps was 3, now 4"):
        folder.claim(settings("train.steps=4"))
    assert "steps: 3" in folder.settings.read_text()
    folder.claim(settings("train.compile=default"))  # how it is computed may change
    folder.claim(settings("silver.gates=warn"))  # what a run that gates stopped is told to set


def test_a_training_that_failed_says_where_other_settings_go(settings, tmp_path):
    taught = OpenRun(settings(), RunFolder(tmp_path), None, None)
    labelled = replace(taught, settings=settings("silver.teacher={kind: results, path: t.json}"))
    assert with_others(labelled) == "" and "another --out." in with_others(taught)
    taught.folder.last.touch()
    assert "another --out." in with_others(taught)
    told = f"{tmp_path} goes on .* another --out, and silver.store: {tmp_path / 'silver'} to keep"
    assert re.search(told, with_others(labelled))


def test_labels_that_were_written_outlive_a_corrected_setting(settings, tmp_path):
    """An audit that finds too little gold for a threshold asks for another one: the pool stays labelled, the
    teacher trained."""
    folder, teacher = RunFolder(tmp_path / "run"), settings("silver=null", "mix={mode: gold}")
    folder.claim(settings(), teacher)
    folder.teacher.claim(teacher)
    folder.teacher.last.touch()
    (folder.path / "silver").mkdir()
    folder.claim(settings("silver.select.threshold=0.7"), teacher)
    with pytest.raises(InputError, match=r"run/teacher: holds a run .*train\.steps was 3, now 4"):
        folder.claim(settings(), settings("silver=null", "mix={mode: gold}", "train.steps=4"))


def test_sources_may_come_and_go_while_a_teacher_alone_has_learned(settings, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim(settings())
    assert folder.claim_inputs({"data.gold": "a", "data.pool": "b"}) == []
    folder.teacher.path.mkdir()
    folder.teacher.last.touch()
    assert folder.claim_inputs({"data.gold": "a", "data.more": "c"}) == []
    (told,) = folder.claim_inputs({"data.gold": "other", "data.more": "c"})
    assert "other files (data.gold changed since)" in told
    folder.last.touch()
    (told,) = folder.claim_inputs({"data.gold": "a"})
    assert "other files (data.more changed since)" in told


def test_another_file_to_deploy_is_written_of_weights_that_are_there(settings, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim(settings())
    folder.metrics.touch()
    folder.torchscript.touch()
    folder.claim(settings("data.workers=1"))
    folder.settle(settings("data.workers=1"))
    assert folder.torchscript.exists()
    folder.claim(settings("export.dtype=bfloat16"))
    folder.settle(settings("export.dtype=bfloat16"))
    assert not folder.torchscript.exists()
    assert "dtype: bfloat16" in folder.settings.read_text()


def test_a_run_goes_on_where_its_store_is_now(settings, tmp_path):
    """As after a comparison was moved, or its folder is spelled otherwise."""
    folder = RunFolder(tmp_path / "run")
    folder.claim(settings("silver.store=runs/compared/stores/a"))
    folder.last.touch()
    folder.claim(settings("silver.store=/elsewhere/compared/stores/a"))
    with pytest.raises(InputError, match=r"silver\.floor was 0\.05, now 0\.1"):
        folder.claim(settings("silver.floor=0.1"))


def test_files_noted_by_an_earlier_version_are_not_called_changed(settings, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.claim(settings())
    assert folder.claim_inputs({"data.gold": "a"}) == []
    folder.last.touch()
    assert folder.claim_inputs({"data.gold": "a"}) == []
    assert "data.gold changed since" in folder.claim_inputs({"data.gold": "b"})[0]
    folder.inputs.write_text('{"data.gold": "a"}')
    (told,) = folder.claim_inputs({"data.gold": "b"})
    assert "an earlier version" in told and "changed since" not in told


def test_an_audit_without_a_page_has_its_table_and_its_summary(tmp_path):
    gold = scenes(count=4)
    store = stored(tmp_path, gold)
    space = LabelSpace.of(CLASSES)
    checked = audit(store, gold, space)
    with open(os.devnull, "w") as nowhere:
        console = Console(width=160, record=True, file=nowhere)
        show_audit(store, checked, gold, space, SelectionSettings(), console, False)
        table = console.export_text().strip().splitlines()
    assert any("person" in line for line in table)
    assert list(tmp_path.rglob("report.html")) == []
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["per_class"]["person"]["threshold"] == 0.5


def test_the_page_of_a_recipe_has_scores_before_and_after_calibration(tmp_path):
    pytest.importorskip("jinja2")
    gold = scenes(count=12)
    store = stored(tmp_path, gold)
    space = LabelSpace.of(CLASSES)
    checked = audit(store, gold, space)
    with open(os.devnull, "w") as nowhere:
        console = Console(width=160, record=True, file=nowhere)
        show_audit(store, checked, gold, space, SelectionSettings(), console, True)
    (page,) = tmp_path.rglob("report.html")
    enough = sum(map(len, checked.scores)) >= 20 and any(h.any() for h in checked.hits)
    assert enough
    assert "After calibration" in page.read_text()
    assert "No calibrated scores" not in console.export_text()


def test_scores_are_calibrated_once_for_thresholds_band_and_policy(tmp_path, monkeypatch):
    gold, space = scenes(count=12), LabelSpace.of(CLASSES)
    store = stored(tmp_path, gold, extra=2)
    checked = audit(store, gold, space)
    wanted = {"threshold": {"probability": 0.7}, "ignore_from": {"probability": 0.3}}
    select = SelectionSettings(**wanted, calibration="platt", soft_targets=True)
    whole, fits = policy.Policy.of(store, space, checked.known, select, checked), []
    fit = policy.fit_calibration
    monkeypatch.setattr(policy, "fit_calibration", lambda *a: fits.append(a) or fit(*a))
    show_audit(store, checked, gold, space, select, Console(quiet=True), False)
    assert len(fits) == 1
    (summary,) = tmp_path.rglob("summary.json")
    for c, own in enumerate(json.loads(summary.read_text())["per_class"].values()):
        assert own["threshold"] == pytest.approx(whole.limits[c], abs=1e-5)
        assert own["ignored_from"] == pytest.approx(whole.lower[c], abs=1e-5)


@pytest.fixture
def pool(tmp_path):
    """Returns two pictures that people know almost everything of: in the first of them boxes with
    details, of men everywhere; maps, depths and tags of both."""
    images = [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}]
    write(tmp_path, images=[*images, images[0] | {"id": 2, "file_name": "b.png"}])
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "b.png")
    for kind in ("maps", "depth"):
        (tmp_path / kind).mkdir()
        for i, name in enumerate("ab"):
            Image.new("L", (WIDTH, HEIGHT), 1 + i).save(tmp_path / kind / f"{name}.png")
    source = load(tmp_path, covers=["man"])
    maps = MapFolder(folder="maps", categories={1: "man", 2: "cup"})
    return replace(
        source,
        name="pool",
        maps=maps.load(source.files, tmp_path, MapClasses(classes=THINGS), "pool"),
        depth=DepthFolder(folder="depth").load(source.files, tmp_path, "pool", source.grade),
        tags=BoxTags.of(THINGS, TagClasses(classes=THINGS)),
    )


CUP = [2, 40, 12, 50]


def given_silver(pool, settings, tmp_path, seen):
    """Returns the pool after a teacher has seen a cup in the pictures `seen`, as a run reads it."""
    store = Store.create(tmp_path / "store", card(*THINGS), 0.05)
    with store.writer() as writer:
        for i in seen:
            one = np.array([CUP], np.float32), np.array([1], np.int32), np.array([0.9], np.float32)
            writer.add(Record(pool.hashes()[i], HEIGHT, WIDTH, *one, file=f"{i}.png"))
    space = LabelSpace.of(THINGS)
    chosen = select(Store.open(tmp_path / "store"), [pool], space, SelectionSettings())
    file = with_gold(pool, chosen, OverlaySettings())
    text = "data.tags={classes: [man, cup], from_boxes: true}"
    resolved = settings("data.classes=[man, cup]", text)
    return read_selection(pool, file, resolved, tmp_path / "cache")


def test_silver_boxes_leave_a_pool_all_else_that_people_said(pool, settings, tmp_path):
    labelled = given_silver(pool, settings, tmp_path, [0, 1])
    before, after = pool.labels(0), labelled.labels(0)
    boxes, own = after["boxes"], before["boxes"]
    assert boxes.grade.tolist() == [0, 0, 0, 1] and boxes.boxes[3].tolist() == CUP
    assert boxes.details.attributes.tolist() == [*own.details.attributes.tolist(), [-1, -1]]
    assert torch.equal(boxes.details.keypoints[:3], own.details.keypoints)
    assert not boxes.details.keypoints[3].any()
    assert boxes.details.areas.tolist() == [*own.details.areas.tolist(), 100]
    assert boxes.details.outlines.drawn().tolist() == [True, True, False, False]
    assert torch.equal(boxes.details.outlines.points, own.details.outlines.points)
    for kind in ("maps", "depth"):
        for i in range(2):
            found, wanted = vars(labelled.labels(i)[kind]), vars(pool.labels(i)[kind])
            assert all(torch.equal(x, wanted[n]) for n, x in found.items() if torch.is_tensor(x))
    assert pool.labels(1)["tags"].targets.tolist() == [0, 0]
    assert labelled.labels(1)["tags"].targets.tolist() == [0, 1], "the teacher's cup"


def test_a_pool_without_boxes_keeps_maps_and_gets_the_tags_that_follow(pool, settings, tmp_path):
    bare = replace(pool, annotations=None, tags=None, coverage=np.zeros((1, 2), np.float32))
    with pytest.warns(UserWarning, match="1 of 2 pictures have not been labelled"):
        labelled = given_silver(bare, settings, tmp_path, [1])
    assert len(labelled) == 1 and labelled.boxes(0).details is None
    assert (labelled.labels(0)["maps"].classes == 1).all()
    assert labelled.labels(0)["tags"].targets.tolist() == [0, 1]


def test_the_file_of_gold_over_silver_follows_the_details(pool, settings, tmp_path):
    given_silver(pool, settings, tmp_path, [0, 1])
    rows = annotations()
    rows[0]["attributes"]["color"] = "red"
    image = {"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
    write(tmp_path, rows, images=[image, image | {"id": 2, "file_name": "b.png"}])
    changed = replace(pool, annotations=load(tmp_path, WANTED, covers=["man"]).annotations)
    labelled = given_silver(changed, settings, tmp_path, [])
    assert labelled.boxes(0).details.attributes[0].tolist() == [0, 0]
