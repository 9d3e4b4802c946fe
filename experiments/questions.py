"""TREC-6, questions by the type of their answer, for experiments on texts."""

from __future__ import annotations

import json
import tempfile
from functools import lru_cache
from pathlib import Path

from experiments.paired import ROOT
from tutelage.data import Data, open_data
from tutelage.data.formats.text import make_tokenizer
from tutelage.data.tokenizer import read_tokenizer

FILE = ROOT / "runs" / "data" / "trec6.json"


@lru_cache(maxsize=1)
def questions(vocabulary: int, length: int) -> Data:
    """The official 5,452 training and 500 test questions of six classes.

    Args:
        vocabulary: the size of the tokenizer of the training questions.
        length: longer questions are cut to this number of tokens.
    """
    content = json.loads(FILE.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "test"):
            pairs = zip(content[split]["label"], content[split]["text"], strict=True)
            lines = [f"{content['classes'][label]}\t{text}" for label, text in pairs]
            (Path(folder) / f"{split}.tsv").write_text("\n".join(lines), encoding="utf-8")
        file = make_tokenizer(folder, vocabulary)
        tokenizer = read_tokenizer(file)
        tokenizer.enable_truncation(length)
        tokenizer.save(str(file))
        return open_data(f"text:{folder}")
