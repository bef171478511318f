from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mdcli.checking.compare import (
    FileResult,
    Identity,
    Tolerances,
    compare_label_maps,
    corner_distance_mm,
)
from mdcli.errors import DataError
from mdcli.imaging.nifti import Volume

# Voxels of .5 x 1 x 4 mm, an oblique stack, and a sheared one: the slice vector is off the normal.
UPRIGHT = np.array([[0.5, 0, 0, -10], [0, 1, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1.0]])
OBLIQUE = np.array([[0.4, -0.6, 0, -10], [0.3, 0.8, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1.0]])
SHEARED = np.array([[0.5, 0, 0, -10], [0, 1, 1.5, 20], [0, 0, 4, 30], [0, 0, 0, 1.0]])


def volume(array: np.ndarray, affine: np.ndarray = UPRIGHT) -> Volume:
    return Volume(np.asarray(array, np.uint8), affine)


def codes(result: FileResult) -> set[str]:
    return {p.code for p in result.problems} | {p.code for label in result.labels for p in label.problems}


def phantom() -> np.ndarray:
    """Return two unlike, asymmetric solids, (k, j, i), large enough that a one-voxel shift keeps a high Dice."""
    k, j, i = np.mgrid[0:24, 0:60, 0:70]
    labels = np.zeros(k.shape, np.uint8)
    labels[(k >= 4) & (k < 18) & (j >= 10) & (j < 50) & (i >= 8) & (i < 55) & (k + i < 60)] = 1
    labels[(k >= 6) & (k < 14) & (j >= 14) & (j < 30) & (i >= 12) & (i < 40) & (j + i < 60)] = 2
    return labels


def test_the_numbers_of_a_tiny_pair_are_those_of_arithmetic_by_hand():
    gold, run = np.zeros((1, 2, 5)), np.zeros((1, 2, 5))
    gold[0, 0, 0:4] = 7
    run[0, 0, 1:4] = 7
    run[0, 1, 4] = 7
    (label,) = compare_label_maps(volume(gold), volume(run)).labels
    # 3 voxels in common of 4 and 4.
    assert label.dice == 2 * 3 / (4 + 4)
    # Centroids (1.5, 0) and (2.5, .25) in voxels of .5 and 1 mm.
    assert label.centroid_voxels == pytest.approx(math.hypot(1.0, 0.25))
    assert label.centroid_mm == pytest.approx(math.hypot(0.5, 0.25))
    # Boxes i 0..3, j 0..0 and i 1..4, j 0..1.
    assert label.bounding_box_voxels == 1
    assert (label.voxels, label.gold_voxels) == (4, 4)
    # 4 voxels of .5 x 1 x 4 mm are .008 ml.
    assert label.volume_ml == pytest.approx(0.008)
    assert label.volume_percent == 0
    assert {p.code for p in label.problems} == {"dice", "centroid"}


def test_volume_percent_has_the_sign_of_what_the_run_has_more():
    gold, run = np.zeros((1, 1, 10)), np.zeros((1, 1, 10))
    gold[..., :4], run[..., :5] = 1, 1
    (label,) = compare_label_maps(volume(gold), volume(run)).labels
    assert label.volume_percent == pytest.approx(25.0)
    assert "volume" in {p.code for p in label.problems}


def test_volume_of_a_sheared_grid_is_the_determinant():
    (label,) = compare_label_maps(volume(np.ones((2, 3, 4)), SHEARED), volume(np.ones((2, 3, 4)), SHEARED)).labels
    assert label.volume_ml == pytest.approx(24 * 0.5 * 1 * 4 / 1000)


def test_equal_maps_agree_in_every_number():
    result = compare_label_maps(volume(phantom(), SHEARED), volume(phantom(), SHEARED))
    assert result.ok and result.word == "ok" and result.affine_mm == 0
    assert [(x.value, x.dice, x.centroid_mm, x.bounding_box_voxels, x.volume_percent) for x in result.labels] == [
        (1, 1, 0, 0, 0),
        (2, 1, 0, 0, 0),
    ]


def swapped(labels: np.ndarray) -> np.ndarray:
    return np.array([0, 2, 1], np.uint8)[labels]


