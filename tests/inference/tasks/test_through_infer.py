"""Every task through load-volume and infer: small networks whose answer is known from the pixels."""

import itertools
import json
from dataclasses import asdict
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper, save

from mdcli.imaging.nifti import read_nifti
from mdcli.inference.card import Input
from mdcli.inference.grid import network_grid
from mdcli.registry import load_stage
from mdcli.testing import ListReporter, run_stage
from tests.inference.nets import card, label
from tests.inference.tasks.test_detection import SPACE, stored
from tests.inference.tasks.test_instances import discs
from tests.made_series import workspace, write_series, write_slice

SCHEMAS = Path(__file__).parents[3] / "mdcli" / "schemas"
OBLIQUE = [0.96, 0.0, -0.28, 0.0, 1.0, 0.0]
NORMAL = np.cross(OBLIQUE[:3], OBLIQUE[3:])
# Voxels of the bright block, (k, j, i), by their outer edges.
LOW, HIGH = (2, 3, 9), (4, 8, 14)


def graph(nodes, outputs, weights=(), shape=("n", 1, "a", "b", "c")):
    """Return an ONNX model from `image` to outputs, name: shape."""
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(weights).items()]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, form) for name, form in outputs.items()]
    given = [helper.make_tensor_value_info("image", TensorProto.FLOAT, list(shape))]
    found = helper.make_graph(nodes, "test", given, made, tensors)
    return helper.make_model(found, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def box_network(dims=3):
    """Return a network that gives the box around all voxels above 300, first ends then last ones, and 1 where there are any."""
    axes = range(2, 2 + dims)
    node = helper.make_node
    nodes = [
        node("Greater", ["image", "level"], ["above"]),
        node("Cast", ["above"], ["mask"], to=TensorProto.FLOAT),
        node("ReduceMax", ["mask"], ["any"], keepdims=0),
        node("Reshape", ["any", "one_one"], ["scores"]),
    ]
    ends = []
    for last in (0, 1):
        for axis in axes:
            name = f"{axis}{last}"
            others = [a for a in range(2 + dims) if a != axis]
            nodes += [
                node("ReduceMax", ["mask"], [f"line{name}"], axes=others, keepdims=0),
                node("ArgMax", [f"line{name}"], [f"at{name}"], axis=0, keepdims=1, select_last_index=last),
                node("Add", [f"at{name}", "one" if last else "zero"], [f"end{name}"]),
            ]
            ends.append(f"end{name}")
    nodes += [
        node("Concat", ends, ["whole"], axis=0),
        node("Cast", ["whole"], ["numbers"], to=TensorProto.FLOAT),
        node("Reshape", ["numbers", "one_six"], ["boxes"]),
    ]
    weights = {
        "level": np.float32(300),
        "zero": np.array([0]),
        "one": np.array([1]),
        "one_one": np.array([1, 1, 1]),
        "one_six": np.array([1, 1, 2 * dims]),
    }
    return graph(nodes, {"boxes": ["n", 1, 2 * dims], "scores": ["n", 1, 1]}, weights, ("n", 1, *"abc"[:dims]))


def of_task(task, output, **changes):
    """Return the parts of a card for a task that gives no maps."""
    base = card(**changes)
    return {**base, "task": task, "output": output}


def written(folder, network, said):
    folder.mkdir()
    save(network, folder / "network.onnx")
    (folder / "model.yaml").write_text(yaml.safe_dump(said))
    return str(folder)


@pytest.fixture(scope="module")
def block(tmp_path_factory):
    """Return a workspace with a bright block in an oblique volume whose voxels are longer along each axis than along the next."""
    root = tmp_path_factory.mktemp("block")
    values = np.full((9, 14, 20), 1024, "u2")
    values[tuple(slice(a, b) for a, b in zip(LOW, HIGH, strict=True))] = 1024 + 500
    folder = root / "dicom"
    folder.mkdir()
    for k, plane in enumerate(values):
        write_slice(
            folder / f"{k}.dcm",
            plane,
            InstanceNumber=k + 1,
            SOPInstanceUID=f"1.2.3.{k}",
            ImagePositionPatient=expected_mm(0, 0, k).round(6).tolist(),
            ImageOrientationPatient=OBLIQUE,
            PixelSpacing=[2.0, 1.25],
        )
    ws = workspace(root / "ws", folder)
    run_stage(load_stage("load-volume"), ws)
    return ws


def expected_mm(i, j, k):
    """Return where a voxel lies, by the header alone."""
    return (
        np.array([-10, 20, 100]) + 1.25 * i * np.array(OBLIQUE[:3]) + 2 * j * np.array(OBLIQUE[3:]) + 3.5 * k * NORMAL
    )


@pytest.mark.parametrize("origin", ["edge", "centre"])
@pytest.mark.parametrize(
    ("axes", "orientation"),
    list(zip(itertools.permutations("xyz"), ["RAS", "LPS", "LAI", "RPI", "LAS", "RPS"], strict=True)),
)
@pytest.mark.parametrize("size", [["full"] * 3, [12, 12, 12]], ids=["whole", "windows"])
def test_a_box_lies_around_what_the_pixels_show(block, tmp_path, axes, orientation, origin, size):
    detection = {
        "form": "boxes",
        "box": [f"{axis}{end}" for end in (1, 2) for axis in axes],
        "origin": origin,
        "first_class": 0,
        "scores": ["scores"],
        "boxes": ["boxes"],
        "threshold": 0.5,
        "nms": 0.2,
    }
    said = of_task(
        "detection",
        {"detection": detection},
        inputs0={"axes": ["C", *axes], "orientation": orientation},
        window={"size": size, "overlap": 0.5, "blending": "constant"},
        labels=[label(1, "block")],
    )
    name = f"{''.join(axes)}{origin}{len(str(size))}"
    path = written(tmp_path / "model", box_network(), said)
    run_stage(load_stage("infer"), block, as_name=name.lower(), model=path)
    document = json.loads((block / f"detections-{name.lower()}.json").read_text())
    jsonschema.validate(document, json.loads((SCHEMAS / "detections.json").read_text()))
    best = max(document["detections"], key=lambda found: np.prod(found["size_mm"]))
    (k0, j0, i0), (k1, j1, i1) = (tuple(v - 0.5 for v in end) for end in (LOW, HIGH))
    middle = expected_mm((i0 + i1) / 2, (j0 + j1) / 2, (k0 + k1) / 2)
    size_mm = np.array([(i1 - i0) * 1.25, (j1 - j0) * 2.0, (k1 - k0) * 3.5])
    if origin == "edge":
        np.testing.assert_allclose(best["centre_mm"], middle, atol=1e-3)
        np.testing.assert_allclose(best["corners_mm"][0], expected_mm(i0, j0, k0), atol=1e-3)
        np.testing.assert_allclose(best["corners_mm"][7], expected_mm(i1, j1, k1), atol=1e-3)
    else:
        # The network's 0 is said to be a middle: the same numbers lie half a voxel on along each of its own directions.
        assert np.linalg.norm(np.array(best["centre_mm"]) - middle) == pytest.approx(
            np.linalg.norm([0.625, 1, 1.75]), abs=1e-3
        )
    np.testing.assert_allclose(best["size_mm"], size_mm, atol=1e-3)
    assert best["sop_instance_uid"] in {f"1.2.3.{k}" for k in (2, 3, 4)}


def test_nothing_to_box_is_an_answer(tmp_path):
    folder = write_series(tmp_path / "dicom", np.full((3, 6, 7), 1024, "u2"))
    ws = workspace(tmp_path / "ws", folder)
    run_stage(load_stage("load-volume"), ws)
    detection = {
        "form": "boxes",
        "box": ["z1", "y1", "x1", "z2", "y2", "x2"],
        "origin": "edge",
        "first_class": 0,
        "scores": ["scores"],
        "boxes": ["boxes"],
        "threshold": 0.5,
        "nms": 0.2,
    }
    said = of_task("detection", {"detection": detection}, labels=[label(1, "block")])
    reporter = ListReporter()
    run_stage(load_stage("infer"), ws, reporter=reporter, model=written(tmp_path / "model", box_network(), said))
    document = json.loads((ws / "detections.json").read_text())
    assert document["result"] == "nothing-found" and document["labels"][0]["name"] == "block"


def mean_network(count, axes):
    """Return a network that gives `count` times the mean of its image, over these axes."""
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=axes, keepdims=0),
        helper.make_node("Mul", ["mean", "factors"], ["scores"]),
    ]
    factors = np.arange(1, count + 1, dtype=np.float32) / 100
    return graph(nodes, {"scores": ["n", count]}, {"factors": factors}, ("n", 1, *"abc"[: len(axes)]))


