"""Runs and verbs with several teachers of boxes: gates, who abstains, fused labels for other tools."""

import json
import shutil
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch
from audit_stand_ins import CLASSES, moved, scenes, stored
from rich.console import Console
from silver_stand_ins import ColorTeacher
from test_ensemble import SPACE, A, B, C, labelled, source, store_of  # noqa: F401
from test_teacher_arm import run  # noqa: F401

from detmtl import pools
from detmtl.cli import main
from detmtl.config import read_settings
from detmtl.data.coco_writer import write_coco_annotations
from detmtl.engine import distributed
from detmtl.run_folder import OpenRun, RunFolder
from detmtl.run_sources import load_sources, to_be_labelled
from detmtl.silver.audit import audit
from detmtl.silver.audit_gates import problems_alone
from detmtl.silver.ensemble import Ensemble
from detmtl.silver.selection import SelectionSettings, select
from detmtl.silver.store import Store
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels

pytest.importorskip("numba", reason="numba is not installed: detmtl[fusion]")
pytest.importorskip("sklearn", reason="scikit-learn is not installed: detmtl[calibration]")


class Faint(ColorTeacher):
    """Sees what `ColorTeacher` sees, and scores it .30 to .33; beside it some that nobody else sees."""

    def __init__(self, extra=0):
        super().__init__()
        self._extra = extra

    def annotate(self, images, infos, floor=0.05):
        found = super().annotate(images, infos, floor)
        return [self._with_extra(labels) for labels in found]

    def _with_extra(self, labels):
        corner = 20 + torch.arange(self._extra)[:, None].float()
        extra = torch.cat([corner / 4, corner / 4, corner / 4 + 3, corner / 4 + 3], dim=1)
        return BoxLabels.of(
            torch.cat([labels.boxes[:1], extra]),
            torch.cat([labels.classes[:1], torch.arange(self._extra) % 2]),
            2,
            torch.cat([0.3 + labels.scores[:1] / 40, torch.full((self._extra,), 0.1)]),
        )


class Specialist(ColorTeacher):
    """Sees a dog in every picture, which no gold knows of."""

    def __init__(self):
        super().__init__()
        card = {"name": "u", "classes": ("dog",), "weights_sha256": "1" * 64}
        self.card = self.card.model_copy(update=card)

    def annotate(self, images, infos, floor=0.05):
        box = torch.tensor([[5.0, 5, 15, 15]])
        return [BoxLabels.of(box, torch.tensor([0]), 1, torch.tensor([0.9])) for _ in images]


@pytest.fixture
def label(run, tmp_path, monkeypatch):  # noqa: F811
    """Returns what labels the pool of a run with these teachers; its gold are all 24 pictures of val."""

    def labels(*teachers, overrides=()):
        monkeypatch.setattr(pools, "load_teachers", lambda *_: iter(teachers))
        monkeypatch.setattr(pools, "available", lambda: False)
        settings = read_settings(tmp_path / "run.yaml", overrides)
        process, console = distributed.start("cpu"), Console(file=labels.told, width=200)
        sources, val, _ = load_sources(settings, tmp_path / "cache", process)
        sources |= to_be_labelled(settings, sources)
        run = OpenRun(settings, RunFolder(tmp_path / "folder"), process, console)
        return pools.label_pools(run, sources, val)[0]

    labels.told = StringIO()
    return labels


def test_a_faint_teacher_passes_and_one_that_gold_cannot_judge_abstains(label):
    classes = "data.classes=[person, car, dog]"
    with pytest.warns(UserWarning, match="teacher 'u' abstains: .* 0 objects of dog") as told:
        pool = label(Faint(), Specialist(), overrides=[classes])["pool"]
    assert len(told) == len([w for w in told if "abstains" in str(w.message)])
    assert "No page of the audit: pip install 'detmtl[report]'\n" in label.told.getvalue()
    labels = pool.boxes(0)
    assert labels.classes.tolist() == [80 * 3 % 256 % 2], "the faint teacher's, and no dog"
    assert labels.coverage[2] == 0 and (labels.coverage[:2] > 0.8).all(), "nobody looked for dogs"


