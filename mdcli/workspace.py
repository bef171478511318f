"""A case is a folder: roles, artifacts, and what a stage sees of them while it runs.

`Workspace` alone looks; inside `mdcli.execution.execute` it also writes: everything under a temporary name, in place only
when the stage has returned.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from mdcli.errors import DataError, MissingError, UsageError
from mdcli.records import (
    Record,
    load_record,
    part_path,
    sha256_of_artifact,
    stat_of_artifact,
    storage_errors,
    write_whole,
)
from mdcli.reporting import Reporter

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mdcli.imaging.nifti import Volume

T = TypeVar("T")

# The form of every kind of artifact; a plugin's own kinds are JSON unless they are named here.
SUFFIXES = {
    "volume": ".nii",
    "labels": ".nii",
    "instances": ".nii",
    "tensor": ".npz",
    "scores": "",
    "masks": "",
    "export": "",
    "seg": ".dcm",
    "rtstruct": ".dcm",
    "sr": ".dcm",
}
# What is read beside another artifact belongs to it: the kinds that lead, the nearest first.
LEADERS = {
    "segments": ("labels", "masks", "instances"),
    "geometry": ("labels", "masks", "instances", "volume"),
    "series": ("labels", "masks", "instances", "volume", "geometry"),
}
# What a stage writes together.
SIBLINGS = {
    ("geometry", "volume"),
    ("segments", "labels"),
    ("segments", "masks"),
    ("segments", "instances"),
}
SOURCE_FILE = "source.json"
_NAME = re.compile(r"[a-z0-9_]+")


def check_name(name: str) -> str:
    """Return the name, if it is one: lower-case letters, digits, underscores; never text out of DICOM.

    Raises:
        UsageError: `bad-name`.
    """
    if not _NAME.fullmatch(name):
        raise UsageError("bad-name", f"{name!r} is not a name", hint="names are made of a to z, 0 to 9 and _")
    return name


def role_of(kind: str, name: str | None) -> str:
    """Return `kind` or `kind-name`."""
    return f"{kind}-{check_name(name)}" if name else kind


def artifact_name(role: str) -> str:
    """Return the file or folder name of a role, for example `volume-t2.nii`."""
    kind = role.split("-", 1)[0]
    return role + SUFFIXES.get(kind, ".json")


@dataclass
class Staged:
    """One artifact that a running stage has written under a temporary name."""

    folder: Path
    role: str
    part: Path
    sha256: str | None = None
    size: int | None = None


@dataclass
class StageRun:
    """What one run of a stage gathers: its outputs, spans, notes and facts."""

    stage: str
    writes: tuple[str, ...]
    reporter: Reporter
    strict: bool = False
    jobs: int = 1
    rehash: bool = False
    staged: list[Staged] = field(default_factory=list)
    children: list[str] = field(default_factory=list)
    spans: dict[str, float] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    nothing_found: bool = False
    content_digest: str | None = None
    source_root: Path | None = None
    roots: dict[Path, str] = field(default_factory=dict)
    edited: list[str] = field(default_factory=list)


class ArtifactWriter:
    """A binary file that is hashed in a thread while it is written.

    A buffer that was handed over must not be changed afterwards: the hash may still be reading it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = 0
        self._hash = hashlib.sha256()
        self._queue: queue.Queue[memoryview | None] = queue.Queue(maxsize=8)
        self._thread = threading.Thread(target=self._digest, daemon=True)
        self._thread.start()

    def _digest(self) -> None:
        while (data := self._queue.get()) is not None:
            self._hash.update(data)

    def write(self, data: bytes | bytearray | memoryview | NDArray[Any]) -> int:
        """Append a contiguous buffer, arrays as they lie in memory."""
        view = memoryview(cast("bytes", data)).cast("B")
        left = view
        while left.nbytes:
            # An unbuffered write may be short: a full disk, a quota, more than 2 GiB at once.
            left = left[self._file.write(left) :]
        self._queue.put(view)
        self.size += view.nbytes
        return view.nbytes

    def finish(self) -> str:
        """Return the SHA-256 of all that was written."""
        self._queue.put(None)
        self._thread.join()
        return self._hash.hexdigest()


