"""For plugins and tests: run a stage as `md` would, and the promises that every stage keeps."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdcli.errors import MissingError
from mdcli.execution import Controls, Outcome, execute
from mdcli.records import load_record
from mdcli.reporting import Reporter
from mdcli.stage import Stage
from mdcli.workspace import Workspace, artifact_name


class ListReporter(Reporter):
    """Keeps the events, for a test to look at."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def event(self, level: str, message: str, **facts: Any) -> None:
        """Keep one event."""
        self.events.append({"level": level, "message": message, **facts})

    def report(self, text: str, document: dict[str, Any], *, stage: str | None = None, case: str | None = None) -> None:
        """Keep one report, as an event of the code `report`."""
        self.events.append({"level": "report", "code": "report", "message": text, "document": document})

    def codes(self, level: str | None = None) -> list[str]:
        """Return the codes of the events, of one level or all."""
        return [e["code"] for e in self.events if level in (None, e["level"])]


def run_stage(
    stage: Stage,
    workspace: Workspace | Path | str,
    *,
    controls: Controls | None = None,
    reporter: Reporter | None = None,
    use: Mapping[str, str] | None = None,
    as_name: str | None = None,
    **params: Any,
) -> Outcome:
    """Run a stage over one workspace, with its parameters by name.

    Returns:
        What is in place now.

    Raises:
        MdError: as the stage does.
    """
    ws = workspace if isinstance(workspace, Workspace) else Workspace(workspace, as_name=as_name, use=use)
    outcome = execute(stage, ws, stage.params(**params), controls, reporter)
    assert outcome is not None, "a dry run has no outcome"
    return outcome


def contract_problems(
    stage: Stage, prepared: Path, scratch: Path, *, as_name: str | None = None, **params: Any
) -> list[str]:
    """Return in words which promises of every stage this one breaks; nothing where it keeps them all.

    It is run in copies of a workspace that is prepared up to its inputs: what it writes is declared and has records, a second
    run does nothing, two runs give the same bytes, a missing input is refused with status 66 and nothing written, a dry run
    does nothing.

    Args:
        stage: the declared stage.
        prepared: a workspace that holds what the stage reads.
        scratch: an empty folder to work in.
        as_name: the name for what it writes (`--as`), for a stage that reads and writes the same kind.
        params: its parameters.
    """
    problems = []
    first, second, empty = scratch / "first", scratch / "second", scratch / "empty"
    for copy in (first, second):
        shutil.copytree(prepared, copy)
    before = _contents(first)
    execute(stage, Workspace(first, as_name=as_name), stage.params(**params), Controls(dry_run=True))
    if _contents(first) != before:
        problems.append("a dry run changes the workspace")
    outcome = run_stage(stage, first, as_name=as_name, **params)
    after = _contents(first)
    problems += [f"it changes {name}, which it reads" for name in before if after.get(name) != before[name]]
    declared = {artifact_name(Workspace(first, as_name=as_name).role_to_write(kind)) for kind in stage.writes}
    for name in sorted({*after} - {*before}):
        top = name.split("/")[0]
        record = top.removesuffix(".record.json")
        known = (
            top.startswith("children-")
            or top in declared
            or any(artifact_name(record) == d for d in declared)
            or top.endswith(".root")
        )
        if not known and not (first / top).is_dir():
            problems.append(f"it writes {name}, which it does not declare")
    for path, roles in outcome.artifacts.items():
        problems += [f"{role} has no record" for role in roles if load_record(path, role) is None]
    if not run_stage(stage, first, as_name=as_name, **params).up_to_date:
        problems.append("a second run does it again")
    run_stage(stage, second, as_name=as_name, **params)
    artifacts = {name for name in {*after} - {*before} if not name.endswith((".record.json", ".root"))}
    again = _contents(second)
    problems += [f"{name} differs between two runs" for name in sorted(artifacts) if again.get(name) != after[name]]
    if stage.reads:
        try:
            run_stage(stage, empty, as_name=as_name, **params)
            problems.append("it runs without its input")
        except MissingError:
            if empty.exists() and any(empty.iterdir()):
                problems.append("it writes although its input is missing")
    return problems


def _contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
