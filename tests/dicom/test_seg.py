"""The SEG itself, judged by dciodvfy, dcmqi and highdicom's reader, and by what the read-back must refuse."""

from __future__ import annotations

import subprocess
from datetime import datetime
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, SegmentationStorage

from mdcli.dicom.seg import Request, count_labels, describe, make_seg, on_grid, read_back
from mdcli.dicom.sources import open_sources
from mdcli.errors import DataError
from mdcli.imaging.nifti import Volume
from tests.seg_cases import CANARY, PLANES, Case, make_case, real_case

NOON = datetime(2026, 1, 2, 12, 0, 0)


def write(case: Case, path: Path, labels: np.ndarray | None = None, **asked):
    """Write and read back as the stage does, and return what was written."""
    labels = case.labels if labels is None else labels
    segments, _ = describe(labels, case.segments)
    asked = {"document": case.segments, "software_version": "0.0", "timestamp": NOON, **asked}
    sources = open_sources(case.root, case.files)
    written = make_seg(labels, case.affine, sources, segments, Request(**asked))
    with path.open("wb") as file:
        written.write(file)
    read_back(path, labels, case.affine, open_sources(case.root, case.files), segments)
    return written


def points(affine: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the mm of every voxel of a mask (k, j, i), sorted."""
    k, j, i = np.nonzero(mask)
    mm = (affine @ np.stack([i, j, k, np.ones(i.size)]))[:3].T
    return mm[np.lexsort(np.round(mm, 2).T)]


def dciodvfy_errors(judge, path: Path) -> list[str]:
    done = subprocess.run([judge("dciodvfy"), str(path)], capture_output=True, text=True, errors="replace")
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def check_with_dcmqi(judge, case: Case, path: Path, folder: Path) -> None:
    """Every label lies at its millimetres for dcmqi."""
    import nibabel

    folder.mkdir()
    call = [
        judge("segimage2itkimage"),
        "--inputDICOM",
        str(path),
        "--outputDirectory",
        str(folder),
        "-p",
        "s",
        "-t",
        "nii",
    ]
    subprocess.run(call, check=True, capture_output=True)
    for number, value in enumerate(np.unique(case.labels)[1:], start=1):
        image = nibabel.load(folder / f"s-{number}.nii.gz")
        lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
        found = points(lps, np.asarray(image.dataobj).transpose(2, 1, 0) > 0)
        expected = points(case.affine, case.labels == value)
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() < 2e-3, f"label {value}"


def check_with_highdicom(case: Case, path: Path) -> None:
    """Every voxel of every source image is that of the label map for highdicom's reader."""
    import highdicom

    seg = highdicom.seg.segread(path)
    uids = [entry["sop_instance_uid"] for entry in case.geometry["slices"]]
    values = np.unique(case.labels)[1:].tolist()
    assert [seg.get_segment_description(n).SegmentDescription for n in seg.segment_numbers] == [
        f"Label value {v}" for v in values
    ]
    frames = seg.get_pixels_by_source_instance(uids, assert_missing_frames_are_empty=True)
    for n, value in enumerate(values):
        assert np.array_equal(frames[..., n], case.labels == value)


@pytest.mark.parametrize("plane", PLANES)
def test_three_judges_agree_on_every_plane(tmp_path, judge, plane):
    case = make_case(tmp_path, plane)
    write(case, tmp_path / "seg.dcm")
    assert dciodvfy_errors(judge, tmp_path / "seg.dcm") == []
    check_with_highdicom(case, tmp_path / "seg.dcm")
    check_with_dcmqi(judge, case, tmp_path / "seg.dcm", tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        "01_ct_axial_rtstruct",
        "03_mr_axial_rtstruct",
        "13_mr_sagittal_oblique",
        "14_mr_coronal_oblique",
        "35_ct_abdomen",
    ],
)
def test_three_judges_agree_on_real_series(tmp_path, judge, shared_data, name):
    case = real_case(shared_data / name / "dicom")
    on_grid(Volume(case.labels, case.affine), case.geometry)
    written = write(case, tmp_path / "seg.dcm")
    lacks_frame = name[:2] in ("13", "14")
    assert ("no-frame-of-reference" in [f.code for f in written.findings]) == lacks_frame
    assert dciodvfy_errors(judge, tmp_path / "seg.dcm") == []
    check_with_highdicom(case, tmp_path / "seg.dcm")
    check_with_dcmqi(judge, case, tmp_path / "seg.dcm", tmp_path / "out")


