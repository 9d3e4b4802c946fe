"""A fit that was stopped and taken up again equals one that never was, to the bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tutelage.config import Hardware, Recipe
from tutelage.data import Batch, Data
from tutelage.errors import NonFiniteError, TutelageError, TutelageWarning
from tutelage.methods import find, method
from tutelage.models.outputs import Outputs
from tutelage.models.tapped import Tapped
from tutelage.sources import EMA, Frozen
from tutelage.terms import CrossEntropy, Hint, SoftTargets, Term
from tutelage.training import Learner, Run, Step, fit, together
from tutelage.training.checkpoint import Checkpoints, read
from tutelage.training.learner import ForwardPass

Net = Callable[..., Tapped]
EPOCHS = 4


class StoppedError(Exception):
    """Somebody pulled the plug."""


def drawn(forward_pass: ForwardPass, progress: float) -> Tensor:
    """Sample weights from all three global generators: a resumed run must draw on where it was."""
    return torch.rand(len(forward_pass.batch)) + float(np.random.rand()) + random.random()


@method(paper="none", family="test")
def restless(run: Run) -> Tapped:
    """An average of the student over time, dropout, and random sample weights."""
    student = run.student()
    terms = {"ce": CrossEntropy(), "kd": (lambda progress: progress) * SoftTargets()}
    run.fit(Learner(student, EMA(student, 0.9), terms, sample_weight=drawn))
    return student


@method(paper="none", family="test")
def wandering(run: Run) -> Tapped:
    """Random numbers drawn between two fits, of different optimisers."""
    student = run.student()
    run.fit(Learner(student, None, {"ce": CrossEntropy()}, sample_weight=drawn), epochs=2, optimizer="AdamW", lr=0.01)
    weight = torch.rand(()).item() + float(np.random.rand()) + random.random()
    run.fit(Learner(student, None, {"ce": weight * CrossEntropy()}), epochs=2)
    return student


@method(paper="none", family="test")
def projecting(run: Run) -> Tapped:
    """A projection that learns beside the student."""
    student = run.student()
    terms = {"ce": CrossEntropy(), "hint": Hint("stage1", "stage1", "mean")}
    run.fit(Learner(student, Frozen(run.teacher()), terms))
    return student


METHODS: dict[str, Callable[[Run], Tapped]] = {
    "plain": find("plain"),
    "hinton": find("hinton"),
    "dml in turn": lambda run: find("dml")(run, update="sequential"),
    "dml together": lambda run: find("dml")(run, update="synchronous", peers=3),
    "fitnet": find("fitnet"),
    "at": find("at"),
    "ema and dropout": restless,
    "drawing between fits": wandering,
    "a projection": projecting,
}


@pytest.fixture
def start(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> Callable[..., tuple[Tapped, Run]]:
    """``start(name, folder, stop=None)``: a method from the start of a process, stopped at its n-th report."""

    def go(name: str, folder: Path, stop: int | None = None) -> tuple[Tapped, Run]:
        torch.manual_seed(random.SystemRandom().randrange(2**31))  # a new process: nothing is known of before
        np.random.seed(None)
        random.seed()
        reports: list[Any] = []

        def report(record: dict[str, Any]) -> None:
            reports.append(record)
            if len(reports) == stop:
                raise StoppedError

        run = Run(
            tiny_data,
            lambda: tiny_model(int(torch.randint(1000, ())), dropout=0.2),
            [tiny_model(seed=1, width=6)],
            recipe=Recipe(epochs=EPOCHS, batch_size=16, lr=0.05),
            hardware=on_cpu,
            seed=3,
            folder=folder,
            report=report,
        )
        student = METHODS[name](run)
        return student, run

    return go


Start = Callable[..., tuple[Tapped, Run]]


def everything(folder: Path) -> list[Any]:
    """All that the last checkpoint of every fit holds, without the clock."""
    states = []
    for number in range(9):
        latest = Checkpoints(folder / "checkpoints", number).latest()
        if latest:
            states.append((latest.name, plain(read(latest))))
    return states


def plain(value: Any) -> Any:
    """Tensors as their bytes, and no times."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).tolist()
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items() if key != "seconds"}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    return value


