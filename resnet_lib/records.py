"""Results with their recipe: what ran, on what, with which code, and what came out; saved, found, judged stale."""

import ast
import contextlib
import datetime
import hashlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from types import CodeType

PROFILES = ("full", "colab", "cpu", "smoke")  # from the strongest evidence to the weakest
PRESENTATION = {"plots", "page", "claims", "verdicts", "records", "parameters"}  # modules that cannot change a number

SOONER = "the same pictures, bit by bit, in less time"

# Changes of the library that left what published records measured as it was: definition, hash before, hash after → why.
# Each has a test that holds it to that.
AMENDMENTS = {
    (
        "train.make_optimizer",
        "3fe0e43d3c650669",
        "edc11e2bace98eea",
    ): "fp16 alone has another SGD; no record was made in fp16",
    ("augment._gather", "bf30063d21496261", "d8ceee46167a64f5"): SOONER,
    ("augment.random_crop_flip_cutout", "58e25b2079d2a1c1", "1b8345841e435d58"): SOONER,
    ("augment.random_crop_flip_cutout", "fa4854228d51aa7d", "1b8345841e435d58"): SOONER,
    ("augment.cutout", "912fe4eb089672d7", "af3950dbafc09a8e"): SOONER,
    ("augment.affine", "0b9fecfbd51cd03a", "eb9d0ec291512fc8"): SOONER,
    ("augment.resample", "e6b7046d41fad72a", "602bc3b39175e102"): SOONER,
    ("augment.translate", "79c134b69f100f99", "a2fdf36554f51fbc"): SOONER,
}


@dataclass(frozen=True)
class Record:
    """One experiment's outcome and everything needed to repeat it."""

    chapter: str
    experiment: str
    profile: str  # smoke, cpu, colab, full, or a reader's own name
    config: dict  # everything that decides the rows beside code and data
    data: dict  # name, fingerprint, note, sizes
    seeds: list[int]
    rows: list[dict]
    estimates: dict[str, dict]  # measure → stats.Estimate as a dict; what the rules in claims.yml read
    code: dict  # {"experiment": {function: hash}, "library": {module.definition: hash}}
    environment: dict  # device, versions, date, commit
    wall_s: float = 0.0  # seconds the experiment ran
    notes: list[str] = field(default_factory=list)  # what could not be measured, and why

    def __post_init__(self):
        for name in ("chapter", "experiment", "profile"):
            value = getattr(self, name)
            if not value or not all(c.isalnum() or c in "_-" for c in value):
                raise ValueError(f"{name}={value!r} must be letters, digits, '_' or '-': it names a file")

    @property
    def key(self) -> str:
        """What makes two records the same measurement: chapter, experiment, config and data."""
        return digest([self.chapter, self.experiment, self.config, self.data.get("fingerprint")])


@dataclass(frozen=True)
class Chapter:
    """One run of a chapter: what all its records share."""

    name: str
    profile: str
    data: dict  # what Dataset.about says
    device: dict  # what precision.describe says
    seeds: list[int]
    folder: str = ""  # where records are saved; "" saves none

    def __post_init__(self):
        if len(self.seeds) < 2:
            raise ValueError(f"{len(self.seeds)} seed(s): an interval needs at least 2, and 3 to be worth showing")
        if self.folder:  # shows now, not after an hour's measurement, whether it can be written
            with _naming(Path(self.folder)):
                Path(self.folder).expanduser().mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=Path(self.folder).expanduser()):
                    pass

    def record(
        self,
        experiment: str,
        rows: list[dict],
        estimates: dict,
        functions: Sequence[Callable],
        config: dict,
        notes: Sequence[str] = (),
    ) -> Record:
        """Make the record of one experiment and, with a folder, save it.

        Args:
            estimates: measure → stats.Estimate; the names that claims.yml's rules read.
            functions: the chapter's functions that made the rows.
            config: what decided the rows beside code and data.
        """
        record = Record(
            chapter=self.name,
            experiment=experiment,
            profile=self.profile,
            config=config,
            data=self.data,
            seeds=self.seeds,
            rows=rows,
            estimates={name: asdict(estimate) for name, estimate in estimates.items()},
            code=code_of(*functions),
            environment=environment(self.device),
            wall_s=sum({row["run_s"] for row in rows if "run_s" in row}),
            notes=list(notes),
        )
        if self.folder:
            save(record, self.folder)
        return record


