"""Write what MONAI's own bundle code makes of small volumes, for the tests of bundles: tests/inference/data/bundles.npz.

    VENV/bin/python scripts/make_bundle_reference.py [OUT.npz]
    VENV/bin/python scripts/make_bundle_reference.py --torch FOLDER DICOM OUT.npz

VENV holds torch, monai, nibabel, pydicom, onnx and onnxruntime; md itself is not needed. The bundles are those of
`tests/inference/formats/bundles.py`; MONAI's ConfigParser reads them and makes their transforms and their inferer, onnxruntime
runs their network. Arrays are as MONAI has them: (x, y, z), affines RAS+. Made with monai 1.6.1.

With --torch a bundle with `model.pt` and `model.ts` in place of `model.onnx` is written into FOLDER, with weights that fire every
class, and MONAI runs it on the series in the folder DICOM.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import onnxruntime
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, Spacing

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.inference.formats.bundles import write_bundle  # noqa: E402

OUT = ROOT / "tests" / "inference" / "data" / "bundles.npz"
SHAPE = (36, 34, 22)
CLOSE = 1e-3
PIXDIM = (1.5, 0.9, 3.1)


def rotation(degrees: float) -> np.ndarray:
    """Return a turn about the axis (1, 1, 1)."""
    angle, axis = np.radians(degrees), np.ones(3) / np.sqrt(3)
    cross = np.cross(np.eye(3), axis)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


# Columns: where i, j, k go in RAS+; the sizes are those of the voxels.
GEOMETRIES = {
    "axial": np.diag([-1.1, -1.2, 2.6]),
    "sagittal": np.array([[0, 0, 2.3], [-1.1, 0, 0], [0, -1.3, 0]]),
    "oblique": rotation(17) @ np.diag([-1.1, -1.2, 2.6]),
}
RUNS = [(name, geometry) for name in ("spleen", "whole_body", "cropped", "classes") for geometry in GEOMETRIES]
RUNS += [("brats", "axial")]


def volume(seed: int, *, air: float) -> np.ndarray:
    """Return soft bodies of unlike places, sizes and values in air, with some noise: (x, y, z), int16."""
    generator = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"), -1)
    values = np.full(SHAPE, float(air))
    inside = np.linalg.norm(places / np.array([0.92, 0.85, 0.95]), axis=-1) < 1
    values[inside] = 60 if air else 300
    for _ in range(14):
        centre, size = generator.uniform(-0.6, 0.6, 3), generator.uniform(0.15, 0.5, 3)
        part = np.exp(-(np.linalg.norm((places - centre) / size, axis=-1) ** 2))
        values += inside * part * generator.uniform(-300, 420)
    values[inside] += generator.normal(0, 6, SHAPE)[inside]
    return values.round().astype(np.int16)


def parser_of(folder: Path) -> ConfigParser:
    """Return MONAI's reading of a bundle, but that nothing is saved."""
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    post = parser["postprocessing"]["transforms"]
    parser["postprocessing"]["transforms"] = [each for each in post if each["_target_"] != "SaveImaged"]
    return parser


def network_of(folder: Path) -> Any:
    """Return the bundle's network: torch in, torch out."""
    session = onnxruntime.InferenceSession(str(folder / "models" / "model.onnx"), providers=["CPUExecutionProvider"])

    def run(x: torch.Tensor) -> torch.Tensor:
        values = np.ascontiguousarray(torch.as_tensor(x).numpy(), np.float32)
        return torch.from_numpy(session.run(None, {"image": values})[0])

    return run


