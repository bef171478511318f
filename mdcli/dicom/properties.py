"""What rules ask of a series that no header says: where its slices lie, whether they are a volume, its unit, its pixels.

Everything in millimetres, in the DICOM patient frame (LPS+); the tolerances are those of `mdcli.dicom.geometry`. Nothing here
refuses a series: what can't be computed is absent.
Source: DICOM PS3.3 C.7.6.2 (Image Plane Module).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mdcli.dicom.instance import Instance
from mdcli.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mdcli.dicom.opening import SourceFiles
    from mdcli.dicom.pixels import Layout

MOST_SAMPLED = 32
"""Slices of a series that are read for a condition on pixels, evenly spaced, the first and the last among them."""
BODY_HU = -300.0
"""A voxel above this is of the body (or the table): halfway between lung and fat."""


@dataclass(frozen=True)
class Stack:
    """How the images of a series lie.

    Attributes:
        spacing_mm: mean distance of neighbouring places along the normal; None for one place, or several orientations.
        coverage_mm: number of places times `spacing_mm`.
        is_volume: two or more images of one orientation, size, pixel spacing and frame of reference, each at a place of its own.
        is_regular: the places (each counted once) form a regular grid, sheared or not.
    """

    spacing_mm: float | None = None
    coverage_mm: float | None = None
    is_volume: bool = False
    is_regular: bool = False


@dataclass(frozen=True)
class PixelFacts:
    """What sampled slices of a CT in HU hold, padding left out; None where every voxel is padding.

    Attributes:
        mean_hu: mean of the voxels.
        body_share: share of voxels above `BODY_HU`, 0 to 1.
        slices: how many were read.
    """

    mean_hu: float | None
    body_share: float | None
    slices: int


def plane_of_image(instance: Instance) -> tuple[str, float] | None:
    """Return the plane of an image and the angle of its normal to the nearest patient axis in degrees; None without one.

    >>> plane_of_image(Instance("a", 0, None, None, "", {"ImageOrientationPatient": [1.0, 0.0, 0.0, 0.0, 0.0, -1.0]}))
    ('coronal', 0.0)
    """
    from mdcli.dicom.geometry import PLANE_DEGREES

    cosines = _cosines(instance)
    if cosines is None:
        return None
    (a, b, c), (d, e, f) = cosines[:3], cosines[3:]
    normal = [abs(b * f - c * e), abs(c * d - a * f), abs(a * e - b * d)]
    largest = max(normal)
    degrees = math.degrees(math.acos(min(1.0, largest / math.hypot(*normal))))
    name = ("sagittal", "coronal", "axial")[normal.index(largest)] if degrees <= PLANE_DEGREES else "oblique"
    return name, degrees


def _cosines(instance: Instance) -> tuple[float, ...] | None:
    """Return the direction cosines of row and column, orthonormal within `COSINE_OFF`."""
    from mdcli.dicom.geometry import COSINE_OFF

    found = _numbers(instance.get("ImageOrientationPatient"), 6)
    if found is None:
        return None
    row, column = found[:3], found[3:]
    dot = sum(a * b for a, b in zip(row, column, strict=True))
    off = max(abs(math.hypot(*row) - 1), abs(math.hypot(*column) - 1), abs(dot))
    return found if off <= COSINE_OFF else None


def _numbers(value: Any, count: int) -> tuple[float, ...] | None:
    if not isinstance(value, (list, tuple)) or len(value) != count:
        return None
    if not all(isinstance(v, (int, float)) and math.isfinite(v) for v in value):
        return None
    return tuple(float(v) for v in value)


def stack_of(images: Sequence[Instance]) -> Stack:
    """Return how the images of a series lie.

    Args:
        images: single frames, in any order, no copies.

    Source: DICOM PS3.3 C.7.6.2.1.1: a slice's place is the projection of ImagePositionPatient on the normal.
    """
    import numpy as np

    from mdcli.dicom.geometry import COSINE_OFF, PIXEL_SPACING_OFF, SAME_POSITION_MM

    cosines = [_cosines(i) for i in images]
    positions = [_numbers(i.get("ImagePositionPatient"), 3) for i in images]
    if not images or any(c is None for c in cosines) or any(p is None for p in positions):
        return Stack()
    directions, places = np.array(cosines, np.float64), np.array(positions, np.float64)
    if float(np.ptp(directions, axis=0).max()) > COSINE_OFF:
        return Stack()
    row, column = directions.mean(axis=0).reshape(2, 3)
    normal = np.cross(row, column)
    normal /= np.linalg.norm(normal)
    order = np.argsort(places @ normal, kind="stable")
    places = places[order]
    depths = places @ normal
    starts = np.concatenate([[True], np.diff(depths) > SAME_POSITION_MM])
    places, depths = places[starts], depths[starts]
    count = len(places)
    if count < 2:
        return Stack()
    spacing = float(depths[-1] - depths[0]) / (count - 1)
    spacings = np.array([_numbers(i.get("PixelSpacing"), 2) or (math.nan, math.nan) for i in images], np.float64)
    one_size = len({(i.get("Rows"), i.get("Columns"), i.get("FrameOfReferenceUID")) for i in images}) == 1
    one_pixel = bool((np.ptp(spacings, axis=0) <= PIXEL_SPACING_OFF * spacings.min(axis=0)).all())
    return Stack(
        spacing_mm=spacing,
        coverage_mm=count * spacing,
        is_volume=count == len(images) and one_size and one_pixel,
        is_regular=_is_regular(places, depths, spacing),
    )


def _is_regular(places: NDArray[np.float64], depths: NDArray[np.float64], spacing: float) -> bool:
    """Say whether sorted places (n, 3) lie on a uniform grid through the first and the last."""
    import numpy as np

    from mdcli.dicom.geometry import POSITION_OFF_GRID_MM, POSITION_OFF_GRID_SPACING, STEP_OFF

    count = len(places)
    step = (places[-1] - places[0]) / (count - 1)
    off = np.linalg.norm(places - places[0] - np.arange(count)[:, None] * step, axis=1)
    allowed = max(POSITION_OFF_GRID_MM, POSITION_OFF_GRID_SPACING * spacing)
    return bool(off.max() <= allowed and np.abs(np.diff(depths) - spacing).max() <= STEP_OFF * spacing)


def unit_of(images: Sequence[Instance]) -> str | None:
    """Return the unit of the rescaled values of a series' images; None where nobody says, or not one for all."""
    from mdcli.dicom.pixels import rescale_of

    said = {tuple(str(i.get(k)) for k in ("Modality", "RescaleType", "Units")) for i in images}
    if len(said) != 1:
        return None
    try:
        return rescale_of(images).unit
    except DataError:
        return None