def test_the_object_says_what_it_is_and_where_it_comes_from(tmp_path):
    case = make_case(tmp_path, values=(1, 2, 5))
    written = write(case, tmp_path / "seg.dcm", series_number=77)
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    first = pydicom.dcmread(case.root / case.paths[0])
    assert ds.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert (ds.SOPClassUID, ds.SegmentationType, ds.SOPInstanceUID) == (
        SegmentationStorage,
        "BINARY",
        written.sop_instance_uid,
    )
    for keyword in (
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyID",
        "StudyDate",
    ):
        assert ds[keyword].value == first[keyword].value
    assert ds.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert (ds.SeriesDescription, ds.SeriesNumber, ds.ContentQualification) == ("AI testnet", 77, "RESEARCH")
    assert "not reviewed" in ds.ImageComments
    referenced = ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    every = {entry["sop_instance_uid"] for entry in case.geometry["slices"]}
    assert {item.ReferencedSOPInstanceUID for item in referenced} == every
    # Blobs 1, 2 and 5 touch three slices, two and one.
    assert ds.NumberOfFrames == 6
    model = ds.ContributingEquipmentSequence[-2]
    assert (model.ManufacturerModelName, model.SoftwareVersions, model.DeviceSerialNumber) == (
        "testnet",
        "1.2",
        "ab" * 32,
    )
    for segment in ds.SegmentSequence:
        assert segment.SegmentAlgorithmType == "AUTOMATIC"
        parameters = segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmParameters
        for fact in ("engine=onnxruntime", "precision=float32", "provider=CPUExecutionProvider", "model_sha256=abab"):
            assert fact in parameters
    assert (ds.ContentDate, ds.ContentTime, ds.SeriesDate) == ("20260102", "120000", "20260102")


def test_labels_that_a_person_edited_are_semiautomatic(tmp_path):
    case = make_case(tmp_path)
    write(case, tmp_path / "seg.dcm", edited=True)
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    assert {s.SegmentAlgorithmType for s in ds.SegmentSequence} == {"SEMIAUTOMATIC"}
    assert "Edited by a person" in ds.ImageComments


def test_out_of_scope_lossy_sources_and_what_was_put_in_are_carried_on(tmp_path):
    violations = [{"attribute": "slice thickness", "value": 12, "accepts": "at most 10"}]
    case = make_case(
        tmp_path,
        out_of_scope={"reason": "phantom study", "violations": violations},
        lossy={"slices": 6, "certain": True},
        made=["unit HU, by --assume-hu"],
        completeness={"status": "unknown", "holes": [[3, 4]]},
    )
    write(case, tmp_path / "seg.dcm")
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    for said in ("phantom study", "slice thickness 12", "at most 10", "compressed with loss", "unit HU", "incomplete"):
        assert said in ds.ImageComments
    assert ds.SeriesDescription == "AI testnet (out of scope)"
    assert ds.LossyImageCompression == "01"


def test_loss_that_the_sources_state_is_carried_on(tmp_path):
    def change(ds, k):
        if k == 3:
            ds.LossyImageCompression = "01"

    case = make_case(tmp_path, change=change)
    write(case, tmp_path / "seg.dcm")
    assert pydicom.dcmread(tmp_path / "seg.dcm").LossyImageCompression == "01"


def test_preload_reads_highdicoms_tables_once(tmp_path):
    from highdicom import _standard_utils

    from mdcli.dicom.seg import preload

    preload()
    assert _standard_utils.get_module_attribute_map.cache_info().currsize == 1


def test_a_label_value_is_not_a_segment_number_and_an_empty_segment_is_left_out(tmp_path):
    case = make_case(tmp_path)
    labels = np.where(case.labels == 1, 0, case.labels).astype(np.int16)
    segments, notes = describe(labels, case.segments)
    assert {s.value: (s.number, s.voxels) for s in segments} == {2: (1, 24), 5: (2, 1)}
    assert [(n.code, n.numbers) for n in notes] == [("empty-segment", {"value": 1})]
    write(case, tmp_path / "seg.dcm", labels)
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    found = [(s.SegmentNumber, s.SegmentLabel, s.SegmentDescription) for s in ds.SegmentSequence]
    assert found == [(1, "Spleen", "Label value 2"), (2, "Aorta", "Label value 5")]


