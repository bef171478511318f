"""Read what the program needs from a DICOM file's header, and where its pixels lie, without reading the pixels.

A small reader of our own walks the top level of little-endian files; what it doesn't know goes to pydicom. Every input is
hostile: each length is checked against what is there, and nothing is read beyond `MAX_HEADER`.

Source: DICOM PS3.5 section 7 (encoding of elements, sequences), PS3.10 section 7.1 (file meta information).
"""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import stat
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from struct import Struct
from typing import Any, BinaryIO

from mdcli.dicom.instance import Instance

MAX_HEADER = 64 << 20
"""Bytes before the pixels, inflated where deflated: more is `header-too-large`."""
MAX_ODD_HEADER = 4 << 20
"""The same for what goes to pydicom, which makes an object of every element."""
MAX_DEFLATED = 1 << 28
"""Bytes of a deflated file as it lies on disk."""
MAX_HASHED = 1 << 30
"""Bytes of a file without pixels that `header_sha256` covers."""

# DICOM keyword: (tag, value representation, one value only). Never an attribute of the patient module.
# Source: DICOM PS3.6 section 6.
KEYWORDS: dict[str, tuple[int, str, bool]] = {
    "TransferSyntaxUID": (0x00020010, "UI", True),
    "ImplementationVersionName": (0x00020013, "SH", True),
    "SpecificCharacterSet": (0x00080005, "CS", False),
    "ImageType": (0x00080008, "CS", False),
    "SOPClassUID": (0x00080016, "UI", True),
    "SOPInstanceUID": (0x00080018, "UI", True),
    "StudyDate": (0x00080020, "DA", True),
    "SeriesDate": (0x00080021, "DA", True),
    "AcquisitionDate": (0x00080022, "DA", True),
    "ContentDate": (0x00080023, "DA", True),
    "AcquisitionDateTime": (0x0008002A, "DT", True),
    "StudyTime": (0x00080030, "TM", True),
    "SeriesTime": (0x00080031, "TM", True),
    "AcquisitionTime": (0x00080032, "TM", True),
    "ContentTime": (0x00080033, "TM", True),
    "Modality": (0x00080060, "CS", True),
    "PresentationIntentType": (0x00080068, "CS", True),
    "Manufacturer": (0x00080070, "LO", True),
    "StudyDescription": (0x00081030, "LO", True),
    "SeriesDescription": (0x0008103E, "LO", True),
    "ManufacturerModelName": (0x00081090, "LO", True),
    "ContrastBolusAgent": (0x00180010, "LO", True),
    "BodyPartExamined": (0x00180015, "CS", True),
    "ScanningSequence": (0x00180020, "CS", False),
    "SequenceVariant": (0x00180021, "CS", False),
    "ScanOptions": (0x00180022, "CS", False),
    "MRAcquisitionType": (0x00180023, "CS", True),
    "SequenceName": (0x00180024, "SH", True),
    "SliceThickness": (0x00180050, "DS", True),
    "KVP": (0x00180060, "DS", True),
    "RepetitionTime": (0x00180080, "DS", True),
    "EchoTime": (0x00180081, "DS", True),
    "InversionTime": (0x00180082, "DS", True),
    "EchoNumbers": (0x00180086, "IS", False),
    "SpacingBetweenSlices": (0x00180088, "DS", True),
    "SoftwareVersions": (0x00181020, "LO", False),
    "ProtocolName": (0x00181030, "LO", True),
    "TriggerTime": (0x00181060, "DS", True),
    "FrameTime": (0x00181063, "DS", True),
    "GantryDetectorTilt": (0x00181120, "DS", True),
    "ImagerPixelSpacing": (0x00181164, "DS", False),
    "ConvolutionKernel": (0x00181210, "SH", False),
    "FlipAngle": (0x00181314, "DS", True),
    "PatientPosition": (0x00185100, "CS", True),
    "ViewPosition": (0x00185101, "CS", True),
    "DiffusionBValue": (0x00189087, "FD", True),
    "DiffusionGradientOrientation": (0x00189089, "FD", False),
    "StudyInstanceUID": (0x0020000D, "UI", True),
    "SeriesInstanceUID": (0x0020000E, "UI", True),
    "SeriesNumber": (0x00200011, "IS", True),
    "AcquisitionNumber": (0x00200012, "IS", True),
    "InstanceNumber": (0x00200013, "IS", True),
    "ImagePositionPatient": (0x00200032, "DS", False),
    "ImageOrientationPatient": (0x00200037, "DS", False),
    "FrameOfReferenceUID": (0x00200052, "UI", True),
    "TemporalPositionIdentifier": (0x00200100, "IS", True),
    "NumberOfTemporalPositions": (0x00200105, "IS", True),
    "ImagesInAcquisition": (0x00201002, "IS", True),
    "PositionReferenceIndicator": (0x00201040, "LO", True),
    "SliceLocation": (0x00201041, "DS", True),
    "StackID": (0x00209056, "SH", True),
    "InStackPositionNumber": (0x00209057, "UL", True),
    "TemporalPositionIndex": (0x00209128, "UL", True),
    "ConcatenationUID": (0x00209161, "UI", True),
    "DimensionIndexSequence": (0x00209222, "SQ", True),
    "SamplesPerPixel": (0x00280002, "US", True),
    "PhotometricInterpretation": (0x00280004, "CS", True),
    "PlanarConfiguration": (0x00280006, "US", True),
    "NumberOfFrames": (0x00280008, "IS", True),
    "Rows": (0x00280010, "US", True),
    "Columns": (0x00280011, "US", True),
    "PixelSpacing": (0x00280030, "DS", False),
    "PixelAspectRatio": (0x00280034, "IS", False),
    "CorrectedImage": (0x00280051, "CS", False),
    "BitsAllocated": (0x00280100, "US", True),
    "BitsStored": (0x00280101, "US", True),
    "HighBit": (0x00280102, "US", True),
    "PixelRepresentation": (0x00280103, "US", True),
    "PixelPaddingValue": (0x00280120, "US or SS", True),
    "PixelPaddingRangeLimit": (0x00280121, "US or SS", True),
    "BurnedInAnnotation": (0x00280301, "CS", True),
    "PixelSpacingCalibrationType": (0x00280A02, "CS", True),
    "PixelIntensityRelationship": (0x00281040, "CS", True),
    "PixelIntensityRelationshipSign": (0x00281041, "SS", True),
    "WindowCenter": (0x00281050, "DS", False),
    "WindowWidth": (0x00281051, "DS", False),
    "RescaleIntercept": (0x00281052, "DS", True),
    "RescaleSlope": (0x00281053, "DS", True),
    "RescaleType": (0x00281054, "LO", True),
    "VOILUTFunction": (0x00281056, "CS", True),
    "LossyImageCompression": (0x00282110, "CS", True),
    "LossyImageCompressionRatio": (0x00282112, "DS", False),
    "LossyImageCompressionMethod": (0x00282114, "CS", False),
    "ModalityLUTSequence": (0x00283000, "SQ", True),
    "VOILUTSequence": (0x00283010, "SQ", True),
    "RealWorldValueMappingSequence": (0x00409096, "SQ", True),
    "NumberOfSlices": (0x00540081, "US", True),
    "NumberOfTimeSlices": (0x00540101, "US", True),
    "SeriesType": (0x00541000, "CS", False),
    "Units": (0x00541001, "CS", True),
    "SUVType": (0x00541006, "CS", True),
    "DecayCorrection": (0x00541102, "CS", True),
    "FrameReferenceTime": (0x00541300, "DS", True),
    "ImageIndex": (0x00541330, "US", True),
    "ContentLabel": (0x00700080, "CS", True),
    "PresentationLUTShape": (0x20500020, "CS", True),
    "SharedFunctionalGroupsSequence": (0x52009229, "SQ", True),
    "PerFrameFunctionalGroupsSequence": (0x52009230, "SQ", True),
    "OverlayRows": (0x60000010, "US", True),
    "ExtendedOffsetTable": (0x7FE00001, "OV", True),
    "FloatPixelData": (0x7FE00008, "OF", True),
    "DoubleFloatPixelData": (0x7FE00009, "OD", True),
}

IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
_DICOMDIR_CLASS = "1.2.840.10008.1.3.10"

_MEDIA_CLASS, _TRANSFER_SYNTAX, _VERSION_NAME = 0x00020002, 0x00020010, 0x00020013
_CHARSET, _SERIES, _PIXEL_REPRESENTATION = 0x00080005, 0x0020000E, 0x00280103
_OVERLAY_ROWS = 0x60000010
_PIXELS = 0x7FE00010
_ANY_PIXELS = frozenset((_PIXELS, 0x7FE00008, 0x7FE00009))
_UNDEFINED = 0xFFFFFFFF

_FIRST_READ = 16 << 10
_BLOCK = 1 << 20
_MAX_DEPTH = 64
_MAX_META_TEXT = 128
_MAX_VALUE = 16 << 10
_MAX_NUMBER = 64
_MEMO_ENTRIES, _MEMO_BYTES = 256, 128

_EXPLICIT = Struct("<HHHH").unpack_from
_IMPLICIT = Struct("<HHI").unpack_from
_LENGTH = Struct("<I").unpack_from


def _code(vr: str) -> int:
    return int.from_bytes(vr.encode("latin-1"), "little")


# PS3.5 section 7.1.2: with a 32-bit length the value starts after 12 bytes, otherwise after 8.
_LONG = ["OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"]
_SHORT = [
    "AE",
    "AS",
    "AT",
    "CS",
    "DA",
    "DS",
    "DT",
    "FD",
    "FL",
    "IS",
    "LO",
    "LT",
    "PN",
    "SH",
    "SL",
    "SS",
    "ST",
    "TM",
    "UI",
    "UL",
    "US",
]
_START = {_code(vr): 12 for vr in _LONG} | {_code(vr): 8 for vr in _SHORT}
_NAME = {_code(vr): vr for vr in (*_LONG, *_SHORT)}
_SQ, _UN = _code("SQ"), _code("UN")

