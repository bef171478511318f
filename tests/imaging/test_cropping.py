"""Boxes cut out of grids: what they must hold, where they lie, and their way back."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mdcli.errors import DataError
from mdcli.imaging.cropping import cropped_geometry, image_positions, moved, place_in, region, whole_planes
from mdcli.imaging.nifti import Volume

# i, j, k to mm: 1.5, 2 and 3 mm; the first voxel at (-10, 20, 100).
AFFINE = np.array([[1.5, 0, 0, -10], [0, 2, 0, 20], [0, 0, 3, 100], [0, 0, 0, 1.0]])
SHAPE = (6, 8, 10)
ANGLES = st.floats(-3, 3)


def box(k, j, i):
    """Return a box from three (first, last) pairs, both inside."""
    return tuple(slice(a, b + 1) for a, b in (k, j, i))


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        (0, box((3, 3), (4, 4), (5, 5))),
        (2, box((2, 4), (3, 5), (3, 7))),
        (2.01, box((2, 4), (2, 6), (3, 7))),
        (4, box((1, 5), (2, 6), (2, 8))),
        (1000, box((0, 5), (0, 7), (0, 9))),
    ],
)
def test_a_margin_is_at_least_so_many_millimetres_on_every_side(margin, expected):
    assert region(box((3, 3), (4, 4), (5, 5)), AFFINE, margin, SHAPE, AFFINE) == expected


def test_a_box_of_larger_voxels_is_held_to_their_outer_faces():
    # Voxels of 6 mm whose first is centred on the fine grid's (0, 0, 0): the voxel (0, 1, 1) reaches from 3 to 9 mm along x and y.
    coarse = AFFINE.copy()
    coarse[:3, :3] = np.diag([6.0, 6.0, 6.0])
    found = region(box((0, 0), (1, 1), (1, 1)), coarse, 0, SHAPE, AFFINE)
    # Fine voxels along i begin at 1.5 n - 0.75 mm: 2.25 for the third; the last that begins before 9 mm is the seventh, at 8.25.
    assert found == box((0, 1), (2, 4), (2, 6))


def test_a_region_beside_the_grid_is_none():
    aside = moved(AFFINE, (0, 0, 40))
    assert region(box((0, 0), (0, 0), (0, 0)), aside, 10, SHAPE, AFFINE) is None


@settings(deadline=None, max_examples=80)
@given(
    st.tuples(ANGLES, ANGLES, ANGLES),
    st.tuples(st.floats(0.5, 4), st.floats(0.5, 4), st.floats(0.5, 6)),
    st.floats(-0.6, 0.6),
    st.floats(0, 9),
    st.tuples(*(st.integers(0, n - 1) for n in SHAPE)),
)
def test_all_within_the_margin_is_in_the_box_also_of_sheared_grids(angles, sizes, shear, margin, at):
    affine = np.eye(4)
    for axis, angle in enumerate(angles):
        turn, (a, b) = np.eye(4), [n for n in range(3) if n != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        affine = affine @ turn
    affine[:3, :3] = affine[:3, :3] @ np.diag(sizes)
    affine[:3, 2] += shear * affine[:3, 1]
    assume(abs(np.linalg.det(affine)) > 0.1)
    found = region(tuple(slice(n, n + 1) for n in at), affine, margin, SHAPE, affine)
    places = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), axis=-1).reshape(-1, 3)
    apart = np.linalg.norm((places - np.array(at))[:, ::-1] @ affine[:3, :3].T, axis=1)
    for near in places[apart <= margin]:
        assert all(side.start <= n < side.stop for side, n in zip(found, near, strict=True))


def test_a_part_is_found_again_voxel_on_voxel():
    part = Volume(np.zeros((2, 3, 4), np.uint8), moved(AFFINE, (1, 2, 3)).astype(np.float32).astype(np.float64))
    assert place_in(part, SHAPE, AFFINE) == box((1, 2), (2, 4), (3, 6))


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        pytest.param(
            (2, 3, 4), moved(AFFINE, (1, 2, 3)) + np.eye(4)[:, [3]] * 0 + 0.002 * np.eye(4, 4, 3), id="2 um off"
        ),
        pytest.param((2, 3, 8), moved(AFFINE, (1, 2, 3)), id="one voxel beyond"),
        pytest.param((2, 3, 4), moved(AFFINE, (-1, 0, 0)), id="one slice before"),
        pytest.param((2, 3, 4), AFFINE @ np.diag([2.0, 1, 1, 1]), id="other spacing"),
    ],
)
def test_what_does_not_lie_on_the_voxels_is_refused(shape, affine):
    with pytest.raises(DataError) as caught:
        place_in(Volume(np.zeros(shape, np.uint8), affine), SHAPE, AFFINE)
    assert caught.value.code == "grids-differ"


def geometry(**more):
    """Return the entries of geometry.json that cropping looks at."""
    slices = [
        {"k": k, "sop_instance_uid": f"1.2.{k}", "path": f"{k}", "position_mm": [-10.0, 20.0, 100.0 + 3 * k]}
        for k in range(SHAPE[0])
    ]
    return {
        "shape": list(SHAPE),
        "affine_lps": AFFINE.tolist(),
        "regularity": {"regular": True, "step_mm": 3.0},
        "tilt": {"gantry_detector_tilt_deg": 0.0},
        "padding": None,
        "resampled": None,
        "slices": slices,
        **more,
    }


def test_the_geometry_of_a_part_says_which_images_and_where_their_voxels_lie():
    whole = geometry()
    found = cropped_geometry(whole, box((2, 4), (1, 6), (3, 9)), None)
    assert found["crop"] == {"k": [2, 5], "j": [1, 7], "i": [3, 10], "of": list(SHAPE)}
    assert found["shape"] == [3, 6, 7]
    # Three voxels of 1.5 mm to the left's side, one of 2 mm backwards, two slices of 3 mm up.
    assert np.array(found["affine_lps"])[:3, 3].tolist() == [-5.5, 22.0, 106.0]
    assert [(s["k"], s["sop_instance_uid"], s["position_mm"]) for s in found["slices"]] == [
        (0, "1.2.2", [-5.5, 22.0, 106.0]),
        (1, "1.2.3", [-5.5, 22.0, 109.0]),
        (2, "1.2.4", [-5.5, 22.0, 112.0]),
    ]
    assert found["coverage_mm"] == pytest.approx(9.0)
    assert image_positions(found) == [s["position_mm"] for s in whole["slices"][2:5]]


def test_a_part_of_a_part_is_a_part_of_the_whole():
    first = cropped_geometry(geometry(), box((1, 5), (1, 7), (2, 9)), None)
    second = cropped_geometry(first, box((1, 2), (0, 3), (4, 5)), None)
    assert second == cropped_geometry(geometry(), box((2, 3), (1, 4), (6, 7)), None)


def test_padding_by_slice_is_that_of_the_slices_that_stay():
    padding = {
        "voxels": 60,
        "stored": None,
        "range": None,
        "stored_by_slice": [[n, n] for n in range(6)],
        "range_by_slice": [[n - 1024.0, n - 1024.0] if n else None for n in range(6)],
    }
    found = cropped_geometry(geometry(padding=padding), box((0, 1), (0, 7), (0, 9)), 7)["padding"]
    assert found == {
        "voxels": 7,
        "stored": None,
        "range": None,
        "stored_by_slice": [[0, 0], [1, 1]],
        "range_by_slice": [None, [-1023.0, -1023.0]],
    }


def test_a_part_of_a_resampled_volume_keeps_all_images_that_it_was_made_of():
    resampled = {"made_slices": [0, 2, 5], "source_affine_lps": AFFINE.tolist()}
    found = cropped_geometry(geometry(resampled=resampled), box((1, 3), (0, 7), (0, 9)), None)
    assert "crop" not in found
    assert found["resampled"]["made_slices"] == [1]
    assert found["slices"] == geometry()["slices"]


def test_labels_of_a_part_go_back_to_the_whole_planes():
    labels = np.arange(1, 13, dtype=np.uint16).reshape(2, 2, 3)
    crop = {"k": [1, 3], "j": [4, 6], "i": [5, 8], "of": list(SHAPE)}
    found = whole_planes(Volume(labels, moved(AFFINE, (1, 4, 5))), crop)
    assert found.array.shape == (2, 8, 10)
    np.testing.assert_array_equal(found.array[:, 4:6, 5:8], labels)
    assert np.count_nonzero(found.array) == 12
    np.testing.assert_allclose(found.affine, moved(AFFINE, (1, 0, 0)), atol=1e-12)


@pytest.mark.parametrize(
    "crop",
    [
        {"k": [0, 2], "j": [4, 6], "i": [5, 8], "of": [6, 8, 7]},
        {"k": [0, 2], "j": [4, 6], "i": [5, 8], "of": [6, 1 << 40, 1 << 40]},
    ],
)
def test_a_part_that_can_not_be_one_is_refused_before_memory_is_taken(crop):
    with pytest.raises(DataError) as caught:
        whole_planes(Volume(np.zeros((2, 2, 3), np.uint8), AFFINE), crop)
    assert caught.value.code == "bad-artifact"
