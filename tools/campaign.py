"""Measure what is worth most on a machine that is at hand for minutes: in order, within the time, nothing lost.

python -m tools.campaign --device cuda --minutes 9 --dataset pictures.tar.xz --archive campaign.tar.xz

The archive holds what was made: records, finished runs, and a summary. Given again, the next call goes on from it.
Until it is packed, all lies in a folder beside it, from which a call goes on that was killed. It needs no
Jupyter and no matplotlib. `--collect` brings the records of an archive into records/ of this checkout.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from resnet_lib.paths import cache_folder, write_atomically
from tools import measure
from tools.chapters import ROOT, command, given

FIRST = (  # what only such a machine can tell, the most wanted first
    ("tensor_cores", "throughput"),
    ("tensor_cores", "shapes"),
    ("tensor_cores", "layers"),
    ("tensor_cores", "ladder"),
    ("tensor_cores", "precision"),
    ("tensor_cores", "instructions"),
    ("tensor_cores", "gpu"),
    ("batch_norm", "cost"),
    ("batch_norm", "convergence"),
    ("inference", "speed"),
    ("inference", "steps"),
)
# what is left of each
THEN = (
    *("residual", "resnet", "families", "skip", "batch_norm", "augmentation"),
    *("downsampling", "tuning", "parallelism", "tensor_cores", "inference"),
)
RESERVED_S = 15  # for packing
TRIED_S = 10  # of runs at an experiment's tiny size, after which it is known to work
WAYS_S = 120  # what a comparison of ways to train several seeds may take
MOST_BYTES = 16 * 2**20


class OutOfTime(BaseException):
    """The minutes are over; no guard of an experiment may take it for a failure."""


class Tried(BaseException):
    """Enough tiny runs were made."""


def order() -> list[tuple[str, str]]:
    """(chapter, experiment) of all there is, what is worth most first."""
    rest = [(chapter, one.name) for chapter in THEN for one in measure.experiments_of(chapter)]
    return [*FIRST, *(pair for pair in rest if pair not in FIRST)]


@contextlib.contextmanager
def deadline(at: float) -> Iterator[None]:
    """Raise OutOfTime inside the block when the clock reads `at`."""

    def ring(*_):
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(0.001, at - time.monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def unpack(archive: Path, folder: Path) -> dict:
    """Bring back what earlier calls made; the summary of the last one, {} where there was none.

    A folder that a killed call has left is younger than the archive, and stays as it is.

    Raises: ValueError where the file is no archive of a campaign.
    """
    summary = folder / "summary.json"
    try:
        if not summary.exists() and archive.exists():
            with tarfile.open(archive) as packed:
                packed.extractall(folder, filter="data")
        folder.mkdir(parents=True, exist_ok=True)
        return json.loads(summary.read_text("utf-8")) if summary.exists() else {}
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{archive} is no whole archive of a campaign: {error}; name another file") from error


@contextlib.contextmanager
def cache_in(folder: Path) -> Iterator[None]:
    """Inside, runs are kept in `folder`; decoded pictures come from the usual cache, and new ones are handed on to it.

    They take long to decode, and are no part of the archive. A decoding that the end of the minutes cuts off is lost.
    """
    usual, before = cache_folder(), os.environ.get("RESNET_LIB_CACHE")
    for entry in usual.glob("pictures-*"):
        with contextlib.suppress(OSError):  # it is there, or there are no links
            (folder / entry.name).symlink_to(entry.absolute())
    os.environ["RESNET_LIB_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("RESNET_LIB_CACHE")
        os.environ |= {"RESNET_LIB_CACHE": before} if before is not None else {}
        for entry in folder.glob("pictures-*"):
            if not entry.is_symlink() and "." not in entry.name:  # one that was being written
                with contextlib.suppress(OSError):  # another disk, or not to be written
                    usual.mkdir(parents=True, exist_ok=True)
                    entry.rename(usual / entry.name)


def pack(archive: Path, folder: Path, summary: dict) -> None:
    """Write the archive whole or not at all; without the finished runs where it would be too big with them."""
    names = ["records", "runs", "summary.json"]
    while True:
        write_summary(folder, summary)
        part = archive.with_name(f".{archive.name}.{os.getpid()}.part")
        try:
            with tarfile.open(part, "w:xz", preset=1) as packed:
                for name in names:
                    if (folder / name).exists():
                        packed.add(folder / name, name)
            if part.stat().st_size <= MOST_BYTES or "runs" not in names:
                os.replace(part, archive)
                return
        finally:
            part.unlink(missing_ok=True)
        names.remove("runs")
        summary["note"] = f"with the finished runs it would be over {MOST_BYTES} bytes: they were left out"


def write_summary(folder: Path, summary: dict) -> None:
    kept = {name: facts for name, facts in summary["left"].items() if name not in summary["done"]}
    times = {name: {k: v for k, v in facts.items() if k != "since"} for name, facts in kept.items()}  # this process's
    write_atomically(folder / "summary.json", json.dumps(summary | {"left": times}, indent=1))


def tiny_seconds(chapter: str, experiment, device: str) -> tuple[float, int]:
    """Seconds and runs of an experiment at its tiny size on the device: whether it works there, and what a run takes.

    An experiment of many runs is stopped after TRIED_S: on a slow device even tiny ones would cost the minutes.

    Raises: whatever fails.
    """
    known, _ = measure.parameters_of(chapter)
    before = experiment.needs.tiny if experiment.needs else {}
    values = {"seeds": 2, "device": device, "profile": "tiny", "resume": False} | before | experiment.tiny
    study = measure.open_study(chapter, known, {name: value for name, value in values.items() if name in known})
    started = time.monotonic()

    def before_run() -> None:
        if study.finished and time.monotonic() > started + TRIED_S:
            raise Tried

    study.before_run = before_run
    with contextlib.suppress(Tried):
        study.measure(experiment)
    return time.monotonic() - started, len(study.finished)


def run(
    pairs: list[tuple[str, str]],
    folder: Path,
    summary: dict,
    *,
    device: str,
    profile: str,
    settings: list[tuple[str, str]],
    at: float,
    jobs: int = 1,
    say: Callable[..., object] = print,
) -> None:
    """Measure in order until all is done or the clock reads `at`; the summary tells what was done, failed, is left."""
    done, failed, left = (summary[name] for name in ("done", "failed", "left"))
    studies = {}
    try:
        with cache_in(folder), deadline(at):
            for chapter, name in pairs:
                key = f"{chapter}/{name}"
                if key in done:
                    continue
                write_summary(folder, summary)
                left[key] = left.get(key, {})
                started = time.monotonic()
                try:
                    (experiment,) = measure.chosen(measure.experiments_of(chapter), [name])
                    if "tiny_s" not in left[key]:
                        seconds, runs = tiny_seconds(chapter, experiment, device)
                        left[key] |= {"tiny_s": round(seconds, 2), "tiny_run_s": round(seconds / max(1, runs), 3)}
                    if chapter not in studies:
                        known, _ = measure.parameters_of(chapter)
                        own = [*settings, ("device", device), ("records_to", str(folder / "records"))]
                        known, values = measure.parameters_of(chapter, profile, [p for p in own if p[0] in known])
                        studies[chapter] = measure.open_study(chapter, known, values | {"resume": True})
                    study = studies[chapter]
                    study.before_run = lambda here=left[key], time_left=at: told(here, time_left)
                    with measure.helped(chapter, [] if experiment.timed else [name], study.values, jobs):
                        study.measure(experiment)
                    note_steps(summary)
                    record = study.made[name]
                    done[key] = {"rows": len(record.rows), "runs_s": round(record.wall_s, 1), "notes": record.notes}
                    failed.pop(key, None)
                    left.pop(key)
                    say(f"{key}: {len(record.rows)} rows in {time.monotonic() - started:.0f} s", flush=True)
                except Exception as error:
                    failed[key] = {"error": traceback.format_exc().strip().splitlines()[-12:]}
                    left.pop(key, None)
                    say(f"{key} failed: {type(error).__name__}: {error}", flush=True)
                    free_memory()
    except OutOfTime:
        say("the time is over; the same command goes on from the archive", flush=True)


def told(here: dict, at: float) -> None:
    """Before each run: note how far an experiment is, and stop where the next run would not end in time."""
    now = time.monotonic()
    if "since" in here:
        here["runs"] = here.get("runs", 0) + 1
        here["longest_s"] = round(max(here.get("longest_s", 0.0), now - here["since"]), 2)
    here["since"] = now
    if now + here.get("longest_s", 0.0) > at:
        raise OutOfTime


def best_jobs(summary: dict, device: str, at: float, say: Callable[..., object] = print) -> int:
    """How many processes share runs that are no timings: on a GPU as many as were measured best, on a CPU one.

    The summary keeps what was measured, for this call and the next ones; where that failed it keeps the reason.
    """
    from resnet_lib import devices
    from tools import seeds

    chosen = devices.choose(device)
    if chosen.type != "cuda":
        return 1
    name = devices.describe(chosen)["name"]
    if summary.get("ways", {}).get("device") != name:
        limit = time.monotonic() + WAYS_S
        if limit > at:
            return 1
        try:
            with deadline(limit):
                summary["ways"] = seeds.compare(device) | {"device": name}
        except (OutOfTime, Exception) as error:
            why = f"how best to train several seeds was not found out: {type(error).__name__}: {error}"
            summary["ways"] = {"device": name, "jobs": 1, "text": why}
        say(summary["ways"]["text"], flush=True)
    return summary["ways"]["jobs"]


def note_steps(summary: dict) -> None:
    """Keep how training steps were taken in this process: captured or eager, and why, a line a shape."""
    from resnet_lib import steps

    for key, choice in steps.CHOICES.items():
        _, network, *_, batch = key
        line = f"{network.partition('(')[0]}, batch {batch}: {choice}"
        summary["steps"] = list(dict.fromkeys([*summary.get("steps", []), line]))


def free_memory() -> None:
    """What a failure, running out of memory say, leaves behind must not cost the next experiment."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        with contextlib.suppress(RuntimeError):  # a device that is lost stays lost, and the summary says so each time
            torch.cuda.empty_cache()


