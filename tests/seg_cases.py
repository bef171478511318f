"""Small CT and MR series made with pydicom alone, with the artifacts that `write-seg` reads, for its tests."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

CANARY = "Canary^Secretname"

# Direction cosines of rows and columns; the normal of each points along the row crossed with the column.
PLANES = {
    "axial": ([1, 0, 0], [0, 1, 0]),
    "coronal": ([1, 0, 0], [0, 0, -1]),
    "sagittal": ([0, 1, 0], [0, 0, -1]),
    "oblique": ([0.8, 0.6, 0], [-0.36, 0.48, 0.8]),
}


@dataclass
class Case:
    """A series on disk and what load-volume and infer would say of it."""

    root: Path
    paths: list[str]
    affine: np.ndarray
    shape: tuple[int, int, int]
    geometry: dict[str, Any]
    segments: dict[str, Any]
    labels: np.ndarray

    @property
    def files(self) -> list[tuple[str, int]]:
        """Return (path, size) of the slices in the order of k."""
        return [(path, (self.root / path).stat().st_size) for path in self.paths]

    @property
    def headers(self) -> list[str]:
        """Return the SHA-256 of each header in the order of k."""
        return [header_sha256(self.root / path) for path in self.paths]


def header_sha256(path: Path) -> str:
    """Return the SHA-256 of all before the pixels of a file that `save` wrote: tag, OW and length of PixelData included."""
    data = path.read_bytes()
    return hashlib.sha256(data[: data.index(b"\xe0\x7f\x10\x00OW\0\0") + 12]).hexdigest()


def affine_of(plane: str, spacing=(0.75, 1.25, 3.0), origin=(-20.5, 31.25, -400.0)) -> np.ndarray:
    """Return (i, j, k) to mm, LPS+: spacing is along i, j and k."""
    row, column = (np.array(v, float) for v in PLANES[plane])
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = (
        row * spacing[0],
        column * spacing[1],
        np.cross(row, column) * spacing[2],
    )
    affine[:3, 3] = origin
    return affine


def header(k: int, affine: np.ndarray, shape: tuple[int, int, int], uids: dict[str, str]) -> Dataset:
    """Return slice k as a conforming CT image, without pixels."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = uids["study"], uids["series"], uids["frame"]
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = CANARY, "CANARYID", "19010203", "O"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20260101", "120000", "1", "A1"
    ds.ReferringPhysicianName, ds.PositionReferenceIndicator = "Ref^Doctor", ""
    ds.Modality, ds.Manufacturer, ds.SeriesNumber, ds.InstanceNumber = "CT", "none", 4, k + 1
    ds.ImageType, ds.PatientPosition, ds.AcquisitionNumber, ds.KVP = ["ORIGINAL", "PRIMARY", "AXIAL"], "HFS", 1, 120
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    ds.PixelSpacing, ds.SliceThickness = [float(sizes[1]), float(sizes[0])], float(sizes[2])
    ds.ImageOrientationPatient = [*(affine[:3, 0] / sizes[0]), *(affine[:3, 1] / sizes[1])]
    ds.ImagePositionPatient = [round(float(v), 8) for v in affine[:3, 3] + k * affine[:3, 2]]
    ds.Rows, ds.Columns = shape[1], shape[2]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, 0, "HU"
    return ds


def save(ds: Dataset, path: Path) -> None:
    """Write one image with pixels of zero."""
    ds.PixelData = bytes(ds.Rows * ds.Columns * 2)
    ds["PixelData"].VR = "OW"
    ds.save_as(path, enforce_file_format=True)


def segments_document(values=(1, 2, 5), **more: Any) -> dict[str, Any]:
    """Return a `segments.json` with one segment a value."""
    names = {1: "Liver", 2: "Spleen", 5: "Aorta"}
    codes = {1: ("10200004", "Liver"), 2: ("78961009", "Spleen"), 5: ("15825003", "Aorta")}
    category = {"value": "91723000", "scheme": "SCT", "meaning": "Anatomical Structure"}
    return {
        "schema": "md.segments/1",
        "segments": [
            {
                "value": v,
                "name": names[v],
                "category": category,
                "type": {"value": codes[v][0], "scheme": "SCT", "meaning": codes[v][1]},
                "colour": [200, 40 * v, 10],
                "algorithm": {"type": "AUTOMATIC", "name": "testnet", "version": "1.2"},
            }
            for v in values
        ],
        "model": {"name": "testnet", "version": "1.2", "sha256": "ab" * 32},
        "engine": {
            "name": "onnxruntime",
            "version": "1.31",
            "precision": "float32",
            "provider": "CPUExecutionProvider",
        },
        "task": "segmentation",
        "empty": "valid",
        "result": "processed",
        "out_of_scope": None,
        "series_description_prefix": "AI ",
        "regulatory": "Research use only, not reviewed.",
        **more,
    }


def blobs(shape: tuple[int, int, int]) -> np.ndarray:
    """Return labels 1, 2 and 5: lopsided blobs that no flip or swap of axes maps to themselves; some slices stay empty."""
    labels = np.zeros(shape, np.uint8)
    labels[1:4, 2:9, 3:7] = 1
    labels[1:2, 2, 3:12] = 1
    labels[3:5, 10:14, 12:15] = 2
    labels[4:5, 1, 1] = 5
    return labels


