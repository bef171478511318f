"""The selection grammar: what parses, what holds, what is refused before any file is opened."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdcli.dicom.rules import UNKNOWN, parse
from mdcli.errors import UsageError

CT = {
    "Modality": "CT",
    "SliceThickness": 2.5,
    "SeriesNumber": 4,
    "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
    "SeriesDescription": "Abdomen 3mm it's",
    "PixelSpacing": [0.7, 0.8],
    "StudyDate": "20260131",
    "ConvolutionKernel": "B30f",
    "ProtocolName": None,
    "SliceCount": 120,
    "IsVolume": True,
    "IsRegular": False,
    "Orientation": "axial",
    "Unit": "HU",
    "Spacing": 3.0,
}


@pytest.mark.parametrize(
    "expression, holds",
    [
        ("Modality = CT", True),
        ("Modality = ct", True),
        ("Modality == 'CT'", True),
        ("Modality != CT", False),
        ("Modality in (MR, CT)", True),
        ("Modality in (MR, PT)", False),
        ("SliceThickness <= 3", True),
        ("SliceThickness < 2.5", False),
        ("SliceThickness >= 2.5", True),
        ("SliceThickness > 2.5", False),
        ("SliceThickness = 2.50", True),
        ("SeriesNumber in (3, 4.0)", True),
        ("ImageType contains primary", True),
        ("ImageType contains PRIM", False),
        ("ImageType contains SECONDARY", False),
        (r"ImageType = ORIGINAL\PRIMARY\AXIAL", True),
        ("ImageType = ORIGINAL", False),
        ("SeriesDescription contains ABD", True),
        ('SeriesDescription contains "it\'s"', True),
        ("SeriesDescription contains 'it''s'", True),
        ("SeriesDescription ~ '^abd.*mm'", True),
        ("SeriesDescription matches '^mm'", False),
        ("ImageType ~ '^PRI'", True),
        ("PixelSpacing < 1", True),
        ("PixelSpacing < 0.75", False),
        ("PixelSpacing = 0.7", False),
        ("PixelSpacing contains 0.8", True),
        ("StudyDate >= 20260101", True),
        ("StudyDate < 20260101", False),
        ("ConvolutionKernel contains B30", False),
        ("ConvolutionKernel contains b30F", True),
        ("SliceCount >= 100", True),
        ("ProtocolName = x", False),
        ("ProtocolName != x", True),
        ("EchoTime > 0", False),
        ("EchoTime <= 0", False),
        ("not EchoTime > 0", True),
        ("Modality > 3", False),
        ("SliceThickness ~ '^2[.]5$'", True),
        ("SeriesNumber ~ '^[34]$'", True),
        ("SeriesNumber ~ '^5'", False),
        ("Modality not in (MR, PT)", True),
        ("Modality not in (MR, CT)", False),
        ("EchoTime not in (3)", True),
        (r"PixelSpacing = 0.7\0.8", True),
        (r"PixelSpacing = 0.8\0.7", False),
        ("EchoTime is absent", True),
        ("ProtocolName is absent", True),
        ("Modality is present", True),
        ("Modality is absent", False),
        ("IsVolume", True),
        ("not IsVolume", False),
        ("IsVolume and Modality = CT", True),
        ("(IsVolume)", True),
        ("IsVolume = TRUE", True),
        ("IsVolume != true", False),
        ("IsRegular = true", False),
        ("IsRegular = false", True),
        ("Orientation in (axial, oblique)", True),
        ("Orientation = Axial", True),
        ("Unit = hu", True),
        ("Spacing < 3", False),
        ("Spacing <= 3", True),
        ("Modality in (CT, MR) and SliceThickness <= 3 and not ImageType contains LOCALIZER", True),
        ("Modality = MR or Modality = CT and SliceThickness > 5", False),
        ("(Modality = MR or Modality = CT) and not (SliceThickness > 5)", True),
        ("not not Modality = CT", True),
        ("NOT Modality = MR AND SeriesNumber=4", True),
        ("Modality = 'and' or Modality=CT", True),
    ],
)
def test_an_expression_holds_or_not(expression, holds):
    assert parse(expression).holds(CT) is holds


@pytest.mark.parametrize(
    "expression, code, near",
    [
        ("", "bad-expression", "a DICOM keyword"),
        ("Modality", "bad-expression", "a comparison"),
        ("Modality =", "bad-expression", "a value"),
        ("Modality = CT MR", "bad-expression", "'MR'"),
        ("Modality = CT and", "bad-expression", "a DICOM keyword"),
        ("(Modality = CT", "bad-expression", "')'"),
        ("Modality = CT)", "bad-expression", "')'"),
        ("Modality in CT", "bad-expression", "'('"),
        ("Modality in ()", "bad-expression", "a value"),
        ("Modality = 'CT", "bad-expression", "'CT"),
        ("'Modality' = CT", "bad-expression", "a DICOM keyword"),
        ("SliceThickness < thin", "bad-expression", "'thin'"),
        ("SliceThickness contains 3", "bad-expression", "number"),
        ("SliceThickness = thin", "bad-expression", "'thin'"),
        ("SliceThickness in (3, thin)", "bad-expression", "'thin'"),
        (r"PixelSpacing = 0.7\x", "bad-expression", "number"),
        (r"SliceThickness = 3\3", "bad-expression", "number"),
        ("SliceCount = many", "bad-expression", "'many'"),
        ("SliceCount ~ 3", "bad-expression", "number"),
        ("IsVolume = 3", "bad-expression", "true or false, not '3'"),
        ("IsVolume > 3", "bad-expression", "true or false"),
        ("IsVolume contains t", "bad-expression", "true or false"),
        ("IsVolume in true", "bad-expression", "'('"),
        ("Orientation = axil", "bad-expression", "axial"),
        ("Orientation < 3", "bad-expression", "axial or coronal"),
        ("Orientation", "bad-expression", "a comparison"),
        ("Modality is there", "bad-expression", "'present' or 'absent'"),
        ("Modality not CT", "bad-expression", "'in'"),
        ("MeanHu > 3", "unknown-keyword", "MeanHU"),
        ("PatientSex = M", "patient-keyword", "PatientSex"),
        ("ModalityLUTSequence = 1", "bad-expression", "SQ"),
        ("PixelData = 1", "bad-expression", "PixelData"),
        ("(" * 1000 + "Modality = CT" + ")" * 1000, "bad-expression", "nested deeper"),
        ("not " * 500 + "Modality = CT", "bad-expression", "nested deeper"),
        ("Modality = " + "x" * 5000, "bad-expression", "characters"),
        ("SlicThickness < 3", "unknown-keyword", "SliceThickness"),
        ("modality = CT", "unknown-keyword", "Modality"),
        ("slicecount > 3", "unknown-keyword", "SliceCount"),
        ("__import__ = 3", "unknown-keyword", "__import__"),
        ("PatientName = x", "patient-keyword", "PatientName"),
        ("PatientID = x", "patient-keyword", "PatientID"),
        ("PatientBirthDate > 19000101", "patient-keyword", "PatientBirthDate"),
        ("OperatorsName = x", "patient-keyword", "OperatorsName"),
        ("Modality ~ '('", "bad-pattern", "'('"),
        (r"Modality ~ '(a+)+$'", "bad-pattern", "repeat"),
        (r"Modality ~ '(a|aa)+$'", "bad-pattern", "choice"),
        (r"Modality ~ '(?:a?){50}$'", "bad-pattern", "repeat"),
        (r"Modality ~ '(a)\1'", "bad-pattern", "reference"),
        (r"Modality ~ '.*.*.*.*x'", "bad-pattern", "repeats"),
        ("Modality ~ '" + "a?" * 40 + "'", "bad-pattern", "choices"),
        ("Modality ~ '" + "(a|aa)" * 30 + "'", "bad-pattern", "choices"),
        ("Modality ~ '" + "a" * 300 + "'", "bad-pattern", "characters"),
    ],
)
def test_what_is_no_expression_is_refused_with_its_place(expression, code, near):
    with pytest.raises(UsageError) as caught:
        parse(expression)
    assert caught.value.code == code
    assert near in caught.value.message + str(caught.value.hint)


@pytest.mark.parametrize(
    "expression, character",
    [
        ("Modality = CT MR", 15),
        ("Modality", 9),
        ("Modality = CT and  ", 18),
        ("Modality = CT and SlicThickness < 3", 19),
        ("Modality = CT or  SliceThickness < thin", 19),
        ("Modality = CT and SeriesDescription ~ '('", 19),
        ("Modality = 'CT", 12),
        ("PatientName = x", 1),
    ],
)
def test_an_error_names_the_character(expression, character):
    with pytest.raises(UsageError) as caught:
        parse(expression)
    assert caught.value.numbers["character"] == character
    assert f"at character {character}" in caught.value.message


@pytest.mark.parametrize(
    "expression, held",
    [
        ("MeanHU > 0", None),
        ("not MeanHU > 0", None),
        ("MeanHU > 0 and Modality = MR", False),
        ("MeanHU > 0 and Modality = CT", None),
        ("Modality = CT or MeanHU > 0", True),
        ("Modality = MR or MeanHU > 0", None),
        ("MeanHU is present", None),
        ("not (MeanHU > 0 or Modality = CT)", False),
    ],
)
def test_what_is_not_known_decides_nothing_and_stays_open_only_where_the_rest_does_not_decide(expression, held):
    assert parse(expression).decide({**CT, "MeanHU": UNKNOWN}) is held
    assert parse(expression).asks_pixels


def test_what_stands_behind_a_part_that_decides_is_not_asked_for():
    class Dear(dict):
        def get(self, keyword):
            assert keyword != "Spacing", "computed although the modality decides"
            return super().get(keyword)

    assert parse("Modality = MR and Spacing < 3").decide(Dear(CT)) is False
    assert parse("Modality = CT or Spacing < 3").decide(Dear(CT)) is True


@pytest.mark.parametrize(
    "pattern", ["^spleen", "T[12] (ax|cor)", r"\d{2,3} ?mm", "(?:abd|pel).*", "(?<!non )contrast", "a(?=b)", "(?i)x"]
)
def test_everyday_patterns_are_taken(pattern):
    assert parse(f"SeriesDescription ~ '{pattern}'").holds({"SeriesDescription": "zzz"}) in (True, False)


def test_a_keyword_beyond_those_kept_says_how_to_read_it():
    rule = parse("ScanVelocity > 1 and Modality = CT")
    assert rule.extra == {"ScanVelocity": (0x00181300, "DS", True)}
    assert rule.keywords == {"ScanVelocity", "Modality"}


def test_every_condition_is_explained_with_what_was_found():
    rule = parse("Modality = MR or SliceThickness <= 3 and EchoTime > 5")
    assert [(str(c), found, held) for c, found, held in rule.explain(CT)] == [
        ("Modality = MR", "CT", False),
        ("SliceThickness <= 3", 2.5, True),
        ("EchoTime > 5", None, False),
    ]


def test_only_the_conditions_at_fault_are_blamed():
    rule = parse("Modality = CT and not (SliceThickness <= 3 or SeriesNumber = 9)")
    assert [(str(c), found) for c, found in rule.why_not(CT)] == [("SliceThickness <= 3", 2.5)]
    assert parse("Modality = CT").why_not(CT) == []


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=20)


@given(WORDS)
def test_any_text_can_be_asked_for_in_quotes(text):
    quoted = "'" + text.replace("'", "''") + "'"
    rule = parse(f"SeriesDescription = {quoted}")
    assert rule.holds({"SeriesDescription": text})
    assert parse(str(rule.root)).holds({"SeriesDescription": text})


@given(st.text(max_size=60))
def test_any_text_parses_or_is_refused(text):
    try:
        parse(text)
    except UsageError as error:
        assert re.fullmatch(r"[a-z-]+", error.code)


@given(
    st.recursive(
        st.sampled_from(["Modality = CT", "SeriesNumber > 5"]),
        lambda part: st.one_of(
            part.map(lambda p: f"not ({p})"),
            st.tuples(part, st.sampled_from(["and", "or"]), part).map(lambda t: f"({t[0]}) {t[1]} ({t[2]})"),
        ),
        max_leaves=8,
    )
)
def test_logic_is_that_of_python(expression):
    expected = eval(expression.replace("Modality = CT", "True").replace("SeriesNumber > 5", "False"))  # noqa: S307
    rule = parse(expression)
    assert rule.holds(CT) is expected
    assert (rule.why_not(CT) == []) is expected
    assert parse(str(rule.root)).holds(CT) is expected
