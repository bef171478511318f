"""From a declared stage to its Typer command: every field an option, and the options that all stages share."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Literal, Optional, get_args, get_origin

import typer
from typer.core import TyperCommand

from mdcli import registry
from mdcli.cli.config import Config, defaults_for, load_config
from mdcli.cli.log import make_reporter
from mdcli.cli.runner import Call, run_call
from mdcli.errors import MissingError, UsageError
from mdcli.execution import Controls
from mdcli.stage import Field, Stage, fields_of
from mdcli.workspace import Workspace

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
LogFormat = Literal["text", "json"]

# (name, type, default, flags, help, loosens safety)
_COMMON: tuple[tuple[str, Any, Any, tuple[str, ...], str, bool], ...] = (
    (
        "force",
        bool,
        False,
        ("--force", "-f"),
        "Run even if up to date; a file that a person changed is moved aside.",
        True,
    ),
    ("dry_run", bool, False, ("--dry-run", "-n"), "Say what would be done and why; do nothing.", False),
    ("keep_going", bool, False, ("--keep-going", "-k"), "Go on with the next case; end with the worst status.", False),
    ("as_json", bool, False, ("--json",), "Print lines as JSON (md.line/1).", False),
    ("strict", bool, False, ("--strict",), "Treat a warning as an error.", False),
    ("rehash", bool, False, ("--rehash",), "Read files again whose size and time are as recorded.", False),
    ("timeout", Optional[float], None, ("--timeout",), "Seconds that one case may take.", False),  # noqa: UP045
    ("jobs", Optional[int], None, ("--jobs", "-j"), "Cores to use (default: all).", False),  # noqa: UP045
    ("as_name", Optional[str], None, ("--as",), "Name for what is written: KIND-NAME.", False),  # noqa: UP045
    ("use", Optional[list[str]], None, ("--use",), "What to read, such as volume=NAME; may repeat.", False),  # noqa: UP045
    ("log_format", Optional[LogFormat], None, ("--log-format",), "text or json, on standard error.", False),  # noqa: UP045
    ("verbose", bool, False, ("--verbose", "-v"), "Say more: reasons, and where defaults came from.", False),
    ("quiet", bool, False, ("--quiet", "-q"), "Say errors only.", False),
)


class StageCommand(TyperCommand):
    """A command whose help lists the stage's own options before those that all stages have."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options in two groups."""
        common = {name for name, *_ in _COMMON} | {"help"}
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], "Common options": []}
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx)
            if row:
                options = "Common options" if param.name in common else "Options"
                groups["Arguments" if param.param_type_name == "argument" else options].append(row)
        for title, rows in groups.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def env_name(stage: str, option: str) -> str:
    """Return the environment variable of an option: `MD_LOAD_VOLUME_SINGLE_SLICE`."""
    return f"MD_{stage}_{option}".replace("-", "_").upper()


def _as_typer(field: Field) -> Any:
    """Return the type as Typer takes it: a tuple of any length is a repeated option."""
    if get_origin(field.type) is tuple and get_args(field.type)[1:] == (...,):
        return list[get_args(field.type)[0]]  # type: ignore[misc]
    return field.type


def _signature(stage: Stage) -> inspect.Signature:
    keyword = inspect.Parameter.KEYWORD_ONLY
    workspace = Annotated[
        str, typer.Argument(metavar="WORKSPACE", help="The case's folder, or - for one a line from a pipe.")
    ]
    parameters = [inspect.Parameter("workspace", keyword, annotation=workspace), _context()]
    for field in fields_of(stage.params):
        if field.name in {name for name, *_ in _COMMON} | {"workspace", "ctx"}:
            raise ValueError(f"{stage.name}: --{field.name} is an option of every stage")
        option = typer.Option(
            *([field.flag] if field.type is not bool else [f"{field.flag}/--no-{field.flag[2:]}"]),
            help=field.option.help + (" [loosens safety]" if field.option.loosens else ""),
            envvar=env_name(stage.name, field.name),
            show_envvar=False,
            metavar=field.option.metavar,
            autocompletion=_completion(field),
            show_default=field.default not in (None, False, ()),
        )
        default = inspect.Parameter.empty if field.required else field.default
        default = list(default) if isinstance(default, tuple) else default
        parameters.append(
            inspect.Parameter(field.name, keyword, annotation=Annotated[_as_typer(field), option], default=default)
        )
    for name, kind, default, flags, text, _ in _COMMON:
        variable = "MD_LOG_FORMAT" if name == "log_format" else env_name(stage.name, flags[0][2:])
        option = typer.Option(*flags, help=text, envvar=variable, show_envvar=False, show_default=False)
        parameters.append(inspect.Parameter(name, keyword, annotation=Annotated[kind, option], default=default))
    return inspect.Signature(parameters)


def _completion(field: Field) -> Callable[[str], list[str]] | None:
    words = field.option.complete
    return None if words is None else lambda incomplete: [word for word in words() if word.startswith(incomplete)]


def _context() -> inspect.Parameter:
    return inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)


def _use(pairs: list[str] | None, stage: Stage) -> dict[str, str]:
    found = {}
    for pair in pairs or ():
        kind, sep, name = pair.partition("=")
        if not sep:
            raise UsageError("bad-use", f"--use {pair} is not KIND=NAME", hint="for example --use volume=t2")
        known = kind if stage.also_reads is None else kind.partition("-")[0]
        if known not in (*stage.reads, *stage.optional_reads):
            reads = ", ".join((*stage.reads, *stage.optional_reads)) or "nothing"
            raise UsageError("bad-use", f"{stage.name} reads no {kind}", hint=f"it reads {reads}")
        found[kind] = name
    return found


