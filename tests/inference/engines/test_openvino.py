"""OpenVINO: what is opened, refused, and said of it; the same labels as onnxruntime."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from mdcli.errors import ConfigError, UnavailableError
from mdcli.inference.devices import OutOfDeviceMemory
from mdcli.inference.engines import find_engine
from mdcli.inference.engines import openvino as module
from mdcli.inference.engines.openvino import OpenVino
from mdcli.registry import load_stage
from mdcli.testing import run_stage
from mdcli.workspace import Workspace
from tests.inference.nets import bands, conv, network, write_model
from tests.test_landmark_chain import AXIAL, write_ct

pytest.importorskip("openvino.frontend")
ROOT = Path(__file__).parents[3]
MODELS = ROOT / "mdcli" / "models"


def opened(folder, model=None, **said):
    return OpenVino().open(write_model(folder, model or bands()) / "network.onnx", device="cpu", threads=1, **said)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def test_it_is_found_by_its_name():
    assert isinstance(find_engine("openvino"), OpenVino)


def test_a_network_runs_into_the_memory_that_it_is_given(tmp_path):
    session = opened(tmp_path)
    batch = np.array([-5.0, 50.0, 500.0], np.float32).reshape(1, 1, 1, 1, 3)
    out = np.full((1, 3, 1, 1, 3), np.nan, np.float32)
    found = session.run({"image": batch}, {"scores": out})
    # Lines of slope 0, 1, 2 through the edges 0 and 100.
    np.testing.assert_allclose(out[0, :, 0, 0], [[0, 0, 0], [-5, 50, 500], [-110, 0, 900]])
    assert found["scores"] is out


def test_an_output_without_memory_of_ours_is_made_and_stays(tmp_path):
    session = opened(tmp_path)
    first = session.run({"image": zeros(1, 1, 1, 1, 3) + 50}, {"scores": None})["scores"]
    session.run({"image": zeros(1, 1, 1, 1, 3)}, {"scores": None})
    np.testing.assert_allclose(first[0, :, 0, 0, 0], [0, 50, 0])


def test_it_says_what_it_is_and_what_really_runs(tmp_path):
    session = opened(tmp_path)
    session.run({"image": zeros(1, 1, 2, 2, 2)}, {"scores": None})
    assert [(t.name, t.shape, t.dtype) for t in session.inputs] == [("image", (None, 1, None, None, None), "float32")]
    assert [(t.name, t.shape, t.dtype) for t in session.outputs] == [("scores", (None, 3, None, None, None), "float32")]
    assert session.facts() == {
        "engine": "openvino",
        "version": metadata.version("openvino"),
        "precision": "float32",
        "device": "cpu",
        "provider": "CPU",
    }


def test_float32_means_float32(tmp_path):
    # 1 + 2^-12 is 1 in bfloat16 (8 bits of fraction kept) and in float16 (11), not in float32.
    kernel = np.full((1, 1, 1, 1, 1), 1 + 2**-12, np.float32)
    out = zeros(1, 1, 1, 1, 1)
    opened(tmp_path, conv(kernel)).run({"image": zeros(1, 1, 1, 1, 1) + 1}, {"scores": out})
    assert out.item() == 1 + 2**-12


def test_inputs_go_by_their_names_and_outputs_too(tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("Sub", ["a", "b"], ["scores"]),
            helper.make_node("Identity", ["scores"], ["again"]),
            helper.make_node("ArgMax", ["a"], ["top"], axis=1),
        ],
        "test",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2, 3]) for name in "ab"],
        [
            helper.make_tensor_value_info("again", TensorProto.FLOAT, ["n", 2, 3]),
            helper.make_tensor_value_info("top", TensorProto.INT64, ["n", 1, 3]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 2, 3]),
        ],
    )
    session = opened(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert [(t.name, t.dtype) for t in session.outputs] == [
        ("again", "float32"),
        ("top", "int64"),
        ("scores", "float32"),
    ]
    a = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    found = session.run({"b": np.ones_like(a), "a": a}, {"scores": zeros(1, 2, 3), "top": None, "again": None})
    np.testing.assert_array_equal(found["scores"], a - 1)
    np.testing.assert_array_equal(found["again"], a - 1)
    np.testing.assert_array_equal(found["top"], [[[1, 1, 1]]])


def test_an_output_whose_size_the_values_decide_comes_back(tmp_path):
    model = network([helper.make_node("NonZero", ["image"], ["scores"])], out=(5, "found"))
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.INT64
    session = opened(tmp_path, model)
    values = zeros(1, 1, 1, 1, 4)
    values[..., 2] = 7
    np.testing.assert_array_equal(session.run({"image": values}, {"scores": None})["scores"], [[0], [0], [0], [0], [2]])


def test_batches_of_several_sizes_and_threads_give_what_one_gives(tmp_path):
    session = opened(tmp_path, options={"workers": 3})
    rng = np.random.default_rng(5)
    batches = [rng.normal(50, 100, (n, 1, 3, 4, 5)).astype(np.float32) for n in (1, 2, 3, 1, 2, 3, 1, 2)]

    def run(batch):
        return session.run({"image": batch}, {"scores": np.empty((len(batch), 3, 3, 4, 5), np.float32)})["scores"]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run, batches))
    for batch, scores in zip(batches, found, strict=True):
        np.testing.assert_allclose(scores, np.concatenate([batch * 0, batch, batch * 2 - 100], axis=1), atol=1e-3)


def test_an_output_of_another_shape_does_not_fit(tmp_path):
    with pytest.raises(ConfigError) as error:
        opened(tmp_path).run({"image": zeros(1, 1, 2, 2, 2)}, {"scores": zeros(1, 4, 2, 2, 2)})
    assert error.value.code == "network-does-not-fit" and "(1, 3, 2, 2, 2)" in error.value.message


def test_a_network_that_fails_says_so(tmp_path):
    node = helper.make_node("Reshape", ["image", "shape"], ["scores"])
    session = opened(tmp_path, network([node], {"shape": np.array([1, 3, 5, 5, 5], np.int64)}))
    with pytest.raises(ConfigError) as error:
        session.run({"image": zeros(1, 1, 2, 2, 2)}, {"scores": zeros(1, 3, 5, 5, 5)})
    assert error.value.code == "network-failed" and str(tmp_path) not in error.value.message
    assert "src/" not in error.value.message


def test_too_little_memory_is_told_apart(tmp_path, monkeypatch):
    def no_room(shapes):
        raise MemoryError("std::bad_alloc")

    session = opened(tmp_path)
    monkeypatch.setattr(session, "_for_shapes", no_room)
    with pytest.raises(OutOfDeviceMemory) as error:
        session.run({"image": zeros(1, 1, 2, 2, 2)}, {"scores": None})
    assert error.value.code == "out-of-device-memory" and "(1, 1, 2, 2, 2)" in error.value.message


@pytest.mark.parametrize("content", [b"", b"not a network", b"\x3a\x00"], ids=["empty", "text", "an empty graph"])
def test_a_file_that_is_no_network_is_refused_without_its_path(tmp_path, content, capfd):
    path = tmp_path / "network.onnx"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        OpenVino().open(path, device="cpu", threads=1)
    assert error.value.code == "bad-network" and str(tmp_path) not in error.value.message
    assert capfd.readouterr().err == ""


def test_an_operator_that_it_lacks_is_named(tmp_path):
    with pytest.raises(ConfigError) as error:
        opened(tmp_path, network([helper.make_node("Frobnicate", ["image"], ["scores"])]))
    assert error.value.code == "bad-network" and "Frobnicate" in error.value.message and "17" in error.value.message


def test_weights_outside_the_folder_are_not_opened(tmp_path):
    """The second lock behind `find_model`: OpenVINO's own."""
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
        OpenVino().open(folder / "network.onnx", device="cpu", threads=1)
    assert error.value.code == "bad-network"


