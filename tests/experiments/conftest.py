"""What the tests of estimates need: settings as a published record gives them."""

import torch

from resnet_lib import data
from resnet_lib.study import Settings

FACTS = {"name": "made up", "train": 100, "val": 20, "test": 20, "shape": [3, 8, 8], "classes": 10}


def settings(seeds=(0, 1, 2), facts=None, **values):
    """The `s` of estimates and figures: the values given are its declared settings."""
    return Settings("test", values, seeds=list(seeds), facts=FACTS | (facts or {}))


def made_up_pictures(count=24, side=8, classes=3):
    """A data set of noise, the same each time."""
    generator = torch.Generator().manual_seed(0)

    def split(size):
        images = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
        return data.Split(images, torch.arange(size) % classes)

    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    parts = split(count), split(count // 2), split(count // 3)
    return data.Dataset("made up", *parts, ("a", "b", "c")[:classes], "f", mean, std, "")
