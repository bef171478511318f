"""Check a rule file, or compare it with the old choice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from mdcli.dicom.instance import Instance
    from mdcli.dicom.monai_rules import OldChoice
    from mdcli.dicom.opening import SourceFiles
    from mdcli.dicom.selection import Judgement, RuleFile


def rules(
    action: Annotated[Literal["check", "diff"], typer.Argument(help="check a rule file, or diff it over a source.")],
    path: Annotated[
        Path,
        typer.Argument(help="check: the rule file. diff: a folder, zip file or file with DICOM.", show_default=False),
    ],
    rules_file: Annotated[
        Path | None, typer.Option("--rules", metavar="FILE", help="diff: the rule file, in MONAI's form.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="PATH", help="check: try the rules on a DICOM file, folder or zip.")
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="A kind of series to take in; may repeat.")
    ] = None,
    prefer: Annotated[
        list[str] | None, typer.Option(metavar="WORD", help="Which match to take, as of select-series; may repeat.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Check a rule file and say what it means; with --file also which series it chooses, and why the others not.

    Diff: say per study where md chooses another series than MONAI Deploy's selector did, and why.
    Exit 0 where every selection has its series, or the two agree; else 1.
    """
    from mdcli.errors import UsageError

    if action == "check":
        if rules_file is not None:
            raise UsageError("usage", "--rules goes with diff; check takes the rule file itself")
        _check(path, file, include or (), prefer or (), as_json)
        return
    if rules_file is None or file is not None:
        raise UsageError("usage", "diff compares over a source", hint="md rules diff SOURCE --rules FILE")
    _diff(path, rules_file, include or (), prefer or (), as_json)


def _check(path: Path, source: Path | None, include: Sequence[str], prefer: Sequence[str], as_json: bool) -> None:
    import json

    from mdcli.dicom.opening import SourceFiles
    from mdcli.dicom.selection import explain
    from mdcli.errors import AnswerNo

    found = _rule_file(path, include, prefer)
    if source is None:
        if as_json:
            print(json.dumps(_rules_json(found), indent=1))
        else:
            _print(_rules_text(found))
        return
    extra = {k: v for s in found.selections if s.rule for k, v in s.rule.extra.items()}
    root, instances = _scan(source, extra)
    with SourceFiles(root) as files:
        judgements = _judge(found, instances, files)
        text, document = explain(judgements)
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        _print(text)
    # More than one best is a tie, which select-series refuses.
    open_ones = [
        j.selection.name
        for j in judgements
        if (len(j.best) != 1 and not j.selection.all) or (j.selection.all and not j.best)
    ]
    if open_ones and any(j.selection.required for j in judgements if j.selection.name in open_ones):
        said = ", ".join(open_ones)
        raise AnswerNo(
            "rules-choose-nothing", f"no series, or no single one, is chosen for {said}", selections=open_ones
        )


def _rule_file(path: Path, include: Sequence[str], prefer: Sequence[str]) -> RuleFile:
    from dataclasses import replace

    from mdcli.dicom.selection import inclusions, preferences, read_rule_file, read_rules

    kinds, order = inclusions(include), preferences(prefer)
    found = read_rules(read_rule_file(path), path.name)
    selections = (replace(s, prefer=s.prefer or order, include=(*s.include, *kinds)) for s in found.selections)
    return replace(found, selections=tuple(selections))


def _rules_text(found: RuleFile) -> str:
    form = {"md": "md's own", "monai": "MONAI's"}[found.form]
    lines = [f"{len(found.selections)} selection(s), in {form} form"]
    for one in found.selections:
        lines.append(f"{one.name}: {one.rule or 'every series'}")
        more = [
            f"prefer {', '.join(one.prefer)}" if one.prefer else "",
            f"role {one.role}" if one.role else "",
            "every match" if one.all else "",
            "" if one.required else "not required",
            f"include {', '.join(one.include)}" if one.include else "",
        ]
        lines += [f"  {'; '.join(filter(None, more))}"] if any(more) else []
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _rules_json(found: RuleFile) -> dict[str, Any]:
    return {
        "schema": "md.rules-check/1",
        "form": found.form,
        "selections": [
            {
                "name": one.name,
                "where": str(one.rule) if one.rule else None,
                "prefer": list(one.prefer),
                "role": one.role,
                "all": one.all,
                "required": one.required,
                "include": list(one.include),
            }
            for one in found.selections
        ],
        "notes": list(found.notes),
    }


