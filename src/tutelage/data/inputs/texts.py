"""Texts in files as inputs: a text on each line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tutelage.data.batch import UNLABELLED
from tutelage.data.formats.text import read_rows
from tutelage.data.inputs.inputs import Inputs
from tutelage.data.modality import Tokens
from tutelage.data.split import Split
from tutelage.data.tokenizer import padding_of, token_rows, tokenize, tokenizer_identity
from tutelage.errors import TutelageError
from tutelage.files import read_file

TABLE = ".tsv"
SUFFIXES = (".txt", TABLE)


def text_inputs(paths: Sequence[Path], tokenizer: Any, length: int | None) -> Inputs:
    """The texts of files as a network takes them, cut or padded to ``length`` tokens.

    A ``.tsv`` file has ``label<TAB>text`` on each line, as those of a data set have; its labels are ignored. Another
    file has a text on each line. Empty lines are left out.

    Args:
        paths: the files.
        tokenizer: of the library ``tokenizers``.
        length: L; ``None`` for the length of the longest text, at most as in ``tokenize``.

    Raises:
        TutelageError: a file is missing or has no text.
    """
    texts = [text for path in paths for text in _texts(path)]
    if not texts:
        raise TutelageError("no text is given; name text files with a text on each line")
    if length is None:
        tokenized = tokenize({"train": texts}, tokenizer, "the texts")
        modality, tokens = tokenized.modality, tokenized.inputs["train"]
    else:
        padding = padding_of(tokenizer, "the texts")
        modality = Tokens(tokenizer.get_vocab_size(), padding, tokenizer_identity(tokenizer))
        tokens = token_rows(texts, tokenizer, length, padding)
    return Inputs(
        noun="text",
        names=tuple(texts),
        split=Split.of(tokens, torch.full((len(texts),), UNLABELLED), modality),
        outputs=(),
        counts=torch.ones(len(texts), dtype=torch.int64),
    )


def _texts(path: Path) -> list[str]:
    if not path.is_file():
        raise TutelageError(f"there is no text file {path}; name files with a text on each line")
    if path.suffix.lower() == TABLE:
        return [text for _, text in read_rows(path) if text]
    try:
        lines = read_file(path, None).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise TutelageError(f"{path} is not UTF-8 text; save it as such, with a text on each line") from error
    return [line.strip() for line in lines if line.strip()]