def test_gates_judge_the_fused_labels_at_the_thresholds_that_are_used(label):
    teachers = [Faint(extra=9), ColorTeacher()]
    teachers[1].card = teachers[1].card.model_copy(update={"name": "u"})
    assert len(label(*teachers)["pool"].boxes(0)) == 1, "what is doubtful is no label"
    every = ["silver.select.threshold=0.0", "silver.select.ignore_from=null"]
    with pytest.raises(
        InputError, match=r"too many boxes: at score 0.00 the teacher has .* a picture"
    ):
        label(*teachers, overrides=every)


def test_of_several_teachers_each_is_judged_by_what_its_boxes_are(tmp_path):
    space, gold = LabelSpace.of(CLASSES), scenes()
    dim = lambda r: replace(r, scores=(0.3 + r.scores / 30).astype(np.float32))  # noqa: E731
    faint = audit(stored(tmp_path / "faint", gold, dim), gold, space)
    assert "too few boxes: at score 0.50" in faint.problems()[0] and problems_alone(faint) == []
    wrong = stored(tmp_path / "wrong", gold, moved(lambda b, w, h: b[:, [1, 0, 3, 2]]))
    (problem,) = problems_alone(audit(wrong, gold, space))
    assert "y before x" in problem
    few = gold.subset([0, 1])
    alone = audit(stored(tmp_path / "few", few), few, space)
    assert "too little gold" in alone.problems()[0] and problems_alone(alone) == []
    silent = stored(
        tmp_path / "silent",
        gold,
        lambda r: replace(r, boxes=r.boxes[:0], classes=r.classes[:0], scores=r.scores[:0]),
    )
    assert "of any score" in problems_alone(audit(silent, gold, space))[0]


@pytest.fixture
def stores(tmp_path, source):  # noqa: F811
    """In one store folder: `aa` knows both classes, `bb` persons, `cc` trees, of which gold has none."""
    count = len(source)
    said = {
        "aa": (
            ["human", "auto"],
            [[(A, 0, 0.6), (B, 1, 0.4 if i % 2 else 0.7)] for i in range(count)],
        ),
        "bb": (["people"], [[([1, 0, 11, 10], 0, 0.9), (C, 0, 0.8)]] * count),
        "cc": (["tree"], [[(C, 0, 0.9)]] * count),
    }
    for name, (classes, found) in said.items():
        store_of(tmp_path / "own", name, classes, source, found)
        shutil.copytree(tmp_path / "own" / name, tmp_path / "store", dirs_exist_ok=True)
    return [Store.open(tmp_path / "store", name) for name in said]


def test_who_abstains_has_no_say(labelled, source, stores):  # noqa: F811
    space = LabelSpace.of({"person": ["human", "people"], "car": ["auto", "car"], "tree": ["tree"]})
    wide = replace(labelled, classes=space.names, coverage=np.array([[1, 1, 0]], dtype=np.float32))
    audits = [audit(store, wide, space) for store in stores]
    with pytest.warns(UserWarning, match="teacher 'cc' abstains"):
        ensemble = Ensemble.of(stores, space, audits=audits)
    assert ensemble.looked_for.tolist() == [True, True, False] and ensemble.weights[2] == 0
    assert ensemble.card.classes == ("person", "car")
    two = Ensemble.of(stores[:2], space, audits=audits[:2])
    assert two.audit(wide).boxes.tobytes() == ensemble.audit(wide).boxes.tobytes()
    assert two.digest() != ensemble.digest()
    with pytest.raises(InputError, match="teacher 'cc' abstains"):
        Ensemble.of([stores[2], replace_name(stores[2], "dd")], space, audits=[audits[2]] * 2)
    with pytest.raises(InputError, match="audit of each against gold, and bb has none"):
        Ensemble.of(stores[:2], SPACE, audits=[audits[0], None])


