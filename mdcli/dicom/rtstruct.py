"""Read an RT Structure Set, and put its contours on the slices of a volume.

Source: DICOM PS3.3 C.8.8.5 (Structure Set), C.8.8.6 (ROI Contour), C.8.8.8 (RT ROI Observations).
"""

from __future__ import annotations

import os
import re
import stat
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.codes import checked_code
from mdcli.dicom.finding import Finding
from mdcli.dicom.headers import DEFLATED, EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE, value_of
from mdcli.dicom.nested import Block as Item
from mdcli.dicom.nested import Element, Header
from mdcli.dicom.opening import shown
from mdcli.errors import DataError, MissingError
from mdcli.imaging import contours as flat

SOP_CLASS_UID = "1.2.840.10008.5.1.4.1.1.481.3"
MAX_FILE = 512 << 20
"""Bytes of a file, inflated where deflated."""
PLANE_OFF_MM = 0.01
"""How far a contour may lie from its slice's own plane ..."""
PLANE_OFF_SPACING = 0.10
"""... and this fraction of the distance between slices, added."""
FARTHEST_MM = 1e6
"""A coordinate beyond this is none of a patient's."""
CLOSED = "CLOSED_PLANAR"
XOR = "CLOSEDPLANAR_XOR"
OPEN = ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR")
ALGORITHMS = ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL")

_MOST_ITEMS = 1 << 20
# As many as a label map has values.
_MOST_ROIS = 65535
_MOST_TEXT = 1024
_NAMED = 8
_PARALLEL_DEGREES = 0.5
_AXIS_DEGREES = 20.0
_NUMBERS = b"0123456789+-.eE\\ \n\r\t"

_CHARSET, _CLASS, _INSTANCE, _STUDY = 0x00080005, 0x00080016, 0x00080018, 0x0020000D
_FRAME = 0x00200052
_FRAMES, _STUDIES, _SERIES_ITEMS, _SERIES = 0x30060010, 0x30060012, 0x30060014, 0x0020000E
_ROIS, _ROI_NUMBER, _ROI_FRAME, _ROI_NAME, _ALGORITHM = 0x30060020, 0x30060022, 0x30060024, 0x30060026, 0x30060036
_ROI_CONTOURS, _COLOUR, _CONTOURS, _OF_ROI = 0x30060039, 0x3006002A, 0x30060040, 0x30060084
_KIND, _COUNT, _DATA, _IMAGES, _IMAGE = 0x30060042, 0x30060046, 0x30060050, 0x30060016, 0x00081155
_OBSERVATIONS, _INTERPRETED, _CODES = 0x30060080, 0x300600A4, 0x30060086
_CODE = {
    0x00080100: ("value", "SH"),
    0x00080102: ("scheme", "SH"),
    0x00080103: ("version", "SH"),
    0x00080104: ("meaning", "LO"),
    0x00080119: ("value", "UC"),
}
_META = Struct("<HH2sH").unpack_from
_META_LONG = Struct("<I").unpack_from


@dataclass(frozen=True)
class Contour:
    """One contour as it is written.

    Attributes:
        number: within its ROI, from 1, in the order of the file.
        kind: ContourGeometricType.
        points: (points, 3), mm, LPS+.
        images: the SOPInstanceUIDs that it says it was drawn on.
    """

    number: int
    kind: str
    points: NDArray[np.float64]
    images: tuple[str, ...] = ()


@dataclass(frozen=True)
class Roi:
    """One region of interest.

    Attributes:
        number: ROINumber.
        name: ROIName, control characters escaped, or `ROI` and the number where it has none.
        frame_of_reference_uid: that its coordinates are in; None where nothing says.
        algorithm: AUTOMATIC, SEMIAUTOMATIC or MANUAL; None where the file says none of them.
        colour: red, green, blue, 0 to 255; None where there is none.
        interpreted_type: RTROIInterpretedType, such as ORGAN; None where it is empty.
        code: RTROIIdentificationCodeSequence as `segments.json` has codes; None without one.
        contours: in the order of the file; none for a ROI that is only described.
    """

    number: int
    name: str
    frame_of_reference_uid: str | None = None
    algorithm: str | None = None
    colour: tuple[int, int, int] | None = None
    interpreted_type: str | None = None
    code: Mapping[str, str] | None = None
    contours: tuple[Contour, ...] = ()


