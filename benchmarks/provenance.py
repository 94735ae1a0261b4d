"""What every file under `results/` says of its origin: command, commit, hardware, versions."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[1]
UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def commit() -> str:
    """Returns the commit of the checkout, marked where files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "detmtl", "configs")
    return git("rev-parse", "--short=12", "HEAD") + (" with changes" if changed else "")


def processor() -> str:
    """Returns the processor's name, its usable cores and its vector and matrix units."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{platform.processor()}, {os.cpu_count()} cores"
    name = next(
        (x.split(":")[1].strip() for x in text.splitlines() if x.startswith("model name")), "?"
    )
    flags = next((x.split(":")[1].split() for x in text.splitlines() if x.startswith("flags")), [])
    units = ", ".join(u for u in UNITS if u in flags)
    return f"{name}, {len(os.sched_getaffinity(0))} cores ({units})"


def provenance(command: str | None = None) -> str:
    """Returns the head of a results file in Markdown."""
    packages = ("torch", "torchvision", "timm", "albumentations", "pycocotools", "onnxruntime")
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return "\n".join(
        [
            f"- command: `{command or 'python ' + shlex.join(sys.argv)}`",
            f"- commit: {commit()}",
            f"- date: {datetime.date.today()}",
            f"- processor: {processor()}; GPU: {gpu}",
            f"- versions: Python {platform.python_version()}, {', '.join(versions)}",
        ]
    )
