"""Read a result folder of nnU-Net v2 into a card: plans.json, dataset.json, the folds, postprocessing.json.

What nnU-Net's own predictor would do is said in the card's words; what they have no word for is refused by name
(`unsupported-nnunet`). A fold is `fold_N/checkpoint_final.pth`, converted to ONNX once by a child process that has torch, or
`fold_N/network.onnx` with `network.json` beside it, which needs no torch. No pickle is read here.

Source: nnunetv2 2.8.1: inference.predict_from_raw_data, inference.export_prediction, utilities.plans_handling,
utilities.label_handling, postprocessing.remove_connected_components.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mdcli.dicom.plain_yaml import PlainYamlError, load_yaml
from mdcli.errors import ConfigError, MissingError
from mdcli.inference.card import (
    Bound,
    Card,
    Clip,
    Crop,
    Input,
    Label,
    Normalize,
    Output,
    ScaleVolume,
    Step,
    Window,
    completed,
)
from mdcli.inference.formats import ModelFolder, Opening, digest_of, inside, sha256_of
from mdcli.inference.formats.torchfile import NetworkDefinition, to_onnx
from mdcli.inference.naming import one_line, private_label, slug
from mdcli.inference.onnxfile import external_files
from mdcli.inference.steps_after import KeepLargest

PLANS, DATASET, POSTPROCESSING = "plans.json", "dataset.json", "postprocessing.json"
CHECKPOINT, NETWORK, FACTS = "checkpoint_final.pth", "network.onnx", "network.json"
FACTS_SCHEMA = "md.nnunet-fold/1"

_MAX_JSON_BYTES = 64 << 20
# nnU-Net's arrays are (C, z, y, x) before `transpose_forward`: those of SimpleITK, whichever reader it was.
_AXES = ("z", "y", "x")
_REORIENTING = ("SimpleITKIOWithReorient", "NibabelIOWithReorient")
_AS_THEY_ARE = ("SimpleITKIO", "NibabelIO")
_RESAMPLING = "resample_data_or_seg_to_shape"
_SEPARATE_ABOVE = 3.0
_MAX_INHERITED = 16
# Classes of dynamic_network_architectures that nnU-Net's planners name, by where they lie today.
_NETWORKS = {
    name: f"dynamic_network_architectures.architectures.unet.{name}"
    for name in ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
}
# Trainers that build another network than the plans say.
_OTHER_NETWORKS = re.compile(r"(?i).*primus.*|.*nnUNetTrainerBN.*")
_KNOWN_TRAINERS = re.compile(
    r"nnUNetTrainer(_?(\d+epochs?|NoMirroring|onlyMirror01|1500ep|DASegOrd0|DA5|ord0|Segord0|NoDA|noDummy2DDA|NoDeepSupervision"
    r"|CELoss|DiceLoss|DiceCELoss_noSmooth|DiceTopK10Loss|Topk10Loss|Topk10LossLS01|CosAnneal|warmup|probabilisticOversampling"
    r"|010|033|Adam|VanillaAdam|Adan|AdanCosAnneal|1en3|3en4|1en1|Benchmark|noDataLoading))*|nnUNet_Trainer_BS8"
)


@dataclass(frozen=True)
class _Fold:
    """One fold: its network, and what its checkpoint says beside the weights."""

    network: Path
    files: tuple[Path, ...]
    facts: Mapping[str, Any]
    notes: tuple[tuple[str, str], ...] = ()


class NnUNet:
    """Reads a folder `Trainer__Plans__configuration`, or its plans.json."""

    name = "nnunet"

    def recognises(self, path: Path) -> bool:
        """Say whether there are plans, a data set's description and a fold. See `Format.recognises`."""
        folder = _folder(path)
        return (folder / PLANS).is_file() and (folder / DATASET).is_file() and bool(_fold_names(folder))

    def read(self, path: Path, opening: Opening) -> ModelFolder:
        """Return the model. See `Format.read`.

        Raises:
            ConfigError: `bad-nnunet` where a file does not say what it must; `unsupported-nnunet` for what is not reproduced;
                `orientation-unknown`; and those of `torchfile.to_onnx`.
            MissingError: `no-network`.
        """
        folder = _folder(path)
        plans, dataset = _document(folder / PLANS), _document(folder / DATASET)
        names = _fold_names(folder)
        if not names:
            raise MissingError("no-network", f"{folder.name} has no fold with {CHECKPOINT} or {NETWORK}")
        facts = _facts(folder / names[0] / FACTS)
        configuration = _Configuration.of(folder, plans, facts)
        labels = _labels(dataset, plans)
        channels = _channels(dataset)
        folds = [_fold(folder, name, configuration, len(channels), labels.heads, opening) for name in names]
        _check_folds(folds, names, configuration)
        after, after_files, after_notes = _postprocessing(folder, names, labels)
        orientation = _orientation(plans, folds[0].facts, opening)
        card = _card(folder, plans, dataset, configuration, labels, channels, orientation, names, folds, after)
        files = [folder / PLANS, folder / DATASET, *after_files, *(file for fold in folds for file in fold.files)]
        notes = (*labels.notes, *after_notes, *(note for fold in folds for note in fold.notes), *_trainer_notes(folds))
        return ModelFolder(
            card, tuple(fold.network for fold in folds), digest_of(folder, files), tuple(dict.fromkeys(notes)), folder
        )


