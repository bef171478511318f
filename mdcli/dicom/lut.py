"""Read the entries of lookup tables, of colours and of modality values, whatever holds them in the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


class LutError(ValueError):
    """A table that can't be read; the text holds nothing out of the file but sizes."""


def is_big_endian(header: Dataset) -> bool:
    """Say whether a data set was read from a big-endian file; False of one that was made in memory."""
    return header.original_encoding[1] is False


def lut_entries(dataset: Dataset, keyword: str, count: int, bits: int, *, big: bool = False) -> NDArray[np.uint16]:
    """Return the entries of a lookup table.

    Args:
        dataset: the item or header that has the table.
        keyword: of its data: OB, OW, or numbers (US).
        count: how many entries there are.
        bits: of an entry, 8 to 16.
        big: the file is big endian: bytes of OW are in swapped pairs.

    Returns:
        (count,). Tables of 8 bits are found with one entry a byte and with one a word.

    Raises:
        LutError: where the table is absent or too short.

    Source: DICOM PS3.3 C.7.6.3.1.6 and C.11.1.1.1 (data), PS3.5 8.1.1 and A.3 (words in big endian).
    """
    if not 0 < count <= 65536 or not 8 <= bits <= 16:
        raise LutError(f"it has {count} entries of {bits} bits")
    if keyword not in dataset:
        raise LutError(f"it has no {keyword}")
    element = dataset[keyword]
    value: Any = element.value
    if not isinstance(value, bytes):
        value = np.atleast_1d(np.array(value, np.int64)).astype("<u2").tobytes()
    elif big and element.VR == "OW":
        value = np.frombuffer(value, "<u2").byteswap().tobytes()
    wide = len(value) >= 2 * count
    if not wide and (bits > 8 or len(value) < count):
        raise LutError(f"it has {len(value)} bytes for {count} entries of {bits} bits")
    return np.frombuffer(value, "<u2" if wide else "u1", count).astype(np.uint16)
