"""What people and machines read on standard error: text lines, or one JSON object a line (`md.log/1`)."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, TextIO

from mdcli.errors import MdError
from mdcli.reporting import Reporter

_ORDER = {"debug": 0, "info": 1, "warning": 2, "error": 3}
_PATIENCE_S = 2.0


def printable(text: str) -> str:
    """Return text with every control character escaped: what comes out of DICOM never steers a terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


class TextReporter(Reporter):
    """Lines for people: `md: warning: sentence [code]`."""

    def __init__(self, level: str = "info", *, name_cases: bool = False, stream: TextIO | None = None) -> None:
        self.level = level
        self.name_cases = name_cases
        self._stream = stream

    @property
    def stream(self) -> TextIO:
        """Return where lines go: standard error, unless a test says otherwise."""
        return self._stream or sys.stderr

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
        """Write one line, if its level is asked for."""
        if _ORDER[level] < _ORDER[self.level]:
            return
        word = "note" if level in ("info", "debug") else level
        where = f"{case}: " if self.name_cases and case else ""
        self._write(printable(f"md: {word}: {where}{message}" + (f" [{code}]" if code else "")))

    def report(self, text: str, document: dict[str, Any], *, stage: str | None = None, case: str | None = None) -> None:
        """Write the lines, whatever the level: they were asked for."""
        self._write(printable(text))

    def _write(self, line: str) -> None:
        # A file name may hold bytes that are no UTF-8: say them escaped instead of failing.
        self.stream.write(line.encode("utf-8", "backslashreplace").decode() + "\n")
        self.stream.flush()

    @contextmanager
    def progress(self, total: float | None, text: str) -> Iterator[Callable[[float], None]]:
        """Show a bar, on a terminal, once the work has taken two seconds."""
        if not self.stream.isatty() or _ORDER[self.level] > _ORDER["info"]:
            yield lambda _done: None
            return
        bar = _Bar(total, text)
        try:
            yield bar.advance
        finally:
            bar.close()


class _Bar:
    def __init__(self, total: float | None, text: str) -> None:
        self._total, self._text = total, text
        self._started, self._done = time.monotonic(), 0.0
        self._progress: Any = None

    def advance(self, done: float) -> None:
        self._done += done
        if self._progress is None:
            if time.monotonic() - self._started < _PATIENCE_S:
                return
            from rich.console import Console
            from rich.progress import Progress

            self._progress = Progress(console=Console(stderr=True), transient=True)
            self._task = self._progress.add_task(self._text, total=self._total)
            self._progress.start()
        self._progress.update(self._task, completed=self._done)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()


class JsonReporter(TextReporter):
    """One JSON object a line: `time`, `level`, `stage`, `case`, `code`, `message`, `numbers` (`md schema log`)."""

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
        """Write one object, if its level is asked for."""
        if _ORDER[level] >= _ORDER[self.level]:
            self._object(level, message, code, stage, case, numbers)

    def report(self, text: str, document: dict[str, Any], *, stage: str | None = None, case: str | None = None) -> None:
        """Write one object with the code `report`: the document is its `numbers`."""
        self._object("info", text.split("\n")[0], "report", stage, case, document)

    def _object(
        self,
        level: str,
        message: str,
        code: str | None,
        stage: str | None,
        case: str | None,
        numbers: dict[str, Any] | None,
    ) -> None:
        line = {
            "schema": "md.log/1",
            "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "level": level,
            "stage": stage,
            "case": case,
            "code": code,
            "message": message,
            "numbers": numbers or {},
        }
        self.stream.write(json.dumps(line, default=str) + "\n")
        self.stream.flush()

    @contextmanager
    def progress(self, total: float | None, text: str) -> Iterator[Callable[[float], None]]:
        """Show nothing."""
        yield lambda _done: None


def make_reporter(log_format: str, level: str, *, name_cases: bool = False) -> TextReporter:
    """Return the reporter for `--log-format text` or `json`."""
    kind = JsonReporter if log_format == "json" else TextReporter
    return kind(level, name_cases=name_cases)


def report_error(reporter: Reporter, error: MdError, *, stage: str | None = None, case: str | None = None) -> None:
    """Report an error, its code and its hint."""
    reporter.event("error", error.message, code=error.code, stage=stage, case=case, numbers=error.numbers)
    if error.hint:
        reporter.event("info", f"hint: {error.hint}", stage=stage, case=case)
