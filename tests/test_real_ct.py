"""The chain on a real abdomen: every band counted again from the files by plain arithmetic, and no landmark where there is none."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from mdcli.registry import load_stage
from mdcli.testing import run_stage

pytestmark = pytest.mark.slow
# From the table in the card of ct-tissue: upper ends of background, air, lung-like, fat-like and soft.
UPPER_HU = (-1200, -900, -200, -30, 200)


@pytest.fixture(scope="module")
def case(shared_data, tmp_path_factory) -> Path:
    case = tmp_path_factory.mktemp("abdomen") / "case"
    run_stage(load_stage("select-series"), case, dicom=shared_data / "35_ct_abdomen" / "dicom")
    run_stage(load_stage("load-volume"), case)
    run_stage(load_stage("infer"), case, as_name="tissue", model="ct-tissue")
    run_stage(load_stage("write-seg"), case, as_name="tissue", use={"labels": "tissue"})
    return case


@pytest.fixture(scope="module")
def expected(shared_data) -> np.ndarray:
    """Return the bands (k, j, i), k from the feet up, in whole numbers throughout."""
    slices = [dcmread(path) for path in (shared_data / "35_ct_abdomen" / "dicom").rglob("*") if path.is_file()]
    slices.sort(key=lambda header: header.ImagePositionPatient[2])
    hu = np.stack([s.pixel_array.astype(np.int32) * int(s.RescaleSlope) + int(s.RescaleIntercept) for s in slices])
    for axis in range(3):
        low = np.concatenate([hu.take([0], axis), hu.take(range(hu.shape[axis] - 1), axis)], axis)
        high = np.concatenate([hu.take(range(1, hu.shape[axis]), axis), hu.take([-1], axis)], axis)
        hu = low + 2 * hu + high
    return np.searchsorted(np.array(UPPER_HU) * 64, hu)


def test_every_band_has_the_voxels_that_plain_arithmetic_finds(case, expected):
    segments = json.loads((case / "segments-tissue.json").read_text())["segments"]
    counts = np.bincount(expected.ravel(), minlength=6)
    assert {s["value"]: s["voxels"] for s in segments} == {value: counts[value] for value in range(1, 6)}


def test_the_volumes_are_those_of_an_abdomen(case, shared_data):
    first = dcmread(next(p for p in (shared_data / "35_ct_abdomen" / "dicom").rglob("*") if p.is_file()))
    # 5 mm between slices, as facts.json of the case says.
    voxel_ml = float(first.PixelSpacing[0]) * float(first.PixelSpacing[1]) * 5.0 / 1000
    segments = json.loads((case / "segments-tissue.json").read_text())["segments"]
    litres = {segment["name"]: segment["voxels"] * voxel_ml / 1000 for segment in segments}
    # 20 cm of an adult's trunk: some litres of soft tissue and fat, less bone with contrast medium, air around it.
    assert 2 < litres["soft"] < 15
    assert 1 < litres["fat-like"] < 15
    assert 0.1 < litres["bone-like"] < 2
    assert litres["air"] > 2


def test_the_segmentation_holds_those_voxels_by_another_reader(case, expected):
    import highdicom

    seg = highdicom.seg.segread(case / "seg-tissue.dcm")
    uids = [uid for _, _, uid in seg.get_source_image_uids()]
    assert len(uids) == len(expected)
    names = {seg.get_segment_description(number).segment_label: number for number in seg.segment_numbers}
    positions = {}
    for groups in seg.PerFrameFunctionalGroupsSequence:
        number = groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        z = float(groups.PlanePositionSequence[0].ImagePositionPatient[2])
        positions.setdefault(number, set()).add(z)
    frames = seg.pixel_array
    counts = dict.fromkeys(names.values(), 0)
    for frame, groups in zip(frames, seg.PerFrameFunctionalGroupsSequence, strict=True):
        counts[groups.SegmentIdentificationSequence[0].ReferencedSegmentNumber] += int(frame.sum())
    for value, name in enumerate(("air", "lung-like", "fat-like", "soft", "bone-like"), 1):
        assert counts[names[name]] == (expected == value).sum(), name
        assert len(positions[names[name]]) == (expected == value).any(axis=(1, 2)).sum(), name


def test_the_segmentation_is_clean(case, judge):
    done = subprocess.run(
        [judge("dciodvfy"), str(case / "seg-tissue.dcm")], capture_output=True, text=True, check=False
    )
    assert [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")] == []


def test_no_landmark_is_found_in_a_person(case):
    outcome = run_stage(load_stage("infer"), case, as_name="landmarks", model="landmarks")
    assert outcome.result == "nothing-found"
    outcome = run_stage(load_stage("write-seg"), case, as_name="landmarks", use={"labels": "landmarks"})
    assert outcome.result == "nothing-found"
    assert not (case / "seg-landmarks.dcm").exists()
