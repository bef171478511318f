import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mdcli.errors import ConfigError, DataError
from mdcli.inference.card import Code, Label
from mdcli.inference.tasks.classification import SliceOf, classes_document, classify
from mdcli.inference.tasks.regression import regress

SCHEMA = json.loads((Path(__file__).parents[3] / "mdcli" / "schemas" / "classes.json").read_text())
CODE = Code("1", "99TEST", "thing")
LABELS = [Label(n + 1, name, CODE, CODE) for n, name in enumerate(("effusion", "mass", "nodule"))]
SLICES = [SliceOf(k, f"1.2.{k}") for k in range(3)]
COMMON = {
    "model": {"name": "reader", "version": "1", "sha256": "0" * 64},
    "engine": {"name": "onnxruntime"},
    "task": "classification",
    "empty": "valid",
    "out_of_scope": None,
    "regulatory": "Research use only, not reviewed.",
}


def said(output, key):
    return [label[key] for label in output["labels"]]


def document(*outputs):
    found = classes_document(outputs, COMMON)
    jsonschema.Draft202012Validator(SCHEMA).validate(found)
    return found


def test_softmax_of_one_image_gives_all_probabilities_and_the_top():
    # e^(0, ln 2, ln 5) = 1, 2, 5 of 8.
    numbers = np.log(np.array([[1, 2, 5]], np.float32))
    found = classify(numbers, LABELS, activation="softmax", multilabel=False, over="image")
    np.testing.assert_allclose(said(found, "probability"), [0.125, 0.25, 0.625], atol=1e-7)
    assert found["top"] == 3 and said(found, "positive") == [False, False, True]
    assert document(found)["result"] == "processed"


def test_each_finding_has_its_own_threshold():
    # sigmoid(0) = 0.5; sigmoid(ln 3) = 0.75; sigmoid(-ln 3) = 0.25.
    numbers = np.array([0, np.log(3), -np.log(3)], np.float32)
    found = classify(numbers, LABELS, activation="sigmoid", multilabel=True, thresholds=(0.6, 0.6, 0.2))
    np.testing.assert_allclose(said(found, "probability"), [0.5, 0.75, 0.25], atol=1e-7)
    assert said(found, "positive") == [False, True, True]
    assert found["top"] is None


def test_a_probability_at_the_threshold_is_positive():
    found = classify(np.zeros((1, 3)), LABELS, activation="sigmoid", multilabel=True, thresholds=(0.5,))
    assert said(found, "positive") == [True] * 3


def test_no_finding_is_a_result_that_says_what_was_searched_for():
    found = classify(np.full((1, 3), -5.0), LABELS, activation="sigmoid", multilabel=True)
    written = document(found)
    assert written["result"] == "nothing-found"
    assert [label["name"] for label in written["outputs"][0]["labels"]] == ["effusion", "mass", "nodule"]


def test_one_class_of_several_is_always_found():
    quiet = classify(np.full((1, 3), -5.0), LABELS, activation="sigmoid", multilabel=True)
    top = classify(np.full((1, 3), -5.0), LABELS, activation="softmax", multilabel=False, name="view")
    assert document(quiet, top)["result"] == "processed"


@pytest.mark.parametrize(
    ("numbers", "multilabel", "score_is"),
    [
        ([0.2, 0.3, 0.5], False, "probability"),
        ([0.2, 0.3, 0.5005], False, "probability"),
        ([0.2, 0.3, 0.51], False, "score"),
        ([-0.5, 1.0, 0.5], False, "score"),
        ([0.9, 0.9, 0.1], True, "probability"),
        ([0.9, 3.0, 0.1], True, "score"),
    ],
)
def test_numbers_that_are_no_probabilities_are_not_called_so(numbers, multilabel, score_is):
    found = classify(np.array([numbers]), LABELS, activation="none", multilabel=multilabel)
    document(found)
    assert found["score_is"] == score_is
    assert (said(found, "probability") == [None] * 3) == (score_is == "score")
    np.testing.assert_allclose(said(found, "score"), numbers, rtol=1e-6)


