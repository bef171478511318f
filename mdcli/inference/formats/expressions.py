"""Work out the `$` strings of a MONAI Bundle without running Python: a short list of constructs, everything else refused by name.

A bundle is a download, and MONAI hands these strings to `eval`. Here they are only parsed (`ast.parse`); a walk over the syntax
tree computes plain values, with limits on their size so that a few characters cannot fill the memory or the day.
"""

from __future__ import annotations

import ast
import math
import operator
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from mdcli.errors import ConfigError

MAX_LENGTH = 4_000
"""Characters of one expression."""
MAX_ITEMS = 10_000
"""Items of a list, those of the lists in it included, and characters of a text that an expression may make."""
MAX_BITS = 256
"""Bits of a whole number."""
MAX_DIGITS = 20
"""Digits before or after the point that `round` may be asked for."""

REFERENCE = re.compile(r"@\w*(?:(?:::|#)\w*)*")
"""An `@` reference (MONAI's own pattern, with its old separator `#`)."""
_PLACE = "__reference_"

DTYPES = frozenset(
    ["float", "double", "half", "bfloat16", "float16", "float32", "float64", "bool", "int", "long"]
    + [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
)
_DTYPE_MODULES = frozenset({"torch", "np", "numpy"})


@dataclass(frozen=True)
class Word:
    """A name that stands for itself, such as `torch.float32`: the last part of it."""

    name: str


@dataclass(frozen=True)
class Lambda:
    """A function of one argument that is never run: who reads it looks for a shape of its syntax tree that it knows.

    Attributes:
        argument: the argument's name.
        body: the syntax tree of what it gives.
        key: where the configuration says it.
    """

    argument: str
    body: ast.expr
    key: str

    def __str__(self) -> str:
        return f"lambda {self.argument}: {ast.unparse(self.body)}"


Resolve = Callable[[str], Any]
"""Gives what an `@` reference stands for, by its id with `::` between the parts."""


def evaluate(text: str, key: str, resolve: Resolve) -> Any:
    """Return what an expression says.

    Args:
        text: the expression, without its `$`.
        key: where the configuration says it, for messages.
        resolve: called for the references that are needed, and only for those.

    Returns:
        A number, text, bool, None, a list, tuple or dict of such, a `Word`, a `Lambda`, or whatever `resolve` gave.

    Raises:
        ConfigError: `refused-expression`, naming the key and the construct.

    >>> evaluate("[1.5] * 3 if @fine else [3.0] * 3", "pixdim", {"fine": True}.get)
    [1.5, 1.5, 1.5]
    """
    if len(text) > MAX_LENGTH:
        _refuse(key, f"it has {len(text)} characters, over {MAX_LENGTH}")
    names: dict[str, str] = {}

    def place(match: re.Match[str]) -> str:
        name = f"{_PLACE}{len(names)}"
        names[name] = match.group()[1:].replace("#", "::")
        # Spaces keep a reference apart from a word beside it.
        return f" {name} "

    if _PLACE in text:
        _refuse(key, f"the name {_PLACE}")
    tree = _parse(REFERENCE.sub(place, text).strip(), key)
    try:
        return _Walk(key, names, resolve).value(tree)
    except RecursionError:
        _refuse(key, "what is nested too deeply")


def _parse(text: str, key: str) -> ast.expr:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return ast.parse(text, mode="eval").body
    except SyntaxError:
        first = text.split(maxsplit=1)[0] if text.split() else ""
        _refuse(key, "an import" if first in ("import", "from") else "what is no Python expression")
    except (ValueError, RecursionError, MemoryError):
        _refuse(key, "what is nested too deeply or holds a null character")


def _refuse(key: str, construct: str) -> NoReturn:
    raise ConfigError(
        "refused-expression",
        f"{key}: the expression uses {construct}, and md runs no code out of a model",
        hint="write the value itself into a copy of the configuration",
    )


_BINARY: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Not: operator.not_,
}
_COMPARE: Mapping[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}
_NAMED = {
    ast.Attribute: "an attribute",
    ast.Call: "a call",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.JoinedStr: "a formatted text",
    ast.NamedExpr: "an assignment",
    ast.Await: "await",
    ast.Yield: "yield",
    ast.YieldFrom: "yield",
    ast.Starred: "a starred value",
    ast.Set: "a set",
    ast.Slice: "a slice",
}


