"""What a network sees is drawn in its own axes, with the patient's sides where they are."""

from __future__ import annotations

import numpy as np
import pytest

from mdcli.imaging import network_view as module
from mdcli.imaging.network_view import network_view


@pytest.fixture
def written(monkeypatch):
    """Return the letters that are asked for, in order: left, right, up, down of each plane."""
    found = []
    sides = module.sides

    def noted(direction):
        found.append(sides(direction))
        return found[-1]

    monkeypatch.setattr(module, "sides", noted)
    return found


def test_letters_follow_the_axes_of_the_tensor_and_nothing_is_turned(written):
    # RAS: the index grows to the right (-x), the front (-y) and the head (+z) of LPS+.
    directions = [(-1.0, 0, 0), (0, -1.0, 0), (0, 0, 2.0)]
    network_view({"input": np.zeros((1, 4, 5, 6))}, ("x", "y", "z"), directions)
    # y down and z right; x down and z right; x down and y right.
    assert written == ["F", "H", "P", "A", "F", "H", "L", "R", "P", "A", "L", "R"]


def test_a_network_of_slices_has_one_plane_and_every_channel_a_row():
    tensor = np.zeros((3, 10, 20))
    tensor[:, 0, :] = 1
    one = network_view({"input": tensor[:1]}, ("y", "x"), [(0, 1.0, 0), (1.0, 0, 0)])
    three = network_view({"input": tensor}, ("y", "x"), [(0, 1.0, 0), (1.0, 0, 0)])
    assert three.width == one.width and three.height > 2 * one.height
    # 20 voxels are 300 pixels: the first row of the tensor is the 15 at the top, white but for letters.
    grey = np.asarray(one.convert("L"))[68:83, 24:324]
    assert np.median(grey) == 255


def test_a_channel_of_one_value_or_with_no_numbers_in_it_is_drawn(written):
    tensor = np.full((1, 4, 4, 4), 7.0)
    tensor[0, 0] = np.nan
    assert network_view({"input": tensor}, ("x", "y", "z"), np.eye(3).tolist()).mode == "RGB"
