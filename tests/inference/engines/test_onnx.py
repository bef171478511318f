"""Engines: what is opened, refused, and said of it."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from mdcli.errors import ConfigError, UnavailableError, UsageError
from mdcli.inference.devices import Gpu, OutOfDeviceMemory
from mdcli.inference.engines import find_engine
from mdcli.inference.engines import onnx as engine_onnx
from mdcli.inference.engines.onnx import OnnxRuntime, heavy_on_cpu, nodes_by_provider
from tests.inference.nets import bands, network, write_model

onnxruntime = pytest.importorskip("onnxruntime")
ROOT = Path(__file__).parents[3]


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


@pytest.fixture
def gpu(monkeypatch):
    """Stand in for a GPU: providers are recorded, and the CPU does the work. Gives what was asked for."""
    asked = []
    real = onnxruntime.InferenceSession

    class Recorder:
        def __init__(self, path, options, providers):
            asked[:] = providers
            self.inner = real(path, options, ["CPUExecutionProvider"])

        def get_providers(self):
            return [asked[0][0], "CPUExecutionProvider"]

        def __getattr__(self, name):
            return getattr(self.inner, name)

    names = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(engine_onnx, "version_of", lambda name: "1.0")
    monkeypatch.setattr(engine_onnx, "cuda_gpus", lambda: (Gpu(3, "H200", "0" * 32, 1 << 17),))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: names)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorder)
    return asked


def on(device, folder, **options):
    path = write_model(folder, bands()) / "network.onnx"
    return OnnxRuntime().open(path, device=device, threads=1, options=options)


def test_on_a_gpu_float32_means_float32(tmp_path, gpu):
    session = on("cuda:3", tmp_path)
    assert gpu == [("CUDAExecutionProvider", {"device_id": "3", "use_tf32": "0"})]
    session.run({"image": np.zeros((1, 1, 2, 2, 2), np.float32)}, {"scores": np.zeros((1, 3, 2, 2, 2), np.float32)})
    # The first run is profiled: what fell back to the CPU shows.
    facts = session.facts()
    assert set(facts["nodes"]) == {"CPUExecutionProvider"} and facts["fallen_back"] == "1 Conv"
    assert (facts["device"], facts["provider"]) == ("H200", "CUDAExecutionProvider")


def test_a_gpu_is_kept_to_the_memory_allowed_and_to_one_algorithm_on_request(tmp_path, gpu):
    on("cuda:0", tmp_path, memory_mib=2048, deterministic=True)
    assert gpu[0][1] == {
        "device_id": "0",
        "use_tf32": "0",
        "gpu_mem_limit": str(2 << 30),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "DEFAULT",
    }


def test_tensorrt_in_float32_is_refused_where_nothing_turns_its_tf32_off(tmp_path, gpu):
    with pytest.raises(UnavailableError) as error:
        on("tensorrt:3", tmp_path)
    assert error.value.code == "no-device" and "NVIDIA_TF32_OVERRIDE" in error.value.message


def test_tensorrt_runs_before_cuda_and_in_float16_only_where_asked(tmp_path, gpu):
    assert on("tensorrt:3", tmp_path, no_tf32=True).facts()["precision"] == "float32"
    cuda = ("CUDAExecutionProvider", {"device_id": "3", "use_tf32": "0"})
    first = {"device_id": "3", "trt_fp16_enable": "0", "trt_engine_cache_enable": "0"}
    assert gpu == [("TensorrtExecutionProvider", first), cuda]
    assert on("tensorrt:3", tmp_path, precision="float16").facts()["precision"] == "float16"
    assert gpu == [("TensorrtExecutionProvider", {**first, "trt_fp16_enable": "1"}), cuda]
    with pytest.raises(ConfigError) as error:
        on("cuda:3", tmp_path, precision="float16")
    assert error.value.code == "bad-precision"


def test_programs_of_tensorrt_are_kept_apart_by_all_that_decides_them_in_a_private_folder(tmp_path, gpu, monkeypatch):
    said = {"cache": tmp_path / "cache", "model_sha256": "a" * 64, "no_tf32": True}

    def folder(device="tensorrt:3", **changes):
        on(device, tmp_path / "model", **{**said, **changes})
        assert gpu[0][1]["trt_engine_cache_enable"] == "1"
        found = Path(gpu[0][1]["trt_engine_cache_path"])
        assert found.parent == tmp_path / "cache" and found.stat().st_mode & 0o777 == 0o700
        return found

    first = folder()
    assert folder() == first
    others = [folder(model_sha256="b" * 64), folder(precision="float16"), folder("tensorrt:4")]
    monkeypatch.setattr(engine_onnx, "version_of", lambda name: "2.0")
    others.append(folder())
    assert len({first, *others}) == 5
    others[-1].chmod(0o777)
    with pytest.raises(ConfigError) as error:
        folder()
    assert error.value.code == "cache-not-private"


def test_another_provider_is_taken_by_its_name_and_what_it_leaves_to_the_cpu_is_said(tmp_path):
    name = "AzureExecutionProvider"
    if name not in onnxruntime.get_available_providers():
        pytest.skip(f"this build of onnxruntime has no {name}")
    batch = {"image": np.zeros((1, 1, 2, 2, 2), np.float32)}
    session = on(name, tmp_path)
    session.run(batch, {"scores": None})
    facts = session.facts()
    assert (facts["device"], facts["provider"], facts["fallen_back"]) == (name, name, "1 Conv")
    # It has no convolution of its own: asked for alone, it is refused, at every run.
    strict = on(name, tmp_path, strict_device=True)
    for _ in range(2):
        with pytest.raises(UnavailableError) as error:
            strict.run(batch, {"scores": None})
        assert (error.value.code, error.value.status) == ("node-on-cpu", 69) and "1 Conv" in error.value.message


def test_a_provider_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UnavailableError) as error:
        on("NoSuchExecutionProvider", tmp_path)
    assert error.value.code == "no-device" and "NoSuchExecutionProvider" in error.value.message


def test_several_threads_share_a_session_whose_first_run_is_profiled(tmp_path, gpu):
    session = on("cuda:0", tmp_path)

    def run(value):
        batch = np.full((1, 1, 2, 2, 2), value, np.float32)
        return session.run({"image": batch}, {"scores": None})["scores"][0, 1].max()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(16))) == list(range(16))
    assert session.facts()["nodes"] == {"CPUExecutionProvider": 1}


def test_too_little_memory_is_told_apart(tmp_path):
    """By the words of onnxruntime's own arena, limited in a process of its own."""
    weight = np.ones((64, 1, 1, 1, 1), np.float32)
    hidden = [
        helper.make_node("Conv", ["image", "w"], ["many"]),
        helper.make_node("Relu", ["many"], ["positive"]),
        helper.make_node("ReduceSum", ["positive", "axes"], ["scores"]),
    ]
    model = network(hidden, {"w": weight, "axes": np.array([1], np.int64)}, channels=1)
    path = write_model(tmp_path, model) / "network.onnx"
    code = f"""
import numpy as np, onnxruntime as ort
from pathlib import Path
from mdcli.inference.devices import OutOfDeviceMemory
from mdcli.inference.engines.onnx import OnnxRuntime
memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
ort.create_and_register_allocator(memory, ort.OrtArenaCfg({{"max_mem": 4 << 20, "arena_extend_strategy": 1}}))
plain = ort.SessionOptions
def limited():
    said = plain()
    said.add_session_config_entry("session.use_env_allocators", "1")
    return said
ort.SessionOptions = limited
session = OnnxRuntime().open(Path({str(path)!r}), device="cpu", threads=1)
def run(n):
    return session.run({{"image": np.ones((n, 1, 16, 16, 16), np.float32)}}, {{"scores": None}})["scores"]
assert run(1).max() == 64
try:
    run(16)
except OutOfDeviceMemory as error:
    print(error.code, "(16, 1, 16, 16, 16)" in error.message)
assert run(1).max() == 64
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.strip()) == (0, "out-of-device-memory True"), done.stderr


@pytest.mark.parametrize(
    "words",
    [
        "bfc_arena.cc:376 Failed to allocate memory for requested buffer of size 9437184",
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=x ; expr=cudaMalloc((void**)&p, size);",
        "CUDNN failure 4: CUDNN_STATUS_ALLOC_FAILED",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "TensorRT EP: 2: [executionContext.cpp] OutOfMemory (no further information)",
    ],
)
def test_the_words_of_a_gpu_without_memory_are_known(tmp_path, monkeypatch, words):
    class Failing:
        def io_binding(self):
            return self

        def bind_cpu_input(self, *_):
            pass

        bind_output = bind_cpu_input

        def run_with_iobinding(self, _, options=None):
            raise RuntimeError(f"Non-zero status code returned while running Conv node. {words}")

        def get_inputs(self):
            return []

        get_outputs = get_inputs

    session = engine_onnx.OnnxSession(Failing(), {}, "network.onnx")
    with pytest.raises(OutOfDeviceMemory):
        session.run({"image": np.zeros((1, 1), np.float32)}, {"scores": None})


@pytest.mark.parametrize(
    "operator, kind, said",
    [
        ("Frobnicate", TensorProto.FLOAT, "Frobnicate (opset 17)"),
        # In the standard since version 1, for numbers of this type without a kernel on the CPU.
        ("Softsign", TensorProto.DOUBLE, "Softsign (opset 1)"),
    ],
    ids=["no operator of the standard", "no kernel"],
)
def test_an_operator_that_it_lacks_is_named(tmp_path, operator, kind, said):
    with pytest.raises(ConfigError) as error:
        opened(tmp_path, network([helper.make_node(operator, ["image"], ["scores"])], channels=1, kind=kind))
    assert error.value.code == "bad-network" and said in error.value.message


def test_number_types_go_by_the_names_of_numpy(tmp_path):
    model = network([helper.make_node("ArgMax", ["image"], ["scores"], axis=1)], channels=1)
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    assert opened(tmp_path, model).outputs[0].dtype == "int64"


def test_the_plan_of_memory_is_off_which_takes_a_third_more_of_it(tmp_path, monkeypatch):
    asked = []
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda path, options, **said: asked.append(options) or real(path, options)
    )
    opened(tmp_path)
    assert asked[0].enable_mem_pattern is False and asked[0].enable_cpu_mem_arena is True


def test_nodes_are_counted_once_by_provider():
    def event(name, provider, cat="Node"):
        said = {"provider": provider, "op_name": name.partition("_")[0].capitalize()}
        return {"cat": cat, "name": name, "args": said if provider else {}}

    profile = [
        event("conv_kernel_time", "CUDAExecutionProvider"),
        event("conv_kernel_time", "CUDAExecutionProvider"),
        event("relu_kernel_time", "CUDAExecutionProvider"),
        event("shape_kernel_time", "CPUExecutionProvider"),
        event("conv_fence_before", None),
        event("model_run", None, "Session"),
    ]
    assert nodes_by_provider(json.dumps(profile)) == {"CPUExecutionProvider": 1, "CUDAExecutionProvider": 2}
    # A shape on the CPU costs nothing.
    assert heavy_on_cpu(json.dumps(profile)) == ""
    profile += [event(f"{name}_kernel_time", "CPUExecutionProvider") for name in ("resize", "conv_1", "conv_2")]
    assert heavy_on_cpu(json.dumps(profile)) == "2 Conv, 1 Resize"


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