@dataclass(frozen=True)
class StructureSet:
    """What an RTSTRUCT holds.

    Attributes:
        sop_instance_uid: of the object.
        study_instance_uid: of the object.
        series_instance_uids: of the images that it names.
        rois: in the order of StructureSetROISequence.
        findings: what a person may want to know.
    """

    sop_instance_uid: str | None
    study_instance_uid: str | None
    series_instance_uids: tuple[str, ...]
    rois: tuple[Roi, ...]
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Grid:
    """The slices of a volume.

    Attributes:
        shape: (k, j, i).
        affine: 4x4, voxel index (i, j, k, 1) to mm, LPS+.
        positions: (k, 3), the centre of each slice's first voxel, mm, LPS+.
        images: SOPInstanceUID to the slices made of that instance.
        frame_of_reference_uid: of the images; None where nothing says.
        series_instance_uid: of the images; None where there are none.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    positions: NDArray[np.float64]
    images: Mapping[str, frozenset[int]] = field(default_factory=dict)
    frame_of_reference_uid: str | None = None
    series_instance_uid: str | None = None

    @cached_property
    def normal(self) -> NDArray[np.float64]:
        """Return the unit vector at right angles to the slices, to the side of the higher k."""
        across = np.cross(self.affine[:3, 0], self.affine[:3, 1])
        across = across / np.linalg.norm(across)
        return across if across @ self.affine[:3, 2] >= 0 else -across

    @cached_property
    def to_plane(self) -> NDArray[np.float64]:
        """Return the 3x3 that takes (x, y, z) mm to columns, rows and millimetres along the normal."""
        axes = np.column_stack([self.affine[:3, 0], self.affine[:3, 1], self.normal])
        found: NDArray[np.float64] = np.linalg.inv(axes)
        return found

    @cached_property
    def in_mm(self) -> NDArray[np.float64]:
        """Return the 2x2 that takes columns and rows to millimetres along two directions at right angles in the plane."""
        across = self.affine[:3, 0] / np.linalg.norm(self.affine[:3, 0])
        return np.stack([across, np.cross(self.normal, across)]) @ self.affine[:3, :2]

    @property
    def spacing_mm(self) -> float:
        """Return the distance between slices along the normal."""
        return float(self.normal @ self.affine[:3, 2])

    @property
    def tolerance_mm(self) -> float:
        """Return how far a contour may lie from its slice's own plane."""
        return PLANE_OFF_MM + PLANE_OFF_SPACING * self.spacing_mm


@dataclass(frozen=True)
class Placed:
    """A ROI on the slices of a volume.

    Attributes:
        roi: as it is written.
        contours: those that make voxels, each (points, 2): voxel index (i, j).
        planes: the slice k of each.
        holes: contours that lie inside another one and are holes or, with `union`, counted for nothing; islands in holes too.
        crossing: contours that cross themselves.
        left_out: why to how many: the open kinds, and `flat` for a contour that encloses nothing.
        outside: contours on planes beyond the volume, or beside it.
        cut: contours that reach beyond the volume's columns or rows.
        without: slices k without a contour between the first and the last one with one.
        dangling: SOPInstanceUIDs that contours refer to and the volume does not have.
        elsewhere: contours that refer to another slice than they lie on.
    """

    roi: Roi
    contours: tuple[NDArray[np.float64], ...] = ()
    planes: tuple[int, ...] = ()
    holes: int = 0
    crossing: int = 0
    left_out: Mapping[str, int] = field(default_factory=dict)
    outside: int = 0
    cut: int = 0
    without: tuple[int, ...] = ()
    dangling: frozenset[str] = frozenset()
    elsewhere: int = 0


