"""Untrusted YAML, TOML and JSON gives plain values or an error of one line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tutelage.config import Config, read_config
from tutelage.errors import TutelageError, unknown
from tutelage.parsing import parse_json, parse_toml, parse_yaml, write_yaml
from tutelage.studies.study import Study
from tutelage.text import value_text

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("parse", "text", "pattern"),
    [
        (parse_yaml, BOMB + "lr: *i", "alias"),
        (parse_yaml, "a: &a [*a]", "alias"),
        (parse_yaml, "lr: 1\nlr: 2", "'lr' twice"),
        (parse_yaml, "x: {lr: 1, lr: 2}", "'lr' twice"),
        (parse_yaml, "[" * 5000, "levels"),
        (parse_yaml, "{a: " * 5000, "levels"),
        (parse_yaml, "- " * 5000, "levels"),
        (parse_yaml, "x: " + "9" * 5000, "digits"),
        (parse_yaml, "x: " + "9" * 30, "64 bits"),
        (parse_yaml, "!!python/object/apply:os.getcwd []", "python"),
        (parse_yaml, "!!timestamp x", r"."),
        (parse_yaml, "!!bool x", r"."),
        (parse_yaml, "? [a]\n: 1", r"."),
        (parse_yaml, r'"\ud800"', "Unicode"),
        (parse_json, "[" * 100_000, "levels"),
        (parse_json, '{"a": 1, "a": 2}', "'a' twice"),
        (parse_json, '{"a": 1e999}', "'a' is inf"),
        (parse_json, "[[NaN]]", "NaN"),
        (parse_json, "[[1e999]]", "finite"),
        (parse_json, "9" * 5000, "digits"),
        (parse_json, "-" + "9" * 30, "64 bits"),
        (parse_json, r'"\ud800"', "Unicode"),
        (parse_json, b"\xff", r"."),
        (parse_toml, "a = " + "[" * 5000, r"."),
        (parse_toml, "a = 1\na = 2", r"."),
        (parse_toml, "a = " + "9" * 30, "64 bits"),
    ],
)
def test_refused_text(parse: Callable[[Any], Any], text: Any, pattern: str) -> None:
    start_time = time.monotonic()
    with pytest.raises(ValueError, match=pattern) as exc_info:
        parse(text)
    assert time.monotonic() - start_time < 2
    assert len(str(exc_info.value).splitlines()) == 1


def test_ordinary_files_are_read() -> None:
    assert parse_yaml("a: [1, 2.5, x, null, true]\nb: {c: y}") == {"a": [1, 2.5, "x", None, True], "b": {"c": "y"}}
    assert parse_json('{"a": [1, 2.5, "\\ud83d\\ude00"]}') == {"a": [1, 2.5, "😀"]}
    assert parse_toml("a = [1, 2.5]") == {"a": [1, 2.5]}


def test_a_json_configuration_is_read_as_json(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"data": "digits", "settings": {"name": "\\ud83d\\ude00"}}')
    assert Config(**read_config(tmp_path / "a.json")).settings == {"name": "😀"}


def test_written_values_are_read_back() -> None:
    shared_list = [1, 2]
    value = {
        "a": shared_list,
        "b": shared_list,
        "c": "x\x85y\u2028z\x1b",
        "é": "ü",
        "d": "a\nb",
        "e": 1e308,
        "f": "1",
        "g": None,
    }
    assert parse_yaml(write_yaml(value)) == value


def test_an_alias_bomb_in_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(BOMB + "lr: *i")
    with pytest.raises(TutelageError, match="alias") as exc_info:
        read_config(tmp_path / "a.yaml")
    assert len(str(exc_info.value)) < 300


def test_values_in_messages_are_short() -> None:
    deep: Any = 1
    for _ in range(200):
        deep = [deep] * 2
    for value in ("x" * 10**6, list(range(10**6)), 10**9999, deep, {"a" * 10**6: 1}, object()):
        assert len(value_text(value)) < 1000
    with pytest.raises(TutelageError) as exc_info:
        Config(lr="x" * 10**6)
    assert len(str(exc_info.value)) < 400
    assert len(str(unknown("method", "x" * 10**6, ["a"]))) < 400


@pytest.mark.parametrize(
    ("fields", "name", "text"),
    [
        ({"epochs": "9" * 20}, "epochs", "more than 64 bits"),
        ({"epochs": 2**63}, "epochs", "more than 64 bits"),
        ({"student": "\ud800"}, "student", "no Unicode"),
        ({"teacher": ["a", "\udcff"]}, "teacher", "no Unicode"),
        ({"data": "folder:caf\udce9"}, "data", "no Unicode"),  # a file's name that is no UTF-8
        ({"settings": {"weight": {"a": [10**400]}}}, "settings", "more than 64 bits"),
        ({"settings": {"a\udfff": 1}}, "settings", "no Unicode"),
    ],
)
def test_fields_that_no_file_gives_back_are_refused(fields: dict[str, Any], name: str, text: str) -> None:
    with pytest.raises(TutelageError, match=f"the configuration: {name}: .*{text}"):
        Config(**fields)
    valid_config = Config(epochs=2**63 - 1, student="né", settings={"a": "\x1b"})
    assert Config(**parse_yaml(valid_config.as_yaml())) == valid_config


@pytest.mark.parametrize("fields", [{"name": "\ud800"}, {"seeds": [10**30]}, {"train": {"lr": 0.1, "epochs": 10**30}}])
def test_study_fields_that_cannot_be_saved_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(TutelageError, match=r"[Uu]nicode|64 bits|seeds"):
        Study(**fields)
