"""Text on its way into a DICOM object: what fits its value representation, and the character set that holds all of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from mdcli.errors import DataError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

UTF8 = "ISO_IR 192"
# Source: DICOM PS3.5 table 6.2-1, characters (not bytes) in one value.
_LONGEST = {"CS": 16, "SH": 16, "LO": 64, "PN": 64, "ST": 1024, "LT": 10240}
_LINES = frozenset({"ST", "LT", "UT"})
_DEFINED_TERM = re.compile(r"|ISO_IR 1\d\d|ISO_IR 13|ISO 2022 IR \d+|GB18030|GBK")


def check_text(keyword: str, text: str) -> str:
    """Return a text that is about to become the value of an attribute, if it fits.

    Args:
        keyword: of the attribute, for example `SegmentLabel`.
        text: one value.

    Raises:
        DataError: `<keyword>-too-long` (for example `segment-label-too-long`) with the length found; `bad-text` for a control
            character, or a backslash where it would begin a new value; `replacement-character` for U+FFFD.
    """
    from pydicom.datadict import dictionary_VR

    vr = dictionary_VR(keyword)
    longest = _LONGEST.get(vr)
    if longest is not None and len(text) > longest:
        code = re.sub(r"(?<!^)(?=[A-Z][a-z])", "-", keyword).lower() + "-too-long"
        raise DataError(code, f"{keyword} would have {len(text)} characters; {longest} fit", length=len(text))
    lines = vr in _LINES
    bad = next((c for c in text if (c < " " or c == "\x7f") and not (lines and c in "\r\n\f")), None)
    if bad is None and "\\" in text and not lines:
        bad = "\\"
    if bad is not None:
        raise DataError("bad-text", f"{keyword} can't hold the character {bad!r}")
    if vr == "CS" and not re.fullmatch(r"[A-Z0-9_ ]*", text):
        raise DataError(
            "bad-text", f"{keyword} holds only capital letters, digits, spaces and underscores, not {text!r}"
        )
    _no_replacement(keyword, text)
    return text


def _no_replacement(keyword: str, text: str) -> None:
    if "\ufffd" in text:
        hint = "correct SpecificCharacterSet (0008,0005) of the sources"
        raise DataError("replacement-character", f"{keyword} can't be decoded by the character set it names", hint=hint)


def texts(dataset: Dataset) -> Iterator[tuple[str, str]]:
    """Yield (keyword, text) of every value of a data set whose encoding SpecificCharacterSet decides, items included."""
    from pydicom.valuerep import CUSTOMIZABLE_CHARSET_VR

    for element in dataset:
        if element.VR == "SQ":
            for item in element.value:
                yield from texts(item)
        elif element.VR in CUSTOMIZABLE_CHARSET_VR and element.value is not None:
            values = [element.value] if element.VM <= 1 else element.value
            for value in values:
                yield element.keyword or str(element.tag), str(value)


def character_set(dataset: Dataset, declared: str | Sequence[str] | None) -> str | list[str] | None:
    """Return the SpecificCharacterSet for an object: the source's, where all text fits it, else ISO_IR 192.

    Args:
        dataset: the whole object, its text decoded.
        declared: SpecificCharacterSet of the source that its text came from; None where it has none.

    Raises:
        DataError: `replacement-character` where text could not be decoded.

    Source: DICOM PS3.3 C.12.1.1.2, PS3.5 6.1.2.
    """
    terms = [declared] if isinstance(declared, str) else [term or "" for term in declared or []]
    plain = terms in ([], [""], ["ISO_IR 6"])
    found = list(texts(dataset))
    for keyword, text in found:
        _no_replacement(keyword, text)
    beyond = [(keyword, text) for keyword, text in found if not text.isascii()]
    if plain:
        return UTF8 if beyond else None
    if not all(_DEFINED_TERM.fullmatch(term) for term in terms):
        return UTF8
    if all(_survives(text, terms) for _, text in beyond):
        return terms[0] if len(terms) == 1 else terms
    return UTF8


def check_declared(dataset: Dataset, declared: str | Sequence[str] | None) -> None:
    """Check that a source says in which character set its text is, where that is more than ASCII.

    Raises:
        DataError: `undeclared-characters`; pydicom takes such text for Latin-1, which is a guess.
    """
    terms = [declared] if isinstance(declared, str) else list(declared or [])
    if terms not in ([], [""], ["ISO_IR 6"]):
        return
    keyword = next((keyword for keyword, text in texts(dataset) if not text.isascii()), None)
    if keyword is not None:
        hint = "add SpecificCharacterSet (0008,0005) to the sources"
        raise DataError("undeclared-characters", f"{keyword} goes beyond ASCII and names no character set", hint=hint)


def _survives(text: str, terms: list[str]) -> bool:
    """Say whether a text comes back as it was, written and read in a character set."""
    from pydicom.charset import convert_encodings, decode_bytes, encode_string

    encodings = convert_encodings(list(terms))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The parts of a person's name are encoded one by one.
        parts = re.split(r"[\^=]", text)
        return all(decode_bytes(encode_string(part, encodings), encodings, set()) == part for part in parts)
