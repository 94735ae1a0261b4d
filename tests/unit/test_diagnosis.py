"""Gradients of tasks on the trunk: the numbers, their files, and that looking changes nothing."""

import copy
import json
import os
import sys
from itertools import count

import pytest
import torch
import torch.multiprocessing
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

sys.path.insert(0, os.path.dirname(__file__))
from diagnosis_stand_ins import batch_of, model_of, prepared, terms_of

from detmtl.balancing.fixed import FixedSettings
from detmtl.engine import distributed
from detmtl.engine.diagnosis import (
    TRUNK,
    Diagnosis,
    DiagnosisSettings,
    largest,
    means,
    read_records,
    record,
)
from detmtl.engine.heat_map import heat_map, shade
from detmtl.engine.optim import OptimSettings
from detmtl.engine.recorder import Recorder
from detmtl.engine.trainer import TrainSettings, train
from detmtl.models.fpn import FPN

NAMES = ["a", "b"]


def looked(model, batch, layers=None, weights=None):
    seen = Diagnosis(DiagnosisSettings(every=1, layers=layers), model.stages())
    balancer = FixedSettings(weights=weights or {}).build(list(model.tasks))
    seen.look(1, balancer.weighted(terms_of(model, batch)))
    (found,) = seen.read()
    return found


def by_backward(model, batch, task):
    """Returns stage -> the task's gradient, by an ordinary backward pass of a copy."""
    mine = copy.deepcopy(model)
    sum(terms_of(mine, batch)[task].values()).backward()
    return {
        name: torch.cat(
            [torch.zeros_like(p).ravel() if p.grad is None else p.grad.ravel() for p in of]
        )
        for name, of in mine.stages().items()
    }


def test_norms_and_cosines_are_those_of_backward_passes():
    model, batch = model_of(), batch_of(0)
    found = looked(model, batch, weights={"map": 3.0})
    boxes, maps = (by_backward(model, batch, task) for task in ("boxes", "map"))
    assert list(found["norm"]) == ["c1", "c2", "c3", "c4", "c5", "fpn", "trunk"]
    for stage, gradient in boxes.items():
        assert found["norm"][stage]["boxes"] == pytest.approx(float(gradient.norm()), rel=1e-4)
        assert found["norm"][stage]["map"] == pytest.approx(3 * float(maps[stage].norm()), rel=1e-4)
        cosine = torch.cosine_similarity(gradient, maps[stage], dim=0)
        assert found["cosine"][stage]["boxes/map"] == pytest.approx(float(cosine), abs=1e-5)
    whole = [torch.cat(list(of.values())) for of in (boxes, maps)]
    cosine = torch.cosine_similarity(*whole, dim=0)
    assert found["cosine"]["trunk"]["boxes/map"] == pytest.approx(float(cosine), abs=1e-5)


def test_a_stage_that_a_task_does_not_reach_has_norm_0_and_no_cosine():
    found = looked(model_of(), batch_of(0))
    assert found["norm"]["fpn"]["tags"] == 0, "tags hang on c5, beside the pyramid"
    assert set(found["cosine"]["fpn"]) == {"boxes/map"}
    assert {"boxes/tags", "map/tags", "boxes/map"} == set(found["cosine"]["c4"])


def test_silent_tasks_are_left_out():
    found = looked(model_of(), batch_of(0, ("boxes", "tags")))
    assert set(found["norm"]["c3"]) == {"boxes", "tags"}
    assert set(found["cosine"]["trunk"]) == {"boxes/tags"}
    nothing = looked(model_of(), batch_of(0, ()))
    assert nothing["norm"]["trunk"] == {} and nothing["cosine"]["trunk"] == {}


def test_the_stages_hold_each_trained_weight_of_the_trunk_once():
    model = model_of()
    listed = [p for of in model.stages().values() for p in of]
    assert len({id(p) for p in listed}) == len(listed)
    assert {id(p) for p in listed} == {id(p) for p in model.shared_parameters()}
    before = torch.get_rng_state()
    model.stages()
    assert torch.equal(torch.get_rng_state(), before) and model.backbone.training


