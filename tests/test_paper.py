"""Pages on paper."""

import io
import shutil

import pytest
from pypdf import PdfReader, PdfWriter

from tools import paper


def pdf(pages):
    writer, made = PdfWriter(), io.BytesIO()
    for _ in range(pages):
        writer.add_blank_page(100, 100)
    writer.write(made)
    return made.getvalue()


def test_parts_are_bound_in_order_and_the_outline_leads_to_their_first_pages():
    whole = PdfReader(io.BytesIO(paper.bound([("One & two", pdf(2)), ("Three", pdf(1))])))
    assert len(whole.pages) == 3 and whole.metadata.title == "One & two"
    assert [(one.title, whole.get_destination_page_number(one)) for one in whole.outline] == [
        ("One & two", 0),
        ("Three", 2),
    ]


def test_what_is_not_rendered_is_named(tmp_path, capsys):
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: intro\n")
    (tmp_path / "intro.md").write_text("# A\n")
    assert paper.paper(tmp_path) == 1
    assert "intro.html" in capsys.readouterr().err and not (tmp_path / "_build").exists()


@pytest.mark.skipif(not any(map(shutil.which, paper.BROWSERS)), reason="no Chromium on this machine")
def test_a_page_is_printed_without_its_folds_and_leads_to_no_file(tmp_path):
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: intro\n")
    (tmp_path / "intro.md").write_text("# A\n")
    folder = tmp_path / "_build" / "html"
    folder.mkdir(parents=True)
    (folder / "intro.html").write_text(
        "<title>Nets &amp; more — book</title><h1>Nets</h1><a href='other.html'>inside</a>"
        "<a href='https://arxiv.org/abs/1512.03385'>outside</a><details><summary>fold</summary>hidden</details>",
        "utf-8",
    )
    assert paper.paper(tmp_path) == 0
    book = PdfReader(tmp_path / "_build" / "book.pdf")
    text = book.pages[0].extract_text()
    assert "Nets" in text and "outside" in text and "hidden" not in text and "fold" not in text
    assert [one.title for one in book.outline] == ["Nets & more"]
    links = [note.get_object()["/A"]["/URI"] for note in book.pages[0].get("/Annots", [])]
    assert links == ["https://arxiv.org/abs/1512.03385"]
    assert not list((tmp_path / "_build").glob("*.tmp"))
