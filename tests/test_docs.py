"""The documentation agrees with the code, the raw results and pyproject.toml."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md"),
    *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md")),
]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_result_pages_match_raw_files() -> None:
    result_pages = script("make_results")
    assert (ROOT / "docs" / "results" / "demo.md").read_text() == result_pages.demo_page()
    assert (ROOT / "docs" / "results" / "nine-methods.md").read_text() == result_pages.nine_page()


def test_each_experiment_has_its_page_and_enough_seeds() -> None:
    paired_page = script("make_results").paired
    for experiment in paired_page.installed():
        if not experiment.file.exists():  # nothing has been run yet
            continue
        page = (ROOT / "docs" / "results" / f"{experiment.name}.md").read_text()
        assert page == paired_page.page(experiment), f"run python docs/make_results.py ({experiment.name})"
        assert not paired_page.missing_runs(experiment, experiment.file) or "Not finished" in page
        for condition, title in experiment.conditions.items():
            if title or len(experiment.conditions) == 1:
                assert len(experiment.seeds_of(condition)) >= 3, (experiment.name, condition)


def test_methods_that_lose_half_a_point_on_clean_labels_are_listed() -> None:
    result_pages = script("make_results")
    text = (ROOT / "docs" / "methods" / "weights.md").read_text()
    _, statement = text.split("As of now:")
    for data in result_pages.DATA:
        results = result_pages.nine(data, "0")
        below = result_pages.below(results)
        assert {row.cell.method for row in results.table()} >= set(result_pages.ORDER)
        (line,) = [line for line in statement.splitlines() if line.startswith(f"- {data}:")]
        assert line.startswith(f"- {data}: {', '.join(f'`{name}`' for name in below) or 'none'}")
        assert f"({len(results.study['seeds'])} seeds)" in line


def test_performance_tables_match_raw_files() -> None:
    performance_tables = script("make_performance")
    text = performance_tables.PAGE.read_text()
    assert performance_tables.filled(text) == text, "run python docs/make_performance.py"
    tables = re.findall(r"<!-- ([\w/]+) -->\n", text)
    files = [
        file.relative_to(performance_tables.RESULTS).with_suffix("").as_posix()
        for file in performance_tables.RESULTS.rglob("*.json")
    ]
    assert sorted({*tables} - {"end"}) == sorted(files)


def test_method_pages_match_docstrings() -> None:
    module = script("make_method_pages")
    for name, text in module.pages().items():
        file = ROOT / "docs" / "methods" / name
        assert file.exists()
        assert file.read_text() == text, f"run python docs/make_method_pages.py ({name})"


@pytest.mark.parametrize(
    ("page", "noise"), [("README.md", ""), ("docs/tutorial.md", ""), ("docs/noisy-labels.md", "--noise 0.4")]
)
def test_teacher_of_example_is_trained_on_the_labels_of_its_student(page: str, noise: str) -> None:
    text = (ROOT / page).read_text().replace("\\\n", " ")
    train, distill = (re.search(rf"^tutelage {verb} .*{noise}.*$", text, re.M) for verb in ("train", "distill"))
    assert train is not None
    assert distill is not None
    for option in ("--data", "--noise", "--seed", "--imbalance", "--per-class", "--image-size"):
        values = {(re.search(rf"{option} (\S+)", line[0]) or [""])[0] for line in (train, distill)}
        assert len(values) == 1, values


@pytest.mark.parametrize("file", PAGES)
def test_linked_files_exist(file: str) -> None:
    text = (ROOT / file).read_text()
    file_folder = (ROOT / file).parent
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert not [link for link in links if not (file_folder / link).exists()]


@pytest.mark.parametrize("page", PAGES)
def test_files_named_in_text_exist(page: str) -> None:
    """``tests/x.py`` is a file of the repository, ``data/x.py`` one of the package."""
    other_files = {"runs/student/load.py", "helper/loops.py"}
    names = set(re.findall(r"`([\w/]+/[a-z_]+\.py)`", (ROOT / page).read_text())) - other_files
    assert not [name for name in names if not any((folder / name).exists() for folder in (ROOT, ROOT / "src/tutelage"))]


def test_every_dependency_is_explained() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text_of_dependencies = (ROOT / "docs" / "dependencies.md").read_text()
    core = {re.split(r"[<>=\[]", name)[0] for name in project["dependencies"]}
    assert core == set(re.findall(r"^\| ([a-z0-9-]+) \|", text_of_dependencies, re.M)) - {"package", "extra", "---"}
    assert set(project["optional-dependencies"]) == set(re.findall(r"^\| `([a-z]+)` \|", text_of_dependencies, re.M))


def python_of(page: str) -> list[str]:
    """The Python blocks of a page, with one epoch."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    return [re.sub(r"epochs=\d+", "epochs=1", block) for block in blocks]


def test_python_of_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    for block in python_of("README.md"):
        exec(block, namespace)
    assert namespace["student"].metrics["train"]["memorised"] is not None
    assert namespace["student_logits"].grad is not None
    trained = namespace["student"].model
    assert all(
        torch.equal(value, trained.module.state_dict()[k]) for k, value in namespace["network"].state_dict().items()
    )
    assert (float(trained.mean), float(trained.std)) == pytest.approx((0.305, 0.376), abs=2e-3)
    *_, loading = python_of("README.md")
    subprocess.run([sys.executable, "-c", loading], check=True)  # in a fresh interpreter


def test_student_loads_in_plain_pytorch_as_documented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tutelage import train

    monkeypatch.chdir(tmp_path)
    student = train("resnet8", "digits", epochs=1, out="runs/student").model
    (block,) = python_of("docs/options.md")
    namespace: dict[str, Any] = {}
    exec(block, namespace)
    torch.testing.assert_close(namespace["logits"], student.eval()(namespace["pixels"]))


def test_documented_study_file_is_valid() -> None:
    import tomllib

    from tutelage.studies.study import Study

    text = (ROOT / "docs" / "studies.md").read_text()
    (study_text,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    study = Study(**tomllib.loads(study_text))
    assert list(study.methods) == ["plain", "hinton", "dml", "at, published weight"]
    assert set(Study.model_fields) - set(tomllib.loads(study_text)) <= {"task", "pairs", "budget", "search"}
    for field in ("task", "pairs", "budget", "search"):
        assert field in text
