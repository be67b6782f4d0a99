"""A training step as a callable: eager, or on an NVIDIA GPU replayed from a CUDA graph where that was found to pay.

A small network on a large GPU waits for its launches: an eager step asks for hundreds of kernels, a replay for one
graph.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn
from torch.optim import Optimizer

from resnet_lib import devices

Take = Callable[[Tensor, Tensor], dict[str, Tensor]]  # (images, labels) → what a task measured; takes the step
WARMUP = 3  # eager steps before a capture, which must find momenta, workspaces and chosen algorithms there
TIMED = 5  # steps of each kind, whose medians decide
GAIN = 1.05  # times as fast, at least, or the step stays eager
AGREEMENT = 0.1  # of a step's own length; a rate, a batch or an average that a replay forgot is farther off
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Choice:
    """How steps of one shape are taken, and why."""

    captured: bool
    why: str

    def __str__(self) -> str:
        return f"{'captured' if self.captured else 'eager'}: {self.why}"


CHOICES: dict[tuple[str, ...], Choice] = {}  # shape → what this process found; measured once


def repeatable(task: Callable) -> Callable:
    """Declare that a task's calls do nothing but compute on tensors, so that a replay is as good as a call.

    A replay runs no Python: what a task appends to a list, counts, draws from Python's random numbers, or decides by
    a tensor's value would happen once, in the capture. A task that declares nothing is never captured.
    """
    task.repeatable = True
    return task


def why_eager(task: Callable, model: nn.Module, config, device: torch.device) -> str:
    """Why a step must not be captured; "" where that may be tried. config: a `train.TrainConfig`."""
    reasons = {
        f"there are no CUDA graphs on {device.type}": device.type != "cuda",
        "the loss scaler of float16 reads back in each step whether it overflowed": config.precision == "fp16",
        "the step is compiled": config.compile,
        "the average of the weights reads back its count in each step": config.ema_decay > 0,
        "the task is not declared steps.repeatable": not getattr(task, "repeatable", False),
        "a module has hooks, which a replay would not call": any(getattr(m, h) for m in model.modules() for h in HOOKS),
    }
    return next((why for why, holds in reasons.items() if holds), "")


class CudaGraphs:
    """Capture and replay on one GPU."""

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.generator = torch.cuda.default_generators[device.index or 0]  # the device's own

    def aside(self, call: Callable[[], dict]) -> dict:
        """The call made on the stream of the capture, in turn with the work of the current one."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            measured = call()
        current.wait_stream(self.stream)
        return measured

    def capture(self, call: Callable[[], dict], generator: Generator) -> Callable[[], dict]:
        """What repeats the work of a call, in the same memory; the call itself is recorded and not made.

        Raises: whatever fails.
        """
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(generator)  # the device's own is always known to it
        try:
            with torch.cuda.device(self.device), torch.cuda.graph(graph, stream=self.stream):
                measured = call()
        except BaseException:
            graph.reset()  # else the generators go on waiting for the capture's end
            raise
        return lambda: graph.replay() or measured


