"""Train a network on a dataset: config, schedule, `fit`, `evaluate`; mixed precision, checkpoint and exact resume."""

import contextlib
import hashlib
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_lib import augment, precision
from resnet_lib.data import Dataset, Split

Task = Callable[[nn.Module, Tensor, Tensor, torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run beside the network, the data and the seed."""

    epochs: int = 10
    batch_size: int = 128  # images per step
    optimizer: str = "sgd"  # "sgd" (with Nesterov momentum) or "adamw"
    learning_rate: float = 0.1  # the highest of the schedule; of the summed-then-averaged (mean) batch loss
    momentum: float = 0.9  # SGD only
    weight_decay: float = 5e-4  # coupled in SGD, decoupled in AdamW; never on biases and norms
    schedule: str = "one_cycle"  # "one_cycle", "cosine", "step" or "constant"
    warmup: float = 0.2  # share of all steps in which the rate rises ("constant" has none)
    label_smoothing: float = 0.0  # probability given away to the other classes
    clip_norm: float = 0.0  # largest norm of the whole gradient; 0 does not clip
    ema_decay: float = 0.0  # of a moving average of the weights, per step; 0 keeps none
    augment: str = "none"  # "none", "crop" or "crop_flip"
    padding: int = 4  # pixels of shift at most, for "crop" and "crop_flip"
    precision: str = "auto"  # "auto", "fp32", "bf16" or "fp16" (see precision.choose_precision)
    channels_last: bool = True  # memory format of images and weights
    compile: bool = False  # through torch.compile
    device: str = "auto"  # "auto", "cpu", "cuda", …

    def __post_init__(self):
        choices = {
            "optimizer": ("sgd", "adamw"),
            "schedule": tuple(SCHEDULES),
            "augment": ("none", "crop", "crop_flip"),
            "precision": precision.PRECISIONS,
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, allowed))}")
        for name in ("epochs", "batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be a whole number of at least 1")
        for name in ("label_smoothing", "ema_decay", "momentum", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 0 and below 1")
        for name in ("weight_decay", "clip_norm", "padding"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 0 and finite")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate={self.learning_rate!r} must be positive and finite")


SCHEDULES: dict[str, Callable[[float], float]] = {  # share of the way from warm-up's end to the last step → factor
    "one_cycle": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "step": lambda done: 0.1 ** ((done >= 0.5) + (done >= 0.75)),  # He et al. 2015, §4.2: tenths at 32k and 48k of 64k
    "constant": lambda done: 1.0,
}


def lr_at(step: int, total_steps: int, config: TrainConfig) -> float:
    """The learning rate of step 0 … total_steps − 1.

    It rises linearly to `learning_rate` over the warm-up steps, then follows the schedule.
    """
    warmup_steps = 0 if config.schedule == "constant" else round(config.warmup * total_steps)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return config.learning_rate * SCHEDULES[config.schedule](done)


class Diverged(ArithmeticError):
    """The loss became NaN or infinite. Attributes: step, learning_rate, loss."""

    def __init__(self, step: int, learning_rate: float, loss: float):
        super().__init__(
            f"the loss became {loss} at step {step} with learning rate {learning_rate:.3g}; "
            "try a third of that rate, a longer warm-up, clip_norm=1, or precision='fp32'"
        )
        self.step, self.learning_rate, self.loss = step, learning_rate, loss


@dataclass(frozen=True)
class Fit:
    """What `fit` returns: one row per seed × epoch, and the trained network of each seed."""

    rows: list[dict]
    models: list[nn.Module]


def classification(label_smoothing: float = 0.0) -> Task:
    """The task of naming the class: cross-entropy loss, and error = the share of wrong first guesses."""

    def task(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        logits = model(images).float()
        smoothing = label_smoothing if model.training else 0.0
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        return {"loss": loss, "error": (logits.detach().argmax(1) != labels).float().mean()}

    return task


def fit(
    network: Callable[[], nn.Module] | nn.Module,
    dataset: Dataset,
    config: TrainConfig | None = None,
    *,
    seeds: int | list[int] = 1,
    task: Task | None = None,
    checkpoint: str | Path | None = None,
    on_divergence: str = "raise",
    progress: bool = True,
) -> Fit:
    """Train a network once for each seed.

    An epoch is N // batch_size full batches of a fresh permutation. A ragged last batch would disturb batch
    statistics and compiled code, so its images wait for another epoch's permutation.
    The seed decides initial weights, order and augmentation; on a CPU the same seed gives bit-identical weights
    (for a fixed number of threads). Global random state is left as it was.

    Args:
        network: makes a network with fresh weights (called once a seed); or one network, trained in place.
        seeds: how many (0, 1, …), or which.
        task: (model, images, labels, generator) → {"loss": …, other means}; classification if not given.
            Images come normalised, float32, on the device.
        checkpoint: a folder; each seed's state is kept there after every epoch, and training continues from it.
        on_divergence: "raise" stops with `Diverged`; "record" ends that seed with a row of diverged=True.
    Returns: rows with seed, epoch (from 1), step, learning_rate, train_<name> (mean over the epoch, in training mode),
        val_<name> (evaluation mode; of the averaged weights with ema_decay), diverged, time_s (training only).
    Raises: ValueError on bad input; Diverged.
    """
    config = config or TrainConfig()
    seeds = _seed_list(seeds)
    if isinstance(network, nn.Module) and len(seeds) > 1:
        raise ValueError(f"{len(seeds)} seeds need a function that makes the network, so that each starts afresh")
    if on_divergence not in ("raise", "record"):
        raise ValueError(f"on_divergence={on_divergence!r} is not one of 'raise', 'record'")
    if len(dataset.train) < config.batch_size:
        raise ValueError(
            f"batch_size={config.batch_size} is larger than the {len(dataset.train)} training images of {dataset.name}"
        )
    rows, models = [], []
    for seed in seeds:
        with seeded(seed):
            model = network if isinstance(network, nn.Module) else network()
            seed_rows, model = _fit_one(model, dataset, config, seed, task, checkpoint, on_divergence, progress)
        rows += seed_rows
        models.append(model)
    return Fit(rows, models)


def _seed_list(seeds: int | list[int]) -> list[int]:
    found = list(range(seeds)) if isinstance(seeds, int) else [int(seed) for seed in seeds]
    if not found:
        raise ValueError(f"seeds={seeds!r}: at least one seed is needed, and at least 3 for an interval worth showing")
    return found


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generators inside the block and restore them at the end."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum or AdamW, fused where that is safe; weight decay on matrices and filters only."""
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    kept = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    device = next(model.parameters()).device
    fused = device.type in ("cpu", "cuda")
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=fused)
    nesterov = config.momentum > 0
    # Where a loss scaler skips the first step, fused SGD goes on with a momentum that nobody has set (PyTorch 2.15).
    fused = fused and precision.choose_precision(config.precision, device) != "fp16"
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov, fused=fused)


