"""MONAI Deploy's selection rules in JSON: what they mean, done right, and what its own selector would choose.

`read_monai` turns a rule file into selections of md's own grammar, so that one judge and one explanation serve both.
`old_choice` says what the selector of monai-deploy-app-sdk 4.0 chooses from the same source, its faults included; it was made by
observing that program, and is for `--monai-compat` and `md rules diff` alone. docs/selection.md lists where the two differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mdcli.dicom.headers import KEYWORDS
from mdcli.dicom.instance import Instance
from mdcli.dicom.opening import shown
from mdcli.dicom.rules import COMPUTED, Condition, Joined, Node, Not, Rule, is_number, look_up, make_condition
from mdcli.dicom.rules import nearest as nearest_word
from mdcli.dicom.selection import RuleFile, Selection, in_place
from mdcli.dicom.series import Series
from mdcli.errors import ConfigError, DataError, UsageError

if TYPE_CHECKING:
    from mdcli.dicom.opening import SourceFiles

MAX_FIRST_HEADER = 64 << 20
"""Bytes of a file that `old_choice` reads of the first image of a series."""

_SIGNS = (">", ">=", "<", "<=", "!=")
_PLANES = ("axial", "coronal", "sagittal")
_ORIENTATION = "ImageOrientationPatient"
_FLAGS = re.compile(r"\(\?[aiLmsux]+\)")
_PLAIN = re.compile(r"[\w /,;:=<>@#%&!~'\"-]*")


def is_monai(document: Mapping[str, Any]) -> bool:
    """Say whether a rule file is in MONAI's form: a selection of it has `conditions`, and none has `where`."""
    selections = document["selections"]
    return any("conditions" in one for one in selections) and not any("where" in one for one in selections)


def read_monai(document: Mapping[str, Any], name: str) -> RuleFile:
    """Return the selections of a rule file in MONAI's form.

    Args:
        document: as `load_document` returns it.
        name: the file's name, for messages.

    Raises:
        ConfigError: `bad-rules` for what no attribute of that kind can be held against.
        UsageError: those of `mdcli.dicom.rules.make_condition`: `unknown-keyword`, `patient-keyword`, `bad-pattern`.
    """
    notes: list[str] = []
    selections = []
    for n, one in enumerate(document["selections"]):
        title = one.get("name", "")
        if not isinstance(title, str) or not title.isprintable():
            raise ConfigError("bad-rules", f"{name}: selections[{n}]: name is {shown(repr(title))}, not a line of text")
        title = title.strip() or f"selection {n + 1}"
        place = f"{name}: {title}"
        for key in one:
            if key in ("name", "conditions"):
                continue
            if near := nearest_word(str(key), ("name", "conditions")):
                message = f"{place}: unknown key {shown(repr(key))}"
                raise ConfigError("bad-rules", message, hint=f"did you mean {near}?")
            notes.append(f"{place}: the key {shown(repr(key))} means nothing and is left out")
        conditions = one.get("conditions")
        if not conditions:
            notes.append(f"{place} has no conditions and selects nothing")
            continue
        if not isinstance(conditions, dict):
            raise ConfigError("bad-rules", f"{place}: conditions is not keys with values")
        selections.append(Selection(title, _rule(conditions, place)))
    if not selections:
        raise ConfigError("bad-rules", f"{name}: no selection has conditions")
    return RuleFile("monai", tuple(selections), tuple(notes))


def _rule(conditions: Mapping[Any, Any], place: str) -> Rule:
    parts: list[Node] = []
    extra: dict[str, tuple[int, str, bool]] = {}
    for keyword, value in conditions.items():
        where = f"{place}: {keyword}"
        if not isinstance(keyword, str):
            raise ConfigError("bad-rules", f"{place}: {shown(repr(keyword))} is no keyword")
        found = in_place(where, lambda keyword=keyword: look_up(keyword))  # type: ignore[misc]
        if keyword not in KEYWORDS and keyword not in COMPUTED:
            extra[keyword] = found
        if value is None:
            # None is no condition there; here neither.
            continue
        made = in_place(where, lambda keyword=keyword, value=value, where=where: _condition(keyword, value, where))  # type: ignore[misc]
        parts += _without_presence(made.parts) if isinstance(made, Joined) and made.word == "and" else [made]
    if not parts:
        raise ConfigError("bad-rules", f"{place}: no condition has a value")
    return Rule(parts[0] if len(parts) == 1 else Joined("and", tuple(parts)), extra)


