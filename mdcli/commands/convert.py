"""Convert a tree of DICOM, NIfTI, NRRD, MHA and MHD."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mdcli.errors import DataError, MdError, MissingError, StorageError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mdcli.dicom.headers import Skipped
    from mdcli.dicom.instance import Instance
    from mdcli.dicom.series import Series
    from mdcli.imaging.nifti import Volume

# What is not an image, and no loss: the rest of what could not be read may be a piece of a patient.
_HARMLESS = frozenset(("not-dicom", "empty-file", "dicomdir", "not-a-file", "broken-link", "folder-link"))
# Their pixels, if any, are not what was measured.
_NO_IMAGES = ("SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG", "DOC")


@dataclass(frozen=True)
class _Grid:
    """What is asked of the result's grid: nothing, a spacing in mm along i, j, k, or the smallest along all three."""

    spacing: tuple[float, float, float] | None
    isotropic: bool
    labels: bool

    @property
    def asked(self) -> bool:
        """Say whether anything is resampled."""
        return self.spacing is not None or self.isotropic


@dataclass(frozen=True)
class _Job:
    """One thing to convert: a file, or a DICOM series.

    Attributes:
        name: how it is called, relative to the source.
        folder: of the result, relative to the destination; empty or ending with `/`.
        stem: of the result's name.
        series: the DICOM series; None for a file.
    """

    name: str
    folder: str
    stem: str
    series: Series | None = None


@dataclass
class _Counts:
    """What became of the results."""

    written: int = 0
    kept: int = 0
    claimed: set[Path] = field(default_factory=set)


def convert(
    source: Annotated[Path, typer.Argument(help="A folder (with all below it), a file or a zip file of DICOM.")],
    destination: Annotated[Path, typer.Argument(help="Folder for the results, in the source's own structure.")],
    to: Annotated[str, typer.Option("--to", help="nii, nii.gz, nrrd or mha.")] = "nii.gz",
    resolution: Annotated[
        str | None,
        typer.Option(metavar="MM[,MM,MM]", help="Resample to this spacing along i, j and k, or to one for all."),
    ] = None,
    isotropic: Annotated[
        bool, typer.Option("--isotropic", help="Resample to the smallest spacing along all axes.")
    ] = False,
    labels: Annotated[
        bool, typer.Option("--labels", "-l", help="The voxels are labels: nearest, never between two.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", "-f", help="Write over files that are there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Say what would be written; write nothing.")] = False,
    jobs: Annotated[int | None, typer.Option("--jobs", "-j", help="Cores to use (default: all).")] = None,
) -> int:
    """Convert every volume below a folder, and print the files written, one a line.

    Files keep their place and name; a DICOM series becomes series_003.nii.gz, by its number, in the folder of its files, and a
    series of several volumes several files. What is there is kept, unless --force. What fails is listed at the end, and the exit
    status is the worst. A sheared volume stays sheared, which MHA can't say; resampled, it gets a grid at right angles.
    """
    import os

    from mdcli.imaging.foreign import WRITTEN_FORMS
    from mdcli.imaging.resample import parse_spacing

    if to not in WRITTEN_FORMS:
        raise UsageError("unknown-form", f"--to is one of {', '.join(WRITTEN_FORMS)}, not {to}")
    if resolution is not None and isotropic:
        raise UsageError("no-grid", "--resolution and --isotropic are one or the other")
    if jobs is not None and jobs < 1:
        raise UsageError("bad-jobs", f"--jobs {jobs} is less than one")
    grid = _Grid(parse_spacing(resolution) if resolution is not None else None, isotropic, labels)
    _check_apart(source, destination)
    root, found, failures = _find(source)
    counts = _Counts()
    with _progress(len(found)) as advance:
        for job in found:
            try:
                _convert(job, root, destination, to, grid, force, dry_run, jobs or os.cpu_count() or 1, counts)
            except StorageError:
                raise
            except MdError as error:
                failures.append((job.name, error))
            except MemoryError:
                failures.append((job.name, DataError("out-of-memory", "it needs more memory than there is")))
            advance()
    if not found and not failures:
        raise MissingError("no-image", "there is no volume of a kind that md reads")
    for name, failed in failures:
        _say("error", name, failed.message, failed.code)
    done = "would be written" if dry_run else "written"
    print(f"md: note: {counts.written} {done}, {counts.kept} kept, {len(failures)} failed", file=sys.stderr)
    return max((failed.status for _, failed in failures), default=0)


def _say(level: str, name: str, message: str, code: str) -> None:
    from mdcli.dicom.opening import shown

    print(f"md: {level}: {shown(name)}: {message} [{code}]", file=sys.stderr)


def _print(path: Path) -> None:
    # A name may hold bytes that are no UTF-8: said escaped, instead of failing after the work.
    print(str(path).encode("utf-8", "backslashreplace").decode())


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """Give a function to call after each one; it moves a bar, on a terminal."""
    if not sys.stderr.isatty():
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("converting", total=total)
        yield lambda: bar.advance(task)


