"""Slices as pictures: Pillow, which did not draw them, finds the voxels where they were, and a pixel's size."""

import io

import numpy as np
import pytest
from PIL import Image

from mdcli.errors import UsageError
from mdcli.imaging.png import gray_picture, label_picture, parse_window, picture_facts, save_png, usual_window


def test_the_window_runs_from_black_to_white():
    # PS3.3 C.11.2.1.3.2 with center 40, width 400: -160 is black, 240 white, 40 in the middle.
    plane = np.array([[-1000, -160, 40, 140], [240, 1000, np.nan, -60]], np.float32)
    found = np.asarray(gray_picture(plane, (40, 400)))
    np.testing.assert_array_equal(found, [[0, 0, 128, 191], [255, 255, 0, 64]])


def test_the_usual_window_leaves_out_a_hundredth_at_each_end():
    array = np.arange(1001, dtype=np.float32).reshape(1, 1, 1001)
    assert usual_window(array) == pytest.approx((500, 980))
    assert usual_window(np.full((2, 2, 2), 7)) == (7, 1)


def test_a_label_stays_its_value_and_gets_a_colour():
    picture = label_picture(np.array([[0, 1], [2, 255]], np.int32))
    np.testing.assert_array_equal(np.asarray(picture), [[0, 1], [2, 255]])
    colours = np.asarray(picture.convert("RGB")).reshape(-1, 3).tolist()
    assert colours[0] == [0, 0, 0] and len({tuple(c) for c in colours[:3]}) == 3
    for values in ([[256]], [[-1]]):
        with pytest.raises(UsageError) as caught:
            label_picture(np.array(values))
        assert caught.value.code == "too-many-labels"


def test_a_picture_says_how_large_its_pixels_are_and_is_the_same_twice():
    files = []
    for _ in range(2):
        file = io.BytesIO()
        save_png(gray_picture(np.zeros((3, 4)), (0, 1)), file, (0.5, 0.8), {"Window": "center 0, width 1 HU"})
        files.append(file.getvalue())
    assert files[0] == files[1]
    # PNG, third edition, 11.3.4.3: pixels per unit along x, along y, unit 1 the metre. 1000 / 0.5 and 1000 / 0.8.
    at = files[0].index(b"pHYs") + 4
    assert (int.from_bytes(files[0][at : at + 4]), int.from_bytes(files[0][at + 4 : at + 8])) == (2000, 1250)
    assert files[0][at + 8] == 1
    assert Image.open(io.BytesIO(files[0])).text == {"Window": "center 0, width 1 HU"}


def test_the_sides_of_the_pictures_are_told():
    facts = picture_facts(np.diag([0.7, 0.8, 2.0, 1.0]), (5, 4, 3), True)
    assert (facts["right"], facts["bottom"], facts["next"], facts["spacing_mm"]) == ("L", "P", "H", [0.7, 0.8, 2.0])
    assert picture_facts(np.eye(4), (5, 4, 3), False)["right"] is None


@pytest.mark.parametrize("text", ["", "40", "40,0", "40,-1", "a,b", "40,inf", "1,2,3"])
def test_what_is_no_window_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_window(text)
    assert caught.value.code == "bad-window"
