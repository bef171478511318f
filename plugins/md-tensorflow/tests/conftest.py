"""Networks of the tests, made once by a Python that has TensorFlow; without one, the tests that need them skip and say so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import yaml
from md_tensorflow.convert import PYTHON_VARIABLE

CANARY = "canary"


@pytest.fixture(scope="session")
def python() -> str:
    """Return the Python that has TensorFlow, or skip."""
    named = os.environ.get(PYTHON_VARIABLE)
    if named is None and (find_spec("tensorflow") is None or find_spec("tf2onnx") is None):
        pytest.skip(f"there is no tensorflow here, and {PYTHON_VARIABLE} names no Python that has it")
    return named or sys.executable


@pytest.fixture(scope="session")
def networks(python: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with every network of `make_networks.py`."""
    onnx = pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("networks")
    import mdcli

    model = onnx.load(Path(mdcli.__file__).with_name("models") / "landmarks" / "network.onnx")
    values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    (background,) = [node for node in model.graph.node if node.op_type == "ConstantOfShape"]
    threshold = onnx.numpy_helper.to_array(background.attribute[0].t)[0]
    weights = {name: values[name] for name in ("kernels", "ball", "voxels", "flat")}
    np.savez(folder / "landmarks.npz", threshold=threshold, **weights)
    script = Path(__file__).with_name("make_networks.py")
    done = subprocess.run(
        [python, str(script), str(folder), str(folder / "landmarks.npz")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (folder / CANARY).exists()
    return folder


@pytest.fixture
def no_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[object]]:
    """Name a Python that leaves a mark wherever it is started, and return a function that gives the marks."""
    mark = tmp_path / "started"
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\necho started >> {json.dumps(str(mark))}\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv(PYTHON_VARIABLE, str(fake))
    return lambda: mark.read_text().splitlines() if mark.exists() else []


@dataclass(frozen=True)
class Cards:
    """Writes cards."""

    folder: Path

    def write(self, network: str, /, **changes: object) -> Path:
        """Write `model.yaml` for a network of two channels and three classes, with parts changed, and return its folder."""
        code = {"value": "T", "scheme": "99TEST", "meaning": "test"}
        said = {
            "schema": "md.model/1",
            "name": "tiny",
            "version": "1.0.0",
            "network": network,
            "task": "segmentation",
            "inputs": [
                {"role": role, "axes": ["x", "y", "z", "C"], "orientation": "RAS", "spacing": [1, 2, 3], "unit": "HU"}
                for role in ("volume", "volume-t2")
            ],
            "output": {"axes": ["x", "y", "z", "C"], "activation": "softmax", "inversion": "scores"},
            "window": {"size": [16, 24, 32], "overlap": 0.25, "blending": "constant"},
            "labels": [{"value": n, "name": f"part{n}", "category": code, "type": code} for n in (1, 2)],
            "empty": "valid",
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "model.yaml").write_text(yaml.safe_dump(said | changes, sort_keys=False))
        return self.folder


@pytest.fixture
def cards(tmp_path: Path) -> Cards:
    """Return a writer of cards into a folder."""
    return Cards(tmp_path / "model")
