"""NIfTI-1 as md writes and reads it: plain, uncompressed, exact sform, memory-mapped. The only place where LPS+ meets RAS+.

Foreign files (compressed, other endianness, NIfTI-2, scaled) go through nibabel.
Source: NIfTI-1.1, https://nifti.nimh.nih.gov/nifti-1 (header layout, qform and sform).
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mdcli.errors import DataError, MissingError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HEADER_BYTES = 352
_TYPES = {"uint8": 2, "int16": 4, "int32": 8, "float32": 16, "float64": 64, "int8": 256, "uint16": 512, "uint32": 768}
_NAMES = {code: name for name, code in _TYPES.items()}
_UNIT_MARK, _PLANE_MARK = "unit=", "plane="
_RGB24, _RGBA32 = 128, 2304
PATIENT = "patient"
"""The plane of a volume whose affine is in patient millimetres."""
_MILLIMETRES = 2


@dataclass(frozen=True)
class Volume:
    """A volume in memory or mapped from its file.

    Attributes:
        array: (k, j, i), k the slowest.
        affine: 4x4 float64, voxel index (i, j, k, 1) to millimetres, LPS+.
        unit: what the values mean (`HU`), or None where nobody said.
        plane: `PATIENT`, or what the affine's millimetres are of instead (`detector`, `unknown`): it then says nothing about the
            patient.
    """

    array: NDArray[Any]
    affine: NDArray[np.float64]
    unit: str | None = None
    plane: str = PATIENT


def _flip(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Turn an affine from LPS+ to RAS+, or back: the first two axes change sign."""
    import numpy as np

    # NIfTI is RAS+, DICOM and SimpleITK are LPS+: the first two axes change sign.
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(affine, np.float64)


def is_orthogonal(affine: NDArray[np.float64], tolerance: float = 1e-4) -> bool:
    """Say whether the three voxel axes are at right angles: every cosine between two of them within `tolerance`."""
    import numpy as np

    axes = np.asarray(affine, np.float64)[:3, :3]
    axes = axes / np.linalg.norm(axes, axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() <= tolerance)


