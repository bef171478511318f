"""Read a DICOM Segmentation of any type: what it describes, where its frames lie, and their pixels.

Source: DICOM PS3.3 A.51 and C.8.20 (Segmentation IODs), C.7.6.16 (functional groups); PS3.5 8.1.1 and annex D (bit packing),
A.4 (encapsulation). Nothing here is shared with the writer or with the decoder of `md verify`.
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.opening import shown
from mdcli.errors import DataError, MdError, MissingError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# Source: DICOM PS3.6 table A-1.
SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
_IMPLICIT, _BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.2"
_NATIVE = (_IMPLICIT, "1.2.840.10008.1.2.1", _BIG)
_DEFLATED, _DEFLATED_FRAMES = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.8.1"
_BITS = {"BINARY": (1,), "FRACTIONAL": (8,), "LABELMAP": (8, 16)}
# Source: DICOM PS3.16 CID 7150 and 7151: what is no structure at all.
_BACKGROUND = ("DCM", "125040")
_UNIT_TOLERANCE = 1e-3
LARGEST_ROUNDING_MM = 0.05
"""Positions are taken as rounded by no more than this, however few decimals they have."""
MOST_HEADER_BYTES = 256 << 20
"""What the header of a deflated file may inflate to."""
MOST_INFLATED_PIXELS = 1 << 30
"""What the pixels of a deflated file may inflate to."""


class _BrokenError(Exception):
    """What is wrong, in words that hold nothing of the file but numbers of its geometry."""


@dataclass(frozen=True)
class Segment:
    """One described segment.

    Attributes:
        number: SegmentNumber.
        name: SegmentLabel, fit to be shown.
        background: it is described as what is no structure (LABELMAP).
        entry: what goes into its entry of `segments.json`: name, codes, colour, algorithm, tracking.
    """

    number: int
    name: str
    background: bool
    entry: Mapping[str, Any]


@dataclass(frozen=True)
class Frame:
    """Where one frame lies, and from what it was made.

    Attributes:
        segment: the segment's number; None in a LABELMAP.
        origin: (3,) centre of its first pixel, mm, LPS+; None where the file gives no plane in the patient.
        along_i: (3,) from one column to the next, mm, LPS+.
        along_j: (3,) from one row to the next, mm, LPS+.
        sources: (SOPInstanceUID, 1-based frame number or None) of every source image.
    """

    segment: int | None
    origin: NDArray[np.float64] | None
    along_i: NDArray[np.float64]
    along_j: NDArray[np.float64]
    sources: tuple[tuple[str, int | None], ...]


@dataclass(frozen=True)
class Seg:
    """A SEG without its pixels.

    Attributes:
        name: of the file, to be shown.
        sop_instance_uid: of the object, as the file has it.
        study_instance_uid: as the file has it.
        frame_of_reference_uid: None where the file does not say.
        segmentation_type: `BINARY`, `FRACTIONAL` or `LABELMAP`.
        fractional_type: `PROBABILITY` or `OCCUPANCY`; None for the other types.
        maximum: MaximumFractionalValue; 1 for BINARY; 0 for LABELMAP, which has none.
        rows: of every frame.
        columns: of every frame.
        bits_allocated: 1, 8 or 16.
        segments: as described, in the order of the file.
        frames: in the order of the file.
        background: pixel values of a LABELMAP that belong to no segment.
        referenced: SOPInstanceUID of every image that the object refers to.
        spacing_between_mm: SpacingBetweenSlices, else None.
        thickness_mm: SliceThickness, else None.
        rounding_mm: how far a position may be off by the decimals that the file gives it.
        syntax: transfer syntax UID.
        pixel_offset: where the value of PixelData begins: in the file, or in the inflated data set.
        pixel_length: of the value in bytes; None for encapsulated frames.
        swapped: bytes of the value are in pairs, the higher one first (OW, big endian).
        size: of the file in bytes.
        extended: ExtendedOffsetTable and its lengths, where encapsulated frames have them.
    """

    name: str
    sop_instance_uid: str | None
    study_instance_uid: str | None
    frame_of_reference_uid: str | None
    segmentation_type: str
    fractional_type: str | None
    maximum: int
    rows: int
    columns: int
    bits_allocated: int
    segments: tuple[Segment, ...]
    frames: tuple[Frame, ...]
    background: frozenset[int]
    referenced: frozenset[str]
    spacing_between_mm: float | None
    thickness_mm: float | None
    rounding_mm: float
    syntax: str
    pixel_offset: int
    pixel_length: int | None
    swapped: bool
    size: int
    extended: tuple[tuple[int, ...], tuple[int, ...]] | None

    @property
    def numbers(self) -> list[int]:
        """Return the numbers of the segments that are structures, in the order of the file."""
        return [segment.number for segment in self.segments if not segment.background]

    @property
    def frame_bytes(self) -> int:
        """Return the bytes of one decoded frame that starts at a byte."""
        return -(-self.rows * self.columns * self.bits_allocated // 8)


@contextmanager
def open_seg(path: Path) -> Iterator[io.BufferedReader]:
    """Open a regular file for reading; a FIFO or a device is refused, not waited for.

    Raises:
        MissingError: `no-source`.
        DataError: `not-seg` for what is no file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        handle = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError("no-source", f"there is no file {shown(path.name)}") from None
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise DataError("not-seg", f"{shown(path.name)} is no regular file")
        yield file