def export_folds(path: Path, out: Path, opening: Opening) -> tuple[Path, ...]:
    """Write a folder that holds the folds as ONNX and needs no torch.

    Args:
        path: a result folder.
        out: the folder to make; it must not be there yet.
        opening: needs a cache. A given orientation is written down, so that it need not be said again.

    Returns:
        The files written.

    Raises:
        ConfigError, MissingError: as `NnUNet.read`; `would-replace` where `out` is there.
    """
    folder = _folder(path)
    model = NnUNet().read(folder, opening)
    if out.exists():
        raise ConfigError("would-replace", f"{out.name} is there already")
    configuration = _Configuration.of(
        folder, _document(folder / PLANS), _facts(folder / _fold_names(folder)[0] / FACTS)
    )
    written = []
    for name in (PLANS, DATASET):
        written.append(_copied(folder / name, out / name))
    if (said := _postprocessing_file(folder, _fold_names(folder))) is not None:
        written.append(_copied(said, out / POSTPROCESSING))
    mirrored = [_place(configuration, axis) for axis in model.card.mirror]
    for name, network in zip(_fold_names(folder), model.networks, strict=True):
        assert isinstance(network, Path)
        written.append(_copied(network, out / name / NETWORK))
        written += [_copied(network.parent / each, out / name / each) for each in sorted(external_files(network))]
        checkpoint = folder / name / CHECKPOINT
        document = {
            "schema": FACTS_SCHEMA,
            "configuration": configuration.name,
            "trainer_name": configuration.trainer,
            "inference_allowed_mirroring_axes": mirrored,
            "orientation": model.card.input.orientation,
            "checkpoint_sha256": sha256_of(checkpoint) if checkpoint.is_file() else None,
        }
        target = out / name / FACTS
        target.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        written.append(target)
    return tuple(written)


