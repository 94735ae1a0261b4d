"""Counts what the loader yields in every mode of the mix, and sets it beside the plan.

    python benchmarks/plans.py [--steps 200] [--batch-size 6]

Tiny pictures, two processes' parts of every batch taken one after the other. Pictures drawn, and how
often the most repeated one came, must be equal; shares of the loss weight to rounding.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from detmtl.data.augment import Augment
from detmtl.data.flat import Annotations, FileNames
from detmtl.data.loader import batches, drafts
from detmtl.data.mixture import MixSettings, Mixture
from detmtl.data.source import Source
from detmtl.structures.labels import Grade
from detmtl.structures.sample import Batch

SHARES = {"gold": 1, "rare": 1, "pool": 3}
BALANCE = {"classes": 0.9, "coverage": 1.0, "sources": 0.5}
CASES = {
    "gold": {},
    "silver": {},
    "concat": {},
    "weighted": {"weights": {"pool": 0.25}},
    "batch": {"shares": SHARES},
    "alternate": {"shares": SHARES},
    "curriculum": {"shares": SHARES, "curriculum": {"weight": [0, 2], "until": 0.6}},
    "finetune": {"shares": SHARES, "gold_from": 0.7, "weights": {"pool": [[0.2, 1], [0.6, 0.1]]}},
    "online": {"shares": SHARES, "burn_in": 0.3},
}
"""Mode -> its settings."""


def sources(folder: Path) -> list[Source]:
    """Returns three sources of tiny pictures: gold for the class `a`, few for `b`, and a silver pool."""
    return [
        _source(folder, "gold", 17, Grade.GOLD, [1, 0]),
        _source(folder, "rare", 3, Grade.GOLD, [0, 1]),
        _source(folder, "pool", 41, Grade.SILVER, [0.8, 0.6]),
    ]


def _source(folder: Path, name: str, count: int, grade: Grade, coverage: list[float]) -> Source:
    rng = np.random.default_rng(count)
    for i in range(count):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"{name}{i}.png"), pixels)
    image = np.flatnonzero(rng.random(count) < 0.6)
    chance = np.where(coverage, [0.85, 0.15], 0) / np.where(coverage, [0.85, 0.15], 0).sum()
    classes = rng.choice(2, len(image), p=chance)
    return Source(
        name=name,
        classes=("a", "b"),
        files=FileNames.of(folder, [f"{name}{i}.png" for i in range(count)]),
        ids=np.arange(count),
        sizes=np.full((count, 2), 32, dtype=np.int32),
        annotations=Annotations.of(
            count, image, np.tile([4.0, 4, 20, 20], (len(image), 1)), classes
        ),
        coverage=np.array([coverage], dtype=np.float32),
        grade=grade,
    )


def mixture(mode: str, balanced: bool, of: list[Source], batch_size: int, steps: int) -> Mixture:
    """Returns the mix of a case."""
    more = {"balance": BALANCE} if balanced else {}
    settings = MixSettings.model_validate({"mode": mode, **CASES[mode], **more})
    return Mixture(of, settings, batch_size, seed=3, steps=steps)


def counted(mix: Mixture, steps: int, world: int = 2) -> list[tuple[int, int, float]]:
    """Returns of each source the pictures that the loader yields, how often the most repeated one
    comes, and the share of the loss weight."""
    augment = Augment([{"HorizontalFlip": {"p": 0.5}}], 32, 32)
    num = len(mix.sources)
    seen: list[Counter[int]] = [Counter() for _ in range(num)]
    loss = np.zeros(num)
    ranks = [_yielded(mix, augment, steps, rank, world) for rank in range(world)]
    for parts in zip(*ranks, strict=True):
        weights = np.zeros(num)
        for part in parts:
            np.add.at(weights, part.groups.numpy(), part.weights.double().numpy())
            for group, info in zip(part.groups.tolist(), part.infos, strict=True):
                seen[group][info.id] += 1
        loss += weights / max(weights.sum(), 1e-12)
    return [
        (sum(of.values()), max(of.values(), default=0), share)
        for of, share in zip(seen, (loss / steps).tolist(), strict=True)
    ]


def _yielded(mix: Mixture, augment: Augment, steps: int, rank: int, world: int) -> Iterator[Batch]:
    if mix.mode == "online":  # before the teacher labels them: that changes no number
        for draft in drafts(mix, augment, ["pool"], 0, steps, rank=rank, world=world):
            yield Batch.of(draft.samples)
    else:
        yield from batches(mix, augment, 0, steps, rank=rank, world=world)


def main() -> None:
    """Prints the table; exit status 1 where plan and draws differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=6)
    args = parser.parse_args()
    from provenance import provenance  # not needed by the test that counts with this file

    print(f"# Plans of the mix against what the loader yields\n\n{provenance()}\n")
    print("| mode | source | planned | drawn | most, planned | most | loss, planned | loss | |")
    print("|---|---|---|---|---|---|---|---|---|")
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        of = sources(Path(folder))
        for mode in CASES:
            for balanced in (False, True):
                mix = mixture(mode, balanced, of, args.batch_size, args.steps)
                rows, drawn = mix.plan(), counted(mix, args.steps)
                for row, (count, most, loss) in zip(rows, drawn, strict=True):
                    equal = row.drawn == count and row.most == most
                    equal &= abs(row.loss_share - loss) < 1e-6
                    wrong += not equal
                    name = mode + (", balanced" if balanced else "")
                    print(
                        f"| {name} | {row.source} | {row.drawn} | {count} | {row.most} | {most} | "
                        f"{row.loss_share:.4f} | {loss:.4f} | {'equal' if equal else 'DIFFERS'} |"
                    )
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
