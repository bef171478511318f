"""Write a label map as a DICOM Segmentation, and read one back against the images it was made from.

Source: DICOM PS3.3 A.51 and C.8.20 (Segmentation IOD), encoded by highdicom.
"""

from __future__ import annotations

import gc
import io
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.codes import checked_code
from mdcli.dicom.finding import Finding
from mdcli.dicom.geometry import COSINE_OFF, POSITION_OFF_GRID_MM, POSITION_OFF_GRID_SPACING
from mdcli.dicom.sources import Sources, SourceSlice
from mdcli.dicom.text import character_set, check_declared, check_text
from mdcli.dicom.uids import derived_uid, settle_uids, stand_in
from mdcli.errors import DataError
from mdcli.imaging.label_maps import SAME_GRID_MM, corner_distance, in_order_of, whole_numbers
from mdcli.imaging.nifti import Volume

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

_LARGEST_LABEL = 65535
_UID_PURPOSES = ("series", "sop-instance", "dimension-organization")
# Attributes of type 2 in the Patient and General Study modules, which highdicom asks for; empty where the sources have none.
_TYPE_2 = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)
# What ties the object to its patient and order stays as the sources have it, valid or not; the study has its UID for that.
_KEPT_AS_IS = ("PatientID", "PatientName", "AccessionNumber")
# What the Clinical Trial Subject module can't be without. Source: DICOM PS3.3 table C.7-2b.
_TRIAL = ("ClinicalTrialSponsorName", "ClinicalTrialProtocolID")
_TRIAL_SUBJECT = ("ClinicalTrialSubjectID", "ClinicalTrialSubjectReadingID")
# Source: DICOM PS3.3 C.7.6.1.1.5.1, the method behind a syntax, and behind what `mdcli.dicom.codecs` says of a codestream.
_METHODS = {
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
    "JPEG-LS": "ISO_14495_1",
    "JPEG 2000": "ISO_15444_1",
}
_UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID", "SOPClassUID")
_DATES = {"PatientBirthDate": "DA", "StudyDate": "DA", "StudyTime": "TM"}
_PURPOSE = "Segmentation by a model"


@dataclass(frozen=True)
class Described:
    """One segment that the label map holds.

    Attributes:
        value: of the label map.
        number: SegmentNumber, consecutive from 1.
        voxels: how many there are.
        entry: its entry in `segments.json`.
    """

    value: int
    number: int
    voxels: int
    entry: Mapping[str, Any]


@dataclass(frozen=True)
class Request:
    """What is to be written, beside the voxels and the sources.

    Attributes:
        document: `segments.json`.
        software_version: of md.
        timestamp: when the object was made; its date and time are written as they are.
        edited: a person changed what went into it.
        series_number: of the new series; None for the source's plus 1000.
        description: what follows the card's prefix in SeriesDescription; empty for the model's name.
    """

    document: Mapping[str, Any]
    software_version: str
    timestamp: datetime
    edited: bool = False
    series_number: int | None = None
    description: str = ""


@dataclass(frozen=True)
class Written:
    """A finished object, not yet in a file.

    Attributes:
        head: the encoded file up to the value of PixelData.
        pixels: the value of PixelData.
        sop_instance_uid: of the object, from its content.
        findings: what a person may want to know.
    """

    head: bytes
    pixels: bytes
    sop_instance_uid: str
    findings: tuple[Finding, ...]

    def write(self, file: BinaryIO) -> None:
        """Write the file."""
        file.write(self.head)
        file.write(self.pixels)


def on_grid(labels: Volume, geometry: Mapping[str, Any]) -> Volume:
    """Return a label map on the source grid, as whole numbers.

    Another tool may have saved it with axes swapped or turned round: its own affine says where each voxel lies, and the voxels are
    put in the order of the source grid. Nothing is resampled. Floating-point labels count where every one is a whole number.

    Args:
        labels: array (k, j, i), affine LPS+.
        geometry: `geometry.json`.

    Raises:
        DataError: `other-grid` where the shape differs or a corner is more than `SAME_GRID_MM` off; `float-labels`.
    """
    shape, affine = tuple(geometry["shape"]), np.array(geometry["affine_lps"], np.float64)
    turned = in_order_of(labels, affine)
    off = corner_distance(turned.affine, affine, shape) if shape == turned.array.shape else None
    if off is None or not off <= SAME_GRID_MM:
        raise DataError(
            "other-grid",
            f"the labels are not on the source grid: shape {labels.array.shape}, affine {_rows(labels.affine)}; "
            f"the source has shape {shape}, affine {_rows(affine)} (k, j, i; LPS mm)",
            hint="resample them to the source grid with nearest neighbours",
            off_mm=off,
            labels_affine_lps=np.asarray(labels.affine).tolist(),
            source_affine_lps=affine.tolist(),
        )
    return Volume(whole_numbers(turned.array), turned.affine, labels.unit)


def _rows(affine: NDArray[np.float64]) -> str:
    return "[" + "; ".join(" ".join(f"{v:.6g}" for v in row) for row in np.asarray(affine)[:3]) + "]"


def count_labels(labels: NDArray[Any]) -> dict[int, int]:
    """Return label value to number of voxels of a label map (k, j, i), 0 left out.

    Raises:
        DataError: `undescribed-label` for a value that no segment can have (negative, over 65535).
    """
    counts: dict[int, int] = {}
    for plane in labels:
        low, high = int(plane.min()), int(plane.max())
        if low < 0 or high > _LARGEST_LABEL:
            raise DataError(
                "undescribed-label", f"label value {low if low < 0 else high} is none that a segment can have"
            )
        if high:
            found = np.bincount(plane.ravel().astype(np.intp, copy=False), minlength=high + 1)
            for value in np.flatnonzero(found).tolist():
                counts[value] = counts.get(value, 0) + int(found[value])
    counts.pop(0, None)
    return dict(sorted(counts.items()))


