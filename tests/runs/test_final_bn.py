"""The method final_bn: trained parameters, the weights file, and sample weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tutelage
from tutelage.config import Hardware, Recipe
from tutelage.data import Data, Split
from tutelage.data.batch import Batch
from tutelage.methods import find
from tutelage.methods.final_bn import InverseFrequency
from tutelage.methods.final_bn.surgery.final_bn import fold
from tutelage.models.outputs import Outputs
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped
from tutelage.training import FitResult, Learner, Run
from tutelage.training.learner import ForwardPass

SHORT = Recipe(epochs=2, batch_size=16, lr=0.05)


def pixels(data: Data) -> Tensor:
    assert isinstance(data.test.inputs, Tensor)
    return data.test.inputs.permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("position", ["logits", "penultimate"])
@pytest.mark.parametrize("affine", [True, False])
def test_layer_is_trained_and_remains(
    position: str, affine: bool, tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> None:
    run = Run(tiny_data, tiny_model, recipe=SHORT, hardware=on_cpu)
    student = find("final_bn")(run, position=position, affine=affine, momentum=0.2)
    norm = student.module.get_submodule("fc.final_bn")
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.momentum == 0.2
    assert norm.num_batches_tracked == 6
    assert norm.affine == affine
    if affine:
        assert (norm.weight != 1).any()
    assert applied_operations(student.module) == [
        {"operation": "final_bn", "position": position, "momentum": 0.2, "affine": int(affine)}
    ]
    folded_network = fold(student.module.eval())
    torch.testing.assert_close(
        folded_network(pixels(tiny_data)), student.module(pixels(tiny_data)), atol=1e-6, rtol=1e-5
    )


def test_classifier_bias_is_not_updated(tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware) -> None:
    """The layer removes any offset, so that the bias has no gradient."""
    recipe = SHORT.replace(weight_decay=0)
    student = find("final_bn")(Run(tiny_data, tiny_model, recipe=recipe, hardware=on_cpu))
    torch.testing.assert_close(student.module.fc.bias, tiny_model().module.fc.bias, atol=1e-6, rtol=0)
    assert not torch.allclose(student.module.fc.weight, tiny_model().module.fc.weight)  # type: ignore[union-attr, arg-type]


def rare(data: Data) -> Data:
    """12 samples of class a, 6 of b, 4 of c and 2 of d."""
    counts = {0: 12, 1: 6, 2: 4, 3: 2}
    indices = torch.cat([(data.train.labels == c).nonzero()[:n, 0] for c, n in counts.items()])
    return replace(data, train=data.train.subset(indices))


def forward_pass(targets: Tensor) -> ForwardPass:
    index = torch.arange(len(targets))
    return ForwardPass(Batch(torch.zeros(len(targets), 1, 8, 8), targets, index, None), Outputs(None), None)


def test_weights_are_inverse_class_frequencies(tiny_data: Data) -> None:
    train = rare(tiny_data).train
    weight = InverseFrequency(train, 4)
    expected = torch.tensor([24 / (4 * n) for n in (12, 6, 4, 2)])
    assert torch.equal(weight(forward_pass(torch.arange(4)), 0.0), expected)
    assert weight(forward_pass(train.labels), 0.0).mean() == 1
    assert torch.equal(weight(forward_pass(F.one_hot(torch.arange(4)).float()), 0.0), expected)
    unlabelled = Split.of(train.inputs, train.labels.where(train.labels != 3, -1))
    repeated_weights = InverseFrequency(unlabelled, 4)
    assert repeated_weights(forward_pass(torch.tensor([0, 1, 2])), 0.0).tolist() == pytest.approx(
        [22 / 48, 22 / 24, 22 / 16]
    )
    assert repeated_weights.weights.isfinite().all()


def test_weighted_form_equals_class_weighted_cross_entropy(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> None:
    """torch's loss, except for its divisor."""
    run = Run(rare(tiny_data), tiny_model, recipe=SHORT, hardware=on_cpu)
    learners: list[Learner] = []
    fit = run.fit

    def recording_fit(learner: Learner, **changes: Any) -> FitResult:
        learners.append(learner)
        return fit(learner, **changes)

    run.fit = recording_fit  # type: ignore[method-assign, assignment]
    find("final_bn")(run, weighted=True)
    (learner,) = learners
    targets, logits = torch.tensor([0, 0, 1, 3, 2]), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    index = torch.arange(5)
    batch = Batch(torch.zeros(5, 1, 8, 8), targets, index, None)
    total, _ = learner.loss({None: ForwardPass(batch, Outputs(logits), None)}, 0.5)
    weights = torch.tensor([24 / (4 * n) for n in (12, 6, 4, 2)])
    expected = F.cross_entropy(logits, targets, weight=weights, reduction="sum") / 5
    assert total.item() == pytest.approx(expected.item(), abs=1e-6)


def test_weighted_training_differs(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    def train_with(data: Data, **settings: Any) -> Any:
        return state_of(find("final_bn")(Run(data, tiny_model, recipe=SHORT, hardware=on_cpu), **settings))

    assert changed(train_with(rare(tiny_data)), train_with(rare(tiny_data), weighted=True))
    assert (
        changed(train_with(tiny_data), train_with(tiny_data, weighted=True)) == set()
    )  # all classes are equally frequent


@pytest.mark.parametrize("name", ["resnet8x0.25", "wrn-10-1"])
def test_weights_file_is_loaded_with_the_layer(name: str, tiny_npz: str, tiny_data: Data, tmp_path: Any) -> None:
    def train() -> tutelage.Result:
        settings = {"position": "penultimate", "affine": False}
        return tutelage.train(
            name,
            tiny_npz,
            method="final_bn",
            settings=settings,
            out=tmp_path / "run",
            epochs=2,
            batch_size=16,
            device="cpu",
        )

    first, repeated_weights = train(), train()
    assert torch.equal(first.model.eval()(pixels(tiny_data)), repeated_weights.model.eval()(pixels(tiny_data)))
    assert repeated_weights.model.module.get_submodule("fc.final_bn").num_batches_tracked == 6
    assert 0 <= first.metrics["test"]["macro_f1"] <= 1
    assert list(first.metrics["test"]["per_class_f1"]) == list(tiny_data.classes)


def test_a_batch_of_one_is_refused(tiny_data: Data, tiny_model: Callable[..., Tapped], refused: Any) -> None:
    with refused("final batch normalisation normalises over the batch", "batch size of 2 or more"):
        find("final_bn")(Run(tiny_data, tiny_model, recipe=Recipe(batch_size=1)))


def test_a_network_without_a_linear_classifier_is_refused(tiny_data: Data, refused: Any) -> None:
    with refused("classifier", "Sequential", "nn.Linear"):
        find("final_bn")(Run(tiny_data, lambda: Tapped(nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten()))))


@pytest.mark.parametrize(
    "invalid_settings", [{"position": "last"}, {"momentum": 0}, {"momentum": 1.5}, {"affine": "perhaps"}]
)
def test_invalid_settings_are_refused(
    invalid_settings: dict[str, Any], tiny_data: Data, tiny_model: Any, refused: Any
) -> None:
    ((name, value),) = invalid_settings.items()
    with refused(name, value):
        find("final_bn")(Run(tiny_data, tiny_model), **invalid_settings)
