"""Contours become voxels by one stated rule, exactly; what lies in what, crosses or overlaps is told apart."""

from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mdcli.errors import DataError
from mdcli.imaging.contours import UNITS, area, crosses_itself, distinct, inside, nesting, on_a_line, rasterise

SHAPE = (1, 9, 11)


def square(x0, y0, x1, y1):
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], float)


def filled(contours, shape=SHAPE, planes=None):
    """Return the whole volume that `rasterise` gives a part of."""
    whole = np.zeros(shape, np.uint8)
    block = rasterise(contours, planes or [0] * len(contours), shape)
    if block is not None:
        whole[block.slices] = block.mask
    return whole


def by_fractions(contours, rows, columns):
    """Count edges to the left of every centre, in exact fractions, one by one: PNPOLY's rule with its half-open ends."""
    found = np.zeros((rows, columns), np.uint8)
    for corners in contours:
        points = [(Fraction(round(x * UNITS), UNITS), Fraction(round(y * UNITS), UNITS)) for x, y in corners.tolist()]
        for j in range(rows):
            for i in range(columns):
                edges = zip(points, points[1:] + points[:1], strict=True)
                left = sum(
                    x1 + (j - y1) * (x2 - x1) / (y2 - y1) <= i for (x1, y1), (x2, y2) in edges if (y1 <= j) != (y2 <= j)
                )
                found[j, i] ^= left % 2
    return found


def corners_of(values):
    return st.lists(st.tuples(values, values), min_size=3, max_size=9).map(lambda c: np.array(c, float))


ANY = corners_of(st.floats(-3, 13))
ON_CENTRES = corners_of(st.integers(-2, 12))
ON_HALVES = corners_of(st.integers(-4, 24).map(lambda v: v / 2))


@settings(max_examples=120, deadline=None)
@given(contours=st.lists(st.one_of(ANY, ON_CENTRES, ON_HALVES), min_size=1, max_size=3))
def test_every_voxel_is_as_exact_counting_by_hand_says(contours):
    np.testing.assert_array_equal(filled(contours)[0], by_fractions(contours, *SHAPE[1:]))


def test_a_centre_on_a_left_or_top_edge_is_inside_and_on_a_right_or_bottom_edge_is_not():
    expected = np.zeros(SHAPE, np.uint8)
    expected[0, 3:6, 2:7] = 1
    np.testing.assert_array_equal(filled([square(2, 3, 7, 6)]), expected)


def test_nothing_is_shifted_by_half_a_voxel():
    expected = np.zeros(SHAPE, np.uint8)
    expected[0, 4, 5] = 1
    np.testing.assert_array_equal(filled([square(4.6, 3.6, 5.4, 4.4)]), expected)
    assert not filled([square(5.1, 4.1, 5.9, 4.9)]).any()


def test_contours_that_share_an_edge_share_no_voxel_and_leave_none_out():
    left, right = square(1, 1, 5, 7), square(5, 1, 9, 7)
    np.testing.assert_array_equal(filled([left]) + filled([right]), filled([square(1, 1, 9, 7)]))


@settings(max_examples=60, deadline=None)
@given(corners=ON_CENTRES, turn=st.integers(0, 8), back=st.booleans())
def test_where_a_contour_starts_and_which_way_it_runs_changes_nothing(corners, turn, back):
    other = np.roll(corners, turn, axis=0)
    np.testing.assert_array_equal(filled([corners]), filled([other[::-1] if back else other]))


def keyhole(outer, inner):
    """Return a hole joined to what it is in by a bridge that is traced twice."""
    return np.concatenate([outer, outer[:1], inner[::-1], inner[-1:]])


@pytest.mark.parametrize("corner", [(3, 3), (2.7, 3.1), (4, 3)])
def test_a_keyhole_is_a_hole_and_its_bridge_leaves_no_trace_also_through_centres(corner):
    outer, inner = square(1, 1, 10, 8), square(*corner, 7, 6)
    expected = filled([outer]) - filled([inner])
    np.testing.assert_array_equal(filled([keyhole(outer, inner)]), expected)
    assert not crosses_itself([keyhole(outer, inner)])[0]


