"""Grouping, copies, what is an image volume, and series.json."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdcli.dicom.headers import KEYWORDS
from mdcli.dicom.instance import Instance
from mdcli.dicom.series import (
    Series,
    drop_copies,
    group_series,
    instances_from_json,
    series_to_json,
    snake,
    why_unsuitable,
    without_strangers,
)
from mdcli.errors import DataError

CT, MR, SC = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.7"
SEG, DOSE, SR = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.481.2", "1.2.840.10008.5.1.4.1.1.88.11"


def instance(path="a", size=100, pixels=True, header="0" * 64, **attributes):
    base = {
        "TransferSyntaxUID": "1.2.840.10008.1.2.1",
        "SOPClassUID": CT,
        "SOPInstanceUID": f"1.2.{path}",
        "StudyInstanceUID": "1.1",
        "SeriesInstanceUID": "1.1.1",
        "Modality": "CT",
        "Rows": 4,
    }
    return Instance(path, size, 50 if pixels else None, 50 if pixels else None, header, base | attributes)


@pytest.mark.parametrize(
    "keyword, name",
    [
        ("SOPInstanceUID", "sop_instance_uid"),
        ("KVP", "kvp"),
        ("DiffusionBValue", "diffusion_b_value"),
        ("MRAcquisitionType", "mr_acquisition_type"),
        ("PixelPaddingValue", "pixel_padding_value"),
        ("VOILUTFunction", "voilut_function"),
    ],
)
def test_keywords_become_snake_case(keyword, name):
    assert snake(keyword) == name


def test_snake_case_tells_all_keywords_apart():
    assert len({snake(keyword) for keyword in KEYWORDS}) == len(KEYWORDS)


VALUES = st.one_of(
    st.none(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)


@given(st.lists(st.dictionaries(st.sampled_from(sorted(KEYWORDS)), VALUES, max_size=8), min_size=1, max_size=5))
def test_a_series_comes_back_from_json_as_it_was(attributes):
    instances = [
        Instance(f"ct/{n}\udcff", 10 + n, None if n % 2 else 5, None if n % 3 else 7, "ab" * 32, found)
        for n, found in enumerate(attributes)
    ]
    text = json.dumps(series_to_json(instances), allow_nan=False)
    assert text.isascii()
    assert instances_from_json(json.loads(text)) == instances


def test_what_all_instances_share_is_written_once():
    document = series_to_json([instance("a", Rows=4, InstanceNumber=1), instance("b", Rows=4, InstanceNumber=2)])
    assert document["common"]["rows"] == 4
    assert [i["attributes"] for i in document["instances"]] == [
        {"sop_instance_uid": "1.2.a", "instance_number": 1},
        {"sop_instance_uid": "1.2.b", "instance_number": 2},
    ]
    assert document["series"]["instance_count"] == 2


def test_what_only_one_instance_has_is_not_common():
    document = series_to_json([instance("a", EchoTime=None), instance("b")])
    assert "echo_time" not in document["common"]
    assert [i.attributes.get("EchoTime", "absent") for i in instances_from_json(document)] == [None, "absent"]


def test_what_is_no_keyword_of_ours_is_left_out():
    document = series_to_json([instance(PatientID="canary", RepetitionTime=3.0, ScanVelocity=1.0)])
    assert "canary" not in json.dumps(document) and "Velocity" not in json.dumps(document)


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"common": {}, "instances": []},
        {"common": [], "instances": [{}]},
        {"common": {"nonsense": 1}, "instances": [{}]},
        {"common": {}, "instances": [{"path": "a"}]},
        {"common": {}, "instances": 7},
    ],
)
def test_a_document_of_another_form_is_refused(document):
    with pytest.raises(DataError, match="bad-artifact"):
        instances_from_json(document)


def test_series_are_grouped_by_study_and_series_in_an_order_of_their_own():
    found = [
        instance("1", SeriesInstanceUID="9", SeriesNumber=12),
        instance("2", SeriesInstanceUID="8", SeriesNumber=3),
        instance("3", SeriesInstanceUID="9", SeriesNumber=12),
        instance("4", SeriesInstanceUID="9", StudyInstanceUID="1.0", SeriesNumber=99),
        instance("5", SeriesInstanceUID="7", SeriesNumber=None),
    ]
    expected = [["4"], ["2"], ["1", "3"], ["5"]]
    assert [[i.path for i in s.instances] for s in group_series(found)] == expected
    assert [s.uid for s in group_series(found[::-1])] == [s.uid for s in group_series(found)]


def test_exact_copies_are_dropped_and_the_first_is_kept():
    a, b, c = instance("a", SOPInstanceUID="1"), instance("b", SOPInstanceUID="1"), instance("c", SOPInstanceUID="2")
    kept, copies = drop_copies([a, b, c], lambda _: "same")
    assert (kept, copies) == ([a, c], [(b, a)])


def test_one_uid_with_different_bytes_is_kept_for_the_loader_to_refuse():
    a, b = instance("a", SOPInstanceUID="1"), instance("b", SOPInstanceUID="1")
    assert drop_copies([a, b], lambda i: i.path) == ([a, b], [])
    longer = instance("b", SOPInstanceUID="1", size=101)
    assert drop_copies([a, longer], lambda _: "same") == ([a, longer], [])


def test_each_file_is_hashed_once_and_only_where_headers_agree():
    asked = []
    many = [instance(str(n), SOPInstanceUID="1") for n in range(20)] + [instance("x", SOPInstanceUID="2")]
    kept, copies = drop_copies(many, lambda i: asked.append(i.path) or i.path)
    assert (len(kept), len(copies)) == (21, 0)
    assert sorted(asked) == sorted(str(n) for n in range(20))


def test_instances_without_a_uid_are_no_copies_of_each_other():
    found = [instance("a", SOPInstanceUID=None), instance("b", SOPInstanceUID=None)]
    assert drop_copies(found, lambda _: "same") == (found, [])


@pytest.mark.parametrize(
    "attributes, code",
    [
        ({}, None),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, None),
        ({"ImageType": ["DERIVED", "PRIMARY"]}, None),
        ({"ImageType": ["DERIVED", "SECONDARY", "MPR"]}, "derived"),
        ({"ImageType": ["derived", "secondary"]}, "derived"),
        ({"ImageType": ["ORIGINAL", "SECONDARY"]}, None),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "localizer"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER2"]}, None),
        ({"ImageType": "LOCALIZER"}, "localizer"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "screen-save"),
        ({"SOPClassUID": SC}, "screen-save"),
        ({"SOPClassUID": SC + ".4"}, "screen-save"),
        ({"SOPClassUID": SEG}, "not-image"),
        ({"SOPClassUID": DOSE}, "not-image"),
        ({"SOPClassUID": MR}, None),
        ({"SOPClassUID": None}, None),
        ({"Manufacturer": "mdcli", "ManufacturerModelName": "md"}, "md"),
        ({"Manufacturer": "mdcli", "ManufacturerModelName": "phantom"}, None),
        ({"ImplementationVersionName": "MDCLI_1"}, "md"),
        ({"Modality": "CT/../.."}, None),
    ],
)
def test_what_is_left_out_by_default(attributes, code):
    found = why_unsuitable(Series((instance("a", **attributes), instance("b", **attributes))))
    assert (found and found.code) == code


@pytest.mark.parametrize("kind", ["derived", "localizer", "screen-save", "md"])
def test_each_kind_can_be_included(kind):
    made = {
        "derived": {"ImageType": ["DERIVED", "SECONDARY"]},
        "localizer": {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]},
        "screen-save": {"SOPClassUID": SC},
        "md": {"ImplementationVersionName": "MDCLI_1"},
    }
    series = Series((instance(**made[kind]),))
    assert why_unsuitable(series).code == kind
    assert why_unsuitable(series, [kind]) is None


def test_a_series_with_a_localizer_among_its_images_is_not_left_out():
    localizer = instance("b", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    assert why_unsuitable(Series((instance("a"), localizer))) is None


def test_images_without_pixels_and_what_is_no_image_are_told_apart():
    assert why_unsuitable(Series((instance(pixels=False),))).code == "no-pixels"
    report = Instance("r", 1, None, None, "", {"SOPClassUID": SR, "SeriesInstanceUID": "1"})
    assert why_unsuitable(Series((report,))).code == "not-image"


def test_one_image_without_pixels_stays_for_the_loader_and_a_report_goes():
    image, bare = instance("a"), instance("b", pixels=False)
    report = Instance("r", 1, None, None, "", {"SOPClassUID": SR, "SeriesInstanceUID": "1.1.1"})
    series, strangers = without_strangers(Series((image, bare, report)))
    assert (series.instances, strangers) == ((image, bare), (report,))


def test_frames_count_as_slices_and_absurd_numbers_do_not():
    found = [
        instance("a", NumberOfFrames=30),
        instance("b"),
        instance("c", NumberOfFrames=-5),
        instance("d", pixels=False),
    ]
    assert Series(tuple(found)).slice_count == 32


@pytest.mark.parametrize(
    "cosines, plane",
    [
        ([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], "axial"),
        ([1.0, 0.0, 0.0, 0.0, 0.0, -1.0], "coronal"),
        ([0.0, 1.0, 0.0, 0.0, 0.0, -1.0], "sagittal"),
        ([1.0, 0.0, 0.0, 0.0, 0.9336, 0.3584], "oblique"),
        ([1.0, 0.0, 0.0, 0.0, 0.9455, 0.3256], "axial"),
        ([0.0] * 6, None),
        (["x"] * 6, None),
        (7.0, None),
        (None, None),
    ],
)
def test_the_line_for_a_person_names_the_plane(cosines, plane):
    line = Series((instance(ImageOrientationPatient=cosines),)).describe()
    named = next((p for p in ("axial", "coronal", "sagittal", "oblique") if p in line), None)
    assert named == plane


def test_the_line_for_a_person_holds_nothing_that_moves_a_terminal():
    line = Series((instance(SeriesDescription="a\x1b[31m\x07\nb\u202e", SeriesInstanceUID="../\x00"),)).describe()
    assert line.isprintable()
