"""Decode one JPEG image of the lossy or the lossless process to its samples as they are coded.

Up to 8 bits a sample go to libjpeg-turbo (Pillow), more to the reader in SimpleITK, which is built for 12 and 16 bits too. Neither
is left to guess a colour transform. Call it in a worker process only (`mdcli.dicom.decoding`): a codec can abort the process, and
standard error is silenced for the moment of the call. Source: ISO/IEC 10918-1 (JPEG), DICOM PS3.5 8.2.1 and A.4.1 to A.4.2.
"""

from __future__ import annotations

import os
import re
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_SCANS = 100
"""A progressive image may have this many scans: each costs a few bytes, and time for every pixel."""

_PROCESSES = {0xC0: "baseline", 0xC1: "extended sequential", 0xC2: "progressive", 0xC3: "lossless"}
_SOF, _NO_SOF = range(0xC0, 0xD0), (0xC4, 0xC8, 0xCC)
_SEQUENTIAL = (0xC0, 0xC1)
_LOSSLESS, _SOI, _EOI, _SOS, _DRI, _APP0, _APP14 = 0xC3, 0xD8, 0xD9, 0xDA, 0xDD, 0xE0, 0xEE
_END = b"\xff\xd9"
# Within entropy-coded data FF is followed by 00 or a restart marker, or repeated; anything else ends it.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
# Bits that a decoder which lacks some reads, from the first on unlike the zeros that it would make up.
_SPARE = b"\xa5\x5a\xcc\x33" * 16


@dataclass(frozen=True)
class JpegHeader:
    """What the markers of a JPEG image say.

    Attributes:
        process: the SOF marker: 0xC0 baseline, 0xC1 extended sequential, 0xC2 progressive, 0xC3 lossless.
        precision: bits a sample.
        rows: of the image.
        columns: of the image.
        samples: a pixel.
        point_transform: low bits that the lossless process left out.
        colour: `RGB` or `YBR` where a JFIF or Adobe marker or the components' names say so, else None.
        end: where the end marker is, or the length of the stream where there is none.
    """

    process: int
    precision: int
    rows: int
    columns: int
    samples: int
    point_transform: int
    colour: str | None
    end: int

    @property
    def lossy(self) -> str | None:
        """Say how the process lost information, or None."""
        if self.process != _LOSSLESS:
            return f"JPEG {_PROCESSES[self.process]}, {self.precision} bit"
        if self.point_transform:
            return f"JPEG lossless, {self.point_transform} low bit(s) left out"
        return None


def _markers(stream: bytes) -> Iterator[tuple[int, int, bytes, int]]:
    """Yield each marker's second byte, where it is, its segment, and how many restart markers are in a scan behind it.

    The last is EOI, if there is one. Source: ISO/IEC 10918-1 B.1.
    """
    at = 0
    while True:
        while stream[at : at + 2] == b"\xff\xff":
            at += 1
        if len(stream) < at + 2:
            return
        if stream[at] != 0xFF:
            raise ValueError(f"byte {at} is no marker")
        marker = stream[at + 1]
        if marker in (_SOI, _EOI):
            yield marker, at, b"", 0
            at += 2
            if marker == _EOI:
                return
            continue
        if len(stream) < at + 4:
            return
        (length,) = struct.unpack_from(">H", stream, at + 2)
        segment = stream[at + 4 : at + 2 + length]
        if length < 2 or len(segment) < length - 2:
            raise ValueError(f"the segment at byte {at} has {length} bytes, the stream ends before it")
        end, restarts = at + 2 + length, 0
        if marker == _SOS:
            found = _NEXT_MARKER.search(stream, end)
            data, end = end, len(stream) if found is None else found.start()
            restarts = len(_RESTART.findall(stream, data, end))
        yield marker, at, segment, restarts
        at = end


