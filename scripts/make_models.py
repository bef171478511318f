"""Build the networks of the two embedded models. Nothing is trained: every weight follows from the numbers below.

    python scripts/make_models.py [FOLDER]

writes FOLDER/landmarks/network.onnx and FOLDER/ct-tissue/network.onnx (default: mdcli/models), the same bytes every time.
The cards beside them (model.yaml, CARD.md) are written by hand and say the same numbers.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from mdcli.phantom.anatomy import LANDMARK_RADIUS_MM, LANDMARKS, landmark_pattern

LANDMARK_SPACING_MM = (2.5, 2.5, 3.5)
"""Of the network's input along x, y, z: z differs, so that a card read in the wrong order shows."""
LANDMARK_THRESHOLD = 0.55
FLAT_HU = 20.0
"""A neighbourhood that varies less than this is taken to vary this much, so that a flat one divides by no zero."""
HU_PER_UNIT = 1000.0

TISSUE_EDGES_HU = (-1200, -900, -200, -30, 200)
"""Upper ends of background, air, lung-like, fat-like and soft; bone-like lies above the last."""

# Old enough for every engine that reads a card today.
OPSET, IR_VERSION = 17, 8


def landmark_kernels() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the matched filters (4, x, y, z), each of mean 0 and norm 1 inside the ball, and the ball (x, y, z), 0 or 1.

    The axes are RAS+: +x to the right, +y to the front, +z to the head.
    """
    half = [int(LANDMARK_RADIUS_MM // spacing) for spacing in LANDMARK_SPACING_MM]
    axes = [np.arange(-n, n + 1) * spacing for n, spacing in zip(half, LANDMARK_SPACING_MM, strict=True)]
    ras = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    ball = np.sqrt((ras**2).sum(axis=-1)) <= LANDMARK_RADIUS_MM
    # The phantom speaks LPS+: the first two axes change sign.
    offsets_lps = ras[ball] * (-1.0, -1.0, 1.0)
    kernels = np.zeros((len(LANDMARKS), *ball.shape))
    for kernel, landmark in zip(kernels, LANDMARKS, strict=True):
        values = landmark_pattern(landmark, offsets_lps)
        values = values - values.mean()
        kernel[ball] = values / np.sqrt((values**2).sum())
    return kernels.astype(np.float32), ball.astype(np.float32)


def _model(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    weights: dict[str, NDArray[np.generic]],
    channels: int,
    axes: str,
) -> onnx.ModelProto:
    def value(tensor: str, count: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(tensor, TensorProto.FLOAT, ["batch", count, *axes])

    tensors = [numpy_helper.from_array(array, key) for key, array in weights.items()]
    graph = helper.make_graph(nodes, name, [value("image", 1)], [value("scores", channels)], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name, model.producer_version = "mdcli scripts/make_models.py", "1.0.0"
    onnx.checker.check_model(model, full_check=True)
    return model


def landmarks() -> onnx.ModelProto:
    """Return the network of `landmarks`: the correlation of each place's neighbourhood with each pattern, -1 to 1.

    It divides by the deviation of the neighbourhood (normalised cross-correlation), so that neither contrast nor brightness
    counts. The highest of a voxel and its neighbours counts: the peak is narrow, and voxels of 4 mm could lie around it without one
    on it. Channel 0, the background, is the threshold everywhere.
    """
    kernels, ball = landmark_kernels()
    inside = float(ball.sum())
    weights: dict[str, NDArray[np.generic]] = {
        "kernels": np.concatenate([kernels, ball[None]])[:, None],
        "ball": ball[None, None],
        "channels": np.array([len(LANDMARKS), 1], np.int64),
        "voxels": np.float32(inside),
        "flat": np.float32(inside * (FLAT_HU / HU_PER_UNIT) ** 2),
    }
    pads = [size // 2 for size in ball.shape] * 2
    nodes = [
        helper.make_node("Conv", ["image", "kernels"], ["sums"], pads=pads),
        helper.make_node("Split", ["sums", "channels"], ["matches", "sum"], axis=1),
        helper.make_node("Mul", ["image", "image"], ["squares"]),
        helper.make_node("Conv", ["squares", "ball"], ["sum_of_squares"], pads=pads),
        helper.make_node("Mul", ["sum", "sum"], ["squared_sum"]),
        helper.make_node("Div", ["squared_sum", "voxels"], ["mean_part"]),
        helper.make_node("Sub", ["sum_of_squares", "mean_part"], ["variation"]),
        helper.make_node("Max", ["variation", "flat"], ["not_flat"]),
        helper.make_node("Sqrt", ["not_flat"], ["norm"]),
        helper.make_node("Div", ["matches", "norm"], ["correlations"]),
        helper.make_node("MaxPool", ["correlations"], ["spots"], kernel_shape=[3, 3, 3], pads=[1] * 6),
        helper.make_node("Shape", ["sum"], ["extent"]),
        helper.make_node(
            "ConstantOfShape",
            ["extent"],
            ["background"],
            value=numpy_helper.from_array(np.array([LANDMARK_THRESHOLD], np.float32)),
        ),
        helper.make_node("Concat", ["background", "spots"], ["scores"], axis=1),
    ]
    return _model("landmarks", nodes, weights, 1 + len(LANDMARKS), "xyz")


def ct_tissue() -> onnx.ModelProto:
    """Return the network of `ct-tissue`: a smoothing convolution, then one straight line a band.

    Line c has slope c and crosses line c - 1 at the edge between them, so the highest line at a value is its band's. Weights and
    edges are exact in binary and whole HU in give sums that float32 holds, so every engine gives the same scores.
    """
    binomial = np.array([1.0, 2.0, 1.0], np.float32) / 4
    slopes = np.arange(len(TISSUE_EDGES_HU) + 1)
    weights: dict[str, NDArray[np.generic]] = {
        # The border voxel is repeated, so that the edge of the image is not smoothed with something that was not measured.
        "border": np.array([0, 0, 1, 1, 1, 0, 0, 1, 1, 1], np.int64),
        # The 3x3x3 smoothing is the product of one along each axis, which takes two thirds of the time.
        "along_z": binomial.reshape(1, 1, 3, 1, 1),
        "along_y": binomial.reshape(1, 1, 1, 3, 1),
        "along_x": binomial.reshape(1, 1, 1, 1, 3),
        "slopes": slopes.reshape(-1, 1, 1, 1, 1).astype(np.float32),
        "offsets": -np.concatenate([[0], np.cumsum(TISSUE_EDGES_HU)]).astype(np.float32),
    }
    nodes = [
        helper.make_node("Pad", ["image", "border"], ["padded"], mode="edge"),
        helper.make_node("Conv", ["padded", "along_z"], ["smooth_z"]),
        helper.make_node("Conv", ["smooth_z", "along_y"], ["smooth_zy"]),
        helper.make_node("Conv", ["smooth_zy", "along_x"], ["smooth"]),
        helper.make_node("Conv", ["smooth", "slopes", "offsets"], ["scores"]),
    ]
    return _model("ct-tissue", nodes, weights, len(slopes), "zyx")


def write(folder: Path) -> list[Path]:
    """Write both networks and return their paths."""
    paths = []
    for name, model in (("landmarks", landmarks()), ("ct-tissue", ct_tissue())):
        paths.append(folder / name / "network.onnx")
        paths[-1].parent.mkdir(parents=True, exist_ok=True)
        paths[-1].write_bytes(model.SerializeToString(deterministic=True))
    return paths


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "mdcli" / "models"
    for path in write(target):
        print(f"{path} {path.stat().st_size} bytes")
