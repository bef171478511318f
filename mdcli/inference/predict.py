"""From volumes to what a network says of them: windows, network, blending and the way back, side by side so that the network is
never idle.

Nothing is held whole but the volumes' own maps and what is asked for: slabs are prepared, run, blended and given back as blocks.
"""

from __future__ import annotations

import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError
from mdcli.inference.card import MAP_TASKS, Card, Output
from mdcli.inference.devices import OutOfDeviceMemory
from mdcli.inference.engines import Session, Tensor, misfit
from mdcli.inference.grid import Grid
from mdcli.inference.invert import Inverter, highest_channel
from mdcli.inference.nnunet import point_weights
from mdcli.inference.preprocess import Rows
from mdcli.inference.windows import (
    Blender,
    Part,
    Tiling,
    Window,
    extract,
    gaussian_weights,
    haloed_parts,
    overlapping_parts,
)

T = TypeVar("T")
Floats = NDArray[np.float32]
Arrays = dict[str, NDArray[Any]]

_PLACES = ("N", "C", "first", "second", "third")
_LARGE_SCORES_BYTES = 256 << 20
# Carried scores up to this size are worth less than preparing the volume along its own first axis.
_SMALL_CARRY_BYTES = 256 << 20
# What `full` stands for where no volume is known yet.
_FULL_AXIS = 512
# The background's lead over every label in a window that is not run, as a score before softmax or sigmoid.
_SURE = 20.0
_WALKS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))


@dataclass(frozen=True)
class MapPlan:
    """One output that has a score for every voxel.

    Attributes:
        output: of the card.
        tensor: of the network.
        order: for each of its axes after C, which of k, j, i it is.
        channels: of the tensor.
    """

    output: Output
    tensor: str
    order: tuple[int, ...]
    channels: int


@dataclass(frozen=True)
class Plan:
    """How a network goes over one volume.

    Attributes:
        grid: the network's and the volume's.
        tiling: where the windows lie.
        feeds: for each input tensor, in the network's words, its channels of what is prepared.
        maps: outputs with a score for every voxel.
        others: tensors of other outputs.
        unsplit: those of them that have no batch, such as boxes of any number.
        flips: the axes (places after C of the network's array) that are mirrored, for every run of a window.
        padding_value: what lies outside the volume; None: its edge goes on.
        skip_below: windows whose values are all below this are not run; None: all are.
    """

    grid: Grid
    tiling: Tiling
    feeds: tuple[tuple[str, slice], ...]
    maps: tuple[MapPlan, ...]
    others: tuple[str, ...]
    unsplit: frozenset[str] = frozenset()
    flips: tuple[tuple[int, ...], ...] = ((),)
    padding_value: float | None = 0.0
    skip_below: float | None = None


@dataclass
class Busy:
    """How long at least one network run was going on, and how many windows were run and left out.

    Attributes:
        seconds: of the clock.
        windows: run.
        skipped: not run.
        smaller: the batch that was fallen back to where a GPU's memory did not do.
    """

    seconds: float = 0.0
    windows: int = 0
    skipped: int = 0
    smaller: int | None = None
    _running: int = 0
    _since: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> None:
        with self._lock:
            if self._running == 0:
                self._since = time.perf_counter()
            self._running += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._running -= 1
            if self._running == 0:
                self.seconds += time.perf_counter() - self._since

    def count(self, windows: int, skipped: int) -> None:
        """Take note of windows that were run, and of those that were not."""
        with self._lock:
            self.windows += windows
            self.skipped += skipped

    def fall_back(self, batch: int) -> None:
        """Take note of a batch that the device's memory does for."""
        with self._lock:
            self.smaller = min(batch, self.smaller or batch)


