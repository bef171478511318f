"""MONAI Deploy's rules: what they mean here, and what the selector of monai-deploy-app-sdk 4.0 does.

What the old selector does was seen by running it over the same files; each row of `OLD` is one such observation.
"""

import json

import pytest
from pydicom.dataset import Dataset

from mdcli.dicom.monai_rules import old_choice, old_selections
from mdcli.dicom.opening import SourceFiles
from mdcli.dicom.rules import parse
from mdcli.dicom.selection import Candidate, Selection, judge, load_document, read_rules
from mdcli.dicom.series import group_series
from mdcli.errors import ConfigError, UsageError
from tests.dicom.test_headers import saved
from tests.made_series import CORONAL, scan


def rules(**conditions):
    return json.dumps({"selections": [{"name": "one", "conditions": conditions}]})


def meaning(**conditions):
    """Return what a rule means, in md's grammar."""
    (selection,) = read_rules(rules(**conditions), "rules.json").selections
    assert selection.rule is not None
    text = str(selection.rule)
    assert str(parse(text)) == text
    return text


@pytest.mark.parametrize(
    "conditions, expected",
    [
        ({"Modality": "CT"}, "Modality contains CT"),
        ({"Modality": "(?i)CT"}, "Modality = '(?i)CT' or Modality matches '(?i)CT'"),
        ({"Modality": ["CT", "MR"]}, "Modality contains CT or Modality contains MR"),
        ({"Modality": "!CT"}, "Modality is present and not Modality contains CT"),
        ({"SeriesDescription": ""}, "SeriesDescription is absent"),
        ({"SeriesDescription": "^abd"}, "SeriesDescription = ^abd or SeriesDescription matches ^abd"),
        ({"SliceThickness": 3}, "SliceThickness = 3"),
        ({"SliceThickness": 0}, "SliceThickness = 0"),
        ({"SliceThickness": [3, 5]}, "SliceThickness >= 3 and SliceThickness <= 5"),
        ({"SliceThickness": [2, ">"]}, "SliceThickness > 2"),
        ({"SliceThickness": [2, "<="]}, "SliceThickness <= 2"),
        ({"SliceThickness": [2, "!="]}, "SliceThickness is present and SliceThickness != 2"),
        ({"SeriesNumber": "3|4"}, "SeriesNumber matches '^(?:3|4)$'"),
        ({"SeriesNumber": "(?i)[34]"}, "SeriesNumber matches '(?i)^(?:[34])$'"),
        ({"ImageType": ["PRIMARY", "!SECONDARY"]}, "ImageType contains PRIMARY and not ImageType contains SECONDARY"),
        ({"ImageType": ["!SECONDARY"]}, "ImageType is present and not ImageType contains SECONDARY"),
        ({"ImageType": "AXIAL"}, "ImageType contains AXIAL"),
        ({"ImageType": "^AX"}, "ImageType contains ^AX or ImageType matches ^AX"),
        ({"ImageOrientationPatient": "Axial"}, "Orientation = axial"),
        ({"ImageOrientationPatient": ["axial", "CORONAL "]}, "Orientation = axial or Orientation = coronal"),
        ({"StudyDescription": None, "Modality": "CT"}, "Modality contains CT"),
        (
            {"Modality": "CT", "SliceThickness": [3, 5]},
            "Modality contains CT and SliceThickness >= 3 and SliceThickness <= 5",
        ),
    ],
)
def test_a_condition_means_this_in_the_grammar(conditions, expected):
    assert meaning(**conditions) == expected


def test_the_example_of_the_reference_is_taken_as_it_is():
    found = read_rules(
        """{"selections": [{"name": "CT Series 1", "conditions": {
           "StudyDescription": "(?i)^Spleen", "Modality": "CT", "ImageType": ["PRIMARY", "ORIGINAL", "!SECONDARY"],
           "SliceThickness": [3, 5], "ImageOrientationPatient": "Axial"}}]}""",
        "rules.json",
    )
    (one,) = found.selections
    assert (found.form, one.name, one.word, found.notes) == ("monai", "CT Series 1", "ct_series_1", ())
    spleen = {
        "StudyDescription": "spleen, venous",
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "SliceThickness": 3.0,
        "Orientation": "axial",
    }
    assert one.rule.holds(spleen)
    for keyword, other in [
        ("StudyDescription", "the spleen"),
        ("Modality", "MR"),
        ("ImageType", ["DERIVED", "SECONDARY", "PRIMARY", "ORIGINAL"]),
        ("SliceThickness", 5.1),
        ("Orientation", "oblique"),
        ("SliceThickness", None),
    ]:
        assert not one.rule.holds({**spleen, keyword: other})