def params_for(stage: Stage, values: dict[str, Any]) -> Callable[[Workspace], Any]:
    """Return a function that makes a workspace's `Params`: what the call gave, with the source out of `source.json` by default."""
    fields = fields_of(stage.params)
    given = {f.name: tuple(v) if isinstance(v := values[f.name], list) else v for f in fields}

    def make(ws: Workspace) -> Any:
        found = dict(given)
        for field in fields:
            if isinstance(field.option.source, str) and found[field.name] is None:
                found[field.name] = ws.source_key(field.option.source)
            elif field.option.source is True and found[field.name] is None:
                found[field.name] = ws.source()
                if found[field.name] is None:
                    message = f"{field.flag} is not given, and workspace {ws.name} has no source.json"
                    raise MissingError(
                        "no-source", message, hint=f"give {field.flag} PATH, or make workspaces with md cases"
                    )
        return stage.params(**found)

    return make


def stage_command(stage: Stage, summary: str) -> Any:
    """Return the Typer command of a declared stage."""
    config = load_config()
    known = {f.name.replace("_", "-"): f.option.loosens for f in fields_of(stage.params)}
    known |= {flags[0][2:]: loosens for _, _, _, flags, _, loosens in _COMMON}
    defaults = defaults_for(config, stage.name, known)
    names = {flags[0][2:].replace("-", "_"): name for name, _, _, flags, _, _ in _COMMON}
    defaults = {names.get(name, name): value for name, value in defaults.items()}

    def command(**values: Any) -> int:
        ctx, workspace = values.pop("ctx"), values.pop("workspace")
        root = ctx.find_root().params
        level = "error" if values["quiet"] else "debug" if values["verbose"] else "info"
        log_format = values["log_format"] or root.get("log_format") or "text"
        reporter = make_reporter(log_format, level, name_cases=workspace == "-")
        _say_origins(ctx, config, stage, reporter)
        redo = os.environ.get("MD_REDO") == "1"
        timeout = values["timeout"]
        if timeout is not None and not 0 < timeout < 1e9:
            raise UsageError("bad-timeout", f"--timeout {timeout:g} is no number of seconds above 0")
        if values["jobs"] is not None and values["jobs"] < 1:
            raise UsageError("bad-jobs", f"--jobs {values['jobs']} is less than one")
        controls = Controls(
            force=values["force"],
            redo=redo,
            dry_run=values["dry_run"],
            strict=values["strict"],
            rehash=values["rehash"],
            timeout=values["timeout"],
            jobs=values["jobs"],
        )
        call = Call(
            stage=stage,
            params=params_for(stage, values),
            controls=controls,
            reporter=reporter,
            as_name=values["as_name"],
            use=_use(values["use"], stage),
            as_json=values["as_json"],
            keep_going=values["keep_going"],
        )
        ctx.find_root().obj = reporter
        if workspace != "-" and values["dry_run"]:
            call = replace(call, keep_going=False)
        return run_call(call, workspace)

    command.__signature__ = _signature(stage)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in _signature(stage).parameters.values()}
    command.__doc__ = _help(stage)
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    settings = {**SETTINGS, "default_map": defaults}
    app.command(stage.name, cls=StageCommand, context_settings=settings, short_help=summary, help=_help(stage))(command)
    return typer.main.get_command(app)


def _help(stage: Stage) -> str:
    import sys

    doc = (sys.modules[stage.run.__module__].__doc__ or "").strip()
    reads = (
        ", ".join((*stage.reads, *(f"{kind} (if there)" for kind in stage.optional_reads)))
        or "nothing in the workspace"
    )
    writes = ", ".join(
        (
            *(k for k in stage.writes if k not in stage.optional_writes),
            *(f"{k} (if any)" for k in stage.optional_writes),
        )
    )
    variables = f"Every option can be set as {env_name(stage.name, 'option')} or in md.toml under [{stage.name}]."
    return f"{doc}\n\nReads {reads}; writes {writes}. {variables}"


def _say_origins(ctx: Any, config: Config, stage: Stage, reporter: Any) -> None:
    for path in config.ignored:
        reporter.event(
            "warning", f"{path} belongs to somebody else and is not read", code="config-ignored", stage=stage.name
        )
    for table in config.values:
        if table not in registry.STAGES and table not in registry.COMMANDS and table not in registry.stage_words():
            where = next(iter(config.origins[table].values()), "md.toml")
            reporter.event("warning", f"{where}: [{table}] is no stage", code="unknown-table", stage=stage.name)
    for name in config.values.get(stage.name, {}):
        source = ctx.get_parameter_source(name.replace("-", "_"))
        if source is not None and source.name == "DEFAULT_MAP":
            where = config.origins[stage.name][name]
            reporter.event("debug", f"--{name} comes from {where}", code="from-config", stage=stage.name)


def plain_command(function: Callable[..., Any], word: str, summary: str) -> Any:
    """Return the Typer command of a function that is not a stage."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    settings: dict[str, Any] = dict(SETTINGS)
    settings |= getattr(function, "context_settings", {})
    app.command(word, context_settings=settings, short_help=summary)(function)
    return typer.main.get_command(app)
