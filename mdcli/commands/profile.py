"""Measure time and memory of a stage or a chain."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from mdcli.errors import MissingError, UnavailableError

if TYPE_CHECKING:
    from mdcli.checking.profile import Run

_INTERVAL = 0.025
# A sample walks the page tables of every process: at most this part of the time goes into it.
_SHARE = 0.1


def profile(
    command: Annotated[
        list[str],
        typer.Argument(metavar="-- COMMAND", help="What to run: md ..., or one quoted shell line.", show_default=False),
    ],
    runs: Annotated[int, typer.Option(min=1, help="Measured runs, after one warm-up.")] = 3,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON, md.profile/1.")
    ] = None,
) -> None:
    """Repeat a stage, a chain or a shell line and print wall, CPU and peak memory, in total and per stage and span.

    Stages run although they are up to date; a file that a person changed is never replaced. Standard input is empty, and
    standard output is not shown.

    \b
        md profile -- md load-volume ws
        md profile --runs 5 -- 'md load-volume ws | md infer - --model ct-tissue | md write-seg -'
    """
    from mdcli import __version__
    from mdcli.checking.profile import summarise
    from mdcli.execution import pss_mib
    from mdcli.records import storage_errors, write_whole

    if json_file is not None:
        # The module it lies in loads what comparing needs: only for who wants a report.
        from mdcli.checking.report import check_target

        check_target(json_file, "--json")
    if not hasattr(os, "wait4"):
        raise UnavailableError("no-measure", "this system does not say what a process used")
    memory = "pss" if pss_mib(os.getpid()) > 0 else "maxrss"
    words = _words(command)
    measured = [_measure(words, memory) for _ in range(runs + 1)][1:]
    machine = {
        "md": __version__,
        "python": sys.version.split()[0],
        "system": os.uname().sysname,
        "cores": os.cpu_count(),
    }
    report = summarise(measured, memory, machine)
    if json_file is not None:
        with storage_errors(json_file.name):
            write_whole(json_file, json.dumps(report, indent=1, allow_nan=False).encode() + b"\n")
    _print(report)
    warnings = {
        "failed": "failed, and the command's status hid it: set -o pipefail [hidden-failure]",
        "up-to-date": "had nothing to do, and was not measured: did a person change its output? [not-measured]",
    }
    for stage in report["stages"]:
        for result, text in warnings.items():
            if stage["results"].get(result):
                print(f"md: warning: {stage['stage']} {text}", file=sys.stderr)


def _words(command: list[str]) -> list[str]:
    """Return what to execute: words as they are, a single word with a blank in it as a line for the shell."""
    if len(command) == 1 and len(command[0].split()) > 1:
        bash = shutil.which("bash")
        # A pipe must not hide a failure; the plain shell of POSIX knew no pipefail for long.
        return [bash, "-o", "pipefail", "-c", command[0]] if bash else ["sh", "-c", command[0]]
    return command


def _measure(words: list[str], memory: str) -> Run:
    """Run the command once.

    Raises:
        MissingError: `no-command`.
        Exit: with the command's own status, where it is not 0, after its standard error was shown.
    """
    from mdcli.checking.profile import Run, stage_lines
    from mdcli.execution import pss_mib

    with tempfile.TemporaryDirectory(prefix="md-profile-") as folder, tempfile.TemporaryFile() as errors:
        log = Path(folder, "stages.jsonl")
        # This md, where the shell would find none.
        path = os.pathsep.join(filter(None, (os.environ.get("PATH"), str(Path(sys.executable).parent))))
        environment = {**os.environ, "PATH": path, "MD_PROFILE_LOG": str(log), "MD_REDO": "1"}
        executable = shutil.which(words[0], path=path)
        if executable is None:
            raise MissingError("no-command", f"there is no command {words[0]}")
        end = _Process(words, executable, environment, errors)
        try:
            end.start()
            peak, pause = 0.0, 0.0
            while not end.wait(pause):
                before = time.perf_counter()
                peak = max(peak, pss_mib(end.pid) if memory == "pss" and end.pid else 0.0)
                pause = max(_INTERVAL, (time.perf_counter() - before) / _SHARE)
        finally:
            end.stop()
        if end.failure is not None:
            raise MissingError("no-command", f"{words[0]} can't be run: {end.failure.strerror}")
        if end.status:
            errors.seek(0)
            shutil.copyfileobj(errors, sys.stderr.buffer)
            sys.stderr.flush()
            print(f"md: error: the command ended with status {end.status} [command-failed]", file=sys.stderr)
            raise typer.Exit(end.status)
        if memory == "maxrss":
            peak = end.usage.ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
        lines = stage_lines(log.read_text()) if log.exists() else ()
        return Run(end.seconds, end.usage.ru_utime + end.usage.ru_stime, peak or None, lines)


class _Process(threading.Thread):
    """Starts a process and waits for it, beside the sampling: its end is timed when it comes, not when a sample is due.

    Ctrl-C interrupts the main thread only, so no interrupt can come between the start of the process and knowing its number;
    one that comes before the start keeps the process from starting.
    """

    usage: Any
    seconds: float
    status: int

    def __init__(self, words: list[str], executable: str, environment: dict[str, str], errors: IO[bytes]) -> None:
        super().__init__(daemon=True)
        self._words, self._executable, self._environment, self._errors = words, executable, environment, errors
        self._starting, self._over = threading.Lock(), threading.Event()
        self._cancelled = False
        self.pid: int | None = None
        self.failure: OSError | None = None

    def run(self) -> None:
        """Start, wait, and keep the time, the status as a shell says it (128 + signal), and the resources used."""
        with self._starting:
            if self._cancelled:
                return
            start = time.perf_counter()
            try:
                process = subprocess.Popen(
                    self._words,
                    executable=self._executable,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    env=self._environment,
                    start_new_session=True,
                )
            except OSError as failure:
                self.failure = failure
                self._over.set()
                return
            self.pid = process.pid
        _, status, self.usage = os.wait4(process.pid, 0)
        self.seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        self.status = process.returncode if process.returncode >= 0 else 128 - process.returncode
        self._over.set()

    def wait(self, seconds: float) -> bool:
        """Wait at most so long; say whether the process has ended."""
        return self._over.wait(seconds)

    def stop(self) -> None:
        """End the process and its children, where it has not ended by itself: this run was interrupted."""
        with self._starting:
            self._cancelled = True
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.pid and not self._over.is_set():
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, number)
                self._over.wait(5)


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("what", overflow="fold")
    for title in ("cases", "wall s", "smallest", "largest", "CPU s", "peak MiB"):
        table.add_column(title, justify="right", no_wrap=True)
    total = report["total"]
    table.add_row("total", "", *_times(total["wall_seconds"]), *_rest(total))
    for stage in report["stages"]:
        table.add_row(Text(stage["stage"]), str(stage["cases"]), *_times(stage["seconds"]), *_rest(stage))
        for name, spread in stage["spans"].items():
            table.add_row(Text(f"  {name}"), "", *_times(spread), "", "")
    # Wider than most terminals, so that no column is folded away; the table takes what it needs.
    console = Console(highlight=False, soft_wrap=True, width=200)
    console.print(table)
    runs = report["runs"]
    console.print(Text(f"{f'median of {runs} runs' if runs > 1 else 'one run'} after a warm-up", style="dim"))
    for name, text in report["definitions"].items():
        console.print(Text(f"{name}: {text}", style="dim"))


def _times(spread: dict[str, float]) -> list[str]:
    return [f"{spread[name]:.3f}" for name in ("median", "min", "max")]


def _rest(numbers: dict[str, Any]) -> list[str]:
    cpu, peak = numbers["cpu_seconds"], numbers["peak_memory_mib"]
    return [f"{cpu['median']:.3f}", f"{peak['median']:.1f}" if peak else ""]
