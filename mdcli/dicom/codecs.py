"""Decode one compressed frame by a codec that is named, never chosen by whatever is installed.

JPEG goes to libjpeg-turbo (Pillow) or the reader in SimpleITK (`mdcli.dicom.jpeg`), JPEG 2000 and HTJ2K to OpenJPEG
(pylibjpeg-openjpeg), JPEG-LS to CharLS (pyjpegls), RLE to pydicom. Call `decode_frame` in a worker process only
(`mdcli.dicom.decoding`): a codec can abort the process. Source: DICOM PS3.5 section 8.2 and Annex A.4.
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
        form: `raw`, `big` (endian), `deflated`, or the codec: `rle`, `jpeg`, `jpeg-ls`, `jpeg-2000` (HTJ2K is one kind of it).
        may_be_lossy: whether the syntax allows lossy compression. What a codestream did is in `Decoded.lossy`.
    """

    name: str
    form: str
    may_be_lossy: bool = False

    @property
    def encapsulated(self) -> bool:
        """Say whether the pixels are fragments that a codec decodes."""
        return self.form in ("rle", "jpeg", "jpeg-ls", "jpeg-2000")


# Source: DICOM PS3.6 table A-1.
SYNTAXES = {
    "1.2.840.10008.1.2": Syntax("Implicit VR Little Endian", "raw"),
    "1.2.840.10008.1.2.1": Syntax("Explicit VR Little Endian", "raw"),
    "1.2.840.10008.1.2.1.99": Syntax("Deflated Explicit VR Little Endian", "deflated"),
    "1.2.840.10008.1.2.2": Syntax("Explicit VR Big Endian", "big"),
    "1.2.840.10008.1.2.5": Syntax("RLE Lossless", "rle"),
    "1.2.840.10008.1.2.4.50": Syntax("JPEG Baseline", "jpeg", may_be_lossy=True),
    "1.2.840.10008.1.2.4.51": Syntax("JPEG Extended", "jpeg", may_be_lossy=True),
    "1.2.840.10008.1.2.4.57": Syntax("JPEG Lossless", "jpeg"),
    "1.2.840.10008.1.2.4.70": Syntax("JPEG Lossless, First-Order Prediction", "jpeg"),
    "1.2.840.10008.1.2.4.80": Syntax("JPEG-LS Lossless", "jpeg-ls"),
    "1.2.840.10008.1.2.4.81": Syntax("JPEG-LS Near-Lossless", "jpeg-ls", may_be_lossy=True),
    "1.2.840.10008.1.2.4.90": Syntax("JPEG 2000 Lossless Only", "jpeg-2000"),
    "1.2.840.10008.1.2.4.91": Syntax("JPEG 2000", "jpeg-2000", may_be_lossy=True),
    "1.2.840.10008.1.2.4.201": Syntax("HTJ2K Lossless Only", "jpeg-2000"),
    "1.2.840.10008.1.2.4.202": Syntax("HTJ2K Lossless RPCL", "jpeg-2000"),
    "1.2.840.10008.1.2.4.203": Syntax("HTJ2K", "jpeg-2000", may_be_lossy=True),
}


@dataclass(frozen=True)
class Decoded:
    """One decoded frame.

    Attributes:
        samples: (rows, columns) or (rows, columns, 3), as the codestream gives them: its own precision and sign.
        precision: bits a sample, as the codestream says; BitsAllocated for RLE, which has no header.
        signed: as the codestream says; always False for JPEG and JPEG-LS, which have no signs, and for RLE.
        lossy: how the codestream itself lost information (`JPEG-LS, error up to 2`), or None.
        colour: the space that three samples are in now, where the codestream tells: `RGB` where a transform was undone that
            JPEG 2000 and JPEG-LS define; `RGB` or `YBR` where a JFIF or Adobe marker of a JPEG image says so (nothing was
            transformed). None: PhotometricInterpretation alone says it.
    """

    samples: NDArray[Any]
    precision: int
    signed: bool
    lossy: str | None = None
    colour: str | None = None


