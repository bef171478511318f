"""Names without codes get private ones that fit into DICOM and tell structures apart."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mdcli.dicom.codes import checked_code
from mdcli.inference.naming import one_line, private_label, slug


@settings(deadline=None)
@given(st.text(max_size=200), st.integers(1, 65535))
def test_any_name_gives_a_label_that_a_writer_takes(name, value):
    label = private_label(value, name)
    for code in (label.category, label.type):
        written, findings = checked_code(
            {"value": code.value, "scheme": code.scheme, "meaning": code.meaning}, label.name
        )
        # VR SH and LO (DICOM PS3.5 6.2).
        assert 0 < len(code.value) <= 16 and 0 < len(code.meaning) <= 64
        assert written.scheme_designator == "99MDCLI" and not findings


def test_names_that_begin_alike_are_told_apart():
    found = {private_label(n, f"Left upper lobe segment {n}").type.value for n in range(1, 200)}
    assert len(found) == 199


@pytest.mark.parametrize(
    "text, word", [("T1 (contrast)", "t1_contrast"), ("Épaule", "epaule"), ("FLAIR", "flair"), ("--", ""), ("肝", "")]
)
def test_text_becomes_one_word(text, word):
    assert slug(text) == word


def test_a_text_becomes_one_line():
    assert one_line("two\nlines\\and  \x00spaces", 40) == "two lines and spaces"