def describe(labels: NDArray[Any], document: Mapping[str, Any]) -> tuple[list[Described], list[Finding]]:
    """Hold a label map against its `segments.json`.

    Returns:
        The segments that have voxels, numbered from 1 in the order of their values; and a note for each one that has none, which a
        SEG without empty frames can't hold.

    Raises:
        DataError: `undescribed-label`; `bad-artifact` for a value that is described twice or is none.
    """
    entries: dict[int, Mapping[str, Any]] = {}
    for entry in document.get("segments") or []:
        value, name = entry.get("value"), entry.get("name")
        if type(value) is not int or not 1 <= value <= _LARGEST_LABEL or value in entries:
            raise DataError("bad-artifact", f"segments.json describes the label value {value!r} twice, or it is none")
        if not isinstance(name, str) or not name.strip():
            raise DataError("bad-artifact", f"segments.json gives label value {value} no name")
        entries[value] = entry
    counts = count_labels(labels)
    unknown = sorted(set(counts) - set(entries))
    if unknown:
        raise DataError(
            "undescribed-label",
            f"label value {unknown[0]} has {counts[unknown[0]]} voxels and is not in segments.json",
            hint="describe it in segments.json, or set those voxels to a value that is",
            values=unknown,
        )
    found = [Described(v, n, counts[v], entries[v]) for n, v in enumerate(counts, start=1)]
    absent = [v for v in sorted(entries) if v not in counts]
    notes = [
        Finding(
            "empty-segment",
            f"{entries[v]['name']} (label value {v}) has no voxel: left out",
            {"value": v},
            warning=False,
        )
        for v in absent
    ]
    return found, notes


def check_carried(document: Mapping[str, Any]) -> None:
    """Check the facts of `geometry.json` that `segments.json` carries on, which its schema leaves open.

    Raises:
        DataError: `bad-artifact`.
    """
    for key, kind in {"completeness": dict, "lossy": dict, "made": list, "out_of_scope": dict}.items():
        if not isinstance(document.get(key), kind | None):
            raise DataError("bad-artifact", f"{key} in segments.json is no {'list' if kind is list else 'object'}")


def make_seg(
    labels: NDArray[Any],
    affine: NDArray[np.float64],
    sources: Sources,
    segments: Sequence[Described],
    request: Request,
    places: NDArray[np.float64] | None = None,
) -> Written:
    """Make a SEG of type BINARY: explicit VR little endian, uncompressed, empty frames left out, every source referenced.

    Args:
        labels: (k, j, i), on the source grid (`on_grid`).
        affine: of the source grid, (i, j, k) to mm, LPS+.
        sources: the source images, slice k of the labels at index k.
        segments: as `describe` returns them; at least one.
        request: what else goes in.
        places: (k,) where each slice lies along the affine's k, in its steps, where they are uneven; None where slice k lies at k.

    Raises:
        DataError: `other-grid` where the sources don't lie on the grid; what `mdcli.dicom.text` and `mdcli.dicom.codes` refuse;
            `private-source` for images of a private SOP class.
    """
    findings: list[Finding] = []
    check_planes(affine, labels.shape, sources.slices, places)
    with warnings.catch_warnings(), _collector_off():
        # pydicom's warnings show values, which may be a patient's.
        warnings.simplefilter("ignore")
        images = _source_images(affine, sources, findings, even=_is_even(places))
        descriptions = [_description(s, request, findings) for s in segments]
        dataset = _encode(_numbered(labels, segments), images, descriptions, request)
        _settle_invalid(dataset, findings)
        _state_loss(dataset, sources, request, findings)
        _complete(dataset, sources, request)
        head, pixels = _serialise(dataset)
    head, made = settle_uids(head, pixels, _UID_PURPOSES)
    return Written(head, pixels, made["sop-instance"], tuple(findings))


@contextmanager
def _collector_off() -> Iterator[None]:
    """Keep the cycle collector still: it would walk over highdicom's tables of the standard, 22 MB, again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def check_planes(
    affine: NDArray[np.float64],
    shape: Sequence[int],
    slices: Sequence[SourceSlice],
    places: NDArray[np.float64] | None = None,
) -> float:
    """Check that every source plane lies where the grid says, and return the largest distance in mm.

    The headers' own rounding keeps slices off a uniform grid; what `load-volume` takes as regular is allowed here too.

    Raises:
        DataError: `other-grid` with the slice and the distance.
    """
    if len(slices) != shape[0]:
        raise DataError("other-grid", f"the labels have {shape[0]} slices, the source {len(slices)}")
    spacing = float(np.linalg.norm(affine[:3, 2]))
    corners = np.array([[i, j, 1.0] for i in (0, shape[2] - 1) for j in (0, shape[1] - 1)])
    size = float(np.linalg.norm(np.asarray(affine[:3, :2]) @ [shape[2], shape[1]]))
    allowed = SAME_GRID_MM + max(POSITION_OFF_GRID_MM, POSITION_OFF_GRID_SPACING * spacing) + COSINE_OFF * size
    worst = 0.0
    for k, source in enumerate(slices):
        if source.shape != tuple(shape[1:]):
            raise DataError(
                "other-grid", f"slice {k + 1} has {source.shape} rows and columns, the labels {tuple(shape[1:])}"
            )
        expected = _plane_at(affine, k, places)
        off = float(np.linalg.norm((source.plane() - expected) @ corners.T, axis=0).max())
        if off > allowed:
            message = f"source {k + 1} lies {off:.3f} mm from slice {k + 1} of the labels"
            raise DataError("other-grid", message, slice=k, off_mm=off)
        worst = max(worst, off)
    return worst


def _plane_at(affine: NDArray[np.float64], k: int, places: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Return the 3x3 matrix that takes (i, j, 1) of slice k to mm."""
    along = k if places is None else float(places[k])
    return np.column_stack([affine[:3, 0], affine[:3, 1], affine[:3, 3] + along * affine[:3, 2]])


