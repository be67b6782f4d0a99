"""Train a network on a dataset: config, schedule, `fit`, `settle`, `evaluate`."""

import contextlib
import hashlib
import itertools
import math
import numbers
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnet_lib import ceilings, checkpoints, devices, precision, steps
from resnet_lib.data import Dataset, Split

Task = Callable[[nn.Module, Tensor, Tensor, torch.Generator], dict[str, Tensor]]
Augmentation = Callable[[Tensor, torch.Generator], Tensor]  # of uint8 images (N, C, H, W), into the same


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
    precision: str = "auto"  # "auto" (measured), "fp32", "tf32", "bf16" or "fp16": see ceilings.choose_precision
    channels_last: bool = True  # memory format of images and weights
    compile: bool = False  # through torch.compile
    device: str = "auto"  # "auto", "cpu", "cuda", …

    def __post_init__(self):
        choices = {"optimizer": ("sgd", "adamw"), "schedule": tuple(SCHEDULES), "precision": precision.PRECISIONS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(repr, allowed))}")
        for name in ("epochs", "batch_size"):
            if not isinstance(getattr(self, name), numbers.Integral) or getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be a whole number of at least 1")
            object.__setattr__(self, name, int(getattr(self, name)))  # numpy's integers are no JSON
        for name in ("label_smoothing", "ema_decay", "momentum", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 0 and below 1")
        for name in ("weight_decay", "clip_norm"):
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
    """Training has failed: a loss is NaN or infinite, or no step could be taken. Attributes: step, learning_rate."""

    def __init__(self, what: str, step: int, learning_rate: float):
        super().__init__(
            f"{what} at step {step} with learning rate {learning_rate:.3g}; "
            "try a third of that rate, a longer warm-up, clip_norm=1, or precision='fp32'"
        )
        self.step, self.learning_rate = step, learning_rate


@dataclass(frozen=True)
class Fit:
    """What `fit` returns: one row per epoch, the trained network, and how its steps were taken."""

    rows: list[dict]
    model: nn.Module
    steps: str = ""  # "captured: …" or "eager: …", and why


def classification(label_smoothing: float = 0.0) -> Task:
    """The task of naming the class: cross-entropy loss, and error = the share of wrong first guesses."""

    @steps.repeatable
    def task(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        logits = model(images).float()
        smoothing = label_smoothing if model.training else 0.0
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        return {"loss": loss, "error": (logits.detach().argmax(1) != labels).float().mean()}

    return task


def recording(task: Task, losses: list[Tensor]) -> Task:
    """The task, of which each training step's loss is also appended to a list."""

    def recorded(model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        measured = task(model, images, labels, generator)
        if model.training:
            losses.append(measured["loss"].detach())
        return measured

    # a step replayed from a graph runs no Python: `fit` computes the task inside, and appends after it
    recorded.inside, recorded.after_step = task, lambda measured: losses.append(measured["loss"])
    return recorded


def fit(
    network: Callable[[], nn.Module] | nn.Module,
    dataset: Dataset,
    config: TrainConfig | None = None,
    *,
    seed: int = 0,
    task: Task | None = None,
    augmentation: Augmentation | None = None,
    checkpoint: str | Path | None = None,
    on_divergence: str = "raise",
    progress: bool = True,
) -> Fit:
    """Train a network from one seed.

    An epoch is N // batch_size full batches of a fresh permutation. A ragged last batch would disturb batch
    statistics and compiled code, so its images wait for another epoch's permutation.
    The seed decides initial weights, order and augmentation; on a CPU the same seed gives bit-identical weights
    (for a fixed number of threads). Global random state is left as it was.
    On an NVIDIA GPU the steps of a task that is `steps.repeatable` are replayed from a CUDA graph where that is
    quicker, with the same results within rounding; inside an epoch nothing waits for the GPU.

    Args:
        network: makes a network with fresh weights; or one network, trained in place.
        task: (model, images, labels, generator) → {"loss": …, other means}; classification if not given.
            Images come normalised, float32, on the device.
        augmentation: (images, generator) → images, of each training batch as uint8, before it is normalised.
        checkpoint: a file; the state is kept there after every epoch, and training continues from it.
        on_divergence: "raise" stops with `Diverged`; "record" ends with a row of diverged=True.
    Returns: rows with seed, epoch (from 1), step, learning_rate, train_<name> (mean over the epoch, in training mode),
        val_<name> (evaluation mode; of the averaged weights with ema_decay), diverged, time_s (training only).
    Raises: ValueError on bad input; Diverged where a loss is not finite, or float16 overflowed in every step.
    """
    config = config or TrainConfig()
    if not isinstance(seed, numbers.Integral):
        raise ValueError(f"seed={seed!r} must be a whole number; several seeds are several calls")
    if on_divergence not in ("raise", "record"):
        raise ValueError(f"on_divergence={on_divergence!r} is not one of 'raise', 'record'")
    if len(dataset.train) < config.batch_size:
        raise ValueError(
            f"batch_size={config.batch_size} is larger than the {len(dataset.train)} training images of {dataset.name}"
        )
    device = devices.choose(config.device)
    config = replace(config, precision=ceilings.choose_precision(config.precision, device))
    task = task or classification(config.label_smoothing)
    with seeded(int(seed)), precision.number_format(config.precision):
        state = _start(network, config, device)
        path = Path(checkpoint) if checkpoint else None
        recipe = checkpoints.recipe(config, dataset, seed, state["model"], (task, augmentation)) if path else ""
        rows = checkpoints.restore(path, recipe, state) if path else []
        if path and not rows:
            checkpoints.save(path, recipe, state, rows)  # a file that cannot be written shows now, not after an hour
        step = _stepper(state, task, config, device)
        epochs = _epochs(state, step, dataset, config, int(seed), task, augmentation, rows, progress)
        try:
            for row in epochs:
                rows.append(row)
                if path:
                    checkpoints.save(path, recipe, state, rows)
        except Diverged as failure:
            if on_divergence == "raise":
                raise
            rows.append(failure.row)
    return Fit(rows, _judged(state), step.how)


def _start(network: Callable[[], nn.Module] | nn.Module, config: TrainConfig, device: torch.device) -> dict:
    """All that a checkpoint keeps: model, optimizer, scaler, and with ema_decay the average of the weights."""
    model = network if isinstance(network, nn.Module) else network()
    kinds = {p.dtype for p in model.parameters()} - {torch.float32}
    if kinds:
        raise ValueError(f"the network's weights are {', '.join(map(str, kinds))}; they must be torch.float32")
    model = model.to(device, memory_format=torch.channels_last if config.channels_last else torch.contiguous_format)
    scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
    state = {"model": model.train(), "optimizer": make_optimizer(model, config), "scaler": scaler}
    if config.ema_decay:
        decay = torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema_decay)
        state["average"] = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=decay, use_buffers=True)
    return state


def _judged(state: dict) -> nn.Module:
    return state["average"].module if "average" in state else state["model"]


def _epochs(
    state: dict,
    step: steps.Stepper,
    dataset: Dataset,
    config: TrainConfig,
    seed: int,
    task: Task,
    augmentation: Augmentation | None,
    before: list[dict],
    progress: bool,
) -> Iterator[dict]:
    """A row for each epoch after those before.

    Raises: Diverged, whose attribute `row` says where.
    """
    device = next(state["model"].parameters()).device
    batches = Batches(dataset, dataset.train, config, device, augmentation)
    val_batches = Batches(dataset, dataset.val, config, device)
    count, after_step = len(dataset.train) // config.batch_size, getattr(task, "after_step", lambda measured: None)
    time_s = before[-1]["time_s"] if before else 0.0
    with progress_bar(config.epochs * count, f"{dataset.name} seed {seed}", progress) as bar:
        bar.update(len(before) * count)
        for epoch in range(len(before), config.epochs):
            devices.synchronise(device)
            started = time.perf_counter()
            row, last = {"seed": seed, "epoch": epoch + 1}, (epoch + 1) * count
            row |= {"step": last, "learning_rate": lr_at(last - 1, config.epochs * count, config), "diverged": False}
            step.generator.manual_seed(stream(seed, epoch, 1))
            try:
                history = _train(step, batches, config, seed, epoch, after_step, lambda measured: bar.update())
                devices.synchronise(device)
                elapsed = time.perf_counter() - started
                row |= {f"train_{n}": torch.stack([h[n] for h in history]).double().mean().item() for n in history[0]}
                _check_steps(state["scaler"], last, config.epochs * count, row["learning_rate"])
                measured = _evaluate(_judged(state), val_batches, task, config.precision)
                if not math.isfinite(measured["loss"]):
                    raise Diverged(f"the validation loss became {measured['loss']}", last - 1, row["learning_rate"])
            except Diverged as failure:
                where = {"step": failure.step, "learning_rate": failure.learning_rate, "diverged": True}
                failure.row = {"seed": seed, "epoch": epoch + 1} | where
                failure.row["time_s"] = time_s + time.perf_counter() - started
                raise
            time_s += elapsed
            row |= {f"val_{name}": value for name, value in measured.items()} | {"time_s": time_s}
            bar.set_postfix_str(" ".join(f"{k} {row[k]:.3f}" for k in ("train_loss", "val_loss")))
            yield row


def _stepper(state: dict, task: Task, config: TrainConfig, device: torch.device) -> steps.Stepper:
    model, optimizer, scaler, generator = state["model"], state["optimizer"], state["scaler"], torch.Generator(device)
    forward, task = torch.compile(model) if config.compile else model, getattr(task, "inside", task)

    def take(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with precision.autocast(config.precision, device):
            measured = task(forward, images, labels, generator)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(measured["loss"]).backward()
        if config.clip_norm:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        scaler.step(optimizer)
        scaler.update()
        if "average" in state:
            state["average"].update_parameters(model)
        return {name: value.detach() for name, value in measured.items()}

    shape = (config.optimizer, config.precision, f"clip_norm={config.clip_norm}", f"nhwc={config.channels_last}")
    why = steps.why_eager(task, model, config, device)
    return steps.Stepper(take, model, optimizer, generator, why, shape)


def _train(
    step: steps.Stepper, batches: "Batches", config: TrainConfig, seed: int, epoch: int, *told: Callable
) -> list[dict[str, Tensor]]:
    """What the task measured in each step of one epoch."""
    count = len(batches.labels) // config.batch_size
    first, total = epoch * count, config.epochs * count
    check_every = 1 if batches.device.type == "cpu" else count  # reading a loss from a GPU stops its queue
    history: list[dict[str, Tensor]] = []
    for images, labels in batches.training(seed, epoch):
        history.append(step(images, labels, lr_at(first + len(history), total, config)))
        for tell in told:
            tell(history[-1])
        if len(history) % check_every == 0:
            _check_finite(history, check_every, first, total, config)
    return history


def _check_finite(history: list[dict], window: int, first_step: int, total_steps: int, config: TrainConfig) -> None:
    recent = history[-window:]
    losses = torch.stack([h["loss"] for h in recent])
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        index = len(history) - len(recent) + int(bad[0])
        step = first_step + index
        raise Diverged(f"the loss became {history[index]['loss'].item()}", step, lr_at(step, total_steps, config))


def _check_steps(scaler: torch.amp.GradScaler, step: int, total_steps: int, learning_rate: float) -> None:
    """A scaler halves its scale, 65536 at first, with each step that it skips; a good start skips a few."""
    skipped_all = scaler.is_enabled() and scaler.get_scale() <= 2.0 ** (16 - step)
    if skipped_all and (step >= 32 or step == total_steps):
        what = "the gradient had overflowed float16 in every step, so none was taken,"
        raise Diverged(what, step - 1, learning_rate)


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
    fused = fused and ceilings.choose_precision(config.precision, device) != "fp16"
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov, fused=fused)


class Batches:
    """A split on the device, as normalised float32 batches.

    The images move to the device once, as uint8 with their channels last; normalisation and augmentation
    happen there, on whole batches.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        config: TrainConfig,
        device: torch.device,
        augmentation: Augmentation | None = None,
    ):
        if split.images.dtype != torch.uint8:
            raise ValueError(f"the images of {dataset.name} are {split.images.dtype}; they must be uint8, 0 … 255")
        self.pixels = split.images.to(device).permute(0, 2, 3, 1).contiguous()
        self.labels = split.labels.to(device)
        self.config, self.device, self.augmentation = config, device, augmentation
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
            if self.augmentation:
                images = self.augmentation(images, generator)
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
    chosen = ceilings.choose_precision(config.precision, device)
    with precision.number_format(chosen):
        return _evaluate(model, Batches(dataset, split, config, device), task or classification(), chosen)


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


def progress_bar(total: int, label: str, shown: bool = True):
    """A tqdm bar that behaves in a terminal, in Jupyter, in Colab and (a line every few seconds) in a log."""
    from tqdm import tqdm

    interval = 0.2 if sys.stderr.isatty() else 5.0
    return tqdm(total=total, desc=label, disable=not shown, leave=False, mininterval=interval, unit="step")
