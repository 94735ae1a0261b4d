"""A small network of three tasks, and batches with all or some of their labels."""

import torch

from detmtl.balancing.fixed import FixedSettings
from detmtl.engine.distributed import Process
from detmtl.engine.optim import OptimSettings
from detmtl.engine.state import State
from detmtl.engine.trainer import TrainSettings
from detmtl.models.backbone import BackboneSettings
from detmtl.models.fpn import FPNSettings
from detmtl.structures.labels import BoxLabels, MapLabels, TagLabels
from detmtl.structures.sample import Batch, ImageInfo, Sample
from detmtl.tasks.detection import DetectionConfig
from detmtl.tasks.multitask import ModelSettings, MultiTask, build_model
from detmtl.tasks.semantic import SemanticConfig
from detmtl.tasks.tags import TagsConfig

CPU = torch.device("cpu")
NAMES = ["a", "b"]
KEYS = ("boxes", "maps", "tags")
MODEL = ModelSettings(
    backbone=BackboneSettings(name="mobilenetv2_035"), fpn=FPNSettings(channels=8, levels=3)
)
TASKS = {
    "boxes": DetectionConfig.model_validate({"head": {"depth": 1}}),
    "map": SemanticConfig(),
    "tags": TagsConfig(),
}


def model_of(tasks=TASKS, seed: int = 0) -> MultiTask:
    torch.manual_seed(seed)
    return build_model(MODEL, tasks, NAMES, other_names=dict.fromkeys(("maps", "tags"), NAMES))


def picture(number: int, keys=KEYS, width: int = 64) -> Sample:
    """Returns a picture of noise with one box, a map and tags, as far as `keys` name them."""
    g = torch.Generator().manual_seed(number)
    corner = torch.rand(1, 2, generator=g) * 20
    labels = {
        "boxes": BoxLabels.of(torch.cat([corner, corner + 30], 1), torch.tensor([number % 2]), 2),
        "maps": MapLabels(
            torch.randint(0, 2, (64, width), generator=g, dtype=torch.uint8), None, torch.ones(2)
        ),
        "tags": TagLabels((torch.rand(2, generator=g) > 0.5).float(), torch.ones(2)),
    }
    image = torch.randint(0, 256, (3, 64, width), generator=g, dtype=torch.uint8)
    return Sample(
        image,
        {k: labels[k] for k in keys},  # type: ignore[misc]
        ImageInfo(number, f"{number}.jpg", 64, width, "noise"),
    )


def batch_of(number: int, keys=KEYS, size: int = 2, width: int = 64) -> Batch:
    return Batch.of([picture(number * size + i, keys, width) for i in range(size)])


def prepared(settings: TrainSettings, weights: dict[str, float] | None = None) -> State:
    balancer = FixedSettings(weights=weights or {}).build(list(TASKS))
    optim = OptimSettings(warmup=0)
    return settings.prepare(model_of(), balancer, optim, Process(0, 1, CPU), {}, NAMES)


def terms_of(model: MultiTask, batch: Batch):
    outputs = model(batch.images)
    return {n: task.loss(outputs[n], batch) for n, task in model.tasks.items()}  # type: ignore[operator]
