"""Measure a whole process: wall and CPU seconds, and the largest sum of PSS over its tree. For the benchmarks beside it."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mdcli.execution import pss_mib


class Measured(NamedTuple):
    """One run of a command."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def measure(command: Sequence[str], cwd: Path | None = None, interval_s: float | None = 0.05) -> Measured:
    """Run a command to its end and measure it, its children included.

    Args:
        command: the program and its arguments.
        cwd: where it is started.
        interval_s: between two samples of memory, seconds; None leaves memory out, which disturbs the time least.

    Raises:
        CalledProcessError: where it fails.
    """
    before, started = os.times(), time.perf_counter()
    child = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak, done = 0.0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while interval_s is not None and not done.wait(interval_s):
            peak = max(peak, pss_mib(child.pid))

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    _, text = child.communicate()
    wall, after = time.perf_counter() - started, os.times()
    done.set()
    sampler.join()
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command, stderr=text)
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Measured(wall, cpu, peak)
