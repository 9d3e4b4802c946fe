"""Runs that train side by side are the runs alone, at less work."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from tutelage.config import Hardware, Recipe
from tutelage.data import CropsAndFlips, Data
from tutelage.errors import NonFiniteError
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.sources import AnswerStore
from tutelage.terms import CrossEntropy
from tutelage.training import Learner, Run, fit
from tutelage.training.side_by_side import Seat, side_by_side

Net = Callable[..., Tapped]
Go = Callable[..., tuple[Any, list[Any]]]

RECIPE = Recipe(epochs=4, batch_size=16, lr=0.02)
NINE = ("hinton", "bss", "fitnet", "fsp", "at", "sp", "rkd", "dml", "one")


class Counted:
    """How often networks run, whoever asks."""

    def __init__(self) -> None:
        self.calls = 0

    def watch(self, model: Tapped) -> Tapped:
        model.module.register_forward_pre_hook(self._count)
        return model

    def _count(self, *_: Any) -> None:
        self.calls += 1


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def go(tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any, counted: Counted) -> Go:
    """Train by a method; what the student became, and its history without what a clock says."""

    def train(method: str, seat: Seat | None = None, **options: Any) -> tuple[Any, list[Any]]:
        told = {"data": tiny_data, "seed": 3, "recipe": RECIPE, "hardware": on_cpu} | options
        student = partial(tiny_model, 2, width=8, dropout=0.3)  # so that a student draws numbers in every step
        run = Run(student=student, teachers=[counted.watch(tiny_model(1, width=8))], seat=seat, **told)
        state = state_of(find(method)(run))
        return state, [{**record, "seconds": None} for fitted in run.fits for record in fitted.history]

    return train


def test_each_is_the_run_alone(go: Go, changed: Any, counted: Counted) -> None:
    names = ("plain", *NINE, "maxdropout", "mean_teacher_lc", "pdiff")
    before = torch.get_rng_state()
    alone = [go(name) for name in names]
    calls, counted.calls = counted.calls, 0
    beside = side_by_side(*(partial(go, name) for name in names))
    assert torch.equal(torch.get_rng_state(), before)
    for name, one, other in zip(names, alone, beside, strict=True):
        assert not isinstance(other, Exception), (name, other)
        assert changed(one[0], other[0]) == set(), name
        assert one[1] == other[1], name  # losses, accuracies, learning rates and costs
    assert counted.calls < 0.6 * calls  # seven of them have the teacher, and each shows it two images before it begins


def test_with_cuda_graphs_each_is_the_run_alone(go: Go, changed: Any, on_cpu: Hardware, graphs: Any) -> None:
    """The teacher's answer is for all of them, and each tells torch that its own step begins."""
    names, hardware = ("hinton", "at", "sp"), on_cpu.replace(compile="reduce-overhead")
    alone = [go(name, hardware=hardware) for name in names]
    assert graphs.places
    beside = side_by_side(*(partial(go, name, hardware=hardware) for name in names))
    for name, one, other in zip(names, alone, beside, strict=True):
        assert not isinstance(other, Exception), (name, other)
        assert changed(one[0], other[0]) == set(), name


def test_the_teacher_is_asked_once_a_batch(go: Go, counted: Counted) -> None:
    names = ("hinton", "at", "sp", "rkd")
    go("plain")
    counted.calls = 0
    side_by_side(*(partial(go, name) for name in names))
    batches, built = RECIPE.epochs * 3, 3 * len(names)  # a dry run, and the tracing of the roles
    assert batches <= counted.calls <= batches + built + len(names)  # the first batch shows what they ask for