def told(run: Run) -> Any:
    return [(plain(list(fitted.history)), plain(dict(vars_of(fitted.selected)))) for fitted in run.fits]


def vars_of(selected: Any) -> dict[str, Any]:
    return {name: (kept.epoch, kept.score, dict(kept.state)) for name, kept in selected.items()}


@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_run_equals_one_that_never_was(
    name: str, tmp_path: Path, start: Start, state_of: Any, changed: Any
) -> None:
    """Stopped after each epoch in turn, and once after every one of them."""
    student, run = start(name, tmp_path / "whole")
    expected, whole = state_of(student), everything(tmp_path / "whole")
    assert sum(len(fitted.history) for fitted in run.fits) == EPOCHS
    for stops in [[1], [2], [3], [4], [1, 2, 3, 4]]:
        folder = tmp_path / "-".join(map(str, stops))
        for stop in stops:
            with pytest.raises(StoppedError):
                start(name, folder, stop)
        again, resumed = start(name, folder)
        assert changed(expected, state_of(again)) == set(), stops
        assert told(resumed) == told(run), stops
        assert everything(folder) == whole, stops


def test_a_finished_run_trains_no_more(tmp_path: Path, start: Start, state_of: Any, changed: Any) -> None:
    student, _ = start("fitnet", tmp_path)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").iterdir()}
    again, run = start("fitnet", tmp_path)
    assert changed(state_of(student), state_of(again)) == set()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "checkpoints").iterdir()} == files
    assert [len(fitted.history) for fitted in run.fits] == [1, 3]


