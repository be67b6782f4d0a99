"""Is a result still what the book's code would give? Hashes of all that a function reaches, and what has changed."""

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import torch

from resnet_lib.paths import digest

PACKAGE = "resnet_lib"
# Modules that cannot change a row. What `data` does to a row is in the data's fingerprint: pictures, labels, split.
OUTSIDE = {
    "archives",
    "checkpoints",
    "claims",
    "data",
    "freshness",
    "page",
    "parameters",
    "paths",
    "pictures",
    "plots",
    "records",
    "study",
    "sweep",
    "verdicts",
}


@dataclass(frozen=True)
class Module:
    """What a module of the library binds at its top."""

    definitions: dict[str, ast.AST]  # functions, classes, values; of a table each entry too, as NAME['key']
    imports: dict[str, tuple[str, str]]  # name → (module, definition in it, or "" for the module itself)


def code_of(function: Callable) -> dict[str, str]:
    """Hashes of every definition that a function reaches: itself, what it names, what those name.

    A definition is a function, a class, a value; of a table (a dict written out) each entry counts on its own, so
    that one more entry changes nothing. Comments, docstrings and layout do not count, nor do modules that cannot
    change a row. A function of a notebook is followed through the values that it reads there.

    Returns: definition → hash: `train.fit`, `experiments.residual.tuning.tuning`, `blocks.BLOCKS['basic']`, and
        `notebook.mine` for what is no part of the library.
    """
    found: dict[str, str] = {}
    waiting: list[object] = [function]  # callables, and (module, definition) of the library
    while waiting:
        value = waiting.pop()
        if isinstance(value, tuple):
            waiting += _add_definition(*value, found)
        elif isinstance(value, partial):
            name = getattr(value.func, "__qualname__", type(value.func).__qualname__)
            found[f"notebook.partial of {name}"] = hash_value([value.args, value.keywords])
            waiting.append(value.func)
        elif not hasattr(value, "__qualname__"):  # an object that can be called
            kind, state = type(value), getattr(value, "__dict__", {})
            for key, part in state.items():
                found[f"notebook.{kind.__qualname__}.{key}"] = hash_value(part)
            waiting += [kind, *(part for part in state.values() if inspect.isroutine(part))]
        elif _is_library(inspect.unwrap(value)):
            value = inspect.unwrap(value)
            waiting.append((_inside(value.__module__), value.__qualname__.partition(".")[0]))
            for name, one in _closed_over(value).items():  # a function made by a function
                if callable(one) and not isinstance(one, torch.nn.Module):
                    waiting.append(one)
                else:
                    found[f"notebook.{value.__qualname__}.{name}"] = hash_value(one)
        elif f"notebook.{value.__qualname__}" not in found:
            waiting += _add_own(value, found)
    return dict(sorted(found.items()))


def name_of(function: Callable) -> str:
    """The name by which `code_of` knows a function itself."""
    function = inspect.unwrap(function.func if isinstance(function, partial) else function)
    return f"{_inside(function.__module__) if _is_library(function) else 'notebook'}.{function.__qualname__}"


def _is_library(value: object) -> bool:
    return (getattr(value, "__module__", None) or "").startswith(f"{PACKAGE}.")


def _inside(module: str) -> str:
    return module.removeprefix(PACKAGE).removeprefix(".")


def _add_definition(module: str, name: str, found: dict[str, str]) -> list[tuple[str, str]]:
    """Hash one definition of the library; what it refers to comes back."""
    if module.split(".")[0] in OUTSIDE or f"{module}.{name}" in found:
        return []
    read = read_module(module)
    if read is None or name not in read.definitions:
        if read and name in read.imports and read.imports[name][1]:
            return [read.imports[name]]
        return []
    names = [name, *(entry for entry in read.definitions if entry.startswith(f"{name}["))]
    nodes = [read.definitions[one] for one in names]
    for one, node in zip(names, nodes, strict=True):
        # a table is its entries, and beside them only that it is one
        found[f"{module}.{one}"] = digest("a table") if len(names) > 1 and one == name else hash_tree(node)
    return [target for node in nodes for target in _references(node, module, read)]


def _references(node: ast.AST, module: str, read: Module) -> Iterator[tuple[str, str]]:
    imports = read.imports | _imports(node)
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            target, definition = imports.get(part.value.id, ("", ""))
            if target and not definition:
                yield target, part.attr
        elif isinstance(part, ast.Name):
            if part.id in read.definitions:
                yield module, part.id
            elif imports.get(part.id, ("", ""))[1]:
                yield imports[part.id]


def _path(module: str) -> Path | None:
    base = Path(__file__).parent.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


@cache
def read_module(module: str) -> Module | None:
    """What `resnet_lib.<module>` binds, from its source; None where there is no such module."""
    if (path := _path(module)) is None:
        return None
    tree, definitions = ast.parse(path.read_text(encoding="utf-8")), {}
    for node in tree.body:
        if hasattr(node, "name"):
            definitions[node.name] = node
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for name in (n.id for target in targets if target for n in ast.walk(target) if isinstance(n, ast.Name)):
            definitions[name] = node
            if isinstance(node.value, ast.Dict) and all(isinstance(key, ast.Constant) for key in node.value.keys):
                entries = zip(node.value.keys, node.value.values, strict=True)
                definitions |= {f"{name}[{key.value!r}]": entry for key, entry in entries}
    return Module(definitions, _imports(tree))


