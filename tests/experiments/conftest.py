"""What the tests of estimates need: settings as a published record gives them."""

from resnet_lib.study import Settings

FACTS = {"name": "made up", "train": 100, "val": 20, "test": 20, "shape": [3, 8, 8], "classes": 10}


def settings(seeds=(0, 1, 2), facts=None, **values):
    """The `s` of estimates and figures: the values given are its declared settings."""
    return Settings("test", values, seeds=list(seeds), facts=FACTS | (facts or {}))