def _is_even(places: NDArray[np.float64] | None) -> bool:
    return places is None or bool(np.allclose(np.diff(places), 1.0, atol=1e-6))


def _numbered(labels: NDArray[Any], segments: Sequence[Described]) -> NDArray[Any]:
    """Return the label map with segment numbers for values, in the smallest type that highdicom takes."""
    dtype = np.dtype(np.uint8 if len(segments) < 256 else np.uint16)
    if all(s.value == s.number for s in segments):
        return labels.astype(dtype, copy=False)
    table = np.zeros(max(s.value for s in segments) + 1, dtype)
    for segment in segments:
        table[segment.value] = segment.number
    numbered: NDArray[Any] = table[labels]
    return numbered


def _source_images(
    affine: NDArray[np.float64], sources: Sources, findings: list[Finding], *, even: bool
) -> list[Dataset]:
    """Return one small data set a slice with what highdicom takes from it; the first also has the patient and the study."""
    from pydicom.dataset import Dataset
    from pydicom.uid import UID

    first = _readable(sources.first, findings)
    check_declared(first, first.get("SpecificCharacterSet"))
    slices = sources.slices
    if UID(slices[0].sop_class_uid).is_private:
        raise DataError("private-source", f"the sources are of the private SOP class {slices[0].sop_class_uid}")
    frame_of_reference = first.get("FrameOfReferenceUID")
    if not frame_of_reference:
        frame_of_reference = derived_uid("frame-of-reference", str(first.SeriesInstanceUID))
        message = "the sources name no FrameOfReferenceUID: the object has one made from their SeriesInstanceUID"
        findings.append(Finding("no-frame-of-reference", message))
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    spacing = float(abs(affine[:3, 2] @ normal) / np.linalg.norm(normal))
    thickness = float(first.get("SliceThickness") or 0) or (spacing if len(slices) > 1 else 0.0)
    if len(slices) == 1 or not even:
        # No one number is the distance between uneven slices.
        spacing = 0.0
    if not thickness:
        raise DataError("source-lacks", "a single slice has no SliceThickness")
    orientation = slices[0].orientation
    if any(not np.array_equal(s.orientation, orientation) for s in slices):
        # highdicom writes one orientation for all frames: the mean one, whose distance from each slice is checked.
        axes = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
        orientation = axes.T
    images = []
    for source in slices:
        image = Dataset()
        image.SOPClassUID, image.SOPInstanceUID = source.sop_class_uid, source.sop_instance_uid
        image.StudyInstanceUID, image.SeriesInstanceUID = str(first.StudyInstanceUID), str(first.SeriesInstanceUID)
        image.FrameOfReferenceUID = str(frame_of_reference)
        image.Rows, image.Columns = source.shape
        image.ImagePositionPatient = [_decimal(v) for v in source.position]
        image.ImageOrientationPatient = [_decimal(v) for v in orientation.ravel()]
        image.PixelSpacing = [_decimal(v) for v in slices[0].pixel_spacing]
        image.SliceThickness = _decimal(thickness)
        if spacing:
            image.SpacingBetweenSlices = _decimal(spacing)
        images.append(image)
    _check_uids(images, findings)
    first.update(images[0])
    first.Modality = first.get("Modality") or "OT"
    images[0] = first
    return images


def _check_uids(images: Sequence[Dataset], findings: list[Finding]) -> None:
    """Warn of UIDs that are no valid ones, which are kept all the same: they tie the object to its study.

    Raises:
        DataError: `unwritable-uid` for more values than one, or characters that no text in DICOM can hold.

    Source: DICOM PS3.5 9.1 and table 6.2-1 (UI).
    """
    from pydicom.uid import UID

    odd = set()
    for image in images:
        for keyword in _UIDS:
            uid = str(image[keyword].value)
            if not re.fullmatch(r"[!-\[\]-~]+", uid):
                raise DataError("unwritable-uid", f"{keyword} of the sources can't be written as one UID")
            if not UID(uid).is_valid:
                odd.add(keyword)
    if odd:
        message = f"kept as the sources have it, though it is no valid UID: {', '.join(sorted(odd))}"
        findings.append(Finding("invalid-uid", message))


def _decimal(value: float) -> float:
    """Return a number as a Decimal String can hold it: 16 characters."""
    from pydicom.valuerep import format_number_as_ds

    return float(format_number_as_ds(float(value)))


