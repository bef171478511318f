"""MMARs of the tests, in the style of those of Clara Train 3.1 and 4.1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

NAME = "clara_spleen_ct"


def of_version_3(**changes: Any) -> dict[str, Any]:
    """Return `config_validation.json` of Clara Train 3; `changes` replace keys."""
    return {
        "batch_size": 1,
        "pre_transforms": [
            {"name": "LoadNifti", "args": {"fields": ["image", "label"], "as_closest_canonical": "true"}},
            {"name": "ConvertToChannelsFirst", "args": {"fields": ["image", "label"]}},
            {"name": "ScaleByResolution", "args": {"fields": ["image"], "target_resolution": [1.5, 2.0, 3.0]}},
            {
                "name": "ScaleIntensityRange",
                "args": {"fields": "image", "a_min": -57, "a_max": 164, "b_min": 0.0, "b_max": 1.0, "clip": True},
            },
            {"name": "ConvertToMultiChannel", "args": {"fields": "label"}},
        ],
        "post_transforms": [
            {"name": "ArgmaxAcrossChannels", "args": {"fields": "model"}},
            {"name": "FetchExtraProperties", "args": {"field": "image"}},
            {"name": "RestoreOriginalShape", "args": {"field": "model", "src_field": "image", "is_label": True}},
            {"name": "CopyProperties", "args": {"fields": ["model"], "from_field": "image", "properties": ["affine"]}},
        ],
        "writers": [{"name": "WriteNifti", "args": {"field": "model", "write_path": "{MMAR_EVAL_OUTPUT_PATH}"}}],
        "inferer": {"name": "TFScanWindowInferer", "args": {"roi_size": [16, 24, 32], "batch_size": 4, "overlap": 0.5}},
        "model_loader": {
            "name": "FrozenGraphModelLoader",
            "args": {"model_file_path": "{MMAR_CKPT_DIR}/model.trt.pb"},
        },
        **changes,
    }


def of_version_4(**changes: Any) -> dict[str, Any]:
    """Return `config_inference.json` of Clara Train 4; `changes` replace keys of its section `inference`."""
    return {
        "multi_gpu": False,
        "dataset_dir": "{DATA_ROOT}",
        "inference": {
            "pre_transforms": [
                {"name": "LoadImaged", "args": {"keys": ["image", "label"]}},
                {"name": "EnsureChannelFirstd", "args": {"keys": ["image", "label"]}},
                {"name": "Orientationd", "args": {"keys": ["image", "label"], "axcodes": "RAS"}},
                {
                    "name": "Spacingd",
                    "args": {"keys": ["image", "label"], "pixdim": [1.5, 2.0, 3.0], "mode": ["bilinear", "nearest"]},
                },
                {
                    "name": "ScaleIntensityRanged",
                    "args": {"keys": "image", "a_min": -57, "a_max": 164, "b_min": 0.0, "b_max": 1.0, "clip": True},
                },
                {"name": "ToTensord", "args": {"keys": ["image", "label"]}},
            ],
            "inferer": {
                "name": "SlidingWindowInferer",
                "args": {"roi_size": [16, 24, 32], "sw_batch_size": 4, "overlap": 0.5},
            },
            "post_transforms": [
                {"name": "Activationsd", "args": {"keys": "pred", "softmax": True}},
                {
                    "name": "Invertd",
                    "args": {
                        "keys": "pred",
                        "transform": "@pre_transforms",
                        "orig_keys": "image",
                        "meta_keys": "pred_meta_dict",
                        "nearest_interp": False,
                        "to_tensor": True,
                    },
                },
                {
                    "name": "AsDiscreted",
                    "args": {"keys": ["pred", "label"], "argmax": [True, False], "to_onehot": True, "n_classes": 2},
                },
                {"name": "SaveImaged", "args": {"keys": "pred", "output_dir": "{MMAR_EVAL_OUTPUT_PATH}"}},
            ],
            "handlers": [{"name": "StatsHandler", "args": {"output_transform": "#lambda x: None"}}],
            **changes,
        },
    }


AIAA = {
    "version": "3",
    "type": "segmentation",
    "labels": ["spleen"],
    "description": "Volumetric segmentation of the spleen from CT image",
}
ENVIRONMENT = {"DATA_ROOT": "/workspace/data", "MMAR_CKPT_DIR": "models", "MMAR_EVAL_OUTPUT_PATH": "eval"}


def write(
    folder: Path,
    workflow: dict[str, Any],
    *,
    aiaa: Any = None,
    environment: Any = None,
    network: str | None = "model.onnx",
) -> Path:
    """Write an MMAR and return its folder; without another network it has the ONNX one of `shifted`."""
    path = folder / NAME
    (path / "config").mkdir(parents=True)
    (path / "models").mkdir()
    name = "config_inference.json" if "inference" in workflow else "config_validation.json"
    for file, said in (
        (name, workflow),
        ("config_aiaa.json", {**AIAA, **(aiaa or {})}),
        ("environment.json", {**ENVIRONMENT, **(environment or {})}),
    ):
        (path / "config" / file).write_text(json.dumps(said, indent=1))
    if network == "model.onnx":
        shifted(path / "models" / network)
    elif network:
        (path / "models" / network).write_bytes(b"weights")
    return path


def shifted(path: Path) -> None:
    """Write an ONNX network (N, 1, x, y, z) to two classes: the second where the voxel at x - 1 is above 0.5."""
    from onnx import TensorProto, helper, numpy_helper, save

    kernel = np.zeros((2, 1, 3, 1, 1), np.float32)
    kernel[:, 0, 0, 0, 0] = (-1, 1)
    sizes = ["x", "y", "z"]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "kernel", "bias"], ["scores"], pads=[1, 0, 0, 1, 0, 0])],
        "shifted",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 1, *sizes])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2, *sizes])],
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(np.array([0.5, -0.5], np.float32), "bias")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
