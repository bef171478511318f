"""Resample a volume as nnU-Net does: cubic splines on axis after axis, and apart across thick slices.

Everything here is (k, j, i). nnU-Net resizes with skimage (order 3, mode edge, no anti-aliasing) and, where one axis is far
coarser than the others, slice by slice, taking the nearest slice along that axis. A spline of order 3 on a grid is separable, so
each axis is one narrow band of weights, and a slab of the result needs a slab of the source.

Source: nnunetv2.preprocessing.resampling.default_resampling (2.8.1); skimage.transform.resize; scipy.ndimage.zoom, grid_mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SEPARATE_ABOVE = 3.0
"""The largest spacing over the smallest above which nnU-Net resamples the coarse axis apart (`ANISO_THRESHOLD`)."""

# The pole of the cubic B-spline's inverse filter (Unser 1999, IEEE Signal Processing Magazine 16(6), table 1). The weight of a
# sample falls by it with each voxel of distance: 14 voxels away it is under 1e-8, less than float32 can hold beside 1.
_POLE = math.sqrt(3.0) - 2.0
_REACH = 14
# New samples that one matrix product gives: wide enough for BLAS, narrow enough that the band is most of the matrix.
_BLOCK = _SLAB = 32


def resized(shape: Sequence[int], spacing: Sequence[float], wanted: Sequence[float]) -> tuple[int, ...]:
    """Return how many voxels each axis has at another spacing: `round(spacing / wanted * voxels)`, half-way to the even number.

    Args:
        shape: voxels, any order of axes.
        spacing: mm, in the same order.
        wanted: mm, in the same order.

    Returns:
        Voxels, at least 1 each.

    Source: `compute_new_shape` of nnU-Net. MONAI's rule differs.
    """
    return tuple(max(round(old / new * n), 1) for n, old, new in zip(shape, spacing, wanted, strict=True))


def separate_axis(
    spacing: Sequence[float], wanted: Sequence[float], above: float | None = SEPARATE_ABOVE
) -> int | None:
    """Return the axis that is resampled apart, by the nearest slice, or None.

    Args:
        spacing: mm of the grid that is resampled, any order of axes.
        wanted: mm of the grid that it is resampled to, in the same order.
        above: the largest spacing over the smallest above which a grid counts as anisotropic; None: never.

    Returns:
        The coarsest axis of the first of the two grids that is anisotropic; None where neither is or where two axes of that grid
        are the coarsest.

    Source: `determine_do_sep_z_and_axis` of nnU-Net, with `force_separate_z` null (or false, as None).
    """
    if above is None:
        return None
    for sizes in (spacing, wanted):
        if max(sizes) / min(sizes) > above:
            coarse = [axis for axis, size in enumerate(sizes) if max(sizes) / size == 1]
            return coarse[0] if len(coarse) == 1 else None
    return None


def positions(old: int, new: int) -> NDArray[np.float64]:
    """Return where new samples lie among old ones: `(n + .5) * old / new - .5`, so that the outer edges of both grids agree.

    The operations and their order are nnU-Net's: a sample half-way between two old ones stays exactly there.
    """
    return float(old) / new * (np.arange(new, dtype=np.float64) + 0.5) - 0.5


def nearest(old: int, new: int, *, flip: bool = False) -> NDArray[np.intp]:
    """Return the old sample that each new one takes: the nearest, and of two the later one in the network's direction.

    Args:
        old: samples there are.
        new: samples wanted.
        flip: whether the network sees the axis reversed.

    Source: scipy.ndimage.map_coordinates of order 0 takes floor(position + .5).
    """
    at = positions(old, new)
    found = np.ceil(at - 0.5) if flip else np.floor(at + 0.5)
    return np.clip(found, 0, old - 1).astype(np.intp)


@dataclass(frozen=True)
class Cubic:
    """New samples of one axis as weighted sums of old ones: a cubic spline through all of them, its edge values going on outside.

    Attributes:
        old: samples there are.
        new: samples wanted.
    """

    old: int
    new: int

    @cached_property
    def _band(self) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
        """Return for every new sample the first old one that it needs (before clipping to the axis), and all weights."""
        at = positions(self.old, self.new)
        base = np.floor(at)
        offset = (at - base)[:, None, None] - np.arange(-1, 3)[None, None, :]
        distance = np.abs(offset)
        basis = np.where(distance < 1, 2 / 3 - distance**2 * (1 - distance / 2), np.maximum(2 - distance, 0) ** 3 / 6)
        taps = np.arange(-_REACH + 1, _REACH + 1)
        inverse = math.sqrt(3.0) * _POLE ** np.abs(np.arange(-1, 3)[None, :] - taps[:, None]).astype(np.float64)
        weights = (basis * inverse[None]).sum(axis=2)
        weights /= weights.sum(axis=1, keepdims=True)
        return base.astype(np.intp) + taps[0], weights

    def needs(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first old sample, and the one after the last, that new samples `start` to `stop` need."""
        first = self._band[0]
        low = min(max(int(first[start]), 0), self.old - 1)
        return low, min(max(int(first[stop - 1]) + 2 * _REACH, 1), self.old)

    def weights(self, start: int, stop: int) -> Floats:
        """Return the weights of the old samples of `needs` for new samples `start` to `stop`: (new, old)."""
        low, high = self.needs(start, stop)
        first, band = self._band
        at = np.clip(first[start:stop, None] + np.arange(2 * _REACH), 0, self.old - 1) - low
        dense = np.zeros((stop - start, high - low))
        np.add.at(dense, (np.arange(stop - start)[:, None], at), band[start:stop])
        return dense.astype(np.float32)

    @cached_property
    def blocks(self) -> tuple[tuple[slice, slice, Floats], ...]:
        """Return (new samples, old samples, weights (new, old)), block after block."""
        found = []
        for start in range(0, self.new, _BLOCK):
            stop = min(start + _BLOCK, self.new)
            found.append((slice(start, stop), slice(*self.needs(start, stop)), self.weights(start, stop)))
        return tuple(found)


