"""What decides the verdicts of the chapter on parallelism: on rows made by hand, and on processes that really train."""

import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from resnet_lib import data, parallel
from resnet_lib.experiments import parallelism
from resnet_lib.experiments.parallelism import (
    costs,
    engines,
    exact,
    faults,
    kinds,
    scaling,
    thousands,
    timed,
    traps,
    unavailable,
)
from tests.conftest import ROOT
from tests.experiments.conftest import made_up_pictures, settings

CPU = torch.device("cpu")
needs_processes = pytest.mark.skipif(bool(parallel.why_not()), reason=parallel.why_not() or "they can be started")
EXACT = {"processes": [2], "exact_depth": 8, "exact_width": 4, "exact_batch": 8, "exact_steps": 2, "micro_batches": 4}


def measuring(pictures=None, **values):
    """Settings as in a run: with pictures and a device."""
    pictures = pictures or made_up_pictures()
    return settings((0,), pictures.about(), **EXACT | values | {"pictures": pictures, "device": CPU})


# ---------------------------------------------------------------- kinds


def kind_row(name, processes=2, rank=0, **values):
    base = {"gradient_difference": 1e-16, "weight_difference": 1e-17, "held": 100, "parameters": 100, "batch": 8}
    base |= {"seen": 8, "stored": 300, "stored_predicted": 300, "sent": 800, "sent_ring": 800, "sent_gloo": 800}
    row = {"what": "kind", "name": name, "kind": engines.ENGINES[name], "processes": processes, "rank": rank}
    return row | {"backend": "gloo"} | base | values


def kind_rows(**of_tensor):
    found = [kind_row("data", rank=rank, seen=4) for rank in (0, 1)]
    found += [kind_row("data, accumulated", rank=rank, seen=4) for rank in (0, 1)]
    found += [kind_row("sharded", rank=rank, seen=4, held=50, stored=150, stored_predicted=150) for rank in (0, 1)]
    found += [kind_row("tensor", rank=rank, held=55 + rank, **of_tensor) for rank in (0, 1)]
    found += [kind_row("pipeline, GPipe", rank=rank, held=40 + 20 * rank) for rank in (0, 1)]
    return found + [kind_row("pipeline, 1F1B", rank=rank, held=40 + 20 * rank) for rank in (0, 1)]


def test_the_fullest_process_and_all_pictures_count():
    found = kinds.estimates(kind_rows(), settings())
    assert found["model_held"].mean == pytest.approx(0.60), "the second stage's, not the mean"
    assert found["model_seen"].mean == 1.0 and found["data_seen"].mean == 0.5 and found["data_held"].mean == 1.0
    assert found["difference"].mean == 1e-16 and found["difference"].method == "exact"
    assert kinds.estimates(kind_rows(seen=4), settings())["model_seen"].mean == 1.0, "the pipeline still sees all"


def test_one_wrong_process_shows():
    rows = kind_rows()
    rows[-1]["weight_difference"] = 0.5
    assert kinds.estimates(rows, settings())["difference"].mean == 0.5


def test_bytes_are_held_to_what_the_backend_does_and_to_a_ring():
    rows = [
        r | ({"sent": 1640, "sent_gloo": 1600, "sent_ring": 1200} if r["name"] == "sharded" else {})
        for r in kind_rows()
    ]
    found = kinds.estimates(rows, settings())
    assert found["sent_error"].mean == pytest.approx(40 / 1600)
    assert found["sharded_over_ring"].mean == pytest.approx(440 / 1200)
    uncounted = kinds.estimates([r | {"sent": None} for r in rows], settings())
    assert not [name for name in uncounted if "sent" in name] and "model_held" in uncounted
    assert "could not be counted" in kinds.finding([r | {"sent": None} for r in rows], settings(), uncounted)


