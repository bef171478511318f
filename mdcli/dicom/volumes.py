"""Divide the frames of a series into the volumes that they are, and choose among them; never mix two.

First by where the frames lie (two orientations are two volumes; a localizer among slices is left out), then by what differs between
frames at one position: echoes, b-values, phases, kernels, times. What differs is named by its DICOM keyword, with its values.
Source: DICOM PS3.3 C.7.6.2 (Image Plane), C.7.6.1 (General Image), C.8.3.1 (MR Image), C.8.2.1 (CT Image).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mdcli.dicom.finding import Finding
from mdcli.dicom.geometry import (
    COSINE_OFF,
    ONE_VALUE_KEYWORDS,
    PLANE_DEGREES,
    kinds_of,
    levels_of,
    orientation_of,
    plane_of,
    position_of,
    said,
    settled_values,
)
from mdcli.dicom.instance import Instance
from mdcli.dicom.opening import shown
from mdcli.errors import DataError, UsageError

LOCALIZER_IMAGES = 3
"""A group of another orientation with at most this many images ..."""
LOCALIZER_SHARE = 0.25
"""... and at most this share of the largest group's, more than `PLANE_DEGREES` away from it, is a localizer."""
_COVERED = 0.5
"""An attribute tells volumes apart only where each of its values is found at more than this share of the positions."""
_MOST_KEYS = 4
_APART = 0.85
_LISTED = 40

DIMENSIONS: dict[str, tuple[str, ...]] = {
    "echo": ("EchoNumbers", "EchoTime"),
    "b": ("DiffusionBValue",),
    "direction": ("DiffusionGradientOrientation", "DiffusionDirectionality"),
    "time": (
        "TemporalPositionIdentifier",
        "TemporalPositionIndex",
        "AcquisitionDateTime",
        "AcquisitionTime",
        "ContentTime",
    ),
    "phase": ("NominalPercentageOfCardiacPhase", "TriggerTime"),
    "type": ("ImageType",),
    "component": ("ComplexImageComponent",),
    "kernel": ("ConvolutionKernel",),
    "inversion": ("InversionTime",),
    "flip": ("FlipAngle",),
    "contrast": ("ContrastBolusAgent",),
    "kv": ("KVP",),
    "sequence": ("SequenceName", "ScanningSequence"),
    "frame_time": ("FrameReferenceTime", "FrameReferenceDateTime"),
    "acquisition": ("AcquisitionNumber",),
    "description": ("SeriesDescription",),
    "thickness": ("SliceThickness",),
    "velocity": ("VelocityEncodingDirection",),
    "respiration": ("RespiratoryCyclePosition", "NominalPercentageOfRespiratoryPhase"),
    "cycle": ("CardiacCyclePosition",),
    "stack": ("StackID",),
}
"""What volumes of one series differ in: the word that `--pick` takes, and the keywords that say it, the most telling first."""
UNITS = {
    "EchoTime": "ms",
    "DiffusionBValue": "s/mm2",
    "TriggerTime": "ms",
    "NominalPercentageOfCardiacPhase": "%",
    "InversionTime": "ms",
    "FlipAngle": "deg",
    "KVP": "kV",
    "FrameReferenceTime": "ms",
    "FrameTimeMs": "ms",
    "SliceThickness": "mm",
}
_NAME_OF = {keyword: name for name, keywords in DIMENSIONS.items() for keyword in keywords}
# Values that count from one: `--pick echo=2` is the second where no value is 2.
_COUNTED = frozenset(("echo", "time", "phase", "frame_time"))
# What orders frames at one position where no value is shared between positions, and whether the frames of one volume must have been
# taken before the next one's (a delay after the heart beat starts anew at every position).
_ORDERS = (
    ("TriggerTime", False),
    ("NominalPercentageOfCardiacPhase", False),
    ("FrameReferenceTime", False),
    ("AcquisitionDateTime", True),
    ("AcquisitionTime", True),
    ("ContentTime", True),
    ("InstanceNumber", True),
    ("FrameNumber", True),
)
_CLOCKS = {"AcquisitionTime": "AcquisitionDate", "ContentTime": "ContentDate"}
_UNPROVEN = " counted position by position, which does not prove that the n-th image is of one volume at all of them"
_ORIENTATION, _VOLUME = "orientation", "volume"