def _scan(source: Path, extra: dict[str, tuple[int, str, bool]]) -> tuple[Path, list[Instance]]:
    from mdcli.dicom.headers import Skipped
    from mdcli.dicom.index import scan
    from mdcli.dicom.tree import list_source
    from mdcli.errors import MissingError
    from mdcli.scan_index import index_file

    listing = list_source(source)
    read = scan(listing, extra, index=index_file(source))
    instances = [found for found in read if not isinstance(found, Skipped)]
    if not instances:
        raise MissingError("no-dicom", f"there is no DICOM instance among {len(read)} files", files=len(read))
    return listing.root, instances


def _judge(found: RuleFile, instances: Sequence[Instance], files: SourceFiles) -> list[Judgement]:
    from mdcli.dicom.selection import Candidate, judge
    from mdcli.dicom.series import group_series

    candidates = [Candidate(one, files) for one in group_series(instances)]
    return [judge(selection, candidates) for selection in found.selections]


def _diff(source: Path, path: Path, include: Sequence[str], prefer: Sequence[str], as_json: bool) -> None:
    import json

    from mdcli.dicom.monai_rules import old_choice, old_selections
    from mdcli.dicom.opening import SourceFiles
    from mdcli.dicom.selection import load_document, read_rule_file
    from mdcli.errors import AnswerNo

    found = _rule_file(path, include, prefer)
    old = old_selections(load_document(read_rule_file(path), path.name), path.name)
    extra = {k: v for s in found.selections if s.rule for k, v in s.rule.extra.items()}
    root, instances = _scan(source, extra)
    rows = []
    with SourceFiles(root) as files:
        by_study: dict[str, list[Instance]] = {}
        for instance in instances:
            by_study.setdefault(str(instance.get("StudyInstanceUID")), []).append(instance)
        choices = old_choice(old, instances, files)
        for study, of_study in by_study.items():
            ours = _judge(found, of_study, files)
            theirs = [choice for choice in choices if choice.study == study]
            rows += [_row(study, judgement, choice) for judgement, choice in zip(ours, theirs, strict=True)]
    differing = [row for row in rows if row["differs"]]
    if as_json:
        print(json.dumps({"schema": "md.rules-diff/1", "studies": len(by_study), "selections": rows}, indent=1))
    else:
        _print("\n".join(line for row in rows for line in _lines(row)))
    if differing:
        message = f"md chooses otherwise in {len(differing)} of {len(rows)} cases of a selection in a study"
        raise AnswerNo("rules-differ", message, differing=len(differing), cases=len(rows))


def _row(study: str, judgement: Judgement, choice: OldChoice) -> dict[str, Any]:
    """Return what both choose for one selection in one study, and why they differ."""
    ours = judgement.best[0].whole if len(judgement.best) == 1 else None
    theirs = choice.series
    why: list[str] = []
    judged = {one.candidate.whole.uid: one for one in judgement.judged}
    same = (ours.uid if ours else None) == (theirs.uid if theirs else None) and not choice.crash
    tie = len(judgement.best) > 1
    if choice.crash:
        why.append(f"MONAI Deploy's selector crashes: {choice.crash}")
    elif not same or tie:
        if theirs is not None:
            one = judged[theirs.uid]
            result = "it matches as others do" if tie and one.result == "match" else f"{one.result}: {one.reason}"
            why.append(f"what it takes is for md {result}")
        if ours is not None:
            why.append(f"what md takes is for it: {choice.reasons.get(ours.uid, 'not the first match')}")
    return {
        "study_instance_uid": study,
        "selection": judgement.selection.name,
        "differs": not same or tie,
        "md": [_brief(one.whole) for one in judgement.best],
        "monai": _brief(theirs) if theirs else None,
        "crash": choice.crash,
        "why": why,
    }


def _brief(series: Any) -> dict[str, Any]:
    return {"series_instance_uid": series.uid, "said": series.describe()}


def _lines(row: dict[str, Any]) -> list[str]:
    mark = "differs" if row["differs"] else "same"
    lines = [f"study {row['study_instance_uid']}, selection {row['selection']}: {mark}"]
    lines += [f"  md:    {one['said']}" for one in row["md"]] or ["  md:    no series"]
    lines.append(f"  MONAI: {row['monai']['said'] if row['monai'] else 'a crash' if row['crash'] else 'no series'}")
    return [*lines, *(f"  {why}" for why in row["why"])]


def _print(text: str) -> None:
    """Print lines that may hold what came out of a file, everything unprintable escaped."""
    for line in text.split("\n"):
        print(line if line.isprintable() else ascii(line)[1:-1])