def test_a_missing_engine_names_the_line_to_type(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "version_of", lambda name: None)
    with pytest.raises(UnavailableError) as error:
        OpenVino().open(tmp_path / "network.onnx", device="cpu", threads=1)
    assert (error.value.code, error.value.status, error.value.hint) == (
        "no-engine",
        69,
        "pip install 'mdcli[openvino]'",
    )


def test_an_engine_whose_library_does_not_load_names_the_line_to_type(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UnavailableError) as error:
        OpenVino().open(tmp_path / "network.onnx", device="cpu", threads=1)
    assert (error.value.code, error.value.hint) == ("no-engine", "pip install 'mdcli[openvino]'")


def test_a_gpu_is_not_replaced_by_the_cpu(tmp_path):
    with pytest.raises(UnavailableError) as error:
        OpenVino().open(tmp_path / "network.onnx", device="cuda:0", threads=1)
    assert (error.value.code, error.value.status) == ("no-device", 69)


def test_its_telemetry_is_not_loaded_and_writes_nothing(tmp_path):
    """`import openvino` alone sends an event to its maker and writes an id into the home folder."""
    path = write_model(tmp_path / "model", bands()) / "network.onnx"
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import socket, sys\n"
        "from pathlib import Path\n"
        "def refuse(*_, **__): raise AssertionError('a connection')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from mdcli.inference.engines.openvino import OpenVino\n"
        f"OpenVino().open(Path({str(path)!r}), device='cpu', threads=1)\n"
        "print([name for name, found in sys.modules.items() if 'openvino_telemetry' in name and found])\n"
    )
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", "TF_BUILD", "JENKINS_URL")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**environment, "HOME": str(home)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr
    assert list(home.rglob("*")) == []


