"""Describe a loaded volume: `geometry.json` (`md.geometry/1`) for the stages after it, and its report for a person.

What carries meaning is here: the source of every slice, the float64 affine, the unit, what was dropped, made or assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mdcli.dicom.codecs import SYNTAXES
from mdcli.dicom.geometry import TOLERANCES, Geometry
from mdcli.dicom.instance import Instance
from mdcli.dicom.loading import Plan, Reading, header_of, told_apart
from mdcli.dicom.opening import SourceFiles
from mdcli.dicom.pixels import Layout, Rescale, SliceRead
from mdcli.dicom.voi_lut import voi_lut_table
from mdcli.imaging.nifti import PATIENT

SCHEMA = "md.geometry/1"


def geometry_document(
    plan: Plan, reading: Reading, completeness: Mapping[str, Any], dropped: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return `geometry.json` of a volume whose pixels were read.

    Args:
        plan: the volume.
        reading: how its pixels were read.
        completeness: of its series.
        dropped: files and frames that were left out.
    """
    first, step = plan.steps[0].frames[0], plan.steps[0]
    frames = list(plan.frames)
    plans = [layout for s in plan.steps for layout in s.layouts]
    reads = [read for found in reading.reads for read in found]
    made = [*plan.made, *(["unit HU, by --assume-hu"] if step.rescale.assumed else [])]
    return {
        "schema": SCHEMA,
        "series_instance_uid": first.get("SeriesInstanceUID"),
        "study_instance_uid": first.get("StudyInstanceUID"),
        "frame_of_reference_uid": first.get("FrameOfReferenceUID"),
        "sop_class_uid": first.get("SOPClassUID"),
        "modality": first.get("Modality"),
        "patient_position": first.get("PatientPosition"),
        "shape": list(plan.shape),
        "affine_lps": plan.affine.tolist(),
        "unit": plan.unit,
        "rescale_type": step.rescale.rescale_type,
        **_place(plan),
        "tolerances": TOLERANCES,
        "dimension": plan.dimension,
        "volume": dict(told_apart(plan)),
        "colour": "RGB" if plan.is_colour else None,
        "photometric_interpretation": first.get("PhotometricInterpretation"),
        "display": _display(frames, reading.files),
        "transfer_syntaxes": sorted({layout.syntax for layout in plans}),
        "lossy": _lossy(frames, plans, reads),
        "padding": _padding(plan, reads),
        "made": made,
        "resampled": _resampled(plan, reading),
        "completeness": dict(completeness),
        "dropped": [dict(item) for item in dropped],
        "slices": [
            entry
            for t, s in enumerate(plan.steps)
            for entry in _slices(plan, s.frames, s.rescale, t if plan.dimension else None)
        ],
    }


def _place(plan: Plan) -> dict[str, Any]:
    """Return where the volume lies, by the headers of its frames."""
    geometry = plan.geometry
    if isinstance(geometry, Geometry):
        return {
            "spacing_plane": PATIENT,
            "spacing_mm": list(geometry.spacing_mm) if plan.regrid is None else _lengths(plan),
            "orientation": geometry.plane,
            "obliquity_deg": geometry.obliquity_deg,
            "direction_orthonormal": geometry.orientation.tolist(),
            "coverage_mm": geometry.coverage_mm,
            "regularity": geometry.regularity,
            "tilt": geometry.tilt,
        }
    spacing = geometry.spacing_mm
    return {
        "spacing_plane": geometry.spacing_plane,
        "spacing_attribute": geometry.attribute,
        "spacing_mm": None if spacing is None else [*spacing, None],
        "orientation": None,
        "obliquity_deg": None,
        "direction_orthonormal": None,
        "coverage_mm": None,
        "regularity": None,
        "tilt": None,
        "regions": list(geometry.regions),
    }


def _lengths(plan: Plan) -> list[float]:
    return [float((plan.affine[:3, n] @ plan.affine[:3, n]) ** 0.5) for n in range(3)]


def _slices(plan: Plan, frames: Sequence[Instance], rescale: Rescale, t: int | None) -> list[dict[str, Any]]:
    planar = not isinstance(plan.geometry, Geometry)
    rows = zip(frames, rescale.slopes, rescale.intercepts, strict=True)
    return [
        {
            "k": k,
            **({} if t is None else {"t": t}),
            "sop_instance_uid": frame.get("SOPInstanceUID"),
            "path": frame.path,
            "frame": None if frame.frame is None else frame.frame + 1,
            **({} if frame.tile is None else {"tile": list(frame.tile)}),
            "instance_number": frame.get("InstanceNumber"),
            "position_mm": None if planar else [float(v) for v in frame.attributes["ImagePositionPatient"]],
            "rescale_slope": slope,
            "rescale_intercept": intercept,
        }
        for k, (frame, slope, intercept) in enumerate(rows)
    ]


