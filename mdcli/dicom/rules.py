"""The language that says which series are meant: parsed, never evaluated as code.

    Modality in (CT, MR) and SliceThickness <= 3 and not ImageType contains LOCALIZER

    expression  = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation    = "not" negation | "(" expression ")" | condition
    condition   = keyword ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) value
                | keyword [ "not" ] "in" "(" value { "," value } ")"
                | keyword "contains" value
                | keyword ( "matches" | "~" ) pattern
                | keyword "is" ( "present" | "absent" )
                | truth

A keyword is a DICOM keyword or one of `COMPUTED`; a truth is one of those that are true or false, alone. A value is a word, a
number, or text in single or double quotes (the quote itself doubled). Text is compared without regard to case; numbers as
numbers. An attribute of several values equals their text joined by backslashes, or a number that all of them are; `contains` asks
whether one of them is the value, and for an attribute of one value whether the value is part of it; an order holds if it holds
for all of them. `matches` looks for a regular expression anywhere in a value; a number is there as it is commonly written (both
5 and 5.0). An absent or empty attribute equals nothing, contains nothing and is in no order, so only `!=`, `not` and `is absent`
hold for it.

What is not known yet, or to nobody, is `UNKNOWN`: a condition on it neither holds nor fails, and a whole expression only where
the rest doesn't decide.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

from mdcli.dicom.headers import KEYWORDS
from mdcli.errors import UsageError


@dataclass(frozen=True)
class Property:
    """What is computed and not in the header.

    Attributes:
        kind: `number`, `word`, `text`, or `truth` (true or false).
        meaning: what it is, with its unit.
        words: all values, of a word.
        pixels: whether pixels must be read for it.
    """

    kind: str
    meaning: str
    words: tuple[str, ...] = ()
    pixels: bool = False


COMPUTED: Final[Mapping[str, Property]] = {
    "SliceCount": Property("number", "images with pixels, frames counted, copies not"),
    "Spacing": Property("number", "mean distance of neighbouring slices along the normal, mm, from the positions"),
    "CoverageMM": Property("number", "extent along the normal, mm: positions times Spacing"),
    "Orientation": Property(
        "word", "plane of an image: within 20 degrees, else oblique", ("axial", "coronal", "sagittal", "oblique")
    ),
    "ObliquityDeg": Property("number", "angle between an image's normal and the nearest patient axis, degrees"),
    "IsVolume": Property(
        "truth", "two or more slices of one orientation, size and pixel spacing, each at a place of its own"
    ),
    "IsRegular": Property("truth", "the places of the slices form a regular grid, sheared or not"),
    "Unit": Property("text", "unit of the rescaled values: HU, or what RescaleType or Units say"),
    "MeanHU": Property("number", "mean of sampled slices of a CT in HU, padding left out", pixels=True),
    "BodyShare": Property(
        "number", "share of a CT's sampled voxels above -300 HU, 0 to 1, padding left out", pixels=True
    ),
}
"""What is not in the header, by the keyword that stands for it."""


class _Unknown:
    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = _Unknown()
"""The value of what nobody has looked at yet, or nobody knows."""


class Facts(Protocol):
    """What is known of one image: a mapping will do."""

    def get(self, keyword: str, /) -> Any:
        """Return a value, a list of values, None where it is absent or empty, or `UNKNOWN`."""


_NUMERIC = frozenset(("DS", "IS", "US", "SS", "UL", "SL", "FL", "FD", "UV", "SV", "US or SS"))
_TEXTUAL = frozenset(("AE", "AS", "CS", "DA", "DT", "LO", "LT", "SH", "ST", "TM", "UC", "UI", "UR", "UT"))
_MAX_EXPRESSION, _MAX_DEPTH, _MAX_PATTERN, _MAX_SUBJECT, _MAX_EFFORT = 4000, 40, 200, 256, 26
_TOKEN = re.compile(
    r"""\s*(?:(?P<sign><=|>=|!=|==|[=<>~(),])|(?P<quoted>'(?:[^']|'')*'|"(?:[^"]|"")*")|(?P<word>[^\s<>=!~(),'"]+))"""
)
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_ORDERS: dict[str, Callable[[float, float], bool]] = {
    "<": lambda found, bound: found < bound,
    "<=": lambda found, bound: found <= bound,
    ">": lambda found, bound: found > bound,
    ">=": lambda found, bound: found >= bound,
}


@dataclass(frozen=True)
class Literal:
    """A value as written, and the number it is, if it is one."""

    text: str
    number: float | None


