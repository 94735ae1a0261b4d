"""What a user can get wrong is told in one sentence each, with status 2 and no traceback."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import GOLD_ALONE, environment, script
from PIL import Image

from detmtl.config import read_settings
from detmtl.silver.store import Store


@pytest.fixture
def refused(detmtl, tmp_path):
    """Returns a function that runs a verb which must be refused, and returns its sentences."""

    def refused(*words):
        done = detmtl(*words)
        assert done.status == 2, done.out + done.err
        assert "Traceback" not in done.err
        told = done.err.splitlines()
        assert told and all(line.startswith(("error: ", "warning: ")) for line in told), done.err
        return done.errors

    return refused


@pytest.fixture
def train(refused, own_data, tmp_path):
    """Returns a function that trains on the test's own data, which must be refused."""

    def train(*words):
        where = () if {"--out", "--resume"} & set(words) else ("--out", tmp_path / "run")
        errors = refused("train", "--config", own_data / "recipe.yaml", *words, *where)
        assert not list(tmp_path.rglob("last.pt"))
        return errors

    return train


@pytest.fixture
def check(refused, own_data):
    """Returns a function that checks the test's own gold, which must be refused."""

    def check(**replaced):
        paths = {"annotations": own_data / "gold.json", "images": own_data / "images/gold"}
        return refused("check", *(w for k, v in (paths | replaced).items() for w in (f"--{k}", v)))

    return check


