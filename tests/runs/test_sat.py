"""The method sat: a step by hand, its variants, and robustness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tutelage.attacks import AdversarialSamples
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.batch import Batch
from tutelage.data.loader import Batches
from tutelage.evaluation import pgd_accuracies
from tutelage.losses import sinkhorn_divergence
from tutelage.methods import find
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult
from tutelage.training.learner import ForwardPass

Net = Callable[..., Tapped]
BRIEF = {"steps": 2}  # for the conformance tests


def train(data: Data, make: Callable[[], Tapped], on_cpu: Hardware, epochs: int = 1, **settings: Any) -> Any:
    recipe = Recipe(epochs=epochs, batch_size=16, lr=0.05)
    run = Run(data, make, recipe=recipe, hardware=on_cpu, seed=3)
    settings = {"radius": 0.1, "step_size": 0.05, "steps": 2} | settings
    return find("sat")(run, **settings), run.fits[0].history


@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_loss_of_first_step(weight: float, tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    """With radius 1e-9 the random start has no effect; the attack has its own tests."""
    data = Data("tiny", tiny_data.classes, tiny_data.train.subset(torch.arange(16)), tiny_data.test)
    _, history = train(data, lambda: tiny_model(2), on_cpu, weight=weight, radius=1e-9)
    batch = next(Batches(data.train, batch_size=16, seed=3).epoch(0))
    model = tiny_model(2).train()
    adversarial_batch = AdversarialSamples(model, 1e-9, 0.05, 2)(batch, Outputs(None), None)
    clean_logits, adversarial_logits = model(batch.inputs), model(adversarial_batch.inputs)
    entry = history[0]["learners"]["student"]
    assert entry["ce"] == pytest.approx(F.cross_entropy(adversarial_logits, batch.targets).item(), rel=1e-4)
    assert ("sinkhorn" in entry) == bool(weight)
    if weight:
        assert entry["sinkhorn"] == pytest.approx(
            sinkhorn_divergence(clean_logits, adversarial_logits).item(), abs=1e-5
        )
    # per sample: the attack's steps, the attacked pass, and the clean pass if it is compared
    assert history[0]["forward_passes"]["student"] == 16 * (2 + 1 + bool(weight))


def test_divergence_is_from_clean_to_attacked(tiny_data: Data, tiny_model: Net) -> None:
    """The order of the authors' code; the iterations end before the divergence is symmetric."""
    learners: list[Learner] = []

    class RecordingRun(Run):
        def fit(self, *trained: Learner, **_: Any) -> FitResult:
            learners.extend(trained)
            return FitResult((), {})

    find("sat")(RecordingRun(tiny_data, lambda: tiny_model(2)), weight=0.7)
    generator = torch.Generator().manual_seed(0)
    clean_logits = torch.randn(16, 4, dtype=torch.float64, generator=generator).requires_grad_()
    adversarial_logits = clean_logits.detach() + torch.randn(16, 4, dtype=torch.float64, generator=generator)
    adversarial_logits.requires_grad_()
    (view,) = learners[0].views()
    batch = Batch(torch.zeros(16, 1, 8, 8), torch.zeros(16).long(), torch.arange(16), None)
    passes = {
        None: ForwardPass(batch, Outputs(clean_logits), None),
        view: ForwardPass(batch, Outputs(adversarial_logits), None),
    }
    loss, _ = learners[0].loss(passes, 0.5)
    forth, back = (
        sinkhorn_divergence(clean_logits, adversarial_logits),
        sinkhorn_divergence(adversarial_logits, clean_logits),
    )
    assert abs(forth.item() - back.item()) > 1e-4
    assert loss.item() == pytest.approx(
        F.cross_entropy(adversarial_logits, batch.targets).item() + 0.7 * forth.item(), rel=1e-6
    )
    for gradient in torch.autograd.grad(loss, (clean_logits, adversarial_logits)):
        assert gradient.abs().max() > 0


def test_variants_differ(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any, changed: Any) -> None:
    states = [
        state_of(train(tiny_data, lambda: tiny_model(2), on_cpu, **settings)[0])
        for settings in ({}, {"weight": 0}, {"clamp": False}, {"regularisation": 0.1})
    ]
    for number, state in enumerate(states):
        assert all(changed(state, other) for other in states[:number])


def test_robustness_improves(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    recipe = Recipe(epochs=15, batch_size=16, lr=0.05)
    accuracies = []
    for method, settings in (("plain", {}), ("sat", {"radius": 0.08, "step_size": 0.02})):
        run = Run(tiny_data, lambda: tiny_model(2), recipe=recipe, hardware=on_cpu)
        model = find(method)(run, **settings)
        accuracies.append(pgd_accuracies(model, tiny_data.test, [0.05, 0.1], workers=0).auac)
    assert accuracies[1] > accuracies[0]


@pytest.mark.parametrize(
    "invalid_settings", [{"radius": 0}, {"step_size": -1}, {"steps": 0}, {"weight": -1}, {"clamp": 3}]
)
def test_invalid_settings_are_refused(
    invalid_settings: dict[str, Any], tiny_data: Data, tiny_model: Net, refused: Any
) -> None:
    ((name, value),) = invalid_settings.items()
    with refused(name, value):
        find("sat")(Run(tiny_data, tiny_model), **invalid_settings)
