"""Options by parameter: a factor on the learning rate and a weight decay, in every optimizer of torch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.loader import Batches
from tutelage.errors import TutelageError
from tutelage.models.tapped import Tapped
from tutelage.sources import Frozen
from tutelage.terms import CrossEntropy, Hint
from tutelage.training import Learner, ParameterOptions, fit
from tutelage.training.checkpoint import Checkpoints
from tutelage.training.execution import Execution
from tutelage.training.optim import make_optimizer
from tutelage.training.preparation import parameter_options, trainable_parameters

Net = Callable[..., Tapped]

OPTIMIZERS = sorted(
    name
    for name, value in vars(torch.optim).items()
    if isinstance(value, type)
    and issubclass(value, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam")  # the recipe refuses these
)


def slow_encoder(name: str) -> ParameterOptions | None:
    """A tenth of the learning rate below the classifier, and no weight decay for biases and norms."""
    is_vector = name.endswith("bias") or name.startswith("bn")
    factor = 1.0 if name.startswith("fc") else 0.1
    return ParameterOptions(lr=factor, weight_decay=0.0 if is_vector else None)


def learner(model: Tapped, **options: Any) -> Learner:
    return Learner(model, None, {"ce": CrossEntropy()}, **options)


def test_options_equal_a_hand_written_loop_bit_for_bit(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    """With warm-up and a step schedule, which act on every group in proportion."""
    recipe = Recipe(epochs=5, batch_size=16, lr=0.1, weight_decay=0.01, milestones=(0.4, 0.8), gamma=0.5, warmup=1)
    model, reference = tiny_model(), tiny_model()
    fit(learner(model, options=slow_encoder), data=tiny_data, recipe=recipe, execution=Execution.on(on_cpu), seed=3)

    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in reference.module.named_parameters():
        is_vector = parameter.ndim == 1
        groups.setdefault((0.1 if "fc" in name else 0.1 * 0.1, 0.0 if is_vector else 0.01), []).append(parameter)
    assert len(groups) == 4
    optimizer = torch.optim.SGD(
        [{"params": members, "lr": lr, "weight_decay": decay} for (lr, decay), members in groups.items()],
        momentum=0.9,
        nesterov=True,
        fused=True,
    )
    reference.train()
    batches = Batches(tiny_data.train, batch_size=16, views=tiny_data.views, seed=3)
    for step, batch in enumerate(batch for epoch in range(5) for batch in batches.epoch(epoch)):
        epoch = step // 3
        for (lr, _), group in zip(groups, optimizer.param_groups, strict=True):
            group["lr"] = lr * (min(1, (step + 1) / 3) * 0.5 ** ((epoch >= 2) + (epoch >= 4)))
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in tiny_data.mean_std)
        loss = F.cross_entropy(reference.module((batch.inputs - mean) / std), batch.targets, reduction="none").mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    for (name, a), b in zip(model.module.state_dict().items(), reference.module.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def steps(optimizer: torch.optim.Optimizer, parameters: dict[int, nn.Parameter], numbers: range) -> None:
    """Steps with gradients that depend on the step and the parameter's number alone."""
    for number in numbers:
        for index, parameter in parameters.items():
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 * number + index))
        optimizer.step()


