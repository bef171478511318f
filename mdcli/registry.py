"""Which words `md` knows, and where their code is. Nothing is imported before its word is called."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mdcli.errors import ConfigError, UsageError
from mdcli.stage import Stage

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

# One line a stage: the word, the module that declares STAGE.
STAGES = {
    "select-series": "mdcli.stages.select_series",
    "load-volume": "mdcli.stages.load_volume",
    "import-volume": "mdcli.stages.import_volume",
    "resample-volume": "mdcli.stages.resample_volume",
    "crop": "mdcli.stages.crop",
    "infer": "mdcli.stages.infer",
    "merge-labels": "mdcli.stages.merge_labels",
    "write-seg": "mdcli.stages.write_seg",
    "read-seg": "mdcli.stages.read_seg",
    "read-rtstruct": "mdcli.stages.read_rtstruct",
    "export": "mdcli.stages.export",
}
# One line a command: the word, the module with a function of that name.
COMMANDS = {
    "demo": "mdcli.commands.demo",
    "init": "mdcli.commands.init",
    "cases": "mdcli.commands.cases",
    "rules": "mdcli.commands.rules",
    "status": "mdcli.commands.status",
    "inspect": "mdcli.commands.inspect",
    "convert": "mdcli.commands.convert",
    "path": "mdcli.commands.path",
    "verify": "mdcli.commands.verify",
    "profile": "mdcli.commands.profile",
    "models": "mdcli.commands.models",
    "model": "mdcli.commands.model",
    "export-model": "mdcli.commands.export_model",
    "optimize-model": "mdcli.commands.optimize_model",
    "plugins": "mdcli.commands.plugins",
    "schema": "mdcli.commands.schema",
    "doctor": "mdcli.commands.doctor",
    "clean": "mdcli.commands.clean",
    "purge": "mdcli.commands.purge",
}
GROUPS = ("mdcli.stages", "mdcli.commands", "mdcli.engines", "mdcli.formats", "mdcli.metrics")


@dataclass(frozen=True)
class Plugin:
    """One entry point, known from metadata alone."""

    group: str
    word: str
    value: str
    distribution: str
    version: str
    entry_point: EntryPoint

    def load(self) -> Any:
        """Import it.

        Raises:
            ConfigError: `broken-plugin`, naming its distribution.
        """
        try:
            return self.entry_point.load()
        except (Exception, SystemExit) as error:
            message = f"plugin {self.word} of {self.distribution} {self.version} does not load: {type(error).__name__}: {error}"
            hint = f"pip install --upgrade {self.distribution}, or pip uninstall {self.distribution}"
            raise ConfigError("broken-plugin", message, hint=hint) from error


def _any_plugin() -> bool:
    """Say whether any distribution on the path names one of our groups: importing `importlib.metadata` takes 20 ms, this one."""
    for folder in dict.fromkeys(sys.path):
        with suppress(OSError), os.scandir(folder or ".") as entries:
            for entry in entries:
                if not entry.name.endswith((".dist-info", ".egg-info")):
                    continue
                with suppress(OSError), Path(entry.path, "entry_points.txt").open("rb") as file:
                    if b"[mdcli." in file.read():
                        return True
    return False


@cache
def plugins() -> tuple[Plugin, ...]:
    """Return all plugins that are installed, sorted by group and word. Imports none of them."""
    if not _any_plugin():
        return ()
    from importlib.metadata import distributions

    found: dict[tuple[str, str, str], Plugin] = {}
    for distribution in distributions():
        # Metadata of any distribution may be broken; that is no reason for md to be.
        with suppress(Exception):
            name, version = str(distribution.metadata["Name"]), distribution.version
            for point in distribution.entry_points:
                if point.group in GROUPS and re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", point.name):
                    plugin = Plugin(point.group, point.name, point.value, name, version, point)
                    found.setdefault((plugin.group, plugin.word, name), plugin)
    return tuple(found[key] for key in sorted(found))


def _plugin(group: str, word: str) -> Plugin | None:
    return next((plugin for plugin in plugins() if plugin.group == group and plugin.word == word), None)


def load_stage(word: str) -> Stage:
    """Return the stage of a word, own or a plugin's. A plugin can't replace one of md's own words.

    Raises:
        UsageError: `no-such-stage`.
        ConfigError: `broken-plugin`.
    """
    if word in STAGES:
        stage = importlib.import_module(STAGES[word]).STAGE
    elif plugin := _plugin("mdcli.stages", word):
        stage = plugin.load()
        if not isinstance(stage, Stage) or stage.name != word:
            message = f"plugin {word} of {plugin.distribution} is no stage of that name: {plugin.value}"
            raise ConfigError("broken-plugin", message)
    else:
        raise UsageError("no-such-stage", f"there is no stage {word}", hint="md --help lists the stages")
    assert isinstance(stage, Stage)
    return stage


def load_command(word: str) -> Callable[..., Any]:
    """Return the function of a command, own or a plugin's.

    Raises:
        UsageError: `no-such-command`.
        ConfigError: `broken-plugin`.
    """
    if word in COMMANDS:
        function = getattr(importlib.import_module(COMMANDS[word]), word.replace("-", "_"))
    elif plugin := _plugin("mdcli.commands", word):
        function = plugin.load()
        if not callable(function):
            raise ConfigError("broken-plugin", f"plugin {word} of {plugin.distribution} is no function: {plugin.value}")
    else:
        raise UsageError("no-such-command", f"there is no command {word}", hint="md --help lists the commands")
    return cast("Callable[..., Any]", function)


def stage_words() -> list[str]:
    """Return the words of all stages: own first, in the order of the chain, then plugins'."""
    return [*STAGES, *(p.word for p in plugins() if p.group == "mdcli.stages" and p.word not in (*STAGES, *COMMANDS))]


def command_words() -> list[str]:
    """Return the words of all commands that are not stages."""
    return [
        *COMMANDS,
        *(p.word for p in plugins() if p.group == "mdcli.commands" and p.word not in (*STAGES, *COMMANDS)),
    ]


def summary(word: str) -> str:
    """Return the help line of a word, without importing its module: the first line of the docstring in its source."""
    module = STAGES.get(word) or COMMANDS.get(word)
    if module is None:
        plugin = next((p for p in plugins() if p.word == word), None)
        return f"(plugin {plugin.distribution} {plugin.version})" if plugin else ""
    path = Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
    try:
        with path.open(encoding="utf-8") as file:
            return file.readline().strip().strip('"')
    except OSError:
        return (importlib.import_module(module).__doc__ or "").split("\n")[0]


def each_stage() -> Iterator[Stage]:
    """Give every stage that loads: own ones and plugins'."""
    for word in stage_words():
        try:
            yield load_stage(word)
        except ConfigError:
            continue
