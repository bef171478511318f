"""Convert a TensorFlow network to ONNX, in a process of its own: started by its path, it needs TensorFlow and tf2onnx, and no md.

    python child.py request.json

    {"kind": "saved-model" | "frozen-graph" | "keras", "source": a file or folder, "inputs", "outputs": see `Port`,
     "isolation": the file whose `isolate` limits this process, "memory"}

It keeps to the protocol of `mdcli.inference.isolation`: it writes `answer.json` beside the request, and there `network.onnx` and
`reference.npz`, a seeded input and what TensorFlow makes of it, for the parent to compare with.

The network may be hostile: before any of it is read, this process gives up the network and takes its limits, and the parent takes
what is written as data only.
"""

# mypy: disable-error-code="import-not-found,import-untyped,unused-ignore,no-any-return,arg-type"
from __future__ import annotations

import json
import os
import re
import runpy
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before TensorFlow loads: no GPU, no log. Only with oneDNN can a CPU run networks that have C first inside, as those of GPUs do.
os.environ.update(CUDA_VISIBLE_DEVICES="-1", TF_CPP_MIN_LOG_LEVEL="3", TF_ENABLE_ONEDNN_OPTS="1")

OPSET = 17
SEED = 20240229
BATCH = 2
SIZES_WHERE_FREE = (32, 64, 96)
"""Sizes of the seeded input along axes of any size: unlike each other, so that exchanged axes show."""

# Operators that call Python or touch files. No network needs one to turn an image into scores.
# Source: TensorFlow's operator registry (tensorflow/core/ops/{script,io,data_flow,lookup}_ops.cc).
REFUSED = frozenset(
    {
        *("PyFunc", "PyFuncStateless", "EagerPyFunc", "Abort", "DebugIdentity", "DebugIdentityV2", "DebugIdentityV3"),
        *("ReadFile", "WriteFile", "MatchingFiles", "PrintV2", "Save", "SaveSlices", "LMDBReader"),
        *(
            "WholeFileReader",
            "WholeFileReaderV2",
            "TextLineReader",
            "TextLineReaderV2",
            "TFRecordReader",
            "TFRecordReaderV2",
        ),
        *("FixedLengthRecordReader", "FixedLengthRecordReaderV2", "IdentityReader", "IdentityReaderV2"),
        *("InitializeTableFromTextFile", "InitializeTableFromTextFileV2"),
        *("TextLineDataset", "TFRecordDataset", "FixedLengthRecordDataset"),
        *("WriteSummary", "WriteImageSummary", "WriteGraphSummary", "WriteRawProtoSummary"),
        *("CreateSummaryFileWriter", "CreateSummaryDbWriter"),
    }
)


class RefusedError(Exception):
    """Ends the child with a code and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Port:
    """One input or output.

    Attributes:
        tensor: its name, or None where the network has one.
        channels_last: whether C is the last axis in TensorFlow.
        shape: of an input: (C, sizes), None for any size; of an output None.
    """

    tensor: str | None
    channels_last: bool
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True)
class Network:
    """A loaded network: its inputs, with TensorFlow's shapes (batch first), its outputs, and a function from one to the other."""

    inputs: dict[str, Any]
    outputs: list[str]
    run: Callable[[dict[str, Any], list[str]], dict[str, Any]]


def main() -> int:
    """Do what the request says."""
    file = Path(sys.argv[1])
    request = json.loads(file.read_text(encoding="utf-8"))
    isolated = runpy.run_path(request["isolation"])["isolate"](request["memory"])
    answer: dict[str, Any]
    try:
        facts = convert(request, file.parent)
        answer = {"isolated": isolated, "facts": facts, "notes": [], "outputs": len(facts["outputs"])}
    except RefusedError as error:
        answer = {"error": error.code, "message": str(error)}
    except Exception as error:
        # TensorFlow, Keras and tf2onnx raise of every kind.
        answer = {"error": "conversion-failed", "message": f"{type(error).__name__}: {error}"}
    (file.parent / "answer.json").write_text(json.dumps(answer), encoding="utf-8")
    return 0


