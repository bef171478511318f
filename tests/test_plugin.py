"""The plugin of the repository, installed: listed, run in a pipe, held to the contract."""

import subprocess
import sys

import pytest

from mdcli import registry
from mdcli.testing import contract_problems
from tests.chain import canary_study, md_environment, run_chain

pytest.importorskip("md_largest_component", reason="plugins/md-largest-component is not installed")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    study = canary_study(tmp_path_factory.mktemp("study"))
    workspace = tmp_path_factory.mktemp("case") / "ws"
    run_chain(workspace, study, until="infer")
    return workspace


def test_it_is_listed_with_its_distribution():
    (plugin,) = [p for p in registry.plugins() if p.word == "keep-largest"]
    assert plugin.distribution == "md-largest-component"
    assert "keep-largest" in registry.stage_words()


def test_it_runs_in_a_pipe_before_the_writer(prepared):
    md = f"{sys.executable} -m mdcli"
    line = f"set -o pipefail; {md} keep-largest {prepared} --as largest | {md} write-seg - --use labels=largest --as largest"
    done = subprocess.run(["bash", "-c", line], env=md_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{prepared}\n"
    assert (prepared / "seg-largest.dcm").exists()


def test_it_keeps_the_contract_of_every_stage(prepared, tmp_path):
    from mdcli.workspace import Workspace

    stage = registry.load_stage("keep-largest")
    assert contract_problems(stage, prepared, tmp_path, as_name="kept") == []
    assert Workspace(tmp_path / "first").record("labels-kept").stage == "keep-largest"
