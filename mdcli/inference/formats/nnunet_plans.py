"""What plans.json and dataset.json of nnU-Net v2 say, checked: downloads that anybody may have written.

What is not reproduced is refused by name (`unsupported-nnunet`); what makes no sense is `bad-nnunet`.

Source: nnunetv2 2.8.1: utilities.plans_handling, utilities.label_handling, preprocessing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mdcli.dicom.plain_yaml import PlainYamlError, load_yaml
from mdcli.errors import ConfigError
from mdcli.inference.card import Clip, Label, Normalize, ScaleVolume, Step
from mdcli.inference.formats.torchfile import NetworkDefinition
from mdcli.inference.naming import one_line, private_label, slug

PLANS, DATASET = "plans.json", "dataset.json"

_MAX_JSON_BYTES = 64 << 20
# nnU-Net's arrays are (C, z, y, x) before `transpose_forward`: those of SimpleITK, whichever reader it was.
_AXES = ("z", "y", "x")
_RESAMPLING = "resample_data_or_seg_to_shape"
_SEPARATE_ABOVE = 3.0
_MAX_INHERITED = 16
# Classes of dynamic_network_architectures that nnU-Net's planners name, by where they lie today.
_NETWORKS = {
    name: f"dynamic_network_architectures.architectures.unet.{name}"
    for name in ("PlainConvUNet", "ResidualEncoderUNet", "ResidualUNet")
}


def bad(place: str, message: str) -> NoReturn:
    """Refuse what makes no sense: `bad-nnunet`."""
    raise ConfigError("bad-nnunet", f"{place}: {message}")


def refuse(place: str, message: str, hint: str | None = None) -> NoReturn:
    """Refuse what is not reproduced: `unsupported-nnunet`."""
    raise ConfigError("unsupported-nnunet", f"{place}: {message}", hint=hint)


def quoted(value: Any) -> str:
    """Return a value out of a download as short, printable text in quotes."""
    return repr(one_line(str(value), 60))


def document_of(path: Path) -> dict[str, Any]:
    """Return a JSON file's object; its size is bounded."""
    with path.open("rb") as file:
        content = file.read(_MAX_JSON_BYTES + 1)
    if len(content) > _MAX_JSON_BYTES:
        bad(path.name, f"over {_MAX_JSON_BYTES >> 20} MiB")
    try:
        document = load_yaml(content.decode("utf-8"))
    except (UnicodeDecodeError, PlainYamlError) as error:
        bad(path.name, f"no JSON that can be read: {error}")
    if not isinstance(document, dict):
        bad(path.name, "no JSON object")
    return document


def list_of(value: Any, kind: type | tuple[type, ...], place: str, length: int | None = None) -> list[Any]:
    """Return a list of one kind of values, and of a length where one is given."""
    good = isinstance(value, list) and all(
        isinstance(v, kind) and (kind is bool or not isinstance(v, bool)) for v in value
    )
    if not good or (length is not None and len(value) != length):
        bad(place, f"{quoted(value)} where a list{'' if length is None else f' of {length}'} is wanted")
    found: list[Any] = value
    return found


@dataclass(frozen=True)
class Configuration:
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
    def of(cls, folder: Path, plans: Mapping[str, Any], facts: Mapping[str, Any] | None) -> Configuration:
        """Return the configuration that a folder's name says (`Trainer__Plans__configuration`), or the only one."""
        known = plans.get("configurations")
        if not isinstance(known, dict) or not known:
            bad(f"{PLANS}: configurations", "there is none")
        parts = folder.resolve().name.split("__")
        trainer, name = (parts[0], parts[2]) if len(parts) == 3 else (None, None)
        if facts is not None:
            trainer, name = facts.get("trainer_name") or trainer, facts.get("configuration")
        if name is None:
            runnable = [each for each, said in known.items() if isinstance(said, dict) and "patch_size" in said]
            if len(runnable) != 1:
                names = ", ".join(map(quoted, known))
                message = f"there are {names}, and the folder's name does not say which: {quoted(folder.name)}"
                raise ConfigError("bad-nnunet", message, hint="call the folder Trainer__Plans__configuration")
            name = runnable[0]
        values = _resolved(known, name)
        place = f"{PLANS}: {name}"
        if values.get("previous_stage"):
            message = f"{quoted(values['previous_stage'])}: a cascade, which needs the labels of another network"
            refuse(f"{place}: previous_stage", message)
        if values.get("preprocessor_name", "DefaultPreprocessor") != "DefaultPreprocessor":
            refuse(f"{place}: preprocessor_name", f"{quoted(values['preprocessor_name'])}, not DefaultPreprocessor")
        patch = list_of(values.get("patch_size"), int, f"{place}: patch_size")
        if len(patch) not in (2, 3) or min(patch) < 1:
            bad(f"{place}: patch_size", f"{quoted(patch)} where 2 or 3 sizes are wanted")
        spacing = list_of(values.get("spacing"), (int, float), f"{place}: spacing", len(patch))
        if min(spacing) <= 0:
            bad(f"{place}: spacing", f"{quoted(spacing)}, not all above 0")
        forward = list_of(plans.get("transpose_forward"), int, f"{PLANS}: transpose_forward", 3)
        if sorted(forward) != [0, 1, 2]:
            bad(f"{PLANS}: transpose_forward", f"{quoted(forward)} is no order of 0, 1, 2")
        # A network of slices takes the last two axes of the transposed array.
        axes = tuple(_AXES[axis] for axis in forward)[3 - len(patch) :]
        return cls(
            name, trainer, values, axes, tuple(patch), tuple(map(float, spacing)), _separate_above(values, place)
        )


