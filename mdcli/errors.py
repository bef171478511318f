"""What can go wrong, as the user sees it: a fixed code, one sentence with the value found, and a way out.

The class sets the exit status; scripts match the code; the sentence is for people and may change.
"""

from __future__ import annotations

from typing import Any, ClassVar


class MdError(Exception):
    """An error with a fixed code and an exit status.

    Args:
        code: the word in brackets, for scripts: lower case, words joined by `-`.
        message: one sentence with the value found. Never a patient's name, id or birth date.
        hint: the way out, where there is one.
        numbers: the values behind the sentence, for `--log-format json`.
    """

    status: ClassVar[int] = 70

    def __init__(self, code: str, message: str, *, hint: str | None = None, **numbers: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.numbers = numbers
        # The name of the case that it happened in, where one call has several.
        self.case: str | None = None

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"

    def __reduce__(self) -> tuple[Any, ...]:
        # Worker processes hand errors back by pickling them; keyword arguments would be lost.
        return (_rebuild, (type(self), self.code, self.message, self.hint, self.numbers))


def _rebuild(kind: type[MdError], code: str, message: str, hint: str | None, numbers: dict[str, Any]) -> MdError:
    return kind(code, message, hint=hint, **numbers)


class AnswerNo(MdError):
    """The answer is no: a difference was found, a budget was exceeded."""

    status = 1


class UsageError(MdError):
    """A wrong call."""

    status = 2


class DataError(MdError):
    """The data breaks a rule, is out of the model's scope or kills its decoder, or the network gives NaN."""

    status = 65


class MissingError(MdError):
    """A file, a source, an artifact or the hand-over is missing; no DICOM image where one is wanted."""

    status = 66


class UnavailableError(MdError):
    """A device, engine, server or daemon is not available."""

    status = 69


class PersonsFileError(MdError):
    """The call would replace what a person made."""

    status = 73


class StorageError(MdError):
    """The disk is full, or there is no permission."""

    status = 74


class OutOfTimeError(MdError):
    """The time that the caller allowed is over."""

    status = 75


class ConfigError(MdError):
    """A configuration, model card or package is unusable."""

    status = 78
