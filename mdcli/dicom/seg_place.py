"""Put the frames of a SEG on a grid, each where it says that it lies, and stack them into labels or masks.

A grid's affine takes (i, j, k, 1) to mm, LPS+; arrays are (k, j, i). Source: DICOM PS3.3 C.7.6.2.1.1, C.7.6.16.2.3, C.7.6.16.2.4.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.geometry import POSITION_OFF_GRID_MM, POSITION_OFF_GRID_SPACING
from mdcli.dicom.seg_in import Frame, Seg, SegFrames
from mdcli.errors import DataError

SAME_PLANE_MM = 1e-3
"""How far a frame's first pixel may lie from a voxel of the grid, beside what the decimals of its position leave open."""
SAME_PLANE_CORNER_MM = 0.05
"""How far the far corner of a frame may then be off: the grid has the mean direction of its slices, headers round theirs ..."""
SAME_PLANE_CORNER_VOXELS = 0.1
"""... and no further than this share of a voxel."""
MOST_VOXELS = 1 << 31
"""A grid that is made from the frames may have this many voxels."""


@dataclass(frozen=True)
class Grid:
    """Where voxels lie.

    Attributes:
        shape: (k, j, i).
        affine: 4x4, (i, j, k, 1) to mm, LPS+.
        positions: k to (3,), where the slice's first pixel really lies; a slice that is not in here lies where the affine says.
        images: (SOPInstanceUID, 1-based frame number or None) of every source image to its k.
        in_patient: its millimetres are the patient's; not those of a projection image.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    positions: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)
    images: Mapping[tuple[str, int | None], int] = field(default_factory=dict)
    in_patient: bool = True

    @property
    def sizes(self) -> NDArray[np.float64]:
        """Return how far voxels lie apart along i, j and k, mm."""
        return np.asarray(np.linalg.norm(self.affine[:3, :3], axis=0))


@dataclass(frozen=True)
class Place:
    """Where a frame lies on a grid: index by index, with nothing in between.

    Attributes:
        axis: the grid's axis that goes across the frame: 0 i, 1 j, 2 k.
        index: of the plane on that axis; may be outside the grid.
        transposed: the rows of the frame run along the faster of the other two axes.
        flipped: (rows, columns) of the frame that run backwards.
        first: (slower, faster) of the other two axes: the lowest index that the frame covers.
    """

    axis: int
    index: int
    transposed: bool
    flipped: tuple[bool, bool]
    first: tuple[int, int]

    def turned(self, frame: NDArray[Any]) -> NDArray[Any]:
        """Return a frame (rows, columns) as (slower, faster axis of the grid), both rising."""
        frame = frame[:: -1 if self.flipped[0] else 1, :: -1 if self.flipped[1] else 1]
        return frame.T if self.transposed else frame


def grid_of(geometry: Mapping[str, Any]) -> Grid:
    """Return the grid that `geometry.json` describes; of a 4-D volume the three axes in space.

    A slice's own position counts where it is as near to the uniform grid as a regular volume's may be.
    """
    affine = np.array(geometry["affine_lps"], np.float64)
    k, j, i = (int(v) for v in geometry["shape"][-3:])
    positions: dict[int, NDArray[np.float64]] = {}
    images: dict[tuple[str, int | None], int] = {}
    allowed = max(POSITION_OFF_GRID_MM, POSITION_OFF_GRID_SPACING * float(np.linalg.norm(affine[:3, 2])))
    # The slices of a resampled volume lie on another grid than their images.
    for entry in [] if geometry.get("resampled") else geometry["slices"]:
        at = int(entry["k"])
        if not 0 <= at < k:
            continue
        if entry.get("sop_instance_uid"):
            images[(str(entry["sop_instance_uid"]), entry.get("frame"))] = at
        position = entry.get("position_mm")
        if position is None:
            continue
        own = np.array(position, np.float64)
        if np.linalg.norm(own - (affine[:3, 3] + at * affine[:3, 2])) <= allowed + SAME_PLANE_MM:
            positions.setdefault(at, own)
    in_patient = geometry.get("spacing_plane", "patient") == "patient"
    return Grid((k, j, i), affine, positions, images, in_patient)


def place_frames(seg: Seg, grid: Grid) -> list[Place]:
    """Return where each frame lies on a grid.

    A frame is on the grid where its pixels are voxels of it: its rows and columns run along two of the grid's axes, forwards or
    backwards, with their spacing; its first pixel is within `SAME_PLANE_MM` of a voxel's centre (plus what the decimals of its
    position leave open), where the slice's own position counts as much as the uniform grid's; and its far corner is within
    `SAME_PLANE_CORNER_MM` and a tenth of a voxel. It may cover a part of the slice, and lie beside the grid.

    Frames without a plane in the patient, and all on a projection image, lie pixel by pixel on the slice that was made from the
    one image that they refer to.

    Raises:
        DataError: `other-grid` with both affines; `seg-without-plane`; `seg-orientations` where frames run across different
            axes.
    """
    if not grid.in_patient or any(frame.origin is None for frame in seg.frames):
        return [_by_reference(seg, frame, grid, n) for n, frame in enumerate(seg.frames)]
    turns: dict[bytes, Any] = {}
    places = []
    for n, frame in enumerate(seg.frames):
        key = frame.along_i.tobytes() + frame.along_j.tobytes()
        if key not in turns:
            turns[key] = _turn(seg, frame, grid)
        turn, off = turns[key]
        place, beside = (None, off) if turn is None else _place(seg, frame, grid, *turn)
        if place is None:
            raise _other_grid(seg, frame, grid, n, beside)
        places.append(place)
    if len({place.axis for place in places}) > 1:
        raise DataError("seg-orientations", f"the frames of {seg.name} run across different axes of the volume")
    return places


def _turn(seg: Seg, frame: Frame, grid: Grid) -> tuple[tuple[tuple[int, int], tuple[int, int]] | None, float]:
    """Return (axis, sign) that the columns and the rows of a frame run along; None where they don't; and the worst corner, mm."""
    found = []
    worst = 0.0
    for along, count in ((frame.along_i, seg.columns), (frame.along_j, seg.rows)):
        steps = grid.affine[:3, :3] * np.sign(_solved(grid.affine, along))
        off = np.linalg.norm(along[:, None] - steps, axis=0) * max(1, count - 1)
        axis = int(np.argmin(off))
        worst = max(worst, float(off[axis]))
        found.append((axis, int(np.sign(_solved(grid.affine, along)[axis]))))
    allowed = min(SAME_PLANE_CORNER_MM, SAME_PLANE_CORNER_VOXELS * float(grid.sizes.min()))
    if worst > allowed or found[0][0] == found[1][0]:
        return None, worst
    return (found[0], found[1]), worst


