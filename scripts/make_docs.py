"""Write docs/stages.md from the declarations of the stages, docs/errors.md from the errors in the code.

usage: make_docs.py [--check]

With --check nothing is written; the exit status is 1 where a page is not as it would be written.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

from mdcli import errors, registry
from mdcli.stage import Field, Stage, fields_of

ROOT = Path(__file__).resolve().parents[1]
MADE = "<!-- Written by scripts/make_docs.py from the code: change it there. -->\n"
KINDS = {name: cls for name, cls in vars(errors).items() if isinstance(cls, type) and issubclass(cls, errors.MdError)}


def type_name(kind: object) -> str:
    """Return a type as a user reads it."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return " \\| ".join(str(value) for value in inside)
    if origin in (typing.Union, types.UnionType):
        return " \\| ".join(type_name(part) for part in inside if part is not type(None))
    if origin is tuple:
        return f"{type_name(inside[0])}, may repeat"
    return {"str": "text", "float": "number", "int": "whole number", "Path": "path", "bool": "switch"}.get(
        getattr(kind, "__name__", ""), str(kind)
    )


def option_row(field: Field) -> str:
    """Return one line of the table of options."""
    default = "required" if field.required else "" if field.default in (None, False, ()) else f"`{field.default}`"
    marks = [
        text
        for on, text in (
            (field.option.source, "defaults to what `source.json` says"),
            (field.option.loosens, "loosens safety: never from `md.toml`"),
        )
        if on
    ]
    about = field.option.help + (f" ({'; '.join(marks)})" if marks else "")
    return f"| `{field.flag}` | {type_name(field.type)} | {default} | {about} |"


def stage_page(stage: Stage) -> str:
    """Return the section of one stage."""
    module = importlib.import_module(stage.run.__module__)
    reads = ", ".join(f"`{kind}`" for kind in stage.reads) or "nothing in the workspace"
    if stage.optional_reads:
        reads += f"; where it is there, {', '.join(f'`{kind}`' for kind in stage.optional_reads)}"
    writes = ", ".join(f"`{kind}`" + (" (if any)" if kind in stage.optional_writes else "") for kind in stage.writes)
    lines = [f"## `md {stage.name}`", "", (module.__doc__ or "").strip(), "", f"Reads {reads}. Writes {writes}.", ""]
    options = fields_of(stage.params)
    if options:
        lines += [
            "| option | value | default | what it does |",
            "| --- | --- | --- | --- |",
            *map(option_row, options),
            "",
        ]
    return "\n".join(lines)


def stages_page() -> str:
    """Return docs/stages.md."""
    head = (
        f"# The stages\n\n{MADE}\nEvery stage also has the common options: `md STAGE --help` shows them, and "
        "[the page on workspaces](workspace.md) says what they mean.\n\n"
    )
    return head + "\n".join(stage_page(registry.load_stage(word)) for word in registry.STAGES)


Assigned = dict[str, list[tuple[int, ast.expr]]]


def calls() -> Iterator[tuple[ast.Call, str, Assigned]]:
    """Give every call with two arguments or a `code` in the package, the name that is called, and what was assigned to names."""
    for path in sorted((ROOT / "mdcli").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assigned: Assigned = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                assigned.setdefault(node.targets[0].id, []).append((node.lineno, node.value))
        for places in assigned.values():
            places.sort(key=lambda place: place[0])
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                yield (
                    node,
                    node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""),
                    assigned,
                )


def raised_errors() -> dict[str, tuple[int, str]]:
    """Return code to (status, sentence with `...` for what is filled in), of every error that the code names."""
    found: dict[str, tuple[int, str]] = {}
    for call, name, assigned in calls():
        if name in KINDS and len(call.args) >= 2:
            for code in codes_of(call.args[0], assigned):
                found.setdefault(code, (KINDS[name].status, plain(looked_up(call.args[1], assigned))))
    return found


def said_notes() -> dict[str, str]:
    """Return code to sentence of every warning and note that the code names."""
    found: dict[str, str] = {}
    for call, name, assigned in calls():
        at = {"Finding": (0, 1), "warn": (0, 1), "note": (0, 1), "nothing_found": (0, 1), "say": (1, 2)}.get(name)
        if at and len(call.args) > at[1]:
            for code in codes_of(call.args[at[0]], assigned):
                if re.fullmatch("[a-z]+(-[a-z]+)+", code):
                    found.setdefault(code, plain(looked_up(call.args[at[1]], assigned)))
        elif name == "event" and len(call.args) == 2:
            for word in call.keywords:
                for code in codes_of(word.value, assigned) if word.arg == "code" else ():
                    found.setdefault(code, plain(looked_up(call.args[1], assigned)))
    return {code: text for code, text in found.items() if code not in ("usage", "interrupted", "bug")}


def looked_up(node: ast.expr, assigned: Assigned) -> ast.expr:
    """Return what was assigned to a name last before it is used, or the node itself."""
    if not isinstance(node, ast.Name):
        return node
    return next((value for line, value in reversed(assigned.get(node.id, [])) if line <= node.lineno), node)


def codes_of(node: ast.expr, assigned: Assigned) -> list[str]:
    """Return the codes that an expression can be: a literal, or a choice between literals."""
    node = looked_up(node, assigned)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [node.value]
    if isinstance(node, ast.IfExp):
        return [*codes_of(node.body, assigned), *codes_of(node.orelse, assigned)]
    return []


def plain(node: ast.expr) -> str:
    """Return a sentence out of the syntax tree, `...` for every value."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(plain(part) for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return plain(node.left) + plain(node.right)
    return "..."


def errors_page() -> str:
    """Return docs/errors.md."""
    rows = [
        f"| `{code}` | {status} | {text.replace('|', chr(92) + '|')} |"
        for code, (status, text) in sorted(raised_errors().items())
    ]
    head = (
        f"# Errors\n\n{MADE}\nEvery error has a fixed code, one sentence with the value found (`...` here), and an exit status. "
        "Scripts match the code; the sentence may change. What the statuses mean: [workspaces](workspace.md).\n\n"
        "| code | status | sentence |\n| --- | --- | --- |\n"
    )
    notes = [f"| `{code}` | {text.replace('|', chr(92) + '|')} |" for code, text in sorted(said_notes().items())]
    second = (
        "\n## Warnings and notes\n\nA warning is an error under `--strict`.\n\n| code | sentence |\n| --- | --- |\n"
    )
    return head + "\n".join(rows) + "\n" + second + "\n".join(notes) + "\n"


def main() -> int:
    """Write the pages, or check them."""
    stale = 0
    for name, text in (("stages.md", stages_page()), ("errors.md", errors_page())):
        path = ROOT / "docs" / name
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        if "--check" in sys.argv:
            print(f"docs/{name} is out of date: make docs")
            stale = 1
        else:
            path.write_text(text, encoding="utf-8")
            print(f"docs/{name}")
    return stale


if __name__ == "__main__":
    sys.exit(main())
