"""Mean and standard deviation of values that come in parts, so that no volume is held whole for them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Statistics:
    """Mean and population standard deviation of a volume."""

    mean: float
    std: float


def statistics_of(parts: Iterable[NDArray[Any]]) -> Statistics | None:
    """Return the statistics of all values, in float64; None where there is none.

    Args:
        parts: arrays of any shapes, one of which may be empty.

    Source: Chan, Golub, LeVeque 1979: parts are merged by their means and sums of squared deviations.

    >>> statistics_of([np.array([1.0, 2.0]), np.array([6.0])])
    Statistics(mean=3.0, std=2.160246899469287)
    """
    count, mean, squares = 0, 0.0, 0.0
    for values in parts:
        if values.size == 0:
            continue
        part = values.ravel().astype(np.float64)
        part_mean = float(part.mean())
        part -= part_mean
        delta, total = part_mean - mean, count + part.size
        squares += float(part @ part) + delta * delta * count * part.size / total
        mean += delta * part.size / total
        count = total
    return Statistics(mean, math.sqrt(squares / count)) if count else None
