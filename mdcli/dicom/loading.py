"""From the instances of a series to its volumes: what they are, where they lie, and their modality values, slab by slab.

Arrays are (k, j, i), of colour (k, j, i, 3). Affines are 4x4, voxel (i, j, k, 1) to mm, LPS+.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom import colour
from mdcli.dicom.finding import Finding
from mdcli.dicom.geometry import (
    SAME_POSITION_MM,
    Geometry,
    check_images,
    check_one_kind,
    completeness,
    regular_runs,
    volume_geometry,
)
from mdcli.dicom.instance import Instance
from mdcli.dicom.modality_lut import ModalityLut, apply_luts, modality_lut
from mdcli.dicom.multiframe import frames_of
from mdcli.dicom.opening import SourceFiles, shown
from mdcli.dicom.pixels import (
    Layout,
    Rescale,
    SliceRead,
    Span,
    check_header,
    file_digest,
    is_shared,
    layouts,
    modality_slabs,
    modality_span,
    padding_range,
    possible_span,
    rescale_of,
)
from mdcli.dicom.planar import Planar, check_may_be_planar, has_plane, planar_geometry
from mdcli.dicom.reading import read_stored
from mdcli.dicom.series import snake
from mdcli.dicom.sources import whole_header
from mdcli.dicom.volumes import Division, Part, Pick, dimension_of, divide
from mdcli.errors import DataError
from mdcli.imaging.resample import orthogonal_grid, outside_value, resample, resampled_dtype

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


@dataclass(frozen=True)
class Wish:
    """What the caller wants where a series leaves a choice.

    Attributes:
        pick: choices among several volumes.
        on_many: `refuse` several volumes, `split` them, or make one of four axes (`4d`).
        on_gap: `refuse` unevenly spaced slices, `resample` them on a regular grid, or `split` them into regular runs.
        untilt: resample a sheared volume on a grid at right angles.
        single_slice: take one slice as a volume, its SliceThickness as spacing.
        assume_hu: take CT values without a unit as HU.
        colour: make a volume of red, green and blue.
        suv: `bw` turns PET values into SUV by body weight.
        expect_instances: how many instances there should be.
    """

    pick: tuple[Pick, ...] = ()
    on_many: str = "refuse"
    on_gap: str = "refuse"
    untilt: bool = False
    single_slice: bool = False
    assume_hu: bool = False
    colour: bool = False
    suv: str | None = None
    expect_instances: int | None = None


@dataclass(frozen=True)
class Step:
    """The frames of one volume, or of one place along a fourth axis, in the order of k, and how to read them.

    Attributes:
        frames: one a slice.
        layouts: how each is encoded.
        paddings: the range of stored values that mean padding, of each.
        rescale: from stored to modality values; the identity where `luts` hold.
        luts: the Modality LUT of each, or none at all.
    """

    frames: tuple[Instance, ...]
    layouts: tuple[Layout, ...]
    paddings: tuple[tuple[int, int] | None, ...]
    rescale: Rescale
    luts: tuple[ModalityLut, ...] = ()


@dataclass(frozen=True)
class Regrid:
    """A volume that is not on the planes of its frames.

    Attributes:
        why: `gap`, `tilt` or both.
        shape: (k, j, i) of the volume.
        affine: of the volume.
        offsets: where each frame lies along k of the frames' own affine, in its steps; None where frame k lies at k.
        made: the slices of the volume that no frame lies on; None where none of them is on a frame's plane.
    """

    why: tuple[str, ...]
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    offsets: tuple[float, ...] | None
    made: tuple[int, ...] | None


@dataclass(frozen=True)
class Plan:
    """One volume, before its pixels are read.

    Attributes:
        name: of its child workspace; None where it is the only one.
        part: what tells it from the series' other volumes.
        steps: one; several where it has a fourth axis.
        geometry: where its frames lie: in the patient, or as a 2-D image's pixels do.
        dimension: its fourth axis, or None.
        regrid: the grid that it is brought to, or None.
        is_colour: it has red, green and blue.
        made: what no header says but was put in on request.
        findings: what a person may want to know.
    """

    name: str | None
    part: Part
    steps: tuple[Step, ...]
    geometry: Geometry | Planar
    dimension: dict[str, Any] | None
    regrid: Regrid | None
    is_colour: bool
    made: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def source_shape(self) -> tuple[int, int, int]:
        """Return the frames' own (k, j, i)."""
        layout = self.steps[0].layouts[0]
        return len(self.steps[0].frames), layout.rows, layout.columns

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the volume's (k, j, i)."""
        return self.regrid.shape if self.regrid else self.source_shape

    @property
    def affine(self) -> NDArray[np.float64]:
        """Return the volume's affine."""
        return self.regrid.affine if self.regrid else self.geometry.affine

    @property
    def unit(self) -> str | None:
        """Return the unit of the volume's values."""
        return self.steps[0].rescale.unit

    @property
    def frames(self) -> Iterator[Instance]:
        """Give all frames, step by step."""
        return itertools.chain.from_iterable(step.frames for step in self.steps)


