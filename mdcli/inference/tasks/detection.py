"""Boxes out of a network's outputs, and where they lie in the patient.

On a network's grid a box is two ends along each axis, in voxels, 0 the outer edge of the first voxel: a box from 0 to n covers n
voxels. On the volume's grid ends are voxel indices (i, j, k), 0 the middle of the first voxel, as the affine takes them: the same
box goes from -0.5 to n - 0.5.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mdcli.imaging.nifti import PATIENT
from mdcli.inference.engines import misfit
from mdcli.inference.tasks.images import Images
from mdcli.inference.tasks.scores import Floats, activated, described, document, finite
from mdcli.inference.tasks.settings import Detection, box_axes

if TYPE_CHECKING:
    from mdcli.inference.card import Label

SCHEMA = "md.detections/1"
# torchvision and MONAI hold a regression of a size back before it goes into exp.
_LARGEST_GROWTH = math.log(1000 / 16)


@dataclass(frozen=True)
class Boxes:
    """Boxes on a network's grid, the highest score first.

    Attributes:
        ends: (n, 2, axes) float32, the low and the high ends, axes in the order of the network's input.
        scores: (n,) float32.
        labels: (n,) int64, label values from 1.
    """

    ends: Floats
    scores: Floats
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)

    def of(self, chosen: NDArray[Any]) -> Boxes:
        """Return those that an index or a mask chooses."""
        return Boxes(self.ends[chosen], self.scores[chosen], self.labels[chosen])


def detect(
    outputs: Mapping[str, NDArray[Any]], said: Detection, axes: Sequence[str], size: Sequence[int], labels: int
) -> Boxes:
    """Return the boxes that a network found in one window.

    Args:
        outputs: tensor name to array, a batch of one first; decoded boxes may come without a batch.
        said: how they are read.
        axes: of the network's input without C.
        size: of the window, in that order.
        labels: how many the card has.

    Returns:
        Boxes within the window with a score above the threshold. Of each label none overlaps a better one by more than `nms`.

    Raises:
        ConfigError: `network-does-not-fit` where shapes are not what the card says.
        DataError: `nan-in-output`.

    Source: torchvision's RetinaNet.postprocess_detections and MONAI's BoxSelector: threshold, the best of each level, regressions
    decoded, clipped to the image, then overlaps.
    """
    parts = (
        _of_anchors(outputs, said, axes, size, labels)
        if said.form == "anchors"
        else _decoded(outputs, said, axes, labels)
    )
    found = _joined([_within(boxes, size, said.smallest) for boxes in parts], len(axes))
    found = best(found, said)
    return Boxes(found.ends + np.float32(0.5), found.scores, found.labels) if said.origin == "centre" else found


def _within(boxes: Boxes, size: Sequence[int], smallest: float) -> Boxes:
    """Clip boxes to the window; those of which nothing is left, or too little, are taken out."""
    ends = np.clip(boxes.ends, 0, np.array(size, np.float32))
    low, high = ends[:, 0], ends[:, 1]
    left: NDArray[np.bool_] = np.all((high > low) & (high >= low + np.float32(smallest)), axis=1)
    return Boxes(ends, boxes.scores, boxes.labels).of(left)


def _joined(parts: Sequence[Boxes], axes: int) -> Boxes:
    if not parts:
        return Boxes(np.zeros((0, 2, axes), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    columns = ((b.ends for b in parts), (b.scores for b in parts), (b.labels for b in parts))
    ends, scores, labels = (np.concatenate(list(column)) for column in columns)
    return Boxes(ends, scores, labels)


def best(boxes: Boxes, said: Detection) -> Boxes:
    """Return the best boxes: of a label none that overlaps a better one by more than `nms`, at most `most`, the best first."""
    kept = np.zeros(len(boxes), bool)
    for label in np.unique(boxes.labels):
        of_label = np.flatnonzero(boxes.labels == label)
        kept[of_label[not_overlapping(boxes.ends[of_label], boxes.scores[of_label], said.nms, said.most)]] = True
    chosen = np.flatnonzero(kept)
    return boxes.of(chosen[np.argsort(-boxes.scores[chosen], kind="stable")][: said.most])


def not_overlapping(ends: Floats, scores: Floats, threshold: float, most: int | None = None) -> NDArray[np.intp]:
    """Return the indices of boxes that overlap no better one, the best first; of equal scores the first box is the better.

    Args:
        ends: (n, 2, axes).
        scores: (n,).
        threshold: intersection over union above which the worse of two boxes goes.
        most: how many are wanted; None: all.

    Source: torchvision.ops.nms, in float32 as there.
    """
    left = np.argsort(-scores, kind="stable")
    sizes = np.prod(ends[:, 1] - ends[:, 0], axis=1, dtype=np.float32)
    kept: list[np.intp] = []
    while left.size and (most is None or len(kept) < most):
        first, left = left[0], left[1:]
        kept.append(first)
        low = np.maximum(ends[first, 0], ends[left, 0])
        high = np.minimum(ends[first, 1], ends[left, 1])
        common = np.prod(np.maximum(high - low, 0), axis=1, dtype=np.float32)
        overlap = common / (sizes[first] + sizes[left] - common)
        left = left[overlap.astype(np.float64) <= threshold]
    return np.array(kept, np.intp)


def merge(found: Sequence[tuple[Boxes, Sequence[int]]], said: Detection, size: Sequence[int]) -> Boxes:
    """Return the boxes of all windows, or of several networks, on the whole grid; of equal scores the larger box is the better.

    An object that a window's edge cuts has a box of its part there. It goes where the whole box is found with at least its score,
    and both overlap by more than `nms`.

    Args:
        found: boxes of each window, and where the window starts, axes in the order of the network's input.
        said: how overlapping boxes are settled.
        size: of the grid, in that order. What windows see beyond it is cut off.
    """
    moved = [Boxes(b.ends + np.array(start, np.float32), b.scores, b.labels) for b, start in found]
    whole = _within(_joined(moved, len(size)), size, 0)
    if len(found) == 1:
        return whole
    sizes = np.prod(whole.ends[:, 1] - whole.ends[:, 0], axis=1)
    return best(whole.of(np.argsort(-sizes, kind="stable")), said)


def _of_anchors(
    outputs: Mapping[str, NDArray[Any]], said: Detection, axes: Sequence[str], size: Sequence[int], labels: int
) -> Iterator[Boxes]:
    """Give the candidates of each level, decoded, in the network's own voxels."""
    classes = said.first_class + labels
    order = [box_axes(said.box).index(axis) for axis in axes]
    weights = np.array(said.box_weights or (1.0,) * len(said.box), np.float32)
    for level in _levels(outputs, said, axes, size, classes):
        probabilities = activated(finite(level.scores, "class scores"), said.activation)[:, said.first_class :]
        flat = probabilities.ravel()
        chosen = np.flatnonzero(flat > np.float32(said.threshold))
        chosen = chosen[np.argsort(-flat[chosen], kind="stable")][: said.candidates]
        anchors, numbers = np.divmod(chosen, labels)
        middles, sizes = level.anchors(anchors, said.anchor_start == "half-stride", order)
        moved = finite(level.boxes, "box regressions")[anchors] / weights
        dims = len(axes)
        grown = np.exp(np.minimum(moved[:, dims:], np.float32(_LARGEST_GROWTH))) * sizes
        middles = moved[:, :dims] * sizes + middles
        half = np.float32(0.5) * grown
        ends = np.stack([middles - half, middles + half], axis=1)[:, :, order]
        yield Boxes(ends, flat[chosen], numbers.astype(np.int64) + 1)