def make_plan(card: Card, session: Session, grid: Grid, *, skip: bool = False) -> Plan:
    """Say how a network goes over a volume.

    Args:
        card: what the network wants.
        session: the network, opened.
        grid: of `preprocess.prepare`.
        skip: leave out windows below the card's `skip_below`.

    Raises:
        ConfigError: `network-does-not-fit` where the network's inputs or outputs are not what the card says.
    """
    feeds = _feeds(card, session)
    first = next(tensor for tensor in session.inputs if tensor.name == feeds[0][0])
    size = tuple(_size(card, first, place, grid.shape[axis]) for place, axis in enumerate(grid.order))
    for name, part in feeds:
        tensor = next(tensor for tensor in session.inputs if tensor.name == name)
        _check_tensor(tensor, "input", (part.stop - part.start, *size))
    sizes = {axis: size[place] for place, axis in enumerate(grid.order)}
    maps: list[MapPlan] = []
    others: list[str] = []
    for output in card.outputs:
        if output.task in MAP_TASKS:
            maps.append(_map_plan(card, output, session, grid, sizes))
            maps += _heads(output, maps[-1], session)
        elif output.detection is not None:
            others += [*output.detection.scores, *output.detection.boxes]
            others += [output.detection.classes] if output.detection.classes else []
        else:
            given = _pick(session.outputs, output.tensor, "output")
            _check_tensor(given, "output", (output.channels,))
            others.append(given.name)
    known = {tensor.name for tensor in session.outputs}
    if missing := [name for name in others if name not in known]:
        raise misfit(f"the card names output {missing[0]!r}; the network has {', '.join(sorted(known))}")
    window = (sizes.get(0, 1), sizes.get(1, 1), sizes.get(2, 1))
    cut = card.cut
    k, j, i = (_parts(card, grid, axis, window[axis]) for axis in range(3))
    weights = None
    if cut.overlap is not None and (card.window is not None or maps):
        weights = _weights(cut.blending, window, grid)
    tiling = Tiling(grid.shape, window, (k, j, i), weights)
    channels = sum(said.channels for said in maps)
    if grid.across is not None:
        rest = [n for n in range(3) if n != grid.across]
        tiling = replace(tiling, walk=(grid.across, rest[0], rest[1]))
    elif tiling.carried_voxels(tiling.walk) * channels * 4 > _SMALL_CARRY_BYTES:
        tiling = tiling.walking(_WALKS)
    places = [card.input.axes.index(axis) - 1 for axis in card.mirror]
    flips = tuple(subset for n in range(len(places) + 1) for subset in itertools.combinations(places, n))
    skip_below = cut.skip_below if skip else None
    outside = None if cut.padding_mode == "edge" else cut.padding_value
    unsplit = (
        frozenset(others) if any(o.detection and o.detection.form == "boxes" for o in card.outputs) else frozenset()
    )
    return Plan(grid, tiling, feeds, tuple(maps), tuple(others), unsplit, flips, outside, skip_below)


def _feeds(card: Card, session: Session) -> tuple[tuple[str, slice], ...]:
    """Return the network's input tensors with their channels, in the order of the card's inputs."""
    names = ", ".join(tensor.name for tensor in session.inputs)
    counts: dict[str, int] = {}
    runs: list[str] = []
    for said in card.inputs:
        if said.tensor is None and len(session.inputs) != 1:
            raise misfit(
                f"the network has {len(session.inputs)} inputs ({names}), and the card does not say which: input.tensor"
            )
        name = said.tensor or session.inputs[0].name
        if name not in {tensor.name for tensor in session.inputs}:
            raise misfit(f"the card names input {name!r}; the network has {names}")
        if name in counts and runs[-1] != name:
            raise misfit(f"the inputs of tensor {name!r} are not beside each other in the card")
        counts[name] = counts.get(name, 0) + said.channels
        runs.append(name)
    if len(counts) != len(session.inputs):
        raise misfit(f"the network has {len(session.inputs)} inputs ({names}), and the card gives {len(counts)}")
    ends = list(itertools.accumulate(counts.values()))
    return tuple((name, slice(end - counts[name], end)) for name, end in zip(counts, ends, strict=True))


def _map_plan(card: Card, output: Output, session: Session, grid: Grid, sizes: Mapping[int, int]) -> MapPlan:
    given = _pick(session.outputs, output.tensor, "output")
    order = grid.order_of(output.axes, card.input.axes)
    _check_tensor(given, "output", (output.channels, *(sizes[axis] for axis in order)))
    return MapPlan(output, given.name, order, output.channels)


