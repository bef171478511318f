"""From a volume to label values: windows, network, blending and the way back, side by side so that the network is never idle.

Nothing is held whole but the volume's own map: slabs are prepared, run, blended and given back in the order of k.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import DataError
from mdcli.inference.card import Card
from mdcli.inference.engines import Session, Tensor, misfit
from mdcli.inference.grid import Grid, network_grid
from mdcli.inference.invert import Inverter, highest_channel
from mdcli.inference.preprocess import Preprocessor
from mdcli.inference.windows import (
    Part,
    Tiling,
    Window,
    blend,
    extract,
    gaussian_weights,
    haloed_parts,
    overlapping_parts,
)

T = TypeVar("T")
Floats = NDArray[np.float32]

_PLACES = ("N", "C", "first", "second", "third")
_LARGE_SCORES_BYTES = 256 << 20
# What `full` stands for where no volume is known yet.
_FULL_AXIS = 512


@dataclass(frozen=True)
class Plan:
    """How a network goes over one volume.

    Attributes:
        grid: the network's and the volume's.
        tiling: where the windows lie.
        input_name: of the network.
        output_name: of the network.
        output_order: for each of the output's axes after C, which of k, j, i it is.
    """

    grid: Grid
    tiling: Tiling
    input_name: str
    output_name: str
    output_order: tuple[int, int, int]


def make_plan(card: Card, session: Session, shape: tuple[int, int, int], affine: NDArray[np.float64]) -> Plan:
    """Say how a network goes over a volume.

    Args:
        card: what the network wants.
        session: the network, opened.
        shape: the volume's, (k, j, i).
        affine: 4x4, (i, j, k) to mm, LPS+; its axes at right angles.

    Raises:
        ConfigError: `network-does-not-fit` where the network's inputs or outputs are not what the card says; `grid-too-large`.
    """
    wanted = _pick(session.inputs, card.input.tensor, "input")
    given = _pick(session.outputs, card.first_output.tensor, "output")
    grid = network_grid(shape, affine, card.input)
    output_order = grid.order_of(card.first_output.axes, card.input.axes)
    size = tuple(_size(card, wanted, place, grid.shape[axis]) for place, axis in enumerate(grid.order))
    _check_tensor(wanted, "input", (1, *size))
    sizes = {axis: size[place] for place, axis in enumerate(grid.order)}
    _check_tensor(given, "output", (card.first_output.channels, *(sizes[axis] for axis in output_order)))
    window = (sizes[0], sizes[1], sizes[2])
    k, j, i = (_parts(card, grid, axis, window[axis]) for axis in range(3))
    weights = None
    if card.cut.overlap is not None:
        weights = gaussian_weights(window) if card.cut.blending == "gaussian" else np.ones(window, np.float32)
    return Plan(grid, Tiling(grid.shape, window, (k, j, i), weights), wanted.name, given.name, output_order)


def _pick(tensors: tuple[Tensor, ...], name: str | None, what: str) -> Tensor:
    names = ", ".join(tensor.name for tensor in tensors)
    if name is None:
        if len(tensors) != 1:
            raise misfit(
                f"the network has {len(tensors)} {what}s ({names}), and the card does not say which: {what}.tensor"
            )
        return tensors[0]
    if what == "input" and len(tensors) != 1:
        raise misfit(f"the network has {len(tensors)} inputs ({names}), and the card gives one")
    found = next((tensor for tensor in tensors if tensor.name == name), None)
    if found is None:
        raise misfit(f"the card names {what} {name!r}; the network has {names}")
    return found


def _size(card: Card, wanted: Tensor, place: int, voxels: int) -> int:
    """Return the window along one of the network's axes."""
    size = card.cut.size[place]
    if isinstance(size, str):
        return voxels
    any_size = len(wanted.shape) == 5 and wanted.shape[2 + place] is None
    # With a halo the network's own edge stands for the volume's: a window does not reach over it unless its size is fixed.
    return min(size, voxels) if card.cut.halo is not None and any_size else size


def _check_tensor(tensor: Tensor, what: str, wanted: tuple[int, ...]) -> None:
    if tensor.dtype != "float32":
        raise misfit(f"the network's {what} {tensor.name} is {tensor.dtype}, not float32")
    if len(tensor.shape) != 5:
        raise misfit(f"the network's {what} {tensor.name} has {len(tensor.shape)} axes, not 5: N, C and three of space")
    for place, has, wants in zip(_PLACES, tensor.shape, (1, *wanted), strict=True):
        if has is not None and has != wants:
            axis = f"{place} axis of space" if place in _PLACES[2:] else place
            raise misfit(f"the network's {what} {tensor.name} has {has} along its {axis}, the card makes it {wants}")


def _parts(card: Card, grid: Grid, axis: int, window: int) -> tuple[Part, ...]:
    size, flip = grid.axes[axis].size, grid.axes[axis].flip
    if card.cut.halo is not None:
        return haloed_parts(size, window, card.cut.halo[grid.order.index(axis)])
    assert card.cut.overlap is not None
    return overlapping_parts(size, window, card.cut.overlap, flip=flip)


