"""Each source's share of the loss: exact, and the same however it is counted."""

import os
import sys

import pytest
import torch

sys.path.insert(0, os.path.dirname(__file__))
from engine_stand_ins import CPU, batches, prepared, recorder

from detmtl.engine.optim import OptimSettings
from detmtl.engine.recorder import read_metrics
from detmtl.engine.shares import LossShares
from detmtl.engine.trainer import TrainSettings, train
from detmtl.losses.terms import LossTerms
from detmtl.structures.labels import BoxLabels, Grade
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.tasks.detection import DetectionConfig


def _batch(groups, counts):
    generator = torch.Generator().manual_seed(0)
    samples = []
    for group, count in zip(groups, counts, strict=True):
        corners = torch.rand(count, 2, generator=generator) * 60
        boxes = torch.cat([corners, corners + 40], 1)
        labels = BoxLabels.of(boxes, torch.zeros(count), 3)
        info = ImageInfo(len(samples), "", 128, 128, str(group))
        image = torch.zeros(3, 128, 128, dtype=torch.uint8)
        grade = Grade.SILVER if group else Grade.GOLD
        samples.append(Sample(image, {"boxes": labels}, info, group, 1.0 - 0.5 * group, grade))
    return Batch.of(samples)


@pytest.mark.parametrize("normalizer", ["source", "batch", "image"])
def test_parts_of_pictures_sum_up_to_the_terms_and_are_theirs(normalizer):
    torch.manual_seed(0)
    config = DetectionConfig.model_validate({"loss": {"normalizer": normalizer}})
    task = config.build("boxes", [8, 8], [16, 32], 3, ["a", "b", "c"])
    batch = _batch([0, 0, 1, 1], [2, 0, 3, 1])
    outputs = task([torch.randn(4, 8, 8, 8), torch.randn(4, 8, 4, 4)])
    outputs = [x.detach().requires_grad_() for x in outputs]
    terms = task.loss(outputs, batch)
    assert isinstance(terms, LossTerms) and terms.by_picture.shape == (4,)
    torch.testing.assert_close(terms.by_picture.sum(), sum(t.detach() for t in terms.values()))
    # a picture of its own logits: what changes when they do is its part alone
    changed = [x.detach().clone() for x in outputs]
    for x in changed:
        x[3] += 0.5
    other = task.loss(changed, batch).by_picture
    assert torch.equal(other[:3], terms.by_picture[:3]) and other[3] != terms.by_picture[3]


def test_shares_are_ratios_of_sums_and_start_anew():
    shares = LossShares(["gold", "pool", "never"], CPU)
    for parts, groups in (([1.0, 2.0, 3.0], [0, 1, 1]), ([4.0, 0.0, 0.0], [0, 0, 1])):
        terms = LossTerms.of({"class": torch.tensor(parts) / 4, "box": torch.tensor(parts) * 3 / 4})
        shares.add({"boxes": terms, "silent": {}}, torch.tensor(groups))
    found = shares.read()
    assert found == pytest.approx(
        {"loss_share/gold": 0.5, "loss_share/pool": 0.5, "loss_share/never": 0}
    )
    assert shares.read() == {}
    plain = LossShares(["gold"], CPU)
    plain.add({"boxes": {"box": torch.ones(())}}, torch.zeros(1, dtype=torch.long))
    assert plain.read() == {}, "a task that does not tell pictures apart is not counted"


def test_a_run_records_them(tmp_path):
    chosen = TrainSettings(steps=4, precision="fp32", log_every=2)
    state = prepared(chosen, OptimSettings())
    task = state.tasks["boxes"]
    plain = task.loss

    def by_picture(outputs, batch):
        terms = plain(outputs, batch)
        half = torch.tensor([0.1, 0.2, 0.3, 0.4])
        return LossTerms.of({name: term * half for name, term in terms.items()})

    task.loss = by_picture

    def grouped():
        for batch in batches():
            object.__setattr__(batch, "groups", torch.tensor([0, 1, 1, 0]))
            yield batch

    with recorder(tmp_path, 4) as told:
        train(
            state, grouped(), chosen, OptimSettings(), lambda model: {}, told, tmp_path,
            ["gold", "pool"],
        )  # fmt: skip
    records = [r for r in read_metrics(tmp_path / "metrics.jsonl") if "loss_share/gold" in r]
    assert [r["step"] for r in records] == [2, 4]
    for r in records:
        assert r["loss_share/gold"] == pytest.approx(0.5, abs=1e-6)
        assert r["loss_share/pool"] == pytest.approx(0.5, abs=1e-6)
