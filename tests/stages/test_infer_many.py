"""`infer` with several inputs, several outputs, several networks, mirrored runs, masks, scores and slices."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from mdcli.errors import ConfigError, DataError, MdError, UnavailableError, UsageError
from mdcli.imaging.nifti import read_nifti, write_nifti
from mdcli.stages.infer import STAGE
from mdcli.testing import ListReporter, run_stage
from mdcli.workspace import Workspace
from tests.inference.nets import bands, card, conv, label, network, write_model
from tests.stages.test_infer import AXIAL, ramp, workspace

pytest.importorskip("onnxruntime")

SHEARED = AXIAL.copy()
SHEARED[1, 2] = 1.5


def add_volume(ws: Workspace, name: str, values: np.ndarray, affine=AXIAL, **facts) -> None:
    """Put a second volume beside the first, as `md load-volume --as NAME` would."""
    geometry = json.loads((ws.path / "geometry.json").read_text())
    changed = {"shape": list(values.shape), "affine_lps": affine.tolist(), **facts}
    (ws.path / f"geometry-{name}.json").write_text(json.dumps(geometry | changed))
    with (ws.path / f"volume-{name}.nii").open("wb") as file:
        write_nifti(file, values, affine, "HU")


def two_inputs(tensors: bool):
    """Return a network that gives 0 and a - 2 b - 10: of two tensors, or of two channels of one."""
    sizes = ["x", "y", "z"]
    names = ["second", "first"] if tensors else ["image"]
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 1 if tensors else 2, *sizes]) for name in names
    ]
    nodes = [] if tensors else [helper.make_node("Split", ["image"], ["first", "second"], axis=1, num_outputs=2)]
    nodes += [
        helper.make_node("Mul", ["second", "two"], ["twice"]),
        helper.make_node("Sub", ["first", "twice"], ["apart"]),
        helper.make_node("Sub", ["apart", "ten"], ["fore"]),
        helper.make_node("Mul", ["first", "none"], ["back"]),
        helper.make_node("Concat", ["back", "fore"], ["scores"], axis=1),
    ]
    numbers = {"two": 2.0, "ten": 10.0, "none": 0.0}
    weights = [numpy_helper.from_array(np.array(value, np.float32), name) for name, value in numbers.items()]
    output = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2, *sizes])
    graph = helper.make_graph(nodes, "two", inputs, [output], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def two_input_card(tensors: bool, **second):
    said = card(labels=[label(1, "more")])
    first = said["inputs"][0]
    other = {**first, "role": "volume-b", **second}
    if tensors:
        first, other = {**first, "tensor": "first"}, {**other, "tensor": "second"}
    said["inputs"] = [first, other]
    return said


@pytest.mark.parametrize("tensors", [True, False], ids=["two tensors", "two channels"])
def test_two_volumes_go_where_the_card_says(tmp_path, tensors):
    ws = workspace(tmp_path / "ws")
    b = np.arange(120, dtype=np.int16).reshape(6, 5, 4)[::-1].copy() - 60
    add_volume(ws, "b", b)
    model = write_model(tmp_path / "m", two_inputs(tensors), two_input_card(tensors))
    run_stage(STAGE, ws, model=str(model))
    np.testing.assert_array_equal(read_nifti(ws.path / "labels.nii").array, ramp() - 2 * b - 10 > 0)
    inputs = json.loads((ws.path / "labels.record.json").read_text())["inputs"]
    assert inputs["volume-b"]["role"] == "volume-b" and "geometry-b" in inputs


def test_a_changed_second_volume_makes_the_result_stale(tmp_path):
    ws = workspace(tmp_path / "ws")
    add_volume(ws, "b", ramp())
    model = str(write_model(tmp_path / "m", two_inputs(True), two_input_card(True)))
    run_stage(STAGE, ws, model=model)
    assert run_stage(STAGE, ws, model=model).up_to_date
    add_volume(ws, "b", ramp() + 1)
    assert not run_stage(STAGE, ws, model=model).up_to_date


def test_another_name_can_be_used_for_a_second_volume(tmp_path):
    ws = workspace(tmp_path / "ws")
    add_volume(ws, "later", ramp() * 0)
    model = write_model(tmp_path / "m", two_inputs(True), two_input_card(True))
    used = Workspace(ws.path, use={"volume-b": "later", "geometry-b": "later"})
    run_stage(STAGE, used, model=str(model))
    np.testing.assert_array_equal(read_nifti(ws.path / "labels.nii").array, ramp() > 10)


@pytest.mark.parametrize(
    "change, code",
    [
        ({"frame_of_reference_uid": "2.25.99"}, "frames-of-reference-differ"),
        ({"affine": AXIAL + np.eye(4)[:, [3, 0, 1, 2]] * 0.01}, "grids-differ"),
        ({"unit": "SUV"}, "wrong-unit"),
        (None, "no-artifact"),
    ],
    ids=["another frame of reference", "a tenth of a voxel apart", "another unit", "not there"],
)
def test_a_second_volume_that_does_not_go_with_the_first_is_refused(tmp_path, change, code):
    ws = workspace(tmp_path / "ws")
    if change is not None:
        add_volume(ws, "b", ramp(), **change)
        if "unit" in change:
            with (ws.path / "volume-b.nii").open("wb") as file:
                write_nifti(file, ramp(), AXIAL, change["unit"])
    model = write_model(tmp_path / "m", two_inputs(True), two_input_card(True))
    with pytest.raises(MdError) as error:
        run_stage(STAGE, ws, model=str(model))
    assert error.value.code == code
    assert not (ws.path / "labels.nii").exists()


def test_an_input_of_another_spacing_than_the_first_is_no_card(tmp_path):
    model = write_model(tmp_path / "m", two_inputs(True), two_input_card(True, spacing=[1, 1, 1]))
    with pytest.raises(ConfigError, match="spacing"):
        run_stage(STAGE, workspace(tmp_path / "ws"), model=str(model))


def several_outputs():
    """Return a network with the bands of `bands()`, a mask of what is over 20, and the mean of all voxels."""
    one = bands()
    graph = one.graph
    graph.node.extend(
        [
            helper.make_node("Sub", ["image", "twenty"], ["over"]),
            helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        ]
    )
    graph.initializer.append(numpy_helper.from_array(np.array(20.0, np.float32), "twenty"))
    graph.initializer.append(numpy_helper.from_array(np.array([2, 3, 4], np.int64), "axes"))
    graph.output.append(helper.make_tensor_value_info("over", TensorProto.FLOAT, ["n", 1, "a", "b", "c"]))
    graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["n", 1]))
    one.opset_import[0].version = 18
    return one


def several_card():
    said = card()
    output = said.pop("output")
    code = {"value": "[hnsf'U]", "scheme": "UCUM", "meaning": "Hounsfield unit"}
    said["outputs"] = [
        {**output, "name": "bands", "tensor": "scores"},
        {
            **output,
            "name": "bright",
            "tensor": "over",
            "activation": "sigmoid",
            "form": "masks",
            "labels": [label(1, "over-twenty")],
        },
        {
            "name": "level",
            "tensor": "mean",
            "axes": ["C"],
            "activation": "none",
            "task": "regression",
            "unit": code,
            "labels": [label(1, "mean")],
        },
    ]
    return said


def test_several_outputs_are_written_under_their_names(tmp_path):
    ws = workspace(tmp_path / "ws")
    model = str(write_model(tmp_path / "m", several_outputs(), several_card()))
    run_stage(STAGE, ws, model=model)
    values = ramp()
    expected = (values > 0).astype(int) + (values > 100)
    np.testing.assert_array_equal(read_nifti(ws.path / "labels-bands.nii").array, expected)
    np.testing.assert_array_equal(read_nifti(ws.path / "masks-bright" / "0001.nii").array, values >= 20)
    level = json.loads((ws.path / "classes-level.json").read_text())["outputs"][0]
    assert level["labels"][0]["number"] == pytest.approx(values.mean(), rel=1e-6)
    assert json.loads((ws.path / "segments-bright.json").read_text())["segments"][0]["voxels"] == (values >= 20).sum()
    assert run_stage(STAGE, ws, model=model).up_to_date
    (ws.path / "labels-bands.nii").unlink()
    assert not run_stage(STAGE, ws, model=model).up_to_date


def test_a_name_for_all_goes_before_the_names_of_outputs(tmp_path):
    ws = workspace(tmp_path / "ws")
    model = str(write_model(tmp_path / "m", several_outputs(), several_card()))
    run_stage(STAGE, Workspace(ws.path, as_name="new"), model=model)
    assert (ws.path / "labels-new_bands.nii").exists() and (ws.path / "classes-new_level.json").exists()


def ensemble(folder: Path, slopes, how: str) -> str:
    """Write networks that each give 0 and slope * value."""
    for n, slope in enumerate(slopes):
        weight = np.array([0, slope], np.float32).reshape(2, 1, 1, 1, 1)
        write_model(folder / str(n), conv(weight))
        (folder / f"{n}.onnx").write_bytes((folder / str(n) / "network.onnx").read_bytes())
    said = card(labels=[label(1, "fore")], ensemble=how, networks=[f"{n}.onnx" for n in range(len(slopes))])
    del said["network"]
    (folder / "model.yaml").write_text(json.dumps(said))
    return str(folder)


@pytest.mark.parametrize("how, expected", [("mean", lambda v: v > 0), ("vote", lambda v: v < 0)])
def test_networks_average_their_scores_or_vote(tmp_path, how, expected):
    # One network of three is sure that what is above 0 is the structure; two say mildly that it is what lies below.
    model = ensemble(tmp_path / "m", (10, -1, -1), how)
    ws = workspace(tmp_path / "ws")
    run_stage(STAGE, ws, model=model)
    np.testing.assert_array_equal(read_nifti(ws.path / "labels.nii").array, expected(ramp()))


def test_a_change_in_one_network_of_several_makes_the_result_stale(tmp_path):
    ws = workspace(tmp_path / "ws")
    run_stage(STAGE, ws, model=ensemble(tmp_path / "m", (1, 1), "mean"))
    assert not run_stage(STAGE, ws, model=ensemble(tmp_path / "m", (1, -2), "mean")).up_to_date


@pytest.mark.parametrize("axes", ["xyz", "zyx", "yzx"])
@pytest.mark.parametrize("orientation", ["as-acquired", "RAS", "PIL"])
def test_mirrored_runs_are_averaged_where_they_belong(tmp_path, axes, orientation):
    # A network that gives each voxel the value of its neighbour at index + 1 along its first axis; mirrored along that axis it is
    # the neighbour at index - 1: the mean of both runs is that of the two neighbours (0 beyond the edge).
    weight = np.zeros((2, 1, 3, 1, 1), np.float32)
    weight[1, 0, 2] = 1
    order = ["C", *axes]
    said = card(
        labels=[label(1, "fore")],
        mirror=[axes[0]],
        inputs0={"axes": order, "orientation": orientation},
        output={"axes": order},
    )
    ws = workspace(tmp_path / "ws")
    reporter = ListReporter()
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "m", conv(weight), said)), reporter=reporter)
    letters = {"as-acquired": "xyz", "RAS": "xyz", "PIL": "yzx"}[orientation]
    index = letters.index(axes[0]) if orientation != "PIL" else "xyz".index({"x": "y", "y": "z", "z": "x"}[axes[0]])
    values = np.moveaxis(ramp().astype(np.float32), 2 - index, 0)
    padded = np.concatenate([values[:1] * 0, values, values[:1] * 0])
    expected = np.moveaxis(padded[:-2] + padded[2:] > 0, 0, 2 - index)
    np.testing.assert_array_equal(read_nifti(ws.path / "labels.nii").array, expected)
    assert "mirrored" in reporter.codes("info")


@pytest.mark.parametrize("spacing", ["as-acquired", [2.0, 1.1, 1.1]])
@pytest.mark.parametrize("affine", [AXIAL, SHEARED], ids=["right angles", "sheared"])
def test_masks_overlap_and_scores_lie_beside_them(tmp_path, spacing, affine):
    ws = workspace(tmp_path / "ws", affine=affine)
    weight = np.array([1.0, -1.0], np.float32).reshape(2, 1, 1, 1, 1)
    said = card(
        inputs0={"spacing": spacing, "orientation": "LPS"},
        output={"activation": "sigmoid", "form": "masks", "threshold": 0.4},
    )
    # 1 / (1 + exp(-v)) >= 0.4 where v >= log(0.4 / 0.6); so is the other with -v: between both they overlap.
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "m", conv(weight), said)), scores=True)
    masks = [read_nifti(ws.path / "masks" / f"{n:04d}.nii").array for n in (1, 2)]
    scores = [np.load(ws.path / "scores" / f"{n:04d}.npy") for n in (1, 2)]
    assert masks[0].shape == scores[0].shape == (6, 5, 4) and scores[0].dtype == np.float16
    segments = json.loads((ws.path / "segments.json").read_text())["segments"]
    assert [s["voxels"] for s in segments] == [int(mask.sum()) for mask in masks]
    document = json.loads((ws.path / "scores" / "scores.json").read_text())
    assert document["kind"] == "probability" and np.allclose(document["affine_lps"], affine)
    if spacing == "as-acquired" and affine is AXIAL:
        limit = np.log(0.4 / 0.6)
        np.testing.assert_array_equal(masks[0], ramp() >= limit)
        np.testing.assert_array_equal(masks[1], -ramp() >= limit)
        np.testing.assert_allclose(scores[0], 1 / (1 + np.exp(-ramp().astype(float))), atol=1e-3)
    else:
        assert np.mean(masks[0] == (ramp() >= 0)) > 0.8


def test_a_structure_without_voxels_has_no_mask_and_is_named(tmp_path):
    ws = workspace(tmp_path / "ws")
    weight = np.array([1.0, 0.0], np.float32).reshape(2, 1, 1, 1, 1)
    said = card(output={"activation": "sigmoid", "form": "masks"})
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "m", conv(weight, [0, -5]), said)))
    assert sorted(p.name for p in (ws.path / "masks").iterdir()) == ["0001.nii"]
    assert [s["voxels"] for s in json.loads((ws.path / "segments.json").read_text())["segments"]][1] == 0


def slices_network(channels_axis_last: bool = False):
    """Return a network of slices: the bands of a pixel's neighbour at index + 1 along the last axis."""
    weight = np.zeros((3, 1, 1, 3), np.float32)
    weight[:, 0, 0, 2] = [0, 1, 2]
    tensors = {"w": weight, "b": np.array([0, 0, -100], np.float32)}
    node = helper.make_node("Conv", ["image", "w", "b"], ["scores"], pads=[0, 1, 0, 1])
    return network([node], tensors, shape=("n", 1, "a", "b"), out=("n", 3, "a", "b"))


