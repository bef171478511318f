"""Rule files, preferences, and how series are judged and explained."""

import json
from importlib.resources import files

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdcli.dicom.instance import Instance
from mdcli.dicom.rules import COMPUTED, parse
from mdcli.dicom.selection import (
    PREFERENCES,
    Candidate,
    Selection,
    explain,
    judge,
    preferences,
    preferred,
    read_rule_file,
    read_rules,
)
from mdcli.dicom.series import INCLUDABLE, Series
from mdcli.errors import ConfigError, MissingError, UsageError
from tests.made_series import CORONAL, instance, stack

SCHEMAS = files("mdcli") / "schemas"


def series(uid, images=3, number=1, **more):
    found = stack(images, SeriesInstanceUID=uid, SeriesNumber=number, **more)
    return Series(tuple(found))


def candidate(uid, images=3, number=1, **more):
    return Candidate(series(uid, images, number, **more))


def results(judgement):
    return {one.candidate.whole.uid: one.result for one in judgement.judged}


def test_a_rule_file_says_everything_once():
    found = read_rules(
        """
        schema: md.rules/1
        selections:
          - name: T2 axial
            where: Modality = MR and SeriesDescription contains t2
            prefer: [most-slices, thinnest]
            role: t2
          - name: adc
            where: "SeriesDescription contains adc"
            prefer: newest, thinnest
            role: adc
            required: false
            include: derived
        """,
        "rules.yaml",
    )
    t2, adc = found.selections
    assert (found.form, t2.name, t2.word, t2.role, t2.prefer) == (
        "md",
        "T2 axial",
        "t2_axial",
        "t2",
        ("most-slices", "thinnest"),
    )
    assert str(t2.rule) == "Modality = MR and SeriesDescription contains t2"
    assert (adc.required, adc.include, adc.prefer) == (False, ("derived",), ("newest", "thinnest"))


@pytest.mark.parametrize(
    "text, code, words",
    [
        ("", "bad-rules", "selections missing"),
        ("[1]", "bad-rules", "selections missing"),
        ("selection: []", "bad-rules", "selection may be meant as selections"),
        ("selections: []", "bad-rules", "no list"),
        ("selections: [3]", "bad-rules", "selections[0]"),
        ("selections: [{name: a}]\nschema: md.rules/2", "bad-rules", "md.rules/2"),
        ("selections: [{name: a}]\nrules: 3", "bad-rules", "unknown key 'rules'"),
        ("selections: [{name: a, were: x}]", "bad-rules", "did you mean where?"),
        ("selections: [{where: Modality = CT}]", "bad-rules", "name"),
        ("selections: [{name: 3}]", "bad-rules", "quotes"),
        ("selections: [{name: a, where: 3}]", "bad-rules", "where"),
        ("selections: [{name: a, where: Modality}]", "bad-expression", "selections[0]: where"),
        ("selections: [{name: a, where: Modalty = CT}]", "unknown-keyword", "did you mean Modality?"),
        ("selections: [{name: a, prefer: thinest}]", "bad-preference", "did you mean thinnest?"),
        ("selections: [{name: a, include: derivd}]", "bad-include", "did you mean derived?"),
        ("selections: [{name: a, role: T2}]", "bad-rules", "role is 'T2'"),
        ("selections: [{name: a, role: ../a}]", "bad-rules", "role"),
        ("selections: [{name: a, all: 1}]", "bad-rules", "all is 1"),
        ("selections: [{name: a, all: true, role: a}]", "bad-rules", "all does not go with it"),
        ("selections: [{name: a, required: false}]", "bad-rules", "goes with a role"),
        ("selections: [{name: a, role: a}, {name: b}]", "bad-rules", "none for others"),
        ("selections: [{name: a, role: a}, {name: b, role: a}]", "bad-rules", "two selections have the role a"),
        ("selections: [{name: CT 1}, {name: ct-1}]", "bad-rules", "two selections are named ct_1"),
        ("selections: [{name: a, name: b}]", "bad-rules", "there twice"),
        ("selections: [{name: !!python/name:os.system a}]", "bad-rules", "not YAML"),
        ("selections: &a [*a]", "bad-rules", "holds itself"),
        ("[" * 5000, "bad-rules", "nested"),
        ("x" * (1 << 21), "bad-rules", "characters"),
    ],
)
def test_a_bad_rule_file_is_refused_with_its_place(text, code, words):
    with pytest.raises((ConfigError, UsageError)) as caught:
        read_rules(text, "rules.yaml")
    assert caught.value.code == code
    assert words in caught.value.message + str(caught.value.hint)


@given(st.text(max_size=80))
def test_any_text_is_a_rule_file_or_refused(text):
    try:
        read_rules("selections:\n - name: a\n   where: " + text, "rules.yaml")
    except (ConfigError, UsageError) as error:
        assert error.code


