"""What many tests need: real data where it lies beside the checkout, and judges that others wrote."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Keep the user's own settings and cache out of the tests."""
    os.environ["NO_COLOR"] = "1"
    for name in [name for name in os.environ if name.startswith("MD_")]:
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