def dotted(node: ast.expr) -> str | None:
    """Return a chain of names such as `torch.float32` as text, or None where the node is something else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float))


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, Word))


class _Walk:
    """Computes one expression's syntax tree."""

    def __init__(self, key: str, names: Mapping[str, str], resolve: Resolve) -> None:
        self._key, self._names, self._resolve = key, names, resolve
        self._functions: Mapping[str, Callable[..., Any]] = {
            "len": self._len,
            "sum": self._sum,
            "min": min,
            "max": max,
            "abs": abs,
            "round": self._round,
            "range": self._range,
            "list": list,
            "tuple": tuple,
            "int": int,
            "float": float,
            "str": str,
            "bool": bool,
        }

    def value(self, node: ast.expr) -> Any:
        """Return what a node says, within the limits."""
        match node:
            case ast.Constant():
                found = self._constant(node)
            case ast.Name():
                found = self._name(node)
            case ast.Attribute():
                found = self._word(node)
            case ast.List():
                found = [self.value(item) for item in node.elts]
            case ast.Tuple():
                found = tuple(self.value(item) for item in node.elts)
            case ast.Dict():
                found = self._dict(node)
            case ast.BinOp():
                found = self._binary(node)
            case ast.UnaryOp():
                found = self._unary(node)
            case ast.BoolOp():
                found = self._bool(node)
            case ast.Compare():
                found = self._compare(node)
            case ast.IfExp():
                found = self.value(node.body if self._truth(node.test) else node.orelse)
            case ast.Subscript():
                found = self._item(node)
            case ast.Call():
                found = self._call(node)
            case ast.Lambda():
                found = self._lambda(node)
            case _:
                self._refuse(_NAMED.get(type(node), type(node).__name__))
        return self._limited(found)

    def _refuse(self, construct: str) -> NoReturn:
        _refuse(self._key, construct)

    def _limited(self, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > MAX_BITS:
            self._refuse(f"a whole number of {value.bit_length()} bits")
        if isinstance(value, str) and len(value) > MAX_ITEMS:
            self._refuse(f"a value of {len(value)} items")
        self._weight(value)
        return value

    def _weight(self, value: Any) -> int:
        """Return the items of a value in all, a list that is shared as often as it stands; refuse too many, and wrong numbers.

        A few characters make lists that share one another; whoever walks through them would never end.
        """
        count, left = 0, [value]
        while left:
            item = left.pop()
            if isinstance(item, complex):
                self._refuse("a complex")
            if isinstance(item, float) and not math.isfinite(item):
                self._refuse("a number that is not finite")
            if isinstance(item, (list, tuple, dict)):
                count += len(item)
                if count > MAX_ITEMS:
                    self._refuse(f"a value of more than {MAX_ITEMS} items")
                left.extend(item.values() if isinstance(item, dict) else item)
        return count

    def _constant(self, node: ast.Constant) -> Any:
        if not _is_plain(node.value):
            self._refuse(f"a {type(node.value).__name__}")
        if isinstance(node.value, str) and _PLACE in node.value:
            self._refuse("a reference inside a text")
        return node.value

    def _name(self, node: ast.Name) -> Any:
        if node.id not in self._names:
            self._refuse(f"the name {node.id!r}")
        reference = self._names[node.id]
        if not reference:
            self._refuse("'@' without a name")
        return self._resolve(reference)

    def _word(self, node: ast.Attribute) -> Word:
        name = dotted(node)
        module, _, word = (name or "").partition(".")
        if module not in _DTYPE_MODULES or word not in DTYPES:
            self._refuse(f"the attribute {self._source(node)}")
        return Word(word)

    def _source(self, node: ast.expr) -> str:
        """Return a node as it was written, for messages."""
        text = ast.unparse(node)
        for place, reference in reversed(list(self._names.items())):
            text = text.replace(place, f"@{reference}")
        return text if len(text) <= 60 else text[:57] + "..."

    def _dict(self, node: ast.Dict) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, item in zip(node.keys, node.values, strict=True):
            name = None if key is None else self.value(key)
            if not isinstance(name, (str, int)):
                self._refuse("a key that is neither text nor a whole number")
            found[str(name)] = self.value(item)
        return found

    def _binary(self, node: ast.BinOp) -> Any:
        kind = type(node.op)
        if kind not in _BINARY:
            self._refuse(f"the operator {kind.__name__}")
        left, right = self.value(node.left), self.value(node.right)
        numbers = _is_number(left) and _is_number(right)
        joined = kind is ast.Add and type(left) is type(right) and isinstance(left, (str, list, tuple))
        if kind is ast.Mult and not numbers:
            items, times = (left, right) if isinstance(left, (str, list, tuple)) else (right, left)
            if not isinstance(items, (str, list, tuple)) or not isinstance(times, int):
                self._refuse("a product of what are no numbers")
            size = (len(items) if isinstance(items, str) else self._weight(items)) * times
            if size > MAX_ITEMS:
                self._refuse(f"a value of {size} items")
        elif not numbers and not joined:
            self._refuse(f"{kind.__name__} of what are no numbers")
        if kind is ast.Pow and not self._small_power(left, right):
            self._refuse("a power that is too large")
        return self._computed(_BINARY[kind], left, right)

    def _small_power(self, base: Any, exponent: Any) -> bool:
        if isinstance(base, float) or isinstance(exponent, float):
            return True
        return bool(abs(exponent) <= MAX_BITS and int(base).bit_length() * abs(exponent) <= 2 * MAX_BITS)

    def _computed(self, function: Callable[..., Any], *values: Any) -> Any:
        try:
            return function(*values)
        except (ArithmeticError, TypeError, ValueError, LookupError) as error:
            self._refuse(f"what can't be computed ({type(error).__name__})")

    def _unary(self, node: ast.UnaryOp) -> Any:
        kind = type(node.op)
        if kind not in _UNARY:
            self._refuse(f"the operator {kind.__name__}")
        if kind is ast.Not:
            return not self._truth(node.operand)
        operand = self.value(node.operand)
        if not _is_number(operand):
            self._refuse("a sign before what is no number")
        return _UNARY[kind](operand)

    def _truth(self, node: ast.expr) -> bool:
        found = self.value(node)
        if not _is_plain(found) and not isinstance(found, (list, tuple, dict)):
            self._refuse(f"the truth of a {type(found).__name__}")
        return bool(found)

    def _bool(self, node: ast.BoolOp) -> Any:
        found: Any = None
        for item in node.values:
            found = self.value(item)
            if bool(found) is isinstance(node.op, ast.Or):
                break
        return found

    def _compare(self, node: ast.Compare) -> bool:
        left = self.value(node.left)
        for operation, item in zip(node.ops, node.comparators, strict=True):
            right = self.value(item)
            within = isinstance(operation, (ast.In, ast.NotIn))
            several = isinstance(right, (str, list, tuple, dict)) and all(map(_is_plain, right))
            # Lists within lists may be shared many times over: comparing them can take for ever.
            if not _is_plain(left) or not (several if within else _is_plain(right)):
                self._refuse("a comparison of what are no plain values")
            if not self._computed(_COMPARE[type(operation)], left, right):
                return False
            left = right
        return True

    def _item(self, node: ast.Subscript) -> Any:
        held, index = self.value(node.value), self.value(node.slice)
        if not isinstance(held, (str, list, tuple, dict)) or not isinstance(index, (int, str)):
            self._refuse("an item of what is no list")
        return self._computed(operator.getitem, held, str(index) if isinstance(held, dict) else index)

    def _call(self, node: ast.Call) -> Any:
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        if name not in self._functions:
            self._refuse(f"a call of {self._source(node.func)}")
        if node.keywords or any(isinstance(item, ast.Starred) for item in node.args):
            self._refuse(f"a call of {name!r} with named or starred values")
        values = [self.value(item) for item in node.args]
        flat = all(_is_plain(v) or (isinstance(v, (list, tuple)) and all(map(_is_plain, v))) for v in values)
        if not flat and name not in ("len", "sum", "list", "tuple"):
            self._refuse(f"a call of {name!r} with what are no plain values")
        if name in ("int", "float", "str", "bool") and not all(map(_is_plain, values)):
            self._refuse(f"a call of {name!r} with a list")
        return self._computed(self._functions[name], *values)

    def _len(self, value: Any) -> int:
        if not isinstance(value, (str, list, tuple, dict)):
            self._refuse("the length of what is no list")
        return len(value)

    def _sum(self, values: Any, start: Any = 0) -> Any:
        if not isinstance(values, (list, tuple)):
            self._refuse("the sum of what is no list")
        if isinstance(start, list):
            if not all(isinstance(item, list) for item in values):
                self._refuse("the sum of what are no lists")
            if len(start) + sum(map(len, values)) > MAX_ITEMS:
                self._refuse(f"a value of more than {MAX_ITEMS} items")
            return [*start, *(item for part in values for item in part)]
        if not all(map(_is_number, values)) or not _is_number(start):
            self._refuse("the sum of what are no numbers")
        return sum(values, start)

    def _round(self, value: Any, digits: Any = None) -> Any:
        whole = digits is None or isinstance(digits, int)
        if not _is_number(value) or not whole:
            self._refuse("rounding of what is no number, or to what is no whole number")
        # Python works out 10 to that power.
        if digits is not None and abs(digits) > MAX_DIGITS:
            self._refuse(f"rounding to more than {MAX_DIGITS} digits")
        return round(value, digits)

    def _range(self, *bounds: Any) -> list[int]:
        if not all(isinstance(bound, int) for bound in bounds):
            self._refuse("a range of what are no whole numbers")
        found = range(*bounds)
        # len() itself overflows for the longest ranges.
        if found.start != found.stop and abs((found.stop - found.start) // found.step) > MAX_ITEMS:
            self._refuse(f"a range of more than {MAX_ITEMS} numbers")
        return list(found)

    def _lambda(self, node: ast.Lambda) -> Lambda:
        said = node.args
        if len(said.args) != 1 or said.posonlyargs or said.kwonlyargs or said.vararg or said.kwarg or said.defaults:
            self._refuse("a function that does not take one value")
        return Lambda(said.args[0].arg, node.body, self._key)
