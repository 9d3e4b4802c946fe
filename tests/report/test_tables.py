"""Tables of a study: all formats contain the same rows and numbers."""

from __future__ import annotations

import csv
import io
import json
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tutelage.report.tables import FORMATS, flat_rows, table_as, write_table
from tutelage.studies.results import Results

Refused = Callable[..., AbstractContextManager[None]]
WriteStudy = Callable[..., Path]


def failed_run(record: Mapping[str, Any]) -> Mapping[str, Any]:
    hit = (record["method"], record["noise"], record["seed"]) == ("sp", "0.4", 3)
    return {"status": "failed", "error": "step 4: 'flow' | became\nnan"} if hit else {}


@pytest.fixture
def results(write_study: WriteStudy) -> Results:
    names = {"methods": ("at", "sp", 'odd, "name" | é'), "seeds": (0, 3)}
    return Results.read(write_study(numbers=failed_run, **names))


@pytest.mark.parametrize(("metric", "interval"), [("accuracy", "t"), ("memorised", "bootstrap")])
def test_all_formats_contain_the_same_rows_and_numbers(results: Results, metric: str, interval: str) -> None:
    rows = flat_rows(results, metric, interval)
    assert len(rows) == len(results.cells)
    read = json.loads(table_as(results, "json", metric=metric, interval=interval))
    assert read == rows
    text = table_as(results, "csv", metric=metric, interval=interval).decode()
    lines = list(csv.DictReader(io.StringIO(text, newline="")))
    kinds = {name: type(next((row[name] for row in rows if row[name] is not None), "")) for name in rows[0]}
    assert [{name: kinds[name](value) if value else None for name, value in line.items()} for line in lines] == rows
    parquet = pytest.importorskip("pyarrow.parquet", reason="extra frame is not installed")
    table = parquet.read_table(io.BytesIO(table_as(results, "parquet", metric=metric, interval=interval)))
    assert table.to_pylist() == rows
    assert str(table.schema.field("imbalance").type) == "string"  # also if all values are null


def test_flat_rows_equal_the_table(results: Results) -> None:
    for line, row in zip(flat_rows(results), results.table(), strict=True):
        assert (line["method"], line["noise"], line["n"]) == (row.cell.method, row.cell.condition[1], 2)
        assert (line["p"], line["holm"], line["wins"]) == (row.p, row.holm, row.wins)
        assert line["mean"] == (row.mean.mean if row.mean else None)
        assert line["gain_high"] == (row.gain.high if row.gain else None)
    assert [line["missing"] for line in flat_rows(results) if line["missing"]] == ["seed 3 failed"]


def test_single_seed_gives_no_nan(write_study: WriteStudy) -> None:
    rows = flat_rows(Results.read(write_study(seeds=(0,))))
    assert not any(isinstance(value, float) and math.isnan(value) for row in rows for value in row.values())
    assert rows[2]["gain"] is not None
    assert rows[2]["gain_low"] is None


def test_markdown_table(write_study: WriteStudy) -> None:
    values = {"teacher": [0.9, 0.92], "plain": [0.8, 0.84], "at": [0.81, 0.87], "sp": [0.5, 0.5]}

    def numbers(record: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"accuracy": values[record["method"]][record["seed"] == 3]} | failed_run(record)

    results = Results.read(write_study(numbers=numbers, methods=("at", "sp"), seeds=(0, 3)))
    lines = table_as(results, "md").decode().splitlines()
    assert lines[0] == "# study: test accuracy"
    assert "Mean over 2 seeds. Two seeds: no interval of a mean." in lines[2]
    assert "## noise 0.4" in lines
    table = lines[lines.index("## noise 0.4") :]
    assert "| teacher | 91.00 |  |  |  |" in table
    assert "| plain | 82.00 |  |  |  |" in table
    assert "| at | 84.00 | +2.00 [-10.71, +14.71] | 0.295 | 2 of 2 |" in table
    assert "| sp | missing: seed 3 failed |  |  |  |" in table
    assert any("Missing: sp (seed 3 failed: step 4: 'flow' \\| became nan)" in line for line in table)
    loss = table_as(results, "md", metric="nll", interval="bootstrap").decode()
    assert "(bootstrap)" in loss
    assert "%, " not in loss


def test_mean_is_printed_with_the_half_width_of_its_interval(write_study: WriteStudy) -> None:
    values = {"teacher": [0.9, 0.92, 0.91], "plain": [0.8, 0.84, 0.82], "at": [0.81, 0.86, 0.83]}

    def numbers(record: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"accuracy": values[record["method"]][record["seed"]]}

    results = Results.read(write_study(numbers=numbers, methods=("at",)))
    lines = table_as(results, "md").decode().splitlines()
    assert "Mean over 3 seeds. With ± half of its 95 % interval." in lines[2]
    assert "| teacher | 91.00 ± 2.48 |  |  |  |" in lines  # 4.303 * 0.01 / sqrt(3)
    boot = table_as(results, "md", interval="bootstrap").decode().splitlines()
    assert "or its bounds in brackets." in boot[2]
    assert any(line.startswith(("| teacher | 91.00 ± 1.00", "| teacher | 91.00 [")) for line in boot)


