"""Find elements that lie within sequences, and private ones, in a header whose top level the scan has read.

Every input is hostile: each length is held against what is there, and what is skipped is never decoded.

Source: DICOM PS3.5 section 7.1 (data elements), 7.5 (sequences of items), 7.8 (private elements), 6.2.2 (UN).
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from struct import Struct
from typing import Any, NamedTuple

from mdcli.dicom.headers import DEFLATED, EXPLICIT_BIG, IMPLICIT_LITTLE, MAX_DEFLATED, MAX_HASHED, MAX_HEADER, value_of
from mdcli.dicom.instance import Instance
from mdcli.dicom.opening import SCAN_AGAIN, SourceFiles, shown
from mdcli.errors import DataError

_PIXELS = 0x7FE00008
"""The first of the pixel elements; nothing that is wanted lies behind them."""
_UNDEFINED = 0xFFFFFFFF
_MAX_DEPTH = 64
_MAX_VALUE = 64 << 10
_BLOCK = 1 << 20
_ITEM = 0xFFFEE000

# PS3.5 section 7.1.2: with a 32-bit length the value starts after 12 bytes, otherwise after 8.
_LONG = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_START = dict.fromkeys(_LONG, 12) | dict.fromkeys(_SHORT, 8)
_EXPLICIT = {True: Struct("<HH2sH").unpack_from, False: Struct(">HH2sH").unpack_from}
_IMPLICIT = {True: Struct("<HHI").unpack_from, False: Struct(">HHI").unpack_from}
_LENGTH = {True: Struct("<I").unpack_from, False: Struct(">I").unpack_from}


class Block(NamedTuple):
    """Where a data set, or an item of a sequence, lies in the header.

    Attributes:
        start: of its first element.
        stop: of its last element's value.
        implicit: its elements name no VR.
    """

    start: int
    stop: int
    implicit: bool


class Element(NamedTuple):
    """Where an element's value lies in the header.

    Attributes:
        vr: as the file has it, empty in implicit VR.
        start: of the value.
        stop: of the value, without a sequence's delimiter.
        implicit: elements in its items name no VR.
    """

    vr: str
    start: int
    stop: int
    implicit: bool


@dataclass(frozen=True)
class Header:
    """The bytes of a file before its pixels.

    Attributes:
        name: of the file, as errors show it.
        data: the bytes, inflated where deflated.
        top: the data set itself.
        little: little endian.
    """

    name: str
    data: bytes
    top: Block
    little: bool

    def elements(self, block: Block, wanted: Collection[int]) -> dict[int, Element]:
        """Return those of the wanted elements that a data set or an item has, by tag.

        Raises:
            DataError: `damaged-header`.
        """
        found: dict[int, Element] = {}
        data, little = self.data, self.little
        position, stop, implicit = block
        explicit_at, implicit_at, length_at = _EXPLICIT[little], _IMPLICIT[little], _LENGTH[little]
        beyond = _PIXELS if block == self.top else 1 << 32
        while position < stop:
            if position + 8 > stop:
                raise self._damaged("ends within an element")
            if implicit:
                group, number, length = implicit_at(data, position)
                vr, value, within = b"", position + 8, True
            else:
                group, number, vr, length = explicit_at(data, position)
                start = _START.get(vr)
                if start is None:
                    raise self._damaged("has an element without a value representation")
                value, within = position + start, vr == b"UN"
                if start == 12:
                    if value > stop:
                        raise self._damaged("ends within an element")
                    (length,) = length_at(data, position + 8)
            tag = group << 16 | number
            if tag >= beyond:
                break
            if length == _UNDEFINED:
                position = self._skip(value, stop, within)
                end = position - 8
            else:
                position = end = value + length
            if position > stop:
                raise self._damaged("has an element that is longer than what holds it")
            if tag in wanted:
                if tag in found:
                    raise self._damaged("has one element twice")
                found[tag] = Element(vr.decode("latin-1"), value, end, within)
        return found

    def items(self, element: Element, most: int) -> list[Block]:
        """Return the items of a sequence.

        Args:
            element: the sequence.
            most: how many it may have.

        Raises:
            DataError: `damaged-header`, also for more items.
        """
        found: list[Block] = []
        position, stop = element.start, element.stop
        while position < stop:
            tag, length = self._item(position, stop)
            if tag != _ITEM:
                raise self._damaged("has a sequence of something else than items")
            start = position + 8
            if length == _UNDEFINED:
                position = self._skip(start, stop, element.implicit, in_item=True)
                end = position - 8
            else:
                position = end = start + length
            if position > stop:
                raise self._damaged("has an item that is longer than its sequence")
            if len(found) == most:
                raise self._damaged(f"has a sequence of more than {most} items")
            found.append(Block(start, end, element.implicit))
        return found

    def raw(self, element: Element) -> bytes:
        """Return a value's bytes."""
        return self.data[element.start : element.stop]

    def value(self, element: Element, vr: str, single: bool, charset: bytes = b"") -> Any:
        """Return a value as `mdcli.dicom.headers.read_instance` does.

        Args:
            element: no sequence.
            vr: that the dictionary gives.
            single: one value only.
            charset: SpecificCharacterSet of the data set, as its bytes.

        Raises:
            DataError: `damaged-header` for one of more than 64 KiB.
        """
        if element.stop - element.start > _MAX_VALUE:
            raise self._damaged(f"has a value of {element.stop - element.start} bytes")
        given = element.vr
        return value_of(vr, self.raw(element), given, single=single, little=self.little, charset=charset)

    def private(self, group: int, creator: str, elements: Collection[int]) -> dict[int, Element]:
        """Return private elements of the top level, by the number that they have within their creator's block.

        Args:
            group: odd.
            creator: the value of the private creator element.
            elements: 0 to 255.

        Raises:
            DataError: `damaged-header`.
        """
        creators = self.elements(self.top, range(group << 16 | 0x10, (group << 16 | 0xFF) + 1))
        for tag, element in creators.items():
            if self.value(element, "LO", single=True) == creator:
                block = group << 16 | (tag & 0xFF) << 8
                found = self.elements(self.top, {block | number for number in elements})
                return {tag & 0xFF: element for tag, element in found.items()}
        return {}

    def _item(self, position: int, stop: int) -> tuple[int, int]:
        if position + 8 > stop:
            raise self._damaged("ends within a sequence")
        group, number, length = _IMPLICIT[self.little](self.data, position)
        return group << 16 | number, length

    def _skip(self, position: int, stop: int, implicit: bool, in_item: bool = False) -> int:
        """Return where a sequence of undefined length, or such an item, ends; its delimiter is the last 8 bytes before."""
        data, little = self.data, self.little
        explicit_at, length_at = _EXPLICIT[little], _LENGTH[little]
        # What is open and of undefined length: in an item or not, and its encoding.
        levels = [(in_item, implicit)]
        while levels:
            if position + 8 > stop:
                raise self._damaged("ends within a sequence")
            within_item, coding = levels[-1]
            group, number, vr, length = explicit_at(data, position)
            if group == 0xFFFE:
                (length,) = length_at(data, position + 4)
                position += 8
                if number == 0xE000 and not within_item:
                    if length == _UNDEFINED:
                        levels.append((True, coding))
                    else:
                        position += length
                elif number == (0xE00D if within_item else 0xE0DD):
                    levels.pop()
                else:
                    raise self._damaged("has a sequence whose delimiters do not match")
                continue
            if not within_item:
                raise self._damaged("has a sequence of something else than items")
            start = 8
            if coding:
                (length,) = length_at(data, position + 4)
            elif vr not in _START:
                raise self._damaged("has an element without a value representation")
            elif vr in _LONG:
                start = 12
                if position + 12 > stop:
                    raise self._damaged("ends within a sequence")
                (length,) = length_at(data, position + 8)
            position += start
            if length != _UNDEFINED:
                position += length
            elif len(levels) >= _MAX_DEPTH:
                raise self._damaged("has sequences nested too deep")
            else:
                levels.append((False, coding or vr == b"UN"))
        return position

    def _damaged(self, what: str) -> DataError:
        return DataError("damaged-header", f"the header of {self.name} {what}")


