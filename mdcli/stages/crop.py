"""Cut a volume to the region that labels mark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mdcli.errors import DataError, UsageError
from mdcli.stage import Option, Stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mdcli.imaging.components import Box
    from mdcli.imaging.nifti import Volume
    from mdcli.workspace import Workspace


@dataclass(frozen=True)
class Params:
    """What you can ask."""

    labels: Annotated[
        tuple[str, ...],
        Option("Values or names of the structures; may repeat; without it all that the labels hold", metavar="A,B"),
    ] = ()
    margin: Annotated[float, Option("What stays around the structures, on every side, mm", metavar="MM")] = 0.0
    on_empty: Annotated[
        Literal["error", "whole"], "What to do where no structure has a voxel: refuse, or keep the whole volume"
    ] = "error"


def run(ws: Workspace, params: Params) -> None:
    """Find the box of the structures, widen it, write that part of the volume and where it lies."""
    from mdcli.imaging.cropping import cropped_geometry, moved, region, shape_of, start_of

    if not (math.isfinite(params.margin) and params.margin >= 0):
        raise UsageError("bad-margin", f"--margin is {params.margin:g}, not 0 mm or more")
    volume, geometry = ws.read_volume("volume"), ws.read_json("geometry")
    document = ws.read_json("segments") if ws.has("segments") else {}
    with ws.span("find"):
        affine = _checked_affine(volume, geometry)
        held, held_affine = _held(ws, params, geometry, document, affine)
        shape = volume.array.shape
        box = held and region(held, held_affine, params.margin, shape, affine)
        if held and box is None:
            raise DataError("no-overlap", "the structures lie outside of the volume")
    box = box or (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    part = volume.array[box]
    with ws.span("write"):
        ws.write_volume("volume", part, moved(affine, start_of(box)), volume.unit)
        ws.write_json("geometry", cropped_geometry(geometry, box, _padded(part, geometry, box)))
    share = 100 * part.size / volume.array.size
    sides = " x ".join(map(str, shape_of(box)))
    text = f"{sides} of {' x '.join(map(str, shape))} voxels (k, j, i) stay, {share:.1f} %"
    ws.note("cropped", text, start=list(start_of(box)), shape=list(part.shape), percent=round(share, 2))


def _checked_affine(volume: Volume, geometry: Mapping[str, Any]) -> NDArray[np.float64]:
    """Return the affine of `geometry.json`, which has more digits than the volume's, if both are of one grid."""
    import numpy as np

    from mdcli.imaging.label_maps import SAME_GRID_MM, corner_distance

    plane = geometry.get("spacing_plane", "patient")
    if plane != "patient":
        message = f"the image's places are those of the {plane}, not of the patient: a margin in mm means nothing"
        raise DataError("no-patient-plane", message)
    shape, affine = tuple(geometry["shape"]), np.array(geometry["affine_lps"], np.float64)
    if volume.array.shape != shape:
        raise DataError("grids-differ", f"volume is {volume.array.shape}, geometry says {shape} (k, j, i)")
    off = corner_distance(volume.affine, affine, shape)
    if off > SAME_GRID_MM:
        message = f"a corner of volume lies {off:.3g} mm from where geometry says"
        raise DataError("grids-differ", message, off_mm=off)
    return affine


def _held(
    ws: Workspace,
    params: Params,
    geometry: Mapping[str, Any],
    document: Mapping[str, Any],
    affine: NDArray[np.float64],
) -> tuple[Box | None, NDArray[np.float64]]:
    """Return the box of the structures, None where none has a voxel, and the affine of the grid that it is a box of."""
    from mdcli.imaging.components import around, boxes_of
    from mdcli.imaging.label_maps import in_order_of, whole_numbers

    labels = in_order_of(ws.read_volume("labels"), affine)
    _check_space(labels, geometry, document, affine)
    boxes = boxes_of(whole_numbers(labels.array))
    if min(boxes, default=0) < 0:
        raise DataError("undescribed-label", f"label value {min(boxes)} is none that a segment can have")
    wanted = _chosen_values(params.labels, document, list(boxes)) if params.labels else list(boxes)
    absent = [value for value in wanted if value not in boxes]
    found = [boxes[value] for value in wanted if value in boxes]
    names = {entry["value"]: entry["name"] for entry in document.get("segments") or []}
    listed = ", ".join(f"{names.get(value, 'label value')} ({value})" for value in absent)
    if not found:
        message = f"{listed or 'no label'} has no voxel: there is no region"
        if params.on_empty == "error":
            raise DataError("empty-region", message, hint="--on-empty whole keeps the whole volume")
        ws.warn("empty-region", f"{message}; the whole volume is kept on request")
        return None, labels.affine
    if absent:
        ws.warn("structure-absent", f"the region is without {listed}, which has no voxel", values=absent)
    return around(found), labels.affine


