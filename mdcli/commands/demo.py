"""Run the whole chain on a phantom and check the result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

# What the demo makes; anything else in its folder is a person's.
_MADE = ("study", "gold", "tissue", "landmarks", "tissue.png", "landmarks.png", "verify.json")
_MODELS = {"tissue": "ct-tissue", "landmarks": "landmarks"}


def demo(folder: Annotated[Path, typer.Argument(help="Folder to make.")] = Path("demo")) -> None:
    """Run the whole chain on a phantom and check the result: DICOM in, two models, DICOM out. Needs no download.

    The study, the workspaces, the gold and the pictures stay in FOLDER to be looked at. Exit 0 where all is right, 1 where not.
    """
    from tempfile import TemporaryDirectory

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

    study, gold = folder / "study", folder / "gold"
    print(f"A CT study of a phantom, with a scout, a reformat and a report beside the CT: {study}")
    with storage_errors(folder.name), TemporaryDirectory() as scratch:
        write_study(Path(scratch) / "study")
        write_gold(Path(scratch) / "gold")
        _place(Path(scratch), folder)
    print("\nThe chain, a pipe of four stages, with each of the two embedded models:", flush=True)
    for name, model in _MODELS.items():
        _chain(study, folder / name, model)

    print(f"\nWhat was found, beside what the phantom holds:\n$ md verify {folder} --gold {gold}", flush=True)
    verify(folder, gold, json_file=folder / "verify.json")

    print("\nLook at:")
    for name in _MODELS:
        _draw(folder / name, folder / f"{name}.png")
        print(f"  {folder / f'{name}.png'}: three planes with the labels")
        print(f"  {folder / name / 'seg.dcm'}: a DICOM SEG, for any viewer that has {study / 'axial'} open")
    print(f"  $ md inspect {folder / 'tissue'}: what every stage did, and how long it took")


def _place(made: Path, folder: Path) -> None:
    """Put files into a folder, one by one, never over one that is not the same."""
    from mdcli.errors import PersonsFileError
    from mdcli.records import write_whole

    files = [path for path in sorted(made.rglob("*")) if path.is_file()]
    new = {folder / path.relative_to(made): path.read_bytes() for path in files}
    strange = [
        path
        for name in ("study", "gold")
        for path in sorted((folder / name).rglob("*"))
        if path.is_file() and path not in new
    ]
    if strange:
        message = f"{strange[0].relative_to(folder)} in {folder.name} is nothing that the demo made"
        raise PersonsFileError("persons-file", message, hint="give the demo a folder of its own: md demo FOLDER")
    for target, data in new.items():
        if target.exists() and (not target.is_file() or target.read_bytes() != data):
            message = f"{target.relative_to(folder)} in {folder.name} is not as the demo makes it"
            raise PersonsFileError("persons-file", message, hint="give the demo a folder of its own: md demo FOLDER")
    for target, data in new.items():
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, data)


def _chain(study: Path, case: Path, model: str) -> None:
    """Run the four stages as their pipe would, after showing it."""
    import shlex
    import sys
    import time
    from typing import Any

    from mdcli.execution import execute
    from mdcli.registry import load_stage
    from mdcli.reporting import Reporter
    from mdcli.workspace import Workspace

    class Warnings(Reporter):
        def event(self, level: str, message: str, *, code: str | None = None, **_: Any) -> None:
            if level in ("warning", "error"):
                print(f"md: {level}: {message} [{code}]", file=sys.stderr)

    steps: dict[str, dict[str, Any]] = {
        "select-series": {"dicom": study},
        "load-volume": {},
        "infer": {"model": model},
        "write-seg": {},
    }
    lines, where = [], str(case)
    for word, params in steps.items():
        lines.append(shlex.join(["md", word, where, *(str(part) for k, v in params.items() for part in (f"--{k}", v))]))
        where = "-"
    print(f"$ {' | '.join(lines)}", flush=True)
    for word, params in steps.items():
        stage, started = load_stage(word), time.perf_counter()
        outcome = execute(stage, Workspace(case), stage.params(**params), None, Warnings())
        done = "already up to date" if outcome is not None and outcome.up_to_date else "done"
        print(f"    {word:<14} {done}, {time.perf_counter() - started:.1f} s", flush=True)


def _draw(case: Path, path: Path) -> None:
    """Draw the labels over the volume; the landmarks through the first one, the tissues through their middle."""
    import io

    from mdcli.imaging.picture import Layer, three_planes
    from mdcli.phantom.anatomy import LANDMARKS
    from mdcli.records import storage_errors, write_whole
    from mdcli.workspace import Workspace

    ws = Workspace(case)
    volume, labels, said = ws.read_volume("volume"), ws.read_volume("labels"), ws.read_json("segments")
    layers = [
        Layer(segment["value"], segment["name"], tuple(segment["colour"]))
        for segment in said["segments"]
        if segment["name"] != "air"
    ]
    any_air = len(layers) < len(said["segments"])
    picture = three_planes(
        volume.array,
        volume.affine,
        labels.array,
        layers,
        at_mm=LANDMARKS[0].position_mm if said["model"]["name"] == "landmarks" else None,
        title=f"{said['model']['name']} {said['model']['version']} on the demo's phantom"
        + (" (air is not drawn)" if any_air else ""),
        regulatory=said["regulatory"],
    )
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    with storage_errors(path.name):
        write_whole(path, file.getvalue())
