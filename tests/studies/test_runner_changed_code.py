"""Runs whose method or network has changed are trained again."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.studies.running import BROKEN, Tiny, run
from tutelage.errors import TutelageWarning

# After a training of a second, whether the teacher is above chance level depends on the processor.
pytestmark = pytest.mark.filterwarnings("ignore:.*chance level for 4 classes:tutelage.errors.TutelageWarning")

OWN_METHOD = """
from tutelage.methods import method
from tutelage.terms import CrossEntropy
from tutelage.training.learner import Learner
from own_part import FACTOR

@method(paper="none", family="baseline")
def own(run):
    "Trained in two fits; the second reads the teacher where TAUGHT."
    student = run.student()
    run.fit(Learner(student, None, {"ce": FACTOR * CrossEntropy()}), epochs=1)
    if TAUGHT:
        run.fit(Learner(student, run.frozen(run.teacher()), {"ce": CrossEntropy()}), epochs=1)
    return student
"""


@pytest.fixture
def own_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Write a method of somebody's own, of two files, as an installed package's."""
    import importlib
    from importlib.metadata import EntryPoint

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("tutelage.methods._entry_points", lambda: {"own": EntryPoint("own", "own_method:own", "group")})

    def write(factor: float = 1.0, with_training: bool = False) -> None:
        (tmp_path / "own_method.py").write_text(OWN_METHOD.replace("TAUGHT", str(with_training)))
        (tmp_path / "own_part.py").write_text(f"FACTOR = {factor}")
        importlib.invalidate_caches()
        for name in ("own_method", "own_part"):
            sys.modules.pop(name, None)

    return write


def test_only_runs_of_a_changed_method_are_repeated(
    tiny: Tiny, tmp_path: Path, own_method: Callable[..., None]
) -> None:
    study, out = tiny(methods="hinton,own", seeds=1, train={"epochs": 1}), tmp_path / "out"
    own_method()
    first = {record["method"]: record for record in run(study, out).runs}
    assert set(first["own"]["code"]) == {"own_method.py", "own_part.py"}
    assert first["hinton"]["code"] == first["plain"]["code"] == {}
    own_method()
    second_records = {record["method"]: record for record in run(study, out).runs}
    assert second_records == first
    own_method(factor=0.5)
    with pytest.warns(TutelageWarning, match=r"^own_part.py changed .* 1 run is trained again: own$"):
        changed_records = {record["method"]: record for record in run(study, out).runs}
    assert changed_records["own"]["nll"] != first["own"]["nll"]
    assert {**changed_records, "own": None} == {**first, "own": None}


def test_runs_of_a_method_file_are_repeated_if_it_changed(
    tiny: Tiny, tmp_path: Path, own_method: Callable[..., None]
) -> None:
    study = tiny(methods=f"{tmp_path / 'own_method.py'}:own", seeds=1, train={"epochs": 1})
    own_method()
    first = {record["method"]: record for record in run(study, tmp_path / "out").runs}
    own_method(with_training=True)
    with pytest.warns(TutelageWarning, match=r"^own_method.py changed .* 1 run is trained again: own$"):
        changed_records = {record["method"]: record for record in run(study, tmp_path / "out").runs}
    assert changed_records["own"]["key"] != first["own"]["key"]
    assert changed_records["plain"] == first["plain"]


def test_changed_network_and_its_students_are_trained_again(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "changing_net.py"
    study = tiny(teachers="changing_net:Broken", seeds=1, train={"epochs": 1})
    file.write_text(BROKEN.format("pass"))
    first = {record["method"]: record for record in run(study, tmp_path / "out").runs}
    file.write_text(BROKEN.format("pass").replace("width=0.25", "width=0.5"))
    monkeypatch.delitem(sys.modules, "changing_net")
    with pytest.warns(TutelageWarning, match=r"^changing_net.py changed .* 2 runs are trained again: teacher, hinton$"):
        changed_records = {record["method"]: record for record in run(study, tmp_path / "out").runs}
    assert {name for name, record in changed_records.items() if record["key"] != first[name]["key"]} == {
        "teacher",
        "hinton",
    }
    assert changed_records["plain"]["teacher_accuracy"] == changed_records["teacher"]["accuracy"]
    monkeypatch.delitem(sys.modules, "changing_net")


def test_key_includes_teacher_that_is_read_late(tiny: Tiny, tmp_path: Path, own_method: Callable[..., None]) -> None:
    own_method(with_training=True)
    results = run(tiny(methods="own", seeds=1, teachers="resnet8x0.25,resnet8x0.5"), tmp_path / "out")
    assert len({record["key"] for record in results.runs if record["method"] == "own"}) == 2