@dataclass(frozen=True)
class SeriesPlan:
    """All volumes of a series that are wanted.

    Attributes:
        plans: one, or several to be split.
        completeness: as `mdcli.dicom.geometry.completeness` returns it.
        dropped: frames that were left out, with the reason.
        findings: what a person may want to know of the series.
    """

    plans: tuple[Plan, ...]
    completeness: dict[str, Any]
    dropped: tuple[tuple[Instance, str], ...]
    findings: tuple[Finding, ...] = ()

    @property
    def split(self) -> bool:
        """Say whether the volumes go on separately."""
        return self.plans[0].name is not None


def plan_series(files: SourceFiles, instances: Sequence[Instance], wish: Wish) -> SeriesPlan:
    """Find the volumes of a series, by its headers alone, and choose as the caller wishes.

    Args:
        files: where the instances' paths are opened.
        instances: of one series, no exact copies.
        wish: what to do where there is a choice.

    Raises:
        DataError: what `frames_of`, `check_images`, `divide`, `volume_geometry`, `layouts`, `rescale_of` and `suv_factors` refuse;
            `several-volumes`, `mixed-orientations`, `mixed-kinds` with a numbered list; `several-grids` where volumes can't share
            a fourth axis; `series-incomplete`, `series-too-long`.
        MissingError: `source-missing`.
    """
    whole = completeness(instances, wish.expect_instances)
    frames = frames_of(files, instances)
    check_images(frames)
    _check_shared_headers(files, instances, frames)
    planar = not any(has_plane(frame) for frame in frames)
    if planar:
        check_may_be_planar(frames)
        division = _divide_images(frames, wish.pick)
    else:
        division = divide(frames, wish.pick)
    if len(division.parts) > 1 and wish.on_many == "refuse":
        raise division.refusal()
    if len(division.parts) > 1 and wish.on_many == "4d" and (planar or division.code != "several-volumes"):
        raise division.refusal()
    groups = [division.parts] if wish.on_many == "4d" else [(part,) for part in division.parts]
    findings = list(division.findings)
    dropped = list(division.dropped)
    plans: list[Plan] = []
    names = _names(division) if len(groups) > 1 else [None]
    for name, parts in zip(names, groups, strict=True):
        try:
            if planar:
                plans.append(_planar_plan(files, name, parts[0], wish))
            elif wish.on_gap == "split" and len(parts) == 1:
                plans += _run_plans(files, name, parts[0], wish, dropped, findings)
            else:
                plans.append(_spatial_plan(files, name, parts, wish))
        except DataError as error:
            if name is None:
                raise
            raise DataError(error.code, f"{name}: {error.message}", hint=error.hint, **error.numbers) from error
    if wish.suv:
        plans = _in_suv(files, plans, frames)
    return SeriesPlan(tuple(plans), whole, tuple(dropped), tuple(findings))


def _check_shared_headers(files: SourceFiles, instances: Sequence[Instance], frames: Sequence[Instance]) -> None:
    """Hold the headers of files with several frames against what the scan noted; the others are when they are read."""
    import hashlib

    shared = {frame.path for frame in frames if is_shared(frame)}
    for instance in instances:
        if instance.path in shared:
            data = _header_bytes(files, instance)
            check_header(instance, data, hashlib.sha256(data).hexdigest())


def _header_bytes(files: SourceFiles, instance: Instance) -> bytes:
    with files.open(instance.path, instance.size) as file:
        return file.read(instance.size if instance.pixel_offset is None else instance.pixel_offset)