def _solved(affine: NDArray[np.float64], vector: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.solve(affine[:3, :3], vector))


def _place(
    seg: Seg, frame: Frame, grid: Grid, columns: tuple[int, int], rows: tuple[int, int]
) -> tuple[Place | None, float]:
    """Return the place of a frame whose axes run along the grid's, or None, and how far it is beside it, mm."""
    assert frame.origin is not None
    at = np.rint(_solved(grid.affine, frame.origin - grid.affine[:3, 3])).astype(int)
    axis = 3 - columns[0] - rows[0]
    expected = [grid.affine[:3, 3] + grid.affine[:3, :3] @ at]
    if axis == 2 and int(at[2]) in grid.positions:
        expected.append(grid.positions[int(at[2])] + grid.affine[:3, :2] @ at[:2])
    off = min(float(np.linalg.norm(frame.origin - place)) for place in expected)
    # A first pixel at the far end of the grid's axes carries their rounding.
    far = 0.0 if columns[1] > 0 and rows[1] > 0 else SAME_PLANE_CORNER_MM / 2
    if off > SAME_PLANE_MM + seg.rounding_mm + far:
        return None, off
    low = {}
    for (along, sign), count in ((columns, seg.columns), (rows, seg.rows)):
        low[along] = int(at[along]) if sign > 0 else int(at[along]) - (count - 1)
    slower, faster = max(low), min(low)
    place = Place(
        axis=axis,
        index=int(at[axis]),
        transposed=rows[0] != slower,
        flipped=(rows[1] < 0, columns[1] < 0),
        first=(low[slower], low[faster]),
    )
    return place, off


def _by_reference(seg: Seg, frame: Frame, grid: Grid, n: int) -> Place:
    found = {grid.images[key] for key in _keys(frame, grid) if key in grid.images}
    if len(found) != 1 or (seg.rows, seg.columns) != grid.shape[1:]:
        text = f"frame {n + 1} of {seg.name} has no plane in the patient, and does not lie on one image of the volume"
        raise DataError("seg-without-plane", text, images=len(found))
    return Place(2, found.pop(), False, (False, False), (0, 0))