def test_one_segment_only_is_read_back_too(tmp_path, judge):
    case = make_case(tmp_path)
    case.labels[case.labels != 1] = 0
    write(case, tmp_path / "seg.dcm")
    assert dciodvfy_errors(judge, tmp_path / "seg.dcm") == []
    check_with_highdicom(case, tmp_path / "seg.dcm")


def test_a_single_slice_is_written_with_its_own_thickness(tmp_path, judge):
    case = make_case(tmp_path, shape=(1, 17, 19))
    case.labels[0, 2:9, 3:7] = 2
    write(case, tmp_path / "seg.dcm")
    assert dciodvfy_errors(judge, tmp_path / "seg.dcm") == []
    check_with_highdicom(case, tmp_path / "seg.dcm")
    check_with_dcmqi(judge, case, tmp_path / "seg.dcm", tmp_path / "out")


def test_counting_is_that_of_numpy():
    labels = np.random.default_rng(1).integers(0, 300, (4, 20, 30)).astype(np.uint16)
    values, counts = np.unique(labels, return_counts=True)
    assert count_labels(labels) == {int(v): int(c) for v, c in zip(values, counts, strict=True) if v}


@pytest.mark.parametrize(("value", "dtype"), [(3, np.uint8), (-1, np.int16), (70000, np.int32)])
def test_a_label_that_is_not_described_is_refused(tmp_path, value, dtype):
    case = make_case(tmp_path)
    labels = case.labels.astype(dtype)
    labels[0, 0, 0] = value
    with pytest.raises(DataError) as error:
        describe(labels, case.segments)
    assert error.value.code == "undescribed-label" and str(value) in error.value.message


@pytest.mark.parametrize(
    "change", [{"value": 2}, {"value": 0}, {"value": True}, {"value": "1"}, {"name": " "}, {"name": None}]
)
def test_a_description_that_a_person_spoilt_is_refused(tmp_path, change):
    case = make_case(tmp_path)
    case.segments["segments"][0].update(change)
    with pytest.raises(DataError) as error:
        describe(case.labels, case.segments)
    assert error.value.code == "bad-artifact"


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a + np.eye(4)[:, [3, 3, 3, 0]] * 0.002,
        lambda a: a @ np.diag([-1, 1, 1, 1.0]),
        lambda a: a[:, [1, 0, 2, 3]],
        lambda a: a * [1.001, 1, 1, 1],
    ],
    ids=["shifted by 2 um", "mirrored", "axes swapped", "stretched"],
)
def test_labels_on_another_grid_are_refused_with_both_affines(tmp_path, change):
    case = make_case(tmp_path)
    with pytest.raises(DataError) as error:
        on_grid(Volume(case.labels, change(case.affine)), case.geometry)
    assert error.value.code == "other-grid"
    assert {"labels_affine_lps", "source_affine_lps"} <= set(error.value.numbers)


def test_an_affine_as_float32_keeps_it_is_the_same_grid(tmp_path):
    case = make_case(tmp_path, "oblique")
    on_grid(Volume(case.labels, case.affine.astype(np.float32).astype(float)), case.geometry)


def test_labels_of_another_shape_or_of_fractions_are_refused(tmp_path):
    case = make_case(tmp_path)
    fractions = case.labels.astype(np.float32)
    fractions[2, 0, 0] = 0.5
    for labels, code in (
        (case.labels[:-1], "other-grid"),
        (fractions, "float-labels"),
        (fractions * np.nan, "float-labels"),
    ):
        with pytest.raises(DataError) as error:
            on_grid(Volume(labels, case.affine), case.geometry)
        assert error.value.code == code


def test_whole_numbers_as_floating_point_are_the_same_labels(tmp_path):
    case = make_case(tmp_path)
    for dtype in (np.float32, np.float64):
        found = on_grid(Volume(case.labels.astype(dtype), case.affine), case.geometry).array
        assert found.dtype.kind == "i" and np.array_equal(found, case.labels)


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("plane", ["axial", "oblique"])
def test_labels_saved_with_axes_swapped_and_turned_round_are_put_in_the_sources_order(tmp_path, plane, order):
    case = make_case(tmp_path, plane)
    for flips in product((False, True), repeat=3):
        voxels = case.labels.transpose(2, 1, 0).transpose(order)
        affine = case.affine[:, [*order, 3]].copy()
        for axis in np.flatnonzero(flips):
            # The last voxel becomes the first: the origin moves there and the axis points back.
            affine[:3, 3] += affine[:3, axis] * (voxels.shape[axis] - 1)
            affine[:3, axis] *= -1
            voxels = np.flip(voxels, axis)
        found = on_grid(Volume(voxels.transpose(2, 1, 0), affine), case.geometry)
        assert np.array_equal(found.array, case.labels)
        assert np.allclose(found.affine, case.affine, atol=1e-9)


