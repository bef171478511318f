"""The declaration of a stage, from which its subcommand, record, contract test and docs follow. Public for plugins.

@dataclass(frozen=True)
class Params:
    level: Annotated[float, "Lowest value kept, HU"] = 300.0
    threads: Annotated[int, Option("Worker threads", result=False)] = 2

STAGE = Stage("threshold", Params, run, reads=("volume",), writes=("labels",), version=1)
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from mdcli.workspace import Workspace


@dataclass(frozen=True)
class Option:
    """What an option is, beyond its type and default. A plain string in `Annotated` is the same as `Option(help)`.

    Args:
        help: what it does, with its unit.
        result: False where it cannot change the result (`--threads`), or where `Stage.identity` speaks for it
            (a model's path): it then stays out of the record and the freshness key.
        source: True where it names the input from outside: its default is then the path that `source.json` holds. A word: its
            default is that key of `source.json`, if it is there.
        loosens: True where it loosens safety: it can then not come from `md.toml`.
        metavar: the word shown for the value.
        complete: gives the words that the Tab key offers.
    """

    help: str
    result: bool = True
    source: bool | str = False
    loosens: bool = False
    metavar: str | None = None
    complete: Callable[[], Iterable[str]] | None = None


@dataclass(frozen=True)
class Field:
    """One field of a `Params` class, resolved."""

    name: str
    type: Any
    default: Any
    option: Option

    @property
    def flag(self) -> str:
        """Return the long option, for example `--single-slice`."""
        return "--" + self.name.replace("_", "-")

    @property
    def required(self) -> bool:
        """Say whether the caller must give it."""
        return self.default is dataclasses.MISSING


@dataclass(frozen=True)
class Sources:
    """Files outside the workspace that a stage reads.

    Args:
        root: the folder or zip file that the names are relative to.
        files: names relative to `root`, in any order.
        digest: computes one SHA-256 of what the stage takes from the files, for when a stat differs but the content may
            not. None: a differing stat means the stage runs again.
    """

    root: Path
    files: tuple[str, ...]
    digest: Callable[[], str] | None = None


@dataclass(frozen=True)
class Stage:
    """One declared stage.

    Args:
        name: the word the user types.
        params: a frozen dataclass; each field is one option.
        run: reads artifacts, calls pure functions, writes artifacts; never prints, parses or exits.
        reads: kinds of artifact that it needs, for example `("volume",)`.
        writes: all kinds that it may write.
        version: raised when its output changes.
        optional_reads: kinds that it reads where they are there.
        optional_writes: those of `writes` that a successful run may leave out.
        identity: what else decides the result, beside parameters and inputs (a model's hash, an engine's version).
        sources: the files outside the workspace that it reads.
        report: gives, by `ws.report`, what `run` reports where the artifacts are up to date and it need not run.
        names: the names that it writes its kinds under, and whether each must be written; none: as `--as` says.
        also_reads: what else it reads, by its parameters: roles such as `volume-t2`.
        reads_as: the name that it reads a kind by, by its parameters, where `--use` says none: `{"volume": "t1"}`.
        splits: it may write into child workspaces (`ws.child`), and then may read and write the same kind.
        preload: loads libraries and the model, before the first line of `-` arrives. It may fail: the run then says why.
    """

    name: str
    params: type
    run: Callable[[Workspace, Any], None]
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    version: int = 1
    optional_reads: tuple[str, ...] = ()
    optional_writes: tuple[str, ...] = ()
    identity: Callable[[Workspace, Any], Mapping[str, Any]] | None = None
    sources: Callable[[Workspace, Any], Sources | None] | None = None
    preload: Callable[[Any], None] | None = None
    report: Callable[[Workspace, Any], None] | None = None
    names: Callable[[Workspace, Any], Mapping[str, bool]] | None = None
    also_reads: Callable[[Workspace, Any], tuple[str, ...]] | None = None
    reads_as: Callable[[Workspace, Any], Mapping[str, str]] | None = None
    splits: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", self.name):
            raise ValueError(f"a stage is named with lower-case words joined by '-', not {self.name!r}")
        for kind in (*self.reads, *self.optional_reads, *self.writes, *self.optional_writes):
            if not re.fullmatch(r"[a-z0-9_]+", kind):
                raise ValueError(f"{self.name}: a kind of artifact is named with a to z, 0 to 9 and _, not {kind!r}")
        if not dataclasses.is_dataclass(self.params):
            raise ValueError(f"{self.name}: params is a frozen dataclass, not {self.params!r}")

    @property
    def summary(self) -> str:
        """Return the first line of the module's docstring: the line that `md --help` shows."""
        import sys

        doc = sys.modules[self.run.__module__].__doc__ or ""
        return doc.strip().split("\n")[0]


def fields_of(params: type) -> tuple[Field, ...]:
    """Return the options that a `Params` class declares, in order."""
    hints = get_type_hints(params, include_extras=True)
    found = []
    for field in dataclasses.fields(params):
        hint, option = hints[field.name], Option("")
        if get_origin(hint) is Annotated:
            hint, *marks = get_args(hint)
            for mark in marks:
                option = Option(mark) if isinstance(mark, str) else mark
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        found.append(Field(field.name, hint, default, option))
    return tuple(found)