class Workspace:
    """One case.

    Args:
        path: its folder; made (mode 0700) when something is first written.
        as_name: the name for what a stage writes (`--as`).
        use: kind to name, for what a stage reads (`--use volume=t2`).
    """

    def __init__(self, path: Path | str, *, as_name: str | None = None, use: Mapping[str, str] | None = None) -> None:
        self.path = Path(path)
        self.as_name = check_name(as_name) if as_name else None
        self.use = {kind: check_name(name) for kind, name in (use or {}).items()}
        self._run: StageRun | None = None
        self.reading: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Return the case's own name: the last part of its folder's path."""
        return self.path.name or self.path.resolve().name

    # Reading

    def role_to_read(self, kind: str) -> str:
        """Return the role that a stage reads for a kind: by `--use`, else what the artifact that it goes with was made with.

        Two series of one grid in one workspace look alike: only the records tell whose geometry and sources belong to a label map.
        """
        if kind in self.use:
            return role_of(kind.partition("-")[0], self.use[kind])
        for leader in LEADERS.get(kind, ()):
            if leader in self.reading:
                return self._companion(kind, self.role_to_read(leader), set()) or kind
        return kind

    def _companion(self, kind: str, leader: str, seen: set[str]) -> str | None:
        """Return the role of a kind that goes with a role, by the records; None where they don't say."""
        record = self.record(leader)
        if record is None or leader in seen:
            return None
        leading, _, name = leader.partition("-")
        sibling = role_of(kind, name or None)
        beside = self.record(sibling) if (kind, leading) in SIBLINGS else None
        if beside is not None and beside.key == record.key:
            # One run wrote both, whatever of that kind it read.
            return sibling
        if kind in record.inputs:
            return str(record.inputs[kind]["role"])
        if (kind, leading) in SIBLINGS and leading not in record.inputs:
            return sibling
        for noted in record.inputs.values():
            found = self._companion(kind, str(noted["role"]), {*seen, leader})
            if found:
                return found
        return None

    def role_to_write(self, kind: str) -> str:
        """Return the role that a stage writes for a kind, by `--as`."""
        return role_of(kind, self.as_name)

    def locate(self, role: str) -> Path:
        """Return where the artifact of a role lies, whether or not it is there."""
        kind, _, name = role.partition("-")
        role_of(check_name(kind), name or None)
        return self.path / artifact_name(role)

    def has(self, kind: str) -> bool:
        """Say whether the artifact to read for a kind is there."""
        return self.locate(self.role_to_read(kind)).exists()

    def read(self, kind: str) -> Path:
        """Return the path of the artifact to read for a kind.

        Raises:
            MissingError: `no-workspace` or `no-artifact`.
        """
        role = self.role_to_read(kind)
        path = self.locate(role)
        if not path.exists():
            if not self.path.is_dir():
                raise MissingError("no-workspace", f"there is no workspace {self.name}")
            near = difflib.get_close_matches(role, self.roles(), 1)
            if kind == "labels" and self.has("masks"):
                way = "its structures overlap and lie in masks/: md merge-labels makes one map of them, by priority"
                raise MissingError("no-artifact", f"{path.name} is not in workspace {self.name}", hint=way)
            hint = _who_writes(kind) or (f"did you mean {near[0]}?" if near else None)
            raise MissingError("no-artifact", f"{path.name} is not in workspace {self.name}", hint=hint)
        return path

    def read_volume(self, kind: str, *, colour: bool = False) -> Volume:
        """Return the volume of a kind: array (k, j, i), memory-mapped, and the 4x4 affine, LPS+ mm.

        Args:
            kind: of the artifact.
            colour: take red, green and blue too: (k, j, i, 3).
        """
        from mdcli.imaging.nifti import read_nifti

        return read_nifti(self.read(kind), colour=colour)

    def read_json(self, kind: str) -> dict[str, Any]:
        """Return a JSON artifact, its schema name checked.

        Raises:
            DataError: `bad-artifact`.
        """
        path = self.read(kind)
        try:
            document = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise DataError("bad-artifact", f"{path.name} is not JSON: {error}") from error
        expected = f"md.{kind.partition('-')[0]}/1"
        found = document.get("schema") if isinstance(document, dict) else None
        if found != expected:
            raise DataError("bad-artifact", f"{path.name} has schema {found!r}, not {expected!r}")
        return cast("dict[str, Any]", document)

    def check_document(self, kind: str) -> None:
        """Hold a JSON artifact that md did not leave like this against its schema; another form, or a kind without schema, passes.

        Raises:
            DataError: `bad-artifact`, naming the place and what is wrong there.
        """
        from importlib.resources import files

        form = kind.partition("-")[0]
        schema = files("mdcli") / "schemas" / f"{form}.json"
        if SUFFIXES.get(form, ".json") != ".json" or not schema.is_file():
            return
        import jsonschema

        document = self.read_json(kind)
        error = jsonschema.exceptions.best_match(
            jsonschema.Draft202012Validator(json.loads(schema.read_bytes())).iter_errors(document)
        )
        if error is not None:
            name = artifact_name(self.role_to_read(kind))
            place = "/".join(str(part) for part in error.absolute_path) or "the top"
            raise DataError("bad-artifact", f"{name} is not a md.{form}/1: at {place}: {error.message[:200]}")

    def record(self, role: str) -> Record | None:
        """Return the record of a role, or None."""
        return load_record(self.path, role)

    def roles(self) -> list[str]:
        """Return the roles that have a record here, sorted."""
        return sorted(p.name.removesuffix(".record.json") for p in self.path.glob("*.record.json"))

    def state(self, role: str, *, rehash: bool = False) -> tuple[str, str | None]:
        """Say what an artifact is: (`absent` | `made` | `edited` | `unknown`, its SHA-256 or None).

        `made` is as its record says; `edited` differs from it; `unknown` has no record. The file is read again only where its
        stat differs from the recorded one, or with `rehash`.
        """
        path = self.locate(role)
        record = self.record(role)
        if not path.exists():
            return "absent", None
        if record is None or record.output is None:
            return "unknown", sha256_of_artifact(path)
        stat = stat_of_artifact(path)
        if not rehash and stat == {name: record.output[name] for name in ("size", "mtime_ns")}:
            return "made", record.output["sha256"]
        digest = sha256_of_artifact(path)
        return ("made" if digest == record.output["sha256"] else "edited"), digest

    def children(self) -> list[Workspace]:
        """Return the child workspaces that a stage made here, sorted by name."""
        names: set[str] = set()
        for path in self.path.glob("children-*.json"):
            if not path.name.endswith(".record.json"):
                with suppress(OSError, ValueError, KeyError, TypeError):
                    names |= {name for name in json.loads(path.read_bytes())["children"] if _NAME.fullmatch(name)}
        folders = [self.path / name for name in sorted(names)]
        return [Workspace(folder) for folder in folders if folder.is_dir() and not folder.is_symlink()]

    def source(self) -> Path | None:
        """Return the input from outside that `md cases` noted, or None."""
        found = self.source_key("source")
        return Path(found) if found else None

    def source_key(self, key: str) -> str | None:
        """Return one entry of `source.json`, or None.

        Raises:
            DataError: `bad-artifact`.
        """
        path = self.path / SOURCE_FILE
        if not path.exists():
            return None
        try:
            document = json.loads(path.read_bytes())
            if document["schema"] != "md.source/1":
                raise ValueError(f"schema {document['schema']!r}")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError("bad-artifact", f"{SOURCE_FILE} of workspace {self.name} is no md.source/1") from error
        value = document.get(key)
        return None if value is None else str(value)

    def source_root(self, kind: str = "series") -> Path:
        """Return the folder or zip file that the paths of `series.json` are relative to.

        Raises:
            MissingError: `no-artifact` where it was never noted.
        """
        path = self.path / f"{self.role_to_read(kind)}.root"
        if self._run and path in self._run.roots:
            return Path(self._run.roots[path])
        try:
            return Path(os.fsdecode(path.read_bytes().rstrip(b"\n")))
        except FileNotFoundError:
            hint = "run md select-series again with --dicom"
            raise MissingError("no-artifact", f"{path.name} is not in workspace {self.name}", hint=hint) from None

    # What a running stage may do

    @property
    def run(self) -> StageRun:
        """Return the run that this workspace is part of."""
        if self._run is None:
            raise RuntimeError("a workspace is written by a running stage only: see mdcli.execution.execute")
        return self._run

    @property
    def jobs(self) -> int:
        """Return how many cores the stage may use."""
        return self._run.jobs if self._run else (os.cpu_count() or 1)

    @property
    def rehash(self) -> bool:
        """Say whether files are to be read again that are as they were noted, by size and time."""
        return bool(self._run and self._run.rehash)

    @property
    def edited(self) -> list[str]:
        """Return the roles that a person edited among what this stage reads, inherited ones included."""
        return self.run.edited

    def child(self, name: str) -> Workspace:
        """Return a child workspace; what the stage writes into it is one more finished case."""
        child = Workspace(self.path / check_name(name), as_name=self.as_name, use=self.use)
        child._run = self._run
        if name not in self.run.children:
            self.run.children.append(name)
        return child

    def named(self, name: str) -> Workspace:
        """Return this workspace with another name for what the stage writes; one of those that `Stage.names` gives."""
        view = Workspace(self.path, as_name=name, use=self.use)
        view._run = self._run
        return view

    def _stage(self, kind: str) -> Staged:
        if kind not in self.run.writes:
            raise RuntimeError(f"{self.run.stage} writes {kind!r}, which it does not declare")
        role = self.role_to_write(kind)
        with storage_errors(f"workspace {self.name}"):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        staged = Staged(self.path, role, part_path(self.path, artifact_name(role)))
        self.run.staged.append(staged)
        return staged

    @contextmanager
    def writing(self, kind: str) -> Iterator[Path]:
        """Give a temporary path (with the artifact's suffix) to write a whole file, or make a whole folder, at."""
        staged = self._stage(kind)
        with storage_errors(artifact_name(staged.role)):
            yield staged.part

    @contextmanager
    def open_to_write(self, kind: str) -> Iterator[ArtifactWriter]:
        """Give a file that is hashed while it is written."""
        staged = self._stage(kind)
        with storage_errors(artifact_name(staged.role)), staged.part.open("wb", buffering=0) as file:
            writer = ArtifactWriter(cast("BinaryIO", file))
            try:
                yield writer
            finally:
                staged.sha256, staged.size = writer.finish(), writer.size

    @contextmanager
    def volume_writer(
        self,
        kind: str,
        shape: tuple[int, ...],
        dtype: str | np.dtype[Any],
        affine: NDArray[np.float64],
        unit: str | None = None,
        *,
        colour: bool = False,
        plane: str = "patient",
    ) -> Iterator[ArtifactWriter]:
        """Give a file to which slabs are appended in the order of k, each contiguous and little endian.

        Args:
            kind: what is written.
            shape: (k, j, i), or (t, k, j, i).
            dtype: of the voxels.
            affine: 4x4, (i, j, k) to mm, LPS+.
            unit: what the values mean.
            colour: each voxel is red, green and blue.
            plane: what the affine's millimetres are of.
        """
        from mdcli.imaging.nifti import HEADER_BYTES, nifti_header

        header = nifti_header(shape, dtype, affine, unit, colour=colour, plane=plane)
        with self.open_to_write(kind) as out:
            out.write(header)
            yield out
            part = self.run.staged[-1].part
        expected = HEADER_BYTES + _bytes_of(shape, dtype) * (3 if colour else 1)
        staged = next(s for s in self.run.staged if s.part == part)
        if staged.part.stat().st_size != expected:
            raise RuntimeError(f"{artifact_name(staged.role)} got {staged.part.stat().st_size} bytes, not {expected}")

    def write_volume(
        self, kind: str, array: NDArray[Any], affine: NDArray[np.float64], unit: str | None = None
    ) -> None:
        """Write a whole volume (k, j, i); `affine` is 4x4, (i, j, k) to mm, LPS+."""
        import numpy as np

        with self.volume_writer(kind, array.shape, array.dtype, affine, unit) as out:
            for plane in array:
                out.write(np.ascontiguousarray(plane, array.dtype.newbyteorder("<")))

    def write_json(self, kind: str, document: Mapping[str, Any]) -> None:
        """Write a JSON artifact; its `schema` is `md.<kind>/1`."""
        if document.get("schema") != f"md.{kind}/1":
            raise RuntimeError(f"{kind} needs schema md.{kind}/1, not {document.get('schema')!r}")
        with self.open_to_write(kind) as out:
            out.write(json_bytes(document))

    def set_source_root(self, kind: str, root: Path) -> None:
        """Note where the paths of `series.json` start. Neither hashed nor recorded."""
        path = self.path / f"{self.role_to_write(kind)}.root"
        self.run.roots[path] = str(root.absolute())

    def add_span(self, name: str, seconds: float) -> None:
        """Add to a named span what was timed elsewhere, such as the time in which any of several threads was at work."""
        self.run.spans[name] = self.run.spans.get(name, 0.0) + seconds

    def span(self, name: str) -> _Span:
        """Time a named part of the stage, for the record and the profile. Spans of one name add up."""
        return _Span(self._run, name)

    def _say(self, level: str, code: str, message: str, numbers: dict[str, Any]) -> None:
        self.run.notes.append({"level": level, "code": code, "message": message, "numbers": numbers})
        self.run.reporter.event(level, message, code=code, stage=self.run.stage, case=self.name, numbers=numbers)

    def warn(self, code: str, message: str, **numbers: Any) -> None:
        """Warn; under `--strict` this is an error.

        Raises:
            DataError: with the warning's own code, under `--strict`.
        """
        if self.run.strict:
            raise DataError(code, message, hint="without --strict this is a warning", **numbers)
        self._say("warning", code, message, numbers)

    def note(self, code: str, message: str, **numbers: Any) -> None:
        """Tell the person something that changes nothing."""
        self._say("info", code, message, numbers)

    def progress(self, items: Iterable[T], text: str) -> Iterator[T]:
        """Go through items, with a bar on a terminal."""
        total = len(items) if isinstance(items, Sized) else None
        with self.run.reporter.progress(total, text) as advance:
            for item in items:
                yield item
                advance(1)

    @contextmanager
    def progress_bar(self, total: float, text: str) -> Iterator[Callable[[float], None]]:
        """Give a function to call with how much more is done, in the unit of `total`."""
        with self.run.reporter.progress(total, text) as advance:
            yield advance

    def report(self, text: str, document: dict[str, Any]) -> None:
        """Give a report that was asked for: lines for a person, and the same for a machine."""
        self.run.reporter.report(text, document, stage=self.run.stage, case=self.name)

    def nothing_found(self, code: str, message: str) -> None:
        """Say that the case was processed and nothing was found: status 0, and the record says so."""
        self.run.nothing_found = True
        self.note(code, message)

    def sources_digest(self, digest: str) -> None:
        """Tell the record the content digest of the files from outside that were just read."""
        self.run.content_digest = digest

    def engine_facts(self, facts: Mapping[str, Any]) -> None:
        """Tell the record what really ran: engine, version, precision, provider, device, nodes."""
        self.run.facts.update(facts)


