"""Freshness, atomic writes, edited files, children: what holds for every stage."""

import json
import os
import stat

import pytest

from mdcli.errors import DataError, MissingError, PersonsFileError, UsageError
from mdcli.execution import Controls, execute, why_recorded_is_stale
from mdcli.records import PART, load_record
from mdcli.stage import Stage
from mdcli.testing import ListReporter, run_stage
from mdcli.workspace import Workspace
from tests.toy import COUNT, DOUBLE, SPLIT, CountParams


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("hello")
    return path


@pytest.fixture
def ws(tmp_path):
    return tmp_path / "ws"


def value(ws, role="count"):
    return json.loads((ws / f"{role}.json").read_text())["value"]


def test_the_second_run_does_nothing(ws, text):
    assert not run_stage(COUNT, ws, source=text).up_to_date
    before = (ws / "count.json").stat().st_mtime_ns
    assert run_stage(COUNT, ws, source=text).up_to_date
    assert (ws / "count.json").stat().st_mtime_ns == before


def test_a_parameter_that_matters_makes_it_run_again_and_one_that_does_not_matter_does_not(ws, text):
    run_stage(COUNT, ws, source=text)
    assert run_stage(COUNT, ws, source=text, threads=4).up_to_date
    assert not run_stage(COUNT, ws, source=text, unit="bytes").up_to_date


def test_changed_input_rebuilds_what_follows(ws, text):
    run_stage(COUNT, ws, source=text)
    run_stage(DOUBLE, ws)
    text.write_text("hello world")
    assert not run_stage(COUNT, ws, source=text).up_to_date
    assert not run_stage(DOUBLE, ws).up_to_date
    assert value(ws, "double") == 22


def test_a_touched_input_settles_in_one_pass_and_is_newer_than_its_input(ws, text):
    run_stage(COUNT, ws, source=text)
    run_stage(DOUBLE, ws)
    os.utime(text, ns=(1, 10**18))
    os.utime(ws / "count.json", (4e9, 4e9))
    assert run_stage(COUNT, ws, source=text).up_to_date
    assert run_stage(DOUBLE, ws).up_to_date
    before = [(ws / name).stat().st_mtime_ns for name in ("count.json", "double.json")]
    assert run_stage(COUNT, ws, source=text).up_to_date
    assert (ws / "count.json").stat().st_mtime_ns == before[0]


def test_an_up_to_date_artifact_is_touched_only_if_an_input_is_newer(ws, text):
    run_stage(COUNT, ws, source=text)
    run_stage(DOUBLE, ws)
    past = (ws / "double.json").stat().st_mtime_ns
    run_stage(DOUBLE, ws)
    assert (ws / "double.json").stat().st_mtime_ns == past
    os.utime(ws / "count.json")
    run_stage(DOUBLE, ws)
    assert (ws / "double.json").stat().st_mtime_ns > past


def test_same_size_and_time_are_believed_until_rehash_is_asked(ws, text):
    run_stage(COUNT, ws, source=text)
    path = ws / "count.json"
    stamp = path.stat().st_mtime_ns
    path.write_text(path.read_text().replace("5", "6"))
    os.utime(path, ns=(stamp, stamp))
    assert Workspace(ws).state("count")[0] == "made"
    assert Workspace(ws).state("count", rehash=True)[0] == "edited"


def test_an_edited_file_is_accepted_downstream_and_marked_and_inherited(ws, text):
    run_stage(COUNT, ws, source=text)
    path = ws / "count.json"
    path.write_text(path.read_text().replace("5", "7"))
    run_stage(DOUBLE, ws)
    assert value(ws, "double") == 14
    assert load_record(ws, "double").edited == ("count",)
    again = Stage(
        "again", DOUBLE.params, lambda w, p: w.write_json("again", {"schema": "md.again/1"}), ("double",), ("again",)
    )
    run_stage(again, ws)
    assert load_record(ws, "again").edited == ("count",)


