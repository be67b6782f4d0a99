"""What every tool asks of a chapter, with the standard library alone: cells, parameters, profiles."""

import argparse
import json
import os
import re
import sys
from pathlib import Path

from resnet_lib.parameters import Parameter, problem_with

ROOT = Path(__file__).resolve().parents[1]


def command(module: str, text: str | None) -> argparse.ArgumentParser:
    """The parser of a tool, described by the first line of its docstring, which python -OO leaves out.

    What it prints is UTF-8 whatever the locale: a × must not stop a program that has measured for an hour.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    return argparse.ArgumentParser(prog=f"python -m {module}", description=(text or "").partition("\n")[0])


def given(texts: list[str]) -> list[tuple[str, str]]:
    """Names and values of what a command line gives as --set NAME=VALUE.

    Raises: ValueError naming the one without a value.
    """
    if bad := [text for text in texts if "=" not in text]:
        raise ValueError(f"--set {bad[0]}: write NAME=VALUE")
    return [tuple(text.split("=", 1)) for text in texts]


def toc_pages(root: Path = ROOT) -> list[Path]:
    """The book's pages in reading order, as files that exist.

    Raises: FileNotFoundError naming the entry of _toc.yml that is neither a notebook nor a Markdown page.
    """
    import yaml

    def entries(node):
        if isinstance(node, dict):
            yield from (node[key] for key in ("root", "file") if key in node)
            for key in ("parts", "chapters", "sections"):
                for child in node.get(key, []):
                    yield from entries(child)

    pages = []
    for entry in entries(yaml.safe_load((root / "_toc.yml").read_text("utf-8"))):
        base = root / entry
        found = [
            path
            for path in (base, base.with_name(base.name + ".ipynb"), base.with_name(base.name + ".md"))
            if path.is_file()
        ]
        if not found:
            raise FileNotFoundError(f"_toc.yml names {entry!r}, but there is no {entry}.ipynb and no {entry}.md")
        pages.append(found[0])
    return pages


def toc_chapters(root: Path = ROOT) -> list[Path]:
    return [page for page in toc_pages(root) if page.suffix == ".ipynb"]


def read(path: Path) -> dict:
    """A notebook as its JSON, every cell's source joined to one string."""
    try:
        notebook = json.loads(Path(path).read_text("utf-8"))
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a notebook: {type(error).__name__}: {error}") from error
    return notebook


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def tags(cell: dict) -> list[str]:
    return cell.get("metadata", {}).get("tags", [])


def check(values: dict, known: dict[str, Parameter], chapter: str) -> None:
    """Refuse a value for an undeclared parameter, or one of the wrong type, naming the declared ones."""
    problems = [f"it has no parameter {name!r}" for name in values if name not in known]
    problems += filter(
        None, (problem_with(name, values[name], p.kind) for name, p in known.items() if name in values and p.kind)
    )
    if problems:
        listing = ", ".join(f"{p.name} ({p.kind or 'any'})" for p in known.values()) or "none"
        raise ValueError(f"chapter {chapter}: {'; '.join(problems)}; its parameters: {listing}")


def scalar(text: str, strict: bool = False) -> object:
    """One value as YAML reads it: null, true, 3, 0.5, "text", [1, 2].

    Raises: ValueError, if `strict`, for what readers of YAML 1.1 take for something else: 1e-3, yes, 010.
    """
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        parts = re.findall(r"\[[^\]]*\]|\"[^\"]*\"|'[^']*'|[^,\s][^,]*", text[1:-1])
        return [scalar(part, strict) for part in parts]
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    if text.lower() in ("", "null", "~", "none"):
        if strict and text.lower() == "none":
            raise ValueError("'none' is a word to YAML: write null")
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    if re.fullmatch(r"[-+]?(0|[1-9][\d_]*)", text):
        return int(text)
    if re.fullmatch(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)?", text):
        if strict and not re.fullmatch(r"[-+]?\d[\d_]*\.\d*([eE][-+]\d+)?", text):
            raise ValueError(f"{text!r} is not a number to every YAML reader: write it like 0.5, 12 or 1.0e-3")
        return float(text)
    if strict and text.lower() in ("yes", "no", "on", "off"):
        raise ValueError(f'{text!r} means different things to YAML readers: write true, false or "{text}"')
    return text


def read_profile(path: Path) -> dict:
    """A profile's parameters: flat `name: value` lines and comments, so that no YAML library is needed.

    Raises: ValueError naming file and line of what is not such a line.
    """
    values = {}
    for number, line in enumerate(Path(path).read_text("utf-8").splitlines(), 1):
        text = re.sub(r"(^|\s)#(?=(?:[^\"']|\"[^\"]*\"|'[^']*')*$).*", "", line).rstrip()
        if not text:
            continue
        match = re.fullmatch(r"(\w+):(?:\s+(.*))?", text)
        if not match or match[1] in values:
            raise ValueError(f"{path}, line {number}: expected one `name: value` a line, each name once; got {line!r}")
        try:
            values[match[1]] = scalar(match[2] or "", strict=True)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    return values


def parse_settings(pairs: list[tuple[str, str]], known: dict[str, Parameter]) -> dict:
    """Values given on a command line; what is declared a string is taken as it stands.

    A path is relative to where the user stands: a kernel runs in its chapter's folder.
    """
    values = {name: text if name in known and known[name].kind == "str" else scalar(text) for name, text in pairs}
    for name in ("records_to", "labels"):
        if values.get(name):
            values[name] = os.path.abspath(os.path.expanduser(values[name]))
    dataset = values.get("dataset")
    if isinstance(dataset, str) and os.path.exists(os.path.expanduser(dataset)):
        from resnet_lib.data import KNOWN  # which win over a file of that name

        if dataset not in KNOWN:
            values["dataset"] = os.path.abspath(os.path.expanduser(dataset))
    return values
