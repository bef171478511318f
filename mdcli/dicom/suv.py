"""Compute the factors that turn a PET series' values into body weight SUV (g/ml), or refuse and name the attribute.

SUVbw = activity concentration [Bq/ml] x weight [g] / dose [Bq], the dose decayed to the time that the pixels were corrected to.
Source: QIBA, SUV vendor-neutral pseudo-code; IBSI reference manual, SUV; DICOM PS3.3 C.8.9.1 (PET series), C.8.9.2 (PET isotope),
C.8.22.4 and C.8.22.6 (enhanced PET isotope and corrections), C.7.6.16.2.11 (real world value mapping).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from mdcli.dicom.finding import Finding
from mdcli.dicom.instance import Instance
from mdcli.dicom.opening import shown
from mdcli.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

ENHANCED = "1.2.840.10008.5.1.4.1.1.130"
LEGACY_CONVERTED = "1.2.840.10008.5.1.4.1.1.128.1"

WEIGHT_KG = (1.0, 400.0)
"""Outside of it a PatientWeight is taken for a slip: an animal's, grams, pounds and grams mixed up."""
DOSE_BQ = (1e6, 1e10)
"""1 MBq to 10 GBq. As Bq and as MBq no number is plausible twice, so a dose in the wrong unit is always found."""
HALF_LIFE_S = (60.0, 1e6)
MOST_HALF_LIVES = 5.0
"""From administration to the time that the pixels refer to: later, 97 % of the activity is gone, and a date is wrong."""
SAME_TIME_S = 60.0
"""Two times that say the same differ by no more: F-18 loses 0.6 % in it."""
HALF_LIFE_TOLERANCE = 0.05

# SNOMED CT and SNOMED RT code of the radionuclide (PS3.16 CID 4020) to its half-life in seconds (ENSDF, as in NuDat 3).
_HALF_LIVES = {
    "40565003": 1221.8,  # C-11, SCT
    "C-105A1": 1221.8,
    "21576001": 597.9,  # N-13, SCT
    "C-107A1": 597.9,
    "129504001": 122.2,  # O-15, SCT
    "C-B1038": 122.2,
    "77004003": 6586.2,  # F-18, SCT
    "C-111A1": 6586.2,
    "3932008": 45_724.0,  # Cu-64, SCT
    "C-127A2": 45_724.0,
    "35337001": 4062.6,  # Ga-68, SCT
    "C-131A3": 4062.6,
    "79197006": 75.5,  # Rb-82, SCT
    "C-159A2": 75.5,
    "63360001": 282_276.0,  # Zr-89, SCT
    "C-168A4": 282_276.0,
    "40937006": 360_806.0,  # I-124, SCT
    "C-114A5": 360_806.0,
}
_OTHER_SUV = ("LBM", "LBMJAMES128", "LBMJANMA", "BSA", "IBW")
# UCUM codes of PS3.16 CID 84 that this can use, as Units (0054,1001) has them.
_UCUM = {"Bq/ml": "BQML", "g/ml{SUVbw}": "GML"}
_PHILIPS, _PHILIPS_GROUP, _SUV_FACTOR, _ACTIVITY_FACTOR = "Philips PET Private Group", 0x7053, 0x00, 0x09
_GE, _GE_GROUP, _GE_SCAN_START = "GEMS_PETD_01", 0x0009, 0x0D
_DAY_S = 86_400.0
_CODE = "suv-not-computable"
_HINT = "without --suv the values keep their own unit"


@dataclass(frozen=True)
class Suv:
    """How a series becomes SUV.

    Attributes:
        factors: one a slice, in the order given: SUV in g/ml = factor x rescaled modality value.
        kind: `bw`, by body weight.
        how: which rule was used, in words; holds no value of the patient.
        findings: what a person may want to know.
    """

    factors: tuple[float, ...]
    kind: str
    how: str
    findings: tuple[Finding, ...] = ()


