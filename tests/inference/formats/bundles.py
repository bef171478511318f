"""MONAI Bundles in the style of the public zoo, with small networks: for the tests, and for `scripts/make_bundle_reference.py`.

Needs numpy and onnx alone: neither md nor MONAI, so that both run the same files.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

SEED = 20260301
LOAD = [{"_target_": "LoadImaged", "keys": "image"}, {"_target_": "EnsureChannelFirstd", "keys": "image"}]
SAVE = {"_target_": "SaveImaged", "keys": "pred", "output_dir": "@output_dir", "output_dtype": "$numpy.float32"}


def transform(name: str, key: str = "image", **arguments: Any) -> dict[str, Any]:
    """Return a transform of a dictionary."""
    return {"_target_": name, "keys": key, **arguments}


def invert(nearest: bool) -> dict[str, Any]:
    """Return the transform that takes a result back."""
    return transform(
        "Invertd", "pred", transform="@preprocessing", orig_keys="image", nearest_interp=nearest, to_tensor=True
    )


def compose(*transforms: dict[str, Any]) -> dict[str, Any]:
    """Return a `Compose`."""
    return {"_target_": "Compose", "transforms": list(transforms)}


def metadata(
    channels: int, names: list[str], shape: list[Any], inputs: list[str] = ("image",), **changes: Any
) -> dict[str, Any]:
    """Return a metadata.json. `changes` go to the output."""
    given = {
        "type": "image",
        "format": "hounsfield",
        "modality": "CT",
        "num_channels": len(inputs),
        "spatial_shape": shape,
        "dtype": "float32",
        "value_range": [0, 1],
        "is_patch_data": True,
        "channel_def": {str(n): name for n, name in enumerate(inputs)},
    }
    if len(inputs) > 1:
        given |= {"format": "magnitude", "modality": "MR"}
    wanted = {
        "type": "image",
        "format": "segmentation",
        "num_channels": channels,
        "spatial_shape": shape,
        "channel_def": {str(n): name for n, name in enumerate(names)},
    }
    return {
        "version": "0.1.0",
        "monai_version": "1.4.0",
        "task": "A test",
        "description": "A network of the tests",
        "authors": "md",
        "intended_use": "Tests only",
        "network_data_format": {"inputs": {"image": given}, "outputs": {"pred": {**wanted, **changes}}},
    }


def config(**items: Any) -> dict[str, Any]:
    """Return an inference.json with what a zoo's has besides, all of which runs code."""
    return {
        "imports": ["$import glob", "$import os"],
        "bundle_root": ".",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$list(sorted(glob.glob(@bundle_root + '/*.nii.gz')))",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "network_def": {"_target_": "BasicUNet", "spatial_dims": 3, "in_channels": 1, "out_channels": 4},
        "network": "$@network_def.to(@device)",
        "dataset": {"_target_": "Dataset", "data": "$[{'image': i} for i in @datalist]", "transform": "@preprocessing"},
        "inferer": {"_target_": "SimpleInferer"},
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
        },
        "run": ["$@evaluator.run()"],
        **items,
    }


def spleen() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (metadata, configuration) as spleen_ct_segmentation's: softmax, interpolated probabilities, the highest class."""
    window = [24, 20, 16]
    return metadata(4, ["background", "spleen", "Left kidney", "liver"], window), config(
        preprocessing=compose(
            *LOAD,
            transform("Orientationd", axcodes="RAS"),
            transform("Spacingd", pixdim=[1.5, 1.4, 2.0], mode="bilinear"),
            transform("ScaleIntensityRanged", a_min=-57, a_max=164, b_min=0, b_max=1, clip=True),
            transform("EnsureTyped"),
        ),
        inferer={"_target_": "SlidingWindowInferer", "roi_size": window, "sw_batch_size": 4, "overlap": 0.5},
        postprocessing=compose(
            transform("Activationsd", "pred", softmax=True),
            invert(nearest=False),
            transform("AsDiscreted", "pred", argmax=True),
            SAVE,
        ),
    )


