"""What is told of the losses: means over steps and processes, and who began where one is not finite."""

import pytest
import torch

from detmtl.engine import distributed
from detmtl.engine.watch import LossWatch, TrainingDiverged
from detmtl.structures.sample import ImageInfo


def watch_of(batches, picture="a.jpg", norms=()) -> LossWatch:
    watch = LossWatch()
    for step, (terms, total) in enumerate(batches, 1):
        named = {task: {"x": torch.tensor(value)} for task, value in terms.items()}
        watch.add(step, named, torch.tensor(total), [ImageInfo(1, picture, 9, 9, "s")])
        if norms:
            watch.add_gradient_norm(torch.tensor(norms[step - 1]))
    return watch


def together(monkeypatch, *watches):
    """Returns what `check` of the last of some ranks gives: the others' part is asked for first."""
    said = []

    class Heard(Exception):
        pass

    def hear(value):
        said.append(value)
        raise Heard

    monkeypatch.setattr("detmtl.engine.watch.world_size", lambda: len(watches))
    monkeypatch.setattr(distributed, "gather", hear)
    for watch in watches[:-1]:
        with pytest.raises(Heard):
            watch.check()
    monkeypatch.setattr(distributed, "gather", lambda value: [*said, value])
    return watches[-1].check()


def test_one_process_has_the_mean_over_the_batches_in_which_a_task_spoke():
    watch = watch_of([({"a": 1.0, "b": 4.0}, 5.0), ({"a": 3.0}, 3.0)])
    assert watch.check() == {"a/x": 2.0, "b/x": 4.0, "loss": 4.0}
    assert watch.check() == {}


def test_a_silent_process_counts_as_nothing(monkeypatch):
    """Whoever speaks multiplies by the number of processes, since gradients are averaged over them."""
    speaks = watch_of([({"a": 3.0}, 3.0), ({"a": 1.0}, 1.0)])
    silent = watch_of([({}, 0.0), ({"a": 2.0}, 2.0)])
    means = together(monkeypatch, speaks, silent)
    assert means == {"a/x": pytest.approx(1.5), "loss": pytest.approx(1.5)}


def test_who_has_the_loss_that_is_not_finite_is_told_and_no_other(monkeypatch):
    nan = float("nan")
    innocent = watch_of([({"a": 1.0}, 1.0)], "good.jpg", norms=[nan])
    guilty = watch_of([({"a": nan}, nan)], "bad.jpg", norms=[nan])
    with pytest.raises(TrainingDiverged) as told:
        together(monkeypatch, innocent, guilty)
    assert "bad.jpg" in str(told.value) and "good.jpg" not in str(told.value)


def test_a_gradient_that_is_not_finite_without_such_a_loss_is_told_of_all(monkeypatch):
    ranks = [watch_of([({"a": 1.0}, 1.0)], f"{n}.jpg", norms=[float("inf")]) for n in (0, 1)]
    with pytest.raises(TrainingDiverged, match=r"(?s)0\.jpg.*1\.jpg"):
        together(monkeypatch, *ranks)
