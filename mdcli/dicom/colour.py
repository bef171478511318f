"""Turn colour samples into red, green and blue, by the formulas of the standard.

Source: DICOM PS3.3 C.7.6.3.1.2 (Photometric Interpretation), C.7.9 (Palette Color Lookup Table).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.lut import LutError, is_big_endian, lut_entries
from mdcli.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

PHOTOMETRICS = frozenset(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"))
"""What samples of colour may be; the last two are RGB once their JPEG 2000 codestream is decoded."""
_YBR = frozenset(("YBR", "YBR_FULL", "YBR_FULL_422"))


def to_rgb(samples: NDArray[np.uint8], photometric: str) -> None:
    """Turn 8-bit samples into red, green and blue, in place.

    Args:
        samples: (..., 3).
        photometric: what they are: `RGB`, or full-range luminance and colour differences (`YBR_FULL`, `YBR_FULL_422`, `YBR`).

    Raises:
        DataError: `unsupported-colour`.

    Source: PS3.3 C.7.6.3.1.2, YBR_FULL: the inverse of its three equations, rounded to the nearest integer.
    """
    if photometric in ("RGB", "YBR_RCT", "YBR_ICT"):
        return
    if photometric not in _YBR:
        raise DataError("unsupported-colour", f"its samples are {photometric}")
    y, cb, cr = (samples[..., n].astype(np.float32) - (128 if n else 0) for n in range(3))
    for n, value in enumerate((y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb)):
        samples[..., n] = np.clip(np.rint(value), 0, 255).astype(np.uint8)


def palette_of(header: Dataset) -> tuple[int, NDArray[np.uint8]]:
    """Return the lookup table of a PALETTE COLOR image.

    Returns:
        The stored value of its first entry, and (n, 3) red, green and blue; 16-bit entries by their high byte.

    Raises:
        DataError: `bad-palette`.

    Source: PS3.3 C.7.9.2, C.7.6.3.1.5 (descriptor: entries, first value mapped, bits) and C.7.6.3.1.6 (data).
    """
    tables, firsts = [], set()
    for colour in ("Red", "Green", "Blue"):
        try:
            count, first, bits = (int(v) for v in header[f"{colour}PaletteColorLookupTableDescriptor"].value)
            if bits not in (8, 16):
                raise LutError(f"it has entries of {bits} bits")
            data = f"{colour}PaletteColorLookupTableData"
            entries = lut_entries(header, data, count or 65536, bits, big=is_big_endian(header))
        except (KeyError, TypeError, ValueError) as error:
            why = error if isinstance(error, LutError) else "its descriptor is absent or unreadable"
            raise DataError("bad-palette", f"the lookup table for {colour.lower()} can't be read: {why}") from None
        tables.append((entries >> 8 if bits == 16 else entries).astype(np.uint8))
        firsts.add((count, first))
    if len(firsts) > 1:
        raise DataError("bad-palette", "the lookup tables for red, green and blue differ in size or first value")
    return first, np.stack(tables, axis=-1)


def apply_palette(stored: NDArray[Any], first: int, table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the colours of stored values (..., 3); values beyond the table take its first or last entry (PS3.3 C.7.6.3.1.5)."""
    return np.asarray(table[np.clip(stored.astype(np.int64) - first, 0, len(table) - 1)])