def seg_digest(path: Path) -> str:
    """Return the SHA-256 of the whole file.

    Raises:
        MissingError: `no-source`.
    """
    with open_seg(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_seg_header(path: Path) -> Seg:
    """Read all of a SEG but its pixels, and check that it says one thing.

    Args:
        path: of the file.

    Raises:
        MissingError: `no-source`.
        DataError: `not-seg`; `seg-on-slide` for whole-slide coordinates; `seg-syntax` for a transfer syntax that is not read;
            `seg-broken` where it contradicts itself or lacks what it needs: frames against NumberOfFrames and
            the length of PixelData, frames of segments that are not described, numbers that are described twice.

    Source: DICOM PS3.3 C.8.20.2, C.8.20.3, C.7.6.16.
    """
    # Not by its file's name, which may be a patient's and would go into records.
    name = "the SEG"
    with _broken_is_refused(name), open_seg(path) as file:
        size = os.fstat(file.fileno()).st_size
        dataset, syntax, stream = _open_dataset(file, name)
        _check_kind(dataset, name)
        return _seg(dataset, name, syntax, _pixels(dataset, stream, syntax), size)


@contextmanager
def _broken_is_refused(name: str) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            # pydicom warns of a bad value by printing it, whatever is in it.
            warnings.simplefilter("ignore")
            yield
    except (MdError, OSError):
        raise
    except (AttributeError, KeyError, _BrokenError) as error:
        text = str(error).strip("'\"")
        raise DataError("seg-broken", f"{name} is not what a SEG must be: {shown(text)}") from error
    except Exception as error:
        # Damaged bytes make pydicom raise nearly anything, often with the bytes, which may be a patient's.
        raise DataError("seg-broken", f"{name} can't be read ({type(error).__name__})") from error


def _open_dataset(file: BinaryIO, name: str) -> tuple[Dataset, str, BinaryIO]:
    """Return the data set up to PixelData, its transfer syntax, and the stream that stands at PixelData."""
    from pydicom.filereader import read_dataset

    from mdcli.dicom.codecs import SYNTAXES

    if file.read(132)[128:] != b"DICM":
        raise DataError("not-seg", f"{name} is not a DICOM file")
    meta = read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2)
    syntax = _uid(meta.get("TransferSyntaxUID")) or ""
    if syntax not in (*_NATIVE, _DEFLATED, _DEFLATED_FRAMES) and not (
        syntax in SYNTAXES and SYNTAXES[syntax].encapsulated
    ):
        raise DataError("seg-syntax", f"{name} has the transfer syntax {syntax or 'of nobody'}, which is not read")
    stream: BinaryIO = file
    if syntax == _DEFLATED:
        stream = io.BytesIO(_inflate(file, MOST_HEADER_BYTES))
    dataset = read_dataset(
        stream, syntax == _IMPLICIT, syntax != _BIG, stop_when=lambda tag, _vr, _length: tag >= 0x7FE00008
    )
    return dataset, syntax, stream