def _check_apart(source: Path, destination: Path) -> None:
    """Refuse a destination within the source: its results would be the next call's sources."""
    here, there = source.resolve(), destination.resolve()
    if there == here or (source.is_dir() and here in there.parents):
        raise UsageError("bad-destination", "the destination lies within the source", hint="give a folder beside it")
    if destination.exists() and not destination.is_dir():
        raise UsageError("bad-destination", f"{destination.name} is no folder")


def _find(source: Path) -> tuple[Path, list[_Job], list[tuple[str, MdError]]]:
    """Return what to convert, and what could not even be looked at."""
    from mdcli.dicom.headers import Skipped
    from mdcli.dicom.series import group_series
    from mdcli.dicom.tree import list_source, read_entry
    from mdcli.imaging.foreign import ending_of

    listing = list_source(source)
    files: list[_Job] = []
    instances: list[Instance] = []
    skipped: list[Skipped] = list(listing.skipped)
    for name in listing.names:
        ending = ending_of(name)
        if name.rpartition("/")[2].startswith("._"):
            # What macOS leaves beside a file on other systems' disks, under the same ending.
            continue
        if ending is not None:
            folder, _, base = name.rpartition("/")
            files.append(_Job(name, f"{folder}/" if folder else "", base[: -len(ending)]))
            continue
        for entry in read_entry(listing.root, name):
            if isinstance(entry, Skipped):
                skipped.append(entry)
            else:
                instances.append(entry)
    unreadable = [s for s in skipped if s.code not in _HARMLESS and s.code != "no-series"]
    failures: list[tuple[str, MdError]] = [(s.path, DataError(s.code, s.message)) for s in unreadable]
    jobs = [*_distinct(files), *_series_jobs(group_series(instances))]
    return listing.root, jobs, failures


def _distinct(files: Sequence[_Job]) -> list[_Job]:
    """Give files of one folder that differ in their ending only unlike results: the ending goes into the stem."""
    from dataclasses import replace

    from mdcli.imaging.foreign import ending_of

    taken = Counter((job.folder, job.stem) for job in files)
    return [
        job
        if taken[job.folder, job.stem] == 1
        else replace(job, stem=job.stem + (ending_of(job.name) or "").lower().replace(".", "_"))
        for job in files
    ]


def _series_jobs(found: Sequence[Series]) -> list[_Job]:
    """Name each DICOM series by its number and a hash of its UID, so that a name means one series whatever else lies there."""
    from hashlib import sha256

    from mdcli.dicom.series import has_pixels, why_unsuitable

    jobs: list[_Job] = []
    left_out, scouts = 0, 0
    for series in found:
        first = series.instances[0]
        if first.get("Modality") in _NO_IMAGES or not any(has_pixels(i) for i in series.instances):
            left_out += 1
            continue
        unsuitable = why_unsuitable(series)
        if unsuitable and unsuitable.code == "localizer":
            scouts += 1
            continue
        folder = _folder_of([i.path for i in series.instances])
        number = first.get("SeriesNumber")
        known = isinstance(number, int) and 0 <= number < 10**9
        study = str(first.get("StudyInstanceUID", ""))
        digest = sha256(f"{study} {series.uid}".encode()).hexdigest()[:8]
        stem = f"series_{number:03d}_{digest}" if known else f"series_{digest}"
        jobs.append(_Job(f"{folder}{stem}", folder, stem, series))
    if left_out:
        print(f"md: note: {left_out} DICOM series are no images and are left out", file=sys.stderr)
    if scouts:
        print(f"md: note: {scouts} DICOM series are localizers and are left out", file=sys.stderr)
    return jobs


def _folder_of(paths: Sequence[str]) -> str:
    """Return the deepest folder that holds all paths, empty or ending with `/`; a zip file counts as its folder."""
    from mdcli.dicom.tree import ZIP_MARK

    parts = [path.split(ZIP_MARK)[0].split("/")[:-1] for path in paths]
    common = parts[0]
    for other in parts[1:]:
        same = 0
        while same < min(len(common), len(other)) and common[same] == other[same]:
            same += 1
        common = common[:same]
    return "".join(f"{part}/" for part in common)


def _convert(
    job: _Job,
    root: Path,
    destination: Path,
    to: str,
    grid: _Grid,
    force: bool,
    dry_run: bool,
    jobs: int,
    counts: _Counts,
) -> None:
    """Convert one file or series, unless its result is there."""
    folder = destination / job.folder if job.folder else destination
    if job.series is None:
        path = folder / f"{job.stem}.{to}"
        _claim(path, root / job.name, counts)
        if path.exists() and not force:
            counts.kept += 1
            return
        if not dry_run:
            _write(path, to, _read_file(root / job.name), grid, jobs)
        _print(path)
        counts.written += 1
        return
    # Which volumes a series holds only its headers tell: the pixels are read where one of them is wanted.
    wanted = _paths_of(job, root, folder, to)
    for path in wanted:
        _claim(path, None, counts)
    missing = [path for path in wanted if force or not path.exists()]
    counts.kept += len(wanted) - len(missing)
    if missing and not dry_run:
        for path, volume in zip(wanted, _read_series(job.series, root, jobs), strict=True):
            if path in missing:
                _write(path, to, volume, grid, jobs)
                _print(path)
                counts.written += 1
    elif missing:
        for path in missing:
            _print(path)
        counts.written += len(missing)