def test_rules_about_two_processes_ignore_four():
    rows = kind_rows() + [kind_row("data", processes=4, seen=2), kind_row("tensor", processes=4, held=30)]
    assert kinds.estimates(rows, settings())["data_seen"].mean == 0.5
    with pytest.raises(ValueError, match="must hold 2"):
        kinds.runs(settings(processes=[4]))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"exact_batch": 6}, "exact_batch=6 must be a multiple of 4"),
        ({"exact_steps": 1}, "exact_steps=1 must be at least 2"),
        ({"exact_steps": 9}, "9 steps of 8 need 72 pictures; there are 24"),
    ],
)
def test_settings_that_allow_no_comparison_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        exact.prepared(measuring(**values), 2)


@needs_processes
def test_every_kind_trains_oblong_grey_pictures_as_one_process_does():
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (24, 1, 8, 12), dtype=torch.uint8, generator=draw)
    split = data.Split(images, torch.arange(24) % 3)
    one = torch.full((1,), 0.5)
    pictures = data.Dataset("made up", split, split, split, ("a", "b", "c"), "f", one, one, "")
    rows = [{"processes": 2} | r for r in exact.exact(measuring(pictures), 2)]
    found = kinds.estimates(kinds.of_kinds(rows), settings())
    assert found["difference"].mean < 1e-12
    assert found["model_held"].mean < 0.75 and found["model_seen"].mean == 1.0
    assert found["stored_error"].mean < 1e-9
    assert {r["name"] for r in kinds.of_kinds(rows)} == set(engines.ENGINES) - {engines.COMBINED}
    norm = traps.norm_estimates(rows, settings())
    assert norm["by_hand_gradient"].mean < 1e-9 and norm["by_hand_statistics"].mean < 1e-9
    assert norm["plain_gradient"].mean > 1e-3, "plain batch norm trains another function"
    layout = traps.layout_estimates(rows, settings())
    assert max(e.mean for name, e in layout.items() if name != "after_copies_first") < 1e-12
    assert layout["after_copies_first"].mean > 1e-3, "the trap is gone: say so in the chapter"
    told = traps.layout_finding(rows, settings(), layout)
    assert "not an error" in told and f"{layout['after_copies_first'].mean:.0%} of the largest off" in told
    uneven = traps.uneven_estimates(rows, settings())
    assert uneven["weighted"].mean < 1e-9 and uneven["absent"].mean < 1e-9 and uneven["means"].mean > 1e-3
    assert traps.convolution_estimates(rows, settings())["by_hand_wrong"].mean == 0


@needs_processes
def test_four_processes_can_divide_network_and_pictures_at_once():
    rows = [{"processes": 4} | r for r in exact.exact(measuring(processes=[2, 4]), 4)]
    one = next(r for r in kinds.busiest(kinds.of_kinds(rows)) if r["kind"] == engines.COMBINED)
    assert one["difference"] < 1e-12 and one["held"] < 0.75 and one["seen"] == 0.5
    assert one["stored"] == pytest.approx(one["stored_predicted"])
    assert "Both can be combined" in kinds.combined_words(kinds.of_kinds(rows))


def test_what_does_not_divide_is_refused_by_name():
    class Group:
        def size(self):
            return 3

        def rank(self):
            return 0

    with pytest.raises(ValueError, match="a batch of 8 does not divide among 3 processes"):
        engines.own(torch.zeros(8), Group())
    with pytest.raises(ValueError, match="16 channels do not divide among 3 processes"):
        engines.DividedUnit(engines.network({"depth": 8, "channels": 3, "classes": 2}, 16).units()[0], Group())
    with pytest.raises(ValueError, match="3 processes make no two pairs"):
        engines.combined(nn.Identity(), Group())


# ---------------------------------------------------------------- traps


def test_a_silently_wrong_layer_is_worse_than_a_refused_one():
    row = {"what": "convolution", "name": "c", "by": "DTensor", "processes": 2}

    def results(*given):
        return [row | {"result": result, "rank": k} for k, result in enumerate(given)]

    assert traps.verdicts_of(results("right", "refused"))["c", "DTensor"] == "refused"
    assert traps.verdicts_of(results("wrong", "refused"))["c", "DTensor"] == "wrong"
    assert traps.convolution_estimates(results("right", "wrong"), settings())["dtensor_wrong"].mean == 1


