"""The patient's age and sex, read again from the source images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mdcli.dicom.headers import read_instance
from mdcli.dicom.patient import age_in_years, read_patient
from mdcli.dicom.sources import open_sources
from mdcli.errors import DataError, MissingError
from tests.made_series import COMPRESSED, LITTLE, UNCOMPRESSED, write_series


def series(folder, syntax=LITTLE, **more):
    """Write three slices; return (path, size) and header digest of each."""
    write_series(folder, np.zeros((3, 64, 64), np.uint16), syntax, **more)
    paths = sorted(folder.iterdir(), key=lambda path: path.name[1:])
    return [(path.name, path.stat().st_size) for path in paths], [
        read_instance(path, path.name).header_sha256 for path in paths
    ]


@pytest.mark.parametrize("syntax", [*UNCOMPRESSED.values(), *COMPRESSED.values()])
def test_each_image_says_its_own(tmp_path, syntax):
    files, headers = series(tmp_path, syntax, PatientAge=["047Y", ..., "006M"], PatientSex=["F", "", "O"])
    patient = read_patient(tmp_path, files, headers)
    assert (patient.ages, patient.sexes) == ((47.0, None, 0.5), ("F", None, "O"))
    assert patient.digest == open_sources(tmp_path, files).digest
    assert "47" not in repr(patient).replace(patient.digest, "") and "'F'" not in repr(patient)


@pytest.mark.parametrize(
    "text, years",
    [("005Y", 5), ("018M", 1.5), ("003W", 21 / 365.25), ("010D", 10 / 365.25), (" 18Y ", 18), ("000D", 0)],
)
def test_an_age_is_given_in_years(text, years):
    assert age_in_years(text) == pytest.approx(years)


@pytest.mark.parametrize("text", [None, "", "Y", "018", "0018Y", "-18Y", "18y", "\u0661\u0668Y", ["018Y", "019Y"], 18])
def test_what_is_no_age_is_unknown(text):
    assert age_in_years(text) is None


@given(st.text(max_size=6))
def test_any_text_is_an_age_or_none(text):
    found = age_in_years(text)
    assert found is None or 0 <= found <= 999


def test_a_missing_or_changed_image_is_refused(tmp_path):
    files, headers = series(tmp_path, PatientAge="047Y")
    path = tmp_path / files[1][0]
    content = path.read_bytes()
    path.write_bytes(content.replace(b"047Y", b"005Y"))
    with pytest.raises(DataError) as error:
        read_patient(tmp_path, files, headers)
    assert (error.value.code, error.value.numbers) == ("source-changed", {"slice": 1})
    path.write_bytes(content)
    (tmp_path / files[2][0]).unlink()
    with pytest.raises(MissingError) as missing:
        read_patient(tmp_path, files, headers)
    assert missing.value.code == "source-missing"
