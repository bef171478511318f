"""One volume on another's grid: linear ramps in mm stay what they are; SimpleITK agrees where a grid is orthogonal."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdcli.errors import DataError
from mdcli.imaging.resample import index_map, orthogonal_grid, resample
from tests.imaging.test_nifti import affines, rotation

GRADIENT = np.array([0.7, -1.3, 2.1])


def ramp(shape, affine):
    """Return 0.7 x - 1.3 y + 2.1 z + 5 at every voxel centre, (k, j, i), and what it is in general."""
    k, j, i = np.indices(shape)
    points = np.stack([i, j, k], -1) @ affine[:3, :3].T + affine[:3, 3]
    return points @ GRADIENT + 5, points


def whole(*args, **more):
    return np.concatenate(list(resample(*args, **more)))


def made(spacing, origin=(0, 0, 0), angles=(0, 0, 0), shear=0.0):
    affine = np.eye(4)
    affine[:3, :3] = rotation(angles) @ np.diag(spacing)
    affine[:3, 2] += shear * affine[:3, 1]
    affine[:3, 3] = origin
    return affine


@settings(max_examples=80, deadline=None)
@given(source=affines(sheared=True), target=affines(sheared=True), shift=st.tuples(*[st.floats(-3, 3)] * 3))
def test_a_linear_function_of_millimetres_is_the_same_on_any_other_grid(source, target, shift):
    source[:3, 3] *= 0.1
    target[:3, 3] = source[:3, :3] @ [3, 4, 2] + source[:3, 3] + shift
    values, _ = ramp((5, 9, 7), source)
    expected, points = ramp((4, 6, 5), target)
    found = whole(values, source, (4, 6, 5), target, order="linear", fill=-9999.0)
    index = (points - source[:3, 3]) @ np.linalg.inv(source[:3, :3]).T
    last = np.array([6, 8, 4])
    inside = ((index >= 1e-3) & (index <= last - 1e-3)).all(-1)
    outside = ((index < -0.501) | (index > last + 0.501)).any(-1)
    np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-9, atol=1e-8)
    assert (found[outside] == -9999).all()


@settings(max_examples=60, deadline=None)
@given(affine=affines(sheared=True), start=st.tuples(*[st.integers(-2, 3)] * 3), data=st.randoms(use_true_random=False))
def test_a_voxel_on_a_voxel_is_copied_bit_for_bit_and_the_edge_counts_for_nobody_else(affine, start, data):
    rng = np.random.default_rng(data.randrange(1 << 30))
    values = rng.normal(size=(4, 5, 6)).astype(np.float32)
    target = affine.copy()
    target[:3, 3] += affine[:3, :3] @ np.array(start[::-1], float)
    for order in ("linear", "nearest"):
        found = whole(values, affine, (4, 5, 6), target, order=order, fill=np.float32(-7))
        expected = np.full((4, 5, 6), -7, np.float32)
        for place in np.ndindex(4, 5, 6):
            at = np.add(place, start)
            if (at >= 0).all() and (at < values.shape).all():
                expected[place] = values[tuple(at)]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("order", ["linear", "nearest"])
@pytest.mark.parametrize(
    "angles",
    [
        pytest.param((0, 0, 0), id="same axes"),
        pytest.param((np.pi / 2, 0, 0), id="axes changed places"),
        pytest.param((0, 0, 0.4), id="turned about the slice normal"),
        pytest.param((0.3, -0.2, 0.5), id="oblique"),
    ],
)
def test_simpleitk_agrees_between_orthogonal_grids(angles, order):
    import SimpleITK as sitk

    rng = np.random.default_rng(4)
    values = rng.integers(-1000, 2000, (12, 20, 16)).astype(np.int16)
    source, target = made((0.8, 0.9, 2.5), (10, -20, 30)), made((1.1, 0.7, 1.3), (12, -18, 33), angles)
    shape = (14, 18, 11)

    def image_of(array, affine):
        image = sitk.GetImageFromArray(array)
        sizes = np.linalg.norm(affine[:3, :3], axis=0)
        image.SetSpacing(sizes.tolist())
        image.SetOrigin(affine[:3, 3].tolist())
        image.SetDirection((affine[:3, :3] / sizes).ravel().tolist())
        return image

    reference = image_of(np.zeros(shape, np.float32), target)
    how = sitk.sitkLinear if order == "linear" else sitk.sitkNearestNeighbor
    kind = sitk.sitkFloat64 if order == "linear" else sitk.sitkInt16
    expected = sitk.GetArrayFromImage(
        sitk.Resample(image_of(values, source), reference, sitk.Transform(), how, -2000.0, kind)
    )
    found = whole(values, source, shape, target, order=order, fill=-2000)
    assert found.dtype == (np.float32 if order == "linear" else np.int16)
    # Within half a voxel of the border md and SimpleITK have rules of their own.
    index = (ramp(shape, target)[1] - source[:3, 3]) @ np.linalg.inv(source[:3, :3]).T
    inside = ((index >= 0) & (index <= [15, 19, 11])).all(-1)
    assert inside.sum() > 300
    if order == "linear":
        np.testing.assert_allclose(found[inside], expected[inside], rtol=1e-4, atol=1e-2)
    else:
        off_half = (np.abs(index - np.floor(index) - 0.5) > 1e-5).all(-1)
        np.testing.assert_array_equal(found[inside & off_half], expected[inside & off_half])


def test_within_half_a_voxel_of_the_border_the_edge_counts_and_beyond_it_the_fill():
    values = np.array([10.0, 20.0, 30.0], np.float32).reshape(1, 1, 3)
    target = made((0.25, 1, 1), (-0.75, 0, 0))
    found = whole(values, np.eye(4), (1, 1, 15), target, order="linear", fill=-1)
    # Centres at -0.75, -0.5, ... 2.75 of voxels at 0, 1, 2.
    inner = [10 + 2.5 * n for n in range(9)]
    assert found.ravel().tolist() == [-1, 10, 10, *inner, 30, 30, -1]


def test_half_way_the_nearest_is_the_next_voxel_all_along():
    values = np.arange(12, dtype=np.uint8).reshape(1, 1, 12)
    target = made((2, 1, 1), (0.5, 0, 0))
    assert whole(values, np.eye(4), (1, 1, 5), target, order="nearest", fill=0).ravel().tolist() == [1, 3, 5, 7, 9]


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "uint32", "float32", "float64"])
def test_linear_keeps_every_value_of_a_type_where_the_grids_are_one(kind):
    values = np.array([0, 1, 127, 100], kind).reshape(1, 2, 2)
    if kind.endswith("32") and kind != "float32":
        values[0, 0, 0] = np.iinfo(kind).max - 1
    found = whole(values, np.eye(4), (1, 2, 2), np.eye(4), order="linear", fill=0)
    assert found.dtype == (np.float64 if kind in ("int32", "uint32", "float64") else np.float32)
    assert (found == values).all()


def test_what_is_no_number_stays_where_it_is():
    values = np.ones((3, 3, 3), np.float32)
    values[1, 1, 1], values[0, 0, 0] = np.nan, np.inf
    for target in (np.eye(4), made((1, 1, 1), (1e-9, 0, 0), (1e-12, 1e-12, 1e-12))):
        np.testing.assert_array_equal(whole(values, np.eye(4), (3, 3, 3), target, order="linear", fill=0), values)


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("turned", [False, True], ids=["same axes", "oblique"])
def test_uneven_slices_are_interpolated_by_their_real_distances(falling, turned):
    affine = made((1, 1, 2), (5, 6, 7))
    planes = np.array([0.0, 1.0, 1.5, 4.0])
    planes = 4 - planes if falling else planes
    k, j, i = np.meshgrid(planes, np.arange(5), np.arange(6), indexing="ij")
    values = (np.stack([i, j, k], -1) @ affine[:3, :3].T + affine[:3, 3]) @ GRADIENT
    target = affine.copy()
    if turned:
        target[:3, :3] = rotation((0.05, 0.03, 0.1)) @ target[:3, :3]
        target[:3, 3] += [1.2, 1.3, 0.4]
    expected, points = ramp((9, 4, 4), target @ np.diag([0.7, 0.7, 0.5, 1]))
    found = whole(
        values, affine, (9, 4, 4), target @ np.diag([0.7, 0.7, 0.5, 1]), order="linear", fill=-999, planes=planes
    )
    index = (points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    inside = ((index >= 0) & (index <= [5, 4, 4])).all(-1)
    assert inside.sum() > 50
    np.testing.assert_allclose(found[inside], expected[inside] - 5, rtol=1e-9)


def test_a_missing_slice_is_made_from_its_neighbours_and_the_others_are_copied():
    rng = np.random.default_rng(1)
    values = rng.integers(0, 4000, (4, 3, 3)).astype(np.int16)
    affine = made((1, 1, 3.0))
    planes = np.array([0.0, 1.0, 3.0, 4.0])
    found = whole(values, affine, (5, 3, 3), affine, order="linear", fill=0, planes=planes)
    for k, source in ((0, 0), (1, 1), (3, 2), (4, 3)):
        np.testing.assert_array_equal(found[k], values[source])
    np.testing.assert_array_equal(found[2], (values[1] + values[2].astype(float)) / 2)


def test_a_thread_pool_gives_the_same_slabs(monkeypatch):
    monkeypatch.setattr("mdcli.imaging.resample._SLAB_VOXELS", 200)
    rng = np.random.default_rng(2)
    values = rng.normal(size=(20, 10, 10)).astype(np.float32)
    target = made((0.9, 1.1, 0.8), (1, 1, 1), (0.1, 0.2, 0.3))
    one = list(resample(values, np.eye(4), (21, 10, 10), target, order="linear", fill=0))
    two = list(resample(values, np.eye(4), (21, 10, 10), target, order="linear", fill=0, jobs=3))
    assert len(one) == 11 and all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_tilted_volume_gets_an_upright_grid_with_its_spacing_that_holds_all_of_it():
    # 10 slices of 3 mm; each 0.75 mm further along the column: 6.75 mm at the end, 7 rows of 1 mm more.
    affine = made((1.5, 1, 3), (-10, 20, 100))
    affine[1, 2] = 0.75
    shape, grid = orthogonal_grid((10, 40, 30), affine)
    assert shape == (10, 47, 30)
    np.testing.assert_allclose(grid, made((1.5, 1, 3), (-10, 20, 100)))
    affine[1, 2] = -0.75
    shape, grid = orthogonal_grid((10, 40, 30), affine)
    assert shape == (10, 47, 30)
    np.testing.assert_allclose(grid, made((1.5, 1, 3), (-10, 13.25, 100)))


@settings(max_examples=60, deadline=None)
@given(affine=affines(sheared=True))
def test_every_voxel_centre_of_a_sheared_volume_is_within_its_upright_grid(affine):
    shape, grid = orthogonal_grid((6, 5, 4), affine)
    axes = grid[:3, :3] / np.linalg.norm(grid[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    # The rows run the same way, and the slices stay planes of their own.
    np.testing.assert_allclose(grid[:3, 0], affine[:3, 0], atol=1e-9)
    np.testing.assert_allclose(index_map(affine, grid)[2, :2], 0, atol=1e-9)
    assert index_map(affine, grid)[2, 2] == pytest.approx(1)
    corners = np.array([[i, j, k, 1] for i in (0, 3) for j in (0, 4) for k in (0, 5)]) @ affine.T
    index = (corners @ np.linalg.inv(grid).T)[:, :3]
    assert (index > -1e-2).all() and (index < np.array(shape[::-1]) - 1 + 1e-2).all()
    # No smaller one would: less than one voxel is left over.
    assert (index.min(0) < 1e-2).all() and (index.max(0) > np.array(shape[::-1]) - 2 - 1e-2).all()


def test_a_new_spacing_keeps_the_first_centre_and_stays_within_the_volume():
    shape, grid = orthogonal_grid((10, 10, 10), made((1, 1, 4), (1, 2, 3)), spacing=(4, 0.5, 3))
    # Centres from 0 to 9 mm and half a voxel: 0 4 8; 0 0.5 ... 9.5; 0 3 ... 36 of 36 + 2.
    assert shape == (13, 20, 3)
    np.testing.assert_allclose(grid, made((4, 0.5, 3), (1, 2, 3)))
    assert orthogonal_grid((10, 10, 10), made((2, 2, 4)), isotropic=True)[0] == (20, 10, 10)


@pytest.mark.parametrize(
    "spoilt",
    [
        pytest.param(np.diag([1.0, 1, 0, 1]), id="an axis without length"),
        pytest.param(np.array([[1.0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]), id="in one plane"),
        pytest.param(np.diag([1.0, 1, np.nan, 1]), id="no number"),
    ],
)
def test_an_affine_that_is_no_way_to_millimetres_is_refused(spoilt):
    for call in (lambda: orthogonal_grid((2, 2, 2), spoilt), lambda: index_map(np.eye(4), spoilt)):
        with pytest.raises(DataError) as caught:
            call()
        assert caught.value.code == "singular-affine"


def test_a_grid_without_end_is_refused():
    with pytest.raises(DataError) as caught:
        orthogonal_grid((100, 100, 100), np.eye(4), spacing=(1e-6, 1, 1))
    assert caught.value.code == "grid-too-large"


def test_labels_get_no_fill_that_their_type_cannot_hold():
    with pytest.raises(ValueError, match="holds no"):
        whole(np.zeros((2, 2, 2), np.uint8), np.eye(4), (2, 2, 2), np.eye(4), order="nearest", fill=-1)