def test_a_refused_batch_norm_is_told_and_gives_no_number():
    base = {"what": "norm", "processes": 2, "refused": "", "gradient_difference": 0.2, "weight_difference": 0.1}
    base |= {"statistics_difference": 0.3}
    rows = [base | {"name": traps.PLAIN}, base | {"name": traps.BY_HAND, "gradient_difference": 1e-15}]
    rows.append({"what": "norm", "processes": 2, "name": traps.TORCH, "refused": "GPU modules only"})
    found = traps.norm_estimates(rows, settings())
    assert "torch_gradient" not in found and found["plain_gradient"].mean == 0.2
    assert "GPU modules only" in traps.norm_finding(rows, settings(), found)
    assert "GPU modules only" in traps.norm_table(rows, settings()).text


# ---------------------------------------------------------------- faults


@needs_processes
@pytest.mark.parametrize("fault", faults.FAULTS)
def test_training_survives(fault):
    (row,) = faults.faults(measuring(faults=[fault]), fault)
    if fault == "killed":
        assert row["restarts"] == 1 and row["resumed_at"] == faults.KILLED_AT - 1
        assert row["difference"] == 0, "bit for bit the weights of undisturbed training"
    elif fault == "hung":
        assert row["named"] == faults.PROCESSES - 1
        assert faults.PATIENCE_S < row["ended_s"] < faults.TIMEOUT_S / 2, "long before the one that hangs would answer"
    else:
        assert row["failed"] and row["resumed_at"] == 1 and row["difference"] == 0 and row["moved"] > 1e-9
    found = faults.estimates([{"fault": fault} | row], settings())
    words = faults.finding([{"fault": fault} | row], settings(), found)
    assert "bit for bit" in words or "the error names rank 1" in words


def test_unknown_faults_are_refused():
    with pytest.raises(ValueError, match="holds earthquake; allowed: killed, hung, disk full"):
        faults.runs(settings(faults=["earthquake"]))
    with pytest.raises(ValueError, match="faults is empty"):
        faults.runs(settings(faults=[]))


# ---------------------------------------------------------------- speed


def timed_rows(times, rounds=4, cores=2, spread=0.0):
    """Rows of steps: {(arm, processes): (pictures, seconds)}, each round a little slower than the one before."""
    rows = []
    for (arm, processes), (pictures, seconds) in times.items():
        for k in range(rounds):
            row = {"what": "step", "arm": arm, "processes": processes, "pictures": pictures, "round": k, "width": 4}
            rows.append(row | {"time_s": seconds * (1 + 0.1 * k) + spread * (k % 2), "cores": cores, "backend": "gloo"})
    return rows


TIMES = {
    ("one process", 1): (32, 0.10),
    ("data", 2): (64, 0.12),
    ("data, fixed batch", 2): (32, 0.08),
    ("data, one message", 2): (64, 0.15),
    ("data, no messages", 2): (64, 0.09),
    ("data, accumulated", 2): (256, 0.40),
    ("sharded", 2): (64, 0.25),
    ("tensor", 2): (32, 0.20),
    ("pipeline", 2): (32, 0.0625),
}


def test_speed_ups_are_rates_over_one_process_round_by_round():
    found = scaling.estimates(timed_rows(TIMES), settings())
    expected = {"data": 2 * 0.10 / 0.12, "fixed_batch": 0.1 / 0.08, "sharded": 2 * 0.1 / 0.25}
    expected |= {"tensor": 0.5, "pipeline": 1.6}
    for name, value in expected.items():
        one = found[f"{name}_speedup"]
        assert one.mean == pytest.approx(value) and one.n == 4 and one.unit == "times"
        assert one.high - one.low < 1e-9, "what slows a whole round cancels"
    assert found["message_share"].mean == pytest.approx(0.25) and found["message_share"].unit == "share"
    assert found["overlap_gain"].mean == pytest.approx(1.25)
    assert found["accumulation_gain"].mean == pytest.approx((256 / 0.4) / (64 / 0.12))
    assert found["crowding"].mean == pytest.approx(0.9)
    words = scaling.finding(timed_rows(TIMES), settings(), found)
    assert "Slower: sharded, a batch a process" in words and "tensor, one batch" in words


