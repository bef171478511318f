"""Say what an MMAR does in the words of a MONAI Bundle, which md's core reads; what cannot be said is refused by name.

Clara Train 4 names MONAI's own transforms (of MONAI 0.5 to 0.8): their arguments are brought to today's names. Clara Train 3 had
its own on TensorFlow: each common one stands here beside the transform of MONAI that does the same.
Sources: NVIDIA's documentation of Clara Train 3.1 and 4.1 (Medical Model Archive; Model Config; Converting from Clara 3.1 to 4.0).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from md_mmar.archive import AIAA, CONFIG, ENVIRONMENT, Archive, Step, bad
from mdcli.errors import ConfigError

IMAGE, OUTPUT = "image", "pred"
MODALITY = "MODALITY"
ASSUMED_OVERLAP = 0.25
MAX_LABELS = 4096

Notes = list[tuple[str, str]]
Said = dict[str, Any]
_BEFORE_KEY = "preprocessing"
_WAY_OUT = "a model.yaml beside the network runs it, if the card can say what the archive does"

# Arguments of which MONAI takes one for each key.
_PER_KEY = frozenset(
    {
        *(
            "mode",
            "padding_mode",
            "align_corners",
            "dtype",
            "data_type",
            "argmax",
            "to_onehot",
            "n_classes",
            "num_classes",
        ),
        *(
            "threshold",
            "threshold_values",
            "logit_thresh",
            "softmax",
            "sigmoid",
            "nearest_interp",
            "orig_keys",
            "meta_keys",
        ),
    }
)
_VERSION_3 = frozenset(["TFScanWindowInferer", "ScanWindowInferer", "TFSimpleInferer"])


def refuse(step: Step, why: str) -> NoReturn:
    """Refuse a transform by name.

    Raises:
        ConfigError: `unsupported-transform`.
    """
    raise ConfigError("unsupported-transform", f"{step.place}: {step.name}: {why}", hint=_WAY_OUT)


def inference_of(archive: Archive, notes: Notes) -> Said:
    """Return an MMAR's inference as the inference configuration of a bundle.

    Args:
        archive: the MMAR.
        notes: gets what a person should know, (code, sentence).

    Raises:
        ConfigError: `unsupported-transform`, `unsupported-mmar`, `bad-mmar`, `refused-expression`.
    """
    old = is_version_3(archive)
    image, output = _keys(archive, old)
    before = [said for step in archive.before if (said := _before(step, old, image, notes))]
    decided: list[str] = []
    after = [said for step in archive.after if (said := _after(step, old, image, output, decided))]
    if archive.inferer is None:
        raise ConfigError("unsupported-mmar", f"{archive.workflow} says no inferer", hint=_WAY_OUT)
    return {
        _BEFORE_KEY: {"_target_": "Compose", "transforms": before},
        "inferer": _inferer(archive.inferer, notes),
        "postprocessing": {"_target_": "Compose", "transforms": after},
    }


def is_version_3(archive: Archive) -> bool:
    """Say whether an MMAR is of Clara Train 3: its transforms name `fields`, where MONAI's name `keys`."""
    steps = [*archive.before, *archive.after]
    if any("keys" in step.args for step in steps):
        return False
    return any("fields" in step.args or "field" in step.args for step in steps) or (
        archive.inferer is not None and archive.inferer.name in _VERSION_3
    )


def _keys(archive: Archive, old: bool) -> tuple[str, str]:
    """Return what the image and the network's output are called."""
    inference = archive.aiaa.get("inference")
    said = inference if archive.workflow == AIAA and isinstance(inference, dict) else {}
    image = said.get("image" if old else "input")
    image = image[0] if isinstance(image, list) and len(image) == 1 else image
    output = said.get("output")
    output = output[0] if isinstance(output, list) and len(output) == 1 else output
    usual = "model" if old or archive.workflow == AIAA else OUTPUT
    return image if isinstance(image, str) else IMAGE, output if isinstance(output, str) else usual


# ---- single transforms


def _before(step: Step, old: bool, image: str, notes: Notes) -> Said | None:
    """Return a transform before the network; None for one that does not touch the image."""
    chosen = _chosen(step, ("fields", "field") if old else ("keys",), image)
    if chosen is None:
        return None
    if not old:
        return _monai(step, chosen, image, IMAGE)
    if step.name not in _OLD_BEFORE:
        refuse(step, "this transform of Clara Train 3 is not reproduced")
    return _OLD_BEFORE[step.name](step, chosen, notes)


