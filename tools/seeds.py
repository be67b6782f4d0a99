"""Which way of training several seeds of a small network is best on a device: in turn, in processes, or as one stack.

python -m tools.seeds --device cuda --seeds 5

A stack computes all seeds at once, by torch.func.vmap over their weights. Every number is measured: a network's
training, again and again, on random pictures; `tools.campaign` takes from it how many processes share its runs.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from resnet_lib import ceilings, data, devices, precision, resnets, steps, train
from tools.chapters import ROOT, command

# The training that is timed: a CIFAR ResNet's depth, the pictures' side, steps an epoch, epochs.
LOAD = {"depth": 20, "side": 32, "batch": 128, "steps": 100, "epochs": 5}
TINY = {"depth": 8, "side": 8, "batch": 4, "steps": 2, "epochs": 1}
GAIN = 1.1  # by which a way must be quicker than fewer processes


class Called:
    """A network with one seed's weights and averages, as a task calls it."""

    def __init__(self, model: nn.Module, state: tuple[dict, dict]):
        self.model, self.state, self.training = model, state, model.training

    def __call__(self, images: Tensor) -> Tensor:
        return functional_call(self.model, self.state, (images,))


def fit_stacked(
    network: Callable[[], nn.Module],
    dataset: data.Dataset,
    config: train.TrainConfig,
    seeds: Sequence[int],
    augmentation: train.Augmentation | None = None,
) -> list[train.Fit]:
    """What `train.fit` gives for each seed in classification, within rounding, from one training of all of them.

    Each seed has its own start, order and augmentation. What a network draws itself (dropout) differs from `fit`.

    Returns: a Fit a seed; time_s is that of all seeds together. A seed that diverges ends with a row that says so,
        and does not touch the others.
    Raises: ValueError for options that would mix the seeds, or that a stack does not have.
    """
    device = devices.choose(config.device)
    form = ceilings.choose_precision(config.precision, device)
    for name, value in {
        "clip_norm": config.clip_norm,
        "ema_decay": config.ema_decay,
        "compile": config.compile,
    }.items():
        if value:
            raise ValueError(f"{name}={value!r}: a stack of seeds has none")
    if form == "fp16":
        raise ValueError("precision='fp16': one loss scaler can't serve several seeds")
    models = []
    for seed in seeds:
        with train.seeded(seed):
            models.append(network().to(device).train())
    state = stack_module_state(models)
    optimizer = train.make_optimizer(models[0], config)
    names = {id(p): name for name, p in models[0].named_parameters()}
    for group in optimizer.param_groups:  # decay goes by a weight's own shape, not by the stack's
        group["params"] = [state[0][names[id(p)]] for p in group["params"]]
    task, generator = train.classification(config.label_smoothing), torch.Generator(device)

    def one(weights: dict, averages: dict, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return task(Called(models[0], (weights, averages)), images, labels, generator)

    def take(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        with precision.autocast(form, device):
            measured = vmap(one, randomness="different")(*state, images, labels)
        optimizer.zero_grad(set_to_none=True)
        measured["loss"].sum().backward()
        optimizer.step()
        return {name: value.detach() for name, value in measured.items()}

    why = steps.why_eager(task, models[0], config, device)
    step = steps.Stepper(take, Stack(state, models[0]), optimizer, generator, why, ("stack", config.optimizer, form))
    with precision.number_format(form):
        rows = _rows(step, state, models, dataset, config, seeds, augmentation)
    return [train.Fit(own, model, step.how) for own, model in zip(rows, models, strict=True)]


class Stack(nn.Module):
    """Stacked weights and averages, under names without dots."""

    def __init__(self, state: tuple[dict, dict], model: nn.Module):
        super().__init__()
        self.config = f"{next(iter(state[0].values())).shape[0]} × {model!r}"
        for name, value in state[0].items():
            self.register_parameter(name.replace(".", "/"), nn.Parameter(value, value.requires_grad))
        for name, value in state[1].items():
            self.register_buffer(name.replace(".", "/"), value)


def _rows(step, state, models, dataset, config, seeds, augmentation) -> list[list[dict]]:
    """Train; the rows of each seed, whose weights are then in its model."""
    device, count = next(models[0].parameters()).device, len(dataset.train) // config.batch_size
    batches = train.Batches(dataset, dataset.train, config, device, augmentation)
    rows, total, time_s = [[] for _ in seeds], config.epochs * count, 0.0
    for epoch in range(config.epochs):
        devices.synchronise(device)
        started, history = time.perf_counter(), []
        for pairs in zip(*(batches.training(seed, epoch) for seed in seeds), strict=True):
            images, labels = (torch.stack(part) for part in zip(*pairs, strict=True))
            history.append(step(images, labels, train.lr_at(epoch * count + len(history), total, config)))
        means = {name: torch.stack([h[name] for h in history]).double().mean(0).tolist() for name in history[0]}
        time_s += time.perf_counter() - started
        for place, (seed, model, own) in enumerate(zip(seeds, models, rows, strict=True)):
            if own and own[-1]["diverged"]:
                continue
            with torch.no_grad():
                for part, values in zip((model.named_parameters(), model.named_buffers()), state, strict=True):
                    for name, value in part:
                        value.copy_(values[name][place])
            row = {"seed": seed, "epoch": epoch + 1, "step": (epoch + 1) * count, "time_s": time_s}
            row["learning_rate"] = train.lr_at((epoch + 1) * count - 1, total, config)
            row |= {f"train_{name}": values[place] for name, values in means.items()}
            measured = train.evaluate(model, dataset, dataset.val, config)
            finite = all(
                value == value and abs(value) != float("inf") for value in (row["train_loss"], measured["loss"])
            )
            own.append(row | {f"val_{name}": value for name, value in measured.items()} | {"diverged": not finite})
    return rows


def train_load(load: dict, device: str, count: int) -> None:
    """Train the load once from one seed, or from several as a stack."""
    made = torch.Generator().manual_seed(0)
    shape = (load["steps"] * load["batch"], 3, load["side"], load["side"])
    images = torch.randint(256, shape, dtype=torch.uint8, generator=made)
    split = data.Split(images, torch.randint(10, shape[:1], generator=made))
    half, few = torch.full((3,), 0.5), data.Split(split.images[:500], split.labels[:500])
    names = tuple(map(str, range(10)))
    pictures = data.Dataset("noise", split, few, few, names, "noise", half, half / 2, "random numbers")
    config = train.TrainConfig(load["epochs"], load["batch"], device=device)
    make = lambda: resnets.resnet_cifar(load["depth"])  # noqa: E731
    if count == 1:
        train.fit(make, pictures, config, progress=False)
    else:
        fit_stacked(make, pictures, config, range(count))


def work(load: dict, device: str) -> None:
    """Answer each number of seeds that comes in with a training of them, until no more come."""
    for order in itertools.chain(["1"], sys.stdin):  # the first loads libraries and captures, as no later one must
        try:
            train_load(load, device, int(order))
            print("done", flush=True)
        except Exception as error:
            print(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", flush=True)


@contextlib.contextmanager
def workers(load: dict, device: str, count: int) -> Iterator[list[subprocess.Popen]]:
    """Processes that are ready to train, and end with the block."""
    call = [sys.executable, "-m", "tools.seeds", "--device", device, "--worker", json.dumps(load)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    found = [subprocess.Popen(call, env=environment, **pipes) for _ in range(count)]
    try:
        for worker in found:
            answered(worker)
        yield found
    finally:
        for worker in found:
            worker.kill()
            worker.communicate()


def answered(worker: subprocess.Popen) -> None:
    """Wait for a worker's answer.

    Raises: RuntimeError with its words where it has failed.
    """
    if (answer := worker.stdout.readline().strip()) != "done":
        raise RuntimeError(answer or f"a process ended with {worker.wait()}")


def timed(team: list[subprocess.Popen], seeds: int = 1) -> float:
    """Seconds until each of these workers has trained this many seeds."""
    started = time.perf_counter()
    for worker in team:
        worker.stdin.write(f"{seeds}\n")
        worker.stdin.flush()
    for worker in team:
        answered(worker)
    return time.perf_counter() - started


def compare(device: str, count: int = 5, load: dict = LOAD) -> dict:
    """What several seeds cost on a device, in times of what one costs there, and how many processes are best.

    Returns: seeds, load, one_s (a training alone), ready_s (until the processes stand ready), costs (way → times of
        one; to train in turn costs `seeds` by definition), jobs (of 1, 2, … processes, more only where they gain),
        text, and failed (way → why it could not be measured).
    """
    started = time.perf_counter()
    costs, failed, best = {"in turn": float(count)}, {}, 1
    with workers(load, device, count) as team:
        ready_s = time.perf_counter() - started
        one_s = timed(team[:1])
        for jobs in sorted({2, count}):
            costs[f"{jobs} processes"] = count / jobs * timed(team[:jobs]) / one_s
            if costs[f"{jobs} processes"] * GAIN < costs[f"{best} processes" if best > 1 else "in turn"]:
                best = jobs
        try:
            timed(team[:1], count)  # the first captures
            costs["a stack"] = timed(team[:1], count) / one_s
        except RuntimeError as error:
            failed["a stack"] = str(error)
    costs = {way: round(cost, 2) for way, cost in costs.items()}
    told = ", ".join(f"{way} {cost}" for way, cost in costs.items())
    text = f"{count} seeds of a ResNet-{load['depth']} at batch {load['batch']} cost, in times of one: {told}"
    found = {"seeds": count, "load": load, "one_s": round(one_s, 3), "ready_s": round(ready_s, 1), "costs": costs}
    return found | {"jobs": best, "text": text, "failed": failed}


def main(arguments: list[str] | None = None) -> int:
    parser = command("tools.seeds", __doc__)
    parser.add_argument("--device", default="auto", help="auto (default), cuda, cuda:1, cpu, …")
    parser.add_argument("--seeds", type=int, default=5, help="how many (default: %(default)s)")
    parser.add_argument("--tiny", action="store_true", help="a load for trying this out")
    parser.add_argument("--worker", type=json.loads, help="the load, in a process that the others start")
    options = parser.parse_args(arguments)
    if options.worker:
        work(options.worker, options.device)
        return 0
    try:
        devices.choose(options.device)
        if options.seeds < 2:
            raise ValueError(f"--seeds {options.seeds} must be at least 2")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(compare(options.device, options.seeds, TINY if options.tiny else LOAD), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