_SIGNED_OR_NOT = "US or SS"
_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "FL": "f", "FD": "d", "UV": "Q", "SV": "q"}
_CHARSET_TEXT = frozenset(["LO", "SH", "LT", "ST", "UC", "UT", "PN"])
_WHOLE_TEXT = frozenset(["LT", "ST", "UT", "UR"])
_TEXT = _CHARSET_TEXT | _WHOLE_TEXT | frozenset(["AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI"])
# Where ISO 2022 goes back to the first character set (PS3.5 section 6.1.2.5.3).
_TEXT_DELIMITERS = {0x0D, 0x0A, 0x09, 0x0C}
_DECIMAL = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(rb"[+-]?[0-9]+")

_Found = dict[int, tuple[int, bytes]]


@dataclass(slots=True)
class _Want:
    keyword: str
    vr: str
    code: int
    single: bool
    memo: dict[bytes, Any] = field(default_factory=dict)
    """Values recur from slice to slice: what was read once is looked up."""


def _want(keywords: Mapping[str, tuple[int, str, bool]]) -> dict[int, _Want]:
    return {tag: _Want(keyword, vr, _code(vr), single) for keyword, (tag, vr, single) in keywords.items()}


_WANTED = _want(KEYWORDS)
# Overlays repeat in the even groups 6000 to 601E (PS3.3 C.9.2); that one is there is all that counts.
_WANTED |= {_OVERLAY_ROWS + (group << 16): _WANTED[_OVERLAY_ROWS] for group in range(2, 0x20, 2)}


@lru_cache(maxsize=8)
def _with(extra: tuple[tuple[str, tuple[int, str, bool]], ...]) -> dict[int, _Want]:
    return {**_WANTED, **_want(dict(extra))}


@dataclass(frozen=True)
class Skipped:
    """One entry of a source that is no instance, and why.

    Attributes:
        path: as in `Instance`.
        code: the fixed reason: `not-dicom`, `empty-file`, `dicomdir`, `no-series`, `damaged-header`, `header-too-large`,
            `not-a-file`, `unreadable`, or one of `mdcli.dicom.tree`.
        message: why, as a sentence about "it"; holds no text from the file.
        series_instance_uid: of the series that a damaged file belongs to, where that could still be read.
    """

    path: str
    code: str
    message: str
    series_instance_uid: str | None = None


