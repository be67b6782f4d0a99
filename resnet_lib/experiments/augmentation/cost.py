"""What does augmentation cost? Its share of a training step, and the usual loader beside a whole batch at once."""

import itertools

import torch
import torch.nn.functional as F
from torchvision.transforms import v2

from resnet_lib import augment, bench, ceilings, data, precision, resnets, stats, train
from resnet_lib.experiments.augmentation.learning import ALL_FIVE, BASE
from resnet_lib.experiments.augmentation.recipes import Augmented, Standardised, in_unit_range, reach_of
from resnet_lib.study import Experiment

COSTED = {"crop+flip": BASE, "all five": ALL_FIVE, "TrivialAugment": "trivial", "CutMix": "cutmix"}
WORKERS = 2


def step_of(s, depth: int, images, labels, config):
    """A training step on pictures in 0 … 1, as a callable to time."""
    with train.seeded(0):
        model = Standardised(s.pictures, depth, s.width)
    model = model.to(s.device, memory_format=torch.channels_last).train()
    optimizer = train.make_optimizer(model, config)
    dtype = ceilings.choose_precision(s.number_format, s.device)

    def step():
        with precision.autocast(dtype, s.device):
            loss = F.cross_entropy(model(images).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def step_costs(s, size: int) -> list[dict]:
    """Times of a training step at each depth and of each recipe's change of its batch, in turn; then the shares."""
    config = train.TrainConfig(batch_size=size, precision=s.number_format, device=str(s.device))
    unit = in_unit_range(s.pictures)
    images, labels = train.Batches(unit, unit.train, config, s.device).first()
    calls = {step_name(depth): step_of(s, depth, images, labels, config) for depth in s.cost_depths}
    for name, recipe in COSTED.items():
        task = Augmented(recipe, len(s.pictures.class_names), 1, 0)
        calls[name] = lambda task=task: task.changed(images, labels, None)
    rows = bench.compare(calls, rounds=s.cost_rounds, number=3)
    return rows + shares(rows, s.cost_depths)


def step_name(depth: int) -> str:
    return f"step of {depth} layers"


def shares(rows, depths) -> list[dict]:
    """The share of change and step together that the change takes, round by round."""
    times = {row["name"]: row["times_s"] for row in rows}
    return [
        {"depth": depth, "recipe": name, "round": k, "share": own / (own + step)}
        for depth, name in itertools.product(depths, COSTED)
        for k, (own, step) in enumerate(zip(times[name], times[step_name(depth)], strict=True))
    ]


class PerImage(torch.utils.data.Dataset):
    """Single pictures through torchvision's transforms, as a DataLoader's workers make them."""

    def __init__(self, split: data.Split):
        self.split = split
        steps = [v2.RandomCrop(split.images.shape[-2:], reach_of(split.images)), v2.RandomHorizontalFlip()]
        self.transform = v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        return self.transform(self.split.images[index]), self.split.labels[index]


def loader_costs(s, size: int) -> list[dict]:
    """Seconds for each batch of crop and flip: made by workers picture by picture, or on the device at once."""
    some = data.Split(s.pictures.train.images[: 16 * size], s.pictures.train.labels[: 16 * size])
    loader = torch.utils.data.DataLoader(
        PerImage(some), size, drop_last=True, num_workers=WORKERS, persistent_workers=True
    )
    on_device = some.images.to(s.device)
    calls = {
        "workers": lambda: [images.to(s.device) for images, _ in loader],
        "batches": lambda: [
            augment.random_crop_flip(batch, reach_of(batch)).float() / 255 for batch in on_device.split(size)
        ],
    }
    rows = bench.compare(calls, rounds=s.cost_rounds, warmup=1)
    for row in rows:
        row["time_s"] /= len(loader)
        row["workers"] = WORKERS if row["name"] == "workers" else 0
    return rows


def cost(s) -> list[dict]:
    size = min(s.cost_batch, len(s.pictures.train))
    return step_costs(s, size) + loader_costs(s, size)


def of_share(rows, depth: int, recipe: str) -> stats.Estimate:
    own = [r["share"] for r in rows if "share" in r and (r["depth"], r["recipe"]) == (depth, recipe)]
    return stats.interval(own, unit="share")


def timing(rows, name: str) -> dict | None:
    return next((r for r in rows if r.get("name") == name), None)


def estimates(rows, s):
    by_workers, at_once = (timing(rows, name)["times_s"] for name in ("workers", "batches"))
    return {
        "crop_flip_share": of_share(rows, max(s.cost_depths), "crop+flip"),
        "loader_ratio": stats.interval(
            [a / b for a, b in zip(by_workers, at_once, strict=True)], method="log-t", unit="times"
        ),
    }


def finding(rows, s, e):
    by_workers, at_once = (timing(rows, name)["time_s"] for name in ("workers", "batches"))
    steps = {depth: timing(rows, step_name(depth)) for depth in s.cost_depths}
    waiting = [str(depth) for depth, row in steps.items() if row and by_workers > row["time_s"]]
    keep_up = "keep up with every network here" if not waiting else f"make networks of {', '.join(waiting)} layers wait"
    mean = {name: of_share(rows, max(s.cost_depths), name).mean for name in COSTED}
    most = max(mean, key=mean.get)
    times = " and ".join(f"{1000 * row['time_s']:.1f} ms at {depth} layers" for depth, row in steps.items() if row)
    return (
        f"Crop and flip take {e['crop_flip_share']} of a step at {max(s.cost_depths)} layers, and "
        f"{of_share(rows, min(s.cost_depths), 'crop+flip')} at {min(s.cost_depths)}; of the "
        f"recipes timed, {most} takes most, {mean[most]:.1%} and {of_share(rows, min(s.cost_depths), most).mean:.1%}. "
        f"In {WORKERS} workers a batch of {min(s.cost_batch, s.facts['train'])} takes {1000 * by_workers:.1f} ms picture by "
        f"picture, against {1000 * at_once:.2f} ms at once: the ratio is {e['loader_ratio']}."
        + (f" A step takes {times}, so the workers {keep_up}." if times else "")
    )


def runs(s):
    for depth in s.cost_depths:
        resnets.cifar_config(depth)
    return [{}]


COST = Experiment(
    "cost",
    run=cost,
    conditions=runs,
    estimates=estimates,
    settings=("width", "cost_depths", "cost_batch", "cost_rounds", "number_format"),
    tiny={"width": 2, "cost_depths": [8], "cost_batch": 16, "cost_rounds": 2, "train_size": 128},
    finding=finding,
    timed=True,
)
