from __future__ import annotations

import copy
import json
from importlib.resources import files

import jsonschema
import pydicom
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from mdcli.checking.compare import Identity, Tolerances
from mdcli.checking.gold import (
    Gold,
    GoldFile,
    check_file_name,
    gold_to_yaml,
    identities_of,
    looser,
    parse_gold,
    read_gold,
    refuse_identifiable,
)
from mdcli.errors import ConfigError, DataError, MissingError
from tests.checking.segs import series, write_seg

SCHEMA = json.loads((files("mdcli") / "schemas" / "gold.json").read_text())


def parse(*entries: str, head: str = "schema: md.gold/1\n") -> Gold:
    return parse_gold(head + "files:\n" + "".join(f"- {{{entry}}}\n" for entry in entries))


def refused(*entries: str, head: str = "schema: md.gold/1\n") -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse(*entries, head=head)
    assert caught.value.code == "bad-gold" and caught.value.status == 78
    return caught.value


def test_the_defaults_are_those_of_truth_34():
    (file,) = parse("file: labels.nii").files
    assert file.tolerances == Tolerances(
        affine_mm=0.001, dice=0.999, centroid_voxels=0.1, bounding_box_voxels=1, volume_percent=0.5
    )
    assert file.reason is None and file.labels is None


@pytest.mark.parametrize(
    ("tolerances", "expected"),
    [
        ("dice: 0.99", ["dice"]),
        ("dice: 1", []),
        ("volume_percent: 2, affine_mm: 0.01", ["affine_mm", "volume_percent"]),
        ("volume_percent: 0.1, centroid_voxels: 0, bounding_box_voxels: 0", []),
    ],
)
def test_looser_values_need_a_reason_and_tighter_ones_do_not(tolerances, expected):
    assert looser(Tolerances(**yaml.safe_load(f"{{{tolerances}}}"))) == expected
    entry = f"file: labels.nii, tolerances: {{{tolerances}}}"
    assert parse(f"{entry}, reason: rounding").files[0].reason == "rounding"
    if expected:
        error = refused(entry)
        assert all(name in error.message for name in expected)
        refused(f"{entry}, reason: ' '")
    else:
        parse(entry)


@pytest.mark.parametrize(
    ("entry", "near"),
    [
        ("file: labels.nii, tolerence: {}", "tolerances"),
        ("file: labels.nii, tolerances: {volume_pecent: 1}", "volume_percent"),
        ("file: labels.nii, labels: [{value: 1, nmae: air}]", "name"),
    ],
)
def test_an_unknown_key_names_the_near_one(entry, near):
    error = refused(entry)
    assert "unknown key" in error.message and near in (error.hint or "")


@pytest.mark.parametrize(
    "name",
    [
        "../labels.nii",
        "a/../../labels.nii",
        "/etc/labels.nii",
        "a//labels.nii",
        "./labels.nii",
        "a\\labels.nii",
        "c:labels.nii",
        "labels.nii\n",
        "",
        "labels.txt",
        "labels",
    ],
)
def test_a_name_that_leaves_the_folder_or_can_not_be_compared_is_refused(name):
    with pytest.raises(ConfigError):
        check_file_name(name)


@pytest.mark.parametrize(
    "name", ["labels.nii", "labels-liver.nii.gz", "seg.dcm", "case_0001/labels.nii", "..labels.nii"]
)
def test_a_name_within_the_folder_is_taken(name):
    assert check_file_name(name) == name


