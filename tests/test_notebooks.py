"""Notebook hygiene: each rule finds what it is for, and every chapter keeps them all."""

import json
import re
import tomllib

import pytest

from tests.conftest import ROOT, cell
from tools import chapters, notebooks

ADDRESS = "https://example.org/a/b"
BOOTSTRAP = notebooks.BOOTSTRAP.replace("ADDRESS", ADDRESS)
FIGURE = {"image": {"alt": "A line that rises"}}


def write(path, cells, **metadata):
    whole = {"cells": cells, "metadata": notebooks.NOTEBOOK_METADATA | metadata, "nbformat": 4, "nbformat_minor": 5}
    path.write_text(notebooks.canonical(whole))
    return path


def clean():
    return [
        cell(
            "# Title\n\nOne sentence, e.g. this one.\nAnother of 3×3 with `5 ms` in code {cite:p}`x`.",
            "title",
            kind="markdown",
        ),
        cell(BOOTSTRAP, "bootstrap", "bootstrap"),
        cell("seeds: int = 3  # repetitions", "parameters", "parameters"),
        cell("fig, ax = plt.subplots()\npage.caption(f'It rises.')", "fig-a", "present", mystnb=FIGURE),
        cell("print(1)", "shapes", notebooks.CHECKED)
        | {"outputs": [{"output_type": "stream", "name": "stdout", "text": ["1\n"]}], "execution_count": 4},
    ]


def test_a_clean_notebook_has_no_problems(tmp_path):
    assert notebooks.problems(write(tmp_path / "a.ipynb", clean()), ADDRESS) == []


@pytest.mark.parametrize(
    ("place", "change", "words"),
    [
        (0, {"source": "It took 12.5 ms here."}, "a number that looks measured"),
        (0, {"source": "It is 1.9× faster."}, "a number that looks measured"),
        (0, {"source": "One sentence. Two of them."}, "one sentence a line"),
        (0, {"id": "3f2a9b1c"}, "short id of words"),
        (0, {"id": "shapes"}, "two cells are called 'shapes'"),
        (1, {"source": "import os"}, "first code cell must be the bootstrap cell"),
        (1, {"source": BOOTSTRAP.replace("/a/b", "/a/c")}, "first code cell must be the bootstrap cell"),
        (2, {"source": "seeds = 3  # repetitions"}, "a parameter is"),
        (2, {"source": "seeds: int = 3"}, "say in a comment what seeds is"),
        (2, {"source": "%time 1"}, "a magic"),
        (4, {"source": "x = 1\n" * 16}, "at most 15"),
        (2, {"execution_count": 2}, "must be stripped"),
        (3, {"metadata": {"mystnb": {}}}, "can't see it"),
        (3, {"source": "fig, ax = plt.subplots()"}, "needs a caption"),
        (3, {"source": "x = 1\n" * 26, "metadata": {"tags": ["remove-input"]}}, "at most 25"),
        (3, {"metadata": {"mystnb": FIGURE, "execution": {}}}, "metadata that is not the author's: execution"),
        (4, {"execution_count": None}, "never compared"),
        (4, {"outputs": []}, "never compared"),
    ],
)
def test_each_rule_finds_what_it_is_for(tmp_path, place, change, words):
    cells = clean()
    cells[place] |= change
    found = notebooks.problems(write(tmp_path / "a.ipynb", cells), ADDRESS)
    assert any(words in problem for problem in found), found


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([cell("x = 1", f"more-{i}") for i in "abcdefghijklmnopqrstuvwxyz"] * 2, "57 cells; at most 45"),
        ([cell("x = 1\n\n" * 7, f"open-{i}") for i in range(43)], "lines of code that stand open; at most 300"),
        ([cell("x = 1\n" * 25, f"folded-{i}", "hide-input") for i in range(25)], "lines of code; at most 600"),
    ],
)
def test_a_chapter_longer_than_a_reader_stays_for_is_named(tmp_path, more, words):
    assert any(words in problem for problem in notebooks.problems(write(tmp_path / "a.ipynb", clean() + more), ADDRESS))


def test_the_version_of_the_interpreter_and_another_layout_are_found(tmp_path):
    path = write(tmp_path / "a.ipynb", clean(), language_info={"version": "3.11.7"})
    assert "kernelspec" in notebooks.problems(path, ADDRESS)[0]
    path = write(tmp_path / "b.ipynb", clean())
    path.write_text(json.dumps(json.loads(path.read_text())))
    assert "layout" in notebooks.problems(path, ADDRESS)[0]


def test_fix_leaves_out_what_measures(tmp_path):
    cells = [
        cell("x = 2", "make"),
        cell("raise SystemError", "measure", "nbval-skip"),
        cell("x * 21", "s", notebooks.CHECKED),
    ]
    path = write(tmp_path / "a.ipynb", cells)
    notebooks.fix(path)
    assert [len(one["outputs"]) for one in json.loads(path.read_text())["cells"]] == [0, 0, 1]


def test_fix_keeps_outputs_and_counts_of_checked_cells_alone_and_is_repeatable(tmp_path):
    cells = [cell("x = 2", "make"), cell("x * 21", "shapes", notebooks.CHECKED), cell("x", "show")]
    path = write(tmp_path / "a.ipynb", cells)
    notebooks.fix(path)
    first = path.read_text()
    notebook = json.loads(first)
    assert [len(one["outputs"]) for one in notebook["cells"]] == [0, 1, 0]
    assert [one["execution_count"] for one in notebook["cells"]] == [None, 2, None]
    assert notebook["cells"][1]["outputs"][0]["data"]["text/plain"] == ["42"]
    assert '"execution":' not in first
    notebooks.fix(path)
    assert path.read_text() == first


@pytest.mark.parametrize("path", chapters.toc_chapters(ROOT), ids=lambda path: path.stem)
def test_every_chapter_is_clean(path):
    assert notebooks.problems(path, notebooks.repository(ROOT)) == []


def test_every_copy_of_the_repository_address_is_the_one_in_the_configuration():
    address = notebooks.repository(ROOT)
    owner_and_name = address.removeprefix("https://github.com/")
    name = owner_and_name.split("/")[1]
    link = re.compile(r"(git\+https://github\.com|github\.com|colab\.research\.google\.com/github)/([\w-]+/[\w-]+)")
    files = [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("chapters/*.ipynb"), *ROOT.glob("resnet_lib/*.py")]
    copies = {
        (path.name, copy)
        for path in files
        for place, copy in link.findall(path.read_text("utf-8"))
        if place != "github.com" or copy.endswith(f"/{name}")
    }
    assert {copy for _, copy in copies} == {owner_and_name}, copies
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]
    assert set(urls.values()) == {address}