class _OddError(Exception):
    """The small reader doesn't know this encoding."""


class _DamagedError(Exception):
    """The header contradicts itself or ends too early."""

    def __init__(self, message: str, code: str = "damaged-header") -> None:
        super().__init__(message)
        self.code = code


class _Head:
    """The first bytes of a file, read as far as asked.

    Attributes:
        data: what was read so far; once the end was seen, with 12 zeros behind, so that the walks may unpack an element's
            first bytes before they ask whether they are there.
        size: of the file, bytes; None until the end was seen.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self.data = b""
        self.size: int | None = None
        self._more(_FIRST_READ)

    def _more(self, wish: int) -> None:
        parts = [self.data]
        while wish > 0:
            part = self._read(wish)
            if not part:
                self.size = sum(map(len, parts))
                parts.append(bytes(12))
                break
            parts.append(part)
            wish -= len(part)
        self.data = b"".join(parts)

    @property
    def last(self) -> int:
        """The last position in the file at which an element's first 12 bytes can be unpacked."""
        return len(self.data) - 12 if self.size is None else self.size - 1

    def reach(self, end: int) -> bytes:
        """Return the data, with at least 12 bytes behind `end`, or all of the file.

        Raises:
            _DamagedError: where the file ends before `end`, or that is beyond `MAX_HEADER`.
        """
        if self.size is None and end + 12 > len(self.data):
            if end > MAX_HEADER:
                raise _DamagedError(f"its header is longer than {MAX_HEADER >> 20} MiB", "header-too-large")
            self._more(max(end + 12, 2 * len(self.data)) - len(self.data))
        if self.size is not None and end > self.size:
            raise _DamagedError("it ends within its header")
        return self.data

    def ends_at(self, position: int) -> bool:
        """Say whether the file ends there."""
        return self.size is not None and position >= self.size

    def some(self, end: int) -> bytes:
        """Return what the file has before `end`."""
        if self.size is None and end > len(self.data):
            self._more(end - len(self.data))
        return self.data[: end if self.size is None else min(end, self.size)]

    def hash_all(self) -> str:
        """Return the SHA-256 of the file's first `MAX_HASHED` bytes, which are then read and not kept."""
        digest = hashlib.sha256(self.some(len(self.data)))
        left = MAX_HASHED - len(self.data) if self.size is None else 0
        while left > 0 and (part := self._read(min(left, _BLOCK))):
            digest.update(part)
            left -= len(part)
        return digest.hexdigest()


def read_instance(
    source: Path | str | bytes | BinaryIO,
    name: str,
    extra: Mapping[str, tuple[int, str, bool]] | None = None,
    *,
    size: int | None = None,
) -> Instance | Skipped:
    """Read one file's header.

    Args:
        source: a path, the whole file's bytes, or an open binary file at its start.
        name: how the result names it: its path relative to the scanned root.
        extra: more attributes to read, as in `KEYWORDS`.
        size: of an open file, bytes, where it can't be sought.

    Returns:
        The instance, or why it is none. One value is itself, several are a list; text of a keyword of one value is never
        a list; a sequence, and pixel data that are no integers, count as True.
    """
    wanted = _with(tuple(extra.items())) if extra else _WANTED
    try:
        if isinstance(source, bytes):
            return _read(io.BytesIO(source).read, len(source), name, wanted)
        if not isinstance(source, (str, Path)):
            if size is None:
                size = source.seek(0, os.SEEK_END)
                source.seek(0)
            return _read(source.read, size, name, wanted)
        # A FIFO put there since the folder was listed must not make us wait.
        handle = os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                return Skipped(name, "not-a-file", "it is no regular file")
            return _read(lambda wish: os.read(handle, wish), status.st_size, name, wanted)
        finally:
            os.close(handle)
    except OSError as error:
        return Skipped(name, "unreadable", f"it can't be read: {error.strerror or type(error).__name__}")


