"""inspect, status, clean, purge, path, cases, init, schema, models, doctor: what they print and what they leave."""

import json
import os
import subprocess
import sys

import pytest

from mdcli.errors import AnswerNo, MissingError, PersonsFileError, UsageError
from mdcli.testing import run_stage
from tests.chain import canary_study, md_environment, run_chain, stage_of


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return canary_study(tmp_path_factory.mktemp("study"))


@pytest.fixture
def ws(study, tmp_path):
    run_chain(tmp_path / "ws", study, until="load-volume")
    return tmp_path / "ws"


def test_path_prints_where_an_artifact_lies(ws, capsys):
    from mdcli.commands.path import path

    path(ws, "volume")
    assert capsys.readouterr().out == f"{ws / 'volume.nii'}\n"
    with pytest.raises(MissingError):
        path(ws, "labels")


def test_inspect_shows_the_records_as_json(ws, capsys):
    from mdcli.commands.inspect import inspect

    inspect(ws, None, "json", False)
    found = {a["role"]: a for a in json.loads(capsys.readouterr().out)["artifacts"]}
    assert set(found) == {"series", "volume", "geometry"}
    assert (found["volume"]["state"], found["volume"]["stage"]) == ("made", "load-volume")
    assert found["volume"]["inputs"] == {"series": "series"}


@pytest.mark.parametrize("form", ["tree", "table"])
def test_inspect_shows_every_artifact_to_a_person(ws, capsys, form):
    from mdcli.commands.inspect import inspect

    inspect(ws, None, form, False)
    out = capsys.readouterr().out
    for name in ("series.json", "volume.nii", "geometry.json", "load-volume"):
        assert name in out


def test_status_is_1_where_something_is_stale_and_why_says_what(ws, study, capsys):
    from mdcli.commands.status import status

    status(ws, False, False, False)
    assert "stale" not in capsys.readouterr().out
    series = ws / "series.json"
    series.write_text(series.read_text().replace("{", "{ ", 1))
    with pytest.raises(AnswerNo) as caught:
        status(ws, True, False, False)
    assert caught.value.status == 1
    assert "series.json changed" in capsys.readouterr().out


def test_clean_removes_temporary_and_stale_files_and_keeps_what_a_person_edited(ws, capsys):
    from mdcli.commands.clean import clean

    (ws / ".part-999999999-0123abcd-volume.nii").write_text("left by a killed run")
    series = ws / "series.json"
    series.write_text(series.read_text().replace("{", "{ ", 1))
    clean(ws, True)
    assert (ws / "volume.nii").exists()
    clean(ws, False)
    assert not list(ws.glob(".part-*"))
    assert not (ws / "volume.nii").exists() and not (ws / "geometry.json").exists()
    assert series.exists()


def test_clean_leaves_the_temporary_file_of_a_run_at_work(ws):
    from mdcli.commands.clean import clean

    mine = ws / f".part-{os.getpid()}-0123abcd-volume.nii"
    mine.write_text("being written")
    clean(ws, False)
    assert mine.exists()


def test_purge_removes_pixels_and_keeps_records(ws, study):
    from mdcli.commands.purge import purge

    before = sorted(p for p in study.rglob("*") if p.is_file())
    purge(str(ws))
    assert not (ws / "volume.nii").exists()
    assert (ws / "geometry.json").exists() and (ws / "volume.record.json").exists()
    assert sorted(p for p in study.rglob("*") if p.is_file()) == before
    purge(str(ws), everything=True)
    assert not ws.exists()


def test_purge_refuses_a_folder_that_is_no_workspace(tmp_path):
    from mdcli.commands.purge import purge

    (tmp_path / "volume.nii").write_text("somebody's")
    with pytest.raises(MissingError):
        purge(str(tmp_path), everything=True)
    assert (tmp_path / "volume.nii").exists()


