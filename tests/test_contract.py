"""What every stage promises, tested once for all of them, and that a patient's name is nowhere."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mdcli import registry
from mdcli.stage import fields_of
from mdcli.testing import contract_problems
from tests.chain import CANARY, NEEDS, canary_study, md_environment, params_of, run_chain, stage_of

SCHEMAS = Path(__file__).parents[1] / "mdcli" / "schemas"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return canary_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def prepared(study, tmp_path_factory):
    """Return a function that gives a workspace prepared up to, but without, a stage."""
    done = {}
    folder = tmp_path_factory.mktemp("prepared")

    def up_to(word):
        if word not in done:
            place = folder / word.replace("-", "_")
            before = NEEDS.get(word)
            if before is None:
                place.mkdir()
            else:
                shutil.copytree(up_to(before), place)
                from mdcli.testing import run_stage

                run_stage(stage_of(before), place, **params_of(before, study))
            done[word] = place
        return done[word]

    return up_to


@pytest.mark.parametrize("word", registry.STAGES)
def test_every_stage_keeps_the_contract(word, prepared, study, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1767225600")
    assert contract_problems(stage_of(word), prepared(word), tmp_path, **params_of(word, study)) == []


@pytest.mark.parametrize("word", registry.STAGES)
def test_every_option_has_a_help_text(word):
    for field in fields_of(stage_of(word).params):
        assert field.option.help, field.name


@pytest.fixture(scope="module")
def piped(study, tmp_path_factory):
    """Run the chain as a shell pipe with all it can say, and return its folder, standard output and error."""
    folder = tmp_path_factory.mktemp("piped")
    md = f"{sys.executable} -m mdcli"
    line = (
        f"set -o pipefail; {md} select-series ws --dicom {study} -v | {md} load-volume - -v | "
        f"{md} infer - --model landmarks -v --json | {md} write-seg - -v --json"
    )
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=md_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout, done.stderr


def test_the_pipe_ends_with_one_line(piped):
    _, out, _ = piped
    (line,) = out.splitlines()
    found = json.loads(line)
    assert (found["workspace"], found["result"], found["artifacts"]) == ("ws", "processed", {"seg": "seg.dcm"})


def test_a_canary_patient_is_nowhere_but_in_the_dicom_output(piped):
    folder, out, err = piped
    assert CANARY.lower() not in (out + err).lower() and "19010203" not in out + err
    for path in sorted(folder.rglob("*")):
        assert CANARY.lower() not in path.name.lower()
        if path.is_file() and path.suffix != ".dcm":
            data = path.read_bytes().lower()
            assert CANARY.lower().encode() not in data, path.name
            assert b"19010203" not in data, path.name


def test_no_record_names_a_path_outside_the_workspace(piped, study):
    folder, _, _ = piped
    for path in folder.rglob("*.record.json"):
        text = path.read_text()
        assert str(study) not in text and str(folder) not in text


@pytest.mark.parametrize("role", ["series", "geometry", "segments", "record"])
def test_json_artifacts_keep_their_schema(piped, role):
    import jsonschema

    folder, _, _ = piped
    schema = json.loads((SCHEMAS / f"{role}.json").read_text())
    documents = list((folder / "ws").glob("*.record.json")) if role == "record" else [folder / "ws" / f"{role}.json"]
    for path in documents:
        jsonschema.validate(json.loads(path.read_text()), schema)


def test_a_second_pipe_does_nothing(study, tmp_path):
    run_chain(tmp_path / "ws", study)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "ws").iterdir()}
    run_chain(tmp_path / "ws", study)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "ws").iterdir()} == before


def test_a_spoilt_edit_of_a_json_artifact_is_refused_by_its_place(prepared, tmp_path):
    from mdcli.errors import DataError
    from mdcli.testing import run_stage

    shutil.copytree(prepared("load-volume"), tmp_path / "ws")
    path = tmp_path / "ws" / "series.json"
    document = json.loads(path.read_text())
    document["instances"][3]["size"] = "large"
    path.write_text(json.dumps(document))
    with pytest.raises(DataError) as caught:
        run_stage(stage_of("load-volume"), tmp_path / "ws")
    assert caught.value.code == "bad-artifact"
    assert "instances/3/size" in caught.value.message


def test_inference_leaves_nothing_in_the_home_folder(prepared, tmp_path):
    shutil.copytree(prepared("infer"), tmp_path / "ws")
    (tmp_path / "home").mkdir()
    environment = md_environment(HOME=str(tmp_path / "home"), XDG_CACHE_HOME=str(tmp_path / "home"))
    environment.pop("ORT_DISABLE_TELEMETRY", None)
    command = [sys.executable, "-m", "mdcli", "infer", str(tmp_path / "ws"), "--model", "landmarks"]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert list((tmp_path / "home").rglob("*")) == []
