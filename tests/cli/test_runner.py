"""Lines in, lines out: the pipe hides no failure."""

import io
import json

import pytest

from mdcli.cli.runner import Call, Line, parse_line, run_call
from mdcli.errors import DataError, MissingError, UsageError
from mdcli.execution import Controls
from mdcli.reporting import Reporter
from mdcli.stage import Stage
from mdcli.testing import ListReporter
from mdcli.workspace import write_source
from tests.toy import COUNT, DOUBLE, CountParams, DoubleParams


def call(stage, params, **more):
    return Call(stage, params, Controls(), more.pop("reporter", Reporter()), **more)


@pytest.fixture
def cases(tmp_path):
    folders = []
    for number, text in enumerate(("one", "three"), 1):
        (tmp_path / f"{number}.txt").write_text(text)
        folders.append(tmp_path / f"case_{number}")
        write_source(folders[-1], tmp_path / f"{number}.txt")
    return folders


def from_source(ws):
    return CountParams(ws.source())


def test_one_line_comes_out_per_finished_workspace(cases):
    out = io.StringIO()
    status = run_call(call(COUNT, from_source), "-", io.StringIO("".join(f"{c}\n" for c in cases)), out)
    assert status == 0
    assert out.getvalue().splitlines() == [str(c) for c in cases]


def test_json_lines_name_the_artifacts_and_are_taken_in(cases):
    out = io.StringIO()
    run_call(call(COUNT, from_source, as_json=True), str(cases[0]), stdout=out)
    line = json.loads(out.getvalue())
    assert line == {
        "schema": "md.line/1",
        "workspace": str(cases[0]),
        "artifacts": {"count": "count.json"},
        "result": "processed",
        "code": None,
    }
    again = io.StringIO()
    assert run_call(call(DOUBLE, lambda ws: DoubleParams()), "-", io.StringIO(out.getvalue()), again) == 0
    assert again.getvalue() == f"{cases[0]}\n"


def test_no_line_at_all_is_no_input():
    with pytest.raises(MissingError) as caught:
        run_call(call(COUNT, from_source), "-", io.StringIO(""), io.StringIO())
    assert (caught.value.code, caught.value.status) == ("no-input", 66)


def failing(ws, params):
    if ws.name == "case_1":
        raise DataError("bad-case", "this one is bad")
    ws.write_json("double", {"schema": "md.double/1"})


FAILING = Stage("failing", DoubleParams, failing, writes=("double",))


def test_the_first_failure_ends_the_call_without_keep_going(cases):
    out = io.StringIO()
    with pytest.raises(DataError):
        run_call(call(FAILING, lambda ws: DoubleParams()), "-", io.StringIO("".join(f"{c}\n" for c in cases)), out)
    assert out.getvalue() == ""


def test_with_keep_going_a_failed_case_travels_on_and_every_later_stage_ends_with_the_worst_status(cases):
    out, reporter = io.StringIO(), ListReporter()
    lines = io.StringIO("".join(f"{c}\n" for c in cases))
    status = run_call(call(FAILING, lambda ws: DoubleParams(), keep_going=True, reporter=reporter), "-", lines, out)
    assert status == 65
    assert reporter.codes("error") == ["bad-case"]
    failed, done = out.getvalue().splitlines()
    assert json.loads(failed) == {
        "schema": "md.line/1",
        "workspace": str(cases[0]),
        "artifacts": {},
        "result": "failed",
        "code": "bad-case",
        "status": 65,
    }
    assert done == str(cases[1])
    later = io.StringIO()
    assert run_call(call(COUNT, from_source), "-", io.StringIO(out.getvalue()), later) == 65
    assert later.getvalue().splitlines() == [failed, str(cases[1])]


def test_a_bug_in_one_case_is_70_and_the_next_case_goes_on(cases):
    def crash(ws, params):
        if ws.name == "case_1":
            raise ZeroDivisionError("oops")
        ws.write_json("double", {"schema": "md.double/1"})

    out = io.StringIO()
    stage = Stage("crash", DoubleParams, crash, writes=("double",))
    lines = io.StringIO("".join(f"{c}\n" for c in cases))
    assert run_call(call(stage, lambda ws: DoubleParams(), keep_going=True), "-", lines, out) == 70
    assert json.loads(out.getvalue().splitlines()[0])["code"] == "bug"


@pytest.mark.parametrize("text", ['{"schema": "other"}', "{not json", '{"schema": "md.line/1"}'])
def test_a_line_that_is_neither_form_is_refused(text):
    with pytest.raises(UsageError) as caught:
        parse_line(text)
    assert caught.value.code == "bad-line"


def test_a_line_reads_back_as_it_was_written():
    line = Line("/a b/ü", "failed", "bad-case", 65, {})
    assert parse_line(line.text(False)) == line


def test_a_workspace_that_is_a_file_is_a_wrong_call(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError) as caught:
        run_call(call(DOUBLE, lambda ws: DoubleParams()), str(tmp_path / "file"), stdout=io.StringIO())
    assert caught.value.code == "bad-workspace"
