from __future__ import annotations

import json
import subprocess
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.sr.codedict import codes as codedict
from pydicom.uid import DeflatedExplicitVRLittleEndian

from mdcli.checking.compare import Tolerances, compare_segs
from mdcli.checking.seg import printable, read_seg
from mdcli.errors import DataError, MdError, MissingError
from mdcli.imaging.nifti import read_nifti
from tests.checking.segs import SHAPE, masks, series, write_seg
from tests.seg_cases import affine_of


def codes(result) -> set[str]:
    return {p.code for p in result.problems} | {p.code for label in result.labels for p in label.problems}


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal", "oblique"])
def test_every_pixel_comes_back_at_its_millimetre(tmp_path, plane):
    seg = read_seg(write_seg(tmp_path / "seg.dcm", series(plane)))
    affine = affine_of(plane)
    assert [(s.number, s.label) for s in seg.segments] == [(1, "Liver"), (2, "Spleen")]
    assert seg.segments[0].codes == (f"SCT:{codedict.SCT.Organ.value}", "SCT:10200004")
    back = np.zeros((*SHAPE, 2), np.uint8)
    for index, frame in enumerate(seg.frames):
        for j, i in np.argwhere(seg.mask(index)):
            place = frame.origin + i * seg.along_i + j * seg.along_j
            voxel = np.linalg.solve(affine[:3, :3], place - affine[:3, 3])
            assert np.abs(voxel - voxel.round()).max() < 1e-5
            x, y, z = voxel.round().astype(int)
            back[z, y, x, frame.segment - 1] += 1
    assert np.array_equal(back, masks())
    assert np.allclose(seg.along_k, affine[:3, 2], atol=1e-6)


def test_each_frame_names_the_image_it_lies_on(tmp_path):
    images = series()
    seg = read_seg(write_seg(tmp_path / "seg.dcm", images))
    by_height = {round(float(image.ImagePositionPatient[2]), 3): image.SOPInstanceUID for image in images}
    assert {frame.sources for frame in seg.frames} == {frozenset([by_height[z]]) for z in list(by_height)[:4]}
    for frame in seg.frames:
        assert frame.sources == {by_height[round(float(frame.origin[2]), 3)]}


def test_equal_segs_agree_whatever_their_uids_and_the_order_of_segments(tmp_path):
    images = series("oblique")
    gold = read_seg(write_seg(tmp_path / "gold.dcm", images))
    run = read_seg(write_seg(tmp_path / "run.dcm", images, masks()[..., ::-1], names=("Spleen", "Liver")))
    result = compare_segs(gold, run)
    assert result.ok and result.affine_mm == 0
    voxels = {label.name: label.voxels for label in result.labels}
    assert voxels == {"Liver": 4 * 4 * 6 + 1, "Spleen": 2 * 4 * 5 + 1}
    # Voxels of .75 x 1.25 x 3 mm.
    assert result.labels[0].volume_ml == pytest.approx(97 * 0.75 * 1.25 * 3 / 1000)


@pytest.mark.parametrize(
    ("mutate", "expected"),
    [
        pytest.param(lambda m: np.roll(m, 1, 0), {"dice", "centroid"}, id="one slice up"),
        pytest.param(lambda m: np.roll(m, 1, 1), {"dice", "centroid"}, id="one row down"),
        pytest.param(lambda m: np.roll(m, -1, 2), {"dice", "centroid"}, id="one column over"),
        pytest.param(lambda m: m[::-1], {"dice", "centroid"}, id="slices reversed"),
        pytest.param(lambda m: m[:, :, ::-1], {"dice", "centroid"}, id="mirrored"),
        pytest.param(lambda m: m[..., ::-1], {"dice", "volume"}, id="segments swapped"),
        pytest.param(lambda m: m * [1, 0], {"label-missing"}, id="a segment emptied"),
    ],
)
def test_a_mutation_of_the_pixels_is_found(tmp_path, mutate, expected):
    images = series()
    gold = read_seg(write_seg(tmp_path / "gold.dcm", images))
    run = read_seg(write_seg(tmp_path / "run.dcm", images, np.ascontiguousarray(mutate(masks())).astype(np.uint8)))
    result = compare_segs(gold, run)
    assert expected <= codes(result) and not result.ok


def test_a_frame_that_is_half_a_millimetre_off_is_found(tmp_path):
    images = series()
    gold = read_seg(write_seg(tmp_path / "gold.dcm", images))

    def move(seg):
        position = seg.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0]
        position.ImagePositionPatient = [
            float(v) + d for v, d in zip(position.ImagePositionPatient, (0.3, 0.4, 0), strict=True)
        ]

    run = read_seg(write_seg(tmp_path / "run.dcm", images, edit=move))
    result = compare_segs(gold, run)
    assert result.affine_mm == pytest.approx(0.5)
    assert "affine" in codes(result)


