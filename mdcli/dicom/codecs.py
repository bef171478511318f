"""Decode one compressed frame by a codec that is named, never chosen by whatever is installed.

JPEG 2000 goes to OpenJPEG (pylibjpeg-openjpeg), JPEG-LS to CharLS (pyjpegls), RLE to pydicom. Call `decode` in a worker process
only (`mdcli.dicom.decoding`): a codec can abort the process. Source: DICOM PS3.5 section 8.2 and Annex A.4.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError


@dataclass(frozen=True)
class Syntax:
    """A transfer syntax that load-volume reads.

    Attributes:
        name: what the standard calls it, shortened.
        form: `raw`, `big` (endian), `deflated`, or the codec: `rle`, `jpeg-ls`, `jpeg-2000`.
        may_be_lossy: whether the syntax allows lossy compression.
    """

    name: str
    form: str
    may_be_lossy: bool = False

    @property
    def encapsulated(self) -> bool:
        """Say whether the pixels are fragments that a codec decodes."""
        return self.form in ("rle", "jpeg-ls", "jpeg-2000")


# Source: DICOM PS3.6 table A-1.
SYNTAXES = {
    "1.2.840.10008.1.2": Syntax("Implicit VR Little Endian", "raw"),
    "1.2.840.10008.1.2.1": Syntax("Explicit VR Little Endian", "raw"),
    "1.2.840.10008.1.2.1.99": Syntax("Deflated Explicit VR Little Endian", "deflated"),
    "1.2.840.10008.1.2.2": Syntax("Explicit VR Big Endian", "big"),
    "1.2.840.10008.1.2.5": Syntax("RLE Lossless", "rle"),
    "1.2.840.10008.1.2.4.80": Syntax("JPEG-LS Lossless", "jpeg-ls"),
    "1.2.840.10008.1.2.4.81": Syntax("JPEG-LS Near-Lossless", "jpeg-ls", may_be_lossy=True),
    "1.2.840.10008.1.2.4.90": Syntax("JPEG 2000 Lossless Only", "jpeg-2000"),
    "1.2.840.10008.1.2.4.91": Syntax("JPEG 2000", "jpeg-2000", may_be_lossy=True),
}


@dataclass(frozen=True)
class Decoded:
    """One decoded frame.

    Attributes:
        samples: (rows, columns), as the codestream gives them: its own precision and sign.
        precision: bits a sample, as the codestream says.
        signed: as the codestream says; always False for JPEG-LS, which has no signs, and for RLE, which has no header.
        lossy: how the codestream itself lost information (`JPEG-LS, error up to 2`), or None.
    """

    samples: NDArray[Any]
    precision: int
    signed: bool
    lossy: str | None = None


def fragments(value: bytes | memoryview) -> Iterator[memoryview]:
    """Yield the fragments of encapsulated PixelData, the basic offset table left out.

    Args:
        value: from the first item tag to the end of the file.

    Raises:
        DataError: `bad-encapsulation` where no item begins, `truncated-pixels` where the value ends inside an item or before the
            sequence delimiter.

    Source: DICOM PS3.5 A.4.
    """
    view, at, number = memoryview(value), 0, 0
    while True:
        if len(view) < at + 8:
            raise DataError(
                "truncated-pixels", f"its encapsulated pixels end after {len(view)} bytes without a delimiter"
            )
        group, element, length = struct.unpack_from("<HHI", view, at)
        at += 8
        if (group, element) == (0xFFFE, 0xE0DD):
            return
        if (group, element) != (0xFFFE, 0xE000):
            raise DataError(
                "bad-encapsulation", f"its encapsulated pixels hold ({group:04x},{element:04x}) for an item"
            )
        if length > len(view) - at:
            raise DataError(
                "truncated-pixels", f"an item of {length} bytes has {len(view) - at} bytes left in the file"
            )
        if number:
            yield view[at : at + length]
        at, number = at + length, number + 1


def decode(form: str, value: bytes | memoryview, rows: int, columns: int, bits_allocated: int) -> Decoded:
    """Return the one frame of an encapsulated PixelData value.

    Args:
        form: the codec: `rle`, `jpeg-ls` or `jpeg-2000`.
        value: from the first item tag to the end of the file.
        rows: as the header says.
        columns: as the header says.
        bits_allocated: as the header says.

    Raises:
        DataError: `codestream-mismatch` where the codestream has another size or several samples a pixel (checked before
            anything of that size is allocated), `undecodable`, and those of `fragments`.
    """
    stream = b"".join(fragments(value))
    if not stream:
        raise DataError("undecodable", "its encapsulated pixels are empty")
    try:
        if form == "jpeg-2000":
            return _jpeg_2000(stream, rows, columns)
        if form == "jpeg-ls":
            return _jpeg_ls(stream, rows, columns)
        return _rle(bytes(value), rows, columns, bits_allocated)
    except (RuntimeError, ValueError, IndexError, KeyError, struct.error) as error:
        raise DataError("undecodable", f"{form} can't decode it: {error}") from error


def _check_size(form: str, found: tuple[int, int, int], rows: int, columns: int) -> None:
    if found != (rows, columns, 1):
        raise DataError(
            "codestream-mismatch",
            f"its {form} codestream holds {found[0]} x {found[1]} pixels of {found[2]} sample(s), the header says "
            f"{rows} x {columns} of 1",
        )


def _samples(buffer: bytes | bytearray, precision: int, signed: bool, rows: int, columns: int) -> NDArray[Any]:
    size = 1 if precision <= 8 else 2 if precision <= 16 else 4
    return np.frombuffer(buffer, f"<{'i' if signed else 'u'}{size}").reshape(rows, columns)


def _jpeg_2000(stream: bytes, rows: int, columns: int) -> Decoded:
    from openjpeg.utils import decode_pixel_data, get_parameters

    # A JP2 box around the codestream is against PS3.5 A.4.4, and common.
    start = stream.find(b"\xff\x4f\xff\x51")
    if start < 0:
        raise ValueError("no JPEG 2000 codestream begins in it")
    stream = stream[start:]
    found = get_parameters(stream, 0)
    size = (int(found["rows"]), int(found["columns"]), int(found["samples_per_pixel"]))
    _check_size("JPEG 2000", size, rows, columns)
    precision, signed = int(found["precision"]), bool(found["is_signed"])
    buffer = bytes(decode_pixel_data(stream, version=2))
    lossy = None if _is_reversible(stream) else "JPEG 2000, irreversible wavelet"
    return Decoded(_samples(buffer, precision, signed, rows, columns), precision, signed, lossy)


def _is_reversible(stream: bytes) -> bool:
    """Say whether the main header's COD marker names the reversible 5-3 wavelet. Source: ISO/IEC 15444-1 A.6.1."""
    at = 2
    while at + 4 <= len(stream):
        marker, length = struct.unpack_from(">HH", stream, at)
        if marker == 0xFF52:
            return stream[at + 13] == 1
        at += 2 + length
    return False


def _jpeg_ls(stream: bytes, rows: int, columns: int) -> Decoded:
    from _CharLS import decode_from_buffer, read_header  # type: ignore[import-not-found]

    found = read_header(stream)
    _check_size("JPEG-LS", (found["height"], found["width"], found["components"]), rows, columns)
    precision, near = int(found["bits_per_sample"]), int(found["allowed_lossy_error"])
    lossy = f"JPEG-LS, error up to {near}" if near else None
    return Decoded(_samples(decode_from_buffer(stream), precision, False, rows, columns), precision, False, lossy)


def _rle(value: bytes, rows: int, columns: int, bits_allocated: int) -> Decoded:
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import RLELossless

    layout: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "number_of_frames": 1,
        "samples_per_pixel": 1,
        "bits_allocated": bits_allocated,
        "bits_stored": bits_allocated,
        "pixel_representation": 0,
        "pixel_keyword": "PixelData",
        "photometric_interpretation": "MONOCHROME2",
    }
    samples, _ = get_decoder(RLELossless).as_array(value, index=0, raw=True, decoding_plugin="pydicom", **layout)
    return Decoded(samples, bits_allocated, False)