def test_processes_that_share_a_processor_decide_nothing():
    rows = timed_rows(TIMES, cores=1)
    assert scaling.estimates(rows, settings()) == {}
    assert "scaling/data_speedup: needs two processors" in scaling.notes(rows, settings())[0]
    assert len(scaling.notes(rows, settings())) == len(scaling.SPEEDUPS)
    on_gpus = [r | {"backend": "nccl"} for r in rows]
    assert "data_speedup" in scaling.estimates(on_gpus, settings())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"speed_processes": [4]}, "must hold 2"),
        ({"speed_batch": 12}, "speed_batch=12 must be a multiple of 8"),
        ({"rounds": 2}, "rounds=2 must be at least 3"),
    ],
)
def test_timings_that_allow_no_comparison_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        timed.runs(settings(**{"speed_processes": [2], "speed_batch": 16, "rounds": 3} | values))


# ---------------------------------------------------------------- the cost model


def modelled(link, compute, overlap, s, off=1.0, crowding=1.25):
    """Rows that a machine would give which behaves as the model says; the wider network's times `off` of that."""
    rows, base, where = [], costs.parts_for(s, s.speed_width), {"cores": 2, "backend": "gloo"}
    for k in range(3):
        for b in (4, 16, 32):
            rows.append({"what": "compute", "pictures": b, "processes": 1, "time_s": compute.seconds(b), "round": k})
        for size in timed.MESSAGES:
            taken = link.seconds(2, size)
            rows.append({"what": "link", "bytes": size, "processes": 2, "time_s": taken, "round": k})
        quiet = {"what": "step", "arm": "data, no messages", "processes": 2, "pictures": 64, "width": s.speed_width}
        rows.append(quiet | {"time_s": crowding * compute.seconds(32), "round": k})
        for arm, (kind, buckets) in costs.ARMS.items():
            wider = arm == "held out"
            width = s.speed_width * (timed.WIDER if wider else 1)
            parts = costs.parts_for(s, width)
            slower = sum(p.flops for p in parts) / sum(p.flops for p in base)
            pictures = 64 if arm in timed.WEAK else 32
            taken = parallel.step_s(
                kind,
                parts,
                2,
                pictures,
                parallel.Compute(crowding * compute.fixed_s, crowding * compute.picture_s * slower),
                link,
                overlap=0.0 if buckets == 1 and kind == "data" else overlap,
                buckets=buckets,
                micro_batches=timed.MICRO_BATCHES,
                engine="gloo",
            )
            what = "held out" if wider else "step"
            row = {"what": what, "arm": arm, "processes": 2, "pictures": pictures, "width": width, "round": k}
            rows.append(row | {"time_s": taken * (off if wider else 1)})
    return [r | where for r in rows]


def test_the_cost_model_finds_the_machine_it_was_made_from_and_states_its_error():
    s = settings(speed_depth=8, speed_width=8, facts={"shape": [3, 8, 8], "classes": 10})
    link, compute = parallel.Link(1e-4, 2e7), parallel.Compute(0.002, 0.0001)
    found = costs.estimates(modelled(link, compute, 0.4, s), s)
    assert found["latency"].mean == pytest.approx(100, rel=1e-3) and found["bandwidth"].mean == pytest.approx(
        0.02, rel=1e-3
    )
    assert found["overlap"].mean == pytest.approx(0.4) and found["crowding"].mean == pytest.approx(1.25)
    for name in ("error_fitted", "error_held_out", "error_other_kinds"):
        assert found[name].mean < 1e-6, name
    slower = costs.estimates(modelled(link, compute, 0.4, s, off=2.0), s)
    assert slower["error_held_out"].mean == pytest.approx(0.5), "predicted half of what it took"
    assert slower["error_fitted"].mean < 1e-6, "what is held out decides nothing of the fit"


# ---------------------------------------------------------------- thousands


def thousands_rows():
    return [{"system": system} | row for system in ("mlperf", "goyal") for row in thousands.thousands(None, system)]