def decode_frame(form: str, stream: bytes, rows: int, columns: int, samples: int, bits_allocated: int) -> Decoded:
    """Return one frame.

    Args:
        form: the codec: `rle`, `jpeg`, `jpeg-ls` or `jpeg-2000`.
        stream: the frame's fragments, joined.
        rows: as the header says.
        columns: as the header says.
        samples: a pixel, as the header says: 1 or 3.
        bits_allocated: as the header says; only RLE needs it.

    Raises:
        DataError: `codestream-mismatch` where the codestream has another size or another number of samples a pixel (checked
            before anything of that size is allocated), `undecodable`.
    """
    if not stream:
        raise DataError("undecodable", "its encapsulated pixels are empty")
    codec = {"rle": _rle, "jpeg": _jpeg, "jpeg-ls": _jpeg_ls, "jpeg-2000": _jpeg_2000}[form]
    try:
        return codec(stream, rows, columns, samples, bits_allocated)
    except (RuntimeError, ValueError, IndexError, KeyError, OSError, struct.error) as error:
        raise DataError("undecodable", f"{form} can't decode it: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Return what a library says, without the places in its own source, in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _check_size(form: str, found: tuple[int, int, int], expected: tuple[int, int, int]) -> None:
    if found != expected:
        raise DataError(
            "codestream-mismatch",
            f"its {form} codestream holds {found[0]} x {found[1]} pixels of {found[2]} sample(s), the header says "
            f"{expected[0]} x {expected[1]} of {expected[2]}",
        )


def _shaped(buffer: bytes | bytearray, precision: int, signed: bool, shape: tuple[int, ...]) -> NDArray[Any]:
    size = 1 if precision <= 8 else 2 if precision <= 16 else 4
    return np.frombuffer(buffer, f"<{'i' if signed else 'u'}{size}").reshape(shape)


def _shape(rows: int, columns: int, samples: int) -> tuple[int, ...]:
    return (rows, columns) if samples == 1 else (rows, columns, samples)


def _jpeg(stream: bytes, rows: int, columns: int, samples: int, _bits_allocated: int) -> Decoded:
    from mdcli.dicom.jpeg import decode_jpeg, read_header

    found = read_header(stream)
    _check_size("JPEG", (found.rows, found.columns, found.samples), (rows, columns, samples))
    return Decoded(decode_jpeg(stream, found), found.precision, False, found.lossy, found.colour)


@dataclass(frozen=True)
class _Wavelets:
    """What the headers of a JPEG 2000 codestream say: of its samples, and of how they were transformed."""

    rows: int
    columns: int
    samples: int
    precision: int
    signed: bool
    high_throughput: bool
    reversible: bool
    colour_transform: bool


def _jpeg_2000(stream: bytes, rows: int, columns: int, samples: int, _bits_allocated: int) -> Decoded:
    from openjpeg.utils import decode_pixel_data

    # A JP2 box around the codestream is against PS3.5 A.4.4, and common.
    start = stream.find(b"\xff\x4f\xff\x51")
    if start < 0:
        raise ValueError("no JPEG 2000 codestream begins in it")
    stream = stream[start:]
    found = _read_wavelets(stream)
    name = "HTJ2K" if found.high_throughput else "JPEG 2000"
    _check_size(name, (found.rows, found.columns, found.samples), (rows, columns, samples))
    pixels = _shaped(
        bytes(decode_pixel_data(stream, version=2)), found.precision, found.signed, _shape(rows, columns, samples)
    )
    lossy = None if found.reversible else f"{name}, irreversible wavelet"
    return Decoded(pixels, found.precision, found.signed, lossy, "RGB" if found.colour_transform else None)


def _read_wavelets(stream: bytes) -> _Wavelets:
    """Read SIZ, and every COD and COC, those of single tiles too. Source: ISO/IEC 15444-1 A.5.1, A.6.1, A.6.2; 15444-15 A.2."""
    capabilities, x1, y1, x0, y0 = struct.unpack_from(">HIIII", stream, 6)
    (samples,) = struct.unpack_from(">H", stream, 40)
    components = {stream[at : at + 3] for at in range(42, 42 + 3 * samples, 3)}
    if len(components) != 1:
        raise ValueError("its components differ in precision, sign or sampling")
    ((depth, *sampling),) = components
    if sampling != [1, 1]:
        raise ValueError("its components are subsampled")
    precision, signed = (depth & 0x7F) + 1, bool(depth & 0x80)
    if precision > 32:
        raise ValueError(f"it has {precision} bits a sample")
    kernels, transforms = set(), set()
    for marker, at in _main_and_tile_markers(stream):
        if marker == 0xFF52:
            transforms.add(stream[at + 8])
            kernels.add(stream[at + 13])
        elif marker == 0xFF53:
            # The component's number takes two bytes where there are more than 256.
            kernels.add(stream[at + (10 if samples < 257 else 11)])
    return _Wavelets(
        y1 - y0, x1 - x0, samples, precision, signed, bool(capabilities & 0x4000), kernels == {1}, transforms == {1}
    )


def _main_and_tile_markers(stream: bytes) -> Iterator[tuple[int, int]]:
    """Yield the markers of the main header and of each tile-part's, and where they are. Source: ISO/IEC 15444-1 A.3, A.4.2."""
    at, part = 2, None
    while at + 4 <= len(stream):
        marker, length = struct.unpack_from(">HH", stream, at)
        if marker == 0xFFD9:
            return
        if marker == 0xFF93:
            # A length of 0 means that this is the last tile-part.
            if part is None or part[1] < 14:
                return
            at, part = sum(part), None
            continue
        yield marker, at
        if marker == 0xFF90:
            part = (at, struct.unpack_from(">I", stream, at + 6)[0])
        at += 2 + length


def _jpeg_ls(stream: bytes, rows: int, columns: int, samples: int, _bits_allocated: int) -> Decoded:
    from _CharLS import decode_from_buffer, read_header  # type: ignore[import-not-found]

    if b"\xff\xd9" not in stream[-16:]:
        # Without an end marker CharLS may look for the next bit that is set for seconds.
        stream += b"\xff\xd9"
    found = read_header(stream)
    _check_size("JPEG-LS", (found["height"], found["width"], found["components"]), (rows, columns, samples))
    precision, near = int(found["bits_per_sample"]), int(found["allowed_lossy_error"])
    planar = samples > 1 and found["interleave_mode"] == 0
    shape = (samples, rows, columns) if planar else _shape(rows, columns, samples)
    pixels = _shaped(decode_from_buffer(stream), precision, False, shape)
    lossy = f"JPEG-LS, error up to {near}" if near else None
    colour = "RGB" if found["colour_transformation"] else None
    return Decoded(np.moveaxis(pixels, 0, -1) if planar else pixels, precision, False, lossy, colour)


def _rle(stream: bytes, rows: int, columns: int, samples: int, bits_allocated: int) -> Decoded:
    import warnings

    from pydicom.encaps import encapsulate
    from pydicom.pixels.decoders.base import get_decoder
    from pydicom.uid import RLELossless

    # DICOM PS3.5 G.2: one segment for each byte of each sample, at most 15.
    (segments,) = struct.unpack_from("<I", stream)
    if segments != samples * bits_allocated // 8:
        raise DataError(
            "codestream-mismatch",
            f"its RLE frame has {segments} segments, {samples} sample(s) of {bits_allocated} bits need "
            f"{samples * bits_allocated // 8}",
        )
    layout: dict[str, Any] = {
        "rows": rows,
        "columns": columns,
        "number_of_frames": 1,
        "samples_per_pixel": samples,
        "bits_allocated": bits_allocated,
        "bits_stored": bits_allocated,
        "pixel_representation": 0,
        "pixel_keyword": "PixelData",
        "photometric_interpretation": "MONOCHROME2" if samples == 1 else "RGB",
    }
    if samples > 1:
        layout["planar_configuration"] = 1
    with warnings.catch_warnings():
        # Bytes behind the last pixel of a segment are against PS3.5 G.3.1, common, and left out.
        warnings.simplefilter("ignore")
        pixels, _ = get_decoder(RLELossless).as_array(
            encapsulate([stream]), index=0, raw=True, decoding_plugin="pydicom", **layout
        )
    return Decoded(pixels, bits_allocated, False)
