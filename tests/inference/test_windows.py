"""Windows and blending: against MONAI, against the plain way, and by what must hold for any size."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdcli.inference.windows import Blender, Tiling, extract, gaussian_weights, haloed_parts, overlapping_parts

MONAI = Path(__file__).parent / "data" / "monai.npz"

sizes = st.tuples(*[st.integers(1, 14)] * 3)
overlaps = st.sampled_from([0.0, 0.25, 0.5, 0.625, 0.9])
walks = st.permutations([0, 1, 2]).map(tuple)
once_more = st.tuples(*[st.booleans()] * 3)


def tiling(
    shape, window, overlap=None, *, halo=(0, 0, 0), gaussian=True, flips=(False,) * 3, walk=(0, 1, 2), even=False
) -> Tiling:
    if overlap is None:
        parts = [haloed_parts(*sizes) for sizes in zip(shape, window, halo, strict=True)]
        return Tiling(shape, window, tuple(parts), None, walk)
    parts = [overlapping_parts(n, w, overlap, flip=f, even=even) for n, w, f in zip(shape, window, flips, strict=True)]
    weights = gaussian_weights(window) if gaussian else np.ones(window, np.float32)
    return Tiling(shape, window, tuple(parts), weights, walk)


def gathered(cut: Tiling, outputs, channels, *, normalise=True, again=(False, False, False)):
    """Return the blended scores (C, k, j, i) of windows, each voxel of which must be given once, or once more the same."""
    blender = Blender(cut, normalise=normalise, again=again)
    found = np.zeros((channels, *cut.shape), np.float32)
    times = np.zeros(cut.shape, int)
    for window, scores in zip(cut.windows(), outputs, strict=True):
        block = blender.add(window, scores)
        region = tuple(slice(a, a + n) for a, n in zip(block.start, block.scores.shape[1:], strict=True))
        new = tuple(slice(a + n, part.stop) for a, n, part in zip(block.start, block.again, region, strict=True))
        before = found[(slice(None), *region)].copy()
        known = times[region] > 0
        np.testing.assert_array_equal(block.scores[:, known], before[:, known])
        found[(slice(None), *region)] = block.scores
        times[new] += 1
    assert (times == 1).all()
    return found


def run(cut: Tiling, volume, network, outside=0.0, normalise=True):
    """Return the blended scores (C, k, j, i) of a network given as a function of (k, j, i)."""
    outputs = [
        network(extract(volume[None], 0, 0, window, cut.window, outside)[0]).copy()
        for _, windows in cut.rows()
        for window in windows
    ]
    return gathered(cut, outputs, len(outputs[0]), normalise=normalise)


@pytest.mark.parametrize(
    "size, window, overlap, expected",
    [
        pytest.param(192, 96, 0.25, [0, 72, 96], id="three windows, the last shifted back"),
        pytest.param(144, 96, 0.25, [0, 48], id="two"),
        pytest.param(96, 96, 0.5, [0], id="one"),
        pytest.param(168, 96, 0.25, [0, 72], id="two that end with the axis"),
        pytest.param(9, 16, 0.25, [-3], id="smaller than the window: 3 before, 4 after"),
        pytest.param(10, 2, 0.9, list(range(9)), id="at least one voxel a step"),
    ],
)
def test_windows_start_where_monai_starts_them(size, window, overlap, expected):
    assert [part.start for part in overlapping_parts(size, window, overlap)] == expected


def test_a_reversed_axis_has_its_windows_counted_from_the_other_end():
    # 192 - 96 - start, for the starts 0, 72, 96 of the axis as the network sees it.
    assert [part.start for part in overlapping_parts(192, 96, 0.25, flip=True)] == [0, 24, 96]
    assert [part.start for part in overlapping_parts(9, 16, 0.25, flip=True)] == [-4]


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 4))
def test_with_a_halo_every_voxel_is_kept_once_and_lies_inside_it(size, window, halo):
    window = max(window, 2 * halo + 1)
    parts = haloed_parts(size, window, halo)
    assert [v for part in parts for v in range(*part.keep)] == list(range(size))
    for part in parts:
        assert part.keep[0] == 0 or part.keep[0] >= part.start + halo
        assert part.keep[1] == size or part.keep[1] <= part.start + window - halo
        assert size <= window or 0 <= part.start <= size - window


@settings(deadline=None)
@given(sizes, sizes, overlaps, st.booleans(), st.tuples(*[st.booleans()] * 3))
def test_a_network_that_always_says_the_same_says_it_everywhere(shape, window, overlap, gaussian, flips):
    cut = tiling(shape, window, overlap, gaussian=gaussian, flips=flips)
    said = run(cut, np.zeros(shape, np.float32), lambda x: np.full((2, *x.shape), 3.5, np.float32))
    assert said.shape == (2, *shape)
    np.testing.assert_allclose(said, 3.5, rtol=1e-5)


@settings(deadline=None)
@given(sizes, sizes, overlaps, st.booleans(), walks, once_more, st.booleans(), st.integers(0, 2**32 - 1))
def test_block_by_block_is_the_same_as_all_at_once(shape, window, overlap, normalise, walk, again, even, seed):
    generator = np.random.default_rng(seed)
    cut = tiling(shape, window, overlap, walk=walk, even=even and overlap < 0.9)
    outputs = [generator.normal(size=(2, *window)).astype(np.float32) for _ in range(cut.count)]
    sums, total = np.zeros((2, *shape)), np.zeros(shape)
    for where, scores in zip(cut.windows(), outputs, strict=True):
        sums[(slice(None), *where.target)] += (scores * cut.weights)[(slice(None), *where.source)]
        total[where.target] += cut.weights[where.source]
    expected = sums / total if normalise else sums
    found = gathered(cut, (scores.copy() for scores in outputs), 2, normalise=normalise, again=again)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(sizes, sizes, overlaps, walks)
def test_every_window_is_run_once_whatever_the_order_of_axes(shape, window, overlap, walk):
    cut = tiling(shape, window, overlap)
    starts = {tuple(part.start for part in where.parts) for where in cut.windows()}
    other = [tuple(part.start for part in where.parts) for where in replace(cut, walk=walk).windows()]
    assert len(other) == cut.count and set(other) == starts


@pytest.mark.parametrize("walk", list(permutations(range(3))))
def test_no_more_is_carried_than_was_said(walk):
    cut = tiling((40, 23, 31), (12, 10, 8), 0.25, walk=walk)
    blender = Blender(cut, normalise=False)
    most = 0
    for window in cut.windows():
        blender.add(window, np.zeros((2, *cut.window), np.float32))
        beside = blender._beside.size if blender._beside is not None else 0
        most = max(most, beside + sum(kept.size for level in blender._levels for kept in level._kept.values()))
    assert 0 < most <= 2 * cut.carried_voxels(walk)


def test_the_walk_that_carries_least_goes_along_an_axis_in_the_plane():
    # Windows of 96 at a quarter overlap, 24 voxels shared; the plane across the first axis is 512 x 512, else 300 x 512. The last
    # two windows along 512 (from 360 and 416) share 40 and are run together: 24 are carried.
    cut = tiling((300, 512, 512), (96, 96, 96), 0.25).walking(list(permutations(range(3))))
    assert cut.walk[0] in (1, 2)
    assert cut.carried_voxels(cut.walk) < 24 * 300 * 512 + 152 * 40 * 512 + 152 * 96 * 40
    assert [part.keep for part in cut.outer[-2:]] == [(360, 416), (416, 512)] and cut.groups[-1] == (5, 6)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 2, 1), (3, 1, 0, 2)])
def test_the_layout_of_scores_in_memory_changes_nothing(order):
    generator = np.random.default_rng(5)
    cut = tiling((20, 9, 11), (8, 6, 7), 0.5)
    outputs = [generator.normal(size=(3, 8, 6, 7)).astype(np.float32) for _ in range(cut.count)]

    def laid_out(scores):
        return np.ascontiguousarray(scores.transpose(order)).transpose(np.argsort(order))

    one = gathered(cut, (o.copy() for o in outputs), 3)
    two = gathered(cut, (laid_out(o).copy("K") for o in outputs), 3)
    np.testing.assert_array_equal(one, two)


@settings(deadline=None)
@given(sizes, sizes, st.integers(0, 2**32 - 1))
def test_a_halo_as_wide_as_the_network_sees_is_exact(shape, window, seed):
    volume = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    window = tuple(min(max(n, 3), m) for n, m in zip(window, shape, strict=True))

    def network(x):
        """A voxel and its six neighbours, nothing outside of the array: sees one voxel around."""
        padded = np.pad(x, 1)
        moved = [np.roll(padded, shift, axis) for axis in range(3) for shift in (1, -1)]
        return (padded + sum(n * m for n, m in enumerate(moved, 2)))[None, 1:-1, 1:-1, 1:-1].astype(np.float32)

    halo = tuple(1 if n < m else 0 for n, m in zip(window, shape, strict=True))
    found = run(tiling(shape, window, halo=halo), volume, network)
    np.testing.assert_allclose(found, network(volume), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("volume", ["large", "small"])
@pytest.mark.parametrize("mode, overlap", [("gaussian", 0.25), ("gaussian", 0.5), ("constant", 0.25)])
def test_blending_gives_the_scores_of_monai(volume, mode, overlap):
    monai = np.load(MONAI)
    weight, bias = monai["conv_weight"], monai["conv_bias"]
    # MONAI's (x, y, z) taken as (k, j, i): no axis is special to the windows.
    values = monai[f"window_{volume}"][0]

    def network(x):
        padded = np.pad(x.astype(np.float64), 1)
        patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3, 3))
        scores = np.einsum("kjiabc,nabc->nkji", patches, weight[:, 0])
        return (scores + bias[:, None, None, None]).astype(np.float32)

    cut = tiling(values.shape, (12, 10, 16), overlap, gaussian=mode == "gaussian")
    found = run(cut, values, network, outside=-1.5)
    np.testing.assert_allclose(found, monai[f"window_{volume}_{mode}_{overlap}"], atol=2e-5)
