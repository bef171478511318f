"""Read the patient's age and sex from the source images: to be held against what a model is made for, never to be kept or shown."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mdcli.dicom.opening import SourceFiles
from mdcli.dicom.sources import read_headers
from mdcli.errors import DataError

# As in `mdcli.dicom.headers.KEYWORDS`.
_KEYWORDS = {"PatientSex": (0x00100040, "CS", True), "PatientAge": (0x00101010, "AS", True)}
_UNITS_A_YEAR = {"Y": 1.0, "M": 12.0, "W": 365.25 / 7, "D": 365.25}


@dataclass(frozen=True)
class Patient:
    """What the images of one series say of the patient. Its text holds none of it.

    Attributes:
        ages: years, one for each image; None where it doesn't say.
        sexes: M, F, O or what else stands there, one for each image; None where it doesn't say.
        digest: SHA-256 over all headers, as `mdcli.dicom.sources.Sources` has it.
    """

    ages: tuple[float | None, ...] = field(repr=False)
    sexes: tuple[str | None, ...] = field(repr=False)
    digest: str


def read_patient(root: Path, files: Sequence[tuple[str, int]], headers: Sequence[str]) -> Patient:
    """Read age and sex.

    Args:
        root: the scanned folder or zip file.
        files: (path, size in bytes) as `series.json` has them.
        headers: `header_sha256` of each, as `series.json` has it.

    Raises:
        MissingError: `source-missing`.
        DataError: `source-unreadable`; `source-changed` for another size or another header.
    """
    ages, sexes = [], []
    digest = hashlib.sha256()
    with SourceFiles(root) as opened:
        for k, (found, header) in enumerate(zip(read_headers(opened, files, _KEYWORDS), headers, strict=True)):
            if found.header_sha256 != header:
                message = f"source {k + 1} has another header than when it was scanned"
                raise DataError("source-changed", message, hint="run md select-series again", slice=k)
            ages.append(age_in_years(found.get("PatientAge")))
            sexes.append(found.get("PatientSex") or None)
            digest.update(bytes.fromhex(found.header_sha256))
    return Patient(tuple(ages), tuple(sexes), digest.hexdigest())


def age_in_years(text: object) -> float | None:
    """Return what an Age String says, None where it is none.

    Source: DICOM PS3.5 section 6.2: three digits and D, W, M or Y. Fewer digits are as clear.

    >>> age_in_years("018M")
    1.5
    """
    found = re.fullmatch(r"([0-9]{1,3})([DWMY])", text.strip()) if isinstance(text, str) else None
    return int(found[1]) / _UNITS_A_YEAR[found[2]] if found else None


# As in `mdcli.dicom.headers.KEYWORDS`.
_WHO = {"PatientID": (0x00100020, "LO", True), "IssuerOfPatientID": (0x00100021, "LO", True)}


def patient_of(files: SourceFiles, file: tuple[str, int], header_sha256: str) -> str | None:
    """Return what stands for the patient of one image: equal for two images of one patient, and says nothing of them.

    Args:
        files: the scanned folder or zip file.
        file: (path, size in bytes) as `series.json` has it.
        header_sha256: as `series.json` has it.

    Returns:
        A SHA-256 over PatientID and its issuer, to be compared and not kept; None where the image names no patient.

    Raises:
        MissingError: `source-missing`.
        DataError: `source-unreadable`; `source-changed` for another size or another header.
    """
    (found,) = read_headers(files, [file], _WHO)
    if found.header_sha256 != header_sha256:
        message = "a source has another header than when it was scanned"
        raise DataError("source-changed", message, hint="run md select-series again")
    who = [str(found.get(keyword) or "").strip() for keyword in _WHO]
    return hashlib.sha256("\0".join(who).encode()).hexdigest() if who[0] else None


def patient_in(path: Path) -> str | None:
    """Return the same for one DICOM file: a SEG or an RTSTRUCT; None where it names no patient or can't be read."""
    from mdcli.dicom.headers import Skipped, read_instance

    found = read_instance(path, "it", _WHO)
    if isinstance(found, Skipped):
        return None
    who = [str(found.get(keyword) or "").strip() for keyword in _WHO]
    return hashlib.sha256("\0".join(who).encode()).hexdigest() if who[0] else None