def test_what_differs_from_onnxruntime_lies_between_two_scores_that_are_all_but_equal():
    """Truth 17, on a network whose every class has its voxels."""
    pytest.importorskip("onnxruntime")
    path = MODELS / "ct-tissue" / "network.onnx"
    # Blocks of one value, so that every class has its voxels.
    rng = np.random.default_rng(17)
    coarse = rng.uniform(-1000, 1000, (1, 1, 12, 16, 16)).astype(np.float32)
    batch = np.ascontiguousarray(coarse.repeat(4, 2).repeat(4, 3).repeat(4, 4))
    sessions = [find_engine(engine).open(path, device="cpu", threads=1) for engine in ("openvino", "onnxruntime")]
    tensors = [(session.inputs[0].name, session.outputs[0].name) for session in sessions]
    assert tensors[0] == tensors[1]
    ours, theirs = (
        session.run({feed: batch}, {out: None})[out] for session, (feed, out) in zip(sessions, tensors, strict=True)
    )
    labels, reference = ours.argmax(1), theirs.argmax(1)
    top = np.sort(theirs, axis=1)[:, -2:]
    differ = labels != reference
    assert (top[:, 1] - top[:, 0])[differ].max(initial=0) < 1e-3
    for label in np.unique(reference):
        mine, its = labels == label, reference == label
        assert 2 * (mine & its).sum() / (mine.sum() + its.sum()) >= 0.999
        assert abs(int(mine.sum()) - int(its.sum())) <= max(5, 0.001 * its.sum())
    assert min(np.bincount(reference.ravel(), minlength=6)[1:]) > 1000


@pytest.mark.parametrize("model", ["landmarks", "ct-tissue"])
def test_a_case_has_the_labels_of_onnxruntime(tmp_path, model):
    """Truth 17 and 33: an oblique phantom through the stages, every class of the two models in it."""
    pytest.importorskip("onnxruntime")
    write_ct(tmp_path / "dicom", AXIAL, (2.5, 3.0, 4.0), oblique_deg=8.0)
    found = []
    for engine in ("openvino", "onnxruntime"):
        case = tmp_path / engine
        run_stage(load_stage("select-series"), case, dicom=tmp_path / "dicom")
        run_stage(load_stage("load-volume"), case)
        run_stage(load_stage("infer"), case, model=model, engine=engine, device="cpu")
        assert Workspace(case).read_json("segments")["engine"]["name"] == engine
        found.append(np.array(Workspace(case).read_volume("labels").array))
    ours, theirs = found
    counts = np.bincount(theirs.ravel())
    # All around is air, a class of its own: ct-tissue has no background here.
    assert len(counts) == (5 if model == "landmarks" else 6)
    assert min(counts[1:]) > (1000 if model == "ct-tissue" else 0)
    for label in np.flatnonzero(counts):
        mine, its = ours == label, theirs == label
        assert 2 * (mine & its).sum() / (mine.sum() + its.sum()) >= 0.999
        assert abs(int(mine.sum()) - int(its.sum())) <= max(5, 0.001 * its.sum())
