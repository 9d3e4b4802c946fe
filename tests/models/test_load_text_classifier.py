"""Text classifiers of transformers as teachers: their own tokens, padding, and other tokenizers."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tutelage
from tests.models.loading import importable
from tutelage.data import Data, open_data
from tutelage.data.modality import Tokens
from tutelage.errors import TutelageWarning
from tutelage.models.load import make_model
from tutelage.models.tapped import Tapped
from tutelage.runs.models import open_model
from tutelage.runs.predict_files import predict_files

tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "fine", "film", "dull", "a", "and", "long"]
TRAIN = "".join(f"{label}\t{text}\n" for label, text in [("good", "a fine film"), ("bad", "a dull and long film")] * 8)


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a random BERT of three layers and its tokenizer."""
    importable("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
        num_labels=2,
        pad_token_id=0,
        hidden_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    folder = tmp_path / "bert"
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    write_tokenizer(folder, WORDS)
    return folder


def write_tokenizer(folder: Path, words: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    ends = (("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    tokenizer.post_processor = tokenizers.processors.BertProcessing(*ends)
    tokenizer.save(str(folder / "tokenizer.json"))


def films(folder: Path, words: list[str] = WORDS) -> Data:
    """Texts in a folder with a tokenizer of these words."""
    write_tokenizer(folder, words)
    (folder / "train.tsv").write_text(TRAIN)
    (folder / "test.tsv").write_text("good\tfine\nbad\tdull and long\n")
    return open_data(f"text:{folder}")


def load(network: Path, data: Data, classes: int = 2) -> Tapped:
    built = make_model(
        f"hf/{network}", num_classes=classes, input_shape=data.input_shape, modality=data.modality, pretrained=True
    )
    return Tapped(built.module).eval()


@pytest.mark.filterwarnings("ignore")
def test_logits_are_those_of_the_library_for_texts_without_padding(network: Path, tmp_path: Path) -> None:
    import transformers

    model, data = load(network, films(tmp_path / "films")), films(tmp_path / "films")
    tokens = data.test.inputs[torch.arange(2)]
    assert tokens[0].tolist() == [2, 4, 3, 0, 0, 0, 0]
    original = transformers.AutoModelForSequenceClassification.from_pretrained(network).eval()
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[:1], original(input_ids=tokens[:1, :3]).logits)
        longer = torch.cat([tokens, torch.zeros(2, 4, dtype=torch.int64)], 1)
        torch.testing.assert_close(model(longer), model(tokens), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("file", "tokenizer"), [("films.txt", False), ("films.tsv", False), ("films", True)])
def test_classes_of_texts_in_files_are_those_of_the_library(
    network: Path, tmp_path: Path, file: str, tokenizer: bool
) -> None:
    import transformers

    texts = ["a fine film", "a long and dull film"]
    path = tmp_path / file
    path.write_text("".join(f"{'good' + chr(9) if file.endswith('.tsv') else ''}{text}\n" for text in texts))
    rows = predict_files(
        f"hf/{network}",
        [path],
        classes=["good", "bad"],
        tokenizer=str(network) if tokenizer else None,
        device="cpu",
        workers=0,
    ).rows
    original = transformers.AutoModelForSequenceClassification.from_pretrained(network).eval()
    words = {word: number for number, word in enumerate(WORDS)}
    for text, row in zip(texts, rows, strict=True):
        with torch.no_grad():
            tokens = torch.tensor([[2, *(words[word] for word in text.split()), 3]])
            best = original(input_ids=tokens).logits.softmax(1)[0]
        assert row["text"] == text
        assert row["class"] == ["good", "bad"][int(best.argmax())]
        assert row["probability"] == pytest.approx(float(best.max()), abs=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_roles_are_found_by_tracing(network: Path, tmp_path: Path) -> None:
    data = films(tmp_path / "films")
    model = load(network, data).trace(data.test.inputs[torch.arange(2)])
    assert model.stages == ("stage1", "stage2", "stage3")
    assert str(model.taps["stage2"]) == "network.bert.encoder.layer.1"
    assert model.tap(data.test.inputs[torch.arange(2)], ("embedding",))["embedding"].shape == (2, 16)


@pytest.mark.filterwarnings("ignore")
def test_another_tokenizer_is_refused(network: Path, tmp_path: Path, refused: Any) -> None:
    other = [*WORDS[:4], *reversed(WORDS[4:])]  # of the same size
    with refused("bert' was trained on texts of another tokenizer", "use one tokenizer for both"):
        load(network, films(tmp_path / "films", other))
    with warnings.catch_warnings():
        warnings.simplefilter("error", TutelageWarning)
        load(network, films(tmp_path / "films"))


@pytest.mark.filterwarnings("ignore:.*Torch.*", "ignore::FutureWarning")
def test_unknown_tokenizers_are_named_in_a_warning(network: Path, tmp_path: Path, refused: Any) -> None:
    data = films(tmp_path / "films")
    nameless = replace(data.modality, tokenizer="")
    arguments: dict[str, Any] = {"num_classes": 2, "input_shape": data.input_shape, "pretrained": True}
    with pytest.warns(TutelageWarning, match="the data does not record its tokenizer") as records:
        make_model(f"hf/{network}", modality=nameless, **arguments)
    assert [record.filename for record in records if record.category is TutelageWarning] == [__file__]
    with refused("has 10 tokens and the tokenizer of the data 11"), pytest.warns(TutelageWarning):
        make_model(f"hf/{network}", modality=Tokens(11), **arguments)
    with refused("is padded with token 0 and the texts of the data with token 1"), pytest.warns(TutelageWarning):
        make_model(f"hf/{network}", modality=Tokens(10, 1), **arguments)
    with refused("takes texts of up to 12 tokens and the data has 13"), pytest.warns(TutelageWarning):
        make_model(f"hf/{network}", modality=nameless, **arguments | {"input_shape": (13,)})


def test_another_order_of_the_classes_gives_a_warning(network: Path, tmp_path: Path) -> None:
    data = films(tmp_path / "films")
    settings = json.loads((network / "config.json").read_text())
    for names, warned in ((("bad", "good"), False), (("good", "bad"), True)):
        settings |= {"id2label": dict(enumerate(names)), "label2id": {name: n for n, name in enumerate(names)}}
        (network / "config.json").write_text(json.dumps(settings))
        with warnings.catch_warnings(record=True) as records:
            warnings.simplefilter("always")
            open_model(f"hf/{network}", data)
        messages = [str(record.message) for record in records if record.category is TutelageWarning]
        assert any("calls its classes differently" in message for message in messages) == warned, messages


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["hinton", "fitnet", "at"])
def test_it_teaches_a_network_of_the_zoo(method: str, network: Path, tmp_path: Path) -> None:
    films(tmp_path / "films")
    data = f"text:{tmp_path / 'films'}"
    options: dict[str, Any] = {"epochs": 2, "device": "cpu", "batch_size": 4}
    result = tutelage.distill(f"hf/{network}", "textcnn-2-8", data, method=method, **options)
    assert result.metrics["test"]["teacher_accuracy"] is not None
    assert all(parameter.isfinite().all() for parameter in result.model.parameters())
