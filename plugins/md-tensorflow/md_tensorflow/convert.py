"""Convert a TensorFlow network to ONNX once, and hold the ONNX network to what TensorFlow makes.

A SavedModel, a frozen graph and a Keras file are programs: nothing here opens one but to take its SHA-256. One that is trusted is
copied into a folder of its own and converted there by `child.py`, in a process without network and with limits. The result is data:
it is run here, beside TensorFlow's own output for the same seeded input, before anyone uses it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mdcli.errors import ConfigError, MissingError, UnavailableError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal["saved-model", "frozen-graph", "keras"]

SAVED_MODEL = "saved_model.pb"
SUFFIXES: Mapping[str, Kind] = {".pb": "frozen-graph", ".keras": "keras", ".h5": "keras", ".hdf5": "keras"}
PYTHON_VARIABLE = "MD_TENSORFLOW_PYTHON"
LARGEST_DIFFERENCE = 1e-3
"""How far the ONNX network may be off TensorFlow's output, as a part of that output's range."""
TIMEOUT_S = 1800.0
MAX_FILES = 10_000
MAX_BYTES = 16 << 30

_VERSION = 1
_CHILD = Path(__file__).with_name("child.py")
_INSTALL = (
    f"pip install 'md-tensorflow[convert]', or let {PYTHON_VARIABLE} name a Python that has tensorflow and tf2onnx"
)
_PROBE = """
import importlib.metadata as m, json
def v(*names):
    for name in names:
        try: return m.version(name)
        except m.PackageNotFoundError: pass