def pixel_facts(
    files: SourceFiles, images: Sequence[Instance], jobs: int = 1, done: Callable[[float], None] = lambda _: None
) -> PixelFacts | None:
    """Read at most `MOST_SAMPLED` slices of a CT and say what they hold; None where its values are not HU.

    The slices are taken in the order of their places (where they have some, else of the files), evenly spaced, the first and the
    last among them: of n, m are read, number round(k (n - 1) / (m - 1)) for k = 0 ... m - 1.

    Args:
        files: where the paths are opened.
        images: single frames with pixels.
        jobs: threads or processes.
        done: called with 1 for every image read.

    Raises:
        DataError: those of `mdcli.dicom.reading.read_stored`: without its pixels nobody can tell whether a rule holds.
        MissingError: `source-missing`.
    """
    import numpy as np

    from mdcli.dicom.pixels import layouts, padding_range, rescale_of
    from mdcli.dicom.reading import read_stored

    if unit_of(images) != "HU" or any(i.get("SamplesPerPixel", 1) != 1 for i in images):
        return None
    sampled = _sample(images)
    plans, _ = layouts(sampled)
    rescale = rescale_of(sampled)
    alike: dict[Layout, list[int]] = {}
    for n, plan in enumerate(plans):
        alike.setdefault(plan, []).append(n)
    voxels = body = 0
    total = 0.0
    for plan, numbers in alike.items():
        slices = [sampled[n] for n in numbers]
        paddings = [padding_range(i, plan) for i in slices]
        stored, _ = read_stored(files, slices, [plan] * len(slices), paddings, jobs, done)
        for plane, padding, n in zip(stored, paddings, numbers, strict=True):
            values = plane if padding is None else plane[(plane < padding[0]) | (plane > padding[1])]
            hu = values.astype(np.float64) * rescale.slopes[n] + rescale.intercepts[n]
            voxels += hu.size
            total += float(hu.sum())
            body += int(np.count_nonzero(hu > BODY_HU))
    return PixelFacts(total / voxels if voxels else None, body / voxels if voxels else None, len(sampled))


def _sample(images: Sequence[Instance]) -> list[Instance]:
    first = _cosines(images[0])
    places = [_numbers(i.get("ImagePositionPatient"), 3) for i in images]
    ordered = list(images)
    if first is not None and all(place is not None for place in places):
        (a, b, c), (d, e, f) = first[:3], first[3:]
        normal = (b * f - c * e, c * d - a * f, a * e - b * d)
        depths = [sum(x * y for x, y in zip(place or (), normal, strict=True)) for place in places]
        ordered = [images[n] for n in sorted(range(len(images)), key=depths.__getitem__)]
    count, most = len(ordered), min(len(ordered), MOST_SAMPLED)
    return [ordered[round(k * (count - 1) / max(1, most - 1))] for k in range(most)]