def header_of(files: SourceFiles, instance: Instance) -> Dataset:
    """Return the whole header of an instance's file.

    Raises:
        DataError: `source-changed`, `source-unreadable`.
        MissingError: `source-missing`.
    """
    return whole_header(_header_bytes(files, instance))


def _divide_images(frames: Sequence[Instance], picks: Sequence[Pick]) -> Division:
    """Divide frames without a plane: each file is an image, or a run of frames in time."""
    by_file = [list(group) for _, group in itertools.groupby(frames, key=lambda frame: frame.path)]
    by_file.sort(key=lambda group: (not isinstance(n := group[0].get("InstanceNumber"), int), n or 0, group[0].path))
    parts = tuple(
        Part(tuple(group), {"volume": number} if len(by_file) > 1 else {}) for number, group in enumerate(by_file, 1)
    )
    for pick in picks:
        if pick.name != "volume" or not pick.value.isdigit() or not 1 <= int(pick.value) <= len(parts):
            listed = Division(parts).listed()
            raise DataError(
                "no-such-volume", f"--pick {pick}: the series has {len(parts)} image(s) without a plane:{listed}"
            )
        parts = (replace(parts[int(pick.value) - 1], values={}),)
    reason = f"the series has {len(parts)} images that no plane puts into one volume"
    return Division(parts, "several-volumes" if len(parts) > 1 else None, reason)


def _names(division: Division) -> list[str]:
    """Return a name for each volume: `echo_2` where one whole number tells them apart, else `volume_1` and so on."""
    words = [part.words for part in division.parts]
    keys = list(dict.fromkeys(key for one in words for key in one))
    if len(keys) == 1:
        word = re.sub(r"[^a-z0-9_]+", "_", snake(keys[0]))
        values = [one.get(keys[0]) for one in words]
        whole = [int(v) for v in values if isinstance(v, (int, float)) and float(v).is_integer() and v >= 0]
        if len(set(whole)) == len(values):
            return [f"{word}_{value}" for value in whole]
    else:
        word = "volume"
    digits = len(str(len(words)))
    return [f"{word}_{number:0{digits}d}" for number in range(1, len(words) + 1)]


def _run_plans(
    files: SourceFiles,
    name: str | None,
    part: Part,
    wish: Wish,
    dropped: list[tuple[Instance, str]],
    findings: list[Finding],
) -> list[Plan]:
    """Return a plan for every regular run of a volume with gaps; a slice between gaps is left out, unless it may be a volume."""
    runs = regular_runs(part.frames)
    lonely = [run[0] for run in runs if len(run) == 1 and not wish.single_slice] if len(runs) > 1 else []
    if lonely:
        dropped += [(frame, "alone-between-gaps") for frame in lonely]
        names = ", ".join(shown(frame.path) for frame in lonely[:5]) + (" ..." if len(lonely) > 5 else "")
        text = f"{len(lonely)} slices that stand alone between gaps left out: {names}"
        findings.append(Finding("slices-left-out", text, {"slices": len(lonely)}))
        runs = [run for run in runs if len(run) > 1]
    if not runs:
        raise DataError("irregular-spacing", "no two neighbouring slices make a regular run", slices=len(part.frames))
    if len(runs) == 1 and not lonely:
        return [_spatial_plan(files, name, (replace(part, frames=tuple(runs[0])),), wish)]
    digits = len(str(len(runs)))
    return [
        _spatial_plan(
            files,
            f"{f'{name}_' if name else ''}run_{number:0{digits}d}",
            (Part(tuple(run), {**part.values, "run": number}),),
            wish,
        )
        for number, run in enumerate(runs, 1)
    ]


