"""What every report says of its origin: command, commit, hardware, versions."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch

from detmtl import __version__

REPOSITORY = Path(__file__).resolve().parents[2]
UNITS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def commit() -> str:
    """Returns the commit of the checkout, marked where files differ from it; the version where the
    package does not lie in a checkout."""

    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True
            )
        except OSError:
            return ""
        return done.stdout.strip()

    head = git("rev-parse", "--short=12", "HEAD") if (REPOSITORY / ".git").exists() else ""
    if not head:
        return f"version {__version__}"
    changed = git("status", "--porcelain", "--untracked-files=no", "--", "detmtl", "configs")
    return head + (" with changes" if changed else "")


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


def origin() -> dict[str, str]:
    """Returns by which code, on which machine and with which packages this process works, by name."""
    packages = ("torch", "torchvision", "timm", "albumentations", "pycocotools", "onnxruntime")
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "commit": commit(),
        "hardware": f"{processor()}; GPU: {gpu}",
        "versions": f"Python {platform.python_version()}, {', '.join(versions)}",
    }


def facts(command: str | None = None) -> dict[str, str]:
    """Returns what there is to say, by name.

    Args:
        command: None: this process's own.
    """
    own = origin()
    return {
        "command": command or "python " + shlex.join(sys.argv),
        "commit": own["commit"],
        "date": str(datetime.date.today()),
        "hardware": own["hardware"],
        "versions": own["versions"],
    }


def provenance(command: str | None = None) -> str:
    """Returns the head of a results file in Markdown."""
    told = facts(command)
    told["command"] = f"`{told['command']}`"
    return "\n".join(f"- {name}: {value}" for name, value in told.items())
