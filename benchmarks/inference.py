"""Images per second of a trained ResNet-18 that only answers: every way of `resnet_lib.inference`, and torchvision."""

import torch
import torchvision

from benchmarks import Table, faster
from resnet_lib import bench, devices, inference, resnets, train

PEER = "torchvision, eager float32"
SIX, EIGHT = 6.0, 8.0  # times as fast, on two cores: one picture, many


def run(rounds: int, quick: bool) -> list[Table]:
    batches, side = ((1, 2), 32) if quick else ((1, 32), 224)
    return [_table(batch, side, rounds, quick) for batch in batches]


def _table(batch: int, side: int, rounds: int, quick: bool) -> Table:
    device = devices.choose()
    with train.seeded(0):
        model = resnets.resnet18_imagenet()
        images = torch.randn(batch, 3, side, side)
        calibration = torch.randn(max(8, batch), 3, side, side)  # 8 bits are not judged by what they were set by
        model.train()(torch.randn(16, 3, 64, 64))  # so that the norms are not the identity
    model, images, calibration = model.to(device).eval(), images.to(device), calibration.to(device)
    peer = torchvision.models.resnet18()
    peer.load_state_dict(model.state_dict())
    ways, missing = inference.variants(model, images, calibration, compiled=not quick)
    ways[PEER] = torch.no_grad()(peer.to(device).eval())
    expected = ways[inference.REFERENCE](images)
    answers = {name: agreement(name, way(images), expected) for name, way in ways.items()}
    rows = bench.compare({name: (lambda way=way: way(images)) for name, way in ways.items()}, rounds=rounds)
    best = max((row for row in rows if row["name"] != PEER), key=lambda row: row["ratio"])["name"]
    bound = SIX if batch == 1 else EIGHT
    targets = [
        faster(rows, best, inference.REFERENCE, bound),
        faster(rows, inference.REFERENCE, PEER, 1.0),  # parity of the same kernels: a coin toss
    ]
    notes = [f"not measured: {name}: {why}" for name, why in missing.items()]
    title = f"ResNet-18, {side}×{side}, batch {batch}: a forward pass on {devices.describe(device)['name']}"
    return Table("\n  ".join([title, *notes, *answers.values()]), rows, targets, inference.REFERENCE, batch)


def agreement(name: str, logits: torch.Tensor, expected: torch.Tensor) -> str:
    """How near the logits of one way are to the plain network's, in words. Raises: ValueError where they are not."""
    off = ((logits - expected).norm() / expected.norm()).item()
    if not off <= 0.1:  # also where it is not a number
        raise ValueError(f"{name} gives other logits: {off:.0%} off, and at most 10% is allowed")
    same = (logits.argmax(1) == expected.argmax(1)).float().mean().item()
    return f"{name}: logits off by {off:.0e}, the same class first for {same:.0%} of the images"
