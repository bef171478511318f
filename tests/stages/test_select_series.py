"""The stage `select-series`, run as `md` runs it."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile

import pydicom
import pytest
from pydicom.dataset import Dataset

from mdcli.dicom.instance import Instance
from mdcli.dicom.series import instances_from_json
from mdcli.errors import DataError, MissingError, PersonsFileError, StorageError, UsageError
from mdcli.execution import Controls, why_recorded_is_stale, why_stale
from mdcli.stages.select_series import STAGE, Params
from mdcli.testing import ListReporter, run_stage
from mdcli.workspace import Workspace
from tests.dicom.test_headers import saved

SR = "1.2.840.10008.5.1.4.1.1.88.11"


def image(uid, number=1, description="CT", modality="CT", image_type=("ORIGINAL", "PRIMARY", "AXIAL"), **more):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"{uid}.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", uid
    dataset.Modality, dataset.SeriesNumber, dataset.SeriesDescription = modality, int(uid.split(".")[-1]), description
    dataset.PatientName, dataset.PatientID = "Canary^Bird", "CANARY-1"
    dataset.ImageType, dataset.InstanceNumber = list(image_type), number
    dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 3 * number], [1, 0, 0, 0, 1, 0]
    dataset.SliceThickness = 3
    dataset.Rows, dataset.Columns, dataset.PixelRepresentation = 2, 2, 0
    dataset.PixelData = bytes([number]) * 8
    for keyword, value in more.items():
        setattr(dataset, keyword, value)
    return dataset


def put(path, dataset):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(saved(dataset))
    return path


def series(folder, uid, count=3, **more):
    for number in range(1, count + 1):
        put(folder / uid / f"{number}.dcm", image(uid, number, **more))


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "dicom"
    folder.mkdir()
    return folder


@pytest.fixture
def case(tmp_path):
    return tmp_path / "case"


def chosen(case):
    return instances_from_json(json.loads((case / "series.json").read_text()))


def refused(kind, tree, case, **params):
    with pytest.raises(kind) as error:
        run_stage(STAGE, case, dicom=tree, **params)
    assert not (case / "series.json").exists() and not (case / "series.root").exists()
    return error.value


def test_the_only_series_is_chosen_and_where_it_lies_is_noted_apart(tree, case):
    series(tree, "1.2.3.4")
    run_stage(STAGE, case, dicom=tree)
    found = chosen(case)
    assert [i.path for i in found] == ["1.2.3.4/1.dcm", "1.2.3.4/2.dcm", "1.2.3.4/3.dcm"]
    assert Workspace(case).source_root() == tree
    text = (case / "series.json").read_text()
    assert str(tree) not in text and "anary" not in text and "CANARY" not in text
    assert str(tree) not in (case / "series.record.json").read_text()


def test_pixels_are_where_the_file_says(tree, case):
    series(tree, "1.2.3.4")
    run_stage(STAGE, case, dicom=tree)
    for found in chosen(case):
        raw = (tree / found.path).read_bytes()
        assert raw[found.pixel_offset :][: found.pixel_length] == pydicom.dcmread(tree / found.path).PixelData


def test_localizers_reports_and_derived_series_are_left_out_and_counted(tree, case):
    series(tree, "1.2.3.4")
    series(tree, "1.2.3.5", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    series(tree, "1.2.3.6", image_type=("DERIVED", "SECONDARY"))
    report = image("1.2.3.7", SOPClassUID=SR, Modality="SR")
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(report, keyword)
    put(tree / "report", report)
    reporter = ListReporter()
    run_stage(STAGE, case, dicom=tree, reporter=reporter)
    assert {i.get("SeriesInstanceUID") for i in chosen(case)} == {"1.2.3.4"}
    (event,) = [e for e in reporter.events if e["code"] == "series-left-out"]
    assert event["numbers"] == {"localizer": 1, "derived": 1, "not-image": 1}


def test_a_kind_that_is_left_out_can_be_included(tree, case):
    series(tree, "1.2.3.6", image_type=("DERIVED", "SECONDARY"))
    error = refused(MissingError, tree, case)
    assert (error.code, "--include derived" in error.message) == ("no-image-series", True)
    run_stage(STAGE, case, dicom=tree, include=("derived",))
    assert len(chosen(case)) == 3


def test_an_unknown_kind_to_include_is_a_wrong_call(tree, case):
    assert refused(UsageError, tree, case, include=("everything",)).code == "bad-include"


def test_two_candidates_are_listed_with_numbers_and_a_way_to_choose(tree, case):
    series(tree, "1.2.3.4", description="Arterial")
    series(tree, "1.2.3.9", count=5, description="Venous\x1b[31m")
    error = refused(DataError, tree, case)
    assert (error.code, error.status) == ("several-series", 65)
    lines = error.message.split("\n")
    assert lines[1] == "  1. CT, series 4, 'Arterial', 3 images, axial, UID 1.2.3.4"
    assert lines[2] == "  2. CT, series 9, 'Venous\\x1b[31m', 5 images, axial, UID 1.2.3.9"
    assert "--where 'SeriesNumber = 4'" in error.hint
    run_stage(STAGE, case, dicom=tree, where="SeriesNumber = 4")
    assert len(chosen(case)) == 3


@pytest.mark.parametrize(
    "where, uid",
    [
        ("SliceThickness < 2", "1.2.3.5"),
        ("Modality = MR", "1.2.3.6"),
        ("SliceCount >= 4", "1.2.3.6"),
        ("SeriesDescription ~ '^ven' and Modality in (CT, PT)", "1.2.3.5"),
        ("not (SeriesDescription contains ven or Modality = MR)", "1.2.3.4"),
        ("AcquisitionComments = second", "1.2.3.5"),
    ],
)
def test_an_expression_chooses(tree, case, where, uid):
    series(tree, "1.2.3.4", description="Arterial")
    series(tree, "1.2.3.5", description="Venous", SliceThickness=1.5, AcquisitionComments="second")
    series(tree, "1.2.3.6", count=4, modality="MR")
    run_stage(STAGE, case, dicom=tree, where=where)
    assert {i.get("SeriesInstanceUID") for i in chosen(case)} == {uid}
    assert "second" not in (case / "series.json").read_text()


def test_a_uid_chooses_even_what_is_left_out_by_default(tree, case):
    series(tree, "1.2.3.4")
    series(tree, "1.2.3.6", image_type=("DERIVED", "SECONDARY"))
    run_stage(STAGE, case, dicom=tree, series="1.2.3.6")
    assert {i.get("SeriesInstanceUID") for i in chosen(case)} == {"1.2.3.6"}


def test_values_that_differ_within_a_series_are_seen(tree, case):
    series(tree, "1.2.3.4", count=2)
    put(tree / "1.2.3.4" / "3.dcm", image("1.2.3.4", 3, SliceThickness=9))
    error = refused(MissingError, tree, case, where="SliceThickness <= 3")
    assert error.code == "no-match"
    assert "SliceThickness <= 3: found 9" in error.message


def test_when_nothing_matches_every_series_says_why(tree, case):
    series(tree, "1.2.3.4")
    series(tree, "1.2.3.5", modality="MR")
    series(tree, "1.2.3.6", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    error = refused(MissingError, tree, case, where="Modality = PT and EchoTime > 3")
    assert (error.code, error.status) == ("no-match", 66)
    lines = error.message.split("\n")
    assert lines[1].endswith("Modality = PT: found CT; EchoTime > 3: absent")
    assert lines[2].endswith("Modality = PT: found MR; EchoTime > 3: absent")
    assert "LOCALIZER" in lines[3]


@pytest.mark.parametrize(
    "where, code",
    [("Modality", "bad-expression"), ("SlicThickness < 3", "unknown-keyword"), ("PatientName = x", "patient-keyword")],
)
def test_a_bad_expression_fails_before_any_file_is_opened(tree, case, where, code):
    assert refused(UsageError, tree / "gone", case, where=where).code == code


def test_an_empty_folder_and_one_of_junk_hold_no_dicom(tree, case):
    assert refused(MissingError, tree, case).code == "no-dicom"
    (tree / "a.dcm").write_bytes(b"hello\n")
    (tree / "b.dcm").write_bytes(bytes(128) + b"DICM")
    error = refused(MissingError, tree, case)
    assert (error.code, error.status, error.numbers) == ("no-dicom", 66, {"files": 2})


def test_images_without_pixels_are_no_image_series(tree, case):
    bare = image("1.2.3.4")
    del bare.PixelData
    put(tree / "a", bare)
    assert refused(MissingError, tree, case).code == "no-image-series"


def test_junk_is_skipped_with_a_reason_each_and_no_name_in_the_record(tree, case):
    series(tree, "1.2.3.4")
    (tree / "Canary-letter.txt").write_text("hello")
    (tree / "empty.dcm").write_bytes(b"")
    (tree / "broken").symlink_to("nowhere")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tree / "000.dcm")
    reporter = ListReporter()
    run_stage(STAGE, case, dicom=tree, reporter=reporter)
    said = {e["code"]: e["message"] for e in reporter.events}
    assert said["not-dicom"] == "1 skipped: not a DICOM file" and "empty-file" in said and "broken-link" in said
    assert any("Canary-letter.txt" in e["message"] for e in reporter.events)
    assert "Canary" not in (case / "series.record.json").read_text()
    assert len(chosen(case)) == 3
    assert not reporter.codes("warning")


def test_a_damaged_file_of_the_chosen_series_is_an_error_and_of_another_a_warning(tree, case):
    series(tree, "1.2.3.4")
    whole = saved(image("1.2.3.5"))
    (tree / "cut").write_bytes(whole[: whole.index(b"\x28\x00\x10\x00US") + 4])
    reporter = ListReporter()
    run_stage(STAGE, case, dicom=tree, reporter=reporter)
    assert "damaged-header" in reporter.codes("warning")
    shutil.rmtree(case)
    with pytest.raises(DataError, match="damaged-header"):
        run_stage(STAGE, case, dicom=tree, controls=Controls(strict=True))
    whole = saved(image("1.2.3.4", 9))
    (tree / "cut").write_bytes(whole[: whole.index(b"\x28\x00\x10\x00US") + 4])
    error = refused(DataError, tree, case)
    assert error.code == "damaged-instance" and "cut" in error.message


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_named_and_nothing_chosen(tree, case):
    series(tree, "1.2.3.4")
    (tree / "1.2.3.4" / "2.dcm").chmod(0)
    error = refused(StorageError, tree, case)
    assert (error.code, error.status) == ("unreadable", 74)
    assert "1.2.3.4/2.dcm" in error.message


def test_a_file_that_cannot_be_read_is_named_and_nothing_chosen(tree, case, monkeypatch):
    series(tree, "1.2.3.4")
    opened = os.open

    def shut(path, *rest, **more):
        if str(path).endswith("2.dcm"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *rest, **more)

    monkeypatch.setattr(os, "open", shut)
    error = refused(StorageError, tree, case)
    assert error.code == "unreadable" and "1.2.3.4/2.dcm" in error.message


def test_exact_copies_are_dropped_with_a_note_and_different_bytes_are_kept(tree, case):
    series(tree, "1.2.3.4")
    shutil.copytree(tree / "1.2.3.4", tree / "copy")
    reporter = ListReporter()
    run_stage(STAGE, case, dicom=tree, reporter=reporter)
    assert len(chosen(case)) == 3 and "exact-copies" in reporter.codes("info")
    raw = (tree / "copy" / "2.dcm").read_bytes()
    (tree / "copy" / "2.dcm").write_bytes(raw[:-1] + b"\x77")
    run_stage(STAGE, case.with_name("other"), dicom=tree)
    assert len(chosen(case.with_name("other"))) == 4


def test_two_patients_under_one_series_are_refused_without_saying_who(tree, case):
    series(tree, "1.2.3.4")
    put(tree / "other", image("1.2.3.4", 7, PatientID="CANARY-2"))
    error = refused(DataError, tree, case)
    assert error.code == "several-patients" and "CANARY" not in error.message


def test_an_image_without_pixels_stays_in_and_a_report_of_the_series_goes(tree, case):
    series(tree, "1.2.3.4")
    bare = image("1.2.3.4", 8)
    del bare.PixelData
    put(tree / "bare", bare)
    report = image("1.2.3.4", 9, SOPClassUID=SR)
    for keyword in ("PixelData", "Rows", "Columns"):
        delattr(report, keyword)
    put(tree / "report", report)
    run_stage(STAGE, case, dicom=tree)
    assert [i.path for i in chosen(case)] == ["bare", "1.2.3.4/1.dcm", "1.2.3.4/2.dcm", "1.2.3.4/3.dcm"]


def test_a_zip_file_gives_the_same_series_as_its_folder(tree, case):
    series(tree, "1.2.3.4")
    with zipfile.ZipFile(tree.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(tree.rglob("*.dcm")):
            archive.write(path, path.relative_to(tree).as_posix())
    run_stage(STAGE, case, dicom=tree)
    run_stage(STAGE, case.with_name("zipped"), dicom=tree.with_suffix(".zip"))
    zipped = chosen(case.with_name("zipped"))
    assert [
        Instance(i.path[2:], i.size, i.pixel_offset, i.pixel_length, i.header_sha256, i.attributes) for i in zipped
    ] == (chosen(case))
    assert Workspace(case.with_name("zipped")).source_root() == tree.with_suffix(".zip")
    assert run_stage(STAGE, case.with_name("zipped"), dicom=tree.with_suffix(".zip")).up_to_date


def test_one_study_of_a_tree_can_be_asked_for(tree, case):
    series(tree, "1.2.3.4")
    series(tree, "1.2.3.5", StudyInstanceUID="1.9.9")
    run_stage(STAGE, case, dicom=tree, study="1.9.9")
    assert {i.get("SeriesInstanceUID") for i in chosen(case)} == {"1.2.3.5"}
    assert refused(MissingError, tree, case.with_name("none"), study="1.0").code == "no-dicom"


def test_a_source_that_is_not_there_is_an_error(tree, case):
    assert refused(MissingError, tree / "gone", case).code == "no-source"


def test_it_runs_again_only_when_a_header_changed(tree, case):
    series(tree, "1.2.3.4")
    run_stage(STAGE, case, dicom=tree)
    assert run_stage(STAGE, case, dicom=tree).up_to_date
    os.utime(tree / "1.2.3.4" / "1.dcm", ns=(1, 1))
    assert why_stale(STAGE, Workspace(case), Params(dicom=tree)) == []
    put(tree / "1.2.3.4" / "4.dcm", image("1.2.3.4", 4))
    assert why_stale(STAGE, Workspace(case), Params(dicom=tree)) != []
    assert not run_stage(STAGE, case, dicom=tree).up_to_date
    assert len(chosen(case)) == 4


def test_a_preference_chooses_and_a_tie_is_refused(tree, case):
    series(tree, "1.2.3.4", count=3)
    series(tree, "1.2.3.5", count=4)
    series(tree, "1.2.3.6", count=4)
    error = refused(DataError, tree, case, prefer=("most-slices",))
    assert error.code == "several-series" and "2 series are equal by every preference" in error.message
    run_stage(STAGE, case, dicom=tree, prefer=("most-slices", "highest-number"))
    assert {i.get("SeriesInstanceUID") for i in chosen(case)} == {"1.2.3.6"}


def test_what_is_no_image_of_the_series_does_not_count_for_a_rule(tree, case):
    series(tree, "1.2.3.4")
    report = image("1.2.3.4", 9, SOPClassUID=SR, Modality="SR")
    for keyword in ("PixelData", "Rows", "Columns", "SliceThickness"):
        delattr(report, keyword)
    put(tree / "report", report)
    run_stage(STAGE, case, dicom=tree, where="Modality = CT and SliceThickness = 3")
    assert len(chosen(case)) == 3


def test_a_condition_on_pixels_reads_the_candidates(tree, case):
    series(tree, "1.2.3.4", RescaleSlope=1, RescaleIntercept=0)
    series(tree, "1.2.3.5", RescaleSlope=1, RescaleIntercept=-1000)
    where = "Modality = CT and BodyShare > 0.5"
    pixels = {"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PhotometricInterpretation": "MONOCHROME2"}
    for path in sorted(tree.rglob("*.dcm")):
        dataset = pydicom.dcmread(path)
        for keyword, value in pixels.items():
            setattr(dataset, keyword, value)
        dataset.SamplesPerPixel = 1
        path.write_bytes(saved(dataset))
    # Stored values are 257 (two bytes of 1) to 771: 257 to 771 HU, or -743 to -229 HU with 1 slice of 3 above -300.
    run_stage(STAGE, case, dicom=tree, where=where)
    assert {i.get("SeriesInstanceUID") for i in chosen(case)} == {"1.2.3.4"}
    assert run_stage(STAGE, case, dicom=tree, where=where).up_to_date
    os.utime(tree / "1.2.3.5" / "1.dcm", ns=(1, 1))
    assert why_stale(STAGE, Workspace(case), Params(dicom=tree, where=where)) != []


@pytest.fixture
def rules(tmp_path):
    def write(text, name="rules.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


ROLES = """
selections:
  - {name: t2, role: t2, where: SeriesDescription contains t2}
  - {name: adc, role: adc, where: SeriesDescription contains adc, required: false}