def _read(read: Callable[[int], bytes], size: int, name: str, wanted: Mapping[int, _Want]) -> Instance | Skipped:
    head, found = _Head(read), _Found()
    if head.size == 0:
        return Skipped(name, "empty-file", "it is empty")
    data = head.data
    has_preamble = data[128:132] == b"DICM"
    if not has_preamble and data[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        return Skipped(name, "not-dicom", "it is not a DICOM file")
    try:
        return _instance(head, 132 if has_preamble else 0, size, name, wanted, found)
    except _DamagedError as error:
        series = found.get(KEYWORDS["SeriesInstanceUID"][0])
        if not has_preamble and series is None:
            return Skipped(name, "not-dicom", "it is not a DICOM file")
        uid = _text(series[1]) if series else None
        return Skipped(name, error.code, str(error), uid)


def _instance(
    head: _Head, position: int, size: int, name: str, wanted: Mapping[int, _Want], found: _Found
) -> Instance | Skipped:
    meta, position = _meta(head, position)
    if meta.get(_MEDIA_CLASS) == _DICOMDIR_CLASS:
        return Skipped(name, "dicomdir", "it is a directory of a file-set, not an instance")
    syntax = meta.get(_TRANSFER_SYNTAX) or _guessed_syntax(head.data, position)
    body = head
    if syntax == DEFLATED:
        body, position = _inflated(head, position), 0
    pixels = _walk(body, position, syntax, wanted, found)

    attributes = _attributes(found, wanted, little=syntax != EXPLICIT_BIG)
    if not attributes.get("SeriesInstanceUID"):
        if not meta:
            return Skipped(name, "not-dicom", "it is not a DICOM file")
        return Skipped(name, "no-series", "it names no series")
    attributes["TransferSyntaxUID"] = syntax
    if _VERSION_NAME in meta:
        attributes["ImplementationVersionName"] = meta[_VERSION_NAME] or None
    if pixels is None or body is not head:
        return Instance(name, size, None, None, head.hash_all(), attributes)
    offset, length = pixels
    digest = hashlib.sha256(memoryview(head.data)[:offset]).hexdigest()
    return Instance(name, size, offset, length, digest, attributes)


def _text(raw: bytes) -> str:
    return raw.decode("latin-1").strip(" \0")


def _meta(head: _Head, position: int) -> tuple[dict[int, str], int]:
    """Return the texts of the file meta information by tag, and where the data set starts."""
    meta: dict[int, str] = {}
    data, last = head.reach(position), head.last
    while position <= last:
        group, element, vr, length = _EXPLICIT(data, position)
        if group != 2:
            return meta, position
        if vr not in _START:
            raise _DamagedError("its meta information is not explicit VR little endian")
        value = position + _START[vr]
        if _START[vr] == 12:
            (length,) = _LENGTH(data, position + 8)
        position = value + length
        if position > last:
            data, last = head.reach(position), head.last
        tag = group << 16 | element
        if tag in (_MEDIA_CLASS, _TRANSFER_SYNTAX, _VERSION_NAME):
            if length > _MAX_META_TEXT:
                raise _DamagedError(f"its meta information holds a name of {length} bytes")
            meta[tag] = _text(data[value:position])
    raise _DamagedError("it ends after its meta information")


def _guessed_syntax(data: bytes, position: int) -> str:
    """Return the transfer syntax of a data set that doesn't say it, by how its first element looks."""
    if data[position : position + 2] == b"\0\x08":
        return EXPLICIT_BIG
    vr = int.from_bytes(data[position + 4 : position + 6], "little")
    return EXPLICIT_LITTLE if vr in _START else IMPLICIT_LITTLE


def _inflated(head: _Head, position: int) -> _Head:
    """Return a deflated data set (PS3.5 A.5), inflated as far as asked."""
    raw = head.some(MAX_DEFLATED)
    if not head.ends_at(len(raw)):
        raise _DamagedError(f"it is deflated and longer than {MAX_DEFLATED >> 20} MiB", "header-too-large")
    packed = io.BytesIO(raw[position:])
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)

    def read(wish: int) -> bytes:
        got = b""
        try:
            while not got and not inflater.eof:
                pending = inflater.unconsumed_tail or packed.read(_FIRST_READ)
                if not pending:
                    break
                got = inflater.decompress(pending, wish)
        except zlib.error as error:
            raise _DamagedError("its deflated data set is broken") from error
        return got

    return _Head(read)


