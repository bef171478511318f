"""Run a network: a small contract that every engine keeps, and the one for ONNX by onnxruntime.

Another engine is a plugin: an entry point of the group `mdcli.engines` whose object is an `Engine`.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import ConfigError, UnavailableError, UsageError

Floats = NDArray[np.float32]

GROUP = "mdcli.engines"
DEFAULT_ENGINE = "onnxruntime"
INSTALL_CPU = "pip install 'mdcli[cpu]'"
INSTALL_GPU = "pip install 'mdcli[gpu]'"


@dataclass(frozen=True)
class Tensor:
    """An input or output of a network: name, sizes (None where any will do), number type (`float32`)."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str


class Session(Protocol):
    """A network, ready to run. `run` may be called from several threads at once."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def run(self, batch: Floats, input_name: str, output_name: str, out: Floats) -> None:
        """Write what the network makes of a batch (N, C, and three axes), contiguous, into `out`, contiguous.

        Raises:
            ConfigError: `network-does-not-fit` where it makes an array of another shape; `network-failed`.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Return what really runs: engine, version, precision, provider, device."""
        ...


class Engine(Protocol):
    """Opens networks."""

    def identity(self, device: str) -> dict[str, str]:
        """Return what decides the numbers beside the network: engine, version, precision, device. Imports nothing heavy.

        Raises:
            UnavailableError: `no-engine` with the line that installs it.
        """
        ...

    def open(self, network: Path, *, device: str, threads: int) -> Session:
        """Open a network.

        Args:
            network: its file.
            device: `cpu`, `cuda:N` or a word of the engine's own.
            threads: cores that one run may use.

        Raises:
            ConfigError: `bad-network`.
            UnavailableError: `no-engine`, `no-device`.
        """
        ...


def find_engine(name: str) -> Engine:
    """Return an engine by name: our own, or a plugin's.

    Raises:
        UsageError: `no-such-engine`.
        ConfigError: `broken-plugin`, naming its distribution.
    """
    if name == DEFAULT_ENGINE:
        return OnnxRuntime()
    point = next(iter(metadata.entry_points(group=GROUP, name=name)), None)
    if point is None:
        known = [DEFAULT_ENGINE, *sorted(point.name for point in metadata.entry_points(group=GROUP))]
        raise UsageError("no-such-engine", f"there is no engine {name!r}", hint=f"there is {', '.join(known)}")
    try:
        engine: Engine = point.load()
        assert callable(engine.open), f"{point.value} has no open()"
        assert callable(engine.identity), f"{point.value} has no identity()"
    except Exception as error:
        distribution = f"{point.dist.name} {point.dist.version}" if point.dist else "?"
        message = f"engine {name} of {distribution} does not load: {type(error).__name__}: {error}"
        raise ConfigError("broken-plugin", message) from error
    return engine


def check_device(device: str) -> str:
    """Return `cpu` or `cuda:N` for what `--device` says; `auto` is the first GPU where onnxruntime-gpu and a GPU are there.

    Raises:
        UsageError: `bad-device`.
    """
    if device == "auto":
        return "cuda:0" if _gpu_model(0) and _version("onnxruntime-gpu") else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d{1,3})?", device):
        raise UsageError("bad-device", f"{device!r} is no device", hint="cpu, cuda, cuda:N or auto")
    return "cuda:0" if device == "cuda" else device


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _gpu_model(index: int) -> str | None:
    """Return the model of an NVIDIA GPU, as the driver names it, without starting a process or a library."""
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    if index >= len(cards):
        return None
    found = re.search(r"Model:\s*(.+)", cards[index].read_text(errors="replace"))
    return found.group(1).strip() if found else "unknown"


class OnnxRuntime:
    """ONNX networks on a CPU or an NVIDIA GPU, in float32."""

    def identity(self, device: str) -> dict[str, str]:
        """Return what decides the numbers. See `Engine.identity`."""
        gpu, cpu = _version("onnxruntime-gpu"), _version("onnxruntime")
        if device != "cpu" and not gpu:
            raise UnavailableError("no-engine", "onnxruntime-gpu is not installed", hint=INSTALL_GPU)
        if not gpu and not cpu:
            raise UnavailableError("no-engine", "onnxruntime is not installed", hint=INSTALL_CPU)
        model = "cpu" if device == "cpu" else (_gpu_model(int(device.partition(":")[2])) or "unknown")
        version = gpu if gpu and (device != "cpu" or not cpu) else cpu
        return {"engine": "onnxruntime", "version": str(version), "precision": "float32", "device": model}

    def open(self, network: Path, *, device: str, threads: int) -> Session:
        """Open a network. See `Engine.open`."""
        identity = self.identity(device)
        try:
            import onnxruntime
        except ImportError as error:
            hint = INSTALL_CPU if device == "cpu" else INSTALL_GPU
            raise UnavailableError("no-engine", f"onnxruntime does not load: {error}", hint=hint) from error
        onnxruntime.set_default_logger_severity(4)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Idle threads that spin take the cores from blending and from the stages beside this one in a pipe.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        provider = "CPUExecutionProvider" if device == "cpu" else "CUDAExecutionProvider"
        # TF32 is onnxruntime's default on CUDA and keeps 10 bits of 23: float32 means float32.
        settings = {} if device == "cpu" else {"device_id": device.partition(":")[2], "use_tf32": "0"}
        folder = None
        if device != "cpu":
            if provider not in onnxruntime.get_available_providers():
                raise UnavailableError("no-device", "this onnxruntime has no CUDA", hint=INSTALL_GPU)
            folder = tempfile.TemporaryDirectory(prefix="md-onnxruntime-")
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder.name) / "nodes")
        try:
            session = onnxruntime.InferenceSession(str(network), options, providers=[(provider, settings)])
        except Exception as error:
            # onnxruntime's own exception classes have no public base but Exception.
            raise ConfigError("bad-network", f"{network.name} does not load: {_message(error, network)}") from error
        if session.get_providers()[0] != provider:
            # onnxruntime falls back to the CPU without a word where CUDA's libraries don't load.
            message = f"{provider} did not load; onnxruntime would run on {session.get_providers()[0]}"
            raise UnavailableError("no-device", message, hint="--device cpu, or see md doctor")
        return OnnxSession(session, {**identity, "provider": provider}, network.name, folder)


def misfit(message: str) -> ConfigError:
    """Return the error for a network that is not what its card says."""
    return ConfigError("network-does-not-fit", message, hint="the card and the network must say the same")


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

    def run(self, batch: Floats, input_name: str, output_name: str, out: Floats) -> None:
        """Write what the network makes of a batch into `out`. See `Session.run`."""
        # Bound to our memory: run() by names would copy the output, and ask the system for fresh pages each time.
        binding = self.session.io_binding()
        binding.bind_cpu_input(input_name, batch)
        binding.bind_output(output_name, "cpu", 0, np.float32, out.shape, out.ctypes.data)
        try:
            self.session.run_with_iobinding(binding)
        except Exception as error:
            raise self._explain(error, batch, input_name, output_name, out) from error
        if self.profile_folder is not None:
            self._count_nodes()

    def _explain(self, error: Exception, batch: Floats, input_name: str, output_name: str, out: Floats) -> ConfigError:
        """Return why a run failed: the network makes another shape than the card says, or it does not run at all."""
        try:
            (output,) = self.session.run([output_name], {input_name: batch})
        except Exception as again:
            text = " ".join(str(again).split())[:300]
            return ConfigError("network-failed", f"{self.name} failed on {batch.shape}: {text}")
        if output.shape != out.shape:
            return misfit(f"{self.name} makes {output.shape} of {batch.shape}, where the card makes it {out.shape}")
        return ConfigError(
            "network-failed", f"{self.name} failed on {batch.shape}: {' '.join(str(error).split())[:300]}"
        )

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
