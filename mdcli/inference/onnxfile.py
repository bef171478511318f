"""Find the files that an ONNX network keeps its weights in, before any engine opens it.

A small walk over the protobuf wire format, bounded by the file's own length; nothing is decoded but the way to
`TensorProto.external_data`. Source: onnx.proto (field numbers), protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from mdcli.errors import ConfigError

_MAX_DEPTH = 64
# Message to (field number to message): the fields on the way to a tensor.
_FIELDS = {
    "Model": {7: "Graph", 20: "Training", 25: "Function"},
    "Training": {1: "Graph", 2: "Graph"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node", 11: "Attribute"},
    "Node": {4: "Operator", 5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
}
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
# The operator by which a network carries a compiled engine: by its makers' words an executable artifact.
_ENGINE = b"EPContext"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def external_files(path: Path) -> set[str]:
    """Return the locations of external data, as the network says them (they may point anywhere: check before use).

    Raises:
        ConfigError: `bad-network` where the file is no protobuf; `program-in-network` where it carries a compiled engine.
    """
    if path.stat().st_size == 0:
        raise ConfigError("bad-network", f"{path.name} is empty")
    found: set[str] = set()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            _walk(data, 0, len(data), "Model", found, 0)
        except (IndexError, ValueError) as error:
            raise ConfigError("bad-network", f"{path.name} is not an ONNX network: {error}") from error
    return found


def _walk(data: mmap.mmap, start: int, end: int, message: str, found: set[str], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise ValueError(f"nested more than {_MAX_DEPTH} deep")
    for number, first, last in _fields(data, start, end):
        child = _FIELDS[message].get(number)
        if child == "Entry":
            entry = {key: data[a:b] for key, a, b in _fields(data, first, last)}
            if entry.get(_ENTRY_KEY) == b"location":
                found.add(entry.get(_ENTRY_VALUE, b"").decode("utf-8"))
        elif child == "Operator":
            if data[first:last] == _ENGINE:
                text = "it holds an engine that was built elsewhere (EPContext), which is a program"
                raise ConfigError("program-in-network", text, hint="take the network that the engine was built from")
        elif child:
            _walk(data, first, last, child, found, depth + 1)


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Give (field number, first byte, byte after the last) of each length-delimited field of a message."""
    at = start
    while at < end:
        tag, at = _varint(data, at, end)
        kind = tag & 7
        if kind == _BYTES:
            length, at = _varint(data, at, end)
            if at + length > end:
                raise ValueError(f"a field at byte {at} ends after its message")
            yield tag >> 3, at, at + length
            at += length
        elif kind == _VARINT:
            _, at = _varint(data, at, end)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {at}")
    if at != end:
        raise ValueError(f"a field at byte {at} ends after its message")


def _varint(data: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"a number at byte {at} does not end")
