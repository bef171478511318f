"""The stage `read-seg`, judged by dcmqi, by highdicom's reader and by arithmetic in millimetres."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import permutations, product
from pathlib import Path
from typing import Any

import highdicom as hd
import nibabel
import numpy as np
import pydicom
import pytest

from mdcli.errors import DataError, MissingError, UsageError
from mdcli.execution import Controls
from mdcli.imaging.nifti import read_nifti
from mdcli.stages.read_seg import STAGE
from mdcli.stages.write_seg import STAGE as WRITE_SEG
from mdcli.testing import ListReporter, run_stage
from mdcli.workspace import Workspace
from tests.dicom.test_seg_in import edited, made
from tests.seg_cases import Case, make_case, make_workspace
from tests.seg_cases import _whole_geometry as whole_geometry


def emptied(case: Case, folder: Path) -> Path:
    """Return a workspace with the geometry of a case."""
    return with_geometry(case.geometry, folder)


def with_geometry(geometry: dict[str, Any], folder: Path) -> Path:
    """Return a workspace with a geometry, completed to what its schema wants."""
    folder.mkdir()
    geometry = whole_geometry(geometry) | {"regularity": None, "tilt": None}
    geometry["completeness"] = {"stated": None, **geometry["completeness"]}
    (folder / "geometry.json").write_text(json.dumps(geometry))
    return folder


def images(case: Case) -> list[pydicom.Dataset]:
    return [pydicom.dcmread(case.root / path) for path in case.paths]


def of_real(folder: Path, where: Path) -> Path:
    """Return a workspace of a real axial series, its geometry worked out from the headers."""
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in sorted(folder.iterdir())]
    headers.sort(key=lambda ds: float(ds.ImagePositionPatient[2]))
    first = headers[0]
    assert [float(v) for v in first.ImageOrientationPatient] == [1, 0, 0, 0, 1, 0]
    positions = np.array([ds.ImagePositionPatient for ds in headers], float)
    row_spacing, column_spacing = (float(v) for v in first.PixelSpacing)
    affine = np.diag([column_spacing, row_spacing, 1.0, 1.0])
    affine[:3, 2] = (positions[-1] - positions[0]) / (len(headers) - 1)
    affine[:3, 3] = positions[0]
    slices = [
        {"k": k, "path": "x", "sop_instance_uid": str(ds.SOPInstanceUID), "position_mm": positions[k].tolist()}
        for k, ds in enumerate(headers)
    ]
    geometry = {
        "schema": "md.geometry/1",
        "series_instance_uid": str(first.SeriesInstanceUID),
        "study_instance_uid": str(first.StudyInstanceUID),
        "frame_of_reference_uid": str(first.FrameOfReferenceUID),
        "shape": [len(headers), int(first.Rows), int(first.Columns)],
        "affine_lps": affine.tolist(),
        "slices": slices,
    }
    return with_geometry(geometry, where)


def two(shape=(6, 17, 19), overlap: bool = False) -> np.ndarray:
    """Return two masks (k, j, i, segment) that no flip or swap of axes maps to themselves."""
    found = np.zeros((*shape, 2), np.uint8)
    found[1:4, 2:9, 3:7, 0] = 1
    found[1, 2, 3:12, 0] = 1
    found[3:5, 10:14, 12:15, 1] = 1
    found[4, 1, 1, 1] = 1
    if overlap:
        found[2, 8, 6:9, 1] = 1
    return found


def read(workspace: Path, seg: Path, **params: Any) -> tuple[Any, ListReporter]:
    reporter = ListReporter()
    return run_stage(STAGE, workspace, reporter=reporter, seg=seg, **params), reporter


def refused(workspace: Path, seg: Path, kind: Any = DataError, **params: Any) -> Any:
    with pytest.raises(kind) as caught:
        read(workspace, seg, **params)
    assert not [p for p in workspace.iterdir() if p.name.startswith(("labels", "masks", "segments", "scores"))]
    assert "Secretname" not in str(caught.value)
    return caught.value


def valid(path: Path) -> dict[str, Any]:
    import jsonschema

    document = json.loads(path.read_text())
    schema = Path(__file__).parents[2] / "mdcli" / "schemas" / path.name
    jsonschema.validate(document, json.loads(schema.read_text()))
    return document


def segments_of(workspace: Path) -> dict[str, Any]:
    return valid(workspace / "segments.json")


def masks_of(workspace: Path) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Return value to (mask, affine) of whatever was written."""
    if (workspace / "labels.nii").exists():
        labels = read_nifti(workspace / "labels.nii")
        return {int(v): (np.asarray(labels.array) == v, labels.affine) for v in np.unique(labels.array) if v}
    found = {}
    for path in sorted((workspace / "masks").iterdir()):
        mask = read_nifti(path)
        assert mask.array.dtype == np.uint8 and set(np.unique(mask.array)) <= {0, 1}
        found[int(path.stem)] = (np.asarray(mask.array) > 0, mask.affine)
    return found


