"""Which image of the series a place of the volume belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Images:
    """The images that a volume was made of.

    Args:
        geometry: `geometry.json`.
        affine: of the volume, 4x4, voxel (i, j, k, 1) to mm, LPS+.
    """

    def __init__(self, geometry: Mapping[str, Any], affine: NDArray[np.float64]) -> None:
        self._uids = [entry.get("sop_instance_uid") for entry in geometry.get("slices", ())]
        resampled = geometry.get("resampled")
        self._places = np.arange(len(self._uids), dtype=np.float64)
        self._to_source = np.eye(4)
        if resampled is not None:
            self._to_source = np.linalg.inv(np.array(resampled["source_affine_lps"], np.float64)) @ affine
            if resampled.get("source_offsets") is not None:
                self._places = np.array(resampled["source_offsets"], np.float64)

    def nearest(self, ijk: NDArray[np.float64]) -> str | None:
        """Return the SOP Instance UID of the image nearest to a place (i, j, k); None where the volume has no images."""
        if not self._uids:
            return None
        k = float((self._to_source @ [*ijk, 1])[2])
        found: str | None = self._uids[int(np.argmin(np.abs(self._places - k)))]
        return found