def test_cases_leave_a_source_that_the_chain_takes(study, tmp_path, capsys):
    from mdcli.commands.cases import cases

    (tmp_path / "many").mkdir()
    for number in (1, 2):
        (tmp_path / "many" / f"p{number}").symlink_to(study)
    cases(tmp_path / "many", tmp_path / "work", None, None, None)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [str(tmp_path / "work" / name) for name in ("case_0001", "case_0002")]
    from mdcli.workspace import Workspace

    assert Workspace(lines[0]).source() == tmp_path / "many" / "p1"
    run_stage(stage_of("select-series"), lines[0], dicom=Workspace(lines[0]).source())


def test_cases_by_studies_tells_two_studies_in_one_folder_apart(study, tmp_path, capsys):
    import pydicom
    from pydicom.uid import generate_uid

    from mdcli.commands.cases import cases

    root = tmp_path / "tree"
    other = generate_uid(entropy_srcs=["another study"])
    for number, path in enumerate(sorted(p for p in study.rglob("*.dcm"))[:6]):
        dataset = pydicom.dcmread(path)
        dataset.StudyInstanceUID = other if number % 2 else dataset.StudyInstanceUID
        root.mkdir(exist_ok=True)
        dataset.save_as(root / f"{number}.dcm")
    cases(root, tmp_path / "work", "studies", None, None)
    lines = capsys.readouterr().out.splitlines()
    found = {
        json.loads((tmp_path / "work" / name / "source.json").read_text()).get("study_instance_uid")
        for name in ("case_0001", "case_0002")
    }
    assert len(lines) == 2 and other in found and None not in found


def test_init_lists_copies_and_never_replaces(tmp_path, capsys):
    from mdcli.commands.init import init

    init(None)
    assert "makefile" in capsys.readouterr().out
    init("makefile", tmp_path)
    assert (tmp_path / "Makefile").exists() and not (tmp_path / "ABOUT.txt").exists()
    (tmp_path / "Makefile").write_text("mine")
    with pytest.raises(PersonsFileError):
        init("makefile", tmp_path)
    assert (tmp_path / "Makefile").read_text() == "mine"
    with pytest.raises(UsageError) as caught:
        init("makfile", tmp_path)
    assert caught.value.hint == "did you mean makefile?"


def test_every_schema_is_a_valid_schema(capsys):
    import jsonschema

    from mdcli.commands.schema import schema

    schema(None)
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert {"series", "geometry", "segments", "model", "record", "log", "line"} <= set(names)
    for name in names:
        schema(name)
        jsonschema.Draft202012Validator.check_schema(json.loads(capsys.readouterr().out))
    with pytest.raises(UsageError):
        schema("geometri")


def test_models_lists_the_embedded_ones(capsys):
    from mdcli.commands.models import models

    models(False)
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert names == ["ct-tissue", "landmarks"]


def test_doctor_names_versions_and_the_line_that_gets_what_is_missing():
    done = subprocess.run(
        [sys.executable, "-m", "mdcli", "doctor", "--json"], env=md_environment(), capture_output=True, text=True
    )
    findings = {f["what"]: f for f in json.loads(done.stdout)["findings"]}
    assert findings["numpy"]["state"] == "ok"
    assert all(f["fix"] for f in findings.values() if f["state"] == "MISSING")
    assert done.returncode == (1 if any(f["state"] == "MISSING" for f in findings.values()) else 0)


def test_purge_keeps_what_a_person_edited_and_says_so(ws, capsys):
    from mdcli.commands.purge import purge

    (ws / "volume.nii").write_bytes(b"mine")
    purge(str(ws))
    assert (ws / "volume.nii").read_bytes() == b"mine"
    assert "volume.nii is a person's" in capsys.readouterr().err
    purge(str(ws), edited=True)
    assert not (ws / "volume.nii").exists()


def test_after_purge_nothing_is_stale_and_clean_leaves_the_records(ws, capsys):
    from mdcli.commands.clean import clean
    from mdcli.commands.purge import purge
    from mdcli.commands.status import status

    purge(str(ws))
    status(ws)
    assert "purged" in capsys.readouterr().out
    clean(ws)
    assert (ws / "volume.record.json").exists() and (ws / "geometry.json").exists()


