"""Every method on the pairs of networks that can differ for it, and all pairs with ``make test-all``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.runs.pairs import FEW, PAIRS, RECIPE, STUDENTS, zoo_network
from tests.runs.uses import (
    CLASSIFY,
    brief,
    data_of,
    networks,
    own_student,
    own_teacher,
    reads_texts,
    representatives,
    use_of,
)
from tutelage.config import Hardware, Recipe
from tutelage.data import Data
from tutelage.data.loader import Batches
from tutelage.data.orders import class_balanced, shuffled
from tutelage.methods import find
from tutelage.models.random_state import fixed_draws
from tutelage.models.surgery import applied_operations
from tutelage.models.tapped import Tapped
from tutelage.models.weights import save_weights
from tutelage.runs.models import load_student
from tutelage.training import FitResult, Learner, Run

Case = tuple[str, str]


class StoppedError(Exception):
    pass


CASES = [(method, pair) for method in CLASSIFY for pair in PAIRS]
NEEDED = [(method, pair) for method, pair in CASES if pair in use_of(method).pairs]


def _cases(cases: Sequence[Case], needed: Collection[Case]) -> list[Any]:
    """All cases; those that no method's use asks for are left to ``make test-all``."""
    marks: dict[bool, Any] = {True: (), False: pytest.mark.full}
    return [pytest.param(*case, marks=marks[case in needed]) for case in cases]


@pytest.mark.parametrize(("method", "pair"), _cases(CASES, NEEDED))
def test_a_method_on_a_pair(
    method: str,
    pair: str,
    tiny_data: Data,
    on_cpu: Hardware,
    tmp_path: Path,
    state_of: Any,
    changed: Any,
) -> None:
    make, make_teacher = networks(method, pair)
    tiny_data = data_of(method, tiny_data)
    torch.manual_seed(1)
    teacher = make_teacher().train()
    before = state_of(teacher)

    def train_method(folder: Path, stop: int | None) -> tuple[Tapped, _RecordedFits, list[Tensor]]:
        input_batches: list[Tensor] = []
        reports: list[Any] = []

        def report(record: Any) -> None:
            reports.append(record)
            if len(reports) == stop:
                raise StoppedError

        def student() -> Tapped:
            model = make()
            if not initial_state:
                model.module.register_forward_pre_hook(_Seen(input_batches))
                initial_state.append(state_of(model))
            return model

        initial_state: list[dict[str, Tensor]] = []
        torch.rand(len(reports) + 1)
        run = _RecordedFits(
            tiny_data, student, [teacher], recipe=RECIPE, hardware=on_cpu, seed=4, folder=folder, report=report
        )
        final_names = find(method)(run, **brief(method))
        initial_states.append(initial_state[0])
        return final_names, run, input_batches

    initial_states: list[dict[str, Tensor]] = []
    student, run, input_batches = train_method(tmp_path / "whole", None)

    # It has trained, and the teacher has not.
    assert student is not teacher
    after = state_of(student)
    final_names = final_names_of(initial_states[0], after)
    assert final_names
    assert changed(
        {name: initial_states[0][name] for name in final_names},
        {name: after[final_name] for name, final_name in final_names.items()},
    )
    assert all(torch.isfinite(value).all() for value in after.values() if value.is_floating_point())
    assert changed(before, state_of(teacher)) == set()
    assert all(p.grad is None for p in teacher.parameters())

    # Its first weights and batches are those of every other method with this seed and these samples.
    assert changed(initial_states[0], state_of(Run(tiny_data, make, seed=4).student())) == set()
    sources = [(tiny_data, 16)]
    sources += [(fit.get("data", tiny_data), fit.get("batch_size", 16)) for fit in run.options]
    first_batches = [
        next(Batches(data.train, batch_size=size, views=data.views, seed=4, order=order).epoch(0)).inputs
        for data, size in sources
        for order in (shuffled, class_balanced)
    ]
    assert any(_shows(input_batches[0], student.normalised(first)) for first in first_batches)

    # Stopped and taken up again it is the same.
    with pytest.raises(StoppedError):
        train_method(tmp_path / "stopped", 1)
    resumed_student, resumed_run, _ = train_method(tmp_path / "stopped", None)
    assert changed(after, state_of(resumed_student)) == set()
    assert [len(fit_result.history) for fit_result in resumed_run.fits] == [
        len(fit_result.history) for fit_result in run.fits
    ]

    # What is written is the student alone.
    save_weights(tmp_path / "student.safetensors", student.module, {"surgery": applied_operations(student.module)})
    new_student = make()
    new_student.module = load_student(tmp_path / "student.safetensors", new_student.module, tiny_data)
    modality = tiny_data.modality
    pixels = modality.to_input(modality.arrange(tiny_data.test.inputs))  # type: ignore[arg-type]
    outputs = []
    for model in (new_student, student):
        with fixed_draws(model):
            outputs.append(model.eval()(pixels))
    assert torch.equal(*outputs)


