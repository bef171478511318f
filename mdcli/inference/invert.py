"""Bring what the network said back to the volume's own grid: label values, masks, scores.

Scores are (C, k, j, i), labels (k, j, i). Interpolate then take the highest, or take the highest then the nearest, as the card
asks; never anything linear on labels. Blocks come in any order, each voxel of the volume's grid is given once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError
from mdcli.inference.card import Output
from mdcli.inference.grid import Axis, Grid
from mdcli.inference.windows import Block

Floats = NDArray[np.float32]
Labels = NDArray[Any]
Region = tuple[slice, slice, slice]

# Four arrays of this many voxels stay in a core's own cache.
_BLOCK_VOXELS = 1 << 16
_FEW_LABELS = 16
MASKS_HINT = "form: masks in the card's output keeps structures that overlap"


class Highest:
    """The highest channel so far of a block of voxels, channel after channel. The first of equal ones wins, as in argmax.

    Args:
        shape: of the block.
        dtype: uint8 or uint16.
        least: a channel below this is never the highest; None: every channel counts.
    """

    def __init__(
        self, shape: tuple[int, ...], dtype: type[np.unsignedinteger[Any]], least: float | None = None
    ) -> None:
        start = -np.inf if least is None else np.nextafter(np.float32(least), np.float32(-np.inf))
        self._best = np.full(shape, start, np.float32)
        self._above = np.empty(shape, np.bool_)
        self._mark = np.empty(shape, dtype)
        self.labels = np.zeros(shape, dtype)

    def add(self, channel: Floats, label: int) -> None:
        """Take the next channel; labels come in rising order."""
        np.greater(channel, self._best, out=self._above)
        np.maximum(self._best, channel, out=self._best)
        # Labels rise, so the label of a voxel that is raised is the larger: several times as fast as a masked copy.
        np.multiply(self._above, self._mark.dtype.type(label), out=self._mark)
        np.maximum(self.labels, self._mark, out=self.labels)


def label_type(labels: int) -> type[np.unsignedinteger[Any]]:
    """Return the smallest type for label values 0 to `labels`."""
    return np.uint8 if labels <= 255 else np.uint16


def raw_threshold(output: Output) -> float:
    """Return the network's own number from which a voxel belongs to a structure, before the activation."""
    if output.activation != "sigmoid":
        return output.threshold
    return math.log(output.threshold / (1 - output.threshold))


def highest_channel(scores: Floats, output: Output) -> Labels:
    """Return the label of the highest channel of every voxel.

    Args:
        scores: (C, k, j, i), any layout in memory.
        output: `none` and `softmax` need no probabilities: the highest score is the highest probability. With `sigmoid` a channel
            counts from the card's threshold on.

    Returns:
        (k, j, i), contiguous, uint8, or uint16 for more than 255 labels.

    Raises:
        DataError: `overlap` where two sigmoid channels claim one voxel.
    """
    sigmoid = output.activation == "sigmoid"
    first = int(sigmoid)
    least = raw_threshold(output) if sigmoid else None
    if least is not None:
        _refuse_overlap(scores, least)
    dtype = label_type(len(scores) - 1 + first)
    # The walk follows the memory, whatever the order of the axes.
    order = sorted(range(1, 4), key=lambda axis: -abs(scores.strides[axis]))
    walk = scores.transpose(0, *order)
    found = np.empty(walk.shape[1:], dtype)
    rows = max(_BLOCK_VOXELS // walk.shape[3], 1)
    for a in range(walk.shape[1]):
        for start in range(0, walk.shape[2], rows):
            block = walk[:, a, start : start + rows]
            highest = Highest(block.shape[1:], dtype, least)
            for label, channel in enumerate(block, first):
                highest.add(channel, label)
            found[a, start : start + rows] = highest.labels
    return np.ascontiguousarray(found.transpose([order.index(axis) for axis in (1, 2, 3)]))


def _refuse_overlap(scores: Floats, least: float) -> None:
    claimed = scores[0] >= least
    for label, channel in enumerate(scores[1:], 2):
        claim = channel >= least
        both = claim & claimed
        if both.any():
            other = next(n for n, c in enumerate(scores[: label - 1], 1) if ((c >= least) & claim).any())
            count = int(((scores[other - 1] >= least) & claim).sum())
            message = f"labels {other} and {label} claim {count} voxels both, and a label map holds one label a voxel"
            raise DataError("overlap", message, hint=MASKS_HINT, labels=[other, label], voxels=count)
        claimed |= claim


def activate(scores: Floats, output: Output) -> Floats:
    """Turn scores (C, k, j, i) into probabilities in place, as the card says."""
    if output.activation == "softmax":
        # A difference of two large scores overflows to minus infinity and the probability to 0, which is right.
        with np.errstate(over="ignore"):
            scores -= scores.max(axis=0)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=0)
    elif output.activation == "sigmoid":
        # exp of a large number overflows to infinity and the probability to 0, which is right.
        with np.errstate(over="ignore"):
            np.negative(scores, out=scores)
            np.exp(scores, out=scores)
            scores += 1
            np.reciprocal(scores, out=scores)
    return scores


