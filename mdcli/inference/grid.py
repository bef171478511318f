"""The grid that a network works on, beside the volume's own, and the way between the two.

Both grids have their axes in the volume's order (k, j, i) and directions: a network's permutation and flips are applied to one
window at a time. So each axis is a map of its own, and a resampled volume is three one-dimensional interpolations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.geometry import TILT_DEGREES, TILT_VOXELS
from mdcli.errors import ConfigError
from mdcli.inference.card import AS_ACQUIRED, Input
from mdcli.inference.monai_grid import keeps_first_voxel, middle_offset
from mdcli.inference.spline import separate_axis

Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

MAX_GRID_VOXELS = 1 << 33
# Where the index grows to, as (axis of LPS+, sign).
_LETTERS = {"L": (0, 1), "R": (0, -1), "P": (1, 1), "A": (1, -1), "S": (2, 1), "I": (2, -1)}


@dataclass(frozen=True)
class Samples:
    """Where new samples lie between old ones: `old[low] * (1 - weight) + old[high] * weight`."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    weight: NDArray[np.float32]

    @property
    def nearest(self) -> NDArray[np.intp]:
        """Return the old sample nearest to each new one; half-way goes to the even one, as in torch and NumPy."""
        return np.asarray(np.rint(self.low + self.weight.astype(np.float64)), np.intp)

    def of(self, start: int, stop: int) -> Samples:
        """Return new samples `start` to `stop`."""
        return Samples(self.low[start:stop], self.high[start:stop], self.weight[start:stop])