def points(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return where the voxels of a mask (k, j, i) lie, mm, in the order of z, y, x."""
    k, j, i = np.nonzero(mask)
    places = (affine @ np.stack([i, j, k, np.ones(len(i))]))[:3].T
    return places[np.lexsort(np.round(places, 2).T)]


def same_place(one: np.ndarray, other: np.ndarray) -> None:
    assert one.shape == other.shape
    np.testing.assert_allclose(one, other, atol=2e-3)


def dcmqi_points(folder: Path, label: int, name: str) -> np.ndarray:
    image = nibabel.load(folder / name)
    mask = np.asarray(image.dataobj).transpose(2, 1, 0) == label
    return points(mask, np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine)


# Real SEGs against dcmqi's own reading of them


REAL = {
    "01": ("01_ct_axial_rtstruct", "dicom/image", "ref/dcmqi_made_seg/seg.dcm"),
    "02": ("02_pet_rescale_per_slice", "dicom/image", "ref/dcmqi_made_seg/seg.dcm"),
    "03": ("03_mr_axial_rtstruct", "dicom/image", "ref/dcmqi_made_seg/seg.dcm"),
    "04 liver": ("04_ct_3slice_dcmqi_seg", "dicom/ct", "dicom/seg/liver.dcm"),
    "04 overlaps": ("04_ct_3slice_dcmqi_seg", "dicom/ct", "dicom/seg/partial_overlaps.dcm"),
    "05 23": ("05_tiny_ct_seg_bitpacking", "dicom/23x38x3/image", "dicom/23x38x3/seg/label.seg"),
    "05 24": ("05_tiny_ct_seg_bitpacking", "dicom/24x38x3/image", "dicom/24x38x3/seg/label.seg"),
    "05 label map": ("05_tiny_ct_seg_bitpacking", "dicom/24x38x3/image", "dicom/labelmap/sparse-labelmap-noppv.dcm"),
    "05 padding": ("05_tiny_ct_seg_bitpacking", "dicom/24x38x3/image", "dicom/labelmap/sparse-labelmap-ppv5.dcm"),
}


@pytest.mark.parametrize("name", REAL)
def test_real_segs_lie_where_dcmqi_puts_them(shared_data, judge, tmp_path, name):
    case, series, file = REAL[name]
    seg = shared_data / case / file
    workspace = of_real(shared_data / case / series, tmp_path / "ws")
    read(workspace, seg)
    found = masks_of(workspace)
    (tmp_path / "dcmqi").mkdir()
    command = [judge("segimage2itkimage"), "--inputDICOM", str(seg), "--outputDirectory", str(tmp_path / "dcmqi")]
    subprocess.run([*command, "--outputType", "nifti"], check=True, capture_output=True)
    # dcmqi puts segments that don't overlap into one file.
    wanted = {}
    groups = json.loads((tmp_path / "dcmqi" / "meta.json").read_text())["segmentAttributes"]
    for n, group in enumerate(groups, 1):
        for segment in group:
            value = segment["labelID"]
            if segment["SegmentedPropertyTypeCodeSequence"]["CodeValue"] != "125040":
                wanted[value] = dcmqi_points(tmp_path / "dcmqi", value, f"{n}.nii.gz")
    wanted = {value: places for value, places in wanted.items() if len(places)}
    assert sorted(found) == sorted(wanted)
    for value, (mask, affine) in found.items():
        same_place(points(mask, affine), wanted[value])


def test_overlapping_segments_become_masks_and_say_so(shared_data, tmp_path):
    case, series, file = REAL["04 overlaps"]
    workspace = of_real(shared_data / case / series, tmp_path / "ws")
    outcome, reporter = read(workspace, shared_data / case / file)
    assert outcome.artifacts[workspace] == ("masks", "segments")
    assert "segments-overlap" in reporter.codes("info")
    document = segments_of(workspace)
    assert [s["name"] for s in document["segments"]] == ["GREEN", "ORANGE", "PURPLE", "LIGHT_BLUE", "DARK_BLUE"]
    assert {s["algorithm"]["type"] for s in document["segments"]} == {"MANUAL"}
    found = masks_of(workspace)
    assert {s["value"]: s["voxels"] for s in document["segments"]} == {v: int(m.sum()) for v, (m, _) in found.items()}


@pytest.mark.parametrize("name", ["ct_binary", "ct_binary_overlap", "ct_binary_fractional", "ct_true_fractional"])
def test_highdicoms_segs_are_read_as_highdicom_reads_them(shared_data, tmp_path, name):
    seg = shared_data / "32_segs_highdicom" / "dicom" / "seg" / f"seg_image_{name}.dcm"
    workspace = tmp_path / "ws"
    read(workspace, seg, own_grid=True)
    theirs = hd.seg.segread(seg)
    fractions = theirs.get_volume(combine_segments=False, rescale_fractional=False)
    least = 0.5 * (theirs.get("MaximumFractionalValue") or 1)
    # highdicom's affine takes (k, j, i).
    affine = np.asarray(fractions.affine)[:, [2, 1, 0, 3]]
    found = masks_of(workspace)
    for n, value in enumerate(theirs.segment_numbers):
        same_place(points(*found[value]), points(fractions.array[..., n] >= least, affine))


# Where frames lie


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal", "oblique"])
@pytest.mark.parametrize("overlap", [False, True])
def test_masks_come_back_on_any_plane(tmp_path, plane, overlap):
    case = make_case(tmp_path, plane)
    pixels = two(overlap=overlap)
    workspace = emptied(case, tmp_path / "ws")
    read(workspace, made(tmp_path / "seg.dcm", pixels, images=images(case)))
    assert (workspace / "masks").exists() == overlap
    for value, (mask, affine) in masks_of(workspace).items():
        np.testing.assert_array_equal(mask, pixels[..., value - 1])
        np.testing.assert_allclose(affine, case.affine, atol=1e-5)


TURNS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


@pytest.mark.parametrize(
    ("order", "signs"),
    [pytest.param(o, s, marks=() if n % 5 == 0 else pytest.mark.slow) for n, (o, s) in enumerate(TURNS)],
)
def test_a_seg_with_axes_swapped_or_turned_round_is_put_in_order(tmp_path, order, signs):
    case = make_case(tmp_path, "oblique")
    pixels = two()
    # highdicom's affine takes the index in the order of the array's axes.
    affine = case.affine[:, [2, 1, 0, 3]]
    turned, axes = pixels.transpose(*order, 3), affine[:, [*order, 3]].copy()
    for axis, sign in enumerate(signs):
        if sign < 0:
            turned = np.flip(turned, axis)
            axes[:3, 3] += axes[:3, axis] * (turned.shape[axis] - 1)
            axes[:3, axis] *= -1
    volume = hd.Volume(
        np.ascontiguousarray(turned),
        axes,
        coordinate_system="PATIENT",
        frame_of_reference_uid=case.geometry["frame_of_reference_uid"],
        channels={"SegmentNumber": [1, 2]},
    )
    seg = made(tmp_path / "seg.dcm", volume, images=images(case), count=2)
    workspace = emptied(case, tmp_path / "ws")
    read(workspace, seg)
    for value, (mask, _) in masks_of(workspace).items():
        np.testing.assert_array_equal(mask, pixels[..., value - 1])
    assert segments_of(workspace)["read_from"]["grid"] == "volume"


def moved(by: Any, only: int | None = None) -> Any:
    """Return an edit that moves all frames, or those of one slice (3 mm apart from -400 on), by so many mm."""

    def edit(ds):
        for group in ds.PerFrameFunctionalGroupsSequence:
            position = group.PlanePositionSequence[0]
            old = np.array(position.ImagePositionPatient, float)
            if only is None or round((old[2] + 400) / 3) == only:
                position.ImagePositionPatient = [f"{v:.6f}" for v in old + by]

    return edit


def seg_of(case: Case, path: Path, pixels: np.ndarray | None = None, edit: Any = None, **more: Any) -> Path:
    made(path, two() if pixels is None else pixels, images=images(case), **more)
    return edited(path, edit) if edit else path


def test_a_grid_beside_the_volumes_is_refused_with_both_affines(tmp_path):
    case = make_case(tmp_path)
    seg = seg_of(case, tmp_path / "seg.dcm", edit=moved([0.4, 0, 0]))
    error = refused(emptied(case, tmp_path / "ws"), seg)
    assert error.code == "other-grid" and "--own-grid" in error.hint and "--resample" in error.hint
    assert error.numbers["off_mm"] == pytest.approx(
        0.35, abs=1e-4
    )  # columns are 0.75 mm apart: the next is 0.35 mm away
    np.testing.assert_allclose(error.numbers["volume_affine_lps"], case.affine)
    expected = case.affine.copy()
    expected[:3, 3] = (
        pydicom.dcmread(seg).PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient
    )
    assert expected[0, 3] == pytest.approx(case.affine[0, 3] + 0.4)
    np.testing.assert_allclose(error.numbers["seg_affine_lps"], expected, atol=1e-5)


@pytest.mark.parametrize("by", [[0, 0.01, 0], [0, 0, 0.01], [0.002, 0, 0]], ids=["a row", "through", "2 um"])
def test_a_hundredth_of_a_millimetre_is_another_grid(tmp_path, by):
    case = make_case(tmp_path)
    assert (
        refused(emptied(case, tmp_path / "ws"), seg_of(case, tmp_path / "seg.dcm", edit=moved(by))).code == "other-grid"
    )


def test_a_position_with_few_decimals_is_taken_as_rounded(tmp_path):
    case = make_case(tmp_path)

    def rounded(ds):
        for group in ds.PerFrameFunctionalGroupsSequence:
            position = group.PlanePositionSequence[0]
            position.ImagePositionPatient = [f"{float(v) + 0.004:.2f}" for v in position.ImagePositionPatient]

    workspace = emptied(case, tmp_path / "ws")
    read(workspace, seg_of(case, tmp_path / "seg.dcm", edit=rounded))
    assert sorted(masks_of(workspace)) == [1, 2]


def test_another_pixel_spacing_or_direction_is_another_grid(tmp_path):
    case = make_case(tmp_path)

    def spacing(ds):
        measures = ds.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        measures.PixelSpacing = [1.25, 0.76]

    def turned(ds):
        ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient = [
            *(np.cos(0.01), np.sin(0.01), 0),
            *(-np.sin(0.01), np.cos(0.01), 0),
        ]

    for n, edit in enumerate((spacing, turned)):
        seg = seg_of(case, tmp_path / f"{n}.dcm", edit=edit)
        assert refused(emptied(case, tmp_path / f"ws{n}"), seg).code == "other-grid"


def test_a_slices_own_position_counts_as_much_as_the_uniform_grid(tmp_path):
    off = [0.0, 0.03, -0.02, 0.04, -0.01, 0.0]

    def jittered(ds, k):
        x, y, z = ds.ImagePositionPatient
        ds.ImagePositionPatient = [x, y, float(z) + off[k]]

    case = make_case(tmp_path, change=jittered)
    seg = seg_of(case, tmp_path / "seg.dcm")
    workspace = emptied(case, tmp_path / "ws")
    read(workspace, seg)
    np.testing.assert_array_equal(masks_of(workspace)[1][0], two()[..., 0])
    # A frame where the affine alone puts the slice is on the grid too.
    read(emptied(case, tmp_path / "other"), seg_of(case, tmp_path / "uniform.dcm", edit=moved([0, 0, -0.03], only=1)))
    between = seg_of(case, tmp_path / "between.dcm", edit=moved([0, 0, -0.015], only=1))
    assert refused(emptied(case, tmp_path / "between"), between).code == "other-grid"


def test_frames_of_a_part_of_the_slice_lie_in_their_place(tmp_path):
    case = make_case(tmp_path)
    pixels = two()
    part = np.ascontiguousarray(pixels[:, 1:15, 1:16])
    affine = case.affine[:, [2, 1, 0, 3]].copy()
    affine[:3, 3] += case.affine[:3, 0] + case.affine[:3, 1]
    volume = hd.Volume(
        part,
        affine,
        coordinate_system="PATIENT",
        frame_of_reference_uid=case.geometry["frame_of_reference_uid"],
        channels={"SegmentNumber": [1, 2]},
    )
    workspace = emptied(case, tmp_path / "ws")
    read(workspace, made(tmp_path / "seg.dcm", volume, images=images(case), count=2))
    for value, (mask, _) in masks_of(workspace).items():
        np.testing.assert_array_equal(mask, pixels[..., value - 1])


def test_voxels_beside_the_volume_are_never_dropped(tmp_path):
    case = make_case(tmp_path)
    seg = seg_of(case, tmp_path / "seg.dcm", edit=moved(case.affine[:3, 2] * 2))
    error = refused(emptied(case, tmp_path / "ws"), seg)
    assert (error.code, error.numbers["voxels"]) == ("outside-volume", int(two()[4].sum()))


def test_frames_without_a_plane_lie_on_the_image_they_refer_to(tmp_path):
    case = make_case(tmp_path, shape=(1, 17, 19))
    pixels = two((6, 17, 19))[2:3]
    pixels[0, 3, 4, 1] = 1
    pixels[0, 3, 4, 0] = 0

    def planar(ds):
        del ds.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
        for group in ds.PerFrameFunctionalGroupsSequence:
            del group.PlanePositionSequence

    seg = seg_of(case, tmp_path / "seg.dcm", pixels, planar)
    workspace = emptied(case, tmp_path / "ws")
    read(workspace, seg)
    for value, (mask, _) in masks_of(workspace).items():
        np.testing.assert_array_equal(mask, pixels[..., value - 1])
    # The millimetres of a projection image are not the patient's, whatever a SEG says.
    detector = emptied(case, tmp_path / "detector")
    geometry = json.loads((detector / "geometry.json").read_text()) | {"spacing_plane": "detector"}
    (detector / "geometry.json").write_text(json.dumps(geometry))
    read(detector, seg_of(case, tmp_path / "patient.dcm", pixels, moved([5, 0, 0])))
    np.testing.assert_array_equal(masks_of(detector)[1][0], pixels[..., 0])
    other = make_case(tmp_path / "more", shape=(1, 17, 19))
    other.geometry["frame_of_reference_uid"] = case.geometry["frame_of_reference_uid"]
    assert refused(emptied(other, tmp_path / "other"), seg).code == "seg-without-plane"


def test_a_frame_that_refers_to_another_slice_is_told_of(tmp_path):
    case = make_case(tmp_path)

    def exchanged(ds):
        groups = ds.PerFrameFunctionalGroupsSequence
        first, last = (groups[n].DerivationImageSequence for n in (0, 2))
        groups[0].DerivationImageSequence, groups[2].DerivationImageSequence = last, first

    workspace = emptied(case, tmp_path / "ws")
    _, reporter = read(workspace, seg_of(case, tmp_path / "seg.dcm", edit=exchanged))
    assert "reference-differs" in reporter.codes("warning")
    np.testing.assert_array_equal(masks_of(workspace)[1][0], two()[..., 0])


# Other grids


def nearest(pixels: np.ndarray, theirs: np.ndarray, shape: tuple[int, ...], ours: np.ndarray) -> np.ndarray:
    """Return a mask on another grid, voxel by voxel: the nearest voxel's value, nothing beyond half a voxel outside."""
    out = np.zeros(shape, bool)
    for k, j, i in np.ndindex(*shape):
        at = np.linalg.solve(theirs, ours @ [i, j, k, 1])[:3]
        index = tuple(int(np.floor(v + 0.5)) for v in at[::-1])
        if all(0 <= n < size for n, size in zip(index, pixels.shape, strict=True)):
            out[k, j, i] = pixels[index]
    return out


def test_another_grid_is_kept_on_request(tmp_path):
    case = make_case(tmp_path)
    by = np.array([0.4, 0.2, 0.1])
    seg = seg_of(case, tmp_path / "seg.dcm", edit=moved(by))
    workspace = emptied(case, tmp_path / "ws")
    read(workspace, seg, own_grid=True)
    document = segments_of(workspace)
    assert document["read_from"]["grid"] == "own"
    for value, (mask, affine) in masks_of(workspace).items():
        wanted = case.affine.copy()
        wanted[:3, 3] += by
        same_place(points(mask, affine), points(two()[..., value - 1], wanted))


def test_a_seg_alone_needs_no_volume_on_its_own_grid(tmp_path):
    case = make_case(tmp_path)
    seg = seg_of(case, tmp_path / "seg.dcm")
    error = refused(tmp_path, seg, MissingError)
    assert error.code == "no-artifact"
    read(tmp_path / "ws", seg, own_grid=True)
    same_place(points(*masks_of(tmp_path / "ws")[2]), points(two()[..., 1], case.affine))


@pytest.mark.parametrize("overlap", [False, True])
def test_another_grid_is_resampled_by_nearest_neighbours_on_request(tmp_path, overlap):
    case = make_case(tmp_path)
    by = np.array([0.3, 0.5, 1.1])
    pixels = two(overlap=overlap)
    seg = seg_of(case, tmp_path / "seg.dcm", pixels, moved(by), omit_empty_frames=False)
    workspace = emptied(case, tmp_path / "ws")
    _, reporter = read(workspace, seg, resample=True)
    assert "resampled" in reporter.codes("warning")
    theirs = case.affine.copy()
    theirs[:3, 3] += by
    for value, (mask, affine) in masks_of(workspace).items():
        np.testing.assert_allclose(affine, case.affine, atol=1e-5)
        np.testing.assert_array_equal(mask, nearest(pixels[..., value - 1], theirs, case.shape, case.affine))
    document = segments_of(workspace)
    assert document["read_from"]["grid"] == "resampled" and any("--resample" in m for m in document["made"])


def test_what_resampling_loses_outside_is_counted(tmp_path):
    case = make_case(tmp_path)
    by = case.affine[:3, 2] * 2.25
    workspace = emptied(case, tmp_path / "ws")
    _, reporter = read(workspace, seg_of(case, tmp_path / "seg.dcm", edit=moved(by)), resample=True)
    # 2.25 slices up, the centres of slices 5 and 6 leave; of those of slice 4, 5.25 is nearer to 5 than to 6.
    lost = int(two()[4:].sum())
    assert segments_of(workspace)["read_from"]["outside_voxels"] == lost
    assert "outside-volume" in reporter.codes("warning")


def test_a_seg_on_the_volumes_grid_is_not_resampled(tmp_path):
    case = make_case(tmp_path)
    workspace = emptied(case, tmp_path / "ws")
    _, reporter = read(workspace, seg_of(case, tmp_path / "seg.dcm"), resample=True)
    assert reporter.codes("warning") == [] and segments_of(workspace)["read_from"]["grid"] == "volume"


def test_empty_planes_that_were_left_out_keep_their_room_on_the_own_grid(tmp_path):
    case = make_case(tmp_path)
    pixels = two()[..., :1].copy()
    pixels[2] = 0
    read(tmp_path / "ws", seg_of(case, tmp_path / "seg.dcm", pixels), own_grid=True)
    mask, affine = masks_of(tmp_path / "ws")[1]
    assert mask.shape == (3, 17, 19)
    same_place(points(mask, affine), points(pixels[..., 0], case.affine))


def test_frames_on_no_regular_grid_are_refused(tmp_path):
    case = make_case(tmp_path)
    seg = seg_of(case, tmp_path / "seg.dcm", edit=moved([0, 0, 0.9], only=2))
    with pytest.raises(DataError) as caught:
        read(tmp_path / "ws", seg, own_grid=True)
    assert caught.value.code == "seg-irregular"


# Frames of reference


def test_another_frame_of_reference_is_refused_unless_assumed(tmp_path):
    case = make_case(tmp_path)
    seg = seg_of(case, tmp_path / "seg.dcm", edit=lambda ds: setattr(ds, "FrameOfReferenceUID", "1.2.3"))
    workspace = emptied(case, tmp_path / "ws")
    assert refused(workspace, seg).code == "frames-of-reference-differ"
    _, reporter = read(workspace, seg, assume_registered=True)
    assert "assumed-registered" in reporter.codes("warning")
    document = segments_of(workspace)
    assert document["read_from"]["assumed_registered"] and any("--assume-registered" in m for m in document["made"])


def test_without_a_frame_of_reference_the_references_count(tmp_path):
    case = make_case(tmp_path)
    seg = seg_of(case, tmp_path / "seg.dcm", edit=lambda ds: delattr(ds, "FrameOfReferenceUID"))
    read(emptied(case, tmp_path / "ws"), seg)
    other = make_case(tmp_path / "more")
    assert refused(emptied(other, tmp_path / "other"), seg).code == "frames-of-reference-differ"


def test_images_that_the_volume_lacks_and_another_study_are_told_of(tmp_path):
    case = make_case(tmp_path)
    seg = seg_of(case, tmp_path / "seg.dcm", edit=lambda ds: setattr(ds, "StudyInstanceUID", "1.2.3"))
    case.geometry["slices"][0]["sop_instance_uid"] = "1.2.3.4"
    _, reporter = read(emptied(case, tmp_path / "ws"), seg)
    assert reporter.codes("warning") == ["other-study", "references-missing"]
    assert next(e for e in reporter.events if e["code"] == "references-missing")["numbers"]["missing"] == 1


# Fractions


def test_fractions_are_cut_at_a_share_of_their_maximum(tmp_path):
    case = make_case(tmp_path)
    pixels = np.zeros((6, 17, 19, 1), np.float64)
    pixels[2, 3, 4:9, 0] = np.array([0, 99, 100, 101, 200]) / 200
    seg = seg_of(case, tmp_path / "seg.dcm", pixels, kind="FRACTIONAL", max_fractional_value=200)
    for threshold, found in ((0.5, [0, 0, 1, 1, 1]), (0.505, [0, 0, 0, 1, 1]), (1.0, [0, 0, 0, 0, 1])):
        workspace = emptied(case, tmp_path / f"ws{threshold}")
        read(workspace, seg, threshold=threshold)
        assert masks_of(workspace)[1][0][2, 3, 4:9].tolist() == found
        assert segments_of(workspace)["read_from"]["threshold"] == threshold
    for wrong in (0, 1.5, float("nan")):
        assert refused(emptied(case, tmp_path / f"no{wrong}"), seg, UsageError, threshold=wrong).code == "bad-threshold"


def test_fractions_themselves_are_written_on_request(tmp_path):
    case = make_case(tmp_path)
    pixels = np.zeros((6, 17, 19, 2), np.float64)
    pixels[2, 3, 4:7, 0] = np.array([50, 100, 200]) / 200
    pixels[4, 5, 6, 1] = 0.25
    seg = seg_of(case, tmp_path / "seg.dcm", pixels, kind="FRACTIONAL", max_fractional_value=200)
    workspace = emptied(case, tmp_path / "ws")
    read(workspace, seg, scores=True)
    listed = valid(workspace / "scores" / "scores.json")
    assert (listed["kind"], listed["shape"]) == ("probability", [6, 17, 19])
    np.testing.assert_allclose(listed["affine_lps"], case.affine)
    for entry in listed["classes"]:
        scores = np.load(workspace / "scores" / entry["file"], allow_pickle=False)
        assert scores.dtype == np.float16
        np.testing.assert_array_equal(scores, pixels[..., entry["value"] - 1].astype(np.float16))
    plain = seg_of(case, tmp_path / "plain.dcm")
    assert refused(emptied(case, tmp_path / "no"), plain, scores=True).code == "no-scores"


# What is said twice, or not at all


def doubled(change: bool) -> Any:
    def edit(ds):
        import copy

        groups = ds.PerFrameFunctionalGroupsSequence
        bits = np.unpackbits(np.frombuffer(ds.PixelData, np.uint8), bitorder="little")
        size = ds.Rows * ds.Columns
        frames = [bits[n * size : (n + 1) * size] for n in range(len(groups))]
        again = frames[0].copy()
        again[5] ^= change
        ds.PerFrameFunctionalGroupsSequence = [*groups, copy.deepcopy(groups[0])]
        ds.NumberOfFrames = len(groups) + 1
        data = np.packbits(np.concatenate([*frames, again]), bitorder="little").tobytes()
        ds.PixelData = data + b"\0" * (len(data) % 2)

    return edit


def test_two_frames_of_one_segment_on_one_plane_must_be_equal(tmp_path):
    case = make_case(tmp_path)
    assert (
        refused(emptied(case, tmp_path / "a"), seg_of(case, tmp_path / "a.dcm", edit=doubled(True))).code
        == "seg-broken"
    )
    _, reporter = read(emptied(case, tmp_path / "b"), seg_of(case, tmp_path / "b.dcm", edit=doubled(False)))
    assert "doubled-frames" in reporter.codes("info")
    np.testing.assert_array_equal(masks_of(tmp_path / "b")[1][0], two()[..., 0])


def test_a_value_that_no_segment_has_is_refused(tmp_path):
    case = make_case(tmp_path)
    labels = two()[..., 0] + 2 * two()[..., 1]

    def without(ds):
        ds.SegmentSequence = [s for s in ds.SegmentSequence if s.SegmentNumber != 2]

    seg = seg_of(case, tmp_path / "seg.dcm", labels, without, kind="LABELMAP")
    error = refused(emptied(case, tmp_path / "ws"), seg)
    assert (error.code, error.numbers["value"]) == ("seg-broken", 2)


def test_a_label_map_keeps_its_values(tmp_path):
    case = make_case(tmp_path)
    labels = two()[..., 0].astype(np.uint16) + 2 * two()[..., 1]
    labels[0, 0, 0] = 400
    workspace = emptied(case, tmp_path / "ws")
    read(workspace, seg_of(case, tmp_path / "seg.dcm", labels, kind="LABELMAP"))
    np.testing.assert_array_equal(read_nifti(workspace / "labels.nii").array, labels)
    assert segments_of(workspace)["read_from"]["segmentation_type"] == "LABELMAP"


def test_a_seg_without_a_voxel_is_nothing_found(tmp_path):
    case = make_case(tmp_path)

    def emptied_pixels(ds):
        ds.PixelData = bytes(len(ds.PixelData))

    workspace = emptied(case, tmp_path / "ws")
    outcome, _ = read(workspace, seg_of(case, tmp_path / "seg.dcm", edit=emptied_pixels))
    assert outcome.result == "nothing-found"
    document = segments_of(workspace)
    assert document["result"] == "nothing-found" and [s["voxels"] for s in document["segments"]] == [0, 0]
    assert not read_nifti(workspace / "labels.nii").array.any()


def test_masks_are_written_on_request(tmp_path):
    case = make_case(tmp_path)
    seg = seg_of(case, tmp_path / "seg.dcm")
    workspace = emptied(case, tmp_path / "ws")
    read(workspace, seg)
    outcome, _ = read(workspace, seg, as_masks=True)
    assert outcome.artifacts[workspace] == ("masks", "segments")
    assert sorted(p.name for p in (workspace / "masks").iterdir()) == ["0001.nii", "0002.nii"]
    assert not (workspace / "labels.nii").exists()


# The workspace


def test_a_seg_that_md_wrote_comes_back_and_is_written_again_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767355200")
    case = make_case(tmp_path)
    first, second = make_workspace(case, tmp_path / "first"), emptied(case, tmp_path / "second")
    (first / "geometry.json").write_bytes((second / "geometry.json").read_bytes())
    run_stage(WRITE_SEG, first)
    for name in ("series.json", "series.root"):
        (second / name).write_bytes((first / name).read_bytes())
    read(second, first / "seg.dcm")
    run_stage(WRITE_SEG, second)
    one, other = (pydicom.dcmread(ws / "seg.dcm") for ws in (first, second))
    assert one.PixelData == other.PixelData
    for before, after in zip(one.SegmentSequence, other.SegmentSequence, strict=True):
        for keyword in (
            "SegmentLabel",
            "SegmentAlgorithmType",
            "SegmentAlgorithmName",
            "RecommendedDisplayCIELabValue",
        ):
            assert before[keyword].value == after[keyword].value
        for keyword in ("SegmentedPropertyCategoryCodeSequence", "SegmentedPropertyTypeCodeSequence"):
            assert before[keyword].value == after[keyword].value


def test_the_record_names_no_path_and_a_changed_file_is_noticed(tmp_path):
    case = make_case(tmp_path)
    seg = seg_of(case, tmp_path / "seg.dcm")
    workspace = emptied(case, tmp_path / "ws")
    read(workspace, seg)
    assert read(workspace, seg)[0].up_to_date
    assert str(tmp_path) not in (workspace / "labels.record.json").read_text()
    copied = tmp_path / "copy.dcm"
    copied.write_bytes(seg.read_bytes())
    assert read(workspace, copied)[0].up_to_date
    seg_of(case, seg, two()[..., :1])
    assert not read(workspace, seg)[0].up_to_date
    assert [s["value"] for s in segments_of(workspace)["segments"]] == [1]


def test_a_status_can_tell_that_the_file_is_not_named(tmp_path):
    from mdcli.execution import why_recorded_is_stale

    case = make_case(tmp_path)
    workspace = emptied(case, tmp_path / "ws")
    read(workspace, seg_of(case, tmp_path / "seg.dcm"))
    with pytest.raises(MissingError) as caught:
        why_recorded_is_stale(STAGE, Workspace(workspace), Workspace(workspace).record("labels"))
    assert caught.value.code == "not-named"


def test_wrong_calls_are_refused(tmp_path):
    case = make_case(tmp_path)
    seg = seg_of(case, tmp_path / "seg.dcm")
    workspace = emptied(case, tmp_path / "ws")
    assert refused(workspace, seg, UsageError, own_grid=True, resample=True).code == "bad-options"
    assert refused(workspace, tmp_path / "absent.dcm", MissingError).code == "no-source"
    with pytest.raises(DataError) as caught:
        other = seg_of(case, tmp_path / "other.dcm", edit=lambda ds: setattr(ds, "StudyInstanceUID", "1.2.3"))
        run_stage(STAGE, workspace, seg=other, controls=Controls(strict=True))
    assert caught.value.code == "other-study"


@pytest.mark.parametrize(("hostile", "code"), [("s01", "seg-broken"), ("s03", "other-grid")])
def test_hostile_segs_end_as_they_must(shared_folder, shared_data, tmp_path, hostile, code):
    case = shared_data / "01_ct_axial_rtstruct"
    maker = [sys.executable, str(shared_folder / "hostile" / "make_hostile.py"), str(case / "dicom" / "image")]
    seg = case / "ref" / "dcmqi_made_seg" / "seg.dcm"
    subprocess.run(
        [*maker, str(tmp_path / "out"), "--seg", str(seg), "--only", hostile], check=True, capture_output=True
    )
    workspace = of_real(case / "dicom" / "image", tmp_path / "ws")
    made_files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    files = [p for p in made_files if p.read_bytes()[128:132] == b"DICM"]
    (found,) = [p for p in files if pydicom.dcmread(p, stop_before_pixels=True).Modality == "SEG"]
    assert refused(workspace, found).code == code
