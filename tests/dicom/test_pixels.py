"""From bytes in a file to exact modality values."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.pixels import convert_color_space, pixel_array
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless, JPEGLSLossless

from mdcli.dicom.instance import Instance
from mdcli.dicom.opening import SourceFiles
from mdcli.dicom.pixels import (
    Layout,
    Rescale,
    SliceRead,
    _settle_bits,
    container,
    describe_codestreams,
    file_digest,
    layouts,
    modality_slabs,
    modality_span,
    padding_range,
    read_slice,
    rescale_of,
)
from mdcli.errors import DataError, MissingError
from tests.made_series import COMPRESSED, LITTLE, UNCOMPRESSED, instance, scan, stack, write_slice

RAW = Layout(4, 6, 16, 16, 15, True, LITTLE)


def read_one(folder, padding=None):
    """Read the only file of a folder: (stored values, what was found)."""
    (one,) = scan(folder)
    (layout,), _ = layouts([one])
    out = np.empty(layout.shape, layout.dtype)
    with SourceFiles(folder) as files:
        found = read_slice(files, one, layout, padding, out)
    return out, found


def modality(stored, slopes, intercepts):
    """Return the volume that stored values (k, j, i) become."""
    reads = [SliceRead("", int(plane.min()), int(plane.max())) for plane in stored]
    rescale = Rescale(tuple(map(float, slopes)), tuple(map(float, intercepts)), None, None)
    dtype = modality_span(stored, reads, rescale).dtype
    return np.concatenate(list(modality_slabs(stored.copy(), rescale, dtype)))


@pytest.mark.parametrize("syntax", [*UNCOMPRESSED.values(), *COMPRESSED.values()], ids=[*UNCOMPRESSED, *COMPRESSED])
@pytest.mark.parametrize("dtype, bits", [("u2", 12), ("u2", 16), ("i2", 16), ("i2", 12)])
def test_every_encoding_gives_the_same_values(tmp_path, syntax, dtype, bits):
    low = -(1 << (bits - 1)) if dtype == "i2" else 0
    plane = np.random.default_rng(1).integers(low, low + (1 << bits), (37, 41)).astype(dtype)
    plane[0, :2] = low, low + (1 << bits) - 1
    write_slice(tmp_path / "a.dcm", plane, syntax, BitsStored=bits)
    out, found = read_one(tmp_path)
    np.testing.assert_array_equal(out, plane)
    assert (found.low, found.high, found.masked) == (low, low + (1 << bits) - 1, False)


@pytest.mark.parametrize("syntax", [LITTLE, *COMPRESSED.values()])
def test_bytes_are_read_too(tmp_path, syntax):
    plane = (np.arange(33 * 40) % 251).astype("u1").reshape(33, 40)
    write_slice(tmp_path / "a.dcm", plane, syntax)
    np.testing.assert_array_equal(read_one(tmp_path)[0], plane)


@pytest.mark.parametrize("vr", ["OB", "OW"])
@pytest.mark.parametrize("shape", [(4, 6), (3, 5)])
def test_big_endian_bytes_lie_in_pairs_only_where_their_vr_is_words(tmp_path, vr, shape):
    # PS3.5 A.3, 8.1.1: of OW, each word of two pixels is stored with its higher byte, the second pixel, first.
    plane = np.arange(shape[0] * shape[1], dtype="u1").reshape(shape)
    value = plane.tobytes() + bytes(plane.size % 2)
    if vr == "OW":
        value = np.frombuffer(value, "<u2").byteswap().tobytes()
    write_slice(tmp_path / "a.dcm", plane, ExplicitVRBigEndian, value=value)
    path = tmp_path / "a.dcm"
    path.write_bytes(path.read_bytes().replace(b"\x7f\xe0\x00\x10OW", b"\x7f\xe0\x00\x10" + vr.encode()))
    np.testing.assert_array_equal(pydicom.dcmread(path).pixel_array, plane)
    np.testing.assert_array_equal(read_one(tmp_path)[0], plane)


def test_an_odd_number_of_bytes_is_padded_and_not_too_long(tmp_path):
    plane = np.arange(9, dtype="u1").reshape(3, 3)
    write_slice(tmp_path / "a.dcm", plane, value=plane.tobytes() + b"\0")
    assert layouts(scan(tmp_path))[1] == []
    np.testing.assert_array_equal(read_one(tmp_path)[0], plane)


@pytest.mark.parametrize(
    "dtype, stored, expected, masked",
    [
        pytest.param(
            "u2", [0x0FFF, 0x1001, 0x8002], [0xFFF, 0x001, 0x002], True, id="an overlay above 12 bits is cut off"
        ),
        pytest.param("i2", [-1, -2048, 2047], [-1, -2048, 2047], False, id="an extended sign stays"),
        pytest.param("i2", [0x0FFF, 0x0800, 0x07FF], [-1, -2048, 2047], False, id="a sign that was not extended is"),
        pytest.param("i2", [0x4FFF, 0x0001, 0x17FF], [-1, 1, 2047], True, id="an overlay above the sign is cut off"),
    ],
)
def test_bits_above_bits_stored_are_masked(tmp_path, dtype, stored, expected, masked):
    write_slice(tmp_path / "a.dcm", np.array([stored], dtype), BitsStored=12)
    out, found = read_one(tmp_path)
    assert out.tolist() == [expected]
    assert found.masked == masked
    assert (found.low, found.high) == (min(expected), max(expected))


def test_the_high_bit_says_where_the_value_lies(tmp_path):
    # 12 bits stored below bit 15: the value is the upper 12 bits.
    write_slice(tmp_path / "a.dcm", np.array([[0x7FF1, 0x0012]], "u2"), BitsStored=12, HighBit=15)
    assert read_one(tmp_path)[0].tolist() == [[0x7FF, 0x001]]


def test_padding_beyond_the_stored_bits_is_refused_where_it_would_become_a_value(tmp_path):
    # -2000 in 16 bits becomes 2096 in 12: a bone-like ring around the body.
    plane = np.array([[-2000, 5]], "i2").view("u2")
    write_slice(tmp_path / "a.dcm", plane, BitsStored=12)
    with pytest.raises(DataError) as caught:
        read_one(tmp_path, (63536, 63536))
    assert caught.value.code == "padding-out-of-range"


def test_padding_voxels_are_counted_and_kept(tmp_path):
    plane = np.array([[-2000, -1000, -2000, 40]], "i2")
    write_slice(tmp_path / "a.dcm", plane)
    out, found = read_one(tmp_path, (-2000, -2000))
    np.testing.assert_array_equal(out, plane)
    assert found.padding_voxels == 2
    assert read_one(tmp_path, (-2000, -1000))[1].padding_voxels == 3


@pytest.mark.parametrize(
    "signed, value, limit, expected",
    [
        (True, 63536, None, (-2000, -2000)),
        (True, -2000, None, (-2000, -2000)),
        (False, -2000, None, (63536, 63536)),
        (False, 0, 10, (0, 10)),
        (False, 10, 0, (0, 10)),
        (True, None, None, None),
    ],
)
def test_padding_is_read_by_the_sign_of_the_pixels(signed, value, limit, expected):
    one = instance(PixelPaddingValue=value, PixelPaddingRangeLimit=limit)
    assert padding_range(one, replace(RAW, signed=signed)) == expected


def test_padding_that_is_no_number_is_refused():
    with pytest.raises(DataError, match="bad-padding"):
        padding_range(instance(PixelPaddingValue="none"), RAW)


@pytest.mark.parametrize(
    "change, code",
    [
        ({"TransferSyntaxUID": "1.2.3.4.5.6.7.8.9.10"}, "unknown-syntax"),
        pytest.param({"TransferSyntaxUID": "1.2.840.10008.1.2.4.100"}, "unsupported-syntax", id="MPEG2"),
        pytest.param({"TransferSyntaxUID": "1.2.840.10008.1.2.4.94"}, "unsupported-syntax", id="JPIP"),
        pytest.param({"TransferSyntaxUID": "1.2.840.10008.1.2.4.70"}, "bad-encapsulation", id="raw, but says JPEG"),
        ({"TransferSyntaxUID": str(JPEG2000Lossless)}, "bad-encapsulation"),
        ({"BitsAllocated": 12}, "unsupported-bits"),
        ({"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}, "unsupported-bits"),
        ({"BitsAllocated": 64, "BitsStored": 64, "HighBit": 63}, "unsupported-bits"),
        ({"BitsAllocated": None}, "bad-bits"),
        ({"BitsAllocated": "sixteen"}, "bad-bits"),
        ({"BitsStored": 17, "HighBit": 16}, "bad-bits"),
        ({"BitsStored": 0}, "bad-bits"),
        ({"HighBit": 10}, "bad-bits"),
        ({"PixelRepresentation": 2}, "bad-bits"),
        ({"Rows": 65535, "Columns": 65535}, "pixels-short"),
        ({"Columns": 7}, "pixels-short"),
    ],
)
def test_what_can_not_be_read_is_refused_from_the_header(change, code):
    with pytest.raises(DataError) as caught:
        layouts([instance(**change)])
    assert caught.value.code == code
    assert "001.dcm" in caught.value.message


@pytest.mark.parametrize("keyword", ["PixelRepresentation", "BitsStored", "BitsAllocated"])
@pytest.mark.parametrize("value", [None, ...], ids=["empty", "absent"])
def test_what_says_how_pixels_are_encoded_has_no_default(keyword, value):
    with pytest.raises(DataError, match="bad-bits"):
        layouts([instance(**{keyword: value})])


def test_an_absent_high_bit_is_the_last_of_the_bits_stored():
    (layout,), _ = layouts([instance(HighBit=...)])
    assert layout.high_bit == 11


def test_raw_pixels_said_to_be_raw_but_encapsulated_are_refused():
    with pytest.raises(DataError, match="bad-encapsulation"):
        layouts([replace(instance(), pixel_length=None)])


def test_a_file_that_ends_in_its_pixels_is_refused():
    with pytest.raises(DataError, match="truncated-pixels"):
        layouts([replace(instance(), size=1047)])


def test_more_bytes_than_one_frame_are_told():
    found, findings = layouts([replace(instance(), pixel_length=8048, size=9048)])
    assert found[0].nbytes == 48
    assert [(f.code, f.warning) for f in findings] == [("pixels-long", True)]


def test_a_compressed_bomb_is_refused_before_anything_is_allocated():
    bomb = instance(TransferSyntaxUID=str(JPEG2000Lossless), Rows=65535, Columns=65535)
    with pytest.raises(DataError, match="compression-bomb"):
        layouts([replace(bomb, pixel_length=None)] * 8)


def test_a_deflated_bomb_stops_at_a_limit(tmp_path):
    import io
    import struct
    import zlib

    plane = np.zeros((4, 6), "u2")
    write_slice(tmp_path / "a.dcm", plane, UNCOMPRESSED["deflated"])
    data = (tmp_path / "a.dcm").read_bytes()
    start = 144 + struct.unpack_from("<I", data, 140)[0]
    body = zlib.decompress(data[start:], -15)
    packer, packed = zlib.compressobj(9, zlib.DEFLATED, -15), io.BytesIO()
    packed.write(packer.compress(body + struct.pack("<HH2sHI", 0x7FE3, 0x1001, b"OB", 0, 64 << 20)))
    for _ in range(64):
        packed.write(packer.compress(bytes(1 << 20)))
    packed.write(packer.flush())
    (tmp_path / "a.dcm").write_bytes(data[:start] + packed.getvalue())
    with pytest.raises(DataError, match="deflate-bomb"):
        read_one(tmp_path)


@pytest.mark.parametrize(
    "damage, code",
    [
        pytest.param(lambda d: d[:200] + b"X" + d[201:], "source-changed", id="another header"),
        pytest.param(lambda d: d + b"\0", "source-changed", id="another size"),
    ],
)
def test_a_file_that_changed_since_the_scan_is_refused(tmp_path, damage, code):
    path = tmp_path / "a.dcm"
    write_slice(path, np.zeros((4, 6), "u2"))
    (one,) = scan(tmp_path)
    (layout,), _ = layouts([one])
    path.write_bytes(damage(path.read_bytes()))
    with SourceFiles(tmp_path) as files, pytest.raises(DataError, match=code):
        read_slice(files, one, layout, None, np.empty((4, 6), "u2"))


def test_a_file_that_is_gone_is_missed(tmp_path):
    with SourceFiles(tmp_path) as files, pytest.raises(MissingError, match="source-missing"):
        read_slice(files, instance(), RAW, None, np.empty((4, 6), "i2"))


def test_the_digest_is_that_of_the_whole_file(tmp_path):
    import hashlib

    write_slice(tmp_path / "a.dcm", np.zeros((4, 6), "u2"), value=bytes(80))
    (one,) = scan(tmp_path)
    expected = hashlib.sha256((tmp_path / "a.dcm").read_bytes()).hexdigest()
    assert read_one(tmp_path)[1].sha256 == expected
    with SourceFiles(tmp_path) as files:
        assert file_digest(files, one) == expected


@pytest.mark.parametrize(
    "stored, slope, intercept, dtype",
    [
        pytest.param([0, 4095], 1, -1024, "int16", id="CT from 16 signed bits does not wrap"),
        pytest.param([-32768, 0], 1, -1024, "int32", id="what int16 can't hold goes on"),
        pytest.param([0, 32767], 1, 0, "int16", id="the last value of int16"),
        pytest.param([0, 32767], 1, 1, "uint16", id="one more"),
        pytest.param([0, 32767], 2, 1, "uint16", id="65535 is the last of uint16"),
        pytest.param([0, 32767], 3, 0, "int32", id="98301 needs int32"),
        pytest.param([0, 32767], -1, 0, "int16", id="a negative slope"),
        pytest.param([-32768, 32767], 65536, 65535, "int32", id="the last value of int32"),
        pytest.param([-32768, 32767], 65536, 65536, "float32", id="a power of two beyond int32"),
        pytest.param([-32767, 32767], 131073, 0, "float64", id="beyond int32 and the 24 bits of float32"),
        pytest.param([2, 4], 0.5, 0, "int16", id="a slope that gives whole numbers all the same"),
        pytest.param([1, 4], 0.5, 0, "float32", id="halves"),
        pytest.param([1, 4], 0.1, 0, "float64", id="tenths are in no float32"),
        pytest.param([0, 0], 0.1, 0, "int16", id="nothing but zeros"),
        pytest.param([1, 3], 1, 0.25, "float32", id="a broken intercept"),
    ],
)
def test_the_first_type_that_holds_all_values_exactly(stored, slope, intercept, dtype):
    planes = np.array([[stored]], "i2")
    found = modality(planes, [slope], [intercept])
    assert found.dtype == np.dtype(dtype).newbyteorder("<")
    assert found.ravel().tolist() == [v * slope + intercept for v in stored]


@given(
    stored=st.lists(st.lists(st.integers(-32768, 32767), min_size=3, max_size=3), min_size=2, max_size=2),
    slopes=st.lists(st.sampled_from([1, -1, 2, 0.5, 0.3, 1e-7, 70000]), min_size=2, max_size=2),
    intercepts=st.lists(st.sampled_from([0, -1024, -4096, 0.1, 33.901196, 1e9]), min_size=2, max_size=2),
)
def test_every_value_is_the_product_in_float64(stored, slopes, intercepts):
    planes = np.array(stored, "i2")[:, None, :]
    found = modality(planes, slopes, intercepts)
    expected = [[v * float(a) + float(b) for v in row] for row, a, b in zip(stored, slopes, intercepts, strict=True)]
    assert found[:, 0].astype(float).tolist() == expected


def test_values_beyond_float64_are_refused():
    with pytest.raises(DataError, match="bad-rescale"):
        modality(np.array([[[1, 65535]]], "u2"), [1e305], [0])


def test_unsigned_values_above_32767_do_not_wrap_on_the_way():
    found = modality(np.array([[[40000, 65535]]], "u2"), [1], [-32768])
    assert (found.dtype, found.ravel().tolist()) == (np.dtype("<i2"), [7232, 32767])


@pytest.mark.parametrize(
    "types, expected", [(("i2", "i2"), "i2"), (("i2", "u2"), "i4"), (("u1", "u2"), "u2"), (("i1", "u1"), "i2")]
)
def test_slices_of_unlike_types_share_the_next_larger(types, expected):
    made = [Layout(4, 6, 8 * int(t[1]), 8 * int(t[1]), 8 * int(t[1]) - 1, t[0] == "i", LITTLE) for t in types]
    assert container(made) == np.dtype(expected)


def test_signed_and_unsigned_32_bits_meet_in_64():
    made = [Layout(4, 6, 32, 32, 31, signed, LITTLE) for signed in (True, False)]
    assert container(made) == np.dtype("i8")


def test_integers_and_floating_point_do_not_meet():
    with pytest.raises(DataError, match="mixed-bits"):
        container([RAW, Layout(4, 6, 32, 32, 31, True, LITTLE, floating=True)])


@pytest.mark.parametrize(
    "more, unit",
    [
        ({}, "HU"),
        ({"RescaleType": "HU"}, "HU"),
        ({"RescaleType": "HU_MOD"}, "HU_MOD"),
        ({"RescaleType": "US"}, None),
        ({"Modality": "MR"}, None),
        ({"Modality": "MR", "RescaleType": "normalized"}, "normalized"),
        ({"Modality": "MR", "RescaleSlope": None, "RescaleIntercept": None}, None),
        ({"Modality": "PT", "Units": "BQML"}, "BQML"),
    ],
)
def test_the_unit_is_what_the_header_says(more, unit):
    assert rescale_of(stack(2, **more)).unit == unit


@pytest.mark.parametrize("more", [{"RescaleSlope": None, "RescaleIntercept": None}, {"RescaleType": "US"}])
def test_a_ct_without_a_unit_is_taken_as_hu_on_request(more):
    found = rescale_of(stack(2, **more), assume_hu=True)
    assert (found.unit, found.assumed) == ("HU", True)


@pytest.mark.parametrize(
    "more, code",
    [
        ({"RescaleSlope": None, "RescaleIntercept": None}, "no-rescale"),
        ({"RescaleSlope": 0.0}, "bad-rescale"),
        ({"RescaleSlope": "one"}, "bad-rescale"),
        ({"RescaleIntercept": "-1024,0"}, "bad-rescale"),
        ({"RescaleIntercept": float("nan")}, "bad-rescale"),
        ({"RescaleIntercept": None}, "bad-rescale"),
        ({"RescaleIntercept": ...}, "bad-rescale"),
        ({"RescaleSlope": None}, "bad-rescale"),
        ({"RescaleSlope": ..., "Modality": "MR"}, "bad-rescale"),
        ({"Modality": "PT", "Units": "BQML", "RescaleSlope": None, "RescaleIntercept": None}, "no-rescale"),
    ],
)
def test_a_rescale_that_can_not_be_trusted_is_refused(more, code):
    with pytest.raises(DataError, match=code):
        rescale_of(stack(3, **more))


@pytest.mark.parametrize("assume_hu", [False, True])
@pytest.mark.parametrize(
    "more",
    [{"RescaleSlope": None, "RescaleIntercept": None}, {"RescaleIntercept": None}, {"RescaleSlope": ...}],
    ids=["neither", "an empty intercept", "no slope"],
)
def test_one_slice_with_less_rescale_than_the_others_is_named_and_refused(more, assume_hu):
    slices = [*stack(3), instance((0, 0, 50), 4, **more)]
    with pytest.raises(DataError, match=r"004\.dcm") as caught:
        rescale_of(slices, assume_hu=assume_hu)
    assert caught.value.code == "bad-rescale"


def test_hounsfield_units_are_assumed_for_ct_only():
    with pytest.raises(DataError, match="not-ct"):
        rescale_of(stack(2, Modality="MR"), assume_hu=True)


def test_codestreams_unlike_their_headers_are_told_once():
    layout = Layout(4, 6, 16, 12, 11, False, str(JPEGLSLossless))
    reads = [SliceRead("", 0, 255, precision=8, stream_signed=False)] * 3
    (finding,) = describe_codestreams([layout] * 3, reads)
    assert (finding.code, finding.numbers) == ("codestream-differs", {"images": 3})
    assert describe_codestreams([replace(layout, bits_stored=8)] * 3, reads) == []


def test_an_instance_that_was_never_scanned_has_no_pixels():
    with pytest.raises(DataError, match="no-pixels"):
        layouts([Instance("a.dcm", 10, None, None, "", instance().attributes)])


STORED_TYPES = ["u1", "i1", "u2", "i2", "u4", "i4"]


def first_type(values):
    """Return the first type that holds exact numbers (integers or fractions), by arithmetic alone."""
    if all(Fraction(v).denominator == 1 for v in values):
        for name in ("int16", "uint16", "int32"):
            if np.iinfo(name).min <= min(values) and max(values) <= np.iinfo(name).max:
                return name
    return "float32" if all(Fraction(float(np.float32(float(v)))) == v for v in values) else "float64"


@st.composite
def slices_of_one_type(draw):
    info = np.iinfo(draw(st.sampled_from(STORED_TYPES)))
    ends = st.sampled_from([info.min, info.min + 1, info.max - 1, info.max])
    value = st.one_of(ends, st.integers(info.min, info.max))
    return info.dtype, draw(st.lists(st.lists(value, min_size=3, max_size=3), min_size=1, max_size=3))


@given(
    made=slices_of_one_type(),
    scale=st.lists(
        st.tuples(
            st.one_of(st.sampled_from([1, -1]), st.integers(-70000, 70000)),
            st.one_of(st.just(0), st.integers(-(1 << 31), 1 << 31)),
        ),
        min_size=3,
        max_size=3,
    ),
)
def test_whole_numbers_are_those_of_unlimited_integers_in_the_first_type_that_holds_them(made, scale):
    dtype, stored = made
    scale = [(a or 1, b) for a, b in scale[: len(stored)]]
    found = modality(np.array(stored, dtype)[:, None, :], *zip(*scale, strict=True))
    expected = [[a * v + b for v in plane] for plane, (a, b) in zip(stored, scale, strict=True)]
    assert [[int(v) for v in plane[0].tolist()] for plane in found] == expected
    assert found.dtype == np.dtype(first_type([v for plane in expected for v in plane]))


@given(
    made=slices_of_one_type(),
    slope=st.integers(-4096, 4096).filter(bool),
    intercept=st.integers(-(1 << 24), 1 << 24),
    power=st.integers(0, 10),
)
def test_binary_fractions_are_exact_in_the_first_type_that_holds_them(made, slope, intercept, power):
    dtype, stored = made
    a, b = Fraction(slope, 1 << power), Fraction(intercept, 1 << power)
    found = modality(np.array(stored, dtype)[:, None, :], [a] * len(stored), [b] * len(stored))
    expected = [[a * v + b for v in plane] for plane in stored]
    assert [[Fraction(v) for v in plane[0].tolist()] for plane in found] == expected
    assert found.dtype == np.dtype(first_type([v for plane in expected for v in plane]))


@pytest.mark.parametrize("dtype", STORED_TYPES)
def test_the_limits_of_every_stored_type_are_kept(dtype):
    info = np.iinfo(dtype)
    found = modality(np.array([[[info.min, 0, info.max]]], dtype), [1], [0])
    assert found.ravel().tolist() == [info.min, 0, info.max]
    held = {"u1": "i2", "i1": "i2", "u2": "u2", "i2": "i2", "u4": "f8", "i4": "i4"}
    assert found.dtype == np.dtype(held[dtype])


def test_a_negative_slope_turns_the_lowest_stored_value_into_the_highest():
    # -1 x -32768 is one more than int16 holds.
    found = modality(np.array([[[-32768, 32767]]], "i2"), [-1], [0])
    assert (found.dtype.name, found.ravel().tolist()) == ("int32", [32768, -32767])


@pytest.mark.parametrize(
    "small, large, dtype, expected",
    [
        pytest.param("i2", "u2", "int32", [-32768, 65535], id="16 bits meet in 32"),
        pytest.param("i4", "u4", "float64", [-2147483648, 4294967295], id="32 bits meet in 64, exact in float64"),
        pytest.param("i1", "u1", "int16", [-128, 255], id="8 bits meet in 16"),
    ],
)
def test_slices_with_and_without_sign_keep_their_values(small, large, dtype, expected):
    made = [Layout(1, 2, 8 * int(t[1]), 8 * int(t[1]), 8 * int(t[1]) - 1, t[0] == "i", LITTLE) for t in (small, large)]
    stored = np.zeros((2, 1, 2), container(made))
    stored[0, 0, 0], stored[1, 0, 1] = expected
    found = modality(stored, [1, 1], [0, 0])
    assert (found.dtype.name, [found[0, 0, 0], found[1, 0, 1]]) == (dtype, expected)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9))
def test_floating_point_of_32_bits_is_kept_bit_by_bit(values):
    stored = np.array([[values]], "f4")
    found = modality(stored, [1], [0])
    assert found.dtype == np.dtype("<f4")
    assert found.tobytes() == stored.astype("<f4").tobytes()


def test_floating_point_of_64_bits_stays_64_bits_even_if_32_would_do():
    # What a file says in double precision may be compared with other files' values: nothing is rounded, nothing is guessed.
    found = modality(np.array([[[0.5, 0.1]]], "f8"), [1], [0])
    assert (found.dtype.name, found.ravel().tolist()) == ("float64", [0.5, 0.1])


@pytest.mark.parametrize("slope, intercept", [(2, 0), (1, 40000), (0.5, 0)])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_floating_point_that_is_rescaled_is_the_product(dtype, slope, intercept):
    found = modality(np.array([[[1.0, 3.0, 40000.0]]], dtype), [slope], [intercept])
    assert found.ravel().tolist() == [v * slope + intercept for v in (1, 3, 40000)]


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_what_is_no_number_stays_none(dtype):
    stored = np.array([[[np.nan, 1.5, np.inf, -np.inf]]], dtype)
    reads = [SliceRead("", 1.5, 1.5)]
    rescale = Rescale((1.0,), (0.0,), None, None)
    (slab,) = modality_slabs(stored.copy(), rescale, modality_span(stored, reads, rescale).dtype)
    np.testing.assert_array_equal(slab, stored)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_floating_point_pixels_are_read_from_their_own_attribute(tmp_path, dtype):
    plane = np.random.default_rng(2).normal(0, 1e6, (5, 7)).astype(dtype)
    plane[0, :3] = np.nan, np.inf, -0.0
    write_float(tmp_path / "a.dcm", plane)
    out, found = read_one(tmp_path)
    assert out.dtype == np.dtype(dtype)
    assert out.tobytes() == plane.tobytes()
    finite = plane[np.isfinite(plane)]
    assert (found.low, found.high) == (float(finite.min()), float(finite.max()))


def write_float(path, plane):
    """Write FloatPixelData or DoubleFloatPixelData (PS3.3 C.7.6.24, C.7.6.25): neither BitsStored nor PixelRepresentation."""
    write_slice(path, np.zeros(plane.shape, "u2"))
    ds = pydicom.dcmread(path)
    for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(ds, keyword)
    ds.BitsAllocated = 8 * plane.dtype.itemsize
    setattr(ds, "FloatPixelData" if plane.dtype.itemsize == 4 else "DoubleFloatPixelData", plane.tobytes())
    ds.save_as(path)


@pytest.mark.parametrize("bits", [16, 64])
def test_floating_point_pixels_of_other_bits_than_their_attribute_has_are_refused(tmp_path, bits):
    write_float(tmp_path / "a.dcm", np.zeros((4, 4), "f4"))
    ds = pydicom.dcmread(tmp_path / "a.dcm")
    ds.BitsAllocated = bits
    ds.save_as(tmp_path / "a.dcm")
    with pytest.raises(DataError, match="bad-bits"):
        layouts(scan(tmp_path))


@pytest.mark.parametrize("syntax", UNCOMPRESSED.values(), ids=UNCOMPRESSED)
@pytest.mark.parametrize("dtype", ["u4", "i4", "i1", "u1"])
def test_the_limits_of_every_size_survive_every_byte_order(tmp_path, syntax, dtype):
    info = np.iinfo(dtype)
    plane = np.array([[info.min, 1, info.max], [0, info.max - 1, info.min + 1]], dtype)
    value = None
    if dtype[1] == "1" and syntax == ExplicitVRBigEndian:
        value = plane.ravel().view("<u2").byteswap().tobytes()
    write_slice(tmp_path / "a.dcm", plane, syntax, value=value)
    np.testing.assert_array_equal(pydicom.dcmread(tmp_path / "a.dcm").pixel_array, plane)
    np.testing.assert_array_equal(read_one(tmp_path)[0], plane)


@pytest.mark.parametrize("dtype, bits", [("u4", 20), ("i4", 20), ("u4", 32), ("u2", 10), ("i2", 10), ("u1", 6)])
def test_fewer_bits_than_allocated_are_exact(tmp_path, dtype, bits):
    low = -(1 << (bits - 1)) if dtype[0] == "i" else 0
    plane = np.array([[low, low + (1 << bits) - 1, 0, 1]], dtype)
    write_slice(tmp_path / "a.dcm", plane, BitsStored=bits)
    out, found = read_one(tmp_path)
    np.testing.assert_array_equal(out, plane)
    assert not found.masked


def test_overlays_in_the_high_bits_never_reach_a_value():
    """Every overlay bit above 12 stored ones, in every combination, over every value (PS3.3 C.9.2, retired)."""
    values = np.arange(4096, dtype="u2")
    for above in range(16):
        plane = (values | above << 12).reshape(64, 64)
        layout = Layout(64, 64, 16, 12, 11, False, LITTLE)
        low, high, masked = _settle_bits(plane, layout, None, from_codestream=False)
        assert (low, high, masked) == (0, 4095, above > 0)
        np.testing.assert_array_equal(plane.ravel(), values)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
@pytest.mark.parametrize("syntax", UNCOMPRESSED.values(), ids=UNCOMPRESSED)
def test_colour_is_red_green_and_blue_however_its_samples_lie(tmp_path, planar, photometric, syntax):
    samples = np.random.default_rng(4).integers(0, 256, (6, 8, 3)).astype("u1")
    write_colour(tmp_path / "a.dcm", samples, planar, photometric, syntax)
    whole = pydicom.dcmread(tmp_path / "a.dcm")
    judged = pixel_array(whole, raw=True)
    np.testing.assert_array_equal(judged, samples)
    judged = judged if photometric == "RGB" else convert_color_space(judged, photometric, "RGB")
    assert np.abs(read_one(tmp_path)[0].astype(int) - judged).max() <= (photometric != "RGB")


def write_colour(path, samples, planar, photometric, syntax):
    value = (samples.transpose(2, 0, 1) if planar else samples).tobytes()
    if syntax == ExplicitVRBigEndian:
        value = np.frombuffer(value, "<u2").byteswap().tobytes()
    more = {"SamplesPerPixel": 3, "PlanarConfiguration": planar, "PhotometricInterpretation": photometric}
    write_slice(path, samples[..., 0], syntax, value=value, **more)


@pytest.mark.parametrize(
    "more",
    [
        pytest.param({"SamplesPerPixel": 2}, id="two samples"),
        pytest.param({"SamplesPerPixel": 4, "PhotometricInterpretation": "CMYK"}, id="four"),
        pytest.param({"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15}, id="16 bits a sample"),
        pytest.param({"PixelRepresentation": 1}, id="signed"),
        pytest.param({"PhotometricInterpretation": "YBR_FULL_422"}, id="subsampled, but not compressed"),
        pytest.param({"PhotometricInterpretation": "YBR_PARTIAL_420"}, id="partial range"),
        pytest.param({"PhotometricInterpretation": "MONOCHROME2"}, id="gray"),
        pytest.param({"PhotometricInterpretation": None}, id="absent"),
    ],
)
def test_colour_that_is_not_known_is_refused(more):
    usual = {
        "SamplesPerPixel": 3,
        "PhotometricInterpretation": "RGB",
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
    }
    one = replace(instance(**{**usual, **more}), pixel_length=10_000, size=20_000)
    with pytest.raises(DataError, match="unsupported-colour"):
        layouts([one])


def test_gray_and_colour_do_not_meet_in_one_volume():
    gray = Layout(4, 6, 8, 8, 7, False, LITTLE)
    with pytest.raises(DataError, match="mixed-kinds"):
        container([gray, replace(gray, samples=3, photometric="RGB")])
