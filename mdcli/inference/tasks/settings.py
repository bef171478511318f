"""What a card says of boxes and of instances: plain fields, without defaults wherever two networks in use differ."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Detection:
    """How boxes are read out of a network's outputs.

    Every number of a box is said by `box`, so that no axis order is guessed: `x1` and `x2` are the two ends along the card's axis
    x, `xc` the middle and `xs` the size.

    Attributes:
        form: `anchors`: class scores and box regressions of anchors; `boxes`: boxes that the network has decoded itself.
        box: what the numbers of a box are, in order: for each axis `x1` with `x2`, `x1` with `xs`, or `xc` with `xs`. With
            `anchors` they are regressions: the middles, then the sizes, such as `[xc, yc, zc, xs, ys, zs]`.
        origin: where 0 lies: `edge`, the outer edge of the first voxel (torchvision; a box from 0 to n covers n voxels), or
            `centre`, the middle of the first voxel (MONAI, whose boxes went through the affine).
        first_class: the number of the card's first label: which class channel with `anchors`, which number in the tensor of
            classes with `boxes`. torchvision counts the background as class 0, MONAI does not.
        activation: what turns class scores into probabilities.
        scores: the tensors with the scores of the classes; with `anchors` one for all levels, (N, anchors, classes), or one a
            level, (N, anchors a place * classes, ...) as MONAI's heads give it, the anchor varying slowest.
        boxes: the tensors with the boxes or regressions, as many, in the same form.
        classes: with `boxes`: the tensor with each box's class; none where `scores` has one column a class.
        strides: with `anchors` in one tensor: voxels from one place of a level to the next, in the order of the input's axes. Left
            out with one tensor a level: the window's size over the level's, rounded down.
        anchor_start: where the first anchor's middle is along each axis: `zero` (torchvision), or `half-stride`, at half a stride
            rounded down (MONAI).
        anchor_shapes: the sizes of the anchors of a place, in voxels, in the order of the axes in `box`.
        anchor_scales: a factor for `anchor_shapes` for each level (MONAI's `feature_map_scales`).
        anchor_sizes: instead of shapes: for each level the sizes s; with `anchor_ratios`.
        anchor_ratios: (r,) for each anchor of a plane: sizes `s / sqrt(r), s * sqrt(r)`; (r, q) for each of a volume: sizes in the
            ratio 1 : r : q whose product is s^3. In the order of the axes in `box`; the sizes vary fastest.
        anchors_rounded: half an anchor's size is rounded to whole voxels, as torchvision and MONAI do.
        box_weights: what the regressions were multiplied by in training, in the order of `box`; none: 1.
        threshold: lowest score of a box that is kept; it must be above it.
        candidates: how many boxes with the highest scores a level keeps before overlapping ones are taken out.
        nms: overlap (intersection over union) above which the box with the lower score is taken out, within a label.
        most: how many boxes a window, and the whole image, may keep.
        smallest: boxes that are smaller along an axis, in voxels, are taken out.
    """

    form: Literal["anchors", "boxes"]
    box: tuple[str, ...]
    origin: Literal["edge", "centre"]
    first_class: int
    scores: tuple[str, ...]
    boxes: tuple[str, ...]
    threshold: float
    nms: float
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    classes: str | None = None
    strides: tuple[tuple[int, ...], ...] = ()
    anchor_start: Literal["zero", "half-stride"] | None = None
    anchor_shapes: tuple[tuple[float, ...], ...] = ()
    anchor_scales: tuple[float, ...] = ()
    anchor_sizes: tuple[tuple[float, ...], ...] = ()
    anchor_ratios: tuple[tuple[float, ...], ...] = ()
    anchors_rounded: bool = True
    box_weights: tuple[float, ...] = ()
    candidates: int = 1000
    most: int = 300
    smallest: float = 0.0


@dataclass(frozen=True)
class Instances:
    """How single objects are told apart.

    Attributes:
        form: `components`: connected voxels of one label are one object; `centres`: every voxel of a label belongs to the centre
            nearest to where its offset points (Panoptic-DeepLab).
        connectivity: which voxels touch: 1 by a face, 2 by an edge as well, 3 by a corner as well.
        smallest_mm3: smaller objects are taken out.
        heatmap: with `centres`: the tensor that is high at centres, one channel.
        offsets: with `centres`: the tensor with a channel an axis: voxels from a voxel to its centre.
        offset_axes: with `centres`: the axis of each channel of `offsets`.
        threshold: with `centres`: lowest value of a centre; it must be above it.
        kernel: with `centres`: a centre is the highest within this many voxels along each axis; odd, 3 at least.
        most: how many objects there may be; more are refused.
    """

    form: Literal["components", "centres"]
    connectivity: Literal[1, 2, 3] = 1
    smallest_mm3: float = 0.0
    heatmap: str | None = None
    offsets: str | None = None
    offset_axes: tuple[str, ...] = ()
    threshold: float = 0.1
    kernel: int = 7
    most: int = 65535


MOST_INSTANCES = 65535
"""What 16 bits can count."""


def detection_problem(said: Detection, axes: tuple[str, ...]) -> str | None:
    """Return what makes no sense in a card's `detection`, the field first; None where all does.

    Args:
        said: the card's.
        axes: of the input, with or without C.
    """
    letters = [axis for axis in axes if axis != "C"]
    if problem := _box_problem(said.box, letters):
        return problem
    if not said.scores or len(said.scores) != len(said.boxes):
        return f"scores: {len(said.scores)} tensors and {len(said.boxes)} of boxes, where as many of both are wanted"
    for name in ("threshold", "nms"):
        if not 0 <= getattr(said, name) <= 1:
            return f"{name}: {getattr(said, name):g} is not in 0 to 1"
    if said.candidates < 1 or said.most < 1 or said.smallest < 0 or said.first_class < 0:
        return "candidates and most must be above 0, smallest and first_class not below 0"
    if said.form == "boxes":
        anchors = ("strides", "anchor_start", "anchor_shapes", "anchor_sizes", "box_weights")
        given = next((name for name in anchors if getattr(said, name)), None)
        if given or len(said.scores) != 1:
            return f"{given or 'scores'}: means nothing where the network has decoded its boxes, in one tensor"
        return None
    return _anchor_problem(said, len(letters))


def box_axes(box: tuple[str, ...]) -> list[str]:
    """Return the axes of a card's `box`, in the order in which they first appear.

    >>> box_axes(("x1", "y1", "x2", "y2"))
    ['x', 'y']
    """
    return list(dict.fromkeys(part[:1] for part in box))


def _box_problem(box: tuple[str, ...], letters: list[str]) -> str | None:
    pairs = (["1", "2"], ["1", "s"], ["c", "s"])
    parts = {letter: sorted(part[1:] for part in box if part[:1] == letter) for letter in letters}
    if len(box) != 2 * len(letters) or any(pair not in pairs for pair in parts.values()):
        wanted = ", ".join(
            f"{letter}1 with {letter}2, {letter}1 with {letter}s or {letter}c with {letter}s" for letter in letters
        )
        return f"box: [{', '.join(box)}] where {wanted} is wanted"
    return None


def _anchor_problem(said: Detection, dims: int) -> str | None:
    if [part[1:] for part in said.box] != ["c"] * dims + ["s"] * dims or (
        [part[:1] for part in said.box[:dims]] != [part[:1] for part in said.box[dims:]]
    ):
        return "box: with anchors the middles, then the sizes in the same order of axes are wanted"
    if said.classes is not None:
        return "classes: with anchors the scores have a column a class"
    if said.anchor_start is None:
        return "anchor_start: missing, which has no default: zero or half-stride"
    by_shape, by_size = bool(said.anchor_shapes), bool(said.anchor_sizes)
    if by_shape == by_size or by_shape != bool(said.anchor_scales) or by_size != bool(said.anchor_ratios):
        return "anchor_shapes: those with anchor_scales, or anchor_sizes with anchor_ratios, are wanted"
    levels = len(said.anchor_scales or said.anchor_sizes)
    wrong = [shape for shape in said.anchor_shapes if len(shape) != dims]
    wrong += [ratio for ratio in said.anchor_ratios if len(ratio) != dims - 1]
    numbers = [
        *said.anchor_scales,
        *(n for group in (said.anchor_shapes, said.anchor_sizes, said.anchor_ratios) for t in group for n in t),
    ]
    if wrong or not all(math.isfinite(n) and n > 0 for n in numbers):
        return f"anchor_shapes: numbers above 0, {dims} a shape or {dims - 1} a ratio, are wanted"
    single = len(said.scores) == 1 and bool(said.strides)
    if not single and len(said.scores) != levels:
        return f"scores: {len(said.scores)} tensors for {levels} levels of anchors, and no strides"
    if said.strides and (len(said.strides) != levels or any(len(s) != dims or min(s) < 1 for s in said.strides)):
        return f"strides: {levels} times {dims} numbers above 0 are wanted"
    if said.box_weights and (len(said.box_weights) != 2 * dims or min(said.box_weights) <= 0):
        return f"box_weights: {2 * dims} numbers above 0 are wanted"
    return None


def instances_problem(said: Instances, axes: tuple[str, ...]) -> str | None:
    """Return what makes no sense in a card's `instances`, the field first; None where all does.

    Args:
        said: the card's.
        axes: of the input, with or without C.
    """
    letters = sorted(axis for axis in axes if axis != "C")
    if said.smallest_mm3 < 0 or not 1 <= said.most <= MOST_INSTANCES:
        return f"smallest_mm3 must not be below 0, most from 1 to {MOST_INSTANCES}"
    if said.form == "components":
        given = "heatmap" if said.heatmap else "offsets" if said.offsets else None
        return f"{given}: means nothing with components" if given else None
    if said.heatmap is None or said.offsets is None:
        return "heatmap: that tensor and offsets are wanted with centres"
    if sorted(said.offset_axes) != letters:
        return f"offset_axes: [{', '.join(said.offset_axes)}] where one each of {', '.join(letters)} is wanted"
    if said.kernel < 3 or said.kernel % 2 == 0:
        return f"kernel: {said.kernel} is not odd and above 1"
    return None
