"""Coded concepts, held against the dictionaries that come with pydicom: a code with another's meaning is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from mdcli.dicom.finding import Finding
from mdcli.dicom.text import check_text
from mdcli.errors import DataError

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

PRIVATE_SCHEME = "99MDCLI"
_DICTIONARIES = ("SCT", "DCM")


@cache
def _meanings(scheme: str) -> dict[str, set[str]]:
    from pydicom.sr import codedict

    # The table itself: its `codes` makes an object of each of 11,000 entries first.
    table: Any = codedict.CONCEPTS[scheme]  # type: ignore[attr-defined]
    found: dict[str, set[str]] = {}
    for entry in table.values():
        for value, (meaning, _) in entry.items():
            # SNOMED's full names end in what kind of concept it is, `body structure (body structure)`; the meaning may go without.
            names = found.setdefault(value, set())
            names |= {meaning.casefold(), re.sub(r" \([a-z ]+\)$", "", meaning.casefold())}
    return found


def checked_code(code: Mapping[str, Any] | None, name: str) -> tuple[Code, list[Finding]]:
    """Return a code that may be written, and what there is to say about it.

    Args:
        code: `{"value", "scheme", "meaning"}`, and `"version"` where a release is cited; None for a name without a code.
        name: what it stands for, the meaning of the private code where `code` is None.

    Raises:
        DataError: `wrong-code-meaning` where the dictionary gives the code another meaning; `bad-code` where a part is missing;
            `code-value-too-long`, `code-meaning-too-long` and the like for what does not fit.

    Source: DICOM PS3.3 8.8 (Code Sequence Macro), PS3.16 annex D and the context groups.
    """
    from pydicom.sr.coding import Code

    if code is None:
        value = "".join(c if c.isascii() and c.isalnum() else "_" for c in name).upper()[:16]
        message = f"{name} has no code: written with the private code {value} of {PRIVATE_SCHEME}"
        made = Code(check_text("CodeValue", value), PRIVATE_SCHEME, check_text("CodeMeaning", name))
        return made, [Finding("private-code", message)]
    parts = {part: str(code.get(part) or "") for part in ("value", "scheme", "meaning")}
    missing = [part for part, text in parts.items() if not text]
    if missing:
        raise DataError("bad-code", f"the code of {name} has no {missing[0]}")
    value, scheme, meaning = parts["value"], parts["scheme"], parts["meaning"]
    check_text("CodingSchemeDesignator", scheme)
    check_text("CodeMeaning", meaning)
    # A value over 16 characters goes into LongCodeValue.
    check_text("CodeValue" if len(value) <= 16 else "LongCodeValue", value)
    version = str(code["version"]) if code.get("version") else None
    findings: list[Finding] = []
    if scheme in _DICTIONARIES:
        known = _meanings(scheme).get(value)
        if known is not None and meaning.casefold() not in known:
            raise DataError(
                "wrong-code-meaning",
                f"{scheme} {value} of {name} means {' or '.join(sorted(known))}, not {meaning}",
                value=value,
                scheme=scheme,
            )
        if known is None and version is None:
            message = f"{scheme} {value} ({meaning}) of {name} is in no dictionary here, and no release is cited"
            findings.append(Finding("unverified-code", message, {"value": value, "scheme": scheme}))
    return Code(value, scheme, meaning, version), findings