def _claim(path: Path, source: Path | None, counts: _Counts) -> None:
    """Refuse a result that is its own source, or that another source of this call has."""
    if source is not None and path.exists() and path.samefile(source):
        raise UsageError("bad-destination", f"{path.name} would be written over itself", hint="give another folder")
    if path in counts.claimed:
        raise DataError("same-name", f"another source of this call is written to {path.name} too")
    counts.claimed.add(path)


def _read_file(path: Path) -> Volume:
    from mdcli.imaging.foreign import read_foreign

    found = read_foreign(path)
    for finding in found.findings:
        _say("warning" if finding.warning else "note", path.name, finding.message, finding.code)
    return found.volume


def _instances(series: Series, root: Path) -> list[Instance]:
    """Return the images of a series, each once."""
    from mdcli.dicom.opening import SourceFiles
    from mdcli.dicom.pixels import file_digest
    from mdcli.dicom.series import drop_copies, without_strangers

    images, _ = without_strangers(series)
    with SourceFiles(root) as files:
        kept, _ = drop_copies(images.instances, lambda instance: file_digest(files, instance))
    return list(kept)


def _paths_of(job: _Job, root: Path, folder: Path, to: str) -> list[Path]:
    """Return where each volume of a series goes, in the order that they are read in."""
    from mdcli.dicom.loading import Wish, plan_series
    from mdcli.dicom.opening import SourceFiles

    assert job.series is not None
    with SourceFiles(root) as files:
        planned = plan_series(files, _instances(job.series, root), Wish(on_many="split"))
    names = [plan.name for plan in planned.plans]
    for finding in (*planned.findings, *(f for plan in planned.plans for f in plan.findings)):
        if finding.warning:
            _say("warning", job.name, finding.message, finding.code)
    return [folder / f"{job.stem}{f'_{name}' if name else ''}.{to}" for name in names]


def _read_series(series: Series, root: Path, jobs: int) -> Iterator[Volume]:
    from mdcli.dicom.loading import Wish, load_series
    from mdcli.dicom.opening import SourceFiles
    from mdcli.dicom.planar import Planar
    from mdcli.imaging.nifti import PATIENT, Volume

    with SourceFiles(root) as files:
        for plan, array in load_series(files, _instances(series, root), Wish(on_many="split"), jobs):
            plane = plan.geometry.spacing_plane if isinstance(plan.geometry, Planar) else PATIENT
            yield Volume(array, plan.affine, plan.unit, plane)


def _write(path: Path, to: str, volume: Volume, grid: _Grid, jobs: int) -> None:
    """Write one volume under a temporary name, and rename it when it is whole."""
    from mdcli.imaging.foreign import write_foreign
    from mdcli.imaging.nifti import PATIENT
    from mdcli.records import part_path, storage_errors

    if volume.plane != PATIENT and (grid.asked or to in ("nrrd", "mha")):
        message = f"its places are those of the {volume.plane}, not of the patient"
        raise DataError("no-patient-plane", message, hint="--to nii or nii.gz, without a resolution")
    slabs, shape, dtype, affine = _on_grid(volume, grid, jobs)
    with storage_errors(path.name):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = part_path(path.parent, path.name)
        try:
            with part.open("wb") as file:
                write_foreign(file, to, slabs, shape, dtype, affine, volume.unit, plane=volume.plane)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _on_grid(
    volume: Volume, grid: _Grid, jobs: int
) -> tuple[Iterator[NDArray[Any]], tuple[int, int, int], np.dtype[Any], NDArray[np.float64]]:
    """Return the slabs to write, their whole shape (k, j, i), their type and their affine."""
    from mdcli.imaging.resample import Order, orthogonal_grid, resample, resampled_dtype

    array = volume.array
    if array.ndim != 3:
        raise DataError("not-a-volume", f"it has {array.ndim} axes, not three")
    if not grid.asked:
        return (plane[None] for plane in array), array.shape, array.dtype, volume.affine
    order: Order = "nearest" if grid.labels else "linear"
    shape, affine = orthogonal_grid(array.shape, volume.affine, grid.spacing, grid.isotropic)
    fill = 0.0 if grid.labels else float(min(plane.min() for plane in array))
    slabs = resample(array, volume.affine, shape, affine, order=order, fill=fill, jobs=jobs)
    return slabs, shape, resampled_dtype(array.dtype.newbyteorder("="), order), affine
