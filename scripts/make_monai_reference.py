"""Write what MONAI makes of small volumes, for the tests of mdcli/inference: tests/inference/data/monai.npz.

    VENV/bin/python scripts/make_monai_reference.py [OUT.npz]

VENV holds torch, monai and numpy; md itself is not needed. Arrays are as MONAI has them: (C, x, y, z), affines RAS+. Made with
monai 1.6.1.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.transforms import Compose, NormalizeIntensity, Orientation, ScaleIntensityRange, Spacing

OUT = Path(__file__).resolve().parents[1] / "tests" / "inference" / "data" / "monai.npz"
WINDOW = (12, 10, 16)
CHANNELS = 2


def rotation(degrees: float) -> np.ndarray:
    """Return a turn about the axis (1, 1, 1)."""
    angle, axis = np.radians(degrees), np.ones(3) / np.sqrt(3)
    cross = np.cross(np.eye(3), axis)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


# Columns: where i, j, k go in RAS+; the sizes are those of the voxels.
GEOMETRIES = {
    "axial": np.diag([-0.8, -0.8, 2.5]),
    "axial_reversed": np.diag([-0.8, -0.8, -2.5]),
    "ras": np.diag([1.1, 0.9, 3.0]),
    "sagittal": np.array([[0, 0, 3.0], [-0.9, 0, 0], [0, -0.9, 0]]),
    "coronal": np.array([[-1.2, 0, 0], [0, 0, 4.0], [0, -1.2, 0]]),
    "oblique": rotation(17) @ np.diag([-0.8, -0.8, 2.5]),
}
SPACINGS = {"fine": (0.7, 0.6, 1.7), "coarse": (1.5, 1.7, 3.1)}


def sliding(found: dict[str, np.ndarray], generator: np.random.Generator) -> None:
    """Blend a convolution over windows."""
    weight = generator.normal(size=(CHANNELS, 1, 3, 3, 3)).astype(np.float32)
    bias = generator.normal(size=CHANNELS).astype(np.float32)
    found["conv_weight"], found["conv_bias"] = weight, bias

    def network(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv3d(x, torch.from_numpy(weight), torch.from_numpy(bias), padding=1)

    for name, shape in (("large", (19, 13, 22)), ("small", (17, 7, 9))):
        volume = generator.normal(size=(1, *shape)).astype(np.float32)
        found[f"window_{name}"] = volume
        for mode, overlap in (("gaussian", 0.25), ("gaussian", 0.5), ("constant", 0.25)):
            scores = sliding_window_inference(
                torch.from_numpy(volume)[None], WINDOW, 1, network, overlap=overlap, mode=mode, cval=-1.5
            )
            found[f"window_{name}_{mode}_{overlap}"] = scores[0].numpy()


def spacing(found: dict[str, np.ndarray], generator: np.random.Generator) -> None:
    """Turn to RAS, resample, prepare; and take scores back."""
    for geometry, axes in GEOMETRIES.items():
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = axes, (-31.5, 12.25, 80.0)
        values = generator.integers(-1000, 1500, (1, 9, 8, 6)).astype(np.int16)
        found[f"{geometry}_affine_ras"], found[f"{geometry}_volume"] = affine, values
        for name, pixdim in SPACINGS.items():
            image = MetaTensor(torch.from_numpy(values.astype(np.float32)), affine=torch.from_numpy(affine))
            turn = Compose([Orientation("RAS"), Spacing(pixdim, mode="bilinear", padding_mode="border")])
            there = turn(image)
            found[f"{geometry}_{name}_there"] = there.numpy()
            if geometry == "sagittal":
                scaled = ScaleIntensityRange(-900, 1200, 0, 1, clip=True)(there.clone())
                found[f"{geometry}_{name}_scaled"] = scaled.numpy()
                found[f"{geometry}_{name}_normalised"] = NormalizeIntensity()(there.clone()).numpy()
            scores = torch.from_numpy(generator.normal(size=(CHANNELS, *there.shape[1:])).astype(np.float32))
            found[f"{geometry}_{name}_scores"] = scores.numpy()
            back = turn.inverse(MetaTensor(scores, affine=there.affine, applied_operations=there.applied_operations))
            found[f"{geometry}_{name}_back"] = back.numpy()


def main() -> None:
    generator = np.random.default_rng(20260101)
    found: dict[str, np.ndarray] = {}
    sliding(found, generator)
    spacing(found, generator)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, **found)
    print(f"{out}: {len(found)} arrays, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
