"""Identifiers are nouns and verbs of the field: words that the code used in place of them do not return."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parent.parent / "src" / "tutelage"

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
"""Words that occur in no identifier of the package."""


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


@pytest.mark.parametrize("path", sorted(SRC.rglob("*.py")), ids=lambda path: str(path.relative_to(SRC)))
def test_identifiers_contain_no_abandoned_words(path: Path) -> None:
    names = set(identifiers(ast.parse(path.read_text())))
    assert sorted(name for name in names if words(name) & ABANDONED) == []