# The read-back


def _wrong(change):
    """Let highdicom be given something else than it should be."""

    def patch(monkeypatch):
        import highdicom.seg

        class Wrong(highdicom.seg.Segmentation):
            def __init__(self, **given):
                change(given)
                super().__init__(**given)

        monkeypatch.setattr(highdicom.seg, "Segmentation", Wrong)

    return patch


def _pixels(function):
    def change(given):
        given["pixel_array"] = np.ascontiguousarray(function(given["pixel_array"]))

    return _wrong(change)


def _swap_sources(given):
    images = given["source_images"]
    images[2].SOPInstanceUID, images[3].SOPInstanceUID = images[3].SOPInstanceUID, images[2].SOPInstanceUID


def _move_positions(given):
    for image in given["source_images"]:
        image.ImagePositionPatient = [float(v) + 0.0015 for v in image.ImagePositionPatient]


def _mirror_planes(given):
    for image in given["source_images"]:
        image.ImageOrientationPatient = [-float(v) for v in image.ImageOrientationPatient[:3]] + [
            float(v) for v in image.ImageOrientationPatient[3:]
        ]


def _swap_spacing(given):
    for image in given["source_images"]:
        image.PixelSpacing = [float(v) for v in image.PixelSpacing][::-1]


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param(_pixels(lambda a: np.roll(a, 1, 2)), id="shifted by one column"),
        pytest.param(_pixels(lambda a: np.roll(a, 1, 0)), id="shifted by one slice"),
        pytest.param(_pixels(lambda a: a[:, :, ::-1]), id="columns mirrored"),
        pytest.param(_pixels(lambda a: a[:, ::-1]), id="rows mirrored"),
        pytest.param(_pixels(lambda a: a[::-1]), id="slices reversed"),
        pytest.param(
            _pixels(lambda a: np.where(a == 1, 2, np.where(a == 2, 1, a)).astype(a.dtype)), id="segments swapped"
        ),
        pytest.param(_pixels(lambda a: np.where(a == 3, 0, a).astype(a.dtype)), id="one segment lost"),
        pytest.param(_wrong(_swap_sources), id="two images swapped in the references"),
        pytest.param(_wrong(_move_positions), id="positions moved by 0.0026 mm"),
        pytest.param(_wrong(_mirror_planes), id="orientation mirrored"),
        pytest.param(_wrong(_swap_spacing), id="row and column spacing swapped"),
    ],
)
@pytest.mark.parametrize("plane", ["axial", "oblique"])
def test_the_read_back_finds_every_mutation(tmp_path, monkeypatch, patch, plane):
    case = make_case(tmp_path, plane)
    patch(monkeypatch)
    with pytest.raises(DataError) as error:
        write(case, tmp_path / "seg.dcm")
    assert error.value.code == "read-back-failed"


def test_the_read_back_finds_one_flipped_bit(tmp_path):
    case = make_case(tmp_path)
    write(case, tmp_path / "seg.dcm")
    data = bytearray((tmp_path / "seg.dcm").read_bytes())
    data[-100] ^= 4
    (tmp_path / "seg.dcm").write_bytes(data)
    segments, _ = describe(case.labels, case.segments)
    with pytest.raises(DataError) as error:
        read_back(tmp_path / "seg.dcm", case.labels, case.affine, open_sources(case.root, case.files), segments)
    assert error.value.code == "read-back-failed"


def _set(*path_and_value):
    """Return a change of one attribute, reached by keywords and item numbers."""
    *path, keyword, value = path_and_value

    def change(ds):
        for part in path:
            ds = ds[part] if isinstance(part, int) else getattr(ds, part)
        setattr(ds, keyword, value)

    return change


def _swap_labels(ds):
    one, two = ds.SegmentSequence[0], ds.SegmentSequence[1]
    one.SegmentLabel, two.SegmentLabel = two.SegmentLabel, one.SegmentLabel


