"""Resampling by cubic splines, held to what nnU-Net itself gave (scripts/make_nnunet_reference.py) and to arithmetic."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdcli.inference.spline import (
    Cubic,
    CubicRows,
    cubic_axes,
    nearest,
    positions,
    ranges_of,
    resample_cubic,
    resized,
    separate_axis,
)
from tests.nnunet_cases import DATA, RESAMPLED, noise


@pytest.fixture(scope="module")
def parts() -> dict[str, np.ndarray]:
    with np.load(DATA / "parts.npz") as found:
        return dict(found)


@pytest.mark.parametrize("name", RESAMPLED)
def test_a_volume_is_resampled_as_nnunet_does_to_a_millionth_of_its_range(parts, name):
    shape, spacing, wanted = RESAMPLED[name]
    theirs = parts[f"cubic {name}"]
    size = resized(shape, spacing, wanted)
    assert size == theirs.shape
    ours = resample_cubic(noise(shape), size, separate_axis(spacing, wanted))
    assert np.abs(ours - theirs).max() < 1e-6 * np.ptp(theirs)


@pytest.mark.parametrize("name", RESAMPLED)
def test_a_volume_that_the_network_sees_reversed_is_resampled_in_its_direction(parts, name):
    shape, spacing, wanted = RESAMPLED[name]
    theirs = parts[f"cubic {name}"][::-1, ::-1, ::-1]
    seen = np.ascontiguousarray(noise(shape)[::-1, ::-1, ::-1])
    ours = resample_cubic(seen, theirs.shape, separate_axis(spacing, wanted), (True, True, True))
    assert np.abs(ours - theirs).max() < 1e-6 * np.ptp(theirs)


@pytest.mark.parametrize(
    "spacing, wanted, axis",
    [
        pytest.param((5.0, 1.0, 1.0), (1.0, 1.0, 1.0), 0, id="the volume's thick axis"),
        pytest.param((1.0, 1.0, 1.0), (1.0, 4.0, 1.0), 1, id="else the thick axis of the grid wanted"),
        pytest.param((3.0, 1.0, 1.0), (1.0, 1.0, 1.0), None, id="three times is not more than three times"),
        pytest.param((0.2, 1.0, 1.0), (4.0, 1.0, 1.0), None, id="two thick axes: the other grid is not asked"),
        pytest.param((4.0, 1.0, 1.0), (1.0, 9.0, 1.0), 0, id="the volume decides before the grid wanted"),
    ],
)
def test_the_axis_that_is_resampled_apart(spacing, wanted, axis):
    assert separate_axis(spacing, wanted) == axis
    assert separate_axis(spacing, wanted, None) is None


def test_new_samples_lie_between_the_old_ones_by_their_outer_edges():
    # 4 voxels of 1 mm from -.5 to 3.5; 2 voxels of 2 mm have their middles at .5 and 2.5, 8 of half a mm at -.25, .25 ...
    assert positions(4, 2).tolist() == [0.5, 2.5]
    assert positions(4, 8).tolist() == [-0.25, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3.25]


def test_a_sample_half_way_takes_the_later_slice_in_the_networks_direction():
    assert nearest(4, 2).tolist() == [1, 3]
    assert nearest(4, 2, flip=True).tolist() == [0, 2]
    assert nearest(2, 4).tolist() == [0, 0, 1, 1]


def test_sizes_are_rounded_half_to_even():
    # 5 voxels of 1 mm at 2 mm are 2.5 voxels, 7 are 3.5.
    assert resized((5, 7, 1), (1.0, 1.0, 1.0), (2.0, 2.0, 9.0)) == (2, 4, 1)


@given(st.integers(1, 40), st.integers(1, 60))
def test_the_weights_of_every_sample_add_up_to_one(old, new):
    for _, _, weights in Cubic(old, new).blocks:
        np.testing.assert_allclose(weights.sum(axis=1, dtype=np.float64), 1, atol=1e-6)


@given(st.integers(1, 40))
def test_a_spline_goes_through_its_samples(size):
    weights = Cubic(size, size).weights(0, size)
    np.testing.assert_allclose(weights, np.eye(size), atol=1e-6)


@given(st.data())
def test_slabs_are_the_same_whatever_their_bounds(data):
    shape = data.draw(st.tuples(*[st.integers(1, 12)] * 3))
    size = data.draw(st.tuples(st.integers(1, 80), *[st.integers(1, 12)] * 2))
    separate = data.draw(st.sampled_from([None, 0, 1, 2]))
    array = noise(shape)
    whole = resample_cubic(array, size, separate)
    rows = CubicRows(
        lambda index: array[index], cubic_axes(shape, size, separate), ranges_of(array, separate), separate
    )
    cuts = sorted({0, size[0], *data.draw(st.lists(st.integers(0, size[0]), max_size=4))})
    slabs = [rows.rows(a, b) for a, b in itertools.pairwise(cuts)]
    # Each matrix product may round otherwise.
    np.testing.assert_allclose(np.concatenate(slabs), whole, rtol=0, atol=2e-6 * max(1.0, float(np.ptp(array))))
    assert whole.min() >= array.min()
    assert whole.max() <= array.max()