def test_a_rule_file_that_is_not_there_or_no_text_is_refused(tmp_path):
    with pytest.raises(MissingError) as caught:
        read_rule_file(tmp_path / "gone.yaml")
    assert caught.value.code == "no-rules"
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError) as refused:
        read_rule_file(tmp_path / "bad.yaml")
    assert refused.value.code == "bad-rules"


def test_the_schema_names_what_the_code_knows():
    schema = json.loads((SCHEMAS / "rules.json").read_text())
    assert schema["$defs"]["kind"]["enum"] == list(INCLUDABLE)
    assert schema["$defs"]["preferences"]["oneOf"][1]["items"]["enum"] == list(PREFERENCES)
    document = {"selections": [{"name": "a", "where": "Modality = CT", "prefer": "newest", "role": "a"}]}
    jsonschema.validate(document, schema)


@pytest.mark.parametrize(
    "order, best",
    [
        (["most-slices"], ["c"]),
        (["fewest-slices"], ["a", "b"]),
        (["fewest-slices", "thinnest"], ["b"]),
        (["thickest"], ["c"]),
        (["largest-coverage"], ["c"]),
        (["newest"], ["a"]),
        (["oldest"], ["b"]),
        (["lowest-number"], ["a"]),
        (["highest-number"], ["c"]),
        ([], ["a", "b", "c"]),
    ],
)
def test_a_preference_takes_the_best_and_the_next_decides_ties(order, best):
    candidates = [
        candidate("a", 3, 1, SliceThickness=3.0, SeriesDate="20260102", SeriesTime="101500"),
        candidate("b", 3, 2, SliceThickness=1.0, SeriesDate="20260101", SeriesTime="235959.9"),
        candidate("c", 9, 3, SliceThickness=5.0, SeriesDate="20260102", SeriesTime="101459"),
    ]
    assert [one.whole.uid for one in preferred(candidates, order)] == best
    assert [one.whole.uid for one in preferred(candidates[::-1], order)] == best[::-1]


def test_a_series_without_the_value_comes_last_and_one_thick_slice_counts():
    bare = candidate("bare", SliceThickness=None)
    mixed = Candidate(Series((*stack(2, SliceThickness=1.0), *stack(1, SliceThickness=9.0))))
    thick = candidate("thick", SliceThickness=5.0)
    assert preferred([bare, mixed, thick], ["thinnest"]) == [thick]
    assert preferred([bare, candidate("other", SliceThickness=None)], ["thinnest"])[0] is bare


def test_the_time_of_acquisition_counts_before_that_of_the_series():
    early = candidate("early", AcquisitionDateTime="20260101080000.5+0100", SeriesDate="20270101")
    late = candidate("late", AcquisitionDate="20260101", AcquisitionTime="080001")
    assert preferred([early, late], ["newest"]) == [late]


def test_preferences_come_as_words_or_joined_by_commas():
    assert preferences(["most-slices, thinnest", "newest"]) == ("most-slices", "thinnest", "newest")


