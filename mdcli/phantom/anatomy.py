"""What the phantom looks like: Hounsfield units as a function of the place in the patient.

A torso whose left and right, head and foot, front and back differ, and four landmarks at places that no mirror, rotation or
change of scale brings onto one another. A landmark is a ball whose density is a product of two parts: a pattern over the
directions that looks unlike itself under every mirror and every quarter turn, and shells of fixed millimetres along the radius.
So it tells handedness, axis order and scale.

Points are millimetres, LPS+ (x to the patient's left, y to the back, z to the head). The functions are continuous, so that any
grid can be sampled from them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]

CENTRE_MM = (11.0, -17.0, -245.0)
"""Where the torso's middle lies, LPS+: off the origin on every axis, so that no sign can be lost unseen."""

LANDMARK_RADIUS_MM = 22.0
LANDMARK_HU = 40.0
LANDMARK_CONTRAST_HU = 200.0
_INSERT_RADIUS_MM = 26.0
_SHELL_RADIUS_MM = 15.0
_SHELL_PERIOD_MM = 12.0
_SHELL_INNER_MM = 8.0
_RAMP_MM = 3.0
_EDGE_MM = 2.0


@dataclass(frozen=True)
class Landmark:
    """One landmark.

    Attributes:
        name: what the model calls it.
        position_mm: (x, y, z) of its middle, LPS+.
        weights: of the 15 polynomials of `directional_basis`. They were picked by a random search among -1, 0 and 1 so that the
            pattern correlates by less than 0.32 with itself under each of the other 47 signed axis permutations, by less than
            0.46 with another landmark under any of the 48, and by more than 0.7 with itself turned by 20 degrees.
    """

    name: str
    position_mm: tuple[float, float, float]
    weights: tuple[int, ...]


def _from_centre(x: float, y: float, z: float) -> tuple[float, float, float]:
    return (CENTRE_MM[0] + x, CENTRE_MM[1] + y, CENTRE_MM[2] + z)


LANDMARKS = (
    Landmark("anchor", _from_centre(-84, 24, -50), (1, -1, -1, 1, -1, -1, 0, 0, -1, -1, -1, -1, 0, 1, 0)),
    Landmark("beacon", _from_centre(30, -44, -50), (1, 0, 0, -1, -1, 0, 1, 0, 1, -1, 0, 0, -1, -1, 0)),
    Landmark("cairn", _from_centre(-30, -46, 44), (1, 0, -1, 0, 1, 0, -1, 0, -1, -1, 0, 0, 1, 1, 0)),
    Landmark("dial", _from_centre(92, 20, -14), (-1, -1, -1, 1, -1, 1, 0, 0, -1, -1, -1, 0, 1, 0, -1)),
)


def directional_basis(directions: Points) -> NDArray[np.float64]:
    """Return the real spherical harmonics of degree 1 to 3 as polynomials, each with mean square 1 over the sphere.

    Args:
        directions: (n, 3) unit vectors.

    Returns:
        (15, n): three of degree 1, five of degree 2, seven of degree 3 (the cubic ones, which the axes map onto each other).

    Source: cubic harmonics, von der Lage and Bethe, Phys. Rev. 71, 612 (1947).
    """
    x, y, z = directions.T
    s3, s5, s7, s15 = np.sqrt([3.0, 5.0, 7.0, 15.0])
    first = [s3 * axis for axis in (x, y, z)]
    second = [s15 * x * y, s15 * y * z, s15 * z * x, s15 / 2 * (x * x - y * y), s5 / 2 * (3 * z * z - 1)]
    third = [
        s7 * s15 * x * y * z,
        s7 * s15 / 2 * z * (x * x - y * y),
        s7 / 2 * z * (5 * z * z - 3),
        s7 / 2 * x * (5 * x * x - 3),
        s7 / 2 * y * (5 * y * y - 3),
        s7 * s15 / 2 * x * (y * y - z * z),
        s7 * s15 / 2 * y * (z * z - x * x),
    ]
    return np.array([*first, *second, *third])


def landmark_pattern(landmark: Landmark, offsets_mm: Points) -> NDArray[np.float64]:
    """Return a landmark's density without its contrast: dimensionless, 0 outside the shells, about -2.5 to 2.5 inside.

    Args:
        landmark: which one.
        offsets_mm: (n, 3) from its middle, LPS+.

    Returns:
        n values.
    """
    offsets = np.asarray(offsets_mm, np.float64)
    radius = np.sqrt((offsets**2).sum(axis=1))
    weights = np.array(landmark.weights, np.float64)
    directions = offsets / np.maximum(radius, 1e-9)[:, None]
    angular = weights @ directional_basis(directions) / np.sqrt((weights**2).sum())
    window = np.clip((LANDMARK_RADIUS_MM - radius) / _RAMP_MM, 0, 1) * np.clip(
        (radius - _SHELL_INNER_MM) / _RAMP_MM, 0, 1
    )
    return np.asarray(angular * np.cos(2 * np.pi * (radius - _SHELL_RADIUS_MM) / _SHELL_PERIOD_MM) * window)


def _share(distance_mm: Points) -> Points:
    """Return which share of a place is inside a surface, 0 to 1, from the distance to it (negative inside): a soft edge."""
    share: Points = np.clip(0.5 - distance_mm / _EDGE_MM, 0, 1)
    return share


