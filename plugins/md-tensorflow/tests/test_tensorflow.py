"""A card beside a TensorFlow network: recognised by content, C moved to the front, refused where it does not fit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from md_tensorflow.format import FORMAT

from mdcli.errors import ConfigError, MissingError
from mdcli.inference.engines import find_engine
from mdcli.inference.formats import Opening


def opening_for(folder: Path, cache: Path) -> Opening:
    """Return an opening that trusts what the model's refusal names."""
    with pytest.raises(ConfigError) as refused:
        FORMAT.read(folder, Opening(cache=cache))
    assert refused.value.code == "program-not-trusted"
    return Opening(cache=cache, trust=frozenset({refused.value.hint.split()[-1]}))


def trust_of(folder: Path, opening: Opening) -> frozenset[str]:
    """Return what the next refusal names."""
    with pytest.raises(ConfigError) as refused:
        FORMAT.read(folder, opening)
    return frozenset({refused.value.hint.split()[-1]})


def fake(folder: Path) -> Path:
    """Put what looks like a SavedModel into a model's folder."""
    (folder / "saved").mkdir(parents=True)
    (folder / "saved" / "saved_model.pb").write_bytes(b"\x08\x01")
    return folder


def test_a_card_its_folder_and_its_network_are_one_model(cards):
    folder = fake(cards.write("saved"))
    for path in (folder, folder / "model.yaml", folder / "saved", folder / "saved" / "saved_model.pb"):
        assert FORMAT.recognises(path), path
        with pytest.raises(ConfigError) as refused:
            FORMAT.read(path, Opening())
        assert refused.value.code == "program-not-trusted"


