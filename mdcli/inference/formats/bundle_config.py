"""Open a MONAI Bundle, folder or zip, and say what its configuration says, item by item, only as far as somebody asks.

The syntax is that of MONAI 1.6 (`monai.bundle.ConfigParser`): `@a::b` another item, `$...` an expression, `%file::key` a piece of
another file, `_target_` a component, `_disabled_` one that is left out. Nothing is imported and nothing is made: a component stays
its name and its arguments.
"""

from __future__ import annotations

import re
import shutil
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from mdcli.dicom.plain_yaml import PlainYamlError, load_yaml
from mdcli.errors import ConfigError, MissingError
from mdcli.inference.formats import inside, sha256_of
from mdcli.inference.formats.expressions import evaluate

CONFIGS = "configs"
METADATA = "metadata.json"
INFERENCE = ("inference.json", "inference.yaml", "inference.yml")

MAX_CONFIG_BYTES = 4 << 20
MAX_DEPTH = 64
MAX_RESOLVED = 100_000
MAX_ZIP_ENTRIES = 20_000
MAX_ZIP_BYTES = 32 << 30
# Weights hardly shrink: what expands further is there to fill the disk.
MAX_EXPANSION = 200
_SMALL = 1 << 20
_UNPACKED = (CONFIGS, "models")

_SPECIAL = frozenset({"_target_", "_disabled_", "_requires_", "_desc_", "_mode_"})
_FILE_AND_ID = re.compile(r"(?P<file>.*\.(?:json|ya?ml))(?:::|#)?(?P<id>.*)", re.IGNORECASE)
_RELATIVE = re.compile(r"([@%])((?:::|#)+)")


_NOT_THERE = object()


def _part(held: Any, part: str) -> Any:
    """Return one item of a mapping or a list, or `_NOT_THERE`."""
    if isinstance(held, dict):
        return held.get(part, _NOT_THERE)
    if isinstance(held, (list, tuple)) and part.isdecimal() and int(part) < len(held):
        return held[int(part)]
    return _NOT_THERE


def _bad(place: str, message: str, hint: str | None = None) -> NoReturn:
    raise ConfigError("bad-bundle", f"{place}: {message}", hint=hint)


@dataclass(frozen=True)
class Component:
    """A component that a configuration names.

    Attributes:
        target: its name as the configuration says it.
        key: where it stands.
    """

    target: str
    key: str
    _said: Mapping[str, Any] = field(repr=False)
    _config: BundleConfig = field(repr=False, compare=False)

    def __contains__(self, name: str) -> bool:
        return name in self._said and name not in _SPECIAL

    def __iter__(self) -> Iterator[str]:
        return (name for name in self._said if name not in _SPECIAL)

    def get(self, name: str, default: Any = None) -> Any:
        """Return one argument, worked out now; the default where it is not said."""
        return self._config.item(f"{self.key}::{name}", self._said[name]) if name in self else default