def _spatial_plan(files: SourceFiles, name: str | None, parts: Sequence[Part], wish: Wish) -> Plan:
    steps: list[Step] = []
    findings: list[Finding] = []
    geometries: list[Geometry] = []
    for part in parts:
        check_one_kind(part.frames, colour=wish.colour)
        plans, notes = layouts(part.frames)
        geometry = volume_geometry(
            part.frames, single_slice=wish.single_slice, uneven=wish.on_gap == "resample" and not wish.colour
        )
        frames = [part.frames[n] for n in geometry.order]
        steps.append(_step(files, frames, [plans[n] for n in geometry.order], wish))
        geometries.append(geometry)
        findings += notes
    geometry = geometries[0]
    if len(parts) > 1:
        _check_one_grid(geometries, steps)
        findings += geometry.findings
        dimension = dimension_of(parts)
        part = Part(tuple(frame for p in parts for frame in p.frames))
    else:
        findings += geometry.findings
        dimension, part = None, parts[0]
    return Plan(
        name=name,
        part=part,
        steps=tuple(steps),
        geometry=geometry,
        dimension=dimension,
        regrid=_regrid(geometry, wish),
        is_colour=wish.colour,
        made=geometry.made,
        findings=tuple(findings),
    )


def _planar_plan(files: SourceFiles, name: str | None, part: Part, wish: Wish) -> Plan:
    check_one_kind(part.frames, colour=wish.colour)
    plans, findings = layouts(part.frames)
    geometry = planar_geometry(part.frames[0], header_of(files, part.frames[0]))
    steps = [_step(files, [frame], [plan], wish) for frame, plan in zip(part.frames, plans, strict=True)]
    dimension = None
    if len(steps) > 1:
        times = [frame.get("FrameTimeMs") for frame in part.frames]
        timed = all(isinstance(t, (int, float)) for t in times)
        dimension = {
            "name": "time" if timed else "frame",
            "keywords": ["FrameTime"] if timed else ["FrameNumber"],
            "unit": "ms" if timed else None,
            "values": times if timed else list(range(1, len(steps) + 1)),
        }
        text = (
            f"{len(steps)} frames without a plane: one image in {'time' if timed else 'frames'}, not a volume of slices"
        )
        findings = [*findings, Finding("image-in-time", text, {"frames": len(steps)})]
    if geometry.spacing_mm is None:
        text = "no header says how large a pixel is in the patient or at the detector: the volume has no millimetres"
        findings = [*findings, Finding("no-millimetres", text)]
    return Plan(name, part, tuple(steps), geometry, dimension, None, wish.colour, (), tuple(findings))


def _step(files: SourceFiles, frames: Sequence[Instance], plans: Sequence[Layout], wish: Wish) -> Step:
    paddings = tuple(None if wish.colour else padding_range(f, x) for f, x in zip(frames, plans, strict=True))
    if wish.colour:
        same = (1.0,) * len(frames), (0.0,) * len(frames)
        return Step(tuple(frames), tuple(plans), paddings, Rescale(*same, None, None))
    rescale = rescale_of(frames, assume_hu=wish.assume_hu)
    luts: tuple[ModalityLut, ...] = ()
    if any(frame.get("ModalityLUTSequence") is not None for frame in frames):
        luts = tuple(modality_lut(frame, header_of(files, frame)) for frame in frames)
        units = {lut.unit for lut in luts}
        if len(units) > 1:
            raise DataError("mixed-kinds", f"the Modality LUTs of the slices give {len(units)} units")
        rescale = replace(rescale, unit=luts[0].unit or (rescale.unit if rescale.assumed else None))
    return Step(tuple(frames), tuple(plans), paddings, rescale, luts)


def _check_one_grid(geometries: Sequence[Geometry], steps: Sequence[Step]) -> None:
    first = geometries[0]
    spaces = {step.frames[0].get("FrameOfReferenceUID") for step in steps}
    if len(spaces) > 1:
        text = f"the {len(steps)} volumes have {len(spaces)} frames of reference"
        raise DataError("several-frames-of-reference", text, hint="--on-many split makes one workspace of each")
    for number, (geometry, step) in enumerate(zip(geometries, steps, strict=True), 1):
        if geometry.shape != first.shape:
            text = f"volume {number} has shape {geometry.shape}, volume 1 {first.shape} (k, j, i)"
            raise DataError("several-grids", text, hint="--on-many split makes one workspace of each")
        off = float(np.linalg.norm(geometry.positions - first.positions, axis=1).max())
        turned = float(np.abs(geometry.affine - first.affine)[:3, :2].max()) * max(first.shape)
        if max(off, turned) > SAME_POSITION_MM:
            text = f"volume {number} lies {max(off, turned):.3g} mm from volume 1"
            raise DataError("several-grids", text, hint="--on-many split makes one workspace of each", off_mm=off)
        if step.rescale.unit != steps[0].rescale.unit:
            raise DataError("mixed-kinds", f"volume {number} has another unit than volume 1")


