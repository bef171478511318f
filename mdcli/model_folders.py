"""Where `--model NAME` is looked up, and where what is made of models is kept: in the user's cache folder, private."""

from __future__ import annotations

import os
from pathlib import Path

from mdcli.user_cache import cache_folder

EMBEDDED = Path(__file__).parent / "models"


def model_folders() -> tuple[Path, ...]:
    """Return the folders that hold models, the first one that has a name wins: those of MD_MODELS, then the embedded ones."""
    given = [Path(part) for part in os.environ.get("MD_MODELS", "").split(os.pathsep) if part]
    return (*given, EMBEDDED)


def model_names() -> list[str]:
    """Return the names that `--model` knows."""
    return sorted({card.parent.name for folder in model_folders() for card in folder.glob("*/model.yaml")})


def converted_folder() -> Path | None:
    """Return where networks lie that were converted to ONNX, and bundles that were unpacked; None where there is no such place."""
    return cache_folder("models", make=False)


def engine_folder() -> Path | None:
    """Return where engines keep what they have built for this machine."""
    return cache_folder("engines", make=False)


def checks_folder() -> Path | None:
    """Return where `md model check` notes what has passed on this machine."""
    return cache_folder("checks", make=False)


def slots_folder() -> Path | None:
    """Return where processes on one GPU wait for each other."""
    return cache_folder("slots", make=False)


def torch_python() -> str | None:
    """Return the interpreter of MD_TORCH_PYTHON, which has torch where this one has not."""
    return os.environ.get("MD_TORCH_PYTHON") or None
