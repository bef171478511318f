"""Run a stage over one workspace: decide whether it is up to date, run it, put its artifacts and records in place.

Whole or not at all: every output is written under a temporary name; then, for each one, a pending record with its hash is
written, the artifact is renamed, the record is renamed. After kill -9 anywhere the next call finishes or repeats.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from mdcli.errors import DataError, MdError, MissingError, OutOfTimeError, PersonsFileError, StorageError, UsageError
from mdcli.records import (
    Record,
    finish_pending,
    load_pending,
    load_record,
    part_path,
    record_path,
    sha256_of,
    sha256_of_artifact,
    stat_digest,
    stat_of_artifact,
    storage_errors,
    write_pending,
    write_record,
    write_whole,
)
from mdcli.reporting import Reporter
from mdcli.stage import Sources, Stage, fields_of
from mdcli.workspace import Staged, StageRun, Workspace, artifact_name, json_bytes, role_of

_LIBRARIES = ("numpy", "pydicom", "highdicom", "SimpleITK", "onnxruntime", "nibabel")


@dataclass(frozen=True)
class Controls:
    """How to run, beside the stage's own parameters. None of it changes a result.

    Attributes:
        force: run even if up to date, and move a file that a person changed aside.
        redo: run even if up to date, never touching a person's file (`MD_REDO=1`, for profiling).
        dry_run: say what would be done and why, do nothing.
        strict: a warning is an error.
        rehash: read files again whose stat is as recorded.
        timeout: seconds that one case may take.
        jobs: cores that the stage may use; None for all.
    """

    force: bool = False
    redo: bool = False
    dry_run: bool = False
    strict: bool = False
    rehash: bool = False
    timeout: float | None = None
    jobs: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What one run of a stage left.

    Attributes:
        workspaces: the finished ones: the case itself, or its child workspaces.
        artifacts: workspace path to the role names in place.
        result: `processed` or `nothing-found`.
        up_to_date: nothing had to be done.
    """

    workspaces: tuple[Path, ...]
    artifacts: Mapping[Path, tuple[str, ...]]
    result: str
    up_to_date: bool = False


@dataclass
class _Plan:
    """What decides whether a stage has to run."""

    key: str
    params: dict[str, Any]
    inputs: dict[str, dict[str, Any]]
    input_mtime: int
    identity: dict[str, Any]
    sources: Sources | None
    stat: str | None
    edited: list[str] = field(default_factory=list)


