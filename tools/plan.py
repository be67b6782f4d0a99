"""Which chapters to execute with which parameters, and whether what an executed one depends on has changed."""

import hashlib
import json
import os
import sys
import tomllib
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from resnet_lib.parameters import declared_in
from resnet_lib.paths import digest
from resnet_lib.pictures import listing
from tools.chapters import check, code_cells, parse_settings, read, read_profile, toc_chapters

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
        return self.output.with_name(f".{self.chapter}.{os.getpid()}.part.ipynb")  # of this process alone

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
        parameters = declared_in(read(known[name]))
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
        jobs.append(Job(known[name], folder / f"{name}.ipynb", values | given))
    return jobs


def files_digest(root: Path, paths) -> str:
    return digest(
        [
            (str(path.relative_to(root)), hashlib.sha256(path.read_bytes()).hexdigest())
            for path in sorted(paths)
            if path.is_file()
        ]
    )


def path_identity(value: object) -> list:
    """Name, size and time of the file that a parameter names, of a folder those of all that is in it; else empty."""
    if not isinstance(value, str) or not os.path.isabs(value) or not os.path.exists(value):
        return []
    path = Path(value)
    inside = listing(path) if path.is_dir() else [("", path.stat())]
    return [value, *((name, status.st_size, status.st_mtime_ns) for name, status in inside)]


def ingredients_of(job: Job, root: Path, profile: str) -> dict[str, str]:
    """A digest for each thing that an executed chapter depends on; together they are its key.

    Records count because pages show them. Those that the job itself writes don't, or it would outdate itself;
    a chapter without a parameter `records_to` measures nothing and shows what the others recorded: all count.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    packages = [requirement.split(">")[0] for requirement in project["dependencies"]]
    notebook = read(job.source)
    everything = set((root / "records").glob("**/*.json"))
    if "records_to" in declared_in(notebook):
        own = set((root / "records" / job.chapter).glob("*.json"))
        everything = {path for path in own if profile == "smoke" or f".{profile}." not in path.name}
    return {
        "code": digest([cell["source"] for cell in code_cells(notebook)]),
        "parameters": digest(job.parameters),
        "library": files_digest(root, (root / "resnet_lib").glob("**/*.py")),
        "claims": files_digest(root, [root / "claims.yml"]),
        "records": files_digest(root, everything),
        "packages": digest([sys.version, *((name, metadata.version(name)) for name in (*packages, *EXECUTORS))]),
        "data": digest([path_identity(value) for value in job.parameters.values()]),
    }


def changes(job: Job) -> list[str]:
    """Which ingredients differ from those of the executed chapter that is there; ['new'] where none is."""
    try:
        before = json.loads(job.stamp.read_text("utf-8"))["ingredients"]
        job.output.stat()
    except (OSError, ValueError, KeyError):
        return ["new"]
    return [name for name, value in job.ingredients.items() if before.get(name) != value]
