"""A small BINARY SEG decoder that shares nothing with the writer, so that the two can't share a mistake.

Source: DICOM PS3.3 A.51 and C.8.20 (Segmentation), C.7.6.16 (functional groups), PS3.5 8.1.1 (bit packing).
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError, MissingError

if TYPE_CHECKING:
    from pydicom import Dataset

SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP_SEGMENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.66.7"
_UNCOMPRESSED = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1")
# Two planes, or two orientations, are one where no corner of theirs lies further apart: truth 1.
SAME_PLANE_MM = 1e-3
_UNIT_TOLERANCE = 1e-3


class _BrokenError(Exception):
    """What is wrong, in words that hold nothing of the file but numbers of its geometry."""


@dataclass(frozen=True)
class Segment:
    """One described segment.

    Attributes:
        number: SegmentNumber.
        label: SegmentLabel, control characters escaped.
        codes: what it is: each of category, type, and the type's modifiers as `scheme:value`.
    """

    number: int
    label: str
    codes: tuple[str, ...]


@dataclass(frozen=True)
class Frame:
    """Where one frame lies, and from what it was made.

    Attributes:
        segment: the segment's number.
        origin: centre of its first pixel, mm, LPS+.
        sources: SOPInstanceUID, with `/frame` where one is named, of every source image.
    """

    segment: int
    origin: NDArray[np.float64]
    sources: frozenset[str]


@dataclass(frozen=True)
class Seg:
    """A BINARY SEG whose frames all have one orientation.

    Attributes:
        rows: of every frame.
        columns: of every frame.
        along_i: from one column to the next, mm, LPS+.
        along_j: from one row to the next, mm, LPS+.
        along_k: from one slice to the next, mm, LPS+: the shortest step between two frames, or the whole part of it that
            SpacingBetweenSlices says; for a single plane the slice normal times SpacingBetweenSlices, else SliceThickness.
        frame_of_reference_uid: None where the file does not say.
        segments: as described, in the order of the file.
        frames: in the order of the file.
        bits: the packed pixels of all frames.
    """

    rows: int
    columns: int
    along_i: NDArray[np.float64]
    along_j: NDArray[np.float64]
    along_k: NDArray[np.float64]
    frame_of_reference_uid: str | None
    segments: tuple[Segment, ...]
    frames: tuple[Frame, ...]
    bits: bytes

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Return one frame as (j, i). Frames follow each other without a gap, the first pixel in the lowest bit."""
        size = self.rows * self.columns
        first, last = index * size, (index + 1) * size
        packed = np.frombuffer(self.bits, np.uint8)[first // 8 : (last + 7) // 8]
        bits = np.unpackbits(packed, bitorder="little")[first % 8 : first % 8 + size]
        return bits.reshape(self.rows, self.columns).astype(bool)

    def corners(self) -> NDArray[np.float64]:
        """Return the centres of the four corner pixels of every frame: (n, 4, 3), mm, LPS+."""
        i, j = (self.columns - 1) * self.along_i, (self.rows - 1) * self.along_j
        origins = np.array([frame.origin for frame in self.frames]).reshape(-1, 1, 3)
        return origins + np.stack([0 * i, i, j, i + j])[None]


def printable(text: str) -> str:
    r"""Return text with everything that can't be shown (control characters, lone surrogates) escaped.

    >>> printable("liver\x1b[2J")
    'liver\\x1b[2J'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def read_seg(path: Path) -> Seg:
    """Read a BINARY SEG.

    Raises:
        MissingError: `no-artifact` where the file is not there.
        DataError: `not-seg`, `seg-not-binary` (FRACTIONAL, LABELMAP, or compressed), `seg-broken` (says two things, or not enough;
            the message says which), `seg-orientations` (frames of several orientations or spacings).
    """
    import pydicom
    from pydicom.errors import InvalidDicomError
    from pydicom.filereader import read_file_meta_info

    path = Path(path)
    if not path.is_file():
        raise MissingError("no-artifact", f"{path.name} is not there")
    try:
        with warnings.catch_warnings():
            # pydicom warns of a bad value by printing it, whatever is in it.
            warnings.simplefilter("ignore")
            syntax = read_file_meta_info(path).get("TransferSyntaxUID")
            # A deflated data set is legal, but inflates to any size before a length in it can be checked.
            if syntax not in _UNCOMPRESSED:
                message = f"{path.name} has transfer syntax {_uid(syntax)}: only uncompressed SEGs are compared"
                raise DataError("seg-not-binary", message)
            return _seg_from(pydicom.dcmread(path), path.name)
    except (DataError, OSError):
        raise
    except InvalidDicomError as error:
        raise DataError("not-seg", f"{path.name} is not a DICOM file") from error
    except (AttributeError, KeyError, _BrokenError) as error:
        raise DataError("seg-broken", f"{path.name} lacks what a SEG needs: {error}") from error
    except Exception as error:
        # Damaged bytes make pydicom raise nearly anything, often with the bytes, which may be a patient's.
        raise DataError("seg-broken", f"{path.name} can't be read ({type(error).__name__})") from error


def _uid(value: object) -> str:
    """Return a UID to show: nothing but digits and dots, and no more than a UID has."""
    return "".join(c for c in str(value) if c in "0123456789.")[:64]


def _seg_from(dataset: Dataset, name: str) -> Seg:
    if dataset.SOPClassUID == LABEL_MAP_SEGMENTATION_STORAGE:
        raise DataError("seg-not-binary", f"{name} is a LABELMAP: only BINARY SEGs are compared")
    if dataset.SOPClassUID != SEGMENTATION_STORAGE:
        raise DataError("not-seg", f"{name} has SOP class {_uid(dataset.SOPClassUID)}, not Segmentation Storage")
    if dataset.SegmentationType != "BINARY" or dataset.BitsAllocated != 1:
        kind = "FRACTIONAL" if dataset.SegmentationType == "FRACTIONAL" else "of another type"
        message = f"{name} is {kind}, {int(dataset.BitsAllocated)} bits a pixel: only BINARY SEGs are compared"
        raise DataError("seg-not-binary", message)
    rows, columns, count = int(dataset.Rows), int(dataset.Columns), int(dataset.NumberOfFrames)
    groups = dataset.PerFrameFunctionalGroupsSequence
    bits = bytes(dataset.PixelData)
    if len(groups) != count or count < 1 or rows < 1 or columns < 1:
        raise DataError("seg-broken", f"{name} has {count} frames, but describes {len(groups)}")
    if len(bits) * 8 < rows * columns * count:
        raise DataError(
            "seg-broken", f"{name} has {len(bits)} bytes of pixels for {count} frames of {rows} x {columns}"
        )

    segments = tuple(_segment(item) for item in dataset.SegmentSequence)
    numbers = {segment.number for segment in segments}
    if len(numbers) < len(segments):
        raise DataError("seg-broken", f"{name} describes one segment number twice")
    shared = dataset.SharedFunctionalGroupsSequence[0] if "SharedFunctionalGroupsSequence" in dataset else None
    frames, axes = [], []
    for group in groups:
        number = int(_group(group, shared, "SegmentIdentificationSequence").ReferencedSegmentNumber)
        if number not in numbers:
            raise DataError("seg-broken", f"{name} has a frame of segment {number}, which it does not describe")
        position = _vector(_group(group, shared, "PlanePositionSequence").ImagePositionPatient, 3)
        frames.append(Frame(number, position, _sources(group, shared)))
        axes.append(_axes(group, shared))
    along_i, along_j = axes[0]
    corner = max(rows, columns)
    if any(max(np.abs(i - along_i).max(), np.abs(j - along_j).max()) * corner > SAME_PLANE_MM for i, j in axes):
        raise DataError("seg-orientations", f"{name} has frames of several orientations or pixel spacings")
    along_k = _slice_step(frames, along_i, along_j, _group(groups[0], shared, "PixelMeasuresSequence"))
    _refuse_doubles(frames, along_k, name)
    uid = dataset.get("FrameOfReferenceUID")
    return Seg(rows, columns, along_i, along_j, along_k, str(uid) if uid else None, segments, tuple(frames), bits)


def _group(group: Dataset, shared: Dataset | None, keyword: str) -> Dataset:
    """Return a functional group's item, the frame's own or the shared one."""
    holder = group if keyword in group else shared
    if holder is None:
        raise KeyError(keyword)
    item: Dataset = holder[keyword].value[0]
    return item


def _vector(values: Any, length: int) -> NDArray[np.float64]:
    vector = np.array([float(value) for value in values])
    if vector.shape != (length,) or not np.isfinite(vector).all():
        raise _BrokenError(f"{length} finite numbers in every position, orientation and spacing")
    return vector


def _axes(group: Dataset, shared: Dataset | None) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the steps along a row (i) and along a column (j), mm. Source: PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1."""
    cosines = _vector(_group(group, shared, "PlaneOrientationSequence").ImageOrientationPatient, 6)
    measures = _group(group, shared, "PixelMeasuresSequence")
    # PixelSpacing is [between rows, between columns]: the step from column to column is the second.
    row_step, column_step = _vector(measures.PixelSpacing, 2)
    x, y = cosines[:3], cosines[3:]
    lengths = math.hypot(*x), math.hypot(*y)
    if (
        max(abs(lengths[0] - 1), abs(lengths[1] - 1), abs(float(x @ y))) > _UNIT_TOLERANCE
        or min(row_step, column_step) <= 0
    ):
        raise _BrokenError("an ImageOrientationPatient and PixelSpacing that span a plane")
    return x * column_step, y * row_step


def _slice_step(
    frames: list[Frame], along_i: NDArray[np.float64], along_j: NDArray[np.float64], measures: Dataset
) -> NDArray[np.float64]:
    normal = np.cross(along_i, along_j)
    normal /= np.linalg.norm(normal)
    origins = np.array([frame.origin for frame in frames])
    origins = origins[np.argsort(origins @ normal)]
    steps = np.diff(origins, axis=0)
    heights = steps @ normal
    apart = heights > SAME_PLANE_MM
    between = _positive(measures.get("SpacingBetweenSlices"))
    if apart.any():
        shortest = np.argmin(np.where(apart, heights, np.inf))
        # Empty frames may be left out everywhere: then the tag says how many steps the shortest one found is.
        count = max(1, round(heights[shortest] / between)) if between else 1
        return np.asarray(steps[shortest] / count)
    size = between or _positive(measures.get("SliceThickness"))
    if size is None:
        raise _BrokenError("SpacingBetweenSlices or SliceThickness, since it has a single plane")
    return np.asarray(normal * size)


def _positive(value: Any) -> float | None:
    number = float(value) if value else 0.0
    return number if math.isfinite(number) and number > 0 else None


def _refuse_doubles(frames: list[Frame], along_k: NDArray[np.float64], name: str) -> None:
    normal = along_k / np.linalg.norm(along_k)
    by_segment: dict[int, list[float]] = {}
    for frame in frames:
        by_segment.setdefault(frame.segment, []).append(float(frame.origin @ normal))
    for number, heights in by_segment.items():
        if len(heights) > 1 and np.diff(np.sort(heights)).min() <= SAME_PLANE_MM:
            raise DataError("seg-broken", f"{name} has two frames of segment {number} on one plane")


def _sources(group: Dataset, shared: Dataset | None) -> frozenset[str]:
    """Return what a frame was derived from. Source: PS3.3 C.7.6.16.2.6 (Derivation Image)."""
    found = set()
    for holder in (group, shared):
        for derivation in (holder.get("DerivationImageSequence") if holder is not None else None) or ():
            for image in derivation.get("SourceImageSequence") or ():
                uid = str(image.ReferencedSOPInstanceUID)
                number = image.get("ReferencedFrameNumber")
                found.add(uid if number is None else f"{uid}/{number}")
    return frozenset(found)


def _segment(item: Dataset) -> Segment:
    kind = item.SegmentedPropertyTypeCodeSequence[0]
    modifiers = kind.get("SegmentedPropertyTypeModifierCodeSequence") or ()
    codes = (item.SegmentedPropertyCategoryCodeSequence[0], kind, *modifiers)
    return Segment(int(item.SegmentNumber), printable(str(item.SegmentLabel)), tuple(_code(code) for code in codes))


def _code(item: Dataset) -> str:
    value = item.get("CodeValue") or item.get("LongCodeValue") or item.get("URNCodeValue")
    if value is None:
        raise KeyError("CodeValue")
    return printable(f"{item.get('CodingSchemeDesignator', '')}:{value}")