def _plain(value: Any) -> Any:
    """Return a parameter as JSON holds it."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def params_that_matter(stage: Stage, params: Any) -> dict[str, Any]:
    """Return the parameters that can change the result, as they are recorded."""
    return {
        f.name: _plain(getattr(params, f.name))
        for f in fields_of(stage.params)
        if f.option.result and f.option.source is not True
    }


def _inputs(stage: Stage, ws: Workspace, params: Any, rehash: bool) -> tuple[dict[str, dict[str, Any]], int, list[str]]:
    if stage.reads_as:
        ws.use = {**stage.reads_as(ws, params), **ws.use}
    also = stage.also_reads(ws, params) if stage.also_reads else ()
    inputs: dict[str, dict[str, Any]] = {}
    newest, edited = 0, set()
    ws.reading = (*stage.reads, *stage.optional_reads)
    for kind in dict.fromkeys((*stage.reads, *also, *stage.optional_reads)):
        role = ws.role_to_read(kind)
        load_record(ws.path, role)
        if kind in stage.optional_reads and not ws.has(kind):
            continue
        path = ws.read(kind)
        state, digest = ws.state(role, rehash=rehash)
        # A file without a record is a person's, as much as one that differs from its record.
        changed = state != "made"
        if state != "made":
            ws.check_document(kind)
        inputs[kind] = {"role": role, "sha256": digest, "edited": changed}
        newest = max(newest, stat_of_artifact(path)["mtime_ns"])
        record = ws.record(role)
        edited |= {role} if changed else set()
        edited |= set(record.edited) if record else set()
    _refuse_torn(ws, [noted["role"] for noted in inputs.values()])
    return inputs, newest, sorted(edited)


def _refuse_torn(ws: Workspace, roles: list[str]) -> None:
    """Refuse artifacts of two runs: one of a stage that was killed between its renames, and one from before."""
    keys = {record.key: role for role in roles if (record := ws.record(role))}
    for role in roles:
        pending = load_pending(ws.path, role)
        record = ws.record(role)
        if pending is not None and record is not None and pending.key != record.key and pending.key in keys:
            message = (
                f"{artifact_name(role)} is older than {artifact_name(keys[pending.key])}, which was written with it"
            )
            raise DataError("half-written", message, hint=f"run md {pending.stage} again")


def _refuse_own_input(stage: Stage, ws: Workspace) -> None:
    if stage.splits:
        return
    for kind in {*stage.reads, *stage.optional_reads} & {*stage.writes}:
        if ws.role_to_read(kind) == ws.role_to_write(kind):
            message = f"{stage.name} would write over {artifact_name(ws.role_to_read(kind))}, which it reads"
            raise UsageError("same-name", message, hint="give what it writes a name with --as NAME")


def _plan(stage: Stage, ws: Workspace, params: Any, controls: Controls) -> _Plan:
    inputs, newest, edited = _inputs(stage, ws, params, controls.rehash)
    matter = params_that_matter(stage, params)
    identity = dict(stage.identity(ws, params)) if stage.identity else {}
    sources = stage.sources(ws, params) if stage.sources else None
    key = sha256_of(
        {
            "stage": stage.name,
            "version": stage.version,
            "params": matter,
            "inputs": {kind: [i["sha256"], i["edited"]] for kind, i in inputs.items()},
            "inherited": edited,
            "identity": identity,
        }
    )
    stat = stat_digest(sources.root, sources.files) if sources else None
    return _Plan(key, matter, inputs, newest, identity, sources, stat, edited)


def _children_role(stage: Stage, ws: Workspace) -> str:
    """Return the role of the list of children, one a stage and name (`--as`): what goes by another name is left alone."""
    return role_of("children", "_".join([stage.name.replace("-", "_"), *([ws.as_name] if ws.as_name else [])]))


def _sources_differ(record: Record, plan: _Plan, rehash: bool) -> str | None:
    """Say how the files outside differ from the recorded ones, or None."""
    if plan.sources is None:
        return None
    noted = record.sources or {}
    if noted.get("stat") == plan.stat and not (rehash and plan.sources.digest):
        return None
    if plan.sources.digest and noted.get("content") and plan.sources.digest() == noted["content"]:
        return None
    if noted.get("stat") == plan.stat:
        return None if not plan.sources.digest else "the source files have other content"
    return f"the source files changed ({noted.get('files')} then, {len(plan.sources.files)} now)"


def _differences(stage: Stage, record: Record | None, plan: _Plan, rehash: bool) -> list[str]:
    """Say in words what differs from what the record says."""
    if record is None:
        return ["it was never made"]
    if record.stage != stage.name:
        return [f"it was made by {record.stage}"]
    why = []
    if record.stage_version != stage.version:
        why.append(f"{stage.name} has version {stage.version}, not {record.stage_version}")
    for name in sorted({*record.params, *plan.params}):
        before, now = record.params.get(name), plan.params.get(name)
        if before != now:
            why.append(f"--{name.replace('_', '-')} is {now!r}, was {before!r}")
    for kind in sorted({*record.inputs, *plan.inputs}):
        before, now = record.inputs.get(kind), plan.inputs.get(kind)
        if before is None or now is None or before["sha256"] != now["sha256"]:
            why.append(f"{artifact_name((now or before or {}).get('role', kind))} changed")
    for name in sorted({*record.identity, *plan.identity}):
        if record.identity.get(name) != plan.identity.get(name):
            why.append(f"{name} is {_short(plan.identity.get(name))}, was {_short(record.identity.get(name))}")
    moved = _sources_differ(record, plan, rehash)
    if moved:
        why.append(moved)
    if not why and record.key != plan.key:
        why.append("what was edited among its inputs changed")
    return why


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _names(stage: Stage, ws: Workspace, params: Any) -> Mapping[str, bool]:
    """Return the names that the stage writes under by itself, and whether each must be written.

    Raises:
        UsageError: `bad-as` where `--as` gives another.
    """
    names = stage.names(ws, params) if stage.names else {}
    if ws.as_name and not all(name.startswith(f"{ws.as_name}_") for name in names):
        said = ", ".join(names)
        raise UsageError("bad-as", f"--as {ws.as_name}: {stage.name} names what it writes by itself ({said})")
    return names


def _targets(stage: Stage, ws: Workspace, names: Mapping[str, bool]) -> tuple[list[Workspace], list[str]]:
    """Return the workspaces that hold the stage's outputs (the case, a view of it a name, or the children), and the children."""
    if names:
        return [ws.named(name) for name in names], []
    role = _children_role(stage, ws)
    if ws.record(role) is None or not ws.locate(role).exists():
        return [ws], []
    made = ws_children(ws, role)
    return [Workspace(ws.path / name, as_name=ws.as_name, use=ws.use) for name in made], made