def _regrid(geometry: Geometry, wish: Wish) -> Regrid | None:
    """Return the grid to resample on, or None where the frames' own planes are the volume's."""
    why = []
    shape, affine, made = geometry.shape, geometry.affine, None
    if geometry.offsets is not None:
        why.append("gap")
        count = round(geometry.offsets[-1]) + 1
        shape = (count, *geometry.shape[1:])
        there = {round(o) for o in geometry.offsets if abs(o - round(o)) <= 1e-6}
        made = tuple(k for k in range(count) if k not in there)
    if wish.untilt and geometry.tilt["sheared"]:
        why.append("tilt")
        shape, affine = orthogonal_grid(shape, affine)
        made = None
    return Regrid(tuple(why), shape, affine, geometry.offsets, made) if why else None


def _in_suv(files: SourceFiles, plans: Sequence[Plan], series: Sequence[Instance]) -> list[Plan]:
    """Return the plans with values in SUV; the scan start is the earliest over the whole series."""
    from mdcli.dicom.suv import suv_factors

    slices = [frame for plan in plans for frame in plan.frames]
    suv = suv_factors(slices, lambda instance: header_of(files, instance), series)
    factors = iter(suv.factors)
    made = []
    for n, plan in enumerate(plans):
        steps = []
        for step in plan.steps:
            mine = [next(factors) for _ in step.frames]
            steps.append(replace(step, rescale=step.rescale.times(mine, "g/ml")))
        findings = (*plan.findings, *(suv.findings if n == 0 else ()))
        made.append(
            replace(plan, steps=tuple(steps), made=(*plan.made, f"SUV ({suv.kind}): {suv.how}"), findings=findings)
        )
    return made


