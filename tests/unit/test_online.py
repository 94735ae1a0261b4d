"""Mode online: what the averaged model's boxes become, and that a run goes on to the bit."""

import importlib.util
import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

sys.path.insert(0, os.path.dirname(__file__))
from engine_stand_ins import NAMES, batch_of, recorder
from engine_stand_ins import prepared as untaught
from test_loader import make_source

from detmtl.config import settings_from
from detmtl.data.augment import Augment
from detmtl.data.fit import InputSettings
from detmtl.data.flat import Annotations
from detmtl.data.loader import batches as loaded
from detmtl.data.loader import drafts
from detmtl.data.mixture import MixSettings, Mixture
from detmtl.data.source import Source
from detmtl.data.tags import BoxTags, TagClasses
from detmtl.engine.evaluator import collect, predict
from detmtl.engine.online import online_batches
from detmtl.engine.online_audit import Audits, Choices, audit_pictures
from detmtl.engine.online_boxes import BoxChoice, OnlineBoxes
from detmtl.engine.optim import OptimSettings
from detmtl.engine.trainer import TrainSettings, train
from detmtl.run_folder import RunFolder
from detmtl.run_online import known_classes, online_kinds
from detmtl.run_sources import to_be_labelled
from detmtl.silver.audit import Audit, audit
from detmtl.silver.calibration import TooLittleEvidence
from detmtl.silver.card import TeacherCard
from detmtl.silver.comparison import GOLD, JUDGED, Fault
from detmtl.silver.evidence import Evidence
from detmtl.silver.overlay import OverlaySettings
from detmtl.silver.selection import SelectionSettings, select
from detmtl.silver.store import Record, Store
from detmtl.structures.checkpoint import FORMAT
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Ignore
from detmtl.structures.sample import Batch, ImageInfo

SPACE = LabelSpace.of(["a", "b"])
AUGMENT = Augment([{"HorizontalFlip": {"p": 1.0}}], 48, 64)
OPTIM = OptimSettings(lr=0.02, warmup=2)
STEPS = 10
PLAIN = SelectionSettings(threshold=0.5, ignore_from=0.3)
INFO = ImageInfo(0, "0.png", 60, 80, "pool")


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Source]:
    folder = tmp_path_factory.mktemp("pictures")
    return [
        make_source(folder, "gold", 5),
        replace(make_source(folder, "pool", 7), annotations=None, grade=Grade.SILVER),
        make_source(folder, "held", 6),
    ]


def prepared(chosen, optim, seed=0):
    """Returns a state whose models find a box within every picture."""
    state = untaught(chosen, optim, seed)
    for model in (state.model, state.ema.module):
        linear = model.tasks["boxes"].linear
        with torch.no_grad():
            linear.weight.mul_(0.1)
            linear.bias.copy_(torch.tensor([0.2, 0.2, 0.7, 0.6]))
    return state


def settings(**changes) -> TrainSettings:
    given = {"steps": STEPS, "precision": "fp32", "ema": 0.8, "log_every": 5, "save_every": 4}
    return TrainSettings(**{**given, **changes})


def boxes(policy=PLAIN):
    return OnlineBoxes("boxes", SPACE, 0.05, policy, OverlaySettings())


def stream(state, sources, chosen, audits=None, policy=PLAIN, rank=0, world=1):
    """Returns the batches that are left, and their mixture."""
    mix = MixSettings(mode="online", burn_in=0.3, shares={"gold": 1, "pool": 1})
    mixture = Mixture(sources[:2], mix, 4, seed=2, steps=chosen.steps * chosen.accumulate)
    first = state.step * chosen.accumulate
    waiting = drafts(
        mixture, AUGMENT, ["pool"], first, mixture.steps, rank=rank, world=world, seed=2
    )
    kinds = [boxes(policy)]
    choices = Choices(kinds, mixture.first_step_of_last_phase(), audits)
    labelled = online_batches(
        waiting, first, state, mixture.sources, AUGMENT, choices, kinds, "fp32"
    )
    return labelled, mixture, choices


def audits_of(state, sources, folder, accumulate=1):
    start = round(0.3 * STEPS * accumulate)
    gold = audit_pictures(sources[2], 5, [boxes()])
    return Audits(
        state, gold, [boxes()], folder / "online", start, 3 * accumulate,
        InputSettings(short=48, long=64), "fp32",
    )  # fmt: skip