def test_a_match_is_chosen_others_say_why_not():
    selection = Selection("ct", parse("Modality = CT and SliceCount > 2"), prefer=("most-slices",))
    found = judge(
        selection,
        [
            candidate("few", 2),
            candidate("some", 3),
            candidate("most", 4),
            candidate("mr", Modality="MR"),
            candidate("scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        ],
    )
    assert results(found) == {
        "few": "no-match",
        "some": "not-preferred",
        "most": "chosen",
        "mr": "no-match",
        "scout": "left-out",
    }
    assert [one.whole.uid for one in found.best] == ["most"]
    reasons = {one.candidate.whole.uid: one.reason for one in found.judged}
    assert reasons["few"] == "SliceCount > 2: found 2"
    assert "--include localizer" in reasons["scout"]


def test_a_tie_stays_a_match_and_all_takes_every_one():
    ties = judge(Selection("x", prefer=("most-slices",)), [candidate("a"), candidate("b"), candidate("c", 2)])
    assert results(ties) == {"a": "match", "b": "match", "c": "not-preferred"}
    both = judge(Selection("x", all=True), [candidate("a"), candidate("b")])
    assert results(both) == {"a": "chosen", "b": "chosen"} and len(both.best) == 2


def test_a_uid_means_that_series_whatever_kind_it_is():
    scout = candidate("scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    found = judge(Selection("x"), [scout, candidate("a")], uid="scout")
    assert results(found) == {"scout": "chosen", "a": "no-match"}


def test_a_parametric_map_is_left_out_unless_asked_for():
    made = candidate("adc", SOPClassUID="1.2.840.10008.5.1.4.1.1.30", ImageType=["DERIVED", "SECONDARY"])
    found = judge(Selection("x"), [made])
    assert (results(found), found.judged[0].code) == ({"adc": "left-out"}, "parametric-map")
    assert results(judge(Selection("x", include=("parametric-map",)), [made])) == {"adc": "chosen"}


@pytest.mark.parametrize(
    "where, chosen",
    [
        ("IsVolume and IsRegular and Orientation = axial", ["axial"]),
        ("Orientation = coronal", ["coronal"]),
        ("ObliquityDeg < 1 and Spacing = 3", ["axial"]),
        ("CoverageMM >= 9 and Unit = HU", ["axial", "gap"]),
        ("not IsRegular", ["coronal", "gap"]),
    ],
)
def test_computed_properties_are_asked_for_like_attributes(where, chosen):
    gap = Series(tuple(instance((0, 0, z), n, SeriesInstanceUID="gap") for n, z in enumerate((0, 3, 9), 1)))
    candidates = [
        candidate("axial"),
        candidate("coronal", ImageOrientationPatient=CORONAL, RescaleType="US"),
        Candidate(gap),
    ]
    found = judge(Selection("x", parse(where), all=True), candidates)
    assert [one.whole.uid for one in found.best] == chosen


def test_an_exact_copy_is_no_further_slice():
    once = stack(3)
    twice = Candidate(Series((*once, *once)))
    assert twice.series.slice_count == 3
    assert twice.decide(parse("SliceCount = 3 and IsVolume")) is True


class Files:
    """Stands where pixels would be read; says whether they were."""

    def __init__(self):
        self.asked = 0


@pytest.fixture
def files_read(monkeypatch):
    """Return which series' pixels are read, instead of reading them."""
    from mdcli.dicom import properties

    read = []

    def fake(files, images, jobs=1, done=lambda _: None):
        read.append(images[0].get("SeriesInstanceUID"))
        return properties.PixelFacts(40.0, 0.6, len(images))

    monkeypatch.setattr(properties, "pixel_facts", fake)
    return read


def test_pixels_are_read_only_of_series_for_which_all_else_holds(files_read):
    candidates = [
        Candidate(series("a"), Files()),
        Candidate(series("mr", Modality="MR"), Files()),
        Candidate(series("scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), Files()),
    ]
    found = judge(Selection("x", parse("MeanHU > 0 and BodyShare > 0.5 and Modality = CT")), candidates)
    assert (results(found), files_read) == ({"a": "chosen", "mr": "no-match", "scout": "left-out"}, ["a"])
    _, document = explain([found])
    held = [[c["held"] for c in s["conditions"]] for s in document["selections"][0]["series"]]
    assert held == [[True, True, True], [None, None, False], [None, None, True]]


def test_pixels_are_not_read_where_an_or_decides_already(files_read):
    found = judge(Selection("x", parse("Modality = CT or MeanHU > 0")), [Candidate(series("a"), Files())])
    assert (results(found), files_read) == ({"a": "chosen"}, [])


def test_what_stands_in_a_not_holds_where_it_is_not_so():
    found = judge(
        Selection("plain", parse("not (ImageType contains SECONDARY or not Modality = CT)")),
        [Candidate(Series(tuple(stack(2, ImageType=["ORIGINAL", "PRIMARY"]))))],
    )
    text, document = explain([found])
    conditions = document["selections"][0]["series"][0]["conditions"]
    assert [(c["condition"], c["held"]) for c in conditions] == [
        ("not ImageType contains SECONDARY", True),
        ("Modality = CT", True),
    ]
    assert "yes not ImageType contains SECONDARY" in text


def test_an_explanation_counts_the_images_in_which_a_condition_held():
    mixed = Series((*stack(2, SliceThickness=3.0), *[instance((0, 0, 50), 9, SliceThickness=5.0)]))
    found = judge(Selection("thin", parse("SliceThickness <= 3 and EchoTime > 2")), [Candidate(mixed)])
    text, document = explain([found])
    jsonschema.validate(document, json.loads((SCHEMAS / "explain.json").read_text()))
    (one,) = document["selections"][0]["series"]
    thickness, echo = one["conditions"]
    assert (thickness["held"], thickness["held_in"], thickness["of"]) == (False, 2, 3)
    assert thickness["found"] == [{"value": 3.0, "images": 2}, {"value": 5.0, "images": 1}]
    assert echo["found"] == [{"value": None, "images": 3}]
    assert "found 3 in 2 of 3, found 5 in 1 of 3: held in 2 of 3" in text
    assert "EchoTime > 2         absent" in text
    assert "no-match: SliceThickness <= 3: found 5; EchoTime > 2: absent" in text


def test_an_explanation_steers_no_terminal():
    found = judge(Selection("x", parse("SeriesDescription = a")), [candidate("a", SeriesDescription="\x1b[31mred")])
    text, _ = explain([found])
    assert "\x1b" not in text


def test_every_computed_property_has_a_value_or_is_absent_for_a_bare_instance():
    bare = Candidate(Series((Instance("a", 0, None, None, "", {"SeriesInstanceUID": "1"}),)))
    for keyword in COMPUTED:
        rule = parse(f"{keyword} is present")
        assert bare.decide(rule) in (True, False, None)