class Batches:
    """A split on the device, as normalised float32 batches.

    The images move to the device once, as uint8 with their channels last; normalisation and augmentation
    happen there, on whole batches.
    """

    def __init__(self, dataset: Dataset, split: Split, config: TrainConfig, device: torch.device):
        if split.images.dtype != torch.uint8:
            raise ValueError(f"the images of {dataset.name} are {split.images.dtype}; they must be uint8, 0 … 255")
        self.pixels = split.images.to(device).permute(0, 2, 3, 1).contiguous()
        self.labels = split.labels.to(device)
        self.config, self.device = config, device
        std = dataset.std.clamp_min(1 / 255).to(device)  # a constant channel would divide by zero
        width = self.pixels.shape[2]  # repeated along a row of pixels, the channels' few numbers can be vectorised
        self.scale = (1 / (255 * std)).repeat(width)
        self.shift = (-dataset.mean.to(device) / std).repeat(width)

    def _prepare(self, images: Tensor) -> Tensor:
        rows = images.permute(0, 2, 3, 1).flatten(2).float().mul_(self.scale).add_(self.shift)  # (N, H, W·C)
        images = rows.unflatten(2, (images.shape[3], images.shape[1])).permute(0, 3, 1, 2)
        return images if self.config.channels_last else images.contiguous()

    def training(self, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Full batches of a permutation that depends on (seed, epoch) alone, so a resumed run repeats it."""
        config = self.config
        generator = torch.Generator(self.device).manual_seed(stream(seed, epoch))
        order = torch.randperm(len(self.labels), generator=generator, device=self.device)
        for start in range(0, len(order) - config.batch_size + 1, config.batch_size):
            chosen = order[start : start + config.batch_size]
            images = self.pixels[chosen].permute(0, 3, 1, 2)
            if config.augment == "crop":
                images = augment.random_crop(images, config.padding, generator)
            elif config.augment == "crop_flip":
                images = augment.random_crop_flip(images, config.padding, 0.5, generator)
            yield self._prepare(images), self.labels[chosen]

    def first(self, seed: int = 0) -> tuple[Tensor, Tensor]:
        """The first training batch of a seed: the one with which its first step is taken."""
        return next(self.training(seed, 0))

    def in_order(self, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every image once, unaugmented; the last batch may be smaller."""
        for start in range(0, len(self.labels), batch_size):
            images = self.pixels[start : start + batch_size].permute(0, 3, 1, 2)
            yield self._prepare(images), self.labels[start : start + batch_size]


def stream(*numbers: int) -> int:
    """A generator seed from several numbers, such that neighbouring ones give unrelated streams."""
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:7], "little")


