import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mdcli.errors import DataError
from mdcli.inference.card import Code, Label
from mdcli.inference.tasks.instances import (
    Objects,
    by_centres,
    by_components,
    find_centres,
    instances_document,
    measured,
    nearest_centres,
    settled,
)
from mdcli.inference.tasks.settings import Instances, instances_problem

SCHEMA = json.loads((Path(__file__).parents[3] / "mdcli" / "schemas" / "objects.json").read_text())
PARTS = Instances(form="components")
CENTRES = Instances(form="centres", heatmap="h", offsets="o", offset_axes=("z", "y", "x"), threshold=0.5, kernel=3)
CODE = Code("1", "99TEST", "thing")
LABELS = [Label(1, "cell", CODE, CODE), Label(2, "nucleus", CODE, CODE)]


def two_labels():
    labels = np.zeros((2, 3, 6), np.uint8)
    labels[0, 0, 4:] = 2
    labels[0, 1, 0] = 1
    labels[1, 2, 1] = 1
    labels[1, 0, 0] = 2
    return labels


@pytest.mark.parametrize(("connectivity", "count"), [(1, 4), (2, 4), (3, 3)])
def test_objects_are_numbered_by_their_first_voxels_across_the_labels(connectivity, count):
    found = by_components(two_labels(), replace(PARTS, connectivity=connectivity), 1.0)
    # (0, 1, 0) and (1, 2, 1) share a corner.
    assert len(found.values) == count
    assert found.map[0, 0, 4] == 1 and found.map[0, 1, 0] == 2
    assert found.values.tolist() == ([2, 1, 2] if count == 3 else [2, 1, 2, 1])
    assert found.map[1, 2, 1] == (2 if count == 3 else 4)


def test_small_objects_are_gone_and_the_others_are_numbered_without_a_gap():
    found = by_components(two_labels(), replace(PARTS, smallest_mm3=1.0), 0.5)
    assert found.values.tolist() == [2]
    assert np.argwhere(found.map).tolist() == [[0, 0, 4], [0, 0, 5]]


@given(arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 2)), st.sampled_from([1, 2, 3]))
@settings(max_examples=60, deadline=None)
def test_a_part_is_all_that_a_flood_reaches(labels, connectivity):
    wanted = np.zeros(labels.shape, int)
    steps = [s for s in np.ndindex(3, 3, 3) if 0 < sum(abs(v - 1) for v in s) <= connectivity]
    count = 0
    for start in np.ndindex(labels.shape):
        if not labels[start] or wanted[start]:
            continue
        count += 1
        front = [start]
        wanted[start] = count
        while front:
            place = front.pop()
            for step in steps:
                near = tuple(p + s - 1 for p, s in zip(place, step, strict=True))
                inside = all(0 <= n < size for n, size in zip(near, labels.shape, strict=True))
                if inside and not wanted[near] and labels[near] == labels[start]:
                    wanted[near] = count
                    front.append(near)
    found = by_components(labels, replace(PARTS, connectivity=connectivity), 1.0)
    np.testing.assert_array_equal(found.map, wanted)


@pytest.mark.torch
@pytest.mark.parametrize("connectivity", [1, 2, 3])
def test_parts_are_those_of_scipy(connectivity):
    ndimage = pytest.importorskip("scipy.ndimage")
    mask = np.random.default_rng(connectivity).random((20, 30, 40)) < 0.2
    wanted, count = ndimage.label(mask, ndimage.generate_binary_structure(3, connectivity))
    found = by_components(mask.astype(np.uint8), replace(PARTS, connectivity=connectivity), 1.0)
    assert len(found.values) == count
    np.testing.assert_array_equal(found.map, wanted)


def test_more_than_16_bits_of_objects_are_refused():
    labels = np.zeros((3, 400, 400), np.uint8)
    labels[::2, ::2, ::2] = 1
    assert labels.sum() == 80000
    with pytest.raises(DataError) as caught:
        by_components(labels, PARTS, 1.0)
    assert caught.value.code == "too-many-instances" and "80000" in caught.value.message
    labels[2] = 0
    assert len(by_components(labels, PARTS, 1.0).values) == 40000
    with pytest.raises(DataError):
        by_components(labels, replace(PARTS, most=39999), 1.0)