@dataclass(frozen=True)
class Axis:
    """One axis of both grids.

    Attributes:
        source: voxels of the volume.
        size: voxels of the network's grid.
        step: source voxels from one voxel of the network's grid to the next.
        offset: where voxel 0 of the network's grid lies, in source voxels.
        flip: whether the network sees this axis reversed.
        covers: the source voxels, first and one after the last, that the grid speaks for; None: all.
        reads: the source voxels that the grid's values are taken from, likewise: nnU-Net crops before it resamples.
        nearest: between voxels the nearest one counts, where other axes are interpolated.
    """

    source: int
    size: int
    step: float
    offset: float
    flip: bool
    covers: tuple[int, int] | None = None
    reads: tuple[int, int] | None = None
    nearest: bool = False

    @property
    def covered(self) -> tuple[int, int]:
        """Return the source voxels that the grid speaks for: the first, and one after the last."""
        return self.covers or (0, self.source)

    @property
    def same(self) -> bool:
        """Say whether both grids have the same voxels."""
        return self.size == self.source and self.step == 1.0 and self.offset == 0.0

    def to_network(self) -> Samples:
        """Return where the voxels of the network's grid lie among the volume's; outside of them the edge counts."""
        first, end = self.reads or (0, self.source)
        positions = np.clip(self.offset + np.arange(self.size, dtype=np.float64) * self.step, first, end - 1)
        return _samples(self._settled(positions), self.source)

    def to_source(self) -> Samples:
        """Return where the volume's voxels lie among those of the network's grid; outside of them the edge counts."""
        positions = (np.arange(self.source, dtype=np.float64) - self.offset) / self.step
        return _samples(self._settled(positions), self.size)

    def _settled(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the nearest whole positions where the nearest voxel counts: half-way the later one, as the network sees the axis.

        Source: scipy.ndimage.map_coordinates of order 0, which nnU-Net uses, takes floor(position + .5).
        """
        if not self.nearest:
            return positions
        return np.ceil(positions - 0.5) if self.flip else np.floor(positions + 0.5)


def _samples(positions: NDArray[np.float64], size: int) -> Samples:
    positions = np.clip(positions, 0, size - 1)
    low = np.floor(positions).astype(np.intp)
    return Samples(low, np.minimum(low + 1, size - 1), (positions - low).astype(np.float32))


@dataclass(frozen=True)
class Grid:
    """A network's grid on one volume.

    Attributes:
        axes: along k, j, i.
        order: for each of the network's axes after C, which of k, j, i it is: 0, 1 or 2. A network that takes slices has two.
    """

    axes: tuple[Axis, Axis, Axis]
    order: tuple[int, ...]

    @property
    def across(self) -> int | None:
        """Return the axis that a network goes along slice by slice; None where it takes volumes."""
        return next(iter({0, 1, 2} - set(self.order)), None)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the voxels of the network's grid along k, j, i."""
        k, j, i = (axis.size for axis in self.axes)
        return k, j, i

    @property
    def source_shape(self) -> tuple[int, int, int]:
        """Return the volume's voxels along k, j, i."""
        k, j, i = (axis.source for axis in self.axes)
        return k, j, i

    @property
    def same(self) -> bool:
        """Say whether the network's voxels are the volume's."""
        return all(axis.same for axis in self.axes)

    def to_network(self, window: NDArray[Any]) -> NDArray[Any]:
        """Return a window (k, j, i) as the network sees it, its axes in the network's order and directions."""
        flips = tuple(slice(None, None, -1 if axis.flip else 1) for axis in self.axes)
        if self.across is None:
            return window[flips].transpose(self.order)
        seen = window[flips].take(0, axis=self.across)
        turned: NDArray[Any] = seen if self.order[0] < self.order[1] else seen.T
        return turned

    def from_network(self, scores: NDArray[Any], order: tuple[int, ...]) -> NDArray[Any]:
        """Return a network's output (C and three axes) as (C, k, j, i).

        Args:
            scores: C first.
            order: for each of the output's axes after C, which of k, j, i it is.
        """
        flips = tuple(slice(None, None, -1 if axis.flip else 1) for axis in self.axes)
        if self.across is not None:
            scores, order = scores[..., None], (*order, self.across)
        return scores.transpose(0, *(1 + order.index(n) for n in range(3)))[(slice(None), *flips)]

    def order_of(self, axes: tuple[str, ...], input_axes: tuple[str, ...]) -> tuple[int, ...]:
        """Return for each of some other axes after C which of k, j, i it is, given those of the input."""
        return tuple(self.order[input_axes.index(axis) - 1] for axis in axes[1:])


def closest_axes(affine: NDArray[np.float64]) -> tuple[tuple[int, int], ...]:
    """Return for the index axes i, j, k the axis of LPS+ (0, 1, 2) that each follows most, and its sign.

    Args:
        affine: 4x4, (i, j, k) to mm, LPS+.

    Source: nibabel.orientations.io_orientation, which MONAI's Orientation uses: polar decomposition, then the best-matched index
    axis first.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    left, _, right = np.linalg.svd(directions)
    rotation = left @ right
    taken, found = np.abs(rotation), [(0, 0)] * 3
    for index in np.argsort(np.min(-(rotation**2), axis=0), kind="stable"):
        world = int(np.argmax(taken[:, index]))
        found[int(index)] = (world, 1 if rotation[world, index] > 0 else -1)
        taken[world, :] = -1
    return tuple(found)


def shear_of(shape: tuple[int, int, int], affine: NDArray[np.float64]) -> tuple[float, float] | None:
    """Say whether a volume's axes are off the right angle: a network's grid along them would not be what it was trained on.

    Args:
        shape: (k, j, i).
        affine: 4x4, (i, j, k) to mm, LPS+.

    Returns:
        How far two axes are off, degrees, and by how many voxels that shifts one end of the volume against the other, where it is
        more than 0.05 degree and a tenth of a voxel; None where it is not.
    """
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    cosines = np.abs((affine[:3, :3] / sizes).T @ (affine[:3, :3] / sizes))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        degrees = math.degrees(math.asin(min(float(cosines[a, b]), 1.0)))
        voxels = float(cosines[a, b] * (shape[2 - b] - 1) * sizes[b] / sizes[a])
        if degrees > TILT_DEGREES and voxels > TILT_VOXELS:
            return degrees, voxels
    return None


def network_grid(
    shape: tuple[int, int, int], affine: NDArray[np.float64], wanted: Input, box: Box | None = None
) -> Grid:
    """Return the grid that a card asks for on a volume.

    Args:
        shape: the volume's, (k, j, i).
        affine: 4x4, (i, j, k) to mm, LPS+; its axes at right angles.
        wanted: the card's input.
        box: for k, j, i the first voxel and one after the last that is kept, of the volume where `wanted.crop.above` is None
            (nnU-Net crops first), else of the grid that its spacing makes (MONAI crops last).

    Returns:
        A grid aligned with the volume's axes. With the rule `corners` it is resampled as MONAI's Spacing does:
        `round((n - 1) * s_in / s_out + 1)` voxels, and the first voxel, in the network's direction, keeps its place; with `edges`
        as nnU-Net does: `round(n * s_in / s_out)` voxels over the same extent.

    Raises:
        ConfigError: `grid-too-large` where the card's spacing makes more than 2^33 voxels.
    """
    follows = closest_axes(affine)
    # Which of i, j, k (0, 1, 2) is each of the network's axes, and whether it runs the other way.
    letters: list[tuple[int, int]] = [(0, 1), (1, 1), (2, 1)]
    if wanted.orientation != AS_ACQUIRED:
        letters = []
        for letter in wanted.orientation:
            world, sign = _LETTERS[letter]
            index = next(n for n, (axis, _) in enumerate(follows) if axis == world)
            letters.append((index, sign * follows[index][1]))
    spacing_in = np.linalg.norm(affine[:3, :3], axis=0)
    # Along the axis that a network of slices does not have nothing is changed.
    axes = [Axis(n, n, 1.0, 0.0, False) for n in shape]
    order = []
    rule: str = wanted.rule
    if rule == "monai":
        rule = "corners" if _keeps_first_voxel(shape, affine, wanted, letters) else "middle"
    first = box if box is not None and wanted.crop is not None and wanted.crop.above is None else None
    for place, name in enumerate(wanted.axes[1:]):
        index, sign = letters["xyz".index(name)]
        kji = 2 - index
        spacing = float(spacing_in[index])
        target = spacing if isinstance(wanted.spacing, str) else float(wanted.spacing[place])
        kept = (0, shape[kji]) if first is None else first[kji]
        axes[kji] = _axis(shape[kji], kept, spacing, target, sign < 0, rule)
        order.append(kji)
    if first is not None:
        axes = [a if n in order else _part(a, *first[n]) for n, a in enumerate(axes)]
    elif box is not None:
        axes = [_part(axis, *kept) for axis, kept in zip(axes, box, strict=True)]
    if wanted.separate_z is not None:
        axes = _separated(axes, order, wanted, [float(spacing_in[2 - n]) for n in range(3)])
    if wanted.resize is not None:
        for kji, size in zip(order, wanted.resize, strict=True):
            axes[kji] = _resized(axes[kji], size)
    grid = Grid((axes[0], axes[1], axes[2]), tuple(order))
    if math.prod(grid.shape) > MAX_GRID_VOXELS:
        message = f"spacing {list(wanted.spacing)} mm makes {grid.shape} voxels (k, j, i) of this volume"
        raise ConfigError("grid-too-large", message, shape=list(grid.shape))
    return grid


def _keeps_first_voxel(
    shape: tuple[int, int, int], affine: NDArray[np.float64], wanted: Input, letters: list[tuple[int, int]]
) -> bool:
    """Say what MONAI's Spacing does with a volume that its Orientation has turned to the network's axes."""
    if isinstance(wanted.spacing, str):
        return True
    turned = np.eye(4)
    turned[:3, :3] = np.stack([sign * affine[:3, index] for index, sign in letters], axis=1)
    own = np.linalg.norm(turned[:3, :3], axis=0)
    said = dict(zip(wanted.axes[1:], wanted.spacing, strict=True))
    spacing = tuple(float(said.get(axis, own[n])) for n, axis in enumerate("xyz"))
    i, j, k = (shape[2 - index] for index, _ in letters)
    return keeps_first_voxel((i, j, k), turned, spacing)


def _axis(source: int, kept: tuple[int, int], spacing: float, target: float, flip: bool, rule: str) -> Axis:
    first, end = kept
    voxels = end - first
    covers = None if voxels == source else kept
    # A header's rounding is no reason to interpolate: it may shift the far end by up to a thousandth of a voxel.
    if abs(target / spacing - 1) * (voxels - 1) < 1e-3:
        return Axis(source, voxels, 1.0, float(first), flip, covers, covers)
    if rule == "edges":
        size = max(round(voxels * spacing / target), 1)
        step = voxels / size
        return Axis(source, size, step, first + step / 2 - 0.5, flip, covers, covers)
    step = target / spacing
    size = round((voxels - 1) / step + 1)
    start = middle_offset(voxels, size, step) if rule == "middle" else 0.0
    if flip:
        start = (voxels - 1) - start - (size - 1) * step
    return Axis(source, size, step, first + start, flip, covers, covers)


def _part(axis: Axis, first: int, end: int) -> Axis:
    """Return a part of an axis's grid, which speaks for all source voxels that lie next to one of its own.

    MONAI puts zeros around the scores of a crop before it interpolates: between the last voxel and the first zero they are smaller,
    and their order is the same.
    """
    if (first, end) == (0, axis.size):
        return axis
    positions = (np.arange(axis.source) - axis.offset) / axis.step
    inside = np.flatnonzero((positions > first - 1) & (positions < end))
    covers = (int(inside[0]), int(inside[-1]) + 1) if inside.size else (0, 0)
    return replace(axis, size=end - first, offset=axis.offset + first * axis.step, covers=covers)


def _separated(axes: list[Axis], order: list[int], wanted: Input, spacing_in: list[float]) -> list[Axis]:
    """Mark the axis along which scores come back by the nearest voxel, as nnU-Net resamples a thick axis apart.

    The scores' own spacing decides, and the volume's where that does not.
    """
    assert wanted.separate_z is not None
    target = list(spacing_in)
    if not isinstance(wanted.spacing, str):
        for kji, mm in zip(order, wanted.spacing, strict=True):
            target[kji] = mm
    thick = separate_axis(target, spacing_in, wanted.separate_z)
    return [replace(axis, nearest=True) if n == thick else axis for n, axis in enumerate(axes)]


def _resized(axis: Axis, size: int) -> Axis:
    """Return an axis of another number of voxels over the same extent, half-voxel centres."""
    if size == axis.size:
        return axis
    ratio = axis.size / size
    return replace(axis, size=size, step=axis.step * ratio, offset=axis.offset + axis.step * (ratio / 2 - 0.5))