def settle(model: nn.Module, batches: Batches, count: int | None = None) -> nn.Module:
    """Replace the norms' running averages, which remember their start, by plain averages over training batches.

    Args:    count: of the batches of epoch 0 of seed 0; None takes all of them.
    Returns: the model, in evaluation mode.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    update_rates = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # PyTorch's way to ask for a plain average
        model.train()
        with torch.no_grad():
            for images, _ in itertools.islice(batches.training(0, 0), count):
                model(images)
    finally:
        for norm, update_rate in zip(norms, update_rates, strict=True):
            norm.momentum = update_rate
    return model.eval()


def evaluate(
    model: nn.Module, dataset: Dataset, split: Split, config: TrainConfig | None = None, *, task: Task | None = None
) -> dict:
    """Means of the task's quantities over every image of a split, in evaluation mode, without augmentation."""
    config = config or TrainConfig()
    device = next(model.parameters()).device
    dtype = precision.choose_precision(config.precision, device)
    return _evaluate(model, Batches(dataset, split, config, device), task or classification(), dtype)


@torch.no_grad()
def _evaluate(model: nn.Module, batches: Batches, task: Task, dtype: str, batch_size: int = 500) -> dict:
    generator = torch.Generator(batches.device).manual_seed(0)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    totals: dict[str, Tensor] = {}
    try:
        for images, labels in batches.in_order(batch_size):
            with precision.autocast(dtype, batches.device):
                measured = task(model, images, labels, generator)
            for name, value in measured.items():
                totals[name] = totals.get(name, 0) + value.detach().double() * len(labels)
    finally:
        for module, training in modes:
            module.training = training
    return {name: (total / len(batches.labels)).item() for name, total in totals.items()}


