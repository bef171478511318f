"""The record beside every artifact: what made it, from what, and whether the file is still what was made.

A record never holds a patient's name, id or birth date, nor a path outside the workspace.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
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
    """Return one SHA-256 of where files outside the workspace lie and their sorted (relative path, size, mtime).

    A file that is gone counts as such: the digest differs. Another root differs too: copies and unpacked archives have equal names,
    sizes and times, and only their content tells whether they are the same.
    """
    lines: list[list[Any]] = [[os.fsencode(root.absolute()).hex(), None, None]]
    for name in sorted(files):
        try:
            # Not by pathlib: of 10,000 files that alone would take as long as the calls.
            stat = os.stat(f"{root}{os.sep}{name}" if name else root)  # noqa: PTH116
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


def part_path(folder: Path, name: str) -> Path:
    """Return a temporary path for an artifact, in its own folder, that names the process which writes it."""
    return folder / f"{PART}{os.getpid()}-{secrets.token_hex(4)}-{name}"


def _pending_path(folder: Path, role: str) -> Path:
    return folder / f".{role}.pending.json"


def _load(path: Path) -> Record | None:
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, UnicodeDecodeError, RecursionError, IsADirectoryError) as error:
        raise DataError(
            "bad-record", f"{path.name} is not a record", hint="remove it, and run the stage again"
        ) from error
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        raise DataError("bad-record", f"{path.name} is not an {SCHEMA} record", hint="remove it, and run again")
    hint = "remove it, and run the stage again"
    try:
        found["edited"] = tuple(found.get("edited", ()))
        record = Record(**{name: value for name, value in found.items() if name in Record.__dataclass_fields__})
        output = record.output is None or all(record.output[key] is not None for key in ("sha256", "size", "mtime_ns"))
        inputs = all(noted["role"] and "sha256" in noted for noted in record.inputs.values())
        plain = record.artifact is None or Path(record.artifact).name == record.artifact
        if not (output and inputs and plain):
            raise ValueError("a part of it is not as md writes it")
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DataError("bad-record", f"{path.name} is not a whole record: {error}", hint=hint) from error
    return record


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


def load_pending(folder: Path, role: str) -> Record | None:
    """Return the pending record of a role: a run that is putting its artifacts in place, or was killed there."""
    return _load(_pending_path(folder, role))


def write_whole(path: Path, data: bytes) -> None:
    """Write a small file whole or not at all: a temporary name in the same folder, then a rename."""
    part = part_path(path.parent, path.name)
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
        named = re.fullmatch(re.escape(PART) + r"(\d+)-[0-9a-f]{8}-.+", path.name)
        if named and not _is_running(int(named[1])):
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