@dataclass(frozen=True)
class Condition:
    """One keyword, one sign, one or more values.

    Attributes:
        keyword: of DICOM, or of `COMPUTED`.
        sign: `=`, `!=`, `<`, `<=`, `>`, `>=`, `in`, `contains`, `matches` or `is`.
        values: what it is held against.
        multi: the attribute may have several values.
        pattern: of `matches`.
    """

    keyword: str
    sign: str
    values: tuple[Literal, ...]
    multi: bool
    pattern: re.Pattern[str] | None = None

    def decide(self, found: Facts) -> bool | None:
        """Say whether it holds; None where the value is `UNKNOWN`."""
        value = found.get(self.keyword)
        return None if value is UNKNOWN else self._holds(value)

    def _holds(self, value: Any) -> bool:
        values = [_plain(v) for v in (value if isinstance(value, (list, tuple)) else [value]) if v is not None]
        if self.sign == "is":
            return bool(values) is (self.values[0].text == "present")
        if self.sign == "!=":
            return not _equal(values, self.values[0])
        if not values:
            return False
        if self.pattern is not None:
            pattern = self.pattern
            return any(pattern.search(text[:_MAX_SUBJECT]) is not None for v in values for text in _spellings(v))
        if self.sign == "contains":
            return any(self._contains(v, self.values[0]) for v in values)
        if self.sign in ("=", "in"):
            return any(_equal(values, literal) for literal in self.values)
        bound = self.values[0].number
        numbers = [_number(v) for v in values]
        return bound is not None and all(n is not None and _ORDERS[self.sign](n, bound) for n in numbers)

    def _contains(self, value: Any, literal: Literal) -> bool:
        if self.multi:
            return _equal([value], literal)
        return literal.text.casefold() in str(value).casefold()

    def __str__(self) -> str:
        values = [_quoted(literal.text) for literal in self.values]
        return f"{self.keyword} {self.sign} " + (f"({', '.join(values)})" if self.sign == "in" else values[0])


@dataclass(frozen=True)
class Not:
    """The opposite of a part."""

    part: Node

    def decide(self, found: Facts) -> bool | None:
        """Say whether it holds; None where that is not known."""
        held = self.part.decide(found)
        return None if held is None else not held

    def __str__(self) -> str:
        return f"not {self.part}" if isinstance(self.part, (Condition, Not)) else f"not ({self.part})"


@dataclass(frozen=True)
class Joined:
    """Parts joined by `and` or by `or`."""

    word: str
    parts: tuple[Node, ...]

    def decide(self, found: Facts) -> bool | None:
        """Say whether it holds; None where that is not known. What stands behind a part that decides is not asked for."""
        decisive, unknown = self.word == "or", False
        for part in self.parts:
            held = part.decide(found)
            if held is decisive:
                return decisive
            unknown = unknown or held is None
        return None if unknown else not decisive

    def __str__(self) -> str:
        return f" {self.word} ".join(f"({p})" if isinstance(p, Joined) else str(p) for p in self.parts)


Node = Condition | Not | Joined


@dataclass(frozen=True)
class Rule:
    """A parsed expression.

    Attributes:
        root: its syntax tree.
        extra: the DICOM keywords in it that `KEYWORDS` lacks, with tag, value representation, and whether of one value only:
            what `read_instance` has to read more.
    """

    root: Node
    extra: Mapping[str, tuple[int, str, bool]]

    def decide(self, found: Facts) -> bool | None:
        """Say whether the rule holds; None where what is `UNKNOWN` decides."""
        return self.root.decide(found)

    def holds(self, found: Facts) -> bool:
        """Say whether the rule holds for attributes by keyword, as `Instance` has them."""
        return self.decide(found) is True

    @property
    def keywords(self) -> frozenset[str]:
        """Return the keywords it asks for."""
        return frozenset(condition.keyword for condition in self.conditions)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """Return its conditions, in the order written."""
        return tuple(_conditions(self.root))

    @property
    def signed_conditions(self) -> tuple[tuple[Condition, bool], ...]:
        """Return its conditions, in the order written, and whether each is wanted (False: within a `not`)."""
        return tuple(_signed(self.root, True))

    @property
    def asks_pixels(self) -> bool:
        """Say whether it has a condition on pixels."""
        return any(keyword in COMPUTED and COMPUTED[keyword].pixels for keyword in self.keywords)

    def explain(self, found: Facts) -> list[tuple[Condition, Any, bool | None]]:
        """Return every condition, the value found (None: absent), and whether it held; in the order written."""
        return [(c, found.get(c.keyword), c.decide(found)) for c in self.conditions]

    def why_not(self, found: Facts) -> list[tuple[Condition, Any]]:
        """Return the conditions, with the value found, that kept the rule from holding; none where it holds."""
        return [(c, found.get(c.keyword)) for c in _culprits(self.root, found, wanted=True)]

    def __str__(self) -> str:
        return str(self.root)


