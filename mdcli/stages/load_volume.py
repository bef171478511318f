"""Load the selected series as one volume."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from mdcli.stage import Option, Sources, Stage

if TYPE_CHECKING:
    from mdcli.dicom.finding import Finding
    from mdcli.dicom.instance import Instance
    from mdcli.dicom.loading import Plan, SeriesPlan, Wish
    from mdcli.dicom.opening import SourceFiles
    from mdcli.workspace import Workspace

_PICKS = ("echo=", "b=", "time=", "phase=", "type=", "kernel=", "acquisition=", "orientation=", "volume=")


def _picks() -> tuple[str, ...]:
    return _PICKS


@dataclass(frozen=True)
class Params:
    """What you can ask."""

    pick: Annotated[
        tuple[str, ...],
        Option(
            "Which of several volumes: echo=1, b=1000, orientation=axial, EchoTime=4.6, volume=2; may repeat",
            metavar="NAME=VALUE",
            complete=_picks,
        ),
    ] = ()
    on_many: Annotated[
        Literal["refuse", "split", "4d"], "Several volumes: refuse them, one child workspace each, or a fourth axis"
    ] = "refuse"
    on_gap: Annotated[
        Literal["refuse", "resample", "split"],
        "Uneven slices: refuse them, interpolate on a regular grid, or one child workspace a regular run",
    ] = "refuse"
    untilt: Annotated[bool, "Resample a sheared volume (gantry tilt) on a grid at right angles"] = False
    suv: Annotated[Literal["bw"] | None, "Turn PET values into SUV by body weight, g/ml"] = None
    colour: Annotated[bool, "Make a volume of red, green and blue from colour images"] = False
    expect_instances: Annotated[int | None, "Refuse the series unless it has this many instances"] = None
    single_slice: Annotated[
        bool, Option("Take one slice as a volume, its SliceThickness (mm) as spacing", loosens=True)
    ] = False
    assume_hu: Annotated[bool, Option("Take CT values that have no unit as Hounsfield units", loosens=True)] = False
    report: Annotated[
        bool, Option("Say what was found: spacing, orientation, tilt, completeness ...", result=False)
    ] = False


def run(ws: Workspace, params: Params) -> None:
    """Read the headers, find the volumes, check them, write each and where it lies."""
    from mdcli.dicom.loading import plan_series
    from mdcli.dicom.opening import SourceFiles
    from mdcli.dicom.pixels import file_digest
    from mdcli.dicom.series import dropped_from_json, instances_from_json

    wish = _wish(params)
    with ws.span("check"):
        listed = ws.read_json("series")
        instances = instances_from_json(listed)
        root = ws.source_root("series")
    digests: dict[str, str] = {}
    with SourceFiles(root) as files:
        with ws.span("check"):
            planned = plan_series(files, instances, wish)
        _say(ws, planned.findings)
        _say_incomplete(ws, planned.completeness)
        dropped = [*dropped_from_json(listed), *_dropped(planned)]
        total = sum(len(step.frames) for plan in planned.plans for step in plan.steps)
        with ws.progress_bar(total, "reading slices") as done:
            for plan in planned.plans:
                target = ws if plan.name is None else ws.child(plan.name)
                digests |= _write(ws, target, plan, planned, files, dropped, done)
                if plan.name is not None:
                    _write_series(target, instances, plan, root)
        # What was left out is hashed too: the digest is that of the whole series, however much of it was wanted.
        digests |= {i.path: file_digest(files, i) for i in instances if i.path not in digests}
    ws.sources_digest(_digest_of(digests))
    if params.report:
        _report_plans(ws, planned.plans)


def _wish(params: Params) -> Wish:
    from mdcli.dicom.loading import Wish
    from mdcli.dicom.volumes import parse_pick
    from mdcli.errors import UsageError

    if params.colour and (params.suv or params.assume_hu or params.untilt or params.on_gap == "resample"):
        raise UsageError("bad-options", "--colour goes neither with a unit nor with resampling")
    return Wish(
        pick=tuple(parse_pick(text) for text in params.pick),
        on_many=params.on_many,
        on_gap=params.on_gap,
        untilt=params.untilt,
        single_slice=params.single_slice,
        assume_hu=params.assume_hu,
        colour=params.colour,
        suv=params.suv,
        expect_instances=params.expect_instances,
    )


def _write(
    ws: Workspace,
    target: Workspace,
    plan: Plan,
    planned: SeriesPlan,
    files: SourceFiles,
    dropped: Sequence[dict[str, Any]],
    done: Any,
) -> dict[str, str]:
    """Read one volume's pixels, write it and its geometry; return the SHA-256 of each file."""
    from mdcli.dicom.geometry_json import geometry_document
    from mdcli.dicom.loading import Reading
    from mdcli.dicom.pixels import describe_codestreams

    _say(target, plan.findings)
    if plan.steps[0].rescale.assumed:
        target.warn("assumed-hu", "the values are taken as Hounsfield units on request; no header says so")
    reading = Reading(files, plan, ws.jobs, done)
    with ws.span("read"):
        reading.open()
    with (
        ws.span("write"),
        target.volume_writer(
            "volume",
            reading.disk_shape,
            reading.dtype,
            plan.affine,
            plan.unit,
            colour=plan.is_colour,
            plane=_plane_of(plan),
        ) as out,
    ):
        for slab in reading.slabs():
            out.write(slab)
    digests = reading.digests()
    layouts = [layout for step in plan.steps for layout in step.layouts]
    _say(target, describe_codestreams(layouts, [read for reads in reading.reads for read in reads]))
    document = geometry_document(plan, reading, planned.completeness, dropped)
    if lossy := document["lossy"]:
        how = (
            "were compressed with loss"
            if lossy["certain"]
            else "are encoded in a way that allows loss; no header says more"
        )
        target.warn("lossy-source", f"{lossy['slices']} of {len(layouts)} slices {how}")
    if plan.regrid:
        text = (
            f"the volume is resampled because of {' and '.join(plan.regrid.why)}: it is not on the planes of its images"
        )
        if reading.fill is not None and "tilt" in plan.regrid.why:
            text += f"; what lies beyond them is {reading.fill:g}"
        target.warn("resampled", text)
    target.write_json("geometry", document)
    return digests