def test_a_fit_that_begins_later_catches_up(go: Go, changed: Any, tmp_path: Path) -> None:
    expected = [go("hinton"), go("sp")]

    class StoppedError(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        if record["epoch"] == 3:
            raise StoppedError

    with pytest.raises(StoppedError):
        go("hinton", folder=tmp_path / "hinton", report=stop)
    again = side_by_side(
        *(partial(go, name, folder=tmp_path / name) for name in ("hinton", "sp"))
    )  # one from its third epoch, one from the first
    for one, other in zip(expected, again, strict=True):
        assert not isinstance(other, Exception)
        assert changed(one[0], other[0]) == set()


def test_other_batches_are_not_mixed_up(go: Go, changed: Any, tiny_data: Data) -> None:
    """Other seeds, sizes, data and augmentations beside each other."""
    ways: list[dict[str, Any]] = [
        {},
        {"seed": 4},
        {"recipe": RECIPE.replace(batch_size=8)},
        {"data": replace(tiny_data, views=CropsAndFlips())},
        {"data": replace(tiny_data, train=replace(tiny_data.train, labels=tiny_data.train.labels.flip(0)))},
    ]
    alone = [go("hinton", **way) for way in ways]
    beside = side_by_side(*(partial(go, "hinton", **way) for way in ways))
    for one, other in zip(alone, beside, strict=True):
        assert not isinstance(other, Exception)
        assert changed(one[0], other[0]) == set()


def test_with_stored_answers_too(go: Go, changed: Any, tiny_data: Data, tmp_path: Path, counted: Counted) -> None:
    names = ("hinton", "sp", "fitnet", "rkd")
    alone = [go(name) for name in names]
    answers = AnswerStore(tmp_path, tiny_data)
    side_by_side(*(partial(go, name, answers=answers) for name in names))
    counted.calls = 0
    beside = side_by_side(*(partial(go, name, answers=answers) for name in names))
    for one, other in zip(alone, beside, strict=True):
        assert not isinstance(other, Exception)
        assert changed(one[0], other[0]) == set()
    assert counted.calls <= RECIPE.epochs * 3 + 4 * len(names)  # whole maps alone, once for sp and fitnet


def test_one_that_fails_leaves_the_others_alone(go: Go, changed: Any) -> None:
    ruined = RECIPE.replace(lr=1e30)
    failed, fine = side_by_side(partial(go, "hinton", recipe=ruined), partial(go, "at"))
    assert isinstance(failed, NonFiniteError)
    assert not isinstance(fine, Exception)
    assert changed(fine[0], go("at")[0]) == set()


def test_ctrl_c_ends_all_of_them(go: Go) -> None:
    let_go = []

    def stop(record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    def other(seat: Seat) -> None:
        try:
            go("plain", seat)
        finally:
            let_go.append(True)

    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        side_by_side(other, partial(go, "hinton", report=stop), other)
    assert let_go == [True, True]
    assert torch.equal(torch.get_rng_state(), before)


def test_seconds_are_those_of_the_run_itself(go: Go, tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    def spent(seat: Seat) -> float:
        run = Run(tiny_data, partial(tiny_model, 2), recipe=RECIPE, hardware=on_cpu, seat=seat)
        find("plain")(run)
        return sum(record["seconds"] for fitted in run.fits for record in fitted.history)

    start = time.perf_counter()
    each = side_by_side(*[spent] * 6)
    assert sum(seconds for seconds in each if not isinstance(seconds, Exception)) <= time.perf_counter() - start


def test_a_picture_is_read_once_for_all(go: Go, tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    pixels = tiny_data.train.inputs
    reads: list[int] = []

    class Files:
        shape = tuple(pixels.shape)

        def __len__(self) -> int:
            return len(pixels)

        def __getitem__(self, places: Any) -> torch.Tensor:
            reads.extend(places.tolist())
            return pixels[places]  # type: ignore[no-any-return]

    data = replace(tiny_data, train=replace(tiny_data.train, inputs=Files()), validation=None)

    def train(seat: Seat) -> list[Any]:
        model = tiny_model(2)
        learner = Learner(model, None, {"ce": CrossEntropy()})
        fit(learner, data=data, recipe=RECIPE, hardware=on_cpu, seat=seat)
        return [value.clone() for value in model.module.state_dict().values()]

    first, *others = side_by_side(train, train, train)
    assert not isinstance(first, Exception)
    for other in others:
        assert not isinstance(other, Exception)
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    epochs = RECIPE.epochs * 48
    assert epochs <= len(reads) <= epochs + 3 * 4  # and a dry run of each
