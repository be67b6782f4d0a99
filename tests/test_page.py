"""A table stays a table whatever its cells hold; a script prints what a notebook renders."""

import pytest

from resnet_lib import page, plots
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
    page.show(page.fold("More", page.paragraph("inside")))
    assert capsys.readouterr().out == "**two** words\nFigure: It falls.\n[More]\n  inside\n"
    made = page.table([], {"a": "A"})
    assert str(made) == "| A |\n| --- |" and made._repr_html_().startswith("<table")


def test_a_tables_cells_carry_their_heading_for_phones_and_nothing_in_them_is_taken_for_html():
    made = page.table([{"a": "x < y & **bold**"}], {"a": 'what "it" is'}).html
    assert '<td data-label="what &quot;it&quot; is">x &lt; y &amp; <strong>bold</strong></td>' in made


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("a `b*c*d` e", "a <code>b*c*d</code> e"),
        ("**one** *two* 3*4*5", "<strong>one</strong> <em>two</em> 3*4*5"),
        ("[x](#id) [y](a.html#b)", '<a href="#id">x</a> <a href="a.html#b">y</a>'),
        ("[x](javascript:y)", "[x](javascript:y)"),
        ("<script>", "&lt;script&gt;"),
        ("a<br>b", "a<br>b"),
    ],
)
def test_sentences_keep_their_markdown_and_no_foreign_html(text, made):
    assert page.inline(text) == made


def test_a_figure_has_its_alternative_text_and_its_caption():
    with plots.captured() as pictures, plots.figure() as (_, ax):
        ax.plot([1, 2])
    assert len(pictures) == 1 and pictures[0].startswith(b"\x89PNG")
    made = page.figure(pictures[0], 'a "line"', "It **rises**.")
    assert (
        'alt="a &quot;line&quot;"' in made.html and "<figcaption>It <strong>rises</strong>.</figcaption>" in made.html
    )
    assert made.text == "Figure: It **rises**."


def test_the_source_of_a_function_is_shown_folded_as_it_runs():
    made = page.source(page.trend)
    assert "def" in made.html and "estimate.low" in made.html.replace("</span>", "").replace(
        '<span class="o">', ""
    ).replace('<span class="n">', "")
    assert made.html.startswith("<details") and "`trend`" in made.text


@pytest.mark.parametrize(("low", "high", "word"), [(0.1, 0.3, "rises"), (-0.3, -0.1, "falls"), (-0.1, 0.1, "stays")])
def test_a_trend_is_named_only_where_the_interval_leaves_zero_out(low, high, word):
    estimate = Estimate((low + high) / 2, low, high, 3, 0.95, 0.1, "t")
    assert page.trend(estimate, "rises", "falls", "stays") == word


def test_an_exact_zero_is_flat():
    assert page.trend(exact(0.0), "rises", "falls", "stays") == "stays"


def test_a_change_is_told_without_a_second_minus_and_names_are_listed():
    words = "raises it by", "lowers it by", "does not clearly change it"
    told = [page.change(Estimate(m, m - 1, m + 1, 3, 0.95, 1.0, "t", "ms"), *words) for m in (3, -3, 0)]
    assert told == [
        "raises it by 3.0 [2.0, 4.0] ms (n=3)",
        "lowers it by 3.0 [2.0, 4.0] ms (n=3)",
        "does not clearly change it: 0.0 [-1.0, 1.0] ms (n=3)",
    ]
    assert [page.listed(n) for n in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["none", "a", "a and b", "a, b and c"]
