"""Shared fixtures: tiny data sets, tiny networks, and helpers that inspect them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.imitations import Graphs, ReadOnly
from tutelage.config import Hardware, Recipe
from tutelage.data import CropsAndFlips, Data, Split
from tutelage.data.batch import Batch
from tutelage.errors import TutelageError
from tutelage.models.tapped import Tapped
from tutelage.training.execution import Execution

torch.set_num_threads(1)  # tests run beside each other, and threads that wait for a busy core spin

State = dict[str, Tensor]
Command = Callable[..., tuple[int, str, str]]


class TinyNet(nn.Module):
    """Two convolutions with batch normalisation, two resolutions, dropout where it is asked for."""

    def __init__(self, classes: int = 4, width: int = 4, channels: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(2 * width)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        logits: Tensor = self.fc(self.drop(x.mean((2, 3))))
        return logits


@pytest.fixture(scope="module", autouse=True)
def random_numbers_of_module() -> None:
    """Fixtures of a module draw the same random numbers, whichever tests ran before in the process."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def random_numbers_of_test() -> None:
    """As ``random_numbers_of_module``, for each test."""
    torch.manual_seed(0)


@pytest.fixture
def tiny_data() -> Data:
    """48 training, 16 held-out and 16 test images, grey 8x8, of four classes: flat, stripes both ways, a chessboard."""
    generator = torch.Generator().manual_seed(7)

    def part(size: int) -> Split:
        labels = torch.arange(size) % 4
        images = torch.randint(120, (size, 8, 8, 1), generator=generator, dtype=torch.uint8)
        rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
        patterns = torch.stack([torch.zeros(8, 8), rows % 2, columns % 2, (rows + columns) % 2])
        images += (90 * patterns[labels]).to(torch.uint8)[..., None]
        return Split.of(images, labels)

    return Data("tiny", ("a", "b", "c", "d"), part(48), part(16), part(16), CropsAndFlips(pad=1))


@pytest.fixture
def tiny_model(tiny_data: Data) -> Callable[..., Tapped]:
    """``tiny_model(seed=0, width=4, classes=4, channels=1, dropout=0.0)``: two stages and an embedding."""

    def make(seed: int = 0, **options: float) -> Tapped:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return Tapped(TinyNet(**options), *tiny_data.mean_std)  # type: ignore[arg-type]

    return make


@pytest.fixture
def batch_of() -> Callable[[Tensor], Batch]:
    """``batch_of(targets)``: a batch of black images with these targets."""

    def make(targets: Tensor) -> Batch:
        index = torch.arange(len(targets))
        return Batch(torch.zeros(len(targets), 1, 2, 2), targets, index, None)

    return make


@pytest.fixture
def on_cpu() -> Hardware:
    """What every test trains on."""
    return Hardware(device="cpu", precision="float32", channels_last=False, workers=0)


@pytest.fixture
def short() -> Recipe:
    """Two epochs of three steps on ``tiny_data``."""
    return Recipe(epochs=2, batch_size=16, lr=0.05)


Refused = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def refused() -> Refused:
    """The block must end in an error of one line with every one of these pieces in it."""

    @contextmanager
    def check(*pieces: object) -> Iterator[None]:
        with pytest.raises(TutelageError) as exc_info:
            yield
        text = str(exc_info.value)
        assert len(text.splitlines()) == 1, text
        for piece in pieces:
            assert str(piece) in text, f"{piece!r} is not in: {text}"

    return check


@pytest.fixture
def state_of() -> Callable[[nn.Module], State]:
    """A copy of every parameter and buffer, those outside the state_dict included."""

    def copy(module: nn.Module) -> State:
        tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
        return {name: value.detach().clone() for name, value in tensors}

    return copy


@pytest.fixture
def changed() -> Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], set[str]]:
    """The names under which two states differ in any bit (a NaN equals itself)."""

    def names(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
        assert before.keys() == after.keys()
        return {name for name in before if not torch.equal(_bits(before[name]), _bits(after[name]))}

    return names


def _bits(value: Tensor) -> Tensor:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8)


@pytest.fixture
def soft(tiny_data: Data) -> Data:
    """``tiny_data`` with soft training labels."""
    labels = F.one_hot(tiny_data.train.labels, 4).float() * 0.8 + 0.05
    return replace(tiny_data, train=replace(tiny_data.train, labels=labels))


@pytest.fixture
def trained_model(tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware) -> Callable[..., Tapped]:
    """``trained_model(seed=1, ...)``: a tiny model that was trained on ``tiny_data``."""
    from tutelage.terms import CrossEntropy
    from tutelage.training import Learner, fit

    def make(seed: int = 1, **options: float) -> Tapped:
        model = tiny_model(seed, **options)
        recipe = Recipe(epochs=12, batch_size=16, lr=0.1)
        fit(Learner(model, None, {"ce": CrossEntropy()}), data=tiny_data, recipe=recipe, execution=Execution.on(on_cpu))
        return model.eval()

    return make


