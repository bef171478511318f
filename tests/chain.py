"""The four-stage chain on a small phantom, for tests that need real artifacts."""

from __future__ import annotations

import os
from pathlib import Path

from mdcli import registry
from mdcli.stage import Stage
from mdcli.testing import run_stage
from tests.made_rtstruct import rtstruct_of_study

CHAIN = ("select-series", "load-volume", "infer", "write-seg")
# The stage whose artifacts each stage works on; one that needs none is not here.
NEEDS = {
    "load-volume": "select-series",
    "infer": "load-volume",
    "write-seg": "infer",
    "read-seg": "load-volume",
    "read-rtstruct": "load-volume",
}
NEEDS |= {"resample-volume": "load-volume", "export": "load-volume"}
NEEDS |= {"crop": "infer", "merge-labels": "infer"}
CANARY = "Canaryname"


def params_of(word: str, source: Path, model: str = "landmarks") -> dict[str, object]:
    """Return what the chain's stages are called with."""
    if word == "read-seg":
        return {"seg": seg_of(source)}
    if word == "read-rtstruct":
        return {"rtstruct": rtstruct_of_study(source, source.with_name(f"{source.name}_rtstruct.dcm"))}
    if word == "import-volume":
        return {"file": foreign_of(source)}
    if word == "resample-volume":
        return {"as_name": "even", "isotropic": True}
    if word == "crop":
        return {"as_name": "part", "labels": ("1",), "margin": 10.0}
    if word == "merge-labels":
        return {"as_name": "merged", "maps": "labels"}
    if word == "export":
        return {"format": ("nrrd", "png")}
    return {"select-series": {"dicom": source}, "infer": {"model": model}}.get(word, {})


def foreign_of(source: Path) -> Path:
    """Return a NIfTI file of another program, made beside a study the first time."""
    path = source.with_name(f"{source.name}_foreign.nii.gz")
    if not path.exists():
        import nibabel
        import numpy as np

        image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(5, 4, 3), np.diag([-1.5, -1.5, 3, 1]))
        image.header.set_xyzt_units("mm")
        nibabel.save(image, path)
    return path


def seg_of(source: Path) -> Path:
    """Return a SEG of a study, made by the chain beside it the first time."""
    workspace = source.with_name(f"{source.name}_seg")
    if not (workspace / "seg.dcm").exists():
        run_chain(workspace, source)
    return workspace / "seg.dcm"


def stage_of(word: str) -> Stage:
    """Return a stage by its word."""
    return registry.load_stage(word)


def run_chain(
    workspace: Path, source: Path, model: str = "landmarks", until: str = "write-seg", **controls: object
) -> None:
    """Run the chain up to and with a stage, in process."""
    for word in CHAIN:
        run_stage(stage_of(word), workspace, **params_of(word, source, model), **controls)  # type: ignore[arg-type]
        if word == until:
            return


def canary_study(folder: Path) -> Path:
    """Write the phantom's study with a patient whose name, id and birth date are easily found again."""
    import pydicom

    from mdcli.phantom.study import write_study

    write_study(folder)
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        try:
            dataset = pydicom.dcmread(path)
        except pydicom.errors.InvalidDicomError:
            continue
        dataset.PatientName, dataset.PatientID = f"{CANARY}^Given", f"{CANARY}-ID"
        dataset.PatientBirthDate = "19010203"
        dataset.save_as(path)
    return folder


def md_environment(**more: str) -> dict[str, str]:
    """Return the environment for `python -m mdcli` in a subprocess, wherever it is started."""
    root = str(Path(__file__).parents[1])
    return {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]), **more}
