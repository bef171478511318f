"""From files to volumes: every pixel of every slice at its own millimetre, whatever the series leaves to choose."""

import itertools
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdcli.dicom.loading import Wish, load_series, plan_series, told_apart
from mdcli.dicom.opening import SourceFiles
from mdcli.dicom.volumes import parse_pick
from mdcli.errors import DataError
from tests.made_series import AXIAL, CORONAL, ROOT, SAGITTAL, scan, write_slice

SPACING = (2.0, 1.5)
"""Between rows, between columns, mm."""


def ds(value):
    """Return a number as a DS element holds it: 16 characters at most."""
    for digits in range(16, 0, -1):
        if len(text := f"{value:.{digits}g}") <= 16:
            return text
    raise AssertionError(value)


def write_stack(folder, values, iop=AXIAL, start=(-10, 20, 100), step=(0, 0, 3), first=1, **more):
    """Write (k, j, i) stored values, slice k at start + k x step; a function of k gives an attribute slice by slice."""
    folder.mkdir(parents=True, exist_ok=True)
    start, step = np.array(start, float), np.array(step, float)
    for k, plane in enumerate(values):
        number = first + k
        facts = {
            "InstanceNumber": number,
            "SOPInstanceUID": f"{ROOT}1.{number}",
            "ImagePositionPatient": [ds(v) for v in start + k * step],
            "ImageOrientationPatient": [ds(v) for v in iop],
            "PixelSpacing": [ds(v) for v in SPACING],
            "RescaleIntercept": 0.0,
            **{name: value(k) if callable(value) else value for name, value in more.items()},
        }
        write_slice(folder / f"{(number * 7) % 10}{number:03d}.dcm", plane, **facts)
    return folder


def stored(count=6, shape=(5, 7), seed=5, high=4096):
    return np.random.default_rng(seed).integers(0, high, (count, *shape)).astype("u2")


def load(folder, *picks, **wish):
    """Return the plans and the values of a folder's volumes."""
    with SourceFiles(folder) as files:
        return list(load_series(files, scan(folder), Wish(pick=tuple(map(parse_pick, picks)), **wish)))


def refused(folder, *picks, **wish):
    with pytest.raises(DataError) as caught:
        load(folder, *picks, **wish)
    return caught.value


def codes(plan):
    return [f.code for f in plan.findings]


# Every pixel at its millimetre

angles = st.floats(-math.pi, math.pi)


def rotation(a, b, c):
    (ca, sa), (cb, sb), (cc, sc) = ((math.cos(v), math.sin(v)) for v in (a, b, c))
    about_z = np.array([[ca, -sa, 0], [sa, ca, 0], [0, 0, 1]])
    about_y = np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
    return about_z @ about_y @ np.array([[1, 0, 0], [0, cc, -sc], [0, sc, cc]])


def check_against_headers(folder, array, affine):
    """Hold every pixel of a folder's files against a volume, by the formula of PS3.3 C.7.6.2.1.1."""
    from pydicom import dcmread

    inverse, seen = np.linalg.inv(affine), set()
    for path in folder.iterdir():
        header = dcmread(path)
        iop = np.array(header.ImageOrientationPatient, float)
        row_spacing, column_spacing = map(float, header.PixelSpacing)
        j, i = np.mgrid[: header.Rows, : header.Columns]
        mm = np.array(header.ImagePositionPatient, float)[:, None, None]
        mm = mm + iop[:3, None, None] * column_spacing * i + iop[3:, None, None] * row_spacing * j
        voxels = np.einsum("ab,bji->aji", inverse[:3, :3], mm) + inverse[:3, 3][:, None, None]
        index = np.rint(voxels).astype(int)
        off = np.einsum("ab,bji->aji", affine[:3, :3], index - voxels)
        assert np.linalg.norm(off, axis=0).max() < 1e-3
        want = header.pixel_array * float(header.RescaleSlope) + float(header.RescaleIntercept)
        np.testing.assert_array_equal(array[index[2], index[1], index[0]], want)
        (k,) = set(index[2].ravel().tolist())
        seen.add(k)
    assert seen == set(range(len(array)))