def _after(step: Step, old: bool, image: str, output: str, decided: list[str]) -> Said | None:
    chosen = _chosen(step, ("fields", "field") if old else ("keys",), output)
    if chosen is None:
        return None
    if not old:
        return _monai(step, chosen, output, OUTPUT)
    if step.name in _OLD_WRITING:
        return None
    if step.name == "ArgmaxAcrossChannels":
        _only(step, chosen)
        decided.append(step.name)
        return {"_target_": "AsDiscreted", "keys": OUTPUT, "argmax": True}
    if step.name == "KeepLargestCC":
        _only(step, chosen, "applied_labels")
        applied = chosen.get("applied_labels")
        return {
            "_target_": "KeepLargestConnectedComponentd",
            "keys": OUTPUT,
            **({} if applied is None else {"applied_labels": applied}),
        }
    if step.name == "RestoreOriginalShape":
        _only(step, chosen, "src_field", "is_label")
        if chosen.get("src_field") != image:
            refuse(step, f"src_field is {chosen.get('src_field')!r}, where the image is {image!r}")
        labels = _truth(step, chosen.get("is_label", bool(decided)), "is_label")
        if labels != bool(decided):
            refuse(step, f"is_label is {str(labels).lower()} where a class is {'' if decided else 'not '}decided")
        return {"_target_": "Invertd", "keys": OUTPUT, "transform": f"@{_BEFORE_KEY}", "nearest_interp": labels}
    refuse(step, "this transform of Clara Train 3 is not reproduced")


# What writes files or copies what belongs to them.
_OLD_WRITING = ("CopyProperties", "FetchExtraProperties", "SplitAcrossChannels", "SplitBasedOnLabel")


def _chosen(step: Step, names: Sequence[str], key: str) -> dict[str, Any] | None:
    """Return a transform's arguments for one item of the dictionary; None where it does not work on it."""
    said = dict(step.args)
    word = next((name for name in names if name in said), None)
    if word is None:
        return said
    keys = said.pop(word)
    keys = keys if isinstance(keys, list) else [keys]
    if not all(isinstance(each, str) for each in keys):
        refuse(step, f"{word} are {keys!r}"[:120])
    if key not in keys:
        return None
    place = keys.index(key)
    for name in _PER_KEY.intersection(said):
        value = said[name]
        if isinstance(value, list) and len(keys) > 1 and len(value) == len(keys):
            said[name] = value[place]
    return said


def _monai(step: Step, said: dict[str, Any], key: str, word: str) -> Said:
    """Return a transform of Clara Train 4 in the words of today's MONAI.

    Args:
        step: the transform.
        said: its arguments.
        key: the item that it works on, as the MMAR calls it.
        word: as the bundle calls it.
    """
    args: Said = {}
    for name, value in said.items():
        if name == "transform":
            if not re.fullmatch(r"[#@]*\{?(validate\.|inference\.)?pre_transforms\}?", str(value)):
                refuse(step, f"transform is {str(value)[:60]!r}, where the transforms before the network are wanted")
            args[name] = f"@{_BEFORE_KEY}"
            continue
        _refuse_code(step, name, value)
        args[name] = value
    if args.get("source_key") == key:
        args["source_key"] = word
    if "AsDiscrete" in step.name:
        args = _discrete(step, args)
    if isinstance(args.get("dtype"), str):
        args["dtype"] = args["dtype"].rpartition(".")[2]
    return {"_target_": step.name, **args, "keys": word}


def _discrete(step: Step, args: Said) -> Said:
    """Return AsDiscrete's arguments by the names of MONAI 1: the classes went into `to_onehot`, the switch into `threshold`."""
    args = {name: value for name, value in args.items() if name not in ("n_classes", "num_classes", "to_onehot")}
    switch, level = args.pop("threshold_values", None), args.pop("logit_thresh", 0.5)
    if switch is True:
        args["threshold"] = level
    elif switch not in (None, False):
        refuse(step, f"threshold_values is {switch!r}, not true or false")
    return args


def _refuse_code(step: Step, name: str, value: Any) -> None:
    """Refuse an argument that Clara Train would run (`#...`) or that would be an expression or a reference for others."""
    if isinstance(value, str) and value.startswith(("#", "@", "$", "%")):
        text = f"{step.place}: {step.name}: {name} is {value[:60]!r}, and md runs no code out of a model"
        raise ConfigError("refused-expression", text)
    if isinstance(value, dict):
        if any(str(key).startswith("_") for key in value):
            refuse(step, f"{name} is a component of its own")
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _refuse_code(step, name, item)


# ---- Clara Train 3


