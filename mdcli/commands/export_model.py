"""Export a torch model to ONNX, with a self-test."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mdcli.inference.engines import Session
    from mdcli.inference.formats import ModelFolder
    from mdcli.inference.parity import ParityReport
    from mdcli.inference.selftest import Case, Seen

_TEMPLATE = """\
# The card of a model that md export-model converted. The network takes {channels} channel(s) and a window of {size}.
# Say what is missing below: md tells what, and `md schema model` prints the whole format.
schema: md.model/1
name: {name}
version: 0.1.0
network: network.onnx
task: segmentation
inputs:
  - role: volume
    # axes: the order of the network's array: {axes} for MONAI's, the letters the other way round for nnU-Net's
    # orientation: where the index along x, y, z grows to, as RAS; or as-acquired
    # spacing: mm, in the order of the axes; or as-acquired
    # unit: HU, or what the values mean
    # intensity: what is done to the values, as [{{clip: [-160, 240]}}, {{scale: {{from: [-160, 240], to: [0, 1]}}}}]
output:
  tensor: {tensor}
  # axes: as of the input
  # activation: softmax, sigmoid or none
  # inversion: scores or labels
window: {{size: {size}, overlap: 0.5, blending: gaussian}}
# labels: one for each channel of the output ({outputs}) but the background
# empty: error (an organ that is not found is an error) or valid (a finding that is not there)
"""


def export_model(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FILE|FOLDER|NAME",
            help="A model of any format that md reads; or a file of torch without a card.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.", show_default=False)],
    trust_model: Annotated[
        list[str] | None, typer.Option(metavar="SHA256", help="SHA-256 of a file whose code may run; may repeat.")
    ] = None,
    orientation: Annotated[
        str | None, typer.Option(help="Orientation of the training images, where the model does not say it.")
    ] = None,
    on: Annotated[
        list[Path] | None,
        typer.Option(metavar="WORKSPACE", help="Compare on its volume too, beside the phantom; may repeat."),
    ] = None,
    store_volumes: Annotated[
        bool, typer.Option(help="Keep the volumes of --on in selftest/: they are images of patients.")
    ] = False,
    allow_unjudged: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Pass classes that no volume has enough voxels of; say why."),
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(metavar="C,SIZE,...", help="Of a file without a card: channels and window, such as 1,96,96,96."),
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="Of weights without a card: their network, such as monai.networks.nets.UNet.")
    ] = None,
    arguments: Annotated[str | None, typer.Option(metavar="JSON", help="What --network is made with.")] = None,
) -> None:
    """Export a torch model to ONNX: network.onnx, model.yaml and selftest/, and compare it with torch class by class.

    The window is fixed, the batch free. Torch runs in a process without network. Exit 1, with nothing written, where a class is
    off. A file without a card becomes a network and a card to be filled in; export it again, from there, for the self-test.
    """
    from mdcli.errors import PersonsFileError, UsageError

    if out.exists():
        raise PersonsFileError("persons-file", f"{out.name} is there already", hint="give --out a folder of its own")
    path = Path(source)
    if path.is_file() and not (path.parent / "model.yaml").is_file():
        if input_shape is None:
            text = f"{path.name} has no model.yaml beside it, and nothing says its channels and window"
            raise UsageError("usage", text, hint="--input-shape 1,96,96,96")
        _bare(path, out, input_shape, network, arguments, trust_model or ())
        return
    if input_shape or network or arguments:
        raise UsageError("usage", "--input-shape, --network and --arguments are for a file without a card")
    _whole(source, out, trust_model or (), orientation, on or (), store_volumes, allow_unjudged)


def _bare(
    file: Path, out: Path, input_shape: str, network: str | None, arguments: str | None, trust: Sequence[str]
) -> None:
    """Convert a file of torch that has no card, and write one to be filled in."""
    import json
    import re
    from tempfile import TemporaryDirectory

    from mdcli.errors import UsageError
    from mdcli.inference.engines import DEFAULT_ENGINE, find_engine
    from mdcli.inference.formats.torchfile import NetworkDefinition, to_onnx
    from mdcli.inference.isolation import use_python
    from mdcli.model_folders import converted_folder, torch_python

    numbers = input_shape.split(",")
    if len(numbers) not in (3, 4) or not all(re.fullmatch(r"[1-9]\d{0,3}", number) for number in numbers):
        raise UsageError("usage", f"--input-shape {input_shape!r} is not C and two or three sizes", hint="1,96,96,96")
    try:
        said = json.loads(arguments or "{}")
    except ValueError as error:
        raise UsageError("usage", f"--arguments is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise UsageError("usage", "--arguments is no mapping", hint="""'{"spatial_dims": 3, ...}'""")
    use_python(torch_python())
    shape = tuple(int(number) for number in numbers)
    definition = NetworkDefinition(network, said) if network else None
    with TemporaryDirectory() as scratch:
        converted = to_onnx(
            file,
            cache=converted_folder() or Path(scratch),
            trust=frozenset(trust),
            input_shape=(1, *shape),
            network=definition,
        )
        _say(converted.notes)
        session = find_engine(DEFAULT_ENGINE).open(converted.path, device="cpu", threads=1)
        outputs = ", ".join(f"{tensor.name} has {tensor.shape[1]}" for tensor in session.outputs)
        name = re.sub(r"[^a-z0-9_.-]+", "-", file.stem.lower()).strip("-.") or "model"
        axes = "[C, x, y, z]" if len(shape) == 4 else "[C, x, y]"
        size = str(list(shape[1:]))
        tensor = session.outputs[0].name
        text = _TEMPLATE.format(name=name, channels=shape[0], size=size, axes=axes, tensor=tensor, outputs=outputs)
        with making(out) as folder:
            copy_networks([converted.path], folder)
            (folder / "model.yaml").write_text(text, encoding="utf-8")
    difference = converted.facts["largest_difference"]
    print(f"{out}: network.onnx is within {difference:.2g} of torch on seeded numbers; model.yaml wants filling in")


def _whole(
    source: str,
    out: Path,
    trust: Sequence[str],
    orientation: str | None,
    workspaces: Sequence[Path],
    store_volumes: bool,
    reason: str | None,
) -> None:
    """Convert a model that has a card, compare it with torch, and write it with its self-test."""
    from dataclasses import replace

    from mdcli.commands.model import find, phantom_case, print_verdict, said_of, workspace_case
    from mdcli.errors import AnswerNo
    from mdcli.inference.card_text import card_text
    from mdcli.inference.engines import DEFAULT_ENGINE, find_engine
    from mdcli.inference.parity import judge
    from mdcli.inference.selftest import FOLDER, SelfTest, compare, run_case, write_selftest

    model = find(source, trust, orientation)
    card = model.card
    runner = find_engine(DEFAULT_ENGINE)
    files = [Path(network) for network in model.networks]
    ours = [runner.open(network, device="cpu", threads=cores()) for network in files]
    cases = [phantom_case(card), *(workspace_case(card, folder) for folder in workspaces)]
    kept: list[tuple[Case, Seen]] = []
    reports: list[ParityReport] = []
    with _torch(model, files, ours, trust) as reference:
        for number, case in enumerate(cases):
            theirs = run_case(card, reference, case, margins=True)
            reports.append(compare(card, theirs, run_case(card, ours, case), case.name, window=True))
            made_by = theirs.facts
            if number == 0 or store_volumes:
                kept.append((case, theirs))
    verdict = judge(reports)
    print_verdict(verdict, reason)
    if not verdict.passes(allow_unjudged=reason is not None):
        hint = "--on WORKSPACE adds a volume that has the classes; --allow-unjudged REASON goes without"
        raise AnswerNo("parity-failed", said_of(verdict), hint=None if verdict.failures else hint)
    names = ["network.onnx"] if len(files) == 1 else [f"network_{n}.onnx" for n in range(len(files))]
    with making(out) as folder:
        copy_networks(files, folder)
        (folder / "model.yaml").write_text(
            card_text(replace(card, networks=tuple(names), architecture=None)), encoding="utf-8"
        )
        write_selftest(folder / FOLDER, SelfTest(tuple(kept), made_by))
    print(f"{out}: {card.name} {card.version}, with a self-test of {len(kept)} volume(s) by {made_by['engine']}")


@contextmanager
def _torch(
    model: ModelFolder, files: Sequence[Path], ours: Sequence[Session], trust: Sequence[str]
) -> Iterator[Sequence[Session]]:
    """Open the networks that ONNX networks were converted from, by torch; those that were ONNX all along stand for themselves."""
    from contextlib import ExitStack
    from tempfile import TemporaryDirectory

    from mdcli.commands.model import warn
    from mdcli.inference.formats import sha256_of
    from mdcli.inference.formats.torchfile import TorchSession, origin_of
    from mdcli.model_folders import converted_folder

    inside = [path for path in sorted(model.folder.rglob("*")) if path.is_file()] if model.folder else []
    with ExitStack() as stack:
        cache = converted_folder() or Path(stack.enter_context(TemporaryDirectory()))
        sessions: list[Session] = []
        for file, session in zip(files, ours, strict=True):
            origin = origin_of(file)
            found = next((path for path in inside if origin and sha256_of(path) == origin.sha256), None)
            if origin is None or found is None:
                text = (
                    f"{file.name} is compared with itself: the file of torch that it came from is not beside the card"
                )
                warn(text, "no-reference")
                sessions.append(session)
                continue
            torch = TorchSession(
                found,
                session,
                cache=cache,
                trust=frozenset(trust),
                network=origin.network,
                state_key=origin.state_key,
                select_output=origin.select_output,
            )
            sessions.append(stack.enter_context(torch))
        yield sessions


@contextmanager
def making(out: Path) -> Iterator[Path]:
    """Give a folder that becomes `out` whole, or not at all."""
    import shutil
    from tempfile import mkdtemp

    from mdcli.records import storage_errors

    with storage_errors(out.name):
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        try:
            yield folder
            folder.chmod(0o755)
            folder.rename(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def copy_networks(files: Sequence[Path], folder: Path) -> None:
    """Copy ONNX networks: `network.onnx`, or `network_0.onnx` ...; weights outside of one keep the name that it gives them."""
    import shutil

    from mdcli.errors import ConfigError
    from mdcli.inference.onnxfile import external_files

    for number, file in enumerate(files):
        for weights in sorted(external_files(file)):
            if len(files) > 1 or "/" in weights:
                raise ConfigError("bad-network", f"{file.name} keeps weights in {weights!r}: they can't be moved")
            shutil.copyfile(file.parent / weights, folder / weights)
        shutil.copyfile(file, folder / ("network.onnx" if len(files) == 1 else f"network_{number}.onnx"))


def _say(notes: Sequence[tuple[str, str]]) -> None:
    from mdcli.commands.model import warn

    for code, text in notes:
        warn(text, code)


def cores() -> int:
    """Return how many cores there are."""
    import os

    return os.cpu_count() or 1