@settings(max_examples=40, deadline=None)
@given(
    turn=st.tuples(angles, angles, angles),
    shear=st.one_of(st.just((0.0, 0.0)), st.tuples(*[st.floats(-1.5, 1.5)] * 2)),
    spacing=st.floats(0.2, 12),
    start=st.tuples(*[st.floats(-900, 900)] * 3),
    order=st.integers(1, 12).flatmap(lambda n: st.permutations(range(n))),
    slope=st.sampled_from([1, 2, -1]),
)
def test_every_pixel_of_every_slice_is_at_its_own_millimetre(turn, shear, spacing, start, order, slope):
    turned = rotation(*turn)
    step = turned @ np.array([*shear, 1.0]) * spacing
    values = stored(len(order), (3, 4))
    with tempfile.TemporaryDirectory() as name:
        folder = write_stack(
            Path(name),
            values,
            [*turned[:, 0], *turned[:, 1]],
            start,
            step,
            InstanceNumber=lambda k: order[k] + 1,
            RescaleSlope=slope,
            SliceThickness=ds(spacing),
        )
        ((plan, array),) = load(folder, single_slice=True)
        check_against_headers(folder, array, plan.affine)
    np.testing.assert_array_equal(array, values.astype(int) * slope)
    assert plan.regrid is None


@pytest.mark.parametrize(
    "position, iop, step",
    [
        pytest.param("HFS", AXIAL, (0, 0, 3), id="head first, supine"),
        pytest.param("HFS", AXIAL, (0, 0, -3), id="head first, supine, from the head down"),
        pytest.param("HFP", [-1, 0, 0, 0, -1, 0], (0, 0, 3), id="prone"),
        pytest.param("FFS", [-1, 0, 0, 0, 1, 0], (0, 0, -3), id="feet first"),
        pytest.param("FFP", [1, 0, 0, 0, -1, 0], (0, 0, 3), id="feet first, prone"),
        pytest.param("HFDR", [0, -1, 0, 1, 0, 0], (0, 0, 3), id="decubitus right"),
        pytest.param("HFDL", [0, 1, 0, -1, 0, 0], (0, 0, 3), id="decubitus left"),
        pytest.param("FFDR", [0, -1, 0, -1, 0, 0], (0, 0, 3), id="feet first, decubitus right"),
        pytest.param("HFS", CORONAL, (0, -3, 0), id="coronal, from the back to the front"),
        pytest.param("HFS", SAGITTAL, (3, 0, 0), id="sagittal, from the right to the left"),
    ],
)
def test_a_patient_may_lie_as_he_likes(tmp_path, position, iop, step):
    folder = write_stack(tmp_path / "d", stored(), iop, step=step, PatientPosition=position)
    ((plan, array),) = load(folder)
    check_against_headers(folder, array, plan.affine)
    # Slices follow the normal, so that i, j, k are right-handed in LPS+.
    assert np.linalg.det(plan.affine[:3, :3]) > 0


# Gaps


def test_gaps_are_filled_by_straight_lines_and_the_source_slices_stay_bit_for_bit(tmp_path):
    values = stored(5, high=1 << 16)
    at = [0, 1, 4, 5, 7]
    folder = write_stack(tmp_path / "d", values, ImagePositionPatient=lambda k: ["-10", "20", str(100 + 3 * at[k])])
    error = refused(folder)
    assert (error.code, error.numbers["positions_mm"]) == ("missing-slices", pytest.approx([106, 109, 118]))
    assert "--on-gap" in error.hint
    ((plan, array),) = load(folder, on_gap="resample")
    assert array.shape == (8, 5, 7)
    np.testing.assert_array_equal(array[at], values)
    exact = values.astype(float)
    for k, low, high, share in [(2, 1, 2, 1 / 3), (3, 1, 2, 2 / 3), (6, 3, 4, 1 / 2)]:
        np.testing.assert_allclose(array[k], exact[low] * (1 - share) + exact[high] * share, rtol=2e-7, atol=1e-3)
    assert plan.regrid.made == (2, 3, 6)
    assert plan.regrid.why == ("gap",)
    np.testing.assert_allclose(plan.affine, [[1.5, 0, 0, -10], [0, 2, 0, 20], [0, 0, 3, 100], [0, 0, 0, 1]], atol=1e-12)
    assert codes(plan) == ["uneven-spacing"]