def edit(path, change):
    """Rewrites a JSON file after `change(content)`; NaN is written as Python does."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def one(errors, *parts):
    """Asserts that one sentence has all of the parts, and returns it."""
    found = [e for e in errors if all(str(part) in e for part in parts)]
    assert len(found) == 1, errors
    return found[0]


# Settings


def test_unknown_setting(train, own_data):
    (own_data / "recipe.yaml").write_text(
        (own_data / "recipe.yaml").read_text().replace("steps: 30", "step: 30")
    )
    errors = train()
    one(errors, "recipe.yaml:", "train.step: unknown setting", "did you mean 'steps'?")
    one(errors, "train.steps: is required and missing")


def test_unknown_setting_from_the_command_line(train):
    one(train("--set", "data.batchsize=3"), "--set data.batchsize", "did you mean 'batch_size'?")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train.steps", "must be NAME.NAME=VALUE"),
        ("=3", "must be NAME.NAME=VALUE"),
        ("train..steps=3", "must be NAME.NAME=VALUE"),
        ("train.steps=[3", "the value is not YAML"),
        ("augment.steps.9.HorizontalFlip.p=1", "must be a position in a list of 2"),
        ("train.steps=many", "valid integer"),
        ("train.steps=0", "greater than or equal to 1"),
        ("optim.lr=.nan", "finite number"),
        ("device=tpu", "give auto, cpu, cuda or cuda:N"),
        ("model.backbone.name=resnet10x", "resnet10t"),
        ("data.sources.pool.kind=cocoa", "kind"),
        ("mix.shares={gold: 1, pol: 1}", "'pol' is no source"),
    ],
)
def test_malformed_set(text, told, train):
    (error,) = train("--set", text)
    assert told in error


def test_unknown_config(refused):
    one(
        refused("train", "--config", "retina_elektrum"),
        "--config retina_elektrum",
        "retina_electrum",
    )
    one(refused("train", "--config", "/nowhere/x.yaml"), "/nowhere/x.yaml", "no such file")


def test_resume_of_nothing(train, tmp_path):
    one(train("--resume", tmp_path / "none"), "--resume", tmp_path / "none", "holds no run")
    assert not (tmp_path / "none").exists()


def test_run_folder_below_a_file(train, tmp_path):
    (tmp_path / "file").write_text("")
    one(train("--out", tmp_path / "file" / "run"), "--out", "cannot be written", "another folder")


def test_another_runs_settings(refused, finished, data):
    before = (finished / "settings.yaml").read_bytes()
    words = ["--config", data / "recipe.yaml", "--out", finished, "--set", "optim.lr=0.5"]
    error = one(refused("train", *words), "holds a run with other settings")
    assert "optim.lr was 0.003, now 0.5" in error and str(finished) in error
    assert (finished / "settings.yaml").read_bytes() == before


def test_other_files_under_the_same_settings(detmtl, refused, own_data, tmp_path):
    out = tmp_path / "run"
    words = ["train", "--config", own_data / "recipe.yaml", *GOLD_ALONE, "--out", out]
    words += ["--set", "train.steps=1"]
    # how it is fed changes nothing, nor where scores are counted
    for more in ((), ("--set", "data.workers=1", "--set", "train.score_in_background=false")):
        done = detmtl(*words, *more)
        assert done.status == 0, done.err
    before = (out / "metrics.json").read_bytes()
    edit(own_data / "gold.json", lambda content: content["annotations"].pop())
    error = one(refused(*words), f"--out {out}: holds a run on other files")
    assert "(data.gold, gold.json changed since); choose another folder" in error
    assert (out / "metrics.json").read_bytes() == before


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("balancing.weights={bxes: 2}", "bxes"),
        ("model.backbone.args={no_such: 1}", "no_such"),
    ],
)
def test_what_cannot_be_built_is_told_before_a_teacher_learns(
    text, told, refused, own_data, tmp_path
):
    words = ["--config", own_data / "recipe.yaml", "--out", tmp_path / "run", "--set", text]
    assert told in "\n".join(refused("train", *words))
    assert not (tmp_path / "run" / "teacher").exists()


def test_what_an_audit_refused_is_corrected_in_the_same_folder(detmtl, refused, own_data, tmp_path):
    """The teacher has learned and the pool is labelled: neither is done again."""
    out = tmp_path / "run"
    words = ["--config", own_data / "recipe.yaml", "--out", out, "--set", "train.steps=1"]
    *reasons, remedy = refused("train", *words, "--set", "silver.gates=stop")
    assert reasons and all(" on 'val': audit: " in reason for reason in reasons)
    assert remedy == "set silver.gates: warn to go on all the same"
    done = [out / "teacher" / "last.pt", *(out / "silver" / "raw").rglob("*.*")]
    before = {path: path.stat().st_mtime_ns for path in done}
    assert len(before) > 2
    words += ["--set", "silver.gates=warn", "--set", "silver.select.threshold=0.3"]
    again = detmtl("train", *words)
    assert again.status == 0, again.err
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "metrics.json").exists()


def test_a_run_that_diverges_says_where_other_settings_go(detmtl, data, tmp_path):
    words = ["train", "--config", data / "recipe.yaml", *GOLD_ALONE, "--out", tmp_path / "run"]
    words += ["--set", "optim={lr: 1e30, warmup: 0, clip: null}", "--set", "train.save_every=1"]
    done = detmtl(*words)
    assert done.status == 1 and "the loss or its gradient is not finite" in done.err
    assert f"{tmp_path / 'run'} goes on with its own settings and files alone: for" in done.err


def test_pictures_of_a_config_are_not_given_beside_it(refused, data):
    words = ["check", "--config", data / "recipe.yaml", "--images", data / "images"]
    one(refused(*words), "--images: goes with --annotations")


def test_a_run_goes_on_where_its_data_are_now(detmtl, own_data, tmp_path):
    """As on another machine; what the teacher labelled stays labelled."""
    out, moved = tmp_path / "run", tmp_path / "moved"
    words = ["train", "--config", own_data / "recipe.yaml", "--out", out, "--set", "train.steps=1"]
    assert detmtl(*words).status == 0
    before = {p: p.stat().st_mtime_ns for p in (out / "silver" / "raw").rglob("*.*")}
    scores = (out / "metrics.json").read_text()
    (out / "metrics.json").unlink()
    own_data.rename(moved)
    again = detmtl("train", "--resume", out, "--set", f"data.root={moved}")
    assert again.status == 0, again.err
    assert {p: p.stat().st_mtime_ns for p in before} == before and len(before) > 1
    assert (out / "metrics.json").read_text() == scores
    assert read_settings(out / "settings.yaml").data.root == moved


def test_an_unknown_metric_for_the_best_checkpoint_names_those_there_are(train):
    error = one(
        train(*GOLD_ALONE, "--set", "train.best=boxes/mAP", "--set", "train.steps=1000000"),
        "boxes/mAP",
    )
    assert "boxes/AP50" in error


def test_a_task_may_not_be_called_as_a_part_of_torch_s_modules(train):
    one(train("--set", "tasks={type: {kind: detection}}"), "tasks.type", "take another")


# Pictures


def test_missing_picture(train, check, own_data):
    (own_data / "images/gold/003.jpg").unlink()
    for errors in (train(), check()):
        one(errors, "gold.json", "images/gold/003.jpg: no such picture")


def test_missing_folder_of_pictures(train, check, own_data):
    shutil.move(own_data / "images/gold", own_data / "moved")
    for errors in (train(), check()):
        one(errors, "folder of pictures", own_data / "images/gold", "does not exist")


def test_wrong_folder_of_pictures(train, check, own_data):
    for name in ("006.jpg", "007.jpg"):
        shutil.copy(own_data / "images/gold" / name, own_data / "images" / name)
    for errors in (
        train("--set", "data.sources.gold.images=images"),
        check(images=own_data / "images"),
    ):
        one(errors, "000.jpg: no such picture")


def test_truncated_picture(train, check, own_data):
    path = own_data / "images/gold/002.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    for errors in (train(*GOLD_ALONE), check()):
        one(errors, path, "truncated")


def test_truncated_picture_of_the_pool(refused, own_data, finished, tmp_path):
    path = own_data / "images/pool/001.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    teacher = f"silver.teacher={{kind: checkpoint, path: {finished / 'teacher/best.pt'}}}"
    words = ["--config", own_data / "recipe.yaml", "--set", teacher, "--out", tmp_path / "run"]
    one(refused("train", *words), path, "truncated")
    # all others are labelled: once it is mended, that work is not done again
    assert len(Store.open(tmp_path / "run" / "silver")) == 6 + 6 - 1


def test_empty_picture_and_text_named_jpg(check, own_data):
    (own_data / "images/gold/000.jpg").write_bytes(b"")
    (own_data / "images/gold/001.jpg").write_text("not a picture")
    errors = check()
    one(errors, "000.jpg", "the file is empty")
    one(errors, "001.jpg", "is not a picture")


def test_picture_of_another_size_than_stated(check, own_data):
    Image.new("RGB", (50, 40)).save(own_data / "images/gold/004.jpg")
    one(check(), "004.jpg", "40", "50", "80", "64")


def test_test_pictures_among_the_training_ones(train, own_data):
    shutil.copy(own_data / "images/test/001.jpg", own_data / "images/gold/000.jpg")
    one(train(), "images/gold/000.jpg", "images/test/001.jpg", "held out")


def test_audit_pictures_that_the_teacher_learns_from(train, own_data):
    shutil.copytree(own_data / "images/gold", own_data / "images/checked")
    checked = "{kind: coco, images: images/checked, annotations: gold.json}"
    words = ["--set", f"data.sources.checked={checked}", "--set", "silver.audit=checked"]
    one(train(*words), "images/gold/001.jpg", "learned from it", "images/checked/001.jpg")


# Annotations


@pytest.mark.parametrize(
    ("box", "told"),
    [
        ([float("nan"), 2, 10, 10], "finite"),
        ([1, 2, float("inf"), 10], "finite"),
        ([5, 5, -4, 10], "width is -4"),
        ([5, 5, 10, 0], "height is 0"),
        ([-9, 5, 20, 10], "lies outside its picture of 64 x 80"),
        ([40, 5, 30, 10], "lies outside its picture of 64 x 80"),
        ([500, 5, 30, 10], "lies outside its picture of 64 x 80"),
        ([1, 2, 3], "it needs 4 numbers"),
        (None, "it needs 4 numbers"),
        (["1", "2", "3", "4"], "it needs 4 numbers"),
    ],
    ids=str,
)
def test_wrong_box(box, told, train, check, own_data):
    def spoil(coco):
        coco["annotations"][4]["bbox"] = box

    edit(own_data / "gold.json", spoil)
    for errors in (train(), check()):
        one(errors, "gold.json: annotation 5 of image 3", told)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda c: c["annotations"][0].update(category_id=7),
            ("annotation 1 of image 1", "category_id is 7", "between 1 and 2"),
        ),
        (
            lambda c: c["annotations"][0].update(image_id=99),
            ("annotation 1 of image 99", "no such image"),
        ),
        (lambda c: c["annotations"][3].update(id=1), ("annotation 1 of", "used twice")),
        (lambda c: c["images"][3].update(id=1), ("image id 1 is listed twice",)),
        (lambda c: c["categories"][1].update(id=1), ("category id 1 is listed twice",)),
        (lambda c: c["categories"].pop(), ("category_id is 2", "not in 'categories'")),
        (lambda c: c["categories"][1].update(name="red"), ("two categories are named 'red'",)),
        (lambda c: c["images"].clear(), ("'images' is empty",)),
        (lambda c: c["annotations"].clear(), ("no annotations at all", "covers")),
        (lambda c: c.pop("categories"), ("no list 'categories'",)),
        (lambda c: c["images"][0].pop("file_name"), ("image 1", "no 'file_name'")),
        (lambda c: c["annotations"].append(7), ("annotation at position 16", "JSON object")),
    ],
)
def test_wrong_annotation_file(spoil, told, train, check, own_data):
    edit(own_data / "gold.json", spoil)
    for errors in (train(), check()):
        assert any(all(part in e for part in ("gold.json", *told)) for e in errors), errors


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "the file is empty (0 bytes)"),
        (b'{"images": [', "is not JSON"),
        (b"[]", "is a list"),
        (b"\xff\xfe\x00", "is not JSON"),
    ],
)
def test_no_annotations_in_the_file(content, told, train, check, own_data):
    (own_data / "gold.json").write_bytes(content)
    for errors in (train(), check()):
        one(errors, "gold.json", told)


def test_missing_annotation_file(train, check, own_data):
    (own_data / "gold.json").unlink()
    for errors in (train(), check()):
        one(errors, "gold.json", "No such file")


def test_category_that_is_no_class(train):
    error = one(
        train("--set", "data.classes=[red, blu]"), "gold.json", "'blue' belongs to no class"
    )
    assert "nearest: 'blu'" in error and "data.unmapped: drop" in error


def test_all_faults_of_all_files_are_told_at_once(train, own_data):
    edit(own_data / "gold.json", lambda c: c["annotations"][0].update(category_id=7))
    edit(own_data / "gold.json", lambda c: c["annotations"][1].update(bbox=[1, 1, -3, 3]))
    edit(own_data / "test.json", lambda c: c["images"][3].update(id=1))
    errors = train()
    one(errors, "gold.json: annotation 1", "category_id is 7")
    one(errors, "gold.json: annotation 2", "width is -3")
    one(errors, "test.json", "image id 1 is listed twice")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("2 0.5 0.5 0.1 0.1", ("the class is 2", "between 0 and 1")),
        ("-1 0.5 0.5 0.1 0.1", ("the class is -1", "between 0 and 1")),
        ("0 0.5 0.5 nan 0.1", ("finite",)),
        ("0 0.5 0.5 -0.1 0.1", ("width is", "need width and height > 0")),
        ("0 1.5 0.5 0.1 0.1", ("lies outside its picture",)),
        ("0 0.5 0.5", ("needs `class x y width height",)),
        ("red 0.5 0.5 0.1 0.1", ("needs `class x y width height",)),
    ],
)
def test_wrong_line_of_yolo(line, told, train, own_data):
    labels = own_data / "labels"
    labels.mkdir()
    (labels / "000.txt").write_text(f"0 0.5 0.5 0.2 0.2\n{line}\n")
    yolo = "{kind: yolo, images: images/gold, labels: labels, names: [red, blue]}"
    errors = train("--set", f"data.sources.gold={yolo}")
    one(errors, "labels/000.txt line 2", *told)


# Models


def test_unreadable_teacher(refused, own_data, tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04 torn")
    (tmp_path / "broken.torchscript").write_bytes(b"PK\x03\x04 torn")
    words = ["--images", own_data / "images/pool", "--out", tmp_path / "store"]
    for spec, told in {
        str(tmp_path / "none.pt"): "no such file",
        str(tmp_path / "broken.pt"): "not a checkpoint of detmtl or damaged",
        str(tmp_path / "broken.torchscript"): "",
        str(tmp_path / "none.yaml"): "no such file",
        "nonsense": "--teacher",
        "{kind: oracle, path: x}": "kind",
        "{kind: checkpoint": "is not YAML",
    }.items():
        one(refused("annotate", "--teacher", spec, *words), told)
        assert not (tmp_path / "store" / "store.json").exists()


def test_unreadable_teacher_of_a_run(train, tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"torn")
    teacher = f"silver.teacher={{kind: checkpoint, path: {tmp_path / 'broken.pt'}}}"
    one(train("--set", teacher), "broken.pt", "not a checkpoint")


def test_a_teachers_labels_in_a_store_are_of_one_teacher_and_floor(
    refused, finished, data, tmp_path
):
    shutil.copy(finished / "best.pt", tmp_path / "teacher.pt")  # the name of the store's teacher
    words = ["--images", data / "images/pool", "--out", finished / "silver", "--floor", 0.02]
    one(
        refused("annotate", "--teacher", tmp_path / "teacher.pt", *words),
        *("weights_sha256", "two teachers need two names"),
    )


def test_verbs_that_lack_their_files(refused, data, finished, tmp_path):
    gold = ["--annotations", data / "gold.json", "--images", data / "images/gold"]
    one(refused("audit", "--store", tmp_path / "none", *gold), "made by annotate")
    one(refused("select", "--store", tmp_path / "none", "--out", "x.json"), "made by annotate")
    one(refused("evaluate", *gold), "needs --checkpoint and --images, or --detections")
    one(refused("evaluate", "--checkpoint", tmp_path / "none.pt", *gold), "no such file")
    one(refused("evaluate", "--detections", tmp_path / "none.json", *gold[:2]), "none.json")
    one(refused("evaluate", "--detections", data / "gold.json", *gold[:2]), "gold.json")
    one(refused("export", "--checkpoint", tmp_path / "none.pt", "--out", "x.ts"), "no such file")
    predict = ["predict", "--model", finished / "best.pt", "--out", tmp_path / "out"]
    one(refused(*predict, "--source", tmp_path / "none.jpg"), "no such file or folder")
    one(refused(*predict, "--source", data / "gold.json"), "neither a picture nor a video")
    words = ["annotate", "--teacher", finished / "best.pt", "--out", tmp_path / "store"]
    one(refused(*words, "--images", tmp_path / "none"), "folder of pictures", "does not exist")


def test_outputs_that_cannot_be_written(refused, data, finished, tmp_path):
    (tmp_path / "file").write_text("")
    below, best = tmp_path / "file" / "out", finished / "best.pt"
    truth = ["--annotations", data / "test.json"]
    for words in (
        ["export", "--checkpoint", best, "--out", below],
        ["predict", "--model", best, "--source", data / "images/val", "--out", below],
        ["evaluate", "--detections", finished / "detections.json", *truth, "--json", below],
        ["annotate", "--teacher", best, "--images", data / "images/pool", "--out", below],
        ["select", "--store", finished / "silver", "--out", below],
        ["schema", "--out", below],
        ["check", *truth, "--images", data / "images/test", "--cache", below],
    ):
        one(refused(*words), below.parent, "cannot be written")


@pytest.mark.parametrize(("option", "value"), [("--floor", "2"), ("--batch-size", "0")])
def test_numbers_out_of_range(option, value, detmtl, data, finished, tmp_path):
    words = ["annotate", "--teacher", finished / "best.pt", "--images", data / "images/pool"]
    done = detmtl(*words, "--out", tmp_path / "store", option, value)
    assert done.status == 2 and option in done.err and value in done.err
    assert not (tmp_path / "store").exists()


def test_unreadable_picture_among_those_to_predict(refused, own_data, finished, tmp_path):
    path = own_data / "images/val/001.jpg"
    path.write_bytes(path.read_bytes()[:-300])
    out = tmp_path / "out"
    words = ["--model", finished / "best.pt", "--source", path.parent, "--out", out]
    one(refused("predict", *words), path, "truncated")
    assert len(json.loads((out / "results.json").read_text())["images"]) == 5  # the others


def test_a_process_ends_with_status_2_and_no_traceback(own_data):
    (own_data / "gold.json").write_bytes(b"")
    words = ["--config", own_data / "recipe.yaml", "--set", "device=cpu", "--out", own_data / "run"]
    done = subprocess.run(
        [sys.executable, script("train"), *map(str, words)],
        env=environment(),
        cwd=own_data,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == ("error: gold.json: the file is empty (0 bytes); it needs to be JSON\n")