def _heads(output: Output, beside: MapPlan, session: Session) -> list[MapPlan]:
    """Return the further tensors of instances: centres and offsets."""
    said = output.instances
    if said is None or said.heatmap is None or said.offsets is None:
        return []
    found = []
    for name, channels in ((said.heatmap, 1), (said.offsets, len(said.offset_axes))):
        tensor = _pick(session.outputs, name, "output")
        _check_tensor(tensor, "output", (channels, *(None for _ in beside.order)))
        found.append(MapPlan(replace(output, activation="none", tensor=name), name, beside.order, channels))
    return found


def _pick(tensors: tuple[Tensor, ...], name: str | None, what: str) -> Tensor:
    names = ", ".join(tensor.name for tensor in tensors)
    if name is None:
        if len(tensors) != 1:
            raise misfit(
                f"the network has {len(tensors)} {what}s ({names}), and the card does not say which: {what}.tensor"
            )
        return tensors[0]
    found = next((tensor for tensor in tensors if tensor.name == name), None)
    if found is None:
        raise misfit(f"the card names {what} {name!r}; the network has {names}")
    return found


def _size(card: Card, wanted: Tensor, place: int, voxels: int) -> int:
    """Return the window along one of the network's axes."""
    size = card.cut.size[place]
    if isinstance(size, str):
        return voxels
    any_size = len(wanted.shape) == 1 + len(card.input.axes) and wanted.shape[2 + place] is None
    # With a halo the network's own edge stands for the volume's: a window does not reach over it unless its size is fixed.
    return min(size, voxels) if card.cut.halo is not None and any_size else size


def _check_tensor(tensor: Tensor, what: str, wanted: tuple[int | None, ...]) -> None:
    if tensor.dtype != "float32":
        raise misfit(f"the network's {what} {tensor.name} is {tensor.dtype}, not float32")
    axes = 1 + len(wanted)
    if len(tensor.shape) != axes:
        spatial = {2: "N and C", 4: "N, C and two of space", 5: "N, C and three of space"}[axes]
        raise misfit(f"the network's {what} {tensor.name} has {len(tensor.shape)} axes, not {axes}: {spatial}")
    # The batch is one, unless the network takes any.
    for place, has, wants in zip(_PLACES, tensor.shape, (1, *wanted), strict=False):
        if has is not None and wants is not None and has != wants:
            axis = f"{place} axis of space" if place in _PLACES[2:] else place
            raise misfit(f"the network's {what} {tensor.name} has {has} along its {axis}, the card makes it {wants}")


def _parts(card: Card, grid: Grid, axis: int, window: int) -> tuple[Part, ...]:
    size, flip = grid.axes[axis].size, grid.axes[axis].flip
    if axis == grid.across:
        return tuple(Part(n, (n, n + 1)) for n in range(size))
    if card.cut.halo is not None:
        return haloed_parts(size, window, card.cut.halo[grid.order.index(axis)])
    assert card.cut.overlap is not None
    return overlapping_parts(size, window, card.cut.overlap, flip=flip, even=card.cut.step == "even")


def _weights(blending: str | None, window: tuple[int, int, int], grid: Grid) -> Floats:
    if blending == "gaussian":
        return gaussian_weights(window)
    if blending == "gaussian-nnunet":
        flips = tuple(slice(None, None, -1 if axis.flip else 1) for axis in grid.axes)
        return np.ascontiguousarray(point_weights(window)[flips])
    return np.ones(window, np.float32)


def windows_at_once(card: Card) -> int:
    """Return how many windows a CPU should work on side by side, each with its part of the cores.

    Two keep the cores busier than one with all of them. Where the scores of a window are large, the network's own memory is too,
    and one must do.
    """
    voxels = math.prod(_FULL_AXIS if isinstance(size, str) else size for size in card.cut.size)
    channels = sum(output.channels for output in card.outputs if output.task in MAP_TASKS)
    return 2 if voxels * max(channels, 1) * 4 <= _LARGE_SCORES_BYTES else 1


