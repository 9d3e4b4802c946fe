"""The method maxdropout: layers during training, and the plain network afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

import tutelage
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.evaluation import accuracy
from tutelage.methods import find
from tutelage.methods.maxdropout.layer import MaxDropout
from tutelage.models.tapped import Tapped
from tutelage.training import FitResult, Learner, Run

SHORT = Recipe(epochs=2, batch_size=16, lr=0.05)


def a_run(data: Data, make: Callable[[], Tapped], hardware: Hardware, **options: Any) -> Run:
    return Run(data, make, hardware=hardware, seed=3, **{"recipe": SHORT, **options})


def pixels(data: Data) -> Tensor:
    assert isinstance(data.test.inputs, Tensor)
    return data.test.inputs.permute(0, 3, 1, 2) / 255


@pytest.mark.parametrize("position", ["stages", "dropout"])
def test_layers_exist_only_during_training(
    position: str, tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> None:
    run = a_run(tiny_data, lambda: tiny_model(dropout=0.2), on_cpu)
    fit, layers = run.fit, list[MaxDropout]()

    def recording_fit(learner: Learner, **changes: Any) -> FitResult:
        layers.extend(m for m in learner.model.modules() if isinstance(m, MaxDropout))
        assert not learner.terms.keys() - {"ce"}
        return fit(learner, **changes)

    run.fit = recording_fit  # type: ignore[method-assign, assignment]
    student = find("maxdropout")(run, where=position, rate=0.4)
    units = 6 * 16 * (8 if position == "dropout" else 4 * 8 * 8)  # six steps; the held-out split is not counted
    assert [layer.rate for layer in layers] == [0.4] * (2 if position == "stages" else 1)
    assert layers[0].total == units
    assert list(student.dropped) == (["stage1", "stage2"] if position == "stages" else ["drop"])  # type: ignore[arg-type]
    assert all(0 < share < 1 for share in student.dropped.values())  # type: ignore[union-attr, operator]
    new_model = tiny_model(dropout=0.2)
    assert list(student.state_dict()) == list(new_model.state_dict())
    assert repr(student.module) == repr(new_model.module)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in student.modules())
    expected = accuracy(student.eval()(pixels(tiny_data)), tiny_data.test.labels)
    new_model.load_state_dict(student.state_dict())
    assert expected == accuracy(new_model.eval()(pixels(tiny_data)), tiny_data.test.labels)


@pytest.mark.parametrize("position", ["stages", "dropout"])
def test_rate_zero_equals_plain(
    position: str, tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    """With where=stages nn.Dropout remains; with where=dropout it equals a network without dropout."""
    dropout = 0.2 if position == "stages" else 0.0
    states = [
        state_of(find(method)(a_run(tiny_data, lambda: tiny_model(dropout=dropout), on_cpu), **settings))
        for method, settings in (("plain", {}), ("maxdropout", {"rate": 0, "where": position}), ("maxdropout", {}))
    ]
    assert changed(states[0], states[1]) == set()
    assert changed(states[0], states[2])


def test_layers_are_removed_after_an_error(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware
) -> None:
    networks: list[Tapped] = []

    def make() -> Tapped:
        networks.append(tiny_model(dropout=0.2))
        return networks[-1]

    def stop(record: Any) -> None:
        raise KeyboardInterrupt

    for position in ("stages", "dropout"):
        with pytest.raises(KeyboardInterrupt):
            find("maxdropout")(a_run(tiny_data, make, on_cpu, report=stop), where=position)
        assert repr(networks[-1]) == repr(tiny_model(dropout=0.2))
        assert not any(m._forward_hooks for m in networks[-1].modules())


def test_random_rate_changes_training(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    states = [
        state_of(find("maxdropout")(a_run(tiny_data, tiny_model, on_cpu), rate=0.6, random_rate=random))
        for random in (True, True, False)
    ]
    assert changed(states[0], states[1]) == set()  # its random numbers depend on the run's seed
    assert changed(states[0], states[2])


def test_weights_file_is_that_of_plain_student(tiny_npz: str, tmp_path: Any, state_of: Any, changed: Any) -> None:
    def train() -> tutelage.Result:
        return tutelage.train(
            "resnet8x0.25", tiny_npz, method="maxdropout", out=tmp_path / "run", epochs=1, batch_size=16, device="cpu"
        )

    first, second_run = train(), train()
    assert changed(state_of(first.model), state_of(second_run.model)) == set()


def test_networks_without_stages_or_dropout_are_refused(
    tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware, refused: Any
) -> None:
    flat = lambda: Tapped(nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 4)))  # noqa: E731
    with refused("Sequential has no stages", "roles=", "where=dropout"):
        find("maxdropout")(a_run(tiny_data, flat, on_cpu))
    with refused("Sequential has no nn.Dropout", "where=stages"):
        find("maxdropout")(a_run(tiny_data, flat, on_cpu), where="dropout")


@pytest.mark.parametrize("invalid_settings", [{"rate": -0.1}, {"rate": 1.5}, {"where": "everywhere"}])
def test_invalid_settings_are_refused(
    invalid_settings: dict[str, Any], tiny_data: Data, tiny_model: Any, refused: Any
) -> None:
    ((name, value),) = invalid_settings.items()
    with refused(name, value):
        find("maxdropout")(Run(tiny_data, tiny_model), **invalid_settings)
