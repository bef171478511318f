"""Remove pixel data from a workspace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mdcli.workspace import Workspace

# What shows the patient: images, what is drawn on them, and DICOM objects with a patient module.
_PIXELS = ("volume", "labels", "instances", "masks", "export", "scores", "tensor", "seg", "rtstruct", "sr")


def purge(
    workspace: Annotated[str, typer.Argument(help="Workspace folder.", show_default=False)],
    edited: Annotated[bool, typer.Option("--edited", help="Remove images that a person edited or made, too.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Remove all that md knows, records and edited files too.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Say what would be removed; remove nothing.")
    ] = False,
) -> None:
    """Remove pixel data and DICOM objects that md made in a workspace and in the child workspaces that a stage made there.

    Records and measurements stay, unless --all. Sources are never touched. What a person edited or made stays and is named, unless
    --edited or --all; a file that has no name of md's is never touched.
    """
    import sys

    from mdcli.workspace import open_workspace

    ws = open_workspace(workspace)
    for case in (*ws.children(), ws):
        for path, role in _known(case) if everything else _images(case):
            if role is None and not edited and not everything:
                print(f"md: note: {path.name} is a person's and is kept; --edited removes it", file=sys.stderr)
                continue
            print(path)
            if not dry_run:
                _remove(case, path, None if everything else role)
        if everything and not dry_run:
            left = sorted(path.name for path in case.path.iterdir())
            if left:
                print(f"md: note: {case.name} stays: it also holds {', '.join(left[:5])}", file=sys.stderr)
            else:
                case.path.rmdir()


def _images(case: Workspace) -> list[tuple[Path, str | None]]:
    """Return every image and DICOM object with its role; None for the role of one that a person edited or made."""
    from mdcli.records import leftover_parts

    found: list[tuple[Path, str | None]] = [(path, "") for path in leftover_parts(case.path)]
    for path in sorted(case.path.iterdir()):
        role = _role(path)
        if role is None or role.split("-")[0] not in _PIXELS:
            continue
        made = path.name == case.locate(role).name and case.state(role, rehash=True)[0] == "made"
        found.append((path, role if made else None))
    return found


def _known(case: Workspace) -> list[tuple[Path, str | None]]:
    """Return every file of a workspace whose name is md's: artifacts, edited ones, records, roots, the source, temporary ones."""
    from mdcli.records import leftover_parts
    from mdcli.workspace import SOURCE_FILE

    roles = {*case.roles()}
    found: list[tuple[Path, str | None]] = [(path, "") for path in leftover_parts(case.path)]
    for path in sorted(case.path.iterdir()):
        role = _role(path)
        beside = path.name.removesuffix(".record.json").removesuffix(".root")
        pending = path.name.startswith(".") and path.name.endswith(".pending.json")
        ours = path.name == SOURCE_FILE or pending or beside in roles
        if ours or (role is not None and (role in roles or role.split("-")[0] in _PIXELS)):
            found.append((path, role))
    return found


def _role(path: Path) -> str | None:
    """Return the role whose artifact (or edited copy of it) has this very name, or None."""
    import re

    from mdcli.workspace import artifact_name

    named = re.fullmatch(r"([a-z0-9_]+(?:-[a-z0-9_]+)?)(\.edited-\d+)?(\.[a-z]+)?", path.name)
    if named is None or path.is_symlink():
        return None
    role, suffix = named[1], named[3] or ""
    return role if artifact_name(role) == role + suffix else None


def _remove(case: Workspace, path: Path, role: str | None) -> None:
    import shutil
    from dataclasses import replace

    from mdcli.records import write_record

    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    record = case.record(role) if role else None
    if record is not None:
        # Nothing is stale that was removed on purpose: `md status` says purged, and `md clean` leaves the record.
        write_record(case.path, replace(record, output=None, result="purged"))