def _shows(seen: Tensor, images: Tensor) -> bool:
    """Whether a network was given these images, or spikes over time (B, T, ...) of their pixels above 0."""
    if seen.ndim > images.ndim:
        return seen.shape[2:] == images.shape[1:] and bool((seen.amax(1) <= images.ceil()).all())
    return torch.equal(seen, images)


def final_names_of(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, str]:
    """The names of a student's weights to those that they have now, by themselves or in a part of a larger network.

    Surgery may have added some, or taken.
    """
    ends = {name: f".{name.removeprefix('module.')}" for name in before if name.startswith("module.")}
    places = {
        name: [final_name for final_name in after if final_name == name or final_name.endswith(end)]
        for name, end in ends.items()
    }
    return {name: name if name in final_name else final_name[0] for name, final_name in places.items() if final_name}


class _RecordedFits(Run):
    """Records the options of its fits."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.options: list[dict[str, Any]] = []

    def fit(self, *learners: Learner, **options: Any) -> FitResult:
        self.options.append(options)
        return super().fit(*learners, **options)


class _Seen:
    """Keeps the images that a network is given with gradients, as training gives them: normalised ones."""

    def __init__(self, input_batches: list[Tensor]) -> None:
        self.inputs = input_batches

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training and torch.is_grad_enabled():  # a dry run may attack it, too
            self.inputs.append(inputs[0].clone())

    def __deepcopy__(self, memo: Any) -> _Seen:
        return _Seen([])  # an average of the student has its own


OPTIONS: Mapping[str, dict[str, Any]] = {
    "channels last and bfloat16": {"channels_last": True, "precision": "bfloat16"},
    "channels last": {"channels_last": True},
    "compiled": {"compile": "reduce-overhead"},
}
WITH_OPTIONS = [(method, option) for method in CLASSIFY for option in OPTIONS]
OPTIONS_NEEDED = [
    (method, option)
    for method, option in WITH_OPTIONS
    if option == "channels last and bfloat16" or method in representatives()
]


@pytest.mark.parametrize(("method", "option"), _cases(WITH_OPTIONS, OPTIONS_NEEDED))
def test_a_method_under_each_option_of_the_hardware(
    method: str, option: str, tiny_data: Data, on_cpu: Hardware, graphs: Any
) -> None:
    """Another layout or compiled networks train to the same weights, half precision to finite ones."""

    def train(hardware: Hardware) -> dict[str, Tensor]:
        torch.manual_seed(0)
        recipe = Recipe(epochs=2, batch_size=24, lr=0.01, momentum=0.0, nesterov=False)
        student, teacher = (
            zoo_network(own_student(method, "resnet8x0.25"), texts=reads_texts(method)),
            zoo_network(own_teacher(method, "wrn-10-1"), texts=reads_texts(method)),
        )
        run = Run(data_of(method, tiny_data), student, [teacher()], recipe=recipe, hardware=hardware, seed=2)
        final_names = find(method)(run, **brief(method))
        assert all(value.isfinite().all() for value in final_names.state_dict().values())
        return final_names.state_dict()

    with torch.random.fork_rng():
        plain, other = train(on_cpu), train(on_cpu.replace(**OPTIONS[option]))
    second_derivatives = method in ("gccs", "mltp")
    assert bool(graphs.places) == (option == "compiled" and not second_derivatives)
    if "bfloat16" not in option:
        assert plain.keys() == other.keys()
        for name, value in plain.items():
            torch.testing.assert_close(
                other[name], value, rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
            )


def test_the_cases_stay_within_their_budget() -> None:
    """Another method adds 4 to 12; whoever raises this decides that continuous integration takes longer."""
    assert len(NEEDED) + len(OPTIONS_NEEDED) <= 500


def test_the_pairs_follow_from_what_a_method_reads() -> None:
    assert use_of("hinton").pairs == FEW
    assert use_of("maxdropout").pairs == STUDENTS  # it puts layers into its student
    assert use_of("lre_amc").pairs == STUDENTS  # it takes units out of it
    assert tuple(use_of("at").pairs) == tuple(PAIRS)
    assert {"source Frozen", "view"} <= use_of("bss").seams
    assert not [name for name in CLASSIFY if any("unknown" in seam for seam in use_of(name).seams)]


def test_every_seam_has_a_representative() -> None:
    methods = representatives()
    assert set().union(*(use_of(name).seams for name in methods)) == set().union(*(use_of(n).seams for n in CLASSIFY))
    assert len(methods) < len(CLASSIFY) // 2 + 1


@pytest.mark.parametrize(("method", "samples"), [("one", 1), ("sp", 1), ("rkd", 2), ("final_bn", 1), ("gccs", 11)])
def test_a_batch_too_small_for_a_method_is_refused(
    method: str, samples: int, tiny_data: Data, tiny_model: Callable[..., Tapped], on_cpu: Hardware, refused: Any
) -> None:
    recipe = Recipe(epochs=1, batch_size=samples)
    run = Run(tiny_data, lambda: tiny_model(2), [tiny_model(1)], recipe=recipe, hardware=on_cpu)
    with refused("use a batch size of"):
        find(method)(run)