def test_an_edited_file_is_kept_while_its_inputs_are_the_same(ws, text):
    run_stage(COUNT, ws, source=text)
    (ws / "count.json").write_text("mine")
    reporter = ListReporter()
    assert run_stage(COUNT, ws, source=text, reporter=reporter).up_to_date
    assert reporter.codes() == ["kept-edited"]
    assert (ws / "count.json").read_text() == "mine"


def test_a_changed_input_never_replaces_an_edited_file_and_force_moves_it_aside(ws, text):
    run_stage(COUNT, ws, source=text)
    (ws / "count.json").write_text("mine")
    text.write_text("hi")
    with pytest.raises(PersonsFileError) as caught:
        run_stage(COUNT, ws, source=text)
    assert (caught.value.code, caught.value.status) == ("persons-file", 73)
    assert (ws / "count.json").read_text() == "mine"
    run_stage(COUNT, ws, source=text, controls=Controls(force=True))
    assert (ws / "count.edited-1.json").read_text() == "mine"
    assert value(ws) == 2


def test_a_file_that_md_did_not_make_is_not_replaced(ws, text):
    ws.mkdir()
    (ws / "count.json").write_text("mine")
    with pytest.raises(PersonsFileError):
        run_stage(COUNT, ws, source=text)


def test_redo_runs_again_but_never_touches_an_edited_file(ws, text):
    run_stage(COUNT, ws, source=text)
    assert not run_stage(COUNT, ws, source=text, controls=Controls(redo=True)).up_to_date
    (ws / "count.json").write_text("mine")
    assert run_stage(COUNT, ws, source=text, controls=Controls(redo=True)).up_to_date
    assert (ws / "count.json").read_text() == "mine"


def test_nothing_found_leaves_a_record_and_no_artifact(ws, text):
    run_stage(COUNT, ws, source=text)
    text.write_text("")
    outcome = run_stage(COUNT, ws, source=text)
    assert outcome.result == "nothing-found"
    assert not (ws / "count.json").exists()
    assert load_record(ws, "count").result == "nothing-found"
    assert run_stage(COUNT, ws, source=text).up_to_date


def test_a_stage_that_returns_without_its_output_is_a_bug(ws):
    lazy = Stage("lazy", DOUBLE.params, lambda ws, params: None, writes=("double",))
    with pytest.raises(RuntimeError, match=r"without double\.json"):
        run_stage(lazy, ws)


def test_a_stage_can_not_write_what_it_does_not_declare(ws):
    sly = Stage(
        "sly", DOUBLE.params, lambda ws, params: ws.write_json("labels", {"schema": "md.labels/1"}), writes=("double",)
    )
    with pytest.raises(RuntimeError, match="does not declare"):
        run_stage(sly, ws)


def test_a_failed_run_leaves_the_old_artifact_and_no_temporary_file(ws, text):
    run_stage(COUNT, ws, source=text)

    def fail(ws, params):
        ws.write_json("count", {"schema": "md.count/1"})
        raise DataError("broken", "it broke")

    with pytest.raises(DataError):
        run_stage(Stage("count", CountParams, fail, writes=("count",), version=2), ws, source=text)
    assert value(ws) == 5
    assert not list(ws.glob(f"{PART}*"))


@pytest.mark.parametrize("renamed", [False, True], ids=["killed before the rename", "killed after the rename"])
def test_a_killed_run_is_finished_or_repeated(ws, text, renamed):
    run_stage(COUNT, ws, source=text)
    (ws / "count.record.json").rename(ws / ".count.pending.json")
    if not renamed:
        (ws / "count.json").unlink()
    outcome = run_stage(COUNT, ws, source=text)
    assert outcome.up_to_date is renamed
    assert value(ws) == 5
    assert load_record(ws, "count").result == "processed"


