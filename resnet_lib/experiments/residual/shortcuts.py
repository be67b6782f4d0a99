"""Unequal dimensions: which shortcut where a stage halves the picture, and a branch that starts at zero."""

from resnet_lib import page, plots, resnets, stats, train
from resnet_lib.experiments.depths import checked, network, training
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

OPTIONS = {
    "A: zero padding": {"shortcut": "A"},
    "B: projection where needed": {"shortcut": "B"},
    "C: projection everywhere": {"shortcut": "C"},
    "A, zero-initialised branch": {"shortcut": "A", "zero_init_last_norm": True},
}
BASELINE, *OTHERS = OPTIONS
WORDS = "saves", "costs", "makes no clear difference"  # of a gain in error


def shortcuts(s, option: str, seed: int) -> list[dict]:
    """Train one residual network with one way to pass unequal dimensions."""
    make = lambda: network(s, "residual", s.shortcut_depth, **OPTIONS[option])  # noqa: E731
    config = training(s, epochs=s.shortcut_epochs, learning_rate=s.learning_rate)
    fitted = train.fit(make, s.pictures, config, seed=seed, progress=False)
    return [fitted.rows[-1] | {"parameters": resnets.count_parameters(fitted.model)}]


def unequal_units(s) -> tuple[int, int]:
    """Units of the network whose dimensions change, and all its units."""
    units = network(s, "residual", s.shortcut_depth).units()
    return sum(unit.in_channels != unit.out_channels or unit.stride != 1 for unit in units), len(units)


def gain(rows, option):
    return stats.paired_rows(rows, "val_error", "option", BASELINE, option, unit="error")


def estimates(rows, s):
    return {
        "projection_gain": gain(rows, OTHERS[0]),
        "zero_init_gain": gain(rows, OTHERS[-1]),
        "unequal_dimensions_needs_projection": stats.exact(unequal_units(s)[0], "units"),
    }


def finding(rows, s, e):
    unequal, units = unequal_units(s)
    return (
        f"{unequal} of the {units} units of ResNet-{s.shortcut_depth} have unequal dimensions and need one of these "
        f"shortcuts. Against zero padding, a projection there {page.change(e['projection_gain'], *WORDS)}, and a branch "
        f"that starts at zero {page.change(e['zero_init_gain'], *WORDS)}. A gain whose interval contains zero is no finding."
    )


def draw(rows, s):
    shown = [{"option": option, "gain": gain(rows, option)} for option in OTHERS]
    with plots.figure(height=2.4) as (_, ax):
        plots.forest(ax, shown, "option", "gain")
        ax.set_xlabel("validation error saved against A, points")
        plots.hundredths(ax.xaxis)
    clear = [row["option"] for row in shown if row["gain"].low > 0 or row["gain"].high < 0]
    found = f"only {page.listed(clear)} differ" if clear else "no other shortcut differs"
    return f"Paired by seed, {found} clearly from zero padding. Bars: intervals of 95 %."


def table(rows, s):
    shown = []
    for option in OPTIONS:
        own = [r for r in rows if r["option"] == option]
        error = stats.interval([r["val_error"] for r in own], unit="share")
        shown.append(own[0] | {"error": error, "gain": gain(rows, option) if option in OTHERS else None})
    columns = {"option": "shortcut", "parameters": ("parameters", ","), "error": "validation error"}
    return page.table(shown, columns | {"gain": "gain over A"})


SHORTCUTS = Experiment(
    "shortcuts",
    run=shortcuts,
    conditions=lambda s: conditions(option=_options(s), seed=s.seeds),
    estimates=estimates,
    settings=("shortcut_depth", "shortcut_epochs", "learning_rate", "number_format"),
    tiny={"shortcut_depth": 8, "shortcut_epochs": 1},
    finding=finding,
    figure=draw,
    alt="For each other shortcut a dot with an interval: the validation error that it saves against zero padding.",
    table=table,
)


def _options(s):
    checked("shortcut_depth", [s.shortcut_depth])
    return list(OPTIONS)
