import itertools
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mdcli.errors import ConfigError, DataError
from mdcli.inference.card import Code, Input, Label
from mdcli.inference.grid import network_grid
from mdcli.inference.tasks.detection import (
    Boxes,
    anchor_sizes,
    detect,
    detections_document,
    in_patient,
    merge,
    not_overlapping,
    on_volume,
)
from mdcli.inference.tasks.settings import Detection, detection_problem

ROOT = Path(__file__).parents[3]
STORED = ROOT / "tests" / "inference" / "data" / "detection.npz"
SCRIPT = ROOT / "scripts" / "make_detection_reference.py"
BOXES = Detection(
    form="boxes",
    box=("x1", "y1", "z1", "x2", "y2", "z2"),
    origin="edge",
    first_class=0,
    scores=("scores",),
    boxes=("boxes",),
    classes="classes",
    threshold=0.5,
    nms=0.3,
)
# torchvision: x is the last axis of the array, 0 an edge, class 0 the background.
PLANE = Detection(
    form="anchors",
    box=("xc", "yc", "xs", "ys"),
    origin="edge",
    first_class=1,
    scores=("class",),
    boxes=("regression",),
    activation="sigmoid",
    strides=((8, 8), (16, 16)),
    anchor_start="zero",
    anchor_sizes=((16, 21), (30, 45)),
    anchor_ratios=((0.5,), (1.0,), (2.0,)),
    box_weights=(10, 10, 5, 5),
    threshold=0.3,
    candidates=200,
    nms=0.4,
    most=60,
)
# MONAI: the axes are those of the array, 0 a middle, class 0 a label, one map a level.
SPACE = Detection(
    form="anchors",
    box=("xc", "yc", "zc", "xs", "ys", "zs"),
    origin="centre",
    first_class=0,
    scores=("class0", "class1"),
    boxes=("regression0", "regression1"),
    activation="sigmoid",
    anchor_start="half-stride",
    anchor_shapes=((6, 8, 4), (9, 5, 7)),
    anchor_scales=(1, 2),
    threshold=0.3,
    candidates=300,
    nms=0.22,
    most=80,
    smallest=1,
)


def stored(prefix, made=None):
    found = made or np.load(STORED)
    return {name.removeprefix(f"{prefix}_"): found[name] for name in found if name.startswith(prefix)}


def check_torchvision(peer):
    found = detect(peer, PLANE, ("y", "x"), (64, 96), 3)
    # torchvision also gives boxes of which clipping to the image leaves nothing.
    left = (peer["boxes"][:, 2:] > peer["boxes"][:, :2]).all(axis=1)
    found = found.of(np.arange(left.sum()))
    np.testing.assert_array_equal(found.labels, peer["labels"][left])
    np.testing.assert_allclose(found.scores, peer["scores"][left], atol=1e-6)
    np.testing.assert_allclose(found.ends[:, :, ::-1].reshape(-1, 4), peer["boxes"][left], atol=2e-5)


def check_monai(peer):
    found = detect(peer, SPACE, ("x", "y", "z"), (32, 40, 24), 2)
    np.testing.assert_array_equal(found.labels - 1, peer["labels"])
    np.testing.assert_allclose(found.scores, peer["scores"], atol=1e-6)
    np.testing.assert_allclose(found.ends.reshape(-1, 6) - 0.5, peer["boxes"], atol=2e-5)


def test_boxes_of_a_plane_are_those_of_torchvision():
    peer = stored("plane")
    assert len(peer["boxes"]) == 60 and set(peer["labels"]) == {1, 2, 3}
    check_torchvision(peer)