MEASURES = ("SharedFunctionalGroupsSequence", 0, "PixelMeasuresSequence", 0)
CODE = ("SegmentSequence", 1, "SegmentedPropertyTypeCodeSequence", 0)


@pytest.mark.parametrize(
    "change",
    {
        "patient id": _set("PatientID", "ANOTHER"),
        "no patient id": lambda ds: delattr(ds, "PatientID"),
        "patient name": _set("PatientName", "Another^One"),
        "study": _set("StudyInstanceUID", "1.2.3"),
        "frame of reference": _set("FrameOfReferenceUID", "1.2.3"),
        "accession number": _set("AccessionNumber", "A2"),
        "referenced series": _set("ReferencedSeriesSequence", 0, "SeriesInstanceUID", "1.2.3"),
        "a reference lost": lambda ds: ds.ReferencedSeriesSequence[0].ReferencedInstanceSequence.pop(),
        "labels swapped": _swap_labels,
        "number": _set("SegmentSequence", 0, "SegmentNumber", 9),
        "code": _set(*CODE, "CodeValue", "10200004"),
        "code meaning": _set(*CODE, "CodeMeaning", "Liver"),
        "code scheme": _set(*CODE, "CodingSchemeDesignator", "FMA"),
        "category": _set("SegmentSequence", 0, "SegmentedPropertyCategoryCodeSequence", 0, "CodeValue", "49755003"),
        "one segment more": lambda ds: ds.SegmentSequence.append(ds.SegmentSequence[0]),
        "one segment less": lambda ds: ds.SegmentSequence.pop(),
        "distance": _set(*MEASURES, "SpacingBetweenSlices", 99),
        "thickness": _set(*MEASURES, "SliceThickness", 99),
        "pixel spacing": _set(*MEASURES, "PixelSpacing", [1.25001, 0.75]),
        "no pixel spacing": lambda ds: delattr(
            ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0], "PixelSpacing"
        ),
    }.items(),
    ids=lambda item: item[0],
)
def test_the_read_back_finds_every_change_of_identity_segments_and_measures(tmp_path, change):
    case = make_case(tmp_path)
    write(case, tmp_path / "seg.dcm")
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    change[1](ds)
    ds.save_as(tmp_path / "seg.dcm")
    segments, _ = describe(case.labels, case.segments)
    with pytest.raises(DataError) as error:
        read_back(tmp_path / "seg.dcm", case.labels, case.affine, open_sources(case.root, case.files), segments)
    assert error.value.code == "read-back-failed"
    shown = f"{error.value} {error.value.numbers}"
    assert not any(value in shown for value in ("ANOTHER", "Another", "CANARYID", "Canary"))


# UIDs and bytes


def test_equal_content_gives_equal_bytes_and_one_voxel_or_second_another_uid(tmp_path):
    case = make_case(tmp_path)
    one = write(case, tmp_path / "one.dcm")
    assert write(case, tmp_path / "two.dcm") == one
    assert (tmp_path / "one.dcm").read_bytes() == (tmp_path / "two.dcm").read_bytes()
    labels = case.labels.copy()
    labels[0, 0, 0] = 1
    later = datetime(2026, 1, 2, 12, 0, 1)
    uids = {
        one.sop_instance_uid,
        write(case, tmp_path / "voxel.dcm", labels).sop_instance_uid,
        write(case, tmp_path / "second.dcm", timestamp=later).sop_instance_uid,
        write(case, tmp_path / "number.dcm", series_number=9).sop_instance_uid,
    }
    assert len(uids) == 4


def test_no_stand_in_stays_and_every_made_uid_is_its_own(tmp_path):
    from mdcli.dicom.uids import stand_in

    case = make_case(tmp_path)
    write(case, tmp_path / "seg.dcm")
    data = (tmp_path / "seg.dcm").read_bytes()
    assert not any(stand_in(p).encode() in data for p in ("series", "sop-instance", "dimension-organization"))
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    organization = ds.DimensionOrganizationSequence[0].DimensionOrganizationUID
    assert {item.DimensionOrganizationUID for item in ds.DimensionIndexSequence} == {organization}
    assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert len({organization, ds.SOPInstanceUID, ds.SeriesInstanceUID}) == 3


# Sources that lack something, and text


def _without(*keywords):
    def change(ds, k):
        for keyword in keywords:
            del ds[keyword]

    return change


