"""Find the image series in a DICOM folder or zip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mdcli.stage import Option, Sources, Stage

if TYPE_CHECKING:
    from mdcli.dicom.headers import Skipped
    from mdcli.dicom.instance import Instance
    from mdcli.dicom.rules import Rule
    from mdcli.dicom.series import Series
    from mdcli.dicom.tree import Listing
    from mdcli.workspace import Workspace

_NAMED = 5
_LISTED = 40
# Compared, never kept: series_to_json leaves out what is not in KEYWORDS.
_PATIENT = {"PatientID": (0x00100020, "LO", True), "IssuerOfPatientID": (0x00100021, "LO", True)}
_SKIPPED = {
    "not-dicom": "not a DICOM file",
    "empty-file": "empty",
    "dicomdir": "directory of a file-set, whose files are found anyway",
    "not-a-file": "no regular file (FIFO, socket, device)",
    "broken-link": "link that leads nowhere",
    "folder-link": "link to a folder that is scanned anyway, or within a linked folder",
    "nested-zip": "zip file within a zip file",
    "no-series": "DICOM without a series",
    "damaged-header": "DICOM with a damaged header",
    "header-too-large": "DICOM whose header is larger than is read",
    "zip-damaged": "damaged zip file or member",
    "zip-encrypted": "encrypted zip member",
}
# The rest may be a piece of the patient that is now missing: a warning.
_HARMLESS = frozenset(("not-dicom", "empty-file", "dicomdir", "not-a-file", "broken-link", "folder-link"))


_KINDS = ("localizer", "screen-save", "derived", "md")


@dataclass(frozen=True)
class Params:
    """What you can ask."""

    dicom: Annotated[Path | None, Option("Folder, zip file or file with the DICOM", source=True, metavar="PATH")] = None
    where: Annotated[
        str | None, Option("Which series, such as 'Modality = CT and SliceThickness <= 3'", metavar="RULE")
    ] = None
    series: Annotated[str | None, Option("The series with this SeriesInstanceUID", metavar="UID")] = None
    study: Annotated[
        str | None,
        Option("Only the study with this StudyInstanceUID", source="study_instance_uid", metavar="UID"),
    ] = None
    include: Annotated[
        tuple[str, ...],
        Option(
            "localizer, screen-save, derived or md: left out by default; may repeat",
            metavar="KIND",
            complete=lambda: _KINDS,
        ),
    ] = ()


def run(ws: Workspace, params: Params) -> None:
    """Read all headers, group them into series, choose one, write what later stages need of it."""
    from mdcli.dicom.headers import Skipped
    from mdcli.dicom.series import drop_copies, group_series, series_to_json, without_strangers

    rule, listing = _rule(params), _listing(params)
    with ws.span("headers"):
        found = _read(ws.progress(listing.names, "reading headers"), listing.root, rule)
    instances = [f for f in found if not isinstance(f, Skipped)]
    skipped = [*listing.skipped, *(f for f in found if isinstance(f, Skipped))]
    if params.study is not None:
        instances = [i for i in instances if i.get("StudyInstanceUID") == params.study]

    with ws.span("choose"):
        _refuse_unreadable(skipped)
        _say_skipped(ws, skipped)
        chosen = _choose(ws, group_series(instances), rule, params, len(found))
        _refuse_damaged(chosen, skipped)
        _refuse_two_patients(chosen)
        chosen, strangers = without_strangers(chosen)
        kept, copies = drop_copies(chosen.instances, lambda i: _file_digest(listing.root, i))
    if strangers:
        ws.note("not-image", f"{len(strangers)} objects of the series are no images and were left out")
    if copies:
        ws.note("exact-copies", f"{len(copies)} files are exact copies of others and were left out", files=len(copies))
    with ws.span("write"):
        ws.write_json("series", series_to_json(kept, copies, strangers))
        ws.set_source_root("series", listing.root)
    ws.sources_digest(_digest(found))


def _rule(params: Params) -> Rule | None:
    from mdcli.dicom.rules import parse
    from mdcli.dicom.series import INCLUDABLE
    from mdcli.errors import UsageError

    for kind in params.include:
        if kind not in INCLUDABLE:
            raise UsageError(
                "bad-include", f"--include {kind}: there is no such kind of series", hint=", ".join(INCLUDABLE)
            )
    return parse(params.where) if params.where is not None else None


def _listing(params: Params) -> Listing:
    from mdcli.dicom.tree import list_source
    from mdcli.errors import MissingError

    if params.dicom is None:
        raise MissingError("no-source", "--dicom is not given", hint="give --dicom PATH")
    return list_source(params.dicom)


def _read(names: Iterable[str], root: Path, rule: Rule | None) -> list[Instance | Skipped]:
    from mdcli.dicom.tree import read_entry

    extra = {**_PATIENT, **(rule.extra if rule else {})}
    return [found for name in names for found in read_entry(root, name, extra)]


def _digest(found: Sequence[Instance | Skipped]) -> str:
    """Return one SHA-256 of all that the choice depends on: every header, and what could not be read."""
    from mdcli.dicom.headers import Skipped
    from mdcli.records import sha256_of

    return sha256_of([[f.path, f.code] if isinstance(f, Skipped) else [f.path, f.size, f.header_sha256] for f in found])


def _file_digest(root: Path, instance: Instance) -> str:
    import hashlib

    from mdcli.dicom.opening import SourceFiles

    digest, left = hashlib.sha256(), instance.size
    with SourceFiles(root) as files, files.open(instance.path, instance.size) as file:
        while left > 0:
            part = file.read(min(left, 1 << 20))
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()


def _names(skipped: Sequence[Skipped]) -> str:
    from mdcli.dicom.opening import shown

    more = f" and {len(skipped) - _NAMED} more" if len(skipped) > _NAMED else ""
    return ", ".join(shown(s.path) for s in skipped[:_NAMED]) + more


def _refuse_unreadable(skipped: Sequence[Skipped]) -> None:
    from mdcli.errors import StorageError

    unreadable = [s for s in skipped if s.code == "unreadable"]
    if unreadable:
        count = len(unreadable)
        raise StorageError(
            "unreadable",
            f"{count} of the source's entries can't be read and may belong to the series: {_names(unreadable)}",
            hint="make them readable, or move them away",
            files=count,
        )


def _say_skipped(ws: Workspace, skipped: Sequence[Skipped]) -> None:
    by_code: dict[str, list[Skipped]] = {}
    for one in skipped:
        by_code.setdefault(one.code, []).append(one)
    for code, those in by_code.items():
        # Names stay out of the record: it holds no path outside the workspace.
        ws.run.reporter.event("info", f"skipped: {_names(those)}", code=code, stage=ws.run.stage, case=ws.name)
        said = f"{len(those)} skipped: {_SKIPPED.get(code, code)}"
        (ws.note if code in _HARMLESS else ws.warn)(code, said, files=len(those))


def _choose(ws: Workspace, series: list[Series], rule: Rule | None, params: Params, files: int) -> Series:
    from mdcli.dicom.series import INCLUDABLE, why_unsuitable
    from mdcli.errors import DataError, MissingError

    if not series:
        what = "of this study " if params.study else ""
        raise MissingError("no-dicom", f"there is no DICOM instance {what}among {files} files", files=files)
    # Who names a series means it, whatever kind of image it is.
    include = tuple(INCLUDABLE) if params.series else params.include
    reasons: list[str] = []
    left_out: Counter[str] = Counter()
    candidates, matching = 0, []
    for one in series:
        unsuitable = why_unsuitable(one, include)
        candidates += unsuitable is None
        if unsuitable is not None:
            left_out[unsuitable.code] += 1
            hint = f" (--include {unsuitable.code})" if unsuitable.code in INCLUDABLE else ""
            reasons.append(unsuitable.message + hint)
        elif params.series is not None and one.uid != params.series:
            reasons.append("it has another SeriesInstanceUID")
        elif rule is not None and (why := _why_not(one, rule)):
            left_out["no-match"] += 1
            reasons.append(why)
        else:
            matching.append(one)
            reasons.append("it matches")
    if not candidates:
        raise MissingError(
            "no-image-series", f"none of the {len(series)} series holds images to use:{_table(series, reasons)}"
        )
    if not matching:
        raise MissingError("no-match", f"none of the {len(series)} series matches:{_table(series, reasons)}")
    if len(matching) > 1:
        raise DataError(
            "several-series",
            f"{len(matching)} series could be meant:{_table(matching)}",
            hint=f"choose with {_a_choice(matching)}",
            series=[one.uid for one in matching],
        )
    if left_out and params.series is None:
        counts = ", ".join(f"{count} {code}" for code, count in sorted(left_out.items()))
        ws.note(
            "series-left-out", f"{sum(left_out.values())} of {len(series)} series were left out: {counts}", **left_out
        )
    return matching[0]


def _why_not(series: Series, rule: Rule) -> str | None:
    """Say which conditions an instance of the series fails; None where all its instances match."""
    from mdcli.dicom.opening import shown

    for attributes in series.attributes():
        if not rule.holds(attributes):
            failed = dict.fromkeys(
                f"{condition}: " + ("absent" if value is None else f"found {shown(_said(value))}")
                for condition, value in rule.why_not(attributes)
            )
            return "; ".join(failed)
    return None


def _said(value: Any) -> str:
    if isinstance(value, list):
        return "\\".join(map(_said, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(series: Sequence[Series], reasons: Sequence[str] = ()) -> str:
    lines = [f"\n  {n}. {one.describe()}" for n, one in enumerate(series[:_LISTED], 1)]
    lines = [f"{line}: {reason}" for line, reason in zip(lines, reasons, strict=False)] if reasons else lines
    return "".join(lines) + (f"\n  ... and {len(series) - _LISTED} more" if len(series) > _LISTED else "")


def _a_choice(series: Sequence[Series]) -> str:
    numbers = [one.instances[0].get("SeriesNumber") for one in series]
    if all(isinstance(n, int) for n in numbers) and len(set(numbers)) == len(numbers):
        return f"--where 'SeriesNumber = {numbers[0]}', or --series UID"
    return "--series UID"


def _refuse_damaged(chosen: Series, skipped: Sequence[Skipped]) -> None:
    from mdcli.dicom.opening import shown
    from mdcli.errors import DataError

    for one in skipped:
        if one.series_instance_uid == chosen.uid:
            raise DataError("damaged-instance", f"{shown(one.path)} belongs to the series, but {one.message}")


def _refuse_two_patients(chosen: Series) -> None:
    from mdcli.errors import DataError

    patients = {tuple(str(i.get(keyword, "")) for keyword in _PATIENT) for i in chosen.instances}
    if len(patients) > 1:
        message = f"the instances of the series belong to {len(patients)} patients by PatientID"
        raise DataError("several-patients", message, patients=len(patients))


def sources(ws: Workspace, params: Params) -> Sources | None:
    """Return the files of the source; a bad rule is an error before any of them is looked at."""
    _rule(params)
    listing = _listing(params)
    return Sources(listing.root, listing.names, digest=cache(lambda: _digest(_read(listing.names, listing.root, None))))


STAGE = Stage("select-series", Params, run, writes=("series",), version=1, sources=sources)