def open_workspace(path: str) -> Workspace:
    """Return a workspace that is there: a folder with records or a `source.json` of its own.

    Raises:
        UsageError: `bad-workspace` for an empty path, as an unset shell variable gives.
        MissingError: `no-workspace`.
    """
    if not path:
        raise UsageError("bad-workspace", "the workspace's path is empty", hint="is a shell variable unset?")
    ws = Workspace(Path(path).resolve())
    if not ws.roles() and ws.source_key("source") is None:
        message = f"{path} is no workspace: it has neither records nor {SOURCE_FILE}"
        raise MissingError("no-workspace", message)
    return ws


class _Span:
    def __init__(self, run: StageRun | None, name: str) -> None:
        self._stage_run, self._name = run, name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._stage_run is not None:
            spans = self._stage_run.spans
            spans[self._name] = spans.get(self._name, 0.0) + time.perf_counter() - self._start


def json_bytes(document: Mapping[str, Any]) -> bytes:
    """Return a document as readable JSON: one line a top-level key, in ASCII, so that undecodable file names survive."""
    lines = (f" {json.dumps(key)}: {_json_value(value)}" for key, value in document.items())
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode("ascii")


def _json_value(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"  {json.dumps(item)}" for item in value) + "\n ]"
    return json.dumps(value)


def _bytes_of(shape: tuple[int, ...], dtype: str | np.dtype[Any]) -> int:
    import math

    import numpy as np

    return math.prod(shape) * np.dtype(dtype).itemsize


def _who_writes(kind: str) -> str | None:
    known = {
        "series": "select-series",
        "volume": "load-volume",
        "geometry": "load-volume",
        "labels": "infer, merge-labels, read-seg or read-rtstruct",
        "segments": "infer, merge-labels, read-seg or read-rtstruct",
        "masks": "read-seg or read-rtstruct",
    }
    return f"md {known[kind]} writes it" if kind in known else None


def write_source(folder: Path, source: Path, study_instance_uid: str | None = None) -> None:
    """Leave `source.json`: the default of every parameter that is marked as the source.

    Args:
        folder: the workspace.
        source: the input from outside.
        study_instance_uid: which study, where `source` holds several.
    """
    document = {"schema": "md.source/1", "source": str(source.absolute())}
    if study_instance_uid:
        document["study_instance_uid"] = study_instance_uid
    with storage_errors(f"workspace {folder.name}"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(folder / SOURCE_FILE, json_bytes(document))
