"""Judge the series of a source by named selections: which match, which one is preferred, and why each is chosen or not.

A selection is a rule with an order of preference. Rule files hold several: md's own form in YAML (`md.rules/1`), or MONAI
Deploy's JSON (`mdcli.dicom.monai_rules`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mdcli.dicom.instance import Instance
from mdcli.dicom.opening import shown
from mdcli.dicom.plain_yaml import PlainYamlError, load_yaml
from mdcli.dicom.rules import COMPUTED, UNKNOWN, Condition, Rule, nearest, parse
from mdcli.dicom.series import INCLUDABLE, Series, has_pixels, why_unsuitable, without_strangers
from mdcli.errors import ConfigError, DataError, UsageError

if TYPE_CHECKING:
    from mdcli.dicom.opening import SourceFiles
    from mdcli.dicom.properties import PixelFacts, Stack

T = TypeVar("T")
RULES = "md.rules/1"
EXPLAIN = "md.explain/1"
MAX_RULES_BYTES = 1 << 20
_NAME = re.compile(r"[a-z0-9_]{1,64}")
_VALUES_SHOWN = 5
_KEYS = ("name", "where", "prefer", "role", "all", "required", "include")
_TIMES = (("AcquisitionDate", "AcquisitionTime"), ("SeriesDate", "SeriesTime"), ("ContentDate", "ContentTime"))


@dataclass(frozen=True)
class Selection:
    """One named selection.

    Attributes:
        name: for people, and for the names of child workspaces.
        rule: what must hold for every image of a series; None: every series.
        prefer: words of `PREFERENCES`, the most important first.
        role: the name that its series gets in the workspace (`series-<role>`).
        all: every match is wanted, each as a child workspace.
        required: without a match it is an error; False only with a role.
        include: kinds of `INCLUDABLE` that it takes in.
    """

    name: str
    rule: Rule | None = None
    prefer: tuple[str, ...] = ()
    role: str | None = None
    all: bool = False
    required: bool = True
    include: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """Return the name as a folder's name: lower-case letters, digits, underscores.

        >>> Selection("CT Series 1").word
        'ct_series_1'
        """
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")[:64] or "series"


@dataclass(frozen=True)
class RuleFile:
    """What a rule file says.

    Attributes:
        form: `md` or `monai`.
        selections: in the order written.
        notes: what in it has no effect, one sentence each.
    """

    form: str
    selections: tuple[Selection, ...]
    notes: tuple[str, ...] = ()


def read_rules(text: str, name: str) -> RuleFile:
    """Return what a rule file says, in md's form or MONAI's.

    Args:
        text: YAML or JSON.
        name: the file's name, for messages.

    Raises:
        ConfigError: `bad-rules`, naming the place.
        UsageError: those of `mdcli.dicom.rules.parse`, naming the place.
    """
    from mdcli.dicom.monai_rules import is_monai, read_monai

    document = load_document(text, name)
    found = read_monai(document, name) if is_monai(document) else _read_own(document, name)
    words = [s.word for s in found.selections]
    if twice := next((word for word in words if words.count(word) > 1), None):
        raise ConfigError("bad-rules", f"{name}: two selections are named {twice}")
    return found


def load_document(text: str, name: str) -> dict[str, Any]:
    """Return a rule file's content: a mapping with a list `selections`.

    Raises:
        ConfigError: `bad-rules`.
    """
    if len(text) > MAX_RULES_BYTES:
        raise ConfigError("bad-rules", f"{name} has {len(text)} characters; {MAX_RULES_BYTES} is the most")
    try:
        document = load_yaml(text)
    except PlainYamlError as error:
        raise ConfigError("bad-rules", f"{name}: {error}") from None
    if not isinstance(document, dict) or "selections" not in document:
        near = nearest("selections", map(str, document)) if isinstance(document, dict) else None
        hint = f"{near} may be meant as selections" if near else "md schema rules says what is in a rule file"
        raise ConfigError("bad-rules", f"{name}: selections missing", hint=hint)
    selections = document["selections"]
    if not isinstance(selections, list) or not selections:
        raise ConfigError("bad-rules", f"{name}: selections is no list with something in it")
    for n, one in enumerate(selections):
        if not isinstance(one, dict):
            raise ConfigError("bad-rules", f"{name}: selections[{n}] is not keys with values")
    return document


def refuse_unknown(mapping: Mapping[Any, Any], known: Sequence[str], place: str) -> None:
    """Refuse a key that is not known.

    Raises:
        ConfigError: `bad-rules`, with the near one.
    """
    for key in mapping:
        if key not in known:
            near = nearest(str(key), known)
            hint = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
            raise ConfigError("bad-rules", f"{place}: unknown key {shown(repr(key))}", hint=hint)


def _read_own(document: dict[str, Any], name: str) -> RuleFile:
    refuse_unknown(document, ("schema", "selections"), name)
    if document.get("schema", RULES) != RULES:
        raise ConfigError("bad-rules", f"{name}: schema is {shown(repr(document['schema']))}, not {RULES!r}")
    found = tuple(_selection(one, f"{name}: selections[{n}]") for n, one in enumerate(document["selections"]))
    roles = [one.role for one in found if one.role]
    if roles and len(roles) < len(found):
        raise ConfigError("bad-rules", f"{name}: a role for some selections and none for others")
    if twice := next((role for role in roles if roles.count(role) > 1), None):
        raise ConfigError("bad-rules", f"{name}: two selections have the role {twice}")
    return RuleFile("md", found)


def _selection(said: dict[str, Any], place: str) -> Selection:
    refuse_unknown(said, _KEYS, place)
    name = _text(said.get("name"), f"{place}: name")
    where = said.get("where")
    role = said.get("role")
    if role is not None and not (isinstance(role, str) and _NAME.fullmatch(role)):
        raise ConfigError("bad-rules", f"{place}: role is {shown(repr(role))}, not made of a to z, 0 to 9 and _")
    switches = {}
    for key, default in (("all", False), ("required", True)):
        switches[key] = said.get(key, default)
        if not isinstance(switches[key], bool):
            raise ConfigError("bad-rules", f"{place}: {key} is {shown(repr(switches[key]))}, not true or false")
    if role and switches["all"]:
        raise ConfigError("bad-rules", f"{place}: a role is one series: all does not go with it")
    if not role and not switches["required"]:
        raise ConfigError("bad-rules", f"{place}: required: false goes with a role")
    rule = None
    if where is not None:
        rule = in_place(f"{place}: where", lambda: parse(_text(where, f"{place}: where")))
    return Selection(
        name,
        rule,
        in_place(f"{place}: prefer", lambda: preferences(_words(said.get("prefer"), f"{place}: prefer"))),
        role,
        switches["all"],
        switches["required"],
        in_place(f"{place}: include", lambda: inclusions(_words(said.get("include"), f"{place}: include"))),
    )


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        hint = f'put it in quotes: "{value}"' if isinstance(value, (int, float)) else None
        raise ConfigError("bad-rules", f"{place}: {shown(repr(value))} where one line of text is wanted", hint=hint)
    return value


def _words(value: Any, place: str) -> list[str]:
    items = [] if value is None else value if isinstance(value, list) else [value]
    return [_text(item, place) for item in items]


def in_place(place: str, make: Callable[[], T]) -> T:
    """Return what a function makes; a wrong expression in it is an error that names the place.

    Raises:
        UsageError: with the code that it had.
    """
    try:
        return make()
    except UsageError as error:
        message = f"{place}: {error.message}"
        raise UsageError(error.code, message, hint=error.hint, **error.numbers) from None


def inclusions(words: Iterable[str]) -> tuple[str, ...]:
    """Return the kinds of series to take in, each one held against `INCLUDABLE`.

    Raises:
        UsageError: `bad-include`.
    """
    kinds = tuple(words)
    for kind in kinds:
        if kind not in INCLUDABLE:
            near = nearest(kind, INCLUDABLE)
            hint = f"did you mean {near}?" if near else ", ".join(INCLUDABLE)
            raise UsageError("bad-include", f"{shown(kind)}: there is no such kind of series", hint=hint)
    return kinds


class Candidate:
    """One series as selections see it.

    Args:
        series: all its objects; those that are no images among images are left out of every question.
        files: where frames and pixels are read; None: only what the scan read is known.
        jobs: threads or processes for pixels.

    Attributes:
        whole: the series with all its objects.
        series: its images.
        strangers: its objects that are none.
    """

    def __init__(self, series: Series, files: SourceFiles | None = None, jobs: int = 1) -> None:
        self.whole = series
        self.series, self.strangers = without_strangers(series)
        self._files, self._jobs = files, jobs
        self._pixels: PixelFacts | object | None = UNKNOWN

    @cached_property
    def frames(self) -> list[Instance]:
        """Return one instance a frame; where the frames can't be read, one a file."""
        images = [i for i in self.series.instances if has_pixels(i)] or list(self.series.instances)
        if self._files is None or not any(_may_hold_frames(i) for i in images):
            return images
        from mdcli.dicom.multiframe import frames_of

        try:
            return frames_of(self._files, images)
        except DataError:
            # What is wrong with them is for load-volume to say; here they have no place, and so are no volume.
            return images

    @cached_property
    def stack(self) -> Stack:
        """Return how its images lie."""
        from mdcli.dicom.properties import stack_of

        return stack_of(_without_copies(self.frames))

    @cached_property
    def _unit(self) -> str | None:
        from mdcli.dicom.properties import unit_of

        return unit_of(self.frames)

    def read_pixels(self) -> None:
        """Read what conditions on pixels ask for.

        Raises:
            DataError: those of `mdcli.dicom.properties.pixel_facts`.
        """
        if self._pixels is UNKNOWN and self._files is not None:
            from mdcli.dicom.properties import pixel_facts

            images = [i for i in _without_copies(self.frames) if has_pixels(i)]
            self._pixels = pixel_facts(self._files, images, self._jobs) if images else None

    def computed(self, keyword: str, image: Instance) -> Any:
        """Return a property of `COMPUTED`: of the series, or of one image of it."""
        if keyword == "SliceCount":
            return self.series.slice_count
        if keyword in ("Orientation", "ObliquityDeg"):
            from mdcli.dicom.properties import plane_of_image

            plane = plane_of_image(image)
            return plane[keyword == "ObliquityDeg"] if plane else None
        if keyword == "Unit":
            return self._unit
        if keyword in ("MeanHU", "BodyShare"):
            if self._pixels is UNKNOWN or self._pixels is None:
                return self._pixels
            return getattr(self._pixels, "mean_hu" if keyword == "MeanHU" else "body_share")
        stack = self.stack
        return {
            "Spacing": stack.spacing_mm,
            "CoverageMM": stack.coverage_mm,
            "IsVolume": stack.is_volume,
            "IsRegular": stack.is_regular,
        }[keyword]

    def kinds_of_images(self, keywords: Iterable[str]) -> list[tuple[_Image, int]]:
        """Return its images, those that say the same about the keywords once, and how many they are."""
        asked = sorted(k for k in keywords if k not in COMPUTED)
        planes = [k for k in keywords if k in ("Orientation", "ObliquityDeg")]
        looked_at = [*asked, *(["ImageOrientationPatient"] if planes else [])]
        images: Sequence[Instance] = self.series.instances
        if any(_may_hold_frames(i) and any(i.get(k) is None for k in looked_at) for i in images):
            images = self.frames
        counts: dict[tuple[Any, ...], list[Any]] = {}
        for image in images:
            key = tuple(_frozen(image.attributes.get(k)) for k in looked_at)
            counts.setdefault(key, [image, 0])[1] += 1
        return [(_Image(self, image), count) for image, count in counts.values()]

    def decide(self, rule: Rule) -> bool | None:
        """Say whether a rule holds for every image; None where only pixels that were not read can tell."""
        unknown = False
        for image, _ in self.kinds_of_images(rule.keywords):
            held = rule.decide(image)
            if held is False:
                return False
            unknown = unknown or held is None
        return None if unknown else True

    def settle(self, rule: Rule) -> bool:
        """Say whether a rule holds for every image; pixels are read only where nothing else decides."""
        held = self.decide(rule)
        if held is None:
            self.read_pixels()
            held = self.decide(rule)
        return held is True