def test_what_means_nothing_is_noted_and_a_near_key_refused():
    text = '{"selections": [{"name": "a", "comment": "x", "conditions": {"Modality": "CT"}}, {"conditions": {}}]}'
    found = read_rules(text, "rules.json")
    assert [one.name for one in found.selections] == ["a"]
    assert len(found.notes) == 2 and "comment" in found.notes[0] and "selection 2" in found.notes[1]
    with pytest.raises(ConfigError) as caught:
        read_rules('{"selections": [{"name": "a", "conditions": {"Modality": "CT"}, "condition": {}}]}', "rules.json")
    assert caught.value.hint == "did you mean conditions?"


@pytest.mark.parametrize(
    "conditions, code, words",
    [
        ({"PatientName": "x"}, "patient-keyword", "PatientName"),
        ({"OperatorsName": "x"}, "patient-keyword", "OperatorsName"),
        ({"Modalty": "CT"}, "unknown-keyword", "Modality"),
        ({"Modality": "("}, "bad-pattern", "'('"),
        ({"SeriesNumber": "("}, "bad-pattern", "regular expression"),
        ({"Modality": "(a+)+$"}, "bad-pattern", "repeat"),
        ({"ImageOrientationPatient": "Oblique"}, "bad-expression", "Axial, Coronal, Sagittal"),
        ({"SliceThickness": [5, 3]}, "bad-rules", "5 to 3"),
        ({"SliceThickness": [3, "~"]}, "bad-rules", "'~'"),
        ({"SliceThickness": [3]}, "bad-rules", "[number, sign]"),
        ({"SliceThickness": [1, 2, 3]}, "bad-rules", "[number, sign]"),
        ({"SliceThickness": True}, "bad-rules", "True"),
        ({"Modality": {"a": 1}}, "bad-rules", "neither text"),
        ({"Modality": []}, "bad-rules", "no list of texts"),
        ({"Modality": None}, "bad-rules", "no condition has a value"),
        ({"ModalityLUTSequence": "x"}, "bad-expression", "SQ"),
    ],
)
def test_what_crashed_or_was_silent_is_an_error_before_any_file_is_read(conditions, code, words):
    with pytest.raises((ConfigError, UsageError)) as caught:
        read_rules(rules(**conditions), "rules.json")
    assert caught.value.code == code
    assert words in caught.value.message + str(caught.value.hint)


