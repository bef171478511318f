"""Gather what a network says of one output over all its windows: label maps, masks, scores, objects, numbers a class, boxes.

Arrays are (k, j, i) on the grid that the network's input was made of.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.errors import ConfigError
from mdcli.inference.card import MAP_TASKS, Input, Output
from mdcli.inference.grid import Grid
from mdcli.inference.invert import Inverter, label_type
from mdcli.inference.predict import Found, Plan
from mdcli.inference.preprocess import Prepared
from mdcli.inference.results import vote
from mdcli.inference.tasks.detection import Boxes, detect, merge
from mdcli.inference.tasks.instances import Objects, by_centres, by_components, settled

# Gives an array a channel for scores, (k, j, i), to be filled; None where it is not kept.
Allocate = Callable[[int, tuple[int, int, int]], NDArray[Any] | None]


@dataclass
class Collector:
    """What is gathered of one output, over one run of a network or, where an ensemble votes, over several.

    Args:
        output: of the card.
        shape: of the grid, (k, j, i).
        keep_scores: gives an array a class that scores are written into; None: they are not kept.

    Attributes:
        labels: the label map, of a segmentation whose structures exclude each other, and of instances.
        masks: a mask a label, where structures may overlap.
        objects: of instances.
        found: what was said of each window of an output that is no map.
    """

    output: Output
    shape: tuple[int, int, int]
    keep_scores: Allocate | None = None
    labels: NDArray[Any] | None = None
    masks: list[NDArray[Any]] | None = None
    objects: Objects | None = None
    found: list[Found] = field(default_factory=list)
    _votes: list[NDArray[Any]] = field(default_factory=list)
    _mask_votes: list[NDArray[np.uint8]] = field(default_factory=list)
    _heads: list[NDArray[Any]] = field(default_factory=list)
    _runs: int = 0

    @property
    def is_map(self) -> bool:
        """Say whether the output has a score for every voxel."""
        return self.output.task in MAP_TASKS

    def begin(self, prepared: Prepared) -> list[Inverter]:
        """Return what takes the scores of the next run of a network."""
        if not self.is_map:
            return []
        output, grid = self.output, prepared.grid
        centres = output.instances is not None and output.instances.form == "centres"
        if centres:
            # Objects are told apart on the network's own grid, where its offsets mean something.
            grid = own_grid(grid)
        dtype = label_type(max((label.value for label in output.labels), default=0))
        self.labels = np.zeros(grid.source_shape, dtype) if output.form != "masks" else None
        self.masks = [np.zeros(self.shape, np.uint8) for _ in output.labels] if output.form == "masks" else None
        kept = None
        if self.keep_scores is not None and not centres:
            kept = [self.keep_scores(n, self.shape) for n in range(output.channels)]
        inverters = [
            Inverter(
                grid,
                output,
                labels=self.labels if output.form == "labels" else None,
                regions=self.labels if output.form == "regions" else None,
                masks=self.masks,
                kept=kept,
            )
        ]
        self._heads = []
        if centres and output.instances is not None:
            for channels in (1, len(output.instances.offset_axes)):
                arrays = [np.zeros(grid.source_shape, np.float32) for _ in range(channels)]
                self._heads += arrays
                plain = replace(output, activation="none", inversion="scores", form="labels")
                inverters.append(Inverter(grid, plain, kept=arrays))
        return inverters

    def take(self, found: Found) -> None:
        """Take what was said of a window."""
        if not self.is_map:
            self.found.append(found)

    def end(self) -> None:
        """Take note that a run is over; of an ensemble that votes there are several."""
        self._runs += 1
        if self.labels is not None:
            self._votes.append(self.labels)
        if self.masks is not None:
            if not self._mask_votes:
                self._mask_votes = [mask.copy() for mask in self.masks]
            else:
                for votes, mask in zip(self._mask_votes, self.masks, strict=True):
                    votes += mask

    def decide(self) -> None:
        """Let the runs vote, where there were several."""
        if self._runs < 2:
            return
        if self.labels is not None:
            self.labels = vote(self._votes, max(label.value for label in self.output.labels))
        if self.masks is not None:
            self.masks = [(votes * 2 > self._runs).astype(np.uint8) for votes in self._mask_votes]

    def tell_apart(self, prepared: Prepared, affine: NDArray[np.float64], jobs: int) -> None:
        """Tell single objects apart, and bring them back onto the volume's grid.

        Args:
            prepared: the network's grid.
            affine: of the volume, 4x4, (i, j, k) to mm.
            jobs: threads.
        """
        said, labels = self.output.instances, self.labels
        if said is None or labels is None:
            return
        voxel_mm3 = abs(float(np.linalg.det(affine[:3, :3])))
        if said.form == "components":
            self.objects = by_components(labels, said, voxel_mm3, jobs=jobs)
            return
        grid = prepared.grid
        heatmap, offsets = self._heads[0], np.zeros((3, *grid.shape), np.float32)
        axes = dict(zip(prepared.axes[1:], grid.order, strict=True))
        for name, values in zip(said.offset_axes, self._heads[1:], strict=True):
            axis = axes[name]
            offsets[axis] = -values if grid.axes[axis].flip else values
        steps = math.prod(axis.step for axis in grid.axes)
        objects = by_centres(labels, heatmap, offsets, said, voxel_mm3 * steps)
        back = Inverter(grid, replace(self.output, inversion="labels"), labels=(out := np.zeros(self.shape, np.uint16)))
        back.labels((0, 0, 0), objects.map)
        # On a coarser grid a small object may have no voxel left.
        self.objects = settled(out, objects.values, objects.scores, replace(said, smallest_mm3=0.0), voxel_mm3)
        own = np.zeros(self.shape, labels.dtype)
        Inverter(grid, replace(self.output, inversion="labels"), labels=own).labels((0, 0, 0), labels)
        self.labels = own

    def rows(self, tensor: str) -> NDArray[Any]:
        """Return the numbers that a network gave of each window, (windows, numbers)."""
        return np.stack([np.asarray(found.others[tensor], np.float32).reshape(-1) for found in self.found])

    def boxes(self, plan: Plan, inputs: Sequence[Input]) -> list[tuple[Boxes, int | None]]:
        """Return the boxes of the whole grid, and of a network of slices which slice each list is of."""
        said, grid = self.output.detection, plan.grid
        if said is None:
            raise ConfigError("bad-card", "boxes are asked of an output without detection")
        letters = inputs[0].axes[1:]
        size = [grid.shape[axis] for axis in grid.order]
        window = [plan.tiling.window[axis] for axis in grid.order]
        by_slice: dict[int | None, list[tuple[Boxes, Sequence[int]]]] = {}
        for found in self.found:
            outputs = {name: np.asarray(values)[None] for name, values in found.others.items()}
            if said.form == "boxes":
                outputs = dict(found.others)
            boxes = detect(outputs, said, letters, window, len(self.output.labels))
            starts = []
            for axis in grid.order:
                part = found.window.parts[axis]
                # The network counts from the other end of an axis that it sees reversed.
                start = grid.shape[axis] - part.start - plan.tiling.window[axis] if grid.axes[axis].flip else part.start
                starts.append(start)
            place = None if grid.across is None else found.window.parts[grid.across].start
            by_slice.setdefault(place, []).append((boxes, starts))
        return [(merge(several, said, size), place) for place, several in by_slice.items()]


def own_grid(grid: Grid) -> Grid:
    """Return a network's grid as the grid of both."""
    axes = [replace(a, source=a.size, step=1.0, offset=0.0, covers=None, nearest=False) for a in grid.axes]
    return Grid((axes[0], axes[1], axes[2]), grid.order)
