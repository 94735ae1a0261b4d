"""COCO's 12 numbers of a val2017-sized set: pycocotools beside what detmtl computes them with.

    python benchmarks/scoring.py --results benchmarks/results/NAME.md

Truth and detections are synthetic: 5,000 pictures, 36,781 boxes of 80 classes and 100 detections a
picture, of which about one in twelve is on a box. pycocotools is called as its users do, from lists of
dicts; detmtl from the arrays that its metric holds, with the mean F1 and the AP of each class on top.
Seconds are those of the processor: both run in one thread.
"""

import argparse
import io
import time
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
from abab import Row, in_turn, ms, report, row

from detmtl.metrics.coco import NUMBERS, Backend, Boxes, annotations_of, score

CLASSES = 80


def synthetic(pictures: int, boxes: int, detections: int, seed: int = 0) -> tuple[Boxes, Boxes]:
    """Returns truth, and detections: noisy copies of about every box, the rest false alarms."""
    rng = np.random.default_rng(seed)
    # as in COCO: some pictures have many boxes, some classes most of them
    share = rng.gamma(0.8, size=pictures)
    image = np.sort(rng.choice(pictures, boxes, p=share / share.sum()))
    often = 1 / (np.arange(CLASSES) + 3.0)
    classes = rng.choice(CLASSES, boxes, p=often / often.sum())
    side = np.exp(rng.normal(4, 1, (boxes, 2))).clip(4, 400)
    corner = rng.uniform(0, 1, (boxes, 2)) * np.maximum(640 - side, 1)
    truth = np.concatenate([corner, side], axis=1).round(2)
    crowd = rng.random(boxes) < 0.01
    n = pictures * detections
    found_image = np.repeat(np.arange(pictures), detections)
    found_side = np.exp(rng.normal(4, 1, (n, 2))).clip(4, 400)
    found = np.concatenate([rng.uniform(0, 400, (n, 2)), found_side], axis=1)
    found_classes = rng.choice(CLASSES, n, p=often / often.sum())
    scores = rng.beta(0.5, 4, n)
    nth = np.arange(boxes) - np.searchsorted(image, image)
    hit = nth < detections
    place = image[hit] * detections + nth[hit]
    found[place] = truth[hit] * (1 + rng.normal(0, 0.08, (hit.sum(), 4)))
    found_classes[place] = np.where(
        rng.random(hit.sum()) < 0.85, classes[hit], found_classes[place]
    )
    scores[place] = rng.beta(3, 2, hit.sum())
    # COCO's results files have three digits, so that ties are common
    found, scores = found.clip(0.1).astype(np.float32).astype(np.float64), scores.round(3)
    return (
        Boxes(image, classes + 1, truth, truth[:, 2] * truth[:, 3] * 0.6, np.ones(boxes), crowd),
        Boxes(
            found_image,
            found_classes + 1,
            found,
            found[:, 2] * found[:, 3],
            scores,
            np.zeros(n, bool),
        ),
    )


def pycocotools(truth: list[dict], detections: list[dict], pictures: int) -> list[float]:
    """Returns the 12 numbers as pycocotools' own users get them."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i} for i in range(pictures)],
            "categories": [{"id": c + 1, "name": str(c)} for c in range(CLASSES)],
            "annotations": truth,
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(detections), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats)


def main() -> None:
    """Times the ways in turn, compares their numbers, writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--boxes", type=int, default=36_781)
    parser.add_argument("--detections", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    truth, found = synthetic(args.pictures, args.boxes, args.detections)
    names = {c + 1: str(c) for c in range(CLASSES)}
    ids = range(args.pictures)
    keys = ("image_id", "category_id", "bbox", "score")
    results = [{k: a[k] for k in keys} for a in annotations_of(found)]
    listed = annotations_of(truth)
    numbers: dict[str, list[float]] = {}
    few = synthetic(10, 50, 10)
    score(*few, range(10), names)  # imports

    def ours(backend: Backend) -> None:
        all_numbers = score(truth, found, ids, names, backend)
        numbers[backend] = [all_numbers[name] for name in NUMBERS]

    def peer() -> None:
        copies = [dict(row) for row in results]  # it adds to them
        numbers["peer"] = pycocotools(listed, copies, args.pictures)

    # its copies are made beforehand in effect: less than 1 % of its time
    ways = {"pycocotools": peer, "detmtl": lambda: ours("auto")}
    start = time.perf_counter()
    seconds = in_turn(ways, args.rounds, warmup=0, clock=time.process_time)
    ours("pycocotools")
    same = numbers["peer"] == numbers["auto"] == numbers["pycocotools"]
    report(
        "COCO's numbers of a val2017-sized set",
        f"{args.pictures} pictures, {args.boxes} boxes, {len(results)} detections, {CLASSES} classes; "
        f"AP {numbers['auto'][0]:.4f}; {args.rounds} rounds in turn, {time.perf_counter() - start:.0f} s "
        "in all.",
        [
            row("scoring", seconds, "pycocotools", "detmtl", 7),
            Row("the 12 numbers, bit for bit", "", "same" if same else "DIFFER", float(same), 1),
        ],
        args.results,
    )
    print({name: [ms([s]) for s in values] for name, values in seconds.items()})


if __name__ == "__main__":
    main()
