"""Measure a chapter's experiments without its notebook, all of them or some; no Jupyter and no matplotlib needed.

python -m tools.measure residual --only tuning --profile cpu --jobs 2 --set dataset=pictures.zip --set records_to=mine
"""

import contextlib
import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from resnet_lib.parameters import declared_in
from tools.chapters import ROOT, check, command, given, parse_settings, read, read_profile


def experiments_of(chapter: str) -> tuple:
    """What a chapter declares, in the order of its page.

    Raises: ValueError naming the chapters that declare any.
    """
    there = sorted(p.parent.name for p in (ROOT / "resnet_lib" / "experiments").glob("*/__init__.py"))
    if chapter not in there:
        raise ValueError(f"no experiments of chapter {chapter!r}; there are those of {', '.join(there)}")
    return importlib.import_module(f"resnet_lib.experiments.{chapter}").EXPERIMENTS


def chosen(experiments: tuple, names: list[str]) -> list:
    """The experiments named, all where none is.

    Raises: ValueError naming the unknown one and those that there are.
    """
    known = {experiment.name: experiment for experiment in experiments}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no experiment {', '.join(map(repr, unknown))}; there are: {', '.join(known)}")
    return [known[name] for name in names or known]


def parameters_of(chapter: str, profile: str = "smoke", settings: list[tuple[str, str]] = ()) -> tuple[dict, dict]:
    """A chapter's parameters by name, and what of them a profile and settings change.

    Raises: ValueError for an unknown profile or parameter, or a value of the wrong type.
    """
    known = declared_in(read(ROOT / "chapters" / f"{chapter}.ipynb"))
    path = ROOT / "profiles" / profile / f"{chapter}.yml"
    if profile != "smoke" and not path.is_file():
        raise ValueError(f"profile {profile!r} has no file for chapter {chapter!r}: {path} is missing")
    values = (read_profile(path) if profile != "smoke" else {}) | parse_settings(settings, known)
    check(values, known, chapter)
    return known, values


def open_study(chapter: str, known: dict, values: dict):
    """The study that the notebook would open with these values."""
    from resnet_lib.study import Study

    namespace = {name: one.default for name, one in known.items()} | values
    annotations = {name: one.kind for name, one in known.items()}
    return Study.open(chapter, namespace | {"__annotations__": annotations}, experiments_of(chapter))


def as_settings(values: dict) -> list[str]:
    """Values as a command line takes them: --set NAME=VALUE."""
    texts = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
    return [word for name, text in texts.items() for word in ("--set", f"{name}={text}")]


@contextlib.contextmanager
def helped(chapter: str, names: list[str], values: dict, jobs: int) -> Iterator[None]:
    """Processes that make runs of these experiments beside the one in the block, and end with it."""
    call = [sys.executable, "-m", "tools.measure", chapter, "--no-records", "--only", *names, *as_settings(values)]
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    helpers = [subprocess.Popen(call, env=environment, **quiet) for _ in range(jobs - 1)] if names else []
    try:
        yield
    finally:
        for helper in helpers:
            helper.terminate()
        for helper in helpers:
            helper.wait()


def measure(
    chapter: str, names: list[str], known: dict, values: dict, jobs: int = 1, saves: bool = True, before_run=None
):
    """Measure the experiments named, with what they need; a record each as soon as it is done.

    Args: jobs: processes that share the runs. Times are taken last, by this process alone.
        before_run: called before each run of this process; what it raises stops there.
    Returns: the study, in whose `made` the records are.
    """
    wanted = chosen(experiments_of(chapter), names)
    shared = [experiment for experiment in wanted if not experiment.timed]
    study = open_study(chapter, known, values | ({"resume": True} if jobs > 1 else {}))
    study.saves, study.before_run = saves, before_run
    if jobs > 1:
        with helped(chapter, [one.name for one in shared], values | {"resume": True}, jobs):
            told(study, shared)
        told(study, [experiment for experiment in wanted if experiment.timed])
    else:
        told(study, wanted)
    return study


def told(study, experiments: list) -> None:
    """Measure, and print what was measured."""
    for experiment in experiments:
        study.measure(experiment)
        record = study.made[experiment.name]
        print(f"{study.chapter}/{experiment.name}: {len(record.rows)} rows, {record.wall_s:.1f} s of runs", flush=True)
        for note in record.notes:
            print(f"  not measured: {note}", flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = command("tools.measure", __doc__)
    parser.add_argument("chapter", type=lambda text: Path(text).stem)
    parser.add_argument("--only", nargs="+", default=[], metavar="EXPERIMENT", help="default: all of the chapter")
    parser.add_argument("--profile", default="smoke", help="whose settings (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter; may be repeated")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the runs; times are taken by one")
    parser.add_argument("--no-records", action="store_true", help="make the runs, and write no record of them")
    options = parser.parse_args(arguments)
    try:
        if options.jobs < 1:
            raise ValueError(f"--jobs {options.jobs} must be at least 1")
        pairs = given(options.set)
        chosen(experiments_of(options.chapter), options.only)
        known, values = parameters_of(options.chapter, options.profile, pairs)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        measure(options.chapter, options.only, known, values, options.jobs, not options.no_records)
    except KeyboardInterrupt:
        print("stopped; finished runs are kept where resume is true, finished records always", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