def test_absent_attributes_of_type_2_are_empty_and_noted(tmp_path, judge):
    keywords = ("PatientSex", "StudyID", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate", "StudyTime")
    case = make_case(tmp_path, change=_without(*keywords))
    written = write(case, tmp_path / "seg.dcm")
    note = next(f for f in written.findings if f.code == "empty-attributes")
    assert not note.warning and all(keyword in note.message for keyword in keywords)
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    assert all(keyword in ds and not ds[keyword].value for keyword in keywords)
    assert dciodvfy_errors(judge, tmp_path / "seg.dcm") == []


def test_a_series_without_a_frame_of_reference_gets_its_own_one_always_the_same(tmp_path, judge):
    case = make_case(tmp_path, change=_without("FrameOfReferenceUID"))
    one = write(case, tmp_path / "one.dcm")
    write(case, tmp_path / "two.dcm", timestamp=datetime(2027, 1, 1))
    assert "no-frame-of-reference" in [f.code for f in one.findings if f.warning]
    frames = {pydicom.dcmread(tmp_path / name).FrameOfReferenceUID for name in ("one.dcm", "two.dcm")}
    assert len(frames) == 1
    assert dciodvfy_errors(judge, tmp_path / "one.dcm") == []


@pytest.mark.parametrize(
    ("keyword", "value"), [("PatientSex", "W"), ("PatientBirthDate", "1.2.1901"), ("StudyTime", "noon")]
)
def test_a_value_that_is_none_is_empty_and_never_shown(tmp_path, judge, capfd, keyword, value):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = make_case(tmp_path, change=lambda ds, k: ds.add_new(keyword, ds[keyword].VR, value))
    capfd.readouterr()
    written = write(case, tmp_path / "seg.dcm")
    said = " ".join(f.message for f in written.findings) + "".join(capfd.readouterr())
    assert keyword in said and value not in said
    assert not pydicom.dcmread(tmp_path / "seg.dcm")[keyword].value
    assert dciodvfy_errors(judge, tmp_path / "seg.dcm") == []


def test_a_name_that_highdicom_finds_odd_is_kept_and_not_logged(tmp_path, capfd, caplog):
    case = make_case(tmp_path, change=lambda ds, k: setattr(ds, "PatientName", "CanaryWithoutCaret"))
    write(case, tmp_path / "seg.dcm")
    assert "Canary" not in "".join(capfd.readouterr()) + caplog.text
    assert str(pydicom.dcmread(tmp_path / "seg.dcm").PatientName) == "CanaryWithoutCaret"


def test_the_slice_distance_stands_in_for_an_absent_thickness(tmp_path):
    case = make_case(tmp_path, "oblique", change=_without("SliceThickness"))
    write(case, tmp_path / "seg.dcm")
    measures = pydicom.dcmread(tmp_path / "seg.dcm").SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    assert float(measures.SliceThickness) == pytest.approx(3.0, abs=1e-6)
    assert float(measures.SpacingBetweenSlices) == pytest.approx(3.0, abs=1e-6)


CHARSETS = [
    "chrArab",
    "chrFren",
    "chrFrenMulti",
    "chrGerm",
    "chrGreek",
    "chrH31",
    "chrH32",
    "chrHbrw",
    "chrI2",
    "chrJapMulti",
    "chrJapMultiExplicitIR6",
    "chrKoreanMulti",
    "chrRuss",
    "chrX1",
    "chrX2",
]


@pytest.mark.parametrize("name", CHARSETS)
def test_a_patients_name_in_any_character_set_reads_back_the_same(tmp_path, shared_data, name):
    source = pydicom.dcmread(shared_data / "34_charsets" / "dicom" / f"{name}.dcm", stop_before_pixels=True)

    def change(ds, k):
        ds.SpecificCharacterSet = source.SpecificCharacterSet
        ds.PatientName = source.PatientName

    case = make_case(tmp_path, change=change)
    write(case, tmp_path / "seg.dcm")
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    assert str(ds.PatientName) == str(source.PatientName)
    assert ds.SpecificCharacterSet == source.SpecificCharacterSet
    case.segments["segments"][0]["name"] = "печень 肝 ü"
    write(case, tmp_path / "mixed.dcm")
    ds = pydicom.dcmread(tmp_path / "mixed.dcm")
    assert str(ds.PatientName).rstrip("=") == str(source.PatientName).rstrip("=")
    assert ds.SegmentSequence[0].SegmentLabel == "печень 肝 ü"


def test_text_that_its_character_set_does_not_decode_is_refused_without_showing_it(tmp_path, capfd):
    case = make_case(tmp_path, change=lambda ds, k: setattr(ds, "SpecificCharacterSet", "ISO_IR 192"))
    for path, _ in case.files:
        data = (case.root / path).read_bytes()
        (case.root / path).write_bytes(data.replace(b"Canary^Secretname", b"Canary^Secr\xfctname"))
    with pytest.raises(DataError) as error:
        write(case, tmp_path / "seg.dcm")
    assert error.value.code == "replacement-character"
    assert "Canary" not in str(error.value) + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"name": "x" * 65}, "segment-label-too-long"),
        ({"name": "two\\parts"}, "bad-text"),
        ({"type": {"value": "10200004", "scheme": "SCT", "meaning": "Spleen"}}, "wrong-code-meaning"),
        ({"algorithm": {"type": "MAGIC"}}, "bad-artifact"),
    ],
)
def test_what_can_not_be_written_is_refused_by_name(tmp_path, change, code):
    case = make_case(tmp_path)
    case.segments["segments"][0].update(change)
    with pytest.raises(DataError) as error:
        write(case, tmp_path / "seg.dcm")
    assert error.value.code == code
    assert CANARY not in str(error.value)


