"""A figure shows every seed and the mean; drawing changes neither the rows nor matplotlib's settings."""

import copy

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from resnet_lib import plots  # noqa: E402
from resnet_lib.stats import interval  # noqa: E402

ROWS = [
    {"kind": kind, "depth": depth, "seed": seed, "error": depth / 100 + seed / 10 + (kind == "plain")}
    for kind in ("plain", "residual")
    for depth in (20, 8)
    for seed in range(3)
]


@pytest.fixture
def ax():
    figure, made = plt.subplots()
    yield made
    plt.close(figure)


def test_lines_show_each_seed_thin_and_the_mean_thick(ax):
    rows = copy.deepcopy(ROWS)
    assert plots.lines(ax, rows, "depth", "error", by="kind", label=str.upper) is ax
    assert rows == ROWS
    thin = [line for line in ax.lines if line.get_linewidth() < 1]
    thick = [line for line in ax.lines if line.get_linewidth() >= 1]
    assert len(thin) == 6 and [line.get_label() for line in thick] == ["PLAIN", "RESIDUAL"]
    assert [line.get_color() for line in thick] == [plots.ORANGE, plots.BLUE]
    x, y = thick[1].get_data()
    assert list(x) == [8, 20] and list(y) == pytest.approx([0.18, 0.3])
    assert list(thin[0].get_xdata()) == [8, 20]  # sorted, whatever the rows' order


def test_dots_show_every_seed_and_the_interval(ax):
    plots.dots(ax, ROWS, "depth", "error", by="kind", offset=0.2)
    assert [text.get_text() for text in ax.get_xticklabels()] == ["20", "8"]  # first seen first
    points = [line for line in ax.lines if line.get_linestyle() == "None" and len(line.get_xdata()) == 3]
    assert len(points) == 4
    assert sorted({round(line.get_xdata()[0], 6) for line in points}) == [-0.1, 0.1, 0.9, 1.1]
    bars = [container for container in ax.containers if container.has_yerr]
    (low, high) = bars[0].lines[2][0].get_segments()[0][:, 1]
    expected = interval([row["error"] for row in ROWS if row["kind"] == "plain" and row["depth"] == 20])
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_dots_take_a_single_seed_and_a_missing_group(ax):
    few = [row for row in ROWS if row["seed"] == 0 and (row["kind"], row["depth"]) != ("plain", 8)]
    plots.dots(ax, few, "depth", "error", by="kind")
    assert len(ax.containers) == 2


def test_a_figure_is_in_style_inside_the_block_only_and_closed_even_after_an_exception():
    before = dict(matplotlib.rcParams)
    with plots.figure(1, 2, width=5, height=2) as (figure, axes):
        assert len(axes) == 2 and tuple(figure.get_size_inches()) == (5, 2)
        assert not axes[0].spines["top"].get_visible()
    with pytest.raises(KeyError), plots.figure():
        raise KeyError
    assert dict(matplotlib.rcParams) == before and plt.get_fignums() == []


def test_pictures_are_grey_with_one_channel_and_stay_in_range():
    figure, axes = plt.subplots(1, 2)
    for images in (torch.rand(2, 1, 4, 5) * 3 - 1, torch.rand(2, 3, 4, 5)):
        plots.pictures(axes, images, ["a"])
        shown = axes[0].images[-1].get_array()
        assert shown.shape[:2] == (4, 5) and shown.min() >= 0 and shown.max() <= 1
        assert axes[0].get_title() == "a" and axes[1].get_title() == ""
    plt.close(figure)


def test_colours_differ_and_belong_to_their_thing():
    assert len(set(plots.PALETTE)) == len(plots.PALETTE) == len(plots.MARKERS)
    assert plots.COLOURS["residual"] != plots.COLOURS["plain"]


def test_a_thing_with_a_colour_of_its_own_keeps_its_marker_whatever_stands_beside_it(ax):
    colours = {"none": plots.ORANGE, "batch": plots.BLUE, "layer": plots.PINK}
    rows = [{"kind": kind, "x": x, "y": x, "seed": 0} for kind in ("batch", "none") for x in (1, 2)]
    plots.lines(ax, rows, "x", "y", by="kind", colours=colours, marker=True)
    looks = {line.get_label(): line.get_marker() for line in ax.lines if line.get_linewidth() >= 1}
    assert looks == {"batch": plots.MARKERS[1], "none": plots.MARKERS[0]}


def test_a_band_is_the_interval_of_the_mean_in_place_of_the_seeds(ax):
    plots.lines(ax, ROWS, "depth", "error", by="kind", band=True)
    assert len(ax.lines) == 2 and len(ax.collections) == 2
    expected = interval([row["error"] for row in ROWS if row["kind"] == "plain" and row["depth"] == 8])
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(expected.low)


def test_ticks_of_fractions_read_as_hundredths(ax):
    ax.plot([0, 1], [-0.05, 0.1])
    ax.set_yticks([-0.05, 0, 0.1])
    plots.hundredths(ax.yaxis)
    ax.figure.canvas.draw()
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["−5", "0", "10"]


def test_a_captured_figure_is_drawn_with_two_dots_for_each_pixel_and_pictures_keep_their_colours():
    from io import BytesIO

    from PIL import Image

    with plots.captured() as made, plots.figure() as (_, ax):
        ax.plot([1, 2])
    with plots.captured() as shown, plots.figure() as (_, ax):
        ax.imshow(torch.rand(4, 4).numpy())
    assert int.from_bytes(made[0][16:20], "big") == 1200
    assert Image.open(BytesIO(made[0])).mode == "P" and Image.open(BytesIO(shown[0])).mode == "RGBA"
