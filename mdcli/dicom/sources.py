"""Open the source images again, headers only: writers and their read-back look at the files, not at what the scan noted."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.headers import Skipped, read_instance
from mdcli.dicom.instance import Instance
from mdcli.dicom.opening import OpenSource, SourceFiles
from mdcli.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_SAME_POSITION_MM = 1e-3
# What every slice must share with the first one. The patient is read to be compared, and never shown.
_PATIENT = {
    "PatientID": (0x00100020, "LO", True),
    "PatientName": (0x00100010, "PN", True),
    "PatientBirthDate": (0x00100030, "DA", True),
}
_SHARED = (*_PATIENT, "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Rows", "Columns")
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns")
# JPEG baseline, JPEG extended, JPEG-LS near-lossless; JPEG 2000 says in the attribute whether it lost anything.
_LOSSY_SYNTAXES = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81")


@dataclass(frozen=True)
class SourceSlice:
    """One source image as its file says now.

    Attributes:
        sop_class_uid: of the image.
        sop_instance_uid: of the image.
        position: (3,) ImagePositionPatient, mm, LPS+.
        orientation: (2, 3) direction cosines of the rows and of the columns.
        pixel_spacing: (row spacing, column spacing), mm.
        shape: (rows, columns).
        lossy: it was once compressed with loss.
        header_sha256: of its header, as `Instance` has it.
    """

    sop_class_uid: str
    sop_instance_uid: str
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    pixel_spacing: tuple[float, float]
    shape: tuple[int, int]
    lossy: bool
    header_sha256: str

    def plane(self) -> NDArray[np.float64]:
        """Return the 3x3 matrix that takes (i, j, 1) to mm.

        Source: DICOM PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1.
        """
        row_spacing, column_spacing = self.pixel_spacing
        return np.stack(
            [self.orientation[0] * column_spacing, self.orientation[1] * row_spacing, self.position], axis=1
        )


@dataclass(frozen=True)
class Sources:
    """The images of one series, opened again.

    Attributes:
        first: the whole header of the first one, pixels left out.
        slices: all of them, in the order asked for.
        digest: SHA-256 over all headers, in that order.
    """

    first: Dataset
    slices: tuple[SourceSlice, ...]
    digest: str


class _Bounded:
    """A source file whose end is known: reading past it gives less, as with any file."""

    def __init__(self, stream: OpenSource, size: int) -> None:
        self._stream, self._left = stream, size

    def read(self, size: int) -> bytes:
        size = min(size, self._left)
        self._left -= size
        return self._stream.read(size) if size else b""


def read_headers(
    opened: SourceFiles, files: Sequence[tuple[str, int]], extra: Mapping[str, tuple[int, str, bool]]
) -> Iterator[Instance]:
    """Read the headers of a series again, one after another.

    Args:
        opened: the scanned folder or zip file.
        files: (path, size in bytes) as `series.json` has them, in the order wanted.
        extra: more attributes to read, as in `mdcli.dicom.headers.KEYWORDS`.

    Raises:
        MissingError: `source-missing`.
        DataError: `source-unreadable`; `source-changed` for another size.
    """
    for k, (path, size) in enumerate(files):
        with opened.open(path, size) as stream:
            found = read_instance(_Bounded(stream, size), path, extra, size=size)  # type: ignore[arg-type]
        if isinstance(found, Skipped):
            raise DataError("source-unreadable", f"source {k + 1} of {len(files)} can't be used: {found.message}")
        yield found


def open_sources(root: Path, files: Sequence[tuple[str, int]]) -> Sources:
    """Read the headers of a series again.

    Args:
        root: the scanned folder or zip file.
        files: (path, size in bytes) as `series.json` has them, in the order wanted.

    Returns:
        The first header whole, and of every slice what places it.

    Raises:
        MissingError: `source-missing`.
        DataError: `source-unreadable`; `source-changed` for another size; `source-lacks` an attribute that no image of a volume may
            be without; `sources-differ` in patient, study, series, frame of reference, Rows or Columns; `multi-frame-source`.
    """
    first: Instance | None = None
    slices = []
    digest = hashlib.sha256()
    with SourceFiles(root) as opened:
        for k, found in enumerate(read_headers(opened, files, _PATIENT)):
            first = first or found
            for keyword in _SHARED:
                if found.get(keyword) != first.get(keyword):
                    raise DataError("sources-differ", f"{keyword} of source {k + 1} is not that of the first", slice=k)
            slices.append(_slice(found, k))
            digest.update(bytes.fromhex(found.header_sha256))
        if first is None:
            raise DataError("bad-artifact", "geometry.json names no source image")
        with opened.open(*files[0]) as stream:
            header = whole_header(stream.read(first.pixel_offset or files[0][1]))
    return Sources(header, tuple(slices), digest.hexdigest())


def whole_header(data: bytes) -> Dataset:
    """Return the data set of a file's bytes, pixels left out; values are converted when they are asked for.

    Raises:
        DataError: `source-unreadable`.
    """
    from pydicom import dcmread

    # pydicom's warnings show values, which may be a patient's.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return dcmread(io.BytesIO(data), stop_before_pixels=True, force=True)
        except (EOFError, ValueError, NotImplementedError, OSError) as error:
            message = f"a source can't be read: {type(error).__name__}"
            raise DataError("source-unreadable", message) from None


def check_sources(sources: Sources, entries: Sequence[Mapping[str, Any]], headers: Sequence[str]) -> None:
    """Check that the files still are the images that the volume was made from.

    Args:
        sources: opened again.
        entries: `slices` of `geometry.json`, in the same order.
        headers: `header_sha256` of `series.json`, in the same order.

    Raises:
        DataError: `source-changed` where a SOPInstanceUID, a position (by more than 1e-3 mm) or anything else in a header differs.
    """
    hint = "run md select-series and the stages after it again"
    for k, (source, entry, header) in enumerate(zip(sources.slices, entries, headers, strict=True)):
        if source.sop_instance_uid != entry["sop_instance_uid"]:
            raise DataError(
                "source-changed", f"source {k + 1} is another image than the volume was made from", hint=hint
            )
        off = float(np.linalg.norm(source.position - np.array(entry["position_mm"], np.float64)))
        if off > _SAME_POSITION_MM:
            message = f"source {k + 1} lies {off:.4f} mm from where the volume was made from it"
            raise DataError("source-changed", message, hint=hint, off_mm=off)
        if source.header_sha256 != header:
            message = f"source {k + 1} has another header than when it was scanned"
            raise DataError("source-changed", message, hint=hint, slice=k)


def in_source_time(moment: datetime, first: Dataset) -> datetime:
    """Return a moment in the offset that the sources' own dates and times are in, where they say it.

    Source: DICOM PS3.3 C.12.1.1.8, TimezoneOffsetFromUTC holds for all dates and times of an object, the copied ones too.
    """
    offset = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", str(first.get("TimezoneOffsetFromUTC") or "").strip())
    if offset is None:
        return moment
    minutes = int(offset[2]) * 60 + int(offset[3])
    return moment.astimezone(timezone(timedelta(minutes=-minutes if offset[1] == "-" else minutes)))


def _numbers(instance: Instance, keyword: str, k: int, count: int) -> NDArray[np.float64]:
    value = instance.get(keyword)
    if not isinstance(value, list) or len(value) != count or not all(isinstance(v, (int, float)) for v in value):
        raise DataError("source-lacks", f"source {k + 1} has no {keyword} of {count} numbers", slice=k)
    return np.array(value, np.float64)


def _slice(instance: Instance, k: int) -> SourceSlice:
    for keyword in _NEEDED:
        if instance.get(keyword) is None:
            raise DataError("source-lacks", f"source {k + 1} has no {keyword}", slice=k)
    frames = instance.get("NumberOfFrames", 1)
    if frames != 1:
        raise DataError("multi-frame-source", f"source {k + 1} has {frames} frames")
    row_spacing, column_spacing = _numbers(instance, "PixelSpacing", k, 2)
    # Anything but 00 may be an 01 that was spoilt.
    lossy = instance.get("LossyImageCompression", "00") != "00" or instance.get("TransferSyntaxUID") in _LOSSY_SYNTAXES
    return SourceSlice(
        sop_class_uid=str(instance.get("SOPClassUID")),
        sop_instance_uid=str(instance.get("SOPInstanceUID")),
        position=_numbers(instance, "ImagePositionPatient", k, 3),
        orientation=_numbers(instance, "ImageOrientationPatient", k, 6).reshape(2, 3),
        pixel_spacing=(float(row_spacing), float(column_spacing)),
        shape=(int(instance.get("Rows")), int(instance.get("Columns"))),
        lossy=lossy,
        header_sha256=instance.header_sha256,
    )
