"""Read files of torch: told apart by content, refused where they could run code, converted once to ONNX.

Nothing here imports torch or unpickles. TorchScript and torch.export archives are programs: they are refused unless their SHA-256
is trusted. Weights are data only as far as torch's weights-only loader reads them. What is left is converted in a child process
without network (`mdcli.inference.torch_child`), which ends with comparing the ONNX network with torch's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import pickletools
import re
import shutil
import struct
import tempfile
import threading
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, NoReturn, Self

from mdcli.errors import ConfigError, MissingError
from mdcli.inference.engines import misfit
from mdcli.inference.isolation import CHILD_FILE, Answer, LiveChild, run_child
from mdcli.inference.onnxfile import external_files

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdcli.inference.engines import Session

TARGETS = re.compile(
    r"monai\.networks\.nets(\.[a-z0-9_]+)?\.[A-Za-z][A-Za-z0-9_]*"
    r"|dynamic_network_architectures\.architectures(\.[a-z0-9_]+)*\.[A-Z][A-Za-z0-9_]*"
)
"""The networks that weights may be loaded into, by their dotted names."""
LARGEST_DIFFERENCE = 1e-3
"""How far the ONNX network may be off torch's, as a part of the range of torch's output."""
TIMEOUT_S = 1800

Kind = Literal["torchscript", "export", "weights", "legacy-weights", "safetensors"]
PROGRAMS: tuple[Kind, ...] = ("torchscript", "export")

_CONVERTING = ".converting-"
_KEPT_SECONDS = 86_400
_ONNX_FILE = "network.onnx"
_FACTS_FILE = "conversion.json"
_MAX_ENTRIES = 100_000
_MAX_PICKLE_BYTES = 64 << 20
_MAX_HEADER_BYTES = 16 << 20
_MAX_ARGUMENTS = 1 << 16
# What a zip file may unpack to: torch compresses code, never weights.
_MAX_EXPANSION = 20
_ROOM_BYTES = 64 << 20
_SAFETENSORS_BYTES = {
    **{"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2},
    **{"I8": 1, "U8": 1, "BOOL": 1},
}
# What a pickle of weights may name. torch's loader decides; this list lets a file be refused before torch starts.
_STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_HARMLESS = {
    *(f"torch {name}Storage" for name in _STORAGES),
    *(f"torch {name}" for name in ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64")),
    *("torch uint8", "torch bool", "torch device", "torch Size", "torch.torch_version TorchVersion"),
    *("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor", "torch._utils _rebuild_parameter"),
    *("torch.storage UntypedStorage", "torch.storage TypedStorage", "torch.nn.parameter Parameter"),
    *("collections OrderedDict", "_codecs encode"),
    *("numpy dtype", "numpy.core.multiarray scalar", "numpy._core.multiarray scalar"),
}
_OTHER_CALLS = {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID"}
# A file of torch before 1.6 is five pickles and the numbers; the first one is this number (torch/serialization.py).
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PICKLES = 5
_SAVE_AGAIN = "torch.save(network.state_dict(), FILE) by torch 1.6 or later writes one that is"


@dataclass(frozen=True)
class NetworkDefinition:
    """Which network weights belong to.

    Attributes:
        target: its class by its dotted name, one that `TARGETS` takes.
        arguments: what it is made with; plain JSON values.
        imports: the arguments whose text is the dotted name of a class of `torch.nn` (`conv_op` of nnU-Net's plans).
    """

    target: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    imports: tuple[str, ...] = ()


@dataclass(frozen=True)
class Converted:
    """A network that was converted to ONNX.

    Attributes:
        path: the ONNX network in the cache. Its input is `input`, its output `output` (`output_0` ... where there are several); the
            batch is free, the other sizes are those asked for.
        sha256: of that file.
        notes: what a person should know: (code, sentence): `not-isolated`, `fixed-batch`.
        facts: what the conversion found: `kind`, `largest_difference` (a part of the output's range), `exporter`, `torch`, `batch`
            (None where it is free), `parameters`, and `checkpoint`, the plain values beside the weights (of nnU-Net
            `trainer_name`, `inference_allowed_mirroring_axes`, and of `init_args` the configuration and the fold).
    """

    path: Path
    sha256: str
    notes: tuple[tuple[str, str], ...]
    facts: Mapping[str, Any]


def to_onnx(
    file: Path,
    *,
    cache: Path,
    trust: frozenset[str],
    input_shape: tuple[int, ...],
    network: NetworkDefinition | None = None,
    state_key: str | None = None,
    select_output: int | None = None,
    python: str | None = None,
) -> Converted:
    """Convert a file of torch to ONNX, once: the next call with the same file finds it in the cache, and needs no torch.

    Args:
        file: TorchScript, a torch.export archive, a file of weights by torch.save, or safetensors.
        cache: a private folder; made where it is not there.
        trust: the SHA-256 of files whose code may run.
        input_shape: (N, C, ...), N is any number: the batch stays free.
        network: the network that weights are loaded into, strictly; needed for weights, refused for programs.
        state_key: where in a checkpoint the weights are. None: the whole of it, or the first of the usual keys that it has
            (`network_weights`, `state_dict`, `model_state_dict`, `model`).
        select_output: which of several outputs to keep. None: all.
        python: an interpreter that has torch; None: that of `mdcli.inference.isolation.use_python`.

    Raises:
        ConfigError: `program-not-trusted`, naming the file's SHA-256; `refused-pickle` where a pickle names more than weights
            need; `bad-network`; `unsupported-network` where the definition is missing or not on the list;
            `network-does-not-fit`; `conversion-failed`; `conversion-differs` where the ONNX network is off torch's by over
            `LARGEST_DIFFERENCE` of the output's range.
        MissingError: `no-network`.
        UnavailableError: `no-engine` where there is no torch.
        OutOfTimeError: `conversion-timeout`.
    """
    request = _request(input_shape, network, state_key, select_output)
    with _Checked(file, cache, trust, network) as checked:
        entry = cache / _key(checked.sha256, request)
        if (found := _cached(entry)) is not None:
            return found
        answer = _convert(checked, request, python)
        checked.copy.unlink()
        document = {
            "sha256": _sha256(checked.folder / _ONNX_FILE),
            "source_sha256": checked.sha256,
            "request": request,
            "notes": answer.notes,
            "facts": answer.facts,
        }
        (checked.folder / _FACTS_FILE).write_text(json.dumps(document, indent=1), encoding="utf-8")
        _keep(checked.folder, entry)
    found = _cached(entry)
    if found is None:
        raise ConfigError("conversion-failed", f"{file.name} was converted, and the result is gone from the cache")
    return found


@dataclass(frozen=True)
class Origin:
    """What an ONNX network of the cache was converted from: the arguments of `to_onnx`, and the file's SHA-256."""

    sha256: str
    network: NetworkDefinition | None
    state_key: str | None
    select_output: int | None
    facts: Mapping[str, Any]


def origin_of(network: Path) -> Origin | None:
    """Return what an ONNX network was converted from; None where it was not converted here."""
    try:
        document = json.loads(network.with_name(_FACTS_FILE).read_text(encoding="utf-8"))
        request, said = document["request"], document["request"]["network"]
        definition = NetworkDefinition(said["target"], said["arguments"], tuple(said["imports"])) if said else None
        return Origin(
            document["source_sha256"], definition, request["state_key"], request["select_output"], document["facts"]
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


class TorchSession:
    """A file of torch, run by torch itself in the child: the reference that its ONNX network is held to.

    It keeps to `mdcli.inference.engines.Session`.

    Args:
        file: as in `to_onnx`, whose other arguments and errors hold here too.
        converted: the ONNX session of the same file: its inputs and outputs are this one's.
        cache: a private folder for the child's files, which are removed.
        trust: as in `to_onnx`.
        network: as in `to_onnx`.
        state_key: as in `to_onnx`.
        select_output: as in `to_onnx`.
        python: as in `to_onnx`.
    """

    def __init__(
        self,
        file: Path,
        converted: Session,
        *,
        cache: Path,
        trust: frozenset[str],
        network: NetworkDefinition | None = None,
        state_key: str | None = None,
        select_output: int | None = None,
        python: str | None = None,
    ) -> None:
        self.inputs, self.outputs = converted.inputs, converted.outputs
        request = _request((1,), network, state_key, select_output)
        self._lock = threading.Lock()
        self._checked = _Checked(file, cache, trust, network)
        whole = {**request, "kind": self._checked.kind, "file": self._checked.copy.name}
        try:
            folder, name = self._checked.folder, self._checked.name
            self._child = LiveChild(folder, whole, name=name, python=python, timeout_s=TIMEOUT_S)
        except BaseException:
            self._checked.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._child.close()
        self._checked.__exit__()

    def stop(self) -> None:
        """End the child, and with it what is going on. See `Session.stop`."""
        self._child.close()

    def run(self, feeds: Mapping[str, NDArray[Any]], out: Mapping[str, NDArray[Any] | None]) -> dict[str, NDArray[Any]]:
        """Run once. See `Session.run`."""
        import numpy as np

        folder, names = self._checked.folder, [tensor.name for tensor in self.outputs]
        found: dict[str, NDArray[Any]] = {}
        with self._lock:
            np.save(folder / "batch.npy", feeds[self.inputs[0].name], allow_pickle=False)
            count = self._child.ask("run").outputs
            if count != len(names):
                raise misfit(f"{self._checked.name} gives {count} arrays, its ONNX network {len(names)}")
            for name, given in out.items():
                values = np.load(folder / f"out_{names.index(name)}.npy", allow_pickle=False)
                if given is not None and given.shape != values.shape:
                    raise misfit(f"{self._checked.name} makes {values.shape}, where the card makes it {given.shape}")
                found[name] = values
                if given is not None:
                    given[...] = values
                    found[name] = given
        return found

    def facts(self) -> dict[str, Any]:
        """Return what runs. See `Session.facts`."""
        version = str(self._child.answer.facts.get("torch"))
        return {"engine": "torch", "version": version, "precision": "float32", "provider": "torch", "device": "cpu"}


def kind_of(file: Path) -> Kind:
    """Say what a file of torch is, by its content, and check what can be checked without torch.

    Raises:
        ConfigError: `bad-network` where it is none, or its parts do not fit into it; `refused-pickle` where a pickle of weights
            names what weights do not need.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        first = opened.read(9)
        opened.seek(0)
        if first.startswith(b"PK"):
            return _kind_of_zip(opened, size, file.name)
        if first[8:9] == b"{":
            _check_safetensors(opened, size, file.name)
            return "safetensors"
        if first[:1] == b"\x80":
            _check_legacy(opened, file.name)
            return "legacy-weights"
    _bad(file.name, "is no file of torch that is read here")


def _bad(name: str, what: str) -> NoReturn:
    raise ConfigError("bad-network", f"{name} {what}", hint=_SAVE_AGAIN)


def _kind_of_zip(opened: IO[bytes], size: int, name: str) -> Kind:
    try:
        with zipfile.ZipFile(opened) as archive:
            entries = archive.infolist()
            _check_entries(entries, size, name)
            # Everything lies in one folder, named as the file was when it was saved.
            inner = [entry.filename.partition("/")[2] for entry in entries]
            if {"archive_format", "serialized_exported_program.json"} & {*inner, *archive.namelist()}:
                return "export"
            if any(part == "constants.pkl" or part.startswith("code/") for part in inner):
                return "torchscript"
            pickles = [entry for entry in entries if entry.filename.endswith(".pkl")]
            if [entry.filename.partition("/")[2] for entry in pickles] != ["data.pkl"]:
                _bad(name, "is a zip file, and not one that torch.save writes")
            if pickles[0].file_size > _MAX_PICKLE_BYTES:
                _bad(name, f"holds a pickle of over {_MAX_PICKLE_BYTES >> 20} MiB")
            with archive.open(pickles[0]) as pickled:
                _check_pickle(pickled, name)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise ConfigError("bad-network", f"{name} is a damaged zip file: {error}", hint=_SAVE_AGAIN) from error
    return "weights"


def _check_entries(entries: Sequence[zipfile.ZipInfo], size: int, name: str) -> None:
    names = [entry.filename for entry in entries]
    if not entries or len(entries) > _MAX_ENTRIES:
        _bad(name, f"is a zip file of {len(entries)} entries")
    if len(set(names)) < len(names):
        _bad(name, "is a zip file with two entries of one name")
    for each in names:
        if each.startswith("/") or "\\" in each or ".." in each.split("/"):
            _bad(name, f"is a zip file with an entry outside of it: {each[:80]!r}")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > _MAX_EXPANSION * size + _ROOM_BYTES:
        _bad(name, f"has {size} bytes and would unpack to {unpacked}")


def _check_legacy(opened: IO[bytes], name: str) -> None:
    for number in range(_LEGACY_PICKLES):
        first = _check_pickle(opened, name)
        if number == 0 and first != _LEGACY_MAGIC:
            _bad(name, "is a pickle, and not one that torch.save writes")


def _check_pickle(opened: IO[bytes], name: str) -> Any:
    """Walk over a pickle without running it, refuse what names more than weights need; return its first number.

    Raises:
        ConfigError: `refused-pickle`; `bad-network`.
    """
    first = None
    try:
        for opcode, argument, _ in pickletools.genops(opened):
            if opcode.name in _OTHER_CALLS or (opcode.name == "GLOBAL" and argument not in _HARMLESS):
                named = str(argument).replace(" ", ".") if opcode.name == "GLOBAL" else opcode.name
                raise ConfigError(
                    "refused-pickle",
                    f"{name} is a pickle that names {named[:80]!r}, which weights do not need",
                    hint=_SAVE_AGAIN,
                )
            first = argument if first is None and opcode.name == "LONG1" else first
    except (ValueError, IndexError, EOFError, UnicodeError, struct.error, OverflowError) as error:
        raise ConfigError("bad-network", f"{name} holds a damaged pickle: {error}", hint=_SAVE_AGAIN) from error
    return first


def _check_safetensors(opened: IO[bytes], size: int, name: str) -> None:
    """Check that each tensor lies inside the file and is as long as its shape says.

    Source: the format's description, huggingface/safetensors: 8 bytes of length, little endian, a JSON header, the numbers.
    """
    length = int.from_bytes(opened.read(8), "little")
    if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
        _bad(name, f"says that its header has {length} bytes; the file has {size}")
    try:
        header = json.loads(opened.read(length))
        tensors = {key: value for key, value in header.items() if key != "__metadata__"}
        reach = 0
        for said in sorted(tensors.values(), key=lambda said: said["data_offsets"][0]):
            start, end = said["data_offsets"]
            whole = all(type(number) is int and number >= 0 for number in (start, end, *said["shape"]))
            if not whole or end - start != math.prod(said["shape"]) * _SAFETENSORS_BYTES[said["dtype"]]:
                _bad(name, f"has a tensor of {end - start} bytes that says it is {said['dtype']} {said['shape']}")
            if start < reach or end > size - 8 - length:
                _bad(name, f"has a tensor at bytes {start} to {end} of {size - 8 - length}, over another or outside")
            reach = end
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError("bad-network", f"{name} has a header that can't be read: {error!r}") from error


def _request(
    shape: Sequence[int], network: NetworkDefinition | None, state_key: str | None, select_output: int | None
) -> dict[str, Any]:
    return {
        "shape": [int(size) for size in shape],
        "network": _checked_definition(network) if network else None,
        "state_key": state_key,
        "select_output": select_output,
        "largest_difference": LARGEST_DIFFERENCE,
    }


def _checked_definition(network: NetworkDefinition) -> dict[str, Any]:
    if not TARGETS.fullmatch(network.target):
        raise ConfigError(
            "unsupported-network",
            f"weights can't be loaded into {network.target[:80]!r}",
            hint="monai.networks.nets.* and dynamic_network_architectures.architectures.* can; others: md export-model",
        )
    # MONAI would look for weights elsewhere; those of the file replace them all.
    arguments = {
        name: False if name.startswith("pretrained") and value is True else value
        for name, value in network.arguments.items()
    }
    paths = [name for name, value in arguments.items() if name.startswith("pretrained") and value]
    if paths:
        raise ConfigError("unsupported-network", f"{network.target} asks for weights from elsewhere: {paths[0]}")
    try:
        said = json.dumps(arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            "unsupported-network", f"{network.target} has arguments that are not plain: {error}"
        ) from error
    if len(said) > _MAX_ARGUMENTS:
        raise ConfigError("unsupported-network", f"{network.target} has arguments of {len(said)} characters")
    return {"target": network.target, "arguments": json.loads(said), "imports": list(network.imports)}


class _Checked:
    """A private copy of a file, in a folder of its own: what was hashed and checked is what the child reads."""

    def __init__(self, file: Path, cache: Path, trust: frozenset[str], network: NetworkDefinition | None) -> None:
        if not file.is_file():
            raise MissingError("no-network", f"{file.name} is not there")
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        _remove_old(cache)
        self._temporary = tempfile.TemporaryDirectory(prefix=_CONVERTING, dir=cache, ignore_cleanup_errors=True)
        self.folder = Path(self._temporary.name)
        self.copy = self.folder / f"source{file.suffix}"
        self.name = file.name
        try:
            shutil.copyfile(file, self.copy)
            self.sha256 = _sha256(self.copy)
            self.kind = self._allowed(trust, network)
        except BaseException:
            self._temporary.cleanup()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._temporary.cleanup()

    def _allowed(self, trust: frozenset[str], network: NetworkDefinition | None) -> Kind:
        try:
            kind = kind_of(self.copy)
        except ConfigError as error:
            message = error.message.replace(self.copy.name, self.name, 1)
            raise ConfigError(error.code, message, hint=error.hint) from error
        if kind not in PROGRAMS and network is None:
            raise ConfigError(
                "unsupported-network",
                f"{self.name} holds weights alone, and nothing says which network they belong to",
                hint="the card's architecture names it: target and arguments",
            )
        if kind in PROGRAMS and network is not None:
            raise ConfigError("unsupported-network", f"{self.name} is a whole network, and a definition is given too")
        if kind in PROGRAMS and self.sha256 not in trust:
            what = "TorchScript" if kind == "torchscript" else "a torch.export archive"
            raise ConfigError(
                "program-not-trusted",
                f"{self.name} is {what}, a program that could do anything here; its SHA-256 is {self.sha256}",
                hint=f"where you trust who made it: --trust-model {self.sha256}",
                sha256=self.sha256,
            )
        return kind


def _convert(checked: _Checked, request: Mapping[str, Any], python: str | None) -> Answer:
    whole = {**request, "kind": checked.kind, "file": checked.copy.name, "onnx": _ONNX_FILE}
    answer = run_child(checked.folder, whole, name=checked.name, python=python, timeout_s=TIMEOUT_S)
    weights = external_files(checked.folder / _ONNX_FILE)
    missing = [each for each in weights if "/" in each or not (checked.folder / each).is_file()]
    if missing:
        raise ConfigError("conversion-failed", f"the ONNX network of {checked.name} names {missing[0][:80]!r}")
    return answer


def _key(sha256: str, request: Mapping[str, Any]) -> str:
    """Return the name of a conversion in the cache.

    torch's version is no part of it: each conversion has passed the comparison with torch, and a cache that is full must do
    without torch.
    """
    free = {**request, "shape": request["shape"][1:], "file": sha256, "child": _sha256(CHILD_FILE)}
    return hashlib.sha256(json.dumps(free, sort_keys=True).encode()).hexdigest()


def _cached(entry: Path) -> Converted | None:
    network = entry / _ONNX_FILE
    try:
        document = json.loads((entry / _FACTS_FILE).read_text(encoding="utf-8"))
        if document["sha256"] != _sha256(network):
            return None
        notes = tuple((str(code), str(text)) for code, text in document["notes"])
        return Converted(network, document["sha256"], notes, document["facts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _keep(folder: Path, entry: Path) -> None:
    """Put what was converted into the cache, whole."""
    for left in folder.iterdir():
        if left.name not in (_FACTS_FILE, _ONNX_FILE) and left.name not in external_files(folder / _ONNX_FILE):
            left.unlink() if left.is_file() else shutil.rmtree(left)
    whole = entry.with_name(f"{folder.name}-whole")
    folder.rename(whole)
    if _cached(entry) is None and entry.exists():
        shutil.rmtree(entry)
    try:
        whole.rename(entry)
    except OSError:
        # Another process was faster.
        shutil.rmtree(whole)


def _remove_old(cache: Path) -> None:
    """Remove what conversions left that were killed."""
    for path in cache.glob(f"{_CONVERTING}*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _KEPT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
