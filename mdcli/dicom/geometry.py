"""Find out where single-frame slices lie in the patient and whether they make one volume, from their headers alone.

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

# What tells two volumes of one series apart, the most telling first.
_VOLUME_KEYWORDS = (
    "EchoNumbers",
    "EchoTime",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "TemporalPositionIdentifier",
    "TemporalPositionIndex",
    "ImageType",
    "ConvolutionKernel",
    "InversionTime",
    "FlipAngle",
    "ContrastBolusAgent",
    "KVP",
    "SequenceName",
    "ScanningSequence",
    "TriggerTime",
    "FrameReferenceTime",
    "AcquisitionNumber",
    "AcquisitionTime",
    "ContentTime",
    "SeriesDescription",
    "SliceThickness",
    "StackID",
)
# What must be the same in every slice of one volume, wherever the slices lie.
_ONE_VALUE_KEYWORDS = (
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
)
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
    made: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


def check_single_frames(instances: Sequence[Instance]) -> None:
    """Refuse what is no stack of single-frame monochrome images of one series.

    Args:
        instances: of one series, in any order.

    Raises:
        DataError: `no-instances`, `duplicate-uid`, `several-studies`, `several-series`, `multi-frame`, `mosaic`, `no-pixels`,
            `colour`, `mixed-sizes`, `bad-size`; each names a file.
    """
    if not instances:
        raise DataError("no-instances", "the series has no instance")
    found = [_frozen(i.get("SOPInstanceUID")) for i in instances]
    uids = Counter(found)
    if len(uids) < len(instances) or None in uids:
        odd = next(i for i, uid in zip(instances, found, strict=True) if uids[uid] > 1 or uid is None)
        raise DataError("duplicate-uid", f"the SOPInstanceUID of {shown(odd.path)} is absent or that of another file")
    for keyword, code in (("StudyInstanceUID", "several-studies"), ("SeriesInstanceUID", "several-series")):
        _same(instances, operator.methodcaller("get", keyword), code, keyword)
    for instance in instances:
        name = shown(instance.path)
        frames = instance.get("NumberOfFrames", 1)
        if frames != 1 or "PerFrameFunctionalGroupsSequence" in instance.attributes:
            raise DataError(
                "multi-frame",
                f"{name} holds {shown(str(frames))} frames in one object, which load-volume can't yet read",
                frames=frames,
            )
        if "MOSAIC" in _texts(instance.get("ImageType")):
            raise DataError(
                "mosaic", f"{name} is a mosaic: many slices in one picture, which load-volume can't yet read"
            )
        if instance.pixel_offset is None and instance.pixel_length is None and not _is_deflated(instance):
            raise DataError("no-pixels", f"{name} has no PixelData")
        samples, photometric = instance.get("SamplesPerPixel", 1), instance.get("PhotometricInterpretation")
        if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
            raise DataError(
                "colour",
                f"{name} has {shown(str(samples))} sample(s) a pixel, {shown(str(photometric))}, where one of gray is wanted",
            )
    for instance in instances:
        for keyword in ("Rows", "Columns"):
            value = instance.get(keyword)
            if not isinstance(value, int) or not 0 < value <= 65535:
                raise DataError("bad-size", f"{shown(instance.path)} has {keyword} {shown(str(value))}")
    _same(instances, lambda i: (i.get("Rows"), i.get("Columns")), "mixed-sizes", "rows and columns")


def volume_geometry(instances: Sequence[Instance], *, single_slice: bool = False) -> Geometry:
    """Return where the volume of these slices lies, or refuse them.

    Args:
        instances: n single-frame instances of one series that `check_single_frames` passed, in any order, no exact copies.
        single_slice: take one slice as a volume, SliceThickness being the spacing.

    Raises:
        DataError: `no-position`, `no-orientation`, `no-spacing`, `bad-position`, `bad-orientation`, `bad-spacing`,
            `several-frames-of-reference`, `mixed-orientations`, `mixed-spacings`, `several-volumes`, `same-position`,
            `mixed-kinds`, `missing-slices`, `irregular-spacing`, `gantry-tilt`, `sheared-volume`, `single-slice`,
            `no-slice-thickness`, `bad-slice-thickness`.

    Source: DICOM PS3.3 C.7.6.2.1.1: the pixel (column i, row j) lies at ImagePositionPatient + row cosine x column spacing x i +
    column cosine x row spacing x j; PixelSpacing is [row spacing, column spacing]. Slices are ordered by the projection of
    ImagePositionPatient on the normal, row cosine x column cosine.
    """
    positions = np.array([_vector(i, "ImagePositionPatient", 3, "position") for i in instances], np.float64)
    cosines = np.array([_orientation(i) for i in instances], np.float64)
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
            "step_mm": thickness,
            "smallest_step_mm": None,
            "largest_step_mm": None,
            "off_grid_mm": 0.0,
        }
        tilt: dict[str, Any] = {"degrees": 0.0, "shift_mm": 0.0, "gantry_detector_tilt_deg": None, "sheared": False}
    else:
        step = (positions[-1] - positions[0]) / (count - 1)
        regularity = _regularity(positions, depths, step, normal)
        tilt = _tilt(sorted_instances, step, normal, count, min(row_spacing, column_spacing))
        findings += _stated_spacing(sorted_instances, regularity["step_mm"])

    affine = np.eye(4)
    affine[:3, 0] = mean[0] * column_spacing
    affine[:3, 1] = mean[1] * row_spacing
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    nearest = int(np.argmax(np.abs(normal)))
    obliquity = math.degrees(math.acos(min(1.0, abs(float(normal[nearest])))))
    return Geometry(
        order=tuple(int(n) for n in order),
        shape=(count, instances[0].attributes["Rows"], instances[0].attributes["Columns"]),
        affine=affine,
        orientation=orientation,
        positions=positions,
        spacing_mm=(column_spacing, row_spacing, float(np.linalg.norm(step))),
        plane=_PLANES[nearest] if obliquity <= PLANE_DEGREES else "oblique",
        obliquity_deg=obliquity,
        coverage_mm=count * abs(float(step @ normal)),
        regularity=regularity,
        tilt=tilt,
        made=made,
        findings=tuple(findings),
    )


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
        `{"status": "complete" | "unknown", "expected", "found", "instance_numbers": [first, last], "holes": [[from, to], ...]}`;
        holes are runs of InstanceNumber between the first and the last that no instance has; no number at all is None.

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
    holes = [[a + 1, b - 1] for a, b in itertools.pairwise(numbers) if b - a > 1]
    return {
        "status": "unknown" if expected is None else "complete",
        "expected": expected,
        "found": found,
        "instance_numbers": [numbers[0], numbers[-1]] if numbers else None,
        "holes": holes,
    }


def _is_deflated(instance: Instance) -> bool:
    return bool(instance.get("TransferSyntaxUID") == "1.2.840.10008.1.2.1.99")


def _texts(value: Any) -> list[str]:
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]


def _frozen(value: Any) -> Hashable:
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    return value if value is None or isinstance(value, (str, int, float)) else repr(value)


def _said(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return shown("\\".join(_said(v) for v in value))
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
        f"{shown(odd.path)} has {what} {_said(rare)} ({few} of {len(instances)} files), while {many} have {_said(common)}",
        values=len(counts),
    )


def _refuse_number(instance: Instance, keyword: str, kind: str) -> NoReturn:
    value = instance.get(keyword)
    code = f"no-{kind}" if value is None else f"bad-{kind}"
    has = f"has no {keyword}" if value is None else f"has {keyword} {_said(value)}"
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


def _orientation(instance: Instance) -> list[float]:
    cosines = _vector(instance, "ImageOrientationPatient", 6, "orientation")
    pair = np.array(cosines).reshape(2, 3)
    if np.abs(pair @ pair.T - np.eye(2)).max() > COSINE_OFF:
        raise DataError(
            "bad-orientation",
            f"{shown(instance.path)} has ImageOrientationPatient {_said(cosines)}: its two directions are not orthonormal "
            f"within {COSINE_OFF:g}",
        )
    return cosines


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
            f"{shown(instances[odd].path)} has ImageOrientationPatient {_said(list(cosines[odd]))}, "
            f"{shown(instances[nearest].path)} {_said(list(cosines[nearest]))}: {int((off > COSINE_OFF).sum())} of "
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
            f"{shown(instances[odd].path)} has PixelSpacing {_said(list(spacings[odd]))}, most have {_said(list(reference))}",
            largest_relative_difference=float(off.max()),
        )


def _one_image_a_position(instances: Sequence[Instance], depths: NDArray[np.float64]) -> None:
    """Refuse several images at one position; `instances` and `depths` (mm along the normal) are sorted."""
    level = np.concatenate([[0], np.cumsum(np.diff(depths) > SAME_POSITION_MM)])
    counts = np.bincount(level)
    if counts.max() == 1:
        return
    if len(counts) > 1 and (counts.min() > 1 or (counts > 1).mean() > 0.5):
        raise _several_volumes(instances, level)
    crowded = int(np.argmax(counts > 1))
    names = [shown(i.path) for i, at in zip(instances, level, strict=True) if at == crowded]
    raise DataError(
        "same-position",
        f"{len(names)} images lie at one position, {depths[int(np.searchsorted(level, crowded))]:g} mm along the normal: "
        f"{', '.join(names[:4])}",
        positions=len(counts),
        images=len(instances),
    )


def _several_volumes(instances: Sequence[Instance], level: NDArray[np.int_]) -> DataError:
    """Say how many volumes there are and what differs between them, as a numbered list."""
    most = int(np.bincount(level).max())
    differing = []
    for keyword in _VOLUME_KEYWORDS:
        values = [_frozen(i.get(keyword)) for i in instances]
        if len(set(values)) > 1 and len(set(zip(level.tolist(), values, strict=True))) > len(set(level.tolist())):
            differing.append((keyword, values))
    head = f"{most} images at each of {int(level[-1]) + 1} positions: "
    telling = next((pair for pair in differing if len(set(pair[1])) == most), None)
    if telling:
        keyword, values = telling
        groups = Counter(values)
        listed = "; ".join(f"{n}. {keyword} {_said(v)} ({groups[v]} images)" for n, v in enumerate(groups, 1))
        return DataError("several-volumes", head + listed, volumes=most, differs=[k for k, _ in differing])
    if differing:
        what = "they differ in " + ", ".join(k for k, _ in differing)
    else:
        what = "nothing in the headers but InstanceNumber tells them apart"
    listed = "; ".join(
        f"{n}. {shown(i.path)}" for n, i in enumerate((i for i, at in zip(instances, level, strict=True) if at == 0), 1)
    )
    return DataError(
        "several-volumes", f"{head}{what}; at the first: {listed}", volumes=most, differs=[k for k, _ in differing]
    )


def _values(instances: Sequence[Instance], keyword: str) -> list[Hashable]:
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


def _one_kind(instances: Sequence[Instance]) -> None:
    for keyword in _ONE_VALUE_KEYWORDS:
        if len(set(_values(instances, keyword))) > 1:
            _same(instances, operator.methodcaller("get", keyword), "mixed-kinds", keyword)


def _variation(instances: Sequence[Instance]) -> list[Finding]:
    """Refuse sorted slices of two acquisitions that were put between one another; tell what changes along one volume."""
    varying = []
    for keyword in _STEADY_KEYWORDS:
        values = _values(instances, keyword)
        kinds, runs = len(set(values)), sum(1 for _ in itertools.groupby(values))
        if runs > max(kinds, _FEW_RUNS):
            listed = ", ".join(_said(v) for v in list(dict.fromkeys(values))[:8]) + (" ..." if kinds > 8 else "")
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
        said = _said(value)
        raise DataError(
            "bad-slice-thickness",
            f"{shown(instance.path)} has SliceThickness {said if len(said) <= _SHORT_TEXT else 'that is no number'}",
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
        raise DataError("no-slice-thickness", f"{shown(instance.path)} has SliceThickness {_said(thickness)}")
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
        "step_mm": mean,
        "smallest_step_mm": float(steps.min()),
        "largest_step_mm": float(steps.max()),
        "off_grid_mm": float(off[worst]),
        "off_grid_allowed_mm": allowed,
    }
    if off[worst] <= allowed and float(np.abs(steps - mean).max()) <= STEP_OFF * mean:
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
    raise DataError("irregular-spacing", what, **found)


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
        missing=[number for number, _ in missing],
        positions_mm=[at for _, at in missing],
        spacing_mm=base,
    )


def _tilt(
    instances: Sequence[Instance], step: NDArray[np.float64], normal: NDArray[np.float64], count: int, pixel_mm: float
) -> dict[str, Any]:
    """Return the angle between slice vector and normal and its effect, or refuse a sheared stack."""
    along = float(step @ normal)
    aside = float(np.linalg.norm(step - along * normal))
    degrees = math.degrees(math.atan2(aside, along))
    shift = aside * (count - 1)
    stated = [t for i in instances if isinstance(t := i.get("GantryDetectorTilt"), (int, float)) and math.isfinite(t)]
    tag = float(stated[0]) if stated else None
    sheared = degrees > TILT_DEGREES and shift > TILT_VOXELS * pixel_mm
    if sheared:
        code = "gantry-tilt" if tag else "sheared-volume"
        said = f" (GantryDetectorTilt {tag:g})" if tag else ""
        raise DataError(
            code,
            f"the slices are shifted against one another: {degrees:.2f} degrees off the normal{said}, {shift:.3g} mm over the "
            "stack, which load-volume can't yet read",
            degrees=degrees,
            shift_mm=shift,
        )
    return {"degrees": degrees, "shift_mm": shift, "gantry_detector_tilt_deg": tag, "sheared": sheared}


def _stated_spacing(instances: Sequence[Instance], step: float) -> list[Finding]:
    stated = instances[0].get("SpacingBetweenSlices")
    if not isinstance(stated, (int, float)) or not math.isfinite(stated) or stated == 0:
        return []
    if abs(abs(stated) - step) <= max(POSITION_OFF_GRID_MM, POSITION_OFF_GRID_SPACING * step):
        return []
    text = f"SpacingBetweenSlices is {stated:g} mm, the positions are {step:g} mm apart: the positions are used"
    return [Finding("spacing-differs", text, {"stated_mm": stated, "step_mm": step})]