def test_slices_that_lie_anyhow_are_interpolated_where_the_grid_wants_them(tmp_path):
    at = [0.0, 2.0, 5.0, 8.0]
    values = stored(4)
    folder = write_stack(tmp_path / "d", values, ImagePositionPatient=lambda k: ["0", "0", str(at[k])])
    assert refused(folder).code == "irregular-spacing"
    ((plan, array),) = load(folder, on_gap="resample")
    # The smallest step of 2 mm: slices at 0, 2, 4, 6 and 8 mm, of which the series has 0, 2 and 8.
    exact = values.astype(float)
    want = [exact[0], exact[1], exact[1] / 3 + exact[2] * 2 / 3, exact[2] * 2 / 3 + exact[3] / 3, exact[3]]
    np.testing.assert_allclose(array, want, rtol=1e-6)
    for k, source in ((0, 0), (1, 1), (4, 3)):
        np.testing.assert_array_equal(array[k], values[source])
    assert plan.regrid.made == (2, 3)


def test_steps_that_drift_are_not_taken_for_a_regular_stack_with_a_gap(tmp_path):
    # 3.00 mm, then 3.05 mm, then one of twice that: on a grid of (last - first) / n slices lie more than a tenth aside.
    at = np.concatenate([[0], np.cumsum([3.0] * 4 + [3.05] * 4 + [6.1])])
    ramp = np.rint(at * 100).astype("u2")[:, None, None] * np.ones((1, 3, 4), "u2")
    folder = write_stack(tmp_path / "d", ramp, ImagePositionPatient=lambda k: ["0", "0", ds(at[k])])
    ((plan, array),) = load(folder, on_gap="resample")
    # The values are the place in hundredths of a millimetre: each slice says where it should be.
    where = plan.affine[2, 3] + plan.affine[2, 2] * np.arange(len(array))
    np.testing.assert_allclose(array[:, 0, 0], where * 100, atol=0.02)


def test_a_gap_is_divided_into_runs_of_their_own(tmp_path):
    values = stored(7)
    at = [0, 1, 2, 5, 6, 9, 30]
    folder = write_stack(tmp_path / "d", values, ImagePositionPatient=lambda k: ["-10", "20", str(100 + 3 * at[k])])
    with SourceFiles(folder) as files:
        planned = plan_series(files, scan(folder), Wish(on_gap="split"))
    assert [(frame.get("InstanceNumber"), why) for frame, why in planned.dropped] == [
        (6, "alone-between-gaps"),
        (7, "alone-between-gaps"),
    ]
    assert [f.code for f in planned.findings] == ["slices-left-out"]
    found = load(folder, on_gap="split")
    assert [(plan.name, told_apart(plan)) for plan, _ in found] == [("run_1", {"run": 1}), ("run_2", {"run": 2})]
    for (plan, array), (k, z) in zip(found, [(slice(0, 3), 100), (slice(3, 5), 115)], strict=True):
        np.testing.assert_array_equal(array, values[k])
        np.testing.assert_allclose(plan.affine[:3, 3], [-10, 20, z])
        assert plan.regrid is None


def test_slices_that_stand_alone_are_runs_where_one_slice_may_be_a_volume(tmp_path):
    at = [0, 1, 2, 9]
    folder = write_stack(tmp_path / "d", stored(4), ImagePositionPatient=lambda k: ["0", "0", str(3 * at[k])])
    assert [array.shape[0] for _, array in load(folder, on_gap="split", single_slice=True)] == [3, 1]