# Reading


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        MissingError: `no-source` where it is not there.
        DataError: `not-rtstruct` for what is no regular file or empty; `rtstruct-broken` beyond `MAX_FILE`; `unreadable`.
    """
    try:
        # A FIFO must not make us wait.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError("no-source", f"the RTSTRUCT {shown(path.name)} is not there") from None
    except OSError as error:
        raise DataError("unreadable", f"{shown(path.name)} can't be opened: {error.strerror}") from error
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            raise DataError("not-rtstruct", f"{shown(path.name)} is no regular file, or empty")
        if status.st_size > MAX_FILE:
            raise DataError("rtstruct-broken", f"{shown(path.name)} is larger than {MAX_FILE >> 20} MiB")
        return file.read(MAX_FILE)


def read_structure_set(data: bytes, name: str) -> StructureSet:
    """Read an RTSTRUCT.

    Args:
        data: the whole file.
        name: how errors show it.

    Returns:
        Its regions, every coordinate finite.

    Raises:
        DataError: `not-rtstruct`; `rtstruct-broken` where parts are missing or contradict each other; `bad-contour` for coordinates
            that are no finite numbers or beyond `FARTHEST_MM`, not three a point, or not as many as NumberOfContourPoints says;
            `damaged-header`.
    """
    header = _open(data, name)
    wanted = {_CHARSET, _CLASS, _INSTANCE, _STUDY, _FRAMES, _ROIS, _ROI_CONTOURS, _OBSERVATIONS}
    top = header.elements(header.top, wanted)
    file = _File(header, header.raw(top[_CHARSET]) if _CHARSET in top else b"")
    sop_class = file.text(top, _CLASS, "UI")
    if sop_class != SOP_CLASS_UID:
        what = _class_name(sop_class)
        raise DataError("not-rtstruct", f"{name} is no RT Structure Set but {what}", hint="--rtstruct names the file")
    rois = _rois(file, top)
    series, frames = _referenced(file, top)
    only = frames[0] if len(frames) == 1 else None
    observed = _observations(file, top)
    drawn, unknown = _drawn(file, top, rois)
    findings = list(file.findings)
    if unknown:
        listed = ", ".join(map(str, unknown[:_NAMED]))
        message = f"contours are there for ROI numbers that nothing describes: {listed}; they are left out"
        findings.append(Finding("undescribed-roi", message, {"numbers": unknown}))
    made = []
    for number, roi in rois.items():
        colour, found = drawn.get(number, (None, ()))
        interpreted, code = observed.get(number, (None, None))
        made.append(
            Roi(
                number,
                roi.name,
                roi.frame_of_reference_uid or only,
                roi.algorithm,
                colour,
                interpreted,
                _usable(code, roi.name, findings),
                found,
            )
        )
    return StructureSet(
        file.text(top, _INSTANCE, "UI"), file.text(top, _STUDY, "UI"), series, tuple(made), tuple(findings)
    )


def _open(data: bytes, name: str) -> Header:
    """Return the data set of a file, inflated where it is deflated."""
    start = 132 if data[128:132] == b"DICM" else 0
    if not start and data[:2] not in (b"\x02\0", b"\x08\0", b"\0\x08"):
        raise DataError("not-rtstruct", f"{name} is not a DICOM file")
    syntax = None
    while start + 12 <= len(data):
        group, element, vr, length = _META(data, start)
        if group != 2:
            break
        value = start + 8
        if vr in (b"OB", b"UN", b"OW", b"SQ", b"UT"):
            (length,), value = _META_LONG(data, value), start + 12
        if element == 0x0010:
            syntax = data[value : value + length].decode("latin-1").strip(" \0")
        start = value + length
    if start >= len(data):
        raise DataError("rtstruct-broken", f"{name} ends within its meta information")
    if syntax is None:
        explicit = data[start + 4 : start + 6].isalpha()
        big = data[start : start + 2] == b"\0\x08"
        syntax = EXPLICIT_BIG if big else EXPLICIT_LITTLE if explicit else IMPLICIT_LITTLE
    if syntax == DEFLATED:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data, start = inflater.decompress(data[start:], MAX_FILE), 0
        except zlib.error:
            raise DataError("rtstruct-broken", f"the deflated data set of {name} is broken") from None
        if inflater.unconsumed_tail:
            raise DataError("rtstruct-broken", f"{name} is larger than {MAX_FILE >> 20} MiB when it is inflated")
    top = Item(start, len(data), syntax == IMPLICIT_LITTLE)
    return Header(name, data, top, little=syntax != EXPLICIT_BIG)


class _File:
    """An open RTSTRUCT: its header, its character set, and what there is to say about its text."""

    def __init__(self, header: Header, charset: bytes) -> None:
        self.header, self.charset = header, charset
        self.findings: list[Finding] = []

    def items(self, found: Mapping[int, Element], tag: int) -> list[Item]:
        """Return the items of a sequence; none where it is not there."""
        most = _MOST_ROIS if tag in (_ROIS, _ROI_CONTOURS, _OBSERVATIONS) else _MOST_ITEMS
        return self.header.items(found[tag], most) if tag in found else []

    def text(self, found: Mapping[int, Element], tag: int, vr: str) -> str | None:
        """Return one text, None where it is not there or empty."""
        if tag not in found:
            return None
        raw = self.header.raw(found[tag])
        if len(raw) > _MOST_TEXT:
            raise self.broken(f"holds a text of {len(raw)} bytes")
        if raw.isascii() and b"\x1b" not in raw:
            return raw.decode("ascii").strip(" \0") or None
        return str(value_of(vr, raw, single=True, charset=self.charset) or "") or None

    def whole(self, found: Mapping[int, Element], tag: int, what: str) -> int:
        """Return one whole number, or refuse the file."""
        raw = self.header.raw(found[tag]).strip(b" \0") if tag in found else b""
        if not re.fullmatch(rb"[+-]?[0-9]{1,12}", raw):
            raise self.broken(f"has {what} that is no whole number")
        return int(raw)

    def broken(self, what: str) -> DataError:
        return DataError("rtstruct-broken", f"{self.header.name} {what}")


def _class_name(uid: str | None) -> str:
    from pydicom.config import IGNORE
    from pydicom.uid import UID

    if uid is None:
        return "an object without SOPClassUID"
    return shown(UID(uid, validation_mode=IGNORE).name)


def _rois(file: _File, top: Mapping[int, Element]) -> dict[int, Roi]:
    """Return what StructureSetROISequence says, by ROINumber."""
    found: dict[int, Roi] = {}
    for item in file.items(top, _ROIS):
        parts = file.header.elements(item, {_ROI_NUMBER, _ROI_FRAME, _ROI_NAME, _ALGORITHM})
        number = file.whole(parts, _ROI_NUMBER, "a ROINumber")
        if number in found:
            raise file.broken(f"describes ROI number {number} twice")
        name = file.text(parts, _ROI_NAME, "LO")
        _look_at_name(file, number, name, parts)
        algorithm = file.text(parts, _ALGORITHM, "CS")
        found[number] = Roi(
            number,
            "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name) if name else f"ROI {number}",
            file.text(parts, _ROI_FRAME, "UI"),
            algorithm if algorithm in ALGORITHMS else None,
        )
    return found


def _look_at_name(file: _File, number: int, name: str | None, parts: Mapping[int, Element]) -> None:
    if name is None:
        file.findings.append(Finding("no-roi-name", f"ROI number {number} has no name: called ROI {number}"))
    elif "\ufffd" in name:
        message = f"the name of ROI number {number} can't be decoded by the character set that the file names"
        file.findings.append(Finding("undecodable-name", message, {"number": number}))
    elif file.charset.strip(b" \0") in (b"", b"ISO_IR 6") and not file.header.raw(parts[_ROI_NAME]).isascii():
        message = f"the name of ROI number {number} goes beyond ASCII, and the file names no character set"
        file.findings.append(Finding("undeclared-characters", message, {"number": number}))


def _referenced(file: _File, top: Mapping[int, Element]) -> tuple[tuple[str, ...], list[str]]:
    """Return the series and the frames of reference that ReferencedFrameOfReferenceSequence names."""
    series: list[str] = []
    frames: list[str] = []
    for item in file.items(top, _FRAMES):
        parts = file.header.elements(item, {_FRAME, _STUDIES})
        frame = file.text(parts, _FRAME, "UI")
        frames += [frame] if frame else []
        for study in file.items(parts, _STUDIES):
            for entry in file.items(file.header.elements(study, {_SERIES_ITEMS}), _SERIES_ITEMS):
                uid = file.text(file.header.elements(entry, {_SERIES}), _SERIES, "UI")
                series += [uid] if uid else []
    return tuple(dict.fromkeys(series)), list(dict.fromkeys(frames))


def _observations(file: _File, top: Mapping[int, Element]) -> dict[int, tuple[str | None, Mapping[str, str] | None]]:
    """Return RTROIInterpretedType and the code of each ROI, by its number."""
    found: dict[int, tuple[str | None, Mapping[str, str] | None]] = {}
    for item in file.items(top, _OBSERVATIONS):
        parts = file.header.elements(item, {_OF_ROI, _INTERPRETED, _CODES})
        if _OF_ROI not in parts:
            continue
        code = None
        for entry in file.items(parts, _CODES)[:1]:
            pieces = file.header.elements(entry, _CODE)
            texts = {_CODE[tag][0]: file.text(pieces, tag, _CODE[tag][1]) for tag in pieces}
            code = {key: text for key, text in texts.items() if text}
        number = file.whole(parts, _OF_ROI, "a ReferencedROINumber")
        before = found.get(number, (None, None))
        found[number] = before[0] or file.text(parts, _INTERPRETED, "CS"), before[1] or code
    return found


def _usable(code: Mapping[str, str] | None, name: str, findings: list[Finding]) -> Mapping[str, str] | None:
    """Return a code that may be written again, or None and a warning."""
    if not code:
        return None
    try:
        findings += checked_code(code, shown(name))[1]
    except DataError as error:
        message = f"the code of {shown(name)} is left out: {error.message}"
        findings.append(Finding("code-left-out", message))
        return None
    return code


def _drawn(
    file: _File, top: Mapping[int, Element], rois: Iterable[int]
) -> tuple[dict[int, tuple[tuple[int, int, int] | None, tuple[Contour, ...]]], list[int]]:
    """Return colour and contours of each ROI, by its number, and the numbers that no ROI has."""
    known = set(rois)
    found: dict[int, tuple[tuple[int, int, int] | None, tuple[Contour, ...]]] = {}
    unknown: list[int] = []
    for item in file.items(top, _ROI_CONTOURS):
        parts = file.header.elements(item, {_COLOUR, _CONTOURS, _OF_ROI})
        number = file.whole(parts, _OF_ROI, "a ReferencedROINumber")
        if number not in known:
            unknown.append(number)
            continue
        if number in found:
            raise file.broken(f"has two sets of contours for ROI number {number}")
        drawn = tuple(_contour(file, number, n, c) for n, c in enumerate(file.items(parts, _CONTOURS), start=1))
        found[number] = _colour(file, parts), drawn
    return found, unknown


def _colour(file: _File, parts: Mapping[int, Element]) -> tuple[int, int, int] | None:
    values = (file.text(parts, _COLOUR, "IS") or "").split("\\")
    if len(values) != 3 or not all(re.fullmatch(r" *[0-9]{1,3} *", value) for value in values):
        return None
    red, green, blue = (int(value) for value in values)
    return (red, green, blue) if max(red, green, blue) <= 255 else None


def _contour(file: _File, roi: int, number: int, item: Item) -> Contour:
    parts = file.header.elements(item, {_KIND, _COUNT, _DATA, _IMAGES})
    where = f"contour {number} of ROI number {roi}"
    kind = file.text(parts, _KIND, "CS")
    if kind not in (CLOSED, XOR, *OPEN):
        text = "has no ContourGeometricType" if kind is None else f"is of the unknown kind {shown(kind)}"
        raise DataError("bad-contour", f"{where} {text}")
    values = _coordinates(file.header.raw(parts[_DATA]) if _DATA in parts else b"", where)
    if len(values) % 3:
        raise DataError("bad-contour", f"{where} has {len(values)} coordinates, not three a point")
    stated = file.whole(parts, _COUNT, f"NumberOfContourPoints in {where}") if _COUNT in parts else None
    if stated is not None and stated != len(values) // 3:
        message = f"{where} has {len(values) // 3} points; NumberOfContourPoints says {stated}"
        raise DataError("bad-contour", message, found=len(values) // 3, stated=stated)
    images = []
    for entry in file.items(parts, _IMAGES):
        uid = file.text(file.header.elements(entry, {_IMAGE}), _IMAGE, "UI")
        images += [uid] if uid else []
    return Contour(number, kind, values.reshape(-1, 3), tuple(images))


def _coordinates(raw: bytes, where: str) -> NDArray[np.float64]:
    """Return the numbers of a decimal string of any length: pydicom would make an object of each."""
    text = raw.strip(b" \0\n\r\t")
    if not text:
        return np.zeros(0)
    # numpy takes a blank between two separators for a number.
    odd = text.translate(None, _NUMBERS) or b"\\\\" in text.translate(None, b" \n\r\t")
    values = np.zeros(0)
    if not odd:
        with warnings.catch_warnings():
            # numpy says with a warning that it stopped before the end.
            warnings.simplefilter("error")
            try:
                values = np.fromstring(text, np.float64, sep="\\")
            except (ValueError, DeprecationWarning):
                values = np.zeros(0)
    if odd or len(values) != text.count(b"\\") + 1 or not np.isfinite(values).all():
        raise DataError("bad-contour", f"{where} has a coordinate that is no finite number")
    if np.abs(values).max() > FARTHEST_MM:
        raise DataError("bad-contour", f"{where} has a coordinate of {np.abs(values).max():.3g} mm")
    return values


# Choosing


def choose(rois: Sequence[Roi], names: Sequence[str]) -> list[Roi]:
    """Return the ROIs of these exact names, in the order of the file; all where no name is given.

    Raises:
        DataError: `no-roi` for a file without any; `no-such-roi`, with the names that there are.
    """
    if not rois:
        raise DataError("no-roi", "the RTSTRUCT describes no ROI")
    have = {roi.name for roi in rois}
    for name in names:
        if name not in have:
            listed = ", ".join(shown(roi.name) for roi in rois[:40])
            more = f" and {len(rois) - 40} more" if len(rois) > 40 else ""
            raise DataError("no-such-roi", f"there is no ROI named {shown(name)}", hint=f"there are {listed}{more}")
    return [roi for roi in rois if not names or roi.name in names]


def check_frame(rois: Sequence[Roi], grid: Grid, *, assume_registered: bool) -> list[Finding]:
    """Check that the ROIs are in the volume's frame of reference.

    Where one of the two names no frame, contours that all refer to images of the volume say the same.

    Raises:
        DataError: `frames-of-reference-differ`.
    """
    for roi in rois:
        theirs, ours = roi.frame_of_reference_uid, grid.frame_of_reference_uid
        if not roi.contours or (theirs is not None and theirs == ours):
            continue
        named = {uid for contour in roi.contours for uid in contour.images}
        unknown = theirs is None or ours is None
        if unknown and named and named <= set(grid.images) and all(contour.images for contour in roi.contours):
            continue
        message = (
            f"ROI {shown(roi.name)} is in the frame of reference {shown(theirs) if theirs else 'unknown'}, "
            f"the volume in {shown(ours) if ours else 'unknown'}"
        )
        if assume_registered:
            return [Finding("assumed-registered", f"{message}: taken as the same on request")]
        hint = "--assume-registered takes them as the same, and the result says so"
        raise DataError("frames-of-reference-differ", message, hint=hint)
    return []


# Placing


def grid_of(geometry: Mapping[str, Any]) -> Grid:
    """Return the slices that `geometry.json` describes; a 4-D volume's are those of its spatial grid.

    Raises:
        DataError: `no-position` for an image that has no plane in the patient; `bad-artifact`.
    """
    plane = geometry.get("spacing_plane", "patient")
    if plane != "patient":
        text = f"contours are in the patient's millimetres, the image's plane is {shown(str(plane))}"
        raise DataError("no-position", text)
    try:
        k, j, i = (int(v) for v in geometry["shape"])
        affine = np.array(geometry["affine_lps"], np.float64).reshape(4, 4)
        positions = affine[:3, 3] + np.arange(k)[:, None] * affine[:3, 2]
        images: dict[str, set[int]] = {}
        resampled = bool(geometry.get("resampled"))
        for entry in reversed(geometry["slices"]):
            # A resampled volume does not lie on the planes of its sources, which any of its slices may be made of.
            images.setdefault(str(entry["sop_instance_uid"]), set()).update(
                range(k) if resampled else [int(entry["k"])]
            )
            if not resampled:
                positions[entry["k"]] = np.array(entry["position_mm"], np.float64).reshape(3)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        message = f"geometry.json has not the form that it should have ({type(error).__name__})"
        raise DataError("bad-artifact", message) from error
    if not (np.isfinite(affine).all() and np.isfinite(positions).all() and abs(np.linalg.det(affine)) > 0):
        raise DataError("bad-artifact", "geometry.json has an affine or a position that places nothing")
    return Grid(
        (k, j, i),
        affine,
        positions,
        {uid: frozenset(ks) for uid, ks in images.items()},
        geometry.get("frame_of_reference_uid"),
        geometry.get("series_instance_uid"),
    )


def place(roi: Roi, grid: Grid, *, union: bool = False) -> Placed:
    """Put the contours of a ROI on the slices of a volume.

    Args:
        roi: as it was read.
        grid: of the volume.
        union: a CLOSED_PLANAR contour inside another adds nothing, where it is a hole otherwise.

    Returns:
        The contours by slice, in voxel coordinates of the slice's own plane: even-odd over them gives the voxels.

    Raises:
        DataError: `contour-off-plane`, `contour-across-slices`, `contour-not-planar`; `contours-overlap` and `duplicate-contours`;
            `mixed-contour-types`; `bad-contour` for a point that is absurdly far away.

    Source: DICOM PS3.3 C.8.8.6.1 and C.8.8.6.3, what the geometric types mean, and that a ROI is CLOSEDPLANAR_XOR as a whole.
    """
    left_out: Counter[str] = Counter()
    closed = []
    for contour in roi.contours:
        if contour.kind in OPEN:
            left_out[contour.kind] += 1
        elif len(contour.points) < 3:
            left_out["flat"] += 1
        else:
            closed.append(contour)
    kinds = {contour.kind for contour in closed}
    if len(kinds) > 1:
        raise DataError("mixed-contour-types", f"ROI {shown(roi.name)} mixes {CLOSED} and {XOR} contours")
    lying, outside = _on_slices(roi, closed, grid)
    metric = _metric([one.ij for one in lying], grid)
    solid = [n for n, corners in enumerate(metric) if len(corners)]
    left_out["flat"] += len(lying) - len(solid)
    edge = np.array([grid.shape[2], grid.shape[1]]) - 0.5
    reach = {n: (lying[n].ij.min(axis=0), lying[n].ij.max(axis=0)) for n in solid}
    inside = [n for n, (low, high) in reach.items() if (high >= -0.5).all() and (low <= edge).all()]
    cut = sum(bool((reach[n][0] < -0.5).any() or (reach[n][1] > edge).any()) for n in inside)
    planes = [lying[n].k for n in inside]
    corners = [metric[n] for n in inside]
    depths = np.zeros(len(inside), np.int64) if XOR in kinds else _depths(roi, corners, planes)
    used = [n for n, depth in enumerate(depths) if not (union and depth)]
    there = sorted(set(planes))
    named = {uid for contour in closed for uid in contour.images}
    elsewhere = sum(
        any(uid in grid.images and one.k not in grid.images[uid] for uid in one.contour.images) for one in lying
    )
    return Placed(
        roi,
        tuple(lying[inside[n]].ij for n in used),
        tuple(planes[n] for n in used),
        int((depths > 0).sum()),
        int(flat.crosses_itself(corners).sum()),
        {why: count for why, count in left_out.items() if count},
        outside + len(solid) - len(inside),
        cut,
        tuple(sorted(set(range(there[0], there[-1])) - set(there))) if there else (),
        frozenset(named - set(grid.images)),
        elsewhere,
    )


@dataclass(frozen=True)
class _Lying:
    """A contour on a slice k: its points, (points, 2), as voxel index (i, j) of the slice's own plane."""

    contour: Contour
    k: int
    ij: NDArray[np.float64]