def _ellipsoid(points: Points, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Points:
    scaled: Points = np.sqrt((((points - centre) / radii) ** 2).sum(axis=1))
    return (scaled - 1) * min(radii)


def _cylinder(points: Points, centre: tuple[float, float], radii: tuple[float, float]) -> Points:
    """Return the distance to a cylinder along z."""
    scaled: Points = np.sqrt((((points[:, :2] - centre) / radii) ** 2).sum(axis=1))
    return (scaled - 1) * min(radii)


def _torso(points: Points, inwards_mm: float) -> Points:
    """Return the distance to the torso's surface, moved inwards: wider towards the head, flatter towards the foot."""
    x, y, z = points.T
    half_width, half_depth = 146 + 0.10 * z - inwards_mm, 98 + 0.05 * z - inwards_mm
    scaled: Points = np.sqrt((x / half_width) ** 2 + (y / half_depth) ** 2)
    distance: Points = (scaled - 1) * half_depth
    return distance


def hu_at(points_lps_mm: Points) -> NDArray[np.float64]:
    """Return the phantom's Hounsfield units at places in the patient.

    Args:
        points_lps_mm: (n, 3), LPS+, mm.

    Returns:
        n values, continuous in the place: -1000 for air, about -820 lung-like, -100 fat-like, 0 to 110 soft, 300 to 700 bone-like.
    """
    points = np.asarray(points_lps_mm, np.float64) - CENTRE_MM
    x, y, z = points.T
    hu = np.full(len(points), -1000.0)

    def lay(value: float, distance_mm: Points) -> None:
        """Lay a body of one density over what is there."""
        share = _share(distance_mm)
        hu[:] += share * (value - hu)

    table = np.maximum(np.abs(y + 0.0006 * x * x - 112) - 4, np.abs(x) - 170)
    lay(-350, table)
    lay(-100, _torso(points, 0))
    lay(45, _torso(points, 13))
    cage = np.abs(_torso(points, 24)) - 4
    # Ribs fall towards the front, so they slant in a sagittal plane.
    rib = np.abs((z - 0.35 * y) % 32 - 16) - 5
    lay(560, np.maximum(np.maximum(cage, rib), 12 - np.abs(x)))
    lay(-820, _ellipsoid(points, (-70, -4, 62), (52, 62, 70)))
    lay(-790, _ellipsoid(points, (74, 8, 74), (42, 54, 56)))
    lay(60, _ellipsoid(points, (22, -36, 56), (44, 38, 36)))
    lay(105, _ellipsoid(points, (-58, -10, -46), (72, 62, 42)))
    lay(5, _ellipsoid(points, (70, -22, -32), (38, 34, 30)))
    lay(-1000, _ellipsoid(points, (76, -44, -22), (20, 11, 16)))
    lay(75, _ellipsoid(points, (92, 34, -48), (22, 32, 28)))
    disc = 5 - np.abs(z % 34 - 17)
    lay(95, _cylinder(points, (0, 52), (21, 17)))
    lay(380, np.maximum(_cylinder(points, (0, 52), (21, 17)), disc - 2))
    lay(700, np.maximum(np.abs(_cylinder(points, (0, 78), (11, 10))) - 2, disc - 2))
    lay(320, np.maximum(np.abs(x - 2) - 14, np.abs(y + 74) - 4))
    for landmark in LANDMARKS:
        _lay_landmark(hu, points, landmark)
    return hu


def _lay_landmark(hu: NDArray[np.float64], points: Points, landmark: Landmark) -> None:
    offsets = points - (np.array(landmark.position_mm) - CENTRE_MM)
    near = np.flatnonzero((np.abs(offsets) <= _INSERT_RADIUS_MM + _EDGE_MM).all(axis=1))
    offsets = offsets[near]
    density = LANDMARK_HU + LANDMARK_CONTRAST_HU * landmark_pattern(landmark, offsets)
    share = _share(np.sqrt((offsets**2).sum(axis=1)) - _INSERT_RADIUS_MM)
    hu[near] += share * (density - hu[near])


def plane_points(rows: int, columns: int, affine: NDArray[np.float64]) -> Points:
    """Return where the voxels of the first slice lie: (rows x columns, 3) mm, LPS+, i the fastest."""
    j, i = np.mgrid[:rows, :columns].reshape(2, -1).astype(np.float64)
    points: Points = i[:, None] * affine[:3, 0] + j[:, None] * affine[:3, 1] + affine[:3, 3]
    return points


def sample(
    shape: tuple[int, int, int], affine: NDArray[np.float64], noise_hu: float = 0.0, seed: int = 0
) -> NDArray[np.int16]:
    """Return the phantom on a grid, in whole Hounsfield units.

    Args:
        shape: (k, j, i).
        affine: 4x4, voxel index (i, j, k, 1) to mm, LPS+.
        noise_hu: standard deviation of the noise added, HU.
        seed: of the noise.

    Returns:
        (k, j, i), int16, between -1024 and 3071.
    """
    k, j, i = shape
    volume = np.empty(shape, np.int16)
    plane = plane_points(j, i, affine)
    bits = np.random.PCG64(seed)
    for index in range(k):
        hu = hu_at(plane + index * affine[:3, 2])
        if noise_hu:
            hu += noise_hu * _noise(bits, i * j)
        volume[index] = np.clip(np.rint(hu), -1024, 3071).reshape(j, i)
    return volume


def _noise(bits: np.random.PCG64, count: int) -> NDArray[np.float64]:
    """Return near-normal numbers of mean 0 and deviation 1 from raw bits, which NumPy keeps the same for ever, unlike `normal`."""
    words = np.asarray(bits.random_raw(count), np.uint64).view(np.uint16).reshape(count, 4)
    # The sum of four uniform numbers over 0 .. 65535 has the variance (65536**2 - 1) / 3.
    noise: NDArray[np.float64] = (words.sum(axis=1, dtype=np.float64) - 2 * 65535) / np.sqrt((65536.0**2 - 1) / 3)
    return noise
