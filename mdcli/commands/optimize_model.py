"""Make a model smaller, where its labels stay the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mdcli.inference.parity import ParityReport
    from mdcli.inference.selftest import Case, Seen


def optimize_model(
    name: Annotated[str, typer.Argument(metavar="NAME|PATH", help="Model: a name (md models lists them) or a path.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to make.", show_default=False)],
    fp16: Annotated[bool, typer.Option("--fp16", help="Float16 inside the network.")] = False,
    keep_float32: Annotated[
        list[str] | None,
        typer.Option(metavar="OPERATOR", help="ONNX operator that stays float32 (default: norms, means); may repeat."),
    ] = None,
    on: Annotated[
        list[Path] | None,
        typer.Option(metavar="WORKSPACE", help="Compare on its volume too, beside the phantom; may repeat."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where both are run: as of infer.")] = "auto",
    trust_model: Annotated[
        list[str] | None, typer.Option(metavar="SHA256", help="SHA-256 of a file whose code may run; may repeat.")
    ] = None,
    orientation: Annotated[
        str | None, typer.Option(help="Orientation of the training images, where the model does not say it.")
    ] = None,
    allow_unjudged: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Pass classes that no volume has enough voxels of; say why."),
    ] = None,
) -> None:
    """Make a float16 model of a float32 one, and compare the two class by class, on the phantom and the volumes of --on.

    Exit 1, with nothing written, where a class is off. The self-test of the float32 model goes along: md model check compares it on
    the machine that will serve.
    """
    from dataclasses import replace
    from tempfile import TemporaryDirectory

    from mdcli.commands.export_model import copy_networks, cores, making
    from mdcli.commands.model import find, phantom_case, print_verdict, said_of, warn, workspace_case
    from mdcli.errors import AnswerNo, PersonsFileError, UsageError
    from mdcli.inference.card_text import card_text
    from mdcli.inference.devices import cuda_gpus, parse_devices
    from mdcli.inference.engines import DEFAULT_ENGINE, find_engine, version_of
    from mdcli.inference.half import KEPT, to_half
    from mdcli.inference.parity import judge
    from mdcli.inference.selftest import FILE, FOLDER, SelfTest, compare, read_selftest, run_case, write_selftest

    if not fp16:
        raise UsageError("usage", "nothing is asked for", hint="--fp16")
    if out.exists():
        raise PersonsFileError("persons-file", f"{out.name} is there already", hint="give --out a folder of its own")
    model = find(name, trust_model or (), orientation)
    card, files = model.card, [Path(network) for network in model.networks]
    runner = find_engine(DEFAULT_ENGINE)
    where = parse_devices(device, cuda_gpus, gpu_engine=version_of("onnxruntime-gpu") is not None).names[0]
    if where == "cpu":
        warn("a CPU computes in float32 with float16 weights: run md model check where a GPU will serve", "fp16-on-cpu")
    kept: list[tuple[Case, Seen]] = []
    reports: list[ParityReport] = []
    with TemporaryDirectory() as scratch:
        halves = [Path(scratch) / f"{n}.onnx" for n in range(len(files))]
        for file, half in zip(files, halves, strict=True):
            done = to_half(file, half, tuple(keep_float32) if keep_float32 else KEPT)
            said = f"{done.half} nodes in float16, {done.kept} kept float32"
            print(f"{file.name}: {done.before / 2**20:.1f} MiB to {done.after / 2**20:.1f} MiB, {said}")
        reference, ours = (
            [runner.open(network, device=where, threads=cores()) for network in networks]
            for networks in (files, halves)
        )
        cases = [phantom_case(card), *(workspace_case(card, folder) for folder in on or ())]
        for case in cases:
            theirs = run_case(card, reference, case, margins=True)
            reports.append(compare(card, theirs, run_case(card, ours, case), case.name))
            kept = kept or [(case, theirs)]
            made_by = theirs.facts
        verdict = judge(reports)
        print_verdict(verdict, allow_unjudged)
        if not verdict.passes(allow_unjudged=allow_unjudged is not None):
            hint = "--on WORKSPACE adds a volume that has the classes; --allow-unjudged REASON goes without"
            raise AnswerNo("parity-failed", said_of(verdict), hint=None if verdict.failures else hint)
        selftest = SelfTest(tuple(kept), made_by)
        if model.folder is not None and (model.folder / FOLDER / FILE).is_file():
            selftest = read_selftest(model.folder)
        names = ["network.onnx"] if len(files) == 1 else [f"network_{n}.onnx" for n in range(len(files))]
        with making(out) as folder:
            copy_networks(halves, folder)
            smaller = replace(card, networks=tuple(names), architecture=None, version=f"{card.version}+fp16")
            (folder / "model.yaml").write_text(card_text(smaller), encoding="utf-8")
            write_selftest(folder / FOLDER, replace(selftest, precision="float16"))
    print(f"{out}: {smaller.name} {smaller.version}")
