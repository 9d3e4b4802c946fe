"""Declarations of studies and their plans, and errors for invalid ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tutelage.config import Config
from tutelage.studies.inspection import inspect
from tutelage.studies.plan import Planner
from tutelage.studies.study import Study, Variant, read_study

Refused = Callable[..., AbstractContextManager[None]]


def test_values_may_be_one_several_or_comma_separated() -> None:
    study = Study(data="digits", noise="0, 0.2,pair:0.4", seeds=2, methods="hinton,dml")
    list_study = Study(data=["digits"], noise=[0, 0.2, "pair:0.4"], seeds=[0, 1], methods=["hinton", {"method": "dml"}])
    assert study == list_study
    assert study.noise == (None, "0.2", "pair:0.4")
    assert study.seeds == (0, 1)
    assert list(study.methods) == ["plain", "hinton", "dml"]


def test_rows_are_named_by_settings_or_explicitly() -> None:
    study = Study(
        methods=[
            "at",
            {"method": "at", "settings": {"beta": 1000}},
            {"method": "at", "row": "strong", "settings": {"beta": 9}},
        ]
    )
    assert list(study.methods) == ["plain", "at", "at, beta=1000", "strong"]
    assert study.methods["strong"] == Variant(method="at", settings={"beta": 9})
    by_name = Study(methods={"at": {}, "strong": {"method": "at", "settings": {"beta": 9}}})
    assert by_name.methods["strong"] == study.methods["strong"]
    assert by_name.methods["at"] == Variant(method="at")


def test_pairs_are_the_product_or_explicit() -> None:
    assert Study(teachers="a,b", students="c,d").all_pairs == (("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"))
    assert Study(pairs=[["a", "c"], ["b", "d"]]).all_pairs == (("a", "c"), ("b", "d"))


MISTAKES = {
    "an unknown field": ({"sedes": 3}, ["the study", "sedes", "seeds"]),
    "no seed": ({"seeds": 0}, ["seeds", "1 to 10,000 seeds"]),
    "too many seeds": ({"seeds": 2**40}, ["seeds", "1 to 10,000 seeds"]),
    "too many trials": ({"budget": 2**40, "train": {"validation": 0.1}}, ["budget", "10000"]),
    "pairs of nothing": ({"pairs": None}, ["pairs", "a list of [teacher, student]"]),
    "pairs of a number": ({"pairs": 5}, ["pairs", "a list of [teacher, student]"]),
    "no seed in a list": ({"seeds": []}, ["seeds"]),
    "a seed twice": ({"seeds": [1, 1]}, ["seeds", "twice"]),
    "a negative seed": ({"seeds": [-1, 2]}, ["seeds", "-1"]),
    "a seed that is no number": ({"seeds": ["first"]}, ["seeds", "first"]),
    "no data": ({"data": []}, ["data"]),
    "a noise twice": ({"noise": [0.2, "0.2"]}, ["noise", "0.2", "twice"]),
    "nothing twice": ({"noise": [0, None]}, ["noise", "twice"]),
    "labels of no kind": ({"teacher_labels": "dirty"}, ["teacher_labels", "dirty"]),
    "too few samples": ({"per_class": [0.5]}, ["per_class"]),
    "no sample": ({"per_class": 0}, ["per_class", "0"]),
    "a network twice": ({"students": "resnet8,resnet8"}, ["students", "resnet8", "twice"]),
    "pairs of no form": ({"pairs": "resnet14,resnet8"}, ["pairs", "[teacher, student]"]),
    "a method in train": ({"train": {"method": "at"}}, ["method", "methods", "outside of train"]),
    "a pair of three": ({"pairs": [["a", "b", "c"]]}, ["pairs"]),
    "a row of the teacher's name": ({"methods": {"teacher": {"method": "hinton"}}}, ["the row of the teacher"]),
    "another plain": ({"methods": {"plain": {"method": "hinton"}}}, ["plain student"]),
    "a row twice": ({"methods": ["at", "at"]}, ["two rows", "at"]),
    "a method of no form": ({"methods": [3]}, ["methods"]),
    "a method's table with more in it": ({"methods": [{"method": "at", "beta": 3}]}, ["beta", "settings"]),
    "settings that are none": ({"methods": [{"method": "at", "settings": 3}]}, ["settings"]),
    "a field of its own in train": ({"train": {"seed": 3}}, ["seed", "seeds", "outside of train"]),
    "an unknown field in train": ({"train": {"epoch": 3}}, ["epoch", "epochs"]),
    "a wrong value in train": ({"train": {"epochs": 0}}, ["epochs", "0"]),
    "an object in train": ({"train": {"optimizer": dict}}, ["train", "plain values"]),
    "train that is no table": ({"train": 3}, ["train"]),
    "an unknown thing to measure": ({"evaluate": {"pdg": [0.1]}}, ["the evaluation", "pdg", "pgd"]),
    "a radius that is none": ({"evaluate": {"pgd": [7]}}, ["pgd", "7"]),
    "a budget without a judge": ({"budget": 3, "train": {"validation": 0}}, ["validation", "0.1"]),
    "a search without a budget": ({"search": {"hinton": {"alpha": [0.1, 0.9]}}}, ["budget"]),
    "a search for no row": ({"budget": 2, "search": {"hintom": {"alpha": [0.1, 0.9]}}}, ["hintom", "hinton"]),
    "no name": ({"name": ""}, ["name"]),
}


@pytest.mark.parametrize(("fields", "pieces"), MISTAKES.values(), ids=MISTAKES)
def test_invalid_study_is_refused_in_one_line(fields: dict[str, object], pieces: list[str], refused: Refused) -> None:
    with refused(*pieces):
        Study(**fields)


UNUSABLE = {
    "no such data": ({"data": "digitz"}, ["digitz"]),
    "no such network": ({"students": "resnet9"}, ["9"]),
    "no such teacher": ({"teachers": "resnot8"}, ["resnot8"]),
    "no such method": ({"methods": "hintom"}, ["hintom", "hinton"]),
    "no such parameter": ({"methods": [{"method": "hinton", "settings": {"temprature": 3}}]}, ["temprature"]),
    "a parameter out of bounds": ({"methods": [{"method": "hinton", "settings": {"alpha": 3}}]}, ["alpha", "3"]),
    "a method for generators": ({"methods": "akdg"}, ["a study has one task", "akdg for generation"]),
    "no such noise": ({"noise": "piar:0.2"}, ["piar", "pair"]),
    "a noise of more than all": ({"noise": 1.2}, ["1.2"]),
    "no such imbalance": ({"imbalance": "powerlow:0.2"}, ["powerlow"]),
    "no such weights": ({"teachers": "resnet8@gone.safetensors"}, ["gone.safetensors"]),
    "no such foreign data": ({"evaluate": {"ood": "digitz"}}, ["digitz"]),
    "more samples than there are": ({"per_class": 100_000}, ["100000"]),
}


@pytest.mark.parametrize(("fields", "pieces"), UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_data_networks_and_methods_are_refused_before_training(
    fields: dict[str, object], pieces: list[str], refused: Refused
) -> None:
    with refused(*pieces):
        inspect(Study(**fields))


def test_study_is_read_from_file_program_or_name(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "mine.toml").write_text('noise = [0, 0.4]\nmethods = ["hinton"]\n[train]\nepochs = 2\n')
    (tmp_path / "mine.py").write_text(
        "import tutelage\nstudy = tutelage.Study(noise=[0, 0.4], methods='hinton', train={'epochs': 2})\n"
    )
    own_study = Study(**read_study(tmp_path / "mine.toml"))
    assert own_study == Study(**read_study(tmp_path / "mine.py"))
    assert own_study.replace(seeds=2).methods == own_study.methods
    default_study = Study(**read_study("nine"))
    assert len(default_study.methods) == 10
    assert default_study.all_pairs == (("resnet14x0.5", "resnet8x0.5"),)
    inspect(default_study)
    with refused("nin", "nine"):
        read_study("nin")
    with refused("gone.toml"):
        read_study(tmp_path / "gone.toml")
    (tmp_path / "broken.toml").write_text("noise = [0, ")
    with refused("broken.toml"):
        read_study(tmp_path / "broken.toml")
    (tmp_path / "broken.py").write_text("1 / 0")
    with refused("broken.py", "division by zero"):
        read_study(tmp_path / "broken.py")
    (tmp_path / "empty.py").write_text("studie = 3")
    with refused("empty.py", "study ="):
        read_study(tmp_path / "empty.py")


def test_study_json_round_trip() -> None:
    study = Study(**read_study("nine"))
    assert Study(**json.loads(json.dumps(study.as_json()))).as_json() == study.as_json()


# --- the plan


def planned(study: Study, out: str = "here") -> dict[tuple[object, ...], str]:
    lines = Planner(study, Path(out), dict.fromkeys(study.data, "0")).planned_runs({})
    return {(line.case, line.row, line.seed): line.job.key for line in lines}


def test_plan_has_every_row_of_every_case_and_seed_once() -> None:
    study = Study(
        noise=[0, 0.4], imbalance=["none", "step:0.5:0.5"], teachers="resnet14,resnet20", methods="hinton,dml"
    )
    keys = planned(study)
    assert len(keys) == 2 * 2 * 2 * (1 + 3) * 3
    assert len(set(keys.values())) == len(keys)


def test_equal_runs_of_different_studies_share_a_key() -> None:
    small = planned(Study(noise=0.4, methods="hinton", seeds=1))
    large = planned(Study(name="another", noise=[0, 0.4], methods="dml,hinton", seeds=3), out="elsewhere")
    assert set(small.items()) <= set(large.items())


def test_key_depends_on_every_condition() -> None:
    base = {"noise": 0.4, "methods": "hinton", "seeds": [0]}
    (key,) = {key for (_, row, _), key in planned(Study(**base)).items() if row == "hinton"}
    for change in (
        {"train": {"epochs": 19}},
        {"train": {"lr": 0.1}},
        {"methods": [{"method": "hinton", "row": "hinton", "settings": {"alpha": 0.5}}]},
        {"teachers": "resnet20"},  # which is trained otherwise
        {"students": "resnet14"},
        {"noise": "pair:0.4"},
        {"seeds": [1]},
        {"teacher_labels": "clean"},
    ):
        (other,) = {key for (_, row, _), key in planned(Study(**{**base, **change})).items() if row == "hinton"}
        assert other != key, change
    explicit_defaults = {"methods": [{"method": "hinton", "row": "hinton", "settings": {"temperature": 4.0}}]}
    (equal_key,) = {
        key for (_, row, _), key in planned(Study(**{**base, **explicit_defaults})).items() if row == "hinton"
    }
    assert equal_key == key


def test_teacher_is_trained_once_for_all_students() -> None:
    study = Study(noise=0.4, methods="hinton,dml", students="resnet8,resnet14", teachers="resnet20", seeds=1)
    lines = Planner(study, Path("here"), {"digits": "0"}).planned_runs({})
    assert len({line.job.key for line in lines if line.row == "teacher"}) == 1
    assert {line.job.needs.key for line in lines if line.job.needs} == {
        line.job.key for line in lines if line.row == "teacher"
    }


def test_teacher_of_correct_labels_has_no_noise() -> None:
    study = Study(noise=0.4, teacher_labels="noisy,clean", methods="hinton", seeds=1)
    lines = Planner(study, Path("here"), {"digits": "0"}).planned_runs({})
    noises = {(line.case.teacher_labels, line.row == "teacher"): line.job.config.noise for line in lines}
    assert noises == {("noisy", True): "0.4", ("noisy", False): "0.4", ("clean", True): None, ("clean", False): "0.4"}


def test_trained_teacher_is_not_trained_again() -> None:
    study = Study(teachers="resnet8@weights.safetensors", methods="hinton", seeds=1)
    lines = Planner(study, Path("here"), {"digits": "0"}).planned_runs({})
    assert {line.row for line in lines} == {"plain", "hinton"}
    assert {line.job.config.teacher for line in lines} == {("resnet8@weights.safetensors",)}
    assert all(line.job.needs is None for line in lines)


def test_train_fields_apply_to_all_runs() -> None:
    study = Study(train={"epochs": 3, "batch_size": 32}, noise=0.4, seeds=1)
    for line in Planner(study, Path("here"), {"digits": "0"}).planned_runs({}):
        assert isinstance(line.job.config, Config)
        assert (line.job.config.epochs, line.job.config.batch_size, line.job.config.noise) == (3, 32, "0.4")
