"""Execute the book's chapters with papermill, in parallel, and only those whose ingredients have changed.

python -m tools.execute [chapter …] --profile smoke --jobs 2 --set seeds=5
"""

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from tools import measure
from tools.chapters import ROOT, check, code_cells, declared, parse_settings, read, read_profile, toc_chapters

EXECUTORS = ("papermill", "nbclient", "ipykernel")


@dataclass
class Job:
    """One chapter to execute with one set of parameters, and how that goes."""

    source: Path
    output: Path
    parameters: dict
    status: str = "waiting"  # then running; at the end ran, unchanged, failed, timeout, died or stopped
    detail: str = ""
    started: float = 0.0  # perf_counter
    seconds: float = 0.0
    cell: str = ""
    number: int = 0
    total: int = 0
    cell_times_s: dict = field(default_factory=dict)
    ingredients: dict = field(default_factory=dict)

    @property
    def chapter(self) -> str:
        return self.source.stem

    @property
    def partial(self) -> Path:
        return self.output.with_name(f".{self.chapter}.part.ipynb")

    @property
    def failed(self) -> Path:
        return self.output.with_name(f"{self.chapter}.failed.ipynb")

    @property
    def stamp(self) -> Path:
        return self.output.with_suffix(".json")

    @property
    def slowest(self) -> str:
        if not self.cell_times_s:
            return ""
        name = max(self.cell_times_s, key=self.cell_times_s.get)
        return f"{name} ({self.cell_times_s[name]:.1f} s)"


def plan(
    root: Path,
    names: list[str],
    profile: str,
    settings: list[tuple[str, str]],
    output: Path | None = None,
    records: bool = True,
) -> list[Job]:
    """The jobs for the chapters named (all where none is), every parameter checked.

    Raises: ValueError naming the unknown chapter, profile or parameter, and those that there are.
    """
    known = {path.stem: path for path in toc_chapters(root)}
    names = [Path(name).stem for name in names] or list(known)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no chapter {', '.join(map(repr, unknown))} in _toc.yml; it has: {', '.join(known)}")
    profiles = ["smoke", *sorted(path.name for path in (root / "profiles").glob("*/"))]
    if profile not in profiles:
        raise ValueError(f"no profile {profile!r}; there are: {', '.join(profiles)}")
    folder = output or root / "_build" / "executed" / profile
    jobs = []
    for name in names:
        parameters = declared(read(known[name]))
        path = root / "profiles" / profile / f"{name}.yml"
        values = {}
        if profile != "smoke" and parameters:
            if not path.is_file():
                raise ValueError(f"profile {profile!r} has no file for chapter {name!r}: {path} is missing")
            values = read_profile(path)
            check(values, parameters, f"{name} (profile {profile})")
            if records and "records_to" in parameters:
                values["records_to"] = str(root / "records")
        given = parse_settings(settings, parameters)
        check(given, parameters, name)
        # a kernel runs in its chapter's folder, so a path typed here must not depend on the folder
        given = {
            key: os.path.abspath(value)
            if isinstance(value, str) and os.sep in value and os.path.exists(value)
            else value
            for key, value in given.items()
        }
        jobs.append(Job(known[name], folder / f"{name}.ipynb", values | given))
    return jobs


def digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def files_digest(root: Path, paths) -> str:
    return digest(
        [
            (str(path.relative_to(root)), hashlib.sha256(path.read_bytes()).hexdigest())
            for path in sorted(paths)
            if path.is_file()
        ]
    )


def path_identity(value: object, folder: Path) -> list:
    """Size and modification time of the file or folder that a parameter names; empty for any other value."""
    if not isinstance(value, str) or os.sep not in value or not (folder / value).exists():
        return []
    stat = (folder / value).stat()
    return [value, stat.st_size, stat.st_mtime_ns]


