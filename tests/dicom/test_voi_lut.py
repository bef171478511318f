"""VOI LUTs as geometry.json has them."""

import base64

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from mdcli.dicom.voi_lut import voi_lut_table
from tests.made_series import instance


def lut(first=100, bits=10, entries=(0, 10, 400, 1023), big=False):
    """Return a header with one VOI LUT."""
    item = Dataset()
    item.add_new(0x00283002, "US", [len(entries) % 65536, first, bits])
    item.add_new(0x00283006, "OW", np.array(entries, ">u2" if big else "<u2").tobytes())
    ds = Dataset()
    ds.VOILUTSequence = Sequence([item])
    # A data set made in memory has no encoding; a file's has.
    ds.set_original_encoding(False, not big, "ascii")
    return ds


def of(ds, **facts):
    return voi_lut_table(instance(**{"RescaleIntercept": ..., **facts}), ds)


def entries(table):
    return np.frombuffer(base64.b64decode(table["entries"]), "<u2").tolist()


@pytest.mark.parametrize("big", [False, True])
def test_a_table_is_first_value_bits_and_entries_whatever_the_byte_order(big):
    table = of(lut(big=big))
    assert (table["items"], table["first"], table["bits"]) == (1, 100, 10)
    assert entries(table) == [0, 10, 400, 1023]


def test_no_entries_are_said_for_65536():
    whole = np.arange(65536)
    assert entries(of(lut(bits=16, first=0, entries=whole))) == whole.tolist()


@pytest.mark.parametrize(
    ("facts", "first"),
    [
        ({"PixelRepresentation": 0}, 65500),
        ({"PixelRepresentation": 1}, 65500 - 65536),
        ({"PixelRepresentation": 0, "RescaleIntercept": -1024.0}, 65500 - 65536),
    ],
)
def test_the_first_value_has_the_sign_of_the_modality_values(facts, first):
    assert of(lut(first=65500), **facts)["first"] == first


def test_an_image_without_a_table_has_none():
    assert of(Dataset()) is None


@pytest.mark.parametrize("damage", ["descriptor", "data", "bits", "numbers"])
def test_a_table_that_cannot_be_read_is_none_and_stops_no_loading(damage):
    ds = lut(bits=40) if damage == "bits" else lut()
    item = ds.VOILUTSequence[0]
    if damage == "descriptor":
        del item.LUTDescriptor
    if damage == "data":
        item.LUTData = b"\0\0"
    if damage == "numbers":
        item.LUTDescriptor = 4
    assert of(ds) is None