def suv_factors(
    slices: Sequence[Instance], header_of: Callable[[Instance], Dataset], series: Sequence[Instance] = ()
) -> Suv:
    """Return the factor of every slice from its rescaled modality value to body weight SUV.

    Args:
        slices: at least one, of one PET series, in the order wanted.
        header_of: returns the whole header of the file that a slice is in (pixels may be left out). It is asked once a file:
            Philips' private factors may differ by file, and no file may name another dose or weight.
        series: all images of the series, where the slices are some of them (one time, one bed): the scan started with the first.

    Raises:
        DataError: `suv-not-computable`, naming the attribute.
        ValueError: without a slice.
    """
    if not slices:
        raise ValueError("no slices")
    headers: dict[str, Dataset] = {}
    for one in slices:
        if one.get("Modality", "PT") != "PT":
            _refuse("Modality", f"is {shown(str(one.get('Modality')))}, not PT")
        if one.path not in headers:
            headers[one.path] = header_of(one)
    with warnings.catch_warnings():
        # pydicom warns about broken values by quoting them, and one may be the patient's weight.
        warnings.simplefilter("ignore")
        return _Series(slices, [headers[one.path] for one in slices], series).suv()


def _refuse(keyword: str, what: str, **numbers: Any) -> NoReturn:
    raise DataError(_CODE, f"there is no SUV: {keyword} {what}", hint=_HINT, **numbers)


@dataclass(frozen=True)
class _Moment:
    """A time as the file says it, and its offset from UTC where that is known."""

    naive: datetime
    offset: timedelta | None = None

    def seconds_since(self, other: _Moment) -> float:
        """Return seconds; a time without an offset is in the zone of the other (PS3.5 section 6.2, DT)."""
        naive = (self.naive - other.naive).total_seconds()
        if self.offset is None or other.offset is None:
            return naive
        return naive - (self.offset - other.offset).total_seconds()


