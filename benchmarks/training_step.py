"""Images per second of one training step: forward, backward, SGD with Nesterov momentum."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import Table, faster
from resnet_lib import bench, ceilings, devices, precision, resnets, train
from resnet_lib.blocks import PadShortcut

DEFAULTS = "resnet_lib, defaults"
EQUAL = "resnet_lib, float32 contiguous"
CHANNELS_LAST = "resnet_lib, float32 channels-last"
TEXTBOOK = "torchvision, textbook loop"  # float32 contiguous, like the next
TIMM = "timm, textbook loop"


class PeerResNet20(nn.Module):
    """He et al.'s ResNet-20 from a peer's basic blocks: neither torchvision nor timm has the network itself.

    Departs: neither has shortcut A either, so they take resnet_lib's, and all compute the same function.
    """

    def __init__(self, block: Callable[..., nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(*[block(16, 16) for _ in range(3)])
        self.layer2 = nn.Sequential(block(16, 32, 2, PadShortcut(16, 32, 2)), block(32, 32), block(32, 32))
        self.layer3 = nn.Sequential(block(32, 64, 2, PadShortcut(32, 64, 2)), block(64, 64), block(64, 64))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def cifar_stem(model: nn.Module) -> nn.Module:
    model.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return model


def networks(name: str) -> dict[str, nn.Module]:
    """The same network by resnet_lib, torchvision and timm, under the same parameter names, with the same weights."""
    import timm
    import torchvision

    if name == "ResNet-20":
        ours = resnets.resnet20_cifar()
        torchvisions = PeerResNet20(torchvision.models.resnet.BasicBlock)
        timms = PeerResNet20(timm.models.resnet.BasicBlock)
    else:
        ours = resnets.resnet18_cifar()
        torchvisions = cifar_stem(torchvision.models.resnet18(num_classes=10))
        timms = cifar_stem(timm.create_model("resnet18", num_classes=10))
    for peer in (torchvisions, timms):
        peer.load_state_dict(ours.state_dict())
    return {"resnet_lib": ours, "torchvision": torchvisions, "timm": timms}


def library_step(
    model: nn.Module, images: Tensor, labels: Tensor, config: train.TrainConfig
) -> Callable[[], dict[str, Tensor]]:
    """What `train.fit` does for each batch, on one batch that is ready. A test holds the two to the same weights."""
    device = images.device
    dtype = ceilings.choose_precision(config.precision, device)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout).train()
    images = images.contiguous(memory_format=layout)
    optimizer = train.make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "fp16")
    task = train.classification(config.label_smoothing)
    generator = torch.Generator(device)

    def step() -> dict[str, Tensor]:
        with precision.autocast(dtype, device):
            measured = task(model, images, labels, generator)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(measured["loss"]).backward()
        scaler.step(optimizer)
        scaler.update()
        return measured

    return step


def textbook_step(model: nn.Module, images: Tensor, labels: Tensor, config: train.TrainConfig) -> Callable[[], Tensor]:
    """The loop of a tutorial: float32, contiguous, and the optimizer as torch sets it."""
    model = model.to(images.device).train()
    optimizer = torch.optim.SGD(
        model.parameters(), config.learning_rate, config.momentum, weight_decay=config.weight_decay, nesterov=True
    )

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss

    return step


def variants(network: str, batch_size: int, device: torch.device) -> dict[str, Callable]:
    """A step of each variant on the same random batch; each has its own copy of the network."""
    config = train.TrainConfig(learning_rate=0.01)
    plain = train.TrainConfig(learning_rate=0.01, precision="fp32", channels_last=False)
    last = train.TrainConfig(learning_rate=0.01, precision="fp32")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, 32, 32, generator=generator).to(device)
    labels = torch.randint(0, 10, (batch_size,), generator=generator).to(device)
    peers = networks(network)
    return {
        TEXTBOOK: textbook_step(peers["torchvision"], images, labels, config),
        TIMM: textbook_step(peers["timm"], images, labels, config),
        EQUAL: library_step(peers["resnet_lib"], images, labels, plain),
        CHANNELS_LAST: library_step(networks(network)["resnet_lib"], images, labels, last),
        DEFAULTS: library_step(networks(network)["resnet_lib"], images, labels, config),
    }


def run(rounds: int = 5, quick: bool = False) -> Iterator[Table]:
    device = devices.choose()
    batch_size = 8 if quick else 128
    for network, steps in (("ResNet-20", 3), ("ResNet-18, CIFAR stem", 1)):
        calls = variants(network, batch_size, device)
        rows = bench.compare(calls, reference=TEXTBOOK, rounds=rounds, number=1 if quick else steps)
        targets = [faster(rows, EQUAL, peer, 1.0) for peer in (TEXTBOOK, TIMM)]
        if device.type == "cpu" and ceilings.choose_precision("auto", device) == "bf16":
            targets.append(faster(rows, DEFAULTS, TEXTBOOK, 1.6))
        title = f"Training step: {network}, batch {batch_size}, 32×32; {rows[0]['n']} interleaved rounds"
        yield Table(title, rows, targets, reference=TEXTBOOK, work=batch_size)
