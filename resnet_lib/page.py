"""What a chapter prints: sentences with measured numbers, tables, figures, folds; in Jupyter, papermill or a script."""

import base64
import html
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace


class Markdown:
    """Text that a notebook renders and a script prints."""

    def __init__(self, text: str):
        self.text = text

    def _repr_markdown_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Block:
    """A piece of a page: HTML for a notebook, plain text for a script."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True, repr=False)
class Table(Block):
    """A table; on a phone each row becomes a card (see _static/book.css), for which cells carry their heading."""

    rows: int = 0


def show(thing: object) -> None:
    """Display in a notebook, print in a script."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        print(thing)
        return
    if get_ipython() is None:
        print(thing)
    else:
        display(thing)


def say(text: str) -> None:
    """Show Markdown. Numbers belong in it only through an f-string, so that text and data cannot disagree."""
    show(Markdown(text))


def caption(text: str) -> None:
    """The line under a figure that states its finding, computed from the same rows as the figure."""
    show(Block(f'<p class="caption">{inline(text)}</p>', f"Figure: {text}"))


def trend(estimate, up: str, down: str, flat: str) -> str:
    """The word for a difference: `up` or `down` where its interval leaves zero out, else `flat`."""
    return up if estimate.low > 0 else down if estimate.high < 0 else flat


def change(estimate, up: str, down: str, flat: str) -> str:
    """A difference in words: "raises it by 3", "lowers it by 3" without a second minus, or "is not clear: 3"."""
    if estimate.low > 0:
        return f"{up} {estimate}"
    if estimate.high < 0:
        return f"{down} {replace(estimate, mean=-estimate.mean, low=-estimate.high, high=-estimate.low)}"
    return f"{flat}: {estimate}"


def listed(names: Sequence[str], none: str = "none") -> str:
    """Names as a sentence lists them: "a, b and c"."""
    *before, last = names or [none]
    return f"{', '.join(before)} and {last}" if before else last


def table(rows: Sequence[dict], columns: dict[str, str | tuple[str, str | Callable]]) -> Table:
    """Rows as a table.

    Args:
        columns: key → heading, or key → (heading, format): a format spec such as ".1%" or a function of the value.
    """
    heads, formats = [], []
    for column in columns.values():
        heading, spec = (column, "") if isinstance(column, str) else column
        heads.append(str(heading))
        formats.append(spec)
    lines = [[_cell(row.get(key), spec) for key, spec in zip(columns, formats, strict=True)] for row in rows]
    text = ["| " + " | ".join(map(_escaped, heads)) + " |", "|" + " --- |" * len(heads)]
    text += ["| " + " | ".join(map(_escaped, line)) + " |" for line in lines]
    head = "".join(f"<th>{inline(heading)}</th>" for heading in heads)
    body = "".join(
        "<tr>"
        + "".join(
            f'<td data-label="{html.escape(heading)}">{inline(value)}</td>'
            for heading, value in zip(heads, line, strict=True)
        )
        + "</tr>"
        for line in lines
    )
    page = f'<table class="measured"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return Table(page, "\n".join(text), len(lines))


def figure(png: bytes, alt: str, words: str) -> Block:
    """A picture with its caption, which states the finding; `alt` says what is drawn to those who can't see it."""
    source, width = (
        base64.b64encode(png).decode(),
        int.from_bytes(png[16:20], "big"),
    )  # a PNG's first chunk says its width
    kind = ' class="wide"' if width > 1250 else ""
    page = (
        f'<figure class="measured"><img{kind} src="data:image/png;base64,{source}" alt="{html.escape(alt)}">'
        f"<figcaption>{inline(words)}</figcaption></figure>"
    )
    return Block(page, f"Figure: {words}" if words else "")


def paragraph(text: str) -> Block:
    """Sentences, a line each."""
    return Block("".join(f"<p>{inline(part)}</p>" for part in text.split("\n\n")), text)


def stack(*parts: Block) -> Block:
    return Block("\n".join(part.html for part in parts), "\n".join(part.text for part in parts))


def fold(summary: str, *parts: Block) -> Block:
    """Parts that a reader opens with a click on the summary; a script prints them under it."""
    inside = stack(*parts)
    page = f'<details class="measured"><summary>{inline(summary)}</summary>\n{inside.html}\n</details>'
    return Block(page, f"[{summary}]\n{textwrap.indent(inside.text, '  ')}")


def source(*functions: Callable) -> Block:
    """The code of functions as it runs, folded."""
    codes = [textwrap.dedent(inspect.getsource(inspect.unwrap(function))) for function in functions]
    names = ", ".join(f"`{function.__name__}`" for function in functions)
    return fold(f"The code that ran: {names}", Block(_highlighted("\n\n".join(codes)), ""))


def _highlighted(code: str) -> str:
    try:
        from pygments import highlight
        from pygments.formatters import HtmlFormatter
        from pygments.lexers import PythonLexer
    except ImportError:
        return f"<pre>{html.escape(code)}</pre>"
    return highlight(code, PythonLexer(), HtmlFormatter(cssclass="highlight"))


def inline(text: object) -> str:
    """Plain text as HTML, with **strong**, *emphasis*, `code`, [links](address) and <br> from Markdown."""
    made = html.escape(str(text), quote=False).replace("&lt;br&gt;", "<br>")
    codes = re.split(r"`([^`]+)`", made)  # every second one stood between backticks
    return "".join(f"<code>{one}</code>" if place % 2 else _emphasised(one) for place, one in enumerate(codes))


def _emphasised(text: str) -> str:
    made = re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", text)
    made = re.sub(r"(?<![\w*])\*([^*\s][^*]*)\*(?![\w*])", r"<em>\1</em>", made)
    return re.sub(r"\[([^\]]+)\]\((#[\w-]+|[\w./-]+\.html(?:#[\w-]+)?|https://[^)\s]+)\)", r'<a href="\2">\1</a>', made)


def _cell(value: object, spec: str | Callable) -> str:
    if value is None:
        return "–"
    return str(spec(value) if callable(spec) else format(value, spec) if spec else value)


def _escaped(value: object) -> str:
    """Without what would end a cell or a row."""
    return " ".join(str(value).splitlines()).replace("|", "\\|")
