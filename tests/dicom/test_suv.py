"""SUV factors against the published formula, worked out by hand: SUV = activity [Bq/ml] x weight [g] / decayed dose [Bq]."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from mdcli.dicom.headers import read_instance
from mdcli.dicom.instance import Instance
from mdcli.dicom.suv import ENHANCED, LEGACY_CONVERTED, Suv, suv_factors
from mdcli.errors import DataError

CLASSIC = "1.2.840.10008.5.1.4.1.1.128"
# 74 kg, 370 MBq, F-18. The scan starts one half-life (6586.2 s, 1 h 49 min 46.2 s) after the administration: 185 MBq are left.
# 74,000 g / 185,000,000 Bq = 0.0004; without decay 74,000 / 370,000,000 = 0.0002.
DECAYED, UNDECAYED = 0.0004, 0.0002


def header(**more: Any) -> Dataset:
    """Return what a classic PET header says about the patient and the dose; `...` leaves an attribute out."""
    source = {
        "RadionuclideTotalDose": 370e6,
        "RadionuclideHalfLife": 6586.2,
        "RadiopharmaceuticalStartTime": "100000",
    }
    source |= {name: more.pop(name) for name in list(more) if name.startswith("Radio") and "Sequence" not in name}
    item, whole = Dataset(), Dataset()
    for name, value in source.items():
        if value is not ...:
            setattr(item, name, value)
    whole.PatientWeight = 74.0
    whole.RadiopharmaceuticalInformationSequence = [item]
    for name, value in more.items():
        if value is ...:
            delattr(whole, name)
        else:
            setattr(whole, name, value)
    return whole


def slices(count: int = 3, **more: Any) -> list[Instance]:
    """Return slices of beds that start three minutes apart, the first when the series does."""
    made = []
    for number in range(count):
        attributes = {
            "SOPClassUID": CLASSIC,
            "Modality": "PT",
            "Manufacturer": "SIEMENS",
            "Units": "BQML",
            "DecayCorrection": "START",
            "CorrectedImage": ["NORM", "ATTN", "SCAT", "DECY"],
            "SeriesDate": "20240301",
            "SeriesTime": "114946.2",
            "AcquisitionDate": "20240301",
            "AcquisitionTime": f"11{49 + 3 * number}46.2",
            **more,
        }
        attributes = {name: value for name, value in attributes.items() if value is not ...}
        made.append(Instance(f"{number}.dcm", 0, 0, 0, "", attributes))
    return made


def factors(images: list[Instance], head: Dataset | None = None) -> Suv:
    one = header() if head is None else head
    return suv_factors(images, lambda _: one)


def codes(found: Suv) -> list[str]:
    return [finding.code for finding in found.findings]


def refused(images: list[Instance], head: Dataset | None = None) -> str:
    with pytest.raises(DataError) as caught:
        factors(images, head)
    assert caught.value.code == "suv-not-computable"
    return caught.value.message


def test_activity_corrected_to_the_scan_start_is_divided_by_the_dose_that_is_left_then() -> None:
    found = factors(slices())
    assert found.factors == pytest.approx([DECAYED] * 3, rel=1e-12)
    assert (found.kind, codes(found)) == ("bw", [])
    assert "START" in found.how


def test_activity_corrected_to_the_administration_is_divided_by_the_whole_dose() -> None:
    found = factors(slices(DecayCorrection="ADMIN"), header(RadionuclideHalfLife=..., RadiopharmaceuticalStartTime=...))
    assert found.factors == pytest.approx([UNDECAYED] * 3, rel=1e-12)


@given(
    weight=st.floats(2, 300),
    dose_mbq=st.floats(2, 5000),
    half_life=st.sampled_from([597.9, 1221.8, 4062.6, 6586.2]),
    elapsed=st.integers(0, 2900),
    start=st.integers(0, 86_399),
)
def test_every_computable_series_follows_the_published_formula(
    weight: float, dose_mbq: float, half_life: float, elapsed: int, start: int
) -> None:
    def clock(second: int) -> str:
        second %= 86_400
        return f"{second // 3600:02d}{second // 60 % 60:02d}{second % 60:02d}"

    scan = start + elapsed
    time = {"SeriesTime": clock(scan), "AcquisitionTime": clock(scan)}
    day = "20240229" if scan < 86_400 else "20240301"
    head = header(
        PatientWeight=weight,
        RadionuclideTotalDose=dose_mbq * 1e6,
        RadionuclideHalfLife=half_life,
        RadiopharmaceuticalStartTime=clock(start),
    )
    found = factors(slices(1, SeriesDate=day, AcquisitionDate=day, **time), head)
    # SUV of 1 Bq/ml, as the concentration corrected to the administration over the dose a gram.
    at_administration = 1.0 * 2.718281828459045 ** (0.6931471805599453 * elapsed / half_life)
    assert found.factors[0] == pytest.approx(at_administration / (dose_mbq * 1e6 / (weight * 1000)), rel=1e-9)


@pytest.mark.parametrize("dated", [False, True], ids=["by the time alone", "by the full date and time"])
def test_an_administration_before_midnight_is_of_the_day_before(dated: bool) -> None:
    given = {"RadiopharmaceuticalStartTime": "230000"}
    if dated:
        given = {"RadiopharmaceuticalStartDateTime": "20240229230000.000000", "RadiopharmaceuticalStartTime": ...}
    times = {"SeriesTime": "004946.2", "AcquisitionTime": "004946.2"}
    assert factors(slices(**times), header(**given)).factors == pytest.approx([DECAYED] * 3, rel=1e-12)


def test_an_acquisition_without_a_date_after_midnight_is_of_the_day_after_the_series() -> None:
    times = {"SeriesTime": "235950", "AcquisitionTime": "000010", "AcquisitionDate": ...}
    found = factors(slices(**times), header(RadiopharmaceuticalStartTime="221003.8"))
    assert found.factors == pytest.approx([DECAYED] * 3, rel=1e-12)
    assert codes(found) == []


def test_the_full_date_and_time_of_administration_wins_over_the_time_and_a_difference_is_said() -> None:
    head = header(RadiopharmaceuticalStartDateTime="20240301100000", RadiopharmaceuticalStartTime="101000")
    found = factors(slices(), head)
    assert found.factors == pytest.approx([DECAYED] * 3, rel=1e-12)
    assert codes(found) == ["suv-start-times"] and "600 s" in found.findings[0].message


@pytest.mark.parametrize(
    "offsets",
    [
        pytest.param(("20240301090000+0000", "+0100"), id="given in UTC, scanned one hour east"),
        pytest.param(("20240301100000+0100", None), id="given with an offset, scanned without"),
        pytest.param(("20240301100000", "-0800"), id="given without an offset"),
    ],
)
def test_offsets_from_utc_are_taken_into_account(offsets: tuple[str, str | None]) -> None:
    head = header(RadiopharmaceuticalStartDateTime=offsets[0], RadiopharmaceuticalStartTime=...)
    if offsets[1]:
        head.TimezoneOffsetFromUTC = offsets[1]
    assert factors(slices(), head).factors == pytest.approx([DECAYED] * 3, rel=1e-12)


# A series time that is no scan start


def test_a_series_time_after_the_earliest_acquisition_gives_way_to_it() -> None:
    images = slices(SeriesTime="150000")
    found = factors(images[::-1])
    assert found.factors == pytest.approx([DECAYED] * 3, rel=1e-12)
    assert codes(found) == ["suv-scan-start"] and "11413.8 s after" in found.findings[0].message
    assert "earliest acquisition" in found.how


def test_ge_says_the_scan_start_of_a_processed_series_in_private() -> None:
    head = header()
    head.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", "20240301114946.20")
    found = factors(slices(SeriesTime="150000", AcquisitionTime="115500"), head)
    assert found.factors == pytest.approx([DECAYED] * 3, rel=1e-12)
    assert "(0009,100D)" in found.how


def test_a_private_scan_start_of_another_day_is_not_believed() -> None:
    head = header()
    head.private_block(0x0009, "GEMS_PETD_01", create=True).add_new(0x0D, "DT", "20200101114946.20")
    found = factors(slices(SeriesTime="150000"), head)
    assert found.factors == pytest.approx([DECAYED] * 3, rel=1e-12)
    assert codes(found) == ["suv-scan-start-odd", "suv-scan-start"]


def test_a_part_of_the_beds_is_still_corrected_to_the_series_time() -> None:
    # The bed starts 720 s after the scan; a frame of 120 s has its average activity 59.87 s after its start.
    images = slices(AcquisitionTime="120146.2", FrameReferenceTime=779_870.0)
    found = factors(images, header(ActualFrameDuration=120_000))
    assert found.factors == pytest.approx([DECAYED] * 3, rel=1e-12)
    assert codes(found) == []


def test_one_time_of_a_processed_series_is_corrected_to_the_start_of_the_first() -> None:
    images = slices(SeriesTime="150000")
    found = suv_factors(images[2:], lambda _: header(), images)
    assert found.factors == pytest.approx([DECAYED], rel=1e-12)
    assert "360 s" not in found.findings[0].message and "11413.8 s after" in found.findings[0].message


def test_a_series_opened_long_before_the_scan_gives_way_where_frame_reference_time_says_so() -> None:
    images = slices(SeriesTime="112946.2", AcquisitionTime="114946.2", FrameReferenceTime=59_870.0)
    found = factors(images, header(ActualFrameDuration=120_000))
    assert found.factors == pytest.approx([DECAYED] * 3, rel=1e-12)
    assert codes(found) == ["suv-scan-start"]


def test_a_series_time_long_before_the_scan_is_used_with_a_warning_where_nothing_else_tells() -> None:
    found = factors(slices(AcquisitionTime="120146.2"))
    assert found.factors == pytest.approx([DECAYED] * 3, rel=1e-12)
    assert codes(found) == ["suv-scan-start"] and "720 s before" in found.findings[0].message


# Values that are SUV, or counts


def test_values_in_g_ml_are_used_as_they_are() -> None:
    assert factors(slices(Units="GML", SUVType="BW"), Dataset()).factors == (1.0, 1.0, 1.0)


def test_values_in_g_ml_of_no_type_are_used_with_a_warning() -> None:
    found = factors(slices(Units="GML"))
    assert found.factors == (1.0, 1.0, 1.0) and codes(found) == ["suv-type-absent"]


@pytest.mark.parametrize("kind", ["LBM", "BSA", "IBW", "LBMJANMA", "NEW"])
def test_suv_by_anything_but_body_weight_is_refused(kind: str) -> None:
    assert f"SUVType is {kind}" in refused(slices(Units="GML", SUVType=kind))


def philips(**values: str) -> Callable[[Instance], Dataset]:
    """Return headers with private factors; a value with commas has one a slice."""

    def of(image: Instance) -> Dataset:
        head = header()
        block = head.private_block(0x7053, "Philips PET Private Group", create=True)
        for name, value in values.items():
            parts = value.split(",")
            block.add_new({"suv": 0x00, "activity": 0x09}[name], "DS", parts[int(image.path[0]) % len(parts)])
        return head

    return of


def test_counts_become_suv_by_the_private_factor_of_each_slice() -> None:
    found = suv_factors(slices(Units="CNTS"), philips(suv="0.00038,0.00039,0.0004", activity="2"))
    assert found.factors == (0.00038, 0.00039, 0.0004) and "(7053,1000)" in found.how


def test_counts_without_that_factor_become_activity_first() -> None:
    found = suv_factors(slices(Units="CNTS"), philips(activity="2.5"))
    assert found.factors == pytest.approx([2.5 * DECAYED] * 3, rel=1e-12) and "(7053,1009)" in found.how


def test_a_private_factor_of_zero_is_none() -> None:
    found = suv_factors(slices(Units="CNTS"), philips(suv="0", activity="2.5"))
    assert found.factors == pytest.approx([2.5 * DECAYED] * 3, rel=1e-12)
    with pytest.raises(DataError, match="CNTS"):
        suv_factors(slices(Units="CNTS"), philips(suv="0,0.0004,0.0004"))


def test_counts_without_a_factor_or_with_another_makers_element_are_refused() -> None:
    assert "Units is CNTS" in refused(slices(Units="CNTS"))
    head = header()
    head.private_block(0x7053, "SOMEBODY ELSE", create=True).add_new(0x00, "DS", "0.0004")
    assert "Units is CNTS" in refused(slices(Units="CNTS", Manufacturer="Philips Medical Systems"), head)


def test_a_factor_whose_creator_was_taken_away_is_believed_of_philips_only() -> None:
    head = header()
    head.add_new(0x70531000, "UN", b"0.0004")
    images = slices(Units="CNTS", Manufacturer="Philips Medical Systems")
    assert factors(images, head).factors == (0.0004, 0.0004, 0.0004)
    assert "Units is CNTS" in refused(slices(Units="CNTS"), head)


@pytest.mark.parametrize("units", ["CPS", "PCNT", "CM2ML", "MGMINML", "PROPCPS"])
def test_other_units_are_refused(units: str) -> None:
    assert f"Units is {units}" in refused(slices(Units=units))


# Enhanced PET


def enhanced(
    slopes: tuple[float, ...] = (2.0, 2.0), unit: str = "Bq/ml", **more: Any
) -> tuple[list[Instance], Dataset]:
    """Return frames with a rescale of slope 1, and a header whose real world values have other slopes."""
    head = header(
        RadionuclideTotalDose=370.0,
        RadiopharmaceuticalStartTime=...,
        RadiopharmaceuticalStartDateTime="20240301100000",
        AttenuationCorrected="YES",
        DecayCorrected="YES",
        DecayCorrectionDateTime="20240301114946.2",
        **more,
    )
    groups = []
    for slope in slopes:
        code, mapping, group = Dataset(), Dataset(), Dataset()
        code.CodeValue, code.CodingSchemeDesignator = unit, "UCUM"
        mapping.MeasurementUnitsCodeSequence = [code]
        mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = slope, 0.0
        group.RealWorldValueMappingSequence = [mapping]
        groups.append(group)
    head.PerFrameFunctionalGroupsSequence = groups
    facts = {
        "SOPClassUID": ENHANCED,
        "Modality": "PT",
        "AcquisitionDateTime": "20240301114946.2",
        "RescaleSlope": 1.0,
        "RescaleIntercept": 0.0,
    }
    return [Instance("e.dcm", 0, 0, 0, "", dict(facts), frame=n) for n in range(len(slopes))], head


def test_an_enhanced_dose_is_in_megabecquerel_and_the_mapping_of_each_frame_gives_the_activity() -> None:
    found = factors(*enhanced((2.0, 5.0)))
    assert found.factors == pytest.approx([2 * DECAYED, 5 * DECAYED], rel=1e-12)
    assert "DecayCorrectionDateTime" in found.how


def test_an_enhanced_image_whose_mapping_is_suv_needs_no_dose() -> None:
    images, head = enhanced((0.5, 0.25), unit="g/ml{SUVbw}")
    del head.RadiopharmaceuticalInformationSequence
    assert factors(images, head).factors == (0.5, 0.25)


def test_an_enhanced_image_that_says_units_and_decay_correction_as_a_classic_one_is_read_so() -> None:
    images, head = enhanced()
    del head.DecayCorrectionDateTime
    said = {"Units": "BQML", "DecayCorrection": "ADMIN"}
    images = [Instance(i.path, 0, 0, 0, "", i.attributes | said, frame=i.frame) for i in images]
    assert factors(images, head).factors == pytest.approx([UNDECAYED] * 2, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AttenuationCorrected", "NO", "AttenuationCorrected is NO"),
        ("DecayCorrected", "NO", "DecayCorrected is NO"),
        ("DecayCorrectionDateTime", None, "DecayCorrectionDateTime is absent"),
        ("PerFrameFunctionalGroupsSequence", [], "Units is absent"),
    ],
)
def test_an_enhanced_image_that_lacks_something_is_refused(name: str, value: Any, message: str) -> None:
    images, head = enhanced()
    setattr(head, name, value)
    assert message in refused(images, head)


def test_an_enhanced_dose_in_becquerel_and_a_classic_one_in_megabecquerel_are_refused() -> None:
    images, head = enhanced()
    head.RadiopharmaceuticalInformationSequence[0].RadionuclideTotalDose = 370e6
    assert "RadionuclideTotalDose is implausible in MBq" in refused(images, head)
    assert "RadionuclideTotalDose is implausible in Bq" in refused(slices(), header(RadionuclideTotalDose=370.0))


@pytest.mark.parametrize(("dose", "warned"), [(370e6, []), (370.0, ["suv-dose-unit"])])
def test_a_converted_image_has_its_dose_in_whichever_unit_is_plausible(dose: float, warned: list[str]) -> None:
    head, group, copied = header(RadionuclideTotalDose=dose), Dataset(), Dataset()
    copied.update(head)
    del head.RadiopharmaceuticalInformationSequence
    group.UnassignedSharedConvertedAttributesSequence = [copied]
    head.SharedFunctionalGroupsSequence = [group]
    found = factors(slices(SOPClassUID=LEGACY_CONVERTED), head)
    assert found.factors == pytest.approx([DECAYED] * 3, rel=1e-12)
    assert codes(found) == warned


# What is absent, 0 or implausible

ATTRIBUTES = [
    ({"CorrectedImage": ["ATTN"]}, {}, "CorrectedImage doesn't name DECY"),
    ({"CorrectedImage": "DECY"}, {}, "CorrectedImage doesn't name ATTN"),
    ({"CorrectedImage": ...}, {}, "CorrectedImage is absent"),
    ({"DecayCorrection": "NONE"}, {}, "DecayCorrection is NONE"),
    ({"DecayCorrection": ...}, {}, "DecayCorrection is absent"),
    ({"DecayCorrection": "SOMETIME"}, {}, "DecayCorrection is SOMETIME"),
    ({"Units": ...}, {}, "Units is absent"),
    ({"Modality": "CT"}, {}, "Modality is CT"),
    ({"AcquisitionTime": ...}, {}, "AcquisitionTime is absent"),
    ({"AcquisitionTime": "11"}, {}, "AcquisitionTime is absent or can't be read"),
    ({}, {"PatientWeight": ...}, "PatientWeight is absent"),
    ({}, {"PatientWeight": None}, "PatientWeight is absent"),
    ({}, {"PatientWeight": 0}, "PatientWeight is 0"),
    ({}, {"PatientWeight": -1}, "PatientWeight is negative"),
    ({}, {"PatientWeight": 0.3}, "PatientWeight is implausible"),
    ({}, {"PatientWeight": 74_123}, "PatientWeight is implausible"),
    ({}, {"RadiopharmaceuticalInformationSequence": ...}, "RadiopharmaceuticalInformationSequence is absent"),
    ({}, {"RadiopharmaceuticalInformationSequence": []}, "RadiopharmaceuticalInformationSequence is absent"),
    ({}, {"RadiopharmaceuticalInformationSequence": [Dataset(), Dataset()]}, "holds 2 radiopharmaceuticals"),
    ({}, {"RadionuclideTotalDose": ...}, "RadionuclideTotalDose is absent"),
    ({}, {"RadionuclideTotalDose": 0}, "RadionuclideTotalDose is 0"),
    ({}, {"RadionuclideTotalDose": -370e6}, "RadionuclideTotalDose is negative"),
    ({}, {"RadionuclideHalfLife": ...}, "RadionuclideHalfLife is absent"),
    ({}, {"RadionuclideHalfLife": 0}, "RadionuclideHalfLife is no positive"),
    ({}, {"RadionuclideHalfLife": 1.83}, "RadionuclideHalfLife is implausible"),
    ({}, {"RadiopharmaceuticalStartTime": ...}, "RadiopharmaceuticalStartTime is absent"),
    ({}, {"RadiopharmaceuticalStartTime": "soon"}, "RadiopharmaceuticalStartTime can't be read"),
    ({}, {"RadiopharmaceuticalStartTime": "120000"}, "more than 5 half-lives"),
    ({}, {"RadiopharmaceuticalStartDateTime": "20240301120000"}, "RadiopharmaceuticalStartDateTime is 613.8 s after"),
    ({}, {"RadiopharmaceuticalStartDateTime": "20230301100000"}, "more than 5 half-lives"),
    ({}, {"RadionuclideHalfLife": 45_724.0}, "RadiopharmaceuticalStartDateTime is absent"),
]


@pytest.mark.parametrize(("image", "head", "message"), ATTRIBUTES, ids=[row[2] for row in ATTRIBUTES])
def test_what_suv_needs_is_named_where_it_is_absent_or_wrong(
    image: dict[str, Any], head: dict[str, Any], message: str
) -> None:
    said = refused(slices(**image), header(**head))
    assert message in said
    # Never the patient's weight.
    assert "74" not in said.replace(message, "") and "0.3" not in said


def test_a_half_life_in_minutes_is_found_by_the_radionuclide() -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "C-111A1", "SRT", "^18^Fluorine"
    head = header(RadionuclideHalfLife=109.77)
    head.RadiopharmaceuticalInformationSequence[0].RadionuclideCodeSequence = [code]
    assert "RadionuclideHalfLife is 109.77 s" in refused(slices(), head)


def test_a_weight_that_is_no_number_is_refused_and_not_quoted(recwarn: pytest.WarningsRecorder) -> None:
    head = header()
    head[0x00101030] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(0x00101030), "DS", 4, b"74,5", 0, False, True)
    assert "PatientWeight can't be read" in refused(slices(), head)
    assert not [w for w in recwarn if "74,5" in str(w.message)]


@pytest.mark.parametrize("name", ["Units", "DecayCorrection"])
def test_slices_that_say_different_things_are_refused(name: str) -> None:
    other = {"Units": "GML", "DecayCorrection": "ADMIN"}
    assert f"{name} differs" in refused([*slices(2), *slices(3, **{name: other[name]})[2:]])


@pytest.mark.parametrize("name", ["PatientWeight", "RadionuclideTotalDose", "RadiopharmaceuticalStartTime"])
def test_files_that_say_different_things_are_refused(name: str) -> None:
    values = {"PatientWeight": 80.0, "RadionuclideTotalDose": 371e6, "RadiopharmaceuticalStartTime": "100100"}
    heads = [header(), header(), header(**{name: values[name]})]
    with pytest.raises(DataError, match=f"{name} differs"):
        suv_factors(slices(), lambda one: heads[int(one.path[0])])


def test_a_real_series_in_suv_is_used_as_it_is(shared_data: Any) -> None:
    folder = shared_data / "02_pet_rescale_per_slice" / "dicom"
    files = {p.name: p for p in sorted(folder.rglob("*")) if p.is_file()}
    found = [read_instance(path, name) for name, path in files.items()]
    images = [i for i in found if isinstance(i, Instance) and i.get("Modality") == "PT"]
    suv = suv_factors(images, lambda one: pydicom.dcmread(files[one.path], stop_before_pixels=True))
    assert set(suv.factors) == {1.0} and len(suv.factors) == len(images) > 20