@pytest.mark.parametrize("axes", ["yx", "xy", "zx", "yz"])
def test_a_network_of_slices_goes_along_the_axis_that_it_does_not_have(tmp_path, axes):
    ws = workspace(tmp_path / "ws")
    order = ["C", *axes]
    said = card(
        inputs0={"axes": order, "orientation": "as-acquired"},
        output={"axes": order},
        window={"size": ["full", "full"]},
    )
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "m", slices_network(), said)))
    last = "zyx".index(axes[1])
    values = np.moveaxis(ramp().astype(int), last, 0)
    neighbour = np.moveaxis(np.concatenate([values[1:], values[:1] * 0]), 0, last)
    expected = (neighbour > 0).astype(int) + (neighbour > 100)
    np.testing.assert_array_equal(read_nifti(ws.path / "labels.nii").array, expected)


def test_empty_windows_are_left_out_on_request_only(tmp_path):
    values = np.zeros((16, 4, 4), np.int16)
    values[8:] = 50
    ws = workspace(tmp_path / "ws", values)
    said = card(window={"size": [4, 4, 4], "skip_below": 1})
    # What is below 0 is label 0; this network calls everything label 1, so that a window that was not run shows.
    weight = np.zeros((3, 1, 1, 1, 1), np.float32)
    model = str(write_model(tmp_path / "m", conv(weight, [0, 1, 0]), said))
    run_stage(STAGE, ws, model=model)
    assert (read_nifti(ws.path / "labels.nii").array == 1).all()
    reporter = ListReporter()
    run_stage(STAGE, ws, model=model, skip_empty=True, reporter=reporter)
    np.testing.assert_array_equal(read_nifti(ws.path / "labels.nii").array, values > 0)
    assert "windows-skipped" in reporter.codes("info")


