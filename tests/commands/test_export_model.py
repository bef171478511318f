"""`md export-model`, as it is called: from torch to a folder that runs without it, held to torch class by class."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import zipfile
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml

from mdcli.cli.main import run as md
from mdcli.inference.card import read_card
from tests.inference.nets import bands, card, conv, write_model

MAKE = """
import torch
from monai.networks.nets import UNet
torch.set_num_threads(1)
torch.manual_seed(1)
net = UNet(spatial_dims=3, in_channels=1, out_channels=3, channels=(4, 8), strides=(2,)).eval()
torch.save(net.state_dict(), "weights.pt")
torch.jit.trace(net, torch.zeros(1, 1, 32, 32, 32)).save("net.ts")
"""
UNET = {
    "target": "monai.networks.nets.UNet",
    "arguments": {"spatial_dims": 3, "in_channels": 1, "out_channels": 3, "channels": [4, 8], "strides": [2]},
}
SCHEMAS = files("mdcli") / "schemas"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def made(torch_python, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("torch")
    subprocess.run([torch_python, "-c", MAKE], cwd=folder, check=True, capture_output=True)
    return folder


def said(network: str, **changes) -> dict:
    return card(
        network=network,
        inputs0={
            "axes": ["C", "x", "y", "z"],
            "orientation": "RAS",
            "spacing": [6.0, 6.0, 6.0],
            "intensity": [{"clip": [-160, 240]}, {"scale": {"from": [-160, 240], "to": [0, 1]}}],
        },
        output={"axes": ["C", "x", "y", "z"], "activation": "softmax"},
        window={"size": [32, 32, 32], "overlap": 0.25, "blending": "gaussian"},
        **changes,
    )


def torch_model(folder: Path, file: Path, **changes) -> Path:
    folder.mkdir()
    shutil.copy(file, folder / file.name)
    (folder / "model.yaml").write_text(yaml.safe_dump(said(file.name, **changes), sort_keys=False))
    return folder


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.torch
def test_weights_become_a_folder_that_passes_its_check_without_torch(made, tmp_path, capsys, monkeypatch):
    model, out = torch_model(tmp_path / "m", made / "weights.pt", architecture=UNET), tmp_path / "out"
    assert md(["export-model", str(model), "--out", str(out)]) == 0
    assert "by torch" in capsys.readouterr().out
    document = json.loads((out / "selftest" / "selftest.json").read_text())
    jsonschema.validate(document, json.loads((SCHEMAS / "selftest.json").read_text()))
    assert document["made_by"]["engine"] == "torch"
    found = read_card((out / "model.yaml").read_text())
    assert (found.networks, found.architecture) == (("network.onnx",), None)
    assert found.inputs == read_card((model / "model.yaml").read_text()).inputs
    monkeypatch.setenv("MD_TORCH_PYTHON", "/no/such/python")
    assert md(["model", "check", str(out), "--device", "cpu"]) == 0
    assert md(["export-model", str(model), "--out", str(out)]) == 73


@pytest.mark.torch
def test_torchscript_needs_trust(made, tmp_path, capsys):
    model, out = torch_model(tmp_path / "m", made / "net.ts"), tmp_path / "out"
    assert md(["export-model", str(model), "--out", str(out)]) == 78
    assert sha256(made / "net.ts") in capsys.readouterr().err and not out.exists()
    assert md(["export-model", str(model), "--out", str(out), "--trust-model", sha256(made / "net.ts")]) == 0
    assert (out / "network.onnx").is_file()


@pytest.mark.torch
def test_a_file_without_a_card_becomes_a_network_and_a_card_to_fill_in(made, tmp_path, capsys):
    file = tmp_path / "alone" / "Weights 1.pt"
    file.parent.mkdir()
    shutil.copy(made / "weights.pt", file)
    out = tmp_path / "out"
    words = ["--input-shape", "1,32,32,32", "--network", UNET["target"], "--arguments", json.dumps(UNET["arguments"])]
    assert md(["export-model", str(file), "--out", str(out), *words]) == 0
    text = (out / "model.yaml").read_text()
    assert "name: weights-1" in text and "output has 3" in text and "size: [32, 32, 32]" in text
    # Nothing that a person has to say is guessed.
    assert md(["model", "check", str(out)]) == 78
    assert "labels, empty missing" in capsys.readouterr().err
    whole = {**yaml.safe_load(text), "labels": card()["labels"], "empty": "valid"}
    (out / "model.yaml").write_text(yaml.safe_dump(whole))
    assert md(["model", "check", str(out)]) == 78
    assert "axes, orientation, spacing, unit missing" in capsys.readouterr().err


def test_a_file_without_a_card_needs_its_shape(tmp_path, capsys):
    file = tmp_path / "weights.pt"
    file.write_bytes(b"x")
    assert md(["export-model", str(file), "--out", str(tmp_path / "out")]) == 2
    assert "--input-shape" in capsys.readouterr().err
    for shape in ("1,32", "0,32,32", "a", "1,32,32,32,32", "1,99999,1,1"):
        assert md(["export-model", str(file), "--out", str(tmp_path / "out"), "--input-shape", shape]) == 2


def test_a_pickle_that_would_run_is_refused_and_nothing_is_written(tmp_path, capsys):
    canary, model = tmp_path / "canary", tmp_path / "m"
    model.mkdir()
    with zipfile.ZipFile(model / "weights.pt", "w") as archive:
        archive.writestr(
            "m/data.pkl",
            f"\x80\x02cos\nsystem\nX{chr(len(str(canary)) + 6)}\0\0\0touch {canary}\x85R.".encode("latin1"),
        )
    (model / "model.yaml").write_text(yaml.safe_dump(said("weights.pt", architecture=UNET)))
    assert md(["export-model", str(model), "--out", str(tmp_path / "out")]) == 78
    assert "[refused-pickle]" in capsys.readouterr().err
    assert not canary.exists() and not (tmp_path / "out").exists()


def test_onnx_weights_outside_of_the_folder_are_refused(tmp_path, capsys):
    from onnx import TensorProto, load, save

    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(12))
    folder = write_model(tmp_path / "m", bands((0.0, 100.0)))
    model = load(str(folder / "network.onnx"))
    weights = model.graph.initializer[0]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    entry = weights.external_data.add()
    entry.key, entry.value = "location", "../secret.bin"
    save(model, str(folder / "network.onnx"))
    assert md(["export-model", str(folder), "--out", str(tmp_path / "out")]) == 78
    assert "[outside-folder]" in capsys.readouterr().err


def test_an_onnx_model_is_written_with_a_self_test_that_says_so(tmp_path, capsys):
    # After the intensity steps 0 is -160 HU and 0.5 is 40 HU: the phantom has fat and soft tissue on both sides.
    folder, out = write_model(tmp_path / "m", bands((0.0, 0.5)), said("network.onnx")), tmp_path / "out"
    assert md(["export-model", str(folder), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert "[no-reference]" in captured.err and "by onnxruntime" in captured.out
    assert md(["model", "check", str(out), "--device", "cpu"]) == 0


def test_a_model_of_half_the_size_passes_the_gate_and_its_check(tmp_path, capsys):
    folder, out = write_model(tmp_path / "m", bands((0.0, 0.5)), said("network.onnx")), tmp_path / "out"
    assert md(["optimize-model", str(folder), "--fp16", "--out", str(out), "--device", "cpu"]) == 0
    captured = capsys.readouterr()
    assert "[fp16-on-cpu]" in captured.err and "1 nodes in float16" in captured.out
    document = json.loads((out / "selftest" / "selftest.json").read_text())
    assert document["precision"] == "float16" and document["made_by"]["engine"] == "onnxruntime"
    assert read_card((out / "model.yaml").read_text()).version == "1.0.0+fp16"
    assert md(["model", "check", str(out), "--device", "cpu"]) == 0


def test_a_class_that_float16_can_not_tell_apart_stops_it(tmp_path, capsys):
    # 1.0004 is 1 in float16: the second label's slope is no steeper than the first's any more, and its intercept hides it.
    weight = np.array([0, 1, 1.0004], np.float32).reshape(3, 1, 1, 1, 1)
    folder = write_model(tmp_path / "m", conv(weight, [0, 0, -0.0002]), said("network.onnx"))
    out = tmp_path / "out"
    assert md(["optimize-model", str(folder), "--fp16", "--out", str(out), "--device", "cpu"]) == 1
    captured = capsys.readouterr()
    assert "[parity-failed]" in captured.err and "FAILS" in captured.out
    assert not out.exists() and [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_nothing_to_optimise_is_a_wrong_call(tmp_path):
    assert md(["optimize-model", str(write_model(tmp_path / "m", bands())), "--out", str(tmp_path / "o")]) == 2
