"""Check a model on this machine, or draw what it sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from mdcli.inference.card import Card
    from mdcli.inference.engines import Session
    from mdcli.inference.formats import ModelFolder
    from mdcli.inference.parity import Verdict
    from mdcli.inference.selftest import Case


def model(
    action: Annotated[
        Literal["check", "show"],
        typer.Argument(help="check a model by its self-test, or show the middle window as the network sees it."),
    ],
    name: Annotated[str, typer.Argument(metavar="NAME|PATH", help="Model: a name (md models lists them) or a path.")],
    workspace: Annotated[
        Path | None, typer.Argument(help="show: the workspace with the volume.", show_default=False)
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="show: the PNG to write.")] = None,
    engine: Annotated[str | None, typer.Option(help="Engine that runs it (default: the card's).")] = None,
    device: Annotated[str, typer.Option(help="Where it runs: as of infer.")] = "auto",
    trust_model: Annotated[
        list[str] | None, typer.Option(metavar="SHA256", help="SHA-256 of a file whose code may run; may repeat.")
    ] = None,
    orientation: Annotated[
        str | None, typer.Option(help="Orientation of the training images, where the model does not say it.")
    ] = None,
    allow_unjudged: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="check: pass classes that the self-test has too few voxels of; say why."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="check: print as JSON (md.model-check/1).")] = False,
) -> None:
    """Check that a model gives here, with this engine and device, what its training code gave; or draw what it sees.

    Check runs the volumes of the model's selftest/ and compares the network's tensor, its scores and the labels, class by class;
    the result is noted for infer --require-check. Exit 0 where it passes, else 1. Show draws the three planes of the middle window
    in the network's own axes, with the patient's sides at the edges.
    """
    from mdcli.errors import UsageError

    opened = open_model(name, engine, device, trust_model or (), orientation)
    if action == "check":
        if workspace is not None or out is not None:
            raise UsageError("usage", "check takes a model alone", hint="md model check MODEL")
        _check(opened, allow_unjudged, as_json)
        return
    if workspace is None or out is None or as_json:
        raise UsageError("usage", "show takes a workspace and --out", hint="md model show MODEL WORKSPACE --out x.png")
    _show(opened, workspace, out)


@dataclass(frozen=True)
class OpenModel:
    """A model, opened: its sessions, one a network, and what decides its numbers beside itself."""

    model: ModelFolder
    sessions: tuple[Session, ...]
    identity: dict[str, str]


def open_model(
    name: str,
    engine: str | None = None,
    device: str = "auto",
    trust: Sequence[str] = (),
    orientation: str | None = None,
) -> OpenModel:
    """Return a model, opened on one device; its notes go to standard error.

    Raises:
        MdError: as `find_model` and `Engine.open`.
    """
    import os

    from mdcli.errors import UsageError
    from mdcli.inference.devices import cuda_gpus, parse_devices
    from mdcli.inference.engines import DEFAULT_ENGINE, find_engine, version_of

    found = find(name, trust, orientation, engine)
    if any("://" in str(network) for network in found.networks):
        raise UsageError("bad-engine", f"{found.card.name} runs on a server: check it there")
    word = engine or found.card.engine or DEFAULT_ENGINE
    gpu_engine = word == DEFAULT_ENGINE and version_of("onnxruntime-gpu") is not None
    where = parse_devices(device, cuda_gpus, gpu_engine=gpu_engine).names[0]
    runner = find_engine(word)
    sessions = [runner.open(network, device=where, threads=os.cpu_count() or 1) for network in found.networks]
    return OpenModel(found, tuple(sessions), runner.identity(where))


def find(name: str, trust: Sequence[str], orientation: str | None, engine: str | None = None) -> ModelFolder:
    """Return a model, converted where it has to be; its notes go to standard error.

    Raises:
        MdError: as `find_model`.
    """
    from mdcli.inference.engines import DEFAULT_ENGINE
    from mdcli.inference.formats import Opening, find_model
    from mdcli.inference.isolation import use_python
    from mdcli.model_folders import converted_folder, model_folders, torch_python

    use_python(torch_python())
    opening = Opening(
        cache=converted_folder(), trust=frozenset(trust), orientation=orientation, engine=engine or DEFAULT_ENGINE
    )
    found = find_model(name, model_folders(), opening)
    for code, text in found.notes:
        warn(text, code)
    return found


def warn(text: str, code: str) -> None:
    """Tell a person."""
    import sys

    print(f"md: warning: {text} [{code}]", file=sys.stderr)


def phantom_case(card: Card) -> Case:
    """Return the phantom as a case of a card: every input sees it, the second and later ones turned so that they are unlike.

    It is the phantom of the demo, in whole HU with noise.
    """
    import numpy as np

    from mdcli.inference.selftest import Case
    from mdcli.phantom.study import demo_affine, demo_voxels

    voxels = demo_voxels()
    arrays = []
    for number, said in enumerate(card.inputs):
        # Turned by half a turn about k, about j, about i ...: the shape stays.
        axes = ((), (1, 2), (0, 2), (0, 1))[number % 4]
        array = np.ascontiguousarray(np.flip(voxels, axes)) if axes else np.array(voxels)
        arrays.append(np.stack([array] * 3, axis=-1) if said.channels == 3 else array)
    return Case("phantom", tuple(arrays), demo_affine())


def workspace_case(card: Card, folder: Path) -> Case:
    """Return the volumes of a workspace as a case of a card; its name is the folder's.

    Raises:
        DataError: `wrong-unit`, `sheared-volume`, `grids-differ`.
        ConfigError: `bad-card` where the card asks for images as they are shown.
    """
    import numpy as np

    from mdcli.errors import ConfigError, DataError
    from mdcli.inference.grid import shear_of
    from mdcli.inference.scope import check_unit
    from mdcli.inference.selftest import Case
    from mdcli.workspace import Workspace

    ws = Workspace(folder)
    volumes = []
    for said in card.inputs:
        if said.grayscale != "modality":
            raise ConfigError("bad-card", f"grayscale: {said.grayscale}, and only modality is compared here")
        volume, geometry = ws.read_volume(said.role), ws.read_json(said.role.replace("volume", "geometry", 1))
        if said is card.input:
            check_unit(card, geometry["unit"] if volume.unit is None else volume.unit, geometry.get("modality"))
        volumes.append(volume)
    first = volumes[0]
    if sheared := shear_of(first.array.shape[:3], first.affine):
        raise DataError("sheared-volume", f"the volume of {folder.name} is sheared by {sheared[0]:.2f} degrees")
    if any(v.array.shape != first.array.shape or np.abs(v.affine - first.affine).max() > 1e-3 for v in volumes):
        raise DataError("grids-differ", f"the volumes of {folder.name} lie on different grids")
    return Case(folder.name, tuple(volume.array for volume in volumes), first.affine)


def print_verdict(verdict: Verdict, reason: str | None) -> None:
    """Print a parity report for a person."""
    from mdcli.inference.parity import table

    for line in table(verdict):
        print(line)
    if verdict.not_judged and reason is not None:
        print(f"allowed: {reason}")


def _check(opened: OpenModel, reason: str | None, as_json: bool) -> None:
    import json

    from mdcli.errors import AnswerNo, MissingError
    from mdcli.inference.parity import as_json as report_json
    from mdcli.inference.parity import judge
    from mdcli.inference.selftest import CHECK_SCHEMA, check, read_selftest, record_check
    from mdcli.model_folders import checks_folder

    found = opened.model
    if found.folder is None:
        raise MissingError("no-selftest", f"{found.card.name} has no folder that could hold a self-test")
    verdict = judge(check(found.card, opened.sessions, read_selftest(found.folder)))
    passes = verdict.passes(allow_unjudged=reason is not None)
    document: Mapping[str, Any] = {
        "model": {"name": found.card.name, "version": found.card.version},
        "passes": passes,
        "allowed_unjudged": reason if verdict.not_judged else None,
        **report_json(verdict),
    }
    if (folder := checks_folder()) is not None:
        record_check(found.sha256, opened.identity, folder, document)
    if as_json:
        print(json.dumps({"schema": CHECK_SCHEMA, "engine": opened.identity, **document}, indent=1))
    else:
        print(f"{found.card.name} {found.card.version} with {', '.join(opened.identity.values())}")
        print_verdict(verdict, reason)
        print("passes" if passes else "does not pass")
    if not passes:
        raise AnswerNo("parity-failed", said_of(verdict), failures=len(verdict.failures))


def said_of(verdict: Verdict) -> str:
    """Return in one sentence why a verdict is no."""
    if verdict.failures:
        more = f", and {len(verdict.failures) - 1} more" if len(verdict.failures) > 1 else ""
        return verdict.failures[0] + more
    names = ", ".join(verdict.not_judged[:5]) + (" ..." if len(verdict.not_judged) > 5 else "")
    return f"{len(verdict.not_judged)} classes are not judged: {names}"


def _show(opened: OpenModel, workspace: Path, out: Path) -> None:
    import io

    from mdcli.imaging.network_view import network_view
    from mdcli.inference.selftest import middle_window
    from mdcli.records import storage_errors, write_whole

    card = opened.model.card
    view = middle_window(card, opened.sessions[0], workspace_case(card, workspace))
    picture = network_view(
        view.tensor, view.axes, view.directions, title=f"{card.name} {card.version}", regulatory=card.regulatory
    )
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    with storage_errors(out.name):
        write_whole(out, file.getvalue())
    print(out)
