"""Connected parts of label maps: the largest one, small ones, holes. SimpleITK finds the parts.

Label maps are (k, j, i), integers from 0 to 65535, 0 the background. They are changed in place, and only the box around a label is
worked on. Connectivity says which voxels touch: 1 those that share a face, 2 an edge too, 3 a corner too. A map of one slice is
two-dimensional: of a pixel's neighbours those of its slice are left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[slice, slice, slice]
Labels = NDArray[Any]

# Half of the neighbours that share an edge and no face: the others are the same ones seen from the other side.
_EDGES = ((0, 1, 1), (0, 1, -1), (1, 0, 1), (1, 0, -1), (1, 1, 0), (1, -1, 0))
# Where an affine went through the float32 of a NIfTI header, a volume is off by this part at most.
_ROUNDING = 1e-6
# How many searches for one value take as long as one for all values, measured.
_SEARCHES = 8


def boxes_of(labels: Labels) -> dict[int, Box]:
    """Return label value to the smallest box that holds all its voxels, rising by value, 0 left out.

    Args:
        labels: (k, j, i).
    """
    low: dict[int, list[int]] = {}
    high: dict[int, list[int]] = {}
    for k, plane in enumerate(labels):
        flat = np.flatnonzero(plane)
        if not flat.size:
            continue
        values = plane.ravel()[flat].astype(np.intp, copy=False)
        there = np.flatnonzero(np.bincount(values))
        rank = np.zeros(int(there[-1]) + 1, np.intp)
        rank[there] = np.arange(there.size)
        rows, columns = np.divmod(flat, plane.shape[1])
        order = rank[values]
        by_row = _presence(rows, order, plane.shape[0], there.size)
        by_column = _presence(columns, order, plane.shape[1], there.size)
        starts = np.stack([by_row.argmax(axis=0), by_column.argmax(axis=0)], axis=1)
        ends = np.stack([_last(by_row), _last(by_column)], axis=1)
        for value, start, end in zip(there.tolist(), starts.tolist(), ends.tolist(), strict=True):
            if value in low:
                low[value][1:] = map(min, low[value][1:], start)
                high[value] = [k, *map(max, high[value][1:], end)]
            else:
                low[value], high[value] = [k, *start], [k, *end]
    return {value: _box(low[value], high[value]) for value in sorted(low)}


def _presence(places: NDArray[np.intp], order: NDArray[np.intp], size: int, labels: int) -> NDArray[np.bool_]:
    """Return (size, labels): whether a label has a pixel at a row, or a column."""
    found: NDArray[np.bool_] = np.bincount(places * labels + order, minlength=size * labels).reshape(size, labels) > 0
    return found


def _last(presence: NDArray[np.bool_]) -> NDArray[np.intp]:
    found: NDArray[np.intp] = len(presence) - 1 - presence[::-1].argmax(axis=0)
    return found


def _box(low: Sequence[int], high: Sequence[int]) -> Box:
    k, j, i = (slice(a, b + 1) for a, b in zip(low, high, strict=True))
    return k, j, i


def around(boxes: Iterable[Box]) -> Box:
    """Return the smallest box that holds all of these, at least one."""
    held = list(boxes)
    starts = [min(box[axis].start for box in held) for axis in range(3)]
    ends = [max(box[axis].stop for box in held) - 1 for axis in range(3)]
    return _box(starts, ends)


def components(labels: Labels, connectivity: int = 3, *, jobs: int = 0) -> NDArray[np.uint32]:
    """Number the connected parts of a label map: voxels of one value that touch.

    Args:
        labels: (k, j, i); or a mask, bool.
        connectivity: 1, 2 or 3, see above.
        jobs: threads; 0 for all cores. They change no result.

    Returns:
        (k, j, i): 0 where the labels are, else the number of the part, from 1; not every number need be used.
    """
    import SimpleITK as sitk

    is_mask = labels.dtype == np.bool_
    finder: Any = (sitk.ConnectedComponentImageFilter if is_mask else sitk.ScalarConnectedComponentImageFilter)()
    finder.SetFullyConnected(connectivity == 3)
    if jobs:
        finder.SetNumberOfThreads(jobs)
    image = sitk.GetImageFromArray(np.ascontiguousarray(labels.view(np.uint8) if is_mask else labels))
    done = finder.Execute(image) if is_mask else finder.Execute(image, image > 0)
    found: NDArray[np.uint32] = sitk.GetArrayFromImage(done)
    return _joined_at_edges(found, labels) if connectivity == 2 else found


def _joined_at_edges(found: NDArray[np.uint32], labels: Labels) -> NDArray[np.uint32]:
    """Make one of parts of one value that share an edge."""
    root = list(range(int(found.max()) + 1))

    def top(part: int) -> int:
        while root[part] != part:
            root[part] = root[root[part]]
            part = root[part]
        return part

    for offset in _EDGES:
        here = tuple(slice(max(-o, 0), n - max(o, 0)) for o, n in zip(offset, found.shape, strict=True))
        there = tuple(slice(max(o, 0), n - max(-o, 0)) for o, n in zip(offset, found.shape, strict=True))
        touch = (labels[here] == labels[there]) & (found[here] != found[there]) & (found[here] > 0)
        pairs = found[here][touch].astype(np.uint64) << np.uint64(32) | found[there][touch]
        for pair in np.unique(pairs).tolist():
            one, other = top(pair >> 32), top(pair & 0xFFFFFFFF)
            root[max(one, other)] = min(one, other)
    _, table = np.unique([top(part) for part in range(len(root))], return_inverse=True)
    joined: NDArray[np.uint32] = table.astype(np.uint32)[found]
    return joined


@dataclass(frozen=True)
class _Parts:
    """What is known of connected parts, by their number; 0 is what lies outside of them.

    Attributes:
        voxels: how many each has.
        values: of the label map.
        first: index of the first voxel, in (k, j, i) order.
    """

    voxels: NDArray[np.int64]
    values: NDArray[np.int64]
    first: NDArray[np.int64]


def _measure(found: NDArray[np.uint32], labels: Labels) -> _Parts:
    """Return what is known of the parts; plane by plane from the last, since the last one written stays."""
    count = int(found.max()) + 1
    parts = _Parts(*(np.zeros(count, np.int64) for _ in range(3)))
    for k in reversed(range(len(found))):
        flat = np.flatnonzero(found[k])[::-1]
        numbers = found[k].ravel()[flat]
        parts.voxels[:] += np.bincount(numbers, minlength=count)
        parts.values[numbers] = labels[k].ravel()[flat]
        parts.first[numbers] = k * found[k].size + flat
    return parts


def _chosen(labels: Labels, values: Sequence[int]) -> dict[int, Box]:
    """Return the boxes of those of the values that have voxels, in the order given; of every value where none is given."""
    boxes = boxes_of(labels)
    return {value: boxes[value] for value in dict.fromkeys(values or boxes) if value in boxes}


def _voxels(box: Box) -> int:
    return math.prod(side.stop - side.start for side in box)


def _prune(
    labels: Labels,
    boxes: Mapping[int, Box],
    stays: Callable[[_Parts], NDArray[np.bool_]],
    connectivity: int,
    jobs: int,
    *,
    together: bool = False,
) -> None:
    """Set the parts to 0 that do not stay; together: as if all values were one."""
    if not boxes:
        return
    whole = around(boxes.values())
    # Specks make boxes as large as the volume: from here on one search for all values costs less than one for each.
    if together or sum(map(_voxels, boxes.values())) > _SEARCHES * _voxels(whole):
        groups = [(list(boxes), whole)]
    else:
        groups = [([value], box) for value, box in boxes.items()]
    for values, box in groups:
        part = labels[box]
        mask = part == values[0] if len(values) == 1 else np.isin(part, values)
        found = components(mask if together or len(values) == 1 else part * mask, connectivity, jobs=jobs)
        keep = stays(_measure(found, part))
        keep[0] = True
        if not keep.all():
            part[~keep[found]] = 0


def keep_largest(
    labels: Labels, values: Sequence[int] = (), *, together: bool = False, connectivity: int = 3, jobs: int = 0
) -> None:
    """Set all but the part with the most voxels to 0; of equal ones the first in (k, j, i) order stays.

    Args:
        labels: (k, j, i), changed in place.
        values: those that it is done for; none: all but 0.
        together: the values are one structure with one largest part, else each has its own.
        connectivity: 1, 2 or 3.
        jobs: threads; 0 for all cores.
    """

    def stays(parts: _Parts) -> NDArray[np.bool_]:
        owners = np.minimum(parts.values, 1) if together else parts.values
        # The outside is its own owner, 0.
        order = np.lexsort((parts.first, -parts.voxels, owners))
        leads = np.append(True, np.diff(owners[order]) > 0)
        keep = np.zeros(order.size, np.bool_)
        keep[order[leads]] = True
        return keep

    _prune(labels, _chosen(labels, values), stays, connectivity, jobs, together=together)


def remove_small(
    labels: Labels,
    mm3: float,
    voxel_mm3: float,
    values: Sequence[int] = (),
    *,
    connectivity: int = 3,
    jobs: int = 0,
) -> None:
    """Set parts whose volume is under a bound to 0, each value for itself.

    Args:
        labels: (k, j, i), changed in place.
        mm3: the smallest volume that stays, mm3. The rounding of an affine to float32 does not push a part under it.
        voxel_mm3: volume of a voxel, |det(affine)|, mm3.
        values: those that it is done for; none: all but 0.
        connectivity: 1, 2 or 3.
        jobs: threads; 0 for all cores.
    """
    least = math.ceil(mm3 / voxel_mm3 * (1 - _ROUNDING))
    _prune(labels, _chosen(labels, values), lambda parts: parts.voxels >= least, connectivity, jobs)


@dataclass(frozen=True)
class _Hole:
    """One hole: the background in it is `mask` within `box`; with other labels it has so many voxels."""

    value: int
    box: Box
    mask: NDArray[np.bool_]
    voxels: int


def fill_holes(
    labels: Labels, values: Sequence[int] = (), *, per_slice: bool = False, connectivity: int = 1, jobs: int = 0
) -> None:
    """Give each value the background that it alone encloses. Other values in there stay what they are.

    A hole of a value is a connected part of all that is not of this value which does not reach the border of the volume. Where
    holes lie in one another, the background gets the value of the smallest: the innermost that encloses it.

    Args:
        labels: (k, j, i), changed in place. One slice alone is two-dimensional, whatever `per_slice` says.
        values: those that it is done for; none: all but 0.
        per_slice: holes of each slice k instead of the volume's.
        connectivity: how what lies outside of a value hangs together, 1, 2 or 3. With 1 a way out leads through faces, and a rim
            that has gaps at corners only is closed.
        jobs: threads; 0 for all cores.
    """
    flat = per_slice or len(labels) == 1
    holes: list[_Hole] = []
    for value, box in _chosen(labels, values).items():
        whole = labels[box]
        for k in range(len(whole)) if flat else (None,):
            at = (box[0] if k is None else slice(box[0].start + k, box[0].start + k + 1), *box[1:])
            outside = labels[at] != value
            found = components(outside, connectivity, jobs=jobs)
            _open_at_border(found, range(1 if flat else 0, 3))
            holes += _holes_of(value, at, found, labels[at] == 0)
    # The smallest last: it is the one that counts. Of one label's holes none touch.
    for hole in sorted(holes, key=lambda hole: -hole.voxels):
        labels[hole.box][hole.mask] = hole.value


def _open_at_border(found: NDArray[np.uint32], axes: Iterable[int]) -> None:
    """Set the parts to 0 that reach a side of the box along these axes: beyond a label's box all is outside of it."""
    open_ones = np.zeros(int(found.max()) + 1, np.bool_)
    for axis in axes:
        for side in (0, -1):
            open_ones[np.unique(found.take(side, axis))] = True
    if open_ones.any():
        found[open_ones[found]] = 0