@dataclass(frozen=True)
class Nearest:
    """New samples of one axis as old ones.

    Attributes:
        old: samples there are.
        new: samples wanted.
        flip: whether the network sees the axis reversed.
    """

    old: int
    new: int
    flip: bool = False

    @cached_property
    def index(self) -> NDArray[np.intp]:
        """Return the old sample of each new one."""
        return nearest(self.old, self.new, flip=self.flip)


def cubic_axes(
    shape: Sequence[int], wanted: Sequence[int], separate: int | None, flips: Sequence[bool] = (False, False, False)
) -> tuple[Cubic | Nearest, ...]:
    """Return how each axis (k, j, i) is resampled.

    Args:
        shape: voxels there are, (k, j, i).
        wanted: voxels wanted, (k, j, i).
        separate: the axis that is resampled apart (0, 1, 2), or None.
        flips: whether the network sees an axis reversed.
    """
    return tuple(
        Nearest(old, new, flip) if axis == separate or old == new else Cubic(old, new)
        for axis, (old, new, flip) in enumerate(zip(shape, wanted, flips, strict=True))
    )


def resample_plane(plane: Floats, j: Cubic | Nearest, i: Cubic | Nearest) -> Floats:
    """Return a plane (j, i) at new samples, float32."""
    # The axis that shrinks most goes first: what follows has less to do.
    steps = sorted(((j, 0), (i, 1)), key=lambda step: step[0].new / step[0].old)
    for axis, place in steps:
        plane = _along(plane, axis, place)
    return plane


def _along(values: Floats, axis: Cubic | Nearest, place: int) -> Floats:
    """Return a plane with its axis 0 or 1 resampled."""
    if axis.old == axis.new:
        return values
    if isinstance(axis, Nearest):
        return np.take(values, axis.index, axis=place)
    if place == 1:
        out = np.empty((len(values), axis.new), np.float32)
        for new, old, weights in axis.blocks:
            np.matmul(values[:, old], weights.T, out=out[:, new])
    else:
        out = np.empty((axis.new, values.shape[1]), np.float32)
        for new, old, weights in axis.blocks:
            np.matmul(weights, values[old], out=out[new])
    return out


