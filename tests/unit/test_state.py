import os
import random
import resource
import sys

import numpy as np
import pytest
import torch

sys.path.insert(0, os.path.dirname(__file__))
from engine_stand_ins import CPU, NAMES, TinyModel, batch_of, prepared

from detmtl.engine import distributed
from detmtl.engine import state as state_module
from detmtl.engine.optim import OptimSettings
from detmtl.engine.precision import dtype_of, fast_bfloat16
from detmtl.engine.state import Ema, random_kept, seed_everything
from detmtl.engine.trainer import TrainSettings
from detmtl.structures.checkpoint import read_checkpoint, weights_of, write_checkpoint
from detmtl.structures.errors import InputError

SETTINGS = TrainSettings(steps=5, precision="fp32", ema=0.9)


def made(seed=0, settings=SETTINGS, optim=None):
    return prepared(settings, optim or OptimSettings(), seed)


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002


def test_checkpoint_holds_everything(tmp_path):
    state = made()
    state.step, state.best = 7, 0.25
    seed_everything(3)
    state.save(tmp_path / "last.pt")
    expected = draw()
    other = made(seed=1)
    seed_everything(4)
    other.load(tmp_path / "last.pt")
    other.restore_random()
    assert draw() == expected
    other.restore_random()  # only once
    assert draw() != expected
    assert (other.step, other.best) == (7, 0.25)
    for a, b in ((state.model, other.model), (state.ema.module, other.ema.module)):
        assert all(
            torch.equal(x, y)
            for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
        )
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert saved["format"] == 1 and saved["classes"] == NAMES and saved["settings"] == {"seed": 0}
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


def test_weights_to_deploy_are_the_averaged_ones(tmp_path):
    state = made()
    with torch.no_grad():
        state.model.tasks["boxes"].linear.weight.add_(1)
    state.save(tmp_path / "last.pt")
    state.save_weights(tmp_path / "best.pt")
    key = "tasks.boxes.linear.weight"
    for name in ("last.pt", "best.pt"):
        found = weights_of(read_checkpoint(tmp_path / name))[key]
        assert torch.equal(found, state.ema.module.state_dict()[key])
    assert not torch.equal(found, state.model.state_dict()[key])


def test_another_number_of_processes_goes_on_with_a_word(tmp_path):
    path = tmp_path / "last.pt"
    made().save(path)
    saved = read_checkpoint(path)
    write_checkpoint(path, saved | {"random": saved["random"] * 2})
    state = made()
    with pytest.warns(UserWarning, match="2 processes trained it, 1 go on"):
        state.load(path)
    assert state.step == saved["step"]


def test_kill_while_writing_leaves_the_previous_file(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    write_checkpoint(path, {"format": 1, "model": {}, "step": 1})

    def torn(content, file):
        file.write(b"half a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(state_module.torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(path, {"format": 1, "model": {}, "step": 2})
    assert read_checkpoint(path)["step"] == 1


def test_a_checkpoint_that_finds_no_room_tells_what_the_system_says(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**5, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_checkpoint(tmp_path / "last.pt", {"format": 1, "model": {"w": torch.ones(10**6)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"nonsense", None, {"a": 1}, {"format": 2, "model": {}}])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(InputError, match=r"x\.pt"):
        read_checkpoint(path)


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    torch.save({"format": 1, "model": Bomb()}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"give best\.pt") as told:
        read_checkpoint(tmp_path / "x.pt")
    assert not (tmp_path / "exploded").exists()
    assert "weights_only" not in str(told.value)  # nor is it advised to run it


def test_resuming_with_other_settings_is_told(tmp_path):
    state = made()
    state.save(tmp_path / "last.pt")
    state.save_weights(tmp_path / "best.pt")
    with pytest.raises(InputError, match="weights alone"):
        made().load(tmp_path / "best.pt")
    other = made()
    other.classes = ["thing"]
    with pytest.raises(InputError, match="trained for the classes thing, other"):
        other.load(tmp_path / "last.pt")
    with pytest.raises(InputError, match="with ema"):
        made(settings=SETTINGS.model_copy(update={"ema": None})).load(tmp_path / "last.pt")
    other = made()
    other.model.tasks["boxes"].linear = torch.nn.Linear(4, 5)
    with pytest.raises(InputError, match=r"another shape: tasks.boxes.linear"):
        other.load(tmp_path / "last.pt")
    other = made()
    other.model.backbone.requires_grad_(False)
    other.optimizer = OptimSettings().build(other.model)
    with pytest.raises(InputError, match="optimizer or balancer"):
        other.load(tmp_path / "last.pt")


def test_ema_averages_weights_and_statistics_and_copies_counters():
    model = TinyModel()
    ema = Ema(model, decay=0.5)
    assert not ema.module.training and not any(p.requires_grad for p in ema.module.parameters())
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1)
    model(torch.rand(4, 3, 16, 16) * 255)
    ema.update(model, step=100)
    now, mean = model.state_dict(), ema.module.state_dict()
    for k in before:
        if before[k].is_floating_point():
            torch.testing.assert_close(mean[k], (before[k] + now[k]) / 2)
        else:
            assert torch.equal(mean[k], now[k]) and now[k] == 1


def test_ema_forgets_the_initialization_fast():
    model = TinyModel()
    ema = Ema(model, decay=0.9999)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1)
    for step in range(1, 31):
        ema.update(model, step)
    assert all((p - 1).abs().max() < 0.01 for p in ema.module.parameters())


def test_random_kept():
    seed_everything(5)
    expected = draw()
    seed_everything(5)
    with random_kept():
        draw()
    assert draw() == expected


def test_precision_asks_the_hardware(monkeypatch):
    from detmtl.engine import precision

    for flags, expected in (
        ({"avx2", "avx512f"}, torch.float32),
        ({"avx512_bf16"}, torch.bfloat16),
        ({"amx_bf16", "amx_tile"}, torch.bfloat16),
        (set(), torch.float32),
    ):
        monkeypatch.setattr(precision, "_cpu_flags", lambda flags=flags: flags)
        assert dtype_of("auto", CPU) == expected
        assert fast_bfloat16(CPU) == (expected == torch.bfloat16)
    assert dtype_of("bf16", CPU) == torch.bfloat16
    assert dtype_of("fp16", CPU) == torch.float16


def test_weights_and_pictures_agree_about_memory_order():
    state = made(settings=TrainSettings(steps=1))
    weight = state.model.backbone[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert state.ema.module.backbone[0].weight.is_contiguous(memory_format=torch.channels_last)
    state.model(batch_of(0).images)


def test_one_gpu_for_several_processes_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="all of 2 processes on one GPU; give device: cuda"):
        distributed.start("cuda:0")
