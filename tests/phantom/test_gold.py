"""The demo's gold says what the phantom holds, and passes no shifted, mirrored or swapped result."""

from __future__ import annotations

import numpy as np
import pytest

from mdcli.checking.compare import compare_label_maps
from mdcli.checking.gold import read_gold
from mdcli.imaging.nifti import Volume, read_nifti
from mdcli.phantom.anatomy import LANDMARKS
from mdcli.phantom.gold import landmark_labels, tissue_labels, write_gold
from mdcli.phantom.study import demo_affine

NAMES = ("tissue", "landmarks")


@pytest.fixture(scope="module")
def gold(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gold")
    write_gold(folder)
    return folder


def test_each_sphere_is_centred_on_its_landmark():
    affine = demo_affine()
    labels = landmark_labels((60, 120, 168), affine)
    for value, landmark in enumerate(LANDMARKS, 1):
        kji = np.argwhere(labels == value)
        places = np.column_stack([kji[:, ::-1], np.ones(len(kji))]) @ affine.T
        assert places[:, :3].mean(axis=0) == pytest.approx(landmark.position_mm, abs=0.5)
        # 4/3 pi 6.5^3 cubic millimetres; a voxel has 12.
        assert len(kji) * 12 == pytest.approx(4 / 3 * np.pi * 6.5**3, rel=0.1)


@pytest.mark.parametrize("value, band", [(-900, 1), (-899, 2), (-200, 2), (-30, 3), (-29, 4), (200, 4), (201, 5)])
def test_a_band_ends_with_its_upper_value(value, band):
    assert (tissue_labels(np.full((3, 4, 5), value, np.int16)) == band).all()


def test_smoothing_takes_a_quarter_from_each_neighbour_and_repeats_the_border():
    # Along k: 0, 0, 804 -> (0, 201, 603): 201 and 603 are bone-like (over 200), 0 is soft.
    voxels = np.zeros((3, 4, 5), np.int16)
    voxels[2] = 804
    assert tissue_labels(voxels)[:, 0, 0].tolist() == [4, 5, 5]
    voxels[2] = 800
    assert tissue_labels(voxels)[:, 0, 0].tolist() == [4, 4, 5]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "mistake",
    [
        pytest.param(lambda a: np.roll(a, 1, 0), id="one slice off"),
        pytest.param(lambda a: np.roll(a, 1, 1), id="one row off"),
        pytest.param(lambda a: np.roll(a, 1, 2), id="one column off"),
        pytest.param(lambda a: a[:, :, ::-1], id="left and right mirrored"),
        pytest.param(lambda a: a[:, ::-1], id="front and back mirrored"),
        pytest.param(lambda a: a[::-1], id="slices reversed"),
        pytest.param(lambda a: np.where(a == 1, 2, np.where(a == 2, 1, a)), id="two labels swapped"),
        pytest.param(lambda a: np.where(a == 3, 0, a), id="a label missing"),
    ],
)
def test_no_mistake_passes(gold, name, mistake):
    entry = read_gold(gold / name / "gold.yaml").files[0]
    volume = read_nifti(gold / name / entry.file)
    right = compare_label_maps(volume, volume, entry.tolerances, file=entry.file)
    wrong = Volume(np.ascontiguousarray(mistake(volume.array)).astype(np.uint8), volume.affine)
    assert right.ok
    assert not compare_label_maps(volume, wrong, entry.tolerances, file=entry.file).ok


def test_one_list_covers_both(gold):
    assert [entry.file for entry in read_gold(gold / "gold.yaml").files] == [f"{name}/labels.nii" for name in NAMES]
