"""Find the files of a source (a folder tree, a zip file, one file) and read their headers. Nothing is extracted to disk.

The order is fixed: by name, a folder's files before its subfolders. What is no regular file is never opened.
"""

from __future__ import annotations

import io
import os
import stat
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from mdcli.dicom.headers import Skipped, read_instance
from mdcli.dicom.instance import Instance
from mdcli.errors import DataError, MissingError, StorageError

ZIP_MARK = "!/"
"""Between a zip file's path and a member's name."""
MAX_ZIP_DIRECTORY = 32 << 20
"""Bytes of a zip file's table of members: more is `zip-damaged`."""

_ZIP_START = b"PK"
_DIRECTORIES = ("DICOMDIR", "DICOMDIR.DCM")


@dataclass(frozen=True)
class Listing:
    """The files of a source.

    Attributes:
        root: what the names are relative to: a folder, or the zip file itself.
        names: `/` between parts, in order; one empty name where the root is a zip file.
        skipped: what is there and is no file to read, with reason `not-a-file`, `folder-link`, `broken-link` or `unreadable`.
    """

    root: Path
    names: tuple[str, ...]
    skipped: tuple[Skipped, ...] = ()


def list_source(source: Path) -> Listing:
    """List the files of a source; opens none of them, but the source itself where that is a file.

    Links to files are followed. A link to a folder is followed where it leaves the tree, once and no further, and not where it
    leads back to what is scanned anyway.

    Raises:
        MissingError: `no-source` where it isn't there.
        DataError: `bad-source` where it is neither a folder nor a regular file.
        StorageError: `unreadable` where it can't be opened.
    """
    try:
        mode = source.stat().st_mode
        if stat.S_ISDIR(mode):
            return _list_folder(source)
        if not stat.S_ISREG(mode):
            raise DataError("bad-source", "the source is neither a folder nor a regular file")
        if _is_zip(source):
            return Listing(source, ("",))
        if source.name.upper() in _DIRECTORIES:
            # The directory of a file-set stands for the set (PS3.10 section 8.6), whose files lie beside and below it.
            return _list_folder(source.parent)
        return Listing(source.parent, (source.name,))
    except (FileNotFoundError, NotADirectoryError) as error:
        from mdcli.dicom.opening import shown

        raise MissingError(
            "no-source", f"the source {shown(source.name)} is not there", hint="--dicom names a folder, a file or a zip"
        ) from error
    except OSError as error:
        raise StorageError("unreadable", f"the source can't be opened: {error.strerror}") from error


def _list_folder(root: Path) -> Listing:
    names: list[str] = []
    skipped: list[Skipped] = []
    real_root = os.path.realpath(root)
    # Folders still to visit: relative name ("" or ending with "/"), and whether a link led there.
    waiting = [("", False)]
    while waiting:
        prefix, linked = waiting.pop()
        try:
            with os.scandir(root / prefix) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise
            skipped.append(Skipped(prefix.rstrip("/"), "unreadable", f"the folder can't be listed: {error.strerror}"))
            continue
        folders = []
        for entry in found:
            name = prefix + entry.name
            kind, reason = _kind_of(entry, real_root, linked)
            if kind == "file":
                names.append(name)
            elif kind == "folder":
                folders.append((name + "/", linked or entry.is_symlink()))
            else:
                skipped.append(Skipped(name, kind, reason))
        waiting += reversed(folders)
    return Listing(root, tuple(names), tuple(skipped))


def _kind_of(entry: os.DirEntry[str], real_root: str, linked: bool) -> tuple[str, str]:
    """Return `file`, `folder`, or the reason to skip and a sentence."""
    try:
        if entry.is_file():
            return "file", ""
        if not entry.is_dir():
            broken = entry.is_symlink() and not Path(entry.path).exists()
            return ("broken-link", "it leads nowhere") if broken else ("not-a-file", "it is no regular file")
    except OSError as error:
        if entry.is_symlink():
            return "broken-link", "it leads nowhere"
        return "unreadable", f"it can't be looked at: {error.strerror}"
    if not entry.is_symlink():
        return "folder", ""
    target = os.path.realpath(entry.path)
    if linked:
        return "folder-link", "it is a link to a folder within a linked folder"
    if _within(target, real_root) or _within(real_root, target):
        return "folder-link", "it leads back to what is scanned anyway"
    return "folder", ""


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _is_zip(path: Path | str) -> bool:
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        return os.read(handle, 2) == _ZIP_START and zipfile.is_zipfile(path)
    finally:
        os.close(handle)