def run_monai(folder: Path, images: list[Path], network: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Run a bundle's own transforms and inferer.

    Returns:
        What comes after the last transform; where it was close: a top-2 margin (or the way to the threshold) under 1e-3; and the
        affine of the result.
    """
    parser = parser_of(folder)
    before = parser.get_parsed_content("preprocessing")
    inferer = parser.get_parsed_content("inferer")
    after = parser.get_parsed_content("postprocessing").transforms
    held = before({"image": [str(image) for image in images] if len(images) > 1 else str(images[0])})
    batch = list_data_collate([held])
    batch["pred"] = inferer(batch["image"], network)
    item = decollate_batch(batch)[0]
    names = [type(each).__name__ for each in after]
    if "Invertd" not in names:
        found = np.asarray(Compose(after)(item)["pred"])
        return found, np.zeros(1, bool), np.eye(4)
    first = min(names.index("Invertd"), names.index("AsDiscreted"))
    scored = Compose(after[:first])(dict(item))
    invert = after[names.index("Invertd")]
    if names.index("AsDiscreted") < names.index("Invertd"):
        top = torch.topk(scored["pred"], 2, dim=0).values
        margin = invert({**scored, "pred": (top[:1] - top[1:]).clone()})["pred"]
    else:
        probable = invert(dict(scored))["pred"]
        top = torch.topk(probable, 2, dim=0).values
        margin = abs(probable - 0.5) if "sigmoid" in str(parser["postprocessing"]) else top[:1] - top[1:]
    # The last step of the BraTS bundle writes its structures over one another; what is compared is before it.
    kept = [each for each, name in zip(after, names, strict=True) if name != "Lambdad"]
    found = Compose(kept)(dict(item))["pred"]
    return np.asarray(found).round().astype(np.uint8), np.asarray(margin) < CLOSE, np.asarray(found.affine)


def save_nifti(folder: Path, name: str, values: np.ndarray, affine: np.ndarray) -> Path:
    """Write a volume as NIfTI."""
    image = nibabel.Nifti1Image(values, affine)
    nibabel.save(image, folder / f"{name}.nii")
    return folder / f"{name}.nii"


def grids(found: dict[str, np.ndarray]) -> None:
    """Say where Spacing puts its grid: (size, place of the first voxel in old voxels) for exact and for stored affines."""
    for geometry in GEOMETRIES:
        exact = found[f"{geometry}_affine_ras"]
        for name, affine in (("exact", exact), ("stored", exact.astype(np.float32).astype(np.float64))):
            image = MetaTensor(torch.zeros(1, *SHAPE), affine=torch.from_numpy(affine))
            there = Spacing(PIXDIM)(image)
            first = np.linalg.solve(affine, there.affine.numpy()[:, 3])[:3]
            found[f"grid_{geometry}_{name}"] = np.array([there.shape[1:], first])


def torch_bundle(folder: Path, dicom: Path, out: Path) -> None:
    """Write a bundle whose network is torch's own, and what MONAI makes by it of a series."""

    def edit(said: dict[str, Any], config: dict[str, Any]) -> None:
        del said
        network = {"spatial_dims": 3, "in_channels": 1, "out_channels": 4, "num_res_units": 1, "norm": "batch"}
        config["network_def"] = {"_target_": "UNet", **network, "channels": "$[8] + [16, 16]", "strides": [2, 2]}

    write_bundle(folder, "spleen", onnx=False, edit=edit)
    torch.manual_seed(20260302)
    network = parser_of(folder).get_parsed_content("network_def").eval()
    seen = parser_of(folder).get_parsed_content("preprocessing")({"image": str(dicom)})["image"]
    even = tuple(slice(0, size // 4 * 4) for size in seen.shape[1:])
    with torch.no_grad():
        scores = network(seen.as_tensor()[None][(..., *even)])[0].flatten(1)
        shift = torch.zeros(len(scores))
        for _ in range(400):
            # Until each class has about its share of the voxels.
            shares = torch.bincount((scores + shift[:, None]).argmax(0), minlength=len(scores)) / scores.shape[1]
            shift += (1 / len(scores) - shares) * scores.std() * 0.1
        last = [each for each in network.modules() if isinstance(each, torch.nn.Conv3d)][-1]
        last.bias += shift
    torch.save(network.state_dict(), folder / "models" / "model.pt")
    torch.jit.script(network).save(str(folder / "models" / "model.ts"))

    def run(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return network(torch.as_tensor(x))

    result, close, affine = run_monai(folder, [dicom], run)
    np.savez_compressed(out, labels=result, close=close, affine_ras=affine)
    print(f"voxels {np.bincount(result.ravel()).tolist()}, close {int(close.sum())}")


def main() -> None:
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--torch"]:
        torch_bundle(*map(Path, sys.argv[2:5]))
        return
    found: dict[str, np.ndarray] = {}
    for geometry, axes in GEOMETRIES.items():
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = axes, (41.5, 32.25, -80.0)
        found[f"{geometry}_affine_ras"] = affine
    grids(found)
    found["ct"] = volume(1, air=-1000)
    for channel in range(4):
        found[f"mr{channel}"] = volume(10 + channel, air=0)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for bundle, geometry in RUNS:
            folder = root / f"{bundle}_{geometry}"
            write_bundle(folder, bundle)
            keys = [f"mr{n}" for n in range(4)] if bundle == "brats" else ["ct"]
            affine = found[f"{geometry}_affine_ras"]
            images = [save_nifti(folder, key, found[key], affine) for key in keys]
            result, close, _ = run_monai(folder, images, network_of(folder))
            found[f"{bundle}_{geometry}"] = result if bundle == "classes" else result.astype(np.uint8)
            if bundle != "classes":
                found[f"{bundle}_{geometry}_close"] = np.packbits(close)
                counts = result.reshape(3, -1).sum(1) if bundle == "brats" else np.bincount(result.ravel())
                print(f"{bundle} {geometry}: voxels {counts.tolist()}, close {int(close.sum())}")
            else:
                print(f"{bundle} {geometry}: {result.tolist()}")
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    np.savez_compressed(out, **found)
    print(f"{out}: {len(found)} arrays, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
