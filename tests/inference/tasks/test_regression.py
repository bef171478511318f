import numpy as np
import pytest

from mdcli.errors import DataError
from mdcli.inference.card import Code, Label
from mdcli.inference.tasks.classification import SliceOf
from mdcli.inference.tasks.regression import regress
from tests.inference.tasks.test_classification import document

YEARS = Code("a", "UCUM", "year")
LABELS = [Label(1, "bone age", YEARS, YEARS)]


def number(*args, **more):
    found = regress(np.array(*args, np.float32), LABELS, YEARS, **more)
    assert document(found)["result"] == "processed"
    return found["labels"][0]["number"]


def test_a_number_is_scaled_and_has_its_unit():
    assert number([[0.25]], scale=40, offset=2) == 12
    found = regress(np.array([0.25]), LABELS, YEARS)
    assert found["unit"] == {"value": "a", "scheme": "UCUM", "meaning": "year"}


def test_slices_have_a_mean_or_a_highest():
    slices = [SliceOf(0, None), SliceOf(1, "1.2")]
    assert number([[1], [4]], over="slices", slices=slices) == 2.5
    assert number([[1], [4]], over="slices", slices=slices, vote="max", scale=-1) == -1


def test_a_number_out_of_range_is_refused_or_clamped_and_said():
    with pytest.raises(DataError) as caught:
        number([[30]], within=(0, 20))
    assert caught.value.code == "out-of-range" and "30" in caught.value.message
    found = regress(np.array([30.0]), LABELS, YEARS, within=(0, 20), outside="clamp")
    assert (found["labels"][0]["number"], found["labels"][0]["clamped"]) == (20, True)
    found = regress(np.array([20.0]), LABELS, YEARS, within=(0, 20))
    assert found["labels"][0]["clamped"] is False
