"""The code of a result is all that its function reaches, no more: what cannot change a row makes none stale."""

import ast
import functools
import linecache

import pytest

from resnet_lib import freshness, resnets, train
from resnet_lib.paths import digest

MODULES = {
    "core": '''
"""Core."""
LIMIT = 3
TABLE = {"a": lambda x: x + 1, "b": 2}


def scaled(x):
    """Text."""
    return LIMIT * x  # why


def unused(x):
    return x


class Net:
    def forward(self, x):
        return scaled(x)
''',
    "data": "def pictures():\n    return 1\n",
    "experiments.made.question": """
from resnet_lib import core, data
from resnet_lib.core import Net


def helper(x):
    return core.TABLE["a"](x)


def measured(s, seed):
    data.pictures()
    return helper(seed) + Net().forward(seed)


def estimates(rows, s):
    return {}
""",
}
REACHED = {
    "core.LIMIT",
    "core.Net",
    "core.TABLE",
    "core.TABLE['a']",
    "core.TABLE['b']",
    "core.scaled",
    "experiments.made.question.helper",
    "experiments.made.question.measured",
}


@pytest.fixture
def library(tmp_path, monkeypatch):
    """code_of `measured` in a library with these modules, after changes given as (module, old, new)."""
    monkeypatch.setattr(freshness, "__file__", str(tmp_path / "freshness.py"))

    def measured(*changes):
        for module, text in MODULES.items():
            for where, old, new in changes:
                assert where != module or old in text
                text = text.replace(old, new) if where == module else text
            path = tmp_path.joinpath(*module.split(".")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        freshness.read_module.cache_clear()
        stand_in = lambda: None  # noqa: E731
        stand_in.__module__, stand_in.__qualname__ = "resnet_lib.experiments.made.question", "measured"
        return freshness.code_of(stand_in)

    yield measured
    freshness.read_module.cache_clear()


def test_the_code_of_a_run_is_what_it_reaches_through_modules_names_and_tables(library):
    assert set(library()) == REACHED


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (("core", "LIMIT = 3", "LIMIT = 4"), {"core.LIMIT"}),
        (("core", "LIMIT * x", "LIMIT + x"), {"core.scaled"}),
        (("core", "x + 1", "x - 1"), {"core.TABLE['a']"}),
        (("core", "return scaled(x)", "return -scaled(x)"), {"core.Net"}),
        (("experiments.made.question", "helper(seed) + ", "helper(seed) - "), {"experiments.made.question.measured"}),
        (("core", '"b": 2}', '"b": 2, "c": 3}'), set()),  # one more entry: no record knows it
        (("core", "def unused(x):\n    return x", "def unused(x):\n    return 2 * x"), set()),
        (("core", "Text.", "Words."), set()),
        (("core", "  # why", ""), set()),
        (("data", "return 1", "return 2"), set()),  # the data's fingerprint stands for it
        (("experiments.made.question", "return {}", "return {1: 2}"), set()),  # estimates are computed anew
    ],
)
def test_a_change_shows_where_it_can_change_a_row_and_nowhere_else(library, change, names):
    before = library()
    after = library(change)
    assert {name for name in REACHED if after[name] != before[name]} == names
    assert freshness.changed(before) == [f"{name} has changed" for name in sorted(names)]


def test_what_is_renamed_or_taken_away_is_named(library):
    before = library()
    library(("core", "def scaled", "def grown"), ("core", "return scaled", "return grown"))
    assert freshness.changed(before) == ["core.Net has changed", "core.scaled is gone"]


def test_networks_and_training_reach_their_blocks_and_augmentation_and_no_page():
    found = set(freshness.code_of(resnets.resnet_cifar)) | set(freshness.code_of(train.fit))
    assert {"blocks.BLOCKS['basic']", "blocks.BasicBlock", "train.lr_at", "ceilings.choose_precision"} <= found
    assert not [name for name in found if name.partition(".")[0] in freshness.OUTSIDE]


def in_a_notebook(source, **given):
    """A namespace made from source, as a notebook's kernel holds it after its cells were run."""
    name = f"<cell {hash(source)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    namespace = {"__name__": "__main__"} | given
    exec(compile(source, name, "exec"), namespace)
    return namespace


NOTEBOOK = """
from resnet_lib import train

SMOOTHING = {"on": 0.1}
ARMS = {"one": abs, "two": lambda x: x}

def helper(seed):
    return SMOOTHING["on"] * seed

class Doubled:
    def forward(self, x):
        return 2 * x

def mine(s, seed):
    train.seeded(seed)
    return [{"value": helper(seed) + Doubled().forward(seed)}]
"""


def test_a_notebooks_function_is_followed_through_helpers_classes_values_and_the_library():
    found = freshness.code_of(in_a_notebook(NOTEBOOK)["mine"])
    assert {"notebook.mine", "notebook.helper", "notebook.Doubled", "notebook.SMOOTHING", "train.seeded"} <= set(found)
    assert freshness.changed(found) == [], "a notebook's own code is not the book's to judge"


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("0.1", "0.5", True),  # a value that a helper reads
        ("2 * x", "3 * x", True),
        ('["on"] * seed', '["on"] + seed', True),
        ("def mine(s, seed):", 'def mine(s, seed):\n    """Text."""', False),
        ('"one": abs', '"one": max', False),  # nobody reads ARMS
    ],
)
def test_whatever_a_notebooks_function_reads_is_in_its_code(old, new, counts):
    before, after = (freshness.code_of(in_a_notebook(text)["mine"]) for text in (NOTEBOOK, NOTEBOOK.replace(old, new)))
    assert (before != after) == counts


def test_a_partial_counts_with_its_arguments():
    def shifted(by, s, seed):
        return [{"value": by + seed}]

    one, two = (freshness.code_of(functools.partial(shifted, by)) for by in (1, 2))
    assert one != two and freshness.code_of(functools.partial(shifted, 1)) == one


def test_the_hash_is_the_same_on_every_python():
    # known by hand from the form that _dump gives, which no version of Python decides
    tree = ast.parse('def f(x):\n    """Text."""\n    return x')
    form = (
        "Module(body=[FunctionDef(name='f',args=arguments(args=[arg(arg='x')]),"
        "body=[Return(value=Name(id='x',ctx=Load()))])])"
    )
    assert freshness.hash_tree(tree) == digest(form)
