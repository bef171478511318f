"""Many cases out of one list, table or tree: the only place that takes lists."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdcli.errors import DataError, MissingError, UsageError

_PATH_COLUMNS = ("dicom", "path", "image", "source")


@dataclass(frozen=True)
class Case:
    """One case of a cohort.

    Attributes:
        name: of its workspace.
        source: the input from outside.
        study_instance_uid: which study, where `source` holds several.
    """

    name: str
    source: Path
    study_instance_uid: str | None = None


def read_cases(
    source: Path, *, by: str = "folders", column: str | None = None, id_column: str | None = None
) -> list[Case]:
    """Return the cases of a datalist (MSD JSON), a CSV, a folder of folders, or (`by="studies"`) a tree of many studies.

    Names come from the list's id column, made lower case with `_` for what a name can't hold; else `case_0001` and so on: never
    from DICOM, never from a folder's name, which may be a patient's.

    Raises:
        MissingError: `no-source`, `no-cases`, `source-missing` naming the row.
        DataError: `bad-list`.
        UsageError: `bad-name` where two ids make the same name.
    """
    if not source.exists():
        raise MissingError("no-source", f"there is no {source}")
    if source.is_dir():
        found = (
            _studies(source) if by == "studies" else [(None, p, None) for p in sorted(source.iterdir()) if p.is_dir()]
        )
    elif source.suffix.lower() == ".json":
        found = _datalist(source)
    elif source.suffix.lower() == ".csv":
        found = _table(source, column, id_column)
    else:
        raise UsageError("bad-list", f"{source.name} is neither a folder nor .json nor .csv")
    if not found:
        raise MissingError("no-cases", f"{source.name} holds no case")
    digits = max(4, len(str(len(found))))
    cases = [
        Case(_name(given) if given else f"case_{number:0{digits}d}", path, study)
        for number, (given, path, study) in enumerate(found, 1)
    ]
    names = [case.name for case in cases]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice:
        raise UsageError("bad-name", f"two cases get the name {twice}", hint="give them unlike ids")
    for number, case in enumerate(cases, 1):
        if not case.source.exists():
            raise MissingError("source-missing", f"case {number} of {source.name}: there is no {case.source}")
    return cases


_Row = tuple[str | None, Path, str | None]


def _name(text: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "_", text.lower()).strip("_") or "case"


def _datalist(path: Path) -> list[_Row]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        entries: list[Any] = [e for key in ("training", "validation", "test", "testing") for e in document.get(key, [])]
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError("bad-list", f"{path.name} is no datalist: {error}") from error
    rows: list[_Row] = []
    for number, entry in enumerate(entries, 1):
        image = entry.get("image") if isinstance(entry, dict) else entry
        if not isinstance(image, str):
            raise DataError("bad-list", f"{path.name}: entry {number} names no single image")
        given = entry.get("id") if isinstance(entry, dict) else None
        rows.append((str(given) if given is not None else None, path.parent / image, None))
    return rows


def _table(path: Path, column: str | None, id_column: str | None) -> list[_Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            columns, lines = reader.fieldnames or [], list(reader)
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError("bad-list", f"{path.name} is no CSV in UTF-8: {error}") from error
    column = column or next((name for name in _PATH_COLUMNS if name in columns), None)
    id_column = id_column or ("id" if "id" in columns else None)
    for name in (column, id_column):
        if name is not None and name not in columns:
            raise DataError("bad-list", f"{path.name} has no column {name}", hint=f"it has {', '.join(columns)}")
    if column is None:
        raise DataError(
            "bad-list", f"{path.name} has no column {' or '.join(_PATH_COLUMNS)}", hint="name it with --column"
        )
    rows: list[_Row] = []
    for number, line in enumerate(lines, 1):
        if not line[column]:
            raise DataError("bad-list", f"{path.name}: row {number} has no {column}")
        rows.append((line[id_column] if id_column else None, path.parent / line[column], None))
    return rows


def _studies(root: Path) -> list[_Row]:
    from mdcli.dicom.tree import study_folders

    return [(None, folder, None if alone else uid) for uid, folder, alone in study_folders(root)]