class CubicRows:
    """Gives slabs of a volume resampled as nnU-Net does, in the order of k; a plane of the source is asked for once.

    Args:
        plane_at: gives plane (j, i), float32, at an index along k of the source. Ready for the network: nnU-Net normalises first.
        axes: of `cubic_axes`.
        ranges: the lowest and the highest value of the source, which a spline would exceed and nnU-Net clips to. Where an axis is
            resampled apart, two arrays along that axis: those of each slice.
        separate: that axis (0, 1, 2), or None.
    """

    def __init__(
        self,
        plane_at: Callable[[int], Floats],
        axes: Sequence[Cubic | Nearest],
        ranges: tuple[NDArray[np.float32], NDArray[np.float32]],
        separate: int | None = None,
    ) -> None:
        self._plane_at = plane_at
        self._k, self._j, self._i = axes
        self._planes: dict[int, Floats] = {}
        low, high = (np.asarray(values, np.float32) for values in ranges)
        self._per_plane = separate == 0
        if separate in (1, 2):
            taken = axes[separate]
            assert isinstance(taken, Nearest)
            low, high = (values[taken.index] for values in (low, high))
            low, high = (values[:, None] if separate == 1 else values for values in (low, high))
        self._low, self._high = low, high
        # Where no axis is a spline nothing exceeds the range.
        self._clips = any(isinstance(axis, Cubic) for axis in axes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the voxels of the result, (k, j, i)."""
        return self._k.new, self._j.new, self._i.new

    def rows(self, start: int, stop: int, out: Floats | None = None) -> Floats:
        """Return rows `start` to `stop` of the result: (k, j, i), float32, in `out` if given. Rows in rising order cost least."""
        k = self._k
        out = np.empty((stop - start, *self.shape[1:]), np.float32) if out is None else out
        if isinstance(k, Nearest):
            wanted = k.index[start:stop]
            self._hold(wanted.tolist())
            for row, index in enumerate(wanted.tolist()):
                out[row] = self._planes[index]
                if self._clips:
                    at = index if self._per_plane else ...
                    np.clip(out[row], self._low[at], self._high[at], out=out[row])
            return out
        flat = out.reshape(stop - start, -1)
        for a in range(start, stop, _BLOCK):
            b = min(a + _BLOCK, stop)
            low, high = k.needs(a, b)
            self._hold(range(low, high))
            stack = np.stack([self._planes[index] for index in range(low, high)]).reshape(high - low, -1)
            np.matmul(k.weights(a, b), stack, out=flat[a - start : b - start])
        np.clip(out, self._low, self._high, out=out)
        return out

    def whole(self, out: Floats | None = None) -> Floats:
        """Return all rows: (k, j, i), float32, in `out` (contiguous) if given."""
        out = np.empty(self.shape, np.float32) if out is None else out
        for start in range(0, len(out), _SLAB):
            stop = min(start + _SLAB, len(out))
            self.rows(start, stop, out[start:stop])
        return out

    def _hold(self, wanted: Sequence[int]) -> None:
        """Have planes of the source at hand, resampled in their plane, and no others."""
        self._planes = {index: self._planes[index] for index in self._planes.keys() & set(wanted)}
        for index in wanted:
            if index not in self._planes:
                self._planes[index] = resample_plane(self._plane_at(index), self._j, self._i)


def ranges_of(planes: Iterable[Floats], separate: int | None) -> tuple[Floats, Floats]:
    """Return the lowest and the highest values that `CubicRows` clips to.

    Args:
        planes: (j, i), in the order of k: what is resampled.
        separate: the axis that is resampled apart, or None.

    Returns:
        Two numbers as arrays without axes, or two arrays along `separate`.
    """
    along = None if separate in (None, 0) else 2 - separate
    found = [(plane.min(axis=along), plane.max(axis=along)) for plane in planes]
    low, high = (np.asarray(values, np.float32) for values in zip(*found, strict=True))
    return (low, high) if separate == 0 else (low.min(axis=0), high.max(axis=0))


def resample_cubic(
    array: Floats, wanted: Sequence[int], separate: int | None = None, flips: Sequence[bool] = (False, False, False)
) -> Floats:
    """Return a volume with another number of voxels over the same extent, as nnU-Net resamples images.

    Args:
        array: (k, j, i), float32, normalised.
        wanted: voxels along k, j, i.
        separate: of `separate_axis`.
        flips: whether the network sees an axis reversed.

    Returns:
        (k, j, i), float32, within the range of the source.
    """
    axes = cubic_axes(array.shape, wanted, separate, flips)
    return CubicRows(lambda index: array[index], axes, ranges_of(array, separate), separate).whole()
