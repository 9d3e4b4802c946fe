"""The order of a network's layers, and options by parameter that follow from the recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tutelage.config import Config, Recipe
from tutelage.errors import TutelageError
from tutelage.models.load import make_model
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy, Hint
from tutelage.training import Learner, ParameterOptions
from tutelage.training.depth import layer_factors, layers
from tutelage.training.optim import make_optimizer
from tutelage.training.preparation import parameter_options, trainable_parameters

Net = Callable[..., Tapped]


def first_names(network: nn.Module) -> list[str]:
    """The first parameter of each layer; every parameter is in one layer."""
    names = {parameter: name for name, parameter in network.named_parameters()}
    in_order = layers(network)
    assert sorted(names[p] for layer in in_order for p in layer) == sorted(names.values())
    return [names[layer[0]] for layer in in_order]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet14", ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "fc"]),
        ("wrn-10-1", ["conv1", "block1.0", "block2.0", "block3.0", "fc"]),
        ("cnn1", ["stages.0.0", "stages.1.0", "stages.2.0", "hidden", "fc"]),
    ],
)
def test_layers_are_blocks_in_the_order_of_the_network(name: str, expected: list[str]) -> None:
    names = first_names(make_model(name, num_classes=10, input_shape=(3, 32, 32)).module)
    names = [name for name in names if not (name.startswith("stages") and name.split(".")[2] != "0")]
    assert [name[: len(part)] for name, part in zip(names, expected, strict=True)] == expected


def test_layers_of_a_sequence_are_its_children_and_norms_belong_to_the_layer_before() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    assert [[p.ndim for p in layer] for layer in layers(network)] == [[4, 1, 1, 1], [2, 1]]


class Transformer(nn.Module):
    """A class token, an embedding, two blocks in a container inside an encoder, a norm and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.embedding = nn.Linear(3, 4)
        self.encoder = nn.Module()
        self.encoder.blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 1, 4) for _ in range(2))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 2)


def test_layers_of_a_transformer_are_its_blocks() -> None:
    names = first_names(Transformer())
    assert names[0] == "token"
    assert [name.partition(".self_attn")[0] for name in names[1:]] == [
        "encoder.blocks.0",
        "encoder.blocks.1",
        "head.weight",
    ]
    assert len(layers(Transformer())[2]) == len(layers(Transformer())[1]) + 2  # the norm


def test_a_network_of_parameters_alone_is_one_layer() -> None:
    network = nn.Module()
    network.scale = nn.Parameter(torch.ones(2, 2))
    assert first_names(network) == ["scale"]


def test_factor_of_each_layer_is_a_power_of_the_decay() -> None:
    network = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    assert [layer_factors(network, 0.5)[layer.weight] for layer in network] == [0.125, 0.25, 0.5, 1.0]
    tied = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    tied[2].weight = tied[0].weight
    assert layer_factors(tied, 0.5)[tied[0].weight] == 1.0


def groups_of(learner: Learner, recipe: Recipe) -> dict[nn.Parameter, tuple[float, float]]:
    optimizer = make_optimizer(recipe, trainable_parameters(learner), parameter_options(learner, recipe))
    return {p: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}


def test_norms_and_biases_are_not_decayed(tiny_model: Net) -> None:
    learner = Learner(tiny_model(), None, {"ce": CrossEntropy()})
    recipe = Recipe(decay_norms=False, weight_decay=0.1, lr=0.2)
    for parameter, (lr, decay) in groups_of(learner, recipe).items():
        assert (lr, decay) == (0.2, 0.1 if parameter.ndim > 1 else 0.0)
    assert {decay for _, decay in groups_of(learner, recipe.replace(decay_norms=True)).values()} == {0.1}


def test_bias_of_a_terms_projection_is_not_decayed_either(tiny_model: Net) -> None:
    hint = Hint("stage1", "stage1")
    hint.bias = nn.Parameter(torch.zeros(3))
    learner = Learner(tiny_model(), None, {"hint": hint})
    assert groups_of(learner, Recipe(decay_norms=False))[hint.bias][1] == 0.0


def test_options_of_the_learner_are_combined_with_those_of_the_recipe(tiny_model: Net) -> None:
    def options(name: str) -> ParameterOptions | None:
        return ParameterOptions(lr=0.1, weight_decay=0.3) if name == "bn1.weight" else None

    model = tiny_model()
    learner = Learner(model, None, {"ce": CrossEntropy()}, options=options)
    groups = groups_of(learner, Recipe(decay_norms=False, layer_decay=0.5, lr=1.0, weight_decay=0.2))
    named = dict(model.module.named_parameters())
    assert groups[named["bn1.weight"]] == (pytest.approx(0.1 * 0.25), 0.3)  # three layers: conv1, conv2, fc
    assert groups[named["bn2.weight"]] == (0.5, 0.0)
    assert groups[named["fc.weight"]] == (1.0, 0.2)


def test_frozen_parameters_get_no_options(tiny_model: Net) -> None:
    learner = Learner(tiny_model(), None, {"ce": CrossEntropy()}, trainable=lambda name: name.startswith("fc"))
    options = parameter_options(learner, Recipe(decay_norms=False, layer_decay=0.5))
    assert set(options) == {learner.model.module.fc.bias}


# --- presets


def test_optimizer_adamw_alone_selects_its_preset() -> None:
    for recipe in (Recipe(optimizer="AdamW"), Recipe(optimizer="adamw"), Recipe(preset="adamw")):
        assert (recipe.lr, recipe.weight_decay, recipe.decay_norms, recipe.schedule) == (5e-4, 0.05, False, "cosine")
        assert recipe.preset is None  # the fields are recorded


def test_preset_fast_is_for_short_runs() -> None:
    recipe = Recipe(preset="fast", epochs=8)
    assert (recipe.schedule, recipe.lr, recipe.ema, recipe.label_smoothing) == ("one-cycle", 0.2, 0.99, 0.0)
    assert (recipe.epochs, recipe.optimizer, recipe.preset) == (8, "SGD", None)
    assert Recipe(preset="fast", schedule="step", ema=None).ema is None
    with pytest.raises(TutelageError, match="one-cycle"):
        Recipe(preset="fast", warmup=1)


def test_given_fields_have_precedence_over_a_preset() -> None:
    recipe = Recipe(preset="adamw", schedule="constant", lr=0.001)
    assert (recipe.schedule, recipe.lr, recipe.weight_decay) == ("constant", 0.001, 0.05)
    assert Recipe(optimizer="AdamW", lr=0.001) == Recipe().replace(optimizer="AdamW", lr=0.001)
    assert Recipe(optimizer="SGD", preset="adamw").optimizer == "SGD"


def test_a_recorded_preset_is_read_back_unchanged() -> None:
    config = Config(preset="adamw", lr=0.05)
    assert Config(**config.model_dump()) == config
    assert config.recipe().weight_decay == 0.05


def test_unknown_preset_is_refused(refused: Any) -> None:
    with refused("unknown preset 'adam'", "'adamw'"):
        Recipe(preset="adam")
    with refused("layer_decay", "1.5"):
        Recipe(layer_decay=1.5)