def _on_slices(roi: Roi, contours: Sequence[Contour], grid: Grid) -> tuple[list[_Lying], int]:
    """Return the contours on their slices, and how many lie on planes beyond the volume."""
    if not contours:
        return [], 0
    ends = np.cumsum([len(contour.points) for contour in contours])
    starts = np.concatenate([[0], ends[:-1]])
    points = (np.concatenate([contour.points for contour in contours]) - grid.positions[0]) @ grid.to_plane.T
    slices = (grid.positions - grid.positions[0]) @ grid.to_plane.T
    lows, highs = np.minimum.reduceat(points[:, 2], starts), np.maximum.reduceat(points[:, 2], starts)
    planes = _planes(roi, contours, lows, highs, slices[:, 2], grid)
    lying = [
        _Lying(contour, k, points[a:b, :2] - slices[k, :2])
        for contour, k, a, b in zip(contours, planes, starts.tolist(), ends.tolist(), strict=True)
        if k is not None
    ]
    return lying, len(contours) - len(lying)


def _planes(
    roi: Roi,
    contours: Sequence[Contour],
    lows: NDArray[np.float64],
    highs: NDArray[np.float64],
    slices: NDArray[np.float64],
    grid: Grid,
) -> list[int | None]:
    """Return the slice k of each contour, None for one on a plane beyond the volume.

    Args:
        roi: that the contours are of.
        contours: n closed ones.
        lows: n, how far the lowest point of each lies along the normal, mm.
        highs: n, the same of the highest.
        slices: the same of each slice.
        grid: of the volume.
    """
    middles = (lows + highs) / 2
    order = np.argsort(slices)
    ranked = slices[order]
    after = np.clip(np.searchsorted(ranked, middles), 0, len(ranked) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(np.abs(middles - ranked[before]) <= np.abs(ranked[after] - middles), before, after)
    worst = np.maximum(np.abs(lows - ranked[nearest]), np.abs(highs - ranked[nearest]))
    found: list[int | None] = [int(order[n]) for n in nearest]
    off = []
    for n in np.flatnonzero(worst > grid.tolerance_mm).tolist():
        if highs[n] - lows[n] > 2 * grid.tolerance_mm:
            raise _not_in_plane(roi, contours[n], grid)
        if _beyond(float(middles[n]), ranked, grid):
            found[n] = None
        else:
            off.append(n)
    if off:
        n = off[0]
        k = int(order[nearest[n]])
        away = float(abs(middles[n] - ranked[nearest[n]]))
        message = (
            f"contour {contours[n].number} of ROI {shown(roi.name)} lies {away:.3g} mm from the nearest slice, {k + 1}; "
            f"{grid.tolerance_mm:.3g} mm are allowed ({len(off)} of its {len(contours)} contours are off)"
        )
        hint = "load the series that the contours were drawn on; a contour is never moved to a slice"
        raise DataError("contour-off-plane", message, hint=hint, off_mm=away, slice=k, contours=len(off))
    return found


def _metric(contours: Sequence[NDArray[np.float64]], grid: Grid) -> list[NDArray[np.float64]]:
    """Return contours, each (points, 2) as voxel index (i, j), in millimetres and without repeated points.

    One that encloses nothing (`mdcli.imaging.contours.on_a_line`) comes back without any.
    """
    if not contours:
        return []
    lengths = [len(corners) for corners in contours]
    points = np.concatenate(contours) @ grid.in_mm.T
    after = points[flat.following(lengths)]
    starts = np.cumsum([0, *lengths[:-1]])
    repeated = np.logical_or.reduceat((points == after).all(axis=1), starts)
    # Twice the area: what is large encloses something, however it runs.
    areas = np.add.reduceat(points[:, 0] * after[:, 1] - after[:, 0] * points[:, 1], starts)
    found = []
    for a, length, again, size in zip(starts.tolist(), lengths, repeated, areas, strict=True):
        corners = points[a : a + length]
        corners = flat.distinct(corners) if again else corners
        found.append(corners[:0] if abs(size) < 1e-3 and flat.on_a_line(corners) else corners)
    return found


def _beyond(depth: float, ranked: NDArray[np.float64], grid: Grid) -> bool:
    """Say whether a plane would be one of the volume's if it went on beyond its first or last slice."""
    step = grid.spacing_mm
    over = float(max(ranked[0] - depth, depth - ranked[-1]))
    steps = round(over / step)
    return steps >= 1 and abs(over - steps * step) <= grid.tolerance_mm


def _not_in_plane(roi: Roi, contour: Contour, grid: Grid) -> DataError:
    """Say what plane a contour lies in, that does not lie along the slices."""
    centred = contour.points - contour.points.mean(axis=0)
    across = np.linalg.svd(centred, full_matrices=False)[2][2]
    off = float(np.abs(centred @ across).max())
    angle = float(np.degrees(np.arccos(min(abs(float(across @ grid.normal)), 1.0))))
    where = f"contour {contour.number} of ROI {shown(roi.name)}"
    if off > grid.tolerance_mm or angle <= _PARALLEL_DEGREES:
        spread = float(np.ptp(centred @ grid.normal))
        message = (
            f"{where} is not planar: it spans {spread:.3g} mm across the slices and lies {off:.3g} mm off any plane"
        )
        return DataError("contour-not-planar", message, spread_mm=spread, off_mm=off)
    nearest = int(np.argmax(np.abs(across)))
    straight = np.degrees(np.arccos(min(abs(float(across[nearest])), 1.0))) <= _AXIS_DEGREES
    plane = ("a sagittal", "a coronal", "an axial")[nearest] if straight else "an oblique"
    message = f"{where} lies on {plane} plane, {angle:.1f} degrees off the volume's slices"
    hint = "load the series that it was drawn on"
    return DataError("contour-across-slices", message, hint=hint, degrees=angle)


def _depths(roi: Roi, contours: Sequence[NDArray[np.float64]], planes: Sequence[int]) -> NDArray[np.int64]:
    """Return how many contours of its slice each one lies in."""
    depths = np.zeros(len(contours), np.int64)
    by_plane: dict[int, list[int]] = {}
    for n, k in enumerate(planes):
        by_plane.setdefault(k, []).append(n)
    for k, members in by_plane.items():
        if len(members) < 2:
            continue
        try:
            depths[members] = flat.nesting([contours[n] for n in members])
        except DataError as error:
            message = f"ROI {shown(roi.name)}, slice {k + 1}: {error.message}"
            raise DataError(error.code, message, slice=k, roi=roi.number) from error
    return depths


# Telling


def check_reach(placed: Sequence[Placed], grid: Grid) -> None:
    """Check that something of the ROIs lies in the volume.

    Raises:
        DataError: `other-grid`, with both extents, where every closed contour is beyond it.
    """
    if any(p.contours for p in placed) or not any(p.outside for p in placed):
        return
    closed = [c.points for p in placed for c in p.roi.contours if c.kind not in OPEN and len(c.points)]
    points = np.concatenate(closed)
    k, j, i = grid.shape
    corners = np.array([[x, y, z, 1] for x in (-0.5, i - 0.5) for y in (-0.5, j - 0.5) for z in (0, k - 1)])
    volume = (corners @ grid.affine.T)[:, :3]
    message = f"no contour lies in the volume: they span {_span(points)}, the volume {_span(volume)} (x, y, z; LPS mm)"
    raise DataError(
        "other-grid",
        message,
        hint="load the series that the contours were drawn on",
        contours_mm=[points.min(axis=0).tolist(), points.max(axis=0).tolist()],
        volume_mm=[volume.min(axis=0).tolist(), volume.max(axis=0).tolist()],
    )


def _span(points: NDArray[np.float64]) -> str:
    pairs = zip(points.min(axis=0), points.max(axis=0), strict=True)
    return ", ".join(f"{low:.1f} to {high:.1f}" for low, high in pairs)


def findings_of(placed: Sequence[Placed], structure: StructureSet, grid: Grid, *, union: bool = False) -> list[Finding]:
    """Return what there is to say about the ROIs on a volume, one finding a kind, with the ROIs that it is true of."""
    found: list[Finding] = []

    def tell(code: str, what: str, of: Mapping[str, Any], *, warning: bool = True) -> None:
        if of:
            listed = "; ".join(f"{name}: {text}" for name, text in list(of.items())[:_NAMED])
            more = f"; and {len(of) - _NAMED} more" if len(of) > _NAMED else ""
            found.append(Finding(code, f"{what} ({listed}{more})", {"rois": dict(of)}, warning=warning))

    names = {id(p): _called(p.roi, placed) for p in placed}
    open_kinds = {
        names[id(p)]: ", ".join(f"{n} {kind}" for kind, n in p.left_out.items() if kind in OPEN)
        for p in placed
        if any(kind in OPEN for kind in p.left_out)
    }
    tell("open-contours", "contours that enclose nothing by their kind are left out", open_kinds)
    tell(
        "flat-contours",
        "contours of fewer than three distinct points, or all on one line, are left out",
        {names[id(p)]: p.left_out["flat"] for p in placed if "flat" in p.left_out},
    )
    tell(
        "crossing-contours",
        "contours cross themselves: what an odd number of edges away from the outside is inside",
        {names[id(p)]: p.crossing for p in placed if p.crossing},
    )
    rule = "add nothing, on request" if union else "are holes, and islands within holes"
    tell(
        "nested-contours",
        f"contours inside others {rule}",
        {names[id(p)]: p.holes for p in placed if p.holes},
        warning=False,
    )
    tell(
        "contours-outside",
        "contours lie beyond the volume and are left out",
        {names[id(p)]: p.outside for p in placed if p.outside},
    )
    tell(
        "contours-cut",
        "contours reach beyond the rows or columns of the volume and are cut there",
        {names[id(p)]: p.cut for p in placed if p.cut},
    )
    tell(
        "slices-without-contour",
        "slices between the first and the last one of a ROI have no contour and stay empty",
        {names[id(p)]: _ranges(p.without) for p in placed if p.without},
    )
    tell(
        "empty-roi",
        "ROIs have no closed contour in the volume and are described as empty",
        {names[id(p)]: f"{len(p.roi.contours)} contours" for p in placed if not p.contours},
    )
    tell(
        "reference-differs",
        "contours refer to the image of another slice than they lie on; where they lie counts",
        {names[id(p)]: p.elsewhere for p in placed if p.elsewhere},
    )
    dangling = frozenset().union(*(p.dangling for p in placed))
    if dangling:
        message = f"the contours refer to {len(dangling)} image(s) that the volume does not have"
        found.append(Finding("dangling-references", message, {"images": len(dangling)}))
    series, ours = structure.series_instance_uids, grid.series_instance_uid
    if series and ours is not None and ours not in series:
        message = f"the RTSTRUCT was drawn on series {shown(', '.join(series))}, the volume is of {shown(ours)}"
        found.append(Finding("other-series", message))
    return found


def _called(roi: Roi, placed: Sequence[Placed]) -> str:
    """Return a ROI's name as messages show it, with its number where another one has the same."""
    same = sum(p.roi.name == roi.name for p in placed) > 1
    return f"{shown(roi.name)} (number {roi.number})" if same else shown(roi.name)


def _ranges(slices: Sequence[int]) -> str:
    """Return slices k as people count them, runs as one: 4, 7 to 9."""
    runs: list[list[int]] = []
    for k in slices:
        if runs and k == runs[-1][1] + 1:
            runs[-1][1] = k
        else:
            runs.append([k, k])
    text = ", ".join(f"{a + 1}" if a == b else f"{a + 1} to {b + 1}" for a, b in runs[:_NAMED])
    return text + (f" and {len(runs) - _NAMED} more runs" if len(runs) > _NAMED else "")
