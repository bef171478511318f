"""Cut a mosaic into its tiles: many slices of one volume in one picture, as Siemens and UIH write MR series in time.

A mosaic's own header places the picture, not the slices; where each slice lies stands in private elements alone.

Source: what the makers say about their private elements, as the documentation of dcm2niix and of nibabel collects it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from struct import Struct
from typing import Any

from mdcli.dicom.headers import value_of
from mdcli.dicom.instance import Instance
from mdcli.dicom.nested import Header
from mdcli.errors import DataError

MAX_TILES = 1 << 12
"""Slices in one picture."""

_SIEMENS, _UIH = "MOSAIC", "VFRAME"
"""What ImageType says of a mosaic."""
_MR_HEADER, _CSA_HEADER, _UIH_HEADER = "SIEMENS MR HEADER", "SIEMENS CSA HEADER", "Image Private Header"
_MAX_CSA = 1000
"""Elements of a CSA header, and items of one."""
_CSA_TAG = Struct("<64si4siii").unpack_from
_CSA_ITEM = Struct("<4i").unpack_from
_POSITION, _GRADIENT = 0x00200032, "DiffusionGradientOrientation"
_SAME_NORMAL = 1e-3
"""How far the cosine between two normals may be from 1."""
_SPACING_MM, _SPACING_SHARE = 0.05, 0.02
"""How far protocol and header may differ in the distance between slices: the larger of the two."""
_PROTOCOL = re.compile(
    rb"sSliceArray\.(?:(lSize)|asSlice\[(\d{1,4})\]\.sPosition\.d(Sag|Cor|Tra)|(ucImageNumb)(?:Sag|Cor|Tra))"
    rb"[ \t]{0,8}=[ \t]{0,8}([-+.0-9a-fA-FxX]{1,32})"
)
_AXES = {b"Sag": 0, b"Cor": 1, b"Tra": 2}


def is_mosaic(instance: Instance) -> bool:
    """Say whether an instance calls itself a mosaic."""
    kind = instance.get("ImageType")
    return isinstance(kind, list) and (_SIEMENS in kind or _UIH in kind)


def tiles_of(header: Header, instance: Instance) -> list[Instance]:
    """Return each slice of a mosaic as an instance of its own.

    Args:
        header: of the file, whole.
        instance: that the scan found, one for which `is_mosaic` holds.

    Returns:
        The slices in the order of the tiles, with `tile`, their own Rows, Columns and ImagePositionPatient, and b-value and
        gradient direction where only private elements have them.

    Raises:
        DataError: `mosaic` with what is missing or contradicts itself; `damaged-header`.
    """
    rows, columns = instance.get("Rows"), instance.get("Columns")
    if not all(isinstance(n, int) and n > 0 for n in (rows, columns)):
        raise _odd(header, "without Rows and Columns")
    plane = _Plane(header, instance)
    if _SIEMENS in instance.get("ImageType"):
        side, positions, more = _siemens(header, instance, plane, rows, columns)
        down = side
    else:
        side, down, positions, more = _uih(header, instance)
    if rows % down or columns % side:
        raise _odd(header, f"of {rows} x {columns} pixels, which {down} x {side} tiles do not divide")
    height, width = rows // down, columns // side
    return [
        replace(
            instance,
            attributes={
                **instance.attributes,
                **more,
                "Rows": height,
                "Columns": width,
                "ImagePositionPatient": position,
            },
            tile=(k // side * height, k % side * width, rows, columns),
        )
        for k, position in enumerate(positions)
    ]


def _odd(header: Header, what: str) -> DataError:
    return DataError("mosaic", f"{header.name} is a mosaic {what}")


class _Plane:
    """The plane that a mosaic's own header gives, as lists of mm or cosines."""

    def __init__(self, header: Header, instance: Instance) -> None:
        found = []
        for keyword, count in (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2)):
            value = instance.get(keyword)
            if not isinstance(value, list) or len(value) != count or not all(isinstance(v, float) for v in value):
                raise _odd(header, f"without {keyword}")
            found.append(value)
        self.position, cosines, (self.row_spacing, self.column_spacing) = found
        self.row, self.column = cosines[:3], cosines[3:]
        normal = _cross(self.row, self.column)
        length = math.hypot(*normal)
        if not 0.9 < length < 1.1:
            raise _odd(header, "whose rows and columns are not at right angles")
        self.normal = [v / length for v in normal]


