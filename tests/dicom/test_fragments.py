"""Which fragments make a frame: the cases of DICOM PS3.5 A.4, and files that contradict themselves."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.encaps import encapsulate, encapsulate_extended, generate_frames

from mdcli.dicom.fragments import locate_frames
from mdcli.errors import DataError

DELIMITER = b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
BEFORE = b"header of the file"


def item(content):
    return b"\xfe\xff\x00\xe0" + struct.pack("<I", len(content)) + content


def jpeg(*content):
    """Return something that begins and ends like a JPEG image."""
    return b"\xff\xd8\xff" + b"".join(content) + b"\xff\xd9"


class File:
    def __init__(self, value):
        self.data, self.reads, self.largest = BEFORE + value, 0, 0

    def read(self, offset, length):
        self.reads, self.largest = self.reads + 1, max(self.largest, length)
        return self.data[offset : offset + length]

    def frames(self, count, form="jpeg", extended=None):
        found = locate_frames(self.read, len(BEFORE), len(self.data), count, form, extended)
        return [[self.data[at : at + length] for at, length in frame] for frame in found]


def frames(value, count, form="jpeg", extended=None):
    return File(value + DELIMITER).frames(count, form, extended)


def refused(value, count, form="jpeg", extended=None):
    with pytest.raises(DataError) as caught:
        File(value).frames(count, form, extended)
    return caught.value.code


def table(*offsets):
    return item(struct.pack(f"<{len(offsets)}I", *offsets))


EMPTY = item(b"")
A, B, C, D = (jpeg(bytes([n]) * 9) for n in range(4))


def halves(frame):
    return frame[:6], frame[6:]


def test_the_standards_own_examples():
    # PS3.5 tables A.4-1 (one fragment a frame and no table: here three), A.4-2 (two frames in three fragments, with a table).
    first, second, third = (bytes([n]) * length for n, length in ((1, 0x4C6), (2, 0x24A), (3, 0x628)))
    parts = item(first) + item(second) + item(third)
    assert frames(EMPTY + parts, 3) == [[first], [second], [third]]
    assert frames(table(0, 0x646 + 0x98) + item(bytes(0x2C8)) + item(bytes(0x406)) + item(third), 2) == [
        [bytes(0x2C8), bytes(0x406)],
        [third],
    ]


@pytest.mark.parametrize("fragments", [1, 2, 3])
@pytest.mark.parametrize("has_table", [True, False])
def test_what_pydicom_encapsulates_is_found_again(fragments, has_table):
    whole = [A, B + b"\x00" * 2, C, D]
    value = encapsulate(whole, fragments_per_frame=fragments, has_bot=has_table)
    assert [b"".join(f).rstrip(b"\x00") for f in frames(value, 4)] == [A, B, C, D]


@given(
    st.lists(
        st.lists(st.binary(min_size=1, max_size=9).map(lambda b: b + b"\x00" * (len(b) % 2)), min_size=1), min_size=1
    )
)
def test_any_fragments_with_a_table_agree_with_pydicom(parts):
    offsets, at = [], 0
    for frame in parts:
        offsets.append(at)
        at += sum(8 + len(part) for part in frame)
    value = table(*offsets) + b"".join(item(part) for frame in parts for part in frame)
    assert frames(value, len(parts)) == parts
    assert [b"".join(f) for f in parts] == list(generate_frames(value, number_of_frames=len(parts)))


def test_one_frame_takes_all_fragments():
    one, two = halves(A)
    assert frames(EMPTY + item(one) + item(two), 1) == [[one, two]]
    assert frames(table(0) + item(one) + item(two), 1) == [[one, two]]
    assert frames(EMPTY + item(b"no") + item(b"codestream"), 1) == [[b"no", b"codestream"]]


def test_a_header_of_one_frame_over_two_codestreams_is_refused():
    assert refused(EMPTY + item(A) + item(B) + DELIMITER, 1) == "bad-offsets"


def test_codestreams_tell_without_a_table():
    (a, b), (c, d) = halves(A), halves(C)
    assert frames(EMPTY + b"".join(map(item, (a, b, B, c, d))), 3) == [[a, b], [B], [c, d]]


def test_a_fragment_that_begins_like_a_codestream_by_chance_belongs_to_its_frame():
    first, second = b"\xff\xd8\xff" + bytes(9), b"\xff\xd8\xff" + bytes(7) + b"\xff\xd9"
    assert frames(EMPTY + item(first) + item(second) + item(A), 2) == [[first, second], [A]]


@pytest.mark.parametrize("padding", [b"", b"\x00", b"\xff", b"\x00" * 12])
def test_padding_after_a_codestream_is_no_part_of_it(padding):
    chance = b"\xff\xd8\xff" + bytes(9)
    value = EMPTY + item(chance) + item(chance + b"\xff\xd9" + padding) + item(A)
    assert [len(f) for f in frames(value, 2)] == [2, 1]


def test_jpeg_2000_begins_with_soc_and_siz_or_with_a_jp2_box():
    plain = b"\xff\x4f\xff\x51" + bytes(8)
    boxed = b"\x00\x00\x00\x0cjP  \r\n\x87\n" + plain
    value = EMPTY + item(plain) + item(b"more\xff\xd9") + item(boxed) + item(b"rest\xff\xd9")
    assert [len(f) for f in frames(value, 2, "jpeg-2000")] == [2, 2]


def test_content_that_looks_like_an_item_or_a_delimiter_is_content():
    odd = jpeg(item(b"12"), DELIMITER, b"\xfe\xff\x00\xe0")
    assert frames(EMPTY + item(odd) + item(A), 2) == [[odd], [A]]


def test_items_of_odd_length_are_read_as_they_say():
    # Against PS3.5 A.4, and seen.
    assert frames(EMPTY + item(b"abc") + item(b"d"), 2) == [[b"abc"], [b"d"]]


def test_rle_has_one_fragment_a_frame():
    assert frames(EMPTY + item(b"ab") + item(b"cd"), 2, "rle") == [[b"ab"], [b"cd"]]
    assert refused(EMPTY + item(b"ab") + item(b"cd") + DELIMITER, 1, "rle") == "bad-offsets"


@pytest.mark.parametrize(
    "offsets", [(0, 0), (0,), (0, 4_000_000_000), (0, 1)], ids=["zeros", "too few", "points outside", "off by one"]
)
def test_a_table_that_is_off_is_not_needed_where_each_fragment_is_a_frame(offsets):
    assert frames(table(*offsets) + item(A) + item(B), 2) == [[A], [B]]


def test_a_table_with_the_frames_in_another_order_is_refused():
    assert refused(table(8 + len(A), 0) + item(A) + item(B) + DELIMITER, 2) == "bad-offsets"


@pytest.mark.parametrize(
    "offsets",
    [
        pytest.param((0,), id="too few"),
        pytest.param((0, 14, 28), id="too many"),
        pytest.param((0, 4_000_000_000), id="outside"),
        pytest.param((0, 15), id="between two items"),
        pytest.param((0, 0), id="does not rise"),
        pytest.param((14, 28), id="leaves out the first fragment"),
        pytest.param((28, 0), id="falls"),
    ],
)
def test_a_table_that_contradicts_the_items_is_refused_where_it_is_needed(offsets):
    a, b = halves(A)
    assert len(a) == 6
    assert refused(table(*offsets) + item(a) + item(b) + item(B) + DELIMITER, 2) == "bad-offsets"


def test_a_frame_without_a_fragment_is_refused():
    assert refused(EMPTY + item(A) + DELIMITER, 2) == "bad-offsets"
    assert refused(EMPTY + DELIMITER, 1) == "bad-offsets"


def test_fragments_that_nothing_settles_are_refused():
    assert refused(EMPTY + item(b"ab") * 5 + DELIMITER, 2) == "bad-offsets"
    assert refused(EMPTY + item(b"ab") * 5 + DELIMITER, 2, "jpeg-2000") == "bad-offsets"


def test_an_extended_offset_table_is_one_fragment_a_frame():
    whole = [A, B + b"\x01", C]
    value, offsets, lengths = encapsulate_extended(whole)
    extended = (struct.unpack("<3Q", offsets), struct.unpack("<3Q", lengths))
    assert frames(value, 3, extended=extended) == [[A], [B + b"\x01\x00"], [C]]
    (a, b, c) = extended[0]
    for bad in (
        ((a, b), extended[1]),
        ((a, c, b), extended[1]),
        ((a, b, 1 << 63), extended[1]),
        ((a, b, c), (1, 2, 3)),
    ):
        assert refused(value + DELIMITER, 3, extended=bad) == "bad-offsets"


def test_a_padded_frame_may_have_its_own_length_in_the_extended_table():
    assert frames(EMPTY + item(b"abc\x00"), 1, extended=([0], [3])) == [[b"abc\x00"]]


@pytest.mark.parametrize(
    "value, code",
    [
        pytest.param(EMPTY + item(A), "truncated-pixels", id="no delimiter"),
        pytest.param(b"", "truncated-pixels", id="nothing"),
        pytest.param(EMPTY + item(A)[:9], "truncated-pixels", id="ends within a fragment"),
        pytest.param(EMPTY + b"\xfe\xff\x00\xe0\xff\xff\xff\xff", "truncated-pixels", id="undefined length"),
        pytest.param(b"\xfe\xff\x00\xe0\xff\xff\xff\x7f", "truncated-pixels", id="a table of 2 GiB"),
        pytest.param(bytes(64), "bad-encapsulation", id="no item"),
        pytest.param(EMPTY + bytes(64), "bad-encapsulation", id="no item behind the table"),
    ],
)
def test_broken_items_are_refused(value, code):
    assert refused(value, 1) == code


def test_a_file_that_became_shorter_is_refused():
    with pytest.raises(DataError) as caught:
        locate_frames(lambda _offset, _length: b"", 0, 1000, 1, "jpeg")
    assert caught.value.code == "truncated-pixels"


@pytest.mark.parametrize("claimed", [1, 1 << 31])
def test_items_without_content_are_not_counted_for_ever(claimed):
    assert refused(EMPTY * 200_000 + DELIMITER, claimed) == "bad-encapsulation"


def test_only_headers_are_read_once_each():
    file = File(EMPTY + item(b"\xff\xd8\xff" + bytes(997)) * 10_000 + DELIMITER)
    assert len(file.frames(10_000)) == 10_000
    assert file.reads == 10_002
    assert file.largest <= 16