def _resolved(known: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a configuration with what it inherits."""
    chain: list[Mapping[str, Any]] = []
    seen: Any = name
    while seen is not None:
        said = known.get(seen) if isinstance(seen, str) else None
        if not isinstance(said, dict) or len(chain) > _MAX_INHERITED:
            bad(f"{PLANS}: configurations", f"no {quoted(seen)}, or it inherits from itself")
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
            refuse(f"{place}: {key}", f"{quoted(values.get(key))}, not {_RESAMPLING}")
        said = values.get(f"{key}_kwargs")
        known = {"is_seg", "order", "order_z", "force_separate_z", "separate_z_anisotropy_threshold"}
        if not isinstance(said, dict) or set(said) - known:
            refuse(f"{place}: {key}_kwargs", quoted(said))
        # `force_separate_z` is false by default in nnU-Net's function, null in the plans that it writes.
        wanted = {"is_seg": (False, False), "order": (3, order), "order_z": (0, 0)}
        for name, (default, value) in wanted.items():
            if said.get(name, default) != value:
                refuse(f"{place}: {key}_kwargs: {name}", f"{quoted(said.get(name, default))}, not {value}")
        force = said.get("force_separate_z", False)
        if force not in (None, False):
            refuse(f"{place}: {key}_kwargs: force_separate_z", quoted(force))
        above = said.get("separate_z_anisotropy_threshold", _SEPARATE_ABOVE)
        if isinstance(above, bool) or not isinstance(above, (int, float)) or above <= 1:
            bad(f"{place}: {key}_kwargs: separate_z_anisotropy_threshold", quoted(above))
        found.append(float(above) if force is None else None)
    if found[0] != found[1]:
        refuse(f"{place}: resampling_fn_probabilities_kwargs", "it separates an axis by another rule than the data's")
    return found[0]


@dataclass(frozen=True)
class Labels:
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


def labels_of(dataset: Mapping[str, Any], plans: Mapping[str, Any]) -> Labels:
    """Return what the network's channels mean, by dataset.json."""
    if plans.get("label_manager", "LabelManager") != "LabelManager":
        refuse(f"{PLANS}: label_manager", f"{quoted(plans['label_manager'])}, not LabelManager")
    said = dataset.get("labels")
    place = f"{DATASET}: labels"
    if not isinstance(said, dict) or said.get("background") != 0:
        bad(place, "a mapping with background 0 is wanted")
    values = {}
    for name, value in said.items():
        several = list_of(value if isinstance(value, list) else [value], int, f"{place}: {quoted(name)}")
        if not several or min(several) < 0:
            bad(f"{place}: {quoted(name)}", f"{quoted(value)} where label values are wanted")
        values[name] = tuple(dict.fromkeys(several))
    ignored = values.pop("ignore", None)
    all_values = sorted({value for several in values.values() for value in several})
    if all_values != list(range(len(all_values))):
        refuse(place, f"values {quoted(all_values)} where 0, 1, 2 ... is wanted: the network's channels in order")
    if ignored is not None and ignored != (len(all_values),):
        bad(place, f"ignore is {quoted(ignored)}, not the highest value")
    names = {name: several for name, several in values.items() if several != (0,)}
    if not names:
        bad(place, "there is none beside the background")
    is_regions = any(isinstance(value, list) and len(value) > 1 for value in said.values())
    notes: tuple[tuple[str, str], ...] = (
        ("private-code", f"{len(names)} structures of the model have names and no codes: private codes are written"),
    )
    if not is_regions:
        if len(names) < len(all_values) - 1:
            bad(place, "a value has two names")
        by_value = sorted((several[0], name) for name, several in names.items())
        labels = tuple(private_label(value, name) for value, name in by_value)
        return Labels(_told_apart(labels), (), {value: value for value in all_values}, len(labels) + 1, notes)
    order = list_of(dataset.get("regions_class_order"), int, f"{DATASET}: regions_class_order", len(names))
    if len(set(order)) < len(order) or min(order) < 1:
        refuse(f"{DATASET}: regions_class_order", f"{quoted(order)}: a value is written twice, or 0")
    value_of = {value: n for n, value in enumerate(sorted(order), 1)}
    shown = _region_names(names)
    labels = tuple(private_label(value_of[value], shown[order.index(value)]) for value in sorted(order))
    if any(ours != theirs for theirs, ours in value_of.items()):
        message = f"label values {sorted(order)} of the model are written as {list(value_of.values())}"
        notes = (*notes, ("label-values-changed", message))
    return Labels(_told_apart(labels), tuple(value_of[value] for value in order), value_of, len(order), notes)


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


def channels_of(dataset: Mapping[str, Any]) -> list[str]:
    """Return the names of the input's channels, in order."""
    said = dataset.get("channel_names", dataset.get("modality"))
    if not isinstance(said, dict) or sorted(said) != sorted(str(n) for n in range(len(said))) or not said:
        bad(f"{DATASET}: channel_names", f"{quoted(said)} where a name for 0, 1 ... is wanted")
    return [str(said[str(n)]) for n in range(len(said))]


def roles_of(channels: Sequence[str]) -> list[str]:
    """Return the artifact of each channel: `volume` for one, else `volume-NAME`."""
    if len(channels) == 1:
        return ["volume"]
    words = [slug(name) or f"channel_{n}" for n, name in enumerate(channels)]
    return [f"volume-{word}" if words.count(word) == 1 else f"volume-{word}_{n}" for n, word in enumerate(words)]


def steps_of(configuration: Configuration, plans: Mapping[str, Any], channel: int) -> tuple[Step, ...]:
    """Return what nnU-Net does to a channel's values before it resamples them."""
    place = f"{PLANS}: {configuration.name}"
    schemes = configuration.values.get("normalization_schemes")
    masked = configuration.values.get("use_mask_for_norm")
    scheme = list_of(schemes, str, f"{place}: normalization_schemes")[channel : channel + 1]
    mask = list_of(masked, bool, f"{place}: use_mask_for_norm")[channel : channel + 1]
    if not scheme or not mask:
        bad(f"{place}: normalization_schemes", f"there is none for channel {channel}")
    if scheme == ["CTNormalization"]:
        known = plans.get("foreground_intensity_properties_per_channel")
        known = plans.get("foreground_intensity_properties_by_modality") if known is None else known
        said = known.get(str(channel)) if isinstance(known, dict) else None
        keys = ("percentile_00_5", "percentile_99_5", "mean", "std")
        if not isinstance(said, dict):
            bad(f"{PLANS}: foreground_intensity_properties_per_channel", f"there is none for channel {channel}")
        low, high, mean, std = list_of(
            [said.get(key) for key in keys], (int, float), f"{PLANS}: foreground intensities"
        )
        if low >= high:
            bad(f"{PLANS}: foreground intensities", f"{low:g} is not below {high:g}")
        return (Clip(float(low), float(high)), Normalize(float(mean), max(float(std), 1e-8)))
    if scheme == ["ZScoreNormalization"]:
        return (Normalize(None, None, "mask" if mask[0] else "volume"),)
    if scheme == ["RescaleTo01Normalization"]:
        return (ScaleVolume((0.0, 1.0)),)
    if scheme == ["NoNormalization"]:
        return ()
    refuse(f"{place}: normalization_schemes", quoted(scheme[0]))


def definition_of(configuration: Configuration, channels: int, heads: int) -> NetworkDefinition:
    """Return the network that the plans say."""
    values, place = configuration.values, f"{PLANS}: {configuration.name}: architecture"
    said = values.get("architecture", _old_architecture(values) if "UNet_class_name" in values else None)
    if not isinstance(said, dict) or not isinstance(said.get("arch_kwargs"), dict):
        bad(place, "there is none")
    name = str(said.get("network_class_name"))
    target = _NETWORKS.get(name.rpartition(".")[2])
    if target is None or not name.startswith("dynamic_network_architectures."):
        refuse(f"{place}: network_class_name", f"{quoted(name)}, not one of {', '.join(_NETWORKS)}")
    arguments = {**said["arch_kwargs"], "input_channels": channels, "num_classes": heads, "deep_supervision": False}
    imports = list_of(said.get("_kw_requires_import", []), str, f"{place}: _kw_requires_import")
    return NetworkDefinition(target, arguments, tuple(each for each in imports if arguments.get(each) is not None))


def _old_architecture(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the architecture that plans of before nnU-Net 2.2 say in other words. Source: `ConfigurationManager.__init__`."""
    place = f"{PLANS}: UNet"
    name = values["UNet_class_name"]
    if name not in ("PlainConvUNet", "ResidualEncoderUNet"):
        refuse(f"{place}: UNet_class_name", quoted(name))
    encoder = list_of(values.get("n_conv_per_stage_encoder"), int, f"{place}: n_conv_per_stage_encoder")
    base, most = list_of([values.get("UNet_base_num_features"), values.get("unet_max_num_features")], int, place)
    if len(encoder) > _MAX_INHERITED:
        bad(f"{place}: n_conv_per_stage_encoder", f"{len(encoder)} stages")
    dimensions = len(list_of(values.get("patch_size"), int, f"{place}: patch_size"))
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


def values_of(value: Any, place: str) -> list[int]:
    """Return the label values of a label, a region, or a list of those."""
    several = value if isinstance(value, list) else [value]
    inner = [each for item in several for each in (item if isinstance(item, list) else [item])]
    found: list[int] = list_of(inner, int, place)
    return found
