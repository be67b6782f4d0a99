"""The built pages in a browser: at three widths, light and dark, as readers with a phone or a keyboard meet them."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

HTML = ROOT / "_build" / "html"
WIDTHS = (390, 768, 1280)
CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
MOST_BYTES = 2_000_000  # of a page with all that it loads for itself: what the pages share is loaded once
SPILLS = """() => [...document.querySelectorAll("article *")].filter(one => {
    const box = one.getBoundingClientRect();
    for (let up = one; up; up = up.parentElement) if (getComputedStyle(up).overflowX !== "visible") return false;
    return box.width && box.right > innerWidth + 1 && !one.closest("mjx-container, .headerlink");
}).map(one => one.outerHTML.slice(0, 100))"""

AXE = "axe-core@4.14.1"  # the accessibility rules of WCAG 2, from the npm registry where there is one

pytestmark = [pytest.mark.book, pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine")]


def pages():
    return sorted(path.relative_to(HTML).as_posix() for path in HTML.glob("**/*.html") if "_static" not in path.parts)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as made:
        browser = made.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Open a page at a width and in a theme; what it asked for, and what it complained of."""
    opened = []

    def go(name, width=1280, theme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        opened.append(context)
        page, asked, said = context.new_page(), [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto((HTML / name).as_uri(), wait_until="load")
        page.wait_for_timeout(300)
        return page, asked, said

    yield go
    for context in opened:
        context.close()


def chapters():
    return [name for name in pages() if name.startswith(("chapters/", "intro"))]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_scrolls_sideways_complains_or_asks_another_host(visit, width, theme):
    assert chapters()
    for name in chapters():
        page, asked, said = visit(name, width, theme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (name, page.evaluate(SPILLS))
        assert said == [], name
        away = [url for url in asked if not url.startswith(("file:", "data:", "blob:"))]
        assert [url for url in away if "mathjax" not in url or (HTML / "mathjax").is_dir()] == [], name
        page.context.close()


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The source of axe-core."""
    folder = tmp_path_factory.mktemp("axe")
    if not shutil.which("npm"):
        pytest.skip("no npm, from which axe-core comes")
    if subprocess.run(["npm", "pack", AXE, "--silent"], cwd=folder, capture_output=True, timeout=120).returncode:
        pytest.skip("the npm registry gives no axe-core")
    with tarfile.open(next(folder.glob("*.tgz"))) as package:
        return package.extractfile("package/axe.min.js").read().decode()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_page_has_a_serious_fault_of_accessibility(visit, axe, theme):
    for name in chapters():
        page, _, _ = visit(name, theme=theme)
        page.evaluate(axe)
        found = page.evaluate("() => axe.run(document, {runOnly: ['wcag2a', 'wcag2aa']})")["violations"]
        grave = [(v["id"], v["nodes"][0]["html"][:120]) for v in found if v["impact"] in ("serious", "critical")]
        assert grave == [], name
        page.context.close()


def test_formulas_are_drawn_and_search_finds_a_word(visit):
    page, _, _ = visit("chapters/batch_norm.html")
    if (HTML / "mathjax").is_dir():
        page.wait_for_selector("mjx-container", timeout=10_000)
    page, _, _ = visit("search.html")
    page.goto((HTML / "search.html").as_uri() + "?q=Tensor+Core")
    page.wait_for_selector("#search-results li", timeout=10_000)
    assert "tensor" in page.inner_text("#search-results").lower()


def test_the_first_screen_of_the_landing_page_has_claims_findings_and_how_to_run(visit):
    page, _, _ = visit("intro.html")
    bottom = page.evaluate("""() => Math.max(...[...document.querySelectorAll(".findings figure, .verdict-strip")]
        .map(one => one.getBoundingClientRect().bottom))""")
    assert bottom <= 900
    square = page.locator("a.verdict-square[href]").first
    square.focus()
    told = square.evaluate("one => getComputedStyle(one, '::after').content")
    assert "Residual" in told or ":" in told
    square.click()
    assert "chapters/" in page.url and "#" in page.url


def test_the_ledger_is_short_sorts_filters_and_opens(visit):
    page, _, _ = visit("chapters/ledger.html")
    assert page.evaluate("document.documentElement.scrollHeight") <= 3_500
    lines = page.locator("table.ledger tbody tr")
    count = lines.count()
    page.select_option(".ledger-filters select >> nth=0", "no")
    shown = [line for line in lines.all() if line.is_visible()]
    assert 0 < len(shown) < count and {one.locator(".verdict").inner_text() for one in shown} == {"no"}
    page.select_option(".ledger-filters select >> nth=0", "")
    page.get_by_role("columnheader", name="chapter").press("Enter")
    found = page.eval_on_selector_all(
        "table.ledger td[data-label=chapter]", "cells => cells.map(one => one.textContent)"
    )
    assert found == sorted(found)
    page.locator("table.ledger summary").first.click()
    assert page.locator("table.ledger details[open] li").first.is_visible()


def test_every_link_to_a_verdict_shows_it(visit):
    page, _, _ = visit("intro.html")
    links = page.eval_on_selector_all("a.verdict-square[href]", "links => links.map(one => one.href)")
    for name, target in {tuple(link.split("/")[-1].split("#")) for link in links}:
        assert f'id="{target}"' in (HTML / "chapters" / name).read_text("utf-8"), target


def test_no_page_weighs_more_than_a_phone_should_load(visit):
    for name in chapters():
        _, asked, _ = visit(name)
        files = {Path(url.split("?")[0].removeprefix("file://")) for url in asked if url.startswith("file:")}
        own = {file.name: file.stat().st_size for file in files if not {"_static", "mathjax"} & set(file.parts)}
        assert sum(own.values()) <= MOST_BYTES, (name, own)
