"""Methods of other tasks on segmentation: which train, what they reach, and which are refused in one line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tutelage
from tests.tasks.cases import case_of
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.targets import Masks
from tutelage.methods import find, installed, method
from tutelage.models.tapped import Tapped
from tutelage.models.zoo import build
from tutelage.sources import EMA
from tutelage.terms import PixelSoftTargets
from tutelage.training import Learner, Run

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hinton": {},
    "fitnet": {},
    "at": {},
    "sp": {},
    "rkd": {},
    "dml": {},
    "cwd": {"features": 1.0},
}
LABEL_FREE = {"hinton": {"alpha": 1.0}, **{name: {"kd_alpha": 1.0} for name in ("fitnet", "at", "sp", "rkd", "cwd")}}


@pytest.fixture
def data() -> Data:
    """Images of 16x16 pixels with bright and dark halves, some of them unlabelled."""
    small = case_of("segmentation").data

    def enlarged(values: Tensor) -> Tensor:
        return values.repeat_interleave(2, 1).repeat_interleave(2, 2)

    parts = {
        name: (enlarged(split.inputs), enlarged(split.labels))  # type: ignore[arg-type]
        for name, split in small.splits.items()
    }
    return Data.from_arrays(**parts, targets=Masks(), name="halves")  # type: ignore[arg-type]


def network(name: str, seed: int, data: Data) -> Tapped:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build(name, num_classes=data.num_classes, input_shape=data.input_shape)
    return Tapped(module, *data.mean_std)


@pytest.fixture
def teacher(data: Data) -> Tapped:
    return network("fpn-18-0.25", 1, data)


def run_of(data: Data, teacher: Tapped, hardware: Hardware, *, epochs: int = 2, **options: Any) -> Run:
    recipe = Recipe(epochs=epochs, batch_size=16, lr=0.05)
    return Run(
        data, lambda: network("fpn-10-0.125", 0, data), [teacher], recipe=recipe, hardware=hardware, seed=3, **options
    )


@pytest.mark.parametrize("name", SETTINGS)
def test_methods_train(
    name: str, data: Data, teacher: Tapped, on_cpu: Hardware, tmp_path: Path, state_of: Any, changed: Any
) -> None:
    """The student changes, the teacher does not, losses are finite, and a resumed run is the same."""
    before, initial = state_of(teacher), state_of(network("fpn-10-0.125", 0, data))

    class StoppedError(Exception):
        pass

    def stop(record: Any) -> None:
        raise StoppedError

    run = run_of(data, teacher, on_cpu, folder=tmp_path / "whole")
    student = find(name)(run, **SETTINGS[name])
    after = state_of(student)
    assert len(changed(initial, after)) > len(initial) / 2
    assert changed(before, state_of(teacher)) == set()
    assert all(value.isfinite().all() for value in after.values())
    with pytest.raises(StoppedError):
        find(name)(run_of(data, teacher, on_cpu, folder=tmp_path / "parts", report=stop), **SETTINGS[name])
    resumed = find(name)(run_of(data, teacher, on_cpu, folder=tmp_path / "parts"), **SETTINGS[name])
    assert changed(after, state_of(resumed)) == set()


@pytest.mark.parametrize("name", LABEL_FREE)
def test_methods_train_on_unlabelled_images(name: str, data: Data, teacher: Tapped, on_cpu: Hardware) -> None:
    void = torch.full_like(data.train.labels, -1)
    unlabelled = Data.from_arrays(
        (data.train.inputs, void),  # type: ignore[arg-type]
        (data.test.inputs, data.test.labels),  # type: ignore[arg-type]
        classes=data.classes,
        targets=Masks(),
    )
    run = run_of(unlabelled, teacher, on_cpu, check_labels=True)
    find(name)(run, **LABEL_FREE[name])
    assert run.fits


def test_an_average_of_the_student_teaches_it(data: Data, teacher: Tapped, on_cpu: Hardware) -> None:
    """The source of mean teacher, on the student's own view."""

    @method(paper="none", family="semi-supervised", task=None)
    def mean_teacher(run: Run) -> Tapped:
        """Follow the moving average."""
        student = run.student()
        average = EMA(student, 0.9, "own", warm_start=False, start=run.student(1))
        run.fit(Learner(student, average, run.label_terms() | {"consistency": PixelSoftTargets(1.0)}))
        return average.model

    run = run_of(data, teacher, on_cpu)
    average = mean_teacher(run)
    losses = [record["learners"]["student"]["consistency"] for record in run.fits[0].history]
    assert losses[0] > 0
    assert tutelage.evaluate(average, data)["mean_iou"] is not None


REFUSED = [name for name in installed() if find(name).task not in (None, "segmentation", "generation")]


def test_methods_of_other_tasks_are_refused_in_one_line(
    data: Data, teacher: Tapped, on_cpu: Hardware, refused: Any
) -> None:
    assert "mean_teacher_lc" in REFUSED  # its views show other parts of an image
    for name in REFUSED:
        with refused("masks"):
            find(name)(run_of(data, teacher, on_cpu))


GENERIC = [name for name in installed() if find(name).task is None and name not in SETTINGS]


def test_other_generic_methods_train_or_are_refused_in_one_line(data: Data, teacher: Tapped, on_cpu: Hardware) -> None:
    trained = []
    for name in GENERIC:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                find(name)(run_of(data, teacher, on_cpu, epochs=1))
            except tutelage.TutelageError:  # its text is one line, always
                continue
        trained.append(name)
    assert {"fsp", "nst", "pkt", "cc"} <= set(trained)


def test_cwd_needs_maps(tiny_data: Data, tiny_model: Any, on_cpu: Hardware, refused: Any) -> None:
    run = Run(tiny_data, lambda: tiny_model(2), [tiny_model(1)], recipe=Recipe(epochs=1), hardware=on_cpu)
    with refused("task is classification", "segmentation"):
        find("cwd")(run)


def test_cwd_makes_a_student_follow_its_teacher(data: Data, on_cpu: Hardware) -> None:
    """Without labels, a student whose maps follow those of a trained teacher segments nearly as well."""
    recipe = Recipe(epochs=8, lr=0.01, batch_size=8, optimizer="AdamW")
    trained = find("plain")(Run(data, lambda: network("fpn-10-0.25", 1, data), recipe=recipe, hardware=on_cpu))
    void = torch.full_like(data.train.labels, -1)
    unlabelled = Data.from_arrays(
        (data.train.inputs, void),  # type: ignore[arg-type]
        (data.test.inputs, data.test.labels),  # type: ignore[arg-type]
        classes=data.classes,
        targets=Masks(),
    )
    run = Run(unlabelled, lambda: network("fpn-10-0.25", 5, data), [trained], recipe=recipe, hardware=on_cpu, seed=1)
    student = find("cwd")(run, kd_alpha=1.0, kd_temperature=1.0)
    result = tutelage.evaluate(student, unlabelled, teacher=trained)
    assert result["teacher_mean_iou"] > 0.9
    assert result["mean_iou"] > 0.85
    losses = [record["learners"]["student"]["cwd"] for record in run.fits[0].history]
    assert losses[-1] < losses[0] / 3
