"""The studies are DICOM by others' reading, and show the phantom where their headers say."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.errors import InvalidDicomError

from mdcli.phantom.anatomy import CENTRE_MM, hu_at
from mdcli.phantom.study import SeriesFacts, oriented_affine, write_series, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    return folder


def oblique() -> np.ndarray:
    """Return a sagittal grid turned by 12 and 9 degrees, with three different spacings."""
    row = np.array([np.sin(0.2), np.cos(0.2), 0.0])
    column = np.cross(row, [np.cos(0.2), -np.sin(0.2), 0.0])
    column = column * np.cos(0.15) + np.cross(row, column) * np.sin(0.15)
    return oriented_affine(row, column, (2.5, 3.25, 7.0), (6, 30, 40))


def errors_of(dciodvfy: str, file: Path) -> list[str]:
    done = subprocess.run([dciodvfy, str(file)], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def test_every_file_of_the_study_is_clean(study, judge):
    dciodvfy = judge("dciodvfy")
    files = sorted(study.rglob("*.dcm"))
    assert len(files) == 60 + 1 + 3 + 1
    for file in files[::6] + files[-5:]:
        assert errors_of(dciodvfy, file) == []


def test_an_oblique_series_is_clean(tmp_path, judge):
    for file in write_series(tmp_path, (6, 30, 40), oblique(), SeriesFacts(patient_position="FFDR"))[::3]:
        assert errors_of(judge("dciodvfy"), file) == []


def test_the_folder_holds_what_a_model_must_not_take(study):
    kinds = {}
    for file in study.rglob("*.dcm"):
        header = dcmread(file, stop_before_pixels=True)
        kinds.setdefault((header.Modality, *header.get("ImageType", [])), []).append(file)
    assert {kind: len(files) for kind, files in kinds.items()} == {
        ("CT", "ORIGINAL", "PRIMARY", "AXIAL"): 60,
        ("CT", "ORIGINAL", "PRIMARY", "LOCALIZER"): 1,
        ("CT", "DERIVED", "SECONDARY", "REFORMATTED"): 3,
        ("SR",): 1,
    }
    with pytest.raises(InvalidDicomError):
        dcmread(study / "notes.txt")


def test_no_two_files_share_an_instance_uid_and_all_share_the_study(study):
    headers = [dcmread(file, stop_before_pixels=True) for file in study.rglob("*.dcm")]
    assert len({header.SOPInstanceUID for header in headers}) == len(headers)
    assert len({header.SeriesInstanceUID for header in headers}) == 4
    assert len({header.StudyInstanceUID for header in headers}) == 1
    assert {str(header.PatientName) for header in headers} == {"Phantom^Md Demo"}


def test_the_study_comes_out_the_same_every_time(study, tmp_path):
    write_study(tmp_path)
    for file in sorted(study.rglob("*")):
        if file.is_file():
            assert (tmp_path / file.relative_to(study)).read_bytes() == file.read_bytes(), file.name


@pytest.mark.parametrize("descending", [False, True])
def test_every_pixel_shows_the_phantom_at_the_place_its_header_says(tmp_path, descending):
    paths = write_series(tmp_path, (6, 30, 40), oblique(), descending=descending)
    for path in paths:
        header = dcmread(path)
        row, column = np.array(header.ImageOrientationPatient[:3]), np.array(header.ImageOrientationPatient[3:])
        between_rows, between_columns = header.PixelSpacing
        r, c = np.mgrid[: header.Rows, : header.Columns].reshape(2, -1)[..., None]
        places = np.array(header.ImagePositionPatient) + c * between_columns * row + r * between_rows * column
        value = header.pixel_array.ravel() * float(header.RescaleSlope) + float(header.RescaleIntercept)
        assert np.abs(value - hu_at(places)).max() <= 0.5 + 1e-6


def test_the_instance_numbers_run_along_the_slices_or_against_them(tmp_path):
    numbers = {}
    for descending in (False, True):
        paths = write_series(tmp_path / str(descending), (6, 30, 40), oblique(), descending=descending)
        numbers[descending] = [dcmread(path, stop_before_pixels=True).InstanceNumber for path in paths]
    assert numbers == {False: [1, 2, 3, 4, 5, 6], True: [6, 5, 4, 3, 2, 1]}


def test_an_oriented_grid_is_centred_and_right_handed():
    affine = oblique()
    assert affine @ (39 / 2, 29 / 2, 5 / 2, 1) == pytest.approx([*CENTRE_MM, 1])
    assert np.linalg.norm(affine[:3, :3], axis=0) == pytest.approx([2.5, 3.25, 7.0])
    assert np.linalg.det(affine) == pytest.approx(2.5 * 3.25 * 7.0)
