"""Print where an artifact lies."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def path(
    workspace: Annotated[Path, typer.Argument(help="Workspace folder.")],
    role: Annotated[str, typer.Argument(help="What to find, for example volume or labels-liver.")],
) -> None:
    """Print where an artifact lies, for tools that are not stages."""
    from mdcli.workspace import Workspace

    print(Workspace(workspace).read(role))
