"""Text data sets: tab-separated files and a tokenizer."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tutelage.data.data import Data, Split
from tutelage.data.tokenizer import TOKENIZER, library, read_tokenizer, tokenize
from tutelage.errors import TutelageError, one_line

FILES = {"train": "train.tsv", "validation": "val.tsv", "test": "test.tsv"}
TEXT_COLUMNS = ("text", "sentence")
LAYOUT = "one text per line, label<TAB>text, or a first line that names the columns label and text"


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
    rows = {split: read_rows(file) for split, file in files.items()}
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
    texts = {split: [text for _, text in lines] for split, lines in rows.items()}
    labels = {split: torch.tensor([numbers[label] for label, _ in lines]) for split, lines in rows.items()}
    record = {"source": "text"}
    return text_data(f"text:{folder}", classes, texts, labels, read_tokenizer(folder / TOKENIZER), record)


def text_data(
    name: str,
    classes: tuple[str, ...],
    texts: Mapping[str, Sequence[str]],
    labels: Mapping[str, Tensor],
    tokenizer: Any,
    record: Mapping[str, Any],
) -> Data:
    """A data set of texts; the names of its samples are the texts themselves.

    Args:
        name, classes: as ``Data`` has them.
        texts: of the splits ``train``, ``test`` and, if there is one, ``validation``.
        labels: (N,) int64 of each split; -1 for none.
        tokenizer: of the library ``tokenizers``.
        record: the entry of the record about the source; length and number of cut texts are added.
    """
    tokenized = tokenize(texts, tokenizer, name)
    tokens = tokenized.modality
    splits = {split: Split.of(inputs, labels[split], modality=tokens) for split, inputs in tokenized.inputs.items()}
    return Data(
        name,
        classes,
        train=splits["train"],
        test=splits["test"],
        validation=splits.get("validation"),
        views=tokens.unaugmented,
        record=({**record, "length": tokenized.length, "cut": tokenized.cut},),
        files=tuple(texts["train"]),
        test_files=tuple(texts["test"]),
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
    tokenizers = library()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=size, special_tokens=["[PAD]", "[UNK]"], show_progress=False)
    tokenizer.train_from_iterator([text for _, text in read_rows(file)], trainer)
    written = Path(folder) / TOKENIZER
    tokenizer.save(str(written))
    return written


def read_rows(file: Path) -> list[tuple[str, str]]:
    """The label and the text of each line of a file; the label is empty for unlabelled texts.

    Raises:
        TutelageError: the file is no UTF-8 text, has no text, or a line has no label.
    """
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
