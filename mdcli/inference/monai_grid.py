"""Where MONAI's Spacing puts its grid: at the first voxel, or, for a turned volume, by the middle of the volume."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_TOLERANCE_VOXELS = 1e-8


def keeps_first_voxel(shape: tuple[int, int, int], affine: NDArray[np.float64], spacing: tuple[float, ...]) -> bool:
    """Say whether the first voxel keeps its place; else `middle_offset` says where it goes.

    MONAI takes its new axes from the old ones made orthogonal, then looks for a corner of the volume that is lowest along all of
    them, to within 1e-8 voxels. Axes that run along the patient's have one. Of turned axes the float32 numbers of a NIfTI header,
    or the digits of a DICOM header, are off the right angle by more than that, so that none is found.

    Args:
        shape: voxels along the axes in the network's order.
        affine: 4x4, those axes to mm in their own directions; its numbers as they were stored, not made orthogonal.
        spacing: mm along those axes.

    Source: monai 1.6, data/utils.py: zoom_affine, compute_shape_offset.
    """
    axes = affine[:3, :3]
    # The Cholesky factor of A'A is R of A = QR: what remains is a rotation.
    upper = np.linalg.cholesky(axes.T @ axes).T
    rotation = axes @ np.linalg.inv(upper)
    new = rotation @ np.diag(np.sign(np.diag(upper)) * np.asarray(spacing, np.float64))
    ends = [(0.0, size - 1.0) for size in shape]
    corners = np.asarray(np.meshgrid(*ends, indexing="ij")).reshape(3, -1)
    places = np.linalg.solve(new, axes) @ corners
    lowest = (places[:, None, :] - places[:, :, None]).min(axis=2)
    return bool((np.abs(lowest) <= _TOLERANCE_VOXELS).all(axis=0).any())


def middle_offset(source: int, size: int, step: float) -> float:
    """Return where the new voxel 0 lies on one axis, in old voxels along the network's direction.

    Args:
        source: old voxels.
        size: new voxels.
        step: old voxels from one new voxel to the next.

    Source: as `keeps_first_voxel`. MONAI brings together the old index n / 2 and the new index size / 2, not the volumes' middles.

    >>> middle_offset(36, 24, 1.5)
    0.0
    """
    return (source - step * size) / 2
