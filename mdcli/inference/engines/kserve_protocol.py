"""What every way to a server shares: what it says of itself and of a model, what is asked, and what a reply may be.

Source: KServe's Open Inference Protocol, version 2 (REST and gRPC), and Triton's extensions of it for binary tensors and for system
shared memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import ConfigError
from mdcli.inference.engines import Tensor, misfit

BINARY, SHARED_MEMORY = "binary_tensor_data", "system_shared_memory"
# The protocol's words for numbers; they travel little-endian.
DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
DATATYPES = {dtype: word for word, dtype in DTYPES.items()}
# What a server says of itself, of a model or around the numbers of a reply.
MAX_WORDS_BYTES = 1 << 20
# An output whose size neither the caller nor the server's metadata says.
MAX_OUTPUT_BYTES = 4 << 30
MAX_TENSORS, MAX_AXES = 64, 8
# JSON: a float64 takes at most 25 characters, with its comma and white space.
JSON_BYTES_PER_NUMBER = 32
# After a stop the server may still be told what to forget: in this time, in seconds.
FAREWELL_S = 1.0


class Lost(Exception):
    """The connection broke, or the server is not ready for now: worth another try."""


class Late(Exception):
    """The server did not answer in time: another try would take as long."""


class Refused(Exception):
    """The server answered that it will not.

    Args:
        text: why, in the server's words; they may be anything.
        access: it wants to know who asks, or does not allow it.
    """

    def __init__(self, text: str, *, access: bool = False) -> None:
        super().__init__(text)
        self.access = access


@dataclass(frozen=True)
class Server:
    """What a server says of itself."""

    name: str
    version: str
    extensions: frozenset[str]


@dataclass(frozen=True)
class Model:
    """What a server says of a model."""

    versions: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in memory that the server shares: the region's name there, and bytes."""

    region: str
    offset: int
    size: int


@dataclass(frozen=True)
class Given:
    """An input: contiguous, the batch first; `place` where the server finds it, None to send it along."""

    name: str
    array: NDArray[Any]
    place: Place | None = None


@dataclass(frozen=True)
class Wanted:
    """An output: what the server's metadata says of it, and the array to fill, None to make one.

    Attributes:
        tensor: the metadata.
        array: contiguous. With a place: a view of the shared memory itself.
        place: where the server puts it, None to have it sent.
    """

    tensor: Tensor
    array: NDArray[Any] | None
    place: Place | None = None

    @property
    def limit(self) -> int:
        """The most bytes that a reply may hold of it."""
        return MAX_OUTPUT_BYTES if self.array is None else self.array.nbytes


@dataclass(frozen=True)
class Reply:
    """The outputs, and the version of the model that made them; empty where the server does not say."""

    version: str
    outputs: dict[str, NDArray[Any]]


class Transport(Protocol):
    """A way to a server. Every method may be called from several threads at once.

    Each raises `Lost`, `Late`, `Refused`, and ConfigError `bad-reply` where the answer is not the protocol's.
    """

    def server(self) -> Server:
        """Return what the server says of itself."""
        ...

    def ready(self) -> bool:
        """Return whether the model is ready."""
        ...

    def model(self) -> Model:
        """Return what the server says of the model."""
        ...

    def infer(self, given: Sequence[Given], wanted: Sequence[Wanted], *, binary: bool) -> Reply:
        """Run the model once.

        Args:
            given: the inputs.
            wanted: the outputs.
            binary: numbers travel as they lie in memory; False: as text, where the way can send text.
        """
        ...

    def register(self, region: str, key: str, size: int) -> None:
        """Make a piece of POSIX shared memory known to the server."""
        ...

    def unregister(self, region: str) -> None:
        """Take it back."""
        ...

    def stop(self) -> None:
        """End what is in flight at once, and refuse what comes after it, with `Lost` or anything else.

        `unregister` goes on, within `FAREWELL_S`: the server must not keep what we shared.
        """
        ...

    def close(self) -> None:
        """Give the connections back."""
        ...


def bad_reply(what: str) -> NoReturn:
    """Refuse an answer that is not the protocol's.

    Raises:
        ConfigError: `bad-reply`.
    """
    raise ConfigError("bad-reply", f"the server's answer {what}", hint="is it a server of the KServe v2 protocol?")


def plain(text: object, longest: int = 300) -> str:
    """Return a server's words as one line of printable text; of a long one the begin and, where a traceback says why, the end."""
    line = " ".join(str(text)[:MAX_WORDS_BYTES].split())
    line = "".join(sign if sign.isprintable() else "?" for sign in line)
    begin = longest // 3
    return line if len(line) <= longest else f"{line[:begin]}...{line[begin + 3 - longest :]}"


