"""Methods and networks of the user's own files, and runs whose code has changed."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tutelage
from tests.runs.own_files import OWN_FILE, Net
from tutelage.data import Data
from tutelage.methods import find, method
from tutelage.models.tapped import Tapped
from tutelage.runs.code import digest_of_method
from tutelage.training import Run

BRIEF: dict[str, Any] = {"epochs": 1, "batch_size": 16, "device": "cpu"}


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a method, beside a module that it imports, in the current folder."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "own_methods.py").write_text(OWN_FILE)
    (folder / "own_helper.py").write_text("WEIGHT = 1.0\n")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))  # and forgets what was imported from there
    for name in ("own_methods", "own_helper"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder / "own_methods.py"


def test_a_method_is_named_by_its_file_its_module_or_itself(
    own_file: Path, tiny_data: Data, tiny_model: Net, tmp_path: Path
) -> None:
    method = importlib.import_module("own_methods").simple
    names = {
        "own_methods.py:simple": "own_methods.py:simple",
        str(own_file): f"{own_file}:simple",
        "own_methods:simple": "own_methods:simple",
        "object": method,
        "object of a file": find(f"{own_file}:simple"),
    }
    specs = {}
    for form, name in names.items():
        output = tmp_path / form.replace("/", "-")
        result = tutelage.train(
            tiny_model().module, tiny_data, method=name, settings={"weight": 2}, out=output, **BRIEF
        )
        specs[form] = result.config.method
        assert f"method: {specs[form]}" in (output / "config.yaml").read_text()
        assert find(specs[form]).name == "simple"  # the folder names it again
        assert result.config.settings == {"weight": 2.0}
    assert specs["object"] == "own_methods:simple"
    assert specs["object of a file"] == f"{own_file}:simple"
    assert tutelage.Config(method=method).method == "own_methods:simple"


def test_invalid_names_and_objects_are_refused(refused: Callable[..., Any], own_file: Path) -> None:
    with refused("no attribute 'simpel'", "did you mean 'simple'", "@method"):
        find("own_methods.py:simpel")
    with refused("'own_methods.py:other' is a int", "@method"):
        find("own_methods.py:other")
    with refused("no module 'nowhere.py'", "no such file"):
        find("nowhere.py:simple")
    with refused("no module 'nowhere'", "method 'nowhere:simple'"):
        find("nowhere:simple")
    with refused("not of the form module:attr"):
        find("own_methods.py:")
    own_file.write_text("1 / 0")
    with refused("importing 'own_methods.py'", "ZeroDivisionError"):
        find("own_methods.py:simple")
    for invalid in (lambda run: run, print, 5, None):
        with refused("method"):
            tutelage.Config(method=invalid)
    with refused("'given:__main__.simple' was an object", "FILE.py:simple"):
        find("given:__main__.simple")


def test_a_file_is_run_again_when_it_has_changed(own_file: Path) -> None:
    first = find("own_methods.py:simple")
    assert find("own_methods.py:simple") is first
    own_file.write_text(OWN_FILE.replace("weight: Positive = WEIGHT", "weight: Positive = 3"))
    assert find("own_methods.py:simple").check({}) == {"weight": 3}


def test_a_run_with_changed_method_code_is_another_run(
    own_file: Path, tiny_data: Data, tiny_model: Net, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    def train() -> Any:
        return tutelage.train(
            tiny_model().module, tiny_data, method="own_methods.py:simple", out=tmp_path / "run", **BRIEF
        )

    assert train().metrics == train().metrics
    own_file.write_text(OWN_FILE.replace("weight * CrossEntropy()", "0.5 * CrossEntropy()"))
    with refused("different run", "method source"):
        train()
    assert digest_of_method(find("hinton")) is None


def test_a_run_with_a_changed_imported_module_is_another_run(
    own_file: Path, tiny_data: Data, tiny_model: Net, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    def train() -> Any:
        return tutelage.train(
            tiny_model().module, tiny_data, method="own_methods.py:simple", out=tmp_path / "run", **BRIEF
        )

    first = digest_of_method(find("own_methods.py:simple"))
    assert train().metrics == train().metrics
    (own_file.parent / "unrelated.py").write_text("WEIGHT = 3.0\n")
    assert train().metrics
    (own_file.parent / "own_helper.py").write_text("WEIGHT = 2.0\n")
    with refused("different run", "method source"):
        train()
    assert digest_of_method(find("own_methods.py:simple")) != first


def test_a_file_that_imports_nothing_of_its_own_keeps_its_hash(own_file: Path) -> None:
    own_file.write_text(OWN_FILE.replace("from own_helper import WEIGHT", "WEIGHT = 1.0"))
    expected = hashlib.sha256(own_file.read_bytes()).hexdigest()[:16]  # as older versions recorded it
    assert digest_of_method(find("own_methods.py:simple")) == expected


def test_the_other_files_of_a_package_count(own_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = own_file.parent / "own_package"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "main.py").write_text(OWN_FILE.replace("from own_helper import WEIGHT", "from .parts import WEIGHT"))
    (folder / "parts.py").write_text("from own_package import more\nWEIGHT = 1.0\n")
    (folder / "more.py").write_text("A = 1\n")
    for name in ("own_package", "own_package.main", "own_package.parts", "own_package.more"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    digests = [digest_of_method(find("own_package.main:simple"))]
    for name in ("more.py", "parts.py", "__init__.py"):
        (folder / name).write_text((folder / name).read_text() + "B = 2\n")
        digests.append(digest_of_method(find("own_package.main:simple")))
    assert len(set(digests)) == 4


NETWORK = """
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes, in_channels):
        super().__init__(nn.Flatten(), nn.Linear(64 * in_channels, num_classes))
