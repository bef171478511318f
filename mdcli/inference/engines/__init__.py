"""Run a network: a small contract that every engine keeps, and where an engine is found by its name.

An engine of our own is a module here; another one is a plugin: an entry point of the group `mdcli.engines` whose object is an
`Engine`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import ConfigError, UsageError

Floats = NDArray[np.float32]

GROUP = "mdcli.engines"
DEFAULT_ENGINE = "onnxruntime"
OWN_ENGINES = (DEFAULT_ENGINE, "openvino", "kserve")


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

    def run(self, feeds: Mapping[str, NDArray[Any]], out: Mapping[str, NDArray[Any] | None]) -> dict[str, NDArray[Any]]:
        """Run once.

        Args:
            feeds: the inputs by name, contiguous, the batch first.
            out: the outputs wanted, by name: an array (contiguous) to be filled, or None where the engine makes one.

        Returns:
            The outputs wanted; those given are the arrays that were given.

        Raises:
            ConfigError: `network-does-not-fit` where the network makes an array of another shape than the one given;
                `network-failed`.
            UnavailableError: `no-server`, `no-device` where what it runs on went away.
        """
        ...

    def facts(self) -> dict[str, Any]:
        """Return what really runs: engine, version, precision, provider, device."""
        ...

    def stop(self) -> None:
        """End the runs that are going on, as soon as can be; from another thread. What they say is not wanted any more."""
        ...


class Spread:
    """One network on several devices: each run goes to the next of them."""

    def __init__(self, sessions: tuple[Session, ...]) -> None:
        self._sessions = sessions
        self._next = itertools.cycle(sessions)
        self.inputs, self.outputs = sessions[0].inputs, sessions[0].outputs

    def run(self, feeds: Mapping[str, NDArray[Any]], out: Mapping[str, NDArray[Any] | None]) -> dict[str, NDArray[Any]]:
        """Run once, on the next device. See `Session.run`."""
        return next(self._next).run(feeds, out)

    def facts(self) -> dict[str, Any]:
        """Return what really runs, with all devices."""
        facts = [session.facts() for session in self._sessions]
        fallen = [str(fact["fallen_back"]) for fact in facts if fact.get("fallen_back")]
        nodes: Counter[str] = Counter()
        for fact in facts:
            nodes.update(fact.get("nodes") or {})
        more = {"fallen_back": "; ".join(fallen)} if fallen else {}
        return {
            **facts[0],
            "device": ", ".join(str(fact.get("device")) for fact in facts),
            **({"nodes": dict(nodes)} if nodes else {}),
            **more,
        }

    def stop(self) -> None:
        """End what is going on, on every device. See `Session.stop`."""
        for session in self._sessions:
            session.stop()


class Engine(Protocol):
    """Opens networks."""

    def identity(self, device: str) -> dict[str, str]:
        """Return what decides the numbers beside the network: engine, version, precision, device. Imports nothing heavy.

        Raises:
            UnavailableError: `no-engine` with the line that installs it.
        """
        ...

    def open(
        self, network: Path | str, *, device: str, threads: int, options: Mapping[str, Any] | None = None
    ) -> Session:
        """Open a network.

        Args:
            network: its file, or the address of a server's model.
            device: `cpu`, `cuda:N` or a word of the engine's own.
            threads: cores that one run may use.
            options: of the engine's own; those that it does not know are not its.

        Raises:
            ConfigError: `bad-network`.
            UnavailableError: `no-engine`, `no-device`, `no-server`.
        """
        ...


def find_engine(name: str) -> Engine:
    """Return an engine by name: our own, or a plugin's.

    Raises:
        UsageError: `no-such-engine`.
        ConfigError: `broken-plugin`, naming its distribution.
    """
    if name in OWN_ENGINES:
        return _own(name)
    point = next(iter(metadata.entry_points(group=GROUP, name=name)), None)
    if point is None:
        known = [*OWN_ENGINES, *sorted(point.name for point in metadata.entry_points(group=GROUP))]
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


def _own(name: str) -> Engine:
    if name == "openvino":
        from mdcli.inference.engines.openvino import OpenVino

        return OpenVino()
    if name == "kserve":
        from mdcli.inference.engines.kserve import KServe

        return KServe()
    from mdcli.inference.engines.onnx import OnnxRuntime

    return OnnxRuntime()


def version_of(distribution: str) -> str | None:
    """Return the version of an installed distribution, None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def misfit(message: str) -> ConfigError:
    """Return the error for a network that is not what its card says."""
    return ConfigError("network-does-not-fit", message, hint="the card and the network must say the same")
