"""Try whether an engine really runs on a device: what is listed may not start, and what starts may leave the work to the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mdcli.errors import MdError


@dataclass(frozen=True)
class Trial:
    """How a try went.

    Attributes:
        runs: whether the device did the work.
        said: what ran, or why it did not.
    """

    runs: bool
    said: str


def try_engine(engine: str, device: str, network: Path) -> Trial:
    """Run a network once, on zeros. A library that does not fit its driver may crash or hang: call it in a process of its own.

    Args:
        engine: its name.
        device: `cpu`, `cuda:N`, `tensorrt:N` or a provider.
        network: an ONNX file with one input of float32; open sizes are taken as 8, the batch as 1.
    """
    import numpy as np

    from mdcli.inference.engines import find_engine

    try:
        # Precision does not matter here, and TensorRT asks for less in float16.
        options = {"precision": "float16"} if device.startswith("tensorrt") else {}
        session = find_engine(engine).open(network, device=device, threads=1, options=options)
        (given,) = session.inputs
        shape = [8 if size is None else size for size in given.shape[1:]]
        session.run({given.name: np.zeros((1, *shape), np.float32)}, {session.outputs[0].name: None})
    except MdError as error:
        return Trial(False, error.message)
    facts = session.facts()
    if facts.get("fallen_back"):
        return Trial(False, f"starts, and leaves the work to the CPU: {facts['fallen_back']}")
    return Trial(True, f"runs on {facts['device']}")
