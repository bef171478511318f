"""Find the image series in a DICOM folder or zip."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mdcli.stage import Option, Sources, Stage

if TYPE_CHECKING:
    from mdcli.dicom.headers import Skipped
    from mdcli.dicom.instance import Instance
    from mdcli.dicom.opening import SourceFiles
    from mdcli.dicom.selection import Candidate, Judgement, Selection
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


_UNNAMED = "series"


def _kinds() -> Iterable[str]:
    from mdcli.dicom.series import INCLUDABLE

    return INCLUDABLE


def _preferences() -> Iterable[str]:
    from mdcli.dicom.selection import PREFERENCES

    return PREFERENCES


@dataclass(frozen=True)
class Params:
    """What you can ask."""

    dicom: Annotated[Path | None, Option("Folder, zip file or file with the DICOM", source=True, metavar="PATH")] = None
    where: Annotated[
        str | None, Option("Which series, such as 'Modality = CT and SliceThickness <= 3'", metavar="RULE")
    ] = None
    rules: Annotated[
        Path | None, Option("File with named selections: md's YAML, or MONAI's JSON", result=False, metavar="FILE")
    ] = None
    selection: Annotated[str | None, Option("The one selection of the rule file to use", metavar="NAME")] = None
    prefer: Annotated[
        tuple[str, ...],
        Option(
            "Which match to take: most-slices, thinnest, newest ...; may repeat, the first counts most",
            metavar="WORD",
            complete=_preferences,
        ),
    ] = ()
    all: Annotated[bool, "Take every match, each as a child workspace"] = False
    monai_compat: Annotated[
        bool, Option("Choose as MONAI Deploy's selector does, its faults included; first match only", loosens=True)
    ] = False
    explain: Annotated[
        bool, Option("Say for every series and condition what was found and whether it held", result=False)
    ] = False
    series: Annotated[str | None, Option("The series with this SeriesInstanceUID", metavar="UID")] = None
    study: Annotated[
        str | None,
        Option("Only the study with this StudyInstanceUID", source="study_instance_uid", metavar="UID"),
    ] = None
    include: Annotated[
        tuple[str, ...],
        Option(
            "localizer, screen-save, derived, parametric-map or md: left out by default; may repeat",
            metavar="KIND",
            complete=_kinds,
        ),
    ] = ()


@dataclass(frozen=True)
class _Asked:
    """What a call asks for, everything in it checked before any DICOM file is opened.

    Attributes:
        selections: at least one.
        notes: what in the rule file has no effect.
        old: the selections as MONAI's own selector takes them, with `--monai-compat`.
    """

    selections: tuple[Selection, ...]
    notes: tuple[str, ...] = ()
    old: tuple[tuple[str, dict[str, Any]], ...] = ()

    @property
    def roles(self) -> dict[str, bool]:
        return {s.role: s.required for s in self.selections if s.role}

    @property
    def splits(self) -> bool:
        return any(s.all for s in self.selections)

    @property
    def asks_pixels(self) -> bool:
        return any(s.rule is not None and s.rule.asks_pixels for s in self.selections)

    @property
    def extra(self) -> dict[str, tuple[int, str, bool]]:
        return {k: v for s in self.selections if s.rule for k, v in s.rule.extra.items()}


def run(ws: Workspace, params: Params) -> None:
    """Read all headers, group them into series, choose, write what later stages need of what was chosen."""
    from mdcli.dicom.headers import Skipped
    from mdcli.dicom.opening import SourceFiles

    asked, listing = _asked(params), _listing(params)
    for note in asked.notes:
        ws.warn("rules-ignored", note)
    with ws.span("headers"):
        found = _read(
            params, listing, asked.extra, lambda names: ws.progress(names, "reading headers"), reread=ws.rehash
        )
    instances, skipped = _instances(found, params), [*listing.skipped, *(f for f in found if isinstance(f, Skipped))]

    with SourceFiles(listing.root) as files:
        with ws.span("choose"):
            _refuse_unreadable(skipped)
            _say_skipped(ws, skipped)
            if not instances:
                _refuse_nothing(params, len(found))
            if asked.old:
                if params.explain:
                    _say_no_explanation(ws)
                chosen = {_UNNAMED: _old_choice(ws, asked, instances, files)}
            else:
                judgements = _judged(asked, instances, files, params, ws.jobs)
                if params.explain:
                    _report(ws, judgements)
                chosen = _chosen(ws, asked, judgements, params)
            _refuse_two_patients(list(chosen.values()), many=asked.splits)
        with ws.span("write"):
            for name, candidate in chosen.items():
                target = ws.child(name) if asked.splits else ws.named(name) if asked.roles else ws
                _write(ws, target, candidate, listing.root, skipped)
    ws.sources_digest(_digest(found))


def _asked(params: Params) -> _Asked:
    from mdcli.dicom.rules import parse
    from mdcli.dicom.selection import Selection, inclusions, preferences
    from mdcli.errors import UsageError

    include, prefer = inclusions(params.include), preferences(params.prefer)
    if params.rules is None:
        for on, flag in ((params.selection, "--selection"), (params.monai_compat, "--monai-compat")):
            if on:
                raise UsageError("no-rule-file", f"{flag} needs a rule file", hint="give --rules FILE")
        rule = parse(params.where) if params.where is not None else None
        return _Asked((Selection(_UNNAMED, rule, prefer, all=params.all, include=include),))
    if params.where is not None:
        raise UsageError("two-rules", "--where and --rules both say which series", hint="give one of the two")
    found = _of_file(params)
    return replace(
        found,
        selections=tuple(
            replace(s, prefer=s.prefer or prefer, all=s.all or params.all, include=(*s.include, *include))
            for s in found.selections
        ),
    )


def _of_file(params: Params) -> _Asked:
    from mdcli.dicom.monai_rules import old_selections
    from mdcli.dicom.rules import nearest
    from mdcli.dicom.selection import Selection, load_document, read_rule_file, read_rules
    from mdcli.errors import UsageError

    assert params.rules is not None
    text, name = read_rule_file(params.rules), params.rules.name
    if params.monai_compat:
        old = old_selections(load_document(text, name), name)
        names = [title for title, _ in old]
        found = _Asked((Selection(_UNNAMED),), old=tuple(old))
    else:
        rules = read_rules(text, name)
        names = [s.name for s in rules.selections]
        found = _Asked(rules.selections, rules.notes)
    if params.all and found.roles:
        raise UsageError("all-and-roles", "--all makes child workspaces, and the rule file names roles in one")
    if params.monai_compat and (params.all or params.prefer or params.series):
        message = "--monai-compat takes the first match: --all, --prefer and --series do not go with it"
        raise UsageError("compat-alone", message)
    if params.selection is None:
        return found
    if params.selection not in names:
        near = nearest(params.selection, names)
        hint = f"did you mean {near}?" if near else f"there are {', '.join(names)}"
        raise UsageError("no-such-selection", f"{name} has no selection {params.selection!r}", hint=hint)
    return replace(
        found,
        selections=tuple(s for s in found.selections if found.old or s.name == params.selection),
        old=tuple(pair for pair in found.old if pair[0] == params.selection),
    )


def _listing(params: Params) -> Listing:
    from mdcli.dicom.tree import list_source
    from mdcli.errors import MissingError

    if params.dicom is None:
        raise MissingError("no-source", "--dicom is not given", hint="give --dicom PATH")
    return list_source(params.dicom)


def _read(
    params: Params,
    listing: Listing,
    asked: Mapping[str, tuple[int, str, bool]],
    progress: Callable[[Iterable[str]], Iterable[str]] | None = None,
    *,
    reread: bool = False,
) -> list[Instance | Skipped]:
    """Return what is in every file of the source: of those that are as the user's index has them, without opening them."""
    from mdcli.dicom.index import scan
    from mdcli.scan_index import index_file

    assert params.dicom is not None
    return scan(listing, asked, _PATIENT, index=index_file(params.dicom), progress=progress, reread=reread)


