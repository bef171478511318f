"""Read a TensorFlow or Keras network beside a card, `model.yaml`, as a model of md."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from md_tensorflow.convert import SAVED_MODEL, Converted, Port, files_of, kind_of, to_onnx
from mdcli.errors import ConfigError, MissingError

if TYPE_CHECKING:
    from mdcli.inference.card import Card
    from mdcli.inference.formats import ModelFolder, Opening

CARD_FILE = "model.yaml"


class TensorFlow:
    """Reads a folder with `model.yaml` that names a SavedModel, a frozen graph or a Keras file; or that network.

    In such a card an input or output may have C last, `axes: [x, y, z, C]`, as TensorFlow has it. The converted network has C first
    always, and so has the card that is handed on.
    """

    name = "tensorflow"

    def recognises(self, path: Path) -> bool:
        """Say whether a card names a network of TensorFlow, or the path is one. See `Format.recognises`."""
        if kind_of(path) is not None:
            return True
        try:
            names = _networks(_document(_card_path(path)))
        except (ConfigError, OSError):
            return False
        return any(kind_of(_card_path(path).parent / name) is not None for name in names)

    def read(self, path: Path, opening: Opening) -> ModelFolder:
        """Return the model, its networks converted to ONNX. See `Format.read`; the codes of a conversion are those of `to_onnx`."""
        from mdcli.inference.formats import ModelFolder, digest_of

        card_path = _card_path(path)
        if not card_path.is_file():
            hint = "md schema model says what is in one; it lies beside the network"
            raise MissingError("no-model", f"there is no {CARD_FILE} for {path.name}", hint=hint)
        document = _document(card_path)
        card, last = read_card(document, f"{card_path.parent.name}/{card_path.name}")
        folder = card_path.parent
        files, made = [card_path], []
        for name in card.networks:
            source = _source(folder, name, card_path.name)
            files += files_of(source)
            made.append(convert(source, card, last, opening))
        for name, converted in zip(card.networks, made, strict=True):
            if (converted.inputs, converted.outputs) != (made[0].inputs, made[0].outputs):
                text = f"{card_path.name}: {name} calls its inputs and outputs otherwise than {card.networks[0]}"
                raise ConfigError("bad-card", text)
        card = named(card, made[0])
        notes = dict.fromkeys(note for converted in made for note in converted.notes)
        return ModelFolder(
            card, tuple(converted.path for converted in made), digest_of(folder, files), tuple(notes), folder
        )


def read_card(document: Any, name: str) -> tuple[Card, frozenset[tuple[str, int]]]:
    """Return a card with C first everywhere, and where C was last: (`inputs` or `outputs`, number).

    Raises:
        ConfigError: `bad-card`.
    """
    import yaml

    from mdcli.inference import card

    last = set()
    if isinstance(document, dict):
        document = dict(document)
        if isinstance(document.get("output"), dict):
            document["outputs"] = [document.pop("output")]
        for word in ("inputs", "outputs"):
            items = list(document[word]) if isinstance(document.get(word), list) else []
            for number, item in enumerate(items):
                axes = item.get("axes") if isinstance(item, dict) else None
                if isinstance(axes, list) and len(axes) > 1 and axes[-1] == "C":
                    items[number] = {**item, "axes": ["C", *axes[:-1]]}
                    last.add((word, number))
            if items:
                document[word] = items
    return card.read_card(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), name), frozenset(last)


def convert(source: Path, card: Card, last: frozenset[tuple[str, int]], opening: Opening) -> Converted:
    """Return the network that a card's network is converted to. See `to_onnx`."""
    engine = opening.engine if opening.engine in ("onnxruntime", "openvino") else "onnxruntime"
    return to_onnx(
        source,
        cache=opening.cache,
        trust=opening.trust,
        inputs=input_ports(card, last),
        outputs=[
            Port(tensor, any(("outputs", n) in last for n in numbers))
            for tensor, numbers in _by_tensor([output.tensor for output in card.outputs]).items()
        ],
        engine=engine,
    )


