"""Show what is in a workspace and how it was made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from mdcli.workspace import Workspace


def inspect(
    workspace: Annotated[Path, typer.Argument(help="Workspace folder.")],
    role: Annotated[str | None, typer.Argument(help="One artifact, for example volume.")] = None,
    form: Annotated[Literal["tree", "table", "json"], typer.Option("--as", help="tree, table or json.")] = "tree",
    as_json: Annotated[bool, typer.Option("--json", help="The same as --as json.")] = False,
) -> None:
    """Show the records of a workspace: what made each artifact, from what, how long it took, and whether it was edited."""
    import json

    from mdcli.errors import MissingError
    from mdcli.workspace import Workspace

    ws = Workspace(workspace)
    if not ws.path.is_dir():
        raise MissingError("no-workspace", f"there is no workspace {ws.name}")
    rows = [row for case in (ws, *ws.children()) for row in _rows(case, ws)]
    if role is not None:
        rows = [row for row in rows if row["role"] == role]
    if not rows:
        what = f"{role} has no record" if role else "there are no records"
        raise MissingError("no-records", f"{what} in workspace {ws.name}", hint="md select-series starts a workspace")
    if as_json or form == "json":
        print(json.dumps({"schema": "md.inspect/1", "artifacts": rows}, indent=1))
    elif form == "table":
        _table(rows)
    else:
        _tree(ws, rows)


def _rows(case: Workspace, root: Workspace) -> list[dict[str, Any]]:
    rows = []
    for role in case.roles():
        record = case.record(role)
        if record is None:
            continue
        state, _ = case.state(role)
        if record.output is None and state == "absent":
            state = record.result
        rows.append(
            {
                "case": "." if case.path == root.path else case.name,
                "role": role,
                "artifact": record.artifact,
                "state": state,
                "stage": record.stage,
                "stage_version": record.stage_version,
                "params": dict(record.params),
                "inputs": {kind: noted["role"] for kind, noted in record.inputs.items()},
                "identity": dict(record.identity),
                "edited_inputs": list(record.edited),
                "bytes": record.output["size"] if record.output else 0,
                "sha256": record.output["sha256"] if record.output else None,
                "happened": dict(record.happened),
            }
        )
    return rows


def _bytes(count: int) -> str:
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def _console() -> Any:
    """Return where to print: as wide as the terminal, and wide enough for every line where there is none."""
    import sys

    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=400)


def _table(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table("case", "artifact", "state", "made by", "from", "size", "seconds", "peak MiB", box=None)
    for row in rows:
        table.add_row(
            row["case"],
            row["artifact"] or row["role"],
            row["state"],
            row["stage"],
            " ".join(row["inputs"].values()),
            _bytes(row["bytes"]),
            f"{row['happened'].get('seconds', 0):.2f}",
            f"{row['happened'].get('peak_memory_mib', 0):.0f}",
        )
    _console().print(table)


def _tree(ws: Workspace, rows: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.tree import Tree

    tree = Tree(escape(f"{ws.name}/"))
    branches = {".": tree}
    for row in rows:
        if row["case"] not in branches:
            branches[row["case"]] = tree.add(escape(row["case"] + "/"))
        happened = row["happened"]
        title = f"{row['artifact'] or row['role']}  {row['state']}, {_bytes(row['bytes'])}"
        node = branches[row["case"]].add(escape(title))
        given = " ".join(
            f"--{n.replace('_', '-')}={v}" for n, v in row["params"].items() if v not in (None, False, [], "")
        )
        node.add(escape(f"{row['stage']} {given}".strip() + f" in {happened.get('seconds', 0):.2f} s"))
        for title, values in (("from", row["inputs"].values()), ("edited", row["edited_inputs"])):
            if values:
                node.add(escape(f"{title} {' '.join(values)}"))
        for name, value in row["identity"].items():
            node.add(escape(f"{name}: {value}"))
        for note in happened.get("notes", ()):
            node.add(escape(f"{note['level']}: {note['message']} [{note['code']}]"))
    _console().print(tree)
