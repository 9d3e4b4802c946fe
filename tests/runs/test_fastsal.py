"""The method fastsal from end to end, on small images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tutelage
from tests.tasks.cases import OfMaps, case_of
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.methods import find
from tutelage.methods.fastsal import options, rate, segments
from tutelage.models.tapped import Tapped
from tutelage.models.zoo import build
from tutelage.training import Learner, Run
from tutelage.training.optim import ParameterOptions

SHORT = Recipe(epochs=4, batch_size=16, lr=0.02, nesterov=False)


@pytest.fixture
def data() -> Data:
    """48 training images of 8 x 8 pixels, every seventh without a label."""
    return case_of("saliency").data


def network(name: str, seed: int) -> Tapped:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tapped(build(name, num_classes=1, input_shape=(1, 8, 8)), [0.3], [0.2])


def student() -> Tapped:
    return network("fastsal-ax0.25", 1)


def teacher() -> Tapped:
    return network("salganx0.05", 2)


class RecordedRun(Run):
    """Records the learners, the options and the first weights of each fit."""

    def __init__(self, *parts: Any, **settings: Any) -> None:
        super().__init__(*parts, **settings)
        self.recorded: list[tuple[Learner, dict[str, Any], dict[str, Tensor]]] = []

    def fit(self, *learners: Learner, **settings: Any) -> Any:
        state = {name: value.clone() for name, value in learners[0].model.module.state_dict().items()}
        self.recorded.append((learners[0], settings, state))
        return super().fit(*learners, **settings)


def run_on(data: Data, on_cpu: Hardware, recipe: Recipe = SHORT) -> RecordedRun:
    return RecordedRun(data, student, [teacher()], recipe=recipe, hardware=on_cpu, seed=3)


def test_first_stage_trains_the_encoder_alone_and_nothing_of_it_is_lost(
    data: Data, on_cpu: Hardware, changed: Any
) -> None:
    run = run_on(data, on_cpu)
    find("fastsal")(run)
    (first, first_options, before), (second, _, carried) = run.recorded[:2]
    moved = changed(before, carried)
    assert {name.partition(".")[0] for name in moved} == {"encoder"}
    assert {name for name in before if name.startswith("encoder.") and "num_batches" not in name} <= moved
    assert list(first.terms) == ["hints"]
    assert not first.reads_labels
    assert first_options == {"epochs": 2, "schedule": "step", "milestones": (0.15, 0.3, 0.6), "gamma": 0.1}
    assert list(second.terms) == ["labels", "teacher"]
    assert {name: term.weight for name, term in second.terms.items()} == {"labels": 1.0, "teacher": 1.0}


@pytest.mark.parametrize("loss", ["maps", "density"])
def test_teacher_is_unchanged_and_the_student_learns(
    loss: str, data: Data, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    model = teacher().train()
    before = state_of(model)
    run = Run(data, student, [model], recipe=SHORT, hardware=on_cpu, seed=3)
    trained = find("fastsal")(run, loss=loss)
    assert changed(before, state_of(model)) == set()
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    moved = changed(state_of(student()), state_of(trained))
    assert {name for name, _ in trained.named_parameters()} <= moved
    names = {"maps": ["labels", "teacher"], "density": ["kl", "bce", "angle"]}[loss]
    records = [record["learners"]["student"] for fit in run.fits[1:] for record in fit.history]
    assert all(records[-1][name] < records[0][name] for name in names)


def test_options_of_the_parameters_are_those_of_the_official_code() -> None:
    assert options("encoder.stem.0.weight") == ParameterOptions(lr=0.5)
    assert options("encoder.stem.1.bias") == ParameterOptions(lr=1.0, weight_decay=0)
    assert options("head.weight") == ParameterOptions(lr=1.0)
    assert options("head.bias") == ParameterOptions(lr=2.0, weight_decay=0)


def test_rate_drops_after_15_30_and_60_of_100_epochs() -> None:
    assert segments(100) == [(0, 15), (15, 30), (30, 60), (60, 100)]
    assert [rate(start, 100) for start, _ in segments(100)] == pytest.approx([1, 0.1, 0.01, 0.001])
    assert segments(3) == [(0, 1), (1, 2), (2, 3)]  # 0.45 and 0.9 epochs are rounded to 0 and 1
    assert segments(1) == [(0, 1)]
    for epochs in range(1, 40):
        parts = segments(epochs)
        assert [start for start, _ in parts] == [0, *(end for _, end in parts[:-1])]
        assert parts[-1][1] == epochs


def test_best_weights_so_far_are_loaded_at_each_drop(data: Data, on_cpu: Hardware) -> None:
    run = run_on(data, on_cpu, SHORT.replace(epochs=14, lr=0.05))
    find("fastsal")(run, hint_share=0.0)
    assert [settings["epochs"] for _, settings, _ in run.recorded] == [2, 2, 4, 6]
    rates = [settings["lr"] for _, settings, _ in run.recorded]
    assert rates == pytest.approx([0.05, 0.005, 0.0005, 0.00005])
    best_score, best_state = -1.0, None
    for (_, _, first), fit in zip(run.recorded, run.fits, strict=True):
        if best_state is not None:
            assert all(torch.equal(first[name], value) for name, value in best_state.items())
        selected = fit.selected["student"]
        if selected.score > best_score:
            best_score, best_state = selected.score, selected.state


def test_schedule_of_the_recipe_takes_one_fit_for_each_stage(data: Data, on_cpu: Hardware) -> None:
    run = run_on(data, on_cpu)
    find("fastsal")(run, schedule="recipe", hint_share=0.25)
    assert [settings for _, settings, _ in run.recorded] == [{"epochs": 1}, {"epochs": 3}]


def test_density_needs_no_label(data: Data, on_cpu: Hardware) -> None:
    unlabelled = torch.full_like(data.train.labels, float("nan"))
    bare = replace(data, train=replace(data.train, labels=unlabelled))
    run = Run(bare, student, [teacher()], recipe=SHORT, hardware=on_cpu, check_labels=True)
    trained = find("fastsal")(run, loss="density")
    assert all(value.isfinite().all() for value in trained.state_dict().values())
    with pytest.raises(tutelage.TutelageError, match="no training sample of maps has a label"):
        find("fastsal")(Run(bare, student, [teacher()], recipe=SHORT, hardware=on_cpu, check_labels=True))


@pytest.mark.filterwarnings("ignore:the student fastsal-ax0.25 costs")
def test_interrupted_run_equals_an_uninterrupted_one(data: Data, tmp_path: Path, state_of: Any) -> None:
    class StoppedError(Exception):
        pass

    count = 0

    def stop(record: Any) -> None:
        nonlocal count
        count += 1
        if count == 5:  # in the second part of the second stage
            raise StoppedError

    settings: dict[str, Any] = {"method": "fastsal", "epochs": 12, "batch_size": 16, "lr": 0.02, "device": "cpu"}
    settings |= {"precision": "float32", "settings": {"hint_share": 0.1}}
    model = teacher().module
    whole = tutelage.distill(model, "fastsal-ax0.25", data, out=tmp_path / "whole", **settings)
    with pytest.raises(StoppedError):
        tutelage.distill(model, "fastsal-ax0.25", data, out=tmp_path / "parts", report=stop, **settings)
    parts = tutelage.distill(model, "fastsal-ax0.25", data, out=tmp_path / "parts", **settings)
    files = [(tmp_path / name / "student.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]
    assert whole.metrics["test"] == parts.metrics["test"]
    assert whole.metrics["test"]["teacher_cc"] is not None


def test_teacher_has_its_own_normalisation(data: Data, on_cpu: Hardware) -> None:
    """Student and teacher read the same images; the teacher's inputs are not those of the student."""
    inputs: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    models = {"student": student(), "teacher": Tapped(teacher().module, [0.5], [0.1])}
    for name, model in models.items():
        model.module.register_forward_pre_hook(lambda module, args, name=name: inputs[name].append(args[0].clone()))
    run = Run(data, lambda: models["student"], [models["teacher"]], recipe=SHORT.replace(epochs=1), hardware=on_cpu)
    find("fastsal")(run)
    matched = 0
    for seen in inputs["teacher"]:
        matched += any(
            seen.shape == other.shape and torch.allclose(seen * 0.1 + 0.5, other * 0.2 + 0.3, atol=1e-5)
            for other in inputs["student"]
        )
    assert matched == len(inputs["teacher"]) > 0


def test_networks_without_levels_are_refused(data: Data, on_cpu: Hardware, refused: Any) -> None:
    def run(make: Any, model: Tapped) -> Run:
        return Run(data, make, [model], recipe=SHORT, hardware=on_cpu)

    with refused("the student, OfMaps, has no level1", "fastsal-a", "hint_share=0"):
        find("fastsal")(run(lambda: Tapped(OfMaps()), teacher()))
    with refused("the teacher, OfMaps, has no decoder1", "salgan", "hint_share=0"):
        find("fastsal")(run(student, Tapped(OfMaps())))
    trained = find("fastsal")(run(lambda: Tapped(OfMaps(4)), Tapped(OfMaps())), hint_share=0.0)
    assert isinstance(trained.module, OfMaps)
