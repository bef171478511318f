"""ONNX networks by OpenVINO, on the CPU, in float32."""

from __future__ import annotations

import re
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import ConfigError, MdError, UnavailableError
from mdcli.inference.devices import CPU, out_of_device_memory
from mdcli.inference.engines import Session, Tensor, misfit, version_of

INSTALL = "pip install 'mdcli[openvino]'"

Shapes = tuple[tuple[str, tuple[int, ...]], ...]

# Compiled for the shapes that are run: those of a whole batch and of the last, smaller one.
_KEPT_SHAPES = 2
_SOURCE_PLACES = re.compile(
    r"(Exception from|Check '.*' failed at|Exception at) \S+:\d+:?|FrontEnd API failed with \w+:?"
)
_NO_MEMORY = ("bad_alloc", "could not allocate", "Can't allocate", "out of memory", "CL_OUT_OF")


class OpenVino:
    """ONNX networks on a CPU, in float32."""

    def identity(self, device: str) -> dict[str, str]:
        """Return what decides the numbers. See `Engine.identity`."""
        version = version_of("openvino")
        if version is None:
            raise UnavailableError("no-engine", "openvino is not installed", hint=INSTALL)
        if device != CPU:
            raise UnavailableError(
                "no-device", f"the engine openvino runs on cpu only, not on {device}", hint="--device cpu"
            )
        return {"engine": "openvino", "version": version, "precision": "float32", "device": CPU}

    def open(
        self, network: Path | str, *, device: str, threads: int, options: Mapping[str, Any] | None = None
    ) -> Session:
        """Open a network. See `Engine.open`.

        Of the options it takes `workers`: how many threads call `run` at a time. They share one stream of `threads` x `workers`
        cores, one after another: for a U-Net of 96^3 that is as fast as a stream for each, and needs two thirds of the memory.
        """
        network, identity = Path(network), self.identity(device)
        openvino = _import_openvino()
        cores = threads * int((options or {}).get("workers", 1))
        settings = {
            # On CPUs that have it, OpenVINO takes bfloat16 by itself: float32 means float32.
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": str(cores),
            "NUM_STREAMS": "1",
            # Two processes side by side would be pinned to the same cores.
            "ENABLE_CPU_PINNING": "NO",
        }
        return OpenVinoSession(openvino, network, settings, identity)


