"""Measure a chapter's experiments without its notebook, all of them or some; no Jupyter and no matplotlib needed.

python -m tools.measure residual --only tuning --profile cpu --set dataset=pictures.tar.xz --set records_to=records
"""

import importlib
import sys
import traceback
from pathlib import Path

from tools.chapters import ROOT, check, command, declared, parse_settings, read, read_profile


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
    known = declared(read(ROOT / "chapters" / f"{chapter}.ipynb"))
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


def measure(chapter: str, names: list[str], known: dict, values: dict):
    """Measure the experiments named, with what they need; a record each as soon as it is done.

    Returns: the study, in whose `made` the records are.
    """
    wanted = chosen(experiments_of(chapter), names)
    study = open_study(chapter, known, values)
    for experiment in wanted:
        study.measure(experiment)
        record = study.made[experiment.name]
        print(f"{chapter}/{experiment.name}: {len(record.rows)} rows, {record.wall_s:.1f} s of runs", flush=True)
        for note in record.notes:
            print(f"  not measured: {note}", flush=True)
    return study


def main(arguments: list[str] | None = None) -> int:
    parser = command("tools.measure", __doc__)
    parser.add_argument("chapter", type=lambda text: Path(text).stem)
    parser.add_argument("--only", nargs="+", default=[], metavar="EXPERIMENT", help="default: all of the chapter")
    parser.add_argument("--profile", default="smoke", help="whose settings (default: %(default)s)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter; may be repeated")
    options = parser.parse_args(arguments)
    try:
        pairs = [tuple(text.split("=", 1)) for text in options.set]
        if bad := [text for text in options.set if "=" not in text]:
            raise ValueError(f"--set {bad[0]}: write NAME=VALUE")
        chosen(experiments_of(options.chapter), options.only)
        known, values = parameters_of(options.chapter, options.profile, pairs)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        measure(options.chapter, options.only, known, values)
    except KeyboardInterrupt:
        print("stopped; finished runs are kept where resume is true, finished records always", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