def _keys(frame: Frame, grid: Grid) -> list[tuple[str, int | None]]:
    """Return a frame's sources as the grid may know them: a single-frame image may be referred to with frame 1."""
    return [key for uid, number in frame.sources for key in {(uid, number), (uid, None)} if key in grid.images]


def _other_grid(seg: Seg, frame: Frame, grid: Grid, n: int, off: float) -> DataError:
    own = _affine_of_frame(seg, frame)
    text = (
        f"frame {n + 1} of {seg.name} is not on the volume's grid, {off:.4g} mm beside it: it has {seg.rows} x {seg.columns} "
        f"pixels, affine {_rows(own)}; the volume has shape {grid.shape}, affine {_rows(grid.affine)} (k, j, i; LPS mm)"
    )
    hint = "--own-grid keeps the SEG's grid, --resample takes nearest neighbours on the volume's"
    numbers = {"seg_affine_lps": own.tolist(), "volume_affine_lps": grid.affine.tolist()}
    return DataError("other-grid", text, hint=hint, frame=n + 1, off_mm=off, **numbers)


def _affine_of_frame(seg: Seg, frame: Frame) -> NDArray[np.float64]:
    affine = np.eye(4)
    normal = np.cross(frame.along_i, frame.along_j)
    normal /= np.linalg.norm(normal)
    try:
        step = own_grid(seg).affine[:3, 2]
    except DataError:
        step = normal * (seg.spacing_between_mm or seg.thickness_mm or 1.0)
    affine[:3, 0], affine[:3, 1], affine[:3, 2], affine[:3, 3] = frame.along_i, frame.along_j, step, frame.origin
    return affine


def _rows(affine: NDArray[np.float64]) -> str:
    return "[" + "; ".join(" ".join(f"{v:.6g}" for v in row) for row in affine[:3]) + "]"


def own_grid(seg: Seg) -> Grid:
    """Return the regular grid that a SEG's own frames lie on; k rises along the normal, rows crossed with columns.

    Raises:
        DataError: `seg-without-plane`; `seg-orientations` where frames have several orientations or pixel spacings; `seg-irregular`
            where no uniform step leads to every frame (0.05 mm or 2 % of it, the larger); `no-spacing` for a single plane that
            says neither SpacingBetweenSlices nor SliceThickness; `grid-too-large`.
    """
    first = seg.frames[0]
    if first.origin is None:
        raise DataError("seg-without-plane", f"the frames of {seg.name} have no plane in the patient")
    count = max(seg.rows, seg.columns)
    for n, frame in enumerate(seg.frames):
        off = max(np.abs(frame.along_i - first.along_i).max(), np.abs(frame.along_j - first.along_j).max()) * count
        if off > SAME_PLANE_CORNER_MM:
            text = f"frame {n + 1} of {seg.name} has another orientation or pixel spacing than the first"
            raise DataError("seg-orientations", text, off_mm=float(off))
    normal = np.cross(first.along_i, first.along_j)
    normal /= np.linalg.norm(normal)
    origins = np.array([frame.origin for frame in seg.frames])
    heights = origins @ normal
    order = np.argsort(heights, kind="stable")
    # Planes less than half a tenth of a millimetre apart are one.
    level = np.zeros(len(order), int)
    level[order] = np.concatenate([[0], np.cumsum(np.diff(heights[order]) > POSITION_OFF_GRID_MM)])
    planes = np.array([origins[level == n].mean(axis=0) for n in range(level.max() + 1)])
    between = seg.spacing_between_mm or seg.thickness_mm
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 3] = first.along_i, first.along_j, planes[0]
    if len(planes) == 1:
        if between is None:
            raise DataError("no-spacing", f"{seg.name} has a single plane, and says no slice spacing or thickness")
        affine[:3, 2] = normal * between
        return _bounded(seg, affine, np.zeros(1, int), planes)
    steps = np.diff(planes @ normal)
    # Empty frames may be left out everywhere: then SpacingBetweenSlices says how many steps the shortest one found is.
    stated = seg.spacing_between_mm
    parts = max(1, round(float(steps.min()) / stated)) if stated else 1
    step = float(steps.min()) / parts
    indices = np.rint((planes - planes[0]) @ normal / step).astype(int)
    affine[:3, 2] = (planes[-1] - planes[0]) / indices[-1]
    step = float(affine[:3, 2] @ normal)
    expected = planes[0] + indices[:, None] * affine[:3, 2]
    off = float(np.linalg.norm(planes - expected, axis=1).max())
    if off > max(POSITION_OFF_GRID_MM, POSITION_OFF_GRID_SPACING * step) or len(set(indices.tolist())) < len(planes):
        text = f"the frames of {seg.name} lie on no regular grid: {off:.3g} mm beside steps of {step:.4g} mm"
        raise DataError("seg-irregular", text, off_mm=off, step_mm=step)
    return _bounded(seg, affine, indices, planes)


