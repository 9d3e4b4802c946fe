"""The method mofs: what it trains and saves, its loss and its notes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tutelage
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.methods import find
from tutelage.methods.mofs.loss import HeadsCrossEntropy
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.runs.models import open_model
from tutelage.training import Run

SHORT = Recipe(epochs=2, batch_size=16, lr=0.05)


def test_loss_is_the_sum_of_the_heads_cross_entropies(batch_of: Callable[[Tensor], Batch]) -> None:
    generator = torch.Generator().manual_seed(2)
    heads = {name: torch.randn(5, 3, generator=generator, dtype=torch.float64) for name in ("a", "b")}
    labels = torch.tensor([0, 2, 1, -1, 2])
    term = HeadsCrossEntropy(("a", "b"))
    value = term(Outputs(heads["a"], heads), None, batch_of(labels))
    for sample, label in enumerate(labels.tolist()):
        expected = 0.0
        for logits in heads.values():
            row = logits[sample].exp()
            expected -= float((row[label] / row.sum()).log()) if label >= 0 else 0.0
        assert float(value[sample]) == pytest.approx(expected, rel=1e-12)
    assert term.roles == ("logits", "a", "b")
    assert not term.teacher_roles


def test_gradient_of_the_loss(batch_of: Callable[[Tensor], Batch]) -> None:
    first, second = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    term, batch = HeadsCrossEntropy(("a", "b")), batch_of(torch.tensor([0, 1, 2, -1]))

    def loss(a: Tensor, b: Tensor) -> Tensor:
        return term(Outputs(a, {"a": a, "b": b}), None, batch)

    assert torch.autograd.gradcheck(loss, (first, second))


def test_every_head_is_trained_and_noted(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    run = Run(tiny_data, tiny_model, recipe=SHORT, hardware=on_cpu, seed=1)
    student = find("mofs")(run)
    before = state_of(find("mofs")(Run(tiny_data, tiny_model, recipe=SHORT.replace(lr=1e-12), hardware=on_cpu, seed=1)))
    moved = changed(before, state_of(student))
    assert {name for name, _ in student.named_parameters()} <= moved
    entry = run.fits[0].history[-1]["learners"]["student"]
    assert {"ce", "train_accuracy", "validation_accuracy"} <= entry.keys()
    notes = run.notes["held_out_accuracy"]
    assert list(notes) == ["mid head", "high head", "covariance head", "all head"]
    assert all(0 <= share <= 1 for share in notes.values())


@pytest.mark.parametrize("settings", [{}, {"orders": "second", "dimension": 4}])
def test_run_folder_is_opened_again(
    settings: Any, tiny_data: Data, tiny_model: Callable[..., Tapped], tmp_path: Path
) -> None:
    result = tutelage.train(
        "resnet8x0.25",
        tiny_data,
        method="mofs",
        settings=settings,
        epochs=1,
        batch_size=16,
        device="cpu",
        out=tmp_path / "run",
    )
    pixels = tiny_data.test.inputs.permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
    opened = open_model(str(tmp_path / "run"), tiny_data)
    assert torch.equal(opened(pixels), result.model(pixels))
    assert {"covariance head", "stage3"} <= opened.trace(pixels).taps.keys()


def test_the_networks_own_rate(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware, state_of: Any
) -> None:
    """With a rate of almost 0 the network's own layers remain as they were, and the heads are trained."""
    run = Run(tiny_data, tiny_model, recipe=SHORT.replace(weight_decay=0), hardware=on_cpu)
    student = find("mofs")(run, network_lr=1e-9)
    start = tiny_model().module
    assert isinstance(start, nn.Module)
    for name, value in start.named_parameters():
        if not name.startswith("fc"):
            torch.testing.assert_close(student.module.get_parameter(f"network.{name}"), value, rtol=0, atol=1e-6)
    assert student.module.get_parameter("classifiers.all.weight").grad is not None


def test_unlabelled_samples_and_soft_labels(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> None:
    soft = nn.functional.one_hot(tiny_data.train.labels, 4).float()
    soft[:5] = 0.25
    data = replace(tiny_data, train=replace(tiny_data.train, labels=soft))
    student = find("mofs")(Run(data, tiny_model, recipe=SHORT, hardware=on_cpu))
    assert all(p.isfinite().all() for p in student.parameters())


def test_networks_without_maps_are_refused(tiny_data: Data, on_cpu: Hardware, refused: Any) -> None:
    def mlp() -> Tapped:
        return Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4)))

    with refused("MOFS pools feature maps", "Sequential has none", "roles="):
        find("mofs")(Run(tiny_data, mlp, recipe=SHORT, hardware=on_cpu))
