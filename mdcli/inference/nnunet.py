"""What nnU-Net does to a volume before its network, and how it lays and weights its windows.

Everything here is (k, j, i). nnU-Net crops to what is not 0, normalises, then resamples with cubic splines
(`mdcli.inference.spline`); its windows lie evenly, and their weights are a blurred point.

Source: nnunetv2 2.8.1: preprocessing.preprocessors.default_preprocessor, preprocessing.cropping, preprocessing.normalization,
inference.sliding_window_prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import ConfigError, DataError
from mdcli.inference.card import Clip, Normalize, Scale, ScaleVolume, Step
from mdcli.inference.spline import SEPARATE_ABOVE, CubicRows, cubic_axes, ranges_of, resized, separate_axis
from mdcli.inference.statistics import statistics_of

Floats = NDArray[np.float32]
Box = tuple[slice, slice, slice]

# nnU-Net divides by no standard deviation and no range below this.
_EPSILON = np.float32(1e-8)
# The blurred point is cut off at four standard deviations (scipy.ndimage.gaussian_filter), each an eighth of the window.
_SIGMA_OF_WINDOW = 1 / 8
_TRUNCATE = 4.0
_HIGHEST_WEIGHT = 10.0


def even_starts(size: int, window: int, step: float = 0.5) -> tuple[int, ...]:
    """Return where windows start along one axis, spread evenly.

    Args:
        size: voxels of the axis; at least the window, which smaller volumes are padded to.
        window: voxels of the window.
        step: how far windows are apart at most, as a part of the window, above 0 and at most 1.

    Source: `compute_steps_for_sliding_window`. A start half-way goes to the even number.
    """
    count = math.ceil((size - window) / (window * step)) + 1
    between = (size - window) / (count - 1) if count > 1 else 0.0
    return tuple(round(between * n) for n in range(count))


def point_weights(window: Sequence[int]) -> Floats:
    """Return the weights of a window's voxels: a point at `size // 2`, blurred, 10 at its highest.

    Args:
        window: voxels, any order of axes. The point of an even size is off the middle, so a reversed axis has to be reversed here
            too.

    Returns:
        float32 of the shape of the window, rounded to float16 as nnU-Net does; where that gives 0, the smallest that is not.

    Source: `compute_gaussian`, with `value_scaling_factor` 10 as its predictor calls it.
    """
    weights = np.ones((), np.float64)
    for size in window:
        sigma = size * _SIGMA_OF_WINDOW
        radius = int(_TRUNCATE * sigma + 0.5)
        x = np.arange(size) - size // 2
        kernel = np.exp(-0.5 / sigma**2 * np.arange(-radius, radius + 1) ** 2.0).sum()
        line = np.where(np.abs(x) <= radius, np.exp(-0.5 / sigma**2 * x**2.0) / kernel, 0.0)
        weights = weights[..., None] * line
    rounded = (weights / (weights.max() / _HIGHEST_WEIGHT)).astype(np.float16)
    rounded[rounded == 0] = rounded[rounded > 0].min()
    found: Floats = rounded.astype(np.float32)
    return found


def nonzero_box(arrays: Sequence[NDArray[Any]]) -> Box:
    """Return the box around what is not 0 in any channel; the whole volume where all is 0.

    Args:
        arrays: (k, j, i) each, one shape; may be memory-mapped.

    Source: `crop_to_nonzero`. Filling holes does not move the box.
    """
    shape = arrays[0].shape
    along: list[NDArray[np.bool_]] = [np.zeros(size, np.bool_) for size in shape]
    for index in range(shape[0]):
        plane = arrays[0][index] != 0
        for array in arrays[1:]:
            plane |= array[index] != 0
        along[0][index] = plane.any()
        along[1] |= plane.any(axis=1)
        along[2] |= plane.any(axis=0)
    k, j, i = (_extent(line) for line in along)
    return k, j, i


def _extent(line: NDArray[np.bool_]) -> slice:
    found = np.flatnonzero(line)
    return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, len(line))


def nonzero_mask(arrays: Sequence[NDArray[Any]], box: Box) -> NDArray[np.bool_]:
    """Say which voxels of the box are not 0 in any channel, or lie in a hole of those.

    Args:
        arrays: (k, j, i) each, one shape.
        box: of `nonzero_box`.

    Returns:
        (k, j, i) of the box. A hole is what no path over faces leads out of.

    Source: `create_nonzero_mask`; scipy.ndimage.binary_fill_holes.
    """
    import SimpleITK as sitk

    mask = np.zeros(tuple(part.stop - part.start for part in box), np.uint8)
    for row, k in enumerate(range(box[0].start, box[0].stop)):
        for array in arrays:
            mask[row] |= array[k, box[1], box[2]] != 0
    filling: Any = sitk.BinaryFillholeImageFilter()  # type: ignore[no-untyped-call]
    filling.SetForegroundValue(1)
    filled = filling.Execute(sitk.GetImageFromArray(mask))
    return np.asarray(sitk.GetArrayFromImage(filled), np.bool_)


class NnUNetRows:
    """Gives slabs of a volume as nnU-Net's network wants them: cropped, normalised, resampled.

    Args:
        arrays: one a channel, (k, j, i), one shape; may be memory-mapped.
        spacing: mm along k, j, i.
        wanted: mm along k, j, i of the network's grid; None along an axis that a two-dimensional network does not have.
        steps: of each channel, before resampling.
        crop: whether to crop to what is not 0.
        separate_above: of `spline.separate_axis`.
        flips: whether the network sees an axis reversed.

    Attributes:
        box: the part of the volume that is used.
        shape: voxels of the network's grid, (k, j, i).
        separate: the axis that was resampled apart, or None.

    Raises:
        DataError: `no-statistics` where a channel has no voxel to normalise by.
        ConfigError: `bad-card` for a step that nnU-Net does not have.
    """

    def __init__(
        self,
        arrays: Sequence[NDArray[Any]],
        spacing: Sequence[float],
        wanted: Sequence[float | None],
        steps: Sequence[Sequence[Step]],
        *,
        crop: bool = True,
        separate_above: float | None = SEPARATE_ABOVE,
        flips: Sequence[bool] = (False, False, False),
    ) -> None:
        k, j, i = arrays[0].shape
        self.box: Box = nonzero_box(arrays) if crop else (slice(0, k), slice(0, j), slice(0, i))
        masked = any(isinstance(step, Normalize) and step.over == "mask" for channel in steps for step in channel)
        self._mask = nonzero_mask(arrays, self.box) if masked else None
        target = [old if new is None else new for old, new in zip(spacing, wanted, strict=True)]
        inside = tuple(part.stop - part.start for part in self.box)
        self.shape = resized(inside, spacing, target)
        self.separate = separate_axis(spacing, target, separate_above)
        axes = cubic_axes(inside, self.shape, self.separate, flips)
        self._channels = []
        for array, channel in zip(arrays, steps, strict=True):
            numbers = self._numbers(array, channel)
            plane_at = partial(self._plane, array, numbers)
            ranges = ranges_of(map(plane_at, range(inside[0])), self.separate)
            self._channels.append(CubicRows(plane_at, axes, ranges, self.separate))

    def rows(self, start: int, stop: int) -> Floats:
        """Return rows `start` to `stop` of the network's grid: (C, k, j, i), float32. Rows in rising order cost least."""
        return np.stack([channel.rows(start, stop) for channel in self._channels])

    def whole(self) -> Floats:
        """Return all rows of the network's grid: (C, k, j, i), float32."""
        out = np.empty((len(self._channels), *self.shape), np.float32)
        for channel, into in zip(self._channels, out, strict=True):
            channel.whole(into)
        return out

    def _plane(self, array: NDArray[Any], steps: Sequence[Step], index: int) -> Floats:
        """Return a plane of the box, normalised by steps whose numbers are all known."""
        k, j, i = self.box
        plane: Floats = array[k.start + index, j, i].astype(np.float32)
        for step in steps:
            if isinstance(step, Clip):
                np.clip(plane, np.float32(step.low), np.float32(step.high), out=plane)
            elif isinstance(step, Scale):
                (from_low, from_high), (to_low, to_high) = step.source, step.target
                plane -= np.float32(from_low)
                plane /= np.float32(from_high - from_low)
                plane *= np.float32(to_high - to_low)
                plane += np.float32(to_low)
            elif isinstance(step, Normalize) and step.mean is not None and step.std is not None:
                where = True if step.over != "mask" or self._mask is None else self._mask[index]
                np.subtract(plane, np.float32(step.mean), out=plane, where=where)
                np.divide(plane, np.float32(step.std), out=plane, where=where)
        return plane

    def _numbers(self, array: NDArray[Any], steps: Sequence[Step]) -> tuple[Step, ...]:
        """Return steps with the volume's own numbers in them."""
        known: list[Step] = []
        for step in steps:
            if isinstance(step, Normalize) and step.of_volume:
                mean, std = self._mean(array, known, step.over == "mask")
                step = Normalize(mean, max(std, float(_EPSILON)), step.over)
            elif isinstance(step, ScaleVolume) and step.target == (0.0, 1.0):
                low, high = ranges_of(self._planes(array, known), None)
                step = Scale((float(low), float(low) + max(float(high - low), float(_EPSILON))), step.target)
            elif not isinstance(step, (Clip, Scale, Normalize)):
                raise ConfigError("bad-card", f"{type(step).__name__} is not done before resampling to nnU-Net's grid")
            known.append(step)
        return tuple(known)

    def _planes(self, array: NDArray[Any], steps: Sequence[Step]) -> Iterator[Floats]:
        return (self._plane(array, steps, index) for index in range(self.box[0].stop - self.box[0].start))

    def _mean(self, array: NDArray[Any], steps: Sequence[Step], masked: bool) -> tuple[float, float]:
        """Return the mean and the population standard deviation, plane after plane."""
        mask = self._mask if masked else None
        found = statistics_of(
            plane if mask is None else plane[mask[index]] for index, plane in enumerate(self._planes(array, steps))
        )
        if found is None:
            raise DataError("no-statistics", "every voxel is 0: there is nothing to normalise by")
        return found.mean, found.std
