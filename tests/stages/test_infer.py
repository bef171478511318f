"""The stage `infer`, run as `md` runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from onnx import helper

from mdcli.dicom.headers import read_instance
from mdcli.dicom.series import series_to_json
from mdcli.errors import ConfigError, DataError, MissingError
from mdcli.execution import Controls, why_stale
from mdcli.imaging.nifti import nifti_header, read_nifti, write_nifti
from mdcli.stages import infer
from mdcli.stages.infer import STAGE, Params
from mdcli.testing import ListReporter, run_stage
from mdcli.workspace import Workspace, json_bytes
from tests.inference.nets import bands, card, conv, network, shifted, write_model
from tests.made_series import write_slice

pytest.importorskip("onnxruntime")

AXIAL = np.array([[0.8, 0, 0, -10], [0, 0.8, 0, -20], [0, 0, 2.5, -30], [0, 0, 0, 1]])
SERIES = "2.25.1"


def ramp(shape=(6, 5, 4)) -> np.ndarray:
    """Return values that differ along every axis: -50 + 30 k + 5 j + i."""
    k, j, i = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    return (-50 + 30 * k + 5 * j + i).astype(np.int16)


def workspace(folder: Path, values=None, affine=AXIAL, *, unit="HU", **facts) -> Workspace:
    """Write what load-volume would."""
    values = ramp() if values is None else values
    folder.mkdir()
    with (folder / "volume.nii").open("wb") as file:
        write_nifti(file, values, affine, unit)
    sizes = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    geometry = {
        "schema": "md.geometry/1",
        "series_instance_uid": SERIES,
        "study_instance_uid": "2.25.2",
        "frame_of_reference_uid": "2.25.3",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.2",
        "modality": "CT",
        "patient_position": "HFS",
        "shape": list(values.shape),
        "affine_lps": affine.tolist(),
        "unit": unit,
        "rescale_type": unit,
        "spacing_mm": sizes,
        "orientation": "axial",
        "obliquity_deg": 0.0,
        "direction_orthonormal": [[1, 0, 0], [0, 1, 0]],
        "coverage_mm": values.shape[0] * sizes[2],
        "regularity": dict.fromkeys(
            ("step_mm", "smallest_step_mm", "largest_step_mm", "off_grid_mm", "off_grid_allowed_mm"), 0.0
        ),
        "tilt": {"degrees": 0.0, "shift_mm": 0.0, "gantry_detector_tilt_deg": None, "sheared": False},
        "tolerances": {},
        "dimension": None,
        "photometric_interpretation": "MONOCHROME2",
        "transfer_syntaxes": ["1.2.840.10008.1.2.1"],
        "lossy": None,
        "padding": None,
        "made": [],
        "dropped": [],
        "completeness": {"status": "unknown", "expected": None, "found": 6, "instance_numbers": None, "holes": []},
        "slices": [
            {
                "k": k,
                "sop_instance_uid": f"2.25.{k + 10}",
                "path": f"{k}.dcm",
                "instance_number": k + 1,
                "position_mm": (affine[:3, 3] + k * affine[:3, 2]).tolist(),
                "rescale_slope": 1.0,
                "rescale_intercept": 0.0,
            }
            for k in range(values.shape[0])
        ],
    }
    (folder / "geometry.json").write_text(json.dumps(geometry | facts))
    return Workspace(folder)


def labels_of(ws: Workspace) -> np.ndarray:
    return read_nifti(ws.path / "labels.nii").array


def refused(ws: Workspace, kind, model: Path, **params) -> str:
    with pytest.raises(kind) as error:
        run_stage(STAGE, ws, model=str(model), **params)
    assert sorted(p.name for p in ws.path.iterdir() if not p.name.endswith(".record.json")) == [
        "geometry.json",
        "volume.nii",
    ]
    assert str(ws.path.parent) not in error.value.message
    return error.value.code


def banded(values: np.ndarray, edges=(0, 100)) -> np.ndarray:
    return sum((values > edge).astype(np.uint8) for edge in edges)


def test_labels_and_what_they_mean_are_written(tmp_path):
    whole = {"status": "complete", "expected": 6, "found": 6, "instance_numbers": [1, 6], "holes": []}
    ws = workspace(tmp_path / "ws", completeness=whole)
    outcome = run_stage(STAGE, ws, model=str(write_model(tmp_path / "tiny", bands())))
    assert outcome.result == "processed" and set(outcome.artifacts[ws.path]) == {"labels", "segments"}
    labels = read_nifti(ws.path / "labels.nii")
    np.testing.assert_array_equal(labels.array, banded(ramp()))
    np.testing.assert_allclose(labels.affine, AXIAL, atol=1e-6)
    found = ws.read_json("segments")
    jsonschema.validate(found, json.loads((files("mdcli") / "schemas" / "segments.json").read_text()))
    low, high = found["segments"]
    # Slice 0 reaches -50 + 20 + 3 < 0; slice 5 starts at 100, and only its corner is not above that.
    expected = [(int((banded(ramp()) == n).sum()), n) for n in (1, 2)]
    assert [(s["voxels"], s["value"]) for s in (low, high)] == expected
    assert (low["touches_first_slice"], low["touches_last_slice"]) == (False, True)
    assert (high["touches_first_slice"], high["touches_last_slice"]) == (False, True)
    assert low["algorithm"] == {"type": "AUTOMATIC", "name": "tiny", "version": "1.0.0"}
    assert found["completeness"]["status"] == "complete" and found["out_of_scope"] is None
    assert (found["series_instance_uid"], found["frame_of_reference_uid"]) == (SERIES, "2.25.3")
    assert found["engine"]["precision"] == "float32" and found["engine"]["provider"] == "CPUExecutionProvider"


@pytest.mark.parametrize(
    "window",
    [
        pytest.param({"size": ["full"] * 3, "overlap": 0, "blending": "constant"}, id="whole"),
        pytest.param({"size": [4, 3, 2], "overlap": 0.5, "blending": "gaussian"}, id="overlapping windows"),
        pytest.param({"size": [9, 3, 9], "overlap": 0.25, "blending": "gaussian"}, id="windows larger than the volume"),
        pytest.param({"size": [3, 3, 4], "halo": [1, 1, 1]}, id="windows with a halo"),
        pytest.param({"size": [2, "full", "full"], "halo": [0, 0, 0]}, id="slabs"),
    ],
)
@pytest.mark.parametrize("inversion", ["scores", "labels"])
def test_windows_of_any_kind_give_the_same_labels(tmp_path, window, inversion):
    ws = workspace(tmp_path / "ws")
    said = card(output={"inversion": inversion})
    said["window"] = window
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "tiny", bands(), said)))
    np.testing.assert_array_equal(labels_of(ws), banded(ramp()))


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_the_number_of_cores_changes_no_byte(tmp_path, jobs):
    values = np.random.default_rng(3).integers(-200, 300, (40, 12, 12)).astype(np.int16)
    ws = workspace(tmp_path / "ws", values)
    said = card(window={"size": [8, 8, 8], "overlap": 0.5, "blending": "gaussian"})
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "tiny", shifted(0), said)), controls=Controls(jobs=jobs))
    one = workspace(tmp_path / "one", values)
    run_stage(STAGE, one, model=str(tmp_path / "tiny"), controls=Controls(jobs=1))
    assert (ws.path / "labels.nii").read_bytes() == (one.path / "labels.nii").read_bytes()


@pytest.mark.parametrize("axes", ["xyz", "xzy", "yxz", "yzx", "zxy", "zyx"])
@pytest.mark.parametrize("orientation", ["as-acquired", "LPS", "RAS", "LAI"])
@pytest.mark.parametrize("along", "xyz")
def test_a_network_that_looks_one_voxel_on_shows_order_and_handedness(tmp_path, axes, orientation, along):
    """The network gives each voxel the band of its neighbour at index + 1 along the axis that the card calls x, y or z."""
    values = np.random.default_rng(7).integers(-200, 300, (5, 4, 3)).astype(np.int16)
    ws = workspace(tmp_path / "ws", values)
    said = card(
        inputs0={"axes": ["C", *axes], "orientation": orientation},
        output={"axes": ["C", *axes]},
    )
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "tiny", shifted(axes.index(along)), said)))
    # The volume is LPS+: as-acquired and LPS count along +i, +j, +k; R, A and I against them.
    kji = "zyx".index(along)
    letter = dict(zip("xyz", orientation, strict=False))[along] if orientation != "as-acquired" else "L"
    step = -1 if letter in "RAI" else 1
    neighbour = np.zeros_like(values)
    source, target = [slice(None)] * 3, [slice(None)] * 3
    source[kji], target[kji] = (slice(1, None), slice(None, -1)) if step == 1 else (slice(None, -1), slice(1, None))
    neighbour[tuple(target)] = values[tuple(source)]
    np.testing.assert_array_equal(labels_of(ws), banded(neighbour))


def test_the_output_may_have_its_axes_in_another_order(tmp_path):
    ws = workspace(tmp_path / "ws")
    turn = helper.make_node("Transpose", ["lines"], ["scores"], perm=[0, 1, 4, 2, 3])
    model = bands()
    model.graph.node[0].output[0] = "lines"
    model.graph.node.append(turn)
    said = card(output={"axes": ["C", "x", "z", "y"]})
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "tiny", model, said)))
    np.testing.assert_array_equal(labels_of(ws), banded(ramp()))


def test_a_resampled_model_puts_a_structure_back_where_it_was(tmp_path):
    values = np.full((20, 30, 30), -500, np.int16)
    values[6:12, 8:20, 5:14] = 500
    ws = workspace(tmp_path / "ws", values)
    said = card(
        inputs0={"axes": ["C", "x", "y", "z"], "orientation": "RAS", "spacing": [1.1, 1.2, 1.7]},
        output={"axes": ["C", "x", "y", "z"]},
        window={"size": [12, 12, 12], "overlap": 0.25, "blending": "gaussian"},
    )
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "tiny", bands(), said)))
    found = labels_of(ws) == 2
    truth = values > 0
    # The network's grid is offset from the volume's by up to half a voxel: the border may move by one, the inside may not.
    inner = np.zeros_like(truth)
    inner[7:11, 9:19, 6:13] = True
    outer = np.zeros_like(truth)
    outer[5:13, 7:21, 4:15] = True
    assert found[inner].all() and not found[~outer].any()
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9


# Refusals


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "spacing, window",
    [
        pytest.param("as-acquired", {"size": [4, 3, 2], "overlap": 0.75, "blending": "constant"}, id="blending"),
    ],
)
def test_finite_scores_whose_sum_is_not_are_refused(tmp_path, spacing, window):
    # Up to 2 x 103 x 1.6e36 is 3.3e38, and -2 x 50 x 1.6e36 at the other end; float32 ends at 3.4e38.
    slopes = np.array([0, -1.6e36, 3.2e36], np.float32).reshape(-1, 1, 1, 1, 1)
    said = card(inputs0={"spacing": spacing, "orientation": "LPS"})
    said["window"] = window
    values = np.where(np.indices((6, 5, 4)).sum(0) % 2, 103, -103).astype(np.int16)
    ws = workspace(tmp_path / "ws", values)
    assert refused(ws, DataError, write_model(tmp_path / "tiny", conv(slopes), said)) == "nan-in-output"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_network_that_gives_no_number_is_refused(tmp_path, value):
    node = helper.make_node("Pow", ["image", "power"], ["powers"])
    # Below 0 a fractional power is no number; 0 to the power of -1 is infinite.
    power = {"power": np.array([0.5 if np.isnan(value) else -1.0], np.float32)}
    spread = helper.make_node("Concat", ["powers"] * 3, ["scores"], axis=1)
    model = write_model(tmp_path / "tiny", network([node, spread], power))
    ws = workspace(tmp_path / "ws")
    with pytest.raises(DataError) as error:
        run_stage(STAGE, ws, model=str(model))
    assert error.value.code == "nan-in-output" and error.value.numbers["count"] > 0
    assert not (ws.path / "labels.nii").exists()


@pytest.mark.parametrize(
    "model, said",
    [
        pytest.param(bands(shape=("n", 2, "a", "b", "c")), {}, id="two channels in"),
        pytest.param(bands((0.0,)), {}, id="a channel too few out"),
        pytest.param(
            bands(out=("n", "c", "x", "y", "z"), edges=(0.0, 1.0, 2.0)), {}, id="a channel too many, seen when it runs"
        ),
        pytest.param(bands(shape=(1, 1, 8, 8, 8)), {}, id="a fixed size, the card says full"),
        pytest.param(
            bands(shape=(1, 1, 8, 8, 8)),
            {"window": {"size": [8, 8, 16], "overlap": 0.5}},
            id="a fixed size, another window",
        ),
        pytest.param(bands(shape=("n", 1, "a", "b")), {}, id="two dimensions"),
        pytest.param(bands(kind=11), {}, id="double precision"),
        pytest.param(bands(), {"inputs0": {"tensor": "picture"}}, id="another input's name"),
        pytest.param(bands(), {"output": {"tensor": "logits"}}, id="another output's name"),
    ],
)
def test_a_network_that_is_not_what_its_card_says_is_refused(tmp_path, model, said):
    ws = workspace(tmp_path / "ws")
    code = refused(ws, ConfigError, write_model(tmp_path / "tiny", model, card(**said)))
    assert code in ("network-does-not-fit", "bad-network")


@pytest.mark.parametrize("unit", ["BQML", None])
def test_another_unit_is_refused_and_nothing_waives_it(tmp_path, unit):
    ws = workspace(tmp_path / "ws", unit=unit)
    model = write_model(tmp_path / "tiny", bands())
    assert refused(ws, DataError, model, accept_out_of_scope="because") == "wrong-unit"


@pytest.mark.parametrize(
    "accepts, words",
    [
        ({"modality": ["MR", "PT"]}, "modality is CT, the model takes MR or PT"),
        ({"slice_count": {"min": 10}}, "slice_count is 6, the model takes at least 10"),
        ({"spacing_mm": {"max": 2}}, "spacing_mm is 0.8 x 0.8 x 2.5, the model takes at most 2"),
        ({"orientation": ["coronal"]}, "orientation is axial, the model takes coronal"),
        ({"coverage_mm": {"min": 10, "max": 12.5}}, "coverage_mm is 15, the model takes at least 10 and at most 12.5"),
    ],
)
def test_out_of_scope_says_value_and_bound(tmp_path, accepts, words):
    ws = workspace(tmp_path / "ws")
    model = write_model(tmp_path / "tiny", bands(), card(accepts=accepts))
    with pytest.raises(DataError) as error:
        run_stage(STAGE, ws, model=str(model))
    assert (error.value.code, error.value.message) == ("out-of-scope", words)
    reporter = ListReporter()
    run_stage(STAGE, ws, model=str(model), accept_out_of_scope="a phantom", reporter=reporter)
    assert "out-of-scope" in reporter.codes("warning")
    found = ws.read_json("segments")["out_of_scope"]
    assert found["reason"] == "a phantom" and found["violations"][0]["attribute"] in accepts


def test_within_scope_is_run_and_what_nobody_knows_is_said(tmp_path):
    ws = workspace(tmp_path / "ws")
    accepts = {
        "modality": "ct",
        "spacing_mm": {"min": 0.5, "max": 3},
        "patient_sex": ["F"],
        "body_part_examined": ["HEAD"],
    }
    reporter = ListReporter()
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "tiny", bands(), card(accepts=accepts))), reporter=reporter)
    event = next(e for e in reporter.events if e["code"] == "scope-unknown")
    assert event["numbers"] == {"attributes": ["patient_sex", "body_part_examined"]}


def sourced(folder: Path, *headers: dict, uid: str = SERIES) -> Workspace:
    """Return a workspace whose slices have these attributes, in `series.json` and in source files that lie beside it."""
    ws = workspace(folder / "ws")
    root = folder / "dicom"
    root.mkdir()
    instances = []
    for k in range(6):
        more = headers[min(k, len(headers) - 1)]
        attributes = {"SOPInstanceUID": f"2.25.{k + 10}", "SeriesInstanceUID": uid, **more}
        write_slice(root / f"{k}.dcm", np.zeros((5, 4), np.uint16), **attributes)
        instances.append(read_instance(root / f"{k}.dcm", f"{k}.dcm"))
    (ws.path / "series.json").write_bytes(json_bytes(series_to_json(instances)))
    (ws.path / "series.root").write_text(f"{root}\n")
    return ws


def scope_of(ws: Workspace, accepts: dict) -> tuple[str, list[str]]:
    """Return why a model that accepts this is refused (empty where it is not), and what nobody knows."""
    reporter = ListReporter()
    model = write_model(ws.path.parent / "tiny", bands(), card(accepts=accepts))
    message = ""
    try:
        run_stage(STAGE, ws, model=str(model), reporter=reporter)
    except DataError as error:
        assert error.code == "out-of-scope"
        message = error.message
    unknown = [e["numbers"]["attributes"] for e in reporter.events if e["code"] == "scope-unknown"]
    return message, unknown[0] if unknown else []


@pytest.mark.parametrize(
    "headers, accepts, message, unknown",
    [
        pytest.param(
            [{"SliceThickness": 3}, {"SliceThickness": 7}, {"SliceThickness": 3}],
            {"slice_thickness": {"max": 3}},
            "slice_thickness is 7 in 1 of 6 images, the model takes at most 3",
            [],
            id="one slice too thick",
        ),
        pytest.param(
            [{"BodyPartExamined": "CHEST"}, {"BodyPartExamined": "HEAD"}],
            {"body_part_examined": ["ABDOMEN"]},
            "body_part_examined is CHEST and HEAD, the model takes ABDOMEN",
            [],
            id="two body parts, neither wanted",
        ),
        pytest.param(
            [{"ContrastBolusAgent": "Iodine"}, {}],
            {"contrast_bolus_agent": ["none"]},
            "contrast_bolus_agent is Iodine in 1 of 6 images, the model takes none",
            ["contrast_bolus_agent"],
            id="one image says it and does not fit",
        ),
        pytest.param(
            [{"BodyPartExamined": "HEAD"}, {}],
            {"body_part_examined": ["head"]},
            "",
            ["body_part_examined"],
            id="one image says it and fits",
        ),
        pytest.param(
            [{"ImageType": ["ORIGINAL", "AXIAL"]}], {"image_type": ["axial"]}, "", [], id="one of many values"
        ),
        pytest.param([{}], {"view_position": ["AP"]}, "", ["view_position"], id="no image says it"),
    ],
)
def test_every_image_is_held_against_the_bound(tmp_path, headers, accepts, message, unknown):
    assert scope_of(sourced(tmp_path, *headers), accepts) == (message, unknown)


def test_the_series_of_another_volume_is_not_asked(tmp_path):
    ws = sourced(tmp_path, {"BodyPartExamined": "HEAD", "PatientAge": "005Y"}, uid="2.25.99")
    accepts = {"body_part_examined": ["CHEST"], "patient_age": {"min": 18}}
    assert scope_of(ws, accepts) == ("", ["body_part_examined", "patient_age"])


@pytest.mark.parametrize(
    "headers, accepts, message, unknown",
    [
        ([{"PatientAge": "047Y"}], {"patient_age": {"min": 18}}, "", []),
        ([{"PatientAge": "047Y"}], {"patient_age": {"min": 18, "max": 46}}, "at least 18 and at most 46", []),
        ([{"PatientAge": "047Y"}, {"PatientAge": "005Y"}], {"patient_age": {"min": 18}}, "at least 18", []),
        ([{"PatientAge": "047Y"}, {}], {"patient_age": {"min": 18}}, "", ["patient_age"]),
        ([{}, {"PatientAge": "011M"}], {"patient_age": {"min": 1}}, "at least 1", ["patient_age"]),
        ([{"PatientSex": "F"}], {"patient_sex": ["F"]}, "", []),
        ([{"PatientSex": "F"}], {"patient_sex": ["M"]}, "M", []),
        ([{"PatientSex": "M"}, {"PatientSex": "F"}], {"patient_sex": ["M"]}, "M", []),
    ],
)
def test_age_and_sex_are_held_against_the_bound_and_never_said(tmp_path, headers, accepts, message, unknown):
    ws = sourced(tmp_path, *headers)
    (attribute,) = accepts
    found, unclear = scope_of(ws, accepts)
    assert unclear == unknown
    assert re.sub(r" in [1-5] of 6 images", "", found) == (
        f"{attribute} is outside, the model takes {message}" if message else ""
    )
    if message:
        run_stage(STAGE, ws, model=str(tmp_path / "tiny"), accept_out_of_scope="a phantom")
        (violation,) = ws.read_json("segments")["out_of_scope"]["violations"]
        assert violation == {"attribute": attribute, "value": "outside", "accepts": message}
        kept = "".join(p.read_text() for p in ws.path.glob("*.json"))
        assert not any(header.get("PatientAge", "-none-") in kept for header in headers)
        assert "patient_age" not in (ws.path / "series.json").read_text()


def test_a_source_is_opened_only_where_the_card_asks_for_age_or_sex(tmp_path):
    ws = sourced(tmp_path, {"PatientAge": "047Y", "BodyPartExamined": "HEAD"})
    (tmp_path / "dicom" / "3.dcm").unlink()
    assert scope_of(ws, {"body_part_examined": ["HEAD"]}) == ("", [])
    model = write_model(tmp_path / "asking", bands(), card(accepts={"patient_age": {"min": 18}}))
    with pytest.raises(MissingError) as error:
        run_stage(STAGE, ws, model=str(model))
    assert error.value.code == "source-missing"


def test_a_changed_age_is_noticed_and_a_copied_source_is_not(tmp_path):
    ws = sourced(tmp_path, {"PatientAge": "047Y"})
    params = Params(model=str(write_model(tmp_path / "tiny", bands(), card(accepts={"patient_age": {"min": 18}}))))
    run_stage(STAGE, ws, model=params.model)
    assert why_stale(STAGE, ws, params) == []
    path = tmp_path / "dicom" / "2.dcm"
    content = path.read_bytes()
    os.utime(path, (1, 1))
    assert why_stale(STAGE, ws, params) == []
    path.write_bytes(content.replace(b"047Y", b"005Y"))
    assert any("source" in reason for reason in why_stale(STAGE, ws, params))
    with pytest.raises(DataError) as error:
        run_stage(STAGE, ws, model=params.model)
    assert error.value.code == "source-changed"


def test_an_empty_result_is_a_result_or_an_error_as_the_card_says(tmp_path):
    values = np.full((6, 5, 4), -500, np.int16)
    valid = write_model(tmp_path / "valid", bands(), card(empty="valid"))
    organ = write_model(tmp_path / "organ", bands(), card(empty="error"))
    ws = workspace(tmp_path / "ws", values)
    outcome = run_stage(STAGE, ws, model=str(valid))
    assert outcome.result == "nothing-found" and not labels_of(ws).any()
    found = ws.read_json("segments")
    assert found["result"] == "nothing-found" and [s["voxels"] for s in found["segments"]] == [0, 0]
    assert refused(workspace(tmp_path / "two", values), DataError, organ) == "empty-result"


def test_a_sheared_volume_is_run_at_right_angles_and_its_labels_come_back_to_its_slices(tmp_path):
    affine = AXIAL.copy()
    affine[1, 2] = 2.0
    # Each slice has one value, so that what a voxel's neighbours in the plane are makes no difference.
    values = np.repeat(np.array([-50, 50, 150, 50, -50, 150], np.int16), 20).reshape(6, 5, 4)
    ws = workspace(tmp_path / "ws", values, affine=affine)
    reporter = ListReporter()
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "tiny", bands())), reporter=reporter)
    np.testing.assert_array_equal(labels_of(ws), np.repeat([0, 1, 2, 1, 0, 2], 20).reshape(6, 5, 4))
    np.testing.assert_allclose(read_nifti(ws.path / "labels.nii").affine, affine)
    assert "sheared-volume" in reporter.codes("warning")


def test_a_structure_in_a_sheared_volume_lies_where_it_lay(tmp_path):
    affine = AXIAL.copy()
    affine[0, 2] = 1.5 * abs(affine[0, 0])
    values = np.full((8, 24, 40), -50, np.int16)
    values[2:6, 6:14, 10:30] = 150
    ws = workspace(tmp_path / "ws", values, affine=affine)
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "tiny", bands())))
    found = labels_of(ws) == 2
    inside = np.zeros_like(found)
    inside[2:6, 7:13, 12:28] = True
    outside = np.ones_like(found)
    outside[2:6, 5:15, 8:32] = False
    assert found[inside].all() and not found[outside].any()


def test_an_image_without_a_plane_in_the_patient_is_no_case_for_a_model_that_wants_one(tmp_path):
    ws = workspace(tmp_path / "ws", np.zeros((1, 5, 4), np.int16))
    (ws.path / "volume.nii").write_bytes(
        nifti_header((1, 5, 4), "int16", AXIAL, "HU", plane="detector") + bytes(2 * 20)
    )
    assert (
        refused(ws, DataError, write_model(tmp_path / "tiny", bands(), card(inputs0={"orientation": "RAS"})))
        == "no-patient-plane"
    )


def test_a_volume_that_is_not_where_geometry_says_is_refused(tmp_path):
    ws = workspace(tmp_path / "ws")
    moved = AXIAL.copy()
    moved[0, 3] += 0.01
    with (ws.path / "volume.nii").open("wb") as file:
        write_nifti(file, ramp(), moved, "HU")
    model = write_model(tmp_path / "tiny", bands())
    assert refused(ws, DataError, model) == "grids-differ"
    with (ws.path / "volume.nii").open("wb") as file:
        write_nifti(file, ramp((6, 5, 5)), AXIAL, "HU")
    assert refused(ws, DataError, model) == "grids-differ"


def test_an_unknown_model_is_missing(tmp_path):
    assert refused(workspace(tmp_path / "ws"), MissingError, Path("no-such-model-anywhere")) == "no-model"


# Freshness


def test_it_runs_again_where_card_network_or_engine_changed_and_only_then(tmp_path, monkeypatch):
    ws = workspace(tmp_path / "ws")
    model = write_model(tmp_path / "tiny", bands())
    run_stage(STAGE, ws, model=str(model))
    params = Params(model=str(model))
    assert why_stale(STAGE, ws, params) == []
    moved = write_model(tmp_path / "elsewhere", bands())
    assert why_stale(STAGE, ws, Params(model=str(moved))) == []
    (model / "model.yaml").write_text((model / "model.yaml").read_text() + "regulatory: Not for use.\n")
    assert any("model" in reason for reason in why_stale(STAGE, ws, params))
    monkeypatch.setattr("mdcli.inference.engines.onnx.version_of", lambda name: "0.0.1")
    assert any("version" in reason for reason in why_stale(STAGE, ws, Params(model=str(moved))))


def test_asking_whether_it_is_fresh_loads_no_engine(tmp_path):
    ws = workspace(tmp_path / "ws")
    model = write_model(tmp_path / "tiny", bands())
    code = f"""
