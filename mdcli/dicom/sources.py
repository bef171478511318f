"""Open the source images again, headers only: writers and their read-back look at the files, not at what the scan noted."""

from __future__ import annotations

import hashlib
import io
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError, MissingError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_IN_ZIP = "!/"
_SAME_POSITION_MM = 1e-3
_LARGEST_MEMBER = 1 << 30
# What every slice must share with the first one; nothing of it is ever shown.
_SHARED = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "FrameOfReferenceUID",
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "Rows",
    "Columns",
)
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns")
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
# JPEG baseline, JPEG extended, JPEG-LS near-lossless; JPEG 2000 says in the attribute whether it lost anything.
_LOSSY_SYNTAXES = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.81")
_TAGS = (
    *_SHARED,
    *_NEEDED,
    *_LOSSY,
    "PixelSpacing",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "NumberOfFrames",
)


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
    """

    sop_class_uid: str
    sop_instance_uid: str
    position: NDArray[np.float64]
    orientation: NDArray[np.float64]
    pixel_spacing: tuple[float, float]
    shape: tuple[int, int]
    lossy: bool

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


def _inside(root: Path, name: str) -> Path:
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise DataError("bad-artifact", "series.json names a file outside the scanned folder")
    return root / name if name else root


@contextmanager
def _opener(root: Path) -> Iterator[Any]:
    """Give a function that opens a path of `series.json`; a zip file is opened once."""
    archives: dict[str, zipfile.ZipFile] = {}
    with ExitStack() as stack:

        def open_source(path: str) -> BinaryIO:
            name, _, member = path.partition(_IN_ZIP)
            file = _inside(root, name)
            if not member:
                return file.open("rb")
            if name not in archives:
                archives[name] = stack.enter_context(zipfile.ZipFile(file))
            if archives[name].getinfo(member).file_size > _LARGEST_MEMBER:
                raise DataError("source-unreadable", f"a source in a zip file is larger than {_LARGEST_MEMBER} bytes")
            return io.BytesIO(archives[name].read(member))

        yield open_source


def open_sources(root: Path, paths: Sequence[str]) -> Sources:
    """Read the headers of a series again.

    Args:
        root: the scanned folder or zip file.
        paths: as `series.json` and `geometry.json` hold them, in the order wanted.

    Returns:
        The first header whole, and of every slice what places it.

    Raises:
        MissingError: `source-missing`.
        DataError: `source-unreadable`; `source-lacks` an attribute that no image of a volume may be without; `sources-differ` in
            patient, study, series, frame of reference, Rows or Columns; `multi-frame-source`.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    first: Dataset | None = None
    shared: list[Any] = []
    slices = []
    digest = hashlib.sha256()
    # pydicom's warnings show values, which may be a patient's.
    with _opener(root) as open_source, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for k, path in enumerate(paths):
            try:
                with open_source(path) as file:
                    tags = None if first is None else list(_TAGS)
                    header = dcmread(file, stop_before_pixels=True, force=True, specific_tags=tags)
                    end = file.tell()
                    file.seek(0)
                    digest.update(file.read(end))
            except (FileNotFoundError, NotADirectoryError, KeyError):
                hint = "run md select-series again where the files are now"
                raise MissingError("source-missing", f"source {k + 1} of {len(paths)} is gone", hint=hint) from None
            except (OSError, EOFError, ValueError, InvalidDicomError, zipfile.BadZipFile, NotImplementedError) as error:
                message = f"source {k + 1} of {len(paths)} can't be read: {type(error).__name__}"
                raise DataError("source-unreadable", message) from None
            if first is None:
                first = header
                shared = [_value(header, keyword, k) for keyword in _SHARED]
            for keyword, expected in zip(_SHARED, shared, strict=True):
                if _value(header, keyword, k) != expected:
                    raise DataError("sources-differ", f"{keyword} of source {k + 1} is not that of the first", slice=k)
            slices.append(_slice(header, k))
    if first is None:
        raise DataError("bad-artifact", "geometry.json names no source image")
    return Sources(first, tuple(slices), digest.hexdigest())


