"""Colours against the equations of the standard, and against pydicom."""

import io
import struct

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, convert_color_space
from pydicom.uid import ExplicitVRBigEndian

from mdcli.dicom.colour import apply_palette, palette_of, to_rgb
from mdcli.dicom.sources import whole_header
from mdcli.errors import DataError
from tests.made_series import LITTLE, write_slice

COLOURS = ("Red", "Green", "Blue")


def palette(count, first, bits, entries, vr="US"):
    """Return a data set with a palette; `entries` are three lists, or bytes as they stand in the file."""
    ds = Dataset()
    for colour, values in zip(COLOURS, entries, strict=True):
        ds.add_new(f"{colour}PaletteColorLookupTableDescriptor", vr, [count, first, bits])
        raw = values if isinstance(values, bytes) else struct.pack(f"<{len(values)}H", *values)
        ds.add_new(f"{colour}PaletteColorLookupTableData", "OW", raw)
    return ds


@pytest.mark.parametrize(
    "ybr, rgb",
    [
        pytest.param([128, 128, 128], [128, 128, 128], id="gray has no colour difference"),
        pytest.param([76, 85, 255], [254, 0, 0], id="red: 76 + 1.402 x 127 is 254.05, green 76 - 75.9 is 0.1"),
        pytest.param([150, 44, 21], [0, 255, 1], id="green: 150 - 150.0, 150 + 28.9 + 76.4 is 255.3, 150 - 148.8"),
        pytest.param([29, 255, 107], [0, 0, 254], id="blue: 29 - 29.4, 29 - 43.7 + 15, 29 + 1.772 x 127"),
        pytest.param([255, 255, 255], [255, 121, 255], id="what is too bright is cut off: 255 - 43.7 - 90.7"),
    ],
)
def test_full_range_luminance_and_differences_become_red_green_and_blue(ybr, rgb):
    samples = np.array([[ybr]], "u1")
    to_rgb(samples, "YBR_FULL")
    assert samples.tolist() == [[rgb]]


@given(samples=hnp.arrays("u1", (3, 5, 3)))
def test_pydicom_makes_the_same_colours_within_its_rounding(samples):
    expected = convert_color_space(samples, "YBR_FULL", "RGB")
    for photometric in ("YBR_FULL", "YBR_FULL_422", "YBR"):
        found = samples.copy()
        to_rgb(found, photometric)
        assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("photometric", ["RGB", "YBR_RCT", "YBR_ICT"])
def test_what_is_rgb_already_stays_as_it_is(photometric):
    samples = np.arange(24, dtype="u1").reshape(2, 4, 3)
    to_rgb(samples, photometric)
    assert samples.ravel().tolist() == list(range(24))


@pytest.mark.parametrize("photometric", ["HSV", "CMYK", "YBR_PARTIAL_422", "MONOCHROME2"])
def test_other_samples_are_refused(photometric):
    with pytest.raises(DataError, match="unsupported-colour"):
        to_rgb(np.zeros((1, 1, 3), "u1"), photometric)


def test_sixteen_bit_entries_give_their_high_byte():
    ds = palette(2, 0, 16, [[0x0000, 0xFF12], [0x80FF, 0x0100], [0x00FF, 0xFFFF]])
    first, table = palette_of(ds)
    assert (first, table.tolist()) == (0, [[0, 128, 0], [255, 1, 255]])


@pytest.mark.parametrize("packed", [True, False], ids=["one byte an entry", "one word an entry"])
def test_eight_bit_entries_are_read_as_bytes_or_as_words(packed):
    entries = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 255]]
    made = [bytes(one) for one in entries] if packed else entries
    _, table = palette_of(palette(4, 0, 8, made))
    assert table.T.tolist() == entries


def test_values_beyond_the_table_take_its_first_or_last_entry():
    first, table = palette_of(palette(3, 10, 8, [[1, 2, 3]] * 3))
    found = apply_palette(np.array([[0, 10, 11, 12, 13, 65535]], "u2"), first, table)
    assert found[..., 0].tolist() == [[1, 1, 2, 3, 3, 3]]


