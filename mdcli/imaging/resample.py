"""One volume on another's grid: by the full affine, slab by slab, linear or nearest.

Both grids may be sheared, oblique or left-handed; nothing here asks for axes at right angles.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError, UsageError

# How near a place must be to a voxel's centre, in voxels, to be that voxel: the rounding of float64 over any volume is far less.
ON_VOXEL = 1e-6
MAX_VOXELS = 1 << 33
_SLAB_VOXELS = 1 << 22
_CHUNK_VOXELS = 1 << 18

Order = Literal["linear", "nearest"]


def resampled_dtype(dtype: np.dtype[Any], order: Order) -> np.dtype[Any]:
    """Return the type of resampled voxels: for `nearest` the source's own.

    For `linear` float32, or float64 where float32 can't hold the source's values.
    """
    if order == "nearest":
        return dtype
    return np.dtype(np.float32 if dtype.itemsize < 4 or dtype == np.float32 else np.float64)


def resample(
    array: NDArray[Any],
    affine: NDArray[np.float64],
    shape: tuple[int, int, int],
    target_affine: NDArray[np.float64],
    *,
    order: Order,
    fill: float,
    planes: NDArray[np.float64] | None = None,
    jobs: int = 1,
) -> Iterator[NDArray[Any]]:
    """Give a volume's values on another grid, in slabs along the target's k.

    A target voxel whose centre lies within half a source voxel of the source's border, or inside of it, has a value: beyond the
    outermost centres the edge counts. All others get `fill`. A centre within 1e-6 voxels of a source voxel's takes its value bit
    for bit. Half-way between two voxels, `nearest` takes the one of the higher index.

    Args:
        array: (k, j, i), a memory map or in memory; no copy of it is made.
        affine: 4x4, (i, j, k) of `array` to mm, LPS+.
        shape: of the target, (k, j, i).
        target_affine: 4x4, (i, j, k) of the target to mm, LPS+.
        order: `linear`, or `nearest` for labels.
        fill: the value outside of the source, in its unit.
        planes: where the source's slices lie along its k axis, in steps of `affine`, (n,), rising or falling; None where slice
            m lies at m. Linear interpolation then goes by the real distance between two slices.
        jobs: threads.

    Yields:
        (some k, j, i), one after another up to `shape`: of the source's type for `nearest`, else as `resampled_dtype`.

    Raises:
        DataError: `singular-affine` where an affine is no way between index and millimetre.
        ValueError: `planes` that do not rise or fall from slice to slice; a `fill` that the source's type can't hold, for
            `nearest`.
    """
    work = _Work.make(array, affine, shape, target_affine, order, fill, planes)
    thick = max(1, _SLAB_VOXELS // (shape[1] * shape[2]))
    starts = range(0, shape[0], thick)
    if jobs <= 1 or len(starts) == 1:
        for start in starts:
            yield work.slab(start, min(start + thick, shape[0]))
        return
    with ThreadPoolExecutor(jobs) as pool:
        waiting: deque[Future[NDArray[Any]]] = deque()
        try:
            for start in starts:
                waiting.append(pool.submit(work.slab, start, min(start + thick, shape[0])))
                if len(waiting) > jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@dataclass(frozen=True)
class _Work:
    """What every slab needs.

    Attributes:
        array: the source; where `separable`, its axes follow those of the target.
        matrix: 3x4, the target's (i, j, k, 1) to the place in `array`, as (i, j, k).
        planes: as `resample` takes it.
        planes_axis: which row of `matrix` the planes go along.
        separable: along the target's i and j, one axis of the source each.
    """

    array: NDArray[Any]
    matrix: NDArray[np.float64]
    shape: tuple[int, int, int]
    order: Order
    fill: float
    dtype: np.dtype[Any]
    planes: NDArray[np.float64] | None
    planes_axis: int
    separable: bool

    @classmethod
    def make(
        cls,
        array: NDArray[Any],
        affine: NDArray[np.float64],
        shape: tuple[int, int, int],
        target_affine: NDArray[np.float64],
        order: Order,
        fill: float,
        planes: NDArray[np.float64] | None,
    ) -> _Work:
        matrix = index_map(affine, target_affine)
        dtype = resampled_dtype(array.dtype.newbyteorder("="), order)
        if order == "nearest" and not _holds(dtype, fill):
            raise ValueError(f"{dtype} holds no {fill}")
        if planes is not None:
            planes = np.asarray(planes, np.float64)
            steps = np.diff(planes)
            if planes.shape != (array.shape[0],) or not ((steps > 0).all() or (steps < 0).all()):
                raise ValueError(f"{len(planes)} planes for {array.shape[0]} slices, or they neither rise nor fall")
        # What moves a far corner by less than this does not move it.
        reach = np.abs(matrix[:, :3]) * (np.array(shape[::-1]) - 1)
        follows = _follows(reach)
        if follows is None:
            return cls(array, matrix, shape, order, fill, dtype, planes, 2, False)
        matrix[:, :3][reach < ON_VOXEL] = 0.0
        array, matrix = array.transpose([2 - axis for axis in follows[::-1]]), matrix[list(follows)]
        return cls(array, matrix, shape, order, fill, dtype, planes, follows.index(2), True)

    def slab(self, start: int, stop: int) -> NDArray[Any]:
        """Return target slices `start` to `stop`."""
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        for k in range(start, stop):
            if self.separable:
                self._plane(k, out[k - start])
            else:
                rows = max(1, _CHUNK_VOXELS // self.shape[2])
                for j in range(0, self.shape[1], rows):
                    self._chunk(k, j, out[k - start, j : j + rows])
        return out

    def _places(self, axis: int, places: NDArray[np.float64]) -> tuple[_Taps, NDArray[np.bool_]]:
        """Return between which source voxels places along an axis lie, and which of them the source covers."""
        size = self.array.shape[2 - axis]
        if self.planes is not None and axis == self.planes_axis:
            places = _by_planes(places, self.planes)
        inside = (places >= -0.5 - ON_VOXEL) & (places <= size - 0.5 + ON_VOXEL)
        places = np.clip(places, 0, size - 1)
        if self.order == "nearest":
            # The one past the half counts as the half, whatever the rounding: a run of halves stays a regular run.
            low = np.minimum(np.floor(places + (0.5 + ON_VOXEL)).astype(np.intp), size - 1)
            return _Taps(low, low, np.zeros(low.shape, self.dtype)), inside
        on = np.rint(places)
        places = np.where(np.abs(places - on) <= ON_VOXEL, on, places)
        low = np.floor(places).astype(np.intp)
        weight = (places - low).astype(self.dtype)
        # With weight 0 the next voxel is not looked at: it may not be a number.
        return _Taps(low, np.where(weight > 0, low + 1, low), weight), inside

    def _plane(self, k: int, out: NDArray[Any]) -> None:
        """Fill one target slice of a separable map: (j, i)."""
        m = self.matrix
        _, rows, columns = self.shape
        across, within_k = self._places(2, m[2, 2:3] * k + m[2, 3])
        if not within_k[0]:
            out[...] = self.fill
            return
        taps_j, within_j = self._places(1, m[1, 1] * np.arange(rows) + (m[1, 2] * k + m[1, 3]))
        taps_i, within_i = self._places(0, m[0, 0] * np.arange(columns) + (m[0, 2] * k + m[0, 3]))
        source = self.array
        if self.order == "nearest":
            out[...] = source[across.low[0]][taps_j.low][:, taps_i.low]
        else:
            # Only the rows that some target row lies between.
            first, last = int(taps_j.low.min()), int(taps_j.high.max()) + 1
            plane = source[across.low[0], first:last].astype(self.dtype)
            if across.weight[0] > 0:
                plane = _blend(plane, source[across.high[0], first:last].astype(self.dtype), across.weight[0])
            plane = _along_rows(plane, taps_j.shifted(first))
            out[...] = _along_rows(plane.T, taps_i).T
        out[~within_j] = self.fill
        out[:, ~within_i] = self.fill

    def _chunk(self, k: int, start: int, out: NDArray[Any]) -> None:
        """Fill some rows of one target slice of any map: (j, i)."""
        m = self.matrix
        j = np.arange(start, start + out.shape[0], dtype=np.float64)[:, None]
        i = np.arange(out.shape[1], dtype=np.float64)
        taps: list[_Taps] = []
        inside = np.ones(out.shape, bool)
        for axis in range(3):
            found, within = self._places(axis, m[axis, 0] * i + m[axis, 1] * j + (m[axis, 2] * k + m[axis, 3]))
            taps.append(found)
            inside &= within
        out[...] = self.fill
        if not inside.any():
            return
        ti, tj, tk = (found.at(inside) for found in taps)
        if self.order == "nearest":
            out[inside] = self.array[tk.low, tj.low, ti.low]
            return

        def line(along_k: NDArray[np.intp], along_j: NDArray[np.intp]) -> NDArray[Any]:
            low = self.array[along_k, along_j, ti.low].astype(self.dtype)
            return _blend(low, self.array[along_k, along_j, ti.high].astype(self.dtype), ti.weight)

        def plane(along_k: NDArray[np.intp]) -> NDArray[Any]:
            return _blend(line(along_k, tj.low), line(along_k, tj.high), tj.weight)

        out[inside] = _blend(plane(tk.low), plane(tk.high), tk.weight)


@dataclass(frozen=True)
class _Taps:
    """Between which voxels of an axis places lie: `low + weight * (high - low)`."""

    low: NDArray[np.intp]
    high: NDArray[np.intp]
    weight: NDArray[Any]

    def at(self, mask: NDArray[np.bool_]) -> _Taps:
        """Return those that a mask chooses."""
        return _Taps(self.low[mask], self.high[mask], self.weight[mask])

    def shifted(self, first: int) -> _Taps:
        """Return them for an axis whose first voxels were left out."""
        return _Taps(self.low - first, self.high - first, self.weight)


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    if dtype.kind == "f":
        return True
    limits = np.iinfo(dtype)
    return bool(limits.min <= value <= limits.max and value == int(value))


def _blend(low: NDArray[Any], high: NDArray[Any], weight: Any) -> NDArray[Any]:
    """Return what lies between two voxels; with weight 0 the first one, bit for bit, whatever it is."""
    # Twice an infinity is no number, and says nothing wrong: it is infinite or unknown there.
    with np.errstate(invalid="ignore", over="ignore"):
        between = low + (high - low) * weight
    return np.asarray(np.where(weight == 0, low, between)) if np.ndim(weight) else between


def _along_rows(plane: NDArray[Any], taps: _Taps) -> NDArray[Any]:
    """Interpolate along the first axis."""
    size = plane.shape[0]
    if len(taps.low) == size and not taps.weight.any() and (taps.low == np.arange(size)).all():
        return plane
    if not taps.weight.any():
        return plane[taps.low]
    return _blend(plane[taps.low], plane[taps.high], taps.weight[:, None])


def _follows(reach: NDArray[np.float64]) -> tuple[int, int, int] | None:
    """Return which axis of the source the target's i and j follow, and the one left; None where one of them follows several."""
    rows = []
    for column in (0, 1):
        moved = [row for row in range(3) if reach[row, column] >= ON_VOXEL]
        if len(moved) > 1:
            return None
        rows.append(moved[0] if moved else None)
    if rows[0] is not None and rows[0] == rows[1]:
        return None
    # An axis of one voxel follows nothing: any axis that is left will do, its own first.
    for column in (0, 1):
        if rows[column] is None:
            free = [row for row in (column, 2, 1 - column) if row not in rows]
            rows[column] = free[0]
    i, j = rows
    assert i is not None and j is not None
    return i, j, 3 - i - j


