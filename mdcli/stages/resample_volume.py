"""Put a volume on another's grid, or another spacing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mdcli.errors import DataError, UsageError
from mdcli.stage import Option, Stage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from mdcli.workspace import Workspace

_UNNAMED = "volume"
_OTHER_FRAMES = "frames-of-reference-differ"


@dataclass(frozen=True)
class Params:
    """What you can ask."""

    to: Annotated[
        str | None, Option("Name of the volume whose grid is taken; 'volume' is the one without a name", metavar="NAME")
    ] = None
    spacing: Annotated[
        str | None, Option("New spacing in mm along i, j and k, or one for all", metavar="MM[,MM,MM]")
    ] = None
    isotropic: Annotated[bool, Option("The smallest spacing (mm) along all three axes")] = False
    order: Annotated[str, Option("linear or nearest", complete=lambda: ("linear", "nearest"))] = "linear"
    fill: Annotated[
        float | None,
        Option("Value outside of the volume, in its unit; without it the volume's lowest", metavar="VALUE"),
    ] = None
    registration: Annotated[
        Path | None,
        Option("Spatial Registration object (DICOM) that brings the two together", result=False, metavar="FILE"),
    ] = None
    assume_registered: Annotated[
        bool, Option("Take two frames of reference as one; the result says so", loosens=True)
    ] = False


@dataclass(frozen=True)
class _Target:
    """The grid to fill.

    Attributes:
        shape: (k, j, i).
        affine: 4x4, (i, j, k) to mm, LPS+.
        source_affine: the volume's own, in the target's frame of reference.
        registered: for `geometry.json`, but for the coverage; None on the volume's own frame.
        frame_of_reference_uid: of the target.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    source_affine: NDArray[np.float64]
    registered: dict[str, Any] | None
    frame_of_reference_uid: str | None


def run(ws: Workspace, params: Params) -> None:
    """Check that both lie in one frame of reference, interpolate, write the volume and where it lies now."""
    import numpy as np

    from mdcli.imaging.resample import covered, resample, resampled_dtype

    _check_call(params)
    with ws.span("check"):
        volume, geometry = ws.read_volume("volume"), ws.read_json("geometry")
        if geometry.get("spacing_plane", "patient") != "patient":
            message = f"the volume's places are those of the {geometry['spacing_plane']}, not of the patient"
            raise DataError("no-patient-plane", message)
        own = np.array(geometry["affine_lps"], np.float64)
        if volume.array.shape != tuple(geometry["shape"]):
            raise DataError(
                "grids-differ", f"volume is {volume.array.shape}, geometry says {tuple(geometry['shape'])} (k, j, i)"
            )
        target = _on_reference(ws, params, geometry, own) if params.to is not None else _own_grid(params, geometry, own)
        part = covered(volume.array.shape, target.source_affine, target.shape, target.affine)
        used = covered(target.shape, target.affine, volume.array.shape, target.source_affine)
    numbers = {"covered_percent": round(100 * part, 2), "used_percent": round(100 * used, 2)}
    if not part:
        raise DataError("no-overlap", "no voxel of the grid lies within the volume")
    if params.to is not None:
        text = f"the volume covers {100 * part:.1f} % of the grid, which takes in {100 * used:.1f} % of the volume"
        ws.note("overlap", text, **numbers)
    order: Any = params.order
    dtype = resampled_dtype(volume.array.dtype, order)
    fill = _fill(params, volume.array, geometry, dtype)
    if part < 1:
        ws.warn(
            "filled", f"{100 - 100 * part:.1f} % of the grid lies outside of the volume and gets {fill:g}", fill=fill
        )
    padding = _kept_padding(geometry, params.order)
    if geometry.get("padding") and padding is None:
        ws.warn("padding-interpolated", "padding is interpolated with what lies beside it, and no longer told apart")
    padded = 0
    with (
        ws.span("resample"),
        ws.progress_bar(target.shape[0], "resampling") as done,
        ws.volume_writer("volume", target.shape, dtype, target.affine, volume.unit) as out,
    ):
        for slab in resample(
            volume.array, target.source_affine, target.shape, target.affine, order=order, fill=fill, jobs=ws.jobs
        ):
            out.write(np.ascontiguousarray(slab, dtype.newbyteorder("<")))
            if padding:
                padded += int(np.count_nonzero((slab >= padding["range"][0]) & (slab <= padding["range"][1])))
            done(len(slab))
    registered = target.registered and {**target.registered, **numbers}
    if padding:
        padding["voxels"] = padded
    ws.write_json("geometry", _document(params, geometry, target, registered, fill) | {"padding": padding})