@dataclass(frozen=True)
class _Image:
    """One image, its attributes and what is computed of it and its series."""

    candidate: Candidate
    instance: Instance

    def get(self, keyword: str, /) -> Any:
        if keyword in COMPUTED:
            return self.candidate.computed(keyword, self.instance)
        return self.instance.attributes.get(keyword)


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _may_hold_frames(instance: Instance) -> bool:
    frames, kinds = instance.get("NumberOfFrames", 1), instance.get("ImageType", [])
    return frames != 1 or "PerFrameFunctionalGroupsSequence" in instance.attributes or "MOSAIC" in str(kinds).upper()


def _without_copies(images: Iterable[Instance]) -> list[Instance]:
    """Return each image once: a file that is there twice is no second image."""
    kept: dict[tuple[Any, ...], Instance] = {}
    for n, image in enumerate(images):
        uid = image.get("SOPInstanceUID")
        kept.setdefault((str(uid), image.frame, image.tile) if uid else (n,), image)
    return list(kept.values())


# Preferences


def _thickness(candidate: Candidate) -> float | None:
    images = candidate.frames if any(map(_may_hold_frames, candidate.series.instances)) else candidate.series.instances
    found = [i.get("SliceThickness") for i in images]
    numbers = [v for v in found if isinstance(v, (int, float))]
    return round(max(numbers), 4) if numbers and len(numbers) == len(found) else None


