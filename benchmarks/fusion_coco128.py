"""Two teachers alone, and fused after calibration, on the validation pictures of coco128.

    python benchmarks/fusion_coco128.py --data FOLDER --out runs/fusion_coco128 \
        --results benchmarks/results/NAME.md

FOLDER holds data/coco128 and weights/ (YOLOX-Nano and FastestDet as ONNX). Calibration is fitted to
the gold of the training pictures, as a user would do it; AP, AP50 and expected calibration error are
the validation pictures'. YOLOX-Nano was itself trained on the training pictures.
"""

import argparse
from pathlib import Path
from typing import cast

import numpy as np
import torch
from provenance import provenance

from detmtl.data.coco import CocoSource
from detmtl.data.source import Source
from detmtl.metrics.coco import CocoMetric
from detmtl.silver.audit import Audit, audit
from detmtl.silver.calibration import CalibrationSettings, fit_calibration
from detmtl.silver.ensemble import Ensemble
from detmtl.silver.fusion import FusionSettings
from detmtl.silver.pictures import as_digests
from detmtl.silver.store import Store
from detmtl.structures.classes import LabelSpace
from detmtl.structures.labels import BoxLabels
from detmtl.teachers.annotate import annotate
from detmtl.teachers.from_onnx import OnnxTeacherSettings

TEACHERS = {
    "yolox_nano": ("yolox_nano_coco/yolox_nano.onnx", "yolox"),
    "fastestdet": ("fastestdet_coco/FastestDet.onnx", "fastestdet"),
}
ALIASES = {
    "motorcycle": "motorbike",
    "airplane": "aeroplane",
    "couch": "sofa",
    "potted plant": "pottedplant",
    "dining table": "diningtable",
    "tv": "tvmonitor",
}
"""COCO's name -> the teachers'."""
RESAMPLES = 200


def main() -> None:
    """Labels the pictures where that is not done, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    space = _space(args.data)
    gold = {split: _gold(args.data, split, space, args.out) for split in ("train", "val")}
    stores = {split: _stores(args.data, args.out, gold[split]) for split in gold}
    audits = {split: [audit(s, gold[split], space) for s in stores[split]] for split in gold}

    rows: list[tuple[str, CocoMetric, float, float]] = []
    for t, name in enumerate(TEACHERS):
        alone = Ensemble.of([stores["val"][t]], space)
        metric = _metric(alone, gold["val"], args.out)
        rows.append((f"{name} alone", metric, *_errors(audits["train"][t], audits["val"][t])))
    kinds: dict[str, tuple[FusionSettings, str]] = {
        f"weighted, score {score}": (FusionSettings(score=score), "auto")
        for score in ("average", "teachers", "absent", "maximum")
    }
    kinds["nms"] = FusionSettings(method="nms"), "auto"
    kinds["soft_nms"] = FusionSettings(method="soft_nms"), "auto"
    kinds["weighted, score average, raw scores"] = FusionSettings(), "none"
    for name, (fusion, method) in kinds.items():
        how = CalibrationSettings.model_validate({"method": method})
        fused = {
            split: Ensemble.of(stores[split], space, 0.6, fusion, how, audits["train"])
            for split in gold
        }
        judged = {split: fused[split].audit(gold[split]) for split in gold}
        metric = _metric(fused["val"], gold["val"], args.out)
        rows.append((f"fused: {name}", metric, *_errors(judged["train"], judged["val"])))
    text = _report(rows, audits["train"])
    print(text)
    if args.results:
        args.results.write_text(text)


def _space(data: Path) -> LabelSpace:
    names = (data / "weights/yolox_nano_coco/coco.names").read_text().split("\n")
    theirs = {v: k for k, v in ALIASES.items()}
    coco = [theirs.get(n.strip(), n.strip()) for n in names if n.strip()]
    return LabelSpace.of({n: [n, ALIASES[n]] if n in ALIASES else [n] for n in coco})


def _gold(data: Path, split: str, space: LabelSpace, out: Path) -> Source:
    settings = CocoSource(
        kind="coco", images=f"images/{split}", annotations=f"annotations/instances_{split}.json"
    )
    return settings.load(split, data / "data/coco128", space, out / "cache")


def _stores(data: Path, out: Path, source: Source) -> list[Store]:
    stores = []
    for name, (path, kind) in TEACHERS.items():
        settings = OnnxTeacherSettings.model_validate(
            {
                "name": name,
                "path": path,
                "classes": f"{Path(path).parent}/coco.names",
                "adapter": {"kind": kind},
            }
        )
        teacher = settings.load(data / "weights")
        stores.append(annotate(teacher, [source], out / f"{name}_{source.name}"))
    return stores


def _metric(ensemble: Ensemble, gold: Source, out: Path) -> CocoMetric:
    metric = CocoMetric(gold.classes)
    nothing = np.zeros(len(gold.classes), dtype=np.float32)
    gathered = ensemble.gather(as_digests(gold.hashes()), out, nothing)
    for block, rows in gathered.blocks():
        for i in block:
            own = rows[rows["picture"] == i]
            found = BoxLabels.of(
                torch.from_numpy(own["box"].copy()),
                torch.from_numpy(own["class"].copy()),
                len(gold.classes),
                scores=torch.from_numpy(own["score"].copy()),
            )
            truth = cast(BoxLabels, gold.labels(i)["boxes"])
            metric.update([found], [truth], [gold.info(i)])
    gathered.spill.close()
    return metric


def _errors(fitted_to: Audit, judged: Audit) -> tuple[float, float]:
    """Returns the calibration error of the judged boxes' scores, and of their probabilities."""
    scores, hits = np.concatenate(judged.scores), np.concatenate(judged.hits)
    classes = np.repeat(np.arange(len(judged.scores)), [len(s) for s in judged.scores])
    calibration = fit_calibration(fitted_to)
    return (
        _error(scores, hits),
        _error(calibration(scores, classes), hits),
    )


