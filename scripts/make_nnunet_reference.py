"""Write what nnU-Net's own predictor makes of small seeded models, for tests/inference/formats/test_nnunet.py.

    PYTHONPATH=. VENV/bin/python scripts/make_nnunet_reference.py                # tests/inference/data/nnunet
    PYTHONPATH=. VENV/bin/python scripts/make_nnunet_reference.py --into FOLDER  # models with checkpoints, and their references
    PYTHONPATH=. VENV/bin/python scripts/make_nnunet_reference.py --parts        # only what its parts give: parts.npz

VENV holds torch, nnunetv2 (made with 2.8.1), onnx, SimpleITK and what md needs. The models are those of tests/nnunet_cases.py,
their weights random; the last layer's bias is moved until every class has its share. nnU-Net reads NIfTI in the training's
orientation and knows nothing of md. Labels are written as (k, j, i) of the volume, which is axial, LPS:

- NAME_stock: the predictor as it is, which adds up scores in float16.
- NAME_exact: the same with float32 sums.
- NAME_close: where the two highest scores (with regions: a score and its threshold) of `exact` are under 1e-3 apart.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.inference.export_prediction import (
    convert_predicted_logits_to_segmentation_with_correct_shape as converted,
)
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from nnunetv2.preprocessing.cropping.cropping import create_nonzero_mask
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.preprocessing.resampling.default_resampling import compute_new_shape, resample_data_or_seg_to_shape
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from mdcli.inference.formats import Opening
from mdcli.inference.formats.nnunet import export_folds
from tests.nnunet_cases import (
    CASES,
    FOREGROUND,
    PREPARED,
    RESAMPLED,
    SIZES,
    WINDOWS,
    Case,
    dataset,
    noise,
    plans,
    postprocessing,
    stored,
    with_zeros,
)

DATA = Path(__file__).resolve().parents[1] / "tests" / "inference" / "data" / "nnunet"


def image(case: Case) -> sitk.Image:
    """Return the volume that md loads from the DICOM series, as SimpleITK has it: LPS."""
    values = stored(case).astype(np.float32)
    found = sitk.GetImageFromArray(values - 1024 if case.is_ct else values)
    found.SetSpacing(case.spacing[::-1])
    found.SetOrigin((-10.0, 20.0, 100.0))
    return found


def write_model(case: Case, folder: Path) -> None:
    """Write a result folder with checkpoints."""
    folder.mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps(plans(case), indent=1))
    (folder / "dataset.json").write_text(json.dumps(dataset(case), indent=1))
    if (steps := postprocessing(case)) is not None:
        (folder / "postprocessing.json").write_text(json.dumps(steps, indent=1))
    said = plans(case)["configurations"][case.configuration]["architecture"]
    heads = len(case.order) if case.order else len(case.labels) - ("ignore" in case.labels)
    for fold in range(case.folds):
        torch.manual_seed(100 + fold)
        network = get_network_from_plans(
            said["network_class_name"],
            said["arch_kwargs"],
            said["_kw_requires_import"],
            1,
            heads,
            deep_supervision=False,
        )
        save(case, folder, fold, network)
    # Move the biases until each class is where it would be by chance: regions cover half of the one around them.
    for _ in range(4):
        scores = predicted(case, folder, exact=True)[2].reshape(heads, -1)
        if case.order:
            shift = [-np.quantile(score, 1 - 0.6 / (n + 1)) for n, score in enumerate(scores)]
        else:
            shift = -np.median(scores, axis=1)
            share = np.bincount(scores.argmax(0), minlength=heads) / scores.shape[1]
            shift = (1 / heads - share) * scores.std() * 0.7
        for fold in range(case.folds):
            path = folder / f"fold_{fold}" / "checkpoint_final.pth"
            checkpoint = torch.load(path, weights_only=False)
            bias = next(k for k in reversed(checkpoint["network_weights"]) if k.endswith("seg_layers.0.bias"))
            checkpoint["network_weights"][bias] += torch.tensor(np.array(shift), dtype=torch.float32)
            torch.save(checkpoint, path)


def save(case: Case, folder: Path, fold: int, network: torch.nn.Module) -> None:
    """Write a checkpoint as nnUNetTrainer.save_checkpoint does."""
    arguments = {
        "plans": plans(case),
        "configuration": case.configuration,
        "fold": fold,
        "dataset_json": dataset(case),
        "device": torch.device("cpu"),
    }
    checkpoint = {
        "network_weights": network.state_dict(),
        "optimizer_state": {"state": {}, "param_groups": [{"lr": 1e-2}]},
        "grad_scaler_state": None,
        "logging": {"mean_fg_dice": [np.float64(0.5)], "lrs": [0.01]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1000,
        "init_args": arguments,
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": case.mirror,
    }
    path = folder / f"fold_{fold}" / "checkpoint_final.pth"
    path.parent.mkdir()
    torch.save(checkpoint, path)


def predicted(case: Case, folder: Path, *, exact: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return nnU-Net's labels (k, j, i) of the LPS volume, where they are close, and the scores on the network's grid."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), None)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "case_0000.nii.gz"
        sitk.WriteImage(sitk.DICOMOrient(image(case), case.orientation), path)
        reader = predictor.plans_manager.image_reader_writer_class()
        data, facts = reader.read_images([str(path)])
        preprocessor = predictor.configuration_manager.preprocessor_class(verbose=False)
        data, _, facts = preprocessor.run_case_npy(
            data, None, facts, predictor.plans_manager, predictor.configuration_manager, predictor.dataset_json
        )
        half = mock.patch("torch.half", torch.float32) if exact else mock.patch("torch.half", torch.half)
        with half:
            logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).float()
        labels, probabilities = converted(
            logits,
            predictor.plans_manager,
            predictor.configuration_manager,
            predictor.label_manager,
            facts,
            return_probabilities=True,
        )
        if (steps := postprocessing(case)) is not None:
            for arguments in steps["postprocessing_kwargs"]:
                labels = remove_all_but_largest_component_from_segmentation(labels, **arguments)
        with np.errstate(divide="ignore"):
            scores = np.log(np.float64(probabilities))
            if case.order:
                margin = np.abs(scores - np.log1p(-np.float64(probabilities))).min(axis=0)
            else:
                highest = np.sort(scores, axis=0)
                margin = highest[-1] - highest[-2]
        written = []
        for values in (labels, (margin < 1e-3).astype(np.uint8)):
            out = Path(temporary) / "out.nii.gz"
            reader.write_seg(values, str(out), facts)
            written.append(sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(out), "LPS")))
    return written[0], written[1] != 0, logits.numpy()


def parts() -> dict[str, np.ndarray]:
    """Return what nnU-Net's resampling, preprocessing and window weights give for the small arrays of tests/nnunet_cases.py."""
    found = {}
    for name, (shape, spacing, wanted) in RESAMPLED.items():
        size = compute_new_shape(shape, spacing, wanted)
        array = noise(shape)[None]
        options = {"force_separate_z": None, "order_z": 0}
        found[f"cubic {name}"] = resample_data_or_seg_to_shape(array.copy(), size, spacing, wanted, order=3, **options)[
            0
        ]
        found[f"back {name}"] = resample_data_or_seg_to_shape(
            noise(tuple(size))[None], shape, wanted, spacing, order=1, **options
        )[0].astype(np.float32)
    for name, (schemes, masks, spacing, wanted) in PREPARED.items():
        said = plans(CASES[0])
        said["configurations"]["3d_fullres"] |= {
            "spacing": list(wanted),
            "normalization_schemes": list(schemes),
            "use_mask_for_norm": list(masks),
        }
        said["foreground_intensity_properties_per_channel"] = {str(n): FOREGROUND for n in range(len(schemes))}
        manager = PlansManager(said)
        data, _, facts = DefaultPreprocessor(verbose=False).run_case_npy(
            with_zeros(len(schemes)),
            None,
            {"spacing": list(spacing)},
            manager,
            manager.get_configuration("3d_fullres"),
            {},
        )
        found[f"prepared {name}"], found[f"box {name}"] = data, np.array(facts["bbox_used_for_cropping"])
    found["mask"] = create_nonzero_mask(with_zeros(2))
    for window in WINDOWS:
        weights = compute_gaussian(window, value_scaling_factor=10, device=torch.device("cpu"))
        found[f"weights {window}"] = weights.numpy()
        for size in SIZES:
            starts = compute_steps_for_sliding_window([size] * len(window), window, 0.5)
            found[f"starts {window} {size}"] = np.concatenate([np.array(each) for each in starts])
    return found


