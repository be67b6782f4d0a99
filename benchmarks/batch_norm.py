"""Images per second of a ResNet-18 that only answers: its norms as they are, folded, left out, or for a compiler."""

import copy

import torch

from benchmarks import Table, faster
from benchmarks.inference import agreement
from resnet_lib import bench, devices, inference, resnets, train

PLAIN, FOLDED, NONE, COMPILED = "unfolded", "folded", "without any norm", "compiled, frozen"
IMAGES = 32  # in a timing, at the least
SAME = 0.97  # of the rate without any norm: the same operations, so only noise may stand between them


def run(rounds: int, quick: bool) -> list[Table]:
    batches, side = ((1, 2), 32) if quick else ((1, 32), 224)
    return [_table(batch, side, rounds, quick) for batch in batches]


def _table(batch: int, side: int, rounds: int, quick: bool) -> Table:
    device = devices.choose()
    with train.seeded(0):
        model, bare = resnets.resnet18_imagenet(), resnets.resnet18_imagenet(norm="none")
        images = torch.randn(batch, 3, side, side)
        model.train()(torch.randn(16, 3, 64, 64))  # so that the norms are not the identity
    model, bare, images = model.to(device).eval(), bare.to(device).eval(), images.to(device)
    ways, notes = variants(model, images, compiled=not quick)
    with torch.no_grad():
        expected = ways[PLAIN](images)
        answers = [agreement(name, way(images), expected) for name, way in ways.items()]
    ways[NONE] = bare  # another network with the folded one's operations, so its answers are its own

    def answer(way):
        with torch.no_grad():
            way(images)

    # Right after a compiled network, any other takes up to twice as long for a call: timings of many calls dilute it.
    number = 1 if quick else max(1, IMAGES // batch)
    calls = {name: (lambda way=way: answer(way)) for name, way in ways.items()}
    rows = bench.compare(calls, rounds=rounds, number=number)
    targets = [faster(rows, FOLDED, PLAIN, 1.0), faster(rows, FOLDED, NONE, SAME)]
    title = f"ResNet-18, {side}×{side}, batch {batch}: batch norm at inference on {devices.describe(device)['name']}"
    return Table("\n  ".join([title, *notes, *answers]), rows, targets, PLAIN, batch)


def variants(model, images: torch.Tensor, *, compiled: bool) -> tuple[dict, list[str]]:
    """The ways to run the network's norms, by name, and a sentence for each that was left out."""
    ways = {PLAIN: model, FOLDED: inference.folded(model, images)}
    if not compiled:
        return ways, ["The compiled network was left out, because compiling it takes long."]
    own = torch.compile(copy.deepcopy(model), options={"freezing": True})  # frozen weights let it fold the norms itself
    try:
        with torch.no_grad():
            own(images)  # compilation happens at the first call
    except RuntimeError as error:
        return ways, [f"{COMPILED} was left out: it does not compile here ({str(error).splitlines()[0]})."]
    return ways | {COMPILED: own}, []
