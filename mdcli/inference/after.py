"""Do what a card asks for after the labels are made: largest parts, small ones, holes, other values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.imaging.components import fill_holes, keep_largest, map_labels, remove_small
from mdcli.inference.steps_after import After, FillHoles, KeepLargest, MapLabels, RemoveSmall


def apply_after(
    labels: NDArray[Any],
    steps: Sequence[After],
    affine: NDArray[np.float64],
    progress: Callable[[float], object] | None = None,
    *,
    jobs: int = 0,
) -> NDArray[Any]:
    """Return a label map after the steps, done one after another.

    Args:
        labels: (k, j, i), uint8 or uint16; or one mask, bool or 0 and 1, whose label is 1. It is changed in place where it can be
            written, so that no second map lies in memory.
        steps: of the card.
        affine: 4x4, (i, j, k) to mm; a voxel's volume is the determinant's.
        progress: called with 1 after every step.
        jobs: threads; 0 for all cores. They change no result.

    Returns:
        The labels, of the same type but where a `MapLabels` asks for a value that it does not hold (uint16 then).
    """
    is_mask = labels.dtype == np.bool_
    out = labels if labels.flags.writeable or not steps else labels.copy()
    out = out.view(np.uint8) if is_mask else out
    voxel_mm3 = float(abs(np.linalg.det(np.asarray(affine, np.float64)[:3, :3])))
    for step in steps:
        match step:
            case KeepLargest():
                keep_largest(out, step.labels, together=step.together, connectivity=step.connectivity, jobs=jobs)
            case RemoveSmall():
                remove_small(out, step.mm3, voxel_mm3, step.labels, connectivity=step.connectivity, jobs=jobs)
            case FillHoles():
                fill_holes(out, step.labels, per_slice=step.per_slice, connectivity=step.connectivity, jobs=jobs)
            case MapLabels():
                out = map_labels(out, step.mapping)
        if progress is not None:
            progress(1)
    return out.view(np.bool_) if is_mask else out