def test_a_missing_input_names_itself(ws):
    with pytest.raises(MissingError) as caught:
        run_stage(DOUBLE, ws)
    assert caught.value.code == "no-workspace"
    ws.mkdir()
    with pytest.raises(MissingError) as caught:
        run_stage(DOUBLE, ws)
    assert caught.value.code == "no-artifact"


def test_strict_makes_a_warning_an_error(ws, text):
    text.write_text("x" * 101)
    reporter = ListReporter()
    run_stage(COUNT, ws, source=text, reporter=reporter)
    assert reporter.codes("warning") == ["long-text"]
    with pytest.raises(DataError) as caught:
        run_stage(COUNT, ws, source=text, controls=Controls(strict=True, force=True))
    assert caught.value.code == "long-text"


def test_strict_takes_no_result_that_an_earlier_run_warned_of(ws, text):
    text.write_text("x" * 101)
    run_stage(COUNT, ws, source=text)
    with pytest.raises(DataError) as caught:
        run_stage(COUNT, ws, source=text, controls=Controls(strict=True))
    assert caught.value.code == "long-text"


def test_a_dry_run_says_why_and_does_nothing(ws, text):
    reporter = ListReporter()
    assert execute(COUNT, Workspace(ws), CountParams(text), Controls(dry_run=True), reporter) is None
    assert "never made" in reporter.events[0]["message"]
    assert not ws.exists()


def test_names_keep_artifacts_apart(ws, text):
    run_stage(COUNT, ws, source=text, as_name="t2")
    run_stage(DOUBLE, ws, use={"count": "t2"}, as_name="t2")
    assert {p.name for p in ws.glob("*.json") if "record" not in p.name} == {"count-t2.json", "double-t2.json"}
    with pytest.raises(UsageError):
        Workspace(ws, as_name="../up")


def test_children_are_the_finished_workspaces_and_stay_up_to_date(ws, text):
    run_stage(COUNT, ws, source=text, as_name="whole")
    outcome = run_stage(SPLIT, ws, use={"count": "whole"})
    assert outcome.workspaces == (ws / "part_0", ws / "part_1")
    assert json.loads((ws / "part_1" / "count.json").read_text())["unit"] == "1"
    assert run_stage(SPLIT, ws, use={"count": "whole"}).up_to_date
    assert not run_stage(SPLIT, ws, use={"count": "whole"}, parts=3).up_to_date
    (ws / "part_2" / "count.json").unlink()
    assert not run_stage(SPLIT, ws, use={"count": "whole"}, parts=3).up_to_date


def test_a_stage_does_not_write_over_what_it_reads(ws, text):
    run_stage(COUNT, ws, source=text)
    same = Stage("same", DOUBLE.params, lambda ws, params: None, reads=("count",), writes=("count",))
    with pytest.raises(UsageError) as caught:
        run_stage(same, ws)
    assert caught.value.code == "same-name"


def test_the_workspace_is_for_its_owner_only(ws, text):
    run_stage(COUNT, ws, source=text)
    assert stat.S_IMODE(ws.stat().st_mode) == 0o700


def test_a_record_holds_no_path_outside_the_workspace(ws, text):
    run_stage(COUNT, ws, source=text)
    assert str(text.parent) not in (ws / "count.record.json").read_text()


def test_status_says_what_differs(ws, text):
    run_stage(COUNT, ws, source=text)
    run_stage(DOUBLE, ws, factor=3)
    view = Workspace(ws)
    assert why_recorded_is_stale(DOUBLE, view, view.record("double")) == []
    (ws / "count.json").write_text('{"schema": "md.count/1", "value": 8}')
    assert why_recorded_is_stale(DOUBLE, view, view.record("double")) == ["count.json changed"]
    newer = Stage("double", DOUBLE.params, DOUBLE.run, ("count",), ("double",), version=2)
    assert "double has version 2, not 1" in why_recorded_is_stale(newer, view, view.record("double"))


