"""A scratch book of tiny chapters, for the tests of the tools."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

PARAMETERS = """\
seeds: int = 3  # how many
rate: float = 0.5  # step
name: str = "x"  # label
sizes: list[int] = [1, 2]  # n"""


def cell(source, name, *tags, kind="code", **metadata):
    """One notebook cell as JSON; `name` becomes its id."""
    made = {
        "cell_type": kind,
        "id": name,
        "metadata": metadata | ({"tags": list(tags)} if tags else {}),
        "source": source,
    }
    return made | ({"outputs": [], "execution_count": None} if kind == "code" else {})


def write_notebook(path, cells):
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}))
    return path


def chapter(path, *sources):
    """A chapter with the usual parameters, then a cell for each source."""
    cells = [cell(f"# {path.stem.title()}", "title", kind="markdown"), cell(PARAMETERS, "parameters", "parameters")]
    return write_notebook(path, cells + [cell(source, f"work-{i}") for i, source in enumerate(sources)])


@contextlib.contextmanager
def room_for(size):
    """Inside the block no file can grow beyond `size` bytes: a full disk, as far as a writer can tell."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def book(tmp_path):
    """A function that makes a book of the chapters given as name=[source, …] and returns its folder."""

    def make(**chapters):
        root = tmp_path / "book"
        (root / "resnet_lib").mkdir(parents=True)
        (root / "resnet_lib" / "stub.py").write_text("VALUE = 1\n")
        shutil.copy(ROOT / "pyproject.toml", root)
        (root / "claims.yml").write_text("[]\n")
        entries = "".join(f"  - file: chapters/{name}\n" for name in chapters)
        (root / "_toc.yml").write_text(f"format: jb-book\nroot: intro\nchapters:\n{entries}")
        (root / "intro.md").write_text("# A book\n")
        for name, sources in chapters.items():
            chapter(root / "chapters" / f"{name}.ipynb", *sources)
        return root

    return make
