"""From the volume's grid to the network's: orientation, spacing, intensity; against MONAI and by hand."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mdcli.errors import ConfigError, DataError
from mdcli.inference.card import Clip, Input, Normalize, Scale
from mdcli.inference.grid import closest_axes, network_grid, shear_of
from mdcli.inference.preprocess import Preprocessor, apply_steps
from mdcli.inference.statistics import Statistics

MONAI = Path(__file__).parent / "data" / "monai.npz"
GEOMETRIES = ("axial", "axial_reversed", "ras", "sagittal", "coronal", "oblique")
SPACINGS = {"fine": (0.7, 0.6, 1.7), "coarse": (1.5, 1.7, 3.1)}
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
AXIAL = np.diag([0.8, 0.8, 2.5, 1.0])


def wants(**changes) -> Input:
    said = {"axes": ("C", "x", "y", "z"), "orientation": "RAS", "spacing": "as-acquired", "unit": "HU"}
    return Input(**said | changes)


def rotations():
    """Turns of the whole sphere, from random quaternions."""
    return arrays(np.float64, 4, elements=st.floats(-1, 1)).filter(lambda q: np.linalg.norm(q) > 0.1).map(_rotation)


def _rotation(q):
    a, b, c, d = q / np.linalg.norm(q)
    return np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a - b * b + c * c - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a - b * b - c * c + d * d],
        ]
    )


@given(rotations(), st.tuples(*[st.floats(0.3, 5)] * 3), st.booleans())
def test_the_closest_axes_are_those_of_nibabel(rotation, sizes, mirrored):
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-sizes[0] if mirrored else sizes[0], *sizes[1:]])
    expected = nibabel.io_orientation(LPS_FROM_RAS @ affine)
    # nibabel speaks RAS+: the sign of the first two axes is the other one.
    found = [(world, sign * (-1 if world < 2 else 1)) for world, sign in closest_axes(affine)]
    # Between two axes at 45 degrees rounding decides, and either is right.
    if np.abs(np.abs(np.diff(np.sort(np.abs(rotation), axis=0)[1:], axis=0))).min() > 1e-6:
        assert found == [(int(axis), int(sign)) for axis, sign in expected]


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_turning_and_resampling_gives_what_monai_gives(geometry, spacing):
    monai = np.load(MONAI)
    volume = monai[f"{geometry}_volume"][0].transpose(2, 1, 0)
    affine = LPS_FROM_RAS @ monai[f"{geometry}_affine_ras"]
    grid = network_grid(volume.shape, affine, wants(spacing=SPACINGS[spacing]))
    found = grid.to_network(Preprocessor(volume, grid).rows(0, grid.shape[0]))
    expected = monai[f"{geometry}_{spacing}_there"][0]
    assert found.shape == expected.shape
    # models.md: within 4.3e-4 on +-4000 HU is what float32 leaves.
    np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize(
    "name, steps, tolerance",
    [
        ("scaled", (Clip(-900, 1200), Scale((-900, 1200), (0, 1))), 1e-6),
        ("normalised", (Normalize(None, None, "volume"),), 2e-6),
    ],
)
def test_intensities_are_prepared_as_monai_does(spacing, name, steps, tolerance):
    monai = np.load(MONAI)
    volume = monai["sagittal_volume"][0].transpose(2, 1, 0)
    grid = network_grid(volume.shape, LPS_FROM_RAS @ monai["sagittal_affine_ras"], wants(spacing=SPACINGS[spacing]))
    found = grid.to_network(Preprocessor(volume, grid, steps).rows(0, grid.shape[0]))
    np.testing.assert_allclose(found, monai[f"sagittal_{spacing}_{name}"][0], atol=tolerance)


@pytest.mark.parametrize("axes", ["xyz", "xzy", "yxz", "yzx", "zxy", "zyx"])
@pytest.mark.parametrize("orientation", ["RAS", "LPS", "LAI", "as-acquired"])
def test_the_network_sees_each_voxel_where_the_card_says(axes, orientation):
    # An LPS+ volume whose voxel (i, j, k) holds i + 10 j + 100 k: +i to the left, +j to the back, +k to the head.
    k, j, i = np.meshgrid(*(np.arange(n) for n in (4, 3, 2)), indexing="ij")
    volume = i + 10 * j + 100 * k
    grid = network_grid(volume.shape, AXIAL, wants(axes=("C", *axes), orientation=orientation))
    seen = grid.to_network(Preprocessor(volume, grid).rows(0, 4))
    size = {"x": 2, "y": 3, "z": 4}
    assert seen.shape == tuple(size[axis] for axis in axes)
    step = {"x": 1, "y": 10, "z": 100}
    turned = {
        axis: orientation != "as-acquired" and letter in "RAI" for axis, letter in zip("xyz", orientation, strict=False)
    }
    for index in np.ndindex(seen.shape):
        at = dict(zip(axes, index, strict=True))
        expected = sum(step[a] * (size[a] - 1 - at[a] if turned[a] else at[a]) for a in axes)
        assert seen[index] == expected


@settings(deadline=None)
@given(st.permutations("xyz"), st.sampled_from(["RAS", "LPS", "LPI", "RPS", "as-acquired"]), rotations())
def test_there_and_back_is_where_it_was(axes, orientation, rotation):
    affine = np.eye(4)
    affine[:3, :3] = rotation
    volume = np.arange(24).reshape(4, 3, 2)
    said = wants(axes=("C", *axes), orientation=orientation)
    grid = network_grid(volume.shape, affine, said)
    back = grid.from_network(grid.to_network(volume)[None], grid.order)
    np.testing.assert_array_equal(back[0], volume)


def test_spacing_is_in_the_order_of_the_axes():
    one = network_grid((10, 20, 30), AXIAL, wants(axes=("C", "z", "y", "x"), spacing=(5.0, 1.6, 0.8)))
    # z: (10 - 1) * 2.5 / 5 + 1 = 5.5, to even 6; y: 19 / 2 + 1 = 10.5, to even 10; x as it is.
    assert one.shape == (6, 10, 30)


def test_the_first_voxel_in_the_networks_direction_keeps_its_place():
    volume = np.arange(10, dtype=np.float32)[:, None, None]
    towards_head = network_grid((10, 1, 1), AXIAL, wants(orientation="RAS", spacing=(0.8, 0.8, 7.5)))
    towards_feet = network_grid((10, 1, 1), AXIAL, wants(orientation="RAI", spacing=(0.8, 0.8, 7.5)))
    for grid, expected in ((towards_head, [0, 3, 6, 9]), (towards_feet, [9, 6, 3, 0])):
        seen = grid.to_network(Preprocessor(volume, grid).rows(0, grid.shape[0]))
        np.testing.assert_allclose(seen.ravel(), expected, atol=1e-6)
    towards_feet = network_grid((10, 1, 1), AXIAL, wants(orientation="RAI", spacing=(0.8, 0.8, 5.0)))
    # 9 * 2.5 / 5 + 1 = 5.5, to even 6: from the head end in steps of 2 voxels, the last held at the edge.
    seen = towards_feet.to_network(Preprocessor(volume, towards_feet).rows(0, 6))
    np.testing.assert_allclose(seen.ravel(), [9, 7, 5, 3, 1, 0], atol=1e-6)


def test_rows_do_not_depend_on_how_they_are_asked_for():
    volume = np.random.default_rng(1).normal(size=(9, 8, 7))
    grid = network_grid(volume.shape, AXIAL, wants(spacing=(0.5, 1.1, 1.3)))
    preprocessor = Preprocessor(volume, grid)
    whole = preprocessor.rows(0, grid.shape[0])
    parts = [preprocessor.rows(a, min(a + 4, grid.shape[0])) for a in range(0, grid.shape[0], 4)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@settings(deadline=None)
@given(arrays(np.int16, st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 5))))
def test_statistics_are_those_of_the_whole_volume(volume):
    grid = network_grid(volume.shape, AXIAL, wants())
    found = Preprocessor(volume, grid, (Normalize(None, None, "volume"),)).statistics
    assert found is not None
    np.testing.assert_allclose([found.mean, found.std], [volume.mean(), volume.std()], rtol=1e-9, atol=1e-6)


def test_padding_counts_only_where_the_card_includes_it():
    volume = np.full((3, 2, 2), 100, np.int16)
    volume[0], volume[1, 0] = -2000, -3000
    grid = network_grid(volume.shape, AXIAL, wants())
    # Slice 0: -2000 is padding. Slice 1: nothing is. Slice 2: -3000 would be.
    ranges = [(-2000.0, -1900.0), None, (-3000.0, -3000.0)]
    found = Preprocessor(volume, grid, (Normalize(None, None, "volume"),), ranges).statistics
    # Counted: twice -3000 and twice 100 in slice 1, four times 100 in slice 2.
    assert found == Statistics(pytest.approx(-675), pytest.approx(np.sqrt(2 * 2325**2 / 8 + 6 * 775**2 / 8)))


def test_a_volume_of_padding_alone_has_no_statistics():
    volume = np.zeros((2, 2, 2), np.int16)
    grid = network_grid(volume.shape, AXIAL, wants())
    with pytest.raises(DataError) as error:
        Preprocessor(volume, grid, (Normalize(None, None, "volume"),), [(0.0, 0.0)] * 2)
    assert error.value.code == "no-statistics"


def test_steps_are_applied_in_order():
    values = np.array([-10, 0, 5, 20], np.float32)
    steps = (Clip(0, 10), Scale((0, 10), (-1, 1)), Normalize(1, 2))
    # Clipped 0 0 5 10, scaled -1 -1 0 1, normalised -1 -1 -0.5 0.
    np.testing.assert_allclose(apply_steps(values, steps), [-1, -1, -0.5, 0])


def test_a_volume_of_one_value_is_normalised_to_nothing():
    np.testing.assert_array_equal(
        apply_steps(np.full(3, 7, np.float32), (Normalize(None, None, "volume"),), Statistics(7, 0)), 0
    )


def test_a_tilted_stack_is_sheared_and_a_rounded_one_is_not():
    tilted = AXIAL.copy()
    # 1 degree: 2.5 mm x tan 1 = 0.0436 mm a slice, over 39 slices 1.7 mm, 2.1 pixels of 0.8 mm.
    tilted[1, 2] = 2.5 * np.tan(np.radians(1))
    found = shear_of((40, 64, 64), tilted)
    assert found == pytest.approx((1, 39 * 2.5 * np.sin(np.radians(1)) / np.cos(np.radians(1)) / 0.8), abs=1e-2)
    rounded = AXIAL.copy()
    rounded[1, 2] = 2.5 * np.tan(np.radians(0.04))
    assert shear_of((40, 64, 64), rounded) is None
    assert shear_of((3, 64, 64), tilted @ np.diag([20, 20, 1, 1])) is None


def test_a_spacing_that_makes_a_mountain_of_voxels_is_refused():
    with pytest.raises(ConfigError) as error:
        network_grid((300, 512, 512), AXIAL, wants(spacing=(0.01, 0.01, 0.01)))
    assert error.value.code == "grid-too-large"
