"""Read compressed images in worker processes, so that a codec that aborts ends one case, not the program.

Workers answer in JSON, never in pickles: what a hostile image may have taken over must not reach further. Where processes can be
forked (Linux) they are light and write into shared memory; elsewhere they are started anew and send the pixels back.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import multiprocessing
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.codecs import SYNTAXES
from mdcli.dicom.instance import Instance
from mdcli.dicom.opening import SourceFiles, shown
from mdcli.dicom.pixels import Layout, SliceRead, container, read_slice
from mdcli.errors import DataError, MdError, MissingError

WORKER_BYTES = 512 << 20
"""Address space that a worker may take beyond what it starts with ..."""
WORKER_BYTES_PER_PIXEL = 24
"""... and for each pixel of a frame: OpenJPEG holds a sample in 4 bytes, several times."""
_FORK = sys.platform == "linux"


@dataclass
class _Task:
    """What every worker knows from its start."""

    root: Path
    instances: Sequence[Instance]
    layouts: Sequence[Layout]
    paddings: Sequence[tuple[int, int] | None]
    dtype: str
    memory: int


@dataclass
class _Worker:
    process: BaseProcess
    line: Connection[Any, Any]
    busy: int = -1


def read_in_workers(
    root: Path,
    instances: Sequence[Instance],
    layouts: Sequence[Layout],
    paddings: Sequence[tuple[int, int] | None],
    jobs: int,
    done: Callable[[float], None],
) -> tuple[NDArray[Any], list[SliceRead]]:
    """Read images, compressed ones among them, in worker processes.

    Args:
        root: the scanned folder or zip file.
        instances: the slices in the order of k.
        layouts: how each is encoded.
        paddings: the padding range of each.
        jobs: processes.
        done: called with 1 for every image read.

    Returns:
        The stored values, (k, j, i), and what reading each slice found.

    Raises:
        DataError: `decoder-crashed` where a worker died, with the file it had; those of `mdcli.dicom.pixels.read_slice`.
        MissingError: `source-missing`.
    """
    shape = (len(instances), layouts[0].rows, layouts[0].columns)
    dtype = container(layouts)
    shared = mmap.mmap(-1, int(np.prod(shape, dtype=object)) * dtype.itemsize) if _FORK else None
    stored = np.empty(shape, dtype) if shared is None else np.frombuffer(shared, dtype).reshape(shape)
    memory = WORKER_BYTES + WORKER_BYTES_PER_PIXEL * shape[1] * shape[2]
    task = _Task(root, instances, layouts, paddings, dtype.str, memory)
    reads: list[SliceRead | None] = [None] * len(instances)
    workers: list[_Worker] = []
    try:
        for _ in range(max(1, min(jobs, len(instances)))):
            workers.append(_start(task, stored if _FORK else None, [w.line for w in workers]))
        waiting = iter(range(len(instances)))
        for worker in workers:
            _next(worker, waiting)
        while busy := {w.line: w for w in workers if w.busy >= 0}:
            for line in wait(list(busy)):
                worker = busy[line]  # type: ignore[index]
                reads[worker.busy] = _answer(worker, task, stored)
                done(1)
                _next(worker, waiting)
    except BaseException:
        for worker in workers:
            worker.process.kill()
        raise
    finally:
        for worker in workers:
            worker.line.close()
            worker.process.join()
            worker.process.close()
    return stored, [read for read in reads if read is not None]


def _start(task: _Task, stored: NDArray[Any] | None, others: list[Connection[Any, Any]]) -> _Worker:
    context = multiprocessing.get_context("fork" if _FORK else "spawn")
    ours, theirs = context.Pipe()
    # A forked worker holds copies of the other ends; while it did, no worker would see that this process is gone.
    closing = [*others, ours] if _FORK else []
    process = context.Process(target=_serve, args=(theirs, task, stored, closing), daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _next(worker: _Worker, waiting: Any) -> None:
    worker.busy = next(waiting, -1)
    if worker.busy >= 0:
        # A worker that died is found out when its answer is awaited.
        with contextlib.suppress(OSError):
            worker.line.send_bytes(str(worker.busy).encode())


def _answer(worker: _Worker, task: _Task, stored: NDArray[Any]) -> SliceRead:
    instance = task.instances[worker.busy]
    try:
        answer = json.loads(worker.line.recv_bytes())
        if "error" not in answer and not _FORK:
            worker.line.recv_bytes_into(stored[worker.busy].data.cast("B"))
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"status {code}"
        form = SYNTAXES[task.layouts[worker.busy].syntax].form
        raise DataError("decoder-crashed", f"{shown(instance.path)} killed its {form} decoder ({how})") from None
    if "error" in answer:
        kind = MissingError if answer["status"] == MissingError.status else DataError
        raise kind(answer["error"], answer["message"], hint=answer["hint"], **answer["numbers"])
    return SliceRead(**answer)


def _serve(
    line: Connection[Any, Any], task: _Task, stored: NDArray[Any] | None, closing: list[Connection[Any, Any]]
) -> None:
    for other in closing:
        other.close()
    # Ctrl-C reaches the whole group; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory(task.memory)
    plane = None
    with SourceFiles(task.root) as files:
        while True:
            try:
                k = int(line.recv_bytes())
            except (EOFError, OSError):
                return
            layout = task.layouts[k]
            if stored is None:
                plane = np.empty((layout.rows, layout.columns), task.dtype)
            out = plane if stored is None else stored[k]
            assert out is not None
            try:
                answer = read_slice(files, task.instances[k], layout, task.paddings[k], out).to_json()
            except MdError as error:
                answer = {"error": error.code, "message": error.message, "hint": error.hint, "numbers": error.numbers}
                answer["status"] = error.status
            except MemoryError:
                text = f"{shown(task.instances[k].path)} needs more than {task.memory >> 20} MiB to decode"
                answer = {"error": "decoder-memory", "message": text, "hint": None, "numbers": {}, "status": 65}
            line.send_bytes(json.dumps(answer).encode())
            if plane is not None and "error" not in answer:
                line.send_bytes(plane.data.cast("B"))


def _limit_memory(more: int) -> None:
    """Allow this process so many bytes of address space beyond what it has."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        now, most = pages * resource.getpagesize(), resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = now + more if most == resource.RLIM_INFINITY else min(now + more, most)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))
    except (ImportError, OSError, ValueError):
        return
