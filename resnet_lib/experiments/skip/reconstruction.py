"""What do skips carry? A U-Net returns damaged pictures, with no skip, each alone, and all, at equal parameters."""

from dataclasses import replace
from statistics import fmean

import torch
import torch.nn.functional as F

from resnet_lib import page, plots, resnets, stats, train, unet
from resnet_lib.experiments.skip.networks import as_bytes, first_batch, psnr, shape, through_skips, to_pixels, training
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

TASKS = ("denoise", "inpaint", "mirror", "colourise")
ADDED = {"added, no skip": {"skips": (), "join": "add"}, "added, all skips": {"join": "add"}}
UNITS = {"psnr": "dB", "detail": "share", "ssim": ""}
SCORES = ("psnr", "ssim", "psnr_silenced", "psnr_seen")


def arms(s) -> dict[str, dict]:
    """What each arm changes of the U-Net: no skip, each alone by the side of its map, all."""
    (_, height, width), levels = s.facts["shape"], len(s.widths) - 1
    alone = {f"only {width >> k}×{height >> k}": {"skips": (k,)} for k in range(levels)}
    return {"no skip": {"skips": ()}} | alone | {"all skips": {"skips": None}}


def damage(task: str, images: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """What the network sees and what it must return, from normalised pictures."""
    draw = {"generator": generator, "device": images.device}
    if task == "colourise":
        return images.mean(1, keepdim=True).expand_as(images), images
    if task == "inpaint":
        count, _, height, width = images.shape
        top = torch.randint(0, height - height // 2 + 1, (count, 1, 1, 1), **draw)
        left = torch.randint(0, width - width // 2 + 1, (count, 1, 1, 1), **draw)
        row = torch.arange(height, device=images.device).view(1, 1, -1, 1) - top
        column = torch.arange(width, device=images.device).view(1, 1, 1, -1) - left
        hole = (row >= 0) & (row < height // 2) & (column >= 0) & (column < width // 2)
        return images.masked_fill(hole, 0.0), images
    noisy = images + 0.5 * torch.randn(images.shape, **draw)
    return noisy, images.flip(3) if task == "mirror" else images


def reconstruction_task(name: str) -> train.Task:
    def task(model, images, labels, generator):
        seen, wanted = damage(name, images, generator)
        return {"loss": F.mse_loss(model(seen).float(), wanted)}

    return task


def ssim(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each picture, (N,), from 11×11 Gaussian windows, or smaller ones for small pictures.

    Source:  Wang et al. 2004, doi:10.1109/TIP.2003.819861, equation (13).
    """
    taps = min(11, (min(made.shape[-2:]) - 1) // 2 * 2 + 1)  # odd, and no larger than the picture
    place = torch.arange(taps, dtype=made.dtype, device=made.device) - taps // 2
    window = torch.exp(-place.square() / (2 * 1.5**2))
    kernel = torch.outer(window, window)
    kernel = (kernel / kernel.sum()).expand(made.shape[1], 1, taps, taps)
    local = lambda x: F.conv2d(x, kernel, groups=made.shape[1])
    mean_a, mean_b = local(made), local(wanted)
    var_a, var_b = local(made**2) - mean_a**2, local(wanted**2) - mean_b**2
    covariance = local(made * wanted) - mean_a * mean_b
    similar = (2 * mean_a * mean_b + 0.01**2) * (2 * covariance + 0.03**2)
    return (similar / ((mean_a**2 + mean_b**2 + 0.01**2) * (var_a + var_b + 0.03**2))).mean((1, 2, 3))


def band_energy(pictures: torch.Tensor) -> torch.Tensor:
    """Energy in each band of spatial frequency, 0 to half the shorter side in cycles a picture, summed."""
    energy = torch.fft.fft2(pictures.double()).abs().square().sum((0, 1))
    down, across = (torch.fft.fftfreq(n, 1 / n).abs().round().long() for n in energy.shape)
    band = torch.maximum(down[:, None], across[None, :]).flatten().to(energy.device)
    return torch.zeros(int(band.max()) + 1).to(energy).index_add(0, band, energy.flatten())


def silenced(model: unet.UNet, images: torch.Tensor) -> torch.Tensor:
    """The network's output when its bottleneck says nothing."""
    hook = model.bottleneck.register_forward_hook(lambda module, inputs, output: output * 0)
    made = model(images)
    hook.remove()
    return made


@torch.no_grad()
def judge(s, model, task: str, split, config) -> list[dict]:
    """Fidelity and error spectrum on a split, as it is and with the bottleneck silenced."""
    where, model = next(model.parameters()).device, model.eval()
    generator, scores, energy = torch.Generator(where).manual_seed(0), [], 0.0
    for images, _ in train.Batches(s.pictures, split, config, where).in_order(500):
        seen, wanted = damage(task, images, generator)
        target, made = to_pixels(s, wanted), to_pixels(s, model(seen))
        others = (to_pixels(s, silenced(model, seen)), to_pixels(s, seen))
        values = [psnr(made, target), ssim(made, target), *(psnr(o, target) for o in others)]
        scores.append(torch.stack(values))
        energy = energy + torch.stack([band_energy(made - target), band_energy(target)]).cpu()
    means = torch.cat(scores, 1).mean(1).tolist()
    high = energy[:, energy.shape[1] // 2 + 1 :].sum(1)
    score = dict(zip(SCORES, means, strict=True)) | {"detail": (1 - high[0] / high[1]).item()}
    wrong = (energy[0] / energy[1]).tolist()
    return [{"what": "score"} | score, *({"what": "band", "band": k, "error_share": e} for k, e in enumerate(wrong))]


def reconstruction(s, task: str, arm: str, seed: int) -> list[dict]:
    """Train one U-Net for one task; judge it on the test pictures; of the first seed also five pictures."""
    config = training(s, epochs=s.task_epochs, batch_size=s.batch_size, optimizer="adamw", learning_rate=s.task_rate)
    make = lambda: unet.UNet(replace(shape(s), **(arms(s) | ADDED)[arm]))
    fitted = train.fit(make, s.pictures, config, seed=seed, task=reconstruction_task(task), progress=False)
    model = fitted.model
    where = next(model.parameters()).device
    rows = judge(s, model, task, s.pictures.test, config)
    rows[0]["parameters"] = resnets.count_parameters(model)
    rows[0]["train_loss"] = fitted.rows[-1]["train_loss"]
    if arm == "all skips":
        images = first_batch(s, s.pictures.train, seed, where)[0]
        seen, wanted = damage(task, images, torch.Generator(where).manual_seed(seed))
        rows[0]["skips_over_bottleneck"] = through_skips(model, lambda: F.mse_loss(model.train()(seen), wanted))
    if seed == 0:
        images = first_batch(s, s.pictures.test, 0, where)[0][:5]
        seen, wanted = damage(task, images, torch.Generator(where).manual_seed(0))
        with torch.no_grad():
            shown = {"seen": seen, "wanted": wanted, "made": model.eval()(seen)}
        rows.append({"what": "sample"} | {name: as_bytes(s, v) for name, v in shown.items()})
    return rows


def aligned(rows):
    """All tasks but the control, in which the output does not lie over the input."""
    return [r for r in rows if r["task"] != "mirror"]


def gain(rows, column, with_arm="all skips", without="no skip", unit=""):
    """With minus without skips, the mean of the tasks in rows, paired by seed."""
    return stats.paired_rows(seed_means(rows, column), column, "arm", with_arm, without, unit=unit)


def seed_means(rows, column):
    """The mean over tasks of a column, for each arm and seed."""
    return stats.cell_means(rows, column, ("arm", "seed"))


def estimates(rows, s):
    found = {f"{c}_gain": gain(aligned(rows), c, unit=unit) for c, unit in UNITS.items()}
    found["added_psnr_gain"] = gain(aligned(rows), "psnr", *list(ADDED)[::-1], unit="dB")
    for task in dict.fromkeys(r["task"] for r in rows):
        own = [r for r in rows if r["task"] == task]
        found |= {f"{task}_{c}_gain": gain(own, c, unit=unit) for c, unit in UNITS.items()}
    return found


def finding(rows, s, e):
    words = (
        "At equal parameters, over the tasks in which output and input are aligned, skips gain "
        f"{e['psnr_gain']} in PSNR, {e['ssim_gain']} in SSIM and {e['detail_gain']} of the fine detail. Added instead of "
        f"concatenated, they gain {e['added_psnr_gain']}."
    )
    for task in dict.fromkeys(r["task"] for r in rows):
        own = [r for r in rows if r["task"] == task]
        best = max(fmean(r["psnr"] for r in own if r["arm"] == arm) for arm in dict.fromkeys(r["arm"] for r in own))
        behind = fmean(r["psnr_seen"] for r in own) - best
        words += f" To {task}, even the best stays {behind:.1f} dB behind what it was given." if behind > 0 else ""
    if "mirror_psnr_gain" not in e:
        return words + " The control, mirroring, was not among the tasks."
    is_less = e["mirror_detail_gain"].high < e["detail_gain"].low
    control = "clearly less: what they carry is where things are" if is_less else "which is not clearly less"
    return words + (
        f" Control: where the picture must come out mirrored, they gain {e['mirror_psnr_gain']} and "
        f"{e['mirror_detail_gain']} of the fine detail, {control}."
    )


def table(rows, s):
    shown = []
    for cell in conditions(task=dict.fromkeys(r["task"] for r in rows), arm=dict.fromkeys(r["arm"] for r in rows)):
        own = [r for r in rows if cell.items() <= r.items()]
        row = cell | {c: stats.interval([r[c] for r in own], unit=unit) for c, unit in UNITS.items()}
        shown.append(row | {"seen": fmean(r["psnr_seen"] for r in own), "parameters": own[0]["parameters"]})
    columns = {"task": "task", "arm": "skips", "parameters": ("parameters", ","), "seen": ("it sees, dB", ".1f")}
    return page.table(shown, columns | {"psnr": "PSNR", "ssim": "SSIM", "detail": "detail"})


def draw_figure(rows, s):
    names = list(dict.fromkeys(r["task"] for r in rows))
    height = 1.2 + 1.6 * len(names)
    with plots.figure(len(names), 1, height=height, sharex=True, squeeze=False) as (_, axes):
        for ax, task in zip(axes[:, 0], names, strict=True):
            own = [r for r in rows if r["task"] == task]
            plots.dots(ax, own, "arm", "psnr", by="task", colours={task: plots.BLUE}, join=False)
            ax.axhline(fmean(r["psnr_seen"] for r in own), color="grey", linestyle=":", linewidth=1.5)
            ax.set(title=f"{task}, the control" if task == "mirror" else task, ylabel="PSNR, dB")
        ax.tick_params(axis="x", labelrotation=35)
        for label in ax.get_xticklabels():
            label.set_ha("right")
    clear = [t for t in names if gain([r for r in rows if r["task"] == t], "psnr", unit="dB").low > 0]
    return (
        f"All skips against none clearly raise the fidelity to {page.listed(clear, 'none of the tasks')}. Dotted: what the "
        "network sees. Dots are seeds, bars intervals of 95 %. The vertical axes differ."
    )


def draw_front(rows, s):
    """For the first screen: what skips gain in each task, in decibels."""
    tasks = list(dict.fromkeys(r["task"] for r in rows))
    shown = [{"task": t, "gain": gain([r for r in rows if r["task"] == t], "psnr", unit="dB")} for t in tasks]
    with plots.figure(height=0.9 + 0.38 * len(tasks)) as (_, ax):
        plots.forest(ax, shown, "task", "gain")
        ax.set_xlabel("fidelity gained by skips, dB of PSNR")
    return "All skips against none at equal parameters, by task; mirror is the control. Bars are intervals of 95 %."


def _tasks(s):
    if unknown := [task for task in s.tasks if task not in TASKS]:
        raise ValueError(f"tasks names {unknown[0]!r}, which is not one of {', '.join(TASKS)}")
    if not {"denoise", "inpaint", "colourise"} & set(s.tasks):
        raise ValueError(f"tasks={s.tasks}: at least one of denoise, inpaint and colourise is needed")
    if shape(s).in_channels == 1 and "colourise" in s.tasks:
        raise ValueError(f"tasks={s.tasks}: {s.facts['name']} is grey already: leave out colourise")
    return s.tasks


RECONSTRUCTION = Experiment(
    "reconstruction",
    run=reconstruction,
    conditions=lambda s: conditions(task=_tasks(s), arm=[*arms(s), *ADDED], seed=s.seeds),
    estimates=estimates,
    settings=("widths", "tasks", "task_epochs", "task_rate", "batch_size", "number_format"),
    tiny={"widths": [4, 8], "tasks": ["inpaint", "mirror"], "task_epochs": 1},
    finding=finding,
    figure=draw_figure,
    alt="One panel for each task: peak signal-to-noise ratio in decibels for each choice of skips, a small dot for each "
    "seed and the mean with its interval; a dotted line marks what the network saw.",
    table=table,
    kept=("score",),
)


def upper_bands(rows):
    """By task, arm and seed the mean share of wrong energy in the upper half of the frequencies."""
    top = max(r["band"] for r in rows)
    high = [r | {"wrong": r["error_share"]} for r in rows if r["band"] > top // 2]
    return stats.cell_means(high, "wrong", ("task", "arm", "seed"))


def spectrum_estimates(rows, s):
    """Share of wrong energy in the upper frequencies, without minus with skips, where the output is aligned."""
    return {"high_band_gain": gain(aligned(upper_bands(rows)), "wrong", "no skip", "all skips", unit="share")}


def spectrum_finding(rows, s, e):
    return (
        "In the upper half of the frequencies skips lower the share of energy that is wrong by "
        f"{e['high_band_gain']}, mean of the aligned tasks."
    )


def draw_spectrum(rows, s):
    shown = [r for r in rows if not r["arm"].startswith("added")]
    names = list(dict.fromkeys(r["task"] for r in shown))
    height = 0.8 + 1.9 * len(names)
    with plots.figure(len(names), 1, height=height, sharex=True, sharey=True, squeeze=False) as (_, axes):
        for ax, task in zip(axes[:, 0], names, strict=True):
            own = [r for r in shown if r["task"] == task]
            plots.lines(ax, own, "band", "error_share", by="arm", marker=True)
            ax.axhline(1, color="grey", linestyle=":", linewidth=1)
            ax.set(title=f"{task}, the control" if task == "mirror" else task, ylabel="error / picture", yscale="log")
        axes[0, 0].legend(fontsize=9, ncols=2)
        ax.set_xlabel("spatial frequency, cycles a picture")
    words = "smaller", "larger", "not clearly different"
    return (
        "Energy of the error over that of the picture: in the upper half of the frequencies it is "
        f"{page.trend(spectrum_estimates(shown, s)['high_band_gain'], *words)} with skips, over the aligned tasks. The skip "
        "with the largest map carries it, and its line may hide that of all skips. Dotted: a blank would be as good. Thin "
        "lines are seeds."
    )


SPECTRUM = replace(
    RECONSTRUCTION,
    name="spectrum",
    estimates=spectrum_estimates,
    finding=spectrum_finding,
    figure=draw_spectrum,
    alt="One panel for each task: energy of the error over that of the picture against spatial frequency, on a "
    "logarithmic axis, for no skip, each skip alone and all skips, one thin line for each seed.",
    table=None,
    kept=("band",),
)


def silenced_estimates(rows, s):
    """Decibels lost when the bottleneck is silenced, and which way the first convolution's gradient comes."""
    own = aligned(rows)
    lost = seed_means([r | {"lost": r["psnr"] - r["psnr_silenced"]} for r in own], "lost")
    paths = seed_means([r for r in own if r["arm"] == "all skips"], "skips_over_bottleneck")
    return {
        "lost_without_skips": stats.interval([r["lost"] for r in lost if r["arm"] == "no skip"], unit="dB"),
        "lost_with_skips": stats.interval([r["lost"] for r in lost if r["arm"] == "all skips"], unit="dB"),
        "trained_skips_over_bottleneck": stats.interval([r["skips_over_bottleneck"] for r in paths], unit="decades"),
    }


def silenced_finding(rows, s, e):
    return (
        f"Silence the bottleneck of a trained network, and it loses {e['lost_without_skips']} without skips and "
        f"{e['lost_with_skips']} with them. After training, the first convolution's gradient through the skips is above that "
        f"through the bottleneck by {e['trained_skips_over_bottleneck']}. The symptom of a skip too many is a good loss and "
        "an idle bottleneck; the cure, where the bottleneck's code is what one wants, is to cut the finest skips."
    )


SILENCED = replace(
    RECONSTRUCTION,
    name="silenced",
    estimates=silenced_estimates,
    finding=silenced_finding,
    figure=None,
    alt="",
    table=None,
)
