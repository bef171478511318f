"""Numbers with a unit: what a network measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError
from mdcli.inference.tasks.classification import Over, SliceOf, check_rows, rows_of, slice_table
from mdcli.inference.tasks.scores import described

if TYPE_CHECKING:
    from mdcli.inference.card import Code, Label


def regress(
    array: NDArray[Any],
    labels: Sequence[Label],
    unit: Code,
    *,
    scale: float = 1.0,
    offset: float = 0.0,
    within: tuple[float, float] | None = None,
    outside: Literal["refuse", "clamp"] = "refuse",
    over: Over = "volume",
    vote: Literal["mean", "max"] | None = None,
    slices: Sequence[SliceOf] = (),
    name: str | None = None,
) -> dict[str, Any]:
    """Return the numbers of one output, as `classes.json` has them.

    Args:
        array: (1, labels), or (slices, labels): number c is that of the c-th label.
        labels: what each number measures.
        unit: of all of them.
        scale: each number is multiplied by this, then
        offset: is added.
        within: the lowest and the highest number that make sense, in the unit.
        outside: what becomes of others: refused, or set to the nearer end.
        over: what each row of the array is about.
        vote: with slices: their mean, or the highest.
        slices: what each row is, where `over` is `slices`.
        name: of the output.

    Raises:
        ConfigError: `network-does-not-fit`.
        DataError: `nan-in-output`; `out-of-range`.
    """
    raw = rows_of(array, len(labels), "numbers", name)
    check_rows(raw, over, slices, name)
    rows = raw.astype(np.float64) * scale + offset
    measured = rows.max(axis=0) if vote == "max" else rows.mean(axis=0)
    numbers = measured if within is None else _inside(measured, labels, unit, within, outside)
    return {
        "name": name,
        "kind": "regression",
        "over": over,
        "vote": (vote or "mean") if over == "slices" else None,
        "unit": {"value": unit.value, "scheme": unit.scheme, "meaning": unit.meaning},
        "labels": [
            {**described(label), "number": float(numbers[n]), "clamped": bool(numbers[n] != measured[n])}
            for n, label in enumerate(labels)
        ],
        "slices": slice_table(slices, rows) if over == "slices" else None,
    }


def _inside(
    numbers: NDArray[np.float64], labels: Sequence[Label], unit: Code, within: tuple[float, float], outside: str
) -> NDArray[np.float64]:
    low, high = within
    for label, number in zip(labels, numbers, strict=True):
        if outside == "refuse" and not low <= number <= high:
            said = f"{label.name} is {number:g} {unit.value}, the card says from {low:g} to {high:g}"
            raise DataError("out-of-range", said, number=float(number), low=low, high=high)
    return np.clip(numbers, low, high)