def _copied(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    return target


def _folder(path: Path) -> Path:
    return path.parent if path.name == PLANS and path.is_file() else path


def _fold_names(folder: Path) -> list[str]:
    """Return the folds that are there, as nnU-Net finds them: those with a number; `fold_all` where it is alone."""
    found = (
        [path.name for path in folder.iterdir() if re.fullmatch(r"fold_(\d{1,3}|all)", path.name)]
        if folder.is_dir()
        else []
    )
    found = [name for name in found if any((folder / name / file).is_file() for file in (CHECKPOINT, NETWORK))]
    numbered = sorted((name for name in found if name != "fold_all"), key=lambda name: int(name[5:]))
    return numbered or found


def _bad(place: str, message: str) -> NoReturn:
    raise ConfigError("bad-nnunet", f"{place}: {message}")


def _refuse(place: str, message: str, hint: str | None = None) -> NoReturn:
    raise ConfigError("unsupported-nnunet", f"{place}: {message}", hint=hint)


def _said(value: Any) -> str:
    return repr(one_line(str(value), 60))


def _document(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(_MAX_JSON_BYTES + 1)
    if len(content) > _MAX_JSON_BYTES:
        _bad(path.name, f"over {_MAX_JSON_BYTES >> 20} MiB")
    try:
        document = load_yaml(content.decode("utf-8"))
    except (UnicodeDecodeError, PlainYamlError) as error:
        _bad(path.name, f"no JSON that can be read: {error}")
    if not isinstance(document, dict):
        _bad(path.name, "no JSON object")
    return document


def _facts(path: Path) -> dict[str, Any] | None:
    """Return what stands beside an exported fold, or None."""
    if not path.is_file():
        return None
    document = _document(path)
    if document.get("schema") != FACTS_SCHEMA:
        _bad(path.name, f"schema is {_said(document.get('schema'))}, not {FACTS_SCHEMA!r}")
    return document


def _list(value: Any, kind: type | tuple[type, ...], place: str, length: int | None = None) -> list[Any]:
    """Return a list of one kind of values, and of a length where one is given."""
    good = isinstance(value, list) and all(
        isinstance(v, kind) and (kind is bool or not isinstance(v, bool)) for v in value
    )
    if not good or (length is not None and len(value) != length):
        _bad(place, f"{_said(value)} where a list{'' if length is None else f' of {length}'} is wanted")
    found: list[Any] = value
    return found


@dataclass(frozen=True)
class _Configuration:
    """One configuration of the plans, its inheritance resolved.

    Attributes:
        name: such as `3d_fullres`.
        trainer: its class's name, where the folder says it.
        values: as in the plans.
        axes: of the network's array without C, in its order.
        patch: voxels of a window, in the order of `axes`.
        spacing: mm, in the order of `axes`.
        separate: above which anisotropy an axis is resampled apart; None: never.
    """

    name: str
    trainer: str | None
    values: Mapping[str, Any]
    axes: tuple[str, ...]
    patch: tuple[int, ...]
    spacing: tuple[float, ...]
    separate: float | None

    @classmethod
    def of(cls, folder: Path, plans: Mapping[str, Any], facts: Mapping[str, Any] | None) -> _Configuration:
        """Return the configuration that a folder's name says (`Trainer__Plans__configuration`), or the only one."""
        known = plans.get("configurations")
        if not isinstance(known, dict) or not known:
            _bad(f"{PLANS}: configurations", "there is none")
        parts = folder.resolve().name.split("__")
        trainer, name = (parts[0], parts[2]) if len(parts) == 3 else (None, None)
        if facts is not None:
            trainer, name = facts.get("trainer_name") or trainer, facts.get("configuration")
        if name is None:
            runnable = [each for each, said in known.items() if isinstance(said, dict) and "patch_size" in said]
            if len(runnable) != 1:
                names = ", ".join(map(_said, known))
                message = f"there are {names}, and the folder's name does not say which: {_said(folder.name)}"
                raise ConfigError("bad-nnunet", message, hint="call the folder Trainer__Plans__configuration")
            name = runnable[0]
        values = _resolved(known, name)
        place = f"{PLANS}: {name}"
        for key, what in (("previous_stage", "a cascade, which needs the labels of another network"),):
            if values.get(key):
                _refuse(f"{place}: {key}", f"{what}: {_said(values[key])}")
        if values.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
            _refuse(f"{place}: preprocessor_name", f"{_said(values['preprocessor_name'])}, not DefaultPreprocessor")
        patch = _list(values.get("patch_size"), int, f"{place}: patch_size")
        if len(patch) not in (2, 3) or min(patch) < 1:
            _bad(f"{place}: patch_size", f"{_said(patch)} where 2 or 3 sizes are wanted")
        spacing = _list(values.get("spacing"), (int, float), f"{place}: spacing", len(patch))
        if min(spacing) <= 0:
            _bad(f"{place}: spacing", f"{_said(spacing)}, not all above 0")
        forward = _list(plans.get("transpose_forward"), int, f"{PLANS}: transpose_forward", 3)
        if sorted(forward) != [0, 1, 2]:
            _bad(f"{PLANS}: transpose_forward", f"{_said(forward)} is no order of 0, 1, 2")
        # A network of slices takes the last two axes of the transposed array.
        axes = tuple(_AXES[axis] for axis in forward)[3 - len(patch) :]
        return cls(
            name, trainer, values, axes, tuple(patch), tuple(map(float, spacing)), _separate_above(values, place)
        )


def _place(configuration: _Configuration, axis: str) -> int:
    return configuration.axes.index(axis)


def _resolved(known: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration with what it inherits."""
    chain: list[Mapping[str, Any]] = []
    seen: Any = name
    while seen is not None:
        said = known.get(seen) if isinstance(seen, str) else None
        if not isinstance(said, dict) or len(chain) > _MAX_INHERITED:
            _bad(f"{PLANS}: configurations", f"no {_said(seen)}, or it inherits from itself")
        chain.append(said)
        seen = said.get("inherits_from")
    found: dict[str, Any] = {}
    for said in reversed(chain):
        found.update(said)
    return found


def _separate_above(values: Mapping[str, Any], place: str) -> float | None:
    """Return the anisotropy above which an axis is resampled apart, once the resampling is known to be nnU-Net's default."""
    found = []
    for what, order in (("data", 3), ("probabilities", 1)):
        key = f"resampling_fn_{what}"
        if values.get(key) != _RESAMPLING:
            _refuse(f"{place}: {key}", f"{_said(values.get(key))}, not {_RESAMPLING}")
        said = values.get(f"{key}_kwargs")
        known = {"is_seg", "order", "order_z", "force_separate_z", "separate_z_anisotropy_threshold"}
        if not isinstance(said, dict) or set(said) - known:
            _refuse(f"{place}: {key}_kwargs", _said(said))
        # `force_separate_z` is false by default in nnU-Net's function, null in the plans that it writes.
        wanted = {"is_seg": (False, False), "order": (3, order), "order_z": (0, 0)}
        for name, (default, value) in wanted.items():
            if said.get(name, default) != value:
                _refuse(f"{place}: {key}_kwargs: {name}", f"{_said(said.get(name, default))}, not {value}")
        force = said.get("force_separate_z", False)
        if force not in (None, False):
            _refuse(f"{place}: {key}_kwargs: force_separate_z", _said(force))
        above = said.get("separate_z_anisotropy_threshold", _SEPARATE_ABOVE)
        if isinstance(above, bool) or not isinstance(above, (int, float)) or above <= 1:
            _bad(f"{place}: {key}_kwargs: separate_z_anisotropy_threshold", _said(above))
        found.append(float(above) if force is None else None)
    if found[0] != found[1]:
        _refuse(f"{place}: resampling_fn_probabilities_kwargs", "it separates an axis by another rule than the data's")
    return found[0]


@dataclass(frozen=True)
class _Labels:
    """What the network's channels mean.

    Attributes:
        labels: values 1, 2, 3 ...
        order: the value that each channel writes, with regions; else empty.
        value_of: nnU-Net's label value to ours.
        heads: channels of the network's output.
    """

    labels: tuple[Label, ...]
    order: tuple[int, ...]
    value_of: Mapping[int, int]
    heads: int
    notes: tuple[tuple[str, str], ...] = ()


def _labels(dataset: Mapping[str, Any], plans: Mapping[str, Any]) -> _Labels:
    if plans.get("label_manager", "LabelManager") != "LabelManager":
        _refuse(f"{PLANS}: label_manager", f"{_said(plans['label_manager'])}, not LabelManager")
    said = dataset.get("labels")
    place = f"{DATASET}: labels"
    if not isinstance(said, dict) or said.get("background") != 0:
        _bad(place, "a mapping with background 0 is wanted")
    values = {}
    for name, value in said.items():
        several = _list(value if isinstance(value, list) else [value], int, f"{place}: {_said(name)}")
        if not several or min(several) < 0:
            _bad(f"{place}: {_said(name)}", f"{_said(value)} where label values are wanted")
        values[name] = tuple(dict.fromkeys(several))
    ignored = values.pop("ignore", None)
    all_values = sorted({value for several in values.values() for value in several})
    if all_values != list(range(len(all_values))):
        _refuse(place, f"values {_said(all_values)} where 0, 1, 2 ... is wanted: the network's channels in order")
    if ignored is not None and ignored != (len(all_values),):
        _bad(place, f"ignore is {_said(ignored)}, not the highest value")
    names = {name: several for name, several in values.items() if several != (0,)}
    if not names:
        _bad(place, "there is none beside the background")
    is_regions = any(isinstance(value, list) and len(value) > 1 for value in said.values())
    notes: tuple[tuple[str, str], ...] = (
        ("private-code", f"{len(names)} structures of the model have names and no codes: private codes are written"),
    )
    if not is_regions:
        if len(names) < len(all_values) - 1:
            _bad(place, "a value has two names")
        by_value = sorted((several[0], name) for name, several in names.items())
        labels = tuple(private_label(value, name) for value, name in by_value)
        return _Labels(_told_apart(labels), (), {value: value for value in all_values}, len(labels) + 1, notes)
    order = _list(dataset.get("regions_class_order"), int, f"{DATASET}: regions_class_order", len(names))
    if len(set(order)) < len(order) or min(order) < 1:
        _refuse(f"{DATASET}: regions_class_order", f"{_said(order)}: a value is written twice, or 0")
    value_of = {value: n for n, value in enumerate(sorted(order), 1)}
    shown = _region_names(names)
    labels = tuple(private_label(value_of[value], shown[order.index(value)]) for value in sorted(order))
    if any(ours != theirs for theirs, ours in value_of.items()):
        message = f"label values {sorted(order)} of the model are written as {list(value_of.values())}"
        notes = (*notes, ("label-values-changed", message))
    return _Labels(_told_apart(labels), tuple(value_of[value] for value in order), value_of, len(order), notes)


def _region_names(regions: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Return what is left of each region once those after it are written over it: `whole tumor without tumor core`.

    A label map of nested regions holds the outer one only where no inner one is. To call that by the outer one's name alone
    would be plausible and wrong.
    """
    names, sets = list(regions), [set(several) for several in regions.values()]
    found = []
    for n, (name, region) in enumerate(zip(names, sets, strict=True)):
        over = [m for m in range(n + 1, len(names)) if sets[m] & region]
        outer = [m for m in over if not any(sets[m] < sets[other] for other in over)]
        found.append(f"{name} without {' and '.join(names[m] for m in outer)}" if outer else name)
    return found


def _told_apart(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Return labels whose names differ: long ones are cut, and may be alike then."""
    seen: set[str] = set()
    found = []
    for label in labels:
        if label.name in seen:
            label = private_label(label.value, f"{label.name[:56]} {label.value}")
        seen.add(label.name)
        found.append(label)
    return tuple(found)


def _channels(dataset: Mapping[str, Any]) -> list[str]:
    said = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(said, dict) or sorted(said) != sorted(str(n) for n in range(len(said))) or not said:
        _bad(f"{DATASET}: channel_names", f"{_said(said)} where a name for 0, 1 ... is wanted")
    return [str(said[str(n)]) for n in range(len(said))]


def _roles(channels: Sequence[str]) -> list[str]:
    """Return the artifact of each channel: `volume` for one, else `volume-NAME`."""
    if len(channels) == 1:
        return ["volume"]
    words = [slug(name) or f"channel_{n}" for n, name in enumerate(channels)]
    return [f"volume-{word}" if words.count(word) == 1 else f"volume-{word}_{n}" for n, word in enumerate(words)]


def _steps(configuration: _Configuration, plans: Mapping[str, Any], channel: int) -> tuple[Step, ...]:
    """Return what nnU-Net does to a channel's values before it resamples them."""
    place = f"{PLANS}: {configuration.name}"
    schemes = configuration.values.get("normalization_schemes")
    masked = configuration.values.get("use_mask_for_norm")
    scheme = _list(schemes, str, f"{place}: normalization_schemes")[channel : channel + 1]
    mask = _list(masked, bool, f"{place}: use_mask_for_norm")[channel : channel + 1]
    if not scheme or not mask:
        _bad(f"{place}: normalization_schemes", f"there is none for channel {channel}")
    if scheme == ["CTNormalization"]:
        known = plans.get("foreground_intensity_properties_per_channel")
        known = plans.get("foreground_intensity_properties_by_modality") if known is None else known
        said = known.get(str(channel)) if isinstance(known, dict) else None
        keys = ("percentile_00_5", "percentile_99_5", "mean", "std")
        if not isinstance(said, dict):
            _bad(f"{PLANS}: foreground_intensity_properties_per_channel", f"there is none for channel {channel}")
        low, high, mean, std = _list([said.get(key) for key in keys], (int, float), f"{PLANS}: foreground intensities")
        if low >= high:
            _bad(f"{PLANS}: foreground intensities", f"{low:g} is not below {high:g}")
        return (Clip(float(low), float(high)), Normalize(float(mean), max(float(std), 1e-8)))
    if scheme == ["ZScoreNormalization"]:
        return (Normalize(None, None, "mask" if mask[0] else "volume"),)
    if scheme == ["RescaleTo01Normalization"]:
        return (ScaleVolume((0.0, 1.0)),)
    if scheme == ["NoNormalization"]:
        return ()
    _refuse(f"{place}: normalization_schemes", _said(scheme[0]))


def _orientation(plans: Mapping[str, Any], facts: Mapping[str, Any], opening: Opening) -> str:
    """Return the letters of the arrays that the network was trained on. nnU-Net's default readers ignore direction."""
    reader = plans.get("image_reader_writer")
    if reader in _REORIENTING:
        if opening.orientation not in (None, "RAS"):
            message = (
                f"{PLANS}: image_reader_writer is {reader}, which turns every volume to RAS, not {opening.orientation}"
            )
            raise ConfigError("orientation-conflict", message, hint="leave --orientation out")
        return "RAS"
    if reader not in _AS_THEY_ARE:
        _refuse(f"{PLANS}: image_reader_writer", f"{_said(reader)}, which reads no volume of a patient")
    letters = opening.orientation or facts.get("orientation")
    if letters is None:
        raise ConfigError(
            "orientation-unknown",
            f"{PLANS}: image_reader_writer is {reader}, which ignores direction, and nothing says how the volumes lay that the "
            "network was trained on",
            hint="--orientation RAS (or LPS ...): where i, j, k of the training images grow to, as nib.aff2axcodes says",
        )
    pairs = {"R": "x", "L": "x", "A": "y", "P": "y", "S": "z", "I": "z"}
    if not isinstance(letters, str) or sorted(pairs.get(letter, "") for letter in letters) != ["x", "y", "z"]:
        message = f"{_said(letters)} where one each of R/L, A/P, S/I is wanted, such as RAS"
        raise ConfigError("orientation-unknown", message, hint="--orientation RAS")
    return letters


def _definition(configuration: _Configuration, channels: int, heads: int) -> NetworkDefinition:
    """Return the network that the plans say."""
    values, place = configuration.values, f"{PLANS}: {configuration.name}: architecture"
    said = values.get("architecture", _old_architecture(values) if "UNet_class_name" in values else None)
    if not isinstance(said, dict) or not isinstance(said.get("arch_kwargs"), dict):
        _bad(place, "there is none")
    name = str(said.get("network_class_name"))
    target = _NETWORKS.get(name.rpartition(".")[2])
    if target is None or not name.startswith("dynamic_network_architectures."):
        _refuse(f"{place}: network_class_name", f"{_said(name)}, not one of {', '.join(_NETWORKS)}")
    arguments = {**said["arch_kwargs"], "input_channels": channels, "num_classes": heads, "deep_supervision": False}
    imports = _list(said.get("_kw_requires_import", []), str, f"{place}: _kw_requires_import")
    return NetworkDefinition(target, arguments, tuple(each for each in imports if arguments.get(each) is not None))


def _old_architecture(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the architecture that plans of before nnU-Net 2.2 say in other words. Source: `ConfigurationManager.__init__`."""
    place = f"{PLANS}: UNet"
    name = values["UNet_class_name"]
    if name not in ("PlainConvUNet", "ResidualEncoderUNet"):
        _refuse(f"{place}: UNet_class_name", _said(name))
    encoder = _list(values.get("n_conv_per_stage_encoder"), int, f"{place}: n_conv_per_stage_encoder")
    base, most = _list([values.get("UNet_base_num_features"), values.get("unet_max_num_features")], int, place)
    if len(encoder) > _MAX_INHERITED:
        _bad(f"{place}: n_conv_per_stage_encoder", f"{len(encoder)} stages")
    dimensions = len(_list(values.get("patch_size"), int, f"{place}: patch_size"))
    return {
        "network_class_name": _NETWORKS[name],
        "arch_kwargs": {
            "n_stages": len(encoder),
            "features_per_stage": [min(base * 2**n, most) for n in range(len(encoder))],
            "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
            "kernel_sizes": values.get("conv_kernel_sizes"),
            "strides": values.get("pool_op_kernel_sizes"),
            "n_conv_per_stage" if name == "PlainConvUNet" else "n_blocks_per_stage": encoder,
            "n_conv_per_stage_decoder": values.get("n_conv_per_stage_decoder"),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
            "norm_op_kwargs": {"eps": 1e-05, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _fold(folder: Path, name: str, configuration: _Configuration, channels: int, heads: int, opening: Opening) -> _Fold:
    """Return a fold's ONNX network: that beside the checkpoint if it was made from it, else one that is made now, once."""
    checkpoint = folder / name / CHECKPOINT
    facts = _facts(folder / name / FACTS) if (folder / name / NETWORK).is_file() else None
    has_checkpoint = checkpoint.is_file()
    if facts is not None and (not has_checkpoint or facts.get("checkpoint_sha256") == sha256_of(checkpoint)):
        network = inside(folder, f"{name}/{NETWORK}", f"{name}")
        weights = [inside(network.parent, each, network.name, folder) for each in sorted(external_files(network))]
        return _Fold(network, (network, network.with_name(FACTS), *weights), facts)
    if not has_checkpoint:
        raise MissingError("no-network", f"{name} has {NETWORK} without {FACTS}, which says how it was trained")
    checkpoint = inside(folder, f"{name}/{CHECKPOINT}", name)
    _check_trainer(configuration.trainer)
    definition = _definition(configuration, channels, heads)
    if opening.cache is None:
        message = f"{name}/{CHECKPOINT} has to be converted to ONNX, and there is no folder for that"
        raise MissingError("no-network", message)
    converted = to_onnx(
        checkpoint,
        cache=opening.cache,
        trust=opening.trust,
        input_shape=(1, channels, *configuration.patch),
        network=definition,
        state_key="network_weights",
    )
    said = converted.facts.get("checkpoint")
    if not isinstance(said, dict):
        _bad(f"{name}/{CHECKPOINT}", "it says nothing beside its weights")
    return _Fold(converted.path, (checkpoint,), said, tuple(converted.notes))


def _check_trainer(trainer: Any) -> None:
    if trainer is not None and _OTHER_NETWORKS.fullmatch(str(trainer)):
        _refuse("trainer", f"{_said(trainer)} builds another network than the plans say")


def _check_folds(folds: Sequence[_Fold], names: Sequence[str], configuration: _Configuration) -> None:
    """Refuse folds that were trained as something else, or unlike one another."""
    for fold, name in zip(folds, names, strict=True):
        _check_trainer(fold.facts.get("trainer_name"))
        trained = fold.facts.get("configuration", (fold.facts.get("init_args") or {}).get("configuration"))
        if trained is not None and trained != configuration.name:
            _bad(name, f"it was trained as {_said(trained)}, the folder is {configuration.name}")
        if _mirrored(fold, configuration) != _mirrored(folds[0], configuration):
            _bad(name, f"it allows other mirroring than {names[0]}")


def _mirrored(fold: _Fold, configuration: _Configuration) -> tuple[Any, ...]:
    said = fold.facts.get("inference_allowed_mirroring_axes")
    if said is None:
        return ()
    places = _list(list(said) if isinstance(said, (list, tuple)) else said, int, "inference_allowed_mirroring_axes")
    if any(not 0 <= place < len(configuration.axes) for place in places) or len(set(places)) < len(places):
        _bad("inference_allowed_mirroring_axes", f"{_said(places)} of {len(configuration.axes)} axes")
    return tuple(configuration.axes[place] for place in sorted(places))


def _trainer_notes(folds: Sequence[_Fold]) -> list[tuple[str, str]]:
    trainers = {str(fold.facts.get("trainer_name")) for fold in folds if fold.facts.get("trainer_name")}
    return [
        (
            "unknown-trainer",
            f"trainer {_said(name)} is none of nnU-Net's own: its network is taken to be that of the plans",
        )
        for name in sorted(trainers)
        if not _KNOWN_TRAINERS.fullmatch(name)
    ]


def _postprocessing_file(folder: Path, folds: Sequence[str]) -> Path | None:
    """Return postprocessing.json: beside the plans, else where `find_best_configuration` leaves it for just these folds."""
    results = f"crossval_results_folds_{'_'.join(name[5:] for name in folds)}"
    places = (folder / POSTPROCESSING, folder / results / POSTPROCESSING)
    return next((place for place in places if place.is_file()), None)


def _postprocessing(
    folder: Path, folds: Sequence[str], labels: _Labels
) -> tuple[tuple[KeepLargest, ...], list[Path], list[tuple[str, str]]]:
    path = _postprocessing_file(folder, folds)
    if path is None:
        pickled = [*folder.glob("postprocessing.pkl"), *folder.glob("crossval_results_folds_*/postprocessing.pkl")]
        message = f"{POSTPROCESSING} is not there for these folds, and postprocessing.pkl is a pickle, which is not read: no step"
        return (), [], [("no-postprocessing", message)] if pickled else []
    document = _document(path)
    names = _list(document.get("postprocessing_fns"), str, f"{path.name}: postprocessing_fns")
    arguments = _list(document.get("postprocessing_kwargs"), dict, f"{path.name}: postprocessing_kwargs", len(names))
    steps = []
    for name, said in zip(names, arguments, strict=True):
        if name != "remove_all_but_largest_component_from_segmentation":
            _refuse(f"{path.name}: postprocessing_fns", _said(name))
        if set(said) - {"labels_or_regions", "background_label"} or said.get("background_label", 0) != 0:
            _refuse(f"{path.name}: postprocessing_kwargs", _said(said))
        values = sorted(set(_flat(said.get("labels_or_regions"), f"{path.name}: labels_or_regions")))
        if unknown := [value for value in values if value not in labels.value_of]:
            # A region's value that no channel writes is in no label map.
            values = [value for value in values if value not in unknown]
        ours = tuple(labels.value_of[value] for value in values if value > 0)
        if ours:
            steps.append(KeepLargest(ours, together=True, connectivity=3))
    return tuple(steps), [inside(folder, path.relative_to(folder).as_posix(), path.name)], []


def _flat(value: Any, place: str) -> list[int]:
    """Return the label values of a label, a region, or a list of those."""
    several = value if isinstance(value, list) else [value]
    inner = [each for item in several for each in (item if isinstance(item, list) else [item])]
    found: list[int] = _list(inner, int, place)
    return found


def _card(
    folder: Path,
    plans: Mapping[str, Any],
    dataset: Mapping[str, Any],
    configuration: _Configuration,
    labels: _Labels,
    channels: Sequence[str],
    orientation: str,
    names: Sequence[str],
    folds: Sequence[_Fold],
    after: tuple[KeepLargest, ...],
) -> Card:
    axes = ("C", *configuration.axes)
    inputs = []
    is_ct = []
    for n, role in enumerate(_roles(channels)):
        steps = _steps(configuration, plans, n)
        is_ct.append(any(isinstance(step, Clip) for step in steps))
        inputs.append(
            Input(
                axes=axes,
                orientation=orientation,
                spacing=configuration.spacing,
                unit="HU" if is_ct[-1] else "arbitrary",
                role=role,
                padding="include",
                intensity_before=steps,
                rule="edges",
                interpolation="cubic",
                separate_z=configuration.separate,
                crop=Crop(),
            )
        )
    output = Output(
        axes=axes,
        activation="sigmoid" if labels.order else "none",
        inversion="scores",
        form="regions" if labels.order else "labels",
        regions_order=labels.order,
        after=after,
    )
    title = f"{plans.get('dataset_name') or folder.name}_{configuration.name}"

    return completed(
        Card(
            schema="md.model/1",
            name=slug(title[:80]) or "nnunet",
            version=one_line(str(dataset.get("release") or "unknown"), 64),
            task="segmentation",
            inputs=tuple(inputs),
            labels=labels.labels,
            empty="valid",
            networks=tuple(names),
            ensemble="mean" if len(folds) > 1 else None,
            output=output,
            window=Window(configuration.patch, overlap=0.5, blending="gaussian-nnunet", step="even"),
            mirror=_mirrored(folds[0], configuration),
            description=one_line(str(dataset.get("description") or ""), 200),
            accepts={"modality": Bound(one_of=("CT",))} if all(is_ct) else {},
            licence=one_line(str(dataset.get("licence") or dataset.get("license") or ""), 100),
            source=one_line(str(dataset.get("reference") or ""), 200),
        ),
        folder.name,
    )
