"""Two runs are held to each other class by class: a lost structure, a shifted volume or a sure difference never passes."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdcli.errors import DataError
from mdcli.inference import parity
from mdcli.inference.parity import as_json, compare_labels, compare_masks, difference_of, judge, table

LABELS = [(1, "liver"), (2, "adrenal")]


def block(*boxes: tuple[int, slice]) -> np.ndarray:
    """Return labels (20, 20, 20); a box is a value and a slice of k."""
    found = np.zeros((20, 20, 20), np.uint8)
    for value, part in boxes:
        found[part] = value
    return found


def sure(value: float = 0.9) -> np.ndarray:
    return np.full((20, 20, 20), value, np.float32)


def test_the_examples_in_the_docstrings_hold():
    assert doctest.testmod(parity).failed == 0


def test_equal_maps_pass_where_every_class_is_there():
    reference = block((1, slice(0, 4)), (2, slice(4, 8)))
    verdict = judge([compare_labels(reference, reference.copy(), sure(), LABELS)])
    assert verdict.passes()
    # 4 slices of 400.
    assert [one.reference for one in verdict.reports[0].classes] == [1600, 1600]


def test_a_lost_class_of_forty_voxels_fails_though_nearly_all_voxels_agree():
    reference = block((1, slice(0, 4)))
    reference[10, 0, :] = reference[11, 0, :] = 2
    ours = reference.copy()
    ours[ours == 2] = 0
    verdict = judge([compare_labels(reference, ours, sure(1e-5), LABELS)])
    assert any("adrenal" in text for text in verdict.failures)
    assert not verdict.passes(allow_unjudged=True)


def test_five_voxels_may_be_missing_of_a_small_class_and_six_not():
    reference = block((1, slice(0, 4)))
    reference[10, 0, :] = 2
    for missing, good in ((5, True), (6, False)):
        ours = reference.copy()
        ours[10, 0, :missing] = 0
        report = compare_labels(reference, ours, sure(1e-5), LABELS)
        assert report.classes[1].good is good


def test_of_a_large_class_a_thousandth_may_be_missing_and_dice_counts():
    # 16 of 8000 swapped for 16 others: the same volume, Dice 1 - 16/8000 = 0.998.
    reference = np.zeros((40, 20, 20), np.uint8)
    reference[:20] = 1
    ours = reference.copy()
    ours[0, 0, :16], ours[39, 0, :16] = 0, 1
    report = compare_labels(reference, ours, np.zeros(reference.shape), [(1, "liver")])
    assert report.classes[0].dice == pytest.approx(0.998)
    assert not report.good
    # 8 missing of 8000 are 0.1 %: Dice 2 * 7992 / 15992 = 0.9995.
    ours = reference.copy()
    ours[0, 0, :8] = 0
    assert compare_labels(reference, ours, np.zeros(reference.shape), [(1, "liver")]).good
    ours[0, 0, 8] = 0
    assert not compare_labels(reference, ours, np.zeros(reference.shape), [(1, "liver")]).good


@pytest.mark.parametrize("margin, good", [(0.0009, True), (0.001, False), (float("nan"), False)])
def test_a_single_voxel_where_the_reference_was_sure_fails(margin, good):
    reference = block((1, slice(0, 4)))
    ours = reference.copy()
    ours[0, 0, 0] = 0
    margins = sure()
    margins[0, 0, 0] = margin
    report = compare_labels(reference, ours, margins, [(1, "liver")])
    assert (report.differing, report.good) == (1, good)


def test_a_class_must_have_over_a_thousand_voxels_in_some_volume():
    small, large = np.zeros((10, 10, 10), np.uint8), np.zeros((2, 40, 40), np.uint8)
    small[:] = 1
    large[0] = 1
    reports = [
        compare_labels(x, x, np.zeros(x.shape), [(1, "liver")], name) for x, name in ((small, "a"), (large, "b"))
    ]
    assert judge(reports[:1]).not_judged == ("liver",)
    assert not judge(reports[:1]).passes()
    assert judge(reports[:1]).passes(allow_unjudged=True)
    assert judge(reports).passes()


def test_masks_are_compared_one_by_one_where_they_overlap():
    first, second = np.ones((2, 30, 30), np.uint8), np.ones((2, 30, 30), np.uint8)
    ours = second.copy()
    ours[0, 0, 0] = 0
    margins = [np.full(first.shape, 0.5), np.full(first.shape, 0.0001)]
    report = compare_masks([first, second], [first, ours], margins, LABELS)
    assert (report.differing, report.margin, report.good) == (1, 0.0001, True)
    report = compare_masks([first, second], [ours, second], margins, LABELS)
    assert (report.differing, report.margin, report.good) == (1, 0.5, False)


def test_shapes_must_be_the_same():
    with pytest.raises(DataError) as caught:
        compare_labels(np.zeros((2, 2, 2), int), np.zeros((2, 2, 3), int), np.zeros((2, 2, 2)), LABELS)
    assert caught.value.code == "grids-differ"


def test_what_is_no_number_differs_without_bound():
    assert difference_of(np.array([0.0, 1.0]), np.array([0.0, np.nan])) == float("inf")
    assert difference_of(np.array([2.0, 2.0]), np.array([2.0, 2.5])) == 0.5


def test_the_table_names_what_fails_and_what_was_not_judged():
    reference = block((1, slice(0, 4)))
    ours = block((1, slice(0, 3)))
    lines = table(judge([compare_labels(reference, ours, sure(), LABELS, "phantom")]))
    assert lines[0] == "phantom"
    assert any("liver" in line and line.endswith("FAILS") for line in lines)
    assert lines[-1].startswith("not judged: adrenal")
    assert as_json(judge([compare_labels(reference, ours, sure(), LABELS)]))["volumes"][0]["classes"][0] == {
        "value": 1,
        "name": "liver",
        "reference_voxels": 1600,
        "voxels": 1200,
        "dice": 2 * 1200 / 2800,
        "judged": True,
        "passes": False,
    }


@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_counts_are_those_of_numpy(seed, classes):
    random = np.random.default_rng(seed)
    reference, ours = random.integers(0, classes + 1, (2, 3, 4, 5))
    report = compare_labels(reference, ours, np.zeros(reference.shape), [(n, str(n)) for n in range(1, classes + 1)])
    for one in report.classes:
        assert one.reference == (reference == one.value).sum()
        assert one.ours == (ours == one.value).sum()
        assert one.both == ((reference == one.value) & (ours == one.value)).sum()
    assert report.differing == (reference != ours).sum()
