"""The language that says which series are meant: parsed, never evaluated as code.

    Modality in (CT, MR) and SliceThickness <= 3 and not ImageType contains LOCALIZER

    expression  = conjunction { "or" conjunction }
    conjunction = negation { "and" negation }
    negation    = "not" negation | "(" expression ")" | condition
    condition   = keyword ( "=" | "!=" | "<" | "<=" | ">" | ">=" ) value
                | keyword "in" "(" value { "," value } ")"
                | keyword "contains" value
                | keyword ( "matches" | "~" ) pattern

A keyword is a DICOM keyword or one of `COMPUTED`. A value is a word, a number, or text in single or double quotes (the quote
itself doubled). Text is compared without regard to case; numbers as numbers. An attribute of several values equals their text
joined by backslashes, or a number that all of them are; `contains` asks whether one of them is the value, and for an attribute
of one value whether the value is part of it; an order holds if it holds for all of them. `matches` looks for a regular
expression anywhere in a value. An absent or empty attribute equals nothing, contains nothing and is in no order, so only `!=`
and `not` hold for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mdcli.dicom.headers import KEYWORDS
from mdcli.errors import UsageError

COMPUTED: dict[str, str] = {"SliceCount": "IS"}
"""What is not in the header, and the value representation it behaves like. SliceCount: images with pixels, frames counted."""

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
    """One keyword, one sign, one or more values."""

    keyword: str
    sign: str
    values: tuple[Literal, ...]
    multi: bool
    pattern: re.Pattern[str] | None = None

    def holds(self, found: Mapping[str, Any]) -> bool:
        """Say whether it holds for attributes by keyword."""
        value = found.get(self.keyword)
        values = [v for v in (value if isinstance(value, (list, tuple)) else [value]) if v is not None]
        if self.sign == "!=":
            return not _equal(values, self.values[0])
        if not values:
            return False
        if self.pattern is not None:
            pattern = self.pattern
            return any(pattern.search(str(v)[:_MAX_SUBJECT]) is not None for v in values)
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

    def holds(self, found: Mapping[str, Any]) -> bool:
        """Say whether it holds for attributes by keyword."""
        return not self.part.holds(found)

    def __str__(self) -> str:
        return f"not {self.part}" if isinstance(self.part, (Condition, Not)) else f"not ({self.part})"


@dataclass(frozen=True)
class Joined:
    """Parts joined by `and` or by `or`."""

    word: str
    parts: tuple[Node, ...]

    def holds(self, found: Mapping[str, Any]) -> bool:
        """Say whether it holds for attributes by keyword."""
        return (all if self.word == "and" else any)(part.holds(found) for part in self.parts)

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

    def holds(self, found: Mapping[str, Any]) -> bool:
        """Say whether the rule holds for attributes by keyword, as `Instance` has them."""
        return self.root.holds(found)

    @property
    def keywords(self) -> frozenset[str]:
        """Return the keywords it asks for."""
        return frozenset(condition.keyword for condition in _conditions(self.root))

    def explain(self, found: Mapping[str, Any]) -> list[tuple[Condition, Any, bool]]:
        """Return every condition, the value found (None: absent), and whether it held; in the order written."""
        return [(c, found.get(c.keyword), c.holds(found)) for c in _conditions(self.root)]

    def why_not(self, found: Mapping[str, Any]) -> list[tuple[Condition, Any]]:
        """Return the conditions, with the value found, that kept the rule from holding; none where it holds."""
        return [(c, found.get(c.keyword)) for c in _culprits(self.root, found, wanted=True)]


def _conditions(node: Node) -> Iterator[Condition]:
    if isinstance(node, Condition):
        yield node
    else:
        for part in (node.part,) if isinstance(node, Not) else node.parts:
            yield from _conditions(part)


def _culprits(node: Node, found: Mapping[str, Any], wanted: bool) -> Iterator[Condition]:
    if node.holds(found) is wanted:
        return
    if isinstance(node, Condition):
        yield node
    elif isinstance(node, Not):
        yield from _culprits(node.part, found, not wanted)
    else:
        for part in node.parts:
            yield from _culprits(part, found, wanted)


def _number(value: Any) -> float | None:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value
    return float(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else None


def _equal(values: list[Any], literal: Literal) -> bool:
    if not values:
        return False
    if all(isinstance(v, (int, float)) for v in values):
        return literal.number is not None and all(v == literal.number for v in values)
    return "\\".join(map(str, values)).casefold() == literal.text.casefold()


def _quoted(text: str) -> str:
    plain = re.fullmatch(r"""[^\s<>=!~(),'"]+""", text) and text.lower() not in ("and", "or", "not", "in")
    return text if plain else "'" + text.replace("'", "''") + "'"


def parse(expression: str) -> Rule:
    """Parse an expression; opens no file.

    Raises:
        UsageError: `bad-expression` with what was found where; `unknown-keyword` with the nearest one; `patient-keyword` for
            what is about the patient; `bad-pattern`.

    >>> parse("Modality = CT and SliceThickness <= 3").holds({"Modality": "CT", "SliceThickness": 2.5})
    True
    """
    return _Parser(expression).parse()


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

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _next(self) -> tuple[str, str]:
        token = self._peek()
        self._at += 1
        return token

    def _takes(self, word: str) -> bool:
        kind, text = self._peek()
        if kind == "quoted" or text.lower() != word:
            return False
        self._at += 1
        return True

    def _unexpected(self, wanted: str) -> UsageError:
        kind, text = self._peek()
        found = "it ends" if kind == "end" else f"{text!r} stands"
        return UsageError(
            "bad-expression", f"the expression needs {wanted} where {found}", hint=f"in: {self._expression}"
        )

    def _joined(self, word: str) -> Node:
        part = self._negation if word == "and" else lambda: self._joined("and")
        parts = [part()]
        while self._takes(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def _negation(self) -> Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise UsageError("bad-expression", f"the expression is nested deeper than {_MAX_DEPTH}")
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

    def _condition(self) -> Condition:
        if self._peek()[0] != "word":
            raise self._unexpected("a DICOM keyword")
        keyword = self._next()[1]
        vr, multi = self._looked_up(keyword)
        sign = self._peek()[1].lower() if self._peek()[0] != "quoted" else ""
        sign = {"==": "=", "~": "matches"}.get(sign, sign)
        if sign not in ("=", "!=", *_ORDERS, "in", "contains", "matches"):
            raise self._unexpected("a comparison (=, !=, <, <=, >, >=, in, contains, matches)")
        self._next()
        if sign == "in":
            self._needs("(")
            values = [self._value()]
            while self._takes(","):
                values.append(self._value())
            self._needs(")")
            return Condition(keyword, sign, tuple(values), multi)
        value = self._value()
        if sign in _ORDERS and value.number is None:
            raise UsageError("bad-expression", f"{keyword} {sign} needs a number, not {value.text!r}")
        if sign in ("contains", "matches") and vr in _NUMERIC and not (multi and sign == "contains"):
            raise UsageError("bad-expression", f"{keyword} is a number: {sign} is for text")
        pattern = _pattern(value.text) if sign == "matches" else None
        return Condition(keyword, sign, (value,), multi, pattern)

    def _value(self) -> Literal:
        kind, text = self._peek()
        if kind not in ("word", "quoted"):
            raise self._unexpected("a value")
        self._next()
        if kind == "quoted":
            text = text[1:-1].replace(text[0] * 2, text[0])
        number = float(text) if _NUMBER.fullmatch(text) else None
        return Literal(text, number if number is not None and math.isfinite(number) else None)

    def _looked_up(self, keyword: str) -> tuple[str, bool]:
        """Return the value representation of a keyword and whether it may have several values."""
        if keyword in COMPUTED:
            return COMPUTED[keyword], False
        if keyword in KEYWORDS:
            _, vr, single = KEYWORDS[keyword]
        else:
            tag, vr, single = self._extra[keyword] = _from_dictionary(keyword)
            if tag >> 16 == 0x0010 or vr == "PN":
                raise UsageError("patient-keyword", f"{keyword} is about a person: no series is selected by that")
        if vr not in _NUMERIC and vr not in _TEXTUAL:
            raise UsageError("bad-expression", f"{keyword} holds no value to compare ({vr})")
        return vr, not single


def _tokens(expression: str) -> Iterator[tuple[str, str]]:
    position = 0
    text = expression.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise UsageError("bad-expression", f"the expression can't be read from {text[position:][:20].strip()!r} on")
        yield str(match.lastgroup), match[match.lastgroup or 0]
        position = match.end()


def _from_dictionary(keyword: str) -> tuple[int, str, bool]:
    """Return (tag, value representation, one value only) of any standard keyword.

    Raises:
        UsageError: `unknown-keyword`.
    """
    from pydicom.datadict import dictionary_VM, dictionary_VR, keyword_dict, tag_for_keyword

    tag = tag_for_keyword(keyword)
    if tag is None:
        near = _nearest(keyword, [*COMPUTED, *KEYWORDS]) or _nearest(keyword, keyword_dict)
        hint = f"did you mean {near}?" if near else "keywords are those of DICOM PS3.6, such as SeriesDescription"
        raise UsageError("unknown-keyword", f"{keyword!r} is no DICOM keyword", hint=hint)
    return int(tag), dictionary_VR(tag), dictionary_VM(tag) == "1"


def _nearest(word: str, known: Iterable[str]) -> str | None:
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
