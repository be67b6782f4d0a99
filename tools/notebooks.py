"""Keep notebooks clean: `check` names what is wrong, `fix` strips and re-runs, `nbval` tests.

python -m tools.notebooks check|fix|nbval [chapters/residual.ipynb …]      (every chapter where none is named)
"""

import ast
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tools.chapters import ROOT, code_cells, command, read, tags, toc_chapters

CHECKED = "nbval-check-output"  # a cell whose output is kept and compared
SKIPPED = "nbval-skip"  # a cell that measures or shows: papermill runs it, nbval does not
MAX_LINES, MAX_FOLDED_LINES = 15, 25  # of a cell; of one whose code the page folds or leaves out
MAX_CELLS, MAX_CODE, MAX_OPEN_CODE = 45, 600, 300  # of a chapter: cells, lines of code without blanks, of them open
FOLDED = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
CELL_METADATA = {"tags", "mystnb"}
NOTEBOOK_METADATA = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
DRAWS = re.compile(r"\b(plt|figure|fig)\.(subplots|figure|add_subplot)\(|\bplots\.figure\(")
MEASURED = re.compile(
    r"(?<![\w.{^_-])\d+(?:\.\d+)?\s?(?:%|×(?!\s?\d)|x (?:faster|slower)|m?s\b"
    r"|TFLOP|GFLOP|GB/s|im(?:a)?g(?:es)?/s|points?\b|seconds?\b)"
)
NOT_PROSE = re.compile(r"(?s)```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\{[a-z:]+\}`[^`]*`|<!--.*?-->|\]\([^)]*\)")
CITED = "⟦source⟧"  # a cited number has its citation on its line
SENTENCE_END = re.compile(
    r"(?<!\be\.g)(?<!\bi\.e)(?<!\bal)(?<!\bvs)(?<!\bcf)(?<!\bFig)(?<!\bSec)(?<!\bEq)(?<![A-Z\d])"
    r"[.!?][)”\"]*\s+[A-Z]"  # a run-in head, *Design.*, may stand before its sentence
)

BOOTSTRAP = """\
# Installed, or inside the checkout: nothing happens. Alone (Colab, an empty folder): fetch the small
# library, and only it; torch, torchvision and numpy stay as they are.
import importlib.util
import os
import subprocess
import sys

for _root in ("..", "."):
    if os.path.isfile(f"{_root}/resnet_lib/__init__.py"):
        sys.path.append(os.path.abspath(_root))
if importlib.util.find_spec("resnet_lib") is None:
    _source = os.environ.get("RESNET_LIB_SOURCE", "git+ADDRESS")
    _install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", _source]
    subprocess.run(_install, check=True)
    importlib.invalidate_caches()"""


def repository(root: Path = ROOT) -> str:
    import yaml

    return yaml.safe_load((root / "_config.yml").read_text("utf-8"))["repository"]["url"]


def problems(path: Path, address: str) -> list[str]:
    """What is wrong with a notebook as it would be committed, a line each."""
    notebook = read(path)
    cells = code_cells(notebook)
    found = []
    if notebook.get("metadata") != NOTEBOOK_METADATA:
        found.append(f"the notebook's metadata must be the python3 kernelspec and nothing else: {NOTEBOOK_METADATA}")
    if path.read_text("utf-8") != canonical(notebook):
        found.append("it is not in nbformat's own layout (run: python -m tools.notebooks fix)")
    if not cells or "bootstrap" not in tags(cells[0]) or cells[0]["source"] != BOOTSTRAP.replace("ADDRESS", address):
        found.append("the first code cell must be the bootstrap cell, tagged so, with the text in tools/notebooks.py")
    names = [cell.get("id", "") for cell in notebook["cells"]]
    found += [f"two cells are called {name!r}" for name in sorted({n for n in names if names.count(n) > 1})]
    parameters = [cell for cell in cells if "parameters" in tags(cell)]
    if len(parameters) > 1:
        found.append("more than one cell is tagged `parameters`")
    found += size_problems(notebook)
    for cell in notebook["cells"]:
        name = cell.get("id", "")
        own = cell_problems(cell) if cell["cell_type"] == "code" else prose_problems(cell["source"])
        if extra := set(cell["metadata"]) - CELL_METADATA:
            own.append(f"metadata that is not the author's: {', '.join(sorted(extra))}")
        if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f-]+)?", name):
            own.append("give it a short id of words: fig-gradients")
        found += [f"cell {name!r}: {problem}" for problem in own]
    return found


def size_problems(notebook: dict) -> list[str]:
    """What makes a chapter longer than a reader stays for."""
    cells = [cell for cell in code_cells(notebook) if "parameters" not in tags(cell)]
    lines = [(sum(map(bool, map(str.strip, cell["source"].splitlines()))), FOLDED & set(tags(cell))) for cell in cells]
    sizes = {
        "cells": (len(notebook["cells"]), MAX_CELLS),
        "lines of code": (sum(count for count, _ in lines), MAX_CODE),
        "lines of code that stand open": (sum(count for count, folded in lines if not folded), MAX_OPEN_CODE),
    }
    return [f"{count} {what}; at most {most}" for what, (count, most) in sizes.items() if count > most]