# The walks return where the value of PixelData starts and how long it is (None: encapsulated), or None without PixelData.
_Pixels = tuple[int, int | None] | None


def _walk(head: _Head, position: int, syntax: str, wanted: Mapping[int, _Want], found: _Found) -> _Pixels:
    try:
        if syntax == EXPLICIT_BIG:
            raise _OddError
        walk = _walk_implicit if syntax == IMPLICIT_LITTLE else _walk_explicit
        return walk(head, position, wanted, found)
    except _OddError:
        found.clear()
        return _ask_pydicom(head, position, syntax, wanted, found)


def _walk_explicit(head: _Head, position: int, wanted: Mapping[int, _Want], found: _Found) -> _Pixels:
    data, last, before = head.reach(position), head.last, -1
    unpack, starts = _EXPLICIT, _START
    while True:
        group, element, vr, length = unpack(data, position)
        tag = group << 16 | element
        if tag <= before or vr not in starts:
            raise _odd(head, position)
        before = tag
        start = starts[vr]
        value = position + start
        if start == 12:
            (length,) = _LENGTH(data, position + 8)
            if tag in _ANY_PIXELS:
                return _at_pixels(head, tag, vr, value, length, found)
            if length == _UNDEFINED:
                if vr not in (_SQ, _UN):
                    raise _OddError
                position = _skip_items(head, value, implicit=vr == _UN)
                data, last, length = head.data, head.last, position - value - 8
            else:
                position = value + length
        else:
            position = value + length
        if position > last:
            data, last = head.reach(position), head.last
        if tag in wanted:
            found[tag] = (vr, data[value : value + length] if length <= _MAX_VALUE else _overlong(wanted[tag], length))
        if position > last:
            return None


def _walk_implicit(head: _Head, position: int, wanted: Mapping[int, _Want], found: _Found) -> _Pixels:
    data, last, before = head.reach(position), head.last, -1
    while True:
        group, element, length = _IMPLICIT(data, position)
        tag = group << 16 | element
        if tag <= before:
            raise _odd(head, position)
        before = tag
        value = position + 8
        if tag in _ANY_PIXELS:
            return _at_pixels(head, tag, 0, value, length, found)
        if length == _UNDEFINED:
            position = _skip_items(head, value, implicit=True)
            data, last, length = head.data, head.last, position - value - 8
        else:
            position = value + length
        if position > last:
            data, last = head.reach(position), head.last
        if tag in wanted:
            want = wanted[tag]
            found[tag] = (want.code, data[value : value + length] if length <= _MAX_VALUE else _overlong(want, length))
        if position > last:
            return None


def _odd(head: _Head, position: int) -> Exception:
    """Say what an element is that makes no sense: cut off, or in an encoding for pydicom."""
    if head.ends_at(position + 7):
        return _DamagedError("it ends within its header")
    return _OddError()


def _at_pixels(head: _Head, tag: int, vr: int, value: int, length: int, found: _Found) -> _Pixels:
    head.reach(value)
    if tag != _PIXELS:
        found[tag] = (vr, b"\1")
    return value, None if length == _UNDEFINED else length


def _overlong(want: _Want, length: int) -> bytes:
    """Stand for a value that is not kept: only what counts as present may be long."""
    if want.vr in _BINARY or want.vr in _TEXT or want.vr == _SIGNED_OR_NOT:
        raise _DamagedError(f"its {want.keyword} has {length} bytes")
    return b"\1"


