"""Scores that are counted while the training goes on are those that it would have waited for."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, os.path.dirname(__file__))
import scores_stand_ins as stand_ins
from engine_stand_ins import CPU, batch_of, batches, prepared, recorder
from scores_stand_ins import OPTIM, Bad, Odd, gated, run, settings, wait_for

from detmtl.engine import scores
from detmtl.engine.background import Background, packed
from detmtl.engine.evaluator import collect
from detmtl.engine.recorder import read_metrics
from detmtl.engine.scores import Scores
from detmtl.engine.trainer import train
from detmtl.structures.checkpoint import read_checkpoint
from detmtl.structures.errors import InputError


def told(folder):
    records = read_metrics(folder / "metrics.jsonl")
    measured = ("time/", "pictures_per")
    return [{k: v for k, v in r.items() if not k.startswith(measured)} for r in records]


def same(a, b):
    """Returns whether two values of a checkpoint are the same to the bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def assert_same_run(folder, other):
    assert told(folder) == told(other)
    for name in ("best.pt", "last.pt"):
        a, b = (read_checkpoint(path / name) for path in (folder, other))
        for content in (a, b):  # nobody seeds the others here, and nobody draws from them
            content["random"] = [r["torch"] for r in content.get("random", ())]
        assert [key for key in a | b if not same(a[key], b[key])] == [], name


class Kept(Background):
    """A process that outlives a run: it takes over a second to start."""

    def __exit__(self, *_):
        if self._answer is not None:
            self.result()


@pytest.fixture(scope="module")
def one_process():
    kept = Kept()
    yield kept
    Background.__exit__(kept)


@pytest.fixture
def kept(one_process, monkeypatch):
    """All runs of a test count in one process, that of the tests before."""
    monkeypatch.setattr(scores, "Background", lambda: one_process)
    return one_process


@pytest.fixture(scope="module")
def waited(tmp_path_factory):
    """A run that waited for each score."""
    folder = tmp_path_factory.mktemp("waited")
    (folder / "gate").touch()
    run(folder, settings(score_in_background=False), gated(folder / "gate"))
    assert read_checkpoint(folder / "best.pt")["step"] < 12  # else best.pt tells little
    assert (folder / "counted").read_text() == str(os.getpid())
    return folder


def test_the_same_files_though_the_score_comes_late(tmp_path, waited, kept):
    """The second score is held up until two steps later."""
    seen, gate = [], tmp_path / "gate"
    gate.touch()

    def slowed():
        for i, batch in enumerate(batches()):
            if i == 6:  # step 6 is made
                wait_for(tmp_path / "counted")
                assert (tmp_path / "counted").read_text() != str(os.getpid())
            if i == 7:
                gate.unlink()
            if i == 10:  # that of step 8 is out
                assert read_checkpoint(tmp_path / "last.pt")["unscored"]
                seen.append([r["step"] for r in told(tmp_path)])
                assert read_checkpoint(tmp_path / "best.pt")["step"] == 4
                gate.touch()
            yield batch

    run(tmp_path, settings(), gated(gate), source=slowed())
    assert seen == [[1, 2, 3, 4, 4, 5, 6, 7, 8]]
    assert_same_run(tmp_path, waited)
    assert not read_checkpoint(tmp_path / "last.pt")["unscored"]


@pytest.mark.parametrize("moment", ["out", "in"])
def test_killed_between_the_evaluation_and_its_score(tmp_path, waited, moment):
    code = "import sys; sys.path.insert(0, sys.argv[1]); import scores_stand_ins as s; "
    code += "from pathlib import Path; s.run_and_be_killed(Path(sys.argv[2]), sys.argv[3])"
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path), moment]
    with open(tmp_path / "told.txt", "w") as file:  # no pipe: the process behind it would hold it
        done = subprocess.run(command, stdout=file, stderr=file)
    assert done.returncode == -9, (tmp_path / "told.txt").read_text()
    scored = [r for r in told(tmp_path) if "val/boxes/AP" in r]
    assert len(scored) == (moment == "in")
    (tmp_path / "gate").touch()  # whoever counts has an end, and goes with the one that asked
    child = int((tmp_path / "asked").read_text())
    end = time.monotonic() + stand_ins.PATIENCE
    while os.path.exists(f"/proc/{child}") and _state_of(child) != "Z":
        assert time.monotonic() < end, "the process stays behind"
        time.sleep(0.01)

    state = prepared(settings(), OPTIM)
    torch.rand(7)
    state.load(tmp_path / "last.pt")
    assert state.step == 4 and state.unscored
    run(tmp_path, settings(), gated(tmp_path / "gate"), state)
    assert_same_run(tmp_path, waited)