def _import_openvino() -> Any:
    """Import OpenVINO without its telemetry.

    `import openvino` sends an event to its maker's statistics server and writes an id into the home folder, without being asked to.
    Where its package for that does not load, OpenVINO takes a stub that does nothing. Source: openvino.tools.ovc.telemetry_utils.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
        import openvino.frontend
    except ImportError as error:
        raise UnavailableError("no-engine", f"openvino does not load: {error}", hint=INSTALL) from error
    return openvino


class OpenVinoSession:
    """A network opened by OpenVINO; it is compiled for each shape of its inputs that is run, and forgets all but the latest."""

    def __init__(self, openvino: Any, network: Path, settings: Mapping[str, str], identity: Mapping[str, str]) -> None:
        self._openvino, self._network, self._settings, self._identity = openvino, network, dict(settings), identity
        self._core = openvino.Core()
        self._lock = threading.Lock()
        self._going: list[Any] = []
        self._compiled: OrderedDict[Shapes, Any] = OrderedDict()
        self._precision = ""
        model = self._read()
        self.inputs = tuple(_tensor(each) for each in model.inputs)
        self.outputs = tuple(_tensor(each) for each in model.outputs)
        if not self.outputs:
            raise ConfigError("bad-network", f"{network.name} does not load: it has no outputs")
        known = {tensor.name: _batch_of_one(tensor.shape) for tensor in self.inputs}
        shapes = {name: shape for name, shape in known.items() if shape is not None}
        if len(shapes) == len(known):
            # Compiling goes on beside the checks of the volume, where the batch alone is open: it will be one.
            try:
                self._for_shapes(shapes, model)
            except RuntimeError as error:
                raise self._bad(error) from error

    def run(self, feeds: Mapping[str, NDArray[Any]], out: Mapping[str, NDArray[Any] | None]) -> dict[str, NDArray[Any]]:
        """Run once. See `Session.run`."""
        of = ", ".join(str(values.shape) for values in feeds.values())
        try:
            compiled = self._for_shapes({name: values.shape for name, values in feeds.items()})
            request = compiled.create_infer_request()
            for name, values in feeds.items():
                request.set_tensor(name, self._shared(values))
            for name, array in out.items():
                if array is not None:
                    self._check_output(compiled.output(name), array, of)
                    # It writes into our memory, and copies nothing.
                    request.set_tensor(name, self._shared(array))
            self._going.append(request)
            try:
                request.start_async()
                request.wait()
            finally:
                self._going.remove(request)
            return {name: self._given(request, name, array, of) for name, array in out.items()}
        except MdError:
            raise
        except (RuntimeError, MemoryError, TypeError, ValueError) as error:
            # OpenVINO's own exceptions are RuntimeErrors.
            text = _plain(error, self._network)
            if isinstance(error, MemoryError) or any(word in text for word in _NO_MEMORY):
                raise out_of_device_memory(self._network.name, of, text) from error
            raise ConfigError("network-failed", f"{self._network.name} failed on {of}: {text}") from error

    def stop(self) -> None:
        """End the runs that are going on. See `Session.stop`."""
        for request in tuple(self._going):
            request.cancel()

    def facts(self) -> dict[str, Any]:
        """Return what really runs."""
        facts = {**self._identity, "provider": "CPU"}
        return {**facts, "precision": self._precision} if self._precision else facts

    def _read(self) -> Any:
        # By its frontend for ONNX, and not by read_model, which tries every format that it knows on the file.
        try:
            frontend = self._openvino.frontend.FrontEndManager().load_by_framework("onnx")
            return frontend.convert(frontend.load(str(self._network)))
        except Exception as error:
            # The frontends' own exception classes have no public base but Exception.
            raise self._bad(error) from error

    def _bad(self, error: Exception) -> ConfigError:
        return ConfigError("bad-network", f"{self._network.name} does not load: {_plain(error, self._network)}")

    def _for_shapes(self, shapes: Mapping[str, tuple[int, ...]], model: Any = None) -> Any:
        """Return the network compiled for the shapes of its inputs. Fixed shapes run faster and in less memory than open ones."""
        key = tuple(sorted(shapes.items()))
        with self._lock:
            if key not in self._compiled:
                while len(self._compiled) >= _KEPT_SHAPES:
                    self._compiled.popitem(last=False)
                model = model or self._read()
                model.reshape({name: list(shape) for name, shape in shapes.items()})
                self._compiled[key] = compiled = self._core.compile_model(model, "CPU", self._settings)
                self._precision = _precision(compiled)
            self._compiled.move_to_end(key)
            return self._compiled[key]

    def _shared(self, values: NDArray[Any]) -> Any:
        return self._openvino.Tensor(values, shared_memory=True)

    def _check_output(self, output: Any, array: NDArray[Any], of: str) -> None:
        made = output.partial_shape
        if made.is_static and tuple(made.to_shape()) != array.shape:
            raise self._misfit(tuple(made.to_shape()), array, of)

    def _given(self, request: Any, name: str, array: NDArray[Any] | None, of: str) -> NDArray[Any]:
        made: NDArray[Any] = request.get_tensor(name).data
        if array is None:
            # The request owns this memory.
            return made.copy()
        if made.shape != array.shape:
            raise self._misfit(made.shape, array, of)
        if not np.may_share_memory(made, array):
            array[...] = made
        return array

    def _misfit(self, made: tuple[int, ...], array: NDArray[Any], of: str) -> ConfigError:
        return misfit(f"{self._network.name} makes {made} of {of}, where the card makes it {array.shape}")


def _tensor(port: Any) -> Tensor:
    """Return an input or output of a model."""
    shape = tuple(None if size.is_dynamic else size.get_length() for size in port.partial_shape)
    return Tensor(port.any_name, shape, str(np.dtype(port.element_type.to_dtype())))


def _batch_of_one(shape: tuple[int | None, ...]) -> tuple[int, ...] | None:
    """Return a shape with a batch of one, None where more than the batch is open."""
    rest = tuple(size for size in shape[1:] if size is not None)
    return (shape[0] or 1, *rest) if shape and len(rest) == len(shape) - 1 and 0 not in rest else None


def _precision(compiled: Any) -> str:
    return str(np.dtype(compiled.get_property("INFERENCE_PRECISION_HINT").to_dtype()))


def _plain(error: Exception, network: Path) -> str:
    """Return what OpenVINO says, without the places in its sources and our folder."""
    text = _SOURCE_PLACES.sub(" ", str(error)).replace(str(network.parent) + "/", "")
    return " ".join(text.split())[:300]
