"""Read a model, whatever its format, into one card: a small contract that every format keeps, and where a model is found.

A format of our own is a module here; another one is a plugin: an entry point of the group `mdcli.formats` whose object is a
`Format`.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Protocol

from mdcli.errors import ConfigError, MissingError, UnavailableError
from mdcli.inference.card import CARD_FILE, Card
from mdcli.inference.engines import OWN_ENGINES

GROUP = "mdcli.formats"


@dataclass(frozen=True)
class ModelFolder:
    """A model on disk.

    Attributes:
        card: what it wants and gives.
        networks: each one's file, or the address of a server's model; several are an ensemble.
        sha256: of what decides its numbers: of the lines `<sha256>  <name>` (as `sha256sum` prints them) of its files, sorted by
            name.
        notes: what a person should know of how it was read: (code, sentence).
        folder: where it lies.
    """

    card: Card
    networks: tuple[Path | str, ...]
    sha256: str
    notes: tuple[tuple[str, str], ...] = ()
    folder: Path | None = None


@dataclass(frozen=True)
class Opening:
    """What a format may use, and what the caller allows.

    Attributes:
        cache: a private folder for what is converted or unpacked; None: what needs one is refused.
        trust: SHA-256 of files whose code may run (TorchScript and other programs).
        orientation: the three letters of the patients that a network was trained on, where its format does not say.
        engine: the engine that will run it.
    """

    cache: Path | None = None
    trust: frozenset[str] = field(default_factory=frozenset)
    orientation: str | None = None
    engine: str = "onnxruntime"


class Format(Protocol):
    """Reads one format."""

    name: str

    def recognises(self, path: Path) -> bool:
        """Say whether a file or folder is of this format, by its content. Loads nothing heavy."""
        ...

    def read(self, path: Path, opening: Opening) -> ModelFolder:
        """Return the model.

        Raises:
            ConfigError: `bad-card`, `bad-network`, `outside-folder`, and the format's own codes for what is not supported.
            MissingError: `no-network`.
            UnavailableError: `no-engine` where a conversion needs what is not installed.
        """
        ...


def find_model(name_or_path: str, folders: Sequence[Path], opening: Opening | None = None) -> ModelFolder:
    """Return a model by its name or its path.

    Args:
        name_or_path: a name is looked up in `folders`; a path is a folder or file of any format: with `model.yaml` that folder, the
            card itself, or the network beside it.
        folders: each holds models as `NAME/`; the first that has the name wins.
        opening: what the format may use.

    Raises:
        MissingError: `no-model`; `no-network` where a card's network is not there.
        ConfigError: as `Format.read`; `broken-plugin`.
        UnavailableError: `no-format` where a card names a network that only a plugin reads.
    """
    is_name = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name_or_path) is not None
    named = [folder / name_or_path for folder in folders if is_name and (folder / name_or_path).exists()]
    path = named[0] if named else Path(name_or_path)
    if path.exists():
        opening = opening or Opening()
        for reader in _formats():
            if reader.recognises(path):
                return reader.read(path, opening)
        from mdcli.inference.formats.folder import CardFolder, has_card

        if has_card(path) and opening.engine in OWN_ENGINES:
            text = f"no format that is installed reads the network of {path.name}"
            raise UnavailableError("no-format", text, hint="pip install md-tensorflow, for TensorFlow and Keras")
        if has_card(path):
            # An engine of a plugin may read it.
            return CardFolder().read(path, opening)
        raise MissingError(
            "no-model", f"there is no {CARD_FILE} for {path.name}", hint="md schema model says what is in one"
        )
    near = difflib.get_close_matches(name_or_path, _names(folders), 1) if is_name else []
    hint = f"did you mean {near[0]}?" if near else "md models lists the names; a path works too"
    raise MissingError("no-model", f"there is no model {name_or_path!r}", hint=hint)


def _formats() -> Iterator[Format]:
    """Give our own formats, the most common first, then those of plugins."""
    from mdcli.inference.formats.folder import CardFolder

    yield CardFolder()
    from mdcli.inference.formats.bundle import MonaiBundle
    from mdcli.inference.formats.nnunet import NnUNet

    yield MonaiBundle()
    yield NnUNet()
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: point.name):
        try:
            found: Format = point.load()
            assert callable(found.recognises), f"{point.value} has no recognises()"
            assert callable(found.read), f"{point.value} has no read()"
        except Exception as error:
            distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "?"
            message = f"format {point.name} of {distribution} does not load: {type(error).__name__}: {error}"
            raise ConfigError("broken-plugin", message) from error
        yield found


def _names(folders: Sequence[Path]) -> list[str]:
    return [path.name for folder in folders if folder.is_dir() for path in folder.iterdir() if path.is_dir()]


def digest_of(folder: Path, files: Iterable[Path]) -> str:
    """Return one SHA-256 of a model's files: of the lines `<sha256>  <name>`, sorted by name, names relative to the folder."""
    lines = sorted((file.resolve().relative_to(folder.resolve()).as_posix(), sha256_of(file)) for file in files)
    return hashlib.sha256("".join(f"{sha256}  {name}\n" for name, sha256 in lines).encode()).hexdigest()


def inside(folder: Path, name: str, said_by: str, root: Path | None = None) -> Path:
    """Return a file that a model names, if it lies in the model's folder.

    Args:
        folder: what the name is relative to.
        name: as the model says it.
        said_by: who names it, for messages.
        root: the model's folder, where it is another.

    Raises:
        ConfigError: `outside-folder`.
        MissingError: `no-network`.
    """
    path = folder / name
    if not _lies_in(root or folder, path):
        raise ConfigError("outside-folder", f"{said_by} names {name!r}, which is outside the model's folder")
    if not path.is_file():
        raise MissingError("no-network", f"{said_by} names {name!r}, which is not there")
    return path


def inside_folder(folder: Path, name: str) -> bool:
    """Say whether a name, relative to a folder or absolute, lies in it once links are followed."""
    return _lies_in(folder, folder / name)


def _lies_in(folder: Path, path: Path) -> bool:
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (ValueError, OSError, RuntimeError):
        # A zero byte, a name too long, links in a circle: it lies nowhere.
        return False


_digests: dict[tuple[str, int, int, int], str] = {}


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256; within one process, a file whose stat is as before is not read again."""
    stat = path.stat()
    key = (str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]
