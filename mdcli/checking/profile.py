"""Put the measurements of repeated runs together: `md.profile/1`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

SCHEMA = "md.profile/1"
LINE = "md.profile-line/1"
DEFINITIONS: dict[str, str] = {
    "wall_seconds": "from the start of the command to its end",
    "cpu_seconds": "user and system time of the command and all that it waited for",
    "seconds": "wall time inside a stage or span, summed over the cases; the start of Python before it does not count, and the"
    " stages of a pipe overlap",
}
MEMORY = {
    "pss": "largest sum of PSS over the process tree, sampled; memory that processes share counts once",
    "maxrss": "largest resident set of any one process: this system does not tell the PSS",
}


@dataclass(frozen=True)
class StageLine:
    """What one stage of a run noted for one case.

    Attributes:
        stage: its name.
        seconds: wall.
        cpu_seconds: of its process, meanwhile.
        peak_memory_mib: of its process tree, or None.
        spans: name to wall seconds.
        result: `processed`, `up-to-date`, `nothing-found` or `failed`.
    """

    stage: str
    seconds: float
    cpu_seconds: float
    peak_memory_mib: float | None
    spans: dict[str, float]
    result: str


@dataclass(frozen=True)
class Run:
    """One measured run of the command.

    Attributes:
        wall_seconds: start to end.
        cpu_seconds: user and system.
        peak_memory_mib: None where no sample was taken before it ended.
        lines: one a stage and case.
    """

    wall_seconds: float
    cpu_seconds: float
    peak_memory_mib: float | None
    lines: tuple[StageLine, ...] = ()


def stage_lines(text: str) -> tuple[StageLine, ...]:
    """Return what the stages of one run noted, one JSON object a line. A line that was cut off by a kill is left out."""
    found = []
    for line in text.splitlines():
        try:
            noted = json.loads(line)
            if noted["schema"] != LINE:
                continue
            peak = noted["peak_memory_mib"]
            found.append(
                StageLine(
                    str(noted["stage"]),
                    float(noted["seconds"]),
                    float(noted["cpu_seconds"]),
                    float(peak) if peak else None,
                    {str(name): float(seconds) for name, seconds in noted["spans"].items()},
                    str(noted["result"]),
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return tuple(found)


def summarise(runs: Sequence[Run], memory: str, machine: dict[str, Any]) -> dict[str, Any]:
    """Return the report over at least one run as `md.profile/1`: of each number the median, the smallest and the largest.

    Args:
        runs: the measured ones, without the warm-up.
        memory: `pss` or `maxrss`: how the peak of the whole command was measured.
        machine: facts about where it ran.
    """
    names = list(dict.fromkeys(line.stage for run in runs for line in run.lines))
    return {
        "schema": SCHEMA,
        "runs": len(runs),
        "machine": machine,
        "definitions": {**DEFINITIONS, "peak_memory_mib": MEMORY[memory]},
        "total": {
            "wall_seconds": _spread(run.wall_seconds for run in runs),
            "cpu_seconds": _spread(run.cpu_seconds for run in runs),
            "peak_memory_mib": _spread(_peak(run) for run in runs),
        },
        "stages": [
            _stage(name, [[line for line in run.lines if line.stage == name] for run in runs]) for name in names
        ],
    }


def _peak(run: Run) -> float | None:
    """Return the peak of a run: its own samples can miss one that a stage saw, but the whole is no less than a part."""
    peaks = (run.peak_memory_mib, *(line.peak_memory_mib for line in run.lines))
    return max((peak for peak in peaks if peak is not None), default=None)


def _stage(name: str, runs: list[list[StageLine]]) -> dict[str, Any]:
    runs = [lines for lines in runs if lines]
    every = [line for lines in runs for line in lines]
    spans = dict.fromkeys(span for line in every for span in line.spans)
    return {
        "stage": name,
        "cases": max(len(lines) for lines in runs),
        "results": {
            result: sum(line.result == result for line in every) for result in sorted({x.result for x in every})
        },
        "seconds": _spread(sum(line.seconds for line in lines) for lines in runs),
        "cpu_seconds": _spread(sum(line.cpu_seconds for line in lines) for lines in runs),
        "peak_memory_mib": _spread(
            max((x.peak_memory_mib for x in lines if x.peak_memory_mib), default=None) for lines in runs
        ),
        "spans": {span: _spread(sum(line.spans.get(span, 0.0) for line in lines) for lines in runs) for span in spans},
    }


def _spread(values: Iterable[float | None]) -> dict[str, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {name: round(f(known), 6) for name, f in (("median", median), ("min", min), ("max", max))}
