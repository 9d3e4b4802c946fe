"""The method nas_kd: halves, choice, size, random cells, resume, and the file of the chosen network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tutelage
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.modality import Tokens
from tutelage.data.split import Split
from tutelage.evaluation import accuracy
from tutelage.methods import find
from tutelage.methods.nas_kd import searched_cell
from tutelage.methods.nas_kd.networks.cells import Cells
from tutelage.methods.nas_kd.probes import Probed, train_probes
from tutelage.methods.nas_kd.search import Search, halves, optimizer_for
from tutelage.models import zoo
from tutelage.models.tapped import Tapped
from tutelage.models.weights import read_metadata
from tutelage.runs.models import open_model
from tutelage.runs.samples import read_samples
from tutelage.training import Run

DATA = "texts"
"""The data of the conformance tests."""

STUDENT = "cells-2-4"
"""The kind of network that the method trains."""

TEACHER = "texttransformer-2-8"
"""A network that teaches it."""

BRIEF = {"search_epochs": 1, "probe_epochs": 1}
"""Settings for the conformance tests."""

VOCABULARY, LENGTH = 9, 7
SHORT: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 0.02, "optimizer": "AdamW", "device": "cpu"}


def order_data(train: int = 96) -> Data:
    """Texts in which the token 1 stands before 2 or behind it; only that order gives the class."""
    generator = torch.Generator().manual_seed(5)

    def part(size: int) -> Split:
        labels = torch.arange(size) % 2
        tokens = torch.randint(3, VOCABULARY, (size, LENGTH), generator=generator)
        tokens[::2, 5:] = 0
        place = torch.randint(0, 4, (size,), generator=generator)
        rows = torch.arange(size)
        tokens[rows, place], tokens[rows, place + 1] = 1 + labels, 2 - labels
        return Split.of(tokens, labels, modality=Tokens(VOCABULARY))

    return Data("order", ("before", "behind"), part(train), part(48), part(16))


def network(name: str, seed: int = 0) -> Tapped:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Tapped(zoo.build(name, num_classes=2, input_shape=(LENGTH,), modality=Tokens(VOCABULARY)))


def make_run(data: Data, name: str = STUDENT, **fields: Any) -> Run:
    recipe = Recipe(**{"epochs": 2, "batch_size": 16, "optimizer": "AdamW", "lr": 0.01} | fields)
    hardware = Hardware(device="cpu", precision="float32", workers=0)
    return Run(data, lambda: network(name), [network(TEACHER, 1)], recipe=recipe, hardware=hardware, seed=3)


@pytest.mark.filterwarnings("ignore:.*chance level")
def test_chosen_network_opens_from_its_file_and_by_its_name(tmp_path: Path) -> None:
    data = order_data()
    teacher = network(TEACHER, 1)
    result = tutelage.distill(teacher, STUDENT, data, method="nas_kd", settings=BRIEF, out=tmp_path, **SHORT)
    notes = result.metrics["notes"]
    metadata = read_metadata(tmp_path / "student.safetensors")
    cell, depth = metadata["surgery"][0]["cell"], metadata["surgery"][0]["depth"]
    assert notes["network"] == f"cells-{depth}-4-{cell}"
    assert notes["search"][-1]["cell"] == cell
    assert sum(notes["search"][-1]["operations"].values()) == 9
    tokens = data.test.inputs[torch.arange(8)]
    opened = open_model(str(tmp_path), data)
    named = network(notes["network"]).eval()
    named.module.load_state_dict(result.model.module.state_dict())
    with torch.no_grad():
        expected = result.model.eval()(tokens)
        assert torch.equal(opened(tokens), expected)
        assert torch.equal(named(tokens), expected)
    count = sum(parameter.numel() for parameter in named.parameters())
    assert (notes["parameters"], notes["parameters_without_table"]) == (count, count - VOCABULARY * 4)
    assert notes["flops"] == result.metrics["cost"]["flops"]
    assert len(notes["probe_losses"]) == 2
    in_choice_half = read_samples(tmp_path)["choice_half"].bool()
    of_weights, of_choice = halves(data.train, result.config.seed)
    assert torch.equal(in_choice_half.nonzero()[:, 0], of_choice)
    assert not set(of_weights.tolist()) & set(of_choice.tolist())
    assert len(of_weights) == len(of_choice) == 48


class Spy(Search):
    """Compares weights and choice before and after each update, and notes the samples of the batches."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.changed: list[tuple[str, set[str]]] = []
        self.samples: dict[str, set[int]] = {"student": set(), "choice": set()}

    def __call__(self, step: Any) -> None:
        update = step.update

        def watched_update(learner: Any, loss: Tensor) -> None:
            before = {name: p.detach().clone() for name, p in self.network.named_parameters()}
            update(learner, loss)
            after = dict(self.network.named_parameters())
            self.changed.append((learner.name, {n for n, p in before.items() if not torch.equal(p, after[n])}))
            self.samples[learner.name] |= set(step.batch.index.tolist())

        step.update = watched_update
        super().__call__(step)


def test_weights_and_choice_are_trained_on_disjoint_halves() -> None:
    data = order_data()
    run = make_run(data)
    student = run.student()
    probed = train_probes(run, run.teacher(), 0, 1)
    assert isinstance(student.module, Cells)
    spy = Spy(student.module, 0.98, 0.5)
    loss = {"gamma": 0.8, "temperature": 5.0}
    searched_cell(run, student, probed, 0, loss=loss, beta=1.0, epochs=2, rate=0.01, decay=0.0, rule=spy)
    assert [name for name, _ in spy.changed] == ["student", "choice"] * 6
    for name, changed in spy.changed:
        assert changed == {"alpha", "kappa"} if name == "choice" else changed & {"alpha", "kappa"} == set()
        assert changed
    of_weights, of_choice = halves(data.train, run.seed)
    assert spy.samples["student"] <= set(of_weights.tolist())
    assert spy.samples["choice"] <= set(of_choice.tolist())
    assert float(student.module.temperature) == pytest.approx(0.98**2)