"""


@pytest.mark.parametrize("spec", ["net_of_mine.py:Net", "net_of_mine:Net"])
def test_a_run_with_changed_network_code_is_another_run(
    spec: str, tiny_npz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "net_of_mine", raising=False)
    (tmp_path / "net_of_mine.py").write_text(NETWORK)

    def train() -> Any:
        return tutelage.train(spec, tiny_npz, out="run", **BRIEF)

    assert train().metrics == train().metrics
    (tmp_path / "net_of_mine.py").write_text(NETWORK.replace("nn.Flatten()", "nn.Flatten(), nn.ReLU()"))
    with refused("different run", "network source"):
        train()
    inputs = json.loads((tmp_path / "run" / "inputs.json").read_text())
    del inputs["network source"]  # a run of an older version
    (tmp_path / "run" / "inputs.json").write_text(json.dumps(inputs))
    if spec == "net_of_mine.py:Net":  # a module is imported once, so its old code still runs here
        with refused("student.safetensors", "remove"):  # the code has other keys now
            train()
        (tmp_path / "net_of_mine.py").write_text(NETWORK)
    assert train().metrics


def test_a_method_of_a_notebook_runs_and_is_recorded_as_an_object(
    tiny_data: Data, tiny_model: Net, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    @method(paper="none", family="own")
    def local(run: Run) -> Tapped:
        """Made in a function, as in a notebook it is in no module."""
        return find("plain").function(run)

    for _ in range(2):  # and is read back
        result = tutelage.train(tiny_model().module, tiny_data, method=local, out=tmp_path / "run", **BRIEF)
        assert result.config.method.startswith("given:")
        assert result.config.method.endswith("local")
    from tutelage.config import Config, read_config
    from tutelage.runs import execute

    with refused("was an object of a Python program", "method=local", "FILE.py:local"):
        execute(Config(**read_config(tmp_path / "run" / "config.yaml")))
    with refused("processes of a study import", "FILE.py:local"):
        tutelage.Study(methods=[local])


def test_a_study_takes_methods_as_objects_and_by_file(own_file: Path) -> None:
    from tutelage.studies.inspection import inspect as inspect_study

    method = importlib.import_module("own_methods").simple
    rows = [
        method,
        {"method": "own_methods.py:simple", "settings": {"weight": 2}},
        {"method": method, "row": "again"},
    ]
    study = tutelage.Study(methods=rows, seeds=1)
    assert {row: entry.method for row, entry in study.methods.items()} == {
        "plain": "plain",
        "simple": "own_methods:simple",
        "simple, weight=2": "own_methods.py:simple",
        "again": "own_methods:simple",
    }
    inspect_study(study)
    for invalid in (5, {"method": 5}, [None]):
        with pytest.raises(tutelage.TutelageError):
            tutelage.Study(methods=invalid)


def test_the_command_line_takes_a_method_of_a_file(
    own_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from tutelage.cli import main

    words = ["train", "--method", "own_methods.py:simple", "--model", "resnet8x0.25", "--per-class", "5"]
    monkeypatch.setattr("sys.argv", ["tutelage", *words, "--set", "weight=2", "--epochs", "1", "--device", "cpu"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert (own_file.parent / "runs" / "simple-seed0" / "result.json").is_file()
    monkeypatch.setattr("sys.argv", ["tutelage", "train", "--config", "runs/simple-seed0/config.yaml"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2  # a file does not run code
    assert "pass --trust" in capsys.readouterr().err


def test_a_configuration_of_a_student_object_cannot_be_run_by_name(
    tiny_data: Data, tiny_model: Net, tmp_path: Path, refused: Callable[..., Any]
) -> None:
    from tutelage.config import Config, read_config
    from tutelage.runs import execute

    tutelage.train(tiny_model().module, tiny_data, out=tmp_path / "run", **BRIEF)
    with refused("the student 'given:", "was an object in a Python program", "FILE.py:NAME"):
        execute(Config(**read_config(tmp_path / "run" / "config.yaml")))
