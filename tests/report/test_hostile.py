"""Page safety: any names, notes and errors in records are shown as text, never as elements or attributes."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tutelage.report.page import page, write_page
from tutelage.studies.results import Results
from tutelage.text import printable

PIECES = (
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><zz evil="1">', "' onzz='alert(1)", '" onzz="1'),
    *("</title>", "</style>", "</script>", "</svg>", "<!--", "-->", "]]>", "<![CDATA[", "<?xml?>", "&lt;b&gt;", "&amp"),
    *(
        "&#60;b&#62;",
        "<b",
        "</",
        "<a href=javascript:alert(1)>",
        "`",
        "$x_1$",
        "\\frac{",
        "{{x}}",
        "%s",
        "{0}",
        "\\x3c",
    ),
    *("\n", "\r", "\t", "\0", "\x1b[2J", "\u202e", "\u200f", "\u2028", "\u2066", "\ufeff"),
    *("\U0001f600", "é", "中", " ", "a", "0", "=1+1", "|", "#", "nan"),
)
HOSTILE = st.lists(st.sampled_from(PIECES), min_size=1, max_size=5).map("".join)
FIELDS = (
    *("study", "data", "noise", "imbalance", "teacher", "student", "method", "function", "class", "setting", "value"),
    *("error", "command", "folder", "version", "train", "optimizer", "attack", "corruption", "term"),
)
VOID = {"meta", "br", "hr", "img", "input", "link", "wbr", "col"}


class Reader(HTMLParser):
    """Collects the elements of a page and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.declarations: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        self.declarations.append(data)

    unknown_decl = handle_pi = handle_comment


def write_hostile_page(folder: Path, write_study: Callable[..., Path], text: Mapping[str, str]) -> str:
    """The page of a study with these names, each made unique by its position."""
    name = {field: f"{field}~{text[field]}" for field in FIELDS}
    condition = {"data": name["data"], "imbalance": name["imbalance"]}

    def numbers(record: Mapping[str, Any]) -> dict[str, Any]:
        hostile = record["method"] == name["method"] and record["seed"] == 0
        failure = {"error": name["error"], "status": "failed"} if hostile else {}
        return condition | {
            "function": name["function"],
            "settings": {name["setting"]: name["value"]},
            "command": name["command"],
            "folder": record["folder"] if record["method"] == "teacher" else f"{name['folder']}{record['key']}",
            "per_class_accuracy": {f"{name['class']}{number}": 0.1 * number for number in range(3)},
            "corruptions": {name["corruption"]: [0.5, 0.4, 0.3, 0.2, 0.1]},
            "pgd": {"0.1": 0.5},
            "curve": {
                "epoch": [1, 2],
                "train_accuracy": [0.4, 0.6],
                "validation_accuracy": [None] * 2,
                "loss": {name["term"]: [1.0, 0.5]},
            },
            **failure,
        }

    fields = {
        "data": [name["data"]],
        "imbalance": [name["imbalance"]],
        "train": {name["train"]: 1, "optimizer": name["optimizer"]},
        "evaluate": {"corruptions": True, "pgd": [0.1], "ood": name["attack"]},
    }
    shutil.rmtree(folder / "study", ignore_errors=True)
    pairs = [(name["teacher"], name["student"])]
    study = write_study(
        "study", numbers, noise=(None, name["noise"]), pairs=pairs, methods=(name["method"],), seeds=(0, 1), **fields
    )
    method_record = {"method": name["function"], "settings": {name["setting"]: name["value"]}}
    declaration = json.loads((study / "study.json").read_text())
    (study / "study.json").write_text(
        json.dumps(
            declaration | {"name": name["study"], "methods": dict.fromkeys(declaration["methods"], method_record)}
        )
    )
    (study / "runs" / "teacher-0").mkdir(parents=True)
    (study / "runs" / "teacher-0" / "versions.json").write_text(json.dumps({"tutelage": name["version"]}))
    results = Results.read(study)
    assert len(results.runs) == 12
    return page(results)