def convert(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Write the ONNX network and the reference, and return what was made."""
    import keras
    import numpy as np
    import onnx
    import tensorflow as tf
    import tf2onnx

    tf.config.threading.set_intra_op_parallelism_threads(1)
    ports_in = [Port(p["tensor"], p["channels_last"], tuple(p["shape"])) for p in request["inputs"]]
    ports_out = [Port(p["tensor"], p["channels_last"], None) for p in request["outputs"]]
    load = {"saved-model": _saved_model, "frozen-graph": _frozen_graph, "keras": _keras}[request["kind"]]
    network = load(tf, keras, folder / request["source"], ports_in, ports_out)
    inputs = _chosen(ports_in, list(network.inputs), "input")
    outputs = _chosen(ports_out, network.outputs, "output")
    batch = {_batch(network.inputs[name]) for name in inputs}
    if len(batch) > 1:
        raise RefusedError("network-does-not-fit", "the inputs have different sizes of batch")
    (batch_size,) = batch
    specs = []
    for name, port in zip(inputs, ports_in, strict=True):
        _check_channels(name, network.inputs[name].shape, port)
        assert port.shape is not None
        specs.append(tf.TensorSpec((batch_size, *port.shape), tf.float32, name=_plain(name)))

    def whole(*arrays: Any) -> dict[str, Any]:
        fed = {}
        for name, port, array in zip(inputs, ports_in, arrays, strict=True):
            moved = tf.transpose(array, _to_last(len(array.shape))) if port.channels_last else array
            fed[name] = tf.cast(moved, network.inputs[name].dtype)
        made = network.run(fed, outputs)
        found = {}
        for name, port in zip(outputs, ports_out, strict=True):
            array = tf.cast(made[name], tf.float32)
            if port.channels_last and len(array.shape) > 2:
                array = tf.transpose(array, _to_first(len(array.shape)))
            found[_plain(name)] = array
        return found

    function = tf.function(whole, input_signature=specs, autograph=False)
    traced = function.get_concrete_function()
    _refuse_operators(_operators(traced.graph.as_graph_def()))
    model, _ = tf2onnx.convert.from_function(function, input_signature=specs, opset=OPSET)
    known = onnx.defs.has
    foreign = {node.op_type for node in model.graph.node if not known(node.op_type, OPSET, node.domain)}
    if foreign:
        raise RefusedError("conversion-failed", f"ONNX has no operator for {_list(sorted(foreign))}")
    (folder / "network.onnx").write_bytes(model.SerializeToString(deterministic=True))

    random = np.random.default_rng(SEED)
    arrays = {}
    for spec in specs:
        free = iter(SIZES_WHERE_FREE)
        shape = [batch_size or BATCH, *(size or next(free) for size in spec.shape[1:])]
        arrays[spec.name] = random.standard_normal(shape).astype(np.float32)
    made = {name: array.numpy() for name, array in traced(*(tf.constant(a) for a in arrays.values())).items()}
    np.savez(
        folder / "reference.npz",
        **{f"input {name}": array for name, array in arrays.items()},
        **{f"output {name}": array for name, array in made.items()},
    )
    return {
        "inputs": [_plain(name) for name in inputs],
        "outputs": [_plain(name) for name in outputs],
        "batch": batch_size,
        "output_shapes": {name: list(array.shape) for name, array in made.items()},
        "versions": {"tensorflow": tf.__version__, "keras": keras.__version__, "tf2onnx": tf2onnx.__version__},
    }


def _saved_model(tf: Any, keras: Any, path: Path, ports_in: list[Port], ports_out: list[Port]) -> Network:
    from tensorflow.core.protobuf import saved_model_pb2

    document = saved_model_pb2.SavedModel()
    document.ParseFromString((path / "saved_model.pb").read_bytes())
    # Before it is loaded: loading runs what initialises it.
    for graph in document.meta_graphs:
        _refuse_operators(_operators(graph.graph_def))
    loaded = tf.saved_model.load(str(path))
    signatures = sorted(loaded.signatures)
    if not signatures:
        raise RefusedError("conversion-failed", "the SavedModel has no signature to call")
    name = "serving_default" if "serving_default" in signatures else signatures[0]
    if name != "serving_default" and len(signatures) > 1:
        raise RefusedError("conversion-failed", f"the SavedModel has no serving_default, but {', '.join(signatures)}")
    signature = loaded.signatures[name]
    inputs = dict(signature.structured_input_signature[1])
    keep = loaded  # the variables live as long as what was loaded

    def run(fed: dict[str, Any], outputs: list[str]) -> dict[str, Any]:
        assert keep is not None
        return dict(signature(**fed))

    return Network(inputs, sorted(signature.structured_outputs), run)


def _frozen_graph(tf: Any, keras: Any, path: Path, ports_in: list[Port], ports_out: list[Port]) -> Network:
    graph_def = tf.compat.v1.GraphDef()
    graph_def.ParseFromString(path.read_bytes())
    _refuse_operators(_operators(graph_def))
    variables = sorted({n.op for n in graph_def.node} & {"Variable", "VariableV2", "VarHandleOp"})
    if variables:
        raise RefusedError("conversion-failed", "the graph has variables without values: it is not frozen")
    wrapped = tf.compat.v1.wrap_function(lambda: tf.graph_util.import_graph_def(graph_def, name=""), [])
    nodes = {node.name: node for node in graph_def.node}
    placeholders = [node.name for node in graph_def.node if node.op == "Placeholder"]
    used = {name.lstrip("^").partition(":")[0] for node in graph_def.node for name in node.input}
    ends = [
        n.name for n in graph_def.node if n.name not in used and n.op not in ("Const", "NoOp", "Assert", "Placeholder")
    ]
    names_in = [p.tensor.partition(":")[0] if p.tensor else None for p in ports_in]
    names_out = [p.tensor if p.tensor and p.tensor.partition(":")[0] in nodes else None for p in ports_out]

    def tensor(name: str) -> Any:
        return wrapped.graph.get_tensor_by_name(name if ":" in name else f"{name}:0")

    unfed = [name for name in placeholders if name not in names_in]
    if any(names_in) and unfed:
        raise RefusedError(
            "network-does-not-fit", f"the card names no input {', '.join(unfed[:8])}, which the graph wants"
        )
    known = {name: tensor(name) for name in placeholders}
    known |= {p.tensor: tensor(p.tensor) for p, n in zip(ports_in, names_in, strict=True) if p.tensor and n in known}

    def run(fed: dict[str, Any], outputs: list[str]) -> dict[str, Any]:
        pruned = wrapped.prune([known[name] for name in fed], [tensor(name) for name in outputs])
        return dict(zip(outputs, pruned(*fed.values()), strict=True))

    specs = {name: tf.TensorSpec(found.shape, found.dtype) for name, found in known.items()}
    return Network(specs, [*ends, *(name for name in names_out if name and name not in ends)], run)


def _keras(tf: Any, keras: Any, path: Path, ports_in: list[Port], ports_out: list[Port]) -> Network:
    # The person trusted these very bytes, so that layers which are code may load; nothing is compiled: losses are not needed.
    model = keras.models.load_model(path, compile=False, safe_mode=False)
    try:
        # A Sequential model is a list by nature, and has no `input` of its own.
        listed = isinstance(model, keras.Sequential)
        shape_in, shape_out = (model.inputs, model.outputs) if listed else (model.input, model.output)
        inputs, outputs = _by_name(shape_in, model.inputs), _by_name(shape_out, model.outputs)
    except AttributeError as error:
        text = "the model is a class of its own, without inputs: export it as a SavedModel"
        raise RefusedError("conversion-failed", text) from error
    # The layers that make the outputs are what a person has named; their tensors are numbered.
    said = getattr(model, "output_names", ())
    if not isinstance(shape_out, dict) and len(set(said)) == len(outputs):
        outputs = dict(zip(said, outputs.values(), strict=True))

    def run(fed: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
        given: Any = {name: fed[name] for name in inputs}
        if not isinstance(shape_in, dict):
            given = list(given.values()) if len(given) > 1 else next(iter(given.values()))
        made = model(given, training=False)
        if isinstance(made, dict):
            return dict(made)
        return dict(zip(outputs, made if isinstance(made, (list, tuple)) else [made], strict=True))

    return Network({name: tf.TensorSpec(t.shape, t.dtype) for name, t in inputs.items()}, list(outputs), run)


def _by_name(structure: Any, tensors: Any) -> dict[str, Any]:
    """Return a Keras model's inputs or outputs: a dict by its keys, others by the tensors' names."""
    named = structure.items() if isinstance(structure, dict) else ((t.name.partition(":")[0], t) for t in tensors)
    found = dict(named)
    if len(found) != len(tensors) or not all(hasattr(tensor, "shape") for tensor in found.values()):
        raise RefusedError("conversion-failed", "the model's inputs or outputs are nested, or share a name")
    return found


def _chosen(ports: list[Port], known: list[str], word: str) -> list[str]:
    """Return the tensors' names that the ports mean."""
    if len(ports) == 1 and ports[0].tensor is None:
        if len(known) != 1:
            raise RefusedError(
                "network-does-not-fit", f"the network has {len(known)} {word}s, {_list(known)}; the card names none"
            )
        return known
    names = [port.tensor or "" for port in ports]
    for name in names:
        if name not in known:
            raise RefusedError("network-does-not-fit", f"the network has no {word} {name!r}, but {_list(known)}")
    if word == "input" and (missing := {re.sub(":0$", "", n) for n in known} - {re.sub(":0$", "", n) for n in names}):
        raise RefusedError(
            "network-does-not-fit", f"the card names no input {_list(sorted(missing))}, which the network wants"
        )
    return names


def _list(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", re.sub(":0$", "", name))


def _batch(spec: Any) -> int | None:
    rank = spec.shape.rank
    return None if not rank else spec.shape[0]


def _check_channels(name: str, shape: Any, port: Port) -> None:
    """Refuse an input whose axes the card says otherwise."""
    assert port.shape is not None
    if shape.rank is None:
        return
    if shape.rank != len(port.shape) + 1:
        raise RefusedError(
            "network-does-not-fit",
            f"input {name!r} is {shape}, {shape.rank} axes, where the card has {len(port.shape) + 1}",
        )
    said = [port.shape[0], *port.shape[1:]] if not port.channels_last else [*port.shape[1:], port.shape[0]]
    for found, wanted in zip(shape[1:], said, strict=True):
        if found is not None and wanted is not None and found != wanted:
            text = f"input {name!r} is {shape}, where the card makes it (batch, {_sizes(said)})"
            raise RefusedError("network-does-not-fit", text)


def _sizes(sizes: Iterable[int | None]) -> str:
    return ", ".join("any" if size is None else str(size) for size in sizes)


def _to_last(rank: int) -> list[int]:
    return [0, *range(2, rank), 1]


def _to_first(rank: int) -> list[int]:
    return [0, rank - 1, *range(1, rank - 1)]


def _operators(graph_def: Any) -> set[str]:
    """Return the operators of a graph and of the functions in it."""
    found = {node.op for node in graph_def.node}
    for function in graph_def.library.function:
        found |= {node.op for node in function.node_def}
    return found


def _refuse_operators(found: set[str]) -> None:
    if refused := sorted(found & REFUSED):
        raise RefusedError(
            "refused-operator", f"the network calls {', '.join(refused)}, which runs code or touches files"
        )


if __name__ == "__main__":
    sys.exit(main())
