"""Run the whole chain on a phantom and check the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

# What the demo makes; anything else in its folder is a person's.
_MADE = ("dicom", "case", "gold", "tissue.png", "landmarks.png", "verify.json")


def demo(folder: Annotated[Path, typer.Argument(help="Folder to make.")] = Path("demo")) -> None:
    """Run the whole chain on a phantom and check the result: DICOM in, two models, DICOM out. Needs no download.

    The study, the workspace, the gold and the pictures stay in FOLDER to be looked at. Exit 0 where all is right, 1 where not.
    """
    from mdcli.commands.verify import verify
    from mdcli.errors import PersonsFileError
    from mdcli.phantom.gold import write_gold
    from mdcli.phantom.study import write_study
    from mdcli.records import storage_errors

    strange = sorted(p.name for p in folder.iterdir() if p.name not in _MADE) if folder.is_dir() else []
    if strange:
        hint = "give the demo a folder of its own: md demo FOLDER"
        raise PersonsFileError(
            "persons-file", f"{folder.name} holds {strange[0]}, which the demo did not make", hint=hint
        )

    dicom, case, gold = folder / "dicom", folder / "case", folder / "gold"
    with storage_errors(folder.name):
        print(f"A CT study of a phantom, with a scout, a reformat and a report beside the CT: {dicom}")
        write_study(dicom)
        write_gold(gold)
    print("\nThe chain, one line a stage; `-` in place of the workspace makes a pipe of them:")
    _stage(case, "select-series", dicom=dicom)
    _stage(case, "load-volume")
    for model, name in (("ct-tissue", "tissue"), ("landmarks", "landmarks")):
        _stage(case, "infer", as_name=name, model=model)
        _stage(case, "write-seg", as_name=name, use={"labels": name})

    print(f"\nWhat was found, beside what the phantom holds:\n$ md verify {case} --gold {gold}", flush=True)
    verify(case, gold, json_file=folder / "verify.json")

    print("\nLook at:")
    for name in ("tissue", "landmarks"):
        _draw(case, name, folder / f"{name}.png")
        print(f"  {folder / f'{name}.png'}   three planes with what {name} marks")
    for seg in sorted(case.glob("seg-*.dcm")):
        print(f"  {seg}   DICOM SEG for any viewer, beside {dicom / 'axial'}")
    print(f"  $ md inspect {case}   what every stage did, and how long it took")


def _stage(
    case: Path, word: str, *, as_name: str | None = None, use: Mapping[str, str] | None = None, **params: Any
) -> None:
    """Run one stage as its line would, after showing that line."""
    import shlex
    import sys
    import time

    from mdcli.execution import execute
    from mdcli.registry import load_stage
    from mdcli.reporting import Reporter
    from mdcli.workspace import Workspace

    class Warnings(Reporter):
        def event(self, level: str, message: str, *, code: str | None = None, **_: Any) -> None:
            if level in ("warning", "error"):
                print(f"md: {level}: {message} [{code}]", file=sys.stderr)

    options = [("--" + name.replace("_", "-"), value) for name, value in params.items()]
    options += [("--use", f"{kind}={name}") for kind, name in (use or {}).items()]
    options += [("--as", as_name)] if as_name else []
    line = shlex.join(["md", word, str(case), *(str(part) for option in options for part in option)])
    print(f"$ {line}", end="", flush=True)
    started = time.perf_counter()
    stage = load_stage(word)
    try:
        outcome = execute(stage, Workspace(case, as_name=as_name, use=use), stage.params(**params), None, Warnings())
    finally:
        print(f"   # {time.perf_counter() - started:.1f} s", end="")
        print()
    if outcome is not None and outcome.up_to_date:
        print("    already up to date")


def _draw(case: Path, name: str, path: Path) -> None:
    """Draw the labels of a name over the volume, through their middle, or through the first landmark."""
    import io

    from mdcli.imaging.picture import Layer, three_planes
    from mdcli.phantom.anatomy import LANDMARKS
    from mdcli.records import storage_errors, write_whole
    from mdcli.workspace import Workspace

    ws = Workspace(case, use={"labels": name})
    volume, labels, said = ws.read_volume("volume"), ws.read_volume("labels"), ws.read_json("segments")
    layers = [
        Layer(segment["value"], segment["name"], tuple(segment["colour"]))
        for segment in said["segments"]
        if segment["name"] != "air"
    ]
    picture = three_planes(
        volume.array,
        volume.affine,
        labels.array,
        layers,
        at_mm=LANDMARKS[0].position_mm if name == "landmarks" else None,
        title=f"{said['model']['name']} {said['model']['version']} on the demo's phantom",
        regulatory=said["regulatory"],
    )
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    with storage_errors(path.name):
        write_whole(path, file.getvalue())