def test_a_regular_series_has_no_runs(tmp_path):
    folder = write_stack(tmp_path / "d", stored())
    for way in ("resample", "split"):
        ((plan, array),) = load(folder, on_gap=way)
        assert (plan.name, plan.regrid) == (None, None)
        np.testing.assert_array_equal(array, stored())


def test_slices_far_apart_are_no_runs(tmp_path):
    at = [0, 1, 10, 100]
    folder = write_stack(tmp_path / "d", stored(4)[::2], ImagePositionPatient=lambda k: ["0", "0", str(at[k])])
    # Two slices alone are a regular run, whatever lies between them.
    assert len(load(folder, on_gap="split")) == 1


# Tilt


def ramp_of(shape, start, step, iop=AXIAL):
    """Return 2 x + 3 y + 5 z of every voxel: whole numbers where the places in mm are chosen so."""
    iop = np.array(iop, float)
    k, j, i = np.mgrid[: shape[0], : shape[1], : shape[2]]
    mm = np.array(start, float)[:, None, None, None] + np.array(step, float)[:, None, None, None] * k
    mm = mm + iop[:3, None, None, None] * SPACING[1] * i + iop[3:, None, None, None] * SPACING[0] * j
    return np.einsum("a,akji->kji", [2, 3, 5], mm)


@pytest.mark.parametrize("step", [(0, 1, 3), (0, -2, 3), (1, 0, 3), (2, -1, 4)])
@pytest.mark.parametrize("tag", [None, 18.4])
def test_a_tilted_stack_is_loaded_sheared_and_untilted_on_request(tmp_path, step, tag):
    start, shape = (10, 20, 100), (8, 12, 14)
    ramp = ramp_of(shape, start, step)
    folder = write_stack(tmp_path / "d", np.rint(ramp).astype("u2"), start=start, step=step, GantryDetectorTilt=tag)
    ((plan, array),) = load(folder)
    np.testing.assert_allclose(plan.affine[:3, 2], step, atol=1e-12)
    assert codes(plan) == ["gantry-tilt" if tag else "sheared-volume"]
    check_against_headers(folder, array, plan.affine)

    ((plan, array),) = load(folder, untilt=True)
    axes = plan.affine[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.diag([1.5**2, 2.0**2, step[2] ** 2]), atol=1e-9)
    assert plan.regrid.why == ("tilt",)
    assert plan.regrid.made is None
    # Where a voxel lies in the source, from the headers alone.
    source = np.eye(4)
    source[:3, :3] = np.column_stack([[1.5, 0, 0], [0, 2.0, 0], step])
    source[:3, 3] = start
    k, j, i = np.mgrid[: array.shape[0], : array.shape[1], : array.shape[2]]
    mm = np.einsum("ab,bkji->akji", plan.affine, np.stack([i, j, k, np.ones_like(i)]).astype(float))
    place = np.einsum("ab,bkji->akji", np.linalg.inv(source), mm)[:3]
    last = np.array(shape[::-1])[:, None, None, None] - 1
    inside = ((place > -1e-6) & (place < last + 1e-6)).all(axis=0)
    want = np.einsum("a,akji->kji", [2, 3, 5], mm[:3])
    np.testing.assert_allclose(array[inside], want[inside], rtol=1e-6)
    outside = ((place < -0.51) | (place > last + 0.51)).any(axis=0)
    # In HU, air.
    assert (array[outside] == -1024).all()
    # No source voxel lies outside of the new grid.
    corners = np.array(list(itertools.product([0, shape[2] - 1], [0, shape[1] - 1], [0, shape[0] - 1], [1])), float)
    new = (np.linalg.inv(plan.affine) @ source @ corners.T)[:3].T
    assert (new > -0.5).all()
    assert (new < np.array(array.shape[::-1]) - 0.5).all()


def test_untilt_leaves_a_straight_stack_alone(tmp_path):
    ((plan, array),) = load(write_stack(tmp_path / "d", stored()), untilt=True)
    assert plan.regrid is None
    np.testing.assert_array_equal(array, stored())


