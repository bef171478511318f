"""Remove temporary files, and what md made and is stale."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def clean(
    workspace: Annotated[Path, typer.Argument(help="Workspace folder.")],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Say what would be removed; remove nothing.")
    ] = False,
) -> None:
    """Remove temporary files of runs that ended, and artifacts that md made and that are stale; never what a person edited."""
    import shutil

    from mdcli.commands.status import _rows
    from mdcli.errors import MissingError
    from mdcli.records import leftover_parts, record_path
    from mdcli.workspace import Workspace

    ws = Workspace(workspace)
    if not ws.path.is_dir():
        raise MissingError("no-workspace", f"there is no workspace {ws.name}")
    # Whether a file is still what md made is asked of its content: what is deleted can't be asked again.
    doomed: list[Path] = []
    for case in (ws, *ws.children()):
        doomed += leftover_parts(case.path)
        for row in _rows(case, case, rehash=False):
            if row["state"] == "stale" and case.state(row["role"], rehash=True)[0] in ("made", "absent"):
                doomed += [p for p in (case.locate(row["role"]), record_path(case.path, row["role"])) if p.exists()]
    for path in doomed:
        print(path)
        if not dry_run:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
