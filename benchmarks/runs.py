"""Time of epochs, runs and studies relative to alternatives, and the accuracy of their students."""

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

from benchmarks.pairs import Numbers, Rounds, as_json, compare
from benchmarks.setting import BATCH, PAIRS, SMALL, device, network, optimizer, random_images, research_loop, title
from benchmarks.steps import fit_steps
from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data, open_data
from tutelage.errors import TutelageWarning
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.models.weights import save_weights
from tutelage.runs.execute import execute
from tutelage.sources import Frozen, TeacherCache
from tutelage.studies.runner import run_study
from tutelage.studies.study import Study
from tutelage.tasks import evaluate
from tutelage.terms import CrossEntropy, labels_and_soft_targets
from tutelage.training import Execution, Learner, Run, fit

RECIPE = Recipe(batch_size=BATCH, schedule="constant")
NINE = ("hinton", "bss", "fitnet", "fsp", "at", "sp", "rkd", "dml", "one")


def one_epoch(student: Tapped, source: Frozen | None, data: Data, batch_size: int = BATCH) -> None:
    """Train for one epoch as a user does."""
    fit(_learner(student, source), data=data, recipe=RECIPE.replace(epochs=1, batch_size=batch_size))


def epochs(student: Tapped, source: Frozen | None, data: Data, **options: bool) -> Rounds:
    """The same in rounds of one epoch."""

    def work(end_round: Callable[[], None]) -> None:
        learner, hardware = _learner(student, source), Hardware(**options)
        fit(
            learner,
            data=data,
            recipe=RECIPE.replace(epochs=1000),
            execution=Execution.on(hardware),
            report=lambda _: end_round(),
        )

    return Rounds(work)


def _learner(student: Tapped, source: Frozen | None) -> Learner:
    return Learner(student, source, {"ce": CrossEntropy()} if source is None else labels_and_soft_targets(0.9))


def research(short: bool) -> Numbers:
    """An epoch of ``fit`` relative to a loop like research code: float32, NCHW, one image at a time.

    The images have one view, so that from the second epoch on all teacher outputs are cached. The time of compilation
    is not included; the benchmark ``compiled`` measures it. Training without a teacher is the lower bound. Goal for
    the fastest row: at most a third.
    """
    steps, rounds = (2, 1) if short else (12, 5)
    return {title(names): _research(names, steps, rounds, not short) for names in (PAIRS[1:] if short else PAIRS)}


def _research(names: tuple[str, str], steps: int, rounds: int, compile_: bool) -> Numbers:
    data = random_images(steps * BATCH, views=1)
    teacher, student = (
        network(name, data).module.to(device(), memory_format=torch.contiguous_format) for name in names
    )
    reference = {"research loop": partial(research_loop, student, teacher, data, BATCH, 2)}
    with fit_variants(names, data, partial(network, data=data), compile_) as variants:
        return as_json(compare(reference | variants, "research loop", rounds))


@contextmanager
def fit_variants(
    names: tuple[str, str], data: Data, make: Callable[[str], Tapped], compile_: bool
) -> Iterator[dict[str, Callable[[], object]]]:
    """Epochs of ``fit`` with each option, and an epoch without a teacher, the lower bound."""

    def distilled(cache: TeacherCache | None = None, **options: bool) -> Rounds:
        teacher, student = map(make, names)
        return epochs(student, Frozen(teacher, cache=cache), data, **options)

    with tempfile.TemporaryDirectory() as folder:
        cache = TeacherCache(folder, data)
        variants = {
            "fit": distilled(),
            "fit, compiled": distilled(compile=compile_),
            "fit, cached teacher outputs": distilled(cache),
            "fit, cached teacher outputs, compiled": distilled(cache, compile=compile_),
            "fit without a teacher": epochs(make(names[1]), None, data),
        }
        try:
            yield {**variants}
        finally:
            for variant in variants.values():
                variant.end()


def accuracy(short: bool) -> Numbers:
    """Test accuracy, in %, of students trained on digits by the research loop and by ``fit`` from the same weights.

    The two draw different batches and crops, so that accuracies agree only up to chance.
    """
    seeds, length = (1, 1) if short else (5, 20)
    return {title(names): _accuracy(names, seeds, length) for names in (SMALL if short else PAIRS)}


