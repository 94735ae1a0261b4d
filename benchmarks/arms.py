"""Runs one config in several arms over the same seeds and writes one table.

    python benchmarks/arms.py --config coco128_electrum.yaml --seeds 5 --out runs/coco128 \
        --arm gold mix.mode=gold --arm electrum --baseline gold --results benchmarks/results/NAME.md

An arm is a name and the settings that it changes; `--set` changes a setting of all arms. Arms of one
seed share the seed and nothing else; a run that is finished in `--out` is not repeated.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from provenance import REPOSITORY, provenance
from scipy.stats import t as student

METRICS = ("AP", "AP50", "F1@.5")


def main() -> None:
    """Runs what is not there yet and writes the table."""
    args = _arguments()
    arms = {a[0]: a[1:] for a in args.arm}
    jobs = [(arm, seed) for seed in args.seeds for arm in arms]
    with ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(lambda job: _run(args, job[0], arms[job[0]], job[1]), jobs))
    scores = {arm: [_scores(args, arm, seed) for seed in args.seeds] for arm in arms}
    text = _report(args, arms, scores)
    print(text)
    if args.results:
        args.results.write_text(text)


def _run(args: argparse.Namespace, arm: str, changes: Sequence[str], seed: int) -> None:
    out = args.out / arm / str(seed)
    if (out / "seconds.json").exists():
        return
    overrides = [*args.set, *changes, f"seed={seed}"]
    command = [sys.executable, "tools/train.py", "--config", args.config, "--out", str(out)]
    command += [word for change in overrides for word in ("--set", change)]
    environment = os.environ | ({"OMP_NUM_THREADS": str(args.threads)} if args.threads else {})
    out.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with (out / "log.txt").open("a") as log:
        status = subprocess.run(
            command, cwd=REPOSITORY, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    if status.returncode:
        raise SystemExit(f"{shlex.join(command)} ended with {status.returncode}; see {log.name}")
    (out / "seconds.json").write_text(json.dumps(time.monotonic() - start))
    print(f"{arm} seed {seed}: {_scores(args, arm, seed).get(f'{args.task}/AP')}", flush=True)


def _scores(args: argparse.Namespace, arm: str, seed: int) -> dict[str, float]:
    return json.loads((args.out / arm / str(seed) / "metrics.json").read_text())


def _report(args: argparse.Namespace, arms: dict, scores: dict[str, list[dict]]) -> str:
    seconds = {
        arm: [
            json.loads((args.out / arm / str(s) / "seconds.json").read_text()) for s in args.seeds
        ]
        for arm in arms
    }
    lines = [f"# {args.title}", "", provenance(), ""]
    lines += [f"{args.note}", ""] if args.note else []
    lines += ["| arm | changes | " + " | ".join(METRICS) + " | seconds |"]
    lines += ["|---|---|" + "---|" * (len(METRICS) + 1)]
    for arm, changes in arms.items():
        cells = [_mean(_values(scores[arm], args.task, m)) for m in METRICS]
        words = ", ".join(f"`{c}`" for c in changes) or "none"
        lines.append(f"| {arm} | {words} | {' | '.join(cells)} | {np.mean(seconds[arm]):.0f} |")
    if "teacher" in args.baseline:
        cells = [_mean(_values(_baseline(args, scores, "teacher"), args.task, m)) for m in METRICS]
        lines.append(f"| teacher | the run's own, gold alone | {' | '.join(cells)} | |")
    lines += [
        "",
        "Mean over seeds with the 95 % interval of the mean (Student's t over seeds).",
        "",
    ]
    for baseline in args.baseline:
        others = [arm for arm in arms if arm != baseline]
        lines += [f"Paired difference to `{baseline}`, per seed:", ""]
        lines += ["| arm | metric | mean | " + " | ".join(f"seed {s}" for s in args.seeds) + " |"]
        lines += ["|---|---|---|" + "---|" * len(args.seeds)]
        base = _baseline(args, scores, baseline)
        for arm in others:
            for m in METRICS:
                d = _values(scores[arm], args.task, m) - _values(base, args.task, m)
                lines.append(
                    f"| {arm} | {m} | {_mean(d, sign='+')} | {' | '.join(f'{v:+.3f}' for v in d)} |"
                )
        lines.append("")
    return "\n".join(lines)


def _baseline(args: argparse.Namespace, scores: dict, name: str) -> list[dict]:
    if name != "teacher":
        return scores[name]
    arm = next(iter(scores))
    return [
        {k.removeprefix("teacher/"): v for k, v in s.items() if k.startswith("teacher/")}
        for s in scores[arm]
    ]


def _values(scores: list[dict], task: str, metric: str) -> np.ndarray:
    return np.array([s[f"{task}/{metric}"] for s in scores], dtype=float)


def _mean(values: np.ndarray, sign: str = "") -> str:
    if len(values) < 2:
        return f"{values.mean():{sign}.3f}"
    half = student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():{sign}.3f} ± {half:.3f}"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", required=True)
    parser.add_argument("--arm", action="append", nargs="+", required=True, metavar="NAME CHANGE")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--seeds", type=_seeds, required=True, help="a count, or numbers: 3,4,5")
    parser.add_argument("--baseline", action="append", default=[])
    parser.add_argument("--task", default="boxes")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once")
    parser.add_argument("--threads", type=int, help="of each run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--title", default="Arms")
    parser.add_argument("--note", default="")
    return parser.parse_args()


def _seeds(text: str) -> list[int]:
    return [int(s) for s in text.split(",")] if "," in text else list(range(int(text)))


if __name__ == "__main__":
    main()
