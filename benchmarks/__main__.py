"""Run the benchmarks and print their tables: python -m benchmarks [name …] [--rounds N] [--quick]"""

import argparse
import dataclasses
import datetime
import importlib
import importlib.metadata
import platform
import sys

from resnet_lib import devices

NAMES = ("training_step", "inference", "batch_norm", "data_pipeline", "augmentation", "many_pictures", "import_time")


def main(arguments: list[str] | None = None) -> int:
    """Returns: the exit status: 1 where a target is missed (--quick judges none)."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="resnet_lib against its peers")
    parser.add_argument("names", nargs="*", metavar="name", help=f"which of {', '.join(NAMES)}; all if none is named")
    parser.add_argument("--rounds", type=int, default=5, help="timings of each variant, taken in turn (default 5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    chosen = parser.parse_args(arguments)
    unknown = [name for name in chosen.names if name not in NAMES]
    if unknown:
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    if chosen.rounds < 1:
        parser.error(f"--rounds {chosen.rounds} must be at least 1")
    device = devices.describe(devices.choose())
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("torch", "torchvision", "timm", "kornia")]
    print(f"{device['name']} ({', '.join(device['instructions'])})")
    print(datetime.date.today(), platform.system(), f"Python {platform.python_version()}", *versions, sep=" · ")
    if chosen.quick:
        print("quick: tiny sizes, so the ratios mean nothing")
    missed = False
    for name in chosen.names or NAMES:
        print(f"\n{name} …", file=sys.stderr, flush=True)
        for table in importlib.import_module(f"benchmarks.{name}").run(chosen.rounds, chosen.quick):
            table = dataclasses.replace(table, targets=[]) if chosen.quick else table
            print(f"\n{table}", flush=True)
            missed |= not all(target.reached for target in table.targets)
    return int(missed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