def _time(candidate: Candidate) -> float | None:
    """Return when the newest image was taken, as one number: a series' own times come before its study's."""
    times = [_time_of(i) for i in candidate.series.instances]
    return max((t for t in times if t is not None), default=None)


def _time_of(instance: Instance) -> float | None:
    moment = _digits(str(instance.get("AcquisitionDateTime", "")))
    for date, time in () if moment else (*_TIMES, ("StudyDate", "StudyTime")):
        day = re.match(r"\d{8}$", str(instance.get(date, "")))
        if day:
            moment = _digits(day[0] + str(instance.get(time, "")))
            break
    return float(moment) if moment else None


def _digits(text: str) -> str | None:
    """Return a DICOM date-time as YYYYMMDDHHMMSS.FFFFFF, its offset from UTC left out; None where it is none."""
    found = re.match(r"(\d{8})(\d{0,6})(\.\d{1,6})?", text)
    return found[1] + found[2].ljust(6, "0") + (found[3] or "") if found else None


def _number(candidate: Candidate) -> float | None:
    found = candidate.series.instances[0].get("SeriesNumber")
    return float(found) if isinstance(found, (int, float)) else None


def _coverage(candidate: Candidate) -> float | None:
    found = candidate.stack.coverage_mm
    return None if found is None else round(found, 2)


