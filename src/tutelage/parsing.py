"""Parsing YAML, TOML and JSON into plain values, safely: no code, no memory exhaustion, no stack overflow."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import yaml

from tutelage.errors import one_line
from tutelage.text import value_text

_DEPTH = 50
_SURROGATE = re.compile("[\ud800-\udfff]")
_INTEGER = 2**63


def parse_yaml(text: str | bytes) -> Any:
    """Parse YAML text of plain values.

    Raises:
        ValueError: the text is not YAML, or contains an alias (``*name``: a few aliases can expand to billions of
            values), a duplicate key, more than 50 levels, an integer of more than 64 bits, or invalid Unicode.
    """
    return _plain(lambda: yaml.load(text, Loader=_Loader))


def parse_toml(text: str) -> Any:
    """Parse TOML text.

    Raises:
        ValueError: the text is not TOML, or contains more than 50 levels or an integer of more than 64 bits.
    """
    return _plain(lambda: tomllib.loads(text))


def parse_json(text: str | bytes) -> Any:
    """Parse JSON text.

    Raises:
        ValueError: the text is not JSON, or contains a duplicate key, a number that is not finite, more than 50 levels,
            an integer of more than 64 bits, or invalid Unicode.
    """
    return _plain(
        lambda: json.loads(text, object_pairs_hook=_finite_table, parse_constant=_refuse_constant), finite=True
    )


def write_yaml(value: Any) -> str:
    """Write plain values as YAML text that ``parse_yaml`` reads, without aliases."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain values, without aliases and duplicate keys."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._level = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Raise an error for aliases and for values too deep for Python's stack."""
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has an alias (*name): write the value itself")
        if self._level > _DEPTH:
            raise ValueError(f"it is nested more than {_DEPTH} levels deep")
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raise an error for a duplicate key, of which PyYAML uses the last."""
        _distinct([(self.construct_object(key, deep=True), None) for key, _ in node.value])
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write repeated values in full."""
        return True

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Escape control characters and line separators, which PyYAML reads as line breaks."""
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)


def _plain(parse: Callable[[], Any], *, finite: bool = False) -> Any:
    try:
        value = parse()
    except RecursionError:
        raise ValueError(f"it is nested more than {_DEPTH} levels deep") from None
    except Exception as error:  # parsers raise KeyError, IndexError, ... for values that do not match their tags
        raise ValueError(" ".join(str(error).split()) or one_line(error)) from error
    check_plain(value)
    floats = [entry for values in _levels(value) for entry in values if isinstance(entry, float)] if finite else []
    if not all(map(math.isfinite, floats)):
        raise ValueError("it has a number that is not finite")
    return value


def check_plain(value: Any) -> None:
    """Check that the parsers of this module can return this value.

    Raises:
        ValueError: the value has more than 50 levels, an integer of more than 64 bits, or invalid Unicode.
    """
    for level, values in enumerate(_levels(value)):
        if level > _DEPTH:
            raise ValueError(f"it is nested more than {_DEPTH} levels deep")
        huge = [entry for entry in values if isinstance(entry, int) and abs(entry) >= _INTEGER]
        if huge:
            raise ValueError(f"it has {value_text(huge[0])}, which is more than 64 bits")
        if any(isinstance(entry, str) and _SURROGATE.search(entry) for entry in values):
            raise ValueError("it has text that is no Unicode (a lone surrogate)")


def _levels(value: Any) -> Iterator[list[Any]]:
    """The levels of a nested value: the value, its entries, their entries, ..."""
    values = [value]
    while values:
        yield values
        values = [part for entry in values for part in _parts(entry)]


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, list | tuple | set) else []


def _distinct(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    table = {}
    for key, value in pairs:
        try:
            twice = key in table
        except TypeError:
            raise ValueError(f"it has the key {value_text(key)}: keys are text") from None
        if twice:
            raise ValueError(f"it has the key {value_text(key)} twice")
        table[key] = value
    return table


def _finite_table(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    for key, value in pairs:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{value_text(key)} is {value}, which is not finite")
    return _distinct(pairs)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it has the number {name}, which is not finite")
