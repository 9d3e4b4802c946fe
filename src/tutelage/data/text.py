"""Text data sets: tab-separated files and a tokenizer."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.data.data import Data, Split
from tutelage.data.memory import check_fits
from tutelage.data.modality import Tokens
from tutelage.errors import TutelageError, one_line

FILES = {"train": "train.tsv", "validation": "val.tsv", "test": "test.tsv"}
TOKENIZER = "tokenizer.json"
TEXT_COLUMNS = ("text", "sentence")
LAYOUT = "one text per line, label<TAB>text, or a first line that names the columns label and text"
LONGEST = 512  # tokens; longer texts are cut unless the tokenizer says otherwise


def load(folder: Path) -> Data:
    """Load ``train.tsv``, ``test.tsv`` and, if it exists, ``val.tsv`` with the folder's ``tokenizer.json``.

    Classes are the labels of the training split, sorted. Texts become token numbers, padded or cut to the length of the
    longest training text, at most 512 or the maximum length in the tokenizer's truncation.

    Args:
        folder: the folder of the files; ``make_tokenizer`` writes a tokenizer if there is none.

    Raises:
        TutelageError: a file is missing, a line has no label, or the tokenizer cannot be used; the text names it.
    """
    files = {split: folder / name for split, name in FILES.items() if (folder / name).is_file()}
    for split in ("train", "test"):
        if split not in files:
            raise TutelageError(f"text: {folder} has no {FILES[split]}; it has {LAYOUT}")
    rows = {split: _rows(file) for split, file in files.items()}
    classes = tuple(sorted({label for label, _ in rows["train"] if label}))
    if not classes:
        raise TutelageError(f"{files['train']} has no label at all; it has {LAYOUT}")
    numbers = {label: number for number, label in enumerate(classes)} | {"": -1}
    for split, lines in rows.items():
        unknown_label = next((label for label, _ in lines if label not in numbers), None)
        if unknown_label is not None:
            raise TutelageError(
                f"{files[split]} has the label {unknown_label!r:.80}, which {files['train']} does not have"
            )
    tokenizer = _tokenizer(folder / TOKENIZER)
    length = (tokenizer.truncation or {}).get("max_length", LONGEST)
    padding = (tokenizer.padding or {}).get("pad_id", 0)
    tokenizer.no_padding()
    encoded = {split: tokenizer.encode_batch([text for _, text in lines]) for split, lines in rows.items()}
    ids = {split: [text.ids for text in texts] for split, texts in encoded.items()}
    longest = min(length, max(1, *(len(text) for text in ids["train"])))
    count = sum(map(len, ids.values()))
    check_fits(8 * count * longest, f"the {count} texts of {folder}, {longest} tokens each", "lower the truncation")
    tokens = Tokens(tokenizer.get_vocab_size(), padding)
    splits = {
        split: Split.of(
            _padded(ids[split], longest, padding), torch.tensor([numbers[label] for label, _ in lines]), modality=tokens
        )
        for split, lines in rows.items()
    }
    cut = sum(len(text) > longest for texts in ids.values() for text in texts)
    record = {"source": "text", "length": longest, "cut": cut}
    return Data(
        f"text:{folder}",
        classes,
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("validation"),
        views=tokens.unaugmented,
        record=(record,),
    )


def make_tokenizer(folder: Path | str, size: int = 8000) -> Path:
    """Write ``tokenizer.json`` for a folder: byte-pair encoding of the lower-case words of ``train.tsv``.

    It has ``size`` tokens; 0 is the padding and 1 unknown characters. Equal texts result in an equal file.

    Raises:
        TutelageError: there is no ``train.tsv``, or the extra ``text`` is not installed.
    """
    file = Path(folder) / FILES["train"]
    if not file.is_file():
        raise TutelageError(f"text: there is no {file}; it has {LAYOUT}")
    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = library.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    trainer = library.trainers.BpeTrainer(vocab_size=size, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    tokenizer.train_from_iterator([text for _, text in _rows(file)], trainer)
    written = Path(folder) / TOKENIZER
    tokenizer.save(str(written))
    return written


def _rows(file: Path) -> list[tuple[str, str]]:
    """Read (label, text) of each line; the label is empty for unlabelled texts."""
    try:
        with file.open(encoding="utf-8", newline="") as stream:
            lines = list(csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (UnicodeDecodeError, csv.Error) as error:
        raise TutelageError(f"{file} cannot be read: {one_line(error)}; save it as UTF-8 text") from error
    label, text = 0, 1
    header = [name.strip().lower() for name in lines[0]] if lines else []
    text_column = next((name for name in TEXT_COLUMNS if name in header), None)
    if text_column is not None and "label" in header:
        label, text = header.index("label"), header.index(text_column)
        lines = lines[1:]
    rows = []
    for number, line in enumerate(lines, 1 + (text_column is not None)):
        if not line:
            continue
        if len(line) <= max(label, text):
            raise TutelageError(f"{file}, line {number} has {len(line)} columns; it has {LAYOUT}")
        rows.append((line[label].strip(), line[text].strip()))
    if not rows:
        raise TutelageError(f"{file} has no text in it; it has {LAYOUT}")
    return rows


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise TutelageError("text: needs the extra: pip install 'tutelage[text]'") from error
    return tokenizers


def _tokenizer(file: Path) -> Any:
    library = _library()
    if not file.is_file():
        raise TutelageError(
            f"text: there is no {file}; write one in Python, tutelage.data.text.make_tokenizer({str(file.parent)!r}), "
            "or copy the one of a pretrained network"
        )
    try:
        tokenizer = library.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain exceptions
        raise TutelageError(
            f"{file} is no file of the tokenizers library ({one_line(error)}); write it again"
        ) from error
    return tokenizer


def _padded(texts: list[list[int]], length: int, padding: int) -> Tensor:
    """Cut or pad texts to (N, length) int64."""
    padded = torch.full((len(texts), length), padding, dtype=torch.int64)
    for row, ids in zip(padded, texts, strict=True):
        row[: min(len(ids), length)] = torch.tensor(ids[:length], dtype=torch.int64)
    return padded
