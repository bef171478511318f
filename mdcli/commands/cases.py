"""Make workspaces from a list, a table or a tree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def cases(
    source: Annotated[
        Path, typer.Argument(help="A datalist (MSD JSON), a CSV, a folder of folders, or a tree of many studies.")
    ],
    into: Annotated[Path, typer.Option("--into", help="Folder that gets the workspaces.")],
    by: Annotated[str | None, typer.Option(help="folders or studies, for a folder (default: folders).")] = None,
    column: Annotated[
        str | None, typer.Option(help="CSV column with the paths (default: the first of dicom, path, image, source).")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option("--id", help="CSV column with the names (default: id, if there).")
    ] = None,
) -> None:
    """Make one workspace a case, each with its source.json, and print them, one a line, for a pipe."""
    from mdcli.cohort import read_cases
    from mdcli.errors import PersonsFileError, UsageError
    from mdcli.workspace import Workspace, write_source

    if by not in (None, "folders", "studies"):
        raise UsageError("bad-by", f"--by is folders or studies, not {by}")
    found = read_cases(source, by=by or "folders", column=column, id_column=id_column)
    for case in found:
        there = Workspace(into / case.name)
        if there.source() not in (None, case.source.absolute()):
            message = f"workspace {case.name} is of another source: the list has changed"
            hint = "give another folder with --into, or an id column"
            raise PersonsFileError("persons-file", message, hint=hint)
    for case in found:
        write_source(into / case.name, case.source, case.study_instance_uid)
    for case in found:
        print(into / case.name)