def _skip_items(head: _Head, position: int, implicit: bool) -> int:
    """Return where a sequence of undefined length ends (PS3.5 section 7.5).

    Args:
        head: the file.
        position: of its first item.
        implicit: whether its items are in implicit VR, as those of UN are (PS3.5 section 6.2.2).
    """
    data, last = head.data, head.last
    # Sequence, item, sequence, item ... that are open and of undefined length, with the encoding of each.
    levels = [implicit]
    while levels:
        if position > last:
            data, last = head.reach(position), head.last
            if position > last:
                raise _DamagedError("it ends within its header")
        group, element, vr, length = _EXPLICIT(data, position)
        in_item = len(levels) % 2 == 0
        if group == 0xFFFE:
            (length,) = _LENGTH(data, position + 4)
            position += 8
            if element == 0xE000 and not in_item:
                if length == _UNDEFINED:
                    levels.append(levels[-1])
                else:
                    position += length
            elif element == (0xE00D if in_item else 0xE0DD):
                levels.pop()
            else:
                raise _OddError
            continue
        if not in_item:
            raise _OddError
        if levels[-1]:
            vr, start = _SQ, 8
            (length,) = _LENGTH(data, position + 4)
        elif vr not in _START:
            raise _OddError
        elif (start := _START[vr]) == 12:
            (length,) = _LENGTH(data, position + 8)
        position += start
        if length != _UNDEFINED:
            position += length
        elif vr not in (_SQ, _UN):
            raise _OddError
        elif len(levels) >= _MAX_DEPTH:
            raise _DamagedError(f"its sequences are nested deeper than {_MAX_DEPTH // 2}")
        else:
            levels.append(levels[-1] or vr == _UN)
    return position


def _ask_pydicom(head: _Head, position: int, syntax: str, wanted: Mapping[int, _Want], found: _Found) -> _Pixels:
    """Do the same by pydicom, for what the small reader doesn't know."""
    import warnings

    from pydicom.filereader import read_dataset

    data = head.some(position + MAX_ODD_HEADER)
    stream = io.BytesIO(data[position:])
    stops: list[tuple[int, int, int]] = []

    def is_pixels(tag: int, vr: str | None, length: int) -> bool:
        if tag in _ANY_PIXELS:
            stops.append((int(tag), position + stream.tell(), length))
        return tag in _ANY_PIXELS

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            implicit, little = syntax == IMPLICIT_LITTLE, syntax != EXPLICIT_BIG
            dataset = read_dataset(stream, implicit, little, stop_when=is_pixels, specific_tags=list(wanted))
            elements: list[Any] = [dataset.get_item(tag, keep_deferred=True) for tag in list(dataset.keys())]
    except Exception as error:  # pydicom raises many kinds on broken input; their texts may hold the patient's
        raise _DamagedError(f"neither md nor pydicom can read its header ({type(error).__name__})") from error
    for element in elements:
        tag, raw = int(element.tag), element.value
        if tag not in wanted:
            continue
        if not isinstance(raw, bytes):
            raw = b"\1" if raw else b""
        elif len(raw) != element.length:
            raise _DamagedError("it ends within its header")
        if len(raw) > _MAX_VALUE:
            raw = _overlong(wanted[tag], len(raw))
        found[tag] = (_code(element.VR) if element.VR else wanted[tag].code, raw)
    if stops:
        tag, value, length = stops[-1]
        return _at_pixels(head, tag, 0, value, length, found)
    if not head.ends_at(len(data)):
        raise _DamagedError(f"its header is longer than {MAX_ODD_HEADER >> 20} MiB", "header-too-large")
    if stream.tell() > len(data) - position:
        raise _DamagedError("it ends within its header")
    return None


def _attributes(found: _Found, wanted: Mapping[int, _Want], little: bool) -> dict[str, Any]:
    attributes: dict[str, Any] = {}
    for tag, (code, raw) in found.items():
        want = wanted[tag]
        memo = want.memo
        if little and code == want.code and raw in memo:
            value = memo[raw]
        else:
            value = _value(want, code, raw, little, found)
            if little and code == want.code and len(raw) <= _MEMO_BYTES and want.vr != _SIGNED_OR_NOT and raw.isascii():
                if len(memo) >= _MEMO_ENTRIES:
                    memo.clear()
                memo[raw] = value
        attributes[want.keyword] = list(value) if type(value) is tuple else value
    return attributes


