"""Project, pool, interpolate or crop: how should a shortcut get to half its size?"""

import torch.nn.functional as F
from torch import nn

from resnet_lib import blocks, page, plots, resnets, stats, train
from resnet_lib.experiments.skip.networks import training
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

FREE = ("no shortcut", "crop", "every second pixel", "average", "largest")
PROJECTED = ("project", "average, project")


class Halve(nn.Module):
    """(N, C, H, W) → (N, C + new, ⌈H/2⌉, ⌈W/2⌉), without parameters; `how` is one of FREE."""

    def __init__(self, how: str, new_channels: int):
        super().__init__()
        self.how, self.new_channels = how, new_channels

    def forward(self, x):
        height, width = (x.shape[2] + 1) // 2, (x.shape[3] + 1) // 2
        if self.how == "every second pixel":
            x = x[:, :, ::2, ::2]
        elif self.how == "average":
            x = F.adaptive_avg_pool2d(x, (height, width))
        elif self.how == "largest":
            x = F.adaptive_max_pool2d(x, (height, width))
        else:
            top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
            x = x[:, :, top : top + height, left : left + width]
            x = x * 0 if self.how == "no shortcut" else x
        return F.pad(x, (0, 0, 0, 0, 0, self.new_channels))


def with_shortcut(s, how: str) -> resnets.ResNet:
    """A CIFAR ResNet whose halving units have this shortcut."""
    numbers = {"in_channels": s.facts["shape"][0], "num_classes": s.facts["classes"]}
    model = resnets.resnet_cifar(s.size_depth, shortcut="A" if how in FREE else "B", **numbers)
    for unit in model.units():
        if unit.stride == 2 and how in FREE:
            unit.downsample = Halve(how, unit.out_channels - unit.in_channels)
        elif unit.stride == 2 and how == "average, project":
            projection = blocks.conv1x1(unit.in_channels, unit.out_channels)
            projection.weight = unit.downsample[0].weight  # the same first weights
            average = Halve("average", 0)
            unit.downsample = nn.Sequential(average, projection, unit.downsample[1])
    return model


def sizes(s, how: str, seed: int) -> list[dict]:
    """Errors after training with one kind of shortcut in the halving units."""
    config = training(s, epochs=s.size_epochs)
    fitted = train.fit(lambda: with_shortcut(s, how), s.pictures, config, seed=seed, progress=False)
    return [fitted.rows[-1] | {"parameters": resnets.count_parameters(fitted.model)}]


def measure_of(how: str) -> str:
    return f"{how.replace(', ', '_').replace(' ', '_')}_gain"


def estimates(rows, s):
    """By how much each way lowers the validation error of a network without a shortcut there."""
    return {
        measure_of(how): stats.paired_rows(rows, "val_error", "how", FREE[0], how, unit="error")
        for how in (*FREE[1:], *PROJECTED)
    }


def finding(rows, s, e):
    clear = [how for how in (*FREE[1:], *PROJECTED) if e[measure_of(how)].low > 0]
    better = f"of {len(e)} ways {'; '.join(clear)}" if clear else f"of {len(e)} ways none"
    return (
        f"In ResNet-{s.size_depth}, {better} {'are' if len(clear) > 1 else 'is'} clearly better than no shortcut in the "
        "halving units. "
        "The gain is paired by seed; one whose interval contains zero is no finding."
    )


def table(rows, s):
    gains, shown = estimates(rows, s), []
    for how in (*FREE, *PROJECTED):
        own = [r for r in rows if r["how"] == how]
        row = {"how": how, "parameters": own[0]["parameters"], "gain": gains.get(measure_of(how))}
        shown.append(row | {"error": stats.interval([r["val_error"] for r in own], unit="share")})
    headings = {"how": "shortcut where the size halves", "parameters": ("parameters", ",")}
    return page.table(shown, headings | {"error": "validation error", "gain": "gain over no shortcut"})


def draw(rows, s):
    rows = [r | {"all": "all"} for r in rows]
    with plots.figure(height=3.6) as (_, ax):
        plots.dots(ax, rows, "how", "val_error", by="all", join=False)
        ax.set(ylabel="validation error, %")
        plots.hundredths(ax.yaxis)
        ax.tick_params(axis="x", labelrotation=35)
        for label in ax.get_xticklabels():
            label.set_ha("right")
    clear = [how for how in (*FREE[1:], *PROJECTED) if estimates(rows, s)[measure_of(how)].low > 0]
    found = (
        f"these are clearly better than no shortcut: {'; '.join(clear)}"
        if clear
        else "no way is clearly better than no shortcut"
    )
    return f"Paired by seed, {found}. Dots are seeds, bars intervals of 95 %."


SIZES = Experiment(
    "sizes",
    run=sizes,
    conditions=lambda s: conditions(how=[*FREE, *PROJECTED], seed=_checked(s).seeds),
    estimates=estimates,
    settings=("size_depth", "size_epochs", "number_format"),
    tiny={"size_depth": 8, "size_epochs": 1},
    finding=finding,
    figure=draw,
    alt="Validation error of the residual network for each of seven ways to bring a shortcut to half its size, a small dot "
    "for each seed and the mean with its interval.",
    table=table,
)


def _checked(s):
    resnets.cifar_config(s.size_depth)  # refuses now, not after an hour, a depth that fits no network
    return s
