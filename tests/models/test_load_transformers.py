"""Loading image classifiers of transformers."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.loading import FakeTimm, importable, load, refusal
from tutelage.data import Data, Split
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.models.external.transformers import LogitsOf
from tutelage.models.load import make_model
from tutelage.models.weights import save_weights
from tutelage.runs.models import open_model, open_trained


class FakeClassifier(nn.Module):
    """A fake of a transformers classifier for colour images."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(num_channels=3, image_size=32)
        self.head = nn.Linear(3, num_labels)

    def forward(self, pixel_values: Tensor) -> types.SimpleNamespace:
        return types.SimpleNamespace(logits=self.head(pixel_values.mean((2, 3))))


Fake = Callable[[dict[str, Any] | None], list[dict[str, Any]]]


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Installs a fake of transformers with this preprocessor file; returns the list of its calls."""

    def install(preprocessor: dict[str, Any] | None) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        class AutoModelForImageClassification:
            @staticmethod
            def from_pretrained(name: str, **options: Any) -> nn.Module:
                calls.append({"name": name, **options})
                return FakeClassifier(options.get("num_labels", 7))

        class ImageProcessingMixin:
            @staticmethod
            def get_image_processor_dict(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
                if preprocessor is None:
                    raise OSError(f"no preprocessor_config.json in {name}")
                return preprocessor, {}

        fake: Any = types.ModuleType("transformers")
        fake.AutoModelForImageClassification = AutoModelForImageClassification
        fake.ImageProcessingMixin = ImageProcessingMixin
        monkeypatch.setitem(sys.modules, "transformers", fake)
        return calls

    return install


COLOURS = {"image_mean": [0.3, 0.4, 0.8], "image_std": [0.1, 0.2, 0.3]}


@pytest.mark.parametrize(
    ("preprocessor", "channels", "mean", "std"),
    [
        (COLOURS, 3, (0.3, 0.4, 0.8), (0.1, 0.2, 0.3)),
        (COLOURS, 1, (0.5,), (0.2,)),
        (COLOURS | {"do_normalize": False}, 3, (0, 0, 0), (1, 1, 1)),
    ],
)
def test_hf(
    transformers: Fake,
    preprocessor: dict[str, Any],
    channels: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    calls = transformers(preprocessor)
    model = load("hf/owner/name", shape=(channels, 32, 32))
    assert calls[0]["name"] == "owner/name"
    assert calls[0]["num_labels"] == 5
    assert calls[0]["trust_remote_code"] is False
    assert model.input_size == (3, 32, 32)
    assert model.mean_std is not None
    assert model.mean_std[0] == pytest.approx(mean)
    assert model.mean_std[1] == pytest.approx(std)
    images = torch.rand(2, channels, 32, 32)
    assert isinstance(model.module, LogitsOf)
    torch.testing.assert_close(
        model.module(images), model.module.network(pixel_values=images.expand(-1, 3, -1, -1)).logits
    )


def test_hf_warns_of_an_unknown_normalisation(transformers: Fake) -> None:
    transformers(None)
    with pytest.warns(TutelageWarning, match=r"'hf/owner/name' has no preprocessor_config\.json") as records:
        assert make_model("hf/owner/name", num_classes=5, input_shape=(3, 32, 32)).mean_std is None
    assert records[0].filename == __file__  # the warning points to the caller


def test_hf_does_not_look_up_a_known_normalisation(transformers: Fake) -> None:
    transformers(None)  # without a preprocessor file
    model = make_model("hf/owner/name", num_classes=5, input_shape=(3, 32, 32), normalised=True)
    assert model.mean_std is None


def test_an_hf_student_is_opened_without_a_warning(transformers: Fake, tmp_path: Path) -> None:
    """The file records the normalisation of its training; bare weights do not."""
    transformers(None)
    part = Split.of(torch.zeros(8, 32, 32, 3, dtype=torch.uint8), torch.arange(8) % 5)
    data = Data("tiny", tuple("abcde"), part, part)
    network = FakeClassifier(5)
    save_weights(tmp_path / "own.safetensors", network, {"mean": [0.5], "std": [0.25]})
    save_weights(tmp_path / "bare.safetensors", network, {})
    assert open_model(f"hf/owner/name@{tmp_path / 'own.safetensors'}", data).std.item() == 0.25
    opened_model = open_trained(f"hf/owner/name@{tmp_path / 'bare.safetensors'}", data, ((0.5,), (0.125,)))
    assert opened_model.model.std.item() == 0.125
    with pytest.warns(TutelageWarning, match="will not be normalised as in its training"):
        open_model(f"hf/owner/name@{tmp_path / 'bare.safetensors'}", data)


def test_published_classes_remain_for_data_without_classes(transformers: Fake, timm: FakeTimm) -> None:
    calls = transformers(COLOURS)
    part = Split.of(torch.zeros(8, 32, 32, 3, dtype=torch.uint8), torch.full((8,), -1))
    data = Data("tiny", (), part, part)
    assert open_trained("hf/owner/name", data).model(torch.rand(2, 3, 32, 32)).shape == (2, 7)
    assert "num_labels" not in calls[0]
    open_trained("timm/resnet18", data)
    assert "num_classes" not in timm.calls[0]


def test_hf_with_other_channels_raises(transformers: Fake) -> None:
    transformers(COLOURS)
    assert "takes images of 3 channels and the data has 4" in refusal("hf/owner/name", shape=(4, 32, 32))


@pytest.mark.filterwarnings("ignore")
def test_real_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    importable("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=3
    )
    hf_model = transformers.AutoModelForImageClassification.from_config(config)
    hf_model.save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "preprocessor_config.json").write_text(json.dumps(COLOURS))

    model = load(f"hf/{tmp_path / 'tiny'}", shape=(3, 32, 32))
    assert model.mean_std == ((0.3, 0.4, 0.8), (0.1, 0.2, 0.3))
    assert model.module(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    stem = "resnet.embedder.embedder.convolution.weight"
    assert torch.equal(model.module.state_dict()[stem], hf_model.state_dict()[stem])

    message = refusal(f"hf/{tmp_path / 'nowhere'}", shape=(3, 32, 32))
    assert "nowhere' cannot be built: OSError" in message


REMOTE_CODE = """
import pathlib
(pathlib.Path(__file__).parent / "it ran").touch()
from transformers import PretrainedConfig, PreTrainedModel
class TheirConfig(PretrainedConfig):
    model_type = "theirs"
class TheirModel(PreTrainedModel):
    config_class = TheirConfig
"""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model_type", ["theirs", "resnet"])
def test_code_that_comes_with_weights_is_not_run(
    model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder with custom classes raises, or is loaded as the architecture of transformers that it names."""
    importable("transformers")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import transformers

    folder = tmp_path / "gift"
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic", "num_labels": 5}
    config = transformers.ResNetConfig(**sizes)
    transformers.AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text()) | {
        "model_type": model_type,
        "auto_map": {"AutoConfig": "gift_code.TheirConfig", "AutoModelForImageClassification": "gift_code.TheirModel"},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "preprocessor_config.json").write_text(json.dumps(COLOURS))
    (folder / "gift_code.py").write_text(REMOTE_CODE)
    modules = set(sys.modules)
    if model_type == "theirs":
        with pytest.raises(TutelageError, match="contains custom code which must be executed"):
            load(f"hf/{folder}", shape=(3, 32, 32))
    else:
        assert type(load(f"hf/{folder}", shape=(3, 32, 32)).module.network).__module__.startswith("transformers.")
    assert not list(tmp_path.rglob("it ran"))
    assert not [name for name in set(sys.modules) - modules if "gift_code" in name]
