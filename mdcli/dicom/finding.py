"""What a pure function has to say beside its result; the stage hands it on as a warning or a note."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Finding:
    """One thing that a person may want to know.

    Attributes:
        code: fixed, for scripts.
        message: one sentence with the value found; never a patient's name, id or birth date.
        numbers: the values behind the sentence.
        warning: whether it may change how the result is read; otherwise it is a note.
    """

    code: str
    message: str
    numbers: dict[str, Any] = field(default_factory=dict)
    warning: bool = True