def _only(step: Step, said: Mapping[str, Any], *known: str) -> None:
    for name, value in said.items():
        _refuse_code(step, name, value)
        if name not in known:
            refuse(step, f"argument {name!r} is not reproduced")


def _truth(step: Step, value: Any, name: str) -> bool:
    """Return a truth value; Clara Train's examples also write it as a text."""
    words = {"true": True, "false": False}
    if isinstance(value, bool) or str(value).lower() in words:
        return words[str(value).lower()]
    refuse(step, f"{name} is {value!r}, not true or false")


def _load(step: Step, said: Mapping[str, Any], notes: Notes) -> Said:
    _only(step, said, "as_closest_canonical", "dtype")
    if _truth(step, said.get("as_closest_canonical", False), "as_closest_canonical"):
        # Both at once: the array is turned as it is loaded.
        return {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": IMAGE},
                {"_target_": "Orientationd", "keys": IMAGE, "axcodes": "RAS"},
            ],
        }
    return {"_target_": "LoadImaged", "keys": IMAGE}


def _channels_first(step: Step, said: Mapping[str, Any], notes: Notes) -> Said:
    _only(step, said)
    return {"_target_": "EnsureChannelFirstd", "keys": IMAGE}


def _resolution(step: Step, said: Mapping[str, Any], notes: Notes) -> Said:
    _only(step, said, "target_resolution")
    text = "Clara Train 3 gives no rule for the size of its ScaleByResolution: that of MONAI's Spacing is taken"
    notes.append(("size-rule-assumed", text))
    return {"_target_": "Spacingd", "keys": IMAGE, "pixdim": said.get("target_resolution"), "mode": "bilinear"}


def _shape(step: Step, said: Mapping[str, Any], notes: Notes) -> Said:
    _only(step, said, "target_shape")
    return {"_target_": "Resized", "keys": IMAGE, "spatial_size": said.get("target_shape"), "mode": "trilinear"}


def _range(step: Step, said: Mapping[str, Any], notes: Notes) -> Said:
    _only(step, said, "a_min", "a_max", "b_min", "b_max", "clip")
    args = {name: value for name, value in said.items() if name != "clip"}
    clip = _truth(step, said.get("clip", False), "clip")
    return {"_target_": "ScaleIntensityRanged", "keys": IMAGE, **args, "clip": clip}


def _nonzero(step: Step, said: Mapping[str, Any], notes: Notes) -> Said:
    _only(step, said)
    return {"_target_": "NormalizeIntensityd", "keys": IMAGE, "nonzero": True, "channel_wise": True}


def _centre(step: Step, said: Mapping[str, Any], notes: Notes) -> Said:
    _only(step, said, "subtrahend", "divisor")
    return {"_target_": "NormalizeIntensityd", "keys": IMAGE, **said}


def _crop(step: Step, said: Mapping[str, Any], notes: Notes) -> Said:
    _only(step, said, "source_field", "margin")
    args = {} if said.get("source_field") is None else {"source_key": said["source_field"]}
    return {"_target_": "CropForegroundd", "keys": IMAGE, **args, "margin": said.get("margin", 0)}


def _cast(step: Step, said: Mapping[str, Any], notes: Notes) -> Said:
    _only(step, said, "dtype")
    return {"_target_": "CastToTyped", "keys": IMAGE, "dtype": said.get("dtype", "float32")}


_OLD_BEFORE: Mapping[str, Callable[[Step, Mapping[str, Any], Notes], Said]] = {
    "LoadNifti": _load,
    "ConvertToChannelsFirst": _channels_first,
    "ScaleByResolution": _resolution,
    "ScaleToShape": _shape,
    "ScaleIntensityRange": _range,
    "NormalizeNonzeroIntensities": _nonzero,
    "CenterData": _centre,
    "CropForegroundObject": _crop,
    "CastToType": _cast,
}


def _inferer(step: Step, notes: Notes) -> Said:
    for name, value in step.args.items():
        _refuse_code(step, name, value)
    args = dict(step.args)
    if step.name in ("SimpleInferer", "TFSimpleInferer"):
        return {"_target_": "SimpleInferer"}
    if step.name in ("TFScanWindowInferer", "ScanWindowInferer"):
        for aside in ("batch_size", "is_channels_first"):
            args.pop(aside, None)
    if step.name not in ("SlidingWindowInferer", "TFScanWindowInferer", "ScanWindowInferer"):
        refuse(step, "this inferer is not reproduced")
    if "roi_size" not in args:
        refuse(step, "roi_size is missing: how large a window is")
    if "overlap" not in args:
        text = f"{step.place} says no overlap of its windows: {ASSUMED_OVERLAP:g} is taken, MONAI's default"
        notes.append(("overlap-assumed", text))
        args["overlap"] = ASSUMED_OVERLAP
    return {"_target_": "SlidingWindowInferer", **args}


