"""Find out where the frames of one volume lie in the patient and whether they make a grid, from their headers alone.

Everything in millimetres, in the DICOM patient frame (LPS+). Every tolerance of the program's reading is named here, once.
Source: DICOM PS3.3 C.7.6.2 (Image Plane Module), C.7.6.3 (Image Pixel Module).
"""

from __future__ import annotations

import itertools
import math
import operator
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.finding import Finding
from mdcli.dicom.instance import Instance
from mdcli.dicom.opening import shown
from mdcli.errors import DataError

POSITION_OFF_GRID_MM = 0.05
"""How far a slice may lie from the uniform grid through the first and the last one ..."""
POSITION_OFF_GRID_SPACING = 0.02
"""... or this fraction of the spacing, whichever is larger."""
STEP_OFF = 0.25
"""No step between neighbours may differ from the mean step by more than this fraction."""
# Positions in decimals lie at the tolerance as often as not, and float64 then decides by chance: at it is beyond it.
_EDGE_MM = 1e-6
MOST_MADE = 10
"""A regular grid over unevenly spaced slices may have this many times as many slices."""
SAME_POSITION_MM = 0.01
"""Slices whose positions along the normal differ by no more than this are at one position."""
COSINE_OFF = 1e-3
"""How far direction cosines may differ between slices, and from being orthonormal."""
PIXEL_SPACING_OFF = 1e-4
"""How far PixelSpacing may differ between slices, relative."""
TILT_DEGREES = 0.05
"""The slice vector may be off the normal by this much ..."""
TILT_VOXELS = 0.1
"""... or shift the stack by this fraction of a pixel from the first to the last slice; beyond both the volume is sheared."""
SETTING_OFF = 0.01
"""How far a setting of the scanner (kV, repetition time, flip angle ...) may differ between slices, relative."""
PLANE_DEGREES = 20.0
"""A normal within this angle of a patient axis is axial, coronal or sagittal, else oblique."""

TOLERANCES = {
    "position_off_grid_mm": POSITION_OFF_GRID_MM,
    "position_off_grid_spacing": POSITION_OFF_GRID_SPACING,
    "step_off": STEP_OFF,
    "same_position_mm": SAME_POSITION_MM,
    "cosine_off": COSINE_OFF,
    "pixel_spacing_off": PIXEL_SPACING_OFF,
    "tilt_degrees": TILT_DEGREES,
    "tilt_voxels": TILT_VOXELS,
    "setting_off": SETTING_OFF,
    "plane_degrees": PLANE_DEGREES,
}

ONE_VALUE_KEYWORDS = (
    "SOPClassUID",
    "Modality",
    "PatientPosition",
    "ImageType",
    "KVP",
    "ConvolutionKernel",
    "ScanningSequence",
    "SequenceName",
    "EchoNumbers",
    "EchoTime",
    "RepetitionTime",
    "InversionTime",
    "FlipAngle",
    "DiffusionBValue",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "StackID",
    "PhotometricInterpretation",
    "Units",
    "RescaleType",
    "ComplexImageComponent",
)
"""What must be the same in every slice of one volume, wherever the slices lie."""
# What may change on the way through one volume (a helix in two parts, a thinner end), but not to and fro.
_STEADY_KEYWORDS = ("AcquisitionNumber", "ContrastBolusAgent", "SeriesDescription", "TriggerTime", "SliceThickness")
_FEW_RUNS = 3
# A longer text where a number belongs may be anything, a name as well.
_SHORT_TEXT = 16
# Settings whose values are measured or rounded.
_SETTINGS = frozenset(
    ("KVP", "EchoTime", "RepetitionTime", "InversionTime", "FlipAngle", "TriggerTime", "SliceThickness")
)
# The patient axis that the normal follows, in the order x, y, z of LPS+.
_PLANES = ("sagittal", "coronal", "axial")