def test_the_whole_object_half_a_slice_off_is_found_and_measured(tmp_path):
    gold = read_seg(write_seg(tmp_path / "gold.dcm", series()))
    moved = series(origin=(-20.5, 31.25, -401.5))
    for image in moved:
        image.FrameOfReferenceUID = gold.frame_of_reference_uid
    result = compare_segs(gold, read_seg(write_seg(tmp_path / "run.dcm", moved)))
    assert {"affine", "dice", "centroid"} <= codes(result)
    assert result.labels[0].centroid_mm == pytest.approx(1.5)


def test_a_label_that_ends_a_slice_earlier_is_no_difference_of_the_grid(tmp_path):
    images = series()
    gold = read_seg(write_seg(tmp_path / "gold.dcm", images))
    less = masks()
    less[3] = 0
    result = compare_segs(gold, read_seg(write_seg(tmp_path / "run.dcm", images, less)))
    assert result.affine_mm == pytest.approx(0, abs=1e-6)
    assert {label.bounding_box_voxels for label in result.labels} == {1}
    back = compare_segs(read_seg(tmp_path / "run.dcm"), gold)
    assert back.affine_mm == pytest.approx(0, abs=1e-6)
    loose = Tolerances(dice=0, centroid_voxels=1, volume_percent=100)
    assert compare_segs(gold, read_seg(tmp_path / "run.dcm"), loose).ok


def test_another_name_or_code_is_found(tmp_path):
    images = series()
    gold = read_seg(write_seg(tmp_path / "gold.dcm", images))
    renamed = read_seg(write_seg(tmp_path / "a.dcm", images, names=("Leber", "Spleen"), kinds=("Liver", "Spleen")))
    recoded = read_seg(write_seg(tmp_path / "b.dcm", images, names=("Liver", "Spleen"), kinds=("Aorta", "Spleen")))
    assert codes(compare_segs(gold, renamed)) == {"label-missing", "label-extra"}
    assert codes(compare_segs(gold, recoded)) == {"code"}


def test_segments_of_one_name_are_paired_by_number(tmp_path):
    images = series()
    names = ("Liver", "Liver")
    gold = read_seg(write_seg(tmp_path / "gold.dcm", images, names=names))
    assert compare_segs(gold, read_seg(write_seg(tmp_path / "a.dcm", images, names=names))).ok
    swapped = read_seg(write_seg(tmp_path / "b.dcm", images, masks()[..., ::-1], names=names))
    assert "dice" in codes(compare_segs(gold, swapped))


def test_other_source_images_and_another_frame_of_reference_are_found(tmp_path):
    gold = read_seg(write_seg(tmp_path / "gold.dcm", series()))
    run = read_seg(write_seg(tmp_path / "run.dcm", series()))
    assert codes(compare_segs(gold, run)) == {"sources", "frame-of-reference"}


def forget_frame_of_reference(seg):
    del seg.FrameOfReferenceUID


def forget_sources(seg):
    for group in seg.PerFrameFunctionalGroupsSequence:
        del group.DerivationImageSequence


def forget_the_sources_of_one_frame(seg):
    del seg.PerFrameFunctionalGroupsSequence[2].DerivationImageSequence


@pytest.mark.parametrize(
    ("forget", "code"),
    [
        (forget_frame_of_reference, "frame-of-reference"),
        (forget_sources, "sources"),
        (forget_the_sources_of_one_frame, "sources"),
    ],
)
def test_what_the_gold_refers_to_the_run_must_refer_to(tmp_path, forget, code):
    images = series()
    gold = read_seg(write_seg(tmp_path / "gold.dcm", images))
    run = read_seg(write_seg(tmp_path / "run.dcm", images, edit=forget))
    assert codes(compare_segs(gold, run)) == {code}
    # A gold that does not say can't be contradicted.
    assert compare_segs(run, gold).ok


def test_another_frame_size_is_a_difference(tmp_path):
    gold = read_seg(write_seg(tmp_path / "gold.dcm", series()))
    shape = (5, 11, 7)
    run = read_seg(write_seg(tmp_path / "run.dcm", series(shape=shape), masks().transpose(0, 2, 1, 3).copy()))
    assert "shape" in codes(compare_segs(gold, run))


def break_count(seg):
    seg.NumberOfFrames = 10**9


def break_pixels(seg):
    seg.PixelData = seg.PixelData[:10]


def break_number(seg):
    seg.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 9


def break_plane(seg):
    groups = seg.PerFrameFunctionalGroupsSequence
    groups[1].PlanePositionSequence = groups[0].PlanePositionSequence