def test_a_purged_volume_is_made_again_when_it_is_asked_for(ws):
    from mdcli.commands.purge import purge

    purge(str(ws))
    assert not run_stage(stage_of("load-volume"), ws).up_to_date
    assert (ws / "volume.nii").exists()


def test_purge_does_not_go_into_folders_that_are_no_children_of_the_workspace(ws, study):
    from mdcli.commands.purge import purge

    run_chain(ws / "other", study, until="load-volume")
    purge(str(ws))
    assert (ws / "other" / "volume.nii").exists()


def test_purge_all_takes_only_what_has_a_name_of_mds_and_says_what_stays(ws, capsys):
    from mdcli.commands.purge import purge

    for name in ("thesis.txt", "volume-report.pdf", ".part-my-essay.txt"):
        (ws / name).write_text("mine")
    (ws / "dicom").mkdir()
    (ws / "dicom" / "source.dcm").write_text("a source")
    purge(str(ws), everything=True)
    assert {p.name for p in ws.iterdir()} == {"thesis.txt", "volume-report.pdf", ".part-my-essay.txt", "dicom"}
    assert (ws / "dicom" / "source.dcm").exists()
    assert "it also holds" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_purge_refuses_what_is_no_workspace_of_its_own(path, tmp_path, monkeypatch):
    from mdcli.commands.purge import purge
    from mdcli.errors import MdError

    monkeypatch.chdir(tmp_path)
    (tmp_path / "thesis.txt").write_text("mine")
    (tmp_path / "source.json").write_text('{"x": 1}') if path == "." else None
    with pytest.raises(MdError):
        purge(path, everything=True)
    assert (tmp_path / "thesis.txt").exists()


def test_purge_and_clean_do_not_follow_links_out_of_the_workspace(ws, study, tmp_path):
    from mdcli.commands.clean import clean
    from mdcli.commands.purge import purge

    run_chain(tmp_path / "other", study, until="load-volume")
    (ws / "linked").symlink_to(tmp_path / "other")
    (ws / "masks").symlink_to(tmp_path / "other")
    purge(str(ws))
    clean(ws)
    assert (tmp_path / "other" / "volume.nii").exists()


def test_of_a_source_that_is_not_there_nobody_can_tell_and_clean_takes_nothing(tmp_path, capsys):
    import shutil

    from mdcli.commands.clean import clean
    from mdcli.commands.status import status

    source = canary_study(tmp_path / "mounted")
    run_chain(tmp_path / "ws", source, until="load-volume")
    shutil.move(source, tmp_path / "away")
    status(tmp_path / "ws", why=True)
    assert "unknown" in capsys.readouterr().out
    clean(tmp_path / "ws")
    assert (tmp_path / "ws" / "volume.nii").exists()


def test_a_source_that_moved_is_found_again_without_reading_the_volume_anew(tmp_path):
    import shutil

    source = canary_study(tmp_path / "here")
    run_chain(tmp_path / "ws", source, until="load-volume")
    shutil.move(source, tmp_path / "there")
    assert run_stage(stage_of("select-series"), tmp_path / "ws", dicom=tmp_path / "there").up_to_date
    assert run_stage(stage_of("load-volume"), tmp_path / "ws").up_to_date


def test_cases_do_not_give_a_workspace_another_patient(tmp_path):
    from mdcli.commands.cases import cases

    (tmp_path / "many" / "b").mkdir(parents=True)
    cases(tmp_path / "many", tmp_path / "work")
    (tmp_path / "many" / "a").mkdir()
    with pytest.raises(PersonsFileError):
        cases(tmp_path / "many", tmp_path / "work")


def test_the_demo_writes_over_nothing_of_a_persons(tmp_path):
    from mdcli.commands.demo import demo

    for name in ("study/mine.dcm", "gold/gold.yaml"):
        folder = tmp_path / name.replace("/", "_")
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("mine")
        with pytest.raises(PersonsFileError):
            demo(folder)
        assert (folder / name).read_text() == "mine"