@dataclass
class Reading:
    """The pixels of one volume, as they are read.

    Args:
        files: where the frames' paths are opened.
        plan: the volume.
        jobs: threads or processes.
        done: called with how many more frames were read.

    Attributes:
        reads: what reading each frame found, step by step; whole once `slabs` has ended.
        dtype: of the volume's values; known once `open` was called.
    """

    files: SourceFiles
    plan: Plan
    jobs: int
    done: Callable[[float], None]
    reads: list[list[SliceRead]] = field(default_factory=list)
    dtype: np.dtype[Any] = field(default_factory=lambda: np.dtype("uint8"))
    fill: float | None = None
    _first: tuple[NDArray[Any], list[SliceRead]] | None = None
    _span: Span | None = None
    _digests: dict[str, Future[str]] = field(default_factory=dict)
    _pool: ThreadPoolExecutor | None = None

    @property
    def disk_shape(self) -> tuple[int, ...]:
        """Return the shape in the file: (k, j, i), or (t, k, j, i)."""
        return self.plan.shape if self.plan.dimension is None else (len(self.plan.steps), *self.plan.shape)

    def open(self) -> None:
        """Find the type that holds every value exactly; of three axes this reads all pixels.

        Of four axes the type is what the headers allow, where all values are whole numbers; else all pixels are read once for it.
        """
        self._hash_shared()
        steps = self.plan.steps
        if self.plan.is_colour:
            self.dtype = np.dtype("uint8")
            return
        if len(steps) == 1:
            stored, reads = self._stored(steps[0])
            self._span = modality_span(stored, reads, steps[0].rescale)
            self._first = (stored, reads)
        else:
            spans = [None if s.luts else possible_span(s.layouts, s.rescale) for s in steps]
            if None in spans or any(span is not None and not _integer(span) for span in spans):
                spans = [modality_span(*self._stored(step), step.rescale) for step in steps]
            for span in spans:
                if span is not None:
                    self._span = span if self._span is None else self._span | span
        assert self._span is not None
        self.dtype = self._span.dtype
        if self.plan.regrid:
            self.dtype = resampled_dtype(self.dtype, "linear")

    def slabs(self) -> Iterator[NDArray[Any]]:
        """Give the volume's values in the order of the file, contiguous and little endian; of colour (k, j, i, 3)."""
        for step in self.plan.steps:
            stored, reads = self._first or self._stored(step)
            self._first = None
            self.reads.append(reads)
            if self.plan.is_colour:
                yield from self._colours(stored, step)
                continue
            assert self._span is not None
            slabs = modality_slabs(stored, step.rescale, self._span.dtype)
            if self.plan.regrid is None:
                yield from slabs
            else:
                yield from self._regridded(stored, slabs)
            del stored

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of every file that was read, by its path."""
        found = {
            frame.path: read.sha256
            for step, reads in zip(self.plan.steps, self.reads, strict=True)
            for frame, read in zip(step.frames, reads, strict=True)
            if read.sha256
        }
        found |= {path: digest.result() for path, digest in self._digests.items()}
        if self._pool:
            self._pool.shutdown()
        return found

    def _hash_shared(self) -> None:
        """Hash the files that hold several frames beside the reading: each once, however many of its frames are read."""
        shared = {frame.path: frame for frame in self.plan.frames if is_shared(frame)}
        if shared:
            self._pool = ThreadPoolExecutor(1)
            self._digests = {p: self._pool.submit(file_digest, self.files, frame) for p, frame in shared.items()}

    def _stored(self, step: Step) -> tuple[NDArray[Any], list[SliceRead]]:
        stored, reads = read_stored(self.files, step.frames, step.layouts, step.paddings, self.jobs, self.done)
        return apply_luts(stored, reads, step.luts) if step.luts else (stored, reads)

    def _colours(self, stored: NDArray[Any], step: Step) -> Iterator[NDArray[Any]]:
        if step.layouts[0].photometric != "PALETTE COLOR":
            yield stored
            return
        for plane, frame in zip(stored, step.frames, strict=True):
            first, table = colour.palette_of(header_of(self.files, frame))
            yield colour.apply_palette(plane, first, table)[None]

    def _regridded(self, stored: NDArray[Any], slabs: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        regrid, source = self.plan.regrid, self.plan.geometry.affine
        assert regrid is not None and self._span is not None
        values = np.concatenate(list(slabs)).astype(self._span.dtype, copy=False)
        del stored
        if self.fill is None:
            finite = values[np.isfinite(values)]
            lowest = float(finite.min()) if finite.size else 0.0
            step = self.plan.steps[0]
            ranges = {
                (p, a, b) for p, a, b in zip(step.paddings, step.rescale.slopes, step.rescale.intercepts, strict=True)
            }
            pair, slope, intercept = next(iter(ranges))
            one = len(ranges) == 1 and pair is not None and not step.luts
            padding = pair[0] * slope + intercept if one and pair is not None else None
            self.fill = outside_value(lowest, self.plan.unit, padding)
        planes = None if regrid.offsets is None else np.array(regrid.offsets)
        made = resample(
            values, source, regrid.shape, regrid.affine, order="linear", fill=self.fill, planes=planes, jobs=self.jobs
        )
        for slab in made:
            yield np.ascontiguousarray(slab, self.dtype.newbyteorder("<"))


def _integer(span: Span) -> bool:
    return span.dtype.kind in "iu"


def load_series(
    files: SourceFiles, instances: Sequence[Instance], wish: Wish | None = None, jobs: int = 1
) -> Iterator[tuple[Plan, NDArray[Any]]]:
    """Give the volumes of a series, each whole in memory: for callers that need no record of how they were read.

    Args:
        files: where the instances' paths are opened.
        instances: of one series, no exact copies.
        wish: what to do where there is a choice; None refuses wherever there is one.
        jobs: threads or processes.

    Yields:
        Each volume's plan (its `shape`, `affine`, `unit`), and its values (k, j, i), with a fourth axis (t, k, j, i).

    Raises:
        DataError: as `plan_series`, and what reading the pixels refuses.
    """
    for plan in plan_series(files, instances, wish or Wish()).plans:
        reading = Reading(files, plan, jobs, lambda _done: None)
        reading.open()
        shape = (*reading.disk_shape, 3) if plan.is_colour else reading.disk_shape
        yield plan, np.concatenate([slab.reshape(-1) for slab in reading.slabs()]).reshape(shape)
        reading.digests()


def told_apart(plan: Plan) -> Mapping[str, Any]:
    """Return what tells a volume from the others of its series, as JSON holds it."""
    return {keyword: list(v) if isinstance(v, tuple) else v for keyword, v in plan.part.values.items()}
