"""Scan a source by an index of what an earlier scan read: a file that is as it was is not opened again.

The index is one file that may be deleted, damaged or written by two at once: then files are read again, never taken wrongly. An
entry holds for a file of the same name, size, inode, and times of modification and change, read by the same reader. A file that
was touched within `RACY_S` of the scan is not noted, since a later change might not show in its times.

It holds no name of a file and no identifier of a patient: names are kept as keyed hashes, and so is what is only compared.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import secrets
import stat
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mdcli.dicom.headers import Skipped
from mdcli.dicom.instance import Instance
from mdcli.dicom.tree import ZIP_MARK, Listing, read_entry

RACY_S = 2.0
"""The coarsest times that a file system keeps are FAT's: 2 s."""
MAX_INDEX = 1 << 28
"""Bytes of an index that are read."""

_MAGIC = b"md.scan-index/1 "
_SERIES = "SeriesInstanceUID"
# Groups that hold no name and no identifier of a person, but for AccessionNumber (PS3.6). Private groups are odd: not among them.
_GROUPS = frozenset((0x0008, 0x0018, 0x0020, 0x0028, 0x0054))
_ACCESSION_NUMBER = 0x00080050
# What depends on more than the file's content.
_PASSING = frozenset(("unreadable", "not-a-file"))
_MOST_EXTRA = 64

_Keywords = Mapping[str, tuple[int, str, bool]]
_Found = Instance | Skipped
_Stamp = tuple[int, int, int, int]


def scan(
    listing: Listing,
    extra: _Keywords | None = None,
    compare: _Keywords | None = None,
    *,
    index: Path | None = None,
    progress: Callable[[Iterable[str]], Iterable[str]] | None = None,
    reread: bool = False,
) -> list[_Found]:
    """Read the header of every listed file, and of every member of a zip file, or take it from the index.

    Args:
        listing: what `mdcli.dicom.tree.list_source` found.
        extra: more attributes to read, as in `mdcli.dicom.headers.KEYWORDS`. Those that may identify a patient are not kept: a scan
            that asks for one reads all files.
        compare: attributes that the caller only compares, such as PatientID: a value is replaced by a keyed hash, equal where the
            values are, within one result. A keyword that is also in `extra` keeps its value.
        index: the index file of this source, in a folder that is there; None for none. What can't be read is ignored, what can't
            be written is left.
        progress: given the names of the files that have to be opened, yields them again.
        reread: open all files, whatever the index says, and note them anew.

    Returns:
        In the order of the names; the same with an index and without, but for the hashes. Values that many instances share may be
        one object: don't change them.
    """
    extra = extra or {}
    compare = {keyword: want for keyword, want in (compare or {}).items() if keyword not in extra}
    if not all(_may_be_kept(*want) for want in extra.values()):
        index = None
    started = time.time_ns()
    files = [_File(name) for name in listing.names]
    plain, hidden, key, noted = dict(extra), dict(compare), secrets.token_bytes(32), 0
    if index is not None:
        with _without_collection():
            known = _load(index) or _Known(key)
            key, noted = known.key, len(known.entries)
            plain, hidden = known.asked_with(extra, compare)
            usable = not reread and (plain, hidden) == (known.extra, known.compare)
            _look_up(files, listing.root, known, usable)
    to_read = [file for file in files if file.found is None]
    names: Iterable[str] = [file.name for file in to_read]
    for file, name in zip(to_read, progress(names) if progress else names, strict=True):
        file.found = read_entry(listing.root, name, {**plain, **hidden})
        for one in file.found:
            _hide(one, hidden, key)
    if index is not None:
        read = [file for file in to_read if file.may_be_noted(started)]
        held = [file for file in files if file.held]
        if read or noted > len(held):
            _save(index, _Known(key, plain, hidden), held + read)
    unasked = [keyword for keyword in (*plain, *hidden) if keyword not in extra and keyword not in compare]
    return [_without(one, unasked) if unasked else one for file in files for one in file.found or ()]


def _look_up(files: Sequence[_File], root: Path, known: _Known, usable: bool) -> None:
    """Give every file its token and stamp, and what the index says of it where it is as it was."""
    for file in files:
        file.token = _hash(known.key, b"name", file.name)
        file.stamp = _stamp(root, file.name)
        entry = known.entries.get(file.token) if usable else None
        if entry is not None and entry[:4] == file.stamp:
            file.found = _results(entry[4], known.key, root, file.name)
            file.held = file.found is not None