def nifti_header(
    shape: tuple[int, ...],
    dtype: str | np.dtype[Any],
    affine: NDArray[np.float64],
    unit: str | None = None,
    *,
    colour: bool = False,
    plane: str = PATIENT,
) -> bytes:
    """Return the 352 bytes before the voxels of a single-file NIfTI-1.

    Args:
        shape: (k, j, i), or (t, k, j, i) for a fourth axis.
        dtype: uint8, int8, int16, uint16, int32, uint32, float32 or float64.
        affine: 4x4, (i, j, k) to mm, LPS+.
        unit: named in `descrip` (`unit=HU`); the millimetre goes into `xyzt_units`.
        colour: each voxel is red, green and blue, uint8 each.
        plane: what the affine's millimetres are of. Other than `PATIENT`, both codes are 0 and `descrip` names it.

    Returns:
        A header whose sform holds the affine as float32 and whose qform is set (code 1) only where the axes are at right angles.

    Raises:
        DataError: `nifti-limits` for a type or a size (over 32,767 voxels on an axis) that NIfTI-1 can't hold.
    """
    import numpy as np

    name = np.dtype(dtype).name
    if (
        name not in _TYPES
        or len(shape) not in (3, 4)
        or max(shape) > 32767
        or min(shape) < 1
        or (colour and name != "uint8")
    ):
        raise DataError("nifti-limits", f"NIfTI-1 holds no {name} volume of shape {tuple(shape)} (k, j, i)")
    ras = _flip(affine)
    sizes = np.linalg.norm(ras[:3, :3], axis=0)
    qform_code, quaternion, offset, handed = 0, (0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 1.0
    if is_orthogonal(affine):
        rotation = ras[:3, :3] / sizes
        handed = 1.0 if np.linalg.det(rotation) > 0 else -1.0
        rotation[:, 2] *= handed
        qform_code, quaternion, offset = 1, _quaternion(rotation), tuple(ras[:3, 3])
    k, j, i = shape[-3:]
    if plane != PATIENT:
        qform_code = 0
    header = bytearray(HEADER_BYTES)
    struct.pack_into("<i", header, 0, 348)
    struct.pack_into("<8h", header, 40, len(shape), i, j, k, shape[0] if len(shape) == 4 else 1, 1, 1, 1)
    code, bits = (_RGB24, 24) if colour else (_TYPES[name], np.dtype(name).itemsize * 8)
    struct.pack_into("<2h", header, 70, code, bits)
    struct.pack_into("<8f", header, 76, handed, *sizes, 1, 1, 1, 1)
    struct.pack_into("<3f", header, 108, HEADER_BYTES, 1.0, 0.0)
    header[123] = _MILLIMETRES
    said = [_PLANE_MARK + plane] if plane != PATIENT else []
    text = " ".join([*said, *([_UNIT_MARK + unit] if unit else [])]).encode("ascii", "replace")[:79]
    header[148 : 148 + len(text)] = text
    struct.pack_into("<2h", header, 252, qform_code, int(plane == PATIENT))
    struct.pack_into("<6f", header, 256, *quaternion, *offset)
    struct.pack_into("<12f", header, 280, *ras[:3].ravel())
    header[344:348] = b"n+1\0"
    return bytes(header)


def _quaternion(rotation: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return b, c, d of the unit quaternion (a >= 0) of a proper rotation. Source: nifti1_io.c, nifti_mat44_to_quatern."""
    import numpy as np

    r = rotation
    # The eigenvector of the largest eigenvalue is the nearest unit quaternion, whatever the rounding.
    k = np.array(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], r[0, 1] + r[1, 0], r[0, 2] + r[2, 0], r[2, 1] - r[1, 2]],
            [r[0, 1] + r[1, 0], r[1, 1] - r[0, 0] - r[2, 2], r[1, 2] + r[2, 1], r[0, 2] - r[2, 0]],
            [r[0, 2] + r[2, 0], r[1, 2] + r[2, 1], r[2, 2] - r[0, 0] - r[1, 1], r[1, 0] - r[0, 1]],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]],
        ]
    )
    b, c, d, a = np.linalg.eigh(k)[1][:, -1]
    sign = -1.0 if a < 0 else 1.0
    return float(sign * b), float(sign * c), float(sign * d)


def write_nifti(file: BinaryIO, array: NDArray[Any], affine: NDArray[np.float64], unit: str | None = None) -> None:
    """Write one volume to an open binary file.

    Args:
        file: open for writing.
        array: (k, j, i).
        affine: 4x4, (i, j, k) to mm, LPS+.
        unit: what the values mean.
    """
    import numpy as np

    file.write(nifti_header(array.shape, array.dtype, affine, unit))
    little = array.dtype.newbyteorder("<")
    for plane in array:
        file.write(np.ascontiguousarray(plane, little).tobytes())


def read_nifti(path: Path, *, colour: bool = False) -> Volume:
    """Map a volume that md or another tool wrote.

    Args:
        path: of the file.
        colour: take one of red, green and blue as md writes it too: (k, j, i, 3), uint8.

    Returns:
        The volume, (k, j, i), with the affine from the sform, else from the qform, LPS+. A file as md writes it is
        memory-mapped, so that only the pages that are touched are read; any other goes through nibabel.

    Raises:
        MissingError: `no-artifact` where the file is not there.
        DataError: `not-nifti`, `no-affine` (neither sform nor qform), `not-a-volume` (not three axes; colour), `truncated`.
    """
    import numpy as np

    path = Path(path)
    try:
        with path.open("rb") as file:
            header = file.read(HEADER_BYTES)
    except FileNotFoundError:
        raise MissingError("no-artifact", f"{path.name} is not there") from None
    text = header[148:228].split(b"\0")[0].decode("ascii", "replace") if len(header) == HEADER_BYTES else ""
    off_patient = text.startswith(_PLANE_MARK)
    plain = (
        len(header) == HEADER_BYTES
        and header[344:348] == b"n+1\0"
        and struct.unpack_from("<i", header)[0] == 348
        and struct.unpack_from("<h", header, 40)[0] == 3
        and struct.unpack_from("<f", header, 108)[0] == HEADER_BYTES
        and struct.unpack_from("<2f", header, 112) in ((1.0, 0.0), (0.0, 0.0))
        and (struct.unpack_from("<h", header, 254)[0] > 0 or off_patient)
        and struct.unpack_from("<h", header, 70)[0] in (_NAMES.keys() | ({_RGB24} if colour else set()))
    )
    if not plain:
        return _read_foreign(path)
    i, j, k = struct.unpack_from("<3h", header, 42)
    kind = struct.unpack_from("<h", header, 70)[0]
    dtype = np.dtype(_NAMES.get(kind, "uint8")).newbyteorder("<")
    numbers = 3 if kind == _RGB24 else 1
    if min(i, j, k) < 1:
        raise DataError("not-a-volume", f"{path.name} has {i} x {j} x {k} voxels")
    if path.stat().st_size < HEADER_BYTES + i * j * k * dtype.itemsize * numbers:
        raise DataError("truncated", f"{path.name} ends before its {i * j * k} voxels do")
    ras = np.eye(4)
    ras[:3] = np.array(struct.unpack_from("<12f", header, 280), np.float64).reshape(3, 4)
    plane, _, text = text.partition(" ") if off_patient else ("", "", text)
    unit = text.removeprefix(_UNIT_MARK) if text.startswith(_UNIT_MARK) else None
    array = np.memmap(path, dtype, "r", HEADER_BYTES, (k, j, i) if numbers == 1 else (k, j, i, numbers))
    return Volume(array, _flip(ras), unit, plane.removeprefix(_PLANE_MARK) or PATIENT)


def _read_foreign(path: Path) -> Volume:
    import nibabel
    import numpy as np

    try:
        image = nibabel.load(path)
        assert isinstance(image, (nibabel.Nifti1Image, nibabel.Nifti2Image))
    except Exception as error:
        # A damaged header makes nibabel raise nearly anything.
        raise DataError("not-nifti", f"{path.name} is not a NIfTI file") from error
    axes = [size for n, size in enumerate(image.shape) if n < 3 or size > 1]
    coloured = int(image.header["datatype"]) in (_RGB24, _RGBA32)
    if len(axes) != 3 or coloured:
        hint = (
            "the model wants one number a voxel: load it without --colour"
            if coloured
            else "load one volume of it, with --pick"
        )
        what = "colours" if coloured else f"{len(axes)} axes {tuple(image.shape)}, not three"
        raise DataError("not-a-volume", f"{path.name} has {what}", hint=hint)
    if image.header["sform_code"] == 0 and image.header["qform_code"] == 0:
        raise DataError("no-affine", f"{path.name} has neither sform nor qform: where it lies is unknown")
    try:
        array = np.asanyarray(image.dataobj)
    except (EOFError, OSError, ValueError, MemoryError, OverflowError, zlib.error) as error:
        raise DataError("truncated", f"{path.name} ends, or is damaged, before its voxels do") from error
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise DataError("not-a-volume", f"{path.name} has {array.ndim} axes {array.shape}, not three")
    # nibabel takes the sform where its code is set, else the qform.
    affine = np.asarray(image.affine, np.float64)
    return Volume(array.transpose(2, 1, 0), _flip(affine))
