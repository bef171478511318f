"""load-volume over whole series: made ones, real ones, hostile ones."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from mdcli.errors import DataError, MdError, MissingError
from mdcli.imaging.nifti import read_nifti
from mdcli.stages import load_volume, select_series
from mdcli.testing import ListReporter, run_stage
from tests.made_series import COMPRESSED, LITTLE, UNCOMPRESSED, scan, workspace, write_series

SCHEMAS = Path(load_volume.__file__).parents[1] / "schemas"
REPOSITORY = Path(load_volume.__file__).parents[2]


def stored(count=6, shape=(34, 36), low=0, high=4096):
    return np.random.default_rng(5).integers(low, high, (count, *shape)).astype("u2")


def load(ws, reporter=None, **params):
    """Load a workspace; return the volume and `geometry.json`."""
    run_stage(load_volume.STAGE, ws, reporter=reporter, **params)
    return read_nifti(ws / "volume.nii"), json.loads((ws / "geometry.json").read_text())


def test_a_series_becomes_hounsfield_units_in_millimetres(tmp_path):
    values = stored()
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "dicom", values, BitsStored=12))
    volume, geometry = load(ws)
    assert volume.array.dtype == np.dtype("<i2")
    np.testing.assert_array_equal(volume.array, values.astype(int) - 1024)
    np.testing.assert_allclose(volume.affine, [[1.5, 0, 0, -10], [0, 2, 0, 20], [0, 0, 3, 100], [0, 0, 0, 1]])
    assert volume.unit == "HU"
    assert geometry["affine_lps"] == volume.affine.tolist()
    assert [s["position_mm"][2] for s in geometry["slices"]] == [100, 103, 106, 109, 112, 115]
    assert geometry["completeness"]["status"] == "unknown"
    jsonschema.validate(geometry, json.loads((SCHEMAS / "geometry.json").read_text()))


@pytest.mark.parametrize("syntax", [*UNCOMPRESSED.values(), *COMPRESSED.values()], ids=[*UNCOMPRESSED, *COMPRESSED])
def test_every_encoding_gives_the_same_volume_file(tmp_path, syntax):
    values = stored()
    plain = workspace(tmp_path / "plain", write_series(tmp_path / "a", values, LITTLE, BitsStored=12))
    other = workspace(tmp_path / "other", write_series(tmp_path / "b", values, syntax, BitsStored=12))
    load(plain)
    load(other)
    assert (plain / "volume.nii").read_bytes() == (other / "volume.nii").read_bytes()


def test_a_zip_file_is_read_like_a_folder(tmp_path):
    folder = write_series(tmp_path / "dicom", stored(), BitsStored=12)
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"in/{path.name}")
    ws = tmp_path / "ws"
    run_stage(select_series.STAGE, ws, dicom=tmp_path / "all.zip")
    np.testing.assert_array_equal(load(ws)[0].array, stored().astype(int) - 1024)


def test_slopes_that_differ_are_kept_by_slice(tmp_path):
    values = stored(3)
    slopes, intercepts = [0.5, 1.25, 2.0], [0.0, 10.0, -20.5]
    folder = write_series(tmp_path / "d", values, Modality="MR", RescaleSlope=slopes, RescaleIntercept=intercepts)
    volume, geometry = load(workspace(tmp_path / "ws", folder))
    expected = values * np.array(slopes)[:, None, None] + np.array(intercepts)[:, None, None]
    np.testing.assert_array_equal(volume.array, expected)
    assert (volume.array.dtype, volume.unit) == (np.dtype("<f4"), None)
    assert [s["rescale_slope"] for s in geometry["slices"]] == slopes


def test_padding_is_kept_and_recorded(tmp_path):
    values = stored().astype("i2")
    values[:, :2] = -2000
    folder = write_series(tmp_path / "d", values, PixelPaddingValue=-2000)
    volume, geometry = load(workspace(tmp_path / "ws", folder))
    assert (volume.array[:, :2] == -3024).all()
    assert geometry["padding"] == {
        "voxels": 6 * 2 * 36,
        "stored": [-2000, -2000],
        "range": [-3024, -3024],
        "stored_by_slice": None,
        "range_by_slice": None,
    }


def test_padding_that_differs_is_recorded_by_slice(tmp_path):
    folder = write_series(tmp_path / "d", stored(3).astype("i2"), PixelPaddingValue=[-2000, -2000, ...])
    _, geometry = load(workspace(tmp_path / "ws", folder))
    assert geometry["padding"]["range_by_slice"] == [[-3024, -3024], [-3024, -3024], None]
    jsonschema.validate(geometry, json.loads((SCHEMAS / "geometry.json").read_text()))


# Volumes that go on separately, gaps, tilt


def children(ws):
    return sorted(path.parent.name for path in ws.glob("*/volume.nii"))


@pytest.fixture
def echoes(tmp_path):
    """Two echoes of three slices in one series: the workspace, and the stored values (t, k, j, i)."""
    values = np.stack([stored(3), stored(3)[::-1]])
    where = [[-10.0, 20.0, 100.0 + 3 * (k % 3)] for k in range(6)]
    folder = write_series(
        tmp_path / "d", values.reshape(6, 34, 36), ImagePositionPatient=where, EchoNumbers=[1, 1, 1, 2, 2, 2]
    )
    return workspace(tmp_path / "ws", folder), values


@pytest.fixture
def gap(tmp_path):
    """Five slices, two of them after a gap of two: the workspace, and the stored values."""
    where = [[-10.0, 20.0, 100.0 + 3 * k] for k in (0, 1, 2, 5, 6)]
    return workspace(tmp_path / "ws", write_series(tmp_path / "d", stored(5), ImagePositionPatient=where)), stored(5)


def test_each_volume_becomes_a_workspace_of_its_own(echoes):
    ws, values = echoes
    assert refused(ws).code == "several-volumes"
    outcome = run_stage(load_volume.STAGE, ws, on_many="split")
    assert [path.name for path in outcome.workspaces] == ["echo_1", "echo_2"]
    assert not (ws / "volume.nii").exists()
    for number, expected in enumerate(values, 1):
        child = ws / f"echo_{number}"
        np.testing.assert_array_equal(read_nifti(child / "volume.nii").array, expected.astype(int) - 1024)
        geometry, series = (json.loads((child / f"{name}.json").read_text()) for name in ("geometry", "series"))
        assert geometry["volume"] == {"EchoNumbers": number}
        assert {i["path"] for i in series["instances"]} == {s["path"] for s in geometry["slices"]}
        jsonschema.validate(geometry, json.loads((SCHEMAS / "geometry.json").read_text()))
        jsonschema.validate(series, json.loads((SCHEMAS / "series.json").read_text()))
    again = run_stage(load_volume.STAGE, ws, on_many="split")
    assert (again.up_to_date, again.workspaces) == (True, outcome.workspaces)


def test_what_was_split_can_be_loaded_again_where_it_lies(gap):
    ws, values = gap
    assert refused(ws).code == "missing-slices"
    run_stage(load_volume.STAGE, ws, on_gap="split")
    assert children(ws) == ["run_1", "run_2"]
    series = (ws / "run_1" / "series.json").read_bytes()
    for _ in range(2):
        volume, geometry = load(ws / "run_1")
        np.testing.assert_array_equal(volume.array, values[:3].astype(int) - 1024)
        assert geometry["completeness"]["found"] == 3
        assert (ws / "run_1" / "series.json").read_bytes() == series
    assert run_stage(load_volume.STAGE, ws / "run_1").up_to_date


def test_a_model_runs_on_what_was_split(gap):
    from mdcli.registry import load_stage

    ws, _ = gap
    run_stage(load_volume.STAGE, ws, on_gap="split")
    run_stage(load_stage("infer"), ws / "run_1", model="ct-tissue")
    labels = read_nifti(ws / "run_1" / "labels.nii")
    assert labels.array.shape == (3, 34, 36)
    np.testing.assert_array_equal(labels.affine, read_nifti(ws / "run_1" / "volume.nii").affine)


def test_one_volume_of_four_axes_takes_the_place_of_the_split_ones(echoes):
    import nibabel

    ws, values = echoes
    run_stage(load_volume.STAGE, ws, on_many="split")
    reporter = ListReporter()
    run_stage(load_volume.STAGE, ws, reporter=reporter, on_many="4d")
    assert reporter.codes("warning").count("child-gone") == 2
    assert children(ws) == []
    assert not list(ws.glob("echo_*/*.json"))
    assert not list(ws.glob("children-*"))
    image = nibabel.load(ws / "volume.nii")
    assert image.shape == (36, 34, 3, 2)
    np.testing.assert_array_equal(np.asanyarray(image.dataobj).T, values.astype(int) - 1024)
    # NIfTI is RAS+.
    np.testing.assert_allclose(image.affine, [[-1.5, 0, 0, 10], [0, -2, 0, -20], [0, 0, 3, 100], [0, 0, 0, 1]])
    geometry = json.loads((ws / "geometry.json").read_text())
    assert geometry["dimension"] == {"name": "echo", "keywords": ["EchoNumbers"], "unit": None, "values": [1, 2]}
    assert [(s["t"], s["k"]) for s in geometry["slices"]] == [(t, k) for t in (0, 1) for k in (0, 1, 2)]
    jsonschema.validate(geometry, json.loads((SCHEMAS / "geometry.json").read_text()))
    assert run_stage(load_volume.STAGE, ws, on_many="4d").up_to_date
    run_stage(load_volume.STAGE, ws, on_many="split")
    assert (children(ws), (ws / "volume.nii").exists()) == (["echo_1", "echo_2"], False)


def test_a_volume_of_four_axes_is_refused_where_one_of_three_is_wanted(echoes):
    from mdcli.registry import load_stage

    run_stage(load_volume.STAGE, echoes[0], on_many="4d")
    with pytest.raises(DataError) as caught:
        run_stage(load_stage("infer"), echoes[0], model="ct-tissue")
    assert caught.value.code == "not-a-volume"
    assert not (echoes[0] / "labels.nii").exists()


def test_a_pick_of_another_volume_loads_anew(echoes):
    ws, values = echoes
    for pick, number in (("echo=2", 1), ("echo=1", 0), ("volume=2", 1)):
        outcome = run_stage(load_volume.STAGE, ws, pick=(pick,))
        assert not outcome.up_to_date
        np.testing.assert_array_equal(read_nifti(ws / "volume.nii").array, values[number].astype(int) - 1024)
    assert run_stage(load_volume.STAGE, ws, pick=("volume=2",)).up_to_date
    assert refused_code(ws, pick=("echo=3",)) == "no-such-volume"
    assert refused_code(ws, pick=("echo",)) == "bad-pick"


def refused_code(ws, **params):
    with pytest.raises(MdError) as caught:
        run_stage(load_volume.STAGE, ws, **params)
    return caught.value.code


def test_made_slices_are_named(gap):
    ws, values = gap
    reporter = ListReporter()
    volume, geometry = load(ws, reporter, on_gap="resample")
    np.testing.assert_array_equal(volume.array[[0, 1, 2, 5, 6]], values.astype(int) - 1024)
    assert volume.array.dtype == np.dtype("<f4")
    resampled = geometry["resampled"]
    assert (resampled["why"], resampled["made_slices"], resampled["source_offsets"]) == (
        ["gap"],
        [3, 4],
        [0, 1, 2, 5, 6],
    )
    assert resampled["missing_mm"] == [109, 112]
    assert (geometry["shape"], resampled["source_shape"], len(geometry["slices"])) == ([7, 34, 36], [5, 34, 36], 5)
    assert {"uneven-spacing", "resampled"} <= {*reporter.codes("warning")}
    jsonschema.validate(geometry, json.loads((SCHEMAS / "geometry.json").read_text()))
    # Without the option the volume is not the asked one any more.
    assert refused_code(ws) == "missing-slices"


def test_a_tilted_stack_has_its_exact_sform_and_no_qform(tmp_path):
    import nibabel

    where = [[-10.0, 20.0 + 0.75 * k, 100.0 + 3 * k] for k in range(8)]
    folder = write_series(tmp_path / "d", stored(8), ImagePositionPatient=where, GantryDetectorTilt=14.0)
    ws, reporter = workspace(tmp_path / "ws", folder), ListReporter()
    _, geometry = load(ws, reporter)
    assert "gantry-tilt" in reporter.codes("warning")
    header = nibabel.load(ws / "volume.nii").header
    assert (int(header["sform_code"]) > 0, int(header["qform_code"])) == (True, 0)
    np.testing.assert_array_equal(header.get_sform()[:3, 2], [0, -0.75, 3])
    # atan(0.75 / 3)
    assert geometry["tilt"]["degrees"] == pytest.approx(14.0362, abs=1e-4)
    assert geometry["tilt"]["sheared"]
    jsonschema.validate(geometry, json.loads((SCHEMAS / "geometry.json").read_text()))
    volume, geometry = load(ws, untilt=True)
    assert geometry["resampled"]["why"] == ["tilt"]
    axes = volume.affine[:3, :3]
    np.testing.assert_allclose(axes.T @ axes, np.diag([2.25, 4, 9]), atol=1e-9)
    jsonschema.validate(geometry, json.loads((SCHEMAS / "geometry.json").read_text()))


def test_a_localizer_is_said_and_listed_as_dropped(tmp_path):
    where = [[-10.0, 20.0, 100.0 + 3 * k] for k in range(12)] + [[0.0, 0.0, 0.0]]
    iop = [[1.0, 0, 0, 0, 1.0, 0]] * 12 + [[0, 1.0, 0, 0, 0, -1.0]]
    folder = write_series(tmp_path / "d", stored(13), ImagePositionPatient=where, ImageOrientationPatient=iop)
    reporter = ListReporter()
    volume, geometry = load(workspace(tmp_path / "ws", folder), reporter)
    assert volume.array.shape[0] == 12
    (dropped,) = geometry["dropped"]
    assert (dropped["reason"], dropped["sop_instance_uid"].rsplit(".", 1)[1]) == ("localizer", "13")
    assert "localizer-left-out" in reporter.codes("warning")


def test_the_report_is_given_again_where_nothing_has_to_be_done(gap):
    ws, _ = gap
    for _ in range(2):
        reporter = ListReporter()
        run_stage(load_volume.STAGE, ws, reporter=reporter, on_gap="split", report=True)
        reports = [e for e in reporter.events if e["level"] == "report"]
        assert [r["message"].splitlines()[0] for r in reports] == ["ws/run_1", "ws/run_2"]
        assert [r["document"]["shape"][0] for r in reports] == [3, 2]


def test_the_report_does_not_make_the_volume_again(tmp_path):
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "d", stored()))
    load(ws)
    reporter = ListReporter()
    assert run_stage(load_volume.STAGE, ws, reporter=reporter, report=True).up_to_date
    (said,) = [e for e in reporter.events if e["level"] == "report"]
    assert said["document"] == json.loads((ws / "geometry.json").read_text())


def test_a_dry_run_writes_nothing(echoes):
    from mdcli.execution import Controls, execute
    from mdcli.workspace import Workspace

    params = load_volume.Params(on_many="split")
    assert execute(load_volume.STAGE, Workspace(echoes[0]), params, Controls(dry_run=True)) is None
    assert sorted(p.name for p in echoes[0].iterdir()) == ["series.json", "series.root"]


def test_the_end_and_the_start_of_a_series_may_be_absent(tmp_path):
    """Nobody can see that the last slices are absent; that the first are, the numbers say."""
    for numbers, codes in (([1, 2, 3, 4], []), ([4, 5, 6, 7], ["instance-numbers-missing"])):
        folder = write_series(tmp_path / f"d{numbers[0]}", stored(4), InstanceNumber=numbers)
        ws, reporter = workspace(tmp_path / f"ws{numbers[0]}", folder), ListReporter()
        _, geometry = load(ws, reporter)
        assert geometry["completeness"]["status"] == "unknown"
        assert [c for c in reporter.codes("warning") if c.startswith("instance")] == codes
        assert refused_code(ws, expect_instances=7) == "series-incomplete"


def test_colour_goes_with_no_unit(tmp_path):
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "d", stored()))
    for more in ({"suv": "bw"}, {"assume_hu": True}, {"untilt": True}, {"on_gap": "resample"}):
        assert refused(ws, colour=True, **more).code == "bad-options"
    assert refused(ws, colour=True).code == "not-colour"


def refused(ws, **params):
    with pytest.raises(MdError) as caught:
        load(ws, **params)
    assert sorted(p.name for p in ws.iterdir()) == ["series.json", "series.root"]
    return caught.value


def test_one_slice_needs_to_be_asked_for(tmp_path):
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "d", stored(1)))
    assert refused(ws).code == "single-slice"
    reporter = ListReporter()
    volume, geometry = load(ws, reporter, single_slice=True)
    assert volume.array.shape == (1, 34, 36)
    assert geometry["made"] == ["slice spacing, from SliceThickness"]
    assert "single-slice" in reporter.codes("warning")


def test_a_ct_without_rescale_needs_to_be_asked_for(tmp_path):
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "d", stored(), RescaleSlope=..., RescaleIntercept=...))
    assert refused(ws).code == "no-rescale"
    reporter = ListReporter()
    volume, geometry = load(ws, reporter, assume_hu=True)
    np.testing.assert_array_equal(volume.array, stored())
    assert (geometry["unit"], geometry["made"]) == ("HU", ["unit HU, by --assume-hu"])
    assert "assumed-hu" in reporter.codes("warning")


def test_the_expected_number_of_instances_is_held_against_what_is_there(tmp_path):
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "d", stored()))
    assert refused(ws, expect_instances=7).code == "series-incomplete"
    assert load(ws, expect_instances=6)[1]["completeness"]["status"] == "complete"


@pytest.mark.parametrize("syntax", [LITTLE, *COMPRESSED.values(), UNCOMPRESSED["deflated"]])
@pytest.mark.parametrize(
    "change",
    [
        {"pixel_spacing": [3.0, 1.5]},
        {"rescale_intercept": 0.0},
        {"image_orientation_patient": [-1.0, 0.0, 0.0, 0.0, 1.0, 0.0]},
        {"series_instance_uid": "1.2.3"},
        {"kvp": 120.0},
        {"modality": "MR"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_list_of_instances_that_was_edited_does_not_overrule_the_headers(tmp_path, change, syntax):
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "d", stored(3), syntax, BitsStored=12))
    document = json.loads((ws / "series.json").read_text())
    document["common"] |= change
    (ws / "series.json").write_text(json.dumps(document))
    error = refused(ws)
    assert (type(error), error.code) == (DataError, "bad-artifact")


def test_a_uid_that_became_a_list_is_refused_too(tmp_path):
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "d", stored(3)))
    document = json.loads((ws / "series.json").read_text())
    document["instances"][0]["attributes"]["sop_instance_uid"] = ["a"]
    (ws / "series.json").write_text(json.dumps(document))
    assert refused(ws).code == "bad-artifact"


def test_an_attribute_taken_out_of_the_list_is_missed(tmp_path):
    folder = write_series(tmp_path / "d", stored(3), RescaleType="US", RescaleSlope=2.0)
    ws = workspace(tmp_path / "ws", folder)
    document = json.loads((ws / "series.json").read_text())
    del document["common"]["rescale_type"]
    (ws / "series.json").write_text(json.dumps(document))
    error = refused(ws)
    assert (error.code, "RescaleType" in error.message) == ("bad-artifact", True)


def test_pixels_are_not_read_from_elsewhere_in_the_file(tmp_path):
    folder = write_series(tmp_path / "d", stored(3))
    ws = workspace(tmp_path / "ws", folder)
    document = json.loads((ws / "series.json").read_text())
    for item in document["instances"]:
        item["pixel_offset"] -= 200
        header = (folder / item["path"]).read_bytes()[: item["pixel_offset"]]
        item["header_sha256"] = hashlib.sha256(header).hexdigest()
    (ws / "series.json").write_text(json.dumps(document))
    assert refused(ws).code == "bad-artifact"


def test_a_folder_whose_name_looks_like_a_zip_files_is_a_folder(tmp_path):
    write_series(tmp_path / "all" / "x!", stored(3))
    ws = workspace(tmp_path / "ws", tmp_path / "all")
    np.testing.assert_array_equal(load(ws)[0].array, stored(3).astype(int) - 1024)
    assert run_stage(load_volume.STAGE, ws).up_to_date


def test_holes_in_the_numbering_are_a_warning(tmp_path):
    folder = write_series(tmp_path / "d", stored(4), InstanceNumber=[1, 2, 5, 6])
    reporter = ListReporter()
    _, geometry = load(workspace(tmp_path / "ws", folder), reporter)
    assert geometry["completeness"]["holes"] == [[3, 4]]
    assert "instance-numbers-missing" in reporter.codes("warning")


def test_a_lossy_source_is_a_warning_and_recorded(tmp_path):
    folder = write_series(tmp_path / "d", stored(), LossyImageCompression="01", LossyImageCompressionRatio=10.0)
    reporter = ListReporter()
    _, geometry = load(workspace(tmp_path / "ws", folder), reporter)
    assert (geometry["lossy"]["slices"], geometry["lossy"]["certain"], geometry["lossy"]["ratio"]) == (6, True, 10.0)
    assert "lossy-source" in reporter.codes("warning")


def test_loss_that_only_the_transfer_syntax_allows_is_not_called_certain(tmp_path):
    values = stored(3)
    folder = write_series(tmp_path / "d", values, COMPRESSED["jpeg-2000"], BitsStored=12)
    for path in folder.iterdir():
        # From JPEG 2000 Lossless Only (...4.90) to JPEG 2000 (...4.91).
        path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.91"))
    reporter = ListReporter()
    _, geometry = load(workspace(tmp_path / "ws", folder), reporter)
    assert (geometry["lossy"]["slices"], geometry["lossy"]["certain"]) == (3, False)
    (said,) = [event["message"] for event in reporter.events if event["code"] == "lossy-source"]
    assert "allows loss" in said
    assert "were compressed" not in said


def test_files_that_were_left_out_are_named(tmp_path):
    folder = write_series(tmp_path / "d", stored(3))
    first = min(p.name for p in folder.iterdir())
    (folder / "copy.dcm").write_bytes((folder / first).read_bytes())
    ws = tmp_path / "ws"
    run_stage(select_series.STAGE, ws, dicom=folder)
    _, geometry = load(ws)
    (dropped,) = geometry["dropped"]
    assert (dropped["reason"], {dropped["path"], dropped["copy_of"]}) == ("exact-copy", {"copy.dcm", first})
    series = json.loads((ws / "series.json").read_text())
    assert series["dropped"] == [dropped]
    jsonschema.validate(geometry, json.loads((SCHEMAS / "geometry.json").read_text()))
    jsonschema.validate(series, json.loads((SCHEMAS / "series.json").read_text()))


def test_pixels_that_changed_since_the_last_load_are_loaded_again(tmp_path):
    folder = write_series(tmp_path / "d", stored(), BitsStored=12)
    ws = workspace(tmp_path / "ws", folder)
    load(ws)
    assert run_stage(load_volume.STAGE, ws).up_to_date
    path = folder / scan(folder)[0].path
    data = bytearray(path.read_bytes())
    data[-2:] = b"\x01\x00"
    path.write_bytes(data)
    assert not run_stage(load_volume.STAGE, ws).up_to_date


def test_a_source_that_is_gone_is_missed(tmp_path):
    folder = write_series(tmp_path / "d", stored())
    ws = workspace(tmp_path / "ws", folder)
    (folder / scan(folder)[2].path).unlink()
    error = refused(ws)
    assert isinstance(error, MissingError)
    assert error.code == "source-missing"


def test_no_patient_is_named_in_what_is_written(tmp_path):
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "d", stored()))
    load(ws)
    for path in ws.iterdir():
        assert b"CANARY" not in path.read_bytes().upper(), path.name


# Real series


LOADED = {
    "01_ct_axial_rtstruct/dicom/image": ("int16", "HU", "axial"),
    "02_pet_rescale_per_slice/dicom/image": ("float64", "GML", "axial"),
    "03_mr_axial_rtstruct/dicom/image": ("int16", None, "axial"),
    "04_ct_3slice_dcmqi_seg/dicom/ct": ("int16", "HU", "axial"),
    "05_tiny_ct_seg_bitpacking/dicom/24x38x3/image": ("int16", None, "axial"),
    "05_tiny_ct_seg_bitpacking/dicom/23x38x3/image": ("int16", None, "axial"),
    "05_tiny_ct_seg_bitpacking/dicom/24x38x3/multiframe": ("int16", None, "axial"),
    "05_tiny_ct_seg_bitpacking/dicom/23x38x3/multiframe": ("int16", None, "axial"),
    "06_ct_gantry_tilt/dicom": ("int16", "HU", "axial"),
    "07_ct_gantry_tilt_no_tag/dicom": ("int16", "HU", "axial"),
    "12_mr_encodings/dicom/anatomical/001": ("int16", None, "sagittal"),
    "12_mr_encodings/dicom/anatomical/001_implicit": ("int16", None, "sagittal"),
    "12_mr_encodings/dicom/compressed/001": ("int16", None, "sagittal"),
    "12_mr_encodings/dicom/compressed_j2k/001": ("int16", None, "sagittal"),
    "12_mr_encodings/dicom/compressed_jpeg/001": ("int16", None, "sagittal"),
    "12_mr_encodings/dicom/compressed_jpegls/001": ("int16", None, "sagittal"),
    "12_mr_encodings/dicom/compressed_rle/001": ("int16", None, "sagittal"),
    "13_mr_sagittal_oblique/dicom": ("int16", None, "sagittal"),
    "14_mr_coronal_oblique/dicom": ("int16", None, "coronal"),
    "15_mr_enhanced_philips/dicom/anatomical": ("float64", None, "sagittal"),
    "15_mr_enhanced_philips/dicom/dti": ("float64", None, "axial"),
    "15_mr_enhanced_philips/dicom/fmri": ("float64", None, "axial"),
    "16_mr_enhanced_siemens/dicom": ("int16", None, "axial"),
    "17_mr_4d_ge/dicom": ("int16", None, "axial"),
    "18_mr_4d_philips/dicom": ("int16", None, "axial"),
    "19_mr_slope_per_slice/dicom": ("float64", None, "axial"),
    "21_mr_mosaic_study/dicom/mr_0003": ("int16", None, "axial"),
    "21_mr_mosaic_study/dicom/mr_0004": ("int16", None, "axial"),
    "21_mr_mosaic_study/dicom/mr_0005": ("int16", None, "axial"),
    "21_mr_mosaic_study/dicom/mr_0006": ("int16", None, "axial"),
    "22_mr_phase_rescale/dicom": ("int16", None, "axial"),
    "23_mr_two_kinds_in_one_series/dicom": ("int16", None, "axial"),
    "26_dicomdir_fileset/dicom/98892001/CT5N": ("int16", "HU", "axial"),
    "28_rtstruct_mim_dangling/dicom/mock": ("int16", "HU", "axial"),
    # RescaleType is US: a perfusion map, no Hounsfield units.
    "29_enhanced_ct/dicom": ("int16", None, "axial"),
    "33_ibsi_orientation/dicom": ("int16", "HU", "axial"),
    "35_ct_abdomen/dicom": ("int16", "HU", "axial"),
}
# Several volumes, which become one of four axes.
FOUR_AXES = {
    "15_mr_enhanced_philips/dicom/dti": ("b+direction", 4),
    "15_mr_enhanced_philips/dicom/fmri": ("time", 4),
    "17_mr_4d_ge/dicom": ("volume", 2),
    "18_mr_4d_philips/dicom": ("volume", 4),
    "21_mr_mosaic_study/dicom/mr_0003": ("time", 2),
    "21_mr_mosaic_study/dicom/mr_0004": ("time", 2),
    "21_mr_mosaic_study/dicom/mr_0005": ("time", 2),
    "21_mr_mosaic_study/dicom/mr_0006": ("time", 2),
    "23_mr_two_kinds_in_one_series/dicom": ("volume", 2),
}


def values_of(ws):
    """Return the values of a volume's file, (k, j, i) or (t, k, j, i), by another reader."""
    import nibabel

    return np.asanyarray(nibabel.load(ws / "volume.nii").dataobj).T


