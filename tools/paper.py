"""Print the rendered pages into one PDF, with a table of contents that a reader's program shows beside it.

python -m tools.paper
"""

import html
import io
import os
import re
import shutil
import sys
from pathlib import Path

from tools.chapters import ROOT, command, toc_pages

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
STYLE = """
.bd-header-article, .bd-sidebar-primary, .bd-sidebar-secondary, .prev-next-footer, .bd-footer, .headerlink,
.toggle-hidden, button, details:not([open]), .ledger-filters { display: none !important; }
#print-main-content { display: none !important; }
body { font-size: 10pt; }
h1, h2, h3 { break-after: avoid-page; break-inside: avoid; }
p { orphans: 3; widows: 3; }
h1 { font-size: 20pt; }
figure, pre, tr, div.highlight, .cell_input, .cell_output img { break-inside: avoid; }
.bd-article .cell_output img { max-width: 11cm; }
pre { white-space: pre-wrap !important; overflow: visible !important; }
"""
# What leads to another file of the build cannot be followed on paper, so it is no link there.
PREPARE = """() => {
    for (const fold of document.querySelectorAll("details.sd-dropdown, details.toggle-details")) fold.remove();
    for (const link of document.querySelectorAll("a[href]"))
        if (!/^https?:/.test(link.getAttribute("href"))) link.removeAttribute("href");
}"""
FOOTER = (
    '<div style="font-size:7pt;color:#555;width:100%;text-align:center">{title}, <span class="pageNumber"></span></div>'
)


def printed(browser, page: Path) -> bytes:
    """One page as PDF, A4, when its formulas are drawn."""
    tab = browser.new_page(color_scheme="light")
    try:
        tab.goto(page.as_uri(), wait_until="load")
        tab.wait_for_function("() => !window.MathJax || !MathJax.startup || MathJax.startup.promise.then(() => true)")
        tab.evaluate(PREPARE)
        tab.add_style_tag(content=STYLE)
        margin = {"top": "16mm", "bottom": "18mm", "left": "16mm", "right": "16mm"}
        footer = FOOTER.format(title=tab.title().split(" — ")[0])
        return tab.pdf(
            format="A4", margin=margin, print_background=True, display_header_footer=True, tagged=True,
            header_template="<span></span>", footer_template=footer,
        )  # fmt: skip
    finally:
        tab.close()


def title_of(page: Path) -> str:
    found = re.search(r"<title>(.*?)(?: (?:&#8212;|—) .*)?</title>", page.read_text("utf-8"), re.S)
    return html.unescape(found.group(1)).strip() if found else page.stem


def bound(parts: list[tuple[str, bytes]]) -> bytes:
    """Several PDFs as one, with an entry in the outline for each title."""
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter()
    for title, content in parts:
        first = len(writer.pages)
        writer.append(PdfReader(io.BytesIO(content)), import_outline=False)
        writer.add_outline_item(title=title, page_number=first)
    writer.add_metadata({"/Title": parts[0][0]})
    whole = io.BytesIO()
    writer.write(whole)
    return whole.getvalue()


def paper(root: Path) -> int:
    from playwright.sync_api import sync_playwright

    folder, target = root / "_build" / "html", root / "_build" / "book.pdf"
    pages = [folder / page.relative_to(root).with_suffix(".html") for page in toc_pages(root)]
    if missing := [page.name for page in pages if not page.is_file()]:
        print(f"error: {', '.join(missing)} not rendered yet: run make book", file=sys.stderr)
        return 1
    chromium = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if not chromium:
        print(f"error: printing needs a browser, one of {', '.join(BROWSERS)}: install Chromium", file=sys.stderr)
        return 1
    parts = []
    with sync_playwright() as made:
        browser = made.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for number, page in enumerate(pages, 1):
            print(f"page {number} of {len(pages)}: {page.stem}", flush=True)
            parts.append((title_of(page), printed(browser, page)))
        browser.close()
    temporary = target.with_suffix(".pdf.tmp")  # an interrupted run leaves the book before it as it was
    temporary.write_bytes(bound(parts))
    os.replace(temporary, target)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
    return 0


def main(arguments: list[str] | None = None) -> int:
    parser = command("tools.paper", __doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="the book's folder (default: this checkout)")
    options = parser.parse_args(arguments)
    return paper(options.root.resolve())


if __name__ == "__main__":
    sys.exit(main())
