"""Tokenizers of the ``tokenizers`` library, and texts as token numbers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.data.memory import check_fits
from tutelage.data.modality import Tokens
from tutelage.errors import TutelageError, one_line
from tutelage.files import as_path

TOKENIZER = "tokenizer.json"
LONGEST = 512  # tokens; longer texts are cut unless the tokenizer says otherwise
PADDING = ("[PAD]", "<pad>", "<|padding|>", "<|pad|>")  # names of the padding token, where the file does not tell


@dataclass(frozen=True)
class Tokenized:
    """Texts as token numbers.

    Attributes:
        inputs: (N, L) int64, by split.
        modality: their kind, with the identity of the tokenizer.
        cut: how many texts were longer than L.
    """

    inputs: Mapping[str, Tensor]
    modality: Tokens
    cut: int

    @property
    def length(self) -> int:
        """L."""
        return next(iter(self.inputs.values())).shape[1]


def tokenize(texts: Mapping[str, Sequence[str]], tokenizer: Any, what: str) -> Tokenized:
    """Convert the texts of each split to numbers, padded or cut to the length of the longest training text.

    That length is at most the maximum in the tokenizer's truncation, or 512. A cut text keeps the tokens that the
    tokenizer puts at its ends.

    Args:
        texts: by split; ``train`` is one of them.
        tokenizer: of the library ``tokenizers``; its padding and truncation are changed.
        what: the data set in error messages.

    Raises:
        TutelageError: the tokenizer has no padding token, or the numbers do not fit into memory.
    """
    limit = (tokenizer.truncation or {}).get("max_length", LONGEST)
    padding, identity = padding_of(tokenizer, what), tokenizer_identity(tokenizer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    lengths = {split: [len(text.ids) for text in tokenizer.encode_batch([*part])] for split, part in texts.items()}
    longest = min(limit, max(1, *lengths["train"]))
    count = sum(map(len, lengths.values()))
    check_fits(8 * count * longest, f"the {count} texts of {what}, {longest} tokens each", "lower the truncation")
    inputs = {split: token_rows(part, tokenizer, longest, padding) for split, part in texts.items()}
    cut = sum(length > longest for part in lengths.values() for length in part)
    return Tokenized(inputs, Tokens(tokenizer.get_vocab_size(), padding, identity), cut)


def token_rows(texts: Sequence[str], tokenizer: Any, length: int, padding: int) -> Tensor:
    """The token numbers of texts, padded or cut: (N, length) int64. Truncation and padding of the tokenizer change."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    rows = torch.full((len(texts), length), padding, dtype=torch.int64)
    for row, text in zip(rows, tokenizer.encode_batch([*texts]), strict=True):
        row[: len(text.ids)] = torch.tensor(text.ids, dtype=torch.int64)
    return rows


def tokenizer_identity(tokenizer: Any) -> str:
    """Sixteen hexadecimal digits of everything that determines the numbers of a text.

    Its padding and truncation do not count.
    """
    settings = {name: part for name, part in json.loads(tokenizer.to_str()).items() if name not in NOT_IDENTITY}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


NOT_IDENTITY = ("padding", "truncation", "version")


def padding_of(tokenizer: Any, what: str) -> int:
    """The number of the padding token.

    Raises:
        TutelageError: there is none; another token in its place would silently be taken for padding.
    """
    if tokenizer.padding:
        return int(tokenizer.padding["pad_id"])
    numbers = [number for name in PADDING if (number := tokenizer.token_to_id(name)) is not None]
    if not numbers:
        raise TutelageError(
            f"the tokenizer of {what} has no padding token ({', '.join(PADDING)}); add one, or set its padding: "
            "tokenizer.enable_padding(pad_id=..., pad_token=...), and save it again"
        )
    return int(numbers[0])


def library() -> Any:
    """The package ``tokenizers``.

    Raises:
        TutelageError: the extra ``text`` is not installed.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise TutelageError("texts need the extra: pip install 'tutelage[text]'") from error
    return tokenizers


def read_tokenizer(file: Path) -> Any:
    """The tokenizer in a file of the library ``tokenizers``.

    Raises:
        TutelageError: there is no such file, or it is another one.
    """
    tokenizers = library()
    if not file.is_file():
        raise TutelageError(
            f"text: there is no {file}; write one in Python, "
            f"tutelage.data.formats.text.make_tokenizer({str(file.parent)!r}), or copy the one of a pretrained network"
        )
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain exceptions
        raise TutelageError(
            f"{file} is no file of the tokenizers library ({one_line(error)}); write it again"
        ) from error


def open_tokenizer(name: str) -> Any:
    """The tokenizer of a network: a file, a folder, or a name of the Hugging Face hub.

    A folder without ``tokenizer.json``, and a name of the hub, are opened by ``transformers``, without running code
    that comes with them.

    Raises:
        TutelageError: it cannot be opened.
    """
    path = as_path(name)
    if path.is_file() or (path / TOKENIZER).is_file():
        return read_tokenizer(path if path.is_file() else path / TOKENIZER)
    try:
        import transformers
    except ImportError as error:
        raise TutelageError(f"the tokenizer {name} needs the extra: pip install 'tutelage[hf]'") from error
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, trust_remote_code=False).backend_tokenizer
    except Exception as error:  # errors of the library, network, disk and parsers have no common class
        raise TutelageError(
            f"the tokenizer {name} cannot be opened ({one_line(error)}); name a folder with {TOKENIZER}, or a model of "
            "the hub"
        ) from error
    return library().Tokenizer.from_str(tokenizer.to_str())
