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

    (ws / ".part-999999999-abcd-volume.nii").write_text("left by a killed run")
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

    mine = ws / f".part-{os.getpid()}-abcd-volume.nii"
    mine.write_text("being written")
    clean(ws, False)
    assert mine.exists()


def test_purge_removes_pixels_and_keeps_records(ws, study):
    from mdcli.commands.purge import purge

    before = sorted(p for p in study.rglob("*") if p.is_file())
    purge(ws)
    assert not (ws / "volume.nii").exists()
    assert (ws / "geometry.json").exists() and (ws / "volume.record.json").exists()
    assert sorted(p for p in study.rglob("*") if p.is_file()) == before
    purge(ws, everything=True)
    assert not ws.exists()


def test_purge_refuses_a_folder_that_is_no_workspace(tmp_path):
    from mdcli.commands.purge import purge

    (tmp_path / "volume.nii").write_text("somebody's")
    with pytest.raises(MissingError):
        purge(tmp_path, everything=True)
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
    purge(ws)
    assert (ws / "volume.nii").read_bytes() == b"mine"
    assert "volume.nii is a person's" in capsys.readouterr().err
    purge(ws, edited=True)
    assert not (ws / "volume.nii").exists()


def test_after_purge_nothing_is_stale_and_clean_leaves_the_records(ws, capsys):
    from mdcli.commands.clean import clean
    from mdcli.commands.purge import purge
    from mdcli.commands.status import status

    purge(ws)
    status(ws)
    assert "purged" in capsys.readouterr().out
    clean(ws)
    assert (ws / "volume.record.json").exists() and (ws / "geometry.json").exists()


def test_a_purged_volume_is_made_again_when_it_is_asked_for(ws):
    from mdcli.commands.purge import purge

    purge(ws)
    assert not run_stage(stage_of("load-volume"), ws).up_to_date
    assert (ws / "volume.nii").exists()


def test_purge_does_not_go_into_folders_that_are_no_children_of_the_workspace(ws, study):
    from mdcli.commands.purge import purge

    run_chain(ws / "other", study, until="load-volume")
    purge(ws)
    assert (ws / "other" / "volume.nii").exists()