def read_entry(
    root: Path, name: str, extra: Mapping[str, tuple[int, str, bool]] | None = None
) -> list[Instance | Skipped]:
    """Read the header of one listed file, or of every member of a zip file.

    Args:
        root: as in `Listing`.
        name: one of its names. A zip file within a tree is known by its ending.
        extra: more attributes to read, as in `mdcli.dicom.headers.KEYWORDS`.
    """
    # Not by pathlib: this runs once a file, and a Path costs as much as reading a header.
    path = f"{root}{os.sep}{name}" if name else str(root)
    try:
        if (not name or name[-4:].lower() == ".zip") and _is_zip(path):
            return _read_zip(path, name, extra)
    except OSError as error:
        return [Skipped(name, "unreadable", f"it can't be read: {error.strerror}")]
    return [read_instance(path, name, extra)]


class _BoundedFile(io.FileIO):
    """A zip file that doesn't hand out a table of members larger than `MAX_ZIP_DIRECTORY`, whatever it claims."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_ZIP_DIRECTORY:
            raise zipfile.BadZipFile("a read larger than any part of it may be")
        return super().read(-1 if size is None else size) or b""


def _read_zip(path: str, name: str, extra: Mapping[str, tuple[int, str, bool]] | None) -> list[Instance | Skipped]:
    results: list[Instance | Skipped] = []
    try:
        with _BoundedFile(path) as file, zipfile.ZipFile(cast("BinaryIO", file)) as archive:
            members: dict[str, zipfile.ZipInfo] = {}
            for info in archive.infolist():
                if info.filename in members:
                    # Which of the two a reader gets is up to the reader.
                    shown = name + ZIP_MARK + info.filename
                    results.append(Skipped(shown, "zip-damaged", "the zip file holds two members of this name"))
                members[info.filename] = info
            results += [
                _read_member(archive, info, name, extra) for _, info in sorted(members.items()) if not info.is_dir()
            ]
    except Exception as error:  # zipfile raises many kinds on hostile input
        results.append(Skipped(name, "zip-damaged", f"the zip file can't be read ({type(error).__name__})"))
    return results


def _read_member(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str, extra: Mapping[str, tuple[int, str, bool]] | None
) -> Instance | Skipped:
    shown = name + ZIP_MARK + info.filename
    if info.flag_bits & 1:
        return Skipped(shown, "zip-encrypted", "the zip member is encrypted")
    if info.filename.lower().endswith(".zip"):
        return Skipped(shown, "nested-zip", "it is a zip file within a zip file")
    try:
        with archive.open(info) as member:
            return read_instance(cast("BinaryIO", member), shown, extra, size=info.file_size)
    except Exception as error:  # zipfile and its decompressors raise many kinds on hostile input
        return Skipped(shown, "zip-damaged", f"the zip member can't be read ({type(error).__name__})")


def study_folders(root: Path) -> list[tuple[str, Path, bool]]:
    """Return where each study of a tree lies.

    Returns:
        (StudyInstanceUID, the deepest folder that holds all its files, whether that folder holds no other study), by folder,
        then UID. A study without a UID is left out.
    """
    folders: dict[str, str] = {}
    listing = list_source(root)
    if not root.is_dir():
        raise DataError("bad-source", "a tree of many studies is a folder")
    for name in listing.names:
        for found in read_entry(listing.root, name):
            uid = found.get("StudyInstanceUID") if isinstance(found, Instance) else None
            if uid:
                folder = name.rpartition("/")[0]
                folders[str(uid)] = _common_folder(folders[uid], folder) if uid in folders else folder

    def alone(uid: str) -> bool:
        mine = folders[uid] + "/" if folders[uid] else ""
        return not any(u != uid and (f + "/").startswith(mine) for u, f in folders.items())

    return [
        (uid, listing.root / folder, alone(uid)) for uid, folder in sorted(folders.items(), key=lambda pair: pair[::-1])
    ]


def _common_folder(one: str, other: str) -> str:
    parts = []
    for a, b in zip(one.split("/"), other.split("/"), strict=False):
        if a != b:
            break
        parts.append(a)
    return "/".join(parts)
