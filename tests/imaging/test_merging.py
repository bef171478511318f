"""Label maps made one, held to a loop over voxels."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mdcli.imaging.merging import Part, Tally, merge

SHAPE = (3, 4, 5)


@st.composite
def parts(draw):
    """Return maps on boxes of the grid, each with ranks of its own for the values 1 to 3."""
    found = []
    ranks = iter(draw(st.permutations(range(1, 13))))
    for _ in range(draw(st.integers(1, 4))):
        sides = [sorted(draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))) for n in SHAPE]
        box = tuple(slice(a, b) for a, b in sides)
        size = [b - a for a, b in sides]
        values = draw(st.lists(st.integers(0, 3), min_size=int(np.prod(size)), max_size=int(np.prod(size))))
        dtype = draw(st.sampled_from([np.uint8, np.uint16, np.int32]))
        array = np.array(values, dtype).reshape(size)
        found.append(Part(array, box, {value: next(ranks) for value in (1, 2, 3)}))
    return found


@settings(deadline=None, max_examples=100)
@given(parts())
def test_the_lowest_rank_that_claims_a_voxel_has_it(found):
    tally = Tally()
    merged = np.stack(list(merge(found, SHAPE, tally)))
    expected, claimed, cut = np.zeros(SHAPE, int), Counter(), set()
    for at in np.ndindex(SHAPE):
        claims = []
        for part in found:
            inside = all(side.start <= n < side.stop for side, n in zip(part.box, at, strict=True))
            value = part.array[tuple(n - side.start for side, n in zip(part.box, at, strict=True))] if inside else 0
            if value:
                rank = part.ranks[int(value)]
                claims.append(rank)
                for side, n, size in zip(part.box, at, SHAPE, strict=True):
                    if (n == side.start and n > 0) or (n == side.stop - 1 and n < size - 1):
                        cut.add(rank)
        expected[at] = min(claims, default=0)
        # Maps are laid over one another: each is held against the best so far.
        best = 0
        for rank in claims:
            if best:
                claimed[min(best, rank), max(best, rank)] += 1
            best = min(best or rank, rank)
    np.testing.assert_array_equal(merged, expected)
    assert tally.overlaps == claimed
    assert tally.voxels == Counter(expected[expected > 0].tolist())
    assert tally.first == set(expected[0].ravel().tolist()) - {0}
    assert tally.last == set(expected[-1].ravel().tolist()) - {0}
    assert tally.cut == cut


def test_parts_of_one_structure_do_not_overlap_themselves():
    one = Part(np.ones((1, 2, 2), np.uint8), (slice(0, 1), slice(0, 2), slice(0, 2)), {1: 1})
    other = Part(np.full((1, 1, 2), 7, np.uint16), (slice(0, 1), slice(1, 2), slice(1, 3)), {7: 1})
    tally = Tally()
    (merged,) = merge([one, other], (1, 2, 3), tally)
    assert merged.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert not tally.overlaps
    assert tally.voxels == {1: 5}
