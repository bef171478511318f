"""Remove pixel data from a workspace."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# What shows the patient: images, what is drawn on them, and DICOM objects with a patient module.
_PIXELS = ("volume", "labels", "instances", "masks", "scores", "tensor", "seg", "rtstruct", "sr")


def purge(
    workspace: Annotated[Path, typer.Argument(help="Workspace folder.")],
    everything: Annotated[
        bool, typer.Option("--all", help="Remove the whole workspace, records and edited files too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Say what would be removed; remove nothing.")
    ] = False,
) -> None:
    """Remove pixel data and DICOM objects from a workspace; records and measurements stay. Sources are never touched."""
    import shutil

    from mdcli.errors import MissingError
    from mdcli.records import PART
    from mdcli.workspace import SOURCE_FILE, Workspace

    ws = Workspace(workspace)
    cases = [ws, *ws.children()]
    if not any(case.roles() or (case.path / SOURCE_FILE).exists() for case in cases):
        raise MissingError("no-workspace", f"{ws.name} is no workspace: it has neither records nor {SOURCE_FILE}")
    if everything:
        doomed = [ws.path]
    else:
        doomed = [
            path
            for case in cases
            for path in sorted(case.path.iterdir())
            if path.name.startswith(PART)
            or (path.name.split("-")[0].split(".")[0] in _PIXELS and not path.name.endswith(".record.json"))
        ]
    for path in doomed:
        print(path)
        if not dry_run:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
