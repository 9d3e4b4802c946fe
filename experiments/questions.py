"""Sets of texts with classes, such as TREC-6 and SST-2, for experiments."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiments.paired import ROOT
from tutelage.data import Data, open_data
from tutelage.data.conditions.condition import stream
from tutelage.data.formats.text import make_tokenizer
from tutelage.data.tokenizer import read_tokenizer

FOLDER = ROOT / "runs" / "data"


@lru_cache(maxsize=1)
def questions(vocabulary: int, length: int) -> Data:
    """TREC-6: the official 5,452 training and 500 test questions, by the type of their answer.

    Args:
        vocabulary: the size of the tokenizer of the training questions.
        length: longer questions are cut to this number of tokens.
    """
    return tokenized(texts("trec6"), vocabulary, length)


def texts(name: str, training: int | None = None) -> dict[str, Any]:
    """The file of a set: ``classes``; ``train`` and ``test``, each with ``text`` and ``label``.

    Args:
        name: of the set.
        training: draw so many training texts, the same each time; ``None`` for all of them.
    """
    content: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    if training is not None:
        train = content["train"]
        rows = stream("training texts", 0).permutation(len(train["text"]))[:training]
        content["train"] = {field: [values[row] for row in rows] for field, values in train.items()}
    return content


def tokenized(content: Mapping[str, Any], vocabulary: int, length: int) -> Data:
    """The texts of ``texts`` as data, in their order, with a tokenizer of the training texts."""
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "test"):
            _write(Path(folder) / f"{split}.tsv", content["classes"], content[split])
        file = make_tokenizer(folder, vocabulary)
        tokenizer = read_tokenizer(file)
        tokenizer.enable_truncation(length)
        tokenizer.save(str(file))
        return open_data(f"text:{folder}")


def _write(file: Path, classes: Sequence[str], part: Mapping[str, Any]) -> None:
    lines = [f"{classes[label]}\t{text}" for label, text in zip(part["label"], part["text"], strict=True)]
    file.write_text("\n".join(lines), encoding="utf-8")
