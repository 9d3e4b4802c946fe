"""The method progressive: its subsets, schedules and transitions, and the exact number of processed samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.config import Hardware, Recipe
from tutelage.data import Data, Split
from tutelage.methods import find
from tutelage.methods.progressive import Stage, is_plateau, schedule, shares, without_momentum
from tutelage.models.tapped import Tapped
from tutelage.terms import CrossEntropy
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult

Net = Callable[..., Tapped]

# --- the schedule


def test_table_of_stages_equals_closed_form() -> None:
    recipe = Recipe(epochs=20, batch_size=64, lr=0.1, warmup=0.5)
    assert schedule(2000, recipe, shares(4, "linear")) == [
        Stage(500, 5, 16, 0.1, 0.5),
        Stage(1000, 5, 32, 0.1),
        Stage(1500, 5, 48, 0.1),
        Stage(2000, 5, 64, 0.1),
    ]
    stages = schedule(2000, recipe, shares(4, "geometric"), rate="linear")
    assert stages == [
        Stage(250, 5, 8, 0.0125, 1.0),
        Stage(500, 5, 16, 0.025, 1.0),
        Stage(1000, 5, 32, 0.05, 1.0),
        Stage(2000, 5, 64, 0.1, 1.0),
    ]
    constant = schedule(2000, recipe, shares(4, "linear"), batch="constant", rate="linear")
    assert [(stage.batch_size, stage.lr) for stage in constant] == [(64, 0.1)] * 4


@pytest.mark.parametrize(("growth", "expected"), [("linear", 0.625), ("geometric", 0.46875)])
def test_share_of_samples_in_closed_form(growth: Any, expected: float) -> None:
    assert sum(shares(4, growth)) / 4 == expected
    assert shares(1, growth) == [1.0]


def test_steps_per_epoch_are_constant_with_proportional_batches() -> None:
    for samples in (357, 1437, 50_000):
        plan = schedule(samples, Recipe(epochs=4, batch_size=64), shares(4, "linear"))
        steps = [stage.samples // stage.batch_size for stage in plan]
        assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize("batch", ["proportional", "constant"])
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_noise_scale_follows_its_target(batch: Any, factor: float) -> None:
    recipe = Recipe(epochs=4, batch_size=64, lr=0.1)
    plan = schedule(1437, recipe, shares(4, "linear"), batch=batch, rate="noise", noise_factor=factor)
    scales = [stage.lr * stage.samples / stage.batch_size for stage in plan]
    assert scales == pytest.approx([0.1 * 1437 / 64 * factor**number for number in range(4)], rel=1e-12)
    if batch == "proportional" and factor == 1:
        assert [stage.lr for stage in plan] == pytest.approx([0.1] * 4, rel=2e-3)  # up to the rounding of samples


def test_batches_have_two_samples_and_are_a_multiple_of_the_processes() -> None:
    recipe = Recipe(epochs=4, batch_size=6)
    assert [stage.batch_size for stage in schedule(99, recipe, shares(4, "geometric"))] == [2, 2, 3, 6]
    assert [stage.batch_size for stage in schedule(99, recipe, shares(4, "linear"), multiple=3)] == [6, 6, 6, 6]
    assert [stage.batch_size for stage in schedule(99, Recipe(batch_size=1), shares(2, "linear"))] == [1, 1]


def test_epochs_are_divided_among_the_stages() -> None:
    for epochs in range(4, 30):
        plan = schedule(100, Recipe(epochs=epochs), shares(4, "linear"))
        counts = [stage.epochs for stage in plan]
        assert sum(counts) == epochs
        assert max(counts) - min(counts) <= 1


def test_there_are_at_most_as_many_stages_as_epochs(make: Make) -> None:
    run = make(epochs=3)
    find("progressive")(run)
    assert [(stage["samples"], stage["epochs"]) for stage in run.notes["stages"]] == [(16, 1), (32, 1), (48, 1)]


def test_annealing_is_the_end_of_the_last_stage() -> None:
    recipe = Recipe(epochs=20, batch_size=64, lr=0.1, warmup=2)
    last = schedule(2000, recipe, shares(2, "linear"), anneal=0.3)[1:]
    assert last == [Stage(2000, 7, 64, 0.1), Stage(2000, 3, 64, 0.1, 0.0, "cosine", continues=True)]
    assert schedule(2000, recipe, shares(2, "linear"), anneal=1.0)[1] == Stage(2000, 10, 64, 0.1, 0.0, "cosine")
    assert schedule(2000, recipe, [1.0], anneal=1.0) == [Stage(2000, 20, 64, 0.1, 2, "cosine")]


def test_plateau() -> None:
    def history(*losses: float) -> list[dict[str, Any]]:
        return [{"learners": {"student": {"ce": loss}}} for loss in losses]

    assert not is_plateau(history(3.0), "ce", 1)
    assert not is_plateau(history(3.0, 2.0, 2.5), "ce", 2)
    assert is_plateau(history(3.0, 2.0, 2.5), "ce", 1)
    assert is_plateau(history(3.0, 2.0, 2.5, 2.0), "ce", 2)  # not lower
    assert not is_plateau(history(3.0, 2.0, 2.5, 1.9), "ce", 2)


# --- training


class RecordingRun(Run):
    """A run that records the data, the settings, and the network before and after each fit."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.splits: list[Split] = []
        self.options: list[dict[str, Any]] = []
        self.before: list[dict[str, Any]] = []
        self.after: list[dict[str, Any]] = []

    def fit(self, *learners: Learner, **options: Any) -> FitResult:
        self.splits.append(options["data"].train)
        self.options.append(options)
        self.before.append({name: value.clone() for name, value in learners[0].model.state_dict().items()})
        fitted = super().fit(*learners, **options)
        self.after.append({name: value.clone() for name, value in learners[0].model.state_dict().items()})
        return fitted