def test_boxes_of_a_volume_are_those_of_monai():
    peer = stored("space")
    assert len(peer["boxes"]) == 80 and set(peer["labels"]) == {0, 1}
    check_monai(peer)


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(3, 8))
def test_boxes_are_those_of_torchvision_and_monai_run_here(seed):
    pytest.importorskip("torchvision")
    pytest.importorskip("monai")
    make = runpy.run_path(str(SCRIPT))
    check_torchvision(stored("plane", make["torchvision_boxes"](seed)))
    check_monai(stored("space", make["monai_boxes"](seed)))


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(5))
def test_what_overlaps_is_what_torchvision_says(seed):
    torch = pytest.importorskip("torch")
    ops = pytest.importorskip("torchvision.ops")
    random = np.random.default_rng(seed)
    low = random.uniform(0, 60, (400, 2)).astype(np.float32)
    boxes = np.stack([low, low + random.uniform(1, 30, (400, 2)).astype(np.float32)], 1)
    scores = random.permutation(400).astype(np.float32)
    theirs = ops.nms(torch.tensor(boxes.reshape(-1, 4)), torch.tensor(scores), 0.35).numpy()
    np.testing.assert_array_equal(not_overlapping(boxes, scores, 0.35), theirs)


def test_an_anchor_of_ratio_two_is_twice_as_high_as_wide():
    # 32 / sqrt(2) = 22.63, 32 * sqrt(2) = 45.25; halves 11.31 and 22.63 round to 11 and 23.
    said = replace(PLANE, anchor_sizes=((32,),), anchor_ratios=((2.0,),), strides=((8, 8),))
    assert anchor_sizes(said)[0].tolist() == [[22, 46]]


def test_boxes_of_two_thirds_overlap_go_where_a_third_is_allowed():
    # Two unit cubes, moved by 1 of 5 along x: 4 of 6.
    ends = np.array([[[0, 0, 0], [5, 5, 5]], [[1, 0, 0], [6, 5, 5]]], np.float32)
    scores = np.array([0.6, 0.9], np.float32)
    assert not_overlapping(ends, scores, 0.6).tolist() == [1]
    assert not_overlapping(ends, scores, 0.7).tolist() == [1, 0]
    assert not_overlapping(ends, scores, 0.7, most=1).tolist() == [1]


@given(arrays(np.float32, (12, 2, 3), elements=st.floats(0, 9, width=16)), st.floats(0.01, 0.99))
def test_no_box_that_is_kept_overlaps_a_better_one_and_every_other_does(raw, threshold):
    ends = np.sort(raw, axis=1) + np.array([[[0.0], [0.5]]], np.float32)
    scores = np.linspace(1, 0, 12, dtype=np.float32)

    def overlap(a, b):
        common = np.prod(np.clip(np.minimum(a[1], b[1]) - np.maximum(a[0], b[0]), 0, None))
        return common / (np.prod(a[1] - a[0]) + np.prod(b[1] - b[0]) - common)

    kept = not_overlapping(ends, scores, threshold).tolist()
    for n in range(12):
        worst = max((overlap(ends[n], ends[k]) for k in kept if k < n), default=0)
        assert worst <= threshold + 1e-5 if n in kept else worst >= threshold - 1e-5


def decoded(boxes, scores, classes=None):
    found = {"boxes": np.array(boxes, np.float32), "scores": np.array(scores, np.float32)}
    return found if classes is None else {**found, "classes": np.array(classes, np.int64)}


@pytest.mark.parametrize("batch", [False, True])
def test_decoded_boxes_are_read_with_and_without_a_batch(batch):
    outputs = decoded([[1, 2, 3, 5, 7, 9], [0, 0, 0, 4, 4, 4]], [0.9, 0.4], [1, 0])
    outputs = {name: array[None] for name, array in outputs.items()} if batch else outputs
    found = detect(outputs, BOXES, ("x", "y", "z"), (20, 20, 20), 2)
    assert found.ends.tolist() == [[[1, 2, 3], [5, 7, 9]]]
    assert found.labels.tolist() == [2]


