"""Let several processes share a GPU: each says how much of its memory it needs, and waits until that fits.

A folder of the caller's holds one file for each that runs or waits, named by its place in the queue and its need, and locked while
its process lives: the system drops the lock of a killed process, and with it the claim.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mdcli.errors import UnavailableError

POLL_S = 0.25

_NAME = re.compile(r"(\d{12})-(\d{1,9})\.slot")


@dataclass(frozen=True)
class Waiting:
    """Why a process waits.

    Attributes:
        ahead: how many came earlier and still run or wait.
        held_mib: what these need, MiB.
        total_mib: what the GPU has, MiB.
        seconds: how long it has waited.
    """

    ahead: int
    held_mib: int
    total_mib: int
    seconds: float


@contextlib.contextmanager
def gpu_slot(
    folder: Path,
    *,
    needed_mib: int | None,
    total_mib: int,
    waiting: Callable[[Waiting], None] = lambda _: None,
    poll_s: float = POLL_S,
) -> Iterator[None]:
    """Hold a part of a GPU's memory, after waiting until it is free.

    First come, first served: one that needs little does not overtake one that waits for much. Where the system has no such locks
    (Windows) nothing is held.

    Args:
        folder: of this GPU alone, named by its UUID for example; the same for all processes that shall share. It is made.
        needed_mib: MiB that one inference needs on the GPU; None: nobody knows, so all of it.
        total_mib: MiB that the GPU has.
        waiting: called before each wait; an exception from it ends the waiting.
        poll_s: seconds between two looks.

    Raises:
        UnavailableError: `memory-too-small` where the need is more than the GPU has.
    """
    needed = total_mib if needed_mib is None else needed_mib
    if needed > total_mib:
        raise UnavailableError(
            "memory-too-small",
            f"the model says it needs {needed} MiB of GPU memory, the GPU has {total_mib} MiB",
            hint="another GPU, or --device cpu",
            needed_mib=needed,
            bound_mib=total_mib,
        )
    try:
        import fcntl  # noqa: F401
    except ImportError:
        yield
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _guarded(folder):
        place = max((slot.place for slot in _slots(folder)), default=0) + 1
        mine = _claim(folder / f"{place:012d}-{needed}.slot")
    try:
        started = time.monotonic()
        while True:
            with _guarded(folder):
                ahead = [slot.needed_mib for slot in _slots(folder) if slot.place < place]
            # All that came earlier count, those that wait too: whoever runs has left room for every one before it.
            if sum(ahead) + needed <= total_mib:
                break
            waiting(Waiting(len(ahead), sum(ahead), total_mib, time.monotonic() - started))
            time.sleep(poll_s)
        yield
    finally:
        with _guarded(folder):
            mine.release()


@dataclass(frozen=True)
class _Slot:
    place: int
    needed_mib: int


@dataclass(frozen=True)
class _Claim:
    path: Path
    handle: int

    def release(self) -> None:
        import fcntl

        self.path.unlink(missing_ok=True)
        # Unlocked by name, not only closed: a forked child that still has the handle would hold the claim.
        fcntl.flock(self.handle, fcntl.LOCK_UN)
        os.close(self.handle)


def _claim(path: Path) -> _Claim:
    import fcntl

    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    fcntl.flock(handle, fcntl.LOCK_EX)
    return _Claim(path, handle)


def _slots(folder: Path) -> list[_Slot]:
    """Return the claims of living processes and remove the others. To be called with the guard held."""
    import fcntl

    found = []
    for path in folder.iterdir():
        said = _NAME.fullmatch(path.name)
        if said is None:
            continue
        try:
            handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            found.append(_Slot(int(said[1]), int(said[2])))
        finally:
            os.close(handle)
    return found


@contextlib.contextmanager
def _guarded(folder: Path) -> Iterator[None]:
    """Let one look at the queue or change it at a time."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