@pytest.fixture(scope="module", params=LOADED, ids=lambda name: name.replace("/dicom", ""))
def real(request, shared_data, tmp_path_factory):
    """Load one real series: (its name, its folder, the workspace)."""
    folder = shared_data / request.param
    ws = workspace(tmp_path_factory.mktemp("real") / "ws", folder)
    run_stage(load_volume.STAGE, ws, on_many="4d" if request.param in FOUR_AXES else "refuse")
    return request.param, folder, ws


@pytest.mark.slow
def test_a_real_series_has_its_type_unit_and_plane(real):
    name, _, ws = real
    values, geometry = values_of(ws), json.loads((ws / "geometry.json").read_text())
    assert (values.dtype.name, geometry["unit"], geometry["orientation"]) == LOADED[name]
    found = geometry["dimension"]
    assert (found and (found["name"], len(found["values"]))) == FOUR_AXES.get(name)
    assert list(values.shape) == ([] if found is None else [len(found["values"])]) + geometry["shape"]
    assert len(geometry["slices"]) == np.prod(values.shape[:-2])
    jsonschema.validate(geometry, json.loads((SCHEMAS / "geometry.json").read_text()))


@pytest.fixture(scope="session")
def headers_agree(shared_folder):
    """Return a function that asks the judge header_truth.py about a volume."""
    judge = shared_folder / "judges" / "header_truth.py"
    if not judge.is_file():
        pytest.skip("the judge header_truth.py is not there")

    def agree(volume, folder, *options):
        done = subprocess.run([sys.executable, judge, volume, folder, *options], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.startswith("true")

    return agree


@pytest.mark.slow
def test_the_headers_say_that_a_real_volume_is_true(real, headers_agree):
    name, folder, ws = real
    if "mosaic" in name:
        pytest.skip("a mosaic's header has no plane of its tiles: dcm2niix judges it")
    if "compressed_jpeg/" in name:
        pytest.skip("the judge can't decode JPEG: the same pixels in other encodings judge it")
    headers_agree(ws / "volume.nii", folder)


@pytest.mark.slow
def test_simpleitk_reads_the_same_voxels_at_the_same_place(real):
    import SimpleITK as sitk

    _, folder, ws = real
    geometry = json.loads((ws / "geometry.json").read_text())
    if geometry["dimension"]:
        pytest.skip("SimpleITK has no volume of four axes")
    if geometry["tilt"]["sheared"] or geometry["slices"][0]["frame"]:
        pytest.skip("SimpleITK is no judge of sheared stacks, and sorts no frames")
    reader = sitk.ImageSeriesReader()
    (uid,) = reader.GetGDCMSeriesIDs(str(folder))
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), uid))
    image = reader.Execute()
    volume = read_nifti(ws / "volume.nii")
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    theirs = sitk.GetArrayFromImage(image)
    ours = volume.array
    if np.dot(affine[:3, 2], volume.affine[:3, 2]) < 0:
        theirs = theirs[::-1]
        affine[:3, 3] += affine[:3, 2] * (len(theirs) - 1)
        affine[:3, 2] *= -1
    # SimpleITK rescales in float32 or float64 by the first slice's slope where it has one type for all.
    tolerance = 0 if ours.dtype.kind == "i" else 1e-6 * np.abs(ours).max()
    assert np.abs(theirs.astype(float) - ours.astype(float)).max() <= tolerance
    corner = [ours.shape[2] - 1, ours.shape[1] - 1, ours.shape[0] - 1, 1]
    for voxel in ([0, 0, 0, 1], corner):
        np.testing.assert_allclose((volume.affine @ voxel)[:3], (affine @ voxel)[:3], atol=5e-3)


