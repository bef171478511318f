"""Turn closed contours into voxels, and tell how the contours of one plane lie to each other.

One rule says which voxels are inside: those whose centre is, by even-odd counting of the edges to its left. A centre that lies
exactly on an edge belongs to what is to its right or below: left and top edges count, right and bottom edges do not, so that
contours that share an edge share no voxel. Nothing is shifted by half a voxel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError

UNITS = 1 << 15
"""Corners are held to 1/32768 of a voxel; from there on all is whole numbers, so that no rounding decides what an edge is."""
FARTHEST = 1 << 15
"""Voxels that a corner may lie from the first one; the products below then fit into 64 bits."""
TOUCH_MM = 0.01
"""Contours that overlap by no more than this touch: coordinates are written to some hundredths of a millimetre."""
CROSS_MM = 1e-3
"""An edge crosses another where both have an end on either side of the other, farther away than this."""

_MOST_AT_ONCE = 1 << 22
_MOST_PAIRS = 1 << 26

Corners = NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """A part of a volume.

    Attributes:
        mask: (k, j, i), uint8, 0 and 1.
        start: of its first voxel in the volume, (k, j, i).
    """

    mask: NDArray[np.uint8]
    start: tuple[int, int, int]

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Return where it lies in the volume, as an index."""
        k, j, i = (slice(a, a + n) for a, n in zip(self.start, self.mask.shape, strict=True))
        return k, j, i


