import json
import math
import os
import sys
from dataclasses import replace
from itertools import islice
from types import SimpleNamespace
from weakref import ref

import pytest
import torch
import torch.multiprocessing
from pydantic import TypeAdapter, ValidationError
from torch import nn

sys.path.insert(0, os.path.dirname(__file__))
from engine_stand_ins import CPU, batch_of, batches, prepared, recorder, scored

from detmtl.balancing.balancers import AnyBalancer
from detmtl.balancing.uncertainty import UncertaintySettings
from detmtl.engine import distributed, trainer
from detmtl.engine.evaluator import collect
from detmtl.engine.optim import OptimSettings
from detmtl.engine.recorder import read_metrics
from detmtl.engine.scores import check_best
from detmtl.engine.state import State
from detmtl.engine.trainer import TrainingDiverged, TrainSettings, train
from detmtl.metrics.coco import CocoMetric
from detmtl.structures.checkpoint import read_checkpoint
from detmtl.structures.errors import InputError

OPTIM = OptimSettings(lr=0.02, warmup=2)


def settings(**changes) -> TrainSettings:
    given = {"steps": 12, "precision": "fp32", "ema": 0.9, "log_every": 3, "save_every": 4}
    return TrainSettings(**{**given, **changes})


def score(model: nn.Module):
    torch.rand(3)  # an evaluation may draw what it likes
    return collect(model, [batch_of(1000), batch_of(1001)], CPU, "fp32")


def run(folder, chosen, state=None, source=None, optim=OPTIM):
    state = prepared(chosen, optim) if state is None else state
    source = batches(state.step * chosen.accumulate) if source is None else source
    with recorder(folder, chosen.steps, state.step) as told:
        metrics = train(state, source, chosen, optim, score, told, folder)
    return state, metrics


class Killed(Exception):
    pass


def until_killed(source, number):
    """Yields so many batches, and then raises."""
    yield from islice(source, number)
    raise Killed


