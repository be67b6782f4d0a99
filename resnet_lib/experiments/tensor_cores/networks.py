"""The networks of this chapter, and a whole training step with everything that can make it faster."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from resnet_lib import precision, resnets, train


def shape_of(s) -> dict:
    """Channels and classes of the data, as networks take them."""
    return {"in_channels": s.facts["shape"][0], "num_classes": s.facts["classes"]}


def whole_network(s):
    return resnets.resnet_cifar(s.depth, **shape_of(s))


def small_network(s):
    """A ResNet of 8 layers, narrow enough for a CPU's slow fp16."""
    widths = tuple(s.accuracy_width * k for k in (1, 2, 4))
    return resnets.ResNet(resnets.ResNetConfig((1, 1, 1), widths, **shape_of(s)))


def noise(s, batch: int, height: int, width: int = 0) -> tuple[Tensor, Tensor]:
    """Random pictures, square where only the height is given, and labels: time depends on shapes, not on values."""
    draw = torch.Generator().manual_seed(0)
    pixels = torch.randn(batch, s.facts["shape"][0], height, width or height, generator=draw)
    return pixels, torch.randint(s.facts["classes"], (batch,), generator=draw)


def training_step(
    make: Callable, images: Tensor, labels: Tensor, device, form: str = "fp32", last: bool = False, mode: str = ""
) -> Callable[[], Tensor]:
    """A whole training step, as a callable to time: forward, backward, SGD.

    Args: last: channels last; mode: of torch.compile, "" does not compile.
    """
    layout = torch.channels_last if last else torch.contiguous_format
    with train.seeded(0):
        model = make().to(device, memory_format=layout).train()
    images, labels = images.to(device).contiguous(memory_format=layout), labels.to(device)
    forward = torch.compile(model, mode=mode) if mode else model
    cast = "fp32" if form == "tf32" else form
    optimizer = train.make_optimizer(model, train.TrainConfig(precision=cast))
    scaler = torch.amp.GradScaler(device.type, enabled=form == "fp16")

    def step():
        if mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
        with precision.number_format(form):
            with precision.autocast(cast, device):
                loss = F.cross_entropy(forward(images).float(), labels)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        return loss.detach()

    return step