def ingredients_of(job: Job, root: Path, profile: str) -> dict[str, str]:
    """A digest for each thing that an executed chapter depends on; together they are its key.

    Records count because pages show them. Those that the job itself writes don't, or it would outdate itself;
    a chapter without a parameter `records_to` measures nothing and shows what the others recorded: all count.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    packages = [requirement.split(">")[0] for requirement in project["dependencies"]]
    notebook = read(job.source)
    everything = set((root / "records").glob("**/*.json"))
    if "records_to" in declared(notebook):
        own = set((root / "records" / job.chapter).glob("*.json"))
        everything = {path for path in own if profile == "smoke" or f".{profile}." not in path.name}
    return {
        "code": digest([cell["source"] for cell in code_cells(notebook)]),
        "parameters": digest(job.parameters),
        "library": files_digest(root, (root / "resnet_lib").glob("**/*.py")),
        "claims": files_digest(root, [root / "claims.yml"]),
        "records": files_digest(root, everything),
        "packages": digest(sys.version, [(name, metadata.version(name)) for name in (*packages, *EXECUTORS)]),
        "data": digest([path_identity(value, job.source.parent) for value in job.parameters.values()]),
    }


def changes(job: Job) -> list[str]:
    """Which ingredients differ from those of the executed chapter that is there; ['new'] where none is."""
    try:
        before = json.loads(job.stamp.read_text("utf-8"))["ingredients"]
        job.output.stat()
    except (OSError, ValueError, KeyError):
        return ["new"]
    return [name for name, value in job.ingredients.items() if before.get(name) != value]


def write_text(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(text, "utf-8")
    os.replace(temporary, path)


def kernel_environment(root: Path, threads: int | None = None) -> dict[str, str]:
    """This process's environment, with the kernels' noise off and their files kept out of the home folder."""
    build = root / "_build"
    config = build / "ipython" / "profile_default" / "ipython_kernel_config.py"
    if not config.is_file():
        config.parent.mkdir(parents=True, exist_ok=True)
        write_text(config, "c.IPKernelApp.log_level = 40  # ipykernel warns of TCP without encryption at every start\n")
    environment = {
        **os.environ,
        "IPYTHONDIR": str(build / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's python3 kernel, not one in the home folder
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "BOOK_PAGE": "1",  # what is executed here becomes a page: the published records come first (resnet_lib.study)
    }
    environment.setdefault("MPLCONFIGDIR", str(build / "matplotlib"))
    if threads:
        environment.setdefault("OMP_NUM_THREADS", str(threads))
    return environment


class Runner:
    """Executes jobs in child processes; `stop` ends them all and leaves no half-written file."""

    def __init__(self, root: Path, timeout_s: int, log):
        self.root, self.timeout_s, self.log = root, timeout_s, log
        self.children: list[subprocess.Popen] = []
        self.stopping = False
        self.lock = threading.Lock()

    def run(self, job: Job, environment: dict) -> None:
        job.output.parent.mkdir(parents=True, exist_ok=True)
        order = {
            "source": str(job.source),
            "output": str(job.partial),
            "parameters": job.parameters,
            "timeout": self.timeout_s,
            "cwd": str(job.source.parent),
        }
        end = {"end": "failed", "error": "the process that executes the notebook ended without a word"}
        with tempfile.TemporaryFile("w+") as errors:
            with self.lock:
                if self.stopping:
                    job.status = "stopped"
                    return
                job.status, job.started = "running", time.perf_counter()
                child = subprocess.Popen(
                    [sys.executable, "-m", "tools.worker", json.dumps(order)],
                    cwd=ROOT,
                    env=environment,
                    text=True,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    start_new_session=True,
                )
                self.children.append(child)
            self.log(job)
            cell_started = job.started
            for line in child.stdout:
                now, event = time.perf_counter(), json.loads(line)
                if job.cell:
                    job.cell_times_s[job.cell] = now - cell_started
                if "end" in event:
                    end = event
                    continue
                job.cell, job.number, job.total, cell_started = (event["cell"], event["number"], event["total"], now)
                self.log(job)
            child.wait()
            job.seconds = time.perf_counter() - job.started
            if self.stopping:
                job.status = "stopped"
            elif end["end"] == "ok":
                self.keep(job)
            else:
                errors.seek(0)
                words = f" in cell {job.cell!r}" if job.cell else ""
                job.status, job.detail = end["end"], f"{end['error']}{words}"
                if not job.cell or end["end"] == "died":
                    job.detail += "\n" + "".join(errors.readlines()[-30:])
                if job.partial.exists():
                    os.replace(job.partial, job.failed)
        self.log(job)

    def keep(self, job: Job) -> None:
        job.status = "ran"
        job.stamp.unlink(missing_ok=True)  # a notebook without its stamp is executed again
        os.replace(job.partial, job.output)
        facts = {
            "ingredients": job.ingredients,
            "seconds": job.seconds,
            "cell_times_s": job.cell_times_s,
            "parameters": job.parameters,
        }
        write_text(job.stamp, json.dumps(facts, indent=1))
        job.failed.unlink(missing_ok=True)

    def stop(self) -> None:
        import psutil

        with self.lock:
            self.stopping = True
            children = [child for child in self.children if child.poll() is None]
        tree = []
        for child in children:
            try:
                process = psutil.Process(child.pid)
                tree += [process, *process.children(recursive=True)]
            except psutil.NoSuchProcess:
                continue
        for process in tree:  # each kernel is in a session of its own: no signal to a group reaches them all
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue


class Display:
    """Live rows on a terminal; in a log one line, with the time, for each cell that starts."""

    def __init__(self, jobs: list[Job]):
        from rich.console import Console
        from rich.live import Live

        self.jobs, self.console, self.lock = jobs, Console(), threading.Lock()
        self.live = Live(get_renderable=self.rows, console=self.console, refresh_per_second=4, transient=True)

    def rows(self):
        from rich.table import Table

        table = Table(box=None, show_header=False)
        for job in self.jobs:
            if job.status == "running":
                seconds = time.perf_counter() - job.started
                table.add_row(job.chapter, f"cell {job.number}/{job.total or '?'}", job.cell, f"{seconds:.0f} s")
        return table

    def log(self, job: Job) -> None:
        if self.console.is_terminal and job.status == "running":
            return
        words = f"cell {job.number}/{job.total} {job.cell}" if job.status == "running" and job.cell else job.status
        if job.status == "running" and not job.cell:
            words = f"starts ({', '.join(changes(job))})"
        with self.lock:
            line = f"{time.strftime('%H:%M:%S')} {job.chapter}: {words}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __enter__(self):
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *_):
        if self.console.is_terminal:
            self.live.stop()


def summary(jobs: list[Job], profile: str, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=110)
    table = Table(title=f"profile {profile}, {seconds:.1f} s in all", title_justify="left")
    for name, side in (("chapter", "left"), ("status", "left"), ("time", "right"), ("slowest cell", "left")):
        table.add_column(name, justify=side)
    for job in jobs:
        table.add_row(job.chapter, job.status, f"{job.seconds:.1f} s" if job.seconds else "", Text(job.slowest))
    console.print(table)
    for job in jobs:
        if job.detail:
            console.print(f"{job.chapter} {job.status}: {job.detail}", markup=False, highlight=False, soft_wrap=True)
            if job.failed.exists():
                console.print(f"  what it had done: {job.failed}", markup=False, highlight=False, soft_wrap=True)


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
    reads = [profile != "smoke" and "records_to" not in declared(read(job.source)) for job in jobs]
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
    parser = argparse.ArgumentParser(prog="python -m tools.execute", description=__doc__.splitlines()[0])
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