def _instances(found: Iterable[Instance | Skipped], params: Params) -> list[Instance]:
    from mdcli.dicom.headers import Skipped

    instances = [f for f in found if not isinstance(f, Skipped)]
    if params.study is not None:
        instances = [i for i in instances if i.get("StudyInstanceUID") == params.study]
    return instances


def _judged(
    asked: _Asked, instances: Sequence[Instance], files: SourceFiles, params: Params, jobs: int
) -> list[Judgement]:
    from mdcli.dicom.selection import Candidate, judge
    from mdcli.dicom.series import group_series

    candidates = [Candidate(one, files, jobs) for one in group_series(instances)]
    return [judge(selection, candidates, uid=params.series) for selection in asked.selections]


def _say_no_explanation(ws: Workspace) -> None:
    text = "--monai-compat follows the old choice step by step, which conditions do not explain: see md rules diff"
    ws.note("no-explanation", text)


def _report(ws: Workspace, judgements: Sequence[Judgement]) -> None:
    from mdcli.dicom.selection import explain

    ws.report(*explain(judgements))


def report(ws: Workspace, params: Params) -> None:
    """Explain again what was chosen when the artifacts were made."""
    if not params.explain:
        return
    if params.monai_compat:
        _say_no_explanation(ws)
        return
    from mdcli.dicom.opening import SourceFiles

    asked, listing = _asked(params), _listing(params)
    instances = _instances(_read(params, listing, asked.extra), params)
    with SourceFiles(listing.root) as files:
        _report(ws, _judged(asked, instances, files, params, ws.jobs))


