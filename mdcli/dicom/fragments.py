"""Find the frames of encapsulated PixelData in its file, by the headers of its items alone.

Source: DICOM PS3.5 A.4 and tables A.4-1 to A.4-3 (items, fragments, Basic Offset Table); PS3.3 C.7.6.3.1.8 (Extended Offset Table).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from itertools import pairwise

from mdcli.errors import DataError

FRAGMENTS_ALWAYS_ALLOWED = 100_000
"""Pixels may have this many fragments; empty ones cost little in a file, and time and memory here ..."""
FRAGMENTS_A_FRAME = 100
"""... and this many more for each frame ..."""
BYTES_A_FRAGMENT = 64
"""... but not more than one for so many bytes of the file: how many frames there are is only a claim."""

Span = tuple[int, int]
"""Where a fragment's content lies: (offset in the file, length), in bytes."""

_ITEM, _DELIMITER = (0xFFFE, 0xE000), (0xFFFE, 0xE0DD)
_HEADER = 8
# SOI and the next marker; SOC and SIZ, or the signature box of a JP2 file (against PS3.5 A.4.4, and seen).
_STARTS = {
    "jpeg": (b"\xff\xd8\xff",),
    "jpeg-ls": (b"\xff\xd8\xff",),
    "jpeg-2000": (b"\xff\x4f\xff\x51", b"\x00\x00\x00\x0cjP  "),
}
_LONGEST_START = 8
# EOI and EOC are the same two bytes; what follows is padding.
_END, _LONGEST_PADDING = b"\xff\xd9", 14


def locate_frames(
    read: Callable[[int, int], bytes],
    start: int,
    end: int,
    frames: int,
    form: str,
    extended: tuple[Sequence[int], Sequence[int]] | None = None,
) -> list[list[Span]]:
    """Return where the fragments of each frame lie.

    The items are walked to the delimiter, with one small read each, at rising offsets. Which fragments make a frame is settled
    by the first of these that applies:

    1. As many fragments as frames: one each, in their order. A table that is off is not needed then; one that has the same
       items in another order is refused. An Extended Offset Table allows nothing else, nor does RLE.
    2. A Basic Offset Table with entries: it must name an item for each frame, rising, the first one first.
    3. Where codestreams begin; if that gives another number, where one ends and the next fragment begins one.

    Args:
        read: returns `length` bytes from an offset of the file on, fewer at its end.
        start: where the first item tag is.
        end: the size of the file.
        frames: how many the header says, at least 1.
        form: the codec: `rle`, `jpeg`, `jpeg-ls` or `jpeg-2000`.
        extended: ExtendedOffsetTable (7FE0,0001) and ExtendedOffsetTableLengths (7FE0,0002), where the file has them.

    Returns:
        For each frame its fragments, one at least.

    Raises:
        DataError: `bad-encapsulation` where no item begins or there are too many, `truncated-pixels` where the file ends inside
            an item or before the delimiter, `bad-offsets` where a table contradicts the items or which fragments make a frame
            can't be settled.
    """
    table, items, heads = _walk(read, start, end, frames)
    if extended is not None:
        _check_extended(extended, items, frames)
    if len(items) == frames:
        starts = _starts(items)
        if table is not None and table != starts and sorted(table) == starts:
            raise DataError("bad-offsets", "its Basic Offset Table has the frames in another order than its fragments")
        return [[item] for item in items]
    if len(items) < frames or form == "rle":
        least = "one fragment a frame is the rule of RLE" if form == "rle" else "one a frame is the least"
        raise _unsettled(len(items), frames, least)
    first = _by_table(table, items, frames) if table is not None else _by_codestream(read, items, heads, frames, form)
    return [items[a:b] for a, b in zip(first, [*first[1:], len(items)], strict=True)]


