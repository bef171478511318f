"""What is written of a result beside its voxels: what the labels mean, which model said so, on what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.inference.card import Card, Label, Output
from mdcli.inference.formats import ModelFolder
from mdcli.inference.invert import count_labels
from mdcli.inference.steps_after import MapLabels


@dataclass(frozen=True)
class Voxels:
    """What a label map, or masks, hold: voxels of each value, and those of the first and the last slice.

    Attributes:
        all: of value n at place n; place 0 is the background.
        first: of the first slice.
        last: of the last slice.
    """

    all: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]


def count_map(labels: NDArray[Any], largest: int) -> Voxels:
    """Count a label map (k, j, i), slice by slice."""
    voxels = np.zeros(largest + 1, np.int64)
    for plane in labels:
        voxels += count_labels(plane, largest)
    return Voxels(voxels, count_labels(labels[0], largest), count_labels(labels[-1], largest))


def count_masks(masks: Sequence[NDArray[Any]]) -> Voxels:
    """Count masks (k, j, i), the n-th of which is value n + 1."""
    counts = [
        [0, *(int(np.count_nonzero(part)) for part in parts)]
        for parts in (masks, [mask[0] for mask in masks], [mask[-1] for mask in masks])
    ]
    voxels, first, last = (np.array(count, np.int64) for count in counts)
    return Voxels(voxels, first, last)


def common(
    model: ModelFolder,
    task: str,
    facts: Mapping[str, Any],
    geometry: Mapping[str, Any],
    out_of_scope: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return what every result says.

    Args:
        model: that made it.
        task: of the output.
        facts: of the engine, of `Session.facts`.
        geometry: `geometry.json` of the first volume.
        out_of_scope: why the model was run on what it was not made for, or None.
    """
    card = model.card
    return {
        "model": {"name": card.name, "version": card.version, "sha256": model.sha256},
        "engine": {
            "name": facts["engine"],
            **{key: facts.get(key) for key in ("version", "precision", "provider", "device")},
        },
        "task": task,
        "empty": card.empty,
        "out_of_scope": out_of_scope,
        **{key: geometry.get(key) for key in ("series_instance_uid", "frame_of_reference_uid")},
        "series_description_prefix": card.series_description_prefix,
        "regulatory": card.regulatory,
        **{key: geometry.get(key) for key in ("completeness", "lossy", "padding", "made")},
    }


def segments_document(
    card: Card, output: Output, labels: Sequence[Label], found: Voxels, said: Mapping[str, Any]
) -> dict[str, Any]:
    """Return `segments.json`.

    Args:
        card: of the model.
        output: of the card.
        labels: that were searched for.
        found: their voxels.
        said: of `common`.
    """
    segments = [
        {
            "value": label.value,
            "name": label.name,
            "category": asdict(label.category),
            "type": asdict(label.type),
            "colour": list(label.colour) if label.colour else None,
            "algorithm": {"type": "AUTOMATIC", "name": card.name, "version": card.version},
            "voxels": int(found.all[label.value]),
            "touches_first_slice": bool(found.first[label.value]),
            "touches_last_slice": bool(found.last[label.value]),
        }
        for label in labels
    ]
    nothing = not any(segment["voxels"] for segment in segments)
    keys = ("model", "engine", "task", "empty")
    return {
        "schema": "md.segments/1",
        "segments": segments,
        **{key: said[key] for key in keys},
        "result": "nothing-found" if nothing else "processed",
        **{key: value for key, value in said.items() if key not in keys},
    }


def labels_after(output: Output) -> tuple[Label, ...]:
    """Return the labels that a map can hold after the card's steps: those whose value is mapped to another one are gone."""
    kept = {label.value: label for label in output.labels}
    for step in output.after:
        if isinstance(step, MapLabels):
            new = set(step.mapping.values())
            kept = {value: label for value, label in kept.items() if value not in step.mapping or value in new}
    return tuple(kept.values())


def vote(maps: Sequence[NDArray[Any]], largest: int) -> NDArray[Any]:
    """Return the label that most maps (k, j, i) give each voxel; of equally many the lowest value."""
    out = np.empty_like(maps[0])
    for k in range(len(out)):
        best = np.zeros(out.shape[1:], np.uint16)
        for value in range(largest + 1):
            votes = np.zeros(out.shape[1:], np.uint16)
            for labels in maps:
                votes += labels[k] == value
            if value == 0:
                best, out[k] = votes, 0
                continue
            more = votes > best
            out[k][more] = value
            np.maximum(best, votes, out=best)
    return out