def test_contours_of_many_slices_are_cut_at_the_volume():
    whole = filled([square(-5, -5, 3.5, 3.5), square(7.5, 5.5, 90, 90)], (4, 9, 11), [1, 3])
    assert [int(plane.sum()) for plane in whole] == [0, 16, 0, 9]
    assert filled([square(20, 2, 30, 5)]).sum() == 0 and filled([square(2, -9, 5, -3)]).sum() == 0
    assert rasterise([], [], SHAPE) is None


def test_rows_of_more_than_one_word_are_filled_through():
    whole = filled([square(1, 0.5, 200, 1.5), square(63.5, 0.5, 64.5, 1.5)], (1, 3, 300))
    assert whole[0, 1, 1:64].all() and whole[0, 1, 65:200].all() and whole.sum() == 198 and not whole[0, 1, 64]


def test_a_point_absurdly_far_away_or_no_number_is_refused():
    for bad in (1e9, np.nan):
        with pytest.raises(DataError) as caught:
            rasterise([np.array([[0, 0], [bad, 0], [0, 5]])], [0], SHAPE)
        assert caught.value.code == "bad-contour"


def star(rng, corners, centre, smallest, largest):
    """Return a simple polygon around a centre."""
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = rng.uniform(smallest, largest, corners)
    return np.column_stack([np.cos(angles), np.sin(angles)]) * radii[:, None] + centre


def test_counted_voxels_equal_the_area_by_the_shoelace_formula_without_bias():
    rng = np.random.default_rng(3)
    off = []
    for _ in range(1500):
        corners = star(rng, rng.integers(3, 20), rng.uniform(20, 21, 2), 2, 15)
        off.append(int(filled([corners], (1, 40, 40)).sum()) - abs(area(corners)))
    # A bias of half a voxel along an edge of 60 would be 30 voxels; chance alone gives 4 standard errors once in 16,000.
    assert abs(np.mean(off)) < 4 * np.std(off) / np.sqrt(len(off))
    assert np.std(off) < 4


@given(corners=ON_CENTRES)
def test_repeated_points_are_dropped_and_nothing_else(corners):
    twice = np.repeat(corners, 2, axis=0)
    np.testing.assert_array_equal(distinct(twice), distinct(corners))
    kept = distinct(corners)
    assert len(kept) == 1 or (kept != np.roll(kept, 1, axis=0)).any(axis=1).all()


def test_what_lies_on_a_line_encloses_nothing():
    assert on_a_line(np.array([[0, 0], [3, 3]])) and on_a_line(np.array([[0.0, 0], [1, 1], [5, 5], [2, 2]]))
    assert on_a_line(np.zeros((5, 3))) and not on_a_line(np.array([[0.0, 0], [10, 10], [10, 0], [0, 10]]))


def crosses_by_hand(corners):
    """Look at every pair of edges, in whole numbers."""
    edges = list(zip(corners, np.roll(corners, -1, axis=0), strict=True))

    def side(a, b, c):
        return np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]))

    return any(
        side(p, q, r) * side(p, q, s) < 0 and side(r, s, p) * side(r, s, q) < 0
        for (p, q), (r, s) in combinations(edges, 2)
    )


@settings(max_examples=150, deadline=None)
@given(contours=st.lists(ON_CENTRES, min_size=1, max_size=4))
def test_a_contour_that_crosses_itself_is_found_and_no_other(contours):
    assert crosses_itself(contours).tolist() == [crosses_by_hand(corners) for corners in contours]


def test_a_thousand_corners_cross_in_one_place():
    rng = np.random.default_rng(1)
    simple = star(rng, 1000, (0, 0), 80, 100)
    crossing = simple.copy()
    crossing[[500, 501]] = crossing[[501, 500]]
    assert crosses_itself([simple, crossing]).tolist() == [False, crosses_by_hand(crossing)]
    assert crosses_by_hand(crossing)


@settings(max_examples=80, deadline=None)
@given(corners=ANY)
def test_a_point_is_inside_as_a_voxel_centre_is(corners):
    points = np.array([[i, j] for j in range(9) for i in range(11)], float)
    snapped = np.rint(corners * UNITS) / UNITS
    # Whether a centre on an edge itself counts is a matter of rounding here, and of the exact rule for voxels.
    steps = np.roll(snapped, -1, axis=0) - snapped
    lengths = np.maximum((steps**2).sum(axis=1), 1e-30)
    along = np.clip(((points[:, None] - snapped) * steps).sum(axis=2) / lengths, 0, 1)
    clear = np.linalg.norm(points[:, None] - snapped - along[..., None] * steps, axis=2).min(axis=1) > 1e-9
    np.testing.assert_array_equal(inside(points, snapped)[clear], (filled([snapped])[0] == 1).ravel()[clear])