def _without_presence(parts: Sequence[Node]) -> list[Node]:
    """Leave out that an attribute is present where another part fails without it anyway."""
    presence = [p for p in parts if isinstance(p, Condition) and p.sign == "is"]
    certain = [p for p in parts if isinstance(p, Joined) or (isinstance(p, Condition) and p.sign not in ("is", "!="))]
    return [p for p in parts if p not in presence] if certain else list(parts)


def _condition(keyword: str, value: Any, place: str) -> Node:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, list)):
        raise ConfigError("bad-rules", f"{place}: {shown(repr(value))} is neither text, a number nor a list")
    if keyword == _ORIENTATION:
        return _any_of(keyword, _terms(value, place), _plane, place)
    if is_number(keyword):
        return _number(keyword, value, place)
    terms = _terms(value, place)
    multi = not look_up(keyword)[2]
    if multi and isinstance(value, list):
        return _all_of([_excluded(keyword, t, _member) if t.startswith("!") else _member(keyword, t) for t in terms])
    return _any_of(keyword, terms, _member_or_pattern if multi else _text, place)


def _terms(value: Any, place: str) -> list[str]:
    items = value if isinstance(value, list) else [value]
    if not items or not all(isinstance(item, (str, int, float)) and not isinstance(item, bool) for item in items):
        raise ConfigError("bad-rules", f"{place}: {shown(repr(value))} is no list of texts")
    return [str(int(item)) if isinstance(item, float) and item.is_integer() else str(item) for item in items]


def _any_of(keyword: str, terms: Sequence[str], make: Callable[[str, str], Node], place: str) -> Node:
    """Return: one of the terms, and none of those that `!` excludes."""
    wanted = [make(keyword, term) for term in terms if not term.startswith("!")]
    excluded = [_excluded(keyword, term, make) for term in terms if term.startswith("!")]
    parts = [wanted[0] if len(wanted) == 1 else Joined("or", tuple(_flat(wanted, "or")))] if wanted else []
    return _all_of([*parts, *excluded])


def _all_of(parts: Sequence[Node]) -> Node:
    flat = list(dict.fromkeys(_flat(parts, "and")))
    return flat[0] if len(flat) == 1 else Joined("and", tuple(flat))


def _flat(parts: Iterable[Node], word: str) -> list[Node]:
    return [inner for p in parts for inner in (p.parts if isinstance(p, Joined) and p.word == word else [p])]


def _excluded(keyword: str, term: str, make: Callable[[str, str], Node]) -> Node:
    # What is absent matches nothing there, not even an exclusion.
    there = make_condition(_shown_as(keyword), "is", ["present"])
    return Joined("and", (there, Not(make(keyword, term[1:]))))


def _shown_as(keyword: str) -> str:
    return "Orientation" if keyword == _ORIENTATION else keyword


def _plane(keyword: str, term: str) -> Node:
    word = term.strip().lower()
    if word not in _PLANES:
        raise UsageError("bad-expression", f"{shown(repr(term))} is none of Axial, Coronal, Sagittal")
    return make_condition("Orientation", "=", [word])


def _member(keyword: str, term: str) -> Node:
    return make_condition(keyword, "contains", [term]) if term else make_condition(keyword, "is", ["absent"])


def _member_or_pattern(keyword: str, term: str) -> Node:
    if _PLAIN.fullmatch(term):
        return _member(keyword, term)
    return Joined("or", (_member(keyword, term), make_condition(keyword, "matches", [term])))


def _text(keyword: str, term: str) -> Node:
    """Return: equal, else a regular expression found in it; both regardless of case."""
    if not term:
        return make_condition(keyword, "is", ["absent"])
    if _PLAIN.fullmatch(term):
        # Text without a special character is found in itself: one condition says both.
        return make_condition(keyword, "contains", [term])
    return Joined("or", (make_condition(keyword, "=", [term]), make_condition(keyword, "matches", [term])))


