"""The stage `write-seg`, run as `md` runs it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest

from mdcli.errors import DataError, MissingError, UsageError
from mdcli.execution import Controls
from mdcli.imaging.nifti import write_nifti
from mdcli.stage import Stage
from mdcli.stages import load_volume
from mdcli.stages.write_seg import STAGE
from mdcli.testing import ListReporter, run_stage
from mdcli.workspace import Workspace
from tests.made_series import workspace, write_series
from tests.seg_cases import make_case, make_workspace, segments_document


@pytest.fixture(autouse=True)
def _fixed_time(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767355200")  # 2026-01-02 12:00:00 UTC


def refused(workspace: Path, kind=DataError, **params) -> str:
    with pytest.raises(kind) as error:
        run_stage(STAGE, workspace, **params)
    assert not (workspace / "seg.dcm").exists()
    assert not [p.name for p in workspace.iterdir() if "seg" in p.name and p.name != "segments.json"]
    return error.value.code


def test_a_seg_is_written_and_says_which_value_is_which_segment(tmp_path):
    case = make_case(tmp_path)
    workspace = make_workspace(case, tmp_path / "ws")
    reporter = ListReporter()
    outcome = run_stage(STAGE, workspace, reporter=reporter)
    assert outcome.result == "processed" and outcome.artifacts[workspace] == ("seg",)
    event = next(e for e in reporter.events if e["code"] == "segment-numbers")
    assert event["numbers"] == {"segment_numbers": {"1": 1, "2": 2, "5": 3}}
    notes = Workspace(workspace).record("seg").happened["notes"]
    assert any(n["code"] == "segment-numbers" for n in notes)
    ds = pydicom.dcmread(workspace / "seg.dcm")
    assert (ds.ContentDate, ds.ContentTime) == ("20260102", "120000")


def test_the_same_inputs_give_the_same_bytes_in_any_time_zone(tmp_path, monkeypatch):
    case = make_case(tmp_path)
    written = []
    for zone in ("UTC", "Asia/Tokyo"):
        monkeypatch.setenv("TZ", zone)
        workspace = make_workspace(case, tmp_path / zone.replace("/", "_"))
        run_stage(STAGE, workspace)
        written.append((workspace / "seg.dcm").read_bytes())
    assert written[0] == written[1]


def test_the_sources_own_offset_holds_for_the_times_written(tmp_path):
    case = make_case(tmp_path, change=lambda ds, k: setattr(ds, "TimezoneOffsetFromUTC", "+1300"))
    workspace = make_workspace(case, tmp_path / "ws")
    run_stage(STAGE, workspace)
    ds = pydicom.dcmread(workspace / "seg.dcm")
    assert (ds.TimezoneOffsetFromUTC, ds.ContentDate, ds.ContentTime) == ("+1300", "20260103", "010000")


def test_a_bad_source_date_epoch_is_a_wrong_call(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert refused(make_workspace(make_case(tmp_path), tmp_path / "ws"), UsageError) == "bad-source-date-epoch"


def test_no_label_at_all_is_nothing_found_without_a_seg(tmp_path):
    case = make_case(tmp_path)
    workspace = make_workspace(case, tmp_path / "ws", labels=np.zeros_like(case.labels))
    outcome = run_stage(STAGE, workspace)
    assert outcome.result == "nothing-found"
    assert not (workspace / "seg.dcm").exists()
    assert Workspace(workspace).record("seg").result == "nothing-found"


def test_no_label_where_the_card_calls_that_an_error_is_refused(tmp_path):
    case = make_case(tmp_path, empty="error")
    assert refused(make_workspace(case, tmp_path / "ws", labels=np.zeros_like(case.labels))) == "empty-result"


def test_labels_on_another_grid_are_refused(tmp_path):
    case = make_case(tmp_path)
    moved = case.affine.copy()
    moved[0, 3] += 0.4
    assert refused(make_workspace(case, tmp_path / "ws", affine=moved)) == "other-grid"


def test_a_source_that_is_gone_is_missing(tmp_path):
    case = make_case(tmp_path)
    workspace = make_workspace(case, tmp_path / "ws")
    (case.root / case.paths[2]).unlink()
    assert refused(workspace, MissingError) == "source-missing"


def test_a_source_that_is_another_image_now_is_refused(tmp_path):
    case = make_case(tmp_path)
    workspace = make_workspace(case, tmp_path / "ws")
    one, two = case.root / case.paths[1], case.root / case.paths[2]
    ds = pydicom.dcmread(one)
    ds.ImagePositionPatient = pydicom.dcmread(two).ImagePositionPatient
    ds.save_as(one)
    assert refused(workspace) == "source-changed"


def test_a_header_changed_in_place_is_refused(tmp_path):
    case = make_case(tmp_path)
    workspace = make_workspace(case, tmp_path / "ws")
    for path, _ in case.files:
        stat = (case.root / path).stat()
        data = (case.root / path).read_bytes()
        (case.root / path).write_bytes(data.replace(b"CANARYID", b"OTHERPAT"))
        os.utime(case.root / path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert refused(workspace) == "source-changed"


def test_labels_of_another_series_on_the_same_grid_are_refused(tmp_path):
    one, two = make_case(tmp_path / "one"), make_case(tmp_path / "two")
    one.segments["series_instance_uid"] = two.geometry["series_instance_uid"]
    assert refused(make_workspace(one, tmp_path / "ws")) == "other-series"
    one.segments["series_instance_uid"] = one.geometry["series_instance_uid"]
    workspace = make_workspace(one, tmp_path / "both")
    run_stage(STAGE, workspace)
    (workspace / "seg.dcm").unlink()
    series = json.loads((workspace / "series.json").read_text())
    series["series"]["series_instance_uid"] = two.geometry["series_instance_uid"]
    (workspace / "series.json").write_text(json.dumps(series))
    with pytest.raises(DataError) as error:
        run_stage(STAGE, workspace)
    assert error.value.code == "other-series" and not (workspace / "seg.dcm").exists()


@pytest.mark.parametrize("number", [-3, 0, 2**31])
def test_a_series_number_that_is_none_is_a_wrong_call(tmp_path, number):
    workspace = make_workspace(make_case(tmp_path), tmp_path / "ws")
    assert refused(workspace, UsageError, series_number=number) == "bad-series-number"


def test_a_document_of_another_form_is_refused_by_its_name(tmp_path):
    case = make_case(tmp_path)
    workspace = make_workspace(case, tmp_path / "ws")
    changes = [
        ("geometry", ("slices", 0, "path"), ["a list"]),
        ("geometry", ("slices", 0, "sop_instance_uid"), ["a list"]),
        ("geometry", ("slices", 0, "k"), None),
        ("geometry", ("slices",), 7),
        ("geometry", ("affine_lps",), "text"),
        ("series", ("instances", 0, "path"), ["a list"]),
        ("series", ("instances", 0, "size"), "many"),
        ("series", ("instances", 0, "header_sha256"), None),
        ("series", ("series",), []),
        ("segments", ("segments", 0), []),
        ("segments", ("lossy",), []),
        ("segments", ("completeness",), "complete"),
        ("segments", ("made",), 3),
    ]
    for kind, where, value in changes:
        file = workspace / f"{kind}.json"
        good = file.read_text()
        document = json.loads(good)
        inner = document
        for part in where[:-1]:
            inner = inner[part]
        inner[where[-1]] = value
        file.write_text(json.dumps(document))
        with pytest.raises(DataError) as error:
            run_stage(STAGE, workspace)
        assert error.value.code == "bad-artifact" and f"{kind}.json" in error.value.message
        file.write_text(good)


def test_labels_that_another_tool_saved_in_its_own_axes_are_put_in_order(tmp_path):
    import nibabel

    case = make_case(tmp_path)
    plain, turned = (make_workspace(case, tmp_path / name) for name in ("plain", "turned"))
    image = nibabel.load(turned / "labels.nii")
    canonical = nibabel.as_closest_canonical(image)
    assert nibabel.aff2axcodes(image.affine) != nibabel.aff2axcodes(canonical.affine)
    voxels = np.asarray(canonical.dataobj).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(voxels, canonical.affine), turned / "labels.nii")
    reporter = ListReporter()
    run_stage(STAGE, turned, reporter=reporter)
    run_stage(STAGE, plain)
    assert "labels-put-in-order" in reporter.codes("info")
    one, two = (pydicom.dcmread(workspace / "seg.dcm") for workspace in (plain, turned))
    assert one.PixelData == two.PixelData
    assert one.PerFrameFunctionalGroupsSequence == two.PerFrameFunctionalGroupsSequence


def test_a_seg_that_does_not_read_back_is_never_put_in_place(tmp_path, monkeypatch):
    import highdicom.seg

    class Flipped(highdicom.seg.Segmentation):
        def __init__(self, **given):
            given["pixel_array"] = np.ascontiguousarray(given["pixel_array"][:, :, ::-1])
            super().__init__(**given)

    workspace = make_workspace(make_case(tmp_path), tmp_path / "ws")
    monkeypatch.setattr(highdicom.seg, "Segmentation", Flipped)
    assert refused(workspace) == "read-back-failed"


def test_a_second_run_does_nothing_and_a_touched_source_is_looked_at_again(tmp_path):
    case = make_case(tmp_path)
    workspace = make_workspace(case, tmp_path / "ws")
    run_stage(STAGE, workspace)
    assert run_stage(STAGE, workspace).up_to_date
    os.utime(case.root / case.paths[0])
    assert run_stage(STAGE, workspace).up_to_date
    path = case.root / case.paths[0]
    ds = pydicom.dcmread(path)
    ds.PatientID = ds.PatientID[::-1]
    ds.save_as(path)
    with pytest.raises(DataError) as error:
        run_stage(STAGE, workspace)
    assert error.value.code == "sources-differ"


@dataclass(frozen=True)
class NoParams:
    """Nothing to ask."""


def test_labels_edited_by_a_person_are_written_as_semiautomatic(tmp_path):
    case = make_case(tmp_path)
    workspace = make_workspace(case, tmp_path / "ws")
    kinds = ("series", "geometry", "segments")
    documents = {kind: json.loads((workspace / f"{kind}.json").read_text()) for kind in kinds}
    for name in ("labels.nii", *(f"{kind}.json" for kind in kinds)):
        (workspace / name).unlink()

    def fake(ws, params):
        ws.set_source_root("series", case.root)
        ws.write_volume("labels", case.labels, case.affine)
        for kind, document in documents.items():
            ws.write_json(kind, document)

    run_stage(Stage("fake-infer", NoParams, fake, writes=("labels", *kinds)), workspace)
    run_stage(STAGE, workspace)
    kinds = {s.SegmentAlgorithmType for s in pydicom.dcmread(workspace / "seg.dcm").SegmentSequence}
    assert kinds == {"AUTOMATIC"}
    edited = case.labels.copy()
    edited[0, 0, 0] = 5
    with (workspace / "labels.nii").open("wb") as file:
        write_nifti(file, edited, case.affine)
    run_stage(STAGE, workspace)
    kinds = {s.SegmentAlgorithmType for s in pydicom.dcmread(workspace / "seg.dcm").SegmentSequence}
    assert kinds == {"SEMIAUTOMATIC"}


def test_a_warning_is_an_error_under_strict(tmp_path):
    case = make_case(tmp_path)
    del case.segments["segments"][0]["type"]
    workspace = make_workspace(case, tmp_path / "ws")
    with pytest.raises(DataError) as error:
        run_stage(STAGE, workspace, controls=Controls(strict=True))
    assert error.value.code == "private-code"
    reporter = ListReporter()
    run_stage(STAGE, workspace, reporter=reporter)
    assert "private-code" in reporter.codes("warning")


def test_the_patient_is_in_the_object_and_nowhere_else(tmp_path, capfd):
    case = make_case(tmp_path)
    workspace = make_workspace(case, tmp_path / "ws")
    reporter = ListReporter()
    run_stage(STAGE, workspace, reporter=reporter)
    said = repr(reporter.events) + "".join(capfd.readouterr()) + (workspace / "seg.record.json").read_text()
    for canary in ("Canary", "CANARYID", "19010203"):
        assert canary not in said
    assert str(pydicom.dcmread(workspace / "seg.dcm").PatientName).startswith("Canary")


def _loaded(folder: Path, positions, **params) -> tuple[Path, np.ndarray]:
    """Load a made CT whose slices lie at these positions; return its workspace and the labels of a block of 12 x 16 pixels."""
    values = np.zeros((len(positions), 24, 32), np.uint16)
    series = write_series(folder / "dicom", values, ImagePositionPatient=[list(map(float, p)) for p in positions])
    place = workspace(folder / "ws", series)
    run_stage(load_volume.STAGE, place, **params)
    return place, values


def _segment(place: Path, labels: np.ndarray, affine: np.ndarray) -> None:
    with (place / "labels.nii").open("wb") as file:
        write_nifti(file, labels, affine)
    (place / "segments.json").write_text(json.dumps(segments_document(values=(1,))))


@pytest.mark.parametrize(
    "positions, params",
    [
        pytest.param([(5, 7, 0), (5, 7, 3), (5, 7, 6), (5, 7, 12), (5, 7, 15)], {"on_gap": "resample"}, id="a gap"),
        pytest.param([(5, 7, 0), (5, 7, 3), (5, 7, 6), (5, 7, 10), (5, 7, 15)], {"on_gap": "resample"}, id="uneven"),
        pytest.param([(5, 7 + k, 3 * k) for k in range(5)], {}, id="sheared"),
        pytest.param([(5, 7 + k, 3 * k) for k in range(5)], {"untilt": True}, id="untilted"),
    ],
)
def test_labels_of_tilted_and_uneven_series_lie_on_the_planes_of_their_images(tmp_path, positions, params):
    place, _ = _loaded(tmp_path, positions, **params)
    volume = Workspace(place).read_volume("volume")
    # All voxels whose centre lies in a box of the patient: x 14 to 40 mm, y 15 to 35 mm, every z.
    k, j, i = np.indices(volume.array.shape)
    mm = np.einsum("ab,bkji->akji", volume.affine, np.stack([i, j, k, np.ones_like(i)]).astype(float))
    box = (mm[0] > 14) & (mm[0] < 40) & (mm[1] > 15) & (mm[1] < 35)
    _segment(place, box.astype(np.uint8), volume.affine)
    run_stage(STAGE, place)
    seg = pydicom.dcmread(place / "seg.dcm")
    assert len(seg.PerFrameFunctionalGroupsSequence) == len(positions)
    frames = seg.pixel_array
    for frame, group in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        assert tuple(origin) in {tuple(map(float, p)) for p in positions}
        rows, columns = np.nonzero(frame)
        # PixelSpacing is [2.0, 1.5]: the box ends within a pixel of the volume's, and the nearest voxel is within
        # half a pixel more.
        x, y = origin[0] + 1.5 * columns, origin[1] + 2.0 * rows
        assert abs(x.min() - 14) <= 1.5 * 1.5 and abs(x.max() - 40) <= 1.5 * 1.5
        assert abs(y.min() - 15) <= 2.0 * 1.5 and abs(y.max() - 35) <= 2.0 * 1.5


def test_a_volume_without_images_or_with_a_fourth_axis_is_refused_by_name(tmp_path):
    workspace_path = make_workspace(make_case(tmp_path), tmp_path / "ws")
    geometry = json.loads((workspace_path / "geometry.json").read_text())
    fourth = {"name": "echo", "keywords": ["EchoTime"], "unit": "ms", "values": [1, 2]}
    for change, code in (
        ({"slices": []}, "no-sources"),
        ({"dimension": fourth}, "four-dimensional"),
        ({"spacing_plane": "detector"}, "no-patient-plane"),
        ({"slices": [entry | {"frame": 1} for entry in geometry["slices"]]}, "multi-frame-source"),
    ):
        (workspace_path / "geometry.json").write_text(json.dumps(geometry | change))
        assert refused(workspace_path) == code


def test_left_and_right_tracking_and_region_go_into_the_object(tmp_path):
    left = {"value": "7771000", "scheme": "SCT", "meaning": "Left"}
    liver = {"value": "10200004", "scheme": "SCT", "meaning": "Liver"}
    workspace_path = make_workspace(make_case(tmp_path), tmp_path / "ws")
    document = json.loads((workspace_path / "segments.json").read_text())
    for n, entry in enumerate(document["segments"]):
        entry |= {
            "type_modifiers": [left],
            "anatomic_region": liver,
            "tracking_id": f"t{n}",
            "tracking_uid": f"1.2.3.{n}",
        }
    (workspace_path / "segments.json").write_text(json.dumps(document))
    run_stage(STAGE, workspace_path)
    item = pydicom.dcmread(workspace_path / "seg.dcm").SegmentSequence[0]
    modifier = item.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence[0]
    assert (modifier.CodeValue, modifier.CodeMeaning) == ("7771000", "Left")
    assert item.AnatomicRegionSequence[0].CodeValue == "10200004"
    assert (item.TrackingID, item.TrackingUID) == ("t0", "1.2.3.0")