@pytest.mark.parametrize(
    "contours, depths",
    [
        pytest.param([square(0, 0, 10, 10), square(20, 0, 30, 10)], [0, 0], id="side by side"),
        pytest.param([square(2, 2, 8, 8), square(0, 0, 10, 10)], [1, 0], id="a hole"),
        pytest.param([square(0, 0, 20, 20), square(2, 2, 18, 18), square(4, 4, 9, 9)], [0, 1, 2], id="an island"),
        pytest.param([square(0, 0, 20, 20), square(2, 2, 8, 8), square(10, 2, 18, 8)], [0, 1, 1], id="two holes"),
        pytest.param([square(0, 0, 10, 10), square(10, 0, 20, 10)], [0, 0], id="sharing an edge"),
        pytest.param([square(0, 0, 10, 10), square(10, 10, 20, 20)], [0, 0], id="sharing a corner"),
        pytest.param([square(0, 0, 10, 10), square(4, 0, 8, 6)], [0, 1], id="a hole at the edge"),
        pytest.param([square(0, 0, 10, 10), square(4, -0.005, 8, 6)], [0, 1], id="a hole 5 um over the edge"),
        pytest.param([square(0, 0, 10, 10), square(9.995, 2, 20, 8)], [0, 0], id="5 um of overlap is a touch"),
        pytest.param([square(0, 0, 10, 10), square(4, 4, 6, 6)[::-1]], [0, 1], id="either way round"),
        pytest.param(
            [keyhole(square(0, 0, 20, 20), square(5, 5, 15, 15)), square(5, 5, 15, 15)], [0, 0], id="fills a keyhole"
        ),
        pytest.param(
            [keyhole(square(0, 0, 20, 20), square(5, 5, 15, 15)), square(7, 7, 9, 9)], [0, 0], id="island in a keyhole"
        ),
    ],
)
def test_what_lies_in_what(contours, depths):
    assert nesting(contours).tolist() == depths
    assert nesting(contours[::-1]).tolist() == depths[::-1]


@pytest.mark.parametrize(
    "contours, code",
    [
        pytest.param([square(0, 0, 10, 10), square(5, 5, 15, 15)], "contours-overlap", id="corners in each other"),
        pytest.param([square(0, 4, 20, 6), square(8, 0, 12, 10)], "contours-overlap", id="a cross"),
        pytest.param([square(0, 0, 10, 10), square(5, 0, 15, 10)], "contours-overlap", id="along common lines"),
        pytest.param(
            [square(0, 0, 10, 10), square(4, -0.1, 8, 6)], "contours-overlap", id="a hole 0.1 mm over the edge"
        ),
        pytest.param([square(0, 0, 10, 10), square(0, 0, 10, 10)], "duplicate-contours", id="the same"),
        pytest.param([square(0, 0, 10, 10), square(0, 0, 10, 10)[::-1]], "duplicate-contours", id="the same backwards"),
        pytest.param(
            [square(0, 0, 10, 10), np.array([[0, 0], [5, 0], [10, 0], [10, 10], [0, 10.0]])],
            "duplicate-contours",
            id="the same with one more corner",
        ),
    ],
)
def test_an_overlap_and_a_duplicate_are_refused_with_both(contours, code):
    with pytest.raises(DataError) as caught:
        nesting([square(100, 100, 110, 110), *contours])
    assert (caught.value.code, caught.value.numbers) == (code, {"first": 1, "second": 2})


@settings(max_examples=60, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10**6))
def test_shrunken_copies_lie_in_one_another(data, seed):
    outer = star(np.random.default_rng(seed), data.draw(st.integers(5, 30)), (0, 0), 20, 40)
    count = data.draw(st.integers(2, 5))
    # A star that goes all around its middle holds its copies shrunken towards there.
    angles = np.arctan2(outer[:, 1], outer[:, 0]) % (2 * np.pi)
    assume(np.diff(np.append(angles, angles[0] + 2 * np.pi)).max() < 3)
    order = data.draw(st.permutations(range(count)))
    assert nesting([outer * 0.7**n for n in order]).tolist() == order
