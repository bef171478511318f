"""Voxels that lie behind a header of another program: where they are, how they are encoded, and how to read them within bounds."""

from __future__ import annotations

import math
import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.finding import Finding
from mdcli.dicom.opening import shown
from mdcli.errors import DataError, MissingError

MAX_VOXELS = 1 << 33
MAX_HEADER = 1 << 20
_PIECE = 1 << 20
# What one byte of deflated data can become at most, and then some. Source: zlib's technical details, 1032 to 1.
_INFLATES = 1040


@dataclass(frozen=True)
class Stored:
    """What a header says of a volume.

    Attributes:
        path: the file that holds the voxels.
        encoding: as bytes, or deflated (gzip or zlib).
        skip: bytes before the voxels, those of the inflated stream where they are deflated; -1 where they end with the file.
        start: bytes of the file before the deflated stream.
        dtype: with its byte order.
        shape: (k, j, i).
        affine: 4x4, (i, j, k) to mm, LPS+.
        unit: what the values mean, None where the header is silent.
        rescale: slope and intercept; None where the voxels are the values.
        findings: what the reader is to be told.
    """

    path: Path
    encoding: Literal["raw", "deflated"]
    skip: int
    start: int
    dtype: np.dtype[Any]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    unit: str | None = None
    rescale: tuple[float, float] | None = None
    findings: tuple[Finding, ...] = ()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file; what is none (a FIFO, a device) is not waited for.

    Raises:
        MissingError: `no-source`.
        DataError: `bad-source` for what is no regular file or can't be read.
    """
    name = shown(path.name)
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError("no-source", f"the file {name} is not there") from None
    except OSError as error:
        raise DataError("bad-source", f"the file {name} can't be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise DataError("bad-source", f"{name} is no regular file")
    return os.fdopen(handle, "rb")


def beside(header: Path, name: str) -> Path:
    """Return the file that a header names for its voxels, if it lies in the header's own folder or below.

    Raises:
        DataError: `data-file-outside`.
    """
    folder = header.parent.resolve()
    path = folder / name
    # What a backslash or a colon means depends on the system: none of ours.
    inside = name and not any(c in name for c in "\\:\0") and folder in path.resolve().parents
    if not inside or Path(name).is_absolute() or ".." in Path(name).parts:
        message = f"{shown(header.name)} names its voxels' file {shown(name)!r}, which is not in its own folder"
        raise DataError("data-file-outside", message, hint="put the file beside its header, under its plain name")
    return path


def inflated(file: BinaryIO, size: int = _PIECE) -> Iterator[bytes]:
    """Give what a gzip (of any number of members) or zlib stream holds, in pieces of at most `size` bytes.

    Raises:
        zlib.error: where the stream is damaged, checksums included.
    """
    machine = zlib.decompressobj(47)
    data = file.read(_PIECE)
    while data:
        piece = machine.decompress(data, size)
        if piece:
            yield piece
        if machine.eof:
            data, machine = machine.unused_data or file.read(_PIECE), zlib.decompressobj(47)
            if not data.startswith(b"\x1f\x8b"):
                # No further member of a gzip file: what follows is not part of it.
                return
        else:
            data = machine.unconsumed_tail or file.read(_PIECE)


def inflated_start(file: BinaryIO, size: int) -> bytes:
    """Return the first bytes of a deflated stream; fewer where it is shorter or damaged."""
    found = b""
    try:
        for piece in inflated(file, size):
            found += piece
            if len(found) >= size:
                break
    except zlib.error:
        pass
    return found[:size]


def check_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return (k, j, i), if the sizes make a volume.

    Raises:
        DataError: `not-a-volume`, `volume-too-large` for more than 2^33 voxels.
    """
    if len(shape) != 3 or min(shape) < 1:
        raise DataError("not-a-volume", f"{shown(name)} has sizes {shape[::-1]}, not three of at least 1")
    if math.prod(shape) > MAX_VOXELS:
        raise DataError("volume-too-large", f"{shown(name)} says that it has {shape[::-1]} voxels, more than 2^33")
    k, j, i = shape
    return k, j, i


def read_voxels(stored: Stored) -> NDArray[Any]:
    """Return the voxels of a volume, (k, j, i), rescaled where the header says so.

    Plain ones are memory-mapped, in their own byte order. Integers of 64 bits come back as int32, or float64 where that holds all
    of them. Rescaled ones come back as float32 where the stored type has at most 16 bits, else float64.

    Raises:
        MissingError: `no-source`.
        DataError: `truncated` where there are fewer voxels than the header says, or a damaged stream: known before memory is taken
            wherever the file's size tells; `values-too-large` for 64-bit integers that float64 can't hold.
    """
    with open_regular(stored.path) as file:
        array = (_mapped if stored.encoding == "raw" else _inflate)(stored, file)
    if stored.rescale is not None:
        return _rescaled(array, *stored.rescale)
    return _narrowed(stored, array) if array.dtype.kind in "iu" and array.dtype.itemsize == 8 else array


def _cut(stored: Stored) -> DataError:
    voxels = math.prod(stored.shape)
    return DataError("truncated", f"{shown(stored.path.name)} ends, or is damaged, before its {voxels} voxels do")


def _mapped(stored: Stored, file: BinaryIO) -> NDArray[Any]:
    size, needed = os.fstat(file.fileno()).st_size, math.prod(stored.shape) * stored.dtype.itemsize
    skip = size - needed if stored.skip < 0 else stored.skip
    if skip < 0 or size < skip + needed:
        raise _cut(stored)
    return np.memmap(file, stored.dtype, "r", skip, stored.shape)


def _inflate(stored: Stored, file: BinaryIO) -> NDArray[Any]:
    needed = math.prod(stored.shape) * stored.dtype.itemsize
    if os.fstat(file.fileno()).st_size * _INFLATES < needed:
        raise _cut(stored)
    array = np.empty(stored.shape, stored.dtype)
    target, at, skip = array.reshape(-1).view(np.uint8), 0, stored.skip
    file.seek(stored.start)
    try:
        for piece in inflated(file):
            # A piece after the last voxel is only asked for so that the checksum is looked at.
            if at == needed:
                break
            left = piece[skip:]
            skip -= len(piece) - len(left)
            piece = left
            count = min(len(piece), needed - at)
            target[at : at + count] = np.frombuffer(piece, np.uint8, count)
            at += count
    except zlib.error:
        raise _cut(stored) from None
    if at < needed:
        raise _cut(stored)
    return array


def _rescaled(array: NDArray[Any], slope: float, intercept: float) -> NDArray[Any]:
    out = np.empty(array.shape, np.float32 if array.dtype.itemsize <= 2 else np.float64)
    for plane, into in zip(array, out, strict=True):
        into[...] = plane.astype(np.float64) * slope + intercept
    return out


def _narrowed(stored: Stored, array: NDArray[Any]) -> NDArray[Any]:
    low, high = int(array.min()), int(array.max())
    limits = np.iinfo(np.int32)
    if limits.min <= low and high <= limits.max:
        return array.astype(np.int32)
    if max(abs(low), abs(high)) > 1 << 53:
        message = f"{shown(stored.path.name)} has values from {low} to {high}, which float64 can't hold"
        raise DataError("values-too-large", message, low=low, high=high)
    return array.astype(np.float64)
