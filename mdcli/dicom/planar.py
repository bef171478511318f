"""Where the pixels of an image without a plane in the patient lie: at the detector, in calibrated millimetres, or unknown.

Source: DICOM PS3.3 10.7 (Basic Pixel Spacing Calibration Macro), C.8.5.5 (US Region Calibration), C.7.6.3.1.7 (Pixel Aspect Ratio).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.geometry import said
from mdcli.dicom.instance import Instance
from mdcli.dicom.opening import shown
from mdcli.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

DETECTOR, GEOMETRY, FIDUCIAL, UNKNOWN = "detector", "calibrated-geometry", "calibrated-fiducial", "unknown"
NEEDS_PLANE = frozenset(("CT", "MR", "PT"))
"""Modalities whose images always have a plane in the patient: without one they are refused."""
# PS3.3 table C.8-17: the spatial format of a region, and the unit of its axes.
_TWO_DIMENSIONAL, _CENTIMETRES = 1, 3


@dataclass(frozen=True)
class Planar:
    """Where the pixels of a 2-D image lie.

    Attributes:
        spacing_mm: along columns (i) and rows (j); None where no millimetres are known.
        spacing_plane: what they are millimetres of: `detector`, `calibrated-geometry`, `calibrated-fiducial`, `unknown`.
        attribute: the DICOM keyword that they come from, or None.
        affine: 4x4, (i, j, k) to millimetres, or to pixels of the right shape where no millimetres are known. It says nothing
            about the patient: i runs along +x, j along +y from the first pixel's centre.
        regions: of ultrasound, each calibrated region: [first column, first row, last column, last row], mm along i and j.
    """

    spacing_mm: tuple[float, float] | None
    spacing_plane: str
    attribute: str | None
    affine: NDArray[np.float64]
    regions: tuple[dict[str, Any], ...] = ()


def has_plane(frame: Instance) -> bool:
    """Say whether a frame has, or should have had, a plane in the patient: a position or an orientation."""
    return frame.get("ImagePositionPatient") is not None or frame.get("ImageOrientationPatient") is not None


def check_may_be_planar(frames: Sequence[Instance]) -> None:
    """Refuse frames without a plane that are of a modality whose images have one.

    Raises:
        DataError: `no-position`.
    """
    for frame in frames:
        if frame.get("Modality") in NEEDS_PLANE:
            raise DataError(
                "no-position",
                f"{shown(frame.path)} is {said(frame.get('Modality'))} and has neither ImagePositionPatient nor "
                "ImageOrientationPatient: where it lies is said nowhere",
            )


def planar_geometry(frame: Instance, header: Dataset) -> Planar:
    """Return where the pixels of an image without a plane lie.

    Args:
        frame: the image.
        header: of its file, for what the scan does not read.

    Raises:
        DataError: `bad-spacing`.

    Source: PS3.3 10.7.1.3: PixelSpacing with PixelSpacingCalibrationType is calibrated; where it equals ImagerPixelSpacing, or only
    that is there, it is the detector's; where it differs from it without a type, nobody says how it was calibrated. C.8.5.5.1: an
    ultrasound region's PhysicalDeltaX and Y are the distance between pixels in its unit.
    """
    regions = _regions(header) if frame.get("Modality") == "US" else ()
    spacing, attribute, plane = _spacing(frame)
    if regions and spacing is None:
        tissue = {(r["spacing_mm"][0], r["spacing_mm"][1]) for r in regions}
        if len(tissue) == 1:
            spacing, attribute, plane = tissue.pop(), "SequenceOfUltrasoundRegions", GEOMETRY
    i, j = spacing or (1.0, _aspect(frame))
    affine = np.diag([i, j, 1.0, 1.0])
    return Planar(spacing, plane, attribute, affine, regions)


def _spacing(frame: Instance) -> tuple[tuple[float, float] | None, str | None, str]:
    """Return (along i, along j), the keyword, and the plane."""
    pixel, imager = _pair(frame, "PixelSpacing"), _pair(frame, "ImagerPixelSpacing")
    kind = str(frame.get("PixelSpacingCalibrationType", "")).upper()
    if pixel and kind in ("GEOMETRY", "FIDUCIAL"):
        return pixel, "PixelSpacing", GEOMETRY if kind == "GEOMETRY" else FIDUCIAL
    if imager and (pixel is None or np.allclose(pixel, imager, rtol=1e-4, atol=0)):
        return imager, "ImagerPixelSpacing", DETECTOR
    return None, None, UNKNOWN


def _pair(frame: Instance, keyword: str) -> tuple[float, float] | None:
    """Return a [row spacing, column spacing] as (along i, along j)."""
    value = frame.get(keyword)
    if value is None:
        return None
    numbers = isinstance(value, list) and len(value) == 2 and all(isinstance(v, (int, float)) for v in value)
    if not numbers or not all(math.isfinite(v) and v > 0 for v in value):
        raise DataError("bad-spacing", f"{shown(frame.path)} has {keyword} {said(value)}")
    return float(value[1]), float(value[0])


def _aspect(frame: Instance) -> float:
    """Return how much higher than wide a pixel is: by PixelAspectRatio [vertical, horizontal], else by PixelSpacing."""
    ratio = frame.get("PixelAspectRatio")
    if isinstance(ratio, list) and len(ratio) == 2 and all(isinstance(v, int) and v > 0 for v in ratio):
        return float(ratio[0] / ratio[1])
    pixel = _pair(frame, "PixelSpacing")
    return pixel[1] / pixel[0] if pixel else 1.0


def _regions(header: Dataset) -> tuple[dict[str, Any], ...]:
    """Return the two-dimensional regions of an ultrasound image whose axes are in centimetres."""
    found = []
    for item in header.get("SequenceOfUltrasoundRegions") or ():
        try:
            units = int(item.PhysicalUnitsXDirection), int(item.PhysicalUnitsYDirection)
            deltas = abs(float(item.PhysicalDeltaX)) * 10, abs(float(item.PhysicalDeltaY)) * 10
            box = [int(item[f"RegionLocation{at}"].value) for at in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
            flat = int(item.RegionSpatialFormat) == _TWO_DIMENSIONAL
        except (AttributeError, KeyError, TypeError, ValueError):
            continue
        if flat and units == (_CENTIMETRES, _CENTIMETRES) and min(deltas) > 0 and all(map(math.isfinite, deltas)):
            found.append({"box": box, "spacing_mm": [round(v, 9) for v in deltas]})
    return tuple(found)
