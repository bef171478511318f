"""Bring labels of a resampled volume back to the planes of its images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.imaging.nifti import Volume
from mdcli.imaging.resample import resample


def on_source_planes(labels: Volume, resampled: Mapping[str, Any]) -> tuple[Volume, NDArray[np.float64]]:
    """Return labels on the planes of the images, each voxel by the nearest one of the volume; 0 outside of it.

    Args:
        labels: on the grid of the volume, (k, j, i).
        resampled: of `geometry.json`: the images' grid.

    Returns:
        The labels, slice m on image m, with the images' own affine; and where along that affine's k each image lies, in its steps.
    """
    k, j, i = (int(n) for n in resampled["source_shape"])
    affine = np.array(resampled["source_affine_lps"], np.float64)
    offsets = resampled.get("source_offsets")
    places = np.arange(k, dtype=np.float64) if offsets is None else np.array(offsets, np.float64)
    planes = []
    for place in places:
        plane = affine.copy()
        plane[:3, 3] += place * affine[:3, 2]
        planes += list(resample(labels.array, labels.affine, (1, j, i), plane, order="nearest", fill=0))
    return Volume(np.concatenate(planes), affine, labels.unit), places