def test_what_is_empty_must_be_said_by_the_card(tmp_path):
    with pytest.raises(UsageError) as error:
        run_stage(STAGE, workspace(tmp_path / "ws"), model=str(write_model(tmp_path / "m", bands())), skip_empty=True)
    assert error.value.code == "no-skip-below"


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_windows_may_be_run_several_at_once(tmp_path, batch):
    ws = workspace(tmp_path / "ws")
    said = card(window={"size": [3, 3, 3], "overlap": 0.5, "blending": "gaussian"})
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "m", bands(), said)), batch=batch)
    values = ramp()
    np.testing.assert_array_equal(read_nifti(ws.path / "labels.nii").array, (values > 0).astype(int) + (values > 100))


def test_a_device_that_is_too_small_gets_smaller_batches_and_it_is_said(tmp_path, monkeypatch):
    from mdcli.inference.devices import out_of_device_memory
    from mdcli.inference.engines.onnx import OnnxSession

    plain = OnnxSession.run

    def run(self, feeds, out):
        if next(iter(feeds.values())).shape[0] > 2:
            raise out_of_device_memory("network.onnx", "(8, 1, 3, 3, 3)", "out of memory")
        return plain(self, feeds, out)

    monkeypatch.setattr(OnnxSession, "run", run)
    ws, reporter = workspace(tmp_path / "ws"), ListReporter()
    said = card(window={"size": [3, 3, 3]})
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "m", bands(), said)), batch=8, reporter=reporter)
    values = ramp()
    np.testing.assert_array_equal(read_nifti(ws.path / "labels.nii").array, (values > 0).astype(int) + (values > 100))
    assert "smaller-batch" in reporter.codes("warning")