@pytest.mark.parametrize(
    "mutate",
    [
        pytest.param(lambda a: np.roll(a, 1, 0), id="one voxel along k"),
        pytest.param(lambda a: np.roll(a, -1, 1), id="one voxel along j"),
        pytest.param(lambda a: np.roll(a, 1, 2), id="one voxel along i"),
        pytest.param(lambda a: a[::-1], id="slices reversed"),
        pytest.param(lambda a: a[:, ::-1], id="mirrored front to back"),
        pytest.param(lambda a: a[:, :, ::-1], id="mirrored left to right"),
        pytest.param(lambda a: a[::-1, ::-1, ::-1], id="through the centre"),
        pytest.param(swapped, id="labels swapped"),
        pytest.param(lambda a: np.where(a == 2, 1, a), id="a label lost to its neighbour"),
        pytest.param(lambda a: np.where(a == 2, 3, a), id="a label renumbered"),
    ],
)
def test_a_mutation_of_the_voxels_is_found(mutate):
    assert not compare_label_maps(volume(phantom()), volume(mutate(phantom()))).ok


def test_a_one_voxel_shift_is_found_where_dice_alone_is_near_one():
    j, i = np.mgrid[0:420, 0:420]
    gold = ((j - 210) ** 2 + (i - 210) ** 2 < 200**2).astype(np.uint8)[None]
    tolerances = Tolerances(dice=0.99)
    result = compare_label_maps(volume(gold), volume(np.roll(gold, 1, 2)), tolerances)
    assert result.labels[0].dice > 0.99
    assert {p.code for p in result.labels[0].problems} == {"centroid"}


@pytest.mark.parametrize(
    ("change", "expected_mm"),
    [
        pytest.param([(0, 3, 0.5)], 0.5, id="origin half a millimetre to the left"),
        pytest.param([(2, 2, -8.0)], 2 * 8.0, id="slice direction reversed: the third of three slices is 16 mm off"),
        pytest.param([(0, 0, 0.0002)], 9 * 0.0002, id="a spacing's fourth decimal adds up over ten columns"),
    ],
)
def test_an_affine_that_puts_a_corner_elsewhere_is_found(change, expected_mm):
    moved = UPRIGHT.copy()
    for row, column, by in change:
        moved[row, column] += by
    labels = np.ones((3, 4, 10))
    result = compare_label_maps(volume(labels), volume(labels, moved))
    assert result.affine_mm == pytest.approx(expected_mm)
    assert {p.code for p in result.problems} == {"affine"} and not result.ok


def test_an_affine_within_a_thousandth_of_a_millimetre_agrees():
    moved = UPRIGHT.copy()
    moved[:3, 3] += 0.0005
    assert compare_label_maps(volume(phantom()), volume(phantom(), moved)).ok


def test_the_corner_distance_is_that_of_the_farthest_corner_of_eight():
    turned = UPRIGHT.copy()
    turned[1, 0] = 0.01
    # Only columns matter: the last of 101 is 1 mm off.
    assert corner_distance_mm(UPRIGHT, turned, (5, 7, 101)) == pytest.approx(1.0)


def test_another_grid_size_is_a_difference_that_names_both():
    result = compare_label_maps(volume(np.ones((2, 3, 4))), volume(np.ones((2, 4, 3))))
    assert [p.code for p in result.problems] == ["shape"]
    assert "(3, 4, 2)" in result.problems[0].message and "(4, 3, 2)" in result.problems[0].message


def test_missing_and_extra_labels_are_called_so():
    gold, run = phantom(), phantom()
    run[run == 2] = 9
    words = {label.value: label.word for label in compare_label_maps(volume(gold), volume(run)).labels}
    assert words == {1: "ok", 2: "missing", 9: "extra"}


AIR, FAT = Identity("air", ("99T:A",)), Identity("fat", ("99T:F",))


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ({1: AIR, 2: FAT}, set()),
        pytest.param({1: FAT, 2: AIR}, {"name", "code"}, id="names swapped while the voxels agree"),
        ({1: AIR, 2: Identity("fat", ("99T:X",))}, {"code"}),
        ({1: AIR}, {"name"}),
        (None, {"no-names"}),
    ],
)
def test_what_the_labels_are_said_to_be_must_agree(run, expected):
    gold = {1: AIR, 2: FAT}
    found = compare_label_maps(volume(phantom()), volume(phantom()), identities=gold, run_identities=run)
    assert codes(found) == expected


def test_codes_that_the_gold_does_not_give_are_not_compared():
    gold = {1: Identity("air"), 2: Identity("fat")}
    assert compare_label_maps(volume(phantom()), volume(phantom()), identities=gold, run_identities={1: AIR, 2: FAT}).ok