def searched(beta: float) -> tuple[Run, Tapped]:
    run = make_run(order_data(), "cells-1-6", epochs=10 if beta == 0 else 1, lr=0.03)
    settings = {"search_epochs": 10 if beta == 0 else 3, "choice_rate": 0.1}
    model = find("nas_kd")(run, gamma=0.0, beta=beta, probe_epochs=1, **settings)
    return run, model


def test_search_finds_convolutions_where_only_order_tells_and_none_where_size_is_all() -> None:
    run, model = searched(0.0)
    names = run.notes["search"][-1]["operations"]
    assert sum(count for name, count in names.items() if name.startswith(("conv", "dilated"))) >= 3
    test = run.data.test
    assert float(accuracy(run.predict(model, test), test.labels)) > 0.9
    small_run, small = searched(1000.0)
    assert not [name for name, _ in small.named_parameters() if ".conv." in name]
    assert not {"conv3", "conv5", "conv7"} & small_run.notes["search"][-1]["operations"].keys()


def test_search_ends_where_skips_dominate() -> None:
    run = make_run(order_data(), epochs=1)
    find("nas_kd")(run, search_epochs=4, probe_epochs=1, skip_limit=0.05)
    assert [entry["epoch"] for entry in run.notes["search"]] == [1]


def test_cells_without_a_search() -> None:
    notes = []
    for cell in ("random", "random", "41-457-1842"):
        run = make_run(order_data(), epochs=1)
        find("nas_kd")(run, cell=cell, probe_epochs=1)
        assert "search" not in run.notes
        notes.append(run.notes["network"])
    assert notes[0] == notes[1] != notes[2] == "cells-2-4-41-457-1842"
    assert "0" not in notes[0].removeprefix("cells-2-4")


def test_table_of_the_teacher_is_copied_if_it_fits(tmp_path: Path) -> None:
    run = make_run(order_data(), "cells-1-4e8", epochs=1, lr=1e-9)
    model = find("nas_kd")(run, cell="11-111-1111", probe_epochs=1)
    assert run.notes["table"] == "teacher"
    assert run.notes["network"] == "cells-1-4e8-11-111-1111"
    torch.testing.assert_close(model.module.table.weight, run.teacher().module.table.weight, atol=1e-6, rtol=0)  # type: ignore[union-attr]
    other = make_run(order_data(), epochs=1)
    find("nas_kd")(other, cell="11-111-1111", probe_epochs=1)
    assert other.notes["table"] == "new"


def test_probes_learn_and_the_teacher_stays() -> None:
    data = order_data()
    run = make_run(data, lr=0.05, ema=0.9)
    teacher = run.teacher()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    probed = train_probes(run, teacher, 0, 8)
    assert probed.roles == ("probe1", "logits")
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    values = run.predict(probed.model, data.train, probed.roles)
    torch.testing.assert_close(values[:, 2:], run.predict(teacher, data.train))
    labels = data.train.labels
    for number, loss in enumerate(probed.losses):
        logits = values[:, 2 * number : 2 * number + 2]
        assert loss == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    untrained = train_probes(make_run(data, lr=1e-9), teacher, 0, 1)
    assert probed.losses[0] < untrained.losses[0]
    assert isinstance(probed.model.module, Probed)


@pytest.mark.filterwarnings("ignore:.*chance level")
def test_interrupted_search_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(record: dict[str, Any]) -> None:
        if record["fit"] == 1 and record["epoch"] == 2:
            raise StoppedError

    options = {"method": "nas_kd", "settings": {"search_epochs": 3, "probe_epochs": 1, "choice_rate": 0.05}, **SHORT}
    data, teacher = order_data(32), network(TEACHER, 1)
    tutelage.distill(teacher, STUDENT, data, out=tmp_path / "whole", **options)
    with pytest.raises(StoppedError):
        tutelage.distill(teacher, STUDENT, data, out=tmp_path / "parts", report=stop, **options)
    tutelage.distill(teacher, STUDENT, data, out=tmp_path / "parts", **options)
    for name in ("student.safetensors", "samples.safetensors"):
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("whole", "parts"))
        assert first == second


def test_optimizers_are_those_of_weights_and_choice() -> None:
    module = network(STUDENT).module
    assert isinstance(module, Cells)
    make = optimizer_for(module, Recipe(lr=0.3), 0.01, 0.1)
    (group,) = make([module.alpha, module.kappa]).param_groups
    assert (group["lr"], group["weight_decay"], group["betas"]) == (0.01, 0.1, (0.5, 0.999))
    assert make([module.head.weight]).param_groups[0]["lr"] == 0.3


def test_other_students_data_and_cells_are_refused(tiny_data: Data, tiny_model: Any, refused: Any) -> None:
    method = find("nas_kd")
    with refused("nas_kd searches networks for texts, and tiny has images"):
        method(Run(tiny_data, tiny_model, [tiny_model(1)]))
    with refused("nas_kd searches networks such as cells-2-32, and the student is a TextCNN"):
        method(make_run(order_data(), "textcnn-1-4"))
    with refused("nas_kd searches networks such as cells-2-32, and the student is a Cells"):
        method(make_run(order_data(), "cells-1-4-41-457-1842"))
    with refused("such as 41-457-1842, and this is '41'"):
        method(make_run(order_data()), cell="41")