def _holes_of(value: int, at: Box, found: NDArray[np.uint32], background: NDArray[np.bool_]) -> Iterable[_Hole]:
    for number, box in boxes_of(found).items():
        mask = found[box] == number
        k, j, i = (slice(a.start + b.start, a.start + b.stop) for a, b in zip(at, box, strict=True))
        yield _Hole(value, (k, j, i), mask & background[box], int(np.count_nonzero(mask)))


def map_labels(labels: Labels, mapping: Mapping[int, int]) -> Labels:
    """Return a label map with other values, all replaced at once.

    Args:
        labels: (k, j, i), unsigned; changed in place where its type holds the new values.
        mapping: old value to new one, 0 to 65535; what it does not name stays.

    Returns:
        The labels, of their own type, or uint16 where that does not hold a new value.
    """
    largest = int(np.iinfo(labels.dtype).max)
    needed = max(mapping.values(), default=0)
    dtype = labels.dtype if needed <= largest else np.dtype(np.uint16)
    table = np.arange(largest + 1, dtype=np.int64)
    for old, new in mapping.items():
        if old <= largest:
            table[old] = new
    table = table.astype(dtype)
    out = labels if dtype == labels.dtype else np.empty(labels.shape, dtype)
    for plane, into in zip(labels, out, strict=True):
        into[...] = table[plane]
    return out