def test_a_count_of_zero_means_65536_entries():
    ramp = list(range(65536))
    first, table = palette_of(palette(0, 0, 16, [ramp] * 3))
    assert len(table) == 65536
    assert apply_palette(np.array([[0, 256, 65535]], "u2"), first, table)[..., 0].tolist() == [[0, 1, 255]]


def test_the_first_value_mapped_may_be_negative():
    first, table = palette_of(palette(3, -1, 8, [[1, 2, 3]] * 3, vr="SS"))
    assert apply_palette(np.array([[-5, -1, 0, 1]], "i2"), first, table)[..., 0].tolist() == [[1, 1, 2, 3]]


def read_back(path):
    data = path.read_bytes()
    return whole_header(data), pydicom.dcmread(io.BytesIO(data))


@pytest.mark.parametrize("syntax", [LITTLE, ExplicitVRBigEndian], ids=["little endian", "big endian"])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_out_of_a_file_gives_the_colours_that_pydicom_gives(tmp_path, syntax, bits):
    plane = np.arange(60, dtype="u1").reshape(6, 10)
    rng = np.random.default_rng(bits)
    entries = [rng.integers(0, 1 << bits, 40).tolist() for _ in COLOURS]
    ds = palette(40, 5, bits, [bytes(e) for e in entries] if bits == 8 else entries)
    if syntax == ExplicitVRBigEndian:
        # Words are swapped, and so are bytes that lie in words.
        for colour in COLOURS:
            element = ds[f"{colour}PaletteColorLookupTableData"]
            element.value = np.frombuffer(element.value, "<u2").byteswap().tobytes()
    value = plane.tobytes()
    if syntax == ExplicitVRBigEndian:
        value = np.frombuffer(value, "<u2").byteswap().tobytes()
    more = {e.keyword: e.value for e in ds}
    write_slice(tmp_path / "a.dcm", plane, syntax, value=value, PhotometricInterpretation="PALETTE COLOR", **more)
    header, whole = read_back(tmp_path / "a.dcm")
    np.testing.assert_array_equal(whole.pixel_array, plane)
    first, table = palette_of(header)
    expected = [[entries[n][min(max(v - 5, 0), 39)] >> (bits - 8) for n in range(3)] for v in range(60)]
    assert apply_palette(plane, first, table).reshape(-1, 3).tolist() == expected
    if syntax == LITTLE:
        judged = apply_color_lut(plane, whole)
        judged = judged >> 8 if bits == 16 else judged
        np.testing.assert_array_equal(apply_palette(plane, first, table), judged)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda ds: delattr(ds, "GreenPaletteColorLookupTableData"), id="a table is absent"),
        pytest.param(lambda ds: delattr(ds, "BluePaletteColorLookupTableDescriptor"), id="a descriptor is absent"),
        pytest.param(lambda ds: setattr(ds, "RedPaletteColorLookupTableData", b"\1\2"), id="fewer entries than said"),
        pytest.param(lambda ds: setattr(ds, "RedPaletteColorLookupTableDescriptor", [4, 0, 12]), id="12 bits"),
        pytest.param(lambda ds: setattr(ds, "RedPaletteColorLookupTableDescriptor", [4, 1, 16]), id="other firsts"),
        pytest.param(lambda ds: setattr(ds, "RedPaletteColorLookupTableDescriptor", [4, 0]), id="two numbers"),
    ],
)
def test_a_palette_that_can_not_be_read_is_refused(change):
    ds = palette(4, 0, 16, [[0, 1, 2, 3]] * 3)
    change(ds)
    with pytest.raises(DataError, match="bad-palette"):
        palette_of(ds)


@given(
    stored=st.lists(st.integers(0, 65535), min_size=1, max_size=8),
    first=st.integers(0, 65535),
    entries=st.lists(st.integers(0, 255), min_size=1, max_size=8),
)
def test_every_stored_value_takes_the_nearest_entry(stored, first, entries):
    at, table = palette_of(palette(len(entries), first, 8, [entries] * 3))
    found = apply_palette(np.array([stored], "u2"), at, table)[0, :, 1].tolist()
    assert found == [entries[min(max(v - first, 0), len(entries) - 1)] for v in stored]