class Stepper:
    """Takes the steps of one training; where it may capture, eager ones first, replays once they are found quicker.

    Every step is one of the training, so that to measure costs next to nothing: the first ones warm up, some are
    timed, one is taken both ways from the same state and compared, some replays are timed. What is found holds for
    all steps of the shape in this process.

    Args:
        take: one eager step, at the rate that the optimizer's groups hold.
        why: why steps are not to be captured; "" where that may be tried.
        shape: what distinguishes steps of different cost beside network and batch: number format, …
        generator: of the random numbers that `take` draws beside the device's own.
    """

    def __init__(
        self, take: Take, model: nn.Module, optimizer: Optimizer, generator: Generator, why: str, shape: tuple[str, ...]
    ):
        self.take, self.model, self.optimizer, self.generator = take, model, optimizer, generator
        self.fixed = Choice(False, why) if why else None
        self.graphs = None if why else CudaGraphs(generator.device)
        self.shape = (str(generator.device), repr(model), repr(getattr(model, "config", "")), *shape)
        self.key, self.replay, self.warm, self.eager_s, self.replayed_s = (), None, 0, [], []

    @property
    def choice(self) -> Choice | None:
        return self.fixed or CHOICES.get(self.key)

    @property
    def how(self) -> str:
        return str(self.choice or Choice(False, "the training ended before a replay could be timed"))

    def __call__(self, images: Tensor, labels: Tensor, learning_rate: float) -> dict[str, Tensor]:
        """Take a step; returns what the task measured in it, in memory of its own."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.key = (*self.shape, str(tuple(images.shape)))
        if self.choice and not self.choice.captured:
            self.replay = None
            return self.take(images, labels)
        if self.replay and self.choice:
            return self._replayed(images, labels)
        if self.replay:
            return self._timed(self.replayed_s, self._replayed, images, labels)
        if self.warm < WARMUP:
            self.warm += 1
            return self.graphs.aside(lambda: self.take(images, labels))
        if not self.choice and len(self.eager_s) < TIMED:
            return self._timed(self.eager_s, self.take, images, labels)
        return self._captured(images, labels)

    def _timed(self, times_s: list[float], call: Take, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        devices.synchronise(images.device)
        started = time.perf_counter()
        measured = call(images, labels)
        devices.synchronise(images.device)
        times_s.append(time.perf_counter() - started)
        if len(self.replayed_s) == TIMED:
            eager, replayed = (1000 * statistics.median(times_s) for times_s in (self.eager_s, self.replayed_s))
            why = f"a step takes {eager:.3g} ms, replayed {replayed:.3g} ms"
            CHOICES[self.key] = Choice(eager > GAIN * replayed, why)
        return measured

    def _replayed(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        self.images.copy_(images)
        self.labels.copy_(labels)
        self.rate.fill_(self.optimizer.param_groups[0]["lr"])
        return {name: value.clone() for name, value in self.replay().items()}  # the next replay writes there again

    def _inside(self) -> dict[str, Tensor]:
        """The step as it is captured: from memory that stays where it is, at a rate that is read there as well."""
        before = [dict(group) for group in self.optimizer.param_groups]
        try:
            for group in self.optimizer.param_groups:
                group |= {"lr": self.rate} | ({"capturable": True} if "capturable" in group else {})
            return self.take(self.images, self.labels)
        finally:  # a checkpoint and an eager step find the groups as ever
            for group, values in zip(self.optimizer.param_groups, before, strict=True):
                group |= values

    def _captured(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One step, from a fresh capture if that agrees with an eager step, else eager; a failure's reason is kept."""
        self.images, self.labels = torch.empty_like(images), torch.empty_like(labels)
        self.rate, start = torch.zeros((), device=images.device), None
        try:
            self.optimizer.zero_grad(set_to_none=True)  # gradients are to be made in the graph's own memory
            self.replay = self.graphs.capture(self._inside, self.generator)
            start = self._state()
            eager, after = self.take(images, labels), self._state()
            self._return_to(start)
            measured = self._replayed(images, labels)
            apart = [_distance(*parts) for parts in zip(after, self._state(), start, strict=True)]
            same = all(torch.allclose(measured[name], eager[name], AGREEMENT, 0.01) for name in eager)
            same = same and all(part < AGREEMENT for part in apart)  # NaN is no agreement
            why = "" if same else "a replay is not the step: apart by " + ", ".join(f"{part:.2g}" for part in apart)
        except Exception as error:  # what cannot be captured shows in many ways
            why = f"{type(error).__name__}: {(str(error) or 'no reason given').splitlines()[0]}"
        if not why:
            return measured
        CHOICES[self.key], self.replay = Choice(False, why), None
        if start:
            self._return_to(start)
        return self.take(images, labels)

    def _parts(self) -> list[list[Tensor]]:
        """All that a step changes: weights, buffers, the optimizer's memory."""
        moments = [v for values in self.optimizer.state.values() for v in values.values() if isinstance(v, Tensor)]
        return [[p.detach() for p in self.model.parameters()], [*self.model.buffers()], moments]

    def _state(self) -> list[list[Tensor]]:
        random = [generator.get_state() for generator in (self.generator, self.graphs.generator)]
        return [*([value.clone() for value in part] for part in self._parts()), random]

    def _return_to(self, state: list[list[Tensor]]) -> None:
        for part, saved in zip(self._parts(), state, strict=False):
            for value, before in zip(part, saved, strict=True):
                value.copy_(before)
        for generator, before in zip((self.generator, self.graphs.generator), state[-1], strict=True):
            generator.set_state(before)


def _distance(expected: list[Tensor], found: list[Tensor], start: list[Tensor]) -> float:
    """How far apart two ways from one start end, in lengths of the first; 0 where neither moves."""

    def length(ends: list[Tensor]) -> float:
        return sum(float((a.double() - b.double()).norm()) ** 2 for a, b in zip(ends, expected, strict=True)) ** 0.5

    return length(found) / moved if (moved := length(start)) else float(length(found) > 0)