def count_labels(labels: Labels, largest: int) -> NDArray[np.int64]:
    """Return how many voxels have the values 0, 1 ... `largest`."""
    if largest > _FEW_LABELS:
        return np.bincount(labels.ravel(), minlength=largest + 1).astype(np.int64)
    # Comparing bytes is several times as fast as counting them one by one.
    found = [int(np.count_nonzero(labels == value)) for value in range(1, largest + 1)]
    return np.array([labels.size - sum(found), *found], np.int64)


class Receiver(Protocol):
    """Takes the channels of a block on the volume's grid."""

    def begin(self, region: Region) -> None:
        """Take note of a block: where it lies on the volume's grid."""

    def channel(self, number: int, values: Floats) -> None:
        """Take a channel of it, (k, j, i)."""

    def finish(self) -> None:
        """Take note that the block is whole."""


class LabelMap:
    """The highest channel of every voxel.

    Args:
        labels: (k, j, i) of the volume's grid, 0 where nothing is said.
        output: of the card.
        least: of `sigmoid`: the least that a channel counts from, in the numbers that come.
    """

    def __init__(self, labels: Labels, output: Output, least: float | None) -> None:
        self.labels, self._output, self._least = labels, output, least
        self._first = int(output.activation == "sigmoid")

    def begin(self, region: Region) -> None:
        """See `Receiver.begin`."""
        self._region = region
        shape = tuple(part.stop - part.start for part in region)
        self._highest = Highest(shape, self.labels.dtype.type, self._least)
        self._claims = None if self._least is None else np.zeros(shape, np.uint16)

    def channel(self, number: int, values: Floats) -> None:
        """See `Receiver.channel`."""
        self._highest.add(values, number + self._first)
        if self._claims is not None:
            self._claims += values >= np.float32(self._least)

    def finish(self) -> None:
        """See `Receiver.finish`."""
        if self._claims is not None and self._claims.max(initial=0) > 1:
            count = int((self._claims > 1).sum())
            message = f"two labels claim {count} voxels both, and a label map holds one label a voxel"
            raise DataError("overlap", message, voxels=count, hint=MASKS_HINT)
        self.labels[self._region] = self._highest.labels


class Masks:
    """A mask of every channel: where it reaches the threshold.

    Args:
        masks: one a channel, (k, j, i) of the volume's grid, 0 or 1.
        least: the threshold, in the numbers that come.
    """

    def __init__(self, masks: Sequence[Labels], least: float) -> None:
        self.masks, self._least = masks, np.float32(least)

    def begin(self, region: Region) -> None:
        """See `Receiver.begin`."""
        self._region = region

    def channel(self, number: int, values: Floats) -> None:
        """See `Receiver.channel`."""
        self.masks[number][self._region] = values >= self._least

    def finish(self) -> None:
        """See `Receiver.finish`."""


