"""Makers of objects that hold many slices: enhanced images with functional groups, and mosaics."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    MRImageStorage,
)

from mdcli.dicom.headers import read_instance
from mdcli.dicom.instance import Instance
from mdcli.dicom.multiframe import frames_of
from mdcli.dicom.opening import SourceFiles
from tests.made_series import AXIAL, LITTLE, ROOT

CLASSES = {"CT": EnhancedCTImageStorage, "MR": EnhancedMRImageStorage, "PT": EnhancedPETImageStorage}
# Macro: what a test may put into it.
MACROS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
    "PixelValueTransformationSequence": ("RescaleSlope", "RescaleIntercept", "RescaleType"),
    "FrameVOILUTSequence": ("WindowCenter", "WindowWidth", "VOILUTFunction"),
    "FrameContentSequence": (
        "FrameAcquisitionNumber",
        "FrameAcquisitionDateTime",
        "FrameReferenceDateTime",
        "StackID",
        "InStackPositionNumber",
        "TemporalPositionIndex",
        "DimensionIndexValues",
    ),
    "MREchoSequence": ("EffectiveEchoTime",),
    "MRModifierSequence": ("InversionTimes",),
    "MRTimingAndRelatedParametersSequence": ("RepetitionTime", "FlipAngle"),
    "MRDiffusionSequence": ("DiffusionBValue", "DiffusionDirectionality", "DiffusionGradientDirectionSequence"),
    "CardiacSynchronizationSequence": ("NominalCardiacTriggerDelayTime", "NominalPercentageOfCardiacPhase"),
    "CTAcquisitionDetailsSequence": ("GantryDetectorTilt",),
    "CTReconstructionSequence": ("ConvolutionKernel",),
    "CTXRayDetailsSequence": ("KVP",),
    "RealWorldValueMappingSequence": (
        "RealWorldValueSlope",
        "RealWorldValueIntercept",
        "MeasurementUnitsCodeSequence",
    ),
    "UnassignedPerFrameConvertedAttributesSequence": ("InstanceNumber", "AcquisitionNumber", "SliceLocation"),
    "ConversionSourceAttributesSequence": ("ReferencedSOPInstanceUID",),
}
_MACRO_OF = {keyword: macro for macro, keywords in MACROS.items() for keyword in keywords}
_FRAME_TYPE = {
    "CT": "CTImageFrameTypeSequence",
    "MR": "MRImageFrameTypeSequence",
    "PT": "PETFrameTypeSequence",
}


def dataset(**attributes: Any) -> Dataset:
    """Return a data set, or an item; a value of `...` leaves the attribute out."""
    ds = Dataset()
    for keyword, value in attributes.items():
        if value is not ...:
            setattr(ds, keyword, value)
    return ds


def group(modality: str = "MR", **attributes: Any) -> Dataset:
    """Return one item of functional groups that holds these attributes, each in its macro."""
    macros: dict[str, Dataset] = {}
    for keyword, value in attributes.items():
        macro = _FRAME_TYPE[modality] if keyword in ("FrameType", "ComplexImageComponent") else _MACRO_OF[keyword]
        setattr(macros.setdefault(macro, Dataset()), keyword, value)
    return dataset(**{macro: Sequence([item]) for macro, item in macros.items()})


def header(modality: str, count: int, rows: int = 4, columns: int = 6, **more: Any) -> Dataset:
    """Return the object that all frames share, with pixels that count up, and no functional groups."""
    attributes = {
        "SOPClassUID": CLASSES[modality],
        "SOPInstanceUID": f"{ROOT}1.1",
        "StudyInstanceUID": f"{ROOT}2",
        "SeriesInstanceUID": f"{ROOT}3",
        "FrameOfReferenceUID": f"{ROOT}4",
        "Modality": modality,
        "PatientName": "Canary^Name",
        "InstanceNumber": 7,
        "ImageType": ["ORIGINAL", "PRIMARY", "VOLUME", "MIXED"],
        "NumberOfFrames": count,
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        **more,
    }
    ds = dataset(**attributes)
    if "PixelData" not in ds:
        ds.PixelData = (np.arange(count * rows * columns) % 4096).astype("<u2").tobytes()
        ds["PixelData"].VR = "OW"
    return ds


def enhanced(
    frames: list[dict[str, Any]], modality: str = "MR", shared: dict[str, Any] | None = None, **more: Any
) -> Dataset:
    """Return an enhanced object; each frame, and what they share, as attributes that go into their macros."""
    ds = header(modality, len(frames), **more)
    ds.SharedFunctionalGroupsSequence = Sequence([group(modality, **(shared or {}))])
    ds.PerFrameFunctionalGroupsSequence = Sequence([group(modality, **frame) for frame in frames])
    return ds


def planes(count: int, step: Any = (0.0, 0.0, 3.0), start: Any = (-10.0, 20.0, 100.0)) -> list[dict[str, Any]]:
    """Return frames at start, start + step, ..."""
    return [
        {"ImagePositionPatient": [float(s + n * d) for s, d in zip(start, step, strict=True)]} for n in range(count)
    ]


SHARED = {"ImageOrientationPatient": AXIAL, "PixelSpacing": [2.0, 1.5], "RescaleSlope": 2.0, "RescaleIntercept": -10.0}


def undefined(ds: Dataset) -> Dataset:
    """Make every sequence and every item of undefined length."""
    for element in ds:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                undefined(item)
    return ds


def save(ds: Dataset, path: Path, syntax: str = LITTLE) -> Path:
    """Write an object."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = syntax
    implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    ds.save_as(path, implicit_vr=implicit, little_endian=little, enforce_file_format=True)
    return path


