"""RTSTRUCTs of real systems become the voxels that other tools find; what can't be told is refused, nothing is invented."""

import json
import shutil
import subprocess
import sys

import jsonschema
import nibabel
import numpy as np
import pydicom
import pytest

from mdcli.errors import MdError
from mdcli.execution import Controls
from mdcli.stages import load_volume, read_rtstruct, read_seg, select_series, write_seg
from mdcli.testing import ListReporter, run_stage
from mdcli.workspace import Workspace
from tests.made_rtstruct import FRAME, Drawn, rtstruct_of_study, square, write_rtstruct
from tests.made_series import ROOT, write_series
from tests.test_layers import PACKAGE

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Return a workspace with a volume of 5 x 20 x 24 voxels, 1.5 x 2 x 3 mm, the first one at (-10, 20, 100)."""
    root = tmp_path_factory.mktemp("series")
    write_series(root / "dicom", np.zeros((5, 20, 24), np.uint16), FrameOfReferenceUID=FRAME)
    run_stage(select_series.STAGE, root / "ws", dicom=root / "dicom")
    run_stage(load_volume.STAGE, root / "ws")
    return root


@pytest.fixture
def ws(loaded, tmp_path):
    shutil.copytree(loaded / "ws", tmp_path / "ws")
    return tmp_path / "ws"


def read(ws, rois, reporter=None, controls=None, as_name=None, use=None, **params):
    path = rois if not isinstance(rois, list) else write_rtstruct(ws.parent / "rs.dcm", rois)
    return run_stage(
        read_rtstruct.STAGE, ws, reporter=reporter, controls=controls, as_name=as_name, use=use, rtstruct=path, **params
    )


def refused(*args, **params):
    with pytest.raises(MdError) as caught:
        read(*args, **params)
    return caught.value.code


def labels_of(ws, role="labels"):
    return np.asarray(nibabel.load(ws / f"{role}.nii").dataobj).transpose(2, 1, 0)


def segments_of(ws, role="segments"):
    document = json.loads((ws / f"{role}.json").read_text())
    jsonschema.validate(document, json.loads((PACKAGE / "schemas" / "segments.json").read_text()))
    return document


# Centres lie at x = -10 + 1.5 i, y = 20 + 2 j, z = 100 + 3 k.
ONE, TWO = square(0, 22, 6, 30, 103), square(10, 22, 16, 30, 103)
ASIDE, UP = ONE + np.array([2, 0, 0]), np.array([0, 0, 6])


def test_structures_that_do_not_overlap_become_labels(ws):
    reporter = ListReporter()
    rois = [
        Drawn("Lung_L", [ONE], colour=(1, 2, 3), algorithm="AUTOMATIC", interpreted="AVOIDANCE", number=7),
        Drawn("Liver", [TWO], colour=None, algorithm="", interpreted="", code=("10200004", "SCT", "Liver")),
    ]
    outcome = read(ws, rois, reporter)
    assert outcome.artifacts[ws] == ("labels", "segments") and outcome.result == "processed"
    expected = np.zeros((5, 20, 24), np.uint8)
    expected[1, 1:5, 7:11] = 1
    expected[1, 1:5, 14:18] = 2
    np.testing.assert_array_equal(labels_of(ws), expected)
    lung, liver = segments_of(ws)["segments"]
    assert (lung["value"], lung["name"], lung["original_number"], lung["voxels"]) == (1, "Lung_L", 7, 16)
    assert (lung["colour"], lung["algorithm"]["type"], lung["interpreted_type"]) == (
        [1, 2, 3],
        "AUTOMATIC",
        "AVOIDANCE",
    )
    assert lung["category"]["value"] == "309825002" and "type" not in lung
    assert liver["type"] == {"value": "10200004", "scheme": "SCT", "meaning": "Liver"}
    # What the file does not say is not claimed: neither a machine's work alone, nor a person's.
    assert (liver["colour"], liver["algorithm"]["type"], liver["interpreted_type"]) == (None, "SEMIAUTOMATIC", None)
    assert reporter.codes("warning") == []


def test_structures_that_overlap_become_masks_named_by_their_values(ws):
    reporter = ListReporter()
    outcome = read(ws, [Drawn("GTV", [ONE]), Drawn("PTV", [square(-4, 22, 12, 40, 103)]), Drawn("None")], reporter)
    assert outcome.artifacts[ws] == ("masks", "segments")
    assert sorted(p.name for p in (ws / "masks").iterdir()) == ["0001.nii", "0002.nii"]
    expected = np.zeros((2, 5, 20, 24), np.uint8)
    expected[0, 1, 1:5, 7:11] = expected[1, 1, 1:10, 4:15] = 1
    for value in (1, 2):
        image = nibabel.load(ws / "masks" / f"{value:04d}.nii")
        assert image.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(np.asarray(image.dataobj).transpose(2, 1, 0), expected[value - 1])
        np.testing.assert_array_equal(image.affine, nibabel.load(ws / "volume.nii").affine)
    assert [s["voxels"] for s in segments_of(ws)["segments"]] == [16, 99, 0]
    assert segments_of(ws)["read_from"]["form"] == "masks"
    assert "overlap" in reporter.codes("info") and reporter.codes("warning") == ["empty-roi"]


def test_masks_on_request_and_labels_again_leave_nothing_of_the_other(ws):
    read(ws, [Drawn("A", [ONE])], as_masks=True)
    assert (ws / "masks" / "0001.nii").exists() and not (ws / "labels.nii").exists()
    read(ws, [Drawn("A", [ONE])])
    assert (ws / "labels.nii").exists() and not (ws / "masks").exists()
    assert read(ws, [Drawn("A", [ONE])]).up_to_date


def test_rois_are_chosen_by_name(ws):
    rois = [Drawn("GTV", [ONE]), Drawn("PTV", [square(-4, 22, 12, 40, 103)]), Drawn("Cord", [TWO])]
    read(ws, rois, roi=("Cord", "GTV"))
    assert [s["name"] for s in segments_of(ws)["segments"]] == ["GTV", "Cord"] and labels_of(ws).max() == 2
    assert refused(ws, rois, roi=("gtv",)) == "no-such-roi"


def test_a_contour_in_another_is_a_hole_or_with_union_nothing_new(ws):
    inner = square(2, 24, 4, 28, 103)
    read(ws, [Drawn("A", [ONE, inner])])
    assert segments_of(ws)["segments"][0]["contours"]["nested"] == 1
    hole = int(labels_of(ws).sum())
    read(ws, [Drawn("A", [ONE, inner])], nested="union")
    # Centres within the inner one: x 2 and 3.5, y 24 and 26.
    assert (int(labels_of(ws).sum()), hole) == (16, 12)
    assert segments_of(ws)["read_from"]["nested"] == "union"


def test_a_file_that_changed_is_read_again_and_its_path_is_kept_nowhere(ws):
    read(ws, [Drawn("A", [ONE])])
    before = labels_of(ws).copy()
    assert not read(ws, [Drawn("A", [TWO])]).up_to_date
    assert (labels_of(ws) != before).any()
    moved = ws.parent / "secretname.dcm"
    (ws.parent / "rs.dcm").rename(moved)
    assert read(ws, moved).up_to_date
    for path in ws.rglob("*.json"):
        assert "secretname" not in path.read_text() and "Canaryname" not in path.read_text()
    assert refused(ws, ws.parent / "gone.dcm") == "no-source"


def test_nothing_in_any_voxel_is_a_result_of_its_own(ws):
    outcome = read(ws, [Drawn("A"), Drawn("B", [square(0.1, 22.1, 0.2, 22.2, 103)])])
    assert outcome.result == "nothing-found" and not labels_of(ws).any()
    assert segments_of(ws)["result"] == "nothing-found"


def test_another_frame_of_reference_goes_into_the_result_only_where_it_is_assumed(ws):
    rois = [Drawn("A", [ONE], frame=f"{ROOT}66")]
    assert refused(ws, rois) == "frames-of-reference-differ"
    assert not (ws / "segments.json").exists()
    reporter = ListReporter()
    read(ws, rois, reporter, assume_registered=True)
    assert reporter.codes("warning") == ["assumed-registered"]
    document = segments_of(ws)
    assert document["read_from"]["assumed_registered"] and "--assume-registered" in document["made"][0]
    read(ws, [Drawn("A", [ONE])], assume_registered=True)
    assert not segments_of(ws)["read_from"]["assumed_registered"]


@pytest.mark.parametrize(
    "contours, kinds, code",
    [
        ([square(0, 22, 6, 30, 101.5)], ["CLOSED_PLANAR"], "contour-off-plane"),
        ([square(0, 22, 6, 30, 403)], ["CLOSED_PLANAR"], "other-grid"),
        ([ONE, ASIDE], ["CLOSED_PLANAR"], "contours-overlap"),
        ([ONE, ONE], ["CLOSED_PLANAR"], "duplicate-contours"),
        ([ONE, ASIDE], ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"], "mixed-contour-types"),
        ([ONE[:, [0, 2, 1]]], ["CLOSED_PLANAR"], "contour-across-slices"),
    ],
)
def test_what_can_not_be_told_is_refused_and_nothing_written(ws, contours, kinds, code):
    before = sorted(p.name for p in ws.iterdir())
    assert refused(ws, [Drawn("A", contours, kinds=kinds)]) == code
    assert sorted(p.name for p in ws.iterdir()) == before


def test_another_study_is_warned_of(ws):
    reporter = ListReporter()
    read(ws, write_rtstruct(ws.parent / "rs.dcm", [Drawn("A", [ONE])], StudyInstanceUID=f"{ROOT}99"), reporter)
    assert reporter.codes("warning") == ["other-study"]


def test_strict_makes_a_warning_an_error(ws):
    rois = [Drawn("A", [ONE, ONE + UP])]
    assert refused(ws, rois, controls=Controls(strict=True)) == "slices-without-contour"
    read(ws, rois)
    assert segments_of(ws)["segments"][0]["contours"]["slices_without"] == [2]


def test_labels_of_another_stage_are_not_described_anew(ws):
    read(ws, [Drawn("A", [ONE])])
    run_stage(write_seg.STAGE, ws)
    run_stage(read_seg.STAGE, ws, seg=ws / "seg.dcm")
    overlapping = [Drawn("A", [ONE]), Drawn("B", [ONE])]
    assert refused(ws, overlapping) == "same-name"
    read(ws, overlapping, as_name="plan")
    assert (ws / "masks-plan" / "0002.nii").exists()


def test_what_was_read_is_written_as_a_seg_that_says_the_same(ws):
    rois = [
        Drawn("Lung_L", [ONE], colour=(255, 0, 0), algorithm="MANUAL"),
        Drawn("Liver", [TWO], algorithm="AUTOMATIC", code=("10200004", "SCT", "Liver")),
    ]
    read(ws, rois)
    run_stage(write_seg.STAGE, ws)
    seg = pydicom.dcmread(ws / "seg.dcm")
    lung, liver = seg.SegmentSequence
    assert (lung.SegmentLabel, lung.SegmentAlgorithmType) == ("Lung_L", "MANUAL")
    assert (liver.SegmentLabel, liver.SegmentAlgorithmType) == ("Liver", "AUTOMATIC")
    code = liver.SegmentedPropertyTypeCodeSequence[0]
    assert (code.CodeValue, code.CodingSchemeDesignator) == ("10200004", "SCT")
    assert int(np.unpackbits(np.frombuffer(seg.PixelData, np.uint8)).sum()) == 32


def test_the_phantoms_rtstruct_is_read_from_the_command_line(tmp_path):
    from mdcli.phantom.study import write_study

    write_study(tmp_path / "study")
    path = rtstruct_of_study(tmp_path / "study", tmp_path / "rs.dcm")
    run_stage(select_series.STAGE, tmp_path / "ws", dicom=tmp_path / "study")
    run_stage(load_volume.STAGE, tmp_path / "ws")
    command = [sys.executable, "-m", "mdcli", "read-rtstruct", str(tmp_path / "ws"), "--rtstruct", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{tmp_path / 'ws'}\n"
    assert [s["voxels"] for s in segments_of(tmp_path / "ws")["segments"]] == [4 * (400 - 100), 4 * 100]


# Real systems, and other tools' masks

CASES = {
    "01_ct_axial_rtstruct": ("GTV_Mass_CT", "CT_mask.nii.gz"),
    "02_pet_rescale_per_slice": ("GTV_Mass_PET", None),
    "03_mr_axial_rtstruct": ("GTV_Mass_MR_T1", None),
}


def real(shared_data, ws, images):
    run_stage(select_series.STAGE, ws, dicom=images, include=("derived",))
    run_stage(load_volume.STAGE, ws)
    return ws


def same_place(ours, theirs):
    """Say that two NIfTIs hold the same voxels at the same millimetres."""
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours.affine, theirs.affine, atol=1e-3)
    return np.asarray(theirs.dataobj).transpose(2, 1, 0) > 0


@pytest.mark.parametrize("case", CASES)
def test_real_contours_give_the_voxels_of_plastimatch_and_of_mirp(shared_data, tmp_path, case):
    folder = shared_data / case
    ws = real(shared_data, tmp_path / "ws", folder / "dicom" / "image")
    reporter = ListReporter()
    read(ws, folder / "dicom" / "rtstruct" / "RS.dcm", reporter)
    # The published series was given new UIDs, its contours were not.
    assert reporter.codes("warning") == ["dangling-references"]
    ours = nibabel.load(ws / "labels.nii")
    masks = [
        *(folder / "ref" / "plastimatch").glob("*.nii.gz"),
        *(folder / "ref" / "mirp_upstream").glob("*mask*.nii.gz"),
    ]
    assert len(masks) == 2
    for path in masks:
        np.testing.assert_array_equal(labels_of(ws) == 1, same_place(ours, nibabel.load(path)), err_msg=path.name)


@pytest.mark.parametrize("name", ["invalid_reference_rt", "non_existent_reference_rt"])
def test_contours_with_dangling_references_and_beyond_the_volume_are_read_and_told(shared_data, tmp_path, name):
    folder = shared_data / "28_rtstruct_mim_dangling"
    ws = real(shared_data, tmp_path / "ws", folder / "dicom" / "mock")
    reporter = ListReporter()
    read(ws, folder / "dicom" / "mock" / f"{name}.dcm", reporter)
    assert reporter.codes("warning") == ["contours-outside", "dangling-references"]
    for segment in segments_of(ws)["segments"]:
        path = folder / "ref" / "plastimatch" / f"mock__{name}.dcm" / f"{segment['name']}.nii.gz"
        theirs = same_place(nibabel.load(ws / "labels.nii"), nibabel.load(path))
        np.testing.assert_array_equal(labels_of(ws) == segment["value"], theirs)


def test_nested_contours_are_filled_as_plastimatch_does_only_with_union(shared_data, tmp_path):
    folder = shared_data / "28_rtstruct_mim_dangling"
    ws = real(shared_data, tmp_path / "ws", folder / "dicom" / "mock")
    path = folder / "dicom" / "mock" / "rt.dcm"
    assert refused(ws, path) == "frames-of-reference-differ"
    read(ws, path, assume_registered=True, nested="union")
    theirs = nibabel.load(folder / "ref" / "plastimatch" / "mock__rt.dcm" / "ROI-1.nii.gz")
    np.testing.assert_array_equal(labels_of(ws) == 1, same_place(nibabel.load(ws / "labels.nii"), theirs))
    filled = labels_of(ws).sum()
    read(ws, path, assume_registered=True)
    # The inner contour is a square of 15 mm with two corners cut by 1 x 1 / 2 mm2; a voxel is 0.488281 mm wide.
    hole = (filled - labels_of(ws).sum()) * 0.488281**2
    assert hole == pytest.approx(15 * 15 + 2.5, abs=0.488281 * 4 * 15 / 2)


@pytest.fixture(scope="module")
def hostile(shared_data, shared_folder, tmp_path_factory):
    """Make the hostile RTSTRUCTs, and load the series that they belong to."""
    maker = shared_folder / "hostile" / "make_hostile.py"
    if not maker.is_file():
        pytest.skip("the maker of hostile cases is not there")
    out = tmp_path_factory.mktemp("hostile")
    base = shared_data / "01_ct_axial_rtstruct" / "dicom"
    cases = ["r01_rtstruct_nan", "r03_rtstruct_wrong_frame", "r05_rtstruct_off_plane"]
    options = ["--rtstruct", base / "rtstruct" / "RS.dcm", "--only", *cases]
    subprocess.run([sys.executable, maker, base / "image", out, *options], check=True, capture_output=True)
    real(shared_data, out / "ws", base / "image")
    return out


@pytest.mark.parametrize(
    "case, code",
    [
        ("r01_rtstruct_nan", "bad-contour"),
        ("r03_rtstruct_wrong_frame", "frames-of-reference-differ"),
        ("r05_rtstruct_off_plane", "contour-off-plane"),
    ],
)
def test_hostile_rtstructs_are_refused(hostile, case, code):
    (path,) = (hostile / case / "in").rglob("rtstruct.dcm")
    assert refused(hostile / "ws", path) == code
    assert not Workspace(hostile / "ws").has("labels")
