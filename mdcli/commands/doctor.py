"""Say what is installed, missing, and how to get it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

GPU = "pip install 'mdcli[gpu]'"
OPENVINO = "pip install 'mdcli[openvino]'"
TENSORRT = "pip install 'tensorrt-cu13>=10.9,<11'"
PROVIDER_FIXES = {"CUDA": GPU, "Tensorrt": TENSORRT}
# One import of a large library from a slow disk, and one run.
TRY_S = 90


@dataclass(frozen=True)
class Finding:
    """One thing that md uses: whether it is there, and the line that gets it."""

    what: str
    state: str
    found: str
    fix: str = ""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON (md.doctor/1).")] = False,
) -> None:
    """Say what md has to work with: versions, engines, devices, codecs, Docker; and the line that gets what is missing.

    Exits 1 where something that md can't do without is missing.
    """
    import json
    from dataclasses import asdict

    from mdcli.errors import AnswerNo

    findings = [*_core(), *_engines(), *_devices(), *_docker(), *_plugins()]
    if as_json:
        print(json.dumps({"schema": "md.doctor/1", "findings": [asdict(f) for f in findings]}, indent=1))
    else:
        for finding in findings:
            print(f"{finding.what:<24} {finding.state:<9} {finding.found}")
            if finding.fix:
                print(f"{'':<24} to get it: {finding.fix}")
    missing = [f.what for f in findings if f.state == "MISSING"]
    if missing:
        raise AnswerNo("missing", f"md can't do without {', '.join(missing)}")


def _version(name: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _core() -> list[Finding]:
    import platform

    found = [
        Finding("md", "ok", _version("mdcli") or "?"),
        Finding("python", "ok", platform.python_version()),
        Finding("system", "ok", f"{platform.system()} {platform.machine()}"),
    ]
    for name in ("numpy", "pydicom", "highdicom", "SimpleITK", "nibabel", "pylibjpeg-openjpeg", "pyjpegls"):
        version = _version(name)
        found.append(
            Finding(name, "ok" if version else "MISSING", version or "", "" if version else f"pip install {name}")
        )
    return found


def _engines() -> list[Finding]:
    gpu, cpu = _version("onnxruntime-gpu"), _version("onnxruntime")
    found = _onnxruntime(gpu, cpu)
    if gpu:
        found.append(_tensorrt())
    openvino = _version("openvino")
    if openvino:
        runs, said = _tried("openvino", "cpu")
        found.append(Finding("openvino", "ok" if runs else "broken", f"{openvino}: {said}", "" if runs else OPENVINO))
    else:
        found.append(Finding("openvino", "not there", "the engine openvino", OPENVINO))
    found.append(_torch())
    grpc = _version("grpcio")
    what = grpc or "models on a server by gRPC; HTTP needs nothing"
    found.append(Finding("grpcio", "ok" if grpc else "not there", what, "" if grpc else "pip install 'mdcli[triton]'"))
    return found


def _onnxruntime(gpu: str | None, cpu: str | None) -> list[Finding]:
    """Return what is installed of onnxruntime, and for each provider that it lists whether it really runs."""
    from mdcli.inference.devices import cuda_gpus

    version = gpu or cpu
    if version is None:
        return [Finding("onnxruntime", "MISSING", "", "pip install 'mdcli[cpu]', or 'mdcli[gpu]'")]
    found = [Finding("onnxruntime", "ok", f"{version}{' (gpu)' if gpu else ''}")]
    if gpu and cpu:
        # Both put their files into one folder: whichever came last is used.
        fix = f"pip uninstall -y onnxruntime onnxruntime-gpu, then {GPU}"
        found = [Finding("onnxruntime", "broken", f"both onnxruntime {cpu} and onnxruntime-gpu {gpu}", fix)]
    if not gpu and cuda_gpus():
        found.append(
            Finding("onnxruntime-gpu", "not there", "NVIDIA GPUs", f"pip uninstall -y onnxruntime, then {GPU}")
        )
    code = "import json, onnxruntime as o; print(json.dumps(o.get_available_providers()))"
    listed, why = _in_child(code)
    if listed is None:
        return [*found, Finding("onnxruntime providers", "broken", why)]
    devices = {"CPUExecutionProvider": "cpu", "CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "tensorrt"}
    for provider in listed:
        # Azure's is no provider of a device: it sends to a server what is marked for it.
        if provider == "AzureExecutionProvider":
            continue
        runs, said = _tried("onnxruntime", devices.get(provider, provider))
        name = provider.removesuffix("ExecutionProvider")
        fix = "" if runs else PROVIDER_FIXES.get(name, "")
        found.append(Finding(f"onnxruntime {name}", "ok" if runs else "listed", said, fix))
    return found


def _tensorrt() -> Finding:
    names = ("tensorrt-cu13", "tensorrt-cu12", "tensorrt")
    version = next((version for name in names if (version := _version(name))), None)
    if version is None:
        return Finding("tensorrt", "not there", "--device tensorrt", TENSORRT)
    # onnxruntime is linked with libnvinfer.so.10; version 11 brings another.
    if not version.startswith("10."):
        return Finding("tensorrt", "broken", f"{version}: onnxruntime needs libnvinfer.so.10", TENSORRT)
    return Finding("tensorrt", "ok", version)


def _torch() -> Finding:
    from mdcli.model_folders import torch_python

    version, other = _version("torch"), torch_python()
    if other:
        said, why = _in_child("import json, torch; print(json.dumps(torch.__version__))", other)
        state = "ok" if said else "broken"
        return Finding("torch", state, f"{said}, of MD_TORCH_PYTHON" if said else f"MD_TORCH_PYTHON: {why}", "")
    if version:
        return Finding("torch", "ok", version)
    return Finding("torch", "not there", "converting models of torch", "pip install 'mdcli[torch]'")


def _tried(engine: str, device: str) -> tuple[bool, str]:
    """Run a small network in a process of its own: a library that does not fit its driver may crash or hang."""
    from mdcli.model_folders import EMBEDDED

    network = EMBEDDED / "ct-tissue" / "network.onnx"
    code = (
        "import json, pathlib; from mdcli.inference.engines.probe import try_engine; "
        f"t = try_engine({engine!r}, {device!r}, pathlib.Path({str(network)!r})); print(json.dumps([t.runs, t.said]))"
    )
    found, why = _in_child(code)
    return (bool(found[0]), str(found[1])) if found else (False, why)


def _in_child(code: str, python: str | None = None) -> tuple[Any, str]:
    """Return what a Python process prints last, as JSON, or None and why there is nothing."""
    import json
    import subprocess
    import sys

    try:
        done = subprocess.run(
            [python or sys.executable, "-c", code], capture_output=True, text=True, timeout=TRY_S, check=False
        )
        return json.loads(done.stdout.splitlines()[-1]), ""
    except subprocess.TimeoutExpired:
        return None, f"no answer in {TRY_S} s"
    except OSError as error:
        return None, f"does not start: {error.strerror}"
    except (IndexError, ValueError):
        last = done.stderr.strip().splitlines()[-1:] or [""]
        return None, f"ends with status {done.returncode}{': ' if last[0] else ''}{last[0][:200]}"


def _devices() -> list[Finding]:
    import os
    import shutil
    import subprocess

    from mdcli.inference.devices import MIB, available_memory, cuda_gpus

    free = available_memory()
    said = "" if free is None else f", {free // MIB} MiB of memory free"
    found = [Finding("cpu", "ok", f"{os.cpu_count()} cores{said}")]
    gpus = cuda_gpus()
    found += [Finding(f"cuda:{gpu.index}", "ok", f"{gpu.name}, {gpu.memory_mib} MiB") for gpu in gpus]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        if not gpus:
            found.append(Finding("gpu", "not there", "no NVIDIA driver", f"install the NVIDIA driver, then {GPU}"))
        return found
    asked = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
        found += [Finding("NVIDIA driver", "ok", line.strip()) for line in lines[:1]]
    except (OSError, subprocess.SubprocessError) as error:
        found.append(Finding("NVIDIA driver", "broken", f"nvidia-smi failed: {type(error).__name__}"))
    return found


def _docker() -> list[Finding]:
    import shutil
    import subprocess

    tool = shutil.which("docker") or shutil.which("podman")
    if tool is None:
        return [Finding("docker", "not there", "no docker or podman", "apt-get install podman")]
    try:
        done = subprocess.run([tool, "info"], capture_output=True, text=True, timeout=15, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        return [Finding("docker", "not there", f"{tool}: {type(error).__name__}")]
    if done.returncode:
        return [Finding("docker", "not there", "the client is there, no engine answers", "systemctl start docker")]
    return [Finding("docker", "ok", tool)]


def _plugins() -> list[Finding]:
    from mdcli import registry
    from mdcli.errors import MdError

    found = []
    for plugin in registry.plugins():
        try:
            plugin.load()
            found.append(Finding(f"plugin {plugin.word}", "ok", f"{plugin.distribution} {plugin.version}"))
        except MdError as error:
            found.append(Finding(f"plugin {plugin.word}", "broken", error.message, error.hint or ""))
    return found