class Regions:
    """A label map that regions are written into one after another, later ones over those before (nnU-Net).

    Args:
        labels: (k, j, i) of the volume's grid, 0 where nothing is said.
        order: the label value that each channel writes.
        least: the threshold, in the numbers that come.
    """

    def __init__(self, labels: Labels, order: Sequence[int], least: float) -> None:
        self.labels, self._order, self._least = labels, order, np.float32(least)

    def begin(self, region: Region) -> None:
        """See `Receiver.begin`."""
        self._part = self.labels[region]

    def channel(self, number: int, values: Floats) -> None:
        """See `Receiver.channel`. nnU-Net takes what is above its threshold, not what is at it."""
        self._part[values > self._least] = self._order[number]

    def finish(self) -> None:
        """See `Receiver.finish`."""


class Kept:
    """The channels as they come.

    Args:
        arrays: one a channel, (k, j, i) of the volume's grid; numbers are converted to their type. None: it is not kept.
    """

    def __init__(self, arrays: Sequence[NDArray[Any] | None]) -> None:
        self.arrays = arrays

    def begin(self, region: Region) -> None:
        """See `Receiver.begin`."""
        self._region = region

    def channel(self, number: int, values: Floats) -> None:
        """See `Receiver.channel`."""
        if (array := self.arrays[number]) is not None:
            array[self._region] = values

    def finish(self) -> None:
        """See `Receiver.finish`."""