def main() -> None:
    """Write models and references."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--into", type=Path, help="a folder for models with checkpoints; nothing is exported")
    parser.add_argument("--parts", action="store_true", help="write parts.npz and nothing else")
    into, only_parts = parser.parse_args().into, parser.parse_args().parts
    torch.set_num_threads(1)
    if into is None:
        DATA.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(DATA / "parts.npz", **parts())
    if only_parts:
        return
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        models = into or Path(temporary)
        for case in CASES:
            folder = models / case.name / case.folder
            write_model(case, folder)
            found[f"{case.name}_stock"] = predicted(case, folder, exact=False)[0].astype(np.uint8)
            labels, close, _ = predicted(case, folder, exact=True)
            found[f"{case.name}_exact"], found[f"{case.name}_close"] = labels.astype(np.uint8), close
            unlike = int((labels != found[f"{case.name}_stock"]).sum())
            print(
                case.name,
                np.bincount(labels.ravel()),
                f"stock differs in {unlike}, close {int(close.sum())}",
                file=sys.stderr,
            )
            if into is None:
                target = DATA / case.name
                shutil.rmtree(target, ignore_errors=True)
                cache = Path(temporary) / "cache"
                export_folds(folder, target, Opening(cache=cache, orientation=case.orientation))
    np.savez_compressed((into or DATA) / "reference.npz", **found)


if __name__ == "__main__":
    main()
