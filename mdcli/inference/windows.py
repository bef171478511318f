"""Cut a volume into windows and blend what the network says of them, keeping only the rows that are not finished.

All arrays are (k, j, i), scores (C, k, j, i). Windows, weights and padding are those of MONAI's sliding_window_inference (monai
1.6, inferers/utils.py and data/utils.py), so that a network gives the same labels here as there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError
from mdcli.inference.nnunet import even_starts

Floats = NDArray[np.float32]
Span = tuple[int, int]

SIGMA_OF_WINDOW = 0.125
MIN_WEIGHT = 1e-3


@dataclass(frozen=True)
class Part:
    """Where a window lies along one axis.

    Attributes:
        start: its first voxel on the grid; below 0 where the grid is smaller than the window.
        keep: the voxels of the grid that it has a say in.
    """

    start: int
    keep: Span

    @property
    def target(self) -> slice:
        """Return what it has a say in, on the grid."""
        return slice(*self.keep)

    @property
    def source(self) -> slice:
        """Return the same voxels within the window."""
        return slice(self.keep[0] - self.start, self.keep[1] - self.start)


def overlapping_parts(
    size: int, window: int, overlap: float, *, flip: bool = False, even: bool = False
) -> tuple[Part, ...]:
    """Return windows along one axis, each covered again in part by the next.

    Args:
        size: voxels of the axis.
        window: voxels of a window; larger than the axis: one window, the axis in its middle.
        overlap: part of a window, at least 0 and under 1.
        flip: count from the other end, as a network does that sees the axis reversed.
        even: spread the windows evenly, as nnU-Net does, instead of shifting the last one back.

    Returns:
        Parts in the order of the axis. The last window ends with the axis.
    """
    if window >= size:
        before = (window - size) // 2
        starts = [before - window + size if flip else -before]
    elif even:
        starts = list(even_starts(size, window, 1 - overlap))
        if flip:
            starts = [size - window - start for start in reversed(starts)]
    else:
        step = max(int(window * (1 - overlap)), 1)
        starts = [min(n * step, size - window) for n in range(math.ceil((size - window) / step) + 1)]
        if flip:
            starts = [size - window - start for start in reversed(starts)]
    return tuple(Part(start, (max(start, 0), min(start + window, size))) for start in starts)


def haloed_parts(size: int, window: int, halo: int) -> tuple[Part, ...]:
    """Return windows along one axis whose outer `halo` voxels at each side are thrown away, but at the ends of the axis.

    Args:
        size: voxels of the axis.
        window: voxels of a window, over twice the halo where the axis is longer than the window.
        halo: voxels at each side.

    Returns:
        Parts in the order of the axis, each voxel of it kept by one.
    """
    if window >= size:
        return (Part(-((window - size) // 2), (0, size)),)
    parts: list[Part] = []
    step, done = window - 2 * halo, 0
    while done < size:
        start = min(len(parts) * step, size - window)
        end = size if start == size - window else start + window - halo
        parts.append(Part(start, (done, end)))
        done = end
    return tuple(parts)


@dataclass(frozen=True)
class Window:
    """One window.

    Attributes:
        parts: where it lies along k, j, i.
        place: which one it is along k, j, i.
        beside: whether the next window is the next one along the outermost axis, at the same place along the others.
    """

    parts: tuple[Part, Part, Part]
    place: tuple[int, int, int] = (0, 0, 0)
    beside: bool = False

    @property
    def target(self) -> tuple[slice, slice, slice]:
        """Return the voxels of the grid that it has a say in."""
        k, j, i = (part.target for part in self.parts)
        return k, j, i

    @property
    def source(self) -> tuple[slice, slice, slice]:
        """Return the same voxels within the window."""
        k, j, i = (part.source for part in self.parts)
        return k, j, i


@dataclass(frozen=True)
class Tiling:
    """How a grid is cut.

    Attributes:
        shape: the grid's voxels (k, j, i).
        window: voxels of a window (k, j, i).
        parts: where windows lie along k, j, i; the windows are all combinations.
        weights: how much each voxel of a window counts (k, j, i); None where no two windows have a say in one voxel.
        walk: the axes in the order in which windows go along them, the outermost first.
    """

    shape: tuple[int, int, int]
    window: tuple[int, int, int]
    parts: tuple[tuple[Part, ...], tuple[Part, ...], tuple[Part, ...]]
    weights: Floats | None
    walk: tuple[int, int, int] = (0, 1, 2)

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """Return the numbers of the parts along the outermost axis, the last two together where they share more than others do.

        The last window is shifted back to end with the axis. Run plane by plane, what it shares with the one before would be
        carried for the whole plane; run window by window, each beside the one before, it is carried for that window alone.
        """
        parts = self.parts[self.walk[0]]
        shared = [a.keep[1] - b.keep[0] for a, b in itertools.pairwise(parts)]
        single = [(n,) for n in range(len(parts))]
        if len(shared) > 1 and shared[-1] > shared[0]:
            return (*single[:-2], (len(parts) - 2, len(parts) - 1))
        return tuple(single)

    @property
    def outer(self) -> tuple[Part, ...]:
        """Return the parts along the outermost axis; those that are run together end where the next one begins."""
        parts = list(self.parts[self.walk[0]])
        for group in self.groups:
            for n in group[:-1]:
                parts[n] = Part(parts[n].start, (parts[n].keep[0], parts[n + 1].keep[0]))
        return tuple(parts)

    def rows(self) -> Iterator[tuple[tuple[int, int], list[Window]]]:
        """Give the windows that lie alike along the outermost axis, in its order: (its first voxel and the one after the last)."""
        outer, middle, inner = self.walk
        size, along = self.window[outer], self.parts[outer]
        for group in self.groups:
            windows = []
            for (m, b), (i, c) in itertools.product(enumerate(self.parts[middle]), enumerate(self.parts[inner])):
                for n in group:
                    parts = {outer: along[n], middle: b, inner: c}
                    place = {outer: n, middle: m, inner: i}
                    windows.append(
                        Window((parts[0], parts[1], parts[2]), (place[0], place[1], place[2]), n != group[-1])
                    )
            yield (max(along[group[0]].start, 0), min(along[group[-1]].start + size, self.shape[outer])), windows

    def windows(self) -> Iterator[Window]:
        """Give all windows, in the order in which they are run."""
        for _, windows in self.rows():
            yield from windows

    @property
    def count(self) -> int:
        """Return how many windows there are."""
        return math.prod(len(parts) for parts in self.parts)

    def carried_voxels(self, walk: tuple[int, int, int]) -> int:
        """Return how many voxels of every channel are carried at most, were the windows to go along the axes in this order."""
        other = replace(self, walk=walk)
        size = list(self.shape)
        along = other.parts[walk[0]]
        first = max((a.keep[1] - b.keep[0] for a, b in itertools.pairwise(other.outer)), default=0)
        found = first * math.prod(size[n] for n in range(3) if n != walk[0])
        size[walk[0]] = max(along[group[-1]].keep[1] - along[group[0]].keep[0] for group in other.groups)
        beside = max(
            (along[a].keep[1] - along[b].keep[0] for g in other.groups for a, b in itertools.pairwise(g)), default=0
        )
        found += beside * math.prod(min(self.window[n], self.shape[n]) for n in range(3) if n != walk[0])
        for axis in walk[1:]:
            parts = self.parts[axis]
            shared = max((a.keep[1] - b.keep[0] for a, b in itertools.pairwise(parts)), default=0)
            found += max(shared, 0) * math.prod(size[n] for n in range(3) if n != axis)
            size[axis] = min(self.window[axis], self.shape[axis])
        return found

    def walking(self, order: Sequence[tuple[int, int, int]]) -> Tiling:
        """Return the same windows in the order of axes that carries least; of equal ones the first of `order`."""
        return replace(self, walk=min(order, key=self.carried_voxels))


def gaussian_weights(window: tuple[int, int, int]) -> Floats:
    """Return weights that fall off towards the edges: a gaussian with sigma an eighth of the window, at least 0.001."""
    weights = np.ones((), np.float32)
    for size in window:
        x = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        weights = weights[..., None] * np.exp(x**2 / np.float32(-2 * (SIGMA_OF_WINDOW * size) ** 2))
    return np.maximum(weights, np.float32(max(float(weights.min()), MIN_WEIGHT)))


def extract(
    rows: Floats, axis: int, first: int, window: Window, size: tuple[int, int, int], outside: float | None
) -> Floats:
    """Return what lies in a window.

    Args:
        rows: (C, k, j, i), all rows along `axis` that the window needs, the whole grid along the others.
        axis: 0, 1 or 2.
        first: the row of the grid that `rows` starts with.
        window: where.
        size: of the window (k, j, i).
        outside: the value of voxels outside of the grid; None: the grid's edge goes on.

    Returns:
        (C, k, j, i); a view of `rows` where the window lies inside.
    """
    starts = tuple(part.start - (first if n == axis else 0) for n, part in enumerate(window.parts))
    inside = tuple(slice(max(a, 0), min(a + n, m)) for a, n, m in zip(starts, size, rows.shape[1:], strict=True))
    found = rows[(slice(None), *inside)]
    if found.shape[1:] == size:
        return found
    before = [(s.start - a, n - (s.stop - a)) for s, a, n in zip(inside, starts, size, strict=True)]
    if outside is None:
        return np.pad(found, [(0, 0), *before], mode="edge")
    return np.pad(found, [(0, 0), *before], constant_values=np.float32(outside))


@contextmanager
def refuse_overflow() -> Iterator[None]:
    """Refuse arithmetic on finite scores whose result is not finite, which would be no label's score any more.

    Raises:
        DataError: `nan-in-output`.
    """
    try:
        with np.errstate(over="raise"):
            yield
    except FloatingPointError:
        message = "the network gave scores so large that they can't be blended or interpolated in float32"
        raise DataError("nan-in-output", message) from None


class Blender:
    """Blends the outputs of windows; what no further window has a say in is given at once, block after block.

    Windows come along one axis after another: the outermost, the middle, the innermost. After each window the part of its block
    that is finished along the innermost axis goes on to the middle one, the rest is carried to the next window there; so too along
    the middle and the outermost axis. What is held is the carried parts alone, and the outermost's are the largest: the unfinished
    rows of a plane of windows, for every channel.

    Args:
        tiling: how the grid is cut.
        normalise: divide by the sum of the weights. Where only the highest channel matters, it is the same without.
        again: along each axis (k, j, i), give the last finished voxel before a block once more with it: interpolation needs it.
    """

    def __init__(
        self, tiling: Tiling, *, normalise: bool, again: tuple[bool, bool, bool] = (False, False, False)
    ) -> None:
        self._tiling = tiling
        inner = [_Carry(axis, tiling.parts[axis], again[axis]) for axis in reversed(tiling.walk[1:])]
        self._levels = [*inner, _Carry(tiling.walk[0], tiling.outer, again[tiling.walk[0]])]
        self._total: Blender | None = None
        if normalise and tiling.weights is not None:
            self._total = Blender(tiling, normalise=False, again=again)
        self._weights = tiling.weights
        self._beside: Floats | None = None

    def add(self, window: Window, scores: Floats) -> Block:
        """Take what the network says of the next window, and give what is finished by it.

        Args:
            window: the next one of `Tiling.windows`.
            scores: (C, k, j, i); they are changed.

        Returns:
            A block, which may have no voxels, and may be a part of `scores`.

        Raises:
            DataError: `nan-in-output` where finite scores add up to what is not finite.
        """
        block = scores[(slice(None), *window.source)]
        if self._weights is not None:
            if self._weights.strides != scores.strides[1:]:
                self._weights = _laid_out_like(scores[0], self._weights)
            # Two finite numbers, one of them at most 10: what is too large shows in the sum.
            with refuse_overflow():
                block *= self._weights[window.source]
        found = self._put(window, block)
        if self._total is not None:
            weights = np.ones((1, *self._tiling.window), np.float32)
            total = self._total.add(window, weights)
            with refuse_overflow():
                found = Block(found.start, np.divide(found.scores, total.scores, out=found.scores), found.again)
        return found

    def _put(self, window: Window, block: Floats) -> Block:
        place = window.place
        starts = [part.keep[0] for part in window.parts]
        outer = self._tiling.walk[0]
        if self._beside is not None:
            with refuse_overflow():
                block[along(outer, 0, self._beside.shape[outer + 1])] += self._beside
            self._beside = None
        if window.beside:
            end = self._tiling.parts[outer][place[outer] + 1].keep[0] - starts[outer]
            self._beside = block[along(outer, end, None)].copy(order="K")
            block = block[along(outer, 0, end)]
        again = [0, 0, 0]
        for level in self._levels:
            across = tuple(place[axis] for axis in range(3) if axis != level.axis)
            block, before = level.push(place[level.axis], across, block)
            starts[level.axis] -= before
            again[level.axis] = before
        return Block((starts[0], starts[1], starts[2]), block, (again[0], again[1], again[2]))


@dataclass(frozen=True)
class Block:
    """Finished scores.

    Attributes:
        start: the first voxel, (k, j, i) of the grid.
        scores: (C, k, j, i).
        again: along k, j, i: how many of the first voxels were in a block before.
    """

    start: tuple[int, int, int]
    scores: Floats
    again: tuple[int, int, int] = (0, 0, 0)


class _Carry:
    """Finishes blocks along one axis, carrying what a later window still has a say in."""

    def __init__(self, axis: int, parts: Sequence[Part], again: bool) -> None:
        self.axis = axis
        self._starts = [part.keep[0] for part in parts]
        self._again = again
        self._kept: dict[tuple[int, ...], Floats] = {}
        self._last: dict[tuple[int, ...], Floats] = {}

    def push(self, n: int, across: tuple[int, ...], block: Floats) -> tuple[Floats, int]:
        """Take the block of the n-th part along this axis.

        Args:
            n: counted from 0.
            across: which part it is along the other axes.
            block: (C, k, j, i), finished along the axes before.

        Returns:
            What is finished along this axis too, and how many voxels of it were given before.
        """
        axis, size = self.axis, block.shape[self.axis + 1]
        if (kept := self._kept.pop(across, None)) is not None:
            shared = min(kept.shape[axis + 1], size)
            with refuse_overflow():
                block[along(axis, 0, shared)] += kept[along(axis, 0, shared)]
            if kept.shape[axis + 1] > size:
                # A window may reach over the whole of the next part.
                self._kept[across] = kept[along(axis, size, None)]
        if n + 1 < len(self._starts):
            end = self._starts[n + 1] - self._starts[n]
            if end < size:
                self._kept[across] = block[along(axis, end, None)].copy(order="K")
            block = block[along(axis, 0, end)]
        if not self._again:
            return block, 0
        last = self._last.pop(across, None)
        if last is not None:
            block = np.concatenate([last, block], axis=axis + 1)
        if n + 1 < len(self._starts) and block.shape[axis + 1]:
            self._last[across] = block[along(axis, -1, None)].copy(order="K")
        return block, int(last is not None)


def along(axis: int, start: int, stop: int | None) -> tuple[slice, ...]:
    """Return the index of a part of (C, k, j, i) along k, j or i (0, 1, 2)."""
    return (*(slice(None) for _ in range(axis + 1)), slice(start, stop))


def _laid_out_like(like: Floats, values: Floats) -> Floats:
    """Return values laid out in memory as another array is: arithmetic between two layouts takes several times as long."""
    out = np.empty_like(like)
    out[...] = values
    return out
