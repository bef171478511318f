"""Convert a file of torch to ONNX and compare the two: a process of its own, started by `mdcli.inference.isolation`.

It is run by its path, by an interpreter that has torch and need not have mdcli: nothing of mdcli is imported. It takes one file,
the request, and writes `answer.json` beside it:

    {"kind", "file", "shape", "network": {"target", "arguments", "imports"} or null, "state_key", "select_output", "onnx",
     "largest_difference", "memory", "serve": true (run it on batch.npy again and again instead of converting it)}
    {"isolated", "facts", "notes", "outputs"} or {"error", "message"}

The file may be hostile as far as weights can be, and it is a program where its maker is trusted.
"""

# mypy: disable-error-code="import-not-found,import-untyped,unused-ignore,no-any-return"
from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pickle
import pkgutil
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_STATE_KEYS = ("network_weights", "state_dict", "model_state_dict", "model")
# What data-parallel training and torch.compile put before each name.
_PREFIXES = ("module.", "_orig_mod.")
_ROOMS = ("monai.", "dynamic_network_architectures.")
_OPSET = 18
_SEED = 20
_MAX_PROTOBUF = 2_000_000_000
_MAX_PLAIN = 64
_SAFETENSORS = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32"},
    **{"I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "U16": "uint16", "U32": "uint32", "U64": "uint64"},
}


class RefusedError(Exception):
    """What is told to the parent: a code and a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class DifferenceError(Exception):
    """The ONNX network is off torch's: by how much, as a part of the output's range."""


def isolate(memory: int) -> bool:
    """Limit this process before anything of the file is read; say whether it is without network.

    Source: Linux man pages unshare(2), prctl(2), setrlimit(2).
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A lower limit may hold already.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # Root needs no user of its own for this, and may be forbidden one.
    return any(libc.unshare(flags) == 0 for flags in (_CLONE_NEWUSER | _CLONE_NEWNET, _CLONE_NEWNET))


def load(request: Mapping[str, Any], folder: Path) -> tuple[Any, dict[str, Any]]:
    """Return the network, a module or an exported program, and the plain values beside its weights."""
    import torch

    file, kind = folder / request["file"], request["kind"]
    if kind in ("torchscript", "export"):
        try:
            if kind == "torchscript":
                return torch.jit.load(str(file), map_location="cpu").eval().float(), {}
            return torch.export.load(str(file)), {}
        except Exception as error:
            raise RefusedError("bad-network", f"torch does not load it: {first_line(error)}") from error
    found = read_safetensors(file) if kind == "safetensors" else read_weights(file)
    state, plain = weights_of(found, request["state_key"])
    return filled(request["network"], state), plain


def read_weights(file: Path) -> Any:
    """Return what torch's weights-only loader reads."""
    import torch

    torch.serialization.add_safe_globals(plain_numpy())
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise RefusedError("refused-pickle", f"torch's weights-only loader refuses it: {first_line(error)}") from error
    except Exception as error:
        raise RefusedError("bad-network", f"torch does not load it: {first_line(error)}") from error


def plain_numpy() -> list[Any]:
    """Return what a pickle of a numpy number names: trainers keep their losses beside the weights. None of it runs anything."""
    import numpy as np

    try:
        from numpy._core.multiarray import scalar
    except ImportError:
        from numpy.core.multiarray import scalar  # type: ignore[no-redef]
    kinds = [type(np.dtype(word)) for word in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")]
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *kinds]