@dataclass(frozen=True)
class Pick:
    """One choice among the volumes of a series: `echo=1`, `EchoTime=4.6`, `orientation=axial`, `volume=2`."""

    name: str
    value: str

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


@dataclass(frozen=True)
class Part:
    """Frames that make one volume.

    Attributes:
        frames: in the order given.
        values: DICOM keyword (or `orientation`) to the value that tells this volume from the others; empty where there is one.
    """

    frames: tuple[Instance, ...]
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def words(self) -> dict[str, Any]:
        """Return the same by the words that `--pick` takes."""
        return {word_of(keyword): value for keyword, value in self.values.items()}

    def describe(self) -> str:
        """Return one line for a person."""
        told = ", ".join(_told(keyword, value) for keyword, value in self.values.items()) or "one volume"
        count = len(self.frames)
        return f"{told}: {count} images" if count > 1 else f"{told}: 1 image, {_named(self.frames[0])}"


@dataclass(frozen=True)
class Division:
    """The volumes of a series.

    Attributes:
        parts: one volume each, in the order of what tells them apart.
        code: why they are several, as the error's code; None where there is one.
        reason: the same as a sentence.
        dropped: frames that were left out, with the reason: `localizer`.
        findings: what the caller should say.
    """

    parts: tuple[Part, ...]
    code: str | None = None
    reason: str = ""
    dropped: tuple[tuple[Instance, str], ...] = ()
    findings: tuple[Finding, ...] = ()

    def listed(self) -> str:
        """Return the volumes as a numbered list."""
        lines = [f"\n  {n}. {part.describe()}" for n, part in enumerate(self.parts[:_LISTED], 1)]
        more = f"\n  ... and {len(self.parts) - _LISTED} more" if len(self.parts) > _LISTED else ""
        return "".join(lines) + more

    def refusal(self) -> DataError:
        """Return the error for a caller that wanted one volume."""
        hint = f"--pick {self._example()} chooses, --on-many split makes one workspace of each"
        if self.code == "several-volumes":
            hint += ", --on-many 4d one volume with a fourth axis"
        return DataError(
            self.code or "several-volumes",
            f"{self.reason}:{self.listed()}",
            hint=hint,
            volumes=len(self.parts),
            differs=list(dict.fromkeys(key for part in self.parts for key in part.values)),
        )

    def _example(self) -> str:
        """Return a choice that leaves the first volume alone."""
        values = self.parts[0].values
        keyword, value = next(iter(values.items()), (_VOLUME, 1))
        if len(values) > 1 or keyword == _VOLUME:
            return f"{_VOLUME}=1"
        if keyword == _ORIENTATION:
            return f"{_ORIENTATION}=1"
        # Where only the order of an attribute tells volumes apart, its value is that of one image.
        one = len(set(settled_values(self.parts[0].frames, keyword))) == 1
        return f"{word_of(keyword)}={plain}" if one and (plain := _plain(value)) else f"{_VOLUME}=1"


def word_of(keyword: str) -> str:
    """Return the word that `--pick` takes for a keyword.

    >>> word_of("EchoTime")
    'echo'
    """
    return _NAME_OF.get(keyword, keyword)


def parse_pick(text: str) -> Pick:
    """Return a choice as `--pick` has it: `NAME=VALUE`, NAME a word of `DIMENSIONS`, a DICOM keyword, `orientation` or `volume`.

    Raises:
        UsageError: `bad-pick`.
    """
    name, sign, value = text.partition("=")
    name, value = name.strip(), value.strip()
    if not sign or not name or not value:
        raise UsageError("bad-pick", f"--pick {shown(text)} is not NAME=VALUE", hint="for example --pick echo=1")
    if name in DIMENSIONS or name in (_ORIENTATION, _VOLUME):
        return Pick(name, value)
    from pydicom.datadict import tag_for_keyword

    tag = tag_for_keyword(name)
    if tag is None or tag >> 16 == 0x0010:
        words = ", ".join([*DIMENSIONS, _ORIENTATION, _VOLUME])
        raise UsageError(
            "bad-pick", f"--pick {shown(name)}: there is no such property", hint=f"a DICOM keyword, or {words}"
        )
    return Pick(name, value)


