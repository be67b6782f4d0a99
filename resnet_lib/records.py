"""Results with their recipe: what ran, on what, with which code, and what came out; saved, found, grown."""

import contextlib
import datetime
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path

from resnet_lib.paths import digest, project_root, write_atomically

INSTRUCTION_SETS = {"amx_bf16": "AMX", "avx512f": "AVX-512", "avx2": "AVX2", "asimd": "NEON"}  # from the widest
PROFILES = ("full", "colab", "cpu", "smoke")  # from the strongest evidence to the weakest


@dataclass(frozen=True)
class Record:
    """One experiment's outcome and everything needed to repeat it."""

    chapter: str
    experiment: str
    profile: str  # smoke, cpu, colab, full, or a reader's own name
    settings: dict  # the declared settings, and those chosen by measuring: what decides the rows beside code and data
    data: dict  # what Dataset.about says: name, fingerprint, note, sizes, shape, classes
    rows: list[dict]  # a row's `made`, 0 if missing, says by which entry of `made` it was measured
    estimates: dict[str, dict]  # measure → stats.Estimate as a dict; what the rules in claims.yml read
    code: dict[str, str]  # definition → hash, all that the run reached (freshness.code_of)
    made: list[dict]  # each machine's device, versions, commit and date, in the order in which they added rows
    rules: dict[str, str] = field(default_factory=dict)  # measure → hash of the rule that was to judge it
    attested: list[dict] = field(default_factory=list)  # other code that gives the same rows: commit, date, how, code
    wall_s: float = 0.0  # seconds that the runs took, one after the other
    checked: list[dict] = field(default_factory=list)  # by tools.recheck: date, commit, machine, how, why not
    notes: list[str] = field(default_factory=list)  # what could not be measured, and why

    def __post_init__(self):
        for name in ("chapter", "experiment", "profile"):
            value = getattr(self, name)
            if not value or not all(c.isalnum() or c in "_-" for c in value):
                raise ValueError(f"{name}={value!r} must be letters, digits, '_' or '-': it names a file")
        if not self.made:
            raise ValueError("made is empty: a record names at least one machine")

    @property
    def seeds(self) -> list[int]:
        return sorted({row["seed"] for row in self.rows if "seed" in row})

    @property
    def device(self) -> dict:
        """What devices.describe said of the machine that made the first rows."""
        return self.made[0]["device"]

    @property
    def file_name(self) -> str:
        """The device is part of it, so that two machines' runs of a profile lie side by side."""
        words = self.device["name"]
        if self.device.get("device") == "cpu" and "cpu" in self.device:
            words = f"{self.device['cpu']} {instruction_set(self.device)}"
        slug = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)", "", words.lower())).strip("-")
        return f"{self.experiment}.{self.profile}.{slug}.json"


def as_stored(rows: Iterable[dict]) -> list[dict]:
    """Rows as a record keeps them and gives them back: six figures, tuples as lists; resumed and fresh rows are equal.

    Raises: TypeError naming column and value of what JSON would change or refuse: a NumPy number, a key no text.
    """
    return [{name: _stored(value, name) for name, value in row.items()} for row in rows]


def _stored(value: object, name: str) -> object:
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return float(f"{value:.6g}") if math.isfinite(value) else value
    if type(value) in (list, tuple):
        return [_stored(item, name) for item in value]
    if type(value) is dict and all(type(key) is str for key in value):
        return {key: _stored(item, name) for key, item in value.items()}
    raise TypeError(
        f"column {name!r} holds {value!r}, a {type(value).__module__}.{type(value).__qualname__}; a row holds text, "
        "whole numbers, floats, truth values, None, and lists and dicts of them with text as keys: convert it first"
    )


def save(record: Record, folder: str | Path) -> Path:
    """Write `folder/<chapter>/<experiment>.<profile>.<device>.json`, whole or not at all.

    Raises: OSError naming the folder where it cannot be written.
    """
    path = Path(folder).expanduser() / record.chapter / record.file_name
    fields = asdict(record)
    rows = ",\n".join("  " + json.dumps(row, separators=(", ", ": ")) for row in fields.pop("rows"))
    head = json.dumps(fields, indent=1, sort_keys=True)
    text = f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'  # a line a row: short files, readable differences
    with _naming(path):
        write_atomically(path, text)
    return path