def test_a_description_of_65_characters_is_refused(tmp_path):
    case = make_case(tmp_path)
    with pytest.raises(DataError) as error:
        write(case, tmp_path / "seg.dcm", description="d" * 62)
    assert error.value.code == "series-description-too-long"


def _misfits(ds, k):
    ds.StudyID, ds.AccessionNumber, ds.PatientAge = "S" * 17, "A" * 17, "0Y"


def test_a_value_too_long_for_its_vr_is_left_out_but_never_what_ties_the_object_to_its_patient(tmp_path):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = make_case(tmp_path, change=_misfits)
        written = write(case, tmp_path / "seg.dcm")
        ds = pydicom.dcmread(tmp_path / "seg.dcm")
        note = next(f for f in written.findings if f.code == "invalid-attributes")
        assert "PatientAge" in note.message and "StudyID" in note.message and "SSS" not in note.message
        kept = next(f for f in written.findings if f.code == "invalid-identity" and f.warning)
        assert "AccessionNumber" in kept.message and "StudyID" not in kept.message and "AAA" not in kept.message
        assert "PatientAge" not in ds and (ds.StudyID, ds.AccessionNumber) == ("", "A" * 17)


@pytest.mark.parametrize("uid", ["1.2.03.4", "1.2." + "3" * 70, "1.2.abc"])
@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "FrameOfReferenceUID", "SeriesInstanceUID"])
def test_a_uid_that_is_not_valid_ties_the_object_to_its_study_all_the_same(tmp_path, keyword, uid):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = make_case(tmp_path, change=lambda ds, k: setattr(ds, keyword, uid))
        written = write(case, tmp_path / "seg.dcm")
        ds = pydicom.dcmread(tmp_path / "seg.dcm")
    finding = next(f for f in written.findings if f.code == "invalid-uid" and f.warning)
    assert keyword in finding.message and uid not in finding.message
    holder = ds.ReferencedSeriesSequence[0] if keyword == "SeriesInstanceUID" else ds
    assert holder.get_item(keyword).value == (uid + "\0" * (len(uid) % 2)).encode()


def test_no_warning_of_the_library_shows_an_image_uid_that_is_not_valid(tmp_path, recwarn):
    case = make_case(tmp_path)
    for k, path in enumerate(case.paths):
        data = (case.root / path).read_bytes()
        uid = case.geometry["slices"][k]["sop_instance_uid"].encode()
        (case.root / path).write_bytes(data.replace(uid, b"1.2.0" + b"1" * (len(uid) - 6) + str(k).encode()))
    recwarn.clear()
    written = write(case, tmp_path / "seg.dcm")
    assert "SOPInstanceUID" in next(f.message for f in written.findings if f.code == "invalid-uid")
    assert not [str(warning.message) for warning in recwarn]


