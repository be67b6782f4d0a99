"""The pages: strict about every warning, complete, with working links, and nothing loaded from elsewhere."""

import shutil
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.conftest import ROOT, cell, write_notebook
from tools import chapters, notebooks, render

HTML = ROOT / "_build" / "html"


@pytest.fixture
def page(tmp_path):
    """A function that writes a one-chapter book with an executed chapter, and returns its folder."""

    def make(prose="# One\n", intro="# A book\n"):
        root = tmp_path / "book"
        source = [
            cell(prose, "title", kind="markdown"),
            cell("x: int = 1  # n", "parameters", "parameters"),
            cell("print(x)", "work"),
        ]
        write_notebook(root / "chapters" / "one.ipynb", source)
        injected = cell("# Parameters\nx = 2\n", "f00", "injected-parameters")
        ran = [cell("# As it was\n", "title", kind="markdown"), source[1], injected, cell("print(x)", "work")]
        ran[-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": ["2\n"]}]
        write_notebook(root / "_build" / "executed" / "smoke" / "one.ipynb", ran)
        (root / "intro.md").write_text(intro)
        (root / "_toc.yml").write_text("format: jb-book\nroot: intro\nchapters:\n  - file: chapters/one\n")
        shutil.copy(ROOT / "_config.yml", root)
        return root

    return make


@pytest.fixture
def no_npm(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")


def test_prose_is_shown_as_it_stands_with_the_outputs_of_the_execution(page):
    root = page("# New words\n")
    shown = render.with_outputs(root / "chapters" / "one.ipynb", root / "_build" / "executed" / "smoke" / "one.ipynb")
    assert [one["source"] for one in shown["cells"]] == [
        "# New words\n",
        "x: int = 1  # n",
        "# Parameters\nx = 2\n",
        "print(x)",
    ]
    assert shown["cells"][-1]["outputs"][0]["text"] == ["2\n"]


def test_outputs_of_other_code_are_refused(page):
    root = page()
    source = root / "chapters" / "one.ipynb"
    source.write_text(source.read_text().replace("print(x)", "print(-x)"))
    with pytest.raises(ValueError, match="has changed since it was executed"):
        render.with_outputs(source, root / "_build" / "executed" / "smoke" / "one.ipynb")
    with pytest.raises(FileNotFoundError, match="has not been executed"):
        render.with_outputs(source, root / "one.ipynb")


def test_without_npm_the_book_is_rendered_with_a_warning_and_only_when_something_changed(page, no_npm, capfd):
    root = page()
    assert render.render(root, "smoke") == 0
    printed = capfd.readouterr()
    assert "WARNING: no MathJax from npm" in printed.err
    assert "2 pages rendered" in printed.out
    assert render.render(root, "smoke") == 0
    assert "2 pages unchanged" in capfd.readouterr().out
    (root / "intro.md").write_text("# A book\n\nSee [nothing](nowhere.md) and {ref}`missing`.\n")
    before = (root / "_build" / "html" / "intro.html").read_text()
    assert render.render(root, "smoke") == 1
    refused = capfd.readouterr().err
    assert "nowhere.md" in refused
    assert "missing" in refused
    assert (root / "_build" / "html" / "intro.html").read_text() == before


@cache
def soup(path: Path):
    from bs4 import BeautifulSoup

    return BeautifulSoup(path.read_text("utf-8"), "html.parser")


@cache
def anchors(path: Path) -> set[str]:
    return {tag.get(key) for tag in soup(path).find_all(True) for key in ("id", "name") if tag.get(key)}


@pytest.fixture
def pages():
    if not HTML.is_dir():
        pytest.fail("there are no pages: make book")
    return sorted(path for path in HTML.rglob("*.html") if "_static" not in path.parts and "mathjax" not in path.parts)


@pytest.mark.book
def test_every_entry_of_the_contents_has_its_page(pages):
    wanted = {HTML / path.relative_to(ROOT).with_suffix(".html") for path in chapters.toc_pages(ROOT)}
    assert wanted <= set(pages)


@pytest.mark.book
def test_every_internal_link_and_anchor_leads_somewhere(pages):
    dead = []
    for page in pages:
        for tag in soup(page).find_all(True):
            for key in ("href", "src"):
                address = urlsplit(tag.get(key) or "")
                if address.scheme or address.netloc or not (address.path or address.fragment):
                    continue
                target = (page.parent / unquote(address.path)).resolve() if address.path else page
                target = target / "index.html" if target.is_dir() else target
                known = target.is_file() and (
                    not address.fragment or target.suffix != ".html" or unquote(address.fragment) in anchors(target)
                )
                if not known:
                    dead.append(f"{page.relative_to(HTML)}: {tag.get(key)}")
    assert dead == []


@pytest.mark.book
def test_no_page_loads_anything_from_another_host(pages):
    loading = [("script", "src"), ("img", "src"), ("iframe", "src"), ("source", "src"), ("link", "href")]
    loaded = {tag.get(key) for page in pages for name, key in loading for tag in soup(page).find_all(name)}
    external = {address for address in loaded if address and urlsplit(address).netloc}
    if not (HTML / "mathjax").is_dir():  # rendered where there is no npm
        external = {address for address in external if "mathjax" not in address}
    assert external == set()


@pytest.mark.book
def test_every_picture_has_a_text_for_those_who_cannot_see_it_and_a_caption(pages):
    bare = [
        f"{page.name}: {tag.get('src')}"
        for page in pages
        for tag in soup(page).select("article img")
        if not (tag.get("alt") or "").strip() or tag.get("alt").endswith((".png", ".svg"))
    ]
    assert bare == []
    loose = []
    for page in pages:
        for box in soup(page).select("article .cell"):
            drawn = [tag for tag in box.select(".cell_output img") if not tag.find_parent("figure", "measured")]
            captions = box.select(".cell_output p.caption")
            if len(drawn) != len(captions):
                loose.append(f"{page.name}: {len(captions)} captions in {box.get_text()[:80]!r}")
        for figure in soup(page).select("figure.measured"):
            following = figure.find_next_sibling()  # pictures that belong together share the caption of the last
            if not figure.figcaption.get_text().strip() and not (following and following.name == "figure"):
                loose.append(f"{page.name}: no caption under {figure.img['alt'][:80]!r}")
    assert loose == []


@pytest.mark.book
def test_no_page_shows_a_traceback_or_unrendered_markup(pages):
    for page in pages:
        assert not soup(page).select(".output.traceback"), page
        article = soup(page).select_one("article")
        for code in article.select("pre, code, .math") if article else []:
            code.decompose()
        text = article.get_text() if article else ""
        assert not any(mark in text for mark in ("{glue", "{numref}", "{cite", "{eq}", "| --- |", "**")), page
    soup.cache_clear()


@pytest.mark.book
def test_the_colab_button_of_a_chapter_opens_that_notebook(pages):
    address = notebooks.repository(ROOT).removeprefix("https://github.com/")
    for path in chapters.toc_chapters(ROOT):
        name = path.relative_to(ROOT)
        text = (HTML / name.with_suffix(".html")).read_text("utf-8")
        assert f"https://colab.research.google.com/github/{address}/blob/main/{name}" in text