@dataclass(frozen=True)
class Preference:
    """One way to prefer a series to another.

    Attributes:
        meaning: for people.
        key: the number that is compared; a series without one comes last.
        highest: whether the highest is preferred, or the lowest.
    """

    meaning: str
    key: Callable[[Candidate], float | None]
    highest: bool


PREFERENCES: Mapping[str, Preference] = {
    "most-slices": Preference("the highest SliceCount", lambda c: float(c.series.slice_count), True),
    "fewest-slices": Preference("the lowest SliceCount", lambda c: float(c.series.slice_count), False),
    "thinnest": Preference("the smallest SliceThickness (of its thickest slice)", _thickness, False),
    "thickest": Preference("the largest SliceThickness (of its thickest slice)", _thickness, True),
    "largest-coverage": Preference("the largest CoverageMM", _coverage, True),
    "newest": Preference("the latest acquisition, else series, content, study date and time", _time, True),
    "oldest": Preference("the earliest of these", _time, False),
    "lowest-number": Preference("the lowest SeriesNumber", _number, False),
    "highest-number": Preference("the highest SeriesNumber", _number, True),
}
"""What `prefer` knows."""


def preferences(words: Iterable[str]) -> tuple[str, ...]:
    """Return an order of preference, given as words or as words joined by commas.

    Raises:
        UsageError: `bad-preference`.

    >>> preferences(["most-slices, thinnest", "newest"])
    ('most-slices', 'thinnest', 'newest')
    """
    found = [part.strip() for word in words for part in word.split(",")]
    for word in found:
        if word not in PREFERENCES:
            near = nearest(word, PREFERENCES)
            hint = f"did you mean {near}?" if near else f"known: {', '.join(PREFERENCES)}"
            raise UsageError("bad-preference", f"there is no preference {shown(repr(word))}", hint=hint)
    return tuple(found)