def test_every_form_of_a_box_is_the_same_box():
    outputs = decoded([[1, 2, 3, 5, 7, 9]], [0.9], [0])
    wanted = [[[3, 1, 2], [9, 5, 7]]]
    assert detect(outputs, BOXES, ("z", "x", "y"), (20, 20, 20), 1).ends.tolist() == wanted
    forms = {
        ("z1", "zs", "x1", "xs", "y1", "ys"): [3, 6, 1, 4, 2, 5],
        ("xc", "yc", "zc", "xs", "ys", "zs"): [3, 4.5, 6, 4, 5, 6],
        ("x1", "x2", "yc", "ys", "z2", "z1"): [1, 5, 4.5, 5, 9, 3],
    }
    for box, numbers in forms.items():
        found = detect(decoded([numbers], [0.9], [0]), replace(BOXES, box=box), ("z", "x", "y"), (20, 20, 20), 1)
        assert found.ends.tolist() == wanted


def test_a_column_a_class_gives_a_box_for_each_class_above_the_threshold():
    said = replace(BOXES, classes=None, first_class=1)
    outputs = decoded([[1, 2, 3, 5, 7, 9]], [[0.99, 0.6, 0.2, 0.7]])
    found = detect(outputs, said, ("x", "y", "z"), (20, 20, 20), 3)
    assert found.labels.tolist() == [3, 1]


def test_no_box_is_no_error():
    outputs = decoded(np.zeros((0, 6)), np.zeros(0), np.zeros(0))
    assert len(detect(outputs, BOXES, ("x", "y", "z"), (20, 20, 20), 1)) == 0


def test_a_middle_as_the_origin_moves_a_box_by_half_a_voxel():
    outputs = decoded([[1, 2, 3, 5, 7, 9]], [0.9], [0])
    found = detect(outputs, replace(BOXES, origin="centre"), ("x", "y", "z"), (20, 20, 20), 1)
    assert found.ends.tolist() == [[[1.5, 2.5, 3.5], [5.5, 7.5, 9.5]]]


def test_boxes_are_clipped_and_those_outside_are_gone():
    outputs = decoded([[-3, 2, 3, 5, 30, 9], [-5, 0, 0, -1, 4, 4]], [0.9, 0.8], [0, 0])
    assert detect(outputs, BOXES, ("x", "y", "z"), (20, 20, 20), 1).ends.tolist() == [[[0, 2, 3], [5, 20, 9]]]


@pytest.mark.parametrize(
    ("outputs", "code"),
    [
        (decoded([[0, 0, 0, 1, 1, np.nan]], [0.9], [0]), "nan-in-output"),
        (decoded([[0, 0, 0, 1, 1, 1]], [np.inf], [0]), "nan-in-output"),
        (decoded([[0, 0, 1, 1]], [0.9], [0]), "network-does-not-fit"),
        (decoded([[0, 0, 0, 1, 1, 1]], [0.9, 0.8], [0, 0]), "network-does-not-fit"),
        (decoded([[0, 0, 0, 1, 1, 1]], [0.9], [7]), "network-does-not-fit"),
        (decoded([[0, 0, 0, 1, 1, 1]], [0.9]), "network-does-not-fit"),
    ],
)
def test_outputs_that_are_not_boxes_are_refused(outputs, code):
    with pytest.raises((DataError, ConfigError)) as error:
        detect(outputs, BOXES, ("x", "y", "z"), (20, 20, 20), 1)
    assert error.value.code == code


def test_heads_of_another_window_are_refused():
    with pytest.raises(ConfigError) as error:
        detect(stored("plane"), PLANE, ("y", "x"), (64, 64), 3)
    assert error.value.code == "network-does-not-fit"
    with pytest.raises(ConfigError):
        detect(stored("space"), SPACE, ("x", "y", "z"), (32, 40, 24), 3)


