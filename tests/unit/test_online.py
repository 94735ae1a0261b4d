"""Mode online: what the averaged model's boxes become, and that a run goes on to the bit."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch import multiprocessing

sys.path.insert(0, os.path.dirname(__file__))
from engine_stand_ins import NAMES, batch_of, recorder
from engine_stand_ins import prepared as untaught
from test_loader import make_source

from detmtl.data.augment import Augment
from detmtl.data.fit import InputSettings
from detmtl.data.loader import drafts
from detmtl.data.mixture import MixSettings, Mixture
from detmtl.data.source import Source
from detmtl.engine.evaluator import collect, predict
from detmtl.engine.online import online_batches, unlabelled
from detmtl.engine.online_audit import Audits, Choices
from detmtl.engine.online_choice import Choice
from detmtl.engine.optim import OptimSettings
from detmtl.engine.trainer import TrainSettings, train
from detmtl.silver.audit import audit
from detmtl.silver.card import TeacherCard
from detmtl.silver.selection import SelectionSettings, select
from detmtl.silver.store import Record, Store
from detmtl.structures.classes import LabelSpace
from detmtl.structures.errors import InputError
from detmtl.structures.labels import BoxLabels, Grade, Ignore
from detmtl.structures.sample import Batch

SPACE = LabelSpace.of(["a", "b"])
AUGMENT = Augment([{"HorizontalFlip": {"p": 1.0}}], 48, 64)
OPTIM = OptimSettings(lr=0.02, warmup=2)
STEPS = 10
PLAIN = SelectionSettings(threshold=0.5, ignore_from=0.3)


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> list[Source]:
    folder = tmp_path_factory.mktemp("pictures")
    return [
        make_source(folder, "gold", 5),
        unlabelled(make_source(folder, "pool", 7)),
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


def stream(state, sources, chosen, audits=None, policy=PLAIN, rank=0, world=1):
    """Returns the batches that are left, and their mixture."""
    mix = MixSettings(mode="online", burn_in=0.3, shares={"gold": 1, "pool": 1})
    mixture = Mixture(sources[:2], mix, 4, seed=2, steps=chosen.steps * chosen.accumulate)
    first = state.step * chosen.accumulate
    waiting = drafts(
        mixture, AUGMENT, ["pool"], first, mixture.steps, rank=rank, world=world, seed=2
    )
    choices = Choices(policy, SPACE, 0.05, mixture.first_step_of_last_phase(), audits)
    return online_batches(waiting, first, state, AUGMENT, choices, "fp32"), mixture


def audits_of(state, sources, folder, accumulate=1):
    start = round(0.3 * STEPS * accumulate)
    return Audits(
        state, sources[2], 5, SPACE, folder / "online", start, 3 * accumulate,
        InputSettings(short=48, long=64), "fp32", 0.05, 0.6,
    )  # fmt: skip


def test_weak_views_are_labelled_and_strong_ones_learned(sources):
    state = prepared(settings(), OPTIM)
    batches, mixture = stream(state, sources, settings())
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
    yield [draft.samples[i] for i in draft.seeds]


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
    batches, _ = stream(state, sources, settings())
    for _ in range(4):
        before = next(batches)
    again, _ = stream(state, sources, settings())
    with torch.no_grad():
        for p in state.ema.module.parameters():
            p.add_(0.05)
    for _ in range(4):
        after = next(again)
    assert torch.equal(before.images, after.images)
    assert not torch.equal(before.labels["boxes"].boxes, after.labels["boxes"].boxes)
    # gold's labels are people's
    assert torch.equal(before.labels["boxes"].boxes[:2], after.labels["boxes"].boxes[:2])


def run(folder, sources, chosen, state, killed_at=None, audited=True):
    class Killed(Exception):
        pass

    audits = audits_of(state, sources, folder, chosen.accumulate) if audited else None
    batches, _ = stream(state, sources, chosen, audits)

    def until_killed():
        for i, batch in enumerate(batches):
            if i == killed_at:
                raise Killed
            yield batch

    def score(model):
        return collect(model, [batch_of(1000)], state.device, "fp32")

    try:
        with recorder(folder, chosen.steps, state.step) as told:
            train(state, until_killed(), chosen, OPTIM, score, told, folder, ["gold", "pool"])
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
        at_once = Choice.of(policy, SPACE, None, 0.05)(BOXES)
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
    choice = Choice.of(policy, SPACE, judged, 0.05)
    coverage = list(choice.policy.coverage.values())
    assert coverage == pytest.approx(list(judged.recall_at(0.3).values()), abs=1e-6)
    assert choice.policy.limits.tolist() == pytest.approx(list(judged.threshold_for(0.9).values()))
    assert 0 < min(coverage) < 1
    with pytest.raises(InputError) as caught:
        Choice.of(
            SelectionSettings.model_validate(
                {"threshold": {"precision": 0.9}, "per_class": {"c": 0.6}, "ignore_from": 0.01}
            ),
            SPACE, None, 0.05,
        )  # fmt: skip
    text = str(caught.value)
    assert "'c' is no class" in text and "only an audit against gold" in text
    assert "0.01 is below 0.05, the lowest score that the online teacher keeps" in text
    with pytest.raises(InputError, match=r"online\.select\.ignore_budget"):
        Choice.of(SelectionSettings(ignore_budget=1.0), SPACE, judged, 0.05)


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
    choice = Choice.of(SelectionSettings.model_validate(wanted), SPACE, judged, 0.05)
    labels = choice(found((0, 0, 0.9)))
    assert labels.scores.item() == pytest.approx(0.5, abs=0.1)
    assert labels.weights[0].tolist() == [labels.scores.item(), 1.0]
    sure = {"threshold": {"probability": 0.8}, "ignore_from": None, "calibration": "platt"}
    strict = Choice.of(SelectionSettings.model_validate(sure), SPACE, judged, 0.05)
    assert len(strict(found((0, 0, 0.9)))) == 0


def test_a_picture_with_too_many_labels_is_not_learned(tmp_path, sources):
    gold = sources[2]
    card = TeacherCard(name="t", weights_sha256="0", classes=SPACE.names, preprocessing="")
    store = Store.create(tmp_path, card, 0.05)
    with store.writer() as writer:
        for i, content_hash in enumerate(gold.hashes()):
            nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32)
            writer.add(Record(content_hash, *(int(x) for x in gold.sizes[i]), *nothing))
    judged = audit(Store.open(tmp_path), gold, SPACE)
    choice = Choice.of(SelectionSettings(max_density=2.0), SPACE, judged, 0.05)
    mean = judged.gold_boxes.sum() / judged.pictures
    some, many = (found(*((20 * i, 0, 0.9) for i in range(n))) for n in (2, int(2 * mean) + 2))
    assert len(choice(some)) == 2 and choice(many) is None


def test_ignore_band_and_nothing_found():
    choice = Choice.of(PLAIN, SPACE, None, 0.05)
    labels = choice(BOXES)
    assert labels.scores.tolist() == pytest.approx([1, 1, 1, 0.35])
    assert labels.ignore.tolist() == [Ignore.NO] * 3 + [Ignore.CLASS]
    empty = choice(BoxLabels.empty(2))
    assert len(empty) == 0 and empty.coverage.tolist() == [1, 1]  # looked, nothing there


def _of_rank(rank, folder, sources):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    chosen = settings()
    state = prepared(chosen, OPTIM)
    audits = audits_of(state, sources, folder)
    batches, _ = stream(state, sources, chosen, audits, rank=rank, world=2)
    seen = list(batches)
    told = [b.labels["boxes"].boxes.tolist() for b in seen]
    torch.save([told, audits(9).digest()], folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_label_what_one_labels(tmp_path, sources):
    multiprocessing.start_processes(_of_rank, (tmp_path, sources), nprocs=2, start_method="fork")
    state = prepared(settings(), OPTIM)
    audits = audits_of(state, sources, tmp_path / "alone")
    batches, _ = stream(state, sources, settings(), audits)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert ranks[0][1] == ranks[1][1]
    for number, batch in enumerate(batches):
        for rank in (0, 1):
            mine = torch.tensor(ranks[rank][0][number])
            whole = batch.labels["boxes"].boxes[rank::2][:, : mine.shape[1]]
            torch.testing.assert_close(mine, whole, atol=1e-3, rtol=0)
    assert len(NAMES) == len(SPACE)
