"""Processes that train together: they start, fail, end; what they would store, send and take is predicted."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from resnet_lib import parallel, resnets
from resnet_lib.parallel import Compute, Link, Part

needs_processes = pytest.mark.skipif(bool(parallel.why_not()), reason=parallel.why_not() or "they can be started")
ROOT = Path(__file__).resolve().parents[1]


def part(parameters=10, split=0, inputs=4, outputs=4, flops=100, layers=2):
    """A made-up part: `layers` weights of one dimension."""
    shapes = tuple((parameters // layers,) for _ in range(layers))
    return Part("made up", shapes, split, inputs, outputs, flops, 0)


# ---------------------------------------------------------------- jobs, run by the workers


def who(settings, tensors):
    """Rank, what was given, and the sum over all processes of what only each of them knows."""
    import torch.distributed as dist

    mine = torch.tensor([float(dist.get_rank() + 1)])
    dist.all_reduce(mine)
    here = {"threads": torch.get_num_threads(), "given": settings["given"], "total": tensors["x"].sum().item()}
    return [here | {"sum": mine.item()}]


def fails(settings, tensors):
    import torch.distributed as dist

    if dist.get_rank() == 1:
        raise ValueError("this process has had enough")
    return []


def waits(settings, tensors):
    Path(settings["mark"] + str(os.getpid())).touch()
    time.sleep(300)
    return []


def sums(settings, tensors):
    """The bytes that a sum over all processes sends, as the kernel counts them."""
    import torch.distributed as dist

    x = torch.zeros(settings["numbers"])
    dist.all_reduce(x)
    dist.barrier()
    before = parallel.sent_bytes()
    dist.all_reduce(x)
    dist.barrier()
    return [{"sent": parallel.sent_bytes() - before}]


def marked(folder: Path) -> list[int]:
    return [int(path.name.removeprefix("pid")) for path in folder.glob("pid*")]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{pid}/status").read_text() if Path("/proc/self/status").exists() else True


def soon(condition, seconds=20.0) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.1)
    return condition()


@needs_processes
def test_a_job_runs_in_every_process_with_its_settings_its_tensors_and_one_thread():
    rows = parallel.launch(who, {"given": "this"}, 2, tensors={"x": torch.arange(4.0)}, timeout_s=120)
    assert rows == [{"rank": rank, "threads": 1, "given": "this", "total": 6.0, "sum": 3.0} for rank in (0, 1)]


@needs_processes
def test_a_job_that_fails_says_in_which_process_and_why():
    with pytest.raises(RuntimeError, match="(?s)test_parallel:fails failed in one of 2.*this process has had enough"):
        parallel.launch(fails, {}, 2, timeout_s=120)


@needs_processes
def test_a_time_limit_ends_every_process(tmp_path):
    settings = {"mark": str(tmp_path / "pid")}
    with pytest.raises(TimeoutError, match="waits took longer than 15 s"):
        parallel.launch(waits, settings, 2, timeout_s=15)
    assert len(marked(tmp_path)) == 2, "both were there"
    assert soon(lambda: not any(map(alive, marked(tmp_path))))


@needs_processes
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["interrupted", "killed"])
def test_no_process_outlives_the_one_that_started_it(tmp_path, how):
    code = (
        "from resnet_lib import parallel; from tests import test_parallel as t; "
        f"parallel.launch(t.waits, {{'mark': {str(tmp_path / 'pid')!r}}}, 2, timeout_s=200)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    starter = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    assert soon(lambda: len(marked(tmp_path)) == 2, 60)
    starter.send_signal(how)
    starter.wait(60)
    assert soon(lambda: not any(map(alive, marked(tmp_path)))), "orphans"


@needs_processes
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a connection has sent")
def test_the_kernel_counts_what_a_ring_sends():
    numbers = 50_000
    rows = parallel.launch(sums, {"numbers": numbers}, 2, timeout_s=120)
    for row in rows:
        assert row["sent"] == pytest.approx(2 * (2 - 1) / 2 * 4 * numbers, rel=0.02)


def test_what_cannot_be_started_is_refused_before_it_is_tried(monkeypatch):
    with pytest.raises(ValueError, match="processes=0 must be at least 1"):
        parallel.launch(who, {}, 0)
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    assert "no torch.distributed" in parallel.why_not()
    with pytest.raises(RuntimeError, match="this build of PyTorch has no torch.distributed"):
        parallel.launch(who, {}, 2)


def test_a_gpu_backend_is_taken_only_where_each_process_has_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert [parallel.backend(n, cuda) for n in (2, 3)] == ["nccl", "gloo"]
    assert parallel.backend(2, cpu) == "gloo"


# ---------------------------------------------------------------- what a network is made of


def test_the_parts_of_a_network_are_all_of_it_in_order():
    model = resnets.resnet_cifar(14, norm="none")
    parts = parallel.parts_of(model, (3, 16, 16))
    assert sum(p.parameters for p in parts) == resnets.count_parameters(model)
    assert [p.name for p in parts if p.shapes] == [
        "conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "fc",
    ]  # fmt: skip
    first, unit, linear = (next(p for p in parts if p.name == name) for name in ("conv1", "layer3.0", "fc"))
    assert first.flops == 2 * 27 * 16 * 16 * 16 and first.split == 0
    assert (unit.inputs, unit.outputs) == (32 * 8 * 8, 64 * 4 * 4)
    assert unit.split == unit.parameters - 64, "all but the second convolution's bias"
    assert (linear.inputs, linear.outputs, linear.split) == (64, 10, 640)


def test_the_counts_are_those_of_pytorchs_own_counter_on_a_network_of_another_library():
    import torchvision
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model, one = torchvision.models.resnet18(), torch.empty(1, 3, 64, 64)
        with FlopCounterMode(display=False) as counter:
            model(one)
    parts = parallel.parts_of(model, (3, 64, 64))
    assert sum(p.flops for p in parts) == counter.get_total_flops()
    assert sum(p.parameters for p in parts) == resnets.count_parameters(model)


def test_a_network_that_is_no_chain_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.layer(self.layer(x))

    with pytest.raises(ValueError, match="part 'layer' runs twice"):
        parallel.parts_of(Twice(), (3, 4, 4))
    with pytest.raises(ValueError, match="there is no part to count"):
        parallel.parts_of(nn.Conv2d(3, 3, 1), (3, 4, 4))


def test_a_chain_is_cut_where_its_dearest_stage_is_cheapest():
    assert parallel.cut([1, 1, 1, 3], 2) == [0, 3]
    assert parallel.cut([5, 1, 1, 1], 2) == [0, 1]
    assert parallel.cut([1, 2, 3], 3) == [0, 1, 2]
    costs = [3, 1, 4, 1, 5, 9, 2, 6]
    starts = [*parallel.cut(costs, 3), len(costs)]
    best = min(max(sum(costs[:a]), sum(costs[a:b]), sum(costs[b:])) for a in range(1, 7) for b in range(a + 1, 8))
    assert max(sum(costs[a:b]) for a, b in zip(starts, starts[1:], strict=False)) == best
    with pytest.raises(ValueError, match="stages=3 must be from 1 to 2"):
        parallel.cut([1, 1], 3)


# ---------------------------------------------------------------- stored, sent, taken


def test_what_is_stored_follows_from_the_parts():
    parts = [part(12), part(20, split=16), part(8)]
    assert parallel.stored("data", parts, 2) == 3 * 40
    assert parallel.stored("sharded", parts, 2) == 3 * 20
    assert parallel.stored("tensor", parts, 2) == 3 * (24 + 8)
    assert parallel.stored("pipeline", parts, 2) == 3 * 28
    assert parallel.stored("data", parts, 2, copies=4) == 4 * 40
    assert parallel.stored("sharded", [Part("", ((10, 7),), 0, 1, 1, 1, 0)], 4) == 3 * 3 * 7, "ten rows: 3, 3, 3, 1"


def test_what_is_sent_follows_from_the_parts():
    parts = [part(12, outputs=6), part(20, split=16, inputs=6, outputs=5, layers=4)]
    assert parallel.sent("data", parts, 4, 100) == 2 * 3 / 4 * 32, "whatever the batch"
    padded = 12 + 4 * 6  # five numbers do not divide by two
    assert parallel.sent("sharded", parts, 2, 100) == 1.5 * padded
    assert parallel.sent("sharded", parts, 2, 100, "gloo") == 2 * padded
    assert parallel.sent("tensor", parts, 2, 100) == 100 * (5 + 6)
    assert parallel.sent("pipeline", parts, 2, 100) == 100 * 6
    for kind in parallel.KINDS:
        assert parallel.sent(kind, parts, 1, 100) == 0, kind
    with pytest.raises(ValueError, match="kind='model' is not one of 'data', 'sharded', 'tensor', 'pipeline'"):
        parallel.sent("model", parts, 2, 1)


def test_fits_give_back_what_made_the_measurements():
    link, compute = Link(2e-4, 3e9), Compute(0.004, 0.0003)
    measured = [(2 * k, size, link.seconds(2 * k, size)) for k in (1, 3) for size in (1e3, 1e5, 1e7)]
    found = parallel.fit_link(measured)
    assert found.latency_s == pytest.approx(link.latency_s) and found.bytes_s == pytest.approx(link.bytes_s)
    found = parallel.fit_compute([(b, compute.seconds(b)) for b in (8, 64, 128)])
    assert found.fixed_s == pytest.approx(0.004) and found.picture_s == pytest.approx(0.0003)
    assert parallel.fit_compute([(1, 1.0), (2, 1.9), (3, 3.1)]).fixed_s >= 0
    with pytest.raises(ValueError, match="a line needs at least two"):
        parallel.fit_compute([(1, 1.0)])


def test_a_step_takes_its_arithmetic_and_what_of_the_messages_nothing_hides():
    parts, compute, slow = [part(3000, flops=100)] * 4, Compute(0.0, 0.001), Link(0.0, 1e5)
    wire = 4 * 12000 / 1e5
    assert parallel.step_s("data", parts, 1, 100, compute, slow) == pytest.approx(0.1)
    none, all_ = (parallel.step_s("data", parts, 2, 100, compute, slow, overlap=o) for o in (0.0, 1.0))
    assert none == pytest.approx(0.05 + wire) and all_ == pytest.approx(0.05 + wire - 0.05 * 2 / 3)
    fast = Link(0.0, 1e12)
    assert parallel.step_s("data", parts, 2, 100, compute, fast) == pytest.approx(0.05)
    piped = parallel.step_s("pipeline", parts, 2, 100, compute, fast, micro_batches=8)
    assert piped == pytest.approx(0.05 * 9 / 8), "one of nine turns is idle"
    late = parallel.step_s("data", parts, 8, 80, compute, Link(0.01, 1e12), overlap=0.0)
    assert late == pytest.approx(0.01 + 2 * 7 * 0.01)


def test_a_plan_says_what_fits_and_prefers_what_sends_little(capsys):
    arguments = ["--plan", "resnet18", "--picture-ms", "1", "--processes", "4", "--batch", "64", "--device", "cpu"]
    assert parallel.main([*arguments, "--json", "--link-gbit", "10"]) == 0
    rows = {row["kind"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == ["one process", *parallel.KINDS]
    assert rows["one process"]["speedup"] == 1 and rows["one process"]["sent"] == 0
    assert rows["sharded"]["stored"] < 0.3 * rows["data"]["stored"]
    assert all(math.isfinite(row["step_s"]) and row["fits"] for row in rows.values())
    assert parallel.main([*arguments, "--memory-gb", "0.15"]) == 0
    shown = capsys.readouterr().out
    assert "11,689,512 parameters" in shown and "None fits" in shown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say --plan NETWORK"),
        (["--plan", "resnet51"], "--plan resnet51: neither a network of torchvision.models nor module:function"),
        (["--plan", "resnet18", "--processes", "0"], "--processes 0 must be above 0"),
        (["--plan", "nowhere:made"], "nowhere"),
        (["--plan", "resnet18", "--device", "gpu"], "device='gpu'"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        parallel.main(arguments)
    assert stopped.value.code == 2 and words in capsys.readouterr().err