"""


def test_roles_are_written_into_one_workspace(tree, case, rules):
    series(tree, "1.2.3.4", description="T2 ax", modality="MR")
    series(tree, "1.2.3.5", count=2, description="ADC", modality="MR")
    path = rules(ROLES)
    outcome = run_stage(STAGE, case, dicom=tree, rules=path)
    assert outcome.workspaces == (case,)
    assert outcome.artifacts == {case: ("series-t2", "series-adc")}
    for role, uid, count in (("t2", "1.2.3.4", 3), ("adc", "1.2.3.5", 2)):
        found = instances_from_json(json.loads((case / f"series-{role}.json").read_text()))
        assert [i.get("SeriesInstanceUID") for i in found] == [uid] * count
        assert Workspace(case, use={"series": role}).source_root() == tree
    assert not (case / "series.json").exists()
    again = run_stage(STAGE, case, dicom=tree, rules=path)
    assert again.up_to_date and again.artifacts == outcome.artifacts
    assert str(path) not in (case / "series-t2.record.json").read_text()


def test_a_role_is_made_again_when_its_file_is_gone_or_the_rules_change(tree, case, rules):
    series(tree, "1.2.3.4", description="T2 ax", modality="MR")
    path = rules(ROLES)
    run_stage(STAGE, case, dicom=tree, rules=path)
    assert not (case / "series-adc.json").exists()
    assert run_stage(STAGE, case, dicom=tree, rules=path).up_to_date
    path.write_text(ROLES.replace("required: false", "required: true"))
    with pytest.raises(MissingError, match="for the role adc"):
        run_stage(STAGE, case, dicom=tree, rules=path)
    path.write_text(ROLES)
    (case / "series-t2.json").unlink()
    assert not run_stage(STAGE, case, dicom=tree, rules=path).up_to_date
    assert (case / "series-t2.json").exists()


def test_a_role_that_a_person_edited_is_kept(tree, case, rules):
    series(tree, "1.2.3.4", description="T2 ax", modality="MR")
    path = rules(ROLES)
    run_stage(STAGE, case, dicom=tree, rules=path)
    edited = (case / "series-t2.json").read_text().replace("T2 ax", "T2 AX")
    (case / "series-t2.json").write_text(edited)
    put(tree / "1.2.3.4" / "4.dcm", image("1.2.3.4", 4, description="T2 ax", modality="MR"))
    with pytest.raises(PersonsFileError):
        run_stage(STAGE, case, dicom=tree, rules=path)
    assert (case / "series-t2.json").read_text() == edited


def test_an_optional_role_that_matches_no_more_is_taken_away(tree, case, rules):
    series(tree, "1.2.3.4", description="T2 ax", modality="MR")
    series(tree, "1.2.3.5", description="ADC", modality="MR")
    path = rules(ROLES)
    run_stage(STAGE, case, dicom=tree, rules=path)
    shutil.rmtree(tree / "1.2.3.5")
    run_stage(STAGE, case, dicom=tree, rules=path)
    assert sorted(p.name for p in case.glob("series-*.json") if "record" not in p.name) == ["series-t2.json"]


def test_roles_of_two_patients_and_a_name_beside_roles_are_refused(tree, case, rules):
    series(tree, "1.2.3.4", description="T2 ax", modality="MR")
    series(tree, "1.2.3.5", description="ADC", modality="MR", PatientID="CANARY-2")
    path = rules(ROLES)
    error = refused(DataError, tree, case, rules=path)
    assert error.code == "several-patients" and "CANARY" not in error.message
    with pytest.raises(UsageError) as caught:
        run_stage(STAGE, case, as_name="mine", dicom=tree, rules=path)
    assert caught.value.code == "bad-as"


def test_every_match_becomes_a_child_workspace_named_by_its_series_number(tree, case):
    series(tree, "1.2.3.4", SeriesNumber=7)
    series(tree, "1.2.3.5", count=2, description="../../etc", SeriesNumber=2)
    outcome = run_stage(STAGE, case, dicom=tree, all=True)
    assert outcome.workspaces == (case / "series_002", case / "series_007")
    assert [len(chosen(case / name)) for name in ("series_007", "series_002")] == [3, 2]
    assert run_stage(STAGE, case, dicom=tree, all=True).up_to_date
    shutil.rmtree(tree / "1.2.3.5")
    assert run_stage(STAGE, case, dicom=tree, all=True).workspaces == (case / "series_007",)
    assert not (case / "series_002").exists()


def test_series_of_one_number_are_told_apart_by_their_uid(tree, case):
    series(tree, "1.2.3.4", SeriesNumber=7)
    series(tree, "1.2.3.5", SeriesNumber=7)
    names = {f"series_007_{hashlib.sha256(uid).hexdigest()[:8]}" for uid in (b"1.2.3.4", b"1.2.3.5")}
    assert {p.name for p in run_stage(STAGE, case, dicom=tree, all=True).workspaces} == names


def test_children_are_named_after_the_selections(tree, case, rules):
    series(tree, "1.2.3.4", description="arterial a", SeriesNumber=1)
    series(tree, "1.2.3.5", description="arterial b", SeriesNumber=2)
    series(tree, "1.2.3.6", description="venous", SeriesNumber=3)
    path = rules(
        "selections:\n - {name: Arterial CT, where: SeriesDescription contains arterial, all: true}\n"
        " - {name: venous, where: SeriesDescription contains venous}\n"
    )
    outcome = run_stage(STAGE, case, dicom=tree, rules=path)
    assert [p.name for p in outcome.workspaces] == ["arterial_ct_001", "arterial_ct_002", "venous"]


def test_several_selections_without_roles_mean_one_series_or_are_refused(tree, case, rules):
    series(tree, "1.2.3.4", description="arterial")
    series(tree, "1.2.3.5", description="venous")
    path = rules(
        """{"selections": [
        {"name": "a", "conditions": {"SeriesDescription": "^arterial"}},
        {"name": "b", "conditions": {"SeriesDescription": "venous$"}},
        {"name": "c", "conditions": {"Modality": "MR"}}]}""",
        "rules.json",
    )
    assert refused(DataError, tree, case, rules=path).code == "several-series"
    run_stage(STAGE, case, dicom=tree, rules=path, selection="b")
    assert {i.get("SeriesInstanceUID") for i in chosen(case)} == {"1.2.3.5"}
    error = refused(MissingError, tree, case.with_name("none"), rules=path, selection="c")
    assert error.code == "no-match" and "Modality contains MR: found CT" in error.message


@pytest.mark.parametrize(
    "params, code",
    [
        ({"rules": "R", "where": "Modality = CT"}, "two-rules"),
        ({"rules": "R", "selection": "artrial"}, "no-such-selection"),
        ({"selection": "a"}, "no-rule-file"),
        ({"monai_compat": True}, "no-rule-file"),
        ({"rules": "R", "monai_compat": True, "all": True}, "compat-alone"),
        ({"prefer": ("thinest",)}, "bad-preference"),
    ],
)
def test_a_call_that_contradicts_itself_is_wrong_before_any_file_is_opened(tree, case, rules, params, code):
    path = rules('{"selections": [{"name": "arterial", "conditions": {"Modality": "CT"}}]}')
    params = {name: path if value == "R" else value for name, value in params.items()}
    assert refused(UsageError, tree / "gone", case, **params).code == code


def test_monai_compat_takes_the_old_choice_with_a_warning(tree, case, rules):
    series(tree, "1.2.3.4", image_type=("ORIGINAL", "PRIMARY", "LOCALIZER"))
    series(tree, "1.2.3.5")
    path = rules('{"selections": [{"name": "a", "conditions": {"Modality": "CT"}}]}')
    run_stage(STAGE, case, dicom=tree, rules=path)
    assert {i.get("SeriesInstanceUID") for i in chosen(case)} == {"1.2.3.5"}
    reporter = ListReporter()
    run_stage(STAGE, case, dicom=tree, rules=path, monai_compat=True, reporter=reporter)
    assert {i.get("SeriesInstanceUID") for i in chosen(case)} == {"1.2.3.4"}
    assert "monai-compat" in reporter.codes("warning")
    path.write_text('{"selections": [{"name": "a", "conditions": {"Modality": ["CT", "MR"]}}]}')
    with pytest.raises(DataError) as caught:
        run_stage(STAGE, case, dicom=tree, rules=path, monai_compat=True)
    assert caught.value.code == "compat-crash"


def test_explain_reports_every_condition_also_when_nothing_matches_and_when_up_to_date(tree, case):
    series(tree, "1.2.3.4")
    series(tree, "1.2.3.5", modality="MR")
    for where, results in (("Modality = PT", ["no-match", "no-match"]), ("Modality = MR", ["no-match", "chosen"])):
        for _ in range(2):
            reporter = ListReporter()
            try:
                run_stage(STAGE, case, dicom=tree, where=where, explain=True, reporter=reporter)
            except MissingError as error:
                assert error.code == "no-match"
            (event,) = [e for e in reporter.events if e["code"] == "report"]
            (selection,) = event["document"]["selections"]
            assert [s["result"] for s in selection["series"]] == results
            assert where in event["message"] and "anary" not in event["message"]
    assert run_stage(STAGE, case, dicom=tree, where="Modality = MR").up_to_date


def test_a_status_says_that_nobody_knows_the_rule_file(tree, case, rules):
    series(tree, "1.2.3.4", description="T2 ax", modality="MR")
    run_stage(STAGE, case, dicom=tree, rules=rules(ROLES))
    ws = Workspace(case)
    with pytest.raises(MissingError) as caught:
        why_recorded_is_stale(STAGE, ws, ws.record("series-t2"))
    assert caught.value.code == "not-named"


def test_the_tab_key_offers_what_the_library_knows():
    from mdcli.dicom.selection import PREFERENCES
    from mdcli.dicom.series import INCLUDABLE
    from mdcli.stage import fields_of

    offered = {field.name: field.option.complete for field in fields_of(Params) if field.option.complete}
    assert list(offered["prefer"]()) == list(PREFERENCES)
    assert sorted(offered["include"]()) == sorted(INCLUDABLE)


def test_importing_the_stage_loads_nothing_heavy():
    code = (
        "import sys, mdcli.stages.select_series;"
        "print([m for m in ('numpy', 'pydicom', 'highdicom', 'SimpleITK') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# What select-series itself has to say to the hostile cases; all others reach load-volume whole.
HOSTILE = {
    "06_no_pixeldata_at_all": 66,
    "30_zero_slices": 66,
    "33_mixed_studies": 65,
    "60_only_junk": 66,
    "64_unreadable": 0 if hasattr(os, "geteuid") and os.geteuid() == 0 else 74,
}
COUNTS = {"29_one_slice": 1, "14_missing_slice": 7, "36_two_volumes_one_series": 16, "55_bomb_frames": 1}


@pytest.mark.slow
def test_every_hostile_case_is_chosen_whole_or_refused(shared_folder, shared_data, tmp_path):
    maker = shared_folder / "hostile" / "make_hostile.py"
    base = shared_data / "01_ct_axial_rtstruct" / "dicom" / "image"
    made = subprocess.run([sys.executable, maker, base, tmp_path / "hostile"], capture_output=True, check=False)
    assert made.returncode == 0, made.stderr[-500:]
    for case in sorted(p for p in (tmp_path / "hostile").iterdir() if p.is_dir()):
        expected, status = HOSTILE.get(case.name, 0), 0
        try:
            run_stage(STAGE, tmp_path / "ws" / case.name, dicom=case / "in")
        except (DataError, MissingError, StorageError) as error:
            status = error.status
            assert "Secret" not in str(error) and "SECRET" not in str(error)
        assert status == expected, case.name
        if status == 0:
            found = chosen(tmp_path / "ws" / case.name)
            assert len(found) == COUNTS.get(case.name, 8), case.name
            assert "ecret" not in (tmp_path / "ws" / case.name / "series.json").read_text()
