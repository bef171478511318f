"""Print the JSON Schema of a format."""

from __future__ import annotations

from typing import Annotated

import typer


def schema(
    name: Annotated[
        str | None, typer.Argument(help="For example series, geometry, segments, model, record, log.")
    ] = None,
) -> None:
    """Print the JSON Schema of a format of md, or list all formats."""
    import difflib
    import json
    from importlib.resources import files

    from mdcli.errors import UsageError

    folder = files("mdcli") / "schemas"
    known = sorted(entry.name.removesuffix(".json") for entry in folder.iterdir() if entry.name.endswith(".json"))
    if name is None:
        for word in known:
            document = json.loads((folder / f"{word}.json").read_text(encoding="utf-8"))
            print(f"{word:<12} {document['title']}")
        return
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
        raise UsageError("no-such-schema", f"md has no format {name}", hint=hint)
    print((folder / f"{name}.json").read_text(encoding="utf-8"), end="")
