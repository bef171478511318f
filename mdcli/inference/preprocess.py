"""Turn a volume into what the network wants, slab by slab: resampled to its grid, its intensities prepared.

Everything is (k, j, i) and in the volume's own directions; permutation and flips happen window by window (`grid.Grid.to_network`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError
from mdcli.inference.card import Clip, Normalize, Scale, Step
from mdcli.inference.grid import Axis, Grid, Samples

Floats = NDArray[np.float32]

_SLAB = 16


@dataclass(frozen=True)
class Statistics:
    """Mean and population standard deviation of a volume."""

    mean: float
    std: float


def interpolate_plane(plane: Floats, j: Samples | None, i: Samples | None) -> Floats:
    """Return a plane (j, i) at new samples, linearly; None leaves an axis as it is."""
    if i is not None:
        low = plane[:, i.low]
        plane = low + (plane[:, i.high] - low) * i.weight
    if j is not None:
        low = plane[j.low]
        plane = low + (plane[j.high] - low) * j.weight[:, None]
    return plane


def interpolate(
    plane_at: Callable[[int], Floats], k: Samples, j: Samples | None, i: Samples | None, shape: tuple[int, int]
) -> Floats:
    """Return planes at new samples along k, each interpolated trilinearly.

    Args:
        plane_at: gives the old plane (j, i) at an index.
        k: the planes wanted.
        j: new samples along j, or None.
        i: new samples along i, or None.
        shape: of a new plane, (j, i).

    Returns:
        (k, j, i), float32.
    """
    out = np.empty((len(k.low), *shape), np.float32)
    planes: dict[int, Floats] = {}
    for n, (low, high, weight) in enumerate(zip(k.low.tolist(), k.high.tolist(), k.weight.tolist(), strict=True)):
        used = {low} if weight == 0 else {low, high}
        planes = {index: planes[index] for index in planes if index in used}
        for index in used - planes.keys():
            planes[index] = interpolate_plane(plane_at(index), j, i)
        if weight == 0:
            out[n] = planes[low]
        else:
            np.subtract(planes[high], planes[low], out=out[n])
            out[n] *= np.float32(weight)
            out[n] += planes[low]
    return out


def _samples(axis: Axis) -> Samples | None:
    return None if axis.same else axis.to_network()


def apply_steps(values: Floats, steps: Sequence[Step], statistics: Statistics | None = None) -> Floats:
    """Apply intensity steps in order, in place, in float32 (the operations and their order are MONAI's).

    Args:
        values: any shape.
        steps: of the card.
        statistics: what `normalize: volume` uses.
    """
    for step in steps:
        if isinstance(step, Clip):
            np.clip(values, np.float32(step.low), np.float32(step.high), out=values)
        elif isinstance(step, Scale):
            (from_low, from_high), (to_low, to_high) = step.source, step.target
            values -= np.float32(from_low)
            values /= np.float32(from_high - from_low)
            values *= np.float32(to_high - to_low)
            values += np.float32(to_low)
        else:
            mean, std = (step.mean, step.std) if not step.of_volume else (None, None)
            if mean is None or std is None:
                if statistics is None:
                    raise ValueError("normalize: volume needs the volume's statistics")
                mean, std = statistics.mean, statistics.std or 1.0
            values -= np.float32(mean)
            values /= np.float32(std)
    return values


class Preprocessor:
    """Gives slabs of a volume as the network wants them.

    Args:
        array: (k, j, i), any number type; may be memory-mapped.
        grid: the network's grid on it.
        steps: the card's intensity steps.
        excluded: for each slice of the volume the lowest and the highest value that do not count in statistics (padding), or None.

    Raises:
        DataError: `no-statistics` where every voxel is padding.
    """

    def __init__(
        self,
        array: NDArray[Any],
        grid: Grid,
        steps: Sequence[Step] = (),
        excluded: Sequence[tuple[float, float] | None] | None = None,
    ) -> None:
        self.array = array
        self.grid = grid
        self.steps = tuple(steps)
        self.statistics: Statistics | None = None
        of_volume = [n for n, step in enumerate(self.steps) if isinstance(step, Normalize) and step.of_volume]
        if of_volume:
            self.statistics = self._measure(self.steps[: of_volume[0]], excluded)

    def resampled(self, start: int, stop: int) -> Floats:
        """Return rows `start` to `stop` of the network's grid along k, before the intensity steps: (k, j, i), float32."""
        if self.grid.same:
            rows: Floats = self.array[start:stop].astype(np.float32)
            return rows
        k, j, i = self.grid.axes

        def plane_at(index: int) -> Floats:
            plane: Floats = self.array[index].astype(np.float32)
            return plane

        return interpolate(plane_at, k.to_network().of(start, stop), _samples(j), _samples(i), (j.size, i.size))

    def rows(self, start: int, stop: int) -> Floats:
        """Return rows `start` to `stop` of the network's grid along k, ready for the network: (k, j, i), float32."""
        return apply_steps(self.resampled(start, stop), self.steps, self.statistics)

    def _measure(self, steps: Sequence[Step], excluded: Sequence[tuple[float, float] | None] | None) -> Statistics:
        count, mean, squares = 0, 0.0, 0.0
        for start in range(0, self.grid.shape[0], _SLAB):
            stop = min(start + _SLAB, self.grid.shape[0])
            values = apply_steps(self.resampled(start, stop), steps)
            flat = values.ravel() if excluded is None else values[self._counted(start, stop, excluded)]
            if flat.size == 0:
                continue
            # Chan, Golub, LeVeque 1979: parts are merged by mean and sum of squared deviations, in float64.
            part = flat.astype(np.float64)
            part_mean = float(part.mean())
            part -= part_mean
            delta, total = part_mean - mean, count + flat.size
            squares += float(part @ part) + delta * delta * count * flat.size / total
            mean += delta * flat.size / total
            count = total
        if count == 0:
            raise DataError("no-statistics", "every voxel is padding: there is nothing to normalise by")
        return Statistics(mean, float(np.sqrt(squares / count)))

    def _counted(self, start: int, stop: int, excluded: Sequence[tuple[float, float] | None]) -> NDArray[np.bool_]:
        """Say which voxels of rows of the network's grid count: those whose nearest voxel of the volume is no padding."""
        k, j, i = (axis.to_network().nearest for axis in self.grid.axes)
        counted = np.ones((stop - start, len(j), len(i)), np.bool_)
        for row, index in enumerate(k[start:stop].tolist()):
            if (padding := excluded[index]) is not None:
                plane = self.array[index][j][:, i]
                counted[row] = (plane < padding[0]) | (plane > padding[1])
        return counted
