"""Elements within sequences and private ones, found in a header's bytes."""

from __future__ import annotations

import struct

import pytest
from pydicom import dcmread
from pydicom.sequence import Sequence

from mdcli.dicom.headers import read_instance
from mdcli.dicom.instance import Instance
from mdcli.dicom.nested import Header, open_header
from mdcli.dicom.opening import SourceFiles
from mdcli.errors import DataError
from tests.made_series import UNCOMPRESSED
from tests.multiframe_series import SHARED, dataset, enhanced, planes, save, undefined

GROUPS, POSITION_MACRO, POSITION = 0x52009230, 0x00209113, 0x00200032


def opened(path) -> Header:
    found = read_instance(path, path.name)
    assert isinstance(found, Instance)
    with SourceFiles(path.parent) as files:
        return open_header(files, found)


@pytest.mark.parametrize("lengths", [False, True], ids=["defined", "undefined"])
@pytest.mark.parametrize("syntax", UNCOMPRESSED.values(), ids=UNCOMPRESSED.keys())
def test_values_within_sequences_are_those_that_pydicom_reads(tmp_path, syntax, lengths):
    ds = enhanced(planes(3), shared=SHARED)
    path = save(undefined(ds) if lengths else ds, tmp_path / "one.dcm", syntax)
    header = opened(path)
    groups = header.elements(header.top, {GROUPS})[GROUPS]
    found = []
    for item in header.items(groups, 3):
        macro = header.elements(item, {POSITION_MACRO})[POSITION_MACRO]
        (inner,) = header.items(macro, 1)
        found.append(header.value(header.elements(inner, {POSITION})[POSITION], "DS", single=False))
    said = [g.PlanePositionSequence[0].ImagePositionPatient for g in dcmread(path).PerFrameFunctionalGroupsSequence]
    assert found == [list(map(float, value)) for value in said]


def test_a_sequence_of_unknown_representation_holds_implicit_elements(tmp_path):
    path = save(enhanced(planes(1), shared=SHARED), tmp_path / "one.dcm")
    # Source: DICOM PS3.5 section 6.2.2: UN of undefined length is a sequence in implicit VR little endian.
    value = b"1\\2\\3 "
    inner = struct.pack("<HHI", 0x0020, 0x0032, len(value)) + value
    item = struct.pack("<HHI", 0xFFFE, 0xE000, len(inner)) + inner
    end = struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    element = struct.pack("<HH2sHI", 0x0009, 0x1001, b"UN", 0, 0xFFFFFFFF) + item + end
    data = path.read_bytes()
    at = data.index(struct.pack("<HH", 0x0010, 0x0010) + b"PN")
    path.write_bytes(data[:at] + element + data[at:])
    header = opened(path)
    (block,) = header.items(header.elements(header.top, {0x00091001})[0x00091001], 1)
    assert header.value(header.elements(block, {POSITION})[POSITION], "DS", single=False) == [1.0, 2.0, 3.0]


def test_private_elements_are_found_by_the_name_of_their_creator(tmp_path):
    ds = enhanced(planes(1), shared=SHARED)
    ds.private_block(0x0029, "FIRST", create=True).add_new(0x10, "LO", "wrong")
    ds.private_block(0x0029, "SECOND", create=True).add_new(0x10, "LO", "right")
    header = opened(save(ds, tmp_path / "one.dcm"))
    found = header.private(0x0029, "SECOND", (0x10, 0x11))
    assert {number: header.value(e, "LO", single=True) for number, e in found.items()} == {0x10: "right"}
    assert header.private(0x0029, "THIRD", (0x10,)) == {}


def test_more_items_than_expected_are_refused(tmp_path):
    header = opened(save(enhanced(planes(3), shared=SHARED), tmp_path / "one.dcm"))
    with pytest.raises(DataError) as error:
        header.items(header.elements(header.top, {GROUPS})[GROUPS], 2)
    assert error.value.code == "damaged-header" and "more than 2 items" in error.value.message


def test_a_long_value_is_refused_before_it_is_decoded(tmp_path):
    ds = enhanced(planes(1), shared=SHARED)
    ds.private_block(0x0029, "MAKER", create=True).add_new(0x10, "UT", "x" * 70_000)
    header = opened(save(ds, tmp_path / "one.dcm"))
    (element,) = header.private(0x0029, "MAKER", (0x10,)).values()
    with pytest.raises(DataError) as error:
        header.value(element, "UT", single=True)
    assert error.value.code == "damaged-header"


def test_what_lies_behind_the_pixels_is_no_part_of_the_header(tmp_path):
    ds = enhanced(planes(1), shared=SHARED)
    ds.PerFrameFunctionalGroupsSequence = Sequence([dataset()])
    ds.DataSetTrailingPadding = b"\0" * 20
    header = opened(save(ds, tmp_path / "one.dcm"))
    assert header.elements(header.top, {0x7FE00010, 0xFFFCFFFC}) == {}
