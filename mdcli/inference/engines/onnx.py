"""ONNX networks by onnxruntime: on a CPU, an NVIDIA GPU (CUDA, TensorRT), or another provider that it has."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from mdcli.errors import ConfigError, MdError, UnavailableError
from mdcli.inference.devices import CPU, CUDA, TENSORRT, cuda_gpus, out_of_device_memory, split_device
from mdcli.inference.engines import Session, Tensor, misfit, version_of

INSTALL_CPU = "pip install 'mdcli[cpu]'"
INSTALL_GPU = "pip install 'mdcli[gpu]'"
INSTALL_TENSORRT = "pip install 'tensorrt-cu13>=10.9,<11'"

_CPU, _CUDA, _TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
_PROVIDERS = {CPU: _CPU, CUDA: _CUDA, TENSORRT: _TENSORRT}
# What carries a network's work, fused or not; a shape or a constant on the CPU costs nothing.
_HEAVY = re.compile(
    r"(Fused|Nhwc|QLinear)?(Conv|ConvTranspose|MatMul|Gemm|Resize|Upsample)|(Instance|Batch|Group|Layer)Normalization"
)
_NO_MEMORY = (
    "Failed to allocate memory",
    "is smaller than requested bytes",
    "CUDA failure 2",
    "out of memory",
    "OutOfMemory",
    "ALLOC_FAILED",
    "bad_alloc",
    "bad allocation",
)
_NO_OPERATOR = re.compile(
    r"No Op registered for (?P<op>\S+) with domain_version of (?P<opset>\d+)"
    r"|Could not find an implementation for (?P<op2>[^\s(]+)\((?P<opset2>\d+)\)"
)


class OnnxRuntime:
    """ONNX networks by onnxruntime, in float32 unless float16 is asked for.

    Options that it takes:

    - `deterministic`: fix what would else be chosen by timing.
    - `strict_device`: refuse to run on where convolutions or products of a network for a GPU are computed on the CPU.
    - `memory_mib`: the most of a GPU's memory that it may take.
    - `precision`: `float16`, on TensorRT only; else `float32`.
    - `cache`: a private folder, where TensorRT keeps the programs that it makes of a network; None: it makes them each time.
    - `model_sha256`: of the model, for the cache.
    - `no_tf32`: the caller has set NVIDIA_TF32_OVERRIDE=0 for this process, which TensorRT in float32 needs.
    """

    def identity(self, device: str) -> dict[str, str]:
        """Return what decides the numbers. See `Engine.identity`."""
        kind, index = split_device(device)
        gpu, cpu = version_of("onnxruntime-gpu"), version_of("onnxruntime")
        if kind in (CUDA, TENSORRT) and not gpu:
            raise UnavailableError("no-engine", "onnxruntime-gpu is not installed", hint=INSTALL_GPU)
        version = gpu if gpu and (kind != CPU or not cpu) else cpu or _other_build()
        if version is None:
            raise UnavailableError("no-engine", "onnxruntime is not installed", hint=INSTALL_CPU)
        said = {"engine": "onnxruntime", "version": version, "precision": "float32"}
        if kind == CPU:
            return {**said, "device": CPU}
        if kind not in (CUDA, TENSORRT):
            return {**said, "device": device}
        model = next((gpu.name for gpu in cuda_gpus() if gpu.index == index), "unknown")
        # The same card gives other numbers by TensorRT.
        return {**said, "device": model if kind == CUDA else f"{model}, TensorRT {_tensorrt_version()}"}

    def open(
        self, network: Path | str, *, device: str, threads: int, options: Mapping[str, Any] | None = None
    ) -> Session:
        """Open a network. See `Engine.open`."""
        network, options = Path(network), dict(options or {})
        identity = self.identity(device)
        kind, index = split_device(device)
        provider = _PROVIDERS.get(kind, kind)
        onnxruntime = _import_onnxruntime(kind)
        if provider not in onnxruntime.get_available_providers():
            hint = {CPU: INSTALL_CPU, CUDA: INSTALL_GPU, TENSORRT: INSTALL_GPU}.get(kind, "see md doctor")
            raise UnavailableError("no-device", f"this onnxruntime has no {provider}", hint=hint)
        precision = _precision(kind, options)
        said = _provider_options(device, kind, index, identity, options)
        settings = _session_options(onnxruntime, threads, deterministic=bool(options.get("deterministic")))
        folder = None
        if kind != CPU:
            folder = tempfile.TemporaryDirectory(prefix="md-onnxruntime-")
            settings.enable_profiling = True
            settings.profile_file_prefix = str(Path(folder.name) / "nodes")
        try:
            session = onnxruntime.InferenceSession(str(network), settings, providers=said)
        except Exception as error:
            # onnxruntime's own exception classes have no public base but Exception.
            raise _unreadable(error, network, identity["version"]) from error
        if session.get_providers()[0] != provider:
            # onnxruntime falls back to the CPU without a word where a provider's libraries don't load.
            message = f"{provider} did not load; onnxruntime would run on {session.get_providers()[0]}"
            hint = INSTALL_TENSORRT if kind == TENSORRT else "--device cpu, or see md doctor"
            raise UnavailableError("no-device", message, hint=hint)
        facts = {**identity, "precision": precision, "provider": provider}
        strict = device if options.get("strict_device") and kind != CPU else None
        return OnnxSession(session, facts, network.name, folder, strict)


def _other_build() -> str | None:
    """Return the version of a build of onnxruntime for other hardware, by the distributions that hold the module."""
    names = metadata.packages_distributions().get("onnxruntime", [])
    return next((version for name in names if (version := version_of(name))), None)


def _tensorrt_version() -> str:
    names = ("tensorrt-cu13", "tensorrt-cu12", "tensorrt")
    return next((version for name in names if (version := version_of(name))), "unknown")


def _import_onnxruntime(kind: str) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        hint = INSTALL_CPU if kind == CPU else INSTALL_GPU
        raise UnavailableError("no-engine", f"onnxruntime does not load: {error}", hint=hint) from error
    onnxruntime.set_default_logger_severity(4)
    # Its builds for Windows report to their maker.
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def _session_options(onnxruntime: Any, threads: int, *, deterministic: bool) -> Any:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    # Idle threads that spin take the cores from blending and from the stages beside this one in a pipe.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A plan of all memory that one run takes, held in one piece beside the arena: a third more memory and no time gained.
    settings.enable_mem_pattern = False
    settings.use_deterministic_compute = deterministic
    return settings


def _precision(kind: str, options: Mapping[str, Any]) -> str:
    precision = str(options.get("precision", "float32"))
    if precision == "float32" or (precision == "float16" and kind == TENSORRT):
        return precision
    text = f"onnxruntime has no {precision} of its own on {kind}"
    raise ConfigError("bad-precision", text, hint="md optimize-model makes a float16 network; or --device tensorrt")


def _provider_options(
    device: str, kind: str, index: int, identity: Mapping[str, str], options: Mapping[str, Any]
) -> list[tuple[str, dict[str, str]]]:
    """Return the providers with their options, the wanted one first."""
    if kind == CPU:
        return [(_CPU, {})]
    if kind not in (CUDA, TENSORRT):
        return [(kind, {"device_id": str(index)} if ":" in device else {})]
    # TF32 is onnxruntime's default on CUDA and keeps 10 bits of 23: float32 means float32.
    cuda = {"device_id": str(index), "use_tf32": "0"}
    memory = int(options.get("memory_mib", 0)) << 20
    if memory:
        cuda |= {"gpu_mem_limit": str(memory), "arena_extend_strategy": "kSameAsRequested"}
    if options.get("deterministic"):
        # The others are chosen by timing them.
        cuda["cudnn_conv_algo_search"] = "DEFAULT"
    if kind == CUDA:
        return [(_CUDA, cuda)]
    half = options.get("precision") == "float16"
    if not half and not options.get("no_tf32"):
        # TensorRT has no option of onnxruntime's for it.
        text = "TensorRT computes in TF32 unless NVIDIA_TF32_OVERRIDE=0 is set"
        raise UnavailableError("no-device", text, hint="export it, or --device cuda")
    tensorrt = {"device_id": str(index), "trt_fp16_enable": str(int(half)), "trt_engine_cache_enable": "0"}
    if memory:
        tensorrt["trt_max_workspace_size"] = str(memory)
    if options.get("cache"):
        folder = _engine_folder(Path(options["cache"]), options, identity)
        tensorrt |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": str(folder)}
    # What TensorRT has no operator for runs by CUDA.
    return [(_TENSORRT, tensorrt), (_CUDA, cuda)]


def _engine_folder(cache: Path, options: Mapping[str, Any], identity: Mapping[str, str]) -> Path:
    """Return a private folder for what TensorRT makes of one model, by one version, on one kind of device, in one precision.

    The shapes are in the names that onnxruntime gives the files in it. An engine of TensorRT is a program: a folder that others may
    write to is refused.
    """
    parts = [str(options.get("model_sha256", "")), *sorted(f"{name}={said}" for name, said in identity.items())]
    key = hashlib.sha256("\n".join([*parts, str(options.get("precision", "float32"))]).encode()).hexdigest()
    folder = cache / f"tensorrt-{key[:32]}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    mine = not hasattr(os, "getuid") or found.st_uid == os.getuid()
    if not mine or not stat.S_ISDIR(found.st_mode) or (hasattr(os, "getuid") and found.st_mode & 0o022):
        text = f"the folder of TensorRT's programs, {folder.name}, is not private"
        raise ConfigError("cache-not-private", text, hint="remove it; it is made again")
    return folder


def _unreadable(error: Exception, network: Path, version: str) -> MdError:
    text = _plain(error, network)
    if any(word in text for word in _NO_MEMORY):
        return out_of_device_memory(network.name, "its own weights", text)
    if found := _NO_OPERATOR.search(text):
        operator, opset = found["op"] or found["op2"], found["opset"] or found["opset2"]
        text = f"onnxruntime {version} has no operator {operator} (opset {opset}) for what it is used on"
        return ConfigError("bad-network", f"{network.name} does not load: {text}")
    return ConfigError("bad-network", f"{network.name} does not load: {text}")


def _plain(error: Exception, network: Path | None = None) -> str:
    text = str(error) if network is None else str(error).replace(str(network.parent) + "/", "")
    return " ".join(text.split())[:300]


@dataclass
class OnnxSession:
    """A network opened by onnxruntime.

    Attributes:
        session: onnxruntime's.
        identity: what decides the numbers, and the provider.
        name: the network's file.
        profile_folder: where the profile of the first run lies, which says what ran where; None: nothing is profiled.
        strict: the device whose work must not be done on the CPU; None: it may.
        nodes: how many nodes each provider ran.
        fallen_back: the heavy operators that ran on the CPU.
        going: the options of the runs that are going on.
    """

    session: Any
    identity: Mapping[str, str]
    name: str
    profile_folder: tempfile.TemporaryDirectory[str] | None = None
    strict: str | None = None
    nodes: dict[str, int] = field(default_factory=dict)
    fallen_back: str = ""
    going: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.inputs = tuple(_tensor(value) for value in self.session.get_inputs())
        self.outputs = tuple(_tensor(value) for value in self.session.get_outputs())
        self._first = threading.Lock()
        self._lock = threading.Lock()

    def run(self, feeds: Mapping[str, NDArray[Any]], out: Mapping[str, NDArray[Any] | None]) -> dict[str, NDArray[Any]]:
        """Run once. See `Session.run`.

        Raises:
            OutOfDeviceMemory: where a smaller batch may fit.
            UnavailableError: `node-on-cpu` where the CPU did the work of a device that alone was asked for.
        """
        if self.profile_folder is not None:
            # The first run alone is profiled, so that no other falls into its profile.
            with self._first:
                found = self._run(feeds, out)
                if self.profile_folder is not None:
                    self._look_at_nodes()
        else:
            found = self._run(feeds, out)
        if self.strict and self.fallen_back:
            text = f"the CPU did work that {self.strict} was asked for: {self.fallen_back}"
            raise UnavailableError("node-on-cpu", text, hint="without --strict-device that is a warning")
        return found

    def _run(
        self, feeds: Mapping[str, NDArray[Any]], out: Mapping[str, NDArray[Any] | None]
    ) -> dict[str, NDArray[Any]]:
        # Bound to our memory: run() by names would copy the output, and ask the system for fresh pages each time.
        binding = self.session.io_binding()
        try:
            for name, values in feeds.items():
                binding.bind_cpu_input(name, values)
            for name, array in out.items():
                if array is None:
                    binding.bind_output(name, "cpu")
                else:
                    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
            with self._going() as options:
                self.session.run_with_iobinding(binding, options)
        except MdError:
            raise
        except Exception as error:
            raise self._explain(error, feeds, out) from error
        found = {name: array for name, array in out.items() if array is not None}
        if len(found) < len(out):
            made = dict(zip(out, binding.get_outputs(), strict=True))
            found |= {name: made[name].numpy() for name in out if name not in found}
        return found

    @contextmanager
    def _going(self) -> Iterator[Any]:
        """Give the options of one run, by which `stop` ends it.

        Raises:
            UnavailableError: `stopped`.
        """
        import onnxruntime

        options = onnxruntime.RunOptions()
        with self._lock:
            self.going.append(options)
        try:
            yield options
        except Exception as error:
            if options.terminate:
                raise UnavailableError("stopped", f"the run of {self.name} was stopped") from error
            raise
        finally:
            with self._lock:
                self.going.remove(options)

    def stop(self) -> None:
        """End the runs that are going on, between two nodes. See `Session.stop`."""
        with self._lock:
            for options in self.going:
                options.terminate = True

    def _explain(
        self, error: Exception, feeds: Mapping[str, NDArray[Any]], out: Mapping[str, NDArray[Any] | None]
    ) -> MdError:
        """Return why a run failed: no memory, another shape than the card says, or it does not run at all."""
        of = ", ".join(str(values.shape) for values in feeds.values())
        if any(word in str(error) for word in _NO_MEMORY):
            return out_of_device_memory(self.name, of, _plain(error))
        try:
            made = dict(zip(out, self.session.run(list(out), dict(feeds)), strict=True))
        except Exception as again:
            return ConfigError("network-failed", f"{self.name} failed on {of}: {_plain(again)}")
        for name, array in out.items():
            if array is not None and made[name].shape != array.shape:
                text = f"{self.name} makes {made[name].shape} of {of}, where the card makes it {array.shape}"
                return misfit(text)
        return ConfigError("network-failed", f"{self.name} failed on {of}: {_plain(error)}")

    def facts(self) -> dict[str, Any]:
        """Return what really runs; after the first run on a GPU also `nodes`, by provider, and `fallen_back`."""
        nodes = {"nodes": self.nodes} if self.nodes else {}
        return {**self.identity, **nodes, **({"fallen_back": self.fallen_back} if self.fallen_back else {})}

    def _look_at_nodes(self) -> None:
        assert self.profile_folder is not None
        profile = Path(self.session.end_profiling()).read_text(encoding="utf-8")
        self.profile_folder.cleanup()
        self.profile_folder = None
        self.nodes, self.fallen_back = nodes_by_provider(profile), heavy_on_cpu(profile)


_KINDS = {
    "float": "float32",
    "double": "float64",
    "bool": "bool",
    **{f"{sign}int{bits}": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "float16": "float16",
}


def _tensor(value: Any) -> Tensor:
    """Return an onnxruntime NodeArg; its sizes are numbers, names, or None."""
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    return Tensor(value.name, shape, _KINDS.get(kind, value.type))


def nodes_by_provider(profile: str) -> dict[str, int]:
    """Return how many nodes each provider ran, from onnxruntime's profile of a run (JSON).

    Single nodes fall back to the CPU inside a session without a word; this shows them.
    """
    return dict(sorted(Counter(provider for _, provider, _ in _ran(profile)).items()))


def heavy_on_cpu(profile: str) -> str:
    """Return the operators that carry a network's work and ran on the CPU, such as `2 Conv, 1 Resize`; empty: none did."""
    found = Counter(op for _, provider, op in _ran(profile) if provider == _CPU and _HEAVY.fullmatch(op))
    return ", ".join(f"{count} {op}" for op, count in sorted(found.items()))


def _ran(profile: str) -> Iterator[tuple[str, str, str]]:
    """Give (node, provider, operator) of each node that ran, once."""
    yield from {
        (event["name"], event["args"]["provider"], event["args"].get("op_name", ""))
        for event in json.loads(profile)
        if event.get("cat") == "Node" and event.get("args", {}).get("provider")
    }
