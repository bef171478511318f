"""Read an RTSTRUCT as masks on the volume's grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mdcli.stage import Option, Sources, Stage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mdcli.dicom.finding import Finding
    from mdcli.dicom.rtstruct import Grid, Placed, StructureSet
    from mdcli.imaging.contours import Block
    from mdcli.workspace import Workspace

_REGION = {"value": "309825002", "scheme": "SCT", "meaning": "Spatial and Relational Concept"}
"""What every region of interest is, whatever it is of. Source: DICOM PS3.16 CID 7150."""
_NAMED = 4


@dataclass(frozen=True)
class Params:
    """What you can ask."""

    rtstruct: Annotated[Path, Option("The RTSTRUCT file", result=False, metavar="FILE")]
    roi: Annotated[tuple[str, ...], Option("Only the ROI with this exact name; may repeat", metavar="NAME")] = ()
    nested: Annotated[
        Literal["hole", "union"], "What a closed contour inside another of its ROI is: a hole, or nothing new"
    ] = "hole"
    as_masks: Annotated[bool, "Write one mask a ROI even where none overlap"] = False
    assume_registered: Annotated[
        bool, Option("Take contours of another frame of reference as if it were the volume's", loosens=True)
    ] = False


@dataclass
class _Counts:
    """What is known of one ROI's voxels."""

    voxels: int = 0
    first: bool = False
    last: bool = False


def run(ws: Workspace, params: Params) -> None:
    """Read the contours, put them on the slices, write labels, or masks where structures overlap."""
    from mdcli.dicom.opening import shown
    from mdcli.dicom.rtstruct import (
        check_frame,
        check_reach,
        choose,
        findings_of,
        grid_of,
        place,
        read_bytes,
        read_structure_set,
    )
    from mdcli.patients import check_patient

    union = params.nested == "union"
    with ws.span("read"):
        data = read_bytes(params.rtstruct)
        ws.sources_digest(_digest(data))
        structure = read_structure_set(data, shown(params.rtstruct.name))
        del data
        geometry = ws.read_json("geometry")
        grid = grid_of(geometry)
    rois = choose(structure.rois, params.roi)
    assumed = check_frame(rois, grid, assume_registered=params.assume_registered)
    _say(ws, [*structure.findings, *assumed])
    check_patient(ws, geometry, params.rtstruct, "the RTSTRUCT", allowed=params.assume_registered)
    study = geometry.get("study_instance_uid")
    if study and structure.study_instance_uid and structure.study_instance_uid != study:
        ws.warn("other-study", "the RTSTRUCT is of another study than the volume")
    with ws.span("place"):
        placed = [place(roi, grid, union=union) for roi in ws.progress(rois, "placing contours")]
        check_reach(placed, grid)
    _say(ws, findings_of(placed, structure, grid, union=union))
    with ws.span("labels"):
        labels, counts, shared = _labels(placed, grid)
    as_masks = params.as_masks or bool(shared)
    _refuse_mixing(ws, "masks" if as_masks else "labels")
    if shared:
        most = sorted(shared.items(), key=lambda pair: -pair[1])[:_NAMED]
        names = [f"{shown(a)} and {shown(b)} (at least {n} voxels)" for (a, b), n in most]
        more = f" and {len(shared) - _NAMED} more pairs" if len(shared) > _NAMED else ""
        ws.note("overlap", f"structures overlap, so that each gets a mask of its own: {', '.join(names)}{more}")
    with ws.span("write"):
        if as_masks:
            _write_masks(ws, placed, grid)
        else:
            ws.write_volume("labels", labels, grid.affine)
        ws.write_json("segments", _document(params, structure, placed, counts, geometry, as_masks, bool(assumed)))
    cut = [shown(p.roi.name) for p, c in zip(placed, counts, strict=True) if c.first or c.last]
    if cut:
        message = f"the first or the last slice is touched by {', '.join(cut[:8])}, which may go on beyond"
        ws.note("touches-edge", message, labels=cut)
    if not any(c.voxels for c in counts):
        ws.nothing_found("nothing-found", "no contour holds the centre of a voxel")


def _say(ws: Workspace, findings: Sequence[Finding]) -> None:
    for finding in findings:
        (ws.warn if finding.warning else ws.note)(finding.code, finding.message, **finding.numbers)


def _digest(data: bytes) -> str:
    from hashlib import sha256

    return sha256(data).hexdigest()


def _block(placed: Placed, grid: Grid) -> Block | None:
    from mdcli.errors import DataError
    from mdcli.imaging.contours import rasterise

    try:
        return rasterise(placed.contours, placed.planes, grid.shape)
    except DataError as error:
        from mdcli.dicom.opening import shown

        raise DataError(error.code, f"ROI {shown(placed.roi.name)}: {error.message}") from error


def _labels(placed: Sequence[Placed], grid: Grid) -> tuple[NDArray[Any], list[_Counts], dict[tuple[str, str], int]]:
    """Return the label map, what each ROI has, and the voxels that two of them share, the earlier one's name first.

    A voxel of several ROIs is counted with the first of them; the label map is then none to be written.
    """
    import numpy as np

    labels = np.zeros(grid.shape, np.uint8 if len(placed) < 256 else np.uint16)
    counts: list[_Counts] = []
    shared: dict[tuple[str, str], int] = {}
    for value, one in enumerate(placed, start=1):
        count = _Counts()
        counts.append(count)
        block = _block(one, grid)
        if block is None:
            continue
        mask = block.mask.view(bool)
        before = labels[block.slices][mask]
        count.voxels = len(before)
        count.first = block.start[0] == 0 and bool(mask[0].any())
        count.last = block.start[0] + len(mask) == grid.shape[0] and bool(mask[-1].any())
        taken = np.bincount(before, minlength=1)
        for other in (np.flatnonzero(taken[1:]) + 1).tolist():
            shared[placed[other - 1].roi.name, one.roi.name] = int(taken[other])
        labels[block.slices][mask & (labels[block.slices] == 0)] = value
    return labels, counts, shared


