"""Write a card as `model.yaml`: the way back of `mdcli.inference.card.read_card`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mdcli.inference.card import (
    Bound,
    Card,
    Clip,
    Normalize,
    Output,
    Percentiles,
    Scale,
    ScaleVolume,
    Where,
)
from mdcli.inference.steps_after import FillHoles, KeepLargest, MapLabels, RemoveSmall

_AFTER: dict[type, str] = {KeepLargest: "keep_largest", RemoveSmall: "remove_small", FillHoles: "fill_holes"}


def card_text(card: Card) -> str:
    """Return the `model.yaml` of a card; read again it is the same card."""
    import yaml

    networks = {"network": card.networks[0]} if len(card.networks) == 1 else {"networks": list(card.networks)}
    said = _mapping(card, leave_out=("network", "networks", "output", "outputs"))
    outputs = [_output(card, output) for output in card.outputs]
    said |= {**networks, **({"output": outputs[0]} if len(outputs) == 1 else {"outputs": outputs})}
    order = ("schema", "name", "version", "description", "network", "networks", "ensemble", "task", "inputs")
    later = ("output", "outputs", "window", "mirror", "labels", "accepts", "empty")
    keys = [*order, *later, *(key for key in said if key not in (*order, *later))]
    ordered = {key: said[key] for key in keys if key in said}
    return yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True, width=120, default_flow_style=None)


def _output(card: Card, output: Output) -> dict[str, Any]:
    """Return an output without what `completed` filled in from the card."""
    given = {"task": card.task, "labels": card.labels}
    return _mapping(output, leave_out=tuple(key for key, value in given.items() if getattr(output, key) == value))


def _mapping(item: Any, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the fields of a dataclass that are not as they are by default."""
    found = {}
    for field in dataclasses.fields(item):
        value = getattr(item, field.name)
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name not in leave_out and (default is dataclasses.MISSING or value != default):
            found[field.name] = _plain(value)
    return found


def _plain(value: Any) -> Any:
    """Return a value of a card as YAML holds it."""
    if isinstance(value, Clip):
        return {"clip": [value.low, value.high]}
    if isinstance(value, Scale):
        return {"scale": {"from": list(value.source), "to": list(value.target)}}
    if isinstance(value, ScaleVolume):
        return {
            "scale": {"factor": value.factor} if value.target is None else {"from": "volume", "to": [*value.target]}
        }
    if isinstance(value, Normalize):
        return {"normalize": {"mean": value.mean, "std": value.std} if value.over == "numbers" else value.over}
    if isinstance(value, Percentiles):
        ends = {"lower": value.lower, "upper": value.upper, "to": list(value.target)}
        return {"percentiles": {**ends, "clip": True} if value.clip else ends}
    if isinstance(value, MapLabels):
        return {"map": dict(value.mapping)}
    if type(value) in _AFTER:
        return {_AFTER[type(value)]: _mapping(value) or None}
    if isinstance(value, Where):
        return str(value)
    if isinstance(value, Bound):
        limits = {"min": value.low, "max": value.high}
        return list(value.one_of) or {key: limit for key, limit in limits.items() if limit is not None}
    if dataclasses.is_dataclass(value):
        return _mapping(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
