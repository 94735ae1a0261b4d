"""The smallest model, task and batches that the engine's tests can train."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from detmtl.balancing.fixed import FixedSettings
from detmtl.engine.distributed import Process
from detmtl.engine.optim import OptimSettings
from detmtl.engine.recorder import Recorder
from detmtl.engine.state import State
from detmtl.engine.trainer import TrainSettings
from detmtl.metrics.coco import CocoMetric
from detmtl.structures.labels import BoxLabels
from detmtl.structures.sample import Batch, ImageInfo, Sample

CPU = torch.device("cpu")
NAMES = ["thing", "other"]


class TinyTask(nn.Module):
    """Predicts one box a picture: the fractions of the picture's sides at which it begins and ends."""

    name, labels = "boxes", "boxes"

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        return [self.linear(features[0].mean((2, 3)))]

    def loss(self, outputs: list[Tensor], batch: Batch) -> dict[str, Tensor]:
        if "boxes" not in batch.labels:
            return {}
        target = batch.labels["boxes"].boxes[:, 0] / 32
        error = (outputs[0].float() - target).square().mean()
        return {"box": error, "size": outputs[0].float().square().mean() * 0.01}

    def decode(self, outputs: list[Tensor], sizes: Tensor) -> list[BoxLabels]:
        boxes = outputs[0].float() * sizes[:, [1, 0, 1, 0]]
        boxes = torch.cat([boxes[:, :2], torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)], 1)
        return [BoxLabels.of(b[None], torch.zeros(1), len(NAMES)) for b in boxes]

    def metric(self) -> CocoMetric:
        return CocoMetric(NAMES)


class TinyModel(nn.Module):
    """A convolution with a norm, running statistics and dropout, and one task."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU())
        self.dropout = nn.Dropout(0.2)
        self.tasks = nn.ModuleDict({"boxes": TinyTask()})

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        features = [self.dropout(self.backbone(images.float() / 255))]
        return {name: task(features) for name, task in self.tasks.items()}


def picture(number: int, labelled: bool = True) -> Sample:
    """Returns a picture of noise whose file was twice as wide and three times as high."""
    g = torch.Generator().manual_seed(number)
    image = torch.randint(0, 256, (3, 32, 32), generator=g, dtype=torch.uint8)
    corner = torch.rand(1, 2, generator=g) * 10
    labels = BoxLabels.of(torch.cat([corner, corner + 15], 1), torch.zeros(1), len(NAMES))
    info = ImageInfo(number, f"pictures/{number}.jpg", 96, 64, "train")
    return Sample(image, {"boxes": labels} if labelled else {}, info)


def batch_of(number: int, size: int = 4) -> Batch:
    return Batch.of([picture(number * size + i) for i in range(size)])


def batches(start: int = 0, size: int = 4) -> Iterator[Batch]:
    """Yields batches from number `start` on; starting draws from torch's generator as a loader does."""
    torch.rand(1)
    while True:
        yield batch_of(start, size)
        start += 1


def prepared(settings: TrainSettings, optim: OptimSettings, seed: int = 0, balancing=None) -> State:
    torch.manual_seed(seed)
    model, balancer = TinyModel(), (balancing or FixedSettings()).build(["boxes"])
    balancer.attach(list(model.backbone.parameters()), list(model.tasks.parameters()))
    return settings.prepare(model, balancer, optim, Process(0, 1, CPU), {"seed": seed}, NAMES)


def recorder(folder: Path, steps: int, start_step: int = 0, unscored: bool = False) -> Recorder:
    names = {"boxes": NAMES}
    return Recorder(folder, steps, names, start_step, progress=False, unscored=unscored)


class Scored:
    """A metric whose value was decided beforehand."""

    def __init__(self, value: float):
        self.value = value

    def update(self, predictions, truth, infos) -> None:
        raise NotImplementedError

    def state(self) -> float:
        return self.value

    def merge(self, states) -> None:
        self.value = states[0]

    def compute(self) -> dict[str, float]:
        return {"AP": self.value}


def scored(value: float) -> dict[str, Scored]:
    return {"boxes": Scored(value)}
