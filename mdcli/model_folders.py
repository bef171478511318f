"""Where `--model NAME` is looked up: the folders of MD_MODELS, then the embedded models."""

from __future__ import annotations

import os
from pathlib import Path

EMBEDDED = Path(__file__).parent / "models"


def model_folders() -> tuple[Path, ...]:
    """Return the folders that hold models, the first one that has a name wins."""
    given = [Path(part) for part in os.environ.get("MD_MODELS", "").split(os.pathsep) if part]
    return (*given, EMBEDDED)


def model_names() -> list[str]:
    """Return the names that `--model` knows."""
    return sorted({card.parent.name for folder in model_folders() for card in folder.glob("*/model.yaml")})