def windows_at_once(card: Card) -> int:
    """Return how many windows a CPU should work on side by side, each with its part of the cores.

    Two keep the cores busier than one with all of them. Where the scores of a window are large, the network's own memory is too,
    and one must do.
    """
    voxels = math.prod(_FULL_AXIS if isinstance(size, str) else size for size in card.cut.size)
    return 2 if voxels * card.first_output.channels * 4 <= _LARGE_SCORES_BYTES else 1


def predict(
    plan: Plan, card: Card, session: Session, preprocessor: Preprocessor, workers: int = 1
) -> Iterator[NDArray[Any]]:
    """Run a network over a volume.

    Args:
        plan: of `make_plan`.
        card: the same.
        session: the same.
        preprocessor: of the volume on `plan.grid`.
        workers: how many windows are run side by side. The labels do not depend on it.

    Yields:
        Labels on the volume's grid, slabs (k, j, i) in the order of k, contiguous, uint8 or uint16.

    Raises:
        DataError: `nan-in-output`, `overlap`.
        ConfigError: `network-does-not-fit`, `network-failed`.
    """
    tiling, inverter = plan.tiling, Inverter(plan.grid, card.first_output)
    # Where no two windows share a voxel, each gives its labels by itself, and its scores need not be kept.
    alone = tiling.weights is None and inverter.early
    run = _Run(plan, card, session, alone)
    with (
        ThreadPoolExecutor(1, "md-prepare") as prepare,
        ThreadPoolExecutor(workers, "md-network") as network,
        ThreadPoolExecutor(1, "md-invert") as invert,
    ):
        slabs = _in_order(prepare, _slab_calls(plan, preprocessor), ahead=1)
        runs = (
            partial(run, rows, first, window)
            for (first, rows), (_, windows) in zip(slabs, tiling.rows(), strict=True)
            for window in windows
        )
        outputs = _in_order(network, runs, ahead=workers)
        # Where only the highest channel matters, a common positive factor changes nothing.
        blended = blend(tiling, outputs, normalise=not inverter.early)
        calls = (partial(_invert, inverter, alone, first, values) for first, values in blended)
        for labels in _in_order(invert, calls, ahead=1):
            yield from labels


def _invert(inverter: Inverter, alone: bool, first: int, values: NDArray[Any]) -> list[NDArray[Any]]:
    return list(inverter.labels(first, values[0]) if alone else inverter.scores(first, values))


def _in_order(pool: Executor, calls: Iterable[Callable[[], T]], *, ahead: int) -> Iterator[T]:
    """Make calls in a pool, `ahead` of them beyond the one whose result is given next; results are in the order of the calls."""
    pending: deque[Future[T]] = deque()
    try:
        for call in calls:
            pending.append(pool.submit(call))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _slab_calls(plan: Plan, preprocessor: Preprocessor) -> Iterator[Callable[[], tuple[int, Floats]]]:
    """Give one call for each row of windows, to be made one after another: (first row, rows of the grid that the windows need)."""
    kept: list[tuple[int, Floats]] = []

    def rows(start: int, stop: int) -> tuple[int, Floats]:
        if not kept or plan.grid.same:
            # Converting a few rows again costs less than copying those at hand.
            found = preprocessor.rows(start, stop)
        else:
            before, values = kept.pop()
            done = before + len(values)
            found = np.concatenate([values[start - before :], preprocessor.rows(done, stop)])
        if not plan.grid.same:
            kept[:] = [(start, found)]
        return start, found

    for part, _ in plan.tiling.rows():
        yield partial(rows, max(part.start, 0), min(part.start + plan.tiling.window[0], plan.grid.shape[0]))


class _Run:
    """Runs the network on a window, in any thread."""

    def __init__(self, plan: Plan, card: Card, session: Session, alone: bool) -> None:
        self._plan, self._card, self._session, self._alone = plan, card, session, alone
        self._mine = threading.local()

    def __call__(self, rows: Floats, first: int, window: Window) -> NDArray[Any]:
        """Return the scores (C, k, j, i) of a window, or its labels (1, k, j, i) where it gives them by itself."""
        plan, size = self._plan, self._plan.tiling.window
        values = extract(rows, first, window, size, self._card.cut.padding_value)
        batch = np.ascontiguousarray(plan.grid.to_network(values))[None, None]
        out = self._memory((1, self._card.first_output.channels, *(size[axis] for axis in plan.output_order)))
        self._session.run({plan.input_name: batch}, {plan.output_name: out})
        _refuse_not_finite(out[0], window)
        scores = plan.grid.from_network(out[0], plan.output_order)
        return highest_channel(scores, self._card.first_output)[None] if self._alone else scores

    def _memory(self, shape: tuple[int, ...]) -> Floats:
        if not self._alone:
            return np.empty(shape, np.float32)
        if not hasattr(self._mine, "out"):
            self._mine.out = np.empty(shape, np.float32)
        out: Floats = self._mine.out
        return out


def _refuse_not_finite(scores: Floats, window: Window) -> None:
    if all(np.isfinite(channel).all() for channel in scores):
        return
    count = int((~np.isfinite(scores)).sum())
    starts = [part.start for part in window.parts]
    place = ", ".join(f"{axis} = {start}" for axis, start in zip("kji", starts, strict=True))
    message = f"the network gave {count} values of {scores.size} that are not finite, in the window from {place}"
    raise DataError("nan-in-output", message, count=count, window=starts)