def test_weak_views_are_labelled_and_strong_ones_learned(sources):
    state = prepared(settings(), OPTIM)
    batches, mixture, _ = stream(state, sources, settings())
    for number, batch in enumerate(batches):
        waiting = [i for i, p in enumerate(mixture.picks(number)) if p.source == 1]
        assert bool(waiting) == (number >= 3), "gold alone until the burn-in is over"
        for i in waiting:
            source = sources[1]
            weak = AUGMENT.fitted(source.read(mixture.picks(number)[i].index))
            height, width = batch.sizes[i].tolist()
            # the strong view is flipped, and the boxes with it
            assert torch.equal(batch.images[i, :, :height, :width], weak.flip(2))
            assert batch.grades[i] == Grade.SILVER
        if waiting:
            labels = batch.labels["boxes"]
            weak = Batch.of([s for d in one_draft(sources, number) for s in d])
            found = predict(state.averaged, weak, state.device, "fp32")["boxes"]
            for i, truth in zip(waiting, found, strict=True):
                width = int(batch.sizes[i, 1])
                x1, y1, x2, y2 = truth.boxes[0].clamp(min=0).tolist()
                expected = [width - min(x2, width), y1, width - x1]
                assert labels.boxes[i, 0, :3].tolist() == pytest.approx(expected, abs=1e-3)
                assert labels.grade[i, 0] == Grade.SILVER and y2 > 0


def one_draft(sources, number):
    mix = MixSettings(mode="online", burn_in=0.3, shares={"gold": 1, "pool": 1})
    mixture = Mixture(sources[:2], mix, 4, seed=2, steps=STEPS)
    (draft,) = drafts(mixture, AUGMENT, ["pool"], number, number + 1, seed=2)
    yield [draft.samples[i] for i in draft.waiting]


def test_the_strong_view_is_what_a_worker_would_make(sources):
    """From the picture at the network's size the augmentation makes what it makes of the file."""
    strong = Augment(
        [{"Affine": {"scale": [0.7, 1.3], "p": 1.0}}, {"GaussNoise": {"p": 1.0}}], 48, 64
    )
    for i in range(len(sources[0])):
        pixels = sources[0].read(i)
        weak = strong.fitted(pixels).permute(1, 2, 0).contiguous().numpy()
        assert torch.equal(strong(weak, {}, 5)[0], strong(pixels, {}, 5)[0])


def test_teacher_is_the_average_of_the_moment(sources):
    state = prepared(settings(), OPTIM)
    batches, _, _ = stream(state, sources, settings())
    for _ in range(4):
        before = next(batches)
    again, _, _ = stream(state, sources, settings())
    with torch.no_grad():
        for p in state.ema.module.parameters():
            p.add_(0.05)
    for _ in range(4):
        after = next(again)
    assert torch.equal(before.images, after.images)
    assert not torch.equal(before.labels["boxes"].boxes, after.labels["boxes"].boxes)
    # gold's labels are people's
    assert torch.equal(before.labels["boxes"].boxes[:2], after.labels["boxes"].boxes[:2])


def run(folder, sources, chosen, state, killed_at=None, audited=True, policy=PLAIN):
    class Killed(Exception):
        pass

    audits = audits_of(state, sources, folder, chosen.accumulate) if audited else None
    batches, _, choices = stream(state, sources, chosen, audits, policy)

    def until_killed():
        for i, batch in enumerate(batches):
            if i == killed_at:
                raise Killed
            yield batch

    def score(model):
        return collect(model, [batch_of(1000)], state.device, "fp32")

    try:
        with recorder(folder, chosen.steps, state.step) as told:
            train(
                state, until_killed(), chosen, OPTIM, score, told, folder, ["gold", "pool"],
                more_scalars=choices.told,
            )  # fmt: skip
    except Killed:
        pass
    return {k: v.clone() for k, v in [*state.model.state_dict().items()]}


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_equals_uninterrupted_with_audits(tmp_path, sources, accumulate):
    chosen = settings(accumulate=accumulate)
    whole = run(tmp_path / "whole", sources, chosen, prepared(chosen, OPTIM))
    # after the checkpoint of step 8; batches 3, 6, 9 (of updates) are audited anew
    run(tmp_path / "part", sources, chosen, prepared(chosen, OPTIM), killed_at=9 * accumulate)
    resumed = prepared(chosen, OPTIM, seed=99)
    resumed.load(tmp_path / "part" / "last.pt")
    assert resumed.step == 8
    part = run(tmp_path / "part", sources, chosen, resumed)
    assert [k for k in whole if not torch.equal(whole[k], part[k])] == []
    made = [sorted(p.name for p in (tmp_path / n / "online").iterdir()) for n in ("whole", "part")]
    assert made[0] == made[1] and len(made[0]) == 3