def preferred(candidates: Sequence[Candidate], order: Iterable[str]) -> list[Candidate]:
    """Return the candidates that are best by the first preference, among these by the second, and so on: one, or a tie."""
    left = list(candidates)
    for word in order:
        if len(left) < 2:
            break
        preference = PREFERENCES[word]
        keys = [preference.key(one) for one in left]
        known = [key for key in keys if key is not None]
        if known:
            best = max(known) if preference.highest else min(known)
            left = [one for one, key in zip(left, keys, strict=True) if key == best]
    return left


# Judging


@dataclass
class Judged:
    """How one series stands with one selection.

    Attributes:
        candidate: the series.
        result: `left-out`, `no-match`, `match`, `not-preferred` or `chosen`.
        code: why it was left out: of `why_unsuitable`.
        reason: one clause about "it".
    """

    candidate: Candidate
    result: str
    code: str | None
    reason: str


@dataclass
class Judgement:
    """How all series stand with one selection.

    Attributes:
        selection: which one.
        judged: every series, in order.
        best: the series that it means: one; more where preferences leave a tie; all matches with `all`.
    """

    selection: Selection
    judged: list[Judged]
    best: list[Candidate] = field(default_factory=list)

    @property
    def matching(self) -> list[Candidate]:
        """Return the series that match."""
        return [j.candidate for j in self.judged if j.result in ("match", "not-preferred", "chosen")]


def judge(
    selection: Selection, candidates: Sequence[Candidate], *, include: Iterable[str] = (), uid: str | None = None
) -> Judgement:
    """Judge every series by a selection.

    Args:
        selection: which one.
        candidates: the series.
        include: kinds of `INCLUDABLE` to take in, beside the selection's own.
        uid: only the series with this SeriesInstanceUID, whatever kind it is.

    Raises:
        DataError: where a condition on pixels decides, and they can't be read.
    """
    taken_in = tuple(INCLUDABLE) if uid else (*include, *selection.include)
    judged = [_judged(selection, one, taken_in, uid) for one in candidates]
    found = Judgement(selection, judged)
    matching = found.matching
    found.best = matching if selection.all else preferred(matching, selection.prefer)
    for one in judged:
        if one.result == "match" and len(found.best) == 1 and one.candidate is not found.best[0]:
            one.result, one.reason = (
                "not-preferred",
                f"it matches, another is preferred ({', '.join(selection.prefer)})",
            )
        elif one.result == "match" and one.candidate not in found.best:
            one.result, one.reason = (
                "not-preferred",
                f"it matches, others are preferred ({', '.join(selection.prefer)})",
            )
        elif one.result == "match" and (selection.all or len(found.best) == 1):
            one.result, one.reason = "chosen", "chosen"
    return found


def _judged(selection: Selection, candidate: Candidate, include: tuple[str, ...], uid: str | None) -> Judged:
    unsuitable = why_unsuitable(candidate.whole, include)
    if unsuitable is not None:
        hint = f" (--include {unsuitable.code})" if unsuitable.code in INCLUDABLE else ""
        return Judged(candidate, "left-out", unsuitable.code, unsuitable.message + hint)
    if uid is not None and candidate.whole.uid != uid:
        return Judged(candidate, "no-match", None, "it has another SeriesInstanceUID")
    if selection.rule is not None and not candidate.settle(selection.rule):
        return Judged(candidate, "no-match", None, _why_not(candidate, selection.rule))
    return Judged(candidate, "match", None, "it matches")


def _why_not(candidate: Candidate, rule: Rule) -> str:
    """Say which conditions images of the series fail, each with the first value that fails it."""
    failed: dict[Condition, Any] = {}
    for image, _ in candidate.kinds_of_images(rule.keywords):
        for condition, value in rule.why_not(image):
            failed.setdefault(condition, value)
    written = [condition for condition in dict.fromkeys(rule.conditions) if condition in failed]
    return "; ".join(f"{condition}: {said(failed[condition])}" for condition in written)


def said(value: Any) -> str:
    """Return a found value for people: `found 5`, `absent`, `not read`."""
    if value is UNKNOWN:
        return "not read"
    return "absent" if value is None or value == [] else f"found {shown(_as_text(value))}"


