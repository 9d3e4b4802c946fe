"""YAML, TOML and JSON text as plain values: nothing in it can run code, use up memory or exhaust the stack."""

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
    """The value of a YAML text of plain values.

    Raises:
        ValueError: it is not YAML, has an alias (``*name``, a few of which make billions of values), a key twice in a
            table, more than 50 levels, an integer of more than 64 bits, or text that is no Unicode.
    """
    return _plain(lambda: yaml.load(text, Loader=_Loader))


def parse_toml(text: str) -> Any:
    """The table of a TOML text.

    Raises:
        ValueError: it is not TOML, has more than 50 levels or an integer of more than 64 bits.
    """
    return _plain(lambda: tomllib.loads(text))


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, has a key twice in an object, a number that is not finite, more than 50 levels, an
            integer of more than 64 bits, or text that is no Unicode.
    """
    return _plain(
        lambda: json.loads(text, object_pairs_hook=_finite_table, parse_constant=_refuse_constant), finite=True
    )


def write_yaml(value: Any) -> str:
    """Plain values as a YAML text that ``parse_yaml`` reads: no alias stands for a value that occurs twice."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain values, without aliases and without keys that occur twice."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._level = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases, and what is too deep for Python's stack."""
        if self.check_event(yaml.AliasEvent):
            raise ValueError("it has an alias (*name): write the value itself")
        if self._level > _DEPTH:
            raise ValueError(f"it is nested more than {_DEPTH} levels deep")
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that occurs twice, of which PyYAML takes the last."""
        _distinct([(self.construct_object(key, deep=True), None) for key, _ in node.value])
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Write a value that occurs twice out twice."""
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
    except Exception as error:  # parsers raise KeyError, IndexError, ... for values that their tags do not fit
        raise ValueError(" ".join(str(error).split()) or one_line(error)) from error
    check_plain(value)
    floats = [each for values in _levels(value) for each in values if isinstance(each, float)] if finite else []
    if not all(map(math.isfinite, floats)):
        raise ValueError("it has a number that is not finite")
    return value


def check_plain(value: Any) -> None:
    """Refuse what no reader of this module gives back.

    Raises:
        ValueError: it has more than 50 levels, an integer of more than 64 bits, or text that is no Unicode.
    """
    for level, values in enumerate(_levels(value)):
        if level > _DEPTH:
            raise ValueError(f"it is nested more than {_DEPTH} levels deep")
        huge = [each for each in values if isinstance(each, int) and abs(each) >= _INTEGER]
        if huge:
            raise ValueError(f"it has {value_text(huge[0])}, which is more than 64 bits")
        if any(isinstance(each, str) and _SURROGATE.search(each) for each in values):
            raise ValueError("it has text that is no Unicode (a lone surrogate)")


def _levels(value: Any) -> Iterator[list[Any]]:
    """A value, then its parts, then theirs, ..."""
    values = [value]
    while values:
        yield values
        values = [part for each in values for part in _parts(each)]


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