def divide(frames: Sequence[Instance], picks: Iterable[Pick] = ()) -> Division:
    """Divide frames with a plane into volumes.

    Args:
        frames: of one series, each with position and orientation, in any order.
        picks: choices; frames that none of them means are left out without a word.

    Raises:
        DataError: `no-such-volume` where a choice means nothing here; `same-position` where frames at one position can't be told
            apart in any way that holds at all positions; `no-position`, `no-orientation` and the like where a frame has none.
    """
    picks, everything = list(picks), list(frames)
    numbered = [p for p in picks if p.name == _VOLUME]
    by_value = [p for p in picks if p.name not in (_ORIENTATION, _VOLUME)]
    by_rank = [p for p in by_value if _is_ranked(everything, p)]
    frames = _picked(everything, [p for p in by_value if p not in by_rank])
    dropped: list[tuple[Instance, str]] = []
    frames, scouts = _declared_localizers(frames)
    dropped += [(frame, "localizer") for frame in scouts]
    groups = _by_orientation(frames)
    groups, odd = _localizers(groups)
    dropped += [(frame, "localizer") for group in odd for frame in group]
    findings = _said_dropped(dropped)
    wanted = [p for p in picks if p.name == _ORIENTATION]
    if wanted:
        groups = _picked_orientation(groups, wanted)
    turned = len(groups) > 1
    parts: list[Part] = []
    codes: list[tuple[str, str]] = []
    for number, group in enumerate(groups, 1):
        found, code, reason = _by_attributes(group)
        where = {_ORIENTATION: f"{number} ({_plane_name(group)})"} if turned else {}
        parts += [Part(part.frames, {**where, **part.values}) for part in found]
        if code:
            codes.append((code, reason))
    code, reason = codes[0] if codes else (None, "")
    if turned:
        code, reason = (
            "mixed-orientations",
            f"the series has slices of {len(groups)} orientations, none of them a localizer",
        )
    if any(reason.endswith(_UNPROVEN) for _, reason in codes):
        findings.append(Finding("order-assumed", f"volumes are told apart by InstanceNumber,{_UNPROVEN}"))
    for pick in by_rank:
        parts = _picked_parts(parts, pick)
    if numbered:
        parts, code = [_numbered(parts, numbered[-1])], None
    if len(parts) > 1:
        findings += _uneven(parts)
    elif picks:
        findings += _short_of(parts[0], everything)
    chosen = {k: v for p in by_value for k, v in _constant(parts, DIMENSIONS.get(p.name, (p.name,))).items()}
    parts = [Part(part.frames, {**chosen, **part.values}) for part in parts] if len(parts) == 1 else parts
    return Division(tuple(parts), code if len(parts) > 1 else None, reason, tuple(dropped), tuple(findings))


def _constant(parts: Sequence[Part], keywords: Sequence[str]) -> dict[str, Any]:
    """Return what all images of one chosen volume say of the attribute that it was chosen by."""
    if len(parts) != 1:
        return {}
    values = {k: {_frozen(f.get(k)) for f in parts[0].frames} for k in keywords}
    return {k: next(iter(v)) for k, v in values.items() if len(v) == 1 and v != {None}}


def dimension_of(parts: Sequence[Part]) -> dict[str, Any]:
    """Return what a fourth axis over these volumes is: its name, keywords, unit and the value of each volume."""
    keys = list(dict.fromkeys(key for part in parts for key in part.values))
    unit = UNITS.get(keys[0]) if len(keys) == 1 else None
    values = [
        _json(part.values.get(keys[0])) if len(keys) == 1 else [_json(part.values.get(k)) for k in keys]
        for part in parts
    ]
    return {"name": "+".join(dict.fromkeys(map(word_of, keys))), "keywords": keys, "unit": unit, "values": values}


def _json(value: Any) -> Any:
    return [_json(v) for v in value] if isinstance(value, (list, tuple)) else value


