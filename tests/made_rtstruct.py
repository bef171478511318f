"""RTSTRUCTs for tests: contours of any kind, written by pydicom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RTStructureSetStorage

from tests.made_series import ROOT

FRAME = f"{ROOT}4"


@dataclass
class Drawn:
    """One ROI to be written; `contours` are (points, 3) in mm or texts, `kinds` and `images` one for each or one for all."""

    name: str
    contours: Sequence[Any] = ()
    kinds: Sequence[str] = ("CLOSED_PLANAR",)
    images: Sequence[str | None] = (None,)
    frame: str | None = FRAME
    colour: Sequence[int] | None = (255, 0, 0)
    algorithm: str = "MANUAL"
    interpreted: str = "ORGAN"
    code: tuple[str, str, str] | None = None
    number: int | None = None
    more: dict[str, Any] = field(default_factory=dict)


def square(x0: float, y0: float, x1: float, y1: float, z: float = 100.0) -> np.ndarray:
    """Return the corners of a rectangle on an axial plane, (4, 3) mm."""
    return np.array([[x0, y0, z], [x1, y0, z], [x1, y1, z], [x0, y1, z]], float)


def data_set(rois: Sequence[Drawn], series: str | None = f"{ROOT}3", **more: Any) -> Dataset:
    """Return an RTSTRUCT; `more` overrides top-level attributes."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = RTStructureSetStorage, f"{ROOT}9"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = f"{ROOT}2", f"{ROOT}8", "RTSTRUCT"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate = "Canaryname^Given", "CANARY-ID", "19010203"
    ds.StructureSetLabel = "TEST"
    ds.ReferencedFrameOfReferenceSequence = [_referenced(rois, series)]
    ds.StructureSetROISequence, ds.ROIContourSequence, ds.RTROIObservationsSequence = [], [], []
    for n, roi in enumerate(rois, start=1):
        number = n if roi.number is None else roi.number
        described = Dataset()
        described.ROINumber, described.ROIName = number, roi.name
        described.ROIGenerationAlgorithm = roi.algorithm
        if roi.frame:
            described.ReferencedFrameOfReferenceUID = roi.frame
        ds.StructureSetROISequence.append(described)
        drawn = Dataset()
        drawn.ReferencedROINumber = number
        if roi.colour:
            drawn.ROIDisplayColor = list(roi.colour)
        drawn.ContourSequence = [_contour(roi, c) for c in range(len(roi.contours))]
        ds.ROIContourSequence.append(drawn)
        observed = Dataset()
        observed.ObservationNumber, observed.ReferencedROINumber = n, number
        observed.RTROIInterpretedType = roi.interpreted
        if roi.code:
            code = Dataset()
            code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = roi.code
            observed.RTROIIdentificationCodeSequence = [code]
        ds.RTROIObservationsSequence.append(observed)
    for keyword, value in more.items():
        setattr(ds, keyword, value)
    return ds


def _referenced(rois: Sequence[Drawn], series: str | None) -> Dataset:
    frame, study, of_series = Dataset(), Dataset(), Dataset()
    frame.FrameOfReferenceUID = next((roi.frame for roi in rois if roi.frame), FRAME)
    if series:
        of_series.SeriesInstanceUID = series
        study.RTReferencedSeriesSequence = [of_series]
        frame.RTReferencedStudySequence = [study]
    return frame


def _contour(roi: Drawn, n: int) -> Dataset:
    given = roi.contours[n]
    ds = Dataset()
    ds.ContourGeometricType = roi.kinds[n % len(roi.kinds)]
    if image := roi.images[n % len(roi.images)]:
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", image
        ds.ContourImageSequence = [reference]
    texts = given if isinstance(given, list) else [f"{v:.10g}"[:16] for v in np.asarray(given).ravel()]
    ds.NumberOfContourPoints = len(texts) // 3
    ds.ContourData = texts
    for keyword, value in roi.more.items():
        setattr(ds, keyword, value)
    return ds


def write_rtstruct(path: Path, rois: Sequence[Drawn], syntax: str = str(ImplicitVRLittleEndian), **more: Any) -> Path:
    """Write an RTSTRUCT in a transfer syntax and return its path."""
    return save(path, data_set(rois, **more), syntax)


def save(path: Path, ds: Dataset, syntax: str = str(ImplicitVRLittleEndian)) -> Path:
    """Write a data set in a transfer syntax and return its path."""
    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = syntax
    ds.save_as(
        path,
        implicit_vr=syntax == ImplicitVRLittleEndian,
        little_endian=syntax != ExplicitVRBigEndian,
        enforce_file_format=True,
    )
    return path


def rtstruct_of_study(study: Path, path: Path) -> Path:
    """Write an RTSTRUCT of the phantom's axial series: a block with a hole in it, and a block beside it."""
    images = sorted((study / "axial").iterdir())[4:8]
    headers = [dcmread(image, stop_before_pixels=True) for image in images]
    first = headers[0]
    planes = [[float(v) for v in header.ImagePositionPatient] for header in headers]
    one = [
        c
        for x, y, z in planes
        for c in (square(x + 20, y + 20, x + 60, y + 60, z), square(x + 30, y + 30, x + 50, y + 50, z))
    ]
    other = [square(x + 80, y + 20, x + 100, y + 40, z) for x, y, z in planes]
    uids = [str(header.SOPInstanceUID) for header in headers]
    rois = [
        Drawn("Hollow", one, images=[uid for uid in uids for _ in range(2)], frame=first.FrameOfReferenceUID),
        Drawn("Beside", other, images=uids, frame=first.FrameOfReferenceUID, algorithm="AUTOMATIC"),
    ]
    return write_rtstruct(
        path,
        rois,
        series=str(first.SeriesInstanceUID),
        StudyInstanceUID=str(first.StudyInstanceUID),
        PatientID=str(first.PatientID),
    )
