"""Memory that 200,000 pictures of 64×64 take to decode and train on: python -m benchmarks.many_pictures [count]"""

import io
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import Table, Target
from resnet_lib.bench import spread

COUNT = 200_000  # pictures: 2.5 GB when decoded
SIDE, CLASSES, DISTINCT = 64, 10, 500
BOUND_GB = 1.5

WATCH = """
import glob, json, sys, threading, time
import torch
most, over = {"own": 0, "all": 0}, threading.Event()

def now(process, what):  # kB
    try:
        with open(f"/proc/{process}/status") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith(what))
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return 0

def family(process):
    found = [process]
    for name in glob.glob(f"/proc/{process}/task/*/children"):
        try:
            with open(name) as file:
                children = file.read().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += [one for child in children for one in family(child)]
    return found

def watch():
    while not over.wait(0.02):
        most["own"] = max(most["own"], now("self", ("RssAnon", "RssShmem")))
        most["all"] = max(most["all"], sum(now(one, ("RssAnon", "RssShmem")) for one in family("self")))

thread = threading.Thread(target=watch)
thread.start()
begin = time.perf_counter()
try:
    {work}
finally:
    over.set()
    thread.join()
most["with_files"] = now("self", ("VmHWM",))
print(json.dumps(most | {"loaded_s": loaded - begin, "trained_s": time.perf_counter() - loaded}))
"""
IDLE = "loaded = begin; time.sleep(0.2)"
TRAIN = """
    from torch import nn
    from resnet_lib import data, train
    found = data.load(sys.argv[1], root=sys.argv[2], progress=False)
    loaded = time.perf_counter()
    network = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    config = train.TrainConfig(epochs=1, batch_size=250, precision="fp32", device="cpu")
    assert train.fit(lambda: network, found, config, progress=False).rows
"""


def write_archive(path: Path, count: int) -> None:
    """A zip of JPEGs in class folders; every 500th repeats, which changes neither time nor memory."""
    from PIL import Image

    draw, contents = np.random.default_rng(0), []
    for _ in range(DISTINCT):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(file := io.BytesIO(), "JPEG", quality=85)
        contents.append(file.getvalue())
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(count):
            archive.writestr(f"{i % CLASSES}/{i}.jpg", contents[i % DISTINCT])


def memory(work: str, *arguments: str) -> dict:
    """The most that a fresh process holds while it works, in kB: its own and with its helpers'; and its seconds."""
    command = [sys.executable, "-c", WATCH.replace("{work}", work.strip()), *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def run(rounds: int = 5, quick: bool = False, count: int = COUNT) -> Iterator[Table]:
    """One round, whatever is asked for: it takes minutes, and memory hardly varies."""
    count = 3_000 if quick else count
    title = (
        f"Many pictures: {count:,} JPEGs of {SIDE}×{SIDE}, {count * SIDE * SIDE * 3 / 1e9:.2f} GB decoded, one epoch"
    )
    if not Path("/proc/self/status").exists():
        yield Table(f"{title}: not measured, for want of Linux's count of a process's own memory", [], [])
        return
    with tempfile.TemporaryDirectory() as folder:
        write_archive(Path(folder, "many.zip"), count)
        idle = memory(IDLE)
        first, second = (memory(TRAIN, f"{folder}/many.zip", f"{folder}/cache") for _ in range(2))
    targets = [
        Target(
            f"{text}, beyond torch", spread([(taken[whose] - idle[whose]) * 1024 / 1e9]), BOUND_GB, " GB", at_most=True
        )
        for text, taken, whose in (
            ("decode and train", first, "own"),
            ("decode and train, with the processes that help to decode", first, "all"),
            ("train from the cache", second, "own"),
        )
    ]
    notes = [
        f"{name}: {taken['loaded_s']:.0f} s to load, {taken['trained_s']:.0f} s to train; "
        f"{(taken['with_files'] - idle['with_files']) * 1024 / 1e9:.2f} GB beyond torch with pages of mapped files, "
        "which the system takes back when it needs them"
        for name, taken in (("first time", first), ("from the cache", second))
    ]
    yield Table("\n  ".join([title, *notes]), [], targets)


if __name__ == "__main__":
    for table in run(count=int(sys.argv[1]) if len(sys.argv) > 1 else COUNT):
        print(table)
        sys.exit(int(not all(target.reached for target in table.targets)))