def parse_page(page_text: str) -> Reader:
    page_text.encode()  # no lone surrogate
    for drawing in re.findall(r"<svg.*?</svg>", page_text, re.DOTALL):
        ElementTree.fromstring(drawing)
    return Reader(page_text)


@settings(
    max_examples=4,
    phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(text=st.fixed_dictionaries(dict.fromkeys(FIELDS, HOSTILE)))
@example(text=dict.fromkeys(FIELDS, "<script>alert(1)</script>\"'><zz evil='1' onzz=\"2\">&lt;\n"))
@example(text=dict.fromkeys(FIELDS, "</title></style></script></svg><!-- ]]> <![CDATA[ <?x?>"))
def test_names_create_no_element_and_no_attribute(
    text: dict[str, str], write_study: Callable[..., Path], tmp_path: Path, plain_page: dict[str, Reader]
) -> None:
    if "usual" not in plain_page:
        plain_page["usual"] = parse_page(write_hostile_page(tmp_path, write_study, dict.fromkeys(FIELDS, "")))
    plain = plain_page["usual"]
    reader = parse_page(
        write_hostile_page(tmp_path, write_study, {field: json.loads(json.dumps(raw)) for field, raw in text.items()})
    )
    assert reader.declarations == plain.declarations
    # A long name may be split into more elements of a figure; nothing else depends on its length.
    svg_tags = {"text", "tspan", "g", "use", "path", "svg", "title"}
    assert {tag: n for tag, n in Counter(reader.tags).items() if tag not in svg_tags} == {
        tag: n for tag, n in Counter(plain.tags).items() if tag not in svg_tags
    }
    assert set(reader.tags) == set(plain.tags)
    assert {(tag, name) for tag, name, _ in reader.attributes} == {(tag, name) for tag, name, _ in plain.attributes}
    ids = [value for _, name, value in reader.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert all(value.removeprefix("#") in ids for _, name, value in reader.attributes if name == "href")
    for name in ("style", "class", "role", "type", "content"):
        values = {value for _, attribute_name, value in reader.attributes if attribute_name == name}
        assert not any("~" in value for value in values), name
    words = " ".join("".join(reader.texts).split())
    for field in ("study", "data", "teacher", "student", "method", "error", "command", "value", "version"):
        assert " ".join(printable(f"{field}~{text[field]}").split()) in words, field


def test_templates_insert_only_figures_style_and_script_unescaped() -> None:
    templates = files("tutelage.report.page") / "templates"
    unescaped_values = {
        expression
        for template in templates.iterdir()
        for expression in re.findall(r"{{([^}]*safe[^}]*)}}", template.read_text(encoding="utf-8"))
    }
    assert {text.strip() for text in unescaped_values} == {
        "style|safe",
        "script|safe",
        "definitions|safe",
        "panel.svg|safe",
    }


@pytest.fixture(scope="module")
def plain_page() -> dict[str, Reader]:
    """Cache of the page of the same study with plain names."""
    return {}


def test_page_with_lone_surrogates_is_written(write_study: Callable[..., Path], tmp_path: Path) -> None:
    """Readers refuse files with lone surrogates, but records made in Python may contain them."""
    results = Results.read(write_study(methods=("at",), seeds=(0,)))
    hostile_name = "\ud800<b>\udfff"
    runs = tuple({**run, "error": hostile_name, "command": hostile_name, "status": "failed"} for run in results.runs)
    page_text = page(replace(results, study={**results.study, "name": hostile_name}, runs=runs))
    assert "\\ud800<b>\\udfff" in "".join(parse_page(page_text).texts)
    write_page(replace(results, study={**results.study, "name": hostile_name}), tmp_path / "page.html")
    assert b"\\ud800&lt;b&gt;" in (tmp_path / "page.html").read_bytes()
