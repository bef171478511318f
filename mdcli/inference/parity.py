"""Compare what two runs of one model say, class by class: the gate that every conversion has to pass.

A whole adrenal can hide in 99.99 % of a volume. So every class is compared by itself: Dice, volume, and how sure the reference was
where the two differ; and a class that was hardly there in any volume counts as not judged, never as passed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError

LEAST_DICE = 0.999
"""Of a class in a volume that has more than `JUDGED_VOXELS` of it."""
VOLUME_PART, VOLUME_VOXELS = 0.001, 5
"""How far the volume of a class may be off in any volume: this part of it, or as many voxels, whichever is more."""
LARGEST_MARGIN = 1e-3
"""Between the two highest scores of the reference, at any voxel where the labels differ."""
JUDGED_VOXELS = 1000
"""A class must have more than these in some volume."""
LARGEST_DIFFERENCE = 1e-3
"""Of an array that is no map of labels, as a part of its range in the reference."""


@dataclass(frozen=True)
class ClassParity:
    """One class in one volume: voxels of the reference and of ours, and of both."""

    value: int
    name: str
    reference: int
    ours: int
    both: int

    @property
    def dice(self) -> float:
        """Return 2 * both / (reference + ours); 1 where neither has any."""
        total = self.reference + self.ours
        return 2 * self.both / total if total else 1.0

    @property
    def judged(self) -> bool:
        """Say whether there is enough of the class for its Dice to mean something."""
        return self.reference > JUDGED_VOXELS

    @property
    def good(self) -> bool:
        """Say whether the class is as it must be."""
        allowed = max(VOLUME_PART * self.reference, VOLUME_VOXELS)
        return abs(self.ours - self.reference) <= allowed and (not self.judged or self.dice >= LEAST_DICE)


@dataclass(frozen=True)
class Number:
    """An array that is no map of labels: its largest difference and what is allowed, as parts of the reference's range."""

    name: str
    difference: float
    allowed: float = LARGEST_DIFFERENCE

    @property
    def good(self) -> bool:
        """Say whether it is as it must be."""
        return self.difference <= self.allowed


@dataclass(frozen=True)
class ParityReport:
    """Two runs on one volume.

    Attributes:
        volume: its name.
        classes: of the model.
        voxels: compared; for masks those of all of them.
        differing: of these.
        margin: the largest margin of the reference where they differ; 0 where they do not.
        numbers: arrays beside the maps.
    """

    volume: str
    classes: tuple[ClassParity, ...] = ()
    voxels: int = 0
    differing: int = 0
    margin: float = 0.0
    numbers: tuple[Number, ...] = ()

    @property
    def good(self) -> bool:
        """Say whether nothing differs more than it may."""
        return (
            all(one.good for one in self.classes)
            and self.margin < LARGEST_MARGIN
            and all(number.good for number in self.numbers)
        )


@dataclass(frozen=True)
class Verdict:
    """What several volumes say together.

    Attributes:
        reports: one a volume.
        failures: what is not as it must be, one sentence each.
        not_judged: the classes that no volume has enough of.
    """

    reports: tuple[ParityReport, ...]
    failures: tuple[str, ...]
    not_judged: tuple[str, ...]

    def passes(self, *, allow_unjudged: bool = False) -> bool:
        """Say whether the two runs are the same for every class."""
        return not self.failures and (allow_unjudged or not self.not_judged)


def compare_labels(
    reference: NDArray[Any],
    ours: NDArray[Any],
    margin: NDArray[np.floating[Any]],
    labels: Sequence[tuple[int, str]],
    volume: str = "",
) -> ParityReport:
    """Compare two label maps.

    Args:
        reference: (k, j, i).
        ours: the same shape.
        margin: the same shape: how far the reference's highest score is above its second highest.
        labels: value and name of each class.
        volume: its name.

    Raises:
        DataError: `grids-differ` where the shapes do.

    >>> one, other = np.array([[[1, 1, 0, 2]]]), np.array([[[1, 1, 1, 2]]])
    >>> report = compare_labels(one, other, np.full((1, 1, 4), 0.25), [(1, "liver"), (2, "spleen")])
    >>> report.differing, report.margin, report.classes[0].dice
    (1, 0.25, 0.8)
    """
    _same_shape(reference, ours, margin)
    largest = max((value for value, _ in labels), default=0)
    counts = np.zeros((3, largest + 1), np.int64)
    differing, worst = 0, 0.0
    for one, other, sure in zip(reference, ours, margin, strict=True):
        differ = one != other
        for row, values in enumerate((one, other, one[~differ])):
            found = np.bincount(np.asarray(values).ravel(), minlength=largest + 1)
            counts[row] += found[: largest + 1]
        if differ.any():
            differing += int(differ.sum())
            worst = max(worst, _largest(sure[differ]))
    classes = (ClassParity(value, name, *(int(n) for n in counts[:, value])) for value, name in labels)
    return ParityReport(volume, tuple(classes), reference.size, differing, worst)