def test_a_label_that_is_described_and_empty_in_both_agrees():
    said = {1: AIR, 2: FAT}
    empty = np.where(phantom() == 2, 0, phantom())
    result = compare_label_maps(volume(empty), volume(empty), identities=said, run_identities=said)
    assert result.ok and [x.dice for x in result.labels] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("array", "code"),
    [
        (np.full((1, 2, 2), 0.5), "not-labels"),
        (np.full((1, 2, 2), math.nan), "not-labels"),
        (np.full((1, 2, 2), math.inf), "not-labels"),
        (np.full((1, 2, 2), -1, np.int16), "not-labels"),
        (np.full((1, 2, 2), 70000, np.int32), "not-labels"),
        (np.arange(1, 5001, dtype=np.uint16).reshape(1, 50, 100), "too-many-labels"),
    ],
)
def test_what_is_no_label_map_is_refused(array, code):
    with pytest.raises(DataError) as caught:
        compare_label_maps(Volume(array, UPRIGHT), Volume(array, UPRIGHT))
    assert caught.value.code == code


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_an_affine_that_spans_no_volume_is_refused(value):
    flat = UPRIGHT.copy()
    flat[2, 2] = value
    with pytest.raises(DataError) as caught:
        compare_label_maps(volume(phantom(), flat), volume(phantom(), flat))
    assert caught.value.code == "singular-affine"


def test_whole_numbers_kept_as_float_are_labels():
    assert compare_label_maps(volume(phantom()), Volume(phantom().astype(np.float32), UPRIGHT)).ok


PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6)).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape, elements=st.integers(0, 3)) for _ in range(2)])
)


@given(PAIRS)
def test_dice_centroid_and_box_are_the_same_either_way(pair):
    one = {x.value: x for x in compare_label_maps(volume(pair[0], OBLIQUE), volume(pair[1], OBLIQUE)).labels}
    other = {x.value: x for x in compare_label_maps(volume(pair[1], OBLIQUE), volume(pair[0], OBLIQUE)).labels}
    assert one.keys() == other.keys()
    for value, label in one.items():
        assert label.dice == other[value].dice
        assert label.bounding_box_voxels == other[value].bounding_box_voxels
        assert label.centroid_mm == pytest.approx(other[value].centroid_mm)


@given(PAIRS)
def test_only_equal_maps_have_a_dice_of_one_everywhere(pair):
    result = compare_label_maps(volume(pair[0]), volume(pair[1]))
    assert all(label.dice == 1 for label in result.labels) == np.array_equal(*pair)


@given(PAIRS)
@settings(max_examples=50, deadline=None)
def test_simpleitk_finds_the_same_dice_volume_and_centroid(pair):
    gold, run = (volume(array, OBLIQUE) for array in pair)
    images = []
    for array in pair:
        image = sitk.GetImageFromArray(array)
        image.SetSpacing((0.5, 1.0, 4.0))
        image.SetDirection((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))
        image.SetOrigin((-10, 20, 30))
        images.append(image)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(images[1], images[0])
    shapes = [sitk.LabelShapeStatisticsImageFilter() for _ in images]
    for judge, image in zip(shapes, images, strict=True):
        judge.Execute(image)
    for label in compare_label_maps(gold, run).labels:
        if label.word in ("missing", "extra"):
            assert label.dice == 0
            continue
        assert label.dice == pytest.approx(overlap.GetDiceCoefficient(label.value))
        assert label.gold_volume_ml == pytest.approx(shapes[0].GetPhysicalSize(label.value) / 1000)
        assert label.volume_ml == pytest.approx(shapes[1].GetPhysicalSize(label.value) / 1000)
        centroids = [np.array(judge.GetCentroid(label.value)) for judge in shapes]
        assert label.centroid_mm == pytest.approx(np.linalg.norm(centroids[1] - centroids[0]), abs=1e-9)


def test_a_volume_that_lies_on_disk_is_never_read_whole(tmp_path: Path):
    class Planes:
        """Counts how many planes are asked for at a time."""

        shape = (6, 4, 5)
        base = None

        def __getitem__(self, k: int) -> np.ndarray:
            assert isinstance(k, int)
            return np.full(self.shape[1:], k, np.uint8)

    assert compare_label_maps(Volume(Planes(), UPRIGHT), Volume(Planes(), UPRIGHT)).ok  # type: ignore[arg-type]