def needed_bytes(plan: Plan, workers: int, batch: int = 1) -> int:
    """Return what a prediction holds at most beside the networks' own memory, the volume and the result.

    Carried scores, the windows in work, and two slabs of what is prepared.
    """
    channels = sum(said.channels for said in plan.maps)
    window = math.prod(plan.tiling.window)
    outer = plan.tiling.walk[0]
    slab = plan.tiling.window[outer] * math.prod(n for axis, n in enumerate(plan.tiling.shape) if axis != outer)
    fed = int(plan.feeds[-1][1].stop)
    carried = plan.tiling.carried_voxels(plan.tiling.walk) if plan.tiling.weights is not None else 0
    at_once = batch * workers
    return 4 * (channels * (carried + window * (batch + 1 + 2 * at_once)) + fed * (2 * slab + at_once * window))


@dataclass(frozen=True)
class Found:
    """What a network said of one window.

    Attributes:
        window: where.
        maps: (C, k, j, i) of each output with a score for every voxel, in the order of the plan; or, where each window stands for
            itself, its labels (1, k, j, i).
        others: arrays of the other outputs, without the batch.
    """

    window: Window
    maps: tuple[NDArray[Any], ...]
    others: Arrays


def predict(
    plan: Plan,
    sessions: Sequence[Session],
    rows: Rows,
    inverters: Sequence[Inverter],
    *,
    workers: int = 1,
    batch: int = 1,
    busy: Busy | None = None,
    take: Callable[[Found], None] | None = None,
    progress: Callable[[float], None] | None = None,
) -> None:
    """Run a network over a volume; what it says goes into the inverters' receivers.

    Args:
        plan: of `make_plan`.
        sessions: the networks, opened: for each of an ensemble whose scores are averaged one.
        rows: what the network sees.
        inverters: for each of `plan.maps` one.
        workers: how many windows are run side by side. The result does not depend on it.
        batch: how many windows are run at once.
        busy: takes how long the networks were busy.
        take: takes what is said of each window beside the maps.
        progress: takes the number of windows that are done.

    Raises:
        DataError: `nan-in-output`, `overlap`.
        ConfigError: `network-does-not-fit`, `network-failed`.
    """
    tiling, busy = plan.tiling, busy or Busy()
    if plan.unsplit:
        # Boxes of several windows in one array can't be told apart.
        batch = 1
    # Where no two windows share a voxel, each gives its labels by itself, and its scores need not be kept.
    alone = bool(plan.maps) and tiling.weights is None and all(inverter.early for inverter in inverters)
    run = _Run(plan, sessions, alone, busy)
    blenders = [
        Blender(tiling, normalise=inverter.normalised, again=inverter.needs_last) for inverter in inverters if not alone
    ]
    large = sum(said.channels for said in plan.maps) * math.prod(tiling.window) * 4 * batch > _LARGE_SCORES_BYTES // 2
    with (
        ThreadPoolExecutor(1, "md-prepare") as prepare,
        ThreadPoolExecutor(workers, "md-network") as network,
        ThreadPoolExecutor(1, "md-invert") as invert,
    ):
        slabs = _in_order(prepare, _slab_calls(plan, rows), ahead=1)
        runs = (
            partial(run, slab, first, windows[n : n + batch])
            for (first, slab), (_, windows) in zip(slabs, tiling.rows(), strict=True)
            for n in range(0, len(windows), batch)
        )

        def given() -> Iterator[Callable[[], None]]:
            for group in _in_order(network, runs, ahead=workers, waiting=not large):
                # A name that goes on standing for a window's scores would keep them while the next ones are waited for.
                while group:
                    found = group.pop(0)
                    yield from _hand_over(found)
                    if take is not None and plan.others:
                        yield partial(take, found)
                    if progress is not None:
                        progress(1)
                    del found

        def _hand_over(found: Found) -> Iterator[Callable[[], None]]:
            if alone:
                for inverter, labels in zip(inverters, found.maps, strict=True):
                    start = tuple(part.keep[0] for part in found.window.parts)
                    yield partial(inverter.labels, (start[0], start[1], start[2]), labels)
                return
            for blender, inverter, scores in zip(blenders, inverters, found.maps, strict=True):
                yield partial(inverter.take, blender.add(found.window, scores))

        try:
            if large:
                # A finished block is a part of its window's scores, which would be held as long as it waits.
                for call in given():
                    call()
                    del call
                return
            for _ in _in_order(invert, given(), ahead=1):
                pass
        except BaseException:
            # The pools wait for the runs that are going on, which may be long: a Ctrl-C, and the time that is over, are not to.
            for pool in (prepare, network, invert):
                pool.shutdown(wait=False, cancel_futures=True)
            for session in sessions:
                session.stop()
            raise