@dataclass(frozen=True)
class Geometry:
    """Where the voxels of a volume lie.

    Attributes:
        order: the index into the given instances of each slice, along the normal: `instances[order[k]]` is slice k.
        shape: (k, j, i).
        affine: 4x4 float64, voxel index (i, j, k, 1) to mm, LPS+. In-plane columns are the mean direction cosines, as the headers
            have them, times PixelSpacing; the slice column is (last - first) / (n - 1), sheared or not.
        orientation: (row direction, column direction), 2x3, the mean direction cosines made orthonormal.
        positions: (n, 3), ImagePositionPatient of every slice in the order of k.
        spacing_mm: along i, j and k: the lengths of the affine's columns as the headers say them.
        plane: `axial`, `coronal`, `sagittal` or `oblique`.
        obliquity_deg: angle between the normal and the nearest patient axis.
        coverage_mm: extent along the normal, n times the distance between slices.
        regularity: step along the normal and the largest deviations found.
        tilt: angle between slice vector and normal, and what it shifts over the stack.
        offsets: where the slices are unevenly spaced, and that was allowed: each one's place along k, in steps of the affine; None
            where slice k lies at k.
        missing: of unevenly spaced slices, how far along the normal (mm) the first ones lie that a regular stack would have.
        made: what no header says but was put in on request, one line each.
        findings: what the caller should say.
    """

    order: tuple[int, ...]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    orientation: NDArray[np.float64]
    positions: NDArray[np.float64]
    spacing_mm: tuple[float, float, float]
    plane: str
    obliquity_deg: float
    coverage_mm: float
    regularity: dict[str, Any]
    tilt: dict[str, Any]
    offsets: tuple[float, ...] | None = None
    missing: tuple[float, ...] = ()
    made: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def check_images(frames: Sequence[Instance]) -> None:
    """Refuse what is no set of images of one series.

    Args:
        frames: of one series, in any order.

    Raises:
        DataError: `no-instances`, `duplicate-uid`, `several-studies`, `several-series`, `no-pixels`, `bad-size`; each names a file.
    """
    if not frames:
        raise DataError("no-instances", "the series has no instance")
    found = [(_frozen(i.get("SOPInstanceUID")), i.frame, i.tile) for i in frames]
    uids = Counter(found)
    if len(uids) < len(frames) or any(uid is None for uid, _, _ in uids):
        odd = next(i for i, key in zip(frames, found, strict=True) if uids[key] > 1 or key[0] is None)
        if odd.get("SOPInstanceUID") is None:
            raise DataError("duplicate-uid", f"{shown(odd.path)} has no SOPInstanceUID")
        twins = [shown(i.path) for i, key in zip(frames, found, strict=True) if key[0] == odd.get("SOPInstanceUID")]
        raise DataError(
            "duplicate-uid",
            f"{len(twins)} files that differ have one SOPInstanceUID: {', '.join(twins[:4])}",
            hint="leave out the one that does not belong: one UID is one image",
        )
    for keyword, code in (("StudyInstanceUID", "several-studies"), ("SeriesInstanceUID", "several-series")):
        _same(frames, operator.methodcaller("get", keyword), code, keyword)
    for frame in frames:
        name = shown(frame.path)
        if frame.pixel_offset is None and frame.pixel_length is None and not _is_deflated(frame):
            raise DataError("no-pixels", f"{name} has no PixelData")
        for keyword in ("Rows", "Columns"):
            value = frame.get(keyword)
            if not isinstance(value, int) or not 0 < value <= 65535:
                raise DataError("bad-size", f"{name} has {keyword} {shown(str(value))}")


def check_one_kind(frames: Sequence[Instance], *, colour: bool = False) -> None:
    """Refuse frames of one volume that have several sizes, and colour where gray is wanted, or gray where colour is.

    Args:
        frames: of one volume, in any order.
        colour: red, green and blue are wanted.

    Raises:
        DataError: `mixed-sizes`, `colour`, `not-colour`; each names a file.
    """
    for frame in frames:
        samples, photometric = frame.get("SamplesPerPixel", 1), frame.get("PhotometricInterpretation")
        is_gray = samples == 1 and photometric in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
        is_colour = photometric == "PALETTE COLOR" or samples == 3
        if colour and not is_colour:
            raise DataError(
                "not-colour", f"{shown(frame.path)} has {said(samples)} sample(s) a pixel, {said(photometric)}"
            )
        if not colour and not is_gray:
            raise DataError(
                "colour",
                f"{shown(frame.path)} has {said(samples)} sample(s) a pixel, {said(photometric)}, where one of gray is wanted",
                hint="--colour makes a volume of red, green and blue",
            )
    _same(frames, lambda i: (i.get("Rows"), i.get("Columns")), "mixed-sizes", "rows and columns")


