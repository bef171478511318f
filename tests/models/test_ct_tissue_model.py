"""The network alone: its bands lie where the card's table says, exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

NETWORK = Path(__file__).resolve().parents[2] / "mdcli" / "models" / "ct-tissue" / "network.onnx"
# From the table in CARD.md: upper end of each band, which belongs to it.
UPPER_HU = (-1200, -900, -200, -30, 200)


@pytest.fixture(scope="module")
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(NETWORK, providers=["CPUExecutionProvider"])


def labels(session: onnxruntime.InferenceSession, hu: np.ndarray) -> np.ndarray:
    return session.run(None, {"image": hu.astype(np.float32)[None, None]})[0][0].argmax(axis=0)


def smoothed(hu: np.ndarray) -> np.ndarray:
    """Return (1, 2, 1)/4 along each axis, border voxels repeated, in integers: 64 times the smoothed value."""
    for axis in range(3):
        padded = np.concatenate([np.take(hu, [0], axis), hu, np.take(hu, [-1], axis)], axis)
        low, middle, high = (np.take(padded, range(start, start + hu.shape[axis]), axis) for start in (0, 1, 2))
        hu = low + 2 * middle + high
    return hu


@pytest.mark.parametrize("edge, below, above", [(edge, c, c + 1) for c, edge in enumerate(UPPER_HU)])
def test_an_edge_belongs_to_the_band_below_it(session, edge, below, above):
    assert (labels(session, np.full((4, 5, 6), edge)) == below).all()
    assert (labels(session, np.full((4, 5, 6), edge - 1)) == below).all()
    assert (labels(session, np.full((4, 5, 6), edge + 1)) == above).all()


def test_the_whole_range_of_ct_falls_into_the_bands_of_the_table(session):
    values = np.arange(-3024, 3072)
    # One value a plane, five planes thick, so that the middle one is not smoothed with another value.
    hu = np.repeat(values, 5)[:, None, None] * np.ones((1, 2, 2), np.int64)
    expected = np.searchsorted(UPPER_HU, values)
    assert np.array_equal(labels(session, hu)[2::5, 0, 0], expected)


def test_integers_give_the_labels_of_exact_arithmetic_at_every_voxel(session):
    hu = np.random.default_rng(1).integers(-1400, 900, (9, 20, 24))
    expected = np.searchsorted(np.array(UPPER_HU) * 64, smoothed(hu))
    assert np.array_equal(labels(session, hu), expected)


def test_a_slab_with_one_slice_of_halo_gives_what_the_whole_volume_gives(session):
    hu = np.random.default_rng(2).integers(-1400, 900, (12, 10, 10))
    assert np.array_equal(labels(session, hu[3:9])[1:-1], labels(session, hu)[4:8])


def test_a_mirrored_patient_gets_mirrored_labels_so_this_model_cannot_judge_geometry(session):
    hu = np.random.default_rng(3).integers(-1400, 900, (6, 8, 9))
    assert np.array_equal(labels(session, hu[:, :, ::-1])[:, :, ::-1], labels(session, hu))