def test_a_volume_is_classified_by_its_values(tmp_path):
    # 1074 - 1024 = 50 HU: scores .5 and 1, softmax by hand.
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "dicom", np.full((3, 6, 7), 1074, "u2")))
    run_stage(load_stage("load-volume"), ws)
    said = of_task("classification", {"axes": ["C"], "activation": "softmax"})
    said.pop("window")
    run_stage(load_stage("infer"), ws, model=written(tmp_path / "model", mean_network(2, [2, 3, 4]), said))
    document = json.loads((ws / "classes.json").read_text())
    jsonschema.validate(document, json.loads((SCHEMAS / "classes.json").read_text()))
    (output,) = document["outputs"]
    assert output["top"] == 2 and output["over"] == "volume"
    assert output["labels"][1]["probability"] == pytest.approx(1 / (1 + np.exp(-0.5)), abs=1e-4)


@pytest.mark.parametrize(
    ("vote", "positive"), [("max", [False, True]), ("mean", [False, False]), ("majority", [False, False])]
)
def test_slices_are_classified_one_by_one_and_vote(tmp_path, vote, positive):
    # Slices of 0, 0, 200 HU: logits (0, 0), (0, 0), (2, 4) less 1: .27, .27, .73 and .27, .27, .95.
    values = np.full((3, 6, 7), 1024, "u2")
    values[2] += 200
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "dicom", values))
    run_stage(load_stage("load-volume"), ws)
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "factors"], ["more"]),
        helper.make_node("Sub", ["more", "less"], ["scores"]),
    ]
    weights = {"factors": np.array([0.01, 0.02], np.float32), "less": np.float32(1)}
    network = graph(nodes, {"scores": ["n", 2]}, weights, ("n", 1, "a", "b"))
    said = of_task(
        "classification",
        {"axes": ["C"], "activation": "sigmoid", "over": "slices", "vote": vote, "threshold": 0.8},
        inputs0={"axes": ["C", "y", "x"]},
    )
    said.pop("window")
    run_stage(load_stage("infer"), ws, model=written(tmp_path / "model", network, said))
    document = json.loads((ws / "classes.json").read_text())
    jsonschema.validate(document, json.loads((SCHEMAS / "classes.json").read_text()))
    (output,) = document["outputs"]
    assert [found["positive"] for found in output["labels"]] == positive
    assert [row["k"] for row in output["slices"]] == [0, 1, 2]
    uids = [s["sop_instance_uid"] for s in json.loads((ws / "geometry.json").read_text())["slices"]]
    assert [row["sop_instance_uid"] for row in output["slices"]] == uids
    np.testing.assert_allclose(output["slices"][2]["values"], [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-3))], atol=1e-4)
    assert document["result"] == ("processed" if any(positive) else "nothing-found")


