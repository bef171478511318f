"""Measure a whole process: wall and CPU seconds, and the largest sum of PSS over its tree. For the benchmarks beside it."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mdcli.execution import pss_mib


@dataclass(frozen=True)
class Measured:
    """One run of a command."""

    wall_s: float
    cpu_s: float
    peak_mib: float


def measure(command: Sequence[str], cwd: Path | None = None, interval_s: float = 0.05) -> Measured:
    """Run a command to its end and measure it, its children included.

    Raises:
        CalledProcessError: where it fails.
    """
    before, started = os.times(), time.perf_counter()
    child = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    peak, done = 0.0, threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(interval_s):
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
