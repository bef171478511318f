"""import-volume: a file of another program starts a chain, and says that no DICOM image stands behind it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import nibabel
import numpy as np
import pytest

from mdcli.errors import DataError, MissingError
from mdcli.execution import Controls
from mdcli.imaging.nifti import read_nifti
from mdcli.stages import import_volume
from mdcli.testing import ListReporter, run_stage
from tests.chain import canary_study, md_environment, run_chain, stage_of
from tests.imaging.test_foreign import VALUES, mha, nifti, nrrd, oblique

SCHEMAS = Path(import_volume.__file__).parents[1] / "schemas"


def geometry_of(ws):
    document = json.loads((ws / "geometry.json").read_text())
    jsonschema.validate(document, json.loads((SCHEMAS / "geometry.json").read_text()))
    return document


def load(ws, path, reporter=None, **params):
    run_stage(import_volume.STAGE, ws, file=path, reporter=reporter, **params)
    return read_nifti(ws / "volume.nii"), geometry_of(ws)


def test_a_nifti_becomes_the_volume_voxel_for_voxel_and_names_no_source(tmp_path):
    reporter = ListReporter()
    volume, geometry = load(tmp_path / "ws", nifti(tmp_path), reporter)
    np.testing.assert_array_equal(volume.array, VALUES)
    np.testing.assert_allclose(volume.affine, oblique(), atol=1e-5)
    np.testing.assert_allclose(geometry["affine_lps"], oblique(), atol=1e-5)
    assert (geometry["series_instance_uid"], geometry["slices"], geometry["unit"]) == (None, [], None)
    assert geometry["completeness"]["status"] == "unknown" and geometry["spacing_plane"] == "patient"
    assert reporter.codes("warning") == ["no-unit"]


def test_what_the_grid_says_is_worked_out(tmp_path):
    # Coronal: rows to the left, columns to the feet, slices to the back, 4 mm apart and 0.4 mm to the left each.
    directions = "(1.5,0,0) (0,0,-2) (0.4,4,0)"
    _, geometry = load(
        tmp_path / "ws", nrrd(tmp_path / "image.nrrd", space_directions=directions, space_origin="(1,2,3)")
    )
    assert geometry["orientation"] == "coronal" and geometry["obliquity_deg"] == pytest.approx(0, abs=1e-9)
    assert geometry["spacing_mm"] == pytest.approx([1.5, 2, 4.019950248])
    assert geometry["coverage_mm"] == pytest.approx(16)
    assert geometry["tilt"]["degrees"] == pytest.approx(5.710593137)
    assert geometry["tilt"]["shift_mm"] == pytest.approx(1.2)
    assert geometry["tilt"]["sheared"] is True
    assert geometry["direction_orthonormal"] == [[1, 0, 0], [0, 0, -1]]


def test_unit_and_modality_are_taken_on_word_and_said_to_be(tmp_path):
    volume, geometry = load(tmp_path / "ws", nifti(tmp_path), unit="HU", modality="CT")
    assert (volume.unit, geometry["unit"], geometry["modality"]) == ("HU", "HU", "CT")
    assert "unit HU, by --unit" in geometry["made"] and "modality CT, by --modality" in geometry["made"]


def test_a_file_that_says_another_unit_is_refused(tmp_path):
    path = nrrd(tmp_path / "image.nrrd", sample_units='"g/ml"')
    with pytest.raises(DataError) as caught:
        load(tmp_path / "ws", path, unit="HU")
    assert caught.value.code == "wrong-unit"
    assert load(tmp_path / "ws", path)[1]["unit"] == "g/ml"


def test_no_path_from_outside_is_in_a_record_or_an_artifact(tmp_path):
    (tmp_path / "Canaryname").mkdir()
    load(tmp_path / "ws", nifti(tmp_path / "Canaryname", name="Canaryname_scan.nii"))
    for path in (tmp_path / "ws").iterdir():
        if path.suffix != ".root":
            assert b"canaryname" not in path.read_bytes().lower(), path.name


def test_a_changed_file_is_taken_anew_and_a_moved_one_is_not(tmp_path):
    path = nifti(tmp_path)
    load(tmp_path / "ws", path)
    moved = tmp_path / "moved.nii"
    shutil.copyfile(path, moved)
    assert run_stage(import_volume.STAGE, tmp_path / "ws", file=moved).up_to_date
    nifti(tmp_path, values=VALUES + 1, name="moved.nii")
    assert not run_stage(import_volume.STAGE, tmp_path / "ws", file=moved).up_to_date
    np.testing.assert_array_equal(read_nifti(tmp_path / "ws" / "volume.nii").array, VALUES + 1)


def test_a_changed_file_of_voxels_beside_its_header_is_taken_anew(tmp_path):
    (tmp_path / "image.raw").write_bytes(VALUES.tobytes())
    path = mha(tmp_path / "image.mhd", data=b"", file="image.raw")
    load(tmp_path / "ws", path)
    assert run_stage(import_volume.STAGE, tmp_path / "ws", file=path).up_to_date
    (tmp_path / "image.raw").write_bytes((VALUES + 1).tobytes())
    np.testing.assert_array_equal(load(tmp_path / "ws", path)[0].array, VALUES + 1)


def test_a_source_named_by_a_list_of_cases_is_the_file(tmp_path):
    from mdcli.workspace import write_source

    nifti(tmp_path)
    write_source(tmp_path / "ws", tmp_path / "image.nii")
    command = [sys.executable, "-m", "mdcli", "import-volume", str(tmp_path / "ws"), "--unit", "HU"]
    done = subprocess.run(command, env=md_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'ws'}\n"


def test_no_file_is_refused(tmp_path):
    with pytest.raises(MissingError) as caught:
        run_stage(import_volume.STAGE, tmp_path / "ws", file=tmp_path / "gone.nii")
    assert caught.value.code == "no-source"
    assert not (tmp_path / "ws").exists()


def test_strict_refuses_two_places_in_one_file(tmp_path):
    path = nifti(tmp_path)
    image = nibabel.load(path)
    image.set_qform(image.affine + np.outer([5, 0, 0, 0], [0, 0, 0, 1]), 1)
    nibabel.save(image, tmp_path / "two.nii")
    with pytest.raises(DataError) as caught:
        run_stage(import_volume.STAGE, tmp_path / "ws", file=tmp_path / "two.nii", controls=Controls(strict=True))
    assert caught.value.code == "forms-differ"


@pytest.fixture(scope="module")
def chained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chained")
    run_chain(folder / "dicom_ws", canary_study(folder / "study"), until="infer")
    return folder


def test_the_chain_runs_on_an_imported_volume_as_on_the_dicom_one(chained):
    ws = chained / "nifti_ws"
    run_stage(stage_of("export"), chained / "dicom_ws", format=("nii.gz",))
    load(ws, chained / "dicom_ws" / "export" / "volume.nii.gz", modality="CT")
    run_stage(stage_of("infer"), ws, model="landmarks")
    expected = read_nifti(chained / "dicom_ws" / "labels.nii")
    found = read_nifti(ws / "labels.nii")
    np.testing.assert_array_equal(found.array, expected.array)
    np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
    assert found.array.any()


def test_no_seg_is_written_where_there_is_no_dicom_image(chained):
    ws = chained / "seg_ws"
    load(ws, chained / "dicom_ws" / "volume.nii", modality="CT")
    run_stage(stage_of("infer"), ws, model="landmarks")
    with pytest.raises(DataError) as caught:
        run_stage(stage_of("write-seg"), ws)
    assert caught.value.code == "no-sources"