def _chosen(ws: Workspace, asked: _Asked, judgements: Sequence[Judgement], params: Params) -> dict[str, Candidate]:
    """Return what is written under which name: a role, a child's name, or `series`."""
    _refuse_no_image(judgements)
    chosen = _of_roles(ws, judgements) if asked.roles else _children(judgements) if asked.splits else None
    if chosen is None:
        chosen = {_UNNAMED: _the_one(judgements)}
    if params.series is None:
        _say_left_out(ws, judgements)
    return chosen


def _refuse_no_image(judgements: Sequence[Judgement]) -> None:
    from mdcli.errors import MissingError

    for judgement in judgements:
        if any(one.result != "left-out" for one in judgement.judged):
            return
    first = judgements[0]
    raise MissingError(
        "no-image-series", f"none of the {len(first.judged)} series holds images to use:{_reasons(first)}"
    )


def _no_match(judgements: Sequence[Judgement], what: str = "") -> Exception:
    from mdcli.errors import MissingError

    count = len(judgements[0].judged)
    if len(judgements) == 1:
        return MissingError("no-match", f"none of the {count} series matches{what}:{_reasons(judgements[0])}")
    parts = [f"\n {j.selection.name}:{_reasons(j)}" for j in judgements]
    return MissingError("no-match", f"none of the {count} series matches any selection:{''.join(parts)}")


def _of_roles(ws: Workspace, judgements: Sequence[Judgement]) -> dict[str, Candidate]:
    chosen: dict[str, Candidate] = {}
    for judgement in judgements:
        role = judgement.selection.role
        assert role is not None
        if judgement.best:
            chosen[role] = _single(judgement.best, f" for the role {role}", bool(judgement.selection.prefer))
        elif judgement.selection.required:
            raise _no_match([judgement], f" for the role {role}")
        else:
            ws.note("role-absent", f"no series matches for the role {role}, which is not required", role=role)
    if not chosen:
        raise _no_match(judgements)
    studies = {one.whole.instances[0].get("StudyInstanceUID") for one in chosen.values()}
    if len(studies) > 1:
        ws.warn("several-studies", f"the {len(chosen)} roles come from {len(studies)} studies", studies=len(studies))
    return chosen


def _children(judgements: Sequence[Judgement]) -> dict[str, Candidate]:
    chosen: dict[str, Candidate] = {}
    for judgement in judgements:
        word, best = judgement.selection.word, judgement.best
        if not judgement.selection.all and best:
            best = [_single(best, f" for {judgement.selection.name}", bool(judgement.selection.prefer))]
        alone = len(best) == 1 and word != _UNNAMED
        chosen |= {word if alone else f"{word}_{name}": one for name, one in _names_of(best).items()}
    if not chosen:
        raise _no_match(judgements)
    return chosen