def weights(state):
    """Returns everything that training changes, by name."""
    found = {f"model.{k}": v for k, v in state.model.state_dict().items()}
    if state.ema is not None:
        found |= {f"ema.{k}": v for k, v in state.ema.module.state_dict().items()}
    found |= {f"balancer.{k}": v for k, v in state.balancer.state_dict().items()}
    for i, values in state.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{i}.{k}": v for k, v in values.items()}
    return {k: v.clone() for k, v in found.items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert different == []


def test_loss_falls_and_files_are_there(tmp_path):
    _, metrics = run(tmp_path, settings(steps=60, evaluate_every=30, best="boxes/AP50"))
    records = read_metrics(tmp_path / "metrics.jsonl")
    losses = [r["train/boxes/box"] for r in records if "train/boxes/box" in r]
    assert losses[-1] < 0.3 * losses[0]
    assert metrics.keys() == {k[4:] for k in records[-1] if k != "step"}
    names = {
        "train/loss", "train/boxes/size", "train/gradient_norm", "lr/backbone", "lr/rest_no_decay",
        "time/data", "time/forward", "time/backward", "pictures_per_second",
    }  # fmt: skip
    assert names <= records[0].keys()
    assert all(math.isfinite(records[0][n]) for n in names)
    assert read_checkpoint(tmp_path / "best.pt")["step"] in (30, 60)
    assert "optimizer" not in read_checkpoint(tmp_path / "best.pt")
    assert read_checkpoint(tmp_path / "last.pt")["step"] == 60
    assert list((tmp_path / "tensorboard").iterdir())


def test_pictures_are_counted_of_every_rank(tmp_path, monkeypatch):
    """Of 3 pictures one of two ranks has 2."""
    mine = []

    def gather(value):
        if not isinstance(value, int):
            return [value]
        mine.append(value)
        return [value, value // 2]

    monkeypatch.setattr(distributed, "gather", gather)
    run(tmp_path, settings())
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "pictures_per_second" in r]
    for value, record in zip(mine, records, strict=True):
        seconds = sum(v for k, v in record.items() if k.startswith("time/"))
        assert record["pictures_per_second"] * seconds == pytest.approx(value + value // 2)


BALANCERS = ["fixed", "uncertainty", "dwa", "gradnorm", "famo", "pcgrad"]


@pytest.mark.parametrize(
    ("name", "accumulate", "kind"),
    [("adamw", 1, kind) for kind in BALANCERS] + [("sgd", 1, "fixed"), ("adamw", 2, "gradnorm")]
    + [("sgd", 2, "uncertainty")],
)  # fmt: skip
def test_resumed_equals_uninterrupted(tmp_path, name, accumulate, kind):
    balancing = TypeAdapter(AnyBalancer).validate_python({"kind": kind, "scale": "running"})
    optim = OptimSettings(name=name, lr=0.02, warmup=2)
    chosen = settings(accumulate=accumulate, evaluate_every=2, best="boxes/AP")
    whole = prepared(chosen, optim, balancing=balancing)
    run(tmp_path / "whole", chosen, whole, optim=optim)

    state = prepared(chosen, optim, balancing=balancing)
    with pytest.raises(Killed):
        run(tmp_path / "part", chosen, state, until_killed(batches(), 10 * accumulate), optim)
    resumed = prepared(chosen, optim, seed=99, balancing=balancing)
    torch.rand(7)
    resumed.load(tmp_path / "part" / "last.pt")
    assert resumed.step == 8
    run(tmp_path / "part", chosen, resumed, optim=optim)
    assert_same(weights(resumed), weights(whole))
    assert resumed.best == whole.best

    def told(folder):
        records = read_metrics(tmp_path / folder / "metrics.jsonl")
        measured = ("time/", "pictures_per")
        return [{k: v for k, v in r.items() if not k.startswith(measured)} for r in records]

    assert told("part") == told("whole")


def test_what_a_balancer_learns_is_not_clipped_with_the_network(tmp_path):
    """A huge loss pulls hard at its variance; the network's gradient must not be cut down for that."""
    optim = OptimSettings(name="sgd", lr=1.0, warmup=0, clip=1e-3, momentum=0, schedule="constant")
    chosen = settings(steps=1, ema=None)
    state = prepared(chosen, optim, balancing=UncertaintySettings(kind="uncertainty", scale="none"))
    plain = prepared(chosen, optim)
    for name, one in (("a", state), ("b", plain)):
        torch.manual_seed(0)  # of the dropout
        run(tmp_path / name, chosen, one, optim=optim)
    # its variance starts at 1: one step is that of the plain loss, clipped to the same norm
    for a, b in zip(state.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    assert float(state.balancer.log_variances.detach().abs()) > 5e-3  # more than the limit


def test_nothing_left_to_do(tmp_path):
    state, _ = run(tmp_path, settings())
    before = weights(state)
    _, metrics = run(tmp_path, settings(), state, iter(()))
    assert metrics == {}
    assert_same(weights(state), before)


def test_accumulating_two_halves_equals_one_batch(tmp_path):
    def no_norm(chosen):
        state = prepared(chosen, optim)
        without_norm(state)
        return state

    # without clipping, and a method that feels the gradient's scale
    optim = OptimSettings(name="sgd", lr=0.05, warmup=0, clip=None)
    one = no_norm(settings(ema=None))
    run(tmp_path / "one", settings(ema=None), one, batches(size=4), optim)
    two = no_norm(settings(ema=None))
    run(tmp_path / "two", settings(ema=None, accumulate=2), two, batches(size=2), optim)
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_evaluating_more_often_changes_no_weight(tmp_path):
    seldom, _ = run(tmp_path / "a", settings())
    often, _ = run(tmp_path / "b", settings(evaluate_every=1))
    assert_same(weights(seldom), weights(often))


def poisoned(at: int, value: float):
    for i, batch in enumerate(batches()):
        if i == at:
            boxes = batch.labels["boxes"]
            bad = replace(boxes, boxes=boxes.boxes.clone().fill_(value))
            batch = replace(batch, labels={"boxes": bad})
        yield batch


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("at", [0, 5])
def test_not_finite_stops_with_the_pictures(tmp_path, value, name, at):
    chosen = settings(log_every=100, save_every=8)
    optim = OptimSettings(name=name, lr=0.02)
    state = prepared(chosen, optim)
    with pytest.raises(TrainingDiverged) as error:
        run(tmp_path, chosen, state, poisoned(at, value), optim)
    told = str(error.value)
    assert f"step {at + 1}:" in told and "boxes/box = " in told and "boxes/size = 0." in told
    assert [f"pictures/{i}.jpg" in told for i in range(4 * at, 4 * at + 4)] == [True] * 4
    assert f"pictures/{4 * at + 4}.jpg" not in told
    assert not (tmp_path / "last.pt").exists()
    # the bad update was skipped, and those after it had clean weights to start from
    for key, value in weights(state).items():
        assert torch.isfinite(value).all(), key


def test_skipped_update_changes_nothing(tmp_path):
    chosen = settings(steps=6, log_every=100, save_every=None, ema=None)
    before = prepared(chosen, OPTIM)
    with pytest.raises(TrainingDiverged):
        run(tmp_path / "a", chosen, before, poisoned(5, float("nan")))
    clean = settings(steps=6, log_every=100, save_every=5, ema=None)
    state = prepared(clean, OPTIM)

    def five():
        for _, batch in zip(range(5), batches(), strict=False):
            yield batch
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", clean, state, five())
    for a, b in zip(before.model.parameters(), state.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_batch_that_nobody_labelled(tmp_path):
    def some():
        for i, batch in enumerate(batches()):
            yield replace(batch, labels={}) if i % 2 else batch

    state, _ = run(tmp_path, settings(log_every=1), source=some())
    assert state.step == 12
    losses = [r.get("train/boxes/box") for r in read_metrics(tmp_path / "metrics.jsonl")]
    assert None in losses and any(losses)


def test_the_average_of_the_weights_after_each_update_is_what_is_evaluated(tmp_path):
    chosen = settings(steps=6, ema=0.2, accumulate=2, evaluate_every=2)
    state = prepared(chosen, OPTIM)

    def trained():
        return [p.detach().clone() for p in state.model.parameters()]

    average, evaluated = trained(), []

    def after_update(optimizer, given, named):
        number = state.step + 1
        kept = min(0.2, (1 + number) / (10 + number))
        for mine, now in zip(average, trained(), strict=True):
            mine.mul_(kept).add_((1 - kept) * now)

    def evaluate(model):
        assert model is state.ema.module and not model.training
        evaluated.append(state.step)
        for mine, seen, now in zip(average, model.parameters(), trained(), strict=True):
            torch.testing.assert_close(seen, mine)
            assert not torch.equal(seen, now)
        return scored(0.5)

    state.optimizer.register_step_post_hook(after_update)
    with recorder(tmp_path, chosen.steps) as told:
        train(state, batches(), chosen, OPTIM, evaluate, told, tmp_path)
    assert evaluated == [2, 4, 6]


def test_best_is_the_best_not_the_last(tmp_path):
    values = iter([0.1, 0.5, 0.3])
    chosen = settings(evaluate_every=4, best="boxes/AP")
    state = prepared(chosen, OPTIM)
    with recorder(tmp_path, 12) as told:
        train(state, batches(), chosen, OPTIM, lambda m: scored(next(values)), told, tmp_path)
    assert read_checkpoint(tmp_path / "best.pt")["step"] == 8
    assert state.best == 0.5


def test_unknown_best_metric_is_told(tmp_path):
    with pytest.raises(InputError, match="'boxes/ap' is no metric"):
        run(tmp_path, settings(best="boxes/ap"))


def test_a_metric_that_no_task_has_is_told_beforehand():
    class Shy:
        def compute(self):
            return {}

    tasks = {"boxes": SimpleNamespace(metric=lambda: CocoMetric(["a"]))}
    check_best("boxes/AP50", tasks)
    with pytest.raises(
        InputError, match="'boxes/mAP' is no metric of this run; there are boxes/AP"
    ):
        check_best("boxes/mAP", tasks)
    check_best("boxes/mAP", {"boxes": SimpleNamespace(metric=Shy)})


@pytest.mark.parametrize("every", [None, 2])
def test_nothing_of_a_step_s_graph_lies_beside_the_next_one_s(tmp_path, every):
    chosen, seen, still = settings(steps=4, pictures_every=every, accumulate=2), [], []
    state = prepared(chosen, OPTIM)

    def before(module, given):
        if module.training:
            still.append([alive() is not None for alive in seen])

    def after(module, given, outputs):
        if module.training:
            seen.append(ref(outputs["boxes"][0]))

    state.model.register_forward_pre_hook(before)
    state.model.register_forward_hook(after)
    run(tmp_path, chosen, state)
    assert len(seen) == 8 and not any(any(alive) for alive in still)


def test_no_truth_still_leaves_a_best(tmp_path):
    chosen = settings(best="boxes/AP")
    state = prepared(chosen, OPTIM)
    with recorder(tmp_path, 12) as told, pytest.warns(UserWarning, match="never had a value"):
        train(state, batches(), chosen, OPTIM, lambda m: scored(math.nan), told, tmp_path)
    assert read_checkpoint(tmp_path / "best.pt")["step"] == 12
    assert read_metrics(tmp_path / "metrics.jsonl")[-1]["val/boxes/AP"] is None
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns(tmp_path, precision):
    chosen = settings(steps=40, precision=precision, log_every=10)
    state, _ = run(tmp_path, chosen)
    losses = [
        r["train/boxes/box"] for r in read_metrics(tmp_path / "metrics.jsonl") if "train/loss" in r
    ]
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.dtype == torch.float32 for p in state.model.parameters())
    assert (state.scaler is not None) == (precision == "fp16")


def test_float16_survives_an_overflow_that_its_scale_made(tmp_path):
    chosen = settings(steps=10, precision="fp16", log_every=5)
    state = prepared(chosen, OPTIM)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    run(tmp_path, chosen, state)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert records[0]["train/skipped"] > 0
    assert state.scaler.get_scale() < 2.0**40
    assert all(torch.isfinite(p).all() for p in state.model.parameters())


def test_settings_are_checked():
    with pytest.raises(ValidationError):
        TrainSettings(steps=0)
    with pytest.raises(ValidationError):
        TrainSettings(steps=3, ema=1.0)


def test_no_device_wait_inside_a_step(tmp_path, reads):
    """Between two logs nothing reads a tensor's value; the loader, which works on the CPU, may."""
    made = list(islice(batches(), 9))
    chosen = settings(steps=9, log_every=100, save_every=None)

    def counted():
        for i, batch in enumerate(made):
            if i == 3:
                reads.clear()
            if i == 8:
                assert reads == []
            yield batch

    run(tmp_path, chosen, source=counted())


def test_a_file_holds_the_statistics_of_all_processes(tmp_path, monkeypatch):
    """Whether or not the model is evaluated at that step."""
    events = []
    monkeypatch.setattr(trainer, "_average_buffers", lambda s: events.append(("mean", s.step)))
    save = State.save
    monkeypatch.setattr(
        State, "save", lambda s, path: (events.append(("file", s.step)), save(s, path))
    )
    run(tmp_path, settings(steps=3, save_every=2, evaluate_every=None))
    assert events == [("mean", 2), ("file", 2), ("mean", 3), ("file", 3)]


def _rank(rank, folder, port):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    process = distributed.start("cpu")
    chosen = settings(ema=None)
    state = prepared(chosen, OPTIM, seed=rank)  # rank 1 must take rank 0's weights

    def mine(first=0):
        for whole in batches(first, size=4):
            half = slice(2 * rank, 2 * rank + 2)
            labels = whole.labels["boxes"]
            tensors = {k: v for k, v in vars(labels).items() if isinstance(v, torch.Tensor)}
            part = {k: v[half] for k, v in tensors.items()}
            yield replace(
                whole,
                images=whole.images[half], sizes=whole.sizes[half], infos=whole.infos[half],
                groups=whole.groups[half], weights=whole.weights[half],
                labels={"boxes": replace(labels, **part)},
            )  # fmt: skip

    def uneven(model):
        return collect(model, [batch_of(1000), batch_of(1001)][: 1 + rank], process.device, "fp32")

    def go(state, source, folder):
        with recorder(folder, 12, state.step) as told:
            return train(state, source, chosen, OPTIM, uneven, told, folder)

    without_norm(state)
    metrics = go(state, mine(), folder)
    everyones = distributed.gather((metrics, [p.detach() for p in state.model.parameters()]))
    if rank == 0:
        torch.save(everyones, folder / "everyones.pt")

    whole = prepared(chosen, OPTIM, seed=rank)  # each rank drops out by its own draws
    go(whole, mine(), folder / "whole")
    with pytest.raises(Killed):
        go(prepared(chosen, OPTIM, seed=rank), until_killed(mine(), 10), folder / "part")
    resumed = prepared(chosen, OPTIM, seed=5)
    resumed.load(folder / "part" / "last.pt")
    assert resumed.step == 8
    go(resumed, mine(8), folder / "part")
    assert_same(weights(resumed), weights(whole))
    distributed.stop()


def without_norm(state):
    """Takes out what sees the batch as a whole or draws by itself."""
    norm = state.model.backbone[1]
    norm.eval()
    norm.train = lambda mode=True: norm
    state.model.dropout.p = 0.0


@pytest.mark.distributed
@pytest.mark.slow
def test_two_ranks_equal_one_and_go_on_where_both_stopped(tmp_path):
    chosen = settings(ema=None)
    one = prepared(chosen, OPTIM)
    without_norm(one)
    _, metrics = run(tmp_path / "one", chosen, one)
    two = tmp_path / "two"
    port = 29500 + os.getpid() % 1000
    torch.multiprocessing.spawn(_rank, (two, port), nprocs=2)
    (first, weights_0), (second, weights_1) = torch.load(two / "everyones.pt")
    # ranks agree, and each picture counts once though both have batch 1000
    assert first == pytest.approx(second, abs=0, nan_ok=True)
    assert first == pytest.approx(metrics, abs=1e-3, nan_ok=True)
    for a, b, c in zip(weights_0, weights_1, one.model.parameters(), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c.detach(), atol=1e-4, rtol=1e-3)
    assert len(read_checkpoint(two / "last.pt")["random"]) == 2
    steps = [json.loads(line)["step"] for line in (two / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps)
