"""Classes and findings: one of several, or each for itself, of an image, a volume, or slices that decide together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from mdcli.inference.engines import misfit
from mdcli.inference.tasks.scores import Floats, activated, described, document, finite

if TYPE_CHECKING:
    from mdcli.inference.card import Label

SCHEMA = "md.classes/1"
# How far probabilities that a network gives itself may be off: their sum from 1, each from 0 to 1.
PROBABILITY_TOLERANCE = 1e-3

Over = Literal["image", "volume", "slices"]
Vote = Literal["mean", "max", "majority"]


@dataclass(frozen=True)
class SliceOf:
    """A slice that a network looked at: its k in the volume, and its image where it has one."""

    k: int
    sop_instance_uid: str | None


def rows_of(array: NDArray[Any], count: int, what: str, name: str | None) -> Floats:
    """Return a network's numbers as (images, count) float32.

    Args:
        array: (images, count), with axes of one voxel after it or not; (count,) is one image.
        count: numbers an image: one a label.
        what: they are, for messages.
        name: of the output.

    Raises:
        ConfigError: `network-does-not-fit`.
        DataError: `nan-in-output`.
    """
    images = len(array) if array.ndim > 1 else 1
    if not images or array.size != images * count:
        raise misfit(f"output {name or ''!r} has the shape {array.shape}, the card has {count} labels")
    return finite(array.reshape(images, count), what)


def classify(
    array: NDArray[Any],
    labels: Sequence[Label],
    *,
    activation: Literal["none", "sigmoid", "softmax"],
    multilabel: bool,
    thresholds: Sequence[float] = (0.5,),
    over: Over = "volume",
    vote: Vote | None = None,
    slices: Sequence[SliceOf] = (),
    name: str | None = None,
) -> dict[str, Any]:
    """Return what one output says, as `classes.json` has it.

    Args:
        array: (1, labels), or (slices, labels): number c is that of the c-th label.
        labels: the card's.
        activation: what makes probabilities. `none`: the network gives them itself. They are called so only if each row sums to 1
            within 1e-3 (multilabel: each lies in 0 to 1); else they are scores.
        multilabel: each label is there or not, from its threshold on; else one of them is.
        thresholds: of a multilabel: one for all, or one a label.
        over: what each row of the array is about.
        vote: how slices decide, the mean if it is not said. `mean`: of each label over the slices. `max`: the highest; of a
            multiclass that is a score, no probability. `majority`: the share of the slices whose top it is, or in which it
            reaches its threshold; of a multilabel more than half makes it positive; equal shares go by the mean, then to the
            first label.
        slices: what each row is, where `over` is `slices`.
        name: of the output.

    Raises:
        ConfigError: `network-does-not-fit`.
        DataError: `nan-in-output`.
    """
    rows = activated(rows_of(array, len(labels), "class scores", name), activation)
    check_rows(rows, over, slices, name)
    is_probability = activation != "none" or _are_probabilities(rows, multilabel)
    score_is = "probability" if is_probability else "score"
    if multilabel and len(thresholds) not in (1, len(labels)):
        raise misfit(f"output {name or ''!r} has {len(labels)} labels and {len(thresholds)} thresholds")
    limits = [*thresholds] if len(thresholds) == len(labels) else [thresholds[0]] * len(labels)
    if over == "slices" and vote == "majority":
        score_is = "share of slices"
    elif over == "slices" and vote == "max" and not multilabel:
        score_is = "score"
    scores, positive = _decided(rows, np.array(limits, np.float64) if multilabel else None, vote)
    return {
        "name": name,
        "kind": "multilabel" if multilabel else "multiclass",
        "over": over,
        "vote": (vote or "mean") if over == "slices" else None,
        "score_is": score_is,
        "top": None if multilabel else labels[int(np.argmax(positive))].value,
        "labels": [
            {
                **described(label),
                "score": float(scores[n]),
                "probability": min(max(float(scores[n]), 0.0), 1.0) if score_is == "probability" else None,
                "threshold": limits[n] if multilabel else None,
                "positive": bool(positive[n]),
            }
            for n, label in enumerate(labels)
        ],
        "slices": slice_table(slices, rows) if over == "slices" else None,
    }


def check_rows(rows: Floats, over: Over, slices: Sequence[SliceOf], name: str | None) -> None:
    """Refuse a number of rows that is not that of what was looked at: the slices, or one.

    Raises:
        ConfigError: `network-does-not-fit`.
    """
    wanted = len(slices) if over == "slices" else 1
    if len(rows) != wanted:
        raise misfit(f"output {name or ''!r} says something of {len(rows)} images, {wanted} went in")


def slice_table(slices: Sequence[SliceOf], rows: NDArray[Any]) -> list[dict[str, Any]]:
    """Return what was said of each slice, as `classes.json` has it."""
    return [
        {"k": at.k, "sop_instance_uid": at.sop_instance_uid, "values": [float(v) for v in row]}
        for at, row in zip(slices, rows, strict=True)
    ]


def _are_probabilities(rows: Floats, multilabel: bool) -> bool:
    inside = (rows >= -PROBABILITY_TOLERANCE) & (rows <= 1 + PROBABILITY_TOLERANCE)
    sums = np.abs(rows.sum(axis=1, dtype=np.float64) - 1) <= PROBABILITY_TOLERANCE
    return bool(inside.all() and (multilabel or sums.all()))


def _decided(
    rows: Floats, limits: NDArray[np.float64] | None, vote: Vote | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the score of each label and which are positive: with limits those that reach theirs, else the highest one."""
    mean = rows.mean(axis=0, dtype=np.float64)
    labels = np.arange(rows.shape[1])
    if vote == "majority":
        votes = rows >= limits if limits is not None else rows.argmax(axis=1)[:, None] == labels
        share: NDArray[np.float64] = votes.mean(axis=0)
        if limits is not None:
            return share, share > 0.5
        return share, labels == np.lexsort((labels, -mean, -share))[0]
    scores: NDArray[np.float64] = rows.max(axis=0).astype(np.float64) if vote == "max" else mean
    return scores, scores >= limits if limits is not None else labels == scores.argmax()


def classes_document(outputs: Sequence[Mapping[str, Any]], common: Mapping[str, Any]) -> dict[str, Any]:
    """Return `classes.json`.

    Args:
        outputs: what `classify` and `regress` gave, in the card's order.
        common: what every result says, see `scores.document`.

    Returns:
        The document; `nothing-found` where every output is a multilabel one without a positive label.
    """
    found = [output for output in outputs if output["kind"] != "multilabel" or _any_positive(output)]
    return document(SCHEMA, common, not found, {"outputs": [dict(output) for output in outputs]})


def _any_positive(output: Mapping[str, Any]) -> bool:
    return any(label["positive"] for label in output["labels"])
