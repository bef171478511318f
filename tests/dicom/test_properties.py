"""What rules ask of a series that no header says: expected values by arithmetic."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdcli.dicom.opening import SourceFiles
from mdcli.dicom.properties import MOST_SAMPLED, Stack, pixel_facts, plane_of_image, stack_of, unit_of
from tests.made_series import AXIAL, CORONAL, SAGITTAL, instance, scan, stack, write_series


def turned(degrees):
    """Return an axial orientation turned about the patient's x axis."""
    angle = math.radians(degrees)
    return [1.0, 0.0, 0.0, 0.0, math.cos(angle), math.sin(angle)]


@pytest.mark.parametrize(
    "orientation, plane, degrees",
    [
        (AXIAL, "axial", 0),
        (CORONAL, "coronal", 0),
        (SAGITTAL, "sagittal", 0),
        (turned(19.9), "axial", 19.9),
        (turned(20.1), "oblique", 20.1),
        (turned(44), "oblique", 44),
        (turned(75), "coronal", 15),
    ],
)
def test_a_plane_is_within_20_degrees_of_an_axis_or_oblique(orientation, plane, degrees):
    found = plane_of_image(instance(ImageOrientationPatient=orientation))
    assert found == (plane, pytest.approx(degrees, abs=1e-6))


@pytest.mark.parametrize(
    "orientation",
    [..., None, [1, 0, 0], ["a"] * 6, [0.0] * 6, [1.0, 0, 0, 1.0, 0, 0], [2.0, 0, 0, 0, 1, 0], [math.nan] * 6, "1"],
)
def test_what_is_no_orientation_has_no_plane(orientation):
    image = instance(ImageOrientationPatient=orientation)
    assert plane_of_image(image) is None
    assert stack_of([image, image]) == Stack()


def test_spacing_is_along_the_normal_and_coverage_counts_every_slice():
    found = stack_of(stack(5, step=(0, 0, 3)))
    assert (found.spacing_mm, found.coverage_mm) == (pytest.approx(3), pytest.approx(15))
    assert found.is_volume and found.is_regular


def test_a_sheared_stack_is_regular_and_its_spacing_is_along_the_normal():
    found = stack_of(stack(5, step=(0, 0.5, 3)))
    assert found.spacing_mm == pytest.approx(3)
    assert found.is_regular and found.is_volume


@pytest.mark.parametrize(
    "places, regular",
    [
        ([0, 3, 6, 9], True),
        ([0, 3, 6.05, 9], True),
        ([0, 3, 6.1, 9], False),
        ([0, 3, 9, 12], False),
        ([0, 0.625, 1.25, 1.875], True),
        ([0, 0.6, 1.32, 1.9], False),
    ],
)
def test_regular_means_within_the_tolerance_of_the_grid_through_the_ends(places, regular):
    images = [instance((0, 0, z), n) for n, z in enumerate(places, 1)]
    assert stack_of(images).is_regular is regular


def test_two_images_at_one_place_are_no_volume_but_their_places_are_regular():
    images = stack(4) + [instance((-10, 20, 100 + 3 * n), 10 + n) for n in range(4)]
    found = stack_of(images)
    assert (found.is_volume, found.is_regular, found.spacing_mm) == (False, True, pytest.approx(3))
    assert found.coverage_mm == pytest.approx(12)


@pytest.mark.parametrize(
    "more", [{"Rows": 5}, {"PixelSpacing": [2.0, 1.6]}, {"PixelSpacing": ...}, {"FrameOfReferenceUID": "1.2"}]
)
def test_images_of_two_kinds_are_no_volume(more):
    assert not stack_of([*stack(3), instance((-10, 20, 109), 9, **more)]).is_volume


@pytest.mark.parametrize("images", [[], stack(1), [*stack(3), instance(None, 9)]])
def test_what_has_no_places_has_no_spacing(images):
    assert stack_of(images) == Stack()


def test_a_localizer_among_slices_leaves_no_volume():
    assert stack_of([*stack(3), instance((0, 0, 0), 9, ImageOrientationPatient=SAGITTAL)]) == Stack()


@given(st.permutations(range(7)), st.floats(0.3, 10), st.floats(-200, 200))
def test_the_order_of_the_files_does_not_matter(order, step, start):
    images = stack(7, step=(0, 0, step), start=(0, 0, start))
    found = stack_of([images[n] for n in order])
    assert found.spacing_mm == pytest.approx(step)
    assert found.coverage_mm == pytest.approx(7 * step)
    assert found.is_volume and found.is_regular


@pytest.mark.parametrize(
    "more, unit",
    [
        ({}, "HU"),
        ({"RescaleType": "OD"}, "OD"),
        ({"RescaleSlope": ..., "RescaleIntercept": ...}, None),
        ({"Modality": "MR"}, None),
        ({"Modality": "PT", "Units": "BQML"}, "BQML"),
    ],
)
def test_the_unit_is_what_the_headers_say(more, unit):
    assert unit_of(stack(3, **more)) == unit


def test_slices_of_two_units_have_none():
    assert unit_of([*stack(3), instance((0, 0, 0), 9, RescaleType="OD")]) is None


def test_pixels_give_mean_and_body_share_of_every_slice_of_a_short_series(tmp_path):
    # Stored values; HU is 1024 less. Half of the voxels are water (0 HU), half air (-1024 HU).
    volume = np.zeros((4, 4, 6), np.uint16)
    volume[:, :2] = 1024
    found = pixel_facts(SourceFiles(tmp_path), scan(write_series(tmp_path, volume)))
    assert found.mean_hu == pytest.approx(-512)
    assert (found.body_share, found.slices) == (0.5, 4)


def test_padding_is_left_out(tmp_path):
    volume = np.full((3, 4, 6), 1124, np.uint16)
    volume[:, 0] = 0
    images = scan(write_series(tmp_path, volume, PixelPaddingValue=0))
    found = pixel_facts(SourceFiles(tmp_path), images)
    assert (found.mean_hu, found.body_share) == (pytest.approx(100), 1.0)


def test_of_a_long_series_only_some_slices_are_read_the_first_and_the_last_among_them(tmp_path):
    volume = np.zeros((100, 2, 2), np.uint16)
    images = scan(write_series(tmp_path, volume, step=1.0))
    read = []
    pixel_facts(SourceFiles(tmp_path), images, done=read.append)
    assert len(read) == MOST_SAMPLED == 32
    kept = {round(k * 99 / 31) for k in range(32)}
    for image in images:
        number = round(image.get("ImagePositionPatient")[2] - 100)
        if number not in kept:
            (tmp_path / image.path).unlink()
    assert {0, 99} <= kept
    assert pixel_facts(SourceFiles(tmp_path), images).slices == 32


@pytest.mark.parametrize("more", [{"Modality": "MR"}, {"RescaleType": "OD"}])
def test_what_is_not_in_hu_has_no_hu(tmp_path, more):
    images = scan(write_series(tmp_path, np.zeros((3, 4, 6), np.uint16), **more))
    assert pixel_facts(SourceFiles(tmp_path), images) is None