def test_latex_has_one_escaped_booktabs_table_per_condition(write_study: WriteStudy) -> None:
    name = r"50 % of {a_b} & c\d $x^2$ ~ # <i>"
    folder = write_study(methods=("at", name))
    text = table_as(Results.read(folder), "latex").decode()
    assert text.count(r"\begin{tabular}{lrrrr}") == text.count(r"\bottomrule") == 2
    row = next(line for line in text.splitlines() if line.startswith("50 "))
    escaped_name = r"50 \% of \{a\_b\} \& c\textbackslash{}d \$x\textasciicircum{}2\$ \textasciitilde{} \# "
    assert row.startswith(escaped_name + r"\textless{}i\textgreater{} & ")
    assert row.endswith(r" \\")
    assert r" $\pm$ " in row
    plain_text = text.replace(r"\&", "").replace(r"\{", "").replace(r"\}", "")
    assert {line.count("&") for line in plain_text.splitlines() if line.endswith(r" \\")} == {4}
    assert plain_text.count("{") == plain_text.count("}")


def test_missing_plain_run_is_marked_in_every_difference(write_study: WriteStudy) -> None:
    folder = write_study(numbers=lambda r: {"status": "missing"} if r["method"] == "plain" and r["seed"] == 1 else {})
    text = table_as(Results.read(folder), "md").decode()
    assert text.count("| missing: plain, seed 1 is missing |") == 2 * 3
    assert text.count("| plain | missing: seed 1 is missing |") == 2


def test_names_do_not_break_the_table(results: Results) -> None:
    rows = [line for line in table_as(results, "md").decode().splitlines() if line.startswith('| odd, "name" \\| é |')]
    assert len(rows) == 2


@pytest.mark.parametrize("format", ["md", "csv", "json"])
def test_files_equal_printed_tables(results: Results, tmp_path: Path, format: str) -> None:
    path = tmp_path / "new" / f"table.{format}"
    write_table(results, format, path, metric="ece")
    assert path.read_bytes() == table_as(results, format, metric="ece")


def test_small_and_large_numbers_are_legible(write_study: WriteStudy) -> None:
    results = Results.read(write_study(numbers=lambda record: {"aurc": 0.00019, "forward_passes": 57480}))
    assert "| plain | 0.00019 ± 0.000 |" in table_as(results, "md", metric="aurc").decode()
    assert "| plain | 57,480 ± 0.000 |" in table_as(results, "md", metric="forward_passes").decode()


def test_unknown_formats_metrics_and_missing_libraries_are_refused(
    results: Results, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refused("format", "'xlsx'", *FORMATS):
        table_as(results, "xlsx")
    for format in FORMATS:
        with refused("metric", "'speed'"):
            table_as(results, format, metric="speed")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with refused("pyarrow", "pip install 'tutelage[frame]'"):
        table_as(results, "parquet")


FORMULAS = {
    '=HYPERLINK("http://x")': '\'=HYPERLINK("http://x")',
    "+1": "'+1",
    "-1": "'-1",
    "@SUM(A1)": "'@SUM(A1)",
    "\tx": "'\tx",
    "\r=1": "'\\r=1",
    "＝1": "'＝1",
    " =1": "' =1",
    "a\x1b[31mb": "a\\x1b[31mb",
    "at": "at",
}


def test_names_are_not_written_as_formulas(write_study: WriteStudy) -> None:
    study = Results.read(write_study(methods=tuple(FORMULAS), pairs=(("=teacher", "@student"),), seeds=(0, 1)))
    lines = list(csv.DictReader(io.StringIO(table_as(study, "csv").decode(), newline="")))
    assert {line["method"] for line in lines} == {"plain", "teacher", *FORMULAS.values()}
    assert {(line["teacher"], line["student"]) for line in lines} == {("'=teacher", "'@student")}
    gains = [float(line["gain"]) for line in lines if line["gain"]]
    assert min(gains) < 0  # numbers keep their sign
    assert {row["method"] for row in json.loads(table_as(study, "json"))} == {"plain", "teacher", *FORMULAS}


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("<img src=x onerror=y>", "&lt;img src=x onerror=y&gt;"),
        ("a|b", r"a\|b"),
        (r"a\|b", r"a\\\|b"),
        ("![x](http:y)", r"![x]\(http:y)"),
        ("a\x1b[2J", r"a\\x1b[2J"),
        ("&lt;", "&amp;lt;"),
    ],
)
def test_markdown_displays_names_literally(write_study: WriteStudy, name: str, cell: str) -> None:
    failed_fields = {"status": "failed", "error": name}
    study = write_study(name, lambda run: failed_fields if run["method"] == name else {}, methods=(name,), seeds=(0, 1))
    text = table_as(Results.read(study.rename(study.with_name("study"))), "md").decode()
    assert f"| {cell} |" in text
    assert text.count(cell) == 1 + 2 * 3  # the title; and of two conditions the row, the missing value and its error