@dataclass
class _Series:
    slices: Sequence[Instance]
    headers: Sequence[Dataset]
    others: Sequence[Instance] = ()
    findings: list[Finding] = field(default_factory=list)

    def suv(self) -> Suv:
        units, scales = self._units()
        if units == "GML":
            how = self._check_gml()
            factors = scales
        elif units == "CNTS":
            factors, how = self._from_counts(scales)
        elif units == "BQML":
            factor, how = self._from_activity()
            factors = [factor * scale for scale in scales]
        else:
            _refuse("Units", f"is {shown(units)}, from which no rule leads to SUV")
        return Suv(tuple(factors), "bw", how, tuple(self.findings))

    def _note(self, code: str, message: str, **numbers: Any) -> None:
        self.findings.append(Finding(code, message, numbers))

    # What is found where

    def _value(self, number: int, keyword: str) -> Any:
        """Return an attribute of a slice: of the scan, of the header, of a converted file's unassigned groups; else None."""
        found = self.slices[number].get(keyword)
        if found is not None:
            return found
        return next((v for d in self._places(number) if (v := _of(d, keyword)) is not None), None)

    def _places(self, number: int) -> Iterator[Dataset]:
        """Yield the data sets in which a slice's attribute may lie, top level first."""
        header, frame = self.headers[number], self.slices[number].frame
        yield header
        groups = []
        per_frame = _items(header, "PerFrameFunctionalGroupsSequence")
        if frame is not None and frame < len(per_frame):
            groups.append(per_frame[frame])
        groups += _items(header, "SharedFunctionalGroupsSequence")[:1]
        for group in groups:
            yield from _items(group, "UnassignedPerFrameConvertedAttributesSequence")[:1]
            yield from _items(group, "UnassignedSharedConvertedAttributesSequence")[:1]

    def _same(self, keyword: str) -> Any:
        """Return an attribute that is one for the series; None where it is absent everywhere."""
        values = [self._value(n, keyword) for n in range(len(self.slices))]
        first = _plain(values[0])
        if any(_plain(value) != first for value in values):
            _refuse(keyword, "differs between the slices")
        return values[0]

    def _words(self, keyword: str) -> list[str]:
        value = self._same(keyword)
        values = [] if value is None else [value] if isinstance(value, (str, float)) else list(value)
        return [str(v).strip().upper() for v in values]

    # Units

    def _units(self) -> tuple[str, list[float]]:
        """Return Units, and what a rescaled value of each slice is multiplied by to be in it (1 but for mapped values)."""
        units, scales = set(), []
        for number, one in enumerate(self.slices):
            unit, scale = str(self._value(number, "Units") or "").upper(), 1.0
            if not unit and one.get("RescaleType") in ("BQML", "GML", "CNTS"):
                unit = str(one.get("RescaleType"))
            if not unit or unit == "NONE":
                unit, scale = self._mapped_unit(number)
            units.add(unit)
            scales.append(scale)
        if len(units) > 1:
            _refuse("Units", "differs between the slices")
        return units.pop(), scales

    def _mapped_unit(self, number: int) -> tuple[str, float]:
        """Return the unit of a real world value mapping, by which enhanced PET says it, and how it scales the rescaled values.

        The mapping takes stored values, as the rescale does: with both linear, one is a multiple of the other or can't be used.
        """
        one, header = self.slices[number], self.headers[number]
        per_frame = _items(header, "PerFrameFunctionalGroupsSequence")
        groups = [per_frame[one.frame]] if one.frame is not None and one.frame < len(per_frame) else []
        groups += [*_items(header, "SharedFunctionalGroupsSequence")[:1], header]
        mappings = next((m for group in groups if (m := _items(group, "RealWorldValueMappingSequence"))), [])
        by_unit: dict[str, list[Dataset]] = {}
        for mapping in mappings:
            codes = _items(mapping, "MeasurementUnitsCodeSequence")
            unit = _UCUM.get(str(_of(codes[0], "CodeValue")).strip()) if codes else None
            if unit:
                by_unit.setdefault(unit, []).append(mapping)
        unit = next((u for u in ("GML", "BQML") if u in by_unit), None)
        if unit is None:
            _refuse("Units", "is absent, and no RealWorldValueMappingSequence maps to Bq/ml or to g/ml{SUVbw}")
        if len(by_unit[unit]) > 1:
            _refuse("RealWorldValueMappingSequence", "maps ranges of the stored values differently")
        mapping = by_unit[unit][0]
        slope = _number(_of(mapping, "RealWorldValueSlope"))
        intercept = _number(_of(mapping, "RealWorldValueIntercept"))
        rescale, shift = _number(one.get("RescaleSlope", 1.0)), _number(one.get("RescaleIntercept", 0.0))
        if not slope or not rescale or intercept is None or shift is None:
            _refuse("RealWorldValueMappingSequence", "has no slope and intercept that can be used")
        scale = slope / rescale
        if abs(intercept - scale * shift) > 1e-6 * abs(slope):
            _refuse("RealWorldValueMappingSequence", "is no multiple of the rescaled values")
        return unit, scale

    def _check_gml(self) -> str:
        kind = str(self._same("SUVType") or "").upper()
        if kind in _OTHER_SUV:
            _refuse("SUVType", f"is {kind}: the values are no body weight SUV")
        if kind and kind != "BW":
            _refuse("SUVType", f"is {shown(kind)}, not BW")
        mapped = self._value(0, "Units") is None and self.slices[0].get("RescaleType") is None
        if not kind and not mapped:
            # PS3.3 C.8.9.1: if absent, and Units is GML, then BW shall be assumed.
            self._note(
                "suv-type-absent", "Units is GML and SUVType is absent: the values are taken for body weight SUV"
            )
        if not self._is_corrected():
            self._note("suv-uncorrected", "CorrectedImage doesn't name both ATTN and DECY: the SUV may be no measure")
        return "the values are SUV by body weight already (Units GML)"

    # Corrections

    def _is_corrected(self) -> bool:
        return not self._missing_correction()

    def _missing_correction(self) -> tuple[str, str] | None:
        """Return the attribute that doesn't say so, and what it says; None where attenuation and decay are corrected."""
        enhanced = (("AttenuationCorrected", "ATTN"), ("DecayCorrected", "DECY"))
        said = {keyword: str(self._same(keyword) or "").upper() for keyword, _ in enhanced}
        corrected = self._words("CorrectedImage")
        for keyword, word in enhanced:
            if said[keyword]:
                if said[keyword] != "YES":
                    return keyword, f"is {shown(said[keyword])}, not YES"
            elif word not in corrected:
                return "CorrectedImage", f"doesn't name {word}" if corrected else f"is absent, so nothing says {word}"
        return None

    # Counts (Philips)

    def _from_counts(self, scales: Sequence[float]) -> tuple[list[float], str]:
        direct = [self._philips(n, _SUV_FACTOR) for n in range(len(self.slices))]
        if all(direct):
            if not self._is_corrected():
                self._note(
                    "suv-uncorrected", "CorrectedImage doesn't name both ATTN and DECY: the SUV may be no measure"
                )
            return [
                f * s for f, s in zip(direct, scales, strict=True) if f
            ], "counts by Philips' SUV factor (7053,1000)"
        to_activity = [self._philips(n, _ACTIVITY_FACTOR) for n in range(len(self.slices))]
        if any(direct) or not all(to_activity):
            _refuse("Units", "is CNTS, and Philips' factors (7053,1000) and (7053,1009) are absent or 0 in a slice")
        factor, how = self._from_activity()
        factors = [factor * f * s for f, s in zip(to_activity, scales, strict=True) if f]
        return factors, f"counts to Bq/ml by Philips' factor (7053,1009); {how}"

    def _philips(self, number: int, element: int) -> float | None:
        """Return a factor of Philips' private group, or None where it is absent or 0."""
        values = [_private(d, _PHILIPS_GROUP, _PHILIPS, element) for d in self._places(number)]
        value = next((v for v in values if v is not None), None)
        if value is None and str(self._value(number, "Manufacturer")).upper().startswith("PHILIPS"):
            value = _orphan(self.headers[number], _PHILIPS_GROUP, element)
        if value is None:
            return None
        factor = _number(value)
        if factor is None or factor < 0:
            _refuse(f"(7053,10{element:02X})", "is no positive number")
        return factor or None

    # Activity

    def _from_activity(self) -> tuple[float, str]:
        """Return the factor from Bq/ml, and how it was found."""
        if missing := self._missing_correction():
            _refuse(*missing)
        weight_g = 1000.0 * self._weight()
        source = self._source()
        dose = self._dose(source)
        corrected_to = self._same("DecayCorrectionDateTime")
        correction = str(self._same("DecayCorrection") or "").upper()
        enhanced = self.slices[0].get("SOPClassUID") == ENHANCED
        half_life = 0.0 if correction == "ADMIN" and not corrected_to else self._half_life(source)
        if enhanced and corrected_to is not None:
            reference = self._moment(None, None, corrected_to)
            if reference is None:
                _refuse("DecayCorrectionDateTime", "can't be read")
            how = "Bq/ml, decay corrected to DecayCorrectionDateTime"
        elif correction == "ADMIN":
            return weight_g / dose, "Bq/ml, decay corrected to the administration (DecayCorrection ADMIN)"
        elif correction == "START":
            reference, how = self._scan_start(half_life)
            how = f"Bq/ml, decay corrected to the scan start (DecayCorrection START), {how}"
        elif correction == "NONE":
            _refuse("DecayCorrection", "is NONE")
        elif not correction:
            _refuse("DecayCorrectionDateTime" if enhanced else "DecayCorrection", "is absent")
        else:
            _refuse("DecayCorrection", f"is {shown(correction)}, neither START nor ADMIN")
        decay_s = self._decay_seconds(source, reference, half_life)
        return weight_g / (dose * 2.0 ** (-decay_s / half_life)), how

    def _weight(self) -> float:
        value = self._same("PatientWeight")
        weight = _number(value)
        if value is None or str(value).strip() == "":
            _refuse("PatientWeight", "is absent")
        if weight is None:
            _refuse("PatientWeight", "can't be read")
        if weight <= 0:
            _refuse("PatientWeight", "is 0" if weight == 0 else "is negative")
        if not WEIGHT_KG[0] <= weight <= WEIGHT_KG[1]:
            _refuse("PatientWeight", f"is implausible: not within {WEIGHT_KG[0]:g} to {WEIGHT_KG[1]:g} kg")
        return weight

    def _source(self) -> Dataset:
        """Return the item that describes the one radiopharmaceutical."""
        keyword = "RadiopharmaceuticalInformationSequence"
        found: list[Dataset] = []
        for number in range(len(self.slices)):
            items = next((i for d in self._places(number) if (i := _items(d, keyword))), [])
            if not items:
                _refuse(keyword, "is absent or empty")
            if len(items) > 1:
                _refuse(keyword, f"holds {len(items)} radiopharmaceuticals", radiopharmaceuticals=len(items))
            found.append(items[0])
        for name in (
            "RadionuclideTotalDose",
            "RadionuclideHalfLife",
            "RadiopharmaceuticalStartDateTime",
            "RadiopharmaceuticalStartTime",
        ):
            if len({_plain(_of(item, name)) for item in found}) > 1:
                _refuse(name, "differs between the slices")
        return found[0]

    def _dose(self, source: Dataset) -> float:
        """Return the dose in Bq."""
        keyword = "RadionuclideTotalDose"
        value = _of(source, keyword)
        dose = _number(value)
        if value is None:
            _refuse(keyword, "is absent")
        if dose is None:
            _refuse(keyword, "can't be read")
        if dose <= 0:
            _refuse(keyword, "is 0" if dose == 0 else "is negative")
        in_bq, in_mbq = (DOSE_BQ[0] <= d <= DOSE_BQ[1] for d in (dose, dose * 1e6))
        sop_class = self.slices[0].get("SOPClassUID")
        if sop_class == LEGACY_CONVERTED:
            # PS3.3 A.72 has no isotope module: writers copy the old one, which is in Bq, or fill in the enhanced one, in MBq.
            if in_mbq:
                self._note("suv-dose-unit", "RadionuclideTotalDose of the converted image is plausible in MBq only")
                return dose * 1e6
            if in_bq:
                return dose
            _refuse(keyword, "is implausible in Bq and in MBq")
        unit, right, other, is_other = (
            ("MBq", in_mbq, "Bq", in_bq) if sop_class == ENHANCED else ("Bq", in_bq, "MBq", in_mbq)
        )
        if not right:
            _refuse(
                keyword,
                f"is implausible in {unit}, its unit here" + (f"; it seems to be in {other}" if is_other else ""),
            )
        return dose * 1e6 if unit == "MBq" else dose

    def _half_life(self, source: Dataset) -> float:
        """Return the half-life in seconds, as the header has it: it is what the scanner corrected with."""
        keyword = "RadionuclideHalfLife"
        value = _of(source, keyword)
        half_life = _number(value)
        if value is None:
            _refuse(keyword, "is absent")
        if half_life is None or half_life <= 0:
            _refuse(keyword, "is no positive number")
        if not HALF_LIFE_S[0] <= half_life <= HALF_LIFE_S[1]:
            _refuse(keyword, f"is implausible in seconds: {half_life:g}", seconds=half_life)
        known = _known_half_life(source)
        if known is not None and abs(half_life - known) > HALF_LIFE_TOLERANCE * known:
            _refuse(keyword, f"is {half_life:g} s, but the radionuclide by its code has {known:g} s", seconds=half_life)
        return half_life

    # Times

    def _offset(self) -> timedelta | None:
        value = self._same("TimezoneOffsetFromUTC")
        return _zone(str(value).strip()) if value is not None else None

    def _moment(self, date: Any, time: Any, both: Any) -> _Moment | None:
        """Return the time that DA and TM, or DT, say; None where they are absent, broken, or don't say minutes."""
        if both is not None:
            return _date_time(str(both), self._offset())
        if date is None or time is None:
            return None
        day, clock = _day(str(date)), _clock(str(time))
        return None if day is None or clock is None else _Moment(day + clock, self._offset())

    def _acquired(self, number: int, series: _Moment | None) -> _Moment:
        """Return when the acquisition of a slice started."""
        found, keyword = self._acquired_of(partial(self._value, number), self.slices[number].frame, series)
        if found is None:
            _refuse(keyword, "is absent or can't be read in a slice")
        return found

    def _acquired_of(
        self, value: Callable[[str], Any], frame: int | None, series: _Moment | None
    ) -> tuple[_Moment | None, str]:
        """Return when an acquisition started, None where that isn't told, and the attribute that tells it."""
        date_time, date, time = value("AcquisitionDateTime"), value("AcquisitionDate"), value("AcquisitionTime")
        if date_time is not None and (frame is not None or time is None):
            return self._moment(None, None, date_time), "AcquisitionDateTime"
        if date is not None or time is None:
            return self._moment(date, time, None), "AcquisitionTime"
        found = self._moment(value("SeriesDate"), time, None)
        # Without a date it is the series', or the day after that.
        if found is not None and series is not None and found.seconds_since(series) < -_DAY_S / 2:
            found = _Moment(found.naive + timedelta(days=1), found.offset)
        return found, "AcquisitionTime"

    def _scan_start(self, half_life: float) -> tuple[_Moment, str]:
        """Return the time that DecayCorrection START stands for, and where it comes from.

        It is the series time where that isn't after the earliest acquisition. A series that was processed later has a later time:
        then GE's private scan start, else the earliest acquisition (QIBA). PS3.3 C.8.9.1.1.5 says acquisition start, and
        C.8.9.1.1.2 that the series time is what FrameReferenceTime counts from: where a series time is long before all
        acquisitions, FrameReferenceTime tells which of the two it is.
        """
        stated = {self._series_text(n) for n in range(len(self.slices))}
        series = (
            self._moment(self._value(0, "SeriesDate"), self._value(0, "SeriesTime"), None) if len(stated) == 1 else None
        )
        acquired = [self._acquired(n, series) for n in range(len(self.slices))]
        first = 0
        for number, moment in enumerate(acquired):
            if moment.seconds_since(acquired[first]) < 0:
                first = number
        earliest = acquired[first]
        after_start = self._frame_start_s(first, half_life)
        for one in self.others:
            other, _ = self._acquired_of(one.get, one.frame, series)
            if other is not None and other.seconds_since(earliest) < 0:
                earliest, after_start = other, None
        if series is None:
            self._note(
                "suv-scan-start", "SeriesTime can't be used: the earliest acquisition is taken for the scan start"
            )
            return earliest, "taken from the earliest acquisition"
        gap = earliest.seconds_since(series)
        if gap >= 0:
            return self._start_before(series, earliest, gap, after_start)
        said = f"SeriesTime is {-gap:g} s after the earliest acquisition"
        private = self._ge_start()
        if private is not None:
            if -SAME_TIME_S <= earliest.seconds_since(private) <= _DAY_S / 2:
                self._note("suv-scan-start", f"{said}: GE's private scan start (0009,100D) is used", seconds=-gap)
                return private, "taken from GE's private scan start (0009,100D)"
            self._note(
                "suv-scan-start-odd", "GE's private scan start (0009,100D) doesn't fit the acquisitions: not used"
            )
        self._note("suv-scan-start", f"{said}: the earliest acquisition is taken for the scan start", seconds=-gap)
        return earliest, "taken from the earliest acquisition"

    def _series_text(self, number: int) -> tuple[str, str]:
        return str(self._value(number, "SeriesDate")), str(self._value(number, "SeriesTime"))

    def _start_before(
        self, series: _Moment, earliest: _Moment, gap: float, after_start: float | None
    ) -> tuple[_Moment, str]:
        """Choose between a series time and an acquisition that starts `gap` seconds later; `after_start` by FrameReferenceTime."""
        if gap <= SAME_TIME_S:
            return series, "taken from SeriesTime"
        if after_start is None:
            self._note(
                "suv-scan-start",
                f"SeriesTime is {gap:g} s before the earliest acquisition, and nothing says which is the scan start: "
                "SeriesTime is used",
                seconds=gap,
            )
        elif abs(after_start) <= SAME_TIME_S:
            self._note(
                "suv-scan-start",
                f"SeriesTime is {gap:g} s before the earliest acquisition, from which FrameReferenceTime counts: that is used",
                seconds=gap,
            )
            return earliest, "taken from the earliest acquisition"
        elif abs(after_start - gap) > SAME_TIME_S:
            self._note(
                "suv-scan-start",
                f"SeriesTime is {gap:g} s before the earliest acquisition, {after_start:g} s by FrameReferenceTime: "
                "SeriesTime is used",
                seconds=gap,
            )
        return series, "taken from SeriesTime"

    def _frame_start_s(self, number: int, half_life: float) -> float | None:
        """Return how long after the scan start the acquisition of a slice started, by FrameReferenceTime; None if it is not told.

        FrameReferenceTime is when the activity was what its average over the frame is, ln(x / (1 - exp(-x))) / lambda into the
        frame with x = lambda x duration, or the frame's middle (PS3.3 C.8.9.4.1.5): seconds apart.
        """
        reference = _number(self._value(number, "FrameReferenceTime"))
        duration = _number(self._value(number, "ActualFrameDuration"))
        if not reference or reference < 0 or not duration or duration < 0:
            return None
        decay = math.log(2) / half_life
        x = decay * duration / 1000
        return reference / 1000 - math.log(x / -math.expm1(-x)) / decay

    def _ge_start(self) -> _Moment | None:
        values = (_private(d, _GE_GROUP, _GE, _GE_SCAN_START) for d in self._places(0))
        value = next((v for v in values if v is not None), None)
        return None if value is None else _date_time(str(value), self._offset())

    def _decay_seconds(self, source: Dataset, reference: _Moment, half_life: float) -> float:
        """Return the seconds from administration to the time that the pixels refer to."""
        date_time, time = _of(source, "RadiopharmaceuticalStartDateTime"), _of(source, "RadiopharmaceuticalStartTime")
        most = MOST_HALF_LIVES * half_life
        if date_time is not None:
            keyword = "RadiopharmaceuticalStartDateTime"
            given = self._moment(None, None, date_time)
            if given is None:
                _refuse(keyword, "can't be read")
            elapsed = reference.seconds_since(given)
            clock = _clock(str(time)) if time is not None else None
            if clock is not None:
                apart = abs((given.naive - _midnight(given.naive) - clock).total_seconds())
                apart = min(apart, _DAY_S - apart)
                if apart > SAME_TIME_S:
                    self._note(
                        "suv-start-times",
                        f"{keyword} and RadiopharmaceuticalStartTime differ by {apart:g} s",
                        seconds=apart,
                    )
        else:
            keyword = "RadiopharmaceuticalStartTime"
            if time is None:
                _refuse(keyword, "is absent, and so is RadiopharmaceuticalStartDateTime")
            clock = _clock(str(time))
            if clock is None:
                _refuse(keyword, "can't be read")
            # Without a date it is the last such time before the scan, which may be of the day before.
            elapsed = reference.seconds_since(_Moment(_midnight(reference.naive) + clock, reference.offset))
            elapsed += _DAY_S if elapsed < 0 else 0
            if elapsed + _DAY_S <= most:
                _refuse(
                    "RadiopharmaceuticalStartDateTime",
                    f"is absent: with a half-life of {half_life:g} s the day must be known",
                )
        if elapsed < 0:
            _refuse(keyword, f"is {-elapsed:g} s after the time that the pixels are corrected to", seconds=elapsed)
        if elapsed > most:
            text = f"is {elapsed:g} s before the time that the pixels are corrected to, more than {MOST_HALF_LIVES:g} half-lives"
            _refuse(keyword, text, seconds=elapsed)
        return elapsed


