"""List the plugins that are installed."""

from __future__ import annotations

from typing import Annotated

import typer


def plugins(
    check: Annotated[bool, typer.Option("--check", help="Import each one and say whether it loads.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON (md.plugins/1).")] = False,
) -> None:
    """List the plugins that are installed: their words, from which distribution, without importing them."""
    import json

    from mdcli import registry
    from mdcli.errors import MdError

    rows, broken = [], None
    for plugin in registry.plugins():
        row = {
            "group": plugin.group,
            "word": plugin.word,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "value": plugin.value,
        }
        taken = plugin.group in ("mdcli.stages", "mdcli.commands") and plugin.word in (
            *registry.STAGES,
            *registry.COMMANDS,
        )
        first = next(p for p in registry.plugins() if (p.group, p.word) == (plugin.group, plugin.word))
        row["state"] = "ignored: the word is md's own" if taken else "listed"
        if first is not plugin:
            taken, row["state"] = True, f"ignored: the word is {first.distribution}'s"
        if check and not taken:
            try:
                plugin.load()
                row["state"] = "loads"
            except MdError as error:
                row["state"], broken = f"broken: {error.message}", error
        rows.append(row)
    if as_json:
        print(json.dumps({"schema": "md.plugins/1", "plugins": rows}, indent=1))
    elif not rows:
        print("no plugins are installed")
    else:
        for row in rows:
            print(f"{row['word']:<20} {row['group']:<16} {row['distribution']} {row['version']}  {row['state']}")
    if broken:
        raise broken
