"""The phantom must be unlike itself in every way in which a chain can go wrong."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdcli.phantom.anatomy import CENTRE_MM, LANDMARKS, directional_basis, hu_at, landmark_pattern, sample

NAMES = [landmark.name for landmark in LANDMARKS]
SIGNED_PERMUTATIONS = [
    np.diag(signs)[list(order)] for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
]


def sphere(count: int = 3000) -> np.ndarray:
    """Return points spread evenly over the unit sphere (a Fibonacci lattice)."""
    turn = np.arange(count) + 0.5
    z = 1 - 2 * turn / count
    angle = np.pi * (1 + np.sqrt(5)) * turn
    return np.stack([np.sqrt(1 - z * z) * np.cos(angle), np.sqrt(1 - z * z) * np.sin(angle), z], axis=1)


def turned(points: np.ndarray, axis: tuple[float, float, float], degrees: float) -> np.ndarray:
    """Rotate points by Rodrigues' formula."""
    unit = np.array(axis) / np.linalg.norm(axis)
    angle = np.deg2rad(degrees)
    along = (points @ unit)[:, None] * unit
    return np.cos(angle) * (points - along) + np.sin(angle) * np.cross(unit, points) + along


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.corrcoef(first, second)[0, 1])


def test_the_directional_polynomials_are_orthonormal_over_the_sphere():
    basis = directional_basis(sphere())
    assert basis @ basis.T / 3000 == pytest.approx(np.eye(15), abs=2e-3)


@pytest.mark.parametrize("landmark", LANDMARKS, ids=NAMES)
def test_a_landmark_is_unlike_itself_under_every_mirror_swap_and_quarter_turn(landmark):
    points = sphere() * 15.0
    pattern = landmark_pattern(landmark, points)
    others = [turn for turn in SIGNED_PERMUTATIONS if not np.array_equal(turn, np.eye(3))]
    assert len(others) == 47
    assert max(correlation(pattern, landmark_pattern(landmark, points @ turn)) for turn in others) < 0.32


def test_no_landmark_is_like_another_under_any_of_the_48():
    points = sphere() * 15.0
    for first, second in permutations(LANDMARKS, 2):
        pattern = landmark_pattern(first, points)
        assert max(correlation(pattern, landmark_pattern(second, points @ t)) for t in SIGNED_PERMUTATIONS) < 0.46


@pytest.mark.parametrize("landmark", LANDMARKS, ids=NAMES)
def test_a_landmark_is_still_like_itself_when_turned_by_20_degrees(landmark):
    points = sphere() * 15.0
    pattern = landmark_pattern(landmark, points)
    for axis in product((-1, 0, 1), repeat=3):
        if any(axis):
            assert correlation(pattern, landmark_pattern(landmark, turned(points, axis, 20))) > 0.7


def test_the_landmarks_form_no_figure_that_a_mirror_or_a_turn_brings_onto_itself():
    places = np.array([landmark.position_mm for landmark in LANDMARKS])
    centred = places - places.mean(axis=0)
    for turn in SIGNED_PERMUTATIONS:
        if np.array_equal(turn, np.eye(3)):
            continue
        moved = centred @ turn
        for order in permutations(range(4)):
            assert np.linalg.norm(moved[list(order)] - centred, axis=1).max() > 20.0


@pytest.mark.parametrize(
    "offset, low, high",
    [
        pytest.param((0, -140, 0), -1000, -1000, id="air in front of the patient"),
        pytest.param((-70, -4, 80), -830, -810, id="right lung"),
        pytest.param((74, 8, 84), -800, -780, id="left lung"),
        pytest.param((-58, -30, -40), 100, 110, id="liver, on the right"),
        pytest.param((76, -44, -22), -1000, -1000, id="stomach gas, on the left"),
        pytest.param((0, 52, 0), 370, 390, id="vertebra, at the back"),
        pytest.param((0, -92, 0), -110, -90, id="fat under the skin, in front"),
        pytest.param((84, 34, -80), 40, 80, id="soft tissue"),
    ],
)
def test_each_part_lies_where_the_patient_has_it(offset, low, high):
    value = hu_at(np.array([CENTRE_MM]) + offset)[0]
    assert low <= value <= high


@given(
    place=st.tuples(st.floats(-170, 170), st.floats(-110, 120), st.floats(-100, 100)),
    step=st.tuples(*[st.floats(-1e-3, 1e-3)] * 3),
)
def test_the_density_is_continuous(place, step):
    here = np.array([CENTRE_MM]) + place
    # No edge is sharper than 1,700 HU over 2 mm times the steepest of the approximate distances (below 8).
    assert abs(hu_at(here + step)[0] - hu_at(here)[0]) <= 1700 / 2 * 8 * np.linalg.norm(step) + 1e-6


def test_a_sample_holds_the_value_at_each_voxels_place():
    affine = np.array([[0.0, 3.0, 0.5, -60.0], [4.0, 0.0, 0.0, -70.0], [0.5, 0.0, 5.0, -300.0], [0, 0, 0, 1]])
    volume = sample((7, 11, 13), affine)
    for k, j, i in ((0, 0, 0), (6, 10, 12), (3, 2, 9)):
        assert volume[k, j, i] == np.rint(hu_at((affine @ (i, j, k, 1))[None, :3])[0])


def test_the_noise_has_the_deviation_that_was_asked_for_and_comes_back_the_same():
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = np.array(CENTRE_MM) + np.array([80, 24, -90])
    clean, noisy = sample((8, 8, 8), affine), sample((8, 8, 8), affine, 50.0, seed=3)
    difference = noisy.astype(float) - clean
    assert abs(difference.mean()) < 5 * 50 / np.sqrt(512)
    assert difference.std() == pytest.approx(50, rel=0.15)
    assert np.array_equal(noisy, sample((8, 8, 8), affine, 50.0, seed=3))
    assert not np.array_equal(noisy, sample((8, 8, 8), affine, 50.0, seed=4))
