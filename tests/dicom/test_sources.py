"""The sources, opened again."""

from __future__ import annotations

import zipfile
from datetime import UTC, datetime

import pytest
from pydicom.dataset import Dataset

from mdcli.dicom.sources import check_sources, in_source_time, open_sources
from mdcli.errors import DataError, MissingError
from tests.seg_cases import CANARY, make_case


def refused(root, files, kind=DataError) -> str:
    with pytest.raises(kind) as error:
        open_sources(root, files)
    assert "Canary" not in str(error.value) and "CANARYID" not in str(error.value) and "1901" not in str(error.value)
    return error.value.code


def test_every_slice_has_the_plane_that_its_header_says(tmp_path):
    case = make_case(tmp_path, "oblique")
    sources = open_sources(case.root, case.files)
    for k, source in enumerate(sources.slices):
        # Source: DICOM PS3.3 equation C.7.6.2.1-1, by hand for pixel (i, j) = (2, 3).
        expected = case.affine @ [2, 3, k, 1]
        assert source.plane() @ [2, 3, 1] == pytest.approx(expected[:3], abs=1e-6)
    assert str(sources.first.PatientName) == CANARY


def test_a_zip_file_gives_the_same_as_its_folder(tmp_path):
    case = make_case(tmp_path)
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in case.paths:
            archive.write(case.root / path, f"deep/{path}")
    whole = open_sources(tmp_path / "all.zip", [(f"!/deep/{path}", size) for path, size in case.files])
    inner = open_sources(tmp_path, [(f"all.zip!/deep/{path}", size) for path, size in case.files])
    assert whole.digest == inner.digest == open_sources(case.root, case.files).digest


def test_a_file_that_is_gone_is_missing(tmp_path):
    case = make_case(tmp_path)
    files = case.files
    (case.root / case.paths[3]).unlink()
    assert refused(case.root, files, MissingError) == "source-missing"


@pytest.mark.parametrize("path", ["../out.dcm", "/etc/passwd", "a/../../out.dcm"])
def test_a_path_out_of_the_scanned_folder_is_refused(tmp_path, path):
    assert refused(tmp_path, [(path, 1)]) == "bad-artifact"


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("PatientID", "OTHER"),
        ("PatientName", "Other^Name"),
        ("PatientBirthDate", "19010204"),
        ("FrameOfReferenceUID", "1.2.3"),
        ("StudyInstanceUID", "1.2.3"),
        ("Rows", 18),
    ],
)
def test_slices_of_another_patient_or_frame_of_reference_are_refused(tmp_path, keyword, value):
    case = make_case(tmp_path, change=lambda ds, k: setattr(ds, keyword, value) if k == 4 else None)
    with pytest.raises(DataError) as error:
        open_sources(case.root, case.files)
    assert error.value.code == "sources-differ" and keyword in error.value.message
    assert str(value) not in error.value.message


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SOPClassUID"])
def test_what_no_slice_may_lack_is_named(tmp_path, keyword):
    case = make_case(tmp_path)
    import pydicom

    path = case.root / case.paths[2]
    ds = pydicom.dcmread(path)
    delattr(ds, keyword)
    ds.save_as(path)
    with pytest.raises(DataError) as error:
        open_sources(case.root, case.files)
    assert error.value.code == "source-lacks" and keyword in error.value.message and "source 3" in error.value.message


def test_a_file_of_another_instance_or_place_is_a_changed_source(tmp_path):
    case = make_case(tmp_path)
    sources = open_sources(case.root, case.files)
    entries = case.geometry["slices"]
    check_sources(sources, entries, case.headers)
    for change in ({"sop_instance_uid": "1.2.3"}, {"position_mm": [p + 0.002 for p in entries[2]["position_mm"]]}):
        with pytest.raises(DataError) as error:
            check_sources(sources, [*entries[:2], {**entries[2], **change}, *entries[3:]], case.headers)
        assert error.value.code == "source-changed"


def test_a_header_that_differs_in_anything_is_a_changed_source(tmp_path):
    case = make_case(tmp_path)
    scanned = case.headers
    path = case.root / case.paths[2]
    path.write_bytes(path.read_bytes().replace(b"\x28\x00\x52\x10", b"\x28\x00\x52\x11"))
    with pytest.raises(DataError) as error:
        check_sources(open_sources(case.root, case.files), case.geometry["slices"], scanned)
    assert error.value.code == "source-changed" and "source 3" in error.value.message


@pytest.mark.parametrize(("offset", "hour"), [("+0900", 21), ("-0330", 8), (None, 12), ("nonsense", 12)])
def test_times_are_in_the_offset_of_the_sources(offset, hour):
    first = Dataset()
    if offset:
        first.TimezoneOffsetFromUTC = offset
    assert in_source_time(datetime(2026, 1, 2, 12, tzinfo=UTC), first).hour == hour