def _fit_one(model, dataset, config, seed, task, checkpoint, on_divergence, progress) -> tuple[list[dict], nn.Module]:
    device = precision.choose_device(config.device)
    dtype = precision.choose_precision(config.precision, device)
    task = task or classification(config.label_smoothing)
    model = model.to(device, memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
    model.train()
    average = None
    if config.ema_decay:
        swa = torch.optim.swa_utils
        average = swa.AveragedModel(model, multi_avg_fn=swa.get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == "fp16")
    batches = Batches(dataset, dataset.train, config, device)
    val_batches = Batches(dataset, dataset.val, config, device)
    steps_per_epoch = len(dataset.train) // config.batch_size
    total_steps = config.epochs * steps_per_epoch
    state = {"model": model, "optimizer": optimizer, "scaler": scaler} | ({"average": average} if average else {})
    recipe = _recipe(config, dataset, seed, model, task)
    path = Path(checkpoint) / f"seed{seed}.pt" if checkpoint else None
    rows = _restore(path, recipe, state) if path else []
    if path and not rows:
        _save(path, recipe, state, rows)  # a folder that cannot be written shows now, not after an hour's epoch
    time_s = rows[-1]["time_s"] if rows else 0.0
    forward = torch.compile(model) if config.compile else model

    # Reading a loss from a GPU stops its queue, so there it is read only now and then.
    check_every = 1 if device.type == "cpu" else 50
    bar = progress_bar(total_steps, f"{dataset.name} seed {seed}", progress)
    bar.update(len(rows) * steps_per_epoch)
    for epoch in range(len(rows), config.epochs):
        generator = torch.Generator(device).manual_seed(stream(seed, epoch, 1))
        history: list[dict[str, Tensor]] = []
        precision.synchronise(device)
        started = time.perf_counter()
        row = {"seed": seed, "epoch": epoch + 1}
        try:
            for images, labels in batches.training(seed, epoch):
                step = epoch * steps_per_epoch + len(history)
                learning_rate = lr_at(step, total_steps, config)
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate
                with precision.autocast(dtype, device):
                    measured = task(forward, images, labels, generator)
                optimizer.zero_grad(set_to_none=True)
                scaler.scale(measured["loss"]).backward()
                if config.clip_norm:
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
                scaler.step(optimizer)
                scaler.update()
                if average:
                    average.update_parameters(model)
                history.append({name: value.detach() for name, value in measured.items()})
                if len(history) % check_every == 0 or len(history) == steps_per_epoch:
                    _check_finite(history, check_every, epoch * steps_per_epoch, total_steps, config)
                bar.update()
        except Diverged as error:
            if on_divergence == "raise":
                bar.close()
                raise
            row |= {"step": error.step, "learning_rate": error.learning_rate, "diverged": True}
            rows.append(row | {"time_s": time_s + time.perf_counter() - started})
            break
        precision.synchronise(device)
        time_s += time.perf_counter() - started
        row |= {"step": (epoch + 1) * steps_per_epoch, "learning_rate": learning_rate, "diverged": False}
        row |= {f"train_{n}": torch.stack([h[n] for h in history]).double().mean().item() for n in history[0]}
        judged = average.module if average else model
        measured = _evaluate(judged, val_batches, task, dtype)
        row |= {f"val_{name}": value for name, value in measured.items()}
        rows.append(row | {"time_s": time_s})
        bar.set_postfix_str(" ".join(f"{k} {row[k]:.3f}" for k in ("train_loss", "val_loss")))
        if path:
            _save(path, recipe, state, rows)
    bar.close()
    return rows, average.module if average else model


def _check_finite(history: list[dict], window: int, first_step: int, total_steps: int, config: TrainConfig) -> None:
    recent = history[-window:]
    losses = torch.stack([h["loss"] for h in recent])
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        index = len(history) - len(recent) + int(bad[0])
        step = first_step + index
        raise Diverged(step, lr_at(step, total_steps, config), history[index]["loss"].item())


def progress_bar(total: int, label: str, shown: bool = True):
    """A tqdm bar that behaves in a terminal, in Jupyter, in Colab and (a line every few seconds) in a log."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 5.0
    return tqdm(total=total, desc=label, disable=not shown, leave=False, mininterval=interval, unit="step")


def _recipe(config: TrainConfig, dataset: Dataset, seed: int, model: nn.Module, task: Task) -> str:
    # A plain network and its residual twin have the same shapes and weights: the modules and options tell them apart.
    options = str(getattr(model, "config", ""))
    name = getattr(task, "__qualname__", type(task).__name__)
    shapes = [(where, list(p.shape)) for where, p in model.named_parameters()]
    parts = [asdict(config), dataset.fingerprint, seed, name, repr(model), options, shapes]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _save(path: Path, recipe: str, state: dict, rows: list[dict]) -> None:
    content = {name: part.state_dict() for name, part in state.items()}
    content |= {"recipe": recipe, "rows": rows, "random": torch.get_rng_state()}
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            torch.save(content, file)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        raise OSError(f"the checkpoint {path} cannot be written: {error}; choose a folder with room") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _restore(path: Path, recipe: str, state: dict) -> list[dict]:
    if not path.exists():
        return []
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
        found = content["recipe"]
    except PermissionError:
        raise
    except Exception as error:  # reading damaged bytes fails in many ways
        raise ValueError(f"{path} is no whole checkpoint; delete that file to start again: {error}") from error
    if found != recipe:
        raise ValueError(
            f"{path} was written by a run with another config, dataset, seed, network or task; "
            "give this run another checkpoint folder, or delete that file to start again"
        )
    for name, part in state.items():
        part.load_state_dict(content[name])
    torch.set_rng_state(content["random"])
    return content["rows"]
