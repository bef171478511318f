"""UIDs from the finished content: truth 24."""

from __future__ import annotations

import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdcli.dicom.uids import derived_uid, settle_uids, stand_in, uid_from_digest


@given(st.binary(min_size=32, max_size=32))
def test_a_uid_is_a_uuid_of_version_8_as_a_number_and_always_44_characters(digest):
    uid = uid_from_digest(digest)
    assert re.fullmatch(r"2\.25\.[1-9][0-9]*", uid) and len(uid) == 44 <= 64
    number = uuid.UUID(int=int(uid.removeprefix("2.25.")))
    assert number.version == 8 and number.variant == uuid.RFC_4122


@given(st.binary(min_size=32, max_size=32), st.integers(0, 120))
def test_every_bit_that_a_uuid_leaves_free_comes_from_the_digest(digest, place):
    free = [n for n in range(128) if n not in (127, 79, 78, 77, 76, 63, 62)]
    bit = free[place]
    other = bytearray(digest)
    other[15 - bit // 8] ^= 1 << bit % 8
    assert uid_from_digest(digest) != uid_from_digest(bytes(other))


def test_a_derived_uid_depends_on_its_purpose_and_on_every_part():
    uids = [
        derived_uid("a", "b"),
        derived_uid("a", "c"),
        derived_uid("b", "b"),
        derived_uid("a", "b", ""),
        derived_uid("ab"),
    ]
    assert len(set(uids)) == 5
    assert derived_uid("a", "b") == uids[0]


@given(st.binary(max_size=50), st.binary(max_size=50))
def test_stand_ins_are_replaced_everywhere_and_nothing_else_moves(before, after):
    one, two = stand_in("one").encode(), stand_in("two").encode()
    head, made = settle_uids(before + one + b"|" + two + b"|" + one + after, b"tail", ["one", "two"])
    assert head == before + f"{made['one']}|{made['two']}|{made['one']}".encode() + after
    assert made["one"] != made["two"]


def test_the_tail_is_hashed_and_never_changed():
    head = stand_in("one").encode()
    uids = {settle_uids(head, tail, ["one"])[1]["one"] for tail in (b"", b"x", head)}
    assert len(uids) == 3


@pytest.mark.parametrize("change", [(b"a", b""), (b"", b"a")], ids=["in the head", "in the tail"])
def test_one_byte_more_gives_another_uid(change):
    head = stand_in("one").encode()
    assert settle_uids(head, b"", ["one"])[1] != settle_uids(head + change[0], change[1], ["one"])[1]