# What decides how a display shows an image, beside tables.
_SHOWN_BY = ("PhotometricInterpretation", "PresentationLUTShape", "WindowCenter", "WindowWidth", "VOILUTFunction")


def _display(frames: Sequence[Instance], files: SourceFiles) -> dict[str, Any]:
    """Return what a display would still apply to the modality values: window or VOI LUT, polarity, palette; of the first image.

    Source: DICOM PS3.3 C.11.2 (VOI LUT), C.7.6.3.1.2 (MONOCHROME1 shows low values bright), C.11.6 (Presentation LUT Shape), C.7.9.
    """
    frame = frames[0]
    photometric, shape = frame.get("PhotometricInterpretation"), frame.get("PresentationLUTShape")
    tabled = {f.path for f in frames if f.get("VOILUTSequence") is not None}
    # Tables of several files are not compared: their headers would all be read again.
    alike = all(f.get(keyword) == frame.get(keyword) for f in frames for keyword in _SHOWN_BY)
    # An image of MONOCHROME1 has the shape INVERSE where it has one (PS3.3 C.8.11.3.1.2): the polarity is inverted once.
    return {
        "inverted": photometric == "MONOCHROME1" or shape == "INVERSE",
        "presentation_lut_shape": shape,
        "window_center": _listed(frame.get("WindowCenter")),
        "window_width": _listed(frame.get("WindowWidth")),
        "voi_lut_function": frame.get("VOILUTFunction"),
        "voi_lut": frame.get("VOILUTSequence") is not None,
        "voi_lut_table": voi_lut_table(frame, header_of(files, frame)) if frame.path in tabled else None,
        "same_for_all": alike and (not tabled or len({f.path for f in frames}) == 1),
        "palette": photometric == "PALETTE COLOR",
        "presentation_intent_type": frame.get("PresentationIntentType"),
    }


def _listed(value: Any) -> list[Any] | None:
    return None if value is None else value if isinstance(value, list) else [value]


def _resampled(plan: Plan, reading: Reading) -> dict[str, Any] | None:
    regrid = plan.regrid
    if regrid is None:
        return None
    geometry = plan.geometry
    return {
        "why": list(regrid.why),
        "source_shape": list(plan.source_shape),
        "source_affine_lps": geometry.affine.tolist(),
        "source_offsets": None if regrid.offsets is None else list(regrid.offsets),
        "made_slices": None if regrid.made is None else list(regrid.made),
        "missing_mm": list(geometry.missing) if isinstance(geometry, Geometry) else [],
        "interpolation": "linear",
        "fill": reading.fill,
    }


def _lossy(frames: Sequence[Instance], plans: Sequence[Layout], reads: Sequence[SliceRead]) -> dict[str, Any] | None:
    """Return how the pixels lost information on their way, by the headers and by the codestreams; None where nothing says so."""
    stated = [f for f in frames if f.get("LossyImageCompression") == "01"]
    streams = sorted({read.lossy for read in reads if read.lossy})
    # A syntax that allows loss, in a header that is silent about it.
    silent = [
        f
        for f, plan in zip(frames, plans, strict=True)
        if SYNTAXES[plan.syntax].may_be_lossy and f.get("LossyImageCompression") is None
    ]
    lost = {(f.path, f.frame) for f in (*stated, *silent)}
    lost |= {(f.path, f.frame) for f, read in zip(frames, reads, strict=True) if read.lossy}
    if not lost:
        return None
    first = (stated or silent or list(frames))[0]
    return {
        "slices": len(lost),
        "certain": bool(stated or streams),
        "method": first.get("LossyImageCompressionMethod"),
        "ratio": first.get("LossyImageCompressionRatio"),
        "codestream": streams,
    }


def _padding(plan: Plan, reads: Sequence[SliceRead]) -> dict[str, Any] | None:
    """Return which values mean that nothing was measured, slice by slice where they differ; the voxels themselves are kept."""
    paddings = [p for step in plan.steps for p in step.paddings]
    if not any(paddings):
        return None
    stored = [list(p) if p else None for p in paddings]
    modality: list[list[float] | None] = []
    for step in plan.steps:
        scaled = zip(step.paddings, step.rescale.slopes, step.rescale.intercepts, strict=True)
        if step.luts:
            # A table gives every stored value one of its own: a range of them is no range any more.
            modality += [None for _ in step.paddings]
        else:
            modality += [sorted([a * p[0] + b, a * p[1] + b]) if p else None for p, a, b in scaled]
    alike = all(pair == modality[0] for pair in modality) and all(pair == stored[0] for pair in stored)
    return {
        "voxels": sum(read.padding_voxels for read in reads),
        "stored": stored[0] if alike else None,
        "range": modality[0] if alike else None,
        "stored_by_slice": None if alike else stored,
        "range_by_slice": None if alike else modality,
    }