def volume_geometry(instances: Sequence[Instance], *, single_slice: bool = False, uneven: bool = False) -> Geometry:
    """Return where the volume of these slices lies, or refuse them.

    Args:
        instances: n frames of one volume that `check_images` passed, in any order, no exact copies.
        single_slice: take one slice as a volume, SliceThickness being the spacing.
        uneven: take slices on one line that are unevenly spaced too; `offsets` then says where they lie.

    Raises:
        DataError: `no-position`, `no-orientation`, `no-spacing`, `bad-position`, `bad-orientation`, `bad-spacing`,
            `several-frames-of-reference`, `mixed-orientations`, `mixed-spacings`, `several-volumes`, `same-position`,
            `mixed-kinds`, `missing-slices`, `irregular-spacing`, `single-slice`, `no-slice-thickness`, `bad-slice-thickness`.

    Source: DICOM PS3.3 C.7.6.2.1.1: the pixel (column i, row j) lies at ImagePositionPatient + row cosine x column spacing x i +
    column cosine x row spacing x j; PixelSpacing is [row spacing, column spacing]. Slices are ordered by the projection of
    ImagePositionPatient on the normal, row cosine x column cosine.
    """
    positions = np.array([position_of(i) for i in instances], np.float64)
    cosines = np.array([orientation_of(i) for i in instances], np.float64)
    spacings = np.array([_pixel_spacing(i) for i in instances], np.float64)
    frame = operator.methodcaller("get", "FrameOfReferenceUID")
    _same(instances, frame, "several-frames-of-reference", "FrameOfReferenceUID")
    _same_orientation(instances, cosines)
    _same_spacing(instances, spacings)

    mean = cosines.mean(axis=0).reshape(2, 3)
    orientation = orthonormal(mean)
    normal = np.cross(orientation[0], orientation[1])
    order = np.argsort(positions @ normal, kind="stable")
    positions, sorted_instances = positions[order], [instances[n] for n in order]
    depths = positions @ normal
    _one_image_a_position(sorted_instances, depths)
    _check_thickness(sorted_instances)
    _one_kind(sorted_instances)

    count = len(instances)
    made: tuple[str, ...] = ()
    offsets: tuple[float, ...] | None = None
    missing: tuple[float, ...] = ()
    findings = _variation(sorted_instances)
    row_spacing, column_spacing = (float(v) for v in spacings.mean(axis=0))
    if count == 1:
        step, thickness = _single_slice(instances[0], normal, single_slice)
        made = ("slice spacing, from SliceThickness",)
        findings.append(
            Finding(
                "single-slice", f"one slice: its thickness of {thickness:g} mm is taken as spacing", {"mm": thickness}
            )
        )
        regularity: dict[str, Any] = {
            "regular": True,
            "step_mm": thickness,
            "smallest_step_mm": None,
            "largest_step_mm": None,
            "off_grid_mm": 0.0,
            "off_grid_allowed_mm": None,
        }
        tilt: dict[str, Any] = {"degrees": 0.0, "shift_mm": 0.0, "gantry_detector_tilt_deg": None, "sheared": False}
    else:
        step = (positions[-1] - positions[0]) / (count - 1)
        try:
            regularity = _regularity(positions, depths, step, normal)
        except DataError as refusal:
            if not uneven:
                raise
            step, offsets, missing = _uneven(positions, depths, refusal)
            regularity = _uneven_facts(depths, step, normal)
            findings.append(Finding("uneven-spacing", refusal.message, refusal.numbers))
        tilt = _tilt(sorted_instances, positions, step, normal, min(row_spacing, column_spacing))
        findings += _said_tilt(tilt)
        findings += _stated_spacing(sorted_instances, regularity["step_mm"])

    affine = np.eye(4)
    affine[:3, 0] = mean[0] * column_spacing
    affine[:3, 1] = mean[1] * row_spacing
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    plane, obliquity = plane_of(normal)
    return Geometry(
        order=tuple(int(n) for n in order),
        shape=(count, instances[0].attributes["Rows"], instances[0].attributes["Columns"]),
        affine=affine,
        orientation=orientation,
        positions=positions,
        spacing_mm=(column_spacing, row_spacing, float(np.linalg.norm(step))),
        plane=plane,
        obliquity_deg=obliquity,
        coverage_mm=(count if offsets is None else offsets[-1] + 1) * abs(float(step @ normal)),
        regularity=regularity,
        tilt=tilt,
        offsets=offsets,
        missing=missing,
        made=made,
        findings=tuple(findings),
    )


