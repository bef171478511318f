"""Run a stage over the workspaces of a call: one, or one a line from a pipe; one line out per finished workspace."""

from __future__ import annotations

import io
import json
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from mdcli.cli.log import report_error
from mdcli.errors import MdError, MissingError, UsageError
from mdcli.execution import Controls, Outcome, execute
from mdcli.records import storage_errors
from mdcli.reporting import Reporter
from mdcli.stage import Stage
from mdcli.workspace import Workspace, artifact_name

LINE = "md.line/1"
BUG = 70


@dataclass(frozen=True)
class Line:
    """One line of the pipe.

    Attributes:
        workspace: its folder.
        result: `processed`, `nothing-found` or `failed`.
        code: the error's code, where it failed.
        status: the exit status that it failed with.
        artifacts: role to file name.
    """

    workspace: str
    result: str = "processed"
    code: str | None = None
    status: int = 0
    artifacts: dict[str, str] = field(default_factory=dict)

    def text(self, as_json: bool) -> str:
        """Return it as it is written: a path, or JSON where that is asked for or it failed."""
        if not as_json and self.result != "failed":
            return self.workspace
        found = {"schema": LINE, "workspace": self.workspace, "artifacts": self.artifacts, "result": self.result}
        return json.dumps({**found, "code": self.code, **({"status": self.status} if self.status else {})})


def parse_line(text: str) -> Line:
    """Return a line of the pipe, in either form.

    Raises:
        UsageError: `bad-line`.
    """
    if not text.startswith("{"):
        return Line(text)
    try:
        found = json.loads(text)
        if found["schema"] != LINE:
            raise ValueError(f"schema {found['schema']!r}")
        status = int(found.get("status") or 0)
        if found["result"] == "failed" and not 1 <= status <= BUG + 8:
            status = 65
        return Line(str(found["workspace"]), str(found["result"]), found.get("code"), status, dict(found["artifacts"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError("bad-line", f"the line {text[:80]!r} is no {LINE}: {error}") from error


@dataclass(frozen=True)
class Call:
    """One call of a stage on the command line.

    Attributes:
        stage: what runs.
        params: gives the parameters for a workspace.
        controls: how.
        reporter: who hears of it.
        as_name: `--as`.
        use: `--use`.
        as_json: `--json`.
        keep_going: `--keep-going`.
    """

    stage: Stage
    params: Callable[[Workspace], Any]
    controls: Controls
    reporter: Reporter
    as_name: str | None = None
    use: dict[str, str] = field(default_factory=dict)
    as_json: bool = False
    keep_going: bool = False


def _lines(workspace: str, stream: TextIO) -> Iterator[Line]:
    if workspace != "-":
        yield Line(workspace)
        return
    empty = True
    for raw in stream:
        text = raw.rstrip("\r\n")
        if text:
            empty = False
            yield parse_line(text)
    if empty:
        raise MissingError(
            "no-input",
            "no workspace came in on standard input",
            hint="the stage before says why; with --keep-going its status travels on",
        )


def run_call(call: Call, workspace: str, stdin: TextIO | None = None, stdout: TextIO | None = None) -> int:
    """Run a stage over every workspace of a call and print a line for each that is finished.

    Returns:
        The exit status: 0, or the worst of the cases with `--keep-going` or of failed lines that came in.

    Raises:
        MdError: the first case's, without `--keep-going`.
    """
    stdin, stdout, worst = stdin or sys.stdin or io.StringIO(), stdout or sys.stdout, 0
    if workspace == "-" and call.stage.preload:
        # What fails here fails again in the run, with the case's name.
        with suppress(Exception):
            call.stage.preload(call.params(Workspace("-")))
    for line in _lines(workspace, stdin):
        if line.result == "failed":
            worst = max(worst, line.status)
            _print(line, True, stdout)
            continue
        try:
            outcome = _run_one(call, line.workspace)
        except MdError as error:
            error.case = Path(line.workspace).name
            if not call.keep_going:
                raise
            report_error(call.reporter, error, stage=call.stage.name, case=Path(line.workspace).name)
            failed = Line(line.workspace, "failed", error.code, error.status)
        except Exception as error:
            if not call.keep_going:
                raise
            report_bug(call.reporter, error, stage=call.stage.name, case=Path(line.workspace).name)
            failed = Line(line.workspace, "failed", "bug", BUG)
        else:
            for path in outcome.workspaces if outcome else ():
                assert outcome is not None
                artifacts = {role: artifact_name(role) for role in outcome.artifacts.get(path, ())}
                _print(Line(str(path), outcome.result, artifacts=artifacts), call.as_json, stdout)
            continue
        worst = max(worst, failed.status)
        _print(failed, True, stdout)
    return worst


def _run_one(call: Call, path: str) -> Outcome | None:
    if not path:
        raise UsageError("bad-workspace", "the workspace's path is empty", hint="is a shell variable unset?")
    if "\n" in path or "\r" in path:
        raise UsageError("bad-workspace", "a workspace's path holds no line feed: it travels as a line")
    if Path(path).exists() and not Path(path).is_dir():
        raise UsageError("bad-workspace", f"{Path(path).name} is a file; a workspace is a folder")
    ws = Workspace(path, as_name=call.as_name, use=call.use)
    with storage_errors(f"workspace {ws.name}"):
        return execute(call.stage, ws, call.params(ws), call.controls, call.reporter)


def _print(line: Line, as_json: bool, stdout: TextIO) -> None:
    text = line.text(as_json)
    if hasattr(stdout, "buffer"):
        # A path may hold bytes that are no UTF-8; they go out as they came in.
        stdout.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
        stdout.buffer.flush()
    else:
        stdout.write(text + "\n")


def report_bug(reporter: Reporter, error: BaseException, *, stage: str | None = None, case: str | None = None) -> None:
    """Report an error that md did not foresee: its kind and where in the code. Its text may hold values of a patient's file."""
    frames = "\n".join(
        f"  {'/'.join(Path(frame.filename).parts[-3:])}:{frame.lineno} in {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
    )
    reporter.event("error", f"{type(error).__name__}", code="bug", stage=stage, case=case)
    reporter.event(
        "error",
        f"this is a bug in md: please report it, with these lines\n{frames}",
        stage=stage,
        case=case,
    )