def test_two_values_for_one_uid_are_refused(tmp_path):
    case = make_case(tmp_path, change=lambda ds, k: setattr(ds, "StudyInstanceUID", ["1.2.3", "1.2.4"]))
    with pytest.raises(DataError) as error:
        write(case, tmp_path / "seg.dcm")
    assert error.value.code in ("unwritable-uid", "source-unreadable")


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientName", "Canary^" + "x" * 65),
        ("PatientName", ["Canary^One", "Canary^Two"]),
        ("PatientID", ["CANARYID", "TWO"]),
        ("PatientID", "CANARY\0ID"),
        ("AccessionNumber", ["A1", "A2"]),
        ("ClinicalTrialSponsorName", "Sponsor"),
    ],
)
def test_identity_that_breaks_the_object_is_kept_and_warned_of_by_keyword(tmp_path, keyword, value):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = make_case(tmp_path, change=lambda ds, k: setattr(ds, keyword, value))
        written = write(case, tmp_path / "seg.dcm")
        found = pydicom.dcmread(tmp_path / "seg.dcm")[keyword].value
        source = pydicom.dcmread(case.root / case.paths[0])[keyword].value
    finding = next(f for f in written.findings if f.code == "invalid-identity" and f.warning)
    assert keyword in finding.message
    assert not any(text in finding.message for text in ("Canary", "CANARY", "Sponsor,", "A1"))
    assert str(found) == str(source)


@pytest.mark.parametrize("keyword", ["ReferringPhysicianName", "Manufacturer", "StudyID"])
def test_two_values_where_one_belongs_are_left_out_and_noted(tmp_path, judge, keyword):
    case = make_case(tmp_path, change=lambda ds, k: setattr(ds, keyword, ["One", "Two"]))
    written = write(case, tmp_path / "seg.dcm")
    assert any(keyword in f.message for f in written.findings)
    assert dciodvfy_errors(judge, tmp_path / "seg.dcm") == []


@pytest.mark.parametrize("value", ["CANARY", "canary", "02", ["00", "01"]])
def test_a_lossy_flag_that_is_neither_counts_as_loss(tmp_path, value):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        case = make_case(tmp_path, change=lambda ds, k: setattr(ds, "LossyImageCompression", value))
        written = write(case, tmp_path / "seg.dcm")
    assert "invalid-lossy" in [f.code for f in written.findings if f.warning]
    assert pydicom.dcmread(tmp_path / "seg.dcm").LossyImageCompression == "01"


def test_how_a_codestream_lost_something_is_said_where_the_header_is_silent(tmp_path):
    # Source: DICOM PS3.3 C.7.6.1.1.5.1, defined terms.
    for stream, method in (
        ("JPEG-LS, error up to 2", "ISO_14495_1"),
        ("JPEG 2000, irreversible wavelet", "ISO_15444_1"),
    ):
        lossy = {"slices": 6, "certain": True, "method": None, "ratio": None, "codestream": [stream]}
        case = make_case(tmp_path / method, lossy=lossy)
        write(case, tmp_path / "seg.dcm")
        ds = pydicom.dcmread(tmp_path / "seg.dcm")
        assert (ds.LossyImageCompression, ds.LossyImageCompressionMethod) == ("01", method)


def test_a_method_that_syntax_and_codestream_both_tell_is_named_once(tmp_path):
    lossy = {"slices": 6, "certain": True, "codestream": ["JPEG-LS, error up to 2", "JPEG-LS, error up to 3"]}
    case = make_case(tmp_path, lossy=lossy)
    sources = open_sources(case.root, case.files)
    sources.first.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.81"
    segments, _ = describe(case.labels, case.segments)
    written = make_seg(case.labels, case.affine, sources, segments, Request(case.segments, "0.0", NOON))
    with (tmp_path / "seg.dcm").open("wb") as file:
        written.write(file)
    assert pydicom.dcmread(tmp_path / "seg.dcm").LossyImageCompressionMethod == "ISO_14495_1"


def test_method_and_ratio_of_the_sources_are_carried_on(tmp_path, judge):
    def change(ds, k):
        ds.LossyImageCompression, ds.LossyImageCompressionRatio = "01", 10
        ds.LossyImageCompressionMethod = "ISO_15444_1"

    case = make_case(tmp_path, change=change)
    write(case, tmp_path / "seg.dcm")
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    assert (ds.LossyImageCompressionMethod, float(ds.LossyImageCompressionRatio)) == ("ISO_15444_1", 10)
    assert dciodvfy_errors(judge, tmp_path / "seg.dcm") == []