def test_a_gap_and_a_tilt_are_mended_at_once(tmp_path):
    start, step, at = (10, 20, 100), np.array([0, 1, 3]), [0, 1, 2, 4, 5]
    ramp = np.rint(ramp_of((6, 12, 14), start, step)).astype("u2")
    places = np.array(start) + np.array(at)[:, None] * step
    folder = write_stack(tmp_path / "d", ramp[at], ImagePositionPatient=lambda k: [ds(v) for v in places[k]])
    ((plan, array),) = load(folder, on_gap="resample", untilt=True)
    assert plan.regrid.why == ("gap", "tilt")
    k, j, i = 3, 6, 7
    mm = (plan.affine @ [i, j, k, 1])[:3]
    assert array[k, j, i] == pytest.approx(mm @ [2, 3, 5], rel=1e-6)


# Several volumes


def write_many(folder, volumes, order=None, **facts):
    """Write (t, k, j, i) as one series; each fact is a function of (t, k)."""
    count = len(volumes[0])
    for t, values in enumerate(volumes):
        more = {name: (lambda k, v=value, t=t: v(t, k)) for name, value in facts.items()}
        write_stack(folder, values, first=1 + t * count, **more)
    return folder


@pytest.fixture
def echoes(tmp_path):
    """Two echoes of four slices: the folder, and its values."""
    values = np.stack([stored(4, seed=1), stored(4, seed=2)])
    return write_many(
        tmp_path / "d", values, EchoNumbers=lambda t, k: t + 1, EchoTime=lambda t, k: 4.6 * (t + 1)
    ), values


def test_two_echoes_are_refused_with_a_list(echoes):
    error = refused(echoes[0])
    assert (error.code, error.status, error.numbers) == (
        "several-volumes",
        65,
        {"volumes": 2, "differs": ["EchoNumbers"]},
    )
    assert "\n  1. echo 1 (EchoNumbers): 4 images\n  2. echo 2 (EchoNumbers): 4 images" in error.message


@pytest.mark.parametrize("pick", ["echo=2", "EchoNumbers=2", "EchoTime=9.2", "volume=2"])
def test_a_pick_loads_one_of_them(echoes, pick):
    ((plan, array),) = load(echoes[0], pick)
    np.testing.assert_array_equal(array, echoes[1][1])
    assert (plan.name, plan.dimension) == (None, None)


def test_a_split_gives_each_of_them_by_name(echoes):
    found = load(echoes[0], on_many="split")
    assert [(plan.name, told_apart(plan)) for plan, _ in found] == [
        ("echo_1", {"EchoNumbers": 1}),
        ("echo_2", {"EchoNumbers": 2}),
    ]
    for (_, array), values in zip(found, echoes[1], strict=True):
        np.testing.assert_array_equal(array, values)


def test_a_fourth_axis_holds_both_with_its_values(echoes):
    ((plan, array),) = load(echoes[0], on_many="4d")
    np.testing.assert_array_equal(array, echoes[1])
    assert plan.dimension == {"name": "echo", "keywords": ["EchoNumbers"], "unit": None, "values": [1, 2]}


def test_the_fourth_axis_takes_a_type_that_holds_all_of_it(tmp_path):
    values = np.stack([stored(3, high=100), np.full((3, 5, 7), 65535, "u2")])
    folder = write_many(tmp_path / "d", values, EchoNumbers=lambda t, k: t + 1, RescaleIntercept=lambda t, k: -10.0)
    ((_, array),) = load(folder, on_many="4d")
    np.testing.assert_array_equal(array, values.astype(int) - 10)


def test_slopes_that_differ_by_time_are_kept(tmp_path):
    values = np.stack([stored(3, seed=n) for n in range(3)])
    slopes = [0.5, 1.25, 3.0]
    folder = write_many(
        tmp_path / "d", values, TemporalPositionIdentifier=lambda t, k: t + 1, RescaleSlope=lambda t, k: slopes[t]
    )
    ((plan, array),) = load(folder, on_many="4d")
    np.testing.assert_array_equal(array, values * np.array(slopes)[:, None, None, None])
    assert plan.dimension["name"] == "time"


