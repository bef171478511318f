"""Single objects out of label maps: connected parts, or voxels around centres that a network sees.

Maps are (k, j, i). Objects are numbered from 1 in the (k, j, i) order of their first voxels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError
from mdcli.imaging.components import boxes_of, components
from mdcli.inference.tasks.scores import described, document, finite
from mdcli.inference.tasks.settings import MOST_INSTANCES, Instances

if TYPE_CHECKING:
    from mdcli.inference.card import Label

SCHEMA = "md.objects/1"
# Where an affine went through the float32 of a NIfTI header, a volume is off by this part at most.
_ROUNDING = 1e-6
# Voxels along an axis that are compared with the same few centres.
_CELL = 16


@dataclass(frozen=True)
class Objects:
    """Single objects.

    Attributes:
        map: (k, j, i) uint16: 0, or an object's number from 1.
        values: of each object, in order, the label value that it is of.
        scores: of each object, or None where nobody says one.
    """

    map: NDArray[np.uint16]
    values: NDArray[np.int64]
    scores: NDArray[np.float64] | None = None


def by_components(labels: NDArray[Any], said: Instances, voxel_mm3: float, *, jobs: int = 0) -> Objects:
    """Return the connected parts of each label.

    Args:
        labels: (k, j, i), integers, 0 the background.
        said: connectivity, smallest volume, how many at most.
        voxel_mm3: volume of a voxel, |det(affine)|.
        jobs: threads; 0 for all cores. It changes no result.

    Raises:
        DataError: `too-many-instances`.
    """
    numbers = np.zeros(labels.shape, np.uint32)
    values: list[int] = []
    for value, box in boxes_of(labels).items():
        found = components(labels[box] == value, said.connectivity, jobs=jobs)
        part = numbers[box]
        np.copyto(part, found + np.uint32(len(values)), where=found > 0)
        values += [value] * int(found.max())
    return settled(numbers, np.array(values, np.int64), None, said, voxel_mm3)


def by_centres(
    labels: NDArray[Any],
    heatmap: NDArray[Any],
    offsets: NDArray[Any],
    said: Instances,
    voxel_mm3: float,
    *,
    planes: int = _CELL,
) -> Objects:
    """Return the voxels of each centre: a voxel belongs to the centre nearest to where its offset points.

    Args:
        labels: (k, j, i), integers; where they are 0 there is no object. An object is of the label that most of its voxels have;
            of equally many, the lowest.
        heatmap: (k, j, i), high at centres.
        offsets: (3, k, j, i), voxels along k, j, i from a voxel to its centre.
        said: threshold and kernel of centres, smallest volume, how many at most.
        voxel_mm3: volume of a voxel, |det(affine)|.
        planes: slices that are worked on at once. It changes no result.

    Returns:
        Objects with the heatmap at their centres as scores. Voxels stay 0 where there is no centre at all.

    Raises:
        DataError: `nan-in-output`, `too-many-instances`.

    Source: Panoptic-DeepLab (Cheng et al., CVPR 2020), 3.2. There every voxel of a plateau of the heatmap is a centre; here its
    first one alone is.
    """
    heat = finite(heatmap, "values of the heatmap")
    centres = find_centres(heat, said)
    _refuse_many(len(centres), said)
    numbers = np.zeros(labels.shape, np.uint32)
    votes: Counter[tuple[int, int]] = Counter()
    for start in range(0, len(labels) if len(centres) else 0, planes):
        part = slice(start, start + planes)
        inside = np.argwhere(labels[part])
        moved = finite(offsets[:, part], "offsets")[(slice(None), *inside.T)].T
        targets = inside + np.array([start, 0, 0]) + moved.astype(np.float64)
        nearest = nearest_centres(targets, centres) + 1
        numbers[part][tuple(inside.T)] = nearest
        pairs, counts = np.unique(
            np.stack([nearest, labels[part][tuple(inside.T)].astype(np.int64)]), axis=1, return_counts=True
        )
        for number, value, count in zip(*pairs.tolist(), counts.tolist(), strict=True):
            votes[number, value] += count
    values = np.zeros(len(centres), np.int64)
    for (number, value), _ in sorted(votes.items(), key=lambda item: (item[1], -item[0][1])):
        values[number - 1] = value
    scores = heat[tuple(centres.T)].astype(np.float64)
    return settled(numbers, values, scores, said, voxel_mm3)


def find_centres(heatmap: NDArray[np.float32], said: Instances) -> NDArray[np.intp]:
    """Return the centres (n, 3) as (k, j, i): above the threshold, the highest within the kernel, the first of a plateau."""
    highest = heatmap
    for axis in range(3):
        highest = _highest_around(highest, said.kernel // 2, axis)
    peaks = (heatmap == highest) & (heatmap > np.float32(said.threshold))
    found = components(peaks, 3)
    flat = np.flatnonzero(found)
    numbers = found.ravel()[flat]
    first = np.zeros(int(numbers.max(initial=0)), np.intp)
    first[numbers[::-1] - 1] = flat[::-1]
    return np.stack(np.unravel_index(first, heatmap.shape), axis=1)


def _highest_around(values: NDArray[np.float32], reach: int, axis: int) -> NDArray[np.float32]:
    """Return the highest value within some voxels before and after along one axis."""
    found = values.copy()
    size = values.shape[axis]
    whole = [slice(None)] * 3
    for step in range(1, min(reach, size - 1) + 1):
        near, far = whole.copy(), whole.copy()
        near[axis], far[axis] = slice(None, -step), slice(step, None)
        np.maximum(found[tuple(near)], values[tuple(far)], out=found[tuple(near)])
        np.maximum(found[tuple(far)], values[tuple(near)], out=found[tuple(far)])
    return found


def nearest_centres(targets: NDArray[np.float64], centres: NDArray[np.intp]) -> NDArray[np.int64]:
    """Return for each place (n, 3) which centre (m, 3) is nearest; of equally near ones the first.

    Places that lie together are compared with those centres only that can be the nearest to one of them.
    """
    found = np.zeros(len(targets), np.int64)
    sites = centres.astype(np.float64)
    limit = float(np.abs(sites).max(initial=0)) + _CELL
    cells = np.floor(np.clip(targets, -limit, limit) / _CELL).astype(np.int64)
    cells -= cells.min(axis=0, initial=0)
    cell = np.ravel_multi_index(tuple(cells.T), tuple(cells.max(axis=0, initial=0) + 1))
    order = np.argsort(cell, kind="stable")
    ends = np.flatnonzero(np.diff(cell[order], append=-1)) + 1
    for start, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True):
        members = order[start:end]
        places = targets[members]
        low, high = places.min(axis=0), places.max(axis=0)
        nearest = (np.maximum(np.maximum(low - sites, sites - high), 0) ** 2).sum(axis=1)
        farthest = (np.maximum(np.abs(low - sites), np.abs(sites - high)) ** 2).sum(axis=1)
        # A little more than the bound: it is no harm, and rounding is on the safe side.
        near = np.flatnonzero(nearest <= farthest.min() * (1 + 1e-9))
        best = np.full(len(places), np.inf)
        chosen = np.zeros(len(places), np.int64)
        for number in near:
            distance = ((places - sites[number]) ** 2).sum(axis=1)
            closer = distance < best
            best[closer], chosen[closer] = distance[closer], number
        found[members] = chosen
    return found


def settled(
    numbers: NDArray[Any],
    values: NDArray[np.int64],
    scores: NDArray[np.float64] | None,
    said: Instances,
    voxel_mm3: float,
) -> Objects:
    """Return objects numbered in the order of their first voxels; those without voxels, or too small, are gone.

    Args:
        numbers: (k, j, i), 0 or an object's number so far, from 1.
        values: of each of them.
        scores: of each of them.
        said: smallest volume, how many at most.
        voxel_mm3: volume of a voxel.

    Raises:
        DataError: `too-many-instances`.
    """
    count = len(values)
    voxels, seen = np.zeros(count + 1, np.int64), np.zeros(count + 1, bool)
    order: list[int] = []
    for plane in numbers:
        flat = plane.ravel()
        voxels += np.bincount(flat, minlength=count + 1)
        there = flat[np.flatnonzero(flat)]
        new, first = np.unique(there[~seen[there]], return_index=True)
        order += new[np.argsort(first)].tolist()
        seen[new] = True
    least = max(math.ceil(said.smallest_mm3 / voxel_mm3 * (1 - _ROUNDING)), 1)
    kept = [number for number in order if voxels[number] >= least]
    _refuse_many(len(kept), said)
    table = np.zeros(count + 1, np.uint16)
    table[kept] = np.arange(1, len(kept) + 1)
    chosen = np.array(kept, np.intp) - 1
    renamed = np.empty(numbers.shape, np.uint16)
    for plane, out in zip(numbers, renamed, strict=True):
        out[...] = table[plane]
    return Objects(renamed, values[chosen], None if scores is None else scores[chosen])


def _refuse_many(count: int, said: Instances) -> None:
    most = min(said.most, MOST_INSTANCES)
    if count > most:
        raise DataError(
            "too-many-instances",
            f"{count} objects, over {most}",
            hint="smallest_mm3 in the card leaves out small ones",
            count=count,
        )


def measured(objects: Objects, affine: NDArray[np.float64]) -> list[dict[str, Any]]:
    """Return what is known of each object.

    Args:
        objects: on the grid of `affine`; one without a voxel there is left out.
        affine: 4x4, voxel (i, j, k, 1) to mm, LPS+.

    Returns:
        For each: its number, label value, voxels, volume in mm3, centroid in mm (LPS+), first and last voxel index along i, j, k,
        score, and whether it touches the first or the last slice.
    """
    count = len(objects.values)
    voxels, sums = np.zeros(count + 1), np.zeros((count + 1, 3))
    low = np.full((count + 1, 3), np.iinfo(np.int64).max)
    high = np.full((count + 1, 3), -1)
    for k, plane in enumerate(objects.map):
        j, i = np.nonzero(plane)
        numbers = plane[j, i]
        voxels += (here := np.bincount(numbers, minlength=count + 1))
        for axis, places in ((0, i), (1, j)):
            sums[:, axis] += np.bincount(numbers, places, minlength=count + 1)
            np.minimum.at(low[:, axis], numbers, places)
            np.maximum.at(high[:, axis], numbers, places)
        sums[:, 2] += here * k
        there = here > 0
        low[there, 2] = np.minimum(low[there, 2], k)
        high[there, 2] = k
    size = abs(float(np.linalg.det(affine[:3, :3])))
    last = len(objects.map) - 1
    rows = []
    for n in (np.flatnonzero(voxels[1:]) + 1).tolist():
        centre = affine @ [*(sums[n] / voxels[n]), 1]
        rows.append(
            {
                "number": n,
                "value": int(objects.values[n - 1]),
                "voxels": int(voxels[n]),
                "volume_mm3": float(voxels[n] * size),
                "centroid_mm": centre[:3].tolist(),
                "first_ijk": low[n].tolist(),
                "last_ijk": high[n].tolist(),
                "score": None if objects.scores is None else float(objects.scores[n - 1]),
                "touches_first_slice": bool(low[n, 2] == 0),
                "touches_last_slice": bool(high[n, 2] == last),
            }
        )
    return rows


def instances_document(
    objects: Objects,
    labels: Sequence[Label],
    said: Instances,
    affine: NDArray[np.float64],
    common: Mapping[str, Any],
    *,
    patient: bool = True,
) -> dict[str, Any]:
    """Return `md.objects/1`, what the numbers in the map of objects stand for.

    Args:
        objects: on the volume's grid.
        labels: the card's, found or not: they were searched for.
        said: the card's.
        affine: of the volume, 4x4, voxel (i, j, k, 1) to mm, LPS+.
        common: what every result says, see `scores.document`.
        patient: the volume has a plane in the patient; else no millimetres are said.
    """
    names = {label.value: label.name for label in labels}
    rows = [{**row, "name": names[row["value"]]} for row in measured(objects, affine)]
    if not patient:
        rows = [{key: value for key, value in row.items() if "mm" not in key} for row in rows]
    counts = Counter(row["value"] for row in rows)
    content = {
        "form": said.form,
        "connectivity": said.connectivity if said.form == "components" else None,
        "smallest_mm3": said.smallest_mm3,
        "labels": [{**described(label), "found": counts[label.value]} for label in labels],
        "instances": rows,
    }
    return document(SCHEMA, common, not rows, content)
