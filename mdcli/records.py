"""The record beside every artifact: what made it, from what, and whether the file is still what was made.

A record never holds a patient's name, id or birth date, nor a path outside the workspace.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mdcli.errors import DataError, StorageError

SCHEMA = "md.record/1"
PART = ".part-"
_BLOCK = 1 << 20


def canonical(value: Any) -> bytes:
    """Return one value as JSON bytes that are the same for equal values: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def sha256_of(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical(value)).hexdigest()


def sha256_of_artifact(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, or of a folder's sorted (name, SHA-256) pairs."""
    if path.is_dir():
        inside = sorted(p for p in path.rglob("*") if p.is_file())
        return sha256_of([[p.relative_to(path).as_posix(), sha256_of_artifact(p)] for p in inside])
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stat_of_artifact(path: Path) -> dict[str, int]:
    """Return size (bytes) and modification time (ns) of a file; of a folder, the sum and the latest of its files."""
    if path.is_dir():
        stats = [p.stat() for p in path.rglob("*") if p.is_file()]
        return {"size": sum(s.st_size for s in stats), "mtime_ns": max((s.st_mtime_ns for s in stats), default=0)}
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def stat_digest(root: Path, files: tuple[str, ...]) -> str:
    """Return one SHA-256 of the sorted (relative path, size, mtime) of files outside the workspace.

    A file that is gone counts as such: the digest differs.
    """
    lines: list[list[Any]] = []
    for name in sorted(files):
        try:
            stat = (root / name if name else root).stat()
            lines.append([name, stat.st_size, stat.st_mtime_ns])
        except OSError:
            lines.append([name, None, None])
    return sha256_of(lines)


@dataclass(frozen=True)
class Record:
    """What made one artifact.

    Attributes:
        role: of the artifact, for example `volume-t2`.
        artifact: its file or folder name; None where the run found nothing to write.
        stage: its name, `stage_version` the version of its output.
        key: SHA-256 over stage, version, parameters that matter, input hashes and identity.
        params: the parameters that matter.
        inputs: role to `{"sha256", "edited"}`.
        identity: what else decided the result (model, engine, precision, provider, device).
        sources: `{"files", "stat", "content"}` of what was read from outside, or None.
        output: `{"sha256", "size", "mtime_ns"}`, or None.
        result: `processed`, `nothing-found`, or `purged` once `md purge` has removed the artifact.
        edited: roles that a person edited, of this stage's inputs or inherited.
        happened: seconds per span, peak memory, library versions, notes: never read back as data.
    """

    role: str
    artifact: str | None
    stage: str
    stage_version: int
    key: str
    params: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    identity: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, Any] | None = None
    output: Mapping[str, Any] | None = None
    result: str = "processed"
    edited: tuple[str, ...] = ()
    happened: Mapping[str, Any] = field(default_factory=dict)
    schema: str = SCHEMA

    def to_bytes(self) -> bytes:
        """Return the record as readable JSON."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


def record_path(folder: Path, role: str) -> Path:
    """Return where the record of a role lies."""
    return folder / f"{role}.record.json"


def _pending_path(folder: Path, role: str) -> Path:
    return folder / f".{role}.pending.json"


def _load(path: Path) -> Record | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, UnicodeDecodeError) as error:
        raise DataError(
            "bad-record", f"{path.name} is not a record", hint="remove it, and run the stage again"
        ) from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise DataError("bad-record", f"{path.name} is not an {SCHEMA} record", hint="remove it, and run again")
    found["edited"] = tuple(found.get("edited", ()))
    known = Record.__dataclass_fields__
    return Record(**{name: value for name, value in found.items() if name in known})


def load_record(folder: Path, role: str) -> Record | None:
    """Return the record of a role, after finishing what a killed run had begun; None where there is none.

    A pending record becomes the record where the artifact has its hash; else the run did not get as far, and it counts for
    nothing (it stays, since the run may be at work right now; the next one replaces it).
    """
    pending_path = _pending_path(folder, role)
    if pending_path.exists():
        pending = _load(pending_path)
        if pending is not None:
            target = folder / pending.artifact if pending.artifact else None
            done = (
                target is not None
                and pending.output is not None
                and target.exists()
                and sha256_of_artifact(target) == pending.output["sha256"]
            )
            if done:
                finish_pending(folder, role)
    return _load(record_path(folder, role))


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all: a temporary name in the same folder, then a rename."""
    part = path.with_name(f"{PART}{os.getpid()}-{secrets.token_hex(4)}-{path.name}")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_pending(folder: Path, record: Record) -> None:
    """Write the record under its pending name, before its artifact is renamed into place."""
    write_whole(_pending_path(folder, record.role), record.to_bytes())


def finish_pending(folder: Path, role: str) -> None:
    """Make the pending record the record, after the artifact is in place (a reader may have done it already)."""
    with suppress(FileNotFoundError):
        _pending_path(folder, role).replace(record_path(folder, role))


def write_record(folder: Path, record: Record) -> None:
    """Replace a record whose artifact stays as it is (a new stat, or nothing found)."""
    write_whole(record_path(folder, record.role), record.to_bytes())


@contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Turn a full disk or a refused write into its error; `what` names the place, never by a path outside the workspace."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError("disk-full", f"no room to write {what}: {error.strerror}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError("no-permission", f"may not write {what}: {error.strerror}") from error
        raise


def leftover_parts(folder: Path) -> list[Path]:
    """Return temporary files of runs that have ended: their process, named in the file, is gone."""
    found = []
    for path in sorted(folder.glob(f"{PART}*")):
        pid = path.name.removeprefix(PART).split("-")[0]
        if not pid.isdigit() or not _is_running(int(pid)):
            found.append(path)
    return found


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