def test_an_audit_that_is_gone_is_told(tmp_path, sources):
    chosen = settings()
    run(tmp_path, sources, chosen, prepared(chosen, OPTIM), killed_at=7)
    state = prepared(chosen, OPTIM)
    state.load(tmp_path / "last.pt")
    assert state.step == 4
    for path in (tmp_path / "online").iterdir():
        path.rename(tmp_path / path.name)
    with pytest.raises(InputError, match="audit of the online teacher is missing"):
        run(tmp_path, sources, chosen, state)


CALIBRATED = SelectionSettings.model_validate({"soft_targets": True, "calibration": "platt"})
"""Needs ten judged boxes; the stand-in's audits have five."""


def test_weak_audits_end_no_training_and_resume_the_same(tmp_path, sources):
    chosen = settings()

    def weak(folder, state, killed_at=None):
        with pytest.warns(UserWarning, match="too little evidence.* judges 5 of") as told:
            found = run(tmp_path / folder, sources, chosen, state, killed_at, policy=CALIBRATED)
        assert len(told) == 1, "told once"
        return found

    whole = weak("whole", prepared(chosen, OPTIM))
    weak("part", prepared(chosen, OPTIM), killed_at=9)
    resumed = prepared(chosen, OPTIM, seed=99)
    resumed.load(tmp_path / "part" / "last.pt")
    assert resumed.step == 8
    part = weak("part", resumed)
    assert [k for k in whole if not torch.equal(whole[k], part[k])] == []
    kept = []
    for folder in ("whole", "part"):
        rows = map(json.loads, (tmp_path / folder / "metrics.jsonl").read_text().splitlines())
        kept.append(
            [
                (r["step"], r.get("online/weak_audits_of_boxes"))
                for r in rows
                if "pictures_per_second" in r
            ]
        )
    # audits before batches 3, 6 and 9, which is that of step 10
    assert kept[0] == kept[1] == [(4, 1), (5, 1), (8, 2), (10, 3)]


class Judged:
    """Audits that are there already, by the number of their batch."""

    every = 3

    def __init__(self, audits):
        self.audits, self.made, self.asked = audits, [], []

    def due(self, number):
        return number - number % 3

    def make(self, due):
        self.made.append(due)

    def __call__(self, kind, due):
        self.asked.append(due)
        return self.audits[due]


def test_the_last_good_choice_stays_whoever_asks_and_when(tmp_path, sources):
    good, weak = (judged_boxes(tmp_path / str(n), sources[2], n) for n in (4, 1))
    audits = {3: weak, 6: good, 9: weak, 12: weak, 15: good}
    with pytest.raises(TooLittleEvidence, match="and 10 are needed"):
        BoxChoice.of(CALIBRATED, SPACE, weak, 0.05)

    def told(numbers):
        choices = Choices([boxes(CALIBRATED)], 3, Judged(audits))
        found = []
        for number in numbers:
            choice = choices(number).get("boxes")
            coverage = None if choice is None else list(choice.policy.coverage.values())
            found.append((coverage, choices.told()["online/weak_audits_of_boxes"]))
        return found

    of_good = list(BoxChoice.of(CALIBRATED, SPACE, good, 0.05).policy.coverage.values())
    expected = [(None, 0), (None, 1), (of_good, 0), (of_good, 1), (of_good, 2), (of_good, 0)]
    numbers = [0, 3, 6, 9, 12, 15]
    with pytest.warns(UserWarning, match="too little evidence"):
        assert told(numbers) == expected
    for at, number in enumerate(numbers[1:-1], 1):  # a run goes on within each audit's time
        if expected[at][1] == 0:
            assert told([number + 1]) == [expected[at]]
            continue
        with pytest.warns(UserWarning, match="too little evidence"):
            assert told([number + 1, *numbers[at + 1 :]]) == expected[at:]


def test_each_audit_is_looked_at_once(tmp_path, sources):
    weak = judged_boxes(tmp_path, sources[2], 1)
    audits = Judged(dict.fromkeys((0, 3, 6), weak))
    choices = Choices([boxes(CALIBRATED)], 0, audits)
    with pytest.warns(UserWarning, match="too little evidence"):
        assert not any(choices(number) for number in range(8))
    assert audits.made == audits.asked == [0, 3, 6]


