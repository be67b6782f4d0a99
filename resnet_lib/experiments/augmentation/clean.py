"""Cleaning: find wrong labels and copies that were put in, remove them, and train again; then look at the real data."""

import torch
import torch.nn.functional as F

from resnet_lib import augment, noise, page, plots, stats, train
from resnet_lib.experiments.augmentation.recipes import (
    NETWORK,
    accuracy,
    fitted,
    refuse_standard,
    seeded_generator,
    stretched,
    training,
)
from resnet_lib.experiments.depths import refuse
from resnet_lib.study import Experiment
from resnet_lib.sweep import conditions

DIRT = ("wrong labels", "copies")
LEAST = 0.995  # cosine from which two pictures count as copies
FOLDS = 3
SHOWN = 6  # suspects and pairs that a page shows


def held_out(s, images: torch.Tensor, labels: torch.Tensor, seed: int) -> torch.Tensor:
    """Class probabilities (N, K) of each picture by a network that was not trained on it."""

    def predict(kept, asked):
        dataset = stretched(s.pictures, images[kept], labels[kept])
        model, _ = fitted(dataset, s.standard, seed, s.depth, s.width, training(s))
        with torch.no_grad():
            shown = images[asked].split(500)
            found = [model.eval()(batch.to(s.device) / 255).float().softmax(1).cpu() for batch in shown]
        return torch.cat(found)

    return noise.held_out(predict, len(labels), FOLDS)


def twins(images: torch.Tensor, others: torch.Tensor, least: float, device="cpu"):
    """For each picture the most alike of the others: its number, the cosine, and whether that is at least so much.

    Where the others are the pictures themselves, only earlier ones count: the first of a group stays.
    """

    def directions(batch):
        flat = batch.to(device).flatten(1).float()
        flat = flat - flat.mean(1, keepdim=True)  # brightness and contrast do not count
        return F.normalize(flat)

    theirs, best = directions(others), []
    for first in range(0, len(images), 1000):
        alike = directions(images[first : first + 1000]) @ theirs.T
        if others is images:
            alike = alike.tril(first - 1)
        best.append(torch.stack([*alike.max(1)], 1).cpu())
    cosine, index = torch.cat(best).unbind(1)
    return index.long(), cosine, cosine >= least


def with_copies(images: torch.Tensor, labels: torch.Tensor, generator):
    """A tenth of the pictures replaced by copies of others, half of them in another contrast; which are copies."""
    count = len(labels) // 10
    kept = torch.randperm(len(labels), generator=generator)[count:]
    copied, made = kept[:count], images[kept[:count]]
    made[::2] = augment.jitter(made[::2], contrast=(0.6, 0.8), generator=generator)
    now = torch.cat([images[kept], made]), torch.cat([labels[kept], labels[copied]])
    return *now, torch.arange(len(labels)) >= len(kept)


def dirtied(s, dirt: str, seed: int):
    """Training pictures and labels with a tenth of dirt put in; what is found, by name; what is dirty."""
    generator = seeded_generator(train.stream(seed, 7))
    images, labels = s.pictures.train.images, s.pictures.train.labels
    if dirt == "copies":
        images, labels, dirty = with_copies(images, labels, generator)
        return images, labels, {"suspects": twins(images, images, LEAST, s.device)[2]}, dirty
    labels, dirty = noise.symmetric(labels, len(s.pictures.class_names), 0.1, generator)
    probabilities = held_out(s, images, labels, seed)
    given = noise.belief(probabilities, labels)
    least_believed = given <= given.kthvalue(dirty.sum().item()).values
    suspects = noise.confident_learning(probabilities, labels)
    return images, labels, {"suspects": suspects, "least believed": least_believed}, dirty


def found_among(suspects: torch.Tensor, dirty: torch.Tensor) -> dict:
    """Precision and recall of suspects against what is known to be dirty."""
    hits = (suspects & dirty).sum().item()
    counts = {"suspects": suspects.sum().item(), "dirty": dirty.sum().item()}
    shares = {"precision": hits / max(1, counts["suspects"]), "recall": hits / counts["dirty"]}
    return {"what": "found"} | counts | shares


