"""Bring what the network said back to the volume's own grid, as label values.

Scores are (C, k, j, i), labels (k, j, i). Interpolate then take the highest, or take the highest then the nearest, as the card
asks; never anything linear on labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError
from mdcli.inference.card import Output
from mdcli.inference.grid import Grid
from mdcli.inference.preprocess import interpolate
from mdcli.inference.windows import refuse_overflow

Floats = NDArray[np.float32]
Labels = NDArray[Any]

# Four arrays of this many voxels stay in a core's own cache.
_BLOCK_VOXELS = 1 << 16
# Source rows interpolated at a time: one channel of them is held.
_CHUNK_ROWS = 8
_FEW_LABELS = 16


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


def highest_channel(scores: Floats, output: Output) -> Labels:
    """Return the label of the highest channel of every voxel.

    Args:
        scores: (C, k, j, i), any layout in memory.
        output: `none` and `softmax` need no probabilities: the highest score is the highest probability. With `sigmoid` a channel
            counts from probability 0.5, which is score 0.

    Returns:
        (k, j, i), contiguous, uint8, or uint16 for more than 255 labels.

    Raises:
        DataError: `overlap` where two sigmoid channels claim one voxel.
    """
    sigmoid = output.activation == "sigmoid"
    first = int(sigmoid)
    if sigmoid:
        _refuse_overlap(scores, 0.0)
    dtype = label_type(len(scores) - 1 + first)
    # The walk follows the memory, whatever the order of the axes.
    order = sorted(range(1, 4), key=lambda axis: -abs(scores.strides[axis]))
    walk = scores.transpose(0, *order)
    found = np.empty(walk.shape[1:], dtype)
    rows = max(_BLOCK_VOXELS // walk.shape[3], 1)
    for a in range(walk.shape[1]):
        for start in range(0, walk.shape[2], rows):
            block = walk[:, a, start : start + rows]
            highest = Highest(block.shape[1:], dtype, 0.0 if sigmoid else None)
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
            raise DataError("overlap", message, labels=[other, label], voxels=count)
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


class Inverter:
    """Takes rows of scores on the network's grid in the order of k, gives rows of labels on the volume's.

    Args:
        grid: both grids.
        output: the card's.
    """

    def __init__(self, grid: Grid, output: Output) -> None:
        self._grid = grid
        self._output = output
        self._next = 0
        self._last: Floats | None = None

    @property
    def early(self) -> bool:
        """Say whether the highest channel is taken on the network's grid, so that `labels` may be given instead of scores."""
        return self._grid.same or self._output.inversion == "labels"

    def labels(self, first: int, labels: Labels) -> Iterator[Labels]:
        """Take rows of labels on the network's grid and give those on the volume's. See `scores`."""
        if self._grid.same:
            yield labels
        else:
            yield from self._nearest(first, labels)

    def scores(self, first: int, scores: Floats) -> Iterator[Labels]:
        """Take rows and give all rows of labels that are complete by now.

        Args:
            first: the row of the network's grid that `scores` starts with: the one after the last that was taken.
            scores: (C, k, j, i). They may be changed.

        Yields:
            Labels (k, j, i), contiguous, uint8 or uint16.

        Raises:
            DataError: `overlap`; `nan-in-output` where finite scores can't be interpolated.
        """
        if self.early:
            yield from self.labels(first, highest_channel(scores, self._output))
        else:
            yield from self._linear(first, activate(scores, self._output))

    def _nearest(self, first: int, labels: Labels) -> Iterator[Labels]:
        k, j, i = (axis.to_source().nearest for axis in self._grid.axes)
        start, stop = np.searchsorted(k, [first, first + len(labels)])
        for row in range(start, stop):
            yield np.ascontiguousarray(labels[k[row] - first][j][:, i])[None]

    def _linear(self, first: int, scores: Floats) -> Iterator[Labels]:
        along, (j, i) = self._grid.axes[0].to_source(), (None if a.same else a.to_source() for a in self._grid.axes[1:])
        needed = np.where(along.weight > 0, along.high, along.low)
        stop = int(np.searchsorted(needed, first + scores.shape[1]))
        shape = self._grid.source_shape
        sigmoid = self._output.activation == "sigmoid"
        dtype = label_type(len(scores) - 1 + int(sigmoid))
        before = self._last if self._last is not None else scores[:, 0]
        for start in range(self._next, stop, _CHUNK_ROWS):
            samples = along.of(start, min(start + _CHUNK_ROWS, stop))
            chunk = (len(samples.low), *shape[1:])
            highest = Highest(chunk, dtype, 0.5 if sigmoid else None)
            claims = np.zeros(chunk, np.uint16) if sigmoid else None
            for channel in range(len(scores)):

                def plane_at(row: int, channel: int = channel) -> Floats:
                    plane: Floats = before[channel] if row < first else scores[channel, row - first]
                    return plane

                with refuse_overflow():
                    values = interpolate(plane_at, samples, j, i, shape[1:])
                highest.add(values, channel + int(sigmoid))
                if claims is not None:
                    claims += values >= 0.5
            if claims is not None and claims.max(initial=0) > 1:
                count = int((claims > 1).sum())
                message = f"two labels claim {count} voxels both, and a label map holds one label a voxel"
                raise DataError("overlap", message, voxels=count)
            yield highest.labels
        self._next = max(stop, self._next)
        self._last = scores[:, -1].copy()
