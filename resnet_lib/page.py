"""What a chapter prints: sentences with measured numbers, tables, verdicts; in Jupyter, papermill or a plain script."""

from collections.abc import Callable, Sequence


class Markdown:
    """Text that a notebook renders and a script prints."""

    def __init__(self, text: str):
        self.text = text

    def _repr_markdown_(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return self.text


def say(text: str) -> None:
    """Show Markdown. Numbers belong in it only through an f-string, so that text and data cannot disagree."""
    shown = Markdown(text)
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        print(text)
        return
    if get_ipython() is None:
        print(text)
    else:
        display(shown)


def caption(text: str) -> None:
    """The line under a figure that states its finding, computed from the same rows as the figure."""
    say(f"*Figure.* {text}")


def trend(estimate, up: str, down: str, flat: str) -> str:
    """The word for a difference: `up` or `down` where its interval leaves zero out, else `flat`."""
    return up if estimate.low > 0 else down if estimate.high < 0 else flat


def table(rows: Sequence[dict], columns: dict[str, str | tuple[str, str | Callable]]) -> Markdown:
    """Rows as a Markdown table.

    Args:
        columns: key → heading, or key → (heading, format): a format spec such as ".1%" or a function of the value.
    """
    heads, formats = [], []
    for column in columns.values():
        heading, spec = (column, "") if isinstance(column, str) else column
        heads.append(heading)
        formats.append(spec)
    lines = ["| " + " | ".join(map(_escaped, heads)) + " |", "|" + " --- |" * len(heads)]
    for row in rows:
        cells = [_cell(row.get(key), spec) for key, spec in zip(columns, formats, strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    return Markdown("\n".join(lines))


def _cell(value: object, spec: str | Callable) -> str:
    if value is None:
        return "–"
    return _escaped(spec(value) if callable(spec) else format(value, spec) if spec else value)


def _escaped(value: object) -> str:
    """Without what would end a cell or a row."""
    return " ".join(str(value).splitlines()).replace("|", "\\|")