def plane_of(normal: NDArray[np.float64]) -> tuple[str, float]:
    """Return the plane of a unit normal (`axial`, `coronal`, `sagittal`, `oblique`), and its angle to the nearest patient axis.

    >>> plane_of(np.array([0.0, 0.0, -1.0]))
    ('axial', 0.0)
    """
    nearest = int(np.argmax(np.abs(normal)))
    degrees = math.degrees(math.acos(min(1.0, abs(float(normal[nearest])))))
    return _PLANES[nearest] if degrees <= PLANE_DEGREES else "oblique", degrees


def levels_of(depths: NDArray[np.float64]) -> NDArray[np.int_]:
    """Return which position each frame is at: 0, 1, ... along the normal; frames within `SAME_POSITION_MM` share one.

    Args:
        depths: (n,) mm along the normal, in any order.
    """
    order = np.argsort(depths, kind="stable")
    level = np.empty(len(depths), np.int_)
    level[order] = np.concatenate([[0], np.cumsum(np.diff(depths[order]) > SAME_POSITION_MM)])
    return level


def regular_runs(frames: Sequence[Instance]) -> list[list[Instance]]:
    """Return the longest runs of evenly spaced slices of one orientation, in the order of the normal; each slice is in one run.

    A run goes on as long as its slices make a regular grid; what is left between two runs is a run of its own.
    """
    cosines = orientation_of(frames[0])
    normal = np.cross(cosines[:3], cosines[3:])
    along = np.array([position_of(f) for f in frames], np.float64) @ normal
    order = np.argsort(along, kind="stable")
    ordered, depths = [frames[n] for n in order], along[order]
    runs: list[tuple[int, int]] = []
    start = 0
    while start < len(ordered):
        end = start + 1
        while end < len(ordered) and _are_regular(depths[start : end + 1]):
            end += 1
        # A gap after a single slice is no step: the slice stands alone, and what follows is looked at anew.
        if end - start == 2 and end < len(ordered):
            step, following = depths[start + 1] - depths[start], depths[end] - depths[start + 1]
            if following < 0.9 * step:
                end = start + 1
        runs.append((start, end))
        start = end
    # Two slices are always even: they are a run only where they are as near as slices of this series are.
    usual = max(
        (float(depths[end - 1] - depths[start]) / (end - start - 1) for start, end in runs if end - start > 2),
        default=float(np.diff(depths).min()) if len(depths) > 1 else 0.0,
    )
    parted: list[list[Instance]] = []
    for start, end in runs:
        if end - start == 2 and depths[start + 1] - depths[start] > (1 + STEP_OFF) * usual:
            parted += [[ordered[start]], [ordered[start + 1]]]
        else:
            parted.append(ordered[start:end])
    return parted


def _are_regular(depths: NDArray[np.float64]) -> bool:
    """Say whether sorted depths (mm along the normal) make a regular grid."""
    count = len(depths)
    mean = float(depths[-1] - depths[0]) / (count - 1)
    off = np.abs(depths - depths[0] - np.arange(count) * mean).max()
    return _is_within(float(off), float(np.abs(np.diff(depths) - mean).max()), mean)


def _is_within(off_grid: float, off_step: float, mean: float) -> bool:
    """Say whether the largest deviations from a uniform grid of a mean step leave it regular, all in mm."""
    allowed = max(POSITION_OFF_GRID_MM, POSITION_OFF_GRID_SPACING * mean)
    return off_grid <= allowed - _EDGE_MM and off_step <= STEP_OFF * mean