@contextmanager
def _without_collection() -> Iterator[None]:
    """Hold the collector of cycles: it would go through all that is read again and again, and nothing here makes a cycle."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _may_be_kept(tag: int, vr: str, _single: bool) -> bool:
    return tag >> 16 in _GROUPS and tag != _ACCESSION_NUMBER and vr != "PN"


@dataclass(slots=True)
class _File:
    """One listed file in the course of a scan; `held`: what was found is the index's."""

    name: str
    token: str = ""
    stamp: _Stamp | None = None
    found: list[_Found] | None = None
    held: bool = False

    def may_be_noted(self, started: int) -> bool:
        """Say whether its stamp, taken since `started` (ns), would show any change to come, and nothing else matters."""
        if self.stamp is None or self.found is None or max(self.stamp[1], self.stamp[3]) >= started - int(RACY_S * 1e9):
            return False
        return not any(isinstance(one, Skipped) and one.code in _PASSING for one in self.found)


def _without(one: _Found, keywords: Sequence[str]) -> _Found:
    if isinstance(one, Instance):
        for keyword in keywords:
            one.attributes.pop(keyword, None)
    return one


def _stamp(root: Path, name: str) -> _Stamp | None:
    """Return what shows that a file is as it was: size, modified, inode, changed (times in ns); None where it can't be asked."""
    try:
        # Not by pathlib: this runs once a file.
        status = os.stat(f"{root}{os.sep}{name}" if name else root)  # noqa: PTH116
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino, status.st_ctime_ns


def _hash(key: bytes, kind: bytes, text: str) -> str:
    data = text.encode("utf-8", "surrogateescape")
    return hashlib.blake2b(data, key=key, person=kind, digest_size=12).hexdigest()


def _hide(one: _Found, compare: _Keywords, key: bytes) -> None:
    if isinstance(one, Instance):
        for keyword in compare:
            value = one.attributes.get(keyword)
            if value is not None:
                one.attributes[keyword] = _hash(key, b"value", str(value))


@cache
def _reader() -> str:
    """Return what tells this header reader from any other: a hash of its source, and the pydicom that reads what is rare."""
    from importlib.metadata import version

    from mdcli.dicom import headers, instance, tree

    digest = hashlib.sha256(f"pydicom {version('pydicom')}".encode())
    for source in (headers.__file__, instance.__file__, tree.__file__, __file__):
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()


@dataclass(slots=True)
class _Group:
    """Instances of one series that have the same attributes, in the same order: what differs is in rows, read one by one.

    Attributes:
        template: all attributes in their order, with the values that are alike.
        keywords: those that differ.
        rows: of each instance its size, pixel_offset, pixel_length, header_sha256, and the values of `keywords`.
    """

    template: dict[str, Any]
    keywords: tuple[str, ...]
    rows: Iterator[tuple[Any, ...]]

    def instance(self, path: str, row: tuple[Any, ...]) -> Instance:
        attributes = self.template.copy()
        attributes.update(zip(self.keywords, row[4:], strict=True))
        return Instance(path, row[0], row[1], row[2], row[3], attributes)


# One file of the index: its stamp, then what was read from it: (group, row) of an instance, or (None, row) of what was skipped;
# of a zip file a list of these, each after the hash of the member's name ("" for the file as a whole).
_Read = tuple[_Group | None, tuple[Any, ...]]
_Entry = tuple[int, int, int, int, _Read | list[tuple[str, _Read]]]


def _results(read: _Read | list[tuple[str, _Read]], key: bytes, root: Path, name: str) -> list[_Found] | None:
    """Return the results for the file of this name; None where it isn't the zip file that it was."""
    if not isinstance(read, list):
        return [_result(name, *read)]
    try:
        members = _members(key, root, name)
        return [_result(name + members[token], *one) for token, one in read]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, NotImplementedError):
        return None


def _result(path: str, group: _Group | None, row: tuple[Any, ...]) -> _Found:
    return group.instance(path, row) if group else Skipped(path, *row)


def _members(key: bytes, root: Path, name: str) -> dict[str, str]:
    # An index has entries only of a zip file whose table of members was read within its bounds.
    with zipfile.ZipFile(root / name if name else root) as archive:
        marks = ["", *(ZIP_MARK + member for member in archive.namelist())]
    return {_hash(key, b"member", mark) if mark else "": mark for mark in marks}


@dataclass(slots=True)
class _Known:
    """An index in memory."""

    key: bytes
    extra: dict[str, tuple[int, str, bool]] = field(default_factory=dict)
    compare: dict[str, tuple[int, str, bool]] = field(default_factory=dict)
    entries: dict[str, _Entry] = field(default_factory=dict)

    def asked_with(
        self, extra: _Keywords, compare: _Keywords
    ) -> tuple[dict[str, tuple[int, str, bool]], dict[str, tuple[int, str, bool]]]:
        """Return what to ask for: what earlier scans did as well, so that scans by two rules don't take turns in reading all."""
        if len(self.extra) > _MOST_EXTRA:
            return dict(extra), dict(compare)
        plain = {keyword: want for keyword, want in {**self.extra, **extra}.items() if keyword not in compare}
        hidden = {keyword: want for keyword, want in {**self.compare, **compare}.items() if keyword not in plain}
        return plain, hidden


