"""The barcode task: what it adds to the string task."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tutelage.data import Data
from tutelage.data.formats.barcodes import Barcodes, Distortions, render
from tutelage.data.formats.ean13 import modules, with_check_digit
from tutelage.evaluation.smart_inference import Reading
from tutelage.tasks import Curve, evaluate, find_task
from tutelage.tasks.barcode import CANDIDATES, outcomes


@pytest.fixture
def data() -> Data:
    generator = torch.Generator().manual_seed(5)

    def part(size: int) -> tuple[Tensor, Tensor]:
        strings = with_check_digit(torch.randint(10, (size, 12), generator=generator))
        return render(modules(strings)), strings

    return Data.from_arrays(part(24), part(400), name="bars", targets=Barcodes(), views=Distortions())


class FixedLogits(nn.Module):
    """A network that returns the given logits."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.count = logits, 0

    def forward(self, images: Tensor) -> Tensor:
        self.count += len(images)
        return self.logits[(self.count - len(images)) % len(self.logits) :][: len(images)]


def test_shares_of_outcomes_sum_to_one() -> None:
    symbols = torch.tensor([[1, 2], [1, 3], [4, 4], [5, 5], [6, 6]])
    labels = torch.tensor([[1, 2], [1, 2], [4, 4], [5, -1], [-1, -1]])
    reading = Reading(symbols, torch.tensor([True, True, False, True, True]), torch.zeros(5))
    assert outcomes(reading, labels) == {"right": 0.5, "false": 0.25, "none": 0.25}
    assert outcomes(reading, torch.full((5, 2), -1)) == {"right": None, "false": None, "none": None}


def test_false_reads_of_noise_increase_with_the_number_of_candidates(data: Data) -> None:
    logits = torch.randn(400, 13, 10, generator=torch.Generator().manual_seed(6))
    result = evaluate(FixedLogits(logits), data)
    curve = result["smart_inference"]
    assert curve["candidates"] == list(CANDIDATES)
    assert curve["false"] == sorted(curve["false"])
    assert curve["false"][0] < 0.2
    assert curve["false"][-1] > 0.8
    for shares in zip(curve["right"], curve["false"], curve["none"], strict=True):
        assert sum(shares) == pytest.approx(1)
    assert result["false_reads"] == curve["false"][CANDIDATES.index(2)]
    assert result["checked_false_reads"] == curve["false"][0]


def test_uncertain_digit_is_corrected(data: Data) -> None:
    labels = data.test.labels
    logits = 20 * nn.functional.one_hot(labels, 10).float()
    rows, position = torch.arange(len(labels)), torch.arange(len(labels)) % 13
    logits[rows, position, labels[rows, position]] = 1.0
    logits[rows, position, (labels[rows, position] + 1) % 10] = 1.1
    result = evaluate(FixedLogits(logits), data)
    assert result["string_accuracy"] == 0
    assert result["symbol_accuracy"] == pytest.approx(12 / 13)
    assert result["read_accuracy"] == result["most_probable_accuracy"] == 1
    assert result["false_reads"] == result["checked_false_reads"] == 0
    assert result["smart_inference"]["none"] == [1, 0, 0, 0, 0, 0]


def test_barcode_task_has_the_string_metrics_and_a_checksum_rule(data: Data) -> None:
    task, strings = find_task("barcode"), find_task("strings")
    assert data.targets.task == task.name
    assert task.main_metric == strings.main_metric == "string_accuracy"
    assert strings.metrics.items() <= task.metrics.items()
    assert "check digit" in task.decision_rule
    assert not strings.decision_rule
    network = FixedLogits(torch.randn(400, 13, 10))
    assert task.metrics.keys() - {"teacher_string_accuracy"} <= evaluate(network, data).keys()
    assert isinstance(task.metrics["smart_inference"], Curve)
    assert set(evaluate(network, data, task="barcode")) > {"samples", "nll"}
