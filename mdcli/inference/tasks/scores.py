"""What a network says, as probabilities; nothing else than numbers passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError

if TYPE_CHECKING:
    from mdcli.inference.card import Label

Floats = NDArray[np.float32]


def finite(values: NDArray[Any], what: str) -> Floats:
    """Return values as float32.

    Args:
        values: of any shape.
        what: they are, for the message.

    Raises:
        DataError: `nan-in-output` where one is NaN or infinite.
    """
    found = np.asarray(values, np.float32)
    bad = int(found.size - np.count_nonzero(np.isfinite(found)))
    if bad:
        raise DataError("nan-in-output", f"{bad} of {found.size} {what} are not finite", count=bad)
    return found


def activated(values: Floats, activation: Literal["none", "sigmoid", "softmax"]) -> Floats:
    """Return values after the activation; softmax goes over the last axis.

    >>> activated(np.array([[0, 0]], np.float32), "softmax").tolist()
    [[0.5, 0.5]]
    """
    if activation == "none":
        return values
    if activation == "sigmoid":
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-values)), np.float32)
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True), np.float32)


def described(label: Label) -> dict[str, Any]:
    """Return what a JSON document says of a label: value, name, codes."""
    codes = {"category": label.category, "type": label.type}
    return {
        "value": label.value,
        "name": label.name,
        **{key: {"value": code.value, "scheme": code.scheme, "meaning": code.meaning} for key, code in codes.items()},
    }


def document(schema: str, common: Mapping[str, Any], nothing: bool, content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result as it is written: what it is, its content, what it was made with, and whether anything was found.

    Args:
        schema: such as `md.classes/1`.
        common: model, engine, task, empty, out_of_scope, regulatory and what else `segments.json` says.
        nothing: nothing was found of what was searched for.
        content: of this kind of result.
    """
    return {"schema": schema, **content, **common, "result": "nothing-found" if nothing else "processed"}
