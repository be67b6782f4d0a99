"""A sweep adds its conditions to every row, and a resumed one runs only what is missing or has changed."""

import json

import pytest

from resnet_lib import sweep
from resnet_lib.records import cache_folder

CALLS = []


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNET_LIB_CACHE", str(tmp_path))
    CALLS.clear()


def run(function, runs, **options):
    return sweep.run(function, runs, progress=False, **options)


def measured(depth, seed):
    CALLS.append((depth, seed))
    return [{"error": depth / 100 + seed, "epoch": epoch} for epoch in (1, 2)]


def helper(depth):
    return depth


def indirect(depth, seed):
    return [{"error": helper(depth)}]


def changed(source):
    """A function made from source, as a notebook's kernel holds it after its cell is run again."""
    import linecache

    name = f"<cell {hash(source)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    namespace = {"__name__": "__main__", "CALLS": CALLS}
    exec(compile(source, name, "exec"), namespace)
    return namespace


RUNS = sweep.conditions(depth=[8, 20], seed=range(2))


def test_conditions_are_every_combination_last_axis_fastest():
    assert [{"depth": d, "seed": s} for d in (8, 20) for s in (0, 1)] == RUNS
    assert sweep.conditions() == [{}]


def test_rows_carry_their_condition_and_time():
    rows = run(measured, RUNS)
    assert [(r["depth"], r["seed"], r["epoch"]) for r in rows] == [
        (d, s, e) for d in (8, 20) for s in (0, 1) for e in (1, 2)
    ]
    assert all(r["run_s"] >= 0 and r["error"] == r["depth"] / 100 + r["seed"] for r in rows)
    assert CALLS == [(8, 0), (8, 1), (20, 0), (20, 1)]


def test_without_resume_everything_runs_and_nothing_is_kept():
    run(measured, RUNS)
    run(measured, RUNS)
    assert len(CALLS) == 8 and not cache_folder().joinpath("runs").exists()


def test_resume_skips_finished_runs_and_gives_the_same_rows():
    first = run(measured, RUNS[:3], recipe={"epochs": 2}, resume=True)
    rows = run(measured, RUNS, recipe={"epochs": 2}, resume=True)
    assert len(CALLS) == 4 and rows[:6] == first
    run(measured, RUNS, recipe={"epochs": 3}, resume=True)
    assert len(CALLS) == 8


def test_an_interrupted_sweep_keeps_what_was_finished():
    def stopping(depth, seed):
        if seed == 1 and len(CALLS) == 1:
            raise KeyboardInterrupt
        return measured(depth, seed)

    with pytest.raises(KeyboardInterrupt):
        run(stopping, RUNS, recipe={}, resume=True)
    CALLS.append("again")
    run(stopping, RUNS, recipe={}, resume=True)
    assert CALLS == [(8, 0), "again", (8, 1), (20, 0), (20, 1)]


def test_resume_needs_a_recipe():
    with pytest.raises(ValueError, match="resume=True needs a recipe"):
        run(measured, RUNS, resume=True)


SOURCE = """
def factor():
    return 2

def study(seed):
    CALLS.append(seed)
    return [{"value": factor() * seed}]
"""


@pytest.mark.parametrize(
    ("old", "new", "runs_again"),
    [
        ("factor() * seed", "factor() + seed", True),
        ("return 2", "return 3", True),  # in a helper that the function calls
        ("return 2", "return 2  # two", False),
        ("def study(seed):", 'def study(seed):\n    """Doubled."""', False),
    ],
)
def test_a_changed_function_runs_again_and_a_changed_comment_does_not(old, new, runs_again):
    before, after = changed(SOURCE), changed(SOURCE.replace(old, new))
    run(before["study"], [{"seed": 5}], recipe={}, resume=True)
    rows = run(after["study"], [{"seed": 5}], recipe={}, resume=True)
    assert len(CALLS) == 1 + runs_again
    assert rows[0]["value"] == after["factor"]() * 5 or "+" in new


def test_kept_runs_are_whole_json_files():
    run(measured, RUNS, recipe={}, resume=True)
    files = list((cache_folder() / "runs").iterdir())
    assert len(files) == 4 and all(json.loads(file.read_text()) for file in files)