def test_published_runs_that_were_fitted_come_out_and_the_others_test():
    rows = thousands_rows()
    of = {r["gpus"]: r for r in rows if r["system"] == "mlperf"}
    for n in thousands.FITTED:
        assert of[n]["predicted_rate"] == pytest.approx(of[n]["rate"])
    for n in (8, 3584):
        assert of[n]["predicted_epochs"] == pytest.approx(of[n]["epochs"])
    assert of[512]["predicted_rate"] == pytest.approx(of[512]["rate"]), "its batch is inferred from the rate"
    for n, r in of.items():
        whole = thousands.PICTURES * r["epochs"] / (n * r["rate"]) / 60
        assert whole == pytest.approx(r["minutes"], rel=0.03), "minutes, epochs and rate of a row agree"
        assert r["hardware"] * r["statistical"] == pytest.approx(r["linear"], rel=0.03)
    found = thousands.estimates(rows, None)
    assert abs(found["rate_error"].mean) < 0.15 and abs(found["epochs_error"].mean) < 0.1
    assert found["goyal_open"].mean < thousands.GOYAL["efficiency"] < found["goyal_hidden"].mean


def test_a_ring_pays_for_every_process_and_a_tree_for_their_logarithm():
    link = parallel.Link(1.0, math.inf)
    assert thousands.ring_s(1024, 1.0, link) == 2 * 1023 and thousands.tree_s(1024, 1.0, link) == 20
    free = parallel.Link(0.0, 1.0)
    assert thousands.ring_s(4, 8.0, free) == thousands.tree_s(4, 8.0, free) == 12


def test_the_critical_batch_goes_through_both_runs():
    a = {"gpus": 1, "batch": 100, "epochs": 11}
    b = {"gpus": 1, "batch": 1000, "epochs": 20}
    assert thousands.statistical(a, b) == (pytest.approx(10), pytest.approx(1000))


# ---------------------------------------------------------------- where nothing can be started


def test_a_build_without_gloo_measures_nothing_and_says_so(monkeypatch):
    monkeypatch.setattr(parallel, "why_not", lambda: "this build of PyTorch has no gloo")
    s = measuring(speed_processes=[2], speed_depth=8, speed_width=4, speed_batch=8, speed_seconds=0.01, faults=["hung"])
    for experiment in parallelism.EXPERIMENTS:
        if experiment is thousands.THOUSANDS:
            continue
        condition = {"rounds": 3} if experiment.run is timed.timings else {"processes": 2}
        condition = {"fault": "hung"} if experiment is faults.FAULT else condition
        rows = [condition | row for row in experiment.run(s, **condition)]
        rows = [r for r in rows if not experiment.kept or r["what"] in experiment.kept]
        assert rows and unavailable.skipped(rows) == "this build of PyTorch has no gloo"
        assert experiment.estimates(rows, s) == {}
        assert experiment.finding(rows, s, {}) == "Not measured: this build of PyTorch has no gloo."
        if experiment.table:
            assert "no gloo" in experiment.table(rows, s).text
        if experiment.figure:
            assert "no gloo" in experiment.figure(rows, s)
        if experiment.notes:
            assert all("no gloo" in note for note in experiment.notes(rows, s))


def test_what_the_chapter_says_holds_the_numbers_it_is_given():
    from resnet_lib.stats import exact as number

    class Anything(dict):
        def __missing__(self, name):
            if name.startswith("scaling/"):
                raise KeyError(name)
            return number(0.42, "share")

        def __contains__(self, name):
            return not name.startswith("scaling/")

    for say in (parallelism.answer, parallelism.answers, parallelism.practice):
        assert "42%" in say(Anything()) or "0.42" in say(Anything())
    assert "has not been published" in parallelism.answer(Anything())


@needs_processes
def test_the_comparison_runs_from_a_shell():
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, exact.__name__], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if "off one process" in line]
    assert [line.split("off")[0].strip() for line in lines] == [n for n in engines.ENGINES if n != engines.COMBINED]
    assert all(float(line.split()[line.split().index("process") + 1].rstrip(";")) < 1e-12 for line in lines)
