"""Codes against their dictionaries: truth 29."""

from __future__ import annotations

import pytest

from mdcli.dicom.codes import PRIVATE_SCHEME, checked_code
from mdcli.errors import DataError


def code(value, scheme, meaning, **more):
    return {"value": value, "scheme": scheme, "meaning": meaning, **more}


# Source: DICOM PS3.16 CID 7150, CID 4031, annex D.
@pytest.mark.parametrize(
    ("value", "scheme", "meaning"),
    [("10200004", "SCT", "Liver"), ("91723000", "SCT", "Anatomical Structure"), ("121401", "DCM", "Derivation")],
)
def test_a_code_with_its_own_meaning_passes_silently(value, scheme, meaning):
    checked, findings = checked_code(code(value, scheme, meaning), "x")
    assert (checked.value, checked.scheme_designator, checked.meaning) == (value, scheme, meaning)
    assert findings == []


def test_a_code_with_the_meaning_of_another_is_refused():
    with pytest.raises(DataError) as error:
        checked_code(code("10200004", "SCT", "Spleen"), "x")
    assert error.value.code == "wrong-code-meaning" and "liver" in error.value.message


def test_a_code_in_no_dictionary_is_said_to_be_unverified_unless_a_release_is_cited():
    assert [f.code for f in checked_code(code("999999999", "SCT", "Something"), "x")[1]] == ["unverified-code"]
    checked, findings = checked_code(code("999999999", "SCT", "Something", version="2026-03-01"), "x")
    assert findings == [] and checked.scheme_version == "2026-03-01"


def test_a_private_code_passes():
    assert checked_code(code("HU-AIR", "99MDCLI", "Below -900 HU"), "air")[1] == []


def test_a_name_without_a_code_gets_a_private_one_and_a_warning():
    checked, findings = checked_code(None, "Left thing")
    assert (checked.value, checked.scheme_designator, checked.meaning) == ("LEFT_THING", PRIVATE_SCHEME, "Left thing")
    assert [(f.code, f.warning) for f in findings] == [("private-code", True)]


@pytest.mark.parametrize("part", ["value", "scheme", "meaning"])
def test_a_code_with_a_part_missing_is_refused(part):
    with pytest.raises(DataError) as error:
        checked_code({**code("1", "99X", "x"), part: ""}, "liver")
    assert error.value.code == "bad-code"


def test_a_meaning_of_65_characters_is_refused():
    with pytest.raises(DataError) as error:
        checked_code(code("1", "99X", "m" * 65), "x")
    assert error.value.code == "code-meaning-too-long"
