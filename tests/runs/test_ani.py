"""The method ani: the start from the teacher, the loss of a step, adversarial training, and files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.attacks import AdversarialSamples
from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data, open_data
from tutelage.data.batch import Batch
from tutelage.data.loader import Batches
from tutelage.errors import TutelageWarning
from tutelage.evaluation import evaluate_attacks, predict
from tutelage.methods import find
from tutelage.methods.ani import AttackedBesideClean, CleanInputs
from tutelage.methods.ani.layer import AdaptiveNoise, silenced
from tutelage.models.outputs import Outputs
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import execute
from tutelage.runs.models import open_model
from tutelage.sources import Frozen
from tutelage.tasks import evaluate
from tutelage.training import Run

Net = Callable[..., Tapped]
BRIEF = {"steps": 2}


def make_run(
    data: Data, make: Callable[[], Tapped], on_cpu: Hardware, teacher: Tapped, lr: float = 0.01, epochs: int = 1
) -> Run:
    recipe = Recipe(epochs=epochs, batch_size=16, lr=lr, weight_decay=0.0)
    return Run(data, make, [teacher], recipe=recipe, hardware=on_cpu, seed=3)


def test_with_scale_0_it_is_the_teacher_bit_for_bit(
    tiny_data: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware
) -> None:
    """Before the first step: the rate of learning is too small to change a weight."""
    teacher = trained_model()
    run = make_run(tiny_data, lambda: tiny_model(2), on_cpu, teacher, lr=1e-30)
    model = find("ani")(run, scale=0.0)
    images = tiny_data.test.inputs.permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
    with torch.no_grad():
        for name, value in teacher.module.named_parameters():
            assert torch.equal(model.module.get_parameter(name), value)
        model.module.load_state_dict(teacher.module.state_dict(), strict=False)  # running statistics of batch norms
        assert torch.equal(model.eval()(images), teacher.eval()(images))
    assert run.notes["start"] == "teacher"


@pytest.mark.parametrize(
    ("start", "width", "noted"), [("auto", 4, "teacher"), ("auto", 3, "initial"), ("initial", 4, "initial")]
)
def test_where_it_starts(
    start: str, width: int, noted: str, tiny_data: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware
) -> None:
    run = make_run(tiny_data, lambda: tiny_model(2, width=width), on_cpu, trained_model(), lr=1e-9)
    model = find("ani")(run, start=start)
    assert run.notes["start"] == noted
    origin = trained_model() if noted == "teacher" else run.student()
    for name, value in origin.module.named_parameters():
        torch.testing.assert_close(model.module.get_parameter(name), value, rtol=0, atol=1e-6)


def test_another_network_is_refused(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, refused: Any) -> None:
    run = make_run(tiny_data, lambda: tiny_model(2, width=3), on_cpu, tiny_model(1))
    with refused("start=teacher", "another network", "start=initial"):
        find("ani")(run, start="teacher")


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_loss_of_the_first_step(alpha: float, tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    """Without noise, so that the loss can be computed by hand."""
    data = Data("tiny", tiny_data.classes, tiny_data.train.subset(torch.arange(16)), tiny_data.test)
    teacher = tiny_model(1).eval()
    run = make_run(data, lambda: tiny_model(2), on_cpu, teacher)
    find("ani")(run, scale=0.0, alpha=alpha, temperature=3.0, start="initial")
    batch = next(Batches(data.train, batch_size=16, seed=3).epoch(0))
    student, target = tiny_model(2).train()(batch.inputs), teacher(batch.inputs)
    entry = run.fits[0].history[0]["learners"]["student"]
    assert entry["ce"] == pytest.approx(0 if alpha == 1 else F.cross_entropy(student, batch.targets).item(), rel=1e-4)
    assert ("kd" in entry) == (alpha > 0)
    if alpha:
        log_student, log_target = ((logits / 3).log_softmax(1) for logits in (student, target))
        expected = 9 * (log_target.exp() * (log_target - log_student)).sum(1).mean()
        assert entry["kd"] == pytest.approx(expected.item(), rel=1e-4)


def test_adversarial_training_attacks_the_student_and_not_the_teacher(
    tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    teacher, student = tiny_model(1).eval(), tiny_model(2)
    images = tiny_data.train.inputs[:4].permute(0, 3, 1, 2) / 255  # type: ignore[index]
    batch = Batch(images, torch.arange(4), torch.arange(4), torch.zeros(4, dtype=torch.int64))
    torch.manual_seed(0)
    attacked = AttackedBesideClean(student, 0.1, 0.05, 2)(batch, Outputs(None), None)
    torch.manual_seed(0)
    expected = AdversarialSamples(student, 0.1, 0.05, 2)(batch, Outputs(None), None)
    assert torch.equal(attacked.inputs, expected.inputs)
    assert not torch.equal(attacked.inputs, images)
    source = CleanInputs(Frozen(teacher))
    assert not source.second_view
    torch.testing.assert_close(source(attacked)["logits"], teacher(images).detach())
    run = make_run(tiny_data, lambda: tiny_model(2), on_cpu, teacher)
    find("ani")(run, adversarial=True, steps=3)
    (fitted,) = run.fits
    assert fitted.history[0]["forward_passes"]["student"] == 48 * (3 + 1)
    assert fitted.history[0]["forward_passes"]["teacher"] == 48


def test_the_degree_of_stochasticity_can_be_trained(
    tiny_data: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware
) -> None:
    run = make_run(tiny_data, lambda: tiny_model(2), on_cpu, trained_model(), lr=0.05, epochs=3)
    model = find("ani")(run, scale=0.5, learnable=True)
    scales = [F.softplus(layer.rho.detach()) for layer in model.modules() if isinstance(layer, AdaptiveNoise)]
    assert scales
    assert all(abs(float(scale) - 0.5) > 1e-3 for scale in scales)


def test_noise_costs_accuracy_and_ten_draws_recover_it(
    tiny_data: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware
) -> None:
    accuracies = []
    for scale in (0.0, 0.3, 3.0):
        run = make_run(tiny_data, lambda: tiny_model(2), on_cpu, trained_model())
        result = evaluate(find("ani")(run, scale=scale).eval(), tiny_data)
        accuracies.append(result["one_draw_accuracy"])
        assert result["ten_draws_accuracy"] >= result["one_draw_accuracy"] - 0.1
        assert scale > 0 or result["one_draw_spread"] == 0
    assert accuracies[0] >= accuracies[1] >= accuracies[2]
    assert accuracies[0] > accuracies[2] + 0.1


def configs(data: str, out: Path, **changes: Any) -> Config:
    shared = {"data": data, "batch_size": 16, "device": "cpu", "precision": "float32", "channels_last": False}
    shared |= {"workers": 0, "student": "resnet8x0.25", "lr": 0.05}
    execute(Config(method="plain", epochs=8, **shared), out / "teacher")
    return Config(**{"method": "ani", "teacher": str(out / "teacher"), "epochs": 2, **shared, **changes})


def test_it_is_reopened_with_its_noise(tiny_npz: str, tmp_path: Path) -> None:
    config = configs(tiny_npz, tmp_path, settings={"scale": 0.3})
    result = execute(config, tmp_path / "run")
    data = open_data(tiny_npz)
    model = open_model(str(tmp_path / "run"), data)
    assert [operation["operation"] for operation in applied_operations(model.module)] == ["ani"]
    assert torch.equal(predict(model, data.test, device="cpu"), predict(result.model, data.test, device="cpu"))
    images = torch.rand(5, 1, 8, 8)
    assert not torch.equal(model(images), model(images))
    with silenced(model):
        assert torch.equal(model(images), model(images))
    metrics: dict[str, Any] = result.metrics["test"]
    assert evaluate(model, data)["one_draw_accuracy"] == metrics["one_draw_accuracy"]
    assert metrics["accuracy"] is not None
    report = evaluate_attacks(model, data.test, ["pgd:0.1:draws=3:steps=3"], workers=0)
    assert report.robust_accuracy is not None
    with pytest.warns(TutelageWarning, match="the network is random"):
        evaluate_attacks(model, data.test, ["pgd:0.1:steps=2"], workers=0)


def test_statistics_of_the_evaluated_batch_are_an_option(
    tiny_data: Data, tiny_model: Net, trained_model: Net, on_cpu: Hardware
) -> None:
    """With ``source=batch`` the noise of a sample depends on the others in its batch."""

    def noise(source: str) -> list[Tensor]:
        model = find("ani")(make_run(tiny_data, lambda: tiny_model(2), on_cpu, trained_model()), source=source).eval()
        images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        results = []
        for others in (images[1:], 0 * images[1:]):
            torch.manual_seed(0)
            results.append(model(torch.cat([images[:1], others]))[0].detach())
        return results

    torch.testing.assert_close(*noise("running"), rtol=1e-4, atol=1e-5)
    first, second = noise("batch")
    assert (first - second).abs().max() > 1e-3
