"""Remove pixel data from a workspace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mdcli.workspace import Workspace

# What shows the patient: images, what is drawn on them, and DICOM objects with a patient module.
_PIXELS = ("volume", "labels", "instances", "masks", "scores", "tensor", "seg", "rtstruct", "sr")


def purge(
    workspace: Annotated[Path, typer.Argument(help="Workspace folder.")],
    edited: Annotated[bool, typer.Option("--edited", help="Remove images that a person edited or made, too.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Remove the whole workspace, records and edited files too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Say what would be removed; remove nothing.")
    ] = False,
) -> None:
    """Remove pixel data and DICOM objects that md made in a workspace and in the child workspaces that a stage made there.

    Records and measurements stay, sources are never touched, and what a person edited or made stays and is named, unless --edited.
    """
    import shutil
    import sys

    from mdcli.errors import MissingError
    from mdcli.workspace import SOURCE_FILE, Workspace

    ws = Workspace(workspace.resolve())
    cases = [ws, *ws.children()]
    if not any(case.roles() or (case.path / SOURCE_FILE).exists() for case in cases):
        raise MissingError("no-workspace", f"{workspace} is no workspace: it has neither records nor {SOURCE_FILE}")
    if everything:
        print(workspace)
        if not dry_run:
            shutil.rmtree(ws.path)
        return
    for case in cases:
        for path, role in _images(case):
            if role is None and not edited:
                print(f"md: note: {path.name} is a person's and is kept; --edited removes it", file=sys.stderr)
                continue
            if not dry_run:
                _remove(case, path, role)
            print(path)


def _images(case: Workspace) -> list[tuple[Path, str | None]]:
    """Return every image and DICOM object with its role; None for the role of one that a person edited or made."""
    from mdcli.records import leftover_parts

    found: list[tuple[Path, str | None]] = [(path, "") for path in leftover_parts(case.path)]
    made = {case.locate(role): role for role in case.roles() if case.state(role)[0] == "made"}
    for path in sorted(case.path.iterdir()):
        kind = path.name.split("-")[0].split(".")[0]
        if kind in _PIXELS and not path.name.endswith(".record.json"):
            found.append((path, made.get(path)))
    return found


def _remove(case: Workspace, path: Path, role: str | None) -> None:
    import shutil
    from dataclasses import replace

    from mdcli.records import write_record

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    record = case.record(role) if role else None
    if record is not None:
        # Nothing is stale that was removed on purpose: `md status` says purged, and `md clean` leaves the record.
        write_record(case.path, replace(record, output=None, result="purged"))