def test_a_volume_is_measured(tmp_path):
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "dicom", np.full((3, 6, 7), 1074, "u2")))
    run_stage(load_stage("load-volume"), ws)
    unit = {"value": "a", "scheme": "UCUM", "meaning": "year"}
    said = of_task("regression", {"axes": ["C"], "activation": "none", "unit": unit, "scale": 10, "offset": 1})
    said.pop("window")
    run_stage(load_stage("infer"), ws, model=written(tmp_path / "model", mean_network(2, [2, 3, 4]), said))
    document = json.loads((ws / "classes.json").read_text())
    assert [found["number"] for found in document["outputs"][0]["labels"]] == pytest.approx([6, 11], abs=1e-3)
    assert document["outputs"][0]["unit"]["value"] == "a"


@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2"])
def test_a_radiograph_has_the_same_scores_whichever_way_it_is_stored(tmp_path, polarity):
    # A window over 0 to 4095 shows 1023.75 of it as a quarter white.
    stored = 3071 if polarity == "MONOCHROME1" else 1024
    gone = ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "PixelSpacing", "SliceThickness")
    (tmp_path / "dicom").mkdir()
    write_slice(
        tmp_path / "dicom" / "1.dcm",
        np.full((6, 7), stored, "u2"),
        Modality="DX",
        PhotometricInterpretation=polarity,
        WindowCenter=2048.0,
        WindowWidth=4096.0,
        BitsStored=12,
        RescaleIntercept=0.0,
        **dict.fromkeys(gone, ...),
    )
    ws = workspace(tmp_path / "ws", tmp_path / "dicom")
    run_stage(load_stage("load-volume"), ws)
    said = of_task(
        "regression",
        {"axes": ["C"], "activation": "none", "unit": {"value": "1", "scheme": "UCUM", "meaning": "no units"}},
        inputs0={"axes": ["C", "y", "x"], "grayscale": "presentation", "unit": "arbitrary"},
        labels=[label(1, "brightness")],
    )
    said.pop("window")
    run_stage(load_stage("infer"), ws, model=written(tmp_path / "model", mean_network(1, [2, 3]), said))
    document = json.loads((ws / "classes.json").read_text())
    assert document["outputs"][0]["over"] == "image"
    assert document["outputs"][0]["labels"][0]["number"] * 100 == pytest.approx(1024 / 4095, abs=1e-5)


