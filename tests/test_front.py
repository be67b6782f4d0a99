"""The landing page, the ledger's table and README's picture show every claim as the records judge it."""

import csv
import json
import xml.etree.ElementTree as ElementTree

import pytest
from bs4 import BeautifulSoup

from resnet_lib import claims, ledger
from resnet_lib.stats import Estimate, exact
from tools import front, render


@pytest.fixture(scope="module")
def rows():
    return ledger.rows()


def rule(direction="greater", bound=0.02, unit="accuracy"):
    return claims.Test("run/effect", "main", "an effect", "with it", direction, bound, unit, 0.95, "2026-12-01")


@pytest.mark.parametrize(
    ("test", "span", "low", "high", "bound"),
    [
        (rule(), (0.02, 0.06), 1, 3, 1),
        (rule(bound=-0.01), (-0.02, 0.01), -2, 1, -1),  # a loss that is allowed
        (rule("less", 0.05), (0.05, 0.1), -2, -1, 1),  # too much: on the other side of none
        (rule("greater", 1.5, "times"), (1.0, 2.0), 0, 2, 1),  # a ratio of one is no effect
    ],
)
def test_an_interval_is_drawn_in_units_of_its_bound_on_the_claims_side(test, span, low, high, bound):
    bar = ledger._bar(test, Estimate(sum(span) / 2, *span, 5, 0.95, 0.01, "t", test.unit))
    assert (bar["low"], bar["high"], bar["bound"]) == pytest.approx((low, high, bound))


def test_a_small_picture_cuts_what_is_far_away_and_shows_what_has_no_width():
    far = ledger._bar(rule(), Estimate(5, 4, 6, 5, 0.95, 0.1, "t", "accuracy"))
    point = ledger._bar(rule("greater", 1, ""), exact(1.0))
    drawn = BeautifulSoup(ledger.forest([far, point], width=60, reach=3), "html.parser")
    ends = [(float(line["x1"]), float(line["x2"])) for line in drawn.select("line.holds")]
    assert ends == [(55, 60), (37.5, 42.5)]
    assert "with it: 1 (exact)" in drawn.svg["aria-label"]


def test_the_table_has_a_line_a_claim_that_opens_to_its_numbers(rows):
    table = BeautifulSoup(ledger.table(rows).html, "html.parser")
    lines = table.select("tbody tr")
    assert [line["id"] for line in lines] == [f"row-{row['id']}" for row in rows]
    for line, row in zip(lines, rows, strict=True):
        assert line.select_one(".verdict").text == row["verdict"]
        assert len(line.select("details li")) == len(row["effects"])
        assert len({len(line.select("td")), len(table.select("th"))}) == 1


def test_every_claim_is_a_square_that_says_its_verdict_and_leads_to_it(rows):
    squares = BeautifulSoup(front.strip(rows), "html.parser").select("a.verdict-square")
    assert len(squares) == len(rows)
    for row in rows:
        (own,) = [one for one in squares if one["data-told"].startswith(row["claim"])]
        assert f"{row['verdict'].capitalize()}: {row['because']}" in own["aria-label"]
        assert own.get("href") == (f"chapters/{row['chapter']}.html#{row['id']}" if row["effects"] else None)
        assert own.has_attr("href") or own["tabindex"] == "0", "the keyboard reaches it"


def test_the_picture_of_the_readme_is_well_formed_and_counts_like_the_ledger(rows):
    space = "{http://www.w3.org/2000/svg}"
    picture = ElementTree.fromstring(front.picture(rows))
    drawn = [one.get("fill") for one in picture.iter(f"{space}rect") if one.find(f"{space}title") is not None]
    for word, colour in front.COLOURS.items():
        assert drawn.count(colour) == sum(row["verdict"] == word for row in rows)
    assert picture.find(f"{space}title").text == front.counts(rows)


def test_all_tests_can_be_downloaded_as_two_tables(tmp_path, rows):
    front.write_tests(tmp_path, rows)
    told = json.loads((tmp_path / "ledger.json").read_text("utf-8"))
    with open(tmp_path / "ledger.csv", encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(told) == len(lines) == sum(len(claim.tests) for claim in claims.load().values())
    for one, line in zip(told, lines, strict=True):
        assert {name: str(value) for name, value in one.items()} == line
    measured = [one for one in told if one["outcome"] != "not tested"]
    assert measured and all(one["low"] <= one["mean"] <= one["high"] for one in measured)


def test_a_page_gets_the_front_only_where_it_asks_for_it(rows):
    assert render.with_front("# A page\n", rows) == "# A page\n"
    made = BeautifulSoup(render.with_front(f"# A page\n\n{render.FRONT}\n", rows), "html.parser")
    findings = made.select(".findings figure")
    assert len(findings) == 3 and len(made.select(".verdict-square")) > 40
    for one in findings:
        assert one.img["alt"] and one.strong.text.endswith(".") and "(n=" in one.figcaption.text and one.a["href"]
