"""Text on its way into an object: truth 28."""

from __future__ import annotations

import io

import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from mdcli.dicom.text import character_set, check_declared, check_text
from mdcli.errors import DataError

# Source: DICOM PS3.5 annexes H, I, J and K, and PS3.3 C.12.1.1.2.
FITS = [
    ("ISO_IR 100", "Äneas^Rüdiger"),
    ("ISO_IR 144", "Люкceмбypг"),
    ("ISO_IR 126", "Διονυσιος"),
    ("ISO_IR 192", "王^小東 Müller Люк"),
    ("GB18030", "Wang^XiaoDong=王^小东"),
    (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    (["ISO 2022 IR 6", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"),
]


def holding(name: str, label: str = "liver") -> Dataset:
    ds = Dataset()
    ds.PatientName = name
    item = Dataset()
    item.SegmentLabel = label
    ds.SegmentSequence = [item]
    return ds


@pytest.mark.parametrize(("terms", "name"), FITS)
def test_the_sources_character_set_is_kept_where_all_text_fits(terms, name):
    assert character_set(holding(name), terms) == terms


@pytest.mark.parametrize(("terms", "name"), FITS)
def test_what_is_written_in_the_chosen_set_reads_back_as_it_was(terms, name):
    ds = holding(name, "Ж with ü and 語")
    chosen = character_set(ds, terms)
    ds.SpecificCharacterSet = chosen
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = io.BytesIO()
    pydicom.dcmwrite(file, ds)
    file.seek(0)
    back = pydicom.dcmread(file, force=True)
    assert str(back.PatientName) == name
    assert back.SegmentSequence[0].SegmentLabel == "Ж with ü and 語"


def test_text_in_an_item_that_does_not_fit_takes_the_whole_object_to_utf_8():
    assert character_set(holding("Rüdiger", "печень"), "ISO_IR 100") == "ISO_IR 192"


def test_plain_text_needs_no_character_set_and_our_own_letters_need_utf_8():
    assert character_set(holding("Doe^Jane"), None) is None
    assert character_set(holding("Doe^Jane", "Läsion"), None) == "ISO_IR 192"


def test_an_unknown_character_set_becomes_utf_8():
    assert character_set(holding("Doe^Jane"), "ISO_IR 9999") == "ISO_IR 192"


def test_a_replacement_character_is_an_error_that_does_not_show_the_text():
    with pytest.raises(DataError) as error:
        character_set(holding("M\ufffdller^Canary"), "ISO_IR 192")
    assert error.value.code == "replacement-character"
    assert "Canary" not in str(error.value)


def test_letters_beyond_ascii_without_a_character_set_are_refused():
    with pytest.raises(DataError) as error:
        check_declared(holding("Müller^Canary"), None)
    assert error.value.code == "undeclared-characters"
    assert "Canary" not in str(error.value)


@pytest.mark.parametrize(
    ("keyword", "longest", "code"),
    [
        ("SegmentLabel", 64, "segment-label-too-long"),
        ("SeriesDescription", 64, "series-description-too-long"),
        ("CodeMeaning", 64, "code-meaning-too-long"),
        ("CodeValue", 16, "code-value-too-long"),
        ("ContributionDescription", 1024, "contribution-description-too-long"),
    ],
)
def test_the_length_that_a_value_may_have_is_that_of_ps3_5_table_6_2_1(keyword, longest, code):
    assert check_text(keyword, "ü" * longest)
    with pytest.raises(DataError) as error:
        check_text(keyword, "ü" * (longest + 1))
    assert error.value.code == code and error.value.numbers["length"] == longest + 1


@pytest.mark.parametrize("text", ["two\\values", "line\nfeed", "escape\x1b[31m"])
def test_a_label_holds_no_backslash_and_no_control_character(text):
    with pytest.raises(DataError) as error:
        check_text("SegmentLabel", text)
    assert error.value.code == "bad-text"
    assert "\x1b" not in str(error.value) and "\n" not in str(error.value)


def test_a_long_text_may_have_lines():
    assert check_text("ImageComments", "one\r\ntwo \\ three")
