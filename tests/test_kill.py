"""kill -9 at any moment: the next run resumes to the same bytes."""

import contextlib
import os
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
# One process imports everything once and forks a child for each run of the chain: 200 moments in minutes.
FORKS = """
import os, sys
from pathlib import Path
import highdicom, nibabel, onnxruntime, pydicom
from tests.chain import run_chain
for line in sys.stdin:
    child = os.fork()
    if not child:
        run_chain(Path(line.rstrip()), Path(sys.argv[1]), "ct-tissue")
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def hashes(workspace):
    return {name: sha256_of_artifact(workspace / name) for name in ARTIFACTS if (workspace / name).exists()}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return canary_study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def forks(study):
    command = [sys.executable, "-c", FORKS, str(study)]
    environment = md_environment(SOURCE_DATE_EPOCH=EPOCH)
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.stdin.close()


def run_for(forks, workspace, seconds=None):
    """Run the chain in a child, killed after some seconds; return its exit status and how long it lived."""
    forks.stdin.write(f"{workspace}\n")
    forks.stdin.flush()
    child, started = int(forks.stdout.readline()), time.perf_counter()
    if seconds is not None:
        time.sleep(seconds)
        # The child is not waited for before its line is read, unless it has ended by itself: then the number is gone.
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    return int(forks.stdout.readline()), time.perf_counter() - started


@pytest.mark.slow
def test_after_kill_9_at_200_random_moments_the_chain_resumes_to_the_same_bytes(study, forks, tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)
    run_chain(tmp_path / "whole", study, "ct-tissue")
    expected = hashes(tmp_path / "whole")
    assert len(expected) == len(ARTIFACTS)
    status, span = run_for(forks, tmp_path / "timed")
    assert status == 0
    moments = random.Random(20261120)
    killed, workspace = 0, tmp_path / "killed"
    for _ in range(200):
        status, lived = run_for(forks, workspace, moments.uniform(0, span))
        killed += status == -signal.SIGKILL
        # A run that ended by itself says how long one really takes now; the first one was cold.
        span = min(span, lived) if status == 0 else span
        # Whatever is in place under its own name is whole.
        for name, digest in hashes(workspace).items():
            assert digest == expected[name], name
        if set(hashes(workspace)) == set(ARTIFACTS):
            run_chain(workspace, study, "ct-tissue")
            assert hashes(workspace) == expected
            for path in workspace.iterdir():
                if not path.name.startswith(PART):
                    path.unlink()
    assert killed > 100
    run_chain(workspace, study, "ct-tissue")
    assert hashes(workspace) == expected