def _by_planes(places: NDArray[np.float64], planes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return places along k, in steps of the affine, as places between slices that lie at `planes`.

    Beyond the outermost slices the outermost distance goes on.
    """
    if planes.size == 1:
        return np.asarray(places - planes[0])
    slices = np.arange(planes.size, dtype=np.float64)
    if planes[0] > planes[-1]:
        planes, slices = planes[::-1], slices[::-1]
    found = np.interp(places, planes, slices)
    sign = slices[1] - slices[0]
    below = slices[0] + sign * (places - planes[0]) / (planes[1] - planes[0])
    above = slices[-1] + sign * (places - planes[-1]) / (planes[-1] - planes[-2])
    return np.asarray(np.where(places < planes[0], below, np.where(places > planes[-1], above, found)))


def index_map(affine: NDArray[np.float64], target_affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the map from a target's voxel index to a source's.

    Args:
        affine: 4x4, the source's (i, j, k) to mm, LPS+.
        target_affine: 4x4, the target's, in the same frame of reference.

    Returns:
        3x4: the target's (i, j, k, 1) to the source's (i, j, k).

    Raises:
        DataError: `singular-affine`.
    """
    source, target = np.asarray(affine, np.float64), np.asarray(target_affine, np.float64)
    for matrix in (source, target):
        check_affine(matrix)
    # From the difference of both origins: far from the origin of the frame, no digit is lost.
    right = np.column_stack([target[:3, :3], target[:3, 3] - source[:3, 3]])
    return np.asarray(np.linalg.solve(source[:3, :3], right), np.float64)


def check_affine(affine: NDArray[np.float64]) -> None:
    """Refuse an affine that is no way between index and millimetre.

    Args:
        affine: 4x4, (i, j, k) to mm.

    Raises:
        DataError: `singular-affine` where a value is not finite, an axis has no length, or the axes lie in one plane.
    """
    axes = np.asarray(affine, np.float64)[:3, :3]
    sizes = np.linalg.norm(axes, axis=0)
    # The volume that unit vectors along the axes span: 1 at right angles, 0 in one plane.
    spans = float(abs(np.linalg.det(axes / sizes))) if np.isfinite(affine).all() and sizes.min() > 0 else 0.0
    if not spans > 1e-6:
        raise DataError(
            "singular-affine", "the affine has axes without length, in one plane or not finite", spans=spans
        )


def orthogonal_grid(
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    spacing: tuple[float, float, float] | None = None,
    isotropic: bool = False,
) -> tuple[tuple[int, int, int], NDArray[np.float64]]:
    """Return a grid with its axes at right angles that covers a volume.

    The row direction (along i) is kept, the column direction (j) made orthogonal to it, and k goes along the normal, to the
    volume's own side. Without `spacing` and `isotropic` the spacing in the plane and the distance between slices along the normal
    are kept. Along an axis that is not sheared, the first voxel's centre stays and the centres go on as long as they lie
    within half a voxel of the volume; along one that is, the grid goes from the outermost centre of any voxel on one side to
    that on the other.

    Args:
        shape: (k, j, i).
        affine: 4x4, (i, j, k) to mm, LPS+.
        spacing: mm along i, j and k.
        isotropic: the smallest spacing along all three axes; not with `spacing`.

    Returns:
        The grid's shape (k, j, i) and its affine, LPS+.

    Raises:
        DataError: `singular-affine`; `grid-too-large` for more than 2^33 voxels or 32,767 along an axis.
    """
    affine = np.asarray(affine, np.float64)
    check_affine(affine)
    size_ijk = np.array(shape[::-1])
    row = affine[:3, 0] / np.linalg.norm(affine[:3, 0])
    column = affine[:3, 1] - row * (row @ affine[:3, 1])
    column /= np.linalg.norm(column)
    normal = np.cross(row, column)
    normal *= np.sign(normal @ affine[:3, 2])
    axes = np.column_stack([row, column, normal])
    # Along each new axis: how far one step of the old one goes.
    steps = axes.T @ affine[:3, :3]
    own = np.array([np.linalg.norm(affine[:3, 0]), np.linalg.norm(affine[:3, 1]), steps[2, 2]])
    new = np.full(3, own.min()) if isotropic else np.array(spacing if spacing else own, np.float64)
    if not (np.isfinite(new).all() and (new > 0).all()):
        raise DataError("bad-spacing", f"a spacing of {new.tolist()} mm is none")
    ends = steps * (size_ijk - 1)
    lowest, highest = np.minimum(ends, 0).sum(axis=1), np.maximum(ends, 0).sum(axis=1)
    extent = highest - lowest
    sheared = extent - own * (size_ijk - 1) > 1e-3 * own
    counts = np.where(sheared, np.ceil(extent / new - 1e-3), np.floor((extent + own / 2) / new + ON_VOXEL)) + 1
    if counts.max() > 32767 or float(np.prod(counts)) > MAX_VOXELS:
        raise DataError(
            "grid-too-large", f"a spacing of {new.tolist()} mm makes {counts[::-1].tolist()} voxels (k, j, i)"
        )
    grid = np.eye(4)
    grid[:3, :3] = axes * new
    grid[:3, 3] = affine[:3, 3] + axes @ np.where(sheared, lowest, 0.0)
    i, j, k = (int(count) for count in counts)
    return (k, j, i), grid


def covered(
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    target_shape: tuple[int, int, int],
    target_affine: NDArray[np.float64],
) -> float:
    """Return which part of a target's voxels a source covers, by the rule of `resample`: 0 to 1.

    Args:
        shape: of the source, (k, j, i).
        affine: 4x4, the source's (i, j, k) to mm, LPS+.
        target_shape: of the target, (k, j, i).
        target_affine: 4x4, the target's.

    Raises:
        DataError: `singular-affine`.
    """
    matrix = index_map(affine, target_affine)
    j, i = np.arange(target_shape[1], dtype=np.float64)[:, None], np.arange(target_shape[2], dtype=np.float64)
    inside = 0
    for k in range(target_shape[0]):
        within = np.ones(target_shape[1:], bool)
        for row, size in zip(matrix, shape[::-1], strict=True):
            places = row[0] * i + row[1] * j + (row[2] * k + row[3])
            within &= (places >= -0.5 - ON_VOXEL) & (places <= size - 0.5 + ON_VOXEL)
        inside += int(np.count_nonzero(within))
    return inside / float(np.prod(target_shape))


def parse_spacing(text: str) -> tuple[float, float, float]:
    """Return mm along i, j and k from `MM` or `MM,MM,MM`.

    Raises:
        UsageError: `bad-spacing`.

    >>> parse_spacing("1,1,2.5")
    (1.0, 1.0, 2.5)
    """
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) == 1:
        numbers *= 3
    if len(numbers) != 3 or not all(0 < number < 1e4 for number in numbers):
        raise UsageError("bad-spacing", f"{text!r} is no spacing: one number of mm, or three along i, j and k")
    i, j, k = numbers
    return i, j, k


def outside_value(lowest: float, unit: str | None, padding: float | None) -> float:
    """Return what stands where a grid goes beyond a volume: its padding, in HU air, else its lowest value.

    Args:
        lowest: the lowest finite value of the volume.
        unit: of its values.
        padding: the value that means that nothing was measured, or None.
    """
    if padding is not None:
        return padding
    return min(lowest, -1024.0) if unit == "HU" else lowest