def _bounded(seg: Seg, affine: NDArray[np.float64], indices: NDArray[np.int_], planes: NDArray[np.float64]) -> Grid:
    shape = (int(indices[-1]) + 1, seg.rows, seg.columns)
    if shape[0] * shape[1] * shape[2] > MOST_VOXELS or max(shape) > 32767:
        text = f"the grid of {seg.name} would have {shape[0]} x {shape[1]} x {shape[2]} voxels"
        raise DataError("grid-too-large", text, shape=list(shape))
    return Grid(shape, affine, dict(zip(indices.tolist(), planes, strict=True)))


# Stacking


@dataclass
class Survey:
    """What the frames hold, once all were looked at.

    Attributes:
        labels: (k, j, i) label values, exclusive; None where voxels belong to two segments.
        voxels: segment number to how many voxels it has on the grid.
        overlaps: pair of segment numbers to how many voxels both have.
        outside: voxels of the SEG that the grid does not hold.
        doubled: frames that say again what another says.
    """

    labels: NDArray[Any] | None
    voxels: dict[int, int]
    overlaps: dict[tuple[int, int], int]
    outside: int
    doubled: int


class Stack:
    """A SEG's frames on a grid.

    Args:
        seg: without its pixels.
        frames: its pixels.
        grid: that its frames lie on.
        places: where each frame lies on it.
        values: segment number to the value in the labels.
        least: the lowest pixel value that belongs to a segment: 1, or a share of MaximumFractionalValue.
    """

    def __init__(
        self,
        seg: Seg,
        frames: SegFrames,
        grid: Grid,
        places: Sequence[Place],
        values: Mapping[int, int],
        least: float = 1,
    ) -> None:
        self.seg, self.grid, self.values, self.least = seg, grid, values, least
        self._frames, self._places = frames, places
        self._front = 2 - places[0].axis
        self._doubled: set[int] = set()
        table = np.full(1 << 16, -1, np.int32)
        table[sorted(seg.background)] = 0
        for number in seg.numbers:
            table[number] = number
        self._known = table

    def survey(self) -> Survey:
        """Look at every frame once.

        Raises:
            DataError: `seg-broken` where two frames of one segment on one plane differ, or a LABELMAP holds a value that is not
                described.
        """
        largest = max(self.values.values(), default=1)
        labels = np.zeros(self.grid.shape, np.uint8 if largest < 256 else np.uint16)
        seen = Survey(labels, dict.fromkeys(self.values, 0), {}, 0, 0)
        view = np.moveaxis(labels, self._front, 0)
        by_plane: dict[int, list[int]] = defaultdict(list)
        for n, place in enumerate(self._places):
            by_plane[place.index].append(n)
        for index in sorted(by_plane):
            inside = 0 <= index < view.shape[0]
            target = view[index] if inside else np.zeros(view.shape[1:], labels.dtype)
            found = self._on_plane(by_plane[index], seen)
            if not inside:
                seen.outside += sum(int(mask.sum()) for mask in found.values())
                continue
            self._count(found, target, seen)
        seen.doubled = len(self._doubled)
        if seen.overlaps:
            seen.labels = None
        return seen

    def _on_plane(self, frames: Sequence[int], seen: Survey) -> dict[int, NDArray[np.bool_]]:
        """Return number to mask (slower, faster axis) of what lies on one plane; what lies beside it is counted."""
        found: dict[int, NDArray[np.bool_]] = {}
        first: dict[int | None, int] = {}
        for n in frames:
            number, pixels = self.seg.frames[n].segment, self._frames.frame(n)
            if number in first:
                self._refuse_difference(first[number], n, pixels)
                self._doubled.add(n)
                continue
            first[number] = n
            if number is not None:
                masks = {number: pixels >= self.least}
            else:
                named = self._known[pixels]
                if named.min() < 0:
                    value = int(pixels[named < 0][0])
                    text = f"frame {n + 1} of {self.seg.name} holds the value {value}, which no segment has"
                    raise DataError("seg-broken", text, value=value)
                there = set(np.flatnonzero(np.bincount(named.ravel())).tolist())
                masks = {v: pixels == v for v in self.seg.numbers if v in there}
            for value, mask in masks.items():
                if mask.any():
                    found[value], beside = self._put(mask, self._places[n])
                    seen.outside += beside
        return found

    def _refuse_difference(self, one: int, other: int, pixels: NDArray[Any]) -> None:
        if self._places[one] != self._places[other] or not np.array_equal(self._frames.frame(one), pixels):
            text = f"frames {one + 1} and {other + 1} of {self.seg.name} are of one segment on one plane, and differ"
            raise DataError("seg-broken", text, frames=[one + 1, other + 1])

    def _put(self, pixels: NDArray[Any], place: Place) -> tuple[NDArray[Any], int]:
        """Return a frame's pixels on the whole plane, and how many that are not 0 lie beside it."""
        turned = place.turned(pixels)
        size = [n for axis, n in enumerate(self.grid.shape) if axis != self._front]
        if place.first == (0, 0) and list(turned.shape) == size:
            return turned, 0
        plane = np.zeros(size, pixels.dtype)
        to, take = [], []
        for start, count, length in zip(place.first, turned.shape, size, strict=True):
            low, high = max(start, 0), min(start + count, length)
            to.append(slice(low, max(low, high)))
            take.append(slice(low - start, max(low, high) - start))
        part = turned[take[0], take[1]]
        plane[to[0], to[1]] = part
        return plane, int(np.count_nonzero(turned)) - int(np.count_nonzero(part))

    def _count(self, found: Mapping[int, NDArray[np.bool_]], target: NDArray[Any], seen: Survey) -> None:
        shared = np.zeros(target.shape, np.uint16)
        for number, mask in found.items():
            seen.voxels[number] += int(np.count_nonzero(mask))
            shared += mask
            target[mask] = self.values[number]
        places = np.flatnonzero(shared.ravel() > 1)
        if not places.size:
            return
        numbers = sorted(found)
        # Counts of a plane are exact in float64, whose matrix product is many times faster than that of integers.
        both = np.array([found[number].ravel()[places] for number in numbers], np.float64)
        pairs = both @ both.T
        for a, b in zip(*np.nonzero(np.triu(pairs, 1)), strict=True):
            pair = (numbers[a], numbers[b])
            seen.overlaps[pair] = seen.overlaps.get(pair, 0) + int(pairs[a, b])

    def pixels(self, number: int) -> NDArray[Any]:
        """Return one segment on the grid, (k, j, i): 0 and 1, or its fractions."""
        out = np.zeros(self.grid.shape, np.uint8)
        view = np.moveaxis(out, self._front, 0)
        for n, (frame, place) in enumerate(zip(self.seg.frames, self._places, strict=True)):
            if frame.segment not in (None, number) or n in self._doubled or not 0 <= place.index < view.shape[0]:
                continue
            pixels = self._frames.frame(n)
            part = (pixels == number).astype(np.uint8) if frame.segment is None else pixels
            view[place.index] = self._put(part, place)[0]
        return out

    def mask(self, number: int) -> NDArray[np.uint8]:
        """Return one segment on the grid as 0 and 1, (k, j, i)."""
        return (self.pixels(number) >= self.least).view(np.uint8)


def lost_voxels(mask: NDArray[Any], affine: NDArray[np.float64], grid: Grid) -> int:
    """Return how many voxels that are not 0 have their centre outside all voxels of a grid.

    Args:
        mask: (k, j, i).
        affine: of the mask, (i, j, k, 1) to mm, LPS+.
        grid: that they should lie on.
    """
    to_grid = np.linalg.solve(grid.affine, affine)
    lost = 0
    for k, plane in enumerate(mask):
        j, i = np.nonzero(plane)
        places = to_grid[:3] @ np.stack([i, j, np.full(len(i), k), np.ones(len(i))])
        beyond = (places < -0.5) | (places >= np.array(grid.shape[::-1])[:, None] - 0.5)
        lost += int(beyond.any(axis=0).sum())
    return lost


def misplaced(seg: Seg, places: Sequence[Place], grid: Grid) -> Iterator[int]:
    """Yield each frame (1-based) that refers to images of the volume, but not to the slice that it lies on."""
    for n, (frame, place) in enumerate(zip(seg.frames, places, strict=True)):
        found = {grid.images[key] for key in _keys(frame, grid)}
        if place.axis == 2 and found and place.index not in found:
            yield n + 1
