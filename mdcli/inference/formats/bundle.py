"""A MONAI Bundle as a model: its metadata and inference configuration said as one card, its network as ONNX.

Nothing of the bundle runs. What its configuration says is read by `bundle_config`, its transforms become a card's words by
`bundle_transforms`; a bundle that does anything else is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NoReturn, cast

from mdcli.errors import ConfigError, MissingError
from mdcli.inference.card import AS_ACQUIRED, Bound, Card, Input, Label, Output, Window, completed
from mdcli.inference.formats import ModelFolder, Opening, digest_of, inside, sha256_of
from mdcli.inference.formats.bundle_config import (
    CONFIGS,
    METADATA,
    BundleConfig,
    Component,
    inference_file,
    is_bundle,
    read_document,
    unpack,
    zipped_root,
)
from mdcli.inference.formats.bundle_transforms import (
    Finish,
    Inferring,
    Notes,
    Preparation,
    base_name,
    kept_largest,
    read_finish,
    read_inferer,
    read_preparation,
    slice_axes,
    statistics_of,
    transforms_of,
    version_before,
)
from mdcli.inference.naming import one_line, private_label, slug
from mdcli.inference.onnxfile import external_files

MAX_CHANNELS = 4096
_MODELS = "models"
_MODALITIES = {"CT": "CT", "MR": "MR", "MRI": "MR"}
_CLASSES = ("classes", "labels", "classification")
_DISPLAYED = ("jpeg", "jpg", "png")


class MonaiBundle:
    """Reads a bundle: a folder, or a zip file of one."""

    name = "bundle"

    def recognises(self, path: Path) -> bool:
        """Say whether there is `configs/metadata.json`. See `Format.recognises`."""
        return is_bundle(path) if path.is_dir() else zipped_root(path) is not None

    def read(self, path: Path, opening: Opening) -> ModelFolder:
        """Return the model. See `Format.read`.

        Raises:
            ConfigError: `bad-bundle`, `unsupported-bundle`, `unsupported-transform`, `refused-expression`, `orientation-unknown`;
                `outside-folder`; those of `torchfile.to_onnx`.
            MissingError: `no-network`.
        """
        folder = path
        if not path.is_dir():
            if opening.cache is None:
                raise MissingError("no-network", f"{path.name} has to be unpacked, and there is no folder for that")
            folder = unpack(path, opening.cache)
        try:
            return _read(folder, opening)
        except RecursionError:
            raise ConfigError("bad-bundle", f"{folder.name}: the configuration is nested too deeply") from None


def _read(folder: Path, opening: Opening) -> ModelFolder:
    metadata = read_document(folder / CONFIGS / METADATA, folder)
    config = BundleConfig(folder, inference_file(folder))
    notes: Notes = []
    given, wanted = _formats(metadata)
    card = _card(folder.name, metadata, config, given, wanted, opening, notes)
    chosen = _network_file(folder, config, opening)
    files = [chosen]
    network: Path = chosen
    if chosen.suffix == ".onnx":
        files += [inside(chosen.parent, name, chosen.name, folder) for name in sorted(external_files(chosen))]
    else:
        network = _converted(chosen, config, card, given, opening, notes)
    configs = [folder / CONFIGS / METADATA, *config.files]
    said = chosen.relative_to(folder).as_posix()
    card = completed(replace(card, network=said), f"{folder.name}/{CONFIGS}")
    return ModelFolder(card, (network,), digest_of(folder, [*configs, *files]), tuple(dict.fromkeys(notes)), folder)


# ---- metadata.json


@dataclass(frozen=True)
class Tensor:
    """What `network_data_format` says of an input or output.

    Attributes:
        name: its key.
        kind: its `type`.
        form: its `format`.
        modality: of an input.
        channels: how many.
        names: of the channels, None where one has no name.
        shape: sizes; None where one is no number.
    """

    name: str
    kind: str
    form: str
    modality: str
    channels: int
    names: tuple[str | None, ...]
    shape: tuple[int | None, ...]


def _formats(metadata: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return what the metadata says of the one input and the one output.

    Raises:
        ConfigError: `bad-bundle`; `unsupported-bundle` where there are several.
    """
    found = metadata.get("network_data_format")
    if not isinstance(found, dict):
        _bad("network_data_format is missing, which says what the network takes and gives")
    return _tensor(found, "inputs"), _tensor(found, "outputs")


