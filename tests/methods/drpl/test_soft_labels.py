"""The stored labels of DRPL: averages of the last epochs, and pseudo-labels."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tutelage.data import Split
from tutelage.methods.drpl.labels import AveragedLabels, PseudoLabels

N, C = 23, 4


@pytest.fixture
def split() -> Split:
    return Split.of(torch.zeros(N, 2, 2, 1, dtype=torch.uint8), torch.arange(N) % C)


def predictions(seed: int, count: int = N) -> Tensor:
    return torch.randn(count, C, generator=torch.Generator().manual_seed(seed)).softmax(1)


@pytest.mark.parametrize(("start", "window"), [(1, 3), (4, 3), (2, 1)])
def test_labels_are_the_mean_of_the_last_predictions(split: Split, start: int, window: int) -> None:
    initial = F.one_hot(split.labels, C).float()
    rule = AveragedLabels(split, initial, 1, start=start, window=window)
    history: list[list[list[float] | None]] = [[] for _ in range(N)]
    expected = initial.tolist()
    for epoch in range(9):
        seen = torch.randperm(N, generator=torch.Generator().manual_seed(epoch))[:15]  # others are in no batch
        values = predictions(epoch)
        rule.record(seen, values[seen], epoch)
        rule.end_epoch(epoch)
        for row in range(N):
            history[row].append(values[row].tolist() if row in seen.tolist() else None)
            last = [value for value in history[row][-window:] if value is not None]
            if epoch + 1 >= start and last:
                expected[row] = [sum(column) / len(last) for column in zip(*last, strict=True)]
        assert torch.allclose(rule.labels.values, torch.tensor(expected), atol=1e-6)


def test_sample_without_label_gets_one_at_the_start(split: Split) -> None:
    rule = AveragedLabels(split, torch.zeros(N, C), 1, start=2, window=2)
    for epoch in range(2):
        assert (rule.labels.values == 0).all()
        rule.record(torch.arange(N), predictions(epoch), epoch)
        rule.end_epoch(epoch)
    assert torch.allclose(rule.labels.values.sum(1), torch.ones(N))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_exact_share_of_the_unlabelled_samples_is_uniform(split: Split, share: float) -> None:
    initial = F.one_hot(split.labels, C).float()
    unlabelled = torch.arange(N) % 3 != 0
    rule = PseudoLabels(split, initial, 1, unlabelled=unlabelled, uniform_share=share, seed=5)
    drawn = []
    for epoch in range(4):
        values = predictions(epoch)
        rule.record(torch.arange(N), values, epoch)
        rule.end_epoch(epoch)
        labels = rule.labels.values
        uniform = (labels == 1 / C).all(1)
        assert int(uniform.sum()) == int(share * int(unlabelled.sum()))
        assert not uniform[~unlabelled].any()
        assert torch.equal(labels[~unlabelled], initial[~unlabelled])
        assert torch.equal(labels[unlabelled & ~uniform], values[unlabelled & ~uniform])
        drawn.append(uniform)
    if 0 < share < 1:
        assert not torch.equal(drawn[0], drawn[1])


def test_sample_in_no_batch_keeps_its_last_prediction(split: Split) -> None:
    rule = PseudoLabels(split, predictions(9), 1, unlabelled=torch.ones(N, dtype=torch.bool), uniform_share=0.0, seed=1)
    rule.record(torch.arange(10), predictions(0, 10), 0)
    rule.end_epoch(0)
    assert torch.equal(rule.labels.values[:10], predictions(0, 10))
    assert torch.equal(rule.labels.values[10:], predictions(9)[10:])


def test_rules_are_restored_from_their_state(split: Split) -> None:
    def rules() -> tuple[AveragedLabels, PseudoLabels]:
        initial = F.one_hot(split.labels, C).float()
        unlabelled = split.labels > 1
        return (
            AveragedLabels(split, initial, 1, start=1, window=3),
            PseudoLabels(split, initial, 1, unlabelled=unlabelled, uniform_share=0.4, seed=2),
        )

    for rule, restored in zip(rules(), rules(), strict=True):
        for epoch in range(4):
            if epoch == 2:
                restored.load_state_dict(rule.state_dict())
            for one in (rule, restored)[: 2 if epoch >= 2 else 1]:
                one.record(torch.arange(N), predictions(epoch), epoch)
                one.end_epoch(epoch)
        assert torch.equal(rule.labels.values, restored.labels.values)