def report_text(document: Mapping[str, Any]) -> str:
    """Return `geometry.json` as a person wants to read it."""
    lines: list[tuple[str, str]] = []
    k, j, i = document["shape"]
    dimension = document.get("dimension")
    fourth = f" x {len(dimension['values'])} ({dimension['name']})" if dimension else ""
    what = "image" if document["spacing_plane"] != PATIENT else "volume"
    lines.append((what, f"{i} columns x {j} rows x {k} slice{'s' if k > 1 else ''}{fourth}"))
    if dimension:
        unit = f" {dimension['unit']}" if dimension["unit"] else ""
        shown = ", ".join(_short(v) for v in dimension["values"][:8]) + (" ..." if len(dimension["values"]) > 8 else "")
        lines.append((f"{dimension['name']}", f"{shown}{unit} ({'+'.join(dimension['keywords'])})"))
    lines.append(("unit", f"{document['unit'] or 'not stated'}{', colour' if document.get('colour') else ''}"))
    lines += _where_lines(document)
    whole = document["completeness"]
    expected = (
        f" of {whole['expected']} expected"
        if whole["expected"] is not None
        else ", how many there should be is unknown"
    )
    lines.append(("completeness", f"{whole['found']} instances{expected}" + _hole_text(whole)))
    resampled = document.get("resampled")
    if resampled:
        lines.append(
            (
                "resampled",
                f"because of {' and '.join(resampled['why'])}, {resampled['interpolation']}; {_made_text(resampled)}",
            )
        )
    lines += [("made", str(text)) for text in document["made"]]
    for reason, count in _dropped_counts(document["dropped"]).items():
        lines.append(("left out", f"{count} x {reason}"))
    told = document.get("volume") or {}
    if told:
        lines.append(("picked", ", ".join(f"{key} {_short(value)}" for key, value in told.items())))
    if document.get("lossy"):
        lines.append(("lossy", f"{document['lossy']['slices']} frames"))
    if document.get("display", {}).get("inverted"):
        lines.append(("display", "a viewer would still invert the values"))
    lines.append(("tolerances", ", ".join(f"{name} {value:g}" for name, value in document["tolerances"].items())))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {text}" for name, text in lines)


def _where_lines(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    spacing = document["spacing_mm"]
    if document["spacing_plane"] != PATIENT:
        if spacing is None:
            return [("spacing", f"unknown ({document['spacing_plane']}): no millimetres")]
        said = f"{spacing[0]:g} x {spacing[1]:g} mm ({document['spacing_plane']}, {document['spacing_attribute']})"
        return [("spacing", said)]
    tilt, regularity = document["tilt"], document["regularity"]
    lines = [
        ("spacing", f"{spacing[0]:g} x {spacing[1]:g} x {spacing[2]:g} mm (i, j, k)"),
        (
            "orientation",
            f"{document['orientation']}, normal {document['obliquity_deg']:.2f} degrees off the nearest axis",
        ),
        ("coverage", f"{document['coverage_mm']:g} mm along the normal"),
    ]
    if regularity["smallest_step_mm"] is None:
        lines.append(("regularity", "one slice"))
    elif regularity["regular"]:
        allowed = regularity["off_grid_allowed_mm"]
        lines.append(
            (
                "regularity",
                f"regular: at most {regularity['off_grid_mm']:.3g} mm off the grid, {allowed:g} mm are allowed",
            )
        )
    else:
        steps = f"{regularity['smallest_step_mm']:g} to {regularity['largest_step_mm']:g} mm"
        lines.append(("regularity", f"uneven: steps of {steps}"))
    tag = tilt["gantry_detector_tilt_deg"]
    stated = f" (GantryDetectorTilt {tag:g})" if tag is not None else ""
    sheared = f", shifted by {tilt['shift_mm']:.3g} mm over the stack: sheared" if tilt["sheared"] else ": none"
    lines.append(("tilt", f"{tilt['degrees']:.2f} degrees{stated}{sheared}"))
    return lines


def _hole_text(whole: Mapping[str, Any]) -> str:
    if not whole["holes"]:
        return ""
    return "; no InstanceNumber " + ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in whole["holes"][:8])


def _made_text(resampled: Mapping[str, Any]) -> str:
    made = resampled["made_slices"]
    if made is None:
        return "no slice of the volume is one of the source's"
    return (
        f"slices made: {', '.join(str(k) for k in made[:20])}{' ...' if len(made) > 20 else ''}"
        if made
        else "no slice made"
    )


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "\\".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else "absent" if value is None else str(value)


def _dropped_counts(dropped: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for item in dropped:
        counts[str(item["reason"])] = counts.get(str(item["reason"]), 0) + 1
    return counts
