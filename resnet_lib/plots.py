"""Figures: f(ax, rows, …) → ax. One palette, every seed visible, labelled units; never trains, never loads."""

import contextlib
import contextvars
import io
import math
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

# Okabe & Ito's colours, told apart by readers with any colour vision; each thing keeps its colour in every chapter.
BLUE, ORANGE, GREEN, PINK, SKY, YELLOW = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00"
PALETTE = (BLUE, ORANGE, GREEN, PINK, SKY, YELLOW)
COLOURS = {"residual": BLUE, "plain": ORANGE}
MARKERS = ("o", "s", "^", "D", "v", "P")  # shape as well as colour

STYLE = {
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "figure.dpi": 100,
    "savefig.dpi": 200,  # two dots for each pixel of a page, so that lines are sharp
    "font.size": 12,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "figure.constrained_layout.use": True,
}


_captured: contextvars.ContextVar[list | None] = contextvars.ContextVar("captured", default=None)


@contextlib.contextmanager
def captured() -> Iterator[list[bytes]]:
    """Inside the block figures are not shown but kept, each as the bytes of a PNG."""
    pictures: list[bytes] = []
    token = _captured.set(pictures)
    try:
        yield pictures
    finally:
        _captured.reset(token)


@contextlib.contextmanager
def figure(rows: int = 1, columns: int = 1, *, height: float = 3.5, width: float = 6.0, **options) -> Iterator:
    """A figure in the book's style; it is shown (or captured) at the end of the block. Gives (figure, axes).

    Args: height, width: in inches; 6 wide fits the page and stays readable on a phone.
    """
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        made, axes = plt.subplots(rows, columns, figsize=(width, height), **options)
        try:
            yield made, axes
            pictures = _captured.get()
            if pictures is not None:
                pictures.append(_png(made))
            elif _in_notebook():
                from IPython.display import Image, display

                display(Image(_png(made), retina=True))
            else:
                plt.show()
        finally:
            plt.close(made)


def _png(figure) -> bytes:
    """The figure's PNG; in 128 colours, which is a third of the bytes, where it shows lines and no pictures."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    if any(ax.images for ax in figure.axes):
        return file.getvalue()
    from PIL import Image

    file.seek(0)
    small, drawn = io.BytesIO(), Image.open(file).convert("RGB")
    drawn.quantize(128, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:
        return False
    return hasattr(get_ipython(), "kernel")


def _groups(rows: Sequence[dict], by: str) -> dict[object, list[dict]]:
    groups: dict[object, list[dict]] = {}
    for row in rows:
        groups.setdefault(row[by], []).append(row)
    return groups


def _look(name: object, index: int, colours: dict | None) -> tuple[str, str]:
    """Colour and marker; what has a colour of its own has its marker too, whatever stands beside it."""
    own = colours or COLOURS
    index = list(own).index(name) if name in own else index
    return own.get(name, PALETTE[index % len(PALETTE)]), MARKERS[index % len(MARKERS)]


def hundredths(*axes) -> None:
    """Ticks of fractions read as percent or points: 0.05 → 5. Args: axes: as ax.xaxis."""
    for axis in axes:
        axis.set_major_formatter(lambda value, _: f"{round(100 * value, 6):g}".replace("-", "−"))


def log_axis(axis, values) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, or at powers of ten alone where there would be many."""
    values = [v for v in values if 0 < v < math.inf]
    if not values:
        return
    low, high = (math.floor(math.log10(v)) for v in (min(values), max(values)))
    leading = (1, 2, 5) if high - low < 3 else (1,)
    ticks = [m * 10.0**e for e in range(low, high + 2) for m in leading]
    near = [t for t in ticks if min(values) / 1.5 < t < max(values) * 1.5]
    axis.set_ticks(near, [f"{t:,g}" for t in near])
    axis.set_ticks([], minor=True)