def _check_space(
    labels: Volume, geometry: Mapping[str, Any], document: Mapping[str, Any], affine: NDArray[np.float64]
) -> None:
    """Refuse labels that are neither on the volume's grid nor known to be in its frame of reference."""
    from mdcli.imaging.label_maps import SAME_GRID_MM, corner_distance

    mine, theirs = geometry.get("frame_of_reference_uid"), document.get("frame_of_reference_uid")
    if mine is not None and theirs is not None and mine != theirs:
        message = f"the volume lies in the frame of reference {mine}, the labels in {theirs}"
        raise DataError("frames-of-reference-differ", message)
    shape = tuple(geometry["shape"])
    same = labels.array.shape == shape and corner_distance(labels.affine, affine, shape) <= SAME_GRID_MM
    if not same and (mine is None or theirs is None):
        message = "the labels are on another grid than the volume, and not both say their frame of reference"
        raise DataError("grids-differ", message)


def _chosen_values(asked: Sequence[str], document: Mapping[str, Any], present: Sequence[int]) -> list[int]:
    """Return the label values that were asked for by value or name.

    Args:
        asked: items; one that is no name is a list with commas.
        document: `segments.json`, or empty.
        present: values that have voxels.

    Raises:
        UsageError: `no-such-structure`.
    """
    from mdcli.imaging.label_maps import listed, no_such_structure

    names: dict[str, list[int]] = {}
    for entry in document.get("segments") or []:
        names.setdefault(str(entry["name"]), []).append(int(entry["value"]))
    known = {value for values in names.values() for value in values} | {*present}
    found: list[int] = []
    for word in listed(asked, names):
        if word in names:
            found += names[word]
        elif word.isascii() and word.isdecimal() and int(word) in known:
            found.append(int(word))
        else:
            raise no_such_structure(word, [*names, *map(str, sorted(known))])
    return list(dict.fromkeys(found))


def _padded(part: NDArray[Any], geometry: Mapping[str, Any], box: Box) -> int | None:
    """Return how many voxels of a part have the padding value, by what is known of its slices; None where that is nothing."""
    import numpy as np

    padding = geometry.get("padding")
    if not padding:
        return None
    by_slice = None if geometry.get("resampled") else padding["range_by_slice"]
    if padding["range"] is None and by_slice is None:
        return int(padding["voxels"])
    ranges = by_slice[box[0]] if by_slice else [padding["range"]] * len(part)
    return sum(
        int(np.count_nonzero((plane >= pair[0]) & (plane <= pair[1])))
        for plane, pair in zip(part, ranges, strict=True)
        if pair
    )


def reads_as(ws: Workspace, params: Params) -> Mapping[str, str]:
    """Say which geometry is read: the volume's, where the labels may have been made on another grid."""
    from mdcli.workspace import Workspace

    view = Workspace(ws.path, use=ws.use)
    view.reading = ("volume", "geometry")
    return {"geometry": view.role_to_read("geometry").partition("-")[2]}


def preload(params: Params) -> None:
    """Import what every case needs."""
    import SimpleITK

    import mdcli.imaging.cropping

    assert SimpleITK and mdcli.imaging.cropping


STAGE = Stage(
    "crop",
    Params,
    run,
    reads=("volume", "geometry", "labels"),
    writes=("volume", "geometry"),
    optional_reads=("segments",),
    version=1,
    reads_as=reads_as,
    preload=preload,
)