def _of(dataset: Dataset, keyword: str) -> Any:
    """Return an attribute's value; None where it is absent or empty, NaN where it is so broken that pydicom can't give it."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom converts on access, and raises many kinds on broken values
        return math.nan
    return None if value is None or (isinstance(value, str) and not value.strip()) else value


def _items(dataset: Dataset, keyword: str) -> list[Dataset]:
    from pydicom.sequence import Sequence as Items

    value = _of(dataset, keyword)
    return list(value) if isinstance(value, Items) else []


def _private(dataset: Dataset, group: int, creator: str, element: int) -> Any:
    """Return a private element's value by its creator; None where it is absent."""
    try:
        return _text(dataset.private_block(group, creator)[element].value)
    except Exception:  # KeyError where it is absent, and whatever pydicom raises on broken values
        return None


def _orphan(dataset: Dataset, group: int, element: int) -> Any:
    """Return the value of a private element whose creator an anonymizer took away; None where any creator is left."""
    try:
        if any((group, block) in dataset for block in range(0x10, 0x100)):
            return None
        return _text(dataset[group, 0x1000 + element].value)
    except Exception:  # as in _private
        return None


def _text(value: Any) -> Any:
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return value.strip(" \0") if isinstance(value, str) else value


def _plain(value: Any) -> Any:
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _known_half_life(source: Dataset) -> float | None:
    codes = _items(source, "RadionuclideCodeSequence")
    return _HALF_LIVES.get(str(_of(codes[0], "CodeValue")).strip()) if codes else None


