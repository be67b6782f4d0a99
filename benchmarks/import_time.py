"""Seconds that importing all of resnet_lib takes once torch is there."""

import pkgutil
import subprocess
import sys
from collections.abc import Iterator

import resnet_lib
from benchmarks import Table, Target
from resnet_lib.bench import spread

CODE = "import time, torch; s = time.perf_counter(); import {modules}; print(time.perf_counter() - s)"


def import_s() -> float:
    modules = ", ".join(f"resnet_lib.{module.name}" for module in pkgutil.iter_modules(resnet_lib.__path__))
    command = [sys.executable, "-c", CODE.format(modules=modules)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def run(rounds: int = 5, quick: bool = False) -> Iterator[Table]:
    import_s()  # writes the byte code and warms the file cache
    measured = spread([import_s() for _ in range(rounds)])
    target = Target("all modules, beyond torch", measured, 0.1, unit=" s", at_most=True)
    yield Table(f"Import time: {rounds} fresh processes", [], [target])