def _plane_of(plan: Plan) -> str:
    from mdcli.dicom.planar import Planar
    from mdcli.imaging.nifti import PATIENT

    return plan.geometry.spacing_plane if isinstance(plan.geometry, Planar) else PATIENT


def _write_series(child: Workspace, instances: Sequence[Instance], plan: Plan, root: Any) -> None:
    """Leave the list of a split volume's own files in its workspace: what comes after it reads it there."""
    from mdcli.dicom.series import series_to_json

    used = {frame.path for frame in plan.frames}
    child.write_json("series", series_to_json([i for i in instances if i.path in used]))
    child.set_source_root("series", root)


def _dropped(planned: SeriesPlan) -> list[dict[str, Any]]:
    return [
        {
            "path": frame.path,
            "frame": None if frame.frame is None else frame.frame + 1,
            "sop_instance_uid": frame.get("SOPInstanceUID"),
            "reason": reason,
        }
        for frame, reason in planned.dropped
    ]


def _say(ws: Workspace, findings: Sequence[Finding]) -> None:
    said = set()
    for finding in findings:
        if (finding.code, finding.message) not in said:
            said.add((finding.code, finding.message))
            (ws.warn if finding.warning else ws.note)(finding.code, finding.message, **finding.numbers)


def _say_incomplete(ws: Workspace, whole: dict[str, Any]) -> None:
    if whole["holes"]:
        named = ", ".join(str(a) if a == b else f"{a} to {b}" for a, b in whole["holes"][:8])
        more = " ..." if len(whole["holes"]) > 8 else ""
        text = f"no instance has InstanceNumber {named}{more}: the series may be incomplete"
        if whole["status"] == "complete":
            ws.note("instance-numbers-missing", f"{text}, but has as many instances as expected")
        else:
            ws.warn("instance-numbers-missing", f"{text}; --expect-instances says how many there should be")
    if whole["stated"] is not None and whole["status"] != "complete" and whole["stated"] > whole["found"]:
        text = f"a header says that there are {whole['stated']} images, {whole['found']} are here: the series may be incomplete"
        ws.warn("fewer-than-stated", text, stated=whole["stated"], found=whole["found"])


def _digest_of(digests: dict[str, str]) -> str:
    from mdcli.records import sha256_of

    return sha256_of(sorted(digests.items()))


def _report_plans(ws: Workspace, plans: Sequence[Plan]) -> None:
    """Report what was written; the artifacts are not in place yet, their documents are."""
    names = [plan.name for plan in plans]
    for staged in ws.run.staged:
        if staged.role.split("-")[0] != "geometry":
            continue
        name = staged.folder.name if names[0] is not None else None
        _report_file(ws, staged.part, name)


def _report_file(ws: Workspace, path: Any, name: str | None) -> None:
    import json

    from mdcli.dicom.geometry_json import report_text

    document = json.loads(path.read_bytes())
    head = f"{ws.name}/{name}\n" if name else f"{ws.name}\n"
    ws.report(head + report_text(document), document)


def report(ws: Workspace, params: Params) -> None:
    """Report what was loaded before, where nothing has to be done."""
    if not params.report:
        return
    role = ws.role_to_write("geometry")
    children = [child for child in ws.children() if child.locate(role).exists()]
    for place in children or [ws]:
        _report_file(ws, place.locate(role), place.name if children else None)


def sources(ws: Workspace, params: Params) -> Sources:
    """Name the DICOM files, and how to tell whether what they hold has changed."""
    from mdcli.dicom.opening import split_path

    _wish(params)
    document = ws.read_json("series")
    root = ws.source_root("series")
    paths = [str(item["path"]) for item in document.get("instances", ())]

    def digest() -> str:
        from mdcli.dicom.opening import SourceFiles
        from mdcli.dicom.pixels import file_digest
        from mdcli.dicom.series import instances_from_json

        with SourceFiles(root) as files:
            return _digest_of({i.path: file_digest(files, i) for i in instances_from_json(document)})

    return Sources(root, tuple(sorted({split_path(root, path)[0] for path in paths})), digest)


def preload(params: Params) -> None:
    """Import what every case needs."""
    import mdcli.dicom.geometry_json
    import mdcli.dicom.loading
    import mdcli.dicom.opening
    import mdcli.imaging.nifti

    assert mdcli.dicom.loading


STAGE = Stage(
    "load-volume",
    Params,
    run,
    reads=("series",),
    writes=("volume", "geometry", "series"),
    optional_writes=("series",),
    version=2,
    sources=sources,
    preload=preload,
    report=report,
    splits=True,
)