@pytest.fixture
def tiny_npz(tiny_data: Data, tmp_path: Path) -> str:
    """``tiny_data`` as a data set that is opened by its name."""
    arrays = {"classes": np.array(tiny_data.classes)}
    for part, key in (("train", "train"), ("validation", "val"), ("test", "test")):
        split = tiny_data.splits[part]
        assert isinstance(split.inputs, Tensor)
        arrays |= {f"{key}_images": split.inputs.numpy(), f"{key}_labels": split.labels.numpy()}
    np.savez(tmp_path / "tiny.npz", **arrays)
    return f"npz:{tmp_path / 'tiny.npz'}"


WriteStudy = Callable[..., Path]


@pytest.fixture
def write_study(tmp_path: Path) -> WriteStudy:
    """``write_study(name, numbers, task=.., noise=.., pairs=.., ..., **study)``: a folder as a study leaves it.

    ``numbers(record)`` gives what a record is to say beside or in place of numbers that are drawn.
    """
    from tutelage.studies.metrics import metrics_of
    from tutelage.tasks import find_task

    def write(
        name: str = "study",
        numbers: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda record: {},
        *,
        task: str = "classification",
        noise: Sequence[str | None] = (None, "0.4"),
        pairs: Sequence[tuple[str, str]] = (("big", "small"),),
        methods: Sequence[str] = ("at", "sp", "rkd"),
        seeds: Sequence[int] = (0, 1, 2),
        **study: Any,
    ) -> Path:
        metrics, main = metrics_of(find_task(task)), find_task(task).main_metric
        generator = np.random.default_rng(11)
        rows = ["plain", *methods]
        records = []
        for level, pair, row, seed in product(noise, pairs, ["teacher", *rows], seeds):
            identity = {
                "data": "digits",
                "noise": level,
                "imbalance": None,
                "per_class": None,
                "teacher_labels": "noisy",
            }
            identity |= {"teacher": pair[0], "student": pair[1], "method": row, "seed": seed}
            run = {
                "key": f"{len(records):016x}",
                "folder": f"runs/{row}-{len(records)}",
                "status": "done",
                "error": None,
            }
            run |= {**identity, "function": "plain" if row == "teacher" else row, "settings": {}}
            run |= dict(zip(metrics, generator.uniform(0.1, 0.9, len(metrics)).tolist(), strict=True))
            run |= {"parameters": 19074, "flops": 378496, "wrong_labels": 517 if level else 0}
            run |= {} if level else {"memorised": None, "noise_rate": None}
            of_teacher = [metric for metric in metrics if "teacher" in metric or metric == "agreement"]
            run |= dict.fromkeys(of_teacher) if row == "teacher" else {}
            run |= {"corruption_accuracy": None, "auac": None, "ood_auroc": None, "corruptions": None, "pgd": None}
            run |= {"attacks": None, "robust_accuracy": None, "attack_curves": None}
            run["command"] = "tutelage train"
            curves: dict[str, Any] = {f"train_{main}": [0.4, 0.6], f"validation_{main}": [None] * 2}
            if task == "classification":
                run |= {"per_class_accuracy": {"a": 0.5, "b": 0.25}}
                run |= {"reliability": {"count": [3], "accuracy": [1.0], "confidence": [0.5]}}
                run |= {"risk_coverage": {"coverage": [1.0], "risk": [0.5]}}
            else:
                curves = {f"train_{main}": [None] * 2, f"validation_{main}": [0.6, 0.4]}
            run["curve"] = {"epoch": [1, 2], **curves, "loss": {}}
            run |= numbers(run)
            if run["status"] != "done":
                fields = {*identity, "key", "folder", "status", "error", "function", "settings"}
                run = {field: value if field in fields else None for field, value in run.items()}
            records.append(run)
        declaration = {"name": name, "data": ["digits"], "noise": list(noise), "imbalance": [None], "per_class": [None]}
        declaration |= {"teacher_labels": ["noisy"], "pairs": [list(pair) for pair in pairs], "seeds": list(seeds)}
        declaration |= {"methods": {row: {"method": row, "settings": {}} for row in rows}, "train": {"epochs": 5}}
        declaration |= {"evaluate": {"corruptions": False, "pgd": [], "ood": None}, "budget": 0}
        declaration |= {"task": task} if task != "classification" else {}  # as studies from before tasks
        folder = tmp_path / name
        folder.mkdir()
        (folder / "study.json").write_text(json.dumps({**declaration, **study}))
        (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        return folder

    return write


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    """Compiling is with made-up CUDA graphs, and without its last stage, which would take half a minute a network."""
    imitation, compile_module = Graphs(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode: compile_module(function, backend=imitation.backend))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", imitation.begin_step)
    torch.compiler.reset()
    return imitation


HOOK: list[ReadOnly] = []


@pytest.fixture
def read_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], None]]:
    """``read_only(folder)``: what is below it can be read only, until the test is over."""
    if not HOOK:
        HOOK.append(ReadOnly())

    access = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: not (mode & os.W_OK and HOOK[0].covers(path)) and access(path, mode)
    )

    def make(folder: Path) -> None:
        HOOK[0].folder = folder

    yield make
    HOOK[0].folder = None


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run a command line in an empty folder; the exit code, what it printed, and what it said on the side."""
    from tutelage.cli import main

    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["tutelage", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call