def rasterise(contours: Sequence[Corners], planes: Sequence[int], shape: tuple[int, int, int]) -> Block | None:
    """Return the voxels whose centres are inside an odd number of contours.

    Args:
        contours: n closed contours, each (corners, 2): voxel index (i, j), not whole; the last corner joins the first.
        planes: the slice k of each.
        shape: of the volume, (k, j, i).

    Returns:
        The smallest part of the volume that the contours reach, or None where they reach no row of it. A centre on a left or top
        edge is inside, one on a right or bottom edge is not; an edge traced twice, as a keyhole's bridge, counts for nothing.

    Raises:
        DataError: `bad-contour` for a corner more than `FARTHEST` voxels away, or none.
    """
    kept = [n for n, corners in enumerate(contours) if len(corners)]
    if not kept:
        return None
    points = np.concatenate([contours[n] for n in kept])
    if not (np.abs(points) <= FARTHEST).all():
        raise DataError("bad-contour", f"a contour has a point more than {FARTHEST} voxels from the volume's first")
    whole = np.rint(points * UNITS).astype(np.int64)
    ends = whole[following([len(contours[n]) for n in kept])]
    plane = np.repeat([planes[n] for n in kept], [len(contours[n]) for n in kept])
    upward = (whole[:, 1] > ends[:, 1])[:, None]
    top = np.where(upward, ends, whole)
    run = np.where(upward, whole, ends) - top
    # The rows whose centres an edge passes: with its upper end, without its lower one.
    first = np.maximum(-(-top[:, 1] // UNITS), 0)
    count = np.minimum(-(-(top[:, 1] + run[:, 1]) // UNITS), shape[1]) - first
    used = (count > 0) & (plane >= 0) & (plane < shape[0])
    if not used.any():
        return None
    top, run, plane, first, count = top[used], run[used], plane[used], first[used], count[used]
    left = np.maximum(np.minimum(top[:, 0], top[:, 0] + run[:, 0]).min() // UNITS, 0)
    right = min(-(-np.maximum(top[:, 0], top[:, 0] + run[:, 0]).max() // UNITS), shape[2])
    if left >= right:
        return None
    start = (int(plane.min()), int(first.min()), int(left))
    size = (int(plane.max()) + 1 - start[0], int((first + count).max()) - start[1], int(right) - start[2])
    # One bit a voxel: set where an odd number of edges begins to count.
    words = np.zeros((*size[:2], -(-size[2] // 64)), "<u8")
    for part in _parts(count):
        edge = np.repeat(np.arange(part.start, part.stop), count[part])
        row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count[part]) - count[part], count[part])
        crossing = top[edge, 0] - (-(row * UNITS - top[edge, 1]) * run[edge, 0]) // run[edge, 1]
        column = np.maximum(-(-crossing // UNITS) - start[2], 0)
        inside = column < size[2]
        word = ((plane[edge] - start[0]) * size[1] + row - start[1]) * words.shape[2] + column // 64
        np.bitwise_xor.at(words.reshape(-1), word[inside], np.uint64(1) << (column[inside] % 64).astype(np.uint64))
    # From there on to the right: the parity of all bits before, within each word and from word to word.
    for shift in (1, 2, 4, 8, 16, 32):
        words ^= words << np.uint64(shift)
    for n in range(1, words.shape[2]):
        words[:, :, n] ^= (words[:, :, n - 1] >> np.uint64(63)) * np.uint64(0xFFFFFFFFFFFFFFFF)
    mask = np.unpackbits(words.view(np.uint8), axis=2, count=size[2], bitorder="little")
    return Block(mask, start)


def following(lengths: Sequence[int]) -> NDArray[np.intp]:
    """Return for each corner of contours that are joined into one array the index of the next one on its contour.

    Args:
        lengths: how many corners each contour has, at least one.
    """
    ends = np.cumsum(lengths)
    found = np.arange(1, int(ends[-1]) + 1)
    found[ends - 1] = ends - np.asarray(lengths)
    return found


def _parts(counts: NDArray[np.int64]) -> Iterator[slice]:
    """Yield runs of counts whose sum is not much over `_MOST_AT_ONCE`."""
    bins = np.cumsum(counts) // _MOST_AT_ONCE
    edges = [0, *(np.flatnonzero(np.diff(bins)) + 1).tolist(), len(counts)]
    for a, b in pairwise(edges):
        yield slice(a, b)


def area(corners: Corners) -> float:
    """Return the signed area of a closed contour, (corners, 2), by the shoelace formula."""
    x, y = (corners - corners.mean(axis=0)).T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def distinct(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a closed contour without corners that repeat the one before, the last one before the first included.

    Args:
        corners: (corners, axes).
    """
    if len(corners) < 2:
        return corners
    kept: NDArray[np.float64] = corners[(corners != np.roll(corners, 1, axis=0)).any(axis=1)]
    return kept if len(kept) else corners[:1]


def on_a_line(corners: NDArray[np.float64]) -> bool:
    """Say whether a contour, (corners, axes) in mm, encloses nothing: under three corners, or all within 1e-6 mm of one line."""
    if len(corners) < 3:
        return True
    spread = corners - corners[0]
    along = spread[np.argmax((spread**2).sum(axis=1))]
    length = float(np.sqrt(along @ along))
    if length == 0:
        return True
    off = spread - np.outer(spread @ along / length**2, along)
    return bool(np.abs(off).max() <= 1e-6)


def crosses_itself(contours: Sequence[Corners]) -> NDArray[np.bool_]:
    """Say which contours have two edges that cross.

    An edge that only touches another, or is traced twice as a keyhole's bridge, does not cross it (`CROSS_MM`). A contour so
    tangled that its edges make over 67 million candidates counts as crossing.

    Args:
        contours: n closed contours, each (corners, 2) in mm.
    """
    found = np.zeros(len(contours), bool)
    kept = [n for n, corners in enumerate(contours) if len(corners) > 3 and not _round(corners)]
    if not kept:
        return found
    lengths = np.array([len(contours[n]) for n in kept])
    begin = np.concatenate([contours[n] for n in kept])
    finish = begin[following(lengths.tolist())]
    owner = np.repeat(np.arange(len(kept)), lengths)
    low, high = np.minimum(begin, finish), np.maximum(begin, finish)
    starts = np.cumsum(lengths) - lengths
    # Only edges that share one of n slabs of a contour of n edges can cross; together they lie in at most 3 n.
    floor = np.minimum.reduceat(low[:, 1], starts)
    height = np.add.reduceat(high[:, 1] - low[:, 1], starts) / lengths
    height[height <= 0] = 1.0
    a = ((low[:, 1] - floor[owner]) / height[owner]).astype(np.int64)
    b = ((high[:, 1] - floor[owner]) / height[owner]).astype(np.int64)
    offset = np.concatenate([[0], np.cumsum(np.maximum.reduceat(b, starts) + 1)[:-1]])
    edge = np.repeat(np.arange(len(begin)), b - a + 1)
    within = np.arange(len(edge)) - np.repeat(np.cumsum(b - a + 1) - (b - a + 1), b - a + 1)
    slab = offset[owner[edge]] + a[edge] + within
    order = np.argsort(slab, kind="stable")
    slab, edge = slab[order], edge[order]
    alive, pairs, step = np.arange(len(slab)), 0, 0
    while True:
        step += 1
        alive = alive[alive + step < len(slab)]
        alive = alive[slab[alive] == slab[alive + step]]
        if not len(alive):
            break
        pairs += len(alive)
        if pairs > _MOST_PAIRS:
            found[np.array(kept)[owner[edge[alive]]]] = True
            break
        one, other = edge[alive], edge[alive + step]
        near = (low[one] < high[other]).all(axis=1) & (low[other] < high[one]).all(axis=1)
        one, other = one[near], other[near]
        crossed = _cross(begin[one], finish[one], begin[other], finish[other])
        found[np.array(kept)[owner[one[crossed]]]] = True
    return found


def _round(corners: Corners) -> bool:
    """Say whether a contour goes once, and never back, around the mean of its corners: it can't cross itself then."""
    x, y = (corners - corners.mean(axis=0)).T
    next_x, next_y = np.concatenate([x[1:], x[:1]]), np.concatenate([y[1:], y[:1]])
    turns = x * next_y - next_x * y
    once = np.count_nonzero((y <= 0) & (next_y > 0)) == 1
    return once and bool((turns > 0).all() or (turns < 0).all())


def _cross(p: Corners, q: Corners, r: Corners, s: Corners) -> NDArray[np.bool_]:
    """Say for each pair of edges p to q and r to s whether they cross by more than `CROSS_MM`."""

    def sides(a: Corners, b: Corners, c: Corners) -> NDArray[np.float64]:
        along = b - a
        length = np.maximum(np.hypot(along[:, 0], along[:, 1]), 1e-300)
        side: NDArray[np.float64] = (along[:, 0] * (c - a)[:, 1] - along[:, 1] * (c - a)[:, 0]) / length
        return np.where(np.abs(side) > CROSS_MM, side, 0.0)

    return (sides(p, q, r) * sides(p, q, s) < 0) & (sides(r, s, p) * sides(r, s, q) < 0)


def nesting(contours: Sequence[Corners]) -> NDArray[np.int64]:
    """Return in how many of the others each contour of one plane lies.

    Args:
        contours: n closed contours, each (corners, 2) in mm; may touch each other (`TOUCH_MM`).

    Returns:
        n depths: 0 outermost, 1 a hole in it, 2 an island in that hole.

    Raises:
        DataError: `contours-overlap` where two overlap in part; `duplicate-contours` where two are the same. `first` and `second`
            in its numbers are their indices.
    """
    depths = np.zeros(len(contours), np.int64)
    lows = np.array([corners.min(axis=0) for corners in contours])
    highs = np.array([corners.max(axis=0) for corners in contours])
    for a in range(len(contours)):
        near = (lows[a + 1 :] < highs[a]).all(axis=1) & (highs[a + 1 :] > lows[a]).all(axis=1)
        for b in (np.flatnonzero(near) + a + 1).tolist():
            inner = _inner(contours[a], contours[b], (a, b))
            if inner is not None:
                depths[(a, b)[inner]] += 1
    return depths


def _inner(one: Corners, other: Corners, indices: tuple[int, int]) -> int | None:
    """Return which of two contours lies inside the other, 0 or 1; None where neither does."""
    first, second = indices
    marks = _meetings(one, other), _meetings(other, one)
    if not marks[0] and not marks[1]:
        if inside(one[:1], other)[0]:
            return 0
        return 1 if inside(other[:1], one)[0] else None
    in_out = [_lies(a, b, m) for a, b, m in ((one, other, marks[0]), (other, one, marks[1]))]
    if any(found == (True, True) for found in in_out) or all(found[0] for found in in_out):
        raise DataError("contours-overlap", "two contours of one slice overlap in part", first=first, second=second)
    if all(found == (False, False) for found in in_out):
        raise DataError("duplicate-contours", "two contours of one slice are the same", first=first, second=second)
    for n in (0, 1):
        a, b = (one, other) if n == 0 else (other, one)
        if in_out[n][0] or (in_out[n] == (False, False) and inside(_somewhere_in(a)[None], b)[0]):
            return n
    return None


def _meetings(one: Corners, other: Corners) -> dict[int, list[float]]:
    """Return where edges of one contour meet edges of another: index of the edge to shares of its length."""
    found: dict[int, list[float]] = {}
    r, s = other, np.roll(other, -1, axis=0)
    for begin in range(0, len(one), max(_MOST_AT_ONCE // 8 // len(other), 1)):
        p = one[begin : begin + max(_MOST_AT_ONCE // 8 // len(other), 1)]
        q = np.roll(one, -1, axis=0)[begin : begin + len(p)]
        near = (np.minimum(p, q)[:, None] <= np.maximum(r, s) + TOUCH_MM).all(axis=2)
        near &= (np.maximum(p, q)[:, None] >= np.minimum(r, s) - TOUCH_MM).all(axis=2)
        for i, j in zip(*np.nonzero(near), strict=True):
            shares = _meeting(p[i], q[i], r[j], s[j])
            if shares:
                found.setdefault(begin + int(i), []).extend(shares)
    return found


def _meeting(p: Corners, q: Corners, r: Corners, s: Corners) -> list[float]:
    """Return the shares of the way from p to q at which the edge r to s meets it, within `TOUCH_MM`; nothing where it does not."""
    along = q - p
    length = float(np.hypot(*along))
    if length == 0:
        return []
    normal = np.array([-along[1], along[0]]) / length
    sides = float(normal @ (r - p)), float(normal @ (s - p))
    if min(sides) > TOUCH_MM or max(sides) < -TOUCH_MM:
        return []
    back = s - r
    other_length = float(np.hypot(*back))
    if other_length == 0:
        return []
    other_normal = np.array([-back[1], back[0]]) / other_length
    ends = float(other_normal @ (p - r)), float(other_normal @ (q - r))
    if min(ends) > TOUCH_MM or max(ends) < -TOUCH_MM:
        return []
    shares = [
        float(along @ (end - p)) / length**2 for end, side in zip((r, s), sides, strict=True) if abs(side) <= TOUCH_MM
    ]
    if ends[0] != ends[1]:
        shares.append(ends[0] / (ends[0] - ends[1]))
    return [min(max(share, 0.0), 1.0) for share in shares]


def _lies(one: Corners, other: Corners, meetings: dict[int, list[float]]) -> tuple[bool, bool]:
    """Say whether a contour has points inside another, and outside it, by more than `TOUCH_MM`."""
    following = np.roll(one, -1, axis=0)
    samples = [one]
    for edge, shares in meetings.items():
        cuts = np.array(sorted({0.0, *shares, 1.0}))
        middles = (cuts[1:] + cuts[:-1]) / 2
        samples.append(one[edge] + middles[:, None] * (following[edge] - one[edge]))
    points = np.concatenate(samples)
    points = points[_distance(points, other) > TOUCH_MM]
    within = inside(points, other)
    return bool(within.any()), bool((~within).any())


def inside(points: Corners, corners: Corners) -> NDArray[np.bool_]:
    """Say which points, (n, 2), a closed contour, (corners, 2), holds, by even-odd; a point on an edge may be either."""
    found = np.zeros(len(points), bool)
    x1, y1 = corners.T
    x2, y2 = np.roll(corners, -1, axis=0).T
    run = np.where(y1 == y2, 1.0, y2 - y1)
    for part in _blocks(len(points), len(corners)):
        x, y = points[part, 0, None], points[part, 1, None]
        passes = (y1 <= y) != (y2 <= y)
        found[part] = (passes & (x1 + (y - y1) / run * (x2 - x1) <= x)).sum(axis=1) % 2 == 1
    return found


def _distance(points: Corners, corners: Corners) -> NDArray[np.float64]:
    """Return how far each point, (n, 2), lies from the line of a closed contour, (corners, 2)."""
    found = np.zeros(len(points))
    along = np.roll(corners, -1, axis=0) - corners
    squared = np.maximum((along**2).sum(axis=1), 1e-300)
    for part in _blocks(len(points), len(corners)):
        to = points[part, None] - corners
        share = np.clip((to * along).sum(axis=2) / squared, 0, 1)
        found[part] = np.sqrt(((to - share[:, :, None] * along) ** 2).sum(axis=2).min(axis=1))
    return found


def _blocks(points: int, corners: int) -> Iterator[slice]:
    size = max(_MOST_AT_ONCE // 8 // corners, 1)
    for begin in range(0, points, size):
        yield slice(begin, begin + size)


def _somewhere_in(corners: Corners) -> Corners:
    """Return a point well inside a closed contour: on the middle of the widest run of corners' y, in its widest part."""
    rows = np.unique(corners[:, 1])
    if len(rows) < 2:
        first: Corners = corners[0]
        return first
    widest = int(np.argmax(np.diff(rows)))
    y = (rows[widest] + rows[widest + 1]) / 2
    (x1, y1), (x2, y2) = corners.T, np.roll(corners, -1, axis=0).T
    passes = (y1 <= y) != (y2 <= y)
    crossings = np.sort(x1[passes] + (y - y1[passes]) / (y2 - y1)[passes] * (x2 - x1)[passes])
    pair = int(np.argmax(crossings[1::2] - crossings[::2]))
    middle: Corners = np.array([(crossings[2 * pair] + crossings[2 * pair + 1]) / 2, y])
    return middle