def test_a_full_disk_and_a_refused_write_have_their_status(tmp_path, monkeypatch, text):
    import errno

    from mdcli.errors import StorageError
    from mdcli.records import storage_errors

    for number, code in ((errno.ENOSPC, "disk-full"), (errno.EACCES, "no-permission"), (errno.EROFS, "no-permission")):
        with pytest.raises(StorageError) as caught, storage_errors("count.json"):
            raise OSError(number, os.strerror(number))
        assert (caught.value.code, caught.value.status) == (code, 74)


def test_time_out_is_its_own_status(ws):
    import time

    from mdcli.errors import OutOfTimeError

    slow = Stage("slow", DOUBLE.params, lambda ws, params: time.sleep(5), writes=("double",))
    with pytest.raises(OutOfTimeError) as caught:
        run_stage(slow, ws, controls=Controls(timeout=0.05))
    assert caught.value.status == 75


def splitting(parts):
    def run(ws, params):
        for number in range(parts):
            ws.child(f"part_{number}").write_json("count", {"schema": "md.count/1", "value": number})

    return Stage("split", SPLIT.params, run, reads=("count",), writes=("count",), splits=True)


def test_a_split_may_write_the_kind_that_it_reads_and_fewer_children_leave_nothing_behind(ws, text):
    run_stage(COUNT, ws, source=text)
    run_stage(splitting(3), ws, parts=3)
    assert (ws / "part_2" / "count.json").exists()
    reporter = ListReporter()
    run_stage(splitting(2), ws, parts=2, reporter=reporter)
    assert not (ws / "part_2" / "count.json").exists()
    assert reporter.codes("warning") == ["child-gone"]


def test_a_persons_file_in_a_new_child_is_not_replaced(ws, text):
    run_stage(COUNT, ws, source=text)
    (ws / "part_1").mkdir()
    (ws / "part_1" / "count.json").write_text("mine")
    with pytest.raises(PersonsFileError):
        run_stage(splitting(2), ws)
    assert (ws / "part_1" / "count.json").read_text() == "mine"


def test_the_status_of_children_is_that_of_the_run_that_made_them(ws, text):
    run_stage(COUNT, ws, source=text)
    run_stage(splitting(2), ws)
    child = Workspace(ws / "part_0")
    assert why_recorded_is_stale(splitting(2), child, child.record("count")) == []


def test_an_edit_saved_while_the_stage_runs_is_kept(ws, text):
    run_stage(COUNT, ws, source=text)

    def slow(w, params):
        (w.path / "count.json").write_text("mine, saved meanwhile")
        w.write_json("count", {"schema": "md.count/1", "value": 0})

    with pytest.raises(PersonsFileError):
        run_stage(Stage("count", CountParams, slow, writes=("count",), version=2), ws, source=text)
    assert (ws / "count.json").read_text() == "mine, saved meanwhile"


def test_a_forced_run_that_fails_leaves_the_edited_file_where_it_was(ws, text):
    run_stage(COUNT, ws, source=text)
    (ws / "count.json").write_text("mine")

    def fail(w, params):
        raise DataError("broken", "it broke")

    with pytest.raises(DataError):
        run_stage(Stage("count", CountParams, fail, writes=("count",)), ws, source=text, controls=Controls(force=True))
    assert (ws / "count.json").read_text() == "mine"


def test_another_source_with_the_same_names_sizes_and_times_is_read(ws, tmp_path):
    texts = []
    for name, content in (("a", "hello"), ("b", "world")):
        (tmp_path / name).mkdir()
        texts.append(tmp_path / name / "text.txt")
        texts[-1].write_text(content)
        os.utime(texts[-1], ns=(10**18, 10**18))
    run_stage(COUNT, ws, source=texts[0])
    assert not run_stage(COUNT, ws, source=texts[1]).up_to_date
    texts[0].write_text("world")
    assert run_stage(COUNT, ws, source=texts[0]).up_to_date


def test_a_file_without_a_record_is_a_persons(ws, text):
    run_stage(COUNT, ws, source=text)
    (ws / "count.record.json").unlink()
    run_stage(DOUBLE, ws)
    assert load_record(ws, "double").edited == ("count",)