def _midnight(moment: datetime) -> datetime:
    return moment.replace(hour=0, minute=0, second=0, microsecond=0)


def _day(text: str) -> datetime | None:
    """Read a DA (PS3.5 table 6.2-1; with points it is ACR-NEMA's)."""
    match = re.fullmatch(r"(\d{4})\.?(\d{2})\.?(\d{2})", text.strip(), re.ASCII)
    try:
        return datetime(*map(int, match.groups())) if match else None  # type: ignore[arg-type]
    except ValueError:
        return None


def _clock(text: str) -> timedelta | None:
    """Read a TM that says hours and minutes at least."""
    match = re.fullmatch(r"(\d{2}):?(\d{2})(?::?(\d{2})(?:\.(\d{1,6}))?)?", text.strip(), re.ASCII)
    if not match:
        return None
    hours, minutes, seconds, fraction = (part or "0" for part in match.groups())
    # A leap second is written as 60.
    if int(hours) > 23 or int(minutes) > 59 or int(seconds) > 60:
        return None
    return timedelta(
        hours=int(hours), minutes=int(minutes), seconds=int(seconds), microseconds=int(fraction.ljust(6, "0"))
    )


def _zone(text: str) -> timedelta | None:
    match = re.fullmatch(r"([+-])(\d{2})(\d{2})", text, re.ASCII)
    if not match:
        return None
    offset = timedelta(hours=int(match[2]), minutes=int(match[3]))
    return -offset if match[1] == "-" else offset


def _date_time(text: str, offset: timedelta | None) -> _Moment | None:
    """Read a DT that says hours and minutes at least; without an offset of its own it has the data set's."""
    match = re.fullmatch(r"(\d{8})(\d{4}(?:\d{2}(?:\.\d{1,6})?)?)([+-]\d{4})?", text.strip(), re.ASCII)
    if not match:
        return None
    day, clock = _day(match[1]), _clock(match[2])
    if day is None or clock is None:
        return None
    return _Moment(day + clock, _zone(match[3]) if match[3] else offset)
