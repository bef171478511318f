"""For plugins and tests: run a stage as `md` would, and the promises that every stage keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mdcli.execution import Controls, Outcome, execute
from mdcli.reporting import Reporter
from mdcli.stage import Stage
from mdcli.workspace import Workspace


class ListReporter(Reporter):
    """Keeps the events, for a test to look at."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def event(self, level: str, message: str, **facts: Any) -> None:
        """Keep one event."""
        self.events.append({"level": level, "message": message, **facts})

    def codes(self, level: str | None = None) -> list[str]:
        """Return the codes of the events, of one level or all."""
        return [e["code"] for e in self.events if level in (None, e["level"])]


def run_stage(
    stage: Stage,
    workspace: Workspace | Path | str,
    *,
    controls: Controls | None = None,
    reporter: Reporter | None = None,
    use: Mapping[str, str] | None = None,
    as_name: str | None = None,
    **params: Any,
) -> Outcome:
    """Run a stage over one workspace, with its parameters by name.

    Returns:
        What is in place now.

    Raises:
        MdError: as the stage does.
    """
    ws = workspace if isinstance(workspace, Workspace) else Workspace(workspace, as_name=as_name, use=use)
    outcome = execute(stage, ws, stage.params(**params), controls, reporter)
    assert outcome is not None, "a dry run has no outcome"
    return outcome