def _walk(
    read: Callable[[int, int], bytes], start: int, end: int, frames: int
) -> tuple[list[int] | None, list[Span], list[bytes]]:
    """Return the Basic Offset Table (None where it is empty), the fragments, and how each of them begins."""
    most = FRAGMENTS_ALWAYS_ALLOWED + min(FRAGMENTS_A_FRAME * frames, (end - start) // BYTES_A_FRAGMENT)
    at, table, seen_table = start, None, False
    items: list[Span] = []
    heads: list[bytes] = []
    while True:
        if end < at + _HEADER:
            raise _no_delimiter(end - start)
        head = read(at, min(_HEADER + _LONGEST_START, end - at))
        if len(head) < _HEADER:
            raise _no_delimiter(at - start + len(head))
        group, element, length = struct.unpack_from("<HHI", head)
        if (group, element) == _DELIMITER:
            return table, items, heads
        if (group, element) != _ITEM:
            raise DataError(
                "bad-encapsulation", f"its encapsulated pixels hold ({group:04x},{element:04x}) for an item"
            )
        at += _HEADER
        if length > end - at:
            raise DataError("truncated-pixels", f"an item of {length} bytes has {end - at} bytes left in the file")
        if seen_table:
            if len(items) == most:
                raise DataError(
                    "bad-encapsulation", f"its encapsulated pixels hold more than {most} fragments", most=most
                )
            items.append((at, length))
            heads.append(head[_HEADER : _HEADER + length])
        elif length:
            # A table of another length is never read, however long: as an empty list it agrees with no items.
            table = list(struct.unpack(f"<{frames}I", _exactly(read, at, length))) if length == 4 * frames else []
        at, seen_table = at + length, True


def _exactly(read: Callable[[int, int], bytes], offset: int, length: int) -> bytes:
    found = read(offset, length)
    if len(found) < length:
        raise DataError("truncated-pixels", f"an item of {length} bytes has {len(found)} bytes left in the file")
    return found


def _no_delimiter(length: int) -> DataError:
    return DataError("truncated-pixels", f"its encapsulated pixels end after {length} bytes without a delimiter")


def _unsettled(items: int, frames: int, why: str) -> DataError:
    return DataError(
        "bad-offsets",
        f"its encapsulated pixels hold {items} fragment(s) for {frames} frame(s): {why}",
        fragments=items,
        frames=frames,
    )


def _starts(items: Sequence[Span]) -> list[int]:
    """Return where each item begins, counted from the first one behind the Basic Offset Table, as offset tables count."""
    return [at - items[0][0] for at, _ in items]


def _check_extended(extended: tuple[Sequence[int], Sequence[int]], items: Sequence[Span], frames: int) -> None:
    offsets, lengths = extended
    if not len(offsets) == len(lengths) == len(items) == frames:
        raise DataError(
            "bad-offsets",
            f"its Extended Offset Table has {len(offsets)} offsets and {len(lengths)} lengths; it has {len(items)} fragment(s) "
            f"for {frames} frame(s), and one each is the rule",
        )
    for number, (says, begins, length, item) in enumerate(
        zip(offsets, _starts(items), lengths, items, strict=True), start=1
    ):
        # A frame of odd length is padded; the table has its length with or without that byte.
        if says != begins or not 0 <= item[1] - length <= 1:
            raise DataError(
                "bad-offsets",
                f"its Extended Offset Table has frame {number} at {says} with {length} bytes; that fragment is at {begins} with "
                f"{item[1]}",
            )


def _by_table(table: Sequence[int], items: Sequence[Span], frames: int) -> list[int]:
    if not table:
        raise DataError(
            "bad-offsets", f"its Basic Offset Table has another number of entries than it has frames ({frames})"
        )
    numbers = {offset: number for number, offset in enumerate(_starts(items))}
    odd = next((offset for offset in table if offset not in numbers), None)
    if odd is not None:
        raise DataError("bad-offsets", f"its Basic Offset Table points to {odd}, where no fragment begins", offset=odd)
    first = [numbers[offset] for offset in table]
    if first[0] != 0 or any(a >= b for a, b in pairwise(first)):
        raise DataError("bad-offsets", "its Basic Offset Table does not rise from the first fragment on")
    return first


def _by_codestream(
    read: Callable[[int, int], bytes], items: Sequence[Span], heads: Sequence[bytes], frames: int, form: str
) -> list[int]:
    begins = [number for number, head in enumerate(heads) if number == 0 or head.startswith(_STARTS[form])]
    if len(begins) != frames:
        # Within a codestream a fragment may begin like one by chance; then what is before it has not ended.
        begins = [number for number in begins if number == 0 or _has_ended(read, items[number - 1])]
    if len(begins) != frames:
        raise _unsettled(len(items), frames, f"without an offset table, {len(begins)} codestream(s) begin in them")
    return begins


def _has_ended(read: Callable[[int, int], bytes], item: Span) -> bool:
    at, length = item
    tail = min(length, len(_END) + _LONGEST_PADDING)
    return read(at + length - tail, tail).rstrip(b"\x00\xff").endswith(_END)
