"""Cut a box out of a grid, and find the place of such a box in the grid again.

Shapes and boxes are (k, j, i), affines 4x4, (i, j, k) to mm, LPS+.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError
from mdcli.imaging.components import Box
from mdcli.imaging.label_maps import SAME_GRID_MM, corner_distance
from mdcli.imaging.nifti import Volume
from mdcli.imaging.places import grid_facts

# What the float32 of a NIfTI header leaves open, as a part of a voxel: no box grows by it.
_VOXEL = 1e-3
# Source: DICOM PS3.3 C.7.6.3.1, Rows and Columns are unsigned 16-bit numbers.
_LARGEST_SIDE = 65535


def moved(affine: NDArray[np.float64], start: Sequence[int]) -> NDArray[np.float64]:
    """Return the affine of a box that starts at a voxel (k, j, i) of a grid."""
    out = np.array(affine, np.float64)
    out[:3, 3] += out[:3, :3] @ np.array(start[::-1], np.float64)
    return out


def start_of(box: Box) -> tuple[int, int, int]:
    """Return the first voxel (k, j, i) of a box."""
    k, j, i = (side.start for side in box)
    return k, j, i


def shape_of(box: Box) -> tuple[int, int, int]:
    """Return the shape (k, j, i) of a box."""
    k, j, i = (side.stop - side.start for side in box)
    return k, j, i


def region(
    held: Box, held_affine: NDArray[np.float64], margin_mm: float, shape: Sequence[int], affine: NDArray[np.float64]
) -> Box | None:
    """Return the box of a grid that holds a box of the same or another grid, and a margin around it.

    Args:
        held: what it must hold, in voxels of its own grid.
        held_affine: of that grid.
        margin_mm: all that lies within it of the held box is in the box as well, as far as the grid goes.
        shape: of the grid that the box is of.
        affine: of that grid.

    Returns:
        The box, at least one voxel along each axis; None where it lies outside of the grid.
    """
    inverse = np.linalg.inv(np.asarray(affine, np.float64))
    # The outer faces of the voxels, not their centres: those of another grid may be larger.
    sides = [(side.start - 0.5, side.stop - 0.5) for side in held[::-1]]
    corners = np.array([[x, y, z, 1] for x in sides[0] for y in sides[1] for z in sides[2]])
    faces = (inverse @ np.asarray(held_affine, np.float64) @ corners.T)[:3]
    # Planes of equal index along an axis lie 1 / |row of the inverse| apart, also where the axes are not at right angles.
    margin = np.ceil(margin_mm * np.linalg.norm(inverse[:3, :3], axis=1) - _VOXEL)
    low = np.floor(faces.min(axis=1) + 0.5 + _VOXEL) - margin
    high = np.ceil(faces.max(axis=1) + 0.5 - _VOXEL) + margin
    sizes = np.array(shape[::-1])
    low, high = np.clip(low, 0, sizes).astype(int), np.clip(high, 0, sizes).astype(int)
    if (low >= high).any():
        return None
    i, j, k = (slice(int(a), int(b)) for a, b in zip(low, high, strict=True))
    return k, j, i


def place_in(part: Volume, shape: Sequence[int], affine: NDArray[np.float64]) -> Box:
    """Return where a box of voxels lies in a grid, voxel on voxel.

    Args:
        part: its axes run as those of the grid (`mdcli.imaging.label_maps.in_order_of`).
        shape: of the grid.
        affine: of the grid.

    Raises:
        DataError: `grids-differ` where a corner of the box is more than `SAME_GRID_MM` off the grid's voxels, or outside of it.
    """
    at = np.linalg.solve(np.asarray(affine, np.float64), np.asarray(part.affine, np.float64)[:, 3])[:3]
    if not np.isfinite(at).all() or np.abs(at).max() > np.iinfo(np.int32).max:
        raise DataError("grids-differ", "its affine places it nowhere near the grid")
    i, j, k = (int(n) for n in np.rint(at))
    off = corner_distance(part.affine, moved(affine, (k, j, i)), part.array.shape)
    if not off <= SAME_GRID_MM:
        message = f"its voxels lie up to {off:.4g} mm beside those of the grid"
        raise DataError("grids-differ", message, off_mm=off)
    box = tuple(slice(a, a + n) for a, n in zip((k, j, i), part.array.shape, strict=True))
    if any(side.start < 0 or side.stop > n for side, n in zip(box, shape, strict=True)):
        reach = ", ".join(f"{side.start} to {side.stop - 1} of {n}" for side, n in zip(box, shape, strict=True))
        raise DataError("grids-differ", f"it reaches out of the grid: voxels {reach} along k, j, i")
    return box[0], box[1], box[2]


def cropped_geometry(geometry: Mapping[str, Any], box: Box, padded: int | None) -> dict[str, Any]:
    """Return `geometry.json` of a part of a volume.

    Where the volume lies on the planes of its images, `slices` are those of the part, each with the place of its first voxel, and
    `crop` says which part of the planes it is. A resampled volume goes back to its images by their affine, and `crop` stays.

    Args:
        geometry: of the whole.
        box: which part.
        padded: how many of its voxels are padding.
    """
    start, shape = start_of(box), shape_of(box)
    whole = np.array(geometry["affine_lps"], np.float64)
    facts = grid_facts(shape, moved(whole, start))
    # How even the slices are was measured, and holds for a part of them.
    facts["regularity"] = geometry["regularity"]
    facts["tilt"]["gantry_detector_tilt_deg"] = (geometry.get("tilt") or {}).get("gantry_detector_tilt_deg")
    found = {**geometry, **facts}
    padding, resampled = geometry.get("padding"), geometry.get("resampled")
    if padding:
        found["padding"] = {**padding, "voxels": padded}
    if resampled:
        made = resampled.get("made_slices")
        left = None if made is None else [k - start[0] for k in made if box[0].start <= k < box[0].stop]
        return found | {"resampled": {**resampled, "made_slices": left}}
    if padding:
        for key in ("stored_by_slice", "range_by_slice"):
            found["padding"][key] = padding[key] and padding[key][box[0]]
    before = geometry.get("crop") or {"k": [0], "j": [0], "i": [0], "of": list(geometry["shape"])}
    sides = {
        axis: [before[axis][0] + side.start, before[axis][0] + side.stop] for axis, side in zip("kji", box, strict=True)
    }
    step = moved(whole, (0, *start[1:]))[:3, 3] - whole[:3, 3]
    kept = [entry for entry in geometry["slices"] if box[0].start <= entry["k"] < box[0].stop]
    return found | {
        "crop": {**sides, "of": before["of"]},
        "slices": [{**entry, "k": entry["k"] - start[0], "position_mm": _at(entry, step)} for entry in kept],
    }


def _at(entry: Mapping[str, Any], step: NDArray[np.float64]) -> list[float] | None:
    position = entry.get("position_mm")
    return None if position is None else [float(v) for v in np.array(position, np.float64) + step]


def whole_planes(labels: Volume, crop: Mapping[str, Any]) -> Volume:
    """Return labels of a part of the images' planes on those planes, 0 beside the part.

    Args:
        labels: on the part, (k, j, i).
        crop: of `geometry.json`.
    """
    (j, below), (i, right), (_, rows, columns) = crop["j"], crop["i"], crop["of"]
    if not (0 <= j < below <= rows <= _LARGEST_SIDE and 0 <= i < right <= columns <= _LARGEST_SIDE):
        raise DataError("bad-artifact", f"crop in geometry.json is no part of {rows} x {columns} voxels")
    if labels.array.shape[1:] != (below - j, right - i):
        raise DataError("grids-differ", f"the labels are {labels.array.shape}, not those of the part that was cropped")
    out = np.zeros((labels.array.shape[0], rows, columns), labels.array.dtype)
    out[:, j:below, i:right] = labels.array
    return Volume(out, moved(labels.affine, (0, -j, -i)), labels.unit)


def image_positions(geometry: Mapping[str, Any]) -> list[list[float]]:
    """Return ImagePositionPatient of every entry of `slices`, mm, LPS+: where a cropped slice's image begins."""
    crop, resampled = geometry.get("crop"), geometry.get("resampled")
    found = [[float(v) for v in entry["position_mm"]] for entry in geometry["slices"]]
    if not crop:
        return found
    affine = np.array(resampled["source_affine_lps"] if resampled else geometry["affine_lps"], np.float64)
    step = moved(affine, (0, -crop["j"][0], -crop["i"][0]))[:3, 3] - affine[:3, 3]
    return [[float(v) for v in position + step] for position in np.array(found)]