def lines(
    ax,
    rows: Sequence[dict],
    x: str,
    y: str,
    *,
    by: str,
    seed: str = "seed",
    colours: dict | None = None,
    label: Callable[[object], str] = str,
    marker: bool = False,
    band: bool = False,
):
    """A thin line per seed and a thick one for their mean, for each group; x positions are those of all seeds.

    Args: band: in place of the thin lines the 95 % interval of the mean, where many of them would hide each other.
    """
    from resnet_lib.stats import interval

    for index, (name, group) in enumerate(_groups(rows, by).items()):
        colour, shape = _look(name, index, colours)
        points: dict[float, list[float]] = {}
        for one in _groups(group, seed).values():
            one = sorted(one, key=lambda row: row[x])
            if not band:
                ax.plot([r[x] for r in one], [r[y] for r in one], color=colour, linewidth=0.8, alpha=0.5)
            for row in one:
                points.setdefault(row[x], []).append(row[y])
        positions = sorted(points)
        means = [fmean(points[p]) for p in positions]
        ax.plot(positions, means, color=colour, marker=shape if marker else None, label=label(name))
        if band and all(len(points[p]) > 1 for p in positions):
            found = [interval(points[p]) for p in positions]
            ends = [e.low for e in found], [e.high for e in found]
            ax.fill_between(positions, *ends, color=colour, alpha=0.2, linewidth=0)
    return ax


def dots(
    ax,
    rows: Sequence[dict],
    x: str,
    y: str,
    *,
    by: str,
    colours: dict | None = None,
    label: Callable[[object], str] = str,
    offset: float = 0.0,
    join: bool = True,
):
    """A small dot per seed, a large one for the mean with its 95 % interval, at evenly spaced x categories.

    Args: offset: horizontal distance between groups, in categories, so that they do not hide each other.
    """
    from resnet_lib.stats import interval

    categories = list(dict.fromkeys(row[x] for row in rows))
    groups = _groups(rows, by)
    for index, (name, group) in enumerate(groups.items()):
        colour, shape = _look(name, index, colours)
        shift = (index - (len(groups) - 1) / 2) * offset
        centres, means, below, above = [], [], [], []
        for position, category in enumerate(categories):
            values = [row[y] for row in group if row[x] == category]
            if not values:
                continue
            ax.plot([position + shift] * len(values), values, "o", color=colour, alpha=0.45, markersize=4, mew=0)
            estimate = interval(values) if len(values) > 1 else None
            centres.append(position + shift)
            means.append(fmean(values))
            below.append(means[-1] - estimate.low if estimate else 0)
            above.append(estimate.high - means[-1] if estimate else 0)
        ax.errorbar(
            centres,
            means,
            yerr=(below, above),
            color=colour,
            marker=shape,
            capsize=3,
            linewidth=2 if join else 0,
            elinewidth=1.5,
            label=label(name),
        )
    ax.set_xticks(range(len(categories)), [str(c) for c in categories])
    return ax


def forest(ax, rows: Sequence[dict], label: str, estimate: str, *, bound: float | None = None, colour: str = BLUE):
    """A line a row, first on top: its label, its estimate as a dot with its interval, and a grey line at zero.

    Args: label, estimate: the columns that hold a name and a stats.Estimate; bound: of a rule, drawn dashed.
    """
    for place, row in enumerate(rows):
        found = row[estimate]
        ends = [[found.mean - found.low], [found.high - found.mean]]
        ax.errorbar([found.mean], [place], xerr=ends, fmt="o", color=colour, capsize=3, elinewidth=1.5)
    ax.axvline(0, color="grey", linewidth=1)
    if bound is not None:
        ax.axvline(bound, color="grey", linewidth=1, linestyle="--")
    ax.set_yticks(range(len(rows)), [str(row[label]) for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    return ax


def pictures(axes: Sequence, images, titles: Sequence[str] = ()):
    """One picture an axis, from (N, C, H, W) in [0, 1]; grey where there is one channel."""
    for index, (ax, image) in enumerate(zip(axes, images, strict=False)):
        picture = image.detach().float().clamp(0, 1).cpu().numpy()
        grey = len(picture) == 1
        ax.imshow(picture[0] if grey else picture.transpose(1, 2, 0), cmap="gray" if grey else None, vmin=0, vmax=1)
        ax.axis("off")
        if index < len(titles):
            ax.set_title(titles[index])
    return axes
