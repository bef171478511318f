"""export: the same voxels at the same millimetres, as SimpleITK, nibabel and Pillow find them."""

import json
from pathlib import Path

import jsonschema
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from mdcli.errors import DataError, MissingError, UsageError
from mdcli.imaging.foreign import read_foreign
from mdcli.imaging.nifti import nifti_header, write_nifti
from mdcli.stages import export
from mdcli.testing import run_stage
from tests.imaging.test_foreign import VALUES, itk_affine, oblique
from tests.imaging.test_nifti import FLIP

SCHEMAS = Path(export.__file__).parents[1] / "schemas"


def workspace(path, array=VALUES, affine=None, kind="volume"):
    path.mkdir(exist_ok=True)
    with (path / f"{kind}.nii").open("wb") as file:
        write_nifti(file, array, oblique() if affine is None else affine, "HU")
    return path


def test_other_programs_find_the_same_voxels_at_the_same_millimetres(tmp_path):
    ws = workspace(tmp_path / "ws")
    run_stage(export.STAGE, ws, format=("nii", "nii.gz", "nrrd", "mha"))
    folder = ws / "export"
    assert sorted(p.name for p in folder.iterdir()) == ["volume.mha", "volume.nii", "volume.nii.gz", "volume.nrrd"]
    for name in ("volume.nrrd", "volume.mha"):
        image = sitk.ReadImage(str(folder / name))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(image), VALUES)
        np.testing.assert_allclose(itk_affine(image), oblique(), atol=1e-5)
    for name in ("volume.nii", "volume.nii.gz"):
        image = nibabel.load(folder / name)
        np.testing.assert_array_equal(np.asanyarray(image.dataobj).transpose(2, 1, 0), VALUES)
        np.testing.assert_allclose(image.affine, FLIP @ oblique(), atol=1e-5)
    for path in folder.iterdir():
        assert read_foreign(path).volume.unit == "HU"


def test_several_artifacts_go_out_at_once_and_a_name_keeps_an_earlier_export(tmp_path):
    ws = workspace(workspace(tmp_path / "ws"), (VALUES > 0).astype(np.uint8), kind="labels")
    run_stage(export.STAGE, ws, format=("nrrd",))
    run_stage(export.STAGE, ws, as_name="both", format=("nii.gz",), what=("volume", "labels"))
    assert sorted(p.name for p in (ws / "export-both").iterdir()) == ["labels.nii.gz", "volume.nii.gz"]
    assert [p.name for p in (ws / "export").iterdir()] == ["volume.nrrd"]


def test_slices_become_pictures_with_window_size_and_sides(tmp_path):
    array = np.array([[[-160, 40], [240, 1000]]] * 2, np.int16)
    ws = workspace(tmp_path / "ws", array, np.diag([0.5, 0.8, 2, 1]))
    run_stage(export.STAGE, ws, format=("png",), window="40,400")
    folder = ws / "export" / "volume-png"
    facts = json.loads((folder / "pictures.json").read_text())
    jsonschema.validate(facts, json.loads((SCHEMAS / "pictures.json").read_text()))
    assert facts["pictures"] == ["0000.png", "0001.png"] and facts["window"] == {"center": 40, "width": 400}
    assert (facts["right"], facts["bottom"], facts["next"]) == ("L", "P", "H")
    picture = Image.open(folder / "0001.png")
    np.testing.assert_array_equal(np.asarray(picture), [[0, 128], [255, 255]])
    # 25.4 mm an inch over 0.5 mm and 0.8 mm a pixel.
    assert picture.info["dpi"] == pytest.approx((50.8, 31.75), abs=0.01)
    assert picture.text["Window"] == "center 40, width 400 HU"


def test_label_pictures_hold_the_values_and_say_that_nobody_reviewed_them(tmp_path):
    ws = workspace(tmp_path / "ws", np.array([[[0, 1], [2, 200]]], np.uint8), kind="labels")
    run_stage(export.STAGE, ws, format=("png",), what=("labels",))
    picture = Image.open(ws / "export" / "labels-png" / "0000.png")
    np.testing.assert_array_equal(np.asarray(picture), [[0, 1], [2, 200]])
    assert "not reviewed" in picture.text["Comment"]


def test_a_sheared_volume_goes_out_exactly_or_not_at_all(tmp_path):
    sheared = oblique()
    sheared[:3, 2] += 0.2 * sheared[:3, 1]
    ws = workspace(tmp_path / "ws", affine=sheared)
    run_stage(export.STAGE, ws, format=("nrrd", "nii"))
    for name in ("volume.nrrd", "volume.nii"):
        np.testing.assert_allclose(read_foreign(ws / "export" / name).volume.affine, sheared, atol=1e-5)
    with pytest.raises(DataError) as caught:
        run_stage(export.STAGE, ws, as_name="other", format=("mha",))
    assert caught.value.code == "sheared-volume"
    assert not (ws / "export-other").exists()


def test_places_that_are_not_the_patients_are_not_said_to_be(tmp_path):
    ws = tmp_path / "ws"
    ws.mkdir()
    header = nifti_header(VALUES.shape, VALUES.dtype, np.eye(4), "HU", plane="detector")
    (ws / "volume.nii").write_bytes(header + VALUES.tobytes())
    with pytest.raises(DataError) as caught:
        run_stage(export.STAGE, ws, format=("nrrd",))
    assert caught.value.code == "no-patient-plane"
    run_stage(export.STAGE, ws, format=("png", "nii"))
    facts = json.loads((ws / "export" / "volume-png" / "pictures.json").read_text())
    assert facts["right"] is None and facts["spacing_mm"] is None
    assert "dpi" not in Image.open(ws / "export" / "volume-png" / "0000.png").info


@pytest.mark.parametrize(
    "params, code",
    [
        ({"format": ("jpg",)}, "unknown-form"),
        ({"format": ("nii",), "what": ("scores",)}, "bad-what"),
        ({"format": ("nii",), "window": "40,400"}, "bad-window"),
        ({"format": ("png",), "window": "40"}, "bad-window"),
    ],
)
def test_a_wrong_call_is_refused(tmp_path, params, code):
    with pytest.raises(UsageError) as caught:
        run_stage(export.STAGE, workspace(tmp_path / "ws"), **params)
    assert caught.value.code == code


def test_what_is_not_there_is_missing(tmp_path):
    with pytest.raises(MissingError) as caught:
        run_stage(export.STAGE, workspace(tmp_path / "ws"), format=("nii",), what=("labels",))
    assert caught.value.code == "no-artifact"