def _readable(header: Dataset, findings: list[Finding]) -> Dataset:
    """Return the public part of a header with its text decoded, and what highdicom asks for put right.

    What can't be read is left out; attributes of type 2 that are absent or not valid are empty; both are noted by keyword.
    """
    from pydicom.datadict import keyword_for_tag
    from pydicom.dataset import Dataset
    from pydicom.valuerep import DA, TM

    kept = Dataset()
    dropped = []
    for tag in list(header.keys()):
        if tag.is_private or tag.group > 0x0040:
            continue
        try:
            element = header[tag]
            if element.VR == "SQ":
                for item in element.value:
                    item.decode()
            kept.add(element)
        except (ValueError, TypeError, KeyError, NotImplementedError, AttributeError, OverflowError):
            if keyword_for_tag(tag) in (*_KEPT_AS_IS, *_UIDS):
                message = f"{keyword_for_tag(tag)} of the first source can't be read"
                raise DataError("source-unreadable", message) from None
            dropped.append(str(tag))
    if dropped:
        message = f"left out, as it can't be read in the first source: {', '.join(dropped)}"
        findings.append(Finding("unreadable-attributes", message))
    absent = [keyword for keyword in _TYPE_2 if keyword not in kept]
    invalid = []
    for keyword, vr in _DATES.items():
        try:
            (DA if vr == "DA" else TM)(kept.get(keyword) or None)
        except (ValueError, TypeError):
            invalid.append(keyword)
    if kept.get("PatientSex") not in (None, "", "M", "F", "O"):
        invalid.append("PatientSex")
    for keyword in (*absent, *invalid):
        setattr(kept, keyword, "")
    if "Manufacturer" in kept and not _fits(kept["Manufacturer"]):
        # The equipment that it would name in the object takes one value.
        del kept.Manufacturer
        invalid.append("Manufacturer")
    if absent or invalid:
        message = f"empty in the object, as the sources have no valid one: {', '.join((*absent, *invalid))}"
        findings.append(Finding("empty-attributes", message, warning=False))
    return kept


def _fits(element: DataElement) -> bool:
    """Say whether the values of an element are what its value representation and multiplicity allow."""
    from pydicom.config import RAISE
    from pydicom.datadict import dictionary_has_tag, dictionary_VM
    from pydicom.valuerep import validate_value

    if element.VM > 1 and dictionary_has_tag(element.tag) and dictionary_VM(element.tag) == "1":
        return False
    try:
        for value in element.value if element.VM > 1 else [element.value]:
            validate_value(element.VR, str(value), RAISE)
            if element.VR in ("LO", "PN", "SH") and re.search(r"[\x00-\x1f\x7f]", str(value)):
                return False
    except ValueError:
        return False
    return True


def _settle_invalid(dataset: Dataset, findings: list[Finding]) -> None:
    """Empty (type 2) or leave out what was copied from the sources and is no value of its VR: over-long text, an age of `0Y`.

    What ties the object to its patient, order and study is kept and warned of.
    """
    from pydicom.valuerep import STR_VR

    dropped, odd = [], []
    for element in list(dataset):
        if element.VR not in STR_VR or element.VR == "UI" or not element.value or _fits(element):
            continue
        if element.keyword in _KEPT_AS_IS:
            odd.append(element.keyword)
            continue
        dropped.append(element.keyword)
        if element.keyword in _TYPE_2:
            element.value = ""
        else:
            del dataset[element.tag]
    trial = [element.keyword for element in dataset if element.keyword.startswith("ClinicalTrial")]
    if trial and not (all(dataset.get(k) for k in _TRIAL) and any(dataset.get(k) for k in _TRIAL_SUBJECT)):
        odd += trial
    if odd:
        message = f"kept as the sources have it, though it is not valid or lacks what belongs to it: {', '.join(odd)}"
        findings.append(Finding("invalid-identity", message))
    if dropped:
        message = f"left out, as the sources have no valid value: {', '.join(dropped)}"
        findings.append(Finding("invalid-attributes", message, warning=False))


def _description(segment: Described, request: Request, findings: list[Finding]) -> SegmentDescription:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes

    entry, document = segment.entry, request.document
    # Where several models made the segments, each has its own.
    made_by = {key: entry.get(key) or document.get(key) or {} for key in ("model", "engine")}
    model = made_by["model"]
    name = check_text("SegmentLabel", str(entry["name"]))
    category, about_category = checked_code(entry.get("category"), "segmented property category")
    kind, about_kind = checked_code(entry.get("type"), name)
    findings += [finding for finding in (*about_category, *about_kind) if finding not in findings]
    algorithm = entry.get("algorithm") or {}
    origin = str(algorithm.get("type") or "AUTOMATIC")
    if origin not in ("AUTOMATIC", "SEMIAUTOMATIC", "MANUAL"):
        raise DataError("bad-artifact", f"segments.json gives {name} the algorithm type {origin!r}")
    if request.edited and origin == "AUTOMATIC":
        origin = "SEMIAUTOMATIC"
    identification = AlgorithmIdentificationSequence(
        name=check_text("AlgorithmName", str(algorithm.get("name") or model.get("name") or "unknown")),
        family=codes.cid7162.ArtificialIntelligence,
        version=check_text("AlgorithmVersion", str(algorithm.get("version") or model.get("version") or "unknown")),
        parameters=_parameters(made_by) or None,
    )
    colour = entry.get("colour")
    tracked = bool(entry.get("tracking_id") and entry.get("tracking_uid"))
    described = SegmentDescription(
        segment_number=segment.number,
        segment_label=name,
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=origin,
        algorithm_identification=None if origin == "MANUAL" else identification,
        tracking_id=check_text("TrackingID", str(entry["tracking_id"])) if tracked else None,
        tracking_uid=check_text("TrackingUID", str(entry["tracking_uid"])) if tracked else None,
        display_color=CIELabColor.from_rgb(*colour) if colour else None,
    )
    described.SegmentDescription = check_text("SegmentDescription", f"Label value {segment.value}")
    (item,) = described.SegmentedPropertyTypeCodeSequence
    _add_codes(item, "SegmentedPropertyTypeModifierCodeSequence", entry.get("type_modifiers"), name, findings)
    region = entry.get("anatomic_region")
    if region:
        _add_codes(described, "AnatomicRegionSequence", [region], name, findings)
        (place,) = described.AnatomicRegionSequence
        modifiers = entry.get("anatomic_region_modifiers")
        _add_codes(place, "AnatomicRegionModifierSequence", modifiers, name, findings)
    return described