def read(*paths: Path) -> list[Instance]:
    """Return the frames of some files of one folder."""
    instances = []
    for path in paths:
        found = read_instance(path, path.name)
        assert isinstance(found, Instance), found
        instances.append(found)
    with SourceFiles(paths[0].parent) as files:
        return frames_of(files, instances)


def csa(values: dict[str, list[str]], version: int = 2) -> bytes:
    """Return a CSA header; each value is a list of texts.

    Source: nibabel's documentation, "Siemens format DICOM with CSA header".
    """
    out = b"SV10\4\3\2\1" if version == 2 else b""
    out += struct.pack("<II", len(values) + 1, 77)
    first_items = 6
    for name, texts in [("EchoLinePosition", [""]), *values.items()]:
        items = [*texts, *[""] * (first_items - len(texts))]
        vr = b"FD" if name.endswith("Vector") else b"US"
        out += struct.pack("<64si4siii", name.encode(), len(texts), vr, 4, len(items), 77)
        for text in items:
            raw = text.encode() + b"\0" if text else b""
            length = len(raw)
            lengths = (length, length, 77, length) if version == 2 else (length + first_items, length, 77, length)
            out += struct.pack("<4i", *lengths) + raw + bytes(-length % 4)
    return out


def protocol(centres: list[tuple[float, float, float]], extra: str = "") -> bytes:
    """Return the text protocol of a measurement, as a CSA series header holds it: what is 0 is left out."""
    lines = [f"sSliceArray.lSize\t = \t{len(centres)}"]
    for n, centre in enumerate(centres):
        for axis, value in zip(("Sag", "Cor", "Tra"), centre, strict=True):
            if value:
                lines.append(f"sSliceArray.asSlice[{n}].sPosition.d{axis}\t = \t{value!r}")
    text = "\n".join(["### ASCCONV BEGIN ###", *lines, extra, "### ASCCONV END ###"])
    return b"SV10\4\3\2\1 MrPhoenixProtocol " + text.encode()


def mosaic(
    count: int,
    position: Any = (-100.0, -80.0, 10.0),
    orientation: Any = AXIAL,
    tile: tuple[int, int] = (4, 6),
    spacing: float | None = 5.0,
    image: dict[str, list[str]] | None = None,
    series: bytes | None = None,
    number: int | None = None,
    version: int = 2,
    **more: Any,
) -> Dataset:
    """Return a Siemens mosaic of `count` tiles; `image` is its CSA image header, `number` the count in (0019,xx0A)."""
    side = int(np.ceil(np.sqrt(count)))
    rows, columns = tile[0] * side, tile[1] * side
    ds = header("MR", 1, rows, columns)
    ds.SOPClassUID = MRImageStorage
    del ds.NumberOfFrames
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    ds.Manufacturer = "SIEMENS"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = list(position), list(orientation)
    ds.PixelSpacing, ds.SliceThickness = [2.0, 1.5], 4.0
    if spacing is not None:
        ds.SpacingBetweenSlices = spacing
    for keyword, value in more.items():
        if value is ...:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    # The creators are not in the first block: what counts is their name.
    if number is not None:
        block = ds.private_block(0x0019, "SIEMENS MR HEADER", create=True)
        block.add_new(0x0A, "US", number)
    ds.private_block(0x0029, "SOMEBODY ELSE", create=True).add_new(0x10, "OB", b"SV10")
    block = ds.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    if image is not None:
        block.add_new(0x10, "OB", csa(image, version))
    if series is not None:
        block.add_new(0x20, "OB", series)
    return ds


def grid(positions: list[Any], number: Any = ..., tile: tuple[int, int] = (4, 6), **more: Any) -> Dataset:
    """Return a UIH grid: ceil(sqrt(n)) tiles in a row, as few rows of tiles as they need.

    Source: the table of private elements that UIH gave to dcm2niix.
    """
    count = len(positions)
    across = int(np.ceil(np.sqrt(count)))
    down = int(np.ceil(count / across))
    ds = header("MR", 1, tile[0] * down, tile[1] * across)
    ds.SOPClassUID = MRImageStorage
    del ds.NumberOfFrames
    ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "VFRAME"]
    ds.Manufacturer = "UIH"
    ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing = [0.0, 0.0, 0.0], AXIAL, [2.0, 1.5]
    block = ds.private_block(0x0065, "Image Private Header", create=True)
    if number is not None:
        block.add_new(0x50, "DS", str(count if number is ... else number))
    items = [dataset(ImagePositionPatient=... if p is None else list(p)) for p in positions]
    block.add_new(0x51, "SQ", Sequence(items))
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    return ds
