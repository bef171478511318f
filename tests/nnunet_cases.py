"""Small nnU-Net models, and volumes that fire every class of theirs; for the tests and for `scripts/make_nnunet_reference.py`.

Everything is made from seeds with NumPy alone, so that nnU-Net's own predictor, in another environment, sees the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.made_series import AXIAL

DATA = Path(__file__).parent / "inference" / "data" / "nnunet"
"""The models, their folds as ONNX, and what nnU-Net makes of the volumes."""

_DATA = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


@dataclass(frozen=True)
class Case:
    """One model and one volume.

    Attributes:
        name: of its folder in `tests/inference/data/nnunet`.
        configuration: of the plans.
        orientation: the training images' axes, as nibabel names them.
        shape: of the volume, (k, j, i), axial: LPS.
        spacing: of the volume, mm, (k, j, i).
        wanted: the plans' spacing.
        patch: the plans' patch size.
        forward: the plans' transpose_forward.
        scheme: the plans' normalization scheme.
        mask: the plans' use_mask_for_norm.
        labels: dataset.json's.
        order: dataset.json's regions_class_order.
        mirror: the checkpoints' inference_allowed_mirroring_axes.
        folds: how many.
        reader: the plans' image_reader_writer.
        keep: labels_or_regions of one step of postprocessing.json.
    """

    name: str
    configuration: str
    orientation: str
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    wanted: tuple[float, ...]
    patch: tuple[int, ...]
    forward: tuple[int, int, int]
    scheme: str
    mask: bool
    labels: dict[str, Any]
    order: tuple[int, ...] | None = None
    mirror: tuple[int, ...] | None = None
    folds: int = 1
    reader: str = "SimpleITKIO"
    keep: Any = None

    @property
    def folder(self) -> str:
        """Return what nnU-Net would call the folder."""
        return f"nnUNetTrainer__nnUNetPlans__{self.configuration}"

    @property
    def is_ct(self) -> bool:
        """Say whether the volume has HU."""
        return self.scheme == "CTNormalization"


LABELS = {"background": 0, "left part": 1, "right part": 2, "ignore": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
CASES = (
    # Thick slices (separate z) that the network sees twice as fine, so that on the way back every slice lies half-way between two;
    # two folds; trained on RAS, so that the patient lies the other way along x and y. No case is mirrored along every axis:
    # the mean of all mirrored runs is the same whichever way the patient lies.
    Case(
        "thick-ct",
        "3d_fullres",
        "RAS",
        (18, 60, 52),
        (5.0, 0.8, 0.8),
        (2.5, 1.1, 0.9),
        (16, 24, 20),
        (0, 1, 2),
        "CTNormalization",
        False,
        LABELS,
        mirror=(0, 2),
        folds=2,
        keep=[1, 2],
    ),
    # Isotropic splines, a crop, the mask's statistics, regions, axes in another order.
    Case(
        "regions-mr",
        "3d_fullres",
        "LPS",
        (40, 44, 48),
        (1.3, 1.0, 1.1),
        (1.2, 1.5, 1.3),
        (24, 20, 16),
        (1, 0, 2),
        "ZScoreNormalization",
        True,
        REGIONS,
        order=(1, 2, 3),
        mirror=(0, 1),
        reader="NibabelIO",
    ),
    # Slices across x, which the network's order of axes makes the first; turned to RAS by the reader.
    Case(
        "slices-mr",
        "2d",
        "RAS",
        (40, 44, 36),
        (1.5, 1.0, 2.0),
        (1.2, 1.3),
        (28, 32),
        (2, 0, 1),
        "ZScoreNormalization",
        False,
        LABELS,
        mirror=(1,),
        reader="SimpleITKIOWithReorient",
    ),
)


def stored(case: Case) -> np.ndarray:
    """Return the stored values (k, j, i), uint16, of an axial series: unlike blobs, and nothing symmetrical."""
    rng = np.random.default_rng(len(case.name))
    k, j, i = np.meshgrid(*(np.linspace(-1, 1, n) for n in case.shape), indexing="ij")
    values = 300.0 * (i + 0.5 * j - 0.3 * k)
    for _ in range(24):
        centre, size = rng.uniform(-0.9, 0.9, 3), rng.uniform(0.12, 0.5, 3)
        far = ((k - centre[0]) / size[0]) ** 2 + ((j - centre[1]) / size[1]) ** 2 + ((i - centre[2]) / size[2]) ** 2
        values += rng.uniform(-900, 900) * np.exp(-far)
    values += rng.normal(0, 15, case.shape)
    if case.is_ct:
        return np.clip(np.rint(values + 1024), 1, 4000).astype(np.uint16)
    body = (k / 0.8) ** 2 + ((j - 0.1) / 0.75) ** 2 + ((i + 0.05) / 0.8) ** 2 < 1
    hole = (k + 0.1) ** 2 + (j - 0.2) ** 2 + (i - 0.1) ** 2 < 0.02
    return np.where(body & ~hole, np.clip(np.rint(values + 1200), 1, 4000), 0).astype(np.uint16)


def series_facts(case: Case) -> dict[str, Any]:
    """Return what `made_series.write_series` needs beside the values."""
    k, j, i = case.spacing
    common = {
        "PixelSpacing": [j, i],
        "SliceThickness": k,
        "ImageOrientationPatient": AXIAL,
        "BitsStored": 16,
        "HighBit": 15,
        "step": k,
    }
    if case.is_ct:
        return common
    leave_out = {"RescaleSlope": ..., "RescaleIntercept": ..., "RescaleType": ...}
    return {**common, **leave_out, "Modality": "MR", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.4"}


def plans(case: Case) -> dict[str, Any]:
    """Return plans.json."""
    dimensions = len(case.patch)
    network = {
        "n_stages": 2,
        "features_per_stage": [6, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": [[3] * dimensions] * 2,
        "strides": [[1] * dimensions, [2] * dimensions],
        "n_conv_per_stage": [1, 1],
        "n_conv_per_stage_decoder": [1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    configuration = {
        "data_identifier": "nnUNetPlans",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(case.patch),
        "spacing": list(case.wanted),
        "normalization_schemes": [case.scheme],
        "use_mask_for_norm": [case.mask],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": _DATA,
        "resampling_fn_seg_kwargs": {**_DATA, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
        "resampling_fn_probabilities_kwargs": {**_DATA, "order": 1},
        "architecture": {
            "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
            "arch_kwargs": network,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
        "batch_dice": False,
    }
    foreground = {"mean": 60.0, "std": 350.0, "percentile_00_5": -700.0, "percentile_99_5": 900.0, "min": -1, "max": 1}
    return {
        "dataset_name": f"Dataset001_{case.name}",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": case.reader,
        "transpose_forward": list(case.forward),
        "transpose_backward": [case.forward.index(n) for n in range(3)],
        "configurations": {case.configuration: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": foreground},
    }


def dataset(case: Case) -> dict[str, Any]:
    """Return dataset.json."""
    found: dict[str, Any] = {
        "channel_names": {"0": "CT" if case.is_ct else "T1"},
        "labels": case.labels,
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    if case.order:
        found["regions_class_order"] = list(case.order)
    return found


def postprocessing(case: Case) -> dict[str, Any] | None:
    """Return postprocessing.json, or None."""
    if case.keep is None:
        return None
    return {
        "postprocessing_fns": ["remove_all_but_largest_component_from_segmentation"],
        "postprocessing_kwargs": [{"labels_or_regions": case.keep}],
    }


RESAMPLED = {
    "isotropic": ((9, 14, 12), (2.0, 1.0, 1.1), (1.3, 1.4, 0.8)),
    "thick slices": ((7, 14, 12), (5.0, 0.8, 0.8), (3.0, 1.0, 1.1)),
    "thick rows": ((12, 6, 13), (0.8, 5.0, 0.9), (1.0, 2.0, 1.2)),
    "thick columns": ((11, 13, 6), (0.8, 0.9, 5.0), (1.0, 0.7, 2.0)),
    "thick only after": ((13, 10, 11), (1.0, 1.0, 1.0), (4.0, 0.9, 1.2)),
    "two thick axes": ((12, 8, 7), (0.4, 1.5, 1.5), (0.5, 1.0, 2.0)),
    "one axis": ((6, 11, 12), (2.0, 1.0, 1.0), (2.0, 1.5, 1.0)),
    "one slice": ((1, 11, 3), (2.0, 1.0, 1.0), (2.0, 0.6, 0.3)),
}
"""Shape (k, j, i), spacing and wanted spacing of volumes that are resampled alone."""

PREPARED = {
    "ct": (("CTNormalization",), (False,), (2.5, 0.8, 0.8), (1.5, 1.2, 1.1)),
    "two channels": (("ZScoreNormalization",) * 2, (False, True), (5.0, 0.8, 0.8), (3.0, 1.0, 0.9)),
    "unlike channels": (
        ("RescaleTo01Normalization", "ZScoreNormalization"),
        (False, True),
        (1.0, 1.0, 1.0),
        (1.0, 0.7, 0.9),
    ),
    "slices": (("NoNormalization", "CTNormalization"), (False, False), (5.0, 0.8, 0.7), (1.0, 1.0)),
}
"""Normalization schemes, use_mask_for_norm, spacing and wanted spacing of volumes that are prepared."""

FOREGROUND = {"mean": 50.0, "std": 120.0, "percentile_00_5": -300.0, "percentile_99_5": 400.0}


def noise(shape: tuple[int, ...]) -> np.ndarray:
    """Return seeded values, float32."""
    return np.random.default_rng(list(shape)).normal(size=shape).astype(np.float32)


def with_zeros(channels: int) -> np.ndarray:
    """Return channels (C, k, j, i), float32, that are 0 around a box, in a hole and in a bay of it."""
    found = 100 + 200 * noise((channels, 14, 17, 15))
    inside = np.zeros(found.shape[1:], bool)
    inside[2:12, 1:15, 3:14] = True
    inside[4:8, 5:9, 6:9] = False
    inside[6:8, 12:15, 3:6] = False
    return np.where(inside, found, np.float32(0))


WINDOWS = ((8, 8, 8), (7, 9, 12), (16, 24))
SIZES = (24, 25, 31, 40, 59)
"""Windows, and sizes of axes that they are laid along."""
