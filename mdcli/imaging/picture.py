"""A picture of three planes through a volume, with labels over it and the patient's sides at its edges.

The planes are the volume's own, nothing is resampled but for the screen; they are shown as radiologists look at them: the patient's
right at the left of an axial or coronal plane, the front at the left of a sagittal one, the head up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

REGULATORY = "Research use only, not reviewed."
SOFT_TISSUE_HU = (-160.0, 240.0)

_PLANE_NAMES = ("axial", "coronal", "sagittal")
_PANEL = 400
_MARGIN = 28
_LINE = 24
_OPACITY = 0.4
_SCALE_BAR_MM = 50
_SMALL = 30
# A side is named beside the main one where the axis leans towards it by more than 10 degrees.
_LEAN = float(np.sin(np.deg2rad(10)))
_INK, _PAPER, _QUIET = (235, 235, 235), (18, 18, 20), (160, 160, 165)


@dataclass(frozen=True)
class Layer:
    """One label as it is shown: its value in the label map, its name, and red, green, blue from 0 to 255."""

    value: int
    name: str
    colour: tuple[int, int, int]


def sides(direction: Sequence[float]) -> str:
    """Return the patient's sides that a direction points to, the main one first.

    Args:
        direction: in LPS+, of any length.

    Returns:
        Letters of R L A P H F, as PatientOrientation has them.

    Source: DICOM PS3.3 C.7.6.1.1.1.

    >>> sides([0, 0, -1])
    'F'
    >>> sides([1, 0.5, 0])
    'LP'
    """
    unit = np.asarray(direction, np.float64) / np.linalg.norm(direction)
    order = np.argsort(-np.abs(unit), kind="stable")
    return "".join(("RL", "AP", "FH")[axis][int(unit[axis] > 0)] for axis in order if abs(unit[axis]) > _LEAN)


def three_planes(
    array: NDArray[Any],
    affine: NDArray[np.float64],
    labels: NDArray[Any] | None = None,
    layers: Sequence[Layer] = (),
    *,
    at_mm: Sequence[float] | None = None,
    window: tuple[float, float] = SOFT_TISSUE_HU,
    title: str = "",
    regulatory: str = REGULATORY,
) -> Image:
    """Draw the axial, coronal and sagittal plane of a volume through one place.

    Args:
        array: (k, j, i).
        affine: 4x4, voxel index (i, j, k, 1) to mm, LPS+.
        labels: (k, j, i), on the same grid; 0 is not shown.
        layers: the labels to show.
        at_mm: (x, y, z), LPS+. None: a labelled voxel near the labels' middle; the volume's middle where there are none.
        window: the values shown black and white.
        title: the line at the top. Never a patient's name.
        regulatory: the line at the bottom.

    Returns:
        An RGB picture.

    Raises:
        DataError: `outside-volume` where `at_mm` lies outside the volume; `grids-differ` where the labels have another shape.
    """
    from PIL import Image as PillowImage
    from PIL import ImageDraw

    if labels is not None and labels.shape != array.shape:
        raise DataError("grids-differ", f"labels of shape {labels.shape} over a volume of shape {array.shape}")
    affine = np.asarray(affine, np.float64)
    shown = [layer.value for layer in layers]
    centre = _index_at(array.shape, affine, at_mm) if at_mm is not None else _middle(array.shape, labels, shown)
    reach_mm = np.linalg.norm(affine[:3, :3], axis=0) * array.shape[::-1]
    scale = _PANEL / float(reach_mm.max())
    panels = [_panel(array, affine, labels, layers, centre, plane, window, scale) for plane in range(3)]
    heights = [panel.height for panel in panels]
    legend = _legend_rows(layers, sum(panel.width for panel in panels) + 2 * _MARGIN)
    width = sum(panel.width for panel in panels) + 4 * _MARGIN
    top = _MARGIN + (_LINE if title else 0)
    height = top + max(heights) + _LINE * (len(legend) + 2) + _MARGIN
    picture = PillowImage.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, 14), title, _INK, _font(16))
    left = _MARGIN
    for panel in panels:
        picture.paste(panel, (left, top + (max(heights) - panel.height) // 2))
        left += panel.width + _MARGIN
    line = top + max(heights) + 16
    for row in legend:
        left = _MARGIN
        for layer in row:
            draw.rectangle((left, line + 2, left + 13, line + 15), layer.colour, _QUIET)
            draw.text((left + 20, line), _caption(layer), _INK, _font(14))
            left += 20 + _text_width(_caption(layer), 14) + 26
        line += _LINE
    draw.text((_MARGIN, line + 4), regulatory, (255, 196, 84), _font(15))
    return picture


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _text_width(text: str, size: int) -> int:
    return int(_font(size).getlength(text))


def _caption(layer: Layer) -> str:
    # The number is drawn in the planes too: colour alone says nothing.
    return f"{layer.value} {layer.name}"


def _legend_rows(layers: Sequence[Layer], width: int) -> list[list[Layer]]:
    rows: list[list[Layer]] = []
    used = width
    for layer in layers:
        need = 46 + _text_width(_caption(layer), 14)
        if used + need > width:
            rows.append([])
            used = 0
        rows[-1].append(layer)
        used += need
    return rows


def _index_at(shape: tuple[int, ...], affine: NDArray[np.float64], at_mm: Sequence[float]) -> tuple[int, int, int]:
    """Return the voxel (k, j, i) at a place."""
    i, j, k = (round(float(value)) for value in np.linalg.solve(affine, [*at_mm, 1.0])[:3])
    if not all(0 <= index < size for index, size in zip((k, j, i), shape, strict=True)):
        raise DataError("outside-volume", f"({', '.join(f'{v:g}' for v in at_mm)}) mm lies outside the volume")
    return k, j, i


def _middle(shape: tuple[int, ...], labels: NDArray[Any] | None, shown: Sequence[int]) -> tuple[int, int, int]:
    """Return a labelled voxel (k, j, i) near the labels' middle: in the nearest slice that has any, the nearest pixel."""
    k, j, i = (size // 2 for size in shape)
    if labels is None:
        return k, j, i
    # Slice by slice: a list of all labelled voxels would be larger than the volume.
    found = {index: np.isin(plane, shown) for index, plane in enumerate(labels)}
    counts = {index: int(mask.sum()) for index, mask in found.items() if mask.any()}
    if not counts:
        return k, j, i
    total = sum(counts.values())
    middle = sum(index * count for index, count in counts.items()) / total
    k = min(counts, key=lambda index: abs(index - middle))
    pixels = np.argwhere(found[k])
    centre = sum(np.argwhere(found[index]).sum(axis=0) for index in counts) / total
    j, i = (int(value) for value in pixels[np.argmin(((pixels - centre) ** 2).sum(axis=1))])
    return k, j, i


def _voxel_axes(affine: NDArray[np.float64]) -> list[int]:
    """Return which voxel axis (0 i, 1 j, 2 k) runs most nearly along x, y and z of the patient, each used once."""
    from itertools import permutations

    cosines = np.abs(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    return list(max(permutations(range(3)), key=lambda order: sum(cosines[x, axis] for x, axis in enumerate(order))))


def _panel(
    array: NDArray[Any],
    affine: NDArray[np.float64],
    labels: NDArray[Any] | None,
    layers: Sequence[Layer],
    centre: tuple[int, int, int],
    plane: int,
    window: tuple[float, float],
    scale: float,
) -> Image:
    """Draw one plane, 0 axial, 1 coronal, 2 sagittal, `scale` pixels a millimetre."""
    from PIL import Image as PillowImage
    from PIL import ImageDraw

    x, y, z = _voxel_axes(affine)
    # To the right and down, as (voxel axis, patient axis, wanted sign along the patient axis): left, back, and feet.
    right, down = (((x, 0, 1), (y, 1, 1)), ((x, 0, 1), (z, 2, -1)), ((y, 1, 1), (z, 2, -1)))[plane]
    across = (z, y, x)[plane]
    # (k, j, i) holds voxel axis a at position 2 - a.
    selection: list[Any] = [slice(None)] * 3
    selection[2 - across] = centre[2 - across]
    directions, flips = [], []
    for axis, patient, sign in (right, down):
        forward = bool(affine[patient, axis] * sign >= 0)
        flips.append(slice(None, None, 1 if forward else -1))
        directions.append(affine[:3, axis] * (1 if forward else -1))

    def cut(volume: NDArray[Any]) -> NDArray[Any]:
        flat = np.asarray(volume[tuple(selection)])
        # The lower voxel axis is the later one in memory; the picture wants `down` first.
        flat = flat if right[0] < down[0] else flat.T
        return flat[flips[1], flips[0]]

    grey = cut(array).astype(np.float64)
    size_mm = [step * count for step, count in zip(np.linalg.norm(directions, axis=1), grey.shape[::-1], strict=True)]
    extent = (max(1, round(size_mm[0] * scale)), max(1, round(size_mm[1] * scale)))
    low, high = window
    bright = np.clip((np.nan_to_num(grey, nan=low) - low) / (high - low) * 255, 0, 255).astype(np.uint8)
    picture = PillowImage.fromarray(bright).resize(extent, PillowImage.Resampling.BICUBIC).convert("RGB")
    draw = ImageDraw.Draw(picture)
    if labels is not None:
        values = np.asarray(
            PillowImage.fromarray(cut(labels).astype(np.int32)).resize(extent, PillowImage.Resampling.NEAREST)
        )
        picture.paste(PillowImage.fromarray(_overlay(np.asarray(picture), values, layers)))
        for layer in layers:
            _number(draw, values == layer.value, layer)
    _edge_letters(draw, extent, directions)
    _write(draw, (8, 6), f"{_PLANE_NAMES[plane]}  {'ijk'[across]} = {centre[2 - across]}", 13, "la")
    if plane == 0:
        _scale_bar(draw, extent, scale)
    return picture


def _overlay(grey: NDArray[np.uint8], values: NDArray[np.int32], layers: Sequence[Layer]) -> NDArray[np.uint8]:
    """Return the picture (rows, columns, 3) with each label's colour laid over it, full at the label's edge."""
    mixed = grey.astype(np.float64)
    inner = np.ones(values.shape, bool)
    for axis in (0, 1):
        for step in (1, -1):
            inner &= np.roll(values, step, axis) == values
    for layer in layers:
        inside = values == layer.value
        opacity = np.where(inner, _OPACITY, 0.9)[..., None]
        mixed = np.where(inside[..., None], (1 - opacity) * mixed + opacity * np.array(layer.colour), mixed)
    return mixed.astype(np.uint8)


def _number(draw: ImageDraw, inside: NDArray[np.bool_], layer: Layer) -> None:
    """Write a label's number at its pixel nearest to its middle, or beside it where it is too small to write on."""
    places = np.argwhere(inside)
    if not len(places):
        return
    row, column = (int(v) for v in places[np.argmin(((places - places.mean(axis=0)) ** 2).sum(axis=1))])
    if np.ptp(places, axis=0).max() < _SMALL:
        _write(draw, (int(places[:, 1].max()) + 6, row), str(layer.value), 13, "lm")
    else:
        _write(draw, (column, row), str(layer.value), 13, "mm")


def _edge_letters(draw: ImageDraw, extent: tuple[int, int], directions: Sequence[NDArray[np.float64]]) -> None:
    width, height = extent
    right, down = directions
    for place, anchor, direction in (
        ((6, height // 2), "lm", -right),
        ((width - 6, height // 2), "rm", right),
        ((width // 2, 6), "ma", -down),
        ((width // 2, height - 6), "md", down),
    ):
        _write(draw, place, sides(direction.tolist()), 18, anchor)


def _scale_bar(draw: ImageDraw, extent: tuple[int, int], scale: float) -> None:
    left, bottom = 10, extent[1] - 10
    length = round(_SCALE_BAR_MM * scale)
    if length < extent[0] // 2:
        draw.line((left, bottom, left + length, bottom), _INK, 2)
        _write(draw, (left, bottom - 5), f"{_SCALE_BAR_MM} mm", 12, "ld")


def _write(draw: ImageDraw, place: tuple[int, int], text: str, size: int, anchor: str) -> None:
    draw.text(place, text, _INK, _font(size), anchor, stroke_width=2, stroke_fill=(0, 0, 0))
