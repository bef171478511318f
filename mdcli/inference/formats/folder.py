"""A model of our own: a folder with a card, `model.yaml`, and the network that it names."""

from __future__ import annotations

from pathlib import Path

from mdcli.dicom.plain_yaml import PlainYamlError, load_yaml
from mdcli.errors import ConfigError, MissingError
from mdcli.inference.card import CARD_FILE, MAX_CARD_BYTES, Card, read_card
from mdcli.inference.engines import DEFAULT_ENGINE, OWN_ENGINES
from mdcli.inference.formats import ModelFolder, Opening, digest_of, inside, inside_folder
from mdcli.inference.onnxfile import external_files

# Networks that are converted to ONNX once, before any engine sees them.
_CONVERTED = (".ts", ".pt2", ".pt", ".pth", ".safetensors")
_PLUGINS = (".pb", ".keras", ".h5", ".hdf5")


class CardFolder:
    """Reads a folder with `model.yaml`, that file, or a network beside it."""

    name = "folder"

    def recognises(self, path: Path) -> bool:
        """Say whether there is a card whose networks are ours to read. See `Format.recognises`."""
        card_path = _card_path(path)
        return card_path.is_file() and not any(_is_others(card_path.parent, name) for name in _networks_of(card_path))

    def read(self, path: Path, opening: Opening) -> ModelFolder:
        """Return the model. See `Format.read`."""
        card_path = _card_path(path)
        folder = card_path.parent
        with card_path.open("rb") as file:
            content = file.read(MAX_CARD_BYTES + 1)
        try:
            card = read_card(content.decode("utf-8"), f"{folder.name}/{card_path.name}")
        except UnicodeDecodeError as error:
            text = f"{card_path.name}: not UTF-8: {error.reason} at byte {error.start}"
            raise ConfigError("bad-card", text) from error
        if path.is_file() and path != card_path and path.name not in {Path(name).name for name in card.networks}:
            raise ConfigError(
                "bad-card", f"{card_path.name}: network is {', '.join(map(repr, card.networks))}, not {path.name!r}"
            )
        networks: list[Path | str] = []
        files = [card_path]
        notes: list[tuple[str, str]] = []
        for name in card.networks:
            if "://" in name:
                networks.append(name)
                continue
            network = inside(folder, name, card_path.name)
            files.append(network)
            if network.suffix in _CONVERTED and opening.engine in OWN_ENGINES:
                converted, said = _convert(network, card, opening)
                networks.append(converted)
                notes += said
                continue
            networks.append(network)
            files += _weights(network, folder, opening)
        return ModelFolder(card, tuple(networks), digest_of(folder, files), tuple(notes), folder)


def has_card(path: Path) -> bool:
    """Say whether there is a card, whatever its networks are."""
    return _card_path(path).is_file()


def _networks_of(card_path: Path) -> list[str]:
    """Return the networks that a card names; none where it can't be read, which `read` says better."""
    with card_path.open("rb") as file:
        content = file.read(MAX_CARD_BYTES)
    try:
        said = load_yaml(content.decode("utf-8"))
    except (PlainYamlError, UnicodeDecodeError):
        return []
    if not isinstance(said, dict):
        return []
    several = said.get("networks")
    return [
        name for name in [said.get("network"), *(several if isinstance(several, list) else [])] if isinstance(name, str)
    ]


def _is_others(folder: Path, name: str) -> bool:
    """Say whether a network is of a format that only a plugin reads: TensorFlow's and Keras's files, or a folder."""
    if "://" in name:
        return False
    return Path(name).suffix.lower() in _PLUGINS or (inside_folder(folder, name) and (folder / name).is_dir())


def _card_path(path: Path) -> Path:
    is_card = path.is_file() and path.suffix in (".yaml", ".yml")
    return path if is_card else (path.parent if path.is_file() else path) / CARD_FILE


def _weights(network: Path, folder: Path, opening: Opening) -> list[Path]:
    """Return the files that hold an ONNX network's weights; the locations are relative to the network's own folder.

    Source: onnx.proto, TensorProto.external_data.
    """
    try:
        names = sorted(external_files(network))
    except ConfigError:
        # A plugin's engine may have a format of its own.
        if opening.engine == DEFAULT_ENGINE or network.suffix == ".onnx":
            raise
        names = []
    return [inside(network.parent, name, network.name, folder) for name in names]


def _convert(network: Path, card: Card, opening: Opening) -> tuple[Path, list[tuple[str, str]]]:
    """Return the ONNX network that a torch file is converted to, once."""
    from mdcli.inference.formats.torchfile import NetworkDefinition, to_onnx

    if opening.cache is None:
        raise MissingError("no-network", f"{network.name} has to be converted to ONNX, and there is no folder for that")
    sizes = [size for size in card.cut.size if isinstance(size, int)]
    if len(sizes) < len(card.cut.size):
        text = f"{network.name}: window {list(card.cut.size)}, and a network that is converted needs fixed sizes"
        raise ConfigError("bad-card", text)
    channels = sum(said.channels for said in card.inputs)
    definition = (
        NetworkDefinition(card.architecture.target, dict(card.architecture.arguments)) if card.architecture else None
    )
    converted = to_onnx(
        network, cache=opening.cache, trust=opening.trust, input_shape=(1, channels, *sizes), network=definition
    )
    return converted.path, list(converted.notes)