def test_objects_are_told_apart_and_measured(block, tmp_path):
    nodes = [
        helper.make_node("Greater", ["image", "level"], ["above"]),
        helper.make_node("Cast", ["above"], ["mask"], to=1),
    ]
    nodes += [
        helper.make_node("Mul", ["mask", "gain"], ["high"]),
        helper.make_node("Sub", ["high", "less"], ["scores"]),
    ]
    weights = {"level": np.float32(300), "gain": np.float32(20), "less": np.float32(10)}
    network = graph(nodes, {"scores": ["n", 1, "a", "b", "c"]}, weights)
    said = of_task(
        "instances",
        {
            "axes": ["C", "z", "y", "x"],
            "activation": "sigmoid",
            "inversion": "scores",
            "instances": {"form": "components", "connectivity": 1},
        },
        labels=[label(1, "block")],
    )
    run_stage(load_stage("infer"), block, as_name="objects", model=written(tmp_path / "model", network, said))
    document = json.loads((block / "objects-objects.json").read_text())
    jsonschema.validate(document, json.loads((SCHEMAS / "objects.json").read_text()))
    (found,) = document["instances"]
    i, j, k = ((a + b - 1) / 2 for a, b in zip(LOW[::-1], HIGH[::-1], strict=True))
    np.testing.assert_allclose(found["centroid_mm"], expected_mm(i, j, k), atol=1e-3)
    assert found["voxels"] == 2 * 5 * 5
    assert found["volume_mm3"] == pytest.approx(50 * 1.25 * 2 * 3.5, rel=1e-5)
    assert (read_nifti(block / "instances-objects.nii").array == 1).sum() == 50


def constant_network(outputs):
    """Return a network that gives these arrays whatever it sees."""
    nodes = [
        helper.make_node("ReduceSum", ["image"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "nothing"], ["zero"]),
        *(helper.make_node("Add", [f"const_{name}", "zero"], [name]) for name in outputs),
    ]
    weights = {f"const_{name}": np.asarray(array, np.float32) for name, array in outputs.items()}
    shapes = {name: list(np.shape(array)) for name, array in outputs.items()}
    return graph(nodes, shapes, {**weights, "nothing": np.float32(0)}, (1, 1, "a", "b", "c"))


def test_heads_of_anchors_give_the_boxes_of_monai(tmp_path):
    peer = stored("space")
    # (x, y, z) of the network is (i, j, k) of the volume.
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "dicom", np.full((24, 40, 32), 1024, "u2")))
    run_stage(load_stage("load-volume"), ws)
    heads = {name: peer[name] for name in ("class0", "class1", "regression0", "regression1")}
    detection = {**asdict(SPACE), "box": list(SPACE.box)}
    detection = json.loads(json.dumps({key: value for key, value in detection.items() if value not in (None, (), [])}))
    said = of_task("detection", {"detection": detection}, inputs0={"axes": ["C", "x", "y", "z"]})
    run_stage(load_stage("infer"), ws, model=written(tmp_path / "model", constant_network(heads), said))
    found = json.loads((ws / "detections.json").read_text())["detections"]
    assert [box["value"] - 1 for box in found] == peer["labels"].tolist()
    ours = [[*box["low_ijk"], *box["high_ijk"]] for box in found]
    # MONAI clips at the number of voxels, half a voxel beyond the volume's edge.
    wanted = np.clip(peer["boxes"], -0.5, np.array([32, 40, 24] * 2) - 0.5)
    np.testing.assert_allclose(ours, wanted, atol=2e-5)


