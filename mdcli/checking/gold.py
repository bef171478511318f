"""`gold.yaml`: which files of a run are compared, how closely, and why any less closely than by default.

schema: md.gold/1
files:
  - file: labels.nii
    labels:
      - {value: 1, name: air, codes: ["99MDCLI:HU-BAND", "99MDCLI:AIR"]}
    tolerances: {dice: 0.99}
    reason: made on another processor, whose rounding differs at the edges
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from mdcli.checking.compare import Identity, Tolerances
from mdcli.errors import ConfigError, DataError, MissingError

if TYPE_CHECKING:
    from pydicom import Dataset

SCHEMA = "md.gold/1"
GOLD_FILE = "gold.yaml"
LABEL_SUFFIXES = (".nii", ".nii.gz")
SEG_SUFFIXES = (".dcm",)
_LARGEST_BYTES = 1 << 20
_HIGHEST = 1e6
# What names a patient, a person, an institution, or their order or stay, beside every person's name (VR PN) and every private
# attribute. Source: DICOM PS3.15 table E.1-1, of it what the modules of a SEG (PS3.3 A.51) and those of its sources can hold.
# Study and instance identifiers are not in it: gold is compared by the UIDs of its sources.
_IDENTIFYING = frozenset(
    {
        "PatientID",
        "IssuerOfPatientID",
        "IssuerOfPatientIDQualifiersSequence",
        "SourcePatientGroupIdentificationSequence",
        "GroupOfPatientsIdentificationSequence",
        "OtherPatientIDs",
        "OtherPatientIDsSequence",
        "ReferencedPatientSequence",
        "ReferencedPatientPhotoSequence",
        "PatientBirthDate",
        "PatientBirthTime",
        "PatientBirthDateInAlternativeCalendar",
        "PatientDeathDateInAlternativeCalendar",
        "PatientAddress",
        "PatientTelephoneNumbers",
        "PatientTelecomInformation",
        "PatientComments",
        "AdditionalPatientHistory",
        "CountryOfResidence",
        "RegionOfResidence",
        "MilitaryRank",
        "BranchOfService",
        "Occupation",
        "PatientReligiousPreference",
        "PatientInsurancePlanCodeSequence",
        "InsurancePlanIdentification",
        "MedicalRecordLocator",
        "PatientInstitutionResidence",
        "ScheduledPatientInstitutionResidence",
        "CurrentPatientLocation",
        "ConfidentialityConstraintOnPatientDataDescription",
        "AccessionNumber",
        "IssuerOfAccessionNumberSequence",
        "AdmissionID",
        "IssuerOfAdmissionID",
        "IssuerOfAdmissionIDSequence",
        "ServiceEpisodeID",
        "ServiceEpisodeDescription",
        "IssuerOfServiceEpisodeID",
        "IssuerOfServiceEpisodeIDSequence",
        "VisitComments",
        "PlacerOrderNumberImagingServiceRequest",
        "FillerOrderNumberImagingServiceRequest",
        "OrderCallbackPhoneNumber",
        "OrderCallbackTelecomInformation",
        "OrderEntererLocation",
        "RequestingService",
        "ImagingServiceRequestComments",
        "RequestAttributesSequence",
        "StudyDescription",
        "StudyComments",
        "ReferringPhysicianAddress",
        "ReferringPhysicianTelephoneNumbers",
        "ReferringPhysicianIdentificationSequence",
        "ConsultingPhysicianIdentificationSequence",
        "PhysiciansOfRecordIdentificationSequence",
        "PerformingPhysicianIdentificationSequence",
        "PhysiciansReadingStudyIdentificationSequence",
        "RequestingPhysicianIdentificationSequence",
        "ScheduledPerformingPhysicianIdentificationSequence",
        "IntendedRecipientsOfResultsIdentificationSequence",
        "OperatorIdentificationSequence",
        "ContentCreatorIdentificationCodeSequence",
        "PersonIdentificationCodeSequence",
        "PersonAddress",
        "PersonTelephoneNumbers",
        "PersonTelecomInformation",
        "ResponsibleOrganization",
        "HumanPerformerOrganization",
        "VerifyingOrganization",
        "CustodialOrganizationSequence",
        "InstitutionName",
        "InstitutionAddress",
        "InstitutionCodeSequence",
        "InstitutionalDepartmentName",
        "InstitutionalDepartmentTypeCodeSequence",
        "StationName",
        "ScheduledStationName",
        "PerformedStationName",
        "ClinicalTrialSponsorName",
        "ClinicalTrialProtocolID",
        "ClinicalTrialProtocolName",
        "ClinicalTrialSiteID",
        "ClinicalTrialSiteName",
        "ClinicalTrialSubjectID",
        "ClinicalTrialSubjectReadingID",
        "ClinicalTrialCoordinatingCenterName",
    }
)
# The sequences of a SEG go half as deep; this bounds work, not use.
_DEEPEST = 16


@dataclass(frozen=True)
class GoldFile:
    """One file to compare.

    Attributes:
        file: its name in the gold and in the run, `/` between folders.
        tolerances: what still counts as equal.
        reason: why they are looser than the defaults; None where they aren't.
        labels: of a label map, value to what it is said to be; None where the gold does not say.
    """

    file: str
    tolerances: Tolerances = field(default_factory=Tolerances)
    reason: str | None = None
    labels: Mapping[int, Identity] | None = None

    @property
    def kind(self) -> str:
        """Return `labels` or `seg`, by the suffix."""
        return "seg" if self.file.endswith(SEG_SUFFIXES) else "labels"


@dataclass(frozen=True)
class Gold:
    """A gold folder's list.

    Attributes:
        files: to compare, at least one.
        description: where it is from, or None.
    """

    files: tuple[GoldFile, ...]
    description: str | None = None


def looser(tolerances: Tolerances) -> list[str]:
    """Return the names of the tolerances that are looser than the defaults."""
    default = Tolerances()
    return [
        f.name
        for f in fields(Tolerances)
        if (getattr(tolerances, f.name) < getattr(default, f.name)) == (f.name == "dice")
        and getattr(tolerances, f.name) != getattr(default, f.name)
    ]


def read_gold(path: Path) -> Gold:
    """Read a `gold.yaml`.

    Raises:
        MissingError: `no-gold`.
        ConfigError: `bad-gold`.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        hint = "--write-gold makes one from a run"
        raise MissingError("no-gold", f"there is no {path.name} in the gold folder", hint=hint) from None
    return parse_gold(text)


