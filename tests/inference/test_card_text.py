"""A card that is written and read again says the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mdcli.dicom.rules import parse
from mdcli.inference.card import (
    Bound,
    Clip,
    Crop,
    Normalize,
    Output,
    Percentiles,
    Scale,
    ScaleVolume,
    Where,
    completed,
    read_card,
)
from mdcli.inference.card_text import card_text
from mdcli.inference.steps_after import FillHoles, KeepLargest, MapLabels, RemoveSmall
from mdcli.model_folders import EMBEDDED


@pytest.mark.parametrize("name", sorted(path.parent.name for path in EMBEDDED.glob("*/model.yaml")))
def test_the_embedded_cards_come_back(name):
    card = read_card((EMBEDDED / name / "model.yaml").read_text())
    assert read_card(card_text(card)) == card


def test_every_step_and_bound_comes_back():
    card = read_card((EMBEDDED / "ct-tissue" / "model.yaml").read_text())
    steps = (
        Clip(-100.0, 240.0),
        Scale((-100.0, 240.0), (0.0, 1.0)),
        ScaleVolume((0.0, 1.0)),
        ScaleVolume(None, 0.5),
        Normalize(1.5, 2.0),
        Normalize(None, None, "nonzero"),
        Percentiles(0.5, 99.5, (-1.0, 1.0), True),
        Percentiles(1.0, 99.0, (0.0, 1.0)),
    )
    after = (
        KeepLargest((1,), together=True),
        KeepLargest(),
        RemoveSmall(12.5, connectivity=1),
        FillHoles(per_slice=True),
    )
    inputs = tuple(
        replace(said, padding="include", intensity=steps, crop=Crop(0.0, 3), resize=(32, 32, 32))
        for said in card.inputs
    )
    outputs = tuple(replace(output, after=(*after, MapLabels({1: 2, 3: 0}))) for output in card.outputs)
    accepts = {
        "modality": Bound(one_of=("CT",)),
        "spacing_mm": Bound(high=5.0),
        "coverage_mm": Bound(low=1.0, high=2.0),
        "where": Where(parse("Modality == 'CT'")),
    }
    card = completed(replace(card, inputs=inputs, outputs=outputs, accepts=accepts))
    assert read_card(card_text(card)) == card


def test_several_networks_and_outputs_come_back():
    card = read_card((EMBEDDED / "ct-tissue" / "model.yaml").read_text())
    first = replace(card.outputs[0], name="a")
    second = Output(
        name="b", axes=("C",), activation="sigmoid", task="classification", tensor="t", labels=card.labels[:1]
    )
    card = completed(replace(card, networks=("a.onnx", "b.onnx"), ensemble="mean", outputs=(first, second)))
    assert read_card(card_text(card)) == card