def check_writable(folder: str | Path) -> None:
    """Show now, not after an hour's measurement, whether a folder can be written.

    Raises: OSError naming the folder.
    """
    with _naming(Path(folder)):
        Path(folder).expanduser().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=Path(folder).expanduser()):
            pass


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say of what cannot be written where, and what to do."""
    try:
        yield
    except OSError as error:
        words = f"nothing can be written there ({error.strerror}); choose a folder that you may write to"
        raise type(error)(error.errno, words, str(path)) from error


def load(path: str | Path) -> Record:
    """Read a record.

    Raises: ValueError naming the file where it is not a whole record.
    """
    try:
        return Record(**json.loads(Path(path).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is not a record: {error}") from error


def published(
    chapter: str | None = None, experiment: str | None = None, folder: str | Path | None = None
) -> list[Record]:
    """The records that come with the book, the strongest of each experiment first: by profile, then by seeds."""
    root = Path(folder).expanduser() if folder else project_root() / "records"
    found = [load(path) for path in sorted(root.glob(f"{chapter or '*'}/{experiment or '*'}.*.json"))]
    order = {name: index for index, name in enumerate(PROFILES)}
    return sorted(found, key=lambda r: (r.chapter, r.experiment, order.get(r.profile, len(order)), -len(r.seeds)))


def strongest(found: Sequence[Record]) -> dict[str, Record]:
    """Experiment → its first record, of records in the order of `published`: the one whose estimates count."""
    return {record.experiment: record for record in reversed(found)}


def environment(device: dict) -> dict:
    """The machine and the versions a result is made with: device, python, packages, commit, dirty, date.

    Args: device: what devices.describe says of the device that computes.
    """
    packages = {}
    for name in ("torch", "torchvision", "numpy", "scipy", "scikit-learn"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "device": device,
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": packages,
        "commit": commit(),
        "dirty": bool(uncommitted()),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def machine(device: dict) -> str:
    """A device in words, from what devices.describe says of it."""
    threads = device.get("threads", 0)
    if device.get("device") != "cpu" or not threads:
        return device["name"]
    widest = instruction_set(device)
    return f"{threads} thread{'s' if threads > 1 else ''} of {device['cpu']}{f' with {widest}' if widest else ''}"


def instruction_set(device: dict) -> str:
    """The widest instruction set of a CPU: processors of one name can differ in it, and then in their last digits."""
    return next((INSTRUCTION_SETS[name] for name in INSTRUCTION_SETS if name in device.get("instructions", [])), "")


def commit() -> str | None:
    """The book's commit; None where the book is no checkout of its own, say a copy within a reader's repository."""
    if _git("rev-parse", "--show-toplevel") != str(project_root()):
        return None
    return _git("rev-parse", "--short=12", "HEAD")


def uncommitted() -> list[str]:
    """Files of the book that differ from its commit and can change a result; [] where the book is no checkout."""
    if commit() is None:
        return []
    lines = (_git("status", "--porcelain", "--", "resnet_lib", "chapters", "profiles", "claims.yml") or "").splitlines()
    return [line[3:] for line in lines]


def _git(*arguments: str) -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=project_root(), capture_output=True, text=True, timeout=20)
        if done.returncode == 0:
            return done.stdout.rstrip("\n")
    return None


def same_runs(record: Record, settings: dict, data: dict, code: dict[str, str], run: str) -> bool:
    """Whether a record's rows are what these settings, this data and this code would give, and none is run again.

    Code may reach more than the record's did: an entry added to a table changes nothing that was measured. But what is
    run, by its name in `code`, must be what was run.
    """
    codes = [record.code, *(entry["code"] for entry in record.attested)]
    names = ("fingerprint", "test", "splits")
    same_data = digest([record.settings, *map(record.data.get, names)]) == digest([settings, *map(data.get, names)])
    return same_data and any(run in known and known.items() <= code.items() for known in codes)