def ws_children(ws: Workspace, role: str) -> list[str]:
    """Return the names in a children artifact; none where it is unreadable."""
    try:
        return [str(name) for name in json.loads(ws.locate(role).read_bytes())["children"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


@dataclass
class _Found:
    """How the stage's outputs stand."""

    why: list[str]
    edited: list[tuple[Workspace, str]]
    outcome: Outcome | None
    touch: list[tuple[Workspace, Record]]


def _look(stage: Stage, ws: Workspace, plan: _Plan, controls: Controls, names: Mapping[str, bool]) -> _Found:
    why: list[str] = []
    edited: list[tuple[Workspace, str]] = []
    touch: list[tuple[Workspace, Record]] = []
    artifacts: dict[Path, tuple[str, ...]] = {}
    results = set()
    targets, children = _targets(stage, ws, names)
    for target in targets:
        there = []
        for kind in stage.writes:
            role = target.role_to_write(kind)
            if not children and _is_its_input(stage, ws, kind):
                continue
            record = target.record(role)
            state, _ = target.state(role, rehash=controls.rehash)
            optional = kind in stage.optional_writes or not names.get(target.as_name or "", True)
            if record is None and optional and state == "absent":
                continue
            if state in ("edited", "unknown"):
                edited.append((target, role))
            if record is None or record.stage != stage.name or record.stage_version != stage.version:
                why += [f"{artifact_name(role)}: {w}" for w in _differences(stage, record, plan, False)]
                continue
            if record.key != plan.key or _sources_differ(record, plan, controls.rehash):
                why += [f"{artifact_name(role)}: {w}" for w in _differences(stage, record, plan, controls.rehash)]
            if state == "absent" and (record.output is not None or record.result == "purged"):
                why.append(f"{artifact_name(role)} is gone")
            if state != "absent":
                there.append(role)
            results.add(record.result)
            touch.append((target, record))
        artifacts[target.path] = (*artifacts.get(target.path, ()), *there)
    if children:
        record = ws.record(_children_role(stage, ws))
        if record is None or record.key != plan.key or _sources_differ(record, plan, controls.rehash):
            why += _differences(stage, record, plan, controls.rehash)
    if not why and not results:
        why.append("it was never made")
    result = "nothing-found" if results == {"nothing-found"} else "processed"
    outcome = None if why else Outcome(tuple(artifacts), artifacts, result, up_to_date=True)
    return _Found(list(dict.fromkeys(why)), edited, outcome, touch)


def _is_its_input(stage: Stage, ws: Workspace, kind: str) -> bool:
    """Say whether a kind that the stage writes into child workspaces only is, in the case's own, what it reads."""
    return stage.splits and kind in stage.reads and ws.role_to_write(kind) == ws.role_to_read(kind)


def why_stale(stage: Stage, ws: Workspace, params: Any, controls: Controls | None = None) -> list[str]:
    """Return in words why a stage would run; nothing where it is up to date."""
    controls = controls or Controls()
    return _look(stage, ws, _plan(stage, ws, params, controls), controls, _names(stage, ws, params)).why


def _home(ws: Workspace, record: Record) -> Path:
    """Return the folder that a record's inputs lie in: the workspace's own, or its parent's where that made it as a child."""
    parent = Workspace(ws.path.absolute().parent)
    if ws.path.name in (child.path.name for child in parent.children()):
        for role in parent.roles():
            made = parent.record(role)
            if role.startswith("children-") and made and made.stage == record.stage and made.key == record.key:
                return parent.path
    return ws.path


def why_recorded_is_stale(stage: Stage, ws: Workspace, record: Record, *, rehash: bool = False) -> list[str]:
    """Return in words why what a record describes is not up to date, as far as the record alone tells how it was called.

    Raises:
        MissingError: `source-missing` where the files outside are not there, so that nobody can tell.
    """
    if record.result == "purged":
        return []
    use = {kind: name for kind, noted in record.inputs.items() if (name := noted["role"].partition("-")[2])}
    view = Workspace(_home(ws, record), as_name=record.role.partition("-")[2] or None, use=use)
    values, unknown = {}, False
    for param in fields_of(stage.params):
        if param.name in record.params:
            value = record.params[param.name]
            values[param.name] = tuple(value) if isinstance(value, list) else value
        elif param.option.source is True:
            root = ws.path / f"{record.role}.root"
            values[param.name] = Path(os.fsdecode(root.read_bytes().rstrip(b"\n"))) if root.exists() else ws.source()
        elif param.name in record.happened.get("call", {}):
            values[param.name] = record.happened["call"][param.name]
        elif param.required or f"{param.name}_sha256" in record.identity:
            # Of what was given by a path only the hash is kept.
            unknown = True
            values[param.name] = None
    known = replace(stage, identity=None) if unknown else stage
    try:
        plan = _plan(known, view, stage.params(**values), Controls(rehash=rehash))
    except MissingError as error:
        if error.code not in ("no-artifact", "no-workspace"):
            raise
        # What was made of an image that was purged on purpose is no less true for that.
        purged = [r for noted in record.inputs.values() if (r := ws.record(noted["role"])) and r.result == "purged"]
        return [] if purged else [error.message]
    if plan.sources is not None and not plan.sources.root.exists():
        raise MissingError("source-missing", "the source is not there, so that nobody can tell")
    if unknown:
        plan = replace(plan, identity=dict(record.identity), key=record.key)
    why = _differences(stage, record, plan, rehash)
    if unknown and not why:
        raise MissingError("not-named", "a file was given by its path, which no record keeps")
    return why


def _named_only(stage: Stage, params: Any) -> dict[str, str]:
    """Return the parameters that stay out of the key and are plain words, so that a status can ask again. No path is kept."""
    values = {f.name: getattr(params, f.name) for f in fields_of(stage.params) if not f.option.result}
    return {name: value for name, value in values.items() if isinstance(value, str) and re.fullmatch(r"[\w:-]+", value)}


def _settle(stage: Stage, ws: Workspace, found: _Found, plan: _Plan) -> None:
    """Touch what is up to date but older than an input, and note new stats, so that Make settles in one pass."""
    for target, record in found.touch:
        root = target.path / f"{record.role}.root"
        if plan.sources and root.exists():
            # The same content may have moved.
            now = os.fsencode(plan.sources.root.absolute()) + b"\n"
            if root.read_bytes() != now:
                write_whole(root, now)
    for target, record in found.touch:
        if record.output is None or record.artifact is None:
            continue
        path = target.path / record.artifact
        output, sources = dict(record.output), record.sources
        state, _ = target.state(record.role)
        if plan.input_mtime > stat_of_artifact(path)["mtime_ns"] and state == "made":
            os.utime(path)
        if state == "made":
            output.update(stat_of_artifact(path))
        if sources and plan.stat and sources.get("stat") != plan.stat:
            sources = {**sources, "stat": plan.stat}
            if state == "made":
                os.utime(path)
                output.update(stat_of_artifact(path))
        if output != record.output or sources != record.sources:
            write_record(target.path, replace(record, output=output, sources=sources))


def execute(
    stage: Stage,
    ws: Workspace,
    params: Any,
    controls: Controls | None = None,
    reporter: Reporter | None = None,
) -> Outcome | None:
    """Run a stage over one workspace, unless its artifacts are up to date.

    Returns:
        What is in place now; None after a dry run.

    Raises:
        MdError: with the status that the call ends with.
    """
    controls, reporter = controls or Controls(), reporter or Reporter()
    started, clock, cpu = datetime.now(UTC), time.perf_counter(), _cpu_seconds()
    run = StageRun(
        stage.name, stage.writes, reporter, controls.strict, controls.jobs or os.cpu_count() or 1, controls.rehash
    )

    def say(level: str, code: str, message: str) -> None:
        reporter.event(level, message, code=code, stage=stage.name, case=ws.name)

    peak, result = 0.0, "failed"
    try:
        with _time_limit(controls.timeout), storage_errors(f"workspace {ws.name}"):
            _refuse_own_input(stage, ws)
            plan = _plan(stage, ws, params, controls)
            names = _names(stage, ws, params)
            found = _look(stage, ws, plan, controls, names)
            if controls.dry_run:
                doing = "; ".join(found.why) if found.why else "up to date"
                say("info", "dry-run", f"would run {stage.name}: {doing}" if found.why else f"{stage.name}: {doing}")
                result = "dry-run"
                return None
            if found.outcome and not controls.force and not (controls.redo and not found.edited):
                for target, role in found.edited:
                    say("info", "kept-edited", f"{artifact_name(role)} of {target.name} was edited and is kept")
                _settle(stage, ws, found, plan)
                if stage.report:
                    ws._run = run
                    try:
                        stage.report(ws, params)
                    finally:
                        ws._run = None
                if controls.strict:
                    _refuse_noted(found.touch)
                result = "up-to-date"
                return found.outcome
            if found.edited and not controls.force:
                _refuse_persons_file(*found.edited[0])
            for reason in found.why:
                say("debug", "stale", reason)
            ws._run = run
            run.edited = plan.edited
            try:
                with _Sampler() as sampler:
                    stage.run(ws, params)
                    peak = sampler.finish()
                happened = {"call": _named_only(stage, params)} | _happened(
                    run, started, time.perf_counter() - clock, _cpu_seconds() - cpu, peak
                )
                with _locked(ws.path):
                    _make_way(run, force=controls.force, say=say)
                    outcome = _commit(stage, ws, run, plan, happened, say, names)
            finally:
                ws._run = None
                for staged in run.staged:
                    _remove(staged.part)
        result = outcome.result
        return outcome
    except SystemExit as error:
        if type(error) is not SystemExit:
            raise
        raise RuntimeError(f"{stage.name} called sys.exit({error.code}): a stage never exits") from error
    except MemoryError as error:
        raise DataError("out-of-memory", f"{stage.name} needs more memory than there is") from error
    finally:
        seconds = time.perf_counter() - clock
        _log_for_profile(stage.name, ws.name, seconds, _cpu_seconds() - cpu, peak, run.spans, result)


def _refuse_noted(made: list[tuple[Workspace, Record]]) -> None:
    """Refuse what was made with a warning (`--strict`): it was up to date before, and is no better now."""
    for _, record in made:
        for note in record.happened.get("notes", []):
            if note.get("level") == "warning":
                hint = "without --strict this is a warning"
                raise DataError(str(note["code"]), str(note["message"]), hint=hint, **(note.get("numbers") or {}))


def _refuse_persons_file(ws: Workspace, role: str) -> NoReturn:
    state, _ = ws.state(role)
    what = "was edited by a person" if state == "edited" else "was not made by md"
    hint = "--force moves it aside and makes it anew; --as NAME writes under another name"
    raise PersonsFileError("persons-file", f"{ws.locate(role).name} {what}, and its inputs changed", hint=hint)


def _make_way(run: StageRun, *, force: bool, say: Any) -> None:
    """Move what a person made or edited aside (`--force`), or refuse: looked at now, since the run may have taken hours."""
    for staged in run.staged:
        ws = Workspace(staged.folder)
        if ws.state(staged.role)[0] not in ("edited", "unknown"):
            continue
        if not force:
            _refuse_persons_file(ws, staged.role)
        path, number = ws.locate(staged.role), 1
        while (aside := path.with_name(f"{path.stem}.edited-{number}{path.suffix}")).exists():
            number += 1
        path.rename(aside)
        say("warning", "moved-aside", f"{path.name} was edited: it is now {aside.name}")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time put artifacts into a workspace, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove(part: Path) -> None:
    with contextlib.suppress(OSError):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def _commit(
    stage: Stage,
    ws: Workspace,
    run: StageRun,
    plan: _Plan,
    happened: dict[str, Any],
    say: Any,
    names: Mapping[str, bool],
) -> Outcome:
    result = "nothing-found" if run.nothing_found else "processed"
    children = [Workspace(ws.path / name, as_name=ws.as_name, use=ws.use) for name in sorted(run.children)]
    targets = children or [ws.named(name) for name in names] or [ws]
    before = ws_children(ws, _children_role(stage, ws))
    if run.children:
        _stage_children(stage, ws, run)
    sources = None
    if plan.sources is not None:
        sources = {"files": len(plan.sources.files), "stat": plan.stat, "content": run.content_digest}
    base = Record(
        role="",
        artifact=None,
        stage=stage.name,
        stage_version=stage.version,
        key=plan.key,
        params=plan.params,
        inputs=plan.inputs,
        identity=plan.identity,
        sources=sources,
        result=result,
        edited=tuple(plan.edited),
        happened=happened,
    )
    written = {(staged.folder, staged.role) for staged in run.staged}
    missing = [
        (target, kind)
        for target in targets
        for kind in stage.writes
        if (target.path, target.role_to_write(kind)) not in written and (children or not _is_its_input(stage, ws, kind))
    ]
    for target, kind in missing:
        optional = kind in stage.optional_writes or not names.get(target.as_name or "", True)
        if not optional and not run.nothing_found:
            raise RuntimeError(f"{stage.name} returned without {artifact_name(target.role_to_write(kind))}")
    with storage_errors(f"workspace {ws.name}"):
        for path, root in run.roots.items():
            write_whole(path, os.fsencode(root) + b"\n")
        records = [_finished(base, staged) for staged in run.staged]
        for staged, record in zip(run.staged, records, strict=True):
            write_pending(staged.folder, record)
        for staged, record in zip(run.staged, records, strict=True):
            _put_in_place(staged, record)
        for target, kind in missing:
            _drop_outdated(stage, target, kind, base if run.nothing_found else None)
        for kind in stage.writes if run.children else ():
            if not _is_its_input(stage, ws, kind):
                _drop_outdated(stage, ws, kind, None)
        for name in sorted({*before} - {*run.children}):
            child = Workspace(ws.path / name, as_name=ws.as_name)
            for kind in stage.writes:
                _drop_outdated(stage, child, kind, None)
                if child.record(child.role_to_write(kind)) is None:
                    (child.path / f"{child.role_to_write(kind)}.root").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                # What others left in it stays.
                child.path.rmdir()
            say(
                "warning",
                "child-gone",
                f"{stage.name} no longer makes the child workspace {name}: what it wrote there is removed",
            )
        if before and not run.children:
            role = _children_role(stage, ws)
            _remove(ws.locate(role))
            record_path(ws.path, role).unlink(missing_ok=True)
    artifacts = {target.path: tuple(s.role for s in run.staged if s.folder == target.path) for target in targets}
    return Outcome(tuple(artifacts), artifacts, result)


def _stage_children(stage: Stage, ws: Workspace, run: StageRun) -> None:
    staged = Staged(ws.path, _children_role(stage, ws), part_path(ws.path, "children.json"))
    staged.part.write_bytes(json_bytes({"schema": "md.children/1", "children": sorted(run.children)}))
    run.staged.append(staged)


def _finished(base: Record, staged: Staged) -> Record:
    digest = staged.sha256 or sha256_of_artifact(staged.part)
    output = {"sha256": digest, **stat_of_artifact(staged.part)}
    if staged.size is not None and output["size"] != staged.size:
        message = f"{artifact_name(staged.role)} has {output['size']} bytes, {staged.size} were written"
        raise StorageError("disk-full", message)
    return replace(base, role=staged.role, artifact=artifact_name(staged.role), output=output)


def _put_in_place(staged: Staged, record: Record) -> None:
    assert record.artifact is not None
    target = staged.folder / record.artifact
    if target.is_dir():
        # A folder can't be renamed over one that holds files: the old one goes first, to a name that `md clean` knows.
        old = part_path(staged.folder, record.artifact)
        target.rename(old)
        staged.part.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        staged.part.replace(target)
    finish_pending(staged.folder, staged.role)


def _drop_outdated(stage: Stage, ws: Workspace, kind: str, nothing_found: Record | None) -> None:
    """Remove what an earlier run of this stage wrote and this one did not: nobody may take it for this run's result."""
    role = ws.role_to_write(kind)
    record = ws.record(role)
    if record is not None and record.stage == stage.name and ws.state(role)[0] == "made":
        _remove(ws.locate(role))
        record_path(ws.path, role).unlink(missing_ok=True)
    if nothing_found is not None:
        ws.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_record(ws.path, replace(nothing_found, role=role))


def _happened(run: StageRun, started: datetime, seconds: float, cpu: float, peak: float) -> dict[str, Any]:
    versions = {name: getattr(sys.modules[name], "__version__", "?") for name in _LIBRARIES if name in sys.modules}
    return {
        "started": started.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds": round(seconds, 4),
        "cpu_seconds": round(cpu, 4),
        "spans": {name: round(value, 4) for name, value in run.spans.items()},
        "peak_memory_mib": round(peak, 1),
        "libraries": versions,
        "python": sys.version.split()[0],
        "notes": run.notes,
        **({"engine": run.facts} if run.facts else {}),
    }


def _cpu_seconds() -> float:
    return sum(os.times()[:4])


class _Sampler:
    """Samples the largest sum of PSS over this process and its children.

    `ru_maxrss` would miss workers and count mapped files.
    """

    def __enter__(self) -> _Sampler:
        self._stop = threading.Event()
        self._peak = 0.0
        self._thread = threading.Thread(target=self._work, daemon=True)
        if sys.platform == "linux":
            self._thread.start()
        return self

    def _work(self) -> None:
        while not self._stop.wait(0.1):
            self._peak = max(self._peak, pss_mib(os.getpid()))

    def finish(self) -> float:
        """Return the peak so far, in MiB, the present included."""
        if sys.platform == "linux":
            self._peak = max(self._peak, pss_mib(os.getpid()))
        return self._peak

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()


def pss_mib(pid: int) -> float:
    """Return the proportional set size of a process and all below it, in MiB; 0 where the system doesn't say.

    Source: Linux, Documentation/filesystems/proc.rst, smaps_rollup.
    """
    total, stack = 0.0, [pid]
    while stack:
        current = stack.pop()
        with contextlib.suppress(OSError, ValueError):
            for task in Path(f"/proc/{current}/task").iterdir():
                stack += [int(child) for child in (task / "children").read_text().split()]
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{current}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) / 1024
    return total


@contextlib.contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    import signal

    if not seconds or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def over(*_: object) -> None:
        raise OutOfTimeError("out-of-time", f"the case took longer than {seconds:g} s", seconds=seconds)

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _log_for_profile(
    stage: str, case: str, seconds: float, cpu: float, peak: float, spans: dict[str, float], result: str
) -> None:
    """Append one line for `md profile` to the file that MD_PROFILE_LOG names."""
    path = os.environ.get("MD_PROFILE_LOG")
    if not path:
        return
    line = {
        "schema": "md.profile-line/1",
        "stage": stage,
        "case": case,
        "seconds": seconds,
        "cpu_seconds": cpu,
        "peak_memory_mib": peak,
        "spans": spans,
        "result": result,
    }
    with contextlib.suppress(OSError), Path(path).open("a") as file:
        file.write(json.dumps(line) + "\n")


__all__ = [
    "Controls",
    "MdError",
    "MissingError",
    "Outcome",
    "StorageError",
    "execute",
    "params_that_matter",
    "pss_mib",
    "why_stale",
]
