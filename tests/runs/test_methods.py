"""Finding methods, checking their settings, and adding one from another package."""

from __future__ import annotations

import importlib
import inspect
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
from tests.runs.own_files import OWN_FILE, Net
from tutelage import methods
from tutelage.data import Data
from tutelage.methods import Method, NonNegative, Positive, Share, find, installed, method
from tutelage.models.tapped import Tapped
from tutelage.runs.code import digest_of_method
from tutelage.training import Run

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