def check_sources(sources: Sources, entries: Sequence[Mapping[str, Any]]) -> None:
    """Check that the files still are the images that the volume was made from.

    Args:
        sources: opened again.
        entries: `slices` of `geometry.json`, in the same order.

    Raises:
        DataError: `source-changed` where a SOPInstanceUID or a position (by more than 1e-3 mm) differs.
    """
    hint = "run md select-series and the stages after it again"
    for k, (source, entry) in enumerate(zip(sources.slices, entries, strict=True)):
        if source.sop_instance_uid != entry["sop_instance_uid"]:
            raise DataError(
                "source-changed", f"source {k + 1} is another image than the volume was made from", hint=hint
            )
        off = float(np.linalg.norm(source.position - np.array(entry["position_mm"], np.float64)))
        if off > _SAME_POSITION_MM:
            message = f"source {k + 1} lies {off:.4f} mm from where the volume was made from it"
            raise DataError("source-changed", message, hint=hint, off_mm=off)


def in_source_time(moment: datetime, first: Dataset) -> datetime:
    """Return a moment in the offset that the sources' own dates and times are in, where they say it.

    Source: DICOM PS3.3 C.12.1.1.8, TimezoneOffsetFromUTC holds for all dates and times of an object, the copied ones too.
    """
    offset = re.fullmatch(r"([+-])(\d\d)([0-5]\d)", str(first.get("TimezoneOffsetFromUTC") or "").strip())
    if offset is None:
        return moment
    minutes = int(offset[2]) * 60 + int(offset[3])
    return moment.astimezone(timezone(timedelta(minutes=-minutes if offset[1] == "-" else minutes)))


def _value(header: Dataset, keyword: str, k: int) -> Any:
    """Return a value; None where it is absent or empty."""
    try:
        value = header.get(keyword)
    except (ValueError, TypeError, NotImplementedError, AttributeError):
        raise DataError("source-unreadable", f"{keyword} of source {k + 1} can't be read") from None
    return None if value is None or value == "" else value


def _numbers(header: Dataset, keyword: str, k: int, count: int) -> NDArray[np.float64]:
    try:
        numbers = np.array(_value(header, keyword, k), np.float64).reshape(count)
    except (ValueError, TypeError):
        raise DataError("source-lacks", f"source {k + 1} has no {keyword} of {count} numbers", slice=k) from None
    if not np.isfinite(numbers).all():
        raise DataError("source-lacks", f"{keyword} of source {k + 1} is not finite", slice=k)
    return numbers


def _slice(header: Dataset, k: int) -> SourceSlice:
    for keyword in _NEEDED:
        if _value(header, keyword, k) is None:
            raise DataError("source-lacks", f"source {k + 1} has no {keyword}", slice=k)
    if int(_value(header, "NumberOfFrames", k) or 1) > 1:
        raise DataError("multi-frame-source", f"source {k + 1} has {header.NumberOfFrames} frames")
    row_spacing, column_spacing = _numbers(header, "PixelSpacing", k, 2)
    syntax = header.file_meta.get("TransferSyntaxUID") if hasattr(header, "file_meta") else None
    return SourceSlice(
        sop_class_uid=str(header.SOPClassUID),
        sop_instance_uid=str(header.SOPInstanceUID),
        position=_numbers(header, "ImagePositionPatient", k, 3),
        orientation=_numbers(header, "ImageOrientationPatient", k, 6).reshape(2, 3),
        pixel_spacing=(float(row_spacing), float(column_spacing)),
        shape=(int(header.Rows), int(header.Columns)),
        lossy=str(_value(header, "LossyImageCompression", k) or "") == "01" or syntax in _LOSSY_SYNTAXES,
    )
