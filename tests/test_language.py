"""Identifiers are nouns and verbs of the field: words that the code used in place of them do not return."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SRC = ROOT / "src" / "tutelage"
TESTS = ROOT / "tests"

ABANDONED = frozenset(
    [
        "asked",
        "begun",
        "beyond",
        "heard",
        "hole",
        "holes",
        "kept",
        "lesson",
        "lessons",
        "mine",
        "operate",
        "ours",
        "picture",
        "pictures",
        "reservation",
        "said",
        "seat",
        "seats",
        "shown",
        "strange",
        "stranger",
        "strangers",
        "such",
        "taken",
        "taught",
        "theirs",
        "told",
        "untaught",
        "wanted",
    ]
)
"""Words that occur in no identifier of the package and of its tests."""

NOT_NOUNS = frozenset(["found", "gone", "left_out", "made"])
"""Participles that no variable is called, although longer names contain them."""

SENTENCE = frozenset(["begun", "beyond", "kept", "shown", "such", "taken"])
"""Abandoned words that are plain English in the name of a test, which is a sentence."""


def identifiers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name) | ast.keyword(arg=str(name)) | ast.Attribute(attr=name) | ast.Name(id=name):
                yield name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name


def words(identifier: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", identifier)}


def test_words_of_an_identifier() -> None:
    assert words("_no_of_ONNXFilesTold2") == {"no", "of", "onnx", "files", "told"}


def abandoned(path: Path) -> list[str]:
    """The identifiers of a file that contain an abandoned word, or are a participle."""
    names = set(identifiers(ast.parse(path.read_text())))
    return sorted(name for name in names if words(name) & forbidden_words(name) or name in NOT_NOUNS)


def forbidden_words(identifier: str) -> frozenset[str]:
    return ABANDONED - SENTENCE if identifier.startswith("test_") else ABANDONED


@pytest.mark.parametrize("name", ["told", "kept_rows", "made", "test_rows_are_told_apart"])
def test_abandoned_words_are_recognized(name: str, tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(f"def {name}():\n    rows_made = test_rows_are_kept\n")
    assert abandoned(tmp_path / "code.py") == [name]


FILES = [*SRC.rglob("*.py"), *TESTS.rglob("*.py")]


@pytest.mark.parametrize("path", sorted(FILES), ids=lambda path: str(path.relative_to(ROOT)))
def test_identifiers_contain_no_abandoned_words(path: Path) -> None:
    assert abandoned(path) == []
