"""Run a model on the volumes that it comes with, and compare with what its own code made of them.

A model's folder may hold `selftest/`: for each case the volumes, what the network saw of the middle window, what it gave for it,
and the labels. `md export-model` writes it with torch's own outputs; `md model check` compares all three on the machine that will
serve. Arrays are NPZ without pickles.
"""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from mdcli import __version__
from mdcli.errors import ConfigError, MissingError
from mdcli.inference.card import Card, Output
from mdcli.inference.collect import Collector, own_grid
from mdcli.inference.engines import Session, Tensor
from mdcli.inference.parity import (
    LARGEST_DIFFERENCE,
    Number,
    ParityReport,
    compare_labels,
    compare_masks,
    difference_of,
)
from mdcli.inference.predict import Found, make_plan, predict
from mdcli.inference.preprocess import prepare
from mdcli.inference.windows import extract

SCHEMA = "md.selftest/1"
FOLDER = "selftest"
FILE = "selftest.json"
CHECK_SCHEMA = "md.model-check/1"
REDUCED_DIFFERENCE = 2e-2
"""What a network's numbers may be off, as a part of their range, where its precision is not float32. Labels are held as ever."""

_MAX_BYTES = 4 << 30
_FILES = ("input", "tensor", "scores", "labels")

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Case:
    """What a model is run on.

    Attributes:
        name: of the case.
        arrays: one an input of the card, (k, j, i), or (k, j, i, 3) where it has three channels.
        affine: of all, 4x4, (i, j, k) to mm, LPS+; its axes at right angles.
    """

    name: str
    arrays: tuple[NDArray[Any], ...]
    affine: NDArray[np.float64]


@dataclass
class Seen:
    """What one run of a model gave.

    Attributes:
        tensor: what the network saw of the middle window, by its inputs' names, the batch first.
        scores: what it gave for it, by its outputs' names.
        labels: by the output's place in the card a label map (k, j, i), or masks (labels, k, j, i).
        margins: as `labels`: how sure each voxel is, float32; only where they are asked for.
        rows: what outputs that are no maps gave, by tensor, (windows, numbers).
        facts: of the engine.
    """

    tensor: Arrays = field(default_factory=dict)
    scores: Arrays = field(default_factory=dict)
    labels: dict[int, NDArray[Any]] = field(default_factory=dict)
    margins: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    rows: Arrays = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class _Watched:
    """A session that keeps what one of its runs saw and gave; the runs come one after another."""

    def __init__(self, session: Session, number: int) -> None:
        self._session, self._number, self._count = session, number, 0
        self.inputs: tuple[Tensor, ...] = session.inputs
        self.outputs: tuple[Tensor, ...] = session.outputs
        self.seen: Arrays = {}
        self.gave: Arrays = {}

    def run(self, feeds: Mapping[str, NDArray[Any]], out: Mapping[str, NDArray[Any] | None]) -> Arrays:
        """Run once. See `Session.run`."""
        found = self._session.run(feeds, out)
        if self._count == self._number:
            self.seen = {name: np.array(values) for name, values in feeds.items()}
            self.gave = {name: np.array(values) for name, values in found.items()}
        self._count += 1
        return found

    def stop(self) -> None:
        """See `Session.stop`."""
        self._session.stop()

    def facts(self) -> dict[str, Any]:
        """See `Session.facts`."""
        return self._session.facts()


class _TopTwo:
    """Takes scores, class by class, and keeps the two highest of each voxel: all of 105 classes would not fit into memory."""

    def __init__(self, shape: tuple[int, int, int], least: float | None) -> None:
        self.first = np.full(shape, -np.inf if least is None else least, np.float32)
        self.second = np.full(shape, -np.inf, np.float32)

    def __setitem__(self, region: Any, values: NDArray[np.float32]) -> None:
        first, second = self.first[region], self.second[region]
        np.maximum(second, np.minimum(first, values), out=second)
        np.maximum(first, values, out=first)

    def margin(self) -> NDArray[np.float32]:
        """Return how far the highest is above the second."""
        return self.first - self.second


class _Nearest:
    """Takes scores of regions, and keeps how near each voxel comes to the threshold with any of them."""

    def __init__(self, shape: tuple[int, int, int], threshold: float) -> None:
        self.distance = np.full(shape, np.inf, np.float32)
        self._threshold = np.float32(threshold)

    def __setitem__(self, region: Any, values: NDArray[np.float32]) -> None:
        part = self.distance[region]
        np.minimum(part, np.abs(values - self._threshold), out=part)

    def margin(self) -> NDArray[np.float32]:
        """Return the distance."""
        return self.distance