def make_case(folder: Path, plane: str = "axial", shape=(6, 17, 19), change=None, **more: Any) -> Case:
    """Write a series and return it with its artifacts. `change(dataset, k)` edits each header before it is written."""
    root = folder / "dicom"
    root.mkdir(parents=True)
    affine = affine_of(plane)
    uids = {name: generate_uid() for name in ("study", "series", "frame")}
    paths, slices = [], []
    for k in range(shape[0]):
        ds = header(k, affine, shape, uids)
        if change:
            change(ds, k)
        paths.append(f"{(k * 7) % 10}{k}.dcm")
        save(ds, root / paths[-1])
        position = [float(v) for v in ds.ImagePositionPatient]
        slices.append({"k": k, "sop_instance_uid": ds.SOPInstanceUID, "path": paths[-1], "position_mm": position})
    geometry = {
        "schema": "md.geometry/1",
        "series_instance_uid": uids["series"],
        "study_instance_uid": uids["study"],
        "frame_of_reference_uid": uids["frame"],
        "modality": "CT",
        "shape": list(shape),
        "affine_lps": affine.tolist(),
        "slices": slices,
    }
    return Case(root, paths, affine, shape, geometry, segments_document(**more), blobs(shape))


def real_case(folder: Path) -> Case:
    """Return one of the real series beside the checkout, its geometry worked out here from the headers."""
    import pydicom

    headers = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        headers[path.relative_to(folder).as_posix()] = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    headers = {name: ds for name, ds in headers.items() if ds.get("Modality") in ("CT", "MR")}
    some = next(iter(headers.values()))
    row, column = (np.array(some.ImageOrientationPatient[n : n + 3], float) for n in (0, 3))
    normal = np.cross(row, column)
    order = sorted(headers, key=lambda name: float(normal @ np.array(headers[name].ImagePositionPatient, float)))
    positions = np.array([headers[name].ImagePositionPatient for name in order], float)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * float(some.PixelSpacing[1]), column * float(some.PixelSpacing[0])
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(order) - 1)
    affine[:3, 3] = positions[0]
    shape = (len(order), int(some.Rows), int(some.Columns))
    slices = [
        {
            "k": k,
            "path": name,
            "sop_instance_uid": str(headers[name].SOPInstanceUID),
            "position_mm": positions[k].tolist(),
        }
        for k, name in enumerate(order)
    ]
    geometry = {"schema": "md.geometry/1", "shape": list(shape), "affine_lps": affine.tolist(), "slices": slices}
    labels = np.zeros(shape, np.uint8)
    labels[1:3, 20:50, 30:45] = 1
    labels[0:2, 52:60, 10:80] = 2
    labels[shape[0] - 1, 61, 33] = 5
    return Case(folder, order, affine, shape, geometry, segments_document(), labels)


def _whole_geometry(geometry: dict) -> dict:
    """Return the document with all that its schema wants beside what a writer reads."""
    spacing = np.linalg.norm(np.array(geometry["affine_lps"])[:3, :3], axis=0).tolist()
    rest = {
        "series_instance_uid": "1.2.3",
        "study_instance_uid": None,
        "frame_of_reference_uid": None,
        "sop_class_uid": None,
        "modality": None,
        "patient_position": None,
        "unit": None,
        "rescale_type": None,
        "spacing_mm": spacing,
        "orientation": "oblique",
        "obliquity_deg": 0.0,
        "direction_orthonormal": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        "coverage_mm": spacing[2] * geometry["shape"][0],
        "regularity": {
            "step_mm": spacing[2],
            "smallest_step_mm": None,
            "largest_step_mm": None,
            "off_grid_mm": 0.0,
            "off_grid_allowed_mm": None,
        },
        "tilt": {"degrees": 0.0, "shift_mm": 0.0, "gantry_detector_tilt_deg": None, "sheared": False},
        "tolerances": {},
        "dimension": None,
        "photometric_interpretation": "MONOCHROME2",
        "transfer_syntaxes": ["1.2.840.10008.1.2.1"],
        "lossy": None,
        "padding": None,
        "made": [],
        "dropped": [],
        "completeness": {"status": "unknown", "expected": None, "found": 1, "instance_numbers": None, "holes": []},
    }
    more = {"instance_number": None, "rescale_slope": 1.0, "rescale_intercept": 0.0}
    return rest | geometry | {"slices": [more | entry for entry in geometry["slices"]]}


def make_workspace(
    case: Case, folder: Path, labels: np.ndarray | None = None, affine: np.ndarray | None = None
) -> Path:
    """Write the artifacts that `write-seg` reads into a workspace."""
    from mdcli.imaging.nifti import write_nifti

    folder.mkdir()
    (folder / "geometry.json").write_text(json.dumps(_whole_geometry(case.geometry)))
    (folder / "segments.json").write_text(json.dumps(case.segments))
    rest = {"pixel_offset": None, "pixel_length": None, "attributes": {}}
    instances = [
        {"path": path, "size": size, "header_sha256": digest, **rest}
        for (path, size), digest in zip(case.files, case.headers, strict=True)
    ]
    facts = {
        "series_instance_uid": case.geometry.get("series_instance_uid", "1.2.3"),
        "instance_count": len(instances),
    }
    series = {"schema": "md.series/1", "series": facts, "common": {}, "instances": instances}
    (folder / "series.json").write_text(json.dumps(series))
    (folder / "series.root").write_text(f"{case.root}\n")
    with (folder / "labels.nii").open("wb") as file:
        write_nifti(file, case.labels if labels is None else labels, case.affine if affine is None else affine)
    return folder
