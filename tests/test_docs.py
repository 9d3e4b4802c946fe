"""What the documents say is so."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_results_are_those_of_the_raw_files() -> None:
    made = script("make_results")
    assert (ROOT / "docs" / "results" / "demo.md").read_text() == made.demo_page()
    assert (ROOT / "docs" / "results" / "nine-methods.md").read_text() == made.nine_page()


def test_each_experiment_has_its_page_and_enough_seeds() -> None:
    paired = script("make_results").paired
    for experiment in paired.installed():
        if not experiment.file.exists():  # nothing has been run yet
            continue
        page = (ROOT / "docs" / "results" / f"{experiment.name}.md").read_text()
        assert page == paired.page(experiment), f"run python docs/make_results.py ({experiment.name})"
        assert not paired.missing_runs(experiment) or "Not finished" in page
        for condition, title in experiment.conditions.items():
            if title or len(experiment.conditions) == 1:
                assert len(experiment.seeds_of(condition)) >= 3, (experiment.name, condition)


def test_who_costs_more_than_half_a_point_where_labels_are_right_is_said() -> None:
    made = script("make_results")
    text = (ROOT / "docs" / "methods" / "weights.md").read_text()
    _, said = text.split("As of now:")
    for data in made.DATA:
        results = made.nine(data, "0")
        below = made.below(results)
        assert {row.cell.method for row in results.table()} >= set(made.ORDER)
        (line,) = [line for line in said.splitlines() if line.startswith(f"- {data}:")]
        assert line.startswith(f"- {data}: {', '.join(f'`{name}`' for name in below) or 'none'}")
        assert f"({len(results.study['seeds'])} seeds)" in line


def test_the_tables_of_speed_are_those_of_the_raw_files() -> None:
    made = script("make_performance")
    text = made.PAGE.read_text()
    assert made.filled(text) == text, "run python docs/make_performance.py"
    shown = re.findall(r"<!-- ([\w/]+) -->\n", text)
    kept = [file.relative_to(made.RESULTS).with_suffix("").as_posix() for file in made.RESULTS.rglob("*.json")]
    assert sorted({*shown} - {"end"}) == sorted(kept)


def test_the_method_pages_are_those_of_the_docstrings() -> None:
    module = script("make_method_pages")
    for name, text in module.pages().items():
        file = ROOT / "docs" / "methods" / name
        assert file.exists()
        assert file.read_text() == text, f"run python docs/make_method_pages.py ({name})"


def test_the_teacher_of_the_example_has_its_students_labels() -> None:
    text = (ROOT / "README.md").read_text()
    train, distill = (re.search(rf"^tutelage {verb} .*$", text, re.M) for verb in ("train", "distill"))
    assert train is not None
    assert distill is not None
    for option in ("--data", "--noise", "--seed"):
        values = [re.search(rf"{option} (\S+)", line[0]) for line in (train, distill)]
        assert values[0] is not None
        assert values[1] is not None
        assert values[0][1] == values[1][1], option


@pytest.mark.parametrize(
    "file",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/dependencies.md",
        "docs/own-loop.md",
        "docs/performance.md",
        "docs/studies.md",
    ],
)
def test_links_and_named_files_exist(file: str) -> None:
    text = (ROOT / file).read_text()
    here = (ROOT / file).parent
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert not [link for link in links if not (here / link).exists()]


def test_every_dependency_is_accounted_for() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    told = (ROOT / "docs" / "dependencies.md").read_text()
    core = {re.split(r"[<>=\[]", name)[0] for name in project["dependencies"]}
    assert core == set(re.findall(r"^\| ([a-z-]+) \|", told, re.M)) - {"package", "extra", "---"}
    assert set(project["optional-dependencies"]) == set(re.findall(r"^\| `([a-z]+)` \|", told, re.M))


def test_the_readmes_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each Python block of the README, in order and in one namespace, with the epochs cut short."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    namespace: dict[str, Any] = {}
    for block in blocks:
        exec(re.sub(r"epochs=\d+", "epochs=1", block), namespace)
    expected = namespace["student"].model.eval()(namespace["pixels"])  # the last block loads it in plain PyTorch
    torch.testing.assert_close(namespace["logits"], expected)


def test_the_study_that_is_shown_is_one() -> None:
    import tomllib

    from tutelage.studies.study import Study

    text = (ROOT / "docs" / "studies.md").read_text()
    (shown,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    study = Study(**tomllib.loads(shown))
    assert list(study.methods) == ["plain", "hinton", "dml", "at, published weight"]
    assert set(Study.model_fields) - set(tomllib.loads(shown)) <= {"task", "pairs", "budget", "search"}
    for field in ("task", "pairs", "budget", "search"):
        assert field in text