def _told(keyword: str, value: Any) -> str:
    word = word_of(keyword)
    unit = f" {UNITS[keyword]}" if keyword in UNITS and isinstance(value, (int, float)) else ""
    same = word == keyword or keyword == _ORIENTATION
    return f"{word} {said(value)}{unit}" if same else f"{word} {said(value)}{unit} ({keyword})"


def _plain(value: Any) -> str | None:
    """Return a value as `--pick` may be given it in a shell without quotes, or None."""
    text = said(value)
    return text if re.fullmatch(r"[\w.+-]{1,32}", text) else None


def _declared_localizers(frames: list[Instance]) -> tuple[list[Instance], list[Instance]]:
    """Take out what says LOCALIZER among images that don't."""
    says = ["LOCALIZER" in _image_type(frame) for frame in frames]
    if all(says):
        return frames, []
    return [f for f, s in zip(frames, says, strict=True) if not s], [f for f, s in zip(frames, says, strict=True) if s]


def _image_type(frame: Instance) -> list[str]:
    value = frame.get("ImageType", [])
    return [str(v).upper() for v in (value if isinstance(value, (list, tuple)) else [value])]


def _by_orientation(frames: Sequence[Instance]) -> list[list[Instance]]:
    """Group frames whose direction cosines agree within `COSINE_OFF` with the first of a group; the largest group first."""
    groups: list[tuple[NDArray[np.float64], list[Instance]]] = []
    # A long series has few different orientations as text: each is compared once.
    known: dict[tuple[float, ...], int] = {}
    for frame in frames:
        cosines = orientation_of(frame)
        key = tuple(cosines)
        if key not in known:
            vector = np.array(cosines)
            near = next((n for n, (mean, _) in enumerate(groups) if np.abs(mean - vector).max() <= COSINE_OFF), None)
            if near is None:
                groups.append((vector, []))
            known[key] = len(groups) - 1 if near is None else near
        groups[known[key]][1].append(frame)
    return sorted((members for _, members in groups), key=lambda members: -len(members))


def _normal(frame: Instance) -> NDArray[np.float64]:
    cosines = orientation_of(frame)
    return np.cross(cosines[:3], cosines[3:])


def _localizers(groups: list[list[Instance]]) -> tuple[list[list[Instance]], list[list[Instance]]]:
    """Take out small groups that lie across the largest one."""
    if len(groups) < 2:
        return groups, []
    main = groups[0]
    normal = _normal(main[0])
    least = np.cos(np.radians(PLANE_DEGREES))
    kept: list[list[Instance]] = [main]
    odd: list[list[Instance]] = []
    for group in groups[1:]:
        across = abs(float(_normal(group[0]) @ normal)) < least
        few = len(group) <= min(LOCALIZER_IMAGES, LOCALIZER_SHARE * len(main))
        (odd if across and few else kept).append(group)
    # Where slices of two orientations are left, nobody knows which of them the small group belongs to.
    return (kept, odd) if len(kept) == 1 else (groups, [])


def _said_dropped(dropped: Sequence[tuple[Instance, str]]) -> list[Finding]:
    if not dropped:
        return []
    names = ", ".join(shown(frame.path) for frame, _ in dropped[:5]) + (" ..." if len(dropped) > 5 else "")
    text = f"{len(dropped)} localizer image{'s' if len(dropped) > 1 else ''} within the series left out: {names}"
    return [Finding("localizer-left-out", text, {"images": len(dropped)})]


def _plane_name(group: Sequence[Instance]) -> str:
    return plane_of(_normal(group[0]))[0]


def _picked_orientation(groups: list[list[Instance]], picks: Sequence[Pick]) -> list[list[Instance]]:
    kept = list(enumerate(groups, 1))
    for pick in picks:
        kept = [(n, g) for n, g in kept if pick.value.casefold() in (str(n), _plane_name(g))]
        if not kept:
            names = ", ".join(f"{n} ({_plane_name(g)}, {len(g)} images)" for n, g in enumerate(groups, 1))
            raise DataError("no-such-volume", f"--pick {pick} means none of the orientations here: {names}")
    return [group for _, group in kept]