def _value(want: _Want, code: int, raw: bytes, little: bool, found: _Found) -> Any:
    """Return a value as Python has it: None, a number, text, True, or a tuple of them."""
    vr = want.vr
    if vr == _SIGNED_OR_NOT:
        given = _NAME.get(code)
        representation = int.from_bytes(found.get(_PIXEL_REPRESENTATION, (0, b""))[1], "little" if little else "big")
        vr = given if given in ("US", "SS") else "SS" if representation == 1 else "US"
    elif vr not in _BINARY and vr not in _TEXT:
        return True if raw else None
    else:
        vr = _believed(vr, _NAME.get(code, "UN"))
    if vr in _BINARY:
        return _one_or_more(_binary_numbers(raw, vr, little))
    if vr not in ("DS", "IS"):
        return _one_or_more(_texts(raw, vr, want.single, found))
    text = raw.strip(b" \0")
    number = _decimal if vr == "DS" else _integer
    return _one_or_more([number(part.strip(b" \0")) for part in text.split(b"\\")] if text else [])


def value_of(
    vr: str, raw: bytes, given: str = "", *, single: bool = False, little: bool = True, charset: bytes = b""
) -> Any:
    """Return the value of an element that lies deeper than `read_instance` looks, as that returns it.

    Args:
        vr: that the dictionary gives.
        raw: the value's bytes.
        given: the VR that the file gives, empty where it gives none.
        single: one value only.
        little: little endian.
        charset: SpecificCharacterSet of the data set, as its bytes.
    """
    code = _code(given) if given in _BINARY or given in _TEXT else _code(vr)
    value = _value(_Want("", vr, _code(vr), single), code, raw, little, {_CHARSET: (0, charset)})
    return list(value) if type(value) is tuple else value


def _believed(vr: str, given: str) -> str:
    """Return the VR to read by: the dictionary's, unless the file's own is of another nature (PS3.6; wrong VRs are common)."""
    if given in _BINARY and (vr in _BINARY or vr in ("DS", "IS")):
        same = vr in _BINARY and _BINARY[vr].lower() == _BINARY[given].lower()
        return vr if same else given
    if given in _TEXT and vr in _BINARY:
        return "DS" if vr in ("FL", "FD") else "IS"
    return vr


def _one_or_more(values: list[Any]) -> Any:
    if not values:
        return None
    return tuple(values) if len(values) > 1 else values[0]


def _binary_numbers(raw: bytes, vr: str, little: bool) -> list[Any]:
    form = Struct(("<" if little else ">") + _BINARY[vr])
    if len(raw) % form.size:
        return [raw.decode("latin-1")]
    values = [value for (value,) in form.iter_unpack(raw)]
    return [value if math.isfinite(value) else str(value) for value in values]


def _decimal(text: bytes) -> float | str | None:
    # Python's float() also takes "nan", "inf" and "1_000", which are no DS (PS3.5 table 6.2-1).
    if not text:
        return None
    if len(text) <= _MAX_NUMBER and _DECIMAL.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text.decode("latin-1")


def _integer(text: bytes) -> int | str | None:
    if len(text) <= _MAX_NUMBER and _INTEGER.fullmatch(text):
        return int(text)
    number = _decimal(text)
    return (
        int(number)
        if isinstance(number, float) and number.is_integer() and abs(number) < 2**53
        else text.decode("latin-1") or None
    )


def _texts(raw: bytes, vr: str, single: bool, found: _Found) -> list[str]:
    plain = vr not in _CHARSET_TEXT or (raw.isascii() and b"\x1b" not in raw)
    text = (raw.decode("latin-1") if plain else _decoded(raw, found)).strip(" \0")
    # Text of one value stays one, whatever is in it: a UID is always a str.
    if single or vr in _WHOLE_TEXT:
        return [text] if text else []
    return [part.strip(" \0") for part in text.split("\\")] if text else []


def _decoded(raw: bytes, found: _Found) -> str:
    """Decode by SpecificCharacterSet (PS3.3 C.12.1.1.2); what it can't be is replaced, never an error."""
    import warnings

    from pydicom.charset import convert_encodings, decode_bytes

    names = found.get(_CHARSET, (0, b""))[1].decode("latin-1").split("\\")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            text: str = decode_bytes(raw, convert_encodings([name.strip(" \0") for name in names]), _TEXT_DELIMITERS)
        except Exception:  # whatever an unknown character set does inside pydicom, the text is not worth failing for
            text = raw.decode("utf-8", "replace")
    return text
