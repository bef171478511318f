"""Modality LUTs: a table from stored to modality values.

Source: DICOM PS3.3 C.11.1.1 (Modality LUT): the descriptor holds the number of entries (0 is 65,536), the first stored value mapped
and the bits of an entry; values below the first entry take the first one, values above the last one the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.instance import Instance
from mdcli.dicom.lut import LutError, is_big_endian, lut_entries
from mdcli.dicom.opening import shown
from mdcli.dicom.pixels import SliceRead
from mdcli.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


@dataclass(frozen=True)
class ModalityLut:
    """One table.

    Attributes:
        first: the stored value of the first entry.
        entries: (n,) uint16, modality values.
        unit: ModalityLUTType (`HU`, `OD` ...); None where it says that nothing is specified.
    """

    first: int
    entries: NDArray[np.uint16]
    unit: str | None


def modality_lut(instance: Instance, header: Dataset) -> ModalityLut:
    """Return the Modality LUT of an image.

    Raises:
        DataError: `no-modality-lut` where the image has none and others of its volume do; `bad-modality-lut`.
    """
    items = header.get("ModalityLUTSequence")
    if not items:
        raise DataError("no-modality-lut", f"{shown(instance.path)} has no Modality LUT, other slices have one")
    if instance.get("RescaleSlope") is not None or instance.get("RescaleIntercept") is not None:
        text = f"{shown(instance.path)} has a Modality LUT and a rescale: one of the two is the rule"
        raise DataError("bad-modality-lut", text)
    item = items[0]
    try:
        count, first, bits = (int(v) for v in item.LUTDescriptor)
        if len(items) != 1:
            raise LutError(f"it has {len(items)} items")
        entries = lut_entries(item, "LUTData", count or 65536, bits, big=is_big_endian(header))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        why = f": {error}" if isinstance(error, LutError) else ""
        raise DataError("bad-modality-lut", f"the Modality LUT of {shown(instance.path)} can't be read{why}") from None
    if instance.get("PixelRepresentation") == 1 and first >= 1 << 15:
        first -= 1 << 16
    kind = str(item.get("ModalityLUTType") or "").strip()
    return ModalityLut(first, entries, kind if kind not in ("", "US") else None)


def apply_luts(
    stored: NDArray[Any], reads: Sequence[SliceRead], luts: Sequence[ModalityLut]
) -> tuple[NDArray[np.uint16], list[SliceRead]]:
    """Return the modality values (k, j, i) of stored ones, and what was read with the lowest and highest value made anew."""
    made = np.empty(stored.shape, np.uint16)
    found = []
    for plane, out, lut, read in zip(stored, made, luts, reads, strict=True):
        out[...] = lut.entries[np.clip(plane.astype(np.int64) - lut.first, 0, len(lut.entries) - 1)]
        found.append(replace(read, low=int(out.min()), high=int(out.max())))
    return made, found
