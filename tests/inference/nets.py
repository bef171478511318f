"""Small networks and cards, made in the test that uses them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from onnx import TensorProto, helper, numpy_helper, save


def card(**changes) -> dict:
    """Return a card for a network of two labels on any grid; `changes` replace parts: `inputs0={"unit": "SUV"}`, `window={...}`."""
    found = {
        "schema": "md.model/1",
        "name": "tiny",
        "version": "1.0.0",
        "network": "network.onnx",
        "task": "segmentation",
        "inputs": [
            {"axes": ["C", "z", "y", "x"], "orientation": "as-acquired", "spacing": "as-acquired", "unit": "HU"},
        ],
        "output": {"axes": ["C", "z", "y", "x"], "activation": "none", "inversion": "scores"},
        "window": {"size": ["full", "full", "full"], "overlap": 0, "blending": "constant"},
        "labels": [label(1, "low"), label(2, "high")],
        "empty": "valid",
    }
    found["inputs"][0] |= changes.pop("inputs0", {})
    for key, value in changes.items():
        found[key] = {**found[key], **value} if isinstance(found.get(key), dict) and isinstance(value, dict) else value
    return found


def label(value: int, name: str) -> dict:
    code = {"value": name, "scheme": "99TEST", "meaning": name}
    return {"value": value, "name": name, "category": code, "type": code}


def network(nodes, weights=(), *, channels=3, shape=("n", 1, "a", "b", "c"), out=None, kind=TensorProto.FLOAT):
    """Return an ONNX model from `image` to `scores`."""
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(weights).items()]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("image", kind, list(shape))],
        [helper.make_tensor_value_info("scores", kind, list(out or (shape[0], channels, *shape[2:])))],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def conv(weight, bias=None, **options):
    """Return one convolution, `weight` (C, 1, three axes of odd size), padded by zeros."""
    weight = np.asarray(weight, np.float32)
    bias = np.zeros(len(weight), np.float32) if bias is None else np.asarray(bias, np.float32)
    pads = [size // 2 for size in weight.shape[2:]] * 2
    node = helper.make_node("Conv", ["image", "w", "b"], ["scores"], pads=pads)
    return network([node], {"w": weight, "b": bias}, channels=len(weight), **options)


def bands(edges=(0.0, 100.0), **options):
    """Return a network whose highest channel is how many of the (rising) edges a voxel lies above: line c has slope c."""
    slopes = np.arange(len(edges) + 1, dtype=np.float32).reshape(-1, 1, 1, 1, 1)
    return conv(slopes, -np.concatenate([[0], np.cumsum(edges)]), **options)


def shifted(axis: int, **options):
    """Return `bands` of the neighbour at index + 1 along one of the network's axes (0, 1, 2)."""
    size = [1, 1, 1]
    size[axis] = 3
    weight = np.zeros((3, 1, *size), np.float32)
    weight[:, 0].reshape(3, 3)[:, 2] = [0, 1, 2]
    return conv(weight, [0, 0, -100], **options)


def write_model(folder: Path, model, said: dict | None = None) -> Path:
    """Write a model's folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    save(model, str(folder / "network.onnx"))
    (folder / "model.yaml").write_text(yaml.safe_dump(said or card(), sort_keys=False))
    return folder