def read_safetensors(file: Path) -> dict[str, Any]:
    """Return the tensors of a safetensors file, whose header the parent has checked."""
    import torch

    content = bytearray(file.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    found = {}
    for name, said in header.items():
        if name == "__metadata__":
            continue
        first, last = said["data_offsets"]
        kind = getattr(torch, _SAFETENSORS[said["dtype"]])
        part = content[start + first : start + last]
        found[name] = torch.frombuffer(part, dtype=kind).reshape(said["shape"]) if part else torch.empty(0, dtype=kind)
    return found


def weights_of(found: Any, key: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the weights by name, and the plain values beside them."""
    import torch

    if not isinstance(found, Mapping):
        raise RefusedError("bad-network", f"it holds a {type(found).__name__}, not weights by name")
    state = found
    if key is not None:
        if key not in found:
            raise RefusedError("bad-network", f"it has no {key!r}; it has {', '.join(map(str, list(found)[:10]))}")
        state = found[key]
    elif not all(isinstance(value, torch.Tensor) for value in found.values()):
        state = next((found[name] for name in _STATE_KEYS if isinstance(found.get(name), Mapping)), found)
    tensors = {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
    if not tensors or len(tensors) < len(state):
        raise RefusedError("bad-network", f"{len(tensors)} of its {len(state)} entries are weights")
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors, {} if state is found else plain_values(found)


def plain_values(found: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the values of a checkpoint that are plain and short, and of nnU-Net's `init_args` what says which network it is."""
    plain = {str(name): value for name, value in found.items() if is_plain(value)}
    arguments = found.get("init_args")
    if isinstance(arguments, Mapping):
        wanted = ("configuration", "fold")
        plain["init_args"] = {name: arguments[name] for name in wanted if is_plain(arguments.get(name))}
    return plain


def is_plain(value: Any) -> bool:
    """Say whether a value is a number, a short text, none, or a few of these."""
    if isinstance(value, (list, tuple)):
        return len(value) <= _MAX_PLAIN and all(
            is_plain(item) and not isinstance(item, (list, tuple)) for item in value
        )
    return value is None or type(value) in (bool, int, float) or (type(value) is str and len(value) <= _MAX_PLAIN)


def filled(definition: Mapping[str, Any], state: dict[str, Any]) -> Any:
    """Return the network of a definition with its weights, every one."""
    import torch

    target = definition["target"]
    module, _, name = target.rpartition(".")
    try:
        made = pkgutil.resolve_name(f"{module}:{name}")
    except ImportError as error:
        raise RefusedError("no-engine", f"{target} is not there: {first_line(error)}") from error
    except AttributeError as error:
        raise RefusedError("unsupported-network", f"there is no {target}") from error
    is_network = isinstance(made, type) and issubclass(made, torch.nn.Module)
    if not is_network or not made.__module__.startswith(_ROOMS):
        raise RefusedError("unsupported-network", f"{target} is no network of the room that it is named in")
    arguments = dict(definition["arguments"])
    for each in definition["imports"]:
        if arguments.get(each) is not None:
            arguments[each] = part_of_torch(each, arguments[each])
    try:
        network = made(**arguments)
    except Exception as error:
        raise RefusedError("unsupported-network", f"{target} can't be made: {first_line(error)}") from error
    try:
        network.load_state_dict(state, strict=True)
    except Exception as error:
        raise RefusedError(
            "network-does-not-fit", f"its weights are not those of {target}: {first_line(error)}"
        ) from error
    return network.eval().float()


def part_of_torch(argument: str, name: Any) -> Any:
    """Return a class of `torch.nn` by its dotted name."""
    import torch

    found: Any = None
    if isinstance(name, str) and name.startswith("torch.nn."):
        found = torch.nn
        for part in name.split(".")[2:]:
            found = getattr(found, part, None) if not part.startswith("_") else None
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        raise RefusedError("unsupported-network", f"{argument} is {str(name)[:80]!r}, which is no part of torch.nn")
    return found


def runnable(network: Any, select: int | None) -> tuple[Any, Any]:
    """Return what runs the network, with one tensor or a tuple of tensors as its output; and what is exported of it."""
    import torch

    # Neither kind of program can be made a part of another module and be exported still: `select` is applied to its ONNX network.
    if isinstance(network, torch.export.ExportedProgram):
        return partial(picked, network.module(), select), network
    if isinstance(network, torch.jit.ScriptModule):
        return partial(picked, network, select), network

    class Flat(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, batch: Any) -> Any:
            return picked(self.network, select, batch)

    made = Flat().eval()
    return made, made


def picked(module: Any, select: int | None, batch: Any) -> Any:
    """Return the outputs of a module, or the one that is selected."""
    outputs = tuple(flat(module(batch)))
    if select is not None:
        return outputs[select]
    return outputs[0] if len(outputs) == 1 else outputs


def flat(value: Any) -> Iterator[Any]:
    """Give the tensors of an output."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from flat(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from flat(each)
    elif value is not None:
        raise RefusedError("unsupported-network", f"it gives a {type(value).__name__}, not arrays")


def outputs_of(module: Any, batch: Any) -> list[Any]:
    """Return the outputs of a batch, as numpy arrays."""
    import torch

    try:
        with torch.inference_mode():
            return [each.numpy() for each in flat(module(batch))]
    except RefusedError:
        raise
    except IndexError as error:
        raise RefusedError("network-does-not-fit", f"it has no output of that number: {first_line(error)}") from error
    except Exception as error:
        text = f"it does not take {list(batch.shape)}: {first_line(error)}"
        raise RefusedError("network-does-not-fit", text) from error


def convert(network: Any, request: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[list[str]], int]:
    """Write the ONNX network and return what was found: the first way of exporting whose result is torch's."""
    import torch

    module, source = runnable(network, request["select_output"])
    is_program = isinstance(network, torch.export.ExportedProgram)
    sizes = request["shape"][1:]
    fixed = program_batch(network) if is_program else None
    example = seeded(torch, [fixed or 1, *sizes])
    outputs = outputs_of(module, example)
    select, exported = None, len(outputs)
    if source is not module:
        select = request["select_output"]
        exported = len(outputs_of(runnable(network, None)[0], example))
    state = network.state_dict if is_program else network.state_dict()
    weights = [each for each in state.values() if isinstance(each, torch.Tensor)]
    ways: list[tuple[str, int | None]] = [("dynamo", None), ("trace", None), ("trace", 1)]
    if is_program:
        ways = [("dynamo", fixed)]
    elif isinstance(network, torch.jit.ScriptModule):
        ways = ways[1:]
    failures: list[Exception] = []
    for way, batch in ways:
        try:
            export(source, way, batch, sizes, exported, folder / request["onnx"], weights)
            tidy(folder / request["onnx"], select)
            difference = compare(module, folder / request["onnx"], batch, sizes, request["largest_difference"])
        except RefusedError:
            raise
        except Exception as error:
            failures.append(error)
            continue
        facts = {
            "kind": request["kind"],
            "exporter": way,
            "largest_difference": difference,
            "batch": batch,
            "parameters": sum(each.numel() for each in weights),
            "torch": torch.__version__,
        }
        notes = [] if batch is None else [["fixed-batch", f"the network takes batches of {batch} alone"]]
        return facts, notes, len(outputs)
    differing = next((error for error in failures if isinstance(error, DifferenceError)), None)
    if differing is not None:
        raise RefusedError("conversion-differs", str(differing))
    raise RefusedError("conversion-failed", "; ".join(f"{type(e).__name__}: {first_line(e)}" for e in failures))


def program_batch(program: Any) -> int | None:
    """Return the batch that an exported program was made for, None where it takes any."""
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
            size = node.meta["val"].shape[0]
            return size if isinstance(size, int) else None
    return None


def export(
    source: Any, way: str, batch: int | None, sizes: list[int], count: int, file: Path, weights: list[Any]
) -> None:
    """Write an ONNX network whose batch is free, or fixed."""
    import torch

    large = sum(each.numel() * each.element_size() for each in weights) > _MAX_PROTOBUF
    names = ["output"] if count == 1 else [f"output_{place}" for place in range(count)]
    options: dict[str, Any] = {"input_names": ["input"], "output_names": names, "opset_version": _OPSET}
    options["dynamo"] = way == "dynamo"
    # A batch of one would be taken for a size that never changes.
    example = seeded(torch, [batch or 2, *sizes])
    if way == "dynamo":
        options["external_data"] = large
        if batch is None and not isinstance(source, torch.export.ExportedProgram):
            options["dynamic_shapes"] = ({0: torch.export.Dim.DYNAMIC},)
    elif batch is None:
        options["dynamic_axes"] = {name: {0: "N"} for name in ("input", *names)}
    with torch.no_grad():
        torch.onnx.export(source, (example,), str(file), **options)


def tidy(file: Path, select: int | None) -> None:
    """Keep the output that is selected, and drop what tells where the exporter's source lies on this machine."""
    import onnx

    model = onnx.load(str(file), load_external_data=False)
    graph = model.graph
    if select is not None:
        kept = graph.output[select]
        graph.node.append(onnx.helper.make_node("Identity", [kept.name], ["output"]))
        kept.name = "output"
        del graph.output[:]
        graph.output.append(kept)
    model.doc_string = ""
    for node in (*graph.node, *(node for function in model.functions for node in function.node)):
        node.doc_string = ""
        del node.metadata_props[:]
    del graph.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del value.metadata_props[:]
    for value in (*graph.input, *graph.output):
        sizes = value.type.tensor_type.shape.dim
        if sizes and sizes[0].dim_param:
            sizes[0].dim_param = "N"
    onnx.save(model, str(file))


def compare(module: Any, file: Path, batch: int | None, sizes: list[int], largest: float) -> float:
    """Return how far the ONNX network is off torch's on seeded numbers, as a part of the range of torch's output."""
    import numpy as np
    import onnxruntime
    import torch

    onnxruntime.set_default_logger_severity(4)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in (batch,) if batch else (1, 2):
        example = seeded(torch, [count, *sizes])
        theirs = outputs_of(module, example)
        ours = session.run(None, {session.get_inputs()[0].name: example.numpy()})
        for reference, found in zip(theirs, ours, strict=True):
            if reference.shape != found.shape:
                raise DifferenceError(f"torch makes {reference.shape}, ONNX {found.shape}")
            wide = np.asarray(reference, np.float64)
            span = float(np.ptp(wide)) if wide.size else 0.0
            difference = float(np.abs(wide - found).max()) / (span or 1.0) if wide.size else 0.0
            if not difference <= largest:
                text = f"ONNX is off torch by {difference:.3g} of the output's range, over {largest:g}"
                raise DifferenceError(text)
            worst = max(worst, difference)
    return worst


def seeded(torch: Any, shape: list[int]) -> Any:
    """Return the numbers that both networks are run on: normal, as what comes out of a usual intensity step."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(_SEED))


def serve(network: Any, request: Mapping[str, Any], folder: Path, isolated: bool, answers: int) -> None:
    """Run the network on `batch.npy` for each line that comes, and write `out_PLACE.npy`; a byte says that the answer is there.

    Args:
        network: loaded.
        request: of this process.
        folder: of the files.
        isolated: whether this process is without network.
        answers: the file descriptor that the bytes are written to.
    """
    import numpy as np
    import torch

    module, _ = runnable(network, request["select_output"])
    tell(folder, {"isolated": isolated, "facts": {"torch": torch.__version__}, "notes": [], "outputs": 0}, answers)
    with open(0, "rb", buffering=0, closefd=False) as lines:
        while lines.readline():
            try:
                batch = np.load(folder / "batch.npy", allow_pickle=False)
                outputs = outputs_of(module, torch.from_numpy(batch))
                for place, output in enumerate(outputs):
                    np.save(folder / f"out_{place}.npy", output, allow_pickle=False)
                found = {"isolated": isolated, "facts": {}, "notes": [], "outputs": len(outputs)}
            except RefusedError as error:
                found = {"error": error.code, "message": str(error)}
            tell(folder, found, answers)


def tell(folder: Path, found: Mapping[str, Any], answers: int) -> None:
    """Write an answer, and a byte that says so."""
    (folder / "answer.json").write_text(json.dumps(found), encoding="utf-8")
    os.write(answers, b".")


def first_line(error: BaseException) -> str:
    """Return an error's first lines, short."""
    return " ".join(str(error).split())[:240] or type(error).__name__


def answer(request: Mapping[str, Any], folder: Path) -> dict[str, Any] | None:
    """Do what is asked; None where it is done and answered."""
    isolated = isolate(request["memory"])
    answers = -1
    if request.get("serve"):
        # What the file's code prints goes to the log, not among the answers.
        answers = os.dup(1)
        os.dup2(2, 1)
    warnings.filterwarnings("ignore")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        return {"error": "no-engine", "message": f"it needs torch, onnx, onnxscript and onnxruntime: {error}"}
    network, plain = load(request, folder)
    if request.get("serve"):
        serve(network, request, folder, isolated, answers)
        return None
    facts, notes, outputs = convert(network, request, folder)
    return {"isolated": isolated, "facts": {**facts, "checkpoint": plain}, "notes": notes, "outputs": outputs}


def main(run: Callable[[Mapping[str, Any], Path], dict[str, Any] | None]) -> None:
    """Read the request, write the answer."""
    file = Path(sys.argv[1])
    try:
        found = run(json.loads(file.read_text(encoding="utf-8")), file.parent)
    except RefusedError as error:
        found = {"error": error.code, "message": str(error)}
    except Exception as error:
        found = {"error": "conversion-failed", "message": f"{type(error).__name__}: {first_line(error)}"}
    if found is not None:
        file.with_name("answer.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(answer)