def test_what_is_behind_is_reported_again_and_once(
    tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    seen: list[list[int]] = []
    for stop in (2, None):
        seen.append([])

        def report(record: dict[str, Any], stop: int | None = stop) -> None:
            seen[-1].append(record["epoch"])
            if record["epoch"] == stop:
                raise StoppedError

        run = Run(tiny_data, tiny_model, recipe=Recipe(epochs=4), hardware=on_cpu, folder=tmp_path, report=report)
        try:
            find("plain")(run)
        except StoppedError:
            continue
    assert seen == [[1, 2], [1, 2, 3, 4]]


class Interrupting(Term):
    """Cross-entropy that stops at its n-th step, in the middle of an epoch."""

    def __init__(self, at: int | None) -> None:
        super().__init__()
        self.inner, self.at, self.calls = CrossEntropy(), at, 0

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        return ()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        if torch.is_grad_enabled():
            self.calls += 1
            if self.calls == self.at:
                raise StoppedError
        return self.inner(student, teacher, batch)  # type: ignore[no-any-return]


@pytest.mark.parametrize("at", [1, 2, 4, 5, 8])
def test_a_run_stopped_within_an_epoch(
    at: int, tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    states = []
    for folder, stops in (("whole", [None]), ("stopped", [at, None])):
        for stop in stops:
            model = tiny_model(dropout=0.2)
            checkpoints = Checkpoints(tmp_path / folder)
            learner = Learner(model, None, {"ce": Interrupting(stop)}, sample_weight=drawn)
            try:
                fit(
                    learner,
                    data=tiny_data,
                    recipe=Recipe(epochs=3, batch_size=16),
                    hardware=on_cpu,
                    checkpoints=checkpoints,
                )
            except StoppedError:
                continue
        states.append(state_of(model))
    assert changed(*states) == set()


class Alternating:
    """A rule with a memory: every second step is left out, and how many were made decides the size of a step."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self, step: Step) -> None:
        (learner,) = step.learners
        step.forward(learner)
        self.made += 1
        step.update(learner, step.loss(learner) * self.made)

    def state_dict(self) -> dict[str, Any]:
        return {"made": self.made}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.made = state["made"]


def test_a_rules_own_state_is_kept(
    tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    def go(folder: str, stop: int | None) -> tuple[Tapped, Alternating]:
        model, rule = tiny_model(), Alternating()

        def report(record: dict[str, Any]) -> None:
            if record["epoch"] == stop:
                raise StoppedError

        fit(
            Learner(model, None, {"ce": CrossEntropy()}),
            data=tiny_data,
            recipe=Recipe(epochs=3, batch_size=16, lr=0.01),
            hardware=on_cpu,
            update=rule,
            checkpoints=Checkpoints(tmp_path / folder),
            report=report,
        )
        return model, rule

    whole, _ = go("whole", None)
    with pytest.raises(StoppedError):
        go("stopped", 2)
    resumed, rule = go("stopped", None)
    assert rule.made == 9
    assert changed(state_of(whole), state_of(resumed)) == set()


# --- damage


def damage_truncate(path: Path, _: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def damage_flip(path: Path, _: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 64
    path.write_bytes(bytes(content))


def damage_empty(path: Path, _: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip, damage_empty])
@pytest.mark.parametrize("which", ["last", "all"])
def test_damaged_checkpoints_cost_time_and_nothing_else(
    which: str, damage: Any, tmp_path: Path, start: Start, state_of: Any, changed: Any
) -> None:
    student, _ = start("ema and dropout", tmp_path / "whole")
    with pytest.raises(StoppedError):
        start("ema and dropout", tmp_path / "hurt", 3)
    files = sorted((tmp_path / "hurt" / "checkpoints").iterdir())
    assert [path.name[-8:] for path in files] == ["002.ckpt", "003.ckpt"]
    hurt = files if which == "all" else files[-1:]
    for path in hurt:
        damage(path, tmp_path / "mark")
    with pytest.warns(TutelageWarning, match="is damaged") as caught:
        again, _ = start("ema and dropout", tmp_path / "hurt")
    assert len(caught) == len(hurt)
    assert changed(state_of(student), state_of(again)) == set()
    assert everything(tmp_path / "hurt") == everything(tmp_path / "whole")


def test_damage_of_a_finished_first_fit(tmp_path: Path, start: Start, state_of: Any, changed: Any) -> None:
    """The second fit's checkpoint still serves; what the first one trained is trained again."""
    student, _ = start("fitnet", tmp_path / "whole")
    with pytest.raises(StoppedError):
        start("fitnet", tmp_path / "hurt", 3)
    for path in (tmp_path / "hurt" / "checkpoints").glob("fit-00-*"):
        damage_flip(path, tmp_path)
    with pytest.warns(TutelageWarning, match="fit-00"):
        again, _ = start("fitnet", tmp_path / "hurt")
    assert changed(state_of(student), state_of(again)) == set()


def test_a_full_disk_stops_the_fit_in_one_line_and_it_goes_on_later(
    tmp_path: Path,
    start: Start,
    state_of: Any,
    changed: Any,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., Any],
) -> None:
    import errno
    import os

    student, _ = start("hinton", tmp_path / "whole")
    with pytest.raises(StoppedError):
        start("hinton", tmp_path / "full", 2)
    before = {path.name: path.read_bytes() for path in (tmp_path / "full" / "checkpoints").iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr("tutelage.files.os.fsync", full)
        with refused("No space left on device", "epoch-00003.ckpt"):
            start("hinton", tmp_path / "full")
    assert {path.name: path.read_bytes() for path in (tmp_path / "full" / "checkpoints").iterdir()} == before
    again, _ = start("hinton", tmp_path / "full")
    assert changed(state_of(student), state_of(again)) == set()


@pytest.mark.parametrize(
    ("width", "change", "piece"),
    [
        (6, {}, "TinyNet"),
        (4, {"lr": 0.9}, "lr: 0.05 there, 0.9 here"),
        (4, {"epochs": 1}, "epochs: 2 there, 1 here"),
        (4, {"optimizer": "AdamW"}, "optimizer: 'SGD' there, 'AdamW' here"),
        (4, {"seed": 1}, "seed: 0 there, 1 here"),
    ],
)
def test_checkpoints_of_another_fit_are_refused(
    width: int,
    change: dict[str, Any],
    piece: str,
    tmp_path: Path,
    tiny_data: Data,
    tiny_model: Net,
    on_cpu: Hardware,
    refused: Callable[..., Any],
) -> None:
    """A folder of a run guards against this; who calls fit himself is told too."""

    def go(width: int = 4, seed: int = 0, **fields: Any) -> None:
        learner = Learner(tiny_model(width=width), None, {"ce": CrossEntropy()})
        recipe = Recipe(**{"epochs": 2, **fields})
        fit(learner, data=tiny_data, recipe=recipe, hardware=on_cpu, seed=seed, checkpoints=Checkpoints(tmp_path))

    go()
    go()
    with refused(str(tmp_path), "another fit", piece, "choose another folder"):
        go(width, **change)


def test_an_optimisers_factory_is_taken_up_again(
    tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    """Another function object each time, as in another process."""
    states = []
    for folder, stops in (("whole", [None]), ("stopped", [1, None])):
        for stop in stops:
            model = tiny_model()
            recipe = Recipe(epochs=2, batch_size=16, optimizer=lambda p: torch.optim.Adam(p, lr=0.01))

            def report(record: dict[str, Any], stop: int | None = stop) -> None:
                if record["epoch"] == stop:
                    raise StoppedError

            learner = Learner(model, None, {"ce": CrossEntropy()})
            kept = Checkpoints(tmp_path / folder)
            try:
                fit(learner, data=tiny_data, recipe=recipe, hardware=on_cpu, checkpoints=kept, report=report)
            except StoppedError:
                continue
        states.append(state_of(model))
    assert changed(*states) == set()


# --- what is not finite


class Ruined(Term):
    """Cross-entropy that becomes ``value`` at one step (counted from 0 over the fit)."""

    def __init__(self, step: int, value: float, one_value: bool = False) -> None:
        super().__init__()
        self.inner, self.step, self.value, self.one_value = CrossEntropy(), step, value, one_value
        self.batches: list[list[int]] = []

    @property
    def teacher_roles(self) -> tuple[str, ...]:
        return ()

    def forward(self, student: Outputs, teacher: Outputs | None, batch: Batch | None) -> Tensor:
        loss: Tensor = self.inner(student, teacher, batch)
        if not torch.is_grad_enabled():
            return loss
        assert batch is not None
        self.batches.append(batch.index.tolist())
        if len(self.batches) - 1 != self.step:
            return loss
        loss = loss * torch.tensor([self.value] + [1.0] * (len(loss) - 1))
        return loss.mean() if self.one_value else loss


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "nan"), (float("inf"), "inf"), (float("-inf"), "-inf")])
@pytest.mark.parametrize(("step", "epoch", "within"), [(0, 1, 1), (4, 2, 2), (8, 3, 3)])
def test_a_term_that_becomes_nan_is_named_with_its_samples(
    step: int,
    epoch: int,
    within: int,
    value: float,
    word: str,
    tmp_path: Path,
    tiny_data: Data,
    tiny_model: Net,
    on_cpu: Hardware,
) -> None:
    shifted = replace(tiny_data, train=replace(tiny_data.train, index=tiny_data.train.index + 1000))
    bad = Ruined(step, value)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(NonFiniteError) as caught:
        fit(
            Learner(tiny_model(1), None, {"ce": CrossEntropy()}, name="good"),
            Learner(tiny_model(), None, {"fine": CrossEntropy(), "bad": bad}, name="ill"),
            data=shifted,
            recipe=Recipe(epochs=4, batch_size=16),
            hardware=on_cpu,
            checkpoints=checkpoints,
        )
    text = str(caught.value)
    assert f"epoch {epoch}, step {within}: term 'bad' of learner 'ill' became {word}" in text
    assert "learning rate (now 0.05)" in text
    assert len(text.splitlines()) == 1
    assert isinstance(caught.value, TutelageError)
    assert caught.value.indices == bad.batches[step]  # type: ignore[attr-defined]
    assert min(bad.batches[step]) >= 1000
    assert str(bad.batches[step][0]) in text
    kept = checkpoints.load()
    if epoch == 1:
        assert kept is None
        assert "checkpoint" not in text
    else:
        assert kept is not None
        assert len(kept["history"]) == epoch - 1
        assert str(checkpoints.latest()) in text
        assert all(torch.isfinite(v).all() for v in kept["learners"][1]["model"].values())