# Philips' private "precise" scaling, which dcm2niix takes and md takes on request only (truth 6).
PRECISE = [f"15_mr_enhanced_philips/dicom/{name}" for name in ("anatomical", "dti", "fmri")]
TILTED = ["06_ct_gantry_tilt/dicom", "07_ct_gantry_tilt_no_tag/dicom"]


@pytest.mark.slow
def test_dcm2niix_reads_the_same_voxels_at_the_same_place(real, shared_data):
    """The hashes and affines of what dcm2niix wrote are in facts.json; voxels are compared in its axis order."""
    import nibabel as nib

    name, _, ws = real
    case, _, inside = name.partition("/dicom")
    facts = json.loads((shared_data / case / "facts.json").read_text())["dcm2niix"]
    prefix = inside.strip("/").replace("/", "__")
    matches = [
        fact for file, fact in facts.items() if file.startswith(prefix + "/") or (not prefix and "/" not in file)
    ]
    image = nib.load(ws / "volume.nii")
    stack = np.asanyarray(image.dataobj)
    compared = 0
    for fact in matches:
        if sorted(fact["shape"]) != sorted(stack.shape):
            continue
        if name in PRECISE:
            continue
        affine = np.array(fact["affine"]).reshape(4, 4)
        turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.io_orientation(affine))
        turned = nib.orientations.apply_orientation(stack, turn)
        moved = image.affine @ nib.orientations.inv_ornt_aff(turn, stack.shape[:3])
        corner = [*(np.array(turned.shape[:3]) - 1), 1]
        # Of a tilted series dcm2niix is no judge of the place.
        for voxel in [] if name in TILTED else ([0, 0, 0, 1], corner):
            np.testing.assert_allclose((moved @ voxel)[:3], (affine @ voxel)[:3], atol=0.02)
        if stack.dtype.kind == "f":
            # Slopes by slice: dcm2niix rounds to float32, so that no hash can be the same.
            assert turned.min() == pytest.approx(fact["min"], rel=1e-4, abs=1e-4)
            assert turned.max() == pytest.approx(fact["max"], rel=1e-4)
        else:
            hashes = {hashlib.sha256(turned.astype(t).tobytes()).hexdigest()[:16] for t in ("<i2", "<u2", "<f8")}
            assert fact["sha256"] in hashes
        compared += 1
    if not compared:
        pytest.skip(f"facts.json of {case} holds no dcm2niix volume of this series")


