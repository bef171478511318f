"""Label maps that other programs may have saved: as whole numbers, with their axes in the order of the grid that they belong to."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError, UsageError
from mdcli.imaging.nifti import Volume

SAME_GRID_MM = 1e-3
"""How far a corner of a label map's grid may lie from the source grid, and a frame from its source plane."""


def in_order_of(labels: Volume, affine: NDArray[np.float64]) -> Volume:
    """Return a label map with its axes swapped and turned round to run as those of an affine; as it is where that can't be."""
    try:
        steps = np.linalg.solve(affine[:3, :3], np.asarray(labels.affine)[:3, :3])
    except np.linalg.LinAlgError:
        return labels
    order = np.abs(steps).argmax(axis=1)
    if not np.isfinite(steps).all() or sorted(order) != [0, 1, 2]:
        return labels
    voxels = labels.array.transpose(2, 1, 0).transpose(order)
    turned = np.asarray(labels.affine, np.float64)[:, [*order, 3]]
    for axis in range(3):
        if steps[axis, order[axis]] < 0:
            voxels = np.flip(voxels, axis)
            turned[:3, 3] += turned[:3, axis] * (voxels.shape[axis] - 1)
            turned[:3, axis] *= -1
    voxels = voxels.transpose(2, 1, 0)
    return (
        Volume(np.ascontiguousarray(voxels), turned)
        if (np.diag(steps) <= 0).any() or any(order != range(3))
        else labels
    )


def whole_numbers(array: NDArray[Any]) -> NDArray[Any]:
    """Return labels as integers, slice by slice."""
    if array.dtype.kind in "iub":
        return array
    if array.dtype.kind != "f":
        raise DataError("float-labels", f"labels are whole numbers, not {array.dtype.name}")
    whole = np.empty(array.shape, np.int32)
    for k, plane in enumerate(array):
        if not (np.isfinite(plane).all() and (plane == np.rint(plane)).all() and np.abs(plane).max() < 2**31):
            raise DataError("float-labels", f"labels are whole numbers; slice {k + 1} holds others", slice=k)
        whole[k] = plane
    return whole


def corner_distance(one: NDArray[np.float64], other: NDArray[np.float64], shape: Sequence[int]) -> float:
    """Return the largest distance in mm between the corners of one grid of shape (k, j, i) under two affines."""
    k, j, i = np.array(shape) - 1
    corners = np.array([[x, y, z, 1] for x in (0, i) for y in (0, j) for z in (0, k)], np.float64)
    return float(np.linalg.norm(((np.asarray(one) - np.asarray(other)) @ corners.T)[:3], axis=0).max())


def listed(asked: Sequence[str], known: Mapping[str, Any]) -> list[str]:
    """Return the words of an option that may be repeated or hold a list with commas; a name may hold commas itself.

    Args:
        asked: as they were given.
        known: the names that there are.
    """
    words = [word for text in asked for word in ([text] if text in known else text.split(","))]
    return list(dict.fromkeys(word if word in known else word.strip() for word in words))


def no_such_structure(word: str, known: Sequence[str]) -> UsageError:
    """Return the error for a word that names no structure, with the near name or all of them."""
    near = difflib.get_close_matches(word, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}" if known else None
    return UsageError("no-such-structure", f"no structure is called {word!r}", hint=hint)
