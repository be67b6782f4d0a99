"""A chapter's parameters: what the cell tagged `parameters` declares, checked after papermill has changed it."""

import ast
import json
import math
import types
from dataclasses import dataclass
from pathlib import Path

ZERO_TAKES_ALL = ("image_size", "train_size", "test_size", "situations_size", "batch_pictures")
MAY_BE_ZERO = (*ZERO_TAKES_ALL, "label_smoothing", "weight_decay")


@dataclass(frozen=True)
class Parameter:
    name: str
    kind: str  # the annotation as written, "int" or "list[int]"; "" where there is none
    default: object
    comment: str  # the trailing comment, without its hash


def declared_in(notebook: dict | str | Path) -> dict[str, Parameter]:
    """The parameters that the cell tagged `parameters` of a notebook, or of its file, declares; {} without one."""
    if not isinstance(notebook, dict):
        notebook = json.loads(Path(notebook).read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if "parameters" in cell.get("metadata", {}).get("tags", []):
            return declared("".join(cell["source"]))
    return {}


def declared(source: str) -> dict[str, Parameter]:
    """The parameters that the source of such a cell declares, by name, in order.

    Raises: ValueError naming the one whose default is no literal.
    """
    lines = source.splitlines()
    found = {}
    for node in ast.parse(source).body:
        target = node.target if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [None])[0]
        if not isinstance(target, ast.Name) or node.value is None:
            continue
        try:
            default = ast.literal_eval(node.value)
        except ValueError:
            raise ValueError(f"parameter {target.id!r}: the default must be a literal") from None
        kind = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
        rest = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
        found[target.id] = Parameter(target.id, kind, default, rest.partition("#")[2].strip())
    return found


def check(namespace: dict) -> dict:
    """The declared parameters with their values, from a notebook's `globals()`.

    A parameter is declared by an annotation: `epochs: int = 10`. Papermill injects any name it is given, with
    hardly a word about a misspelt one; here it is an error.

    Raises: ValueError naming an undeclared parameter, or a value of the wrong type or range, and what is declared.
    """
    if "__annotations__" not in namespace:
        raise ValueError("the cell that declares the parameters has not been run: run the notebook from its top")
    declared = {n: t for n, t in namespace["__annotations__"].items() if not n.startswith("_")}
    unknown = [name for name in _injected(namespace.get("In", [])) if name not in declared]
    listing = ", ".join(f"{n}: {_name(t)}" for n, t in declared.items())
    if unknown:
        raise ValueError(f"unknown parameter {unknown[0]!r}; this chapter declares {listing}")
    for name, expected in declared.items():
        if problem := problem_with(name, namespace[name], _name(expected)):
            raise ValueError(f"{problem}; this chapter declares {listing}")
    return {name: namespace[name] for name in declared}


def _injected(history: list[str]) -> list[str]:
    """The names that papermill's own cell assigns; IPython keeps each cell's source in `In`."""
    sources = [source for source in history if source.split("\n", 1)[0] == "# Parameters"]
    nodes = [node for source in sources for node in ast.parse(source).body if isinstance(node, ast.Assign)]
    return [target.id for node in nodes for target in node.targets if isinstance(target, ast.Name)]


def problem_with(name: str, value: object, expected: str) -> str | None:
    """What is wrong with a value for a parameter declared with this annotation, or None.

    A whole number is fine where a float is declared; a bool is not a number. Numbers are counts, sizes and rates: above
    0 and finite, where 0 does not take all there is or none. A list names at least one value.
    """
    outer, _, inner = expected.partition("[")
    allowed = {"float": (int, float), "int": (int,), "str": (str,), "bool": (bool,), "list": (list, tuple)}.get(outer)
    if allowed is None:
        return None
    if not isinstance(value, allowed) or (isinstance(value, bool) and outer != "bool"):
        return f"parameter {name}={value!r} must be of type {expected}, not {type(value).__name__}"
    if outer == "list":
        if not value:
            return f"parameter {name}={value!r} must hold at least one value"
        return next(filter(None, (problem_with(name, item, inner.rstrip("]")) for item in value)), None)
    if outer in ("int", "float") and not (0 < value < math.inf or (value == 0 and name in MAY_BE_ZERO)):
        return f"parameter {name}={value!r} must be {'at least 0' if name in MAY_BE_ZERO else 'above 0'} and finite"
    return None


def _name(annotation: object) -> str:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation.__name__
    return str(annotation)