def _names_of(candidates: Sequence[Candidate]) -> dict[str, Candidate]:
    """Name series so that a name means the same series whatever else is found beside it: SeriesNumber, else a hash of the UID."""
    import hashlib

    numbers = [one.series.instances[0].get("SeriesNumber") for one in candidates]
    named = {}
    for one, number in zip(candidates, numbers, strict=True):
        known = isinstance(number, int) and 0 <= number < 10**9
        digest = hashlib.sha256(one.series.uid.encode()).hexdigest()[:8]
        alone = known and numbers.count(number) == 1
        named[f"{number:03d}" if alone else f"{number:03d}_{digest}" if known else digest] = one
    return named


def _the_one(judgements: Sequence[Judgement]) -> Candidate:
    best = list(dict.fromkeys(one for judgement in judgements for one in judgement.best))
    if not best:
        raise _no_match(judgements)
    return _single(best, "", any(judgement.selection.prefer for judgement in judgements))


def _single(best: Sequence[Candidate], what: str, preferred: bool) -> Candidate:
    from mdcli.errors import DataError

    if len(best) > 1:
        series = [one.whole for one in best]
        said = "could be meant" if not preferred else "are equal by every preference"
        raise DataError(
            "several-series",
            f"{len(best)} series {said}{what}:{_table(series)}",
            hint=f"choose with {_a_choice(series)}" + ("" if preferred else ", or say what to --prefer"),
            series=[one.uid for one in series],
        )
    return best[0]


def _say_left_out(ws: Workspace, judgements: Sequence[Judgement]) -> None:
    """Count what was not chosen by any selection, by reason."""
    left_out: Counter[str] = Counter()
    for stands in zip(*(judgement.judged for judgement in judgements), strict=True):
        if not any(one.result in ("chosen", "match") for one in stands):
            left_out[next((one.code for one in stands if one.code), None) or stands[0].result] += 1
    if left_out:
        counts = ", ".join(f"{count} {code}" for code, count in sorted(left_out.items()))
        total = len(judgements[0].judged)
        message = f"{sum(left_out.values())} of {total} series were left out: {counts}"
        ws.note("series-left-out", message, **left_out)


def _old_choice(ws: Workspace, asked: _Asked, instances: Sequence[Instance], files: SourceFiles) -> Candidate:
    """Return what MONAI Deploy's selector gives its application first, with a warning."""
    from mdcli.dicom.monai_rules import old_choice
    from mdcli.dicom.selection import Candidate
    from mdcli.dicom.series import has_pixels
    from mdcli.errors import DataError, MissingError

    chosen = None
    for choice in old_choice(asked.old, instances, files):
        if choice.crash:
            message = f"MONAI Deploy's selector crashes at the selection {choice.selection!r}: {choice.crash}"
            raise DataError("compat-crash", message, hint="without --monai-compat md answers")
        chosen = chosen or choice.series
    if chosen is None:
        raise MissingError("no-match", "MONAI Deploy's selector finds no series", hint="md rules diff says why")
    if not any(map(has_pixels, chosen.instances)):
        message = f"MONAI Deploy's selector takes a series without images: {chosen.describe()}"
        raise MissingError("no-image-series", message)
    ws.warn(
        "monai-compat",
        "chosen as MONAI Deploy's selector does: the first match by the first image of each series, localizers and derived "
        "images not left out; md rules diff says where that is another series",
    )
    return Candidate(chosen)


def _write(ws: Workspace, target: Workspace, candidate: Candidate, root: Path, skipped: Sequence[Skipped]) -> None:
    from mdcli.dicom.series import drop_copies, series_to_json

    _refuse_damaged(candidate, skipped)
    kept, copies = drop_copies(candidate.series.instances, lambda i: _file_digest(root, i))
    if candidate.strangers:
        ws.note("not-image", f"{len(candidate.strangers)} objects of the series are no images and were left out")
    if copies:
        ws.note("exact-copies", f"{len(copies)} files are exact copies of others and were left out", files=len(copies))
    target.write_json("series", series_to_json(kept, copies, candidate.strangers))
    target.set_source_root("series", root)


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


