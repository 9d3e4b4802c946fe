"""The method orthogonal: the changed network, and places after training."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tutelage
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.errors import TutelageWarning
from tutelage.methods import find
from tutelage.methods.orthogonal import class_cosines, places_of
from tutelage.methods.orthogonal.loss import Form, orthogonal_placement
from tutelage.methods.orthogonal.surgery.orthogonal import Kind, apply, cosines, orthonormal_basis
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.tapped import Tapped
from tutelage.training import Run

Net = Callable[..., Tapped]
KINDS: tuple[Kind, ...] = ("identity", "random", "hadamard")
FORMS: tuple[Form, ...] = ("direction", "squares", "cross_entropy", "energy")
SHORT = Recipe(epochs=3, batch_size=16, lr=0.05)


def loss(features: Tensor, targets: Tensor, basis: Tensor, form: Form, scale: float = 16.0) -> Tensor:
    return orthogonal_placement(cosines(features, basis), targets, form, scale)


# --- the network


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("projection", [0, 1])
def test_changed_network(kind: Kind, projection: int, tiny_model: Net) -> None:
    original, example = tiny_model().module.eval(), torch.rand(5, 1, 8, 8)
    stages = Tapped(copy.deepcopy(original)).trace(example).stages
    network = apply(copy.deepcopy(original), example, basis=kind, projection=projection, scale=10.0)
    keys = {key for key in original.state_dict() if not key.startswith("fc")} | {"fc.places.basis"}
    assert network.state_dict().keys() == keys | (
        {"fc.projection.weight", "fc.projection.bias"} if projection else set()
    )
    assert "fc.places.basis" not in dict(network.named_parameters())
    assert not places_of(network).requires_grad
    tapped = Tapped(network)
    outputs = tapped.tap(example, ("logits", "cosines", "embedding", *stages))
    assert tapped.stages == stages
    expected = F.normalize(outputs["embedding"]) @ orthonormal_basis(kind, 4, 8).T
    torch.testing.assert_close(outputs["cosines"], expected)
    torch.testing.assert_close(outputs["logits"], 10 * expected)
    rebuilt = reapply(copy.deepcopy(original), applied_operations(network), example)
    rebuilt.load_state_dict(network.state_dict())
    assert torch.equal(rebuilt(example), network(example))


def test_energy_logits_have_energies_as_probabilities(tiny_model: Net) -> None:
    example = torch.rand(5, 1, 8, 8)
    network = apply(tiny_model().module.eval(), example, scores="energy")
    outputs = Tapped(network).tap(example, ("logits", "cosines"))
    energies = outputs["cosines"].square()
    torch.testing.assert_close(
        outputs["logits"].softmax(1), energies / energies.sum(1, keepdim=True), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "pieces"),
    [
        ({"scores": "angle"}, ("'angle'", "energy")),
        ({"scale": 0.0}, ("scale", "0.0", "16")),
        ({"basis": "fourier"}, ("'fourier'", "random")),
    ],
)
def test_invalid_operations_are_refused(
    settings: dict[str, Any], pieces: tuple[str, ...], tiny_model: Net, refused: Any
) -> None:
    with refused(*pieces):
        apply(tiny_model().module.eval(), torch.rand(2, 1, 8, 8), **settings)


# --- the method


ADAM = Recipe(epochs=40, batch_size=16, optimizer="Adam", lr=0.01, weight_decay=0, schedule="cosine", clip=1.0)


def mlp(data: Data) -> Tapped:
    """A network whose 16 features are not behind a ReLU."""
    hidden = [nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16)]
    return Tapped(nn.Sequential(nn.Flatten(), *hidden, nn.Linear(16, 4)), *data.mean_std)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("basis", KINDS)
def test_class_means_approach_their_places(form: Form, basis: Kind, tiny_data: Data, on_cpu: Hardware) -> None:
    """Cross-entropy at a scale of 16 stops earlier: its gradient is small once the own cosine is larger by a half."""
    run = Run(tiny_data, lambda: mlp(tiny_data), recipe=ADAM, hardware=on_cpu, seed=1)
    student = find("orthogonal")(run, form=form, basis=basis, projection=False)
    own, other = class_cosines(run, student, signed=form != "energy")
    predicted = run.predict(student, tiny_data.test).argmax(1)
    assert (predicted == tiny_data.test.labels).float().mean() > 0.9
    assert own > (0.0 if form == "cross_entropy" else 0.9)
    assert other < (1.0 if form == "cross_entropy" else 0.2)
    assert run.notes == {"own_cosine": own, "other_cosine": other}
    assert torch.equal(places_of(student.module), orthonormal_basis(basis, 4, 16, seed=1))


def test_places_are_not_decayed(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    run = Run(tiny_data, tiny_model, recipe=SHORT.replace(weight_decay=1.0, lr=0.01), hardware=on_cpu)
    assert torch.equal(places_of(find("orthogonal")(run).module), torch.eye(4, 8))


@pytest.mark.parametrize(
    ("basis", "projection", "trapped"),
    [("random", False, True), ("hadamard", False, True), ("hadamard", True, False), ("identity", False, False)],
)
def test_features_behind_a_relu_reach_the_identity_basis_alone(
    basis: Kind, projection: bool, trapped: bool, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    """Cosines are limited, and with a Hadamard basis training accuracy too, unless a projection is added."""
    run = Run(tiny_data, lambda: tiny_model(width=8), recipe=ADAM, hardware=on_cpu, seed=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        student = find("orthogonal")(run, basis=basis, projection=projection)
    texts = [str(warning.message) for warning in caught if issubclass(warning.category, TutelageWarning)]
    accuracy = float((run.predict(student, tiny_data.train).argmax(1) == tiny_data.train.labels).float().mean())
    assert len(texts) == int(trapped)
    assert all("projection=true" in text and "TinyNet" in text for text in texts)
    if trapped:
        assert run.notes["own_cosine"] < 0.8
        assert basis == "random" or accuracy < 0.6
    else:
        assert run.notes["own_cosine"] > 0.85
        assert accuracy > 0.9


def test_too_few_features_are_refused(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any) -> None:
    with refused("4 classes", "only 2 inputs", "wider network"):
        find("orthogonal")(Run(tiny_data, lambda: tiny_model(width=1), recipe=SHORT, hardware=on_cpu))


def test_network_without_a_linear_classifier_is_refused(tiny_data: Data, refused: Any) -> None:
    with refused("classifier", "Sequential", "nn.Linear"):
        find("orthogonal")(Run(tiny_data, lambda: Tapped(nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten()))))


def test_weights_file_is_loaded_with_the_places(tiny_npz: str, tiny_data: Data, tmp_path: Path) -> None:
    def train() -> tutelage.Result:
        return tutelage.train(
            "resnet8x0.25",
            tiny_npz,
            method="orthogonal",
            settings={"basis": "random", "form": "squares"},
            out=tmp_path / "run",
            epochs=2,
            batch_size=16,
            device="cpu",
            seed=3,
        )

    first, repeated = train(), train()
    inputs = tiny_data.test.inputs
    assert isinstance(inputs, Tensor)
    images = inputs.permute(0, 3, 1, 2) / 255
    assert torch.equal(first.model.eval()(images), repeated.model.eval()(images))
    assert torch.equal(places_of(repeated.model.module), orthonormal_basis("random", 4, 16, seed=3))
    assert -1 <= first.metrics["notes"]["own_cosine"] <= 1


@pytest.mark.parametrize("settings", [{"basis": "random", "form": "cross_entropy"}])
def test_resumed_run_equals_an_uninterrupted_one(
    settings: dict[str, Any],
    tmp_path: Path,
    tiny_data: Data,
    tiny_model: Net,
    on_cpu: Hardware,
    state_of: Any,
    changed: Any,
) -> None:
    states = []
    for folder, stops in (("uninterrupted", [None]), ("stopped", [1, 2, None])):
        for stop in stops:

            def report(record: dict[str, Any], stop: int | None = stop) -> None:
                if record["epoch"] == stop:
                    raise KeyboardInterrupt

            options: dict[str, Any] = {"recipe": SHORT, "hardware": on_cpu, "folder": tmp_path / folder}
            try:
                student = find("orthogonal")(Run(tiny_data, tiny_model, report=report, **options), **settings)
            except KeyboardInterrupt:
                continue
        states.append(state_of(student))
    assert changed(*states) == set()


def test_invalid_settings_are_refused(tiny_data: Data, tiny_model: Net, refused: Any) -> None:
    for wrong in ({"form": "angle"}, {"basis": "fourier"}, {"scale": 0}):
        with refused(*wrong, *map(str, wrong.values())):
            find("orthogonal")(Run(tiny_data, tiny_model), **wrong)