def test_a_short_write_goes_on_and_a_full_disk_is_no_success(tmp_path, text):
    import subprocess
    import sys

    from tests.chain import md_environment

    script = (
        "import sys; from pathlib import Path; from tests.toy import *; from mdcli.testing import run_stage\n"
        "def big(ws, p): ws.write_json('count', {'schema': 'md.count/1', 'value': 'x' * 100000})\n"
        "run_stage(Stage('big', CountParams, big, writes=('count',)), sys.argv[1])"
    )
    line = f'ulimit -f 20; {sys.executable} -c "$0" {tmp_path / "ws"}'
    done = subprocess.run(["bash", "-c", line, script], env=md_environment(), capture_output=True, text=True)
    assert done.returncode != 0
    assert "disk-full" in done.stderr
    assert not (tmp_path / "ws" / "count.json").exists()


def test_artifacts_of_two_runs_are_not_read_together(ws, text):
    def pair(value):
        def run(w, params):
            w.write_json("one", {"schema": "md.one/1", "value": value})
            w.write_json("two", {"schema": "md.two/1", "value": value})

        return Stage("pair", DOUBLE.params, run, writes=("one", "two"), version=value)

    def read(w, params):
        w.write_json("sum", {"schema": "md.sum/1", "value": w.read_json("one")["value"] + w.read_json("two")["value"]})

    run_stage(pair(1), ws)
    old, old_record = (ws / "two.json").read_bytes(), (ws / "two.record.json").read_bytes()
    run_stage(pair(2), ws)
    # As a kill between the two renames leaves it: one new, two old with the new record still pending.
    (ws / "two.record.json").rename(ws / ".two.pending.json")
    (ws / "two.json").write_bytes(old)
    (ws / "two.record.json").write_bytes(old_record)
    with pytest.raises(DataError) as caught:
        run_stage(Stage("sum", DOUBLE.params, read, reads=("one", "two"), writes=("sum",)), ws)
    assert caught.value.code == "half-written"


def test_what_goes_with_an_artifact_is_found_by_its_record(ws, text):
    make = Stage(
        "make", DOUBLE.params, lambda w, p: w.write_json("series", {"schema": "md.series/1"}), writes=("series",)
    )

    def load(w, p):
        import numpy as np

        w.read_json("series")
        w.write_volume("volume", np.zeros((1, 1, 1), np.int16), np.eye(4))
        w.write_json("geometry", {"schema": "md.geometry/1"})

    loading = Stage("load", DOUBLE.params, load, reads=("series",), writes=("volume", "geometry"))
    for name in (None, "p2"):
        run_stage(make, ws, as_name=name)
        run_stage(loading, ws, use={"series": name} if name else {}, as_name=name)
    view = Workspace(ws, use={"volume": "p2"})
    view.reading = ("volume", "geometry", "series")
    assert [view.role_to_read(kind) for kind in view.reading] == ["volume-p2", "geometry-p2", "series-p2"]
    (ws / "geometry-p2.json").unlink()
    assert view.role_to_read("geometry") == "geometry-p2"


@pytest.mark.parametrize(
    "content", ["[]", '{"schema": "md.record/1"}', '{"schema": "md.record/1", "role": 3, "inputs": []}']
)
def test_a_broken_record_is_named(ws, text, content):
    run_stage(COUNT, ws, source=text)
    (ws / "count.record.json").write_text(content)
    with pytest.raises(DataError) as caught:
        run_stage(COUNT, ws, source=text)
    assert caught.value.code == "bad-record"


def test_a_stage_that_calls_exit_is_a_bug_and_no_success(ws):
    import sys

    with pytest.raises(RuntimeError, match=r"sys\.exit"):
        run_stage(Stage("leaver", DOUBLE.params, lambda w, p: sys.exit(0), writes=("double",)), ws)