def test_who_abstains_decides_of_no_picture(tmp_path, labelled, source, stores):  # noqa: F811
    space = LabelSpace.of({"person": ["human", "people"], "car": ["auto", "car"], "tree": ["tree"]})
    wide = replace(labelled, classes=space.names, coverage=np.array([[1, 1, 0]], dtype=np.float32))
    few = store_of(tmp_path, "few", ["tree"], source.subset([0]), [[]])
    audits = [audit(store, wide, space) for store in (few, *stores[:2])]
    with pytest.warns(UserWarning, match="teacher 'few' abstains"):
        ensemble = Ensemble.of([few, *stores[:2]], space, audits=audits)
    assert ensemble.audit(wide).pictures == len(source)
    path = select(ensemble, None, space, SelectionSettings(), ensemble.audit(wide))
    assert len(json.loads(path.read_text())["images"]) == len(source)


def replace_name(store, name):
    return replace(store, card=store.card.model_copy(update={"name": name}))


@pytest.fixture
def verbs(tmp_path, source, labelled, stores):  # noqa: F811
    """Returns what runs `audit` and `select` on that store with gold: exit status."""
    write_coco_annotations(tmp_path / "gold.json", labelled)
    classes = "{person: [human, people, person], car: [auto, car], tree: [tree]}"
    gold = ["--annotations", tmp_path / "gold.json", "--images", tmp_path / "images"]

    def run_verb(verb, *words, gold=gold):
        common = ["--store", tmp_path / "store", "--classes", classes, *gold]
        return main([str(word) for word in (verb, *common, *words)])

    return run_verb


def test_verbs_say_how_several_teachers_are_named(verbs, capsys, tmp_path):
    for verb, words in (("audit", []), ("select", ["--out", tmp_path / "x.json"])):
        assert verbs(verb, *words) == 2
        told = capsys.readouterr().err
        assert "holds labels of aa, bb, cc" in told and "--teacher NAME, or several names" in told
    words = ["--teacher", "aa", "bb", "--out", tmp_path / "x.json"]
    assert verbs("select", *words, gold=[]) == 2
    assert "needs an audit of each against gold, and aa, bb has none" in capsys.readouterr().err
    assert not (tmp_path / "x.json").exists()


@pytest.mark.filterwarnings("default")  # the command line prints them
def test_the_verb_audits_fused_labels_and_each_teacher(verbs, capsys, tmp_path):
    assert verbs("audit", "--teacher", "aa", "bb") == 0
    told = capsys.readouterr().out
    assert told.count("Silver against gold") == 3 and "Teacher bb" in told
    (path,) = (tmp_path / "store" / "fused").glob("*/audit/*/audit.json")
    assert str(path) in told
    assert len(json.loads(path.read_text())["boxes"]["score"]) == 36, "A is one box of both"
    assert verbs("audit", "--teacher", "aa", "cc") == 0
    assert "warning: teacher 'cc' abstains" in capsys.readouterr().err


@pytest.mark.filterwarnings("default")  # the command line prints them
def test_the_verb_writes_fused_labels_for_other_tools(verbs, tmp_path, capsys):
    words = ["--teacher", "aa", "bb", "--set", "threshold={precision: 0.9}", "--out"]
    assert verbs("select", *words, tmp_path / "out.json") == 0
    content = json.loads((tmp_path / "out.json").read_text())
    both = [a for a in content["annotations"] if a["attributes"]["teacher"] == "aa+bb"]
    assert len(both) == 12 and "fused_score" in both[0]["attributes"]
    assert verbs("select", *words, tmp_path / "voc", "--format", "voc") == 0
    assert len(list((tmp_path / "voc").rglob("*.xml"))) == 12
    assert "VOC files have no place for: silver grades (18)" in capsys.readouterr().err
    assert verbs("select", *words, tmp_path / "yolo", "--format", "yolo") == 0
    lines = [p.read_text().splitlines() for p in (tmp_path / "yolo").rglob("*.txt")]
    kept = [row for row in content["annotations"] if not row["iscrowd"]]
    assert sum(len([x for x in rows if len(x.split()) >= 5]) for rows in lines) == len(kept)


def test_the_verb_fuses_without_gold_what_is_not_calibrated(verbs, tmp_path):
    words = ["--set", "calibration=none", "--set", "threshold=0.7", "--set", "ignore_from=null"]
    words += ["--teacher", "aa", "bb", "--out", tmp_path / "out.json"]
    assert verbs("select", *words, gold=[]) == 0
    rows = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert len([row for row in rows if row["category_id"] == 1]) == 12, "A: (.6 + .9) / 2"