def _number(keyword: str, value: Any, place: str) -> Node:
    if isinstance(value, (int, float)):
        return make_condition(keyword, "=", [_digits(value, place)])
    if isinstance(value, str):
        if not value:
            return make_condition(keyword, "is", ["absent"])
        flags = _FLAGS.match(value)
        start = flags[0] if flags else ""
        return make_condition(keyword, "matches", [f"{start}^(?:{value[len(start) :]})$"])
    if len(value) == 2 and not isinstance(value[0], str) and isinstance(value[1], str):
        if value[1] not in _SIGNS:
            raise ConfigError("bad-rules", f"{place}: {shown(repr(value[1]))} is none of {', '.join(_SIGNS)}")
        held = make_condition(keyword, value[1], [_digits(value[0], place)])
        return _all_of([make_condition(keyword, "is", ["present"]), held]) if value[1] == "!=" else held
    if len(value) == 2 and not any(isinstance(v, str) for v in value):
        low, high = (_digits(v, place) for v in value)
        if float(low) > float(high):
            raise ConfigError("bad-rules", f"{place}: {low} to {high} holds no number")
        return _all_of([make_condition(keyword, ">=", [low]), make_condition(keyword, "<=", [high])])
    message = f"{place}: {shown(repr(value))} is neither [number, sign] nor [lowest, highest]"
    raise ConfigError("bad-rules", message, hint=f"{keyword} is a number")


def _digits(value: Any, place: str) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError("bad-rules", f"{place}: {shown(repr(value))} is no number")
    return repr(value)


# What monai-deploy-app-sdk chooses


@dataclass(frozen=True)
class OldChoice:
    """What the old selector does with one selection in one study.

    Attributes:
        study: StudyInstanceUID.
        selection: its name.
        series: the first series that matches, in the order in which they were found; None where none does.
        crash: why the whole application ends here; None where it goes on.
        reasons: for every series that was looked at, why it doesn't match, by SeriesInstanceUID.
    """

    study: str
    selection: str
    series: Series | None
    crash: str | None
    reasons: Mapping[str, str]


class _Crash(Exception):
    """What the old selector does not catch."""


def old_selections(document: Mapping[str, Any], name: str) -> list[tuple[str, dict[str, Any]]]:
    """Return (name, conditions) of each selection that the old selector would look at, unchecked but for patients.

    Raises:
        ConfigError: `bad-rules` where the file is not in MONAI's form.
        UsageError: `patient-keyword`.
    """
    if not is_monai(document):
        raise ConfigError("bad-rules", f"{name} is not in MONAI's form, which --monai-compat is for")
    found = []
    for one in document["selections"]:
        title, conditions = one.get("name", ""), one.get("conditions")
        if not conditions:
            continue
        if not isinstance(title, str) or not isinstance(conditions, dict):
            raise ConfigError("bad-rules", f"{name}: the old selector crashes on {shown(repr(title))}")
        for keyword in conditions:
            try:
                look_up(str(keyword))
            except UsageError as error:
                if error.code == "patient-keyword":
                    raise
        found.append((title.strip(), conditions))
    return found


def old_choice(
    selections: Sequence[tuple[str, Mapping[str, Any]]], instances: Sequence[Instance], files: SourceFiles
) -> list[OldChoice]:
    """Return what the old selector chooses, for every study and every selection.

    The old selector takes files in the order in which the file system lists them; here they are taken in the order given.

    Args:
        selections: as `old_selections` returns them.
        instances: of all studies, in the order in which they were found.
        files: where the first image of each series is opened.
    """
    import warnings

    with warnings.catch_warnings():
        # pydicom warns of values that the standard does not allow, which md reads in its own way.
        warnings.simplefilter("ignore")
        return _old_choices(selections, _studies(instances), files)


def _old_choices(
    selections: Sequence[tuple[str, Mapping[str, Any]]],
    studies: Mapping[str, Mapping[str, Sequence[Instance]]],
    files: SourceFiles,
) -> list[OldChoice]:
    headers: dict[str, _OldSeries] = {}
    choices = []
    for study, grouped in studies.items():
        for title, conditions in selections:
            chosen, crash = None, None
            reasons: dict[str, str] = {}
            for uid, members in grouped.items():
                if uid not in headers:
                    headers[uid] = _OldSeries(members, grouped, files)
                try:
                    why = _old_why_not(conditions, headers[uid])
                except _Crash as error:
                    crash = str(error)
                    break
                if why is None:
                    chosen = Series(tuple(members))
                    break
                reasons[uid] = why
            choices.append(OldChoice(study, title, chosen, crash, reasons))
    return choices