def judged_boxes(folder, gold, copies):
    """Returns the audit of a teacher that finds the first box of each picture, so many times."""
    card = TeacherCard(name="t", weights_sha256="0", classes=SPACE.names, preprocessing="")
    store = Store.create(folder, card, 0.05)
    with store.writer() as writer:
        for i, content_hash in enumerate(gold.hashes()):
            first = gold.boxes(i)[:1]
            boxes, classes = (x.repeat_interleave(copies, 0) for x in (first.boxes, first.classes))
            boxes[:, :2] += torch.arange(len(boxes))[:, None] / 10
            scores = np.linspace(0.9, 0.6, len(boxes), dtype=np.float32)
            size = (int(x) for x in gold.sizes[i])
            writer.add(Record(content_hash, *size, boxes.numpy(), classes.numpy(), scores))
    return audit(Store.open(folder), gold, SPACE, nms=None)


def test_audits_that_cannot_be_of_use_are_refused_before_the_training(sources, monkeypatch):
    held = sources[2]
    assert len(audit_pictures(held, 5, [boxes()]).pictures) == 5
    searched = replace(held, coverage=np.array([[1, 1], [0, 0]] * 3, np.float32))
    found = audit_pictures(searched, 9, [boxes()])
    assert found.pictures.ids.tolist() == held.ids[::2].tolist()
    assert found.of["boxes"].ids.tolist() == held.ids[::2].tolist()
    with pytest.raises(
        InputError, match="source 'pool' has no boxes by people to audit the teacher by"
    ):
        audit_pictures(sources[1], 5, [boxes()])
    with pytest.raises(InputError, match="source 'held' has no boxes by people"):
        audit_pictures(replace(held, grade=Grade.SILVER), 5, [boxes()])
    with pytest.raises(InputError, match=r"1 of 6 pictures of source 'held' .* none of them"):
        audit_pictures(held, 1, [boxes()])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    audit_pictures(held, 5, [boxes()])
    with pytest.raises(InputError, match=r"pip install 'detmtl\[calibration\]'"):
        audit_pictures(held, 5, [boxes(SelectionSettings(soft_targets=True))])


def partly_labelled(pool, gold_class):
    """Returns the pool with boxes of one class, for which alone people have looked."""
    full = make_annotations(len(pool))
    full.classes[:] = gold_class
    coverage = np.zeros((1, 2), np.float32)
    coverage[0, gold_class] = 1
    return replace(pool, annotations=full, coverage=coverage)


def make_annotations(count):
    """Returns one box in the lower right corner of each of `count` pictures."""
    box = np.array([[50, 40, 78, 58]], np.float32).repeat(count, 0)
    return Annotations.of(count, np.arange(count), box, np.zeros(count, np.int64))


@pytest.mark.parametrize("gold_class", [0, 1])
def test_gold_of_a_pool_stays_and_the_teacher_fills_in_the_rest(sources, gold_class):
    """The stand-in finds one box of class 0 in each picture."""
    partly = [sources[0], partly_labelled(sources[1], gold_class)]
    state = prepared(settings(), OPTIM)
    batches, mixture, _ = stream(state, partly, settings())
    ready = loaded(mixture, AUGMENT, 0, STEPS, seed=2)
    seen = 0
    for number, (batch, worker) in enumerate(zip(batches, ready, strict=True)):
        assert torch.equal(batch.images, worker.images), "augmented as a worker would"
        labels, own = batch.labels["boxes"], worker.labels["boxes"]
        for i, pick in enumerate(mixture.picks(number)):
            if pick.source == 0:
                continue
            seen += 1
            torch.testing.assert_close(labels.boxes[i, 0], own.boxes[i, 0], atol=1e-3, rtol=0)
            gold = (gold_class, Grade.GOLD)
            teacher = [] if gold_class == 0 or number < 3 else [(0, Grade.SILVER)]
            assert kinds_of(batch, i) == [gold, *teacher]
            other = 1.0 if number >= 3 else 0.0
            expected = [1.0, other] if gold_class == 0 else [other, 1.0]
            assert labels.coverage[i].tolist() == expected
    assert seen > 2 * STEPS


def kinds_of(batch, i):
    """Returns class and grade of the boxes of a batch's picture."""
    (labels,) = batch.labels["boxes"].unpadded(batch.sizes.tolist())[i : i + 1]
    return list(zip(labels.classes.tolist(), labels.grade.tolist(), strict=True))


ONLINE = {
    "data": {
        "root": "x",
        "classes": ["a", "b"],
        "sources": {
            "gold": {"kind": "coco", "images": "x", "annotations": "x"},
            "pool": {"kind": "coco", "images": "x", "annotations": "x"},
        },
        "val": {"kind": "coco", "images": "x", "annotations": "x"},
        "batch_size": 2,
    },
    "model": {"backbone": {"name": "resnet18"}},
    "tasks": {"boxes": {"kind": "detection"}},
    "mix": {"mode": "online"},
    "online": {"pools": ["pool"]},
    "train": {"steps": 3},
}