def _inflate(file: BinaryIO, most: int) -> bytes:
    """Return at most so many bytes of the deflated data set that begins here."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    return inflater.decompress(file.read(), most)


def _check_kind(dataset: Dataset, name: str) -> None:
    sop_class = _uid(dataset.get("SOPClassUID"))
    if sop_class not in SOP_CLASSES:
        raise DataError("not-seg", f"{name} has the SOP class {sop_class or 'of nobody'}, which is no Segmentation")
    shared = _first(dataset.get("SharedFunctionalGroupsSequence"))
    frame = _first(dataset.get("PerFrameFunctionalGroupsSequence"))
    on_slide = any(item is not None and "PlanePositionSlideSequence" in item for item in (shared, frame))
    tiled = str(dataset.get("DimensionOrganizationType") or "").startswith("TILED")
    if on_slide or tiled or "TotalPixelMatrixOriginSequence" in dataset:
        text = f"{name} lies on a slide (tiled, or in slide coordinates), not in a patient: it is not read"
        raise DataError("seg-on-slide", text)


@dataclass(frozen=True)
class _Pixels:
    offset: int
    length: int | None
    swapped: bool


def _pixels(dataset: Dataset, stream: BinaryIO, syntax: str) -> _Pixels:
    """Read tag, VR and length of PixelData, at which the stream stands."""
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    head = stream.read(8 if implicit else 12)
    if len(head) < (8 if implicit else 12) or struct.unpack_from(f"{order}HH", head) != (0x7FE0, 0x0010):
        raise _BrokenError("it has no PixelData")
    length = struct.unpack_from(f"{order}I", head, len(head) - 4)[0]
    encapsulated = length == 0xFFFFFFFF
    if encapsulated != (syntax not in (*_NATIVE, _DEFLATED)):
        raise _BrokenError("PixelData has the length of another transfer syntax")
    swapped = syntax == _BIG and head[4:6] == b"OW"
    return _Pixels(stream.tell(), None if encapsulated else length, swapped)


def _seg(dataset: Dataset, name: str, syntax: str, pixels: _Pixels, size: int) -> Seg:
    kind = str(dataset.get("SegmentationType") or "")
    bits, rows, columns = (_count(dataset, k) for k in ("BitsAllocated", "Rows", "Columns"))
    if kind not in _BITS or bits not in _BITS[kind]:
        raise _BrokenError(f"SegmentationType is {kind!r} with {bits} bits a pixel")
    if int(dataset.get("SamplesPerPixel") or 1) != 1 or int(dataset.get("PixelRepresentation") or 0) != 0:
        raise _BrokenError("its pixels have several samples, or a sign")
    photometric = str(dataset.get("PhotometricInterpretation") or "")
    if photometric != "MONOCHROME2" and not (kind == "LABELMAP" and photometric == "PALETTE COLOR"):
        raise _BrokenError(f"PhotometricInterpretation is {photometric!r} in a {kind} SEG")
    count, groups = _count(dataset, "NumberOfFrames"), dataset.PerFrameFunctionalGroupsSequence
    if len(groups) != count:
        raise _BrokenError(f"NumberOfFrames is {count}, and {len(groups)} frames are described")
    if pixels.length is not None:
        needed = -(-count * rows * columns * bits // 8)
        there = pixels.length if syntax == _DEFLATED else min(pixels.length, size - pixels.offset)
        if not needed <= there or pixels.length > needed + 1:
            raise _BrokenError(
                f"PixelData has {there} bytes; {count} frames of {rows} x {columns} pixels with {bits} bit(s) have {needed}"
            )
    shared = _first(dataset.get("SharedFunctionalGroupsSequence"))
    segments = tuple(_segment(item, kind, _palette(dataset, photometric)) for item in dataset.SegmentSequence)
    numbers = {segment.number for segment in segments}
    if len(numbers) < len(segments):
        raise _BrokenError("one segment number is described twice")
    frames, decimals = [], 0
    for n, group in enumerate(groups):
        frame, digits = _frame(group, shared, kind, n)
        if frame.segment is not None and frame.segment not in numbers:
            raise _BrokenError(f"frame {n + 1} is of segment {frame.segment}, which is not described")
        frames.append(frame)
        decimals = max(decimals, digits)
    if len({frame.origin is None for frame in frames}) > 1:
        raise _BrokenError("some frames have a position, others none")
    measures = _group(groups[0], shared, "PixelMeasuresSequence")
    maximum = {"BINARY": 1, "LABELMAP": 0}.get(kind)
    fractional = str(dataset.get("SegmentationFractionalType") or "") if kind == "FRACTIONAL" else None
    if maximum is None:
        maximum = _count(dataset, "MaximumFractionalValue")
        if maximum > 255 or fractional not in ("PROBABILITY", "OCCUPANCY"):
            raise _BrokenError(f"its fractions are {shown(str(fractional))!r} up to {maximum}")
    return Seg(
        name=name,
        sop_instance_uid=_uid(dataset.get("SOPInstanceUID")),
        study_instance_uid=_uid(dataset.get("StudyInstanceUID")),
        frame_of_reference_uid=_uid(dataset.get("FrameOfReferenceUID")),
        segmentation_type=kind,
        fractional_type=fractional,
        maximum=maximum,
        rows=rows,
        columns=columns,
        bits_allocated=bits,
        segments=segments,
        frames=tuple(frames),
        background=_background(dataset, kind, segments),
        referenced=frozenset(_referenced(dataset) | {uid for frame in frames for uid, _ in frame.sources}),
        spacing_between_mm=_positive(measures, "SpacingBetweenSlices"),
        thickness_mm=_positive(measures, "SliceThickness"),
        rounding_mm=min(LARGEST_ROUNDING_MM, math.sqrt(3) * 0.5 * 10.0**-decimals),
        syntax=syntax,
        pixel_offset=pixels.offset,
        pixel_length=pixels.length,
        swapped=pixels.swapped,
        size=size,
        extended=_extended(dataset),
    )


def _extended(dataset: Dataset) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return the Extended Offset Table. Source: PS3.3 C.7.6.3.1.8."""
    tables = [dataset.get(k) for k in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    if not all(isinstance(table, bytes) and table and len(table) % 8 == 0 for table in tables):
        return None
    offsets, lengths = (tuple(np.frombuffer(table, "<u8").tolist()) for table in tables)
    return offsets, lengths


def _count(dataset: Dataset, keyword: str) -> int:
    value = int(dataset[keyword].value)
    if value < 1:
        raise _BrokenError(f"{keyword} is {value}")
    return value


def _first(sequence: Any) -> Dataset | None:
    return sequence[0] if sequence else None


def _group(group: Dataset, shared: Dataset | None, keyword: str) -> Dataset | None:
    """Return a functional group's item, the frame's own or the shared one."""
    for holder in (group, shared):
        if holder is not None and keyword in holder:
            return _first(holder[keyword].value)
    return None


def _uid(value: Any) -> str | None:
    """Return a UID with nothing but digits and dots in it, and no more than a UID has; None for what is none."""
    text = str(value or "").strip("\0 ")
    return text if re.fullmatch(r"[0-9.]{1,64}", text) else None


def _positive(item: Dataset | None, keyword: str) -> float | None:
    value = item.get(keyword) if item is not None else None
    number = float(value) if value else 0.0
    return number if math.isfinite(number) and number > 0 else None


def _vector(item: Dataset, keyword: str, length: int, n: int) -> NDArray[np.float64]:
    values = item.get(keyword)
    vector = np.array(
        [float(v) for v in values] if isinstance(values, Sequence) and not isinstance(values, str) else []
    )
    if vector.shape != (length,) or not np.isfinite(vector).all():
        raise _BrokenError(f"frame {n + 1} has no {keyword} of {length} finite numbers")
    return vector


def _decimals(values: Any) -> int:
    """Return the most decimals that one of some Decimal Strings is written with.

    >>> _decimals(["-235.2", "-2.268000e+02"])
    4
    """
    most = 0
    for value in values:
        text = str(getattr(value, "original_string", value)).strip().lower()
        number, _, exponent = text.partition("e")
        most = max(most, len(number.partition(".")[2]) - int(exponent or 0))
    return most


def _frame(group: Dataset, shared: Dataset | None, kind: str, n: int) -> tuple[Frame, int]:
    """Return a frame and the decimals of its position. Source: PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1; C.7.6.16.2."""
    segment = None
    if kind != "LABELMAP":
        identification = _group(group, shared, "SegmentIdentificationSequence")
        if identification is None:
            raise _BrokenError(f"frame {n + 1} names no segment")
        segment = int(identification.ReferencedSegmentNumber)
    sources = tuple(_sources(group, shared))
    position = _group(group, shared, "PlanePositionSequence")
    none = np.zeros(3)
    if position is None:
        return Frame(segment, None, none, none, sources), 0
    orientation, measures = (_group(group, shared, k) for k in ("PlaneOrientationSequence", "PixelMeasuresSequence"))
    if orientation is None or measures is None:
        raise _BrokenError(f"frame {n + 1} has a position, but no orientation or pixel spacing")
    origin = _vector(position, "ImagePositionPatient", 3, n)
    cosines = _vector(orientation, "ImageOrientationPatient", 6, n)
    # PixelSpacing is [between rows, between columns]: the step from column to column is the second.
    row_step, column_step = _vector(measures, "PixelSpacing", 2, n)
    x, y = cosines[:3], cosines[3:]
    off = max(abs(math.hypot(*x) - 1), abs(math.hypot(*y) - 1), abs(float(x @ y)))
    if off > _UNIT_TOLERANCE or min(row_step, column_step) <= 0:
        raise _BrokenError(f"ImageOrientationPatient and PixelSpacing of frame {n + 1} span no plane")
    frame = Frame(segment, origin, x * column_step, y * row_step, sources)
    return frame, _decimals(position.ImagePositionPatient)


def _sources(group: Dataset, shared: Dataset | None) -> Iterator[tuple[str, int | None]]:
    """Yield what a frame was derived from. Source: PS3.3 C.7.6.16.2.6 (Derivation Image)."""
    for holder in (group, shared):
        for derivation in (holder.get("DerivationImageSequence") if holder is not None else None) or ():
            for image in derivation.get("SourceImageSequence") or ():
                uid = _uid(image.get("ReferencedSOPInstanceUID"))
                numbers = image.get("ReferencedFrameNumber")
                if uid is None:
                    continue
                if numbers is None:
                    yield uid, None
                else:
                    for number in [numbers] if isinstance(numbers, (int, str)) else numbers:
                        yield uid, int(number)


def _referenced(dataset: Dataset) -> set[str]:
    """Return the images of the Common Instance Reference module. Source: PS3.3 C.12.2."""
    found = set()
    studies = dataset.get("StudiesContainingOtherReferencedInstancesSequence") or ()
    for holder in (dataset, *studies):
        for series in holder.get("ReferencedSeriesSequence") or ():
            for image in series.get("ReferencedInstanceSequence") or ():
                uid = _uid(image.get("ReferencedSOPInstanceUID"))
                if uid is not None:
                    found.add(uid)
    return found


def _segment(item: Dataset, kind: str, palette: Mapping[int, list[int]]) -> Segment:
    number = int(item.SegmentNumber)
    lowest = 0 if kind == "LABELMAP" else 1
    if not lowest <= number <= 65535:
        raise _BrokenError(f"a segment has the number {number}")
    name = shown(str(item.get("SegmentLabel") or "").strip()) or f"segment {number}"
    category = _code(_first(item.get("SegmentedPropertyCategoryCodeSequence")))
    type_item = _first(item.get("SegmentedPropertyTypeCodeSequence"))
    region_item = _first(item.get("AnatomicRegionSequence"))
    found: dict[str, Any] = {
        "name": name,
        "category": category,
        "type": _code(type_item),
        "type_modifiers": _codes(type_item, "SegmentedPropertyTypeModifierCodeSequence"),
        "anatomic_region": _code(region_item),
        "anatomic_region_modifiers": _codes(region_item, "AnatomicRegionModifierSequence"),
        "algorithm": _algorithm(item),
        "original_number": number,
        "tracking_id": shown(str(item.TrackingID)) if item.get("TrackingID") else None,
        "tracking_uid": _uid(item.get("TrackingUID")),
    }
    entry = {key: value for key, value in found.items() if value not in (None, [])}
    entry["colour"] = _colour(item.get("RecommendedDisplayCIELabValue")) or palette.get(number)
    what = found["type"] or {}
    background = kind == "LABELMAP" and (what.get("scheme"), what.get("value")) == _BACKGROUND
    return Segment(number, name, background, entry)


def _code(item: Dataset | None) -> dict[str, str] | None:
    """Return a code as `segments.json` has it; None where a part is missing. Source: PS3.3 8.8 (Code Sequence Macro)."""
    if item is None:
        return None
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue")
    parts = {"value": value, "scheme": item.get("CodingSchemeDesignator"), "meaning": item.get("CodeMeaning")}
    if not all(parts.values()):
        return None
    if item.get("CodingSchemeVersion"):
        parts["version"] = item.CodingSchemeVersion
    return {key: shown(str(text).strip()) for key, text in parts.items()}


def _codes(item: Dataset | None, keyword: str) -> list[dict[str, str]]:
    codes = [_code(modifier) for modifier in (item.get(keyword) if item is not None else None) or ()]
    return [code for code in codes if code is not None]


def _algorithm(item: Dataset) -> dict[str, Any] | None:
    """Return how a segment was made; None where the file does not say. Source: PS3.3 table C.8.20-4."""
    kind = str(item.get("SegmentAlgorithmType") or "")
    if kind not in ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"):
        return None
    identification = _first(item.get("SegmentationAlgorithmIdentificationSequence"))
    name = item.get("SegmentAlgorithmName") or (identification.get("AlgorithmName") if identification else None)
    version = identification.get("AlgorithmVersion") if identification else None
    return {
        "type": kind,
        "name": shown(str(name).strip()) if name else None,
        "version": shown(str(version).strip()) if version else None,
    }


def _colour(lab: Any) -> list[int] | None:
    """Return a CIELab value of DICOM as sRGB. Source: PS3.3 C.10.7.1.1."""
    from highdicom.color import CIELabColor

    if lab is None:
        return None
    values = [int(v) for v in lab]
    if len(values) != 3 or not all(0 <= v <= 65535 for v in values):
        raise _BrokenError("a RecommendedDisplayCIELabValue has not three values of 16 bits")
    return list(CIELabColor.from_dicom_value(values).to_rgb(clip=True))


def _palette(dataset: Dataset, photometric: str) -> dict[int, list[int]]:
    """Return the colour of every pixel value of a LABELMAP in PALETTE COLOR. Source: PS3.3 C.7.6.3.1.5, C.7.6.3.1.6."""
    if photometric != "PALETTE COLOR":
        return {}
    channels = []
    for colour in ("Red", "Green", "Blue"):
        descriptor = dataset.get(f"{colour}PaletteColorLookupTableDescriptor")
        data = dataset.get(f"{colour}PaletteColorLookupTableData")
        if descriptor is None or data is None:
            return {}
        count, first, bits = (int(v) for v in descriptor)
        count, first = count or 65536, first & 0xFFFF
        wide = bits == 16 and len(data) >= 2 * count
        values = np.frombuffer(data, "<u2" if wide else np.uint8)[:count]
        if len(values) < count:
            return {}
        channels.append((first, values >> 8 if wide else values))
    (first, red), (_, green), (_, blue) = channels
    if len({len(values) for _, values in channels}) > 1 or len({start for start, _ in channels}) > 1:
        return {}
    return {first + n: [int(r), int(g), int(b)] for n, (r, g, b) in enumerate(zip(red, green, blue, strict=True))}


def _background(dataset: Dataset, kind: str, segments: Sequence[Segment]) -> frozenset[int]:
    """Return the pixel values of a LABELMAP that belong to no structure.

    Those are the value of a segment that is described as background, PixelPaddingValue, and 0 where no segment has that number.
    """
    if kind != "LABELMAP":
        return frozenset()
    structures = {segment.number for segment in segments if not segment.background}
    values = {segment.number for segment in segments if segment.background} | ({0} - structures)
    padding = dataset.get("PixelPaddingValue")
    if padding is not None:
        if int(padding) in structures:
            raise _BrokenError(f"PixelPaddingValue {int(padding)} is the number of a segment")
        values.add(int(padding))
    return frozenset(values)


# Pixels


class SegFrames:
    """The pixels of an open SEG, frame by frame.

    Args:
        file: the SEG, open.
        seg: as `read_seg_header` gave it.
        decoded: for encapsulated and deflated pixels: all frames, as native ones of a little endian file.
    """

    def __init__(self, file: BinaryIO, seg: Seg, decoded: bytes | bytearray | None = None) -> None:
        self._file, self._seg, self._decoded = file, seg, decoded

    def _bytes(self, start: int, end: int) -> bytes | bytearray:
        if self._decoded is not None:
            return self._decoded[start:end]
        if self._seg.swapped:
            self._file.seek(self._seg.pixel_offset + (start & ~1))
            words = np.frombuffer(self._file.read((end + 1 & ~1) - (start & ~1)), "<u2").byteswap()
            return words.tobytes()[start & 1 : (start & 1) + end - start]
        self._file.seek(self._seg.pixel_offset + start)
        return self._file.read(end - start)

    def frame(self, n: int) -> NDArray[Any]:
        """Return one frame, (rows, columns): 0 and 1 (BINARY), fractions, or segment numbers (LABELMAP).

        Raises:
            DataError: `seg-broken` for a fraction over MaximumFractionalValue, or a file that has become shorter.
        """
        seg, pixels = self._seg, self._seg.rows * self._seg.columns
        first = n * pixels * seg.bits_allocated
        last = first + pixels * seg.bits_allocated
        data = self._bytes(first // 8, -(-last // 8))
        if len(data) != -(-last // 8) - first // 8:
            raise DataError("seg-broken", f"{seg.name} is shorter than it was")
        if seg.bits_allocated == 1:
            # Frames follow each other without a gap, the first pixel in the lowest bit: PS3.5 8.1.1.
            bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
            return bits[first % 8 : first % 8 + pixels].reshape(seg.rows, seg.columns)
        plane: NDArray[Any] = np.frombuffer(data, "<u2" if seg.bits_allocated == 16 else np.uint8)
        if seg.segmentation_type == "FRACTIONAL" and plane.max() > seg.maximum:
            text = f"{seg.name}: frame {n + 1} holds {plane.max()}, and MaximumFractionalValue is {seg.maximum}"
            raise DataError("seg-broken", text)
        return plane.reshape(seg.rows, seg.columns)


@contextmanager
def open_frames(path: Path, seg: Seg, jobs: int = 1) -> Iterator[SegFrames]:
    """Open a SEG's pixels. Compressed ones are decoded before the first is given, in worker processes.

    Args:
        path: of the file.
        seg: as `read_seg_header` gave it.
        jobs: worker processes.

    Raises:
        MissingError: `no-source`.
        DataError: `deflate-bomb`; `seg-broken`; `too-many-pixels`; those of `mdcli.dicom.seg_decoding.decode_frames`.
    """
    with open_seg(path) as file:
        decoded: bytes | bytearray | None = None
        if seg.syntax == _DEFLATED:
            decoded = _inflated_pixels(file, seg)
        elif seg.pixel_length is None:
            from mdcli.dicom.seg_decoding import decode_frames

            decoded = decode_frames(path, seg, jobs)
        yield SegFrames(file, seg, decoded)


def _inflated_pixels(file: BinaryIO, seg: Seg) -> bytes:
    from pydicom.filereader import read_dataset

    assert seg.pixel_length is not None
    if seg.pixel_length > MOST_INFLATED_PIXELS:
        text = f"the pixels of {seg.name} would inflate to {seg.pixel_length} bytes; {MOST_INFLATED_PIXELS} are allowed"
        raise DataError("deflate-bomb", text, most=MOST_INFLATED_PIXELS)
    with _broken_is_refused(seg.name):
        file.seek(132)
        read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2)
        plain = _inflate(file, seg.pixel_offset + seg.pixel_length)[seg.pixel_offset :]
    if len(plain) < seg.pixel_length:
        raise DataError("seg-broken", f"{seg.name} inflates to {len(plain)} bytes of pixels, not {seg.pixel_length}")
    return plain
