"""Where several processes cannot train together, every experiment says why, and measures nothing."""

from collections.abc import Callable

from resnet_lib import page, parallel, plots


def skipped(rows) -> str:
    """Why nothing was measured; "" where something was."""
    return next((row["skipped"] for row in rows if row.get("skipped")), "")


def or_skipped(*whats: str) -> list[dict]:
    """The rows in place of a measurement that cannot be made here, one for each of `whats`; [] where it can."""
    reason = parallel.why_not()
    return [{"what": what, "skipped": reason} for what in whats] if reason else []


def estimates(function: Callable) -> Callable:
    """The estimates, or none where nothing was measured."""
    return lambda rows, s: {} if skipped(rows) else function(rows, s)


def finding(function: Callable) -> Callable:
    return lambda rows, s, e: f"Not measured: {skipped(rows)}." if skipped(rows) else function(rows, s, e)


def table(function: Callable) -> Callable:
    def made(rows, s):
        return page.table(rows, {"skipped": "not measured"}) if skipped(rows) else function(rows, s)

    return made


def figure(function: Callable) -> Callable:
    def made(rows, s):
        if not skipped(rows):
            return function(rows, s)
        with plots.figure(height=0.8) as (_, ax):
            ax.axis("off")
            ax.text(0.5, 0.5, "not measured here", ha="center", va="center")
        return f"Not measured: {skipped(rows)}."

    return made


def notes(experiment: str, measures: tuple[str, ...], more: Callable | None = None) -> Callable:
    """Why each measure that a rule asks for is missing, in the form of `Experiment.notes`."""

    def made(rows, s):
        if reason := skipped(rows):
            return [f"{experiment}/{name}: {reason}" for name in measures]
        return more(rows, s) if more else []

    return made
