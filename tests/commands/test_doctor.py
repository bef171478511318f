"""md doctor: what really runs, what is only listed, and the line that gets what is missing."""

from __future__ import annotations

import sys

import pytest

from mdcli.commands import doctor
from mdcli.inference.devices import Gpu
from mdcli.inference.engines.probe import try_engine
from mdcli.model_folders import EMBEDDED

NETWORK = EMBEDDED / "ct-tissue" / "network.onnx"


def found(findings):
    return {finding.what: finding for finding in findings}


def installed(monkeypatch, **versions):
    names = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(doctor, "_version", names.get)


def test_an_engine_is_tried_and_not_only_looked_up():
    pytest.importorskip("onnxruntime")
    assert doctor._tried("onnxruntime", "cpu") == (True, "runs on cpu")
    engines = found(doctor._engines())
    assert engines["onnxruntime CPU"].state == "ok"
    # It sends to a server what a network marks for it: no device.
    assert "onnxruntime Azure" not in engines


def test_a_device_that_does_not_start_says_why():
    pytest.importorskip("onnxruntime")
    runs, said = doctor._tried("onnxruntime", "NoSuchExecutionProvider")
    assert not runs and "NoSuchExecutionProvider" in said


def test_a_provider_that_leaves_the_work_to_the_cpu_does_not_run():
    onnxruntime = pytest.importorskip("onnxruntime")
    if "AzureExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this build of onnxruntime has no such provider")
    trial = try_engine("onnxruntime", "AzureExecutionProvider", NETWORK)
    assert not trial.runs and "4 Conv" in trial.said


def test_a_library_that_ends_its_process_does_not_end_ours():
    assert doctor._in_child("import os; os.abort()") == (None, "ends with status -6")
    assert doctor._in_child("raise SystemExit(3)") == (None, "ends with status 3")
    assert doctor._in_child("import no_such_module")[1].endswith("No module named 'no_such_module'")
    assert doctor._in_child("print('[1, 2]')") == ([1, 2], "")
    assert doctor._in_child("", "/no/such/python") == (None, "does not start: No such file or directory")


def test_a_library_that_hangs_is_ended(monkeypatch):
    monkeypatch.setattr(doctor, "TRY_S", 0.2)
    assert doctor._in_child("import time; time.sleep(60)") == (None, "no answer in 0.2 s")


def test_what_is_only_listed_is_told_from_what_runs(monkeypatch):
    installed(monkeypatch, onnxruntime_gpu="1.31.1")
    listed = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(doctor, "_in_child", lambda code: (listed, ""))
    trials = {"cpu": (True, "runs on cpu"), "cuda": (True, "runs on H200"), "tensorrt": (False, "did not load")}
    monkeypatch.setattr(doctor, "_tried", lambda engine, device: trials[device])
    engines = found(doctor._onnxruntime("1.31.1", None))
    assert engines["onnxruntime"].found == "1.31.1 (gpu)"
    assert (engines["onnxruntime CUDA"].state, engines["onnxruntime CUDA"].found) == ("ok", "runs on H200")
    tensorrt = engines["onnxruntime Tensorrt"]
    assert (tensorrt.state, tensorrt.fix) == ("listed", "pip install 'tensorrt-cu13>=10.9,<11'")


def test_two_builds_of_onnxruntime_over_each_other_are_broken(monkeypatch):
    monkeypatch.setattr(doctor, "_in_child", lambda code: ([], ""))
    finding = found(doctor._onnxruntime("1.31.1", "1.32.0"))["onnxruntime"]
    assert finding.state == "broken" and "pip uninstall" in finding.fix


def test_the_build_for_gpus_is_missed_only_where_there_is_one(monkeypatch):
    monkeypatch.setattr(doctor, "_in_child", lambda code: ([], ""))
    monkeypatch.setattr("mdcli.inference.devices.cuda_gpus", lambda: ())
    assert "onnxruntime-gpu" not in found(doctor._onnxruntime(None, "1.32.0"))
    monkeypatch.setattr("mdcli.inference.devices.cuda_gpus", lambda: (Gpu(0, "H200", "0" * 32, 1),))
    assert "mdcli[gpu]" in found(doctor._onnxruntime(None, "1.32.0"))["onnxruntime-gpu"].fix


@pytest.mark.parametrize(
    "version, state", [("10.9.0.34", "ok"), ("11.0.0", "broken"), (None, "not there")], ids=["10", "11", "none"]
)
def test_tensorrt_is_held_to_the_version_that_onnxruntime_is_linked_with(monkeypatch, version, state):
    installed(monkeypatch, **({"tensorrt_cu13": version} if version else {}))
    finding = doctor._tensorrt()
    assert finding.state == state
    assert finding.fix == ("" if state == "ok" else "pip install 'tensorrt-cu13>=10.9,<11'")


def test_every_engine_that_is_not_there_has_its_line(monkeypatch):
    installed(monkeypatch)
    monkeypatch.delenv("MD_TORCH_PYTHON", raising=False)
    engines = found(doctor._engines())
    assert engines["onnxruntime"].state == "MISSING"
    lines = {name: finding.fix for name, finding in engines.items()}
    assert lines == {
        "onnxruntime": "pip install 'mdcli[cpu]', or 'mdcli[gpu]'",
        "openvino": "pip install 'mdcli[openvino]'",
        "torch": "pip install 'mdcli[torch]'",
        "grpcio": "pip install 'mdcli[triton]'",
    }


def test_another_interpreter_for_torch_is_asked(monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("__version__ = '2.9'\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MD_TORCH_PYTHON", sys.executable)
    finding = doctor._torch()
    assert (finding.state, finding.found) == ("ok", "2.9, of MD_TORCH_PYTHON")
    monkeypatch.setenv("MD_TORCH_PYTHON", str(tmp_path / "python"))
    assert doctor._torch().state == "broken"


def test_gpus_and_free_memory_are_listed(monkeypatch):
    monkeypatch.setattr("mdcli.inference.devices.cuda_gpus", lambda: (Gpu(0, "H200", "0" * 32, 143771),))
    devices = found(doctor._devices())
    assert devices["cuda:0"].found == "H200, 143771 MiB" and "gpu" not in devices
    assert "cores" in devices["cpu"].found