class Inverter:
    """Takes finished blocks on the network's grid, and hands their channels on the volume's grid to receivers.

    Args:
        grid: both grids.
        output: the card's.
        labels: the map of the highest channels, where one is wanted.
        masks: masks of the channels, where they are wanted.
        regions: the map of nnU-Net's regions, where it is wanted.
        kept: the scores themselves, where they are wanted: after the activation, an array (or None) a channel.
    """

    def __init__(
        self,
        grid: Grid,
        output: Output,
        *,
        labels: Labels | None = None,
        masks: Sequence[Labels] | None = None,
        regions: Labels | None = None,
        kept: Sequence[NDArray[Any] | None] | None = None,
    ) -> None:
        self._grid, self._output, self._labels = grid, output, labels
        self._matrices: dict[tuple[int, int, int], tuple[slice, Floats | None]] = {}
        # Where only the highest channel is wanted on the network's own grid, it is taken before the way back.
        self.early = labels is not None and kept is None and (grid.same or output.inversion == "labels")
        k, j, i = (not axis.same and not axis.nearest for axis in grid.axes)
        self.needs_last = k, j, i
        raw = grid.same and kept is None
        least = raw_threshold(output) if raw or output.inversion == "logits" else output.threshold
        self._activate_first = not raw and output.inversion != "logits"
        self._receivers: list[Receiver] = []
        if labels is not None and output.inversion != "labels" and not self.early:
            self._receivers.append(LabelMap(labels, output, least if output.activation == "sigmoid" else None))
        if masks is not None:
            self._receivers.append(Masks(masks, least))
        if regions is not None:
            self._receivers.append(Regions(regions, output.regions_order, least))
        self._kept = None if kept is None else Kept(kept)

    @property
    def normalised(self) -> bool:
        """Say whether scores must have been divided by their weights: where more than the highest of them matters."""
        return not self.early or self._output.activation == "sigmoid"

    def labels(self, start: tuple[int, int, int], labels: Labels) -> None:
        """Take labels (k, j, i) of the network's grid; only where `early`."""
        assert self._labels is not None
        if self._grid.same:
            region = tuple(slice(a, a + n) for a, n in zip(start, labels.shape, strict=True))
            self._labels[region] = labels
            return
        index, parts = [], []
        for axis, a, n in zip(self._grid.axes, start, labels.shape, strict=True):
            nearest = axis.to_source().nearest
            first, end = np.searchsorted(nearest, [a, a + n])
            first, end = max(int(first), axis.covered[0]), min(int(end), axis.covered[1])
            parts.append(slice(first, max(end, first)))
            index.append(nearest[parts[-1]] - a)
        self._labels[tuple(parts)] = labels[np.ix_(*index)]

    def take(self, block: Block) -> None:
        """Take finished scores. They may be changed.

        Raises:
            DataError: `overlap`.
        """
        again = tuple(slice(n, None) for n in block.again)
        if self._labels is not None and (self.early or self._output.inversion == "labels"):
            start = tuple(a + n for a, n in zip(block.start, block.again, strict=True))
            self.labels(
                (start[0], start[1], start[2]), highest_channel(block.scores[(slice(None), *again)], self._output)
            )
        if not self._receivers and self._kept is None:
            return
        scores = activate(block.scores, self._output) if self._activate_first else block.scores
        parts = [self._matrix(n, block.start[n], block.scores.shape[n + 1], block.again[n]) for n in range(3)]
        region: Region = (parts[0][0], parts[1][0], parts[2][0])
        if any(part.stop <= part.start for part in region):
            return
        receivers = [*self._receivers, *([self._kept] if self._kept is not None and self._activate_first else [])]
        for receiver in receivers:
            receiver.begin(region)
        late = None
        if self._kept is not None and not self._activate_first:
            late = np.empty((len(scores), *(part.stop - part.start for part in region)), np.float32)
        for number, values in enumerate(scores):
            values = self._interpolated(values, [matrix for _, matrix in parts], again)
            for receiver in receivers:
                receiver.channel(number, values)
            if late is not None:
                late[number] = values
        for receiver in receivers:
            receiver.finish()
        if late is not None and self._kept is not None:
            self._kept.begin(region)
            for number, values in enumerate(activate(late, self._output)):
                self._kept.channel(number, values)

    def _interpolated(self, values: Floats, matrices: Sequence[Floats | None], again: tuple[slice, ...]) -> Floats:
        """Return a channel of a block on the volume's grid, (k, j, i)."""
        # What is not interpolated gives its first voxels up; of the rest they are needed.
        values = values[tuple(part if m is None else slice(None) for m, part in zip(matrices, again, strict=True))]
        k, j, i = matrices
        # The weights of one axis are a band, and BLAS is quicker with all of a small matrix than NumPy with the band.
        if i is not None:
            values = np.matmul(values, i.T)
        if j is not None:
            values = np.matmul(j, values)
        if k is not None:
            values = np.tensordot(k, values, axes=1)
        return values

    def _matrix(self, n: int, start: int, size: int, again: int) -> tuple[slice, Floats | None]:
        """Return the part of the volume's axis that a block decides, and the weights (voxels there, voxels of the block)."""
        key = (n, start, size)
        if key not in self._matrices:
            axis = self._grid.axes[n]
            self._matrices[key] = _matrix(axis, start, size, again)
        return self._matrices[key]


def _matrix(axis: Axis, start: int, size: int, again: int) -> tuple[slice, Floats | None]:
    if axis.same:
        return slice(start + again, start + size), None
    samples = axis.to_source()
    needed = np.where(samples.weight > 0, samples.high, samples.low)
    first, end = (int(n) for n in np.searchsorted(needed, [start + again, start + size]))
    if start + again == 0:
        first = 0
    first, end = max(first, axis.covered[0]), min(end, axis.covered[1])
    part = slice(first, max(end, first))
    rows = np.arange(part.stop - part.start)
    weights = np.zeros((len(rows), size), np.float32)
    low, high, weight = (values[part] for values in (samples.low, samples.high, samples.weight))
    weights[rows, low - start] = 1 - weight
    # Where both are one voxel, the second weight is 0.
    weights[rows[weight > 0], (high - start)[weight > 0]] += weight[weight > 0]
    return part, weights