class BundleConfig:
    """What one configuration file of a bundle says.

    Args:
        folder: the bundle's.
        name: the file's, within `configs/`.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._documents: dict[Path, Mapping[str, Any]] = {}
        self._known: dict[str, Any] = {}
        self._open: list[str] = []
        self._count = 0
        self._document = self._load(folder / CONFIGS / name)

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files that were read so far."""
        return tuple(self._documents)

    def __contains__(self, key: str) -> bool:
        return key in self._document

    def get(self, key: str) -> Any:
        """Return an item by its id, `::` between the parts; worked out now, with what it needs.

        Returns:
            A plain value, `Component`, `expressions.Word` or `Lambda`, or a list or dict of such. None for a disabled component.

        Raises:
            ConfigError: `bad-bundle` where it is not there or needs itself; `refused-expression`; `outside-folder`.
        """
        key = key.replace("#", "::")
        if key in self._known:
            return self._known[key]
        if key in self._open:
            _bad(self._name, f"{' needs '.join([*self._open[self._open.index(key) :], key])}, which is itself")
        if len(self._open) >= MAX_DEPTH:
            _bad(self._name, f"{key} stands behind more than {MAX_DEPTH} references")
        self._open.append(key)
        try:
            found = self.item(*self._raw(key))
        finally:
            self._open.pop()
        self._known[key] = found
        return found

    def item(self, key: str, said: Any, depth: int = 0) -> Any:
        """Return what is said at a place, worked out. See `get`."""
        self._count += 1
        if self._count > MAX_RESOLVED:
            _bad(self._name, f"more than {MAX_RESOLVED} items are needed")
        if depth > MAX_DEPTH:
            _bad(self._name, f"{key} is nested more than {MAX_DEPTH} deep")
        said = self._expanded(key, said)
        if isinstance(said, str):
            if said.startswith("$"):
                return evaluate(said[1:], key, self.get)
            return self.get(said[1:]) if said.startswith("@") else said
        if isinstance(said, list):
            return [self.item(f"{key}::{n}", each, depth + 1) for n, each in enumerate(said)]
        if not isinstance(said, dict):
            return said
        if "_target_" not in said:
            return {str(name): self.item(f"{key}::{name}", each, depth + 1) for name, each in said.items()}
        return self._component(key, said)

    def _component(self, key: str, said: Mapping[str, Any]) -> Component | None:
        disabled = self.item(f"{key}::_disabled_", said.get("_disabled_", False))
        if disabled is True or (isinstance(disabled, str) and disabled.strip().lower() == "true"):
            return None
        target = said["_target_"]
        if not isinstance(target, str) or not re.fullmatch(r"[A-Za-z_][\w.]*", target):
            raise ConfigError("refused-expression", f"{key}: _target_ is computed, and md runs no code out of a model")
        if said.get("_mode_", "default") != "default":
            raise ConfigError("refused-expression", f"{key}: _mode_ is {said['_mode_']!r}, where default is wanted")
        return Component(target, key, said, self)

    def _raw(self, key: str, hops: int = 0) -> tuple[str, Any]:
        """Return where an item stands, and what is said there; `@`, `%` and `$` on the way are followed."""
        if hops > MAX_DEPTH:
            _bad(self._name, f"{key} stands behind more than {MAX_DEPTH} references")
        found: Any = self._document
        parts = key.split("::")
        for n, part in enumerate(parts):
            place = "::".join(parts[:n])
            found = self._expanded(place, found)
            if isinstance(found, str) and found.startswith("@"):
                return self._raw("::".join([found[1:].replace("#", "::"), *parts[n:]]), hops + 1)
            if isinstance(found, str) and found.startswith("$"):
                found = self.get(place)
            if isinstance(found, Component):
                found = found._said
            found = _part(found, part)
            if found is _NOT_THERE:
                _bad(self._name, f"there is no {key}")
        return key, found

    def _expanded(self, key: str, said: Any) -> Any:
        """Return what is said with relative ids made absolute, and with a piece of a file in place of `%`."""
        if not isinstance(said, str):
            return said
        parts = key.split("::")

        def absolute(match: re.Match[str]) -> str:
            up = len(match[2].replace("#", "::")) // 2
            if up > len(parts):
                _bad(self._name, f"{key}: {said!r} leads out of the configuration")
            return match[1] + "::".join([*parts[:-up], ""])

        if said.startswith(("$", "@", "%")):
            said = _RELATIVE.sub(absolute, said)
        return self._macro(key, said[1:]) if said.startswith("%") else said

    def _macro(self, key: str, said: str) -> Any:
        match = _FILE_AND_ID.fullmatch(said)
        name, wanted = (match["file"], match["id"]) if match else ("", said)
        if not match and re.search(r"[/\\]|\.\.", said):
            raise ConfigError("outside-folder", f"{key} names {said!r}, which is no file in {CONFIGS}/")
        document: Any = self._load(self._config_file(name, key)) if match else self._document
        for part in wanted.replace("#", "::").split("::") if wanted else []:
            document = _part(document, part)
            if document is _NOT_THERE:
                _bad(key, f"%{said} is not there")
        if isinstance(document, str) and document.startswith("%"):
            _bad(key, f"%{said} leads to another %, which MONAI does not follow either")
        return document

    def _config_file(self, name: str, key: str) -> Path:
        """Return a file that a macro names, relative to the bundle or to `configs/`, if it lies in there."""
        configs = self._folder / CONFIGS
        tried = [self._folder / name, configs / name]
        if Path(name).is_absolute() or not any(path.resolve().is_relative_to(configs.resolve()) for path in tried):
            raise ConfigError("outside-folder", f"{key} names {name!r}, which is no file in {CONFIGS}/")
        found = [path for path in tried if path.resolve().is_relative_to(configs.resolve()) and path.is_file()]
        if not found:
            _bad(key, f"there is no {name}")
        return found[0]

    def _load(self, path: Path) -> Mapping[str, Any]:
        if path not in self._documents:
            self._documents[path] = read_document(path, self._folder)
        return self._documents[path]


