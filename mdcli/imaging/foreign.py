"""Volumes in the files of other programs: NIfTI, NRRD, MetaImage. Inside md all is (k, j, i) and LPS+; the turn is made here."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.finding import Finding
from mdcli.dicom.opening import shown
from mdcli.errors import DataError, UsageError
from mdcli.imaging import metaimage, nrrd
from mdcli.imaging.nifti import HEADER_BYTES, PATIENT, Volume, nifti_header
from mdcli.imaging.resample import check_affine
from mdcli.imaging.voxels import Stored, check_shape, inflated_start, open_regular, read_voxels

READ_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd")
WRITTEN_FORMS = ("nii", "nii.gz", "nrrd", "mha")

# NIfTI is RAS+, md LPS+.
_LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# Source: nifti1.h, xyzt_units: metre, millimetre, micrometre; 0 is unknown, and millimetres by custom.
_TO_MM = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
_FORMS_APART_MM = 0.05
_UNIT_MARK = "unit="
_LEVEL = 4


@dataclass(frozen=True)
class Foreign:
    """A volume as another program left it.

    Attributes:
        volume: (k, j, i) and its affine, LPS+.
        files: the names of the files that it came from, in one folder.
        findings: what the reader is to be told.
    """

    volume: Volume
    files: tuple[str, ...]
    findings: tuple[Finding, ...]


def ending_of(name: str) -> str | None:
    """Return which of `READ_ENDINGS` a file's name has, in any case; None for any other.

    >>> ending_of("CT.NII.gz")
    '.nii.gz'
    """
    return next((ending for ending in READ_ENDINGS if name.lower().endswith(ending)), None)


def describe_foreign(path: Path) -> Stored:
    """Return what the header of a file says; no voxel is read.

    Raises:
        UsageError: `unknown-form` where the name has none of `READ_ENDINGS`.
        MissingError: `no-source`.
        DataError: as `read_foreign`.
    """
    ending = ending_of(path.name)
    if ending is None:
        raise UsageError("unknown-form", f"{shown(path.name)} ends with none of {', '.join(READ_ENDINGS)}")
    if ending in (".nii", ".nii.gz"):
        stored = _nifti(path)
    elif ending in (".nrrd", ".nhdr"):
        stored = nrrd.read_header(path)
    else:
        stored = metaimage.read_header(path)
    try:
        check_affine(stored.affine)
    except DataError as error:
        raise DataError(error.code, f"{shown(path.name)}: {error.message}", **error.numbers) from None
    return stored


def read_foreign(path: Path) -> Foreign:
    """Read a volume from NIfTI (1 or 2, also compressed, any byte order, scaled), NRRD or MetaImage.

    The affine comes from the header as it is, sheared or not: the sform of a NIfTI, else its qform.

    Args:
        path: its form is told by its ending.

    Raises:
        UsageError: `unknown-form`.
        MissingError: `no-source` for the file or the one that its header names.
        DataError: `bad-source`; `not-nifti`, `not-nrrd`, `not-metaimage`; `no-affine` where nothing says where it lies;
            `singular-affine`; `four-dimensional`; `vector-image`; `not-a-volume`; `volume-too-large`; `unsupported-type`;
            `unsupported-encoding`; `data-file-outside`; `truncated`; `values-too-large`.
    """
    stored = describe_foreign(path)
    array = read_voxels(stored)
    return Foreign(Volume(array, stored.affine, stored.unit), _files(path, stored), stored.findings)


def files_of(path: Path) -> tuple[str, ...]:
    """Return the names of the files that a volume is in, relative to the first one's folder; no voxel is read.

    Raises:
        MdError: as `describe_foreign`.
    """
    return _files(path, describe_foreign(path))


def _files(path: Path, stored: Stored) -> tuple[str, ...]:
    if stored.path == path:
        return (path.name,)
    return path.name, stored.path.relative_to(path.parent.resolve()).as_posix()


def _nifti(path: Path) -> Stored:
    import nibabel

    name = shown(path.name)
    compressed = path.name.lower().endswith(".gz")
    with open_regular(path) as file:
        data = inflated_start(file, 540) if compressed else file.read(540)
    size = next((n for n in (348, 540) for order in "<>" if data[:4] == struct.pack(f"{order}i", n)), 0)
    magic = {348: data[344:348], 540: data[4:12]}.get(size)
    if magic not in (b"n+1\0", b"n+2\0\r\n\x1a\n") or len(data) < size:
        pair = magic is not None and magic[:2] == b"ni"
        raise DataError("not-nifti", f"{name} is no NIfTI file" + (" with its voxels in it" if pair else ""))
    header = (nibabel.Nifti1Header if size == 348 else nibabel.Nifti2Header)(data[:size], check=False)  # type: ignore[no-untyped-call]
    axes = int(header["dim"][0])
    sizes = [int(n) for n in header["dim"][1 : axes + 1]] if 1 <= axes <= 7 else []
    if int(header["intent_code"]) in _VECTOR_INTENTS or (len(sizes) > 4 and sizes[4] > 1):
        raise DataError("vector-image", f"{name} has vectors at every place, of sizes {sizes}")
    if len(sizes) > 3 and max(sizes[3:]) > 1:
        raise DataError("four-dimensional", f"{name} has sizes {sizes}", sizes=sizes)
    shape = check_shape(path.name, tuple([*sizes[:3], *[1] * (3 - len(sizes))][::-1]) if len(sizes) > 1 else ())
    dtype, rescale, offset = _nifti_values(name, header)
    affine, findings = _nifti_affine(name, header, shape)
    unit = bytes(header["descrip"]).split(b"\0")[0].decode("ascii", "replace")
    return Stored(
        path=path,
        encoding="deflated" if compressed else "raw",
        skip=offset,
        start=0,
        dtype=dtype,
        shape=shape,
        affine=affine,
        unit=unit.removeprefix(_UNIT_MARK) if unit.startswith(_UNIT_MARK) else None,
        rescale=rescale,
        findings=findings,
    )


# Source: nifti1.h: SYMMATRIX, DISPVECT, VECTOR, QUATERNION, RGB_VECTOR, RGBA_VECTOR.
_VECTOR_INTENTS = (1005, 1006, 1007, 1010, 2003, 2004)


def _nifti_values(name: str, header: Any) -> tuple[np.dtype[Any], tuple[float, float] | None, int]:
    from nibabel.spatialimages import HeaderDataError

    try:
        dtype = np.dtype(header.get_data_dtype())
    except (HeaderDataError, KeyError):
        dtype = np.dtype("V")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        colour = int(header["datatype"]) in (128, 2304)
        what = "colours" if colour else f"voxels of datatype {int(header['datatype'])}"
        raise DataError("vector-image" if colour else "unsupported-type", f"{name} has {what}")
    offset = float(header["vox_offset"])
    # A NIfTI-1 that says 0 means right after the header.
    offset = offset or float(HEADER_BYTES if header["sizeof_hdr"] == 348 else 544)
    if not (math.isfinite(offset) and 348 <= offset < 1e12):
        raise DataError("not-nifti", f"{name} says that its voxels start at byte {offset:g}")
    try:
        slope, intercept = header.get_slope_inter()
    except HeaderDataError:
        raise DataError("not-nifti", f"{name} has an intercept that is not finite") from None
    same = slope is None or (slope == 1 and (intercept or 0) == 0)
    return dtype, None if same else (float(slope), float(intercept or 0)), int(offset)


def _nifti_affine(
    name: str, header: Any, shape: tuple[int, int, int]
) -> tuple[NDArray[np.float64], tuple[Finding, ...]]:
    from nibabel.spatialimages import HeaderDataError

    codes = int(header["sform_code"]), int(header["qform_code"])
    if max(codes) <= 0:
        raise DataError("no-affine", f"{name} has neither sform nor qform: where it lies is unknown")
    sform = np.asarray(header.get_sform(), np.float64)
    try:
        qform = np.asarray(header.get_qform(), np.float64) if codes[1] > 0 else None
    except (HeaderDataError, ValueError):
        qform = None
    affine = sform if codes[0] > 0 else qform
    if affine is None:
        raise DataError("no-affine", f"{name} has a qform that is no rotation: where it lies is unknown")
    findings = []
    scale = _TO_MM.get(int(header["xyzt_units"]) & 7)
    if scale is None:
        raise DataError(
            "not-nifti", f"{name} has places in unit {int(header['xyzt_units']) & 7}, which there is none of"
        )
    if codes[0] > 0 and qform is not None:
        k, j, i = (n - 1 for n in shape)
        corners = np.array([[x, y, z, 1] for x in (0, i) for y in (0, j) for z in (0, k)])
        apart = float(np.abs((sform - qform) @ corners.T).max()) * scale
        if apart > _FORMS_APART_MM:
            message = f"the file's sform and qform are {apart:.3g} mm apart at a corner: the sform is taken"
            findings.append(Finding("forms-differ", message, {"apart_mm": apart}))
    if scale != 1.0:
        message = f"the file has its places in steps of {scale:g} mm"
        findings.append(Finding("not-millimetres", message, {"scale": scale}, warning=False))
    return _LPS_FROM_RAS @ np.diag([scale, scale, scale, 1.0]) @ affine, tuple(findings)


class Writer(Protocol):
    """What is written to: a file open for writing, or anything else that takes bytes one after another."""

    def write(self, data: bytes, /) -> Any:
        """Take some bytes."""


def write_foreign(
    file: Writer,
    form: str,
    slabs: Iterable[NDArray[Any]],
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    affine: NDArray[np.float64],
    unit: str | None = None,
    *,
    plane: str = PATIENT,
) -> None:
    """Write a volume for other programs, slab by slab. The same volume gives the same bytes.

    NIfTI keeps the affine as float32, which over a field of view of 500 mm is within 1e-4 mm; NRRD and MHA keep it as it is.

    Args:
        file: what takes the bytes.
        form: one of `WRITTEN_FORMS`; `nii.gz` and `nrrd` are compressed.
        slabs: (some k, j, i), one after another up to `shape`.
        shape: (k, j, i).
        dtype: of the voxels.
        affine: 4x4, (i, j, k) to mm, LPS+; sheared for all but `mha`.
        unit: what the values mean.
        plane: what the affine's millimetres are of, as in `Volume`; only a NIfTI can say another than the patient.

    Raises:
        UsageError: `unknown-form`.
        DataError: `nifti-limits`, `unsupported-type`, `sheared-volume` (MHA).
    """
    if form not in WRITTEN_FORMS:
        raise UsageError("unknown-form", f"md writes no {form!r}", hint=", ".join(WRITTEN_FORMS))
    if form == "nrrd":
        file.write(nrrd.nrrd_header(shape, dtype, affine, unit, "gzip"))
    elif form == "mha":
        file.write(metaimage.mha_header(shape, dtype, affine, unit))
    # As gzip, without a name and a time.
    machine = zlib.compressobj(_LEVEL, zlib.DEFLATED, 31) if form in ("nii.gz", "nrrd") else None
    if form in ("nii", "nii.gz"):
        header = nifti_header(shape, dtype, affine, unit, plane=plane)
        file.write(machine.compress(header) if machine else header)
    for slab in slabs:
        for image in slab:
            data = np.ascontiguousarray(image, dtype.newbyteorder("<")).tobytes()
            file.write(machine.compress(data) if machine else data)
    if machine:
        file.write(machine.flush())


def with_unit(found: Foreign, unit: str | None) -> Foreign:
    """Return the volume with a unit that the caller knows.

    Raises:
        DataError: `wrong-unit` where the file says another.
    """
    if unit is None or unit == found.volume.unit:
        return found
    if found.volume.unit is not None:
        raise DataError("wrong-unit", f"the file says that its unit is {shown(found.volume.unit)}, not {shown(unit)}")
    return replace(found, volume=replace(found.volume, unit=unit))
