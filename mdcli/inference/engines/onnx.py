"""ONNX networks by onnxruntime, on a CPU or an NVIDIA GPU."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import ConfigError, UnavailableError
from mdcli.inference.engines import Session, Tensor, gpu_model, misfit, version_of

INSTALL_CPU = "pip install 'mdcli[cpu]'"
INSTALL_GPU = "pip install 'mdcli[gpu]'"


class OnnxRuntime:
    """ONNX networks on a CPU or an NVIDIA GPU, in float32."""

    def identity(self, device: str) -> dict[str, str]:
        """Return what decides the numbers. See `Engine.identity`."""
        gpu, cpu = version_of("onnxruntime-gpu"), version_of("onnxruntime")
        if device != "cpu" and not gpu:
            raise UnavailableError("no-engine", "onnxruntime-gpu is not installed", hint=INSTALL_GPU)
        if not gpu and not cpu:
            raise UnavailableError("no-engine", "onnxruntime is not installed", hint=INSTALL_CPU)
        model = "cpu" if device == "cpu" else (gpu_model(int(device.partition(":")[2])) or "unknown")
        version = gpu if gpu and (device != "cpu" or not cpu) else cpu
        return {"engine": "onnxruntime", "version": str(version), "precision": "float32", "device": model}

    def open(
        self, network: Path | str, *, device: str, threads: int, options: Mapping[str, Any] | None = None
    ) -> Session:
        """Open a network. See `Engine.open`."""
        network = Path(network)
        identity = self.identity(device)
        try:
            import onnxruntime
        except ImportError as error:
            hint = INSTALL_CPU if device == "cpu" else INSTALL_GPU
            raise UnavailableError("no-engine", f"onnxruntime does not load: {error}", hint=hint) from error
        onnxruntime.set_default_logger_severity(4)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        # Idle threads that spin take the cores from blending and from the stages beside this one in a pipe.
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
        # TF32 is onnxruntime's default on CUDA and keeps 10 bits of 23: float32 means float32.
        of_provider = {} if device == "cpu" else {"device_id": device.partition(":")[2], "use_tf32": "0"}
        folder = None
        if device != "cpu":
            if provider not in onnxruntime.get_available_providers():
                raise UnavailableError("no-device", "this onnxruntime has no CUDA", hint=INSTALL_GPU)
            folder = tempfile.TemporaryDirectory(prefix="md-onnxruntime-")
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder.name) / "nodes")
        try:
            session = onnxruntime.InferenceSession(str(network), settings, providers=[(provider, of_provider)])
        except Exception as error:
            # onnxruntime's own exception classes have no public base but Exception.
            raise ConfigError("bad-network", f"{network.name} does not load: {_message(error, network)}") from error
        if session.get_providers()[0] != provider:
            # onnxruntime falls back to the CPU without a word where CUDA's libraries don't load.
            message = f"{provider} did not load; onnxruntime would run on {session.get_providers()[0]}"
            raise UnavailableError("no-device", message, hint="--device cpu, or see md doctor")
        return OnnxSession(session, {**identity, "provider": provider}, network.name, folder)


def _message(error: Exception, network: Path) -> str:
    text = str(error).replace(str(network.parent) + "/", "")
    return " ".join(text.split())[:300]


@dataclass
class OnnxSession:
    """A network opened by onnxruntime."""

    session: Any
    identity: Mapping[str, str]
    name: str
    profile_folder: tempfile.TemporaryDirectory[str] | None = None
    nodes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.inputs = tuple(_tensor(value) for value in self.session.get_inputs())
        self.outputs = tuple(_tensor(value) for value in self.session.get_outputs())

    def run(
        self, feeds: Mapping[str, NDArray[Any]], out: Mapping[str, NDArray[Any] | None]
    ) -> dict[str, NDArray[Any]]:
        """Run once. See `Session.run`."""
        # Bound to our memory: run() by names would copy the output, and ask the system for fresh pages each time.
        binding = self.session.io_binding()
        for name, values in feeds.items():
            binding.bind_cpu_input(name, values)
        for name, array in out.items():
            if array is None:
                binding.bind_output(name, "cpu")
            else:
                binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:
            raise self._explain(error, feeds, out) from error
        found = {name: array for name, array in out.items() if array is not None}
        if len(found) < len(out):
            made = dict(zip(out, binding.get_outputs(), strict=True))
            found |= {name: made[name].numpy() for name in out if name not in found}
        if self.profile_folder is not None:
            self._count_nodes()
        return found

    def _explain(
        self, error: Exception, feeds: Mapping[str, NDArray[Any]], out: Mapping[str, NDArray[Any] | None]
    ) -> ConfigError:
        """Return why a run failed: the network makes another shape than the card says, or it does not run at all."""
        of = ", ".join(str(values.shape) for values in feeds.values())
        try:
            made = dict(zip(out, self.session.run(list(out), dict(feeds)), strict=True))
        except Exception as again:
            text = " ".join(str(again).split())[:300]
            return ConfigError("network-failed", f"{self.name} failed on {of}: {text}")
        for name, array in out.items():
            if array is not None and made[name].shape != array.shape:
                text = f"{self.name} makes {made[name].shape} of {of}, where the card makes it {array.shape}"
                return misfit(text)
        return ConfigError("network-failed", f"{self.name} failed on {of}: {' '.join(str(error).split())[:300]}")

    def facts(self) -> dict[str, Any]:
        """Return what really runs; after the first run on a GPU also `nodes`, by provider."""
        return {**self.identity, **({"nodes": self.nodes} if self.nodes else {})}

    def _count_nodes(self) -> None:
        assert self.profile_folder is not None
        profile = Path(self.session.end_profiling())
        self.nodes = nodes_by_provider(profile.read_text(encoding="utf-8"))
        self.profile_folder.cleanup()
        self.profile_folder = None


def _tensor(value: Any) -> Tensor:
    """Return an onnxruntime NodeArg; its sizes are numbers, names, or None."""
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    words = {"tensor(float)": "float32", "tensor(double)": "float64"}
    return Tensor(value.name, shape, words.get(value.type, value.type))


def nodes_by_provider(profile: str) -> dict[str, int]:
    """Return how many nodes each provider ran, from onnxruntime's profile of a run (JSON).

    Single nodes fall back to the CPU inside a session without a word; this shows them.
    """
    ran = {
        (event["name"], event["args"]["provider"])
        for event in json.loads(profile)
        if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    }
    return dict(sorted(Counter(provider for _, provider in ran).items()))
