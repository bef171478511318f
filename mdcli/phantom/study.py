"""Write the phantom as DICOM: one CT series on any grid, or a small study with what lies in a real study's folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mdcli.phantom.anatomy import CENTRE_MM, hu_at, plane_points, sample

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

DEMO_SHAPE = (60, 120, 168)
DEMO_SPACING_MM = (2.0, 2.0, 3.0)
_INTERCEPT_HU = -1024
_DATE, _TIME = "20260101", "120000"


@dataclass(frozen=True)
class SeriesFacts:
    """What a series says of itself.

    Attributes:
        study: any word; series with the same one share the study and the frame of reference.
        number: SeriesNumber.
        description: SeriesDescription.
        image_type: ImageType.
        patient_position: PatientPosition, for example `HFS`. The coordinates are the patient's whatever it says.
        kernel: ConvolutionKernel.
    """

    study: str = "phantom"
    number: int = 2
    description: str = "Phantom axial"
    image_type: tuple[str, ...] = ("ORIGINAL", "PRIMARY", "AXIAL")
    patient_position: str = "HFS"
    kernel: str = "STANDARD"


def demo_affine() -> NDArray[np.float64]:
    """Return the demo's grid: 4x4, voxel index (i, j, k, 1) to mm, LPS+; axial, rows towards the left, slices towards the head."""
    affine = np.diag([*DEMO_SPACING_MM, 1.0])
    k, j, i = DEMO_SHAPE
    affine[:3, 3] = np.array(CENTRE_MM) - (np.array([i, j, k]) - 1) / 2 * DEMO_SPACING_MM + (0, 6, 0)
    return affine


@cache
def demo_voxels() -> NDArray[np.int16]:
    """Return the demo's axial CT, (k, j, i) on `demo_affine()`, in whole HU with noise; read-only."""
    voxels = sample(DEMO_SHAPE, demo_affine(), noise_hu=12.0, seed=2)
    voxels.flags.writeable = False
    return voxels


def oriented_affine(
    row: Sequence[float],
    column: Sequence[float],
    spacing_mm: Sequence[float],
    shape: tuple[int, int, int],
    centre_mm: Sequence[float] = CENTRE_MM,
) -> NDArray[np.float64]:
    """Return the affine of a grid around a place.

    Args:
        row: direction of a row (voxel index i grows along it), a unit vector, LPS+.
        column: direction of a column (j), a unit vector at right angles to `row`. Slices follow row x column.
        spacing_mm: between voxels along i, j, k.
        shape: (k, j, i).
        centre_mm: (x, y, z) of the grid's middle, LPS+.

    Returns:
        4x4, voxel index (i, j, k, 1) to mm, LPS+.
    """
    axes = np.stack([row, column, np.cross(row, column)], axis=1) * np.asarray(spacing_mm)
    affine = np.eye(4)
    affine[:3, :3] = axes
    affine[:3, 3] = np.asarray(centre_mm) - axes @ ((np.array(shape[::-1]) - 1) / 2)
    return affine


def write_series(
    folder: Path,
    shape: tuple[int, int, int],
    affine: NDArray[np.float64],
    facts: SeriesFacts | None = None,
    *,
    descending: bool = False,
    noise_hu: float = 0.0,
) -> list[Path]:
    """Write one classic CT series of the phantom, a file a slice.

    Args:
        folder: is made where it is not there; the files are named `IM0001.dcm` and on by their InstanceNumber.
        shape: (k, j, i).
        affine: 4x4, voxel index (i, j, k, 1) to mm, LPS+. The columns for i and j are at right angles.
        facts: what the series says of itself.
        descending: number the instances against k.
        noise_hu: standard deviation of the noise, HU.

    Returns:
        The files, in the order of k. The same arguments give the same bytes.
    """
    facts = facts or SeriesFacts()
    voxels = sample(shape, affine, noise_hu, seed=facts.number)
    return _write_slices(folder, voxels, np.asarray(affine, np.float64), facts, descending=descending)


