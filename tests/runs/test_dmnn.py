"""The method dmnn: it reaches its target, its gates depend on the input, and its student skips paths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tutelage
from tutelage.config import Hardware, Recipe
from tutelage.data import Data, open_data
from tutelage.evaluation import accuracy
from tutelage.methods import find
from tutelage.methods.dmnn import GateSchedule
from tutelage.methods.dmnn.gates import Gates
from tutelage.methods.dmnn.usage import gate_usage
from tutelage.models.load import make_model
from tutelage.models.tapped import Tapped
from tutelage.runs.models import open_model
from tutelage.studies.functions import read_lines
from tutelage.training import Run

STUDENT = "dmnn11x0.25"
"""The kind of network that the method trains."""

SHORT = Recipe(epochs=2, batch_size=16, lr=0.05)


def student(width: str = "0.25") -> Tapped:
    return Tapped(make_model(f"dmnn11x{width}", num_classes=4, input_shape=(1, 8, 8)).module, [0.4], [0.3])


def pixels(data: Data) -> Tensor:
    assert isinstance(data.test.inputs, Tensor)
    return data.test.inputs.permute(0, 3, 1, 2) / 255


def test_schedule_of_the_gates(tiny_data: Data, on_cpu: Hardware) -> None:
    seen: list[tuple[float, float, bool]] = []

    def make() -> Tapped:
        model = student()
        gates = model.module.gates

        def note(module: Gates, _inputs: Any, output: Tensor) -> None:
            if module.training and torch.is_grad_enabled():
                seen.append((float(module.temperature), float(module.open), bool((output == 1).all())))

        gates.register_forward_hook(note)  # type: ignore[union-attr, operator]
        return model

    recipe = SHORT.replace(epochs=10)
    find("dmnn")(Run(tiny_data, make, recipe=recipe, hardware=on_cpu, seed=1), warm_up=0.2)
    steps = seen[::3]  # three blocks
    assert len(steps) == 30
    assert [opened for _, opened, _ in steps] == [1.0] * 6 + [0.0] * 24
    assert all(every for _, _, every in seen[:18])
    assert not all(every for _, _, every in seen[18:])
    assert [t for t, _, _ in steps] == pytest.approx([1 - 0.5 * step / 30 for step in range(30)])


def test_terms_and_notes(tiny_data: Data, on_cpu: Hardware) -> None:
    run = Run(tiny_data, student, recipe=SHORT, hardware=on_cpu)
    trained = find("dmnn")(run, warm_up=0.5)
    first, second = (record["learners"]["student"] for record in run.fits[0].history)
    assert first["rate"] == 0  # no weight while all gates are open
    assert second["rate"] > 0
    assert second["category"] > 0
    usage = run.notes["gates"]
    assert len(usage["open_share"]) == 6
    assert not any("classifiers" in name for name in trained.state_dict())
    assert list(trained.state_dict()) == list(student().state_dict())


@pytest.mark.parametrize("settings", [{"category_weight": 0}, {"groups": "0,0,1,1"}, {"rate_of": "sampled"}])
def test_settings(settings: Any, tiny_data: Data, on_cpu: Hardware, state_of: Any, changed: Any) -> None:
    states = []
    for chosen in ({}, settings):
        run = Run(tiny_data, student, recipe=SHORT, hardware=on_cpu)
        states.append(state_of(find("dmnn")(run, warm_up=0.1, **chosen)))
    assert changed(*states)
    assert ("category" in run.fits[0].history[0]["learners"]["student"]) == (settings != {"category_weight": 0})


def test_executed_share_follows_its_target_and_gates_depend_on_the_input(on_cpu: Hardware) -> None:
    """Five epochs are too few for the exact share; it must be ordered as the targets are, with a margin."""
    data = open_data("digits")

    def make() -> Tapped:
        return Tapped(make_model("dmnn11x0.5", num_classes=10, input_shape=(1, 8, 8)).module, *data.mean_std)

    recipe = Recipe(epochs=5, batch_size=64, lr=0.1, schedule="cosine")
    shares = []
    for target in (0.4, 0.8):
        run = Run(data, make, recipe=recipe, hardware=on_cpu, seed=1)
        trained = find("dmnn")(run, target=target)
        gates = run.predict(trained, data.test, ("gates",))
        usage = gate_usage(gates, data.test.labels, trained.module.path_flops)  # type: ignore[arg-type]
        shares.append(usage["executed_share"])
        assert float(accuracy(run.predict(trained, data.test), data.test.labels)) > 0.5
    assert shares[0] + 0.15 < shares[1] < 0.95
    assert usage["class_information"] > usage["class_information_by_chance"]
    assert usage["gate_variance"] > 0.005


def test_measured_shares_are_within_3_hundredths_of_their_targets_and_gates_depend_on_the_input() -> None:
    """The results of ``experiments.dmnn``, whose trainings are too long for a test."""
    lines = read_lines(Path(__file__).parents[2] / "docs" / "results" / "dmnn.jsonl")
    measured = [(float(line["row"][-3:]), line["measured"]) for line in lines if line["row"].startswith("target ")]
    assert len(measured) == 15
    for target, values in measured:
        assert values["executed"] == pytest.approx(target, abs=0.03)
        assert values["masking"] <= 1e-6
        assert values["variance"] > 0.02
        assert values["information"] > 0.1


def test_run_folder_is_opened_again_with_executed_operations(tiny_data: Data, tmp_path: Path) -> None:
    result = tutelage.train(
        STUDENT, tiny_data, method="dmnn", epochs=2, batch_size=16, device="cpu", out=tmp_path / "run"
    )
    opened = open_model(str(tmp_path / "run"), tiny_data)
    assert torch.equal(opened(pixels(tiny_data)), result.model(pixels(tiny_data)))
    assert {"flops", "parameters"} <= result.metrics["cost"].keys()


def test_networks_without_gates_are_refused(tiny_data: Data, tiny_model: Any, on_cpu: Hardware, refused: Any) -> None:
    with refused("DMNN trains gates", "TinyNet has none", "dmnn20"):
        find("dmnn")(Run(tiny_data, tiny_model, recipe=SHORT, hardware=on_cpu))


@pytest.mark.parametrize("groups", ["0,1", "0,1,2,9", "a,b,c,d", "0,1,-1,2"])
def test_invalid_groups_are_refused(groups: str, tiny_data: Data, on_cpu: Hardware, refused: Any) -> None:
    with refused("groups must be 4 numbers from 0 to 3", groups):
        find("dmnn")(Run(tiny_data, student, recipe=SHORT, hardware=on_cpu), groups=groups)


def test_the_rule_has_no_state() -> None:
    assert not hasattr(GateSchedule(Gates(), 0.1), "state_dict")
