"""Name what a model gives where the model knows names but no codes, and make words of free text."""

from __future__ import annotations

import re
import unicodedata

from mdcli.dicom.codes import PRIVATE_SCHEME
from mdcli.inference.card import Code, Label

# Whether a name is that of an organ, of a lesion or of a device is not known either.
_CATEGORY = Code("STRUCTURE", PRIVATE_SCHEME, "Structure named by a model")
_MAX_NAME = 64


def private_label(value: int, name: str) -> Label:
    """Return a structure of which nothing but a name is known: its type is a private code, never the nearest match.

    Args:
        value: the label value.
        name: as the model says it; made one line of at most 64 characters (the length of a Code Meaning, VR LO).

    >>> private_label(1, "Left kidney").type
    Code(value='LEFT_KIDNEY', scheme='99MDCLI', meaning='Left kidney')
    """
    shown = one_line(name, _MAX_NAME) or f"label {value}"
    # A Code Value has at most 16 characters (VR SH): names that don't fit are told apart by the label's value.
    word = (slug(shown) or f"label_{value}").upper()
    code = word if len(word) <= 16 else f"{word[: 15 - len(str(value))]}_{value}"
    return Label(value, shown, _CATEGORY, Code(code, PRIVATE_SCHEME, shown))


def one_line(text: str, length: int) -> str:
    """Return a text as one printable line without backslashes, at most so long."""
    printable = "".join(letter if letter.isprintable() and letter != "\\" else " " for letter in text[: 4 * length])
    return " ".join(printable.split())[:length].strip()


def slug(text: str) -> str:
    """Return a text as one word of a to z, 0 to 9 and `_`; empty where nothing is left.

    >>> slug("T1 (contrast)")
    't1_contrast'
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "_", plain).strip("_")
