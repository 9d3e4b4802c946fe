"""Reading any JSON, or a changed valid file, gives a valid value or an error of one line."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from tutelage.cli.options import settings_from
from tutelage.config import Config, ExtraEvaluation, read_config
from tutelage.data import Data, open_data
from tutelage.errors import TutelageError
from tutelage.methods import find
from tutelage.models import Tapped
from tutelage.models.load import make_model
from tutelage.parsing import parse_json, parse_yaml, write_yaml
from tutelage.report.console import print_result
from tutelage.report.tables import table_as
from tutelage.runs import Result, RunFolder, execute, open_model
from tutelage.runs.schema import read_epochs
from tutelage.studies.difference import compare_runs, compare_studies
from tutelage.studies.results import Results
from tutelage.studies.study import Study, read_study
from tutelage.text import printable

Path_ = tuple[str | int, ...]

NUMBERS = st.one_of(
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, -(2**64), 10**400, 1e308, -1e-308, 0.5]),
    st.floats(allow_nan=True, allow_infinity=True),
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "plain", "os:getcwd", "given:x", "resnet8", "digits", "\x1b[2J", "[/]", "=1", "1e999", "../..", "self"]
    ),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)

BRIEF = settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def paths_in(value: Any, at: Path_ = ()) -> Iterator[Path_]:
    """The paths to a value and all its parts."""
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in parts:
        yield from paths_in(part, (*at, name))


@st.composite
def change_value(draw: st.DrawFn, valid: Any) -> Any:
    """A valid value of which one to three parts are replaced, removed or added to."""
    value = copy.deepcopy(valid)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from([path for path in paths_in(value) if path] or [("",)]))
        holder = value
        for name in above:
            holder = holder[name]
        if not isinstance(holder, dict | list) or not holder:
            continue
        kind = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if kind == "replace":
            holder[last] = draw(VALUES)
        elif kind == "remove":
            del holder[last]
        elif isinstance(holder, dict):
            holder[draw(TEXTS)] = draw(VALUES)
        else:
            holder.insert(0, draw(VALUES))
    return value


def any_value(valid: Any) -> st.SearchStrategy[Any]:
    return st.one_of(change_value(valid), change_value(valid), VALUES)


def as_json(value: Any) -> bytes:
    """As JSON with all that Python's writer allows: NaN, infinity, lone surrogates, integers of any size."""
    return json.dumps(value).encode()


