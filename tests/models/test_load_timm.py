"""Loading architectures of timm, and the errors without it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.models.loading import FakeTimm, importable, load, refusal
from tutelage.errors import TutelageError


def test_timm_without_weights_has_no_normalisation(timm: FakeTimm) -> None:
    model = load("timm/resnet18", shape=(2, 16, 16))
    assert timm.calls == [{"name": "resnet18", "pretrained": False, "num_classes": 5, "in_chans": 2}]
    assert model.module(torch.rand(3, 2, 16, 16)).shape == (3, 5)
    assert (model.mean_std, model.input_size) == (None, None)


@pytest.mark.parametrize(("channels", "mean", "std"), [(3, (0.3, 0.4, 0.8), (0.1, 0.2, 0.3)), (1, (0.5,), (0.2,))])
def test_timm_with_weights_has_their_normalisation(
    timm: FakeTimm, channels: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    model = load("timm/resnet18.a1_in1k", shape=(channels, 16, 16), pretrained=True)
    assert timm.calls[0]["name"] == "resnet18.a1_in1k"
    assert timm.calls[0]["pretrained"] is True
    assert model.mean_std is not None
    assert model.mean_std[0] == pytest.approx(mean)
    assert model.mean_std[1] == pytest.approx(std)
    assert model.input_size == (3, 224, 224)


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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "shape"), [("resnet10t", (1, 32, 32)), ("test_vit", (3, 32, 32)), ("test_vit", (3, 160, 160))]
)
def test_real_timm(name: str, shape: tuple[int, int, int]) -> None:
    importable("timm")
    model = load(f"timm/{name}", shape=shape)
    assert model.module(torch.rand(2, *shape)).shape == (2, 5)


@pytest.mark.filterwarnings("ignore")
def test_real_timm_suggests_a_name() -> None:
    importable("timm")
    assert "did you mean 'resnet18" in refusal("timm/resnet18_")
