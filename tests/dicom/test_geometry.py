"""Where slices lie, and which of them make no volume."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdcli.dicom.geometry import (
    TOLERANCES,
    check_images,
    check_one_kind,
    completeness,
    levels_of,
    orthonormal,
    regular_runs,
    volume_geometry,
)
from mdcli.errors import DataError
from tests.made_series import AXIAL, CORONAL, SAGITTAL, instance, stack

angles = st.floats(-math.pi, math.pi)


def turned(a, b, c):
    """Return the rotation by three angles about z, y, x."""
    (ca, sa), (cb, sb), (cc, sc) = ((math.cos(v), math.sin(v)) for v in (a, b, c))
    about_z = np.array([[ca, -sa, 0], [sa, ca, 0], [0, 0, 1]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    return about_z @ about_y @ np.array([[1, 0, 0], [0, cc, -sc], [0, sc, cc]])


def refusal(instances, **more):
    with pytest.raises(DataError) as caught:
        check_images(instances)
        check_one_kind(instances)
        volume_geometry(instances, **more)
    return caught.value


@given(
    turn=st.tuples(angles, angles, angles),
    spacing=st.tuples(*[st.floats(0.1, 20)] * 3),
    start=st.tuples(*[st.floats(-900, 900)] * 3),
    order=st.permutations(range(6)),
)
def test_every_slice_lies_where_its_header_says(turn, spacing, start, order):
    rotation = turned(*turn)
    iop = [*rotation[:, 0], *rotation[:, 1]]
    step = rotation[:, 2] * spacing[2]
    slices = stack(6, step, start, ImageOrientationPatient=iop, PixelSpacing=[spacing[1], spacing[0]])
    shuffled = [slices[n] for n in order]
    found = volume_geometry(shuffled)
    assert [shuffled[n].path for n in found.order] == [s.path for s in slices]
    for k, one in enumerate(slices):
        # PS3.3 C.7.6.2.1.1: the pixel in column 5, row 3 of slice k.
        header = (
            np.array(one.get("ImagePositionPatient"))
            + rotation[:, 0] * spacing[0] * 5
            + rotation[:, 1] * spacing[1] * 3
        )
        np.testing.assert_allclose((found.affine @ [5, 3, k, 1])[:3], header, atol=1e-9)
    assert np.linalg.det(found.affine[:3, :3]) > 0


@pytest.mark.parametrize(
    "iop, step, plane",
    [
        pytest.param(AXIAL, (0, 0, 2), "axial", id="axial slices rise along +z"),
        pytest.param(CORONAL, (0, 2, 0), "coronal", id="coronal slices go along +y"),
        pytest.param(SAGITTAL, (-2, 0, 0), "sagittal", id="sagittal slices, columns downwards, go to the right"),
    ],
)
def test_the_plane_is_named_by_the_normal(iop, step, plane):
    found = volume_geometry(stack(3, step, ImageOrientationPatient=iop))
    assert (found.plane, found.obliquity_deg, found.order) == (plane, 0.0, (0, 1, 2))


@pytest.mark.parametrize("degrees, plane", [(19.9, "axial"), (20.1, "oblique")])
def test_a_normal_more_than_20_degrees_off_is_oblique(degrees, plane):
    rotation = turned(0, 0, math.radians(degrees))
    found = volume_geometry(stack(3, rotation[:, 2], ImageOrientationPatient=[*rotation[:, 0], *rotation[:, 1]]))
    assert found.plane == plane
    assert found.obliquity_deg == pytest.approx(degrees)


def test_row_spacing_belongs_to_the_rows():
    found = volume_geometry(stack(3, PixelSpacing=[2.0, 1.5]))
    assert found.spacing_mm == (1.5, 2.0, 3.0)
    assert found.shape == (3, 4, 6)
    np.testing.assert_array_equal(found.affine[:3, :2], [[1.5, 0], [0, 2], [0, 0]])


def test_coverage_counts_every_slice_once():
    assert volume_geometry(stack(5, (0, 0, 3))).coverage_mm == 15


def test_the_slice_column_is_the_mean_step_exactly():
    slices = stack(4, (0, 0, 3))
    slices[1] = instance((-10, 20, 103.04), 2)
    found = volume_geometry(slices)
    np.testing.assert_array_equal(found.affine[:3, 2], [0, 0, 3])
    assert found.regularity["off_grid_mm"] == pytest.approx(0.04)


def test_a_small_shear_is_loaded_with_its_exact_slice_vector():
    # 0.04 degree is below the angle, whatever it shifts.
    aside = 3 * math.tan(math.radians(0.04))
    found = volume_geometry(stack(200, (aside, 0, 3)))
    assert found.affine[0, 2] == pytest.approx(aside, rel=1e-9)
    assert not found.tilt["sheared"]


def test_a_large_angle_over_a_short_stack_shifts_less_than_a_tenth_of_a_pixel():
    # 1 degree over one step of 3 mm is 0.052 mm, a tenth of the smaller pixel side is 0.15 mm.
    found = volume_geometry(stack(2, (3 * math.tan(math.radians(1)), 0, 3)))
    assert not found.tilt["sheared"]


@pytest.mark.parametrize("tag, code", [(None, "sheared-volume"), (12.0, "gantry-tilt")])
def test_a_sheared_stack_keeps_its_exact_slice_vector_with_a_warning(tag, code):
    aside = 3 * math.tan(math.radians(12))
    found = volume_geometry(stack(5, (0, aside, 3), GantryDetectorTilt=tag))
    (finding,) = found.findings
    assert (finding.code, finding.warning) == (code, True)
    assert finding.numbers["degrees"] == pytest.approx(12)
    assert finding.numbers["shift_mm"] == pytest.approx(4 * aside)
    assert found.tilt["sheared"]
    np.testing.assert_allclose(found.affine[:3, 2], [0, aside, 3], rtol=1e-12)


@pytest.mark.parametrize(
    "depths, missing, positions",
    [
        pytest.param([0, 5, 10, 20], [4], [15], id="one missing"),
        pytest.param([0, 3, 6, 15, 18, 24], [4, 5, 8], [9, 12, 21], id="two gaps"),
        pytest.param([0, 5, 15], [3], [10], id="three slices left of four"),
    ],
)
def test_missing_slices_are_named_with_their_positions(depths, missing, positions):
    error = refusal([instance((0, 0, z), n + 1) for n, z in enumerate(depths)])
    assert error.code == "missing-slices"
    assert error.numbers["missing"] == missing
    assert error.numbers["positions_mm"] == pytest.approx(positions)


@pytest.mark.parametrize(
    "depths",
    [
        pytest.param([0, 1, 2.5, 3.5], id="a step of half a slice more"),
        pytest.param([0, 1.06, 2, 3], id="a slice 0.06 mm off a grid of 1 mm"),
        pytest.param([0, 10.3, 20, 30], id="a slice 0.3 mm off a grid of 10 mm"),
        pytest.param([0, 2, 202, 204], id="two pairs far apart"),
    ],
)
def test_irregular_spacing_is_refused(depths):
    assert refusal([instance((0, 0, z), n + 1) for n, z in enumerate(depths)]).code == "irregular-spacing"


def test_a_slice_that_lies_aside_is_refused():
    slices = stack(5)
    slices[2] = instance((-10, 20.2, 106), 3)
    assert refusal(slices).code == "irregular-spacing"


@pytest.mark.parametrize(
    "change, code",
    [
        ({"ImagePositionPatient": ...}, "no-position"),
        ({"ImagePositionPatient": [0.0, "NaN", 0.0]}, "bad-position"),
        ({"ImagePositionPatient": [0.0, float("nan"), 0.0]}, "bad-position"),
        ({"ImageOrientationPatient": ...}, "no-orientation"),
        ({"ImageOrientationPatient": [0.0] * 6}, "bad-orientation"),
        ({"ImageOrientationPatient": [1.0, 0, 0, 0.5, 0.8660254, 0]}, "bad-orientation"),
        ({"ImageOrientationPatient": [1.0, 0, 0, 0, 1.002, 0]}, "bad-orientation"),
        ({"PixelSpacing": ...}, "no-spacing"),
        ({"PixelSpacing": ["NaN", "NaN"]}, "bad-spacing"),
        ({"PixelSpacing": [0.0, 1.0]}, "bad-spacing"),
        ({"PixelSpacing": [-1.0, 1.0]}, "bad-spacing"),
        ({"PixelSpacing": [2.001, 1.5]}, "mixed-spacings"),
        ({"ImageOrientationPatient": CORONAL}, "mixed-orientations"),
        ({"FrameOfReferenceUID": "1.2.3"}, "several-frames-of-reference"),
        ({"FrameOfReferenceUID": ...}, "several-frames-of-reference"),
        ({"StudyInstanceUID": "1.2.3"}, "several-studies"),
        ({"SeriesInstanceUID": "1.2.3"}, "several-series"),
        ({"Rows": 5}, "mixed-sizes"),
        ({"Rows": 0}, "bad-size"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "colour"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "mixed-kinds"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "mixed-kinds"),
        ({"ConvolutionKernel": "B70f"}, "mixed-kinds"),
        ({"EchoNumbers": 2}, "mixed-kinds"),
    ],
)
def test_one_odd_file_is_refused_by_name(change, code):
    slices = stack(5)
    slices[3] = replace(
        slices[3], attributes={k: v for k, v in {**slices[3].attributes, **change}.items() if v is not ...}
    )
    error = refusal(slices)
    assert error.code == code
    assert "004.dcm" in error.message


def along(keyword, values, **more):
    """Return one slice a value, in the order of the positions."""
    return [instance((0, 0, 3 * n), n + 1, **{keyword: value}, **more) for n, value in enumerate(values)]


@pytest.mark.parametrize(
    "keyword, one, other",
    [
        ("SOPClassUID", "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"),
        ("PatientPosition", "HFS", "FFS"),
        ("ImageType", ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]),
        ("KVP", 80.0, 140.0),
        ("ConvolutionKernel", "B30f", ["B30f", "1"]),
        ("ScanningSequence", "SE", ["SE", "IR"]),
        ("SequenceName", "ep_b0", "ep_b1000"),
        ("RepetitionTime", 500.0, 506.0),
        ("EchoTime", 5.0, 80.0),
        ("EchoNumbers", 1, 2),
        ("InversionTime", 100.0, None),
        ("FlipAngle", 3.0, 15.0),
        ("DiffusionBValue", 0.0, 1000.0),
        ("TemporalPositionIdentifier", 100, 101),
        ("TemporalPositionIndex", 1, 2),
        ("StackID", "1", "2"),
    ],
)
@pytest.mark.parametrize("pattern", ["ABABABAB", "AAAABBBB", "AAAAAAAB"])
def test_slices_of_two_acquisitions_are_no_volume_though_each_has_its_place(keyword, one, other, pattern):
    error = refusal(along(keyword, [one if letter == "A" else other for letter in pattern]))
    assert error.code == "mixed-kinds"
    assert keyword in error.message


@pytest.mark.parametrize(
    "keyword, values",
    [
        ("KVP", [120, 120.0, 120.0]),
        ("RepetitionTime", [500.0, 504.9, 502.0]),
        ("FlipAngle", [90.0, 89.9, 90.0]),
        ("SliceThickness", [3.0, 3.0001, 3.0, 3.0001, 3.0, 3.0001]),
    ],
)
def test_less_than_a_hundredth_is_no_difference(keyword, values):
    assert volume_geometry(along(keyword, values)).findings == ()


@pytest.mark.parametrize(
    "keyword, one, other",
    [
        ("AcquisitionNumber", 1, 2),
        ("ContrastBolusAgent", None, "Iodine"),
        ("SeriesDescription", "before", "after"),
        ("TriggerTime", 0.0, 500.0),
        ("SliceThickness", 1.0, 5.0),
    ],
)
def test_what_alternates_along_the_slices_is_several_volumes_and_what_changes_once_is_told(keyword, one, other):
    values = {"A": one, "B": other}
    for pattern in ("ABAB", "ABABABAB", "AABBAABB", "AAABAABA"):
        error = refusal(along(keyword, [values[letter] for letter in pattern]))
        assert (error.code, error.numbers["differs"]) == ("several-volumes", [keyword])
        assert keyword in error.message
    for pattern in ("AAAABBBB", "ABBBBBBB", "AABBBAAA"):
        (finding,) = volume_geometry(along(keyword, [values[letter] for letter in pattern])).findings
        assert (finding.code, finding.warning) == ("varies-along-slices", True)
        assert keyword in finding.message


@pytest.mark.parametrize("values", [[1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], [1, 1, 2, 2, 3, 3], [1, 4, 2, 5, 3, 6]])
def test_one_acquisition_after_the_other_is_one_volume_with_a_warning(values):
    (finding,) = volume_geometry(along("AcquisitionNumber", values)).findings
    assert finding.code == "varies-along-slices"


@pytest.mark.parametrize("thickness", ["thick", "a thickness of Canary^Name", [3.0, 3.0], ["3", "x"]])
@pytest.mark.parametrize("count", [1, 5])
def test_a_slice_thickness_that_is_no_number_is_refused_without_its_text(thickness, count):
    slices = stack(count)
    slices[-1].attributes["SliceThickness"] = thickness
    error = refusal(slices, single_slice=True)
    assert error.code == "bad-slice-thickness"
    assert "Canary" not in error.message


def test_an_image_without_pixels_is_refused():
    slices = stack(5)
    slices[3] = replace(slices[3], pixel_offset=None, pixel_length=None)
    assert refusal(slices).code == "no-pixels"


def test_one_sop_instance_uid_in_two_files_is_refused():
    slices = stack(5)
    slices[3] = replace(
        slices[3], attributes={**slices[3].attributes, "SOPInstanceUID": slices[2].get("SOPInstanceUID")}
    )
    assert refusal(slices).code == "duplicate-uid"


def test_no_instance_is_refused():
    assert refusal([]).code == "no-instances"


def test_two_images_at_one_position_are_named():
    slices = stack(8)
    slices[4] = instance(slices[3].get("ImagePositionPatient"), 5)
    error = refusal(slices)
    assert error.code == "same-position"
    assert "004.dcm" in error.message
    assert "005.dcm" in error.message


def test_one_slice_is_refused_unless_asked_for():
    assert refusal(stack(1)).code == "single-slice"
    found = volume_geometry(stack(1), single_slice=True)
    np.testing.assert_array_equal(found.affine[:3, 2], [0, 0, 3])
    assert found.made
    assert [f.code for f in found.findings] == ["single-slice"]


@pytest.mark.parametrize("thickness", [None, 0.0, -3.0])
def test_one_slice_needs_its_thickness(thickness):
    assert refusal(stack(1, SliceThickness=thickness), single_slice=True).code == "no-slice-thickness"


def test_a_stated_spacing_that_the_positions_contradict_is_told():
    found = volume_geometry(stack(5, (0, 0, 6), SpacingBetweenSlices=3.0))
    assert [f.code for f in found.findings] == ["spacing-differs"]
    assert volume_geometry(stack(5, SpacingBetweenSlices=3.0)).findings == ()


def test_rounded_cosines_stay_as_the_header_has_them_and_are_recorded_orthonormal():
    iop = [0.9848, 0.1736, 0.0, -0.1736, 0.9848, 0.0]
    found = volume_geometry(stack(3, ImageOrientationPatient=iop, PixelSpacing=[1.0, 1.0]))
    np.testing.assert_allclose(found.affine[:3, 0], iop[:3], rtol=1e-15)
    np.testing.assert_allclose(found.orientation @ found.orientation.T, np.eye(2), atol=1e-15)


@given(st.lists(st.floats(-1e-3, 1e-3), min_size=6, max_size=6))
def test_orthonormal_directions_are_near_what_they_were(noise):
    almost = np.array(AXIAL).reshape(2, 3) + np.array(noise).reshape(2, 3)
    found = orthonormal(almost)
    np.testing.assert_allclose(found @ found.T, np.eye(2), atol=1e-12)
    assert np.abs(found - almost).max() < 2e-3


def test_holes_in_the_instance_numbers_are_found():
    slices = [instance((0, 0, n), n) for n in (2, 3, 6, 7, 9)]
    assert completeness(slices, None) == {
        "status": "unknown",
        "expected": None,
        "found": 5,
        "stated": None,
        "instance_numbers": [2, 9],
        "holes": [[1, 1], [4, 5], [8, 8]],
    }


def test_a_series_of_the_expected_length_is_complete():
    assert completeness(stack(5), 5)["status"] == "complete"


@pytest.mark.parametrize("expected, code", [(6, "series-incomplete"), (4, "series-too-long")])
def test_another_number_of_instances_than_expected_is_refused(expected, code):
    with pytest.raises(DataError) as caught:
        completeness(stack(5), expected)
    assert (caught.value.code, caught.value.numbers) == (code, {"found": 5, "expected": expected})


def test_an_instance_number_may_be_absent_everywhere():
    assert completeness(stack(3, InstanceNumber=None), None)["instance_numbers"] is None


@pytest.mark.parametrize(
    "numbers, holes",
    [
        pytest.param([4, 5, 6, 7], [[1, 3]], id="the first are absent"),
        pytest.param([0, 1, 2], [], id="numbers from 0"),
        pytest.param([501, 502, 503], [], id="numbers that count something else"),
    ],
)
def test_the_first_numbers_may_be_absent(numbers, holes):
    assert completeness([instance((0, 0, n), n) for n in numbers], None)["holes"] == holes


def test_more_images_may_be_stated_than_there_are():
    assert completeness(stack(3, ImagesInAcquisition=5), None)["stated"] == 5
    pet = stack(3, Modality="PT", NumberOfSlices=3, NumberOfTimeSlices=2)
    assert completeness(pet, None)["stated"] == 6


# Rule 3: what is regular


def at(depths):
    """Return one slice a depth along z, as a header holds it: with 16 characters at most."""
    return [instance((0, 0, float(f"{z:.10g}")), n + 1) for n, z in enumerate(depths)]


def test_positions_rounded_to_a_fiftieth_and_jittered_cosines_are_one_volume():
    rng = np.random.default_rng(3)
    slices = []
    for n in range(60):
        iop = (np.array(AXIAL) + rng.uniform(-1e-4, 1e-4, 6)).tolist()
        z = round((100 + 0.625 * n) / 0.02) * 0.02
        slices.append(instance((0, 0, z), n + 1, ImageOrientationPatient=iop))
    found = volume_geometry(slices)
    # Two roundings of at most 0.01 mm each: of the slice and of the ends that the grid goes through.
    assert found.regularity["off_grid_mm"] <= 0.0201
    assert found.affine[2, 2] == pytest.approx(0.625, abs=0.02 / 59)


@pytest.mark.parametrize("start", [0.0, 100.3, -553.8])
def test_positions_rounded_to_a_tenth_at_five_eighths_of_a_millimetre_are_irregular(start):
    assert refusal(at([round(start + 0.625 * n, 1) for n in range(41)])).code == "irregular-spacing"


@pytest.mark.parametrize("which", [0, 5, 10])
def test_one_step_a_fifth_longer_at_3_mm_is_irregular(which):
    steps = np.full(11, 3.0)
    steps[which] *= 1.2
    assert refusal(at(np.concatenate([[0], np.cumsum(steps)]))).code == "irregular-spacing"


def test_one_slice_a_fifth_of_the_step_aside_is_irregular():
    depths = np.arange(11) * 3.0
    depths[4] += 0.6
    assert refusal(at(depths)).code == "irregular-spacing"


@pytest.mark.parametrize(
    "spacing, off, regular",
    [
        (1.0, 0.049, True),
        (1.0, 0.051, False),
        (10.0, 0.199, True),
        (10.0, 0.201, False),
    ],
)
def test_a_slice_may_lie_a_twentieth_of_a_millimetre_or_two_percent_off_the_grid(spacing, off, regular):
    depths = np.arange(9) * spacing
    depths[4] += off
    if regular:
        assert volume_geometry(at(depths)).regularity["off_grid_mm"] == pytest.approx(off)
    else:
        assert refusal(at(depths)).code == "irregular-spacing"


def test_every_tolerance_has_the_value_that_the_rule_gives_it():
    assert TOLERANCES == {
        "position_off_grid_mm": 0.05,
        "position_off_grid_spacing": 0.02,
        "step_off": 0.25,
        "same_position_mm": 0.01,
        "cosine_off": 1e-3,
        "pixel_spacing_off": 1e-4,
        "tilt_degrees": 0.05,
        "tilt_voxels": 0.1,
        "setting_off": 0.01,
        "plane_degrees": 20.0,
    }


@given(
    turn=st.tuples(angles, angles, angles),
    shear=st.tuples(*[st.floats(-2, 2)] * 2),
    spacing=st.floats(0.1, 20),
    count=st.integers(2, 12),
)
def test_any_shear_is_kept_to_the_last_digit(turn, shear, spacing, count):
    rotation = turned(*turn)
    step = rotation @ np.array([*shear, 1.0]) * spacing
    found = volume_geometry(stack(count, step, ImageOrientationPatient=[*rotation[:, 0], *rotation[:, 1]]))
    np.testing.assert_allclose(found.affine[:3, 2], step, atol=1e-9)
    degrees = math.degrees(math.atan(math.hypot(*shear)))
    assert found.tilt["degrees"] == pytest.approx(degrees, abs=1e-5)
    shift = math.hypot(*shear) * spacing * (count - 1)
    if abs(degrees - 0.05) > 1e-4 and abs(shift - 0.15) > 1e-6:
        assert found.tilt["sheared"] == (degrees > 0.05 and shift > 0.15)


# Patients lie in many ways: the cosines say how, the patient's position does not.


@pytest.mark.parametrize(
    "position, iop, step, plane",
    [
        pytest.param("HFP", [-1.0, 0, 0, 0, -1.0, 0], (0, 0, 3), "axial", id="prone"),
        pytest.param("FFS", [-1.0, 0, 0, 0, 1.0, 0], (0, 0, -3), "axial", id="feet first, seen from the head"),
        pytest.param("HFDR", [0, -1.0, 0, 1.0, 0, 0], (0, 0, 3), "axial", id="decubitus right"),
        pytest.param("HFDL", [0, 1.0, 0, -1.0, 0, 0], (0, 0, 3), "axial", id="decubitus left"),
        pytest.param("FFDL", [0, 1.0, 0, 1.0, 0, 0], (0, 0, -3), "axial", id="feet first, decubitus"),
        pytest.param("HFS", CORONAL, (0, 3, 0), "coronal", id="coronal"),
        pytest.param("HFS", SAGITTAL, (-3, 0, 0), "sagittal", id="sagittal"),
    ],
)
def test_a_patient_may_lie_as_he_likes(position, iop, step, plane):
    slices = stack(4, step, (5, 6, 7), ImageOrientationPatient=iop, PatientPosition=position)
    found = volume_geometry(slices[::-1])
    row, column = np.array(iop[:3]), np.array(iop[3:])
    for k in range(4):
        header = np.array([5, 6, 7]) + np.array(step) * k + row * 1.5 * 5 + column * 2.0 * 3
        np.testing.assert_allclose((found.affine @ [5, 3, k, 1])[:3], header, atol=1e-12)
    assert (found.plane, found.tilt["sheared"]) == (plane, False)
    assert np.linalg.det(found.affine[:3, :3]) > 0


# Uneven slices, where they are allowed


def test_missing_slices_leave_their_places_free():
    found = volume_geometry(at([0, 3, 6, 15, 18]), uneven=True)
    assert found.offsets == (0, 1, 2, 5, 6)
    assert found.missing == pytest.approx((9, 12))
    np.testing.assert_allclose(found.affine[:3, 2], [0, 0, 3], rtol=1e-12)
    assert not found.regularity["regular"]
    assert found.coverage_mm == pytest.approx(21)
    assert [f.code for f in found.findings] == ["uneven-spacing"]


def test_slices_that_lie_anyhow_get_a_grid_of_the_smallest_step():
    found = volume_geometry(at([0, 2, 5, 8]), uneven=True)
    # 8 mm in steps as near to 2 mm as fit: 4 of them.
    assert found.offsets == pytest.approx((0, 1, 2.5, 4))
    assert found.missing == pytest.approx((4, 6))
    np.testing.assert_allclose(found.affine[:3, 2], [0, 0, 2], rtol=1e-12)


def test_regular_slices_are_no_uneven_ones_though_these_are_allowed():
    found = volume_geometry(stack(5), uneven=True)
    assert (found.offsets, found.missing, found.findings) == (None, (), ())


def test_slices_on_no_line_have_no_grid():
    slices = at([0, 3, 6, 12])
    slices[1] = instance((0, 5, 3), 2)
    assert refusal(slices, uneven=True).code in ("irregular-spacing", "missing-slices")


def test_a_grid_far_finer_than_the_slices_is_refused():
    assert refusal(at([0, 0.1, 200]), uneven=True).code == "irregular-spacing"


@pytest.mark.parametrize(
    "depths, runs",
    [
        pytest.param([0, 3, 6, 9], [[0, 3, 6, 9]], id="no gap"),
        pytest.param([0, 3, 6, 15, 18], [[0, 3, 6], [15, 18]], id="one gap"),
        pytest.param([0, 10, 13, 16], [[0], [10, 13, 16]], id="a slice that stands alone at the start"),
        pytest.param([0, 3, 6, 20], [[0, 3, 6], [20]], id="a slice that stands alone at the end"),
        pytest.param(
            [0, 3, 6, 20, 40, 43, 46], [[0, 3, 6], [20], [40, 43, 46]], id="a slice that stands alone between"
        ),
        pytest.param([0, 1, 2, 3, 8, 13, 18], [[0, 1, 2, 3], [8, 13, 18]], id="another spacing after a while"),
    ],
)
def test_regular_runs_are_found(depths, runs):
    found = regular_runs(at(depths)[::-1])
    assert [[f.get("ImagePositionPatient")[2] for f in run] for run in found] == runs


def test_rounded_positions_do_not_tear_a_run():
    depths = [round((0.625 * n) / 0.02) * 0.02 for n in range(80)]
    found = regular_runs(at([z for n, z in enumerate(depths) if n not in (40, 41)]))
    assert [len(run) for run in found] == [40, 38]
    for run in found:
        volume_geometry(run)


def test_a_run_of_a_tilted_stack_is_a_volume():
    slices = [s for n, s in enumerate(stack(9, (0, 0.6, 3))) if n != 4]
    for run in regular_runs(slices):
        np.testing.assert_allclose(volume_geometry(run).affine[:3, 2], [0, 0.6, 3], atol=1e-12)


@given(
    steps=st.lists(st.sampled_from([1.0, 2.0, 2.5, 5.0]), min_size=1, max_size=30),
    noise=st.lists(st.floats(-0.02, 0.02), min_size=31, max_size=31),
)
def test_every_run_is_a_volume_and_no_slice_is_lost(steps, noise):
    depths = np.concatenate([[0], np.cumsum(steps)]) + np.array(noise[: len(steps) + 1])
    slices = at(depths)
    runs = regular_runs(slices)
    assert [f.path for run in runs for f in run] == [s.path for s in slices]
    for run in runs:
        if len(run) > 1:
            assert volume_geometry(run).offsets is None


@given(st.lists(st.integers(-50, 50), min_size=1, max_size=40))
def test_levels_number_the_positions(places):
    found = levels_of(np.array(places) * 0.5)
    ranks = {value: rank for rank, value in enumerate(sorted(set(places)))}
    assert found.tolist() == [ranks[value] for value in places]
