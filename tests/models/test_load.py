"""Loading networks: built in, user code, timm and transformers, and the errors of each."""

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

from tutelage.data import Data, Split
from tutelage.errors import TutelageError, TutelageWarning
from tutelage.models.external.common import BuiltModel
from tutelage.models.external.transformers import LogitsOf
from tutelage.models.load import make_model
from tutelage.models.resnet import ResNet
from tutelage.models.weights import save_weights
from tutelage.runs.models import open_model, open_trained

USER_CODE = '''
import torch
from torch import nn


class Net(nn.Module):
    """Stores its arguments."""

    def __init__(self, num_classes, image_shape, hidden=3):
        super().__init__()
        self.called_with = (num_classes, image_shape, hidden)
        self.fc = nn.Linear(2, num_classes)


class Inner:
    Net = Net


def keywords_only(*, image_size, in_channels):
    net = nn.Identity()
    net.called_with = (image_size, in_channels)
    return net


def anything(**options):
    net = nn.Identity()
    net.called_with = options
    return net


def passes_on(*, weights=None, **options):
    """As in torchvision: accepts any keyword and passes it to a class that does not."""
    return nn.Linear(4, **options) if weights else takes_only_classes(**options)


def takes_only_classes(num_classes):
    return nn.Linear(4, num_classes)


instance = nn.Linear(2, 3)


def needs_more(num_classes, layers):
    return nn.Identity()


def fails(num_classes):
    raise RuntimeError("no luck today\\nand a second line")


def returns_a_number():
    return 7


class NotAModule:
    pass


number = 3
'''


