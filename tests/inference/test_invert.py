"""Back to the volume's own grid: against MONAI, and by what must hold."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mdcli.errors import DataError
from mdcli.inference.card import Crop, Input, Output
from mdcli.inference.grid import network_grid
from mdcli.inference.invert import Inverter, activate, count_labels, highest_channel
from mdcli.inference.windows import Block
from tests.inference.test_preprocess import AXIAL, GEOMETRIES, LPS_FROM_RAS, MONAI, SPACINGS

ROWS = 3


def gives(inversion="scores", activation="none") -> Output:
    return Output(("C", "x", "y", "z"), activation, inversion)


def wants(spacing="as-acquired", orientation="RAS") -> Input:
    return Input(("C", "x", "y", "z"), orientation, spacing, "HU")


def invert(grid, output, scores, size=(ROWS, 4, 5), **receivers):
    """Return the labels of the volume, the scores (C, k, j, i) being given in blocks."""
    labels = np.zeros(grid.source_shape, np.uint8)
    receivers = receivers or {"labels": labels}
    inverter = Inverter(grid, output, **receivers)
    steps = [range(0, n, step) for n, step in zip(grid.shape, size, strict=True)]
    for starts in itertools.product(*steps):
        again = tuple(int(needed and start > 0) for needed, start in zip(inverter.needs_last, starts, strict=True))
        first = tuple(start - n for start, n in zip(starts, again, strict=True))
        region = tuple(slice(a, start + n) for a, start, n in zip(first, starts, size, strict=True))
        inverter.take(Block(first, scores[(slice(None), *region)].copy(), again))
    return labels


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_interpolated_scores_give_the_labels_of_monai(geometry, spacing):
    monai = np.load(MONAI)
    shape = monai[f"{geometry}_volume"].shape[:0:-1]
    grid = network_grid(shape, LPS_FROM_RAS @ monai[f"{geometry}_affine_ras"], wants(SPACINGS[spacing]))
    scores = grid.from_network(monai[f"{geometry}_{spacing}_scores"], grid.order)
    back = monai[f"{geometry}_{spacing}_back"].transpose(0, 3, 2, 1)
    found = invert(grid, gives(), scores)
    top = np.sort(back, axis=0)
    clear = top[-1] - top[-2] > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(found[clear], back.argmax(0)[clear])


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_probabilities_are_what_is_interpolated(activation):
    # One axis, two voxels of scores, and the volume's middle voxel half-way between them.
    volume = np.diag([1.0, 1.0, 1.0, 1.0])
    grid = network_grid((3, 1, 1), volume, wants((1.0, 1.0, 2.0)))
    # Channel 1 is sure at the second voxel only; channel 0 is mildly for itself at both.
    scores = np.array([[0.5, 0.5], [-1.5, 9.0]], np.float32)[:, :, None, None]
    middle = {
        # Mean of scores: 0.5 against 3.75.
        "none": 1,
        # softmax at the ends: channel 1 has 0.119 and 0.9998, in the mean 0.559.
        "softmax": 1,
        # Above 0.5 in the mean: channel 0 has 0.62; channel 1 has (0.18 + 1) / 2 = 0.59: both claim the voxel.
        "sigmoid": None,
    }[activation]
    if middle is None:
        with pytest.raises(DataError) as error:
            invert(grid, gives(activation=activation), scores)
        assert error.value.code == "overlap"
    else:
        assert invert(grid, gives(activation=activation), scores)[:, 0, 0].tolist() == [0, middle, 1]


def test_one_extreme_score_does_not_outvote_probabilities():
    grid = network_grid((3, 1, 1), np.eye(4), wants((1.0, 1.0, 2.0)))
    # Raw: channel 1 wins the middle by (-3 + 100) / 2. As probabilities: 0.0025 at one end, 1 at the other: 0.501. With three
    # quarters of the way towards the first, 0.25 x 1 + 0.75 x 0.0025 loses.
    scores = np.array([[3, 0], [-3, 100]], np.float32)[:, :, None, None]
    fine = network_grid((5, 1, 1), np.diag([1.0, 1.0, 0.5, 1.0]), wants((1.0, 1.0, 2.0)))
    assert invert(grid, gives(), scores)[:, 0, 0].tolist() == [0, 1, 1]
    assert invert(fine, gives(), scores)[:, 0, 0].tolist() == [0, 1, 1, 1, 1]
    assert invert(fine, gives(activation="softmax"), scores)[:, 0, 0].tolist() == [0, 0, 1, 1, 1]


@settings(deadline=None)
@given(
    st.tuples(*[st.integers(1, 9)] * 3),
    st.tuples(*[st.floats(0.4, 3)] * 3),
    st.sampled_from(["RAS", "LPI", "as-acquired"]),
    st.sampled_from(["scores", "labels"]),
    st.tuples(*[st.integers(1, 5)] * 3),
    st.integers(0, 2**32 - 1),
)
def test_blocks_may_come_in_any_portions(shape, spacing, orientation, inversion, size, seed):
    grid = network_grid(shape, np.eye(4), wants(spacing, orientation))
    scores = np.random.default_rng(seed).normal(size=(3, *grid.shape)).astype(np.float32)
    whole = invert(grid, gives(inversion), scores, size=grid.shape)
    found = invert(grid, gives(inversion), scores, size=size)
    differ = found != whole
    if inversion == "labels":
        assert not differ.any()
    elif differ.any():
        # A matrix product of another size rounds otherwise: only where two scores are alike to the last bits.
        kept = np.zeros((3, *grid.source_shape), np.float32)
        invert(grid, gives(inversion), scores, size=grid.shape, kept=list(kept))
        top = np.sort(kept, axis=0)
        assert (top[-1] - top[-2])[differ].max() < 1e-5


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.floats(0.4, 3)] * 3), st.integers(0, 2))
def test_a_network_that_says_one_label_everywhere_gives_it_everywhere(shape, spacing, label):
    grid = network_grid(shape, np.eye(4), wants(spacing))
    scores = np.zeros((3, *grid.shape), np.float32)
    scores[label] = 1
    for inversion in ("scores", "labels"):
        assert (invert(grid, gives(inversion), scores) == label).all()


def test_labels_go_to_the_nearest_voxel_and_are_never_mixed():
    # Labels 0 and 2 on a grid of 2 mm, voxels of 0.5 mm: the border is half-way, and no label 1 appears between them.
    grid = network_grid((9, 1, 1), np.diag([1.0, 1.0, 0.5, 1.0]), wants((1.0, 1.0, 2.0), "as-acquired"))
    assert grid.shape == (3, 1, 1)
    scores = np.zeros((3, 3, 1, 1), np.float32)
    scores[0, 0], scores[2, 1], scores[2, 2] = 1, 1, 1
    # Half-way (index 2 of 0 to 4) goes to the even voxel, as in torch.
    assert invert(grid, gives("labels"), scores)[:, 0, 0].tolist() == [0, 0, 0, 2, 2, 2, 2, 2, 2]


@settings(deadline=None)
@given(
    arrays(np.float32, st.tuples(*[st.integers(1, 6)] * 4), elements=st.floats(-4, 4, width=32)),
    st.permutations([1, 2, 3]),
    st.booleans(),
)
def test_the_highest_channel_is_that_of_argmax(scores, order, mirrored):
    laid_out = scores.transpose(0, *order)[:, :: -1 if mirrored else 1]
    for activation in ("none", "softmax"):
        found = highest_channel(laid_out, gives(activation=activation))
        np.testing.assert_array_equal(found, laid_out.argmax(0))
        assert found.flags.c_contiguous and found.dtype == np.uint8


def test_more_than_255_labels_take_two_bytes():
    scores = np.zeros((301, 1, 1, 2), np.float32)
    scores[300, 0, 0, 1] = 1
    found = highest_channel(scores, gives())
    assert found.dtype == np.uint16 and found.ravel().tolist() == [0, 300]


def test_sigmoid_channels_count_from_probability_one_half():
    scores = np.array([[-0.1, 0.0, 2.0], [-3.0, -1.0, -0.5]], np.float32)[:, None, None]
    assert highest_channel(scores, gives(activation="sigmoid")).ravel().tolist() == [0, 1, 1]
    scores[1, 0, 0, 2] = 0.0
    with pytest.raises(DataError, match="labels 1 and 2 claim 1 voxels") as error:
        highest_channel(scores, gives(activation="sigmoid"))
    assert error.value.code == "overlap"


def test_probabilities_are_those_of_the_textbook():
    scores = np.array([[0.0, 1000.0], [np.log(3), -1000.0]], np.float32)[:, None, None]
    np.testing.assert_allclose(
        activate(scores.copy(), gives(activation="softmax"))[:, 0, 0], [[0.25, 1], [0.75, 0]], atol=1e-6
    )
    np.testing.assert_allclose(
        activate(scores.copy(), gives(activation="sigmoid"))[:, 0, 0], [[0.5, 1], [0.75, 0]], atol=1e-6
    )
    np.testing.assert_array_equal(activate(scores.copy(), gives()), scores)


@given(arrays(np.uint8, st.tuples(*[st.integers(1, 5)] * 3), elements=st.integers(0, 20)), st.sampled_from([20, 40]))
def test_voxels_are_counted_by_label(labels, largest):
    counts = count_labels(labels, largest)
    assert counts.tolist() == [int((labels == n).sum()) for n in range(largest + 1)]


def test_the_volume_given_back_is_on_its_own_grid():
    grid = network_grid((4, 5, 6), AXIAL, wants())
    labels = np.arange(120, dtype=np.uint8).reshape(4, 5, 6) % 3
    scores = (labels == np.arange(3)[:, None, None, None]).astype(np.float32)
    np.testing.assert_array_equal(invert(grid, gives(), scores), labels)


def test_masks_may_overlap_and_regions_are_written_over_each_other():
    grid = network_grid((1, 1, 3), np.eye(4), wants())
    output = replace(gives(activation="sigmoid"), threshold=0.75, form="masks", regions_order=(2, 1))
    # log 3 is a probability of 0.75.
    scores = np.array([[0, 2, 2], [-1, 1.0, 3]], np.float32)[:, None, None]
    masks = [np.zeros(grid.source_shape, np.uint8) for _ in range(2)]
    invert(grid, output, scores, masks=masks)
    assert [mask.ravel().tolist() for mask in masks] == [[0, 1, 1], [0, 0, 1]]
    regions = np.zeros(grid.source_shape, np.uint8)
    invert(grid, output, scores, regions=regions)
    assert regions.ravel().tolist() == [0, 2, 1]


@pytest.mark.parametrize("inversion", ["scores", "logits"])
def test_logits_are_interpolated_before_the_activation_and_scores_after_it(inversion):
    # Two voxels with logits -20 and 20 (probabilities 0 and 1), the volume's at the ends and half-way between: for the logits the
    # middle is 0, which is 0.5; so it is for the probabilities. A quarter of the way: 0.25, or logit -10, which is 0.
    grid = network_grid((5, 1, 1), np.diag([1.0, 1.0, 0.5, 1.0]), wants((1.0, 1.0, 2.0)))
    kept = np.zeros((1, 5, 1, 1), np.float32)
    output = replace(gives(inversion, "sigmoid"), form="masks")
    invert(grid, output, np.array([[-20, 20]], np.float32)[:, :, None, None], kept=list(kept))
    quarter = {"scores": 0.25, "logits": 1 / (1 + np.exp(10))}[inversion]
    np.testing.assert_allclose(kept.ravel(), [0, quarter, 0.5, 1 - quarter, 1], atol=1e-6)


def test_what_a_cropped_grid_does_not_speak_for_stays_background():
    wanted = replace(wants("as-acquired", "as-acquired"), crop=Crop())
    grid = network_grid((4, 1, 6), np.eye(4), wanted, ((1, 3), (0, 1), (2, 5)))
    assert grid.shape == (2, 1, 3)
    labels = invert(grid, gives(), np.stack([np.zeros(grid.shape), np.ones(grid.shape)]).astype(np.float32))
    assert labels[:, 0].tolist() == [[0] * 6, [0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 1, 0], [0] * 6]
