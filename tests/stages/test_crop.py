"""The stage `crop`, run as `md` runs it; what is found on a part goes back to the images."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pydicom
import pytest

from mdcli.errors import DataError, UsageError
from mdcli.execution import Controls
from mdcli.imaging.nifti import read_nifti, write_nifti
from mdcli.phantom.study import write_study
from mdcli.stages.crop import STAGE
from mdcli.testing import ListReporter, run_stage
from mdcli.workspace import Workspace
from tests.chain import stage_of
from tests.made_rtstruct import rtstruct_of_study
from tests.made_series import workspace, write_series
from tests.test_landmark_chain import AXIAL, write_ct

# Stored values that are all different, so that every voxel is known by its value.
VALUES = np.arange(6 * 8 * 10, dtype=np.int16).reshape(6, 8, 10)
# The series has RescaleIntercept -1024.
HU = VALUES - 1024
SCHEMA = json.loads((Path(__file__).parents[2] / "mdcli" / "schemas" / "geometry.json").read_text())
ORIGIN = np.array([-10.0, 20.0, 100.0])
SIZES = np.array([1.5, 2.0, 3.0])


def segments(names, frame=...):
    """Return segments.json of structures with the values 1, 2, ..."""
    region = {"value": "309825002", "scheme": "SCT", "meaning": "Spatial and Relational Concept"}
    return {
        "schema": "md.segments/1",
        "segments": [
            {
                "value": value,
                "name": name,
                "category": region,
                "type": {"value": f"T-{value}", "scheme": "99MDCLI", "meaning": f"Test structure {value}"},
                "algorithm": {"type": "AUTOMATIC", "name": "test", "version": "1"},
            }
            for value, name in enumerate(names, start=1)
        ],
        "series_instance_uid": None,
        **({} if frame is ... else {"frame_of_reference_uid": frame}),
    }


def put_labels(ws: Path, labels, affine, names, name=None, **more):
    """Write a label map and what describes it, as a person would."""
    end = f"-{name}" if name else ""
    with (ws / f"labels{end}.nii").open("wb") as file:
        write_nifti(file, labels, affine)
    (ws / f"segments{end}.json").write_text(json.dumps(segments(names, **more)))


@pytest.fixture
def case(tmp_path):
    """Return a workspace with a small volume and one voxel of `spot`, two of `rod`."""
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "dicom", VALUES))
    run_stage(stage_of("load-volume"), ws)
    labels = np.zeros(VALUES.shape, np.uint8)
    labels[3, 4, 5] = 1
    labels[2:4, 6, 8] = 2
    put_labels(ws, labels, read_nifti(ws / "volume.nii").affine, ["spot", "rod", "nothing"])
    return ws


def geometry_of(ws, name="part"):
    """Return geometry.json of a part, held against its schema."""
    found = json.loads((ws / f"geometry-{name}.json").read_text())
    jsonschema.validate(found, SCHEMA)
    return found


def refused(ws, kind=DataError, **params):
    """Return the code that the stage refuses with; nothing is written."""
    with pytest.raises(kind) as caught:
        run_stage(STAGE, ws, as_name="part", **params)
    assert not list(ws.glob("*part*"))
    return caught.value.code


def points_of(seg: Path):
    """Return SOPInstanceUID and (x, y, z) of every labelled pixel by segment label, by the headers alone (PS3.3 C.7.6.2.1.1)."""
    data = pydicom.dcmread(seg)
    frames = data.pixel_array.reshape(-1, data.Rows, data.Columns)
    shared = data.SharedFunctionalGroupsSequence[0]
    names = {segment.SegmentNumber: segment.SegmentLabel for segment in data.SegmentSequence}
    found = {}
    for frame, groups in zip(frames, data.PerFrameFunctionalGroupsSequence, strict=True):

        def group(name, groups=groups):
            return (groups if name in groups else shared)[name].value[0]

        cosines = np.array(group("PlaneOrientationSequence").ImageOrientationPatient, float)
        rows, columns = (float(v) for v in group("PixelMeasuresSequence").PixelSpacing)
        corner = np.array(group("PlanePositionSequence").ImagePositionPatient, float)
        image = groups.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        name = names[group("SegmentIdentificationSequence").ReferencedSegmentNumber]
        for j, i in np.argwhere(frame):
            place = corner + i * columns * cosines[:3] + j * rows * cosines[3:]
            found.setdefault(name, set()).add((image, *np.round(place, 6).tolist()))
    return found


def image_at(ws, k):
    """Return the SOPInstanceUID of slice k of the whole volume."""
    return json.loads((ws / "geometry.json").read_text())["slices"][k]["sop_instance_uid"]


def test_the_part_holds_the_very_voxels_around_the_structure(case):
    reporter = ListReporter()
    run_stage(STAGE, case, as_name="part", labels=("spot",), margin=4.0, reporter=reporter)
    # 4 mm are 2 slices of 3 mm, 2 rows of 2 mm and 3 columns of 1.5 mm.
    part = read_nifti(case / "volume-part.nii")
    np.testing.assert_array_equal(part.array, HU[1:6, 2:7, 2:9])
    np.testing.assert_allclose(part.affine[:3, 3], ORIGIN + SIZES * [2, 2, 1], atol=1e-4)
    geometry = geometry_of(case)
    assert geometry["crop"] == {"k": [1, 6], "j": [2, 7], "i": [2, 9], "of": [6, 8, 10]}
    assert [entry["sop_instance_uid"] for entry in geometry["slices"]] == [image_at(case, k) for k in range(1, 6)]
    (event,) = [e for e in reporter.events if e["code"] == "cropped"]
    assert event["numbers"] == {"start": [1, 2, 2], "shape": [5, 5, 7], "percent": 36.46}


@pytest.mark.parametrize(
    ("labels", "crop"),
    [
        ((), {"k": [2, 4], "j": [4, 7], "i": [5, 9]}),
        (("spot,rod",), {"k": [2, 4], "j": [4, 7], "i": [5, 9]}),
        (("spot", "2"), {"k": [2, 4], "j": [4, 7], "i": [5, 9]}),
        (("2",), {"k": [2, 4], "j": [6, 7], "i": [8, 9]}),
        (("rod, nothing",), {"k": [2, 4], "j": [6, 7], "i": [8, 9]}),
    ],
)
def test_structures_are_named_by_value_or_name(case, labels, crop):
    run_stage(STAGE, case, as_name="part", labels=labels)
    assert geometry_of(case)["crop"] == {**crop, "of": [6, 8, 10]}


def test_a_name_with_a_comma_is_one_name(case):
    document = segments(["spot", "rod, bent"])
    (case / "segments.json").write_text(json.dumps(document))
    run_stage(STAGE, case, as_name="part", labels=("rod, bent",))
    assert geometry_of(case)["crop"]["i"] == [8, 9]


def test_an_asked_structure_without_a_voxel_is_told(case):
    reporter = ListReporter()
    run_stage(STAGE, case, as_name="part", labels=("rod", "nothing"), reporter=reporter)
    assert "structure-absent" in reporter.codes("warning")


def test_no_region_is_refused_or_on_request_the_whole(case):
    assert refused(case, labels=("nothing",)) == "empty-region"
    reporter = ListReporter()
    run_stage(STAGE, case, as_name="part", labels=("nothing",), on_empty="whole", reporter=reporter)
    assert "empty-region" in reporter.codes("warning")
    np.testing.assert_array_equal(read_nifti(case / "volume-part.nii").array, HU)
    with pytest.raises(DataError) as caught:
        run_stage(STAGE, case, as_name="other", labels=("nothing",), on_empty="whole", controls=Controls(strict=True))
    assert caught.value.code == "empty-region"


@pytest.mark.parametrize(
    ("params", "kind", "code"),
    [
        ({"labels": ("sopt",)}, UsageError, "no-such-structure"),
        ({"labels": ("9",)}, UsageError, "no-such-structure"),
        ({"margin": -1.0}, UsageError, "bad-margin"),
        ({"margin": float("nan")}, UsageError, "bad-margin"),
    ],
)
def test_a_wrong_call_is_refused(case, params, kind, code):
    assert refused(case, kind, **params) == code


def test_the_part_needs_a_name_of_its_own(case):
    with pytest.raises(UsageError) as caught:
        run_stage(STAGE, case)
    assert caught.value.code == "same-name"


def test_labels_of_another_frame_of_reference_are_refused(case):
    document = segments(["spot", "rod"], frame="1.2.3.4")
    (case / "segments.json").write_text(json.dumps(document))
    assert refused(case) == "frames-of-reference-differ"


def test_labels_of_another_grid_count_where_both_say_their_frame_of_reference(case):
    frame = json.loads((case / "geometry.json").read_text())["frame_of_reference_uid"]
    affine = np.diag([3.0, 4.0, 3.0, 1.0])
    affine[:3, 3] = ORIGIN + SIZES * [0.5, 0.5, 0]
    labels = np.zeros((6, 4, 5), np.uint8)
    # Two by two voxels of the volume each: its columns 4 and 5, its rows 2 and 3.
    labels[3, 1, 2] = 1
    put_labels(case, labels, affine, ["rough"], name="rough")
    with pytest.raises(DataError) as caught:
        run_stage(STAGE, case, as_name="part", use={"labels": "rough", "segments": "rough"})
    assert caught.value.code == "grids-differ"
    put_labels(case, labels, affine, ["rough"], name="rough", frame=frame)
    run_stage(STAGE, case, as_name="part", use={"labels": "rough", "segments": "rough"})
    assert geometry_of(case)["crop"] == {"k": [3, 4], "j": [2, 4], "i": [4, 6], "of": [6, 8, 10]}


def test_labels_saved_with_their_axes_turned_round_mark_the_same_region(case):
    found = read_nifti(case / "labels.nii")
    turned, affine = np.ascontiguousarray(found.array[:, :, ::-1]), found.affine.copy()
    affine[:3, 3] += affine[:3, 0] * 9
    affine[:3, 0] *= -1
    with (case / "labels.nii").open("wb") as file:
        write_nifti(file, turned, affine)
    run_stage(STAGE, case, as_name="part", labels=("spot",))
    assert geometry_of(case)["crop"]["i"] == [5, 6]


def test_what_was_found_on_a_part_is_written_on_the_whole_images(case):
    run_stage(STAGE, case, as_name="part", labels=("rod",), margin=2.0)
    crop = geometry_of(case)["crop"]
    assert crop == {"k": [1, 5], "j": [5, 8], "i": [6, 10], "of": [6, 8, 10]}
    part = read_nifti(case / "volume-part.nii")
    labels = np.zeros(part.array.shape, np.uint8)
    labels[1, 0, 3] = 1
    labels[3, 2, 0] = 2
    put_labels(case, labels, part.affine, ["first", "second"], name="fine")
    run_stage(
        stage_of("write-seg"), case, use={"labels": "fine", "segments": "fine", "geometry": "part"}, as_name="fine"
    )
    # Voxel (k, j, i) of the part is (k + 1, j + 5, i + 6) of the whole.
    expected = {
        "first": {(image_at(case, 2), *(ORIGIN + SIZES * [9, 5, 2]).tolist())},
        "second": {(image_at(case, 4), *(ORIGIN + SIZES * [6, 7, 4]).tolist())},
    }
    assert points_of(case / "seg-fine.dcm") == expected
    data = pydicom.dcmread(case / "seg-fine.dcm")
    assert (data.Rows, data.Columns) == (8, 10)
    referenced = {i.ReferencedSOPInstanceUID for i in data.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referenced == {image_at(case, k) for k in range(1, 5)}
    # Read onto the part again, it is what was written.
    run_stage(stage_of("read-seg"), case, seg=case / "seg-fine.dcm", use={"geometry": "part"}, as_name="again")
    again = read_nifti(case / "labels-again.nii")
    np.testing.assert_array_equal(again.array, labels)


@pytest.mark.parametrize("first", ["crop", "resample-volume"])
def test_a_part_may_be_resampled_and_a_resampled_volume_cut(case, first):
    if first == "crop":
        run_stage(STAGE, case, as_name="one", labels=("spot",), margin=6.0)
        run_stage(stage_of("resample-volume"), case, use={"volume": "one"}, as_name="two", spacing="1.5,2,1.5")
    else:
        run_stage(stage_of("resample-volume"), case, as_name="one", spacing="1.5,2,1.5")
        frame = json.loads((case / "geometry.json").read_text())["frame_of_reference_uid"]
        (case / "segments.json").write_text(json.dumps(segments(["spot", "rod"], frame=frame)))
        run_stage(STAGE, case, use={"volume": "one"}, as_name="two", labels=("spot",), margin=6.0)
    geometry_of(case, "two")
    fine = read_nifti(case / "volume-two.nii")
    # The middle of `spot`: the slice at 3 x 3 mm, of a grid with steps of 1.5 mm.
    at = np.linalg.solve(fine.affine, [*(ORIGIN + SIZES * [5, 4, 3]), 1])[:3]
    i, j, k = np.rint(at).astype(int)
    np.testing.assert_allclose(at, [i, j, k], atol=1e-3)
    labels = np.zeros(fine.array.shape, np.uint8)
    labels[k, j, i] = 1
    put_labels(case, labels, fine.affine, ["found"], name="fine")
    run_stage(
        stage_of("write-seg"), case, use={"labels": "fine", "segments": "fine", "geometry": "two"}, as_name="fine"
    )
    place = (ORIGIN + SIZES * [5, 4, 3]).tolist()
    assert points_of(case / "seg-fine.dcm") == {"found": {(image_at(case, 3), *place)}}


def test_a_part_of_a_part_goes_back_too(case):
    run_stage(STAGE, case, as_name="one", margin=4.0)
    part = read_nifti(case / "volume-one.nii")
    start = [geometry_of(case, "one")["crop"][axis][0] for axis in "kji"]
    labels = np.zeros(part.array.shape, np.uint8)
    labels[tuple(np.array([3, 4, 5]) - start)] = 1
    put_labels(case, labels, part.affine, ["spot"], name="one")
    run_stage(STAGE, case, use={"volume": "one", "labels": "one", "segments": "one"}, as_name="two", margin=2.0)
    assert geometry_of(case, "two")["crop"] == {"k": [2, 5], "j": [3, 6], "i": [3, 8], "of": [6, 8, 10]}
    np.testing.assert_array_equal(read_nifti(case / "volume-two.nii").array, HU[2:5, 3:6, 3:8])


def test_what_a_person_drew_is_inherited(case):
    run_stage(STAGE, case, as_name="part")
    assert "labels" in Workspace(case).record("volume-part").edited


@pytest.mark.slow
def test_contours_lie_on_a_part_as_on_the_whole(tmp_path):
    study = tmp_path / "study"
    write_study(study)
    ws = tmp_path / "ws"
    run_stage(stage_of("select-series"), ws, dicom=study)
    run_stage(stage_of("load-volume"), ws)
    contours = rtstruct_of_study(study, tmp_path / "rs.dcm")
    run_stage(stage_of("read-rtstruct"), ws, rtstruct=contours, as_name="whole")
    run_stage(STAGE, ws, use={"labels": "whole"}, as_name="part", margin=7.0)
    run_stage(stage_of("read-rtstruct"), ws, rtstruct=contours, use={"geometry": "part"}, as_name="onpart")
    crop = geometry_of(ws)["crop"]
    box = tuple(slice(*crop[axis]) for axis in "kji")
    assert all(side.start > 0 for side in box)
    whole, part = (read_nifti(ws / f"labels-{name}.nii").array for name in ("whole", "onpart"))
    assert part.any()
    np.testing.assert_array_equal(part, whole[box])


@pytest.mark.slow
def test_a_landmark_of_a_sheared_volume_is_found_on_a_part_at_its_millimetre(tmp_path):
    from mdcli.phantom.anatomy import LANDMARKS
    from tests.test_landmark_chain import NEAR_MM, centroids_mm

    write_ct(tmp_path / "dicom", AXIAL, (2.5, 3.0, 4.0), oblique_deg=10, tilt_deg=18.5)
    ws = tmp_path / "ws"
    run_stage(stage_of("select-series"), ws, dicom=tmp_path / "dicom")
    run_stage(stage_of("load-volume"), ws)
    run_stage(stage_of("infer"), ws, model="landmarks", as_name="region")
    names = [landmark.name for landmark in LANDMARKS]
    run_stage(STAGE, ws, use={"labels": "region"}, as_name="part", labels=(names[1], names[3]), margin=30.0)
    assert geometry_of(ws)["tilt"]["sheared"]
    run_stage(stage_of("infer"), ws, use={"volume": "part"}, model="landmarks", as_name="part")
    run_stage(stage_of("write-seg"), ws, use={"labels": "part"}, as_name="part")
    found = centroids_mm(ws / "seg-part.dcm")
    for landmark in (LANDMARKS[1], LANDMARKS[3]):
        assert np.linalg.norm(found[landmark.name] - landmark.position_mm) < NEAR_MM


@pytest.mark.slow
def test_dcmqi_finds_a_real_structure_of_a_part_where_the_contours_are(shared_data, judge, tmp_path):
    import subprocess

    import SimpleITK as sitk

    root = shared_data / "01_ct_axial_rtstruct" / "dicom"
    (contours,) = (root / "rtstruct").iterdir()
    ws = tmp_path / "ws"
    run_stage(stage_of("select-series"), ws, dicom=root / "image")
    run_stage(stage_of("load-volume"), ws)
    run_stage(stage_of("read-rtstruct"), ws, rtstruct=contours, as_name="whole")
    run_stage(STAGE, ws, use={"labels": "whole"}, as_name="part", margin=15.0)
    run_stage(stage_of("read-rtstruct"), ws, rtstruct=contours, use={"geometry": "part"}, as_name="fine")
    # The file names no code for the structure, which a SEG needs.
    document = json.loads((ws / "segments-fine.json").read_text())
    for segment in document["segments"]:
        segment["type"] = {"value": "T-1", "scheme": "99MDCLI", "meaning": "Test structure"}
    (ws / "segments-fine.json").write_text(json.dumps(document))
    run_stage(stage_of("write-seg"), ws, use={"labels": "fine"}, as_name="fine")
    (tmp_path / "out").mkdir()
    command = [judge("segimage2itkimage"), "--inputDICOM", ws / "seg-fine.dcm", "--outputDirectory", tmp_path / "out"]
    subprocess.run([*command, "--outputType", "nrrd"], check=True, capture_output=True)
    (path,) = (tmp_path / "out").glob("*.nrrd")
    image = sitk.ReadImage(path)
    found = sitk.GetArrayFromImage(image)
    start = [image.TransformIndexToPhysicalPoint([int(n) for n in at[::-1]]) for at in np.argwhere(found)]
    whole = read_nifti(ws / "labels-whole.nii")
    at = np.argwhere(whole.array)[:, ::-1]
    expected = at @ whole.affine[:3, :3].T + whole.affine[:3, 3]
    assert len(start) == len(expected) > 1000
    order = [np.lexsort(np.round(places, 1).T) for places in (np.array(start), expected)]
    np.testing.assert_allclose(np.array(start)[order[0]], expected[order[1]], atol=2e-3)