def test_frozen_stages_are_in_none():
    model = model_of()
    frozen = model.stages()["c1"] + model.stages()["c2"]
    for p in frozen:
        p.requires_grad_(False)
    assert list(model.stages()) == ["c3", "c4", "c5", "fpn"]


def test_the_largest_weights_are_looked_at():
    shapes = [(4, 4), (50,), (2, 2), (4, 8), (4, 4)]
    parameters = [nn.Parameter(torch.zeros(s)) for s in shapes]
    assert largest(parameters, None) == parameters
    chosen = largest(parameters, 2)
    assert [id(p) for p in chosen] == [id(parameters[3]), id(parameters[4])], "of equals the last"


def test_of_the_pyramid_the_finest_outputs_are_looked_at():
    """P6 and P7 have as many weights, and tasks on p3 do not reach them."""
    model = model_of()
    model.fpn = FPN([8, 8, 8], 16, num_levels=5)
    chosen = largest(model.stages()["fpn"], 2)
    assert {id(p) for p in chosen} == {id(next(model.fpn.outputs[i].parameters())) for i in (0, 1)}


def run(folder, diagnosis, steps=4, stop=None, resume=False, weights=None, silent=()):
    settings = TrainSettings.model_validate(
        {"steps": steps, "precision": "fp32", "ema": 0.9, "log_every": 4, "save_every": 2}
        | {"pictures_every": None, "accumulate": 2}
    )
    state = prepared(settings, weights)
    if resume:
        state.load(folder / "last.pt")
    seen = None if diagnosis is None else Diagnosis(diagnosis, state.model.stages())

    def batches():
        for n in count(state.step * 2):
            if n == stop:
                raise KeyboardInterrupt
            yield batch_of(n, ("maps",) if n in silent else ("boxes", "maps", "tags"))

    names = dict.fromkeys(("boxes", "map", "tags"), NAMES)
    with Recorder(folder, steps, names, state.step, False, {"map": "maps"}) as told:
        train(
            state,
            batches(),
            settings,
            OptimSettings(warmup=0),
            lambda m: {},
            told,
            folder,
            (),
            seen,
        )
    return state


def everything(state):
    found = dict(state.model.state_dict())
    found |= {f"ema.{k}": v for k, v in state.ema.module.state_dict().items()}
    for i, values in state.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{i}.{k}": v for k, v in values.items()}
    return found


