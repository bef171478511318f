"""resample-volume: onto another's grid only where frame and patient agree, and each value at its millimetre."""

import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from mdcli.errors import DataError, MissingError, UsageError
from mdcli.execution import Controls
from mdcli.imaging.nifti import read_nifti
from mdcli.stages import load_volume, resample_volume, select_series
from mdcli.testing import ListReporter, run_stage
from tests.dicom.test_registration import registration
from tests.made_series import ROOT, write_series

SCHEMAS = Path(resample_volume.__file__).parents[1] / "schemas"
OTHER = f"{ROOT}44"


def ramp(shape, step, start=(-10, 20, 100)):
    """Return 2 x + 3 y + 4 z as stored values, whole on half millimetres, of voxels 1.5, 2 and `step` mm apart."""
    k, j, i = np.indices(shape)
    values = 2 * (start[0] + 1.5 * i) + 3 * (start[1] + 2 * j) + 4 * (start[2] + step * k)
    return np.rint(values).astype(np.uint16)


def add(ws, folder, name, values, **more):
    """Write a series and load it under a name."""
    facts = {"SeriesInstanceUID": f"{ROOT}3.{len(name)}", "RescaleIntercept": 0.0, **more}
    write_series(folder / name, values, **facts)
    run_stage(select_series.STAGE, ws, dicom=folder / name, as_name=name)
    run_stage(load_volume.STAGE, ws, use={"series": name}, as_name=name)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A fine and a coarse series of one study in one workspace."""
    folder = tmp_path_factory.mktemp("both")
    add(folder / "ws", folder, "fine", ramp((9, 8, 10), 3), step=3.0)
    add(folder / "ws", folder, "coarse", ramp((4, 8, 10), 6), step=6.0)
    return folder


@pytest.fixture
def ws(both, tmp_path):
    shutil.copytree(both / "ws", tmp_path / "ws")
    return tmp_path / "ws"


def run(ws, reporter=None, controls=None, source="coarse", **params):
    params = params or {"to": "fine"}
    use = {"volume": source}
    run_stage(resample_volume.STAGE, ws, use=use, as_name="new", reporter=reporter, controls=controls, **params)
    geometry = json.loads((ws / "geometry-new.json").read_text())
    jsonschema.validate(geometry, json.loads((SCHEMAS / "geometry.json").read_text()))
    return read_nifti(ws / "volume-new.nii"), geometry


def refused(ws, **params):
    with pytest.raises(DataError) as caught:
        run(ws, **params)
    return caught.value


def test_a_volume_goes_onto_the_grid_of_another_of_its_frame(ws):
    reporter = ListReporter()
    volume, geometry = run(ws, reporter)
    fine = read_nifti(ws / "volume-fine.nii")
    np.testing.assert_array_equal(volume.affine, fine.affine)
    # Coarse slices at 100, 106, 112, 118 mm, up to half a step further; fine ones at 100, 103 ... 124.
    np.testing.assert_allclose(volume.array[:7], fine.array[:7], atol=0.5)
    np.testing.assert_array_equal(volume.array[7], read_nifti(ws / "volume-coarse.nii").array[3])
    lowest = read_nifti(ws / "volume-coarse.nii").array.min()
    assert (volume.array[8] == lowest).all() and geometry["resampled"]["fill"] == lowest
    assert volume.unit == "HU" and volume.array.dtype == np.float32
    registered = geometry["registered"]
    assert (registered["by"], registered["role"]) == ("frame-of-reference", "geometry-fine")
    # 8 of 9 slices are covered, and all of the coarse one's are used.
    assert registered["covered_percent"] == pytest.approx(88.89) and registered["used_percent"] == 100
    assert {"overlap", "filled"} <= {*reporter.codes()}
    # What came from where is kept, so that labels can go back to the source planes.
    source = json.loads((ws / "geometry-coarse.json").read_text())
    assert geometry["slices"] == source["slices"]
    assert geometry["resampled"]["source_shape"] == source["shape"]
    assert geometry["resampled"]["source_affine_lps"] == source["affine_lps"]
    assert geometry["resampled"]["why"] == ["grid"]


def test_a_new_spacing_keeps_the_first_voxel_and_the_ramp(ws):
    volume, geometry = run(ws, spacing="1.5,2,3")
    assert volume.array.shape == (8, 8, 10)
    np.testing.assert_allclose(volume.array[:7], read_nifti(ws / "volume-fine.nii").array[:7], atol=0.5)
    assert geometry["spacing_mm"] == [1.5, 2, 3] and geometry["registered"] is None
    assert geometry["resampled"]["why"] == ["spacing"]
    assert geometry["coverage_mm"] == pytest.approx(24)


def test_isotropic_takes_the_smallest_spacing(ws):
    volume, _ = run(ws, isotropic=True)
    assert np.linalg.norm(volume.affine[:3, :3], axis=0).tolist() == [1.5, 1.5, 1.5]
    # (7 x 2 + 1) / 1.5 + 1, (3 x 6 + 3) / 1.5 + 1.
    assert volume.array.shape == (15, 11, 10)


def test_nearest_makes_no_new_value(ws):
    volume, _ = run(ws, to="fine", order="nearest", fill=7.0)
    source = read_nifti(ws / "volume-coarse.nii")
    assert volume.array.dtype == source.array.dtype
    assert np.isin(volume.array, [7, *np.unique(source.array)]).all() and (volume.array[8] == 7).all()


def test_it_is_up_to_date_until_the_references_grid_changes(ws):
    run(ws)
    use = {"volume": "coarse"}
    again = {"use": use, "as_name": "new", "to": "fine"}
    assert run_stage(resample_volume.STAGE, ws, **again).up_to_date
    path = ws / "geometry-fine.json"
    document = json.loads(path.read_text())
    document["affine_lps"][2][3] += 1.5
    path.write_text(json.dumps(document))
    assert not run_stage(resample_volume.STAGE, ws, **again).up_to_date
    assert read_nifti(ws / "volume-new.nii").affine[2, 3] == 101.5
    # A person changed the grid: what came of it says so.
    assert json.loads((ws / "volume-new.record.json").read_text())["edited"] == ["geometry-fine"]


def test_another_frame_of_reference_is_refused_unless_it_is_assumed(both, tmp_path):
    ws = tmp_path / "ws"
    shutil.copytree(both / "ws", ws)
    add(ws, tmp_path, "elsewhere", ramp((4, 8, 10), 6), step=6.0, FrameOfReferenceUID=OTHER)
    error = refused(ws, source="elsewhere", to="fine")
    assert error.code == "frames-of-reference-differ" and OTHER in error.message
    reporter = ListReporter()
    _, geometry = run(ws, reporter, source="elsewhere", to="fine", assume_registered=True)
    assert "assumed-registered" in reporter.codes("warning")
    assert geometry["registered"]["by"] == "assumption" and geometry["registered"]["frame_of_reference_uid"] == OTHER
    assert geometry["frame_of_reference_uid"] == f"{ROOT}4" and geometry["slices"] == []


def test_a_registration_brings_another_frame_over(both, tmp_path):
    ws = tmp_path / "ws"
    shutil.copytree(both / "ws", ws)
    # The same values, 30 mm further to the head in a frame of its own.
    add(
        ws,
        tmp_path,
        "elsewhere",
        ramp((4, 8, 10), 6),
        ImagePositionPatient=[[-10.0, 20.0, 130.0 + 6 * k] for k in range(4)],
        FrameOfReferenceUID=OTHER,
    )
    back = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, -30, 0, 0, 0, 1]
    path = tmp_path / "reg.dcm"
    path.write_bytes(registration([(OTHER, [back])], registered=f"{ROOT}4").getvalue())
    volume, geometry = run(ws, source="elsewhere", to="fine", registration=path)
    np.testing.assert_allclose(volume.array[:7], read_nifti(ws / "volume-fine.nii").array[:7], atol=0.5)
    registered = geometry["registered"]
    assert (registered["by"], registered["registration_sop_instance_uid"]) == ("registration", "1.2.3.99")
    assert registered["matrix"] == [back[n : n + 4] for n in range(0, 16, 4)]
    for place in ws.glob("*.record.json"):
        assert str(tmp_path) not in place.read_text()
    path.write_bytes(registration([("1.2.3.4", [back])], registered=f"{ROOT}4").getvalue())
    assert refused(ws, source="elsewhere", to="fine", registration=path).code == "other-registration"
    with pytest.raises(MissingError):
        run(ws, source="elsewhere", to="fine", registration=tmp_path / "gone.dcm")


@pytest.mark.parametrize(
    "patient, code",
    [("CANARY-ID", None), ("SOMEONE-ELSE", "frames-of-reference-differ"), ("", "frames-of-reference-differ")],
)
def test_two_studies_share_a_grid_where_they_name_one_patient(both, tmp_path, patient, code):
    ws = tmp_path / "ws"
    shutil.copytree(both / "ws", ws)
    more = {"StudyInstanceUID": f"{ROOT}22", "PatientID": patient}
    add(ws, tmp_path, "another", ramp((4, 8, 10), 6), step=6.0, **more)
    if code is None:
        assert run(ws, source="another", to="fine")[1]["registered"]["by"] == "frame-of-reference"
    else:
        error = refused(ws, source="another", to="fine")
        assert error.code == code
        assert not patient or patient not in error.message
    for path in ws.rglob("*.json"):
        assert "CANARY-ID" not in path.read_text() and "SOMEONE-ELSE" not in path.read_text()


def test_no_overlap_is_refused(both, tmp_path):
    ws = tmp_path / "ws"
    shutil.copytree(both / "ws", ws)
    far = [[-10.0, 20.0, 500.0 + 6 * k] for k in range(4)]
    add(ws, tmp_path, "far", ramp((4, 8, 10), 6), ImagePositionPatient=far)
    assert refused(ws, source="far", to="fine").code == "no-overlap"


def test_padding_is_the_fill_and_its_mixing_is_told(both, tmp_path):
    ws = tmp_path / "ws"
    shutil.copytree(both / "ws", ws)
    values = ramp((4, 8, 10), 6)
    values[:, 0] = 9
    add(ws, tmp_path, "padded", values, step=6.0, PixelPaddingValue=9)
    reporter = ListReporter()
    _, geometry = run(ws, reporter, source="padded", to="fine")
    assert geometry["resampled"]["fill"] == 9 and geometry["padding"] is None
    assert "padding-interpolated" in reporter.codes("warning")
    with pytest.raises(DataError):
        run(ws, source="padded", to="fine", order="linear", fill=0.0, controls=Controls(strict=True))


def test_a_stage_after_it_reads_the_geometry_that_was_written_with_the_volume(ws):
    from mdcli.workspace import Workspace

    run(ws)
    view = Workspace(ws, use={"volume": "new"})
    view.reading = ("volume", "geometry", "series")
    assert (view.role_to_read("geometry"), view.role_to_read("series")) == ("geometry-new", "series-coarse")


@pytest.mark.parametrize(
    "params, code",
    [
        ({"order": "linear"}, "no-grid"),
        ({"to": "fine", "isotropic": True}, "no-grid"),
        ({"spacing": "1,2"}, "bad-spacing"),
        ({"spacing": "0"}, "bad-spacing"),
        ({"to": "fine", "order": "cubic"}, "bad-order"),
        ({"isotropic": True, "assume_registered": True}, "no-grid"),
        ({"to": "coarse"}, "same-name"),
        ({"to": "No Name"}, "bad-name"),
        ({"to": "fine", "order": "nearest", "fill": 0.5}, "bad-fill"),
    ],
)
def test_a_wrong_call_is_refused(ws, params, code):
    with pytest.raises(UsageError) as caught:
        run(ws, **params)
    assert caught.value.code == code
    assert not (ws / "volume-new.nii").exists()


def test_a_reference_that_is_not_there_is_missing(ws):
    with pytest.raises(MissingError) as caught:
        run(ws, to="gone")
    assert caught.value.code == "no-artifact"
