"""What many tests need: real data where it lies beside the checkout, and judges that others wrote."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Keep the user's own settings and cache out of the tests."""
    os.environ["NO_COLOR"] = "1"
    # Where torch and the real servers are (MD_TEST_): what tests may be told of the machine.
    kept = ("MD_TORCH_PYTHON", "MD_TEST_")
    for name in [name for name in os.environ if name.startswith("MD_") and not name.startswith(kept)]:
        del os.environ[name]
    os.environ["MD_INDEX"] = "off"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder of real DICOM series beside the checkout, or skip."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("../shared/data is not there")
    return folder


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Return the folder with judges and makers beside the checkout, or skip."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip("../shared is not there")
    return folder


@pytest.fixture(scope="session")
def judge() -> Callable[[str], str]:
    """Return a function that finds a judge's executable, or skips the test and says which one is missing."""

    def find(name: str) -> str:
        beside = ROOT / ".judges" / "bin" / name
        found = str(beside) if beside.exists() else shutil.which(name)
        if found is None:
            pytest.skip(f"the judge {name} is not installed")
        return found

    return find


@pytest.fixture(scope="session")
def torch_python() -> str:
    """Return an interpreter that has torch, MONAI and nnU-Net's architectures, or skip."""
    python = os.environ.get("MD_TORCH_PYTHON") or (sys.executable if find_spec("torch") else None)
    if python is None:
        pytest.skip("torch is not installed, and MD_TORCH_PYTHON names no interpreter that has it")
    return python
