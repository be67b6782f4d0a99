"""What did the network learn? Linear probes by depth with three controls, and class activation maps."""

from statistics import fmean

from resnet_lib import plots, stats
from resnet_lib.experiments import depths
from resnet_lib.experiments.resnet.depth import RATES
from resnet_lib.study import Experiment


def units(rows, state):
    return [r for r in rows if r["what"] == "unit" and r["state"] == state]


def last_over_first(rows, state):
    own = units(rows, state)
    last = max(r["unit"] for r in own)
    return stats.paired_rows(own, "accuracy", "unit", last, 1, unit="accuracy")


def probe_over_own(rows):
    """Accuracy of the last unit's probe minus the network's own, trained: near zero if the probe reads all there is."""
    own = [r | {"of": r["what"]} for r in rows if r["what"] == "own" and r["state"] == "trained"]
    last = units(rows, "trained")
    last = [r | {"of": "probe"} for r in last if r["unit"] == max(q["unit"] for q in last)]
    return stats.paired_rows(own + last, "accuracy", "of", "probe", "own", unit="accuracy")


def estimates(rows, s):
    covers = [r for r in rows if r["what"] == "cover"]
    of_units = [r for r in rows if r["what"] == "unit"]
    last = [r for r in of_units if r["unit"] == max(q["unit"] for q in of_units)]
    return {
        "last_over_first": last_over_first(rows, "trained"),
        "trained_over_random": stats.paired_rows(last, "accuracy", "state", "trained", "random", unit="accuracy"),
        "random_last_over_first": last_over_first(rows, "random"),
        "probe_over_own": probe_over_own(rows),
        "map_difference": stats.exact(max(r["off"] for r in covers)),
        "cover_gain": stats.interval([r["highest"] - r["lowest"] for r in covers], unit="logits"),
    }


def control(rows, what):
    return fmean(r["accuracy"] for r in rows if r["what"] == what and r["state"] == "trained")


def finding(rows, s, e):
    return (
        f"Accuracy of a linear probe, last block minus first: {e['last_over_first']} trained, {e['random_last_over_first']} at "
        f"initialisation. On the last block, trained minus at initialisation: {e['trained_over_random']}, and minus the network's "
        f"own accuracy: {e['probe_over_own']}. For scale: "
        f"{control(rows, 'pixels'):.3f} on the pixels themselves and {control(rows, 'shuffled'):.3f} with shuffled labels, "
        f"where guessing gives {1 / s.facts['classes']:.3f}. The activation maps explain the logits to within "
        f"{e['map_difference'].mean:.1e}; covering the map's highest cell lowers the logit by {e['cover_gain']} more than "
        "covering its lowest."
    )


def draw(rows, s):
    of_units = [r for r in rows if r["what"] == "unit"]
    with plots.figure(height=3.4) as (_, ax):
        plots.lines(ax, of_units, "unit", "accuracy", by="state", marker=True)
        for what, style in (("pixels", ":"), ("shuffled", "--")):
            ax.axhline(control(rows, what), color="grey", linestyle=style, label=what)
        ax.set(xlabel="unit, from input to output", ylabel="accuracy of a linear probe", ylim=(0, 1))
        ax.legend()
    last = max(r["unit"] for r in of_units)
    mean = {(r["state"], r["unit"]): r["mean"] for r in stats.summarise(of_units, "accuracy", ("state", "unit"))}
    return (
        f"From the first to the last unit the probe's accuracy goes from {mean['trained', 1]:.2f} to "
        f"{mean['trained', last]:.2f} trained, and from {mean['random', 1]:.2f} to {mean['random', last]:.2f} at "
        "initialisation. Thin lines are seeds."
    )


PROBES = Experiment(
    "probes",
    run=depths.trained,
    conditions=lambda s: depths.arms(s, ("residual",), [s.looked_depth]),
    estimates=estimates,
    settings=("looked_depth", "depth_epochs", "flips", "number_format"),
    counts=("depths",),
    tiny={"looked_depth": 8, "depth_epochs": 1},
    finding=finding,
    figure=draw,
    alt="Accuracy of a linear probe against the unit, from input to output, for the trained network and at initialisation, "
    "one thin line for each seed, with dotted lines for the pixels and for shuffled labels.",
    kept=("unit", "own", "pixels", "shuffled", "cover", "map"),
    needs=RATES,
    choose=lambda rows, s: {"rate_of": depths.rates_of(rows)},
)