def _in_order(pool: Executor, calls: Iterable[Callable[[], T]], *, ahead: int, waiting: bool = True) -> Iterator[T]:
    """Make calls in a pool, `ahead` of them beyond the one whose result is given next; results are in the order of the calls.

    Args:
        pool: that makes them.
        calls: in order.
        ahead: how many are made while a result is used.
        waiting: a further result may wait for its turn, so that the pool is never idle; else the next call is begun when the one
            before is done and asked for, and no result waits.
    """
    pending: deque[Future[T]] = deque()
    try:
        for call in calls:
            if not waiting and len(pending) >= ahead:
                result = pending.popleft().result()
                pending.append(pool.submit(call))
                del call
                yield result
                del result
                continue
            pending.append(pool.submit(call))
            # The reference in a loop's variable would keep a window's scores until the next one comes.
            del call
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _slab_calls(plan: Plan, rows: Rows) -> Iterator[Callable[[], tuple[int, Floats]]]:
    """Give one call for each row of windows, to be made one after another: (first row, rows of the grid that the windows need)."""
    kept: list[tuple[int, Floats]] = []
    axis = plan.tiling.walk[0]

    def slab(start: int, stop: int) -> tuple[int, Floats]:
        if not kept or plan.grid.same:
            # Converting a few rows again costs less than copying those at hand.
            found = rows.rows(axis, start, stop)
        else:
            before, values = kept.pop()
            done = min(before + values.shape[axis + 1], stop)
            part = [slice(None)] * 4
            part[axis + 1] = slice(start - before, None)
            found = values[tuple(part)]
            if done < stop:
                found = np.concatenate([found, rows.rows(axis, done, stop)], axis=axis + 1)
        if not plan.grid.same:
            kept[:] = [(start, found)]
        return start, found

    for (start, stop), _ in plan.tiling.rows():
        yield partial(slab, start, stop)