def report(summary: dict) -> Iterator[str]:
    """The summary in lines for a reader."""
    if "ways" in summary:
        yield f"seeds   {summary['ways']['text']}"
    yield from (f"steps   {line}" for line in summary.get("steps", []))
    for key, facts in summary["done"].items():
        yield f"done    {key}: {facts['rows']} rows, {facts['runs_s']} s of runs"
        yield from (f"        not measured: {note}" for note in facts["notes"])
    for key, facts in summary["failed"].items():
        yield f"failed  {key}: {facts['error'][-1]}"
    for key, facts in summary["left"].items():
        tiny = f"; a tiny run takes {facts['tiny_run_s']} s" if "tiny_run_s" in facts else ""
        yield f"left    {key}: {facts.get('runs', 0)} runs made{tiny}"


def check_settings(chapters: set[str], profile: str, settings: list[tuple[str, str]]) -> None:
    """Refuse now a profile that a chapter lacks, or a parameter that no chapter has.

    Raises: ValueError naming it.
    """
    known = {chapter: measure.parameters_of(chapter, profile)[0] for chapter in sorted(chapters)}
    for name, _ in settings:
        if not any(name in parameters for parameters in known.values()):
            raise ValueError(f"no chapter of {', '.join(known)} has a parameter {name!r}")