def _tensor(found: Mapping[str, Any], which: str) -> Tensor:
    several = found.get(which)
    if not isinstance(several, dict) or not several:
        _bad(f"network_data_format has no {which}")
    if len(several) > 1:
        _unsupported(
            f"the network has {len(several)} {which} ({one_line(', '.join(map(str, several)), 80)}), md reads one"
        )
    name, said = next(iter(several.items()))
    if not isinstance(said, dict):
        _bad(f"network_data_format: {which}: {one_line(str(name), 40)} is no mapping")
    channels = said.get("num_channels")
    if not isinstance(channels, int) or isinstance(channels, bool) or not 1 <= channels <= MAX_CHANNELS:
        _bad(f"num_channels of {which} is {one_line(repr(channels), 40)}, not a whole number from 1 to {MAX_CHANNELS}")
    shape = said.get("spatial_shape")
    shape = shape if isinstance(shape, list) else []
    sizes = tuple(n if isinstance(n, int) and not isinstance(n, bool) and n > 0 else None for n in shape[:8])
    defined = said.get("channel_def")
    defined = defined if isinstance(defined, dict) else {}
    names = tuple(_text(defined.get(str(n))) or None for n in range(channels))
    words = (_text(said.get(key)).lower() for key in ("type", "format", "modality"))
    kind, form, modality = words
    return Tensor(str(name), kind, form, modality, channels, names, sizes)


def _text(value: Any, length: int = 64) -> str:
    return one_line(value, length) if isinstance(value, str) else ""


def _bad(message: str) -> NoReturn:
    raise ConfigError("bad-bundle", f"{METADATA}: {message}")


def _unsupported(message: str, hint: str | None = None) -> NoReturn:
    raise ConfigError("unsupported-bundle", message, hint=hint)


# ---- the card


def _component(config: BundleConfig, *keys: str) -> Component | None:
    """Return the component under the first of some keys that is there; a disabled one is none."""
    for key in keys:
        head, *rest = key.split("::")
        if head not in config:
            continue
        found = config.get(head)
        for part in rest:
            found = found.get(part) if isinstance(found, (Component, dict)) else None
        if isinstance(found, Component):
            return found
        if found is not None:
            _unsupported(f"{key} is no component")
    return None


def _card(
    name: str,
    metadata: Mapping[str, Any],
    config: BundleConfig,
    given: Tensor,
    wanted: Tensor,
    opening: Opening,
    notes: Notes,
) -> Card:
    """Return the card, its network's name still to come."""
    colour = given.channels == 3 and (given.form == "rgb" or len(given.shape) == 2)
    before = _component(config, "preprocessing", "dataset::transform")
    old = version_before(metadata.get("monai_version"), 1, 5)
    preparation = read_preparation(transforms_of(before, "preprocessing"), given.channels, old_crop=old)
    notes += preparation.notes
    count = len(given.shape) or len(preparation.axes)
    inferring = read_inferer(_component(config, "inferer", "evaluator::inferer"), len(preparation.axes), notes)
    if count == 2 and inferring.slices is None and len(preparation.axes) == 3 and not preparation.resampled:
        # An image of one slice: MONAI loads it without the third axis.
        preparation.axes.remove("z")
        inferring = read_inferer(_component(config, "inferer", "evaluator::inferer"), 2, [])
    axes = slice_axes(preparation.axes, inferring.slices)
    if len(axes) != count:
        _bad(f"the network takes {count} axes, and what comes before it gives {len(axes)}")
    after = _component(config, "postprocessing", "evaluator::postprocessing")
    finish = read_finish(transforms_of(after, "postprocessing"), before.key if before else None, count)
    notes += finish.notes
    task = _task(wanted, count)
    inputs = _inputs(given, preparation, axes, colour, _grayscale(metadata), opening)
    labels = _labels(wanted, task, finish, notes)
    output = _output(task, wanted, labels, finish, preparation, axes)
    word = _MODALITIES.get(given.modality.upper())
    return Card(
        schema="md.model/1",
        name=_name(metadata, name),
        version=_text(metadata.get("version")) or "0",
        task=task,
        inputs=inputs,
        labels=labels,
        empty="valid",
        output=output,
        window=_window(task, inferring),
        description=_text(metadata.get("description"), 200),
        accepts={"modality": Bound(one_of=(word,))} if word else {},
        licence=_text(metadata.get("license"), 200) or _text(metadata.get("copyright"), 200),
        source=_text(metadata.get("authors"), 200),
        intended_use=_text(metadata.get("intended_use"), 200),
    )


def _name(metadata: Mapping[str, Any], folder: str) -> str:
    return slug(folder) or slug(_text(metadata.get("name"))) or "bundle"


def _task(wanted: Tensor, count: int) -> Literal["segmentation", "classification"]:
    if wanted.form == "segmentation":
        return "segmentation"
    if wanted.form in _CLASSES or wanted.kind == "probabilities":
        return "classification"
    _unsupported(
        f"the output is of type {wanted.kind or '?'} and format {wanted.form or '?'}; md reads segmentation and classes"
    )


def _grayscale(metadata: Mapping[str, Any]) -> Literal["modality", "presentation"]:
    """Return which values the network was trained on: files of pictures hold what is displayed."""
    return "presentation" if _text(metadata.get("data_type")).lower() in _DISPLAYED else "modality"