def test_other_models_are_left_to_other_formats(cards, tmp_path):
    folder = cards.write("network.onnx")
    (folder / "network.onnx").write_bytes(b"\x08\x08")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.yaml").write_text("{")
    for path in (folder, folder / "network.onnx", tmp_path / "broken", tmp_path, tmp_path / "missing"):
        assert not FORMAT.recognises(path), path


def test_importing_it_loads_nothing_heavy():
    code = "import sys, md_tensorflow.format; print(sorted({'numpy', 'yaml', 'tensorflow', 'onnx'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_without_a_card_it_says_where_one_belongs(tmp_path):
    fake(tmp_path)
    with pytest.raises(MissingError) as refused:
        FORMAT.read(tmp_path / "saved", Opening())
    assert refused.value.code == "no-model"


@pytest.mark.parametrize(
    ("network", "code"), [("../net.keras", "outside-folder"), ("gone.keras", "no-network"), ("model.yaml", "bad-card")]
)
def test_a_network_elsewhere_missing_or_of_another_kind_is_refused(cards, network, code):
    folder = cards.write(network)
    (folder.parent / "net.keras").write_bytes(b"PK\x03\x04")
    with pytest.raises((ConfigError, MissingError)) as refused:
        FORMAT.read(folder, Opening())
    assert refused.value.code == code


@pytest.mark.parametrize("axes", [["x", "C", "y", "z"], ["C"], ["x", "y", "z", "C", "C"]])
def test_c_may_be_first_or_last_and_nowhere_else(cards, axes):
    folder = fake(cards.write("saved", output={"axes": axes, "activation": "softmax", "inversion": "scores"}))
    with pytest.raises(ConfigError) as refused:
        FORMAT.read(folder, Opening())
    assert refused.value.code == "bad-card"
    assert "axes" in refused.value.message


def test_channels_of_one_input_have_one_order_of_axes(cards):
    card = yaml.safe_load((cards.write("saved") / "model.yaml").read_text())
    card["inputs"][1]["axes"] = ["C", "x", "y", "z"]
    folder = fake(cards.write("saved", inputs=card["inputs"]))
    with pytest.raises(ConfigError) as refused:
        FORMAT.read(folder, Opening(trust=frozenset()))
    assert refused.value.code == "bad-card"


def test_two_volumes_become_the_channels_of_a_network_that_has_c_last(networks, cards, tmp_path):
    folder = cards.write("net.keras")
    shutil.copy(networks / "net.keras", folder)
    model = FORMAT.read(folder, opening_for(folder, tmp_path / "cache"))
    assert [said.axes for said in (*model.card.inputs, *model.card.outputs)] == [("C", "x", "y", "z")] * 3
    assert [said.tensor for said in model.card.inputs] == ["image", "image"]
    session = find_engine("onnxruntime").open(model.networks[0], device="cpu", threads=1)
    assert session.inputs[0].shape[1:] == (2, 16, 24, 32)
    assert session.outputs[0].name == model.card.outputs[0].tensor


def test_a_classification_of_slices_has_the_sizes_of_its_resize(networks, cards, tmp_path):
    code = {"value": "T", "scheme": "99TEST", "meaning": "test"}
    image = {"axes": ["y", "x", "C"], "orientation": "as-acquired", "spacing": "as-acquired", "unit": "HU"}
    image |= {"resize": [24, 40], "resize_mode": "linear"}
    folder = cards.write(
        "two.keras",
        task="classification",
        inputs=[{**image, "tensor": "second"}, {**image, "tensor": "first", "role": "volume-t2"}],
        output={"axes": ["C"], "tensor": "grades", "activation": "softmax"},
        window=None,
        labels=[{"value": n, "name": f"grade {n}", "category": code, "type": code} for n in (1, 2, 3)],
    )
    shutil.copy(networks / "two.keras", folder)
    model = FORMAT.read(folder, opening_for(folder, tmp_path / "cache"))
    assert [(said.tensor, said.axes) for said in model.card.inputs] == [
        ("second", ("C", "y", "x")),
        ("first", ("C", "y", "x")),
    ]
    session = find_engine("onnxruntime").open(model.networks[0], device="cpu", threads=1)
    assert {tensor.name: tensor.shape[1:] for tensor in session.inputs} == {"first": (1, 24, 40), "second": (1, 24, 40)}
    assert [(tensor.name, tensor.shape[1:]) for tensor in session.outputs] == [("grades", (3,))]


def test_networks_that_vote_call_their_tensors_alike(networks, cards, tmp_path):
    folder = cards.write("net.keras", network=None, networks=["net.keras", "saved"], ensemble="mean")
    shutil.copy(networks / "net.keras", folder)
    shutil.copytree(networks / "saved", folder / "saved")
    opening = Opening(cache=tmp_path / "cache", trust=opening_for(folder, tmp_path / "cache").trust)
    opening = Opening(cache=opening.cache, trust=opening.trust | trust_of(folder, opening))
    with pytest.raises(ConfigError) as refused:
        FORMAT.read(folder, opening)
    assert (refused.value.code, "saved" in refused.value.message) == ("bad-card", True)


def test_the_model_is_another_one_when_a_file_of_it_is(networks, cards, tmp_path):
    folder = cards.write("net.keras")
    shutil.copy(networks / "net.keras", folder)
    opening = opening_for(folder, tmp_path / "cache")
    before = FORMAT.read(folder, opening)
    (folder / "README").write_text("not of the model")
    assert FORMAT.read(folder, opening) == before
    cards.write("net.keras", description="another")
    assert FORMAT.read(folder, opening).sha256 != before.sha256


def test_the_landmark_network_in_keras_is_the_one_in_onnx(networks, tmp_path):
    import mdcli

    embedded = Path(mdcli.__file__).with_name("models") / "landmarks"
    said = yaml.safe_load((embedded / "model.yaml").read_text())
    folder = tmp_path / "landmarks"
    folder.mkdir()
    shutil.copy(networks / "landmarks.keras", folder)
    said["network"] = "landmarks.keras"
    said["inputs"][0]["axes"] = said["output"]["axes"] = ["x", "y", "z", "C"]
    (folder / "model.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
    model = FORMAT.read(folder, opening_for(folder, tmp_path / "cache"))
    engine = find_engine("onnxruntime")
    ours = engine.open(model.networks[0], device="cpu", threads=1)
    theirs = engine.open(embedded / "network.onnx", device="cpu", threads=1)
    image = np.random.default_rng(11).uniform(-1, 1, (1, 1, 96, 96, 64)).astype(np.float32)
    (found,), (wanted,) = (s.run({"image": image}, {"scores": None}).values() for s in (ours, theirs))
    assert np.abs(found - wanted).max() <= 1e-5
    # The same with exchanged axes would be another result: the kernels are unlike in each.
    turned = np.ascontiguousarray(image.transpose(0, 1, 3, 2, 4))
    (other,) = ours.run({"image": turned}, {"scores": None}).values()
    assert np.abs(other.transpose(0, 1, 3, 2, 4) - wanted).max() > 0.05
