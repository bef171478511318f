"""Draw what a network sees: its window in its own axes, nothing turned, with the patient's sides at the edges.

Where a card says the wrong axes or orientation, the letters and the anatomy in the picture disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mdcli.imaging.picture import REGULATORY, sides

if TYPE_CHECKING:
    from PIL.Image import Image

_PANEL = 300
_MARGIN = 24
_LINE = 22
_INK, _PAPER, _NOTE = (235, 235, 235), (18, 18, 20), (255, 196, 84)


def network_view(
    tensors: Mapping[str, NDArray[Any]],
    axes: Sequence[str],
    directions: Sequence[Sequence[float]],
    *,
    title: str = "",
    regulatory: str = REGULATORY,
) -> Image:
    """Draw the middle planes of each channel of each tensor: a row a channel, a plane for each pair of axes.

    Args:
        tensors: by name, (C, axes) in the network's order and directions; two or three axes.
        axes: their letters in the card.
        directions: of each axis, mm from one voxel to the next, LPS+.
        title: the line at the top. Never a patient's name.
        regulatory: the line at the bottom.

    Returns:
        An RGB picture. In each plane the earlier axis runs down, the later one to the right.
    """
    from PIL import Image as PillowImage
    from PIL import ImageDraw, ImageFont

    pairs = [(0, 1)] if len(axes) == 2 else [(1, 2), (0, 2), (0, 1)]
    rows = [(name, channel, values) for name, tensor in tensors.items() for channel, values in enumerate(tensor)]
    steps = [float(np.linalg.norm(direction)) for direction in directions]
    extents = [count * step for count, step in zip(rows[0][2].shape, steps, strict=True)]
    scale = _PANEL / max(extents)
    width = _MARGIN + len(pairs) * (_PANEL + _MARGIN)
    height = _MARGIN + _LINE + len(rows) * (_PANEL + 2 * _LINE) + _LINE + _MARGIN
    picture = PillowImage.new("RGB", (max(width, 420), height), _PAPER)
    draw = ImageDraw.Draw(picture)
    font: Any = ImageFont.load_default(14)
    large: Any = ImageFont.load_default(18)
    draw.text((_MARGIN, 12), title, _INK, font)
    top = _MARGIN + _LINE
    for name, channel, values in rows:
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        shape = " x ".join(map(str, values.shape))
        draw.text((_MARGIN, top), f"{name}, channel {channel}: {shape}, {low:.4g} to {high:.4g}", _INK, font)
        for place, (down, right) in enumerate(pairs):
            across = next((n for n in range(len(axes)) if n not in (down, right)), None)
            plane = np.asarray(
                values if across is None else values.take(values.shape[across] // 2, axis=across), np.float64
            )
            bright = np.clip((np.nan_to_num(plane, nan=low) - low) / ((high - low) or 1.0) * 255, 0, 255).astype(
                np.uint8
            )
            size = (max(1, round(extents[right] * scale)), max(1, round(extents[down] * scale)))
            left, upper = _MARGIN + place * (_PANEL + _MARGIN), top + _LINE
            picture.paste(PillowImage.fromarray(bright).resize(size, PillowImage.Resampling.NEAREST), (left, upper))
            along_right, along_down = np.asarray(directions[right]), np.asarray(directions[down])
            for spot, anchor, direction in (
                ((left + 5, upper + size[1] // 2), "lm", -along_right),
                ((left + size[0] - 5, upper + size[1] // 2), "rm", along_right),
                ((left + size[0] // 2, upper + 5), "ma", -along_down),
                ((left + size[0] // 2, upper + size[1] - 5), "md", along_down),
            ):
                text = sides(direction.tolist())
                draw.text(spot, text, _INK, large, anchor, stroke_width=2, stroke_fill=(0, 0, 0))
            text = f"{axes[down]} down, {axes[right]} right"
            draw.text((left + 5, upper + 5), text, _INK, font, stroke_width=2, stroke_fill=(0, 0, 0))
        top += _PANEL + 2 * _LINE
    draw.text((_MARGIN, top), regulatory, _NOTE, font)
    return picture