def image(uid, number=1, **more):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"{uid}.{number}"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SeriesNumber = "1.2.3", uid, 4
    dataset.Modality, dataset.SeriesDescription, dataset.ImageType = "CT", "Abdomen", ["ORIGINAL", "PRIMARY", "AXIAL"]
    dataset.PatientPosition, dataset.ImageOrientationPatient = "HFS", [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient, dataset.SliceThickness, dataset.PixelSpacing = [0, 0, 3 * number], 3, [1, 1]
    dataset.Rows, dataset.Columns, dataset.PixelRepresentation = 2, 2, 0
    dataset.PixelData = bytes([number]) * 8
    for keyword, value in more.items():
        if value is ...:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def put(folder, *datasets):
    folder.mkdir(exist_ok=True)
    for number, dataset in enumerate(datasets):
        (folder / f"{number:03d}.dcm").write_bytes(saved(dataset))
    return folder


def old(folder, **conditions):
    """Return what the old selector does: `crash`, the UID that it takes, or None."""
    document = load_document(rules(**conditions), "rules.json")
    with SourceFiles(folder) as files:
        (choice,) = old_choice(old_selections(document, "rules.json"), scan(folder), files)
    return "crash" if choice.crash else choice.series.uid if choice.series else None


def new(folder, **conditions):
    """Return the UIDs of what matches here."""
    (selection,) = read_rules(rules(**conditions), "rules.json").selections
    found = judge(Selection("x", selection.rule, all=True), [Candidate(s) for s in group_series(scan(folder))])
    return [one.whole.uid for one in found.best]


TAKEN = "1.2.3.4"
# What a series is like, a rule, what the old selector does, whether md takes it.
OLD = [
    pytest.param(
        {"ImageType": ["DERIVED", "PRIMARY", "SECONDARY_X"]},
        {"ImageType": ["CONDAR"]},
        TAKEN,
        False,
        id="a list is searched in the printed value",
    ),
    pytest.param({}, {"Modality": ["CT", "MR"]}, "crash", True, id="a list on text crashes"),
    pytest.param({}, {"SliceThickness": 0}, TAKEN, False, id="a rule of 0 is ignored"),
    pytest.param({}, {"SeriesDescription": ""}, TAKEN, False, id="an empty rule is ignored"),
    pytest.param({"SliceThickness": 0}, {"SliceThickness": [0, 1]}, None, True, id="a value of 0 is missing"),
    pytest.param({}, {"Modality": "!CT"}, None, False, id="an exclusion on text never holds, as no text has a !"),
    pytest.param({}, {"Modality": "!MR"}, None, True, id="an exclusion on text never takes what it should"),
    pytest.param({}, {"PixelRepresentation": "0"}, None, True, id="a value of 0 is missing for a pattern too"),
    pytest.param({}, {"Modality": "("}, "crash", None, id="a bad pattern crashes"),
    pytest.param({}, {"Modalty": "CT"}, None, None, id="an unknown keyword matches nothing"),
    pytest.param(
        {"ImageOrientationPatient": [1, 0, 0, 0, 0.7193398, 0.6946584]},
        {"ImageOrientationPatient": "Axial"},
        TAKEN,
        False,
        id="44 degrees are axial",
    ),
    pytest.param(
        {"ImageOrientationPatient": CORONAL}, {"ImageOrientationPatient": "Coronal"}, TAKEN, True, id="coronal"
    ),
    pytest.param(
        {"PatientPosition": ...}, {"ImageOrientationPatient": "Axial"}, "crash", True, id="no patient position crashes"
    ),
    pytest.param({}, {"SliceThickness": [2, ">"]}, TAKEN, True, id="a sign"),
    pytest.param({}, {"SliceThickness": "[23]"}, None, True, id="a pattern on a number sees 3.0 there, 3 or 3.0 here"),
    pytest.param({}, {"SliceThickness": "[23][.]0"}, TAKEN, True, id="a pattern on a number is for the whole of it"),
    pytest.param({}, {"SeriesNumber": [5, "<"]}, TAKEN, True, id="a series number"),
    pytest.param({"SeriesNumber": None}, {"Modality": "CT"}, None, True, id="an empty series number loses the series"),
    pytest.param({}, {"SeriesDescription": "dom"}, TAKEN, True, id="text is searched"),
    pytest.param({}, {"ImageType": ["primary", "!secondary"]}, TAKEN, True, id="terms regardless of case"),
    pytest.param({}, {"PixelSpacing": "1"}, TAKEN, None, id="numbers of several values are searched as text"),
]


@pytest.mark.parametrize("more, conditions, expected, ours", OLD)
def test_the_old_choice_and_ours(tmp_path, more, conditions, expected, ours):
    folder = put(tmp_path / "dicom", image(TAKEN, **more))
    assert old(folder, **conditions) == expected
    if ours is not None:
        assert new(folder, **conditions) == ([TAKEN] if ours else [])


def test_the_old_selector_takes_the_first_match_and_looks_at_first_images_only(tmp_path):
    folder = put(
        tmp_path / "dicom",
        image("1.2.3.9", 1, SliceThickness=3),
        image("1.2.3.9", 2, SliceThickness=9),
        image("1.2.3.4", 1, SliceThickness=3),
    )
    assert old(folder, SliceThickness=[1, 3]) == "1.2.3.9"
    assert new(folder, SliceThickness=[1, 3]) == ["1.2.3.4"]


def test_of_two_images_at_the_first_place_the_old_loader_keeps_the_later_acquisition(tmp_path):
    folder = put(
        tmp_path / "dicom",
        image("1.2.3.4", 1, AcquisitionNumber=1, SliceThickness=3),
        image("1.2.3.4", 2, AcquisitionNumber=2, SliceThickness=9, ImagePositionPatient=[0, 0, 3]),
    )
    assert old(folder, SliceThickness=9) == "1.2.3.4"
    assert old(folder, SliceThickness=3) is None


def test_the_old_selector_does_not_leave_out_localizers(tmp_path):
    folder = put(tmp_path / "dicom", image("1.2.3.4", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    assert old(folder, Modality="CT") == "1.2.3.4"
    assert new(folder, Modality="CT") == []


def test_nobody_is_selected_by_a_patients_name_in_the_old_way_either():
    document = load_document(rules(PatientID="1"), "rules.json")
    with pytest.raises(UsageError) as caught:
        old_selections(document, "rules.json")
    assert caught.value.code == "patient-keyword"
    with pytest.raises(ConfigError):
        old_selections(load_document("selections: [{name: a, where: Modality = CT}]", "rules.yaml"), "rules.yaml")
