"""The picture shows the patient the right way round, in millimetres, and says that nobody has reviewed it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mdcli.errors import DataError
from mdcli.imaging import picture
from mdcli.imaging.picture import Layer, sides, three_planes

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
LAYERS = (Layer(1, "left", RED), Layer(2, "back", GREEN), Layer(3, "head", BLUE))
# Rows of a matrix of direction cosines: where i, j, k of each grid run, LPS+.
GRIDS = {
    "axial, slices towards the head": np.eye(3),
    "axial, rows towards the right": np.diag([-1.0, -1.0, 1.0]),
    "sagittal": np.array([[0.0, 1, 0], [0, 0, -1], [-1, 0, 0]]),
    "coronal": np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]]),
    "slices towards the feet": np.diag([1.0, 1.0, -1.0]),
}


def scene(directions: np.ndarray, spacing=(2.0, 3.0, 5.0)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a black volume, its affine, and labels 60 mm from the middle: 1 to the left, 2 to the back, 3 to the head."""
    count = [round(200 / step) for step in spacing]
    affine = np.eye(4)
    affine[:3, :3] = directions.T * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(count) - 1) / 2)
    k, j, i = np.mgrid[: count[2], : count[1], : count[0]]
    places = np.stack([i, j, k, np.ones_like(i)], axis=-1) @ affine.T
    labels = np.zeros(k.shape, np.uint8)
    for axis in range(3):
        centre = np.zeros(3)
        centre[axis] = 60
        labels[np.abs(places[..., :3] - centre).max(axis=-1) < 20] = axis + 1
    return np.full(k.shape, -1000, np.int16), affine, labels


def middles(image: Image.Image) -> list[dict[tuple, tuple[float, float]]]:
    """Return for each of the three panels, left to right, where each pure hue has its middle: (x, y) from -1 to 1."""
    pixels = np.asarray(image).astype(int)
    # The panels are black, the page around them is not.
    black = (pixels.max(axis=2) == 0).any(axis=0)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], black.astype(int), [0]])))
    panels = []
    for start, stop in edges.reshape(-1, 2):
        if stop - start < 50:
            continue
        panel = pixels[:, start:stop]
        rows = np.flatnonzero((panel.max(axis=2) == 0).any(axis=1))
        panel = panel[rows[0] : rows[-1] + 1]
        found = {}
        for channel, hue in enumerate((RED, GREEN, BLUE)):
            others = [c for c in range(3) if c != channel]
            mask = (panel[..., channel] > 80) & (panel[..., others].max(axis=2) < 20)
            if mask.sum() > 200:
                y, x = np.argwhere(mask).mean(axis=0) / mask.shape * 2 - 1
                found[hue] = (round(float(x), 1), round(float(y), 1))
        panels.append(found)
    return panels


@pytest.mark.parametrize("directions", GRIDS.values(), ids=GRIDS.keys())
def test_the_patients_left_is_on_the_right_the_back_below_and_the_head_up_on_every_grid(directions):
    volume, affine, labels = scene(directions)
    axial, coronal, sagittal = middles(three_planes(volume, affine, labels, LAYERS, at_mm=(0, 0, 0)))
    assert axial == {RED: (0.6, 0.0), GREEN: (0.0, 0.6)}
    assert coronal == {RED: (0.6, 0.0), BLUE: (0.0, -0.6)}
    assert sagittal == {GREEN: (0.6, 0.0), BLUE: (0.0, -0.6)}


@pytest.mark.parametrize(
    "direction, letters",
    [
        pytest.param((1, 0, 0), "L", id="+x is the patient's left"),
        pytest.param((0, -3, 0), "A", id="-y is the front"),
        pytest.param((0, 0, 2), "H", id="+z is the head"),
        pytest.param((-0.9, 0.5, 0), "RP", id="an oblique direction names the main side first"),
        pytest.param((0.1, 1, 0), "P", id="6 degrees are not named"),
        pytest.param((0.6, -0.5, 0.7), "HLA", id="doubly oblique"),
    ],
)
def test_a_direction_is_named_by_the_patients_sides(direction, letters):
    assert sides(direction) == letters


def texts_of(monkeypatch, *args, **kwargs) -> list[str]:
    written = []
    plain = ImageDraw.ImageDraw.text

    def text(self, place, words, *rest, **named):
        written.append(words)
        return plain(self, place, words, *rest, **named)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    three_planes(*args, **kwargs)
    return written


def test_letters_legend_title_and_the_regulatory_line_are_written(monkeypatch):
    volume, affine, labels = scene(GRIDS["sagittal"])
    written = texts_of(monkeypatch, volume, affine, labels, LAYERS, title="toy 1.0.0")
    assert "Research use only, not reviewed." in written
    assert "toy 1.0.0" in written
    assert {"1 left", "2 back", "3 head"} <= set(written)
    letters = [word for word in written if word in "RLAPHF"]
    assert sorted(letters) == sorted("RLAP" + "RLHF" + "APHF")


def test_an_oblique_volume_has_its_leaning_sides_named(monkeypatch):
    angle = np.deg2rad(20)
    volume, affine, _ = scene(
        np.array([[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    )
    written = texts_of(monkeypatch, volume, affine)
    assert {"LP", "RA", "PR", "AL", "H", "F"} <= set(written)


def test_the_panels_keep_the_proportions_of_the_millimetres():
    # 200 mm along every axis whatever the spacing: each panel is square.
    volume, affine, _ = scene(np.eye(3), spacing=(1.0, 2.0, 8.0))
    pixels = np.asarray(three_planes(volume, affine))
    black = pixels.max(axis=2) == 0
    edges = np.flatnonzero(np.diff(np.concatenate([[0], black.any(axis=0).astype(int), [0]]))).reshape(-1, 2)
    widths = [stop - start for start, stop in edges if stop - start > 50]
    assert widths == [400, 400, 400]
    assert np.ptp(np.flatnonzero(black.any(axis=1))) + 1 == 400


def test_without_a_place_the_planes_go_through_the_labels():
    volume, _, labels = scene(np.eye(3))
    only = np.where(labels == 3, labels, 0)
    # The label's middle is at z = 60 mm: (60 - -97.5) / 5 = 31.5.
    assert picture._middle(volume.shape, only, [3])[0] in (31, 32)
    assert picture._middle(volume.shape, None, []) == tuple(size // 2 for size in volume.shape)


def test_a_place_outside_and_labels_of_another_grid_are_refused():
    volume, affine, labels = scene(np.eye(3))
    with pytest.raises(DataError) as error:
        three_planes(volume, affine, at_mm=(500, 0, 0))
    assert error.value.code == "outside-volume"
    with pytest.raises(DataError) as error:
        three_planes(volume, affine, labels[1:], LAYERS)
    assert error.value.code == "grids-differ"


def test_one_slice_and_not_a_number_can_be_drawn():
    volume = np.full((1, 20, 30), np.nan, np.float32)
    assert three_planes(volume, np.eye(4)).size[0] > 400
