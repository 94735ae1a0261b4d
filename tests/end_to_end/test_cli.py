"""Every verb of the README's table runs on tiny data and writes what it promises."""

import json
import math
import re

import pytest
from conftest import GOLD_ALONE, REPOSITORY, same_weights, settings_words
from jsonschema import Draft202012Validator
from PIL import Image
from pycocotools.coco import COCO
from ruamel.yaml import YAML

from detmtl.engine.state import Ema
from detmtl.inference.predictor import load_predictor
from detmtl.silver.store import Store


def strict_json(path):
    """Returns a file's JSON; NaN and infinity, which JSON does not have, are refused."""

    def refuse(name):
        raise AssertionError(f"{path} holds {name}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_train_leaves_every_file_of_its_table(finished):
    told = (finished / "told.txt").read_text()
    names = ["best.pt", "model.torchscript", "metrics.json", "detections.json", "settings.yaml"]
    for name in [*names, "tensorboard", "silver", "teacher/best.pt"]:
        assert (finished / name).exists()
        assert str(finished / name) in told
    for row in ("teacher (gold alone)", "model (", "Scores on test"):
        assert row in told
    assert {"boxes/AP", "teacher/boxes/AP"} <= strict_json(finished / "metrics.json").keys()
    assert [p.name for p in finished.rglob("*") if p.suffix in (".part", ".tmp")] == []
    (page,) = (finished / "silver" / "audit").rglob("report.html")
    assert str(page) in told and (page.parent / "audit.json").exists()


def test_the_same_command_again_only_prints_the_table(finished, data, detmtl):
    times = {p: p.stat().st_mtime_ns for p in finished.rglob("*.pt")}
    done = detmtl("train", "--config", data / "recipe.yaml", "--out", finished)
    assert done.status == 0, done.err
    assert "Scores on test" in done.out
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*.pt")} == times


def test_two_runs_at_once_in_one_folder_are_refused(data, detmtl, tmp_path, taken):
    """Each would write over the other's checkpoints, and the first to miss its file would end."""
    run = tmp_path / "run"
    run.mkdir()
    with taken(run) as process:
        done = detmtl("train", "--config", data / "recipe.yaml", *GOLD_ALONE, "--out", run)
    assert done.status == 2
    assert done.errors == [
        f"--out {run}: process {process} trains there; wait for it, or give another --out"
    ]
    assert not (run / "cache").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("predict", "--model", "m.pt", "--source", "a", "--out", "b"),
        ("export", "--checkpoint", "m.pt", "--out", "b"),
        ("audit", "--store", "s", "--images", "a"),
        ("select", "--store", "s", "--out", "b"),
        ("import", "--sent", "a", "--back", "b", "--out", "c"),
    ],
)
def test_verbs_that_share_no_work_are_not_for_torchrun(detmtl, monkeypatch, words):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = detmtl(*words)
    assert done.status == 2
    assert "WORLD_SIZE: is 2" in done.err and "start it without torchrun" in done.err


