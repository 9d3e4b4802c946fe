"""Loading built-in networks and user code, and the errors of each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.models.loading import load, refusal
from tutelage.errors import TutelageError
from tutelage.models.load import make_model
from tutelage.models.networks.resnet import ResNet

# --- built-in networks


def test_built_in_network() -> None:
    model = load("resnet8")
    assert isinstance(model.module, ResNet)
    assert model.module(torch.rand(2, 1, 8, 8)).shape == (2, 5)
    assert (model.mean_std, model.input_size) == (None, None)


def test_unknown_names_get_a_suggestion() -> None:
    assert "did you mean 'resnet8'" in refusal("resnet-8")


@pytest.mark.parametrize("spec", ["resnet8", "somewhere:Net"])
def test_pretrained_without_published_weights_raises(spec: str) -> None:
    assert refusal(spec, pretrained=True).startswith(f"no published weights for {spec!r}")


@pytest.mark.parametrize(("num_classes", "shape"), [(0, (1, 8, 8)), (5, (0, 8, 8)), (5, (1, 8, -8)), (5, ())])
def test_invalid_sizes_raise(num_classes: int, shape: Any) -> None:
    with pytest.raises(TutelageError) as exc_info:
        make_model("resnet8", num_classes=num_classes, input_shape=shape)
    assert f"{num_classes} classes" in str(exc_info.value)
    assert str(shape) in str(exc_info.value)


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
    model = load(f"{user_code}:{attribute}", shape=shape)
    assert model.module.called_with == called_with
    assert model.mean_std is None


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
    with pytest.raises(TutelageError) as exc_info:
        load(f"{user_code}:fails")
    assert isinstance(exc_info.value.__cause__, RuntimeError)


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