def _studies(instances: Iterable[Instance]) -> dict[str, dict[str, list[Instance]]]:
    """Return study to series to instances, as the old loader lists them: a series belongs to the study of its first file."""
    studies: dict[str, dict[str, list[Instance]]] = {}
    home: dict[str, str | None] = {}
    members: dict[str, list[Instance]] = {}
    for instance in instances:
        study, series = instance.get("StudyInstanceUID"), instance.get("SeriesInstanceUID")
        if study is None or series is None or instance.get("SOPInstanceUID") is None:
            continue
        if instance.get("SOPClassUID") is None:
            continue
        of_study = studies.setdefault(str(study), {})
        if str(series) not in home:
            lost = _is_lost(instance)
            home[str(series)] = None if lost else str(study)
            members[str(series)] = []
            if not lost:
                of_study[str(series)] = members[str(series)]
        members[str(series)].append(instance)
    return studies


def _is_lost(first: Instance) -> bool:
    """Say whether the old loader loses a series: it stops at an attribute of its first file that is there and empty."""
    attributes = first.attributes
    number = attributes.get("SeriesNumber", 0)
    spacing = "PixelSpacing" if "PixelSpacing" in attributes else "ImagerPixelSpacing"
    pair, cosines = attributes.get(spacing, [1, 1]), attributes.get(_ORIENTATION, [0] * 6)
    return (
        not isinstance(number, int)
        or not isinstance(pair, list)
        or len(pair) < 2
        or not isinstance(cosines, list)
        or len(cosines) > 6
    )


_STUDY_LEVEL = ("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "StudyDescription", "AccessionNumber")
_SERIES_LEVEL = (
    "SeriesInstanceUID",
    "SeriesDate",
    "SeriesTime",
    "Modality",
    "SeriesDescription",
    "BodyPartExamined",
    "PatientPosition",
    "SeriesNumber",
    "Laterality",
)


class _OldSeries:
    """What the old selector sees of a series: study and series attributes of first files, else its first image's."""

    def __init__(
        self, members: Sequence[Instance], study: Mapping[str, Sequence[Instance]], files: SourceFiles
    ) -> None:
        first_of_study = next(iter(study.values()))[0]
        self._files = files
        self._loaded: dict[str, Any] = {}
        of_study, of_series = self._read(first_of_study), self._read(members[0])
        self.attributes = {k: of_series[k].value for k in _SERIES_LEVEL if k in of_series}
        if "SeriesNumber" in self.attributes:
            self.attributes["SeriesNumber"] = int(self.attributes["SeriesNumber"])
        spacing = of_series.get("PixelSpacing", of_series.get("ImagerPixelSpacing"))
        if spacing is not None:
            self.attributes |= {"row_pixel_spacing": spacing[0], "col_pixel_spacing": spacing[1]}
        self.attributes |= {k: of_study[k].value if k in of_study else None for k in _STUDY_LEVEL}
        self.image = self._read(_first_image(members))

    def _read(self, instance: Instance) -> Any:
        """Return the header as pydicom reads it: the old selector compares what that prints."""
        if instance.path not in self._loaded:
            import io

            import pydicom

            end = instance.size if instance.pixel_offset is None else instance.pixel_offset
            if end > MAX_FIRST_HEADER:
                message = f"{shown(instance.path)} has a header of {end} bytes; {MAX_FIRST_HEADER} is the most"
                raise DataError("header-too-large", message)
            with self._files.open(instance.path, instance.size) as file:
                data = file.read(end)
            try:
                self._loaded[instance.path] = pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=True)
            except Exception as error:  # pydicom raises many kinds on hostile input
                message = f"{shown(instance.path)} can't be read as the old selector does ({type(error).__name__})"
                raise DataError("damaged-header", message) from error
        return self._loaded[instance.path]


def _first_image(members: Sequence[Instance]) -> Instance:
    """Return the image that the old loader keeps for the place of the first file: the one of the highest AcquisitionNumber."""
    place = members[0].get("ImagePositionPatient")
    if place is None:
        return members[0]
    here = [i for i in members if i.get("ImagePositionPatient") == place]
    return max(here, key=lambda i: n if isinstance(n := i.get("AcquisitionNumber"), int) else -1)


