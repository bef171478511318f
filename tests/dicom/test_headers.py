"""Our header reader against pydicom, on real files, on made ones and on broken ones."""

import io
import struct
import warnings
import zlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from mdcli.dicom import headers
from mdcli.dicom.headers import KEYWORDS, Skipped, read_instance
from mdcli.dicom.instance import Instance

SYNTAXES = [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
PATIENT_GROUP = 0x0010


@pytest.fixture(autouse=True)
def quiet_pydicom():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def by_pydicom(dataset, keyword):
    """Return a value as pydicom has it, in plain Python."""
    tag = KEYWORDS[keyword][0]
    group = next((g for g in range(0x6000, 0x6020, 2) if (g, 0x10) in dataset), None)
    element = dataset[(group, 0x10)] if keyword == "OverlayRows" and group else dataset[tag]
    if element.VR in ("SQ", "OF", "OD", "OV", "OB", "OW"):
        return True if element.value else None
    several = isinstance(element.value, (MultiValue, list)) and len(element.value) > 1
    nothing = None if element.VR in ("DS", "IS") or not several else ""
    values = element.value if isinstance(element.value, (MultiValue, list)) else [element.value]
    plain = [plain_value(v, nothing) for v in values]
    if several and KEYWORDS[keyword][2] and all(isinstance(v, str) for v in plain):
        return "\\".join(map(str, values)).strip(" \0") or None
    return plain if several else plain[0] if plain else None


def plain_value(value, nothing):
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return int(value)
    text = str(value).strip(" \0") if value is not None else ""
    return text or nothing


def assert_as_pydicom(found, dataset):
    present = {k for k in KEYWORDS if KEYWORDS[k][0] >> 16 != 2 and KEYWORDS[k][0] in dataset}
    overlays = any((group, 0x10) in dataset for group in range(0x6000, 0x6020, 2))
    present = (present | {"OverlayRows"}) if overlays else present
    mine = {k: v for k, v in found.attributes.items() if KEYWORDS[k][0] >> 16 != 2}
    assert mine == {k: by_pydicom(dataset, k) for k in present}


def saved(dataset, syntax=ExplicitVRLittleEndian, **how):
    """Return the bytes of a data set as a file."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID") or "1.2.840.10008.5.1.4.1.1.2"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.get("SOPInstanceUID") or "1.2.3.4"
    if "PixelData" in dataset and syntax != JPEG2000Lossless:
        dataset["PixelData"].VR = "OW"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True, **how)
    return buffer.getvalue()


def small_ct():
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.5"
    dataset.Modality, dataset.Rows, dataset.Columns = "CT", 2, 3
    dataset.ImagePositionPatient = ["-1.5", "0", "2.25e1"]
    dataset.PixelRepresentation = 1
    dataset.PixelData = bytes(range(12))
    return dataset


def test_keywords_are_those_of_the_dictionary():
    for keyword, (tag, vr, single) in KEYWORDS.items():
        expected = 0x60000010 if keyword == "OverlayRows" else pydicom.datadict.tag_for_keyword(keyword)
        assert tag == expected, keyword
        assert vr == pydicom.datadict.dictionary_VR(tag), keyword
        assert single == (pydicom.datadict.dictionary_VM(tag) == "1"), keyword


def test_no_keyword_is_about_the_patient():
    assert not [k for k, (tag, vr, _) in KEYWORDS.items() if tag >> 16 == PATIENT_GROUP or vr == "PN"]


def test_every_value_of_the_shared_data_is_as_pydicom_reads_it(shared_data):
    compared = 0
    for path in sorted(shared_data.glob("*/dicom/**/*")):
        if not path.is_file():
            continue
        found = read_instance(path, path.name)
        if isinstance(found, Skipped):
            assert found.code in ("not-dicom", "dicomdir", "no-series"), (path, found)
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_as_pydicom(found, pydicom.dcmread(path, force=True, stop_before_pixels=True))
            dataset = pydicom.dcmread(path, force=True)
        raw = path.read_bytes()
        if found.pixel_length is not None:
            assert raw[found.pixel_offset :][: found.pixel_length] == dataset.PixelData[: found.pixel_length], path
        elif found.pixel_offset is not None:
            assert raw[found.pixel_offset :][:4] == b"\xfe\xff\x00\xe0", path
        assert found.size == len(raw)
        compared += 1
    assert compared > 400


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm",
        "MR_small.dcm",
        "MR_small_implicit.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_RLE.dcm",
        "image_dfl.dcm",
        "rtplan.dcm",
        "liver_1frame.dcm",
        "nested_priv_SQ.dcm",
        "priv_SQ.dcm",
        "UN_sequence.dcm",
        "JPEG2000.dcm",
        "reportsi.dcm",
        "waveform_ecg.dcm",
    ],
)
def test_files_of_every_kind_are_read_as_pydicom_reads_them(name):
    path = get_testdata_file(name)
    found = read_instance(path, name)
    if isinstance(found, Skipped):
        assert found.code == "no-series" and "SeriesInstanceUID" not in pydicom.dcmread(path)
        return
    assert_as_pydicom(found, pydicom.dcmread(path))


@pytest.mark.parametrize("syntax", SYNTAXES, ids=lambda s: s.name)
def test_the_four_uncompressed_syntaxes_say_the_same(syntax):
    data = saved(small_ct(), syntax)
    found = read_instance(data, "a.dcm")
    assert found.attributes == {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2",
        "SOPInstanceUID": "1.2.3.4",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.5",
        "Modality": "CT",
        "Rows": 2,
        "Columns": 3,
        "ImagePositionPatient": [-1.5, 0.0, 22.5],
        "PixelRepresentation": 1,
        "TransferSyntaxUID": str(syntax),
        "ImplementationVersionName": found.get("ImplementationVersionName"),
    }
    if syntax == DeflatedExplicitVRLittleEndian:
        assert (found.pixel_offset, found.pixel_length) == (None, None)
    else:
        assert data[found.pixel_offset :][: found.pixel_length] == bytes(range(12))


def test_the_header_digest_is_of_all_bytes_before_the_pixels():
    import hashlib

    data = saved(small_ct())
    found = read_instance(data, "a.dcm")
    assert found.header_sha256 == hashlib.sha256(data[: data.index(bytes(range(12)))]).hexdigest()
    report = small_ct()
    del report.PixelData
    data = saved(report)
    assert read_instance(data, "a.dcm").header_sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("explicit", [True, False], ids=["explicit", "implicit"])
@pytest.mark.parametrize("undefined", [True, False], ids=["undefined length", "defined length"])
def test_sequences_are_stepped_over_however_they_are_nested(explicit, undefined):
    inner = Dataset()
    inner.CodeValue, inner.Rows = "inside", 99
    dataset, nested = small_ct(), inner
    for _ in range(6):
        outer = Dataset()
        outer.AnatomicRegionSequence = Sequence([nested, Dataset()])
        for element in outer:
            element.is_undefined_length = undefined
        nested = outer
    dataset.AnatomicRegionSequence = Sequence([nested])
    dataset["AnatomicRegionSequence"].is_undefined_length = undefined
    dataset.ModalityLUTSequence = Sequence([inner])
    dataset.VOILUTSequence = Sequence([])
    for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
        dataset[keyword].is_undefined_length = undefined
    found = read_instance(saved(dataset, ExplicitVRLittleEndian if explicit else ImplicitVRLittleEndian), "a")
    assert (found.get("Rows"), found.attributes["ModalityLUTSequence"]) == (2, True)
    assert found.attributes["VOILUTSequence"] is None
    assert found.pixel_length == 12


def test_sequences_nested_without_end_are_damage_not_a_crash():
    deep = b"\x08\0\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 5000
    data = saved(small_ct())
    at = data.index(b"\x08\x00\x60\x00CS")
    found = read_instance(data[:at] + deep + data[at:], "a")
    assert (found.code, found.series_instance_uid) == ("damaged-header", None)


@pytest.mark.parametrize(
    "without",
    [pytest.param(0, id="preamble and meta header"), pytest.param(132, id="preamble")],
)
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian], ids=lambda s: s.name)
def test_a_file_without_preamble_or_meta_header_is_read(without, syntax):
    data = saved(small_ct(), syntax)
    if without == 0:
        buffer = io.BytesIO()
        implicit = syntax == ImplicitVRLittleEndian
        dataset = small_ct()
        dataset["PixelData"].VR = "OW"
        pydicom.dcmwrite(buffer, dataset, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        data = buffer.getvalue()
        assert b"DICM" not in data
    else:
        data = data[without:]
    found = read_instance(data, "a")
    assert (found.get("TransferSyntaxUID"), found.get("Rows"), found.pixel_length) == (str(syntax), 2, 12)


def test_wrong_value_representations_are_read_by_tag():
    data = saved(small_ct())
    data = data.replace(b"\x20\x00\x32\x00DS", b"\x20\x00\x32\x00LO").replace(
        b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00SS"
    )
    found = read_instance(data, "a")
    assert (found.get("ImagePositionPatient"), found.get("Rows")) == ([-1.5, 0.0, 22.5], 2)


@pytest.mark.parametrize(
    "vr, raw, expected",
    [(b"UI", b"1.2\\3.4\0", "1.2\\3.4"), (b"US", b"1\x002\x00", "1\x002"), (b"FD", b"12345678", "12345678")],
)
def test_a_uid_is_one_text_whatever_the_file_makes_of_it(vr, raw, expected):
    data = saved(small_ct())
    at = data.index(b"\x20\x00\x0e\x00UI")
    element = struct.pack("<HH2sH", 0x20, 0x0E, vr, len(raw)) + raw
    found = read_instance(data[:at] + element + data[at + 16 :], "a")
    assert found.get("SeriesInstanceUID") == expected
    assert found.pixel_length == 12


def test_unsigned_rows_beyond_32767_stay_positive_under_a_signed_vr():
    dataset = small_ct()
    dataset.Rows = 40000
    data = saved(dataset).replace(b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00SS")
    assert read_instance(data, "a").get("Rows") == 40000


def test_the_padding_value_is_signed_as_the_pixels_are_where_the_file_does_not_say():
    dataset = small_ct()
    dataset.PixelPaddingValue = -2000
    assert read_instance(saved(dataset, ImplicitVRLittleEndian), "a").get("PixelPaddingValue") == -2000
    dataset = small_ct()
    dataset.PixelRepresentation, dataset.PixelPaddingValue = 0, 63536
    assert read_instance(saved(dataset, ImplicitVRLittleEndian), "a").get("PixelPaddingValue") == 63536


@pytest.mark.parametrize(
    "text, expected",
    [
        ("0.1", 0.1),
        (" 1.50 ", 1.5),
        ("+2.E3", 2000.0),
        ("-.5", -0.5),
        ("0.3000000000000000444089209850062616169452667236328125"[:16], 0.30000000000000),
        ("", None),
        ("NaN", "NaN"),
        ("inf", "inf"),
        ("1e999", "1e999"),
        ("1_000", "1_000"),
        ("1,5", "1,5"),
        ("٣", "Ù£"),
        ("1\\\\2", [1.0, None, 2.0]),
    ],
)
def test_a_decimal_string_is_exactly_its_number_or_stays_text(text, expected):
    raw = text.encode()
    raw += b" " * (len(raw) % 2)
    element = struct.pack("<HH2sH", 0x18, 0x50, b"DS", len(raw)) + raw
    data = saved(small_ct())
    at = data.index(b"\x20\x00\x0d\x00UI")
    assert read_instance(data[:at] + element + data[at:], "a").attributes["SliceThickness"] == expected


@pytest.mark.parametrize(
    "text, expected",
    [("7", 7), (" -12 ", -12), ("3.0", 3), ("3.5", "3.5"), ("x", "x"), ("", None), ("9" * 70, "9" * 70)],
)
def test_an_integer_string_is_its_number_or_stays_text(text, expected):
    raw = text.encode()
    raw += b" " * (len(raw) % 2)
    element = struct.pack("<HH2sH", 0x20, 0x13, b"IS", len(raw)) + raw
    data = saved(small_ct())
    at = data.index(b"\x20\x00\x32\x00DS")
    assert read_instance(data[:at] + element + data[at:], "a").attributes["InstanceNumber"] == expected


@pytest.mark.parametrize(
    "charset, raw, expected",
    [
        ("ISO_IR 100", "Schädel".encode("latin-1"), "Schädel"),
        ("ISO_IR 192", "頭部".encode(), "頭部"),
        ("ISO_IR 144", "Череп".encode("iso8859_5"), "Череп"),
        ("GB18030", "头部".encode("gb18030"), "头部"),
        ("\\ISO 2022 IR 87", b"\x1b$B" + "頭部".encode("iso2022_jp")[3:-3] + b"\x1b(B", "頭部"),
    ],
)
def test_text_is_decoded_by_its_character_set(charset, raw, expected):
    dataset = small_ct()
    dataset.SpecificCharacterSet = charset.split("\\") if "\\" in charset else charset
    data = saved(dataset)
    element = struct.pack("<HH2sH", 0x08, 0x103E, b"LO", len(raw) + len(raw) % 2) + raw + b" " * (len(raw) % 2)
    at = data.index(b"\x20\x00\x0d\x00UI")
    assert read_instance(data[:at] + element + data[at:], "a").get("SeriesDescription") == expected


@pytest.mark.parametrize("charset", ["ISO_IR 9999", "nonsense", "ISO_IR 192"])
def test_text_that_its_character_set_does_not_fit_is_no_error(charset):
    dataset = small_ct()
    dataset.SpecificCharacterSet = charset
    data = saved(dataset)
    element = struct.pack("<HH2sH", 0x08, 0x103E, b"LO", 6) + b"M\xfcller"
    at = data.index(b"\x20\x00\x0d\x00UI")
    text = read_instance(data[:at] + element + data[at:], "a").get("SeriesDescription")
    assert text.startswith("M") and text.endswith("ller")


def test_the_patient_is_not_read_unless_asked_for():
    dataset = small_ct()
    dataset.PatientName, dataset.PatientID, dataset.PatientSex, dataset.PatientAge = "Canary^A", "C1", "F", "012Y"
    data = saved(dataset)
    assert "Canary" not in str(read_instance(data, "a")) and "C1" not in str(read_instance(data, "a"))
    assert read_instance(data, "a", {"PatientID": (0x00100020, "LO", True)}).get("PatientID") == "C1"


def test_an_overlay_group_and_float_pixels_are_seen():
    dataset = small_ct()
    dataset.add_new((0x6002, 0x0010), "US", 17)
    assert read_instance(saved(dataset), "a").get("OverlayRows") == 17
    dataset = small_ct()
    del dataset.PixelData
    dataset.FloatPixelData = bytes(24)
    found = read_instance(saved(dataset), "a")
    assert (found.get("FloatPixelData"), found.pixel_length) == (True, 24)
    assert found.size - found.pixel_offset == 24


@pytest.mark.parametrize(
    "data, code",
    [
        (b"", "empty-file"),
        (b"hello world\n", "not-dicom"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not-dicom"),
        (bytes(1000), "not-dicom"),
        (bytes(128) + b"DICM", "damaged-header"),
        (b"\x08\x00" + bytes(500), "not-dicom"),
        (b"\x00\x08" + bytes(500), "not-dicom"),
    ],
)
def test_what_is_no_dicom_is_skipped_with_its_reason(data, code):
    assert read_instance(data, "a").code == code


def test_a_file_cut_within_its_header_names_its_series():
    data = saved(small_ct())
    cut = data[: data.index(b"\x28\x00\x10\x00US") + 4]
    found = read_instance(cut, "a")
    assert (found.code, found.series_instance_uid) == ("damaged-header", "1.2.3.5")


def test_a_file_cut_within_its_pixels_keeps_what_its_header_claims():
    data = saved(small_ct())
    found = read_instance(data[:-5], "a")
    assert (found.size, found.pixel_offset + found.pixel_length) == (len(data) - 5, len(data))


def test_a_value_that_claims_more_than_the_file_is_damage():
    data = saved(small_ct()).replace(b"\x08\x00\x60\x00CS\x02\x00", b"\x08\x00\x60\x00CS\xff\xff")
    assert read_instance(data, "a").code == "damaged-header"


def test_a_deflated_file_is_inflated_no_further_than_its_pixels():
    plain = saved(small_ct())
    packed = saved(small_ct(), DeflatedExplicitVRLittleEndian)
    start = packed.index(b"1.2.840.10008.1.2.1.99") + 22
    meta_end = next(p for p in range(start, len(packed)) if _inflates(packed[p:]))
    body = zlib.decompressobj(-15).decompress(packed[meta_end:])
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    inner = bomb.compress(body) + bomb.compress(bytes(64 << 20)) + bomb.flush()
    found = read_instance(packed[:meta_end] + inner, "a")
    assert found.get("Rows") == read_instance(plain, "a").get("Rows")


def _inflates(data):
    try:
        return zlib.decompressobj(-15).decompress(data)[:4] == b"\x08\0\x16\0"
    except zlib.error:
        return False


def test_a_deflated_header_that_inflates_without_end_is_too_large(monkeypatch):
    monkeypatch.setattr(headers, "MAX_HEADER", 1 << 20)
    packed = saved(small_ct(), DeflatedExplicitVRLittleEndian)
    start = packed.index(b"1.2.840.10008.1.2.1.99") + 22
    meta_end = next(p for p in range(start, len(packed)) if _inflates(packed[p:]))
    element = struct.pack("<HH2sHI", 0x08, 0x0001, b"OB", 0, 1 << 30)
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    inner = bomb.compress(element) + bomb.compress(bytes(32 << 20)) + bomb.flush()
    assert read_instance(packed[:meta_end] + inner, "a").code == "header-too-large"


def test_an_element_larger_than_the_limit_is_too_large(monkeypatch):
    monkeypatch.setattr(headers, "MAX_HEADER", 1 << 20)
    dataset = small_ct()
    dataset.add_new((0x0009, 0x0010), "LO", "x")
    dataset.add_new((0x0009, 0x1000), "OB", bytes(2 << 20))
    assert read_instance(saved(dataset), "a").code == "header-too-large"


def test_a_fifo_is_not_waited_for(tmp_path):
    import os

    if not hasattr(os, "mkfifo"):
        pytest.skip("no FIFOs here")
    os.mkfifo(tmp_path / "fifo")
    assert read_instance(tmp_path / "fifo", "fifo").code == "not-a-file"


def test_a_file_that_is_not_there_is_unreadable(tmp_path):
    assert read_instance(tmp_path / "gone", "gone").code == "unreadable"


class Counted(io.BytesIO):
    read_bytes = 0

    def read(self, size=-1):
        data = super().read(size)
        self.read_bytes += len(data)
        return data


def test_no_more_than_the_head_of_a_file_is_read():
    dataset = small_ct()
    dataset.PixelData = bytes(4 << 20)
    file = Counted(saved(dataset))
    assert isinstance(read_instance(file, "a"), Instance)
    assert file.read_bytes <= 16 << 10


TEXTS = st.text(st.characters(codec="latin-1", exclude_categories=("Cc",), exclude_characters="\\"), max_size=20)
NUMBERS = st.floats(-1e6, 1e6).map(lambda x: float(f"{x:.6g}"))
VALUES = {
    "SH": TEXTS,
    "LO": TEXTS,
    "CS": st.text("ABCDEFGHIJ0123456789_ ", max_size=16),
    "DS": NUMBERS.map(lambda x: f"{x:.10g}"[:16]),
    "IS": st.integers(-(2**31), 2**31 - 1).map(str),
    "US": st.integers(0, 65535),
    "SS": st.integers(-32768, 32767),
    "UL": st.integers(0, 2**32 - 1),
    "FD": st.floats(allow_nan=False, allow_infinity=False),
    "UI": st.lists(st.integers(0, 999), min_size=2, max_size=12).map(lambda parts: ".".join(map(str, parts))),
    "DA": st.just("20260101"),
    "TM": st.just("120000.5"),
    "DT": st.just("20260101120000"),
}


@st.composite
def datasets(draw):
    dataset = small_ct()
    dataset.SpecificCharacterSet = "ISO_IR 100"
    names = [k for k, (tag, vr, _) in KEYWORDS.items() if vr in VALUES and 8 <= tag >> 16 < 0x6000]
    for keyword in draw(st.lists(st.sampled_from(names), max_size=12, unique=True)):
        tag, vr, single = KEYWORDS[keyword]
        if keyword in ("SpecificCharacterSet", "SeriesInstanceUID", "PixelRepresentation"):
            continue
        values = draw(st.lists(VALUES[vr], min_size=0, max_size=1 if single else 4))
        dataset.add_new(tag, vr, values[0] if len(values) == 1 else values or None)
    if draw(st.booleans()):
        item = Dataset()
        item.Rows, item.CodeMeaning = 5, draw(TEXTS)
        dataset.AnatomicRegionSequence = Sequence([item] * draw(st.integers(0, 3)))
        dataset["AnatomicRegionSequence"].is_undefined_length = draw(st.booleans())
    if draw(st.booleans()):
        dataset.add_new((0x0009, 0x0010), "LO", "private")
        dataset.add_new((0x0009, 0x1000), "OB", draw(st.binary(max_size=40000)))
    return dataset


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(datasets(), st.sampled_from(SYNTAXES))
def test_any_data_set_that_pydicom_writes_is_read_as_pydicom_reads_it(dataset, syntax):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = saved(dataset, syntax)
        found = read_instance(data, "a")
        assert isinstance(found, Instance)
        assert_as_pydicom(found, pydicom.dcmread(io.BytesIO(data)))


BASES = [
    "CT_small.dcm",
    "MR_small_implicit.dcm",
    "MR_small_bigendian.dcm",
    "MR_small_RLE.dcm",
    "image_dfl.dcm",
    "UN_sequence.dcm",
]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(BASES),
    st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=6)), max_size=4),
    st.integers(0, 6000),
)
def test_broken_bytes_give_an_instance_or_a_reason_and_never_a_crash(name, changes, cut):
    data = bytearray(Path(get_testdata_file(name)).read_bytes())
    for at, new in changes:
        data[at : at + len(new)] = new
    data = bytes(data[: len(data) - cut])
    found = read_instance(data, "a")
    if isinstance(found, Instance):
        assert found.pixel_offset is None or 0 < found.pixel_offset <= len(data)
        assert found.size == len(data)
        assert found.get("SeriesInstanceUID")
    else:
        assert found.code in ("empty-file", "not-dicom", "damaged-header", "header-too-large", "no-series", "dicomdir")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"\x08\0", b"\x02\0", b"\0\x08", bytes(128) + b"DICM"]), st.binary(max_size=600))
def test_random_bytes_after_a_good_start_never_crash(start, rest):
    assert isinstance(read_instance(start + rest, "a"), (Instance, Skipped))
