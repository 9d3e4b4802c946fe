"""Cached outputs of teachers on evaluated splits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tutelage
from tutelage.data import Data
from tutelage.errors import TutelageWarning
from tutelage.models.tapped import Tapped
from tutelage.sources import evaluated
from tutelage.sources.evaluated import CachedEvaluation


class Counted(nn.Module):
    """A linear network that counts its samples."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.samples = nn.Linear(6, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.samples += len(x)
        return self.fc(x)  # type: ignore[no-any-return]


@pytest.fixture
def network() -> Counted:
    torch.manual_seed(0)
    return Counted().eval()


def cached(network: Counted, folder: Path) -> CachedEvaluation:
    return CachedEvaluation(network, [Tapped(network)], folder).eval()


def test_equal_batches_are_computed_once_and_outputs_are_equal_bit_for_bit(network: Counted, tmp_path: Path) -> None:
    batches = [torch.randn(8, 6), torch.randn(5, 6)]
    with torch.inference_mode():
        expected = [network(batch) for batch in batches]
        for expected_samples in (13, 0):  # computed, then from the file
            model = cached(network, tmp_path)
            network.samples = 0
            for _ in range(2):
                assert all(torch.equal(model(b.clone()), e) for b, e in zip(batches, expected, strict=True))
            assert network.samples == expected_samples
            model.save()
        (file,) = tmp_path.iterdir()
        assert file.suffix == ".safetensors"
        model(batches[0][:4])  # another batch, though its samples are known: rounding depends on the batch
        assert network.samples == 4


def test_outputs_with_gradients_in_train_mode_and_of_other_weights_are_computed(
    network: Counted, tmp_path: Path
) -> None:
    inputs = torch.randn(8, 6)
    model = cached(network, tmp_path)
    with torch.no_grad():
        model(inputs)
    model.save()
    assert model(inputs).requires_grad
    network.samples = 0
    with torch.no_grad():
        model.train()(inputs)
        assert network.samples == 8
        network.fc.weight += 1
        assert torch.equal(cached(network, tmp_path)(inputs), network(inputs))


def test_files_of_two_runs_are_merged_and_damaged_ones_are_replaced(network: Counted, tmp_path: Path) -> None:
    first, second = cached(network, tmp_path), cached(network, tmp_path)
    one, two = torch.randn(8, 6), torch.randn(8, 6)
    with torch.no_grad():
        first(one)
        second(two)
        first.save()
        second.save()
        network.samples = 0
        again = cached(network, tmp_path)
        again(one)
        again(two)
        assert network.samples == 0
        first.path.write_bytes(b"damaged")
        model = cached(network, tmp_path)
        model(one)
        assert network.samples == 8
        model.save()
        assert len(evaluated._read(model.path)) == 1


def test_a_full_disk_warns_and_large_outputs_are_not_saved(
    network: Counted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cached(network, tmp_path / "file" / "folder")
    (tmp_path / "file").write_bytes(b"")
    with torch.no_grad():
        model(torch.randn(8, 6))
        with pytest.warns(TutelageWarning, match="evaluated again"):
            model.save()
        monkeypatch.setattr(evaluated, "LARGEST_FILE", 8)
        model = cached(network, tmp_path)
        model(torch.randn(8, 6))
        model.save()
    assert not model.path.exists()


@pytest.mark.filterwarnings("ignore:.*chance level")
def test_second_run_does_not_evaluate_the_teacher_and_has_the_same_result(
    tiny_data: Data, tiny_model: Callable[..., Tapped], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tiny_model()
    labels = torch.cat([tiny_data.train.labels[:8].flip(0), tiny_data.train.labels[8:]])  # some are wrong
    data = replace(tiny_data, train=replace(tiny_data.train, labels=labels))
    calls: list[int] = []

    def run(cache: Path | None) -> dict[str, Any]:
        folder = None if cache is None else str(cache)
        result = tutelage.distill(teacher, tiny_model().module, data, epochs=1, batch_size=16, teacher_cache=folder)
        return {name: value for name, value in result.metrics.items() if name in ("test", "train", "teacher")}

    plain = run(None)
    assert plain["teacher"]["memorised"] is not None
    assert run(tmp_path) == plain
    save = CachedEvaluation.save
    monkeypatch.setattr(CachedEvaluation, "save", lambda self: calls.append(len(self._new)) or save(self))
    assert run(tmp_path) == plain
    assert calls == [0]  # nothing was computed