def _error(probabilities: np.ndarray, hits: np.ndarray, bins: int = 15) -> float:
    """Returns the expected calibration error of probabilities (N,) as Guo et al. 2017 (arXiv 1706.04599,
    equation 3) bin it: one that lies between two bins is the lower one's."""
    probabilities = np.asarray(probabilities, dtype=np.float64)
    bin_of = np.clip(np.ceil(probabilities * bins).astype(np.int64) - 1, 0, bins - 1)
    gap = np.bincount(bin_of, probabilities - np.asarray(hits, dtype=np.float64), minlength=bins)
    return float(np.abs(gap).sum() / len(probabilities))


def _gains(metric: CocoMetric, baseline: CocoMetric) -> tuple[float, float]:
    """Returns the 95 % interval of the difference in AP, by a paired bootstrap over pictures."""
    rng, differences = np.random.default_rng(0), []
    pictures = [m.state() for m in (metric, baseline)]
    keys = sorted(pictures[0])
    for _ in range(RESAMPLES):
        drawn = rng.integers(0, len(keys), len(keys))
        values = []
        for state in pictures:
            again = CocoMetric(metric.class_names)
            again.merge([{("drawn", k): state[keys[i]] for k, i in enumerate(drawn)}])
            values.append(again.compute()["AP"])
        differences.append(values[0] - values[1])
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def _report(rows: list[tuple[str, CocoMetric, float, float]], audits: list[Audit]) -> str:
    baseline = rows[0][1]
    best = baseline.compute()["AP"]
    judged = ", ".join(
        f"{sum(map(len, a.scores))} boxes of {name} ({sum(int(h.sum()) for h in a.hits)} right)"
        for name, a in zip(TEACHERS, audits, strict=True)
    )
    lines = [
        "# Labels of YOLOX-Nano and FastestDet, alone and fused, on coco128 val",
        "",
        provenance(),
        "",
        "128 validation pictures, COCO's 80 classes. Calibration (method `auto`) was fitted to the 128",
        f"training pictures' gold, which judges {judged}. ECE: expected calibration error, 15 bins;",
        "'score' is a teacher's raw score or the fused one, 'probability' the same after calibration.",
        "Boxes differ between rows, and a source of many sure misses has a low error for that alone.",
        f"Gain: AP over YOLOX-Nano alone, with its 95 % interval ({RESAMPLES} paired bootstraps).",
        "",
        "| labels | AP | AP50 | ECE, score | ECE, probability | gain in AP |",
        "|---|---|---|---|---|---|",
    ]
    for i, (name, metric, before, after) in enumerate(rows):
        numbers = metric.compute()
        gain = "-"
        if i:
            low, high = _gains(metric, baseline)
            gain = f"{numbers['AP'] - best:+.4f} [{low:+.4f}, {high:+.4f}]"
        lines.append(
            f"| {name} | {numbers['AP']:.4f} | {numbers['AP50']:.4f} | {before:.4f} | {after:.4f} | {gain} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
