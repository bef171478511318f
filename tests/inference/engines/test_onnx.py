"""Engines: what is opened, refused, and said of it."""

from __future__ import annotations

import json
from importlib import metadata

import numpy as np
import pytest
from onnx import TensorProto, helper

from mdcli.errors import ConfigError, UnavailableError, UsageError
from mdcli.inference import engines
from mdcli.inference.engines import check_device, find_engine
from mdcli.inference.engines import onnx as engine_onnx
from mdcli.inference.engines.onnx import OnnxRuntime, nodes_by_provider
from tests.inference.nets import bands, network, write_model

onnxruntime = pytest.importorskip("onnxruntime")


def opened(folder, model=None):
    return OnnxRuntime().open(write_model(folder, model or bands()) / "network.onnx", device="cpu", threads=1)


def test_a_network_runs_into_the_memory_that_it_is_given(tmp_path):
    session = opened(tmp_path)
    batch = np.array([-5.0, 50.0, 500.0], np.float32).reshape(1, 1, 1, 1, 3)
    out = np.full((1, 3, 1, 1, 3), np.nan, np.float32)
    session.run({"image": batch}, {"scores": out})
    # Lines of slope 0, 1, 2 through the edges 0 and 100.
    np.testing.assert_allclose(out[0, :, 0, 0], [[0, 0, 0], [-5, 50, 500], [-110, 0, 900]])


def test_it_says_what_it_is_and_what_really_runs(tmp_path):
    session = opened(tmp_path)
    assert [(t.name, t.shape, t.dtype) for t in session.inputs] == [("image", (None, 1, None, None, None), "float32")]
    assert [(t.name, t.shape, t.dtype) for t in session.outputs] == [("scores", (None, 3, None, None, None), "float32")]
    facts = session.facts()
    assert facts["version"] == metadata.version("onnxruntime")
    assert {**facts, "version": ""} == {
        "engine": "onnxruntime",
        "version": "",
        "precision": "float32",
        "device": "cpu",
        "provider": "CPUExecutionProvider",
    }


def test_an_output_of_another_shape_does_not_fit(tmp_path):
    session = opened(tmp_path)
    with pytest.raises(ConfigError) as error:
        session.run({"image": np.zeros((1, 1, 2, 2, 2), np.float32)}, {"scores": np.zeros((1, 4, 2, 2, 2), np.float32)})
    assert error.value.code == "network-does-not-fit" and "(1, 3, 2, 2, 2)" in error.value.message


def test_a_network_that_fails_says_so(tmp_path):
    node = helper.make_node("Reshape", ["image", "shape"], ["scores"])
    session = opened(tmp_path, network([node], {"shape": np.array([1, 3, 5, 5, 5], np.int64)}))
    with pytest.raises(ConfigError) as error:
        session.run({"image": np.zeros((1, 1, 2, 2, 2), np.float32)}, {"scores": np.zeros((1, 3, 5, 5, 5), np.float32)})
    assert error.value.code == "network-failed" and str(tmp_path) not in error.value.message


@pytest.mark.parametrize("content", [b"", b"not a network", b"\x3a\x00"], ids=["empty", "text", "an empty graph"])
def test_a_file_that_is_no_network_is_refused_without_its_path(tmp_path, content):
    path = tmp_path / "network.onnx"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        OnnxRuntime().open(path, device="cpu", threads=1)
    assert error.value.code == "bad-network" and str(tmp_path) not in error.value.message


def test_weights_outside_the_folder_are_not_opened(tmp_path):
    """The second lock behind `find_model`: onnxruntime's own."""
    import onnx

    tensor = onnx.numpy_helper.from_array(np.ones((1, 1, 1, 1, 4), np.float32), "w")
    onnx.external_data_helper.set_external_data(tensor, "../secret")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    model = network([helper.make_node("Add", ["image", "w"], ["scores"])], channels=1)
    model.graph.initializer.append(tensor)
    (tmp_path / "secret").write_bytes(b"0" * 16)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "network.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError) as error:
        OnnxRuntime().open(folder / "network.onnx", device="cpu", threads=1)
    assert error.value.code == "bad-network"


def test_a_missing_engine_names_the_line_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr(engine_onnx, "version_of", lambda name: None)
    for device, line in (("cpu", "pip install 'mdcli[cpu]'"), ("cuda:0", "pip install 'mdcli[gpu]'")):
        with pytest.raises(UnavailableError) as error:
            OnnxRuntime().open(tmp_path / "network.onnx", device=device, threads=1)
        assert (error.value.code, error.value.status, error.value.hint) == ("no-engine", 69, line)


