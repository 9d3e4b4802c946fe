"""The method orthogonal: bases, the four losses in closed form, the changed network, and places after training."""

from __future__ import annotations

import copy
import math
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
from tutelage.data import Batch, Data
from tutelage.errors import TutelageWarning
from tutelage.methods import find
from tutelage.methods.orthogonal import class_cosines, places_of
from tutelage.methods.orthogonal.loss import Form, OrthogonalPlacement, orthogonal_placement
from tutelage.methods.orthogonal.surgery.orthogonal import Kind, apply, cosines, orthonormal_basis
from tutelage.models.outputs import Outputs
from tutelage.models.surgery import applied_operations, reapply
from tutelage.models.tapped import Tapped
from tutelage.training import Run

Net = Callable[..., Tapped]
KINDS: tuple[Kind, ...] = ("identity", "random", "hadamard")
FORMS: tuple[Form, ...] = ("direction", "squares", "cross_entropy", "energy")
SHORT = Recipe(epochs=3, batch_size=16, lr=0.05)


def loss(features: Tensor, targets: Tensor, basis: Tensor, form: Form, scale: float = 16.0) -> Tensor:
    return orthogonal_placement(cosines(features, basis), targets, form, scale)


def made_up(samples: int = 6, size: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(samples, size, generator=generator, dtype=torch.float64), torch.arange(samples) % 4


# --- bases


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("classes", "features"), [(4, 8), (8, 8), (10, 64), (100, 512)])
def test_bases_are_orthonormal(kind: Kind, classes: int, features: int) -> None:
    basis = orthonormal_basis(kind, classes, features)
    assert basis.shape == (classes, features)
    assert basis.dtype == torch.float32
    assert torch.linalg.matrix_norm(basis @ basis.T - torch.eye(classes)) < 1e-6 * math.sqrt(classes)


def test_elements_of_the_bases() -> None:
    assert torch.equal(orthonormal_basis("identity", 3, 5), torch.eye(5)[:3])
    assert (orthonormal_basis("hadamard", 7, 16).abs() == 0.25).all()
    first, again, other = (orthonormal_basis("random", 4, 8, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.1)


def test_random_basis_has_no_preferred_direction() -> None:
    """The mean of b_1 over seeds is 0; without the sign of R's diagonal it is not."""
    rows = torch.stack([orthonormal_basis("random", 2, 4, seed)[0] for seed in range(400)])
    assert rows.mean(0).abs().max() < 4 * 0.5 / math.sqrt(400)
    torch.testing.assert_close(rows.square().mean(0), torch.full((4,), 0.25), atol=0.07, rtol=0)


@pytest.mark.parametrize(
    ("kind", "classes", "features", "pieces"),
    [
        ("identity", 10, 8, ("10 classes", "only 8 inputs", "wider network")),
        ("random", 10, 8, ("10 classes", "only 8 inputs", "wider network")),
        ("hadamard", 10, 48, ("power of two", "48", "random basis")),
        ("fourier", 4, 8, ("'fourier'", "hadamard")),
    ],
)
def test_impossible_bases_are_refused(
    kind: Kind, classes: int, features: int, pieces: tuple[str, ...], refused: Any
) -> None:
    with refused(*pieces):
        orthonormal_basis(kind, classes, features)


# --- losses


def test_losses_at_a_place_and_at_another_one() -> None:
    basis = orthonormal_basis("random", 4, 8).double()
    own, other = 5 * basis[[2]], 0.3 * basis[[1]]
    target = torch.tensor([2])
    for form in ("direction", "squares", "energy"):
        assert loss(own, target, basis, form).item() == pytest.approx(0, abs=2e-7)
    assert loss(other, target, basis, "direction").item() == pytest.approx(2, abs=1e-6)
    assert loss(other, target, basis, "squares").item() == pytest.approx(2, abs=1e-6)
    assert loss(other, target, basis, "energy").item() == pytest.approx(-math.log(1e-8), abs=1e-5)
    assert loss(-own, target, basis, "energy").item() == pytest.approx(0, abs=2e-7)
    assert loss(-own, target, basis, "direction").item() == pytest.approx(4, abs=1e-6)
    expected = math.log(math.exp(16) + 3) - 16
    assert loss(own, target, basis, "cross_entropy").item() == pytest.approx(expected, abs=1e-6)


def test_losses_outside_of_the_span_of_the_places() -> None:
    basis = orthonormal_basis("identity", 3, 5).double()
    features, target = torch.eye(5).double()[[4]], torch.tensor([1])
    assert loss(features, target, basis, "direction").item() == 2
    assert loss(features, target, basis, "squares").item() == 1
    assert cosines(features, basis).abs().max() == 0


@pytest.mark.parametrize("form", FORMS)
def test_loss_equals_plain_loops(form: Form) -> None:
    features, targets = made_up()
    basis = orthonormal_basis("random", 4, 8).double()
    expected = []
    for row, label in zip(features.tolist(), targets.tolist(), strict=True):
        length = math.sqrt(sum(x * x for x in row))
        u = [sum(b * x for b, x in zip(place, row, strict=True)) / length for place in basis.tolist()]
        if form == "direction":
            value = sum((x / length - b) ** 2 for x, b in zip(row, basis[label].tolist(), strict=True))
        elif form == "squares":
            value = sum((score - (c == label)) ** 2 for c, score in enumerate(u))
        elif form == "cross_entropy":
            value = -math.log(math.exp(9 * u[label]) / sum(math.exp(9 * score) for score in u))
        else:
            value = -math.log(u[label] ** 2 + 1e-8)
        expected.append(value)
    assert loss(features, targets, basis, form, 9.0).tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_length_of_features_does_not_matter_and_gradients_are_orthogonal_to_them(form: Form) -> None:
    features, targets = made_up()
    basis = orthonormal_basis("random", 4, 8).double()
    features.requires_grad_()
    value = loss(features, targets, basis, form)
    torch.testing.assert_close(loss(5 * features, targets, basis, form), value)
    (grad,) = torch.autograd.grad(value.sum(), features)
    assert (features * grad).sum(1).abs().max() < 1e-6
    assert grad.abs().max() > 0.1
    assert torch.autograd.gradcheck(lambda h: loss(h, targets, basis, form), features)


@pytest.mark.parametrize("form", FORMS)
def test_rotation_of_features_and_places_does_not_matter(form: Form) -> None:
    features, targets = made_up()
    basis = orthonormal_basis("random", 4, 8).double()
    rotation = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double()).Q
    torch.testing.assert_close(
        loss(features @ rotation, targets, basis @ rotation, form), loss(features, targets, basis, form)
    )