Make = Callable[..., RecordingRun]


@pytest.fixture
def make(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> Make:
    """``make(data=tiny_data, epochs=8, **options)``: a run; other fields of the recipe are options too."""

    def run(data: Data = tiny_data, epochs: int = 8, **options: Any) -> RecordingRun:
        changes = {name: options.pop(name) for name in options.keys() & Recipe.model_fields.keys()}
        recipe = Recipe(epochs=epochs, batch_size=16, lr=0.05).replace(**changes)
        return RecordingRun(data, lambda: tiny_model(2), recipe=recipe, hardware=on_cpu, **options)

    return run


def test_subsets_are_nested_and_stratified(make: Make) -> None:
    runs = [make(seed=seed) for seed in (4, 4, 5)]
    for run in runs:
        find("progressive")(run)
    splits = runs[0].splits
    assert [len(split) for split in splits] == [12, 24, 36, 48]
    for smaller, larger in pairwise(splits):
        assert set(smaller.index.tolist()) < set(larger.index.tolist())
        assert smaller.labels.bincount().tolist() == [len(smaller) // 4] * 4
    assert torch.equal(splits[-1].index, runs[0].data.train.index)
    same, other = (torch.equal(splits[0].index, run.splits[0].index) for run in runs[1:])
    assert same
    assert not other


@pytest.mark.parametrize(("growth", "expected"), [("linear", 0.625), ("geometric", 0.46875)])
def test_counter_of_processed_samples_is_exact(growth: str, expected: float, make: Make) -> None:
    """It is the sum of epochs x samples, since the batches of 4, 8, 12, 16 divide the subsets of 12, 24, 36, 48."""
    run = make()
    find("progressive")(run, growth=growth)
    visits = [record["forward_passes"]["student"] for fitted in run.fits for record in fitted.history]
    stages = [
        (stage["epochs"], stage["samples"] // stage["batch_size"] * stage["batch_size"])
        for stage in run.notes["stages"]
    ]
    assert visits == [count for epochs, count in stages for _ in range(epochs)]
    assert sum(visits) == expected * 8 * 48


def test_one_stage_is_ordinary_training_with_a_constant_rate(make: Make, state_of: Any, changed: Any) -> None:
    plain = make(schedule="constant", warmup=1.0)
    student = plain.student()
    plain_run = Run.fit(plain, Learner(student, None, {"ce": CrossEntropy()}))
    run = make(warmup=1.0)
    assert changed(state_of(find("progressive")(run, stages=1)), state_of(student)) == set()
    assert [r["learners"] for r in run.fits[0].history] == [r["learners"] for r in plain_run.history]


@pytest.mark.parametrize("keep", [False, True])
def test_weights_carry_over_and_momentum_as_configured(keep: bool, make: Make, changed: Any) -> None:
    run = make()
    find("progressive")(run, keep_momentum=keep)
    for number in range(1, 4):
        assert changed(run.after[number - 1], run.before[number]) == set()  # running statistics included
        buffers = [state["momentum_buffer"] for state in run.options[number]["optimizers"]["student"]["state"].values()]
        earlier = [state["momentum_buffer"] for state in run.fits[number - 1].optimizers["student"]["state"].values()]
        assert any(buffer.any() for buffer in earlier)
        for buffer, final in zip(buffers, earlier, strict=True):
            assert torch.equal(buffer, final if keep else torch.zeros_like(final))


def test_moments_of_adam_carry_over(make: Make, state_of: Any, changed: Any) -> None:
    runs = [make(optimizer="Adam", lr=0.01) for _ in range(2)]
    states = [
        state_of(find("progressive")(run, keep_momentum=keep)) for run, keep in zip(runs, (False, True), strict=True)
    ]
    assert changed(*states) == set()
    steps = [next(iter(fitted.optimizers["student"]["state"].values()))["step"] for fitted in runs[0].fits]
    assert [int(step) for step in steps] == [6, 12, 18, 24]


def test_learning_rate_of_a_stage_is_its_own(make: Make) -> None:
    run = make()
    find("progressive")(run, rate="linear", keep_momentum=True)
    assert [fitted.history[-1]["lr"] for fitted in run.fits] == pytest.approx([0.0125, 0.025, 0.0375, 0.05])


def test_annealing_keeps_the_momentum(make: Make) -> None:
    run = make()
    find("progressive")(run, anneal=0.5)
    assert len(run.fits) == 5
    (buffer, *_), (final, *_) = (
        [state["momentum_buffer"] for state in states["student"]["state"].values()]
        for states in (run.options[4]["optimizers"], run.fits[3].optimizers)
    )
    assert torch.equal(buffer, final)
    assert len(run.splits[4]) == 48
    assert run.fits[4].history[-1]["lr"] < 0.05


def test_shrink_and_perturb_between_stages(make: Make) -> None:
    run = make()
    find("progressive")(run, stages=2, shrink=0.5, perturb=0.1)
    noise = run.before[1]["module.fc.weight"] - 0.5 * run.after[0]["module.fc.weight"]
    assert 0.05 < float(noise.std()) < 0.2
    assert torch.equal(run.before[1]["module.bn1.running_mean"], run.after[0]["module.bn1.running_mean"])
    other = make(seed=1)
    find("progressive")(other, stages=2, shrink=0.5, perturb=0.1)
    repeated = make()
    find("progressive")(repeated, stages=2, shrink=0.5, perturb=0.1)
    assert torch.equal(repeated.before[1]["module.fc.weight"], run.before[1]["module.fc.weight"])
    assert not torch.equal(other.before[1]["module.fc.weight"] - 0.5 * other.after[0]["module.fc.weight"], noise)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    "settings", [{"keep_momentum": True}, {"shrink": 0.7}, {"patience": 1, "stages": 2}, {"anneal": 0.5}]
)
@pytest.mark.parametrize("place", [(0, 1), (1, 1), (1, 2)])
def test_resume_in_a_stage_is_exact(
    settings: dict[str, Any], place: tuple[int, int], make: Make, tmp_path: Path, state_of: Any, changed: Any
) -> None:
    def stopping(record: Any) -> None:
        if (record["fit"], record["epoch"]) == place:
            raise StoppedError

    lr = {"lr": 0.4} if "patience" in settings else {}  # so high that the loss rises
    whole = make(**lr)
    student = find("progressive")(whole, **settings)
    with pytest.raises(StoppedError):
        find("progressive")(make(folder=tmp_path, report=stopping, **lr), **settings)
    resumed = make(folder=tmp_path, **lr)
    assert changed(state_of(student), state_of(find("progressive")(resumed, **settings))) == set()
    assert [len(fitted.history) for fitted in resumed.fits] == [len(fitted.history) for fitted in whole.fits]
    if "patience" in settings:
        assert sum(len(fitted.history) for fitted in whole.fits) < 8


def test_subsets_of_rare_classes_and_of_other_targets(make: Make, tiny_data: Data) -> None:
    rare = torch.cat([torch.arange(2), torch.arange(48)[tiny_data.train.labels > 1]])
    run = make(replace(tiny_data, train=tiny_data.train.subset(rare)))
    find("progressive")(run)
    assert run.splits[0].labels.bincount(minlength=4).min() == 1


def test_momentum_buffers_that_do_not_exist_are_left_as_they_are() -> None:
    state = {"state": {0: {"momentum_buffer": None}, 1: {"exp_avg": torch.ones(2)}}, "param_groups": []}
    assert without_momentum(state)["state"][0] == {"momentum_buffer": None}
    assert without_momentum(state)["state"][1]["exp_avg"].all()


def test_student_learns_the_classes(make: Make) -> None:
    run = make(epochs=40, lr=0.1)
    student = find("progressive")(run)
    predictions = run.predict(student, run.data.test).argmax(1)
    assert float((predictions == run.data.test.labels).double().mean()) > 0.8
