"""Memory that we share with a server on this machine: a tensor is written once, and read where it lies.

POSIX shared memory, on Linux. Its name lives only until the server has opened it: whatever happens to us, nothing of a patient
stays behind under it. Source: Triton's extension `system_shared_memory`.
"""

from __future__ import annotations

import mmap
import os
import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import MdError
from mdcli.inference.engines.kserve_protocol import Late, Lost, Refused, Transport

# Where Linux keeps what shm_open(3) names.
_FOLDER = Path("/dev/shm")
# Tensors begin where any processor likes to read them.
_ALIGN = 64


def offered() -> bool:
    """Say whether this system has such memory."""
    return _FOLDER.is_dir() and hasattr(os, "posix_fallocate")


def aligned(size: int) -> int:
    """Return the bytes that a tensor takes with what follows it aligned."""
    return -(-size // _ALIGN) * _ALIGN


@dataclass(frozen=True)
class Region:
    """A piece that the server knows by name; `memory` is this side of it."""

    name: str
    size: int
    memory: mmap.mmap

    def array(self, offset: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Return a tensor in it."""
        count = int(np.prod(shape, dtype=np.int64))
        return np.frombuffer(self.memory, dtype, count, offset).reshape(shape)


class Regions:
    """The pieces of one session: as many as there are runs at once, used again and again."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._idle: list[Region] = []
        self._lock = threading.Lock()

    def take(self, size: int) -> Region:
        """Return a piece of at least `size` bytes that no other run has.

        Raises:
            OSError: there is no memory for it.
            Refused, Late, Lost: the server does not take it.
        """
        with self._lock:
            fitting = next((region for region in self._idle if region.size >= size), None)
            old = [] if fitting else self._idle
            self._idle = [region for region in self._idle if fitting and region is not fitting]
        if fitting:
            return fitting
        # Sizes seldom change: what is too small now will not be wanted again.
        for region in old:
            self.drop(region)
        return self._made(size)

    def give(self, region: Region) -> None:
        """Take a piece back for the next run."""
        with self._lock:
            self._idle.append(region)

    def drop(self, region: Region) -> None:
        """Forget a piece, and let the server forget it; one that is gone has forgotten it."""
        with suppress(Refused, Late, Lost, MdError):
            self._transport.unregister(region.name)

    def close(self) -> None:
        """Forget all that no run has."""
        with self._lock:
            idle, self._idle = self._idle, []
        for region in idle:
            self.drop(region)

    def _made(self, size: int) -> Region:
        name = f"md-{os.getpid()}-{secrets.token_hex(8)}"
        path = _FOLDER / name
        # Only a server of the same user opens it.
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            # Without it a full /dev/shm (64 MiB in many containers) kills the process at the first write that does not fit.
            os.posix_fallocate(handle, 0, size)
            memory = mmap.mmap(handle, size)
            self._transport.register(name, f"/{name}", size)
        finally:
            os.close(handle)
            path.unlink(missing_ok=True)
        return Region(name, size, memory)