def test_with_and_without_a_run_ends_with_the_same_bits(tmp_path):
    looking = run(tmp_path / "with", DiagnosisSettings(every=2), silent={2})
    plain = run(tmp_path / "without", None, silent={2})
    a, b = everything(looking), everything(plain)
    assert a.keys() == b.keys() and [k for k in a if not torch.equal(a[k], b[k])] == []
    assert read_records(tmp_path / "without" / "diagnosis.jsonl") == []
    records = read_records(tmp_path / "with" / "diagnosis.jsonl")
    assert [r["step"] for r in records] == [2, 4]
    # step 2 is made of batches 2 and 3; the first of them is looked at
    assert set(records[0]["norm"]["c5"]) == {"map"} and set(records[1]["norm"]["c5"]) == {
        "boxes",
        "map",
        "tags",
    }
    events = EventAccumulator(str(tmp_path / "with" / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert {"gradient_norm/c4/boxes", "gradient_cosine/trunk/boxes/map"} <= set(tags["scalars"])
    assert "gradient_cosine" in tags["images"]


def test_a_run_that_goes_on_has_each_record_once(tmp_path):
    run(tmp_path / "whole", DiagnosisSettings(every=1))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", DiagnosisSettings(every=1), stop=6)
    run(tmp_path / "parts", DiagnosisSettings(every=1), resume=True)
    whole, parts = (read_records(tmp_path / n / "diagnosis.jsonl") for n in ("whole", "parts"))
    assert whole == parts and [r["step"] for r in parts] == [1, 2, 3, 4]


def test_numbers_that_are_not_finite_are_null():
    found = record(3, ["a", "b"], {"c5": [[float("inf"), 1.0], [1.0, 4.0]]}, [1, 1])
    assert found["norm"]["c5"] == {"a": None, "b": 2.0}
    json.dumps(found, allow_nan=False)


def test_an_overflow_of_float16_is_null_and_ends_no_training():
    inf, nan = float("inf"), float("nan")
    stages = {"c3": [[nan, inf], [inf, 2.0]], "c4": [[inf, -inf], [-inf, 2.0]]}
    found = record(3, ["a", "b"], stages, [1, 1])
    assert found["norm"] == {
        "c3": {"a": None, "b": 2**0.5},
        "c4": {"a": None, "b": 2**0.5},
        TRUNK: {"a": None, "b": 2.0},
    }
    assert all(of == {"a/b": None} for of in found["cosine"].values())


def test_losses_count_as_they_are_weighted_and_scaled_and_nothing_is_taken_in():
    balancer = FixedSettings(weights={"a": 3, "a/x": 2}, scale="initial").build(["a", "b"])
    weight = nn.Parameter(torch.ones(()))
    terms = {"a": {"x": 4 * weight, "y": weight}, "b": {}}
    balancer.backward(terms)  # the loss of a is 2 * 4 + 1, by which it is scaled from now on
    before = {k: v.clone() for k, v in balancer.state_dict().items()}
    found = balancer.weighted(terms)
    assert found["b"] == {}
    assert float(found["a"]["x"].detach()) == pytest.approx(3 * 2 * 4 / 9)
    assert float(found["a"]["y"].detach()) == pytest.approx(3 / 9)
    assert all(torch.equal(v, before[k]) for k, v in balancer.state_dict().items())


def test_means_over_records():
    records = [
        record(1, ["a", "b"], {"c5": [[4.0, 2.0], [2.0, 4.0]]}, [1, 1]),
        record(2, ["a", "b"], {"c5": [[16.0, 0.0], [0.0, 0.0]]}, [1, 0]),
    ]
    assert means(records, "norm")["c5"] == {"a": (3.0, 2), "b": (2.0, 1)}
    assert means(records, "cosine")["c5"] == {"a/b": (0.5, 1)}


def test_the_picture_shows_signs():
    picture = heat_map([[0.5, None], [-0.5, 0.0]], ["a/b", "b/c"], ["c4", "c5"])
    colors = {tuple(c) for c in picture.reshape(-1, 3).tolist()}
    assert {shade(0.5, 1), shade(-0.5, 1)} <= colors
    (red, _, blue), (red2, _, blue2) = shade(0.5, 1), shade(-0.5, 1)
    assert blue > red and red2 > blue2


TARGETS = {"a": torch.tensor([1.0, 2.0, 0.0]), "b": torch.tensor([1.0, -1.0, 1.0])}


def _terms(weight, tasks):
    return {
        name: {"loss": (weight @ target)} if name in tasks else {}
        for name, target in TARGETS.items()
    }


def _rank(rank, folder, port):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    distributed.start("cpu")
    weight = nn.Parameter(torch.ones(3))
    seen = Diagnosis(DiagnosisSettings(every=1, layers=None), {"c5": [weight]})
    seen.look(1, _terms(weight, "a" if rank == 0 else "b"))  # each has labels of another task
    (folder / f"{rank}.json").write_text(json.dumps(seen.read()))
    distributed.stop()


@pytest.mark.distributed
@pytest.mark.slow
def test_two_processes_that_see_different_tasks_find_the_pair(tmp_path):
    port = 29500 + (os.getpid() + 77) % 1000
    torch.multiprocessing.spawn(_rank, (tmp_path, port), nprocs=2)
    (mine,), (other,) = (json.loads((tmp_path / f"{r}.json").read_text()) for r in (0, 1))
    assert mine == other
    a, b = TARGETS.values()
    assert mine["norm"]["c5"]["a"] == pytest.approx(float(a.norm()) / 2, rel=1e-5), "of the mean"
    cosine = torch.cosine_similarity(a, b, dim=0)
    assert mine["cosine"]["c5"]["a/b"] == pytest.approx(float(cosine), abs=1e-5)