@dataclass(frozen=True)
class _Level:
    """One level of anchors: scores (anchors, classes), boxes (anchors, numbers); the anchors of a place follow one another.

    `cells` are the sizes of the anchors of a place, (n, axes) in the order of `box`; `grid` and `strides` are in the order of the
    network's axes.
    """

    scores: NDArray[Any]
    boxes: NDArray[Any]
    cells: Floats
    grid: tuple[int, ...]
    strides: tuple[int, ...]

    def anchors(self, numbers: NDArray[np.intp], half: bool, order: Sequence[int]) -> tuple[Floats, Floats]:
        """Return middles and sizes of anchors, axes in the order of `box`."""
        places, cells = np.divmod(numbers, len(self.cells))
        at = np.stack(np.unravel_index(places, self.grid), axis=1)
        middles = at * np.array(self.strides) + (np.array(self.strides) // 2 if half else 0)
        return middles[:, np.argsort(order)].astype(np.float32), self.cells[cells]


def _levels(
    outputs: Mapping[str, NDArray[Any]], said: Detection, axes: Sequence[str], size: Sequence[int], classes: int
) -> Iterator[_Level]:
    """Give each level of anchors, whatever form the network gives them in."""
    cells = anchor_sizes(said)
    scores = [_tensor(outputs, name) for name in said.scores]
    boxes = [_tensor(outputs, name) for name in said.boxes]
    split = len(scores) == 1 and len(cells) > 1
    grids: list[tuple[int, ...]] = []
    for n in range(len(cells)):
        array = scores[0 if split else n]
        if array.ndim == 2 + len(axes) and not split:
            grids.append(array.shape[2:])
        elif said.strides:
            grids.append(tuple(-(-whole // step) for whole, step in zip(size, said.strides[n], strict=True)))
        else:
            raise misfit(
                f"output {said.scores[n]!r} has the shape {array.shape}, of no map, and the card gives no strides"
            )
    counts = [math.prod(grid) * len(cell) for grid, cell in zip(grids, cells, strict=True)]
    first = 0
    for n, (cell, grid) in enumerate(zip(cells, grids, strict=True)):
        at = 0 if split else n
        part = slice(first, first + counts[n])
        first += counts[n] if split else 0
        yield _Level(
            _rows(scores[at], (len(cell), classes), grid, said.scores[at], sum(counts) if split else counts[n])[part],
            _rows(boxes[at], (len(cell), len(said.box)), grid, said.boxes[at], sum(counts) if split else counts[n])[
                part
            ],
            cell,
            grid,
            said.strides[n] if said.strides else tuple(a // b for a, b in zip(size, grid, strict=True)),
        )


def _tensor(outputs: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in outputs:
        raise misfit(f"the card names output {name!r}; the network has {', '.join(outputs)}")
    return outputs[name]


def _rows(array: NDArray[Any], cells: tuple[int, int], grid: tuple[int, ...], name: str, anchors: int) -> NDArray[Any]:
    """Return an output as (anchors, numbers): places in the array's order, the anchors of one following one another.

    Args:
        array: (1, anchors, numbers), or (1, anchors a place * numbers, ...).
        cells: anchors a place, numbers an anchor.
        grid: the places of the level.
        name: of the output.
        anchors: how many there must be.
    """
    rows, channels = (1, anchors, cells[1]), (1, cells[0] * cells[1], *grid)
    if array.shape == rows:
        found: NDArray[Any] = array[0]
        return found
    if array.shape != channels:
        raise misfit(f"output {name!r} has the shape {array.shape}, the card makes it {rows} or {channels}")
    return np.moveaxis(array.reshape(*cells, *grid), (0, 1), (-2, -1)).reshape(-1, cells[1])


def anchor_sizes(said: Detection) -> list[Floats]:
    """Return for each level the sizes of the anchors of a place, (n, axes) float32 in voxels, axes in the order of `box`.

    Source: MONAI's AnchorGeneratorWithAnchorShape (shapes times scales), torchvision's and MONAI's AnchorGenerator (sizes and
    ratios); all round half a size to whole voxels, half-way to even.

    >>> boxes = dict(box=("xc", "yc", "xs", "ys"), origin="edge", first_class=0, scores=("s",), boxes=("b",))
    >>> said = Detection("anchors", **boxes, threshold=0.5, nms=0.5, anchor_sizes=((32,),), anchor_ratios=((1,), (4,)))
    >>> anchor_sizes(said)[0].tolist()
    [[32.0, 32.0], [16.0, 64.0]]
    """
    if said.anchor_shapes:
        shapes = np.array(said.anchor_shapes, np.float32)
        levels = [np.float32(scale) * shapes for scale in said.anchor_scales]
    else:
        ratios = np.array([(1.0, *ratio) for ratio in said.anchor_ratios], np.float32)
        product = np.prod(ratios, axis=1, keepdims=True)
        ratios /= np.sqrt(product) if ratios.shape[1] == 2 else product ** np.float32(1 / 3)
        levels = [
            (ratios[:, None] * np.array(sizes, np.float32)[None, :, None]).reshape(-1, ratios.shape[1])
            for sizes in said.anchor_sizes
        ]
    return [np.rint(level / 2) * 2 if said.anchors_rounded else level for level in levels]


def _decoded(outputs: Mapping[str, NDArray[Any]], said: Detection, axes: Sequence[str], labels: int) -> Iterator[Boxes]:
    """Give the boxes that the network decoded itself."""
    boxes, scores = _tensor(outputs, said.boxes[0]), _tensor(outputs, said.scores[0])
    named = [(said.boxes[0], boxes, 2), (said.scores[0], scores, 2 if said.classes is None else 1)]
    if said.classes is not None:
        named.append((said.classes, _tensor(outputs, said.classes), 1))
    batched = boxes.ndim == 3
    found = []
    for name, array, dims in named:
        if (
            array.ndim != dims + batched
            or (batched and array.shape[0] != 1)
            or array.shape[int(batched)] != boxes.shape[-2]
        ):
            raise misfit(f"output {name!r} has the shape {array.shape} beside boxes of shape {boxes.shape}")
        found.append(array[0] if batched else array)
    if found[0].shape[1] != len(said.box):
        raise misfit(
            f"output {said.boxes[0]!r} has the shape {boxes.shape}, the card's boxes have {len(said.box)} numbers"
        )
    ends = _ends(finite(found[0], "numbers of boxes"), said.box, axes)
    values = activated(finite(found[1], "scores of boxes"), said.activation)
    if said.classes is None:
        if values.shape[1] != said.first_class + labels:
            raise misfit(
                f"output {said.scores[0]!r} has {values.shape[1]} classes, the card {said.first_class + labels}"
            )
        values = values[:, said.first_class :]
        rows, numbers = np.divmod(np.arange(values.size), labels)
        values, ends = values.ravel(), ends[rows]
    else:
        numbers = np.asarray(finite(found[2], "classes of boxes"), np.int64) - said.first_class
        above = numbers[values > np.float32(said.threshold)]
        unknown = above[above >= labels]
        if unknown.size:
            raise misfit(
                f"output {said.classes!r} says class {unknown[0] + said.first_class}, the card has {labels} labels"
            )
    kept = np.flatnonzero((values > np.float32(said.threshold)) & (numbers >= 0))
    kept = kept[np.argsort(-values[kept], kind="stable")][: said.candidates]
    yield Boxes(ends[kept], values[kept], np.asarray(numbers[kept], np.int64) + 1)


def _ends(values: Floats, box: Sequence[str], axes: Sequence[str]) -> Floats:
    """Return boxes (n, numbers) as (n, 2, axes) in the order of the network's axes."""
    column = {part: values[:, n] for n, part in enumerate(box)}
    ends = np.empty((len(values), 2, len(axes)), np.float32)
    for n, axis in enumerate(axes):
        size = column.get(f"{axis}s")
        if f"{axis}c" in column and size is not None:
            ends[:, 0, n] = column[f"{axis}c"] - size / 2
            ends[:, 1, n] = column[f"{axis}c"] + size / 2
        else:
            ends[:, 0, n] = column[f"{axis}1"]
            ends[:, 1, n] = column[f"{axis}2"] if size is None else column[f"{axis}1"] + size
    return ends


class GridAxis(Protocol):
    """One axis of the network's grid on the volume: voxel n of it lies at `offset + step * n` of the volume's `source` voxels."""

    @property
    def source(self) -> int: ...  # noqa: D102

    @property
    def size(self) -> int: ...  # noqa: D102

    @property
    def step(self) -> float: ...  # noqa: D102

    @property
    def offset(self) -> float: ...  # noqa: D102

    @property
    def flip(self) -> bool: ...  # noqa: D102


def on_volume(
    ends: NDArray[Any], axes: Sequence[tuple[int, GridAxis]], apart: Mapping[int, tuple[float, float]] | None = None
) -> NDArray[np.float64]:
    """Return boxes of a network's grid on the volume's.

    Args:
        ends: (n, 2, axes) as `Boxes` has them.
        axes: for each of the network's axes, in its order, which of k, j, i it is (0, 1, 2), and that axis of the grid.
        apart: for an axis (0, 1, 2) that the network does not see, such as the slice that it ran on, the low and the high end of
            all boxes along it, in voxel indices of the volume.

    Returns:
        (n, 2, 3): low and high ends as voxel indices (i, j, k), within the volume.
    """
    found = np.empty((len(ends), 2, 3))
    for n, (kji, axis) in enumerate(axes):
        indices = np.asarray(ends[:, :, n], np.float64) - 0.5
        if axis.flip:
            indices = axis.size - 1 - indices[:, ::-1]
        found[:, :, 2 - kji] = np.clip(axis.offset + axis.step * indices, -0.5, axis.source - 0.5)
    for kji, (low, high) in (apart or {}).items():
        found[:, :, 2 - kji] = low, high
    return found


def in_patient(ends: NDArray[np.float64], affine: NDArray[np.float64]) -> dict[str, Any]:
    """Return where a box lies in the patient.

    Args:
        ends: (2, 3): low and high ends as voxel indices (i, j, k).
        affine: 4x4, voxel (i, j, k, 1) to mm, LPS+.

    Returns:
        Millimetres, LPS+: `centre_mm`, `size_mm` along the grid's i, j, k, their directions `axes`, and the eight `corners_mm`, i
        varying fastest. On an oblique grid the box is oblique as well.
    """
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    corners = [[ends[a, 0], ends[b, 1], ends[c, 2], 1] for c in (0, 1) for b in (0, 1) for a in (0, 1)]
    return {
        "centre_mm": (affine @ [*ends.mean(axis=0), 1])[:3].tolist(),
        "size_mm": ((ends[1] - ends[0]) * lengths).tolist(),
        "axes": (affine[:3, :3] / lengths).T.tolist(),
        "corners_mm": (np.array(corners) @ affine.T)[:, :3].tolist(),
    }


def detections_document(
    ends: NDArray[np.float64],
    boxes: Boxes,
    labels: Sequence[Label],
    said: Detection,
    geometry: Mapping[str, Any],
    affine: NDArray[np.float64],
    common: Mapping[str, Any],
) -> dict[str, Any]:
    """Return `detections.json`.

    Args:
        ends: (n, 2, 3) on the volume's grid, of `on_volume`.
        boxes: the same boxes, for their scores and labels.
        labels: the card's, found or not: they were searched for.
        said: the card's.
        geometry: `geometry.json`: which images the slices are, and whether they have a plane in the patient. Without one no
            millimetres are said.
        affine: of the volume, 4x4, voxel (i, j, k, 1) to mm, LPS+.
        common: what every result says, see `scores.document`.
    """
    names = {label.value: label.name for label in labels}
    plane = geometry.get("spacing_plane") or PATIENT
    images = Images(geometry, affine)
    found = []
    for n, (box, score, value) in enumerate(zip(ends, boxes.scores, boxes.labels, strict=True)):
        found.append(
            {
                "number": n + 1,
                "value": int(value),
                "name": names[int(value)],
                "score": float(score),
                "low_ijk": box[0].tolist(),
                "high_ijk": box[1].tolist(),
                "sop_instance_uid": images.nearest(box.mean(axis=0)),
                **(in_patient(box, affine) if plane == PATIENT else {}),
            }
        )
    counts = Counter(int(value) for value in boxes.labels)
    content = {
        "spacing_plane": plane,
        "labels": [{**described(label), "found": counts[label.value]} for label in labels],
        "threshold": said.threshold,
        "nms": said.nms,
        "most": said.most,
        "detections": found,
    }
    return document(SCHEMA, common, not found, content)
