"""The embedded networks are what the script builds, and the cards say the numbers that are in them."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import yaml
from pydicom.sr.codedict import codes

ROOT = Path(__file__).resolve().parents[2]
MODELS = ROOT / "mdcli" / "models"
NAMES = ("landmarks", "ct-tissue")


def card(name: str) -> dict:
    return yaml.safe_load((MODELS / name / "model.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", NAMES)
def test_the_script_rebuilds_the_embedded_network(name, tmp_path):
    onnx = pytest.importorskip("onnx")
    runpy.run_path(str(ROOT / "scripts" / "make_models.py"))["write"](tmp_path)
    built, embedded = (onnx.load(folder / name / "network.onnx") for folder in (tmp_path, MODELS))
    for made, kept in zip(built.graph.initializer, embedded.graph.initializer, strict=True):
        assert made.name == kept.name
        made_values, kept_values = onnx.numpy_helper.to_array(made), onnx.numpy_helper.to_array(kept)
        # Another processor's cosine may differ in the last bit.
        assert made_values == pytest.approx(kept_values, abs=1e-7), made.name
    for model in (built, embedded):
        del model.graph.initializer[:]
    assert built == embedded


@pytest.mark.parametrize("name", NAMES)
def test_a_network_is_small_and_names_its_tensors_as_the_card_does(name):
    import onnxruntime

    session = onnxruntime.InferenceSession(MODELS / name / "network.onnx", providers=["CPUExecutionProvider"])
    (given,), (taken,) = session.get_inputs(), session.get_outputs()
    assert given.name == card(name)["inputs"][0]["tensor"]
    assert taken.name == card(name)["output"]["tensor"]
    assert taken.shape[1] == 1 + len(card(name)["labels"])
    assert (MODELS / name / "network.onnx").stat().st_size < 200_000


@pytest.mark.parametrize("name", NAMES)
def test_every_category_equals_its_dictionary_entry_and_every_type_is_private(name):
    for label in card(name)["labels"]:
        category, kind = label["category"], label["type"]
        known = [getattr(codes.cid7150, keyword) for keyword in codes.cid7150.dir()]
        assert (category["value"], category["scheme"], category["meaning"]) in [
            (code.value, code.scheme_designator, code.meaning) for code in known
        ]
        # PS3.3 8.2: a private scheme starts with 99. PS3.5 6.2: SH holds 16 characters, LO 64.
        assert kind["scheme"] == "99MDCLI"
        assert len(kind["value"]) <= 16 and len(kind["meaning"]) <= 64


def test_the_halo_of_landmarks_is_the_reach_of_its_kernels_and_of_one_neighbour():
    onnx = pytest.importorskip("onnx")
    model = onnx.load(MODELS / "landmarks" / "network.onnx")
    kernels = next(t for t in model.graph.initializer if t.name == "kernels")
    assert card("landmarks")["window"]["halo"] == [size // 2 + 1 for size in kernels.dims[2:]]


def test_the_kernels_of_landmarks_have_mean_0_and_norm_1():
    onnx = pytest.importorskip("onnx")
    model = onnx.load(MODELS / "landmarks" / "network.onnx")
    kernels = onnx.numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == "kernels"))[:4]
    assert kernels.sum(axis=(1, 2, 3, 4)) == pytest.approx(0, abs=1e-4)
    assert np.sqrt((kernels.astype(float) ** 2).sum(axis=(1, 2, 3, 4))) == pytest.approx(1, abs=1e-6)