def collect(archive: Path, target: Path) -> list[str]:
    """Copy an archive's records into `target`: those whose code is that of this commit, which they then name.

    Raises: ValueError where files that can change a result are not committed.
    """
    from dataclasses import replace

    from resnet_lib import freshness, records
    from resnet_lib.study import WHY_CLEAN

    if files := records.uncommitted():
        raise ValueError(f"commit {', '.join(files)} first: {WHY_CLEAN}")
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        unpack(archive, Path(temporary))
        for record in records.published(folder=Path(temporary) / "records"):
            name = f"{record.chapter}/{record.file_name}"
            if changed := freshness.changed(record.code):
                lines.append(f"left out {name}: {', '.join(changed[:3])}")
                continue
            made = [entry | {"commit": entry["commit"] or records.commit()} for entry in record.made]
            records.save(replace(record, made=made), target)
            lines.append(f"kept {name}: {len(record.rows)} rows")
    return lines


def main(arguments: list[str] | None = None) -> int:
    started = time.monotonic()
    parser = command("tools.campaign", __doc__)
    parser.add_argument("--device", default="auto", help="auto (default), cuda, cuda:1, cpu, …")
    parser.add_argument("--minutes", type=float, default=9.0, help="of this call, packing included (default: 9)")
    parser.add_argument("--profile", default="full", help="whose settings (default: full)")
    parser.add_argument("--dataset", default="", help="in place of the profile's, say an archive of pictures")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of all chapters that have it")
    parser.add_argument(
        "--jobs",
        type=int,
        default=0,
        help="processes that share runs which are no timings (default:"
        " on a GPU what is measured to be best, on a CPU 1)",
    )
    parser.add_argument("--archive", type=Path, default=Path("campaign.tar.xz"), help="to go on from, and to write")
    parser.add_argument("--only", nargs="+", default=[], metavar="CHAPTER/EXPERIMENT", help="these, in this order")
    parser.add_argument("--collect", action="store_true", help="bring its records into records/")
    options = parser.parse_args(arguments)
    try:
        if options.collect:
            print("\n".join(collect(options.archive, ROOT / "records")))
            return 0
        if not options.minutes > 0 or options.jobs < 0:
            raise ValueError(f"--minutes {options.minutes} must be above 0, and --jobs {options.jobs} not below 0")
        known = order()
        pairs = [tuple(text.partition("/")[::2]) for text in options.only] or known
        if unknown := [pair for pair in pairs if pair not in known]:
            raise ValueError(f"no experiment {'/'.join(unknown[0])}; there are {', '.join(map('/'.join, known))}")
        settings = given(options.set)
        settings += [("dataset", options.dataset)] if options.dataset else []
        check_settings({chapter for chapter, _ in pairs}, options.profile, settings)
        archive = options.archive.absolute()
        folder = archive.with_name(f"{archive.name}.work")
        summary = {"done": {}, "failed": {}, "left": {}} | unpack(archive, folder)
        at = started + 60 * options.minutes - RESERVED_S
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            jobs = options.jobs or best_jobs(summary, options.device, at)
            how = {"device": options.device, "profile": options.profile, "jobs": jobs}
            run(pairs, folder, summary, **how, settings=settings, at=at)
        finally:  # after Ctrl-C too
            pack(archive, folder, summary)
        shutil.rmtree(folder)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; what was made is in {options.archive}", file=sys.stderr)
        return 130
    print("\n".join(report(summary)))
    print(f"{options.archive}: {options.archive.stat().st_size / 2**20:.2f} MiB")
    return int(bool(summary["failed"]))


if __name__ == "__main__":
    sys.exit(main())
