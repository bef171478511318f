"""Child workspaces by several names (`--as`) live side by side."""

from __future__ import annotations

import numpy as np

from mdcli.stages import load_volume
from mdcli.testing import ListReporter, run_stage
from mdcli.workspace import Workspace
from tests.made_series import workspace, write_series


def gapped(tmp_path):
    """Return a workspace whose series has a run of three and a run of two slices."""
    where = [[-10.0, 20.0, 100.0 + 3 * k] for k in (0, 1, 2, 5, 6)]
    values = np.arange(5 * 6 * 4).reshape(5, 6, 4).astype("u2")
    return workspace(tmp_path / "ws", write_series(tmp_path / "dicom", values, ImagePositionPatient=where))


def test_what_another_name_stands_for_leaves_the_children_alone(tmp_path):
    ws = gapped(tmp_path)
    run_stage(load_volume.STAGE, ws, on_gap="split")
    reporter = ListReporter()
    run_stage(load_volume.STAGE, ws, reporter=reporter, as_name="other", on_gap="resample")
    assert "child-gone" not in reporter.codes()
    assert [child.path.name for child in Workspace(ws).children()] == ["run_1", "run_2"]
    assert run_stage(load_volume.STAGE, ws, on_gap="split").up_to_date
    assert run_stage(load_volume.STAGE, ws, as_name="other", on_gap="resample").up_to_date


def test_children_that_are_no_longer_made_leave_no_empty_folder(tmp_path):
    ws = gapped(tmp_path)
    run_stage(load_volume.STAGE, ws, on_gap="split")
    (ws / "run_2" / "notes.txt").write_text("mine")
    run_stage(load_volume.STAGE, ws, on_gap="resample")
    assert not (ws / "run_1").exists()
    assert [p.name for p in (ws / "run_2").iterdir()] == ["notes.txt"]