def _picked(frames: list[Instance], picks: Sequence[Pick]) -> list[Instance]:
    for pick in picks:
        keywords = DIMENSIONS.get(pick.name, (pick.name,))
        there = [k for k in keywords if any(f.get(k) is not None for f in frames)]
        kept: list[Instance] = []
        for keyword in there:
            settled = settled_values(frames, keyword)
            meant = {s for f, s in zip(frames, settled, strict=True) if _is(f.get(keyword), pick.value)}
            kept = [f for f, s in zip(frames, settled, strict=True) if s in meant]
            if kept:
                counted = _nth(frames, there, pick.value) if pick.name in _COUNTED and keyword != keywords[0] else []
                if counted and {id(f) for f in counted} != {id(f) for f in kept}:
                    text = f"--pick {pick} means {keyword} {said(pick.value)} or number {pick.value} in the list"
                    raise DataError("ambiguous-pick", text, hint=f"--pick {keyword}={pick.value}, or --pick volume=N")
                break
        if not kept and pick.name in _COUNTED:
            kept = _nth(frames, there, pick.value)
        if not kept:
            listed = "; ".join(
                f"{k} " + ", ".join(said(v) for v in _sorted({_frozen(f.get(k)) for f in frames})[:12]) for k in there
            )
            found = listed or f"no image has {' or '.join(keywords)}"
            raise DataError("no-such-volume", f"--pick {pick} means none of the images here: {found}")
        frames = kept
    return frames


def _keywords_of(frames: Sequence[Instance], pick: Pick) -> list[str]:
    return [k for k in DIMENSIONS.get(pick.name, (pick.name,)) if any(f.get(k) is not None for f in frames)]


def _is_ranked(frames: Sequence[Instance], pick: Pick) -> bool:
    """Say whether a choice is by a time that no two positions share: it means a place in the order, not images of one value."""
    keywords = _keywords_of(frames, pick)
    ranked = {keyword for keyword, _ in _ORDERS}
    return bool(keywords) and all(k in ranked and not _is_spread(frames, k) for k in keywords)


def _is_spread(frames: Sequence[Instance], keyword: str) -> bool:
    """Say whether a value of an attribute is found at `_COVERED` of the positions at least."""
    places: dict[Hashable, set[Hashable]] = {}
    for frame in frames:
        places.setdefault(_frozen(frame.get(keyword)), set()).add(_frozen(frame.get("ImagePositionPatient")))
    return max(map(len, places.values())) >= _COVERED * len(set().union(*places.values()))


def _picked_parts(parts: Sequence[Part], pick: Pick) -> list[Part]:
    """Return the volumes that a choice by a place in the order means: by its value, else by its number."""
    keywords = DIMENSIONS.get(pick.name, (pick.name,))
    kept = [part for part in parts if any(k in part.values and _is(part.values[k], pick.value) for k in keywords)]
    if not kept and pick.name in _COUNTED and pick.value.isascii() and pick.value.isdigit():
        kept = list(parts[int(pick.value) - 1 : int(pick.value)]) if int(pick.value) else []
    if not kept:
        listed = "".join(f"\n  {n}. {part.describe()}" for n, part in enumerate(parts[:_LISTED], 1))
        raise DataError("no-such-volume", f"--pick {pick} means none of the volumes here:{listed}")
    return kept


def _short_of(part: Part, everything: Sequence[Instance]) -> list[Finding]:
    """Say that the chosen volume has images at fewer positions than the series: a shorter patient, or another range on purpose."""
    normal = _normal(part.frames[0])
    cosines = np.array(orientation_of(part.frames[0]))
    alike = [f for f in everything if np.abs(np.array(orientation_of(f)) - cosines).max() <= COSINE_OFF]
    counts = [
        int(levels_of(np.array([position_of(f) for f in frames], np.float64) @ normal).max()) + 1
        for frames in (part.frames, alike)
    ]
    if counts[0] == counts[1]:
        return []
    text = f"the chosen images lie at {counts[0]} of the {counts[1]} positions that the series has"
    return [Finding("fewer-positions", text, {"positions": counts[0], "of": counts[1]})]


