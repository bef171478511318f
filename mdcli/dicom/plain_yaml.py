"""Read a small YAML file that a stranger may have written: data only, no key twice, no aliases that unfold without end."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import suppress
from typing import Any

MAX_ITEMS = 200_000
"""Items of a document with its aliases unfolded."""


class PlainYamlError(ValueError):
    """The text is no YAML of that kind; says why and where."""


def load_yaml(text: str) -> Any:
    """Return what a YAML (or JSON) document says, by the safe loader.

    Raises:
        PlainYamlError: no YAML, nested too deeply, a key twice (YAML would take the last), or aliases that unfold to very many
            items (a few lines can make billions) or to themselves.
    """
    import yaml

    if text.lstrip().startswith(("{", "[")):
        # JSON that YAML reads otherwise: tabs, numbers such as 1e0, escaped surrogate pairs.
        with suppress(json.JSONDecodeError):
            try:
                return json.loads(text, object_pairs_hook=_pairs, parse_constant=_constant)
            except RecursionError as error:
                raise PlainYamlError("nested too deeply") from error
    # The loader in Python, not in C: that one overflows its stack on deep nesting.
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _unfolded(node, {})
        return loader.construct_document(node)
    except PlainYamlError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        raise PlainYamlError(f"not YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise PlainYamlError("nested too deeply") from error


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise PlainYamlError(f"key {twice!r} is there twice")
    return found


def _constant(text: str) -> Any:
    raise PlainYamlError(f"{text} is no number")


def _unfolded(node: Any, known: dict[int, int]) -> int:
    """Return how many items a node has with its aliases unfolded."""
    import yaml

    line = f"line {node.start_mark.line + 1}"
    if id(node) in known:
        if not known[id(node)]:
            raise PlainYamlError(f"{line}: an alias that holds itself")
        return known[id(node)]
    known[id(node)], inner = 0, []
    if isinstance(node, yaml.SequenceNode):
        inner = node.value
    elif isinstance(node, yaml.MappingNode):
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        twice, count = next(iter(keys.most_common(1)), ("", 0))
        if count > 1:
            raise PlainYamlError(f"{line}: key {twice!r} is there twice")
        inner = [item for pair in node.value for item in pair]
    known[id(node)] = 1 + sum(_unfolded(item, known) for item in inner)
    if known[id(node)] > MAX_ITEMS:
        raise PlainYamlError(f"{line}: more than {MAX_ITEMS} items")
    return known[id(node)]
