"""Read a DICOM Segmentation onto the volume's grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mdcli.errors import DataError, UsageError
from mdcli.stage import Option, Sources, Stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mdcli.dicom.seg_in import Seg
    from mdcli.dicom.seg_place import Grid, Place, Stack, Survey
    from mdcli.workspace import Workspace


@dataclass(frozen=True)
class Params:
    """What you can ask."""

    seg: Annotated[Path, Option("The SEG file", result=False, metavar="FILE")]
    as_masks: Annotated[bool, "Write one mask a segment even where none overlap"] = False
    threshold: Annotated[
        float, Option("FRACTIONAL: share of the maximum from which a voxel belongs to the segment", metavar="SHARE")
    ] = 0.5
    scores: Annotated[bool, "FRACTIONAL: write the fractions themselves as well"] = False
    own_grid: Annotated[bool, "Keep the SEG's own grid, whatever the volume's is"] = False
    resample: Annotated[bool, "Take nearest neighbours on the volume's grid where the SEG has another"] = False
    assume_registered: Annotated[
        bool, Option("Take a SEG of another frame of reference as lying where it says", loosens=True)
    ] = False


@dataclass(frozen=True)
class _Result:
    """What is to be written: on which grid, and what of it.

    Attributes:
        grid: of the labels or masks.
        kind: `volume`, `own` or `resampled`.
        survey: what the frames hold on the grid that they were stacked on.
        stack: the frames on that grid.
        outside: voxels of the SEG that the grid does not hold.
    """

    grid: Grid
    kind: str
    survey: Survey
    stack: Stack
    outside: int


def run(ws: Workspace, params: Params) -> None:
    """Read what the SEG describes, place its frames, write labels (or masks) and what they mean."""
    from mdcli.dicom.seg_in import open_frames, read_seg_header, seg_digest
    from mdcli.dicom.seg_place import Stack

    if params.own_grid and params.resample:
        raise UsageError("bad-options", "--own-grid and --resample exclude each other")
    if not 0 < params.threshold <= 1:
        raise UsageError("bad-threshold", f"--threshold is {params.threshold:g}, not above 0 and at most 1")
    geometry = ws.read_json("geometry") if not params.own_grid or ws.has("geometry") else None
    with ws.span("header"):
        ws.sources_digest(seg_digest(params.seg))
        seg = read_seg_header(params.seg)
    if params.scores and seg.segmentation_type != "FRACTIONAL":
        raise DataError("no-scores", f"{seg.name} is {seg.segmentation_type}: it has no fractions")
    assumed = geometry is not None and not params.own_grid and _assumed(ws, seg, geometry, params.assume_registered)
    if geometry is not None:
        from mdcli.patients import check_patient

        check_patient(ws, geometry, params.seg, seg.name, allowed=params.assume_registered)
    grid, kind, places = _placed(ws, seg, geometry, params)
    values = _values(seg)
    with ExitStack() as opened:
        with ws.span("pixels"):
            frames = opened.enter_context(open_frames(params.seg, seg, ws.jobs))
            least = max(1, params.threshold * seg.maximum) if seg.segmentation_type == "FRACTIONAL" else 1
            stack = Stack(seg, frames, grid, places, values, least)
            survey = stack.survey()
        found = _Result(grid, kind, survey, stack, survey.outside)
        if kind == "volume" and survey.outside:
            hint = "load the whole series, or --own-grid keeps the SEG's grid"
            text = f"{survey.outside} voxels of {seg.name} lie outside the volume"
            raise DataError("outside-volume", text, hint=hint, voxels=survey.outside)
        form = "masks" if params.as_masks or survey.labels is None else "labels"
        _say(ws, seg, found, values)
        with ws.span("write"):
            counts = _write(ws, found, form, geometry, values)
            if params.scores:
                _write_scores(ws, found, geometry, values)
        found = replace(found, outside=survey.outside + _lost(ws, found, counts, values, geometry))
    _write_segments(ws, seg, params, found, form, counts, values, geometry, assumed)


def _assumed(ws: Workspace, seg: Seg, geometry: Mapping[str, Any], allowed: bool) -> bool:
    """Hold the SEG's frame of reference against the volume's, and say whether it was only assumed to be the same.

    Where one of the two names none, a SEG that refers to the volume's images is in their space.
    """
    from mdcli.dicom.uids import derived_uid

    series = geometry.get("series_instance_uid")
    theirs, ours = seg.frame_of_reference_uid, geometry.get("frame_of_reference_uid")
    images = {entry.get("sop_instance_uid") for entry in geometry["slices"]}
    if ours is None and series and theirs == derived_uid("frame-of-reference", str(series)):
        ours = theirs
    alike = theirs == ours if theirs and ours else bool(images & seg.referenced)
    if seg.study_instance_uid != geometry.get("study_instance_uid") and geometry.get("study_instance_uid"):
        ws.warn("other-study", f"{seg.name} is of another study than the volume")
    missing = seg.referenced - images
    if missing and images != {None} and images:
        text = f"{seg.name} refers to {len(missing)} of {len(seg.referenced)} images that the volume does not have"
        ws.warn("references-missing", text, missing=len(missing), referenced=len(seg.referenced))
    if alike:
        return False
    if not allowed:
        what = "another frame of reference than the volume" if theirs and ours else "no frame of reference in common"
        hint = "--assume-registered takes it as lying where it says"
        raise DataError("frames-of-reference-differ", f"{seg.name} has {what}", hint=hint)
    ws.warn("assumed-registered", f"{seg.name} is taken into the volume's frame of reference on request")
    return True


def _placed(
    ws: Workspace, seg: Seg, geometry: Mapping[str, Any] | None, params: Params
) -> tuple[Grid, str, list[Place]]:
    """Return the grid that the frames are stacked on, what it is, and where each frame lies on it."""
    from mdcli.dicom.seg_place import grid_of, misplaced, own_grid, place_frames

    if params.own_grid or geometry is None:
        own = own_grid(seg)
        return own, "own", place_frames(seg, own)
    grid = grid_of(geometry)
    try:
        places = place_frames(seg, grid)
    except DataError as error:
        if error.code not in ("other-grid", "seg-orientations") or not params.resample:
            raise
        own = own_grid(seg)
        return own, "resampled", place_frames(seg, own)
    odd = list(misplaced(seg, places, grid))
    if odd:
        text = f"{len(odd)} frames of {seg.name} refer to another slice than the one that they lie on; their position counts"
        ws.warn("reference-differs", text, frames=odd[:20])
    return grid, "volume", places


def _values(seg: Seg) -> dict[int, int]:
    """Return segment number to label value: the number itself; a structure with the number 0 gets the next free one."""
    numbers = seg.numbers
    return {number: number or max(*numbers, 1) + 1 for number in numbers}


def _names(seg: Seg) -> dict[int, str]:
    return {segment.number: segment.name for segment in seg.segments}


def _say(ws: Workspace, seg: Seg, found: _Result, values: Mapping[int, int]) -> None:
    survey, names = found.survey, _names(seg)
    if survey.doubled:
        ws.note("doubled-frames", f"{survey.doubled} frames of {seg.name} say again what another says")
    if survey.overlaps:
        (a, b), most = max(survey.overlaps.items(), key=lambda item: (item[1], item[0]))
        pairs = len(survey.overlaps)
        text = f"{pairs} pair(s) of segments overlap, {names[a]} and {names[b]} the most in {most} voxels: written as masks"
        ws.note("segments-overlap", text, pairs=[[a, b, n] for (a, b), n in sorted(survey.overlaps.items())[:100]])
    renumbered = {number: value for number, value in values.items() if value != number}
    if renumbered:
        ws.note("renumbered", f"segment 0 has the label value {renumbered[0]}", values=renumbered)


def _resampled(
    found: _Result, array: NDArray[Any], geometry: Mapping[str, Any] | None, jobs: int
) -> Iterator[NDArray[Any]]:
    """Yield an array on the stacked grid as slabs on the grid that is written: as it is, or nearest neighbours."""
    from mdcli.dicom.seg_place import grid_of
    from mdcli.imaging.resample import resample

    if found.kind != "resampled":
        yield array
        return
    assert geometry is not None
    target = grid_of(geometry)
    yield from resample(array, found.grid.affine, target.shape, target.affine, order="nearest", fill=0, jobs=jobs)


@dataclass
class _Counts:
    """Voxels of one segment in what is written, on its first and its last slice too."""

    voxels: int = 0
    first: int = 0
    last: int = 0


def _written_grid(found: _Result, geometry: Mapping[str, Any] | None) -> Grid:
    from mdcli.dicom.seg_place import grid_of

    if found.kind != "resampled":
        return found.grid
    assert geometry is not None
    return grid_of(geometry)


def _write(
    ws: Workspace, found: _Result, form: str, geometry: Mapping[str, Any] | None, values: Mapping[int, int]
) -> dict[int, _Counts]:
    """Write `labels`, or `masks`: one file for each segment that has voxels; return segment number to what was written."""
    import numpy as np

    from mdcli.imaging.nifti import nifti_header

    grid, counts = _written_grid(found, geometry), {number: _Counts() for number in values}
    if form == "labels":
        assert found.survey.labels is not None
        numbers = {value: number for number, value in values.items()}
        with ws.volume_writer("labels", grid.shape, found.survey.labels.dtype, grid.affine) as out:
            k = 0
            for slab in _resampled(found, found.survey.labels, geometry, ws.jobs):
                out.write(np.ascontiguousarray(slab, slab.dtype.newbyteorder("<")))
                for plane in slab:
                    for value, n in enumerate(np.bincount(plane.ravel()).tolist()):
                        if n and value:
                            _add(counts[numbers[value]], n, k, grid.shape[0])
                    k += 1
        return counts
    with ws.writing("masks") as folder:
        folder.mkdir()
        for number, value in values.items():
            if not found.survey.voxels[number]:
                continue
            k, path = 0, folder / mask_name(value)
            with path.open("wb") as file:
                file.write(nifti_header(grid.shape, "uint8", grid.affine))
                for slab in _resampled(found, found.stack.mask(number), geometry, ws.jobs):
                    for plane in slab:
                        file.write(np.ascontiguousarray(plane).tobytes())
                        _add(counts[number], int(np.count_nonzero(plane)), k, grid.shape[0])
                        k += 1
            if not counts[number].voxels:
                path.unlink()
    return counts


def mask_name(value: int) -> str:
    """Return the file name of a label value in `masks`: `0001.nii` for 1."""
    return f"{value:04d}.nii"


def _add(counts: _Counts, voxels: int, k: int, slices: int) -> None:
    counts.voxels += voxels
    counts.first += voxels if k == 0 else 0
    counts.last += voxels if k == slices - 1 else 0


def _write_scores(ws: Workspace, found: _Result, geometry: Mapping[str, Any] | None, values: Mapping[int, int]) -> None:
    """Write `scores`: for each segment its fractions of 1 as float16, (k, j, i), and `scores.json`."""
    import numpy as np

    from mdcli.workspace import json_bytes

    seg, grid = found.stack.seg, _written_grid(found, geometry)
    with ws.writing("scores") as folder:
        folder.mkdir()
        listed = []
        for number, value in values.items():
            name, k = f"{value:04d}.npy", 0
            out = np.lib.format.open_memmap(folder / name, "w+", np.dtype("<f2"), grid.shape)
            for slab in _resampled(found, found.stack.pixels(number), geometry, ws.jobs):
                out[k : k + len(slab)] = slab / np.float32(seg.maximum)
                k += len(slab)
            out.flush()
            del out
            listed.append({"value": value, "file": name})
        document = {
            "schema": "md.scores/1",
            "classes": listed,
            "kind": str(seg.fractional_type).lower(),
            "shape": list(grid.shape),
            "affine_lps": grid.affine.tolist(),
        }
        (folder / "scores.json").write_bytes(json_bytes(document))


def _write_segments(
    ws: Workspace,
    seg: Seg,
    params: Params,
    found: _Result,
    form: str,
    counts: Mapping[int, _Counts],
    values: Mapping[int, int],
    geometry: Mapping[str, Any] | None,
    assumed: bool,
) -> None:
    fractional = seg.segmentation_type == "FRACTIONAL"
    segments = []
    for segment in sorted((s for s in seg.segments if not s.background), key=lambda s: values[s.number]):
        n = counts[segment.number]
        edges = {"touches_first_slice": bool(n.first), "touches_last_slice": bool(n.last)}
        segments.append({"value": values[segment.number], **segment.entry, "voxels": n.voxels, **edges})
    cut = [str(s["name"]) for s in segments if s["touches_first_slice"] or s["touches_last_slice"]]
    if cut:
        message = f"the first or the last slice is touched by {', '.join(cut)}, which may go on beyond"
        ws.note("touches-edge", message, labels=cut)
    nothing = not any(n.voxels for n in counts.values())
    on_volume = geometry if geometry is not None and found.kind != "own" else {}
    made = [*(on_volume.get("made") or [])]
    made += ["labels of another grid, by --resample"] if found.kind == "resampled" else []
    made += ["labels of another frame of reference, by --assume-registered"] if assumed else []
    drawn = any((s.entry.get("algorithm") or {}).get("type") == "AUTOMATIC" for s in seg.segments if not s.background)
    ws.write_json(
        "segments",
        {
            "schema": "md.segments/1",
            "segments": segments,
            "task": "segmentation",
            "empty": "valid",
            "result": "nothing-found" if nothing else "processed",
            "out_of_scope": None,
            "read_from": {
                "kind": "SEG",
                "sop_instance_uid": seg.sop_instance_uid,
                "form": form,
                "grid": found.kind,
                "assumed_registered": assumed,
                "outside_voxels": found.outside,
                "segmentation_type": seg.segmentation_type,
                "fractional_type": seg.fractional_type,
                "maximum_fractional_value": seg.maximum if fractional else None,
                "threshold": params.threshold if fractional else None,
            },
            **{key: on_volume.get(key) for key in ("series_instance_uid", "frame_of_reference_uid")},
            "series_description_prefix": "AI " if drawn else "",
            **{key: on_volume.get(key) for key in ("completeness", "lossy", "padding")},
            "made": made,
        },
    )
    if nothing:
        ws.nothing_found("nothing-found", f"no segment of {seg.name} has a voxel")


def _lost(
    ws: Workspace,
    found: _Result,
    counts: Mapping[int, _Counts],
    values: Mapping[int, int],
    geometry: Mapping[str, Any] | None,
) -> int:
    """Say what resampling did to the segments, and return how many voxels lie outside the volume."""
    from mdcli.dicom.seg_place import lost_voxels

    if found.kind != "resampled":
        return 0
    names = _names(found.stack.seg)
    target = _written_grid(found, geometry)
    there = [number for number in values if found.survey.voxels[number]]
    ml, before = abs(_det(target.affine)) / 1000, abs(_det(found.grid.affine)) / 1000
    if found.survey.labels is not None:
        lost = lost_voxels(found.survey.labels, found.grid.affine, target)
    else:
        lost = sum(lost_voxels(found.stack.mask(number), found.grid.affine, target) for number in there)
    volumes = {
        names[number]: [round(found.survey.voxels[number] * before, 4), round(counts[number].voxels * ml, 4)]
        for number in there
    }
    listed = "; ".join(f"{name} {a:g} to {b:g} ml" for name, (a, b) in list(volumes.items())[:10])
    text = f"{found.stack.seg.name} is put onto the volume's grid by nearest neighbours: {listed}"
    ws.warn("resampled", text, volumes_ml=volumes)
    if lost:
        ws.warn("outside-volume", f"{lost} voxels of {found.stack.seg.name} lie outside the volume", voxels=lost)
    return lost


def _det(affine: NDArray[np.float64]) -> float:
    import numpy as np

    return float(np.linalg.det(affine[:3, :3]))


def sources(ws: Workspace, params: Params) -> Sources | None:
    """Name the SEG, and how to tell whether what it holds has changed."""
    # A status can't name a file that no record keeps.
    if not params.seg:
        return None
    from mdcli.dicom.opening import shown
    from mdcli.errors import MissingError

    path = params.seg
    if not path.exists():
        raise MissingError("no-source", f"there is no file {shown(path.name)}")

    def digest() -> str:
        from mdcli.dicom.seg_in import seg_digest

        return seg_digest(path)

    return Sources(path.absolute().parent, (path.name,), digest)


def preload(params: Params) -> None:
    """Import what every case needs."""
    import pydicom.filereader

    import mdcli.dicom.seg_in
    import mdcli.dicom.seg_place

    assert pydicom.filereader and mdcli.dicom.seg_place


STAGE = Stage(
    "read-seg",
    Params,
    run,
    writes=("labels", "masks", "segments", "scores"),
    optional_reads=("geometry", "series"),
    optional_writes=("labels", "masks", "scores"),
    version=1,
    sources=sources,
    preload=preload,
)
