"""Take a NIfTI, NRRD, MHA or MHD file as the volume."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from mdcli.errors import MissingError
from mdcli.stage import Option, Sources, Stage

if TYPE_CHECKING:
    from mdcli.imaging.foreign import Foreign
    from mdcli.workspace import Workspace


@dataclass(frozen=True)
class Params:
    """What you can ask."""

    file: Annotated[
        Path | None, Option("The .nii, .nii.gz, .nrrd, .nhdr, .mha or .mhd file", source=True, metavar="FILE")
    ] = None
    unit: Annotated[
        str | None, Option("Unit of the values, such as HU, where the file doesn't say", metavar="UNIT")
    ] = None
    modality: Annotated[str | None, Option("Modality, such as CT: no such file says", metavar="MODALITY")] = None


def run(ws: Workspace, params: Params) -> None:
    """Read the file, write the same voxels at the same millimetres and say that no DICOM image stands behind them."""
    from mdcli.imaging.foreign import read_foreign, with_unit

    path = _file(params)
    with ws.span("read"):
        found = with_unit(read_foreign(path), params.unit)
        volume = found.volume
    for finding in found.findings:
        (ws.warn if finding.warning else ws.note)(finding.code, finding.message, **finding.numbers)
    if volume.unit is None:
        ws.warn("no-unit", "the file does not say the unit of its values; --unit does")
    with ws.span("write"):
        ws.write_volume("volume", volume.array, volume.affine, volume.unit)
        ws.write_json("geometry", _document(found, params))
    with ws.span("hash"):
        ws.sources_digest(_digest(path.parent, found.files))
    if len(found.files) == 1:
        # Two files have their folder as root, which names neither.
        ws.set_source_root("volume", path)


def _document(found: Foreign, params: Params) -> dict[str, Any]:
    from mdcli.dicom.geometry import completeness
    from mdcli.imaging.places import grid_facts

    volume = found.volume
    made = ["volume and affine, from a file that is not DICOM"]
    made += [f"unit {params.unit}, by --unit"] if params.unit is not None else []
    made += [f"modality {params.modality}, by --modality"] if params.modality is not None else []
    return {
        "schema": "md.geometry/1",
        **dict.fromkeys(("series_instance_uid", "study_instance_uid", "frame_of_reference_uid", "sop_class_uid")),
        "modality": params.modality,
        "patient_position": None,
        "unit": volume.unit,
        "rescale_type": None,
        "spacing_plane": "patient",
        **grid_facts(volume.array.shape, volume.affine),
        "dimension": None,
        "volume": {},
        "colour": None,
        "photometric_interpretation": None,
        "display": None,
        "transfer_syntaxes": [],
        "lossy": None,
        "padding": None,
        "made": made,
        "resampled": None,
        "dropped": [],
        "completeness": completeness((), None),
        "slices": [],
    }


def _file(params: Params) -> Path:
    if params.file is None:
        raise MissingError("no-source", "--file is not given", hint="give --file FILE")
    return params.file


def _digest(folder: Path, names: Iterable[str]) -> str:
    """Return one SHA-256 of what the files hold."""
    from mdcli.records import sha256_of, sha256_of_artifact

    return sha256_of([sha256_of_artifact(folder / name) for name in names])


def sources(ws: Workspace, params: Params) -> Sources | None:
    """Name the file, and the one beside it that its header names."""
    from mdcli.imaging.foreign import files_of

    if params.file is None:
        return None
    path = params.file
    names = files_of(path)

    def digest() -> str:
        return _digest(path.parent, names)

    return Sources(path, ("",), digest) if len(names) == 1 else Sources(path.parent, names, digest)


def preload(params: Params) -> None:
    """Import what every case needs."""
    import mdcli.imaging.foreign
    import mdcli.imaging.places

    assert mdcli.imaging.foreign


STAGE = Stage(
    "import-volume",
    Params,
    run,
    writes=("volume", "geometry"),
    version=1,
    sources=sources,
    preload=preload,
)
