"""Small series for the tests of reading: instances in memory, and files with any encoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from mdcli.dicom.headers import read_instance
from mdcli.dicom.instance import Instance
from mdcli.dicom.series import series_to_json
from mdcli.workspace import json_bytes

DELIMITER = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
ROOT = "1.2.826.0.1.3680043.8.498.4242."
AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
CORONAL = [1.0, 0.0, 0.0, 0.0, 0.0, -1.0]
SAGITTAL = [0.0, 1.0, 0.0, 0.0, 0.0, -1.0]
LITTLE = str(ExplicitVRLittleEndian)


def instance(position: Any = (0.0, 0.0, 0.0), number: int = 1, **more: Any) -> Instance:
    """Return an instance of 4 rows and 6 columns; a value of `...` leaves the attribute out."""
    attributes = {
        "SOPInstanceUID": f"{ROOT}1.{number}",
        "SOPClassUID": str(CTImageStorage),
        "StudyInstanceUID": f"{ROOT}2",
        "SeriesInstanceUID": f"{ROOT}3",
        "FrameOfReferenceUID": f"{ROOT}4",
        "Modality": "CT",
        "InstanceNumber": number,
        "ImagePositionPatient": None if position is None else [float(v) for v in position],
        "ImageOrientationPatient": AXIAL,
        "PixelSpacing": [2.0, 1.5],
        "SliceThickness": 3.0,
        "Rows": 4,
        "Columns": 6,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "RescaleSlope": 1.0,
        "RescaleIntercept": -1024.0,
        "TransferSyntaxUID": LITTLE,
        **more,
    }
    attributes = {keyword: value for keyword, value in attributes.items() if value is not ...}
    return Instance(f"{number:03d}.dcm", 1000 + 48, 1000, 48, "0" * 64, attributes)


def stack(
    count: int = 5, step: Any = (0.0, 0.0, 3.0), start: Any = (-10.0, 20.0, 100.0), **more: Any
) -> list[Instance]:
    """Return instances at start, start + step, ..."""
    start, step = np.array(start, float), np.array(step, float)
    return [instance(start + n * step, n + 1, **more) for n in range(count)]


def jpeg_2000(plane: np.ndarray, bits: int, **more: Any) -> bytes:
    """Return a JPEG 2000 codestream."""
    from openjpeg import encode

    return encode(plane, bits_stored=bits, photometric_interpretation=2, **more)


def encoded(plane: np.ndarray, syntax: str, bits: int, signed: bool = False) -> bytes:
    """Return one frame as PixelData of a transfer syntax holds it, the sequence delimiter left to the writer."""
    if syntax == JPEG2000Lossless:
        return encapsulate([jpeg_2000(plane, bits)])
    if syntax == JPEGLSLossless:
        from jpeg_ls import encode_array

        raw = plane.view(f"u{plane.dtype.itemsize}") & ((1 << bits) - 1)
        return encapsulate([bytes(encode_array(raw.astype(f"u{plane.dtype.itemsize}")))])
    if syntax == ExplicitVRBigEndian:
        return plane.astype(plane.dtype.newbyteorder(">")).tobytes()
    return plane.astype(plane.dtype.newbyteorder("<")).tobytes()


def write_slice(path: Path, plane: np.ndarray, syntax: str = LITTLE, value: bytes | None = None, **more: Any) -> None:
    """Write one image; `more` overrides attributes, `...` leaves one out; `value` is put in as PixelData as it is."""
    number = more.pop("InstanceNumber", 1)
    attributes = {
        **instance((0, 0, 0), number).attributes,
        "Rows": plane.shape[0],
        "Columns": plane.shape[1],
        "BitsAllocated": plane.dtype.itemsize * 8,
        "BitsStored": plane.dtype.itemsize * 8,
        "PixelRepresentation": int(plane.dtype.kind == "i"),
        "PatientName": "Canary^Name",
        "PatientID": "CANARY-ID",
        **more,
    }
    attributes["HighBit"] = more.get("HighBit", attributes["BitsStored"] - 1)
    ds = Dataset()
    for keyword, item in attributes.items():
        if keyword != "TransferSyntaxUID" and item is not ...:
            setattr(ds, keyword, item)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = LITTLE if syntax == RLELossless else syntax
    if value is None:
        value = encoded(plane, syntax, attributes["BitsStored"])
    ds.PixelData = value
    ds["PixelData"].VR = "OW"
    if syntax in (JPEG2000Lossless, JPEGLSLossless):
        ds["PixelData"].is_undefined_length = True
    if syntax == RLELossless:
        ds.compress(RLELossless, generate_instance_uid=False)
    ds.save_as(
        path,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )


def write_series(folder: Path, volume: np.ndarray, syntax: str = LITTLE, step: float = 3.0, **more: Any) -> Path:
    """Write (k, j, i) stored values as one axial series; slice k lies at z = 100 + k x step."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, plane in enumerate(volume):
        facts = {
            "InstanceNumber": k + 1,
            "SOPInstanceUID": f"{ROOT}1.{k + 1}",
            "ImagePositionPatient": [-10.0, 20.0, 100.0 + k * step],
            **{
                name: value[k] if isinstance(value, list) and len(value) == len(volume) else value
                for name, value in more.items()
            },
        }
        write_slice(folder / f"{(k * 7) % 10}{k:03d}.dcm", plane, syntax, **facts)
    return folder


def scan(folder: Path) -> list[Instance]:
    """Return the images among a folder's files."""
    found = [read_instance(p, p.relative_to(folder).as_posix()) for p in sorted(folder.rglob("*")) if p.is_file()]
    return [i for i in found if isinstance(i, Instance) and i.get("Rows") is not None]


def workspace(path: Path, root: Path, instances: list[Instance] | None = None) -> Path:
    """Return a workspace whose `series.json` holds these instances, or all below the root."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "series.json").write_bytes(json_bytes(series_to_json(scan(root) if instances is None else instances)))
    (path / "series.root").write_text(f"{root}\n")
    return path


COMPRESSED = {
    "rle": str(RLELossless),
    "jpeg-ls": str(JPEGLSLossless),
    "jpeg-2000": str(JPEG2000Lossless),
}
UNCOMPRESSED = {
    "explicit": LITTLE,
    "implicit": str(ImplicitVRLittleEndian),
    "big endian": str(ExplicitVRBigEndian),
    "deflated": str(DeflatedExplicitVRLittleEndian),
}
