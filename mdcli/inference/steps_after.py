"""What a card may ask for after the labels are made: the steps on a label map, in order.

`mdcli.inference.after` does them; here they are only said, so that reading a card loads no library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Connectivity = Literal[1, 2, 3]
"""Voxels touch where they share a face (1), an edge too (2), or a corner too (3)."""


@dataclass(frozen=True)
class KeepLargest:
    """Keep the component with the most voxels, set the rest to the background.

    Attributes:
        labels: values that it is done for; none: every value but 0.
        together: the labels are taken as one structure, which keeps its one largest component; else each label for itself.
        connectivity: see `Connectivity`. Of components of one size the one with the first voxel in (k, j, i) order is kept.
    """

    labels: tuple[int, ...] = ()
    together: bool = False
    connectivity: Connectivity = 3


@dataclass(frozen=True)
class RemoveSmall:
    """Set components to the background whose volume is under a bound, each label for itself.

    Attributes:
        mm3: the smallest volume that stays, mm3.
        labels: values that it is done for; none: every value but 0.
        connectivity: see `Connectivity`.
    """

    mm3: float
    labels: tuple[int, ...] = ()
    connectivity: Connectivity = 3


@dataclass(frozen=True)
class FillHoles:
    """Give a label the background that it alone encloses; other labels in there stay what they are.

    A hole is what no path leads out of, to the border of the volume, without crossing the label. Where holes lie in one another,
    the innermost label that encloses the background gets it.

    Attributes:
        labels: values that it is done for; none: every value but 0.
        per_slice: holes of each slice k, two-dimensional, instead of those of the volume.
        connectivity: what a path out may step over: faces only (1), edges too (2), corners too (3).
    """

    labels: tuple[int, ...] = ()
    per_slice: bool = False
    connectivity: Connectivity = 1


@dataclass(frozen=True)
class MapLabels:
    """Replace label values, all at once.

    Attributes:
        mapping: old value to new value; what it does not name stays. 0 is the background.
    """

    mapping: Mapping[int, int] = field(default_factory=dict)


After = KeepLargest | RemoveSmall | FillHoles | MapLabels