def compare_masks(
    reference: Sequence[NDArray[Any]],
    ours: Sequence[NDArray[Any]],
    margins: Sequence[NDArray[np.floating[Any]]],
    labels: Sequence[tuple[int, str]],
    volume: str = "",
) -> ParityReport:
    """Compare masks that may overlap, a mask a class.

    Args:
        reference: (k, j, i) each, 0 or 1.
        ours: as these.
        margins: how far the reference's score of that class is from its threshold.
        labels: value and name of each class.
        volume: its name.

    Raises:
        DataError: `grids-differ`.
    """
    parts = [
        compare_labels(one, other, margin, [(1, name)])
        for one, other, margin, (_, name) in zip(reference, ours, margins, labels, strict=True)
    ]
    classes = tuple(
        ClassParity(value, name, part.classes[0].reference, part.classes[0].ours, part.classes[0].both)
        for part, (value, name) in zip(parts, labels, strict=True)
    )
    return ParityReport(
        volume,
        classes,
        sum(part.voxels for part in parts),
        sum(part.differing for part in parts),
        max((part.margin for part in parts), default=0.0),
    )


def difference_of(reference: NDArray[Any], ours: NDArray[Any]) -> float:
    """Return the largest difference of two arrays, as a part of the reference's range; infinite where it is no number.

    >>> difference_of(np.array([0.0, 4.0]), np.array([0.0, 3.0]))
    0.25

    Raises:
        DataError: `grids-differ` where the shapes do.
    """
    _same_shape(reference, ours)
    if not reference.size:
        return 0.0
    wide = np.asarray(reference, np.float64)
    largest = float(np.abs(wide - ours).max())
    return largest / (float(np.ptp(wide)) or 1.0) if np.isfinite(largest) else float("inf")


def judge(reports: Iterable[ParityReport]) -> Verdict:
    """Say what several volumes say together."""
    volumes = tuple(reports)
    failures: list[str] = []
    for report in volumes:
        place = f"{report.volume}: " if report.volume else ""
        for one in report.classes:
            if not one.good:
                failures.append(
                    f"{place}{one.name} has Dice {one.dice:.6f} and {one.ours} voxels, {one.reference} in the reference"
                )
        if report.margin >= LARGEST_MARGIN:
            failures.append(
                f"{place}{report.differing} voxels differ, up to a margin of {report.margin:.2g} in the reference"
            )
        for number in report.numbers:
            if not number.good:
                text = f"{number.name} differs by {number.difference:.2g} of its range, over {number.allowed:g}"
                failures.append(place + text)
    judged = {one.name for report in volumes for one in report.classes if one.judged}
    names = dict.fromkeys(one.name for report in volumes for one in report.classes)
    return Verdict(volumes, tuple(failures), tuple(name for name in names if name not in judged))


def table(verdict: Verdict) -> list[str]:
    """Return the lines of a report for a person: a line a class and volume, then what fails and what was not judged."""
    lines = []
    for report in verdict.reports:
        if report.volume:
            lines.append(report.volume)
        if report.classes:
            lines.append(f"  {'class':<24} {'reference':>10} {'ours':>10} {'Dice':>10}")
        for one in report.classes:
            word = "" if one.judged else ("  too few to judge" if one.good else "")
            word = word if one.good else "  FAILS"
            lines.append(f"  {one.name:<24.24} {one.reference:>10} {one.ours:>10} {one.dice:>10.6f}{word}")
        if report.voxels:
            lines.append(f"  {report.differing} of {report.voxels} voxels differ, margin up to {report.margin:.2g}")
        lines += [f"  {one.name}: differs by {one.difference:.2g} of its range" for one in report.numbers]
    lines += [f"fails: {text}" for text in verdict.failures]
    if verdict.not_judged:
        listed = ", ".join(verdict.not_judged)
        lines.append(f"not judged: {listed} (over {JUDGED_VOXELS} voxels in some volume are needed)")
    return lines


def as_json(verdict: Verdict) -> dict[str, Any]:
    """Return a report as JSON values."""
    return {
        "volumes": [
            {
                "name": report.volume,
                "classes": [
                    {
                        "value": one.value,
                        "name": one.name,
                        "reference_voxels": one.reference,
                        "voxels": one.ours,
                        "dice": one.dice,
                        "judged": one.judged,
                        "passes": one.good,
                    }
                    for one in report.classes
                ],
                "voxels": report.voxels,
                "differing": report.differing,
                "margin": report.margin,
                "numbers": [
                    {"name": one.name, "difference": one.difference, "allowed": one.allowed} for one in report.numbers
                ],
            }
            for report in verdict.reports
        ],
        "failures": list(verdict.failures),
        "not_judged": list(verdict.not_judged),
    }


def _largest(values: NDArray[np.floating[Any]]) -> float:
    # A reference that is no number somewhere must not pass for a sure one.
    return float(values.max()) if np.isfinite(values).all() else float("inf")


def _same_shape(reference: NDArray[Any], *others: NDArray[Any]) -> None:
    for other in others:
        if other.shape != reference.shape:
            raise DataError("grids-differ", f"an array of {other.shape} is compared with one of {reference.shape}")
