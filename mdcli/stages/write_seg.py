"""Write the labels as a DICOM Segmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from mdcli.errors import DataError, UsageError
from mdcli.stage import Option, Sources, Stage

if TYPE_CHECKING:
    from datetime import datetime

    from mdcli.workspace import Workspace


@dataclass(frozen=True)
class Params:
    """Options of `write-seg`."""

    series_number: Annotated[
        int | None, Option("Number of the new series; without it the source's plus 1000", metavar="N")
    ] = None
    description: Annotated[
        str, Option("Series description after the model's prefix; without it the model's name", metavar="TEXT")
    ] = ""


def _slices(geometry: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the entries of the source images in the order of k."""
    slices: list[dict[str, Any]] = sorted(geometry["slices"], key=lambda entry: entry["k"])
    if [entry["k"] for entry in slices] != list(range(geometry["shape"][0])):
        raise DataError("bad-artifact", "geometry.json does not name one source image for every slice")
    return slices


def _files(ws: Workspace, slices: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """Return (path, size in bytes) of the source images in the order of k."""
    sizes = {entry["path"]: entry["size"] for entry in ws.read_json("series").get("instances", [])}
    missing = next((entry["k"] for entry in slices if entry["path"] not in sizes), None)
    if missing is not None:
        hint = "run md load-volume again"
        raise DataError("bad-artifact", f"series.json does not list the source of slice {missing + 1}", hint=hint)
    return [(entry["path"], sizes[entry["path"]]) for entry in slices]


def _sources(ws: Workspace, params: Params) -> Sources:
    from mdcli.dicom.opening import split_path

    root = ws.source_root("series")
    files = _files(ws, _slices(ws.read_json("geometry")))

    def digest() -> str:
        from mdcli.dicom.sources import open_sources

        return open_sources(root, files).digest

    return Sources(root, tuple(sorted({split_path(root, path)[0] for path, _ in files})), digest)


def _now() -> datetime:
    """Return the time that goes into the object: SOURCE_DATE_EPOCH, else now, with the machine's offset."""
    import os
    from datetime import UTC, datetime

    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if not epoch:
        return datetime.now().astimezone()
    try:
        return datetime.fromtimestamp(int(epoch), UTC)
    except (ValueError, OverflowError, OSError):
        raise UsageError("bad-source-date-epoch", f"SOURCE_DATE_EPOCH is {epoch!r}, not seconds since 1970") from None


def run(ws: Workspace, params: Params) -> None:
    """Write `seg`, or say that nothing was found."""
    from mdcli import __version__
    from mdcli.dicom.finding import Finding
    from mdcli.dicom.seg import Request, check_grid, describe, make_seg, read_back
    from mdcli.dicom.sources import check_sources, in_source_time, open_sources

    def say(findings: list[Finding]) -> None:
        for finding in findings:
            (ws.warn if finding.warning else ws.note)(finding.code, finding.message, **finding.numbers)

    geometry, document = ws.read_json("geometry"), ws.read_json("segments")
    labels = ws.read_volume("labels")
    check_grid(labels, geometry)
    with ws.span("count"):
        segments, notes = describe(labels.array, document)
    if not segments:
        if document.get("empty") == "error":
            raise DataError("empty-result", "no label has a voxel, and the model's card calls that an error")
        ws.nothing_found("nothing-found", "no label has a voxel: no SEG is written")
        return
    say(notes)
    entries = _slices(geometry)
    root, files = ws.source_root("series"), _files(ws, entries)
    with ws.span("sources"):
        sources = open_sources(root, files)
        check_sources(sources, entries)
        ws.sources_digest(sources.digest)
    request = Request(
        document=document,
        software_version=__version__,
        timestamp=in_source_time(_now(), sources.first),
        edited=bool(ws.edited),
        series_number=params.series_number,
        description=params.description,
    )
    with ws.span("encode"):
        written = make_seg(labels.array, labels.affine, sources, segments, request)
    say(list(written.findings))
    if request.edited:
        who = ", ".join(ws.edited)
        ws.note("edited-labels", f"a person edited {who}: the SEG says SEMIAUTOMATIC", edited=ws.edited)
    numbers = {str(segment.value): segment.number for segment in segments}
    listed = ", ".join(f"{segment.value} is {segment.number}" for segment in segments)
    ws.note("segment-numbers", f"label value to segment number: {listed}", segment_numbers=numbers)
    with ws.writing("seg") as path:
        with ws.span("write"), path.open("wb") as file:
            written.write(file)
        with ws.span("read-back"):
            again = open_sources(root, files)
            read_back(path, labels.array, labels.affine, again.slices, segments)


def preload(params: Params) -> None:
    """Load the libraries."""
    from mdcli.dicom import seg

    seg.preload()


STAGE = Stage(
    "write-seg",
    Params,
    run,
    reads=("labels", "segments", "geometry", "series"),
    writes=("seg",),
    version=1,
    sources=_sources,
    preload=preload,
)
