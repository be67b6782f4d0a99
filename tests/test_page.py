"""A table stays a table whatever its cells hold; a script prints what a notebook renders."""

import pytest

from resnet_lib import page
from resnet_lib.stats import Estimate, exact


def cells(text):
    """The cells of each line of a Markdown table, as a renderer splits them."""
    return [[c.strip() for c in line[1:-1].replace("\\|", "\0").split("|")] for line in text.split("\n")]


def test_a_table_has_a_line_per_row_and_a_cell_per_column():
    rows = [{"net": "plain", "error": 0.125}, {"net": "residual", "error": None}, {"net": "other"}]
    text = str(page.table(rows, {"net": "network", "error": ("error", ".1%")}))
    assert cells(text) == [["network", "error"], ["---", "---"], ["plain", "12.5%"], ["residual", "–"], ["other", "–"]]


def test_a_bar_in_a_cell_does_not_end_it():
    found = cells(str(page.table([{"a": "|x| < 1", "b": 2}], {"a": "absolute", "b": "n"})))
    assert found[2] == ["\0x\0 < 1", "2"]


def test_a_line_break_in_a_cell_does_not_end_its_row():
    found = cells(str(page.table([{"a": "one\ntwo\r\nthree", "b": 2}], {"a": "text", "b": "n"})))
    assert len(found) == 3 and found[2] == ["one two three", "2"]


def test_a_bar_in_a_heading_does_not_end_it():
    assert cells(str(page.table([{"a": 1}], {"a": "|error|"})))[0] == ["\0error\0"]


def test_a_format_may_be_a_function_or_that_of_the_value():
    columns = {"n": ("squared", lambda n: n * n), "e": ("effect", ".0f")}
    text = str(page.table([{"n": 3, "e": Estimate(12.3, 11.2, 13.4, 5, 0.95, 1.0, "t", "ms")}], columns))
    assert cells(text)[2] == ["9", "12 [11, 13] ms (n=5)"]


def test_a_script_prints_what_a_notebook_renders(capsys):
    page.say("**two** words")
    page.caption("It falls.")
    assert capsys.readouterr().out == "**two** words\n*Figure.* It falls.\n"
    made = page.table([], {"a": "A"})
    assert made._repr_markdown_() == str(made) == "| A |\n| --- |"


@pytest.mark.parametrize(("low", "high", "word"), [(0.1, 0.3, "rises"), (-0.3, -0.1, "falls"), (-0.1, 0.1, "stays")])
def test_a_trend_is_named_only_where_the_interval_leaves_zero_out(low, high, word):
    estimate = Estimate((low + high) / 2, low, high, 3, 0.95, 0.1, "t")
    assert page.trend(estimate, "rises", "falls", "stays") == word


def test_an_exact_zero_is_flat():
    assert page.trend(exact(0.0), "rises", "falls", "stays") == "stays"
