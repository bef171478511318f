"""Read compressed images in worker processes, so that a codec that aborts ends one case, not the program.

Workers answer in JSON, never in pickles: what a hostile image may have taken over must not reach further. Where processes can be
forked (Linux) they start in milliseconds and hand pixels over in a little shared memory; elsewhere they are started anew and send
the pixels through the pipe.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.codecs import SYNTAXES
from mdcli.dicom.instance import Instance
from mdcli.dicom.opening import SourceFiles, shown
from mdcli.dicom.pixels import Layout, Place, SliceRead, read_slice, room_for
from mdcli.errors import DataError, MdError, MissingError

WORKER_BYTES = 512 << 20
"""Address space that a worker may take beyond what it starts with ..."""
WORKER_BYTES_PER_PIXEL = 24
"""... and for each pixel of a frame: OpenJPEG holds a sample in 4 bytes, several times."""
_FORK = sys.platform == "linux"
# A worker decodes into one slot of shared memory while the other is emptied.
_SLOTS = 2


@dataclass
class _Task:
    """What every worker knows from its start."""

    root: Path
    instances: Sequence[Instance]
    layouts: Sequence[Layout]
    paddings: Sequence[tuple[int, int] | None]
    places: Sequence[Place | None]
    dtype: str
    memory: int


@dataclass
class _Worker:
    process: BaseProcess
    line: Connection[Any, Any]
    slots: NDArray[Any] | None
    busy: list[int] = field(default_factory=list)
    turns: int = 0


def read_in_workers(
    root: Path,
    instances: Sequence[Instance],
    layouts: Sequence[Layout],
    paddings: Sequence[tuple[int, int] | None],
    places: Sequence[Place | None],
    jobs: int,
    done: Callable[[float], None],
) -> tuple[NDArray[Any], list[SliceRead]]:
    """Read images, compressed ones among them, in worker processes.

    Args:
        root: the scanned folder or zip file.
        instances: the slices in the order of k.
        layouts: how each is encoded.
        paddings: the padding range of each.
        places: where the fragments of each lie, of frames of a file that holds several.
        jobs: processes.
        done: called with 1 for every image read.

    Returns:
        The stored values, (k, j, i), and what reading each slice found.

    Raises:
        DataError: `decoder-crashed` where a worker died, with the file it had; `decoder-memory`; those of
            `mdcli.dicom.pixels.read_slice`.
        MissingError: `source-missing`.
    """
    rows, columns = layouts[0].stored
    stored = room_for(instances, layouts)
    memory = WORKER_BYTES + WORKER_BYTES_PER_PIXEL * rows * columns * layouts[0].samples
    if any(SYNTAXES[layout.syntax].form == "deflated" for layout in layouts):
        memory += 4 * max(layout.nbytes * layout.frames for layout in layouts)
    task = _Task(root, instances, layouts, paddings, places, stored.dtype.str, memory)
    reads: dict[int, SliceRead] = {}
    workers: list[_Worker] = []
    try:
        for _ in range(max(1, min(jobs, len(instances)))):
            workers.append(_start(task, [w.line for w in workers]))
        waiting = iter(range(len(instances)))
        for worker in workers * _SLOTS:
            _send_next(worker, waiting)
        while busy := {w.line: w for w in workers if w.busy}:
            for line in wait(list(busy)):
                worker = busy[line]  # type: ignore[index]
                k = worker.busy[0]
                reads[k] = _receive(worker, task, stored[k])
                done(1)
                _send_next(worker, waiting)
    except BaseException:
        for worker in workers:
            worker.process.kill()
        raise
    finally:
        for worker in workers:
            worker.line.close()
            worker.process.join()
            worker.process.close()
    return stored, [reads[k] for k in range(len(instances))]


def _start(task: _Task, others: list[Connection[Any, Any]]) -> _Worker:
    context = multiprocessing.get_context("fork" if _FORK else "spawn")
    ours, theirs = context.Pipe()
    slots = None
    if _FORK:
        shape, dtype = (_SLOTS, *task.layouts[0].shape), np.dtype(task.dtype)
        slots = np.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype).reshape(shape)
    # A forked worker holds copies of the other ends; while it did, no worker would see that this process is gone.
    closing = [*others, ours] if _FORK else []
    process = context.Process(target=_serve, args=(theirs, task, slots, closing), daemon=True)  # type: ignore[attr-defined]
    process.start()
    theirs.close()
    return _Worker(process, ours, slots)


def _send_next(worker: _Worker, waiting: Iterator[int]) -> None:
    k = next(waiting, None)
    if k is not None:
        worker.busy.append(k)
        # A worker that died is found out when its answer is awaited.
        with contextlib.suppress(OSError):
            worker.line.send_bytes(str(k).encode())


def _receive(worker: _Worker, task: _Task, out: NDArray[Any]) -> SliceRead:
    k = worker.busy.pop(0)
    try:
        answer = json.loads(worker.line.recv_bytes())
        if "error" not in answer:
            if worker.slots is None:
                worker.line.recv_bytes_into(out.data.cast("B"))
            else:
                out[...] = worker.slots[worker.turns % _SLOTS]
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"status {code}"
        form = SYNTAXES[task.layouts[k].syntax].form
        raise DataError(
            "decoder-crashed", f"{shown(task.instances[k].path)} killed its {form} decoder ({how})"
        ) from None
    if "error" in answer:
        kind = MissingError if answer["status"] == MissingError.status else DataError
        raise kind(answer["error"], answer["message"], hint=answer["hint"], **answer["numbers"])
    worker.turns += 1
    return SliceRead(**answer)


def _serve(
    line: Connection[Any, Any], task: _Task, slots: NDArray[Any] | None, closing: list[Connection[Any, Any]]
) -> None:
    for other in closing:
        other.close()
    # Ctrl-C reaches the whole group; the parent ends the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory(task.memory)
    _keep_freed_memory()
    turn = 0
    plane = np.empty(task.layouts[0].shape, task.dtype)
    with SourceFiles(task.root) as files:
        while True:
            try:
                k = int(line.recv_bytes())
                out = plane if slots is None else slots[turn % _SLOTS]
                answer = _answer(files, task, k, out)
                line.send_bytes(json.dumps(answer).encode())
                if slots is None and "error" not in answer:
                    line.send_bytes(plane.data.cast("B"))
            except (EOFError, OSError):
                return
            turn += 1


def _answer(files: SourceFiles, task: _Task, k: int, out: NDArray[Any]) -> dict[str, Any]:
    try:
        return asdict(read_slice(files, task.instances[k], task.layouts[k], task.paddings[k], out, task.places[k]))
    except MdError as error:
        said = {"message": error.message, "hint": error.hint, "numbers": error.numbers, "status": error.status}
        return {"error": error.code, **said}
    except MemoryError:
        text = f"{shown(task.instances[k].path)} needs more than {task.memory >> 20} MiB to decode"
        return {"error": "decoder-memory", "message": text, "hint": None, "numbers": {}, "status": DataError.status}


def _keep_freed_memory() -> None:
    """Make malloc reuse what each decoded frame frees, not give it back and fault it in anew (a fifth of JPEG-LS's time).

    Source: mallopt(3): freeing a mapped block of up to 32 MiB raises M_MMAP_THRESHOLD to its size, M_TRIM_THRESHOLD to twice it.
    """
    np.empty(31 << 20, np.uint8)


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