def test_times_on_two_grids_share_no_axis(tmp_path):
    values = np.stack([stored(3), stored(3)])
    folder = write_many(
        tmp_path / "d",
        values,
        EchoNumbers=lambda t, k: t + 1,
        ImagePositionPatient=lambda t, k: [ds(5.0 * t), "0", ds(3.0 * k)],
    )
    assert refused(folder, on_many="4d").code == "several-grids"
    assert len(load(folder, on_many="split")) == 2


def test_volumes_of_unlike_length_share_no_axis(tmp_path):
    write_stack(tmp_path / "d", stored(5), EchoNumbers=1)
    folder = write_stack(tmp_path / "d", stored(4), first=6, EchoNumbers=2)
    assert refused(folder, on_many="4d").code == "several-grids"
    assert [len(array) for _, array in load(folder, on_many="split")] == [5, 4]


def test_volumes_of_two_frames_of_reference_share_no_axis(tmp_path):
    values = np.stack([stored(3), stored(3)])
    folder = write_many(
        tmp_path / "d", values, EchoNumbers=lambda t, k: t + 1, FrameOfReferenceUID=lambda t, k: f"1.2.{t}"
    )
    assert refused(folder, on_many="4d").code == "several-frames-of-reference"
    assert len(load(folder, on_many="split")) == 2


def test_two_frames_of_reference_are_no_volume_by_any_option(tmp_path):
    folder = write_stack(tmp_path / "d", stored(), FrameOfReferenceUID=lambda k: f"1.2.{k // 3}")
    for wish in ({}, {"on_many": "split"}, {"on_many": "4d"}, {"on_gap": "resample"}):
        assert refused(folder, **wish).code == "several-frames-of-reference"


def test_mixed_kinds_share_no_axis_but_may_be_split(tmp_path):
    folder = write_stack(tmp_path / "d", stored(), ConvolutionKernel=lambda k: "B30f" if k < 3 else "B70f")
    assert refused(folder).code == "mixed-kinds"
    assert refused(folder, on_many="4d").code == "mixed-kinds"
    assert [len(array) for _, array in load(folder, on_many="split")] == [3, 3]
    assert len(load(folder, "kernel=B70f")[0][1]) == 3


def test_orientations_share_no_axis_but_may_be_split_or_picked(tmp_path):
    axial, coronal = stored(6, seed=1), stored(6, seed=2)
    write_stack(tmp_path / "d", axial)
    folder = write_stack(tmp_path / "d", coronal, CORONAL, step=(0, 3, 0), first=7)
    assert refused(folder).code == "mixed-orientations"
    assert refused(folder, on_many="4d").code == "mixed-orientations"
    found = load(folder, on_many="split")
    assert sorted(plan.name for plan, _ in found) == ["orientation_1", "orientation_2"]
    ((plan, array),) = load(folder, "orientation=coronal")
    np.testing.assert_array_equal(array, coronal)
    assert plan.geometry.plane == "coronal"


def test_a_localizer_is_left_out_and_named(tmp_path):
    write_stack(tmp_path / "d", stored(12))
    folder = write_stack(tmp_path / "d", stored(2, (9, 9)), SAGITTAL, step=(-3, 0, 0), first=13)
    with SourceFiles(folder) as files:
        planned = plan_series(files, scan(folder), Wish())
    assert sorted(frame.get("InstanceNumber") for frame, why in planned.dropped if why == "localizer") == [13, 14]
    assert [f.code for f in planned.findings] == ["localizer-left-out"]
    ((_, array),) = load(folder)
    np.testing.assert_array_equal(array, stored(12))


