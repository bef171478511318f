"""The header of an NRRD file: read it, write it.

Source: the NRRD format definition, https://teem.sourceforge.net/nrrd/format.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.opening import shown
from mdcli.errors import DataError
from mdcli.imaging.voxels import MAX_HEADER, Stored, beside, check_shape, open_regular

# Section 5, "type".
_TYPES = {
    "i1": "signed char, int8, int8_t",
    "u1": "uchar, unsigned char, uint8, uint8_t",
    "i2": "short, short int, signed short, signed short int, int16, int16_t",
    "u2": "ushort, unsigned short, unsigned short int, uint16, uint16_t",
    "i4": "int, signed int, int32, int32_t",
    "u4": "uint, unsigned int, uint32, uint32_t",
    "i8": "longlong, long long, long long int, signed long long, signed long long int, int64, int64_t",
    "u8": "ulonglong, unsigned long long, unsigned long long int, uint64, uint64_t",
    "f4": "float",
    "f8": "double",
}
_TYPE_OF = {name: code for code, names in _TYPES.items() for name in names.split(", ")}
_WRITTEN = {code: names.split(", ")[-1] for code, names in _TYPES.items()}
# The first axis of each to the patient's left, the second to the back, the third to the head. Section 5, "space".
_SPACES = {
    "left-posterior-superior": (1.0, 1.0, 1.0),
    "right-anterior-superior": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0),
}
_SPACES |= {"".join(word[0] for word in name.split("-")): signs for name, signs in _SPACES.items()}
# Section 5, "kinds": what the components of one sample are, not samples in another place or time.
_ORDERED = ("none", "domain", "list", "time", "space", "???", "stub")


def read_header(path: Path) -> Stored:
    """Return what an NRRD header says.

    Args:
        path: a `.nrrd` or a `.nhdr`.

    Raises:
        DataError: `not-nrrd`, `no-affine` (no anatomical space, or no direction and origin), `four-dimensional`, `vector-image`,
            `not-a-volume`, `volume-too-large`, `unsupported-type`, `unsupported-encoding`, `data-file-outside`.
        MissingError: `no-source`.
    """
    name = shown(path.name)
    with open_regular(path) as file:
        data = file.read(MAX_HEADER)
    end = re.search(rb"\r?\n\r?\n|\Z", data)
    assert end is not None
    fields = _fields(name, data[: end.start()].decode("utf-8", "replace"))
    sizes = _whole_numbers(name, fields, "sizes")
    axes = _spatial_axes(name, fields, sizes)
    shape = check_shape(path.name, tuple(sizes[axis] for axis in axes)[::-1])
    kind = _TYPE_OF.get(fields.get("type", "").lower())
    if kind is None:
        raise DataError("unsupported-type", f"{name} has voxels of type {shown(fields.get('type', ''))!r}")
    order = {"little": "<", "big": ">"}.get(fields.get("endian", "").lower())
    if order is None and kind[1] != "1":
        raise DataError("not-nrrd", f"{name} does not say the byte order of its voxels")
    encoding, skip = _encoding(name, fields)
    data_file = fields.get("data file", fields.get("datafile"))
    if data_file is None and path.suffix.lower() == ".nhdr":
        raise DataError("not-nrrd", f"{name} names no file with its voxels")
    if data_file is not None and (data_file.split(" ")[0] == "LIST" or "%" in data_file):
        raise DataError("unsupported-encoding", f"{name} has its voxels in many files")
    # Section 3: a byte skip is that of the inflated stream.
    start = 0 if data_file is not None else end.end()
    raw = encoding == "raw"
    return Stored(
        path=path if data_file is None else beside(path, data_file),
        encoding=encoding,
        skip=skip + start if raw and skip >= 0 else skip,
        start=0 if raw else start,
        dtype=np.dtype((order or "") + kind),
        shape=shape,
        affine=_affine(name, fields, axes.values()),
        unit=_quoted(fields.get("sample units", "")) or None,
    )


def _fields(name: str, text: str) -> dict[str, str]:
    lines = text.splitlines()
    if not lines or not re.fullmatch(r"NRRD000[1-5]", lines[0].rstrip()):
        raise DataError("not-nrrd", f"{name} is no NRRD file")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        # A key and its value (`key:=value`) is anybody's; a `#` starts a comment.
        found = re.match(r"([A-Za-z][A-Za-z ?]*): ?(.*)", line)
        if line.startswith("#") or found is None or line[found.end(1) + 1 : found.end(1) + 2] == "=":
            continue
        field = found[1].lower()
        if field in fields:
            raise DataError("not-nrrd", f"{name} has the field {shown(field)} twice")
        fields[field] = found[2].strip()
    return fields


def _whole_numbers(name: str, fields: dict[str, str], field: str) -> list[int]:
    words = fields.get(field, "").split()
    if not words or len(words) > 16 or not all(re.fullmatch(r"[0-9]{1,12}", word) for word in words):
        raise DataError("not-nrrd", f"{name} has {field} {shown(fields.get(field, ''))!r}")
    return [int(word) for word in words]


def _encoding(name: str, fields: dict[str, str]) -> tuple[Literal["raw", "deflated"], int]:
    word = fields.get("encoding", "").lower()
    skips = [fields.get(field, fields.get(field.replace(" ", ""), "0")) for field in ("line skip", "byte skip")]
    if word not in ("raw", "gzip", "gz") or skips[0] != "0" or not re.fullmatch(r"-1|[0-9]{1,15}", skips[1]):
        message = f"{name} has encoding {shown(word)!r}, line skip {shown(skips[0])}, byte skip {shown(skips[1])}"
        raise DataError("unsupported-encoding", message, hint="md reads raw and gzip, without a line skip")
    skip = int(skips[1])
    if word == "raw":
        return "raw", skip
    if skip < 0:
        raise DataError("unsupported-encoding", f"{name} has byte skip -1 in a gzip stream")
    return "deflated", skip


def _spatial_axes(name: str, fields: dict[str, str], sizes: list[int]) -> dict[int, list[float]]:
    """Return which axes of the file are i, j and k, each with its direction."""
    if "space" not in fields:
        raise DataError("no-affine", f"{name} names no space: which way the patient lies is unknown")
    if fields["space"].lower() not in _SPACES:
        text = f"{name} lies in the space {shown(fields['space'])!r}"
        code = "four-dimensional" if fields["space"].lower().endswith("time") else "no-affine"
        raise DataError(code, text, hint=f"md takes {', '.join(list(_SPACES)[:3])}")
    kinds = fields.get("kinds", "").lower().split()
    kinds += ["none"] * (len(sizes) - len(kinds))
    words = re.findall(r"\([^()]*\)|none", fields.get("space directions", ""))
    if len(words) != len(sizes):
        raise DataError("no-affine", f"{name} does not say the space direction of each axis: where it lies is unknown")
    axes = {}
    for axis, (word, size) in enumerate(zip(words, sizes, strict=True)):
        if word != "none":
            axes[axis] = _vector(name, word)
        elif size != 1:
            code = "four-dimensional" if kinds[axis] in _ORDERED else "vector-image"
            raise DataError(code, f"{name} has {size} values at every place", values=size)
    return axes


def _vector(name: str, text: str) -> list[float]:
    try:
        numbers = [float(word) for word in text.strip("()").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3:
        raise DataError("no-affine", f"{name} has {shown(text)!r} for a place of three numbers")
    return numbers


def _affine(name: str, fields: dict[str, str], directions: Iterable[list[float]]) -> NDArray[np.float64]:
    units = re.findall(r'"([^"]*)"', fields.get("space units", ""))
    if any(unit != "mm" for unit in units):
        raise DataError("unsupported-type", f"{name} has its space in {shown(', '.join(units))}, not in mm")
    columns = [*directions, _vector(name, fields.get("space origin", ""))]
    affine = np.eye(4)
    affine[:3] = np.array(columns, np.float64).T * np.array(_SPACES[fields["space"].lower()])[:, None]
    return affine


def nrrd_header(
    shape: tuple[int, int, int], dtype: np.dtype[Any], affine: NDArray[np.float64], unit: str | None, encoding: str
) -> bytes:
    """Return the header of an NRRD file whose voxels follow, little endian.

    Args:
        shape: (k, j, i).
        dtype: of the voxels.
        affine: 4x4, (i, j, k) to mm, LPS+: `space directions` holds it as it is, sheared or not.
        unit: what the values mean.
        encoding: `raw` or `gzip`.

    Raises:
        DataError: `unsupported-type`.
    """
    kind = dtype.str[1:]
    if kind not in _WRITTEN:
        raise DataError("unsupported-type", f"NRRD holds no {dtype}")

    def vector(column: NDArray[np.float64]) -> str:
        return "(" + ",".join(repr(float(value)) for value in column) + ")"

    lines = [
        "NRRD0004",
        f"type: {_WRITTEN[kind]}",
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {' '.join(str(size) for size in shape[::-1])}",
        f"space directions: {' '.join(vector(affine[:3, axis]) for axis in range(3))}",
        "kinds: domain domain domain",
        "endian: little",
        f"encoding: {encoding}",
        f"space origin: {vector(affine[:3, 3])}",
    ]
    if unit is not None:
        lines.append(f'sample units: "{_plain(unit)}"')
    return ("\n".join(lines) + "\n\n").encode("ascii")


def _plain(text: str) -> str:
    return "".join(c for c in text if c.isascii() and c.isprintable() and c not in '"\\')


def _quoted(text: str) -> str:
    return text.strip().strip('"')