def _write_masks(ws: Workspace, placed: Sequence[Placed], grid: Grid) -> None:
    """Write one mask a ROI that has voxels, named by its value; rows that it does not reach are left holes in the file."""
    import numpy as np

    from mdcli.imaging.nifti import HEADER_BYTES, nifti_header

    header = nifti_header(grid.shape, "uint8", grid.affine)
    _, rows, columns = grid.shape
    with ws.writing("masks") as folder:
        folder.mkdir(mode=0o700)
        for value, one in enumerate(ws.progress(placed, "writing masks"), start=1):
            block = _block(one, grid)
            if block is None or not block.mask.any():
                continue
            with (folder / f"{value:04d}.nii").open("wb") as file:
                file.write(header)
                band = np.zeros((block.mask.shape[1], columns), np.uint8)
                for k, mask in enumerate(block.mask, start=block.start[0]):
                    if mask.any():
                        band[:, block.slices[2]] = mask
                        file.seek(HEADER_BYTES + (k * rows + block.start[1]) * columns)
                        file.write(band.tobytes())
                file.truncate(HEADER_BYTES + grid.shape[0] * rows * columns)


def _refuse_mixing(ws: Workspace, kind: str) -> None:
    """Refuse to describe labels that another stage made by a segments.json of other structures."""
    from mdcli.errors import UsageError
    from mdcli.workspace import artifact_name

    other = {"masks": "labels", "labels": "masks"}[kind]
    role = ws.role_to_write(other)
    record = ws.record(role)
    if ws.locate(role).exists() and (record is None or record.stage != STAGE.name):
        name = artifact_name(ws.role_to_write("segments"))
        message = f"{artifact_name(role)} is another stage's, and {name} describes it"
        raise UsageError("same-name", message, hint="give what is read a name of its own with --as NAME")


def _document(
    params: Params,
    structure: StructureSet,
    placed: Sequence[Placed],
    counts: Sequence[_Counts],
    geometry: Mapping[str, Any],
    as_masks: bool,
    assumed: bool,
) -> dict[str, Any]:
    made = [*(geometry.get("made") or [])]
    made += ["contours of another frame of reference, by --assume-registered"] if assumed else []
    drawn = any(one.roi.algorithm == "AUTOMATIC" for one in placed)
    return {
        "schema": "md.segments/1",
        "segments": [
            _segment(value, one, count) for value, (one, count) in enumerate(zip(placed, counts, strict=True), start=1)
        ],
        "read_from": {
            "kind": "RTSTRUCT",
            "sop_instance_uid": structure.sop_instance_uid,
            "form": "masks" if as_masks else "labels",
            "grid": "volume",
            "assumed_registered": assumed,
            "nested": params.nested,
        },
        "task": "segmentation",
        "empty": "valid",
        "result": "processed" if any(c.voxels for c in counts) else "nothing-found",
        "out_of_scope": None,
        **{key: geometry.get(key) for key in ("series_instance_uid", "frame_of_reference_uid")},
        "series_description_prefix": "AI " if drawn else "",
        **{key: geometry.get(key) for key in ("completeness", "lossy", "padding")},
        "made": made,
    }


def _segment(value: int, placed: Placed, count: _Counts) -> dict[str, Any]:
    roi = placed.roi
    # Nobody's word is UNKNOWN in a SEG: a ROI of which the file does not say it counts as made with a machine's help.
    algorithm = {"type": roi.algorithm or "SEMIAUTOMATIC", "name": None, "version": None}
    return {
        "value": value,
        "name": roi.name,
        "category": _REGION,
        **({"type": dict(roi.code)} if roi.code else {}),
        "original_number": roi.number,
        "interpreted_type": roi.interpreted_type,
        "colour": list(roi.colour) if roi.colour else None,
        "algorithm": algorithm,
        "voxels": count.voxels,
        "touches_first_slice": count.first,
        "touches_last_slice": count.last,
        "contours": {
            "read": len(roi.contours),
            "nested": placed.holes,
            "crossing": placed.crossing,
            "outside": placed.outside,
            "left_out": sum(placed.left_out.values()),
            "slices_without": list(placed.without),
        },
    }


def sources(ws: Workspace, params: Params) -> Sources | None:
    """Name the RTSTRUCT, and how to tell whether it has changed."""
    # A status can't name the file: no record keeps a path.
    if not params.rtstruct:
        return None
    from mdcli.dicom.opening import shown
    from mdcli.errors import MissingError

    path = params.rtstruct
    if not path.exists():
        raise MissingError("no-source", f"there is no file {shown(path.name)}")

    def digest() -> str:
        from mdcli.dicom.rtstruct import read_bytes

        return _digest(read_bytes(path))

    return Sources(path.absolute().parent, (path.name,), digest)


def preload(params: Params) -> None:
    """Import what every case needs."""
    import mdcli.dicom.rtstruct

    assert mdcli.dicom.rtstruct


STAGE = Stage(
    "read-rtstruct",
    Params,
    run,
    reads=("geometry",),
    writes=("labels", "masks", "segments"),
    optional_reads=("series",),
    optional_writes=("labels", "masks"),
    version=1,
    sources=sources,
    preload=preload,
)