def whole_body() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return those as wholeBody_ct_segmentation's: statistics, the highest class first, nearest labels."""
    window = [20, 20, 20]
    return metadata(4, ["background", "bone", "lung", "vessel"], window), config(
        displayable_configs={"highres": True, "sw_overlap": 0.25, "sw_batch_size": 1},
        image_key="image",
        pixdim="$[1.65, 1.7, 1.75] if @displayable_configs#highres else [3.0, 3.0, 3.0]",
        modelname="$'model.pt' if @displayable_configs#highres else 'model_lowres.pt'",
        preprocessing=compose(
            {"_target_": "LoadImaged", "keys": "@image_key"},
            {"_target_": "EnsureTyped", "keys": "@image_key"},
            {"_target_": "EnsureChannelFirstd", "keys": "@image_key"},
            {"_target_": "Orientationd", "keys": "@image_key", "axcodes": "LPS"},
            {"_target_": "Spacingd", "keys": "@image_key", "pixdim": "@pixdim", "mode": "bilinear"},
            {"_target_": "NormalizeIntensityd", "keys": "@image_key", "nonzero": True},
            {"_target_": "ScaleIntensityd", "keys": "@image_key", "minv": -1.0, "maxv": 1.0},
        ),
        inferer={
            "_target_": "SlidingWindowInferer",
            "roi_size": window,
            "sw_batch_size": "@displayable_configs#sw_batch_size",
            "overlap": "@displayable_configs#sw_overlap",
            "mode": "gaussian",
            "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        },
        postprocessing=compose(
            transform("Activationsd", "pred", softmax=True),
            transform("AsDiscreted", "pred", argmax=True),
            invert(nearest=True),
            SAVE,
        ),
        checkpointloader={
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/' + @modelname",
            "load_dict": {"model": "@network"},
        },
    )


def brats() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return those as brats_mri_segmentation's: four channels, each normalised apart, structures that overlap."""
    window = [24, 24, 16]
    names = ["Tumor core", "Whole tumor", "Enhancing tumor"]
    fold = "$lambda x: torch.where(x[[2]] > 0, 4, torch.where(x[[0]] > 0, 1, torch.where(x[[1]] > 0, 2, 0)))"
    return metadata(3, names, ["8*n"] * 3, ["T1c", "T1", "T2", "FLAIR"]), config(
        preprocessing=compose(
            transform("LoadImaged"), transform("NormalizeIntensityd", nonzero=True, channel_wise=True)
        ),
        inferer={"_target_": "SlidingWindowInferer", "roi_size": window, "sw_batch_size": 1, "overlap": 0.5},
        postprocessing=compose(
            transform("Activationsd", "pred", sigmoid=True),
            invert(nearest=False),
            transform("AsDiscreted", "pred", threshold=0.5),
            transform("Lambdad", "pred", func=fold),
            SAVE,
        ),
    )


def cropped() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return those of a bundle that crops to the foreground and keeps the largest part of a structure."""
    window = [16, 16, 16]
    return metadata(3, ["background", "low", "high"], window), config(
        preprocessing=compose(
            *LOAD,
            transform("Orientationd", axcodes="RAS"),
            transform("Spacingd", pixdim=[1.5, 1.5, 1.5], mode=["bilinear"]),
            transform("ScaleIntensityRanged", a_min=-150, a_max=350, b_min=0, b_max=1, clip=True),
            transform("CropForegroundd", source_key="image"),
            transform("NormalizeIntensityd"),
        ),
        inferer={"_target_": "SlidingWindowInferer", "roi_size": window, "overlap": 0.25, "mode": "gaussian"},
        postprocessing=compose(
            transform("Activationsd", "pred", softmax=True),
            invert(nearest=False),
            transform("AsDiscreted", "pred", argmax=True),
            transform("KeepLargestConnectedComponentd", "pred", applied_labels=[2]),
        ),
    )


def classes() -> tuple[dict[str, Any], dict[str, Any]]:
    """Return those of a classification of volumes brought to one size."""
    said = metadata(3, ["mild", "moderate", "severe"], [16, 14, 12], type="probabilities", format="classes")
    return said, config(
        preprocessing=compose(
            *LOAD,
            transform("Orientationd", axcodes="RAS"),
            transform("ScaleIntensityd", minv=0.0, maxv=1.0),
            transform("Resized", spatial_size=[16, 14, 12]),
        ),
        postprocessing=compose(transform("Activationsd", "pred", softmax=True)),
    )


BUNDLES = {"spleen": spleen, "whole_body": whole_body, "brats": brats, "cropped": cropped, "classes": classes}
# Edges between the classes (or where each structure begins) in the prepared values that each bundle's network sees.
EDGES = {
    "spleen": (0.25, 0.5, 0.8),
    "whole_body": (-0.35, -0.1, 0.25),
    "brats": (0.1, -0.4, 0.5),
    "cropped": (-0.3, 0.5),
}


def weights(name: str) -> dict[str, np.ndarray]:
    """Return a network's weights: a lopsided mean of 3 x 3 x 3 voxels (and the channels), then one line a class.

    The highest of those lines is how many of the edges the mean lies above; with `brats` each line crosses 0 at its own edge.
    """
    generator = np.random.default_rng(SEED)
    channels = 4 if name == "brats" else 1
    first = generator.uniform(0.2, 1.0, (1, channels, 3, 3, 3)) * np.array([0.5, 1.0, 2.0])[:, None, None]
    first /= first.sum()
    if name == "classes":
        linear = generator.normal(0, 2, (3, 4))
        return {"first": first.astype(np.float32), "linear": linear.astype(np.float32)}
    edges = np.array(EDGES[name])
    if name == "brats":
        slopes, offsets = np.full(3, 12.0), -12.0 * edges
    else:
        slopes, offsets = 12.0 * np.arange(len(edges) + 1), -12.0 * np.concatenate([[0], np.cumsum(edges)])
    return {
        "first": first.astype(np.float32),
        "slopes": slopes.reshape(-1, 1, 1, 1, 1).astype(np.float32),
        "offsets": offsets.astype(np.float32),
    }


def network(name: str) -> Any:
    """Return a bundle's network as an ONNX model."""
    held = weights(name)
    channels = held["first"].shape[1]
    nodes = [helper.make_node("Conv", ["image", "first"], ["mean"], pads=[1] * 6)]
    if name == "classes":
        shape, out = ["n", 1, 16, 14, 12], ["n", 3]
        nodes += [
            # Means of the whole, of the first half along each axis: an axis in the wrong place changes the scores.
            helper.make_node("GlobalAveragePool", ["mean"], ["all"]),
            *(
                node
                for axis, half in enumerate((8, 7, 6), start=2)
                for node in (
                    helper.make_node("Slice", ["mean", "zero", f"half{axis}", f"axis{axis}"], [f"cut{axis}"]),
                    helper.make_node("GlobalAveragePool", [f"cut{axis}"], [f"part{axis}"]),
                )
            ),
            helper.make_node("Concat", ["all", "part2", "part3", "part4"], ["joined"], axis=1),
            helper.make_node("Flatten", ["joined"], ["flat"]),
            helper.make_node("Gemm", ["flat", "linear"], ["scores"], transB=1, alpha=1.5),
        ]
        held["zero"] = np.array([0], np.int64)
        for axis, half in enumerate((8, 7, 6), start=2):
            held[f"half{axis}"], held[f"axis{axis}"] = np.array([half], np.int64), np.array([axis], np.int64)
    else:
        shape, out = ["n", channels, "a", "b", "c"], ["n", len(held["offsets"]), "a", "b", "c"]
        nodes.append(helper.make_node("Conv", ["mean", "slopes", "offsets"], ["scores"]))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(array, key) for key, array in held.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def write_bundle(folder: Path, name: str, *, onnx: bool = True, edit: Any = None) -> Path:
    """Write one of the bundles and return its folder; `edit(metadata, configuration)` may change it first."""
    said, configuration = copy.deepcopy(BUNDLES[name]())
    if edit is not None:
        edit(said, configuration)
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / "metadata.json").write_text(json.dumps(said, indent=1))
    (folder / "configs" / "inference.json").write_text(json.dumps(configuration, indent=1))
    if onnx:
        save(network(name), str(folder / "models" / "model.onnx"))
    return folder
