"""The network alone, on grids sampled here: it sees handedness, axis order and scale, and stands noise and oblique cuts."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from mdcli.phantom.anatomy import CENTRE_MM, LANDMARKS, hu_at

NETWORK = Path(__file__).resolve().parents[2] / "mdcli" / "models" / "landmarks" / "network.onnx"
SPACING_MM = (2.5, 2.5, 3.5)
THRESHOLD = 0.55
# RAS+ offsets that hold all four landmarks with their surroundings.
LOW_MM, HIGH_MM = (-126.0, -60.0, -84.0), (118.0, 80.0, 80.0)
NAMES = [landmark.name for landmark in LANDMARKS]


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    return onnxruntime.InferenceSession(NETWORK, options, providers=["CPUExecutionProvider"])


def places(spacing_mm=SPACING_MM, shift_mm: float = 0.0, turn: np.ndarray | None = None) -> np.ndarray:
    """Return the places of a grid [x, y, z] whose axes run to the right, the front and the head: (x, y, z, 3), LPS+."""
    axes = [np.arange(low, high, step) + shift_mm for low, high, step in zip(LOW_MM, HIGH_MM, spacing_mm, strict=True)]
    ras = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    lps = ras * (-1.0, -1.0, 1.0)
    return (lps if turn is None else lps @ turn.T) + CENTRE_MM


def image(points: np.ndarray) -> np.ndarray:
    return hu_at(points.reshape(-1, 3)).reshape(points.shape[:3])


def scores(session: onnxruntime.InferenceSession, hu: np.ndarray) -> np.ndarray:
    """Return [5, x, y, z], with the intensity steps that the card asks for done by hand."""
    scaled = (np.clip(hu, -1000, 1000) / 1000).astype(np.float32)
    return session.run(None, {"image": scaled[None, None]})[0][0]


def found(labels: np.ndarray, points: np.ndarray) -> list[np.ndarray | None]:
    """Return each landmark's centroid in mm, LPS+, or None."""
    return [points[labels == c].mean(axis=0) if (labels == c).any() else None for c in range(1, 5)]


@pytest.mark.parametrize("shift_mm", [0.0, 0.8, 1.3])
def test_each_landmark_is_found_within_a_millimetre_and_a_quarter_of_its_place(session, shift_mm):
    points = places(shift_mm=shift_mm)
    # 1.25 mm is half a voxel of the network's grid.
    for landmark, centroid in zip(LANDMARKS, found(scores(session, image(points)).argmax(axis=0), points), strict=True):
        assert centroid is not None, landmark.name
        assert np.linalg.norm(centroid - landmark.position_mm) < 1.25, landmark.name


def test_a_landmark_is_one_small_blob(session):
    labels = scores(session, image(places())).argmax(axis=0)
    for value in range(1, 5):
        extent = np.ptp(np.argwhere(labels == value), axis=0) + 1
        assert (extent * SPACING_MM <= 15).all(), extent


@pytest.mark.slow
def test_none_of_the_47_mirrors_swaps_and_quarter_turns_is_taken_for_a_landmark(session):
    hu = image(places(shift_mm=0.8))
    tried = 0
    for order in permutations(range(3)):
        for steps in product((1, -1), repeat=3):
            wrong = hu.transpose(order)[:: steps[0], :: steps[1], :: steps[2]]
            highest = scores(session, np.ascontiguousarray(wrong))[1:].max(axis=(1, 2, 3))
            if (order, steps) == ((0, 1, 2), (1, 1, 1)):
                assert (highest > 0.7).all()
                continue
            assert (highest < 0.5).all(), (order, steps, highest)
            tried += 1
    assert tried == 47


@pytest.mark.parametrize("factor", [0.85, 1.15])
def test_a_scale_15_percent_off_is_seen(session, factor):
    wrong = scores(session, image(places(np.array(SPACING_MM) * factor)))
    assert (wrong[1:].max(axis=(1, 2, 3)) < THRESHOLD - 0.04).all()


@pytest.mark.parametrize("spacing_mm", [(3.5, 2.5, 2.5), (2.5, 3.5, 2.5)])
def test_spacing_in_another_order_is_seen(session, spacing_mm):
    wrong = scores(session, image(places(spacing_mm)))
    assert (wrong[1:].max(axis=(1, 2, 3)) < THRESHOLD - 0.04).all()


@pytest.mark.parametrize("axis", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1), (1, -1, 0)])
def test_a_cut_20_degrees_oblique_still_shows_all_four(session, axis):
    unit = np.array(axis) / np.linalg.norm(axis)
    cross = np.cross(np.eye(3), unit) * -1
    turn = np.eye(3) + np.sin(np.deg2rad(20)) * cross + (1 - np.cos(np.deg2rad(20))) * cross @ cross
    points = places(turn=turn)
    for landmark, centroid in zip(LANDMARKS, found(scores(session, image(points)).argmax(axis=0), points), strict=True):
        assert centroid is not None, landmark.name
        assert np.linalg.norm(centroid - landmark.position_mm) < 2.5, landmark.name


def test_noise_of_60_hu_hides_none_and_makes_none(session):
    points = places(shift_mm=0.8)
    noise = np.random.default_rng(0).normal(0, 60, points.shape[:3])
    labels = scores(session, image(points) + noise).argmax(axis=0)
    for landmark, centroid in zip(LANDMARKS, found(labels, points), strict=True):
        assert centroid is not None and np.linalg.norm(centroid - landmark.position_mm) < 2.0, landmark.name


@pytest.mark.parametrize("level", [-1000.0, 0.0, 40.0, 1000.0])
def test_flat_neighbourhoods_give_no_nan_and_no_landmark(session, level):
    flat = scores(session, np.full((24, 24, 20), level))
    assert np.isfinite(flat).all()
    assert (flat.argmax(axis=0) == 0).all()
    assert (flat[0] == np.float32(THRESHOLD)).all()