def clean(s, dirt: str, seed: int) -> list[dict]:
    """What is found of the dirt, and the accuracy after removing it, as much at random, and exactly the dirt."""
    images, labels, found, dirty = dirtied(s, dirt, seed)
    chance = torch.randperm(len(labels), generator=seeded_generator(train.stream(seed, 8)))
    rows = [found_among(mask, dirty) | {"by": name} for name, mask in found.items()]
    arms = {"nothing": torch.zeros_like(dirty)}
    for name, mask in found.items():
        at_random = torch.zeros_like(dirty)
        at_random[chance[: mask.sum()]] = True
        arms |= {name: mask, f"at random, as many as {name}": at_random}
    for removed, gone in (arms | {"all the dirt": dirty}).items():
        dataset, config = stretched(s.pictures, images[~gone], labels[~gone]), training(s)
        model, last = fitted(dataset, "none", seed, s.depth, s.width, config)
        row = {"what": "run", "removed": removed, "train_error": last["train_error"]}
        rows.append(row | {"accuracy": accuracy(model, s.pictures, s.pictures.test, config)})
    return rows


def of_removal(rows, dirt: str, removed: str) -> stats.Estimate:
    """Test accuracy after a removal minus that after none, equal steps, paired by seed."""
    own = [r for r in rows if r["dirt"] == dirt and r["what"] == "run"]
    return stats.paired_rows(own, "accuracy", "removed", removed, "nothing", unit="accuracy")


def estimates(rows, s):
    labels, copies = DIRT
    found = {
        "label_errors_gain": of_removal(rows, labels, "suspects"),
        "ranked_labels_gain": of_removal(rows, labels, "least believed"),
        "duplicates_gain": of_removal(rows, copies, "suspects"),
        "random_gain": of_removal(rows, labels, "at random, as many as suspects"),
        "random_tenth_gain": of_removal(rows, labels, "at random, as many as least believed"),
        "all_errors_gain": of_removal(rows, labels, "all the dirt"),
    }
    for name, dirt, by in (
        ("labels", labels, "suspects"),
        ("ranked", labels, "least believed"),
        ("copies", copies, "suspects"),
    ):
        own = [r for r in rows if r["what"] == "found" and (r["dirt"], r["by"]) == (dirt, by)]
        found |= {f"{name}_{q}": stats.interval([r[q] for r in own], unit="share") for q in ("precision", "recall")}
    return found


def finding(rows, s, e):
    count = s.facts["train"] // 10
    return (
        f"Of {count} wrong labels among {s.facts['train']:,}, confident learning finds {e['labels_recall']}; of its suspects "
        f"{e['labels_precision']} are wrong. Of the {count} least believed labels {e['ranked_precision']} are; at random a "
        "tenth would be. "
        f"Removing the suspects changes accuracy by {e['label_errors_gain']} (as many at random: {e['random_gain']}), the least "
        f"believed by {e['ranked_labels_gain']} (at random: {e['random_tenth_gain']}), and exactly the wrong ones by "
        f"{e['all_errors_gain']}: no finder can be expected to do better. "
        f"Of {count} copies the cosine finds {e['copies_recall']}, and {e['copies_precision']} of what it finds were put in; "
        f"removing that changes accuracy by {e['duplicates_gain']}."
    )


def removals(rows, dirt: str) -> list[str]:
    """What was removed, in the order of the runs."""
    own = (r["removed"] for r in rows if r["what"] == "run" and r["dirt"] == dirt)
    return [name for name in dict.fromkeys(own) if name != "nothing"]


def draw(rows, s):
    with plots.figure(2, 1, height=3.4, height_ratios=(5, 3), sharex=True) as (_, axes):
        for ax, dirt in zip(axes, DIRT, strict=True):
            shown = [{"removed": name, "gain": of_removal(rows, dirt, name)} for name in removals(rows, dirt)]
            plots.forest(ax, shown, "removed", "gain")
            ax.set_title(dirt)
        axes[1].set_xlabel("change of test accuracy, points")
        axes[1].locator_params(axis="x", nbins=5)
        plots.hundredths(axes[1].xaxis)
    words = "helps", "hurts", "makes no clear difference"
    labels, copies = DIRT
    suspects, ranked = (page.trend(of_removal(rows, labels, by), *words) for by in ("suspects", "least believed"))
    return (
        f"Removing the suspected labels {suspects}, removing the least believed {ranked}, and removing copies "
        f"{page.trend(of_removal(rows, copies, 'suspects'), *words)}. Bars: intervals of 95 %."
    )


def runs(s):
    refuse(s)
    refuse_standard(s)
    if s.facts["train"] < 10:
        raise ValueError(f"{s.facts['train']} training pictures: a tenth of them is none, so no dirt can be put in")
    return conditions(dirt=DIRT, seed=s.seeds)