def _cross(a: Sequence[float], b: Sequence[float]) -> list[float]:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def _siemens(
    header: Header, instance: Instance, plane: _Plane, rows: int, columns: int
) -> tuple[int, list[list[float]], dict[str, Any]]:
    """Return the tiles in a row, the position of each slice, and what else private elements say."""
    private = header.private(0x0019, _MR_HEADER, (0x0A, 0x0C, 0x0E))
    csa = header.private(0x0029, _CSA_HEADER, (0x10, 0x20))
    image = _csa(header.raw(csa[0x10])) if 0x10 in csa else {}
    protocol = _protocol(header.raw(csa[0x20])) if 0x20 in csa else _Protocol()

    said = header.value(private[0x0A], "US", single=True) if 0x0A in private else None
    counts = {n for n in (said, *_whole(image.get("NumberOfImagesInMosaic"))) if isinstance(n, int)}
    if len(counts) > 1:
        raise _odd(header, "whose headers differ in how many images it has: " + ", ".join(map(str, sorted(counts))))
    count = next(iter(counts), protocol.size)
    if count is None:
        raise _odd(header, "that does not say how many images it has")
    if not 0 < count <= MAX_TILES:
        raise _odd(header, f"that says it has {count} images")
    side = math.isqrt(count - 1) + 1
    # The position in the header is where the picture would start if it were one slice around the same centre.
    right = plane.column_spacing * (columns - columns // side) / 2
    down = plane.row_spacing * (rows - rows // side) / 2
    first = [p + right * r + down * c for p, r, c in zip(plane.position, plane.row, plane.column, strict=True)]
    step = _step(header, instance, plane, image, protocol, count)
    positions = [[f + k * step * n for f, n in zip(first, plane.normal, strict=True)] for k in range(count)]

    more: dict[str, Any] = {}
    if instance.get("DiffusionBValue") is None and 0x0C in private:
        more["DiffusionBValue"] = header.value(private[0x0C], "IS", single=True)
        if instance.get(_GRADIENT) is None and 0x0E in private:
            more[_GRADIENT] = header.value(private[0x0E], "FD", single=False)
    return side, positions, more


def _step(
    header: Header, instance: Instance, plane: _Plane, image: dict[str, list[bytes]], protocol: _Protocol, count: int
) -> float:
    """Return how far slice k + 1 lies from slice k along row x column, mm, negative against it."""
    if count == 1:
        return 0.0
    planned = protocol.step(plane.normal, count)
    spacing = instance.get("SpacingBetweenSlices")
    spacing = abs(spacing) if isinstance(spacing, float) and spacing else None
    if spacing is None:
        if planned is None:
            raise _odd(header, "without the distance between its slices (SpacingBetweenSlices or the protocol)")
        spacing = abs(planned)
    elif planned is not None and abs(abs(planned) - spacing) > max(_SPACING_MM, _SPACING_SHARE * spacing):
        raise _odd(header, f"whose slices lie {spacing:g} mm apart by its header, {abs(planned):g} mm by its protocol")
    normal = _decimals(image.get("SliceNormalVector"))
    if normal is not None:
        along = _dot(normal, plane.normal)
        if abs(abs(along) - 1) > _SAME_NORMAL:
            raise _odd(header, "whose SliceNormalVector is not at right angles to its rows and columns")
        # A protocol may number its images backwards; then the slices in it run against the tiles.
        if planned is not None and planned * along < 0 and not protocol.backwards:
            raise _odd(header, "whose slices run one way by SliceNormalVector and the other by its protocol")
        return math.copysign(spacing, along)
    if planned is None or protocol.backwards:
        raise _odd(header, "that does not say which way its slices run (SliceNormalVector)")
    return math.copysign(spacing, planned)


def _decimals(texts: Sequence[bytes] | None) -> list[float] | None:
    values = [value_of("DS", text, single=True) for text in texts or ()]
    return values if len(values) == 3 and all(isinstance(v, float) for v in values) else None


def _whole(texts: Sequence[bytes] | None) -> list[Any]:
    return [value_of("IS", text, single=True) for text in (texts or ())[:1]]


def _csa(data: bytes) -> dict[str, list[bytes]]:
    """Return what a CSA header says that places slices, by name; what is damaged or beyond the bounds ends it.

    Source: the layout that nibabel's documentation gives ("Siemens format DICOM with CSA header"): CSA2 starts with `SV10`.
    """
    wanted = (b"NumberOfImagesInMosaic", b"SliceNormalVector")
    found: dict[str, list[bytes]] = {}
    newer = data[:4] == b"SV10"
    position = 8 if newer else 0
    if len(data) < position + 8:
        return {}
    count = int.from_bytes(data[position : position + 4], "little")
    position += 8
    first_items = 0
    for n in range(min(count, _MAX_CSA)):
        if position + 84 > len(data):
            break
        name, multiplicity, _, _, items, _ = _CSA_TAG(data, position)
        position += 84
        if n == 0:
            first_items = items
        if not 0 <= items <= _MAX_CSA:
            break
        values = []
        for _ in range(items):
            if position + 16 > len(data):
                return found
            lengths = _CSA_ITEM(data, position)
            position += 16
            length = lengths[1]
            # The older format says the length twice, once with the number of the first element's items added.
            if length < 0 or position + length > len(data) or (not newer and length != lengths[0] - first_items):
                return found
            values.append(data[position : position + min(length, 64)].split(b"\0", 1)[0].strip())
            position += (length + 3) // 4 * 4
        name = name.split(b"\0", 1)[0]
        if name in wanted:
            found[name.decode("ascii")] = [v for v in values[: max(0, multiplicity) or len(values)] if v]
    return found


@dataclass(frozen=True)
class _Protocol:
    """What the text protocol of a measurement says about its slices.

    Attributes:
        size: how many there are.
        centres: the centre of each, by number, mm, LPS+.
        backwards: images are numbered against the slices.
    """

    size: int | None = None
    centres: tuple[tuple[float, float, float], ...] = ()
    backwards: bool = False

    def step(self, normal: Sequence[float], count: int) -> float | None:
        """Return the distance from one slice to the next along a normal, mm, where there are as many as asked for."""
        if len(self.centres) != count or count < 2:
            return None
        return (_dot(self.centres[-1], normal) - _dot(self.centres[0], normal)) / (count - 1)


def _protocol(data: bytes) -> _Protocol:
    at = max(0, data.find(b"MrPhoenixProtocol"))
    begin = data.find(b"### ASCCONV BEGIN", at)
    end = data.find(b"### ASCCONV END", begin)
    if begin < 0 or end < 0:
        return _Protocol()
    size, backwards, found = None, False, dict[int, list[float]]()
    for size_word, index, axis, number_word, text in _PROTOCOL.findall(data, begin, end):
        if size_word:
            size = int(text) if text.isdigit() and len(text) < 6 else None
        elif number_word:
            backwards = backwards or text.strip(b"0xX") != b""
        else:
            value = value_of("DS", text, single=True)
            if not isinstance(value, float):
                return _Protocol()
            found.setdefault(int(index), [0.0, 0.0, 0.0])[_AXES[axis]] = value
    if size is None or size > MAX_TILES:
        return _Protocol(None, (), backwards)
    # What is 0 is not written.
    centres = [found.get(n, [0.0, 0.0, 0.0]) for n in range(size)]
    return _Protocol(size, tuple((x, y, z) for x, y, z in centres), backwards)


def _uih(header: Header, instance: Instance) -> tuple[int, int, list[list[float]], dict[str, Any]]:
    """Return the tiles in a row and in a column, the position of each slice, and what else private elements say."""
    private = header.private(0x0065, _UIH_HEADER, (0x09, 0x37, 0x50, 0x51))
    count = header.value(private[0x50], "DS", single=True) if 0x50 in private else None
    if not isinstance(count, (int, float)) or count != int(count) or not 0 < count <= MAX_TILES:
        raise _odd(header, "that does not say how many images it has")
    count = int(count)
    items = header.items(private[0x51], MAX_TILES) if 0x51 in private else []
    if len(items) != count:
        raise _odd(header, f"of {count} images that places {len(items)}")
    positions = []
    for item in items:
        element = header.elements(item, (_POSITION,)).get(_POSITION)
        position = header.value(element, "DS", single=False) if element else None
        if not isinstance(position, list) or len(position) != 3 or not all(isinstance(v, float) for v in position):
            raise _odd(header, "with an image that has no position")
        positions.append(position)
    more: dict[str, Any] = {}
    if instance.get("DiffusionBValue") is None and 0x09 in private:
        more["DiffusionBValue"] = header.value(private[0x09], "FD", single=True)
        if instance.get(_GRADIENT) is None and 0x37 in private:
            more[_GRADIENT] = header.value(private[0x37], "FD", single=False)
    side = math.isqrt(count - 1) + 1
    return side, -(-count // side), positions, more
