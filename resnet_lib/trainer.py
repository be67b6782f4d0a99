"""Train a CIFAR ResNet on pictures of your own, in one process or, by the same command under torchrun, in several.

python -m resnet_lib.trainer --dataset pictures.zip --config tuned/best.yml
torchrun --standalone --nproc-per-node 2 -m resnet_lib.trainer --dataset pictures.zip --config tuned/best.yml
"""

import argparse
import json
import os
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from resnet_lib import augment, ceilings, data, devices, parallel, resnets, train
from resnet_lib.paths import write_atomically

WEIGHTS, REPORT = "weights.pt", "report.json"


def processes() -> int:
    """How many processes torchrun started together with this one; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1)) if "TORCHELASTIC_RESTART_COUNT" in os.environ else 1


def divided(split: data.Split, rank: int, count: int) -> data.Split:
    """Every count-th picture from the rank-th on, equally many for each rank; up to count − 1 are left out."""
    chosen = slice(rank, len(split) - len(split) % count, count)
    return data.Split(split.images[chosen], split.labels[chosen])


def fitted(
    pictures: data.Dataset, config: train.TrainConfig, depth: int, width: int, flips: bool, seed: int, progress=False
) -> train.Fit:
    """Train ResNet-`depth`, whose first stage has `width` channels, on all processes that have joined, or on this one.

    Data parallelism: `batch_size` pictures a step in all, every process sees its own part of the training set, and
    gradients are averaged (Li et al. 2020, arXiv:2006.15704). On GPUs batch norm sums over the processes; PyTorch has
    no such norm for CPUs, where each process normalises by its own part of the batch.
    Raises: ValueError where the batch cannot be divided; what `train.fit` raises.
    """
    count = dist.get_world_size() if dist.is_initialized() else 1
    device = parallel.own_device() if count > 1 else devices.choose(config.device)
    shape = {"in_channels": pictures.train.images.shape[1], "num_classes": len(pictures.class_names)}
    reach = max(1, min(pictures.train.images.shape[2:]) // 8)

    def network() -> nn.Module:
        made = resnets.resnet_cifar(depth, widths=(width, 2 * width, 4 * width), **shape)
        # Before DDP wraps it, or its first averages are wrong: experiment 3 of the chapter on parallelism.
        made = made.to(device, memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
        if count == 1:
            return made
        if device.type == "cuda":
            made = nn.SyncBatchNorm.convert_sync_batchnorm(made)
        return nn.parallel.DistributedDataParallel(made)

    if config.batch_size % count:
        raise ValueError(f"batch_size={config.batch_size} must be a multiple of the {count} processes")
    if count > 1:
        wanted = [ceilings.choose_precision(config.precision, device)]
        dist.broadcast_object_list(wanted, src=0)  # each process would measure for itself, and may find otherwise
        pictures = replace(pictures, train=divided(pictures.train, dist.get_rank(), count))
        config = replace(config, batch_size=config.batch_size // count, precision=wanted[0])
    made = train.fit(
        network,
        pictures,
        replace(config, device=str(device)),
        seed=seed,
        augmentation=(lambda x, g: augment.random_crop_flip(x, reach, 0.5, g)) if flips else None,
        progress=progress,
    )
    return replace(made, model=getattr(made.model, "module", made.model))


def config_of(path: str, changes: dict) -> train.TrainConfig:
    """The settings of a YAML file, such as the best.yml of `resnet_lib.tune`, and what is given beside it.

    Raises: ValueError naming what is no setting, and what is; OSError where there is no such file.
    """
    import yaml

    read = yaml.safe_load(Path(path).read_text("utf-8")) if path else {}
    names = [f.name for f in fields(train.TrainConfig)]
    if not isinstance(read, dict) or (unknown := [name for name in read if name not in names]):
        wrong = f"{unknown[0]!r} is no setting" if isinstance(read, dict) else "it holds no settings"
        raise ValueError(f"{path}: {wrong}; settings are {', '.join(names)}")
    try:
        return train.TrainConfig(**read | changes)
    except TypeError as error:
        raise ValueError(f"{path}: {error}") from None


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m resnet_lib.trainer", description=(__doc__ or "").split("\n")[0])
    made.add_argument("--dataset", required=True, help="a known name, a folder of class folders, or an archive of one")
    made.add_argument("--config", default="", help="a YAML file of settings, such as tune's best.yml")
    made.add_argument("--epochs", type=int, default=None, help="in place of the file's")
    made.add_argument("--batch-size", type=int, default=None, help="pictures a step, over all processes")
    made.add_argument("--device", default=None)
    made.add_argument("--depth", type=int, default=8, help="layers, 6n + 2")
    made.add_argument("--width", type=int, default=16, help="channels of the first stage")
    made.add_argument("--flips", action="store_true", help="mirror and shift training pictures")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--image-size", type=int, default=None, help="pixels a side to resize to")
    made.add_argument("--train-size", type=int, default=0, help="training pictures; 0 takes all")
    made.add_argument("--folder", type=Path, default=Path("trained"), help=f"for {WEIGHTS} and {REPORT}")
    return made


def main(arguments: list[str] | None = None) -> int:
    given, count = parser().parse_args(arguments), processes()
    first = int(os.environ.get("RANK", 0)) == 0 or count == 1
    try:
        changes = {"epochs": given.epochs, "batch_size": given.batch_size, "device": given.device}
        config = config_of(given.config, {name: value for name, value in changes.items() if value is not None})
        resnets.cifar_config(given.depth)
        pictures = data.load(
            given.dataset, image_size=given.image_size, train_size=given.train_size, progress=first, seed=given.seed
        )
        if first:
            given.folder.mkdir(parents=True, exist_ok=True)
        if count > 1:
            parallel.join(parallel.backend(count, devices.choose(config.device)))
        made = fitted(pictures, config, given.depth, given.width, given.flips, given.seed, progress=first)
        if first:
            keep(made, pictures, config, given, count)
        if count > 1:
            parallel.leave()
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError, train.Diverged) as error:
        print(f"error: {error}" if first else "", end="\n" if first else "", file=sys.stderr)
        return 2
    return 0


def keep(made: train.Fit, pictures: data.Dataset, config: train.TrainConfig, given, count: int) -> None:
    """Write the weights and a report with the test error, and print it."""
    error = train.evaluate(made.model, pictures, pictures.test, replace(config, device=str(_device(made.model))))[
        "error"
    ]
    report = {
        "test_error": error,
        "test_pictures": len(pictures.test),
        "data": pictures.about()["text"],
        "classes": list(pictures.class_names),
        "network": {"depth": given.depth, "width": given.width},
        "config": asdict(config),
        "processes": count,
        "rows": made.rows,
    }
    temporary = given.folder / f".{WEIGHTS}.tmp"
    torch.save({name: value.cpu() for name, value in made.model.state_dict().items()}, temporary)
    os.replace(temporary, given.folder / WEIGHTS)
    write_atomically(given.folder / REPORT, json.dumps(report, indent=1))
    print(f"test error {error:.1%} on {len(pictures.test):,} pictures, by {count} process{'es' * (count > 1)}")
    print(given.folder / WEIGHTS)
    print(given.folder / REPORT)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


if __name__ == "__main__":
    sys.exit(main())