def test_echoes_with_a_gap_are_runs_of_each(tmp_path):
    values = np.stack([stored(4), stored(4)])
    at = [0, 1, 5, 6]
    folder = write_many(
        tmp_path / "d",
        values,
        EchoNumbers=lambda t, k: t + 1,
        ImagePositionPatient=lambda t, k: ["0", "0", str(at[k])],
    )
    found = load(folder, on_many="split", on_gap="split")
    assert [plan.name for plan, _ in found] == ["echo_1_run_1", "echo_1_run_2", "echo_2_run_1", "echo_2_run_2"]
    assert told_apart(found[3][0]) == {"EchoNumbers": 2, "run": 2}
    assert refused(folder, on_many="4d").code == "missing-slices"
    ((_, array),) = load(folder, on_many="4d", on_gap="resample")
    assert array.shape == (2, 7, 5, 7)
    np.testing.assert_array_equal(array[:, at], values)


def test_an_image_taken_twice_is_named(tmp_path):
    write_stack(tmp_path / "d", stored())
    folder = write_stack(tmp_path / "d", stored(1, seed=9), start=(-10, 20, 106), first=7)
    error = refused(folder)
    assert error.code == "same-position"
    assert "1003.dcm" in error.message
    assert "9007.dcm" in error.message


@pytest.mark.parametrize("expected, code", [(7, "series-incomplete"), (5, "series-too-long")])
def test_the_expected_number_is_asked_before_all_else(tmp_path, expected, code):
    assert refused(write_stack(tmp_path / "d", stored()), expect_instances=expected).code == code


# Images without a plane


def write_radiograph(folder, count=1, **more):
    facts = {
        "Modality": "DX",
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1",
        "ImagePositionPatient": ...,
        "ImageOrientationPatient": ...,
        "FrameOfReferenceUID": ...,
        "PixelSpacing": ...,
        "RescaleSlope": ...,
        "RescaleIntercept": ...,
        **more,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for n, plane in enumerate(stored(count), 1):
        write_slice(folder / f"{n}.dcm", plane, InstanceNumber=n, SOPInstanceUID=f"{ROOT}1.{n}", **facts)
    return folder


@pytest.mark.parametrize(
    "facts, plane, spacing",
    [
        ({"ImagerPixelSpacing": [0.2, 0.1]}, "detector", (0.1, 0.2)),
        (
            {"ImagerPixelSpacing": [0.2, 0.1], "PixelSpacing": [0.15, 0.08], "PixelSpacingCalibrationType": "GEOMETRY"},
            "calibrated-geometry",
            (0.08, 0.15),
        ),
        (
            {"PixelSpacing": [0.15, 0.08], "PixelSpacingCalibrationType": "FIDUCIAL"},
            "calibrated-fiducial",
            (0.08, 0.15),
        ),
        ({"ImagerPixelSpacing": [0.2, 0.1], "PixelSpacing": [0.15, 0.08]}, "unknown", None),
        ({}, "unknown", None),
    ],
)
def test_a_radiograph_says_what_its_millimetres_are_of(tmp_path, facts, plane, spacing):
    ((plan, array),) = load(write_radiograph(tmp_path / "d", **facts))
    assert (plan.geometry.spacing_plane, plan.geometry.spacing_mm) == (plane, spacing)
    assert array.shape == (1, 5, 7)
    if spacing:
        np.testing.assert_allclose(np.diag(plan.affine), [*spacing, 1, 1])
    else:
        assert "no-millimetres" in codes(plan)


def test_several_radiographs_are_no_volume(tmp_path):
    folder = write_radiograph(tmp_path / "d", 3, ImagerPixelSpacing=[0.1, 0.1])
    assert refused(folder).code == "several-volumes"
    assert refused(folder, on_many="4d").code == "several-volumes"
    ((_, array),) = load(folder, "volume=2")
    np.testing.assert_array_equal(array[0], stored(3)[1])
    assert [array.shape for _, array in load(folder, on_many="split")] == [(1, 5, 7)] * 3
    assert refused(folder, "volume=4").code == "no-such-volume"


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_a_tomographic_image_without_a_plane_is_refused(tmp_path, modality):
    assert refused(write_radiograph(tmp_path / "d", Modality=modality)).code == "no-position"