names = ("tensorflow", "tensorflow-cpu", "tensorflow-intel", "tensorflow-macos")
print(json.dumps({"tensorflow": v(*names), "tf2onnx": v("tf2onnx")}))
"""


@dataclass(frozen=True)
class Port:
    """An input or output of the network.

    Attributes:
        tensor: its name in TensorFlow; None where the network has one.
        channels_last: whether TensorFlow has C last (NHWC, NDHWC); ONNX has it first always.
        shape: of an input: (C, sizes) as ONNX has it, None for any size.
    """

    tensor: str | None
    channels_last: bool
    shape: tuple[int | None, ...] | None = None


@dataclass(frozen=True)
class Converted:
    """A network that was converted.

    Attributes:
        path: the ONNX network, in the cache.
        inputs: its inputs' names, in the order of the ports.
        outputs: its outputs' names, in the order of the ports.
        output_shapes: of each output for the seeded input, batch and C first.
        facts: versions, and per output how far ONNX is off TensorFlow.
        notes: what a person should know: (code, sentence).
    """

    path: Path
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    output_shapes: Mapping[str, tuple[int, ...]]
    facts: Mapping[str, Any]
    notes: tuple[tuple[str, str], ...]


def interpreter() -> str:
    """Return the Python that has TensorFlow: the one that the user names, else this one."""
    return os.environ.get(PYTHON_VARIABLE) or sys.executable


def kind_of(path: Path) -> Kind | None:
    """Say what a network's file or folder is, by its name and first bytes: None where it is none of TensorFlow's."""
    if path.name == SAVED_MODEL or (path / SAVED_MODEL).is_file():
        return "saved-model"
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None or not path.is_file():
        return None
    with path.open("rb") as file:
        first = file.read(8)
    # A graph is a protobuf, which has no signature. Sources: PKWARE APPNOTE 4.3.7, HDF5 file format III.A.
    return kind if kind == "frozen-graph" or first.startswith((b"PK\x03\x04", b"\x89HDF\r\n\x1a\n")) else None


def files_of(source: Path) -> list[Path]:
    """Return the files that a network consists of.

    Raises:
        ConfigError: `outside-folder` where one is a link that leaves the SavedModel; `bad-network` where there are too many.
    """
    if source.is_file():
        return [source]
    found = []
    for path in _walk(source):
        if not path.resolve().is_relative_to(source.resolve()):
            name = path.relative_to(source).as_posix()
            raise ConfigError("outside-folder", f"{source.name}/{name} is a link to outside the SavedModel")
        if path.is_file():
            found.append(path)
            if len(found) > MAX_FILES:
                raise ConfigError("bad-network", f"{source.name} has more than {MAX_FILES} files")
    if (size := sum(path.stat().st_size for path in found)) > MAX_BYTES:
        raise ConfigError("bad-network", f"{source.name} has {size} bytes, over {MAX_BYTES}")
    return sorted(found)


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        yield from (Path(root) / name for name in (*folders, *names))


def check_trust(source: Path, trust: frozenset[str]) -> str:
    """Return a network's SHA-256, if it is trusted: of the file; of a SavedModel that of the lines `<sha256>  <name>` of its files.

    Raises:
        ConfigError: `program-not-trusted`, naming the SHA-256 that would trust it.
    """
    from mdcli.inference.formats import digest_of, sha256_of

    files = files_of(source)
    sha256 = sha256_of(source) if source.is_file() else digest_of(source, files)
    if sha256 not in trust:
        raise ConfigError(
            "program-not-trusted",
            f"{source.name} is a program of TensorFlow: to convert it is to run it; its SHA-256 is {sha256}",
            hint=f"if you know who made it: --trust-model {sha256}",
        )
    return sha256


def to_onnx(
    source: Path,
    *,
    cache: Path | None,
    trust: frozenset[str],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    python: str | None = None,
    engine: str = "onnxruntime",
) -> Converted:
    """Return the ONNX network that a TensorFlow network is converted to, C first, the sizes of its inputs fixed, the batch free.

    Args:
        source: a frozen graph or Keras file, or a SavedModel's folder.
        cache: a private folder for what is converted.
        trust: SHA-256 that may run (see `check_trust`).
        inputs: what is fed.
        outputs: what is wanted.
        python: the interpreter that has TensorFlow; None: see `interpreter`.
        engine: of md, which runs the ONNX network for the comparison.

    Raises:
        ConfigError: `program-not-trusted`; `refused-operator` where it calls Python or touches files; `network-does-not-fit`;
            `conversion-failed`; `conversion-differs` where ONNX and TensorFlow disagree.
        UnavailableError: `no-engine` where there is no TensorFlow or tf2onnx.
        MissingError: `no-cache`.
        OutOfTimeError: `conversion-timeout`.
    """
    kind = kind_of(source)
    if kind is None:
        raise ConfigError("bad-network", f"{source.name} is no SavedModel, frozen graph or Keras file")
    sha256 = check_trust(source, trust)
    if cache is None:
        raise MissingError(
            "no-cache", f"{source.name} has to be converted, and there is no folder for what is converted"
        )
    python = python or interpreter()
    request = {
        "kind": kind,
        "inputs": [asdict(port) for port in inputs],
        "outputs": [asdict(port) for port in outputs],
    }
    said = json.dumps([_VERSION, sha256, request, _versions(python), _child_sha256()], sort_keys=True)
    entry = cache / f"tensorflow-{hashlib.sha256(said.encode()).hexdigest()}"
    if (entry / "conversion.json").is_file():
        return _kept(entry)
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="tensorflow-", dir=cache) as folder:
        work = Path(folder)
        name = _copy(source, work, sha256)
        made = _run(work, {**request, "source": name}, source.name, python)
        judged = _judge(work, made, source.name, engine)
        document = {**made, "differences": judged}
        (work / "conversion.json").write_text(json.dumps(document, indent=1), encoding="utf-8")
        _keep(work, entry)
    return _kept(entry)


def _kept(entry: Path) -> Converted:
    document = json.loads((entry / "conversion.json").read_text(encoding="utf-8"))
    return Converted(
        entry / "network.onnx",
        tuple(document["inputs"]),
        tuple(document["outputs"]),
        {name: tuple(shape) for name, shape in document["output_shapes"].items()},
        {**document["versions"], "differences": document["differences"]},
        tuple((str(code), str(text)) for code, text in document["notes"]),
    )


def _keep(work: Path, entry: Path) -> None:
    """Move what was made into the cache, whole; another process may have been faster."""
    whole = Path(tempfile.mkdtemp(prefix="made-", dir=entry.parent))
    for path in list(work.iterdir()):
        if path.name in ("network.onnx", "conversion.json"):
            path.rename(whole / path.name)
    try:
        whole.rename(entry)
    except OSError:
        shutil.rmtree(whole)
        if not (entry / "conversion.json").is_file():
            raise


def _copy(source: Path, work: Path, sha256: str) -> str:
    """Copy a network into a folder, and make sure that it is still what was trusted."""
    from mdcli.inference.formats import digest_of, sha256_of

    target = work / (f"network{source.suffix.lower()}" if source.is_file() else "network")
    if source.is_file():
        shutil.copyfile(source, target)
        found = sha256_of(target)
    else:
        for path in files_of(source):
            to = target / path.relative_to(source)
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)
        found = digest_of(target, files_of(target))
    if found != sha256:
        raise ConfigError("program-not-trusted", f"{source.name} changed while it was read; its SHA-256 is now {found}")
    return target.name


def _versions(python: str) -> dict[str, str]:
    """Return the versions of TensorFlow and tf2onnx that an interpreter has, without loading them."""
    try:
        done = subprocess.run([python, "-I", "-c", _PROBE], capture_output=True, text=True, timeout=60, check=False)
        found: dict[str, str | None] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise UnavailableError(
            "no-engine", f"the Python for TensorFlow does not start: {error}", hint=_INSTALL
        ) from error
    missing = [name for name, version in found.items() if version is None]
    if missing:
        raise UnavailableError("no-engine", f"{' and '.join(missing)} not installed", hint=_INSTALL)
    return {name: str(version) for name, version in found.items()}


def _child_sha256() -> str:
    return hashlib.sha256(_CHILD.read_bytes()).hexdigest()


def _run(work: Path, request: dict[str, Any], name: str, python: str) -> dict[str, Any]:
    """Let the child convert, and return what it says.

    Raises:
        ConfigError: what the child refuses; `conversion-failed`, also where what it says makes no sense.
    """
    from mdcli.inference.isolation import CHILD_FILE, run_child

    said = {**request, "isolation": str(CHILD_FILE)}
    answer = run_child(work, said, name=name, python=python, timeout_s=TIMEOUT_S, script=_CHILD, install=_INSTALL)
    facts = answer.facts
    try:
        for word in ("inputs", "outputs"):
            if not all(re.fullmatch(r"[A-Za-z0-9_]{1,200}", key) for key in facts[word]):
                raise ValueError(word)
        return {
            "inputs": list(facts["inputs"]),
            "outputs": list(facts["outputs"]),
            "output_shapes": {key: [int(n) for n in facts["output_shapes"][key]] for key in facts["outputs"]},
            "versions": {key: str(facts["versions"][key])[:40] for key in ("tensorflow", "keras", "tf2onnx")},
            "notes": [list(note) for note in answer.notes],
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError("conversion-failed", f"converting {name} ended with an answer that makes no sense") from error


def _judge(work: Path, made: Mapping[str, Any], name: str, engine: str) -> dict[str, dict[str, float]]:
    """Run the ONNX network on the seeded input and compare.

    Returns:
        For each output `largest` (difference) and `range` (of TensorFlow's output).

    Raises:
        ConfigError: `conversion-differs`; `bad-network`.
    """
    import numpy as np

    from mdcli.inference.engines import find_engine
    from mdcli.inference.onnxfile import external_files

    network = work / "network.onnx"
    if files := external_files(network):
        raise ConfigError(
            "bad-network", f"the network that was made of {name} names files: {', '.join(sorted(files))[:200]}"
        )
    session = find_engine(engine).open(network, device="cpu", threads=1)
    with np.load(work / "reference.npz", allow_pickle=False) as reference:
        feeds = {key: np.ascontiguousarray(reference[f"input {key}"], np.float32) for key in made["inputs"]}
        wanted = {key: np.asarray(reference[f"output {key}"], np.float32) for key in made["outputs"]}
    outputs = session.run(feeds, dict.fromkeys(wanted))
    return {key: compare(wanted[key], outputs[key], f"{name}: {key}") for key in made["outputs"]}


def compare(reference: NDArray[np.float32], ours: NDArray[np.float32], place: str) -> dict[str, float]:
    """Return how far an array is off its reference, (N, C, ...).

    Raises:
        ConfigError: `conversion-differs`.
    """
    import numpy as np

    from mdcli.inference.parity import compare_labels

    if reference.shape != ours.shape:
        raise ConfigError("conversion-differs", f"{place} is {ours.shape} by ONNX, {reference.shape} by TensorFlow")
    if not (np.isfinite(reference).all() and np.isfinite(ours).all()):
        raise ConfigError("conversion-differs", f"{place} is not finite for a seeded input")
    largest, extent = float(np.abs(reference - ours).max()), float(np.ptp(reference))
    if largest > LARGEST_DIFFERENCE * max(extent, 1e-6):
        raise ConfigError(
            "conversion-differs",
            f"{place} is {largest:.3g} off TensorFlow's in a range of {extent:.3g}, over {LARGEST_DIFFERENCE:g} of it",
            largest=largest,
            range=extent,
        )
    if reference.ndim > 2 and reference.shape[1] > 1:
        highest = np.partition(reference, -2, axis=1)
        margin = (highest[:, -1] - highest[:, -2]) / max(extent, 1e-6)
        channels = [(number, f"channel {number}") for number in range(reference.shape[1])]
        report = compare_labels(reference.argmax(axis=1), ours.argmax(axis=1), margin, channels)
        if not report.good:
            bad = next(
                (f"{one.name} has Dice {one.dice:.5f}" for one in report.classes if not one.good), "one was sure"
            )
            text = f"{place}: the highest channel is another one in {report.differing} of {report.voxels} voxels, {bad}"
            raise ConfigError("conversion-differs", text)
    return {"largest": largest, "range": extent}