def _old_why_not(conditions: Mapping[str, Any], series: _OldSeries) -> str | None:
    """Return the condition at which the old selector lets a series go, or None where it takes it."""
    for keyword, wanted in conditions.items():
        if not wanted:
            continue
        found = series.attributes.get(keyword)
        if not found:
            found = _of_image(series, keyword)
        if not found:
            return f"{keyword} is absent, or 0"
        if not _old_match(keyword, wanted, found, series):
            return f"{keyword} does not match"
    return None


def _of_image(series: _OldSeries, keyword: str) -> Any:
    try:
        element = series.image[keyword]
        found = [element.repval] if element.VM > 1 else element.value
    except Exception:  # an unknown keyword, an absent element and a value that can't be read are all absent there
        return None
    series.attributes[keyword] = found
    return found


def _old_match(keyword: str, wanted: Any, found: Any, series: _OldSeries) -> bool:
    if keyword == _ORIENTATION:
        return _old_plane(wanted, found, series)
    if isinstance(found, (float, int)):
        return _old_number(wanted, found)
    if isinstance(found, str):
        if not isinstance(wanted, str):
            raise _Crash(f"{keyword} is text, the rule a {type(wanted).__name__}")
        return found.casefold() == wanted.casefold() or _search(wanted, found)
    if isinstance(found, list):
        printed = str(found).lower()
        terms = [str(t).lower() for t in wanted] if isinstance(wanted, list) else [str(wanted).lower()]
        if not isinstance(wanted, (list, str, int, float)):
            return True
        return all(t[1:] not in printed if t.startswith("!") else t in printed for t in terms)
    raise _Crash(f"{keyword} is of a kind ({type(found).__name__}) that it can't compare")


def _search(pattern: str, text: str) -> bool:
    compiled = _compiled(pattern, "matches")
    return compiled.search(text) is not None


def _compiled(pattern: str, sign: str) -> re.Pattern[str]:
    try:
        made = make_condition("SeriesDescription", sign, [pattern])
    except UsageError as error:
        raise _Crash(f"{shown(repr(pattern))} is no regular expression that md runs: {error.message}") from None
    assert isinstance(made, Condition) and made.pattern is not None
    return made.pattern


def _old_number(wanted: Any, found: float) -> bool:
    if isinstance(wanted, str):
        return _compiled(wanted, "matches").fullmatch(str(found)) is not None
    if isinstance(wanted, (int, float)):
        return wanted == found
    if not isinstance(wanted, list) or len(wanted) != 2:
        raise _Crash(f"a number can't be held against {shown(repr(wanted))}")
    if isinstance(wanted[1], str):
        try:
            bound = float(wanted[0])
        except (TypeError, ValueError):
            raise _Crash(f"{shown(repr(wanted[0]))} is no number") from None
        signs: dict[str, bool] = {
            ">": found > bound,
            ">=": found >= bound,
            "<": found < bound,
            "<=": found <= bound,
            "!=": found != bound,
        }
        if wanted[1] not in signs:
            raise _Crash(f"{shown(repr(wanted[1]))} is no sign that it knows")
        return signs[wanted[1]]
    if not all(isinstance(v, (int, float)) for v in wanted):
        raise _Crash(f"a number can't be held against {shown(repr(wanted))}")
    return bool(wanted[0] <= found <= wanted[1])


def _old_plane(wanted: Any, found: Any, series: _OldSeries) -> bool:
    """Take the axis nearest to the normal, however oblique."""
    position = series.attributes.get("PatientPosition")
    if position not in ("HFP", "HFS", "HFDL", "HFDR", "FFP", "FFS", "FFDL", "FFDR"):
        raise _Crash(f"PatientPosition is {shown(str(position)) if position else 'absent'}")
    if not isinstance(wanted, str) or wanted.strip().lower() not in _PLANES:
        raise _Crash(f"{shown(repr(wanted))} is none of Axial, Coronal, Sagittal")
    try:
        a, b, c, d, e, f = (float(part) for part in found[0].strip("[]").split(","))
    except (TypeError, ValueError, AttributeError, IndexError):
        raise _Crash(f"{_ORIENTATION} is not six numbers") from None
    normal = [abs(b * f - c * e), abs(c * d - a * f), abs(a * e - b * d)]
    if not max(normal):
        raise _Crash(f"{_ORIENTATION} has no normal")
    return ("sagittal", "coronal", "axial")[normal.index(max(normal))] == wanted.strip().lower()