def three_parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(7)
    return [nn.Parameter(torch.randn(3, 2, generator=generator)) for _ in range(3)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_of_torch_updates_each_parameter_as_an_optimizer_of_its_own(name: str) -> None:
    """Also after its state was saved and loaded, as in a resumed fit."""
    recipe = Recipe(optimizer=name, lr=0.02, weight_decay=0.1)
    has_decay = name != "Rprop"
    choices = [ParameterOptions(), ParameterOptions(lr=0.5), ParameterOptions(weight_decay=0.3 if has_decay else 0.0)]

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return make_optimizer(recipe, parameters, dict(zip(parameters[1:], choices[1:], strict=True)))

    parameters = three_parameters()
    optimizer = make(parameters)
    steps(optimizer, dict(enumerate(parameters)), range(2))
    resumed = copy.deepcopy(parameters)
    other = make(resumed)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    steps(optimizer, dict(enumerate(parameters)), range(2, 4))
    steps(other, dict(enumerate(resumed)), range(2, 4))
    for index, (alone, choice) in enumerate(zip(three_parameters(), choices, strict=True)):
        decay = 0.1 if choice.weight_decay is None else choice.weight_decay
        own = make_optimizer(recipe.replace(lr=0.02 * choice.lr, weight_decay=decay), [alone])
        steps(own, {index: alone}, range(4))
        assert torch.equal(parameters[index], alone)
        assert torch.equal(resumed[index], alone)


def test_options_apply_to_the_learning_rate_and_the_groups_of_a_factory() -> None:
    parameters = three_parameters()

    def factory(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        groups = [{"params": parameters[:2]}, {"params": parameters[2:], "lr": 0.5}]
        return torch.optim.RMSprop(groups, lr=0.2, weight_decay=0.3)

    options = {parameters[1]: ParameterOptions(lr=0.25), parameters[2]: ParameterOptions(lr=2, weight_decay=0)}
    groups = make_optimizer(Recipe(optimizer=factory), parameters, options).param_groups
    assert [(group["lr"], group["weight_decay"], len(group["params"])) for group in groups] == [
        (0.2, 0.3, 1),
        (0.05, 0.3, 1),
        (1.0, 0.0, 1),
    ]


def test_without_options_there_is_one_group(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    alike = learner(tiny_model(), options=lambda name: ParameterOptions() if "fc" in name else None)
    assert alike.parameter_options() == learner(tiny_model()).parameter_options() == {}
    assert len(make_optimizer(Recipe(), trainable_parameters(alike), parameter_options(alike)).param_groups) == 1


def test_decay_of_zero_stops_the_decay(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    """Without a gradient, weights without decay keep their values."""

    class Zero(CrossEntropy):
        def forward(self, *arguments: Any) -> Tensor:
            return super().forward(*arguments) * 0

    model, initial = tiny_model(), tiny_model()
    zero = Learner(model, None, {"zero": Zero()}, options=slow_encoder)
    recipe = Recipe(epochs=1, batch_size=16, lr=0.1, weight_decay=0.1, momentum=0, schedule="constant")
    fit(zero, data=tiny_data, recipe=recipe, execution=Execution.on(on_cpu))
    for (name, value), before in zip(model.module.named_parameters(), initial.module.parameters(), strict=True):
        factor = 1.0 if value.ndim == 1 else (1 - 0.1 * 0.1 * (1.0 if "fc" in name else 0.1)) ** 3
        torch.testing.assert_close(value, before * factor)


def test_parameters_of_terms_and_frozen_parameters_have_no_options(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    names: list[str] = []

    def options(name: str) -> ParameterOptions:
        names.append(name)
        return ParameterOptions(weight_decay=0.5)

    terms = {"ce": CrossEntropy(), "hint": Hint("stage1", "stage1", "mean")}
    with_hint = Learner(
        tiny_model(),
        Frozen(tiny_model(1, width=6)),
        terms,
        trainable=lambda name: not name.startswith("conv1"),
        options=options,
    )
    fit(with_hint, data=tiny_data, recipe=Recipe(epochs=1, batch_size=16), execution=Execution.on(on_cpu))
    assert sum(1 for _ in with_hint.modules.parameters()) > 0
    assert names
    assert not any(name.startswith("conv1") for name in names)
    groups = make_optimizer(
        Recipe(weight_decay=0.1), trainable_parameters(with_hint), parameter_options(with_hint)
    ).param_groups
    by_decay = {group["weight_decay"]: set(group["params"]) for group in groups}
    assert by_decay[0.1] == set(with_hint.modules.parameters())
    assert by_decay[0.5] == {p for name, p in with_hint.model.module.named_parameters() if "conv1" not in name}


def test_history_records_the_largest_learning_rate(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    recipe = Recipe(epochs=2, batch_size=16, lr=0.2, milestones=(0.5,), gamma=0.5)
    fitted = fit(
        learner(tiny_model(), options=slow_encoder), data=tiny_data, recipe=recipe, execution=Execution.on(on_cpu)
    )
    assert [record["lr"] for record in fitted.history] == [0.2, 0.1]


def test_checkpoint_of_other_options_is_refused(
    tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any
) -> None:
    def train(options: Callable[[str], ParameterOptions | None]) -> None:
        recipe = Recipe(epochs=1, batch_size=16)
        fit(
            learner(tiny_model(), options=options),
            data=tiny_data,
            recipe=recipe,
            execution=Execution.on(on_cpu, checkpoints=Checkpoints(tmp_path)),
        )

    train(slow_encoder)
    train(slow_encoder)
    with refused("of another fit", "options", "remove them"):
        train(lambda name: ParameterOptions(lr=0.2))


# --- errors


@pytest.mark.parametrize(
    ("fields", "pieces"),
    [
        ({"lr": 0}, ("options of a parameter", "lr", "greater than 0", "got 0")),
        ({"lr": float("inf")}, ("lr", "finite", "inf")),
        ({"weight_decay": -0.1}, ("weight_decay", "greater than or equal to 0", "-0.1")),
        ({"decay": 0.1}, ("'decay'", "weight_decay")),
    ],
)
def test_invalid_options_are_refused(fields: dict[str, Any], pieces: tuple[str, ...], refused: Any) -> None:
    with refused(*pieces):
        ParameterOptions(**fields)


def test_result_of_another_type_is_refused(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any) -> None:
    with refused("options of learner 'student'", "ParameterOptions", "'conv1.weight'", "0.1"):
        fit(learner(tiny_model(), options=lambda name: 0.1), data=tiny_data, execution=Execution.on(on_cpu))


def test_weight_decay_of_an_optimizer_without_it_is_refused(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any
) -> None:
    def options(name: str) -> ParameterOptions:
        return ParameterOptions(weight_decay=0.25)

    recipe = Recipe(epochs=1, optimizer="Rprop")
    with refused("Rprop", "no weight decay", "0.25", "AdamW"):
        fit(learner(tiny_model(), options=options), data=tiny_data, recipe=recipe, execution=Execution.on(on_cpu))


def test_options_are_frozen() -> None:
    with pytest.raises(Exception, match="frozen"):
        ParameterOptions().lr = 2  # type: ignore[misc]
    with pytest.raises(TutelageError, match="greater than 0"):
        ParameterOptions().replace(lr=-1)