def _add_codes(
    holder: Dataset, keyword: str, entries: Sequence[Mapping[str, Any]] | None, name: str, findings: list[Finding]
) -> None:
    from highdicom.sr import CodedConcept
    from pydicom.sequence import Sequence as Items

    coded = []
    for entry in entries or ():
        code, about = checked_code(entry, name)
        coded.append(CodedConcept.from_code(code))
        findings += [finding for finding in about if finding not in findings]
    if coded:
        setattr(holder, keyword, Items(coded))


def _parameters(document: Mapping[str, Any]) -> dict[str, str]:
    """Return what ran, for AlgorithmParameters: engine, precision, provider, device, and the model's hash."""
    engine, model = document.get("engine") or {}, document.get("model") or {}
    names = {"name": "engine", "version": "engine_version"}
    facts = {
        names.get(key, key): str(engine[key])
        for key in ("name", "version", "precision", "provider", "device")
        if engine.get(key)
    }
    if model.get("sha256"):
        facts["model_sha256"] = str(model["sha256"])
    for key, value in facts.items():
        check_text("AlgorithmParameters", f"{key}={value}")
    return facts


def _remarks(request: Request) -> list[str]:
    """Return what a reader of the object must know about how it came to be, one sentence each."""
    document = request.document
    remarks = [str(document.get("regulatory") or "Research use only, not reviewed.")]
    if request.edited:
        remarks.append("Edited by a person after the model.")
    scope = document.get("out_of_scope")
    if scope:
        found = "; ".join(
            f"{v['attribute']} {v['value']}, accepted {v['accepts']}" for v in scope.get("violations") or []
        )
        remarks.append(f"Out of the model's scope ({found}), run because: {scope.get('reason')}.")
    lossy = document.get("lossy")
    if lossy:
        was = "were" if lossy.get("certain") else "may have been"
        remarks.append(f"The source images {was} compressed with loss.")
    if (document.get("completeness") or {}).get("holes"):
        remarks.append("The instance numbers of the source images have holes: the series may be incomplete.")
    remarks += [f"Put in on request: {made}." for made in document.get("made") or []]
    return remarks


def _encode(
    array: NDArray[Any], images: Sequence[Dataset], descriptions: Sequence[SegmentDescription], request: Request
) -> Segmentation:
    from highdicom import ContributingEquipment
    from highdicom.seg import Segmentation
    from pydicom.sr.codedict import codes

    document, first = request.document, images[0]
    models = _models(document)
    names = [str(model.get("name") or "unknown") for model in models]
    name = names[0] if len(names) == 1 else "several models"
    label = "".join(c if c.isascii() and c.isalnum() else "_" for c in name).upper()
    # highdicom takes only what begins with a letter and does not end with an underscore.
    label = (label if label[:1].isalpha() else f"M_{label}")[:16].rstrip("_")
    scope = " (out of scope)" if document.get("out_of_scope") else ""
    description = f"{document.get('series_description_prefix', 'AI ')}{request.description or name}{scope}"
    equipment = [
        ContributingEquipment(
            manufacturer="unknown",
            purpose_of_reference=codes.DCM.ProcessingEquipment,
            manufacturer_model_name=check_text("ManufacturerModelName", own_name),
            software_versions=check_text("SoftwareVersions", str(model.get("version") or "unknown")),
            device_serial_number=check_text("DeviceSerialNumber", str(model["sha256"]))
            if model.get("sha256")
            else None,
            contribution_description=check_text("ContributionDescription", f"{_PURPOSE}. {_remarks(request)[0]}"),
        )
        for own_name, model in zip(names, models, strict=True)
    ]
    # highdicom logs a name that looks odd to it, so it gets a stand-in for the name and for nothing else.
    patient_name, first.PatientName = first.PatientName, "^"
    dataset = Segmentation(
        source_images=images,
        pixel_array=array,
        segmentation_type="BINARY",
        segment_descriptions=descriptions,
        series_instance_uid=stand_in("series"),
        series_number=_series_number(first, request),
        sop_instance_uid=stand_in("sop-instance"),
        instance_number=1,
        manufacturer="mdcli",
        manufacturer_model_name="md",
        software_versions=check_text("SoftwareVersions", request.software_version),
        device_serial_number="none",
        content_label=check_text("ContentLabel", label),
        content_description=check_text("ContentDescription", f"{_PURPOSE}{scope}"),
        content_qualification="RESEARCH",
        series_description=check_text("SeriesDescription", description),
        contributing_equipment=equipment,
        specific_character_set=None,
    )
    dataset.PatientName = patient_name
    return dataset


