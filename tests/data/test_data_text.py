"""Text data read from folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.data import open_data
from tutelage.data.modality import Tokens

TRAIN = "good\tA fine film.\nbad\tA dull and long film.\ngood\tfine, fine\n\tno label here\n"
TEST = "label\tsentence\ngood\ta fine film indeed and a very long one that has more words\nbad\tdull\n"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A folder with training and test texts and a tokenizer."""
    pytest.importorskip("tokenizers")
    from tutelage.data.formats.text import make_tokenizer

    (tmp_path / "train.tsv").write_text(TRAIN)
    (tmp_path / "test.tsv").write_text(TEST)
    make_tokenizer(tmp_path, size=60)
    return tmp_path


def test_texts_become_tokens(texts: Path) -> None:
    data = open_data(f"text:{texts}")
    assert data.classes == ("bad", "good")
    assert data.train.labels.tolist() == [1, 0, 1, -1]
    assert data.test.labels.tolist() == [1, 0]
    assert isinstance(data.modality, Tokens)
    tokens = data.train.inputs[torch.arange(4)]
    assert tokens.dtype == torch.int64
    assert int(tokens.max()) < data.modality.vocabulary
    assert (tokens[1] != 0).all()  # the longest training text is not padded
    assert (tokens[2][-1:] == 0).all()
    assert data.record[0]["cut"] == 1


def test_equal_texts_give_equal_tokenizers(texts: Path) -> None:
    from tutelage.data.formats.text import make_tokenizer

    before = (texts / "tokenizer.json").read_bytes()
    make_tokenizer(texts, size=60)
    assert (texts / "tokenizer.json").read_bytes() == before


def test_invalid_text_folders_are_refused(texts: Path, refused: Any) -> None:
    (texts / "test.tsv").write_text("strange\tword\n")
    with refused("'strange'", "test.tsv"):
        open_data(f"text:{texts}")
    (texts / "test.tsv").write_text("one column\n")
    with refused("test.tsv, line 1", "1 columns"):
        open_data(f"text:{texts}")
    (texts / "test.tsv").unlink()
    with refused("no test.tsv"):
        open_data(f"text:{texts}")
    with refused("image size", "text"):
        open_data(f"text:{texts}", image_size=8)


def test_invalid_tokenizer_file_is_refused(texts: Path, refused: Any) -> None:
    (texts / "tokenizer.json").write_text("{}")
    with refused("tokenizer.json", "no file of the tokenizers library"):
        open_data(f"text:{texts}")
    (texts / "tokenizer.json").unlink()
    with refused("there is no", "make_tokenizer"):
        open_data(f"text:{texts}")