def _nth(frames: Sequence[Instance], keywords: Sequence[str], value: str) -> list[Instance]:
    for keyword in keywords:
        settled = settled_values(frames, keyword)
        values = _sorted({s for s in settled if s is not None})
        if value.isascii() and value.isdigit() and 1 <= int(value) <= len(values) and _shared(settled):
            return [f for f, s in zip(frames, settled, strict=True) if s == values[int(value) - 1]]
    return []


def _shared(values: Sequence[Hashable]) -> bool:
    """Say whether an attribute has few values beside the number of frames: not one a slice."""
    return len(set(values)) * 2 <= len(values) or len(values) < 4


def _is(found: Any, wanted: str) -> bool:
    if found is None:
        return wanted.casefold() == "absent"
    values = list(found) if isinstance(found, (list, tuple)) else [found]
    if "\\".join(map(str, values)).casefold() == wanted.casefold():
        return True
    for value in values:
        if isinstance(value, (int, float)):
            try:
                if abs(value - float(wanted)) <= 1e-6 * max(1.0, abs(value)):
                    return len(values) == 1
            except ValueError:
                continue
        elif str(value).casefold() == wanted.casefold():
            return True
    return False


def _frozen(value: Any) -> Hashable:
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(v) for v in value)
    return value if value is None or isinstance(value, (str, int, float)) else repr(value)


def _sorted(values: Iterable[Hashable]) -> list[Any]:
    return sorted(values, key=_order_of)


def _order_of(value: Any) -> tuple[Any, ...]:
    if value is None:
        return (0,)
    if isinstance(value, (int, float)):
        return (1, float(value))
    if isinstance(value, tuple):
        return (3, tuple(_order_of(v) for v in value))
    return (2, str(value))


def _by_attributes(frames: Sequence[Instance]) -> tuple[list[Part], str | None, str]:
    """Divide frames of one orientation; return the volumes and why they are several."""
    normal = _normal(frames[0])
    level = levels_of(np.array([position_of(f) for f in frames], np.float64) @ normal)
    most, count = int(np.bincount(level).max()), int(level.max()) + 1
    must = [k for k in ONE_VALUE_KEYWORDS if kinds_of(frames, k) > 1]
    if most == 1:
        if not must:
            return [Part(tuple(frames))], None, ""
        keyword = must[0]
        reason = f"{keyword} is not the same in all {len(frames)} images, which lie at different positions"
        return _grouped(frames, must[:_MOST_KEYS]), "mixed-kinds", reason
    keys = _telling(frames, level, must)
    head = f"{most} images at {'each of ' if count > 1 else ''}{count} position{'s' if count > 1 else ''}"
    if keys is not None:
        named = ", ".join(f"{word_of(k)} ({k})" if word_of(k) != k else k for k in keys)
        return _grouped(frames, keys), "several-volumes", f"{head}, which differ in {named}"
    ranked = _ranked(frames, level)
    if ranked is not None:
        keyword, parts = ranked
        nothing = keyword.startswith("InstanceNumber")
        by = "nothing in the headers but InstanceNumber tells them apart" if nothing else f"told apart by {keyword}"
        if keyword.endswith(_UNPROVEN):
            by += f",{_UNPROVEN}" if nothing else ""
        return parts, "several-volumes", f"{head}; {by}"
    _refuse_crowd(frames, level, count)


def _refuse_crowd(frames: Sequence[Instance], level: NDArray[np.int_], count: int) -> NoReturn:
    crowded = int(np.argmax(np.bincount(level) > 1))
    names = [_named(f) for f, at in zip(frames, level, strict=True) if at == crowded]
    raise DataError(
        "same-position",
        f"{len(names)} images lie at one position and nothing that holds at all {count} positions tells them apart: "
        f"{', '.join(names[:4])}",
        positions=count,
        images=len(frames),
    )


def _named(frame: Instance) -> str:
    return shown(frame.path) + ("" if frame.frame is None else f" frame {frame.frame + 1}")


def _candidates() -> list[str]:
    return [keyword for keywords in DIMENSIONS.values() for keyword in keywords]


