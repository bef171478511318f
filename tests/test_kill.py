"""kill -9 at any moment: the next run resumes to the same bytes."""

import random
import signal
import subprocess
import sys
import time

import pytest

from mdcli.records import PART, sha256_of_artifact
from tests.chain import canary_study, md_environment, run_chain

ARTIFACTS = ("series.json", "volume.nii", "geometry.json", "labels.nii", "segments.json", "seg.dcm")
EPOCH = "1767225600"
# One process runs the whole chain, so that 200 moments take a minute and not ten; it says when it starts the work.
WORKER = """
import sys
from pathlib import Path
import highdicom, onnxruntime, pydicom
from tests.chain import run_chain
print("go", flush=True)
run_chain(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def hashes(workspace):
    return {name: sha256_of_artifact(workspace / name) for name in ARTIFACTS if (workspace / name).exists()}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return canary_study(tmp_path_factory.mktemp("study"))


def start(workspace, study):
    command = [sys.executable, "-c", WORKER, str(workspace), str(study)]
    child = subprocess.Popen(command, env=md_environment(SOURCE_DATE_EPOCH=EPOCH), stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "go\n"
    return child


@pytest.mark.slow
def test_after_kill_9_at_200_random_moments_the_chain_resumes_to_the_same_bytes(study, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)
    run_chain(tmp_path / "whole", study)
    expected = hashes(tmp_path / "whole")
    assert len(expected) == len(ARTIFACTS)
    child = start(tmp_path / "timed", study)
    begun = time.perf_counter()
    assert child.wait() == 0
    span = time.perf_counter() - begun
    moments = random.Random(20261120)
    killed, workspace = 0, tmp_path / "killed"
    for _ in range(200):
        child = start(workspace, study)
        time.sleep(moments.uniform(0, span))
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
        # Whatever is in place under its own name is whole.
        for name, digest in hashes(workspace).items():
            assert digest == expected[name], name
        if set(hashes(workspace)) == set(ARTIFACTS):
            run_chain(workspace, study)
            assert hashes(workspace) == expected
            for path in workspace.iterdir():
                if not path.name.startswith(PART):
                    path.unlink()
    assert killed > 100
    run_chain(workspace, study)
    assert hashes(workspace) == expected
