"""The HTML page of a study: content and safety."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.report.pages import HOSTILE, study
from tutelage.errors import TutelageError
from tutelage.report.figures.frame import over_seeds
from tutelage.report.page import page, write_page
from tutelage.studies.results import Results
from tutelage.studies.statistics import mean_interval

VOID = {"meta", "link", "br", "input", "hr", "img", "path", "use"}


class Reader(HTMLParser):
    """Collects the text of a page and checks that tags are closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def ids(self) -> list[str]:
        return [str(attributes["id"]) for _, attributes in self.tags if "id" in attributes]


EDGES: dict[str, dict[str, Any]] = {
    "usual": {},
    "one seed": {"seeds": 1},
    "one method": {"methods": ("hinton",)},
    "no method": {"methods": ()},
    "one condition": {"noise": (None,)},
    "labels from a file": {"noise": ("human:labels.npz:worst", "human:labels.npz:random1")},
    "a method failed": {"failed_methods": ("at",)},
    "plain failed": {"failed_methods": ("plain",)},
    "all failed": {"failed_methods": ("teacher", "plain", "hinton", "at")},
    "hostile": {"methods": (HOSTILE, "a" * 200, "$", "\\frac{")},
    "trials": {"with_trials": True},
}


@pytest.mark.parametrize("edge", EDGES)
def test_page_is_complete_and_self_contained(edge: str, tmp_path: Path) -> None:
    results = study(tmp_path, **EDGES[edge])
    text = page(results)
    reader = Reader(text)
    ids = reader.ids()
    assert len(set(ids)) == len(ids)
    targets = {value for _, attributes in reader.tags for name, value in attributes.items() if name == "href"}
    assert {f"#{one}" for one in ids} >= targets
    assert not re.search(r"https?://|@import|src=|url\(", text)
    assert sum(tag == "script" for tag, _ in reader.tags) == 1
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    controlled_ids = {
        value for _, attributes in reader.tags for name, value in attributes.items() if name == "aria-controls"
    }
    assert controlled_ids <= set(ids)
    assert all("aria-label" in attributes for tag, attributes in reader.tags if tag == "svg" and "role" in attributes)
    for run in results.runs:
        assert run["folder"] in reader.text
        assert run["command"] in reader.text
    assert "nan" not in re.sub(r"[^<]*became nan.*?<", "<", " ".join(re.findall(r'd="[^"]*"', text)))


def test_study_texts_are_escaped(tmp_path: Path) -> None:
    text = page(study(tmp_path, methods=(HOSTILE,), failed_methods=(HOSTILE,), with_trials=True))
    assert "<script>alert" not in text
    assert HOSTILE in Reader(text).text
    assert f"Study report a study {HOSTILE}" in Reader(text).text


def test_missing_run_is_marked_everywhere(tmp_path: Path) -> None:
    text = page(study(tmp_path, methods=("hinton", "at"), failed_methods=("at",)))
    reader = Reader(text)
    assert 'id="failed"' in text
    assert "missing 3 of 3 runs" in reader.text
    assert "9 failed" in reader.text
    assert any("became nan" in str(attributes.get("title")) for tag, attributes in reader.tags if tag == "abbr")
    assert reader.text.count("missing: seed 0 failed") >= 5  # in each kind of figure


def test_empty_sections_are_omitted(tmp_path: Path) -> None:
    text = page(study(tmp_path, noise=(None,)))
    assert 'id="gains"' in text
    assert not re.search('id="(noise|imbalance|ranks|failed|trials)"', text)


def test_single_seed_has_no_interval(tmp_path: Path) -> None:
    reader = Reader(page(study(tmp_path, seeds=1)))
    assert "One seed allows no interval" in reader.text
    assert "±" not in reader.text


def test_two_seeds_have_no_interval_of_the_mean(tmp_path: Path) -> None:
    reader = Reader(page(study(tmp_path, seeds=2)))
    assert "Two seeds: no interval of a mean." in reader.text
    assert "±" not in reader.text.replace("intervals of up to ±", "")
    assert "Two seeds: no interval of a mean, so there are no bands" in reader.text


def test_overview_has_a_coloured_cell_per_method_and_condition(tmp_path: Path) -> None:
    text = page(study(tmp_path, methods=("hinton", HOSTILE), failed_methods=(HOSTILE,)))
    part = text[text.index('<section id="overview"') : text.index('<section id="table"')]
    reader = Reader(part)
    assert "noise 0.2" in reader.text
    assert reader.text.count("missing") == 3
    heat = [str(attributes["style"]) for tag, attributes in reader.tags if tag == "td" and "style" in attributes]
    assert len(heat) == 3  # only hinton: not the teacher, plain or missing methods
    assert max(int(style.rpartition(":")[2].rstrip("%")) for style in heat) == 100
    assert 'id="overview"' not in page(study(tmp_path, noise=(None,)))


def test_lower_is_better_for_error_metrics(tmp_path: Path) -> None:
    results = study(tmp_path)
    heat = re.compile(r'title="difference to plain ([+−])[^"]*" style="--heat:var\(--(accent|second)\)')
    for metric, better in (("accuracy", "+"), ("ece", "−")):
        for sign, colour in heat.findall(page(results, metric)):
            assert (colour == "accent") == (sign == better), metric


def test_runs_shared_by_several_pairs_are_counted_once(tmp_path: Path) -> None:
    results = study(tmp_path, noise=(None,))
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    repeated_lines = [json.dumps(json.loads(line) | {"teacher": "huge"}) for line in lines]
    (tmp_path / "results.jsonl").write_text("\n".join(lines + repeated_lines))
    assert f"{len(results.runs)} of {len(results.runs)} runs done" in Reader(page(Results.read(tmp_path))).text


def test_selected_trial_is_marked(tmp_path: Path) -> None:
    reader = Reader(page(study(tmp_path, with_trials=True)))
    assert "✓ selected 80.00" in reader.text
    assert "✓ selected 70.00" not in reader.text


def test_bands_equal_the_intervals_of_the_table() -> None:
    values = np.random.default_rng(1).normal(size=(4, 3))
    mean, half = over_seeds(values)
    for point in range(3):
        interval = mean_interval(values[:, point])
        assert mean[point] == pytest.approx(interval.mean)
        assert mean[point] + half[point] == pytest.approx(interval.high)


def test_page_of_another_metric(tmp_path: Path) -> None:
    results = study(tmp_path)
    assert "Expected calibration error" in page(results, "ece")
    with pytest.raises(TutelageError, match="accurcy"):
        write_page(results, tmp_path / "report.html", metric="accurcy")


def test_page_of_forty_methods_under_six_conditions(tmp_path: Path) -> None:
    methods = tuple(f"method {number}" for number in range(40))
    noise = (None, "0.1", "0.2", "pair:0.1", "pair:0.2", "instance:0.4")
    write_page(study(tmp_path, methods=methods, noise=noise, seeds=2), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 8e6


def test_page_with_control_characters_is_written(write_study: Callable[..., Path]) -> None:
    evil = "a\x1b[31m\x00\u202e"
    classes = {"per_class_accuracy": {evil: 0.5, "b": 0.25}}
    study = write_study(numbers=lambda run: classes, methods=(evil,), pairs=((evil, evil),), seeds=(0, 1))
    text = page(Results.read(study))
    text.encode()
    assert "\x1b" not in text
    assert "\x00" not in text
