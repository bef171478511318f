"""Write the labels as a DICOM Segmentation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from mdcli.errors import DataError, UsageError
from mdcli.stage import Option, Sources, Stage

if TYPE_CHECKING:
    from datetime import datetime

    from mdcli.workspace import Workspace

# Source: DICOM PS3.5 table 6.2-1, an Integer String holds 32 bits.
_LARGEST_SERIES_NUMBER = 2**31 - 1


@dataclass(frozen=True)
class Params:
    """Options of `write-seg`."""

    series_number: Annotated[
        int | None, Option("Number of the new series; without it the source's plus 1000", metavar="N")
    ] = None
    description: Annotated[
        str, Option("Series description after the model's prefix; without it the model's name", metavar="TEXT")
    ] = ""


@dataclass(frozen=True)
class _Images:
    """The source images in the order of k.

    Attributes:
        entries: `slices` of `geometry.json`.
        files: (path, size in bytes).
        headers: SHA-256 of their headers when they were scanned.
    """

    entries: list[dict[str, Any]]
    files: list[tuple[str, int]]
    headers: list[str]


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Refuse a JSON artifact by name where it has another form than it should."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        message = f"{name} has not the form that it should have ({type(error).__name__})"
        raise DataError("bad-artifact", message) from error


def _images(ws: Workspace) -> _Images:
    """Return the source images, by `geometry.json` and `series.json`, which must be about one series."""
    from mdcli.imaging.cropping import image_positions

    geometry = ws.read_json("geometry")
    with _reading("geometry.json"):
        _refuse_unplaced(geometry, geometry["slices"])
    series = ws.read_json("series")
    with _reading("geometry.json"):
        entries: list[dict[str, Any]] = sorted(geometry["slices"], key=lambda entry: int(entry["k"]))
        resampled = geometry.get("resampled")
        count = resampled["source_shape"][0] if resampled else geometry["shape"][0]
        if [entry["k"] for entry in entries] != list(range(count)):
            raise DataError("bad-artifact", "geometry.json does not name one source image for every slice")
        paths = [_text(entry["path"]) for entry in entries]
        for entry in entries:
            _text(entry["sop_instance_uid"])
            if len([float(v) for v in entry["position_mm"]]) != 3:
                raise ValueError
        [[float(v) for v in row] for row in geometry["affine_lps"]]
        positions = image_positions({**geometry, "slices": entries})
        entries = [{**entry, "position_mm": at} for entry, at in zip(entries, positions, strict=True)]
    with _reading("series.json"):
        known = {_text(i["path"]): (int(i["size"]), _text(i["header_sha256"])) for i in series["instances"]}
        scanned = series["series"].get("series_instance_uid")
    _same_series(geometry.get("series_instance_uid"), "geometry.json", scanned, "series.json")
    missing = next((k for k, path in enumerate(paths) if path not in known), None)
    if missing is not None:
        hint = "run md load-volume again"
        raise DataError("bad-artifact", f"series.json does not list the source of slice {missing + 1}", hint=hint)
    return _Images(entries, [(path, known[path][0]) for path in paths], [known[path][1] for path in paths])


def _refuse_unplaced(geometry: dict[str, Any], entries: list[dict[str, Any]]) -> None:
    """Refuse a volume that no DICOM images stand behind one by one, slice for slice, in the patient.

    Raises:
        DataError: `no-sources`, `four-dimensional`, `no-patient-plane`, `multi-frame-source`.
    """
    if not entries:
        hint = "md export writes the labels for other programs"
        raise DataError("no-sources", "no DICOM images stand behind the volume, which a SEG would refer to", hint=hint)
    if geometry.get("dimension"):
        hint = "load one volume of the series, with --pick"
        raise DataError("four-dimensional", "the volume has a fourth axis, a SEG has none", hint=hint)
    if geometry.get("spacing_plane", "patient") != "patient":
        raise DataError(
            "no-patient-plane", "the image has no plane in the patient, which write-seg can't yet write for"
        )
    if any(entry.get("frame") is not None or entry.get("tile") is not None for entry in entries):
        text = "the slices are frames of multi-frame objects or mosaics, which write-seg can't yet write for"
        raise DataError("multi-frame-source", text)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _same_series(one: Any, one_name: str, other: Any, other_name: str) -> None:
    if one is not None and other is not None and one != other:
        hint = "run the stages of one series in one workspace"
        raise DataError("other-series", f"{one_name} is of another series than {other_name}", hint=hint)


def _sources(ws: Workspace, params: Params) -> Sources:
    from mdcli.dicom.opening import split_path

    files = _images(ws).files
    root = ws.source_root("series")

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
    from mdcli.dicom.seg import Request, check_carried, describe, make_seg, on_grid, read_back
    from mdcli.dicom.sources import check_sources, in_source_time, open_sources

    def say(findings: list[Finding]) -> None:
        for finding in findings:
            (ws.warn if finding.warning else ws.note)(finding.code, finding.message, **finding.numbers)

    if params.series_number is not None and not 1 <= params.series_number <= _LARGEST_SERIES_NUMBER:
        message = f"--series-number is {params.series_number}, not 1 to {_LARGEST_SERIES_NUMBER}"
        raise UsageError("bad-series-number", message)
    geometry, document = ws.read_json("geometry"), ws.read_json("segments")
    images = _images(ws)
    _same_series(
        document.get("series_instance_uid"), "segments.json", geometry.get("series_instance_uid"), "geometry.json"
    )
    if document.get("lossy") is None:
        document["lossy"] = geometry.get("lossy")
    found = ws.read_volume("labels")
    labels = on_grid(found, geometry)
    if labels.affine is not found.affine:
        ws.note("labels-put-in-order", "the labels' axes run another way than the source grid's: put in its order")
    places = None
    if geometry.get("resampled"):
        from mdcli.imaging.source_planes import on_source_planes

        labels, places = on_source_planes(labels, geometry["resampled"])
        why = " and ".join(geometry["resampled"]["why"])
        text = f"the volume was resampled ({why}): the labels are brought back to the planes of its images, by the nearest voxel"
        ws.note("labels-brought-back", text)
    if geometry.get("crop"):
        from mdcli.imaging.cropping import whole_planes

        with _reading("geometry.json"):
            labels = whole_planes(labels, geometry["crop"])
        ws.note(
            "labels-uncropped", "the volume is a part of its images' planes: the labels are put on the whole planes"
        )
    with ws.span("count"), _reading("segments.json"):
        check_carried(document)
        segments, notes = describe(labels.array, document)
    if not segments:
        if document.get("empty") == "error":
            raise DataError("empty-result", "no label has a voxel, and the model's card calls that an error")
        ws.nothing_found("nothing-found", "no label has a voxel: no SEG is written")
        return
    say(notes)
    root = ws.source_root("series")
    with ws.span("sources"):
        sources = open_sources(root, images.files)
        check_sources(sources, images.entries, images.headers)
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
        written = make_seg(labels.array, labels.affine, sources, segments, request, places)
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
            again = open_sources(root, images.files)
            read_back(path, labels.array, labels.affine, again, segments, places)


def preload(params: Params) -> None:
    """Load the libraries."""
    from mdcli.dicom import seg

    seg.preload()


STAGE = Stage(
    "write-seg",
    Params,
    run,
    reads=("labels", "segments", "geometry"),
    writes=("seg",),
    optional_reads=("series",),
    version=1,
    sources=_sources,
    preload=preload,
)
