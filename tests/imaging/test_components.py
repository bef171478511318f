"""Connected parts of label maps, held to a flood fill that is written here, voxel by voxel, from the definition."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mdcli.imaging.components import boxes_of, components, fill_holes, keep_largest, map_labels, remove_small

# What holds voxels together: as many steps along axes as the connectivity says, at most one along each.
STEPS = {c: [o for o in itertools.product((-1, 0, 1), repeat=3) if 0 < sum(map(abs, o)) <= c] for c in (1, 2, 3)}
MAPS = arrays(
    np.uint8,
    st.tuples(st.integers(1, 5), st.integers(1, 6), st.integers(1, 6)),
    elements=st.sampled_from([0, 0, 1, 1, 2, 7]),
)


def flood(mask, connectivity):
    """Return the parts of a mask as sets of indices, by their first voxel."""
    left = {tuple(map(int, at)) for at in np.argwhere(mask)}
    parts = []
    for start in sorted(left):
        if start not in left:
            continue
        left.discard(start)
        part, edge = {start}, [start]
        while edge:
            at = edge.pop()
            for step in STEPS[connectivity]:
                near = tuple(a + s for a, s in zip(at, step, strict=True))
                if near in left:
                    left.discard(near)
                    part.add(near)
                    edge.append(near)
        parts.append(part)
    return parts


def picture(*rows):
    """Return one slice (1, j, i) drawn with digits, a dot for 0."""
    return np.array([[[0 if c == "." else int(c) for c in row] for row in rows]], np.uint8)


@settings(deadline=None, max_examples=60)
@given(MAPS)
def test_a_box_is_the_smallest_that_holds_a_label(labels):
    expected = {}
    for value in sorted(set(labels.ravel().tolist()) - {0}):
        places = np.argwhere(labels == value)
        expected[value] = tuple(slice(int(a), int(b) + 1) for a, b in zip(places.min(0), places.max(0), strict=True))
    assert boxes_of(labels) == expected


def test_a_box_of_a_value_beyond_a_byte():
    labels = np.zeros((2, 3, 4), np.uint16)
    labels[1, 2, 3] = 65535
    assert boxes_of(labels) == {65535: (slice(1, 2), slice(2, 3), slice(3, 4))}


@settings(deadline=None, max_examples=60)
@given(MAPS, st.sampled_from([1, 2, 3]), st.booleans())
def test_parts_are_those_of_a_flood_fill(labels, connectivity, as_mask):
    given_map = labels > 0 if as_mask else labels
    found = components(given_map, connectivity)
    values = [True] if as_mask else sorted(set(labels.ravel().tolist()) - {0})
    expected = {frozenset(part) for value in values for part in flood(given_map == value, connectivity)}
    got = {
        frozenset(tuple(map(int, at)) for at in np.argwhere(found == number))
        for number in set(found.ravel().tolist()) - {0}
    }
    assert got == expected
    assert ((found == 0) == (labels == 0)).all()


@settings(deadline=None, max_examples=60)
@given(MAPS, st.sampled_from([1, 2, 3]), st.sampled_from([(), (1,), (7, 2)]), st.booleans())
def test_the_largest_part_stays_and_of_equal_ones_the_first(labels, connectivity, values, together):
    expected = labels.copy()
    chosen = [v for v in values or (1, 2, 7) if (labels == v).any()]
    for group in [chosen] if together else [[v] for v in chosen]:
        parts = flood(np.isin(labels, group), connectivity)
        # sorted() is stable, and the parts come in the order of their first voxels.
        for part in sorted(parts, key=lambda part: -len(part))[1:]:
            for at in part:
                expected[at] = 0
    keep_largest(labels, values, together=together, connectivity=connectivity)
    assert (labels == expected).all()


@settings(deadline=None, max_examples=60)
@given(MAPS, st.sampled_from([1, 2, 3]), st.integers(1, 9))
def test_parts_under_a_volume_go(labels, connectivity, least):
    expected = labels.copy()
    for value in (1, 2, 7):
        for part in flood(labels == value, connectivity):
            if len(part) < least:
                for at in part:
                    expected[at] = 0
    remove_small(labels, least * 0.7, 0.7, connectivity=connectivity)
    assert (labels == expected).all()


@settings(deadline=None, max_examples=60)
@given(MAPS, st.sampled_from([1, 2, 3]))
def test_many_labels_are_searched_at_once_with_the_same_result(labels, connectivity):
    spread = np.zeros((*labels.shape[:2], 40), np.uint16)
    spread[..., : labels.shape[2]] = labels
    # Each value twice in opposite corners of the map: boxes as large as it.
    spread = np.concatenate([spread, spread[::-1, ::-1, ::-1]])
    spread[0, 0, 20:] = np.arange(300, 320)
    spread[-1, -1, :20] = np.arange(300, 320)
    one_by_one = spread.copy()
    for value in boxes_of(spread):
        keep_largest(one_by_one, (value,), connectivity=connectivity)
    keep_largest(spread, connectivity=connectivity)
    assert (spread == one_by_one).all()


@pytest.mark.parametrize(("least", "stays"), [(10 * 0.343, True), (10 * 0.343 + 0.001, False)])
def test_the_rounding_of_a_header_pushes_no_part_under_the_bound(least, stays):
    labels = np.zeros((1, 4, 12), np.uint8)
    labels[0, 1, 1:11] = 3
    remove_small(labels, least, float(np.float32(0.7)) ** 3)
    assert labels.any() == stays


def test_a_hole_is_filled_with_the_label_around_it_and_other_labels_in_it_stay():
    labels = picture(
        "1111111",
        "1.....1",
        "1.222.1",
        "1.2.2.1",
        "1.222.1",
        "1..5..1",
        "1111111",
    )
    fill_holes(labels)
    expected = picture(
        "1111111",
        "1111111",
        "1122211",
        "1122211",
        "1122211",
        "1115111",
        "1111111",
    )
    assert (labels == expected).all()


def test_only_the_labels_that_are_named_fill_their_holes():
    labels = picture("1112222", "1.12..2", "1112222")
    fill_holes(labels, (2,))
    assert (labels == picture("1112222", "1.12222", "1112222")).all()


def test_what_two_labels_enclose_only_together_stays_open():
    labels = picture("1122", "1..2", "1122")
    before = labels.copy()
    fill_holes(labels)
    assert (labels == before).all()


@pytest.mark.parametrize(("connectivity", "filled"), [(1, True), (2, False), (3, False)])
def test_a_rim_closed_but_for_corners_is_closed_where_a_way_leads_through_faces(connectivity, filled):
    labels = picture(".....", "..4..", ".4.4.", "..4..", ".....")
    fill_holes(labels, connectivity=connectivity)
    assert labels[0, 2, 2] == (4 if filled else 0)


def test_a_tube_is_filled_slice_by_slice_and_open_in_the_volume():
    tube = np.repeat(picture(".....", ".333.", ".3.3.", ".333.", "....."), 3, axis=0)
    whole, sliced = tube.copy(), tube.copy()
    fill_holes(whole)
    assert (whole == tube).all()
    fill_holes(sliced, per_slice=True)
    assert (sliced[:, 2, 2] == 3).all()
    assert np.count_nonzero(sliced != tube) == 3


def test_a_hole_at_the_border_of_the_volume_is_none():
    labels = picture("11.1", "1..1", "1111")
    before = labels.copy()
    fill_holes(labels)
    assert (labels == before).all()


@settings(deadline=None, max_examples=60)
@given(MAPS, st.sampled_from([1, 2, 3]))
def test_holes_of_one_label_are_those_of_a_flood_fill(labels, connectivity):
    mask = (labels > 0).astype(np.uint8)
    expected = mask.copy()
    sides = range(1, 3) if len(mask) == 1 else range(3)
    for part in flood(mask == 0, connectivity):
        if not any(at[axis] in (0, mask.shape[axis] - 1) for at in part for axis in sides):
            for at in part:
                expected[at] = 1
    fill_holes(mask, connectivity=connectivity)
    assert (mask == expected).all()


def test_values_are_replaced_all_at_once_and_the_type_grows_where_it_must():
    labels = picture("123", "0.1")
    assert (map_labels(labels.copy(), {1: 2, 2: 1, 3: 0}) == picture("21.", "0.2")).all()
    grown = map_labels(labels, {2: 700})
    assert grown.dtype == np.uint16
    assert grown[0].tolist() == [[1, 700, 3], [0, 0, 1]]


def test_a_map_without_labels_stays_empty():
    labels = np.zeros((2, 3, 4), np.uint16)
    keep_largest(labels)
    keep_largest(labels, together=True)
    remove_small(labels, 10, 1)
    fill_holes(labels)
    assert not labels.any()