def _state_of(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return "Z"


def test_one_is_out_at_most(tmp_path, kept, monkeypatch):
    """Evaluations come at every step; each waits for the one before."""
    chosen = settings(steps=6, evaluate_every=1, save_every=2)
    (tmp_path / "gate").touch()
    run(tmp_path / "waiting", chosen.model_copy(update={"score_in_background": False}),
        gated(tmp_path / "gate"))  # fmt: skip
    out = []

    for name in ("start", "result"):
        real = getattr(kept, name)
        monkeypatch.setattr(
            kept, name, lambda *a, real=real, name=name: (out.append(name), real(*a))[1]
        )
    run(tmp_path / "beside", chosen, gated(tmp_path / "gate"))
    assert out == ["start", "result"] * 5  # the last one is counted here
    assert_same_run(tmp_path / "beside", tmp_path / "waiting")


@pytest.mark.parametrize(
    ("error", "expected", "words"),
    [
        (InputError, InputError, "^a package is missing\n"),
        (Odd, RuntimeError, "^Odd: a package is missing\n"),
    ],
)
def test_an_error_reaches_the_training_as_what_it_is(tmp_path, kept, error, expected, words):
    with pytest.raises(expected, match=words) as caught:
        run(tmp_path, settings(), lambda model: {"boxes": Bad(error)})
    assert "in compute" in "".join(caught.value.__notes__)
    # the steps until then are told
    assert [r["step"] for r in told(tmp_path)][:4] == [1, 2, 3, 4]


def test_a_process_that_is_gone_is_told(tmp_path):
    told_what = "ended by itself, exit status 3; .*score_in_background to false"
    with pytest.raises(RuntimeError, match=told_what):
        run(tmp_path, settings(steps=2, evaluate_every=1), lambda model: {"boxes": Bad(None)})


@pytest.mark.parametrize(("worth", "beside"), [(1e9, 0), (0.0, 2)])
def test_auto_counts_in_another_process_once_it_takes_long(
    tmp_path, kept, monkeypatch, worth, beside
):
    """The first of four is timed here, and the last one has nothing beside which it could run."""
    monkeypatch.setattr(scores, "WORTH", worth)
    asked = []
    real = kept.start
    monkeypatch.setattr(kept, "start", lambda job: (asked.append(job), real(job)))
    (tmp_path / "gate").touch()
    chosen = settings(steps=4, evaluate_every=1, save_every=1, score_in_background="auto")
    run(tmp_path, chosen, gated(tmp_path / "gate"))
    assert len(asked) == beside


def test_metrics_that_cannot_be_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "WORTH", 0.0)

    def evaluate(model):
        found = collect(model, [batch_of(1000)], CPU, "fp32")
        found["boxes"].note = lambda: None
        return found

    run(tmp_path / "auto", settings(score_in_background="auto"), evaluate)
    assert len([r for r in told(tmp_path / "auto") if "val/boxes/AP" in r]) == 3
    with pytest.raises(InputError, match="score_in_background: the metrics of boxes"):
        run(tmp_path / "true", settings(), evaluate)


