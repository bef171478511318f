"""From DICOM to labels with nnU-Net's result folders: what nnU-Net's own predictor says of the same patient, read from NIfTI.

The references are those of scripts/make_nnunet_reference.py: `exact` with nnU-Net's sums in float32. As it is, it adds up scores in
float16, whose steps show where windows weigh little (`stock`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from mdcli.inference import isolation
from mdcli.inference.formats import Opening
from mdcli.inference.formats.nnunet import NnUNet, export_folds
from mdcli.registry import load_stage
from mdcli.testing import run_stage
from mdcli.workspace import Workspace
from tests.made_series import write_series
from tests.nnunet_cases import CASES, DATA, Case, series_facts, stored

pytest.importorskip("onnxruntime")
ROOT = Path(__file__).resolve().parents[1]
# A class this large in the reference is one that the parity is judged by (truth 17).
MIN_VOXELS = 1000


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(DATA / "reference.npz") as found:
        return dict(found)


def labels_of(case: Case, folder: Path, model: Path, **infer) -> np.ndarray:
    """Return the label map (k, j, i) that the chain makes of the case's patient."""
    write_series(folder / "dicom", stored(case), **series_facts(case))
    run_stage(load_stage("select-series"), folder / "ws", dicom=folder / "dicom")
    run_stage(load_stage("load-volume"), folder / "ws")
    run_stage(load_stage("infer"), folder / "ws", model=str(model), **infer)
    return np.asarray(Workspace(folder / "ws").read_volume("labels").array)


def assert_parity(ours: np.ndarray, theirs: np.ndarray, close: np.ndarray) -> None:
    """Hold labels to a reference, class by class."""
    assert ours.shape == theirs.shape
    for value in range(1, int(theirs.max()) + 1):
        mine, reference = ours == value, theirs == value
        assert reference.sum() > MIN_VOXELS
        assert 2 * (mine & reference).sum() >= 0.999 * (mine.sum() + reference.sum()), f"Dice of {value}"
        assert abs(int(mine.sum()) - int(reference.sum())) <= max(5, 0.001 * reference.sum()), f"volume of {value}"
    assert not ((ours != theirs) & ~close).any(), "a voxel differs whose scores are further apart than 1e-3"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_labels_are_those_of_nnunets_own_predictor(case, reference, tmp_path):
    ours = labels_of(case, tmp_path, DATA / case.name)
    assert_parity(ours, reference[f"{case.name}_exact"], reference[f"{case.name}_close"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_labels_differ_from_the_predictor_as_it_is_only_where_its_own_exact_sums_do(case, reference, tmp_path):
    ours, stock, exact = (
        labels_of(case, tmp_path, DATA / case.name),
        *(reference[f"{case.name}_{kind}"] for kind in ("stock", "exact")),
    )
    assert (((ours != stock) & (exact == stock)) <= reference[f"{case.name}_close"]).all()
    assert (stock != exact).mean() < 0.005


@pytest.mark.parametrize("orientation", ["RAS", "RPS", "PLS"])
def test_another_training_orientation_gives_other_labels(orientation, reference, tmp_path):
    case = CASES[1]
    model = shutil.copytree(DATA / case.name, tmp_path / case.folder)
    facts = model / "fold_0" / "network.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "orientation": None}))
    right = labels_of(case, tmp_path / "right", model, orientation=case.orientation)
    wrong = labels_of(case, tmp_path / "wrong", model, orientation=orientation)
    assert_parity(right, reference[f"{case.name}_exact"], reference[f"{case.name}_close"])
    assert (wrong != right).sum() > MIN_VOXELS


@pytest.mark.torch
@pytest.mark.slow
def test_checkpoints_of_the_predictor_give_its_labels_and_an_export_needs_no_torch(torch_python, tmp_path, monkeypatch):
    script = ROOT / "scripts" / "make_nnunet_reference.py"
    made = subprocess.run(
        [torch_python, str(script), "--into", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "No module named" in made.stderr:
        pytest.skip(f"{torch_python} has not all that the script needs: {made.stderr.splitlines()[-1]}")
    assert made.returncode == 0, made.stderr
    with np.load(tmp_path / "reference.npz") as found:
        live = dict(found)
    for case in CASES:
        folder = tmp_path / case.name / case.folder
        opening = Opening(cache=tmp_path / "cache", orientation=case.orientation)
        exported = tmp_path / "exported" / case.name
        with monkeypatch.context() as with_torch:
            with_torch.setattr(isolation, "_python", torch_python)
            export_folds(folder, exported, opening)
        with monkeypatch.context() as without_torch:
            without_torch.setattr(isolation, "_python", "/no/python")
            assert len(NnUNet().read(exported, Opening()).networks) == case.folds
            ours = labels_of(case, tmp_path / f"run-{case.name}", exported)
        assert_parity(ours, live[f"{case.name}_exact"], live[f"{case.name}_close"])