def discs(shape, centres, radius):
    """Return labels, heatmap and offsets of balls that touch; the nearest centre owns a voxel."""
    places = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1).astype(float)
    distances = np.linalg.norm(places[..., None, :] - np.array(centres), axis=-1)
    owner = distances.argmin(-1)
    labels = (distances.min(-1) <= radius).astype(np.uint8)
    heat = np.exp(-(distances.min(-1) ** 2) / 4).astype(np.float32)
    offsets = (np.array(centres)[owner] - places).transpose(3, 0, 1, 2).astype(np.float32)
    return labels, heat, offsets, owner


def test_touching_objects_are_told_apart_by_their_centres():
    centres = [(4, 8, 6), (4, 8, 13), (5, 15, 9)]
    labels, heat, offsets, owner = discs((10, 22, 20), centres, 4.5)
    assert len(by_components(labels, PARTS, 1.0).values) == 1
    found = by_centres(labels, heat, offsets, CENTRES, 1.0)
    assert found.scores.tolist() == [1, 1, 1]
    numbers = [int(found.map[centre]) for centre in centres]
    assert sorted(numbers) == [1, 2, 3]
    np.testing.assert_array_equal(found.map, np.where(labels, np.array(numbers)[owner], 0))


@pytest.mark.parametrize("planes", [1, 3, 7, 100])
def test_the_size_of_a_block_changes_nothing(planes):
    random = np.random.default_rng(4)
    labels = (random.random((13, 20, 24)) < 0.4).astype(np.uint8) * random.integers(1, 3, (13, 20, 24), np.uint8)
    heat = random.random(labels.shape).astype(np.float32)
    offsets = random.normal(0, 6, (3, *labels.shape)).astype(np.float32)
    said = replace(CENTRES, kernel=5, smallest_mm3=3)
    whole = by_centres(labels, heat, offsets, said, 1.0)
    found = by_centres(labels, heat, offsets, said, 1.0, planes=planes)
    assert len(whole.values) > 20
    for ours, theirs in zip(vars(found).values(), vars(whole).values(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@given(
    arrays(np.float64, (30, 3), elements=st.floats(-40, 80)),
    arrays(np.intp, (9, 3), elements=st.integers(0, 40), unique=True),
)
@settings(deadline=None)
def test_the_nearest_centre_is_that_of_comparing_all(targets, centres):
    distances = ((targets[:, None] - centres) ** 2).sum(-1)
    np.testing.assert_array_equal(nearest_centres(targets, centres), distances.argmin(1))


def test_a_plateau_is_one_centre_and_a_hot_border_is_one_too():
    heat = np.zeros((3, 6, 6), np.float32)
    heat[1, 2:4, 2:4] = 1
    heat[2, 5, 5] = 0.7
    heat[2, 4, 5] = 0.6
    heat[0, 0, 0] = 0.5
    assert find_centres(heat, CENTRES).tolist() == [[1, 2, 2], [2, 5, 5]]


def test_a_kernel_takes_the_highest_within_its_reach():
    heat = np.zeros((1, 1, 9), np.float32)
    heat[0, 0, [1, 3, 7]] = 0.8, 0.9, 0.7
    assert find_centres(heat, CENTRES)[:, 2].tolist() == [1, 3, 7]
    assert find_centres(heat, replace(CENTRES, kernel=5))[:, 2].tolist() == [3, 7]
    assert find_centres(heat, replace(CENTRES, kernel=101))[:, 2].tolist() == [3]


@pytest.mark.torch
def test_centres_are_those_of_max_pooling():
    torch = pytest.importorskip("torch")
    heat = np.random.default_rng(1).random((9, 14, 17)).astype(np.float32)
    for kernel in (3, 7):
        pooled = torch.nn.functional.max_pool3d(torch.tensor(heat)[None], kernel, 1, kernel // 2)[0].numpy()
        wanted = np.argwhere((pooled == heat) & (heat > 0.5))
        np.testing.assert_array_equal(find_centres(heat, replace(CENTRES, kernel=kernel)), wanted)


def test_an_object_is_of_the_label_that_most_of_its_voxels_have():
    labels = np.array([[[1, 2, 2, 0, 0]]], np.uint8)
    heat = np.array([[[0, 0.9, 0, 0, 0]]], np.float32)
    found = by_centres(labels, heat, np.zeros((3, 1, 1, 5), np.float32), CENTRES, 1.0)
    assert found.values.tolist() == [2] and found.map.tolist() == [[[1, 1, 1, 0, 0]]]
    labels[0, 0, 2] = 0
    assert by_centres(labels, heat, np.zeros((3, 1, 1, 5)), CENTRES, 1.0).values.tolist() == [1]


def test_no_centre_is_no_object():
    labels = np.ones((2, 3, 4), np.uint8)
    found = by_centres(labels, np.zeros((2, 3, 4)), np.zeros((3, 2, 3, 4)), CENTRES, 1.0)
    assert not found.map.any() and not len(found.values)


@pytest.mark.parametrize("at", ["heatmap", "offsets"])
def test_heads_that_are_not_finite_are_refused(at):
    heads = {"heatmap": np.full((2, 3, 4), 0.9), "offsets": np.zeros((3, 2, 3, 4))}
    heads[at].flat[3] = np.nan
    with pytest.raises(DataError) as caught:
        by_centres(np.ones((2, 3, 4), np.uint8), **heads, said=CENTRES, voxel_mm3=1.0)
    assert caught.value.code == "nan-in-output"


def test_offsets_beyond_all_numbers_do_no_harm():
    labels = np.ones((1, 1, 3), np.uint8)
    heat = np.array([[[0.9, 0, 0.8]]], np.float32)
    offsets = np.zeros((3, 1, 1, 3), np.float32)
    offsets[2, 0, 0] = 3e38, -3e38, 0
    assert by_centres(labels, heat, offsets, CENTRES, 1.0).map.shape == (1, 1, 3)


def test_an_object_is_measured_on_an_oblique_grid():
    numbers = np.zeros((3, 4, 5), np.uint16)
    numbers[1:3, 2, 1:4] = 1
    numbers[0, 0, 0] = 2
    affine = np.array([[0, 0, 2, 10], [0.5, 0, 0, 20], [0, -0.8, 0, 30], [0, 0, 0, 1]], float)
    first, second = measured(Objects(numbers, np.array([2, 1]), np.array([0.5, 0.25])), affine)
    # Middle (i, j, k) = (2, 2, 1.5): x = 10 + 3, y = 20 + 1, z = 30 - 1.6; a voxel has 0.8 mm3.
    np.testing.assert_allclose(first["centroid_mm"], [13, 21, 28.4])
    assert (first["voxels"], first["value"], first["score"]) == (6, 2, 0.5)
    assert first["volume_mm3"] == pytest.approx(4.8)
    assert (first["first_ijk"], first["last_ijk"]) == ([1, 2, 1], [3, 2, 2])
    assert (first["touches_first_slice"], first["touches_last_slice"]) == (False, True)
    assert second["touches_first_slice"] and second["first_ijk"] == [0, 0, 0]


def test_an_object_without_a_voxel_is_not_measured():
    rows = measured(Objects(np.array([[[0, 2]]], np.uint16), np.array([1, 1])), np.eye(4))
    assert [row["number"] for row in rows] == [2]


def test_what_lost_its_voxels_on_another_grid_is_gone():
    numbers = np.array([[[3, 3, 0, 1]]], np.uint16)
    found = settled(numbers, np.array([7, 8, 9]), np.array([0.1, 0.2, 0.3]), PARTS, 1.0)
    assert found.map.tolist() == [[[1, 1, 0, 2]]]
    assert found.values.tolist() == [9, 7] and found.scores.tolist() == [0.3, 0.1]


def test_the_document_says_what_was_searched_for():
    common = {"task": "instances", "empty": "valid", "out_of_scope": None, "regulatory": "Not reviewed."}
    found = by_components(two_labels(), PARTS, 1.0)
    for patient in (True, False):
        document = instances_document(found, LABELS, PARTS, np.diag([1.0, 1, 2, 1]), common, patient=patient)
        jsonschema.Draft202012Validator(SCHEMA).validate(document)
        assert [label["found"] for label in document["labels"]] == [2, 2]
        assert ("centroid_mm" in document["instances"][0]) == patient
    nothing = by_components(np.zeros((1, 2, 2), np.uint8), PARTS, 1.0)
    document = instances_document(nothing, LABELS, PARTS, np.eye(4), common)
    jsonschema.Draft202012Validator(SCHEMA).validate(document)
    assert document["result"] == "nothing-found" and len(document["labels"]) == 2


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (PARTS, None),
        (CENTRES, None),
        (replace(PARTS, heatmap="h"), "heatmap"),
        (replace(CENTRES, offsets=None), "heatmap"),
        (replace(CENTRES, offset_axes=("x", "y")), "offset_axes"),
        (replace(CENTRES, kernel=4), "kernel"),
        (replace(CENTRES, kernel=1), "kernel"),
        (replace(PARTS, most=70000), "smallest_mm3"),
    ],
)
def test_a_card_of_instances_that_makes_no_sense_is_named(said, word):
    problem = instances_problem(said, ("C", "z", "y", "x"))
    assert problem is None if word is None else problem.startswith(word)
