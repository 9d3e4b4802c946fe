"""The HTML page of a study: content, safety, and behaviour in a browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.errors import TutelageError
from tutelage.report.figures.frame import over_seeds
from tutelage.report.page import page, write_page
from tutelage.studies.metrics import metrics_of
from tutelage.studies.reading import CONDITION, PAIR
from tutelage.studies.results import Results
from tutelage.studies.statistics import mean_interval
from tutelage.tasks import find_task

METRICS = metrics_of(find_task("classification"))
HOSTILE = '<script>alert("x")</script>&"\'$a_b$'
VOID = {"meta", "link", "br", "input", "hr", "img", "path", "use"}


def record(method: str, seed: int, condition: tuple[Any, ...], rng: np.random.Generator) -> dict[str, Any]:
    accuracy = float(rng.uniform(0.6, 0.9))
    measurements = {name: float(rng.uniform(0, 1)) for name in METRICS} | {"accuracy": accuracy, "seconds": 3.0 + seed}
    return {
        **dict(zip((*CONDITION, *PAIR), condition, strict=True)),
        **measurements,
        "key": f"{abs(hash((method, seed, condition))):016x}"[:16],
        "folder": f"runs/{method}-{condition[1]}-seed{seed}",
        "status": "done",
        "error": None,
        "method": method,
        "function": method,
        "settings": {"weight": 1.0},
        "seed": seed,
        "per_class_accuracy": {HOSTILE: accuracy, "b": accuracy / 2},
        "reliability": {"count": [0, 5, 9], "accuracy": [None, 0.5, 0.8], "confidence": [None, 0.5, 0.9]},
        "risk_coverage": {"coverage": [0.5, 1.0], "risk": [0.1, 1 - accuracy]},
        "corruptions": {"noise": [0.8, 0.7, 0.6, 0.5, 0.4]},
        "pgd": {"0.01": accuracy / 2},
        "command": f"tutelage distill --method '{method}' --seed {seed}",
        "curve": {"epoch": [1, 2], "train_accuracy": [None, 0.5], "validation_accuracy": [0.4, 0.5], "loss": {}},
    }


def study(
    folder: Path,
    methods: tuple[str, ...] = ("hinton", "at"),
    noise: tuple[str | None, ...] = (None, "0.2", "0.4"),
    seeds: int = 3,
    failed_methods: tuple[str, ...] = (),
    with_trials: bool = False,
) -> Results:
    """Results of a study written to disk; all seeds of the ``broken`` methods failed."""
    rng = np.random.default_rng(0)
    names = ["plain", *methods]
    records = []
    for one in noise:
        for method in ("teacher", *names):
            for seed in range(seeds):
                run = record(method, seed, ("digits", one, None, None, "noisy", "big", "small"), rng)
                if method in failed_methods:
                    is_missing = (
                        *METRICS,
                        "per_class_accuracy",
                        "reliability",
                        "risk_coverage",
                        "corruptions",
                        "pgd",
                        "curve",
                    )
                    run |= dict.fromkeys(is_missing) | {"status": "failed", "error": f"became nan {HOSTILE}"}
                records.append(run)
    declaration = {
        "name": f"a study {HOSTILE}",
        "data": ["digits"],
        "noise": list(noise),
        "imbalance": [None],
        "per_class": [None],
        "teacher_labels": ["noisy"],
        "pairs": [["big", "small"]],
        "methods": {name: {"method": name, "settings": {}} for name in names},
        "seeds": list(range(seeds)),
        "train": {"epochs": 2},
        "budget": 2 if with_trials else 0,
        "evaluate": {"corruptions": True, "pgd": [0.01], "ood": None},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(declaration))
    (folder / "results.jsonl").write_text("".join(json.dumps(run) + "\n" for run in records))
    if with_trials:
        trials = [
            records[-1]
            | {"space": {"weight": HOSTILE}, "score": score, "chosen": is_selected, "settings": {"weight": HOSTILE}}
            for score, is_selected in ((0.7, False), (0.8, True))
        ]
        (folder / "trials.jsonl").write_text("".join(json.dumps(trial) + "\n" for trial in trials))
    return Results.read(folder)


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


# --- in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browsers = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
    if not browsers:
        pytest.skip("no Chromium on this machine")
    with sync.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browsers[0], args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def report(tmp_path: Path) -> str:
    path = tmp_path / "report.html"
    write_page(study(tmp_path, methods=("hinton", "at", HOSTILE), failed_methods=("at",)), path)
    return path.as_uri()


def open_page(browser: Any, address: str, **options: Any) -> Any:
    """Open the page and record requests and console messages, of which there must be none."""
    tab = browser.new_page(**options)
    tab.events = []
    tab.on("console", lambda message: tab.events.append(message.text))
    tab.on("pageerror", lambda error: tab.events.append(str(error)))
    tab.on("dialog", lambda dialog: tab.events.append(dialog.message))
    tab.on("request", lambda request: tab.events.append(request.url) if request.url != address else None)
    tab.goto(address)
    return tab


def visible_methods(tab: Any) -> list[str]:
    return [text.strip() for text in tab.locator("#numbers > tbody:visible > tr > th").all_inner_texts()]


def test_page_opens_without_errors_sorts_filters_and_unfolds(browser: Any, report: str) -> None:
    tab = open_page(browser, report)
    assert len(visible_methods(tab)) == 15
    head = tab.locator("#numbers > thead th", has_text="accuracy, %").first
    for order, sign in (("descending", -1), ("ascending", 1)):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == order
        values = tab.eval_on_selector_all(
            "#numbers > tbody > tr:first-child > td:nth-child(3)", "cells => cells.map(cell => cell.dataset.value)"
        )
        assert values[-3:] == [None] * 3  # missing values come last in both orders
        numbers = [float(value) for value in values[:-3]]
        assert numbers == sorted(numbers, key=lambda value: sign * value)
    tab.fill("#search", "hinton")
    assert visible_methods(tab) == ["hinton"] * 3
    tab.select_option("[data-filter=condition]", "noise 0.2")
    assert visible_methods(tab) == ["hinton"]
    assert tab.locator("#count").inner_text() == "1 of 15 lines"
    tab.locator(".open:visible").click()
    assert tab.locator(".behind:visible .folder").all_inner_texts() == [
        f"runs/hinton-0.2-seed{seed}" for seed in range(3)
    ]
    tab.fill("#search", "")
    tab.select_option("[data-filter=condition]", "")
    tab.select_option("[data-filter=method]", HOSTILE)
    assert visible_methods(tab) == [HOSTILE] * 3
    assert tab.events == []
    tab.close()


@pytest.mark.parametrize(("scheme", "light"), [("light", True), ("dark", False)])
@pytest.mark.parametrize("width", [390, 1200])
def test_page_follows_the_colour_scheme_and_fits_the_window(
    browser: Any, report: str, scheme: str, light: bool, width: int
) -> None:
    tab = open_page(browser, report, color_scheme=scheme, viewport={"width": width, "height": 800})
    colour = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    red, green, blue = (int(part) for part in re.findall(r"\d+", colour)[:3])
    assert (min(red, green, blue) > 200) if light else (max(red, green, blue) < 60)
    ink = tab.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
    assert (sum(int(part) for part in re.findall(r"\d+", ink)[:3]) < 384) == light
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.events == []
    tab.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_wide_tables_keep_their_first_column_and_indicate_scrolling(browser: Any, report: str, width: int) -> None:
    tab = open_page(browser, report, viewport={"width": width, "height": 800})
    wide = tab.locator("#table .wide")
    assert wide.evaluate("it => it.scrollWidth > it.clientWidth")
    assert "local" in wide.evaluate("it => getComputedStyle(it).backgroundAttachment")
    first = tab.locator("#numbers > thead th").first, tab.locator("#numbers > tbody > tr > th").first
    before = [cell.bounding_box()["x"] for cell in first]
    wide.evaluate("it => { it.scrollLeft = 200 }")
    assert [cell.bounding_box()["x"] for cell in first] == before
    assert tab.events == []
    tab.close()


def test_page_prints(browser: Any, report: str) -> None:
    tab = open_page(browser, report, color_scheme="dark")
    pdf = tab.pdf(prefer_css_page_size=True)
    assert pdf.startswith(b"%PDF")
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 252)"
    assert not tab.locator(".controls").is_visible()
    assert tab.events == []
    tab.close()


def test_page_with_control_characters_is_written(write_study: Callable[..., Path]) -> None:
    evil = "a\x1b[31m\x00\u202e"
    classes = {"per_class_accuracy": {evil: 0.5, "b": 0.25}}
    study = write_study(numbers=lambda run: classes, methods=(evil,), pairs=((evil, evil),), seeds=(0, 1))
    text = page(Results.read(study))
    text.encode()
    assert "\x1b" not in text
    assert "\x00" not in text
