from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest

from mdcli.cli.main import run as md

SCHEMA = json.loads((files("mdcli") / "schemas" / "profile.json").read_text())
LINE = (
    '{"schema": "md.profile-line/1", "stage": "%s", "case": "c", "seconds": %s, "cpu_seconds": 0.5, '
    '"peak_memory_mib": 64, "spans": {"decode": 0.25}, "result": "%s"}'
)


def note(stage: str = "load-volume", seconds: float = 1.0, result: str = "processed") -> str:
    """Return Python that notes a stage as the execution layer does."""
    line = LINE % (stage, seconds, result)
    return f"import os; open(os.environ['MD_PROFILE_LOG'], 'a').write({line!r} + '\\n')"


def profile(tmp_path: Path, *command: str, runs: int = 2) -> tuple[int, dict]:
    report = tmp_path / "profile.json"
    status = md(["profile", "--runs", str(runs), "--json", str(report), "--", *command])
    return status, json.loads(report.read_text()) if report.exists() else {}


def test_it_runs_once_to_warm_up_and_then_as_often_as_asked(tmp_path):
    status, report = profile(tmp_path, "sh", "-c", f"echo run >> {tmp_path}/count", runs=3)
    assert status == 0
    assert (tmp_path / "count").read_text().split() == ["run"] * 4
    assert report["runs"] == 3
    jsonschema.validate(report, SCHEMA)


def test_stages_and_spans_are_taken_from_what_the_stages_note(tmp_path, capsys):
    status, report = profile(tmp_path, sys.executable, "-c", note(seconds=2.5))
    assert status == 0
    (stage,) = report["stages"]
    assert stage["stage"] == "load-volume" and stage["cases"] == 1
    assert stage["seconds"]["median"] == 2.5
    assert stage["spans"]["decode"]["median"] == 0.25
    out = capsys.readouterr().out
    assert "load-volume" in out and "decode" in out and "wall_seconds: " in out


@pytest.mark.parametrize(("runs", "line"), [(1, "one run after a warm-up"), (2, "median of 2 runs after a warm-up")])
def test_it_says_over_how_many_runs(tmp_path, capsys, runs, line):
    profile(tmp_path, "true", runs=runs)
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(("target", "status"), [("folder", 2), ("none/x.json", 66), ("file/x.json", 66)])
def test_a_report_that_can_not_be_written_is_told_before_anything_runs(tmp_path, capsys, monkeypatch, target, status):
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()
    assert md(["profile", "--json", target, "--", "touch", "ran"]) == status
    assert not Path("ran").exists()
    err = capsys.readouterr().err
    assert "--json" in err and ".part" not in err


def test_stages_are_told_to_run_though_up_to_date_but_never_forced(tmp_path):
    code = "import os, sys; sys.exit(os.environ.get('MD_REDO') != '1' or 'MD_FORCE' in os.environ)"
    assert profile(tmp_path, sys.executable, "-c", code)[0] == 0


def test_the_peak_is_that_of_the_whole_tree(tmp_path, monkeypatch):
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("this system does not tell the PSS")
    # Each holds 60 MiB until both do, and then long enough to be seen.
    hold = (
        "import pathlib, sys, time; x = bytearray(b'x' * (60 << 20)); pathlib.Path(sys.argv[1]).touch()\n"
        "while len(list(pathlib.Path(sys.argv[1]).parent.glob('held*'))) < 2: time.sleep(.01)\n"
        "time.sleep(1)"
    )
    monkeypatch.setenv("HOLD", hold)
    monkeypatch.chdir(tmp_path)
    shell = f'{sys.executable} -c "$HOLD" held1 & {sys.executable} -c "$HOLD" held2; wait; rm held*'
    _, report = profile(tmp_path, "sh", "-c", shell, runs=1)
    assert 120 < report["total"]["peak_memory_mib"]["median"] < 240


def test_cpu_time_counts_children(tmp_path):
    burn = "import time\nwhile time.process_time() < .4: pass"
    _, report = profile(tmp_path, "sh", "-c", f"{sys.executable} -c '{burn}'; true", runs=1)
    assert report["total"]["cpu_seconds"]["median"] >= 0.4


@pytest.mark.parametrize("words", [["sh", "-c", "echo why >&2; exit 65"], ["exit 65 | cat"]])
def test_a_command_that_fails_ends_with_its_own_status(tmp_path, words):
    status, report = profile(tmp_path, *words)
    assert status == 65 and report == {}


def test_what_a_failed_command_said_is_shown(tmp_path, capfd):
    profile(tmp_path, "sh", "-c", "echo why >&2; exit 3")
    assert "why" in capfd.readouterr().err


def test_a_command_ended_by_a_signal_ends_as_in_a_shell(tmp_path):
    assert profile(tmp_path, "sh", "-c", "kill -9 $$")[0] == 137


def test_a_command_that_is_not_there_is_missing(tmp_path):
    assert profile(tmp_path, "no-such-command")[0] == 66


def test_a_file_that_is_no_program_can_not_be_run(tmp_path):
    program = tmp_path / "program"
    program.write_bytes(b"\0")
    program.chmod(0o700)
    assert profile(tmp_path, str(program))[0] == 66


@pytest.mark.parametrize(("result", "code"), [("failed", "hidden-failure"), ("up-to-date", "not-measured")])
def test_a_failure_that_the_pipe_hid_and_work_that_was_not_done_are_told(tmp_path, capsys, result, code):
    status, _ = profile(tmp_path, sys.executable, "-c", note(result=result), runs=1)
    assert status == 0
    assert f"[{code}]" in capsys.readouterr().err


def test_the_measured_command_reads_no_input_and_its_output_is_not_shown(tmp_path, capfd):
    assert profile(tmp_path, "sh", "-c", "cat; echo noise")[0] == 0
    assert "noise" not in capfd.readouterr().out


def test_ctrl_c_ends_what_was_measured(tmp_path):
    pid_file = tmp_path / "pid"
    words = ["profile", "--", "sh", "-c", f"echo $$ > {pid_file}.part; mv {pid_file}.part {pid_file}; sleep 60"]
    # A shell starts what it puts in the background with Ctrl-C ignored, and md leaves it so. Tests may be started like that.
    code = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.executable, sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, sys.executable, "-m", "mdcli", *words],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    while not pid_file.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)
