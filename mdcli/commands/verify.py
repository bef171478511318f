"""Compare a run's outputs with a gold folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mdcli.errors import AnswerNo, ConfigError, DataError, MissingError, PersonsFileError, StorageError, UsageError

if TYPE_CHECKING:
    from rich.text import Text

    from mdcli.checking.compare import FileResult, Identity
    from mdcli.checking.gold import GoldFile


def verify(
    run: Annotated[Path, typer.Argument(help="A workspace, or a folder of outputs.", show_default=False)],
    gold: Annotated[Path, typer.Option(help="Folder of the same names, with gold.yaml.", show_default=False)],
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the report as JSON, md.verify/1.")
    ] = None,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the report as JUnit XML.")] = None,
    write_gold: Annotated[
        bool, typer.Option("--write-gold", help="Make the gold folder from the run; it must not be there yet.")
    ] = False,
    file: Annotated[
        list[str] | None,
        typer.Option(help="With --write-gold: a file to take; may be repeated. Default: every label map."),
    ] = None,
) -> None:
    """Compare a run's outputs with a gold folder, label by label: exit 0 where they agree, 1 where they differ."""
    if not run.is_dir():
        raise MissingError("no-run", "RUN is not a folder", hint="a workspace, or a folder of outputs")
    if write_gold:
        if json_file or junit:
            raise UsageError("usage", "--write-gold compares nothing: there is no report to write")
        _write_gold(run, gold, file)
        return
    if file:
        raise UsageError("usage", "--file goes with --write-gold; gold.yaml lists what is compared")

    from mdcli.checking.gold import GOLD_FILE, read_gold
    from mdcli.checking.report import check_target, junit_xml, verify_json
    from mdcli.records import storage_errors, write_whole

    for path, option in ((json_file, "--json"), (junit, "--junit")):
        if path is not None:
            check_target(path, option)
    results = [_compare(run, gold, entry) for entry in read_gold(gold / GOLD_FILE).files]
    report = json.dumps(verify_json(results), indent=1, allow_nan=False).encode() + b"\n"
    for path, data in ((json_file, report), (junit, junit_xml(results))):
        if path is not None:
            with storage_errors(path.name):
                write_whole(path, data)
    _print(results)
    differ = sum(not result.ok for result in results)
    if differ:
        raise AnswerNo("differs", f"{differ} of {len(results)} files differ from the gold", differ=differ)


def _compare(run: Path, gold: Path, entry: GoldFile) -> FileResult:
    """Compare one file; a run's file that is missing or can't be read is a difference, a gold's is an error."""
    from dataclasses import replace

    from mdcli.checking.compare import FileResult, Problem, check_label_map, compare_label_maps, compare_segs
    from mdcli.checking.gold import refuse_identifiable
    from mdcli.checking.seg import read_seg
    from mdcli.imaging.nifti import read_nifti

    missing = FileResult(entry.file, entry.kind, entry.tolerances, entry.reason)
    try:
        if entry.kind == "seg":
            gold_seg = read_seg(gold / entry.file)
            refuse_identifiable(gold / entry.file)
        else:
            gold_volume = read_nifti(gold / entry.file)
            check_label_map(gold_volume)
    except OSError as error:
        raise StorageError("no-permission", f"{entry.file} of the gold can't be read: {error.strerror}") from error
    except MissingError as error:
        raise MissingError("no-gold", f"gold.yaml lists {entry.file}, which is not in the gold folder") from error
    if not (run / entry.file).is_file():
        return replace(missing, problems=(Problem("missing", "the run has no such file"),))
    try:
        if entry.kind == "seg":
            result = compare_segs(gold_seg, read_seg(run / entry.file), entry.tolerances, file=entry.file)
        else:
            result = compare_label_maps(
                gold_volume,
                read_nifti(run / entry.file),
                entry.tolerances,
                identities=entry.labels,
                run_identities=_identities(run / entry.file),
                file=entry.file,
            )
    except DataError as error:
        return replace(missing, problems=(Problem("unreadable", str(error)),))
    except OSError as error:
        return replace(missing, problems=(Problem("unreadable", str(error.strerror)),))
    return replace(result, reason=entry.reason)