def _conditions(node: Node) -> Iterator[Condition]:
    if isinstance(node, Condition):
        yield node
    else:
        for part in (node.part,) if isinstance(node, Not) else node.parts:
            yield from _conditions(part)


def _signed(node: Node, wanted: bool) -> Iterator[tuple[Condition, bool]]:
    if isinstance(node, Condition):
        yield node, wanted
    elif isinstance(node, Not):
        yield from _signed(node.part, not wanted)
    else:
        for part in node.parts:
            yield from _signed(part, wanted)


def _culprits(node: Node, found: Facts, wanted: bool) -> Iterator[Condition]:
    if node.decide(found) in (wanted, None):
        return
    if isinstance(node, Condition):
        yield node
    elif isinstance(node, Not):
        yield from _culprits(node.part, found, not wanted)
    else:
        for part in node.parts:
            yield from _culprits(part, found, wanted)


def _plain(value: Any) -> Any:
    return ("true" if value else "false") if isinstance(value, bool) else value


def _number(value: Any) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else None


def _equal(values: list[Any], literal: Literal) -> bool:
    if not values:
        return False
    if all(isinstance(v, (int, float)) for v in values):
        if literal.number is None:
            return [_number(part) for part in literal.text.split("\\")] == values
        return all(v == literal.number for v in values)
    return "\\".join(map(str, values)).casefold() == literal.text.casefold()


def _spellings(value: Any) -> list[str]:
    """Return how a value may be written: text as it is, a whole number with and without a decimal point."""
    if isinstance(value, (int, float)) and float(value).is_integer() and abs(value) < 1e15:
        return [str(int(value)), f"{int(value)}.0"]
    return [str(value)]


def _quoted(text: str) -> str:
    plain = re.fullmatch(r"""[^\s<>=!~(),'"]+""", text) and text.lower() not in ("and", "or", "not", "in")
    return text if plain else "'" + text.replace("'", "''") + "'"


