"""Whether a volume is what a model was made for: its unit, and what the card's `accepts` says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mdcli.dicom.rules import COMPUTED, UNKNOWN, Rule
from mdcli.dicom.series import snake
from mdcli.errors import DataError
from mdcli.imaging.nifti import PATIENT as PATIENT_PLANE
from mdcli.inference.card import ATTRIBUTES, Bound, Card, Where

ANY_UNIT = "arbitrary"


# What is held against a bound and never said.
PATIENT = frozenset({"patient_age", "patient_sex"})
_MAX_VALUES = 5


@dataclass(frozen=True)
class Violation:
    """One attribute that is out of the model's scope.

    Attributes:
        attribute: its name in `accepts`.
        values: what lies outside, each different one once, at most 5; of the patient's age and sex only that it does.
        bound: what the model takes, in words.
        where: ` in N of M images` where not all are outside, else empty.
    """

    attribute: str
    values: tuple[Any, ...]
    bound: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.attribute} is {' and '.join(map(_shown, self.values))}{self.where}, the model takes {self.bound}"


def check_unit(card: Card, unit: str | None, modality: str | None = "CT") -> None:
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
            hint=_way_out(unit, wanted, modality),
            unit=unit,
            wanted=wanted,
        )


def _way_out(unit: str | None, wanted: str, modality: str | None) -> str | None:
    """Return what helps where nobody said the unit, and somebody may know."""
    if unit is not None:
        return None
    if modality is None:
        return f"md import-volume --unit {wanted}, if you know that they are"
    return "md load-volume --assume-hu, if you know that they are" if (modality, wanted) == ("CT", "HU") else None


def check_scope(
    accepts: Mapping[str, Bound | Where], facts: Mapping[str, Sequence[Any]]
) -> tuple[list[Violation], list[str]]:
    """Compare what is there with what a model accepts.

    Args:
        accepts: of the card.
        facts: attribute to what each image says, or to the one thing that is known of the volume; None where an image doesn't say.
            What it says may be a list: every number of it must lie within the bounds, one text must be among the card's. For a
            `where` also by the grammar's own keywords (`keyword_facts`).

    Returns:
        What is out of scope, and the attributes that nobody knows here, or not of every image.
    """
    violations, unknown = [], []
    for attribute, bound in accepts.items():
        if isinstance(bound, Where):
            outside_it, not_known = _check_where(bound.rule, facts)
            violations += outside_it
            unknown += not_known
            continue
        kind = ATTRIBUTES[attribute]
        said = [_known(value, kind) for value in facts.get(attribute, [])]
        if None in said or not said:
            unknown.append(attribute)
        outside = [values for values in said if values is not None and not _within(values, bound, kind)]
        if not outside:
            continue
        where = f" in {len(outside)} of {len(said)} images" if len(outside) < len(said) else ""
        different: list[Any] = []
        for values in outside:
            value = values if len(values) > 1 else values[0]
            if value not in different and len(different) < _MAX_VALUES:
                different.append(value)
        shown = ("outside",) if attribute in PATIENT else tuple(different)
        violations.append(Violation(attribute, shown, str(bound), where))
    return violations, unknown


def keyword_facts(rule: Rule, images: Sequence[Mapping[str, Any]], geometry: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return what a rule asks for, by keyword: what each image says, and of what is computed the one thing known of the volume.

    Args:
        rule: of a `where`.
        images: attributes in snake case, an image each.
        geometry: as `geometry.json` has it.
    """
    regularity = geometry.get("regularity") or {}
    computed = {
        "SliceCount": geometry["shape"][-3],
        "Spacing": regularity.get("step_mm"),
        "CoverageMM": geometry.get("coverage_mm"),
        "Orientation": geometry.get("orientation"),
        "ObliquityDeg": geometry.get("obliquity_deg"),
        "Unit": geometry.get("unit"),
        "IsVolume": geometry.get("spacing_plane", PATIENT_PLANE) == PATIENT_PLANE and geometry["shape"][-3] > 1,
        "IsRegular": regularity.get("regular"),
    }
    return {
        keyword: [computed.get(keyword)] if keyword in COMPUTED else [image.get(snake(keyword)) for image in images]
        for keyword in rule.keywords
    }


def _check_where(rule: Rule, facts: Mapping[str, Sequence[Any]]) -> tuple[list[Violation], list[str]]:
    count = max((len(facts.get(keyword, ())) for keyword in rule.keywords), default=0)
    outside: list[str] = []
    open_ones = 0
    for n in range(count):
        said = {keyword: _of_image(facts.get(keyword, ()), n) for keyword in rule.keywords}
        held = rule.decide(said)
        open_ones += held is None
        if held is False:
            found = (
                f"{keyword} {_shown(said[keyword])}" for keyword in dict.fromkeys(c.keyword for c in rule.conditions)
            )
            outside.append(", ".join(found))
    unknown = [k for k in sorted(rule.keywords) if _of_image(facts.get(k, ()), 0) is UNKNOWN] if open_ones else []
    if not count:
        unknown = sorted(rule.keywords)
    if not outside:
        return [], unknown
    where = f" in {len(outside)} of {count} images" if len(outside) < count else ""
    return [Violation("where", tuple(dict.fromkeys(outside))[:_MAX_VALUES], str(rule), where)], unknown


def _of_image(values: Sequence[Any], n: int) -> Any:
    value = values[n if len(values) > 1 else 0] if values else None
    return UNKNOWN if value is None or value == [] else value


def _known(value: Any, kind: str) -> list[Any] | None:
    """Return what one image says as a list, None where it says nothing, or no number where one is meant."""
    values = [v for v in (value if isinstance(value, list) else [value]) if v is not None and v != ""]
    if kind == "number" and not all(isinstance(v, (int, float)) for v in values):
        return None
    return values or None


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
    from mdcli.dicom.opening import shown

    if value is UNKNOWN:
        return "unknown"
    if isinstance(value, list):
        return ("\\" if isinstance(value[0], str) else " x ").join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else shown(str(value))