def test_a_box_that_two_windows_see_is_found_once():
    def window(box, score):
        return detect(decoded([box], [score], [0]), BOXES, ("x", "y", "z"), (16, 16, 16), 1)

    left, right = window([6, 2, 2, 12, 8, 8], 0.8), window([0, 2, 2, 4, 8, 8], 0.9)
    part = window([0, 2, 2, 4, 8, 8], 0.8)
    found = merge([(left, (0, 0, 0)), (right, (8, 0, 0))], BOXES, (24, 16, 16))
    # Of 6 voxels the right window sees 4: 4 / 6 overlap, the better score stays.
    assert found.ends.tolist() == [[[8, 2, 2], [12, 8, 8]]]
    # Both sure: the part goes, whichever window comes first.
    for windows in ([(left, (0, 0, 0)), (part, (8, 0, 0))], [(part, (8, 0, 0)), (left, (0, 0, 0))]):
        assert merge(windows, BOXES, (24, 16, 16)).ends.tolist() == [[[6, 2, 2], [12, 8, 8]]]
    apart = merge([(left, (0, 0, 0)), (left, (8, 8, 8))], BOXES, (18, 24, 24))
    assert apart.ends[:, :, 0].tolist() == [[6, 12], [14, 18]]


AFFINE = np.array([[0.8, 0.1, 0.2, -30], [-0.1, 0.9, 0.3, 40], [-0.1, -0.3, 2.4, 7], [0, 0, 0, 1]])


def at_right_angles(affine):
    left, _, right = np.linalg.svd(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0))
    found = affine.copy()
    found[:3, :3] = left @ right * np.array([0.8, 0.9, 2.4])
    return found


@pytest.mark.parametrize("axes", list(itertools.permutations("xyz")))
@pytest.mark.parametrize("orientation", ["".join(o) for o in itertools.product("LR", "AP", "SI")])
def test_a_box_lies_at_the_same_millimetres_in_every_order_and_direction_of_the_axes(axes, orientation):
    affine = at_right_angles(AFFINE)
    shape = (9, 14, 20)
    volume = np.zeros(shape)
    volume[2:4, 3:8, 7:16] = 1
    grid = network_grid(shape, affine, Input(("C", *axes), orientation, "as-acquired", "HU"))
    seen = np.argwhere(grid.to_network(volume))
    ends = np.array([[seen.min(axis=0), seen.max(axis=0) + 1]], np.float32)
    found = in_patient(on_volume(ends, [(n, grid.axes[n]) for n in grid.order])[0], affine)
    # By hand: voxels i 7 to 15, j 3 to 7, k 2 to 3.
    np.testing.assert_allclose(found["centre_mm"], (affine @ [11, 5, 2.5, 1])[:3], atol=1e-9)
    np.testing.assert_allclose(found["size_mm"], [9 * 0.8, 5 * 0.9, 2 * 2.4], atol=1e-9)
    np.testing.assert_allclose(found["corners_mm"][0], (affine @ [6.5, 2.5, 1.5, 1])[:3], atol=1e-9)
    np.testing.assert_allclose(found["corners_mm"][1], (affine @ [15.5, 2.5, 1.5, 1])[:3], atol=1e-9)
    np.testing.assert_allclose(found["corners_mm"][7], (affine @ [15.5, 7.5, 3.5, 1])[:3], atol=1e-9)
    np.testing.assert_allclose(found["axes"][2], affine[:3, 2] / 2.4, atol=1e-9)


def test_a_coarser_grid_puts_a_box_back_between_voxels():
    axis = SimpleNamespace(source=40, size=20, step=2.0, offset=0.0, flip=False)
    # The first coarse voxel has its middle at 0 and reaches from -1, which is outside, to 1; the third to the fifth from 3 to 9.
    ends = np.array([[[0], [1]], [[2], [5]]], np.float32)
    found = on_volume(ends, [(2, axis)], {0: (3.5, 4.5), 1: (-0.5, 9.5)})
    assert found.tolist() == [[[-0.5, -0.5, 3.5], [1, 9.5, 4.5]], [[3, -0.5, 3.5], [9, 9.5, 4.5]]]