def write_study(folder: Path) -> dict[str, Path]:
    """Write the demo's study: an axial CT, and beside it what a study's folder holds and a model must not take.

    Args:
        folder: is made where it is not there.

    Returns:
        The paths written, by what they are: `axial` (a folder, 60 slices of 120 x 168, 2 x 2 x 3 mm), `localizer` (a folder, one
        scout view), `reformat` (a folder, three derived coronal slices), `report` (a Basic Text SR), `notes` (no DICOM at all).
        The same bytes every time.
    """
    parts = {"axial": folder / "axial", "localizer": folder / "localizer", "reformat": folder / "reformat"}
    axial = _write_slices(parts["axial"], demo_voxels(), demo_affine(), SeriesFacts())
    scout = SeriesFacts(number=1, description="Phantom scout", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    _write_slices(parts["localizer"], *_scout(), scout)
    coronal = SeriesFacts(
        number=3, description="Phantom coronal MPR", image_type=("DERIVED", "SECONDARY", "REFORMATTED")
    )
    grid = oriented_affine((1, 0, 0), (0, 0, -1), (2, 3, 10), (3, 60, 168))
    _write_slices(parts["reformat"], sample((3, 60, 168), grid), grid, coronal)
    parts["report"] = folder / "report.dcm"
    _save(_report(axial[0]), parts["report"])
    parts["notes"] = folder / "notes.txt"
    parts["notes"].write_text(
        "This file is no DICOM. A study's folder often holds some that are not.\n", encoding="utf-8"
    )
    return parts


def _scout() -> tuple[NDArray[np.int16], NDArray[np.float64]]:
    """Return a view from the front, (1, j, i) in HU: the mean over the depth, as a localizer shows it, and its affine."""
    shape = (1, 100, 180)
    affine = oriented_affine((1, 0, 0), (0, 0, -1), (2, 2, 10), shape)
    plane = plane_points(shape[1], shape[2], affine)
    depths = np.arange(-96.0, 97.0, 12.0)
    mean = np.mean([hu_at(plane + np.array([0, depth, 0])) for depth in depths], axis=0)
    return np.rint(mean).astype(np.int16).reshape(shape), affine


def _uid(*words: object) -> str:
    """Return a UID under 2.25 (PS3.5 B.2) from what is identified: the same words, the same UID."""
    digest = hashlib.sha256("\0".join(map(str, words)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def _write_slices(
    folder: Path,
    voxels: NDArray[np.int16],
    affine: NDArray[np.float64],
    facts: SeriesFacts,
    *,
    descending: bool = False,
) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    content = hashlib.sha256(voxels.tobytes() + affine.tobytes() + repr((facts, descending)).encode()).hexdigest()
    series_uid = _uid("series", content)
    paths = []
    for index in range(len(voxels)):
        number = len(voxels) - index if descending else index + 1
        paths.append(folder / f"IM{number:04d}.dcm")
        _save(_ct_slice(voxels[index], affine, index, number, facts, series_uid), paths[-1])
    return paths


def _save(dataset: Dataset, path: Path) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(_uid("implementation", "mdcli.phantom"))
    file = FileDataset(str(path), dataset, preamble=b"\0" * 128, file_meta=meta)
    file.save_as(path, enforce_file_format=True)


def _common(facts: SeriesFacts, series_uid: str) -> Dataset:
    """Return the modules of patient, study, series and equipment."""
    from pydicom.dataset import Dataset

    dataset = Dataset()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    dataset.PatientName = "Phantom^Md Demo"
    dataset.PatientID = "MD-DEMO"
    dataset.PatientBirthDate = "19000101"
    dataset.PatientSex = "O"
    dataset.StudyInstanceUID = _uid("study", facts.study)
    dataset.StudyDate = dataset.SeriesDate = dataset.ContentDate = _DATE
    dataset.StudyTime = dataset.SeriesTime = dataset.ContentTime = _TIME
    dataset.ReferringPhysicianName = ""
    dataset.StudyID = "1"
    dataset.AccessionNumber = ""
    dataset.StudyDescription = "CT phantom, no person"
    dataset.SeriesInstanceUID = series_uid
    dataset.SeriesNumber = facts.number
    dataset.SeriesDescription = facts.description
    dataset.Manufacturer = "md"
    dataset.ManufacturerModelName = "phantom"
    dataset.DeviceSerialNumber = "0"
    dataset.SoftwareVersions = "1"
    return dataset


def _decimal(value: float) -> str:
    """Return a number as DS text: at most 16 characters (PS3.5 6.2)."""
    for digits in range(15, 0, -1):
        text = f"{value + 0.0:.{digits}g}"
        if len(text) <= 16:
            return text
    raise ValueError(f"{value} has no DS text")


def _ct_slice(
    plane: NDArray[np.int16], affine: NDArray[np.float64], k: int, number: int, facts: SeriesFacts, series_uid: str
) -> Dataset:
    from pydicom.uid import CTImageStorage

    dataset = _common(facts, series_uid)
    dataset.Modality = "CT"
    dataset.SOPClassUID = CTImageStorage
    dataset.SOPInstanceUID = _uid("instance", series_uid, number)
    dataset.ImageType = list(facts.image_type)
    dataset.InstanceNumber = number
    dataset.AcquisitionNumber = 1
    dataset.AcquisitionDate, dataset.AcquisitionTime = _DATE, _TIME
    dataset.PatientPosition = facts.patient_position
    dataset.FrameOfReferenceUID = _uid("frame of reference", facts.study)
    dataset.PositionReferenceIndicator = ""
    dataset.BodyPartExamined = "CHEST"
    dataset.KVP = "120"
    dataset.XRayTubeCurrent = "200"
    dataset.ExposureTime = "500"
    dataset.ConvolutionKernel = facts.kernel
    if facts.image_type[0] == "DERIVED":
        dataset.DerivationDescription = "Multiplanar reformatting"
    i_axis, j_axis, k_axis = affine[:3, 0], affine[:3, 1], affine[:3, 2]
    row_spacing, column_spacing = float(np.linalg.norm(j_axis)), float(np.linalg.norm(i_axis))
    cosines = np.concatenate([i_axis / column_spacing, j_axis / row_spacing])
    dataset.ImageOrientationPatient = [_decimal(cosine) for cosine in cosines]
    dataset.ImagePositionPatient = [_decimal(value) for value in affine[:3, 3] + k * k_axis]
    dataset.PixelSpacing = [_decimal(row_spacing), _decimal(column_spacing)]
    dataset.SliceThickness = _decimal(float(np.linalg.norm(k_axis)))
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = plane.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.RescaleIntercept, dataset.RescaleSlope = str(_INTERCEPT_HU), "1"
    # PS3.3 C.8.2.1.1: the values of a projection are no Hounsfield units.
    dataset.RescaleType = "US" if "LOCALIZER" in facts.image_type else "HU"
    dataset.WindowCenter, dataset.WindowWidth = "40", "400"
    dataset.PixelData = (plane - _INTERCEPT_HU).astype("<u2").tobytes()
    return dataset


def _report(evidence: Path) -> Dataset:
    """Return a Basic Text SR about the study, as PS3.3 A.35.1 has it."""
    from pydicom import dcmread
    from pydicom.dataset import Dataset
    from pydicom.uid import BasicTextSRStorage

    def code(value: str, scheme: str, meaning: str) -> Dataset:
        item = Dataset()
        item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
        return item

    source = dcmread(evidence, stop_before_pixels=True)
    dataset = _common(SeriesFacts(number=4, description="Phantom report"), _uid("series", "report"))
    dataset.Modality = "SR"
    dataset.SOPClassUID = BasicTextSRStorage
    dataset.SOPInstanceUID = _uid("instance", "report", source.SOPInstanceUID)
    dataset.ReferencedPerformedProcedureStepSequence = []
    dataset.InstanceNumber = 1
    dataset.CompletionFlag, dataset.VerificationFlag = "PARTIAL", "UNVERIFIED"
    dataset.PerformedProcedureCodeSequence = []
    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    series = Dataset()
    series.SeriesInstanceUID, series.ReferencedSOPSequence = source.SeriesInstanceUID, [image]
    study = Dataset()
    study.StudyInstanceUID, study.ReferencedSeriesSequence = source.StudyInstanceUID, [series]
    dataset.CurrentRequestedProcedureEvidenceSequence = [study]
    dataset.ValueType = "CONTAINER"
    dataset.ConceptNameCodeSequence = [code("18748-4", "LN", "Diagnostic Imaging Report")]
    dataset.ContinuityOfContent = "SEPARATE"
    finding = Dataset()
    finding.RelationshipType, finding.ValueType = "CONTAINS", "TEXT"
    finding.ConceptNameCodeSequence = [code("121071", "DCM", "Finding")]
    finding.TextValue = "A phantom. Nothing here is a person."
    dataset.ContentSequence = [finding]
    return dataset
