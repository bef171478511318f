"""What `geometry.json` says of any grid, wherever its voxels came from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.geometry import TILT_DEGREES, TILT_VOXELS, TOLERANCES, orthonormal, plane_of


def grid_facts(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> dict[str, Any]:
    """Return the entries of `geometry.json` that follow from a grid alone.

    Args:
        shape: (k, j, i).
        affine: 4x4, (i, j, k) to mm, LPS+; may be sheared or left-handed.

    Returns:
        `shape`, `affine_lps`, `spacing_mm` (along i, j, k), `orientation`, `obliquity_deg`, `direction_orthonormal`, `coverage_mm`,
        `regularity`, `tilt` and `tolerances`, as `load-volume` writes them: nothing was measured slice by slice, so no step
        is off.
    """
    affine = np.asarray(affine, np.float64)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    directions = orthonormal((affine[:3, :2] / sizes[:2]).T)
    normal = np.cross(directions[0], directions[1])
    along = float(affine[:3, 2] @ normal)
    aside = float(np.linalg.norm(affine[:3, 2] - along * normal))
    degrees, shift = math.degrees(math.atan2(aside, abs(along))), aside * (shape[0] - 1)
    plane, obliquity = plane_of(normal)
    return {
        "shape": list(shape),
        "affine_lps": affine.tolist(),
        "spacing_mm": sizes.tolist(),
        "orientation": plane,
        "obliquity_deg": obliquity,
        "direction_orthonormal": directions.tolist(),
        "coverage_mm": shape[0] * abs(along),
        "regularity": {
            "regular": True,
            "step_mm": abs(along),
            "smallest_step_mm": None,
            "largest_step_mm": None,
            "off_grid_mm": 0.0,
            "off_grid_allowed_mm": None,
        },
        "tilt": {
            "degrees": degrees,
            "shift_mm": shift,
            "gantry_detector_tilt_deg": None,
            "sheared": degrees > TILT_DEGREES and shift > TILT_VOXELS * float(sizes[:2].min()),
        },
        "tolerances": TOLERANCES,
    }
