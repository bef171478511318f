"""Slots on a GPU: who runs, who waits, and what a killed process leaves."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from mdcli.errors import UnavailableError
from mdcli.inference.slots import gpu_slot

pytest.importorskip("fcntl")

HOLDER = """
import sys, time
from pathlib import Path
from mdcli.inference.slots import gpu_slot
with gpu_slot(Path(sys.argv[1]), needed_mib=int(sys.argv[2]), total_mib=100):
    print("running", flush=True)
    time.sleep(60)
"""


class Refused(Exception):
    """Raised instead of waiting."""


def refuse(waiting):
    raise Refused(waiting)


def try_slot(folder, needed, total=100):
    return gpu_slot(folder, needed_mib=needed, total_mib=total, waiting=refuse)


def test_what_fits_together_runs_together(tmp_path):
    with try_slot(tmp_path / "gpu", 40), try_slot(tmp_path / "gpu", 40), try_slot(tmp_path / "gpu", 20):
        assert len(list((tmp_path / "gpu").iterdir())) == 3
    assert not list((tmp_path / "gpu").iterdir())


def test_what_does_not_fit_waits_and_is_told_for_what(tmp_path):
    with try_slot(tmp_path, 60), try_slot(tmp_path, 10):
        with pytest.raises(Refused) as refused, try_slot(tmp_path, 31):
            pass
        said = refused.value.args[0]
        assert (said.ahead, said.held_mib, said.total_mib) == (2, 70, 100) and said.seconds >= 0
        # One that gave up leaves no claim.
        with try_slot(tmp_path, 30):
            pass


def test_a_need_that_nobody_declared_takes_the_whole_gpu(tmp_path):
    with try_slot(tmp_path, None), pytest.raises(Refused), try_slot(tmp_path, 1):
        pass


def test_more_than_the_gpu_has_is_refused_at_once(tmp_path):
    with pytest.raises(UnavailableError) as error, try_slot(tmp_path, 101):
        pass
    assert (error.value.code, error.value.status) == ("memory-too-small", 69)


def test_an_error_in_the_work_frees_the_slot(tmp_path):
    with contextlib.suppress(ZeroDivisionError), try_slot(tmp_path, 100):
        raise ZeroDivisionError
    with try_slot(tmp_path, 100):
        pass


def test_one_that_needs_little_does_not_overtake_one_that_waits(tmp_path):
    order, waits = [], threading.Event()

    def large():
        with gpu_slot(tmp_path, needed_mib=80, total_mib=100, waiting=lambda _: waits.set(), poll_s=0.01):
            order.append("large")

    with gpu_slot(tmp_path, needed_mib=50, total_mib=100):
        thread = threading.Thread(target=large)
        thread.start()
        assert waits.wait(20)
        # There would be room for it beside what runs, not beside what waits before it.
        with pytest.raises(Refused), try_slot(tmp_path, 30):
            pass
        assert order == []
    thread.join(20)
    assert order == ["large"]


def test_never_more_than_the_gpu_has_is_in_use(tmp_path):
    lock, in_use, most = threading.Lock(), [0], [0]

    def work(needed):
        with gpu_slot(tmp_path, needed_mib=needed, total_mib=100, poll_s=0.001):
            with lock:
                in_use[0] += needed
                most[0] = max(most[0], in_use[0])
            time.sleep(0.005)
            with lock:
                in_use[0] -= needed

    threads = [threading.Thread(target=work, args=(needed,)) for needed in (70, 20, 50, 10, 90, 30, 30, 30, 100, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert 0 < most[0] <= 100 and in_use[0] == 0 and not list(tmp_path.iterdir())


def test_a_killed_process_frees_its_slot(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path), "90"], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "running\n"
        with pytest.raises(Refused), try_slot(tmp_path, 20):
            pass
        child.send_signal(signal.SIGKILL)
        child.wait()
        # Its file is still there; its lock is not.
        assert len(list(tmp_path.iterdir())) == 1
        with try_slot(tmp_path, 20):
            assert len(list(tmp_path.iterdir())) == 1
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def test_a_file_of_another_name_is_left_alone(tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    with try_slot(tmp_path, 100):
        pass
    assert (tmp_path / "note.txt").read_text() == "mine"