def test_a_pool_comes_with_what_people_said_of_it(sources):
    gold, pool = sources[0], partly_labelled(sources[1], 1)
    of = settings_from(ONLINE)
    found = to_be_labelled(of, {"gold": gold, "pool": replace(pool, grade=Grade.GOLD)})
    assert found["gold"] is gold and found["pool"].grade == Grade.SILVER
    assert found["pool"].grades() == {Grade.GOLD, Grade.SILVER}
    assert found["pool"].annotations is pool.annotations and found["pool"].tags is None
    whole = replace(pool, grade=Grade.GOLD, coverage=np.ones((1, 2), np.float32))
    with pytest.raises(InputError, match=r"online\.pools: people have given all boxes of 'pool'"):
        to_be_labelled(of, {"gold": gold, "pool": whole})
    tags = {"classes": ["a", "b"], "from_boxes": True}
    of = settings_from({**ONLINE, "data": {**ONLINE["data"], "tags": tags}})
    of_boxes = to_be_labelled(of, {"gold": gold, "pool": sources[1]})["pool"].tags
    assert isinstance(of_boxes, BoxTags), "silver boxes tell tags, as those of a store do"


def test_tags_follow_from_the_boxes_of_both(sources):
    classes = TagClasses(classes=["a", "b"], from_boxes=True)
    pool = replace(partly_labelled(sources[1], 1), tags=BoxTags.of(["a", "b"], classes))
    batches, mixture, _ = stream(prepared(settings(), OPTIM), [sources[0], pool], settings())
    for number, batch in enumerate(batches):
        tags = batch.labels["tags"]
        for i, pick in enumerate(mixture.picks(number)):
            if pick.source == 1:
                # in the burn-in nobody has looked for class a
                assert tags.targets[i].tolist() == [float(number >= 3), 1.0]
                assert tags.weights[i].tolist() == [float(number >= 3), 1.0]


def found(*rows):
    """Returns a teacher's boxes: (left, class, score), 10 pixels wide, in no order."""
    left, classes, scores = (torch.tensor(column) for column in zip(*rows, strict=True))
    x = left.float()
    boxes = torch.stack([x, torch.zeros(len(x)), x + 10, torch.full((len(x),), 10.0)], 1)
    return BoxLabels.of(boxes, classes, 2, scores=scores.float(), grade=Grade.SILVER)


BOXES = found((0, 0, 0.35), (20, 1, 0.9), (40, 0, 0.6), (41, 0, 0.55), (60, 1, 0.1), (80, 0, 0.5))


def test_choice_means_what_it_means_for_a_store(tmp_path, sources):
    """The same boxes, through a store and a selection, and at once."""
    policies = [
        PLAIN,
        SelectionSettings.model_validate(
            {
                "soft_targets": True,
                "class_weight": 0.5,
                "box_weight": "probability",
                "coverage": 0.7,
                "calibration": "none",
            }
        ),
        SelectionSettings(per_class={"b": 0.95}, ignore_from=None, nms=None),
        SelectionSettings(max_boxes=2),
    ]
    gold = sources[0].subset([0])
    card = TeacherCard(name="t", weights_sha256="0", classes=SPACE.names, preprocessing="")
    store = Store.create(tmp_path, card, 0.05)
    order = np.argsort(-BOXES.scores.numpy(), kind="stable")
    with store.writer() as writer:
        writer.add(
            Record(
                gold.hashes()[0], *(int(n) for n in gold.sizes[0]), BOXES.boxes.numpy()[order],
                BOXES.classes.numpy()[order], BOXES.scores.numpy()[order],
            )
        )  # fmt: skip
    store = Store.open(tmp_path)
    for policy in policies:
        at_once = BoxChoice.of(policy, SPACE, None, 0.05)(BOXES, INFO)
        assert at_once is not None
        file = json.loads(select(store, [gold], SPACE, policy).read_text())
        kept = [a["bbox"][0] for a in file["annotations"]]
        assert at_once.boxes[:, 0].tolist() == kept
        assert [bool(a["iscrowd"]) for a in file["annotations"]] == (at_once.ignore > 0).tolist()
        written = [a.get("score", 1.0) for a in file["annotations"]]
        assert at_once.scores.tolist() == pytest.approx(written, abs=1e-5)
        wanted = policy.coverage or 1.0
        assert at_once.coverage.tolist() == pytest.approx([wanted] * 2)
        assert (at_once.weights[:, 0] == policy.class_weight).all()
        soft = policy.box_weight == "probability"
        assert at_once.weights[:, 1].tolist() == (
            at_once.scores.tolist() if soft else [1.0] * len(kept)
        )