def test_a_run_that_fills_the_disk_says_so(data, detmtl, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.pt.part").symlink_to("/dev/full")
    words = [*GOLD_ALONE, *settings_words(train__steps=2, train__save_every=1, device="cpu")]
    done = detmtl("train", "--config", data / "recipe.yaml", *words, "--out", run)
    assert done.status == 1
    assert done.err.endswith(
        "failed: No space left on device: make room; the same command goes on from what is saved\n"
    )


def test_a_run_goes_on_by_its_folder_alone(data, detmtl, tmp_path, monkeypatch):
    run, original = tmp_path / "run", Ema.update
    words = [*GOLD_ALONE, *settings_words(train__steps=6, train__save_every=2, device="cpu")]
    words += settings_words(export__format="null")
    whole = detmtl("train", "--config", data / "recipe.yaml", *words, "--out", tmp_path / "whole")
    assert whole.status == 0, whole.err

    def stop(self, model, step):
        if step == 5:
            raise KeyboardInterrupt
        original(self, model, step)

    monkeypatch.setattr(Ema, "update", stop)
    done = detmtl("train", "--config", data / "recipe.yaml", *words, "--out", run)
    assert done.status == 130 and "the same command goes on" in done.err
    monkeypatch.undo()
    other = detmtl("train", "--resume", run, "--set", "optim.lr=0.5")
    assert other.status == 2 and "optim.lr was 0.003, now 0.5" in other.errors[0]
    done = detmtl("train", "--resume", run, "--set", "data.workers=1")
    assert done.status == 0, done.err
    assert f"Continuing from step 4 of {run / 'last.pt'}" in done.out
    assert same_weights(run / "last.pt", tmp_path / "whole" / "last.pt")
    done = detmtl("train")
    assert done.status == 2 and "train needs --config" in done.errors[0]
    assert "or --resume" in done.errors[0]


def test_annotate_audit_select(finished, data, detmtl, tmp_path):
    store = tmp_path / "store"
    annotate = ["annotate", "--teacher", finished / "teacher/best.pt", "--images", data / "images"]
    done = detmtl(*annotate, "--out", store, "--floor", 0.02)
    assert done.status == 0, done.err
    assert "24 pictures labelled" in done.out
    records = list(Store.open(store).records())
    assert len(records) == 24 and sum(len(r.scores) for r in records) > 24

    before = Store.open(store).digest()
    done = detmtl(*annotate, "--out", store, "--floor", 0.02)
    assert done.status == 0 and Store.open(store).digest() == before

    gold = ["--annotations", data / "gold.json", "--images", data / "images/gold"]
    done = detmtl("audit", "--store", store, *gold)
    assert "Silver against gold: 8 pictures" in done.out
    assert done.status in (0, 2)  # a teacher of four steps may be told to be none
    assert done.status == 0 or done.errors[0].startswith(f"{store}: audit: ")
    assert not list(store.rglob("report.html"))
    low = ["--set", "threshold=0.1", "--set", "ignore_from=0.05"]
    again = detmtl("audit", "--store", store, *gold, "--html", *low)
    (page,) = store.rglob("report.html")
    assert again.out.split()[-1] == str(page) and "</html>" in page.read_text()
    done = detmtl("audit", "--store", store, *gold, "--learned-from", data / "images/gold")
    assert done.status == 2 and "the teacher learned from it" in done.errors[0]
    assert len(list(store.rglob("audit.json"))) == 1

    silver = tmp_path / "out" / "silver.json"
    policy = ["--set", "threshold=0.1", "--set", "ignore_from=0.05"]
    done = detmtl("select", "--store", store, "--out", silver, *policy, *gold)
    assert done.status == 0, done.err
    stranger = detmtl("select", "--store", store, "--out", silver, "--teacher", "nobody")
    assert stranger.status == 2 and "nobody" in stranger.errors[0]
    chosen = COCO(str(silver))
    assert len(chosen.imgs) == 24 and len(chosen.anns) > 0
    assert chosen.dataset["info"]["grade"] == "silver"
    assert min(a["attributes"]["teacher_score"] for a in chosen.anns.values()) >= 0.05

    # a person looks through the file, takes the first box away, and it comes back as gold
    data = strict_json(silver)
    first = data["annotations"].pop(0)
    (tmp_path / "back.json").write_text(json.dumps(data))
    files = ["--sent", silver, "--back", tmp_path / "back.json", "--out", tmp_path / "gold.json"]
    name = data["images"][0]["file_name"]
    (tmp_path / "done.txt").write_text(name)
    some = ["--finished", tmp_path / "done.txt", "--rest", tmp_path / "rest.json"]
    done = detmtl("import", *files, *some)
    assert done.status == 0, done.err
    assert "1 pictures" in done.out and first["image_id"] == 1
    assert [i["file_name"] for i in strict_json(tmp_path / "gold.json")["images"]] == [name]
    assert len(strict_json(tmp_path / "rest.json")["images"]) == 23
    done = detmtl("import", *files, "--reviewed", "red")
    assert done.status == 2 and "must be a list in YAML" in done.err


@pytest.mark.parametrize("format", ["yolo", "voc"])
def test_a_selection_is_written_in_other_formats(finished, detmtl, tmp_path, format):
    policy = ["--set", "threshold=0.1", "--set", "ignore_from=null"]
    store = ["--store", finished / "silver", "--format", format]
    done = detmtl("select", *store, "--out", tmp_path / "out", *policy)
    assert done.status == 0, done.err
    assert "files have no place for: silver grades (" in done.err
    files = {
        p.relative_to(tmp_path / "out").parent.as_posix() for p in (tmp_path / "out").rglob("0*")
    }
    assert files == {"images/pool", "images/val"}


def test_a_selection_can_be_trained_on(finished, data, detmtl, tmp_path):
    store, silver = finished / "silver", tmp_path / "silver.json"
    policy = ["--set", "threshold=0.1", "--set", "ignore_from=null"]
    assert detmtl("select", "--store", store, "--out", silver, *policy).status == 0
    source = f"{{kind: coco, images: {data}, annotations: {silver}}}"
    words = ["--set", f"data.sources={{silver: {source}}}", "--set", "silver=null"]
    words += [
        "--set",
        "mix={mode: silver}",
        "--set",
        "train.steps=1",
        "--set",
        "export.format=null",
    ]
    # the store's names are relative to data.root, and the audit pictures are those of val
    words += ["--set", "data.val=" + "{kind: coco, images: images/test, annotations: test.json}"]
    words += ["--set", "data.test=null", "--set", "data.sources.silver.grade=silver"]
    done = detmtl("train", "--config", data / "recipe.yaml", *words, "--out", tmp_path / "run")
    assert done.status == 0, done.err
    assert (tmp_path / "run" / "best.pt").exists()


def test_evaluate_a_checkpoint_and_its_detections(finished, data, detmtl, tmp_path):
    truth = ["--annotations", data / "test.json"]
    done = detmtl(
        *(
            "evaluate",
            "--checkpoint",
            finished / "best.pt",
            *truth,
            "--images",
            data / "images/test",
        ),
        *("--precision", "fp32", "--json", tmp_path / "scores.json"),
    )
    assert done.status == 0, done.err
    scores, final = strict_json(tmp_path / "scores.json"), strict_json(finished / "metrics.json")
    final = {k: v for k, v in final.items() if not k.startswith("teacher/")}
    assert scores.keys() == final.keys()
    for name, value in final.items():
        # the run scored in batches, whose sums have another order
        assert value is scores[name] or math.isclose(scores[name], value, abs_tol=1e-3), name
    # no object of a 96 pixel picture is large: there is no such number, and null says so
    assert scores["boxes/AP_large"] is None
    assert re.search(r"boxes/AP_large\W+-\W", done.out)

    found = tmp_path / "found"
    model = ("--model", finished / "best.pt", "--precision", "fp32")
    done = detmtl("predict", *model, "--source", data / "images/test", "--out", found)
    assert done.status == 0, done.err
    for file in (finished / "detections.json", found / "results.json"):
        done = detmtl(
            *("evaluate", "--detections", file, *truth), *("--json", tmp_path / "of_file.json")
        )
        assert done.status == 0, done.err
        of_file = strict_json(tmp_path / "of_file.json")
        assert of_file.keys() == {k.removeprefix("boxes/") for k in scores}
        for name, value in of_file.items():
            # the file keeps fewer digits of boxes and scores
            of_run = final[f"boxes/{name}"]
            assert value is of_run or math.isclose(value, of_run, abs_tol=1e-3), name
        assert of_file["AP50"] > 0.02


@pytest.mark.parametrize("model", ["best.pt", "last.pt", "model.torchscript"])
def test_predict(model, finished, data, detmtl, tmp_path):
    out = tmp_path / "found"
    sources = [data / "images/val", data / "images/test/000.jpg"]
    done = detmtl("predict", "--model", finished / model, "--source", *sources, "--out", out)
    assert done.status == 0, done.err
    results = COCO(str(out / "results.json"))
    assert len(results.imgs) == 7 and len(results.anns) > 7
    assert [c["name"] for c in results.dataset["categories"]] == ["red", "blue"]
    drawn = sorted(p.relative_to(out / "drawn").as_posix() for p in out.rglob("*.jpg"))
    assert drawn == sorted(i["file_name"] for i in results.imgs.values())
    for entry in results.imgs.values():
        with Image.open(out / "drawn" / entry["file_name"]) as picture:
            assert picture.size == (entry["width"], entry["height"])
        for a in results.imgToAnns[entry["id"]]:
            x, y, w, h = a["bbox"]
            assert 0 <= x < x + w <= entry["width"] + 1e-3
            assert 0 <= y < y + h <= entry["height"] + 1e-3
            assert 0 < a["score"] <= 1
    # pycocotools takes the annotations as results too
    assert len(results.loadRes(list(results.anns.values())).anns) == len(results.anns)


def test_export(finished, detmtl, tmp_path):
    out = tmp_path / "new" / "model.torchscript"
    done = detmtl("export", "--checkpoint", finished / "best.pt", "--out", out)
    assert done.status == 0, done.err
    assert "float32" in done.out and str(out) in done.out
    assert load_predictor(out).class_names == ("red", "blue")
    assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_check(data, detmtl, tmp_path):
    words = ["--annotations", data / "gold.json", "--images", data / "images/gold"]
    done = detmtl("check", *words)
    assert done.status == 0, done.err
    assert "no faults" in done.out
    for name in ("red", "blue"):
        assert re.search(rf"{name}\W+8\W+8\W+0\W", done.out)


def test_schema(data, detmtl, tmp_path):
    done = detmtl("schema")
    assert done.status == 0
    Draft202012Validator.check_schema(json.loads(done.out))
    recipe = YAML(typ="safe", pure=True).load((data / "recipe.yaml").read_text())
    assert [e.message for e in Draft202012Validator(json.loads(done.out)).iter_errors(recipe)] == []
    assert detmtl("schema", "--out", tmp_path / "a" / "schema.json").status == 0
    assert (tmp_path / "a" / "schema.json").read_text() == done.out


def test_every_verb_has_a_script_and_a_row_in_the_readme(detmtl):
    readme = (REPOSITORY / "README.md").read_text()
    told = re.findall(r"^\| `(\w+)", readme, re.M)
    told = [verb for verb in told if verb not in ("word", "verb")]
    scripts = {p.stem.removesuffix("_labels") for p in (REPOSITORY / "tools").glob("*.py")}
    helped = detmtl("--help")
    assert helped.status == 0
    verbs = set(re.findall(r"^    (\w+)  ", helped.out, re.M))
    assert verbs == set(told)
    assert verbs == scripts