def test_a_radiograph_has_boxes_in_pixels_and_no_millimetres(tmp_path):
    plane = np.zeros((8, 11), "u2")
    plane[2:4, 5:9] = 1000
    gone = ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "PixelSpacing", "SliceThickness")
    (tmp_path / "dicom").mkdir()
    facts = {"Modality": "DX", "RescaleIntercept": 0.0, **dict.fromkeys(gone, ...)}
    write_slice(tmp_path / "dicom" / "1.dcm", plane, **facts)
    ws = workspace(tmp_path / "ws", tmp_path / "dicom")
    run_stage(load_stage("load-volume"), ws)
    detection = {
        "form": "boxes",
        "box": ["y1", "x1", "y2", "x2"],
        "origin": "edge",
        "first_class": 0,
        "scores": ["scores"],
        "boxes": ["boxes"],
        "threshold": 0.5,
        "nms": 0.2,
    }
    said = of_task(
        "detection",
        {"detection": detection},
        inputs0={"axes": ["C", "y", "x"], "unit": "arbitrary"},
        labels=[label(1, "block")],
    )
    said.pop("window")
    run_stage(load_stage("infer"), ws, model=written(tmp_path / "model", box_network(2), said))
    document = json.loads((ws / "detections.json").read_text())
    jsonschema.validate(document, json.loads((SCHEMAS / "detections.json").read_text()))
    (found,) = document["detections"]
    assert (found["low_ijk"], found["high_ijk"]) == ([4.5, 1.5, -0.5], [8.5, 3.5, 0.5])
    assert not [key for key in found if key.endswith("_mm")]


@pytest.mark.parametrize(
    ("axes", "orientation", "offset_axes"), [("zyx", "LPS", "zyx"), ("xyz", "RAS", "yzx"), ("yzx", "LAI", "xyz")]
)
def test_objects_of_centres_are_told_apart_whatever_the_axes(tmp_path, axes, orientation, offset_axes):
    shape = (7, 12, 16)
    labels, heat, offsets, owner = discs(shape, [(3, 5, 4), (3, 5, 10), (4, 9, 7)], 4.0)
    ws = workspace(tmp_path / "ws", write_series(tmp_path / "dicom", np.full(shape, 1024, "u2")))
    run_stage(load_stage("load-volume"), ws)
    affine = np.array(json.loads((ws / "geometry.json").read_text())["affine_lps"])
    said = {"axes": ["C", *axes], "orientation": orientation}
    grid = network_grid(shape, affine, Input(("C", *axes), orientation, "as-acquired", "HU"))
    # What the network would have learned: offsets along its own axes, in its own directions.
    along = dict(zip(axes, grid.order, strict=True))
    pointing = [offsets[along[axis]] * (-1 if grid.axes[along[axis]].flip else 1) for axis in offset_axes]
    heads = {
        "scores": grid.to_network(np.where(labels, 10, -10))[None, None],
        "heat": grid.to_network(heat)[None, None],
        "offsets": np.stack([grid.to_network(one) for one in pointing])[None],
    }
    output = {
        "axes": ["C", *axes],
        "activation": "sigmoid",
        "inversion": "scores",
        "tensor": "scores",
        "instances": {
            "form": "centres",
            "heatmap": "heat",
            "offsets": "offsets",
            "offset_axes": list(offset_axes),
            "threshold": 0.5,
            "kernel": 5,
        },
    }
    card_of = of_task("instances", output, inputs0=said, labels=[label(1, "cell")])
    run_stage(load_stage("infer"), ws, model=written(tmp_path / "model", constant_network(heads), card_of))
    found = read_nifti(ws / "instances.nii").array
    numbers = np.array([found[3, 5, 4], found[3, 5, 10], found[4, 9, 7]])
    assert sorted(numbers.tolist()) == [1, 2, 3]
    np.testing.assert_array_equal(found, np.where(labels, numbers[owner], 0))
    assert [row["score"] for row in json.loads((ws / "objects.json").read_text())["instances"]] == [1, 1, 1]
