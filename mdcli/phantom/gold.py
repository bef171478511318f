"""What the two embedded models must find in the demo's study, from the phantom itself: no DICOM, no engine, no resampling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mdcli.phantom.anatomy import LANDMARKS
from mdcli.phantom.study import demo_affine, demo_voxels

if TYPE_CHECKING:
    from mdcli.checking.gold import GoldFile

TISSUES = {"air": -900, "lung-like": -200, "fat-like": -30, "soft": 200, "bone-like": 4096}
"""Upper end of each HU band, which belongs to it, as the card of `ct-tissue` says. Nothing in the demo lies in its background."""

# SNOMED CT: "Spatial and Relational Concept" and "Physical object".
_SPATIAL, _OBJECT = "SCT:309825002", "SCT:260787004"
_MARK_RADIUS_MM = 6.5
_LOOSER = "a sphere round each landmark's known place; the network marks a spot of about that size, so its middle is what counts"


def tissue_labels(voxels: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Return the HU band, 1 to 5, of every voxel after smoothing by (1, 2, 1)/4 along each axis, the border repeated.

    Args:
        voxels: (k, j, i), whole HU over -1200.

    Returns:
        (k, j, i). In whole numbers throughout (64 times the smoothed value), so no rounding is near an edge.
    """
    smooth = voxels.astype(np.int32)
    for axis in range(3):
        padded = np.pad(smooth, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        count = smooth.shape[axis]
        low, middle, high = (padded.take(range(start, start + count), axis) for start in range(3))
        smooth = low + 2 * middle + high
    upper = np.array([*TISSUES.values()]) * 64
    return (np.searchsorted(upper, smooth) + 1).astype(np.uint8)


def landmark_labels(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return a small sphere round each landmark's known place, 1 to 4.

    Args:
        shape: (k, j, i).
        affine: 4x4, voxel index (i, j, k, 1) to mm, LPS+.

    Returns:
        (k, j, i).
    """
    labels = np.zeros(shape, np.uint8)
    k, j, i = (axis.astype(np.float64) for axis in np.ogrid[: shape[0], : shape[1], : shape[2]])
    for value, landmark in enumerate(LANDMARKS, 1):
        squared = np.zeros(())
        for axis in range(3):
            place = affine[axis, 0] * i + affine[axis, 1] * j + affine[axis, 2] * k + affine[axis, 3]
            squared = squared + (place - landmark.position_mm[axis]) ** 2
        labels[squared <= _MARK_RADIUS_MM**2] = value
    return labels


def write_gold(folder: Path) -> None:
    """Write the demo's gold: `labels.nii` and `gold.yaml` in the folders `tissue` and `landmarks`, and a `gold.yaml` over both.

    Args:
        folder: is made where it is not there.
    """
    from mdcli.checking.compare import Identity, Tolerances
    from mdcli.checking.gold import GoldFile
    from mdcli.imaging.nifti import write_nifti

    voxels, affine = demo_voxels(), demo_affine()
    near = Tolerances(dice=0.8, centroid_voxels=0.5, bounding_box_voxels=2.0, volume_percent=20.0)
    bands = [Identity(name, (_SPATIAL, f"99MDCLI:HU-{name.removesuffix('-like').upper()}")) for name in TISSUES]
    marks = [Identity(mark.name, (_OBJECT, f"99MDCLI:LM-{mark.name.upper()}")) for mark in LANDMARKS]
    entries = []
    for name, labels, entry in (
        ("tissue", tissue_labels(voxels), GoldFile("labels.nii", labels=dict(enumerate(bands, 1)))),
        (
            "landmarks",
            landmark_labels(voxels.shape, affine),
            GoldFile("labels.nii", near, _LOOSER, dict(enumerate(marks, 1))),
        ),
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
        with (folder / name / entry.file).open("wb") as file:
            write_nifti(file, labels, affine)
        _write_list(folder / name, [entry])
        entries.append(replace(entry, file=f"{name}/{entry.file}"))
    _write_list(folder, entries)


def _write_list(folder: Path, entries: list[GoldFile]) -> None:
    from mdcli.checking.gold import GOLD_FILE, Gold, gold_to_yaml

    text = gold_to_yaml(Gold(tuple(entries), "computed from the phantom's Hounsfield units and its landmarks' places"))
    (folder / GOLD_FILE).write_text(text, encoding="utf-8")