class _Run:
    """Runs the networks on windows, in any thread."""

    def __init__(self, plan: Plan, sessions: Sequence[Session], alone: bool, busy: Busy) -> None:
        self._plan, self._sessions, self._alone, self._busy = plan, sessions, alone, busy
        self._mine = threading.local()

    def __call__(self, rows: Floats, first: int, windows: Sequence[Window]) -> list[Found]:
        """Return what the networks say of windows, in their order."""
        plan, size = self._plan, self._plan.tiling.window
        axis = plan.tiling.walk[0]
        seen = [extract(rows, axis, first, window, size, plan.padding_value) for window in windows]
        wanted = list(range(len(windows)))
        if plan.skip_below is not None:
            wanted = [n for n in wanted if float(seen[n].max()) >= plan.skip_below]
        found: dict[int, Found] = {}
        for start in range(0, len(wanted), self._batch(len(wanted))):
            group = wanted[start : start + self._batch(len(wanted))]
            for n, said in zip(group, self._several([seen[n] for n in group]), strict=True):
                found[n] = self._found(windows[n], said)
        self._busy.count(len(wanted), len(windows) - len(wanted))
        return [found[n] if n in found else self._background(window) for n, window in enumerate(windows)]

    def _batch(self, most: int) -> int:
        return max(min(most, self._busy.smaller or most), 1)

    def _several(self, seen: Sequence[Floats]) -> list[Arrays]:
        """Return the outputs of several windows, in smaller groups where the device's memory does not do."""
        try:
            return self._averaged(seen)
        except OutOfDeviceMemory:
            if len(seen) == 1:
                raise
            half = len(seen) // 2
            self._busy.fall_back(half)
        return [*self._several(seen[:half]), *self._several(seen[half:])]

    def _averaged(self, seen: Sequence[Floats]) -> list[Arrays]:
        """Return the outputs of a batch, averaged over networks and mirrored runs."""
        plan = self._plan
        network = [np.stack([plan.grid.to_network(channel) for channel in values]) for values in seen]
        batch = network[0][None] if len(network) == 1 else np.stack(network)
        runs = [(session, flips) for session in self._sessions for flips in plan.flips]
        total: Arrays = {}
        for session, flips in runs:
            axes = tuple(2 + place for place in flips)
            flipped = np.flip(batch, axes) if axes else batch
            feeds = {name: np.ascontiguousarray(flipped[:, channels]) for name, channels in plan.feeds}
            out: dict[str, NDArray[Any] | None] = {
                said.tensor: self._memory(said, len(batch), fresh=len(runs) > 1) for said in plan.maps
            }
            out |= dict.fromkeys(plan.others)
            with self._busy:
                said = session.run(feeds, out)
            for name, values in said.items():
                order = next((m.order for m in plan.maps if m.tensor == name), None)
                if axes and order is not None:
                    back = tuple(2 + order.index(plan.grid.order[place]) for place in flips)
                    values = np.flip(values, back)
                if name in total and total[name].shape != values.shape:
                    raise misfit(f"one network gives {name} as {values.shape}, another as {total[name].shape}")
                if name in total:
                    total[name] += values
                else:
                    total[name] = values if len(runs) == 1 else np.array(values, np.float32)
        if len(runs) > 1:
            for values in total.values():
                values /= np.float32(len(runs))
        return [
            {name: values if name in plan.unsplit else values[n] for name, values in total.items()}
            for n in range(len(batch))
        ]

    def _found(self, window: Window, said: Arrays) -> Found:
        plan = self._plan
        maps = []
        for one in plan.maps:
            scores = said[one.tensor]
            _refuse_not_finite(scores, window)
            scores = plan.grid.from_network(scores, one.order)
            if self._alone:
                scores = highest_channel(scores[(slice(None), *window.source)], one.output)
            maps.append(scores)
        others = {name: said[name] for name in plan.others}
        for values in others.values():
            _refuse_not_finite(values, window)
        return Found(window, tuple(maps), others)

    def _background(self, window: Window) -> Found:
        """Return what stands for a window that is not run: the background, for sure."""
        maps: list[NDArray[Any]] = []
        for one in self._plan.maps:
            size = self._plan.tiling.window
            scores = np.full((one.channels, *size), -_SURE, np.float32)
            if one.output.background:
                scores[0] = _SURE
            if self._alone:
                scores = highest_channel(scores[(slice(None), *window.source)], one.output)
            maps.append(scores)
        return Found(window, tuple(maps), {})

    def _memory(self, said: MapPlan, batch: int, *, fresh: bool) -> Floats:
        """Return memory for a tensor; where each window stands for itself, the thread's own, used again and again."""
        size = self._plan.tiling.window
        shape = (batch, said.channels, *(size[axis] for axis in said.order))
        if not self._alone or fresh:
            return np.empty(shape, np.float32)
        kept: dict[Any, Floats] = self._mine.__dict__.setdefault("kept", {})
        key = (said.tensor, shape)
        if key not in kept:
            kept[key] = np.empty(shape, np.float32)
        return kept[key]


def _refuse_not_finite(scores: NDArray[Any], window: Window) -> None:
    if scores.dtype.kind != "f" or all(np.isfinite(channel).all() for channel in np.atleast_1d(scores)):
        return
    count = int((~np.isfinite(scores)).sum())
    starts = [part.start for part in window.parts]
    place = ", ".join(f"{axis} = {start}" for axis, start in zip("kji", starts, strict=True))
    message = f"the network gave {count} values of {scores.size} that are not finite, in the window from {place}"
    raise DataError("nan-in-output", message, count=count, window=starts)
