"""The method minority_al: requests, fits, and its two schemes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tutelage.config import Config, Hardware, Recipe
from tutelage.data import Data, Quantities, Split, Vectors
from tutelage.methods import find
from tutelage.models.tapped import Tapped
from tutelage.runs.execute import Overrides, execute
from tutelage.training import Learner, Run
from tutelage.training.fit import FitResult

RECIPE = Recipe(epochs=2, batch_size=8, lr=0.05)
BRIEF = {"initial": 8, "rounds": 2, "budget": 4}  # for the conformance tests


class RecordingRun(Run):
    """Records what each network is trained on, and the roles of all predictions."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.trained: list[tuple[Tapped, Data]] = []
        self.roles: list[tuple[str, ...]] = []

    def fit(self, *learners: Learner, data: Data | None = None, **options: Any) -> FitResult:
        assert data is not None
        self.trained.append((learners[0].model, data))
        return super().fit(*learners, data=data, **options)

    def predict(self, model: Tapped, split: Split, roles: Any = ("logits",)) -> Tensor:
        self.roles.append(tuple(roles))
        return super().predict(model, split, roles)


@pytest.fixture
def recording_run(tiny_data: Data, any_model: Callable[[], Tapped], on_cpu: Hardware) -> Callable[..., RecordingRun]:
    def make(data: Data = tiny_data, **options: Any) -> RecordingRun:
        return RecordingRun(data, any_model, **({"recipe": RECIPE, "hardware": on_cpu, "seed": 3} | options))

    return make


def test_each_round_trains_a_new_student_on_the_labels_so_far(
    recording_run: Callable[..., RecordingRun], tiny_data: Data
) -> None:
    run = recording_run()
    student = find("minority_al")(run, **BRIEF)
    rounds = run.samples["round"]
    assert len({model for model, _ in run.trained}) == 3
    assert run.trained[-1][0] is student
    for number, (_, data) in enumerate(run.trained):
        labelled = (rounds >= 0) & (rounds <= number)
        assert torch.equal(data.train.index, tiny_data.train.index[labelled])
        assert torch.equal(data.train.labels, tiny_data.train.labels[labelled])
        counts = tiny_data.train.labels[labelled].bincount(minlength=4)
        assert run.notes["rounds"][number]["counts"] == counts.tolist()
        variation = float(counts.double().std(correction=0) / counts.double().mean())
        assert run.notes["rounds"][number]["variation"] == pytest.approx(variation)
    assert [(rounds == number).sum() for number in (0, 1, 2)] == [8, 4, 4]
    assert [data.validation for _, data in run.trained] == [None, None, tiny_data.validation]


def test_labels_that_are_not_requested_are_not_read(
    recording_run: Callable[..., RecordingRun], tiny_data: Data, state_of: Any, changed: Any
) -> None:
    first = recording_run()
    before = state_of(find("minority_al")(first, **BRIEF))
    hidden = first.samples["round"] < 0
    labels = torch.where(hidden, (tiny_data.train.labels + 1) % 4, tiny_data.train.labels)
    other = recording_run(replace(tiny_data, train=replace(tiny_data.train, labels=labels)))
    assert changed(before, state_of(find("minority_al")(other, **BRIEF))) == set()
    assert torch.equal(first.samples["round"], other.samples["round"])


def test_samples_without_a_label_are_never_requested(
    recording_run: Callable[..., RecordingRun], partly_labelled: Data
) -> None:
    run = recording_run(partly_labelled)
    find("minority_al")(run, initial=4, rounds=2, budget=2)
    assert (run.samples["round"][8:] == -1).all()
    assert (run.samples["round"][:8] >= 0).all()


def test_first_requests_do_not_depend_on_the_acquisition(recording_run: Callable[..., RecordingRun]) -> None:
    runs = [recording_run() for _ in range(4)]
    for run, settings in zip(
        runs, ({}, {"query": "soft"}, {"query": "base", "base": "k_centre"}, {"rank": "uncertain"}), strict=True
    ):
        find("minority_al")(run, **BRIEF, **settings)
    first = [run.samples["round"] == 0 for run in runs]
    assert all(torch.equal(rows, first[0]) for rows in first)


def test_without_rounds_it_is_plain_training_on_random_samples(
    recording_run: Callable[..., RecordingRun], tiny_data: Data, state_of: Any, changed: Any
) -> None:
    run = recording_run()
    state = state_of(find("minority_al")(run, initial=20, rounds=0))
    labelled = (run.samples["round"] == 0).nonzero()[:, 0]
    plain = recording_run(replace(tiny_data, train=tiny_data.train.subset(labelled)))
    plain_student = plain.student()
    Run.fit(plain, Learner(plain_student, None, plain.label_terms()))
    assert changed(state, state_of(plain_student)) == set()