CODE = Code("1", "99TEST", "thing")
LABELS = [Label(1, "nodule", CODE, CODE), Label(2, "node", CODE, CODE)]
COMMON = {
    "model": {"name": "finder", "version": "1", "sha256": "0" * 64},
    "engine": {"name": "onnxruntime"},
    "task": "detection",
    "empty": "valid",
    "out_of_scope": None,
    "regulatory": "Research use only, not reviewed.",
}


def the_document(plane="patient", found=1, **geometry):
    boxes = Boxes(np.zeros((found, 2, 3), np.float32), np.full(found, 0.75, np.float32), np.full(found, 2))
    ends = np.array([[[1, 2, 0.5], [3, 6, 2.5]]])[:found]
    slices = [{"k": k, "sop_instance_uid": f"1.2.{k}"} for k in range(3)]
    said = {"shape": [3, 10, 10], "spacing_plane": plane, "slices": slices, **geometry}
    return detections_document(ends, boxes, LABELS, BOXES, said, np.diag([0.5, 0.5, 2, 1]), COMMON)


def validated(document):
    import json

    import jsonschema

    schema = json.loads((ROOT / "mdcli" / "schemas" / "detections.json").read_text())
    jsonschema.Draft202012Validator(schema).validate(document)
    return document


def test_the_document_says_where_and_which_image_and_what_was_not_found():
    document = validated(the_document())
    (found,) = document["detections"]
    assert found["centre_mm"] == [1, 2, 3] and found["size_mm"] == [1, 2, 4]
    assert found["sop_instance_uid"] == "1.2.1"
    assert [label["found"] for label in document["labels"]] == [0, 1]
    assert document["result"] == "processed"


def test_a_resampled_volume_names_the_image_at_the_place():
    resampled = {"source_affine_lps": np.diag([0.5, 0.5, 1, 1]).tolist(), "source_offsets": [0, 1.2, 3.1]}
    assert the_document(resampled=resampled)["detections"][0]["sop_instance_uid"] == "1.2.2"


def test_an_image_without_a_plane_in_the_patient_has_no_millimetres():
    (found,) = validated(the_document("detector"))["detections"]
    assert "centre_mm" not in found and found["low_ijk"] == [1, 2, 0.5]


def test_nothing_found_says_what_was_searched_for():
    document = validated(the_document(found=0))
    assert document["result"] == "nothing-found"
    assert [label["name"] for label in document["labels"]] == ["nodule", "node"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, None),
        ({"box": ("x1", "y1", "x2", "y2")}, "box"),
        ({"box": ("x1", "y1", "z1", "xc", "ys", "zs")}, "box"),
        ({"threshold": 1.5}, "threshold"),
        ({"boxes": ()}, "scores"),
        ({"strides": ((4, 4, 4),)}, "strides"),
    ],
)
def test_a_card_of_boxes_that_makes_no_sense_is_named(change, word):
    problem = detection_problem(replace(BOXES, **change), ("C", "x", "y", "z"))
    assert problem is None if word is None else problem.startswith(f"{word}:")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({}, None),
        ({"anchor_start": None}, "anchor_start"),
        ({"anchor_ratios": ()}, "anchor_shapes"),
        ({"anchor_ratios": ((1.0, 2.0),)}, "anchor_shapes"),
        ({"anchor_sizes": ((16, -1), (30,))}, "anchor_shapes"),
        ({"strides": ()}, "scores"),
        ({"strides": ((8, 8), (16, 0))}, "strides"),
        ({"box": ("xc", "yc", "ys", "xs")}, "box"),
        ({"box": ("x1", "y1", "x2", "y2")}, "box"),
        ({"box_weights": (10, 10)}, "box_weights"),
        ({"classes": "c"}, "classes"),
    ],
)
def test_a_card_of_anchors_that_makes_no_sense_is_named(change, word):
    problem = detection_problem(replace(PLANE, **change), ("C", "y", "x"))
    assert problem is None if word is None else problem.startswith(f"{word}:")