def _load(path: Path) -> _Known | None:
    """Read an index; None where there is none, or it is damaged, another's or another reader's."""
    try:
        data = _bytes_of(path)
        start = len(_MAGIC) + 64
        if (
            data[: len(_MAGIC)] != _MAGIC
            or hashlib.sha256(memoryview(data)[start + 1 :]).hexdigest().encode() != (data[len(_MAGIC) : start])
        ):
            return None
        document = json.loads(data[start + 1 :].decode("ascii"))
        if document["reader"] != _reader():
            return None
        return _from_json(document)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError, StopIteration):
        return None


def _bytes_of(path: Path) -> bytes:
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    with os.fdopen(handle, "rb") as file:
        status = os.fstat(handle)
        mine = not hasattr(os, "geteuid") or status.st_uid == os.geteuid()
        if not stat.S_ISREG(status.st_mode) or not mine or status.st_size > MAX_INDEX:
            return b""
        return file.read(MAX_INDEX)


def _from_json(document: dict[str, Any]) -> _Known:
    skipped = [tuple(one) for one in document["skipped"]]
    groups = [_group(one) for one in document["groups"]]

    def read(number: int) -> _Read:
        if number < 0:
            return None, skipped[-1 - number]
        group = groups[number]
        return group, next(group.rows)

    results = [
        [(token, read(number)) for token, number in one] if isinstance(one, list) else read(one)
        for one in document["results"]
    ]
    entries = zip(*(document[name] for name in _STAMPS), results, strict=True)
    return _Known(
        bytes.fromhex(document["key"]),
        {keyword: (tag, vr, single) for keyword, (tag, vr, single) in document["extra"].items()},
        {keyword: (tag, vr, single) for keyword, (tag, vr, single) in document["compare"].items()},
        dict(zip(document["names"], entries, strict=True)),
    )


_STAMPS = ("sizes", "modified", "inodes", "changed")


def _group(one: dict[str, Any]) -> _Group:
    template, keywords = one["template"], tuple(one["differ"])
    # The order of the attributes is the template's: a keyword that isn't there would come last.
    if not template.keys() >= set(keywords):
        raise ValueError("an attribute that differs is not in the template")
    return _Group(template, keywords, zip(*one["own"], *one["columns"], strict=True))


def _save(path: Path, known: _Known, files: Iterable[_File]) -> None:
    """Write an index, whole or not at all; without a word where it can't be written."""
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        body = json.dumps(_to_json(known, files), separators=(",", ":")).encode("ascii")
        if len(body) > MAX_INDEX // 2:
            return
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except (OSError, TypeError, ValueError):
        # The next scan reads what this one read.
        return


def _to_json(known: _Known, files: Iterable[_File]) -> dict[str, Any]:
    skipped: dict[tuple[str, str, str | None], int] = {}
    groups: dict[tuple[str, tuple[str, ...]], int] = {}
    rows: list[list[list[Any]]] = []

    def number_of(one: _Found) -> int:
        if isinstance(one, Skipped):
            return -1 - skipped.setdefault((one.code, one.message, one.series_instance_uid), len(skipped))
        attributes = one.attributes
        number = groups.setdefault((str(attributes.get(_SERIES)), tuple(attributes)), len(groups))
        if number == len(rows):
            rows.append([])
        rows[number].append([one.size, one.pixel_offset, one.pixel_length, one.header_sha256, *attributes.values()])
        return number

    noted = [(file, file.stamp, file.found) for file in files if file.stamp is not None and file.found is not None]
    results: list[Any] = []
    for file, _, found in noted:
        marks = [one.path[len(file.name) :] for one in found]
        if len(found) == 1 and not marks[0]:
            results.append(number_of(found[0]))
        else:
            hashes = [_hash(known.key, b"member", mark) if mark else "" for mark in marks]
            results.append([[token, number_of(one)] for token, one in zip(hashes, found, strict=True)])
    return {
        "reader": _reader(),
        "key": known.key.hex(),
        "extra": known.extra,
        "compare": known.compare,
        "names": [file.token for file, _, _ in noted],
        **{name: [stamp[n] for _, stamp, _ in noted] for n, name in enumerate(_STAMPS)},
        "results": results,
        "skipped": list(skipped),
        "groups": [_group_json(keywords, own) for (_, keywords), own in zip(groups, rows, strict=True)],
    }


def _group_json(keywords: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    columns = list(zip(*rows, strict=True))
    own, values = columns[:4], dict(zip(keywords, columns[4:], strict=True))
    differ = [keyword for keyword in keywords if not _alike(values[keyword])]
    return {
        "template": {keyword: None if keyword in differ else values[keyword][0] for keyword in keywords},
        "differ": differ,
        "own": own,
        "columns": [values[keyword] for keyword in differ],
    }


def _alike(values: Sequence[Any]) -> bool:
    """Say whether all are one value; 1 and 1.0, 0.0 and -0.0 are two."""
    first = values[0]
    return all(value is first for value in values) or len(set(map(repr, values))) == 1
