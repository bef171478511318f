"""Compare label maps and SEG objects with a gold standard, label by label.

Definitions differ between tools, so every report states these: `DEFINITIONS`.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.checking.seg import SAME_PLANE_MM, Seg, Segment
from mdcli.errors import DataError
from mdcli.imaging.nifti import Volume

# Source of the choice: reference tools agree on Dice, and differ on nearly all else, so each number says what it is.
DEFINITIONS: dict[str, str] = {
    "affine_mm": "largest distance between where the two affines (of a SEG: its frames) put a corner voxel's centre, mm",
    "dice": "2 |A and B| / (|A| + |B|), in voxels of one label",
    "centroid_voxels": "distance between the two centroids, each put into the patient by its own affine, in voxels of the gold",
    "bounding_box_voxels": "largest difference between the six faces of the two bounding boxes, in voxels of the gold",
    "volume_percent": "difference of the volumes (voxels times |det(affine)|), in percent of the gold's",
}
# A label map that md or a person made has a few hundred labels; this bounds memory, not use.
MOST_LABELS = 4096
HIGHEST_LABEL = 65535


@dataclass(frozen=True)
class Tolerances:
    """What still counts as equal; the defaults are the gold defaults. The units are in the names, the meanings in `DEFINITIONS`."""

    affine_mm: float = 1e-3
    dice: float = 0.999
    centroid_voxels: float = 0.1
    bounding_box_voxels: float = 1.0
    volume_percent: float = 0.5


@dataclass(frozen=True)
class Identity:
    """What a label is said to be.

    Attributes:
        name: as a person reads it.
        codes: `scheme:value` of category, type and the type's modifiers; where the gold gives none, none are compared.
    """

    name: str
    codes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """One difference: a fixed code, and a sentence with the value found and its limit."""

    code: str
    message: str


@dataclass(frozen=True)
class LabelResult:
    """How one label compares. A number is None where there is nothing to compute it from.

    Attributes:
        value: the label's value; of a SEG, the gold's segment number (the run's, where the gold lacks it).
        name: what it is said to be, or None.
        voxels: of the run.
        gold_voxels: of the gold.
        volume_ml: of the run, by the voxel volume of its own affine (of a SEG: by the gold's).
        gold_volume_ml: of the gold.
        dice: see `DEFINITIONS`, as the following.
        centroid_voxels: in voxels of the gold.
        centroid_mm: the same distance in millimetres.
        bounding_box_voxels: in voxels of the gold.
        volume_percent: with its sign: above zero where the run's is larger.
        problems: none where the label is within the tolerances.
    """

    value: int
    name: str | None
    voxels: int
    gold_voxels: int
    volume_ml: float
    gold_volume_ml: float
    dice: float | None = None
    centroid_voxels: float | None = None
    centroid_mm: float | None = None
    bounding_box_voxels: float | None = None
    volume_percent: float | None = None
    problems: tuple[Problem, ...] = ()

    @property
    def ok(self) -> bool:
        """Say whether it is within the tolerances."""
        return not self.problems

    @property
    def word(self) -> str:
        """Return the result in one word: ok, DIFFERS, missing or extra."""
        codes = {problem.code for problem in self.problems}
        if "label-missing" in codes:
            return "missing"
        if "label-extra" in codes:
            return "extra"
        return "DIFFERS" if codes else "ok"


@dataclass(frozen=True)
class FileResult:
    """How one file compares.

    Attributes:
        file: its name, the same in run and gold.
        kind: `labels` or `seg`.
        tolerances: what was allowed.
        reason: why they are looser than the defaults, or None.
        affine_mm: see `DEFINITIONS`; None where the grids have different sizes.
        problems: those of the file as a whole.
        labels: by value.
    """

    file: str
    kind: str
    tolerances: Tolerances = field(default_factory=Tolerances)
    reason: str | None = None
    affine_mm: float | None = None
    problems: tuple[Problem, ...] = ()
    labels: tuple[LabelResult, ...] = ()

    @property
    def ok(self) -> bool:
        """Say whether the file and every label in it are within the tolerances."""
        return not self.problems and all(label.ok for label in self.labels)

    @property
    def word(self) -> str:
        """Return the result in one word: ok, DIFFERS, missing or unreadable."""
        codes = {problem.code for problem in self.problems}
        for code in ("missing", "unreadable"):
            if code in codes:
                return code
        return "ok" if self.ok else "DIFFERS"


@dataclass(frozen=True)
class _Shape:
    """Where one label lies: voxel count, centroid (i, j, k), and the box's first and last voxel (i, j, k), both inside."""

    voxels: int
    centroid: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


class _Projections:
    """The projections of every label on the three axes: all that count, centroid and bounding box need."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.labels: dict[int, tuple[NDArray[np.int64], ...]] = {}

    def add(self, k: int, plane: NDArray[Any]) -> None:
        """Take one plane (j, i) of labels."""
        _, nj, ni = self.shape
        inside = np.flatnonzero(plane)
        if not inside.size:
            return
        values = plane.ravel()[inside]
        present, codes = _compact(values)
        j, i = np.divmod(inside, ni)
        along_j = np.bincount(codes * nj + j, minlength=present.size * nj).reshape(-1, nj)
        along_i = np.bincount(codes * ni + i, minlength=present.size * ni).reshape(-1, ni)
        for row, value in enumerate(present.tolist()):
            if value not in self.labels:
                if len(self.labels) == MOST_LABELS:
                    raise DataError(
                        "too-many-labels", f"a label map with more than {MOST_LABELS} labels is not compared"
                    )
                self.labels[value] = tuple(np.zeros(n, np.int64) for n in self.shape)
            on_k, on_j, on_i = self.labels[value]
            on_k[k] += along_i[row].sum()
            on_j += along_j[row]
            on_i += along_i[row]

    def shapes(self) -> dict[int, _Shape]:
        """Return where every label lies."""
        found = {}
        for value, (on_k, on_j, on_i) in self.labels.items():
            axes = (on_i, on_j, on_k)
            voxels = int(on_k.sum())
            centroid = np.array([float(axis @ np.arange(axis.size)) / voxels for axis in axes])
            edges = [np.flatnonzero(axis)[[0, -1]] for axis in axes]
            low, high = np.array(edges, np.float64).T
            found[value] = _Shape(voxels, centroid, low, high)
        return found


def _compact(values: NDArray[Any]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the values that occur, and for each element its place among them."""
    counts = np.bincount(values)
    present = np.flatnonzero(counts)
    places = np.zeros(counts.size, np.intp)
    places[present] = np.arange(present.size)
    return present, places[values]


def _labels_of(plane: NDArray[Any]) -> NDArray[Any]:
    """Return a plane as unsigned integers.

    Raises:
        DataError: `not-labels` for a value that is no whole number from 0 to 65535.
    """
    if plane.dtype.kind not in "uib":
        whole = np.isfinite(plane).all() and (plane == np.floor(plane)).all()
        if not whole:
            raise DataError("not-labels", "the values are not whole numbers: this is not a label map")
    if plane.size and (plane.min() < 0 or plane.max() > HIGHEST_LABEL):
        message = f"the values reach from {plane.min():g} to {plane.max():g}: labels lie from 0 to {HIGHEST_LABEL}"
        raise DataError("not-labels", message)
    return plane.astype(np.uint16, copy=False)


def _checked_affine(volume: Volume) -> NDArray[np.float64]:
    affine = np.asarray(volume.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise DataError("singular-affine", "the affine spans no volume: where the voxels lie is unknown")
    return affine


def _planes(volume: Volume) -> Iterator[NDArray[Any]]:
    """Give the planes (j, i) of a label map as unsigned integers, one after the other.

    Raises:
        DataError: `not-labels`.
    """
    for k in range(volume.array.shape[0]):
        yield _labels_of(volume.array[k])
        # The pages of a mapped file that were read would otherwise stay until the end.
        if isinstance(volume.array.base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            volume.array.base.madvise(mmap.MADV_DONTNEED)


def check_label_map(volume: Volume) -> int:
    """Return the highest label of a volume (k, j, i), read plane by plane.

    Raises:
        DataError: `not-labels`, `singular-affine`.
    """
    _checked_affine(volume)
    return max(int(plane.max()) for plane in _planes(volume))


def corner_distance_mm(gold: NDArray[np.float64], run: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """Return the largest distance between where two affines put a voxel's centre, mm.

    It is reached at one of the eight corners, since the difference of two affine maps is one too.

    Args:
        gold: 4x4, (i, j, k) to mm.
        run: the same.
        shape: (k, j, i).
    """
    last = np.array(shape[::-1]) - 1
    corners = np.array([[*(last * which), 1.0] for which in np.ndindex(2, 2, 2)])
    return float(np.linalg.norm(corners @ (gold - run).T, axis=1).max())


def compare_label_maps(
    gold: Volume,
    run: Volume,
    tolerances: Tolerances | None = None,
    *,
    identities: Mapping[int, Identity] | None = None,
    run_identities: Mapping[int, Identity] | None = None,
    file: str = "labels.nii",
) -> FileResult:
    """Compare two label maps, plane by plane, so that memory does not grow with the volume.

    Args:
        gold: labels (k, j, i), 0 the background.
        run: the same, to be judged.
        tolerances: the gold defaults where None.
        identities: what the gold says its labels are; then the run must say the same.
        run_identities: what the run says; None where it says nothing.
        file: the name for the report.

    Raises:
        DataError: `not-labels`, `too-many-labels`, `singular-affine`.
    """
    tolerances = tolerances or Tolerances()
    problems = []
    gold_affine, run_affine = _checked_affine(gold), _checked_affine(run)
    if gold.array.shape != run.array.shape:
        sizes = f"{run.array.shape[::-1]} voxels, the gold {gold.array.shape[::-1]} (i, j, k)"
        problem = Problem("shape", f"the grid has {sizes}")
        return FileResult(file, "labels", tolerances, problems=(problem,))
    distance = corner_distance_mm(gold_affine, run_affine, gold.array.shape)
    if not distance <= tolerances.affine_mm:
        problems.append(Problem("affine", f"the grid lies {distance:.4g} mm off, {tolerances.affine_mm:g} allowed"))
    if identities and run_identities is None:
        problems.append(
            Problem("no-names", "the gold says what its labels are, the run has no segments file that does")
        )

    gold_all, run_all = _Projections(gold.array.shape), _Projections(gold.array.shape)
    overlap: dict[int, int] = {}
    for k, (gold_plane, run_plane) in enumerate(zip(_planes(gold), _planes(run), strict=True)):
        gold_all.add(k, gold_plane)
        run_all.add(k, run_plane)
        counts = np.bincount(gold_plane[(gold_plane == run_plane) & (gold_plane != 0)])
        for value in np.flatnonzero(counts).tolist():
            overlap[value] = overlap.get(value, 0) + int(counts[value])

    gold_shapes, run_shapes = gold_all.shapes(), run_all.shapes()
    millilitres = [abs(float(np.linalg.det(affine[:3, :3]))) / 1000 for affine in (gold_affine, run_affine)]
    labels = []
    for value in sorted({*gold_shapes, *run_shapes, *(identities or {})}):
        said, run_said = (identities or {}).get(value), (run_identities or {}).get(value)
        known = said or run_said
        result = _judge(
            LabelResult(value, known.name if known else None, 0, 0, 0.0, 0.0),
            gold_shapes.get(value),
            run_shapes.get(value),
            overlap.get(value, 0),
            (gold_affine, run_affine),
            (millilitres[0], millilitres[1]),
            tolerances,
        )
        if said and run_identities is not None:
            result = replace(result, problems=result.problems + _identity_problems(said, run_said))
        labels.append(result)
    return FileResult(file, "labels", tolerances, None, distance, tuple(problems), tuple(labels))


def _identity_problems(gold: Identity, run: Identity | None) -> tuple[Problem, ...]:
    if run is None:
        return (Problem("name", f"the run does not say what this is; the gold says {gold.name!r}"),)
    found = []
    if run.name != gold.name:
        found.append(Problem("name", f"it is called {run.name!r}, in the gold {gold.name!r}"))
    if gold.codes and run.codes != gold.codes:
        found.append(Problem("code", f"its codes are {_listed(run.codes)}, in the gold {_listed(gold.codes)}"))
    return tuple(found)


def _listed(codes: tuple[str, ...]) -> str:
    return " ".join(codes) or "none"


def _judge(
    label: LabelResult,
    gold: _Shape | None,
    run: _Shape | None,
    overlap: int,
    affines: tuple[NDArray[np.float64], NDArray[np.float64]],
    millilitres: tuple[float, float],
    tolerances: Tolerances,
) -> LabelResult:
    """Fill in the numbers of one label and say which are out of tolerance. `affines`, `millilitres`: the gold's, the run's."""
    label = replace(
        label,
        voxels=run.voxels if run else 0,
        gold_voxels=gold.voxels if gold else 0,
        volume_ml=run.voxels * millilitres[1] if run else 0.0,
        gold_volume_ml=gold.voxels * millilitres[0] if gold else 0.0,
    )
    if gold is None and run is None:
        return replace(label, dice=1.0, volume_percent=0.0)
    if run is None or gold is None:
        code, where = ("label-missing", "gold") if run is None else ("label-extra", "run")
        problem = Problem(code, f"{label.gold_voxels or label.voxels} voxels in the {where}, none in the other")
        return replace(label, dice=0.0, problems=(problem,))

    off_mm = _place(affines[1], run.centroid) - _place(affines[0], gold.centroid)
    off_voxels = float(np.linalg.norm(np.linalg.solve(affines[0][:3, :3], off_mm)))
    # DICOM positions are decimal strings: a thousandth of a voxel is their rounding, not a difference.
    box = round(float(max(np.abs(gold.low - run.low).max(), np.abs(gold.high - run.high).max())), 3)
    dice = 2 * overlap / (gold.voxels + run.voxels)
    percent = 100 * (label.volume_ml - label.gold_volume_ml) / label.gold_volume_ml
    t = tolerances
    checks = [
        (dice >= t.dice, "dice", f"Dice {dice:.5f}, at least {t.dice:g} wanted"),
        (
            off_voxels <= t.centroid_voxels,
            "centroid",
            f"centroid {off_voxels:.3g} voxels off, {t.centroid_voxels:g} allowed",
        ),
        (box <= t.bounding_box_voxels, "bounding-box", f"box {box:g} voxels off, {t.bounding_box_voxels:g} allowed"),
        (abs(percent) <= t.volume_percent, "volume", f"volume {percent:+.3g} %, {t.volume_percent:g} allowed"),
    ]
    return replace(
        label,
        dice=dice,
        centroid_voxels=off_voxels,
        centroid_mm=float(np.linalg.norm(off_mm)),
        bounding_box_voxels=box,
        volume_percent=percent,
        problems=tuple(Problem(code, message) for ok, code, message in checks if not ok),
    )


def _place(affine: NDArray[Any], voxel: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(affine[:3, :3] @ voxel + affine[:3, 3])


def compare_segs(gold: Seg, run: Seg, tolerances: Tolerances | None = None, *, file: str = "seg.dcm") -> FileResult:
    """Compare two BINARY SEGs: segments are paired by their labels, frames by where they lie, in millimetres.

    The order of frames and segments does not matter, nor do frames without a pixel. Segments of one label are paired by their
    number. A frame of reference and source images that the gold names, the run must name too.

    Args:
        gold: as read by `read_seg`.
        run: the same, to be judged.
        tolerances: the gold defaults where None.
        file: the name for the report.
    """
    tolerances = tolerances or Tolerances()
    problems = []
    if gold.frame_of_reference_uid and gold.frame_of_reference_uid != run.frame_of_reference_uid:
        which = "lies in another" if run.frame_of_reference_uid else "names no"
        problems.append(Problem("frame-of-reference", f"it {which} frame of reference"))
    if (gold.rows, gold.columns) != (run.rows, run.columns):
        sizes = f"{run.rows} x {run.columns} pixels, those of the gold {gold.rows} x {gold.columns}"
        problems.append(Problem("shape", f"the frames have {sizes} (rows x columns)"))
        return FileResult(file, "seg", tolerances, problems=tuple(problems))

    distance, partner = _pair_planes(gold, run, max(SAME_PLANE_MM, tolerances.affine_mm))
    if not distance <= tolerances.affine_mm:
        problems.append(Problem("affine", f"a frame lies {distance:.4g} mm off, {tolerances.affine_mm:g} allowed"))
    affine = np.eye(4)
    affine[:3] = np.column_stack([gold.along_i, gold.along_j, gold.along_k, gold.frames[0].origin])
    millilitres = abs(float(np.linalg.det(affine[:3, :3]))) / 1000

    labels, strangers = [], 0
    for ours, theirs in _pair_segments(gold.segments, run.segments):
        gold_frames = {f: gold.mask(f) for f in _frames_of(gold, ours)}
        run_frames = {f: run.mask(f) for f in _frames_of(run, theirs)}
        overlap = 0
        for f, mask in gold_frames.items():
            for other in partner[f]:
                if other in run_frames:
                    overlap += int(np.count_nonzero(mask & run_frames[other]))
                    sources = gold.frames[f].sources
                    strangers += bool(sources and sources != run.frames[other].sources)
        named = ours or theirs
        assert named is not None
        result = _judge(
            LabelResult(named.number, named.label, 0, 0, 0.0, 0.0),
            _seg_shape(gold, gold_frames, affine),
            _seg_shape(run, run_frames, affine),
            overlap,
            (affine, affine),
            (millilitres, millilitres),
            tolerances,
        )
        labels.append(replace(result, problems=result.problems + _segment_problems(ours, theirs, result)))
    if strangers:
        problems.append(
            Problem("sources", f"{strangers} frames refer to other source images than the gold's, or to none")
        )
    return FileResult(file, "seg", tolerances, None, distance, tuple(problems), tuple(labels))


def _segment_problems(gold: Segment | None, run: Segment | None, result: LabelResult) -> tuple[Problem, ...]:
    if gold and run:
        return _identity_problems(Identity(gold.label, gold.codes), Identity(run.label, run.codes))
    if result.problems:
        return ()
    if gold:
        return (Problem("label-missing", "described in the gold, not in the run"),)
    return (Problem("label-extra", "described in the run, not in the gold"),)


def _frames_of(seg: Seg, segment: Segment | None) -> list[int]:
    return [f for f, frame in enumerate(seg.frames) if segment and frame.segment == segment.number]


def _pair_segments(gold: tuple[Segment, ...], run: tuple[Segment, ...]) -> list[tuple[Segment | None, Segment | None]]:
    """Pair segments by label; those whose label occurs more than once in either, by label and number."""

    def unique(segments: tuple[Segment, ...]) -> Callable[[Segment], bool]:
        labels = [segment.label for segment in segments]
        return lambda segment: labels.count(segment.label) <= 1

    once = unique(gold), unique(run)

    def key(segment: Segment) -> tuple[str, int]:
        return segment.label, 0 if all(is_unique(segment) for is_unique in once) else segment.number

    ours, theirs = {key(s): s for s in gold}, {key(s): s for s in run}
    return [(ours.get(k), theirs.get(k)) for k in (*ours, *(k for k in theirs if k not in ours))]


def _pair_planes(gold: Seg, run: Seg, within_mm: float) -> tuple[float, list[list[int]]]:
    """Return how far the run's frames lie off the gold's grid (mm), and for each gold frame the run's frames on its plane.

    A frame that the gold does not have (its label was empty there) is held against the nearest one of the gold, whole slice steps
    apart.
    """
    normal = np.cross(gold.along_i, gold.along_j)
    normal /= np.linalg.norm(normal)
    step = float(gold.along_k @ normal)
    gold_corners, run_corners = gold.corners(), run.corners()
    partner: list[list[int]] = [[] for _ in gold.frames]
    worst = 0.0
    for f, corners in enumerate(run_corners):
        off = corners - gold_corners
        distance = np.linalg.norm(off, axis=2).max(axis=1)
        for g in np.flatnonzero(distance <= min(within_mm, step / 2)).tolist():
            partner[g].append(f)
        nearest = int(distance.argmin())
        steps = np.round(off[nearest, 0] @ normal / step)
        worst = max(worst, float(np.linalg.norm(off[nearest] - steps * gold.along_k, axis=1).max()))
    return worst, partner


def _seg_shape(seg: Seg, masks: dict[int, NDArray[np.bool_]], affine: NDArray[np.float64]) -> _Shape | None:
    """Return where a segment lies, in voxels of the gold's grid, whose affine is given; None where it has no pixel."""
    voxels, corners = 0, []
    moment: NDArray[np.float64] = np.zeros(3)
    for f, mask in masks.items():
        on_j, on_i = mask.sum(axis=1), mask.sum(axis=0)
        count = int(on_j.sum())
        if not count:
            continue
        origin = seg.frames[f].origin
        voxels += count
        moment += count * origin
        moment += float(on_i @ np.arange(on_i.size)) * seg.along_i + float(on_j @ np.arange(on_j.size)) * seg.along_j
        for i in np.flatnonzero(on_i)[[0, -1]]:
            for j in np.flatnonzero(on_j)[[0, -1]]:
                corners.append(origin + i * seg.along_i + j * seg.along_j)
    if not voxels:
        return None
    back = np.linalg.inv(affine)
    points = np.array(corners) @ back[:3, :3].T + back[:3, 3]
    return _Shape(voxels, _place(back, moment / voxels), points.min(axis=0), points.max(axis=0))