@pytest.fixture
def user_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, which is not on sys.path; each test has another name."""
    name = f"nets_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(USER_CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    return name


def load(spec: str, *, shape: tuple[int, int, int] = (1, 8, 8), pretrained: bool = False) -> BuiltModel:
    return make_model(spec, num_classes=5, input_shape=shape, pretrained=pretrained)


def refusal(spec: str, **options: Any) -> str:
    """The one-line error message."""
    with pytest.raises(TutelageError) as caught:
        load(spec, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


# --- built-in networks


def test_built_in_network() -> None:
    built = load("resnet8")
    assert isinstance(built.module, ResNet)
    assert built.module(torch.rand(2, 1, 8, 8)).shape == (2, 5)
    assert (built.mean_std, built.input_size) == (None, None)


def test_unknown_names_get_a_suggestion() -> None:
    assert "did you mean 'resnet8'" in refusal("resnet-8")


@pytest.mark.parametrize("spec", ["resnet8", "somewhere:Net"])
def test_pretrained_without_published_weights_raises(spec: str) -> None:
    assert refusal(spec, pretrained=True).startswith(f"no published weights for {spec!r}")


@pytest.mark.parametrize(("num_classes", "shape"), [(0, (1, 8, 8)), (5, (0, 8, 8)), (5, (1, 8, -8)), (5, ())])
def test_invalid_sizes_raise(num_classes: int, shape: Any) -> None:
    with pytest.raises(TutelageError) as caught:
        make_model("resnet8", num_classes=num_classes, input_shape=shape)
    assert f"{num_classes} classes" in str(caught.value)
    assert str(shape) in str(caught.value)


# --- module:attr


@pytest.mark.parametrize(
    ("attribute", "shape", "called_with"),
    [
        ("Net", (1, 8, 8), (5, (1, 8, 8), 3)),
        ("Inner.Net", (1, 8, 8), (5, (1, 8, 8), 3)),
        ("keywords_only", (3, 16, 16), (16, 3)),
        ("keywords_only", (3, 16, 24), ((16, 24), 3)),
        (
            "anything",
            (1, 8, 8),
            {"num_classes": 5, "in_channels": 1, "image_shape": (1, 8, 8), "image_size": 8},
        ),
    ],
)
def test_a_factory_gets_the_arguments_it_accepts(
    user_code: str, attribute: str, shape: tuple[int, int, int], called_with: object
) -> None:
    built = load(f"{user_code}:{attribute}", shape=shape)
    assert built.module.called_with == called_with
    assert built.mean_std is None


def test_a_factory_is_called_again_without_refused_keywords(user_code: str) -> None:
    module = load(f"{user_code}:passes_on").module
    assert isinstance(module, nn.Linear)
    assert module.out_features == 5


def test_an_instance_is_copied(user_code: str) -> None:
    first, second = load(f"{user_code}:instance").module, load(f"{user_code}:instance").module
    assert isinstance(first, nn.Linear)
    assert isinstance(second, nn.Linear)
    assert torch.equal(first.weight, second.weight)
    with torch.no_grad():
        first.weight.zero_()
    assert second.weight.any()


def test_sys_path_is_restored(user_code: str) -> None:
    before = list(sys.path)
    load(f"{user_code}:Net")
    refusal(f"{user_code}_missing:Net")
    assert sys.path == before


@pytest.mark.parametrize(
    ("attribute", "parts"),
    [
        ("Nett", ["no attribute 'Nett'", "did you mean 'Net'?"]),
        ("Inner.Nett", ["no attribute 'Nett'", "did you mean 'Net'?"]),
        ("zzzzzz", ["no attribute 'zzzzzz'", "name a class"]),
        ("number", ["is of type int", "name a class or function"]),
        ("returns_a_number", ["returned an object of type int", "return an nn.Module"]),
        ("NotAModule", ["returned an object of type NotAModule", "return an nn.Module"]),
        ("needs_more", ["missing a required argument: 'layers'", "default", "num_classes, in_channels"]),
        ("fails", ["called with (num_classes=5)", "RuntimeError: no luck today;"]),
    ],
)
def test_invalid_attributes_raise(user_code: str, attribute: str, parts: list[str]) -> None:
    message = refusal(f"{user_code}:{attribute}")
    assert f"{user_code}:{attribute}" in message
    assert [part for part in parts if part not in message] == []


def test_the_original_error_is_the_cause(user_code: str) -> None:
    with pytest.raises(TutelageError) as caught:
        load(f"{user_code}:fails")
    assert isinstance(caught.value.__cause__, RuntimeError)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("import a_package_that_is_not_there", "No module named 'a_package_that_is_not_there'"),
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit('use main()')", "SystemExit: use main()"),
    ],
)
def test_a_module_that_fails_to_import_raises(user_code: str, tmp_path: Path, code: str, text: str) -> None:
    name = f"broken_{user_code}"
    (tmp_path / f"{name}.py").write_text(code)
    message = refusal(f"{name}:Net")
    assert message.startswith(f"importing {name!r} for the model '{name}:Net' failed: ")
    assert text in message


@pytest.mark.parametrize("path", ["nowhere_at_all", "nowhere_at_all.nets", "nets/small.py"])
def test_a_missing_module_raises(path: str) -> None:
    message = refusal(f"{path}:Net")
    assert message.startswith("no module ")
    assert f"'{path}:Net'" in message
    assert "without .py" in message


@pytest.mark.parametrize("spec", [":Net", "package:", ":"])
def test_an_incomplete_name_raises(spec: str) -> None:
    assert f"{spec!r} is not of the form module:attr" in refusal(spec)


# --- timm/NAME


class FakeTimmModel(nn.Module):
    """A model with the attributes of timm models that are read."""

    def __init__(self, num_classes: int, in_chans: int, config: dict[str, Any]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.pretrained_cfg = self.default_cfg = config
        self.stem = nn.Conv2d(in_chans, 4, 3)
        self.head = nn.Linear(4, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stem(x)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.forward_features(x).mean((2, 3)))  # type: ignore[no-any-return]


class FakeTimm(types.ModuleType):
    """A fake of timm that records its calls."""

    def __init__(self) -> None:
        super().__init__("timm")
        self.calls: list[dict[str, Any]] = []

    def list_models(self) -> list[str]:
        return ["resnet18", "resnet10t", "vit_tiny"]

    def create_model(self, name: str, *, pretrained: bool = False, **options: Any) -> nn.Module:
        self.calls.append({"name": name, "pretrained": pretrained, **options})
        if name == "resnet10t":
            raise ValueError("no weights\nfor it")
        config = {
            "input_size": (3, 224, 224),
            "fixed_input_size": name == "vit_tiny",
            "mean": (0.3, 0.4, 0.8),
            "std": (0.1, 0.2, 0.3),
        }
        return FakeTimmModel(options.get("num_classes", 9), options["in_chans"], config)


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> FakeTimm:
    fake = FakeTimm()
    monkeypatch.setitem(sys.modules, "timm", fake)
    return fake


def test_timm_without_weights_has_no_normalisation(timm: FakeTimm) -> None:
    built = load("timm/resnet18", shape=(2, 16, 16))
    assert timm.calls == [{"name": "resnet18", "pretrained": False, "num_classes": 5, "in_chans": 2}]
    assert built.module(torch.rand(3, 2, 16, 16)).shape == (3, 5)
    assert (built.mean_std, built.input_size) == (None, None)


@pytest.mark.parametrize(("channels", "mean", "std"), [(3, (0.3, 0.4, 0.8), (0.1, 0.2, 0.3)), (1, (0.5,), (0.2,))])
def test_timm_with_weights_has_their_normalisation(
    timm: FakeTimm, channels: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    built = load("timm/resnet18.a1_in1k", shape=(channels, 16, 16), pretrained=True)
    assert timm.calls[0]["name"] == "resnet18.a1_in1k"
    assert timm.calls[0]["pretrained"] is True
    assert built.mean_std is not None
    assert built.mean_std[0] == pytest.approx(mean)
    assert built.mean_std[1] == pytest.approx(std)
    assert built.input_size == (3, 224, 224)


@pytest.mark.parametrize(
    ("name", "shape", "sizes"),
    [
        ("vit_tiny", (3, 32, 48), [None, (32, 48)]),
        ("vit_tiny", (3, 224, 224), [None]),
        ("resnet18", (3, 32, 48), [None]),
    ],
)
def test_timm_models_of_fixed_size_get_the_image_size(
    timm: FakeTimm, name: str, shape: tuple[int, int, int], sizes: list[object]
) -> None:
    load(f"timm/{name}", shape=shape)
    assert [call.get("img_size") for call in timm.calls] == sizes


def test_timm_addresses_are_not_checked_against_its_list(timm: FakeTimm) -> None:
    load("timm/hf-hub:timm/some_model")
    assert timm.calls[0]["name"] == "hf-hub:timm/some_model"


@pytest.mark.parametrize(
    ("spec", "parts"),
    [
        ("timm/resnet81", ["no model 'resnet81'", "did you mean 'resnet18'?", "timm.list_models()"]),
        ("timm/resnet10t", ["'timm/resnet10t' cannot be built: ValueError: no weights;", "check the name"]),
    ],
)
def test_timm_errors(timm: FakeTimm, spec: str, parts: list[str]) -> None:
    message = refusal(spec)
    assert [part for part in parts if part not in message] == []


@pytest.mark.parametrize(
    ("spec", "package", "extra"), [("timm/resnet18", "timm", "timm"), ("hf/x", "transformers", "hf")]
)
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, spec: str, package: str, extra: str) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    monkeypatch.setitem(sys.modules, package, None)  # makes the import fail
    assert refusal(spec) == f"{spec!r} needs the extra: pip install 'tutelage[{extra}]'"


@pytest.mark.parametrize("build", ["cpu", "cu128"])
def test_timm_is_installed_without_replacing_a_build_of_torch(monkeypatch: pytest.MonkeyPatch, build: str) -> None:
    monkeypatch.setattr(torch, "__version__", f"2.9.1+{build}")
    monkeypatch.setitem(sys.modules, "timm", None)
    message = refusal("timm/resnet18")
    assert "pip install --no-deps timm" in message
    assert f"--no-deps torchvision --index-url https://download.pytorch.org/whl/{build} " in message
    assert "for torch 2.9.1)" in message


def test_a_broken_extra_has_another_error_than_a_missing_one(
    user_code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    message = refusal("timm/resnet18")
    assert "installed and cannot be imported: operator torchvision::nms does not exist" in message


def test_timm_without_torchvision_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "timm.py").write_text("from torchvision.ops.misc import FrozenBatchNorm2d")  # as timm does
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(TutelageError, match=r"cannot be imported: .*torchvision.* --no-deps torchvision --index-url"):
        load("timm/resnet18")


def importable(package: str) -> None:
    """Skip the test if the optional package cannot be imported."""
    try:
        __import__(package)
    except Exception as error:
        pytest.skip(f"{package}: {error!r}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "shape"), [("resnet10t", (1, 32, 32)), ("test_vit", (3, 32, 32)), ("test_vit", (3, 160, 160))]
)
def test_real_timm(name: str, shape: tuple[int, int, int]) -> None:
    importable("timm")
    built = load(f"timm/{name}", shape=shape)
    assert built.module(torch.rand(2, *shape)).shape == (2, 5)


@pytest.mark.filterwarnings("ignore")
def test_real_timm_suggests_a_name() -> None:
    importable("timm")
    assert "did you mean 'resnet18" in refusal("timm/resnet18_")


# --- hf/NAME


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
    built = load("hf/owner/name", shape=(channels, 32, 32))
    assert calls[0]["name"] == "owner/name"
    assert calls[0]["num_labels"] == 5
    assert calls[0]["trust_remote_code"] is False
    assert built.input_size == (3, 32, 32)
    assert built.mean_std is not None
    assert built.mean_std[0] == pytest.approx(mean)
    assert built.mean_std[1] == pytest.approx(std)
    images = torch.rand(2, channels, 32, 32)
    assert isinstance(built.module, LogitsOf)
    torch.testing.assert_close(
        built.module(images), built.module.network(pixel_values=images.expand(-1, 3, -1, -1)).logits
    )


def test_hf_warns_of_an_unknown_normalisation(transformers: Fake) -> None:
    transformers(None)
    with pytest.warns(TutelageWarning, match=r"'hf/owner/name' has no preprocessor_config\.json") as caught:
        assert load("hf/owner/name", shape=(3, 32, 32)).mean_std is None
    assert caught[0].filename == __file__  # the warning points to the caller


def test_hf_does_not_look_up_a_known_normalisation(transformers: Fake) -> None:
    transformers(None)  # without a preprocessor file
    built = make_model("hf/owner/name", num_classes=5, input_shape=(3, 32, 32), normalised=True)
    assert built.mean_std is None


def test_an_hf_student_is_opened_without_a_warning(transformers: Fake, tmp_path: Path) -> None:
    """The file records the normalisation of its training; bare weights do not."""
    transformers(None)
    part = Split.of(torch.zeros(8, 32, 32, 3, dtype=torch.uint8), torch.arange(8) % 5)
    data = Data("tiny", tuple("abcde"), part, part)
    network = FakeClassifier(5)
    save_weights(tmp_path / "own.safetensors", network, {"mean": [0.5], "std": [0.25]})
    save_weights(tmp_path / "bare.safetensors", network, {})
    assert open_model(f"hf/owner/name@{tmp_path / 'own.safetensors'}", data).std.item() == 0.25
    opened = open_trained(f"hf/owner/name@{tmp_path / 'bare.safetensors'}", data, ((0.5,), (0.125,)))
    assert opened.model.std.item() == 0.125
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
    saved = transformers.AutoModelForImageClassification.from_config(config)
    saved.save_pretrained(tmp_path / "tiny")
    (tmp_path / "tiny" / "preprocessor_config.json").write_text(json.dumps(COLOURS))

    built = load(f"hf/{tmp_path / 'tiny'}", shape=(3, 32, 32))
    assert built.mean_std == ((0.3, 0.4, 0.8), (0.1, 0.2, 0.3))
    assert built.module(torch.rand(2, 3, 32, 32)).shape == (2, 5)
    stem = "resnet.embedder.embedder.convolution.weight"
    assert torch.equal(built.module.state_dict()[stem], saved.state_dict()[stem])

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