def test_a_run_that_fails_leaves_no_process_and_tells_its_steps(tmp_path):
    def broken():
        for i, batch in enumerate(batches()):
            if i == 6:
                wait_for(tmp_path / "asked")
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, settings(), gated(tmp_path / "gate"), source=broken())
    child = int((tmp_path / "asked").read_text())
    assert not os.path.exists(f"/proc/{child}")
    assert [r["step"] for r in told(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_run_that_fails_has_the_score_that_was_out(tmp_path, waited, kept):
    """As if it had waited: what it was before it failed may be all that is left of it."""

    def broken():
        for i, batch in enumerate(batches()):
            if i == 6:
                wait_for(tmp_path / "asked")
                (tmp_path / "gate").touch()
                raise InputError("a picture cannot be read")
            yield batch

    with pytest.raises(InputError, match="a picture cannot be read"):
        run(tmp_path, settings(), gated(tmp_path / "gate"), source=broken())
    assert told(tmp_path) == told(waited)[:7]  # six steps, and the score of the fourth
    assert read_checkpoint(tmp_path / "best.pt")["step"] == 4


@pytest.mark.parametrize(
    ("metric", "kept"),
    [("boxes/RMSE", [5, 3]), ("boxes/abs_rel/near", [5, 3]), ("boxes/AP", [5, 6])],
)
def test_the_best_of_an_error_is_the_lowest(tmp_path, metric, kept):
    state, saved = prepared(settings(), OPTIM), []
    state.save_weights = lambda path, step, weights: saved.append(step)
    with recorder(tmp_path, 4) as recorded:
        counted = Scores(state, recorded, tmp_path, metric, background=False)
        for value in (5.0, 3.0, 6.0, float("nan")):
            counted._take(value, {metric: value}, False)
    assert saved == kept and state.best == kept[-1]


def test_a_best_that_never_had_a_value_is_told(tmp_path):
    state, saved = prepared(settings(), OPTIM), []
    state.save_weights = lambda path, step, weights: saved.append(step)
    with recorder(tmp_path, 2) as recorded:
        counted = Scores(state, recorded, tmp_path, "boxes/AP/rare", background=False)
        counted._take(1, {"boxes/AP/rare": float("nan")}, False)
        with pytest.warns(UserWarning, match="train.best: boxes/AP/rare never had a value"):
            counted._take(2, {"boxes/AP/rare": float("nan")}, True)
    assert saved == [2]


def test_the_bar_tells_the_best_metric(tmp_path, monkeypatch, capsys):
    from detmtl.engine.recorder import Recorder

    monkeypatch.setattr("detmtl.engine.recorder.LINE_EVERY", 0.0)
    with Recorder(tmp_path, 4, {}) as recorded:
        recorded.scores(1, {"boxes/AP": 0.25}, "boxes/AP")
        recorded.advance(2, 0.5)
    assert "train (loss 0.5, boxes/AP 0.25 at step 1): step 2 of 4" in capsys.readouterr().out


def test_a_process_makes_one_call_after_the_other():
    with Background() as process:
        for n in (3, 5):
            process.start(packed(pow, n, 2))
            assert process.result() == n * n
        process.start(packed(print, "what a call prints is no answer"))
        assert process.result() is None
        process.start(packed(int, "x"))
        with pytest.raises(ValueError, match="invalid literal"):
            process.result()
        process.start(packed(len, b"0" * 2**22))  # more than a pipe holds
        assert process.result() == 2**22
        process.start(packed(time.sleep, 60))
        assert not process.done()
    assert not process.done()


def test_a_process_that_was_ended_while_idle_is_replaced():
    with Background() as process:
        process.start(packed(os.getpid))
        first = process.result()
        os.kill(first, 9)
        os.waitid(os.P_PID, first, os.WEXITED | os.WNOWAIT)  # all its threads have ended
        process.start(packed(os.getpid))
        assert process.result() != first


def test_a_process_ends_with_its_parent_in_the_middle_of_a_call(tmp_path):
    code = (
        "import os, sys, time; from detmtl.engine.background import Background, packed\n"
        "process = Background(); process.start(packed(os.getpid)); child = process.result()\n"
        "process.start(packed(time.sleep, 600)); time.sleep(0.3)\n"
        "open(sys.argv[1], 'w').write(str(child)); os.kill(os.getpid(), 9)"
    )
    with open(tmp_path / "told.txt", "w") as file:
        subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "child")], stdout=file, stderr=file
        )
    child = int((tmp_path / "child").read_text())
    end = time.monotonic() + 20
    while os.path.exists(f"/proc/{child}") and _state_of(child) != "Z":
        assert time.monotonic() < end, "the process stays behind"
        time.sleep(0.01)


def _rank(rank, folder, port):
    from detmtl.engine import distributed

    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)
    distributed.start("cpu")
    chosen = settings(ema=None)
    state = prepared(chosen, OPTIM)
    ahead = []

    def mine():
        for i, batch in enumerate(batches()):
            if i == 6:  # both ranks have come this far while the score of step 4 is held up
                ahead.append(not (folder / "counted").exists())
                distributed.barrier()
                (folder / "gate").touch()
            yield batch

    with recorder(folder, 12) as recorded:
        metrics = train(state, mine(), chosen, OPTIM, gated(folder / "gate"), recorded, folder)
    failed = ""
    state = prepared(chosen, OPTIM)
    with recorder(folder / "bad", 12) as recorded:
        try:
            bad = lambda model: {"boxes": Bad(InputError)}  # noqa: E731
            train(state, batches(), chosen, OPTIM, bad, recorded, folder / "bad")
        except InputError as error:
            failed = str(error)
    (folder / f"rank{rank}.json").write_text(json.dumps([metrics, ahead, failed]))
    distributed.stop()


@pytest.mark.distributed
@pytest.mark.slow
def test_no_rank_waits_and_all_agree(tmp_path):
    port = 27500 + os.getpid() % 1000
    torch.multiprocessing.spawn(_rank, (tmp_path, port), nprocs=2)
    first, second = (json.loads((tmp_path / f"rank{r}.json").read_text()) for r in (0, 1))
    assert str(first) == str(second)  # NaN included
    metrics, ahead, failed = first
    assert "boxes/AP" in metrics and ahead == [True] and failed == "a package is missing"
    steps = [r["step"] for r in told(tmp_path)]
    assert steps == sorted([*range(1, 13), 4, 8, 12])


def test_scores_of_nothing_wait_for_nothing(tmp_path):
    state = prepared(settings(), OPTIM)
    with recorder(tmp_path, 12) as told_here, Scores(state, told_here, tmp_path) as empty:
        assert not empty.poll()
        empty.settle()
        empty.before_saving()
        assert empty.metrics == {} and not state.unscored