def _refuse_nothing(params: Params, files: int) -> None:
    from mdcli.errors import MissingError

    what = "of this study " if params.study else ""
    raise MissingError("no-dicom", f"there is no DICOM instance {what}among {files} files", files=files)


def _say_skipped(ws: Workspace, skipped: Sequence[Skipped]) -> None:
    by_code: dict[str, list[Skipped]] = {}
    for one in skipped:
        by_code.setdefault(one.code, []).append(one)
    for code, those in by_code.items():
        # Names stay out of the record: it holds no path outside the workspace.
        ws.run.reporter.event("info", f"skipped: {_names(those)}", code=code, stage=ws.run.stage, case=ws.name)
        said = f"{len(those)} skipped: {_SKIPPED.get(code, code)}"
        (ws.note if code in _HARMLESS else ws.warn)(code, said, files=len(those))


def _reasons(judgement: Judgement) -> str:
    return _table([one.candidate.whole for one in judgement.judged], [one.reason for one in judgement.judged])


def _table(series: Sequence[Series], reasons: Sequence[str] = ()) -> str:
    lines = [f"\n  {n}. {one.describe()}" for n, one in enumerate(series[:_LISTED], 1)]
    lines = [f"{line}: {reason}" for line, reason in zip(lines, reasons, strict=False)] if reasons else lines
    return "".join(lines) + (f"\n  ... and {len(series) - _LISTED} more" if len(series) > _LISTED else "")


def _a_choice(series: Sequence[Series]) -> str:
    numbers = [one.instances[0].get("SeriesNumber") for one in series]
    if all(isinstance(n, int) for n in numbers) and len(set(numbers)) == len(numbers):
        return f"--where 'SeriesNumber = {numbers[0]}', or --series UID"
    return "--series UID"


def _refuse_damaged(candidate: Candidate, skipped: Sequence[Skipped]) -> None:
    from mdcli.dicom.opening import shown
    from mdcli.errors import DataError

    for one in skipped:
        if one.series_instance_uid == candidate.whole.uid:
            raise DataError("damaged-instance", f"{shown(one.path)} belongs to the series, but {one.message}")


def _refuse_two_patients(chosen: Sequence[Candidate], *, many: bool) -> None:
    """Refuse a series of two patients, and roles of one workspace of two; child workspaces may be of several."""
    from mdcli.errors import DataError

    groups = [[one] for one in chosen] if many else [chosen]
    for group in groups:
        instances = [i for one in group for i in one.whole.instances]
        patients = {tuple(str(i.get(keyword, "")) for keyword in _PATIENT) for i in instances}
        if len(patients) > 1:
            what = "the instances of the series" if len(group) == 1 else "the series of the roles"
            message = f"{what} belong to {len(patients)} patients by PatientID"
            raise DataError("several-patients", message, patients=len(patients))


def identity(ws: Workspace, params: Params) -> dict[str, Any]:
    """Say what decides the choice beside the parameters: the rule file, whose path is nobody's business."""
    if params.rules is None:
        return {}
    from mdcli.dicom.selection import read_rule_file
    from mdcli.records import sha256_of

    return {"rules_sha256": sha256_of(read_rule_file(params.rules))}


def names(ws: Workspace, params: Params) -> dict[str, bool]:
    """Return the roles of the rule file, and whether each must be there."""
    return _asked(params).roles


def sources(ws: Workspace, params: Params) -> Sources | None:
    """Return the files of the source; a bad rule is an error before any of them is looked at."""
    asked, listing = _asked(params), _listing(params)

    def digest() -> str:
        # It is asked for where a stat differs, or must not be believed.
        return _digest(_read(params, listing, {}, reread=True))

    # The digest is of the headers alone.
    return Sources(listing.root, listing.names, digest=None if asked.asks_pixels else cache(digest))


STAGE = Stage(
    "select-series",
    Params,
    run,
    writes=("series",),
    version=2,
    identity=identity,
    sources=sources,
    report=report,
    names=names,
    splits=True,
)
