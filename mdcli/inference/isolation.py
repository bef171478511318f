"""Run a child that converts a model: its own folder, no network, no variables of the caller, a limit on memory and time."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdcli.errors import ConfigError, MdError, OutOfTimeError, UnavailableError

CHILD_FILE = Path(__file__).with_name("torch_child.py")
INSTALL_TORCH = "pip install 'mdcli[torch]'"

_python = sys.executable
_MAX_ANSWER_BYTES = 4 << 20
_MEMORY_PART = 0.75
_NOT_ISOLATED = "this system does not let a process without network start: {name} was converted with the network there"


@dataclass(frozen=True)
class Answer:
    """What the child found: `Converted.facts`, notes as (code, sentence), and how many outputs the network has."""

    facts: dict[str, Any]
    notes: tuple[tuple[str, str], ...]
    outputs: int


def use_python(python: str | None) -> None:
    """Say, for this process, which interpreter has torch; None: this one. The caller knows where it was named."""
    global _python
    _python = python or sys.executable


def run_child(
    folder: Path,
    request: Mapping[str, Any],
    *,
    name: str,
    python: str | None,
    timeout_s: float,
    script: Path = CHILD_FILE,
    install: str = INSTALL_TORCH,
) -> Answer:
    """Run `torch_child.py`, or a script that keeps to its protocol, on a request and return what it found.

    Args:
        folder: a private folder that holds the child's files; it reads and writes there.
        request: plain JSON values; see `torch_child`.
        name: the file's name, for messages.
        python: an interpreter that has torch; None: that of `use_python`.
        timeout_s: when it is killed.
        script: the child; one of a plugin calls `isolate` of `CHILD_FILE`, by its path, before anything else.
        install: how what the child needs is installed.

    Raises:
        ConfigError: what the child refuses, by its code; `conversion-failed` where it dies.
        UnavailableError: `no-engine`.
        OutOfTimeError: `conversion-timeout`.
    """
    child = _start(folder, request, python, script)
    try:
        status = child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        text = f"converting {name} took over {timeout_s:g} s"
        raise OutOfTimeError("conversion-timeout", text, seconds=timeout_s) from None
    finally:
        _end(child)
    return _answer(folder, status, name, install)


class LiveChild:
    """A child that has loaded a network and runs it on one array after another.

    Args:
        folder: as `run_child`, whose other arguments and errors hold here too.
        request: as `run_child`.
        name: as `run_child`.
        python: as `run_child`.
        timeout_s: for loading, and for each run.
    """

    def __init__(
        self, folder: Path, request: Mapping[str, Any], *, name: str, python: str | None, timeout_s: float
    ) -> None:
        self._folder, self._name, self._timeout_s = folder, name, timeout_s
        self._child = _start(folder, {**request, "serve": True}, python, CHILD_FILE, pipes=True)
        self.answer: Answer
        try:
            self.answer = self.ask("")
        except BaseException:
            self.close()
            raise

    def ask(self, word: str) -> Answer:
        """Send a word, and return the answer; the first answer, that it is ready, comes without one."""
        child = self._child
        assert child.stdin is not None and child.stdout is not None
        try:
            if word:
                child.stdin.write(word.encode() + b"\n")
                child.stdin.flush()
            ready, _, _ = select.select([child.stdout], [], [], self._timeout_s)
            if not ready:
                text = f"running {self._name} took over {self._timeout_s:g} s"
                raise OutOfTimeError("conversion-timeout", text, seconds=self._timeout_s)
            alive = child.stdout.read(1)
        except BrokenPipeError:
            alive = b""
        status = 0 if alive else child.wait(self._timeout_s)
        answer = _answer(self._folder, status, self._name, INSTALL_TORCH)
        (self._folder / "answer.json").unlink()
        return answer

    def close(self) -> None:
        """End the child."""
        for pipe in (self._child.stdin, self._child.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        _end(self._child)


def _start(
    folder: Path, request: Mapping[str, Any], python: str | None, script: Path, *, pipes: bool = False
) -> subprocess.Popen[bytes]:
    """Start a child on a request."""
    (folder / "request.json").write_text(json.dumps({**request, "memory": _memory()}), encoding="utf-8")
    command = [python or _python, "-I", "-B", "-X", "utf8", str(script), str(folder / "request.json")]
    variables = {"PATH": os.defpath, "HOME": str(folder), "TMPDIR": str(folder)}
    with (folder / "log.txt").open("wb") as log:
        try:
            return subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.PIPE if pipes else subprocess.DEVNULL,
                stdout=subprocess.PIPE if pipes else log,
                stderr=log,
                env=variables,
                cwd=folder,
                start_new_session=True,
            )
        except OSError as error:
            raise UnavailableError("no-engine", f"{command[0]} does not start: {error.strerror}") from error


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child and what it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        child.kill()
    child.wait()


def _memory() -> int:
    """Return how many bytes the child may take: most of the machine, so that it ends before the system does."""
    return int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * _MEMORY_PART)


def _answer(folder: Path, status: int, name: str, install: str) -> Answer:
    file = folder / "answer.json"
    try:
        with file.open("rb") as opened:
            said = json.loads(opened.read(_MAX_ANSWER_BYTES))
        if "error" in said:
            raise _error(str(said["error"]), str(said["message"]), name, install)
        notes = [] if said["isolated"] else [("not-isolated", _NOT_ISOLATED.format(name=name))]
        notes += [(str(code), str(text)) for code, text in said["notes"]]
        return Answer(dict(said["facts"]), tuple(notes), int(said["outputs"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        how = f"signal {-status}" if status < 0 else f"status {status}"
        raise ConfigError("conversion-failed", f"converting {name} ended with {how}: {_last_line(folder)}") from None


def _error(code: str, message: str, name: str, install: str) -> MdError:
    text = f"{name}: {_plain(message)}"
    if code == "no-engine":
        return UnavailableError(code, text, hint=install)
    known = {"refused-pickle", "refused-operator", "bad-network", "unsupported-network", "network-does-not-fit"}
    known.add("conversion-differs")
    return ConfigError(code if code in known else "conversion-failed", text)


def _last_line(folder: Path) -> str:
    text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip()
    return _plain(text[-2000:].splitlines()[-1]) if text else "it said nothing"


def _plain(text: str) -> str:
    """Return what a child said as one line, everything unprintable escaped: the file may have chosen its words."""
    line = " ".join(text.split())[:300]
    return line if line.isprintable() else ascii(line)[1:-1]
