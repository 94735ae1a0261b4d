"""The programs of docs/deploy.md, run as their readers run them: beside the file, without torch."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"


def programs() -> list[str]:
    """Returns the code of each program for ONNX, in order; the later go on where the first ends."""
    return re.findall(r"<!-- onnx.*?-->\s*```python\n(.*?)```", PAGE.read_text(), re.S)


def printed(code: str, model: Path, folder: Path) -> list[str]:
    """Returns the lines that a program prints in a folder, in which its picture.jpg lies and a copy of the
    model is put."""
    shutil.copy(model, folder / "model.onnx")
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.modules['torch'] = None\n{code}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