def digest(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def project_root() -> Path:
    """Where claims.yml and records/ live: the checkout, or the copy packed into an installed library."""
    package = Path(__file__).resolve().parent
    return package.parent if (package.parent / "claims.yml").is_file() else package / "published"


def cache_folder() -> Path:
    """Where decoded data and finished runs are kept: $RESNET_LIB_CACHE, else the user's cache folder."""
    if own := os.environ.get("RESNET_LIB_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resnet_lib"


def write_atomically(path: Path, text: str) -> None:
    """Write a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save(record: Record, folder: str | Path) -> Path:
    """Write `folder/<chapter>/<experiment>.<profile>.json`, whole or not at all.

    Raises: OSError naming the folder where it cannot be written.
    """
    path = Path(folder).expanduser() / record.chapter / f"{record.experiment}.{record.profile}.json"
    fields = asdict(record)
    rows = ",\n".join("  " + json.dumps(_rounded(row), separators=(", ", ": ")) for row in fields.pop("rows"))
    head = json.dumps(fields, indent=1, sort_keys=True)
    text = f'{head[:-2]},\n "rows": [\n{rows}\n ]\n}}\n'  # a line a row: short files, readable differences
    with _naming(path):
        write_atomically(path, text)
    return path


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say of what cannot be written where, and what to do."""
    try:
        yield
    except OSError as error:
        words = f"the record cannot be written ({error.strerror}); choose a folder you may write to"
        raise type(error)(error.errno, words, str(path)) from error


def _rounded(row: dict) -> dict:
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in row.items()}


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
    """The records that come with the book, strongest profile first."""
    root = Path(folder) if folder else project_root() / "records"
    found = [load(path) for path in sorted(root.glob(f"{chapter or '*'}/{experiment or '*'}.*.json"))]
    order = {name: index for index, name in enumerate(PROFILES)}
    return sorted(found, key=lambda r: (r.chapter, r.experiment, order.get(r.profile, len(order))))


def environment(device: dict) -> dict:
    """The machine and the versions a result was made with.

    Args: device: what precision.describe says of the device that computed.
    """
    packages = {}
    for name in ("torch", "torchvision", "numpy", "scipy", "scikit-learn"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages[name] = metadata.version(name)
    return {
        "device": device,
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": packages,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def machine(device: dict) -> str:
    """A device in words, from what precision.describe says of it."""
    threads = device.get("threads", 0)
    if device.get("device") != "cpu" or not threads:
        return device["name"]
    return f"{threads} thread{'s' if threads > 1 else ''} of {device['cpu']}"


def _commit() -> str | None:
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=project_root(), capture_output=True, text=True, timeout=10
        )
        if done.returncode == 0:
            return done.stdout.strip()
    return None


def code_of(*functions: Callable) -> dict:
    """Hashes of an experiment's code and of the library in use: the code half of a recipe.

    The experiment is the functions given and every function and class of their own module that they name, and
    those that these name. Of the library it is every definition in the modules in use that can change a number; one
    that is added later was not there to be used, and changes nothing. Comments, docstrings and layout do not count.
    """
    experiment, waiting = {}, list(functions)
    while waiting:
        function = inspect.unwrap(waiting.pop())
        if function.__qualname__ in experiment:
            continue
        experiment[function.__qualname__] = _hash_source(inspect.getsource(function))
        for name in _names(function.__code__):
            found = _functions_in(function.__globals__.get(name))
            waiting += [f for f in found if f.__module__ == function.__module__]
    used = sorted(n.partition(".")[2] for n in sys.modules if n.startswith("resnet_lib."))
    return {
        "experiment": experiment,
        "library": {f"{m}.{name}": h for m in used if m not in PRESENTATION for name, h in definitions(m).items()},
    }


def _functions_in(value: object) -> list[Callable]:
    """Functions behind a name: itself, a class's methods (a notebook's class has no source of its own), a table's."""
    if inspect.isfunction(value):
        return [value]
    if inspect.isclass(value):
        return [m for m in vars(value).values() if inspect.isfunction(m)]
    if isinstance(value, dict | list | tuple):
        members = value.values() if isinstance(value, dict) else value
        return [function for member in members for function in _functions_in(member)]
    return []


def _names(code: CodeType) -> set[str]:
    nested = [c for c in code.co_consts if isinstance(c, CodeType)]
    return set(code.co_names).union(*(_names(c) for c in nested))


@cache
def definitions(module: str) -> dict[str, str]:
    """Hashes of what a module of the library binds: functions, classes, values, imports; {} where it is gone."""
    path, found = Path(__file__).parent / f"{module}.py", {}
    for node in _parse(path.read_text(encoding="utf-8")).body if path.is_file() else []:
        if isinstance(node, ast.Import | ast.ImportFrom):
            # each name on its own, so that one more import is an addition
            source = [getattr(node, "module", None), getattr(node, "level", 0)]
            found |= {a.asname or a.name: digest([*source, a.name]) for a in node.names}
        elif not _is_docstring(node):
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
            names = [n for t in targets for n in ([t.name] if hasattr(t, "name") else _bound(t))]
            found |= dict.fromkeys(names or [f"line {node.lineno}"], _hash_tree(node))
    return found


def _bound(target: ast.AST) -> list[str]:
    return [node.id for node in ast.walk(target) if isinstance(node, ast.Name)]


def _parse(source: str) -> ast.Module:
    return ast.parse(textwrap.dedent(source))


def _hash_source(source: str) -> str:
    return _hash_tree(_parse(source))


def _hash_tree(tree: ast.AST) -> str:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body.pop(0)
    return digest(_dump(tree))


def _dump(node: object) -> str:
    """ast.dump in one form for every Python: its own changes with the version, and records outlive versions."""
    if isinstance(node, list):
        return "[" + ",".join(map(_dump, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [f"{name}={_dump(value)}" for name, value in ast.iter_fields(node) if value is not None and value != []]
    return f"{type(node).__name__}({','.join(fields)})"


def notebook_functions(path: str | Path) -> dict[str, str]:
    """Hashes of the functions and methods defined in a notebook's code cells, to compare with a record's."""
    found = {}
    for cell in json.loads(Path(path).read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or "def " not in source:
            continue
        lines = source.splitlines()
        for node in ast.parse(source).body:
            members = [(f"{node.name}.", m) for m in node.body] if isinstance(node, ast.ClassDef) else [("", node)]
            for prefix, member in members:
                if isinstance(member, ast.FunctionDef):
                    first = min([member.lineno, *(d.lineno for d in member.decorator_list)])
                    found[prefix + member.name] = _hash_source("\n".join(lines[first - 1 : member.end_lineno]))
    return found


def stale(record: Record, functions: dict[str, str], config: dict | None = None) -> list[str]:
    """Why a record's recipe no longer matches the book; empty where it does.

    Args:
        functions: the chapter's functions as they are now, name → hash (`notebook_functions` or `code_of`).
        config: the config it would run with now, where that is known.
    """
    reasons = []
    for name, hashed in record.code.get("experiment", {}).items():
        if functions.get(name) != hashed:
            reasons.append(f"{name}() of the chapter has changed" if name in functions else f"{name}() is gone")
    for name, hashed in record.code.get("library", {}).items():
        module, _, definition = name.partition(".")
        now = definitions(module).get(definition)
        if now != hashed and (name, hashed, now) not in AMENDMENTS:
            reasons.append(f"resnet_lib.{name} has changed" if now else f"resnet_lib.{name} is gone")
    # compared as JSON, in which a tuple is a list
    if changed := sorted(k for k, value in (config or {}).items() if digest([value]) != digest([record.config.get(k)])):
        reasons.append(f"the settings {', '.join(changed)} have changed")
    return reasons


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
