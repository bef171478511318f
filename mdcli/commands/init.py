"""Copy a template to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    template: Annotated[
        str | None,
        typer.Argument(
            help="Which one; without it, the list.", autocompletion=lambda: ["makefile", "model", "stage", "two-stage"]
        ),
    ] = None,
    folder: Annotated[Path, typer.Argument(help="Where to.")] = Path(),
) -> None:
    """Copy a template into a folder. A file that is already there is never replaced."""
    import difflib
    from importlib.resources import as_file, files

    from mdcli.errors import PersonsFileError, UsageError

    with as_file(files("mdcli") / "templates") as packaged:
        root = packaged
        names = sorted(p.name for p in root.iterdir() if p.is_dir())
        if template is None:
            for name in names:
                print(f"{name:<12} {(root / name / 'ABOUT.txt').read_text(encoding='utf-8').splitlines()[0]}")
            return
        if template not in names:
            near = difflib.get_close_matches(template, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise UsageError("no-such-template", f"md has no template {template}", hint=hint)
        inside = [
            p
            for p in sorted((root / template).rglob("*"))
            if p.is_file() and p.name != "ABOUT.txt" and p.suffix != ".pyc"
        ]
        targets = [folder / p.relative_to(root / template) for p in inside]
        taken = [target for target in targets if target.exists() or target.is_symlink()]
        if taken:
            raise PersonsFileError("persons-file", f"{taken[0]} is already there", hint="choose another folder")
        for origin, target in zip(inside, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(origin.read_bytes())
            print(target)
