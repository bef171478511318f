"""Write what MONAI makes of small label maps, for the tests of mdcli/inference/after.py: tests/inference/data/after.npz.

    VENV/bin/python scripts/make_after_reference.py [OUT.npz]

VENV holds torch, monai, scikit-image, scipy and numpy; md itself is not needed. Arrays are (k, j, i); MONAI's steps know no
axis from another. Made with monai 1.6.1.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from monai.transforms import FillHoles, KeepLargestConnectedComponent, RemoveSmallObjects
from scipy.ndimage import gaussian_filter

OUT = Path(__file__).resolve().parents[1] / "tests" / "inference" / "data" / "after.npz"
SHAPES = {"volume": (17, 23, 29), "slice": (1, 41, 37)}
SPACING = (2.5, 0.8, 0.7)
MM3 = 12.0
VALUES = (1, 2, 5)


def cells(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return a label map (k, j, i) of ragged blobs with specks and holes, its values those of VALUES."""
    noise = [gaussian_filter(generator.normal(size=shape), [0 if n == 1 else 0.9 for n in shape]) for _ in range(4)]
    found = np.array([0, *VALUES], np.uint8)[np.argmax(noise, axis=0)]
    # More background, so that parts come apart.
    found[generator.random(shape) < 0.25] = 0
    return found


def keep_and_remove(found: dict[str, np.ndarray], name: str, labels: np.ndarray) -> None:
    """Keep the largest parts, each for itself and together; remove small ones of each label."""
    # A single slice is two-dimensional to MONAI.
    spatial = labels[0] if labels.shape[0] == 1 else labels
    for connectivity in range(1, spatial.ndim + 1):
        for together in (False, True):
            values = VALUES[:2] if together else None
            step = KeepLargestConnectedComponent(values, False, not together, connectivity)
            kept = np.asarray(step(spatial[None].copy()))[0].reshape(labels.shape)
            found[f"{name}_largest_{connectivity}_{'together' if together else 'each'}"] = kept.astype(np.uint8)
        # In voxels, and no whole number: scikit-image 0.26 takes MONAI's bound for the largest size to remove, older ones for the
        # smallest to keep.
        step = RemoveSmallObjects(MM3 / np.prod(SPACING), connectivity)
        out = np.zeros(spatial.shape, np.uint8)
        for value in VALUES:
            out[np.asarray(step((spatial == value)[None].copy()))[0].astype(bool)] = value
        found[f"{name}_small_{connectivity}"] = out.reshape(labels.shape)


def fill(found: dict[str, np.ndarray], name: str, labels: np.ndarray) -> None:
    """Fill the holes of one label alone, where MONAI and md mean the same, in the volume and slice by slice."""
    mask = (labels > 0).astype(np.uint8)
    spatial = mask[0] if labels.shape[0] == 1 else mask
    for connectivity in range(1, spatial.ndim + 1):
        step = FillHoles(connectivity=connectivity)
        found[f"{name}_filled_{connectivity}"] = np.asarray(step(spatial[None].copy()))[0].reshape(labels.shape)
    sliced = [np.asarray(FillHoles(connectivity=1)(plane[None].copy()))[0] for plane in mask]
    found[f"{name}_filled_slices"] = np.stack(sliced).astype(np.uint8)


def main() -> None:
    """Make all arrays and write them."""
    generator = np.random.default_rng(20)
    found: dict[str, np.ndarray] = {"spacing_kji": np.array(SPACING), "mm3": np.array(MM3)}
    for name, shape in SHAPES.items():
        labels = cells(generator, shape)
        found[name] = labels
        keep_and_remove(found, name, labels)
        fill(found, name, labels)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    np.savez_compressed(out, **found)
    print(f"{out.name}: {len(found)} arrays, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
