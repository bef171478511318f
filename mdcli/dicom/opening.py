"""Open a source file, or a member of a zip file, where `series.json` says it lies, and only if it is as it was scanned."""

from __future__ import annotations

import os
import stat
import threading
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TypeVar

from mdcli.errors import DataError, MissingError

T = TypeVar("T")
_IN_ZIP = "!/"
SCAN_AGAIN = "scan again: md select-series ... --dicom PATH --rehash --force"
"""The way out where a source is not as scanned: --rehash sees what changed with size and time kept, --force an edited list."""


def shown(text: str) -> str:
    """Return text out of a file, or a file's name, with everything unprintable escaped, at most 120 characters."""
    clean = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return clean if len(clean) <= 120 else clean[:117] + "..."


def split_path(root: Path, path: str) -> tuple[str, str | None]:
    """Return the file that holds a path of `series.json` (empty where that is the root itself), and the member in it, or None.

    A folder or a member may have `!` at its name's end as well: what is a file on disk tells.

    Args:
        root: the scanned folder or zip file.
        path: as in `Instance`.
    """
    at = path.find(_IN_ZIP)
    while at >= 0:
        name = path[:at]
        # Path.is_file raises where a name is too long.
        if os.path.isfile(f"{root}{os.sep}{name}" if name else root):  # noqa: PTH113
            return name, path[at + len(_IN_ZIP) :]
        at = path.find(_IN_ZIP, at + 1)
    return path, None


class OpenSource:
    """An open source file."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, or all that is left.

        Raises:
            DataError: `source-changed` where there are fewer.
        """
        data = self._file.read(size)
        while size >= 0 and len(data) < size:
            more = self._file.read(size - len(data))
            if not more:
                raise DataError("source-changed", f"{self._name} is shorter than when it was scanned", hint=SCAN_AGAIN)
            data += more
        return data

    def seek(self, offset: int) -> None:
        """Go to a place in the file, bytes from its start."""
        self._file.seek(offset)

    def fill(self, buffer: memoryview) -> None:
        """Read as many bytes as the buffer holds into it.

        Raises:
            DataError: `source-changed` where there are fewer.
        """
        at = 0
        while at < len(buffer):
            count = self._file.readinto(buffer[at:])  # type: ignore[attr-defined]
            if not count:
                raise DataError("source-changed", f"{self._name} is shorter than when it was scanned", hint=SCAN_AGAIN)
            at += count


class SourceFiles:
    """The files of one series. May be used by several threads, not by several processes.

    Args:
        root: the scanned folder or zip file.

    Attributes:
        root: as given.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._lock = threading.Lock()
        self._archives: dict[str, zipfile.ZipFile] = {}
        self._kept: dict[object, object] = {}

    def close(self) -> None:
        """Close what is open."""
        for archive in self._archives.values():
            archive.close()
        self._archives.clear()

    def kept(self, key: tuple[str, int], make: Callable[[], T]) -> T:
        """Return what `make` gives for a key; made anew where another one was asked for since: frames share pictures and files.

        One thing a kind is held: the pictures (frame numbers from 0) and the whole files (-1) apart.
        """
        slot = min(key[1], 0) == -1
        with self._lock:
            found = self._kept.get(slot)
        if isinstance(found, tuple) and found[0] == key:
            return found[1]  # type: ignore[no-any-return]
        made = make()
        with self._lock:
            self._kept[slot] = (key, made)
        return made

    def __enter__(self) -> SourceFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def open(self, path: str, size: int) -> Iterator[OpenSource]:
        """Open one path of `series.json`.

        Args:
            path: relative to the root, as in `Instance`.
            size: that it had when it was scanned, bytes.

        Raises:
            MissingError: `source-missing`.
            DataError: `source-changed` where the size is another, `source-unreadable`.
        """
        name, member = split_path(self.root, path)
        try:
            file = self._open_file(name) if member is None else self._open_member(name, member)
            with file[0] as stream:
                if file[1] != size:
                    text = f"{shown(path)} has {file[1]} bytes, {size} when it was scanned"
                    raise DataError("source-changed", text, hint=SCAN_AGAIN)
                yield OpenSource(stream, shown(path))
        except (FileNotFoundError, NotADirectoryError, KeyError):
            raise MissingError(
                "source-missing", f"{shown(path)} is gone since it was scanned", hint=SCAN_AGAIN
            ) from None
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            why = getattr(error, "strerror", None) or type(error).__name__
            raise DataError("source-unreadable", f"{shown(path)} can't be read: {why}") from error

    def _inside(self, name: str) -> Path:
        parts = PurePosixPath(name).parts
        if PurePosixPath(name).is_absolute() or ".." in parts:
            raise DataError("bad-artifact", f"series.json names {shown(name)}, which is outside the scanned folder")
        return self.root / name if name else self.root

    def _open_file(self, name: str) -> tuple[IO[bytes], int]:
        # What was a file when it was scanned may be a FIFO now, which must not make us wait.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(self._inside(name), flags)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            os.close(handle)
            raise DataError("source-changed", f"{shown(name)} is no regular file any more", hint=SCAN_AGAIN)
        return os.fdopen(handle, "rb", buffering=0), status.st_size

    def _open_member(self, name: str, member: str) -> tuple[IO[bytes], int]:
        with self._lock:
            if name not in self._archives:
                self._archives[name] = zipfile.ZipFile(self._inside(name))
            archive = self._archives[name]
        info = archive.getinfo(member)
        if info.flag_bits & 1:
            raise DataError("source-unreadable", f"{shown(member)} is encrypted in its zip file")
        return archive.open(info), info.file_size