def _telling(frames: Sequence[Instance], level: NDArray[np.int_], must: Sequence[str]) -> list[str] | None:
    """Return the fewest keywords whose values leave one image of each combination at a position, or None."""
    count = int(level.max()) + 1
    at = level.tolist()
    values: dict[str, list[Hashable]] = {}
    for keyword in dict.fromkeys((*_candidates(), *must)):
        found = settled_values(frames, keyword)
        if len(set(found)) == 1:
            continue
        places: dict[Hashable, set[int]] = {}
        for where, value in zip(at, found, strict=True):
            places.setdefault(value, set()).add(where)
        if keyword in must or all(len(p) > _COVERED * count for p in places.values()):
            values[keyword] = found

    def crowd(keys: Sequence[str]) -> int:
        return max(Counter(zip(at, *(values[k] for k in keys), strict=True)).values())

    keys: list[str] = []
    single = next((k for k in values if crowd([k]) == 1), None)
    if single is not None:
        keys = [single]
    else:
        left = crowd([])
        while left > 1 and len(keys) < _MOST_KEYS:
            best = min((k for k in values if k not in keys), key=lambda k: crowd([*keys, k]), default=None)
            if best is None or crowd([*keys, best]) >= left:
                return None
            keys.append(best)
            left = crowd(keys)
        if left > 1:
            return None
        for key in list(keys):
            rest = [k for k in keys if k != key]
            if rest and crowd(rest) == 1:
                keys = rest
    # What must be the same in a volume may still differ within one: it tells volumes apart as well.
    for keyword in must:
        groups: dict[Hashable, set[Hashable]] = {}
        for *told, value in zip(*(values[k] for k in keys), values[keyword], strict=True):
            groups.setdefault(tuple(told), set()).add(value)
        if any(len(several) > 1 for several in groups.values()):
            keys.append(keyword)
    # A direction of diffusion says little without its b-value.
    if "DiffusionGradientOrientation" in keys and "DiffusionBValue" in values and "DiffusionBValue" not in keys:
        keys.insert(0, "DiffusionBValue")
    return keys


def _grouped(frames: Sequence[Instance], keys: Sequence[str]) -> list[Part]:
    settled = [settled_values(frames, k) for k in keys]
    groups: dict[tuple[Hashable, ...], list[Instance]] = {}
    for frame, *value in zip(frames, *settled, strict=True):
        groups.setdefault(tuple(value), []).append(frame)
    if all(v is None or isinstance(v, (int, float)) for key in groups for v in key):
        ordered = sorted(groups, key=lambda key: tuple(_order_of(v) for v in key))
    else:
        # Directions and names have no order of their own: the one in which they were taken.
        ordered = sorted(groups, key=lambda key: (min(map(_taken, groups[key])), tuple(_order_of(v) for v in key)))
    return [Part(tuple(groups[key]), dict(zip(keys, key, strict=True))) for key in ordered]


def _taken(frame: Instance) -> tuple[float, int]:
    number = frame.get("InstanceNumber")
    return (number if isinstance(number, int) else np.inf), (-1 if frame.frame is None else frame.frame)