def read_header(stream: bytes) -> JpegHeader:
    """Return what the markers say, without decoding.

    Args:
        stream: one JPEG image; bytes after its end marker are ignored.

    Raises:
        ValueError, IndexError, KeyError, struct.error: the markers make no image of a process that can be decoded.

    Source: ISO/IEC 10918-1 Annex B; JFIF 1.02; Adobe Technical Note 5116 (APP14).
    """
    if not stream.startswith(b"\xff\xd8"):
        raise ValueError("no JPEG image begins in it")
    frame, scans, point_transform, end, interval = None, 0, 0, len(stream), 0
    jfif, adobe = False, None
    for marker, at, segment, restarts in _markers(stream):
        if marker == _EOI:
            end = at
        elif marker in _SOF and marker not in _NO_SOF:
            if frame is not None:
                raise ValueError("it has two frame headers")
            if marker not in _PROCESSES:
                raise ValueError(f"its process (SOF{marker - 0xC0}) is none of {', '.join(_PROCESSES.values())}")
            frame = (marker, segment)
        elif marker == _DRI:
            (interval,) = struct.unpack_from(">H", segment)
        elif marker == _SOS:
            scans += 1
            if frame is not None and interval and restarts < -(-_units(*frame, segment) // interval) - 1:
                raise ValueError(f"a scan of it ends after {restarts} restart markers, before its last pixel")
            point_transform = max(point_transform, segment[-1] & 15)
        elif marker == _APP0 and segment.startswith(b"JFIF\x00"):
            jfif = True
        elif marker == _APP14 and segment.startswith(b"Adobe") and len(segment) >= 12:
            adobe = segment[11]
    if frame is None or not scans:
        raise ValueError("it has no frame header or no scan")
    if scans > MOST_SCANS:
        raise ValueError(f"it has {scans} scans, more than {MOST_SCANS}")
    process, segment = frame
    precision, rows, columns, samples = struct.unpack_from(">BHHB", segment)
    names = segment[6 : 6 + 3 * samples : 3]
    colour = None
    if samples == 3:
        if jfif or adobe == 1:
            colour = "YBR"
        elif adobe == 0 or names == b"RGB":
            colour = "RGB"
    return JpegHeader(
        process, precision, rows, columns, samples, point_transform if process == _LOSSLESS else 0, colour, end
    )


def _units(process: int, frame: bytes, scan: bytes) -> int:
    """Return how many minimum coded units a scan has. Source: ISO/IEC 10918-1 A.1.1, A.2 and H.1.1."""
    rows, columns, samples = frame[1] << 8 | frame[2], frame[3] << 8 | frame[4], frame[5]
    sampling = {frame[at]: divmod(frame[at + 1], 16) for at in range(6, 6 + 3 * samples, 3)}
    widest, highest = max(1, *(h for h, _ in sampling.values())), max(1, *(v for _, v in sampling.values()))
    edge = 1 if process == _LOSSLESS else 8
    if scan[0] == 1:
        across, down = sampling[scan[1]]
        return -(-columns * across // (widest * edge)) * -(-rows * down // (highest * edge))
    return -(-columns // (widest * edge)) * -(-rows // (highest * edge))


def decode_jpeg(stream: bytes, header: JpegHeader) -> NDArray[Any]:
    """Return the samples as they are coded: no colour transform, no rescale; subsampled components are brought to full size.

    A stream that ends before its last pixel is refused, though it has an end marker: decoders make up the rest in silence. It is
    known by decoding twice, once with bits behind its last ones that only a decoder which lacks some reads.

    Args:
        stream: one JPEG image of 1 or 3 samples.
        header: what `read_header` found in it, its size held against the DICOM header.

    Returns:
        (rows, columns) or (rows, columns, 3), uint8 up to 8 bits, else uint16.

    Raises:
        ValueError, RuntimeError, OSError: it can't be decoded.
    """
    decode = _by_pillow if header.precision <= 8 else _by_simpleitk
    # Fill bytes may stand before a marker.
    data = _with_whole_spectrum(stream, header)[: header.end].rstrip(b"\xff")
    image = decode(data + _END, header)
    if not np.array_equal(image, decode(data + _SPARE + _END, header)):
        raise ValueError("its data ends before its last pixel")
    return image


def _with_whole_spectrum(stream: bytes, header: JpegHeader) -> bytes:
    """Return the stream with the one spectral selection that a sequential process has (ISO/IEC 10918-1 table B.3), and no other.

    Some encoders write zeros. Decoders warn and take no notice, but SimpleITK's gives up after two warnings.
    """
    if header.process not in _SEQUENTIAL:
        return stream
    mended = bytearray(stream)
    for marker, at, segment, _ in _markers(stream):
        if marker == _SOS:
            mended[at + 1 + len(segment) : at + 4 + len(segment)] = b"\x00\x3f\x00"
    return bytes(mended)


def _by_pillow(stream: bytes, header: JpegHeader) -> NDArray[Any]:
    from PIL import Image

    mode = "L" if header.samples == 1 else "RGB"
    # The last two: samples out, samples in. Where both are the same, libjpeg transforms nothing.
    image = Image.frombytes(mode, (header.columns, header.rows), stream, "jpeg", mode, mode)
    return np.asarray(image)


def _by_simpleitk(stream: bytes, header: JpegHeader) -> NDArray[Any]:
    import SimpleITK as sitk

    reader: Any = sitk.ImageFileReader()  # type: ignore[no-untyped-call]
    reader.SetImageIO("GDCMImageIO")
    # It writes to standard error on its way to the right precision.
    with _as_file(_part_10(stream, header)) as path, _silent():
        reader.SetFileName(path)
        found = sitk.GetArrayFromImage(reader.Execute())
    shape = (header.rows, header.columns) if header.samples == 1 else (header.rows, header.columns, header.samples)
    if found.dtype != np.uint16 or found.size != np.prod(shape):
        raise ValueError(f"it was decoded to {found.shape} of {found.dtype}")
    return np.asarray(found).reshape(shape)


def _part_10(stream: bytes, header: JpegHeader) -> bytes:
    """Return the smallest DICOM file around the stream: no patient, no rescale, no colour but RGB, which is left as it is.

    Source: DICOM PS3.10 7.1, PS3.5 7.1.2 and A.4.
    """
    syntax = "1.2.840.10008.1.2.4.70" if header.process == _LOSSLESS else "1.2.840.10008.1.2.4.51"
    secondary_capture = "1.2.840.10008.5.1.4.1.1.7"
    meta = _element(0x00020002, "UI", secondary_capture) + _element(0x00020010, "UI", syntax)
    numbers = {
        0x00280006: 0,
        0x00280010: header.rows,
        0x00280011: header.columns,
        0x00280100: 16,
        0x00280101: header.precision,
        0x00280102: header.precision - 1,
        0x00280103: 0,
    }
    if header.samples == 1:
        del numbers[0x00280006]
    return b"".join(
        [
            bytes(128) + b"DICM" + _element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta,
            _element(0x00080016, "UI", secondary_capture),
            _element(0x00280002, "US", struct.pack("<H", header.samples)),
            _element(0x00280004, "CS", "MONOCHROME2" if header.samples == 1 else "RGB"),
            *(_element(tag, "US", struct.pack("<H", number)) for tag, number in numbers.items()),
            struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF),
            struct.pack("<HHIHHI", 0xFFFE, 0xE000, 0, 0xFFFE, 0xE000, len(stream) + len(stream) % 2),
            stream + bytes(len(stream) % 2),
            struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
        ]
    )


def _element(tag: int, vr: str, value: str | bytes) -> bytes:
    content = value if isinstance(value, bytes) else value.encode()
    padded = content + (b"\x00" if vr == "UI" else b" ") * (len(content) % 2)
    return struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr.encode(), len(padded)) + padded


@contextmanager
def _as_file(data: bytes) -> Iterator[str]:
    """Give data a path: in memory where the system can, so that a decoder that dies leaves no patient's pixels on a disk."""
    if sys.platform == "linux":
        number = os.memfd_create("frame")
        with os.fdopen(number, "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{number}"
    else:
        from pathlib import Path
        from tempfile import TemporaryDirectory

        with TemporaryDirectory() as folder:
            path = Path(folder, "frame.dcm")
            path.write_bytes(data)
            yield str(path)


@contextmanager
def _silent() -> Iterator[None]:
    """Let what C code writes to file descriptor 2 go nowhere, where there is one."""
    try:
        kept = os.dup(2)
    except OSError:
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