def input_ports(card: Card, last: frozenset[tuple[str, int]]) -> list[Port]:
    """Return what is fed: the inputs of one tensor are its channels.

    Raises:
        ConfigError: `bad-card` where the inputs of one tensor have their axes in different orders.
    """
    ports = []
    sizes = dict(zip(card.input.axes[1:], card.cut.size, strict=True))
    for tensor, numbers in _by_tensor([said.tensor for said in card.inputs]).items():
        group = [card.inputs[n] for n in numbers]
        if len({(said.axes, ("inputs", n) in last) for said, n in zip(group, numbers, strict=True)}) > 1:
            raise ConfigError("bad-card", f"inputs: the channels of {tensor or 'the one input'} have different axes")
        resize = dict(zip(group[0].axes[1:], group[0].resize or (), strict=False))
        shape = [size if isinstance(size := sizes[axis], int) else resize.get(axis) for axis in group[0].axes[1:]]
        channels = sum(said.channels for said in group)
        ports.append(Port(tensor, ("inputs", numbers[0]) in last, (channels, *shape)))
    return ports


def named(card: Card, converted: Converted) -> Card:
    """Return a card that calls the tensors as the converted network does."""
    ins = dict(zip(_by_tensor([said.tensor for said in card.inputs]), converted.inputs, strict=True))
    outs = dict(zip(_by_tensor([output.tensor for output in card.outputs]), converted.outputs, strict=True))
    return dataclasses.replace(
        card,
        inputs=tuple(dataclasses.replace(said, tensor=ins[said.tensor]) for said in card.inputs),
        outputs=tuple(dataclasses.replace(output, tensor=outs[output.tensor]) for output in card.outputs),
    )


def _by_tensor(tensors: list[str | None]) -> dict[str | None, list[int]]:
    found: dict[str | None, list[int]] = {}
    for number, tensor in enumerate(tensors):
        found.setdefault(tensor, []).append(number)
    return found


def _card_path(path: Path) -> Path:
    if path.is_file():
        is_card = path.suffix in (".yaml", ".yml")
        # The card of a SavedModel may lie in it, or beside its folder.
        beside = [path.parent / CARD_FILE, path.parent.parent / CARD_FILE][: 2 if path.name == SAVED_MODEL else 1]
        return path if is_card else next((card for card in beside if card.is_file()), beside[0])
    if (path / SAVED_MODEL).is_file() and not (path / CARD_FILE).is_file():
        return path.parent / CARD_FILE
    return path / CARD_FILE


def _document(card_path: Path) -> Any:
    """Return what a card says, unchecked.

    Raises:
        ConfigError: `bad-card` where it is no YAML.
    """
    from mdcli.dicom.plain_yaml import PlainYamlError, load_yaml
    from mdcli.inference.card import MAX_CARD_BYTES

    with card_path.open("rb") as file:
        content = file.read(MAX_CARD_BYTES + 1)
    if len(content) > MAX_CARD_BYTES:
        raise ConfigError("bad-card", f"{card_path.name}: over {MAX_CARD_BYTES} bytes")
    try:
        return load_yaml(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError("bad-card", f"{card_path.name}: not UTF-8: {error.reason} at byte {error.start}") from error
    except PlainYamlError as error:
        raise ConfigError("bad-card", f"{card_path.name}: {error}") from error


def _networks(document: Any) -> list[str]:
    if not isinstance(document, dict):
        return []
    named = document.get("networks")
    names = named if isinstance(named, list) else [document.get("network")]
    return [name for name in names if isinstance(name, str) and "://" not in name]


def _source(folder: Path, name: str, said_by: str) -> Path:
    """Return the file or folder of a network that a card names.

    Raises:
        ConfigError: `outside-folder`; `bad-card` where it is not TensorFlow's.
        MissingError: `no-network`.
    """
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError("outside-folder", f"{said_by} names {name!r}, which is outside the model's folder")
    if not path.exists():
        raise MissingError("no-network", f"{said_by} names {name!r}, which is not there")
    if kind_of(path) is None:
        raise ConfigError("bad-card", f"{said_by}: network {name!r} is no SavedModel, frozen graph or Keras file")
    return path.parent if path.name == SAVED_MODEL else path


FORMAT = TensorFlow()
