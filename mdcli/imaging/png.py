"""The slices of a volume as 8-bit PNG pictures: pixel for voxel, nothing turned, mirrored or resampled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import UsageError
from mdcli.imaging.picture import sides

if TYPE_CHECKING:
    from PIL.Image import Image

_SAMPLES = 1 << 22
# Colours for labels, told apart by everybody. Source: Okabe and Ito, https://jfly.uni-koeln.de/color/
_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))


def parse_window(text: str) -> tuple[float, float]:
    """Return (centre, width) from `CENTER,WIDTH`, in the volume's unit.

    Raises:
        UsageError: `bad-window`.

    >>> parse_window("40,400")
    (40.0, 400.0)
    """
    try:
        numbers = [float(word) for word in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 2 or not all(map(math.isfinite, numbers)) or not numbers[1] > 0:
        raise UsageError("bad-window", f"{text!r} is no window: CENTER,WIDTH, the width above 0")
    return numbers[0], numbers[1]


def usual_window(array: NDArray[Any]) -> tuple[float, float]:
    """Return (centre, width) from the 1st to the 99th percentile of evenly chosen voxels of a volume (k, j, i)."""
    step = max(1, math.ceil((array.size / _SAMPLES) ** (1 / 3)))
    chosen = np.asarray(array[::step, ::step, ::step], np.float64)
    chosen = chosen[np.isfinite(chosen)]
    low, high = np.percentile(chosen, (1, 99)) if chosen.size else (0.0, 1.0)
    return float(low + high) / 2, float(high - low) or 1.0


def gray_picture(plane: NDArray[Any], window: tuple[float, float]) -> Image:
    """Return one slice (j, i) in 256 shades of gray; j goes down, i to the right.

    Args:
        plane: (j, i), in the volume's unit; what is no number is black.
        window: (centre, width).

    Source: DICOM PS3.3 C.11.2.1.3.2, the function LINEAR_EXACT.
    """
    from PIL import Image

    centre, width = window
    share = np.clip((np.asarray(plane, np.float64) - centre) / width + 0.5, 0, 1)
    return Image.fromarray(np.rint(np.nan_to_num(share) * 255).astype(np.uint8))


def label_picture(plane: NDArray[Any]) -> Image:
    """Return one slice of labels (j, i): the pixel is the label's value from 0 to 255, with a palette to look at.

    Raises:
        UsageError: `too-many-labels` for a value that a byte can't hold.
    """
    from PIL import Image

    if plane.dtype.kind not in "iu" or (plane.size and (plane.min() < 0 or plane.max() > 255)):
        raise UsageError(
            "too-many-labels", "a PNG holds whole label values from 0 to 255", hint="nrrd and nii hold all"
        )
    picture = Image.fromarray(plane.astype(np.uint8)).convert("L")
    picture.putpalette(bytes((0, 0, 0)) + b"".join(bytes(_COLOURS[n % len(_COLOURS)]) for n in range(255)))
    return picture


def save_png(picture: Image, path: Any, spacing_mm: Sequence[float] | None, texts: dict[str, str]) -> None:
    """Write one picture; the same picture gives the same bytes.

    Args:
        picture: gray or with a palette.
        path: a path or an open binary file.
        spacing_mm: along i and along j, for `pHYs`; None where a pixel has no size in millimetres.
        texts: for `tEXt`, in Latin-1.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text.encode("latin-1", "replace").decode("latin-1"))
    # Pillow turns dots per inch into pixels per metre.
    dots = None if spacing_mm is None else tuple(25.4 / mm for mm in spacing_mm)
    picture.save(path, "PNG", pnginfo=info, **({} if dots is None else {"dpi": dots}))


def picture_facts(affine: NDArray[np.float64], shape: tuple[int, int, int], plane: bool) -> dict[str, Any]:
    """Return what tells a reader of the pictures where they lie.

    Args:
        affine: 4x4, (i, j, k) to mm, LPS+.
        shape: (k, j, i).
        plane: whether the affine's millimetres are of the patient.

    Returns:
        `shape`, and of the patient: `affine_lps`, `spacing_mm` (along i, j, k) and which of the patient's sides (letters of R L A P
        H F) the pictures' `right` and `bottom` and the `next` picture point to.
    """
    if not plane:
        return {"shape": list(shape), **dict.fromkeys(("affine_lps", "spacing_mm", "right", "bottom", "next"))}
    directions = [sides(affine[:3, n].tolist()) for n in range(3)]
    return {
        "shape": list(shape),
        "affine_lps": affine.tolist(),
        "spacing_mm": np.linalg.norm(affine[:3, :3], axis=0).tolist(),
        **dict(zip(("right", "bottom", "next"), directions, strict=True)),
    }