def test_rounds_end_when_all_labels_are_requested(recording_run: Callable[..., RecordingRun], tiny_data: Data) -> None:
    run = recording_run()
    find("minority_al")(run, initial=20, rounds=10, budget=20)
    assert run.samples["round"].bincount().tolist() == [20, 20, 8]
    assert torch.equal(run.trained[-1][1].train.labels, tiny_data.train.labels)
    assert len(run.trained) == 3


# --- frozen features


def test_classifier_scheme_trains_the_last_layer_alone(
    recording_run: Callable[..., RecordingRun], state_of: Any, changed: Any
) -> None:
    run = recording_run()
    before = state_of(run.student())
    student = find("minority_al")(run, **BRIEF, scheme="classifier")
    assert changed(before, state_of(student)) == {"module.fc.weight", "module.fc.bias"}
    assert run.roles.count(("embedding",)) == 1  # computed once
    *rounds, (last, data) = run.trained
    assert last is student
    assert data.train.inputs.shape[1:] == (8, 8, 1)
    features = run.predict(run.student(), run.data.train, ("embedding",))
    for model, vectors in rounds:
        assert isinstance(model.module, nn.Linear)
        assert vectors.train.modality == Vectors()
        assert torch.isin(vectors.train.inputs, features).all()  # type: ignore[arg-type]


def test_classifier_scheme_needs_a_linear_last_layer(tiny_data: Data, on_cpu: Hardware, refused: Any) -> None:
    def convolutional() -> Tapped:
        return Tapped(nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))

    with refused("Sequential", "nn.Linear as its last layer"):
        find("minority_al")(Run(tiny_data, convolutional, hardware=on_cpu), **BRIEF, scheme="classifier")


# --- what it is for


def long_tailed(seed: int) -> Data:
    """Gaussians of four classes with 80, 40, 8 and 8 samples."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(4).repeat_interleave(torch.tensor([80, 40, 8, 8]))
    means = 2.5 * torch.eye(4, 6)
    split = Split.of(means[labels] + torch.randn(len(labels), 6, generator=generator), labels, Vectors())
    return Data("gaussians", tuple("abcd"), split, split)


def test_rare_classes_are_labelled_first(on_cpu: Hardware) -> None:
    rare = {}
    for query, base in (("minority", "margin"), ("base", "random")):
        rare[query] = 0
        for seed in range(2):
            data, recipe = long_tailed(seed), Recipe(epochs=8, batch_size=16, lr=0.3)
            run = Run(data, lambda: Tapped(nn.Linear(6, 4)), recipe=recipe, hardware=on_cpu, seed=seed)
            find("minority_al")(run, initial=16, rounds=4, budget=6, query=query, base=base)
            rare[query] += sum(run.notes["rounds"][-1]["counts"][2:])
    assert rare["minority"] > 1.5 * rare["base"], rare


def test_rounds_are_recorded_in_the_folder(tiny_data: Data, tmp_path: Path) -> None:
    config = Config(student="resnet8x0.25", method="minority_al", epochs=1, batch_size=16, settings=BRIEF, device="cpu")
    result = execute(config, tmp_path / "run", overrides=Overrides(data=tiny_data))
    assert [sum(entry["counts"]) for entry in result.metrics["notes"]["rounds"]] == [8, 12, 16]
    rounds = load_file(tmp_path / "run" / "samples.safetensors")["round"]
    assert rounds[rounds >= 0].bincount().tolist() == [8, 4, 4]


# --- errors


def test_other_targets_are_refused(any_model: Callable[[], Tapped], soft: Data, refused: Any) -> None:
    train = Split.of(torch.randn(48, 6), torch.rand(48, 1), Vectors(), Quantities())
    with refused("quantities"):
        find("minority_al")(Run(Data("numbers", ("a",), train, train), any_model))
    with refused("minority_al needs class numbers", "argmax"):
        find("minority_al")(Run(soft, any_model))


@pytest.mark.parametrize(
    ("wrong", "pieces"),
    [
        ({"initial": 0}, ("initial",)),
        ({"budget": 0}, ("budget",)),
        ({"query": "best"}, ("query",)),
        ({"base": "best"}, ("base",)),
        ({"share": 1.5}, ("share",)),
        ({"scheme": "frozen"}, ("scheme",)),
    ],
)
def test_invalid_settings_are_refused(
    wrong: dict[str, Any], pieces: tuple[str, ...], recording_run: Callable[..., RecordingRun], refused: Any
) -> None:
    with refused(*pieces):
        find("minority_al")(recording_run(), **wrong)