def _accuracy(names: tuple[str, str], seeds: int, length: int) -> Numbers:
    data = open_data("digits")
    recipe = RECIPE.replace(epochs=length, schedule="step", milestones=(0.5, 0.8), gamma=0.1)
    teacher = network(names[0], data)
    fit(Learner(teacher, None, {"ce": CrossEntropy()}), data=data, recipe=recipe)
    accuracies: dict[str, list[float]] = {"research loop": [], "fit": []}
    for seed in range(seeds):
        student = network(names[1], data, seed)
        reference = deepcopy(student).to(device())
        its_teacher = deepcopy(teacher.module).to(memory_format=torch.contiguous_format)
        torch.manual_seed(seed)
        updates = optimizer(reference.module)
        for epoch in range(length):
            rate = recipe.lr * recipe.gamma ** sum(epoch / length >= share for share in recipe.milestones)
            for group in updates.param_groups:
                group["lr"] = rate
            research_loop(reference.module, its_teacher, data, BATCH, 0, updates)
        learner = Learner(student, Frozen(teacher), labels_and_soft_targets(0.9))
        fit(learner, data=data, recipe=recipe, seed=seed)
        for loop, net in (("research loop", reference), ("fit", student)):
            accuracies[loop].append(round(100 * evaluate(net, data, device=device())["accuracy"], 2))
    pairs = zip(accuracies["fit"], accuracies["research loop"], strict=True)
    accuracies["difference"] = [round(fitted - reference, 2) for fitted, reference in pairs]
    return {name: ", ".join(map(str, values)) for name, values in accuracies.items()}


def methods(short: bool) -> Numbers:
    """Runs of two epochs of each of the nine methods, relative to plain training of the same student."""
    steps, rounds = (2, 1) if short else (8, 3)
    teacher_name, student_name = PAIRS[1]
    data = random_images(steps * BATCH)
    teacher = network(teacher_name, data)
    recipe = RECIPE.replace(epochs=2)

    def run(method: str) -> None:
        find(method)(Run(data, lambda: network(student_name, data), [teacher], recipe=recipe))

    names = ("plain", "hinton", "dml") if short else ("plain", *NINE)
    runs = {name: lambda name=name: run(name) for name in names}
    return {title(PAIRS[1]): as_json(compare(runs, "plain", rounds))}


def cached(short: bool) -> Numbers:
    """A step with cached teacher outputs, relative to one that runs the teacher; bytes per sample of all views."""
    rounds = 2 if short else 40
    measured: Numbers = {}
    for names in PAIRS[1:] if short else PAIRS:
        data = random_images(4 * BATCH, views=1)
        teacher = network(names[0], data)
        with tempfile.TemporaryDirectory() as folder:
            from_cache = Frozen(teacher, cache=TeacherCache(Path(folder, "one"), data))
            sources = {"computed": Frozen(teacher), "cached": from_cache, "no teacher": None}
            loops = {name: fit_steps(network(names[1], data), of, data, Hardware()) for name, of in sources.items()}
            entry = as_json(compare(loops, "computed", rounds, warm_up=len(data.train) // BATCH + 1))
            for loop in loops.values():
                loop.end()
            whole = random_images(BATCH)
            one_epoch(network(names[1], data), Frozen(teacher, cache=TeacherCache(Path(folder, "all"), whole)), whole)
            (file,) = Path(folder, "all").iterdir()
            entry["bytes per sample"] = round(file.stat().st_size / len(whole.train))
        measured[title(names)] = entry
    return measured


def study(short: bool) -> Numbers:
    """A study of plain training and the nine methods with three seeds, relative to the same runs one after another.

    One after another they run in this process with all its threads and no start of Python; the study starts one process
    per core. In the second pair the teacher costs far more
    than its student. Goal: a quarter.
    """
    steps, epochs, seeds, rounds = (2, 1, 1, 1) if short else (4, 3, 3, 3)
    measured: Numbers = {}
    for names in SMALL if short else (PAIRS[1], ("resnet110", "resnet8")):
        with tempfile.TemporaryDirectory() as folder:
            measured[title(names)] = _study(names, Path(folder), steps, epochs, range(seeds), rounds)
    return measured


def _study(names: tuple[str, str], folder: Path, steps: int, epochs: int, seeds: range, rounds: int) -> Numbers:
    data = random_images(steps * BATCH)
    parts = {"train": data.train, "test": data.test}
    arrays = {f"x_{name}": part.inputs for name, part in parts.items()}
    arrays |= {f"y_{name}": part.labels for name, part in parts.items()}
    np.savez(folder / "images.npz", **arrays)
    save_weights(folder / "teacher.safetensors", network(names[0], data).module, {})
    teacher = f"{names[0]}@{folder / 'teacher.safetensors'}"
    source = f"npz:{folder / 'images.npz'}"
    recipe = {"epochs": epochs, "batch_size": BATCH, "validation": 0.0, "lr": 0.01}

    def one_after_another() -> None:
        for seed in seeds:
            for method in ("plain", *NINE):
                teachers = () if method == "plain" else (teacher,)
                execute(Config(data=source, student=names[1], teacher=teachers, method=method, seed=seed, **recipe))

    def as_study() -> None:
        design = Study(data=source, students=names[1], teachers=teacher, methods=NINE, seeds=[*seeds], train=recipe)
        with tempfile.TemporaryDirectory() as out:
            run_study(design, out)

    alternatives = {"one after another": one_after_another, "study": as_study}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TutelageWarning)  # a teacher of random images is at chance level
        return as_json(compare(alternatives, "one after another", rounds, warm_up=0))