@pytest.mark.parametrize(
    "entry",
    [
        "file: 3",
        "file: [labels.nii]",
        "labels: []",
        "file: labels.nii, tolerances: {dice: 1.5}",
        "file: labels.nii, tolerances: {dice: -1}",
        "file: labels.nii, tolerances: {dice: true}",
        "file: labels.nii, tolerances: {dice: .nan}, reason: x",
        "file: labels.nii, tolerances: {volume_percent: .inf}, reason: x",
        "file: labels.nii, tolerances: {affine_mm: 1" + "0" * 400 + "}, reason: x",
        "file: labels.nii, tolerances: [1]",
        "file: labels.nii, labels: []",
        "file: labels.nii, labels: [{value: 0, name: air}]",
        "file: labels.nii, labels: [{value: 1.5, name: air}]",
        "file: labels.nii, labels: [{value: 1}]",
        "file: labels.nii, labels: [{value: 1, name: air}, {value: 1, name: fat}]",
        "file: labels.nii, labels: [{value: 1, name: air, codes: A}]",
        "file: seg.dcm, labels: [{value: 1, name: air}]",
    ],
)
def test_an_entry_that_says_nothing_usable_is_refused(entry):
    refused(entry)


def test_a_number_that_yaml_reads_as_a_text_is_explained():
    assert "0.001" in (refused("file: labels.nii, tolerances: {affine_mm: 1e-3}").hint or "")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "schema: md.gold/1",
        "schema: md.gold/1\nfiles: []",
        "schema: md.gold/2\nfiles: [{file: labels.nii}]",
        "files: [{file: labels.nii}]",
        "schema: md.gold/1\nfiles: [{file: a.nii}, {file: a.nii}]",
        "schema: md.gold/1\nfile: [{file: a.nii}]",
        "schema: 'md",
        "!!python/object/apply:os.system [true]",
        "a: 2026-13-45",
        "[" * 100_000,
        "x" * (1 << 21),
        b"\xff\xfe\x00",
        "1" * 5000,
    ],
)
def test_a_text_that_is_no_gold_yaml_is_refused(text):
    with pytest.raises(ConfigError) as caught:
        parse_gold(text)
    assert caught.value.code == "bad-gold"


def test_no_gold_yaml_is_missing(tmp_path):
    with pytest.raises(MissingError) as caught:
        read_gold(tmp_path / "gold.yaml")
    assert caught.value.code == "no-gold"


@given(st.text() | st.binary())
def test_any_text_gives_a_gold_or_an_error_of_md(text):
    with pytest.raises(ConfigError):
        parse_gold(text)


IDENTITIES = st.builds(
    Identity, st.sampled_from(["air", "Leber ü", "0"]), st.lists(st.sampled_from(["SCT:1", "99T:x y"])).map(tuple)
)
FILES = st.builds(
    GoldFile,
    st.sampled_from(["labels.nii", "labels-t2.nii.gz"]),
    st.builds(Tolerances, dice=st.floats(0, 1), affine_mm=st.floats(0, 10)),
    st.sampled_from(["rounding: off", "'", "- x"]),
    st.none() | st.dictionaries(st.integers(1, 65535), IDENTITIES, min_size=1, max_size=3),
)


@given(FILES)
def test_what_is_written_is_read_back_and_follows_the_schema(file):
    gold = Gold((file,), "made for a test")
    text = gold_to_yaml(gold)
    assert parse_gold(text) == gold
    jsonschema.validate(yaml.safe_load(text), SCHEMA)