def _models(document: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the models that made the segments, each once; one without a name where nothing says."""
    if document.get("model"):
        return [document["model"]]
    held = [segment["model"] for segment in document.get("segments") or [] if segment.get("model")]
    found: list[Mapping[str, Any]] = []
    for model in held:
        if model not in found:
            found.append(model)
    return found or [{}]


def _series_number(first: Dataset, request: Request) -> int:
    if request.series_number is not None:
        return request.series_number
    try:
        return 1000 + max(0, min(int(first.get("SeriesNumber") or 0), 1_000_000))
    except (ValueError, TypeError):
        return 1000


def _state_loss(dataset: Segmentation, sources: Sources, request: Request, findings: list[Finding]) -> None:
    """Say that the sources were compressed with loss, and how, where their headers or codestreams say it.

    LossyImageCompression is `00` or `01`, and required here; once it is `01` it is never set back. A value that is neither may be
    an `01` that was spoilt, and `00` would deny it: `01` is written, and a warning says why. The ratio is left out where no header
    has it: the one of the codestream would not be that of what was lost before.

    Source: DICOM PS3.3 table C.8.20-2, C.7.6.1.1.5.
    """
    from pydicom.multival import MultiValue

    lossy, first = request.document.get("lossy") or {}, sources.first
    stated = str(first.get("LossyImageCompression") or "").strip()
    if stated not in ("", "00", "01"):
        message = "LossyImageCompression of the sources is neither 00 nor 01: taken as compressed with loss"
        findings.append(Finding("invalid-lossy", message))
    if not lossy.get("certain") and not any(source.lossy for source in sources.slices):
        dataset.LossyImageCompression = "00"
        return
    dataset.LossyImageCompression = "01"
    syntax = str(getattr(first, "file_meta", {}).get("TransferSyntaxUID", ""))
    streams = (syntax, *(str(text) for text in lossy.get("codestream") or []))
    known = sorted({method for start, method in _METHODS.items() if any(text.startswith(start) for text in streams)})
    for keyword, name, pattern in (
        ("LossyImageCompressionMethod", "method", r"[A-Z0-9_ ]{1,16}"),
        ("LossyImageCompressionRatio", "ratio", r"[0-9.eE+-]{1,16}"),
    ):
        values = dataset.get(keyword) or lossy.get(name) or (known if name == "method" else [])
        values = [str(v) for v in (values if isinstance(values, (list, MultiValue)) else [values])]
        if values and all(re.fullmatch(pattern, value) for value in values):
            setattr(dataset, keyword, values)
        elif keyword in dataset:
            del dataset[keyword]


def _complete(dataset: Segmentation, sources: Sources, request: Request) -> None:
    """Put in what highdicom leaves to the clock, to chance, or out."""
    from pydicom.valuerep import DA, DT, TM

    date, time = request.timestamp.strftime("%Y%m%d"), request.timestamp.strftime("%H%M%S")
    dataset.InstanceCreationDate = dataset.ContentDate = dataset.SeriesDate = DA(date)
    dataset.InstanceCreationTime = dataset.ContentTime = dataset.SeriesTime = TM(time)
    # The models and highdicom; what stands before them acquired the images.
    for item in dataset.ContributingEquipmentSequence[-1 - len(_models(request.document)) :]:
        item.ContributionDateTime = DT(date + time)
    organization = stand_in("dimension-organization")
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = organization
    offset = sources.first.get("TimezoneOffsetFromUTC")
    if offset:
        dataset.TimezoneOffsetFromUTC = offset
    dataset.ImageComments = check_text("ImageComments", "\r\n".join(_remarks(request)))
    terms = sources.first.get("SpecificCharacterSet")
    chosen = character_set(dataset, [terms] if isinstance(terms, str) else terms)
    if chosen is not None:
        dataset.SpecificCharacterSet = chosen


def _serialise(dataset: Segmentation) -> tuple[bytes, bytes]:
    """Return the file up to the value of PixelData, and that value."""
    with io.BytesIO() as file:
        dataset.save_as(file, enforce_file_format=True)
        data = file.getbuffer()
        length = len(dataset.PixelData)
        head, pixels = bytes(data[:-length]), bytes(data[-length:])
        data.release()
    return head, pixels


def preload() -> None:
    """Load highdicom and its tables of the standard, which it otherwise reads when it makes its first object."""
    import highdicom.seg  # noqa: F401
    from highdicom import ContributingEquipment
    from pydicom.dataset import Dataset
    from pydicom.uid import CTImageStorage

    image = Dataset()
    image.SOPClassUID = CTImageStorage
    with _collector_off(), suppress(AttributeError):
        # Looks CT up in the tables, then finds no manufacturer in the empty image.
        ContributingEquipment.for_image_acquisition(image)


# Reading back


@dataclass(frozen=True)
class _Ends:
    """What a mask (j, i) says about where its voxels lie, as indices: enough for count, centroid and extreme coordinates.

    Attributes:
        index_sum: sums of i, j and 1 over the voxels.
        index_ends: (3, n), i, j and 1 of the first and the last voxel of every row: an affine coordinate is extreme at one of them.
    """

    index_sum: NDArray[np.float64]
    index_ends: NDArray[np.int_]


def _ends(mask: NDArray[np.bool_]) -> _Ends | None:
    """Return where the voxels of a mask (j, i) lie; None where it has none."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return None
    part = mask[rows]
    counts, columns = part.sum(axis=1), part.sum(axis=0)
    index_sum = np.array([columns @ np.arange(mask.shape[1]), counts @ rows, counts.sum()], np.float64)
    ends = np.concatenate([part.argmax(axis=1), mask.shape[1] - 1 - part[:, ::-1].argmax(axis=1)])
    return _Ends(index_sum, np.stack([ends, np.tile(rows, 2), np.ones(2 * rows.size, np.int_)]))


@dataclass
class _Extent:
    """Count, sum and extreme coordinates of voxel centres in mm, gathered plane by plane."""

    voxels: int = 0
    total: NDArray[np.float64] | None = None
    low: NDArray[np.float64] | None = None
    high: NDArray[np.float64] | None = None

    def add(self, ends: _Ends, plane: NDArray[np.float64]) -> None:
        """Add the voxels of a mask on a plane (3x3, (i, j, 1) to mm)."""
        points = plane @ ends.index_ends
        low, high, total = points.min(axis=1), points.max(axis=1), plane @ ends.index_sum
        self.voxels += int(ends.index_sum[2])
        self.total = total if self.total is None else self.total + total
        self.low = low if self.low is None else np.minimum(self.low, low)
        self.high = high if self.high is None else np.maximum(self.high, high)

    def points(self) -> NDArray[np.float64]:
        """Return centroid, lowest and highest coordinates, 3x3."""
        assert self.total is not None and self.low is not None and self.high is not None
        return np.stack([self.total / self.voxels, self.low, self.high])


def read_back(
    path: Path,
    labels: NDArray[Any],
    affine: NDArray[np.float64],
    sources: Sources,
    segments: Iterable[Described],
    places: NDArray[np.float64] | None = None,
) -> None:
    """Check a finished SEG against its label map and its sources, both read anew.

    Pixels are unpacked here, not by the library that packed them. Patient, study, frame of reference and referenced images must
    be those of the sources, segments those that were asked for. Each frame must lie on a source plane within `SAME_GRID_MM`
    (plus what one orientation for all frames leaves) and refer to that image; its voxels must be those of the label map in that
    slice; and per segment the count, the centroid and the extreme coordinates in mm must agree.

    Args:
        path: of the file.
        labels: (k, j, i).
        affine: of the labels, (i, j, k) to mm, LPS+.
        sources: read again after the writing.
        segments: what the file must hold.
        places: as for `make_seg`.

    Raises:
        DataError: `read-back-failed`; no message shows a value of the patient's.
    """
    try:
        with warnings.catch_warnings():
            # pydicom's warnings show values, which may be a patient's.
            warnings.simplefilter("ignore")
            _read_back(path, labels, affine, sources, list(segments), places)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise _failed(f"something in it can't be read ({type(error).__name__})") from error


@_collector_off()
def _read_back(
    path: Path,
    labels: NDArray[Any],
    affine: NDArray[np.float64],
    sources: Sources,
    segments: Sequence[Described],
    places: NDArray[np.float64] | None,
) -> None:
    from pydicom import dcmread

    dataset = dcmread(path)
    _check_identity(dataset, sources)
    _check_segments(dataset, segments)
    slices = sources.slices
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if (rows, columns) != labels.shape[1:] or dataset.BitsAllocated != 1 or dataset.SegmentationType != "BINARY":
        raise _failed(f"it holds {rows} x {columns} pixels of {dataset.BitsAllocated} bits")
    shared = dataset.SharedFunctionalGroupsSequence[0]
    axes = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, np.float64).reshape(2, 3)
    row_spacing, column_spacing = (float(v) for v in shared.PixelMeasuresSequence[0].PixelSpacing)
    index = {source.sop_instance_uid: k for k, source in enumerate(slices)}
    known = {segment.number: segment for segment in segments}
    packed = np.frombuffer(dataset.PixelData, np.uint8)
    groups = dataset.PerFrameFunctionalGroupsSequence
    if len(groups) != int(dataset.NumberOfFrames) or packed.size * 8 < len(groups) * rows * columns:
        raise _failed(f"it has {dataset.NumberOfFrames} frames and pixels for {packed.size * 8 // (rows * columns)}")
    corners = np.array([[i, j, 1.0] for i in (0, columns - 1) for j in (0, rows - 1)])
    deviation = check_planes(affine, labels.shape, slices, places)
    _check_measures(shared.PixelMeasuresSequence[0], sources, SAME_GRID_MM + deviation, affine, even=_is_even(places))
    frames: list[tuple[int, int, Described, NDArray[np.float64]]] = []
    for n, group in enumerate(groups):
        # A file with one segment says so once, for all frames.
        identification = (group if "SegmentIdentificationSequence" in group else shared).SegmentIdentificationSequence
        segment = known.get(int(identification[0].ReferencedSegmentNumber))
        uid = str(group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID)
        if segment is None or uid not in index:
            raise _failed(f"frame {n + 1} refers to an image or a segment that is not there")
        k = index[uid]
        position = np.array(group.PlanePositionSequence[0].ImagePositionPatient, np.float64)
        plane = np.stack([axes[0] * column_spacing, axes[1] * row_spacing, position], axis=1)
        off = float(np.linalg.norm(position - slices[k].position))
        turned = float(np.linalg.norm((plane - slices[k].plane()) @ corners.T, axis=0).max())
        if off > SAME_GRID_MM or turned > SAME_GRID_MM + deviation:
            raise _failed(f"frame {n + 1} lies {max(off, turned):.4f} mm from the image it refers to")
        frames.append((n, k, segment, plane))

    def voxels_of(frame: tuple[int, int, Described, NDArray[np.float64]]) -> _Ends | None:
        n, k, segment, _ = frame
        mask = _frame(packed, n, rows, columns)
        if not np.array_equal(mask, labels[k] == segment.value):
            raise _failed(f"frame {n + 1} differs from slice {k + 1} of label value {segment.value}")
        return _ends(mask)

    in_file, in_labels = ({number: _Extent() for number in known} for _ in range(2))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (_, k, segment, plane), ends in zip(frames, pool.map(voxels_of, frames), strict=True):
            if ends is None:
                continue
            # The two masks are equal, so that one look at where the voxels lie serves both; the planes are each their own.
            in_file[segment.number].add(ends, plane)
            in_labels[segment.number].add(ends, _plane_at(affine, k, places))
    counts = count_labels(labels)
    for number, segment in known.items():
        found, expected = in_file[number], in_labels[number]
        voxels = counts.get(segment.value, 0)
        if found.voxels != voxels or not voxels:
            raise _failed(f"label value {segment.value} has {found.voxels} voxels in it, {voxels} in the labels")
        off = float(np.abs(found.points() - expected.points()).max())
        if off > SAME_GRID_MM + deviation:
            raise _failed(f"label value {segment.value} lies {off:.4f} mm from where the labels have it")