def _kept_padding(geometry: dict[str, Any], order: str) -> dict[str, Any] | None:
    """Return the padding that is still told apart: of one range for all slices, whose voxels were only moved."""
    padding = geometry.get("padding")
    return dict(padding) if padding and padding["range"] and order == "nearest" else None


def _check_call(params: Params) -> None:
    asked = [params.to is not None, params.spacing is not None, params.isotropic]
    if sum(asked) != 1:
        raise UsageError("no-grid", "give one of --to NAME, --spacing MM and --isotropic")
    if params.order not in ("linear", "nearest"):
        raise UsageError("bad-order", f"--order is linear or nearest, not {params.order}")
    if params.to is None and (params.registration is not None or params.assume_registered):
        raise UsageError("no-grid", "--registration and --assume-registered go with --to NAME")


def _own_grid(params: Params, geometry: dict[str, Any], own: NDArray[np.float64]) -> _Target:
    from mdcli.imaging.resample import orthogonal_grid, parse_spacing

    spacing = parse_spacing(params.spacing) if params.spacing is not None else None
    shape, affine = orthogonal_grid(tuple(geometry["shape"]), own, spacing, params.isotropic)
    return _Target(shape, affine, own, geometry.get("registered"), geometry["frame_of_reference_uid"])


def _reference(ws: Workspace, params: Params) -> Workspace:
    """Return the workspace as a stage would see it that reads the reference."""
    from mdcli.workspace import Workspace, check_name

    name = str(params.to)
    check_name(name)
    use = dict.fromkeys(("volume", "geometry"), name)
    view = Workspace(ws.path, use={} if name == _UNNAMED and not Workspace(ws.path, use=use).has("geometry") else use)
    view.reading = ("volume", "geometry", "series")
    return view


def _on_reference(ws: Workspace, params: Params, geometry: dict[str, Any], own: NDArray[np.float64]) -> _Target:
    import numpy as np

    view = _reference(ws, params)
    role = view.role_to_read("geometry")
    view.check_document("geometry")
    reference = view.read_json("geometry")
    if role == ws.role_to_read("geometry"):
        raise UsageError(
            "same-name", f"--to {params.to} is the volume that is read", hint="--use volume=NAME reads another"
        )
    if reference.get("spacing_plane", "patient") != "patient":
        raise DataError("no-patient-plane", "the reference's places are not those of the patient")
    if view.state(role)[0] != "made":
        ws.edited.append(role)
    mine, theirs = geometry["frame_of_reference_uid"], reference["frame_of_reference_uid"]
    matrix, by, uid = np.eye(4), "frame-of-reference", None
    if params.registration is not None:
        with _open_registration(params.registration) as file:
            from mdcli.dicom.registration import read_registration

            registration = read_registration(file)
        if mine is None or theirs is None or mine == theirs:
            message = "a registration is between two frames of reference, and these series have not two"
            raise DataError("other-registration", message)
        matrix, by, uid = registration.between(mine, theirs), "registration", registration.sop_instance_uid
    elif params.assume_registered:
        by = "assumption"
        ws.warn("assumed-registered", "two series are taken as lying in one frame of reference on request")
    else:
        _check_together(ws, view, geometry, reference)
    registered = {
        "by": by,
        "role": role,
        "series_instance_uid": reference["series_instance_uid"],
        "frame_of_reference_uid": mine,
        "registration_sop_instance_uid": uid,
        "matrix": matrix.tolist() if by == "registration" else None,
    }
    k, j, i = reference["shape"]
    return _Target((k, j, i), np.array(reference["affine_lps"], np.float64), matrix @ own, registered, theirs)


def _open_registration(path: Path) -> Any:
    from mdcli.imaging.voxels import open_regular

    return open_regular(path)


