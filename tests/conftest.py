"""Fixtures and the environment that all tests share."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    """Small tensors gain nothing from threads, and parallel test workers share the cores."""
    torch.set_num_threads(1)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by the name of each method that reads a tensor's values; on a GPU each waits for the device."""
    names: list[str] = []

    def told(name: str):
        real = getattr(torch.Tensor, name)

        def read(tensor: torch.Tensor, *given: object, **named: object):
            names.append(name)
            return real(tensor, *given, **named)

        return read

    for name in (
        "item", "tolist", "cpu", "numpy", "new_tensor",
        "__bool__", "__float__", "__int__", "__index__", "__array__",
    ):  # fmt: skip
        monkeypatch.setattr(torch.Tensor, name, told(name))
    return names


@pytest.fixture
def taken() -> Callable[[Path], AbstractContextManager[int]]:
    """Has another process work in a folder, alone; gives its number."""
    code = (
        "import sys; from pathlib import Path; from detmtl.structures.alone import alone_in\n"
        "with alone_in(Path(sys.argv[1]), '', ''): print(flush=True); sys.stdin.read()"
    )

    @contextmanager
    def other(folder: Path) -> Iterator[int]:
        words = [sys.executable, "-c", code, str(folder)]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, stdin=pipe, stdout=pipe) as process:
            assert process.stdout is not None
            assert process.stdout.readline()
            yield process.pid

    return other


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real pictures (`data/`) and real pretrained models (`weights/`)."""
    folder = Path(os.environ.get("DETMTL_REAL_DATA", REPOSITORY.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(
            "real data is not there: set DETMTL_REAL_DATA to the folder that has data/ and weights/"
        )
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that download run only where DETMTL_NETWORK=1 says that there is a network."""
    if os.environ.get("DETMTL_NETWORK") != "1":
        skip = pytest.mark.skip(reason="downloads; set DETMTL_NETWORK=1 to run it")
        for item in items:
            if item.get_closest_marker("network"):
                item.add_marker(skip)
