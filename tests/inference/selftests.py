"""A model with a self-test whose every number was worked out by hand, from the network's formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mdcli.inference.selftest import Case, Seen, SelfTest, write_selftest
from tests.inference.nets import bands, card, write_model

SHAPE = (16, 20, 24)


def volume() -> np.ndarray:
    """Return whole HU, of each of the three bands over 1,000 voxels."""
    return np.random.default_rng(7).integers(-150, 250, SHAPE).astype(np.int16)


def seen_by_hand(array: np.ndarray) -> Seen:
    """Return what `bands((0, 100))` sees and gives: 0, x, and 2 x - 100; the labels change at 0 and at 100."""
    tensor = array.astype(np.float32)[None, None]
    x = tensor[0, 0]
    scores = np.stack([np.zeros_like(x), x, 2 * x - 100])
    labels = np.where(array > 100, 2, np.where(array > 0, 1, 0)).astype(np.uint8)
    ordered = np.sort(scores, axis=0)
    return Seen({"image": tensor}, {"scores": scores[None]}, {0: labels}, {0: ordered[2] - ordered[1]})


def case(name: str = "random") -> Case:
    return Case(name, (volume(),), np.diag([1.0, 1.0, 2.0, 1.0]))


def model_with_selftest(folder: Path, seen: Seen | None = None, said: dict | None = None, edges=(0.0, 100.0)) -> Path:
    """Write a model's folder with its self-test."""
    write_model(folder, bands(edges), said or card())
    made_by = {"engine": "arithmetic", "version": "1"}
    write_selftest(folder / "selftest", SelfTest(((case(), seen or seen_by_hand(volume())),), made_by))
    return folder