def test_what_needs_more_memory_than_allowed_is_not_begun(tmp_path):
    said = card(window={"size": [64, 64, 64], "overlap": 0.5, "blending": "gaussian"})
    values = np.zeros((80, 80, 80), np.int16)
    ws = workspace(tmp_path / "ws", values)
    model = str(write_model(tmp_path / "m", bands(), said))
    with pytest.raises(UnavailableError) as error:
        run_stage(STAGE, ws, model=model, memory="1MiB")
    assert error.value.code == "memory-too-small"
    run_stage(STAGE, ws, model=model, memory="2GiB")


def test_steps_after_the_network_work_on_the_volumes_own_grid(tmp_path):
    values = np.full((6, 5, 4), -50, np.int16)
    values[0, 0, 0] = values[3:5, 2:4, 1:3] = 50
    ws = workspace(tmp_path / "ws", values)
    said = card(output={"after": [{"keep_largest": None}, {"map": {1: 2}}]})
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "m", bands(), said)))
    labels = read_nifti(ws.path / "labels.nii").array
    assert labels[0, 0, 0] == 0 and labels.sum() == 2 * 8
    segments = json.loads((ws.path / "segments.json").read_text())["segments"]
    assert [(s["value"], s["voxels"]) for s in segments] == [(2, 8)]


