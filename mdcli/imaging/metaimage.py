"""The header of a MetaImage (MHA, MHD): read it, write it.

Places are LPS+ millimetres, as in ITK. Source: MetaIO, https://itk.org/Wiki/MetaIO/Documentation, and its reader (metaImage.cxx).
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.opening import shown
from mdcli.errors import DataError
from mdcli.imaging.nifti import is_orthogonal
from mdcli.imaging.voxels import MAX_HEADER, Stored, beside, check_shape, open_regular

# MET_LONG has 4 bytes on every system (metaTypes.h, MET_ValueTypeSize).
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_WRITTEN = {kind: name for name, kind in _TYPES.items() if "LONG" not in name}
_MATRIX = ("TransformMatrix", "Rotation", "Orientation")
_ORIGIN = ("Offset", "Position", "Origin")


def read_header(path: Path) -> Stored:
    """Return what a MetaImage header says.

    Args:
        path: an `.mha` or an `.mhd`.

    Raises:
        DataError: `not-metaimage`, `no-affine` (no TransformMatrix, Offset or ElementSpacing), `four-dimensional`, `vector-image`,
            `not-a-volume`, `volume-too-large`, `unsupported-type`, `unsupported-encoding`, `data-file-outside`.
        MissingError: `no-source`.
    """
    name = shown(path.name)
    with open_regular(path) as file:
        data = file.read(MAX_HEADER)
    fields, end = _fields(name, data)
    sizes = [int(value) for value in _numbers(name, fields, ("DimSize",), None)]
    count = len(sizes)
    if fields.get("NDims") != str(count) or fields.get("ObjectType", "Image") != "Image":
        raise DataError("not-metaimage", f"{name} is no image of {shown(fields.get('NDims', '?'))} axes")
    if count > 3 and max(sizes[3:]) > 1:
        raise DataError("four-dimensional", f"{name} has {count} axes", sizes=sizes)
    shape = check_shape(path.name, tuple(sizes[:3])[::-1])
    channels = fields.get("ElementNumberOfChannels", "1")
    if channels != "1":
        raise DataError("vector-image", f"{name} has {shown(channels)} values at every place")
    kind = _TYPES.get(fields.get("ElementType", ""))
    if kind is None:
        raise DataError("unsupported-type", f"{name} has voxels of type {shown(fields.get('ElementType', ''))!r}")
    for word, plain in (("Slope", 1.0), ("Offset", 0.0)):
        key = f"ElementToIntensityFunction{word}"
        if key in fields and _numbers(name, fields, (key,), 1) != [plain]:
            message = f"{name} has {key} {shown(fields[key])}, which some readers apply and some do not"
            raise DataError("unsupported-type", message)
    big = _truth(name, fields, ("BinaryDataByteOrderMSB", "ElementByteOrderMSB"), False)
    data_file = fields["ElementDataFile"]
    skip = fields.get("HeaderSize", "0")
    if (
        not _truth(name, fields, ("BinaryData",), True)
        or data_file.split(" ")[0] == "LIST"
        or "%" in data_file
        or not re.fullmatch(r"-1|[0-9]{1,15}", skip)
    ):
        raise DataError("unsupported-encoding", f"{name} has its voxels as text or in many files")
    local = data_file.upper() == "LOCAL"
    deflated = _truth(name, fields, ("CompressedData",), False)
    if deflated and skip != "0":
        raise DataError("unsupported-encoding", f"{name} has a HeaderSize before a compressed stream")
    start = end if local else 0
    return Stored(
        path=path if local else beside(path, data_file),
        encoding="deflated" if deflated else "raw",
        skip=0 if deflated else int(skip) + (start if skip != "-1" else 0),
        start=start,
        dtype=np.dtype((">" if big else "<") + kind),
        shape=shape,
        affine=_affine(name, fields, count),
        unit=fields.get("Unit"),
    )


def _fields(name: str, data: bytes) -> tuple[dict[str, str], int]:
    fields: dict[str, str] = {}
    at = 0
    while "ElementDataFile" not in fields:
        end = data.find(b"\n", at)
        line = data[at : end if end >= 0 else len(data)].decode("utf-8", "replace")
        found = re.fullmatch(r"\s*([A-Za-z_][\w. ()/-]*?)\s*[=:]\s*(.*?)\s*", line)
        if found is None or found[1] in fields or (end < 0 and found[1] != "ElementDataFile"):
            raise DataError("not-metaimage", f"{name} is no MetaImage")
        fields[found[1]] = found[2]
        at = end + 1 if end >= 0 else len(data)
    return fields, at


def _truth(name: str, fields: dict[str, str], keys: tuple[str, ...], default: bool) -> bool:
    """Return a truth by its first letter, as MetaIO reads it: T, t or 1, and F, f or 0; what is neither is refused."""
    said = next((fields[key] for key in keys if key in fields), None)
    if said is None:
        return default
    if said[:1] not in tuple("Tt1Ff0"):
        raise DataError("not-metaimage", f"{name} has {keys[0]} {shown(said)!r}, which is neither true nor false")
    return said[:1] in "Tt1"


def _numbers(name: str, fields: dict[str, str], keys: tuple[str, ...], count: int | None) -> list[float]:
    text = next((fields[key] for key in keys if key in fields), None)
    if text is None:
        raise DataError("no-affine", f"{name} has no {keys[0]}: where it lies is unknown")
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    whole = count is not None or all(math.isfinite(v) and v == int(v) and 0 < v < 1e12 for v in numbers)
    if not numbers or not whole or len(numbers) > 256 or len(numbers) != (count or len(numbers)):
        raise DataError("not-metaimage", f"{name} has {keys[0]} {shown(text)!r}")
    return numbers


def _affine(name: str, fields: dict[str, str], count: int) -> NDArray[np.float64]:
    # One row an axis of the image. Source: ITK, itkMetaImageIO.cxx, ReadImageInformation.
    matrix = np.array(_numbers(name, fields, _MATRIX, count * count)).reshape(count, count)[:3, :3]
    spacing = np.array(_numbers(name, fields, ("ElementSpacing",), count))[:3]
    affine = np.eye(4)
    affine[:3, :3] = matrix.T * spacing
    affine[:3, 3] = _numbers(name, fields, _ORIGIN, count)[:3]
    return affine


def mha_header(
    shape: tuple[int, int, int], dtype: np.dtype[Any], affine: NDArray[np.float64], unit: str | None
) -> bytes:
    """Return the header of an MHA file whose voxels follow, little endian.

    Args:
        shape: (k, j, i).
        dtype: of the voxels.
        affine: 4x4, (i, j, k) to mm, LPS+, its axes at right angles.
        unit: what the values mean; in the field `Unit`, which others ignore.

    Raises:
        DataError: `sheared-volume`: TransformMatrix holds directions at right angles; `unsupported-type`.
    """
    kind = dtype.str[1:]
    if kind not in _WRITTEN:
        raise DataError("unsupported-type", f"MetaImage holds no {dtype}")
    if not is_orthogonal(affine):
        message = "the volume's axes are not at right angles, which MHA can't say"
        raise DataError(
            "sheared-volume", message, hint="nrrd and nii hold it; md resample-volume makes an upright grid"
        )
    sizes = np.linalg.norm(affine[:3, :3], axis=0)

    def numbers(values: NDArray[np.float64]) -> str:
        return " ".join(repr(float(value)) for value in values)

    lines = [
        "ObjectType = Image",
        "NDims = 3",
        "BinaryData = True",
        "BinaryDataByteOrderMSB = False",
        "CompressedData = False",
        f"TransformMatrix = {numbers((affine[:3, :3] / sizes).T.ravel())}",
        f"Offset = {numbers(affine[:3, 3])}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {numbers(sizes)}",
        f"DimSize = {' '.join(str(size) for size in shape[::-1])}",
        *([f"Unit = {''.join(c for c in unit if c.isascii() and c.isprintable())}"] if unit else []),
        f"ElementType = {_WRITTEN[kind]}",
        "ElementDataFile = LOCAL",
    ]
    return ("\n".join(lines) + "\n").encode("ascii")