def parse_gold(text: bytes | str) -> Gold:
    """Check the text of a `gold.yaml` and return what it says.

    Raises:
        ConfigError: `bad-gold`, with what is wrong; an unknown key names the near one.
    """
    import yaml

    if len(text) > _LARGEST_BYTES:
        raise _bad(f"it is larger than {_LARGEST_BYTES} bytes")
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _bad(f"it is not YAML: {' '.join(str(error).split())[:200]}") from error
    document = _mapping(document, "the file", ("schema", "files", "description"))
    if document.get("schema") != SCHEMA:
        raise _bad(f"its schema is {document.get('schema')!r:.80}, not {SCHEMA!r}")
    listed = document.get("files")
    if not isinstance(listed, list) or not listed:
        raise _bad("`files` is not a list of at least one file: nothing would be compared")
    files = tuple(_file(item) for item in listed)
    names = [file.file for file in files]
    for name in names:
        if names.count(name) > 1:
            raise _bad(f"{name} is listed twice")
    return Gold(files, _text(document.get("description"), "description"))


def _bad(message: str, hint: str | None = None) -> ConfigError:
    return ConfigError("bad-gold", f"{GOLD_FILE}: {message}", hint=hint)


def _mapping(value: Any, what: str, known: Iterable[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _bad(f"{what} is not a mapping")
    known = tuple(known)
    for key in value:
        if key not in known:
            near = get_close_matches(str(key), known, 1)
            raise _bad(
                f"{what} has the unknown key {key!r:.80}",
                f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}",
            )
    return value


def _text(value: Any, what: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not value.strip():
        raise _bad(f"`{what}` is not a text")
    return value.strip()


def _file(item: Any) -> GoldFile:
    item = _mapping(item, "an entry of `files`", ("file", "labels", "tolerances", "reason"))
    name = check_file_name(item.get("file"))
    tolerances = _tolerances(item.get("tolerances", {}), name)
    reason = _text(item.get("reason"), "reason")
    loose = looser(tolerances)
    if loose and reason is None:
        raise _bad(f"{name} allows more than the default in {', '.join(loose)}, without a `reason`")
    file = GoldFile(name, tolerances, reason, _labels(item.get("labels"), name))
    if file.labels is not None and file.kind == "seg":
        raise _bad(f"{name} says itself what its segments are: `labels` is for label maps")
    return file


def check_file_name(name: Any) -> str:
    """Return a file's name, if it stays within the folder and is of a form that can be compared.

    Raises:
        ConfigError: `bad-gold`.
    """
    if not isinstance(name, str) or not name:
        raise _bad(f"`file` is {name!r:.80}, not a file name")
    parts = PurePosixPath(name).parts
    if "/".join(parts) != name or ".." in parts or any(not c.isprintable() or c in "\\:" for c in name):
        raise _bad(f"{name!r:.200} is not the name of a file within the folder")
    if not name.endswith(LABEL_SUFFIXES + SEG_SUFFIXES):
        raise _bad(f"{name} is neither a label map (.nii, .nii.gz) nor a SEG (.dcm)")
    return name


def _tolerances(value: Any, file: str) -> Tolerances:
    value = _mapping(value, f"`tolerances` of {file}", (f.name for f in fields(Tolerances)))
    for name, number in value.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            hint = "YAML reads 1e-3 as a text: write 0.001" if isinstance(number, str) else None
            raise _bad(f"{name} of {file} is {number!r:.80}, not a number", hint)
        if not 0 <= number <= (1 if name == "dice" else _HIGHEST):
            raise _bad(f"{name} of {file} is {number!r:.80}, outside of what it can be")
    return Tolerances(**{name: float(number) for name, number in value.items()})


def _labels(value: Any, file: str) -> dict[int, Identity] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value:
        raise _bad(f"`labels` of {file} is not a list")
    found: dict[int, Identity] = {}
    for item in value:
        item = _mapping(item, f"a label of {file}", ("value", "name", "codes"))
        number, name, codes = item.get("value"), _text(item.get("name"), "name"), item.get("codes", [])
        if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= 65535 or number in found:
            raise _bad(f"a label of {file} has the value {number!r:.80}: each is a number of its own, from 1 to 65535")
        if name is None:
            raise _bad(f"label {number} of {file} has no name")
        if not isinstance(codes, list) or not all(isinstance(code, str) for code in codes):
            raise _bad(f"`codes` of label {number} of {file} is not a list of texts `scheme:value`")
        found[number] = Identity(name, tuple(codes))
    return found


def identities_of(segments: Mapping[str, Any]) -> dict[int, Identity]:
    """Return what a `segments.json` (`md.segments/1`) says its labels are.

    Raises:
        DataError: `bad-artifact` where it does not follow its schema.
    """
    try:
        return {
            int(segment["value"]): Identity(
                str(segment["name"]),
                tuple(f"{code['scheme']}:{code['value']}" for code in (segment["category"], segment["type"])),
            )
            for segment in segments["segments"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise DataError("bad-artifact", f"the segments file lacks {error}") from error


def gold_to_yaml(gold: Gold) -> str:
    """Return the text of a `gold.yaml`; only tolerances that differ from the default are written."""
    import yaml

    default = asdict(Tolerances())
    files = []
    for file in gold.files:
        entry: dict[str, Any] = {"file": file.file}
        if file.labels is not None:
            entry["labels"] = [
                {"value": value, "name": said.name, **({"codes": list(said.codes)} if said.codes else {})}
                for value, said in file.labels.items()
            ]
        loose = {name: number for name, number in asdict(file.tolerances).items() if number != default[name]}
        if loose:
            entry["tolerances"] = loose
        if file.reason is not None:
            entry["reason"] = file.reason
        files.append(entry)
    document: dict[str, Any] = {"schema": SCHEMA}
    if gold.description is not None:
        document["description"] = gold.description
    return yaml.safe_dump({**document, "files": files}, sort_keys=False, allow_unicode=True, width=120)


def refuse_identifiable(path: Path) -> None:
    """Refuse a DICOM object that says whose it is, at any depth of its sequences.

    Without a value in what names a patient, a person or an institution it is nobody's; with PatientIdentityRemoved
    (0012,0062) YES the values are taken for the dummies that de-identification puts there.

    Raises:
        DataError: `identifiable`, naming the attributes, never their values; `seg-broken` where it can't be read to its ends.
    """
    import pydicom

    try:
        with warnings.catch_warnings():
            # pydicom warns of a bad value by printing it, whatever is in it.
            warnings.simplefilter("ignore")
            header = pydicom.dcmread(path, stop_before_pixels=True)
            removed = "PatientIdentityRemoved" in header and _filled(header.get_item("PatientIdentityRemoved").value)
            found = [] if removed == b"YES" else _identifying(header)
    except OSError:
        raise
    except Exception as error:
        # Damaged bytes make pydicom raise nearly anything, often with the bytes, which may be a patient's.
        raise DataError("seg-broken", f"{path.name} can't be read ({type(error).__name__})") from error
    if found:
        listed = ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")
        raise DataError(
            "identifiable",
            f"{path.name} holds {listed}: a gold folder holds nobody's identity",
            hint="de-identify it (PatientIdentityRemoved YES), or keep label maps only",
        )


def _identifying(header: Dataset) -> list[str]:
    """Return the keywords of what identifies someone and has a value, each once."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_for_tag

    found: dict[str, None] = {}
    waiting = [(header, 0)]
    while waiting:
        dataset, depth = waiting.pop()
        if depth > _DEEPEST:
            raise ValueError("sequences in sequences without an end")
        # As they lie in the file: nothing is made of a value that is not a sequence.
        for tag, element in dataset.items():
            if not _filled(element.value):
                continue
            if tag.is_private:
                found["a private attribute"] = None
                continue
            unknown = element.VR in (None, "UN") and dictionary_has_tag(tag)
            vr = dictionary_VR(tag) if unknown else element.VR
            keyword = keyword_for_tag(tag)
            if vr == "PN" or keyword in _IDENTIFYING:
                found[keyword or str(tag)] = None
            elif vr == "SQ":
                waiting += [(item, depth + 1) for item in dataset[tag].value]
    return list(found)


def _filled(value: Any) -> Any:
    """Return a raw value without its padding: false where there is none."""
    return value.strip(b" \0") if isinstance(value, bytes) else value