def parse(expression: str) -> Rule:
    """Parse an expression; opens no file.

    Raises:
        UsageError: `bad-expression` with what was found at which character, or what suits no attribute of that kind;
            `unknown-keyword` with the nearest one; `patient-keyword` for what is about the patient; `bad-pattern`.

    >>> parse("Modality = CT and SliceThickness <= 3").holds({"Modality": "CT", "SliceThickness": 2.5})
    True
    """
    return _Parser(expression).parse()


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class _Parser:
    def __init__(self, expression: str) -> None:
        if len(expression) > _MAX_EXPRESSION:
            raise UsageError(
                "bad-expression", f"the expression has {len(expression)} characters; {_MAX_EXPRESSION} is the most"
            )
        self._expression = expression
        self._tokens = list(_tokens(expression))
        self._at, self._depth = 0, 0
        self._extra: dict[str, tuple[int, str, bool]] = {}

    def parse(self) -> Rule:
        root = self._joined("or")
        if self._at < len(self._tokens):
            raise self._unexpected("'and', 'or' or the end")
        return Rule(root, self._extra)

    def _peek(self) -> _Token:
        end = len(self._expression.rstrip()) + 1
        return self._tokens[self._at] if self._at < len(self._tokens) else _Token("end", "", end)

    def _next(self) -> _Token:
        token = self._peek()
        self._at += 1
        return token

    def _takes(self, word: str) -> bool:
        kind, text, _ = self._peek()
        if kind == "quoted" or text.lower() != word:
            return False
        self._at += 1
        return True

    def _bad(self, message: str, at: int) -> UsageError:
        hint = f"in: {self._expression}"
        return UsageError("bad-expression", f"{message}, at character {at}", hint=hint, character=at)

    def _unexpected(self, wanted: str) -> UsageError:
        kind, text, at = self._peek()
        found = "it ends" if kind == "end" else f"{text!r} stands"
        return self._bad(f"the expression needs {wanted} where {found}", at)

    def _joined(self, word: str) -> Node:
        part = self._negation if word == "and" else lambda: self._joined("and")
        parts = [part()]
        while self._takes(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def _negation(self) -> Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise self._bad(f"the expression is nested deeper than {_MAX_DEPTH}", self._peek().at)
        try:
            if self._takes("not"):
                return Not(self._negation())
            if self._takes("("):
                inside = self._joined("or")
                self._needs(")")
                return inside
            return self._condition()
        finally:
            self._depth -= 1

    def _needs(self, sign: str) -> None:
        if not self._takes(sign):
            raise self._unexpected(repr(sign))

    def _condition(self) -> Node:
        if self._peek().kind != "word":
            raise self._unexpected("a DICOM keyword")
        _, keyword, at = self._next()
        self._look_up(keyword, at)
        following = self._peek()
        sign = following.text.lower() if following.kind != "quoted" else ""
        sign = {"==": "=", "~": "matches"}.get(sign, sign)
        if _is_truth(keyword) and (following.kind == "end" or sign in (")", "and", "or")):
            return self._made(at, keyword, "=", ["true"])
        if sign not in ("=", "!=", *_ORDERS, "in", "not", "contains", "matches", "is"):
            raise self._unexpected("a comparison (=, !=, <, <=, >, >=, in, not in, contains, matches, is)")
        self._next()
        if sign in ("in", "not"):
            if sign == "not":
                self._needs("in")
            self._needs("(")
            texts = [self._value()]
            while self._takes(","):
                texts.append(self._value())
            self._needs(")")
            among = self._made(at, keyword, "in", texts)
            return Not(among) if sign == "not" else among
        if sign == "is":
            word = next((word for word in ("present", "absent") if self._takes(word)), None)
            if word is None:
                raise self._unexpected("'present' or 'absent'")
            return self._made(at, keyword, sign, [word])
        return self._made(at, keyword, sign, [self._value()])

    def _made(self, at: int, keyword: str, sign: str, texts: list[str]) -> Condition:
        try:
            return make_condition(keyword, sign, texts)
        except UsageError as error:
            message, hint = f"{error.message}, at character {at}", error.hint or f"in: {self._expression}"
            raise UsageError(error.code, message, hint=hint, character=at) from None

    def _look_up(self, keyword: str, at: int) -> None:
        try:
            found = look_up(keyword)
        except UsageError as error:
            raise UsageError(error.code, f"{error.message}, at character {at}", hint=error.hint, character=at) from None
        if keyword not in COMPUTED and keyword not in KEYWORDS:
            self._extra[keyword] = found

    def _value(self) -> str:
        kind, text, _ = self._peek()
        if kind not in ("word", "quoted"):
            raise self._unexpected("a value")
        self._next()
        return text[1:-1].replace(text[0] * 2, text[0]) if kind == "quoted" else text


def make_condition(keyword: str, sign: str, texts: Iterable[str]) -> Condition:
    """Return a condition on what `look_up` knows, its values checked against the kind of the attribute.

    Args:
        keyword: of DICOM or of `COMPUTED`.
        sign: as in `Condition`.
        texts: its values as they are written.

    Raises:
        UsageError: `bad-expression` where sign or value don't suit the attribute, `bad-pattern`, and those of `look_up`.
    """
    _, vr, single = look_up(keyword)
    values = tuple(_literal(text) for text in texts)
    if sign != "is":
        _check_kind(keyword, sign, values, vr, single)
    pattern = _pattern(values[0].text) if sign == "matches" else None
    return Condition(keyword, sign, values, not single, pattern)


def _check_kind(keyword: str, sign: str, values: tuple[Literal, ...], vr: str, single: bool) -> None:
    known = COMPUTED.get(keyword)
    words = ("true", "false") if _is_truth(keyword) else known.words if known else ()
    for value in values:
        if sign in _ORDERS and value.number is None:
            raise UsageError("bad-expression", f"{keyword} {sign} needs a number, not {value.text!r}")
        if words and sign not in ("=", "!=", "in"):
            raise UsageError("bad-expression", f"{keyword} is {' or '.join(words)}: {sign} is not for that")
        if words and value.text.lower() not in words:
            near = nearest(value.text, words)
            hint = f"did you mean {near}?" if near else None
            raise UsageError("bad-expression", f"{keyword} is {' or '.join(words)}, not {value.text!r}", hint=hint)
        if vr not in _NUMERIC:
            continue
        if (sign == "contains" and single) or (sign == "matches" and known):
            raise UsageError("bad-expression", f"{keyword} is a number: {sign} is for text")
        parts = [value.text] if single else value.text.split("\\")
        if sign != "matches" and not all(_NUMBER.fullmatch(part) for part in parts):
            raise UsageError("bad-expression", f"{keyword} is a number, which {value.text!r} is not")


def _literal(text: str) -> Literal:
    number = float(text) if _NUMBER.fullmatch(text) else None
    return Literal(text, number if number is not None and math.isfinite(number) else None)


def _is_truth(keyword: str) -> bool:
    return keyword in COMPUTED and COMPUTED[keyword].kind == "truth"


def look_up(keyword: str) -> tuple[int, str, bool]:
    """Return (tag, value representation, one value only) of a keyword; what is computed has tag 0.

    Raises:
        UsageError: `unknown-keyword` with the nearest one; `patient-keyword`; `bad-expression` for what holds no value to compare.
    """
    if keyword in COMPUTED:
        return 0, "DS" if COMPUTED[keyword].kind == "number" else "CS", True
    found = KEYWORDS[keyword] if keyword in KEYWORDS else _from_dictionary(keyword)
    tag, vr, _ = found
    if tag >> 16 == 0x0010 or vr == "PN":
        raise UsageError("patient-keyword", f"{keyword} is about a person: no series is selected by that")
    if vr not in _NUMERIC and vr not in _TEXTUAL:
        raise UsageError("bad-expression", f"{keyword} holds no value to compare ({vr})")
    return found


def is_number(keyword: str) -> bool:
    """Say whether an attribute that `look_up` knows holds numbers."""
    return look_up(keyword)[1] in _NUMERIC


def _tokens(expression: str) -> Iterator[_Token]:
    position = 0
    text = expression.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            at = position + len(text[position:]) - len(text[position:].lstrip()) + 1
            message = f"the expression can't be read from {text[at - 1 :][:20]!r} on, at character {at}"
            raise UsageError("bad-expression", message, character=at)
        group = match.lastgroup or ""
        yield _Token(group, match[group], match.start(group) + 1)
        position = match.end()


def _from_dictionary(keyword: str) -> tuple[int, str, bool]:
    """Return (tag, value representation, one value only) of any standard keyword.

    Raises:
        UsageError: `unknown-keyword`.
    """
    from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_dict, tag_for_keyword

    tag = tag_for_keyword(keyword)
    if tag is None:
        near = nearest(keyword, [*COMPUTED, *KEYWORDS]) or nearest(keyword, keyword_dict)
        hint = f"did you mean {near}?" if near else "keywords are those of DICOM PS3.6, such as SeriesDescription"
        raise UsageError("unknown-keyword", f"{keyword!r} is no DICOM keyword", hint=hint)
    return int(tag), dictionary_VR(tag), dictionary_VM(tag) == "1"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the word that somebody may have meant, or None."""
    import difflib

    by_lower = {name.lower(): name for name in known if name}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=0.75)
    return by_lower[near[0]] if near else None


def _pattern(text: str) -> re.Pattern[str]:
    """Return a regular expression that can't take exponential time: repeats don't nest, and there are few of them.

    Raises:
        UsageError: `bad-pattern`.
    """
    if len(text) > _MAX_PATTERN:
        raise UsageError("bad-pattern", f"the pattern has {len(text)} characters; {_MAX_PATTERN} is the most")
    try:
        pattern = re.compile(text, re.IGNORECASE)
        tree = re._parser.parse(text, re.IGNORECASE)  # type: ignore[attr-defined]
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError("bad-pattern", f"{text!r} is no regular expression: {error}") from error
    if _effort(tree, inside=False) > _MAX_EFFORT:
        raise UsageError("bad-pattern", f"{text!r} has so many repeats and choices that it can take for ever")
    return pattern


def _effort(tree: Any, inside: bool) -> int:
    """Return how many ways a parsed pattern can match at one place of a text of `_MAX_SUBJECT` characters, as a power of two.

    Args:
        tree: as `re` parses it.
        inside: whether it is repeated.

    Raises:
        UsageError: `bad-pattern` for a repeat or a choice within a repeat, and for a reference back.
    """
    effort = 0
    for name, argument in tree:
        kind = str(name)
        if kind in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            low, high, body = argument
            ways = min(int(high) - int(low), _MAX_SUBJECT - 1)
            if inside and ways:
                raise UsageError("bad-pattern", "a repeat within a repeat can take for ever")
            effort += ways.bit_length() + _effort(body, inside or high > 1)
        elif kind == "BRANCH":
            if inside:
                raise UsageError("bad-pattern", "a choice within a repeat can take for ever")
            effort += (len(argument[1]) - 1).bit_length() + sum(_effort(body, inside) for body in argument[1])
        elif kind == "SUBPATTERN":
            effort += _effort(argument[-1], inside)
        elif kind in ("ASSERT", "ASSERT_NOT"):
            effort += _effort(argument[1], inside)
        elif kind == "ATOMIC_GROUP":
            effort += _effort(argument, inside)
        elif kind.startswith("GROUPREF"):
            raise UsageError("bad-pattern", "a reference back to a group is not supported")
    return effort