def test_the_record_says_how_long_the_network_was_busy(tmp_path):
    ws = workspace(tmp_path / "ws")
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "m", bands())))
    spans = json.loads((ws.path / "labels.record.json").read_text())["happened"]["spans"]
    assert 0 < spans["network"] <= spans["predict"]


def test_nan_in_any_output_is_refused(tmp_path):
    model = several_outputs()
    for weight in model.graph.initializer:
        if weight.name == "twenty":
            weight.CopyFrom(numpy_helper.from_array(np.array(np.nan, np.float32), "twenty"))
    ws = workspace(tmp_path / "ws")
    with pytest.raises(DataError) as error:
        run_stage(STAGE, ws, model=str(write_model(tmp_path / "m", model, several_card())))
    assert error.value.code == "nan-in-output"
    assert not re.search(r"labels|masks", " ".join(p.name for p in ws.path.iterdir()))


def test_red_green_and_blue_are_three_channels(tmp_path):
    from mdcli.imaging.nifti import nifti_header

    ws = workspace(tmp_path / "ws", ramp(), unit=None, colour="RGB")
    rgb = np.random.default_rng(1).integers(0, 256, (6, 5, 4, 3), np.uint8)
    header = nifti_header((6, 5, 4), np.dtype(np.uint8), AXIAL, colour=True)
    (ws.path / "volume.nii").write_bytes(header + rgb.tobytes())
    # Red minus green minus half of blue, above 0.
    weight = np.zeros((2, 3, 1, 1, 1), np.float32)
    weight[1, :, 0, 0, 0] = [1, -1, -0.5]
    node = helper.make_node("Conv", ["image", "w"], ["scores"])
    model = network([node], {"w": weight}, channels=2, shape=("n", 3, "a", "b", "c"), out=("n", 2, "a", "b", "c"))
    said = card(labels=[label(1, "red")], inputs0={"channels": 3, "unit": "arbitrary"})
    run_stage(STAGE, ws, model=str(write_model(tmp_path / "m", model, said)))
    expected = rgb[..., 0].astype(float) - rgb[..., 1] - rgb[..., 2] / 2 > 0
    np.testing.assert_array_equal(read_nifti(ws.path / "labels.nii").array, expected)


@pytest.mark.parametrize("colour, code", [(True, "not-a-volume"), (False, "wrong-channels")])
def test_colour_and_a_model_of_one_number_do_not_go_together(tmp_path, colour, code):
    from mdcli.imaging.nifti import nifti_header

    ws = workspace(tmp_path / "ws", ramp())
    if colour:
        header = nifti_header((6, 5, 4), np.dtype(np.uint8), AXIAL, colour=True)
        (ws.path / "volume.nii").write_bytes(header + bytes(360))
    said = card(inputs0={"channels": 1 if colour else 3, "unit": "arbitrary"})
    with pytest.raises(DataError) as error:
        run_stage(STAGE, ws, model=str(write_model(tmp_path / "m", bands(), said)))
    assert error.value.code == code