TINY = {"depth": 8, "width": 2, "batch_size": 64, "epochs": 1, "train_size": 128}
CLEAN = Experiment(
    "clean",
    run=clean,
    conditions=runs,
    estimates=estimates,
    settings=(*NETWORK, "standard"),
    tiny=TINY,
    finding=finding,
    figure=draw,
    alt="Two panels of the change of test accuracy from removing what was found, as many pictures at random, or exactly the "
    "dirt: wrong labels above, copies below; a dot and a bar for the interval.",
)


def real_labels(s, seed: int) -> list[dict]:
    """Suspects among the labels as they are, and pictures that are alike; of seed 0 the foremost are kept to look at."""
    train_, test, names = s.pictures.train, s.pictures.test, s.pictures.class_names
    probabilities = held_out(s, train_.images, train_.labels, seed)
    suspects = noise.confident_learning(probabilities, train_.labels)
    given = noise.belief(probabilities, train_.labels)
    inner = twins(train_.images, train_.images, LEAST, s.device)
    between = twins(test.images, train_.images, LEAST, s.device)
    counts = {"suspects": suspects.sum().item(), "labels": len(given), "alike_in_train": inner[2].sum().item()}
    counts |= {"alike_in_test": between[2].sum().item(), "highest_cosine": between[1].max().item()}
    rows = [{"what": "count"} | counts]
    if seed != 0:
        return rows
    for k in (given + 2 * ~suspects).argsort()[:SHOWN].tolist():  # the suspects first, the least believed first
        label, guess = names[train_.labels[k]], names[probabilities[k].argmax()]
        about = {"label": label, "guess": guess, "suspect": suspects[k].item()}
        rows.append({"what": "suspect"} | about | {"picture": train_.images[k].tolist()})
    for k in between[1].argsort(descending=True)[:SHOWN].tolist():
        twin = between[0][k].item()
        labels = {"label": names[test.labels[k]], "twin_label": names[train_.labels[twin]]}
        rows.append(
            {"what": "pair"} | labels | {"picture": test.images[k].tolist(), "twin": train_.images[twin].tolist()}
        )
    return rows


def real_estimates(rows, s):
    counts = [r for r in rows if r["what"] == "count"]
    return {
        "suspects": stats.interval([r["suspects"] / r["labels"] for r in counts], unit="share"),
        "alike_in_train": stats.exact(counts[0]["alike_in_train"], "pictures"),
        "alike_in_test": stats.exact(counts[0]["alike_in_test"], "pictures"),
        "highest_cosine": stats.exact(counts[0]["highest_cosine"]),
    }


def real_finding(rows, s, e):
    return (
        f"Of {s.facts['train']:,} real labels, {e['suspects']} are suspects. "
        f"At a cosine of {LEAST} or more, {e['alike_in_train'].mean:.0f} training pictures are like an earlier one, and "
        f"{e['alike_in_test'].mean:.0f} of {s.facts['test']:,} test pictures are like a training picture. "
        f"The most alike such pair has a cosine of {e['highest_cosine'].mean:.4f}."
    )


def draw_real(rows, s):
    suspects, pairs = ([r for r in rows if r["what"] == what] for what in ("suspect", "pair"))
    with plots.figure(3, SHOWN, height=3.2) as (_, axes):
        lines = (
            (suspects, "picture", lambda r: f"{r['label'][:10]}\n→ {r['guess'][:10]}?"),
            (pairs, "picture", lambda r: r["label"][:10]),
            (pairs, "twin", lambda r: r["twin_label"][:10]),
        )
        for line, (shown, column, title) in zip(axes, lines, strict=True):
            plots.pictures(line, torch.tensor([r[column] for r in shown]) / 255)
            for ax, row in zip(line, shown, strict=False):
                ax.set_title(title(row), fontsize=8.5)
    same = sum(r["label"] == r["twin_label"] for r in pairs)
    return (
        f"Above: {sum(r['suspect'] for r in suspects)} suspects among {len(suspects)} least believed labels, label → guess. "
        f"Below: the test pictures most like a training picture, and that picture; {same} of {len(pairs)} pairs have one label."
    )


REAL_LABELS = Experiment(
    "real_labels",
    run=real_labels,
    conditions=lambda s: conditions(seed=s.seeds),
    estimates=real_estimates,
    settings=(*NETWORK, "standard"),
    tiny=TINY,
    finding=real_finding,
    figure=draw_real,
    alt="First row: the six most suspect training pictures, each with its label and the class that a network names instead. "
    "Below: the six test pictures most like a training picture, and under each that training picture.",
)
