"""The operation mofs: heads, their roles, the average, the record and ONNX."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.runs.pairs import network_with_named_roles
from tests.token_network import TokenNetwork
from tutelage.methods.mofs.surgery.mofs import MultiOrder, apply, head_role
from tutelage.models.export import export_onnx
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.tapped import Tapped

IMAGES = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(5))
LABELS = torch.arange(6) % 4
HEADS = ("mid", "high", "covariance", "all")
LAYERS = ["bn2", "bn1"]


@pytest.fixture
def whole(tiny_model: Callable[..., Tapped]) -> Any:
    torch.manual_seed(0)
    return apply(tiny_model().module, IMAGES[:2], layers=LAYERS)


def test_sizes_are_at_most_those_of_the_maps(whole: Any) -> None:
    assert list(whole.classifiers) == list(HEADS)
    assert [part.size for part in whole.parts.values()] == [2 * 4, 2 * 8, 8 * 9 // 2]
    assert whole.classifiers["all"].in_features == 8 + 16 + 36
    one_map = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Flatten(), nn.Linear(216, 4))
    narrow: Any = apply(one_map, IMAGES, layers=["0"], channels=2)
    assert [part.size for part in narrow.parts.values()] == [4, 21]
    assert list(narrow.classifiers) == ["high", "covariance", "all"]


def test_output_is_the_mean_of_the_heads_probabilities(whole: Any) -> None:
    outputs = Tapped(whole.eval()).tap(IMAGES, ("logits", *map(head_role, HEADS)))
    mean = torch.stack([outputs[head_role(name)].softmax(1) for name in HEADS]).mean(0)
    torch.testing.assert_close(outputs["logits"].exp(), mean)


def test_each_heads_loss_trains_what_is_below_it_and_nothing_else(whole: Any) -> None:
    model = Tapped(whole.train())
    for name in HEADS:
        model.zero_grad()
        F.cross_entropy(model.tap(IMAGES, (head_role(name),))[head_role(name)], LABELS).backward()
        reached = {key for key, p in whole.named_parameters() if p.grad is not None and p.grad.any()}
        assert "network.conv1.weight" in reached
        assert ("network.conv2.weight" in reached) == (name != "mid")
        parts = {key.split(".")[1] for key in reached if key.startswith("parts.")}
        assert parts == (set(HEADS[:3]) if name == "all" else {name})
        assert {key.split(".")[1] for key in reached if key.startswith("classifiers.")} == {name}


def test_heads_pool_the_last_map_and_the_one_before(whole: Any) -> None:
    model = Tapped(whole.eval(), roles={"last": "network.bn2", "before": "network.bn1"})
    maps = model.tap(IMAGES, ("last", "before"))
    outputs = Tapped(whole).tap(IMAGES, tuple(map(head_role, HEADS)))
    parts = whole.parts
    vectors = {
        "mid": parts["mid"].convolutions(maps["before"]).amax((2, 3)),
        "high": parts["high"].convolutions(maps["last"]).mean((2, 3)),
        "covariance": parts["covariance"].pooling(parts["covariance"].reduction(maps["last"])),
    }
    for name, vector in vectors.items():
        torch.testing.assert_close(outputs[head_role(name)], whole.classifiers[name](vector))
    joined = torch.cat([*vectors.values()], 1)
    torch.testing.assert_close(outputs[head_role("all")], whole.classifiers["all"](joined))


@pytest.mark.parametrize(("orders", "heads"), [("first", ["mid", "high", "all"]), ("second", ["covariance"])])
def test_heads_of_a_single_order(orders: str, heads: list[str], tiny_model: Callable[..., Tapped]) -> None:
    network = apply(tiny_model().module, IMAGES, layers=LAYERS, orders=orders).eval()
    assert list(network.classifiers) == heads  # type: ignore[arg-type]
    outputs = Tapped(network).tap(IMAGES, ("logits", *map(head_role, heads)))
    mean = torch.stack([outputs[head_role(name)].softmax(1) for name in heads]).mean(0)
    torch.testing.assert_close(outputs["logits"].exp(), mean)


def test_roles_of_the_network_remain(tiny_model: Callable[..., Tapped]) -> None:
    plain = tiny_model().eval()
    features = plain.tap(IMAGES, ("stage1", "stage2", "embedding")).features
    model = Tapped(apply(plain.module, IMAGES, layers=LAYERS).eval())
    for role, value in features.items():
        torch.testing.assert_close(model.tap((IMAGES - plain.mean) / plain.std, (role,))[role], value)


@pytest.mark.parametrize(
    ("make", "layers"),
    [(TokenNetwork, ["blocks.3", "blocks.1"]), (lambda: network_with_named_roles().module, ["1", "input:1"])],
)
def test_tokens_and_inputs_of_layers(make: Callable[[], nn.Module], layers: list[str]) -> None:
    network = apply(make(), IMAGES, layers=layers).train()
    F.cross_entropy(network(IMAGES), LABELS).backward()
    again = reapply(make(), applied_operations(network), IMAGES[:2])
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(IMAGES), network.eval()(IMAGES))


def test_a_copy_runs_its_own_layers(whole: Any) -> None:
    before = whole.eval()(IMAGES)
    other = copy.deepcopy(whole)
    assert torch.equal(other(IMAGES), before)
    nn.init.zeros_(other.network.conv1.weight)
    assert not torch.equal(other(IMAGES), before)
    assert torch.equal(whole(IMAGES), before)


def test_maps_are_released_after_a_pass(whole: Any) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no")

    whole(IMAGES)
    assert not whole._values
    whole.network.fc.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no"):
        whole(IMAGES)
    assert not whole._values


def test_the_record_repeats_the_operation(whole: MultiOrder, tiny_model: Callable[..., Tapped]) -> None:
    (operation,) = applied_operations(whole)
    sizes = {"channels": 512, "dimension": 256, "iterations": 5}
    assert operation == {"operation": "mofs", "layers": LAYERS, **sizes, "orders": "both"}
    again = reapply(tiny_model(seed=9).module, [operation], IMAGES[:2])
    again.load_state_dict(whole.state_dict())
    assert torch.equal(again.eval()(IMAGES), whole.eval()(IMAGES))


def test_onnx_export(whole: MultiOrder, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    onnxruntime: Any = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    model = Tapped(whole.eval())
    export_onnx(model, (1, 8, 8), tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (logits,) = session.run(None, {"pixels": IMAGES[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), model(IMAGES[:count]).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "pieces"),
    [
        ({"layers": ["fc"]}, ("pools maps", "'fc'", "(6, 4)")),
        ({"layers": ["nowhere"]}, ("nowhere",)),
        ({"layers": []}, ("1 or 2 layers",)),
        ({"layers": ["bn2"], "orders": "third"}, ("'third'",)),
    ],
)
def test_invalid_settings_are_refused(
    settings: dict[str, Any], pieces: tuple[str, ...], tiny_model: Callable[..., Tapped], refused: Any
) -> None:
    with refused(*pieces):
        apply(tiny_model().module, IMAGES, **settings)
