"""How gains in accuracy over another recipe are drawn and put into words, by every experiment that speaks of them."""

from resnet_lib import page, plots
from resnet_lib.experiments.augmentation.learning import SMALL, gain, of_runs

SHARES = {1.0: "on all pictures", SMALL: "on a tenth"}
WORDS = "gain", "lose", "make no clear difference"
LOOKS = ((1.0, plots.BLUE, 0.15), (SMALL, plots.ORANGE, -0.2))  # share, colour and place on its line
ALT = "Gains in test accuracy, on all training pictures in blue and on a tenth in orange, a dot for each seed and a bar for the "


def name_of(s, world: str) -> str:
    return s.facts["name"] if world == "main" else world


def draw_gains(ax, rows, world: str, pairs, looks=LOOKS) -> dict:
    """Gains of a over b for each (name, a, b), all pictures in blue and a tenth in orange; a dot a seed.

    Returns: the names of those that are clear gains, clear losses or neither, by (share, word).
    """
    clear = {}
    for share, colour, offset in looks:
        own = of_runs(rows, world, share)
        for place, (_, a, b) in enumerate(pairs):
            found = gain(rows, world, a, b, share)
            base = {r["seed"]: r["accuracy"] for r in own if r["recipe"] == b}
            dots = [r["accuracy"] - base[r["seed"]] for r in own if r["recipe"] == a]
            look = {"color": colour, "alpha": 0.5, "ms": 4, "mew": 0}
            ax.plot(dots, [0.16 + offset - place] * len(dots), "o", **look)
            bar = [[found.mean - found.low], [found.high - found.mean]]
            label = SHARES[share] if place == 0 else None
            ax.errorbar(found.mean, offset - place, xerr=bar, marker="s", color=colour, capsize=3, label=label)
            clear.setdefault((share, page.trend(found, "gains", "losses", "neither")), []).append(pairs[place][0])
    ax.set_yticks([-place for place in range(len(pairs))], [name for name, _, _ in pairs])
    ax.set_ylim(0.5 - len(pairs), 0.5)
    ax.axvline(0, color="grey", linestyle=":", linewidth=1.2)
    ax.set_xlabel("change of test accuracy, points")
    plots.hundredths(ax.xaxis)
    return clear


def caption(clear: list[dict], shares=SHARES) -> str:
    """What clear gains and losses there are, of several panels."""
    named = lambda share, word: dict.fromkeys(name for panel in clear for name in panel.get((share, word), []))  # noqa: E731
    some = lambda names, what: f"clear {what} from {page.listed(list(names))}" if names else f"no clear {what}"  # noqa: E731
    words = [
        f"{where} {some(named(share, 'gains'), 'gains')}, {some(named(share, 'losses'), 'losses')}"
        for share, where in shares.items()
    ]
    told = "; ".join(words)
    return f"{told[0].upper()}{told[1:]}. Dots are seeds, bars intervals of 95 %."
