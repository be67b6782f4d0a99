"""The whole network, from stem to softmax: its cost by formula and by counting, and its logits beside torchvision's."""

import torch
from torch import nn

from resnet_lib import page, resnets, stats, train
from resnet_lib.experiments.resnet.networks import counted_cost, predicted
from resnet_lib.experiments.shapes import cifar_flops, cifar_parameters
from resnet_lib.study import Experiment

IMAGENET = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
VARIANTS = ("wide_resnet50_2", "resnext50_32x4d")
CIFAR_DEPTHS = (8, 20, 56, 110)


def logit_difference(name: str) -> dict[str, float]:
    """Largest absolute difference between our logits and torchvision's, same weights.

    The weights are random and the running statistics are those of one batch, so every layer matters.
    """
    import torchvision

    with train.seeded(0):
        theirs = getattr(torchvision.models, name)(weights=None).train()
        images = torch.randn(4, 3, 64, 64)
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0  # the running statistics become this batch's
    with torch.no_grad():
        theirs(images)
        with torch.device("meta"):  # draws no weights that would be thrown away
            ours = getattr(resnets, f"{name}_imagenet")()
        ours.load_state_dict(theirs.state_dict(), assign=True)
        logits, reference = ours.eval()(images), theirs.eval()(images)
    return {"difference": (logits - reference).abs().max().item(), "logit_std": reference.std().item()}


def has_imagenet_stem(model: resnets.ResNet) -> bool:
    first = model.conv1
    return first.kernel_size == (7, 7) and first.stride == (2, 2) and isinstance(model.maxpool, nn.MaxPool2d)


def networks(s, what: str, network: str) -> list[dict]:
    """A network's cost, predicted and counted; or the distance of its logits from torchvision's."""
    if what == "logits":
        return [logit_difference(network)]
    if network.startswith("CIFAR"):
        depth = int(network.rpartition("-")[2])
        row, _ = counted_cost(network, lambda: resnets.resnet_cifar(depth), 32)
        expected = cifar_parameters(depth), cifar_flops(depth)
    else:
        row, shape = counted_cost(network, getattr(resnets, f"{network}_imagenet"), 224)
        expected = predicted(shape, 224)
    return [row | {"predicted": expected[0], "predicted_flops": expected[1]}]


def estimates(rows, s):
    costs = [r for r in rows if "predicted" in r]
    return {
        "imagenet_difference": stats.exact(max(r["difference"] for r in rows if "difference" in r)),
        "cifar_same_stem": stats.exact(float(has_imagenet_stem(resnets.resnet_cifar(20)))),
        "parameters_off": stats.exact(max(abs(r["parameters"] - r["predicted"]) for r in costs), "parameters"),
        "flops_off": stats.exact(max(abs(r["flops"] - r["predicted_flops"]) for r in costs), "FLOPs"),
    }


def finding(rows, s, e):
    off = e["imagenet_difference"].mean
    missed = e["parameters_off"].mean, e["flops_off"].mean
    formulas = (
        f"The formulas miss the counted parameters by {missed[0]:.0f} and the counted FLOPs by {missed[1]:.0f}"
        if any(missed)
        else "The formulas give the counted parameters and FLOPs exactly"
    )
    return (
        f"Built in the survey's order, our five networks give torchvision's logits {f'to within {off:.1e}' if off else 'exactly'}. "
        f"{formulas}. The CIFAR networks of the same paper "
        f"{'have' if e['cifar_same_stem'].mean else 'do not have'} that stem: they begin with one 3×3 convolution of stride "
        "1, since a picture of 32 pixels has nothing to spare."
    )


def table(rows, s):
    logits = {r["network"]: r["difference"] for r in rows if "difference" in r}
    shown = [r | {"difference": logits.get(r["network"])} for r in rows if "predicted" in r]
    columns = {"network": "network", "parameters": ("parameters", ","), "predicted": ("predicted", ",")}
    columns |= {"flops": ("GFLOPs", lambda flops: f"{flops / 1e9:.3f}")}
    columns |= {"predicted_flops": ("predicted", lambda flops: f"{flops / 1e9:.3f}")}
    return page.table(shown, columns | {"difference": ("logits off torchvision's", ".0e")})


def _conditions(s):
    costs = [f"CIFAR ResNet-{depth}" for depth in CIFAR_DEPTHS] + [*IMAGENET, *VARIANTS]
    return [{"what": "cost", "network": n} for n in costs] + [{"what": "logits", "network": n} for n in IMAGENET]


NETWORKS = Experiment(
    "networks", run=networks, conditions=_conditions, estimates=estimates, finding=finding, table=table
)
