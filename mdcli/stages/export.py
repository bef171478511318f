"""Write volume or labels for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from mdcli.errors import DataError, UsageError
from mdcli.stage import Option, Stage

if TYPE_CHECKING:
    from pathlib import Path

    from mdcli.imaging.nifti import Volume
    from mdcli.workspace import Workspace

_FORMS = ("nii", "nii.gz", "nrrd", "mha", "png")
_WHAT = ("volume", "labels", "instances")
_REGULATORY = "Research use only, not reviewed."


def _forms() -> tuple[str, ...]:
    return tuple(_FORMS)


def _kinds() -> tuple[str, ...]:
    return tuple(_WHAT)


@dataclass(frozen=True)
class Params:
    """What you can ask."""

    format: Annotated[
        tuple[str, ...],
        Option("nii, nii.gz, nrrd, mha, or png (a folder of slices); may repeat", complete=_forms),
    ]
    what: Annotated[tuple[str, ...], Option("volume, labels or instances; may repeat", complete=_kinds)] = ("volume",)
    window: Annotated[
        str | None,
        Option("What a PNG shows as black to white; without it the 1st to the 99th percentile", metavar="CENTER,WIDTH"),
    ] = None


def run(ws: Workspace, params: Params) -> None:
    """Write each artifact in each form, the same voxels at the same millimetres, into one folder."""
    _check_call(params)
    volumes = {what: ws.read_volume(what) for what in params.what}
    with ws.writing("export") as folder, ws.span("write"):
        folder.mkdir()
        for what, volume in volumes.items():
            for form in params.format:
                if form == "png":
                    _write_png(ws, volume, what, params.window, folder / f"{what}-png")
                else:
                    _write_file(ws, volume, form, folder / f"{what}.{form}")


def _check_call(params: Params) -> None:
    for form in params.format:
        if form not in _FORMS:
            raise UsageError("unknown-form", f"md exports no {form!r}", hint=", ".join(_FORMS))
    for what in params.what:
        if what not in _WHAT:
            raise UsageError("bad-what", f"--what is one of {', '.join(_WHAT)}, not {what!r}")
    if params.window is not None and ("png" not in params.format or "volume" not in params.what):
        raise UsageError("bad-window", "--window goes with --format png of the volume")


def _write_file(ws: Workspace, volume: Volume, form: str, path: Path) -> None:
    from mdcli.imaging.foreign import write_foreign
    from mdcli.imaging.nifti import PATIENT

    if volume.plane != PATIENT and form in ("nrrd", "mha"):
        message = (
            f"the volume's places are those of the {volume.plane}; {form.upper()} would take them for the patient's"
        )
        raise DataError("no-patient-plane", message, hint="--format png or nii")
    array = volume.array
    with path.open("wb") as file:
        planes = (plane[None] for plane in ws.progress(array, f"writing {path.name}"))
        write_foreign(file, form, planes, array.shape, array.dtype, volume.affine, volume.unit, plane=volume.plane)


def _write_png(ws: Workspace, volume: Volume, what: str, asked: str | None, folder: Path) -> None:
    from mdcli.imaging.nifti import PATIENT
    from mdcli.imaging.png import (
        gray_picture,
        label_picture,
        parse_window,
        picture_facts,
        save_png,
        usual_window,
    )
    from mdcli.workspace import json_bytes

    labels = what != "volume"
    window = None if labels else parse_window(asked) if asked is not None else usual_window(volume.array)
    facts = picture_facts(volume.affine, volume.array.shape, volume.plane == PATIENT)
    spacing = facts["spacing_mm"]
    texts = {"Comment": _REGULATORY} if labels else {}
    if window:
        texts["Window"] = f"center {window[0]:g}, width {window[1]:g} {volume.unit or ''}".rstrip()
    if facts["right"]:
        texts["Orientation"] = f"right {facts['right']}, bottom {facts['bottom']}, next {facts['next']}"
    folder.mkdir()
    digits = max(4, len(str(volume.array.shape[0] - 1)))
    names = [f"{k:0{digits}d}.png" for k in range(volume.array.shape[0])]
    for name, plane in ws.progress(list(zip(names, volume.array, strict=True)), "writing pictures"):
        picture = label_picture(plane) if window is None else gray_picture(plane, window)
        save_png(picture, folder / name, spacing and spacing[:2], texts)
    document = {
        "schema": "md.pictures/1",
        "what": what,
        "unit": volume.unit,
        "window": window and {"center": window[0], "width": window[1]},
        **facts,
        "regulatory": _REGULATORY if labels else None,
        "pictures": names,
    }
    (folder / "pictures.json").write_bytes(json_bytes(document))


def preload(params: Params) -> None:
    """Import what every case needs."""
    import mdcli.imaging.foreign
    import mdcli.imaging.nifti
    import mdcli.imaging.png

    assert mdcli.imaging.png


STAGE = Stage(
    "export",
    Params,
    run,
    writes=("export",),
    optional_reads=_WHAT,
    version=1,
    preload=preload,
)
