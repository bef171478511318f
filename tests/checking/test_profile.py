from __future__ import annotations

import json
from importlib.resources import files

import jsonschema
import pytest

from mdcli.checking.profile import Run, StageLine, stage_lines, summarise

SCHEMA = json.loads((files("mdcli") / "schemas" / "profile.json").read_text())
MACHINE = {"md": "1", "python": "3", "system": "s", "cores": 2}


def line(stage: str, seconds: float, spans: dict[str, float], peak: float | None = 10.0, result: str = "processed"):
    return StageLine(stage, seconds, seconds / 2, peak, spans, result)


def test_the_median_over_runs_is_of_the_sum_over_cases():
    runs = [
        Run(5.0, 4.0, 100.0, (line("load", 1.0, {"decode": 0.5}), line("load", 2.0, {"decode": 1.0}, 30.0))),
        Run(7.0, 6.0, 300.0, (line("load", 4.0, {"decode": 2.0}), line("load", 5.0, {}))),
        Run(6.0, 5.0, 200.0, (line("load", 2.0, {"decode": 0.25}), line("load", 2.0, {"write": 1.0}))),
    ]
    report = summarise(runs, "pss", MACHINE)
    jsonschema.validate(report, SCHEMA)
    assert report["total"]["wall_seconds"] == {"median": 6.0, "min": 5.0, "max": 7.0}
    assert report["total"]["peak_memory_mib"]["max"] == 300.0
    (stage,) = report["stages"]
    assert stage["cases"] == 2 and stage["results"] == {"processed": 6}
    assert stage["seconds"] == {"median": 4.0, "min": 3.0, "max": 9.0}
    assert stage["cpu_seconds"]["median"] == 2.0
    assert stage["peak_memory_mib"] == {"median": 10.0, "min": 10.0, "max": 30.0}
    assert stage["spans"]["decode"] == {"median": 1.5, "min": 0.25, "max": 2.0}
    assert stage["spans"]["write"] == {"median": 0.0, "min": 0.0, "max": 1.0}


def test_the_total_peak_is_no_less_than_that_of_any_stage():
    runs = [
        Run(1.0, 1.0, 25.0, (line("load", 1.0, {}, 40.0), line("infer", 1.0, {}, 30.0))),
        Run(1.0, 1.0, None, (line("load", 1.0, {}, 20.0), line("infer", 1.0, {}, None))),
        Run(1.0, 1.0, 90.0, (line("load", 1.0, {}, 20.0),)),
    ]
    assert summarise(runs, "pss", MACHINE)["total"]["peak_memory_mib"] == {"median": 40.0, "min": 20.0, "max": 90.0}


def test_a_memory_that_was_not_sampled_is_null_and_the_way_of_measuring_is_stated():
    report = summarise([Run(0.01, 0.01, None, (line("a", 1.0, {}, None),))], "maxrss", MACHINE)
    jsonschema.validate(report, SCHEMA)
    assert report["total"]["peak_memory_mib"] is None and report["stages"][0]["peak_memory_mib"] is None
    assert "resident" in report["definitions"]["peak_memory_mib"]
    assert "PSS" in summarise([Run(1, 1, 1)], "pss", MACHINE)["definitions"]["peak_memory_mib"]


def test_lines_that_stages_noted_are_read_and_others_left_out():
    noted = {
        "schema": "md.profile-line/1",
        "stage": "infer",
        "case": "ws",
        "seconds": 2,
        "cpu_seconds": 3.5,
        "peak_memory_mib": 0,
        "spans": {"window": 1},
        "result": "processed",
    }
    text = "\n".join([json.dumps(noted), "[1]", '{"schema": "other"}', "", json.dumps(noted)[:30]])
    assert stage_lines(text) == (StageLine("infer", 2.0, 3.5, None, {"window": 1.0}, "processed"),)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        '{"schema": "md.profile-line/1"}',
        '{"schema": "md.profile-line/1", "stage": "a", '
        '"seconds": "x", "cpu_seconds": 1, "peak_memory_mib": 1, "spans": [], "result": "y"}',
    ],
)
def test_a_broken_line_counts_for_nothing(text):
    assert stage_lines(text) == ()
