"""A chain of two small stages, for tests of the machinery."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mdcli.stage import Option, Sources, Stage


@dataclass(frozen=True)
class CountParams:
    source: Annotated[Path | None, Option("Text file", source=True)] = None
    unit: Annotated[str, "What is counted"] = "letters"
    threads: Annotated[int, Option("Threads", result=False)] = 1
    careless: Annotated[bool, Option("Skip a check", loosens=True)] = False


def _sources(ws, params):
    path = params.source

    def digest() -> str:
        return hashlib.sha256(path.read_bytes()).hexdigest()

    return Sources(path.parent, (path.name,), digest)


def count(ws, params):
    data = params.source.read_bytes()
    ws.sources_digest(hashlib.sha256(data).hexdigest())
    if not data:
        ws.nothing_found("no-letters", "the text is empty")
        return
    if len(data) > 100:
        ws.warn("long-text", f"the text has {len(data)} letters", letters=len(data))
    with ws.span("count"):
        ws.write_json("count", {"schema": "md.count/1", "value": len(data), "unit": params.unit})


COUNT = Stage("count", CountParams, count, writes=("count",), sources=_sources)


@dataclass(frozen=True)
class DoubleParams:
    factor: Annotated[int, "Times what"] = 2


def double(ws, params):
    value = ws.read_json("count")["value"]
    ws.write_json("double", {"schema": "md.double/1", "value": value * params.factor})


DOUBLE = Stage("double", DoubleParams, double, reads=("count",), writes=("double",))


@dataclass(frozen=True)
class SplitParams:
    parts: Annotated[int, "How many"] = 2


def split(ws, params):
    value = ws.read_json("count")["value"]
    for number in range(params.parts):
        ws.child(f"part_{number}").write_json("count", {"schema": "md.count/1", "value": value, "unit": str(number)})


SPLIT = Stage("split", SplitParams, split, reads=("count",), writes=("count",), splits=True)
