"""Load the selected series as one volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from mdcli.stage import Option, Sources, Stage

if TYPE_CHECKING:
    from mdcli.dicom.finding import Finding
    from mdcli.dicom.geometry import Geometry
    from mdcli.dicom.instance import Instance
    from mdcli.dicom.pixels import Layout, Rescale, SliceRead
    from mdcli.workspace import Workspace


@dataclass(frozen=True)
class Params:
    """What you can ask."""

    expect_instances: Annotated[int | None, "Refuse the series unless it has this many instances"] = None
    single_slice: Annotated[
        bool, Option("Take one slice as a volume, its SliceThickness (mm) as spacing", loosens=True)
    ] = False
    assume_hu: Annotated[bool, Option("Take CT values that have no unit as Hounsfield units", loosens=True)] = False


def run(ws: Workspace, params: Params) -> None:
    """Read the slices, check that they are one volume, write it and where it lies."""
    from mdcli.dicom.geometry import check_single_frames, completeness, volume_geometry
    from mdcli.dicom.opening import SourceFiles
    from mdcli.dicom.pixels import (
        describe_codestreams,
        layouts,
        modality_slabs,
        modality_type,
        padding_range,
        rescale_of,
    )
    from mdcli.dicom.reading import read_stored
    from mdcli.dicom.series import dropped_from_json, instances_from_json

    with ws.span("check"):
        listed = ws.read_json("series")
        instances = instances_from_json(listed)
        root = ws.source_root("series")
        check_single_frames(instances)
        whole = completeness(instances, params.expect_instances)
        plans, notes = layouts(instances)
        geometry = volume_geometry(instances, single_slice=params.single_slice)
        slices, plans = [instances[n] for n in geometry.order], [plans[n] for n in geometry.order]
        rescale = rescale_of(slices, assume_hu=params.assume_hu)
        paddings = [padding_range(i, x) for i, x in zip(slices, plans, strict=True)]
    _say(ws, [*notes, *geometry.findings])
    _say_incomplete(ws, whole)

    with ws.span("read"), SourceFiles(root) as files, ws.progress_bar(len(slices), "reading slices") as done:
        stored, reads = read_stored(files, slices, plans, paddings, ws.jobs, done)
    ws.sources_digest(_digest_of({i.path: read.sha256 for i, read in zip(slices, reads, strict=True)}))
    _say(ws, describe_codestreams(plans, reads))
    if rescale.assumed:
        ws.warn("assumed-hu", "the values are taken as Hounsfield units on request; no header says so")

    with ws.span("write"):
        dtype = modality_type(stored, reads, rescale)
        with ws.volume_writer("volume", geometry.shape, dtype, geometry.affine, rescale.unit) as out:
            for slab in modality_slabs(stored, rescale, dtype):
                out.write(slab)
    document = _document(slices, plans, reads, geometry, rescale)
    document |= {"completeness": whole, "padding": _padding(paddings, reads, rescale)}
    document["dropped"] = dropped_from_json(listed)
    if lossy := document["lossy"]:
        how = (
            "were compressed with loss"
            if lossy["certain"]
            else "are encoded in a way that allows loss; no header says more"
        )
        ws.warn("lossy-source", f"{lossy['slices']} of {len(slices)} slices {how}")
    ws.write_json("geometry", {"schema": "md.geometry/1", **document})


def _say(ws: Workspace, findings: Sequence[Finding]) -> None:
    for finding in findings:
        (ws.warn if finding.warning else ws.note)(finding.code, finding.message, **finding.numbers)


def _say_incomplete(ws: Workspace, whole: dict[str, Any]) -> None:
    if whole["holes"]:
        named = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in whole["holes"][:8])
        more = " ..." if len(whole["holes"]) > 8 else ""
        text = f"no instance has InstanceNumber {named}{more}: the series may be incomplete"
        if whole["status"] == "complete":
            ws.note("instance-numbers-missing", f"{text}, but has as many instances as expected")
        else:
            ws.warn("instance-numbers-missing", f"{text}; --expect-instances says how many there should be")


def _digest_of(digests: dict[str, str]) -> str:
    from mdcli.records import sha256_of

    return sha256_of(sorted(digests.items()))


def _document(
    slices: Sequence[Instance],
    plans: Sequence[Layout],
    reads: Sequence[SliceRead],
    geometry: Geometry,
    rescale: Rescale,
) -> dict[str, Any]:
    from mdcli.dicom.geometry import TOLERANCES

    first = slices[0]
    rows = zip(slices, geometry.positions, rescale.slopes, rescale.intercepts, strict=True)
    return {
        "series_instance_uid": first.get("SeriesInstanceUID"),
        "study_instance_uid": first.get("StudyInstanceUID"),
        "frame_of_reference_uid": first.get("FrameOfReferenceUID"),
        "sop_class_uid": first.get("SOPClassUID"),
        "modality": first.get("Modality"),
        "patient_position": first.get("PatientPosition"),
        "shape": list(geometry.shape),
        "affine_lps": geometry.affine.tolist(),
        "unit": rescale.unit,
        "rescale_type": rescale.rescale_type,
        "spacing_mm": list(geometry.spacing_mm),
        "orientation": geometry.plane,
        "obliquity_deg": geometry.obliquity_deg,
        "direction_orthonormal": geometry.orientation.tolist(),
        "coverage_mm": geometry.coverage_mm,
        "regularity": geometry.regularity,
        "tilt": geometry.tilt,
        "tolerances": TOLERANCES,
        "dimension": None,
        "photometric_interpretation": first.get("PhotometricInterpretation"),
        "transfer_syntaxes": sorted({plan.syntax for plan in plans}),
        "lossy": _lossy(slices, plans, reads),
        "made": [*geometry.made, *(["unit HU, by --assume-hu"] if rescale.assumed else [])],
        "slices": [
            {
                "k": k,
                "sop_instance_uid": instance.get("SOPInstanceUID"),
                "path": instance.path,
                "instance_number": instance.get("InstanceNumber"),
                "position_mm": position.tolist(),
                "rescale_slope": slope,
                "rescale_intercept": intercept,
            }
            for k, (instance, position, slope, intercept) in enumerate(rows)
        ],
    }


def _lossy(slices: Sequence[Instance], plans: Sequence[Layout], reads: Sequence[SliceRead]) -> dict[str, Any] | None:
    """Return how the pixels lost information on their way, by the headers and by the codestreams; None where nothing says so."""
    from mdcli.dicom.codecs import SYNTAXES

    stated = [i for i in slices if i.get("LossyImageCompression") == "01"]
    streams = sorted({read.lossy for read in reads if read.lossy})
    # A syntax that allows loss, in a header that is silent about it.
    silent = [
        i
        for i, plan in zip(slices, plans, strict=True)
        if SYNTAXES[plan.syntax].may_be_lossy and i.get("LossyImageCompression") is None
    ]
    lost = {i.path for i in (*stated, *silent)} | {i.path for i, read in zip(slices, reads, strict=True) if read.lossy}
    if not lost:
        return None
    first = (stated or silent or list(slices))[0]
    return {
        "slices": len(lost),
        "certain": bool(stated or streams),
        "method": first.get("LossyImageCompressionMethod"),
        "ratio": first.get("LossyImageCompressionRatio"),
        "codestream": streams,
    }


def _padding(
    paddings: Sequence[tuple[int, int] | None], reads: Sequence[SliceRead], rescale: Rescale
) -> dict[str, Any] | None:
    """Return which values mean that nothing was measured, slice by slice where they differ; the voxels themselves are kept."""
    if not any(paddings):
        return None
    stored = [list(p) if p else None for p in paddings]
    modality = [
        sorted([a * p[0] + b, a * p[1] + b]) if p else None
        for p, a, b in zip(paddings, rescale.slopes, rescale.intercepts, strict=True)
    ]
    alike = all(pair == modality[0] for pair in modality) and all(pair == stored[0] for pair in stored)
    return {
        "voxels": sum(read.padding_voxels for read in reads),
        "stored": stored[0] if alike else None,
        "range": modality[0] if alike else None,
        "stored_by_slice": None if alike else stored,
        "range_by_slice": None if alike else modality,
    }


def sources(ws: Workspace, params: Params) -> Sources:
    """Name the DICOM files, and how to tell whether what they hold has changed."""
    from mdcli.dicom.opening import split_path

    document = ws.read_json("series")
    root = ws.source_root("series")
    paths = [str(item["path"]) for item in document.get("instances", ())]

    def digest() -> str:
        from mdcli.dicom.opening import SourceFiles
        from mdcli.dicom.pixels import file_digest
        from mdcli.dicom.series import instances_from_json

        with SourceFiles(root) as files:
            return _digest_of({i.path: file_digest(files, i) for i in instances_from_json(document)})

    return Sources(root, tuple(sorted({split_path(root, path)[0] for path in paths})), digest)


def preload(params: Params) -> None:
    """Import what every case needs."""
    import mdcli.dicom.geometry
    import mdcli.dicom.opening
    import mdcli.dicom.reading
    import mdcli.imaging.nifti

    assert mdcli.dicom.reading


STAGE = Stage(
    "load-volume",
    Params,
    run,
    reads=("series",),
    writes=("volume", "geometry"),
    version=1,
    sources=sources,
    preload=preload,
)