def break_orientation(seg):
    seg.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 1, 0, 0]


def break_spacing(seg):
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0, 1]


def break_twice(seg):
    seg.SegmentSequence[1].SegmentNumber = 1


def break_position(seg):
    del seg.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence


def break_rows(seg):
    del seg.Rows


@pytest.mark.parametrize(
    "edit",
    [
        break_count,
        break_pixels,
        break_number,
        break_plane,
        break_orientation,
        break_spacing,
        break_twice,
        break_position,
        break_rows,
    ],
)
def test_a_broken_seg_is_refused(tmp_path, edit):
    path = write_seg(tmp_path / "seg.dcm", series(), edit=edit)
    with pytest.raises(DataError) as caught:
        read_seg(path)
    assert caught.value.code == "seg-broken"


def test_a_deflated_or_fractional_seg_is_refused_by_name(tmp_path):
    path = write_seg(tmp_path / "seg.dcm", series())
    seg = pydicom.dcmread(path)
    seg.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    seg.save_as(tmp_path / "deflated.dcm")
    seg = pydicom.dcmread(path)
    seg.SegmentationType, seg.BitsAllocated = "FRACTIONAL", 8
    seg.save_as(tmp_path / "fractional.dcm")
    for name in ("deflated.dcm", "fractional.dcm"):
        with pytest.raises(DataError) as caught:
            read_seg(tmp_path / name)
        assert caught.value.code == "seg-not-binary"


def test_what_is_no_seg_is_refused(tmp_path):
    (tmp_path / "text.dcm").write_text("hello")
    with pytest.raises(DataError) as caught:
        read_seg(tmp_path / "text.dcm")
    assert caught.value.code == "not-seg"
    with pytest.raises(MissingError):
        read_seg(tmp_path / "nothing.dcm")


@pytest.fixture(scope="module")
def seg_bytes(tmp_path_factory) -> bytes:
    return write_seg(tmp_path_factory.mktemp("seg") / "seg.dcm", series()).read_bytes()


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_bytes_give_an_error_of_md_or_a_seg_but_never_a_crash(tmp_path, seg_bytes, data):
    damaged = bytearray(seg_bytes)
    for at in data.draw(st.lists(st.integers(132, len(damaged) - 1), max_size=6)):
        damaged[at] = data.draw(st.integers(0, 255))
    (tmp_path / "seg.dcm").write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
    with suppress(MdError):
        seg = read_seg(tmp_path / "seg.dcm")
        compare_segs(seg, seg)


def test_control_characters_of_a_label_are_escaped(tmp_path):
    def mark(seg):
        seg.SegmentSequence[0].SegmentLabel = "Liver\x1b[2J"

    path = write_seg(tmp_path / "seg.dcm", series(), edit=mark)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seg = read_seg(path)
    assert seg.segments[0].label == "Liver\\x1b[2J"
    assert printable("Leber ü 肝") == "Leber ü 肝"


@pytest.mark.parametrize("name", ["liver", "partial_overlaps"])
def test_dcmqi_decodes_the_same_pixels_of_segs_it_wrote(shared_data: Path, name: str):
    case = shared_data / "04_ct_3slice_dcmqi_seg"
    seg = read_seg(case / "dicom" / "seg" / f"{name}.dcm")
    folder = case / "ref" / "dcmqi" / f"seg__{name}.dcm"
    described = json.loads((folder / "meta.json").read_text())["segmentAttributes"]
    for index, group in enumerate(described, 1):
        image = read_nifti(folder / f"{index}.nii.gz")
        for segment in group:
            number = int(segment["labelID"])
            ours = [(f, frame) for f, frame in enumerate(seg.frames) if frame.segment == number]
            counted = sum(int(seg.mask(f).sum()) for f, _ in ours)
            assert counted == int((image.array == number).sum()) > 0
            for f, frame in ours:
                place = np.linalg.solve(image.affine[:3, :3], frame.origin - image.affine[:3, 3])
                k = round(float(place[2]))
                assert np.abs(place - [0, 0, k]).max() < 1e-3
                assert np.array_equal(seg.mask(f), image.array[k] == number)


def test_dcmqi_reads_what_this_decoder_reads(tmp_path, judge):
    path = write_seg(tmp_path / "seg.dcm", series("oblique"))
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(
        [judge("segimage2itkimage"), "--inputDICOM", path, "--outputDirectory", out, "--outputType", "nii"],
        check=True,
        capture_output=True,
    )
    counts = sorted(int(np.count_nonzero(read_nifti(p).array)) for p in out.glob("*.nii.gz"))
    assert counts == sorted([4 * 4 * 6 + 1, 2 * 4 * 5 + 1])
