"""Where MONAI's Spacing puts its grid, against MONAI itself (scripts/make_bundle_reference.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mdcli.inference.monai_grid import keeps_first_voxel, middle_offset

MONAI = np.load(Path(__file__).parent / "data" / "bundles.npz")
SHAPE = (36, 34, 22)
PIXDIM = (1.5, 0.9, 3.1)


@pytest.mark.parametrize("stored", ["exact", "stored"])
@pytest.mark.parametrize("geometry", ["axial", "sagittal", "oblique"])
def test_the_first_voxel_lies_where_monai_puts_it(geometry, stored):
    sizes, expected = MONAI[f"grid_{geometry}_{stored}"]
    affine = MONAI[f"{geometry}_affine_ras"]
    affine = affine.astype(np.float32).astype(np.float64) if stored == "stored" else affine
    steps = np.array(PIXDIM) / np.linalg.norm(affine[:3, :3], axis=0)
    found = [0.0, 0.0, 0.0]
    if not keeps_first_voxel(SHAPE, affine, PIXDIM):
        found = [middle_offset(n, int(size), step) for n, size, step in zip(SHAPE, sizes, steps, strict=True)]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_only_a_turned_volume_whose_numbers_were_rounded_loses_its_first_voxel():
    found = {
        (geometry, stored): keeps_first_voxel(
            SHAPE, MONAI[f"{geometry}_affine_ras"].astype(stored).astype(np.float64), PIXDIM
        )
        for geometry in ("axial", "sagittal", "oblique")
        for stored in (np.float32, np.float64)
    }
    assert [key for key, kept in found.items() if not kept] == [("oblique", np.float32)]