def _ranked(frames: Sequence[Instance], level: NDArray[np.int_]) -> tuple[str, list[Part]] | None:
    """Divide by the order of an attribute at each position: the first images of all positions are the first volume, and so on."""
    by_level: list[list[int]] = [[] for _ in range(int(level.max()) + 1)]
    for n, where in enumerate(level.tolist()):
        by_level[where].append(n)
    for keyword, in_turn in _ORDERS:
        found: list[Any] = [_order_value(f, keyword) for f in frames]
        if any(v is None for v in found) or len({type(v) for v in found}) > 1:
            continue
        if keyword in _CLOCKS and not isinstance(found[0], tuple) and _over_midnight(found):
            # Without a date nobody knows which of them is the next day's.
            continue
        ranks = [sorted(members, key=lambda n: _order_of(found[n])) for members in by_level]
        if any(found[a] == found[b] for members in ranks for a, b in itertools.pairwise(members)):
            continue
        volumes = [[members[r] for members in ranks if r < len(members)] for r in range(max(map(len, ranks)))]
        by_volume = [[found[n] for n in members] for members in volumes]
        by_place = [[found[n] for n in members] for members in ranks]
        lengths = {len(members) for members in ranks}
        if len(lengths) > 1:
            # An image that is missing before the last volume shifts all that follow at its position into the wrong volume.
            if not _only_last_incomplete(volumes) or not _in_turn(by_volume):
                continue
        elif not (_in_turn(by_volume) or (in_turn and _in_turn(by_place, any_order=True))):
            continue
        if not in_turn and not _apart(by_volume):
            continue
        proven = _in_turn(by_volume)
        counted = keyword in ("InstanceNumber", "FrameNumber")
        parts = []
        for number, members in enumerate(volumes, 1):
            first = min((found[n] for n in members), key=_order_of)
            first = first[1] if isinstance(first, tuple) else first
            told = {"volume" if counted else keyword: number if counted else first}
            parts.append(Part(tuple(frames[n] for n in members), told))
        return keyword + ("" if proven or not counted else _UNPROVEN), parts
    return None


def _apart(groups: Sequence[Sequence[Any]]) -> bool:
    """Say whether each group's values lie nearer to one another than `_APART` of the distance between neighbouring groups' middles.

    Delays of one phase differ a little from position to position; where a phase is missing at one, they differ by a whole one.
    """
    middles = [sorted(group)[len(group) // 2] for group in groups]
    spread = max(max(group) - min(group) for group in groups)
    return all(spread <= _APART * (b - a) for a, b in itertools.pairwise(middles))


def _order_value(frame: Instance, keyword: str) -> Any:
    """Return what orders a frame: of a time of day with its date, where it has one."""
    if keyword == "FrameNumber":
        # The order of frames means nothing where an object says its dimensions (PS3.3 C.7.6.17).
        return None if frame.get("DimensionIndexValues") is not None else frame.frame
    value, date = frame.get(keyword), frame.get(_CLOCKS.get(keyword, ""))
    return (str(date), str(value)) if value is not None and date is not None else value


def _over_midnight(times: Sequence[Any]) -> bool:
    """Say whether times of day (TM) lie more than 12 hours apart: the smallest is then the next day's."""
    hours = [int(str(time)[:2]) for time in times if str(time)[:2].isdigit()]
    return bool(hours) and max(hours) - min(hours) > 12


def _only_last_incomplete(volumes: Sequence[Sequence[int]]) -> bool:
    """Say whether all volumes but the last have an image at every position, and a second one is more than a few images."""
    count = len(volumes[0])
    return len(volumes[-2]) == count and (len(volumes) > 2 or len(volumes[-1]) > _COVERED * count)


def _in_turn(groups: Sequence[Sequence[Any]], *, any_order: bool = False) -> bool:
    """Say whether all of each group comes before all of the next one, in the order given or in any."""
    spans = [(min(g, key=_order_of), max(g, key=_order_of)) for g in groups]
    if any_order:
        spans.sort(key=lambda span: _order_of(span[0]))
    return all(_order_of(a[1]) < _order_of(b[0]) for a, b in itertools.pairwise(spans))


def _numbered(parts: Sequence[Part], pick: Pick) -> Part:
    if pick.value.isascii() and pick.value.isdigit() and 1 <= int(pick.value) <= len(parts):
        return parts[int(pick.value) - 1]
    listed = "".join(f"\n  {n}. {part.describe()}" for n, part in enumerate(parts[:_LISTED], 1))
    raise DataError("no-such-volume", f"--pick {pick}: the series has {len(parts)} volume(s):{listed}")


def _uneven(parts: Sequence[Part]) -> list[Finding]:
    counts = Counter(len(part.frames) for part in parts)
    if len(counts) == 1 or any(_ORIENTATION in part.values for part in parts):
        return []
    common = counts.most_common(1)[0][0]
    odd = [f"{n} has {len(p.frames)}" for n, p in enumerate(parts, 1) if len(p.frames) != common]
    text = f"the volumes have not the same number of images: most have {common}, volume {', '.join(odd[:6])}"
    return [Finding("uneven-volumes", text, {"common": common})]