import sys
from mdcli.stages.infer import Params, identity
found = identity(None, Params(model={str(model)!r}))
assert len(found["model_sha256"]) == 64, found
assert "onnxruntime" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ws.path)


def test_one_model_is_opened_once_for_many_cases(tmp_path, monkeypatch):
    from mdcli.inference.engines.onnx import OnnxRuntime

    opened = []
    real = OnnxRuntime.open
    monkeypatch.setattr(OnnxRuntime, "open", lambda self, *a, **b: opened.append(1) or real(self, *a, **b))
    model = write_model(tmp_path / "tiny", bands((1.0, 2.0)))
    for n in range(3):
        run_stage(STAGE, workspace(tmp_path / f"ws{n}"), model=str(model), controls=Controls(jobs=2))
    assert len(opened) == 1


def test_preloading_opens_the_model(tmp_path):
    model = write_model(tmp_path / "tiny", bands((3.0, 4.0)))
    infer.preload(Params(model=str(model)))
    assert any(key[0] == infer._model(Params(model=str(model))).sha256 for key in infer._opened)


def test_the_embedded_ct_tissue_sorts_a_ct_into_bands(tmp_path):
    values = np.repeat(np.array([-1000, -700, -100, 40, 600], np.int16), 6)[:, None, None] * np.ones(
        (1, 8, 8), np.int16
    )
    ws = workspace(tmp_path / "ws", values)
    run_stage(STAGE, ws, model="ct-tissue")
    # The middle of each slab of six slices, where the smoothing sees nothing else.
    assert labels_of(ws)[[2, 8, 14, 20, 26], 4, 4].tolist() == [1, 2, 3, 4, 5]
