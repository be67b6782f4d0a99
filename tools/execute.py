"""Execute the book's chapters with papermill, in parallel, and only those whose ingredients have changed.

python -m tools.execute [chapter …] --profile smoke --jobs 2 --set seeds=5
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from resnet_lib.parameters import declared_in
from tools import measure
from tools.chapters import ROOT, command, read
from tools.display import Display, summary
from tools.plan import Job, changes, ingredients_of, plan
from tools.runner import Runner, kernel_environment


def execute(
    jobs: list[Job],
    root: Path,
    profile: str,
    *,
    parallel: int | None = None,
    resume: bool = True,
    timeout_s: int = 3600,
) -> int:
    """Run the jobs and print one table; the exit code is 0, 1 if a chapter failed, 130 after Ctrl-C."""
    start, cores = time.perf_counter(), os.cpu_count() or 1
    # chapters that only show what others recorded come after those, where a run records anything
    reads = [profile != "smoke" and "records_to" not in declared_in(read(job.source)) for job in jobs]
    waves = [[job for job, last in zip(jobs, reads, strict=True) if last == wave] for wave in (False, True)]
    display = Display(jobs)
    runner = Runner(root, timeout_s, display.log)
    try:
        with display:
            for wave in waves:
                for job in wave:
                    job.ingredients = ingredients_of(job, root, profile)
                todo = [job for job in wave if changes(job) or not resume]
                for job in wave:
                    if job not in todo:
                        facts = json.loads(job.stamp.read_text("utf-8"))
                        job.status, job.seconds, job.cell_times_s = (
                            "unchanged",
                            facts["seconds"],
                            facts["cell_times_s"],
                        )
                # away from the smoke size a chapter measures, and wants the machine for itself
                workers = min(parallel or (cores if profile == "smoke" else 1), len(todo))
                if todo:
                    environment = kernel_environment(root, max(1, cores // workers))
                    with tempfile.TemporaryDirectory(prefix="jupyter-") as runtime:
                        environment["JUPYTER_RUNTIME_DIR"] = runtime
                        run_all(todo, workers, runner, environment)
    except KeyboardInterrupt:
        summary(jobs, profile, time.perf_counter() - start)
        print("stopped; finished chapters are kept, and the same command goes on with the others", file=sys.stderr)
        return 130
    summary(jobs, profile, time.perf_counter() - start)
    return int(any(job.status not in ("ran", "unchanged") for job in jobs))


def run_all(todo: list[Job], workers: int, runner: Runner, environment: dict) -> None:
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(runner.run, job, environment) for job in todo]
        try:
            for future in futures:
                future.result()
        except BaseException:
            runner.stop()
            pool.shutdown(cancel_futures=True)
            for job in todo:
                job.partial.unlink(missing_ok=True)
                job.status = "stopped" if job.status in ("waiting", "running") else job.status
            raise


def main(arguments: list[str] | None = None) -> int:
    parser = command("tools.execute", __doc__)
    parser.add_argument("chapters", nargs="*", help="names from _toc.yml; all of them where none is given")
    parser.add_argument(
        "--profile", default="smoke", help="smoke (the notebooks' own defaults) or a folder of profiles/"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="EXPERIMENT",
        help="of one chapter, without its notebook (tools.measure)",
    )
    parser.add_argument(
        "--jobs", type=int, help="chapters at a time; default: every core at smoke, 1 at other profiles"
    )
    parser.add_argument(
        "--resume",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="keep chapters whose code, parameters, library, packages and data are unchanged",
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter, for every chapter"
    )
    parser.add_argument("--timeout", type=int, default=3600, metavar="S", help="for one cell (default: %(default)s)")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: _build/executed/<profile>")
    parser.add_argument("--no-records", action="store_true", help="don't write to records/ (smoke never does)")
    parser.add_argument("--root", type=Path, default=ROOT, help="the book's folder (default: this checkout)")
    options = parser.parse_args(arguments)
    settings = [tuple(text.split("=", 1)) for text in options.set]
    if any(len(pair) == 1 for pair in settings) or (options.jobs or 1) < 1 or options.timeout < 1:
        parser.error("--set takes name=value; --jobs and --timeout take whole numbers from 1")
    if options.only:
        if len(options.chapters) != 1:
            parser.error("--only takes the experiments of one chapter: name that chapter first")
        given = [word for text in options.set for word in ("--set", text)]
        return measure.main([options.chapters[0], "--only", *options.only, "--profile", options.profile, *given])
    root = options.root.resolve()
    output = options.output.resolve() if options.output else None
    try:
        jobs = plan(root, options.chapters, options.profile, settings, output, not options.no_records)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return execute(jobs, root, options.profile, parallel=options.jobs, resume=options.resume, timeout_s=options.timeout)


if __name__ == "__main__":
    sys.exit(main())
