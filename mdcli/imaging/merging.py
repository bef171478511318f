"""Make one label map of several, voxel by voxel: of the structures that claim a voxel the first in a list has it.

Arrays are (k, j, i); a structure's rank is its place in the list, from 1, and 0 is the background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.imaging.components import Box


@dataclass(frozen=True)
class Part:
    """One label map, or one mask, and where it lies.

    Attributes:
        array: (k, j, i), whole numbers; of a mask 0 and 1.
        box: of the grid that the maps are merged on.
        ranks: label value to rank; a value that is not here is the background.
    """

    array: NDArray[Any]
    box: Box
    ranks: Mapping[int, int]

    def table(self) -> NDArray[np.int32]:
        """Return the rank of every label value up to the largest that the array can be asked for."""
        largest = max(max(self.ranks, default=0), max((int(plane.max()) for plane in self.array), default=0))
        table = np.zeros(largest + 1, np.int32)
        for value, rank in self.ranks.items():
            table[value] = rank
        return table


@dataclass
class Tally:
    """What merging found.

    Attributes:
        overlaps: (rank that won, rank that lost) to voxels.
        voxels: rank to the voxels that it has in the end.
        first: ranks on the first slice; `last` those on the last one.
        last: see `first`.
        cut: ranks on a side of their part that is no side of the grid: there they may have been cut off.
    """

    overlaps: Counter[tuple[int, int]] = field(default_factory=Counter)
    voxels: Counter[int] = field(default_factory=Counter)
    first: set[int] = field(default_factory=set)
    last: set[int] = field(default_factory=set)
    cut: set[int] = field(default_factory=set)


def merge(parts: Sequence[Part], shape: Sequence[int], tally: Tally) -> Iterator[NDArray[np.int32]]:
    """Give the ranks of the merged map, slice by slice (j, i); `tally` is filled on the way.

    Args:
        parts: all of them; a rank may be in several.
        shape: of the grid.
        tally: empty.
    """
    tables = [part.table() for part in parts]
    for k in range(shape[0]):
        best = np.zeros(tuple(shape[1:]), np.int32)
        for part, table in zip(parts, tables, strict=True):
            along_k, *sides = part.box
            if not along_k.start <= k < along_k.stop:
                continue
            ranks = table[part.array[k - along_k.start]]
            view = best[tuple(sides)]
            _count_overlaps(tally, view, ranks)
            wins = (ranks > 0) & ((view == 0) | (ranks < view))
            view[wins] = ranks[wins]
            tally.cut |= _at_cut_sides(ranks, part.box, k, shape)
        there = np.bincount(best.ravel())
        tally.voxels.update({rank: int(there[rank]) for rank in np.flatnonzero(there).tolist() if rank})
        if k == 0:
            tally.first |= _ranks(best)
        if k == shape[0] - 1:
            tally.last |= _ranks(best)
        yield best


def _ranks(array: NDArray[np.int32]) -> set[int]:
    return set(np.unique(array).tolist()) - {0}


def _count_overlaps(tally: Tally, one: NDArray[np.int32], other: NDArray[np.int32]) -> None:
    both = (one > 0) & (other > 0) & (one != other)
    if both.any():
        a, b = one[both].astype(np.int64), other[both].astype(np.int64)
        pairs, counts = np.unique(np.minimum(a, b) << 32 | np.maximum(a, b), return_counts=True)
        for pair, n in zip(pairs.tolist(), counts.tolist(), strict=True):
            tally.overlaps[pair >> 32, pair & 0xFFFFFFFF] += n


def _at_cut_sides(ranks: NDArray[np.int32], box: Box, k: int, shape: Sequence[int]) -> set[int]:
    """Return the ranks on those sides of a slice of a part that lie within the grid."""
    (along_k, along_j, along_i), (slices, rows, columns) = box, shape
    if (k == along_k.start and k > 0) or (k == along_k.stop - 1 and k < slices - 1):
        return _ranks(ranks)
    sides = [
        (ranks[0], along_j.start > 0),
        (ranks[-1], along_j.stop < rows),
        (ranks[:, 0], along_i.start > 0),
        (ranks[:, -1], along_i.stop < columns),
    ]
    return set[int]().union(*(_ranks(side) for side, inside in sides if inside))
