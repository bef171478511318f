"""The landmark model through every format and engine that can hold it: each landmark at its millimetre, read by nibabel.

Servers have it in tests/inference/engines/test_kserve_servers.py, Keras and MMAR in their plugins' tests. nnU-Net and weights
without a network of MONAI's can't hold it.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from importlib.resources import files
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from mdcli.inference.card import read_card
from mdcli.phantom.anatomy import LANDMARKS
from mdcli.registry import load_stage
from mdcli.testing import run_stage
from tests.inference.formats.bundles import compose, invert, metadata, transform
from tests.test_landmark_chain import CORONAL, NEAR_MM, SAGITTAL, write_ct

pytest.importorskip("onnxruntime")

EMBEDDED = Path(str(files("mdcli") / "models" / "landmarks"))
NAMES = ["anchor", "beacon", "cairn", "dial"]


def card_with(folder: Path, **changes) -> Path:
    """Copy the embedded model with another card."""
    folder.mkdir()
    shutil.copy(EMBEDDED / "network.onnx", folder)
    said = yaml.safe_load((EMBEDDED / "model.yaml").read_text()) | changes
    (folder / "model.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
    read_card((folder / "model.yaml").read_text())
    return folder


def bundle(folder: Path) -> Path:
    """Write the model as a MONAI Bundle that runs over the whole image."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    shutil.copy(EMBEDDED / "network.onnx", folder / "models" / "model.onnx")
    about = metadata(5, ["background", *NAMES], ["8*n", "8*n", "8*n"])
    said = {
        "preprocessing": compose(
            transform("LoadImaged"),
            transform("EnsureChannelFirstd"),
            transform("Orientationd", axcodes="RAS"),
            transform("Spacingd", pixdim=[2.5, 2.5, 3.5], mode="bilinear"),
            transform("ScaleIntensityRanged", a_min=-1000, a_max=1000, b_min=-1, b_max=1, clip=True),
        ),
        "inferer": {"_target_": "SimpleInferer"},
        "postprocessing": compose(invert(nearest=False), transform("AsDiscreted", "pred", argmax=True)),
    }
    (folder / "configs" / "metadata.json").write_text(json.dumps(about))
    (folder / "configs" / "inference.json").write_text(json.dumps(said))
    return folder


def zipped(folder: Path) -> Path:
    """Write the same as a zip file."""
    made = bundle(folder)
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(made.rglob("*")):
            if file.is_file():
                archive.write(file, file.relative_to(made.parent))
    shutil.rmtree(made)
    return path


def ensemble(how: str):
    def make(folder: Path) -> Path:
        made = card_with(folder, networks=["network.onnx", "again.onnx"], ensemble=how, network=None)
        shutil.copy(made / "network.onnx", made / "again.onnx")
        return made

    return make


def plain(folder: Path) -> Path:
    return card_with(folder)


def as_masks(folder: Path) -> Path:
    """Make the network's scores masks: a landmark is where its own score reaches the background's, which is constant."""
    import onnx

    made = card_with(folder)
    model = onnx.load(str(made / "network.onnx"))
    background = next(node for node in model.graph.node if node.op_type == "ConstantOfShape")
    value = float(onnx.numpy_helper.to_array(background.attribute[0].t)[0])
    model.graph.node[-1].input[:] = [name for name in model.graph.node[-1].input if name != background.output[0]]
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    onnx.save(model, str(made / "network.onnx"))
    said = yaml.safe_load((made / "model.yaml").read_text())
    said["output"] |= {"form": "masks", "threshold": value}
    (made / "model.yaml").write_text(yaml.safe_dump(said))
    return made


def found_mm(case: Path) -> dict[str, np.ndarray]:
    """Return the centroid of each landmark, LPS+."""
    if (case / "masks").is_dir():
        maps = {name: case / "masks" / f"{n:04d}.nii" for n, name in enumerate(NAMES, 1)}
        places = {name: (nibabel.load(path), 1) for name, path in maps.items() if path.exists()}
    else:
        image = nibabel.load(case / "labels.nii")
        places = {name: (image, n) for n, name in enumerate(NAMES, 1)}
    points = {}
    for name, (image, value) in places.items():
        voxels = np.argwhere(np.asarray(image.dataobj) == value)
        if len(voxels):
            points[name] = np.diag([-1, -1, 1]) @ nibabel.affines.apply_affine(image.affine, voxels).mean(axis=0)
    return points


