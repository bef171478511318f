"""The program: find the word, run it, turn what happened into an exit status."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from mdcli import registry
from mdcli.cli.log import make_reporter, report_error
from mdcli.errors import ConfigError, MdError, MissingError, StorageError, UsageError

_HELP = """Take a trained model from DICOM in to DICOM out, in small stages.

\b
    set -o pipefail
    md select-series ws --dicom dicom/ | md load-volume - |
        md infer - --model ct-tissue | md write-seg -

A case is a folder (WORKSPACE); every stage reads and writes its files there. `md demo` shows all of it.
"""
_PIPE_CLOSED = 141
_INTERRUPTED = 130
_BUG = 70


class Terminated(SystemExit):
    """A signal asks the program to end. Not a plain SystemExit: that one only a stage at fault raises."""


class PipeClosedError(Exception):
    """The reader of standard output went away. Not an OSError: Typer would make status 1 of that."""


@contextmanager
def _pipe_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as error:
        raise PipeClosedError from error


class LazyGroup(TyperGroup):
    """Knows its words from the registry and imports one when it is called."""

    def make_context(self, *args: Any, **more: Any) -> Any:
        """Parse the options before the word; `--help` and `--version` print here."""
        with _pipe_errors():
            return super().make_context(*args, **more)

    def invoke(self, ctx: Any) -> Any:
        """Run the word."""
        with _pipe_errors():
            return super().invoke(ctx)

    def list_commands(self, ctx: Any) -> list[str]:
        """Return all words."""
        return [*registry.stage_words(), *registry.command_words()]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a word's code and return its command; None for an unknown word."""
        from mdcli.cli.adapter import plain_command, stage_command

        # md's own words first: asking for plugins reads the metadata of everything that is installed.
        if cmd_name in registry.STAGES or (cmd_name not in registry.COMMANDS and cmd_name in registry.stage_words()):
            stage = registry.load_stage(cmd_name)
            try:
                return stage_command(stage, registry.summary(cmd_name))
            except (ValueError, TypeError, RuntimeError) as error:
                if cmd_name in registry.STAGES:
                    raise
                # What a plugin declares is the plugin's, also where it does not fit.
                raise ConfigError("broken-plugin", f"plugin {cmd_name} declares what md can't take: {error}") from error
        if cmd_name in registry.COMMANDS or cmd_name in registry.command_words():
            return plain_command(registry.load_command(cmd_name), cmd_name, registry.summary(cmd_name))
        return None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the word, or name the near one.

        Raises:
            UsageError: `no-such-command`.
        """
        own = args and (args[0] in registry.STAGES or args[0] in registry.COMMANDS)
        if args and not own and args[0] not in self.list_commands(ctx) and not ctx.resilient_parsing:
            import difflib

            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            hint = f"did you mean {near[0]}?" if near else "md --help lists all words"
            raise UsageError("no-such-command", f"md has no command {args[0]}", hint=hint)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the words with their lines, importing none of them."""
        for title, words in (("Stages", registry.stage_words()), ("Commands", registry.command_words())):
            with formatter.section(title):
                formatter.write_dl([(word, registry.summary(word)) for word in words])


def _version(asked: bool) -> None:
    if asked:
        from mdcli import __version__

        print(f"md {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
    log_format: Annotated[
        Literal["text", "json"] | None,
        typer.Option(help="text or json, on standard error.", envvar="MD_LOG_FORMAT", show_envvar=False),
    ] = None,
) -> None:
    pass


def build(prog: str = "md") -> Any:
    """Return the whole command line as one Typer group."""
    app = typer.Typer(
        name=prog,
        cls=LazyGroup,
        add_completion=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
    app.callback(help=_HELP)(_options)
    return typer.main.get_command(app)


def run(argv: Sequence[str]) -> int:
    """Run one call and return its exit status (design, section 6)."""
    prog = os.path.basename(sys.argv[0]) if sys.argv else "md"  # noqa: PTH119 - start-up time
    prog = prog if prog in ("md", "mdcli") else "md"
    for name in ("SIGTERM", "SIGHUP"):
        # `nohup` ignores the hang-up for us; that stays so.
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), _terminated)
    log_format = _log_format(argv)
    if sys.stdout is None:
        # `>&-`: there is nobody to tell, and Python has no stream for it.
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    try:
        command = build(prog)
        status = command.main(list(argv), prog_name=prog, standalone_mode=False)
        sys.stdout.flush()
        return int(status or 0)
    except (BrokenPipeError, PipeClosedError):
        # The reader went away; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _PIPE_CLOSED
    except KeyboardInterrupt:
        make_reporter(log_format, "info").event("error", "interrupted", code="interrupted")
        return _INTERRUPTED
    except MdError as error:
        words = [word for word in argv if not word.startswith("-")]
        stage = words[0] if words and words[0] not in registry.COMMANDS else None
        reporter = make_reporter(log_format, "info", name_cases="-" in argv)
        report_error(reporter, error, stage=stage, case=error.case)
        return error.status
    except Exception as error:
        return _unforeseen(error, log_format)


def _file_error(error: OSError) -> MdError | None:
    """Return what a refused file operation is to the caller; None where it is a bug."""
    where = f"{error.filename}: " if error.filename else ""
    message = f"{where}{error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StorageError("disk-full", message)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError("no-permission", message)
    if error.errno == errno.ENOENT:
        return MissingError("no-such-file", message)
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTEMPTY):
        return UsageError("bad-path", message)
    return None


def _log_format(argv: Sequence[str]) -> str:
    """Return how to report an error that ends the call, which may come before the options are parsed."""
    for before, value in zip(("", *argv), (*argv, ""), strict=True):
        if value == "--log-format=json" or (before == "--log-format" and value == "json"):
            return "json"
    return "json" if os.environ.get("MD_LOG_FORMAT") == "json" else "text"


def _unforeseen(error: Exception, log_format: str) -> int:
    from mdcli.cli.runner import report_bug

    reporter = make_reporter(log_format, "info")
    if isinstance(error, OSError) and (known := _file_error(error)):
        report_error(reporter, known)
        return known.status
    if isinstance(error, typer.Abort):
        # Typer makes one of an EOFError too, which nobody pressed a key for.
        if not isinstance(error.__cause__, EOFError):
            return _INTERRUPTED
        error = error.__cause__
    # Typer's own usage errors, known by their shape: where their class lives differs from version to version.
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        context = getattr(error, "ctx", None)
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.format_message())
            return 2
        reporter.event("error", error.format_message(), code="usage")
        if context is not None:
            reporter.event("info", f"hint: {context.command_path} --help")
        return 2
    report_bug(reporter, error)
    return _BUG


def _terminated(number: int, _frame: Any) -> None:
    # As an exception, so that temporary files are removed on the way out.
    raise Terminated(128 + number)
