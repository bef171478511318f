"""What a run tells the person beside its result: events and progress. The terminal implements it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Reporter:
    """Takes what happens while a stage runs. This one says nothing; `mdcli.cli.log` has those that do."""

    def event(
        self,
        level: str,
        message: str,
        *,
        code: str | None = None,
        stage: str | None = None,
        case: str | None = None,
        numbers: dict[str, Any] | None = None,
    ) -> None:
        """Take one event.

        Args:
            level: `debug`, `info`, `warning` or `error`.
            message: one sentence, without any patient's name, id or birth date.
            code: its fixed code.
            stage: which stage says it.
            case: the workspace's own name.
            numbers: the values behind the sentence.
        """

    def report(self, text: str, document: dict[str, Any], *, stage: str | None = None, case: str | None = None) -> None:
        """Take a report that was asked for: lines for a person, and the same for a machine."""

    @contextmanager
    def progress(self, total: float | None, text: str) -> Iterator[Callable[[float], None]]:
        """Give a function to call with how much more is done, in the unit of `total`."""
        yield lambda _done: None