def _identities(labels: Path) -> dict[int, Identity] | None:
    """Return what the segments file beside a label map says: `segments-liver.json` beside `labels-liver.nii`."""
    from mdcli.checking.gold import LABEL_SUFFIXES, identities_of

    role = labels.name
    for suffix in LABEL_SUFFIXES:
        role = role.removesuffix(suffix)
    if not role.startswith("labels"):
        return None
    path = labels.with_name("segments" + role.removeprefix("labels") + ".json")
    try:
        return identities_of(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise DataError("bad-artifact", f"{path.name} is not JSON") from error


def _print(results: Iterable[FileResult]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from mdcli.checking.compare import DEFINITIONS

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("file", "label", "result"):
        table.add_column(title, overflow="fold")
    for title in ("Dice", "centroid", "box", "volume", "ml", "gold ml"):
        table.add_column(title, justify="right", no_wrap=True)
    problems, reasons = [], []
    for result in results:
        if result.reason:
            reasons.append(f"{result.file}: less than the default is asked for: {result.reason}")
        grid = "" if result.affine_mm is None else f"{result.affine_mm:.2g} mm"
        table.add_row(Text(result.file), "grid", _styled(result.word if result.problems else "ok"), "", grid)
        problems += [f"{result.file}: {problem.message} [{problem.code}]" for problem in result.problems]
        for label in result.labels:
            name = f"{label.value} {label.name}" if label.name else str(label.value)
            problems += [f"{result.file}, {name}: {problem.message} [{problem.code}]" for problem in label.problems]
            table.add_row(
                "",
                Text(name),
                _styled(label.word),
                _number(label.dice, ".5f"),
                _number(label.centroid_voxels, ".3f"),
                _number(label.bounding_box_voxels, "g"),
                _number(label.volume_percent, "+.3f", " %"),
                _number(label.volume_ml, ".3f"),
                _number(label.gold_volume_ml, ".3f"),
            )
    # Wider than most terminals, so that no column is folded away; the table takes what it needs.
    console = Console(highlight=False, soft_wrap=True, width=200)
    console.print(table)
    for line in (*problems, *reasons):
        console.print(Text(line))
    console.print(Text("\n".join(f"{name}: {text}" for name, text in DEFINITIONS.items()), style="dim"))


def _styled(word: str) -> Text:
    from rich.text import Text

    return Text(word, style="green" if word == "ok" else "bold red")


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "" if value is None else format(value, form) + unit


def _write_gold(run: Path, gold: Path, names: list[str] | None) -> None:
    """Make a gold folder whole, under a temporary name that is then renamed."""
    import secrets
    import shutil

    from mdcli.checking.gold import GOLD_FILE, LABEL_SUFFIXES, Gold, GoldFile, check_file_name, gold_to_yaml
    from mdcli.records import PART, storage_errors

    if gold.exists() and (not gold.is_dir() or any(gold.iterdir())):
        hint = "move it away first: what is gold is a person's decision"
        raise PersonsFileError("gold-exists", f"there is already something at {gold.name}", hint=hint)
    if names is None:
        names = sorted(p.name for p in run.glob("labels*") if p.name.endswith(LABEL_SUFFIXES) and p.is_file())
    if not names:
        raise MissingError("no-artifact", "there is no label map in the run", hint="--file names another file")
    try:
        checked = [check_file_name(name) for name in dict.fromkeys(names)]
    except ConfigError as error:
        raise UsageError("usage", f"--file: {error.message}") from error

    part = gold.with_name(f"{PART}{secrets.token_hex(4)}-{gold.name}")
    try:
        with storage_errors(gold.name):
            gold.parent.mkdir(parents=True, exist_ok=True)
            part.mkdir(mode=0o700)
            entries = []
            for name in checked:
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                _copy(run / name, part / name)
                labels = _identities(run / name) if name.endswith(LABEL_SUFFIXES) else None
                entries.append(GoldFile(name, labels=labels or None))
            (part / GOLD_FILE).write_text(gold_to_yaml(Gold(tuple(entries))), encoding="utf-8")
            part.replace(gold)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    written = ", ".join([GOLD_FILE, *checked])
    print(f"wrote {written}: look at them before they are gold", file=sys.stderr)


def _copy(source: Path, target: Path) -> None:
    """Copy what may be gold: a label map written anew, without its header's texts, or a SEG that names nobody."""
    import gzip
    import shutil

    from mdcli.checking.compare import check_label_map
    from mdcli.checking.gold import LABEL_SUFFIXES, refuse_identifiable
    from mdcli.checking.seg import read_seg
    from mdcli.imaging.nifti import read_nifti, write_nifti

    if not target.name.endswith(LABEL_SUFFIXES):
        read_seg(source)
        refuse_identifiable(source)
        shutil.copyfile(source, target)
        return
    volume = read_nifti(source)
    highest = check_label_map(volume)
    with target.open("wb") as file:
        write_nifti(file, volume.array.astype("uint8" if highest < 256 else "uint16"), volume.affine)
    if target.suffix == ".gz":
        target.write_bytes(gzip.compress(target.read_bytes(), mtime=0))
