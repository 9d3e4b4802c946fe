"""Texts in the format of the Hugging Face hub. The library ``datasets`` is an imitation, or the real one if present."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.data import open_data
from tutelage.data.tokenizer import TOKENIZER
from tutelage.errors import TutelageWarning

tokenizers = pytest.importorskip("tokenizers")

ROWS = {
    "train": {"text": ["a fine film", "a dull film", "fine"], "label": [1, 0, 1]},
    "test": {"text": ["dull", "fine, really fine and long"], "label": [0, 1]},
}


@dataclass
class Value:
    dtype: str


@dataclass
class ClassLabel:
    names: list[str]

    dtype = "int64"

    @property
    def num_classes(self) -> int:
        return len(self.names)


class Image:
    """A feature that no column here has."""


class Rows:
    """A split with columns."""

    def __init__(self, columns: dict[str, list[Any]], features: dict[str, Any]) -> None:
        self.columns, self.features = columns, features

    def __getitem__(self, column: str) -> list[Any]:
        return self.columns[column]


Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs an imitation of ``datasets`` that loads these columns, whatever the name."""

    def put(rows: dict[str, dict[str, list[Any]]], names: tuple[str, ...] = ("bad", "good")) -> None:
        def load_dataset(name: str) -> dict[str, Rows]:
            return {
                split: Rows(
                    columns,
                    {key: ClassLabel([*names]) if key == "label" else Value("string") for key in columns},
                )
                for split, columns in rows.items()
            }

        fake: Any = types.ModuleType("datasets")
        fake.load_dataset, fake.Image, fake.ClassLabel = load_dataset, Image, ClassLabel
        monkeypatch.setitem(sys.modules, "datasets", fake)

    return put


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A folder with a tokenizer of words that puts [CLS] before and [SEP] behind each text."""
    folder = tmp_path / "network"
    folder.mkdir()
    write_tokenizer(folder, ["a", "fine", "film", "dull", "really", "and", "long", ","])
    return folder


def write_tokenizer(folder: Path, words: list[str], pad: str = "[PAD]") -> None:
    vocabulary = {word: number for number, word in enumerate(["[CLS]", "[SEP]", "[UNK]", pad, *words])}
    made_tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    made_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made_tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 1), ("[CLS]", 0))
    made_tokenizer.save(str(folder / TOKENIZER))


def test_texts_are_read_with_the_tokenizer_of_a_network(install: Install, tokenizer: Path) -> None:
    install(ROWS)
    data = open_data(f"hf:somebody/films@{tokenizer}")
    assert data.classes == ("bad", "good")
    assert data.train.inputs[torch.arange(3)].tolist() == [[0, 4, 5, 6, 1], [0, 4, 7, 6, 1], [0, 5, 1, 3, 3]]
    assert data.test.inputs[torch.arange(2)].tolist() == [[0, 7, 1, 3, 3], [0, 5, 11, 8, 1]]  # cut, with its end
    assert data.test.labels.tolist() == [0, 1]
    assert (data.modality.vocabulary, data.modality.padding) == (12, 3)  # type: ignore[attr-defined]
    assert data.test_files == ("dull", "fine, really fine and long")
    record = data.record[0]
    assert (record["text_column"], record["label_column"], record["cut"], record["length"]) == ("text", "label", 1, 5)


def test_tokenizer_in_the_folder_is_the_default(install: Install, tokenizer: Path, refused: Any) -> None:
    install(ROWS)
    assert open_data(f"hf:{tokenizer}").input_shape == (5,)
    with refused("hf:somebody/films has texts, which need a tokenizer", "hf:somebody/films@TOKENIZER"):
        open_data("hf:somebody/films")


def test_validation_split_replaces_a_missing_test_split(install: Install, tokenizer: Path) -> None:
    install({"train": ROWS["train"], "validation": ROWS["test"], "test": {"text": ["x"], "label": [-1]}})
    with pytest.warns(TutelageWarning, match="no test split, so its validation split is the test split"):
        data = open_data(f"hf:{tokenizer}")
    assert data.test.labels.tolist() == [0, 1]
    assert data.record[0]["test_from"] == "validation"


def test_data_sets_without_one_column_of_texts_are_refused(install: Install, tokenizer: Path, refused: Any) -> None:
    pair = {"question": ["a"], "answer": ["b"], "label": [1]}
    install({"train": pair, "test": pair})
    with refused("several columns of texts (question, answer)", "join or rename them to text"):
        open_data(f"hf:{tokenizer}")
    install({"train": {"label": [1]}, "test": {"label": [1]}})
    with refused("has no column of images (Image) or texts (string)"):
        open_data(f"hf:{tokenizer}")
    install({"train": {"text": ["a"]}, "test": {"text": ["a"]}})
    with refused("has no column of class labels"):
        open_data(f"hf:{tokenizer}")
    install(ROWS)
    with refused("has texts and no images", "leave out image_size"):
        open_data(f"hf:{tokenizer}", image_size=32)


def test_tokenizers_without_padding_are_refused(install: Install, tokenizer: Path, refused: Any) -> None:
    install(ROWS)
    write_tokenizer(tokenizer, ["a"], pad="[EMPTY]")
    with refused("has no padding token", "enable_padding"):
        open_data(f"hf:{tokenizer}")


@pytest.mark.filterwarnings("ignore")  # of the library about itself
def test_saved_data_sets_are_read_by_the_library(tokenizer: Path, tmp_path: Path, monkeypatch: Any) -> None:
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("the extra hf is not installed")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    parts = {split: datasets.Dataset.from_dict(rows, features=features) for split, rows in ROWS.items()}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / TOKENIZER).write_bytes((tokenizer / TOKENIZER).read_bytes())
    for split, part in parts.items():
        part.to_parquet(tmp_path / "repo" / f"{split}-00000.parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = open_data(f"hf:{tmp_path / 'saved'}")
    assert data.train.labels.tolist() == [1, 0, 1]
    assert open_data(f"hf:{tmp_path / 'repo'}@{tokenizer}").fingerprint == data.fingerprint
