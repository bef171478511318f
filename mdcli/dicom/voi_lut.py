"""The VOI LUT of an image, for `geometry.json`: what a display would apply to its modality values.

Source: DICOM PS3.3 C.11.2.1.1: the descriptor holds the number of entries (0 is 65,536), the first value mapped and the bits of an
entry.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

from mdcli.dicom.instance import Instance
from mdcli.dicom.lut import is_big_endian, lut_entries

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def voi_lut_table(instance: Instance, header: Dataset) -> dict[str, Any] | None:
    """Return the first VOI LUT of an image as `geometry.json` has it; None where it has none that can be read.

    Args:
        instance: the image.
        header: of its file.

    Returns:
        `items` (how many tables there are), `first` (the value mapped to the first entry), `bits`, and `entries`: base64 of 16-bit
        numbers, little endian.
    """
    items = header.get("VOILUTSequence")
    if not items:
        return None
    try:
        count, first, bits = (int(v) for v in items[0].LUTDescriptor)
        entries = lut_entries(items[0], "LUTData", count or 65536, bits, big=is_big_endian(header))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None
    # Many files write the first value without its sign (PS3.3 C.11.2.1.1 wants SS where modality values may be negative).
    intercept = instance.get("RescaleIntercept")
    below = instance.get("PixelRepresentation") == 1 or (isinstance(intercept, (int, float)) and intercept < 0)
    if below and first >= 1 << 15:
        first -= 1 << 16
    return {
        "items": len(items),
        "first": first,
        "bits": bits,
        "entries": base64.b64encode(entries.astype("<u2").tobytes()).decode("ascii"),
    }
