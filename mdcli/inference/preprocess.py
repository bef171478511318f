"""Turn a volume into what the network wants, slab by slab: resampled to its grid, its intensities prepared.

Everything is (k, j, i) and in the volume's own directions; permutation and flips happen window by window (`grid.Grid.to_network`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import ConfigError, DataError
from mdcli.inference.card import Clip, Crop, Input, Normalize, Percentiles, Scale, ScaleVolume, Step, of_volume
from mdcli.inference.grid import Axis, Box, Grid, Samples, network_grid
from mdcli.inference.statistics import Statistics, statistics_of

Floats = NDArray[np.float32]

_SLAB = 16


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


def apply_steps(values: Floats, steps: Sequence[Step], statistics: Statistics | None = None) -> Floats:
    """Apply intensity steps in order, in place, in float32 (the operations and their order are MONAI's).

    Args:
        values: any shape.
        steps: of the card. Of those that take their numbers from the volume only one `normalize: volume`.
        statistics: what that one uses.
    """
    for step in steps:
        if of_volume(step):
            if statistics is None:
                raise ValueError("normalize: volume needs the volume's statistics")
            step = Normalize(statistics.mean, statistics.std or 1.0)
        _apply(values, step)
    return values


def _apply(values: Floats, step: Step) -> None:
    """Apply a step whose numbers are known, in place."""
    if isinstance(step, Clip):
        np.clip(values, np.float32(step.low), np.float32(step.high), out=values)
    elif isinstance(step, Scale):
        (from_low, from_high), (to_low, to_high) = step.source, step.target
        values -= np.float32(from_low)
        values /= np.float32(from_high - from_low)
        values *= np.float32(to_high - to_low)
        values += np.float32(to_low)
    elif isinstance(step, ScaleVolume) and step.factor is not None:
        values *= np.float32(1 + step.factor)
    elif isinstance(step, Normalize) and step.mean is not None and step.std is not None:
        values -= np.float32(step.mean)
        values /= np.float32(step.std)
    else:
        raise ValueError(f"{step} takes its numbers from the volume")


def apply_to_volume(values: Floats, steps: Sequence[Step], counted: NDArray[np.bool_] | None = None) -> Floats:
    """Apply intensity steps to a whole volume, in place, those that take their numbers from it too.

    Args:
        values: (k, j, i), on the network's grid.
        steps: of the card.
        counted: the voxels that count in statistics; None: all.

    Raises:
        DataError: `no-statistics` where no voxel counts.

    Source: MONAI's NormalizeIntensity, ScaleIntensity and ScaleIntensityRangePercentiles.
    """
    for step in steps:
        if not of_volume(step):
            _apply(values, step)
            continue
        inside = counted
        if isinstance(step, Normalize) and step.over == "nonzero":
            nonzero = values != 0
            inside = nonzero if counted is None else nonzero & counted
            if not inside.any():
                # A volume of nothing but 0 stays one.
                continue
        said = values.ravel() if inside is None else values[inside]
        if said.size == 0:
            raise DataError("no-statistics", "every voxel is padding: there is nothing to normalise by")
        if isinstance(step, Normalize):
            mean, std = float(said.mean(dtype=np.float64)), float(said.std(dtype=np.float64)) or 1.0
            if step.over == "nonzero":
                np.subtract(values, np.float32(mean), out=values, where=nonzero)
                np.divide(values, np.float32(std), out=values, where=nonzero)
            else:
                _apply(values, Normalize(mean, std))
        elif isinstance(step, ScaleVolume) and step.target is not None:
            low, high = float(said.min()), float(said.max())
            if low == high:
                values *= np.float32(step.target[0])
            else:
                _apply(values, Scale((low, high), step.target))
        elif isinstance(step, Percentiles):
            low, high = (float(value) for value in np.percentile(said, (step.lower, step.upper)))
            if low == high:
                # Nothing to scale by: MONAI subtracts, and adds where the target begins.
                values += np.float32(step.target[0] - low)
            else:
                _apply(values, Scale((low, high), step.target))
            if step.clip:
                _apply(values, Clip(*sorted(step.target)))
    return values


class Rows(Protocol):
    """Gives slabs of what the network sees."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the voxels of the network's grid, (k, j, i)."""
        ...

    def rows(self, axis: int, start: int, stop: int) -> Floats:
        """Return rows `start` to `stop` along an axis (0, 1, 2: k, j, i) of the network's grid: (C, k, j, i), float32."""
        ...


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
        first = next((n for n, step in enumerate(self.steps) if of_volume(step)), None)
        if first is not None:
            self.statistics = self._measure(self.steps[:first], excluded)

    def resampled(self, start: int, stop: int, axis: int = 0) -> Floats:
        """Return rows `start` to `stop` of the network's grid along an axis, before the intensity steps: (k, j, i), float32."""
        if self.grid.same:
            part = [slice(None)] * 3
            part[axis] = slice(start, stop)
            rows: Floats = self.array[tuple(part)].astype(np.float32)
            return rows
        k, j, i = (
            along.to_network().of(start, stop) if n == axis else along.to_network()
            for n, along in enumerate(self.grid.axes)
        )

        def plane_at(index: int) -> Floats:
            plane: Floats = self.array[index].astype(np.float32)
            return plane

        # An axis that stays as it is needs no samples; a part of it does.
        same = [along.same and n != axis for n, along in enumerate(self.grid.axes)]
        shape = (len(j.low), len(i.low))
        return interpolate(plane_at, k, None if same[1] else j, None if same[2] else i, shape)

    def rows(self, start: int, stop: int, axis: int = 0) -> Floats:
        """Return rows `start` to `stop` of the network's grid along an axis, ready for the network: (k, j, i), float32."""
        return apply_steps(self.resampled(start, stop, axis), self.steps, self.statistics)

    def _measure(self, steps: Sequence[Step], excluded: Sequence[tuple[float, float] | None] | None) -> Statistics:
        def slabs() -> Iterator[Floats]:
            for start in range(0, self.grid.shape[0], _SLAB):
                stop = min(start + _SLAB, self.grid.shape[0])
                values = apply_steps(self.resampled(start, stop), steps)
                yield values if excluded is None else values[self.counted(start, stop, excluded)]

        found = statistics_of(slabs())
        if found is None:
            raise DataError("no-statistics", "every voxel is padding: there is nothing to normalise by")
        return found

    def counted(self, start: int, stop: int, excluded: Sequence[tuple[float, float] | None]) -> NDArray[np.bool_]:
        """Say which voxels of rows of the network's grid count: those whose nearest voxel of the volume is no padding."""
        k, j, i = (axis.to_network().nearest for axis in self.grid.axes)
        counted = np.ones((stop - start, len(j), len(i)), np.bool_)
        for row, index in enumerate(k[start:stop].tolist()):
            if (padding := excluded[index]) is not None:
                plane = self.array[index][j][:, i]
                counted[row] = (plane < padding[0]) | (plane > padding[1])
        return counted


@dataclass(frozen=True)
class Channels:
    """Slabs of several volumes on one grid, a channel each."""

    parts: Sequence[Preprocessor]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the voxels of the network's grid."""
        return self.parts[0].grid.shape

    def rows(self, axis: int, start: int, stop: int) -> Floats:
        """Return a slab. See `Rows`."""
        if len(self.parts) == 1:
            return self.parts[0].rows(start, stop, axis)[None]
        return np.stack([part.rows(start, stop, axis) for part in self.parts])


@dataclass(frozen=True)
class Held:
    """Slabs of what is held whole: (C, k, j, i)."""

    values: Floats

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the voxels of the network's grid."""
        k, j, i = self.values.shape[1:]
        return k, j, i

    def rows(self, axis: int, start: int, stop: int) -> Floats:
        """Return a slab. See `Rows`."""
        part = [slice(None)] * 4
        part[axis + 1] = slice(start, stop)
        return self.values[tuple(part)]


@dataclass(frozen=True)
class Prepared:
    """What the network sees of a volume, and on which grid.

    Attributes:
        grid: the network's and the volume's.
        rows: what it sees.
        axes: of the network's array, `C` and the letters of the card.
    """

    grid: Grid
    rows: Rows
    axes: tuple[str, ...]


def prepare(
    arrays: Sequence[NDArray[Any]],
    affine: NDArray[np.float64],
    inputs: Sequence[Input],
    excluded: Sequence[tuple[float, float] | None] | None = None,
) -> Prepared:
    """Turn volumes into what the network wants.

    Args:
        arrays: one an input, (k, j, i), of one shape, or (k, j, i, 3) where it has three channels; may be memory-mapped.
        affine: of all, 4x4, (i, j, k) to mm, LPS+; its axes at right angles.
        inputs: of the card, all of one orientation, spacing and axes.
        excluded: for each slice the lowest and the highest value that do not count in statistics (padding), or None.

    Raises:
        DataError: `no-statistics`.
        ConfigError: `grid-too-large`, `bad-card` where the steps of an input can't be done together.
    """
    first = inputs[0]
    shape = (arrays[0].shape[0], arrays[0].shape[1], arrays[0].shape[2])
    parts = [
        array[..., c] if said.channels == 3 else array
        for array, said in zip(arrays, inputs, strict=True)
        for c in range(said.channels)
    ]
    steps = [said for said in inputs for _ in range(said.channels)]
    if first.rule == "edges" or first.interpolation == "cubic":
        return _prepare_nnunet(parts, shape, affine, steps, excluded)
    if any(said.intensity_before for said in inputs):
        if excluded is not None:
            raise ConfigError("bad-card", "padding: exclude with intensity_before, whose statistics are of every voxel")
        parts = [
            apply_to_volume(np.array(part, np.float32), said.intensity_before)
            for part, said in zip(parts, steps, strict=True)
        ]
    plain = network_grid(shape, affine, replace(first, resize=None))
    box = None
    if first.crop is not None:
        box = _foreground(Preprocessor(parts[0], plain), first.crop)
    grid = network_grid(shape, affine, first, box)
    simple = all(_streams(said) for said in inputs)
    if simple and (first.resize is None or _one_map(plain, first)):
        channels = [Preprocessor(part, grid, said.intensity, excluded) for part, said in zip(parts, steps, strict=True)]
        return Prepared(grid, Channels(channels), first.axes)
    unsized = network_grid(shape, affine, replace(first, resize=None), box)
    held = np.empty((len(parts), *grid.shape), np.float32)
    for n, (part, said) in enumerate(zip(parts, steps, strict=True)):
        source = Preprocessor(part, unsized)
        values = source.resampled(0, unsized.shape[0])
        counted = None if excluded is None else source.counted(0, unsized.shape[0], excluded)
        if first.resize is not None:
            values = resize(values, grid.shape, first.resize_mode)
            counted = None if counted is None else resize(counted.astype(np.float32), grid.shape, "nearest") > 0
        held[n] = apply_to_volume(values, said.intensity, counted)
    return Prepared(grid, Held(held), first.axes)


def _streams(said: Input) -> bool:
    """Say whether an input can be prepared slab by slab: no more than one step needs the volume, and that one its mean alone."""
    needs = [step for step in said.intensity if of_volume(step)]
    return len(needs) <= 1 and all(isinstance(step, Normalize) and step.over == "volume" for step in needs)


def _one_map(plain: Grid, said: Input) -> bool:
    """Say whether resizing is the only interpolation there is."""
    return plain.same and said.resize_mode == "linear"


def _foreground(source: Preprocessor, crop: Crop) -> Box:
    """Return the box around what has values above `crop.above`, on the network's grid; all of it where nothing has."""
    assert crop.above is not None
    shape = source.grid.shape
    along = [np.zeros(size, np.bool_) for size in shape]
    for start in range(0, shape[0], _SLAB):
        stop = min(start + _SLAB, shape[0])
        above = source.resampled(start, stop) > crop.above
        along[0][start:stop] = above.any(axis=(1, 2))
        along[1] |= above.any(axis=(0, 2))
        along[2] |= above.any(axis=(0, 1))
    if not along[0].any():
        return (0, shape[0]), (0, shape[1]), (0, shape[2])
    ends = [(int(line.argmax()), len(line) - int(line[::-1].argmax())) for line in along]
    k, j, i = ((max(a - crop.margin, 0), min(b + crop.margin, size)) for (a, b), size in zip(ends, shape, strict=True))
    return k, j, i


def _prepare_nnunet(
    parts: Sequence[NDArray[Any]],
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    steps: Sequence[Input],
    excluded: Sequence[tuple[float, float] | None] | None,
) -> Prepared:
    """Prepare a volume as nnU-Net does: crop, normalise, resample."""
    from mdcli.inference.nnunet import NnUNetRows

    first = steps[0]
    if any(said.intensity for said in steps) or first.resize is not None:
        raise ConfigError(
            "bad-card", "intensity or resize with nnU-Net's grid, which has its steps before it resamples"
        )
    if excluded is not None:
        raise ConfigError("bad-card", "padding: exclude with nnU-Net's grid, whose statistics are of every voxel")
    if first.crop is not None and first.crop.above is not None:
        raise ConfigError("bad-card", "crop: above with nnU-Net's grid, which crops to what is not 0")
    spacing = [float(size) for size in np.linalg.norm(affine[:3, :3], axis=0)[::-1]]
    plain = network_grid(shape, affine, first)
    wanted: list[float | None] = [None, None, None]
    if not isinstance(first.spacing, str):
        for kji, mm in zip(plain.order, first.spacing, strict=True):
            wanted[kji] = mm
    flips = [axis.flip for axis in plain.axes]
    rows = NnUNetRows(
        parts,
        spacing,
        wanted,
        [said.intensity_before for said in steps],
        crop=first.crop is not None,
        separate_above=first.separate_z,
        flips=flips,
    )
    box = tuple((part.start, part.stop) for part in rows.box)
    grid = network_grid(shape, affine, first, (box[0], box[1], box[2]) if first.crop is not None else None)
    assert grid.shape == tuple(rows.shape), f"{grid.shape} and {rows.shape} voxels"
    return Prepared(grid, Held(rows.whole()), first.axes)


def resize(values: Floats, shape: tuple[int, int, int], mode: str) -> Floats:
    """Return a volume (k, j, i) of another number of voxels over the same extent.

    Args:
        values: (k, j, i).
        shape: (k, j, i).
        mode: `linear` (half-voxel centres), `area` (mean of the voxels that a new one touches), `nearest` (the voxel at the start).

    Source: torch.nn.functional.interpolate, as MONAI's Resize calls it.
    """
    for axis, size in enumerate(shape):
        old = values.shape[axis]
        if size == old:
            continue
        if mode == "nearest":
            values = values.take(np.arange(size) * old // size, axis=axis)
        elif mode == "linear":
            samples = Axis(old, size, old / size, old / size / 2 - 0.5, False).to_network()
            weight = samples.weight.reshape([-1 if n == axis else 1 for n in range(3)])
            low = values.take(samples.low, axis=axis)
            values = low + (values.take(samples.high, axis=axis) - low) * weight
        else:
            starts, ends = np.arange(size) * old // size, -(-(np.arange(size) + 1) * old // size)
            parts = [values.take(range(a, b), axis=axis).mean(axis=axis) for a, b in zip(starts, ends, strict=True)]
            values = np.stack(parts, axis=axis)
    return values
