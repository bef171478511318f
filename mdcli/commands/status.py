"""Say what is up to date in a workspace, and why not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from mdcli.workspace import Workspace


def status(
    workspace: Annotated[Path, typer.Argument(help="Workspace folder.")],
    why: Annotated[bool, typer.Option("--why", help="Say what differs.")] = False,
    rehash: Annotated[
        bool, typer.Option("--rehash", help="Read every file again, whatever its size and time say.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON (md.status/1).")] = False,
) -> None:
    """Say for every artifact whether it is up to date: exit 1 where one is stale.

    `unknown` is said where nobody can tell: the source is not there, the stage is not installed, or a file was given by its path.
    """
    import json

    from mdcli.errors import AnswerNo, MissingError
    from mdcli.workspace import Workspace

    ws = Workspace(workspace)
    cases = [ws, *ws.children()]
    rows = [row for case in cases for row in _rows(case, ws, rehash)]
    if not rows:
        raise MissingError("no-records", f"there are no records in workspace {ws.name}")
    if as_json:
        print(json.dumps({"schema": "md.status/1", "artifacts": rows}, indent=1))
    else:
        for row in rows:
            name = row["artifact"] if row["case"] == "." else f"{row['case']}/{row['artifact']}"
            print(f"{name:<24} {row['state']}")
            for reason in row["why"] if why else ():
                print(f"    {reason}")
    stale = [row for row in rows if row["state"] == "stale"]
    if stale:
        hint = None if why else "md status --why says what differs"
        raise AnswerNo("stale", f"{len(stale)} of {len(rows)} artifacts are not up to date", hint=hint)


def _rows(case: Workspace, root: Workspace, rehash: bool) -> list[dict[str, Any]]:
    from mdcli import registry
    from mdcli.errors import MdError
    from mdcli.execution import why_recorded_is_stale

    rows: list[dict[str, Any]] = []
    stale: set[str] = set()
    untold: set[str] = set()
    for role in _in_order(case):
        record = case.record(role)
        if record is None:
            continue
        state, _ = case.state(role, rehash=rehash)
        reasons: list[str] = []
        unknown: list[str] = []
        try:
            reasons = why_recorded_is_stale(registry.load_stage(record.stage), case, record, rehash=rehash)
        except MdError as error:
            # The stage is not installed, the source is not mounted: nobody can tell, which is not the same as stale.
            unknown = [error.message]
        inputs = sorted(noted["role"] for noted in record.inputs.values())
        reasons += [f"{name} is not up to date" for name in inputs if name in stale]
        unknown += [f"of {name} nobody can tell" for name in inputs if name in untold]
        if state == "absent" and record.output is not None:
            reasons.append(f"{record.artifact} is gone")
        fresh = record.result if record.output is None else "up to date, edited" if state == "edited" else "up to date"
        word = "stale" if reasons else "unknown" if unknown else fresh
        stale |= {role} if word == "stale" else set()
        untold |= {role} if word == "unknown" else set()
        where = "." if case.path == root.path else case.name
        row = {"case": where, "role": role, "artifact": record.artifact or role, "state": word}
        rows.append({**row, "why": [*reasons, *unknown]})
    return rows


def _in_order(case: Workspace) -> list[str]:
    """Return the roles so that what is read comes before what was made of it."""
    left, done = {role: case.record(role) for role in case.roles()}, []
    while left:
        ready = [
            role
            for role, record in left.items()
            if record is None or not any(i["role"] in left and i["role"] != role for i in record.inputs.values())
        ]
        for role in ready or list(left):
            done.append(role)
            del left[role]
    return done
