"""Tables in Markdown."""

from __future__ import annotations

from tutelage.report.markdown import SIGNIFICANT, Column, comparison_table, detectable_note, markdown_table
from tutelage.studies.comparison import compare_rows


def test_column_shows_shares_in_per_cent_and_other_numbers_as_they_are() -> None:
    assert Column("accuracy").number(0.12345) == "12.3"
    assert Column("ECE", share=False, digits=3).number(-0.0123, "+") == "-0.012"


def test_table_has_a_line_of_dashes_below_its_head() -> None:
    assert markdown_table(["", "a"], [["x", "1"]]) == "|  | a |\n| --- | --- |\n| x | 1 |"


def test_difference_is_bold_by_its_own_interval_and_marked_by_holms_correction() -> None:
    seeds = range(4)
    rows = {
        "plain": dict.fromkeys(seeds, 0.5),
        "sure": dict(zip(seeds, (0.61, 0.60, 0.59, 0.60), strict=True)),
        "uncorrected": dict(zip(seeds, (0.53, 0.57, 0.52, 0.54), strict=True)),  # p = 0.034, times 2
        "unsure": dict(zip(seeds, (0.55, 0.45, 0.52, 0.50), strict=True)),
        "same": dict.fromkeys(seeds, 0.7),  # no spread, so not marked
        "absent": {},
    }
    comparison = compare_rows(rows, "plain")
    assert comparison["uncorrected"].holm is not None
    assert comparison["uncorrected"].p is not None
    assert comparison["uncorrected"].p < 0.05 <= comparison["uncorrected"].holm
    table = comparison_table([Column("accuracy")], [comparison])
    plain, certain_row, uncorrected_row, uncertain_row, same_row, absent_row = table.splitlines()[2:]
    assert plain == "| plain | 4 | 50.0 ± 0.0 |"
    assert certain_row == f"| sure | 4 | 60.0 ± 1.3 (**+10.0 ± 1.3**{SIGNIFICANT}) |"
    assert uncorrected_row == "| uncorrected | 4 | 54.0 ± 3.4 (**+4.0 ± 3.4**) |"
    assert uncertain_row == "| unsure | 4 | 50.5 ± 6.7 (+0.5 ± 6.7) |"
    assert same_row == "| same | 4 | 70.0 ± 0.0 (**+20.0 ± 0.0**) |"
    assert absent_row == "| absent | 0 | – |"


def test_note_says_what_would_be_detected_where_the_interval_includes_0() -> None:
    seeds = range(4)
    rows = {
        "plain": dict.fromkeys(seeds, 0.5),
        "sure": dict(zip(seeds, (0.61, 0.60, 0.59, 0.60), strict=True)),
        "unsure": dict(zip(seeds, (0.55, 0.45, 0.52, 0.50), strict=True)),  # 6.69 (1 + 0.978 / 3.182)
        "equal": dict.fromkeys(seeds, 0.5),
    }
    column = Column("accuracy")
    assert "a difference of 8.7 would be detected" in detectable_note(column, compare_rows(rows, "plain"))
    assert not detectable_note(column, compare_rows({name: rows[name] for name in ("plain", "sure", "equal")}, "plain"))
