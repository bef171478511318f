"""Cut a volume into windows and blend what the network says of them, keeping only the rows that are not finished.

All arrays are (k, j, i), scores (C, k, j, i). Windows, weights and padding are those of MONAI's sliding_window_inference (monai
1.6, inferers/utils.py and data/utils.py), so that a network gives the same labels here as there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError

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


def overlapping_parts(size: int, window: int, overlap: float, *, flip: bool = False) -> tuple[Part, ...]:
    """Return windows along one axis, each covered again in part by the next.

    Args:
        size: voxels of the axis.
        window: voxels of a window; larger than the axis: one window, the axis in its middle.
        overlap: part of a window, at least 0 and under 1.
        flip: count from the other end, as a network does that sees the axis reversed.

    Returns:
        Parts in the order of the axis. The last window is shifted back to end with the axis.
    """
    if window >= size:
        before = (window - size) // 2
        starts = [before - window + size if flip else -before]
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
    """One window: its parts along k, j, i."""

    parts: tuple[Part, Part, Part]

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
    """

    shape: tuple[int, int, int]
    window: tuple[int, int, int]
    parts: tuple[tuple[Part, ...], tuple[Part, ...], tuple[Part, ...]]
    weights: Floats | None

    def rows(self) -> Iterator[tuple[Part, list[Window]]]:
        """Give the windows that lie alike along k, in the order of k."""
        k, j, i = self.parts
        for part in k:
            yield part, [Window((part, *inner)) for inner in itertools.product(j, i)]

    @property
    def count(self) -> int:
        """Return how many windows there are."""
        return math.prod(len(parts) for parts in self.parts)


def gaussian_weights(window: tuple[int, int, int]) -> Floats:
    """Return weights that fall off towards the edges: a gaussian with sigma an eighth of the window, at least 0.001."""
    weights = np.ones((), np.float32)
    for size in window:
        x = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        weights = weights[..., None] * np.exp(x**2 / np.float32(-2 * (SIGMA_OF_WINDOW * size) ** 2))
    return np.maximum(weights, np.float32(max(float(weights.min()), MIN_WEIGHT)))


def extract(rows: Floats, first: int, window: Window, size: tuple[int, int, int], outside: float) -> Floats:
    """Return what lies in a window.

    Args:
        rows: (k, j, i), all rows of the grid that the window needs.
        first: the row of the grid that `rows` starts with.
        window: where.
        size: of the window (k, j, i).
        outside: the value of voxels outside of the grid.

    Returns:
        (k, j, i); a view of `rows` where the window lies inside.
    """
    k, j, i = window.parts
    starts = (k.start - first, j.start, i.start)
    inside = tuple(slice(max(a, 0), min(a + n, m)) for a, n, m in zip(starts, size, rows.shape, strict=True))
    found = rows[inside]
    if found.shape == size:
        return found
    padded = np.full(size, outside, np.float32)
    padded[tuple(slice(s.start - a, s.stop - a) for s, a in zip(inside, starts, strict=True))] = found
    return padded


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


def blend(tiling: Tiling, outputs: Iterable[Floats], *, normalise: bool) -> Iterator[tuple[int, Floats]]:
    """Blend the outputs of all windows; rows are given as soon as no further window has a say in them.

    Args:
        tiling: how the grid is cut.
        outputs: (C, k, j, i), one a window, in the order of `Tiling.rows`. They are changed.
        normalise: divide by the sum of the weights. Where only the highest channel matters, it is the same without.

    Yields:
        (first row, scores (C, rows, j, i)), in the order of k. Not more than one window's rows are held at a time.

    Raises:
        DataError: `nan-in-output` where finite scores add up to what is not finite.
    """
    results = iter(outputs)
    rows = list(tiling.rows())
    weights = tiling.weights
    sums = total = None
    for n, (part, windows) in enumerate(rows):
        first, last = part.keep
        finished = rows[n + 1][0].keep[0] if n + 1 < len(rows) else last
        if weights is None and len(windows) == 1:
            yield first, next(results)[(slice(None), *windows[0].source)]
            continue
        for window in windows:
            scores = next(results)
            if weights is not None and weights.strides != scores.strides[1:]:
                weights = _laid_out_like(scores[0], weights)
            extent = (scores.shape[0], last - first, *tiling.shape[1:])
            if sums is None or sums.shape[1] < last - first:
                sums = _grown(sums, extent, scores)
                if normalise and weights is not None:
                    total = _grown(total, (1, *extent[1:]), scores)
            k, j, i = window.target
            target = (slice(None), slice(k.start - first, k.stop - first), j, i)
            scores = scores[(slice(None), *window.source)]
            if weights is None:
                sums[target] = scores
                continue
            scores *= weights[window.source]
            with refuse_overflow():
                sums[target] += scores
            if total is not None:
                total[target] += weights[window.source]
        assert sums is not None
        done, sums = sums[:, : finished - first], sums[:, finished - first :]
        if total is not None:
            with refuse_overflow():
                done /= total[:, : finished - first]
            total = total[:, finished - first :]
        yield first, done


def _grown(kept: Floats | None, shape: tuple[int, ...], like: Floats) -> Floats:
    """Return zeros of a shape, laid out in memory as another array is, their first rows being those kept from before."""
    out = np.zeros_like(like, shape=shape)
    if kept is not None:
        out[:, : kept.shape[1]] = kept
    return out


def _laid_out_like(like: Floats, values: Floats) -> Floats:
    """Return values laid out in memory as another array is: arithmetic between two layouts takes several times as long."""
    out = np.empty_like(like)
    out[...] = values
    return out