@pytest.mark.parametrize("name", ["../labels.nii", "/labels.nii", "a/../b.nii", "labels.txt"])
def test_the_schema_refuses_the_same_names(name):
    document = {"schema": "md.gold/1", "files": [{"file": name}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


def test_the_segments_file_says_what_labels_are():
    code = {"value": "1", "scheme": "SCT", "meaning": "m"}
    document = {"segments": [{"value": 3, "name": "air", "category": code, "type": {**code, "value": "2"}}]}
    assert identities_of(document) == {3: Identity("air", ("SCT:1", "SCT:2"))}
    with pytest.raises(DataError):
        identities_of({"segments": [{"value": 3}]})
    with pytest.raises(DataError):
        identities_of({"segments": None})


def anonymous(seg):
    seg.PatientName = seg.PatientID = seg.PatientBirthDate = seg.AccessionNumber = ""
    # highdicom copies people's names from the sources into sequences too.
    seg.walk(lambda _, element: setattr(element, "value", "") if element.VR == "PN" else None)


def flagged(seg):
    seg.PatientName, seg.PatientIdentityRemoved = "ANON", "YES"


@pytest.mark.parametrize("edit", [anonymous, flagged])
def test_a_seg_of_nobody_may_be_gold(tmp_path, edit):
    refuse_identifiable(write_seg(tmp_path / "seg.dcm", series(), edit=edit))


def sequence_with(keyword, value):
    item = pydicom.Dataset()
    setattr(item, keyword, value)
    return [item]


@pytest.mark.parametrize(
    "keyword",
    [
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "OtherPatientIDs",
        "OtherPatientIDsSequence",
        "PatientAddress",
        "PatientTelephoneNumbers",
        "PatientComments",
        "ReferringPhysicianName",
        "PerformingPhysicianName",
        "RequestingPhysician",
        "OperatorsName",
        "ContentCreatorName",
        "InstitutionName",
        "InstitutionAddress",
        "StationName",
        "AdmissionID",
        "StudyDescription",
        "ClinicalTrialSubjectID",
    ],
)
def test_a_seg_of_somebody_is_refused_without_saying_of_whom(tmp_path, keyword, recwarn):
    def edit(seg):
        anonymous(seg)
        value = sequence_with("PatientID", "CANARY") if keyword.endswith("Sequence") else "19010203"
        setattr(seg, keyword, value)

    path = write_seg(tmp_path / "seg.dcm", series(), edit=edit)
    with pytest.raises(DataError) as caught:
        refuse_identifiable(path)
    assert caught.value.code == "identifiable" and keyword in caught.value.message
    assert "CANARY" not in str(caught.value) and "19010203" not in str(caught.value)


def name_the_institution_of_the_scanner(seg):
    seg.ContributingEquipmentSequence[0].InstitutionName = "CANARY"


def name_an_operator_deep_in_a_frame(seg):
    purpose = seg.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence[0].SourceImageSequence[0]
    # highdicom gives every frame of every SEG one and the same item: written into, the name would be in all that follow.
    item = copy.deepcopy(purpose.PurposeOfReferenceCodeSequence[0])
    item.OperatorsName = "CANARY"
    purpose.PurposeOfReferenceCodeSequence = [item]


def add_a_private_text(seg):
    seg.private_block(0x0011, "SOMEONE", create=True).add_new(1, "LO", "CANARY")


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("name", "held"),
    [
        (name_the_institution_of_the_scanner, "InstitutionName"),
        (name_an_operator_deep_in_a_frame, "OperatorsName"),
        (add_a_private_text, "a private attribute"),
    ],
)
def test_a_name_is_found_in_every_sequence_and_syntax(tmp_path, name, held, syntax):
    def edit(seg):
        anonymous(seg)
        name(seg)

    path = write_seg(tmp_path / "seg.dcm", series(), edit=edit)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path, implicit_vr=syntax.is_implicit_VR, little_endian=True)
    with pytest.raises(DataError) as caught:
        refuse_identifiable(path)
    assert caught.value.code == "identifiable" and held in caught.value.message


def test_sequences_without_an_end_are_no_gold(tmp_path):
    def edit(seg):
        anonymous(seg)
        items = sequence_with("CodeValue", "1")
        for _ in range(40):
            items = sequence_with("ContentSequence", items)
        seg.ContentSequence = items

    with pytest.raises(DataError) as caught:
        refuse_identifiable(write_seg(tmp_path / "seg.dcm", series(), edit=edit))
    assert caught.value.code == "seg-broken"


def test_a_birth_date_that_is_none_is_not_printed_in_a_warning(tmp_path, recwarn):
    path = write_seg(tmp_path / "seg.dcm", series(), edit=anonymous)
    data = path.read_bytes().replace(b"\x10\x00\x30\x00DA\x00\x00", b"\x10\x00\x30\x00DA\x06\x00CANARY", 1)
    path.write_bytes(data)
    recwarn.clear()
    with pytest.raises(DataError):
        refuse_identifiable(path)
    assert not [w for w in recwarn if "CANARY" in str(w.message)]
