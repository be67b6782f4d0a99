"""The changes of pictures that this chapter trains with, the network that it trains, and how."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import v2

from resnet_lib import augment, data, resnets, train

CHANGES = ("crop", "flip", "rotation", "scaling", "colour", "noise", "cutout", "mixup", "cutmix")
NETWORK = ("depth", "width", "batch_size", "learning_rate", "epochs", "number_format")  # settings of every training


def seeded_generator(seed: int = 0, device="cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def reach_of(images: torch.Tensor) -> int:
    """Pixels that a crop shifts by at most: an eighth of the shorter side, 4 on pictures of 32."""
    return max(1, min(images.shape[-2:]) // 8)


def change(name: str, images: torch.Tensor, generator, seed: int = 0, epoch: int = 0) -> torch.Tensor:
    """Images, (N, C, H, W) in 0 … 1, changed as the name says; each picture by its own draw."""
    match name:
        case "crop":
            return augment.random_crop(images, reach_of(images), generator)
        case "crop, one draw":
            return v2.RandomCrop(images.shape[-2:], reach_of(images))(images)  # on a batch: one for all
        case "flip":
            return augment.random_flip(images, 0.5, generator)
        case "rotation":
            return augment.rotate(images, 15.0, generator=generator)
        case "scaling":
            return augment.scale(images, 0.2, generator=generator)
        case "colour":
            return augment.jitter(images, 0.4, 0.4, 0.4, 0.1, generator=generator)
        case "noise":
            return augment.noise(images, (0.0, 0.1), generator)
        case "cutout":
            return augment.cutout(images, min(images.shape[-2:]) // 2, generator=generator)
        case "trivial":
            return augment.trivial_augment(images, generator=generator)
        case "alternating":
            return augment.alternating_flip(images, first_side(images, seed), epoch)
    raise ValueError(f"change={name!r} is unknown")


def first_side(images: torch.Tensor, seed: int) -> torch.Tensor:
    """A fair coin for each picture that lasts for the whole training: parity of some of its pixels, (N,) bool."""
    some = torch.rand(images.shape[1:], generator=seeded_generator(seed)) < 0.5
    return ((images * 255).round() * some.to(images.device)).sum((1, 2, 3)) % 2 == 1


class Augmented:
    """Task: name the class, from pictures changed while training by a recipe such as "crop+flip".

    Pictures come to it in 0 … 1, because colours mean nothing after standardisation.
    """

    def __init__(self, recipe: str, classes: int, epoch_steps: int, seed: int):
        self.names = [] if recipe == "none" else recipe.split("+")
        self.classes, self.epoch_steps, self.seed, self.step = classes, epoch_steps, seed, 0

    def __call__(self, model, images, labels, generator):
        target = labels
        if model.training:
            with torch.autocast(images.device.type, enabled=False):  # full precision for pictures
                images, target = self.changed(images, labels, generator)
            self.step += 1
        logits = model(images).float()
        error = (logits.detach().argmax(1) != labels).float().mean()
        return {"loss": F.cross_entropy(logits, target), "error": error}

    def changed(self, images, labels, generator):
        for name in self.names:
            if name in ("mixup", "cutmix"):
                pair = getattr(augment, name)
                images, labels = pair(images, labels, 1.0, self.classes, generator)
            else:
                epoch = self.step // self.epoch_steps
                images = change(name, images, generator, self.seed, epoch)
        return images, labels


class Standardised(nn.Module):
    """A CIFAR ResNet that takes pictures in 0 … 1 and standardises them by its data set's statistics."""

    def __init__(self, dataset: data.Dataset, depth: int, width: int, **changes):
        super().__init__()
        self.net = network(dataset, depth, width, **changes)
        self.register_buffer("mean", dataset.mean.view(1, -1, 1, 1).clone())
        self.register_buffer("std", dataset.std.clamp_min(1 / 255).view(1, -1, 1, 1).clone())

    def forward(self, images):
        return self.net((images - self.mean) / self.std)


def network(dataset: data.Dataset, depth: int, width: int, **changes) -> resnets.ResNet:
    """ResNet-`depth` whose first stage has `width` channels."""
    shape = {"in_channels": dataset.train.images.shape[1], "num_classes": len(dataset.class_names)}
    return resnets.resnet_cifar(depth, widths=(width, 2 * width, 4 * width), **shape, **changes)


def training(s, **changes) -> train.TrainConfig:
    settings = {name: getattr(s, name) for name in ("epochs", "batch_size", "learning_rate") if name not in changes}
    return train.TrainConfig(**settings, **changes, precision=s.number_format, device=str(s.device))


def in_unit_range(dataset: data.Dataset) -> data.Dataset:
    """The same pictures, handed to a task in 0 … 1."""
    return replace(dataset, mean=torch.zeros_like(dataset.mean), std=torch.ones_like(dataset.std))


def fitted(
    dataset: data.Dataset, recipe: str, seed: int, depth: int, width: int, config: train.TrainConfig
) -> tuple[nn.Module, dict]:
    """The network trained by a recipe, and the last row of its training."""
    task = Augmented(recipe, len(dataset.class_names), len(dataset.train) // config.batch_size, seed)
    made = train.fit(
        lambda: Standardised(dataset, depth, width),
        in_unit_range(dataset),
        config,
        seed=seed,
        task=task,
        progress=False,
    )
    return made.model, made.rows[-1]


def accuracy(model: nn.Module, dataset: data.Dataset, split: data.Split, config: train.TrainConfig) -> float:
    return 1 - train.evaluate(model, in_unit_range(dataset), split, config)["error"]


def stretched(dataset: data.Dataset, images: torch.Tensor, labels: torch.Tensor) -> data.Dataset:
    """The data set with these pictures to train on, repeated to the length that it had: equally many steps."""
    index = torch.arange(len(dataset.train)) % len(labels)
    return replace(dataset, train=data.Split(images[index], labels[index]))


def refuse_standard(s) -> None:
    if not s.standard or set(s.standard.split("+")) - set(CHANGES):
        raise ValueError(f"standard={s.standard!r} must join some of {', '.join(CHANGES)} by '+'")
