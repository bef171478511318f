"""Whether a volume is what a model was made for: its unit, and what the card's `accepts` says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mdcli.errors import DataError
from mdcli.inference.card import ATTRIBUTES, Bound, Card

ANY_UNIT = "arbitrary"


@dataclass(frozen=True)
class Violation:
    """One attribute that is out of the model's scope."""

    attribute: str
    value: Any
    bound: str

    def __str__(self) -> str:
        return f"{self.attribute} is {_shown(self.value)}, the model takes {self.bound}"


def check_unit(card: Card, unit: str | None) -> None:
    """Refuse values of another unit than the model's. `arbitrary` in the card takes any.

    Raises:
        DataError: `wrong-unit`.
    """
    wanted = card.input.unit
    if wanted not in (unit, ANY_UNIT):
        found = "no unit" if unit is None else f"unit {unit}"
        raise DataError(
            "wrong-unit",
            f"the volume has {found}, the model {card.name} wants {wanted}",
            hint="md load-volume --assume-hu, if you know that they are" if unit is None and wanted == "HU" else None,
            unit=unit,
            wanted=wanted,
        )


def check_scope(accepts: Mapping[str, Bound], facts: Mapping[str, Any]) -> tuple[list[Violation], list[str]]:
    """Compare what is there with what a model accepts.

    Args:
        accepts: of the card.
        facts: attribute to value, or list of values: every number must lie within the bounds, one text must be among the card's.

    Returns:
        What is out of scope, and the attributes that nobody knows here.
    """
    violations, unknown = [], []
    for attribute, bound in accepts.items():
        value = facts.get(attribute)
        if value is None or value in ("", []):
            unknown.append(attribute)
        elif not _within(value if isinstance(value, list) else [value], bound, ATTRIBUTES[attribute]):
            violations.append(Violation(attribute, value, str(bound)))
    return violations, unknown


def _within(values: list[Any], bound: Bound, kind: str) -> bool:
    if kind == "text":
        wanted = {str(item).casefold() for item in bound.one_of}
        return any(str(value).casefold() in wanted for value in values)
    numbers = [float(value) for value in values]
    if bound.one_of:
        return all(number in bound.one_of for number in numbers)
    return all(
        (bound.low is None or number >= bound.low) and (bound.high is None or number <= bound.high)
        for number in numbers
    )


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " x ".join(_shown(item) for item in value)
    return f"{value:g}" if isinstance(value, float) else str(value)