def _as_text(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "\\".join(map(_as_text, value))
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


# Explaining


def explain(judgements: Sequence[Judgement]) -> tuple[str, dict[str, Any]]:
    """Say for every selection, series and condition what was found and whether it held.

    Returns:
        Lines for people, and the same as a document (`md.explain/1`). Every condition is held against every series, also where
        others decided already; pixels are not read for it.
    """
    lines: list[str] = []
    selections: list[dict[str, Any]] = []
    for judgement in judgements:
        selection, rule = judgement.selection, judgement.selection.rule
        lines.append(f"selection {selection.name}: {rule or 'every series'}")
        if selection.prefer:
            lines.append(f"  prefer {', '.join(selection.prefer)}")
        series = []
        for number, one in enumerate(judgement.judged, 1):
            lines.append(f"  {number}. {one.candidate.series.describe()}")
            lines.append(f"     {one.result}: {one.reason}" if one.result != "chosen" else "     chosen")
            conditions = [_held(one.candidate, c, wanted) for c, wanted in rule.signed_conditions] if rule else []
            width = max((len(c["condition"]) for c in conditions), default=0)
            for c in conditions:
                mark = {True: "yes", False: "no ", None: "-  "}[c["held"]]
                lines.append(f"       {mark} {c['condition']:<{width}}  {_listed(c)}".rstrip())
            series.append(_described(one, number) | {"conditions": conditions})
        selections.append(
            {
                "name": selection.name,
                "role": selection.role,
                "where": None if rule is None else str(rule),
                "prefer": list(selection.prefer),
                "series": series,
            }
        )
    return "\n".join(lines), {"schema": EXPLAIN, "selections": selections}


def _described(judged: Judged, number: int) -> dict[str, Any]:
    first = judged.candidate.series.instances[0]
    return {
        "number": number,
        "study_instance_uid": first.get("StudyInstanceUID"),
        "series_instance_uid": judged.candidate.series.uid,
        "modality": first.get("Modality"),
        "series_number": first.get("SeriesNumber"),
        "series_description": first.get("SeriesDescription"),
        "images": judged.candidate.series.slice_count,
        "result": judged.result,
        "code": judged.code,
        "reason": judged.reason,
    }


def _held(candidate: Candidate, condition: Condition, wanted: bool) -> dict[str, Any]:
    """Return what all images of a series say about a condition, or about its opposite where that is wanted."""
    values: dict[Any, int] = {}
    held: dict[bool | None, int] = {True: 0, False: 0, None: 0}
    for image, count in candidate.kinds_of_images([condition.keyword]):
        value = image.get(condition.keyword)
        decided = condition.decide(image)
        held[decided if decided is None else decided is wanted] += count
        values[_frozen(value)] = values.get(_frozen(value), 0) + count
    of = sum(held.values())
    verdict = None if held[None] else held[True] == of
    found = sorted(values.items(), key=lambda pair: -pair[1])
    return {
        "condition": str(condition) if wanted else f"not {condition}",
        "keyword": condition.keyword,
        "held": verdict,
        "held_in": held[True],
        "of": of,
        "found": [{"value": _json(value), "images": count} for value, count in found[:_VALUES_SHOWN]],
        "values": len(found),
    }


def _json(value: Any) -> Any:
    if value is UNKNOWN:
        return None
    return list(map(_json, value)) if isinstance(value, tuple) else value


def _listed(condition: Mapping[str, Any]) -> str:
    if condition["held"] is None:
        return "not read: the rest decides"
    found, of = condition["found"], condition["of"]
    if len(found) == 1:
        return said(found[0]["value"])
    parts = [f"{said(item['value'])} in {item['images']} of {of}" for item in found]
    more = ", ..." if condition["values"] > len(found) else ""
    return f"{', '.join(parts)}{more}: held in {condition['held_in']} of {of}"


def read_rule_file(path: Path) -> str:
    """Return a rule file's text.

    Raises:
        ConfigError: `bad-rules` where it is too long or no UTF-8.
        MissingError: `no-rules`.
    """
    from mdcli.errors import MissingError

    try:
        with path.open("rb") as file:
            content = file.read(MAX_RULES_BYTES + 1)
    except OSError as error:
        message = f"the rule file {shown(path.name)} can't be read: {error.strerror}"
        raise MissingError("no-rules", message, hint="--rules names a file") from error
    if len(content) > MAX_RULES_BYTES:
        raise ConfigError("bad-rules", f"{shown(path.name)} has more than {MAX_RULES_BYTES} bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"{shown(path.name)} is not UTF-8: {error.reason} at byte {error.start}"
        raise ConfigError("bad-rules", message) from error
