"""What epochs, runs and studies cost beside other ways to the same end."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.pairs import InRounds, Numbers, as_json, compare
from benchmarks.setting import BATCH, PAIRS, SMALL, device, named, network, optimiser, pictures, research_loop
from benchmarks.steps import fit_steps
from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data, open_data
from tutelage.errors import TutelageWarning
from tutelage.evaluation import evaluate
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.models.weights import save_weights
from tutelage.runs.execute import execute
from tutelage.sources import AnswerStore, Frozen
from tutelage.studies.runner import run_study
from tutelage.studies.study import Study
from tutelage.terms import CrossEntropy, labels_and_soft_targets
from tutelage.training import Learner, Run, fit

RECIPE = Recipe(batch_size=BATCH, schedule="constant")
NINE = ("hinton", "bss", "fitnet", "fsp", "at", "sp", "rkd", "dml", "one")


def one_epoch(student: Tapped, source: Frozen | None, data: Data) -> None:
    """What a user calls, for an epoch."""
    fit(_learner(student, source), data=data, recipe=RECIPE.replace(epochs=1))


def epochs(student: Tapped, source: Frozen | None, data: Data, **how: bool) -> InRounds:
    """The same, an epoch a round."""

    def work(end_round: Callable[[], None]) -> None:
        learner, hardware = _learner(student, source), Hardware(**how)
        fit(learner, data=data, recipe=RECIPE.replace(epochs=1000), hardware=hardware, report=lambda _: end_round())

    return InRounds(work)


def _learner(student: Tapped, source: Frozen | None) -> Learner:
    return Learner(student, source, {"ce": CrossEntropy()} if source is None else labels_and_soft_targets(0.9))


def research(short: bool) -> Numbers:
    """Ours beside the way of research repositories: float32, NCHW, a picture at a time, the loss looked at each step.

    Epochs of pictures in one view, so that from the second epoch on every stored answer is there. ``compiled`` is
    without its warm-up, for which see ``compiled``. ``plain`` has no teacher: no way of asking one can be faster. Goal:
    the best at most a third.
    """
    steps, rounds = (2, 1) if short else (12, 5)
    return {named(names): _research(names, steps, rounds, not short) for names in (PAIRS[1:] if short else PAIRS)}


def _research(names: tuple[str, str], steps: int, rounds: int, compile_: bool) -> Numbers:
    data = pictures(steps * BATCH, views=1)
    teacher, student = (
        network(name, data).module.to(device(), memory_format=torch.contiguous_format) for name in names
    )
    theirs = {"research loop": partial(research_loop, student, teacher, data, BATCH, 2)}
    with ways_of(names, data, partial(network, data=data), compile_) as ours:
        return as_json(compare(theirs | ours, "research loop", rounds))


@contextmanager
def ways_of(
    names: tuple[str, str], data: Data, make: Callable[[str], Tapped], compile_: bool
) -> Iterator[dict[str, Callable[[], object]]]:
    """Our ways of an epoch of distillation, and plain training, whose epoch no way of asking a teacher can beat."""

    def ours(answers: AnswerStore | None = None, **how: bool) -> InRounds:
        teacher, student = map(make, names)
        return epochs(student, Frozen(teacher, store=answers), data, **how)

    with tempfile.TemporaryDirectory() as folder:
        kept = AnswerStore(folder, data)
        ways = {
            "fit": ours(),
            "fit, compiled": ours(compile=compile_),
            "fit, stored answers": ours(kept),
            "fit, stored answers, compiled": ours(kept, compile=compile_),
            "fit, plain": epochs(make(names[1]), None, data),
        }
        try:
            yield {**ways}
        finally:
            for way in ways.values():
                way.end()


def accuracy(short: bool) -> Numbers:
    """Test accuracy, in %, of a student trained by the research loop and by ``fit`` from the same weights: real digits.

    The two draw other batches and crops, so that they agree within what chance does.
    """
    seeds, length = (1, 1) if short else (5, 20)
    return {named(names): _accuracy(names, seeds, length) for names in (SMALL if short else PAIRS)}


def _accuracy(names: tuple[str, str], seeds: int, length: int) -> Numbers:
    data = open_data("digits")
    recipe = RECIPE.replace(epochs=length, schedule="step", milestones=(0.5, 0.8), gamma=0.1)
    teacher = network(names[0], data)
    fit(Learner(teacher, None, {"ce": CrossEntropy()}), data=data, recipe=recipe)
    found: dict[str, list[float]] = {"research loop": [], "fit": []}
    for seed in range(seeds):
        student = network(names[1], data, seed)
        theirs, torn = (
            deepcopy(student).to(device()),
            deepcopy(teacher.module).to(memory_format=torch.contiguous_format),
        )
        torch.manual_seed(seed)
        steps = optimiser(theirs.module)
        for epoch in range(length):
            rate = recipe.lr * recipe.gamma ** sum(epoch / length >= share for share in recipe.milestones)
            for group in steps.param_groups:
                group["lr"] = rate
            research_loop(theirs.module, torn, data, BATCH, 0, steps)
        learner = Learner(student, Frozen(teacher), labels_and_soft_targets(0.9))
        fit(learner, data=data, recipe=recipe, seed=seed)
        for way, net in (("research loop", theirs), ("fit", student)):
            found[way].append(round(100 * evaluate(net, data, device=device())["accuracy"], 2))
    apart = [round(ours - theirs, 2) for ours, theirs in zip(found["fit"], found["research loop"], strict=True)]
    return {way: ", ".join(map(str, values)) for way, values in {**found, "difference": apart}.items()}


def methods(short: bool) -> Numbers:
    """Each of the nine methods beside plain training of the same student: whole runs of two epochs, all they build
    included."""
    steps, rounds = (2, 1) if short else (8, 3)
    teacher_name, student_name = PAIRS[1]
    data = pictures(steps * BATCH)
    teacher = network(teacher_name, data)
    recipe = RECIPE.replace(epochs=2)

    def run(method: str) -> None:
        find(method)(Run(data, lambda: network(student_name, data), [teacher], recipe=recipe))

    names = ("plain", "hinton", "dml") if short else ("plain", *NINE)
    ways = {name: lambda name=name: run(name) for name in names}
    return {named(PAIRS[1]): as_json(compare(ways, "plain", rounds))}


def stored(short: bool) -> Numbers:
    """Stored teacher answers beside live ones, step by step, all of them there; and a sample's bytes for all views."""
    rounds = 2 if short else 40
    found: Numbers = {}
    for names in PAIRS[1:] if short else PAIRS:
        data = pictures(4 * BATCH, views=1)
        teacher = network(names[0], data)
        with tempfile.TemporaryDirectory() as folder:
            kept = Frozen(teacher, store=AnswerStore(Path(folder, "one"), data))
            sources = {"live": Frozen(teacher), "stored": kept, "plain": None}
            ways = {way: fit_steps(network(names[1], data), of, data, Hardware()) for way, of in sources.items()}
            entry = as_json(compare(ways, "live", rounds, warm_up=len(data.train) // BATCH + 1))
            for step in ways.values():
                step.end()
            whole = pictures(BATCH)
            one_epoch(network(names[1], data), Frozen(teacher, store=AnswerStore(Path(folder, "all"), whole)), whole)
            (file,) = Path(folder, "all").iterdir()
            entry["bytes a sample"] = round(file.stat().st_size / len(whole.train))
        found[named(names)] = entry
    return found


def study(short: bool) -> Numbers:
    """Plain training and the nine methods under a trained teacher, three seeds, as a study, beside the same runs one by
    one.

    One by one they run in this process with all its threads, so that none pays for a start of Python; the study pays
    for those of its processes, one a core. ``each run alone`` is without runs side by side. The second pair is of a
    teacher that costs far more than its student. Goal: a quarter.
    """
    steps, epochs, seeds, rounds = (2, 1, 1, 1) if short else (4, 3, 3, 3)
    found: Numbers = {}
    for names in SMALL if short else (PAIRS[1], ("resnet110", "resnet8")):
        with tempfile.TemporaryDirectory() as place:
            found[named(names)] = _study(names, Path(place), steps, epochs, range(seeds), rounds)
    return found


def _study(names: tuple[str, str], place: Path, steps: int, epochs: int, seeds: range, rounds: int) -> Numbers:
    data = pictures(steps * BATCH)
    parts = {"train": data.train, "test": data.test}
    arrays = {f"x_{name}": part.inputs for name, part in parts.items()}
    arrays |= {f"y_{name}": part.labels for name, part in parts.items()}
    np.savez(place / "pictures.npz", **arrays)
    save_weights(place / "teacher.safetensors", network(names[0], data).module, {})
    teacher = f"{names[0]}@{place / 'teacher.safetensors'}"
    source = f"npz:{place / 'pictures.npz'}"
    recipe = {"epochs": epochs, "batch_size": BATCH, "validation": 0.0, "lr": 0.01}

    def one_by_one() -> None:
        for seed in seeds:
            for method in ("plain", *NINE):
                taught = () if method == "plain" else (teacher,)
                execute(Config(data=source, student=names[1], teacher=taught, method=method, seed=seed, **recipe))

    def as_study(**how: int) -> None:
        asked = Study(data=source, students=names[1], teachers=teacher, methods=NINE, seeds=[*seeds], train=recipe)
        with tempfile.TemporaryDirectory() as out:
            run_study(asked, out, **how)

    ways = {
        "one by one": one_by_one,
        "study, each run alone": partial(as_study, together=1),
        "study": as_study,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TutelageWarning)  # a teacher of noise is at chance level
        return as_json(compare(ways, "one by one", rounds, warm_up=0))
