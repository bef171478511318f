"""What a comparison found, as JSON (`md.verify/1`) and as JUnit XML. Neither holds anything of a patient, nor a path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from mdcli.checking.compare import DEFINITIONS, FileResult, LabelResult, Problem
from mdcli.checking.seg import printable
from mdcli.errors import MissingError, UsageError

SCHEMA = "md.verify/1"


def check_target(path: Path, option: str) -> None:
    """Refuse a place where no report can be written, before the work for it is done.

    Raises:
        UsageError: `bad-path` for a folder.
        MissingError: `no-folder`.
    """
    if path.is_dir():
        raise UsageError("bad-path", f"{option}: {printable(path.name)} is a folder, not a file")
    if not path.parent.is_dir():
        raise MissingError("no-folder", f"{option}: there is no folder to put {printable(path.name)} into")


def verify_json(results: Sequence[FileResult]) -> dict[str, Any]:
    """Return the report as `md.verify/1`; it states what its numbers mean. A number that could not be computed is null."""
    return {
        "schema": SCHEMA,
        "result": "ok" if all(result.ok for result in results) else "differs",
        "definitions": DEFINITIONS,
        "files": [_file(result) for result in results],
    }


def _file(result: FileResult) -> dict[str, Any]:
    return {
        "file": result.file,
        "kind": result.kind,
        "result": result.word.lower(),
        "tolerances": asdict(result.tolerances),
        "reason": result.reason,
        "affine_mm": _finite(result.affine_mm),
        "problems": [asdict(problem) for problem in result.problems],
        "labels": [_label(label) for label in result.labels],
    }


def _label(label: LabelResult) -> dict[str, Any]:
    found = {name: _finite(value) for name, value in asdict(label).items() if name != "problems"}
    return {**found, "result": label.word.lower(), "problems": [asdict(problem) for problem in label.problems]}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def junit_xml(results: Sequence[FileResult]) -> bytes:
    """Return the report as JUnit XML: a suite for each file, a case for its grid and for each label.

    Source: the form that CI servers read, https://github.com/testmoapp/junitxml.
    """
    root = ElementTree.Element("testsuites", name="md verify")
    for result in results:
        cases = [("grid", result.problems), *((_title(label), label.problems) for label in result.labels)]
        failures = sum(bool(problems) for _, problems in cases)
        counts = {"tests": str(len(cases)), "failures": str(failures), "errors": "0", "skipped": "0"}
        suite = ElementTree.SubElement(root, "testsuite", {"name": printable(result.file), **counts})
        properties = ElementTree.SubElement(suite, "properties")
        facts: dict[str, Any] = {**asdict(result.tolerances), **({"reason": result.reason} if result.reason else {})}
        for name, value in facts.items():
            ElementTree.SubElement(properties, "property", name=name, value=printable(str(value)))
        for title, problems in cases:
            _case(suite, result.file, title, problems)
    root.set("tests", str(sum(int(suite.get("tests", 0)) for suite in root)))
    root.set("failures", str(sum(int(suite.get("failures", 0)) for suite in root)))
    ElementTree.indent(root)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _title(label: LabelResult) -> str:
    return f"{label.value} {label.name}" if label.name else str(label.value)


def _case(suite: ElementTree.Element, file: str, title: str, problems: Sequence[Problem]) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=printable(file), name=printable(title))
    if problems:
        message = "; ".join(problem.message for problem in problems)
        failure = ElementTree.SubElement(case, "failure", type=problems[0].code, message=printable(message))
        failure.text = "\n".join(printable(f"{problem.code}: {problem.message}") for problem in problems)