def test_an_engine_whose_library_does_not_load_names_the_line_to_type(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UnavailableError) as error:
        OnnxRuntime().open(tmp_path / "network.onnx", device="cpu", threads=1)
    assert (error.value.code, error.value.hint) == ("no-engine", "pip install 'mdcli[cpu]'")


def test_a_gpu_that_is_not_there_is_never_replaced_by_the_cpu(tmp_path, monkeypatch):
    path = write_model(tmp_path, bands()) / "network.onnx"
    monkeypatch.setattr(engine_onnx, "version_of", lambda name: "1.0")
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(UnavailableError) as error:
            OnnxRuntime().open(path, device="cuda:0", threads=1)
        assert (error.value.code, error.value.status) == ("no-device", 69)
    # onnxruntime lists CUDA where its libraries don't load, and then makes a session on the CPU.
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"]
    )
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, options, providers: real(path, options, ["CPUExecutionProvider"])
    )
    with pytest.raises(UnavailableError) as error:
        OnnxRuntime().open(path, device="cuda:0", threads=1)
    assert error.value.code == "no-device" and "CPUExecutionProvider" in error.value.message


def test_on_a_gpu_float32_means_float32(tmp_path, monkeypatch):
    asked = {}
    real = onnxruntime.InferenceSession

    class Recorder:
        def __init__(self, path, options, providers):
            asked.update(dict(providers))
            self.inner = real(path, options, ["CPUExecutionProvider"])

        def get_providers(self):
            return ["CUDAExecutionProvider", "CPUExecutionProvider"]

        def __getattr__(self, name):
            return getattr(self.inner, name)

    monkeypatch.setattr(engine_onnx, "version_of", lambda name: "1.0")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorder)
    session = OnnxRuntime().open(write_model(tmp_path, bands()) / "network.onnx", device="cuda:3", threads=1)
    assert asked == {"CUDAExecutionProvider": {"device_id": "3", "use_tf32": "0"}}
    session.run({"image": np.zeros((1, 1, 2, 2, 2), np.float32)}, {"scores": np.zeros((1, 3, 2, 2, 2), np.float32)})
    # The first run is profiled: what fell back to the CPU shows.
    assert set(session.facts()["nodes"]) == {"CPUExecutionProvider"}


def test_nodes_are_counted_once_by_provider():
    def event(name, provider, cat="Node"):
        return {"cat": cat, "name": name, "args": {"provider": provider} if provider else {}}

    profile = [
        event("conv_kernel_time", "CUDAExecutionProvider"),
        event("conv_kernel_time", "CUDAExecutionProvider"),
        event("relu_kernel_time", "CUDAExecutionProvider"),
        event("shape_kernel_time", "CPUExecutionProvider"),
        event("conv_fence_before", None),
        event("model_run", None, "Session"),
    ]
    assert nodes_by_provider(json.dumps(profile)) == {"CPUExecutionProvider": 1, "CUDAExecutionProvider": 2}


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cpu:0", "cuda:-1", ""])
def test_another_word_is_no_device(device):
    with pytest.raises(UsageError) as error:
        check_device(device)
    assert error.value.code == "bad-device"


def test_auto_is_the_first_gpu_where_engine_and_gpu_are_there(monkeypatch):
    assert check_device("cuda") == "cuda:0"
    for model, version, expected in (("H200", "1.0", "cuda:0"), (None, "1.0", "cpu"), ("H200", None, "cpu")):
        monkeypatch.setattr(engines, "gpu_model", lambda index, model=model: model)
        monkeypatch.setattr(engines, "version_of", lambda name, version=version: version)
        assert check_device("auto") == expected


class Point:
    name, value = "broken", "nowhere:ENGINE"

    class dist:
        name, version = "md-broken", "0.1"

    def load(self):
        raise ModuleNotFoundError("No module named 'nowhere'")


def test_a_broken_engine_names_its_distribution(monkeypatch):
    monkeypatch.setattr(
        metadata, "entry_points", lambda group, name=None: [Point()] if name in (None, "broken") else []
    )
    with pytest.raises(ConfigError) as error:
        find_engine("broken")
    assert error.value.code == "broken-plugin" and "md-broken 0.1" in error.value.message
    with pytest.raises(UsageError) as unknown:
        find_engine("tensor")
    assert unknown.value.code == "no-such-engine" and "onnxruntime" in str(unknown.value.hint)