def read_document(path: Path, folder: Path) -> dict[str, Any]:
    """Return what a configuration file of a bundle says: a mapping.

    Args:
        path: the file, JSON or YAML.
        folder: the bundle's: the file must lie in there, links followed.

    Raises:
        ConfigError: `bad-bundle`, `outside-folder`.
        MissingError: `no-network` where it is not there.
    """
    inside(folder, path.relative_to(folder).as_posix(), folder.name)
    with path.open("rb") as file:
        content = file.read(MAX_CONFIG_BYTES + 1)
    if len(content) > MAX_CONFIG_BYTES:
        _bad(path.name, f"over {MAX_CONFIG_BYTES >> 20} MiB")
    try:
        document = load_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        _bad(path.name, f"not UTF-8: {error.reason} at byte {error.start}")
    except PlainYamlError as error:
        _bad(path.name, str(error))
    if not isinstance(document, dict):
        _bad(path.name, "not a mapping")
    return document


def is_bundle(folder: Path) -> bool:
    """Say whether a folder is laid out as a bundle."""
    return (folder / CONFIGS / METADATA).is_file()


def inference_file(folder: Path) -> str:
    """Return the name of a bundle's inference configuration.

    Raises:
        MissingError: `no-network`, naming what was looked for.
    """
    for name in INFERENCE:
        if (folder / CONFIGS / name).is_file():
            return name
    raise MissingError("no-network", f"{folder.name} has no {CONFIGS}/{' or '.join(INFERENCE)}: it says no inference")


def zipped_root(path: Path) -> str | None:
    """Return the folder within a zip file that is a bundle, `` for the zip's own; None where there is none or no zip file."""
    if not path.is_file() or not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return None
    wanted = f"{CONFIGS}/{METADATA}"
    roots = [name[: -len(wanted)] for name in names if name == wanted or name.endswith(f"/{wanted}")]
    return min(roots, key=lambda root: (root.count("/"), root)) if roots else None


def unpack(path: Path, cache: Path) -> Path:
    """Unpack what inference needs of a zipped bundle, once: a zip file with the same content is found again.

    Args:
        path: the zip file.
        cache: a private folder; made where it is not there.

    Returns:
        The bundle's folder.

    Raises:
        ConfigError: `outside-folder` where an entry leads out of the folder or is a link; `bad-bundle` where it is damaged,
            encrypted, or made to fill the disk.
    """
    root = zipped_root(path)
    if root is None:
        _bad(path.name, "no zip file with a bundle in it")
    target = cache / f"bundle-{sha256_of(path)}"
    # The folder's name says which bundle it is where the configuration does not.
    name = PurePosixPath(root).name or path.stem
    name = name if re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII) else "bundle"
    if not (target / name).is_dir():
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = Path(tempfile.mkdtemp(prefix="bundle-", dir=cache))
        try:
            (made / name).mkdir()
            _unpack(path, root, made / name)
            _put(made, target)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    return target / name


def _put(made: Path, target: Path) -> None:
    try:
        made.rename(target)
    except OSError:
        # Another process was faster, and made the same.
        if not target.is_dir():
            raise


def _unpack(path: Path, root: str, into: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            _check_entries(entries, path)
            for entry in entries:
                name = entry.filename[len(root) :] if entry.filename.startswith(root) else ""
                if entry.is_dir() or name.split("/", 1)[0] not in _UNPACKED:
                    continue
                target = into / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(entry) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        EOFError,
        zlib.error,
        FileExistsError,
        NotADirectoryError,
    ) as error:
        _bad(path.name, f"a damaged zip file: {' '.join(str(error).split())}")


def _check_entries(entries: list[zipfile.ZipInfo], path: Path) -> None:
    if len(entries) > MAX_ZIP_ENTRIES:
        _bad(path.name, f"{len(entries)} entries, over {MAX_ZIP_ENTRIES}")
    total = sum(entry.file_size for entry in entries)
    if total > MAX_ZIP_BYTES or total > max(path.stat().st_size * MAX_EXPANSION, _SMALL):
        _bad(path.name, f"{path.stat().st_size} bytes that unpack to {total}")
    for entry in entries:
        name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
        parts = PurePosixPath(name).parts
        if name.startswith("/") or "\\" in name or ":" in name or ".." in parts or "\0" in entry.orig_filename:
            raise ConfigError("outside-folder", f"{path.name} holds {name!r}, which leads out of its folder")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ConfigError("outside-folder", f"{path.name} holds {name!r}, which is a link or no plain file")
        if entry.flag_bits & 0x1:
            _bad(path.name, f"{name!r} is encrypted")