def run_case(card: Card, sessions: Sequence[Session], case: Case, *, margins: bool = False) -> Seen:
    """Run a model on a case, one window after another, before the card's steps on label maps.

    Args:
        card: of the model.
        sessions: its networks, opened.
        case: what it is run on.
        margins: say how sure each voxel is.

    Raises:
        DataError: `no-statistics`, `nan-in-output`, `overlap`.
        ConfigError: `network-does-not-fit`, `network-failed`, `bad-card`.
    """
    prepared = prepare(case.arrays, case.affine, card.inputs)
    plan = make_plan(card, sessions[0], prepared.grid)
    watched = _Watched(sessions[0], plan.tiling.count // 2 * len(plan.flips))
    gathered: dict[int, tuple[Collector, Any]] = {}
    inverters = []
    for place, output in enumerate(card.outputs):
        # Labels that are taken before they go back to the volume's grid are compared where they are taken.
        grid = own_grid(prepared.grid) if output.inversion == "labels" else prepared.grid
        collector = Collector(output, grid.source_shape)
        keeper: Any = None
        if margins and collector.is_map and not _by_centres(output):
            keeper = _keeper(output, grid.source_shape)
            collector.keep_scores = lambda n, _, keeper=keeper: cast(
                "NDArray[Any]", keeper[n] if isinstance(keeper, list) else keeper
            )
        gathered[place] = collector, keeper
        inverters += collector.begin(replace(prepared, grid=grid))

    def take(found: Found) -> None:
        for collector, _ in gathered.values():
            collector.take(found)

    predict(plan, [watched, *sessions[1:]], prepared.rows, inverters, take=take)
    seen = Seen(watched.seen, watched.gave, facts=watched.facts())
    for place, (collector, keeper) in gathered.items():
        if not collector.is_map:
            tensors = sorted({name for found in collector.found for name in found.others})
            seen.rows |= {name: collector.rows(name) for name in tensors}
        elif not _by_centres(collector.output):
            whole = np.stack(collector.masks) if collector.masks is not None else collector.labels
            assert whole is not None
            seen.labels[place] = whole
            if isinstance(keeper, list):
                seen.margins[place] = np.abs(np.stack(keeper) - np.float32(collector.output.threshold))
            elif keeper is not None:
                seen.margins[place] = keeper.margin()
    return seen


@dataclass(frozen=True)
class View:
    """The middle window as the network sees it.

    Attributes:
        tensor: by the network's inputs' names, (C, axes), in the network's order and directions.
        axes: the letters of these axes in the card.
        directions: of these axes: mm from one voxel to the next, LPS+.
    """

    tensor: Arrays
    axes: tuple[str, ...]
    directions: tuple[tuple[float, float, float], ...]


def middle_window(card: Card, session: Session, case: Case) -> View:
    """Return what a network sees of a case's middle window, without running it.

    Raises:
        DataError: `no-statistics`.
        ConfigError: `network-does-not-fit`, `bad-card`.
    """
    prepared = prepare(case.arrays, case.affine, card.inputs)
    plan = make_plan(card, session, prepared.grid)
    windows = [(span, window) for span, several in plan.tiling.rows() for window in several]
    (start, stop), window = windows[len(windows) // 2]
    axis = plan.tiling.walk[0]
    rows = prepared.rows.rows(axis, max(start, 0), stop)
    cut = extract(rows, axis, max(start, 0), window, plan.tiling.window, plan.padding_value)
    tensor = {
        name: np.stack([plan.grid.to_network(channel) for channel in cut[channels]]) for name, channels in plan.feeds
    }
    directions = []
    for n in plan.grid.order:
        along = plan.grid.axes[n]
        step = case.affine[:3, 2 - n] * along.step * (-1 if along.flip else 1)
        directions.append((float(step[0]), float(step[1]), float(step[2])))
    return View(tensor, card.input.axes[1:], tuple(directions))


def _by_centres(output: Output) -> bool:
    return output.instances is not None and output.instances.form == "centres"


def _keeper(output: Output, shape: tuple[int, int, int]) -> Any:
    if output.form == "masks":
        return [np.zeros(shape, np.float32) for _ in output.labels]
    if output.form == "regions":
        return _Nearest(shape, output.threshold)
    return _TopTwo(shape, output.threshold if output.activation == "sigmoid" else None)


def compare(
    card: Card, reference: Seen, ours: Seen, name: str, *, window: bool = False, allowed: float = LARGEST_DIFFERENCE
) -> ParityReport:
    """Compare two runs of a model on one case.

    Args:
        card: of the model.
        reference: with margins.
        ours: of the same case.
        name: of the case.
        window: compare what the network saw of the middle window, and what it gave for it, too.
        allowed: how far what it gave may be off, as a part of its range.

    Raises:
        DataError: `grids-differ`.
    """
    parts: list[ParityReport] = []
    for place, labels in reference.labels.items():
        output = card.outputs[place]
        prefix = f"{output.name}/" if output.name else ""
        words = [(label.value, prefix + label.name) for label in output.labels]
        other, margins = ours.labels[place], reference.margins[place]
        if output.form == "masks":
            parts.append(compare_masks(list(labels), list(other), list(margins), words))
        else:
            parts.append(compare_labels(labels, other, margins, words))
    numbers = []
    if window:
        for title, one, found, most in (
            ("tensor", reference.tensor, ours.tensor, LARGEST_DIFFERENCE),
            ("scores", reference.scores, ours.scores, allowed),
        ):
            for key in one:
                numbers.append(Number(f"{title} {key}", difference_of(one[key], found[key]), most))
    numbers += [Number(key, difference_of(said, ours.rows[key]), allowed) for key, said in reference.rows.items()]
    return ParityReport(
        name,
        tuple(one for part in parts for one in part.classes),
        sum(part.voxels for part in parts),
        sum(part.differing for part in parts),
        max((part.margin for part in parts), default=0.0),
        tuple(numbers),
    )


@dataclass(frozen=True)
class SelfTest:
    """What a model comes with: cases and what its own code made of them.

    Attributes:
        cases: with margins.
        made_by: what the training code's network ran on: engine, version, precision, device.
        precision: of the model's network: `float32`, or `float16` where the model was made smaller since.
    """

    cases: tuple[tuple[Case, Seen], ...]
    made_by: Mapping[str, Any]
    precision: str = "float32"


def write_selftest(folder: Path, selftest: SelfTest) -> None:
    """Write a self-test.

    Args:
        folder: `selftest` of a model's folder; must not be there.
        selftest: what is written.
    """
    folder.mkdir()
    listed = []
    for number, (case, seen) in enumerate(selftest.cases):
        own = folder / f"case_{number:04d}"
        own.mkdir()
        inputs = {f"input_{n}": array for n, array in enumerate(case.arrays)}
        _save(own / "input.npz", {"affine_lps": case.affine, **inputs})
        _save(own / "tensor.npz", {str(n): values for n, values in enumerate(seen.tensor.values())})
        _save(own / "scores.npz", {str(n): values for n, values in enumerate(seen.scores.values())})
        _save(
            own / "labels.npz",
            {
                **{f"labels_{place}": values for place, values in seen.labels.items()},
                **{f"margin_{place}": values for place, values in seen.margins.items()},
                **{f"rows_{n}": values for n, values in enumerate(seen.rows.values())},
            },
        )
        listed.append(
            {
                "name": case.name,
                "folder": own.name,
                "inputs": len(case.arrays),
                "tensor": list(seen.tensor),
                "scores": list(seen.scores),
                "maps": sorted(seen.labels),
                "rows": list(seen.rows),
            }
        )
    made_by = {key: value for key, value in selftest.made_by.items() if isinstance(value, str)}
    document = {"schema": SCHEMA, "made_by": made_by, "precision": selftest.precision, "cases": listed}
    (folder / FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def read_selftest(model_folder: Path) -> SelfTest:
    """Return the self-test of a model's folder.

    Raises:
        MissingError: `no-selftest`.
        ConfigError: `bad-selftest`.
    """
    folder = model_folder / FOLDER
    if not (folder / FILE).is_file():
        raise MissingError(
            "no-selftest",
            f"{model_folder.name} has no {FOLDER}/{FILE}",
            hint="md export-model writes one beside a model",
        )
    try:
        document = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if document["schema"] != SCHEMA:
            raise ValueError(f"schema is {document['schema']!r}, not {SCHEMA!r}")
        cases = tuple(_read_case(folder, said) for said in document["cases"])
        if not cases:
            raise ValueError("it has no case")
        return SelfTest(cases, dict(document["made_by"]), str(document["precision"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ConfigError("bad-selftest", f"{FOLDER} of {model_folder.name} can't be read: {error}") from error


def _read_case(folder: Path, said: Mapping[str, Any]) -> tuple[Case, Seen]:
    own = folder / str(said["folder"])
    if own.resolve().parent != folder.resolve():
        raise ValueError(f"case {said['folder']!r} lies outside")
    inputs, tensor, scores, labels = (_load(own / f"{name}.npz") for name in _FILES)
    arrays = tuple(inputs[f"input_{n}"] for n in range(int(said["inputs"])))
    affine = inputs["affine_lps"].astype(np.float64)
    if affine.shape != (4, 4) or not arrays:
        raise ValueError(f"case {said['name']!r} has no volume with an affine of 4 x 4")
    seen = Seen(
        {str(name): tensor[str(n)] for n, name in enumerate(said["tensor"])},
        {str(name): scores[str(n)] for n, name in enumerate(said["scores"])},
        {int(place): labels[f"labels_{place}"] for place in said["maps"]},
        {int(place): labels[f"margin_{place}"] for place in said["maps"]},
        {str(name): labels[f"rows_{n}"] for n, name in enumerate(said["rows"])},
    )
    return Case(str(said["name"]), arrays, affine), seen


def _save(file: Path, arrays: Arrays) -> None:
    # savez writes the time of day into the zip file; the same model gives the same bytes.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.ascontiguousarray(array), allow_pickle=False)


def _load(file: Path) -> Arrays:
    with zipfile.ZipFile(file) as archive:
        total = sum(entry.file_size for entry in archive.infolist())
        if total > _MAX_BYTES:
            raise ValueError(f"{file.name} would unpack to {total} bytes, over {_MAX_BYTES}")
        for entry in archive.infolist():
            with archive.open(entry) as opened:
                _check_header(opened, entry)
    with np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _check_header(opened: Any, entry: zipfile.ZipInfo) -> None:
    """Refuse an array that says it is larger than its entry: it would be allocated before it is read."""
    version = np.lib.format.read_magic(opened)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(opened)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize > entry.file_size:
        raise ValueError(f"{entry.filename} says it is {dtype} {shape}, in {entry.file_size} bytes")


def check(card: Card, sessions: Sequence[Session], selftest: SelfTest) -> list[ParityReport]:
    """Run a model on the cases of its self-test and compare.

    Raises:
        DataError: as `run_case`; `grids-differ` where the card makes other arrays than the self-test holds.
        ConfigError: as `run_case`; `bad-selftest` where it is of another card.
    """
    precisions = {selftest.precision, str(sessions[0].facts().get("precision", "float32"))}
    allowed = LARGEST_DIFFERENCE if precisions == {"float32"} else REDUCED_DIFFERENCE
    reports = []
    for case, reference in selftest.cases:
        if len(case.arrays) != len(card.inputs):
            text = f"case {case.name} has {len(case.arrays)} volumes, the card {len(card.inputs)} inputs"
            raise ConfigError("bad-selftest", text)
        ours = run_case(card, sessions, case)
        apart = (ours.tensor, reference.tensor), (ours.scores, reference.scores), (ours.rows, reference.rows)
        if ours.labels.keys() != reference.labels.keys() or any(a.keys() != b.keys() for a, b in apart):
            raise ConfigError("bad-selftest", f"case {case.name} holds other outputs than the card says")
        reports.append(compare(card, reference, ours, case.name, window=True, allowed=allowed))
    return reports


def record_check(model_sha256: str, identity: Mapping[str, str], folder: Path, document: Mapping[str, Any]) -> None:
    """Note that a model was checked with an engine and its device, and what came of it."""
    whole = {"schema": CHECK_SCHEMA, **_key(model_sha256, identity), **document}
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = _file(model_sha256, identity, folder)
    part = file.with_suffix(".part")
    part.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    part.replace(file)


def checked(model_sha256: str, identity: Mapping[str, str], folder: Path | None) -> bool:
    """Say whether a model has passed its self-test with an engine on its device, by this version.

    Args:
        model_sha256: of the model.
        identity: of `Engine.identity`.
        folder: where checks are noted; None: nowhere.
    """
    if folder is None:
        return False
    try:
        document = json.loads(_file(model_sha256, identity, folder).read_text(encoding="utf-8"))
        key = _key(model_sha256, identity)
        return document["passes"] is True and all(document[name] == value for name, value in key.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _key(model_sha256: str, identity: Mapping[str, str]) -> dict[str, Any]:
    return {"model_sha256": model_sha256, "engine": dict(identity), "md": __version__}


def _file(model_sha256: str, identity: Mapping[str, str], folder: Path) -> Path:
    said = json.dumps(_key(model_sha256, identity), sort_keys=True)
    return folder / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.json"