def _imports(tree: ast.AST) -> dict[str, tuple[str, str]]:
    """Names that imports of this library bind anywhere in a tree."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == PACKAGE:
            inside = _inside(node.module)
            for alias in node.names:
                whole = f"{inside}.{alias.name}" if inside else alias.name
                found[alias.asname or alias.name] = (whole, "") if _path(whole) else (inside, alias.name)
    return found


def _add_own(value: Callable, found: dict[str, str]) -> list[object]:
    """Hash a function or class of a notebook, and the values that it reads; what it calls comes back."""
    members = [m for m in vars(value).values() if inspect.isfunction(m)] if inspect.isclass(value) else [value]
    found[f"notebook.{value.__qualname__}"] = digest(sorted(_own_hash(member) for member in members))
    waiting: list[object] = []
    for member in members:
        for name, read in _values_read(member).items():
            for key, one in _members(name, read):
                if inspect.ismodule(one):
                    if one.__name__.startswith(f"{PACKAGE}."):
                        waiting += [
                            (_inside(one.__name__), attribute) for attribute in sorted(member.__code__.co_names)
                        ]
                elif callable(one):
                    waiting += [one] if _is_library(one) or one.__module__ == member.__module__ else []
                else:
                    found[f"notebook.{key}"] = hash_value(one)
    return waiting


def _own_hash(function: Callable) -> str:
    try:
        return hash_tree(ast.parse(textwrap.dedent(inspect.getsource(function))))
    except (OSError, SyntaxError):  # typed at a prompt, or a lambda within a line
        return digest([function.__code__.co_code.hex(), repr(function.__code__.co_consts)])


def _values_read(function: Callable) -> dict[str, object]:
    """The values behind the names that a function does not bind itself: globals and what it closes over."""
    codes, names = [function.__code__], set()
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [const for const in code.co_consts if inspect.iscode(const)]
    found = {name: function.__globals__[name] for name in sorted(names) if name in function.__globals__}
    return found | _closed_over(function)


def _closed_over(function: Callable) -> dict[str, object]:
    if not inspect.isfunction(function) or not function.__closure__:
        return {}
    cells = zip(function.__code__.co_freevars, function.__closure__, strict=True)
    return {name: cell.cell_contents for name, cell in cells}


def _members(name: str, value: object) -> list[tuple[str, object]]:
    """A value by its name; of a table that holds functions, its members."""
    if isinstance(value, dict | list | tuple):
        entries = list(value.items() if isinstance(value, dict) else enumerate(value))
        if any(callable(member) for _, member in entries):
            return [pair for key, member in entries for pair in _members(f"{name}[{key!r}]", member)]
    return [(name, value)]


def hash_value(value: object) -> str:
    """A hash of a value: of a tensor its numbers, of a network its weights, of data their fingerprint."""
    fingerprint = getattr(value, "fingerprint", None)
    if fingerprint is not None:
        return digest(str(fingerprint))
    if isinstance(value, torch.nn.Module):
        return digest([repr(value), *(hash_value(part) for part in value.state_dict().values())])
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        numbers = value.flatten().view(torch.uint8) if value.numel() else value
        return hashlib.sha256(f"{value.dtype} {tuple(value.shape)}".encode() + numbers.numpy().tobytes()).hexdigest()
    try:
        return digest(json.dumps(value, sort_keys=True))
    except (TypeError, ValueError):
        text = repr(value)
        return digest(text if " at 0x" not in text else type(value).__qualname__)


def current(name: str) -> str | None:
    """The hash that a definition named by `code_of` has now; None where it is gone."""
    module = name.partition("[")[0].rpartition(".")[0]
    entry = name[len(module) + 1 :]
    read = read_module(module)
    if read is None or entry not in read.definitions:
        return None
    is_table = any(other.startswith(f"{entry}[") for other in read.definitions)
    return digest("a table") if is_table else hash_tree(read.definitions[entry])


def changed(code: Mapping[str, str]) -> list[str]:
    """What of a result's code is no longer so, in words; empty where all of it is. A notebook's own is not judged."""
    reasons = []
    for name, hashed in code.items():
        if name.startswith("notebook."):
            continue
        now = current(name)
        if now != hashed:
            reasons.append(f"{name} has changed" if now else f"{name} is gone")
    return reasons


def hash_tree(tree: ast.AST) -> str:
    """A hash of code without its docstrings, comments and layout, the same on every Python."""
    return digest(_dump(tree))


def _dump(node: object, is_body: bool = False) -> str:
    """ast.dump in one form for every Python: its own changes with the version, and records outlive versions."""
    if isinstance(node, list):
        if is_body and node and _is_docstring(node[0]):
            node = node[1:]
        return "[" + ",".join(map(_dump, node)) + "]"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [
        f"{name}={_dump(value, name == 'body')}"
        for name, value in ast.iter_fields(node)
        if value is not None and value != []
    ]
    return f"{type(node).__name__}({','.join(fields)})"


def _is_docstring(node: object) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