SPLIT = {
    "11_mr_mixed_orientations/dicom": ["orientation_1", "orientation_2"],
    "15_mr_enhanced_philips/dicom/fmri": ["time_1", "time_2", "time_3", "time_4"],
    "17_mr_4d_ge/dicom": ["volume_1", "volume_2"],
    "23_mr_two_kinds_in_one_series/dicom": ["volume_1", "volume_2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPLIT)
def test_the_headers_say_that_each_split_volume_is_true(shared_data, tmp_path, headers_agree, name):
    ws = workspace(tmp_path / "ws", shared_data / name)
    run_stage(load_volume.STAGE, ws, on_many="split")
    assert children(ws) == SPLIT[name]
    for child in SPLIT[name]:
        geometry = json.loads((ws / child / "geometry.json").read_text())
        used = tmp_path / child
        used.mkdir()
        if geometry["slices"][0]["frame"]:
            # Frames of one file: the judge wants its pixels apart, which the test of four axes holds.
            numbers = [s["frame"] for s in geometry["slices"]]
            assert len(set(numbers)) == len(numbers) == geometry["shape"][0]
            continue
        for item in geometry["slices"]:
            (used / item["path"]).symlink_to(shared_data / name / item["path"])
        headers_agree(ws / child / "volume.nii", used)


@pytest.mark.slow
def test_two_kinds_in_one_series_are_the_two_volumes_that_dcm2niix_finds(shared_data, tmp_path):
    """A field map in Hz and a magnitude image: no slice of one is in the other."""
    import nibabel as nib

    case = shared_data / "23_mr_two_kinds_in_one_series"
    ws = workspace(tmp_path / "ws", case / "dicom")
    run_stage(load_volume.STAGE, ws, on_many="split")
    theirs = [nib.load(path) for path in sorted((case / "ref" / "dcm2niix_upstream").glob("*.nii"))]
    assert len(theirs) == 2
    found = set()
    for child in children(ws):
        ours = nib.load(ws / child / "volume.nii")
        for number, image in enumerate(theirs):
            turn = nib.orientations.ornt_transform(nib.io_orientation(ours.affine), nib.io_orientation(image.affine))
            turned = nib.orientations.apply_orientation(np.asanyarray(ours.dataobj), turn)
            if np.array_equal(turned, np.asanyarray(image.dataobj)):
                found.add(number)
                moved = ours.affine @ nib.orientations.inv_ornt_aff(turn, ours.shape)
                np.testing.assert_allclose(moved, image.affine, atol=0.02)
    assert found == {0, 1}


@pytest.mark.slow
def test_jpeg_holds_the_pixels_that_other_encodings_hold(shared_data, tmp_path):
    folder = shared_data / "12_mr_encodings" / "dicom"
    names = ("compressed_jpeg", "compressed_jpegls", "compressed_rle", "compressed_j2k", "compressed")
    first, *others = [load(workspace(tmp_path / name, folder / name / "001"))[0] for name in names]
    for other in others:
        np.testing.assert_array_equal(first.array, other.array)
        np.testing.assert_array_equal(first.affine, other.affine)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["08_ct_missing_slice", "09_ct_variable_spacing_tilt"])
def test_real_gaps_are_filled_and_split(shared_data, tmp_path, name, headers_agree):
    from pydicom import dcmread

    folder = shared_data / name / "dicom"
    ws = workspace(tmp_path / "ws", folder)
    volume, geometry = load(ws, on_gap="resample")
    offsets = geometry["resampled"]["source_offsets"]
    sources = [dcmread(folder / s["path"]) for s in geometry["slices"]]
    for header, offset in zip(sources, offsets, strict=True):
        stored = header.pixel_array * float(header.RescaleSlope) + float(header.RescaleIntercept)
        # The place of the slice's first pixel by the volume's affine, against its header.
        place = (volume.affine @ [0, 0, offset, 1])[:3]
        allowed = 0.05 + 1e-3
        assert np.linalg.norm(place - np.array(header.ImagePositionPatient, float)) < allowed
        if offset == round(offset):
            np.testing.assert_array_equal(volume.array[round(offset)], stored)
    made = set(range(len(volume.array))) - {round(o) for o in offsets if o == round(o)}
    assert geometry["resampled"]["made_slices"] == sorted(made)
    other = workspace(tmp_path / "other", folder)
    run_stage(load_volume.STAGE, other, on_gap="split")
    for path in other.rglob("volume.nii"):
        headers_agree(path, folder, "--subset")


@pytest.mark.slow
def test_a_dx_image_is_what_pydicom_reads_at_the_detector(shared_data, tmp_path):
    from pydicom import dcmread

    folder = shared_data / "24_dx_2d_mono1" / "dicom"
    volume, geometry = load(workspace(tmp_path / "ws", folder))
    (path,) = [p for p in folder.iterdir() if p.is_file()]
    header = dcmread(path)
    np.testing.assert_array_equal(volume.array[0], header.pixel_array)
    assert (geometry["spacing_plane"], geometry["spacing_attribute"]) == ("detector", "ImagerPixelSpacing")
    # [row spacing, column spacing] in DICOM, along i and j here.
    assert geometry["spacing_mm"][:2] == [float(header.ImagerPixelSpacing[1]), float(header.ImagerPixelSpacing[0])]
    assert geometry["display"]["inverted"]
    jsonschema.validate(geometry, json.loads((SCHEMAS / "geometry.json").read_text()))


@pytest.mark.slow
def test_colour_is_what_pydicom_reads(shared_data, tmp_path):
    from pydicom import dcmread

    folder = shared_data / "20_mr_rgb_sc" / "dicom"
    ws = workspace(tmp_path / "ws", folder)
    run_stage(load_volume.STAGE, ws, colour=True)
    import nibabel

    geometry = json.loads((ws / "geometry.json").read_text())
    ours = np.asanyarray(nibabel.load(ws / "volume.nii").dataobj)
    ours = np.stack([ours[name] for name in ("R", "G", "B")], axis=-1).transpose(2, 1, 0, 3)
    for item in geometry["slices"]:
        np.testing.assert_array_equal(ours[item["k"]], dcmread(folder / item["path"]).pixel_array)
    assert geometry["colour"] == "RGB"
    jsonschema.validate(geometry, json.loads((SCHEMAS / "geometry.json").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, code",
    [
        ("04_ct_3slice_dcmqi_seg/dicom/seg", "unsupported-bits"),
        ("08_ct_missing_slice/dicom", "missing-slices"),
        ("09_ct_variable_spacing_tilt/dicom", "missing-slices"),
        ("10_ct_same_position/dicom", "several-volumes"),
        ("11_mr_mixed_orientations/dicom", "mixed-orientations"),
        ("15_mr_enhanced_philips/dicom/dti", "several-volumes"),
        ("15_mr_enhanced_philips/dicom/fmri", "several-volumes"),
        ("17_mr_4d_ge/dicom", "several-volumes"),
        ("18_mr_4d_philips/dicom", "several-volumes"),
        ("20_mr_rgb_sc/dicom", "colour"),
        ("21_mr_mosaic_study/dicom/mr_0003", "several-volumes"),
        ("23_mr_two_kinds_in_one_series/dicom", "several-volumes"),
        ("25_us_multiframe_jpeg/dicom", "colour"),
        ("26_dicomdir_fileset/dicom/77654033/CT2", "irregular-spacing"),
        ("26_dicomdir_fileset/dicom/98892003/MR700", "mixed-orientations"),
        ("28_rtstruct_mim_dangling/dicom/oriented", "several-studies"),
        ("28_rtstruct_mim_dangling/dicom/one_slice", "single-slice"),
        *(
            (f"30_enhanced_mr_five_encodings/dicom/emri_small{name}", "no-position")
            for name in ("", "_RLE", "_big_endian", "_jpeg_2k_lossless", "_jpeg_ls_lossless")
        ),
        ("31_odd_syntaxes/dicom/MR_small_bigendian", "single-slice"),
    ],
)
def test_what_is_no_single_volume_is_refused_by_its_code(shared_data, tmp_path, name, code):
    instances = scan(shared_data / name)
    first = [i for i in instances if i.get("SeriesInstanceUID") == instances[0].get("SeriesInstanceUID")]
    error = refused(workspace(tmp_path / "ws", shared_data / name, first))
    assert (type(error), error.code) == (DataError, code)


@pytest.mark.slow
def test_the_first_slices_of_odd_syntaxes_are_alike(shared_data, tmp_path):
    folder = shared_data / "31_odd_syntaxes" / "dicom"
    found = {}
    for name in ("MR_small", "MR_small_bigendian", "MR_small_implicit", "MR_small_RLE", "MR_small_jpeg_ls_lossless"):
        ws = workspace(tmp_path / name, folder / name)
        found[name] = load(ws, single_slice=True)[0].array
    for name, array in found.items():
        np.testing.assert_array_equal(array, found["MR_small"], err_msg=name)


# Hostile series


@pytest.fixture(scope="module")
def hostile(shared_data, shared_folder, tmp_path_factory):
    """Make the hostile cases; return their folder, and what a good tool does with each."""
    maker = shared_folder / "hostile" / "make_hostile.py"
    if not maker.is_file():
        pytest.skip("the maker of hostile cases is not there")
    out = tmp_path_factory.mktemp("hostile")
    base = shared_data / "01_ct_axial_rtstruct" / "dicom" / "image"
    subprocess.run([sys.executable, maker, base, out], check=True, capture_output=True)
    return out, {case["case"]: case["verdict"] for case in json.loads((out / "cases.json").read_text())}


# A user who may read no file of mode 000, which root may.
NOBODY = 65534
MEMORY_KIB = 1 << 20


def as_nobody():
    """Return what to put before a command to run it as a normal user, or skip."""
    if os.geteuid() != 0:
        return []
    before = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    try:
        able = subprocess.run([*before, sys.executable, "-c", "import mdcli"], capture_output=True, check=False)
    except OSError:
        pytest.skip("setpriv is not there")
    if able.returncode:
        pytest.skip("a normal user can't run this Python")
    return before


# A child's peak begins at that of the process that starts it, from before its own program is there. So a small process
# starts what is measured, not the one of the tests.
MEASURE = """
import json, os, subprocess, sys
with open("out", "wb") as out, open("err", "wb") as err:
    process = subprocess.Popen(sys.argv[1:], stdout=out, stderr=err)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
print(json.dumps([process.returncode, used.ru_maxrss]))
"""


def end_of(command, where, environment):
    """Run a command; return its status, its two outputs as bytes, and its peak memory in KiB. What hangs is killed."""
    measured = [sys.executable, "-I", "-c", MEASURE, "timeout", "60", *command]
    done = subprocess.run(measured, stdout=subprocess.PIPE, env=environment, cwd=where, check=True)
    status, peak = json.loads(done.stdout)
    return status, (where / "out").read_bytes(), (where / "err").read_bytes(), peak


def test_the_memory_of_a_command_is_its_own(tmp_path):
    held = bytearray(b"x" * (256 << 20))
    status, out, err, peak = end_of([sys.executable, "-I", "-c", "print(1)"], tmp_path, dict(os.environ))
    assert (status, out, err) == (0, b"1\n", b"")
    assert peak < 128 << 10 < len(held) >> 10


@pytest.mark.slow
@pytest.mark.parametrize("user", ["the user of the tests", "a normal user"])
def test_every_hostile_case_ends_as_it_should(hostile, user):
    """Each in processes of its own, as a script would run it: its verdict, no traceback, no name, nothing left behind."""
    out, verdicts = hostile
    before = as_nobody() if user == "a normal user" else []
    normal = bool(before) or os.geteuid() != 0
    # Pytest's own folders are closed to other users.
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        top.chmod(0o755)
        shutil.copytree(out, top / "cases", ignore=shutil.ignore_patterns("000.dcm", "003.dcm"))
        for path in [*out.glob("*/in/000.dcm"), *out.glob("*/in/003.dcm")]:
            copy = top / "cases" / path.relative_to(out)
            if path.is_fifo():
                os.mkfifo(copy)
            else:
                shutil.copy2(path, copy)
        if before:
            for path in [top / "cases", *(top / "cases").rglob("*")]:
                os.chown(path, NOBODY, NOBODY)
        base, wrong = None, {}
        for case, verdict in verdicts.items():
            where = top / f"run_{case}"
            where.mkdir()
            if before:
                os.chown(where, NOBODY, NOBODY)
            problem, base = _hostile_end(before, top / "cases" / case / "in", where, verdict, base)
            if case == "64_unreadable" and not normal:
                problem = None
            if problem:
                wrong[case] = problem
        assert wrong == {}
        assert sorted(p.name for p in top.iterdir()) == sorted(["cases", *(f"run_{case}" for case in verdicts)])
    assert not list(Path(tempfile.gettempdir()).glob("pwned*"))


def _hostile_end(before, source, where, verdict, base):
    """Return what is wrong with how a case ended, or None; and the volume of the plain case."""
    ws = where / "ws"
    environment = {
        **os.environ,
        "HOME": str(where),
        "XDG_CACHE_HOME": str(where / "cache"),
        "PYTHONPATH": str(REPOSITORY),
    }
    md = [*before, sys.executable, "-m", "mdcli"]
    said, status, peak = b"", 0, 0
    for command in ([*md, "select-series", str(ws), "--dicom", str(source)], [*md, "load-volume", str(ws)]):
        status, out, err, memory = end_of(command, where, environment)
        said, peak = said + out + err, max(peak, memory)
        if status:
            break
    names = [p.name for p in ws.iterdir()] if ws.exists() else []
    written = b"".join(p.read_bytes() for p in ws.rglob("*") if p.is_file()) if ws.exists() else b""
    everything = (said + written).upper()
    if b"TRACEBACK" in everything or status in (70, 124):
        return f"status {status}: {said[-300:]!r}", base
    for word in (b"SECRET", b"PWNED_PID", b"PWNED_NAME", b"\x1b[31M", b"PWNED_PREAMBLE"):
        if word in everything:
            return f"it says {word!r}", base
    said.decode("utf-8")
    if peak > MEMORY_KIB:
        return f"{peak} KiB of memory", base
    left = [n for n in names if n.startswith((".", "volume", "geometry"))]
    if verdict in ("REFUSE", "SPLIT"):
        good = status not in (0, 1, 2) and b"md: error: " in said and not left
        return None if good else f"{verdict}, status {status}, left {left}: {said[-300:]!r}", base
    if status:
        return f"{verdict}, status {status}: {said[-300:]!r}", base
    volume = read_nifti(ws / "volume.nii")
    found = np.array(volume.array), volume.affine
    base = base or found
    if verdict in ("SAME", "SKIP") and not all(np.array_equal(a, b) for a, b in zip(found, base, strict=True)):
        return "another volume", base
    return ("no warning" if verdict == "WARN" and b"warning" not in said else None), base


def through(folder, ws, reporter):
    run_stage(select_series.STAGE, ws, reporter=reporter, dicom=folder)
    return load(ws, reporter)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case, code",
    [
        ("01_truncated_in_pixels", "truncated-pixels"),
        ("03_pixels_short", "pixels-short"),
        ("13_duplicate_ipp", "same-position"),
        ("14_missing_slice", "missing-slices"),
        ("15_variable_spacing", "missing-slices"),
        ("18_nan_spacing", "bad-spacing"),
        ("35_two_frames_of_reference", "several-frames-of-reference"),
        ("36_two_volumes_one_series", "several-volumes"),
        ("46_one_rgb_slice", "mixed-kinds"),
        ("47_wrong_ts_claims_j2k", "bad-encapsulation"),
        ("49_unknown_ts", "unknown-syntax"),
        ("54_bomb_all", "pixels-short"),
        ("56_bomb_deflate", "deflate-bomb"),
    ],
)
def test_a_hostile_series_is_refused_by_its_code(hostile, tmp_path, case, code):
    with pytest.raises(DataError) as caught:
        through(hostile[0] / case / "in", tmp_path / "ws", ListReporter())
    assert caught.value.code == code
    named = {"13_duplicate_ipp": ("004.dcm", "005.dcm"), "46_one_rgb_slice": ("004.dcm",)}.get(case, ())
    assert all(name in caught.value.message for name in named)


@pytest.mark.slow
def test_values_of_hostile_rescales_are_exact(hostile, tmp_path):
    out, _ = hostile
    base = through(out / "00_base" / "in", tmp_path / "base", ListReporter()).array.astype(float)
    negated = through(out / "40_negative_slope" / "in", tmp_path / "a", ListReporter()).array
    np.testing.assert_array_equal(negated, -base)
    by_slice = through(out / "43_slope_per_slice" / "in", tmp_path / "b", ListReporter()).array
    np.testing.assert_array_equal(by_slice, base * (1 + 0.5 * np.arange(len(base)))[:, None, None])
