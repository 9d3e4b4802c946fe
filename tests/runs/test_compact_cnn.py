"""The method compact_cnn: targets, blocks, distillation, resume, and files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tutelage
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.evaluation.cost import flops, parameters
from tutelage.methods import find
from tutelage.models.export import export_onnx
from tutelage.models.tapped import Tapped
from tutelage.runs import open_model
from tutelage.studies.functions import read_lines
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult

BRIEF = {"strength": 30.0, "target": 0.7}  # for the conformance tests
STUDENT = "wrn-10-1"
TEACHER = "wrn-10-1"
SHORT = Recipe(epochs=2, batch_size=16, lr=0.05)
SETTINGS = {"strength": 30.0, "structure_epochs": 12}
CHANNELS = (16, 16, 32, 32)


def sequential(data: Data, seed: int = 0) -> Tapped:
    """Four convolutions with batch normalisation, at two resolutions."""
    layers: list[nn.Module] = []
    inputs = 1
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for outputs, stride in zip(CHANNELS, (1, 1, 2, 1), strict=True):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            inputs = outputs
        return Tapped(
            nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 4)), *data.mean_std
        )


@pytest.fixture
def trained(tiny_data: Data, on_cpu: Hardware) -> Callable[..., tuple[Run, Tapped]]:
    """``trained(**settings)``: the run and the network; ``recipe`` and ``folder`` are those of the run."""

    def train(*, recipe: Recipe = SHORT, seed: int = 0, **settings: Any) -> tuple[Run, Tapped]:
        options = {name: settings.pop(name) for name in ("folder", "report") if name in settings}
        run = Run(tiny_data, lambda: sequential(tiny_data), recipe=recipe, hardware=on_cpu, seed=seed, **options)
        return run, find("compact_cnn")(run, **SETTINGS | settings)

    return train


@pytest.mark.parametrize("resource", ["flops", "parameters"])
def test_target_is_met_and_notes_are_those_of_the_network(
    resource: str, trained: Callable[..., tuple[Run, Tapped]], tiny_data: Data
) -> None:
    run, student = trained(resource=resource, target=0.5)
    notes, example = run.notes, run.example(student, 1)
    count = flops(student, example) if resource == "flops" else parameters(student)
    assert count == notes["cost"]["compact"]
    assert 0.97 * notes["cost"]["target"] <= count <= notes["cost"]["target"]
    assert notes["cost"]["target"] == notes["cost"]["dense"] // 2
    assert notes["cost"]["structure"] <= 1.05 * notes["cost"]["target"]  # in at most 12 epochs
    assert len(notes["structure"]) == len(run.fits[1].history) < 12
    assert notes["structure"][-1]["cost"] == notes["cost"]["structure"]
    assert sum(after for _, after in notes["block_cost"].values()) <= count
    assert notes["extraction_difference"] < 1e-5
    widths = [module.out_channels for module in student.module.modules() if isinstance(module, nn.Conv2d)]
    assert [pair[1] for pair in notes["widths"].values()] == [*widths, 4]
    assert [pair[0] for pair in notes["widths"].values()] == [*CHANNELS, 4]
    assert notes["uncompressed"] == ["14"]
    assert [fitted.history[-1]["lr"] for fitted in run.fits][1] == SHORT.lr  # constant


def test_multipliers_move_channels_to_the_other_blocks(trained: Callable[..., tuple[Run, Tapped]]) -> None:
    early, late = (trained(target=0.5, multipliers=values)[0].notes for values in ((3, 0.3, 1), (0.3, 3, 1)))
    names = ("0", "3"), ("6", "9")
    sums = [[sum(notes["widths"][name][1] for name in part) for part in names] for notes in (early, late)]
    assert sums[0][0] < sums[1][0]
    assert sums[0][1] > sums[1][1]


def test_block_targets_are_reached(trained: Callable[..., tuple[Run, Tapped]]) -> None:
    run, _ = trained(block_targets=(0.9, 0.4, 1.0), structure_epochs=20)
    (before, after), (whole, rest) = run.notes["block_cost"]["stage1"], run.notes["block_cost"]["stage2"]
    assert after / before == pytest.approx(0.9, abs=0.1)
    assert rest / whole == pytest.approx(0.4, abs=0.06)


def test_without_teacher_term_it_uses_the_labels_alone(trained: Callable[..., tuple[Run, Tapped]]) -> None:
    run, _ = trained(alpha=0.0)
    assert len(run.fits) == 3
    for fitted in run.fits:
        assert "kd" not in fitted.history[-1]["learners"]["student"]
        assert fitted.history[-1]["forward_passes"]["teacher"] == 0


@pytest.mark.parametrize("settings", [{"step": "gradient", "structure_epochs": 30}, {"expand_from": 0.3}])
def test_other_forms_meet_the_target(settings: dict[str, Any], trained: Callable[..., tuple[Run, Tapped]]) -> None:
    run, _ = trained(target=0.5, **settings)
    cost = run.notes["cost"]
    assert 0.95 * cost["target"] <= cost["compact"] <= cost["target"]
    if "expand_from" in settings:
        assert cost["structure"] <= 0.32 * cost["dense"]


def test_dense_network_is_the_teacher(
    trained: Callable[..., tuple[Run, Tapped]], tiny_data: Data, on_cpu: Hardware, state_of: Any, changed: Any
) -> None:
    teacher = sequential(tiny_data, 5)
    before = state_of(teacher)
    run = Run(tiny_data, lambda: sequential(tiny_data), [teacher], recipe=SHORT, hardware=on_cpu)
    student = find("compact_cnn")(run, start="teacher", finish="finetune", **SETTINGS)
    assert len(run.fits) == 2
    assert run.fits[1].history[-1]["learners"]["student"].keys() >= {"ce", "kd"}
    assert changed(before, state_of(teacher)) == set()
    assert run.notes["cost"]["compact"] == flops(student, run.example(student, 1))


def test_finetuning_starts_from_the_remaining_weights_and_scratch_from_new_ones(
    trained: Callable[..., tuple[Run, Tapped]], tiny_data: Data, monkeypatch: Any
) -> None:
    initial: list[torch.Tensor] = []
    fit = Run.fit

    def recorded(run: Run, learner: Learner, **options: Any) -> FitResult:
        initial.append(learner.model.module.get_parameter("3.weight").detach().clone())
        return fit(run, learner, **options)

    monkeypatch.setattr(Run, "fit", recorded)
    new_weights = sequential(tiny_data).module.get_parameter("3.weight").detach()
    for finish, is_new in (("finetune", False), ("scratch", True)):
        initial.clear()
        trained(finish=finish)
        assert len(initial) == 3
        assert initial[2].numel() < new_weights.numel()
        assert bool(torch.isin(initial[2], new_weights).all()) is is_new


def test_resumed_run_equals_an_uninterrupted_one(
    trained: Callable[..., tuple[Run, Tapped]], tmp_path: Path, state_of: Any, changed: Any
) -> None:
    states, notes = [], []
    for folder, stops in (("uninterrupted", [None]), ("stopped", [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1), None])):
        for stop in stops:

            def report(record: dict[str, Any], stop: Any = stop) -> None:
                if (record["fit"], record["epoch"]) == stop:
                    raise KeyboardInterrupt

            try:
                run, student = trained(folder=tmp_path / folder, report=report)
            except KeyboardInterrupt:
                continue
        states.append(state_of(student))
        notes.append(run.notes)
    assert len(notes[0]["structure"]) > 2
    assert notes[0] == notes[1]
    assert changed(*states) == set()


def test_run_folder_is_opened_again_evaluated_and_exported(
    tiny_data: Data, tmp_path: Path, run: Callable[..., tuple[int, str, str]], tiny_npz: str
) -> None:
    result = tutelage.train(
        STUDENT,
        tiny_npz,
        method="compact_cnn",
        settings={**BRIEF, "structure_epochs": 2},
        epochs=1,
        batch_size=16,
        device="cpu",
        out=tmp_path / "run",
    )
    pixels = tiny_data.test.inputs.permute(0, 3, 1, 2) / 255  # type: ignore[union-attr]
    opened = open_model(str(tmp_path / "run"), tiny_data)
    expected = result.model(pixels)
    assert torch.equal(opened(pixels), expected)
    assert result.metrics["cost"]["flops"] == result.metrics["notes"]["cost"]["compact"]
    code, output, error = run("evaluate", str(tmp_path / "run"), "--device", "cpu")
    assert code == 0, error
    assert "accuracy" in output
    pytest.importorskip("onnxscript", reason="needs the extra onnx")
    onnxruntime: Any = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    export_onnx(opened, (1, 8, 8), tmp_path / "student.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "student.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"pixels": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), expected.detach(), rtol=1e-4, atol=1e-4)


def test_unsuitable_runs_are_refused(
    trained: Callable[..., tuple[Run, Tapped]], tiny_data: Data, tiny_model: Any, on_cpu: Hardware, refused: Any
) -> None:
    flat = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    with refused("Sequential has no channels", "batch normalisation after each convolution"):
        find("compact_cnn")(Run(tiny_data, lambda: Tapped(flat), recipe=SHORT, hardware=on_cpu))
    with refused("a target of 0.01 of the flops", "smallest share", "choose a larger target"):
        trained(target=0.01)
    with refused("multipliers must have one number for each of the 3 blocks", "stage1, stage2, last", "got 2"):
        trained(multipliers=(1, 2))
    with refused("block_targets must have one number", "got 1"):
        trained(block_targets=(0.5,))
    for settings in ({"expand_from": 0.6}, {"expand_from": 0.3, "block_targets": (0.5, 0.5, 1.0)}):
        with refused("expand_from", "choose a smaller one"):
            trained(target=0.5, **settings)
    run = Run(tiny_data, lambda: sequential(tiny_data), [tiny_model(1)], recipe=SHORT, hardware=on_cpu)
    with refused("start=teacher", "Sequential", "TinyNet", "start=trained"):
        find("compact_cnn")(run, start="teacher")
    for settings in ({"target": 1.0}, {"floor": 1}, {"strength": 0}, {"alpha": 2}, {"multipliers": (-1, 1, 1)}):
        with refused(next(iter(settings))):
            trained(**settings)


def test_recorded_networks_meet_their_budgets_where_the_blocks_say() -> None:
    """The results of ``experiments.compact_cnn``, whose trainings are too long for a test."""
    lines = read_lines(Path(__file__).parents[2] / "docs" / "results" / "compact_cnn.jsonl")
    by_seed: dict[int, dict[str, dict[str, float]]] = {}
    for line in lines:
        by_seed.setdefault(line["seed"], {})[line["row"]] = line["measured"]
    assert len(by_seed) == 5
    assert sum(rows["targets of blocks"]["off of blocks"] < 0.1 for rows in by_seed.values()) >= 4
    for rows in by_seed.values():
        assert all(row["off"] <= 0.03 and row["extraction"] < 1e-4 for row in rows.values() if "off" in row)
        assert rows["early blocks x 3"]["early"] < rows["learned, KD"]["early"] < rows["late blocks x 3"]["early"]
        assert rows["early blocks x 3"]["late"] > rows["learned, KD"]["late"] > rows["late blocks x 3"]["late"]
        assert rows["learned, KD"]["early"] < rows["learned, KD, parameters"]["early"]
        assert rows["learned, KD"]["late"] > rows["learned, KD, parameters"]["late"]
