"""The average of the student's weights that is evaluated, saved and selected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.batch import hard_labels
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA
from tutelage.terms import CrossEntropy, SoftTargets
from tutelage.training import Learner, fit
from tutelage.training.averages import Averages
from tutelage.training.execution import Execution

Net = Callable[..., Tapped]


def test_average_equals_its_recursion(tiny_model: Net) -> None:
    model = tiny_model()
    learner = Learner(model, None, {"ce": CrossEntropy()})
    averages = Averages([learner], 0.5)
    expected = {name: value.double().clone() for name, value in model.module.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    for number in range(1, 13):
        for tensor in (*model.parameters(), *(b for b in model.module.buffers() if b.is_floating_point())):
            tensor.data += torch.rand(tensor.shape, generator=generator)
        model.module.bn1.num_batches_tracked += 1  # type: ignore[operator, union-attr]
        averages.after_step(learner)
        decay = min(0.5, (1 + number) / (10 + number))
        for name, value in model.module.state_dict().items():
            expected[name] = (
                decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value.double()
            )
    for name, value in averages.network(learner).module.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5)
    assert averages.network(learner).module.bn1.num_batches_tracked == 12  # type: ignore[union-attr]


def test_the_average_is_evaluated_selected_and_deployed(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    student, plain = tiny_model(), tiny_model()
    recipe, execution = Recipe(epochs=4, batch_size=16, lr=0.05), Execution.on(on_cpu)
    fitted = fit(
        Learner(student, None, {"ce": CrossEntropy()}),
        data=tiny_data,
        recipe=recipe.replace(ema=0.9),
        execution=execution,
    )
    fit(Learner(plain, None, {"ce": CrossEntropy()}), data=tiny_data, recipe=recipe, execution=execution)
    assert changed(state_of(student), state_of(plain))
    assert not student.training
    validation = tiny_data.validation
    assert validation is not None
    images = validation.inputs.permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
    accuracy = float((student(images).argmax(1) == hard_labels(validation.labels)).float().mean())
    assert fitted.history[-1]["learners"]["student"]["validation_accuracy"] == accuracy
    best = fitted.selected["student"]
    if best.epoch == 4:
        assert all(torch.equal(best.state[name], value) for name, value in student.module.state_dict().items())


def test_averages_are_the_mean_of_a_source_with_the_same_decay(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    """After many updates the decay is that of the recipe: the recursion is the one of the source EMA."""
    student = tiny_model()
    source = EMA(student, 0.1, warm_start=False)
    learner = Learner(student, source, {"ce": CrossEntropy(), "kd": SoftTargets()})
    fit(learner, data=tiny_data, recipe=Recipe(epochs=2, batch_size=16, ema=0.1), execution=Execution.on(on_cpu))
    for average, other in zip(student.parameters(), source.model.parameters(), strict=True):
        torch.testing.assert_close(average, other)  # (1 + t) / (10 + t) > 0.1 from the first update on


def test_a_network_that_is_not_trained_has_no_average(tiny_data: Data, tiny_model: Net, refused: Any) -> None:
    student = tiny_model()
    learner = Learner(student, None, {"ce": CrossEntropy()}, deployed=EMA(student).model, evaluated=False)
    with refused("ema", "TinyNet", "an average already"):
        fit(learner, data=tiny_data, recipe=Recipe(epochs=1, batch_size=16, ema=0.9))
