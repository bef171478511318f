"""The format plugins of the repository, installed: found by the model's path, with the result of the model that they hold."""

import json
import shutil
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import mdcli
from mdcli import registry
from mdcli.errors import ConfigError
from mdcli.inference.formats import Opening, find_model
from mdcli.testing import run_stage
from mdcli.workspace import Workspace
from tests.chain import canary_study, run_chain, stage_of

EMBEDDED = Path(mdcli.__file__).with_name("models") / "landmarks"


def installed(word: str) -> None:
    if not metadata.entry_points(group="mdcli.formats", name=word):
        pytest.skip(f"plugins/md-{word} is not installed")


def landmarks_as_mmar(folder: Path) -> Path:
    """Write the embedded model `landmarks` as Clara Train 3 would have it."""
    (folder / "config").mkdir(parents=True)
    (folder / "models").mkdir()
    shutil.copy(EMBEDDED / "network.onnx", folder / "models" / "model.onnx")
    image = {"fields": "image"}
    hounsfield = {"a_min": -1000, "a_max": 1000, "b_min": -1, "b_max": 1, "clip": True}
    workflow = {
        "pre_transforms": [
            {"name": "LoadNifti", "args": {**image, "as_closest_canonical": True}},
            {"name": "ConvertToChannelsFirst", "args": image},
            {"name": "ScaleByResolution", "args": {**image, "target_resolution": [2.5, 2.5, 3.5]}},
            {"name": "ScaleIntensityRange", "args": {**image, **hounsfield}},
        ],
        "inferer": {"name": "TFScanWindowInferer", "args": {"roi_size": [96, 96, 64], "overlap": 0.5}},
        "post_transforms": [
            {"name": "RestoreOriginalShape", "args": {"field": "model", "src_field": "image", "is_label": False}},
            {"name": "ArgmaxAcrossChannels", "args": {"fields": "model"}},
        ],
    }
    aiaa = {"type": "segmentation", "labels": ["anchor", "beacon", "cairn", "dial"], "description": "Phantom, CT"}
    (folder / "config" / "config_inference.json").write_text(json.dumps(workflow))
    (folder / "config" / "config_aiaa.json").write_text(json.dumps(aiaa))
    return folder


def test_they_are_listed_with_their_distributions():
    installed("mmar")
    installed("tensorflow")
    found = {plugin.word: plugin.distribution for plugin in registry.plugins() if plugin.word in ("mmar", "tensorflow")}
    assert found == {"mmar": "md-mmar", "tensorflow": "md-tensorflow"}


def test_the_landmarks_of_an_mmar_lie_where_the_embedded_models_do(tmp_path):
    installed("mmar")
    workspace, model = tmp_path / "ws", landmarks_as_mmar(tmp_path / "landmarks_mmar")
    run_chain(workspace, canary_study(tmp_path / "study"), until="infer")
    wanted = np.asarray(Workspace(workspace).read_volume("labels").array).copy()
    assert np.unique(wanted).tolist() == [0, 1, 2, 3, 4]
    run_stage(stage_of("infer"), workspace, model=str(model), as_name="mmar")
    found = np.asarray(Workspace(workspace).read_volume("labels-mmar").array)
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("network", ["landmarks.keras", "landmarks.h5", "landmarks.pb", "saved"])
def test_a_card_that_names_a_network_of_tensorflow_is_the_plugins(tmp_path, network):
    installed("tensorflow")
    (tmp_path / "model.yaml").write_text((EMBEDDED / "model.yaml").read_text().replace("network.onnx", network))
    first = {".keras": b"PK\x03\x04", ".h5": b"\x89HDF\r\n\x1a\n"}.get(Path(network).suffix, b"\x08\x01")
    path = tmp_path / network / "saved_model.pb" if network == "saved" else tmp_path / network
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(first)
    with pytest.raises(ConfigError) as refused:
        find_model(str(tmp_path), [], Opening(cache=tmp_path / "cache"))
    assert refused.value.code == "program-not-trusted"