def _check_together(ws: Workspace, view: Workspace, geometry: dict[str, Any], reference: dict[str, Any]) -> None:
    """Refuse two series that are not known to share a frame of reference and a patient."""
    hint = "--registration FILE brings them together; --assume-registered takes them as they are"
    mine, theirs = geometry["frame_of_reference_uid"], reference["frame_of_reference_uid"]
    if mine is None or theirs is None:
        raise DataError(_OTHER_FRAMES, "not both volumes say their frame of reference", hint=hint)
    if mine != theirs:
        raise DataError(
            _OTHER_FRAMES, f"the volume lies in the frame of reference {mine}, the reference in {theirs}", hint=hint
        )
    studies = geometry["study_instance_uid"], reference["study_instance_uid"]
    if studies[0] is not None and studies[0] == studies[1]:
        return
    if not _same_patient(ws, view, geometry, reference):
        message = "the two series are of two studies, and do not say that they are of one patient"
        raise DataError(_OTHER_FRAMES, message, hint=hint)


def _same_patient(ws: Workspace, view: Workspace, geometry: dict[str, Any], reference: dict[str, Any]) -> bool:
    """Say whether both series name one patient: their files are opened again, and what they say is only compared."""
    from mdcli.dicom.opening import SourceFiles
    from mdcli.dicom.patient import patient_of

    found = []
    for side, document in ((ws, geometry), (view, reference)):
        if not side.has("series"):
            return False
        series = side.read_json("series")
        if series.get("series", {}).get("series_instance_uid") != document["series_instance_uid"]:
            return False
        first = series["instances"][0]
        with SourceFiles(side.source_root("series")) as files:
            found.append(patient_of(files, (first["path"], first["size"]), first["header_sha256"]))
    return found[0] is not None and found[0] == found[1]


def _fill(params: Params, array: NDArray[Any], geometry: dict[str, Any], dtype: np.dtype[Any]) -> float:
    """Return the value outside of the volume: as asked, else padding where it has one value, else the lowest."""
    import numpy as np

    padding = geometry.get("padding") or {}
    if params.fill is None:
        span = padding.get("range")
        return float(span[0]) if span else float(min(np.min(plane) for plane in array))
    if dtype.kind in "iu" and not (
        params.fill == int(params.fill) and np.iinfo(dtype).min <= params.fill <= np.iinfo(dtype).max
    ):
        raise UsageError("bad-fill", f"--fill {params.fill:g} is no value of type {dtype}")
    return params.fill


def _document(
    params: Params,
    geometry: dict[str, Any],
    target: _Target,
    registered: dict[str, Any] | None,
    fill: float,
) -> dict[str, Any]:
    from mdcli.imaging.places import grid_facts

    own = {
        "why": [],
        "source_shape": geometry["shape"],
        "source_affine_lps": geometry["affine_lps"],
        "source_offsets": None,
        "missing_mm": [],
    }
    before = geometry.get("resampled") or own
    # Moved into another frame of reference it has no planes of its own there to go back to.
    moved = registered is not None and registered["by"] != "frame-of-reference"
    return {
        **geometry,
        **grid_facts(target.shape, target.affine),
        "frame_of_reference_uid": target.frame_of_reference_uid,
        "resampled": {
            **before,
            "why": [*before["why"], "grid" if params.to is not None else "spacing"],
            "made_slices": None,
            "interpolation": params.order,
            "fill": fill,
        },
        "registered": registered,
        "slices": [] if moved else geometry["slices"],
    }


def identity(ws: Workspace, params: Params) -> dict[str, Any]:
    """Say what decides the result beside volume and parameters: the reference's grid and patient, and the registration."""
    found: dict[str, Any] = {}
    if params.to is not None:
        view = _reference(ws, params)
        view.read("geometry")
        found["reference_geometry"] = view.state(view.role_to_read("geometry"))[1]
    if params.registration is not None:
        import hashlib

        with _open_registration(params.registration) as file:
            found["registration_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def preload(params: Params) -> None:
    """Import what every case needs."""
    import mdcli.imaging.nifti
    import mdcli.imaging.places
    import mdcli.imaging.resample

    assert mdcli.imaging.nifti


STAGE = Stage(
    "resample-volume",
    Params,
    run,
    reads=("volume", "geometry"),
    writes=("volume", "geometry"),
    optional_reads=("series",),
    version=1,
    identity=identity,
    preload=preload,
)