def server_of(said: Mapping[str, Any]) -> Server:
    """Return a server from its metadata.

    Args:
        said: `name`, `version`, `extensions`, as decoded.

    Raises:
        ConfigError: `bad-reply`.
    """
    name, version = said.get("name"), said.get("version")
    extensions = said.get("extensions") or []
    if not isinstance(name, str) or not isinstance(version, str) or not isinstance(extensions, list):
        bad_reply("does not say the server's name and version")
    return Server(plain(name, 60), plain(version, 60), frozenset(word for word in extensions if isinstance(word, str)))


def model_of(said: Mapping[str, Any]) -> Model:
    """Return a model from its metadata.

    Args:
        said: `versions`, `inputs` and `outputs` (each with `name`, `datatype`, `shape`), as decoded.

    Raises:
        ConfigError: `bad-reply`; `bad-network` where the server does not say what the model takes and makes.
    """
    versions = said.get("versions") or []
    if not isinstance(versions, list):
        bad_reply("holds no list of versions")
    inputs, outputs = (_tensors(said.get(key), key) for key in ("inputs", "outputs"))
    return Model(tuple(plain(version, 60) for version in versions[:MAX_TENSORS]), inputs, outputs)


def _tensors(said: Any, what: str) -> tuple[Tensor, ...]:
    if not said:
        raise ConfigError("bad-network", f"the server says nothing of the model's {what}")
    if not isinstance(said, list) or len(said) > MAX_TENSORS or not all(isinstance(entry, dict) for entry in said):
        bad_reply(f"holds no list of at most {MAX_TENSORS} {what}")
    return tuple(_tensor(entry) for entry in said)


def _tensor(said: Mapping[str, Any]) -> Tensor:
    name, datatype, shape = said.get("name"), said.get("datatype"), said.get("shape")
    if not isinstance(name, str) or plain(name, 200) != name or not isinstance(datatype, str):
        bad_reply("holds a tensor without a name or a datatype")
    sizes = _sizes(shape, least=-1)
    return Tensor(name, tuple(None if size < 0 else size for size in sizes), DTYPES.get(datatype, plain(datatype, 20)))


def _sizes(shape: Any, least: int) -> tuple[int, ...]:
    right = isinstance(shape, list) and len(shape) <= MAX_AXES
    if not right or not all(isinstance(size, int) and least <= size < 1 << 40 for size in shape):
        bad_reply(f"holds no shape of at most {MAX_AXES} axes: {plain(shape, 60)}")
    return tuple(shape)


def array_for(wanted: Wanted, datatype: Any, shape: Any, most: int) -> NDArray[Any]:
    """Return the array that an output of a reply goes into: the one given, or a new one.

    Args:
        wanted: what was asked.
        datatype: the reply's word for its numbers.
        shape: the reply's.
        most: bytes that the reply may still hold, so that no more is taken from the system than was sent.

    Raises:
        ConfigError: `network-does-not-fit` where it is not what the metadata or the caller says; `bad-reply`.
    """
    tensor, sizes = wanted.tensor, _sizes(shape, least=0)
    dtype = DTYPES.get(datatype) if isinstance(datatype, str) else None
    if dtype is None or dtype != tensor.dtype:
        raise misfit(f"the model's output {tensor.name} came as {plain(datatype, 20)}, the server says {tensor.dtype}")
    if wanted.array is not None:
        if wanted.array.shape != sizes:
            raise misfit(f"the model makes {sizes} as {tensor.name}, where the card makes it {wanted.array.shape}")
        return wanted.array
    if not fits(tensor.shape, sizes):
        raise misfit(f"the model's output {tensor.name} came as {sizes}, the server says {shown(tensor.shape)}")
    size = math.prod(sizes) * np.dtype(dtype).itemsize
    if size > most:
        bad_reply(f"says {sizes} for {tensor.name}, which is more than it holds or may hold")
    return np.empty(sizes, dtype)


def fits(wanted: tuple[int | None, ...], sizes: tuple[int, ...]) -> bool:
    """Say whether an array has a tensor's axes and sizes."""
    return len(wanted) == len(sizes) and all(
        want is None or want == size for want, size in zip(wanted, sizes, strict=True)
    )


def shown(shape: tuple[int | None, ...]) -> str:
    """Return a tensor's shape for a message; `?` where any size will do."""
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"