def cell_problems(cell: dict) -> list[str]:
    found, source, about = [], cell["source"], cell["metadata"].get("mystnb", {})
    if CHECKED in tags(cell):
        if cell["execution_count"] is None or not cell["outputs"]:
            found.append(f"tagged {CHECKED}, but without output and count, and so never compared (run fix)")
        if any(output["output_type"] == "error" for output in cell["outputs"]):
            found.append("its stored output is an error")
    elif cell["outputs"] or cell["execution_count"] is not None:
        found.append("its output must be stripped (run fix)")
    most = MAX_FOLDED_LINES if FOLDED & set(tags(cell)) else MAX_LINES
    if source.count("\n") >= most and "parameters" not in tags(cell):
        found.append(f"{source.count(chr(10)) + 1} lines; at most {most}")
    if not source.strip():
        found.append("empty")
    if re.search(r"(?m)^\s*[%!]", source):
        found.append("a magic or a shell command: it must also run as a plain script")
    elif "parameters" in tags(cell):
        lines = source.splitlines()
        for node in ast.parse(source).body:
            if not isinstance(node, ast.AnnAssign):
                found.append(f"line {node.lineno}: a parameter is `name: type = default  # what it is`")
            elif "#" not in lines[node.end_lineno - 1]:
                found.append(f"line {node.lineno}: say in a comment what {ast.unparse(node.target)} is")
    if DRAWS.search(source) and "def " not in source.split("\n")[0]:
        if "page.caption(" not in source:
            found.append('a figure needs a caption that states its finding: page.caption(f"…")')
        if not about.get("image", {}).get("alt"):
            found.append("a figure needs a text for those who can't see it: metadata mystnb.image.alt")
    return found


def prose_problems(text: str) -> list[str]:
    prose = NOT_PROSE.sub(lambda m: CITED if m[0].startswith("{cite") else " ", text)
    found = []
    for line in prose.splitlines():
        if CITED not in line and (m := MEASURED.search(line)):
            found.append(f"a number that looks measured is typed: …{line[max(0, m.start() - 30) : m.end() + 10]}…")
        if not line.lstrip().startswith(("|", ":")) and "arXiv" not in line and (m := SENTENCE_END.search(line)):
            found.append(f"one sentence a line: …{line[max(0, m.start() - 30) : m.end() + 20].strip()}…")
    return found


def canonical(notebook: dict) -> str:
    import nbformat
    from nbformat.v4 import nbjson

    return nbjson.writes(nbformat.from_dict(notebook)) + "\n"


def strip(notebook: dict) -> dict:
    """The notebook without what running it leaves behind; checked cells keep output and count."""
    notebook["metadata"] = NOTEBOOK_METADATA
    for cell in notebook["cells"]:
        cell["metadata"] = {key: value for key, value in cell["metadata"].items() if key in CELL_METADATA}
        if cell["cell_type"] == "code" and CHECKED not in tags(cell):
            cell |= {"outputs": [], "execution_count": None}
    return notebook


def fix(path: Path) -> None:
    """Run the notebook, but for what nbval skips, and write it back with the outputs of the checked cells alone."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.from_dict(read(path))
    if any(CHECKED in tags(cell) for cell in notebook["cells"]):
        part = nbformat.NotebookNode(notebook)  # of the same cells, which so get their outputs
        part.cells = [cell for cell in notebook["cells"] if SKIPPED not in tags(cell)]
        run = NotebookClient(
            part,
            timeout=600,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(path.parent)}},
        )
        run.execute()
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(canonical(strip(json.loads(json.dumps(notebook)))), "utf-8")
    os.replace(temporary, path)


def nbval(paths: list[Path], environment: dict) -> int:
    """nbval over the chapters: every cell must run, checked cells must print what is stored."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "",
        "-n",  # notebooks side by side, each in a kernel of one thread
        str(os.cpu_count() or 1),
        "--dist",
        "loadfile",
        "--nbval-lax",
        "--nbval-current-env",
        "--nbval-cell-timeout",
        "300",
        *map(str, paths),
    ]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def main(arguments: list[str] | None = None) -> int:
    parser = command("tools.notebooks", __doc__)
    parser.add_argument("action", choices=("check", "fix", "nbval"))
    parser.add_argument("paths", nargs="*", type=Path, help="default: every chapter of _toc.yml")
    options = parser.parse_args(arguments)
    paths = [path.resolve() for path in options.paths] or toc_chapters(ROOT)
    if options.action == "check":
        address = repository(ROOT)
        found = [f"{path.name}: {problem}" for path in paths for problem in problems(path, address)]
        print("\n".join(found) or f"{len(paths)} notebooks are clean")
        return int(bool(found))
    from tools.execute import kernel_environment

    with tempfile.TemporaryDirectory(prefix="jupyter-") as runtime:
        environment = kernel_environment(ROOT, 1) | {"JUPYTER_RUNTIME_DIR": runtime}
        if options.action == "nbval":
            return nbval(paths, environment)
        os.environ |= environment
        for path in paths:
            print(f"{path.name}: running …", flush=True)
            fix(path)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