def open_header(files: SourceFiles, instance: Instance) -> Header:
    """Read a header again, with everything in it.

    Args:
        files: the scanned folder or zip file.
        instance: as the scan found it.

    Raises:
        MissingError: `source-missing`.
        DataError: `source-unreadable`, `source-changed` where it is not the header that was scanned, `damaged-header`.
    """
    name = shown(instance.path)
    syntax = instance.get("TransferSyntaxUID")
    with files.open(instance.path, instance.size) as stream:
        if instance.pixel_offset is not None:
            data = stream.read(min(instance.pixel_offset, MAX_HEADER))
            digest = hashlib.sha256(data)
        else:
            # Deflated, or without integer pixels: the hash is of the whole file.
            digest, parts, kept, left = hashlib.sha256(), [], 0, min(instance.size, MAX_HASHED)
            most = MAX_DEFLATED if syntax == DEFLATED else MAX_HEADER
            while left:
                part = stream.read(min(left, _BLOCK))
                digest.update(part)
                left -= len(part)
                if kept < most:
                    parts.append(part)
                    kept += len(part)
            data = b"".join(parts)
    if digest.hexdigest() != instance.header_sha256:
        raise DataError("source-changed", f"{name} has another header than when it was scanned", hint=SCAN_AGAIN)
    start = _data_set(data, name)
    if syntax == DEFLATED:
        try:
            data, start = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:], MAX_HEADER), 0
        except zlib.error:
            raise DataError("damaged-header", f"the deflated data set of {name} is broken") from None
    top = Block(start, len(data), syntax == IMPLICIT_LITTLE)
    return Header(name, data, top, little=syntax != EXPLICIT_BIG)


def _data_set(data: bytes, name: str) -> int:
    """Return where the data set starts, behind the file meta information (PS3.10 section 7.1)."""
    position = 132 if data[128:132] == b"DICM" else 0
    while position + 12 <= len(data):
        group, _, vr, length = _EXPLICIT[True](data, position)
        if group != 2:
            return position
        start = _START.get(vr)
        if start is None:
            break
        if start == 12:
            (length,) = _LENGTH[True](data, position + 8)
        position += start + length
    raise DataError("damaged-header", f"the header of {name} ends within its meta information")
