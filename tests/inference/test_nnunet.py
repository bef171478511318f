"""What nnU-Net does before its network, held to what it gave itself (scripts/make_nnunet_reference.py) and to arithmetic."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdcli.errors import ConfigError, DataError
from mdcli.inference.card import Clip, Normalize, Percentiles, ScaleVolume, Step
from mdcli.inference.nnunet import NnUNetRows, even_starts, nonzero_box, nonzero_mask, point_weights
from tests.nnunet_cases import DATA, FOREGROUND, PREPARED, SIZES, WINDOWS, with_zeros


@pytest.fixture(scope="module")
def parts() -> dict[str, np.ndarray]:
    with np.load(DATA / "parts.npz") as found:
        return dict(found)


def steps(scheme: str, masked: bool) -> tuple[Step, ...]:
    return {
        "CTNormalization": (
            Clip(FOREGROUND["percentile_00_5"], FOREGROUND["percentile_99_5"]),
            Normalize(FOREGROUND["mean"], FOREGROUND["std"]),
        ),
        "ZScoreNormalization": (Normalize(None, None, "mask" if masked else "volume"),),
        "RescaleTo01Normalization": (ScaleVolume((0.0, 1.0)),),
        "NoNormalization": (),
    }[scheme]


@pytest.mark.parametrize("name", PREPARED)
def test_a_volume_is_cropped_normalised_and_resampled_as_nnunet_does(parts, name):
    schemes, masks, spacing, wanted = PREPARED[name]
    said = [steps(scheme, masked) for scheme, masked in zip(schemes, masks, strict=True)]
    rows = NnUNetRows(list(with_zeros(len(schemes))), spacing, (None,) * (3 - len(wanted)) + wanted, said)
    theirs = parts[f"prepared {name}"]
    assert [[part.start, part.stop] for part in rows.box] == parts[f"box {name}"].tolist()
    ours = rows.whole()
    assert ours.shape == theirs.shape
    for mine, reference in zip(ours, theirs, strict=True):
        assert np.abs(mine - reference).max() < 1e-6 * np.ptp(reference)
    slabs = np.concatenate([rows.rows(0, 5), rows.rows(5, ours.shape[1])], axis=1)
    np.testing.assert_allclose(slabs, ours, rtol=0, atol=1e-5)


def test_the_mask_is_what_is_not_0_with_its_holes_filled(parts):
    channels = list(with_zeros(2))
    box = nonzero_box(channels)
    np.testing.assert_array_equal(nonzero_mask(channels, box), parts["mask"][box])
    # The hole of 4 x 4 x 3 voxels is filled, the bay of 2 x 3 x 3 at the box's side is not.
    assert nonzero_mask(channels, box).sum() == 10 * 14 * 11 - 2 * 3 * 3


def test_a_volume_of_nothing_but_0_is_used_whole_and_cannot_be_normalised_by_its_mask():
    empty = np.zeros((3, 4, 5), np.int16)
    assert nonzero_box([empty]) == (slice(0, 3), slice(0, 4), slice(0, 5))
    with pytest.raises(DataError, match="every voxel is 0") as caught:
        NnUNetRows([empty], (1, 1, 1), (1, 1, 1), [(Normalize(None, None, "mask"),)])
    assert caught.value.code == "no-statistics"


def test_a_volume_of_one_value_becomes_0_and_is_not_divided_by_0():
    same = np.full((3, 4, 5), 7, np.int16)
    for step in (Normalize(None, None, "volume"), ScaleVolume((0.0, 1.0))):
        assert not NnUNetRows([same], (1, 1, 1), (1, 1, 1), [(step,)]).whole().any()


def test_a_step_that_nnunet_does_not_have_is_refused():
    with pytest.raises(ConfigError) as caught:
        NnUNetRows([np.ones((2, 2, 2))], (1, 1, 1), (1, 1, 1), [(Percentiles(1, 99, (0, 1)),)])
    assert caught.value.code == "bad-card"


@pytest.mark.parametrize("window", WINDOWS)
def test_the_weights_of_a_window_are_nnunets_own_to_the_last_bit(parts, window):
    np.testing.assert_array_equal(point_weights(window), parts[f"weights {window}"].astype(np.float32))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("size", SIZES)
def test_windows_start_where_nnunets_do(parts, window, size):
    ours = [start for length in window for start in even_starts(size, length)]
    assert ours == parts[f"starts {window} {size}"].tolist()


@given(st.integers(1, 50), st.integers(0, 200), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_windows_cover_the_axis_and_are_never_further_apart_than_their_step(window, more, step):
    starts = even_starts(window + more, window, step)
    assert starts[0] == 0
    assert starts[-1] == more
    assert all(0 <= b - a <= window * step + 1 for a, b in itertools.pairwise(starts))