# ---- what is known of the network


def metadata_of(archive: Archive, name: str, notes: Notes) -> Said:
    """Return what a bundle's metadata would say of an MMAR's network.

    Args:
        archive: the MMAR.
        name: the model's.
        notes: gets what a person should know.

    Raises:
        ConfigError: `unsupported-mmar` where it has a task that is not reproduced; `modality-unknown`; `bad-mmar`.
    """
    kind = archive.aiaa.get("type", "segmentation")
    if kind not in ("segmentation", "classification"):
        raise ConfigError(
            "unsupported-mmar", f"{AIAA}: type is {str(kind)[:40]!r}; segmentation and classification are reproduced"
        )
    modality = _modality(archive, notes)
    labels = _labels(archive)
    given = _count(archive, "INPUT_CHANNELS", ("in_channels", "input_channels", "num_channels")) or 1
    highest = any(_decides(step) for step in archive.after)
    wanted = _count(archive, "OUTPUT_CHANNELS", ("out_channels", "num_classes", "output_channels"))
    wanted = wanted or (len(labels) + highest if labels else None)
    if wanted is None:
        bad(
            archive.workflow,
            "nothing says how many channels the output has: no labels in config_aiaa.json, no model for training",
        )
    names = ["background", *labels] if highest and kind == "segmentation" else labels
    description = archive.aiaa.get("description")
    return {
        "version": "0",
        "monai_version": "0.8.0",
        "name": name,
        "description": description if isinstance(description, str) else "",
        "network_data_format": {
            "inputs": {
                IMAGE: {
                    "type": "image",
                    "format": "hounsfield" if modality == "CT" else "magnitude",
                    "modality": modality,
                    "num_channels": given,
                    "spatial_shape": ["*", "*", "*"],
                }
            },
            "outputs": {
                OUTPUT: {
                    "type": "image" if kind == "segmentation" else "probabilities",
                    "format": "segmentation" if kind == "segmentation" else "classes",
                    "num_channels": wanted,
                    "channel_def": {str(n): word for n, word in enumerate(names[:wanted])},
                }
            },
        },
    }


def _decides(step: Step) -> bool:
    argmax = step.args.get("argmax")
    return step.name == "ArgmaxAcrossChannels" or argmax is True or (isinstance(argmax, list) and argmax[:1] == [True])


def _modality(archive: Archive, notes: Notes) -> str:
    """Return CT, MR or another word for what the images are: the unit of their values depends on it."""
    said = archive.variables.get(MODALITY)
    if isinstance(said, str) and re.fullmatch(r"[A-Za-z]{2,16}", said):
        return said.upper()
    text = archive.aiaa.get("description")
    words = set(re.findall(r"\b(?:CT|MRI?)\b", text)) if isinstance(text, str) else set()
    found = {"MR" if word.startswith("MR") else word for word in words}
    if len(found) != 1:
        raise ConfigError(
            "modality-unknown",
            f"{archive.folder.name} does not say whether it takes CT or MR, and so not the unit of its values",
            hint=f'add "{MODALITY}": "CT" (or "MR") to {CONFIG}/{ENVIRONMENT}',
        )
    (word,) = found
    notes.append(("modality-from-description", f"{AIAA} says {word} in its description only"))
    return word


def _labels(archive: Archive) -> list[str]:
    said = archive.aiaa.get("labels", [])
    if isinstance(said, dict):
        said = sorted(
            said, key=lambda word: (not isinstance(said[word], int), said[word] if isinstance(said[word], int) else 0)
        )
    if not isinstance(said, list) or not all(isinstance(word, str) and word for word in said) or len(said) > MAX_LABELS:
        bad(AIAA, "labels is no list of names")
    return [word for word in said if word.lower() != "background"]


def _count(archive: Archive, variable: str, names: Sequence[str]) -> int | None:
    """Return a number of channels that the variables or the training's model say."""
    found = archive.variables.get(variable)
    training = archive.training.get("train", archive.training)
    model = training.get("model", archive.training.get("model")) if isinstance(training, dict) else None
    args = model.get("args") if isinstance(model, dict) else None
    values = [found, *(args.get(name) for name in names if isinstance(args, dict))]
    for value in values:
        if isinstance(value, str) and value.isdecimal() and len(value) <= 5:
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_LABELS:
            return value
    return None