def _check_identity(dataset: Dataset, sources: Sources) -> None:
    """Hold patient, study, frame of reference and references against the sources; names what differs, never a value."""
    first = sources.first

    def text(holder: Dataset, keyword: str) -> str:
        value = holder.get(keyword)
        # An empty component group at the end of a name is no difference.
        return "" if value is None else str(value).rstrip("= ")

    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "AccessionNumber"):
        if text(dataset, keyword) != text(first, keyword):
            raise _failed(f"its {keyword} is not that of the sources")
    series = text(first, "SeriesInstanceUID")
    frame_of_reference = text(first, "FrameOfReferenceUID") or derived_uid("frame-of-reference", series)
    if text(dataset, "FrameOfReferenceUID") != frame_of_reference:
        raise _failed("its FrameOfReferenceUID is not that of the sources")
    if any(text(item, "SeriesInstanceUID") != series for item in dataset.ReferencedSeriesSequence):
        raise _failed("it refers to another series than that of the sources")
    referenced = {
        str(image.ReferencedSOPInstanceUID)
        for item in dataset.ReferencedSeriesSequence
        for image in item.ReferencedInstanceSequence
    }
    if referenced != {source.sop_instance_uid for source in sources.slices}:
        raise _failed("it does not refer to every source image, or to others")