def orthonormal(cosines: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the two orthonormal directions nearest to two almost orthonormal ones, both turned alike.

    Args:
        cosines: (row direction, column direction), 2x3.

    Source: the polar factor (Löwdin orthogonalisation) is the nearest orthonormal pair in the least-squares sense.
    """
    u, _, vt = np.linalg.svd(cosines, full_matrices=False)
    return np.asarray(u @ vt, np.float64)


def completeness(instances: Sequence[Instance], expected: int | None) -> dict[str, Any]:
    """Say whether the series is whole, as far as anyone can know.

    Args:
        instances: of one series, no exact copies.
        expected: how many there should be, or None where nobody said.

    Returns:
        `{"status": "complete" | "unknown", "expected", "found", "stated", "instance_numbers": [first, last],
        "holes": [[from, to], ...]}`; holes are runs of InstanceNumber from 1 to the last that no instance has; no number at all is
        None. `stated` is what a header says that there are (ImagesInAcquisition, or NumberOfSlices of PET), or None: both are often
        about more or less than the series.

    Raises:
        DataError: `series-incomplete` with fewer instances than expected, `series-too-long` with more.
    """
    found = len(instances)
    if expected is not None and found != expected:
        code = "series-incomplete" if found < expected else "series-too-long"
        raise DataError(
            code, f"the series has {found} instances, {expected} were expected", found=found, expected=expected
        )
    numbers = sorted({n for i in instances if isinstance(n := i.get("InstanceNumber"), int)})
    # Numbers start at 1, in some scanners at 0; where they start far beyond, they count something else than this series.
    counted = [0, *numbers] if found > 1 and numbers and 1 < numbers[0] <= 2 * found + 1 else numbers
    holes = [[a + 1, b - 1] for a, b in itertools.pairwise(counted) if b - a > 1]
    stated = [_stated(i) for i in instances]
    return {
        "status": "unknown" if expected is None else "complete",
        "expected": expected,
        "found": found,
        "stated": max((n for n in stated if n is not None), default=None),
        "instance_numbers": [numbers[0], numbers[-1]] if numbers else None,
        "holes": holes,
    }


def _stated(instance: Instance) -> int | None:
    number = instance.get("ImagesInAcquisition")
    slices, times = instance.get("NumberOfSlices"), instance.get("NumberOfTimeSlices", 1)
    if instance.get("Modality") == "PT" and isinstance(slices, int) and isinstance(times, int):
        number = slices * max(times, 1)
    return number if isinstance(number, int) and 0 < number < 1 << 20 else None


def _is_deflated(instance: Instance) -> bool:
    return bool(instance.get("TransferSyntaxUID") == "1.2.840.10008.1.2.1.99")


def _texts(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


def _frozen(value: Any) -> Hashable:
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    return value if value is None or isinstance(value, (str, int, float)) else repr(value)


def said(value: Any) -> str:
    """Return a value out of a header for a person: numbers short, text escaped."""
    if isinstance(value, (list, tuple)):
        return shown("\\".join(said(v) for v in value))
    if isinstance(value, float):
        return f"{value:g}"
    return "absent" if value is None else shown(str(value))


def _same(instances: Sequence[Instance], value: Callable[[Instance], Any], code: str, what: str) -> None:
    """Refuse instances that differ in a value; name a file of the rarest value."""
    found = [_frozen(value(i)) for i in instances]
    counts = Counter(found)
    if len(counts) == 1:
        return
    (common, many), (rare, few) = counts.most_common(1)[0], counts.most_common()[-1]
    odd = instances[found.index(rare)]
    raise DataError(
        code,
        f"{shown(odd.path)} has {what} {said(rare)} ({few} of {len(instances)} files), while {many} have {said(common)}",
        values=len(counts),
    )


def _refuse_number(instance: Instance, keyword: str, kind: str) -> NoReturn:
    value = instance.get(keyword)
    code = f"no-{kind}" if value is None else f"bad-{kind}"
    has = f"has no {keyword}" if value is None else f"has {keyword} {said(value)}"
    raise DataError(code, f"{shown(instance.path)} {has}")


def _vector(instance: Instance, keyword: str, length: int, kind: str) -> list[float]:
    value = instance.get(keyword)
    if (
        not isinstance(value, list)
        or len(value) != length
        or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)
    ):
        _refuse_number(instance, keyword, kind)
    return [float(v) for v in value]


def orientation_of(instance: Instance) -> list[float]:
    """Return ImageOrientationPatient, six direction cosines.

    Raises:
        DataError: `no-orientation`, `bad-orientation` (not orthonormal within `COSINE_OFF`).
    """
    cosines = _vector(instance, "ImageOrientationPatient", 6, "orientation")
    pair = np.array(cosines).reshape(2, 3)
    if np.abs(pair @ pair.T - np.eye(2)).max() > COSINE_OFF:
        raise DataError(
            "bad-orientation",
            f"{shown(instance.path)} has ImageOrientationPatient {said(cosines)}: its two directions are not orthonormal "
            f"within {COSINE_OFF:g}",
        )
    return cosines


def position_of(instance: Instance) -> list[float]:
    """Return ImagePositionPatient, three numbers in mm.

    Raises:
        DataError: `no-position`, `bad-position`.
    """
    return _vector(instance, "ImagePositionPatient", 3, "position")


def _pixel_spacing(instance: Instance) -> list[float]:
    spacing = _vector(instance, "PixelSpacing", 2, "spacing")
    if min(spacing) <= 0:
        _refuse_number(instance, "PixelSpacing", "spacing")
    return spacing


def _middle(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the middle value of each column. (`np.median` loads numpy.ma: 10 ms.)"""
    return np.asarray(np.sort(rows, axis=0)[len(rows) // 2])


def _same_orientation(instances: Sequence[Instance], cosines: NDArray[np.float64]) -> None:
    nearest = int(np.argmin(np.abs(cosines - _middle(cosines)).max(axis=1)))
    off = np.abs(cosines - cosines[nearest]).max(axis=1)
    if off.max() > COSINE_OFF:
        odd = int(np.argmax(off))
        raise DataError(
            "mixed-orientations",
            f"{shown(instances[odd].path)} has ImageOrientationPatient {said(list(cosines[odd]))}, "
            f"{shown(instances[nearest].path)} {said(list(cosines[nearest]))}: {int((off > COSINE_OFF).sum())} of "
            f"{len(instances)} slices are turned",
            largest_difference=float(off.max()),
        )


def _same_spacing(instances: Sequence[Instance], spacings: NDArray[np.float64]) -> None:
    reference = _middle(spacings)
    off = np.abs(spacings / reference - 1).max(axis=1)
    if off.max() > PIXEL_SPACING_OFF:
        odd = int(np.argmax(off))
        raise DataError(
            "mixed-spacings",
            f"{shown(instances[odd].path)} has PixelSpacing {said(list(spacings[odd]))}, most have {said(list(reference))}",
            largest_relative_difference=float(off.max()),
        )


def _one_image_a_position(instances: Sequence[Instance], depths: NDArray[np.float64]) -> None:
    """Refuse several images at one position; `instances` and `depths` (mm along the normal) are sorted."""
    level = levels_of(depths)
    counts = np.bincount(level)
    if counts.max() == 1:
        return
    crowded = int(np.argmax(counts > 1))
    names = [shown(i.path) for i, at in zip(instances, level, strict=True) if at == crowded]
    raise DataError(
        "same-position",
        f"{len(names)} images lie at one position, {depths[int(np.searchsorted(level, crowded))]:g} mm along the normal: "
        f"{', '.join(names[:4])}",
        positions=len(counts),
        images=len(instances),
    )


def settled_values(instances: Sequence[Instance], keyword: str) -> list[Hashable]:
    """Return one value an instance; settings that are `SETTING_OFF` apart count as the smallest of them."""
    values = [_frozen(i.get(keyword)) for i in instances]
    if keyword not in _SETTINGS:
        return values
    one: dict[Hashable, Hashable] = {}
    start = math.nan
    for number in sorted({v for v in values if isinstance(v, (int, float))}):
        if not math.isclose(number, start, rel_tol=SETTING_OFF):
            start = number
        one[number] = start
    return [one.get(v, v) for v in values]


def kinds_of(instances: Sequence[Instance], keyword: str) -> int:
    """Return how many values of an attribute of `ONE_VALUE_KEYWORDS` tell kinds of images apart.

    A repetition time or flip angle that nearly every slice has of its own (a heart beat's length) tells none.
    """
    values = set(settled_values(instances, keyword))
    own = keyword in ("RepetitionTime", "FlipAngle", "InversionTime") and 2 * len(values) > len(instances) > 3
    return 1 if own else len(values)


def _one_kind(instances: Sequence[Instance]) -> None:
    for keyword in ONE_VALUE_KEYWORDS:
        if kinds_of(instances, keyword) > 1:
            _same(instances, operator.methodcaller("get", keyword), "mixed-kinds", keyword)


def _variation(instances: Sequence[Instance]) -> list[Finding]:
    """Refuse sorted slices of two acquisitions that were put between one another; tell what changes along one volume."""
    varying = []
    for keyword in _STEADY_KEYWORDS:
        values = settled_values(instances, keyword)
        kinds, runs = len(set(values)), sum(1 for _ in itertools.groupby(values))
        if runs > max(kinds, _FEW_RUNS):
            listed = ", ".join(said(v) for v in list(dict.fromkeys(values))[:8]) + (" ..." if kinds > 8 else "")
            raise DataError(
                "several-volumes",
                f"{keyword} changes {runs - 1} times along the {len(values)} slices, between {kinds} values ({listed}): slices of "
                "several volumes lie between one another",
                volumes=kinds,
                differs=[keyword],
            )
        if kinds > 1:
            varying.append(f"{keyword} ({kinds} values)")
    if not varying:
        return []
    text = f"{', '.join(varying)} not the same in all {len(instances)} slices of the volume"
    return [Finding("varies-along-slices", text, {"keywords": len(varying)})]


def _check_thickness(instances: Sequence[Instance]) -> None:
    for instance in instances:
        value = instance.get("SliceThickness")
        if value is None or (isinstance(value, (int, float)) and math.isfinite(value)):
            continue
        words = said(value)
        raise DataError(
            "bad-slice-thickness",
            f"{shown(instance.path)} has SliceThickness {words if len(words) <= _SHORT_TEXT else 'that is no number'}",
        )


def _single_slice(instance: Instance, normal: NDArray[np.float64], allowed: bool) -> tuple[NDArray[np.float64], float]:
    if not allowed:
        raise DataError(
            "single-slice",
            "the series has one slice, so that nothing says how far the next would be",
            hint="--single-slice takes SliceThickness as the spacing",
        )
    thickness = instance.get("SliceThickness")
    if thickness is None or thickness <= 0:
        raise DataError("no-slice-thickness", f"{shown(instance.path)} has SliceThickness {said(thickness)}")
    return normal * float(thickness), float(thickness)


def _regularity(
    positions: NDArray[np.float64], depths: NDArray[np.float64], step: NDArray[np.float64], normal: NDArray[np.float64]
) -> dict[str, Any]:
    """Return the measured regularity of sorted positions (n, 3), or refuse a gap or an uneven step."""
    steps = np.diff(depths)
    mean = float(step @ normal)
    count = len(positions)
    off = np.linalg.norm(positions - positions[0] - np.arange(count)[:, None] * step, axis=1)
    allowed = max(POSITION_OFF_GRID_MM, POSITION_OFF_GRID_SPACING * mean)
    worst = int(np.argmax(off))
    found: dict[str, Any] = {
        "regular": True,
        "step_mm": mean,
        "smallest_step_mm": float(steps.min()),
        "largest_step_mm": float(steps.max()),
        "off_grid_mm": float(off[worst]),
        "off_grid_allowed_mm": allowed,
    }
    if _is_within(float(off[worst]), float(np.abs(steps - mean).max()), mean):
        return found
    base = float(steps.min())
    multiples = np.rint(steps / base)
    near = (
        np.abs(steps - multiples * base)
        <= np.maximum(POSITION_OFF_GRID_MM, POSITION_OFF_GRID_SPACING * base) * multiples
    )
    if multiples.max() > 1 and near.all() and multiples.sum() < 2 * count:
        raise _missing_slices(depths, steps, multiples, base)
    if float(np.abs(steps - mean).max()) > STEP_OFF * mean:
        where = int(np.argmax(np.abs(steps - mean)))
        what = f"the step from slice {where + 1} to {where + 2} is {steps[where]:g} mm, the mean step {mean:g} mm"
    else:
        what = f"slice {worst + 1} of {count} lies {off[worst]:.3g} mm off the uniform grid, {allowed:g} mm are allowed"
    hint = "--on-gap resample interpolates on a regular grid, --on-gap split makes one workspace of each regular run"
    raise DataError("irregular-spacing", what, hint=hint, **found)


def _missing_slices(
    depths: NDArray[np.float64], steps: NDArray[np.float64], multiples: NDArray[np.float64], base: float
) -> DataError:
    """Name every missing slice by its number in the whole stack and its distance along the normal."""
    numbers = np.concatenate([[1], 1 + np.cumsum(multiples)]).astype(int)
    missing = [
        (int(numbers[n]) + m, float(depths[n]) + m * base)
        for n in np.flatnonzero(multiples > 1)
        for m in range(1, int(min(multiples[n], 1000)))
    ]
    total, gaps = int(numbers[-1]), [float(s) for s, m in zip(steps, multiples, strict=True) if m > 1]
    named = ", ".join(f"{number} (at {at:g} mm)" for number, at in missing[:8]) + (" ..." if len(missing) > 8 else "")
    count = total - len(depths)
    verb = f"slice {named} of {total} is" if count == 1 else f"{count} of {total} slices are"
    rest = "" if count == 1 else f": {named}"
    return DataError(
        "missing-slices",
        f"{verb} missing{rest}; gap of {max(gaps):g} mm along the normal, spacing {base:g} mm",
        hint="--on-gap resample interpolates them, --on-gap split makes one workspace of each regular run",
        missing=[number for number, _ in missing],
        positions_mm=[at for _, at in missing],
        spacing_mm=base,
    )


def _uneven(
    positions: NDArray[np.float64], depths: NDArray[np.float64], refusal: DataError
) -> tuple[NDArray[np.float64], tuple[float, ...], tuple[float, ...]]:
    """Return the regular grid over unevenly spaced slices that lie on one line.

    Returns:
        The step of the grid (mm, LPS+), each slice's place on it in steps, and where along the normal slices are missing, mm.

    Raises:
        DataError: the refusal, where the slices lie on no line, or the grid would have `MOST_MADE` times as many.
    """
    steps, span = np.diff(depths), float(depths[-1] - depths[0])
    base = float(steps.min())
    along = (depths - depths[0]) / span
    aside = np.linalg.norm(positions - positions[0] - along[:, None] * (positions[-1] - positions[0]), axis=1)
    apart = aside.max() > max(POSITION_OFF_GRID_MM, POSITION_OFF_GRID_SPACING * base)
    if apart or span / base > MOST_MADE * len(depths):
        why = "they lie on no one line" if apart else f"a grid of {base:g} mm would be more made than measured"
        hint = f"--on-gap split makes one workspace of each regular run; they can't be resampled: {why}"
        raise DataError(refusal.code, refusal.message, hint=hint, **refusal.numbers)
    multiples = np.rint(steps / base)
    places = np.concatenate([[0.0], np.cumsum(multiples)])
    count = int(places[-1])
    aside_of_grid = float(np.abs(places / count - along).max()) * span
    if refusal.code != "missing-slices" or not _is_within(aside_of_grid, 0.0, span / count):
        count = max(1, round(span / base))
        places = along * count
    there = set(
        np.rint(places[np.abs(places - np.rint(places)) * span / count <= POSITION_OFF_GRID_MM]).astype(int).tolist()
    )
    missing = tuple(float(depths[0] + k * span / count) for k in range(count + 1) if k not in there)
    return (positions[-1] - positions[0]) / count, tuple(places.tolist()), missing


def _uneven_facts(
    depths: NDArray[np.float64], step: NDArray[np.float64], normal: NDArray[np.float64]
) -> dict[str, Any]:
    steps = np.diff(depths)
    return {
        "regular": False,
        "step_mm": float(step @ normal),
        "smallest_step_mm": float(steps.min()),
        "largest_step_mm": float(steps.max()),
        "off_grid_mm": None,
        "off_grid_allowed_mm": None,
    }


def _tilt(
    instances: Sequence[Instance],
    positions: NDArray[np.float64],
    step: NDArray[np.float64],
    normal: NDArray[np.float64],
    pixel_mm: float,
) -> dict[str, Any]:
    """Return the angle between slice vector and normal, what it shifts the last slice by, and whether that counts as a shear."""
    along = float(step @ normal)
    aside = float(np.linalg.norm(step - along * normal))
    degrees = math.degrees(math.atan2(aside, along))
    span = positions[-1] - positions[0]
    shift = float(np.linalg.norm(span - float(span @ normal) * normal))
    stated = [t for i in instances if isinstance(t := i.get("GantryDetectorTilt"), (int, float)) and math.isfinite(t)]
    tag = float(stated[0]) if stated else None
    sheared = degrees > TILT_DEGREES and shift > TILT_VOXELS * pixel_mm
    return {"degrees": degrees, "shift_mm": shift, "gantry_detector_tilt_deg": tag, "sheared": sheared}


def _said_tilt(tilt: dict[str, Any]) -> list[Finding]:
    if not tilt["sheared"]:
        return []
    tag = tilt["gantry_detector_tilt_deg"]
    text = (
        f"the slices are shifted against one another: {tilt['degrees']:.2f} degrees off the normal"
        f"{f' (GantryDetectorTilt {tag:g})' if tag else ''}, {tilt['shift_mm']:.3g} mm over the stack; the volume is sheared, "
        "its sform says exactly how, and --untilt resamples it"
    )
    return [Finding("gantry-tilt" if tag else "sheared-volume", text, {k: tilt[k] for k in ("degrees", "shift_mm")})]


def _stated_spacing(instances: Sequence[Instance], step: float) -> list[Finding]:
    stated = instances[0].get("SpacingBetweenSlices")
    if not isinstance(stated, (int, float)) or not math.isfinite(stated) or stated == 0:
        return []
    if abs(abs(stated) - step) <= max(POSITION_OFF_GRID_MM, POSITION_OFF_GRID_SPACING * step):
        return []
    text = f"SpacingBetweenSlices is {stated:g} mm, the positions are {step:g} mm apart: the positions are used"
    return [Finding("spacing-differs", text, {"stated_mm": stated, "step_mm": step})]