def check_reader(read: Callable[[], object]) -> None:
    """It gives a value or refuses in one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read()
        except TutelageError as error:
            text = str(error)
            assert len(text.splitlines()) == 1
            assert len(text) <= 1200
            assert printable(text) == text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run") / "run"
    execute(RUN, folder)
    return folder


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits")


RUN = Config(data="digits", student="resnet8x0.25", epochs=2, per_class=4, batch_size=32, workers=0, device="cpu")
VALID = {"config.yaml": parse_yaml} | dict.fromkeys(("result.json", "inputs.json", "versions.json"), parse_json)
CONFIG = {
    "data": "digits",
    "epochs": 2,
    "lr": 0.1,
    "milestones": [0.3, 0.6],
    "noise": "0.4",
    "imbalance": None,
    "teacher": ["a", "b"],
    "compile": "auto",
    "settings": {"temperature": 2.0, "alpha": 0.5},
}
STUDY = {
    "name": "a study",
    "data": ["digits"],
    "noise": [None, "0.4"],
    "per_class": [None, 10],
    "teacher_labels": ["noisy"],
    "pairs": [["resnet14", "resnet8"]],
    "methods": {"hinton": {"method": "hinton", "settings": {"alpha": 0.5}}},
    "seeds": [0, 1],
    "train": {"epochs": 2, "optimizer": "AdamW"},
    "evaluate": {"corruptions": True, "pgd": [0.1]},
    "budget": 2,
    "search": {"hinton": {"alpha": [0.1, 0.9]}},
}


@BRIEF
@given(value=any_value(CONFIG))
def test_configurations(value: Any, tmp_path: Path) -> None:
    for name, content in (("a.json", as_json(value)), ("a.yaml", write_yaml(value).encode(errors="replace"))):
        (tmp_path / name).write_bytes(content)

        def read(file: Path = tmp_path / name) -> None:
            config = Config(**read_config(file))
            assert Config(**parse_yaml(config.as_yaml())) == config
            find("hinton").check(config.settings)

        check_reader(read)


WRONG: dict[str, tuple[str, Any]] = {
    "teacher_labels": ("study.json", 5),
    "budget": ("study.json", [1]),
    "pairs": ("study.json", [["a"]]),
    "per_class": ("study.json", ["x"]),
    "name": ("study.json", None),
    "methods": ("study.json", {"plain": 5}),
    "settings": ("results.jsonl", 5),
    "error": ("results.jsonl", {}),
    "command": ("results.jsonl", []),
    "curve": ("results.jsonl", {"epoch": 5}),
    "reliability": ("results.jsonl", {"count": [1], "accuracy": [], "confidence": []}),
    "per_class_accuracy": ("results.jsonl", [1]),
    "pgd": ("results.jsonl", {"far": 0.5}),
}


@pytest.mark.parametrize("field", WRONG)
def test_a_study_with_a_field_of_a_wrong_type(field: str, write_study: Callable[..., Path]) -> None:
    study = write_study(methods=("at",), seeds=(0,))
    name, value = WRONG[field]
    first, *other_lines = (study / name).read_text().splitlines()
    (study / name).write_text("\n".join([json.dumps(json.loads(first) | {field: value}), *other_lines]))
    with pytest.raises(TutelageError, match=field):
        Results.read(study)


@pytest.mark.parametrize("value", [{"test": {}}, {"test": 5}, 5, {}, {"data": []}, {"cost": {"flops": "many"}}])
def test_a_result_with_wrong_types(value: Any, folder: Path, tmp_path: Path) -> None:
    result = json.loads((folder / "result.json").read_bytes())
    changed_result = result | value if isinstance(value, dict) and value else value
    (tmp_path / "result.json").write_text(json.dumps(changed_result))
    with pytest.raises(TutelageError, match=r"result\.json"):
        RunFolder(tmp_path).result()


@BRIEF
@given(value=any_value(STUDY))
def test_studies(value: Any, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(as_json(value))

    def read() -> None:
        study = Study(**read_study(tmp_path / "a.json"))
        json.dumps(study.as_json(), allow_nan=False)

    check_reader(read)


@BRIEF
@given(text=st.one_of(TEXTS, VALUES.map(json.dumps), VALUES.map(write_yaml)))
def test_settings(text: str) -> None:
    check_reader(lambda: find("hinton").check(settings_from([f"temperature={text}"])))
    check_reader(lambda: settings_from([text]))
    check_reader(lambda: ExtraEvaluation(pgd=text, samples=text))  # type: ignore[arg-type]


@BRIEF
@given(data=st.data())
def test_results_of_runs(data: st.DataObject, folder: Path, tmp_path: Path) -> None:
    copy_of_run = tmp_path / "run"
    copy_of_run.mkdir(exist_ok=True)
    for name in ("config.yaml", "inputs.json", "versions.json", "result.json", "metrics.jsonl"):
        (copy_of_run / name).write_bytes((folder / name).read_bytes())
    name = data.draw(st.sampled_from(["result.json", "result.json", "inputs.json", "versions.json", "config.yaml"]))
    value = data.draw(any_value(VALID[name]((folder / name).read_bytes())))
    content = write_yaml(value).encode(errors="replace") if name == "config.yaml" else as_json(value)
    (copy_of_run / name).write_bytes(content)

    def read() -> None:
        result = RunFolder(copy_of_run).result()
        if result is not None:
            json.dumps(result, allow_nan=False)
            print_result(Result(Tapped(nn.Identity()), result, (), RUN, copy_of_run))

    check_reader(read)
    check_reader(lambda: RunFolder(copy_of_run).finished(RUN, json.loads((folder / "inputs.json").read_bytes())))
    check_reader(lambda: compare_runs(folder, copy_of_run))
    check_reader(lambda: compare_runs(copy_of_run, folder))


@BRIEF
@given(data=st.data())
def test_epochs(data: st.DataObject, folder: Path, tmp_path: Path) -> None:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_bytes().splitlines()]
    value = data.draw(any_value(lines))
    content = b"\n".join(map(as_json, value)) if isinstance(value, list) else as_json(value)
    (tmp_path / "metrics.jsonl").write_bytes(content)
    check_reader(lambda: read_epochs(tmp_path / "metrics.jsonl"))
    check_reader(lambda: RunFolder(tmp_path).history())


@BRIEF
@given(data=st.data())
def test_records_of_studies(data: st.DataObject, write_study: Callable[..., Path], tmp_path: Path) -> None:
    reference = tmp_path / "whole"
    if not reference.exists():
        write_study("whole", methods=("at",), seeds=(0, 1))
    study = tmp_path / "study"
    study.mkdir(exist_ok=True)
    for name in ("study.json", "results.jsonl"):
        (study / name).write_bytes((reference / name).read_bytes())
    if data.draw(st.booleans()):
        value = data.draw(any_value(json.loads((reference / "study.json").read_bytes())))
        (study / "study.json").write_bytes(as_json(value))
    else:
        lines = [json.loads(line) for line in (reference / "results.jsonl").read_bytes().splitlines()]
        number = data.draw(st.integers(0, len(lines) - 1))
        lines[number] = data.draw(any_value(lines[number]))
        (study / "results.jsonl").write_bytes(b"\n".join(map(as_json, lines)))

    def read() -> None:
        results = Results.read(study)
        for format_ in ("md", "csv", "json"):
            table_as(results, format_)

    check_reader(read)
    check_reader(lambda: compare_studies(reference, study))


@BRIEF
@given(data=st.data())
def test_headers_of_weights(data: st.DataObject, digits: Data, tmp_path: Path) -> None:
    network = make_model("resnet8x0.25", num_classes=10, input_shape=(1, 8, 8)).module
    about = {
        "model": "resnet8x0.25",
        "classes": list(digits.classes),
        "image_shape": [1, 8, 8],
        "mean": [0.3],
        "std": [0.2],
        "surgery": [{"operation": "branch", "at": "layer2", "branches": 2}, {"operation": "abstain"}],
    }
    value = data.draw(any_value(about))
    save_file(network.state_dict(), tmp_path / "student.safetensors", metadata={"tutelage": json.dumps(value)})
    check_reader(lambda: open_model(str(tmp_path), digits))
    check_reader(lambda: open_model(f"resnet8x0.25@{tmp_path / 'student.safetensors'}", digits))