def assert_found(folder: Path, model: Path, orientation, oblique_deg: float, **params) -> None:
    """Run the chain up to the labels, and hold every landmark to its place."""
    write_ct(folder / "dicom", orientation, (3.0, 2.5, 4.0), oblique_deg=oblique_deg)
    case = folder / "case"
    run_stage(load_stage("select-series"), case, dicom=folder / "dicom")
    run_stage(load_stage("load-volume"), case)
    run_stage(load_stage("infer"), case, model=str(model), **params)
    found = found_mm(case)
    for landmark in LANDMARKS:
        assert np.linalg.norm(found[landmark.name] - landmark.position_mm) < NEAR_MM, landmark.name


@pytest.mark.parametrize("orientation, oblique_deg", [(CORONAL, 12), (SAGITTAL, 0)], ids=["oblique", "sagittal"])
@pytest.mark.parametrize(
    "make, params",
    [
        pytest.param(plain, {"engine": "openvino"}, id="OpenVINO"),
        pytest.param(plain, {"batch": 3}, id="several windows at once"),
        pytest.param(as_masks, {"scores": True}, id="masks"),
        pytest.param(ensemble("mean"), {}, id="two networks, averaged"),
        pytest.param(ensemble("vote"), {}, id="two networks that vote"),
        pytest.param(bundle, {}, id="a MONAI Bundle"),
        pytest.param(zipped, {}, id="a MONAI Bundle in a zip file"),
    ],
)
@pytest.mark.slow
def test_every_landmark_is_found(tmp_path, monkeypatch, make, params, orientation, oblique_deg):
    if params.get("engine") == "openvino":
        pytest.importorskip("openvino")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert_found(tmp_path, make(tmp_path / "model"), orientation, oblique_deg, **params)


TORCH = """
import sys, numpy, torch
weights = numpy.load(sys.argv[1])
class Landmarks(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.kernels = torch.nn.Parameter(torch.from_numpy(weights["kernels"]))
        self.ball = torch.nn.Parameter(torch.from_numpy(weights["ball"]))
    def forward(self, x):
        pads = (8, 8, 6)
        sums = torch.nn.functional.conv3d(x, self.kernels, padding=pads)
        matches, total = sums[:, :-1], sums[:, -1:]
        squares = torch.nn.functional.conv3d(x * x, self.ball, padding=pads)
        variation = squares - total * total / float(weights["voxels"])
        norm = torch.sqrt(torch.clamp(variation, min=float(weights["flat"])))
        spots = torch.nn.functional.max_pool3d(matches / norm, 3, 1, 1)
        return torch.cat([torch.full_like(total, float(weights["background"])), spots], 1)
net, x = Landmarks().eval(), torch.randn(1, 1, 96, 96, 64)
if sys.argv[2].endswith(".ts"):
    torch.jit.trace(net, x).save(sys.argv[2])
else:
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(net, (torch.randn(2, 1, 96, 96, 64),), dynamic_shapes=({0: batch},)), sys.argv[2])
"""


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("name", ["network.ts", "network.pt2"])
def test_every_landmark_is_found_by_a_program_of_torch(tmp_path, monkeypatch, torch_python, name):
    import hashlib
    import subprocess

    import onnx

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("MD_TORCH_PYTHON", torch_python)
    model = onnx.load(str(EMBEDDED / "network.onnx"))
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    background = next(node for node in model.graph.node if node.op_type == "ConstantOfShape")
    weights["background"] = onnx.numpy_helper.to_array(background.attribute[0].t)[0]
    np.savez(tmp_path / "weights.npz", **weights)
    folder = card_with(tmp_path / "model", network=name)
    said = yaml.safe_load((folder / "model.yaml").read_text())
    # A converted network has names of its own.
    del said["inputs"][0]["tensor"], said["output"]["tensor"]
    (folder / "model.yaml").write_text(yaml.safe_dump(said))
    made = [torch_python, "-c", TORCH, str(tmp_path / "weights.npz"), str(folder / name)]
    subprocess.run(made, check=True, capture_output=True)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    assert_found(tmp_path, folder, CORONAL, 12, trust_model=(digest,))
