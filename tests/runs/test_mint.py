"""The method mint: what it cuts, its fits, notes and files, exact resume, and errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.runs.pairs import ImageNetStyle
from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data, Split, open_data
from tutelage.methods import find
from tutelage.models.surgery import applied_operations
from tutelage.models.surgery.mask import Masked, fixed_zeros
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import execute
from tutelage.runs.models import open_model
from tutelage.training import Run

BRIEF = {"groups": 2, "share": 0.5}  # for the conformance tests
RECIPE = Recipe(epochs=2, batch_size=16, lr=0.05)


def layers(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 4))


@pytest.fixture
def make_run(tiny_data: Data, on_cpu: Hardware) -> Callable[..., Run]:
    def make(*teachers: Tapped, **options: Any) -> Run:
        options = {"data": tiny_data, "student": lambda: Tapped(layers()), "recipe": RECIPE, "seed": 3, **options}
        return Run(teachers=teachers, hardware=on_cpu, **options)

    return make


def masks(model: Tapped) -> dict[str, Tensor]:
    return {name: module.mask for name, module in model.module.named_modules() if isinstance(module, Masked)}


@pytest.mark.parametrize("criterion", ["information", "magnitude", "random"])
def test_weights_are_cut_and_the_rest_is_trained(criterion: str, make_run: Callable[..., Run]) -> None:
    settings = {"groups": 4, "share": 1.0, "cap": 0.5, "criterion": criterion}
    recipe = RECIPE.replace(optimizer="AdamW", weight_decay=0.01, lr=0.01)
    run, other = make_run(recipe=recipe), make_run(recipe=recipe)
    student, untrained = find("mint")(run, **settings), find("mint")(other, retrain_epochs=0, **settings)
    assert (len(run.fits), len(other.fits)) == (2, 1)
    assert set(masks(student)) == {"3", "5"}
    for layer, mask in masks(student).items():
        weight = student.module.get_parameter(f"{layer}.weight")
        assert torch.equal(weight == 0, mask == 0)
        assert torch.equal(masks(untrained)[layer], mask)
        assert torch.equal(weight == untrained.module.get_parameter(f"{layer}.weight"), mask == 0)
        assert float((mask == 0).float().mean()) == 0.5
        assert run.notes["layer_sparsity"][layer] == 0.5
    assert run.notes["layer_sparsity"]["1"] == 0
    total = sum(parameter.numel() for parameter in layers().parameters())
    assert run.notes["sparsity"] == pytest.approx(0.5 * (96 + 32) / total)
    assert len(run.notes["scores"]["3"]) == len(run.notes["scores"]["3"][0]) == 4
    assert 0 <= run.notes["pruned_accuracy"] <= 1


@pytest.mark.parametrize("criterion", ["information", "magnitude"])
@pytest.mark.parametrize("target", [0.96, 0.9])
def test_so_many_weights_are_cut_that_the_target_is_met(
    criterion: str, target: float, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    run = make_run()
    student = find("mint")(run, groups=4, target=target, cap=0.9, criterion=criterion, retrain_epochs=0)
    whole = sum(parameter.numel() for parameter in layers().parameters())
    remaining = whole - fixed_zeros(student.module)
    assert remaining / whole == pytest.approx(1 - run.notes["sparsity"])
    assert target - 0.06 < remaining / whole <= target  # equal scores are cut together
    assert remaining == sum(int((parameter != 0).sum()) for parameter in student.module.parameters())


def test_targets_beyond_the_cap_are_refused(make_run: Callable[..., Run], refused: Any) -> None:
    with refused("mint cannot reduce Sequential to 0.5 of its parameters", "0.5 (cap)", "remain", "larger target"):
        find("mint")(make_run(), groups=4, target=0.5, cap=0.5, retrain_epochs=0)


def test_criteria_cut_different_weights_and_seeds_repeat(make_run: Callable[..., Run]) -> None:
    def cut(**settings: Any) -> Tensor:
        return masks(find("mint")(make_run(), groups=4, share=1.0, retrain_epochs=0, **settings))["3"]

    cuts = [cut(criterion=criterion) for criterion in ("information", "magnitude", "random")]
    assert all(not torch.equal(one, other) for one, other in zip(cuts, cuts[1:] + cuts[:1], strict=True))
    assert torch.equal(cut(), cuts[0])


def test_scores_are_averaged_over_divisions(make_run: Callable[..., Run]) -> None:
    """Of 48 images, each part has 16, so that the scores of one division are multiples of 1 / 16."""
    for divisions in (1, 3):
        run = make_run()
        find("mint")(run, groups=4, share=1.0, retrain_epochs=0, divisions=divisions)
        scores = torch.tensor(run.notes["scores"]["3"]) * 16
        assert bool((scores == scores.round()).all()) == (divisions == 1)
        torch.testing.assert_close(scores * divisions, (scores * divisions).round())


def block_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 2))


def test_planted_connections_remain(on_cpu: Hardware) -> None:
    """Each of three groups of two units depends on one group of four only, although its weights there are smaller.

    The units of the first hidden layer are pairs of equal ones, and all other weights cancel each other.
    """
    images = torch.randint(256, (900, 4, 4, 1), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    train = Split.of(images, (images[:, 0, 0, 0] > 127).long())
    data = Data("planted", ("dark", "bright"), train, train.subset(torch.arange(60)))
    teacher = Tapped(block_network())
    first, second = (teacher.module.get_parameter(f"{layer}.weight") for layer in (1, 3))
    with torch.no_grad():
        first.zero_()
        teacher.module.get_parameter("1.bias").fill_(-2.0)
        second.copy_(torch.tensor([1.0, -1.0]).repeat(6, 6))
        for group in range(3):
            for unit in range(4):
                first[4 * group + unit, 4 * group + unit // 2] = 4.0
            second[2 * group : 2 * group + 2, 4 * group : 4 * group + 4] = 0.8 * torch.eye(2).repeat_interleave(2, 1)
    planted = torch.eye(3).repeat_interleave(2, 0).repeat_interleave(4, 1)
    settings = {"start": "teacher", "groups": 3, "share": 1.0, "cap": 0.67, "exempt": ("5",), "retrain_epochs": 0}
    recovered = {}
    for criterion in ("information", "magnitude"):
        run = Run(data, lambda: Tapped(block_network()), [teacher], recipe=RECIPE, hardware=on_cpu)
        student = find("mint")(run, per_class=450, criterion=criterion, **settings)
        recovered[criterion] = torch.equal(masks(student)["3"], planted)
    assert recovered == {"information": True, "magnitude": False}


def test_start_from_the_teacher_with_soft_targets(make_run: Callable[..., Run], state_of: Any, changed: Any) -> None:
    teacher = Tapped(layers(5))
    before = state_of(teacher)
    run = make_run(teacher)
    student = find("mint")(run, start="teacher", groups=2, share=1.0, cap=0.5, alpha=0.9, retrain_epochs=1)
    (fitted,) = run.fits
    assert set(fitted.history[-1]["learners"]["student"]) >= {"ce", "kd"}
    assert len(fitted.history) == 1
    assert changed(before, state_of(teacher)) == set()
    for layer, mask in masks(student).items():
        assert torch.equal(student.module.get_parameter(f"{layer}.weight") == 0, mask == 0)


def test_dense_network_teaches_without_another_teacher(make_run: Callable[..., Run]) -> None:
    run = make_run()
    find("mint")(run, groups=2, share=1.0, cap=0.5, alpha=0.5)
    assert [set(fit.history[0]["learners"]["student"]) >= {"kd"} for fit in run.fits] == [False, True]


def test_units_that_nothing_reads_are_removed(make_run: Callable[..., Run]) -> None:
    """Nearly all groups are cut, so that some are read by nothing."""
    settings = {"groups": 4, "share": 1.0, "cap": 0.9, "criterion": "random", "retrain_epochs": 0}
    smaller, masked = (find("mint")(make_run(), remove=remove, **settings) for remove in (True, False))
    assert smaller.module[1].out_features < 12  # type: ignore[index]
    pixels = torch.rand(7, 1, 8, 8)
    torch.testing.assert_close(smaller.eval()(pixels), masked.eval()(pixels))


def test_exempt_layers_are_not_cut(make_run: Callable[..., Run]) -> None:
    run = make_run()
    student = find("mint")(run, groups=2, share=1.0, exempt=("5",), retrain_epochs=0)
    assert set(masks(student)) == {"3"}
    assert set(run.notes["scores"]) == {"3"}
    assert run.notes["layer_sparsity"]["5"] == 0


@pytest.mark.parametrize("remove", [True, False])
def test_it_is_resumed_and_reopened_from_its_file(tiny_npz: str, tmp_path: Path, remove: bool) -> None:
    config = Config(
        data=tiny_npz,
        student="resnet8x0.25",
        method="mint",
        settings={"groups": 2, "share": 1.0, "cap": 0.5, "criterion": "random", "remove": remove},
        epochs=2,
        batch_size=16,
        device="cpu",
        precision="float32",
        channels_last=False,
        workers=0,
    )
    result = execute(config, tmp_path / "run")
    assert applied_operations(result.model.module)
    data = open_data(tiny_npz)
    model = open_model(str(tmp_path / "run"), data)
    pixels = torch.rand(5, 1, 8, 8)
    assert torch.equal(model.eval()(pixels), result.model.eval()(pixels))
    assert result.metrics["notes"]["sparsity"] > 0


def test_unsuitable_runs_are_refused(make_run: Callable[..., Run], tiny_data: Data, refused: Any) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with refused("Sequential has no layer", "in sequence"):
        find("mint")(make_run(student=lambda: Tapped(flat)))
    with refused("layer to exempt", "fc", "3, 5"):
        find("mint")(make_run(), exempt=("fc",))
    with refused("all layers that can be cut are exempt", "3, 5"):
        find("mint")(make_run(), exempt=("3", "5"))
    with refused("per_class=7 gives 28", "at least 30"):
        find("mint")(make_run(), per_class=7)
    with refused("start=teacher", "start=trained"):
        find("mint")(make_run(Tapped(ImageNetStyle())), start="teacher")
    with refused("needs a teacher"):
        find("mint")(make_run(), start="teacher")
    for setting in ({"groups": 1}, {"groups": 65}, {"cap": 1.0}, {"share": 1.1}, {"criterion": "entropy"}):
        with refused(*setting):
            find("mint")(make_run(), **setting)
