"""Read the configuration of an MMAR: JSON with variables, said as plain values. Nothing in it is run, no path in it is followed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mdcli.errors import ConfigError

CONFIG = "config"
ENVIRONMENT = "environment.json"
AIAA = "config_aiaa.json"
TRAINING = "config_train.json"
# The first that is there says the inference: what infer.sh and validate.sh run, then what the annotation server does.
WORKFLOWS = ("config_inference.json", "config_validation.json", AIAA)
SECTIONS = ("inference", "infer", "validate")

MAX_BYTES = 4 << 20
MAX_TEXT = 4096
MAX_ROUNDS = 8

_VARIABLE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")


def bad(place: str, message: str) -> NoReturn:
    """Refuse a configuration.

    Raises:
        ConfigError: `bad-mmar`.
    """
    raise ConfigError("bad-mmar", f"{place}: {message}")


@dataclass(frozen=True)
class Step:
    """A component of a workflow: a transform, an inferer.

    Attributes:
        name: its name, without the modules before it.
        args: its arguments, variables put in.
        place: where it stands.
    """

    name: str
    args: Mapping[str, Any]
    place: str


@dataclass(frozen=True)
class Archive:
    """What the configuration of an MMAR says.

    Attributes:
        folder: the MMAR.
        workflow: the file's name that says the inference.
        before: the transforms before the network.
        inferer: how the network is run over the image; None where the file does not say.
        after: those after it.
        loader: what is said of the network's file.
        aiaa: `config_aiaa.json`, or nothing.
        training: `config_train.json`, or nothing.
        variables: of `environment.json`.
        files: the files that were read.
    """

    folder: Path
    workflow: str
    before: tuple[Step, ...]
    inferer: Step | None
    after: tuple[Step, ...]
    loader: str
    aiaa: Mapping[str, Any]
    training: Mapping[str, Any]
    variables: Mapping[str, Any]
    files: tuple[Path, ...]


def is_archive(path: Path) -> bool:
    """Say whether a folder is laid out as an MMAR."""
    config = path / CONFIG
    return any((config / name).is_file() for name in (*WORKFLOWS, TRAINING)) and (path / "models").is_dir()


def read_archive(folder: Path) -> Archive:
    """Return what an MMAR's configuration says.

    Raises:
        ConfigError: `bad-mmar`; `outside-folder` where a file is a link to elsewhere; `unsupported-transform` for code of its own;
            `unsupported-mmar` for a way of inference that is not reproduced.
    """
    files: list[Path] = []
    variables = _document(folder, ENVIRONMENT, files)
    aiaa = _with_variables(_document(folder, AIAA, files), variables)
    training = _document(folder, TRAINING, files)
    name = next((name for name in WORKFLOWS if (folder / CONFIG / name).is_file()), None)
    if name is None:
        bad(folder.name, f"there is no {CONFIG}/{' or '.join(WORKFLOWS)}: it says no inference")
    said = aiaa if name == AIAA else _document(folder, name, files)
    said = _with_variables(said, {**variables, **{key: value for key, value in said.items() if _is_plain(value)}})
    section = said if name == AIAA else next((said[key] for key in SECTIONS if isinstance(said.get(key), dict)), said)
    inferer = _server(said, name) if name == AIAA else _inferer(section, name)
    loader = section.get("model_loader", said.get("model_loader"))
    path = _args(loader, f"{name}: model_loader").get("model_file_path") if isinstance(loader, dict) else None
    return Archive(
        folder,
        name,
        tuple(_steps(section.get("pre_transforms"), f"{name}: pre_transforms")),
        inferer,
        tuple(_steps(section.get("post_transforms"), f"{name}: post_transforms")),
        path if isinstance(path, str) else "",
        aiaa,
        _with_variables(training, {**variables, **{key: value for key, value in training.items() if _is_plain(value)}}),
        variables,
        tuple(files),
    )


def _document(folder: Path, name: str, files: list[Path]) -> dict[str, Any]:
    from mdcli.dicom.plain_yaml import PlainYamlError, load_yaml

    path = folder / CONFIG / name
    if not path.exists():
        return {}
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError("outside-folder", f"{CONFIG}/{name} is a link to outside the MMAR")
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        bad(name, f"over {MAX_BYTES >> 20} MiB")
    try:
        document = load_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        bad(name, f"not UTF-8: {error.reason} at byte {error.start}")
    except PlainYamlError as error:
        bad(name, str(error))
    if not isinstance(document, dict):
        bad(name, "not a mapping")
    files.append(path)
    return {str(key): value for key, value in document.items()}


def _is_plain(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool)) or (
        isinstance(value, list) and all(isinstance(item, (str, int, float, bool)) for item in value)
    )


def _with_variables(said: Any, variables: Mapping[str, Any]) -> Any:
    """Return a document with its variables put in: `{NAME}` in a text, `{NAME}` or `@NAME` as the whole of one."""
    if isinstance(said, dict):
        return {str(key): _with_variables(value, variables) for key, value in said.items()}
    if isinstance(said, list):
        return [_with_variables(value, variables) for value in said]
    return _text_with_variables(said, variables) if isinstance(said, str) else said


def _text_with_variables(text: str, variables: Mapping[str, Any]) -> Any:
    for _ in range(MAX_ROUNDS):
        whole = _VARIABLE.fullmatch(text)
        name = whole[1] if whole else text[1:] if text.startswith("@") else None
        if name is not None and _is_plain(variables.get(name)) and not isinstance(variables[name], str):
            return variables[name]
        if name is not None and isinstance(variables.get(name), str):
            found = str(variables[name])
        else:
            found = _VARIABLE.sub(lambda match: _shown(match, variables), text)
        if len(found) > MAX_TEXT:
            bad(ENVIRONMENT, f"its variables make a text of over {MAX_TEXT} characters")
        if found == text:
            return text
        text = found
    bad(ENVIRONMENT, f"its variables name each other more than {MAX_ROUNDS} times")


def _shown(match: re.Match[str], variables: Mapping[str, Any]) -> str:
    value = variables.get(match[1])
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else match[0]


def _steps(said: Any, place: str) -> list[Step]:
    if said is None:
        return []
    if not isinstance(said, list):
        bad(place, "not a list")
    found = [_step(item, f"{place}[{number}]") for number, item in enumerate(said)]
    return [step for step in found if step is not None]


def _step(said: Any, place: str) -> Step | None:
    """Return a component, None for one that is switched off."""
    if not isinstance(said, dict):
        bad(place, "no component with a name")
    if said.get("disabled") is True or str(said.get("disabled")).lower() == "true":
        return None
    if "path" in said:
        # Clara Train's "bring your own components": a class of the archive's own.
        raise ConfigError("unsupported-transform", f"{place}: {_short(said['path'])} is code of the model's own")
    name = said.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", name):
        bad(place, f"its name is {_short(name)}")
    module, _, last = name.rpartition(".")
    if module and module.split(".")[0] not in ("transforms", "monai", "inferers", "ai4med", "aiaa", "medl"):
        raise ConfigError("unsupported-transform", f"{place}: {_short(name)} is code of another library's")
    unknown = sorted(set(said) - {"name", "args", "disabled"})
    if unknown:
        bad(place, f"{last} has {_short(unknown[0])}, which is no key of a component")
    return Step(last, _args(said, place), place)


def _args(said: Mapping[str, Any], place: str) -> dict[str, Any]:
    args = said.get("args", {})
    if args is None:
        return {}
    if not isinstance(args, dict):
        bad(place, "args is no mapping")
    return {str(key): value for key, value in args.items()}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _inferer(section: Mapping[str, Any], name: str) -> Step | None:
    said = section.get("inferer")
    return None if said is None else _step(said, f"{name}: inferer")


def _server(said: Mapping[str, Any], name: str) -> Step:
    """Return how the annotation server runs the network, as an inferer: `args` with `roi_size` where it scans windows."""
    inference = said.get("inference")
    if not isinstance(inference, dict):
        bad(name, "inference is missing, which says how the network is run")
    # Version 4 says it for a back end of its own and for Triton, version 3 once.
    back_ends = [inference[key] for key in ("AIAA", "TRITON") if isinstance(inference.get(key), dict)]
    chosen = back_ends[0] if back_ends else inference
    step = _step({"name": chosen.get("name"), "args": chosen.get("args")}, f"{name}: inference")
    assert step is not None
    known = {"TRTISInference", "TritonInference", "TFInference", "PyTorchInference"}
    if step.name not in known:
        raise ConfigError("unsupported-mmar", f"{step.place}: {step.name} is not reproduced")
    args = dict(step.args)
    scanning = args.pop("scanning_window", "roi" in args)
    roi = args.pop("roi", None)
    name = "SlidingWindowInferer" if scanning is True or str(scanning).lower() == "true" else "SimpleInferer"
    if name == "SlidingWindowInferer":
        args["roi_size"] = roi
    for aside in ("is_batched_data", "batch_size", "sw_batch_size", "output_as_original", "device"):
        args.pop(aside, None)
    return Step(name, args, step.place)