def _check_segments(dataset: Dataset, segments: Sequence[Described]) -> None:
    """Hold number, label and codes of every segment against what was asked for."""

    def code(items: Sequence[Dataset]) -> tuple[str, ...]:
        value = items[0].get("CodeValue") or items[0].get("LongCodeValue") or items[0].get("URNCodeValue")
        return str(value), str(items[0].CodingSchemeDesignator), str(items[0].CodeMeaning)

    def asked(entry: Mapping[str, Any], key: str, name: str) -> tuple[str, ...]:
        found, _ = checked_code(entry.get(key), name)
        return found.value.strip(), found.scheme_designator.strip(), found.meaning.strip()

    if len(dataset.SegmentSequence) != len(segments):
        raise _failed(f"it describes {len(dataset.SegmentSequence)} segments, not {len(segments)}")
    for item, segment in zip(dataset.SegmentSequence, segments, strict=True):
        name = str(segment.entry["name"])
        found = (
            int(item.SegmentNumber),
            str(item.SegmentLabel).strip(),
            code(item.SegmentedPropertyCategoryCodeSequence),
            code(item.SegmentedPropertyTypeCodeSequence),
        )
        category = asked(segment.entry, "category", "segmented property category")
        kind = item.SegmentedPropertyTypeCodeSequence[0]
        sides = [code([m]) for m in kind.get("SegmentedPropertyTypeModifierCodeSequence") or ()]
        wanted = [asked({"type": m}, "type", name) for m in segment.entry.get("type_modifiers") or ()]
        if sides != wanted:
            raise _failed(f"the modifiers of segment {segment.number} ({name}) are not those that were asked for")
        if found != (segment.number, name.strip(), category, asked(segment.entry, "type", name)):
            raise _failed(f"number, label or code of segment {segment.number} ({name}) is not what was asked for")


def _check_measures(
    measures: Dataset, sources: Sources, allowed: float, affine: NDArray[np.float64], *, even: bool
) -> None:
    """Hold pixel spacing, slice thickness and distance in mm against the sources."""
    slices = sources.slices
    normal = np.cross(*slices[0].orientation)
    span = float(abs((slices[-1].position - slices[0].position) @ normal) / np.linalg.norm(normal))
    step = span / (len(slices) - 1) if len(slices) > 1 else 0.0
    if not even:
        step = float(abs(affine[:3, 2] @ normal) / np.linalg.norm(normal))
    wanted = {"SliceThickness": float(sources.first.get("SliceThickness") or 0) or step}
    if len(slices) > 1:
        wanted["SpacingBetweenSlices"] = step if even else 0.0
    for keyword, value in wanted.items():
        if abs(float(measures.get(keyword) or 0) - value) > allowed:
            raise _failed(f"its {keyword} is {measures.get(keyword)}, that of the sources {value:.6g}")
    spacing = [float(v) for v in measures.PixelSpacing]
    if not np.allclose(spacing, slices[0].pixel_spacing, rtol=1e-6, atol=0):
        raise _failed(f"its PixelSpacing is {spacing}, that of the sources {list(slices[0].pixel_spacing)}")


def _frame(packed: NDArray[np.uint8], n: int, rows: int, columns: int) -> NDArray[np.bool_]:
    """Unpack frame n (j, i) of one-bit pixels: frames follow each other without padding, the lowest bit first.

    Source: DICOM PS3.5 8.1.1 and annex D.
    """
    start = n * rows * columns
    first, skip = divmod(start, 8)
    last = -(-(start + rows * columns) // 8)
    bits = np.unpackbits(packed[first:last], bitorder="little")[skip : skip + rows * columns]
    return bits.reshape(rows, columns).view(np.bool_)


def _failed(what: str) -> DataError:
    hint = "nothing was written; please report it with the record of the labels"
    return DataError("read-back-failed", f"the finished SEG does not hold what it should: {what}", hint=hint)
