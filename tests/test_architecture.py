"""Modules depend on lower levels only, and importing them costs next to nothing and changes nothing."""

import ast
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

LIBRARY = Path(__file__).resolve().parents[1] / "resnet_lib"
MODULES = sorted(path.stem for path in LIBRARY.glob("*.py") if path.stem != "__init__")
README = (LIBRARY.parent / "README.md").read_text(encoding="utf-8")
LEVEL = {module: int(level) for level, module in re.findall(r"^\| (\d) \| `(\w+)` \|", README, re.MULTILINE)}


def imports(module):
    """Everything a module imports, at the top and inside functions."""
    for node in ast.walk(ast.parse((LIBRARY / f"{module}.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", [*MODULES, "__init__"])
def test_a_module_imports_lower_levels_only_and_never_the_tools(module):
    names = list(imports(module))
    assert not [name for name in names if name.split(".")[0] in ("tools", "tests", "benchmarks")]
    siblings = {name.split(".")[1] for name in names if name.startswith("resnet_lib.")}
    assert "resnet_lib" not in names
    level = LEVEL.get(module, 0)
    assert not {name for name in siblings if LEVEL.get(name, 9) >= level}, "experiments are above all of the core"


EXPERIMENTS = sorted((LIBRARY / "experiments").glob("*/*.py"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_an_experiment_imports_the_core_and_of_experiments_only_what_its_own_chapter_shares(path):
    names = list(imports(path.relative_to(LIBRARY).with_suffix("")))
    assert not [name for name in names if name.split(".")[0] in ("tools", "tests", "benchmarks")]
    others = {tuple(name.split(".")[2:4]) for name in names if name.startswith("resnet_lib.experiments.")}
    shared = {one.stem for one in (LIBRARY / "experiments").glob("*.py")}  # what several chapters share
    others = {other for other in others if other[0] not in shared}
    assert {chapter for chapter, _ in others} <= {path.parent.name}
    if path.stem != "__init__":
        questions = {p.stem for p in path.parent.glob("*.py") if "Experiment(" in p.read_text(encoding="utf-8")}
        needed = questions if "needs=" in path.read_text(encoding="utf-8") else set()
        assert not ({module for _, module in others} & questions) - needed, "one imports only what it is measured after"


def test_the_readme_lists_every_module_with_its_level():
    assert sorted(LEVEL) == MODULES


IMPORT = """
import json, os, random, sys
import numpy, torch
def settings():
    return [
        str(torch.get_default_dtype()), torch.get_rng_state().tolist(), torch.get_num_threads(),
        torch.get_float32_matmul_precision(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, dict(os.environ), os.getcwd(),
        str(random.getstate()), str(numpy.random.get_state()), str(numpy.get_printoptions()), sys.path[:],
        list(map(str, __import__("warnings").filters)),
    ]
before, modules = settings(), set(sys.modules)
for name in sys.argv[1:]:
    __import__("resnet_lib." + name)
changed = [index for index, (a, b) in enumerate(zip(before, settings())) if a != b]
print(json.dumps({"changed": changed, "new": sorted(set(sys.modules) - modules)}))
"""


@pytest.fixture(scope="module")
def imported():
    """What importing every module did, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(LIBRARY.parent)}
    command = [sys.executable, "-W", "error::DeprecationWarning:resnet_lib", "-c", IMPORT, *MODULES]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_everything_changes_no_setting(imported):
    assert imported["changed"] == []


def test_importing_everything_loads_only_itself_torch_and_the_standard_library(imported):
    others = {name.split(".")[0] for name in imported["new"]} - sys.stdlib_module_names
    assert others <= {"resnet_lib", "torch", "torchgen", "numpy"}, (
        "what takes long to import is imported where it is used"
    )


def test_no_module_writes_when_imported_or_hides_names():
    for module in MODULES:
        tree = ast.parse((LIBRARY / f"{module}.py").read_text(encoding="utf-8"))
        assert not [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"], module
        loose = [n for n in tree.body if isinstance(n, ast.For | ast.While | ast.With | ast.If)]
        assert not [n for n in loose if "__name__" not in ast.unparse(n)], module  # but a module may be a program
        calls = [n for n in tree.body if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call)]
        assert not calls, module


def lines_of_code(source):
    """Lines with code on them: no blank line, no comment, no docstring, which the book asks to be long."""
    docstrings = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            docstrings |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    quiet = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    found = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in quiet:
            found |= set(range(token.start[0], token.end[0] + 1))
    return len(found - docstrings)


def test_the_library_stays_small():
    assert lines_of_code('"""A."""\n\n# b\nx = (\n    1,\n)\n\ndef f():\n    """C."""\n') == 4
    sizes = {module: lines_of_code((LIBRARY / f"{module}.py").read_text(encoding="utf-8")) for module in MODULES}
    assert sum(sizes.values()) < 6050  # experiments/, which the core never imports, is counted apart
    assert max(sizes.values()) < 400
