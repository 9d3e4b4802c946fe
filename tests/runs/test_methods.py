"""Finding methods, checking their settings, and adding one from outside."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from pydantic.fields import FieldInfo

import tutelage
from tutelage import methods
from tutelage.data import Data
from tutelage.methods import Method, NonNegative, Positive, Share, find, installed, method
from tutelage.models.tapped import Tapped
from tutelage.runs.code import digest_of_method
from tutelage.training import Run

Net = Callable[..., Tapped]
OWN = sorted(module.name for module in pkgutil.iter_modules(methods.__path__) if not module.name.startswith("_"))


def test_every_file_of_the_folder_is_a_method() -> None:
    assert installed() == OWN
    assert {"plain", "hinton", "fitnet", "at", "dml"} <= set(OWN)


@pytest.mark.parametrize("name", OWN)
def test_the_attributes_of_a_method(name: str) -> None:
    method = find(name)
    assert isinstance(method, Method)
    assert method.name == name
    assert method.paper
    assert method.family
    assert len(method.summary) > 20
    assert method.summary[-1] in ".:"
    first, *parameters = inspect.signature(method.function).parameters.values()
    assert first.name == "run"
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in parameters)
    assert list(method.check({})) == [p.name for p in parameters]
    plain = {p.name: p.default for p in parameters if not isinstance(p.default, FieldInfo)}  # others depend on these
    assert method.check({}).items() >= plain.items()
    assert list(method.parameters) == [p.name for p in parameters]


def test_an_unknown_method_is_answered_with_the_nearest(refused: Callable[..., Any]) -> None:
    with refused("unknown method 'hintn'", "did you mean 'hinton'?", *OWN):
        find("hintn")


@pytest.mark.parametrize("name", ["__init__", "", "../config", "hinton.py", "Hinton"])
def test_names_that_are_not_methods_are_not_imported(name: str, refused: Callable[..., Any]) -> None:
    with refused("unknown method", repr(name)):
        find(name)


@method(paper="none", family="test")
def example(
    run: Run,
    *,
    temperature: Positive = 4.0,
    share: Share = 0.5,
    weight: NonNegative = 0.0,
    peers: Annotated[int, Field(ge=2)] = 2,
    kind: Literal["one", "two"] = "one",
    on: bool = False,
    layers: tuple[str, ...] = ("a",),
    limit: float | None = None,
) -> Tapped:
    """An example."""
    return run.student()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"temperature": 2}, {"temperature": 2.0}),
        ({"temperature": "2.5"}, {"temperature": 2.5}),
        ({"share": 1}, {"share": 1.0}),
        ({"weight": 0}, {"weight": 0.0}),
        ({"kind": "two", "on": True}, {"kind": "two", "on": True}),
        ({"layers": ["b", "c"]}, {"layers": ("b", "c")}),
        ({"limit": 3}, {"limit": 3.0}),
        ({"limit": None}, {}),
        ({"peers": 3.0}, {"peers": 3}),
    ],
)
def test_settings_become_their_types_and_keep_the_other_defaults(
    settings: dict[str, Any], expected: dict[str, Any]
) -> None:
    defaults = {
        "temperature": 4.0,
        "share": 0.5,
        "weight": 0.0,
        "peers": 2,
        "kind": "one",
        "on": False,
        "layers": ("a",),
        "limit": None,
    }
    assert example.check(settings) == defaults | expected


@pytest.mark.parametrize(
    ("settings", "pieces"),
    [
        ({"temprature": 2}, ("'temprature'", "did you mean 'temperature", "share (number in [0, 1]; default 0.5)")),
        ({"temperature": "hot"}, ("example", "temperature", "valid number", "'hot'")),
        ({"temperature": 0}, ("temperature", "greater than 0", "got 0")),
        ({"temperature": float("nan")}, ("temperature", "nan")),
        ({"temperature": float("inf")}, ("temperature", "finite", "inf")),
        ({"temperature": None}, ("temperature", "valid number", "None")),
        ({"share": 1.5}, ("share", "less than or equal to 1", "1.5")),
        ({"share": -0.1}, ("share", "greater than or equal to 0", "-0.1")),
        ({"weight": -1}, ("weight", "greater than or equal to 0", "-1")),
        ({"peers": 1}, ("peers", "greater than or equal to 2", "got 1")),
        ({"peers": 2.5}, ("peers", "integer", "2.5")),
        ({"kind": "three"}, ("kind", "'one' or 'two'", "'three'")),
        ({"on": "perhaps"}, ("on", "boolean", "'perhaps'")),
        ({"layers": "a"}, ("layers", "tuple", "'a'")),
        ({"run": 1}, ("'run'",)),
    ],
)
def test_invalid_settings(settings: dict[str, Any], pieces: tuple[str, ...], refused: Callable[..., Any]) -> None:
    with refused(*pieces):
        example.check(settings)


def test_settings_are_checked_before_anything_else(
    tiny_data: Data, tiny_model: Net, refused: Callable[..., Any], tmp_path: Path
) -> None:
    with refused("'temprature'"):
        tutelage.distill(
            tiny_model(), tiny_model(), tiny_data, settings={"temprature": 2}, out=tmp_path / "run", epochs=1
        )
    assert not (tmp_path / "run").exists()


# --- a method of another package: one file and one entry point

SMOOTHED = dedent(
    '''
    """A method that nobody here has written."""

    from __future__ import annotations

    import torch.nn.functional as F

    from tutelage.methods import Share, method
    from tutelage.sources import EMA
    from tutelage.terms import Term
    from tutelage.training import Learner, Run


    class Smoothed(Term):
        """Cross-entropy with labels that are smoothed towards the teacher's answers."""

        def __init__(self, share: float) -> None:
            super().__init__()
            self.share = share

        def forward(self, student, teacher, batch):
            hard = F.one_hot(batch.targets, student["logits"].shape[1])
            target = (1 - self.share) * hard + self.share * teacher["logits"].softmax(-1)
            return -(target * student.log_probs()).sum(-1)


    @method(paper="nobody, nowhere", family="own")
    def smoothed(run: Run, *, share: Share = 0.2, decay: Share = 0.9):
        """Own average: labels are smoothed towards the student's own average over time."""
        student = run.student()
        run.fit(Learner(student, EMA(student, decay), {"smoothed": Smoothed(share)}))
        return student
    '''
)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """``package(source, entry_points)``: installed as pip would leave it, without pip."""

    def install(source: str, points: str) -> None:
        site = tmp_path / "site"
        info = site / "acme_methods-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "acme_methods.py").write_text(source)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-methods\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[tutelage.methods]\n{points}\n")
        monkeypatch.syspath_prepend(str(site))
        monkeypatch.delitem(sys.modules, "acme_methods", raising=False)
        importlib.invalidate_caches()

    return install


def test_a_method_of_another_package_works_like_a_built_in_one(
    package: Any, tiny_data: Data, tiny_model: Net, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(SMOOTHED, "smoothed = acme_methods:smoothed")
    assert installed() == sorted([*OWN, "smoothed"])
    method = find("smoothed")
    assert (method.name, method.family) == ("smoothed", "own")
    common: dict[str, Any] = {"method": "smoothed", "epochs": 4, "batch_size": 16, "lr": 0.1}
    result = tutelage.train(tiny_model(), tiny_data, settings={"share": 0.5}, out=tmp_path / "run", **common)
    assert result.config.settings == {"share": 0.5, "decay": 0.9}
    values = [record["learners"]["student"]["smoothed"] for record in result.history]
    assert values[-1] < values[0]
    assert result.metrics["test"]["samples"] == 16
    from tutelage.cli import main

    monkeypatch.setattr("sys.argv", ["tutelage", "methods", "smoothed"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert "Own average" in capsys.readouterr().out


def test_built_in_methods_are_not_replaced(package: Any) -> None:
    package("hinton = 'an impostor'", "hinton = acme_methods:hinton")
    assert installed() == OWN
    assert find("hinton").paper.startswith("Hinton")


@pytest.mark.parametrize(
    ("source", "point", "pieces"),
    [
        ("x = 1", "acme_methods:odd", ("'odd' of acme_methods:odd cannot be loaded", "odd")),
        ("import no_such_library", "acme_methods:odd", ("cannot be loaded", "no_such_library")),
        ("import", "acme_methods:odd", ("cannot be loaded", "invalid syntax")),
        ("raise RuntimeError('no licence')", "acme_methods:odd", ("cannot be loaded", "no licence")),
        ("1 / 0", "acme_methods:odd", ("cannot be loaded", "division by zero")),
        ("odd = 5", "acme_methods:odd", ("'odd' is a int", "decorate its function with @method")),
        ("def odd(run): ...", "acme_methods:odd", ("'odd' is a function", "@method")),
    ],
)
def test_a_broken_package_is_reported_in_one_line(
    source: str, point: str, pieces: tuple[str, ...], package: Any, refused: Callable[..., Any]
) -> None:
    package(source, f"odd = {point}")
    assert installed() == sorted([*OWN, "odd"])  # naming it imports nothing
    with refused(*pieces):
        find("odd")
    assert find("plain").name == "plain"


# --- methods of the user's own files


OWN_FILE = dedent(
    """
    from __future__ import annotations

    from dataclasses import dataclass

    from own_helper import WEIGHT
    from tutelage import CrossEntropy, Learner, Run, Tapped, method
    from tutelage.methods import Positive


    @dataclass
    class Note:
        text: str


    @method(paper="none", family="own")
    def simple(run: Run, *, weight: Positive = WEIGHT) -> Tapped:
        '''Label loss alone.'''
        student = run.student()
        run.fit(Learner(student, None, {"ce": weight * CrossEntropy()}))
        return student


    other = 5
    """
)
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


def test_a_folder_beside_the_methods_is_one_and_private_modules_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Callable[..., Any]
) -> None:
    source = OWN_FILE.replace("from own_helper import WEIGHT", "from tutelage.methods.simple._parts import WEIGHT")
    (tmp_path / "simple").mkdir()
    (tmp_path / "simple" / "__init__.py").write_text(source)
    (tmp_path / "simple" / "_parts.py").write_text("WEIGHT = 1.0\n")
    (tmp_path / "_common.py").write_text("raise AssertionError('imported')\n")
    (tmp_path / "hinton-copy.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    assert installed() == sorted([*OWN, "simple"])
    method = find("simple")
    assert (method.name, method.spec, digest_of_method(method)) == ("simple", "simple", None)
    for name in ("_common", "hinton-copy"):
        with refused(f"unknown method '{name}'"):
            find(name)
    for name in ("tutelage.methods.simple", "tutelage.methods.simple._parts"):
        monkeypatch.delitem(sys.modules, name)


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