def test_choice_follows_the_audit(tmp_path, sources):
    gold = sources[2]
    card = TeacherCard(name="t", weights_sha256="0", classes=SPACE.names, preprocessing="")
    store = Store.create(tmp_path, card, 0.05)
    with store.writer() as writer:
        for i, content_hash in enumerate(gold.hashes()):
            labels = gold.labels(i)["boxes"]
            half = slice(0, max(1, len(labels) // 2))
            n = len(labels.boxes[half])
            writer.add(
                Record(content_hash, *(int(x) for x in gold.sizes[i]), labels.boxes[half].numpy(),
                       labels.classes[half].numpy(), np.full(n, 0.8, np.float32))
            )  # fmt: skip
    judged = audit(Store.open(tmp_path), gold, SPACE)
    policy = SelectionSettings.model_validate({"threshold": {"precision": 0.9}})
    choice = BoxChoice.of(policy, SPACE, judged, 0.05)
    coverage = list(choice.policy.coverage.values())
    assert coverage == pytest.approx(list(judged.recall_at(0.3).values()), abs=1e-6)
    limits = Evidence.of(judged).thresholds(0.9)
    assert choice.policy.limits.tolist() == pytest.approx(limits.tolist())
    assert 0 < min(coverage) < 1
    with pytest.raises(InputError) as caught:
        BoxChoice.of(
            SelectionSettings.model_validate(
                {"threshold": {"precision": 0.9}, "per_class": {"c": 0.6}, "ignore_from": 0.01}
            ),
            SPACE, None, 0.05,
        )  # fmt: skip
    text = str(caught.value)
    assert "'c' is no class" in text and "only an audit against gold" in text
    assert "0.01 is below 0.05, the lowest score that the online teacher keeps" in text


def judged_of(folder, gold, seen):
    """Returns the audit of a model that finds gold's boxes of the classes `seen`, and no other."""
    card = TeacherCard(name="t", weights_sha256="0", classes=SPACE.names, preprocessing="")
    store = Store.create(folder, card, 0.05)
    with store.writer() as writer:
        for i, content_hash in enumerate(gold.hashes()):
            labels = gold.labels(i)["boxes"]
            own = torch.isin(labels.classes, torch.tensor(seen))
            writer.add(
                Record(content_hash, *(int(x) for x in gold.sizes[i]), labels.boxes[own].numpy(),
                       labels.classes[own].numpy(), np.full(int(own.sum()), 0.8, np.float32))
            )  # fmt: skip
    return audit(Store.open(folder), gold, SPACE)


def test_a_class_that_the_model_has_not_learned_is_not_background(tmp_path):
    """It abstains, as a checkpoint with such a class does, until gold confirms that it finds some."""
    gold = make_source(tmp_path, "many", 12)
    taught = OnlineBoxes("boxes", SPACE, 0.05, PLAIN, OverlaySettings(), known={"a"})
    assert taught.known.tolist() == [True, False] and boxes().known.all()
    a_alone = replace(gold, coverage=np.array([[1, 0]], np.float32))
    for judged in (
        None,
        judged_of(tmp_path / "no_gold_of_b", a_alone, [0]),
        judged_of(tmp_path / "none_found", gold, [0]),
    ):
        choice = taught.choice(judged)
        labels = choice(BOXES, INFO)
        assert (labels.classes == 0).all() and len(labels) == 3
        assert labels.coverage[0] > 0.9 and labels.coverage[1] == 0
        assert choice.policy.coverage["b"] == 0
    assert boxes().choice(None)(BOXES, INFO).coverage.tolist() == [1, 1]
    found_too = taught.choice(judged_of(tmp_path / "found", gold, [0, 1]))(BOXES, INFO)
    assert found_too.coverage.min() > 0.9 and 1 in found_too.classes
    given = OnlineBoxes(
        "boxes", SPACE, 0.05, PLAIN.model_copy(update={"coverage": 0.6}), OverlaySettings(), {"a"}
    )
    assert given.choice(None)(BOXES, INFO).coverage.tolist() == pytest.approx([0.6, 0])


def judged_by_hand(found, gold):
    """Returns the audit of a model's boxes: (picture, class, score, whether gold confirms it), and of gold
    boxes (picture, class) in 100 pictures."""
    boxes, own = np.zeros(len(found), JUDGED), np.zeros(len(gold), GOLD)
    rows = sorted(found, key=lambda row: (row[1], -row[2]))
    boxes["picture"], boxes["class"], boxes["score"], right = zip(*rows, strict=True)
    boxes["fault"] = np.where(right, Fault.NONE, Fault.NOTHING)
    own["picture"], own["class"] = zip(*gold, strict=True)
    own["score"] = -1
    scores = {row[:2]: row[2] for row in rows if row[3]}
    own["score"] = [scores.get(place, -1) for place in gold]
    return Audit(
        classes=SPACE.names,
        known=np.ones(2, bool),
        pictures=100,
        searched=np.full(2, 100),
        missing=0,
        boxes=boxes,
        gold=own,
        readings={},
        wrong_size=(),
        gold_hash="",
        store_digest="",
    )


LEARNED = [(i, 0, 0.9 - i / 50, i % 10 != 9) for i in range(30)]
NOT_LEARNED = [(i % 60, 1, 0.95 - i / 200, False) for i in range(120)]


@pytest.mark.parametrize("wanted", [{"precision": 0.8}, {"probability": 0.7}])
def test_boxes_of_a_class_that_the_model_has_not_learned_are_no_evidence_for_the_others(wanted):
    if "probability" in wanted:
        pytest.importorskip("sklearn")
    policy = SelectionSettings.model_validate({"threshold": wanted, "ignore_from": None})
    gold = [(i, 0) for i in range(30)]
    known = np.array([True, False])
    clean, spoilt = (
        BoxChoice.of(policy, SPACE, judged_by_hand(found, gold), 0.05, known)
        for found in (LEARNED, LEARNED + NOT_LEARNED)
    )
    assert spoilt.known.tolist() == [True, False]
    assert spoilt.policy.limits[0] == clean.policy.limits[0] < 0.5
    assert spoilt.policy.coverage == clean.policy.coverage


def test_luck_in_a_picture_or_two_is_no_learned_class():
    gold = [(i, 0) for i in range(30)] + [(i, 1) for i in range(4)]

    def choice(hits):
        found = [*LEARNED, *((i, 1, 0.6, True) for i in hits)]
        return BoxChoice.of(
            PLAIN, SPACE, judged_by_hand(found, gold), 0.05, np.array([True, False])
        )

    for hits in ([0], [0, 1], [0, 0, 1, 1]):
        assert choice(hits).known.tolist() == [True, False]
        assert choice(hits).policy.coverage["b"] == 0
    assert choice([0, 1, 2]).known.all() and choice([0, 1, 2]).policy.coverage["b"] > 0.7


def settings_of(**changed):
    return settings_from({**ONLINE, **changed})


def test_what_the_teacher_knows_is_what_it_has_learned_before_it_labels(tmp_path, sources):
    """Not what comes later: neither a model's labels of another pool nor people's of some pictures."""
    gold, pool, other = sources
    people = replace(gold, coverage=np.array([[1, 0]], np.float32))
    silver = replace(other, name="offline", grade=Grade.SILVER)
    ones = np.ones_like(other.annotations.grade)
    silver = replace(silver, annotations=replace(other.annotations, grade=ones))
    mix = MixSettings(mode="online", shares={"gold": 1, "pool": 1, "offline": 1})
    mixture = Mixture([people, pool, silver], mix, 4, steps=10)
    assert mixture.people == [people]
    folder = RunFolder(tmp_path)
    known = known_classes(settings_of(), mixture, folder, {})
    assert known == {"boxes": {"a"}}
    assert online_kinds(settings_of(), known)[0].known.tolist() == [True, False]
    brought = {"boxes": ["b"]}
    assert known_classes(settings_of(), mixture, folder, brought) == {"boxes": {"a", "b"}}
    still = settings_of(model={"backbone": {"name": "resnet18"}, "frozen": ["boxes"]})
    assert known_classes(still, mixture, folder, brought) == {"boxes": {"b"}}
    assert known_classes(still, mixture, folder, {}) == {"boxes": set()}


def test_what_a_teacher_of_kind_gold_has_learned_is_known_too(tmp_path, sources):
    people = replace(sources[0], coverage=np.array([[1, 0]], np.float32))
    mix = MixSettings(mode="online", shares={"gold": 1, "pool": 1})
    mixture, folder = Mixture([people, sources[1]], mix, 4, steps=10), RunFolder(tmp_path)
    more = {**ONLINE["data"]["sources"], "beforehand": {"kind": "folder", "images": "c"}}
    asked = {
        "data": {**ONLINE["data"], "sources": more},
        "silver": {"teacher": {"kind": "gold", "burn_in": True}, "pools": ["pool", "beforehand"]},
        "online": {"pools": ["pool"]},
    }
    folder.teacher.path.mkdir()
    content = {"format": FORMAT, "model": {}, "searched": {"boxes": ["b"]}}
    torch.save(content, folder.teacher.best)
    assert known_classes(settings_of(**asked), mixture, folder, {}) == {"boxes": {"a", "b"}}
    torch.save(content | {"searched": {}}, folder.teacher.best)
    assert known_classes(settings_of(**asked), mixture, folder, {}) == {}, "it does not say"
    asked["silver"]["teacher"]["burn_in"] = False
    assert known_classes(settings_of(**asked), mixture, folder, {}) == {"boxes": {"a"}}


def test_calibration_makes_targets_weights_and_thresholds(tmp_path, sources):
    """A teacher half of whose boxes are right, whatever their score."""
    gold = sources[2]
    card = TeacherCard(name="t", weights_sha256="0", classes=SPACE.names, preprocessing="")
    store = Store.create(tmp_path, card, 0.05)
    with store.writer() as writer:
        for i, content_hash in enumerate(gold.hashes()):
            labels = gold.labels(i)["boxes"]
            boxes = torch.cat([labels.boxes, labels.boxes + 200]).numpy()
            classes = labels.classes.repeat(2).numpy()
            scores = np.full(len(classes), 0.9, np.float32)
            height, width = (int(x) for x in gold.sizes[i])
            writer.add(Record(content_hash, height, width, boxes, classes, scores))
    judged = audit(Store.open(tmp_path), gold, SPACE)
    wanted = {"soft_targets": True, "class_weight": "probability", "calibration": "platt"}
    choice = BoxChoice.of(SelectionSettings.model_validate(wanted), SPACE, judged, 0.05)
    labels = choice(found((0, 0, 0.9)), INFO)
    assert labels.scores.item() == pytest.approx(0.5, abs=0.1)
    assert labels.weights[0].tolist() == [labels.scores.item(), 1.0]
    sure = {"threshold": {"probability": 0.8}, "ignore_from": None, "calibration": "platt"}
    strict = BoxChoice.of(SelectionSettings.model_validate(sure), SPACE, judged, 0.05)
    assert len(strict(found((0, 0, 0.9)), INFO)) == 0


def test_a_picture_with_too_many_labels_is_not_learned(tmp_path, sources):
    gold = sources[2]
    card = TeacherCard(name="t", weights_sha256="0", classes=SPACE.names, preprocessing="")
    store = Store.create(tmp_path, card, 0.05)
    with store.writer() as writer:
        for i, content_hash in enumerate(gold.hashes()):
            nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32)
            writer.add(Record(content_hash, *(int(x) for x in gold.sizes[i]), *nothing))
    judged = audit(Store.open(tmp_path), gold, SPACE)
    choice = BoxChoice.of(SelectionSettings(max_density=2.0), SPACE, judged, 0.05)
    mean = judged.gold_boxes.sum() / judged.pictures
    some, many = (found(*((20 * i, 0, 0.9) for i in range(n))) for n in (2, int(2 * mean) + 2))
    assert len(choice(some, INFO)) == 2 and choice(many, INFO) is None


def test_ignore_band_and_nothing_found():
    choice = BoxChoice.of(PLAIN, SPACE, None, 0.05)
    labels = choice(BOXES, INFO)
    assert labels.scores.tolist() == pytest.approx([1, 1, 1, 0.35])
    assert labels.ignore.tolist() == [Ignore.NO] * 3 + [Ignore.CLASS]
    empty = choice(BoxLabels.empty(2), INFO)
    assert len(empty) == 0 and empty.coverage.tolist() == [1, 1]  # looked, nothing there


def _of_rank(rank, folder, sources):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    chosen = settings()
    state = prepared(chosen, OPTIM)
    audits = audits_of(state, sources, folder)
    batches, _, _ = stream(state, sources, chosen, audits, rank=rank, world=2)
    seen = list(batches)
    told = [b.labels["boxes"].boxes.tolist() for b in seen]
    torch.save([told, audits(boxes(), 9).digest()], folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_label_what_one_labels(tmp_path, sources):
    multiprocessing.start_processes(_of_rank, (tmp_path, sources), nprocs=2, start_method="fork")
    state = prepared(settings(), OPTIM)
    audits = audits_of(state, sources, tmp_path / "alone")
    batches, _, _ = stream(state, sources, settings(), audits)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert ranks[0][1] == ranks[1][1]
    for number, batch in enumerate(batches):
        for rank in (0, 1):
            mine = torch.tensor(ranks[rank][0][number])
            whole = batch.labels["boxes"].boxes[rank::2][:, : mine.shape[1]]
            torch.testing.assert_close(mine, whole, atol=1e-3, rtol=0)
    assert len(NAMES) == len(SPACE)