def _inputs(
    given: Tensor,
    done: Preparation,
    axes: tuple[str, ...],
    colour: bool,
    grayscale: Literal["modality", "presentation"],
    opening: Opening,
) -> tuple[Input, ...]:
    spatial = len(axes) == 3 or len(done.axes) == 3
    orientation = done.orientation or (opening.orientation if spatial else None)
    if orientation is None and spatial:
        raise ConfigError(
            "orientation-unknown",
            "the bundle has no Orientation: its network saw the images as their files had them, and md can't know how",
            hint="--orientation RAS, LPS ... as the training images were",
        )
    count = 1 if colour else given.channels
    roles = _roles(given, count)
    seen = [done.axes.index(axis) for axis in axes]
    spacing: tuple[float, ...] | Literal["as-acquired"] = "as-acquired"
    if done.spacing is not None:
        spacing = tuple(done.spacing[n] for n in seen)
    inputs = []
    for n in range(count):
        before, steps = done.steps_of(n)
        statistics = statistics_of((*before, *steps))
        inputs.append(
            Input(
                axes=("C", *axes),
                orientation=orientation or AS_ACQUIRED,
                spacing=spacing,
                unit="HU" if given.modality.upper() == "CT" else "arbitrary",
                role=roles[n],
                grayscale="modality" if colour else grayscale,
                # MONAI knows no padding value: it counts every voxel.
                padding="include" if statistics else None,
                intensity=steps,
                intensity_before=before,
                channels=3 if colour else 1,
                rule="monai",
                interpolation=done.interpolation,
                crop=done.card_crop,
                resize=None if done.resize is None else tuple(done.resize[n] for n in seen),
                resize_mode=done.resize_mode if done.resize is not None else "linear",
            )
        )
    if done.spacing is not None and len(axes) != len(done.axes):
        _unsupported("a network that takes slices, of an image resampled along all three axes")
    return tuple(inputs)


def _roles(given: Tensor, count: int) -> list[str]:
    """Return the artifact of each channel: `volume` alone, else `volume-t1` and the like."""
    if count == 1:
        return ["volume"]
    words = [slug(name or "") or f"channel_{n}" for n, name in enumerate(given.names)]
    return [f"volume-{word}" if words.count(word) == 1 else f"volume-{word}_{n}" for n, word in enumerate(words)]


def _labels(
    wanted: Tensor, task: Literal["segmentation", "classification"], finish: Finish, notes: Notes
) -> tuple[Label, ...]:
    """Return the structures or classes: every channel, without the background of a map whose classes exclude each other."""
    names = list(enumerate(wanted.names))
    if task == "segmentation" and finish.decided == "highest":
        names = names[1:]
    if not names:
        _bad(f"the output has {wanted.channels} channel, of which the highest is no choice")
    taken: set[str] = set()
    labels = []
    for value, (channel, name) in enumerate(names, start=1):
        word = name or f"channel {channel}"
        while word in taken:
            word = f"{word} {channel}"
        taken.add(word)
        labels.append(private_label(value, word))
    nameless = sum(name is None for _, name in names)
    if nameless:
        notes.append(("name-missing", f"the bundle names {len(names) - nameless} of its {len(names)} structures"))
    notes.append(
        ("private-code", f"the bundle has no codes for its {len(labels)} structures: private ones are written")
    )
    return tuple(labels)


def _output(
    task: Literal["segmentation", "classification"],
    wanted: Tensor,
    labels: tuple[Label, ...],
    finish: Finish,
    done: Preparation,
    axes: tuple[str, ...],
) -> Output:
    if task == "classification":
        if finish.keep or finish.folded or finish.back:
            _unsupported("a classification with steps for maps after it")
        return Output(axes=("C",), activation=finish.activation, threshold=finish.threshold)
    if finish.decided is None:
        _unsupported("what comes after the network neither takes the highest class nor a threshold")
    if not done.resampled and done.crop is None:
        # Both grids have the same voxels: nothing is interpolated on the way back.
        inversion: Literal["scores", "labels"] = "scores"
    else:
        inversion = "scores" if finish.inverted == "linear" else "labels"
    activation, masks = finish.activation, finish.decided == "threshold" and wanted.channels > 1
    if finish.decided == "highest" and activation == "sigmoid":
        if inversion == "scores" and done.resampled:
            _unsupported("sigmoid, then the highest class of interpolated scores")
        # A sigmoid keeps the order.
        activation = "none"
    if finish.decided == "threshold" and activation != "sigmoid":
        _unsupported(f"a threshold on what is no sigmoid's ({activation})")
    if masks and inversion == "labels":
        _unsupported("structures that overlap, brought back by the nearest voxel")
    return Output(
        axes=("C", *axes),
        activation=activation,
        inversion=inversion,
        form="masks" if masks else "labels",
        threshold=finish.threshold,
        after=kept_largest(finish, wanted.channels),
    )


