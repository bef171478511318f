"""The plugin's own tests: run them where both md and the plugin are installed."""

import numpy as np
import pytest
from md_largest_component.stage import largest_components


def test_of_two_components_the_larger_one_stays():
    labels = np.zeros((1, 1, 7), np.uint8)
    labels[0, 0, :2] = 1
    labels[0, 0, 4:7] = 1
    assert largest_components(labels)[0, 0].tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_each_label_has_a_largest_component_of_its_own():
    labels = np.array([[[1, 0, 1, 1, 2, 0, 2, 2]]], np.uint8)
    assert largest_components(labels)[0, 0].tolist() == [0, 0, 1, 1, 0, 0, 2, 2]


@pytest.mark.parametrize(("corners", "voxels"), [(False, 1), (True, 2)])
def test_voxels_that_share_only_a_corner_touch_when_asked(corners, voxels):
    labels = np.zeros((2, 2, 2), np.uint8)
    labels[0, 0, 0] = labels[1, 1, 1] = 1
    assert np.count_nonzero(largest_components(labels, corners=corners)) == voxels
