"""Modality LUTs against the text of the standard, and against pydicom."""

import struct

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut
from pydicom.sequence import Sequence

from mdcli.dicom.modality_lut import ModalityLut, apply_luts, modality_lut
from mdcli.dicom.pixels import SliceRead
from mdcli.dicom.sources import whole_header
from mdcli.errors import DataError
from tests.made_series import LITTLE, UNCOMPRESSED, instance, scan, write_slice

BARE = {"RescaleSlope": ..., "RescaleIntercept": ...}


def item(count, first, bits, data, kind="HU", vr="US", data_vr="OW"):
    """Return an item of ModalityLUTSequence; `data` is a list of entries, or bytes as they stand in the file."""
    ds = Dataset()
    ds.add_new("LUTDescriptor", vr, [count, first, bits])
    ds.ModalityLUTType = kind
    if isinstance(data, list) and data_vr == "OW":
        data = struct.pack(f"<{len(data)}H", *data)
    ds.add_new("LUTData", data_vr, data)
    return ds


def header(*items):
    ds = Dataset()
    ds.ModalityLUTSequence = Sequence(items)
    return ds


def lut_of(*items, **more):
    return modality_lut(instance(ModalityLUTSequence=True, **{**BARE, **more}), header(*items))


def applied(lut, stored):
    plane = np.array([[stored]])
    values, (read,) = apply_luts(plane, [SliceRead("a", int(plane.min()), int(plane.max()))], [lut])
    assert (read.low, read.high, read.sha256) == (int(values.min()), int(values.max()), "a")
    return values[0, 0].tolist()


def test_stored_values_become_entries_and_what_is_beyond_takes_the_ends():
    lut = lut_of(item(4, 10, 16, [1000, 7, 65535, 40]))
    assert (lut.first, lut.unit) == (10, "HU")
    assert applied(lut, [0, 10, 11, 12, 13, 14, 4095]) == [1000, 1000, 7, 65535, 40, 40, 40]


@pytest.mark.parametrize("vr, first", [("SS", -2), ("US", 65534)])
def test_the_first_value_of_signed_pixels_is_signed_whatever_its_vr(vr, first):
    lut = lut_of(item(4, first, 16, [1, 2, 3, 4], vr=vr), PixelRepresentation=1)
    assert lut.first == -2
    assert applied(lut, [-32768, -2, -1, 0, 1, 32767]) == [1, 1, 2, 3, 4, 4]


def test_the_first_value_of_unsigned_pixels_may_be_above_32767():
    assert applied(lut_of(item(2, 65534, 16, [5, 9])), [0, 65534, 65535]) == [5, 5, 9]


@pytest.mark.parametrize(
    "data, vr",
    [
        pytest.param([3, 200, 255, 0], "OW", id="one entry a word"),
        pytest.param(bytes([3, 200, 255, 0]), "OW", id="one entry a byte"),
        pytest.param([3, 200, 255, 0], "US", id="numbers"),
    ],
)
def test_eight_bit_entries_are_read_as_words_bytes_or_numbers(data, vr):
    assert applied(lut_of(item(4, 0, 8, data, data_vr=vr)), [0, 1, 2, 3]) == [3, 200, 255, 0]


def test_a_count_of_zero_means_65536_entries():
    lut = lut_of(item(0, 0, 16, list(range(65535, -1, -1))))
    assert applied(lut, [0, 1, 65535]) == [65535, 65534, 0]


def test_a_table_of_one_entry_is_a_constant():
    assert applied(lut_of(item(1, 3, 16, 77, data_vr="US")), [0, 3, 9]) == [77, 77, 77]


@pytest.mark.parametrize(
    "kind, unit", [("HU", "HU"), ("OD", "OD"), ("Z_EFF", "Z_EFF"), ("US", None), ("", None), (None, None)]
)
def test_the_unit_is_the_type_of_the_table(kind, unit):
    assert lut_of(item(2, 0, 16, [1, 2], kind=kind)).unit == unit


def test_an_image_without_a_table_among_others_is_named():
    with pytest.raises(DataError, match=r"001\.dcm") as caught:
        modality_lut(instance(), Dataset())
    assert caught.value.code == "no-modality-lut"


@pytest.mark.parametrize("scale", [{"RescaleSlope": 1.0}, {"RescaleIntercept": 0.0}])
def test_a_table_and_a_rescale_at_once_are_refused(scale):
    with pytest.raises(DataError, match="bad-modality-lut"):
        lut_of(item(2, 0, 16, [1, 2]), **scale)


@pytest.mark.parametrize(
    "items",
    [
        pytest.param([item(4, 0, 16, [1, 2, 3])], id="fewer entries than said"),
        pytest.param([item(4, 0, 16, bytes(4))], id="bytes where words are needed"),
        pytest.param([item(2, 0, 17, [1, 2])], id="entries of 17 bits"),
        pytest.param([item(2, 0, 7, [1, 2])], id="entries of 7 bits"),
        pytest.param([item(2, 0, 16, [1, 2]), item(2, 0, 16, [1, 2])], id="two tables"),
        pytest.param([Dataset()], id="an empty item"),
    ],
)
def test_a_table_that_can_not_be_read_is_refused(items):
    with pytest.raises(DataError, match="bad-modality-lut") as caught:
        lut_of(*items)
    assert "001.dcm" in caught.value.message


@pytest.mark.filterwarnings("ignore")
def test_what_stands_in_a_descriptor_as_text_is_not_repeated():
    odd = Dataset()
    odd.add_new("LUTDescriptor", "LO", ["Canary", "Name", "X"])
    odd.add_new("LUTData", "OW", bytes(8))
    with pytest.raises(DataError, match="bad-modality-lut") as caught:
        lut_of(odd)
    assert "Canary" not in caught.value.message


@pytest.mark.parametrize("syntax", UNCOMPRESSED.values(), ids=UNCOMPRESSED)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_table_out_of_a_file_gives_the_values_that_it_was_made_of(tmp_path, syntax, signed, bits):
    first = -20 if signed else 20
    entries = np.random.default_rng(bits).integers(0, 1 << bits, 50).tolist()
    plane = np.arange(first - 10, first + 60).reshape(7, 10).astype("i2" if signed else "u2")
    big = syntax == UNCOMPRESSED["big endian"]
    data = struct.pack(f"{'>' if big else '<'}50H", *entries)
    table = item(50, first, bits, data, vr="SS" if signed else "US")
    write_slice(tmp_path / "a.dcm", plane, syntax, ModalityLUTSequence=Sequence([table]), **BARE)
    (one,) = scan(tmp_path)
    lut = modality_lut(one, whole_header((tmp_path / "a.dcm").read_bytes()))
    expected = [entries[min(max(v - first, 0), 49)] for v in plane.ravel().tolist()]
    assert applied(lut, plane.ravel().tolist()) == expected
    if syntax == LITTLE and bits != 12:  # pydicom has no type for 12 bits
        whole = pydicom.dcmread(tmp_path / "a.dcm")
        np.testing.assert_array_equal(apply_modality_lut(whole.pixel_array, whole).ravel(), expected)


@given(
    stored=st.lists(st.integers(-32768, 32767), min_size=1, max_size=8),
    first=st.integers(-32768, 32767),
    entries=st.lists(st.integers(0, 65535), min_size=2, max_size=8),
)
def test_every_stored_value_takes_the_nearest_entry(stored, first, entries):
    lut = ModalityLut(first, np.array(entries, "u2"), None)
    assert applied(lut, stored) == [entries[min(max(v - first, 0), len(entries) - 1)] for v in stored]
