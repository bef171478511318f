"""Make an ONNX network of half the size: float16 inside, float32 at its inputs and outputs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mdcli.errors import ConfigError, UnavailableError

KEPT = (
    "InstanceNormalization",
    "GroupNormalization",
    "LayerNormalization",
    "BatchNormalization",
    "MeanVarianceNormalization",
    "ReduceMean",
    "Softmax",
)
"""Operators that stay float32: sums over many voxels, where most of the error of float16 comes from."""
INSTALL_TOOLS = "pip install 'mdcli[tools]'"

_MAX_PROTOBUF = 2_000_000_000


@dataclass(frozen=True)
class Halved:
    """What became of a network: bytes before and after, and how many nodes compute in float16 and stay float32."""

    before: int
    after: int
    half: int
    kept: int


def to_half(network: Path, out: Path, keep: Sequence[str] = KEPT) -> Halved:
    """Write a network with float16 inside.

    Args:
        network: ONNX, float32.
        out: the file to write; weights lie in it.
        keep: operators that stay float32.

    Raises:
        ConfigError: `bad-network` where it is no ONNX, has no float32, or is over 2 GB even halved.
        UnavailableError: `no-engine`.

    Source: onnxruntime's `float16.convert_float_to_float16`. Weights that are under 5.96e-8 or over 65504 are set to these.
    """
    float16 = _converter()
    import onnx

    try:
        model = onnx.load(str(network))
    except Exception as error:
        # protobuf's own DecodeError is no public name of onnx.
        raise ConfigError(
            "bad-network", f"{network.name} does not load: {' '.join(str(error).split())[:200]}"
        ) from error
    before = model.ByteSize()
    blocked = [*float16.DEFAULT_OP_BLOCK_LIST, *keep]
    try:
        halved = float16.convert_float_to_float16(model, keep_io_types=True, op_block_list=blocked)
        if halved.ByteSize() > _MAX_PROTOBUF:
            raise ConfigError("bad-network", f"{network.name} has over {_MAX_PROTOBUF} bytes even in float16")
        onnx.save(halved, str(out))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ConfigError("bad-network", f"{network.name} can't be made float16: {str(error)[:200]}") from error
    kinds = [node.op_type in blocked for node in halved.graph.node if node.op_type not in ("Cast", "Constant")]
    return Halved(before, halved.ByteSize(), kinds.count(False), kinds.count(True))


def _converter() -> Any:
    """Return onnxruntime's converter."""
    path = list(sys.path)
    try:
        import onnx  # noqa: F401
        from onnxruntime.transformers import float16
    except ImportError as error:
        text = f"float16 needs onnx and onnxruntime: {error}"
        raise UnavailableError("no-engine", text, hint=INSTALL_TOOLS) from error
    finally:
        # The package puts its own folder on the path, whose modules have common names.
        sys.path[:] = path
    return float16
