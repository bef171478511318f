"""Whether a DICOM file is of the patient of a workspace's volume: both are opened and compared, and nothing of them is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mdcli.errors import DataError, MissingError

if TYPE_CHECKING:
    from mdcli.workspace import Workspace


def check_patient(ws: Workspace, geometry: Mapping[str, Any], path: Path, what: str, *, allowed: bool) -> None:
    """Refuse a SEG or an RTSTRUCT of another patient than the volume's images; note where nobody can tell.

    Args:
        ws: the workspace, while a stage runs.
        geometry: `geometry.json` of the volume.
        path: the file.
        what: how messages call it.
        allowed: the caller took both as registered: another patient is then a warning.

    Raises:
        DataError: `frames-of-reference-differ`.
    """
    same = _same(ws, geometry, path)
    if same is None:
        ws.note("patient-not-compared", f"whether {what} is of the volume's patient could not be compared")
    elif not same:
        text = f"{what} is of another patient than the volume, by PatientID"
        if not allowed:
            hint = "--assume-registered takes it as lying where it says"
            raise DataError("frames-of-reference-differ", text, hint=hint)
        ws.warn("other-patient", text)


def _same(ws: Workspace, geometry: Mapping[str, Any], path: Path) -> bool | None:
    from mdcli.dicom.opening import SourceFiles
    from mdcli.dicom.patient import patient_in, patient_of

    theirs = patient_in(path)
    if theirs is None or not ws.has("series"):
        return None
    series = ws.read_json("series")
    if series.get("series", {}).get("series_instance_uid") != geometry.get("series_instance_uid"):
        return None
    first = series["instances"][0]
    try:
        with SourceFiles(ws.source_root("series")) as files:
            ours = patient_of(files, (first["path"], first["size"]), first["header_sha256"])
    except (DataError, MissingError):
        # The images are gone or changed since: the volume is still what they were.
        return None
    return None if ours is None else ours == theirs
