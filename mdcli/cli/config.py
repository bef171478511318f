"""Defaults from `md.toml`, upwards from the current folder, and from the user's own configuration."""

from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mdcli.errors import ConfigError

FILE = "md.toml"


@dataclass(frozen=True)
class Config:
    """Tables by word (`[infer]`), each option's value and the file it came from.

    Attributes:
        values: word to option (`single-slice`) to value.
        origins: word to option to the file.
        ignored: files that were passed over because somebody else owns them.
    """

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    origins: dict[str, dict[str, Path]] = field(default_factory=dict)
    ignored: tuple[Path, ...] = ()


def project_file(start: Path) -> tuple[Path | None, Path | None]:
    """Return the nearest `md.toml` from a folder upwards, and one that was passed over as somebody else's.

    The search ends at the home folder and at the boundary of the file system.
    """
    home, start = Path.home(), start.absolute()
    device = start.stat().st_dev
    for folder in (start, *start.parents):
        if folder.stat().st_dev != device:
            break
        candidate = folder / FILE
        if candidate.is_file():
            mine = not hasattr(os, "getuid") or candidate.stat().st_uid == os.getuid()
            return (candidate, None) if mine else (None, candidate)
        if folder == home:
            break
    return None, None


def user_file() -> Path:
    """Return where the user's own configuration lies."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "md" / FILE


def load_config(start: Path | None = None) -> Config:
    """Return all defaults from files: the project's over the user's.

    Raises:
        ConfigError: `bad-config`.
    """
    project, ignored = project_file(start or Path.cwd())
    config = Config(ignored=(ignored,) if ignored else ())
    for path in (user_file(), project):
        if path is None or not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                tables = tomllib.load(file)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError("bad-config", f"{path} is not TOML: {error}") from error
        for word, table in tables.items():
            if not isinstance(table, dict):
                raise ConfigError("bad-config", f"{path}: {word} stands outside a table such as [infer]")
            config.values.setdefault(word, {}).update({name.replace("_", "-"): value for name, value in table.items()})
            config.origins.setdefault(word, {}).update({name.replace("_", "-"): path for name in table})
    return config


def defaults_for(config: Config, word: str, known: dict[str, bool]) -> dict[str, Any]:
    """Return the defaults of one word, by parameter name.

    Args:
        config: what was loaded.
        word: the stage.
        known: its options (`single-slice`), True for those that loosen safety.

    Raises:
        ConfigError: `unknown-option` with the near one, `not-in-config` for one that loosens safety.
    """
    found = {}
    for name, value in config.values.get(word, {}).items():
        where = config.origins[word][name]
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else None
            raise ConfigError("unknown-option", f"{where}: [{word}] has no option {name}", hint=hint)
        if known[name]:
            message = f"{where}: {name} loosens safety and can't stand in a file"
            raise ConfigError("not-in-config", message, hint=f"give --{name} in the call")
        found[name.replace("-", "_")] = value
    return found
