"""What a card asks for after the labels are made, held to MONAI's stored outputs (scripts/make_after_reference.py)."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from mdcli.inference.after import apply_after
from mdcli.inference.steps_after import FillHoles, KeepLargest, MapLabels, RemoveSmall

ROOT = Path(__file__).resolve().parents[2]


def reference(name="after.npz"):
    """Return MONAI's arrays by name."""
    return dict(np.load(Path(__file__).parent / "data" / name))


def cases():
    """Give name of the input, step and name of what MONAI made of it."""
    for name, most in (("volume", 3), ("slice", 2)):
        for c in range(1, most + 1):
            yield name, KeepLargest(connectivity=c), f"{name}_largest_{c}_each"
            yield name, KeepLargest((1, 2), together=True, connectivity=c), f"{name}_largest_{c}_together"
            yield name, RemoveSmall(12.0, connectivity=c), f"{name}_small_{c}"
            yield name, FillHoles(connectivity=c), f"{name}_filled_{c}"
        yield name, FillHoles(per_slice=True), f"{name}_filled_slices"


def check(found, name, step, expected):
    """Hold one step to one array of MONAI's."""
    labels = found[name].copy()
    if isinstance(step, FillHoles):
        labels = (labels > 0).astype(np.uint8)
    before = labels.copy()
    done = apply_after(labels, [step], np.diag([*found["spacing_kji"][::-1], 1.0]))
    assert done.dtype == np.uint8
    np.testing.assert_array_equal(done, found[expected])
    return int((before != found[expected]).sum())


@pytest.mark.parametrize(("name", "step", "expected"), [pytest.param(*case, id=case[2]) for case in cases()])
def test_a_step_does_what_monai_does(name, step, expected):
    check(reference(), name, step, expected)


def test_every_step_of_the_reference_changes_something():
    found = reference()
    changed = {expected: check(found, name, step, expected) for name, step, expected in cases()}
    # A way out that may step over corners leads out of nearly everything here.
    assert {expected for expected, voxels in changed.items() if not voxels} <= {"volume_filled_3"}


@pytest.mark.torch
@pytest.mark.slow
def test_monai_still_does_what_is_stored(tmp_path, torch_python):
    script = ROOT / "scripts" / "make_after_reference.py"
    subprocess.run([torch_python, script, tmp_path / "after.npz"], check=True, capture_output=True)
    stored, now = reference(), dict(np.load(tmp_path / "after.npz"))
    assert stored.keys() == now.keys()
    for name, array in stored.items():
        np.testing.assert_array_equal(array, now[name], err_msg=name)


def test_steps_are_done_in_their_order():
    labels = np.zeros((1, 5, 9), np.uint8)
    labels[0, 1:4, 1:4] = 1
    labels[0, 2, 2] = 0
    labels[0, 2, 6] = 1
    steps = [FillHoles(), RemoveSmall(5.0), MapLabels({1: 4})]
    told = []
    done = apply_after(labels, steps, np.diag([1.0, 1.0, 2.0, 1.0]), told.append)
    assert told == [1, 1, 1]
    assert np.argwhere(done).tolist() == [[0, j, i] for j in (1, 2, 3) for i in (1, 2, 3)]
    assert set(done.ravel().tolist()) == {0, 4}


def test_a_sheared_voxel_has_the_volume_of_its_determinant():
    affine = np.eye(4)
    # Its columns are 1, 1 and about 2.24 mm long; it holds 2 mm3.
    affine[:3, 2] = [0, 1, 2]
    labels = np.zeros((1, 3, 3), np.uint8)
    labels[0, 1, 1] = 1
    assert apply_after(labels.copy(), [RemoveSmall(2.0)], affine).any()
    assert not apply_after(labels.copy(), [RemoveSmall(2.1)], affine).any()


def test_a_mask_stays_a_mask():
    mask = np.zeros((1, 5, 5), np.bool_)
    mask[0, 0:3, 0:3] = True
    mask[0, 1, 1] = False
    mask[0, 4, 4] = True
    done = apply_after(mask, [KeepLargest(), FillHoles()], np.eye(4))
    assert done.dtype == np.bool_
    assert np.argwhere(done).tolist() == [[0, j, i] for j in range(3) for i in range(3)]


def test_a_map_that_can_not_be_written_is_left_as_it_is():
    labels = np.zeros((1, 2, 4), np.uint16)
    labels[0, 0] = [1, 0, 1, 1]
    labels.flags.writeable = False
    done = apply_after(labels, [KeepLargest()], np.eye(4))
    assert labels[0, 0].tolist() == [1, 0, 1, 1]
    assert done[0, 0].tolist() == [0, 0, 1, 1]
    assert done.dtype == np.uint16