def test_nan_of_one_value_is_found_too(tiny_data: Data, tiny_model: Net, on_cpu: Hardware) -> None:
    learner = Learner(tiny_model(), None, {"bad": Ruined(1, float("nan"), one_value=True)})
    with pytest.raises(NonFiniteError, match="epoch 1, step 2: term 'bad'"):
        fit(learner, data=tiny_data, recipe=Recipe(epochs=2, batch_size=16), hardware=on_cpu)


@pytest.mark.parametrize("step", [2, 49, 50, 51, 99, 100, 110])
def test_a_long_epoch_is_looked_at_now_and_then_and_names_the_right_step(
    step: int, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    """120 steps an epoch: more than two looks."""
    data = replace(tiny_data, train=tiny_data.train.subset(torch.arange(120) % 48), validation=None)
    data = replace(data, train=replace(data.train, index=torch.arange(120)))
    bad = Ruined(step, float("nan"))
    with pytest.raises(NonFiniteError, match=f"epoch 1, step {step + 1}: ") as caught:
        fit(Learner(tiny_model(), None, {"x": bad}), data=data, recipe=Recipe(epochs=1, batch_size=1), hardware=on_cpu)
    assert caught.value.indices == bad.batches[step]  # type: ignore[attr-defined]
    assert len(bad.batches) <= step + 51  # not at the end of the epoch


def ruin_at(step_number: int, value: float) -> Callable[[Step], None]:
    """All at once, but after one step a weight is set to a value: the loss of that step was finite."""
    seen: list[int] = []

    def rule(step: Step) -> None:
        together(step)
        seen.append(1)
        if len(seen) - 1 == step_number:
            with torch.no_grad():
                next(step.learners[0].model.parameters()).view(-1)[0] = value

    return rule


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_weights_ruined_by_the_last_step_are_not_kept(
    value: float, tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(
        NonFiniteError, match=r"epoch 2: the weights or statistics of learner 'student'.* checkpoint is .*00001"
    ) as e:
        fit(
            Learner(tiny_model(), None, {"ce": CrossEntropy()}),
            data=tiny_data,
            recipe=Recipe(epochs=3, batch_size=16),
            hardware=on_cpu,
            update=ruin_at(5, value),
            checkpoints=checkpoints,
        )
    assert len(str(e.value).splitlines()) == 1
    assert len(checkpoints.load()["history"]) == 1  # type: ignore[index]


def test_statistics_that_are_not_finite_are_not_kept(
    tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    """A running variance can overflow while every weight and every loss is finite."""
    model = tiny_model()

    def rule(step: Step) -> None:
        together(step)
        model.module.get_buffer("bn1.running_var").fill_(float("inf"))

    with pytest.raises(NonFiniteError, match="learner 'student'"):
        fit(
            Learner(model, None, {"ce": CrossEntropy()}),
            data=replace(tiny_data, validation=None),
            recipe=Recipe(epochs=2, batch_size=16),
            hardware=on_cpu,
            update=rule,
            checkpoints=Checkpoints(tmp_path),
        )
    assert Checkpoints(tmp_path).load() is None


@pytest.mark.parametrize("name", ["plain", "hinton", "dml in turn", "fitnet", "at"])
def test_a_far_too_high_rate_ends_in_one_line(
    name: str, tmp_path: Path, tiny_data: Data, tiny_model: Net, on_cpu: Hardware
) -> None:
    run = Run(
        tiny_data,
        tiny_model,
        [tiny_model(1, width=6)],
        recipe=Recipe(epochs=4, batch_size=16, lr=1e30),
        hardware=on_cpu,
        folder=tmp_path,
    )
    with pytest.raises(NonFiniteError) as caught:
        METHODS[name](run)
    assert "lower the learning rate (now 1e+30)" in str(caught.value)
    for number in range(2):
        kept = Checkpoints(tmp_path / "checkpoints", number).load()
        for learner in kept["learners"] if kept else []:
            assert all(torch.isfinite(value).all() for value in learner["model"].values())