def test_squares_equal_direction_with_as_many_classes_as_features() -> None:
    features, targets = made_up(size=4)
    basis = orthonormal_basis("random", 4, 4).double()
    direction = loss(features, targets, basis, "direction")
    torch.testing.assert_close(loss(features, targets, basis, "squares"), direction, atol=1e-6, rtol=0)


def test_energies_and_residual_add_up_to_one() -> None:
    features, _ = made_up()
    basis = orthonormal_basis("random", 4, 8).double()
    residual = features - features @ basis.T @ basis
    shares = residual.square().sum(1) / features.square().sum(1)
    torch.testing.assert_close(
        cosines(features, basis).square().sum(1) + shares, torch.ones(6).double(), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("form", FORMS)
def test_features_of_length_zero_are_finite_and_have_no_gradient(form: Form) -> None:
    features = torch.zeros(2, 8, requires_grad=True)
    value = loss(features, torch.tensor([0, 1]), orthonormal_basis("identity", 4, 8), form)
    assert value.isfinite().all()
    (grad,) = torch.autograd.grad(value.sum(), features)
    assert (grad == 0).all()


def test_soft_labels(refused: Any) -> None:
    features, targets = made_up()
    u = cosines(features, orthonormal_basis("random", 4, 8).double())
    soft = F.one_hot(targets, 4).double()
    mixed = 0.5 * soft + 0.5 * soft.roll(1, 0)
    for form in ("squares", "cross_entropy"):
        torch.testing.assert_close(orthogonal_placement(u, soft, form), orthogonal_placement(u, targets, form))
    torch.testing.assert_close(orthogonal_placement(u, mixed, "squares"), (u - mixed).square().sum(1))
    for form in ("direction", "energy"):
        with refused(f"'{form}'", "soft", "squares or cross_entropy"):
            orthogonal_placement(u, mixed, form)


@pytest.mark.parametrize("form", FORMS)
def test_samples_without_a_label_have_no_loss(form: Form, batch_of: Callable[[Tensor], Batch]) -> None:
    values = torch.rand(3, 4, requires_grad=True)
    term = OrthogonalPlacement(form)
    value = term(Outputs(None, {"cosines": values}), None, batch_of(torch.tensor([1, -1, 2])))
    assert value.shape == (3,)
    assert value[1] == 0
    (grad,) = torch.autograd.grad(value.sum(), values)
    assert (grad[1] == 0).all()
    assert (grad[0] != 0).any()


def test_unknown_form_is_refused(refused: Any) -> None:
    with refused("'angle'", "direction", "energy"):
        orthogonal_placement(torch.zeros(1, 2), torch.tensor([0]), "angle")  # type: ignore[arg-type]


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