def _window(task: str, inferring: Inferring) -> Window | None:
    if inferring.window is not None or task != "segmentation":
        return inferring.window
    return Window(inferring.size, overlap=0.0, blending="constant")


# ---- the network


def _network_file(folder: Path, config: BundleConfig, opening: Opening) -> Path:
    """Return the network's file: ONNX where there is one, then TorchScript that is trusted, then weights, then TorchScript.

    Raises:
        MissingError: `no-network`.
    """
    stem = _checkpoint(config)
    stems = [stem, "model"] if stem and stem != "model" else ["model"]
    for each in stems:
        found = {
            suffix: inside(folder, f"{_MODELS}/{each}{suffix}", folder.name)
            for suffix in (".onnx", ".ts", ".pt")
            if (folder / _MODELS / f"{each}{suffix}").exists()
        }
        if ".onnx" in found:
            return found[".onnx"]
        if ".ts" in found and (".pt" not in found or sha256_of(found[".ts"]) in opening.trust):
            return found[".ts"]
        if ".pt" in found:
            return found[".pt"]
    wanted = " or ".join(f"{_MODELS}/{each}.onnx, .ts or .pt" for each in stems)
    raise MissingError("no-network", f"{folder.name} has no {wanted}")


def _checkpoint(config: BundleConfig) -> str | None:
    """Return the name of the file that the bundle loads its weights from, without its ending; None where it says none."""
    candidates: list[Any] = []
    for key in ("checkpointloader", "handlers", "evaluator::val_handlers"):
        try:
            head, *rest = key.split("::")
            found = config.get(head) if head in config else None
            found = found.get(rest[0]) if rest and isinstance(found, Component) else found
        except ConfigError:
            # What else stands there is none of ours: the usual name will do.
            continue
        candidates += found if isinstance(found, list) else [found]
    for each in candidates:
        if isinstance(each, Component) and base_name(each, ("CheckpointLoader",)) and "load_path" in each:
            try:
                path = each.get("load_path")
            except ConfigError:
                continue
            if isinstance(path, str):
                return PurePosixPath(path).stem or None
    return None


def _converted(file: Path, config: BundleConfig, card: Card, given: Tensor, opening: Opening, notes: Notes) -> Path:
    """Return the ONNX network that a file of torch is converted to, once."""
    from mdcli.inference.formats.torchfile import NetworkDefinition, to_onnx

    if opening.cache is None:
        raise MissingError("no-network", f"{file.name} has to be converted to ONNX, and there is no folder for that")
    sizes = card.window.size if card.window is not None else ()
    if not sizes or not all(isinstance(size, int) for size in sizes):
        sizes = card.inputs[0].resize or tuple(size for size in given.shape if size is not None)
    if len(sizes) != len(card.inputs[0].axes) - 1:
        _unsupported(
            f"{file.name} has to be converted to ONNX with fixed sizes, and the bundle says none",
            hint="put models/model.onnx into the bundle",
        )
    definition = None
    if file.suffix == ".pt":
        target, arguments = _definition(config)
        definition = NetworkDefinition(target, arguments)
    shape = (1, given.channels, *cast(tuple[int, ...], sizes))
    converted = to_onnx(file, cache=opening.cache, trust=opening.trust, input_shape=shape, network=definition)
    notes += converted.notes
    return converted.path


def _definition(config: BundleConfig) -> tuple[str, dict[str, Any]]:
    """Return which network of MONAI the weights belong to, and what it is made with.

    Raises:
        ConfigError: `unsupported-bundle`.
    """
    network = _component(config, "network_def") if "network_def" in config else _component(config, "network")
    if network is None:
        _unsupported("the bundle says no network_def for its weights", hint="put models/model.onnx into the bundle")
    module, _, name = network.target.rpartition(".")
    if module and not f"{module}.".startswith("monai.networks.nets."):
        _unsupported(
            f"the weights belong to {one_line(network.target, 80)}, which is code of the bundle's or another library's",
            hint="put models/model.onnx into the bundle",
        )
    arguments = {each: _plain(network.get(each), f"{network.key}::{each}") for each in network}
    return f"{module or 'monai.networks.nets'}.{name}", arguments


def _plain(value: Any, key: str, depth: int = 0) -> Any:
    """Return a value of plain JSON kinds.

    Raises:
        ConfigError: `unsupported-bundle`.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)) and depth < 8:
        return [_plain(each, key, depth + 1) for each in value]
    if isinstance(value, dict) and depth < 8:
        return {str(name): _plain(each, key, depth + 1) for name, each in value.items()}
    _unsupported(f"{key} is no plain value")