# Slices by hand: tops are 1, 1, 3; means 0.4, 0.2, 0.4 + 1/30; highest 0.6, 0.3, 0.9.
VOTES = np.array([[0.6, 0.3, 0.1], [0.5, 0.2, 0.3], [0.1, 0.0, 0.9]], np.float32)


@pytest.mark.parametrize(
    ("vote", "scores", "top", "score_is"),
    [
        ("mean", [0.4, 1 / 6, 13 / 30], 3, "probability"),
        ("max", [0.6, 0.3, 0.9], 3, "score"),
        ("majority", [2 / 3, 0, 1 / 3], 1, "share of slices"),
    ],
)
def test_slices_decide_together(vote, scores, top, score_is):
    found = classify(VOTES, LABELS, activation="none", multilabel=False, over="slices", vote=vote, slices=SLICES)
    document(found)
    np.testing.assert_allclose(said(found, "score"), scores, atol=1e-6)
    assert (found["top"], found["score_is"], found["vote"]) == (top, score_is, vote)
    assert [row["k"] for row in found["slices"]] == [0, 1, 2]
    assert found["slices"][2]["sop_instance_uid"] == "1.2.2"
    np.testing.assert_allclose(found["slices"][2]["values"], VOTES[2])


@pytest.mark.parametrize(
    ("vote", "positive"),
    [
        # Thresholds .5: two of three slices say the first; means .4, .17, .43; highest .6, .3, .9.
        ("majority", [True, False, False]),
        ("mean", [False, False, False]),
        ("max", [True, False, True]),
    ],
)
def test_findings_of_slices_are_voted_on_one_by_one(vote, positive):
    found = classify(VOTES, LABELS, activation="none", multilabel=True, over="slices", vote=vote, slices=SLICES)
    document(found)
    assert said(found, "positive") == positive


def test_equal_shares_go_by_the_mean():
    rows = np.array([[0.6, 0.4, 0], [0.1, 0.9, 0]], np.float32)
    found = classify(
        rows, LABELS, activation="none", multilabel=False, over="slices", vote="majority", slices=SLICES[:2]
    )
    assert found["top"] == 2


@given(arrays(np.float32, (4, 3), elements=st.floats(-30, 30, width=32)), st.permutations(range(4)))
def test_the_order_of_the_slices_decides_nothing(rows, order):
    slices = [SliceOf(k, None) for k in range(4)]
    for vote in ("max", "majority"):
        kinds = {"activation": "softmax", "multilabel": False, "over": "slices", "vote": vote, "slices": slices}
        one, other = classify(rows, LABELS, **kinds), classify(rows[order], LABELS, **kinds)
        np.testing.assert_allclose(said(one, "score"), said(other, "score"), atol=1e-6)


@pytest.mark.parametrize(
    ("array", "error", "code"),
    [
        (np.array([[0, np.nan, 0]]), DataError, "nan-in-output"),
        (np.array([[0, np.inf, 0]]), DataError, "nan-in-output"),
        (np.zeros((1, 4)), ConfigError, "network-does-not-fit"),
        (np.zeros((2, 3)), ConfigError, "network-does-not-fit"),
        (np.zeros((0, 3)), ConfigError, "network-does-not-fit"),
    ],
)
def test_what_is_no_answer_is_refused(array, error, code):
    for work in (
        lambda: classify(array, LABELS, activation="softmax", multilabel=False),
        lambda: regress(array, LABELS, CODE),
    ):
        with pytest.raises(error) as caught:
            work()
        assert caught.value.code == code


def test_axes_of_one_voxel_after_the_classes_are_no_matter():
    found = classify(np.zeros((1, 3, 1, 1, 1)), LABELS, activation="softmax", multilabel=False)
    np.testing.assert_allclose(said(found, "probability"), [1 / 3] * 3, atol=1e-7)
